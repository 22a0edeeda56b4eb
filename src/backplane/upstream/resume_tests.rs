//! Clients of the subprotocol `sluicegate.v1`: what they are told, where they go on, and what their backends read.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::tests::{Bed, message, setup, text_frame};
use super::*;
use crate::backplane::engine::{Channel, Engine as _, ReadLimit};
use crate::backplane::hub::{InboxLimit, Publication};
use crate::backplane::position::Region;
use crate::grip::{Kind, control};
use crate::ws::mask;

impl Bed {
    fn resumable() -> Self {
        Self::resumable_with(b"", InboxLimit::default())
    }

    fn resumable_with(preread: &[u8], limit: InboxLimit) -> Self {
        let bed = Self::new();
        bed.come_back(preread, limit)
    }

    /// Another session on the same engine and hub.
    fn come_back(self, preread: &[u8], limit: InboxLimit) -> Self {
        let (backend, io) = tokio::io::duplex(1 << 16);
        let settings = resume::Settings {
            connection: "c1".to_owned(),
            regions: [Region::new("eu").unwrap()].into(),
            ping: Some(Duration::from_secs(25)),
            max_message_bytes: Some(1 << 20),
        };
        let tunnel = GripUpstream::new(io, preread.to_vec(), setup(&self.hub, limit, Some(settings)));
        Self { backend, tunnel, ..self }
    }

    async fn client_says(&mut self, text: &str) {
        self.client_sends(&masked(0x81, text.as_bytes())).await;
    }

    async fn client_sends(&mut self, bytes: &[u8]) {
        self.tunnel.write_all(bytes).await.unwrap();
    }

    /// The header line and the payload of the next message.
    async fn line(&mut self) -> (Value, String) {
        let (first, payload) = self.frame().await;
        assert_eq!(first, 0x81);
        let text = String::from_utf8(payload).unwrap();
        let (line, rest) = text.split_once('\n').unwrap();
        let line = if line.is_empty() { Value::Null } else { serde_json::from_str(line).unwrap() };
        (line, rest.to_owned())
    }

    /// The next message is a notice with these fields.
    async fn told(&mut self, fields: Value) -> Value {
        let (line, payload) = self.line().await;
        for (name, value) in fields.as_object().unwrap() {
            assert_eq!(&line[name], value, "{name} of {line}");
        }
        assert_eq!(payload, "");
        line
    }

    /// The next messages are these of the channel. Returns the last one's position.
    async fn delivered(&mut self, numbers: std::ops::RangeInclusive<u32>) -> String {
        let mut position = String::new();
        for at in numbers {
            let (line, payload) = self.line().await;
            assert_eq!((&line["i"], payload), (&json!(format!("m{at}")), format!("text {at}")));
            assert_eq!(line["c"], "room");
            assert!(line["ts"].as_u64().is_some());
            position = line["p"].as_str().unwrap().to_owned();
        }
        position
    }

    async fn publish_numbers(&self, numbers: std::ops::RangeInclusive<u32>) {
        for at in numbers {
            self.publish(&message(&format!("m{at}"), &format!("text {at}"))).await;
        }
    }

    /// What the backend has read so far.
    async fn backend_reads(&mut self, len: usize) -> Vec<u8> {
        let mut got = vec![0; len];
        tokio::time::timeout(Duration::from_secs(5), self.backend.read_exact(&mut got)).await.expect("bytes").unwrap();
        got
    }

    fn fault(&self) -> Option<&'static str> {
        match self.tunnel.verdict() {
            Some(Verdict::Subprotocol(how)) => Some(how),
            _ => None,
        }
    }
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [1, 2, 3, 4];
    let opcode = if first & 0x0f == 1 { Opcode::Text } else { Opcode::Continuation };
    let header = FrameHeader {
        fin: first & 0x80 != 0,
        rsv1: false,
        opcode,
        mask: Some(key),
        payload_bytes: payload.len() as u64,
    };
    let mut payload = payload.to_vec();
    mask::apply(&mut payload, key, 0);
    [DataHeader::new(&header).as_bytes(), &payload].concat()
}

fn resume_from(position: &str) -> String {
    format!("{}\n", json!({ "t": "resume", "ch": { "room": [position] } }))
}

const SUBSCRIBE: &str = r#"c:{"type":"subscribe","channel":"room"}"#;

#[tokio::test(start_paused = true)]
async fn hello_comes_first_and_every_message_has_its_line() {
    let preread =
        [text_frame("m:early"), b"\x01\x04m:ab\x80\x01c".to_vec(), b"\x82\x03m:\xff\x89\x01p".to_vec()].concat();
    let mut bed = Bed::resumable_with(&preread, InboxLimit::default());
    bed.told(json!({ "t": "hello", "v": 1, "cid": "c1", "region": "eu", "resume_wait": 2000, "ping": 25000,
        "max_frame": 1 << 20 }))
        .await;
    for (first, payload) in [(0x81, &b"\nearly"[..]), (0x01, b"\nab"), (0x80, b"c"), (0x82, b"\n\xff"), (0x89, b"p")] {
        assert_eq!(bed.frame().await, (first, payload.to_vec()));
    }
    bed.text(r#"c:{"type":"send-delayed","content":"later","timeout":1}"#).await;
    bed.text(r#"c:{"type":"keep-alive","content":"tick","timeout":5}"#).await;
    assert_eq!(bed.frame().await, (0x81, b"\nlater".to_vec()));
    assert_eq!(bed.frame().await, (0x81, b"\ntick".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_gets_what_it_missed_and_says_so_before_anything_is_subscribed() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says("{\"t\":\"new\"}\n").await;
    bed.text(SUBSCRIBE).await;
    let sub = bed.told(json!({ "t": "sub", "c": "room", "s": "live", "n": 0 })).await;
    let start = sub["h"][0].as_str().unwrap().to_owned();
    bed.publish_numbers(1..=3).await;
    let position = bed.delivered(1..=3).await;
    for (place, missed) in [(&position, 4..=6), (&start, 1..=6)] {
        bed.publish_numbers(4..=6).await;
        bed = bed.come_back(&text_frame(SUBSCRIBE), InboxLimit::default());
        bed.told(json!({ "t": "hello" })).await;
        bed.settle().await;
        assert_eq!(bed.hub.subscribers(&Channel::new("room").unwrap()), 0, "it waits for the client");
        bed.client_says(&resume_from(place)).await;
        let count = missed.end() - missed.start() + 1;
        bed.told(json!({ "t": "sub", "c": "room", "s": "recovered", "n": count })).await;
        bed.delivered(missed).await;
        bed.settle().await;
    }
    bed.publish_numbers(7..=7).await;
    bed.delivered(7..=7).await;
    assert_eq!(bed.fault(), None);
}

#[tokio::test(start_paused = true)]
async fn a_position_grants_nothing() {
    let mut bed = Bed::resumable();
    bed.publish_numbers(1..=2).await;
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says(&resume_from("eu.a.0.0-0")).await;
    bed.settle().await;
    assert_eq!(bed.hub.subscribers(&Channel::new("room").unwrap()), 0);
    bed.text(r#"c:{"type":"subscribe","channel":"other"}"#).await;
    bed.told(json!({ "t": "sub", "c": "other", "s": "live" })).await;
    bed.settle().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_proven_is_a_gap() {
    let mut bed = Bed::resumable();
    bed.publish_numbers(1..=2).await;
    for (place, region, why, ends) in [
        ("eu.elsewhere.1.5-0", "eu", "lineage", true),
        ("eu.elsewhere.9.5-0", "eu", "lineage", true),
        ("us.a.1.5-0", "us", "region_down", false),
        ("eu.a.1.not-an-id", "eu", "lineage", false),
    ] {
        bed = bed.come_back(&text_frame(SUBSCRIBE), InboxLimit::default());
        bed.told(json!({ "t": "hello" })).await;
        bed.client_says(&resume_from(place)).await;
        let gap = bed.told(json!({ "t": "gap", "c": "room", "r": region, "why": why, "from": place })).await;
        assert_eq!(gap["to"].is_string(), ends, "{gap}");
        let sub = bed.told(json!({ "t": "sub", "c": "room", "s": "gap", "n": 0 })).await;
        assert!(!ends || gap["to"] == sub["h"][0]);
        bed.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_backends_own_place_counts_where_the_client_has_none_and_its_on_gap_is_sent_too() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    bed.publish_numbers(1..=3).await;
    bed.client_says("{\"t\":\"new\"}\n").await;
    bed.text(r#"c:{"type":"subscribe","channel":"room","prev-id":"m1"}"#).await;
    bed.told(json!({ "t": "sub", "s": "recovered", "n": 2 })).await;
    bed.delivered(2..=3).await;
    let lost = r#""prev-id":"unknown","recover":{"on-gap":"send","content":"resync"}"#;
    bed.text(&format!(r#"c:{{"type":"subscribe","channel":"room",{lost}}}"#)).await;
    bed.told(json!({ "t": "gap", "why": "trimmed" })).await;
    bed.told(json!({ "t": "sub", "s": "gap" })).await;
    assert_eq!(bed.frame().await, (0x81, b"\nresync".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_new_after_a_while_and_hears_of_a_gap_when_it_is_late() {
    let mut bed = Bed::resumable();
    bed.publish_numbers(1..=2).await;
    bed = bed.come_back(&text_frame(SUBSCRIBE), InboxLimit::default());
    let start = now();
    bed.told(json!({ "t": "hello" })).await;
    bed.told(json!({ "t": "sub", "s": "live" })).await;
    assert_eq!((now() - start).as_millis(), 2000);
    let late = json!({ "t": "resume", "ch": { "room": ["eu.a.1.1-0"], "hall": ["eu.b.1.1-0"] } });
    bed.client_says(&format!("{late}\n")).await;
    bed.told(json!({ "t": "gap", "c": "room", "why": "expired", "from": "eu.a.1.1-0", "to": null })).await;
    // What it was not subscribed to yet is not too late.
    bed.text(r#"c:{"type":"subscribe","channel":"hall"}"#).await;
    bed.told(json!({ "t": "gap", "c": "hall", "why": "lineage", "from": "eu.b.1.1-0" })).await;
    bed.told(json!({ "t": "sub", "c": "hall", "s": "gap" })).await;
    assert_eq!(bed.fault(), None);
    bed.client_says("{\"t\":\"new\"}\n").await;
    assert_eq!(bed.fault(), Some("resume or new behind another message"));
}

#[tokio::test(start_paused = true)]
async fn a_second_subscription_goes_on_where_the_first_was() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says("{\"t\":\"new\"}\n").await;
    bed.text(SUBSCRIBE).await;
    bed.told(json!({ "t": "sub", "s": "live" })).await;
    bed.publish_numbers(1..=1).await;
    bed.delivered(1..=1).await;
    // These wait for the client when the second takes the place of the first.
    bed.publish_numbers(2..=3).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut out = Vec::new();
    let control = control::parse(&SUBSCRIBE.as_bytes()[2..], &Limits::default()).unwrap();
    bed.tunnel.subscriber.control(control, now(), &mut out);
    bed.told(json!({ "t": "sub", "s": "recovered", "n": 2 })).await;
    bed.delivered(2..=3).await;
    bed.publish_numbers(4..=4).await;
    bed.delivered(4..=4).await;
}

#[tokio::test(start_paused = true)]
async fn positions_for_channels_that_are_never_subscribed_are_forgotten() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says(&resume_from("eu.a.1.1-0")).await;
    let read = tokio::time::timeout(Duration::from_secs(61), bed.tunnel.read_u8()).await;
    assert!(read.is_err());
    bed.text(SUBSCRIBE).await;
    bed.told(json!({ "t": "sub", "s": "live" })).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_the_application_comes_first_where_the_client_has_nothing_to_resume() {
    let mut bed = Bed::resumable();
    bed.text(SUBSCRIBE).await;
    bed.told(json!({ "t": "hello" })).await;
    bed.settle().await;
    bed.client_says("\nhi").await;
    bed.told(json!({ "t": "sub", "s": "live" })).await;
    bed.client_says("{\"t\":\"ack\",\"c\":\"room\",\"p\":\"eu.a.1.1-0\"}\n").await;
    bed.client_says("\n").await;
    let got = bed.backend_reads(2 + 4 + 2 + 2 + 4).await;
    assert_eq!(got, [&b"\x81\x82\x02\x03\x04\x01"[..], &[b'h' ^ 2, b'i' ^ 3], b"\x81\x80\x02\x03\x04\x01"].concat());
    assert_eq!(bed.fault(), None);
    bed.client_says("not framed").await;
    assert_eq!(bed.fault(), Some("message has no header line"));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_takes_no_more_holds_the_tunnel_up_and_loses_nothing() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    let payload = [&b"\n"[..], &vec![b'x'; 200_000]].concat();
    let sent = [masked(0x01, &payload), masked(0x80, b"end"), masked(0x81, b"\nlast")].concat();
    let Bed { backend, tunnel, .. } = &mut bed;
    let write = async {
        tunnel.write_all(&sent).await.unwrap();
        tunnel.flush().await.unwrap();
    };
    let mut got = vec![0; sent.len() - 2];
    let read = async {
        // The pipe has 64 KiB; it is read in pieces that fit nothing.
        for piece in got.chunks_mut(777) {
            backend.read_exact(piece).await.unwrap();
        }
    };
    tokio::join!(write, read);
    let mut scanner = Scanner::new(Sender::Client, false);
    let (mut at, mut sizes) = (0, Vec::new());
    while at < got.len() {
        match scanner.next(&got[at..]).unwrap() {
            Step::Header { header, len, .. } => {
                sizes.push(header.payload_bytes);
                at += len;
            }
            Step::Payload { len, .. } => at += len,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sizes, [200_000, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_published_does_not_close_who_comes_back() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says("{\"t\":\"new\"}\n").await;
    bed.text(SUBSCRIBE).await;
    bed.told(json!({ "t": "sub" })).await;
    let close = r#"{"channel":"room","id":"c","formats":{"ws-message":{"action":"close","code":4001,"reason":"bye"}}}"#;
    bed.publish(close).await;
    let position = bed.told(json!({ "t": "pos", "c": "room" })).await["p"].as_str().unwrap().to_owned();
    assert_eq!(bed.frame().await, (0x88, b"\x0f\xa1bye".to_vec()));
    bed = bed.come_back(&text_frame(SUBSCRIBE), InboxLimit::default());
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says(&resume_from(&position)).await;
    bed.told(json!({ "t": "sub", "s": "recovered", "n": 0 })).await;
    bed.settle().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_passed_over_by_a_filter_is_told_its_position_now_and_then() {
    let mut bed = Bed::resumable();
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says("{\"t\":\"new\"}\n").await;
    bed.text(r#"c:{"type":"set-meta","name":"user","value":"u1"}"#).await;
    bed.text(r#"c:{"type":"subscribe","channel":"room","filters":["skip-self","var-subst"]}"#).await;
    bed.told(json!({ "t": "sub" })).await;
    let from = |id: u32, sender: &str| {
        let text = r#"{"ws-message":{"content":"to %(user)s"}}"#;
        format!(r#"{{"channel":"room","id":"m{id}","meta":{{"sender":"{sender}"}},"formats":{text}}}"#)
    };
    for id in 1..=64 {
        bed.publish(&from(id, "u1")).await;
    }
    bed.told(json!({ "t": "pos", "c": "room" })).await;
    bed.publish(&from(65, "u2")).await;
    let (line, payload) = bed.line().await;
    assert_eq!((line["i"].as_str(), &*payload), (Some("m65"), "to u1"));
}

#[tokio::test(start_paused = true)]
async fn who_is_overrun_comes_back_to_a_gap_that_is_told() {
    let limit = InboxLimit { max_messages: 2, max_bytes: 1 << 20 };
    let mut bed = Bed::resumable_with(b"", limit);
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says("{\"t\":\"new\"}\n").await;
    bed.text(SUBSCRIBE).await;
    bed.told(json!({ "t": "sub" })).await;
    for at in 1..=1100 {
        bed.publish_numbers(at..=at).await;
        tokio::task::yield_now().await;
    }
    let (mut at, mut position) = (0, String::new());
    while bed.tunnel.verdict().is_none() {
        at += 1;
        position = bed.delivered(at..=at).await;
    }
    assert_eq!(bed.tunnel.verdict(), Some(Verdict::Overrun));
    bed = bed.come_back(&text_frame(SUBSCRIBE), limit);
    bed.told(json!({ "t": "hello" })).await;
    bed.client_says(&resume_from(&position)).await;
    bed.told(json!({ "t": "gap", "why": "trimmed", "from": position })).await;
    bed.told(json!({ "t": "sub", "s": "gap" })).await;
}

/// A client that is cut at any message and comes back each time, while more is published, with an inbox of any size: each
/// message comes once and in order, and there is no gap, since the history has all of them.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_cut_anywhere_gets_everything_once() {
    let seed = std::env::var("SLUICEGATE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = SmallRng::seed_from_u64(seed);
    println!("SLUICEGATE_SEED={seed}");
    let (mut bed, mut cursor) = (Bed::resumable(), None::<String>);
    let (mut published, mut seen) = (0, 0);
    for _ in 0..300 {
        let limit = InboxLimit { max_messages: random.random_range(1..20), max_bytes: 1 << random.random_range(3..12) };
        bed = bed.come_back(&text_frame(SUBSCRIBE), limit);
        bed.told(json!({ "t": "hello" })).await;
        let first = cursor.as_deref().map_or_else(|| "{\"t\":\"new\"}\n".to_owned(), resume_from);
        bed.client_says(&first).await;
        let sub = bed.told(json!({ "t": "sub", "s": if cursor.is_some() { "recovered" } else { "live" } })).await;
        assert_eq!(sub["n"], published - seen);
        if cursor.is_none() {
            cursor = sub["h"][0].as_str().map(str::to_owned);
        }
        for _ in 0..random.random_range(0..6) {
            let more = random.random_range(0..10);
            bed.publish_numbers(published + 1..=published + more).await;
            published += more;
            let takes = random.random_range(0..=published - seen);
            if takes > 0 {
                cursor = Some(bed.delivered(seen + 1..=seen + takes).await);
                seen += takes;
            }
        }
        // Cut: what was on its way is lost.
    }
    assert!(seen > 1000, "{seen} of {published}");
}

#[tokio::test(start_paused = true)]
async fn all_who_can_resume_share_one_frame() {
    let bed = Bed::resumable();
    bed.publish_numbers(1..=1).await;
    let (room, limit) = (Channel::new("room").unwrap(), ReadLimit { max_entries: 1, max_bytes: 1000 });
    let mut slice = bed.engine.read(&room, None, limit).await.unwrap();
    let publication = Publication::new(room, slice.entries.remove(0));
    let rendered = publication.rendered().unwrap();
    let ask = || rendered.resumable(Kind::Text, b"text 1", &publication.channel, &publication.entry.position);
    assert!(std::ptr::eq(ask().as_ptr(), ask().as_ptr()));
}
