//! The opening handshake: what a client may ask for, and what an upstream may answer.

use sluicegate::cause::Refusal;

use crate::support::frames::{self, BINARY, CLOSE, TEXT};
use crate::support::node::NodeBackend;
use crate::support::{ACCEPT, Backend, Config, Gateway, KEY, Refusing, switching, upgrade, upgrade_but};

fn start() -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address));
    (backend, gateway)
}

/// Every one of these requests is refused by the rule, and none reaches the backend.
fn all_refused(refusal: Refusal, requests: &[String]) {
    let (backend, gateway) = start();
    for request in requests {
        eprintln!("{request:?}");
        gateway.expect_refused(request, refusal);
    }
    assert_eq!(backend.connections(), 0);
}

/// Every one of these requests is served as plain HTTP, and the backend sees nothing of its upgrade.
fn all_served_as_plain_http(requests: &[String]) {
    let (backend, gateway) = start();
    for (number, request) in requests.iter().enumerate() {
        eprintln!("{request:?}");
        let mut client = gateway.connect();
        client.send(request);
        assert_eq!(client.answer().status(), 200);
        let seen = backend.wait_for_request(number + 1).head;
        for name in ["upgrade", "http2-settings", "connection"] {
            let value = seen.all(name).join(", ").to_ascii_lowercase();
            assert!(!value.contains("upgrade") && !value.contains("http2-settings"), "{name}: {value}");
        }
        assert!(!seen.has("upgrade") && !seen.has("http2-settings"), "{seen:?}");
        // The connection goes on.
        client.send("GET /next HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n");
        let next = client.answer();
        assert_eq!(next.head.one("x-target"), Some("/next"));
    }
    assert_eq!(gateway.metric("sluicegate_handshakes_total", &[]), 0.0);
}

/// Every one of these requests becomes a session.
fn all_accepted(requests: &[String]) {
    let (_backend, gateway) = start();
    for request in requests {
        eprintln!("{request:?}");
        let mut client = gateway.connect();
        client.send(request);
        assert_eq!(client.answer_head().status(), 101);
        client.expect_echo("hello");
        client.close();
    }
    let accepted = [("rule", "app"), ("result", "accepted")];
    assert_eq!(gateway.metric("sluicegate_handshakes_total", &accepted), requests.len() as f64);
    for policy in ["origin", "handshake_rate", "connections_per_ip"] {
        let allowed = [("rule", "app"), ("policy", policy), ("decision", "allowed")];
        assert_eq!(gateway.metric("sluicegate_policy_decisions_total", &allowed), requests.len() as f64, "{policy}");
    }
}

/// A sound handshake that the upstream answers with these bytes; nothing of it reaches the client.
fn upstream_refused(refusal: Refusal, answers: &[String]) {
    for answer in answers {
        eprintln!("{answer:?}");
        // Frames right behind the answer must not reach the client either.
        let bytes = [answer.as_bytes(), &frames::plain(TEXT, b"early")].concat();
        let backend = Backend::answering(bytes);
        let gateway = Gateway::start(&Config::to(backend.address));
        let lines = "Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
        gateway.expect_refused(upgrade("/", lines), refusal);
        assert_eq!(gateway.metric("sluicegate_connections", &[]), 0.0);
    }
}

#[test]
fn takes_handshakes_in_every_form_that_the_rfc_allows() {
    all_accepted(
        &[
            upgrade("/", ""),
            upgrade_but("websocket", "WebSocket"),
            upgrade_but("Connection: Upgrade", "Connection: keep-alive, UPGRADE"),
            upgrade_but("Connection: Upgrade", "Connection: keep-alive\r\nconnection: upgrade"),
            upgrade("/", "Content-Length: 0\r\n"),
            upgrade("/", "Origin: http://app.example\r\n"),
            upgrade("/", "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: superchat\r\n"),
            upgrade("/", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x; y=\"z\"\r\n"),
            upgrade_but("Host: app.example", "Host: [::1]:8080"),
        ][..8],
    );
}

#[test]
fn an_upgrade_to_something_else_is_served_as_plain_http_without_it() {
    let request = |lines: &str| format!("GET / HTTP/1.1\r\nHost: app.example\r\n{lines}\r\n");
    all_served_as_plain_http(&[
        request("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
        request(
            "Upgrade: h2c\r\nConnection: keep-alive, Upgrade\r\nConnection: HTTP2-Settings\r\nHTTP2-Settings: AA\r\n",
        ),
        request("Upgrade: TLS/1.2\r\nConnection: upgrade\r\n"),
        request("Upgrade: websocket2\r\nConnection: Upgrade\r\n"),
        request("Upgrade:\r\nConnection: Upgrade\r\n"),
        request("Connection: Upgrade\r\n"),
        request("Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n"),
        request("HTTP2-Settings: AA\r\n"),
        // A WebSocket without the Connection token: the hop before may have dropped it.
        upgrade_but("Connection: Upgrade\r\n", ""),
        upgrade_but("Connection: Upgrade", "Connection: keep-alive"),
        upgrade_but("Connection: Upgrade", "Connection: Upgrades"),
    ]);
}

#[test]
fn an_h2c_upgrade_with_a_body_keeps_its_body() {
    let (backend, gateway) = start();
    for (lines, body) in
        [("Content-Length: 5\r\n", "hello"), ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")]
    {
        let mut client = gateway.connect();
        client.send(format!(
            "POST /a HTTP/1.1\r\nHost: app.example\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             HTTP2-Settings: AA\r\n{lines}\r\n{body}GET /b HTTP/1.1\r\nHost: app.example\r\n\r\n"
        ));
        assert_eq!(client.answer().body_text(), "hello");
        assert_eq!(client.answer().head.one("x-target"), Some("/b"));
    }
    assert!(backend.requests().iter().all(|request| !request.head.has("upgrade")));
}

#[test]
fn mixed_upgrades_are_refused() {
    let (backend, gateway) = start();
    for request in [
        upgrade_but("websocket", "websocket, h2c"),
        upgrade_but("websocket", "h2c, websocket"),
        upgrade_but("websocket", "websocket, websocket"),
        upgrade_but("websocket", "websocket\r\nUpgrade: h2c"),
        upgrade_but("websocket", "h2c\r\nUpgrade: websocket"),
        upgrade_but("websocket", "websocket\r\nupgrade: websocket"),
        upgrade_but("websocket", "websocket, h2c").replace("Connection: Upgrade\r\n", ""),
    ] {
        gateway.expect_refused_unruled(request, Refusal::MixedUpgrade);
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn upgrades_use_get_and_http_11_and_no_body() {
    all_refused(
        Refusal::UpgradeMethod,
        &["POST", "HEAD", "PUT", "OPTIONS", "get"].map(|method| upgrade_but("GET", method)),
    );
    all_refused(
        Refusal::BodyOnUpgrade,
        &[
            upgrade("/", "Content-Length: 40\r\n"),
            upgrade("/", "Content-Length: 40\r\n") + &"a".repeat(40),
            upgrade("/", "Content-Length: 00\r\n"),
            upgrade("/", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
        ],
    );
    let (_backend, gateway) = start();
    gateway.expect_refused_unruled(upgrade_but("HTTP/1.1", "HTTP/1.0"), Refusal::UpgradeOverHttp10);
}

#[test]
fn other_versions_are_told_which_one_to_use() {
    let version = |version: &str| upgrade_but("Version: 13", &format!("Version: {version}"));
    all_refused(
        Refusal::UnsupportedVersion,
        &[
            version("0"),
            version("7"),
            version("8"),
            version("12"),
            version("14"),
            version("013"),
            version("13, 8"),
            version("8, 13"),
            version("abc"),
            version(""),
            version("13\r\nSec-WebSocket-Version: 13"),
            version("13\r\nSec-WebSocket-Version: 8"),
            upgrade_but("Sec-WebSocket-Version: 13\r\n", ""),
        ],
    );
}

#[test]
fn keys_are_one_nonce_of_16_bytes() {
    let line = format!("Sec-WebSocket-Key: {KEY}\r\n");
    all_refused(
        Refusal::BadKey,
        &[
            upgrade_but(&line, ""),
            upgrade_but(KEY, ""),
            upgrade_but(KEY, "dGhlIHNhbXBsZSBub25jZQ"),
            upgrade_but(KEY, "dGhlIHNhbXBsZSBub25jZR=="),
            upgrade_but(KEY, "dGhlIHNhbXBsZSBub25j"),
            upgrade_but(KEY, "dGhlIHNhbXBsZSBub25jZSEh"),
            upgrade_but(KEY, "dGhlIHNhbXBsZSBub2!jZQ=="),
            upgrade_but(KEY, &format!("{KEY}, {KEY}")),
            upgrade_but(&line, &line.repeat(2)),
        ],
    );
}

#[test]
fn malformed_offers_are_refused() {
    let mut requests: Vec<_> = ["a b", "a;b", "a/b", "\"a\"", "a, b c", "\u{e9}"]
        .map(|value| upgrade("/", &format!("Sec-WebSocket-Protocol: {value}\r\n")))
        .into();
    requests.extend(
        ["a b", "a; b c", "a; =b", "a;", "; a", "a; b=\"c d\"", "a; b=\"c", "a=b"]
            .map(|value| upgrade("/", &format!("Sec-WebSocket-Extensions: {value}\r\n"))),
    );
    all_refused(Refusal::BadOffer, &requests);
}

#[test]
fn foreign_origins_are_refused() {
    let mut requests: Vec<_> = [
        "http://evil.example",
        "http://app.example.evil.example",
        "http://evilapp.example",
        "http://app.example:8080",
        "null",
        "",
        "app.example",
        "http://app.example/path",
        "ftp://app.example",
        "http://app.example http://app.example",
    ]
    .map(|origin| upgrade("/", &format!("Origin: {origin}\r\n")))
    .into();
    requests.push(upgrade("/", "Origin: http://app.example\r\nOrigin: http://app.example\r\n"));
    all_refused(Refusal::OriginNotAllowed, &requests);
}

#[test]
fn data_in_the_segment_of_the_head_is_refused() {
    all_refused(Refusal::EarlyData, &[upgrade("/", "") + "x", upgrade("/", "") + &upgrade("/", "")]);
    let (_backend, gateway) = start();
    let with_frame = [upgrade("/", "").as_bytes(), &frames::masked(TEXT, b"early")].concat();
    gateway.expect_refused(with_frame, Refusal::EarlyData);
}

#[test]
fn data_while_the_upstream_thinks_is_refused() {
    let backend = Backend::hanging();
    let gateway = Gateway::start(&Config::to(backend.address));
    let before = gateway.before();
    let mut client = gateway.connect();
    client.send(upgrade("/", ""));
    backend.wait_for_request(1);
    client.send(frames::masked(TEXT, b"early"));
    before.expect(&mut client, "app", Refusal::EarlyData);
    let sent = backend.requests()[0].bytes.escape_ascii().to_string();
    assert!(!sent.contains("early") && backend.requests().len() == 1, "{sent}");
}

#[test]
fn headers_that_connection_may_not_name_are_refused() {
    let connection = |name: &str| upgrade_but("Connection: Upgrade", &format!("Connection: Upgrade, {name}"));
    let (backend, gateway) = start();
    for request in [
        connection("Cookie"),
        connection("cookie"),
        connection("Authorization"),
        connection("Origin"),
        connection("Host"),
        connection("Sec-WebSocket-Key"),
        connection("Sec-WebSocket-Version"),
        connection("Sec-WebSocket-Protocol"),
        connection("close x"),
        upgrade("/", "Connection: Origin\r\n"),
    ] {
        gateway.expect_refused_unruled(request, Refusal::MalformedRequest);
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_101_that_is_not_for_this_request_opens_no_tunnel() {
    let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
    let sound = switching("");
    upstream_refused(
        Refusal::UpstreamInvalidUpgrade,
        &[
            sound.replace(&accept, ""),
            sound.replace(ACCEPT, "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            sound.replace(ACCEPT, &ACCEPT.to_ascii_lowercase()),
            sound.replace(&accept, &accept.repeat(2)),
            sound.replace("Upgrade: websocket\r\n", ""),
            sound.replace("Upgrade: websocket", "Upgrade: h2c"),
            sound.replace("Upgrade: websocket", "Upgrade: websocket, h2c"),
            sound.replace("Connection: Upgrade\r\n", ""),
            sound.replace("Connection: Upgrade", "Connection: close"),
            switching("Sec-WebSocket-Protocol: other\r\n"),
            switching("Sec-WebSocket-Protocol: chat, superchat\r\n"),
            switching("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: chat\r\n"),
            switching("Sec-WebSocket-Protocol:\r\n"),
            switching("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=9\r\n"),
            switching("Sec-WebSocket-Extensions: x\r\n"),
        ],
    );
}

#[test]
fn an_answer_that_is_no_http_is_a_502() {
    upstream_refused(
        Refusal::UpstreamMalformed,
        &[
            "garbage\r\n\r\n".to_owned(),
            "SSH-2.0-OpenSSH_9.6\r\n".to_owned(),
            "HTTP/1.1 abc\r\n\r\n".to_owned(),
            "HTTP/1.1 100 Continue\r\n\r\n".repeat(100),
        ],
    );
}

#[test]
fn an_upstream_that_goes_away_is_a_502() {
    for backend in [
        Backend::start(|_| {}),
        Backend::start(|connection| {
            connection.request();
        }),
        Backend::answering_and_closing("HTTP/1.1 101 Switching Pro"),
    ] {
        let gateway = Gateway::start(&Config::to(backend.address));
        gateway.expect_refused(upgrade("/", ""), Refusal::UpstreamUnreachable);
    }
}

#[test]
fn another_endpoint_is_tried_while_nothing_was_written_to_one() {
    let (refusing, backend) = (Refusing::bind(), Backend::echoing());
    let config = Config::to(refusing.address()).and(backend.address).upstream("balance: round_robin");
    let gateway = Gateway::start(&config);
    for _ in 0..3 {
        gateway.session().close();
    }
    assert_eq!(backend.requests().len(), 3);
    assert_eq!(gateway.metric("sluicegate_handshakes_total", &[("result", "accepted")]), 3.0);

    // A backend that took the request may have acted on it: the other one is not asked.
    let (closing, backend) = (Backend::answering_and_closing(""), Backend::echoing());
    let config = Config::to(closing.address).and(backend.address).upstream("balance: round_robin");
    let gateway = Gateway::start(&config);
    gateway.expect_refused(upgrade("/", ""), Refusal::UpstreamUnreachable);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn interim_answers_are_skipped() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
    let answer = format!("{hints}HTTP/1.1 100 Continue\r\n\r\n{}", switching(""));
    let backend = Backend::start(move |connection| {
        connection.request();
        connection.io.send(&answer);
        connection.echo();
    });
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut session = gateway.session();
    session.expect_echo("hello");
    session.close();
}

#[test]
fn the_clients_101_is_exact() {
    let lines = "Sec-WebSocket-Protocol: chat\r\nSet-Cookie: a=b\r\nsEt-CoOkIe: c=d\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                 Content-Length: 0\r\n";
    let answer = switching(lines)
        .replace("Upgrade: websocket", "uPGRADE: WEBSOCKET")
        .replace("Connection: Upgrade", "Connection: keep-alive, upgrade, X-Hop");
    let backend = Backend::answering(answer);
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(upgrade("/", "Sec-WebSocket-Protocol: superchat, chat\r\n"));
    let head = client.answer_head();
    assert_eq!(head.line, "HTTP/1.1 101 Switching Protocols");
    let expected = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", ACCEPT),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Set-Cookie", "a=b"),
        ("sEt-CoOkIe", "c=d"),
    ];
    let mut found: Vec<_> = head.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    found.sort_by_key(|(name, _)| expected.iter().position(|(expected, _)| expected == name));
    assert_eq!(found, expected);
    drop(client);
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!((&line["subprotocol"], &line["status"]), (&"chat".into(), &101.into()), "{line}");
}

#[test]
fn the_101_is_flushed_at_once() {
    // The backend sends nothing behind its 101, and waits.
    let backend = Backend::answering(switching(""));
    let gateway = Gateway::start(&Config::to(backend.address));
    let session = gateway.session();
    gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 1.0);
    drop(session);
}

#[test]
fn frames_in_the_segment_of_the_101_arrive_in_order() {
    let mut bytes = switching("").into_bytes();
    for n in 0..100u8 {
        bytes.extend(frames::plain(BINARY, &[n; 200]));
    }
    bytes.extend(frames::plain(CLOSE, &1000u16.to_be_bytes()));
    let backend = Backend::answering(bytes);
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut session = gateway.session();
    for n in 0..100u8 {
        assert_eq!(session.frame().payload, [n; 200]);
    }
    assert_eq!(session.frame().close_code(), Some(1000));
}

#[test]
fn an_upstreams_own_answer_is_relayed_and_is_never_a_tunnel() {
    let body = "no entry";
    for (answer, status) in [
        ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 8\r\nWWW-Authenticate: Basic realm=a\r\n\r\nno entry", 401),
        (
            "HTTP/1.1 302 Found\r\nLocation: /login\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno \r\n5\r\nentry\r\n0\r\n\r\n",
            302,
        ),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nno entry", 200),
        ("HTTP/1.0 200 OK\r\n\r\nno entry", 200),
        ("HTTP/1.1 503 Custom reason\r\nRetry-After: 7\r\nContent-Length: 8\r\n\r\nno entry", 503),
        (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo\r\nConnection: Upgrade\r\nContent-Length: 8\r\n\r\nno entry",
            426,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304),
    ] {
        eprintln!("{answer:?}");
        let bytes = answer.as_bytes().to_vec();
        let backend = Backend::start(move |connection| {
            if connection.request().is_some() {
                connection.io.send(&bytes);
                if !bytes.windows(8).any(|part| part.eq_ignore_ascii_case(b"content-")) {
                    return;
                }
                // Whatever else comes over this connection was tunnelled.
                connection.request();
            }
        });
        let gateway = Gateway::start(&Config::to(backend.address));
        let before = gateway.before();
        let mut client = gateway.connect();
        client.send(upgrade("/", ""));
        let found = client.answer();
        assert_eq!(found.status(), status);
        assert_eq!(
            found.head.line.splitn(3, ' ').nth(2),
            answer.lines().next().and_then(|line| line.splitn(3, ' ').nth(2))
        );
        assert_eq!(found.body_text(), if matches!(status, 204 | 304) { "" } else { body });
        for name in ["www-authenticate", "location", "retry-after", "etag"] {
            let sent = answer.to_ascii_lowercase().contains(&format!("{name}: "));
            assert_eq!(found.head.has(name), sent, "{name}");
        }
        assert_eq!(found.head.one("upgrade"), (status == 426).then_some("foo"));
        let connection = if status == 426 { "Upgrade, close" } else { "close" };
        assert_eq!(found.head.one("connection"), Some(connection));
        client.try_send("GET /smuggled HTTP/1.1\r\nHost: app.example\r\n\r\n");
        client.expect_end();
        before.expect_told("app", Refusal::UpstreamAnswered(status), Some(status), "127.0.0.1");
        assert_eq!(backend.requests().len(), 1, "nothing is tunnelled");
        assert_eq!(gateway.metric("sluicegate_connections", &[]), 0.0);
    }
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 80\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhalf",
    ] {
        let backend = Backend::answering_and_closing(answer);
        let gateway = Gateway::start(&Config::to(backend.address));
        let before = gateway.before();
        let mut client = gateway.connect();
        client.send(upgrade("/", ""));
        let head = client.answer_head();
        assert_eq!(head.status(), 200);
        let rest = client.rest();
        let line = before.expect_told("app", Refusal::UpstreamAnswered(200), Some(200), "127.0.0.1");
        assert_eq!(line["detail"], "the upstream broke the answer off", "{line}");
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", rest.escape_ascii());
        assert!(head.has("transfer-encoding") || rest.len() < 80, "{}", rest.escape_ascii());
    }
}

#[test]
fn rules_may_require_or_deny_upgrades() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address)
        .first_rule("ws", "match: { path: /ws }, websocket: require")
        .first_rule("web", "match: { path: /web }, websocket: deny");
    let gateway = Gateway::start(&config);
    let plain = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: app.example\r\n\r\n");
    for (request, rule, refusal) in [
        (plain("/ws"), "ws", Refusal::UpgradeRequired),
        (plain("/ws").replace("Host", "Upgrade: h2c\r\nConnection: Upgrade\r\nHost"), "ws", Refusal::UpgradeRequired),
        (upgrade("/web", ""), "web", Refusal::UpgradeDenied),
    ] {
        let before = gateway.before();
        let mut client = gateway.connect();
        client.send(request);
        before.expect(&mut client, rule, refusal);
    }
    assert_eq!(gateway.ask(&plain("/web")).status(), 200);
    assert_eq!(gateway.ask(&upgrade("/ws", "")).status(), 101);
}

#[test]
fn works_with_a_real_backend() {
    let backend = NodeBackend::start();
    let gateway = Gateway::start(&Config::to(backend.address));
    let mut client = gateway.connect();
    client.send(upgrade("/chat?token=secret", "Sec-WebSocket-Protocol: other, chat\r\n"));
    let head = client.answer_head();
    assert_eq!((head.status(), head.one("sec-websocket-protocol")), (101, Some("chat")));
    client.expect_echo("hello");
    client.send_frame(BINARY, vec![7; 100_000]);
    assert_eq!(client.frame().payload, vec![7; 100_000]);
    client.close();
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!((&line["close_code"], &line["cause"]), (&1000.into(), &"client_closed".into()), "{line}");
    assert!(!line.to_string().contains("secret"), "{line}");
    gateway.wait_for_metric("sluicegate_connections", &[], 0.0);

    let refused = gateway.ask(&upgrade("/refuse?status=403", ""));
    assert_eq!((refused.status(), refused.body_text().as_str()), (403, "refused\n"));
    assert_eq!(refused.head.one("x-backend"), Some("refused"));
}
