//! A cluster of NATS servers that keep the stream together, of which one is killed.

use std::sync::Arc;

use serde_json::Value;
use sluicegate::backplane::engine::{Engine, EngineError};
use sluicegate::backplane::nats::{NatsEngine, Settings};
use sluicegate::backplane::recover::Recovery;
use sluicegate::backplane::sink::SinkLimit;

use super::contract::nats_settings;
use super::faults::{insist, recovery};
use super::nats_server::NatsServer;
use super::reader::Reader;
use super::server::free_port;
use super::{ALL, Wish, channel, eventually, region};

/// Three servers that know of each other, and are named by their place.
fn start() -> Vec<NatsServer> {
    let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
    let routes: Vec<_> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let routes = routes.join(",");
    let one = |(nth, port): (usize, &u16)| {
        let (name, listen) = (format!("n{nth}"), format!("nats://127.0.0.1:{port}"));
        NatsServer::start(&["-n", &name, "--cluster_name", "c", "--cluster", &listen, "--routes", &routes])
    };
    ports.iter().enumerate().map(one).collect()
}

async fn connect(servers: &[NatsServer], replicas: usize, status: Result<(), EngineError>) -> Arc<dyn Engine> {
    let urls = servers.iter().map(NatsServer::url).collect();
    let engine = NatsEngine::start(region(), Settings { replicas, ..nats_settings(urls, Wish::default()) });
    eventually("it connects", async || (engine.status() == status).then_some(())).await;
    Arc::new(engine)
}

#[tokio::test]
async fn a_stream_on_one_server_of_a_cluster_is_reached_by_the_others() {
    let servers = start();
    let engines = [connect(&servers[..1], 1, Ok(())).await, connect(&servers[1..], 1, Ok(())).await];
    let mut reader = Reader::subscribe(&engines[1], "a", SinkLimit::default()).await;
    let mut last = insist(&engines[0], "a", "m0").await;
    let first = last.clone();
    for nth in 1..=40 {
        last = insist(&engines[nth % 2], "a", &format!("m{nth}")).await;
    }
    reader.until("m40").await;
    assert_eq!((last.n, reader.got.len(), reader.gaps.len()), (41, 41, 0));
    assert_eq!((&first.epoch, reader.disruptions), (&last.epoch, 0), "whoever is asked, one leads");
    assert_eq!(recovery(&engines[0], "a", &first).await, Recovery::Replay { from: 2, to: 41 });
}

#[tokio::test]
async fn a_leader_that_is_killed_takes_nothing_with_it_where_a_stream_may_be_replicated() {
    let mut servers = start();
    if NatsServer::version() < (2, 12) {
        // Debian 12's stores two publications that follow the same entry.
        let refused = EngineError::Refused { code: "REPLICAS BEFORE 2.12".to_owned() };
        connect(&servers, 3, Err(refused)).await;
        assert_eq!(servers[0].api("STREAM.INFO.SLUICEGATE", &Value::Null)["error"]["code"], 404, "none was made");
        return;
    }
    let engines = [connect(&servers, 3, Ok(())).await, connect(&servers, 3, Ok(())).await];
    let mut reader = Reader::subscribe(&engines[1], "a", SinkLimit::default()).await;
    let first = insist(&engines[0], "a", "first").await;
    let publish_from_both = async |from: usize| {
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let engine = engines[task % 2].clone();
                tokio::spawn(async move {
                    let mut stored = Vec::new();
                    for nth in from..from + 10 {
                        let id = format!("{task}/{nth}");
                        stored.push((insist(&engine, "a", &id).await, id));
                    }
                    stored
                })
            })
            .collect();
        let mut stored = Vec::new();
        for task in tasks {
            stored.extend(task.await.unwrap());
        }
        stored
    };
    let mut stored = publish_from_both(0).await;
    let info = servers[0].api("STREAM.INFO.SLUICEGATE", &Value::Null);
    assert_eq!(info["config"]["num_replicas"], 3);
    let leader = info["cluster"]["leader"].as_str().and_then(|name| name.strip_prefix('n')).expect("a leader");
    let leader: usize = leader.parse().unwrap();
    servers[leader].kill();
    stored.extend(publish_from_both(10).await);
    let last = insist(&engines[0], "a", "last").await;
    reader.until("last").await;
    let slice = eventually("it is read", async || engines[1].read(&channel("a"), None, ALL).await.ok()).await;
    assert_eq!(slice.entries, reader.got);
    for (position, id) in &stored {
        let there = slice.entries.iter().find(|entry| entry.message.as_str() == id).map(|entry| &entry.position);
        assert_eq!(there, Some(position), "{id}");
    }
    assert_eq!((last.n, reader.got.len(), reader.gaps.len()), (82, 82, 0));
    assert_eq!(slice.log.first, 1);
    assert_eq!(insist(&engines[1], "a", "first").await, first, "ids are known still");
}
