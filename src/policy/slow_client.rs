//! Slow readers: when a client that does not take its output is given up.
//!
//! Output is pending while the client's socket takes no more. What the policy judges is how much was taken while it
//! was pending without a pause, so a client that reads slowly and steadily lives, and one that reads a byte a second
//! does not. The tunnel judges the upstream's reading by the same type.

use std::time::{Duration, Instant};

use super::Fault;
use super::range::{self, HOUR, SECOND};

/// The `slow_client` settings of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A client is slow when output was pending for so long without a pause...
    pub timeout: Duration,
    /// ...and less than this was taken meanwhile, in bytes a second.
    pub min_rate_bytes: u64,
}

impl Settings {
    /// What is outside its range.
    pub fn faults(&self) -> Vec<Fault> {
        let faults = [
            range::span("timeout", self.timeout, &range::millis(SECOND, HOUR)),
            range::byte_rate("min_rate", self.min_rate_bytes),
        ];
        faults.into_iter().flatten().map(|fault| range::or_off(fault, "slow_client")).collect()
    }
}

/// Output pending for longer than this makes a client slow for the gauge `sluicegate_slow_clients`.
pub const SLOW_AFTER: Duration = Duration::from_secs(1);

/// A reader that takes too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow {
    /// What it took in the last window, in bytes.
    pub taken_bytes: u64,
    /// How long output has been pending without a pause.
    pub pending_for: Duration,
}

/// The judgement of one client's reading.
#[derive(Debug)]
pub struct SlowClient {
    settings: Option<Settings>,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    since: Instant,
    window_from: Instant,
    window_taken_bytes: u64,
}

impl SlowClient {
    /// A client without pending output. `None` never gives it up, and still knows whether it is slow.
    pub fn new(settings: Option<Settings>) -> Self {
        Self { settings, pending: None }
    }

    /// Output became pending, or still is.
    pub fn on_pending(&mut self, now: Instant) {
        self.pending.get_or_insert(Pending { since: now, window_from: now, window_taken_bytes: 0 });
    }

    /// The client's socket took `bytes` of pending output.
    pub fn on_taken(&mut self, bytes: u64) {
        if let Some(pending) = &mut self.pending {
            pending.window_taken_bytes += bytes;
        }
    }

    /// No output is pending any more.
    pub fn on_drained(&mut self) {
        self.pending = None;
    }

    /// Judges the client from `now` on, as if its output became pending then.
    pub fn restart(&mut self, now: Instant) {
        if let Some(pending) = &mut self.pending {
            *pending = Pending { since: pending.since, window_from: now, window_taken_bytes: 0 };
        }
    }

    /// Whether output has been pending without a pause for longer than [`SLOW_AFTER`].
    pub fn is_slow(&self, now: Instant) -> bool {
        self.pending.as_ref().is_some_and(|pending| now >= pending.since + SLOW_AFTER)
    }

    /// When [`SlowClient::is_slow`] or [`SlowClient::check`] may change its mind by time alone.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let pending = self.pending.as_ref()?;
        let judged = self.settings.as_ref().map(|settings| pending.window_from + settings.timeout);
        let slow = Some(pending.since + SLOW_AFTER).filter(|at| *at > now);
        judged.into_iter().chain(slow).min()
    }

    /// Judges the client when a window of `timeout` has passed, and begins the next window: one who is given up has it
    /// to take what is pending and the Close frame behind it.
    ///
    /// # Errors
    /// What it took in the window, when that is too little.
    pub fn check(&mut self, now: Instant) -> Result<(), TooSlow> {
        let (Some(settings), Some(pending)) = (&self.settings, &mut self.pending) else { return Ok(()) };
        let window = now.saturating_duration_since(pending.window_from);
        if window < settings.timeout {
            return Ok(());
        }
        let wanted = settings.min_rate_bytes as f64 * window.as_secs_f64();
        pending.window_from = now;
        let taken_bytes = std::mem::take(&mut pending.window_taken_bytes);
        if (taken_bytes as f64) < wanted {
            return Err(TooSlow { taken_bytes, pending_for: now - pending.since });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> SlowClient {
        SlowClient::new(Some(Settings { timeout: Duration::from_secs(30), min_rate_bytes: 1024 }))
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn gives_up_a_client_that_takes_a_byte_a_second() {
        let start = Instant::now();
        let mut policy = policy();
        policy.on_pending(start);
        for second in 1..30 {
            policy.on_taken(1);
            assert_eq!(policy.check(start + secs(second)), Ok(()));
        }
        let expected = TooSlow { taken_bytes: 29, pending_for: secs(30) };
        assert_eq!(policy.check(start + secs(30)), Err(expected));
        assert_eq!(policy.check(start + secs(31)), Ok(()), "given up once in a window");
    }

    #[test]
    fn one_that_is_only_reported_is_judged_anew() {
        let start = Instant::now();
        let mut policy = policy();
        policy.restart(start);
        policy.on_pending(start);
        assert!(policy.check(start + secs(30)).is_err());
        policy.restart(start + secs(40));
        assert_eq!(policy.check(start + secs(69)), Ok(()));
        let expected = TooSlow { taken_bytes: 0, pending_for: secs(70) };
        assert_eq!(policy.check(start + secs(70)), Err(expected));
    }

    #[test]
    fn never_gives_up_a_client_that_takes_its_rate() {
        let start = Instant::now();
        let mut policy = policy();
        policy.on_pending(start);
        for second in 1..1000 {
            policy.on_taken(100 << 10);
            assert_eq!(policy.check(start + secs(second)), Ok(()));
        }
        // The next window judges anew: what was taken before does not count.
        assert!(policy.check(start + secs(2000)).is_err());
    }

    #[test]
    fn a_pause_begins_anew() {
        let start = Instant::now();
        let mut policy = policy();
        policy.on_pending(start);
        policy.on_drained();
        policy.on_pending(start + secs(29));
        assert_eq!(policy.check(start + secs(58)), Ok(()));
        assert!(policy.check(start + secs(59)).is_err());
    }

    #[test]
    fn is_slow_after_a_second_also_when_off() {
        let start = Instant::now();
        let mut policy = SlowClient::new(None);
        assert_eq!(policy.next_deadline(start), None);
        policy.on_pending(start);
        assert!(!policy.is_slow(start));
        assert_eq!(policy.next_deadline(start), Some(start + SLOW_AFTER));
        assert!(policy.is_slow(start + SLOW_AFTER));
        assert_eq!(policy.next_deadline(start + SLOW_AFTER), None);
        assert_eq!(policy.check(start + secs(9999)), Ok(()));
        policy.on_drained();
        assert!(!policy.is_slow(start + secs(5)));
    }
}
