//! What the backend sees: the exact set of headers, and who the client is said to be.

use sluicegate::cause::Refusal;

use crate::support::node::NodeBackend;
use crate::support::{Backend, Config, Gateway, Head, KEY, upgrade, upgrade_but};

/// The headers of an upgrade as the backend got them.
fn seen_of_upgrade(gateway: &Gateway, backend: &Backend, request: &str) -> Head {
    let number = backend.requests().len() + 1;
    let mut client = gateway.connect();
    client.send(request);
    assert_eq!(client.answer_head().status(), 101, "{request:?}");
    backend.wait_for_request(number).head
}

/// The headers of a plain request as the backend got them.
fn seen_of_plain(gateway: &Gateway, backend: &Backend, lines: &str) -> Head {
    let number = backend.requests().len() + 1;
    let request = format!("GET /a HTTP/1.1\r\nHost: app.example\r\n{lines}\r\n");
    assert_eq!(gateway.ask(&request).status(), 200, "{request:?}");
    backend.wait_for_request(number).head
}

fn start(config: impl Fn(Config) -> Config) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&config(Config::to(backend.address)));
    (backend, gateway)
}

#[test]
fn the_backend_sees_exactly_these_headers_of_an_upgrade() {
    let (backend, gateway) = start(|config| config);
    let lines = "Origin: http://app.example:80\r\ncOOKIE: a=b\r\nX-Custom: 1\r\nX-Custom: 2\r\nUSER-AGENT: tester\r\n\
                 Sec-WebSocket-Protocol: chat, other\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
                 Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nTrailer: x\r\n\
                 Proxy-Authorization: Basic x\r\nX-Hop: 1\r\nContent-Length: 0\r\nHTTP2-Settings: AA\r\n";
    let request = upgrade("/Path%20x?q=1&token=2", lines)
        .replace("Connection: Upgrade", "connection: keep-alive, upgrade, X-Hop");
    let seen = seen_of_upgrade(&gateway, &backend, &request);
    assert_eq!(seen.line, "GET /Path%20x?q=1&token=2 HTTP/1.1");
    let mut expected = [
        ("Host", "app.example"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Protocol", "chat, other"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Origin", "http://app.example:80"),
        ("cOOKIE", "a=b"),
        ("X-Custom", "1"),
        ("X-Custom", "2"),
        ("USER-AGENT", "tester"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "app.example"),
        ("x-forwarded-proto", "http"),
        ("x-real-ip", "127.0.0.1"),
    ];
    expected.sort_unstable();
    let mut found: Vec<_> = seen.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn the_backend_sees_exactly_these_headers_of_a_plain_request() {
    let (backend, gateway) = start(|config| config);
    let seen = seen_of_plain(
        &gateway,
        &backend,
        "cOOKIE: a=b\r\nOrigin: http://evil.example\r\nX-Hop: 1\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: trailers\r\nTrailer: x\r\nProxy-Authorization: Basic x\r\n",
    );
    let mut names = seen.names();
    names.retain(|name| name != "connection");
    let expected =
        ["cookie", "host", "origin", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];
    assert_eq!(names, expected, "{seen:?}");
    assert!(seen.headers.contains(&("cOOKIE".to_owned(), "a=b".to_owned())), "{seen:?}");
}

#[test]
fn what_a_client_claims_of_itself_is_removed() {
    let (backend, gateway) = start(|config| config);
    let lines = "X-Forwarded-For: 203.0.113.1\r\nX-Forwarded-For: 203.0.113.2\r\nX-Real-IP: 203.0.113.3\r\n\
                 Forwarded: for=203.0.113.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n";
    let heads = [seen_of_upgrade(&gateway, &backend, &upgrade("/", lines)), seen_of_plain(&gateway, &backend, lines)];
    for seen in heads {
        assert_eq!(seen.one("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen.one("x-real-ip"), Some("127.0.0.1"));
        assert_eq!(seen.one("x-forwarded-proto"), Some("http"));
        assert_eq!(seen.one("x-forwarded-host"), Some("app.example"));
        assert!(!seen.has("forwarded"), "{seen:?}");
    }
}

#[test]
fn what_a_trusted_proxy_says_is_kept_and_gone_on_with() {
    let (backend, gateway) = start(|config| config.more("trusted_proxies: [127.0.0.1]"));
    let lines = "X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 203.0.113.1\r\nX-Real-IP: 203.0.113.3\r\n\
                 Forwarded: for=203.0.113.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public.example\r\n";
    let heads = [seen_of_upgrade(&gateway, &backend, &upgrade("/", lines)), seen_of_plain(&gateway, &backend, lines)];
    for seen in heads {
        assert_eq!(seen.one("x-forwarded-for"), Some("198.51.100.9, 203.0.113.1, 127.0.0.1"));
        assert_eq!(seen.one("x-real-ip"), Some("203.0.113.1"));
        assert_eq!(seen.one("x-forwarded-proto"), Some("https"));
        assert_eq!(seen.one("x-forwarded-host"), Some("public.example"));
        assert!(!seen.has("forwarded"), "{seen:?}");
    }
    // One that says nothing is itself the client.
    let seen = seen_of_upgrade(&gateway, &backend, &upgrade("/", ""));
    assert_eq!(seen.one("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.one("x-real-ip"), Some("127.0.0.1"));
}

#[test]
fn the_log_of_a_refused_head_names_the_client_behind_a_trusted_proxy() {
    let (_backend, gateway) = start(|config| config.more("trusted_proxies: [127.0.0.1]"));
    let before = gateway.before();
    let mut client = gateway.connect();
    client.send("GET /../ HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n");
    assert_eq!(client.answer().status(), 400);
    let line = before.expect_told("none", Refusal::BadPath, Some(400), "203.0.113.1");
    assert_eq!(line["peer_ip"], "127.0.0.1", "{line}");
}

#[test]
fn only_the_chosen_source_is_believed() {
    let lines = "X-Forwarded-For: 203.0.113.1\r\nForwarded: for=203.0.113.2\r\nCF-Connecting-IP: 203.0.113.3\r\n";
    for (listener, client, forwarded_kept) in [
        ("client_address: forwarded", "203.0.113.2", true),
        ("client_address: { header: cf-connecting-ip }", "203.0.113.3", false),
    ] {
        let (backend, gateway) = start(|config| config.listener(listener).more("trusted_proxies: [private]"));
        let seen = seen_of_upgrade(&gateway, &backend, &upgrade("/", lines));
        assert_eq!(seen.one("x-real-ip"), Some(client), "{seen:?}");
        assert_eq!(seen.one("x-forwarded-for"), Some(client), "{seen:?}");
        assert_eq!(seen.has("forwarded"), forwarded_kept, "{seen:?}");

        // Of a peer that is not trusted none of them is the backend's business.
        let (backend, gateway) = start(|config| config.listener(listener));
        let seen = seen_of_upgrade(&gateway, &backend, &upgrade("/", lines));
        assert_eq!(seen.one("x-real-ip"), Some("127.0.0.1"), "{seen:?}");
        assert!(!seen.has("forwarded"), "{seen:?}");
        assert_eq!(seen.has("cf-connecting-ip"), forwarded_kept, "only where it is the source: {seen:?}");
    }
}

#[test]
fn a_client_cannot_have_our_headers_dropped() {
    let (backend, gateway) = start(|config| config);
    let named = "X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, X-Forwarded-Host";
    let request = upgrade_but("Connection: Upgrade", &format!("Connection: Upgrade, {named}"));
    let upgraded = seen_of_upgrade(&gateway, &backend, &request);
    let plain = seen_of_plain(&gateway, &backend, &format!("Connection: {named}\r\n"));
    for seen in [upgraded, plain] {
        assert_eq!(seen.one("x-forwarded-for"), Some("127.0.0.1"), "{seen:?}");
        assert_eq!(seen.one("x-real-ip"), Some("127.0.0.1"), "{seen:?}");
        assert_eq!(seen.one("x-forwarded-proto"), Some("http"), "{seen:?}");
        assert_eq!(seen.one("x-forwarded-host"), Some("app.example"), "{seen:?}");
    }
}

#[test]
fn a_plain_request_cannot_have_its_credentials_dropped() {
    let (backend, gateway) = start(|config| config);
    for name in ["Cookie", "Authorization", "Origin", "Host", "Content-Length", "Transfer-Encoding"] {
        let request = format!("GET / HTTP/1.1\r\nHost: app.example\r\nCookie: a=b\r\nConnection: {name}\r\n\r\n");
        gateway.expect_refused_unruled(request, Refusal::MalformedRequest);
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_real_backend_sees_the_case_that_the_client_sent() {
    let backend = NodeBackend::start();
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(upgrade("/headers", "x-LOWER-upper: 1\r\n"));
    assert_eq!(client.answer_head().status(), 101);
    let seen: Vec<(String, String)> = serde_json::from_slice(&client.frame().payload).expect("pairs");
    assert!(seen.contains(&("x-LOWER-upper".to_owned(), "1".to_owned())), "{seen:?}");
    assert!(seen.contains(&("Host".to_owned(), "app.example".to_owned())), "{seen:?}");
}
