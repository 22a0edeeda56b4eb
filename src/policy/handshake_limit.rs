//! How fast one client may ask for WebSockets: GCRA by `governor`, one state per client key.
//!
//! The key is an address that the caller has truncated (IPv6 to its /64). This is the one policy with shared state;
//! its map is bounded: when it is full of clients that still count, addresses that it does not know share one overflow
//! bucket, so that a flood from many addresses neither takes memory without limit nor locks out those already known.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use super::{Fault, range};

/// Independent parts of the map, each behind its own lock; far more than cores, so that two rarely meet in one.
const SHARDS: usize = 64;

/// The most client keys that one limiter knows: 917,504, the bound of 1,000,000 rounded down to hash tables that are
/// exactly full. A shard's table of 16,384 buckets holds 14,336 entries (7/8); one more and it doubles.
///
/// A bucket is 32 bytes and one of control, so a full map costs 34.6 MB; measured: 35.1 MB resident, 38 bytes a key. A
/// sweep of it took 77 ms in a debug build, of which a shard is locked for about 1 ms at a time.
pub const MAX_KEYS: usize = SHARDS * 14_336;

/// The `handshake.per_ip` settings: so many handshakes in a time on average, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(Quota);

impl Rate {
    /// A rate such as 10 in a second with 20 at once, or 10 in a minute.
    ///
    /// # Errors
    /// A fault of `rate` when `count` is not 1 to 1,000,000 or `per` is not 1 s to 1 h, of `burst` when that is not 1
    /// to 1,000,000. With these bounds the time that a whole burst takes fits governor's nanoseconds.
    pub fn new(count: u64, per: Duration, burst: u64) -> Result<Self, Vec<Fault>> {
        let faults = range::rate(["rate", "burst"], count, per, burst);
        let items = |number: u64| u32::try_from(number).ok().and_then(NonZeroU32::new);
        match (items(count), items(burst)) {
            // Not `Quota::per_second`, which cannot say less than one a second.
            (Some(count), Some(burst)) if faults.is_empty() => {
                Quota::with_period(per / count.get()).map(|quota| Self(quota.allow_burst(burst))).ok_or(faults)
            }
            _ => Err(faults),
        }
    }
}

/// Limits the handshakes of each client key.
///
/// `check` takes one short lock of a part of the map and calls nothing under it but governor's arithmetic.
pub struct HandshakeLimit {
    limiter: RateLimiter<IpAddr, BoundedStore, GivenTime, NoOpMiddleware<Nanos>>,
    started_at: Instant,
}

impl HandshakeLimit {
    /// A limit with no client known. `now` is the earliest time that will be handed in; earlier ones count as it.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self::with_max_keys(rate, now, MAX_KEYS)
    }

    fn with_max_keys(rate: Rate, now: Instant, max_keys: usize) -> Self {
        let store = BoundedStore::new(max_keys / SHARDS);
        Self { limiter: RateLimiter::new(rate.0, store, GivenTime::default()), started_at: now }
    }

    /// Counts one handshake of `key` at `now`.
    ///
    /// # Errors
    /// The handshake is over the limit; the next is possible after the duration. It does not count.
    pub fn check(&self, key: IpAddr, now: Instant) -> Result<(), Duration> {
        let now = self.hand_in(now);
        self.limiter.check_key(&key).map_err(|not_until| not_until.wait_time_from(now))
    }

    /// Forgets the clients that are as good as new. The caller does this every few seconds: until then they take the
    /// places of others.
    pub fn sweep(&self, now: Instant) {
        self.hand_in(now);
        self.limiter.retain_recent();
    }

    /// How many clients are known.
    pub fn keys(&self) -> usize {
        self.limiter.len()
    }

    fn hand_in(&self, now: Instant) -> Nanos {
        let since_start = now.saturating_duration_since(self.started_at).as_nanos();
        // 584 years fit.
        self.limiter.clock().advance_to(u64::try_from(since_start).unwrap_or(u64::MAX))
    }
}

impl std::fmt::Debug for HandshakeLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandshakeLimit").finish_non_exhaustive()
    }
}

/// A clock that shows the latest time handed in: governor asks a clock where our policies take an argument.
#[derive(Debug, Default)]
struct GivenTime {
    since_start_nanos: AtomicU64,
}

impl GivenTime {
    /// Moves on, never back: of two threads the later one wins, and the other is a few microseconds off.
    fn advance_to(&self, since_start_nanos: u64) -> Nanos {
        let before = self.since_start_nanos.fetch_max(since_start_nanos, Ordering::Relaxed);
        Nanos::new(before.max(since_start_nanos))
    }
}

impl Clock for GivenTime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.since_start_nanos.load(Ordering::Relaxed))
    }
}

/// governor's own stores have no bound. A value is the key's theoretical arrival time, in nanoseconds.
struct BoundedStore {
    shards: Vec<Mutex<HashMap<IpAddr, u64>>>,
    shard_of: RandomState,
    max_keys_per_shard: usize,
    /// Of all keys that find their shard full.
    overflow: InMemoryState,
}

impl BoundedStore {
    fn new(max_keys_per_shard: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, shard_of: RandomState::new(), max_keys_per_shard, overflow: InMemoryState::default() }
    }
}

impl StateStore for BoundedStore {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, key: &IpAddr, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let index = self.shard_of.hash_one(key) as usize % SHARDS;
        if let Some(shard) = self.shards.get(index) {
            let mut shard = shard.lock();
            if let Some(arrival) = shard.get_mut(key) {
                let (answer, next) = f(Some(Nanos::new(*arrival)))?;
                *arrival = next.as_u64();
                return Ok(answer);
            }
            if shard.len() < self.max_keys_per_shard {
                let (answer, next) = f(None)?;
                shard.insert(*key, next.as_u64());
                return Ok(answer);
            }
        }
        self.overflow.measure_and_replace(&NotKeyed::NonKey, f)
    }
}

impl ShrinkableKeyedStateStore<IpAddr> for BoundedStore {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.retain(|_, arrival| *arrival > drop_below.as_u64());
            // A quarter full: a burst is over, give its memory back.
            if shard.len() < shard.capacity() / 4 {
                let keep = shard.len() * 2;
                shard.shrink_to(keep);
            }
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(n))
    }

    fn rate(count: u64, per_secs: u64, burst: u64) -> Rate {
        Rate::new(count, Duration::from_secs(per_secs), burst).unwrap()
    }

    #[test]
    fn allows_a_burst_and_then_the_rate_and_says_when_to_retry() {
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(10, 1, 3), start);
        for _ in 0..3 {
            assert_eq!(limit.check(address(1), start), Ok(()));
        }
        assert_eq!(limit.check(address(1), start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(40);
        assert_eq!(limit.check(address(1), later), Err(Duration::from_millis(60)));
        let later = start + Duration::from_millis(100);
        assert_eq!(limit.check(address(1), later), Ok(()));
        assert!(limit.check(address(1), later).is_err());
        let much_later = start + Duration::from_secs(10);
        assert_eq!((0..5).filter(|_| limit.check(address(1), much_later).is_ok()).count(), 3);
    }

    #[test]
    fn ten_a_minute_is_one_in_six_seconds() {
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(10, 60, 1), start);
        assert_eq!(limit.check(address(1), start), Ok(()));
        assert_eq!(limit.check(address(1), start), Err(Duration::from_secs(6)));
        assert_eq!(limit.check(address(1), start + Duration::from_secs(6)), Ok(()));
    }

    #[test]
    fn two_keys_are_independent() {
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(1, 1, 1), start);
        assert_eq!(limit.check(address(1), start), Ok(()));
        assert!(limit.check(address(1), start).is_err());
        assert!(format!("{limit:?}").starts_with("HandshakeLimit"), "no address is shown");
        assert_eq!(limit.check(address(2), start), Ok(()));
        assert_eq!(limit.check("2001:db8::".parse().unwrap(), start), Ok(()));
    }

    #[test]
    fn a_time_before_the_latest_counts_as_the_latest() {
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(1, 1, 1), start);
        let later = start + Duration::from_secs(5);
        assert_eq!(limit.check(address(1), later), Ok(()));
        assert_eq!(limit.check(address(1), start), Err(Duration::from_secs(1)));
    }

    #[test]
    fn faults_name_the_key() {
        let second = Duration::from_secs(1);
        let keys = |count, per, burst| {
            let faults = Rate::new(count, per, burst).unwrap_err();
            faults.into_iter().map(|fault| fault.key).collect::<Vec<_>>()
        };
        assert_eq!(keys(0, second, 1), ["rate"]);
        assert_eq!(keys(1, Duration::from_millis(10), 1), ["rate"]);
        assert_eq!(keys(1, second, 0), ["burst"]);
        assert_eq!(keys(u64::MAX, second, u64::MAX), ["rate", "burst"]);
        // The extremes do not overflow governor's arithmetic, which panics.
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(1, 3600, 1_000_000), start);
        assert_eq!(limit.check(address(1), start), Ok(()));
    }

    #[test]
    fn a_million_addresses_keep_the_map_bounded_and_a_sweep_empties_it() {
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(1, 1, 1), start);
        for n in 0..1_000_000 {
            let _ = limit.check(address(n), start);
        }
        assert!((MAX_KEYS - 20_000..=MAX_KEYS).contains(&limit.keys()), "{}", limit.keys());
        let store = limit.limiter.into_state_store();
        // What hashbrown allocates for a capacity of 7/8 of a power of two: 16,384 buckets of an entry and a byte.
        let buckets: usize =
            store.shards.iter().map(|shard| (shard.lock().capacity() * 8 / 7).next_power_of_two()).sum();
        assert!(buckets <= SHARDS * 16_384, "{buckets} buckets");
        assert_eq!(size_of::<(IpAddr, u64)>(), 32);
        store.retain_recent(Nanos::new(u64::MAX));
        assert!(store.is_empty());
        assert_eq!(store.shards.iter().map(|shard| shard.lock().capacity()).sum::<usize>(), 0);
    }

    #[test]
    fn a_sweep_keeps_those_that_still_count() {
        let start = Instant::now();
        let limit = HandshakeLimit::new(rate(1, 1, 10), start);
        for _ in 0..10 {
            limit.check(address(1), start).unwrap();
        }
        limit.check(address(2), start).unwrap();
        limit.sweep(start + Duration::from_secs(4));
        assert_eq!(limit.keys(), 1);
        limit.sweep(start + Duration::from_secs(60));
        assert_eq!(limit.keys(), 0);
    }

    #[test]
    fn new_addresses_share_one_bucket_when_the_map_is_full() {
        let start = Instant::now();
        let limit = HandshakeLimit::with_max_keys(rate(1, 1, 2), start, SHARDS);
        let mut refused = None;
        for n in 0..10_000 {
            if limit.check(address(n), start).is_err() {
                refused = Some(n);
                break;
            }
        }
        let refused = refused.expect("the shared bucket runs out");
        assert!(limit.keys() <= SHARDS);
        assert_eq!(limit.check(address(0), start), Ok(()), "a known address keeps its own bucket");
        assert_eq!(limit.check(address(refused), start + Duration::from_secs(1)), Ok(()));
        limit.sweep(start + Duration::from_secs(60));
        assert_eq!(limit.keys(), 0, "and places come back");
    }
}
