//! One case for each promise of the engine's contract, run against every engine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluicegate::backplane::engine::{Engine, EngineError, LatestLimit, ReadLimit, Retention, Stored};
use sluicegate::backplane::memory::{self, MemoryEngine};
use sluicegate::backplane::nats::{self, NatsEngine};
use sluicegate::backplane::position::{EntryId, Place, Position};
use sluicegate::backplane::rabbitmq::{self, RabbitEngine};
use sluicegate::backplane::recover::{Recovery, ReplayLimit, Why};
use sluicegate::backplane::redis::{self, Servers, Settings};
use sluicegate::backplane::sink::{Delivery, SinkLimit, sink};

use super::cluster_server::Cluster;
use super::nats_server::NatsServer;
use super::rabbit_server::shared_url;
use super::reader::Reader;
use super::server::Server;
use super::{ALL, Wish, channel, eventually, item, publish, region, try_publish, value};

const REPLAY: ReplayLimit = ReplayLimit { max_entries: 100_000, max_bytes: 1 << 30 };

/// An engine, and what it needs to live.
pub struct Made {
    pub engine: Arc<dyn Engine>,
    _servers: Option<Box<dyn std::any::Any>>,
}

pub async fn in_memory(wish: Wish) -> Made {
    let Wish { retention, dedupe_window, latest } = wish;
    let settings = memory::Settings { retention, dedupe_window, latest, ..memory::Settings::default() };
    Made { engine: Arc::new(MemoryEngine::new(region(), settings).unwrap()), _servers: None }
}

pub async fn over_redis(wish: Wish) -> Made {
    let server = Server::start(&[]);
    let engine = connect(Servers::Standalone { url: server.url() }, wish).await;
    Made { engine, _servers: Some(Box::new(server)) }
}

pub async fn over_cluster(wish: Wish) -> Made {
    let cluster = Cluster::start(false);
    let engine = connect(Servers::Cluster { urls: cluster.urls() }, wish).await;
    Made { engine, _servers: Some(Box::new(cluster)) }
}

/// Each in a virtual host of its own of one server.
pub async fn over_rabbit(wish: Wish) -> Made {
    let url = tokio::task::spawn_blocking(shared_url).await.expect("it starts");
    Made { engine: connect_rabbit(url, wish).await, _servers: None }
}

/// An engine over RabbitMQ that is connected.
pub async fn connect_rabbit(url: String, wish: Wish) -> Arc<dyn Engine> {
    let Wish { retention, dedupe_window, .. } = wish;
    let access = rabbitmq::Access { url, username: None, password: None };
    let settings = rabbitmq::Settings {
        retention,
        dedupe_window,
        heartbeat: Duration::from_millis(200),
        max_backoff: Duration::from_millis(400),
        ..rabbitmq::Settings::new(access)
    };
    let engine = RabbitEngine::start(region(), settings);
    eventually("it connects", async || engine.status().ok()).await;
    Arc::new(engine)
}

pub async fn over_shards(wish: Wish) -> Made {
    let servers: Vec<_> = (0..3).map(|_| Server::start(&[])).collect();
    let engine = connect(super::shards::of(&servers.iter().collect::<Vec<_>>(), 1), wish).await;
    Made { engine, _servers: Some(Box::new(servers)) }
}

/// An engine that is connected.
pub async fn connect(servers: Servers, wish: Wish) -> Arc<dyn Engine> {
    let Wish { retention, dedupe_window, latest } = wish;
    let settings = Settings {
        retention,
        dedupe_window,
        latest,
        heartbeat: Duration::from_millis(200),
        max_backoff: Duration::from_millis(400),
        ..Settings::new(servers)
    };
    let engine = redis::start(region(), settings);
    eventually("it connects", async || engine.status().ok()).await;
    engine
}

pub async fn over_nats(wish: Wish) -> Made {
    let server = NatsServer::start(&[]);
    let engine = connect_nats(vec![server.url()], wish).await;
    Made { engine, _servers: Some(Box::new(server)) }
}

/// How tests have a NATS engine.
pub fn nats_settings(urls: Vec<String>, wish: Wish) -> nats::Settings {
    let Wish { retention, dedupe_window, .. } = wish;
    nats::Settings {
        retention,
        dedupe_window,
        heartbeat: Duration::from_millis(200),
        max_backoff: Duration::from_millis(400),
        ..nats::Settings::new(urls)
    }
}

/// A NATS engine that is connected.
pub async fn connect_nats(urls: Vec<String>, wish: Wish) -> Arc<dyn Engine> {
    let engine = NatsEngine::start(region(), nats_settings(urls, wish));
    eventually("it connects", async || engine.status().ok()).await;
    Arc::new(engine)
}

/// A test of each case for each engine.
macro_rules! contract {
    ($($case:ident)*) => {
        mod memory_engine {
            $(#[tokio::test] async fn $case() { super::$case(super::in_memory).await })*
        }
        mod redis_engine {
            $(#[tokio::test] async fn $case() { super::$case(super::over_redis).await })*
        }
        mod nats_engine {
            $(#[tokio::test] async fn $case() { super::$case(super::over_nats).await })*
        }
        mod cluster_engine {
            $(#[tokio::test] async fn $case() { super::$case(super::over_cluster).await })*
        }
        mod rabbit_engine {
            $(#[tokio::test] async fn $case() { super::$case(super::over_rabbit).await })*
        }
        mod sharded_engine {
            $(#[tokio::test] async fn $case() { super::$case(super::over_shards).await })*
        }
    };
}

contract! {
    entries_are_numbered_from_one_and_read_as_they_were_published
    a_subscriber_gets_what_is_published_behind_its_head_in_order
    a_channel_without_entries_is_read_from_its_origin
    a_repeated_message_has_its_first_position_and_is_pushed_once
    of_many_at_once_with_one_id_one_is_stored
    an_id_is_free_again_behind_the_window
    concurrent_publishers_leave_no_hole
    channels_do_not_touch_each_other
    the_log_is_trimmed_by_count_exactly_and_resumed_at_each_boundary
    the_log_is_trimmed_by_bytes
    the_log_is_trimmed_by_age_and_its_numbers_go_on
    an_item_larger_than_a_channel_is_refused_and_takes_no_number
    a_log_is_read_in_parts
    nothing_is_pushed_behind_the_end_of_a_subscription
    a_second_subscription_takes_the_place_of_the_first
    an_end_that_nobody_waited_for_does_not_end_the_next_subscription
    a_full_sink_is_told_of_and_nothing_is_lost
    many_channels_share_a_sink
    names_and_payloads_are_any_bytes
}

/// The same for those that keep newest values.
macro_rules! values {
    ($($case:ident)*) => {
        mod memory_values {
            $(#[tokio::test] async fn $case() { super::$case(super::in_memory).await })*
        }
        mod redis_values {
            $(#[tokio::test] async fn $case() { super::$case(super::over_redis).await })*
        }
        mod cluster_values {
            $(#[tokio::test] async fn $case() { super::$case(super::over_cluster).await })*
        }
        mod sharded_values {
            $(#[tokio::test] async fn $case() { super::$case(super::over_shards).await })*
        }
    };
}

values! {
    the_newest_value_of_each_key_is_kept_beside_the_log
    a_repeated_message_does_not_change_the_newest_value
    newest_values_outlive_the_retention_of_the_log
    newest_values_are_bounded_in_keys
    newest_values_are_bounded_in_bytes
    newest_values_agree_with_the_log_under_concurrent_publishers
    keys_are_any_text
}

async fn entries_are_numbered_from_one_and_read_as_they_were_published<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut positions = Vec::new();
    for nth in 1..=20 {
        positions.push(publish(&made.engine, "a", &format!("m{nth}")).await);
    }
    let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
    assert!(slice.is_complete());
    assert_eq!((slice.log.top, slice.log.first), (20, 1));
    assert_eq!(slice.log.first_epoch, positions[0].epoch);
    assert_eq!(slice.top, positions[19]);
    let read: Vec<_> = slice.entries.iter().map(|entry| entry.position.clone()).collect();
    assert_eq!(read, positions);
    for (nth, entry) in (1..).zip(&slice.entries) {
        assert_eq!((entry.position.n, entry.message.as_str()), (nth, format!("m{nth}").as_str()));
        assert_eq!(entry.payload, format!("m{nth}"));
        assert_eq!(entry.position.region, region());
    }
    assert!(positions.is_sorted_by(|a, b| a.id < b.id && a.epoch == b.epoch), "{positions:?}");
}

async fn a_subscriber_gets_what_is_published_behind_its_head_in_order<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    publish(&made.engine, "a", "before").await;
    let head = publish(&made.engine, "a", "head").await;
    let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    assert_eq!(reader.last, head);
    for nth in 1..=50 {
        publish(&made.engine, "a", &format!("m{nth}")).await;
    }
    reader.until("m50").await;
    let expected: Vec<_> = (1..=50).map(|nth| format!("m{nth}")).collect();
    assert_eq!(reader.ids(), expected);
    assert_eq!((reader.disruptions, reader.got[0].position.n), (0, 3));
    let read = made.engine.read(&channel("a"), Some(&head), ALL).await.unwrap();
    assert_eq!(read.entries, reader.got, "what is pushed is what is read");
}

async fn a_channel_without_entries_is_read_from_its_origin<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    let origin = reader.last.clone();
    assert!(origin.is_origin());
    assert_eq!(origin.to_string().parse::<Position>(), Ok(origin.clone()));
    let slice = made.engine.read(&channel("a"), Some(&origin), ALL).await.unwrap();
    assert_eq!((slice.entries.len(), slice.log.top, slice.log.first), (0, 0, 1));
    assert_eq!(slice.recover(&Place::After(origin.clone()), REPLAY), Recovery::Live);
    publish(&made.engine, "a", "m1").await;
    publish(&made.engine, "a", "m2").await;
    let slice = made.engine.read(&channel("a"), Some(&origin), ALL).await.unwrap();
    assert_eq!(slice.recover(&Place::After(origin), REPLAY), Recovery::Replay { from: 1, to: 2 });
    reader.until("m2").await;
    assert_eq!((reader.ids(), reader.disruptions), (vec!["m1", "m2"], 0));
}

async fn a_repeated_message_has_its_first_position_and_is_pushed_once<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    let first = try_publish(&made.engine, "a", "m1").await.unwrap();
    assert!(!first.repeated);
    publish(&made.engine, "a", "m2").await;
    let again = made.engine.publish(&channel("a"), &item("m1", "another payload")).await.unwrap();
    assert_eq!((again.position, again.repeated), (first.position, true));
    publish(&made.engine, "a", "m3").await;
    reader.until("m3").await;
    assert_eq!(reader.ids(), ["m1", "m2", "m3"]);
    assert_eq!(reader.got[0].payload, "m1");
}

async fn of_many_at_once_with_one_id_one_is_stored<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let engine = made.engine.clone();
            tokio::spawn(async move { try_publish(&engine, "a", "m").await.unwrap() })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|answer| !answer.repeated).count(), 1);
    assert!(answers.iter().all(|answer| answer.position == answers[0].position && answer.position.n == 1));
}

async fn an_id_is_free_again_behind_the_window<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish { dedupe_window: Duration::from_millis(300), ..Wish::default() }).await;
    let first = publish(&made.engine, "a", "m").await;
    let second = eventually("the id is free", async || {
        let answer = try_publish(&made.engine, "a", "m").await.unwrap();
        assert_eq!(answer.repeated, answer.position == first);
        (!answer.repeated).then_some(answer.position)
    })
    .await;
    assert_eq!(second.n, 2);
    assert!(second.id.ms - first.id.ms >= 300, "{first} {second}");
}

async fn concurrent_publishers_leave_no_hole<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let engine = made.engine.clone();
            tokio::spawn(async move {
                let mut numbers = Vec::new();
                for nth in 0..25 {
                    numbers.push(publish(&engine, "a", &format!("{task}/{nth}")).await.n);
                }
                assert!(numbers.is_sorted(), "a publisher's own order is kept");
                numbers
            })
        })
        .collect();
    let mut numbers = BTreeSet::new();
    for task in tasks {
        numbers.extend(task.await.unwrap());
    }
    assert!(numbers.into_iter().eq(1..=200));
    let last = publish(&made.engine, "a", "last").await;
    reader.until("last").await;
    assert_eq!((reader.got.len(), reader.disruptions, reader.last.clone()), (201, 0, last));
    let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
    assert_eq!(slice.entries, reader.got);
}

async fn channels_do_not_touch_each_other<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    for name in ["a", "b", "a:", "A"] {
        let answer = try_publish(&made.engine, name, "same").await.unwrap();
        assert_eq!((answer.position.n, answer.repeated), (1, false), "{name}");
    }
    publish(&made.engine, "b", "other").await;
    publish(&made.engine, "a", "last").await;
    reader.until("last").await;
    assert_eq!(reader.ids(), ["same", "last"]);
}

async fn the_log_is_trimmed_by_count_exactly_and_resumed_at_each_boundary<F: Future<Output = Made>>(
    make: fn(Wish) -> F,
) {
    let retention = Retention { max_entries: 10, ..Retention::default() };
    let made = make(Wish { retention, ..Wish::default() }).await;
    let mut positions = vec![made.engine.read(&channel("a"), None, ALL).await.unwrap().top];
    for nth in 1..=30_u64 {
        positions.push(publish(&made.engine, "a", &format!("m{nth}")).await);
        let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
        assert_eq!(slice.log.first, nth.saturating_sub(9).max(1));
        assert_eq!(slice.entries.len() as u64, nth.min(10));
    }
    for (nth, position) in (0_u64..).zip(&positions) {
        let slice = made.engine.read(&channel("a"), Some(position), ALL).await.unwrap();
        assert_eq!(slice.at.is_some(), nth >= 21, "{nth}");
        let expected = if nth < 20 { Recovery::Gap(Why::Trimmed) } else { Recovery::Replay { from: nth + 1, to: 30 } };
        assert_eq!(slice.recover(&Place::After(position.clone()), REPLAY), expected, "{nth}");
        let read: Vec<_> = slice.entries.iter().map(|entry| entry.position.n).collect();
        assert!(read.into_iter().eq((nth + 1).max(21)..=30), "{nth}");
        let limit = ReplayLimit { max_entries: 9, max_bytes: 1 << 20 };
        if nth == 20 {
            assert_eq!(slice.recover(&Place::After(position.clone()), limit), Recovery::Gap(Why::Limit));
        }
    }
    let newest = &positions[30];
    if made.engine.has_own_numbers(&channel("a")) {
        return forged_places_where_the_id_alone_counts(&made, &positions).await;
    }
    for (forged, what) in [
        (Position { n: 31, ..newest.clone() }, "ahead"),
        (Position { id: EntryId { ms: newest.id.ms, seq: newest.id.seq + 1 }, ..newest.clone() }, "another id"),
        (Position { epoch: "x".parse_epoch(), ..newest.clone() }, "another epoch"),
        (Position { n: 29, ..newest.clone() }, "the id of another number"),
        (Position { epoch: "x".parse_epoch(), ..positions[20].clone() }, "another epoch before the first"),
    ] {
        let slice = made.engine.read(&channel("a"), Some(&forged), ALL).await.unwrap();
        let recovery = slice.recover(&Place::After(forged), REPLAY);
        assert_eq!(recovery, Recovery::Gap(Why::Lineage), "{what}");
    }
}

/// Of entries 21 to 30, which are retained. Each is read at an engine that has just read another.
async fn forged_places_where_the_id_alone_counts(made: &Made, positions: &[Position]) {
    let newest = &positions[30];
    let unknown = EntryId { ms: newest.id.ms, seq: newest.id.seq + 1 };
    for (forged, missed, what) in [
        (Position { n: 31, ..newest.clone() }, Ok(0), "another number"),
        (Position { epoch: "x".parse_epoch(), ..positions[25].clone() }, Ok(5), "another epoch"),
        (
            Position { epoch: "y".parse_epoch(), n: 2, ..positions[29].clone() },
            Ok(1),
            "a number too low for what is before",
        ),
        (Position { id: unknown, ..newest.clone() }, Err(Why::Lineage), "another id"),
        (Position { epoch: "z".parse_epoch(), id: unknown, ..newest.clone() }, Err(Why::Lineage), "all of it"),
        (Position { epoch: "x".parse_epoch(), ..positions[20].clone() }, Err(Why::Trimmed), "what was trimmed"),
    ] {
        let slice = made.engine.read(&channel("a"), Some(&forged), ALL).await.unwrap();
        let recovery = slice.recover(&Place::After(forged.clone()), REPLAY);
        match missed {
            Ok(missed) => {
                assert_eq!(recovery, Recovery::Replay { from: forged.n + 1, to: forged.n + missed }, "{what}");
                let expected = positions[(31 - missed as usize)..].iter().map(|position| position.id);
                assert!(slice.entries.iter().map(|entry| entry.position.id).eq(expected), "{what}");
            }
            Err(why) => assert_eq!(recovery, Recovery::Gap(why), "{what}"),
        }
        // What is published behind it follows on it.
        let again = made.engine.read(&channel("a"), Some(&slice.top), ALL).await.unwrap();
        let nothing = Recovery::Replay { from: slice.top.n + 1, to: slice.top.n };
        assert_eq!(again.recover(&Place::After(slice.top), REPLAY), nothing, "{what}");
    }
}

/// An epoch of a test's.
trait ParseEpoch {
    fn parse_epoch(&self) -> sluicegate::backplane::position::Epoch;
}

impl ParseEpoch for str {
    fn parse_epoch(&self) -> sluicegate::backplane::position::Epoch {
        sluicegate::backplane::position::Epoch::new(self).expect("an epoch")
    }
}

async fn the_log_is_trimmed_by_bytes<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let retention = Retention { max_bytes: 1000, ..Retention::default() };
    let made = make(Wish { retention, ..Wish::default() }).await;
    // 100 bytes each, with the id.
    for nth in 10..40 {
        made.engine.publish(&channel("a"), &item(&format!("m{nth}"), vec![7; 97])).await.unwrap();
        let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
        assert_eq!(slice.entries.len(), (nth - 9).min(10));
    }
    // One byte more than nine and it: all but nine go.
    made.engine.publish(&channel("a"), &item("m40", vec![7; 98])).await.unwrap();
    let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
    assert_eq!((slice.entries.len(), slice.log.first, slice.log.top), (9, 23, 31));
    // As large as all of it.
    made.engine.publish(&channel("a"), &item("m41", vec![7; 997])).await.unwrap();
    let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
    assert_eq!((slice.entries.len(), slice.log.first, slice.log.top), (1, 32, 32));
}

async fn the_log_is_trimmed_by_age_and_its_numbers_go_on<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let retention = Retention { max_age: Duration::from_millis(400), ..Retention::default() };
    let made = make(Wish { retention, ..Wish::default() }).await;
    let early = publish(&made.engine, "a", "m1").await;
    let late = publish(&made.engine, "a", "m2").await;
    let read = async || made.engine.read(&channel("a"), Some(&late), ALL).await.unwrap();
    let slice =
        eventually("the entries expire", async || Some(read().await).filter(|slice| slice.log.first == 3)).await;
    assert_eq!((slice.log.top, slice.entries.len(), &slice.top), (2, 0, &late));
    let whole = |position: &Position| slice.recover(&Place::After(position.clone()), REPLAY);
    assert_eq!(whole(&late), Recovery::Replay { from: 3, to: 2 });
    assert_eq!(whole(&early), Recovery::Gap(Why::Trimmed));
    // The oldest go while newer ones come.
    let next = publish(&made.engine, "a", "m3").await;
    assert_eq!((next.n, &next.epoch), (3, &late.epoch));
    let mut published = 3;
    eventually("the oldest goes", async || {
        published += 1;
        publish(&made.engine, "a", &format!("m{published}")).await;
        let slice = read().await;
        assert_eq!(slice.log.top, published);
        (slice.log.first > 3).then(|| assert!(!slice.entries.is_empty()))
    })
    .await;
}

async fn an_item_larger_than_a_channel_is_refused_and_takes_no_number<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let retention = Retention { max_bytes: 100, ..Retention::default() };
    let made = make(Wish { retention, ..Wish::default() }).await;
    publish(&made.engine, "a", "m1").await;
    let error = made.engine.publish(&channel("a"), &item("m2", vec![0; 99])).await.unwrap_err();
    assert_eq!(error.reason, EngineError::TooLarge { found_bytes: 101, limit_bytes: 100 });
    assert_eq!(error.stored, Stored::No);
    assert_eq!(publish(&made.engine, "a", "m2").await.n, 2);
}

async fn a_log_is_read_in_parts<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut positions = Vec::new();
    for nth in 10..80 {
        let item = item(&format!("m{nth}"), vec![1; 100]);
        positions.push(made.engine.publish(&channel("a"), &item).await.unwrap().position);
    }
    let numbers = async |after: Option<&Position>, max_entries, max_bytes| {
        let limit = ReadLimit { max_entries, max_bytes };
        let slice = made.engine.read(&channel("a"), after, limit).await.unwrap();
        let complete = slice.is_complete();
        (slice.entries.iter().map(|entry| entry.position.n).collect::<Vec<_>>(), complete)
    };
    assert_eq!(numbers(None, 3, 1 << 20).await, (vec![1, 2, 3], false));
    assert_eq!(numbers(Some(&positions[2]), 3, 1 << 20).await, (vec![4, 5, 6], false));
    assert_eq!(numbers(Some(&positions[2]), 100, 399).await, (vec![4, 5, 6], false));
    assert_eq!(numbers(Some(&positions[2]), 100, 400).await, (vec![4, 5, 6, 7], false));
    assert_eq!(numbers(Some(&positions[66]), 3, 1 << 20).await, (vec![68, 69, 70], true));
    assert_eq!(numbers(Some(&positions[68]), 0, 0).await, (vec![70], true), "one at least");
    assert_eq!(numbers(Some(&positions[69]), 100, 100).await, (vec![], true));
    // More than an engine looks at in one piece.
    assert_eq!(numbers(None, 60, 1 << 20).await, ((1..=60).collect(), false));
    let unknown = Position { id: EntryId { ms: 1, seq: 1 }, ..positions[54].clone() };
    assert_eq!(numbers(Some(&unknown), 3, 1 << 20).await, (vec![56, 57, 58], false));
}

async fn nothing_is_pushed_behind_the_end_of_a_subscription<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut ended = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    let mut other = Reader::subscribe(&made.engine, "b", SinkLimit::default()).await;
    publish(&made.engine, "a", "m1").await;
    ended.until("m1").await;
    made.engine.unsubscribe(&channel("a")).await;
    made.engine.unsubscribe(&channel("never")).await;
    publish(&made.engine, "a", "m2").await;
    publish(&made.engine, "b", "m1").await;
    other.until("m1").await;
    assert_eq!(ended.try_next(), None);
    let mut again = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    assert_eq!(again.last.n, 2);
    publish(&made.engine, "a", "m3").await;
    again.until("m3").await;
    assert_eq!(again.ids(), ["m3"]);
}

async fn a_second_subscription_takes_the_place_of_the_first<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut first = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    publish(&made.engine, "a", "m1").await;
    first.until("m1").await;
    let mut second = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    publish(&made.engine, "a", "m2").await;
    second.until("m2").await;
    assert_eq!(second.ids(), ["m2"]);
    assert_eq!(first.try_next(), None);
}

async fn an_end_that_nobody_waited_for_does_not_end_the_next_subscription<F: Future<Output = Made>>(
    make: fn(Wish) -> F,
) {
    let made = make(Wish::default()).await;
    for nth in 1..=50 {
        let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
        let id = format!("m{nth}");
        publish(&made.engine, "a", &id).await;
        reader.until(&id).await;
        assert_eq!((reader.ids(), reader.disruptions), (vec![id.as_str()], 0));
        // Begun, and dropped before it came to its end; so is a subscription.
        let (other, _source) = sink(SinkLimit::default());
        let _ = futures_util::FutureExt::now_or_never(made.engine.unsubscribe(&channel("a")));
        if nth % 2 == 0 {
            let _ = futures_util::FutureExt::now_or_never(made.engine.subscribe(&channel("a"), &other));
        }
    }
}

async fn a_full_sink_is_told_of_and_nothing_is_lost<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let mut events = made.engine.events();
    let limit = SinkLimit { max_entries: 5, max_bytes: 1 << 20 };
    let mut reader = Reader::subscribe(&made.engine, "a", limit).await;
    for nth in 1..=100 {
        publish(&made.engine, "a", &format!("m{nth}")).await;
        // It takes one now and then, and is behind nearly always.
        if nth % 30 == 0 {
            reader.until_disrupted().await;
        }
    }
    reader.until("m100").await;
    let expected: Vec<_> = (1..=100).map(|nth| format!("m{nth}")).collect();
    assert_eq!(reader.ids(), expected);
    assert_eq!(reader.gaps, []);
    assert!(reader.disruptions >= 3, "{}", reader.disruptions);
    let told = std::iter::from_fn(|| events.try_recv().ok())
        .filter(|event| matches!(event, sluicegate::backplane::engine::Event::Disrupted(_)))
        .count();
    assert!(told >= reader.disruptions, "{told} of {}", reader.disruptions);
}

async fn many_channels_share_a_sink<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let (sink, mut source) = sink(SinkLimit::default());
    for nth in 0..300 {
        made.engine.subscribe(&channel(&format!("c{nth}")), &sink).await.unwrap();
    }
    for round in 0..2 {
        for nth in 0..300 {
            publish(&made.engine, &format!("c{nth}"), &format!("m{round}")).await;
        }
    }
    let mut got = BTreeSet::new();
    while got.len() < 600 {
        match tokio::time::timeout(super::DEADLINE, source.recv()).await.expect("all arrive") {
            Some(Delivery::Entry(channel, entry)) => {
                assert!(got.insert((channel, entry.position.n)), "twice");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(source.try_recv(), None);
}

async fn names_and_payloads_are_any_bytes<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let long = "é".repeat(256);
    for name in ["\0", " ", "a b\r\nc", "{x}", "}{", ":c:", "комната", "🦀", "sg:{p1}:s:x", long.as_str()] {
        let mut reader = Reader::subscribe(&made.engine, name, SinkLimit::default()).await;
        for (id, payload) in [("a b\nc\0", every_byte.clone()), ("é", vec![]), ("1 2 3", b"\r\n".repeat(5000))] {
            made.engine.publish(&channel(name), &item(id, payload.clone())).await.unwrap();
            reader.until(id).await;
            assert_eq!(reader.got.last().map(|entry| entry.payload.clone()), Some(Bytes::from(payload)), "{name:?}");
        }
        let slice = made.engine.read(&channel(name), None, ALL).await.unwrap();
        assert_eq!(slice.entries, reader.got, "{name:?}");
    }
}

/// The newest values of a channel: the number and the payload of each; and the number of its newest entry.
async fn latest(made: &Made, name: &str) -> (Vec<(u64, String)>, u64) {
    assert!(made.engine.capabilities().latest);
    let found = made.engine.latest(&channel(name)).await.unwrap();
    assert!(found.entries.is_sorted_by_key(|entry| entry.position.n));
    let entries = found.entries.iter();
    let entries = entries.map(|entry| (entry.position.n, String::from_utf8_lossy(&entry.payload).into_owned()));
    (entries.collect(), found.top.n)
}

fn values(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(n, payload)| (*n, (*payload).to_owned())).collect()
}

async fn the_newest_value_of_each_key_is_kept_beside_the_log<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    assert_eq!(latest(&made, "a").await, (vec![], 0));
    assert!(made.engine.latest(&channel("a")).await.unwrap().top.is_origin());
    let mut reader = Reader::subscribe(&made.engine, "a", SinkLimit::default()).await;
    let mut stored = Vec::new();
    for (key, id) in [("x", "x1"), ("y", "y1"), ("x", "x2"), ("z", "z1"), ("y", "y2")] {
        stored.push(made.engine.publish(&channel("a"), &value(key, id, id.to_owned())).await.unwrap().position);
    }
    publish(&made.engine, "a", "without").await;
    publish(&made.engine, "b", "elsewhere").await;
    reader.until("without").await;
    assert_eq!(reader.ids(), ["x1", "y1", "x2", "z1", "y2", "without"], "the log is as ever");
    assert_eq!(latest(&made, "a").await, (values(&[(3, "x2"), (4, "z1"), (5, "y2")]), 6));
    let found = made.engine.latest(&channel("a")).await.unwrap();
    assert_eq!(found.entries, reader.got[2..5], "they are what is pushed and read");
    assert_eq!((&found.entries[0].position, &found.top), (&stored[2], &reader.last));
    assert_eq!(latest(&made, "b").await, (vec![], 1));
}

async fn a_repeated_message_does_not_change_the_newest_value<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    for (id, payload, repeated) in [("m1", "1", false), ("m2", "2", false), ("m1", "3", true), ("m2", "4", true)] {
        let answer = made.engine.publish(&channel("a"), &value("x", id, payload)).await.unwrap();
        assert_eq!(answer.repeated, repeated, "{id}");
    }
    assert_eq!(latest(&made, "a").await, (values(&[(2, "2")]), 2));
}

async fn newest_values_outlive_the_retention_of_the_log<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let retention = Retention { max_entries: 2, max_age: Duration::from_millis(300), ..Retention::default() };
    let made = make(Wish { retention, ..Wish::default() }).await;
    for nth in 1..=5 {
        let item = value(&format!("k{nth}"), &format!("m{nth}"), format!("v{nth}"));
        made.engine.publish(&channel("a"), &item).await.unwrap();
    }
    eventually("the log is empty", async || {
        let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
        slice.entries.is_empty().then_some(())
    })
    .await;
    assert_eq!(latest(&made, "a").await.0.len(), 5);
    made.engine.publish(&channel("a"), &value("k2", "m6", "v6")).await.unwrap();
    let expected = values(&[(1, "v1"), (3, "v3"), (4, "v4"), (5, "v5"), (6, "v6")]);
    assert_eq!(latest(&made, "a").await, (expected, 6));
}

async fn newest_values_are_bounded_in_keys<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let limit = LatestLimit { max_keys: 3, max_bytes: 1 << 20 };
    let made = make(Wish { latest: limit, ..Wish::default() }).await;
    for key in ["a", "b", "c"] {
        made.engine.publish(&channel("a"), &value(key, key, "old")).await.unwrap();
    }
    let error = made.engine.publish(&channel("a"), &value("d", "d", "old")).await.unwrap_err();
    assert_eq!(error.reason, EngineError::TooManyValues { limit_keys: 3, limit_bytes: 1 << 20 });
    assert_eq!(error.stored, Stored::No);
    assert_eq!(made.engine.publish(&channel("a"), &value("b", "b2", "new")).await.unwrap().position.n, 4);
    // An item without a key has no part in it, nor has another channel.
    assert_eq!(publish(&made.engine, "a", "d").await.n, 5, "an id that was refused is free");
    made.engine.publish(&channel("b"), &value("d", "d", "old")).await.unwrap();
    assert_eq!(latest(&made, "a").await, (values(&[(1, "old"), (3, "old"), (4, "new")]), 5));
}

async fn newest_values_are_bounded_in_bytes<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let limit = LatestLimit { max_keys: 100, max_bytes: 100 };
    let made = make(Wish { latest: limit, ..Wish::default() }).await;
    let put = async |key: &str, id: &str, bytes: usize| {
        made.engine.publish(&channel("a"), &value(key, id, vec![b'.'; bytes])).await.map_err(|error| error.reason)
    };
    // A key, an id and a payload: 50 bytes, and 50 bytes.
    put("x", "m1", 47).await.unwrap();
    put("y", "m2", 47).await.unwrap();
    assert_eq!(put("y", "m3", 48).await, Err(limit.refusal()));
    assert_eq!(put("z", "m4", 0).await, Err(limit.refusal()));
    // Some become smaller, and there is room again for just that.
    put("x", "m5", 27).await.unwrap();
    assert_eq!(put("y", "m6", 68).await, Err(limit.refusal()));
    put("y", "m7", 67).await.unwrap();
    assert_eq!(put("z", "m8", 0).await, Err(limit.refusal()));
    put("y", "m9", 0).await.unwrap();
    put("z", "n1", 64).await.unwrap();
    assert_eq!(put("x", "n2", 28).await, Err(limit.refusal()));
    let (found, top) = latest(&made, "a").await;
    assert_eq!(
        (found.iter().map(|(n, payload)| (*n, payload.len())).collect::<Vec<_>>(), top),
        (vec![(3, 27), (5, 0), (6, 64)], 6)
    );
}

async fn newest_values_agree_with_the_log_under_concurrent_publishers<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let engine = made.engine.clone();
            tokio::spawn(async move {
                for nth in 0..25 {
                    let id = format!("{task}/{nth}");
                    engine.publish(&channel("a"), &value(&format!("k{}", nth % 5), &id, id.clone())).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let slice = made.engine.read(&channel("a"), None, ALL).await.unwrap();
    let key = |id: &str| id.split_once('/').map_or(0, |(_, nth)| nth.parse::<u32>().unwrap() % 5);
    let mut newest = std::collections::BTreeMap::new();
    for entry in &slice.entries {
        newest.insert(key(entry.message.as_str()), entry.clone());
    }
    let mut expected: Vec<_> = newest.into_values().collect();
    expected.sort_by_key(|entry| entry.position.n);
    let found = made.engine.latest(&channel("a")).await.unwrap();
    assert_eq!((found.entries, found.top), (expected, slice.top));
}

async fn keys_are_any_text<F: Future<Output = Made>>(make: fn(Wish) -> F) {
    let made = make(Wish::default()).await;
    let long = "é".repeat(128);
    let keys = ["\0", " ", "\n", "e", "n", "ключ", long.as_str()];
    for (nth, key) in keys.iter().enumerate() {
        for payload in ["old\n", "new\n"] {
            let item = value(key, &format!("{nth} {payload}"), payload);
            made.engine.publish(&channel("a"), &item).await.unwrap();
        }
    }
    let (found, _) = latest(&made, "a").await;
    assert_eq!((found.len(), found.iter().all(|(_, payload)| payload == "new\n")), (keys.len(), true));
}
