//! The head guard: what comes before a request can be read in exactly one way.

use std::time::{Duration, Instant};

use sluicegate::cause::Refusal;

use crate::support::{Backend, Config, Gateway, upgrade};

const SHORT: Duration = Duration::from_millis(300);

fn start(keys: &str) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).listener(keys));
    (backend, gateway)
}

/// Every one of these requests is refused before a rule is known, and none reaches the backend.
fn all_refused(refusal: Refusal, requests: &[&[u8]]) {
    let (backend, gateway) = start("head: { timeout: 5m }");
    for request in requests {
        eprintln!("{}", request.escape_ascii());
        gateway.expect_refused_unruled(request, refusal);
    }
    assert_eq!(backend.connections(), 0);
}

fn with_host(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\n{lines}Accept: */*\r\n\r\n").into_bytes()
}

#[test]
fn a_silent_socket_is_told_408_in_time() {
    let (_backend, gateway) = start("head: { timeout: 300ms }");
    let before = gateway.before();
    let started = Instant::now();
    let mut client = gateway.connect();
    before.expect(&mut client, "none", Refusal::HeadTimeout);
    assert!(started.elapsed() >= SHORT, "{:?}", started.elapsed());
}

#[test]
fn a_dripped_head_is_cut_at_the_same_deadline() {
    let (_backend, gateway) = start("head: { timeout: 300ms }");
    let before = gateway.before();
    let mut client = gateway.connect();
    // Each byte would renew a deadline that counts from the last one.
    client.drip(&vec![b'a'; 10_000], Duration::from_millis(50));
    before.expect(&mut client, "none", Refusal::HeadTimeout);
}

#[test]
fn a_head_that_comes_byte_by_byte_in_time_is_served() {
    let (backend, gateway) = start("head: { timeout: 5m }");
    let mut client = gateway.connect();
    client.drip(b"GET /slow HTTP/1.1\r\nHost: app.example\r\n\r\n", Duration::from_millis(1));
    assert_eq!(client.answer().status(), 200);
    let mut client = gateway.connect();
    client.drip(upgrade("/", "").as_bytes(), Duration::from_millis(1));
    assert_eq!(client.answer().status(), 101);
    client.expect_echo("hello");
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn silence_between_two_requests_ends_the_connection_without_an_answer() {
    let (_backend, gateway) = start("head: { timeout: 300ms }");
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    client.expect_end();
    assert_eq!(gateway.metric("sluicegate_handshakes_total", &[("rule", "none")]), 0.0);
}

#[test]
fn a_dripped_second_head_is_told_408() {
    let (_backend, gateway) = start("head: { timeout: 300ms }");
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    let before = gateway.before();
    client.send("GET / HT");
    before.expect(&mut client, "none", Refusal::HeadTimeout);
}

#[test]
fn a_connection_that_ends_before_its_head_is_told_nothing() {
    let (_backend, gateway) = start("head: { timeout: 5m }");
    let before = gateway.before();
    let mut client = gateway.connect();
    client.send("GET / HT");
    client.finish();
    client.expect_end();
    before.expect_told("none", Refusal::ClientGone, None, "127.0.0.1");
    // A health check of a load balancer opens and closes: that is not even logged.
    let mark = gateway.mark();
    let mut client = gateway.connect();
    client.finish();
    client.expect_end();
    assert_eq!(gateway.mark(), mark);
}

#[test]
fn a_short_http_10_request_is_plain_http() {
    let (backend, gateway) = start("head: { timeout: 5m }");
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nHost: app.example\r\n\r\n"] {
        let mut client = gateway.connect();
        client.send(request);
        assert_eq!(client.answer().status(), 200, "{request:?}");
        client.expect_end();
    }
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn oversized_heads_are_refused() {
    let (_backend, gateway) = start("head: { max_bytes: 2KiB, max_headers: 20, timeout: 5m }");
    let line = "X-Large: ".to_owned() + &"a".repeat(2048) + "\r\n";
    for request in [
        upgrade("/", &line),
        format!("GET /{} HTTP/1.1\r\n", "a".repeat(2048)),
        // Without an end: the limit counts, not the deadline.
        "a".repeat(2049),
        format!("GET / HTTP/1.1\r\nHost: app.example\r\n{}\r\n", "A: b\r\n".repeat(20)),
    ] {
        gateway.expect_refused_unruled(request, Refusal::HeadTooLarge);
    }
    let fits = format!("GET / HTTP/1.1\r\nHost: app.example\r\n{}\r\n", "A: b\r\n".repeat(19));
    assert_eq!(gateway.ask(&fits).status(), 200);
    let line = "X-Large: ".to_owned() + &"a".repeat(1700) + "\r\n";
    assert_eq!(gateway.ask(&upgrade("/", &line)).status(), 101);
}

#[test]
fn the_default_limits_are_those_of_the_manual() {
    let (_backend, gateway) = start("head: { timeout: 5m }");
    let lines = |count: usize| format!("GET / HTTP/1.1\r\nHost: app.example\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    assert_eq!(gateway.ask(&lines(100)).status(), 200);
    gateway.expect_refused_unruled(lines(101), Refusal::HeadTooLarge);
    let of_size = |bytes: usize| {
        let empty = "GET / HTTP/1.1\r\nHost: app.example\r\nX: \r\n\r\n";
        empty.replace("X: ", &("X: ".to_owned() + &"a".repeat(bytes - empty.len())))
    };
    assert_eq!(gateway.ask(&of_size(32 << 10)).status(), 200);
    gateway.expect_refused_unruled(of_size((32 << 10) + 1), Refusal::HeadTooLarge);
}

#[test]
fn what_is_no_http_is_refused_at_its_first_bytes() {
    all_refused(
        Refusal::MalformedRequest,
        &[
            // TLS to a cleartext listener.
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            // What begins as HTTP/2 does, and goes on otherwise.
            b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n",
            b"hello\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/1.2\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / index HTTP/1.1\r\nHost: a\r\n\r\n",
            b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x00c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n",
            b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    );
}

#[test]
fn bodies_with_two_ends_are_refused() {
    let request = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").into_bytes();
    let requests: Vec<_> = [
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: xchunked",
        "Content-Length: 1, 1",
        "Content-Length: -1",
        "Content-Length: 0x1",
    ]
    .map(request)
    .into();
    let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
    all_refused(Refusal::MalformedRequest, &requests);
}

#[test]
fn a_host_that_can_be_read_in_two_ways_is_refused() {
    let requests: Vec<_> = [
        "",
        "Host:\r\n",
        "Host: \r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nhost: b\r\n",
        "Host: a, b\r\n",
        "Host: a,b\r\n",
        "Host: user@a\r\n",
        "Host: a b\r\n",
        "Host: a:b\r\n",
        "Host: a:\r\n",
        "Host: a:0\r\n",
        "Host: a:65536\r\n",
        "Host: :80\r\n",
        "Host: a/b\r\n",
        "Host: a..b\r\n",
        "Host: ::1\r\n",
        "Host: [::1\r\n",
        "Host: http://a\r\n",
        "Host: \u{e9}.example\r\n",
        "Host: a%00\r\n",
        "Host: *\r\n",
    ]
    .map(with_host)
    .into();
    let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
    all_refused(Refusal::BadHost, &requests);
}

#[test]
fn a_target_with_an_authority_must_agree_with_host() {
    let request = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\n{lines}\r\n").into_bytes();
    let requests = [
        request("http://a.example/", "Host: b.example\r\n"),
        request("http://a.example:81/", "Host: a.example\r\n"),
        request("https://a.example/", "Host: b.example\r\n"),
        request("http://user@a.example/", "Host: a.example\r\n"),
        request("http:///", "Host: a.example\r\n"),
        request("http://a.example/", ""),
        request("http://a.example/", "Host: a.example\r\nHost: a.example\r\n"),
    ];
    let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
    all_refused(Refusal::BadHost, &requests);

    let (backend, gateway) = start("hosts: [a.example]");
    let lines = "Host: A.example\r\n";
    for (number, (target, forwarded)) in
        [("http://a.example/x?y=z", "/x?y=z"), ("HTTP://A.EXAMPLE", "/"), ("http://a.example?q", "/?q")]
            .into_iter()
            .enumerate()
    {
        let mut client = gateway.connect();
        client.send(request(target, lines));
        assert_eq!(client.answer().status(), 200, "{target}");
        let seen = backend.wait_for_request(number + 1).head;
        assert_eq!((seen.target(), seen.one("host")), (forwarded, Some("A.example")), "{target}");
    }
    let mut client = gateway.connect();
    client.send(upgrade("http://app.example/ws", "").replace("app.example", "a.example"));
    assert_eq!(client.answer().status(), 101);
    assert_eq!(backend.wait_for_request(4).head.target(), "/ws");
    // HTTP/1.0 knows no Host, so the target alone may name it.
    let mut client = gateway.connect();
    client.send("GET http://a.example/x HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    assert_eq!(backend.wait_for_request(5).head.one("host"), Some("a.example"));
}

#[test]
fn an_authority_in_a_target_is_not_logged() {
    let (_backend, gateway) = start("head: { timeout: 5m }");
    let request = "GET http://user:secret@a.example/path?query HTTP/1.1\r\nHost: a.example\r\n\r\n";
    gateway.expect_refused_unruled(request, Refusal::BadHost);
    let line = gateway.wait_for_log(|line| line["event"] == "refusal");
    assert_eq!(line["path"], "/path", "{line}");
}

#[test]
fn paths_that_can_be_read_in_two_ways_are_refused() {
    let requests: Vec<_> = [
        "/..",
        "/.",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a/..;x/b",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a%",
        "/a%2",
        "/a%zz",
        "a",
        "*",
        "ftp://a/b",
    ]
    .map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes())
    .into();
    let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
    all_refused(Refusal::BadPath, &requests);
}

#[test]
fn a_path_goes_upstream_as_it_came() {
    let (backend, gateway) = start("head: { timeout: 5m }");
    let paths = ["/%61?a=../b", "//a//b", "/a;b=c", "/%E2%82%AC", "/...", "/a?b?c%00"];
    for (number, path) in paths.into_iter().enumerate() {
        let answer = gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(backend.wait_for_request(number + 1).head.target(), path);
    }
}

#[test]
fn connect_is_refused_with_405() {
    let (_backend, gateway) = start("head: { timeout: 5m }");
    for request in [
        "CONNECT app.example:443 HTTP/1.1\r\nHost: app.example:443\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nHost: app.example\r\n\r\n",
        "CONNECT app.example:443 HTTP/1.1\r\nHost: app.example:443\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let answer = gateway.expect_refused_unruled(request, Refusal::ConnectMethod);
        assert!(answer.head.one("allow").is_some_and(|methods| methods.contains("GET")), "{answer:?}");
    }
}
