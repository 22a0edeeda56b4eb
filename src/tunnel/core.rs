//! What both directions of a session share: its policies for messages, its counts, and how its end begins.

use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use super::closing::Ending;
use super::recode::FrameBuffer;
use super::side::Side;
use super::stats::{Direction, Stats};
use super::work::Work;
use super::{Settings, Verdict, Wire};
use crate::cause::Cause;
use crate::events::Event;
use crate::metrics::RuleMetrics;
use crate::policy::message::MessagePolicy;
use crate::ws::header::Sender;
use crate::ws::scan::{Inflated, Message};

/// What both directions of a session share.
pub(super) struct Core {
    pub(super) settings: Arc<Settings>,
    pub(super) metrics: Arc<RuleMetrics>,
    pub(super) message: MessagePolicy,
    pub(super) stats: Stats,
    /// When a peer last sent something of its own.
    pub(super) last_active: Instant,
    pub(super) ending: Option<Ending>,
    /// An end that was asked for from outside waits for the end of the messages in progress, until then.
    pub(super) ordered: Option<(Cause, Instant)>,
    /// Policies that would have closed the session, and have said so.
    pub(super) reported: Vec<&'static str>,
    /// What was done since the session was woken.
    pub(super) work: Work,
}

impl Core {
    /// Begins the end, unless it has begun.
    pub(super) fn end(&mut self, cause: Cause, now: Instant) {
        let close_timeout = self.settings.close_timeout;
        self.ending.get_or_insert_with(|| Ending::new(cause, close_timeout, now));
    }

    /// Begins the end, or cuts the one that has begun short.
    pub(super) fn give_up(&mut self, cause: Cause, now: Instant) {
        match &mut self.ending {
            Some(ending) => ending.deadline = now,
            None => self.end(cause, now),
        }
    }

    /// Begins the end where a side is gone, or the upstream's stream knows of a reason.
    pub(super) fn note_the_dead<C, U: Wire>(&mut self, client: &Side<C>, upstream: &Side<U>, now: Instant) {
        match upstream.io.verdict() {
            None => {}
            Some(Verdict::Overrun) => self.end(Cause::Overrun, now),
            Some(Verdict::MessageTooBig { size_bytes, limit_bytes }) => {
                self.end(Cause::MessageTooBig { size_bytes, limit_bytes }, now);
            }
        }
        if client.end.dead {
            self.end(Cause::ClientGone, now);
        } else if upstream.end.dead {
            self.end(Cause::UpstreamGone, now);
        }
    }

    pub(super) fn originated(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.originated)
    }

    pub(super) fn direction(&mut self, from: Sender) -> &mut Direction {
        match from {
            Sender::Client => &mut self.stats.inbound,
            Sender::Server => &mut self.stats.outbound,
        }
    }

    /// Writes what passed the scan to the other side, and counts it.
    pub(super) fn pass<S: Wire>(
        &mut self,
        from: Sender,
        to: &mut Side<S>,
        bytes: &[u8],
        now: Instant,
        cx: &mut Context<'_>,
    ) {
        if !bytes.is_empty() {
            to.write(bytes, now, cx);
            self.direction(from).on_bytes(bytes.len());
        }
    }

    /// Some bytes were read that become others. What is counted is what the client sent, or is sent.
    pub(super) fn on_recoded(&mut self, from: Sender, read_bytes: usize) {
        if from == Sender::Client {
            self.direction(from).on_bytes(read_bytes);
        }
    }

    /// Makes a frame of what became of the message of `from` that is recoded, and with `last` ends it.
    pub(super) fn recode<A: Wire>(&mut self, from: &mut Side<A>, frame: &mut FrameBuffer, last: bool) {
        let Some(recode) = from.recode.as_mut().filter(|recode| recode.is_active()) else { return };
        if from.role == Sender::Server {
            self.work.on_deflated(frame.plain_bytes());
        }
        let made = recode.frame(last, frame);
        if from.role == Sender::Server {
            self.direction(from.role).on_bytes(made);
        }
    }

    /// Writes the frames that were recoded, and `bytes` that passed the scan behind them.
    pub(super) fn pass_recoded<S: Wire>(
        &mut self,
        from: Sender,
        to: &mut Side<S>,
        frame: &mut FrameBuffer,
        bytes: &[u8],
        now: Instant,
        cx: &mut Context<'_>,
    ) {
        let ready = frame.ready();
        to.write(ready, now, cx);
        ready.clear();
        self.pass(from, to, bytes, now, cx);
    }

    pub(super) fn on_header(&mut self, from: Sender, message: &Message, now: Instant) -> Result<(), Cause> {
        self.last_active = now;
        self.work.on_frame();
        let verdict = match from {
            Sender::Client => self.message.on_frame(message, now),
            Sender::Server => self.message.on_upstream_frame(message),
        };
        self.judge(verdict)
    }

    pub(super) fn on_payload(
        &mut self,
        from: Sender,
        len: usize,
        inflated: Option<&Inflated>,
        now: Instant,
    ) -> Result<(), Cause> {
        self.last_active = now;
        self.work.on_bytes(len);
        if from == Sender::Server {
            return Ok(());
        }
        let mut plain = len;
        if let Some(inflated) = inflated {
            self.work.on_inflated(len, inflated);
            plain = plain.max(usize::try_from(inflated.bytes).unwrap_or(usize::MAX));
            let verdict = self.message.on_inflated(len, inflated, now);
            self.judge(verdict)?;
        }
        let verdict = self.message.on_payload(plain, now);
        self.judge(verdict)
    }

    /// A data message passed whole.
    pub(super) fn on_message(&mut self, from: Sender, message: &Message) -> bool {
        let sampled = self.direction(from).on_message(message);
        if sampled {
            let sizes = match from {
                Sender::Client => &self.metrics.inbound.message_size,
                Sender::Server => &self.metrics.outbound.message_size,
            };
            sizes.observe(message.plain_bytes() as f64);
        }
        sampled
    }

    /// Lets a policy close the session, or only say that it would.
    pub(super) fn judge(&mut self, verdict: Result<(), Cause>) -> Result<(), Cause> {
        let Err(cause) = verdict else { return Ok(()) };
        let Some(policy) = cause.row().policy.filter(|_| self.settings.report_only) else { return Err(cause) };
        self.metrics.would_refuse(policy);
        if !self.reported.contains(&policy) {
            self.reported.push(policy);
            Event::new("would_refuse")
                .field("rule", self.metrics.name())
                .field("policy", policy)
                .field("cause", cause.row().name)
                .field("detail", cause.to_string())
                .emit();
        }
        Ok(())
    }
}
