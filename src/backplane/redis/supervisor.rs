//! Keeps a Redis engine connected: connects, makes subscriptions anew, watches, and begins again when a session is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::super::engine::{EngineError, Event, Scope};
use super::super::position::Epoch;
use super::session::Session;
use super::{Servers, Shared, keys};

/// The first time between two tries to connect.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// How many subscriptions are made anew with one write.
const SUBSCRIPTIONS_AT_ONCE: usize = 256;

/// After so many heartbeats without an answer, or that did not come back, a session is lost.
const MISSED_HEARTBEATS: u32 = 3;

/// Runs until the engine is dropped.
pub async fn run(shared: Arc<Shared>) {
    let mut lineage: Option<Epoch> = None;
    let mut told: Option<EngineError> = None;
    let mut failures = 0;
    for number in 0.. {
        match connect(&shared, number).await {
            Ok(session) => {
                failures = 0;
                let before = lineage.replace(session.lineage.clone());
                *shared.session.lock() = Ok(session.clone());
                shared.tell(Event::Up);
                if let Some(from) = before.filter(|from| *from != session.lineage) {
                    shared.tell(Event::LineageChanged { from, to: session.lineage.clone() });
                }
                let reason = serve(&shared, &session).await;
                *shared.session.lock() = Err(reason.clone());
                told = Some(reason.clone());
                shared.tell(Event::Down(reason));
                shared.tell(Event::Disrupted(Scope::All));
            }
            Err(error) => {
                *shared.session.lock() = Err(error.clone());
                // Once for each reason, not at every try.
                if told.replace(error.clone()) != Some(error.clone()) {
                    shared.tell(Event::Down(error));
                }
            }
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

async fn connect(shared: &Arc<Shared>, number: u64) -> Result<Session, EngineError> {
    let lost = Arc::new(Notify::new());
    // Weak, since the connection's task lives as long as the connection is used.
    let (weak, also) = (Arc::downgrade(shared), lost.clone());
    let on_push = move |info| {
        if let Some(shared) = weak.upgrade() {
            shared.pushed(number, &also, info);
        }
    };
    // Each step has a time-out of its own; this is for those that have none, such as looking names up.
    let sentinels = match &shared.settings.servers {
        Servers::Standalone { .. } => 0,
        Servers::Sentinel { urls, .. } => u32::try_from(urls.len()).unwrap_or(u32::MAX),
    };
    let whole = shared.settings.timeout.saturating_mul(sentinels.saturating_mul(2).saturating_add(8));
    let session = Session::connect(&shared.settings, &shared.region, number, lost, on_push);
    let session = tokio::time::timeout(whole, session).await.map_err(|_| EngineError::TimedOut)??;
    let names = [keys::heartbeat(shared.node)];
    let heartbeat = tokio::time::timeout(shared.settings.timeout, session.subscribe(&names)).await;
    heartbeat.map_err(|_| EngineError::TimedOut)?.map_err(|error| super::wire::error(&error))?;
    Ok(session)
}

/// Makes all subscriptions anew and watches the session until it is lost. Says why it was.
async fn serve(shared: &Arc<Shared>, session: &Session) -> EngineError {
    let readings = shared.subscriptions.lock().restart();
    let resubscribe = async {
        for part in readings.chunks(SUBSCRIPTIONS_AT_ONCE) {
            let names: Vec<_> = part.iter().map(|reading| keys::push(&reading.channel)).collect();
            if shared.within(session, session.subscribe(&names)).await.is_err() {
                return EngineError::Unreachable;
            }
            for reading in part {
                // Waited for here, so that there are not as many tasks as there are channels.
                let Ok(permit) = shared.reads.clone().acquire_owned().await else { continue };
                // One that ended meanwhile was unsubscribed before the server heard of it here.
                if shared.subscriptions.lock().is_current(reading) {
                    tokio::spawn(shared.clone().catch_up(reading.clone(), permit));
                } else if !shared.subscriptions.lock().contains(&reading.channel) {
                    tokio::spawn({
                        let (shared, channel) = (shared.clone(), reading.channel.clone());
                        async move { shared.unsubscribe(&channel).await }
                    });
                }
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        // Dropped together with the session: nothing in these has to come to an end.
        reason = resubscribe => reason,
        reason = watch(shared, session) => reason,
        () = session.lost.notified() => EngineError::Unreachable,
    }
}

/// Asks for the engine's time, and sends a message that has to come back by way of Pub/Sub, until either does not.
async fn watch(shared: &Arc<Shared>, session: &Session) -> EngineError {
    let mut ticks = tokio::time::interval(shared.settings.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deaf_after = shared.settings.heartbeat.saturating_mul(MISSED_HEARTBEATS);
    let mut missed = 0;
    let mut last_heard = Instant::now();
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let (mut commands, mut reads) = (session.commands.clone(), session.reads.clone());
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd(session.publish_command()).arg(keys::heartbeat(shared.node)).arg("");
        // Reads may be rare, and a server may close a connection that is idle.
        let ping = redis::cmd("PING");
        let (answer, _) = tokio::join!(
            shared.within(session, pipeline.query_async::<((u64, u64), Value)>(&mut commands)),
            shared.within(session, ping.query_async::<Value>(&mut reads)),
        );
        let Ok(((seconds, micros), _)) = answer else {
            missed += 1;
            if missed >= MISSED_HEARTBEATS {
                return EngineError::TimedOut;
            }
            // Time in which nothing is answered is not held against Pub/Sub.
            last_heard = Instant::now();
            continue;
        };
        missed = 0;
        let heard = shared.heard.lock().filter(|(number, _)| *number == session.number).map(|(_, at)| at);
        if let Some(at) = heard.filter(|at| *at > last_heard) {
            last_heard = at;
            let engine_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
            shared.tell(Event::Heartbeat { engine_ms, round_trip: asked.elapsed() });
        } else if last_heard.elapsed() > deaf_after {
            // It answers, but what is published does not arrive.
            return EngineError::TimedOut;
        }
    }
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
