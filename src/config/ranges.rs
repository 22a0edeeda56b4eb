//! The ranges of values that no policy has: those of policies stand in their own files.
//!
//! The doc comments of `raw.rs` and `raw_rule.rs` repeat them for the reader of the schema.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::Count;
use crate::policy::range::{HOUR, MINUTE, millis};

pub const HEAD_TIMEOUT: RangeInclusive<Duration> = millis(100, 10 * MINUTE);
pub const HEAD_BYTES: RangeInclusive<u64> = 1024..=256 * 1024;
/// The HTTP parser below us has room for 256.
pub const HEAD_HEADERS: RangeInclusive<u64> = 1..=256;
pub const CONNECTIONS: RangeInclusive<u64> = 1..=10_000_000;
pub const CONNECT_TIMEOUT: RangeInclusive<Duration> = millis(10, 5 * MINUTE);
pub const UPSTREAM_TIMEOUT: RangeInclusive<Duration> = millis(100, 10 * MINUTE);
pub const CLOSE_TIMEOUT: RangeInclusive<Duration> = millis(100, 5 * MINUTE);
pub const IDLE_TIMEOUT: RangeInclusive<Duration> = millis(100, 30 * 24 * HOUR);
pub const RESPONSE_TIMEOUT: RangeInclusive<Duration> = millis(100, HOUR);
pub const HTTP_IDLE_TIMEOUT: RangeInclusive<Duration> = millis(100, 24 * HOUR);
pub const RESPOND_STATUS: RangeInclusive<u64> = 200..=599;
pub const DEDUPE_WINDOW: RangeInclusive<Duration> = millis(1000, 24 * HOUR);
pub const HISTORY_MESSAGES: RangeInclusive<u64> = 1..=100_000;
pub const HISTORY_AGE: RangeInclusive<Duration> = millis(1000, 24 * HOUR);
pub const HISTORY_BYTES: RangeInclusive<u64> = 1024..=1 << 30;
pub const NATS_REPLICAS: RangeInclusive<u64> = 1..=5;
pub const CONFLATE_INTERVAL: RangeInclusive<Duration> = millis(10, 10_000);
pub const QUEUE_MESSAGES: RangeInclusive<u64> = 1..=100_000;
pub const QUEUE_BYTES: RangeInclusive<u64> = 1024..=1 << 30;
pub const SHUTDOWN_DELAY: RangeInclusive<Duration> = millis(0, HOUR);
pub const SHUTDOWN_DRAIN: RangeInclusive<Duration> = millis(0, 24 * HOUR);

/// A number that was checked, as a platform's size.
pub fn to_usize(value: Count) -> usize {
    usize::try_from(value.0).unwrap_or(usize::MAX)
}
