//! When a request with events is made again.
//!
//! A backend may have acted on a request that it has whole, and events must not reach it twice unknown to it. So what
//! broke is made again only as long as the backend cannot have the whole body. While a connection opens nothing is made
//! again: the client itself can try anew.

use super::Limits;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection came about: refused, too slow, or its TLS handshake failed.
    Connect,
    /// The connection broke, or no answer came in time.
    Broken {
        /// Whether the last byte of the body was given to the connection.
        sent_whole: bool,
    },
}

/// After how many milliseconds the request is made again: 1 s, twice as long each time, and `jitter_ms` more, of which at
/// most 1,000 count. `None`: the connection ends.
///
/// `retries` is how often it was made again already; [`Limits::retries`] bounds it.
pub fn delay_ms(failure: Failure, opening: bool, retries: u32, jitter_ms: u64, limits: &Limits) -> Option<u64> {
    let safe = match failure {
        Failure::Connect => true,
        Failure::Broken { sent_whole } => !sent_whole,
    };
    if opening || !safe || retries >= limits.retries {
        return None;
    }
    // Beyond this each wait would be 18 hours, whatever the limit says.
    Some((1_000 << retries.min(16)) + jitter_ms.min(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end() {
        let limits = Limits::default();
        let delay = |retries| delay_ms(Failure::Connect, false, retries, 250, &limits);
        let delays: Vec<_> = (0..6).map(delay).collect();
        assert_eq!(delays, [Some(1_250), Some(2_250), Some(4_250), Some(8_250), Some(16_250), None]);
        assert_eq!(delay_ms(Failure::Connect, false, 0, 5_000, &limits), Some(2_000));
        let many = Limits { retries: u32::MAX, ..Limits::default() };
        assert_eq!(delay_ms(Failure::Connect, false, 1_000, 0, &many), Some(65_536_000));
    }

    #[test]
    fn what_a_backend_may_have_acted_on_is_not_made_again() {
        let limits = Limits::default();
        assert_eq!(delay_ms(Failure::Broken { sent_whole: false }, false, 0, 0, &limits), Some(1_000));
        assert_eq!(delay_ms(Failure::Broken { sent_whole: true }, false, 0, 0, &limits), None);
        assert_eq!(delay_ms(Failure::Connect, true, 0, 0, &limits), None);
    }
}
