//! A case for each cause of the table, and the other ways to it. The expectations are the contract's, written out: they
//! are not read from the table that they check.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use sluicegate::ws::deflate::Deflater;

use crate::support::{
    BINARY, CLOSE, DEADLINE, End, Frame, Gateway, PING, PONG, Peer, TEXT, Upstream, connect_with_a_small_window,
    eventually, pause,
};

/// The first frame of a message of text, and one that goes on and ends it.
const BEGIN_TEXT: u8 = 0x01;
const CONTINUE: u8 = 0x00;
const END_TEXT: u8 = 0x80;

/// What Sluicegate itself ends, with a Close frame to the client.
const fn ours(cause: &'static str, policy: &'static str, code: u16) -> End {
    End { cause, closed_by: "proxy", code, sent: Some(code), policy: Some(policy) }
}

// ---- the peers' own ends --------------------------------------------------------------------------------------------

pub fn client_closed() {
    let upstream = Upstream::bind();
    for (theirs, reply, code) in [(Some(1000), 1000, 1000), (Some(4123), 3999, 4123), (None, 1000, 1005)] {
        let gateway = Gateway::start(upstream.address(), &[]);
        let (mut client, mut backend) = upstream.open(&gateway);
        let payload = theirs.map_or(Vec::new(), |code: u16| [&code.to_be_bytes()[..], b"because"].concat());
        client.send_frame(CLOSE, &payload);
        backend.expect(CLOSE, &payload);
        backend.send_close(reply, "well");
        assert_eq!(client.expect_close(reply), "well");
        client.expect_end();
        drop(client);
        drop(backend);
        gateway.assert_end(End { cause: "client_closed", closed_by: "client", code, sent: Some(reply), policy: None });
    }
}

pub fn upstream_closed() {
    let upstream = Upstream::bind();
    for (theirs, code, sent) in [(Some(1011), 1011, 1011), (Some(3000), 3000, 3000), (None, 1005, 1005)] {
        let gateway = Gateway::start(upstream.address(), &[]);
        let (mut client, mut backend) = upstream.open(&gateway);
        let payload = theirs.map_or(Vec::new(), |code: u16| [&code.to_be_bytes()[..], b"because"].concat());
        backend.send_frame(CLOSE, &payload);
        client.expect(CLOSE, &payload);
        client.send_frame(CLOSE, &payload);
        backend.expect(CLOSE, &payload);
        drop(backend);
        client.expect_end();
        drop(client);
        gateway.assert_end(End {
            cause: "upstream_closed",
            closed_by: "upstream",
            code,
            sent: Some(sent),
            policy: None,
        });
    }
}

pub fn client_gone() {
    let upstream = Upstream::bind();
    for half in [false, true] {
        let gateway = Gateway::start(upstream.address(), &[]);
        let (mut client, mut backend) = upstream.open(&gateway);
        client.send_frame(TEXT, b"the last one");
        backend.expect(TEXT, b"the last one");
        if half {
            let frame = client.frame(BINARY, &[7; 100]);
            client.send(&frame[..50]);
            let mut came = [0; 50];
            backend.stream.read_exact(&mut came).unwrap();
            assert_eq!(came, frame[..50], "what came is forwarded, and nothing added");
        }
        drop(client);
        backend.expect_end();
        drop(backend);
        gateway.assert_end(End { cause: "client_gone", closed_by: "client", code: 1006, sent: None, policy: None });
    }
}

pub fn upstream_gone() {
    let upstream = Upstream::bind();
    let end = End { cause: "upstream_gone", closed_by: "upstream", code: 1006, sent: Some(1012), policy: None };
    let gateway = Gateway::start(upstream.address(), &[]);
    let (mut client, mut backend) = upstream.open(&gateway);
    backend.send_frame(TEXT, b"the last one");
    drop(backend);
    client.expect(TEXT, b"the last one");
    client.expect_close_and_end(1012);
    drop(client);
    gateway.assert_end(end);

    // In the middle of a frame there is no place for a Close frame.
    let gateway = Gateway::start(upstream.address(), &[]);
    let (mut client, mut backend) = upstream.open(&gateway);
    let frame = backend.frame(BINARY, &[7; 100]);
    backend.send(&frame[..50]);
    drop(backend);
    let mut came = Vec::new();
    client.stream.read_to_end(&mut came).unwrap();
    assert_eq!(came, frame[..50]);
    drop(client);
    gateway.assert_end(End { sent: None, ..end });
}

// ---- the client's violations ----------------------------------------------------------------------------------------

/// A client that sends `good`, which arrives, and then something that breaks a rule: it is told `end.code`, and the
/// upstream 1001.
fn client_breaks(rule: &[&str], good: &[(u8, Vec<u8>)], bad: impl Fn(&Peer) -> Vec<u8>, end: End) {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), rule);
    let (mut client, mut backend) = upstream.open(&gateway);
    let mut sent: Vec<u8> = good.iter().flat_map(|(first, payload)| client.frame(*first, payload)).collect();
    sent.extend(bad(&client));
    // Something behind it, which nobody may see.
    sent.extend(client.frame(TEXT, b"late"));
    client.send(&sent);
    for (first, payload) in good {
        backend.expect(*first, payload);
    }
    backend.expect_close_and_end(1001);
    client.expect_close_and_end(end.code);
    drop((client, backend));
    let line = gateway.assert_end(end);
    let whole = good.iter().filter(|(first, _)| matches!(*first, TEXT | BINARY | END_TEXT)).count();
    assert_eq!(line["messages_in"].as_u64(), Some(whole as u64), "{line}");
}

/// What a client sends that it must not.
type Break = fn(&Peer) -> Vec<u8>;

fn hello() -> (u8, Vec<u8>) {
    (TEXT, b"hello".to_vec())
}

pub fn client_protocol() {
    let broken: [(&str, Break); 5] = [
        ("an unmasked frame", |_| vec![TEXT, 2, b'h', b'i']),
        ("a reserved opcode", |client| client.frame(0x83, b"")),
        ("RSV1, where no extension is agreed on", |client| client.frame(0xc1, b"x")),
        ("a continuation of nothing", |client| client.frame(END_TEXT, b"x")),
        ("a close code that is not for the wire", |client| client.frame(CLOSE, &1005u16.to_be_bytes())),
    ];
    for (what, bad) in broken {
        eprintln!("{what}");
        client_breaks(&[], &[hello()], bad, ours("client_protocol", "protocol", 1002));
    }
}

pub fn client_invalid_utf8() {
    let end = ours("client_invalid_utf8", "utf8", 1007);
    client_breaks(&[], &[hello()], |client| client.frame(TEXT, b"good until \xff"), end);
    // A character that is cut off by the end of its message.
    client_breaks(&[], &[(BEGIN_TEXT, b"gr".to_vec())], |client| client.frame(END_TEXT, b"\xc3"), end);
}

#[test]
fn a_violation_in_a_half_forwarded_frame_injects_nothing_into_it() {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &[]);
    let (mut client, mut backend) = upstream.open(&gateway);
    let frame = client.frame(TEXT, &[[b'a'; 500], [0xff; 500]].concat());
    client.send(&frame[..508]);
    let mut came = vec![0; 508];
    backend.stream.read_exact(&mut came).unwrap();
    assert_eq!(came, frame[..508]);
    client.send(&frame[508..]);
    client.expect_close_and_end(1007);
    // The upstream sees the connection end inside the frame: no Close frame, and not the bad half.
    let mut rest = Vec::new();
    backend.stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    drop((client, backend));
    gateway.assert_end(ours("client_invalid_utf8", "utf8", 1007));
}

pub fn client_subprotocol() {
    let main = "backplane: { publish: { bind: \"127.0.0.1:0\" } }";
    let new = b"{\"t\":\"new\"}\n";
    let broken: [&[(u8, &[u8])]; 4] = [
        &[(TEXT, b"no line")],
        &[(BINARY, b"")],
        &[(BEGIN_TEXT, b"{\"t\":"), (END_TEXT, b"\"unknown\"}\n")],
        &[(TEXT, new), (TEXT, new)],
    ];
    for messages in broken {
        let upstream = Upstream::bind();
        let gateway = Gateway::start_with(upstream.address(), &["backplane: grip", "compression: refuse"], main);
        let (mut client, mut backend) = upstream.open_resumable(&gateway);
        let hello = client.receive().expect("a frame");
        assert!(hello.payload.starts_with(b"{\"t\":\"hello\""), "{:?}", hello.payload);
        client.send_frame(TEXT, b"\nfirst");
        backend.expect(TEXT, b"first");
        for (first, payload) in messages {
            client.send_frame(*first, payload);
        }
        client.send_frame(TEXT, b"\nlate");
        backend.expect_close_and_end(1001);
        client.expect_close_and_end(1002);
        drop((client, backend));
        gateway.assert_end(ours("client_subprotocol", "protocol", 1002));
    }
}

pub fn message_too_big() {
    let rule = ["message: { max_size: 1000B }"];
    let end = ours("message_too_big", "message_size", 1009);
    client_breaks(&rule, &[(BINARY, vec![1; 1000])], |client| client.frame(BINARY, &[1; 1001]), end);
    // Its header is enough: nothing of it needs to arrive.
    client_breaks(&rule, &[hello()], |_| vec![BINARY, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4], end);
    // And by fragments, of which the first ones have gone on.
    let begun = [(BEGIN_TEXT, vec![b'x'; 600]), (CONTINUE, vec![b'x'; 400])];
    client_breaks(&rule, &begun, |client| client.frame(END_TEXT, b"x"), end);
}

pub fn inflation_ratio() {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &["compression: terminate", "message: { max_ratio: 1 }"]);
    let (mut client, mut backend) = upstream.open_offering(&gateway, "permessage-deflate");
    let mut bomb = Vec::new();
    Deflater::new().feed(&vec![0; 1 << 20], true, &mut bomb);
    // What inflates to 16 MiB at once is free, and what inflates to 4 MiB each second.
    let backend = std::thread::spawn(move || {
        while backend.receive().expect("a frame, not the end").first != CLOSE {}
        backend.send_close(1001, "");
        backend.expect_end();
        backend
    });
    client.send(&client.frame(BINARY | 0x40, &bomb).repeat(500));
    client.expect_close_and_end(1009);
    drop((client, backend.join().unwrap()));
    gateway.assert_end(ours("inflation_ratio", "inflation_ratio", 1009));
}

pub fn deflate_blocks() {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &["compression: terminate"]);
    let (mut client, mut backend) = upstream.open_offering(&gateway, "permessage-deflate");
    // A quarter of a million blocks a message, each the last, and a message of a byte behind them.
    let nothing = [[0x03, 0x00].repeat(1 << 18), vec![0x00]].concat();
    client.send(&client.frame(BINARY | 0x40, &nothing).repeat(2));
    backend.expect_close_and_end(1001);
    client.expect_close_and_end(1008);
    drop((client, backend));
    gateway.assert_end(ours("deflate_blocks", "inflation_ratio", 1008));
}

pub fn too_many_fragments() {
    let good = [(BEGIN_TEXT, b"a".to_vec()), (CONTINUE, b"b".to_vec())];
    let end = ours("too_many_fragments", "message_fragments", 1008);
    client_breaks(&["message: { max_fragments: 2 }"], &good, |client| client.frame(END_TEXT, b"c"), end);
}

pub fn message_rate() {
    let rule = ["message: { rate: { messages: 1/s, burst: 2 } }"];
    let end = ours("message_rate", "message_rate", 1008);
    client_breaks(&rule, &[hello(), hello()], |client| client.frame(TEXT, b"hello"), end);
}

pub fn byte_rate() {
    // A burst of bytes is one message of the largest size.
    let rule = ["message: { max_size: 2000B, rate: { bytes: 1KiB/s } }"];
    let end = ours("byte_rate", "message_rate", 1008);
    client_breaks(&rule, &[(BINARY, vec![1; 2000])], |client| client.frame(BINARY, &[1; 2000]), end);
}

pub fn control_rate() {
    let rule = ["message: { control_rate: { frames: 1/s, burst: 2 } }"];
    let good = [(PING, b"one".to_vec()), (PONG, b"two".to_vec())];
    client_breaks(&rule, &good, |client| client.frame(PING, b"three"), ours("control_rate", "control_rate", 1008));
}

pub fn message_stalled() {
    let upstream = Upstream::bind();
    let end = ours("message_stalled", "message_stall", 1008);
    // Between two fragments the upstream is told; inside a frame it cannot be.
    for inside_a_frame in [false, true] {
        let gateway = Gateway::start(upstream.address(), &["message: { stall_timeout: 500ms }"]);
        let (mut client, mut backend) = upstream.open(&gateway);
        client.send_frame(BEGIN_TEXT, b"begun");
        backend.expect(BEGIN_TEXT, b"begun");
        if inside_a_frame {
            let frame = client.frame(END_TEXT, b"ended");
            client.send(&frame[..8]);
            let mut came = [0; 8];
            backend.stream.read_exact(&mut came).unwrap();
            client.expect_close(1008);
            // What it might answer is inside its frame.
            drop(client);
            backend.expect_end();
        } else {
            backend.expect_close_and_end(1001);
            client.expect_close_and_end(1008);
        }
        drop(backend);
        gateway.assert_end(end);
    }
}

pub fn message_timeout() {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &["message: { timeout: 500ms, max_fragments: off }"]);
    let (mut client, mut backend) = upstream.open(&gateway);
    client.send_frame(TEXT, b"a message in time");
    backend.expect(TEXT, b"a message in time");
    client.send_frame(BEGIN_TEXT, b"begun");
    backend.expect(BEGIN_TEXT, b"begun");
    // Each byte comes before the next one goes, until the end comes in its place.
    let last = loop {
        client.send_frame(CONTINUE, b".");
        match backend.receive() {
            Some(Frame { first: CONTINUE, .. }) => {}
            last => break last.expect("a frame, not the end"),
        }
    };
    assert_eq!((last.first, &last.payload[..2]), (CLOSE, &1001u16.to_be_bytes()[..]));
    client.expect_close_and_end(1008);
    drop(backend);
    gateway.assert_end(ours("message_timeout", "message_timeout", 1008));
}

// ---- the upstream's violations --------------------------------------------------------------------------------------

fn upstream_breaks(rule: &[&str], bad: impl Fn(&Peer) -> Vec<u8>, to_upstream: u16, end: End) {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), rule);
    let (mut client, mut backend) = upstream.open(&gateway);
    let sent = [backend.frame(TEXT, b"hello"), bad(&backend)].concat();
    backend.send(&sent);
    client.expect(TEXT, b"hello");
    client.expect_close_and_end(1011);
    backend.expect_close_and_end(to_upstream);
    drop((client, backend));
    gateway.assert_end(end);
}

pub fn upstream_protocol() {
    let end = ours("upstream_protocol", "protocol", 1011);
    upstream_breaks(&[], |_| vec![TEXT, 0x82, 1, 2, 3, 4, b'h', b'i'], 1002, end);
    upstream_breaks(&[], |backend| backend.frame(0xc2, b"compressed, as nobody agreed"), 1002, end);
}

pub fn upstream_invalid_utf8() {
    let end = ours("upstream_invalid_utf8", "utf8", 1011);
    upstream_breaks(&[], |backend| backend.frame(TEXT, b"\xff"), 1007, end);

    // In the middle of a frame that the client has begun to receive, nothing is injected into it.
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &[]);
    let (mut client, mut backend) = upstream.open(&gateway);
    let frame = backend.frame(TEXT, &[[b'a'; 500], [0xff; 500]].concat());
    backend.send(&frame[..504]);
    let mut came = vec![0; 504];
    client.stream.read_exact(&mut came).unwrap();
    backend.send(&frame[504..]);
    client.stream.read_to_end(&mut came).unwrap();
    assert_eq!(came, frame[..504]);
    drop(client);
    backend.expect_close_and_end(1007);
    drop(backend);
    gateway.assert_end(End { sent: None, ..end });
}

pub fn upstream_message_too_big() {
    let rule = ["message: { upstream_max_size: 1000B }"];
    let end = ours("upstream_message_too_big", "upstream_message_size", 1011);
    upstream_breaks(&rule, |backend| backend.frame(BINARY, &[1; 1001]), 1009, end);
}

// ---- time -----------------------------------------------------------------------------------------------------------

pub fn slow_client() {
    let upstream = Upstream::bind();
    let rule = ["slow_client: { timeout: 3s, min_rate: 1KiB/s }", "close_timeout: 20s"];
    let gateway = Gateway::start(upstream.address(), &rule);
    let (mut client, mut backend) = upstream.open_from(&gateway, connect_with_a_small_window(gateway.address));
    let payload = [7; 16 << 10];
    // One frame at a time, so that what is pending ends between two frames, until the client takes no more.
    let mut frames = 0;
    let mut sent = 0;
    let stuck = loop {
        let frame = backend.frame(BINARY, &payload);
        backend.send(&frame);
        frames += 1;
        sent += frame.len();
        let since = Instant::now();
        let forwarded = || gateway.metric("sluicegate_bytes_total", &["direction=\"out\""]) == sent as f64;
        while !forwarded() && since.elapsed() < Duration::from_millis(1500) {
            pause(Duration::from_millis(1));
        }
        if !forwarded() {
            break since;
        }
        assert!(frames < 1000, "the client never has enough");
    };
    gateway.awaits("sluicegate_slow_clients", &[], 1.0);
    // The upstream is told at once. It answers, and keeps its connection for as long as ours is there.
    backend.expect_close(1001);
    assert!(stuck.elapsed() > Duration::from_secs(1), "{:?}", stuck.elapsed());
    backend.send_close(1001, "");
    // The client wakes up, and finds what was sent before it was given up, and why it was.
    for _ in 1..frames {
        client.expect(BINARY, &payload);
    }
    client.expect_close_and_end(1013);
    drop((client, backend));
    gateway.assert_end(ours("slow_client", "slow_client", 1013));
}

pub fn overrun() {
    let upstream = Upstream::bind();
    let rule = ["backplane: grip", "compression: refuse", "slow_client: { timeout: 60s, max_queue_messages: 1 }"];
    let main = "backplane: { history: { max_messages: 2 }, publish: { bind: \"127.0.0.1:0\" } }";
    let gateway = Gateway::start_with(upstream.address(), &rule, main);
    let (mut client, mut backend) = upstream.open_from(&gateway, connect_with_a_small_window(gateway.address));
    backend.send_frame(TEXT, br#"c:{"type":"subscribe","channel":"room"}"#);
    gateway.awaits("sluicegate_subscriptions", &[], 1.0);
    // More than the kernel, a read and the queue hold; of the rest the channel has the last two.
    const PUBLISHED: usize = 100;
    for at in 0..PUBLISHED {
        gateway.publishes("room", &format!("{at} {}", "x".repeat(16 << 10)));
    }
    // The client wakes up, and finds the first of them in order, and why it gets no more.
    let mut next = 0;
    let close = loop {
        let frame = client.receive().expect("a frame");
        if frame.first == CLOSE {
            break frame;
        }
        assert!(frame.payload.starts_with(format!("{next} ").as_bytes()), "{next}");
        next += 1;
    };
    assert!((1..PUBLISHED).contains(&next), "{next}");
    assert_eq!(close.payload[..2], 1013u16.to_be_bytes());
    assert_eq!(close.payload[2..], *b"client reads slower than its channels");
    client.send_close(1013, "");
    backend.expect_close(1001);
    backend.send_close(1001, "");
    backend.expect_end();
    drop(backend);
    client.expect_end();
    drop(client);
    gateway.assert_end(ours("overrun", "slow_client", 1013));
    gateway.awaits("sluicegate_subscriptions", &[], 0.0);
}

pub fn client_silent() {
    let upstream = Upstream::bind();
    let rule = ["keepalive: { interval: 1s, timeout: 2s, sides: [client] }"];
    let gateway = Gateway::start(upstream.address(), &rule);
    let (mut client, mut backend) = upstream.open(&gateway);
    let start = Instant::now();
    let ping = client.receive().unwrap();
    assert_eq!(ping.first, PING);
    // A ping of ours is answered once; the next one is not.
    client.send_frame(PONG, &ping.payload);
    assert_eq!(client.receive().map(|frame| frame.first), Some(PING));
    backend.expect_end();
    drop(backend);
    client.expect_end();
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    gateway.assert_end(End {
        cause: "client_silent",
        closed_by: "proxy",
        code: 1006,
        sent: None,
        policy: Some("keepalive"),
    });
    gateway.awaits("sluicegate_pings_unanswered_total", &["side=\"client\""], 1.0);
    gateway.awaits("sluicegate_ping_rtt_seconds_count", &["side=\"client\""], 1.0);
}

pub fn upstream_silent() {
    let upstream = Upstream::bind();
    let rule = ["keepalive: { interval: 1s, timeout: 2s, sides: [upstream] }"];
    let gateway = Gateway::start(upstream.address(), &rule);
    let (mut client, mut backend) = upstream.open(&gateway);
    let ping = backend.receive().unwrap();
    assert_eq!(ping.first, PING);
    backend.send_frame(PONG, &ping.payload);
    assert_eq!(backend.receive().map(|frame| frame.first), Some(PING));
    client.expect_close_and_end(1012);
    backend.expect_end();
    drop((client, backend));
    gateway.assert_end(ours("upstream_silent", "keepalive", 1012));
    gateway.awaits("sluicegate_pings_unanswered_total", &["side=\"upstream\""], 1.0);
}

pub fn idle_timeout() {
    let upstream = Upstream::bind();
    // Our own pings, once a second, are not activity.
    let rule = ["keepalive: { interval: 1s, timeout: 10s }", "idle_timeout: 2500ms"];
    let gateway = Gateway::start(upstream.address(), &rule);
    let (mut client, backend) = upstream.open(&gateway);
    client.send_frame(TEXT, b"hello");
    let start = Instant::now();
    let ended = |peer: Peer, code: u16| {
        thread::spawn(move || {
            let (mut peer, mut frame) = peer.alive().join().unwrap();
            if let Some(Frame { first: TEXT, .. }) = frame {
                (peer, frame) = peer.alive().join().unwrap();
            }
            let frame = frame.expect("a Close frame");
            assert_eq!((frame.first, &frame.payload[..2]), (CLOSE, &code.to_be_bytes()[..]));
            peer.send_close(code, "");
            let _ = peer.stream.shutdown(Shutdown::Write);
            peer.expect_end();
        })
    };
    for peer in [ended(client, 1001), ended(backend, 1001)] {
        peer.join().unwrap();
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    gateway.assert_end(ours("idle_timeout", "idle_timeout", 1001));
}

// ---- the operator, and the end of the process -----------------------------------------------------------------------

pub fn operator() {
    let upstream = Upstream::bind();
    for (query, code) in [("", 1012), ("?code=1012", 1012), ("?code=1000", 1000), ("?code=4321", 4321)] {
        let gateway = Gateway::start(upstream.address(), &[]);
        let (mut client, mut backend) = upstream.open(&gateway);
        // A message in progress is delivered first: the Close frame comes behind it.
        client.send_frame(BEGIN_TEXT, b"begun");
        backend.expect(BEGIN_TEXT, b"begun");
        let listed = gateway.asks_admin("GET", "/sessions");
        let id = listed.split("\"session_id\":\"").nth(1).expect("a session").split('"').next().expect("its id");
        let answer = gateway.asks_admin("DELETE", &format!("/sessions/{id}{query}"));
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        client.send_frame(END_TEXT, b", ended");
        backend.expect(END_TEXT, b", ended");
        backend.expect_close_and_end(1001);
        assert_eq!(client.expect_close(code), "closed by the operator");
        client.send_close(code, "");
        client.expect_end();
        drop((client, backend));
        let line = gateway.assert_end(End { policy: None, ..ours("operator", "", code) });
        assert_eq!(line["session_id"].as_str(), Some(id), "{line}");
    }
}

pub fn drain() {
    let upstream = Upstream::bind();
    let mut gateway = Gateway::start(upstream.address(), &[]);
    let (mut client, mut backend) = upstream.open(&gateway);
    // A plain request in flight keeps the process alive for as long as the metrics are read.
    let (mut asking, mut asked) = upstream.ask_plainly(&gateway);
    // A message in progress is delivered first: the Close frame comes behind it.
    client.send_frame(BEGIN_TEXT, b"begun");
    backend.expect(BEGIN_TEXT, b"begun");
    gateway.terminate();
    eventually("it refuses what is new", || gateway.refuses_as_draining().then_some(()));
    client.send_frame(END_TEXT, b", ended");
    backend.expect(END_TEXT, b", ended");
    backend.expect_close_and_end(1001);
    assert_eq!(client.expect_close(1012), "service restart");
    client.send_close(1012, "");
    client.expect_end();
    drop((client, backend));
    gateway.assert_logged(End { policy: None, ..ours("drain", "", 1012) });
    gateway.awaits("sluicegate_connections", &[], 0.0);
    gateway.awaits("sluicegate_closes_total", &["cause=\"drain\"", "closed_by=\"proxy\"", "code=\"1012\""], 1.0);
    // Nothing but the attempt above was refused by a policy.
    gateway.awaits("sluicegate_policy_decisions_total", &["decision=\"refused\"", "policy=\"drain\""], 0.0);
    asked.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    assert!(gateway.ended().success());
}

pub fn drain_cut() {
    let upstream = Upstream::bind();
    let shutdown = "shutdown: { drain: 1s, spread: 0s }";
    let mut gateway = Gateway::start_with(upstream.address(), &["close_timeout: 20s"], shutdown);
    let (mut client, mut backend) = upstream.open(&gateway);
    // A message that is never finished: there is no place for a Close frame that is not in the middle of it.
    client.send_frame(BEGIN_TEXT, b"begun");
    backend.expect(BEGIN_TEXT, b"begun");
    let start = Instant::now();
    gateway.terminate();
    client.expect_end();
    backend.expect_end();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(start.elapsed() < DEADLINE);
    // Not its metrics: they are gone with the process.
    gateway.assert_logged(End { cause: "drain_cut", closed_by: "proxy", code: 1006, sent: None, policy: None });
    assert!(gateway.ended().success());
}
