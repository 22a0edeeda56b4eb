//! Several independent Redis servers: channels on each, servers that go, and lists that change under traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluicegate::backplane::engine::{Engine, EngineError, Event, Stored};
use sluicegate::backplane::position::{Place, Position};
use sluicegate::backplane::recover::{Recovery, ReplayLimit, Why};
use sluicegate::backplane::redis::{self, List, Servers, Settings, Shards};
use sluicegate::backplane::sink::SinkLimit;
use tokio::sync::oneshot;

use super::contract::connect;
use super::faults::insist;
use super::reader::Reader;
use super::server::Server;
use super::{ALL, Wish, channel, eventually, publish, region, try_publish};

const REPLAY: ReplayLimit = ReplayLimit { max_entries: 100_000, max_bytes: 1 << 30 };

/// A list of these servers.
pub fn of(servers: &[&Server], generation: u64) -> Servers {
    let urls: Vec<_> = servers.iter().map(|server| server.url()).collect();
    let list = List::new(urls.iter().map(String::as_str)).expect("a list");
    Servers::Shards(Shards { list, generation, gone: BTreeSet::new() })
}

async fn engine_of(servers: &[&Server], generation: u64) -> Arc<dyn Engine> {
    connect(of(servers, generation), Wish::default()).await
}

/// One that may not come up.
fn start(servers: Servers) -> Arc<dyn Engine> {
    let settings = Settings {
        timeout: Duration::from_millis(500),
        heartbeat: Duration::from_millis(200),
        max_backoff: Duration::from_millis(400),
        ..Settings::new(servers)
    };
    redis::start(region(), settings)
}

fn names() -> Vec<String> {
    (0..40).map(|nth| format!("room:{nth}")).collect()
}

/// The place of the server that has a channel.
fn at(servers: &[&Server], name: &str) -> usize {
    let Servers::Shards(Shards { list, .. }) = of(servers, 1) else { unreachable!("they are shards") };
    let url = list.shards()[list.at(&channel(name))].url.clone();
    servers.iter().position(|server| server.url() == url).expect("one of them")
}

/// A channel that is on these servers with these lists.
fn name_at(lists: &[(&[&Server], &Server)]) -> String {
    let fits = |name: &String| lists.iter().all(|(list, on)| list[at(list, name)].port == on.port);
    (0..).map(|nth| format!("c{nth}")).find(fits).expect("there are many")
}

/// What a reader at a place is given.
async fn recovery(engine: &Arc<dyn Engine>, name: &str, place: &Position) -> Recovery {
    let slice = engine.read(&channel(name), Some(place), ALL).await.expect("it can be read");
    slice.recover(&Place::After(place.clone()), REPLAY)
}

async fn superseded(engine: &Arc<dyn Engine>, in_force: u64, generation: u64) {
    let expected = Err(EngineError::Superseded { in_force, generation });
    eventually("it is superseded", async || (engine.status() == expected).then_some(())).await;
}

#[tokio::test]
async fn channels_are_on_all_servers_and_reach_another_gateway() {
    let servers = [Server::start(&[]), Server::start(&[]), Server::start(&[])];
    let all: Vec<_> = servers.iter().collect();
    let (one, other) = (engine_of(&all, 1).await, engine_of(&[all[2], all[0], all[1]], 1).await);
    let mut readers = Vec::new();
    for name in names() {
        readers.push(Reader::subscribe(&other, &name, SinkLimit::default()).await);
    }
    for id in ["m1", "m2"] {
        for name in names() {
            publish(&one, &name, id).await;
        }
    }
    for reader in &mut readers {
        reader.until("m2").await;
        assert_eq!((reader.ids(), reader.disruptions), (vec!["m1", "m2"], 0));
    }
    for (nth, server) in servers.iter().enumerate() {
        let keys: Vec<String> = server.command(&["KEYS", "sg:*:s:*"]);
        let on_it: BTreeSet<_> = keys.iter().map(|key| key.split(":s:").nth(1).expect("a name").to_owned()).collect();
        let expected = names().into_iter().filter(|name| at(&all, name) == nth).collect();
        assert_eq!(on_it, expected);
        assert!(!on_it.is_empty());
    }
}

#[tokio::test]
async fn without_one_server_only_its_channels_fail() {
    let mut servers = [Server::start(&[]), Server::start(&["--appendonly", "yes", "--appendfsync", "always"])];
    let (here, there) = {
        let all = [&servers[0], &servers[1]];
        (name_at(&[(&all, all[0])]), name_at(&[(&all, all[1])]))
    };
    let engine = engine_of(&[&servers[0], &servers[1]], 1).await;
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, &there, SinkLimit::default()).await;
    publish(&engine, &there, "m1").await;
    servers[1].kill();
    let name = format!("127.0.0.1:{}", servers[1].port);
    let of_it = |reason| EngineError::Shard { shard: name.clone(), reason: Box::new(reason) };
    eventually("it is down", async || (engine.status() == Err(of_it(EngineError::Unreachable))).then_some(())).await;
    publish(&engine, &here, "m1").await;
    let error = try_publish(&engine, &there, "m2").await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::Unreachable, Stored::No));
    // Who begins now knows from the other one that the list is in force.
    let fresh = start(of(&[&servers[0], &servers[1]], 1));
    insist(&fresh, &here, "m2").await;
    assert_eq!(fresh.status(), Err(of_it(EngineError::Unreachable)));
    servers[1].restart();
    insist(&engine, &there, "m2").await;
    reader.until("m2").await;
    assert_eq!((reader.ids(), reader.gaps.len()), (vec!["m1", "m2"], 0), "what was on disk is proven");
    eventually("it is up", async || engine.status().ok()).await;
    let told: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
        .filter(|event| matches!(event, Event::Up | Event::Down(_)))
        .collect();
    assert_eq!(told.first(), Some(&Event::Down(of_it(EngineError::Unreachable))));
    eventually("it is told", async || {
        let more = std::iter::from_fn(|| events.try_recv().ok());
        told.iter().cloned().chain(more).any(|event| event == Event::Up).then_some(())
    })
    .await;
}

/// What a subscriber was given, and what the publishers were answered.
async fn traffic(
    engine: Arc<dyn Engine>,
    gateway: &'static str,
    names: Vec<String>,
    mut stop: oneshot::Receiver<()>,
) -> BTreeMap<String, Vec<(Position, String)>> {
    let mut acknowledged: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for nth in 0.. {
        if stop.try_recv().is_ok() {
            break;
        }
        let name = &names[nth % names.len()];
        let id = format!("{gateway}/{nth}");
        if let Ok(published) = try_publish(&engine, name, &id).await {
            acknowledged.entry(name.clone()).or_default().push((published.position, id));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_under_traffic_tells_a_gap_on_what_moves_and_nothing_else() {
    let servers = [Server::start(&[]), Server::start(&[]), Server::start(&[])];
    let (two, three) = ([&servers[0], &servers[1]], [&servers[0], &servers[1], &servers[2]]);
    let old = engine_of(&two, 1).await;
    let mut readers = Vec::new();
    for name in names() {
        readers.push(Reader::subscribe(&old, &name, SinkLimit::default()).await);
    }
    let begun: Vec<_> = readers.iter().map(|reader| reader.last.clone()).collect();
    let (stop_old, stopped_old) = oneshot::channel();
    let of_old = tokio::spawn(traffic(old.clone(), "old", names(), stopped_old));
    eventually("there is traffic", async || {
        readers[0].step().await;
        (readers[0].got.len() > 3).then_some(())
    })
    .await;
    let new = start(of(&three, 2));
    let (stop_new, stopped_new) = oneshot::channel();
    let of_new = tokio::spawn(traffic(new.clone(), "new", names(), stopped_new));
    superseded(&old, 2, 1).await;
    insist(&new, "room:0", "new/in force").await;
    stop_old.send(()).unwrap();
    let error = try_publish(&old, "room:1", "old/late").await.unwrap_err();
    let superseded = EngineError::Superseded { in_force: 2, generation: 1 };
    assert_eq!((error.reason, error.stored), (superseded.clone(), Stored::No));
    assert_eq!(superseded.to_string(), "generation 2 of the shards is in force, this configuration has 1");
    eventually("there is more traffic", async || (servers[2].command::<i64>(&["DBSIZE"]) > 100).then_some(())).await;
    stop_new.send(()).unwrap();
    let (of_old, of_new) = (of_old.await.unwrap(), of_new.await.unwrap());
    for name in names() {
        insist(&new, &name, "new/last").await;
    }
    let mut moved = 0;
    for ((reader, begun), name) in readers.iter_mut().zip(&begun).zip(names()) {
        let acknowledged: Vec<_> = [&of_old, &of_new].iter().filter_map(|of| of.get(&name)).flatten().collect();
        if at(&three, &name) == 2 {
            moved += 1;
            assert_eq!(reader.until_gap().await, Why::Lineage, "{name}");
            // Who comes back with the place that it has then, or one of before, is told.
            let last = reader.last.clone();
            for (place, engine) in [(&last, &new), (begun, &new), (begun, &old)] {
                assert_eq!(recovery(engine, &name, place).await, Recovery::Gap(Why::Lineage), "{name} {place}");
            }
            for entry in &reader.got {
                assert_eq!(recovery(&new, &name, &entry.position).await, Recovery::Gap(Why::Lineage));
            }
            assert_eq!(old.subscribe(&channel(&name), &super::reader::unread()).await, Err(superseded.clone()));
        } else {
            reader.until("new/last").await;
            assert_eq!(reader.gaps, [], "{name}");
            let got: BTreeMap<_, _> =
                reader.got.iter().map(|entry| (entry.message.as_str(), &entry.position)).collect();
            assert!(acknowledged.iter().all(|(position, id)| got.get(id.as_str()) == Some(&position)), "{name}");
        }
    }
    assert!((1..names().len()).contains(&moved), "{moved}");
    assert!(of_old.values().flatten().count() > 10 && of_new.values().flatten().count() > 10);
    // The old configuration does not come back, nor does another list of the same number.
    let again = start(of(&two, 1));
    self::superseded(&again, 2, 1).await;
    let other = start(of(&[&servers[0], &servers[2]], 2));
    let refused = Err(EngineError::OtherShards { generation: 2 });
    eventually("it is refused", async || (other.status() == refused).then_some(())).await;
    assert_eq!(new.status(), Ok(()));
}

#[tokio::test]
async fn a_channel_that_comes_back_to_a_shard_does_not_go_on_with_its_old_log() {
    let servers = [Server::start(&[]), Server::start(&[]), Server::start(&[])];
    let (two, three) = ([&servers[0], &servers[1]], [&servers[0], &servers[1], &servers[2]]);
    let (roams, other) =
        (name_at(&[(&two, two[0]), (&three, three[2])]), name_at(&[(&two, two[0]), (&three, three[0])]));
    let quiet = (0..).map(|nth| format!("quiet{nth}"));
    let quiet = quiet.into_iter().find(|name| at(&two, name) == 0 && at(&three, name) == 2).expect("there are many");
    let first = engine_of(&two, 1).await;
    let mut reader = Reader::subscribe(&first, &roams, SinkLimit::default()).await;
    let mut stays = Reader::subscribe(&first, &other, SinkLimit::default()).await;
    let begun = stays.last.clone();
    let origin = Reader::subscribe(&first, &quiet, SinkLimit::default()).await.last.clone();
    let mut seen = vec![reader.last.clone()];
    for nth in 1..=3 {
        seen.push(publish(&first, &roams, &format!("m{nth}")).await);
        publish(&first, &other, &format!("m{nth}")).await;
    }
    let second = engine_of(&three, 2).await;
    for nth in 4..=5 {
        publish(&second, &roams, &format!("m{nth}")).await;
        publish(&second, &other, &format!("m{nth}")).await;
    }
    let third = engine_of(&two, 3).await;
    superseded(&second, 3, 2).await;
    superseded(&first, 3, 1).await;
    // The old log is still on the shard that it came back to: no place in it counts, with or without something behind it.
    for place in &seen {
        assert_eq!(recovery(&third, &roams, place).await, Recovery::Gap(Why::Lineage), "{place}");
    }
    assert_eq!(third.read(&channel(&roams), None, ALL).await.unwrap().entries, []);
    assert_eq!(recovery(&third, &quiet, &origin).await, Recovery::Gap(Why::Lineage));
    // An id of before is not taken for a repetition: nobody who is subscribed now was given it.
    let mut now = Reader::subscribe(&third, &roams, SinkLimit::default()).await;
    let repeated = try_publish(&third, &roams, "m2").await.unwrap();
    assert_eq!((repeated.position.n, repeated.repeated), (1, false));
    for nth in 6..=9 {
        publish(&third, &roams, &format!("m{nth}")).await;
        publish(&third, &other, &format!("m{nth}")).await;
    }
    now.until("m9").await;
    assert_eq!((now.ids(), now.gaps.len()), (vec!["m2", "m6", "m7", "m8", "m9"], 0));
    for place in &seen {
        assert_eq!(recovery(&third, &roams, place).await, Recovery::Gap(Why::Lineage), "{place}");
    }
    // The first gateway's subscriber knows of it; one whose channel stayed has missed nothing.
    assert_eq!(reader.until_gap().await, Why::Lineage);
    stays.until("m9").await;
    assert_eq!((stays.got.len(), stays.gaps.len()), (9, 0));
    assert_eq!(recovery(&third, &other, &begun).await, Recovery::Replay { from: 1, to: 9 });
}

#[tokio::test]
async fn a_shard_that_leaves_is_told_and_takes_nothing_more() {
    let servers = [Server::start(&[]), Server::start(&[]), Server::start(&[])];
    let (before, after) = ([&servers[0], &servers[1]], [&servers[1], &servers[2]]);
    let name = name_at(&[(&before, before[0])]);
    let old = engine_of(&before, 1).await;
    let mut reader = Reader::subscribe(&old, &name, SinkLimit::default()).await;
    publish(&old, &name, "m1").await;
    // While it does not answer it cannot be told, and the old list stays in force.
    servers[0].pause();
    let new = start(of(&after, 2));
    let shard = format!("127.0.0.1:{}", servers[0].port);
    let waits = Err(EngineError::Shard { shard, reason: Box::new(EngineError::TimedOut) });
    eventually("it waits", async || (new.status() == waits).then_some(())).await;
    let error = try_publish(&new, &name, "m2").await.unwrap_err();
    assert_eq!(error.stored, Stored::No);
    servers[0].resume();
    insist(&new, &name, "m2").await;
    superseded(&old, 2, 1).await;
    assert!(servers[0].command::<String>(&["HGET", "sg:shards", "now"]).starts_with("2 "));
    assert_eq!(reader.until_gap().await, Why::Lineage);
    // One that is lost for good is not waited for where the configuration says so.
    drop(new);
    let mut servers = servers;
    let gone = servers[2].url();
    servers[2].kill();
    let Servers::Shards(shards) = of(&[&servers[0], &servers[1]], 3) else { unreachable!("they are shards") };
    let third = start(Servers::Shards(Shards { gone: BTreeSet::from([gone]), ..shards }));
    insist(&third, &name, "m3").await;
    assert_eq!(third.status(), Ok(()));
}

#[tokio::test]
async fn an_emptied_shard_is_in_force_again_and_its_readers_are_told() {
    let mut servers = [Server::start(&[]), Server::start(&[])];
    let name = name_at(&[(&[&servers[0], &servers[1]], &servers[0])]);
    let engine = engine_of(&[&servers[0], &servers[1]], 1).await;
    let mut reader = Reader::subscribe(&engine, &name, SinkLimit::default()).await;
    publish(&engine, &name, "m1").await;
    reader.until("m1").await;
    servers[0].restart();
    insist(&engine, &name, "m2").await;
    assert_eq!(reader.until_gap().await, Why::Lineage);
    servers[0].command::<String>(&["FLUSHALL"]);
    insist(&engine, &name, "m3").await;
    eventually("it is up", async || engine.status().ok()).await;
    // A gateway that was never told of the change finds it on the other shard alone.
    let second = engine_of(&[&servers[0], &servers[1]], 2).await;
    drop(engine);
    servers[0].command::<String>(&["FLUSHALL"]);
    let old = start(of(&[&servers[0], &servers[1]], 1));
    superseded(&old, 2, 1).await;
    insist(&second, &name, "m4").await;
    assert!(try_publish(&old, &name, "m5").await.is_err());
    // A list that no server knows anything of, and is not the first, does not begin.
    drop(second);
    for server in &servers {
        server.command::<String>(&["FLUSHALL"]);
    }
    let fresh = start(of(&[&servers[0], &servers[1]], 2));
    let unknown = Err(EngineError::UnknownShards { generation: 2 });
    eventually("it waits", async || (fresh.status() == unknown).then_some(())).await;
}
