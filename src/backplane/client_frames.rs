//! What a client of the subprotocol `sluicegate.v1` sends, made into what its backend is to read.
//!
//! Bytes are scanned as they pass. Of the application's messages the empty header line, one byte, is taken off, however
//! the message is fragmented, and nothing of it waits: its frame is one byte shorter, and its masking key is turned by
//! that byte, so the payload stays as it was masked. Header lines with something in them are for the gateway; they are
//! gathered, up to a bound, and never reach the backend. Control frames pass.
//!
//! ```text
//!            first byte is LF                       last frame
//!   Between -----------------------> Application ---------------> Between
//!      |     first byte is {                        last frame, and the line is read
//!      +---------------------------> Line ----------------------> Between
//!      +-- anything else, or nothing: the subprotocol is broken, and no message goes on from here
//! ```

use crate::grip::Limits;
use crate::grip::resume::{self, FrameError, FromClient};
use crate::ws::error::ProtocolError;
use crate::ws::header::{DataHeader, FrameHeader, Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::{Scanner, Step};

/// The message in progress.
#[derive(Clone, Copy, Debug)]
enum Message {
    None,
    /// Its frames so far have no payload; this is its type.
    Begun(Opcode),
    Application,
    Line,
    Dropped,
}

/// The frame in progress.
#[derive(Clone, Copy, Debug)]
enum Frame {
    None,
    /// Its header was scanned, and the first byte of its payload says what it is.
    Undecided(FrameHeader),
    /// It goes on, without so many bytes of its payload from here on.
    Passed {
        skip: usize,
    },
    /// It is part of a header line, of which so many bytes of this frame are here.
    Line {
        key: [u8; 4],
        at: u64,
    },
    Dropped,
}

/// The frames of one client.
#[derive(Debug)]
pub struct ClientFrames {
    scanner: Scanner,
    message: Message,
    frame: Frame,
    /// The start of a header or of a control frame.
    held: Vec<u8>,
    /// The header line in progress.
    line: Vec<u8>,
    limits: Limits,
    fault: Option<&'static str>,
}

impl ClientFrames {
    /// At the start of the first frame.
    pub fn new(limits: Limits) -> Self {
        Self {
            scanner: Scanner::new(Sender::Client, false),
            message: Message::None,
            frame: Frame::None,
            held: Vec::new(),
            line: Vec::new(),
            limits,
            fault: None,
        }
    }

    /// How the client broke the subprotocol, if it did. Of its messages none goes on from there.
    pub fn fault(&self) -> Option<&'static str> {
        self.fault
    }

    /// Takes what the client sent, and appends what its backend is to read to `out`. `hear` is told of each message when
    /// it begins, for the application, or when it is whole, for the gateway; what it answers breaks the subprotocol.
    ///
    /// # Errors
    /// The rule of RFC 6455 that the bytes break. This must not be used after one.
    pub fn take(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        hear: &mut dyn FnMut(FromClient<'_>) -> Result<(), &'static str>,
    ) -> Result<(), ProtocolError> {
        let joined;
        let input = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.held);
            &joined
        };
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            if let Frame::Undecided(header) = self.frame {
                let Some(first) = rest.first() else { break };
                self.decide(&header, *first, out, hear);
            }
            match self.scanner.next(rest)? {
                Step::NeedMore => {
                    self.held.extend_from_slice(rest);
                    break;
                }
                Step::Header { header, len, .. } => {
                    at += len;
                    self.header(&header, out, hear);
                }
                Step::Payload { len, ends_message, .. } => {
                    self.payload(rest.get(..len).unwrap_or_default(), out);
                    at += len;
                    if self.scanner.at_frame_boundary() {
                        self.frame = Frame::None;
                    }
                    if ends_message.is_some() {
                        self.end_message(hear);
                    }
                }
                Step::Control { header, header_len } => {
                    let len = header_len + usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
                    out.extend_from_slice(rest.get(..len).unwrap_or_default());
                    at += len;
                }
            }
        }
        Ok(())
    }

    fn header(
        &mut self,
        header: &FrameHeader,
        out: &mut Vec<u8>,
        hear: &mut dyn FnMut(FromClient<'_>) -> Result<(), &'static str>,
    ) {
        if header.opcode != Opcode::Continuation {
            self.message = if self.fault.is_some() { Message::Dropped } else { Message::Begun(header.opcode) };
        }
        let key = header.mask.unwrap_or_default();
        self.frame = match self.message {
            Message::Begun(opcode) => Frame::Undecided(FrameHeader { opcode, ..*header }),
            Message::Application => {
                out.extend_from_slice(DataHeader::new(header).as_bytes());
                Frame::Passed { skip: 0 }
            }
            Message::Line => Frame::Line { key, at: 0 },
            Message::Dropped | Message::None => Frame::Dropped,
        };
        if header.payload_bytes == 0 {
            self.frame = Frame::None;
            if header.fin {
                self.end_message(hear);
            }
        }
    }

    /// Decides over a message by its first byte.
    fn decide(
        &mut self,
        header: &FrameHeader,
        first: u8,
        out: &mut Vec<u8>,
        hear: &mut dyn FnMut(FromClient<'_>) -> Result<(), &'static str>,
    ) {
        let [a, b, c, d] = header.mask.unwrap_or_default();
        (self.message, self.frame) = match first ^ a {
            b'\n' => {
                self.heard(hear(FromClient::Payload(&[])));
                let mask = header.mask.map(|_| [b, c, d, a]);
                let shorter = FrameHeader { mask, payload_bytes: header.payload_bytes.saturating_sub(1), ..*header };
                out.extend_from_slice(DataHeader::new(&shorter).as_bytes());
                (Message::Application, Frame::Passed { skip: 1 })
            }
            b'{' => (Message::Line, Frame::Line { key: [a, b, c, d], at: 0 }),
            _ => {
                self.broken(&FrameError::Line);
                (Message::Dropped, Frame::Dropped)
            }
        };
    }

    fn payload(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        match &mut self.frame {
            Frame::Passed { skip } => {
                let skipped = payload.len().min(*skip);
                *skip -= skipped;
                out.extend_from_slice(payload.get(skipped..).unwrap_or_default());
            }
            Frame::Line { key, at } => {
                let from = self.line.len();
                self.line.extend_from_slice(payload);
                mask::apply(self.line.get_mut(from..).unwrap_or_default(), *key, *at);
                *at += payload.len() as u64;
                // The line and its end.
                if self.line.len() > self.limits.line_bytes.saturating_add(1) {
                    self.broken(&FrameError::Line);
                    (self.message, self.frame) = (Message::Dropped, Frame::Dropped);
                }
            }
            Frame::None | Frame::Undecided(_) | Frame::Dropped => {}
        }
    }

    fn end_message(&mut self, hear: &mut dyn FnMut(FromClient<'_>) -> Result<(), &'static str>) {
        match std::mem::replace(&mut self.message, Message::None) {
            Message::Line => {
                let line = std::mem::take(&mut self.line);
                match resume::from_client(&line, &self.limits) {
                    Ok(message) => self.heard(hear(message)),
                    Err(error) => self.broken(&error),
                }
            }
            // A message without a byte.
            Message::Begun(_) => self.broken(&FrameError::Line),
            Message::Application | Message::Dropped | Message::None => {}
        }
    }

    fn heard(&mut self, answer: Result<(), &'static str>) {
        self.fault = self.fault.or(answer.err());
    }

    fn broken(&mut self, error: &FrameError) {
        self.line = Vec::new();
        self.fault.get_or_insert(match error {
            FrameError::Line => "message has no header line",
            FrameError::NotJson => "header line is not JSON",
            FrameError::Format(_) => "header line has a field that is missing, wrong or out of bounds",
            FrameError::UnknownType => "header line has an unknown type",
            FrameError::Payload => "payload behind a header line without one",
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ws::header::parse;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            _ => Opcode::Ping,
        };
        let header = FrameHeader {
            fin: first & 0x80 != 0,
            rsv1: false,
            opcode,
            mask: Some(KEY),
            payload_bytes: payload.len() as u64,
        };
        let mut payload = payload.to_vec();
        mask::apply(&mut payload, KEY, 0);
        [DataHeader::new(&header).as_bytes(), &payload].concat()
    }

    /// The first byte and the plain payload of each frame.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((header, len)) = parse(bytes, Sender::Client, false).unwrap() {
            let end = len + header.payload_bytes as usize;
            let mut payload = bytes[len..end].to_vec();
            mask::apply(&mut payload, header.mask.unwrap(), 0);
            found.push((bytes[0], payload));
            bytes = &bytes[end..];
        }
        assert!(bytes.is_empty(), "{bytes:?}");
        found
    }

    type Taken = (Vec<(u8, Vec<u8>)>, Vec<String>, Option<&'static str>);

    /// What pieces become: frames for the backend, what was heard, and the fault.
    fn taken<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Taken {
        let mut these = ClientFrames::new(limits.clone());
        let (mut out, mut heard) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut hear = |message: FromClient<'_>| {
                heard.push(format!("{message:?}"));
                Ok(())
            };
            these.take(piece, &mut out, &mut hear).unwrap();
        }
        (frames(&out), heard, these.fault())
    }

    fn of(sent: &[u8]) -> Taken {
        taken([sent], &Limits::default())
    }

    #[test]
    fn the_empty_line_is_taken_off_the_first_byte_and_nothing_else_changes() {
        let sent = [
            frame(0x81, b"\none"),
            frame(0x82, b"\n"),
            frame(0x02, &[&b"\n"[..], &[7; 300]].concat()),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x80, b"\nend"),
            // The first byte comes in the third frame.
            frame(0x01, b""),
            frame(0x00, b""),
            frame(0x00, b"\nx"),
            frame(0x80, b"y"),
        ]
        .concat();
        let expected = vec![
            (0x81, b"one".to_vec()),
            (0x82, vec![]),
            (0x02, vec![7; 300]),
            (0x89, b"ping".to_vec()),
            (0x00, vec![]),
            (0x80, b"\nend".to_vec()),
            (0x01, b"x".to_vec()),
            (0x80, b"y".to_vec()),
        ];
        let (frames, heard, fault) = of(&sent);
        assert_eq!((frames, heard.len(), fault), (expected.clone(), 4, None));
        for at in 0..sent.len() {
            let (first, second) = sent.split_at(at);
            assert_eq!(taken([first, second], &Limits::default()).0, expected, "split at {at}");
        }
    }

    #[test]
    fn lines_are_heard_whole_and_never_reach_the_backend() {
        let ack = b"{\"t\":\"ack\",\"c\":\"a\",\"p\":\"eu.a.1.1-0\"}\n";
        let sent =
            [frame(0x81, b"{\"t\":\"new\"}\n"), frame(0x02, &ack[..5]), frame(0x89, b""), frame(0x80, &ack[5..])]
                .concat();
        for pieces in [vec![&sent[..]], sent.chunks(1).collect(), sent.chunks(7).collect()] {
            let (frames, heard, fault) = taken(pieces, &Limits::default());
            assert_eq!((frames, fault), (vec![(0x89, vec![])], None));
            assert_eq!(heard[0], "New");
            assert!(heard[1].starts_with("Ack") && heard.len() == 2, "{heard:?}");
        }
    }

    #[test]
    fn from_a_fault_on_only_control_frames_go_on() {
        for (sent, fault) in [
            (frame(0x81, b"hello"), "message has no header line"),
            (frame(0x81, b""), "message has no header line"),
            ([frame(0x01, b""), frame(0x80, b"")].concat(), "message has no header line"),
            (frame(0x81, b"{\"t\":\"new\"}"), "message has no header line"),
            (frame(0x81, b"{]\n"), "header line is not JSON"),
            (frame(0x81, b"{\"t\":\"other\"}\n"), "header line has an unknown type"),
            (frame(0x81, b"{\"t\":\"new\"}\nx"), "payload behind a header line without one"),
            (frame(0x82, b"{}\n"), "header line has a field that is missing, wrong or out of bounds"),
        ] {
            let sent = [sent, frame(0x81, b"\nlate"), frame(0x01, b"\nlate"), frame(0x8a, b"pong")].concat();
            let (frames, heard, found) = of(&sent);
            assert_eq!((frames.len(), heard.len(), found), (1, 0, Some(fault)));
        }
    }

    #[test]
    fn a_line_has_a_bound() {
        let limits = Limits { line_bytes: 20, ..Limits::default() };
        let line = |len: usize| frame(0x01, format!("{{\"t\":\"new\"{}", " ".repeat(len)).as_bytes());
        let end = frame(0x80, b"}\n");
        assert_eq!(taken([&line(9)[..], &end], &limits).2, None);
        assert_eq!(taken([&line(10)[..], &end], &limits).2, Some("message has no header line"));
        let mut endless = ClientFrames::new(limits);
        let mut out = Vec::new();
        endless.take(&line(12), &mut out, &mut |_| Ok(())).unwrap();
        assert!(endless.line.is_empty() && endless.fault().is_some(), "nothing is gathered beyond the bound");
    }

    #[test]
    fn what_has_no_place_ends_it() {
        let mut frames = ClientFrames::new(Limits::default());
        let (mut out, line) = (Vec::new(), frame(0x81, b"{\"t\":\"new\"}\n"));
        frames.take(&line, &mut out, &mut |_| Err("not now")).unwrap();
        frames.take(&frame(0x81, b"\nx"), &mut out, &mut |_| Ok(())).unwrap();
        assert_eq!((out.len(), frames.fault()), (0, Some("not now")));
        assert_eq!(frames.take(b"\x81\x01x", &mut out, &mut |_| Ok(())), Err(ProtocolError::Unmasked));
    }

    proptest! {
        #[test]
        fn messages_arrive_without_their_line_however_they_are_cut(
            messages in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4), 1..4),
            cuts in proptest::collection::vec(1..40_usize, 1..20),
        ) {
            let mut sent = Vec::new();
            for fragments in &messages {
                let mut whole: Vec<Vec<u8>> = fragments.clone();
                whole[0].insert(0, b'\n');
                for (at, payload) in whole.iter().enumerate() {
                    let fin = if at + 1 == whole.len() { 0x80 } else { 0 };
                    sent.extend(frame(fin | if at == 0 { 2 } else { 0 }, payload));
                }
            }
            let (mut pieces, mut rest, mut cuts) = (Vec::new(), &sent[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                pieces.push(piece);
                rest = behind;
            }
            let (frames, _, fault) = taken(pieces, &Limits::default());
            prop_assert_eq!(fault, None);
            let expected: Vec<Vec<u8>> = messages.concat();
            prop_assert_eq!(frames.into_iter().map(|(_, payload)| payload).collect::<Vec<_>>(), expected);
        }
    }
}
