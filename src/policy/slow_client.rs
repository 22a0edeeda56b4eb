//! Slow readers: when a client that does not take its output is given up.

use std::time::Duration;

/// The `slow_client` settings of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A client is slow when output was pending for so long without a pause...
    pub timeout: Duration,
    /// ...and less than this was taken meanwhile, in bytes a second.
    pub min_rate_bytes: u64,
}
