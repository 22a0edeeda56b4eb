//! One of the two sides of a session: its stream, what it sends as far as it was scanned, and what is to be written
//! to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::ReadBuf;

use super::outbox::Outbox;
use super::pressure;
use super::recode::Recode;
use super::{Compression, Wire};
use crate::policy::keepalive::Keepalive;
use crate::policy::slow_client::SlowClient;
use crate::ws::close::CloseCode;
use crate::ws::header::{ControlFrame, MAX_CONTROL_FRAME_BYTES, Opcode, Sender};
use crate::ws::scan::{self, Scanner};

/// Room in front of a read for the start of a frame that an earlier read ended in.
pub(super) const HELD_BYTES: usize = MAX_CONTROL_FRAME_BYTES;

/// The most that one read takes: what a frame of 64 KiB needs, with its header.
pub(super) const READ_BYTES: usize = (64 << 10) + 64;

/// The most that one read takes of a side whose messages are inflated: a byte may cost as much as a thousand others.
const INFLATED_READ_BYTES: usize = 16 << 10;

/// The most that one read takes while memory is short: what a peer does not take of it is kept.
const SHORT_READ_BYTES: usize = 4 << 10;

pub(super) struct Side<S> {
    pub(super) io: S,
    pub(super) role: Sender,
    /// Scans what this side sends.
    pub(super) scanner: Scanner,
    held: Held,
    /// What was read of this side and waits: behind the head of the handshake, or behind output that the other side's
    /// socket has not taken.
    preread: Vec<u8>,
    /// Recodes what this side sends, where compression ends here.
    pub(super) recode: Option<Box<Recode>>,
    /// What this side's socket has not taken.
    pub(super) out: Outbox,
    /// Whether the output so far ends inside a frame.
    pub(super) out_mid_frame: bool,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) reader: SlowClient,
    pub(super) pings: Pings,
    /// When the oldest measured message was read that this side's socket has not taken whole.
    pub(super) late_since: Option<Instant>,
    pub(super) end: SideEnd,
}

/// How far the end of one side has come. See [`super::closing`].
#[derive(Debug, Default)]
pub(super) struct SideEnd {
    /// It sent a Close frame. What follows is dropped.
    pub(super) close_received: bool,
    /// The code of the Close frame that was written to it: a peer's, or ours. `Some(1005)` for one without a code.
    pub(super) close_sent: Option<CloseCode>,
    /// It broke the protocol: what it sends can no longer be read.
    pub(super) unreadable: bool,
    /// What it sent and nobody gets, in bytes.
    pub(super) discarded_bytes: usize,
    /// Nothing more of that is read before this time.
    pub(super) discard_after: Option<Instant>,
    /// Its stream ended: nothing more comes.
    pub(super) read_ended: bool,
    /// Nothing more is written to it behind what is pending, and no Close frame.
    pub(super) cut: bool,
    /// Our sending half is shut down.
    pub(super) shut_down: bool,
    /// Its connection is gone, or given up.
    pub(super) dead: bool,
}

impl SideEnd {
    /// When more of what nobody gets is read, if that waits.
    pub(super) fn next_discard(&self) -> Option<Instant> {
        self.discard_after.filter(|_| !self.read_ended)
    }
}

/// The start of a frame header, or of a control frame, that was not whole in the last read.
struct Held {
    bytes: [u8; HELD_BYTES],
    len: u8,
}

/// The pings that we send to a side.
#[derive(Debug)]
pub(super) struct Pings {
    /// Marks a pong as an answer to a ping of ours.
    tag: [u8; 6],
    sequence: u16,
    /// A ping waits for the end of the frame in progress.
    pub(super) due: bool,
}

impl Pings {
    fn new() -> Self {
        Self { tag: rand::random(), sequence: 0, due: false }
    }

    fn payload(&self) -> [u8; 8] {
        let [high, low] = self.sequence.to_be_bytes();
        let [a, b, c, d, e, f] = self.tag;
        [a, b, c, d, e, f, high, low]
    }

    /// Whether `payload` answers a ping of ours, and whether it answers the latest.
    pub(super) fn matches(&self, payload: &[u8]) -> Option<bool> {
        let ours = payload.len() == 8 && payload.starts_with(&self.tag);
        ours.then(|| payload == self.payload())
    }
}

impl<S: Wire> Side<S> {
    /// A side on a stream from which `preread` was already read, behind the head of the handshake.
    pub(super) fn new(io: S, preread: Vec<u8>, role: Sender, check_text: bool, compression: Compression) -> Self {
        let of_scanner = match (compression, role) {
            (Compression::Terminate { .. }, Sender::Server) if io.deflates() => scan::Compression::Opaque,
            (Compression::Off, _) | (Compression::Terminate { .. }, Sender::Server) => scan::Compression::Refused,
            (_, Sender::Client) => scan::Compression::Inflated,
            // The upstream is trusted more: its messages are counted as they are on the wire.
            (Compression::Passthrough, Sender::Server) => scan::Compression::Opaque,
        };
        Self {
            io,
            role,
            scanner: Scanner::new(role, check_text).with_compression(of_scanner),
            held: Held { bytes: [0; HELD_BYTES], len: 0 },
            preread,
            recode: match compression {
                Compression::Terminate { window_bits } => Some(Box::new(Recode::new(role, window_bits))),
                Compression::Off | Compression::Passthrough => None,
            },
            out: Outbox::default(),
            out_mid_frame: false,
            keepalive: None,
            reader: SlowClient::new(None),
            pings: Pings::new(),
            late_since: None,
            end: SideEnd::default(),
        }
    }

    /// Reads into `scratch`, behind what was held back of the last read, and returns where the input begins and ends.
    ///
    /// An end at the start of the read room says that the stream has ended.
    pub(super) fn poll_read<'a>(
        &mut self,
        scratch: &'a mut [u8],
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<&'a [u8]>>> {
        let held = usize::from(self.held.len);
        let most = match self.scanner.inflates() {
            _ if pressure::is_over() => SHORT_READ_BYTES,
            true => INFLATED_READ_BYTES,
            false => READ_BYTES,
        };
        let len = if self.preread.is_empty() {
            let mut buffer = ReadBuf::new(&mut scratch[HELD_BYTES..HELD_BYTES + most]);
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => buffer.filled().len(),
            }
        } else {
            let len = self.preread.len().min(most);
            scratch[HELD_BYTES..HELD_BYTES + len].copy_from_slice(&self.preread[..len]);
            self.preread.drain(..len);
            self.preread.shrink_to_fit();
            len
        };
        if len == 0 {
            return Poll::Ready(Ok(None));
        }
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.on_read(now);
        }
        let start = HELD_BYTES - held;
        scratch[start..HELD_BYTES].copy_from_slice(&self.held.bytes[..held]);
        self.held.len = 0;
        Poll::Ready(Ok(Some(&scratch[start..HELD_BYTES + len])))
    }

    /// Keeps the start of a frame until the rest comes: at most 130 bytes, since the scanner takes what is whole.
    pub(super) fn hold(&mut self, rest: &[u8]) {
        debug_assert!(rest.len() < HELD_BYTES);
        self.held.bytes[..rest.len()].copy_from_slice(rest);
        self.held.len = rest.len() as u8;
    }

    /// Puts the rest of a read back: the other side's socket has to take what came of it so far first.
    pub(super) fn put_back(&mut self, rest: &[u8]) {
        self.preread.splice(..0, rest.iter().copied());
    }

    /// Writes to this side. A side whose socket fails is dead.
    pub(super) fn write(&mut self, bytes: &[u8], now: Instant, cx: &mut Context<'_>) {
        if bytes.is_empty() || self.end.dead {
            return;
        }
        match self.out.push(bytes, &mut self.io, cx) {
            Ok(taken) => self.on_taken(taken, now),
            Err(_) => self.bury(),
        }
    }

    /// Writes what is pending. Returns whether the socket took any.
    pub(super) fn drain(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        if self.end.dead || self.end.shut_down {
            return false;
        }
        match self.out.poll_drain(&mut self.io, cx) {
            Ok(0) => false,
            Ok(taken) => {
                self.on_taken(taken, now);
                true
            }
            Err(_) => {
                self.bury();
                true
            }
        }
    }

    fn on_taken(&mut self, taken: usize, now: Instant) {
        if taken > 0 {
            self.reader.on_taken(taken as u64);
            if let Some(keepalive) = &mut self.keepalive {
                keepalive.on_written(now);
            }
        }
        if self.out.is_empty() {
            self.reader.on_drained();
        } else {
            self.reader.on_pending(now);
        }
    }

    /// Writes a ping of ours. Must be called between frames only.
    pub(super) fn write_ping(&mut self, now: Instant, cx: &mut Context<'_>) {
        self.pings.due = false;
        self.pings.sequence = self.pings.sequence.wrapping_add(1);
        let ping = ControlFrame::new(Opcode::Ping, &self.pings.payload(), self.mask());
        self.write(ping.as_bytes(), now, cx);
        if let Some(keepalive) = &mut self.keepalive {
            let mut snapshot = self.io.tcp_snapshot();
            if let Some(tcp) = &mut snapshot {
                tcp.queued_bytes += self.out.len() as u64;
            }
            keepalive.on_ping_written(now, snapshot);
        }
    }

    /// Writes a Close frame of ours. Must be called between frames only.
    pub(super) fn write_close(&mut self, code: CloseCode, reason: &str, now: Instant, cx: &mut Context<'_>) {
        let mut payload = [0; 125];
        let reason = &reason.as_bytes()[..reason.len().min(123)];
        payload[..2].copy_from_slice(&code.0.to_be_bytes());
        payload[2..2 + reason.len()].copy_from_slice(reason);
        let close = ControlFrame::new(Opcode::Close, &payload[..2 + reason.len()], self.mask());
        self.write(close.as_bytes(), now, cx);
        self.end.close_sent = Some(code);
    }

    /// A masking key for a frame of ours to this side: we are the client of an upstream. RFC 6455 §5.3.
    fn mask(&self) -> Option<[u8; 4]> {
        match self.role {
            Sender::Client => None,
            Sender::Server => Some(rand::random()),
        }
    }

    /// Gives the connection up: nothing is read from it or written to it any more.
    pub(super) fn bury(&mut self) {
        self.out.clear();
        self.reader.on_drained();
        self.end.dead = true;
        self.end.read_ended = true;
    }
}
