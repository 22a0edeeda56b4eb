//! What the operator says of channels by how their names begin, and how a publication on a channel of newest values is
//! taken apart. Pure: no I/O, no clock.

use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value as Json;

use super::engine::{Channel, Key};
use super::position::Region;
use crate::grip::Kind;
use crate::grip::item::{Item, WsMessage};
use crate::grip::meta::Meta;

/// The most rules: each channel's name is held against all of them.
pub const MAX_RULES: usize = 64;

/// How often a channel of newest values is sent by default.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The name in an item's metadata that its key is the value of by default.
pub const META_KEY: &str = "conflate-key";

/// What is said of channels, the longest prefix first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelRules(Vec<ChannelRule>);

/// What is said of the channels whose names begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRule {
    /// What their names begin with.
    pub prefix: String,
    /// The region that their publications are appended to.
    pub home: Option<Region>,
    /// That only the newest value of each key counts, and how; `None` where every publication does.
    pub conflate: Option<Conflation>,
}

/// How a channel is sent of which only the newest value of each key counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflation {
    /// The time between two of its ticks. 10 ms to 10 s.
    pub interval: Duration,
    /// What a publication is the newest value of.
    pub key: KeySource,
    /// What a client gets at a tick.
    pub join: Join,
}

impl Default for Conflation {
    fn default() -> Self {
        Self { interval: INTERVAL, key: KeySource::default(), join: Join::default() }
    }
}

/// Where a publication has its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In its metadata, under this name.
    Meta(String),
    /// In its content, which is JSON, where this points: a string, or a whole number. RFC 6901.
    Json(String),
}

impl Default for KeySource {
    fn default() -> Self {
        Self::Meta(META_KEY.to_owned())
    }
}

/// What a client gets of the values that have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Join {
    /// A message for each.
    #[default]
    Messages,
    /// One message, a JSON array of them.
    JsonArray,
}

/// Why a publication is none for a channel of newest values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It sends no message.
    #[error("has no 'ws-message' with text or binary content")]
    NoMessage,
    /// It is for some of the subscribers.
    #[error("has 'content-filters', and values are the same for all")]
    Filtered,
    /// Its metadata has no entry of this name.
    #[error("has no key: its 'meta' has no '{0}'")]
    NoMeta(String),
    /// Its content is to be JSON, and is not.
    #[error("has content that is no JSON text")]
    NoJson,
    /// Its content has no key where the rule points.
    #[error("has no key: its content has no string or whole number at '{0}'")]
    NoPointed(String),
    /// The key is empty or too long.
    #[error("has a key that is empty or longer than 256 bytes")]
    KeyLength,
    /// What was stored is no item.
    #[error("is no item")]
    NoItem,
}

/// What a publication says of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its type.
    pub kind: Kind,
    /// Its content.
    pub content: Bytes,
    /// The id that its publisher gave it; empty for none.
    pub id: String,
}

impl ChannelRules {
    /// These rules.
    pub fn new(mut rules: Vec<ChannelRule>) -> Self {
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.len()));
        Self(rules)
    }

    /// The rule of a channel: the one with the longest prefix.
    pub fn of(&self, channel: &Channel) -> Option<&ChannelRule> {
        self.0.iter().find(|rule| channel.as_str().starts_with(&rule.prefix))
    }

    /// How a channel of newest values is sent; `None` for any other.
    pub fn conflation(&self, channel: &Channel) -> Option<&Conflation> {
        self.of(channel)?.conflate.as_ref()
    }

    /// Whether any channel is one of newest values.
    pub fn conflate(&self) -> bool {
        self.0.iter().any(|rule| rule.conflate.is_some())
    }

    /// The rules.
    pub fn iter(&self) -> impl Iterator<Item = &ChannelRule> {
        self.0.iter()
    }
}

impl Conflation {
    /// The key of a publication on such a channel, if it can be one.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn key_of(&self, item: &Item) -> Result<Key, ValueError> {
        let Some(WsMessage::Send { kind, content, content_filters }) = &item.formats.ws_message else {
            return Err(ValueError::NoMessage);
        };
        if kind.opcode().is_control() {
            return Err(ValueError::NoMessage);
        }
        if content_filters.as_ref().is_some_and(|filters| !filters.is_empty()) {
            return Err(ValueError::Filtered);
        }
        if self.join == Join::JsonArray
            && (*kind != Kind::Text || serde_json::from_slice::<IgnoredAny>(content).is_err())
        {
            return Err(ValueError::NoJson);
        }
        self.key.key(&item.meta, content)
    }

    /// Reads what an engine stored on such a channel.
    ///
    /// # Errors
    /// [`ValueError`]: who published it has another rule, or none.
    pub fn read(&self, payload: &Bytes) -> Result<(Key, Value), ValueError> {
        let item = Item::decode(payload).map_err(|_| ValueError::NoItem)?;
        let key = self.key_of(&item)?;
        match item.formats.ws_message {
            Some(WsMessage::Send { kind, content, .. }) => {
                Ok((key, Value { kind, content, id: item.id.unwrap_or_default() }))
            }
            _ => Err(ValueError::NoMessage),
        }
    }
}

impl KeySource {
    /// What is written of it in a configuration file: `meta:NAME` or `json:POINTER`. `None` if it is neither.
    pub fn from_text(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("meta:") {
            return (!name.is_empty()).then(|| Self::Meta(name.to_owned()));
        }
        let pointer = text.strip_prefix("json:")?;
        // The empty pointer is the whole text, which is a key where it is a string.
        let mut escapes = pointer.split('~').skip(1);
        let sound = pointer.is_empty() || pointer.starts_with('/');
        (sound && escapes.all(|rest| rest.starts_with(['0', '1']))).then(|| Self::Json(pointer.to_owned()))
    }

    /// The key in a publication with this metadata and this content.
    ///
    /// # Errors
    /// There is none, or it is no key.
    pub fn key(&self, meta: &Meta, content: &[u8]) -> Result<Key, ValueError> {
        let of = |text: &str| Key::new(text).map_err(|_| ValueError::KeyLength);
        match self {
            Self::Meta(name) => of(meta.get(name).ok_or_else(|| ValueError::NoMeta(name.clone()))?),
            Self::Json(pointer) => {
                let value: Json = serde_json::from_slice(content).map_err(|_| ValueError::NoJson)?;
                match value.pointer(pointer) {
                    Some(Json::String(text)) => of(text),
                    Some(Json::Number(number)) if number.is_i64() || number.is_u64() => of(&number.to_string()),
                    _ => Err(ValueError::NoPointed(pointer.clone())),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grip::Limits;
    use crate::grip::item::{Formats, HttpStream};

    fn rule(prefix: &str, conflate: bool) -> ChannelRule {
        ChannelRule { prefix: prefix.to_owned(), home: None, conflate: conflate.then(Conflation::default) }
    }

    fn item(kind: Kind, content: &str, meta: &[(&str, &str)]) -> Item {
        let mut of = Meta::default();
        for (name, value) in meta {
            of.set(name, value, &Limits::default()).unwrap();
        }
        let content = Bytes::from(content.to_owned());
        let ws_message = Some(WsMessage::Send { kind, content, content_filters: None });
        let formats = Formats { ws_message, ..Formats::default() };
        Item { channel: "a".to_owned(), id: None, prev_id: None, no_seq: false, size: None, meta: of, formats }
    }

    fn json(pointer: &str) -> Conflation {
        Conflation { key: KeySource::from_text(&format!("json:{pointer}")).unwrap(), ..Conflation::default() }
    }

    #[test]
    fn the_longest_prefix_counts() {
        let rules = ChannelRules::new(vec![rule("p", true), rule("prices:raw:", false), rule("prices:", true)]);
        let conflated = |name: &str| rules.conflation(&Channel::new(name).unwrap()).is_some();
        assert!(conflated("prices:eu") && conflated("p") && conflated("prices:raw"));
        assert!(!conflated("prices:raw:eu") && !conflated("room:p") && !conflated("P"));
        assert_eq!(rules.of(&Channel::new("prices:raw:x").unwrap()).unwrap().prefix, "prices:raw:");
        assert!(ChannelRules::default().of(&Channel::new("a").unwrap()).is_none());
    }

    #[test]
    fn a_key_is_in_the_metadata() {
        let conflation = Conflation::default();
        let key = |meta: &[(&str, &str)]| conflation.key_of(&item(Kind::Binary, "\0", meta));
        assert_eq!(key(&[("user", "u"), ("conflate-key", "AAPL")]).unwrap().as_str(), "AAPL");
        let error = key(&[("user", "u")]).unwrap_err();
        assert_eq!(error.to_string(), "has no key: its 'meta' has no 'conflate-key'");
        assert_eq!(key(&[("conflate-key", "")]), Err(ValueError::KeyLength));
        assert_eq!(key(&[("conflate-key", &"x".repeat(257))]), Err(ValueError::KeyLength));
        assert!(key(&[("conflate-key", &"x".repeat(256))]).is_ok());
    }

    #[test]
    fn a_key_is_where_a_pointer_leads() {
        for (pointer, content, expected) in [
            ("/s", r#"{"s":"AAPL","p":1}"#, Ok("AAPL")),
            ("/s", r#"{"s":"a","s":"b"}"#, Ok("b")),
            ("/a/1/b~0~1", r#"{"a":[0,{"b~/":"x"}]}"#, Ok("x")),
            ("/id", r#" {"id": 17} "#, Ok("17")),
            ("/id", r#"{"id":-9223372036854775808}"#, Ok("-9223372036854775808")),
            ("", r#""x""#, Ok("x")),
            ("/s", r#"{"s":"\u00e9\u0000"}"#, Ok("é\0")),
            ("/id", r#"{"id":1.5}"#, Err(ValueError::NoPointed("/id".to_owned()))),
            ("/id", r#"{"id":true}"#, Err(ValueError::NoPointed("/id".to_owned()))),
            ("/id", r#"{"id":null}"#, Err(ValueError::NoPointed("/id".to_owned()))),
            ("/id/x", r#"{"id":"x"}"#, Err(ValueError::NoPointed("/id/x".to_owned()))),
            ("/01", r#"["a","b"]"#, Err(ValueError::NoPointed("/01".to_owned()))),
            ("/s", r#"{"s":""}"#, Err(ValueError::KeyLength)),
            ("/s", r#"{"s":"x""#, Err(ValueError::NoJson)),
            ("/s", "", Err(ValueError::NoJson)),
        ] {
            let found = json(pointer).key_of(&item(Kind::Text, content, &[]));
            assert_eq!(found.as_ref().map(Key::as_str), expected.as_ref().copied(), "{pointer} in {content}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(json("/s").key_of(&item(Kind::Text, &deep, &[])), Err(ValueError::NoJson), "nesting is bounded");
    }

    #[test]
    fn what_was_stored_is_read_as_it_was_published() {
        let conflation = Conflation::default();
        let published = Item { id: Some("m1".to_owned()), ..item(Kind::Binary, "x", &[("conflate-key", "k")]) };
        let mut stored = Vec::new();
        published.encode(&mut stored);
        let (key, value) = conflation.read(&stored.into()).unwrap();
        let content = Bytes::from_static(b"x");
        assert_eq!((key.as_str(), value), ("k", Value { kind: Kind::Binary, content, id: "m1".to_owned() }));
        assert_eq!(conflation.read(&Bytes::from_static(b"\0lost")), Err(ValueError::NoItem));
    }

    #[test]
    fn what_is_joined_is_json() {
        let conflation = Conflation { join: Join::JsonArray, ..Conflation::default() };
        let key = |kind, content: &str| conflation.key_of(&item(kind, content, &[("conflate-key", "k")]));
        for content in ["1", " {\"a\":[null]}\n", "\"x\""] {
            assert!(key(Kind::Text, content).is_ok(), "{content}");
        }
        for content in ["", "1,2", "1]", "{", "x", "NaN", "\u{feff}1"] {
            assert_eq!(key(Kind::Text, content), Err(ValueError::NoJson), "{content}");
        }
        assert_eq!(key(Kind::Binary, "1"), Err(ValueError::NoJson), "an array is text");
    }

    #[test]
    fn what_is_no_message_for_all_is_no_value() {
        let conflation = Conflation::default();
        let sound = item(Kind::Text, "x", &[("conflate-key", "k")]);
        let with = |formats| Item { formats, ..sound.clone() };
        let ws = |ws_message| with(Formats { ws_message: Some(ws_message), ..Formats::default() });
        let content = Bytes::from_static(b"x");
        let filters = Some(vec!["var-subst".to_owned()]);
        for (item, expected) in [
            (ws(WsMessage::Close { code: None, reason: String::new() }), ValueError::NoMessage),
            (ws(WsMessage::Refresh), ValueError::NoMessage),
            (ws(WsMessage::Hint), ValueError::NoMessage),
            (item(Kind::Ping, "x", &[("conflate-key", "k")]), ValueError::NoMessage),
            (with(Formats { http_stream: Some(HttpStream::Hint), ..Formats::default() }), ValueError::NoMessage),
            (ws(WsMessage::Send { kind: Kind::Text, content, content_filters: filters }), ValueError::Filtered),
        ] {
            assert_eq!(conflation.key_of(&item), Err(expected), "{item:?}");
        }
    }

    #[test]
    fn sources_are_read_as_they_are_written() {
        assert_eq!(KeySource::from_text("meta:conflate-key"), Some(KeySource::default()));
        for text in ["json:", "json:/a", "json:/a~0b~1c/0", "json://"] {
            assert_eq!(KeySource::from_text(text), Some(KeySource::Json(text[5..].to_owned())), "{text}");
        }
        for text in ["", "meta:", "a", "json:a", "json:/a~", "json:/a~2", "Meta:a"] {
            assert_eq!(KeySource::from_text(text), None, "{text}");
        }
    }
}
