//! How many sessions one client and all clients together may have.
//!
//! A place is taken by [`ConnectionLimit::acquire`] and given back when its [`Guard`] drops, whatever ends the session.
//! The map holds only clients with a session, so the sessions bound it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Independent parts of the map, each behind its own lock; far more than cores, so that two rarely meet in one.
const SHARDS: usize = 64;

/// The limit that a session would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// `connections.per_ip`.
    PerIp,
    /// `connections.total`.
    Total,
}

/// Which limits refuse; the others only count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforce {
    /// Whether `connections.per_ip` refuses: not by default when the peer is likely a hop of many clients.
    pub per_ip: bool,
    /// Whether `connections.total` refuses.
    pub total: bool,
}

impl Enforce {
    /// Both.
    pub const ALL: Self = Self { per_ip: true, total: true };
}

/// A place, and what would have been refused if it were enforced.
#[derive(Debug)]
pub struct Acquired {
    /// The place.
    pub guard: Guard,
    /// The limit that is passed and not enforced; the one per client comes first.
    pub would_refuse: Option<Denied>,
}

/// Counts live sessions per client key (IPv6 truncated to its /64 by the caller) and in total.
#[derive(Debug)]
pub struct ConnectionLimit {
    per_ip: Option<usize>,
    total: Option<usize>,
    sessions: AtomicUsize,
    shards: Vec<Mutex<HashMap<IpAddr, u32>>>,
    shard_of: RandomState,
}

impl ConnectionLimit {
    /// Limits in sessions; `None` is off, and then costs nothing.
    pub fn new(per_ip: Option<usize>, total: Option<usize>) -> Self {
        let shards = (0..if per_ip.is_some() { SHARDS } else { 0 }).map(|_| Mutex::default()).collect();
        Self { per_ip, total, sessions: AtomicUsize::new(0), shards, shard_of: RandomState::new() }
    }

    /// Takes a place for a session of `key`.
    ///
    /// # Errors
    /// The limit that is reached and enforced; nothing is counted then.
    pub fn acquire(self: &Arc<Self>, key: IpAddr, enforce: Enforce) -> Result<Acquired, Denied> {
        let total_reached = self.enter_total(enforce.total)?;
        let per_ip_reached = match self.enter_key(key, enforce.per_ip) {
            Ok(reached) => reached,
            Err(denied) => {
                self.sessions.fetch_sub(1, Ordering::Relaxed);
                return Err(denied);
            }
        };
        let would_refuse = match (per_ip_reached, total_reached) {
            (true, _) => Some(Denied::PerIp),
            (false, true) => Some(Denied::Total),
            (false, false) => None,
        };
        Ok(Acquired { guard: Guard { limit: Arc::clone(self), key }, would_refuse })
    }

    /// Live sessions in total.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Live sessions of `key`; 0 when they are not counted because `per_ip` is off.
    pub fn sessions_of(&self, key: IpAddr) -> usize {
        self.shard(key).and_then(|shard| shard.lock().get(&key).copied()).unwrap_or(0) as usize
    }

    /// Counts one more in total, and says whether the limit was reached before.
    fn enter_total(&self, enforce: bool) -> Result<bool, Denied> {
        let limit = self.total.unwrap_or(usize::MAX);
        let counted = self.sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sessions| {
            (sessions < limit || !enforce).then_some(sessions + 1)
        });
        counted.map(|before| before >= limit).map_err(|_| Denied::Total)
    }

    /// Counts one more of `key`, and says whether the limit was reached before.
    fn enter_key(&self, key: IpAddr, enforce: bool) -> Result<bool, Denied> {
        let (Some(limit), Some(shard)) = (self.per_ip, self.shard(key)) else { return Ok(false) };
        let mut shard = shard.lock();
        let before = shard.get(&key).copied().unwrap_or(0);
        let reached = before as usize >= limit;
        if reached && enforce {
            return Err(Denied::PerIp);
        }
        shard.insert(key, before + 1);
        Ok(reached)
    }

    fn leave(&self, key: IpAddr) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        let Some(shard) = self.shard(key) else { return };
        let mut shard = shard.lock();
        match shard.get_mut(&key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                shard.remove(&key);
                // A quarter full: a burst is over, give its memory back.
                if shard.capacity() > 64 && shard.len() < shard.capacity() / 4 {
                    let keep = shard.len() * 2;
                    shard.shrink_to(keep);
                }
            }
        }
    }

    fn shard(&self, key: IpAddr) -> Option<&Mutex<HashMap<IpAddr, u32>>> {
        self.shards.get(self.shard_of.hash_one(key) as usize % SHARDS)
    }
}

/// A session's place; it is given back on drop.
#[derive(Debug)]
pub struct Guard {
    limit: Arc<ConnectionLimit>,
    key: IpAddr,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.limit.leave(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    fn entries(limit: &ConnectionLimit) -> usize {
        limit.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn refuses_over_the_limit_of_a_client_until_a_place_is_given_back() {
        let limit = Arc::new(ConnectionLimit::new(Some(2), None));
        let first = limit.acquire(key(1), Enforce::ALL).unwrap();
        let _second = limit.acquire(key(1), Enforce::ALL).unwrap();
        assert_eq!(limit.acquire(key(1), Enforce::ALL).unwrap_err(), Denied::PerIp);
        let _other = limit.acquire(key(2), Enforce::ALL).unwrap();
        assert_eq!(limit.sessions(), 3);
        drop(first);
        assert!(limit.acquire(key(1), Enforce::ALL).is_ok());
    }

    #[test]
    fn refuses_over_the_total() {
        let limit = Arc::new(ConnectionLimit::new(Some(2), Some(2)));
        let guards: Vec<_> = (0..2).map(|n| limit.acquire(key(n), Enforce::ALL).unwrap()).collect();
        assert_eq!(limit.acquire(key(9), Enforce::ALL).unwrap_err(), Denied::Total);
        assert_eq!(limit.sessions_of(key(9)), 0);
        drop(guards);
        assert_eq!(limit.sessions(), 0);
    }

    #[test]
    fn a_refused_client_leaves_no_trace_in_the_total() {
        let limit = Arc::new(ConnectionLimit::new(Some(0), Some(5)));
        assert_eq!(limit.acquire(key(1), Enforce::ALL).unwrap_err(), Denied::PerIp);
        assert_eq!((limit.sessions(), entries(&limit)), (0, 0));
    }

    #[test]
    fn counts_without_refusing_and_says_what_it_would_refuse() {
        let limit = Arc::new(ConnectionLimit::new(Some(1), Some(3)));
        let hop = Enforce { per_ip: false, total: true };
        let first = limit.acquire(key(1), hop).unwrap();
        let second = limit.acquire(key(1), hop).unwrap();
        let _third = limit.acquire(key(1), hop).unwrap();
        assert_eq!((first.would_refuse, second.would_refuse), (None, Some(Denied::PerIp)));
        assert_eq!(limit.sessions_of(key(1)), 3);
        assert_eq!(limit.acquire(key(2), hop).unwrap_err(), Denied::Total);
        let report = Enforce { per_ip: false, total: false };
        assert_eq!(limit.acquire(key(2), report).unwrap().would_refuse, Some(Denied::Total));
    }

    #[test]
    fn the_map_forgets_a_client_with_its_last_session() {
        let limit = Arc::new(ConnectionLimit::new(Some(9), None));
        let guards: Vec<_> = (0..50_000).map(|n| limit.acquire(key(n / 2), Enforce::ALL).unwrap()).collect();
        assert_eq!(entries(&limit), 25_000);
        drop(guards);
        assert_eq!(entries(&limit), 0);
        let capacity: usize = limit.shards.iter().map(|shard| shard.lock().capacity()).sum();
        assert!(capacity <= SHARDS * 64, "{capacity}");
    }

    #[test]
    fn threads_never_pass_the_limits() {
        let limit = Arc::new(ConnectionLimit::new(Some(3), Some(5)));
        std::thread::scope(|scope| {
            for n in 0..4u32 {
                let limit = &limit;
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        let acquired = limit.acquire(key(n % 2), Enforce::ALL);
                        assert!(limit.sessions_of(key(n % 2)) <= 3 && limit.sessions() <= 5);
                        drop(acquired);
                    }
                });
            }
        });
        assert_eq!((limit.sessions(), entries(&limit)), (0, 0));
    }

    #[test]
    fn a_guard_is_small() {
        assert!(size_of::<Guard>() <= 32);
    }
}
