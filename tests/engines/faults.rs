//! What happens to a Redis, and what its publishers, subscribers and those who come back are told.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::backplane::engine::{Engine, EngineError, Event, Stored};
use sluicegate::backplane::position::{Place, Position, Region};
use sluicegate::backplane::recover::{Recovery, ReplayLimit, Why};
use sluicegate::backplane::redis::{Credentials, RedisEngine, Servers, Settings};
use sluicegate::backplane::sink::SinkLimit;
use tokio::sync::broadcast::Receiver;

use super::contract::connect;
use super::reader::Reader;
use super::server::Server;
use super::{ALL, DEADLINE, Wish, channel, eventually, publish, region, try_publish};

const REPLAY: ReplayLimit = ReplayLimit { max_entries: 100_000, max_bytes: 1 << 30 };

async fn engine_of(server: &Server) -> Arc<dyn Engine> {
    connect(Servers::Standalone { url: server.url() }, Wish::default()).await
}

pub async fn wait_for(events: &mut Receiver<Event>, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
    let wait = async {
        loop {
            let event = events.recv().await.expect("the engine lives, and this keeps up");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("no event: {what}"))
}

/// Publishes until it succeeds. An item that may be stored is the same item again.
pub async fn insist(engine: &Arc<dyn Engine>, name: &str, id: &str) -> Position {
    let tries = async {
        loop {
            match try_publish(engine, name, id).await {
                Ok(published) => return published.position,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, tries).await.unwrap_or_else(|_| panic!("{id} is not stored"))
}

pub async fn recovery(engine: &Arc<dyn Engine>, name: &str, place: &Position) -> Recovery {
    let slice = engine.read(&channel(name), Some(place), ALL).await.expect("it can be read");
    slice.recover(&Place::After(place.clone()), REPLAY)
}

#[tokio::test]
async fn what_one_node_publishes_another_gets() {
    let server = Server::start(&[]);
    let (one, other) = (engine_of(&server).await, engine_of(&server).await);
    let mut reader = Reader::subscribe(&other, "a", SinkLimit::default()).await;
    let first = publish(&one, "a", "m1").await;
    let again = try_publish(&other, "a", "m1").await.unwrap();
    assert_eq!((again.position, again.repeated), (first, true));
    assert_eq!(publish(&other, "a", "m2").await.n, 2);
    publish(&one, "a", "m3").await;
    reader.until("m3").await;
    assert_eq!(reader.ids(), ["m1", "m2", "m3"]);
    assert_eq!(reader.disruptions, 0);
    assert_eq!(reader.got[0].position.epoch, reader.got[1].position.epoch, "one process is one lineage");
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_a_gap_and_another_lineage() {
    let mut server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let mut quiet = Reader::subscribe(&engine, "quiet", SinkLimit::default()).await;
    for id in ["m1", "m2", "m3"] {
        publish(&engine, "a", id).await;
    }
    reader.until("m3").await;
    let (seen, quiet_seen) = (reader.last.clone(), quiet.last.clone());
    server.kill();
    wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    let error = try_publish(&engine, "a", "m4").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::Unreachable, Stored::No));
    assert_eq!(engine.read(&channel("a"), None, ALL).await, Err(EngineError::Unreachable));
    server.restart();
    let changed = wait_for(&mut events, "lineage", |event| matches!(event, Event::LineageChanged { .. })).await;
    let Event::LineageChanged { from, to } = changed else { unreachable!("it was waited for") };
    assert!(seen.epoch.is_of(&from) && !seen.epoch.is_of(&to));
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
async fn a_channel_that_never_had_an_entry_is_known_to_be_empty_as_long_as_the_store_lives() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "quiet", SinkLimit::default()).await;
    let before = reader.last.clone();
    assert!(before.is_origin());
    server.restart();
    let first = insist(&engine, "other", "m1").await;
    assert_eq!(recovery(&engine, "quiet", &before).await, Recovery::Live, "another process has the same store");
    // Who was there before is given what is published now, without a gap.
    let now = insist(&engine, "quiet", "m2").await;
    reader.until("m2").await;
    assert!(now.epoch.is_of(&before.epoch) && !now.epoch.is_of(&first.epoch));
    assert_eq!(recovery(&engine, "quiet", &before).await, Recovery::Replay { from: 1, to: 1 });
    server.kill();
    server.forget();
    server.restart();
    insist(&engine, "other", "m3").await;
    assert_eq!(
        recovery(&engine, "quiet", &before).await,
        Recovery::Gap(Why::Lineage),
        "entries may have come and gone"
    );
}

#[tokio::test]
async fn a_server_that_hangs_times_out_and_stores_once() {
    let server = Server::start(&[]);
    let settings = Settings {
        timeout: Duration::from_millis(300),
        heartbeat: Duration::from_millis(200),
        max_backoff: Duration::from_millis(300),
        ..Settings::new(Servers::Standalone { url: server.url() })
    };
    let engine = RedisEngine::start(region(), settings);
    eventually("it connects", async || engine.status().ok()).await;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    server.pause();
    let error = try_publish(&engine, "a", "m2").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::TimedOut, Stored::Unknown));
    wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    server.resume();
    wait_for(&mut events, "up", |event| matches!(event, Event::Up)).await;
    assert_eq!(insist(&engine, "a", "m2").await.n, 2);
    assert_eq!(insist(&engine, "a", "m3").await.n, 3);
    reader.until("m3").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2", "m3"], 0));
}

#[tokio::test]
async fn killed_pubsub_connections_lose_nothing() {
    let server = Server::start(&[]);
    let (publisher, subscriber) = (engine_of(&server).await, engine_of(&server).await);
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    let mut killed = 0;
    for nth in 1..=200 {
        insist(&publisher, "a", &format!("m{nth}")).await;
        if nth % 50 == 25 {
            killed += server.command::<usize>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
    }
    reader.until("m200").await;
    let expected: Vec<_> = (1..=200).map(|nth| format!("m{nth}")).collect();
    assert_eq!(reader.ids(), expected);
    assert_eq!(reader.gaps, []);
    assert!(killed > 0);
}

#[tokio::test]
async fn subscriptions_of_many_channels_are_made_anew_and_ended_ones_are_not() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut readers = Vec::new();
    for nth in 0..600 {
        readers.push(Reader::subscribe(&engine, &format!("c{nth}"), SinkLimit::default()).await);
    }
    for nth in 0..600 {
        publish(&engine, &format!("c{nth}"), "m1").await;
    }
    engine.unsubscribe(&channel("c0")).await;
    server.restart();
    wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    wait_for(&mut events, "up", |event| matches!(event, Event::Up)).await;
    for nth in 0..600 {
        insist(&engine, &format!("c{nth}"), "m2").await;
    }
    for reader in &mut readers[1..] {
        reader.until("m2").await;
        assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2"], 0), "what was on disk is proven");
    }
    assert!(matches!(readers[0].try_next(), Some(sluicegate::backplane::sink::Delivery::Entry(..))));
    assert_eq!(readers[0].try_next(), None);
}

#[tokio::test]
async fn forgotten_scripts_are_loaded_again() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    for nth in 1..=5 {
        server.command::<String>(&["SCRIPT", "FLUSH"]);
        assert_eq!(publish(&engine, "a", &format!("m{nth}")).await.n, nth);
        server.command::<String>(&["SCRIPT", "FLUSH"]);
        assert_eq!(engine.read(&channel("a"), None, ALL).await.unwrap().log.top, nth);
    }
    reader.until("m5").await;
    assert_eq!(reader.disruptions, 0);
}

#[tokio::test]
async fn a_server_without_room_refuses_and_takes_no_number() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    let before = publish(&engine, "a", "m1").await;
    server.command::<String>(&["CONFIG", "SET", "maxmemory", "1"]);
    for id in ["m2", "m3"] {
        let error = try_publish(&engine, "a", id).await.unwrap_err();
        assert_eq!((error.reason, error.stored), (EngineError::Full, Stored::No));
    }
    let slice = engine.read(&channel("a"), None, ALL).await.unwrap();
    assert_eq!((slice.top, slice.entries.len()), (before, 1));
    server.command::<String>(&["CONFIG", "SET", "maxmemory", "0"]);
    let answer = try_publish(&engine, "a", "m2").await.unwrap();
    assert_eq!((answer.position.n, answer.repeated), (2, false));
    reader.until("m2").await;
    assert_eq!(reader.ids(), ["m1", "m2"]);
}

#[tokio::test]
async fn a_key_of_somebody_else_is_a_refusal_and_takes_no_number() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    publish(&engine, "a", "m1").await;
    let keys: Vec<String> = server.command(&["KEYS", "sg:*:s:a"]);
    assert_eq!(keys.len(), 1);
    server.command::<i64>(&["DEL", &keys[0]]);
    server.command::<String>(&["SET", &keys[0], "not a stream"]);
    let error = try_publish(&engine, "a", "m2").await.unwrap_err();
    assert!(matches!(error.reason, EngineError::Refused { .. }), "{error:?}");
    assert!(engine.read(&channel("a"), None, ALL).await.is_err());
    server.command::<i64>(&["DEL", &keys[0]]);
    assert_eq!(publish(&engine, "a", "m2").await.n, 2);
}

#[tokio::test]
async fn a_promoted_replica_without_the_newest_entries_is_a_gap_for_exactly_those_who_saw_them() {
    let mut master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    replica.wait_for_info("master_link_status:up");
    let before = engine_of(&master).await;
    let mut positions = Vec::new();
    for nth in 1..=10 {
        positions.push(publish(&before, "a", &format!("m{nth}")).await);
    }
    assert_eq!(master.command::<i64>(&["WAIT", "1", "20000"]), 1);
    // From here on the replica hears nothing of the master, which acknowledges five more.
    replica.command::<String>(&["REPLICAOF", "NO", "ONE"]);
    for nth in 11..=15 {
        positions.push(publish(&before, "a", &format!("m{nth}")).await);
    }
    master.kill();
    let after = engine_of(&replica).await;
    for nth in 11..=15 {
        assert_eq!(publish(&after, "a", &format!("n{nth}")).await.n, nth);
    }
    for (nth, position) in (1..).zip(&positions) {
        let expected = if nth <= 10 { Recovery::Replay { from: nth + 1, to: 15 } } else { Recovery::Gap(Why::Lineage) };
        assert_eq!(recovery(&after, "a", position).await, expected, "{position}");
    }
    // Who comes back before the numbers are given out again.
    let lost = Position { n: 16, ..positions[14].clone() };
    assert_eq!(recovery(&after, "a", &lost).await, Recovery::Gap(Why::Lineage));
    let slice = after.read(&channel("a"), Some(&positions[9]), ALL).await.unwrap();
    let ids: Vec<_> = slice.entries.iter().map(|entry| entry.message.as_str()).collect();
    assert_eq!(ids, ["n11", "n12", "n13", "n14", "n15"]);
}

#[tokio::test]
async fn a_replica_is_no_engine_and_another_region_neither() {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let other = RedisEngine::start(region(), Settings::new(Servers::Standalone { url: replica.url() }));
    let refused = |code: &str| Err(EngineError::Refused { code: code.to_owned() });
    eventually("it is refused", async || (other.status() == refused("READONLY")).then_some(())).await;
    engine_of(&master).await;
    let us = Region::new("us").unwrap();
    let wrong = RedisEngine::start(us, Settings::new(Servers::Standalone { url: master.url() }));
    let found = EngineError::WrongRegion { found: "eu".to_owned() };
    eventually("it is refused", async || (wrong.status() == Err(found.clone())).then_some(())).await;
    let wrong: Arc<dyn Engine> = Arc::new(wrong);
    let error = try_publish(&wrong, "a", "m1").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (found, Stored::No));
}

#[tokio::test]
async fn heartbeats_carry_the_servers_time() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    let mut last = 0;
    for _ in 0..3 {
        let event = wait_for(&mut events, "heartbeat", |event| matches!(event, Event::Heartbeat { .. })).await;
        let Event::Heartbeat { engine_ms, .. } = event else { unreachable!("it was waited for") };
        assert!(engine_ms > last);
        last = engine_ms;
    }
    let position = publish(&engine, "a", "m").await;
    assert!(position.id.ms >= last, "{position} {last}");
}

/// A server with a certificate for 127.0.0.1 that signs itself: the server, its URL over TLS, the certificate.
fn over_tls() -> (Server, String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let port = super::server::free_port();
    let tls = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
    let port_text = port.to_string();
    let more = ["--tls-auth-clients", "no", "--tls-port", &port_text];
    let server = Server::start(&[&tls[..], &more[..]].concat());
    (server, format!("rediss://127.0.0.1:{port}"), made.cert.pem())
}

#[tokio::test]
async fn a_server_is_reached_over_tls_and_only_with_a_certificate_that_is_trusted() {
    let (_server, url, ca) = over_tls();
    let settings = Settings::new(Servers::Standalone { url });
    let trusting = RedisEngine::start(region(), Settings { ca: Some(ca.into_bytes()), ..settings.clone() });
    eventually("it connects", async || trusting.status().ok()).await;
    let trusting: Arc<dyn Engine> = Arc::new(trusting);
    let mut reader = Reader::subscribe(&trusting, "a", SinkLimit::default()).await;
    publish(&trusting, "a", "m1").await;
    reader.until("m1").await;
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate").cert.pem();
    for ca in [None, Some(other.into_bytes())] {
        let doubting = RedisEngine::start(region(), Settings { ca, ..settings.clone() });
        let mut events = doubting.events();
        let down = wait_for(&mut events, "down or up", |event| matches!(event, Event::Down(_) | Event::Up)).await;
        assert_eq!(down, Event::Down(EngineError::Unreachable));
    }
}

#[tokio::test]
async fn a_password_is_sent_and_a_wrong_one_is_refused() {
    let server = Server::start(&[
        "--user", "default", "on", "nopass", "~*", "&*", "+@all", "--user", "gateway", "on", ">secret", "~sg:*",
        "&sg:*", "+@all",
    ]);
    let settings = Settings::new(Servers::Standalone { url: server.url() });
    let with = |password: &str| Settings {
        credentials: Credentials { username: Some("gateway".to_owned()), password: Some(password.to_owned()) },
        ..settings.clone()
    };
    let engine = RedisEngine::start(region(), with("secret"));
    eventually("it connects", async || engine.status().ok()).await;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    assert_eq!(publish(&engine, "a", "m1").await.n, 1);
    let wrong = RedisEngine::start(region(), with("guess"));
    let refused = async || matches!(wrong.status(), Err(EngineError::Refused { .. })).then_some(());
    eventually("it is refused", refused).await;
    assert!(!format!("{:?}", with("secret")).contains("secret"));
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_stays_connected() {
    let server = Server::start(&["--timeout", "1"]);
    let engine = engine_of(&server).await;
    let mut events = engine.events();
    // Five heartbeats a second: this is twice as long as a connection may be idle.
    for _ in 0..12 {
        let event = events.recv().await.expect("the engine lives, and this keeps up");
        assert!(matches!(event, Event::Heartbeat { .. }), "{event:?}");
    }
    assert_eq!(engine.read(&channel("a"), None, ALL).await.map(|slice| slice.log.top), Ok(0));
}

#[tokio::test]
async fn a_subscriber_that_the_server_cuts_off_for_its_backlog_loses_nothing() {
    let server = Server::start(&["--client-output-buffer-limit", "pubsub", "64kb", "0", "0"]);
    let (publisher, subscriber) = (engine_of(&server).await, engine_of(&server).await);
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit::default()).await;
    let mut events = subscriber.events();
    let big = vec![b'x'; 100_000];
    for nth in 1..=5 {
        let item = super::item(&format!("m{nth}"), big.clone());
        publisher.publish(&channel("a"), &item).await.unwrap();
    }
    wait_for(&mut events, "down", |event| matches!(event, Event::Down(_))).await;
    insist(&publisher, "a", "last").await;
    reader.until("last").await;
    assert_eq!(reader.ids(), ["m1", "m2", "m3", "m4", "m5", "last"]);
    assert_eq!(reader.gaps, []);
}

#[tokio::test]
async fn publishers_that_insist_through_restarts_are_stored_once_and_delivered_in_order() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let subscriber = engine_of(&server).await;
    let mut reader = Reader::subscribe(&subscriber, "a", SinkLimit { max_entries: 16, max_bytes: 1 << 20 }).await;
    let mut publishers = Vec::new();
    for publisher in 0..4 {
        let engine = engine_of(&server).await;
        publishers.push(tokio::spawn(async move {
            let mut positions = Vec::new();
            for nth in 0..60 {
                let id = format!("{publisher}/{nth}");
                positions.push((insist(&engine, "a", &id).await, id));
            }
            positions
        }));
    }
    // Each time with some of them on their way.
    for mark in [40, 90, 140] {
        while reader.last.n < mark {
            reader.step().await;
        }
        server.restart();
    }
    let mut acknowledged = Vec::new();
    for publisher in publishers {
        let positions = publisher.await.unwrap();
        assert!(positions.is_sorted_by(|a, b| a.0.n < b.0.n), "a publisher's own order is kept");
        acknowledged.extend(positions);
    }
    insist(&subscriber, "a", "last").await;
    reader.until("last").await;
    assert_eq!((reader.got.len(), reader.gaps.len()), (241, 0));
    for (position, id) in acknowledged {
        let n = usize::try_from(position.n).unwrap();
        assert_eq!((&reader.got[n - 1].position, reader.got[n - 1].message.as_str()), (&position, id.as_str()));
    }
    let epochs: std::collections::BTreeSet<_> = reader.got.iter().map(|entry| &entry.position.epoch).collect();
    assert!(epochs.len() > 1, "there was a restart between");
}

#[tokio::test]
async fn an_entry_that_no_subscriber_was_told_of_is_read_with_the_next() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    publish(&engine, "a", "m1").await;
    reader.until("m1").await;
    // Nobody but this test may say what its messages are: the publisher's user may not use Pub/Sub any more.
    server.command::<String>(&[
        "ACL",
        "SETUSER",
        "mute",
        "on",
        "nopass",
        "~*",
        "resetchannels",
        "&sg:{p0}:hb:*",
        "+@all",
    ]);
    let settings = Settings {
        credentials: Credentials { username: Some("mute".to_owned()), password: Some(String::new()) },
        ..Settings::new(Servers::Standalone { url: server.url() })
    };
    let mute = RedisEngine::start(region(), settings);
    eventually("it connects", async || mute.status().ok()).await;
    let mute: Arc<dyn Engine> = Arc::new(mute);
    for id in ["m2", "m3"] {
        let error = try_publish(&mute, "a", id).await.unwrap_err();
        assert!(matches!(error.reason, EngineError::Refused { .. }), "{error:?}");
        assert_eq!(error.stored, Stored::Unknown, "the script had appended it");
    }
    let again = try_publish(&engine, "a", "m2").await.unwrap();
    assert_eq!((again.position.n, again.repeated), (2, true));
    publish(&engine, "a", "m4").await;
    reader.until("m4").await;
    assert_eq!((reader.ids(), reader.disruptions), (vec!["m1", "m2", "m3", "m4"], 0));
}
