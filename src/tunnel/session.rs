//! The one loop of a session: frames from each side to the other, pings, and every policy that looks at them.
//!
//! An idle session owns no buffer. Bytes are read into a buffer of the thread, scanned there, and written to the other
//! side from there; only what its socket does not take is kept, and then no more is read for it. So a frame in flight
//! costs one read, one header parse and one write, and a queue is never longer than one read.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::closing::Ending;
use super::registry::{Control, Order};
use super::side::{HELD_BYTES, READ_BYTES, Side};
use super::stats::Stats;
use super::{Settings, Wire};
use crate::cause::Cause;
use crate::events::{self, Event};
use crate::metrics::{RuleMetrics, SlowClientMark};
use crate::policy::keepalive::{Keepalive, Step as KeepaliveStep};
use crate::policy::message::MessagePolicy;
use crate::policy::slow_client::{self, SlowClient};
use crate::ws::close::{CloseCode, parse_close};
use crate::ws::error::ProtocolError;
use crate::ws::header::{FrameHeader, Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::{Message, Step};

/// A session gives its core to others after so many turns, in each of which it reads at most once from each side.
const TURNS_PER_POLL: usize = 8;

/// When no policy has a deadline the timer is set this far ahead.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 3600);

thread_local! {
    /// Where a session's bytes are while it runs: nothing stays here when it does not.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; HELD_BYTES + READ_BYTES].into_boxed_slice());
}

/// What a session begins with.
pub struct Opening<C, U> {
    /// The client's stream, from which nothing was read behind the head: that is refused before the 101.
    pub client: C,
    /// The upstream's stream.
    pub upstream: U,
    /// What was read of the upstream behind the head of its 101.
    pub upstream_preread: Vec<u8>,
    /// The policies of the rule.
    pub settings: Arc<Settings>,
    /// The metrics of the rule.
    pub metrics: Arc<RuleMetrics>,
    /// Where the session hears orders from outside.
    pub control: Arc<Control>,
    /// Whether the endpoint has ever answered a ping of ours; shared by its sessions.
    pub endpoint_answers: Arc<AtomicBool>,
}

/// How a session ended.
#[derive(Debug)]
pub struct Outcome {
    /// Why.
    pub cause: Cause,
    /// The code of the Close frame that the client was sent; 1005 for one without a code, `None` for no Close frame.
    pub close_sent: Option<CloseCode>,
    /// What it carried.
    pub stats: Stats,
    /// How long it lived.
    pub duration: Duration,
}

/// A tunnel between a client and an upstream, from the 101 to its end. Await it.
pub struct Session<C, U> {
    client: Side<C>,
    upstream: Side<U>,
    core: Core,
    control: Arc<Control>,
    endpoint_answers: Arc<AtomicBool>,
    slow_mark: Option<SlowClientMark>,
    /// Since when the client is not read, because the upstream takes no more.
    client_unread_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    armed_for: Instant,
    started: Instant,
    /// Whether it has been polled before: its timer and its orders wake it.
    listening: bool,
}

/// What both directions of a session share.
struct Core {
    settings: Arc<Settings>,
    metrics: Arc<RuleMetrics>,
    message: MessagePolicy,
    stats: Stats,
    /// When a peer last sent something of its own.
    last_active: Instant,
    ending: Option<Ending>,
    /// A Drain waits for the end of the messages in progress until then.
    drain_by: Option<Instant>,
}

impl<C: Wire, U: Wire> Session<C, U> {
    /// Opens the tunnel.
    pub fn new(opening: Opening<C, U>) -> Self {
        let Opening { client, upstream, upstream_preread, settings, metrics, control, endpoint_answers } = opening;
        let now = now();
        let check_text = settings.message.utf8;
        let mut client = Side::new(client, Vec::new(), Sender::Client, check_text);
        let mut upstream = Side::new(upstream, upstream_preread, Sender::Server, check_text);
        client.reader = SlowClient::new(settings.slow_client.clone());
        if let Some(keepalive) = &settings.keepalive {
            client.keepalive = keepalive.client.then(|| Keepalive::new(keepalive, now));
            upstream.keepalive = keepalive.upstream.then(|| Keepalive::new(keepalive, now));
            // An upstream that takes nothing cannot be pinged. It is as dead as one that does not answer.
            let stuck = slow_client::Settings { timeout: keepalive.timeout, min_rate_bytes: 1 };
            upstream.reader = SlowClient::new(keepalive.upstream.then_some(stuck));
        }
        let armed_for = now + NO_DEADLINE;
        Self {
            client,
            upstream,
            core: Core {
                message: MessagePolicy::new(&settings.message),
                settings,
                metrics,
                stats: Stats::default(),
                last_active: now,
                ending: None,
                drain_by: None,
            },
            control,
            endpoint_answers,
            slow_mark: None,
            client_unread_since: None,
            timer: Box::pin(tokio::time::sleep_until(armed_for.into())),
            armed_for,
            started: now,
            listening: false,
        }
    }

    /// Moves what can be moved without waiting. Returns whether there may be more.
    fn transfer(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        let Self { client, upstream, core, endpoint_answers, .. } = self;
        for _ in 0..TURNS_PER_POLL {
            let drained = client.drain(now, cx) | upstream.drain(now, cx);
            let inbound = pump(client, upstream, core, endpoint_answers, now, cx);
            let outbound = pump(upstream, client, core, endpoint_answers, now, cx);
            core.stats.queue_max_bytes = core.stats.queue_max_bytes.max(client.out.len());
            core.note_the_dead(client, upstream, now);
            if !(drained || inbound || outbound) {
                return false;
            }
        }
        true
    }

    /// Lets the policies' clocks run or stand still, by what waits for whom.
    fn update_clocks(&mut self, now: Instant) {
        let flowing = self.client.out.is_empty() && self.upstream.out.is_empty();
        for keepalive in [&mut self.client.keepalive, &mut self.upstream.keepalive].into_iter().flatten() {
            keepalive.set_judged(flowing, now);
        }
        if !self.upstream.out.is_empty() {
            self.client_unread_since.get_or_insert(now);
        } else if let Some(since) = self.client_unread_since.take() {
            self.core.message.on_resumed(now - since);
        }
        if self.client.out.is_empty() {
            self.slow_mark = None;
        }
    }

    /// Asks the policies whose time has come.
    fn run_deadlines(&mut self, now: Instant, cx: &mut Context<'_>) {
        if self.slow_mark.is_none() && self.client.reader.is_slow(now) {
            self.slow_mark = Some(self.core.metrics.mark_slow_client());
        }
        if let Err(slow) = self.client.reader.check(now) {
            self.core.give_up(Cause::SlowClient { taken_bytes: slow.taken_bytes, pending_for: slow.pending_for }, now);
        }
        if let Err(stuck) = self.upstream.reader.check(now) {
            self.core.give_up(Cause::UpstreamSilent(stuck.pending_for), now);
        }
        if self.core.ending.is_some() {
            return;
        }
        if self.client_unread_since.is_none()
            && let Err(stalled) = self.core.message.check_stall(now)
        {
            self.core.end(stalled, now);
        }
        if let Some(limit) = self.core.settings.idle_timeout
            && now - self.core.last_active >= limit
        {
            self.core.end(Cause::IdleTimeout(now - self.core.last_active), now);
        }
        if let Some(silent) = keep_alive(&mut self.client, now, cx) {
            self.core.metrics.pings_unanswered_client.inc();
            self.core.end(Cause::ClientSilent(silent), now);
        }
        if let Some(silent) = keep_alive(&mut self.upstream, now, cx) {
            self.core.metrics.pings_unanswered_upstream.inc();
            if self.endpoint_answers.load(Ordering::Relaxed) {
                self.core.end(Cause::UpstreamSilent(silent), now);
            } else if let Some(keepalive) = &mut self.upstream.keepalive {
                // This endpoint has never answered a ping, in any session: it cannot be judged by them.
                keepalive.forget_ping();
                self.core.stats.upstream_pings_unanswered += 1;
            }
        }
    }

    /// Follows an order from outside.
    fn follow_orders(&mut self, now: Instant) {
        match self.control.order() {
            Order::Run => {}
            Order::Cut => self.core.give_up(Cause::DrainCut, now),
            Order::Drain if self.core.ending.is_none() => {
                let by = *self.core.drain_by.get_or_insert(now + self.core.settings.close_timeout);
                if between_messages(&self.client, &self.upstream) || now >= by {
                    self.core.end(Cause::Drain, now);
                }
            }
            Order::Drain => {}
        }
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let core = &self.core;
        let judged = [self.client.reader.next_deadline(now), self.upstream.reader.next_deadline(now)];
        let policies = match &core.ending {
            Some(ending) => [Some(ending.deadline), None, None, None, None],
            None => [
                self.client.keepalive.as_ref().and_then(Keepalive::next_deadline),
                self.upstream.keepalive.as_ref().and_then(Keepalive::next_deadline),
                core.message.next_deadline().filter(|_| self.client_unread_since.is_none()),
                core.settings.idle_timeout.map(|limit| core.last_active + limit),
                core.drain_by,
            ],
        };
        judged.into_iter().chain(policies).flatten().min().unwrap_or(now + NO_DEADLINE)
    }

    /// Sets the one timer when it must fire earlier than it would, or has fired.
    fn arm(&mut self, now: Instant, cx: &mut Context<'_>) {
        let next = self.next_deadline(now);
        if next < self.armed_for || now >= self.armed_for || self.timer.is_elapsed() {
            self.armed_for = next;
            self.timer.as_mut().reset(next.into());
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        } else if !self.listening {
            let _ = self.timer.as_mut().poll(cx);
        }
    }
}

impl<C: Wire, U: Wire> Future for Session<C, U> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = &mut *self;
        let now = now();
        let was_ending = this.core.ending.is_some();
        let more = this.transfer(now, cx);
        this.update_clocks(now);
        if now >= this.armed_for {
            this.run_deadlines(now, cx);
        }
        // Before the orders are read, so that one which comes behind this wakes us; and again after each, since a wake
        // uses it up.
        if !this.listening || this.control.order() != Order::Run {
            this.control.listen(cx.waker());
        }
        this.follow_orders(now);
        let Self { client, upstream, core, .. } = this;
        let over = core
            .ending
            .as_mut()
            .is_some_and(|ending| ending.advance(client, upstream, core.settings.close_timeout, now, cx).is_ready());
        core.stats.publish(&core.metrics);
        if over {
            let cause = core.ending.as_ref().map_or(Cause::DrainCut, |ending| ending.cause);
            return Poll::Ready(Outcome {
                cause,
                close_sent: client.end.close_sent,
                stats: std::mem::take(&mut core.stats),
                duration: now - this.started,
            });
        }
        this.arm(now, cx);
        this.listening = true;
        // An end that has just begun changes what is read of whom.
        if more || this.core.ending.is_some() != was_ending {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Core {
    /// Begins the end, unless it has begun.
    fn end(&mut self, cause: Cause, now: Instant) {
        let close_timeout = self.settings.close_timeout;
        self.ending.get_or_insert_with(|| Ending::new(cause, close_timeout, now));
    }

    /// Begins the end, or cuts the one that has begun short.
    fn give_up(&mut self, cause: Cause, now: Instant) {
        match &mut self.ending {
            Some(ending) => ending.deadline = now,
            None => self.end(cause, now),
        }
    }

    fn note_the_dead<C, U>(&mut self, client: &Side<C>, upstream: &Side<U>, now: Instant) {
        if client.end.dead {
            self.end(Cause::ClientGone, now);
        } else if upstream.end.dead {
            self.end(Cause::UpstreamGone, now);
        }
    }

    fn originated(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.originated)
    }

    fn direction(&mut self, from: Sender) -> &mut super::stats::Direction {
        match from {
            Sender::Client => &mut self.stats.inbound,
            Sender::Server => &mut self.stats.outbound,
        }
    }

    /// Writes what passed the scan to the other side, and counts it.
    fn pass<S: Wire>(&mut self, from: Sender, to: &mut Side<S>, bytes: &[u8], now: Instant, cx: &mut Context<'_>) {
        if !bytes.is_empty() {
            to.write(bytes, now, cx);
            self.direction(from).on_bytes(bytes.len());
        }
    }

    fn on_header(&mut self, from: Sender, message: &Message, now: Instant) -> Result<(), Cause> {
        self.last_active = now;
        match from {
            Sender::Client => self.message.on_frame(message, now),
            Sender::Server => self.message.on_upstream_frame(message),
        }
    }

    fn on_payload(&mut self, from: Sender, len: usize, now: Instant) -> Result<(), Cause> {
        self.last_active = now;
        match from {
            Sender::Client => self.message.on_payload(len, now),
            Sender::Server => Ok(()),
        }
    }
}

/// Whether neither side is inside a message, as far as it was forwarded.
fn between_messages<A: Wire, B: Wire>(one: &Side<A>, other: &Side<B>) -> bool {
    one.scanner.at_message_boundary() && other.scanner.at_message_boundary()
}

/// Why a scan stopped before a rule was broken.
enum Stop {
    /// The rest of the input is the start of a header or of a control frame.
    NeedMore,
    /// Nothing more of this direction is forwarded.
    Ended,
}

/// What becomes of a control frame.
enum Fate {
    Forward,
    Swallow,
    Close(Option<CloseCode>),
}

/// Reads once from `from`, and writes what may pass to `to`. Returns whether anything was read.
fn pump<A: Wire, B: Wire>(
    from: &mut Side<A>,
    to: &mut Side<B>,
    core: &mut Core,
    endpoint_answers: &AtomicBool,
    now: Instant,
    cx: &mut Context<'_>,
) -> bool {
    if from.end.read_ended {
        return false;
    }
    let discard = from.end.close_received || core.originated();
    if !discard && !to.out.is_empty() {
        return false;
    }
    SCRATCH.with_borrow_mut(|scratch| match from.poll_read(scratch, now, cx) {
        Poll::Pending => false,
        Poll::Ready(Ok(Some(input))) if discard => {
            look_for_close(from, input);
            true
        }
        Poll::Ready(Ok(Some(input))) => {
            forward(from, to, core, endpoint_answers, input, now, cx);
            true
        }
        Poll::Ready(Ok(None)) => {
            from.end.read_ended = true;
            if !from.end.close_received {
                from.bury();
            }
            true
        }
        Poll::Ready(Err(_)) => {
            from.bury();
            true
        }
    })
}

/// Scans `input` and forwards it up to its end, or up to what must not pass.
fn forward<A: Wire, B: Wire>(
    from: &mut Side<A>,
    to: &mut Side<B>,
    core: &mut Core,
    endpoint_answers: &AtomicBool,
    input: &[u8],
    now: Instant,
    cx: &mut Context<'_>,
) {
    // `run..at` passed the scan and is not forwarded yet; `frame_at` is where the frame in progress begins, if here.
    let (mut run, mut at, mut frame_at) = (0, 0, None);
    let mut saw_data = false;
    let mut between_frames = from.scanner.at_frame_boundary();
    let verdict = loop {
        if between_frames && to.pings.due && core.ending.is_none() {
            core.pass(from.role, to, &input[run..at], now, cx);
            to.write_ping(now, cx);
            run = at;
        }
        if between_frames && core.drain_by.is_some() && between_messages(from, to) {
            core.end(Cause::Drain, now);
            break Ok(Stop::Ended);
        }
        match from.scanner.next(&input[at..]) {
            Err(rule) => break Err(blame(from.role, rule)),
            Ok(Step::NeedMore) => break Ok(Stop::NeedMore),
            Ok(Step::Header { header, len, message }) => {
                if let Err(cause) = core.on_header(from.role, &message, now) {
                    break Err(cause);
                }
                (frame_at, saw_data) = (Some(at), true);
                at += len;
                if header.fin && header.payload_bytes == 0 {
                    core.direction(from.role).on_message(message.kind);
                }
            }
            Ok(Step::Payload { len, ends_message }) => {
                if let Err(cause) = core.on_payload(from.role, len, now) {
                    break Err(cause);
                }
                at += len;
                saw_data = true;
                if let Some(kind) = ends_message {
                    core.direction(from.role).on_message(kind);
                }
            }
            Ok(Step::Control { header, header_len }) => {
                let end = at + header_len + header.payload_bytes as usize;
                match judge_control(from, core, endpoint_answers, &header, &input[at + header_len..end], now) {
                    Err(cause) => break Err(cause),
                    Ok(Fate::Forward) => at = end,
                    Ok(Fate::Swallow) => {
                        core.pass(from.role, to, &input[run..at], now, cx);
                        (run, at) = (end, end);
                    }
                    Ok(Fate::Close(code)) => {
                        at = end;
                        from.end.close_received = true;
                        to.end.close_sent = Some(code.unwrap_or(CloseCode::NO_STATUS));
                        let cause = match from.role {
                            Sender::Client => Cause::ClientClosed(code),
                            Sender::Server => Cause::UpstreamClosed(code),
                        };
                        core.end(cause, now);
                        break Ok(Stop::Ended);
                    }
                }
            }
        }
        between_frames = from.scanner.at_frame_boundary();
    };
    // What is in order passes, also when what follows it is not: an echo in flight is not lost.
    let (end, mid_frame) = match verdict {
        Ok(_) => (at, !between_frames),
        Err(_) if between_frames => (at, false),
        // The frame in progress broke a rule: nothing of it passes, unless its beginning has.
        Err(_) => frame_at.map_or((at, true), |frame_at: usize| (frame_at, false)),
    };
    core.pass(from.role, to, &input[run..end], now, cx);
    to.out_mid_frame = mid_frame;
    match verdict {
        Err(cause) => {
            from.end.unreadable = true;
            core.end(cause, now);
        }
        Ok(Stop::Ended) => {}
        Ok(Stop::NeedMore) => {
            from.hold(&input[at..]);
            if from.role == Sender::Client {
                let begun = at < input.len();
                let unfinished = begun || !from.scanner.at_message_boundary();
                core.message.on_scanned(unfinished, saw_data || begun, now);
            }
        }
    }
}

/// Decides what becomes of a whole control frame, whose `payload` is as it came.
fn judge_control<S: Wire>(
    from: &mut Side<S>,
    core: &mut Core,
    endpoint_answers: &AtomicBool,
    header: &FrameHeader,
    payload: &[u8],
    now: Instant,
) -> Result<Fate, Cause> {
    let mut plain = [0; 125];
    let plain = &mut plain[..payload.len()];
    plain.copy_from_slice(payload);
    if let Some(key) = header.mask {
        mask::apply(plain, key, 0);
    }
    let fate = match header.opcode {
        Opcode::Close => Fate::Close(parse_close(plain).map_err(|rule| blame(from.role, rule))?),
        Opcode::Pong if let Some(latest) = from.pings.matches(plain) => {
            if latest {
                on_pong(from, core, endpoint_answers, now);
            }
            return Ok(Fate::Swallow);
        }
        _ => Fate::Forward,
    };
    if from.role == Sender::Client && header.opcode != Opcode::Close {
        core.message.on_control(now)?;
    }
    core.last_active = now;
    core.direction(from.role).on_control(header.opcode);
    Ok(fate)
}

fn on_pong<S: Wire>(from: &mut Side<S>, core: &mut Core, endpoint_answers: &AtomicBool, now: Instant) {
    let Some(rtt) = from.keepalive.as_mut().and_then(|keepalive| keepalive.on_pong(now)) else { return };
    if events::debug_enabled() {
        let side = if from.role == Sender::Client { "client" } else { "upstream" };
        Event::debug("ping")
            .field("rule", core.metrics.name())
            .field("side", side)
            .field("rtt_ms", rtt.as_secs_f64() * 1e3)
            .emit();
    }
    match from.role {
        Sender::Client => {
            core.stats.ping_rtt = Some(rtt);
            core.metrics.ping_rtt_client.observe(rtt.as_secs_f64());
        }
        Sender::Server => {
            endpoint_answers.store(true, Ordering::Relaxed);
            core.metrics.ping_rtt_upstream.observe(rtt.as_secs_f64());
        }
    }
}

/// After the end was originated a side's bytes are dropped; only its Close frame still means something.
fn look_for_close<S: Wire>(from: &mut Side<S>, input: &[u8]) {
    let mut at = 0;
    while !from.end.close_received && !from.end.unreadable {
        match from.scanner.next(&input[at..]) {
            Err(_) => from.end.unreadable = true,
            Ok(Step::NeedMore) => {
                from.hold(&input[at..]);
                return;
            }
            Ok(Step::Header { len, .. } | Step::Payload { len, .. }) => at += len,
            Ok(Step::Control { header, header_len }) => {
                at += header_len + header.payload_bytes as usize;
                from.end.close_received = header.opcode == Opcode::Close;
            }
        }
    }
}

/// Asks a side's keepalive; returns for how long the side has been silent when it is dead.
fn keep_alive<S: Wire>(side: &mut Side<S>, now: Instant, cx: &mut Context<'_>) -> Option<Duration> {
    let keepalive = side.keepalive.as_mut()?;
    let snapshot = if keepalive.wants_snapshot(now) { side.io.tcp_snapshot() } else { None };
    match keepalive.poll(now, snapshot) {
        KeepaliveStep::Nothing => None,
        KeepaliveStep::SendPing => {
            side.pings.due = true;
            if !side.out_mid_frame {
                side.write_ping(now, cx);
            }
            None
        }
        KeepaliveStep::Expired(silent) => Some(silent),
    }
}

fn blame(role: Sender, rule: ProtocolError) -> Cause {
    match (role, rule) {
        (Sender::Client, ProtocolError::InvalidUtf8) => Cause::ClientInvalidUtf8,
        (Sender::Client, rule) => Cause::ClientProtocol(rule),
        (Sender::Server, ProtocolError::InvalidUtf8) => Cause::UpstreamInvalidUtf8,
        (Sender::Server, rule) => Cause::UpstreamProtocol(rule),
    }
}

/// Tokio's clock, so that a test can pass the time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
