//! The regions whose logs a hub reads, and what is known of their engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::backplane::engine::Engine;
use crate::backplane::position::Region;
use crate::backplane::sink::Sink;

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
}

impl Default for Clock {
    fn default() -> Self {
        Self { reachable: AtomicBool::new(true), ahead_ms: AtomicI64::new(0) }
    }
}

impl Clock {
    pub(super) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Whether that is news.
    pub(super) fn set_reachable(&self, reachable: bool) -> bool {
        self.reachable.swap(reachable, Ordering::Relaxed) != reachable
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
