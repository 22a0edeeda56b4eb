//! Keeps an engine connected: connects, makes subscriptions anew, watches, and begins again when a session is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::super::engine::EngineError;
use super::session::{self, Session};
use super::{Shared, clock, subjects};

/// The first time between two tries to connect.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// After so many heartbeats without an answer, or that did not come back, a session is lost.
const MISSED_HEARTBEATS: u32 = 3;

/// Runs until it is dropped.
pub async fn run(shared: Arc<Shared>) {
    let mut failures = 0;
    let mut number = 0;
    loop {
        number += 1;
        match connect(&shared, number).await {
            Ok(session) => {
                failures = 0;
                let session = Arc::new(session);
                let reason = serve(&shared, &session).await;
                shared.lost(&session, &reason);
            }
            Err(error) => shared.closed(&error),
        }
        failures += 1;
        tokio::time::sleep(backoff(failures, shared.settings.max_backoff)).await;
    }
}

/// How long to wait after so many failures in a row: twice as long each time, and of that a random part, at least half,
/// so that the nodes of a region do not come back at once.
pub fn backoff(failures: u32, max: Duration) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(max).mul_f64(rand::random_range(0.5..=1.0))
}

/// A session whose heartbeats are heard, and which has told the server's time.
async fn connect(shared: &Arc<Shared>, number: u64) -> Result<Session, EngineError> {
    let session = Session::connect(&shared.settings, &shared.region, number).await?;
    shared.clock.forget();
    let subscriber = session.subscribe(subjects::beat_pushed(shared.node)).await?;
    let link = session.link.clone();
    session.keep_beats(session::forward(subscriber, session.link.clone(), move |_| {
        *link.heard.lock() = Some(Instant::now());
    }));
    beat(shared, &session).await?;
    Ok(session)
}

/// Takes over what is subscribed to, watches the session until it is lost, and says why it was.
async fn serve(shared: &Arc<Shared>, session: &Arc<Session>) -> EngineError {
    shared.taken_over(session);
    let renewing = async {
        if let Err(reason) = shared.renew(session).await {
            return reason;
        }
        loop {
            session.link.dropped.notified().await;
            shared.dropped(session).await;
        }
    };
    tokio::select! {
        reason = renewing => reason,
        reason = watch(shared, session) => reason,
        reason = session.link.lost() => reason,
    }
}

/// Sends heartbeats, which have to come back by the way that entries take, until they do not.
async fn watch(shared: &Arc<Shared>, session: &Session) -> EngineError {
    let mut ticks = tokio::time::interval(shared.settings.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deaf_after = shared.settings.heartbeat.saturating_mul(MISSED_HEARTBEATS);
    let mut answered = Instant::now();
    let mut heard = Instant::now();
    loop {
        ticks.tick().await;
        if !session.is_same_connection() {
            return EngineError::Unreachable;
        }
        let asked = Instant::now();
        let left = deaf_after.saturating_sub(answered.elapsed());
        let beat = tokio::time::timeout(left, beat(shared, session)).await.unwrap_or(Err(EngineError::TimedOut));
        match beat {
            Ok(engine_ms) => {
                answered = Instant::now();
                let now = *session.link.heard.lock();
                if let Some(at) = now.filter(|at| *at > heard) {
                    heard = at;
                    shared.beat(engine_ms, asked.elapsed());
                } else if heard.elapsed() > deaf_after {
                    // It answers, but what is stored does not arrive.
                    return EngineError::TimedOut;
                }
            }
            Err(error @ (EngineError::TimedOut | EngineError::Malformed { .. })) => {
                if answered.elapsed() >= deaf_after {
                    return error;
                }
                // Time in which nothing is answered is not held against what arrives.
                heard = Instant::now();
            }
            // The stream is gone, or is another, or nobody leads it.
            Err(error) => return error,
        }
    }
}

/// One heartbeat: the server's time.
async fn beat(shared: &Arc<Shared>, session: &Session) -> Result<u64, EngineError> {
    let asked = Instant::now();
    let seen = session.beat(shared.node).await?;
    shared.clock.learn(seen.last_ms, clock::local_ms(), asked.elapsed());
    if seen.created != session.seen.created || seen.leader != session.seen.leader {
        return Err(EngineError::Unreachable);
    }
    Ok(seen.last_ms)
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
