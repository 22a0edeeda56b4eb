//! Every refusal of the table, once: its answer, its log line and its metrics. The other modules have its many causes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use h2::ext::Protocol;
use http::Request;
use sluicegate::cause::Refusal;

use crate::http2_connection;
use crate::support::frames::CLOSE;
use crate::support::http2::{Http2, run};
use crate::support::{Backend, Config, Gateway, Pki, Refusing, upgrade, upgrade_but};

/// How a refusal is provoked, and what the contract says of it.
struct Case {
    /// The name in the answer, the log and the metrics, which never changes.
    name: &'static str,
    /// The status of the answer.
    status: Option<u16>,
    provoke: Box<dyn Fn()>,
}

fn case(name: &'static str, status: u16, provoke: impl Fn() + 'static) -> Case {
    Case { name, status: Some(status), provoke: Box::new(provoke) }
}

/// One request, refused before a rule is known.
fn unruled(refusal: Refusal, bytes: impl Into<Vec<u8>>) -> impl Fn() {
    let bytes = bytes.into();
    move || {
        let backend = Backend::echoing();
        let gateway = Gateway::start(&Config::to(backend.address).listener("head: { timeout: 500ms }"));
        gateway.expect_refused_unruled(&bytes, refusal);
        assert_eq!(backend.connections(), 0);
    }
}

/// One request, refused by the rule before the upstream is asked.
fn ruled(refusal: Refusal, keys: &'static str, request: impl Into<String>) -> impl Fn() {
    let request = request.into();
    move || {
        let backend = Backend::echoing();
        let gateway = Gateway::start(&Config::to(backend.address).rule(keys));
        gateway.expect_refused(&request, refusal);
        assert_eq!(backend.connections(), 0);
    }
}

/// A sound handshake that the upstream spoils.
fn upstream(refusal: Refusal, backend: impl Fn() -> Backend) -> impl Fn() {
    move || {
        let backend = backend();
        let config = Config::to(backend.address).rule("handshake: { upstream_timeout: 500ms }");
        Gateway::start(&config).expect_refused(upgrade("/", ""), refusal);
        assert_eq!(backend.connections(), 1);
    }
}

/// A second session, where one is all that there may be.
fn second_session(refusal: Refusal, config: fn(Config) -> Config) -> impl Fn() {
    move || {
        let backend = Backend::echoing();
        let gateway = Gateway::start(&config(Config::to(backend.address)));
        let first = gateway.session();
        gateway.expect_refused(upgrade("/", ""), refusal);
        first.close();
        gateway.wait_for_log(|line| line["event"] == "session");
        gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 0.0);
        gateway.session().close();
    }
}

/// A listener with TLS.
fn under_tls() -> (Backend, Gateway) {
    let pki = Pki::new();
    pki.issue("a", &["app.example"]);
    let backend = Backend::echoing();
    let config = Config::to(backend.address).listener(&format!("tls: {{ {} }}", pki.listener(&["a"])));
    let gateway = Gateway::start(&config);
    (backend, gateway)
}

/// The case of each refusal. There is no wildcard: a new one does not compile without a case. None is left out.
fn case_of(refusal: Refusal) -> Case {
    use Refusal as R;
    match refusal {
        R::MalformedRequest => case("malformed_request", 400, unruled(refusal, "hello\r\n\r\n")),
        R::BadHost => case("bad_host", 400, unruled(refusal, "GET / HTTP/1.1\r\n\r\n")),
        R::BadPath => case("bad_path", 400, unruled(refusal, "GET /a/../b?c=d HTTP/1.1\r\nHost: a\r\n\r\n")),
        R::BadKey => case("bad_key", 400, ruled(refusal, "", upgrade_but("dGhl", ""))),
        R::BadOffer => case("bad_offer", 400, ruled(refusal, "", upgrade("/", "Sec-WebSocket-Protocol: a b\r\n"))),
        R::BodyOnUpgrade => case("body_on_upgrade", 400, ruled(refusal, "", upgrade("/", "Content-Length: 40\r\n"))),
        R::EarlyData => case("early_data", 400, ruled(refusal, "", upgrade("/", "") + "early")),
        R::MixedUpgrade => case("mixed_upgrade", 400, unruled(refusal, upgrade_but("websocket", "websocket, h2c"))),
        R::UpgradeMethod => case("upgrade_method", 400, ruled(refusal, "", upgrade_but("GET", "POST"))),
        R::UpgradeOverHttp10 => case("upgrade_over_http10", 400, unruled(refusal, upgrade_but("HTTP/1.1", "HTTP/1.0"))),
        R::ConnectMethod => case(
            "connect_method",
            405,
            unruled(refusal, "CONNECT app.example:443 HTTP/1.1\r\nHost: app.example\r\n\r\n"),
        ),
        R::HeadTimeout => case("head_timeout", 408, unruled(refusal, "GET / HT")),
        R::HeadTooLarge => {
            case("head_too_large", 431, unruled(refusal, format!("GET /{} HTTP/1.1\r\n", "a".repeat(33 << 10))))
        }
        R::UnsupportedVersion => case("unsupported_version", 426, ruled(refusal, "", upgrade_but("13", "8"))),
        R::UpgradeRequired => case(
            "upgrade_required",
            426,
            ruled(refusal, "websocket: require", "GET / HTTP/1.1\r\nHost: app.example\r\n\r\n"),
        ),
        R::UpgradeDenied => case("upgrade_denied", 403, ruled(refusal, "websocket: deny", upgrade("/", ""))),
        R::ClientNotAllowed => {
            case("client_not_allowed", 403, ruled(refusal, "clients: { deny: [127.0.0.0/8] }", upgrade("/", "")))
        }
        R::BodyTooLarge => case(
            "body_too_large",
            413,
            ruled(
                refusal,
                "http: { max_body_size: 10B }",
                "POST / HTTP/1.1\r\nHost: app.example\r\nContent-Length: 11\r\n\r\n",
            ),
        ),
        R::OriginNotAllowed => {
            case("origin_not_allowed", 403, ruled(refusal, "", upgrade("/", "Origin: http://evil.example\r\n")))
        }
        R::NoRule => case("no_rule", 404, || {
            let backend = Backend::echoing();
            let gateway = Gateway::start(&Config::to(backend.address).rule("match: { path: /chat }"));
            gateway.expect_refused_unruled(upgrade("/", ""), Refusal::NoRule);
        }),
        R::HostNotServed => case("host_not_served", 421, || {
            let backend = Backend::echoing();
            let gateway = Gateway::start(&Config::to(backend.address).listener("hosts: [other.example]"));
            gateway.expect_refused_unruled(upgrade("/", ""), Refusal::HostNotServed);
        }),
        R::HandshakeRate(_) => case("handshake_rate", 429, || {
            let backend = Backend::echoing();
            let rule = "handshake: { per_ip: { rate: 1/s, burst: 1 }, upstream_timeout: 5m }";
            let gateway = Gateway::start(&Config::to(backend.address).rule(rule));
            // The place that the first one takes is free again after a second: on a machine that takes longer, one of
            // the next is the one that is refused.
            let refused = (0..100).map(|_| gateway.ask_for_session()).find(|answer| answer.status() == 429);
            crate::support::refusal::check_answer(
                &refused.expect("one is refused"),
                Refusal::HandshakeRate(Duration::ZERO),
            );
            let line = gateway.wait_for_log(|line| line["event"] == "refusal");
            assert_eq!((&line["cause"], &line["status"]), (&"handshake_rate".into(), &429.into()), "{line}");
            assert_eq!((&line["rule"], &line["client_ip"]), (&"app".into(), &"127.0.0.1".into()), "{line}");
            let counted = [("rule", "app"), ("result", "handshake_rate")];
            assert_eq!(gateway.metric("sluicegate_handshakes_total", &counted), 1.0);
        }),
        R::ConnectionsPerIp => {
            case("connections_per_ip", 429, second_session(refusal, |config| config.rule("connections: { per_ip: 1 }")))
        }
        R::ConnectionsTotal => {
            case("connections_total", 503, second_session(refusal, |config| config.rule("connections: { total: 1 }")))
        }
        R::ProcessConnections => case(
            "process_connections",
            503,
            second_session(refusal, |config| config.more("limits: { connections: 1 }")),
        ),
        R::ProcessMemory => case("process_memory", 503, crate::memory::refuses_a_connection),
        R::Draining => case("draining", 503, || {
            let backend = Backend::echoing();
            let mut gateway = Gateway::start(&Config::to(backend.address).rule("close_timeout: 5m"));
            let mut session = gateway.session();
            gateway.terminate();
            // When it is told, the drain has begun, and its own Close frame keeps the process alive.
            assert_eq!(session.frame().close_code(), Some(1012));
            gateway.expect_refused_unruled(upgrade("/", ""), Refusal::Draining);
            session.send_frame(CLOSE, 1012u16.to_be_bytes());
            session.expect_end();
            drop(session);
            assert_eq!(gateway.wait_for_exit().code(), Some(0));
        }),
        R::UpstreamUnreachable => case("upstream_unreachable", 502, || {
            let refusing = Refusing::bind();
            let gateway = Gateway::start(&Config::to(refusing.address()));
            gateway.expect_refused(upgrade("/", ""), Refusal::UpstreamUnreachable);
        }),
        R::UpstreamMalformed => {
            case("upstream_malformed", 502, upstream(refusal, || Backend::answering("this is no HTTP\r\n\r\n")))
        }
        R::UpstreamInvalidUpgrade => case(
            "upstream_invalid_upgrade",
            502,
            upstream(refusal, || Backend::answering("HTTP/1.1 101 Switching Protocols\r\n\r\n")),
        ),
        R::UpstreamTimeout => case("upstream_timeout", 504, upstream(refusal, Backend::hanging)),
        R::UpstreamAnswered(_) => Case {
            name: "upstream_answered",
            status: None,
            provoke: Box::new(|| {
                let backend = Backend::answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
                let gateway = Gateway::start(&Config::to(backend.address));
                let before = gateway.before();
                let mut client = gateway.connect();
                client.send(upgrade("/", ""));
                let answer = client.answer();
                assert_eq!((answer.status(), answer.body_text().as_str()), (401, "no"));
                client.expect_end();
                before.expect_told("app", Refusal::UpstreamAnswered(401), Some(401), "127.0.0.1");
            }),
        },
        R::ClientGone => Case {
            name: "client_gone",
            status: None,
            provoke: Box::new(|| {
                let backend = Backend::hanging();
                let gateway = Gateway::start(&Config::to(backend.address));
                let before = gateway.before();
                let mut client = gateway.connect();
                client.send(upgrade("/", ""));
                backend.wait_for_request(1);
                drop(client);
                before.expect_told("app", Refusal::ClientGone, None, "127.0.0.1");
            }),
        },
        R::TlsHandshake => Case {
            name: "tls_handshake",
            status: None,
            provoke: Box::new(|| {
                let (backend, gateway) = under_tls();
                let before = gateway.before();
                let mut client = gateway.connect();
                client.send(b"\x16\x03\x01\x00\x05nonsense");
                client.read_to_any_end();
                before.expect_told("none", Refusal::TlsHandshake, None, "127.0.0.1");
                assert_eq!(backend.connections(), 0);
            }),
        },
        R::ConnectProtocol => case("connect_protocol", 501, || {
            let backend = Backend::echoing();
            let gateway = Gateway::start(&Config::to(backend.address));
            run(async {
                let request = Request::connect("http://app.example/").extension(Protocol::from_static("connect-udp"));
                let before = gateway.before();
                let answer = Http2::connect(gateway.address).await.ask_in_vain(request).await;
                assert_eq!(answer.status, 501);
                before.expect_told_over("h2", "none", Refusal::ConnectProtocol, Some(501), "127.0.0.1");
            });
            assert_eq!(backend.connections(), 0);
        }),
        R::StreamLimit => Case {
            name: "stream_limit",
            status: None,
            provoke: Box::new(http2_connection::work_of_reset_streams_counts),
        },
        R::CleartextOnTls => case("cleartext_on_tls", 400, || {
            let (backend, gateway) = under_tls();
            gateway.expect_refused_unruled(upgrade("/", ""), Refusal::CleartextOnTls);
            assert_eq!(backend.connections(), 0);
        }),
        R::ProxyHeader => Case {
            name: "proxy_header",
            status: None,
            provoke: Box::new(|| {
                let backend = Backend::echoing();
                let config = Config::to(backend.address).listener("client_address: proxy_protocol");
                // Nobody is trusted, and then a trusted peer that speaks HTTP.
                for config in [
                    config.more("trusted_proxies: []"),
                    Config::to(backend.address)
                        .listener("client_address: proxy_protocol")
                        .more("trusted_proxies: [127.0.0.1]"),
                ] {
                    let gateway = Gateway::start(&config);
                    let before = gateway.before();
                    let mut client = gateway.connect();
                    client.send(upgrade("/", ""));
                    client.finish();
                    client.expect_end();
                    before.expect_told("none", Refusal::ProxyHeader, None, "127.0.0.1");
                }
                assert_eq!(backend.connections(), 0);
            }),
        },
    }
}

#[test]
fn every_refusal_is_answered_logged_and_counted() {
    let mut failed = Vec::new();
    for refusal in Refusal::ALL {
        let case = case_of(refusal);
        let row = refusal.row();
        assert_eq!((row.name, row.status), (case.name, case.status), "the contract's name and status");
        if catch_unwind(AssertUnwindSafe(&case.provoke)).is_err() {
            failed.push(case.name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_log_says_what_was_asked_for_without_the_query() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address));
    let before = gateway.before();
    let mut client = gateway.connect();
    let lines = "Origin: http://evil.example\r\nUser-Agent: tester\r\nX-Request-Id: r1\r\nCookie: secret=1\r\n";
    client.send(upgrade("/chat?token=secret", lines));
    before.expect(&mut client, "app", Refusal::OriginNotAllowed);
    let line = gateway.wait_for_log(|line| line["event"] == "refusal");
    for (key, value) in [
        ("host", "app.example"),
        ("path", "/chat"),
        ("method", "GET"),
        ("origin", "http://evil.example"),
        ("user_agent", "tester"),
        ("request_id", "r1"),
        ("peer_ip", "127.0.0.1"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert!(!line.to_string().contains("secret"), "{line}");
}
