//! How long an engine waits between two tries to reach its server.

use std::time::Duration;

/// The wait after the first failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// How long to wait after so many failures in a row: twice as long each time, and of that a random part, at least half,
/// so that the nodes of a region do not come back at once.
pub fn backoff(failures: u32, max: Duration) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(max).mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_try_waits_longer_up_to_the_limit_and_never_for_the_same_time() {
        let max = Duration::from_secs(5);
        for (failures, whole) in [(0, 100), (1, 100), (2, 200), (6, 3200), (7, 5000), (32, 5000), (u32::MAX, 5000)] {
            let whole = Duration::from_millis(whole);
            let waits: Vec<_> = (0..50).map(|_| backoff(failures, max)).collect();
            assert!(waits.iter().all(|wait| (whole / 2..=whole).contains(wait)), "{failures}: {waits:?}");
            assert!(waits.iter().any(|wait| wait != &waits[0]), "{failures}");
        }
    }
}
