//! The generic cell rate algorithm for one owner: a rate with a burst in one point of time, without locks.

use std::time::{Duration, Instant};

/// A rate with its burst: `count` in `per` on average, `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Items...
    pub count: u64,
    /// ...in this time.
    pub per: Duration,
    /// Items at once.
    pub burst: u64,
}

impl Rate {
    /// So many items a second.
    pub const fn per_second(count: u64, burst: u64) -> Self {
        Self { count, per: Duration::from_secs(1), burst }
    }
}

/// A rate limit of one session. Shared limits are `governor`'s.
#[derive(Debug)]
pub struct Gcra {
    items: u64,
    per_nanos: u128,
    tolerance: Duration,
    /// When the items so far would have arrived at exactly the rate.
    theoretical_arrival: Option<Instant>,
}

impl Gcra {
    /// A limit of `rate`, none of it used.
    pub fn new(rate: Rate) -> Self {
        let mut limit = Self {
            items: rate.count.max(1),
            per_nanos: rate.per.as_nanos(),
            tolerance: Duration::ZERO,
            theoretical_arrival: None,
        };
        limit.tolerance = limit.time_of(rate.burst);
        limit
    }

    /// Counts `items` that arrived at `now`, and says whether they keep the rate.
    ///
    /// Items that do not keep it are counted nevertheless: the owner closes the session.
    pub fn take(&mut self, items: u64, now: Instant) -> bool {
        let from = self.theoretical_arrival.map_or(now, |at| at.max(now));
        // Past the end of the clock, as of anything, there is nothing later.
        let next = from.checked_add(self.time_of(items)).unwrap_or(from);
        self.theoretical_arrival = Some(next);
        next.saturating_duration_since(now) <= self.tolerance
    }

    /// How long `items` take at exactly the rate. Not a multiple of the time of one, which is less than a nanosecond
    /// for fast bytes.
    fn time_of(&self, items: u64) -> Duration {
        let nanos = self.per_nanos.saturating_mul(items.into()) / u128::from(self.items);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_the_burst_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut limit = Gcra::new(Rate::per_second(10, 3));
        assert!((0..3).all(|_| limit.take(1, start)));
        assert!(!limit.take(1, start));
        let mut limit = Gcra::new(Rate::per_second(10, 1));
        assert!((0..100).all(|i| limit.take(1, start + Duration::from_millis(100 * i))));
        assert!(!limit.take(1, start + Duration::from_millis(9950)));
    }

    #[test]
    fn a_pause_refills_the_burst_and_no_more() {
        let start = Instant::now();
        let mut limit = Gcra::new(Rate::per_second(1000, 5));
        assert!(limit.take(5, start));
        let later = start + Duration::from_secs(3600);
        assert!(limit.take(5, later));
        assert!(!limit.take(1, later));
    }

    #[test]
    fn a_rate_of_a_minute_or_an_hour_need_not_be_whole_a_second() {
        let start = Instant::now();
        for (count, per_secs) in [(100, 60), (7, 3600)] {
            let rate = Rate { count, per: Duration::from_secs(per_secs), burst: 1 };
            let mut limit = Gcra::new(rate);
            let apart = Duration::from_secs(per_secs) / u32::try_from(count).unwrap();
            let arrival = |n| start + (apart + Duration::from_nanos(1)) * n;
            assert!((0..1000).all(|n| limit.take(1, arrival(n))), "{rate:?}");
            assert!(!limit.take(1, arrival(1000) - apart / 2), "{rate:?}");
        }
    }

    #[test]
    fn a_rate_of_bytes_is_exact_above_one_a_nanosecond() {
        let start = Instant::now();
        let mut limit = Gcra::new(Rate::per_second(4 << 30, 4 << 30));
        assert!(limit.take(4 << 30, start));
        assert!(!limit.take(1 << 20, start));
        assert!(limit.take(2 << 30, start + Duration::from_secs(1)));
    }

    #[test]
    fn no_number_overflows() {
        let start = Instant::now();
        for rate in [
            Rate { count: 1, per: Duration::MAX, burst: u64::MAX },
            Rate { count: 0, per: Duration::from_secs(1), burst: 1 },
            Rate::per_second(u64::MAX, u64::MAX),
        ] {
            let mut limit = Gcra::new(rate);
            for _ in 0..3 {
                limit.take(u64::MAX, start);
            }
        }
    }
}
