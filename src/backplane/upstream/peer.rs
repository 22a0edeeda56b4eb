//! The client, as far as the stream of a backend has to know of it.

use std::io;
use std::task::Waker;

use crate::ws::header::{ControlFrame, FrameHeader, Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::{Scanner, Step};

/// Knows where the client's frames begin; and when the backend has detached it is the client's peer: it answers pings and
/// the Close frame, and drops the rest.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) scanner: Scanner,
    /// The start of a header or of a control frame.
    held: Vec<u8>,
    pub(super) answers_itself: bool,
    /// The answer to the newest ping: the others need none, and a client that reads nothing could send ever more of them.
    /// RFC 6455 §5.5.3.
    pong: Option<ControlFrame>,
    close: Option<ControlFrame>,
    pub(super) reader: Option<Waker>,
    over: bool,
}

impl Default for Peer {
    fn default() -> Self {
        let scanner = Scanner::new(Sender::Client, false);
        Self { scanner, held: Vec::new(), answers_itself: false, pong: None, close: None, reader: None, over: false }
    }
}

impl Peer {
    /// Takes what was written. The tunnel writes what it has scanned, so a fault here is none of a client's.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let joined;
        let input = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.held);
            &joined
        };
        let mut at = 0;
        while !self.over {
            let rest = input.get(at..).unwrap_or_default();
            match self.scanner.next(rest) {
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
                Ok(Step::NeedMore) => {
                    self.held.extend_from_slice(rest);
                    break;
                }
                Ok(Step::Header { len, .. } | Step::Payload { len, .. }) => at += len,
                Ok(Step::Control { header, header_len }) => {
                    let end = header_len + usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
                    if self.answers_itself {
                        self.answer(&header, rest.get(header_len..end).unwrap_or_default());
                    }
                    self.over = header.opcode == Opcode::Close;
                    at += end;
                }
            }
        }
        if let Some(reader) = self.reader.take_if(|_| self.pong.is_some() || self.close.is_some()) {
            reader.wake();
        }
        Ok(())
    }

    fn answer(&mut self, header: &FrameHeader, payload: &[u8]) {
        let mut payload = payload.to_vec();
        if let Some(key) = header.mask {
            mask::apply(&mut payload, key, 0);
        }
        match header.opcode {
            Opcode::Ping => self.pong = Some(ControlFrame::new(Opcode::Pong, &payload, None)),
            Opcode::Close => self.close = Some(ControlFrame::new(Opcode::Close, &payload, None)),
            _ => {}
        }
    }

    /// Appends what it answers the client.
    pub(super) fn take_answers(&mut self, out: &mut Vec<u8>) {
        for answer in [self.pong.take(), self.close.take()].into_iter().flatten() {
            out.extend_from_slice(answer.as_bytes());
        }
    }
}
