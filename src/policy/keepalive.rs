//! Liveness: when to ping a side, and when to give it up.

use std::time::Duration;

/// The `keepalive` settings of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A side is pinged when for so long nothing was written to it or nothing was read from it.
    pub interval: Duration,
    /// A side is dead so long after the last sign of life that followed our ping.
    pub timeout: Duration,
    /// Whether the client is pinged.
    pub client: bool,
    /// Whether the upstream is pinged.
    pub upstream: bool,
}
