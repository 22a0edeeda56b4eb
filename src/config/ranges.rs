//! The ranges of values, and what is said of a value outside.
//!
//! The doc comments of `raw.rs` and `raw_rule.rs` repeat them for the reader of the schema.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{ByteRate, Count, Rate, Size, Span};
use crate::policy::{Fault, keepalive, message, slow_client};

const fn ms(from: u64, to: u64) -> RangeInclusive<Duration> {
    Duration::from_millis(from)..=Duration::from_millis(to)
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

pub const HEAD_TIMEOUT: RangeInclusive<Duration> = ms(100, 10 * MINUTE);
pub const HEAD_BYTES: RangeInclusive<u64> = 1024..=256 * 1024;
/// The HTTP parser below us has room for 256.
pub const HEAD_HEADERS: RangeInclusive<u64> = 1..=256;
pub const CONNECTIONS: RangeInclusive<u64> = 1..=10_000_000;
pub const CONNECT_TIMEOUT: RangeInclusive<Duration> = ms(10, 5 * MINUTE);
pub const UPSTREAM_TIMEOUT: RangeInclusive<Duration> = ms(100, 10 * MINUTE);
pub const CLOSE_TIMEOUT: RangeInclusive<Duration> = ms(100, 5 * MINUTE);
pub const IDLE_TIMEOUT: RangeInclusive<Duration> = ms(100, 30 * 24 * HOUR);
pub const SHUTDOWN_DELAY: RangeInclusive<Duration> = ms(0, HOUR);
pub const SHUTDOWN_DRAIN: RangeInclusive<Duration> = ms(0, 24 * HOUR);
const KEEPALIVE_INTERVAL: RangeInclusive<Duration> = ms(SECOND, HOUR);
const KEEPALIVE_TIMEOUT: RangeInclusive<Duration> = ms(SECOND, 10 * MINUTE);
const SLOW_CLIENT_TIMEOUT: RangeInclusive<Duration> = ms(SECOND, HOUR);
const STALL_TIMEOUT: RangeInclusive<Duration> = ms(100, HOUR);
const MESSAGE_SIZE: RangeInclusive<u64> = 1..=1 << 40;
const BYTE_RATE: RangeInclusive<u64> = 1..=1 << 40;
const FRAGMENTS: RangeInclusive<u64> = 1..=1_000_000;
const PER_SECOND: RangeInclusive<u64> = 1..=1_000_000;

/// The fault of a duration outside its range.
pub fn span(key: &str, value: Duration, range: &RangeInclusive<Duration>) -> Option<Fault> {
    let shown = |value: &Duration| Span(*value);
    outside(key, &value, range, "a duration", shown)
}

/// The fault of a size outside its range.
pub fn size(key: &str, value: u64, range: &RangeInclusive<u64>) -> Option<Fault> {
    outside(key, &value, range, "a size", |value| Size(*value))
}

/// The fault of a number outside its range.
pub fn count(key: &str, value: u64, range: &RangeInclusive<u64>) -> Option<Fault> {
    if range.contains(&value) {
        return None;
    }
    Some(Fault::new(key, value.to_string(), format!("a number from {} to {}", range.start(), range.end())))
}

/// The faults of a rate and its burst.
pub fn rate(rate_key: &str, burst_key: &str, value: message::Rate) -> Vec<Fault> {
    let per_second = |count: &u64| Rate { count: *count, seconds: 1 };
    let rate = outside(rate_key, &value.per_second, &PER_SECOND, "a rate", per_second);
    rate.into_iter().chain(burst(burst_key, value.burst)).collect()
}

/// The fault of a burst.
pub fn burst(key: &str, value: u64) -> Option<Fault> {
    count(key, value, &PER_SECOND)
}

/// The faults of `keepalive`.
pub fn keepalive(settings: &keepalive::Settings) -> Vec<Fault> {
    let faults = [
        span("interval", settings.interval, &KEEPALIVE_INTERVAL),
        span("timeout", settings.timeout, &KEEPALIVE_TIMEOUT),
    ];
    faults.into_iter().flatten().map(|fault| or_off(fault, "keepalive")).collect()
}

/// The faults of `slow_client`.
pub fn slow_client(settings: &slow_client::Settings) -> Vec<Fault> {
    let faults =
        [span("timeout", settings.timeout, &SLOW_CLIENT_TIMEOUT), byte_rate("min_rate", settings.min_rate_bytes)];
    faults.into_iter().flatten().map(|fault| or_off(fault, "slow_client")).collect()
}

/// The faults of `message`.
pub fn message(settings: &message::Settings) -> Vec<Fault> {
    let mut faults: Vec<Fault> = [
        settings.max_size_bytes.and_then(|bytes| size("max_size", bytes, &MESSAGE_SIZE)),
        settings.max_fragments.and_then(|fragments| count("max_fragments", fragments.into(), &FRAGMENTS)),
        settings.bytes.and_then(|bytes| byte_rate("rate.bytes", bytes.per_second)),
        settings.stall_timeout.and_then(|timeout| span("stall_timeout", timeout, &STALL_TIMEOUT)),
        settings.upstream_max_size_bytes.and_then(|bytes| size("upstream_max_size", bytes, &MESSAGE_SIZE)),
    ]
    .into_iter()
    .flatten()
    .collect();
    faults.extend(settings.messages.iter().flat_map(|value| rate("rate.messages", "rate.burst", *value)));
    faults.extend(settings.control.iter().flat_map(|value| rate("control_rate.frames", "control_rate.burst", *value)));
    faults
}

/// A rate as policies take it: whole things a second.
///
/// # Errors
/// The fault of a rate that is no whole number a second, such as `100/m`.
pub fn per_second(key: &str, rate: Rate) -> Result<u64, Fault> {
    rate.per_second().ok_or_else(|| {
        let allowed =
            format!("a rate that is a whole number a second, such as \"{}/s\"", rate.count.div_ceil(rate.seconds));
        Fault::new(key, format!("\"{rate}\""), allowed)
    })
}

fn or_off(fault: Fault, policy: &str) -> Fault {
    Fault { allowed: format!("{}, or `{policy}: off`", fault.allowed), ..fault }
}

fn byte_rate(key: &str, value: u64) -> Option<Fault> {
    outside(key, &value, &BYTE_RATE, "a rate", |value| ByteRate(*value))
}

fn outside<T: PartialOrd, D: Display>(
    key: &str,
    value: &T,
    range: &RangeInclusive<T>,
    what: &str,
    shown: fn(&T) -> D,
) -> Option<Fault> {
    if range.contains(value) {
        return None;
    }
    let allowed = format!("{what} from \"{}\" to \"{}\"", shown(range.start()), shown(range.end()));
    Some(Fault::new(key, format!("\"{}\"", shown(value)), allowed))
}

/// A number that was checked, as a platform's size.
pub fn to_usize(value: Count) -> usize {
    usize::try_from(value.0).unwrap_or(usize::MAX)
}
