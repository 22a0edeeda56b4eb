//! Whether a handshake is a client's return: one within a minute of the end of a session of the same client.
//!
//! A client is known by its sticky cookie, or by its address and User-Agent, and each rule has its own clients: a page
//! with two sessions is not two that come back. Only a keyed hash is remembered, so nobody can choose whom to be taken
//! for, and nothing of a client is kept.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long the end of a session is remembered.
const WINDOW: Duration = Duration::from_secs(60);

/// The most ends that are remembered; then the oldest is forgotten. One takes 16 bytes in the queue, and 34 in the map
/// at its sparsest, so all together at most 3.3 MB.
const MAX_ENDS: usize = 65_536;

/// By what a client was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its sticky cookie.
    Cookie,
    /// Its address and User-Agent.
    Address,
}

/// A client of a rule, as far as it can be known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    cookie: Option<u64>,
    address: u64,
}

/// The sessions that ended a moment ago.
#[derive(Debug)]
pub struct Reconnects {
    ends: Mutex<Ends>,
    hasher: RandomState,
    start: Instant,
}

/// Times are in milliseconds since the start.
#[derive(Debug, Default)]
struct Ends {
    /// When a client's last session ended.
    last: HashMap<u64, u64>,
    /// The same in the order of time, with ends that are no longer the last of their client.
    order: VecDeque<(u64, u64)>,
}

impl Reconnects {
    /// Nobody, from `start` on.
    pub fn new(start: Instant) -> Self {
        Self { ends: Mutex::default(), hasher: RandomState::new(), start }
    }

    /// The client of a handshake. `cookie` is the value of its sticky cookie, the one that it has from now on.
    pub fn client(&self, rule: &str, cookie: Option<&[u8]>, address: IpAddr, user_agent: &[u8]) -> Client {
        Client {
            cookie: cookie.map(|cookie| self.hasher.hash_one(("cookie", rule, cookie))),
            address: self.hasher.hash_one(("address", rule, address, user_agent)),
        }
    }

    /// Whether the client comes back, and by what it is known.
    pub fn returns(&self, client: &Client, now: Instant) -> Option<By> {
        let now = self.millis(now);
        let ends = self.ends.lock();
        let ended = |key: &u64| ends.last.get(key).is_some_and(|at| now.saturating_sub(*at) <= millis(WINDOW));
        if client.cookie.as_ref().is_some_and(ended) {
            return Some(By::Cookie);
        }
        ended(&client.address).then_some(By::Address)
    }

    /// Remembers that a session of the client ended.
    pub fn ended(&self, client: &Client, now: Instant) {
        let now = self.millis(now);
        let mut ends = self.ends.lock();
        let Ends { last, order } = &mut *ends;
        for key in client.cookie.into_iter().chain([client.address]) {
            while let Some((oldest, at)) = order.front().copied()
                && (order.len() >= MAX_ENDS || now.saturating_sub(at) > millis(WINDOW))
            {
                order.pop_front();
                // Unless the same client ended another since.
                if last.get(&oldest) == Some(&at) {
                    last.remove(&oldest);
                }
            }
            last.insert(key, now);
            order.push_back((key, now));
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.start))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + last).into())
    }

    #[test]
    fn a_handshake_within_a_minute_of_the_end_is_a_return() {
        let start = Instant::now();
        let reconnects = Reconnects::new(start);
        let client = reconnects.client("chat", None, address(1), b"browser");
        assert_eq!(reconnects.returns(&client, start), None, "it was never here");
        reconnects.ended(&client, start + SECOND);
        assert_eq!(reconnects.returns(&client, start + 61 * SECOND), Some(By::Address));
        assert_eq!(reconnects.returns(&client, start + 62 * SECOND), None);
    }

    #[test]
    fn other_addresses_agents_and_rules_are_other_clients() {
        let start = Instant::now();
        let reconnects = Reconnects::new(start);
        reconnects.ended(&reconnects.client("chat", None, address(1), b"browser"), start);
        for (rule, address, agent) in
            [("chat", address(2), "browser"), ("chat", address(1), "other"), ("feed", address(1), "browser")]
        {
            let other = reconnects.client(rule, None, address, agent.as_bytes());
            assert_eq!(reconnects.returns(&other, start), None, "{rule} {address} {agent}");
        }
    }

    #[test]
    fn a_cookie_knows_a_client_that_moved() {
        let start = Instant::now();
        let reconnects = Reconnects::new(start);
        reconnects.ended(&reconnects.client("chat", Some(b"a"), address(1), b"browser"), start);
        let moved = reconnects.client("chat", Some(b"a"), address(2), b"browser");
        assert_eq!(reconnects.returns(&moved, start), Some(By::Cookie));
        let new_cookie = reconnects.client("chat", Some(b"b"), address(1), b"browser");
        assert_eq!(reconnects.returns(&new_cookie, start), Some(By::Address));
        let stranger = reconnects.client("chat", Some(b"b"), address(2), b"browser");
        assert_eq!(reconnects.returns(&stranger, start), None);
    }

    #[test]
    fn the_oldest_ends_make_place_and_the_table_stays_bounded() {
        let start = Instant::now();
        let reconnects = Reconnects::new(start);
        let clients: Vec<_> =
            (0..MAX_ENDS as u32 + 100).map(|nth| reconnects.client("chat", None, address(nth), b"")).collect();
        // The first client again and again does not count twice.
        reconnects.ended(&clients[0], start);
        for client in &clients {
            reconnects.ended(client, start + SECOND);
        }
        let size = |reconnects: &Reconnects| {
            let ends = reconnects.ends.lock();
            (ends.last.len(), ends.order.len())
        };
        assert_eq!(size(&reconnects), (MAX_ENDS, MAX_ENDS));
        assert_eq!(reconnects.returns(&clients[99], start + SECOND), None);
        assert_eq!(reconnects.returns(&clients[100], start + SECOND), Some(By::Address));
        assert_eq!(reconnects.returns(&clients[MAX_ENDS + 99], start + SECOND), Some(By::Address));
        // A minute later the first end that is remembered sweeps the others out.
        reconnects.ended(&clients[0], start + 62 * SECOND);
        assert_eq!(size(&reconnects), (1, 1));
    }
}
