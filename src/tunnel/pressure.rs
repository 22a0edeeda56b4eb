//! Whether the process is over `limits.memory`: one flag, which the sampler of the edge sets and everything reads that
//! could grow.
//!
//! A static, since what it says is of the process: two gateways in one process share its memory.

use std::sync::atomic::{AtomicBool, Ordering};

static OVER: AtomicBool = AtomicBool::new(false);

/// Sets whether the process is over its limit.
pub fn set_over(over: bool) {
    OVER.store(over, Ordering::Relaxed);
}

/// Whether the process is over its limit. A load of one byte, never behind by more than a sample.
pub fn is_over() -> bool {
    OVER.load(Ordering::Relaxed)
}
