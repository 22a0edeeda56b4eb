//! Values with their unit: `30s`, `64KiB`, `10/s`, `1MiB/s`.
//!
//! The unit is part of the value, so no key needs one in its name and no number can be taken for another unit.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _};

use crate::policy::range::{SIZE_UNITS, SPAN_UNITS_MS};

/// A duration: `250ms`, `30s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A size in bytes: `512B`, `64KiB`, `1MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A rate of things: `10/s`, `100/m`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many...
    pub count: u64,
    /// ...in this time.
    pub per: Duration,
}

/// A rate of bytes: `1MiB/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(pub u64);

/// A whole number, also as text, which is what a variable leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

/// Reads a duration of the command line, written as in a file.
///
/// # Errors
/// What a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    text.parse::<Span>().map(|span| span.0)
}

const RATE_UNITS_SECONDS: [(&str, u64); 3] = [("h", 3600), ("m", 60), ("s", 1)];

impl Rate {
    /// So many a second.
    pub const fn per_second(count: u64) -> Self {
        Self { count, per: Duration::from_secs(1) }
    }
}

/// Splits `30s` into its number and the factor of its unit.
fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A value that is text in a file: its parser, its pattern in the schema, and what a message calls it.
macro_rules! text_value {
    ($type:ident, $pattern:literal, $title:literal, $parse:expr) => {
        impl FromStr for $type {
            type Err = &'static str;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(text).ok_or(concat!("not ", $title))
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "title": $title, "type": "string", "pattern": $pattern })
            }
        }
    };
}

// The patterns bound the digits so that no value that fits them overflows.
text_value!(
    Span,
    "^[0-9]{1,9}(ms|s|m|h|d)$",
    "a duration with its unit, such as \"250ms\", \"30s\", \"5m\" or \"1h\"",
    |text| parse_with_unit(text, &SPAN_UNITS_MS).map(|ms| Self(Duration::from_millis(ms)))
);
text_value!(
    Size,
    "^([0-9]{1,15}B|[0-9]{1,9}(KiB|MiB|GiB))$",
    "a size with its unit, such as \"512B\", \"64KiB\" or \"1MiB\"",
    |text| parse_with_unit(text, &SIZE_UNITS).map(Self)
);
text_value!(Rate, "^[0-9]{1,12}/(s|m|h)$", "a rate with its unit, such as \"10/s\", \"100/m\" or \"1000/h\"", |text| {
    let (count, unit) = text.split_once('/')?;
    let seconds = RATE_UNITS_SECONDS.iter().find(|(name, _)| *name == unit)?.1;
    count.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    Some(Self { count: count.parse().ok()?, per: Duration::from_secs(seconds) })
});
text_value!(
    ByteRate,
    "^([0-9]{1,15}B|[0-9]{1,9}(KiB|MiB|GiB))/s$",
    "a rate of bytes with its unit, such as \"1KiB/s\" or \"1MiB/s\"",
    |text| parse_with_unit(text.strip_suffix("/s")?, &SIZE_UNITS).map(Self)
);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map(Self).map_err(D::Error::custom),
            other => u64::deserialize(other).map(Self).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "a whole number",
            "type": ["integer", "string"],
            "minimum": 0,
            "maximum": 1_000_000_000_000_u64,
            "pattern": "^[0-9]{1,12}$",
        })
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_unit() {
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("1h".parse(), Ok(Span(Duration::from_secs(3600))));
        assert_eq!("0s".parse(), Ok(Span(Duration::ZERO)));
        assert_eq!("64KiB".parse(), Ok(Size(65536)));
        assert_eq!("7B".parse(), Ok(Size(7)));
        assert_eq!("100/m".parse(), Ok(Rate { count: 100, per: Duration::from_secs(60) }));
        assert_eq!("1MiB/s".parse(), Ok(ByteRate(1 << 20)));
        assert_eq!("10/s".parse(), Ok(Rate::per_second(10)));
    }

    #[test]
    fn values_without_their_unit_or_with_another_are_refused() {
        for text in ["", "30", "s", "-1s", "+1s", "1.5s", "30 s", "30S", "1h30m", "99999999999999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["64", "64KB", "64kib", "64k", "1TiB", "99999999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["10", "10/", "/s", "10/d", "+1/s", "1/s/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["1MiB", "1/s", "1MiB/m"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }
}
