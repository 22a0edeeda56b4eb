//! What a client sends, gathered into messages.

use bytes::Bytes;

use crate::grip::Kind;
use crate::ws::header::{Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::{MessageType, Scanner, Step};

/// Something whole that a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A message.
    Message(Kind, Bytes),
    /// A Ping, with its payload.
    Ping(Bytes),
    /// A Pong, with its payload.
    Pong(Bytes),
    /// A Close frame, with its payload.
    Close(Bytes),
}

/// What is wrong with what a client sent. The tunnel sees to the rest before it comes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is no frame.
    Protocol,
    /// A message is longer than a request may be.
    TooLong {
        /// How long it is so far, in bytes.
        size_bytes: u64,
    },
}

/// Gathers messages of at most so many bytes.
#[derive(Debug)]
pub(super) struct Gather {
    scanner: Scanner,
    /// The start of a header or of a control frame.
    held: Vec<u8>,
    /// The message in progress.
    message: Vec<u8>,
    kind: Kind,
    mask: Option<[u8; 4]>,
    /// How far into the payload of its frame.
    offset: u64,
    max_bytes: usize,
}

impl Gather {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            scanner: Scanner::new(Sender::Client, false),
            held: Vec::new(),
            message: Vec::new(),
            kind: Kind::Text,
            mask: None,
            offset: 0,
            max_bytes,
        }
    }

    /// Takes bytes from the front of `input`, until something is whole or nothing is left. Returns how many.
    pub(super) fn take(&mut self, input: &[u8]) -> Result<(usize, Option<Said>), Fault> {
        let held = self.held.len();
        if held == 0 {
            let (at, said) = self.steps(input)?;
            if said.is_none() {
                self.held.extend_from_slice(input.get(at..).unwrap_or_default());
                return Ok((input.len(), None));
            }
            return Ok((at, said));
        }
        let mut whole = std::mem::take(&mut self.held);
        whole.extend_from_slice(input);
        let (at, said) = self.steps(&whole)?;
        if said.is_none() {
            whole.drain(..at);
            self.held = whole;
            return Ok((input.len(), None));
        }
        // What was held was not whole, so what is whole ends behind it.
        Ok((at.saturating_sub(held), said))
    }

    fn steps(&mut self, input: &[u8]) -> Result<(usize, Option<Said>), Fault> {
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            match self.scanner.next(rest).map_err(|_| Fault::Protocol)? {
                Step::NeedMore => return Ok((at, None)),
                Step::Header { header, len, message } => {
                    at += len;
                    if message.size_bytes > self.max_bytes as u64 {
                        return Err(Fault::TooLong { size_bytes: message.size_bytes });
                    }
                    self.kind = match message.kind {
                        MessageType::Text => Kind::Text,
                        MessageType::Binary => Kind::Binary,
                    };
                    (self.mask, self.offset) = (header.mask, 0);
                    if header.payload_bytes == 0 && header.fin {
                        return Ok((at, Some(self.message())));
                    }
                }
                Step::Payload { len, ends_message, .. } => {
                    let from = self.message.len();
                    self.message.extend_from_slice(rest.get(..len).unwrap_or_default());
                    if let (Some(key), Some(payload)) = (self.mask, self.message.get_mut(from..)) {
                        mask::apply(payload, key, self.offset);
                    }
                    self.offset += len as u64;
                    at += len;
                    if ends_message.is_some() {
                        return Ok((at, Some(self.message())));
                    }
                }
                Step::Control { header, header_len } => {
                    let end = header_len + usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
                    let mut payload = rest.get(header_len..end).unwrap_or_default().to_vec();
                    if let Some(key) = header.mask {
                        mask::apply(&mut payload, key, 0);
                    }
                    let payload = Bytes::from(payload);
                    let said = match header.opcode {
                        Opcode::Ping => Said::Ping(payload),
                        Opcode::Close => Said::Close(payload),
                        _ => Said::Pong(payload),
                    };
                    return Ok((at + end, Some(said)));
                }
            }
        }
    }

    fn message(&mut self) -> Said {
        Said::Message(self.kind, std::mem::take(&mut self.message).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
        assert!(payload.len() < 126);
        let mut frame = vec![first, 0x80 | payload.len() as u8];
        frame.extend(key);
        let from = frame.len();
        frame.extend(payload);
        mask::apply(&mut frame[from..], key, 0);
        frame
    }

    fn all(gather: &mut Gather, mut input: &[u8]) -> Result<Vec<Said>, Fault> {
        let mut said = Vec::new();
        while !input.is_empty() {
            let (taken, one) = gather.take(input)?;
            said.extend(one);
            input = &input[taken..];
        }
        Ok(said)
    }

    fn text(text: &str) -> Said {
        Said::Message(Kind::Text, Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn fragments_become_a_message_and_control_frames_come_between() {
        let key = [1, 2, 3, 4];
        let input = [
            masked(0x01, b"one ", key),
            masked(0x89, b"p", key),
            masked(0x00, b"", key),
            masked(0x80, b"two", [9, 8, 7, 6]),
            masked(0x82, b"", key),
            masked(0x8a, b"q", key),
            masked(0x88, b"\x03\xe8", key),
        ]
        .concat();
        let expected = vec![
            Said::Ping(Bytes::from_static(b"p")),
            text("one two"),
            Said::Message(Kind::Binary, Bytes::new()),
            Said::Pong(Bytes::from_static(b"q")),
            Said::Close(Bytes::from_static(b"\x03\xe8")),
        ];
        for size in 1..=input.len() {
            let mut gather = Gather::new(100);
            let said: Vec<_> = input.chunks(size).flat_map(|piece| all(&mut gather, piece).unwrap()).collect();
            assert_eq!(said, expected, "in pieces of {size}");
            assert!(gather.held.is_empty() && gather.message.is_empty());
        }
    }

    #[test]
    fn an_empty_last_fragment_ends_a_message() {
        let mut gather = Gather::new(100);
        let input = [masked(0x01, b"a", [0; 4]), masked(0x80, b"", [0; 4])].concat();
        assert_eq!(all(&mut gather, &input), Ok(vec![text("a")]));
    }

    #[test]
    fn a_message_that_is_too_long_is_seen_by_its_headers() {
        let mut gather = Gather::new(5);
        assert_eq!(all(&mut gather, &masked(0x81, b"hello", [7; 4])), Ok(vec![text("hello")]));
        assert_eq!(all(&mut gather, &masked(0x81, b"hello!", [7; 4])[..6]), Err(Fault::TooLong { size_bytes: 6 }));
        let mut gather = Gather::new(5);
        let input = [masked(0x01, b"hel", [7; 4]), masked(0x80, b"lo!", [7; 4])].concat();
        assert_eq!(all(&mut gather, &input), Err(Fault::TooLong { size_bytes: 6 }));
    }

    proptest! {
        #[test]
        fn no_bytes_are_taken_twice(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
            let mut gather = Gather::new(64);
            let (front, back) = bytes.split_at(cut.index(bytes.len() + 1));
            for mut part in [front, back] {
                while !part.is_empty() {
                    let Ok((taken, said)) = gather.take(part) else { return Ok(()) };
                    prop_assert!(taken <= part.len() && (taken > 0 || said.is_some()));
                    part = &part[taken..];
                }
            }
        }
    }
}
