//! Newest values through a hub, while their Redis is emptied or loses its end.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use sluicegate::backplane::channels::{ChannelRule, ChannelRules, Conflation};
use sluicegate::backplane::engine::{Engine, Item as Stored, Key, MessageId};
use sluicegate::backplane::hub::{ChannelPlan, From, Hub, InboxLimit, Member, Notice};
use sluicegate::backplane::recover::ReplayLimit;
use sluicegate::backplane::redis::Servers;
use sluicegate::backplane::sink::SinkLimit;
use sluicegate::grip::item::{Formats, Item, WsMessage};
use sluicegate::grip::meta::Meta;
use sluicegate::grip::{Kind, Limits};
use sluicegate::metrics::Metrics;
use sluicegate::ws::header::{Sender, parse};

use super::contract::connect;
use super::server::Server;
use super::{Wish, channel, eventually};

/// Publishes a value until that succeeds; its id is its content.
async fn put(engine: &Arc<dyn Engine>, key: &str, content: &str) -> u64 {
    let mut meta = Meta::default();
    meta.set("conflate-key", key, &Limits::default()).expect("it fits");
    let bytes = Bytes::from(content.to_owned());
    let ws_message = Some(WsMessage::Send { kind: Kind::Text, content: bytes, content_filters: None });
    let formats = Formats { ws_message, ..Formats::default() };
    let (channel_name, no_seq) = ("prices".to_owned(), false);
    let item = Item { channel: channel_name, id: None, prev_id: None, no_seq, size: None, meta, formats };
    let mut payload = Vec::new();
    item.encode(&mut payload);
    let key = Some(Key::new(key).expect("a key"));
    let stored = Stored { id: MessageId::new(content).expect("an id"), key, payload: payload.into() };
    eventually("it is stored", async || engine.publish(&channel("prices"), &stored).await.ok()).await.position.n
}

/// A subscriber, and what it was last sent that begins with each letter.
struct Client {
    member: Member,
    got: BTreeMap<char, String>,
}

impl Client {
    fn new(hub: &Arc<Hub>) -> Self {
        let mut member = hub.join(InboxLimit::default());
        member.subscribe(&channel("prices"), From::Now, ReplayLimit { max_entries: 0, max_bytes: 0 });
        Self { member, got: BTreeMap::new() }
    }

    async fn has(&mut self, expected: &[&str]) {
        eventually(&format!("it has {expected:?}"), async || {
            while let Some(notice) = poll_fn(|cx| self.member.poll_next(cx)).now_or_never() {
                let part = match notice {
                    Notice::Part(_, part) => part,
                    Notice::Values { .. } => continue,
                    other => panic!("{other:?}"),
                };
                let mut frames = &part.frames[..];
                while let Some((header, len)) = parse(frames, Sender::Server, false).expect("frames") {
                    let end = len + header.payload_bytes as usize;
                    let text = String::from_utf8(frames[len..end].to_vec()).expect("text");
                    self.got.insert(text.chars().next().expect("a letter"), text);
                    frames = &frames[end..];
                }
            }
            self.got.values().eq(expected).then_some(())
        })
        .await;
    }
}

async fn bed(server: &Server) -> (Arc<dyn Engine>, Arc<Hub>) {
    let engine = connect(Servers::Standalone { url: server.url() }, Wish::default()).await;
    let conflate = Some(Conflation::default());
    let rules = ChannelRules::new(vec![ChannelRule { prefix: "prices".to_owned(), home: None, conflate }]);
    let plan = ChannelPlan { rules: Arc::new(rules), ..ChannelPlan::default() };
    let metrics = Metrics::new().backplane(&["eu"]);
    (engine.clone(), Hub::start_planned(vec![engine], plan, SinkLimit::default(), metrics))
}

#[tokio::test]
async fn what_an_emptied_server_is_given_anew_reaches_who_had_values_before() {
    let mut server = Server::start(&[]);
    let (engine, hub) = bed(&server).await;
    let mut client = Client::new(&hub);
    for (key, content) in [("x", "x1"), ("y", "y1"), ("x", "x2")] {
        put(&engine, key, content).await;
    }
    client.has(&["x2", "y1"]).await;
    server.restart();
    // Numbers begin again, below those that were seen.
    assert_eq!(put(&engine, "x", "x3").await, 1);
    client.has(&["x3", "y1"]).await;
    assert_eq!(put(&engine, "z", "z1").await, 2);
    client.has(&["x3", "y1", "z1"]).await;
    Client::new(&hub).has(&["x3", "z1"]).await;
}

#[tokio::test]
async fn behind_a_lost_end_what_the_server_has_counts_until_something_newer_comes() {
    let mut server = Server::start(&[]);
    let (engine, hub) = bed(&server).await;
    let mut client = Client::new(&hub);
    put(&engine, "x", "x1").await;
    put(&engine, "y", "y1").await;
    server.command::<String>(&["SAVE"]);
    for (key, content) in [("x", "x2"), ("z", "z1"), ("x", "x3")] {
        put(&engine, key, content).await;
    }
    client.has(&["x3", "y1", "z1"]).await;
    // It comes back as it was when it was saved.
    server.restart();
    client.has(&["x1", "y1", "z1"]).await;
    Client::new(&hub).has(&["x1", "y1"]).await;
    put(&engine, "x", "x4").await;
    put(&engine, "z", "z2").await;
    client.has(&["x4", "y1", "z2"]).await;
    Client::new(&hub).has(&["x4", "y1", "z2"]).await;
}
