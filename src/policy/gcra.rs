//! The generic cell rate algorithm for one owner: a rate with a burst in 8 bytes of state, without locks.

use std::time::{Duration, Instant};

use super::message::Rate;

/// A rate limit of one session. Shared limits are `governor`'s.
#[derive(Debug)]
pub struct Gcra {
    per_item_nanos: u64,
    tolerance: Duration,
    /// When the items so far would have arrived at exactly the rate.
    theoretical_arrival: Option<Instant>,
}

impl Gcra {
    /// A limit of `rate`, none of it used.
    pub fn new(rate: Rate) -> Self {
        let per_item_nanos = 1_000_000_000 / rate.per_second.max(1);
        let tolerance = Duration::from_nanos(per_item_nanos.saturating_mul(rate.burst));
        Self { per_item_nanos, tolerance, theoretical_arrival: None }
    }

    /// Counts `items` that arrived at `now`, and says whether they keep the rate.
    ///
    /// Items that do not keep it are counted nevertheless: the owner closes the session.
    pub fn take(&mut self, items: u64, now: Instant) -> bool {
        let from = self.theoretical_arrival.map_or(now, |at| at.max(now));
        let next = from + Duration::from_nanos(self.per_item_nanos.saturating_mul(items));
        self.theoretical_arrival = Some(next);
        next.saturating_duration_since(now) <= self.tolerance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_the_burst_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut limit = Gcra::new(Rate { per_second: 10, burst: 3 });
        assert!((0..3).all(|_| limit.take(1, start)));
        assert!(!limit.take(1, start));
        let mut limit = Gcra::new(Rate { per_second: 10, burst: 1 });
        assert!((0..100).all(|i| limit.take(1, start + Duration::from_millis(100 * i))));
        assert!(!limit.take(1, start + Duration::from_millis(9950)));
    }

    #[test]
    fn a_pause_refills_the_burst_and_no_more() {
        let start = Instant::now();
        let mut limit = Gcra::new(Rate { per_second: 1000, burst: 5 });
        assert!(limit.take(5, start));
        let later = start + Duration::from_secs(3600);
        assert!(limit.take(5, later));
        assert!(!limit.take(1, later));
    }
}
