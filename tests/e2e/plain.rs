//! Plain HTTP: several requests on a connection, bodies of every kind, and the answers that the upstream does not give.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use sluicegate::cause::Refusal;

use crate::support::node::NodeBackend;
use crate::support::refusal::check_answer;
use crate::support::{Backend, Config, DEADLINE, Gateway, Refusing, switching, upgrade};

fn start() -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address));
    (backend, gateway)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.example\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: app.example\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A gate that a test opens for its backend.
fn gate() -> (SyncSender<()>, Mutex<Receiver<()>>) {
    let (open, wait) = sync_channel(16);
    (open, Mutex::new(wait))
}

fn pass(gate: &Mutex<Receiver<()>>) {
    gate.lock().recv_timeout(DEADLINE).expect("the test opens the gate");
}

#[test]
fn serves_several_requests_on_one_connection() {
    let (backend, gateway) = start();
    let mut client = gateway.connect();
    for n in 0..5 {
        client.send(get(&format!("/get/{n}")));
        let answer = client.answer();
        assert_eq!((answer.status(), answer.head.one("x-target")), (200, Some(format!("/get/{n}").as_str())));
        client.send(post(&format!("/post/{n}"), "hello"));
        assert_eq!(client.answer().body_text(), "hello");
    }
    assert_eq!(backend.requests().len(), 10);
    assert_eq!(backend.connections(), 1, "the upstream's connection is used again");
    // The last may be an upgrade.
    let mut session = gateway.session_over(client);
    session.expect_echo("hello");
    session.close();
}

#[test]
fn head_has_no_body() {
    let (_backend, gateway) = start();
    let mut client = gateway.connect();
    client.send("HEAD /a HTTP/1.1\r\nHost: app.example\r\n\r\n");
    let head = client.answer_head();
    assert_eq!((head.status(), head.one("x-target")), (200, Some("/a")));
    client.send(get("/b"));
    assert_eq!(client.answer().head.one("x-target"), Some("/b"));
}

#[test]
fn bodies_pass_whole_in_either_framing() {
    let (backend, gateway) = start();
    let mut client = gateway.connect();
    let large = "0123456789abcdef".repeat(64 << 10);
    client.send(post("/length", &large));
    assert!(client.answer().body_text() == large, "1 MiB comes back");
    client.send("POST /chunked HTTP/1.1\r\nHost: app.example\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in ["hello", " ", "world"] {
        client.send(format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().body_text(), "hello world");
    client.send("OPTIONS * HTTP/1.1\r\nHost: app.example\r\n\r\n");
    assert_eq!(client.answer().head.one("x-target"), Some("*"));
    assert_eq!(backend.requests().len(), 3);
}

#[test]
fn an_upload_reaches_the_upstream_piece_by_piece() {
    let (open, wait) = gate();
    let backend = Backend::start(move |connection| {
        connection.request();
        // The second piece is sent when the first one is here.
        assert_eq!(connection.io.chunk(), b"one");
        open.send(()).expect("the test waits");
        assert_eq!(connection.io.chunk(), b"two");
        assert_eq!(connection.io.chunk(), b"");
        connection.io.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        connection.linger();
    });
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: app.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    pass(&wait);
    client.send("3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn an_event_stream_arrives_piece_by_piece() {
    let (open, wait) = gate();
    let backend = Backend::start(move |connection| {
        connection.request();
        connection.io.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for n in 0..3 {
            let event = format!("data: {n}\n\n");
            connection.io.send(format!("{:x}\r\n{event}\r\n", event.len()));
            pass(&wait);
        }
        connection.io.send("0\r\n\r\n");
        connection.linger();
    });
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(get("/events"));
    let head = client.answer_head();
    assert_eq!(head.one("content-type"), Some("text/event-stream"));
    for n in 0..3 {
        assert_eq!(String::from_utf8_lossy(&client.chunk()), format!("data: {n}\n\n"));
        open.send(()).expect("the backend waits");
    }
    assert_eq!(client.chunk(), b"");
}

#[test]
fn requests_that_come_before_their_turn_are_answered_in_order() {
    let (_backend, gateway) = start();
    // In one segment, without and with bodies of both framings.
    let chunked = "POST /c HTTP/1.1\r\nHost: app.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut client = gateway.connect();
    client.send([&get("/a"), &post("/b", "hello"), chunked, &get("/d"), &get("/e")].concat());
    for (path, body) in [("/a", ""), ("/b", "hello"), ("/c", "hello"), ("/d", ""), ("/e", "")] {
        let answer = client.answer();
        assert_eq!((answer.head.one("x-target"), answer.body_text().as_str()), (Some(path), body));
    }

    // While the first is being answered.
    let (open, wait) = gate();
    let backend = Backend::start(move |connection| {
        while let Some(request) = connection.request() {
            pass(&wait);
            connection.echo_plain(&request);
        }
    });
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(get("/a"));
    backend.wait_for_request(1);
    client.send(get("/b") + &get("/c"));
    for (number, path) in (1..).zip(["/a", "/b", "/c"]) {
        backend.wait_for_request(number);
        open.send(()).expect("the backend waits");
        assert_eq!(client.answer().head.one("x-target"), Some(path));
    }
}

#[test]
fn a_request_that_asks_to_close_is_the_last() {
    let (_backend, gateway) = start();
    let mut client = gateway.connect();
    client.send("GET /a HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n");
    assert_eq!(client.answer().head.one("connection"), Some("close"));
    client.expect_end();
}

#[test]
fn headers_of_the_upstreams_connection_stay_there() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n",
    );
    let gateway = Gateway::start(&Config::to(backend.address));
    let head = gateway.ask(&get("/")).head;
    assert_eq!(head.all("set-cookie"), ["a=b", "c=d"]);
    for name in ["keep-alive", "proxy-connection", "x-hop", "upgrade"] {
        assert!(!head.has(name), "{head:?}");
    }
}

#[test]
fn an_upstreams_connection_that_is_to_close_is_not_used_again() {
    // It says so and stays open: a second request over it would hang.
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    for number in 1..=3 {
        client.send(get("/"));
        let answer = client.answer();
        assert_eq!((answer.status(), backend.connections()), (200, number));
        assert_ne!(answer.head.one("connection"), Some("close"), "that was the upstream's connection");
    }
}

#[test]
fn an_upstream_that_refuses_is_a_502() {
    let refusing = Refusing::bind();
    let gateway = Gateway::start(&Config::to(refusing.address()));
    let answer = gateway.expect_refused(get("/"), Refusal::UpstreamUnreachable);
    assert_eq!(answer.status(), 502);
}

#[test]
fn another_endpoint_is_tried_when_one_refuses() {
    let (refusing, other, backend) = (Refusing::bind(), Refusing::bind(), Backend::echoing());
    let config = Config::to(refusing.address()).and(other.address()).and(backend.address);
    let gateway = Gateway::start(&config.upstream("balance: round_robin"));
    for _ in 0..3 {
        assert_eq!(gateway.ask(&get("/")).status(), 200);
    }
    assert_eq!(gateway.ask(&post("/", "hello")).body_text(), "hello");
}

#[test]
fn an_upstream_that_takes_the_request_and_goes_is_a_502_and_is_not_asked_twice() {
    let (closing, backend) = (Backend::answering_and_closing(""), Backend::echoing());
    let config = Config::to(closing.address).and(backend.address).upstream("balance: round_robin");
    let gateway = Gateway::start(&config);
    gateway.expect_refused(post("/", "hello"), Refusal::UpstreamUnreachable);
    assert_eq!((closing.requests().len(), backend.connections()), (1, 0));
}

#[test]
fn a_request_over_a_pooled_connection_that_ends_is_sent_anew_to_the_same_endpoint() {
    // Each connection answers one request, and ends with the next.
    let once = || {
        Backend::start(|connection| {
            if let Some(request) = connection.request() {
                connection.echo_plain(&request);
                connection.request();
            }
        })
    };
    let (one, two) = (once(), once());
    let gateway = Gateway::start(&Config::to(one.address).and(two.address).rule("sticky: { hash: client_ip }"));
    let seen = |path: &str| {
        let requests = [&one, &two].map(Backend::requests);
        requests.map(|requests| requests.iter().filter(|request| request.head.target() == path).count())
    };
    // A request is logged when its upstream's connection is back in the pool.
    let pooled = |path: &str| gateway.wait_for_log(|line| line["event"] == "request" && line["path"] == path);
    assert_eq!(gateway.ask(&get("/first")).status(), 200);
    pooled("/first");
    let of_its_own = |count: usize| seen("/first").map(|first| first * count);
    let answer = gateway.ask(&get("/second"));
    assert_eq!((answer.status(), answer.head.one("x-target")), (200, Some("/second")));
    pooled("/second");
    assert_eq!(seen("/second"), of_its_own(2));
    // What may not be repeated is not, and no other endpoint gets it either.
    gateway.expect_refused(post("/third", "hello"), Refusal::UpstreamUnreachable);
    assert_eq!(seen("/third"), of_its_own(1));
}

#[test]
fn a_request_that_is_not_answered_in_time_over_a_pooled_connection_is_not_sent_anew() {
    let backend = Backend::start(|connection| {
        if let Some(request) = connection.request() {
            connection.echo_plain(&request);
            connection.request();
            connection.linger();
        }
    });
    let gateway = Gateway::start(&Config::to(backend.address).rule("http: { response_timeout: 500ms }"));
    assert_eq!(gateway.ask(&get("/first")).status(), 200);
    gateway.expect_refused(get("/second"), Refusal::UpstreamTimeout);
    assert_eq!((backend.requests().len(), backend.connections()), (2, 1));
}

#[test]
fn an_answer_that_is_no_http_is_a_502() {
    for answer in ["garbage\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
        let backend = Backend::answering(answer);
        let gateway = Gateway::start(&Config::to(backend.address));
        gateway.expect_refused(get("/"), Refusal::UpstreamMalformed);
    }
}

#[test]
fn a_101_that_nobody_asked_for_is_no_tunnel() {
    for lines in ["", "Upgrade: websocket\r\nConnection: Upgrade\r\n"] {
        let backend = Backend::answering(format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\nsecret"));
        let gateway = Gateway::start(&Config::to(backend.address));
        let mut client = gateway.connect();
        client.send(get("/"));
        client.try_send("GET /smuggled HTTP/1.1\r\nHost: app.example\r\n\r\n");
        let answer = client.answer();
        check_answer(&answer, Refusal::UpstreamInvalidUpgrade);
        assert_eq!(backend.requests().len(), 1);
        assert!(!answer.body_text().contains("secret"));
    }
    // A WebSocket's own 101 to what is no upgrade.
    let backend = Backend::answering(switching(""));
    let gateway = Gateway::start(&Config::to(backend.address));
    let request = upgrade("/", "").replace("Connection: Upgrade\r\n", "");
    assert_eq!(gateway.ask(&request).status(), 502);
}

#[test]
fn interim_answers_do_not_end_a_request() {
    let backend = Backend::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(get("/"));
    let mut answer = client.answer();
    if answer.status() == 103 {
        answer = client.answer();
    }
    assert_eq!((answer.status(), answer.body_text().as_str()), (200, "ok"));
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    let backend = Backend::answering_and_closing("HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\nhalf");
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(get("/"));
    assert_eq!(client.answer_head().status(), 200);
    assert_eq!(client.rest(), b"half");
    // Nothing was refused: the client had its answer's head. What is awaited comes behind what is not there.
    gateway.expect_refused_unruled("GET /../ HTTP/1.1\r\nHost: app.example\r\n\r\n", Refusal::BadPath);
    let refusals = gateway.lines().into_iter().filter(|line| line["event"] == "refusal").count();
    assert_eq!((refusals, gateway.metric("sluicegate_handshakes_total", &[("rule", "app")])), (1, 0.0));
}

#[test]
fn an_upstream_that_goes_behind_an_interim_answer_is_a_502() {
    let backend = Backend::answering_and_closing("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    let gateway = Gateway::start(&Config::to(backend.address));
    let before = gateway.before();
    let mut client = gateway.connect();
    client.send(get("/"));
    let mut answer = client.answer();
    if answer.status() == 103 {
        answer = client.answer();
    }
    check_answer(&answer, Refusal::UpstreamUnreachable);
    before.expect_told("app", Refusal::UpstreamUnreachable, Some(502), "127.0.0.1");
}

#[test]
fn works_with_a_real_backend() {
    let backend = NodeBackend::start();
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(get("/plain"));
    assert_eq!(client.answer().body_text(), "plain\n");
    client.send(post("/plain", "hello"));
    assert_eq!(client.answer().body_text(), "hello");
    client.send(get("/nothing"));
    assert_eq!(client.answer().status(), 404);
    client.send("POST /plain HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.answer_head().status(), 100);
    client.send("hello");
    assert_eq!(client.answer().body_text(), "hello");
}

#[test]
fn a_refused_request_of_a_connection_that_was_used_is_told_why() {
    let (_backend, gateway) = start();
    let mut client = gateway.connect();
    client.send(get("/"));
    assert_eq!(client.answer().status(), 200);
    client.send("GET /../ HTTP/1.1\r\nHost: app.example\r\n\r\n");
    check_answer(&client.answer(), Refusal::BadPath);
    client.expect_end();
}
