//! Streams that somebody else fills with plain XADD, as channels.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use sluicegate::backplane::engine::{Engine, EngineError, MessageId, ReadLimit, Retention, Stored};
use sluicegate::backplane::hub::{From, Hub, InboxLimit, Member, Notice};
use sluicegate::backplane::position::{Place, Position};
use sluicegate::backplane::recover::{Recovery, ReplayLimit, Why};
use sluicegate::backplane::redis::{IngestRule, Pattern, RedisEngine, Servers, Settings};
use sluicegate::backplane::rendered::Message;
use sluicegate::backplane::sink::SinkLimit;
use sluicegate::metrics::Metrics;

use super::reader::Reader;
use super::server::Server;
use super::{ALL, DEADLINE, Wish, channel, eventually, item, publish, region, try_publish};

const UNLIMITED: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

fn rules() -> Vec<IngestRule> {
    let pattern = |text| Pattern::new(text).expect("a pattern");
    let rule = |streams, channels| IngestRule {
        streams: pattern(streams),
        channels: pattern(channels),
        id_field: "msgId".to_owned(),
        data_field: "message".to_owned(),
    };
    vec![rule("room:*", "room:*"), rule("app:*:events", "events:*")]
}

async fn engine_with(server: &Server, wish: Wish) -> Arc<dyn Engine> {
    let settings = Settings {
        ingest: rules(),
        retention: wish.retention,
        heartbeat: Duration::from_millis(200),
        max_backoff: Duration::from_millis(400),
        ..Settings::new(Servers::Standalone { url: server.url() })
    };
    let engine = RedisEngine::start(region(), settings);
    eventually("it connects", async || engine.status().ok()).await;
    Arc::new(engine)
}

async fn engine_of(server: &Server) -> Arc<dyn Engine> {
    engine_with(server, Wish::default()).await
}

/// What a producer does that knows nothing of us. Gives the entry's id.
fn add(server: &Server, stream: &str, id: &str) -> String {
    server.command(&["XADD", stream, "*", "roomId", "42", "message", &format!("text of {id}"), "msgId", id])
}

/// A client of a node, and what it was told.
struct Client {
    member: Member,
    got: Vec<(String, String)>,
    recovery: Option<Recovery>,
    gaps: Vec<Why>,
    last: Option<Position>,
}

impl Client {
    async fn subscribe(hub: &Arc<Hub>, name: &str, from: From) -> Self {
        let mut member = hub.join(InboxLimit::default());
        member.subscribe(&channel(name), from, UNLIMITED);
        let mut client = Self { member, got: Vec::new(), recovery: None, gaps: Vec::new(), last: None };
        while client.recovery.is_none() {
            client.step().await;
        }
        client
    }

    async fn step(&mut self) {
        let next = tokio::time::timeout(DEADLINE, poll_fn(|cx| self.member.poll_next(cx))).await;
        match next.unwrap_or_else(|_| panic!("nothing came behind {:?}", self.got)) {
            Notice::Subscribed { top, recovery, .. } => (self.recovery, self.last) = (Some(recovery), Some(top)),
            Notice::Publication(publication) => {
                let Some(Message::Send { content, .. }) = publication.rendered().map(|rendered| &rendered.message)
                else {
                    panic!("no message: {publication:?}");
                };
                let text = String::from_utf8(content.to_vec()).expect("text");
                self.last = Some(publication.entry.position.clone());
                self.got.push((publication.entry.message.as_str().to_owned(), text));
            }
            Notice::Gap { why, top, .. } => {
                self.gaps.push(why);
                self.last = Some(top);
            }
            Notice::Region { region, .. } => panic!("nobody said that of {region}"),
            Notice::Overrun(channel) => panic!("overrun of {channel:?}"),
        }
    }

    async fn until(&mut self, id: &str) {
        while self.got.last().is_none_or(|(of, _)| of != id) {
            self.step().await;
        }
    }

    fn ids(&self) -> Vec<&str> {
        self.got.iter().map(|(id, _)| id.as_str()).collect()
    }
}

fn message(id: &str) -> From {
    From::Message(MessageId::new(id).expect("an id"))
}

fn hub_of(engine: &Arc<dyn Engine>) -> Arc<Hub> {
    Hub::start(vec![engine.clone()], SinkLimit::default(), Metrics::new().backplane(&["eu"]))
}

#[tokio::test]
async fn what_a_producer_adds_is_pushed_in_order_and_nothing_is_published_there() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    add(&server, "room:42", "before");
    let mut reader = Reader::subscribe(&engine, "room:42", SinkLimit::default()).await;
    let mut renamed = Reader::subscribe(&engine, "events:7", SinkLimit::default()).await;
    assert!(renamed.last.is_origin(), "there is no stream yet");
    for nth in 1..=700 {
        let id = add(&server, "room:42", &format!("m{nth}"));
        if nth == 700 {
            reader.until("m700").await;
            assert_eq!(reader.last.id.to_string(), id, "positions have the entry's own id");
        }
    }
    let expected: Vec<_> = (1..=700).map(|nth| format!("m{nth}")).collect();
    assert_eq!((reader.ids(), reader.disruptions), (expected.iter().map(String::as_str).collect(), 0));
    add(&server, "app:7:events", "first");
    renamed.until("first").await;
    assert_eq!((renamed.disruptions, renamed.last.n), (0, 1));
    let error = engine.publish(&channel("room:42"), &item("x", "x")).await.unwrap_err();
    assert_eq!((error.reason, error.stored), (EngineError::Foreign, Stored::No));
    // Channels of our own are beside them.
    assert_eq!(publish(&engine, "room", "m1").await.n, 1);
    engine.unsubscribe(&channel("room:42")).await;
    add(&server, "room:42", "after");
    add(&server, "app:7:events", "second");
    renamed.until("second").await;
    assert_eq!(reader.try_next(), None);
}

#[tokio::test]
async fn fields_that_are_missing_or_no_text_lose_no_entry() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "room:1", SinkLimit::default()).await;
    let id: String = server.command(&["XADD", "room:1", "*", "message", "no id"]);
    let empty: String = server.command(&["XADD", "room:1", "*", "other", "field"]);
    add(&server, "room:1", "last");
    reader.until("last").await;
    assert_eq!(reader.ids(), [id.as_str(), empty.as_str(), "last"]);
}

#[tokio::test]
async fn streams_beyond_one_connection_are_all_heard() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut readers = Vec::new();
    for nth in 0..600 {
        readers.push(Reader::subscribe(&engine, &format!("room:{nth}"), SinkLimit::default()).await);
    }
    for nth in (0..600).rev() {
        add(&server, &format!("room:{nth}"), "m1");
    }
    for reader in &mut readers {
        reader.until("m1").await;
        assert_eq!(reader.disruptions, 0);
    }
    let clients: String = server.command(&["CLIENT", "LIST"]);
    assert_eq!(clients.lines().filter(|line| line.contains("cmd=xread")).count(), 2, "{clients}");
}

#[tokio::test]
async fn a_full_sink_and_a_lost_connection_lose_nothing() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let limit = SinkLimit { max_entries: 5, max_bytes: 1 << 20 };
    let mut reader = Reader::subscribe(&engine, "room:1", limit).await;
    for nth in 1..=100 {
        add(&server, "room:1", &format!("m{nth}"));
        if nth % 30 == 0 {
            server.command::<usize>(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
    }
    reader.until("m100").await;
    let expected: Vec<_> = (1..=100).map(|nth| format!("m{nth}")).collect();
    assert_eq!((reader.ids(), reader.gaps.len()), (expected.iter().map(String::as_str).collect(), 0));
    assert!(reader.disruptions > 0);
}

#[tokio::test]
async fn a_stream_that_is_emptied_or_trimmed_past_a_reader_is_a_gap() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut reader = Reader::subscribe(&engine, "room:1", SinkLimit::default()).await;
    for nth in 1..=5 {
        add(&server, "room:1", &format!("m{nth}"));
    }
    reader.until("m5").await;
    // One at a time, each in the place of the last: nothing is missed, though nothing is left.
    for nth in 6..=9 {
        let id = format!("m{nth}");
        server.command::<String>(&["XADD", "room:1", "MAXLEN", "1", "*", "message", "x", "msgId", &id]);
        reader.until(&id).await;
    }
    assert_eq!((reader.got.len(), reader.gaps.len()), (9, 0));
    // In one step, so that nobody can read between: two come, and the first is gone.
    let script = "redis.call('XADD', KEYS[1], '*', 'message', 'x', 'msgId', 'lost') \
                  redis.call('XADD', KEYS[1], 'MAXLEN', '1', '*', 'message', 'x', 'msgId', 'm10') return 1";
    server.command::<i64>(&["EVAL", script, "1", "room:1"]);
    assert_eq!(reader.until_gap().await, Why::Trimmed);
    server.command::<i64>(&["DEL", "room:1"]);
    // The ids of one that is filled again within the same millisecond are lower, and heard of later.
    eventually("the clock goes on", async || {
        let (seconds, micros): (u64, u64) = server.command(&["TIME"]);
        (seconds * 1000 + micros / 1000 > reader.last.id.ms).then_some(())
    })
    .await;
    add(&server, "room:1", "again");
    reader.until_gap().await;
    add(&server, "room:1", "last");
    reader.until("last").await;
    assert_eq!(reader.gaps.len(), 2);
}

#[tokio::test]
async fn a_client_that_comes_back_by_either_id_gets_what_it_missed_on_any_node() {
    let server = Server::start(&[]);
    let (one, other) = (engine_of(&server).await, engine_of(&server).await);
    let (one, other) = (hub_of(&one), hub_of(&other));
    let mut client = Client::subscribe(&one, "room:42", From::Now).await;
    add(&server, "room:42", "m1");
    let native = add(&server, "room:42", "m2");
    client.until("m2").await;
    assert_eq!(client.got[1], ("m2".to_owned(), "text of m2".to_owned()));
    let place = client.last.clone().expect("it has one");
    drop(client);
    for nth in 3..=5 {
        add(&server, "room:42", &format!("m{nth}"));
    }
    for from in [message("m2"), message(&native), From::Place(Place::After(place))] {
        for hub in [&one, &other] {
            let mut client = Client::subscribe(hub, "room:42", from.clone()).await;
            client.until("m5").await;
            assert_eq!((client.ids(), client.gaps.len()), (vec!["m3", "m4", "m5"], 0), "{from:?}");
            assert!(matches!(client.recovery, Some(Recovery::Replay { .. })), "{:?}", client.recovery);
        }
    }
    server.command::<i64>(&["XTRIM", "room:42", "MAXLEN", "2"]);
    let third = engine_of(&server).await;
    let third = hub_of(&third);
    let client = Client::subscribe(&third, "room:42", message("m2")).await;
    assert_eq!(client.recovery, Some(Recovery::Gap(Why::Trimmed)));
    let mut client = Client::subscribe(&third, "room:42", message("m4")).await;
    client.until("m5").await;
    assert_eq!(client.ids(), ["m5"]);
}

#[tokio::test]
async fn what_a_producer_deletes_hides_nothing_else() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let hub = hub_of(&engine);
    let entries: Vec<_> = (1..=6).map(|nth| add(&server, "room:1", &format!("m{nth}"))).collect();
    let mut live = Client::subscribe(&hub, "room:1", From::Now).await;
    server.command::<i64>(&["XDEL", "room:1", &entries[3]]);
    let mut back = Client::subscribe(&hub, "room:1", message("m2")).await;
    add(&server, "room:1", "m7");
    back.until("m7").await;
    live.until("m7").await;
    assert_eq!((back.ids(), live.ids()), (vec!["m3", "m5", "m6", "m7"], vec!["m7"]));
    // Also when what it deletes was the last that was delivered.
    let last = live.last.clone().expect("it has one").id.to_string();
    server.command::<i64>(&["XDEL", "room:1", &last]);
    add(&server, "room:1", "m8");
    live.until("m8").await;
    assert_eq!((live.ids(), live.gaps.len()), (vec!["m7", "m8"], 0));
}

#[tokio::test]
async fn history_bounds_how_far_back_a_client_can_go() {
    let server = Server::start(&[]);
    let retention = Retention { max_entries: 10, ..Retention::default() };
    let engine = engine_with(&server, Wish { retention, ..Wish::default() }).await;
    let hub = hub_of(&engine);
    for nth in 1..=30 {
        add(&server, "room:1", &format!("m{nth}"));
    }
    let mut back = Client::subscribe(&hub, "room:1", message("m21")).await;
    back.until("m30").await;
    assert_eq!(back.got.len(), 9);
    let gone = Client::subscribe(&hub, "room:1", message("m20")).await;
    assert_eq!(gone.recovery, Some(Recovery::Gap(Why::Trimmed)));
    // Without a subscription a log can be read too, from its end backwards.
    let slice = engine.read(&channel("room:2"), None, ALL).await.unwrap();
    assert_eq!((slice.entries.len(), slice.log.top), (0, 0));
    let slice = engine.read(&channel("room:1"), None, ReadLimit { max_entries: 3, max_bytes: 1 << 20 }).await.unwrap();
    let ids: Vec<_> = slice.entries.iter().map(|entry| entry.message.as_str()).collect();
    assert_eq!((ids, slice.is_complete()), (vec!["m21", "m22", "m23"], false));
}

#[tokio::test]
async fn a_server_that_comes_back_with_other_entries_is_a_gap() {
    let mut master = Server::start(&[]);
    let engine = engine_of(&master).await;
    let mut reader = Reader::subscribe(&engine, "room:1", SinkLimit::default()).await;
    for nth in 1..=5 {
        add(&master, "room:1", &format!("m{nth}"));
    }
    reader.until("m5").await;
    let port = master.port;
    // What takes its place at the same address has less, and then as much again.
    master.restart();
    assert_eq!(port, master.port);
    for (nth, entry) in ["1-1", "1-2", "1-3", "1-4", "1-5"].iter().enumerate() {
        let id = format!("n{nth}");
        master.command::<String>(&["XADD", "room:1", entry, "message", "x", "msgId", &id]);
    }
    assert_eq!(reader.until_gap().await, Why::Lineage);
    add(&master, "room:1", "last");
    reader.until("last").await;
    assert_eq!(reader.gaps.len(), 1);
}

#[tokio::test]
async fn a_key_that_is_no_stream_is_refused_and_holds_no_other_up() {
    let server = Server::start(&[]);
    let engine = engine_of(&server).await;
    let mut good = Reader::subscribe(&engine, "room:good", SinkLimit::default()).await;
    let mut bad = Reader::subscribe(&engine, "room:bad", SinkLimit::default()).await;
    add(&server, "room:bad", "m1");
    bad.until("m1").await;
    server.command::<i64>(&["DEL", "room:bad"]);
    server.command::<String>(&["SET", "room:bad", "text"]);
    let (sink, _source) = sluicegate::backplane::sink::sink(SinkLimit::default());
    server.command::<String>(&["SET", "room:worse", "text"]);
    let refused = engine.subscribe(&channel("room:worse"), &sink).await.unwrap_err();
    assert!(matches!(refused, EngineError::Refused { .. }), "{refused:?}");
    for nth in 1..=20 {
        let id = format!("m{nth}");
        add(&server, "room:good", &id);
        good.until(&id).await;
    }
    server.command::<i64>(&["DEL", "room:bad"]);
    add(&server, "room:bad", "m2");
    bad.until_gap().await;
    assert!(try_publish(&engine, "room", "m1").await.is_ok());
}
