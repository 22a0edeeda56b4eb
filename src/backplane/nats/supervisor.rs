//! Keeps an engine connected: connects, makes subscriptions anew, watches, and begins again when a session is lost.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::MissedTickBehavior;

use super::super::engine::EngineError;
use super::session::{self, Session};
use super::{Shared, clock, subjects};
use crate::backplane::backoff::backoff;

/// After so many heartbeats without an answer, or that did not come back, a session is lost.
const MISSED_HEARTBEATS: u32 = 3;

/// After so many that were answered and did not come back, too.
const DEAF_HEARTBEATS: u32 = 2;

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
                } else if heard.elapsed() > shared.settings.heartbeat.saturating_mul(DEAF_HEARTBEATS) {
                    return EngineError::Deaf;
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
