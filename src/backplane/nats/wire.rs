//! Entries as messages of the stream, and the server's answers.
//!
//! An entry is a message whose payload is the item's, with two headers: `Sluicegate-Entry` has its epoch, its number, the
//! time at which it was published in milliseconds since 1970, and the bytes of all entries of the log up to it;
//! `Sluicegate-Id` the item's id, percent-encoded. Its sequence in the stream is the other half of its id.

use async_nats::HeaderMap;
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;

use super::super::engine::{EngineError, Entry, Item, MessageId, Retention};
use super::super::position::{EntryId, Epoch, MAX_N, Position, Region};

/// What an entry is.
pub const ENTRY: &str = "Sluicegate-Entry";

/// Its item's id.
pub const ID: &str = "Sluicegate-Id";

/// More than the headers of an entry take, with the longest id.
pub const OVERHEAD: usize = 1280;

/// A header has one line, and blanks at its ends are nobody's.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// An entry, and what its log had when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub entry: Entry,
    /// Bytes of all entries since the log was born, with this one.
    pub bytes_up_to: u64,
}

impl Record {
    pub fn position(&self) -> &Position {
        &self.entry.position
    }

    pub fn n(&self) -> u64 {
        self.entry.position.n
    }

    /// Its sequence in the stream.
    pub fn seq(&self) -> u64 {
        self.entry.position.id.seq
    }

    /// Whether it is retained in a log whose newest entry is `top`.
    pub fn is_kept(&self, top: &Self, retention: &Retention, now_ms: u64) -> bool {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let size = number(self.entry.payload.len() + self.entry.message.as_str().len());
        let before = self.bytes_up_to.saturating_sub(size);
        let max_age_ms = u64::try_from(retention.max_age.as_millis()).unwrap_or(u64::MAX);
        self.n().saturating_add(number(retention.max_entries.max(1))) > top.n()
            && top.bytes_up_to.saturating_sub(before) <= number(retention.max_bytes)
            && self.entry.stored_ms().saturating_add(max_age_ms) > now_ms
    }
}

/// The headers of an entry that is to be stored.
pub fn headers(position: &Position, bytes_up_to: u64, item: &Item) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ENTRY, format!("{} {} {} {bytes_up_to}", position.epoch, position.n, position.id.ms));
    headers.insert(ID, utf8_percent_encode(item.id.as_str(), ESCAPED).to_string());
    headers
}

/// The entry that a message of the stream is; `None` if it is none of ours.
pub fn record(region: &Region, headers: &HeaderMap, seq: u64, payload: Bytes) -> Option<Record> {
    let text = headers.get(ENTRY)?.as_str();
    let mut parts = text.split(' ');
    let epoch = Epoch::new(parts.next()?).ok()?;
    let n = parts.next()?.parse().ok().filter(|n| (1..=MAX_N).contains(n))?;
    let ms = parts.next()?.parse().ok()?;
    let bytes_up_to = parts.next()?.parse().ok()?;
    if parts.next().is_some() || seq == 0 {
        return None;
    }
    let message = percent_decode_str(headers.get(ID)?.as_str()).decode_utf8().ok()?;
    let message = MessageId::new(&message).ok()?;
    let position = Position { region: region.clone(), epoch, n, id: EntryId { ms, seq } };
    Some(Record { entry: Entry { position, message, payload }, bytes_up_to })
}

/// The sequence that the server says a message has, republished or read directly.
pub fn sequence(headers: &HeaderMap) -> Option<u64> {
    headers.get("Nats-Sequence")?.as_str().parse().ok()
}

/// The headers of a message as the server stores them.
pub fn stored_headers(bytes: &[u8]) -> Option<HeaderMap> {
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix("NATS/1.0\r\n")?;
    let mut headers = HeaderMap::new();
    for line in text.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let name: async_nats::HeaderName = name.parse().ok()?;
        let value: async_nats::HeaderValue = value.trim().parse().ok()?;
        headers.append(name, value);
    }
    Some(headers)
}

/// What the server said of a publication.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ack {
    pub seq: u64,
    pub duplicate: bool,
    pub error: Option<ApiError>,
}

/// Why the server did not do what it was asked.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct ApiError {
    pub code: u64,
    pub err_code: u64,
}

impl ApiError {
    /// Somebody else has published since, or is about to publish the same message.
    pub fn is_conflict(&self) -> bool {
        matches!(self.err_code, 10_071 | 10_164 | 10_158)
    }

    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Another node made the stream meanwhile, with another configuration.
    pub fn is_in_use(&self) -> bool {
        self.err_code == 10_058
    }

    pub fn as_engine_error(&self) -> EngineError {
        match self.err_code {
            // Resources, storage and memory of the server or the account.
            10_002 | 10_023 | 10_028 | 10_047 | 10_077 => EngineError::Full,
            // No leader now, or JetStream is not there yet.
            10_008 | 10_009 => EngineError::Unreachable,
            code => EngineError::Refused { code: format!("NATS {code}") },
        }
    }
}

pub fn malformed(what: &'static str) -> EngineError {
    EngineError::Malformed { what }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn region() -> Region {
        Region::new("eu").unwrap()
    }

    fn made(n: u64, ms: u64, bytes_up_to: u64, id: &str) -> Record {
        let position: Position = format!("eu.a1.{n}.{ms}-{}", n * 10).parse().unwrap();
        let item = Item { id: MessageId::new(id).unwrap(), key: None, payload: Bytes::from_static(b"x") };
        record(&region(), &headers(&position, bytes_up_to, &item), n * 10, item.payload).unwrap()
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_whatever_its_id() {
        for id in ["m", " a b ", "a\r\nc\0%41", "é", "🦀"] {
            let record = made(7, 1_795_489_098_605, 99, id);
            assert_eq!(record.position().to_string(), "eu.a1.7.1795489098605-70");
            assert_eq!((record.entry.message.as_str(), record.bytes_up_to), (id, 99));
        }
    }

    #[test]
    fn what_is_not_whole_is_no_entry() {
        let of = |entry: &str, id: Option<&str>, seq| {
            let mut headers = HeaderMap::new();
            headers.insert(ENTRY, entry);
            if let Some(id) = id {
                headers.insert(ID, id);
            }
            record(&region(), &headers, seq, Bytes::new())
        };
        assert!(of("a 1 2 3", Some("m"), 1).is_some());
        for entry in ["", "a", "a 1", "a 1 2", "a 0 2 3", "a 1 2 3 4", "a! 1 2 3", "a -1 2 3", "a 9007199254740992 2 3"]
        {
            assert_eq!(of(entry, Some("m"), 1), None, "{entry}");
        }
        assert_eq!(of("a 1 2 3", None, 1), None);
        assert_eq!(of("a 1 2 3", Some(""), 1), None);
        assert_eq!(of("a 1 2 3", Some("%FF"), 1), None);
        assert_eq!(of("a 1 2 3", Some("m"), 0), None);
        assert_eq!(record(&region(), &HeaderMap::new(), 1, Bytes::new()), None);
    }

    #[test]
    fn an_entry_is_kept_until_the_first_limit_is_passed() {
        let retention = Retention { max_entries: 10, max_age: Duration::from_millis(500), max_bytes: 100 };
        let top = made(20, 1000, 1000, "m");
        let kept = |record: Record| record.is_kept(&top, &retention, 1200);
        assert!(kept(made(11, 900, 950, "m")) && !kept(made(10, 900, 950, "m")));
        assert!(kept(made(15, 701, 950, "m")) && !kept(made(15, 700, 950, "m")));
        // Two bytes of its own: the payload and the id.
        assert!(kept(made(15, 900, 902, "m")) && !kept(made(15, 900, 901, "m")));
    }

    #[test]
    fn headers_are_read_from_what_is_stored() {
        let headers = stored_headers(b"NATS/1.0\r\nNats-Msg-Id: x\r\nSluicegate-Entry: a 1 2 3\r\n\r\n").unwrap();
        assert_eq!(headers.get(ENTRY).map(|value| value.as_str()), Some("a 1 2 3"));
        assert_eq!(stored_headers(b"HTTP/1.1 200\r\n\r\n"), None);
        assert_eq!(stored_headers(b"NATS/1.0\r\nx\r\n\r\n"), None);
    }
}
