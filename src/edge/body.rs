//! Where the body of a request ends, so that nobody reads into the request behind it. RFC 9112 §6 and §7.1.
//!
//! It only counts: whether a body is well-formed is judged by who reads it. One that is not has no end here.

use http::HeaderMap;
use http::header;

/// The end of a body that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// After so many more bytes; 0 is the end.
    Length(u64),
    /// In front of a chunk's size, of which this is known so far.
    Size(u64),
    /// Behind a chunk's size, before the end of its line.
    Extension(u64),
    /// In a chunk with so many bytes left, the line end behind it not counted.
    Chunk(u64),
    /// Behind a chunk, before the end of its line.
    ChunkEnd,
    /// In the trailer section, in a line that is empty so far or not.
    Trailer {
        /// Whether the line has a character.
        has_text: bool,
    },
    /// Nowhere: the body is malformed.
    Nowhere,
}

impl BodyEnd {
    /// Of a request whose framing was checked.
    pub fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Self::Size(0);
        }
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        Self::Length(length.and_then(|length| length.parse().ok()).unwrap_or(0))
    }

    /// Whether nothing of the body is left.
    pub fn is_reached(&self) -> bool {
        *self == Self::Length(0)
    }

    /// How many of the next bytes belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_reached() {
            taken += match self {
                Self::Length(left) | Self::Chunk(left) => {
                    let step = bytes.len() - taken;
                    let step = step.min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= step as u64;
                    if *self == Self::Chunk(0) {
                        *self = Self::ChunkEnd;
                    }
                    step
                }
                Self::Nowhere => bytes.len() - taken,
                _ => {
                    *self = self.after(bytes[taken]);
                    1
                }
            };
        }
        taken
    }

    /// Between chunks each byte counts.
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Size(size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let size = size.checked_mul(16).and_then(|size| size.checked_add(digit.into()));
                size.map_or(Self::Nowhere, Self::Size)
            }
            (Self::Size(0) | Self::Extension(0), b'\n') => Self::Trailer { has_text: false },
            (Self::Size(size) | Self::Extension(size), b'\n') => Self::Chunk(size),
            (Self::Size(size) | Self::Extension(size), _) => Self::Extension(size),
            (Self::ChunkEnd, b'\n') => Self::Size(0),
            (Self::ChunkEnd, b'\r') => Self::ChunkEnd,
            (Self::ChunkEnd, _) => Self::Nowhere,
            (Self::Trailer { has_text: false }, b'\n') => Self::Length(0),
            (Self::Trailer { has_text: true }, b'\n') => Self::Trailer { has_text: false },
            (Self::Trailer { has_text }, b'\r') => Self::Trailer { has_text },
            (Self::Trailer { .. }, _) => Self::Trailer { has_text: true },
            (same, _) => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of the bytes is the body's, whole and one byte at a time; `None` when it has not ended.
    fn end(start: BodyEnd, bytes: &[u8]) -> Option<usize> {
        let mut whole = start;
        let taken = whole.take(bytes);
        let mut dripped = start;
        let one_by_one: usize = bytes.iter().map(|byte| dripped.take(&[*byte])).sum();
        assert_eq!((whole, taken), (dripped, one_by_one), "{}", bytes.escape_ascii());
        whole.is_reached().then_some(taken)
    }

    #[test]
    fn finds_the_end_of_every_body() {
        let chunked = BodyEnd::Size(0);
        for (start, body) in [
            (BodyEnd::Length(0), &b""[..]),
            (BodyEnd::Length(5), b"hello"),
            (chunked, b"0\r\n\r\n"),
            (chunked, b"5\r\nhello\r\n0\r\n\r\n"),
            (chunked, b"5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0;c\r\n\r\n"),
            (chunked, b"1\r\n\n\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n"),
            (chunked, b"2\nhi\n0\n\n"),
        ] {
            assert_eq!(end(start, body), Some(body.len()), "{}", body.escape_ascii());
            assert_eq!(end(start, &[body, b"GET / HTTP/1.1\r\n"].concat()), Some(body.len()));
            if let Some((_, front)) = body.split_last() {
                assert_eq!(end(start, front), None, "{}", front.escape_ascii());
            }
        }
    }

    #[test]
    fn a_malformed_body_has_no_end() {
        for body in [&b"5\r\nhello!\r\n0\r\n\r\n"[..], b"fffffffffffffffff\r\nhello", b"1\r\nab\r\n0\r\n\r\n"] {
            assert_eq!(end(BodyEnd::Size(0), body), None, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn is_told_by_the_head() {
        let of = |name, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, http::HeaderValue::from_static(value));
            BodyEnd::of(&headers)
        };
        assert_eq!(BodyEnd::of(&HeaderMap::new()), BodyEnd::Length(0));
        assert_eq!(of(header::CONTENT_LENGTH, "42"), BodyEnd::Length(42));
        assert_eq!(of(header::TRANSFER_ENCODING, "chunked"), BodyEnd::Size(0));
    }
}
