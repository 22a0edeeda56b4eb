//! WebSocket-over-HTTP, as the tunnel sees it: a backend that holds no socket, as one stream of frames.
//!
//! What the client sends is gathered into events, of which a request has all that wait; while it is under way the next
//! ones gather. What the answers bring goes to the client, and so does what is published to its channels. Pings are
//! answered here, since each would be a request, and the backends' libraries answer them without their payload.
//!
//! An idle connection has no buffer and no request: only a backend that asks for it is polled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::backend::{AskError, Asking, Backend, Question, Reply};
use super::link;
use super::rendered::{close_frame_of, frame};
use super::said::{Heard, Hearer, ignored};
use super::subscriber::{Missed, Over, Subscriber};
use crate::grip::batch::Pending;
use crate::grip::events::{EventKind, Events};
use crate::grip::filter::Filter;
use crate::grip::headers;
use crate::grip::meta::Meta;
use crate::grip::resume::{FromClient, from_client};
use crate::grip::{Kind, Limits, retry};
use crate::tunnel::{Backlog, Verdict, Wire};

mod gather;
mod opening;
#[cfg(test)]
mod tests;

use gather::{Fault, Gather, Said};
pub use opening::{OpenError, Opened, Opening, open};

/// The most that is taken of the subscriber at once.
const FRAMES_BYTES: usize = 16 << 10;

/// How far the connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The client has sent a Close frame with this payload; the backend is to be told, or was.
    ClientCloses(Bytes),
    /// The backend has sent CLOSE, or this gateway closes in its place.
    Closed,
    /// The backend has detached: it is asked nothing any more.
    Detached,
}

/// How the stream ends for the tunnel, behind what it has still to read.
#[derive(Clone, Debug)]
enum End {
    Eof,
    Failed(String),
}

/// A request under way.
struct Request {
    /// `None`: with events.
    link: Option<Missed>,
    asking: Asking,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("link", &self.link).finish_non_exhaustive()
    }
}

/// The stream of a backend over HTTP.
#[derive(Debug)]
pub struct OverHttp {
    backend: Arc<dyn Backend>,
    limits: Limits,
    subscriber: Subscriber,
    /// `None` where the backend has not opted in: then every message is for the client.
    filter: Option<Filter>,
    /// What the backend had kept with `Set-Meta-Name`.
    meta: Meta,
    pending: Pending,
    gather: Gather,
    /// An event for which there was no room. The client is not read while there is one.
    no_room: Option<(EventKind, Bytes)>,
    asking: Option<Request>,
    poll: headers::Poll,
    /// When the backend was last heard of.
    heard: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// What the tunnel is to read.
    out: Vec<u8>,
    /// The answer to the client's newest ping: the others need none. RFC 6455 §5.5.3.
    pong: Option<Bytes>,
    /// Pings of the backend's that the client may answer.
    expected_pongs: usize,
    state: State,
    end: Option<End>,
    /// Why the session has to end.
    verdict: Option<Verdict>,
    /// Who reads waits for what is written.
    reader: Option<Waker>,
    /// Who writes waits for room.
    writer: Option<Waker>,
    rule: String,
}

impl OverHttp {
    /// Takes what the client sends, as far as there is room. Returns how many bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut taken = 0;
        while taken < bytes.len() && self.no_room.is_none() {
            let (len, said) = self.gather.take(bytes.get(taken..).unwrap_or_default())?;
            taken += len;
            match said {
                None => {}
                Some(Said::Ping(payload)) => self.pong = Some(payload),
                Some(Said::Pong(payload)) if self.expected_pongs > 0 => {
                    self.expected_pongs -= 1;
                    self.push(EventKind::Message(Kind::Pong), payload);
                }
                Some(Said::Pong(_)) => {}
                Some(Said::Message(kind, content)) if self.subscriber.is_resumable() => self.hear(kind, &content),
                Some(Said::Message(kind, content)) => self.push(EventKind::Message(kind), content),
                Some(Said::Close(payload)) => match self.state {
                    State::Open => {
                        self.push(EventKind::Close, payload.clone());
                        self.state = State::ClientCloses(payload);
                    }
                    State::Detached => self.close_as(&payload),
                    State::ClientCloses(_) | State::Closed => {}
                },
            }
        }
        Ok(taken)
    }

    /// Takes a message of the subprotocol `sluicegate.v1`.
    fn hear(&mut self, kind: Kind, message: &Bytes) {
        let heard = from_client(message, &self.limits).map_err(|_| "a message is none of the subprotocol");
        let heard = heard.and_then(|said| {
            let payload = if let FromClient::Payload(payload) = said { Some(message.slice_ref(payload)) } else { None };
            self.subscriber.hear(said, now()).map(|()| payload)
        });
        match heard {
            Ok(Some(payload)) => self.push(EventKind::Message(kind), payload),
            Ok(None) => {}
            Err(how) => {
                self.verdict = Some(Verdict::Subprotocol(how));
                self.end = Some(End::Eof);
            }
        }
    }

    fn push(&mut self, kind: EventKind, content: Bytes) {
        // Behind a Close nothing counts, and a backend that has detached hears nothing.
        if self.state == State::Open && self.pending.push(kind, content.clone()).is_err() {
            self.no_room = Some((kind, content));
        }
    }

    /// Sends the client the Close frame that it has sent. RFC 6455 §5.5.1.
    fn close_as(&mut self, payload: &[u8]) {
        self.out.extend(close_frame_of(payload));
        self.state = State::Closed;
    }

    /// Begins a request when there is a reason for one.
    fn ask(&mut self, now: Instant) {
        if self.asking.is_some() || self.end.is_some() || self.state == State::Closed {
            return;
        }
        if self.state == State::Detached {
            self.subscriber.take_refresh();
            if let Some(missed) = self.subscriber.next_missed() {
                self.subscriber.not_retrieved(&missed, &mut self.out);
            }
            return;
        }
        if let Some(missed) = self.subscriber.next_missed() {
            let asking = link::ask(self.backend.clone(), &missed, self.meta.clone());
            self.asking = Some(Request { link: Some(missed), asking });
            return;
        }
        let due = self.poll_deadline().is_some_and(|at| now >= at);
        if !(self.pending.wants_request() || self.subscriber.take_refresh() || due) {
            return;
        }
        let mut body = Vec::new();
        let Some(batch) = self.pending.begin(false, &mut body) else { return };
        let (replayed_bytes, meta) = (batch.replayed_bytes, self.meta.clone());
        let question = Question::Events { body: body.into(), replayed_bytes, meta };
        let asking = Box::pin(persist(self.backend.clone(), question, self.limits.clone()));
        self.asking = Some(Request { link: None, asking });
    }

    /// When the backend is asked though there is nothing to tell.
    fn poll_deadline(&self) -> Option<Instant> {
        match self.poll {
            headers::Poll::Off => None,
            headers::Poll::Every(secs) => Some(self.heard + Duration::from_secs(secs.into())),
        }
    }

    fn poll_asking(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let Some(request) = &mut self.asking else { return Poll::Pending };
        let Poll::Ready(answer) = request.asking.as_mut().poll(cx) else { return Poll::Pending };
        let missed = self.asking.take().and_then(|request| request.link);
        self.heard = now;
        match (missed, answer) {
            (Some(_), Ok(reply)) if link::has_events(&reply) => self.events(&reply.body, false, now),
            (Some(missed), _) => {
                ignored(&self.rule, "the link of a gap was not answered with events");
                self.subscriber.not_retrieved(&missed, &mut self.out);
            }
            (None, Ok(reply)) => self.answered(&reply, now),
            (None, Err(error)) => self.fail(error.to_string()),
        }
        Poll::Ready(())
    }

    fn answered(&mut self, reply: &Reply, now: Instant) {
        let answer = match headers::answer(reply.status, &reply.headers, false, &mut self.meta, &self.limits) {
            Ok(answer) => answer,
            Err(error) => return self.fail(error.to_string()),
        };
        if let Err(error) = self.pending.answered(answer.accepted) {
            return self.fail(error.to_string());
        }
        if let Some((kind, content)) = self.no_room.take() {
            self.push(kind, content);
        }
        if self.no_room.is_none()
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        self.poll = answer.poll.unwrap_or(self.poll);
        self.events(&reply.body, false, now);
        // A backend that took the CLOSE and does not say so, nor wants to be asked again, has closed as well.
        if let State::ClientCloses(payload) = &self.state
            && !self.pending.wants_request()
            && self.poll == headers::Poll::Off
        {
            let payload = payload.clone();
            self.close_as(&payload);
        }
    }

    /// Does what the events of an answer say.
    fn events(&mut self, body: &[u8], opening: bool, now: Instant) {
        let skipped = usize::from(opening && !body.is_empty());
        for event in Events::new(body, self.limits.response_bytes).skip(skipped) {
            let event = match event {
                Ok(event) => event,
                Err(error) => return self.fail(error.to_string()),
            };
            match event.kind {
                EventKind::Message(kind) => self.message(kind, event.content, now),
                EventKind::Close => {
                    self.out.extend(close_frame_of(event.content));
                    self.state = State::Closed;
                }
                EventKind::Open | EventKind::Disconnect => {
                    self.state = State::Closed;
                    self.end = Some(End::Eof);
                }
            }
            if matches!(self.state, State::Closed | State::Detached) || self.end.is_some() {
                return;
            }
        }
    }

    fn message(&mut self, kind: Kind, content: &[u8], now: Instant) {
        let Self { filter, limits, subscriber, out, rule, .. } = self;
        let heard = Hearer { filter: filter.as_ref(), limits, subscriber, out, rule }.message(kind, content, now);
        match heard {
            Heard::Done => {}
            Heard::Relayed => self.expected_pongs += usize::from(kind == Kind::Ping),
            Heard::Detaches => self.detach(),
            Heard::Closes => self.state = State::Closed,
            Heard::NoMessage => self.fail("an event that is no message".to_owned()),
        }
    }

    /// Tells the backend that the connection ends for it; the client stays.
    fn detach(&mut self) {
        self.state = State::Detached;
        self.no_room = None;
        let mut body = Vec::new();
        crate::grip::events::encode(EventKind::Close, &[], &mut body);
        let question = Question::Events { body: body.into(), replayed_bytes: 0, meta: self.meta.clone() };
        let farewell = persist(self.backend.clone(), question, self.limits.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // What it answers is for nobody.
            runtime.spawn(async move { drop(farewell.await) });
        }
    }

    fn fail(&mut self, why: String) {
        self.state = State::Closed;
        self.end = Some(End::Failed(why));
    }

    /// What the subscriber has for the client now. Behind a gap it has to wait for what fills it.
    fn poll_subscriber(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        let open = matches!(self.state, State::Open | State::Detached) && self.end.is_none();
        let filling = self.asking.as_ref().is_some_and(|request| request.link.is_some());
        open && !filling && self.subscriber.poll_frames(FRAMES_BYTES, now, &mut self.out, cx)
    }

    fn arm(&mut self, cx: &mut Context<'_>) {
        let polls = self.asking.is_none() && matches!(self.state, State::Open | State::ClientCloses(_));
        let poll = self.poll_deadline().filter(|_| polls);
        let Some(at) = [poll, self.subscriber.next_deadline()].into_iter().flatten().min() else {
            self.timer = None;
            return;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        if timer.deadline() != at.into() {
            timer.as_mut().reset(at.into());
        }
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
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

/// Asks until there is an answer, or it may not be asked again.
async fn persist(backend: Arc<dyn Backend>, question: Question, limits: Limits) -> Result<Reply, AskError> {
    let mut retries = 0;
    loop {
        let error = match backend.ask(question.clone()).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let jitter_ms = rand::rng().random_range(0..1_000);
        let Some(delay_ms) = retry::delay_ms(error.failure(), false, retries, jitter_ms, &limits) else {
            return Err(error);
        };
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        retries += 1;
    }
}

impl AsyncRead for OverHttp {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.give(into) {
            return Poll::Ready(Ok(()));
        }
        let now = now();
        this.ask(now);
        let answered = this.poll_asking(now, cx).is_ready();
        let more = this.poll_subscriber(now, cx);
        if this.state != State::Closed
            && let Some(payload) = this.pong.take()
        {
            this.out.extend(frame(Kind::Pong, &payload));
        }
        if this.give(into) {
            return Poll::Ready(Ok(()));
        }
        if this.state == State::Closed {
            // Behind its Close frame a server closes its connection. RFC 6455 §7.1.1.
            this.end.get_or_insert(End::Eof);
        }
        match &this.end {
            Some(End::Eof) => return Poll::Ready(Ok(())),
            Some(End::Failed(why)) => return Poll::Ready(Err(io::Error::other(why.clone()))),
            None => {}
        }
        this.arm(cx);
        // An answer may be the reason for the next question, and so may what the subscriber was given.
        let open = matches!(this.state, State::Open | State::Detached);
        let wants = open && this.asking.is_none() && this.subscriber.wants_backend();
        if answered || more || wants {
            cx.waker().wake_by_ref();
        }
        this.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for OverHttp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.end.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        if this.no_room.is_some() {
            this.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = match this.take(bytes) {
            Ok(taken) => taken,
            Err(Fault::Protocol) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Err(Fault::TooLong { size_bytes }) => {
                let limit_bytes = this.limits.buffered_bytes as u64;
                this.verdict = Some(Verdict::MessageTooBig { size_bytes, limit_bytes });
                this.end = Some(End::Eof);
                bytes.len()
            }
        };
        if let Some(reader) = this.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The client sends nothing more: without a Close frame that is its end.
    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(self.state, State::ClientCloses(_)) {
            self.end.get_or_insert(End::Eof);
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl Wire for OverHttp {
    fn deflates(&self) -> bool {
        self.subscriber.deflates()
    }

    fn backlog(&self) -> Option<Arc<dyn Backlog>> {
        Some(self.subscriber.backlog())
    }

    fn farewell(&mut self) -> Option<Vec<u8>> {
        self.subscriber.farewell()
    }

    fn verdict(&self) -> Option<Verdict> {
        self.verdict.or_else(|| self.subscriber.over().map(|Over::Overrun| Verdict::Overrun))
    }
}

impl Drop for OverHttp {
    /// Tells the backend of a client that has gone without a Close frame, behind what it sent before. Once: a backend
    /// that cannot be reached learns nothing of it.
    fn drop(&mut self) {
        if !matches!(self.state, State::Open | State::ClientCloses(_)) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut pending = std::mem::replace(&mut self.pending, Pending::new(&self.limits));
        let (backend, asking, limits) = (self.backend.clone(), self.asking.take(), self.limits.clone());
        let (mut meta, closes) = (std::mem::take(&mut self.meta), self.state != State::Open);
        runtime.spawn(async move {
            if let Some(Request { link: None, asking }) = asking {
                let Ok(reply) = asking.await else { return };
                let Ok(answer) = headers::answer(reply.status, &reply.headers, false, &mut meta, &limits) else {
                    return;
                };
                if pending.answered(answer.accepted).is_err() || (closes && !pending.wants_request()) {
                    return;
                }
            }
            // It always has room.
            let _ = pending.push(EventKind::Disconnect, Bytes::new());
            let mut body = Vec::new();
            let Some(batch) = pending.begin(false, &mut body) else { return };
            let question = Question::Events { body: body.into(), replayed_bytes: batch.replayed_bytes, meta };
            let _ = backend.ask(question).await;
        });
    }
}

/// Tokio's clock, so that a test can pass the time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
