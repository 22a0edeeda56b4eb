//! What a person who replaces nginx uses daily: redirects, fixed answers, rewritten paths, edited headers, limits of
//! bodies and of waiting, the access log, sticky clients, and rules that only report.

use std::collections::HashSet;

use sluicegate::cause::Refusal;

use crate::support::refusal::check_answer;
use crate::support::{Backend, Config, Gateway, upgrade};

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.example:8080\r\n\r\n")
}

#[test]
fn redirects_and_fixed_answers_need_no_upstream_and_keep_the_connection() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(
        &Config::to(backend.address)
            .fixed_rule(
                "to-https",
                r#"match: { path_prefix: /old }, redirect: { to: "https://{host}{path_and_query}" }"#,
            )
            .fixed_rule(
                "maintenance",
                "match: { path: /closed }, respond: { status: 503, body: \"back soon\", content_type: text/plain }, \
                 response_headers: { set: { retry-after: \"120\" } }",
            ),
    );
    let mut client = gateway.connect();
    client.send(get("/old/a?b=1"));
    let answer = client.answer();
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.head.one("location"), Some("https://app.example/old/a?b=1"));
    client.send(get("/closed"));
    let answer = client.answer();
    assert_eq!((answer.status(), answer.body_text().as_str()), (503, "back soon"));
    assert_eq!(answer.head.one("content-type"), Some("text/plain"));
    assert_eq!(answer.head.one("retry-after"), Some("120"));
    client.send("HEAD /closed HTTP/1.1\r\nHost: app.example\r\n\r\n");
    assert_eq!(client.answer_head().one("content-length"), Some("9"));
    // The connection goes on, through an upstream and into a session.
    client.send(get("/app"));
    assert_eq!(client.answer().status(), 200);
    let mut session = gateway.session_over(client);
    session.expect_echo("hello");
    // An upgrade to a fixed answer gets that answer.
    let answer = gateway.ask(&upgrade("/closed", ""));
    assert_eq!(answer.status(), 503);
    gateway.wait_for_metric("sluicegate_http_requests_total", &[("rule", "maintenance"), ("status_class", "5xx")], 3.0);
    gateway.wait_for_metric("sluicegate_http_requests_total", &[("rule", "to-https"), ("status_class", "3xx")], 1.0);
    let line = gateway.wait_for_log(|line| line["event"] == "request" && line["rule"] == "maintenance");
    assert_eq!((line["status"].as_u64(), line["bytes_out"].as_u64()), (Some(503), Some(9)));
}

#[test]
fn rewrites_paths_and_edits_headers_of_both_kinds_of_request() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).rule(
        "rewrite: { strip_prefix: /api, add_prefix: /v1 }, \
         request_headers: { set: { x-tenant: acme, host: inner.example }, remove: [x-debug] }, \
         response_headers: { set: { strict-transport-security: max-age=60 }, remove: [x-target] }",
    ));
    let mut client = gateway.connect();
    client.send("GET /api/users?x=%2F HTTP/1.1\r\nHost: app.example\r\nX-Debug: 1\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.head.one("strict-transport-security"), Some("max-age=60"));
    assert_eq!(answer.head.one("x-target"), None);
    let answer = gateway.ask(&upgrade("/api/ws?token=1", "X-Debug: 1\r\n"));
    assert_eq!((answer.status(), answer.head.one("strict-transport-security")), (101, Some("max-age=60")));
    for (number, target) in [(1, "/v1/users?x=%2F"), (2, "/v1/ws?token=1")] {
        let request = backend.wait_for_request(number);
        assert_eq!(request.head.target(), target);
        assert_eq!(request.head.one("x-tenant"), Some("acme"));
        assert_eq!(request.head.all("host"), ["inner.example"]);
        assert!(!request.head.has("x-debug"));
    }
}

#[test]
fn bodies_over_the_limit_get_413_in_either_framing() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).rule("http: { max_body_size: 1KiB }"));
    let mut client = gateway.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n{}", "x".repeat(1024)));
    assert_eq!(client.answer().status(), 200, "at the limit");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n");
    check_answer(&client.answer(), Refusal::BodyTooLarge);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("400\r\n{}\r\n", "x".repeat(1024)));
    client.send("1\r\nx\r\n0\r\n\r\n");
    assert_eq!(client.answer().status(), 413);
    gateway.wait_for_metric("sluicegate_handshakes_total", &[("rule", "app"), ("result", "body_too_large")], 2.0);
}

#[test]
fn a_response_that_does_not_come_gets_504_and_one_that_streams_slowly_lives() {
    let backend = Backend::start(|connection| {
        while let Some(request) = connection.request() {
            if request.head.target() == "/hangs" {
                return connection.linger();
            }
            connection.io.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            // Longer than the time to the head, which is over.
            assert!(!connection.io.comes_within(std::time::Duration::from_millis(1500)));
            connection.io.send("5\r\nhello\r\n0\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&Config::to(backend.address).rule("http: { response_timeout: 500ms }"));
    check_answer(&gateway.ask(&get("/hangs")), Refusal::UpstreamTimeout);
    let mut client = gateway.connect();
    client.send(get("/slow"));
    assert_eq!(client.answer().body_text(), "hello");
    gateway.wait_for_metric("sluicegate_handshakes_total", &[("rule", "app"), ("result", "upstream_timeout")], 1.0);
}

#[test]
fn the_access_log_says_what_was_answered() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client
        .send("POST /a/b?secret=1 HTTP/1.1\r\nHost: app.example\r\nUser-Agent: test\r\nContent-Length: 5\r\n\r\nhello");
    client.answer();
    let line = gateway.wait_for_log(|line| line["event"] == "request");
    for (key, value) in [
        ("method", "POST"),
        ("path", "/a/b"),
        ("host", "app.example"),
        ("user_agent", "test"),
        ("rule", "app"),
        ("upstream", "app"),
        ("client_ip", "127.0.0.1"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(line["endpoint"], backend.address.to_string());
    assert_eq!((line["status"].as_u64(), line["bytes_in"].as_u64()), (Some(200), Some(5)));
    assert_eq!(line["bytes_out"].as_u64(), Some(5));
    assert!(!line.to_string().contains("secret"));
}

#[test]
fn the_access_log_can_hold_errors_only() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address)
        .fixed_rule("gone", "match: { path: /gone }, respond: { status: 410 }")
        .more("access_log: errors");
    let gateway = Gateway::start(&config);
    let mut client = gateway.connect();
    for path in ["/fine", "/gone"] {
        client.send(get(path));
        client.answer();
    }
    gateway.wait_for_log(|line| line["event"] == "request" && line["status"] == 410);
    assert!(gateway.lines().iter().all(|line| line["event"] != "request" || line["path"] == "/gone"));
}

/// The cookie pair of an answer's Set-Cookie.
fn cookie(head: &crate::support::Head) -> Option<String> {
    head.one("set-cookie").map(|cookie| cookie.split(';').next().expect("a pair").to_owned())
}

#[test]
fn a_sticky_cookie_brings_plain_requests_and_upgrades_to_one_endpoint() {
    let backends = [Backend::echoing(), Backend::echoing(), Backend::echoing()];
    let config = Config::to(backends[0].address)
        .and(backends[1].address)
        .and(backends[2].address)
        .upstream("balance: round_robin")
        .rule("sticky: { cookie: { name: stick } }");
    let gateway = Gateway::start(&config);
    let mut client = gateway.connect();
    client.send(get("/first"));
    let first = client.answer();
    let set = first.head.one("set-cookie").expect("a cookie with the first answer").to_owned();
    assert!(set.starts_with("stick=") && set.contains("HttpOnly") && set.contains("Max-Age=3600"), "{set}");
    let pair = cookie(&first.head).unwrap();
    for n in 0..6 {
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: app.example\r\nCookie: a=b; {pair}\r\n\r\n"));
        assert_eq!(client.answer().head.one("set-cookie"), None, "not set anew");
    }
    let answer = gateway.ask(&upgrade("/ws", &format!("Cookie: {pair}\r\n")));
    assert_eq!((answer.status(), answer.head.one("set-cookie")), (101, None));
    let counts: Vec<usize> = backends.iter().map(|backend| backend.requests().len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 8);
    assert!(counts.contains(&8), "all at one endpoint: {counts:?}");
    // Without a cookie the turns go on, and each handshake sets one.
    let all: HashSet<_> = (0..3).map(|_| cookie(&gateway.ask(&upgrade("/ws", "")).head).unwrap()).collect();
    assert_eq!(all.len(), 3);
}

#[test]
fn a_tampered_cookie_chooses_nothing_and_is_replaced() {
    let backends = [Backend::echoing(), Backend::echoing()];
    let config = Config::to(backends[0].address)
        .and(backends[1].address)
        .upstream("balance: round_robin")
        .rule("sticky: { cookie: { name: stick } }");
    let gateway = Gateway::start(&config);
    let good = cookie(&gateway.ask(&upgrade("/ws", "")).head).unwrap();
    let mut bad = good.clone().into_bytes();
    let last = bad.len() - 2;
    bad[last] = if bad[last] == b'A' { b'B' } else { b'A' };
    let bad = String::from_utf8(bad).unwrap();
    let before: Vec<usize> = backends.iter().map(|backend| backend.requests().len()).collect();
    for _ in 0..4 {
        assert!(cookie(&gateway.ask(&upgrade("/ws", &format!("Cookie: {bad}\r\n"))).head).is_some());
    }
    let after: Vec<usize> = backends.iter().map(|backend| backend.requests().len()).collect();
    assert!(after.iter().zip(&before).all(|(after, before)| after - before == 2), "in turns: {before:?} {after:?}");
}

#[test]
fn a_hash_brings_a_user_to_one_endpoint() {
    let backends = [Backend::echoing(), Backend::echoing(), Backend::echoing()];
    let config = Config::to(backends[0].address)
        .and(backends[1].address)
        .and(backends[2].address)
        .rule("sticky: { hash: \"header:x-user\" }, connections: off");
    let gateway = Gateway::start(&config);
    for user in 0..12 {
        let total = || backends.iter().map(|backend| backend.requests().len()).collect::<Vec<_>>();
        let before = total();
        for _ in 0..2 {
            assert_eq!(gateway.ask(&upgrade("/", &format!("X-User: user-{user}\r\n"))).status(), 101);
        }
        let moved = total().iter().zip(&before).filter(|(after, before)| after != before).count();
        assert_eq!(moved, 1, "user {user} has one endpoint");
    }
    assert!(backends.iter().filter(|backend| !backend.requests().is_empty()).count() > 1, "not all have the same");
}

#[test]
fn a_rule_that_only_reports_refuses_nothing_but_broken_protocol() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).rule(
        "enforcement: report, clients: { deny: [127.0.0.0/8] }, websocket: deny, \
         handshake: { per_ip: { rate: 1/h, burst: 1 } }, connections: { per_ip: 1, total: 1 }, \
         message: { max_size: 4B }, http: { max_body_size: 1B }",
    ));
    let _first = gateway.session();
    let mut client = gateway.connect();
    client.send(upgrade("/ws", "Origin: http://evil.example\r\n"));
    assert_eq!(client.answer_head().status(), 101);
    client.expect_echo("more than four bytes");
    let mut plain = gateway.connect();
    plain.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(plain.answer().status(), 200);
    for policy in
        ["clients", "websocket", "handshake_rate", "origin", "connections_per_ip", "message_size", "body_size"]
    {
        let line = gateway.wait_for_log(|line| line["event"] == "would_refuse" && line["policy"] == policy);
        assert_eq!(line["rule"], "app");
        let labels = [("rule", "app"), ("policy", policy), ("decision", "would_refuse")];
        assert!(gateway.metric("sluicegate_policy_decisions_total", &labels) >= 1.0, "{policy}");
    }
    // Broken handshakes are refused all the same.
    let answer = gateway.ask(&upgrade("/ws", "Sec-WebSocket-Version: 12\r\n"));
    assert_eq!(answer.status(), 426);
}

#[test]
fn a_client_that_comes_back_is_known_by_its_cookie_or_by_its_address() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).rule("sticky: { cookie: { name: stick } }"));
    let agent = |name: &str| format!("User-Agent: {name}\r\n");
    let mut client = gateway.connect_from("127.0.0.2");
    client.send(upgrade("/ws", &agent("one")));
    let pair = cookie(&client.answer_head()).expect("a cookie");
    client.close();
    gateway.wait_for_log(|line| line["event"] == "session");
    let count = |by: &str| gateway.metric("sluicegate_reconnects_total", &[("rule", "app"), ("by", by)]);
    assert_eq!((count("cookie"), count("address")), (0.0, 0.0));
    // From another address, with the cookie.
    assert_eq!(gateway.ask(&upgrade("/ws", &format!("Cookie: {pair}\r\n{}", agent("two")))).status(), 101);
    gateway.wait_for_metric("sluicegate_reconnects_total", &[("rule", "app"), ("by", "cookie")], 1.0);
    // From the address, without it.
    let mut client = gateway.connect_from("127.0.0.2");
    client.send(upgrade("/ws", &agent("one")));
    assert_eq!(client.answer_head().status(), 101);
    gateway.wait_for_metric("sluicegate_reconnects_total", &[("rule", "app"), ("by", "address")], 1.0);
}
