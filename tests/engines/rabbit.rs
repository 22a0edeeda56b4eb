//! RabbitMQ is killed, stopped, emptied, and loses a stream; a client comes back at another node.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::backplane::engine::{Dedupe, Engine, EngineError, Event, PublishError, Published, Stored};
use sluicegate::backplane::position::Place;
use sluicegate::backplane::rabbitmq;
use sluicegate::backplane::recover::{Recovery, ReplayLimit, Why};
use sluicegate::backplane::sink::SinkLimit;
use tokio::sync::broadcast;

use super::contract::connect_rabbit;
use super::rabbit_server::{RabbitServer, shared_url};
use super::reader::Reader;
use super::{ALL, DEADLINE, Wish, channel, eventually, publish, region, try_publish};

const REPLAY: ReplayLimit = ReplayLimit { max_entries: 100_000, max_bytes: 1 << 30 };

/// A server of its own, without holding the runtime up.
async fn server() -> RabbitServer {
    tokio::task::spawn_blocking(RabbitServer::start).await.expect("it starts")
}

async fn with_server(server: RabbitServer, work: impl FnOnce(&mut RabbitServer) + Send + 'static) -> RabbitServer {
    let worked = tokio::task::spawn_blocking(move || {
        let mut server = server;
        work(&mut server);
        server
    });
    worked.await.expect("it works")
}

async fn shared() -> String {
    tokio::task::spawn_blocking(shared_url).await.expect("it starts")
}

/// Publishes until it is stored, always with the same id, as a publisher that tries again does.
async fn insist(engine: &Arc<dyn Engine>, name: &str, id: &str) -> Published {
    eventually("it is stored", async || try_publish(engine, name, id).await.ok()).await
}

async fn until_event(events: &mut broadcast::Receiver<Event>, wanted: impl Fn(&Event) -> bool) {
    let seen = async { while !wanted(&events.recv().await.expect("the engine lives")) {} };
    tokio::time::timeout(DEADLINE, seen).await.expect("it is told");
}

/// An answer that a publication must have within its time-out.
async fn answered(engine: &Arc<dyn Engine>, name: &str, id: &str) -> Result<Published, PublishError> {
    tokio::time::timeout(DEADLINE, try_publish(engine, name, id)).await.expect("there is an answer")
}

#[tokio::test]
async fn a_broker_that_is_killed_and_started_again_loses_nothing() {
    let server = server().await;
    let engine = connect_rabbit(server.url(), Wish::default()).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    for id in ["m1", "m2", "m3"] {
        publish(&engine, "a", id).await;
    }
    reader.until("m3").await;
    // The broker writes down in its own time where the new stream's coordinator is: killed before, it does not find it again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut events = engine.events();
    let server = with_server(server, RabbitServer::kill).await;
    until_event(&mut events, |event| matches!(event, Event::Down(_))).await;
    assert!(engine.status().is_err());
    let error = answered(&engine, "a", "m4").await.expect_err("it is not there");
    assert_eq!(error.stored, Stored::No);
    let (sink, _source) = sluicegate::backplane::sink::sink(SinkLimit::default());
    assert!(engine.subscribe(&channel("b"), &sink).await.is_err());
    let server = with_server(server, RabbitServer::restart).await;
    let stored = insist(&engine, "a", "m4").await;
    assert!(!stored.repeated);
    let again = insist(&engine, "a", "m2").await;
    assert!(again.repeated, "what was published before is known");
    publish(&engine, "a", "m5").await;
    reader.until("m5").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2", "m3", "m4", "m5"], 0));
    drop(server);
}

#[tokio::test]
async fn a_broker_that_is_emptied_is_a_gap_and_goes_on() {
    let server = server().await;
    let engine = connect_rabbit(server.url(), Wish::default()).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let mut positions = Vec::new();
    for nth in 1..=5 {
        positions.push(publish(&engine, "a", &format!("m{nth}")).await);
    }
    reader.until("m5").await;
    let mut events = engine.events();
    let server = with_server(server, RabbitServer::wipe).await;
    assert_eq!(reader.until_gap().await, Why::Lineage);
    until_event(&mut events, |event| matches!(event, Event::LineageChanged { .. })).await;
    // Not even as many as there were, and then more.
    for nth in 6..=12 {
        insist(&engine, "a", &format!("m{nth}")).await;
    }
    reader.until("m12").await;
    assert_eq!(reader.gaps, [Why::Lineage]);
    assert!(reader.ids().ends_with(&["m6", "m7", "m8", "m9", "m10", "m11", "m12"]), "{:?}", reader.ids());
    // Another node, which never saw the old stream, promises nothing either.
    let other = connect_rabbit(server.url(), Wish::default()).await;
    for position in &positions {
        for engine in [&engine, &other] {
            let slice = engine.read(&channel("a"), Some(position), ALL).await.expect("it is read");
            let recovery = slice.recover(&Place::After(position.clone()), REPLAY);
            assert!(matches!(recovery, Recovery::Gap(_)), "{position}: {recovery:?}");
        }
    }
}

#[tokio::test]
async fn a_broker_that_stops_and_goes_on_loses_nothing() {
    let server = server().await;
    let engine = connect_rabbit(server.url(), Wish::default()).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    let mut events = engine.events();
    server.pause();
    let error = answered(&engine, "a", "m2").await.expect_err("it says nothing");
    // The one if its time-out is over first, the other if the session is.
    assert!(matches!(error.reason, EngineError::TimedOut | EngineError::Unreachable), "{error}");
    assert_eq!(error.stored, Stored::Unknown);
    until_event(&mut events, |event| matches!(event, Event::Down(_))).await;
    let error = answered(&engine, "a", "m3").await.expect_err("it says nothing");
    assert_eq!(error.stored, Stored::No);
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.resume();
    for id in ["m2", "m3", "m4"] {
        insist(&engine, "a", id).await;
    }
    reader.until("m4").await;
    // What was on its way when the broker stopped is stored once, whether it came through or was sent again.
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2", "m3", "m4"], 0));
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_a_gap_and_is_made_anew() {
    let server = server().await;
    let engine = connect_rabbit(server.url(), Wish::default()).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let mut other = Reader::subscribe(&engine, "untouched", SinkLimit::default()).await;
    assert_ne!(
        rabbitmq::stream_of(&region(), &channel("a")),
        rabbitmq::stream_of(&region(), &channel("untouched")),
        "a case for two streams"
    );
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    let name = rabbitmq::stream_of(&region(), &channel("a"));
    let _server = with_server(server, move |server| drop(server.control(&["delete_queue", &name]))).await;
    assert_eq!(reader.until_gap().await, Why::Lineage);
    insist(&engine, "a", "m2").await;
    reader.until("m2").await;
    publish(&engine, "untouched", "m").await;
    other.until("m").await;
    assert_eq!((other.ids(), other.disruptions), (vec!["m"], 0));
    assert!(engine.status().is_ok());
}

#[tokio::test]
async fn a_stream_that_stands_still_while_the_broker_answers_is_noticed() {
    let server = server().await;
    let engine = connect_rabbit(server.url(), Wish::default()).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    let name = rabbitmq::stream_of(&region(), &channel("a"));
    let writer = |does: &str| {
        format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{name}\">>)), \
             sys:{does}(amqqueue:get_pid(Q))."
        )
    };
    let (suspend, resume) = (writer("suspend"), writer("resume"));
    let server = with_server(server, move |server| drop(server.control(&["eval", &suspend]))).await;
    // Until it is noticed a publication waits for its answer; then it is known that there would be none.
    eventually("it is noticed", async || {
        let error = answered(&engine, "a", "m2").await.expect_err("nothing is stored");
        (error.stored == Stored::No).then_some(())
    })
    .await;
    assert!(engine.status().is_ok(), "the broker answers");
    let _server = with_server(server, move |server| drop(server.control(&["eval", &resume]))).await;
    insist(&engine, "a", "m2").await;
    publish(&engine, "a", "m3").await;
    reader.until("m3").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2", "m3"], 0));
}

#[tokio::test]
async fn nodes_agree_on_entries_and_a_place_at_one_holds_at_another() {
    let url = shared().await;
    let here = connect_rabbit(url.clone(), Wish::default()).await;
    let there = connect_rabbit(url.clone(), Wish::default()).await;
    let mut reader = Reader::subscribe(&there, "a", SinkLimit::default()).await;
    let mut positions = Vec::new();
    for nth in 1..=10 {
        let by = if nth % 3 == 0 { &there } else { &here };
        positions.push(publish(by, "a", &format!("m{nth}")).await);
    }
    reader.until("m10").await;
    let late = connect_rabbit(url, Wish::default()).await;
    for engine in [&here, &there, &late] {
        let slice = engine.read(&channel("a"), None, ALL).await.expect("it is read");
        assert!(slice.entries.iter().map(|entry| entry.position.id).eq(positions.iter().map(|place| place.id)));
        for (nth, place) in positions.iter().enumerate() {
            let slice = engine.read(&channel("a"), Some(place), ALL).await.expect("it is read");
            let to = place.n + 9 - nth as u64;
            let expected = Recovery::Replay { from: place.n + 1, to };
            assert_eq!(slice.recover(&Place::After(place.clone()), REPLAY), expected, "{nth}");
            let back = engine.read_back(&channel("a"), place).await.expect("it is read");
            let ids = back.iter().map(|entry| entry.position.id);
            assert!(ids.eq(positions[..=nth].iter().map(|place| place.id)), "{nth}: {back:?}");
        }
    }
}

#[tokio::test]
async fn copies_that_nodes_publish_at_once_are_dropped_by_all_alike() {
    let url = shared().await;
    let engines =
        [connect_rabbit(url.clone(), Wish::default()).await, connect_rabbit(url.clone(), Wish::default()).await];
    assert_eq!(engines[0].capabilities().dedupe, Dedupe::Delivery);
    let mut readers = Vec::new();
    for engine in &engines {
        readers.push(Reader::subscribe(engine, "a", SinkLimit::default()).await);
    }
    for nth in 0..30 {
        let id = format!("m{nth}");
        let (one, other) = tokio::join!(try_publish(&engines[0], "a", &id), try_publish(&engines[1], "a", &id));
        let (one, other) = (one.expect("it is stored"), other.expect("it is stored"));
        assert!(one.repeated != other.repeated, "one of them is the first");
        assert_eq!(one.position.id, other.position.id);
    }
    let late = connect_rabbit(url, Wish::default()).await;
    let whole = late.read(&channel("a"), None, ALL).await.expect("it is read");
    for reader in &mut readers {
        reader.until("m29").await;
        assert_eq!((reader.got.len(), reader.gaps.len()), (30, 0));
        let ids = reader.got.iter().map(|entry| entry.position.id);
        assert!(ids.eq(whole.entries.iter().map(|entry| entry.position.id)));
    }
}

#[tokio::test]
async fn heartbeats_come_back() {
    let engine = connect_rabbit(shared().await, Wish::default()).await;
    let mut events = engine.events();
    for _ in 0..3 {
        until_event(&mut events, |event| matches!(event, Event::Heartbeat { engine_ms, .. } if *engine_ms > 0)).await;
    }
}
