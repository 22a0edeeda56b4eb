//! What happens to a NATS server, and what its publishers, subscribers and those who come back are told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate::backplane::engine::{Engine, EngineError, Event, LOST, Scope, Stored};
use sluicegate::backplane::nats::{NatsEngine, Settings};
use sluicegate::backplane::recover::{Recovery, Why};
use sluicegate::backplane::sink::{Delivery, SinkLimit};

use super::cable::Cable;
use super::contract::{connect_nats, nats_settings};
use super::faults::{insist, recovery, wait_for};
use super::nats_server::NatsServer;
use super::reader::Reader;
use super::{ALL, Wish, channel, eventually, publish, region, try_publish};

async fn engine_of(server: &NatsServer) -> Arc<dyn Engine> {
    connect_nats(vec![server.url()], Wish::default()).await
}

#[tokio::test]
async fn what_one_node_publishes_another_gets_and_resumes() {
    let server = NatsServer::start(&[]);
    let (one, other) = (engine_of(&server).await, engine_of(&server).await);
    let mut reader = Reader::subscribe(&other, "a", SinkLimit::default()).await;
    let first = publish(&one, "a", "m1").await;
    let again = try_publish(&other, "a", "m1").await.unwrap();
    assert_eq!((again.position, again.repeated), (first.clone(), true));
    assert_eq!(publish(&other, "a", "m2").await.n, 2);
    publish(&one, "a", "m3").await;
    reader.until("m3").await;
    assert_eq!(reader.ids(), ["m1", "m2", "m3"]);
    assert_eq!(reader.disruptions, 0);
    assert_eq!(reader.got[0].position.epoch, reader.got[1].position.epoch, "one process is one lineage");
    for engine in [&one, &other] {
        assert_eq!(recovery(engine, "a", &first).await, Recovery::Replay { from: 2, to: 3 });
    }
}

#[tokio::test]
async fn two_nodes_that_publish_to_one_channel_at_once_leave_no_hole() {
    let server = NatsServer::start(&[]);
    let engines = [engine_of(&server).await, engine_of(&server).await];
    let mut reader = Reader::subscribe(&engines[0], "a", SinkLimit::default()).await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let engine = engines[task % 2].clone();
            tokio::spawn(async move {
                let mut numbers = Vec::new();
                for nth in 0..25 {
                    // One that others were faster than for too long is not stored, and says so.
                    numbers.push(insist(&engine, "a", &format!("{task}/{nth}")).await.n);
                }
                assert!(numbers.is_sorted(), "a publisher's own order is kept");
                numbers
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.extend(task.await.unwrap());
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=200));
    publish(&engines[1], "a", "last").await;
    reader.until("last").await;
    assert_eq!((reader.got.len(), reader.gaps.len()), (201, 0));
    let slice = engines[1].read(&channel("a"), None, ALL).await.unwrap();
    assert_eq!(slice.entries, reader.got);
    assert!(slice.entries.is_sorted_by(|a, b| a.position.id < b.position.id));
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back_with_everything_and_under_another_lineage() {
    let mut server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut readers = Vec::new();
    for nth in 0..300 {
        readers.push(Reader::subscribe(&engine, &format!("c{nth}"), SinkLimit::default()).await);
    }
    let mut positions = Vec::new();
    for nth in 0..300 {
        positions.push(publish(&engine, &format!("c{nth}"), "m1").await);
    }
    engine.unsubscribe(&channel("c0")).await;
    server.kill();
    wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    let error = try_publish(&engine, "c1", "m2").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::Unreachable, Stored::No));
    assert_eq!(engine.read(&channel("c1"), None, ALL).await, Err(EngineError::Unreachable));
    server.restart();
    let changed = wait_for(&mut events, "lineage", |event| matches!(event, Event::LineageChanged { .. })).await;
    let Event::LineageChanged { from, to } = changed else { unreachable!("it was waited for") };
    assert!(positions[0].epoch.is_of(&from) && !positions[0].epoch.is_of(&to));
    for nth in 0..300 {
        let position = insist(&engine, &format!("c{nth}"), "m2").await;
        assert_eq!((position.n, position.epoch.is_of(&to)), (2, true));
    }
    let again = try_publish(&engine, "c1", "m1").await.unwrap();
    assert_eq!((again.position, again.repeated), (positions[1].clone(), true), "ids are known still");
    for reader in &mut readers[1..] {
        reader.until("m2").await;
        assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2"], 0), "what was on disk is proven");
    }
    assert!(matches!(readers[0].try_next(), Some(Delivery::Entry(..))));
    assert_eq!(readers[0].try_next(), None, "what was ended is not made anew");
    assert_eq!(recovery(&engine, "c1", &positions[1]).await, Recovery::Replay { from: 2, to: 2 });
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_a_gap_and_another_lineage() {
    let mut server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let mut quiet = Reader::subscribe(&engine, "quiet", SinkLimit::default()).await;
    for id in ["m1", "m2", "m3"] {
        publish(&engine, "a", id).await;
    }
    reader.until("m3").await;
    let (seen, quiet_seen) = (reader.last.clone(), quiet.last.clone());
    server.restart_empty();
    let changed = wait_for(&mut events, "lineage", |event| matches!(event, Event::LineageChanged { .. })).await;
    let Event::LineageChanged { to, .. } = changed else { unreachable!("it was waited for") };
    assert_eq!(reader.until_gap().await, Why::Lineage);
    assert_eq!(quiet.until_gap().await, Why::Lineage, "entries may have come and gone");
    // The numbers begin again, and the reader goes on from there.
    for nth in 1..=4 {
        let position = publish(&engine, "a", &format!("n{nth}")).await;
        assert_eq!((position.n, position.epoch.is_of(&to)), (nth, true));
    }
    reader.until("n4").await;
    assert_eq!(reader.ids(), ["m1", "m2", "m3", "n1", "n2", "n3", "n4"]);
    assert_eq!(recovery(&engine, "a", &seen).await, Recovery::Gap(Why::Lineage));
    publish(&engine, "quiet", "m1").await;
    assert_eq!(recovery(&engine, "quiet", &quiet_seen).await, Recovery::Gap(Why::Lineage));
}

#[tokio::test]
async fn a_server_that_hangs_times_out_and_stores_once() {
    let server = NatsServer::start(&[]);
    let settings =
        Settings { timeout: Duration::from_millis(300), ..nats_settings(vec![server.url()], Wish::default()) };
    let engine = NatsEngine::start(region(), settings);
    eventually("it connects", async || engine.status().ok()).await;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    server.pause();
    let error = try_publish(&engine, "a", "m2").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::TimedOut, Stored::Unknown));
    assert!(engine.read(&channel("a"), None, ALL).await.is_err());
    wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    let error = try_publish(&engine, "a", "m2").await.unwrap_err();
    assert_eq!(error.stored, Stored::No);
    server.resume();
    wait_for(&mut events, "up", |event| matches!(event, Event::Up)).await;
    assert_eq!(insist(&engine, "a", "m2").await.n, 2);
    assert_eq!(insist(&engine, "a", "m3").await.n, 3);
    reader.until("m3").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2", "m3"], 0));
}

#[tokio::test]
async fn connections_that_are_cut_lose_nothing() {
    let server = NatsServer::start(&[]);
    let cable = Cable::to(server.port).await;
    let publisher = engine_of(&server).await;
    let subscriber = connect_nats(vec![cable.url()], Wish::default()).await;
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    let before = publish(&publisher, "a", "m0").await;
    for nth in 1..=200 {
        publish(&publisher, "a", &format!("m{nth}")).await;
        if nth % 50 == 25 {
            cable.cut();
        }
    }
    reader.until("m200").await;
    let expected: Vec<_> = (0..=200).map(|nth| format!("m{nth}")).collect();
    assert_eq!(reader.ids(), expected);
    assert_eq!(reader.gaps, []);
    assert!(reader.got.iter().all(|entry| entry.position.epoch == before.epoch), "the process is the same");
    assert!(cable.connections.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn a_subscription_that_is_open_and_dead_is_noticed_and_what_was_missed_is_pushed() {
    let server = NatsServer::start(&[]);
    let cable = Cable::to(server.port).await;
    let (publisher, subscriber) = (engine_of(&server).await, connect_nats(vec![cable.url()], Wish::default()).await);
    let mut events = subscriber.events();
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    publish(&publisher, "a", "m1").await;
    reader.until("m1").await;
    wait_for(&mut events, "heartbeat", |event| matches!(event, Event::Heartbeat { .. })).await;
    cable.set_deaf(true);
    publish(&publisher, "a", "m2").await;
    let down = wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    assert_eq!(down, Event::Down(EngineError::Deaf), "it answers, but is not heard");
    cable.set_deaf(false);
    wait_for(&mut events, "up", |event| matches!(event, Event::Up)).await;
    reader.until("m2").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2"], 0));
}

#[tokio::test]
async fn messages_that_are_dropped_on_the_way_are_noticed_and_read() {
    let server = NatsServer::start(&[]);
    let cable = Cable::to(server.port).await;
    let publisher = engine_of(&server).await;
    let settings = Settings {
        max_waiting: 8,
        heartbeat: Duration::from_secs(5),
        ..nats_settings(vec![cable.url()], Wish::default())
    };
    let engine = NatsEngine::start(region(), settings);
    eventually("it connects", async || engine.status().ok()).await;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let mut quiet = Reader::subscribe(&engine, "quiet", SinkLimit::default()).await;
    cable.hold(true);
    for nth in 1..=300 {
        publish(&publisher, "a", &format!("m{nth}")).await;
    }
    publish(&publisher, "quiet", "m").await;
    cable.hold(false);
    // All of it arrives with this one, and is more than may wait.
    publish(&publisher, "a", "last").await;
    let all = |event: &Event| matches!(event, Event::Disrupted(Scope::All) | Event::Down(_));
    assert_eq!(wait_for(&mut events, "disrupted", all).await, Event::Disrupted(Scope::All));
    reader.until("last").await;
    quiet.until("m").await;
    let expected: Vec<_> = (1..=300).map(|nth| format!("m{nth}")).chain(["last".to_owned()]).collect();
    assert_eq!(reader.ids(), expected);
    assert_eq!((reader.gaps.len(), quiet.gaps.len(), cable.connections.load(Ordering::SeqCst)), (0, 0, 1));
}

#[tokio::test]
async fn a_stream_that_is_purged_is_a_gap_for_those_who_had_seen_it() {
    let server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    publish(&engine, "a", "m2").await;
    reader.until("m2").await;
    let seen = reader.last.clone();
    assert_eq!(server.api("STREAM.PURGE.SLUICEGATE", &Value::Null)["success"], true);
    assert_eq!(recovery(&engine, "a", &seen).await, Recovery::Gap(Why::Lineage));
    let born = publish(&engine, "a", "m3").await;
    assert_eq!((born.n, born.epoch == seen.epoch), (1, false), "the numbers are gone with the entries");
    assert_eq!(reader.until_gap().await, Why::Lineage);
    publish(&engine, "a", "m4").await;
    publish(&engine, "a", "m5").await;
    reader.until("m5").await;
    assert_eq!(recovery(&engine, "a", &seen).await, Recovery::Gap(Why::Lineage), "numbers alone prove nothing");
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_made_again_and_is_a_gap() {
    let server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    assert_eq!(server.api("STREAM.DELETE.SLUICEGATE", &Value::Null)["success"], true);
    let error = try_publish(&engine, "a", "m2").await.unwrap_err();
    assert_eq!(error.stored, Stored::No);
    wait_for(&mut events, "lineage", |event| matches!(event, Event::LineageChanged { .. })).await;
    assert_eq!(insist(&engine, "a", "m2").await.n, 1);
    assert_eq!(reader.until_gap().await, Why::Lineage);
    insist(&engine, "a", "m3").await;
    reader.until("m3").await;
    assert_eq!(reader.ids().last(), Some(&"m3"));
}

#[tokio::test]
async fn an_entry_that_is_taken_out_of_the_middle_is_a_gap() {
    let server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut positions = Vec::new();
    for nth in 1..=9 {
        positions.push(publish(&engine, "a", &format!("m{nth}")).await);
    }
    let question = json!({ "seq": positions[4].id.seq });
    assert_eq!(server.api("STREAM.MSG.DELETE.SLUICEGATE", &question)["success"], true);
    for (nth, position) in (1..).zip(&positions) {
        let expected = if nth < 5 { Recovery::Gap(Why::Trimmed) } else { Recovery::Replay { from: nth + 1, to: 9 } };
        if nth != 5 {
            assert_eq!(recovery(&engine, "a", position).await, expected, "{nth}");
        }
    }
}

#[tokio::test]
async fn heartbeats_carry_the_servers_time() {
    let server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut last = 0;
    for _ in 0..3 {
        let event = wait_for(&mut events, "heartbeat", |event| matches!(event, Event::Heartbeat { .. })).await;
        let Event::Heartbeat { engine_ms, .. } = event else { unreachable!("it was waited for") };
        assert!(engine_ms > last);
        last = engine_ms;
    }
    let info = server.api("STREAM.INFO.SLUICEGATE", &Value::Null);
    assert_eq!(info["state"]["messages"], 1, "of a node the newest heartbeat is stored");
}

#[tokio::test]
async fn what_a_power_failure_took_is_told_to_those_who_had_seen_it_and_by_who_published_it_to_the_others() {
    let mut server = NatsServer::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let changed = |event: &Event| matches!(event, Event::LineageChanged { .. });
    let mut positions = Vec::new();
    for nth in 1..=5 {
        positions.push(publish(&engine, "a", &format!("m{nth}")).await);
    }
    let kept = publish(&engine, "kept", "m1").await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    server.back_up();
    wait_for(&mut events, "lineage", changed).await;
    for nth in 6..=10 {
        positions.push(insist(&engine, "a", &format!("m{nth}")).await);
    }
    reader.until("m10").await;
    server.restart_from_backup();
    wait_for(&mut events, "lineage", changed).await;
    // Nobody publishes: the gateway notices by itself.
    assert_eq!(reader.until_gap().await, Why::Lineage);
    let slice = eventually("it is told", async || {
        let slice = engine.read(&channel("a"), Some(&positions[4]), ALL).await.ok()?;
        (!slice.entries.is_empty()).then_some(slice)
    })
    .await;
    assert_eq!((slice.entries.len(), &slice.entries[0].payload[..]), (1, LOST));
    for (nth, position) in (1..).zip(&positions) {
        let expected = if nth <= 5 { Recovery::Replay { from: nth + 1, to: 6 } } else { Recovery::Gap(Why::Lineage) };
        assert_eq!(recovery(&engine, "a", position).await, expected, "{position}");
    }
    // What is there is not told of.
    assert_eq!(recovery(&engine, "kept", &kept).await, Recovery::Replay { from: 2, to: 1 });
    assert_eq!(insist(&engine, "kept", "m2").await.n, 2);
    assert_eq!(insist(&engine, "a", "m11").await.n, 7);
}
