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
//! A compressed message is inflated as it passes where that is asked for, and forgotten at once: it is counted, and
//! text is checked. RFC 6455 §5.2, §5.4, §5.5; RFC 7692 §6.

use super::deflate::{Inflater, Sink};
use super::error::ProtocolError;
use super::header::{self, FrameHeader, Opcode, Sender};
use super::mask;
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
        /// What they were inflated to, when their message is inflated.
        inflated: Option<Inflated>,
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

/// What compressed payload became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflated {
    /// What the bytes of this step became, in bytes.
    pub bytes: u64,
    /// What the message became so far, in bytes.
    pub message_bytes: u64,
    /// How many of its blocks they touch. [`Inflater::feed`].
    pub blocks: u32,
}

/// What is done about compressed messages of a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// permessage-deflate is not negotiated: RSV1 is refused.
    #[default]
    Refused,
    /// Compressed messages pass, and are counted as they are on the wire.
    Opaque,
    /// Compressed messages are inflated.
    Inflated,
}

/// The most compressed bytes that one step inflates: what they become, at most 1,032 times as much, is judged before
/// the next step.
const INFLATE_STEP_BYTES: usize = 512;

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
    /// Whether it is compressed. RFC 7692 §6.
    pub compressed: bool,
    /// What it was inflated to so far, in bytes; 0 when it is not inflated.
    pub inflated_bytes: u64,
}

impl Message {
    /// Its size for who looks at messages: what it was inflated to, or what it is on the wire.
    pub fn plain_bytes(&self) -> u64 {
        if self.inflated_bytes > 0 { self.inflated_bytes } else { self.size_bytes }
    }
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
    compression: Compression,
    /// Of the compressed message in progress.
    inflater: Option<Inflater>,
}

impl Scanner {
    /// A scanner of what `sender` sends, at the start of its first frame. `check_text` says whether text must be UTF-8.
    pub fn new(sender: Sender, check_text: bool) -> Self {
        let frame = FrameHeader { fin: true, rsv1: false, opcode: Opcode::Binary, mask: None, payload_bytes: 0 };
        Self {
            sender,
            frame,
            remaining_bytes: 0,
            message: None,
            check_text,
            utf8: Utf8Check::default(),
            compression: Compression::Refused,
            inflater: None,
        }
    }

    /// The same scanner where permessage-deflate is negotiated.
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// From here on only frames matter: what they carry is neither inflated nor checked.
    pub fn ignore_content(&mut self) {
        self.check_text = false;
        self.inflater = None;
        if self.compression == Compression::Inflated {
            self.compression = Compression::Opaque;
        }
    }

    /// Whether compressed messages are inflated here, which takes work beyond the bytes that are read.
    pub fn inflates(&self) -> bool {
        self.compression == Compression::Inflated
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
    /// RFC 6455 §5.2 to §5.5, and §8.1 where text is checked; RFC 7692 §6.2 where messages are inflated.
    pub fn next(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        self.next_into(input, &mut |_| {})
    }

    /// Takes the next step as [`Scanner::next`] does, and hands inflated payload to `sink`, piece by piece.
    ///
    /// # Errors
    /// As [`Scanner::next`].
    pub fn next_into(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<Step, ProtocolError> {
        if self.remaining_bytes > 0 {
            return self.payload(input, sink);
        }
        let rsv1_allowed = self.compression != Compression::Refused;
        let Some((header, len)) = header::parse(input, self.sender, rsv1_allowed)? else { return Ok(Step::NeedMore) };
        if header.opcode.is_control() {
            let whole = len as u64 + header.payload_bytes <= input.len() as u64;
            return Ok(if whole { Step::Control { header, header_len: len } } else { Step::NeedMore });
        }
        let message = self.begin_frame(header)?;
        if header.payload_bytes == 0 {
            self.end_frame(sink)?;
        }
        Ok(Step::Header { header, len, message })
    }

    /// Whether payload on the wire is text that is to be checked: compressed text is checked when it is inflated.
    fn checks_text(&self) -> bool {
        self.check_text && matches!(self.message, Some(Message { kind: MessageType::Text, compressed: false, .. }))
    }

    fn begin_frame(&mut self, header: FrameHeader) -> Result<Message, ProtocolError> {
        let mut message = match (header.opcode, self.message) {
            (Opcode::Continuation, Some(message)) => message,
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (_, Some(_)) => return Err(ProtocolError::InterleavedMessage),
            (opcode, None) => {
                let kind = if opcode == Opcode::Text { MessageType::Text } else { MessageType::Binary };
                if header.rsv1 && self.compression == Compression::Inflated {
                    self.inflater = Some(Inflater::new());
                }
                Message { kind, fragments: 0, size_bytes: 0, compressed: header.rsv1, inflated_bytes: 0 }
            }
        };
        message.fragments = message.fragments.saturating_add(1);
        message.size_bytes = message.size_bytes.saturating_add(header.payload_bytes);
        self.message = Some(message);
        self.frame = header;
        self.remaining_bytes = header.payload_bytes;
        Ok(message)
    }

    fn payload(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<Step, ProtocolError> {
        let mut payload = match usize::try_from(self.remaining_bytes) {
            Ok(remaining) => input.get(..remaining).unwrap_or(input),
            Err(_) => input,
        };
        if payload.is_empty() {
            return Ok(Step::NeedMore);
        }
        let mut inflated = None;
        if self.inflater.is_some() {
            payload = payload.get(..INFLATE_STEP_BYTES).unwrap_or(payload);
            inflated = Some(self.inflate(payload, sink)?);
        } else if self.checks_text() {
            match self.frame.mask {
                Some(key) => self.utf8.feed_masked(payload, key, self.frame_offset())?,
                None => self.utf8.feed(payload)?,
            }
        }
        self.remaining_bytes -= payload.len() as u64;
        let ends_message = if self.remaining_bytes == 0 { self.end_frame(sink)? } else { None };
        Ok(Step::Payload { len: payload.len(), inflated, ends_message })
    }

    /// How far the payload of the current frame has come, in bytes.
    fn frame_offset(&self) -> u64 {
        self.frame.payload_bytes - self.remaining_bytes
    }

    fn inflate(&mut self, payload: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<Inflated, ProtocolError> {
        let mut block = [0; INFLATE_STEP_BYTES];
        let mut plain = payload;
        if let (Some(key), Some(block)) = (self.frame.mask, block.get_mut(..payload.len())) {
            block.copy_from_slice(payload);
            mask::apply(block, key, self.frame_offset());
            plain = block;
        }
        self.judge_inflated(sink, |inflater, sink| match inflater {
            Some(inflater) => inflater.feed(plain, sink),
            None => Ok(0),
        })
    }

    /// Lets the inflater do some of its work; what comes out is counted and checked.
    fn judge_inflated(
        &mut self,
        sink: &mut dyn FnMut(&[u8]),
        work: impl FnOnce(&mut Option<Inflater>, &mut Sink<'_>) -> Result<u32, ProtocolError>,
    ) -> Result<Inflated, ProtocolError> {
        let Self { inflater, utf8, message: Some(message), check_text, .. } = self else {
            return Ok(Inflated { bytes: 0, message_bytes: 0, blocks: 0 });
        };
        let text = *check_text && message.kind == MessageType::Text;
        let mut bytes = 0;
        let blocks = work(inflater, &mut |plain| {
            bytes += plain.len() as u64;
            if text {
                utf8.feed(plain)?;
            }
            sink(plain);
            Ok(())
        })?;
        message.inflated_bytes += bytes;
        Ok(Inflated { bytes, message_bytes: message.inflated_bytes, blocks })
    }

    fn end_frame(&mut self, sink: &mut dyn FnMut(&[u8])) -> Result<Option<Message>, ProtocolError> {
        if !self.frame.fin {
            return Ok(None);
        }
        if self.inflater.is_some() {
            self.judge_inflated(sink, |inflater, sink| match inflater.take() {
                Some(inflater) => inflater.finish(sink).map(|()| 0),
                None => Ok(0),
            })?;
            // Nothing is pending where no text was checked.
            self.utf8.finish()?;
        } else if self.checks_text() {
            self.utf8.finish()?;
        }
        Ok(self.message.take())
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::ControlFrame;
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
                    Ok(Step::Payload { len, ends_message, .. }) => {
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
        assert!(matches!(
            seen[3],
            Seen::Header(_, Message { fragments: 2, size_bytes: 5, kind: MessageType::Text, .. })
        ));
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

    fn masked(mut frame: Vec<u8>) -> Vec<u8> {
        let key = [1, 2, 3, 4];
        mask::apply(&mut frame[2..], key, 0);
        frame[1] |= 0x80;
        frame.splice(2..2, key);
        frame
    }

    #[test]
    fn inflates_what_a_client_has_masked() {
        let bytes = masked(compressed(0xc1, b"masked"));
        for piece in [1, 5, bytes.len()] {
            let mut scanner = Scanner::new(Sender::Client, true).with_compression(Compression::Inflated);
            assert!(scanner.inflates());
            let (mut plain, mut at, mut end) = (Vec::new(), 0, 0);
            while at < bytes.len() {
                match scanner.next_into(&bytes[at..end], &mut |bytes| plain.extend_from_slice(bytes)).unwrap() {
                    Step::NeedMore => end = bytes.len().min(end + piece),
                    Step::Header { len, .. } | Step::Payload { len, .. } => at += len,
                    Step::Control { .. } => unreachable!("none is sent"),
                }
            }
            assert_eq!(plain, b"masked");
        }
    }

    #[test]
    fn content_does_not_matter_where_it_is_ignored() {
        for (compression, first) in [(Compression::Inflated, 0xc1), (Compression::Refused, 0x81)] {
            let mut scanner = Scanner::new(Sender::Server, true).with_compression(compression);
            scanner.ignore_content();
            assert!(!scanner.inflates());
            let bytes = frame(first, b"\xff\xff");
            let Ok(Step::Header { len, .. }) = scanner.next(&bytes) else { panic!("a header") };
            let step = scanner.next(&bytes[len..]);
            assert!(matches!(step, Ok(Step::Payload { len: 2, inflated: None, ends_message: Some(_) })), "{step:?}");
        }
    }

    fn compressed(first: u8, plain: &[u8]) -> Vec<u8> {
        let mut payload = Vec::new();
        super::super::deflate::Deflater::new().feed(plain, true, &mut payload);
        frame(first, &payload)
    }

    /// Scans compressed frames of a server, whole and byte by byte: the plain bytes, and the message that they end.
    fn inflate(bytes: &[u8]) -> Result<(Vec<u8>, Message), ProtocolError> {
        let scan = |piece: usize| {
            let mut scanner = Scanner::new(Sender::Server, true).with_compression(Compression::Inflated);
            let (mut plain, mut ended, mut at, mut end) = (Vec::new(), None, 0, piece.min(bytes.len()));
            while at < bytes.len() {
                match scanner.next_into(&bytes[at..end], &mut |bytes| plain.extend_from_slice(bytes))? {
                    Step::NeedMore => end += piece,
                    Step::Header { len, .. } => at += len,
                    Step::Payload { len, inflated, ends_message } => {
                        at += len;
                        assert_eq!(inflated.unwrap().message_bytes, plain.len() as u64);
                        ended = ended.or(ends_message);
                    }
                    Step::Control { .. } => unreachable!("none is sent"),
                }
            }
            assert!(scanner.inflater.is_none() || ended.is_none());
            Ok((plain, ended.expect("it ends")))
        };
        let whole = scan(bytes.len());
        assert_eq!(whole, scan(1));
        whole
    }

    #[test]
    fn inflates_messages_and_counts_them() {
        let text = "Sl\u{fc}icegate ".repeat(10_000);
        let (plain, message) = inflate(&compressed(0xc1, text.as_bytes())).unwrap();
        assert_eq!((plain.as_slice(), message.inflated_bytes), (text.as_bytes(), text.len() as u64));
        assert!(message.compressed && message.size_bytes < 2000 && message.plain_bytes() == text.len() as u64);
        let (plain, message) = inflate(&compressed(0xc2, b"")).unwrap();
        assert_eq!((plain.len(), message.inflated_bytes, message.plain_bytes()), (0, 0, message.size_bytes));
    }

    #[test]
    fn inflates_a_message_over_its_fragments() {
        let whole = compressed(0x41, b"one message");
        let payload = &whole[2..];
        let bytes = [frame(0x41, &payload[..3]), frame(0x00, b""), frame(0x80, &payload[3..])].concat();
        assert_eq!(inflate(&bytes).map(|(plain, _)| plain), Ok(b"one message".to_vec()));
    }

    #[test]
    fn checks_compressed_text_and_not_compressed_binary() {
        assert_eq!(inflate(&compressed(0xc1, b"\xff")).err(), Some(ProtocolError::InvalidUtf8));
        assert_eq!(inflate(&compressed(0xc1, b"\xc3")).err(), Some(ProtocolError::InvalidUtf8));
        assert!(inflate(&compressed(0xc2, b"\xff")).is_ok());
        assert_eq!(inflate(&frame(0xc2, b"\xff\xff\xff")).err(), Some(ProtocolError::InvalidDeflate));
        assert_eq!(inflate(&frame(0xc1, b"\xf2\x48\xcd")).err(), Some(ProtocolError::InvalidDeflate));
    }

    #[test]
    fn passes_compressed_messages_unread_where_it_is_told_to() {
        let mut scanner = Scanner::new(Sender::Server, true).with_compression(Compression::Opaque);
        let bytes = frame(0xc1, b"\xff\xff\xff");
        let Ok(Step::Header { len, message, .. }) = scanner.next(&bytes) else { panic!("a header") };
        assert!(message.compressed);
        let step = scanner.next(&bytes[len..]);
        assert!(matches!(step, Ok(Step::Payload { len: 3, inflated: None, ends_message: Some(_) })), "{step:?}");
        assert_eq!(scanner.next(&frame(0xc0, b"")), Err(ProtocolError::ReservedBit));
        // What is not compressed is checked there too.
        scanner.next(&frame(0x81, b"\xff")[..2]).unwrap();
        assert_eq!(scanner.next(b"\xff"), Err(ProtocolError::InvalidUtf8));
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
