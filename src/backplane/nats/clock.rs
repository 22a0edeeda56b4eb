//! The server's clock, as this node reckons it from heartbeats.
//!
//! The server says when it stored a heartbeat, and by then at most the round trip has passed. Of the last few heartbeats
//! the one with the shortest round trip counts.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// How many heartbeats are looked at.
const SAMPLES: usize = 8;

/// What is known of the server's clock.
#[derive(Debug, Default)]
pub struct Clock(Mutex<VecDeque<Sample>>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    round_trip: Duration,
    /// How far the server is ahead of this node, in milliseconds.
    ahead_ms: i64,
}

impl Clock {
    /// A heartbeat was stored at `server_ms` by the server's clock, and the answer came at `now_ms` by this node's.
    pub fn learn(&self, server_ms: u64, now_ms: u64, round_trip: Duration) {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let half_ms = i64::try_from(round_trip.as_millis() / 2).unwrap_or(i64::MAX);
        let ahead_ms = signed(server_ms).saturating_sub(signed(now_ms).saturating_sub(half_ms));
        let mut samples = self.0.lock();
        if samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample { round_trip, ahead_ms });
    }

    /// Another server may have another clock.
    pub fn forget(&self) {
        self.0.lock().clear();
    }

    /// The server's time when this node's is `now_ms`, in milliseconds since 1970.
    pub fn at(&self, now_ms: u64) -> u64 {
        let samples = self.0.lock();
        let ahead_ms = samples.iter().min_by_key(|sample| sample.round_trip).map_or(0, |sample| sample.ahead_ms);
        now_ms.saturating_add_signed(ahead_ms).max(1)
    }
}

/// This node's time, in milliseconds since 1970.
pub fn local_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_of_the_last_counts() {
        let clock = Clock::default();
        assert_eq!(clock.at(1000), 1000);
        clock.learn(5000, 1010, Duration::from_millis(20));
        assert_eq!(clock.at(2000), 6000);
        clock.learn(9000, 3000, Duration::from_millis(500));
        assert_eq!(clock.at(2000), 6000);
        for _ in 0..SAMPLES {
            clock.learn(500, 1001, Duration::from_millis(2));
        }
        assert_eq!(clock.at(2000), 1500, "a server may be behind");
        clock.forget();
        assert_eq!(clock.at(2000), 2000);
    }
}
