//! What a session counts: for its log line, and for the metrics while it lives.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::registry::Counts;
use crate::metrics::{DirectionMetrics, RuleMetrics};
use crate::ws::header::Opcode;
use crate::ws::scan::{Message, MessageType};

/// Of so many messages one is measured: its size, and how long it took from read to written. The first one is.
const SAMPLE_EVERY: u64 = 16;

/// The counts of one session.
#[derive(Debug, Default)]
pub struct Stats {
    /// From the client to the upstream.
    pub inbound: Direction,
    /// From the upstream to the client.
    pub outbound: Direction,
    /// The last round trip of a ping of ours to the client.
    pub ping_rtt: Option<Duration>,
    /// Pings of ours that an endpoint did not answer which has never answered one.
    pub upstream_pings_unanswered: u64,
    /// The most that was pending to the client at once, in bytes.
    pub queue_max_bytes: usize,
}

/// The counts of one direction.
#[derive(Debug, Default)]
pub struct Direction {
    /// Data messages that were forwarded whole.
    pub messages: u64,
    /// Bytes of frames that were forwarded, headers included.
    pub bytes: u64,
    fresh: Fresh,
}

/// What has been counted since the metrics were last told.
#[derive(Debug, Default)]
struct Fresh {
    any: bool,
    text: u32,
    binary: u32,
    ping: u32,
    pong: u32,
    close: u32,
    bytes: u64,
}

impl Direction {
    /// A data message was forwarded whole. Returns whether it is one of those that are looked at closely.
    pub fn on_message(&mut self, message: &Message) -> bool {
        let sampled = self.messages.is_multiple_of(SAMPLE_EVERY);
        self.messages += 1;
        self.fresh.any = true;
        match message.kind {
            MessageType::Text => self.fresh.text += 1,
            MessageType::Binary => self.fresh.binary += 1,
        }
        sampled
    }

    /// A control frame of a peer's own was forwarded.
    pub fn on_control(&mut self, opcode: Opcode) {
        self.fresh.any = true;
        match opcode {
            Opcode::Ping => self.fresh.ping += 1,
            Opcode::Pong => self.fresh.pong += 1,
            Opcode::Close => self.fresh.close += 1,
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {}
        }
    }

    /// Bytes were forwarded.
    pub fn on_bytes(&mut self, len: usize) {
        self.bytes += len as u64;
        self.fresh.any = true;
        self.fresh.bytes += len as u64;
    }

    fn publish(&mut self, metrics: &DirectionMetrics) -> bool {
        if !self.fresh.any {
            return false;
        }
        let fresh = std::mem::take(&mut self.fresh);
        for (counter, count) in [
            (&metrics.text, fresh.text),
            (&metrics.binary, fresh.binary),
            (&metrics.ping, fresh.ping),
            (&metrics.pong, fresh.pong),
            (&metrics.close, fresh.close),
        ] {
            if count > 0 {
                counter.inc_by(u64::from(count));
            }
        }
        metrics.bytes.inc_by(fresh.bytes);
        true
    }
}

impl Stats {
    /// Tells the metrics what is new: once each time the session ran, not once for each message.
    pub fn publish(&mut self, metrics: &RuleMetrics, counts: &Counts) {
        if self.inbound.publish(&metrics.inbound) {
            counts.messages_in.store(self.inbound.messages, Ordering::Relaxed);
            counts.bytes_in.store(self.inbound.bytes, Ordering::Relaxed);
        }
        if self.outbound.publish(&metrics.outbound) {
            counts.messages_out.store(self.outbound.messages, Ordering::Relaxed);
            counts.bytes_out.store(self.outbound.bytes, Ordering::Relaxed);
        }
    }
}
