//! The stream of a backend that speaks GRIP, as the tunnel sees it: what the backend has for the client, and what is
//! published to the client's channels, as one stream of frames.
//!
//! Bytes of the backend are scanned where they are read. Control messages stay here, prefixes are taken off, what is for
//! nobody is dropped; published messages go between the backend's. What the tunnel writes goes on to the backend as it
//! is. When the backend detaches, this is the client's peer: it answers pings and the Close frame.
//!
//! An idle connection has no buffer here either: what was read is in a buffer of the thread, and only what the tunnel
//! has no room for, or what is not whole, is kept.

use std::cell::RefCell;
use std::future::Future as _;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Sleep;

use super::backend::{Asking, Backend};
use super::client_frames::ClientFrames;
use super::link;
use super::rendered::close_frame_of;
use super::resume;
use super::said::{Heard, Hearer, dropped, ignored};
use super::subscriber::{Missed, Over, Subscriber};
use crate::grip::Limits;
use crate::grip::events::{EventKind, Events};
use crate::grip::extension::OptIn;
use crate::grip::filter::{Decision, Filter, without};
use crate::grip::meta::Meta;
use crate::grip::resume::{FromClient, PAYLOAD_LINE};
use crate::policy::keepalive::TcpSnapshot;
use crate::tunnel::{Backlog, Verdict, Wire};
use crate::ws::close::CloseCode;
use crate::ws::error::ProtocolError;
use crate::ws::header::{ControlFrame, DataHeader, FrameHeader, Opcode, Sender};
use crate::ws::scan::{Scanner, Step};

/// The most that one read takes of the backend.
const READ_BYTES: usize = 16 << 10;

/// How often the backend is read for one question of the tunnel, when what it sends is for nobody.
const READS: usize = 8;

/// A bit of a frame's first byte that no extension here gives a meaning. RFC 6455 §5.2.
const RSV2: u8 = 0x20;

/// How long a backend that has detached may take to hear of the end.
const FAREWELL: Duration = Duration::from_secs(1);

mod peer;

use peer::Peer;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What becomes of the frame in progress.
#[derive(Clone, Copy, Debug)]
enum Frame {
    /// There is none.
    None,
    /// Its header was scanned, and more of its payload has to be seen first.
    Undecided(FrameHeader),
    /// It goes on, without so many bytes of its payload from here on.
    Relayed {
        skip: usize,
    },
    /// It is a control message, gathered without so many bytes of its payload from here on.
    Control {
        skip: usize,
    },
    Dropped,
}

/// What the stream of a backend that has opted in is made of.
pub struct Setup {
    /// How it has.
    pub opt_in: OptIn,
    /// What bounds it.
    pub limits: Limits,
    /// Its client.
    pub subscriber: Subscriber,
    /// The same backend over HTTP.
    pub backend: Arc<dyn Backend>,
    /// For a client that was answered the subprotocol `sluicegate.v1`.
    pub resume: Option<resume::Settings>,
    /// For the log.
    pub rule: String,
}

/// The stream of a backend that has opted in.
pub struct GripUpstream<S> {
    /// `None` when the backend has detached.
    io: Option<S>,
    scanner: Scanner,
    filter: Filter,
    frame: Frame,
    /// What was read and is not whole.
    held: Vec<u8>,
    /// The control message in progress.
    control: Vec<u8>,
    limits: Limits,
    /// What the tunnel is to read.
    out: Vec<u8>,
    subscriber: Subscriber,
    /// Asks the backend for what the client has missed.
    backend: Arc<dyn Backend>,
    asking: Option<(Missed, Asking)>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the tunnel writes, as far as it has to be known.
    peer: Peer,
    /// What the client sends, where it speaks the subprotocol `sluicegate.v1`.
    client: Option<Box<Unlined>>,
    /// The backend broke the protocol: the tunnel sees its bytes as they are, and says so.
    broken: bool,
    rule: String,
}

impl<S: Wire + 'static> GripUpstream<S> {
    /// The stream `io`, behind the backend's 101 and `preread`, of which the tunnel must be given nothing.
    pub fn new(io: S, preread: Vec<u8>, setup: Setup) -> Self {
        let Setup { opt_in, limits, subscriber, backend, resume, rule } = setup;
        let (now, mut out) = (now(), Vec::new());
        let client = resume.is_some().then(|| Box::new(Unlined::new(limits.clone())));
        let subscriber = match resume {
            Some(settings) => subscriber.resumable(settings, now, &mut out),
            None => subscriber,
        };
        let mut this = Self {
            io: Some(io),
            scanner: Scanner::new(Sender::Server, false),
            filter: Filter::new(opt_in, &limits),
            frame: Frame::None,
            held: Vec::new(),
            control: Vec::new(),
            limits,
            out,
            subscriber,
            backend,
            asking: None,
            timer: None,
            peer: Peer::default(),
            client,
            broken: false,
            rule,
        };
        this.scan(&preread, now);
        this
    }

    /// Whether a message of ours may be sent now. RFC 6455 §5.4.
    fn between_messages(&self) -> bool {
        !self.broken && matches!(self.frame, Frame::None) && self.scanner.at_message_boundary()
    }

    /// Takes the frames in `input`, and keeps what is not whole.
    fn scan(&mut self, input: &[u8], now: Instant) {
        let mut at = 0;
        while !self.broken {
            let Some(rest) = input.get(at..) else { return };
            if let Frame::Undecided(header) = self.frame {
                match self.filter.decide(&header, rest) {
                    Decision::NeedMore => break,
                    decision => self.begin(&header, decision),
                }
                if header.payload_bytes == 0 {
                    self.end_frame(now);
                }
                continue;
            }
            match self.scanner.next(rest) {
                Err(rule) => {
                    // The tunnel reads the same, and knows what to say. RSV1 it lets pass where values are compressed here,
                    // and RSV2 never.
                    self.broken = true;
                    let from = self.out.len();
                    self.out.extend_from_slice(rest);
                    if let Some(first) = self.out.get_mut(from).filter(|_| rule == ProtocolError::ReservedBit) {
                        *first |= RSV2;
                    }
                    return;
                }
                Ok(Step::NeedMore) => break,
                Ok(Step::Header { header, len, .. }) => {
                    at += len;
                    self.frame = Frame::Undecided(header);
                }
                Ok(Step::Payload { len, ends_message, .. }) => {
                    let payload = rest.get(..len).unwrap_or_default();
                    self.payload(payload);
                    at += len;
                    if self.scanner.at_frame_boundary() || ends_message.is_some() {
                        self.end_frame(now);
                    }
                }
                Ok(Step::Control { header, header_len }) => {
                    let len = header_len + usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
                    self.out.extend_from_slice(rest.get(..len).unwrap_or_default());
                    at += len;
                    if header.opcode == Opcode::Close {
                        // Nothing of ours goes behind it.
                        self.broken = true;
                        return;
                    }
                }
            }
            // A backend that detaches has said its last.
            if self.io.is_none() {
                return;
            }
        }
        self.held.extend_from_slice(input.get(at..).unwrap_or_default());
    }

    fn begin(&mut self, header: &FrameHeader, decision: Decision) {
        self.frame = match decision {
            Decision::Relay { skip } => {
                let mut relayed = without(header, skip);
                // One line for a message, in front of its first fragment.
                let line =
                    if self.client.is_some() && header.opcode != Opcode::Continuation { PAYLOAD_LINE } else { &[] };
                relayed.payload_bytes += line.len() as u64;
                self.out.extend_from_slice(DataHeader::new(&relayed).as_bytes());
                self.out.extend_from_slice(line);
                Frame::Relayed { skip }
            }
            Decision::Control { skip } => Frame::Control { skip },
            Decision::Drop(why) => {
                ignored(&self.rule, dropped(why));
                Frame::Dropped
            }
            Decision::NeedMore => self.frame,
        };
    }

    fn payload(&mut self, payload: &[u8]) {
        let into = match &mut self.frame {
            Frame::Relayed { skip } => Some((skip, &mut self.out)),
            Frame::Control { skip } => Some((skip, &mut self.control)),
            Frame::None | Frame::Undecided(_) | Frame::Dropped => None,
        };
        if let Some((skip, into)) = into {
            let skipped = payload.len().min(*skip);
            *skip -= skipped;
            into.extend_from_slice(payload.get(skipped..).unwrap_or_default());
        }
    }

    fn end_frame(&mut self, now: Instant) {
        match std::mem::replace(&mut self.frame, Frame::None) {
            Frame::Control { .. } => {
                let json = std::mem::take(&mut self.control);
                self.obey(&json, now);
            }
            Frame::Relayed { .. } => self.subscriber.sent(now),
            Frame::None | Frame::Undecided(_) | Frame::Dropped => {}
        }
    }

    fn hearer(&mut self) -> Hearer<'_> {
        let Self { filter, limits, subscriber, out, rule, .. } = self;
        Hearer { filter: Some(filter), limits, subscriber, out, rule }
    }

    fn obey(&mut self, json: &[u8], now: Instant) {
        let heard = self.hearer().control(json, now);
        self.heard(heard);
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Done | Heard::Relayed => {}
            Heard::Detaches => self.detach(),
            Heard::Closes => self.broken = true,
            Heard::NoMessage => ignored(&self.rule, "an event that is no message"),
        }
    }

    /// Ends the backend's connection, in good order.
    fn detach(&mut self) {
        let Some(mut io) = self.io.take() else { return };
        self.held = Vec::new();
        if std::mem::replace(&mut self.peer.answers_itself, true) || !self.peer.scanner.at_frame_boundary() {
            return;
        }
        tokio::spawn(async move {
            let payload = CloseCode::NORMAL.0.to_be_bytes();
            let close = ControlFrame::new(Opcode::Close, &payload, Some(rand::random()));
            let said = async {
                io.write_all(close.as_bytes()).await?;
                io.shutdown().await
            };
            // A backend that does not take it is gone.
            let _ = tokio::time::timeout(FAREWELL, said).await;
        });
    }

    /// Asks the backend for what the client has missed. `true` while there is no answer: then nothing newer may be sent.
    fn poll_missed(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        let next = |this: &mut Self| {
            let missed = this.subscriber.next_missed()?;
            let asking = link::ask(this.backend.clone(), &missed, Meta::default());
            Some((missed, asking))
        };
        let Some((missed, mut asking)) = self.asking.take().or_else(|| next(self)) else { return false };
        match asking.as_mut().poll(cx) {
            Poll::Pending => {
                self.asking = Some((missed, asking));
                return true;
            }
            Poll::Ready(Ok(reply)) if link::has_events(&reply) => self.events(&reply.body, now),
            Poll::Ready(_) => {
                ignored(&self.rule, "the link of a gap was not answered with events");
                self.subscriber.not_retrieved(&missed, &mut self.out);
            }
        }
        false
    }

    /// Does what the events of an answer say: they are whole messages of the backend.
    fn events(&mut self, body: &[u8], now: Instant) {
        for event in Events::new(body, self.limits.response_bytes) {
            let Ok(event) = event else { return ignored(&self.rule, "the answer to a link is malformed") };
            match event.kind {
                EventKind::Message(kind) => {
                    let heard = self.hearer().message(kind, event.content, now);
                    self.heard(heard);
                }
                EventKind::Close => {
                    self.out.extend(close_frame_of(event.content));
                    self.broken = true;
                    return;
                }
                // Of the answer to a handshake, which this is none of.
                EventKind::Open | EventKind::Disconnect => {}
            }
        }
    }

    /// What the subscriber has for the client now.
    fn poll_subscriber(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        if self.poll_missed(now, cx) {
            return false;
        }
        let more = self.subscriber.poll_frames(READ_BYTES, now, &mut self.out, cx);
        match self.subscriber.next_deadline() {
            None => self.timer = None,
            Some(at) => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
                if timer.deadline() != at.into() {
                    timer.as_mut().reset(at.into());
                }
                if timer.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        // Who is connected needs not be asked.
        self.subscriber.take_refresh();
        more || self.subscriber.wants_backend()
    }

    /// Reads the backend, until something of it is for the client. `true` at its end.
    fn poll_backend(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        for _ in 0..READS {
            let Some(io) = &mut self.io else { return Poll::Pending };
            let mut input = SCRATCH.take();
            let from = self.held.len();
            // Grown once and never cleared: an idle poll of the backend would otherwise write all of it.
            if input.len() < from + READ_BYTES {
                input.resize(from + READ_BYTES, 0);
            }
            let mut buffer = ReadBuf::new(input.get_mut(from..from + READ_BYTES).unwrap_or_default());
            let read = Pin::new(io).poll_read(cx, &mut buffer);
            let len = buffer.filled().len();
            if let Poll::Ready(Ok(())) = read
                && len > 0
            {
                for (to, held) in input.iter_mut().zip(std::mem::take(&mut self.held)) {
                    *to = held;
                }
                let input = input.get(..from + len).unwrap_or_default();
                if self.broken {
                    self.out.extend_from_slice(input);
                } else {
                    self.scan(input, now);
                }
            }
            SCRATCH.set(input);
            ready!(read)?;
            if len == 0 {
                return Poll::Ready(Ok(true));
            }
            if !self.out.is_empty() {
                return Poll::Ready(Ok(false));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives the tunnel what it is to read, as far as it has room. Whether there was any.
    fn give(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let len = self.out.len().min(into.remaining());
        into.put_slice(self.out.get(..len).unwrap_or_default());
        if len == self.out.len() {
            self.out = Vec::new();
        } else {
            self.out.drain(..len);
        }
        len > 0
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for GripUpstream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let asking = self.asking.as_ref().map(|(missed, _)| missed);
        f.debug_struct("GripUpstream")
            .field("io", &self.io)
            .field("subscriber", &self.subscriber)
            .field("asking", &asking)
            .finish_non_exhaustive()
    }
}

impl<S: Wire + 'static> AsyncRead for GripUpstream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.give(into) {
            return Poll::Ready(Ok(()));
        }
        let now = now();
        let mut ended = false;
        if this.out.is_empty() {
            match this.poll_backend(now, cx) {
                Poll::Ready(Ok(end)) => ended = end,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let more = this.between_messages() && this.poll_subscriber(now, cx);
        if this.io.is_none() {
            this.peer.take_answers(&mut this.out);
            this.peer.reader = this.out.is_empty().then(|| cx.waker().clone());
        }
        if this.give(into) || ended {
            return Poll::Ready(Ok(()));
        }
        if more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<S: Wire + 'static> AsyncWrite for GripUpstream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, peer, client, subscriber, .. } = &mut *self;
        let now = now();
        match client {
            Some(client) => client.poll_write(io.as_mut(), peer, bytes, cx, &mut |said| subscriber.hear(said, now)),
            None => poll_forward(io.as_mut(), peer, bytes, cx),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl<S: Wire + 'static> Wire for GripUpstream<S> {
    fn tcp_snapshot(&mut self) -> Option<TcpSnapshot> {
        self.io.as_mut().and_then(Wire::tcp_snapshot)
    }

    fn socket(&self) -> Option<RawFd> {
        self.io.as_ref().and_then(Wire::socket)
    }

    fn break_off(&mut self) {
        if let Some(io) = &mut self.io {
            io.break_off();
        }
    }

    fn deflates(&self) -> bool {
        self.subscriber.deflates()
    }

    fn backlog(&self) -> Option<Arc<dyn Backlog>> {
        Some(self.subscriber.backlog())
    }

    fn farewell(&mut self) -> Option<Vec<u8>> {
        self.between_messages().then(|| self.subscriber.farewell()).flatten()
    }

    fn verdict(&self) -> Option<Verdict> {
        let overrun = self.subscriber.over().map(|Over::Overrun| Verdict::Overrun);
        let fault = self.client.as_ref().and_then(|client| client.frames.fault());
        overrun.or(fault.map(Verdict::Subprotocol))
    }
}

/// Writes to the backend, or, when it has detached, to who stands for it.
fn poll_forward<S: Wire>(
    io: Option<&mut S>,
    peer: &mut Peer,
    bytes: &[u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let len = match io {
        Some(io) => ready!(Pin::new(io).poll_write(cx, bytes))?,
        None => bytes.len(),
    };
    peer.take(bytes.get(..len).unwrap_or_default())?;
    Poll::Ready(Ok(len))
}

/// What a client of the subprotocol sends, on its way to the backend.
///
/// Bytes are taken in whole and made into what the backend reads, which is never longer by more than the start of a frame.
/// The tunnel is told that they were written as they are, the last one when nothing is left: so it waits for a backend
/// that takes no more, as it does without this, and gives the rest of the same bytes again.
#[derive(Debug)]
struct Unlined {
    frames: ClientFrames,
    /// What the backend has not taken.
    pending: Vec<u8>,
    /// How many bytes of the tunnel's became that, and were not reported as written.
    owed: usize,
}

impl Unlined {
    fn new(limits: Limits) -> Self {
        Self { frames: ClientFrames::new(limits), pending: Vec::new(), owed: 0 }
    }

    fn poll_write<S: Wire>(
        &mut self,
        mut io: Option<&mut S>,
        peer: &mut Peer,
        bytes: &[u8],
        cx: &mut Context<'_>,
        hear: &mut dyn FnMut(FromClient<'_>) -> Result<(), &'static str>,
    ) -> Poll<io::Result<usize>> {
        let mut output = SCRATCH.take();
        output.clear();
        // With its memory: nothing is kept while nothing waits.
        output.append(&mut std::mem::take(&mut self.pending));
        if self.owed == 0 {
            self.owed = bytes.len();
            // The tunnel writes what it has scanned, so a fault here is none of a client's.
            self.frames.take(bytes, &mut output, hear).map_err(|_| io::ErrorKind::InvalidData)?;
        }
        let (mut at, mut end) = (0, Poll::Ready(()));
        while at < output.len() {
            match poll_forward(io.as_deref_mut(), peer, output.get(at..).unwrap_or_default(), cx)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(len) => at += len,
                Poll::Pending => {
                    end = Poll::Pending;
                    break;
                }
            }
        }
        self.pending.extend_from_slice(output.get(at..).unwrap_or_default());
        SCRATCH.set(output);
        let written = if end.is_ready() { self.owed } else { at.min(self.owed.saturating_sub(1)) };
        self.owed -= written;
        if written == 0 && end.is_pending() { Poll::Pending } else { Poll::Ready(Ok(written)) }
    }
}

/// Tokio's clock, so that a test can pass the time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod resume_tests;
#[cfg(test)]
mod tests;
