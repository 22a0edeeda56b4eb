//! Keeps an engine connected to one server: connects, makes subscriptions anew, watches, and begins again when a session
//! is lost. A Cluster has one of these for each of its masters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use redis::Value;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::super::engine::EngineError;
use super::super::subscriptions::Reading;
use super::keys::Partition;
use super::routes::Partitions;
use super::session::{Link, Session, Target};
use super::settings::Servers;
use super::{Shared, Task, ingest, keys, wire};
use crate::backplane::backoff::backoff;

/// How many subscriptions are made anew with one write.
const SUBSCRIPTIONS_AT_ONCE: usize = 256;

/// After so many heartbeats without an answer a session is lost.
const MISSED_HEARTBEATS: u32 = 3;

/// After so many that were answered and did not come back, too.
const DEAF_HEARTBEATS: u32 = 2;

/// Runs until it is dropped. `wanted` says what the server is to be asked for.
pub async fn keep(shared: Arc<Shared>, target: Target, mut wanted: watch::Receiver<Partitions>) {
    let mut failures = 0;
    loop {
        match connect(&shared, &target).await {
            Ok(session) => {
                failures = 0;
                let session = Arc::new(session);
                let reason = serve(&shared, &session, &mut wanted).await;
                // Borrowed for as long as it takes: what is wanted does not change meanwhile.
                shared.lost(&session, *wanted.borrow(), &reason);
            }
            Err(error) => shared.closed(*wanted.borrow(), &error),
        }
        // Maybe another server has what this one had.
        shared.refresh.notify_one();
        failures += 1;
        tokio::time::sleep(backoff(failures, shared.settings.max_backoff)).await;
    }
}

async fn connect(shared: &Arc<Shared>, target: &Target) -> Result<Session, EngineError> {
    let number = shared.next_session();
    let link = Arc::new(Link::default());
    // Weak, since the connection's task lives as long as the connection is used.
    let (weak, also) = (Arc::downgrade(shared), link.clone());
    let on_push = move |info| {
        if let Some(shared) = weak.upgrade() {
            shared.pushed(number, &also, info);
        }
    };
    // Each step has a time-out of its own; this is for those that have none, such as looking names up.
    let sentinels = match &shared.settings.servers {
        Servers::Sentinel { urls, .. } => u32::try_from(urls.len()).unwrap_or(u32::MAX),
        Servers::Standalone { .. } | Servers::Cluster { .. } | Servers::Shards(_) => 0,
    };
    let whole = shared.settings.timeout.saturating_mul(sentinels.saturating_mul(2).saturating_add(8));
    let session = Session::connect(&shared.settings, &shared.region, target, number, link, on_push);
    tokio::time::timeout(whole, session).await.map_err(|_| EngineError::TimedOut)?
}

/// Takes over what is wanted of the server, watches the session until it is lost, and says why it was.
async fn serve(shared: &Arc<Shared>, session: &Arc<Session>, wanted: &mut watch::Receiver<Partitions>) -> EngineError {
    let watching = watch(shared, session);
    tokio::pin!(watching);
    let foreign = shared.serves_foreign().then(|| tokio::spawn(ingest::serve(shared.clone(), session.clone())));
    let _foreign = foreign.map(Task);
    let mut served = Partitions::default();
    loop {
        let all = *wanted.borrow_and_update();
        // What moved away and is wanted nevertheless has come back, or never went.
        let new = all.without(served.without(session.link.take_gone()));
        served = all;
        let renewed = async {
            take_over(shared, session, new, all).await?;
            // Without anybody who wants anything there is nothing to be done.
            wanted.changed().await.map_err(|_| EngineError::Unreachable)
        };
        let result = tokio::select! {
            // Dropped together with the session: nothing in these has to come to an end.
            result = renewed => result,
            reason = &mut watching => Err(reason),
            () = session.link.lost.notified() => Err(EngineError::Unreachable),
        };
        if let Err(reason) = result {
            return reason;
        }
    }
}

/// Asks the session for these partitions from now on, and makes their subscriptions anew.
async fn take_over(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    new: Partitions,
    all: Partitions,
) -> Result<(), EngineError> {
    if let Some(partition) = beat_in(shared, session, new, all).await? {
        hear(shared, session, partition).await?;
    }
    if new.is_empty() {
        return Ok(());
    }
    if shared.is_cluster() {
        session.guard(new, &shared.region).await?;
    }
    shared.taken_over(new, session);
    let mut readings: BTreeMap<_, Vec<Reading>> = BTreeMap::new();
    for reading in shared.subscriptions.lock().restart(|channel| new.contains(keys::partition(channel))) {
        readings.entry(keys::partition(&reading.channel)).or_default().push(reading);
    }
    for (partition, readings) in readings {
        for part in readings.chunks(SUBSCRIPTIONS_AT_ONCE) {
            let names: Vec<_> = part.iter().map(|reading| keys::push(&reading.channel)).collect();
            match shared.within(session, partition, session.subscribe(&names)).await {
                Ok(()) => {}
                // It has moved on meanwhile: whoever takes it over begins anew.
                Err(Some(error)) if wire::is_elsewhere(&wire::error(&error)) => break,
                Err(_) => return Err(EngineError::Unreachable),
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
    }
    Ok(())
}

/// Has heartbeats sent in a partition that the server has, and listens for them. Answers in which, where that is another
/// than before.
async fn beat_in(
    shared: &Arc<Shared>,
    session: &Session,
    new: Partitions,
    all: Partitions,
) -> Result<Option<Partition>, EngineError> {
    let now = *session.link.beats_in.lock();
    if now.is_some_and(|partition| all.contains(partition) && !new.contains(partition)) {
        return Ok(None);
    }
    let chosen = all.iter().next();
    if let Some(partition) = chosen {
        let names = [keys::heartbeat(partition, shared.node)];
        match shared.within(session, partition, session.subscribe(&names)).await {
            Ok(()) => {}
            // The answer takes the way that pushes take.
            Err(None) => return Err(deaf_or_gone(shared, session, partition).await),
            Err(Some(error)) if wire::is_elsewhere(&wire::error(&error)) => {}
            Err(Some(error)) => return Err(wire::error(&error)),
        }
    }
    *session.link.beats_in.lock() = chosen;
    Ok(chosen)
}

/// Waits until a heartbeat has come back: nothing is asked of a server that does not push.
async fn hear(shared: &Arc<Shared>, session: &Session, partition: Partition) -> Result<(), EngineError> {
    let heard = session.link.beat.notified();
    let mut beat = redis::cmd(session.publish_command());
    beat.arg(keys::heartbeat(partition, shared.node)).arg("");
    let mut commands = session.commands.clone();
    match shared.within(session, partition, beat.query_async::<Value>(&mut commands)).await {
        Ok(_) => {}
        Err(None) => return Err(EngineError::TimedOut),
        // The partition has moved on meanwhile; the next that is taken over is heard.
        Err(Some(error)) if wire::is_elsewhere(&wire::error(&error)) => return Ok(()),
        Err(Some(error)) => return Err(wire::error(&error)),
    }
    tokio::time::timeout(shared.settings.timeout, heard).await.map_err(|_| EngineError::Deaf)
}

/// What a server is that has not answered where it pushes.
async fn deaf_or_gone(shared: &Arc<Shared>, session: &Session, partition: Partition) -> EngineError {
    let mut commands = session.commands.clone();
    let ping = redis::cmd("PING");
    match shared.within(session, partition, ping.query_async::<Value>(&mut commands)).await {
        Ok(_) => EngineError::Deaf,
        Err(_) => EngineError::TimedOut,
    }
}

/// Asks for the engine's time, and sends a message that has to come back by way of Pub/Sub, until either does not.
async fn watch(shared: &Arc<Shared>, session: &Session) -> EngineError {
    let mut ticks = tokio::time::interval(shared.settings.heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deaf_after = shared.settings.heartbeat.saturating_mul(DEAF_HEARTBEATS);
    let mut missed = 0;
    let mut last_heard = Instant::now();
    loop {
        ticks.tick().await;
        let Some(partition) = *session.link.beats_in.lock() else {
            // There is nothing yet that it is asked for.
            last_heard = Instant::now();
            continue;
        };
        let asked = Instant::now();
        let (mut commands, mut reads) = (session.commands.clone(), session.reads.clone());
        let mut pipeline = redis::pipe();
        let heartbeat = keys::heartbeat(partition, shared.node);
        pipeline.cmd("TIME").cmd("INFO").arg("replication").cmd(session.publish_command()).arg(heartbeat).arg("");
        // Reads may be rare, and a server may close a connection that is idle.
        let ping = redis::cmd("PING");
        let (answer, _) = tokio::join!(
            shared.within(session, partition, pipeline.query_async::<((u64, u64), String, Value)>(&mut commands)),
            shared.within(session, partition, ping.query_async::<Value>(&mut reads)),
        );
        let Ok(((seconds, micros), role, _)) = answer else {
            missed += 1;
            if missed >= MISSED_HEARTBEATS {
                return EngineError::TimedOut;
            }
            // Time in which nothing is answered is not held against Pub/Sub.
            last_heard = Instant::now();
            continue;
        };
        missed = 0;
        // A Cluster's replica serves Pub/Sub of its shard, but what its master pushes may be lost on the way to it.
        if !role.lines().any(|line| line == "role:master") {
            return EngineError::Refused { code: "READONLY".to_owned() };
        }
        let heard = session.link.heard.lock().filter(|at| *at > last_heard);
        if let Some(at) = heard {
            last_heard = at;
            let engine_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
            shared.beat(engine_ms, asked.elapsed());
        } else if last_heard.elapsed() > deaf_after {
            return EngineError::Deaf;
        }
    }
}
