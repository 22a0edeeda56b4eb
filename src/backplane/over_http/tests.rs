//! A backend that is asked at one end, what the tunnel reads and writes at the other, and a memory engine behind.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::backplane::engine::{Channel, Engine as _, Item, MessageId};
use crate::backplane::hub::{Hub, InboxLimit};
use crate::backplane::memory::{MemoryEngine, Settings};
use crate::backplane::position::Region;
use crate::backplane::resume;
use crate::backplane::sink::SinkLimit;
use crate::grip::publish;
use crate::ws::header::{Sender, parse};
use crate::ws::mask;

type Answer = oneshot::Sender<Result<Reply, AskError>>;

/// Gives each question to the test, which answers it.
#[derive(Debug)]
struct Fake(mpsc::Sender<(Question, Answer)>);

impl Backend for Fake {
    fn ask(&self, question: Question) -> Asking {
        let (answer, answered) = oneshot::channel();
        self.0.try_send((question, answer)).expect("the test listens");
        Box::pin(async { answered.await.unwrap_or(Err(AskError::Unreachable(None))) })
    }
}

fn reply(headers: &[(&'static str, &str)], body: &str) -> Reply {
    let events = [("content-type", "application/websocket-events")];
    let headers = events
        .iter()
        .chain(headers)
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
    Reply {
        status: 200,
        headers: headers.collect(),
        body: Bytes::copy_from_slice(body.replace('|', "\r\n").as_bytes()),
    }
}

fn text(text: &str) -> String {
    format!("TEXT {:x}|{text}|", text.len())
}

struct Bed {
    engine: Arc<MemoryEngine>,
    questions: mpsc::Receiver<(Question, Answer)>,
    tunnel: Option<OverHttp>,
}

impl Bed {
    /// A backend that has opted in, and polls as `headers` say.
    async fn opened(headers: &[(&'static str, &str)], events: &str) -> Self {
        let grip = [("sec-websocket-extensions", "grip")];
        let headers: Vec<_> = grip.iter().chain(headers).copied().collect();
        Self::with(Limits::default(), reply(&headers, &format!("OPEN|{events}"))).await
    }

    async fn with(limits: Limits, answer: Reply) -> Self {
        Self::resuming(limits, answer, None).await
    }

    async fn resuming(limits: Limits, answer: Reply, resume: Option<resume::Settings>) -> Self {
        let engine = Arc::new(MemoryEngine::new(Region::new("eu").unwrap(), Settings::default()).unwrap());
        let hub =
            Hub::start(vec![engine.clone()], SinkLimit::default(), crate::metrics::Metrics::new().backplane(&["eu"]));
        let (sender, questions) = mpsc::channel(16);
        let mut bed = Self { engine, questions, tunnel: None };
        let backend = Arc::new(Fake(sender));
        let opening = tokio::spawn({
            let limits = limits.clone();
            async move { open(backend, &limits).await }
        });
        assert_eq!(bed.asked_with(answer).await, "OPEN|");
        let Ok(Opening::Accepted(opened)) = opening.await.unwrap() else { panic!("not accepted") };
        let subscriber = Subscriber::new(hub.join(InboxLimit::default()), limits);
        bed.tunnel = Some(opened.into_upstream(subscriber, resume, "app".to_owned()));
        bed
    }

    fn tunnel(&mut self) -> &mut OverHttp {
        self.tunnel.as_mut().expect("it was not dropped")
    }

    /// The next question, while the tunnel reads.
    async fn question(&mut self) -> (Question, Answer) {
        let Self { questions, tunnel, .. } = self;
        let Some(tunnel) = tunnel else { return questions.recv().await.expect("a question") };
        tokio::select! {
            biased;
            question = questions.recv() => question.expect("a question"),
            read = tunnel.read_u8() => panic!("read {read:?} before the backend was asked"),
            () = tokio::time::sleep(Duration::from_secs(100_000)) => panic!("no question"),
        }
    }

    /// Answers the next question, which is one with events. Returns them.
    async fn asked_with(&mut self, answer: Reply) -> String {
        let (question, answered) = self.question().await;
        let Question::Events { body, .. } = question else { panic!("{question:?}") };
        answered.send(Ok(answer)).unwrap();
        String::from_utf8_lossy(&body).replace("\r\n", "|")
    }

    async fn nothing_is_asked(&mut self, within: Duration) {
        let read = tokio::time::timeout(within, self.tunnel().read_u8()).await;
        assert!(read.is_err(), "nothing for the client");
        assert!(self.questions.try_recv().is_err(), "a question");
    }

    /// The client sends a frame.
    async fn sends(&mut self, first: u8, payload: &[u8]) {
        self.tunnel().write_all(&masked(first, payload)).await.unwrap();
    }

    async fn publish(&self, json: &str) {
        for item in publish::parse(format!("{{\"items\":[{json}]}}").as_bytes(), &Limits::default()).unwrap() {
            let mut payload = Vec::new();
            item.encode(&mut payload);
            let id = MessageId::new(item.id.as_deref().unwrap_or("none")).unwrap();
            let stored = Item { id, key: None, payload: Bytes::from(payload) };
            self.engine.publish(&Channel::new(&item.channel).unwrap(), &stored).await.unwrap();
        }
    }

    /// The first byte and the payload of the next frame for the client.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        loop {
            if let Some((header, len)) = parse(&bytes, Sender::Server, false).unwrap()
                && bytes.len() as u64 == len as u64 + header.payload_bytes
            {
                return (bytes[0], bytes.split_off(len));
            }
            let next = tokio::time::timeout(Duration::from_secs(30), self.tunnel().read_u8()).await;
            bytes.push(next.expect("a frame").unwrap());
        }
    }
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [3, 1, 4, 1];
    let header = crate::ws::header::FrameHeader {
        fin: first & 0x80 != 0,
        rsv1: false,
        opcode: parse(&[first, 0], Sender::Server, false).unwrap().unwrap().0.opcode,
        mask: Some(key),
        payload_bytes: payload.len() as u64,
    };
    let mut frame = BytesMut::from(crate::ws::header::DataHeader::new(&header).as_bytes());
    let from = frame.len();
    frame.extend_from_slice(payload);
    mask::apply(&mut frame[from..], key, 0);
    frame.to_vec()
}

fn message(id: &str, text: &str) -> String {
    format!(r#"{{"channel":"room","id":"{id}","formats":{{"ws-message":{{"content":"{text}"}}}}}}"#)
}

fn subscribe(more: &str) -> String {
    text(&format!(r#"c:{{"type":"subscribe","channel":"room"{more}}}"#))
}

#[tokio::test(start_paused = true)]
async fn what_the_client_sends_is_gathered_while_a_request_is_under_way() {
    let mut bed = Bed::opened(&[], &text("m:welcome")).await;
    assert_eq!(bed.frame().await, (0x81, b"welcome".to_vec()));
    bed.sends(0x81, b"one").await;
    let (question, answer) = bed.question().await;
    let Question::Events { body, replayed_bytes: 0, .. } = question else { panic!("{question:?}") };
    assert_eq!(&body[..], b"TEXT 3\r\none\r\n");
    for frame in [(0x01, &b"tw"[..]), (0x80, b"o"), (0x82, b"\xff"), (0x81, b"")] {
        bed.sends(frame.0, frame.1).await;
    }
    answer.send(Ok(reply(&[], &text("m:to you")))).unwrap();
    assert_eq!(bed.frame().await, (0x81, b"to you".to_vec()));
    assert_eq!(bed.asked_with(reply(&[], "")).await, "TEXT 3|two|BINARY 1|\u{fffd}|TEXT 0||");
    bed.nothing_is_asked(Duration::from_secs(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_here_and_a_pong_goes_to_who_asked_for_it() {
    let mut bed = Bed::opened(&[], "").await;
    for payload in [&b"first"[..], b"newest"] {
        bed.sends(0x89, payload).await;
    }
    assert_eq!(bed.frame().await, (0x8a, b"newest".to_vec()));
    bed.sends(0x8a, b"unasked").await;
    bed.sends(0x81, b"x").await;
    assert_eq!(bed.asked_with(reply(&[], "PING 2|pp|")).await, text("x"));
    assert_eq!(bed.frame().await, (0x89, b"pp".to_vec()));
    bed.sends(0x8a, b"pp").await;
    assert_eq!(bed.asked_with(reply(&[], "")).await, "PONG 2|pp|");
}

#[tokio::test(start_paused = true)]
async fn what_is_published_comes_without_a_request() {
    let mut bed = Bed::opened(&[], &subscribe("")).await;
    bed.nothing_is_asked(Duration::from_secs(1)).await;
    bed.publish(&message("1", "hello")).await;
    assert_eq!(bed.frame().await, (0x81, b"hello".to_vec()));
    bed.publish(r#"{"channel":"room","id":"2","formats":{"ws-message":{"action":"refresh"}}}"#).await;
    assert_eq!(bed.asked_with(reply(&[], &text("m:fresh"))).await, "");
    assert_eq!(bed.frame().await, (0x81, b"fresh".to_vec()));
    bed.publish(r#"{"channel":"room","id":"3","formats":{"ws-message":{"action":"close","code":4001}}}"#).await;
    assert_eq!(bed.frame().await, (0x88, b"\x0f\xa1".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_is_asked_for_as_often_as_the_backend_wants() {
    let mut bed = Bed::opened(&[("keep-alive-interval", "30"), ("set-meta-user", "u1")], "").await;
    bed.nothing_is_asked(Duration::from_secs(29)).await;
    let (question, answer) = bed.question().await;
    let Question::Events { body, meta, .. } = question else { panic!("{question:?}") };
    assert!(body.is_empty());
    assert_eq!(meta.iter().collect::<Vec<_>>(), [("user", "u1")]);
    answer.send(Ok(reply(&[("keep-alive-interval", "0")], ""))).unwrap();
    bed.nothing_is_asked(Duration::from_secs(10_000)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_backend_does_not_take_is_sent_again_and_a_full_batch_holds_the_client() {
    let limits = Limits { buffered_bytes: 8, ..Limits::default() };
    let mut bed = Bed::with(limits, reply(&[("sec-websocket-extensions", "grip")], "OPEN|")).await;
    bed.sends(0x81, b"abcd").await;
    let (_, answer) = bed.question().await;
    bed.sends(0x81, b"efgh").await;
    // There is no room for this one: it is taken, and then nothing more.
    bed.sends(0x81, b"ijkl").await;
    let more = tokio::time::timeout(Duration::from_secs(5), bed.tunnel().write_all(&masked(0x81, b"mnop"))).await;
    assert!(more.is_err(), "the client is not read");
    answer.send(Ok(reply(&[("content-bytes-accepted", "2")], ""))).unwrap();
    let (question, answer) = bed.question().await;
    let Question::Events { body, replayed_bytes: 2, .. } = question else { panic!("{question:?}") };
    assert_eq!(String::from_utf8_lossy(&body).replace("\r\n", "|"), text("cd") + &text("efgh"));
    answer.send(Ok(reply(&[], ""))).unwrap();
    assert_eq!(bed.asked_with(reply(&[], "")).await, text("ijkl"));
    bed.sends(0x81, b"mnop").await;
    assert_eq!(bed.asked_with(reply(&[], "")).await, text("mnop"));
    bed.sends(0x81, b"too long!").await;
    assert_eq!(bed.tunnel().verdict(), Some(Verdict::MessageTooBig { size_bytes: 9, limit_bytes: 8 }));
}

#[tokio::test(start_paused = true)]
async fn a_close_is_answered_by_the_backend_or_in_its_place() {
    for (answer, expected) in [("CLOSE 5|\u{f}\u{1}bye|", &b"\x0f\x01bye"[..]), ("", b"\x03\xe8ok"), ("CLOSE|", b"")] {
        let mut bed = Bed::opened(&[], "").await;
        bed.sends(0x88, b"\x03\xe8ok").await;
        assert_eq!(bed.asked_with(reply(&[], answer)).await, "CLOSE 4|\u{3}\u{fffd}ok|");
        assert_eq!(bed.frame().await, (0x88, expected.to_vec()), "{answer:?}");
        drop(bed.tunnel.take());
        assert!(bed.questions.recv().await.is_none(), "nothing more is told");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_is_told_of_behind_what_it_has_sent() {
    let mut bed = Bed::opened(&[], "").await;
    bed.sends(0x81, b"one").await;
    let (_, answer) = bed.question().await;
    bed.sends(0x81, b"two").await;
    drop(bed.tunnel.take());
    answer.send(Ok(reply(&[], ""))).unwrap();
    assert_eq!(bed.asked_with(reply(&[], "")).await, text("two") + "DISCONNECT|");
    assert!(bed.questions.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_is_made_again_only_while_the_backend_cannot_have_it() {
    let mut bed = Bed::opened(&[], "").await;
    bed.sends(0x81, b"one").await;
    for error in [AskError::Unreachable(None), AskError::Broken { sent_whole: false }] {
        let (_, answer) = bed.question().await;
        answer.send(Err(error)).unwrap();
    }
    assert_eq!(bed.asked_with(reply(&[], "")).await, text("one"));
    bed.sends(0x81, b"two").await;
    let (_, answer) = bed.question().await;
    answer.send(Err(AskError::Broken { sent_whole: true })).unwrap();
    assert!(bed.tunnel().read_u8().await.unwrap_err().to_string().contains("broke"));
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_none_end_the_connection() {
    let status = Reply { status: 500, ..reply(&[], "") };
    for (bad, why) in [
        (status, "status"),
        (reply(&[], "TEXT 5|abc|"), "cut off"),
        (reply(&[], "HELLO|"), "unknown type"),
        (reply(&[("content-bytes-accepted", "9")], ""), "more than was sent"),
        (reply(&[], &format!("PING 7e|{}|", "m:".repeat(63))), "no message"),
    ] {
        let mut bed = Bed::opened(&[], "").await;
        bed.sends(0x81, b"one").await;
        bed.asked_with(bad).await;
        let error = bed.tunnel().read_u8().await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    for gone in ["DISCONNECT|", "OPEN|"] {
        let mut bed = Bed::opened(&[], "").await;
        bed.sends(0x81, b"one").await;
        bed.asked_with(reply(&[], &(text("m:last") + gone))).await;
        assert_eq!(bed.frame().await, (0x81, b"last".to_vec()));
        assert_eq!(bed.tunnel().read(&mut [0; 1]).await.unwrap(), 0, "an end without a Close frame");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_detaches_is_asked_nothing_more() {
    let detach = text(r#"c:{"type":"detach"}"#);
    let mut bed = Bed::opened(&[("keep-alive-interval", "20")], &(subscribe("") + &detach)).await;
    assert_eq!(bed.asked_with(reply(&[], &text("m:for nobody"))).await, "CLOSE|");
    bed.sends(0x81, b"for nobody").await;
    bed.nothing_is_asked(Duration::from_secs(100)).await;
    bed.publish(&message("1", "still here")).await;
    assert_eq!(bed.frame().await, (0x81, b"still here".to_vec()));
    bed.sends(0x88, b"\x03\xe8").await;
    assert_eq!(bed.frame().await, (0x88, b"\x03\xe8".to_vec()));
    drop(bed.tunnel.take());
    assert!(bed.questions.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_opt_in_is_read_as_it_is() {
    let mut bed = Bed::with(Limits::default(), reply(&[], &format!("OPEN|{}", text(r#"c:{"type":"detach"}"#)))).await;
    assert_eq!(bed.frame().await, (0x81, br#"c:{"type":"detach"}"#.to_vec()));
}

#[tokio::test(start_paused = true)]
async fn an_opening_is_accepted_refused_or_malformed() {
    let events = |body: &str| reply(&[], body);
    let mut empty = events("");
    empty.headers.insert("keep-alive-interval", HeaderValue::from_static("20"));
    let mut no_prefix = events("OPEN|");
    no_prefix.headers.insert("sec-websocket-extensions", HeaderValue::from_static("grip; message-prefix=\"\""));
    for (answer, expected) in [
        (empty, "accepted"),
        (events(""), "malformed"),
        (events("TEXT 1|a|"), "malformed"),
        (events("OPEN"), "malformed"),
        (events("OPEN|TEXT 5|abc|"), "malformed"),
        (no_prefix, "malformed"),
        (Reply { status: 401, ..events("OPEN|") }, "refused"),
        (Reply { headers: HeaderMap::new(), ..events("OPEN|") }, "refused"),
    ] {
        let (sender, mut questions) = mpsc::channel(16);
        let opening = tokio::spawn(async move { open(Arc::new(Fake(sender)), &Limits::default()).await });
        let (_, answered) = questions.recv().await.unwrap();
        answered.send(Ok(answer.clone())).unwrap();
        let came = match opening.await.unwrap() {
            Ok(Opening::Accepted(_)) => "accepted",
            Ok(Opening::Refused(_)) => "refused",
            Err(OpenError::Malformed(_)) => "malformed",
            Err(OpenError::Ask(error)) => panic!("{error}"),
        };
        assert_eq!(came, expected, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_log_does_not_have_is_asked_for_by_its_link_before_anything_newer() {
    let link = r#","prev-id":"unknown","recover":{"link":"/since?room"}"#;
    let mut bed = Bed::opened(&[], "").await;
    bed.publish(&message("1", "one")).await;
    bed.publish(&message("2", "two")).await;
    bed.sends(0x81, b"hello").await;
    bed.asked_with(reply(&[], &subscribe(link))).await;
    let (question, answer) = bed.question().await;
    let Question::Link { target, last, .. } = question else { panic!("{question:?}") };
    assert_eq!((target.as_str(), last.0.as_str(), last.1.as_str()), ("/since?room", "room", "unknown"));
    bed.publish(&message("3", "three")).await;
    bed.nothing_is_asked(Duration::from_secs(1)).await;
    let more = text("m:history to one") + &subscribe(r#","prev-id":"1""#);
    answer.send(Ok(reply(&[], &more))).unwrap();
    for expected in ["history to one", "two", "three"] {
        assert_eq!(bed.frame().await, (0x81, expected.as_bytes().to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_fails_or_leads_nowhere_closes_the_client() {
    let link = r#","prev-id":"unknown","recover":{"link":"/since"}"#;
    // Twice more, since a GET may be.
    let mut bed = Bed::opened(&[], &subscribe(link)).await;
    for status in [503, 500, 502] {
        let (question, answer) = bed.question().await;
        assert!(matches!(question, Question::Link { .. }));
        answer.send(Ok(Reply { status, ..reply(&[], "") })).unwrap();
    }
    assert_eq!(bed.frame().await, (0x88, b"\x11\x3amessages were missed".to_vec()));
    let mut bed = Bed::opened(&[], &subscribe(link)).await;
    for _ in 0..3 {
        let (_, answer) = bed.question().await;
        answer.send(Ok(reply(&[], &subscribe(link)))).unwrap();
    }
    assert_eq!(bed.frame().await, (0x88, b"\x11\x3amessages were missed".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_its_place_is_told_it_and_goes_on_from_it() {
    let settings = resume::Settings {
        connection: "c1".to_owned(),
        regions: [Region::new("eu").unwrap()].into(),
        ping: None,
        max_message_bytes: None,
    };
    let answer = reply(&[("sec-websocket-extensions", "grip")], &("OPEN|".to_owned() + &subscribe("") + &text("m:hi")));
    let mut bed = Bed::resuming(Limits::default(), answer, Some(settings)).await;
    bed.publish(&message("1", "one")).await;
    let lines = async |bed: &mut Bed| {
        let (first, message) = bed.frame().await;
        assert_eq!(first, 0x81);
        let message = String::from_utf8(message).unwrap();
        let (line, payload) = message.split_once('\n').unwrap();
        (line.to_owned(), payload.to_owned())
    };
    assert!(lines(&mut bed).await.0.starts_with(r#"{"t":"hello""#));
    assert_eq!(lines(&mut bed).await, (String::new(), "hi".to_owned()));
    bed.sends(0x81, b"{\"t\":\"new\"}\n").await;
    assert!(lines(&mut bed).await.0.starts_with(r#"{"t":"sub","c":"room""#));
    bed.publish(&message("2", "two")).await;
    let (line, payload) = lines(&mut bed).await;
    assert!(line.contains(r#""i":"2""#), "{line}");
    assert_eq!(payload, "two");
    bed.sends(0x81, b"\nfor the backend").await;
    assert_eq!(bed.asked_with(reply(&[], "")).await, text("for the backend"));
    bed.sends(0x81, b"no line").await;
    assert!(matches!(bed.tunnel().verdict(), Some(Verdict::Subprotocol(_))));
}
