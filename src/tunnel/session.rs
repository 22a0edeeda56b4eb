//! The one loop of a session: frames from each side to the other, pings, and every policy that looks at them.
//!
//! An idle session owns no buffer. Bytes are read into a buffer of the thread, scanned there, and written to the other
//! side from there; only what its socket does not take is kept, and then no more is read for it. So a frame in flight
//! costs one read, one header parse and one write, and a queue is never longer than one read.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::time::Sleep;

use super::core::Core;
use super::flow::{between_messages, pump};
use super::registry::{Control, Order};
use super::side::{Side, SideEnd};
use super::stats::Stats;
use super::work::Work;
use super::{Backlog, Compression, Settings, Wire};
use crate::cause::Cause;
use crate::metrics::{RuleMetrics, SlowClientMark};
use crate::policy::keepalive::{Keepalive, Step as KeepaliveStep};
use crate::policy::message::MessagePolicy;
use crate::policy::slow_client::{self, SlowClient};
use crate::ws::close::CloseCode;
use crate::ws::header::Sender;

/// When no policy has a deadline the timer is set this far ahead.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// What a session begins with.
pub struct Opening<C, U> {
    /// The client's stream, from which nothing was read behind the head: that is refused before the 101.
    pub client: C,
    /// The upstream's stream.
    pub upstream: U,
    /// What was read of the upstream behind the head of its 101.
    pub upstream_preread: Vec<u8>,
    /// What the handshake has negotiated.
    pub compression: Compression,
    /// The policies of the rule.
    pub settings: Arc<Settings>,
    /// The metrics of the rule.
    pub metrics: Arc<RuleMetrics>,
    /// Where the session hears orders from outside.
    pub control: Arc<Control>,
    /// Whether the endpoint has ever answered a ping of ours; shared by its sessions.
    pub endpoint_answers: Arc<AtomicBool>,
}

impl<C, U> Opening<C, U> {
    /// The same with this stream in the place of the upstream's, behind what was read of that.
    pub fn with_upstream<V>(self, upstream: V) -> Opening<C, V> {
        let Self { client, upstream_preread, compression, settings, metrics, control, endpoint_answers, .. } = self;
        Opening { client, upstream, upstream_preread, compression, settings, metrics, control, endpoint_answers }
    }

    /// The same with another stream in the place of the upstream's, which is given what was read of that.
    pub fn map_upstream<V>(self, make: impl FnOnce(U, Vec<u8>) -> V) -> Opening<C, V> {
        let Self { client, upstream, upstream_preread, compression, settings, metrics, control, endpoint_answers } =
            self;
        let upstream = make(upstream, upstream_preread);
        Opening {
            client,
            upstream,
            upstream_preread: Vec::new(),
            compression,
            settings,
            metrics,
            control,
            endpoint_answers,
        }
    }
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
    queue_mark: QueueMark,
    /// What waits for the client in front of the session.
    backlog: Option<Arc<dyn Backlog>>,
    /// Since when the client is not read, because the upstream takes no more.
    client_unread_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    armed_for: Instant,
    started: Instant,
    /// Whether it has been polled before: its timer and its orders wake it.
    listening: bool,
}

impl<C: Wire, U: Wire> Session<C, U> {
    /// Opens the tunnel.
    pub fn new(opening: Opening<C, U>) -> Self {
        let Opening { client, upstream, settings, metrics, control, endpoint_answers, .. } = opening;
        let now = now();
        let check_text = settings.message.utf8;
        let mut client = Side::new(client, Vec::new(), Sender::Client, check_text, opening.compression);
        let mut upstream =
            Side::new(upstream, opening.upstream_preread, Sender::Server, check_text, opening.compression);
        client.reader = SlowClient::new(settings.slow_client.clone());
        if let Some(keepalive) = &settings.keepalive {
            client.keepalive = keepalive.client.then(|| Keepalive::new(keepalive, now));
            upstream.keepalive = keepalive.upstream.then(|| Keepalive::new(keepalive, now));
            // An upstream that takes nothing cannot be pinged. It is as dead as one that does not answer.
            let stuck = slow_client::Settings { timeout: keepalive.timeout, min_rate_bytes: 1 };
            upstream.reader = SlowClient::new(keepalive.upstream.then_some(stuck));
        }
        let armed_for = now + NO_DEADLINE;
        control.lend_sockets([client.io.socket(), upstream.io.socket()]);
        let backlog = upstream.io.backlog();
        control.lend_backlog(backlog.clone());
        let queue_mark = QueueMark { queued: metrics.queued_bytes.clone(), marked: [0, 0] };
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
                ordered: None,
                reported: Vec::new(),
                work: Work::default(),
            },
            control,
            endpoint_answers,
            slow_mark: None,
            queue_mark,
            backlog,
            client_unread_since: None,
            timer: Box::pin(tokio::time::sleep_until(armed_for.into())),
            armed_for,
            started: now,
            listening: false,
        }
    }

    /// Moves what can be moved without waiting, as far as its work goes. Returns whether there may be more.
    fn transfer(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        let Self { client, upstream, core, endpoint_answers, .. } = self;
        core.work.start_poll();
        while !core.work.poll_is_used_up() {
            let drained = client.drain(now, cx) | upstream.drain(now, cx);
            let inbound = pump(client, upstream, core, endpoint_answers, now, cx);
            let outbound = pump(upstream, client, core, endpoint_answers, now, cx);
            core.stats.queue_max_bytes = core.stats.queue_max_bytes.max(client.out.len());
            measure_latency(client, core);
            measure_latency(upstream, core);
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
            self.core.message.on_resumed(now - since, now);
        }
        if self.client.out.is_empty() && self.behind_since().is_none() {
            self.slow_mark = None;
        }
        self.queue_mark.set([self.client.out.len(), self.upstream.out.len()], &self.control);
    }

    /// Asks the policies whose time has come.
    fn run_deadlines(&mut self, now: Instant, cx: &mut Context<'_>) {
        let is_behind = self.behind_since().is_some_and(|since| now >= since + slow_client::SLOW_AFTER);
        if self.slow_mark.is_none() && (self.client.reader.is_slow(now) || is_behind) {
            self.slow_mark = Some(self.core.metrics.mark_slow_client());
        }
        if let Err(slow) = self.client.reader.check(now) {
            let cause = Cause::SlowClient { taken_bytes: slow.taken_bytes, pending_for: slow.pending_for };
            match self.core.judge(Err(cause)) {
                Err(cause) => self.core.give_up(cause, now),
                Ok(()) => self.client.reader.restart(now),
            }
        }
        if let Err(stuck) = self.upstream.reader.check(now) {
            self.core.give_up(Cause::UpstreamSilent(stuck.pending_for), now);
        }
        if self.core.ending.is_some() {
            return;
        }
        if self.client_unread_since.is_none()
            && let Err(late) = self.core.message.check_clocks(now)
        {
            match self.core.judge(Err(late)) {
                Err(late) => self.core.end(late, now),
                Ok(()) => self.core.message.excuse(&late, now),
            }
        }
        if let Some(limit) = self.core.settings.idle_timeout
            && now - self.core.last_active >= limit
        {
            let idle = Cause::IdleTimeout(now - self.core.last_active);
            match self.core.judge(Err(idle)) {
                Err(idle) => self.core.end(idle, now),
                Ok(()) => self.core.last_active = now,
            }
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
    fn follow_orders(&mut self, now: Instant, cx: &mut Context<'_>) {
        let cause = match self.control.order() {
            Order::Run => return,
            Order::Cut => return self.core.give_up(Cause::DrainCut, now),
            Order::Drain => Cause::Drain,
            Order::Close(code) => Cause::Operator(code),
        };
        if self.core.ending.is_none() {
            let by = now + self.core.settings.close_timeout;
            let (_, by) = *self.core.ordered.get_or_insert((cause, by));
            let between = between_messages(&self.client, &self.upstream);
            if between
                && matches!(cause, Cause::Drain)
                && let Some(frames) = self.upstream.io.farewell()
            {
                self.client.write(&frames, now, cx);
            }
            if between || now >= by {
                self.core.end(cause, now);
            }
        }
    }

    /// Since when there is more for the client than may wait for it.
    fn behind_since(&self) -> Option<Instant> {
        self.backlog.as_ref().and_then(|backlog| backlog.depth().behind_since)
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        let core = &self.core;
        let slow = self.behind_since().map(|since| since + slow_client::SLOW_AFTER).filter(|at| *at > now);
        let judged = [self.client.reader.next_deadline(now), self.upstream.reader.next_deadline(now)];
        let policies = match &core.ending {
            Some(ending) => {
                let [client, upstream] = [&self.client.end, &self.upstream.end].map(SideEnd::next_discard);
                [Some(ending.deadline), client, upstream, None, None]
            }
            None => [
                self.client.keepalive.as_ref().and_then(Keepalive::next_deadline),
                self.upstream.keepalive.as_ref().and_then(Keepalive::next_deadline),
                core.message.next_deadline().filter(|_| self.client_unread_since.is_none()),
                core.settings.idle_timeout.map(|limit| core.last_active + limit),
                core.ordered.map(|(_, by)| by),
            ],
        };
        judged.into_iter().chain(policies).chain([slow]).flatten().min().unwrap_or(now + NO_DEADLINE)
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
        this.follow_orders(now, cx);
        let Self { client, upstream, core, .. } = this;
        let over = core
            .ending
            .as_mut()
            .is_some_and(|ending| ending.advance(client, upstream, core.settings.close_timeout, now, cx).is_ready());
        core.stats.publish(&core.metrics, &this.control.counts);
        if over {
            this.control.take_sockets(&core.metrics);
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
            yield_core(cx);
        }
        Poll::Pending
    }
}

/// Observes how long a message took from being read to being written, when its side's socket has taken it.
fn measure_latency<S>(side: &mut Side<S>, core: &Core) {
    if side.out.is_empty()
        && let Some(since) = side.late_since.take()
    {
        core.metrics.message_latency_tunnel.observe((now() - since).as_secs_f64());
    }
}

/// This session's part of `sluicegate_queued_bytes`, given back when it is dropped.
struct QueueMark {
    queued: IntGauge,
    marked: [usize; 2],
}

impl QueueMark {
    fn set(&mut self, pending: [usize; 2], control: &Control) {
        if pending != self.marked {
            let sum = |bytes: [usize; 2]| (bytes[0] + bytes[1]) as i64;
            self.queued.add(sum(pending) - sum(self.marked));
            self.marked = pending;
            for (shown, pending) in control.pending_bytes.iter().zip(pending) {
                shown.store(pending as u64, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for QueueMark {
    fn drop(&mut self) {
        self.queued.sub((self.marked[0] + self.marked[1]) as i64);
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

/// Asks to be polled again when every session that is ready now, or that the kernel says is, had its turn.
///
/// A task that wakes itself goes to the end of its worker's queue, but the kernel is asked for ready sockets only once in
/// 61 polls of the worker while that queue is not empty. A task that yields in this way is woken behind that question.
fn yield_core(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// Tokio's clock, so that a test can pass the time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
