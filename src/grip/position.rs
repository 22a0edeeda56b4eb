//! Positions in the logs of channels, as clients keep them and say them when they come back.

use std::fmt;

/// A place in a channel's log: `<region>.<epoch>.<n>.<entry>`.
///
/// Region and epoch are names of letters, digits, `-` and `_`; `n` counts the entries of an epoch; the entry is what the
/// region's engine calls it, and may have dots and colons. Each part but `n` has 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Position(Box<str>);

/// What is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position is malformed")]
pub struct PositionError;

/// The longest part of a position, in bytes.
const MAX_PART_BYTES: usize = 64;

impl Position {
    /// Puts a position together.
    ///
    /// # Errors
    /// A part that no position has.
    pub fn new(region: &str, epoch: &str, n: u64, entry: &str) -> Result<Self, PositionError> {
        Self::parse(&format!("{region}.{epoch}.{n}.{entry}"))
    }

    /// Reads a position.
    ///
    /// # Errors
    /// What is no position; `n` has no leading zero, so that each place has one text.
    pub fn parse(text: &str) -> Result<Self, PositionError> {
        let mut parts = text.splitn(4, '.');
        let mut part = || parts.next().filter(|part| (1..=MAX_PART_BYTES).contains(&part.len())).ok_or(PositionError);
        let (region, epoch, n, entry) = (part()?, part()?, part()?, part()?);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let named = region.bytes().chain(epoch.bytes()).all(is_name);
        let numbered = n.bytes().all(|byte| byte.is_ascii_digit()) && (n == "0" || !n.starts_with('0'));
        let entered = entry.bytes().all(|byte| is_name(byte) || matches!(byte, b'.' | b':'));
        let fits = n.parse::<u64>().is_ok();
        if named && numbered && entered && fits { Ok(Self(text.into())) } else { Err(PositionError) }
    }

    /// The position as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The region whose log it is in.
    pub fn region(&self) -> &str {
        self.part(0)
    }

    /// The life of that log: after another one no `n` can be compared.
    pub fn epoch(&self) -> &str {
        self.part(1)
    }

    /// How many entries the epoch has up to it.
    pub fn n(&self) -> u64 {
        self.part(2).parse().unwrap_or_default()
    }

    /// What the region's engine calls it.
    pub fn entry(&self) -> &str {
        self.part(3)
    }

    fn part(&self, at: usize) -> &str {
        self.0.splitn(4, '.').nth(at).unwrap_or_default()
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_have_four_parts() {
        let position = Position::parse("eu.3f9aK2.1042.1795489098605-0").unwrap();
        assert_eq!((position.region(), position.epoch(), position.n()), ("eu", "3f9aK2", 1042));
        assert_eq!(position.entry(), "1795489098605-0");
        assert_eq!(Position::new("eu", "3f9aK2", 1042, "1795489098605-0"), Ok(position));
        assert_eq!(Position::parse("a.b.0.x.y:z").unwrap().entry(), "x.y:z");
        let long = format!("eu.{}.1.a", "x".repeat(65));
        for text in [
            "",
            "eu",
            "eu.a.1",
            "eu.a..b",
            ".a.1.b",
            "eu.a.01.b",
            "eu.a.-1.b",
            "eu.a.1.",
            "eu.a.x.b",
            "e u.a.1.b",
            "eu.a.1.b c",
            "eu.a.18446744073709551616.b",
            "eü.a.1.b",
            &long,
        ] {
            assert_eq!(Position::parse(text), Err(PositionError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_position_is_its_parts(region in "[a-z0-9_-]{1,8}", epoch in "[A-Za-z0-9]{1,8}", n: u64, entry in "[a-z0-9.:-]{1,20}") {
            let position = Position::new(&region, &epoch, n, &entry).unwrap();
            prop_assert_eq!(Position::parse(position.as_str()), Ok(position.clone()));
            prop_assert_eq!((position.region(), position.epoch(), position.n(), position.entry()), (&*region, &*epoch, n, &*entry));
        }
    }
}
