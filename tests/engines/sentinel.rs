//! A master that Sentinel replaces.

use sluicegate::backplane::engine::{EngineError, Event};
use sluicegate::backplane::recover::Recovery;
use sluicegate::backplane::redis::{Credentials, RedisEngine, Servers, Settings};
use sluicegate::backplane::sink::SinkLimit;

use super::contract::connect;
use super::faults::{insist, recovery};
use super::reader::Reader;
use super::server::Server;
use super::{Wish, channel, eventually, region, value};

#[tokio::test]
async fn a_fail_over_by_sentinel_goes_on_with_what_was_replicated() {
    let mut master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    replica.wait_for_info("master_link_status:up");
    let sentinels: Vec<_> = (0..3).map(|_| Server::sentinel(master.port)).collect();
    for sentinel in &sentinels {
        let port = master.port;
        sentinel.wait_for_info(&format!("master0:name=main,status=ok,address=127.0.0.1:{port},slaves=1,sentinels=3"));
    }
    let urls = sentinels.iter().map(Server::url).collect();
    let engine = connect(Servers::Sentinel { urls, master: "main".to_owned() }, Wish::default()).await;
    let mut events = engine.events();
    let mut reader = Reader::subscribe(&engine, "a", SinkLimit::default()).await;
    for nth in 1..=10 {
        insist(&engine, "a", &format!("m{nth}")).await;
    }
    reader.until("m10").await;
    let seen = reader.last.clone();
    for (key, id) in [("x", "x1"), ("y", "y1")] {
        engine.publish(&channel("prices"), &value(key, id, id)).await.unwrap();
    }
    assert_eq!(master.command::<i64>(&["WAIT", "1", "20000"]), 1);
    master.kill();
    for nth in 11..=20 {
        assert_eq!(insist(&engine, "a", &format!("m{nth}")).await.n, nth);
    }
    reader.until("m20").await;
    let expected: Vec<_> = (1..=20).map(|nth| format!("m{nth}")).collect();
    assert_eq!(reader.ids(), expected);
    assert_eq!(reader.gaps, []);
    assert_ne!(reader.last.epoch, seen.epoch);
    assert_eq!(recovery(&engine, "a", &seen).await, Recovery::Replay { from: 11, to: 20 });
    engine.publish(&channel("prices"), &value("x", "x2", "x2")).await.unwrap();
    let latest = engine.latest(&channel("prices")).await.unwrap();
    let values: Vec<_> = latest.entries.iter().map(|entry| (entry.position.n, entry.message.as_str())).collect();
    assert_eq!((values, latest.top.n), (vec![(2, "y1"), (3, "x2")], 3));
    assert!(std::iter::from_fn(|| events.try_recv().ok()).any(|event| matches!(event, Event::LineageChanged { .. })));
}

#[tokio::test]
async fn sentinels_have_credentials_of_their_own() {
    let master = Server::start(&[]);
    let sentinel = Server::sentinel(master.port);
    sentinel.command::<String>(&["ACL", "SETUSER", "gateway", "on", ">secret", "+@all"]);
    sentinel.command::<String>(&["ACL", "SETUSER", "default", "off"]);
    let servers = Servers::Sentinel { urls: vec![sentinel.url()], master: "main".to_owned() };
    let known = Credentials { username: Some("gateway".to_owned()), password: Some("secret".to_owned()) };
    let settings = Settings { sentinel_credentials: known, ..Settings::new(servers) };
    // The master knows no such user, so that they are not sent to it is seen too.
    let engine = RedisEngine::start(region(), settings.clone());
    eventually("it connects", async || engine.status().ok()).await;
    let unknown = RedisEngine::start(region(), Settings { sentinel_credentials: Credentials::default(), ..settings });
    let refused = async || matches!(unknown.status(), Err(EngineError::Refused { .. })).then_some(());
    eventually("it is refused", refused).await;
}
