//! Which streams are filled by somebody else, and what their entries are.

use bytes::Bytes;

use super::super::super::engine::{Channel, Entry, MessageId};
use super::super::super::position::Position;
use crate::grip::Kind;
use crate::grip::item::{Formats, Item, WsMessage};
use crate::grip::meta::Meta;

/// Streams that others fill with plain `XADD`, and the channels that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestRule {
    /// The streams' keys.
    pub streams: Pattern,
    /// The channels' names; what `*` stands for is the same in both.
    pub channels: Pattern,
    /// The field with a message's id. An entry without it, or with one that is no message's id, has its entry's id.
    pub id_field: String,
    /// The field with what is sent: a text message if it is UTF-8, else a binary one. Nothing is sent of an entry without
    /// it.
    pub data_field: String,
}

/// Text in which one `*` may stand for any characters, one at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    before: String,
    after: Option<String>,
}

impl Pattern {
    /// The pattern of this text; `None` if it is empty or has several `*`.
    pub fn new(text: &str) -> Option<Self> {
        match text.split_once('*') {
            None => (!text.is_empty()).then(|| Self { before: text.to_owned(), after: None }),
            Some((before, after)) => {
                let made = Self { before: before.to_owned(), after: Some(after.to_owned()) };
                (!after.contains('*')).then_some(made)
            }
        }
    }

    /// Whether there is a `*` in it.
    pub fn has_star(&self) -> bool {
        self.after.is_some()
    }

    /// Whether a text that matches may begin so.
    pub fn may_begin_with(&self, prefix: &str) -> bool {
        self.before.starts_with(prefix) || (self.has_star() && prefix.starts_with(&self.before))
    }

    /// What the `*` stands for in this text; nothing where there is none. `None` if it does not match.
    fn star_of<'a>(&self, text: &'a str) -> Option<&'a str> {
        match &self.after {
            None => (text == self.before).then_some(""),
            Some(after) => {
                let star = text.strip_prefix(self.before.as_str())?.strip_suffix(after.as_str())?;
                (!star.is_empty()).then_some(star)
            }
        }
    }

    fn with_star(&self, star: &str) -> String {
        match &self.after {
            None => self.before.clone(),
            Some(after) => format!("{}{star}{after}", self.before),
        }
    }
}

impl IngestRule {
    /// The key of a channel's stream, if it is one of these.
    pub fn stream_of(&self, channel: &Channel) -> Option<String> {
        self.channels.star_of(channel.as_str()).map(|star| self.streams.with_star(star))
    }
}

/// What a foreign entry has: the fields that a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The message's id, if it has one.
    pub id: Option<Vec<u8>>,
    /// What is sent, if anything is.
    pub data: Option<Vec<u8>>,
}

/// A foreign entry as the backplane has entries.
pub fn entry(channel: &Channel, position: Position, fields: Fields) -> Entry {
    let named = fields.id.as_deref().and_then(|id| MessageId::new(std::str::from_utf8(id).ok()?).ok());
    // An entry's id is as long as two numbers are.
    let message = named.or_else(|| MessageId::new(&position.id.to_string()).ok()).unwrap_or_else(MessageId::unnamed);
    let ws_message = match fields.data {
        Some(data) => WsMessage::Send {
            kind: if std::str::from_utf8(&data).is_ok() { Kind::Text } else { Kind::Binary },
            content: data.into(),
            content_filters: None,
        },
        None => WsMessage::Hint,
    };
    let item = Item {
        channel: channel.as_str().to_owned(),
        id: Some(message.as_str().to_owned()),
        prev_id: None,
        no_seq: false,
        size: None,
        meta: Meta::default(),
        formats: Formats { ws_message: Some(ws_message), ..Formats::default() },
    };
    let mut payload = Vec::new();
    item.encode(&mut payload);
    Entry { position, message, payload: Bytes::from(payload) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(streams: &str, channels: &str) -> IngestRule {
        let pattern = |text| Pattern::new(text).unwrap();
        IngestRule {
            streams: pattern(streams),
            channels: pattern(channels),
            id_field: "msgId".to_owned(),
            data_field: "message".to_owned(),
        }
    }

    #[test]
    fn a_channel_leads_to_its_stream_and_no_other_does() {
        let stream = |rule: &IngestRule, name: &str| rule.stream_of(&Channel::new(name).unwrap());
        let same = rule("room:*", "room:*");
        assert_eq!(stream(&same, "room:42").as_deref(), Some("room:42"));
        assert_eq!(stream(&same, "room:*").as_deref(), Some("room:*"), "a channel's star is a character");
        for other in ["room:", "room", "aroom:1", "Room:1"] {
            assert_eq!(stream(&same, other), None, "{other}");
        }
        let renamed = rule("app:*:events", "room:*");
        assert_eq!(stream(&renamed, "room:7").as_deref(), Some("app:7:events"));
        let around = rule("a*a", "a*a");
        assert_eq!((stream(&around, "aa"), stream(&around, "aba").as_deref()), (None, Some("aba")));
        let one = rule("prices", "ticker");
        assert_eq!((stream(&one, "ticker").as_deref(), stream(&one, "prices")), (Some("prices"), None));
        assert_eq!((Pattern::new(""), Pattern::new("a*b*")), (None, None));
    }

    #[test]
    fn an_entry_is_an_item_whatever_its_fields_are() {
        let channel = Channel::new("room:1").unwrap();
        let position: Position = "eu.a.3.17-2".parse().unwrap();
        let made = |id: Option<&[u8]>, data: Option<&[u8]>| {
            let fields = Fields { id: id.map(<[u8]>::to_vec), data: data.map(<[u8]>::to_vec) };
            let entry = entry(&channel, position.clone(), fields);
            let item = Item::decode(&entry.payload).unwrap();
            assert_eq!(item.id.as_deref(), Some(entry.message.as_str()));
            (entry.message.as_str().to_owned(), item.formats.ws_message)
        };
        let send = |kind, content: &'static [u8]| {
            Some(WsMessage::Send { kind, content: Bytes::from_static(content), content_filters: None })
        };
        assert_eq!(made(Some(b"m-17"), Some(b"hello")), ("m-17".to_owned(), send(Kind::Text, b"hello")));
        assert_eq!(made(None, Some(b"\xff")), ("17-2".to_owned(), send(Kind::Binary, b"\xff")));
        assert_eq!(made(Some(b"\xff"), Some(b"")), ("17-2".to_owned(), send(Kind::Text, b"")));
        assert_eq!(made(Some(&[b'x'; 257]), None), ("17-2".to_owned(), Some(WsMessage::Hint)));
    }
}
