//! Liveness: when to ping a side, and when to give it up.
//!
//! A pong cannot overtake a frame in progress, so every byte counts as a sign of life, and not only the pong. A side
//! that we do not read, or whose own output is pending, cannot be judged: its clock stands still. An acknowledgement
//! by the peer's kernel proves life only up to the end of our ping: what comes after it proves only that a kernel
//! lives.
//!
//! ```text
//!            interval without a write, or without a read          ping written
//!   Quiet ------------------------------------------------> Due ---------------> Waiting
//!     ^                                                                             |
//!     +---------------- our pong, or [`Keepalive::forget_ping`] --------------------+--> expired after timeout
//! ```

use std::time::{Duration, Instant};

use super::Fault;
use super::range::{self, HOUR, MINUTE, SECOND};

/// The `keepalive` settings of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A side is pinged when for so long nothing was written to it or nothing was read from it.
    pub interval: Duration,
    /// A side is dead so long after the last sign of life that followed our ping.
    pub timeout: Duration,
    /// Whether the client is pinged.
    pub client: bool,
    /// Whether the upstream is pinged.
    pub upstream: bool,
}

impl Settings {
    /// What is outside its range.
    pub fn faults(&self) -> Vec<Fault> {
        let faults = [
            range::span("interval", self.interval, &range::millis(SECOND, HOUR)),
            range::span("timeout", self.timeout, &range::millis(SECOND, 10 * MINUTE)),
        ];
        faults.into_iter().flatten().map(|fault| range::or_off(fault, "keepalive")).collect()
    }
}

/// What the kernel knows of a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSnapshot {
    /// Bytes that the peer has acknowledged since the connection began.
    pub acked_bytes: u64,
    /// Bytes that the peer has not acknowledged, sent or not.
    pub queued_bytes: u64,
    /// The peer's receive window in bytes.
    pub window_bytes: u32,
}

/// While a ping is unanswered the kernel is asked this many times in a `timeout` for signs of life.
const SAMPLES_PER_TIMEOUT: u32 = 8;

/// The liveness of one side.
#[derive(Debug)]
pub struct Keepalive {
    interval: Duration,
    timeout: Duration,
    last_read: Instant,
    last_written: Instant,
    state: State,
    /// Since when this side cannot be judged.
    paused_since: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// No ping of ours is on its way. A ping may become due.
    Quiet,
    /// A ping was asked for and is not written yet: it waits for the end of a frame.
    Due,
    /// A ping was written; the pong, life or the timeout follows.
    Waiting { sent_at: Instant, life_at: Instant, sample_at: Instant, end_acked_bytes: u64, last: Option<TcpSnapshot> },
}

/// What is to be done for a side now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before the next deadline.
    Nothing,
    /// Send a ping when the frame in progress ends, and say so by [`Keepalive::on_ping_written`].
    SendPing,
    /// The side is dead: no sign of life for so long.
    Expired(Duration),
}

impl Keepalive {
    /// A side that is alive at `now`.
    pub fn new(settings: &Settings, now: Instant) -> Self {
        Self {
            interval: settings.interval,
            timeout: settings.timeout,
            last_read: now,
            last_written: now,
            state: State::Quiet,
            paused_since: None,
        }
    }

    /// Bytes came from this side.
    pub fn on_read(&mut self, now: Instant) {
        self.last_read = now;
        if let State::Waiting { life_at, .. } = &mut self.state {
            *life_at = now;
        }
    }

    /// This side's socket took bytes.
    pub fn on_written(&mut self, now: Instant) {
        self.last_written = now;
    }

    /// Our ping was handed to this side's socket.
    pub fn on_ping_written(&mut self, now: Instant, snapshot: Option<TcpSnapshot>) {
        self.last_written = now;
        self.state = State::Waiting {
            sent_at: now,
            life_at: now,
            sample_at: now + self.timeout / SAMPLES_PER_TIMEOUT,
            end_acked_bytes: snapshot.map_or(0, |tcp| tcp.acked_bytes + tcp.queued_bytes),
            last: snapshot,
        };
    }

    /// Our pong came: how long it took, if we were still waiting for it.
    pub fn on_pong(&mut self, now: Instant) -> Option<Duration> {
        let State::Waiting { sent_at, .. } = self.state else { return None };
        self.state = State::Quiet;
        Some(now - sent_at)
    }

    /// Gives up waiting for the pong, and keeps the side: its pings only hold the path open.
    pub fn forget_ping(&mut self) {
        self.state = State::Quiet;
    }

    /// Says whether this side can be judged: it is read, and no other output to it is pending.
    pub fn set_judged(&mut self, judged: bool, now: Instant) {
        match (judged, self.paused_since) {
            (true, Some(since)) => {
                let paused = now.saturating_duration_since(since);
                self.paused_since = None;
                // Bytes may have come during the pause: no time may be moved past `now`.
                self.last_read = (self.last_read + paused).min(now);
                if let State::Waiting { life_at, sample_at, .. } = &mut self.state {
                    *life_at = (*life_at + paused).min(now);
                    *sample_at = (*sample_at + paused).max(now);
                }
            }
            (false, None) => self.paused_since = Some(now),
            (true, None) | (false, Some(_)) => {}
        }
    }

    /// Whether [`Keepalive::poll`] at `now` wants a snapshot of the connection.
    pub fn wants_snapshot(&self, now: Instant) -> bool {
        self.paused_since.is_none() && matches!(self.state, State::Waiting { sample_at, .. } if now >= sample_at)
    }

    /// What is to be done at `now`. `snapshot` is what the kernel knows, where it was wanted and is TCP.
    pub fn poll(&mut self, now: Instant, snapshot: Option<TcpSnapshot>) -> Step {
        if self.paused_since.is_some() {
            return Step::Nothing;
        }
        match &mut self.state {
            State::Quiet if now >= self.last_read.min(self.last_written) + self.interval => {
                self.state = State::Due;
                Step::SendPing
            }
            State::Quiet | State::Due => Step::Nothing,
            State::Waiting { life_at, sample_at, end_acked_bytes, last, .. } => {
                if now >= *sample_at {
                    *sample_at = now + self.timeout / SAMPLES_PER_TIMEOUT;
                    if let (Some(before), Some(after)) = (*last, snapshot) {
                        let acked = before.acked_bytes < *end_acked_bytes && after.acked_bytes > before.acked_bytes;
                        if acked || after.window_bytes > before.window_bytes {
                            *life_at = now;
                        }
                    }
                    *last = snapshot.or(*last);
                }
                let silent = now.saturating_duration_since(*life_at);
                if silent >= self.timeout { Step::Expired(silent) } else { Step::Nothing }
            }
        }
    }

    /// When [`Keepalive::poll`] may have something to do by time alone.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.paused_since.is_some() {
            return None;
        }
        match &self.state {
            State::Quiet => Some(self.last_read.min(self.last_written) + self.interval),
            State::Due => None,
            State::Waiting { life_at, sample_at, .. } => Some((*life_at + self.timeout).min(*sample_at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Side {
        start: Instant,
        keepalive: Keepalive,
    }

    impl Side {
        fn new() -> Self {
            let start = Instant::now();
            let settings = Settings {
                interval: Duration::from_secs(25),
                timeout: Duration::from_secs(30),
                client: true,
                upstream: true,
            };
            Self { start, keepalive: Keepalive::new(&settings, start) }
        }

        fn at(&self, secs: u64) -> Instant {
            self.start + Duration::from_secs(secs)
        }

        fn poll(&mut self, secs: u64, tcp: Option<TcpSnapshot>) -> Step {
            self.keepalive.poll(self.at(secs), tcp)
        }

        /// A side that was pinged at 25 s while `queued_bytes`, the ping among them, were not acknowledged.
        fn pinged(queued_bytes: u64) -> Self {
            let mut side = Self::new();
            assert_eq!(side.poll(25, None), Step::SendPing);
            side.keepalive.on_ping_written(side.at(25), Some(tcp(0, queued_bytes, 1000)));
            side
        }
    }

    fn tcp(acked_bytes: u64, queued_bytes: u64, window_bytes: u32) -> TcpSnapshot {
        TcpSnapshot { acked_bytes, queued_bytes, window_bytes }
    }

    const EXPIRED: Step = Step::Expired(Duration::from_secs(30));

    #[test]
    fn pings_when_nothing_was_read_even_while_writing() {
        let mut side = Side::new();
        for secs in 1..25 {
            side.keepalive.on_written(side.at(secs));
            assert_eq!(side.poll(secs, None), Step::Nothing);
        }
        assert_eq!(side.poll(25, None), Step::SendPing);
        assert_eq!(side.poll(26, None), Step::Nothing, "asked for once");
    }

    #[test]
    fn pings_when_nothing_was_written_even_while_reading() {
        let mut side = Side::new();
        side.keepalive.on_read(side.at(24));
        assert_eq!(side.keepalive.next_deadline(), Some(side.at(25)));
        assert_eq!(side.poll(25, None), Step::SendPing);
    }

    #[test]
    fn an_answered_ping_measures_the_round_trip_and_begins_anew() {
        let mut side = Side::pinged(10);
        side.keepalive.on_read(side.at(26));
        assert_eq!(side.keepalive.on_pong(side.at(26)), Some(Duration::from_secs(1)));
        assert_eq!(side.keepalive.on_pong(side.at(26)), None, "a late pong is nobody's");
        assert_eq!(side.keepalive.next_deadline(), Some(side.at(25 + 25)));
    }

    #[test]
    fn a_pause_stops_what_is_asked_for_and_the_clock() {
        let mut side = Side::pinged(10);
        let sample = side.keepalive.next_deadline().unwrap();
        assert!(!side.keepalive.wants_snapshot(side.at(25)) && side.keepalive.wants_snapshot(sample));
        for _ in 0..2 {
            side.keepalive.set_judged(false, side.at(26));
        }
        assert!(!side.keepalive.wants_snapshot(sample));
        assert_eq!((side.keepalive.next_deadline(), side.poll(60, None)), (None, Step::Nothing));
        for _ in 0..2 {
            side.keepalive.set_judged(true, side.at(66));
        }
        assert_eq!(side.poll(94, None), Step::Nothing);
        assert_eq!(side.poll(95, None), EXPIRED);
        // A ping that was asked for waits for the end of a frame: no time ends that.
        let mut side = Side::new();
        assert_eq!(side.poll(25, None), Step::SendPing);
        assert_eq!(side.keepalive.next_deadline(), None);
    }

    #[test]
    fn a_silent_side_expires_a_timeout_after_the_ping() {
        let mut side = Side::pinged(10);
        assert_eq!(side.poll(54, Some(tcp(0, 10, 1000))), Step::Nothing);
        assert_eq!(side.poll(55, Some(tcp(0, 10, 1000))), EXPIRED);
    }

    #[test]
    fn every_byte_is_a_sign_of_life() {
        let mut side = Side::pinged(10);
        for secs in 26..500 {
            side.keepalive.on_read(side.at(secs));
            assert_eq!(side.poll(secs, Some(tcp(0, 10, 1000))), Step::Nothing, "a frame in progress delays the pong");
        }
        assert_eq!(side.poll(499 + 30, Some(tcp(0, 10, 1000))), EXPIRED);
    }

    #[test]
    fn a_ping_behind_a_slow_download_waits_until_it_was_acknowledged() {
        let mut side = Side::pinged(100_000);
        for step in 1..=100 {
            assert_eq!(side.poll(25 + 20 * step, Some(tcp(1000 * step, 0, 1000))), Step::Nothing);
        }
        // All is acknowledged at 2025 s; acknowledgements of later bytes prove only that a kernel lives.
        assert_eq!(side.poll(2025 + 29, Some(tcp(150_000, 0, 1000))), Step::Nothing);
        assert_eq!(side.poll(2025 + 30, Some(tcp(200_000, 0, 1000))), EXPIRED);
    }

    #[test]
    fn a_growing_window_is_a_sign_of_life_and_a_shrinking_one_is_not() {
        let mut side = Side::pinged(0);
        assert_eq!(side.poll(45, Some(tcp(0, 0, 2000))), Step::Nothing);
        assert_eq!(side.poll(74, Some(tcp(0, 0, 1500))), Step::Nothing);
        assert_eq!(side.poll(75, Some(tcp(0, 0, 1500))), EXPIRED);
    }

    #[test]
    fn the_clock_stands_still_while_the_side_is_not_judged() {
        let mut side = Side::pinged(10);
        side.keepalive.set_judged(false, side.at(30));
        assert_eq!(side.keepalive.next_deadline(), None);
        assert_eq!(side.poll(3000, None), Step::Nothing);
        side.keepalive.set_judged(true, side.at(1030));
        assert_eq!(side.poll(1054, Some(tcp(0, 10, 1000))), Step::Nothing);
        assert_eq!(side.poll(1055, Some(tcp(0, 10, 1000))), EXPIRED);
    }

    #[test]
    fn a_forgotten_ping_is_followed_by_another() {
        let mut side = Side::pinged(10);
        side.keepalive.forget_ping();
        assert_eq!(side.poll(55, None), Step::SendPing);
    }
}
