//! A backend that speaks GRIP at one end, what the tunnel reads at the other, and a memory engine behind.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

use super::*;
use crate::backplane::backend::{Question, Reply};
use crate::backplane::engine::{Channel, Engine, Item, LOST, MessageId};
use crate::backplane::hub::{Hub, InboxLimit};
use crate::backplane::memory::{MemoryEngine, Settings};
use crate::backplane::position::Region;
use crate::backplane::sink::SinkLimit;
use crate::grip::events::encode;
use crate::grip::extension::Prefix;
use crate::grip::publish;
use crate::ws::header::parse;

/// Answers every link with what it has behind the one id that it knows.
#[derive(Debug)]
struct Database;

impl Backend for Database {
    fn ask(&self, question: Question) -> Asking {
        let Question::Link { target, last: (channel, id), .. } = question else { panic!("{question:?}") };
        assert_eq!((target.as_str(), channel.as_str()), ("/since", "room"));
        let mut body = Vec::new();
        for text in ["m:from the database", r#"c:{"type":"subscribe","channel":"room","prev-id":"1"}"#] {
            encode(EventKind::Message(crate::grip::Kind::Text), text.as_bytes(), &mut body);
        }
        let content_type = HeaderValue::from_static(crate::grip::events::CONTENT_TYPE);
        let headers = [(http::header::CONTENT_TYPE, content_type)].into_iter().collect();
        let status = if id == "known" { 200 } else { 404 };
        Box::pin(async move { Ok(Reply { status, headers, body: body.into() }) })
    }
}

pub(super) fn setup(hub: &Arc<Hub>, limit: InboxLimit, resume: Option<resume::Settings>) -> Setup {
    Setup {
        opt_in: OptIn::Prefix(Prefix::new(b"m:").unwrap()),
        limits: Limits::default(),
        subscriber: Subscriber::new(hub.join(limit), Limits::default()),
        backend: Arc::new(Database),
        resume,
        rule: "app".to_owned(),
    }
}

pub(super) struct Bed {
    pub(super) engine: Arc<MemoryEngine>,
    pub(super) hub: Arc<Hub>,
    pub(super) backend: DuplexStream,
    pub(super) tunnel: GripUpstream<DuplexStream>,
}

impl Bed {
    fn with(preread: &[u8], limit: InboxLimit) -> Self {
        let engine = Arc::new(MemoryEngine::new(Region::new("eu").unwrap(), Settings::default()).unwrap());
        let hub =
            Hub::start(vec![engine.clone()], SinkLimit::default(), crate::metrics::Metrics::new().backplane(&["eu"]));
        let (backend, io) = duplex(1 << 16);
        let tunnel = GripUpstream::new(io, preread.to_vec(), setup(&hub, limit, None));
        Self { engine, hub, backend, tunnel }
    }

    pub(super) fn new() -> Self {
        Self::with(b"", InboxLimit::default())
    }

    pub(super) async fn says(&mut self, bytes: &[u8]) {
        self.backend.write_all(bytes).await.unwrap();
    }

    pub(super) async fn text(&mut self, text: &str) {
        self.says(&text_frame(text)).await;
    }

    /// Subscribes, and waits until that is in force.
    async fn subscribe(&mut self, channel: &str) {
        self.text(&format!("c:{{\"type\":\"subscribe\",\"channel\":\"{channel}\"}}")).await;
        self.text("m:ready").await;
        assert_eq!(self.frame().await, (0x81, b"ready".to_vec()));
        self.settle().await;
    }

    /// Lets what is under way come to its end, without an effect on the client.
    pub(super) async fn settle(&mut self) {
        let read = tokio::time::timeout(Duration::from_millis(100), self.tunnel.read_u8()).await;
        assert!(read.is_err(), "nothing for the client");
    }

    pub(super) async fn publish(&self, json: &str) {
        for item in publish::parse(format!("{{\"items\":[{json}]}}").as_bytes(), &Limits::default()).unwrap() {
            let mut payload = Vec::new();
            item.encode(&mut payload);
            let id = MessageId::new(item.id.as_deref().unwrap_or("none")).unwrap();
            let stored = Item { id, key: None, payload: Bytes::from(payload) };
            self.engine.publish(&Channel::new(&item.channel).unwrap(), &stored).await.unwrap();
        }
    }

    /// The first byte and the payload of the next frame that the tunnel reads.
    pub(super) async fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        loop {
            if let Some((header, len)) = parse(&bytes, Sender::Server, false).unwrap()
                && bytes.len() as u64 == len as u64 + header.payload_bytes
            {
                return (bytes[0], bytes.split_off(len));
            }
            // One byte more at a time: how it is read makes no difference.
            let next = tokio::time::timeout(Duration::from_secs(30), self.tunnel.read_u8()).await;
            bytes.push(next.expect("a frame").unwrap());
        }
    }
}

pub(super) fn text_frame(text: &str) -> Vec<u8> {
    super::super::rendered::frame(crate::grip::Kind::Text, text.as_bytes())
}

pub(super) fn message(id: &str, text: &str) -> String {
    format!(r#"{{"channel":"room","id":"{id}","formats":{{"ws-message":{{"content":"{text}"}}}}}}"#)
}

#[tokio::test(start_paused = true)]
async fn prefixes_are_taken_off_and_what_is_for_nobody_is_dropped() {
    let mut bed = Bed::new();
    bed.text("no prefix").await;
    bed.text("m:one").await;
    // The prefix has to be in the first frame.
    bed.says(b"\x01\x01m\x89\x01p\x00\x03:tw\x80\x01o").await;
    bed.says(b"\x82\x03m:\xff").await;
    bed.text("m:").await;
    for (first, payload) in [(0x81, &b"one"[..]), (0x89, b"p"), (0x82, b"\xff"), (0x81, b"")] {
        assert_eq!(bed.frame().await, (first, payload.to_vec()));
    }
    bed.settle().await;
}

#[tokio::test(start_paused = true)]
async fn every_split_of_what_a_backend_says_comes_out_the_same() {
    let said: Vec<u8> = [
        text_frame("m:one"),
        text_frame(r#"c:{"type":"set-meta","name":"user","value":"u1"}"#),
        b"\x01\x02m:\x89\x01p\x80\x03two".to_vec(),
        text_frame("dropped"),
        b"\x01\x07dropped\x80\x02it".to_vec(),
        b"\x82\x04m:\x00\xff".to_vec(),
        b"\x88\x05\x0f\xa0end".to_vec(),
    ]
    .concat();
    let expected = b"\x81\x03one\x01\x00\x89\x01p\x80\x03two\x82\x02\x00\xff\x88\x05\x0f\xa0end";
    for at in 0..=said.len() {
        for preread in [true, false] {
            let (first, second) = said.split_at(at);
            let mut bed = Bed::with(if preread { first } else { b"" }, InboxLimit::default());
            let mut got = vec![0; expected.len()];
            let Bed { backend, tunnel, .. } = &mut bed;
            let write = async {
                if !preread {
                    backend.write_all(first).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                backend.write_all(second).await.unwrap();
            };
            let ((), read) = tokio::join!(write, tunnel.read_exact(&mut got));
            read.unwrap();
            assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string(), "split at {at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_published_comes_between_the_backends_messages() {
    let mut bed = Bed::new();
    bed.subscribe("room").await;
    bed.says(b"\x01\x03m:a").await;
    assert_eq!(bed.frame().await, (0x01, b"a".to_vec()));
    bed.publish(&message("1", "published")).await;
    bed.settle().await;
    bed.says(b"\x80\x01b").await;
    assert_eq!(bed.frame().await, (0x80, b"b".to_vec()));
    assert_eq!(bed.frame().await, (0x81, b"published".to_vec()));
    bed.publish(r#"{"channel":"room","id":"2","formats":{"ws-message":{"content-bin":"AP8="}}}"#).await;
    assert_eq!(bed.frame().await, (0x82, b"\x00\xff".to_vec()));
    bed.publish(
        r#"{"channel":"room","id":"3","formats":{"ws-message":{"action":"close","code":4001,"reason":"bye"}}}"#,
    )
    .await;
    assert_eq!(bed.frame().await, (0x88, b"\x0f\xa1bye".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn filters_see_the_metadata_of_the_connection() {
    let mut bed = Bed::new();
    bed.text(r#"c:{"type":"set-meta","name":"user","value":"u1"}"#).await;
    bed.text(r#"c:{"type":"subscribe","channel":"room","filters":["skip-self","var-subst"]}"#).await;
    bed.settle().await;
    let from = |id: &str, sender: &str| {
        let text = r#"{"ws-message":{"content":"to %(user)s"}}"#;
        format!(r#"{{"channel":"room","id":"{id}","meta":{{"sender":"{sender}"}},"formats":{text}}}"#)
    };
    bed.publish(&from("1", "u1")).await;
    bed.publish(&from("2", "u2")).await;
    assert_eq!(bed.frame().await, (0x81, b"to u1".to_vec()));
    bed.text(r#"c:{"type":"unsubscribe","channel":"room"}"#).await;
    bed.settle().await;
    bed.publish(&from("3", "u2")).await;
    bed.settle().await;
    assert_eq!(bed.hub.subscribers(&Channel::new("room").unwrap()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_gets_what_it_missed_or_what_its_backend_says_at_a_gap() {
    let mut bed = Bed::new();
    for at in 1..=5 {
        bed.publish(&message(&format!("m{at}"), &format!("text {at}"))).await;
    }
    bed.text(r#"c:{"type":"subscribe","channel":"room","prev-id":"m3"}"#).await;
    for at in 4..=5 {
        assert_eq!(bed.frame().await, (0x81, format!("text {at}").into_bytes()));
    }
    let gap = r#"{"on-gap":"send","content":"resync"}"#;
    bed.text(&format!(r#"c:{{"type":"subscribe","channel":"room","prev-id":"unknown","recover":{gap}}}"#)).await;
    assert_eq!(bed.frame().await, (0x81, b"resync".to_vec()));
    bed.publish(&message("m6", "text 6")).await;
    assert_eq!(bed.frame().await, (0x81, b"text 6".to_vec()));
    let gap = r#"{"on-gap":"close","code":4410}"#;
    bed.text(&format!(r#"c:{{"type":"subscribe","channel":"room","prev-id":"unknown","recover":{gap}}}"#)).await;
    let (first, payload) = bed.frame().await;
    assert_eq!((first, &payload[..2]), (0x88, &4410_u16.to_be_bytes()[..]));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_detaches_leaves_its_client_behind() {
    let mut bed = Bed::new();
    bed.subscribe("room").await;
    let (first, second) = (b"\x89\x81\x00\x00\x00\x00p".as_slice(), b"\x88\x82\x00\x00\x00\x00\x03\xe8".as_slice());
    bed.text(r#"c:{"type":"detach"}"#).await;
    bed.settle().await;
    let mut heard = Vec::new();
    bed.backend.read_to_end(&mut heard).await.unwrap();
    assert_eq!((heard[0], heard[1]), (0x88, 0x82), "a Close frame");
    bed.publish(&message("1", "still there")).await;
    assert_eq!(bed.frame().await, (0x81, b"still there".to_vec()));
    bed.tunnel.write_all(&first[..4]).await.unwrap();
    bed.tunnel.write_all(&first[4..]).await.unwrap();
    assert_eq!(bed.frame().await, (0x8a, b"p".to_vec()));
    bed.tunnel.write_all(b"\x81\x81\x00\x00\x00\x00x").await.unwrap();
    bed.tunnel.write_all(second).await.unwrap();
    assert_eq!(bed.frame().await, (0x88, b"\x03\xe8".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn keep_alives_and_delayed_messages_are_sent_in_time() {
    let mut bed = Bed::new();
    bed.text(r#"c:{"type":"keep-alive","content":"tick","timeout":10}"#).await;
    bed.text(r#"c:{"type":"send-delayed","content":"later","timeout":3}"#).await;
    let start = now();
    assert_eq!(bed.frame().await, (0x81, b"later".to_vec()));
    assert_eq!((now() - start).as_secs(), 3);
    assert_eq!(bed.frame().await, (0x81, b"tick".to_vec()));
    assert_eq!((now() - start).as_secs(), 13, "quiet for ten seconds");
    bed.text(r#"c:{"type":"keep-alive"}"#).await;
    let read = tokio::time::timeout(Duration::from_secs(60), bed.tunnel.read_u8()).await;
    assert!(read.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_the_window_has_passed_is_over() {
    let mut bed = Bed::with(b"", InboxLimit { max_messages: 2, max_bytes: 1 << 20 });
    bed.subscribe("room").await;
    assert_eq!(bed.tunnel.verdict(), None);
    for at in 0..1100 {
        bed.publish(&message(&format!("m{at}"), "x")).await;
        tokio::task::yield_now().await;
    }
    while bed.tunnel.verdict().is_none() {
        assert_eq!(bed.frame().await, (0x81, b"x".to_vec()));
    }
    assert_eq!(bed.tunnel.verdict(), Some(Verdict::Overrun));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_is_left_to_the_tunnel() {
    let mut bed = Bed::new();
    bed.text("m:one").await;
    bed.says(b"\xf1\x01x rest").await;
    let mut got = vec![0; 5 + 8];
    bed.tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(got, b"\x81\x03one\xf1\x01x rest");
    let too_many = r#"c:{"type":"subscribe","channel":"a","filters":["skip-self","skip-self","skip-self","skip-self","skip-self","skip-self"]}"#;
    let mut bed = Bed::new();
    bed.text(too_many).await;
    let (first, payload) = bed.frame().await;
    assert_eq!((first, &payload[..2]), (0x88, &1011_u16.to_be_bytes()[..]));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_asks_for_what_is_not_there_is_passed_over() {
    let mut bed = Bed::new();
    bed.text(r#"c:{"type":"subscribe","channel":"room","mode":"latest"}"#).await;
    bed.settle().await;
    assert_eq!(bed.hub.subscribers(&Channel::new("room").unwrap()), 0);
    bed.subscribe("room").await;
    assert_eq!(bed.hub.subscribers(&Channel::new("room").unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_log_does_not_have_is_asked_for_before_anything_newer() {
    let mut bed = Bed::new();
    bed.publish(&message("1", "one")).await;
    bed.publish(&message("2", "two")).await;
    let subscribe = |id: &str| {
        let recover = r#""recover":{"link":"/since"}"#;
        format!(r#"c:{{"type":"subscribe","channel":"room","prev-id":"{id}",{recover}}}"#)
    };
    bed.text(&subscribe("known")).await;
    for expected in ["from the database", "two"] {
        assert_eq!(bed.frame().await, (0x81, expected.as_bytes().to_vec()));
    }
    bed.text(&subscribe("unknown")).await;
    assert_eq!(bed.frame().await, (0x88, b"\x11\x3amessages were missed".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_loss_that_the_engine_found_is_told_once_to_who_passes_it() {
    let mut bed = Bed::new();
    let subscribe = |more: &str| {
        let recover = r#""recover":{"on-gap":"send","content":"gap"}"#;
        format!(r#"c:{{"type":"subscribe","channel":"room",{recover}{more}}}"#)
    };
    bed.text(&subscribe("")).await;
    bed.settle().await;
    bed.publish(&message("1", "one")).await;
    let loss = Item { id: MessageId::new("lost a1").unwrap(), key: None, payload: Bytes::from_static(LOST) };
    bed.engine.publish(&Channel::new("room").unwrap(), &loss).await.unwrap();
    bed.publish(&message("2", "two")).await;
    for expected in ["one", "gap", "two"] {
        assert_eq!(bed.frame().await, (0x81, expected.as_bytes().to_vec()));
    }
    // Read again it says nothing new, and behind a gap neither.
    bed.text(&subscribe(r#","prev-id":"1""#)).await;
    assert_eq!(bed.frame().await, (0x81, b"two".to_vec()));
    bed.text(&subscribe(r#","prev-id":"unknown""#)).await;
    assert_eq!(bed.frame().await, (0x81, b"gap".to_vec()));
    bed.settle().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_compresses_stays_a_fault_where_values_are_compressed_here() {
    let mut bed = Bed::new();
    assert!(!bed.tunnel.deflates());
    let setup = setup(&bed.hub, InboxLimit::default(), None);
    let setup = Setup { subscriber: setup.subscriber.compressing(), ..setup };
    let (backend, io) = duplex(1 << 16);
    (bed.backend, bed.tunnel) = (backend, GripUpstream::new(io, Vec::new(), setup));
    assert!(bed.tunnel.deflates());
    bed.text("m:fine").await;
    bed.says(b"\xc1\x04m:hi").await;
    assert_eq!(bed.frame().await, (0x81, b"fine".to_vec()));
    let first = bed.tunnel.read_u8().await.unwrap();
    assert_eq!(parse(&[first, 0], Sender::Server, true), Err(crate::ws::error::ProtocolError::ReservedBit));
}
