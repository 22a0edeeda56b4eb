//! How much memory the process may have before nothing new is taken.
//!
//! It refuses from the limit on, and admits again a twentieth below: without the gap each session that ends at the limit
//! would let one in, and the process would stand at its limit with a warning for each.

use std::ops::RangeInclusive;

/// The limits that make sense, in bytes: a process without a session has a dozen MiB, and what may come between two
/// looks must be small against the limit.
pub const LIMIT_BYTES: RangeInclusive<u64> = 32 << 20..=1 << 40;

/// The part of the limit by which the memory must fall below it before anything is admitted again.
const GAP: u64 = 20;

/// What a look at the memory changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing new may be taken from now on.
    Reached,
    /// New sessions and requests may be taken again.
    Left,
}

/// The judgement of a process's memory.
#[derive(Debug)]
pub struct MemoryLimit {
    limit_bytes: u64,
    over: bool,
}

impl MemoryLimit {
    /// A limit that is not reached.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, over: false }
    }

    /// Takes what the process has now, and says what that changes.
    pub fn observe(&mut self, resident_bytes: u64) -> Option<Change> {
        let admits_below = self.limit_bytes - self.limit_bytes / GAP;
        match self.over {
            false if resident_bytes >= self.limit_bytes => {
                self.over = true;
                Some(Change::Reached)
            }
            true if resident_bytes < admits_below => {
                self.over = false;
                Some(Change::Left)
            }
            _ => None,
        }
    }

    /// Whether nothing new may be taken.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_from_the_limit_on_and_admits_a_twentieth_below() {
        let mut limit = MemoryLimit::new(1000);
        let mut seen = Vec::new();
        for resident in [0, 999, 1000, 5000, 999, 950, 949, 950, 999, 1000] {
            seen.push((limit.observe(resident), limit.is_over()));
        }
        let (reached, left) = (Some(Change::Reached), Some(Change::Left));
        let expected = [
            (None, false),
            (None, false),
            (reached, true),
            (None, true),
            (None, true),
            (None, true),
            (left, false),
            (None, false),
            (None, false),
            (reached, true),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn tells_each_change_once() {
        let mut limit = MemoryLimit::new(100);
        let changes = (0..10).filter_map(|_| limit.observe(100)).count();
        assert_eq!(changes, 1);
        let changes = (0..10).filter_map(|_| limit.observe(0)).count();
        assert_eq!(changes, 1);
    }
}
