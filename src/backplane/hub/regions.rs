//! The regions whose logs a hub reads, and what is known of their engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::backplane::engine::Engine;
use crate::backplane::position::Region;
use crate::backplane::sink::Sink;

/// A place in one region stands for a time in another, less this: by so much clocks may differ that were measured, and so
/// long an entry may take to come here, or an outage to be noticed.
const MARGIN_MS: u64 = 5_000;

/// A region.
#[derive(Debug)]
pub(super) struct OfHub {
    pub(super) name: Region,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) sink: Sink,
    pub(super) clock: Arc<Clock>,
}

/// What is known of a region's engine.
#[derive(Debug)]
pub(super) struct Clock {
    reachable: AtomicBool,
    /// By how many milliseconds its clock is ahead of this node's.
    ahead_ms: AtomicI64,
    /// From when to when it could not be reached the last time, by this node's clock.
    outage: Mutex<Option<(u64, u64)>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { reachable: AtomicBool::new(true), ahead_ms: AtomicI64::new(0), outage: Mutex::new(None) }
    }
}

impl Clock {
    pub(super) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether that is news.
    pub(super) fn set_reachable(&self, reachable: bool, now_ms: u64) -> bool {
        let is_news = self.reachable.swap(reachable, Ordering::Relaxed) != reachable;
        if is_news {
            let mut outage = self.outage.lock();
            let from = outage.filter(|_| reachable).map_or(now_ms, |(from, _)| from);
            *outage = Some((from, if reachable { now_ms } else { u64::MAX }));
        }
        is_news
    }

    /// Since when, by the engine's clock, a client may lack what was stored here that had everything else up to a time of
    /// this node's: a little before it, and before an outage that was not over then.
    pub(super) fn since(&self, node_ms: u64) -> u64 {
        let since = node_ms.saturating_sub(MARGIN_MS);
        let since = match *self.outage.lock() {
            Some((from, to)) if to >= since => since.min(from.saturating_sub(MARGIN_MS)),
            _ => since,
        };
        self.to_engine(since)
    }

    pub(super) fn set_ahead(&self, ahead_ms: i64) {
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }

    /// A time of the engine's by this node's clock, in milliseconds since 1970.
    pub(super) fn to_node(&self, engine_ms: u64) -> u64 {
        engine_ms.saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed).saturating_neg())
    }

    /// The other way round.
    pub(super) fn to_engine(&self, node_ms: u64) -> u64 {
        node_ms.saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }
}
