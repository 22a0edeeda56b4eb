//! What a message may be: its size, its fragments, its rate.

use std::time::Duration;

/// A rate with its burst: `rate` a second on average, `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Items a second.
    pub per_second: u64,
    /// Items at once.
    pub burst: u64,
}

/// The `message` settings of a rule. `None` is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The largest message of a client, in bytes over all its fragments: 1009.
    pub max_size_bytes: Option<u64>,
    /// The most fragments of a client's message: 1008.
    pub max_fragments: Option<u32>,
    /// Data messages of a client: 1008.
    pub messages: Option<Rate>,
    /// Payload bytes of a client's data frames: 1008.
    pub bytes: Option<Rate>,
    /// Pings and pongs of a client, ours not counted: 1008.
    pub control: Option<Rate>,
    /// No byte of an unfinished message of a client for so long: 1008.
    pub stall_timeout: Option<Duration>,
    /// Whether text is checked to be UTF-8, in both directions: 1007.
    pub utf8: bool,
    /// The largest message of a backend, in bytes on the wire over all its fragments: 1009.
    pub upstream_max_size_bytes: Option<u64>,
}
