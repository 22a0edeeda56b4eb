//! A connection of HTTP/2: what it may do at once, what ends it, and how it ends.

use std::time::Duration;

use h2::Reason;
use serde_json::json;
use sluicegate::cause::Refusal;

use crate::support::frames::CLOSE;
use crate::support::http2::{End, HELLO, Http2, connect, get, literals, raw, raw_headers, run, soon};
use crate::support::{Backend, Config, Gateway, switching_for};

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "app.example"), (":path", "/")];

/// The codes of RFC 9113 §7.
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

fn start(listener: &str) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).listener(listener));
    (backend, gateway)
}

#[test]
fn a_connection_without_streams_is_closed_in_good_order() {
    let (_backend, gateway) = start("head: { timeout: 500ms }");
    run(async {
        // One that asked for nothing, and one whose last stream is over.
        assert_eq!(Http2::connect(gateway.address).await.ended().await, None);
        let mut http2 = Http2::connect(gateway.address).await;
        assert_eq!(http2.ask(get("/")).await.status, 200);
        let mut tunnel = http2.open(connect("/")).await;
        // As long as a stream is there, so is its connection.
        soon(tokio::time::sleep(Duration::from_millis(1200))).await;
        tunnel.expect_echo("still here").await;
        tunnel.close().await;
        assert_eq!(http2.ended().await, None);
    });
    // One that says nothing behind its preface is told to go.
    let mut silent = gateway.connect();
    silent.send(HELLO);
    assert_eq!(silent.raw_goaway(), 0);
    silent.rest();
}

#[test]
fn a_drain_says_goaway_and_closes_each_session_in_good_order() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address).more("shutdown: { delay: 0s, drain: 5m, spread: 0s }");
    let mut gateway = Gateway::start(&config);
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut tunnels = [http2.open(connect("/")).await, http2.open(connect("/")).await];
        gateway.terminate();
        for tunnel in &mut tunnels {
            assert_eq!(tunnel.frame().await.close_code(), Some(1012));
        }
        http2.told_to_go().await;
        for tunnel in &mut tunnels {
            tunnel.send_frame(CLOSE, 1012u16.to_be_bytes()).await;
            assert_eq!(tunnel.end().await, End::Stream);
            tunnel.finish();
        }
        assert_eq!(http2.ended().await, None);
    });
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
}

#[test]
fn streams_that_are_opened_and_reset_at_once_end_the_connection_and_nobody_else() {
    let (_backend, gateway) = start("http2: true");
    run(async {
        let mut other = Http2::connect(gateway.address).await;
        let mut tunnel = other.open(connect("/")).await;
        let mut client = gateway.connect();
        client.send(HELLO);
        let pair = |number: u32| {
            let stream = 2 * number + 1;
            [raw_headers(stream, &GET), raw(3, 0, stream, &8u32.to_be_bytes())].concat()
        };
        // The gateway may close within the burst.
        client.try_send((0..2000).flat_map(pair).collect::<Vec<_>>());
        assert_eq!(client.raw_goaway(), ENHANCE_YOUR_CALM);
        tunnel.expect_echo("still here").await;
        assert_eq!(other.ask(get("/")).await.status, 200);
        tunnel.close().await;
    });
}

/// The case of `stream_limit`: the work of a stream that was reset counts until it is done. Here the upstream leaves the
/// closing handshake open.
pub fn work_of_reset_streams_counts() {
    let backend = Backend::start(|connection| {
        let Some(request) = connection.request() else { return };
        if !request.head.has("upgrade") {
            return connection.echo_plain(&request);
        }
        connection.io.send(switching_for(&request.head));
        std::thread::park();
    });
    let rule = "handshake: { per_ip: off }, close_timeout: 5m";
    let gateway = Gateway::start(&Config::to(backend.address).rule(rule));
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        for _ in 0..100 {
            let mut tunnel = http2.open(connect("/")).await;
            tunnel.out.send_reset(Reason::CANCEL);
        }
        let before = gateway.before();
        let (answer, _out) = http2.send(get("/"), true).await;
        let refused = soon(answer).await.expect_err("all places are taken");
        assert_eq!(refused.reason(), Some(Reason::REFUSED_STREAM));
        before.expect_told_over("h2", "none", Refusal::StreamLimit, None, "127.0.0.1");
        let mut other = Http2::connect(gateway.address).await;
        assert_eq!(other.ask(get("/")).await.status, 200);
        // Who goes on is sent away.
        for _ in 1..32 {
            let (answer, _out) = http2.send(get("/"), true).await;
            soon(answer).await.expect_err("all places are taken");
        }
        assert_eq!(http2.ended().await, Some(Reason::ENHANCE_YOUR_CALM));
        assert_eq!(other.ask(get("/")).await.status, 200);
    });
}

#[test]
fn heads_over_their_limits_are_refused_and_siblings_live() {
    let (backend, gateway) = start("head: { max_bytes: 4KiB, max_headers: 10 }");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut sibling = http2.open(connect("/")).await;
        let many = (0..11).fold(get("/"), |request, number| request.header(format!("x-{number}"), "1"));
        let before = gateway.before();
        assert_eq!(http2.ask(many).await.status, 431);
        before.expect_told_over("h2", "none", Refusal::HeadTooLarge, Some(431), "127.0.0.1");
        sibling.expect_echo("still here").await;
        sibling.close().await;
    });
    // One over the size that is announced is answered before anybody here sees it.
    let mut client = gateway.connect();
    client.send(HELLO);
    let large = "x".repeat(5000);
    client.send(raw_headers(1, &[&GET[..], &[("x", &large)]].concat()));
    assert_eq!(client.raw_reset(1), None, "431");
    client.send(raw_headers(3, &GET));
    assert_eq!(client.raw_reset(3), None, "its sibling is served");
    // One without end is no stream's fault any more: a header block that goes on and on.
    let mut client = gateway.connect();
    client.send(HELLO);
    client.send(raw(1, 1, 1, &literals(&GET)));
    for _ in 0..100 {
        if !client.try_send(raw(9, 0, 1, &literals(&[("x", &large)]))) {
            break;
        }
    }
    client.read_to_any_end();
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn malformed_streams_are_reset_and_siblings_live() {
    let (backend, gateway) = start("http2: true");
    let mut client = gateway.connect();
    client.send(HELLO);
    let but = |name: &str, with: &[(&'static str, &'static str)]| {
        let kept = GET.into_iter().filter(|(known, _)| *known != name);
        kept.chain(with.iter().copied()).collect::<Vec<_>>()
    };
    let malformed = [
        but(":method", &[]),
        but(":scheme", &[]),
        but("", &[(":path", "/twice")]),
        but(":authority", &[("x", "1"), (":authority", "app.example")]),
        but("", &[("connection", "close")]),
        but("", &[("transfer-encoding", "chunked")]),
        but("", &[("upgrade", "websocket")]),
        but("", &[("te", "gzip")]),
        but("", &[(":protocol", "websocket")]),
        but("", &[(":status", "200")]),
        but(":path", &[(":path", "")]),
        but("", &[("content-length", "5")]),
        but("", &[("content-length", "abc")]),
    ];
    let mut stream = 1;
    for fields in malformed {
        eprintln!("{fields:?}");
        client.send(raw_headers(stream, &fields));
        assert_eq!(client.raw_reset(stream), Some(PROTOCOL_ERROR));
        stream += 2;
    }
    client.send(raw_headers(stream, &GET));
    assert_eq!(client.raw_reset(stream), None, "its sibling is served");
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_client_that_goes_on_with_what_is_malformed_is_sent_away() {
    let (backend, gateway) = start("http2: true");
    let mut client = gateway.connect();
    client.send(HELLO);
    let differing = [&GET[..], &[("host", "other.example")]].concat();
    for number in 0..32 {
        if !client.try_send(raw_headers(2 * number + 1, &differing)) {
            break;
        }
    }
    assert_eq!(client.raw_goaway(), ENHANCE_YOUR_CALM);
    client.read_to_any_end();
    let refused = [("rule", "none"), ("result", "malformed_request")];
    gateway.wait_for_metric("sluicegate_handshakes_total", &refused, 32.0);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn sessions_are_seen_and_ended_one_by_one() {
    let (_backend, gateway) = start("http2: true");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut tunnels = [http2.open(connect("/a")).await, http2.open(connect("/b")).await];
        let listed = gateway.admin_get("/sessions").json();
        let listed = listed["sessions"].as_array().expect("a list").clone();
        assert_eq!(listed.len(), 2, "{listed:?}");
        let first = listed.iter().find(|session| session["path"] == "/a").expect("the first");
        assert_eq!((&first["protocol"], &first["status"]), (&json!("h2"), &json!(200)), "{first}");
        let id = first["session_id"].as_str().expect("an id");
        gateway.admin_ask("DELETE", &format!("/sessions/{id}?code=1012"), "");
        assert_eq!(tunnels[0].frame().await.close_code(), Some(1012));
        tunnels[1].expect_echo("still here").await;
    });
}
