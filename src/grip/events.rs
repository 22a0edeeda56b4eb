//! WebSocket-over-HTTP events, the bodies of requests to a backend that holds no socket and of its responses.
//!
//! ```text
//! event = TYPE CRLF                              no content
//!       | TYPE SP hexlen CRLF content CRLF       hexlen: the length of the content in bytes, hexadecimal
//! TYPE  = OPEN | TEXT | BINARY | PING | PONG | CLOSE | DISCONNECT
//! ```
//!
//! The decoder borrows from bytes that stay where they are: an event, "need more", or what is malformed. A malformed
//! event makes the whole body an error, since nothing behind it can be found.

use bytes::BufMut;

use super::Kind;
use crate::ws::close::{CloseCode, MAX_REASON_BYTES};

/// The content type of bodies with events.
pub const CONTENT_TYPE: &str = "application/websocket-events";

/// The longest line of an event, with its CRLF, in bytes: `DISCONNECT`, a blank, and 16 digits.
const MAX_LINE_BYTES: usize = 29;

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The connection begins.
    Open,
    /// A message.
    Message(Kind),
    /// A Close frame.
    Close,
    /// The connection is gone without one.
    Disconnect,
}

impl EventKind {
    const ALL: [Self; 7] = [
        Self::Open,
        Self::Message(Kind::Text),
        Self::Message(Kind::Binary),
        Self::Message(Kind::Ping),
        Self::Message(Kind::Pong),
        Self::Close,
        Self::Disconnect,
    ];

    /// The word that begins it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Message(Kind::Text) => "TEXT",
            Self::Message(Kind::Binary) => "BINARY",
            Self::Message(Kind::Ping) => "PING",
            Self::Message(Kind::Pong) => "PONG",
            Self::Close => "CLOSE",
            Self::Disconnect => "DISCONNECT",
        }
    }

    /// Whether its content counts in `Content-Bytes-Accepted`.
    pub const fn is_counted(self) -> bool {
        matches!(self, Self::Message(_) | Self::Close)
    }
}

/// An event, borrowed from the body that it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What it is.
    pub kind: EventKind,
    /// Its content; empty when there is none. A text or binary message has its content part even when that is empty.
    pub content: &'a [u8],
}

/// Why a body has no event where one should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The first line does not end in time, or does not end in CRLF.
    #[error("event line is malformed")]
    Line,
    /// The line begins with no type of event.
    #[error("event has an unknown type")]
    Type,
    /// The length is no hexadecimal number.
    #[error("event length is malformed")]
    Length,
    /// The content is longer than allowed.
    #[error("event is too long")]
    TooLong,
    /// No CRLF stands behind the content.
    #[error("event content does not end in CRLF")]
    End,
    /// The body ends within an event.
    #[error("event is cut off")]
    Truncated,
}

/// How many bytes an event of `content_bytes` takes.
pub fn encoded_bytes(kind: EventKind, content_bytes: usize) -> usize {
    let word = kind.word().len() + 2;
    if !has_content(kind, content_bytes) {
        return word;
    }
    let digits = (usize::BITS - content_bytes.leading_zeros()).div_ceil(4).max(1) as usize;
    word + 1 + digits + content_bytes.saturating_add(2)
}

/// Writes an event. Its content is copied once, into `out`.
pub fn encode(kind: EventKind, content: &[u8], out: &mut impl BufMut) {
    out.put_slice(kind.word().as_bytes());
    if has_content(kind, content.len()) {
        out.put_u8(b' ');
        put_hex(content.len(), out);
        out.put_slice(b"\r\n");
        out.put_slice(content);
    }
    out.put_slice(b"\r\n");
}

/// Text and binary messages have a content part always, other events when there is content.
fn has_content(kind: EventKind, content_bytes: usize) -> bool {
    content_bytes > 0 || matches!(kind, EventKind::Message(Kind::Text | Kind::Binary))
}

fn put_hex(number: usize, out: &mut impl BufMut) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let nibble = (number >> (place * 4)) & 0xf;
        out.put_u8(char::from_digit(nibble as u32, 16).unwrap_or('0') as u8);
    }
}

/// Reads one event from the front of `input`, and says how many bytes it takes. `None`: show the same bytes again with
/// more behind them. The verdict is the same however the bytes arrive.
///
/// # Errors
/// What is malformed, as soon as it can be seen; `TooLong` over `max_content_bytes`, as soon as the length is there.
pub fn decode(input: &[u8], max_content_bytes: usize) -> Result<Option<(Event<'_>, usize)>, EventError> {
    let head = input.get(..MAX_LINE_BYTES).unwrap_or(input);
    check_beginning(head)?;
    let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
        return if head.len() == MAX_LINE_BYTES { Err(EventError::Line) } else { Ok(None) };
    };
    let line = head.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(EventError::Line)?;
    let (word, length) = match line.iter().position(|byte| *byte == b' ') {
        Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..)),
        None => (line, None),
    };
    let kind = EventKind::ALL.into_iter().find(|kind| kind.word().as_bytes() == word).ok_or(EventError::Type)?;
    let after_line = end + 1;
    let Some(length) = length else { return Ok(Some((Event { kind, content: &[] }, after_line))) };
    let length = parse_hex(length).ok_or(EventError::Length)?;
    if length > max_content_bytes as u64 {
        return Err(EventError::TooLong);
    }
    let rest = input.get(after_line..).unwrap_or_default();
    // It fits: it is at most what a `usize` told.
    let length = length as usize;
    let Some((content, tail)) = rest.split_at_checked(length) else { return Ok(None) };
    match tail {
        [] | [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some((Event { kind, content }, after_line + length + 2))),
        _ => Err(EventError::End),
    }
}

/// Refuses what no further byte makes an event.
fn check_beginning(head: &[u8]) -> Result<(), EventError> {
    let word_end = head.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n')).unwrap_or(head.len());
    let word = head.get(..word_end).unwrap_or_default();
    let whole = word_end < head.len();
    let known = EventKind::ALL.into_iter().any(|kind| {
        let known = kind.word().as_bytes();
        if whole { known == word } else { known.starts_with(word) }
    });
    if known { Ok(()) } else { Err(EventError::Type) }
}

/// One to 16 hexadecimal digits, of either case.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

/// The events of a whole body. Ends behind the first error.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
    max_content_bytes: usize,
}

impl<'a> Events<'a> {
    /// The events of `body`, none of more than `max_content_bytes`.
    pub fn new(body: &'a [u8], max_content_bytes: usize) -> Self {
        Self { rest: body, max_content_bytes }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, EventError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (event, len) = match decode(self.rest, self.max_content_bytes) {
            Ok(Some(decoded)) => decoded,
            Ok(None) => {
                self.rest = &[];
                return Some(Err(EventError::Truncated));
            }
            Err(error) => {
                self.rest = &[];
                return Some(Err(error));
            }
        };
        self.rest = self.rest.get(len..).unwrap_or_default();
        Some(Ok(event))
    }
}

/// What the content of a CLOSE event, or of a published close, may say to a client.
///
/// `None`: a Close frame without a payload. A backend's library writes 0 where the application gave no code, and no code
/// that must not be on the wire gets there, so each of those is no status. A reason that is no UTF-8 is left out, and one
/// that is too long for a Close frame is cut at a character.
///
/// # RFC
/// RFC 6455 §5.5.1 and §7.4.
pub fn close_status(content: &[u8]) -> Option<(CloseCode, &str)> {
    let (code, reason) = content.split_first_chunk::<2>()?;
    let code = CloseCode(u16::from_be_bytes(*code));
    code.is_valid_on_wire().then(|| (code, cut_reason(std::str::from_utf8(reason).unwrap_or_default())))
}

/// As much of `reason` as fits a Close frame, whole characters: 123 bytes. RFC 6455 §5.5.
pub fn cut_reason(reason: &str) -> &str {
    let fits = reason.floor_char_boundary(MAX_REASON_BYTES);
    reason.get(..fits).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: EventKind = EventKind::Message(Kind::Text);
    const BINARY: EventKind = EventKind::Message(Kind::Binary);
    const PING: EventKind = EventKind::Message(Kind::Ping);

    fn encoded(kind: EventKind, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(kind, content, &mut out);
        assert_eq!(out.len(), encoded_bytes(kind, content.len()));
        out
    }

    #[test]
    fn events_are_written_as_other_gateways_write_them() {
        for (kind, content, expected) in [
            (EventKind::Open, &b""[..], &b"OPEN\r\n"[..]),
            (TEXT, b"x1", b"TEXT 2\r\nx1\r\n"),
            (TEXT, b"", b"TEXT 0\r\n\r\n"),
            (BINARY, b"\0\x01bin", b"BINARY 5\r\n\0\x01bin\r\n"),
            (PING, b"pp", b"PING 2\r\npp\r\n"),
            (PING, b"", b"PING\r\n"),
            (EventKind::Close, b"\x0f\xa5cc", b"CLOSE 4\r\n\x0f\xa5cc\r\n"),
            (EventKind::Close, b"", b"CLOSE\r\n"),
            (EventKind::Disconnect, b"", b"DISCONNECT\r\n"),
        ] {
            assert_eq!(encoded(kind, content), expected);
        }
        assert!(encoded(TEXT, &[b'a'; 0x10ab]).starts_with(b"TEXT 10ab\r\n"));
    }

    #[test]
    fn malformed_events_are_refused_as_soon_as_they_show() {
        for (bytes, error) in [
            (&b"X"[..], EventError::Type),
            (b"TEX ", EventError::Type),
            (b"OPENED", EventError::Type),
            (b"open\r\n", EventError::Type),
            (b"\r\n", EventError::Type),
            (b"OPEN\n", EventError::Line),
            (b"TEXT 00000000000000000000000000000", EventError::Line),
            (b"TEXT \r\n", EventError::Length),
            (b"TEXT 1g\r\n", EventError::Length),
            (b"TEXT -1\r\n", EventError::Length),
            (b"TEXT  1\r\n", EventError::Length),
            (b"TEXT 0x1\r\n", EventError::Length),
            (b"TEXT 00000000000000001\r\n", EventError::Length),
            (b"TEXT b\r\n", EventError::TooLong),
            (b"TEXT ffffffffffffffff\r\n", EventError::TooLong),
            (b"TEXT 1\r\nab", EventError::End),
            (b"TEXT 1\r\na\rb", EventError::End),
        ] {
            assert_eq!(decode(bytes, 10), Err(error), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_body_is_read_to_its_end_or_to_its_first_error() {
        let body = b"OPEN\r\nTEXT 00A\r\n0123456789\r\nPONG\r\n";
        let events: Result<Vec<_>, _> = Events::new(body, 10).collect();
        let event = |kind, content| Event { kind, content };
        assert_eq!(
            events,
            Ok(vec![
                event(EventKind::Open, &b""[..]),
                event(TEXT, b"0123456789"),
                event(EventKind::Message(Kind::Pong), b""),
            ])
        );
        let cut: Vec<_> = Events::new(b"OPEN\r\nTEXT 2\r\nab\r", 10).collect();
        assert_eq!(cut, [Ok(event(EventKind::Open, b"")), Err(EventError::Truncated)]);
        assert_eq!(Events::new(b"", 10).next(), None);
    }

    #[test]
    fn no_invalid_close_gets_onto_the_wire() {
        for (content, expected) in [
            (&b""[..], None),
            (b"\x03", None),
            (b"\0\0", None),
            (b"\0\0reason", None),
            (b"\x03\xed", None),
            (b"\x03\xe8", Some((CloseCode::NORMAL, ""))),
            (b"\x0f\xa5cc", Some((CloseCode(4005), "cc"))),
            (b"\x0f\xa5\xff", Some((CloseCode(4005), ""))),
        ] {
            assert_eq!(close_status(content), expected, "{content:?}");
        }
        let long = "é".repeat(62);
        assert_eq!(cut_reason(&long).len(), 122);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_arrives(
            events in prop::collection::vec((0..7usize, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        ) {
            let mut body = Vec::new();
            let mut expected = Vec::new();
            for (kind, content) in &events {
                let kind = EventKind::ALL[*kind];
                encode(kind, content, &mut body);
                expected.push(Event { kind, content });
            }
            prop_assert_eq!(Events::new(&body, 40).collect::<Result<Vec<_>, _>>(), Ok(expected));
            // Any cut within an event is no error, and no event.
            let mut at = 0;
            while at < body.len() {
                let (_, len) = decode(&body[at..], 40).unwrap().unwrap();
                for cut in at..at + len {
                    prop_assert_eq!(decode(&body[at..cut], 40), Ok(None));
                }
                at += len;
            }
        }

        #[test]
        fn the_verdict_is_the_same_however_the_bytes_arrive(bytes in "(OPEN|TEXT|PING|[A-Z]{0,3})( [0-9a-fg]{0,3})?\r?\n?[ab]{0,3}\r?\n?") {
            let bytes = bytes.as_bytes();
            let whole = decode(bytes, 2);
            let first = (0..=bytes.len()).map(|cut| decode(&bytes[..cut], 2)).find(|seen| *seen != Ok(None));
            prop_assert_eq!(first.unwrap_or(Ok(None)), whole);
        }
    }
}
