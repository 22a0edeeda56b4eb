//! Whether a setting is within its range, and what is said of one outside, in the units that files are written in.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Fault;

/// The units of sizes, the largest first, with their bytes.
pub const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// The units of durations, the largest first, with their milliseconds.
pub const SPAN_UNITS_MS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A second, in the milliseconds that [`millis`] takes.
pub const SECOND: u64 = 1000;
/// A minute, in the milliseconds that [`millis`] takes.
pub const MINUTE: u64 = 60 * SECOND;
/// An hour, in the milliseconds that [`millis`] takes.
pub const HOUR: u64 = 60 * MINUTE;

/// A range of sizes and of bytes a second: the end is far more than any machine has, and sums of it do not overflow.
pub const BYTES: RangeInclusive<u64> = 1..=1 << 40;

/// A range of handshakes, messages and control frames, in the time of a rate or at once.
const ITEMS: RangeInclusive<u64> = 1..=1_000_000;

/// A range of durations, in milliseconds.
pub const fn millis(from: u64, to: u64) -> RangeInclusive<Duration> {
    Duration::from_millis(from)..=Duration::from_millis(to)
}

/// The fault of a duration outside its range.
pub fn span(key: &str, value: Duration, range: &RangeInclusive<Duration>) -> Option<Fault> {
    outside(key, &value, range, "a duration", |value| Span(*value))
}

/// The fault of a size outside its range.
pub fn size(key: &str, value: u64, range: &RangeInclusive<u64>) -> Option<Fault> {
    outside(key, &value, range, "a size", |value| Size(*value))
}

/// The fault of a number outside its range.
pub fn count(key: &str, value: u64, range: &RangeInclusive<u64>) -> Option<Fault> {
    let fault = || Fault::new(key, value.to_string(), format!("a number from {} to {}", range.start(), range.end()));
    (!range.contains(&value)).then(fault)
}

/// The fault of a number of bytes a second outside [`BYTES`].
pub fn byte_rate(key: &str, value: u64) -> Option<Fault> {
    outside(key, &value, &BYTES, "a rate", |value| format!("{}/s", Size(*value)))
}

/// The faults of a rate, which is `items` in `per`, and of its burst.
pub fn rate([rate_key, burst_key]: [&str; 2], items: u64, per: Duration, burst: u64) -> Vec<Fault> {
    let in_range = ITEMS.contains(&items) && millis(SECOND, HOUR).contains(&per);
    let fault = || {
        let allowed = "1 to 1000000 in a second, minute or hour, such as \"10/s\", \"100/m\" or \"1000/h\"";
        Fault::new(rate_key, format!("{items} in {}", Span(per)), allowed)
    };
    let rate = (!in_range).then(fault);
    rate.into_iter().chain(count(burst_key, burst, &ITEMS)).collect()
}

/// A fault of a policy that can be switched off, which is what the user may have meant.
pub fn or_off(fault: Fault, policy: &str) -> Fault {
    Fault { allowed: format!("{}, or `{policy}: off`", fault.allowed), ..fault }
}

fn outside<T: PartialOrd, D: Display>(
    key: &str,
    value: &T,
    range: &RangeInclusive<T>,
    what: &str,
    shown: fn(&T) -> D,
) -> Option<Fault> {
    let fault = || {
        let allowed = format!("{what} from \"{}\" to \"{}\"", shown(range.start()), shown(range.end()));
        Fault::new(key, format!("\"{}\"", shown(value)), allowed)
    };
    (!range.contains(value)).then(fault)
}

/// A duration as a file has it.
struct Span(Duration);

/// A size as a file has it.
struct Size(u64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        write_with_unit(f, u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &SPAN_UNITS_MS[1..])
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_unit(f, self.0, &SIZE_UNITS)
    }
}

/// Writes a number with the largest unit that divides it.
fn write_with_unit(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let fits = |(_, factor): &&(&str, u64)| number >= *factor && number.is_multiple_of(*factor);
    let (unit, factor) = units.iter().find(fits).or(units.last()).copied().unwrap_or(("", 1));
    write!(f, "{}{unit}", number / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_with_the_largest_unit_that_fits() {
        for (span, text) in [(0, "0s"), (250, "250ms"), (1000, "1s"), (90_000, "90s"), (600_000, "10m")] {
            assert_eq!(Span(Duration::from_millis(span)).to_string(), text);
        }
        assert_eq!(Size(1 << 20).to_string(), "1MiB");
        assert_eq!(Size(1000).to_string(), "1000B");
    }

    #[test]
    fn rates_are_of_a_second_to_an_hour() {
        let faults = |items, secs, burst| {
            let faults = rate(["rate", "burst"], items, Duration::from_secs(secs), burst);
            faults.into_iter().map(|fault| fault.key).collect::<Vec<_>>()
        };
        for (items, secs) in [(1, 3600), (1, 1), (1_000_000, 3600), (1_000_000, 1), (100, 60)] {
            assert!(faults(items, secs, 1).is_empty(), "{items} in {secs} s");
        }
        for (items, secs) in [(0, 1), (1_000_001, 1), (1_000_001, 3600), (1, 0), (1, 3601)] {
            assert_eq!(faults(items, secs, 1_000_000), ["rate"], "{items} in {secs} s");
        }
        assert_eq!(faults(0, 1, 0), ["rate", "burst"]);
    }

    #[test]
    fn the_ends_of_a_range_are_within_it() {
        let range = millis(SECOND, HOUR);
        assert_eq!(span("a", Duration::from_secs(1), &range), None);
        assert_eq!(span("a", Duration::from_secs(3600), &range), None);
        let expected = Fault::new("a", "\"999ms\"", "a duration from \"1s\" to \"1h\"");
        assert_eq!(span("a", Duration::from_millis(999), &range), Some(expected));
        assert_eq!(size("a", 0, &BYTES), Some(Fault::new("a", "\"0B\"", "a size from \"1B\" to \"1024GiB\"")));
        assert_eq!(byte_rate("a", 0), Some(Fault::new("a", "\"0B/s\"", "a rate from \"1B/s\" to \"1024GiB/s\"")));
        assert_eq!(count("a", 9, &(1..=8)), Some(Fault::new("a", "9", "a number from 1 to 8")));
    }
}
