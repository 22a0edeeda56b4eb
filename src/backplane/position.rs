//! A place in a channel's log, and its token form. Pure: no I/O, no clock.
//!
//! Each region has a log of its own for each channel. A reader's place in all of them is one [`Position`] a region,
//! never one number: logs of two regions have no order between them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most bytes of a region's name.
pub const MAX_REGION_BYTES: usize = 32;

/// The most bytes of an epoch.
pub const MAX_EPOCH_BYTES: usize = 64;

/// The epoch of places that are only known by their time.
const TIME: &str = "since";

/// How many characters the life of a store has, at the end of an epoch.
const LIFE_CHARS: usize = 8;

/// The highest number of an entry: what a double holds exactly, since Lua and JSON count in doubles.
pub const MAX_N: u64 = (1 << 53) - 1;

/// The most bytes of a token: a region, an epoch, a number of 16 digits, an id of 20 and 20 digits, and what is between.
pub const MAX_TOKEN_BYTES: usize = MAX_REGION_BYTES + 1 + MAX_EPOCH_BYTES + 1 + 16 + 1 + 41;

/// The most regions that a cursor names.
pub const MAX_REGIONS: usize = 32;

/// A region's name: 1 to 32 of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Arc<str>);

/// Which life of a log an entry was written in: 1 to 64 of `A-Z`, `a-z`, `0-9`, `_` and `-`.
///
/// It begins with the lineage of the process that wrote, and may end with the life of the store that was written to. So an
/// epoch that never wrote an entry, that of a log before its first, is the beginning or the end of the one which the log
/// is born with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(Arc<str>);

/// An entry's name within its log: the engine's time in milliseconds since 1970, and a number within the millisecond.
///
/// Ids of one log grow with `n`. Unlike `n` they are not given out twice when an engine loses its newest entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since 1970 by the engine's clock, which never runs backwards within a log.
    pub ms: u64,
    /// The entry's number within the millisecond.
    pub seq: u64,
}

/// A place in the log of one region: right behind an entry, or before the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Whose log.
    pub region: Region,
    /// The epoch that the entry was written in; before the first entry the engine's lineage.
    pub epoch: Epoch,
    /// The entry's number: 1 for the first of a log, each next one higher. 0 is before the first.
    pub n: u64,
    /// The entry's id; `0-0` before the first.
    pub id: EntryId,
}

/// Text that is no position, or not in the one form that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// An epoch is empty, too long, or has other characters.
    #[error("the epoch must be 1 to 64 of A-Z, a-z, 0-9, _ and -")]
    Epoch,
    /// An entry id is not `ms-seq`, or not in its shortest form.
    #[error("the entry id must be two decimal numbers with a - between")]
    Id,
    /// A number is missing, above [`MAX_N`], or not in its shortest form.
    #[error("the number must be decimal, from 0 to 9007199254740991")]
    Number,
    /// `n` is 0 and the id is not `0-0`, or the other way round.
    #[error("the number 0 and the id 0-0 go together")]
    Origin,
    /// There are not four parts.
    #[error("a position is region.epoch.n.id")]
    Parts,
    /// A region is empty, too long, or has other characters.
    #[error("the region must be 1 to 32 of a-z, 0-9 and -")]
    Region,
    /// The token is longer than any can be.
    #[error("a position has at most 156 bytes")]
    TooLong,
    /// A cursor names more regions than [`MAX_REGIONS`].
    #[error("a cursor names at most 32 regions")]
    TooManyRegions,
}

impl Default for Region {
    /// The region of a gateway whose configuration names none.
    fn default() -> Self {
        Self("local".into())
    }
}

impl Region {
    /// The region of this name.
    ///
    /// # Errors
    /// [`PositionError::Region`].
    pub fn new(name: &str) -> Result<Self, PositionError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=MAX_REGION_BYTES).contains(&name.len());
        if fits && name.bytes().all(allowed) { Ok(Self(name.into())) } else { Err(PositionError::Region) }
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Epoch {
    /// The epoch of this name.
    ///
    /// # Errors
    /// [`PositionError::Epoch`].
    pub fn new(name: &str) -> Result<Self, PositionError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let fits = (1..=MAX_EPOCH_BYTES).contains(&name.len());
        if fits && name.bytes().all(allowed) { Ok(Self(name.into())) } else { Err(PositionError::Epoch) }
    }

    /// The epoch of what has none.
    pub(super) fn unnamed() -> Self {
        Self("x".into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both end with the same life of a store.
    pub(super) fn shares_life(&self, other: &Self) -> bool {
        let life = |epoch: &Self| epoch.0.get(epoch.0.len().saturating_sub(LIFE_CHARS)..).map(str::to_owned);
        life(self).is_some_and(|own| own.len() == LIFE_CHARS && life(other) == Some(own))
    }

    /// Whether a log that was born with this epoch was born under `lineage`, or in a store of that life.
    pub fn is_of(&self, lineage: &Self) -> bool {
        self.0.starts_with(&*lineage.0) || self.0.ends_with(&*lineage.0)
    }
}

impl Position {
    /// The place before the first entry of a log that had none under this lineage.
    pub fn origin(region: Region, lineage: Epoch) -> Self {
        Self { region, epoch: lineage, n: 0, id: EntryId::default() }
    }

    /// A place that is only known by its time, in milliseconds since 1970: that of a reader to whom a log was not there yet.
    pub fn at_time(region: Region, ms: u64) -> Self {
        // No engine gives such an epoch: those begin with a lineage, which is longer.
        Self { region, epoch: Epoch(TIME.into()), n: 1, id: EntryId { ms: ms.max(1), seq: 0 } }
    }

    /// The time, if that is all that is known of the place.
    pub fn time(&self) -> Option<u64> {
        (*self.epoch.0 == *TIME).then_some(self.id.ms)
    }

    /// Whether this is the place before the first entry.
    pub fn is_origin(&self) -> bool {
        self.n == 0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.region, self.epoch, self.n, self.id)
    }
}

impl FromStr for EntryId {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (ms, seq) = text.split_once('-').ok_or(PositionError::Id)?;
        let number = |text| decimal(text).ok_or(PositionError::Id);
        Ok(Self { ms: number(ms)?, seq: number(seq)? })
    }
}

impl FromStr for Position {
    type Err = PositionError;

    /// Reads a token: `region.epoch.n.id`. Each position has exactly one.
    fn from_str(token: &str) -> Result<Self, PositionError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(PositionError::TooLong);
        }
        let mut parts = token.split('.');
        let mut part = || parts.next().ok_or(PositionError::Parts);
        let (region, epoch, n, id) = (part()?, part()?, part()?, part()?);
        if parts.next().is_some() {
            return Err(PositionError::Parts);
        }
        let n = decimal(n).filter(|n| *n <= MAX_N).ok_or(PositionError::Number)?;
        let position = Self { region: Region::new(region)?, epoch: Epoch::new(epoch)?, n, id: id.parse()? };
        if (n == 0) == (position.id == EntryId::default()) { Ok(position) } else { Err(PositionError::Origin) }
    }
}

/// A decimal number in its shortest form: no sign, no zero in front.
fn decimal(text: &str) -> Option<u64> {
    let shortest = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if shortest && digits { text.parse().ok() } else { None }
}

/// A reader's place in the log of one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Nowhere yet: what comes from now on.
    #[default]
    Now,
    /// Before the first entry, whichever life of the log that is.
    Start,
    /// Right behind an entry, or before the first under the position's lineage.
    After(Position),
}

/// A reader's place in the logs of all regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(BTreeMap<Region, Position>);

impl Cursor {
    /// A cursor of tokens. Of two of one region the later in the list stands.
    ///
    /// # Errors
    /// Those of a token, and [`PositionError::TooManyRegions`].
    pub fn parse<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Result<Self, PositionError> {
        let mut cursor = Self::default();
        for token in tokens {
            cursor.advance(token.parse()?)?;
        }
        Ok(cursor)
    }

    /// Moves the place in one region's log.
    ///
    /// # Errors
    /// [`PositionError::TooManyRegions`], and the cursor stays as it was.
    pub fn advance(&mut self, position: Position) -> Result<(), PositionError> {
        if self.0.len() >= MAX_REGIONS && !self.0.contains_key(&position.region) {
            return Err(PositionError::TooManyRegions);
        }
        self.0.insert(position.region.clone(), position);
        Ok(())
    }

    /// The place in a region's log.
    pub fn place(&self, region: &Region) -> Place {
        self.0.get(region).cloned().map_or(Place::Now, Place::After)
    }

    /// The positions, in the order of their regions.
    pub fn positions(&self) -> impl Iterator<Item = &Position> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(token: &str) -> Result<Position, PositionError> {
        token.parse()
    }

    #[test]
    fn a_token_is_read_and_written_in_one_form() {
        for token in
            ["eu.3f9aK2.1042.1795489098605-0", "us-2.a_b-C.0.0-0", "x.0.9007199254740991.1-18446744073709551615"]
        {
            assert_eq!(parse(token).map(|position| position.to_string()).as_deref(), Ok(token));
        }
        let position = parse("eu.3f9aK2.1042.1795489098605-7").unwrap();
        assert_eq!((position.region.as_str(), position.epoch.as_str(), position.n), ("eu", "3f9aK2", 1042));
        assert_eq!(position.id, EntryId { ms: 1_795_489_098_605, seq: 7 });
    }

    #[test]
    fn every_other_form_is_refused() {
        for (token, error) in [
            ("", PositionError::Parts),
            ("eu.a.1", PositionError::Parts),
            ("eu.a.1.1-0.", PositionError::Parts),
            (".a.1.1-0", PositionError::Region),
            ("EU.a.1.1-0", PositionError::Region),
            ("e_u.a.1.1-0", PositionError::Region),
            ("eu..1.1-0", PositionError::Epoch),
            ("eu.a b.1.1-0", PositionError::Epoch),
            ("eu.ä.1.1-0", PositionError::Epoch),
            ("eu.a..1-0", PositionError::Number),
            ("eu.a.01.1-0", PositionError::Number),
            ("eu.a.+1.1-0", PositionError::Number),
            ("eu.a.-1.1-0", PositionError::Number),
            ("eu.a.9007199254740992.1-0", PositionError::Number),
            ("eu.a.99999999999999999999.1-0", PositionError::Number),
            ("eu.a.1.1", PositionError::Id),
            ("eu.a.1.-", PositionError::Id),
            ("eu.a.1.1-", PositionError::Id),
            ("eu.a.1.1-0-0", PositionError::Id),
            ("eu.a.1.1-00", PositionError::Id),
            ("eu.a.1.18446744073709551616-0", PositionError::Id),
            ("eu.a.0.1-0", PositionError::Origin),
            ("eu.a.1.0-0", PositionError::Origin),
            (" eu.a.1.1-0", PositionError::Region),
            ("eu.a.1.1-0\n", PositionError::Id),
        ] {
            assert_eq!(parse(token), Err(error), "{token:?}");
        }
    }

    #[test]
    fn lengths_are_bounded_at_each_part_and_in_all() {
        let (region, epoch) = ("r".repeat(MAX_REGION_BYTES), "e".repeat(MAX_EPOCH_BYTES));
        let longest = format!("{region}.{epoch}.{MAX_N}.{}-{}", u64::MAX, u64::MAX);
        assert_eq!(longest.len(), MAX_TOKEN_BYTES);
        assert!(parse(&longest).is_ok());
        assert_eq!(parse(&format!("r{region}.e.1.1-0")), Err(PositionError::Region));
        assert_eq!(parse(&format!("r.e{epoch}.1.1-0")), Err(PositionError::Epoch));
        assert_eq!(parse(&"1".repeat(MAX_TOKEN_BYTES + 1)), Err(PositionError::TooLong));
    }

    #[test]
    fn a_cursor_has_one_place_a_region_and_a_bound() {
        let mut cursor = Cursor::parse(["eu.a.1.1-0", "us.b.7.9-0", "eu.a.2.5-0"]).unwrap();
        let tokens: Vec<_> = cursor.positions().map(Position::to_string).collect();
        assert_eq!(tokens, ["eu.a.2.5-0", "us.b.7.9-0"]);
        assert_eq!(cursor.place(&Region::new("ap").unwrap()), Place::Now);
        for nth in 2..MAX_REGIONS {
            cursor.advance(parse(&format!("r{nth}.a.1.1-0")).unwrap()).unwrap();
        }
        assert_eq!(cursor.advance(parse("more.a.1.1-0").unwrap()), Err(PositionError::TooManyRegions));
        assert_eq!(cursor.advance(parse("us.b.8.10-0").unwrap()), Ok(()));
        assert_eq!(cursor.positions().count(), MAX_REGIONS);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            region in "[a-z0-9-]{1,32}", epoch in "[A-Za-z0-9_-]{1,64}", n in 1..=MAX_N, ms in 1u64.., seq: u64,
        ) {
            let position = Position {
                region: Region::new(&region).unwrap(),
                epoch: Epoch::new(&epoch).unwrap(),
                n,
                id: EntryId { ms, seq },
            };
            prop_assert_eq!(parse(&position.to_string()), Ok(position));
        }

        #[test]
        fn what_is_read_is_written_back_byte_for_byte(token in "[a-z0-9.-]{0,40}|\\PC{0,200}") {
            if let Ok(position) = parse(&token) {
                prop_assert_eq!(position.to_string(), token);
            }
        }

        #[test]
        fn nearly_tokens_are_read_to_the_same_bytes_or_refused(
            token in "[a-z]{0,3}\\.[A-Za-z0-9]{0,4}\\.[0-9+-]{0,4}\\.[0-9]{0,3}-[0-9]{0,2}",
        ) {
            if let Ok(position) = parse(&token) {
                prop_assert_eq!(position.to_string(), token);
            }
        }
    }
}
