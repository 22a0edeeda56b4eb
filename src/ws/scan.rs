//! The scanner: finds the frames in a peer's bytes and keeps the rules that span frames, without touching payload.
//!
//! It looks at bytes that stay where they are, and says how many of them the next step covers; the caller forwards
//! them, holds them back or drops them. It never buffers: a header that is not whole, and a control frame that is not
//! whole, are [`Step::NeedMore`], and the caller shows the same bytes again with more behind them.
//!
//! ```text
//!              header of a data frame                     control frame, whole
//!   Boundary ---------------------------> InPayload      Boundary --> Boundary
//!      ^      <---------------------------     |
//!             last byte of its payload         +--> InPayload: some of its payload
//! ```
//!
//! RFC 6455 §5.2, §5.4, §5.5.

use super::error::ProtocolError;
use super::header::{self, FrameHeader, Opcode, Sender};
use super::utf8::Utf8Check;

/// What the front of the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing whole: show the same bytes again with more behind them.
    NeedMore,
    /// The header of a data frame, `len` bytes. Its payload follows as [`Step::Payload`], unless it has none.
    Header {
        /// The header.
        header: FrameHeader,
        /// Its length in bytes.
        len: usize,
        /// The message that it begins or goes on with, this frame counted.
        message: Message,
    },
    /// `len` bytes of the payload of the frame that was begun.
    Payload {
        /// How many bytes, at least one.
        len: usize,
        /// The message that they end, if they do.
        ends_message: Option<Message>,
    },
    /// A whole control frame of `header_len` + `header.payload_bytes` bytes.
    Control {
        /// The header.
        header: FrameHeader,
        /// The length of the header in bytes.
        header_len: usize,
    },
}

/// Which of the two types a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Opcode 1.
    Text,
    /// Opcode 2.
    Binary,
}

/// A message, seen up to the header of one of its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: MessageType,
    /// How many frames it has so far, at least one.
    pub fragments: u32,
    /// What its frames' payloads add up to so far, in bytes, the current one counted whole.
    pub size_bytes: u64,
}

/// Scans one direction of a session.
#[derive(Debug)]
pub struct Scanner {
    sender: Sender,
    frame: FrameHeader,
    remaining_bytes: u64,
    message: Option<Message>,
    check_text: bool,
    utf8: Utf8Check,
}

impl Scanner {
    /// A scanner of what `sender` sends, at the start of its first frame. `check_text` says whether text must be UTF-8.
    pub fn new(sender: Sender, check_text: bool) -> Self {
        let frame = FrameHeader { fin: true, opcode: Opcode::Binary, mask: None, payload_bytes: 0 };
        Self { sender, frame, remaining_bytes: 0, message: None, check_text, utf8: Utf8Check::default() }
    }

    /// Whether the bytes so far end between two frames: the only place for a control frame of ours. RFC 6455 §5.4.
    pub fn at_frame_boundary(&self) -> bool {
        self.remaining_bytes == 0
    }

    /// Whether the bytes so far end between two messages.
    pub fn at_message_boundary(&self) -> bool {
        self.message.is_none()
    }

    /// Takes the next step over `input`, which begins where the last step ended.
    ///
    /// # Errors
    /// The rule that the peer broke. The scanner must not be used after one.
    ///
    /// # RFC
    /// RFC 6455 §5.2 to §5.5, and §8.1 where text is checked.
    pub fn next(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        if self.remaining_bytes > 0 {
            return self.payload(input);
        }
        let Some((header, len)) = header::parse(input, self.sender)? else { return Ok(Step::NeedMore) };
        if header.opcode.is_control() {
            let whole = len as u64 + header.payload_bytes <= input.len() as u64;
            return Ok(if whole { Step::Control { header, header_len: len } } else { Step::NeedMore });
        }
        let message = self.begin_frame(header)?;
        if header.payload_bytes == 0 {
            self.end_frame()?;
        }
        Ok(Step::Header { header, len, message })
    }

    fn checks_text(&self) -> bool {
        self.check_text && matches!(self.message, Some(Message { kind: MessageType::Text, .. }))
    }

    fn begin_frame(&mut self, header: FrameHeader) -> Result<Message, ProtocolError> {
        let (kind, fragments, size_bytes) = match (header.opcode, self.message) {
            (Opcode::Continuation, Some(message)) => (message.kind, message.fragments, message.size_bytes),
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (_, Some(_)) => return Err(ProtocolError::InterleavedMessage),
            (Opcode::Text, None) => (MessageType::Text, 0, 0),
            (_, None) => (MessageType::Binary, 0, 0),
        };
        let message = Message {
            kind,
            fragments: fragments.saturating_add(1),
            size_bytes: size_bytes.saturating_add(header.payload_bytes),
        };
        self.message = Some(message);
        self.frame = header;
        self.remaining_bytes = header.payload_bytes;
        Ok(message)
    }

    fn payload(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        if input.is_empty() {
            return Ok(Step::NeedMore);
        }
        let len = usize::try_from(self.remaining_bytes).map_or(input.len(), |remaining| remaining.min(input.len()));
        if self.checks_text() {
            match self.frame.mask {
                Some(key) => {
                    let offset = self.frame.payload_bytes - self.remaining_bytes;
                    self.utf8.feed_masked(&input[..len], key, offset)?;
                }
                None => self.utf8.feed(&input[..len])?,
            }
        }
        self.remaining_bytes -= len as u64;
        let ends_message = if self.remaining_bytes == 0 { self.end_frame()? } else { None };
        Ok(Step::Payload { len, ends_message })
    }

    fn end_frame(&mut self) -> Result<Option<Message>, ProtocolError> {
        if !self.frame.fin {
            return Ok(None);
        }
        if self.checks_text() {
            self.utf8.finish()?;
        }
        Ok(self.message.take())
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::ControlFrame;
    use super::super::mask;
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..126 => bytes.push(len as u8),
            len @ 126..65536 => {
                bytes.push(126);
                bytes.extend((len as u16).to_be_bytes());
            }
            len => {
                bytes.push(127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    /// What a scan saw, with payload steps joined, so that the way the bytes arrived does not show.
    #[derive(Debug, PartialEq)]
    enum Seen {
        Header(FrameHeader, Message),
        Payload(usize),
        Ends(MessageType),
        Control(Opcode, u64),
    }

    /// Scans `bytes` as they arrive in pieces that end at `cuts`, holding back what is not whole as the tunnel does.
    fn scan(sender: Sender, bytes: &[u8], cuts: &[usize]) -> (Vec<Seen>, Option<ProtocolError>) {
        let mut scanner = Scanner::new(sender, true);
        let mut seen = Vec::new();
        let mut at = 0;
        for &end in cuts.iter().chain([&bytes.len()]) {
            loop {
                match scanner.next(&bytes[at..end.max(at)]) {
                    Err(error) => return (seen, Some(error)),
                    Ok(Step::NeedMore) => break,
                    Ok(Step::Header { header, len, message }) => {
                        at += len;
                        seen.push(Seen::Header(header, message));
                    }
                    Ok(Step::Payload { len, ends_message }) => {
                        at += len;
                        match seen.last_mut() {
                            Some(Seen::Payload(before)) => *before += len,
                            _ => seen.push(Seen::Payload(len)),
                        }
                        seen.extend(ends_message.map(|message| Seen::Ends(message.kind)));
                    }
                    Ok(Step::Control { header, header_len }) => {
                        at += header_len + header.payload_bytes as usize;
                        seen.push(Seen::Control(header.opcode, header.payload_bytes));
                    }
                }
            }
        }
        (seen, None)
    }

    fn server(bytes: &[u8]) -> (Vec<Seen>, Option<ProtocolError>) {
        let whole = scan(Sender::Server, bytes, &[]);
        let cuts: Vec<usize> = (1..bytes.len()).collect();
        let piecemeal = scan(Sender::Server, bytes, &cuts);
        assert_eq!(whole.1, piecemeal.1, "verdicts differ between whole and byte by byte");
        if whole.1.is_none() {
            assert_eq!(whole.0, piecemeal.0);
        }
        whole
    }

    #[test]
    fn passes_control_frames_between_fragments_in_order() {
        let mut bytes = frame(0x01, b"Hel");
        bytes.extend(frame(0x89, b"ping"));
        bytes.extend(frame(0x80, b"lo"));
        let (seen, error) = server(&bytes);
        assert_eq!(error, None);
        assert!(matches!(seen[2], Seen::Control(Opcode::Ping, 4)));
        assert!(matches!(seen[3], Seen::Header(_, Message { fragments: 2, size_bytes: 5, kind: MessageType::Text })));
        assert_eq!(seen.last(), Some(&Seen::Ends(MessageType::Text)));
    }

    #[test]
    fn refuses_a_continuation_of_nothing_and_a_message_inside_another() {
        assert_eq!(server(&frame(0x80, b"x")).1, Some(ProtocolError::UnexpectedContinuation));
        let mut bytes = frame(0x01, b"a");
        bytes.extend(frame(0x81, b"b"));
        assert_eq!(server(&bytes).1, Some(ProtocolError::InterleavedMessage));
        let mut bytes = frame(0x82, b"a");
        bytes.extend(frame(0x80, b"b"));
        assert_eq!(server(&bytes).1, Some(ProtocolError::UnexpectedContinuation));
    }

    #[test]
    fn checks_text_over_fragments_and_not_binary() {
        let mut bytes = frame(0x01, b"\xc3");
        bytes.extend(frame(0x80, b"\xa9"));
        assert_eq!(server(&bytes).1, None);
        assert_eq!(server(&frame(0x81, b"\xc3")).1, Some(ProtocolError::InvalidUtf8));
        assert_eq!(server(&frame(0x81, b"\xff")).1, Some(ProtocolError::InvalidUtf8));
        assert_eq!(server(&frame(0x82, b"\xff")).1, None);
        let mut bytes = frame(0x01, b"\xc3");
        bytes.extend(frame(0x80, b""));
        assert_eq!(server(&bytes).1, Some(ProtocolError::InvalidUtf8));
    }

    #[test]
    fn knows_its_boundaries() {
        let mut scanner = Scanner::new(Sender::Server, true);
        assert!(scanner.at_frame_boundary() && scanner.at_message_boundary());
        scanner.next(&[0x02, 2]).unwrap();
        assert!(!scanner.at_frame_boundary() && !scanner.at_message_boundary());
        scanner.next(b"ab").unwrap();
        assert!(scanner.at_frame_boundary() && !scanner.at_message_boundary());
        scanner.next(&[0x80, 0]).unwrap();
        assert!(scanner.at_frame_boundary() && scanner.at_message_boundary());
    }

    #[test]
    fn counts_a_million_empty_fragments_without_growing() {
        let mut scanner = Scanner::new(Sender::Server, true);
        scanner.next(&[0x01, 0]).unwrap();
        for _ in 0..1_000_000 {
            scanner.next(&[0x00, 0]).unwrap();
        }
        let Ok(Step::Header { message, .. }) = scanner.next(&[0x80, 0]) else { panic!("a header") };
        assert_eq!((message.fragments, message.size_bytes), (1_000_002, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_get_one_verdict_however_they_arrive(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            cuts in proptest::collection::vec(0usize..80, 0..6),
            client: bool,
        ) {
            let sender = if client { Sender::Client } else { Sender::Server };
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).collect();
            cuts.sort_unstable();
            let whole = scan(sender, &bytes, &[]);
            let cut = scan(sender, &bytes, &cuts);
            prop_assert_eq!(whole.1, cut.1);
            if whole.1.is_none() {
                prop_assert_eq!(whole.0, cut.0);
            }
        }

        #[test]
        fn valid_streams_pass_however_they_arrive(
            messages in proptest::collection::vec(("\\PC{0,200}", any::<[u8; 4]>(), 0usize..300), 1..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            for (text, key, split) in &messages {
                let split = (*split).min(text.len());
                for (first, piece) in [(0x01, &text.as_bytes()[..split]), (0x80, &text.as_bytes()[split..])] {
                    let mut whole = frame(first, piece);
                    let payload_at = whole.len() - piece.len();
                    mask::apply(&mut whole[payload_at..], *key, 0);
                    whole[1] |= 0x80;
                    whole.splice(payload_at..payload_at, *key);
                    bytes.extend(whole);
                    bytes.extend(ControlFrame::new(Opcode::Ping, b"p", Some(*key)).as_bytes());
                }
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            let (seen, error) = scan(Sender::Client, &bytes, &cuts);
            prop_assert_eq!(error, None);
            let ended = seen.iter().filter(|seen| matches!(seen, Seen::Ends(_))).count();
            let empty_ends = seen.iter().filter(|seen| matches!(seen, Seen::Header(h, _) if h.fin && h.payload_bytes == 0)).count();
            prop_assert_eq!(ended + empty_ends, messages.len());
        }
    }
}
