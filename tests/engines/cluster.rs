//! What happens to a Redis Cluster, and what its publishers, subscribers and those who come back are told.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluicegate::backplane::engine::{Engine, EngineError, Event, LOST, Stored};
use sluicegate::backplane::position::{Position, Region};
use sluicegate::backplane::recover::{Recovery, Why};
use sluicegate::backplane::redis::{RedisEngine, Servers, Settings};
use sluicegate::backplane::sink::SinkLimit;

use super::cluster_server::Cluster;
use super::contract::connect;
use super::faults::{insist, recovery};
use super::reader::Reader;
use super::{ALL, Wish, channel, eventually, publish, try_publish};

async fn engine_of(cluster: &Cluster) -> Arc<dyn Engine> {
    connect(Servers::Cluster { urls: cluster.urls() }, Wish::default()).await
}

/// Channels that all three masters have some of.
fn names() -> Vec<String> {
    (0..30).map(|nth| format!("c{nth}")).collect()
}

#[tokio::test]
async fn channels_of_every_master_reach_another_gateway() {
    let cluster = Cluster::start(false);
    // One node is enough to find the others.
    let one = connect(Servers::Cluster { urls: vec![cluster.masters[2].url()] }, Wish::default()).await;
    let other = engine_of(&cluster).await;
    let mut readers = Vec::new();
    for name in names() {
        readers.push(Reader::subscribe(&other, &name, SinkLimit::default()).await);
    }
    let mut lineages = BTreeSet::new();
    for id in ["m1", "m2", "m3"] {
        for name in names() {
            lineages.insert(publish(&one, &name, id).await.epoch.as_str()[..16].to_owned());
        }
    }
    assert_eq!(lineages.len(), 3, "each master has a lineage of its own");
    for reader in &mut readers {
        reader.until("m3").await;
        assert_eq!((reader.ids(), reader.disruptions), (vec!["m1", "m2", "m3"], 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_there_and_back_during_traffic_loses_nothing() {
    let cluster = Cluster::start(false);
    let (publisher, subscriber) = (engine_of(&cluster).await, engine_of(&cluster).await);
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    publish(&publisher, "a", "first").await;
    let (from, slot) = cluster.owner("a");
    let to = (from + 1) % 3;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let traffic = tokio::spawn({
        let publisher = publisher.clone();
        async move {
            let mut positions = Vec::new();
            while stopped.try_recv().is_err() {
                positions.push(insist(&publisher, "a", &format!("m{}", positions.len())).await);
            }
            positions
        }
    });
    for (from, to) in [(from, to), (to, from), (from, to)] {
        let more = reader.last.n + 20;
        while reader.last.n < more {
            reader.step().await;
        }
        // This thread waits for the servers; those of the traffic go on.
        cluster.begin_move(&slot, from, to);
        // Neither node runs the channel's script now. Those of other slots go on.
        insist(&publisher, "b", "meanwhile").await;
        cluster.end_move(&slot, from, to);
    }
    let more = reader.last.n + 20;
    while reader.last.n < more {
        reader.step().await;
    }
    stop.send(()).unwrap();
    let acknowledged = traffic.await.unwrap();
    insist(&publisher, "a", "last").await;
    reader.until("last").await;
    assert_eq!(reader.gaps, []);
    assert_eq!(reader.got.len(), acknowledged.len() + 2);
    let got: Vec<&Position> = reader.got[1..=acknowledged.len()].iter().map(|entry| &entry.position).collect();
    assert!(got.into_iter().eq(&acknowledged), "each once, in order");
    let lineages: BTreeSet<_> = acknowledged.iter().map(|position| &position.epoch.as_str()[..16]).collect();
    assert_eq!(lineages.len(), 2, "both masters appended");
}

#[tokio::test]
async fn a_slot_that_moves_while_nobody_publishes_is_subscribed_to_where_it_is() {
    let cluster = Cluster::start(false);
    let (publisher, subscriber) = (engine_of(&cluster).await, engine_of(&cluster).await);
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    publish(&publisher, "a", "m1").await;
    reader.until("m1").await;
    let (from, slot) = cluster.owner("a");
    cluster.begin_move(&slot, from, (from + 1) % 3);
    // None of its keys are here any more, and the other node has not all of them.
    let error = try_publish(&publisher, "a", "m2").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::Refused { code: "ASK".to_owned() }, Stored::No));
    cluster.end_move(&slot, from, (from + 1) % 3);
    for nth in 2..=5 {
        assert_eq!(insist(&publisher, "a", &format!("m{nth}")).await.n, nth);
    }
    reader.until("m5").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2", "m3", "m4", "m5"], 0));
    assert_eq!(subscriber.read(&channel("a"), None, ALL).await.unwrap().entries, reader.got);
}

#[tokio::test]
async fn a_replica_that_takes_over_in_peace_loses_nothing() {
    let cluster = Cluster::start(true);
    let (publisher, subscriber) = (engine_of(&cluster).await, engine_of(&cluster).await);
    let mut events = subscriber.events();
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    for nth in 1..=10 {
        publish(&publisher, "a", &format!("m{nth}")).await;
    }
    let (owner, _) = cluster.owner("a");
    cluster.replicas[owner].command::<String>(&["CLUSTER", "FAILOVER"]);
    cluster.replicas[owner].wait_for_info("role:master");
    for nth in 11..=20 {
        assert_eq!(insist(&publisher, "a", &format!("m{nth}")).await.n, nth);
    }
    reader.until("m20").await;
    let expected: Vec<_> = (1..=20).map(|nth| format!("m{nth}")).collect();
    assert_eq!((reader.ids(), reader.gaps.len()), (expected.iter().map(String::as_str).collect(), 0));
    assert_ne!(reader.got[0].position.epoch, reader.last.epoch);
    assert!(std::iter::from_fn(|| events.try_recv().ok()).any(|event| matches!(event, Event::LineageChanged { .. })));
}

#[tokio::test]
async fn a_replica_that_is_promoted_without_the_newest_entries_is_a_gap_for_exactly_those_who_saw_them() {
    let mut cluster = Cluster::start(true);
    let engine = engine_of(&cluster).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let mut positions = Vec::new();
    for nth in 1..=10 {
        positions.push(publish(&engine, "a", &format!("m{nth}")).await);
    }
    let (owner, _) = cluster.owner("a");
    assert_eq!(cluster.masters[owner].command::<i64>(&["WAIT", "1", "20000"]), 1);
    // From here on the replica is refused by its master, which acknowledges five more.
    cluster.replicas[owner].command::<String>(&["CONFIG", "SET", "masterauth", "wrong"]);
    cluster.replicas[owner].command::<i64>(&["CLIENT", "KILL", "TYPE", "master"]);
    cluster.replicas[owner].wait_for_info("master_link_status:down");
    for nth in 11..=15 {
        positions.push(publish(&engine, "a", &format!("m{nth}")).await);
    }
    reader.until("m15").await;
    cluster.masters[owner].kill();
    for nth in 11..=15 {
        insist(&engine, "a", &format!("n{nth}")).await;
    }
    assert_eq!(reader.until_gap().await, Why::Lineage);
    insist(&engine, "a", "last").await;
    reader.until("last").await;
    // Who published what is lost has said so in the log, once, for those who saw none of it.
    let losses = async || {
        let entries = engine.read(&channel("a"), None, ALL).await.ok()?.entries;
        Some(entries.iter().filter(|entry| entry.payload == LOST).count()).filter(|count| *count > 0)
    };
    assert_eq!(eventually("the loss is told", losses).await, 1);
    for (nth, position) in (1..).zip(&positions) {
        let expected = if nth <= 10 { Recovery::Replay { from: nth + 1, to: 17 } } else { Recovery::Gap(Why::Lineage) };
        assert_eq!(recovery(&engine, "a", position).await, expected, "{position}");
    }
    // Nobody noticed on the other masters.
    for name in names() {
        insist(&engine, &name, "m1").await;
    }
}

#[tokio::test]
async fn killed_pubsub_connections_and_forgotten_scripts_lose_nothing() {
    let cluster = Cluster::start(false);
    let (publisher, subscriber) = (engine_of(&cluster).await, engine_of(&cluster).await);
    let mut readers = Vec::new();
    for name in names() {
        readers.push(Reader::subscribe(&subscriber, &name, SinkLimit::default()).await);
    }
    let mut killed = 0;
    for nth in 1..=20 {
        for name in names() {
            insist(&publisher, &name, &format!("m{nth}")).await;
        }
        if nth % 5 == 0 {
            for master in &cluster.masters {
                killed += master.command::<usize>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                master.command::<String>(&["SCRIPT", "FLUSH"]);
            }
        }
    }
    for (reader, name) in readers.iter_mut().zip(names()) {
        insist(&publisher, &name, "last").await;
        reader.until("last").await;
        assert_eq!((reader.got.len(), reader.gaps.len()), (21, 0), "{name}");
    }
    assert!(killed >= 3, "{killed}");
}

#[tokio::test]
async fn a_cluster_of_another_region_is_no_engine() {
    let cluster = Cluster::start(false);
    engine_of(&cluster).await;
    let servers = Servers::Cluster { urls: cluster.urls() };
    let wrong = RedisEngine::start(Region::new("us").unwrap(), Settings::new(servers));
    let found = EngineError::WrongRegion { found: "eu".to_owned() };
    eventually("it is refused", async || (wrong.status() == Err(found.clone())).then_some(())).await;
    let wrong: Arc<dyn Engine> = Arc::new(wrong);
    for name in names() {
        let error = try_publish(&wrong, &name, "m1").await.unwrap_err();
        assert_eq!(error.stored, Stored::No, "{name}");
    }
}
