//! HTTP/2: WebSockets by extended CONNECT (RFC 8441) and plain requests, on one connection, under the same rules as over
//! HTTP/1.1.

use std::net::TcpListener;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use http::{Request, request};
use serde_json::{Value, json};
use sluicegate::cause::Refusal;
use sluicegate::ws::handshake::is_valid_key;

use crate::support::frames::{self, BINARY, CLOSE, TEXT};
use crate::support::http2::{Answer, End, Http2, connect, get, run, send_all, soon};
use crate::support::refusal::Before;
use crate::support::{Backend, Config, Gateway, Refusing, switching_for};

fn start(rule: &str) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).rule(rule));
    (backend, gateway)
}

/// The answer, the log line and the metrics of a refusal over HTTP/2.
fn expect_refused(before: &Before<'_>, answer: &Answer, rule: &str, refusal: Refusal) -> Value {
    let row = refusal.row();
    let status = match row.status.expect("an answer of ours") {
        426 => 400,
        status => status,
    };
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let expected = json!({ "type": format!("urn:sluicegate:{}", row.name), "title": row.title, "status": status });
    assert_eq!(problem, expected);
    assert_eq!(answer.header("retry-after").is_some(), matches!(status, 429 | 503), "{answer:?}");
    for name in ["connection", "upgrade", "transfer-encoding", "keep-alive"] {
        assert!(answer.header(name).is_none(), "{name} is not for HTTP/2: {answer:?}");
    }
    before.expect_told_over("h2", rule, refusal, Some(status), "127.0.0.1")
}

#[test]
fn a_websocket_is_a_get_with_a_fresh_key_to_the_backend() {
    let (backend, gateway) = start("message: { max_size: 4MiB }");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        for number in 1..=2 {
            let mark = gateway.mark();
            let request = connect("/chat?a=b").header("origin", "http://app.example").header("cookie", "a=1");
            // A key means nothing here, and is not passed on.
            let request = request.header("cookie", "b=2").header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
            let mut tunnel = http2.open(request).await;
            assert!(!tunnel.headers.contains_key("sec-websocket-accept"), "{:?}", tunnel.headers);
            assert!(!tunnel.headers.contains_key("upgrade") && !tunnel.headers.contains_key("connection"));
            tunnel.expect_echo("hello").await;
            tunnel.expect_echo(&"long ".repeat(500_000)).await;
            tunnel.close().await;
            let seen = backend.wait_for_request(number).head;
            assert_eq!(seen.line, "GET /chat?a=b HTTP/1.1");
            for (name, value) in [
                ("host", "app.example"),
                ("upgrade", "websocket"),
                ("connection", "Upgrade"),
                ("sec-websocket-version", "13"),
                ("cookie", "a=1; b=2"),
                ("x-forwarded-for", "127.0.0.1"),
            ] {
                assert_eq!(seen.one(name), Some(value), "{name}");
            }
            let line = gateway.wait_for_log_since(mark, |line| line["event"] == "session");
            for (key, value) in
                [("protocol", "h2"), ("method", "CONNECT"), ("path", "/chat"), ("cause", "client_closed")]
            {
                assert_eq!(line[key], value, "{line}");
            }
            assert_eq!(
                (&line["status"], &line["close_code"], &line["messages_in"]),
                (&json!(200), &json!(1000), &json!(2))
            );
        }
        let keys: Vec<_> =
            backend.requests().iter().map(|request| request.head.all("sec-websocket-key").join("|")).collect();
        assert!(keys.iter().all(|key| is_valid_key(key.as_bytes())), "{keys:?}");
        assert!(keys[0] != keys[1] && keys.iter().all(|key| key != "AAAAAAAAAAAAAAAAAAAAAA=="), "{keys:?}");
    });
}

#[test]
fn many_sessions_and_plain_requests_share_a_connection() {
    let (_backend, gateway) = start("handshake: { per_ip: off }");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut tunnels = Vec::new();
        for number in 0..50 {
            tunnels.push(http2.open(connect(&format!("/{number}"))).await);
            if number % 2 == 0 {
                let answer = http2.ask_with(get("/plain").method("POST"), b"body").await;
                assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
            }
        }
        for (number, tunnel) in tunnels.iter_mut().enumerate() {
            tunnel.expect_echo(&format!("text of {number}")).await;
        }
        assert_eq!(gateway.metric("sluicegate_connections", &[("rule", "app")]), 50.0);
        for tunnel in tunnels {
            tunnel.close().await;
        }
        gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 0.0);
        assert_eq!(http2.ask(get("/still")).await.status, 200);
    });
}

/// A backend whose kernel takes little of what it does not read. `/stall` is not read, `/flood` is sent without end.
fn stalling() -> Backend {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("an open socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(256).expect("a bound socket");
    Backend::over(TcpListener::from(socket), |connection| {
        let Some(request) = connection.request() else { return };
        connection.io.send(switching_for(&request.head));
        match request.head.target() {
            "/stall" => std::thread::park(),
            "/flood" => {
                let flood = frames::plain(BINARY, &[7; 60_000]);
                while connection.io.try_send(&flood) {}
            }
            _ => connection.echo(),
        }
    })
}

#[test]
fn streams_that_are_not_read_hold_no_other_back() {
    let backend = stalling();
    let gateway = Gateway::start(&Config::to(backend.address).rule("handshake: { per_ip: off }, slow_client: off"));
    run(async {
        for target in ["/stall", "/flood"] {
            let mut http2 = Http2::connect(gateway.address).await;
            let mut stalled = Vec::new();
            for _ in 0..99 {
                let mut tunnel = http2.open(connect(target)).await;
                if target == "/stall" {
                    let frames = frames::masked(BINARY, &[7; 60_000]).repeat(100);
                    stalled.push(tokio::spawn(async move { send_all(&mut tunnel.out, &frames).await }));
                } else {
                    // It is sent what its window holds, and nothing more.
                    stalled.push(tokio::spawn(async move {
                        let _unread = tunnel;
                        std::future::pending::<Result<(), h2::Error>>().await
                    }));
                }
            }
            let mut live = http2.open(connect("/echo")).await;
            for number in 0..20 {
                live.expect_echo(&format!("{number} {}", "x".repeat(50_000))).await;
            }
            assert!(stalled.iter().all(|task| !task.is_finished()), "they are stalled, {target}");
            for task in stalled {
                task.abort();
            }
            live.close().await;
        }
    });
}

#[test]
fn policies_hold_for_each_stream() {
    let (backend, gateway) = start("message: { max_size: 1KiB }");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut sibling = http2.open(connect("/")).await;

        let before = gateway.before();
        let answer = http2.ask_in_vain(connect("/").header("origin", "http://evil.example")).await;
        expect_refused(&before, &answer, "app", Refusal::OriginNotAllowed);

        let before = gateway.before();
        let mut without_version = connect("/");
        without_version.headers_mut().expect("a sound request").remove("sec-websocket-version");
        let answer = http2.ask_in_vain(without_version).await;
        assert_eq!(answer.header("sec-websocket-version"), Some("13"));
        expect_refused(&before, &answer, "app", Refusal::UnsupportedVersion);

        let before = gateway.before();
        let answer = http2.ask_in_vain(connect("/").header("sec-websocket-protocol", "a b")).await;
        expect_refused(&before, &answer, "app", Refusal::BadOffer);

        let mark = gateway.mark();
        let mut large = http2.open(connect("/")).await;
        large.send_frame(TEXT, "x".repeat(1025)).await;
        assert_eq!(large.frame().await.close_code(), Some(1009));
        large.send_frame(CLOSE, 1009u16.to_be_bytes()).await;
        assert_eq!(large.end().await, End::Stream);
        large.finish();
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "session");
        assert_eq!((&line["cause"], &line["protocol"]), (&json!("message_too_big"), &json!("h2")), "{line}");

        sibling.expect_echo("still here").await;
        sibling.close().await;
    });
    assert_eq!(backend.connections(), 2);
}

#[test]
fn handshakes_that_come_too_fast_are_refused() {
    let (_backend, gateway) = start("handshake: { per_ip: { rate: 1/h, burst: 1 } }");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        http2.open(connect("/")).await.close().await;
        let before = gateway.before();
        let answer = http2.ask_in_vain(connect("/")).await;
        expect_refused(&before, &answer, "app", Refusal::HandshakeRate(std::time::Duration::ZERO));
        assert_eq!(http2.ask(get("/")).await.status, 200);
    });
}

#[test]
fn only_websocket_is_connected_to_in_every_case() {
    let (backend, gateway) = start("");
    let protocol = |name| {
        let request = Request::connect("http://app.example/").header("sec-websocket-version", "13");
        request.extension(Protocol::from_static(name))
    };
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        for name in ["websocket", "WebSocket", "WEBSOCKET"] {
            http2.open(protocol(name)).await.close().await;
        }
        for name in ["connect-udp", "websocket2"] {
            let before = gateway.before();
            let answer = http2.ask_in_vain(protocol(name)).await;
            expect_refused(&before, &answer, "none", Refusal::ConnectProtocol);
        }
        let before = gateway.before();
        let answer = http2.ask_in_vain(Request::connect("app.example:443")).await;
        assert!(answer.header("allow").is_some());
        expect_refused(&before, &answer, "none", Refusal::ConnectMethod);
    });
    assert_eq!(backend.connections(), 3);
}

#[test]
fn data_before_the_answer_is_refused_and_a_reset_is_a_client_that_is_gone() {
    let backend = Backend::hanging();
    let gateway = Gateway::start(&Config::to(backend.address));
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let before = gateway.before();
        let (answer, mut out) = http2.send(connect("/"), false).await;
        backend.wait_for_request(1);
        out.send_data(Bytes::from(frames::masked(TEXT, b"early")), false).expect("an open stream");
        let answer = crate::support::http2::whole(answer).await.expect("an answer");
        expect_refused(&before, &answer, "app", Refusal::EarlyData);
        let sent = backend.requests()[0].bytes.escape_ascii().to_string();
        assert!(!sent.contains("early"), "{sent}");

        for (number, reset) in [(2, true), (3, false)] {
            let before = gateway.before();
            let (_answer, mut out) = http2.send(connect("/"), false).await;
            backend.wait_for_request(number);
            match reset {
                true => out.send_reset(Reason::CANCEL),
                // As over TCP the end of its direction is its end.
                false => out.send_data(Bytes::new(), true).expect("an open stream"),
            }
            before.expect_told_over("h2", "app", Refusal::ClientGone, None, "127.0.0.1");
        }
    });
}

#[test]
fn an_answer_of_the_upstream_is_relayed_unless_it_would_open_a_tunnel() {
    let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
                  Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    let backend = Backend::answering(answer);
    let gateway = Gateway::start(&Config::to(backend.address).rule("response_headers: { set: { x-own: here } }"));
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let before = gateway.before();
        let answer = http2.ask_in_vain(connect("/")).await;
        assert_eq!((answer.status, answer.text().as_str()), (401, "no"));
        assert_eq!((answer.header("www-authenticate"), answer.header("x-own")), (Some("Basic"), Some("here")));
        assert!(["connection", "x-hop", "transfer-encoding"].iter().all(|name| answer.header(name).is_none()));
        before.expect_told_over("h2", "app", Refusal::UpstreamAnswered(401), Some(401), "127.0.0.1");
    });

    // A 2xx says to a CONNECT that it has its tunnel.
    for bytes in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 204 No Content\r\n\r\n"] {
        let backend = Backend::answering(bytes);
        let gateway = Gateway::start(&Config::to(backend.address));
        run(async {
            let mut http2 = Http2::connect(gateway.address).await;
            let before = gateway.before();
            let answer = http2.ask_in_vain(connect("/")).await;
            expect_refused(&before, &answer, "app", Refusal::UpstreamInvalidUpgrade);
        });
    }
    let refusing = Refusing::bind();
    let gateway = Gateway::start(&Config::to(refusing.address()));
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        for request in [connect("/"), get("/")] {
            let before = gateway.before();
            let answer = http2.ask_in_vain(request).await;
            expect_refused(&before, &answer, "app", Refusal::UpstreamUnreachable);
        }
    });
}

#[test]
fn rules_that_answer_by_themselves_answer_streams() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address)
        .fixed_rule("away", "match: { path: /away }, redirect: { to: \"https://{host}{path_and_query}\" }")
        .fixed_rule("down", "match: { path: /down }, respond: { status: 503, body: \"down\" }")
        .fixed_rule("fine", "match: { path: /fine }, respond: { status: 200, body: \"fine\" }");
    let gateway = Gateway::start(&config);
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        for request in [get("/away?a=b"), connect("/away?a=b")] {
            let answer = http2.ask_in_vain(request).await;
            assert_eq!((answer.status, answer.header("location")), (308, Some("https://app.example/away?a=b")));
        }
        for request in [get("/down"), connect("/down")] {
            let answer = http2.ask_in_vain(request).await;
            assert_eq!((answer.status, answer.text().as_str()), (503, "down"));
        }
        assert_eq!(http2.ask(get("/fine")).await.text(), "fine");
        let answer = http2.ask(get("/fine").method("HEAD")).await;
        assert_eq!((answer.header("content-length"), answer.body.len()), (Some("4"), 0));
        let before = gateway.before();
        let answer = http2.ask_in_vain(connect("/fine")).await;
        expect_refused(&before, &answer, "fine", Refusal::UpgradeDenied);
    });
    let line = gateway.wait_for_log(|line| line["event"] == "request" && line["path"] == "/down");
    assert_eq!((&line["protocol"], &line["status"]), (&json!("h2"), &json!(503)), "{line}");
}

#[test]
fn plain_requests_reach_the_backend_as_over_http1() {
    let (backend, gateway) = start("http: { max_body_size: 1MiB }, response_headers: { set: { x-own: here } }");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let request = get("/a%20b?c=d&e").header("cookie", "a=1").header("cookie", "b=2").header("te", "trailers");
        let answer = http2.ask(request.header("x-real-ip", "203.0.113.7")).await;
        assert_eq!((answer.status, answer.header("x-own")), (200, Some("here")));
        assert_eq!(answer.header("x-target"), Some("/a%20b?c=d&e"));
        let seen = backend.wait_for_request(1).head;
        assert_eq!(seen.line, "GET /a%20b?c=d&e HTTP/1.1");
        for (name, values) in [
            ("host", &["app.example"][..]),
            ("cookie", &["a=1; b=2"]),
            ("x-real-ip", &["127.0.0.1"]),
            ("x-forwarded-proto", &["http"]),
            ("te", &[]),
            ("connection", &[]),
            ("transfer-encoding", &[]),
            ("content-length", &[]),
        ] {
            assert_eq!(seen.all(name), values, "{name}");
        }
        assert_eq!(http2.ask(get("/").method("HEAD")).await.body, b"");

        let body = vec![7; 1 << 20];
        let with_length = get("/").method("POST").header("content-length", body.len());
        // Each body ends with an empty frame, and ends once: the backend's connection is used again.
        for request in [with_length, get("/").method("PUT"), get("/").method("POST"), get("/").method("PUT")] {
            let answer = http2.ask_with(request, &body).await;
            assert!(answer.status == 200 && answer.body == body, "{}", answer.status);
        }
        for (length, over) in [(Some(2 << 20), b"x".to_vec()), (None, vec![7; (1 << 20) + 1])] {
            let mut request = get("/").method("POST");
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            let before = gateway.before();
            let (answer, mut out) = http2.send(request, false).await;
            // The rest is not wanted any more when the answer is there.
            let _ = soon(send_all(&mut out, &over)).await;
            let _ = out.send_data(Bytes::new(), length.is_none());
            let answer = crate::support::http2::whole(answer).await.expect("an answer");
            expect_refused(&before, &answer, "app", Refusal::BodyTooLarge);
        }
        assert_eq!(http2.ask(get("/on")).await.status, 200);
    });
    let line = gateway.wait_for_log(|line| line["event"] == "request" && line["path"] == "/on");
    let told = (&line["protocol"], &line["method"], &line["status"], &line["endpoint"]);
    assert_eq!(told, (&json!("h2"), &json!("GET"), &json!(200), &json!(backend.address.to_string())), "{line}");
}

#[test]
fn streamed_answers_and_trailers_pass() {
    let backend = Backend::start(|connection| {
        if connection.request().is_some() {
            connection.io.send(
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
                 Trailer: X-Sum\r\nKeep-Alive: timeout=5\r\n\r\n5\r\nhello\r\n",
            );
            connection.io.send("6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n");
            connection.linger();
        }
    });
    let gateway = Gateway::start(&Config::to(backend.address));
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let answer = http2.ask(get("/")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello world"));
        assert!(answer.header("keep-alive").is_none() && answer.header("transfer-encoding").is_none());
        // Trailers may be dropped (RFC 9110 §6.5.1); where they are not, they are those of the backend.
        if let Some(trailers) = answer.trailers {
            assert_eq!(trailers["x-sum"], "11");
        }
    });
}

#[test]
fn requests_that_two_readers_could_read_differently_are_refused_and_siblings_live() {
    let (backend, gateway) = start("");
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut sibling = http2.open(connect("/")).await;
        let two_lengths = get("/").header("content-length", "0").header("content-length", "00");
        for (request, refusal) in [
            (get("/a/../b"), Refusal::BadPath),
            (get("/a%2fb"), Refusal::BadPath),
            (two_lengths, Refusal::MalformedRequest),
        ] {
            let before = gateway.before();
            let answer = http2.ask(request).await;
            expect_refused(&before, &answer, "none", refusal);
        }
        let before = gateway.before();
        let differing: request::Builder = get("/").header("host", "other.example");
        assert_eq!(http2.ask(differing).await.status, 400);
        before.expect_told_over("h2", "none", Refusal::MalformedRequest, Some(400), "127.0.0.1");
        sibling.expect_echo("still here").await;
        sibling.close().await;
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_session_ends_in_good_order_or_is_reset() {
    // Told to, each backend goes on in its own way.
    let backend = Backend::start(|connection| {
        let Some(request) = connection.request() else { return };
        connection.io.send(switching_for(&request.head));
        let go = connection.io.try_frame();
        match request.head.target() {
            // A header and a part of its frame: there is no room for a Close frame.
            "/within" => connection.io.send([0x82, 10, 1, 2, 3]),
            "/between" => connection.io.send(frames::plain(TEXT, b"last")),
            _ => {}
        }
        drop(go);
    });
    let gateway = Gateway::start(&Config::to(backend.address));
    run(async {
        let mut http2 = Http2::connect(gateway.address).await;
        let mut between = http2.open(connect("/between")).await;
        between.send_frame(TEXT, "go").await;
        assert_eq!(between.frame().await.text(), "last");
        assert_eq!(between.frame().await.close_code(), Some(1012));
        between.send_frame(CLOSE, 1012u16.to_be_bytes()).await;
        assert_eq!(between.end().await, End::Stream);
        between.finish();

        let mut within = http2.open(connect("/within")).await;
        within.send_frame(TEXT, "go").await;
        assert_eq!(within.end().await, End::Reset(Some(Reason::CANCEL)));
        assert_eq!(gateway.metric("sluicegate_closes_total", &[("cause", "upstream_gone")]), 2.0);

        // A client that resets its stream is gone, and its upstream is told.
        let mark = gateway.mark();
        let mut gone = http2.open(connect("/gone")).await;
        gone.out.send_reset(Reason::CANCEL);
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "session");
        assert_eq!((&line["cause"], &line["close_code"]), (&json!("client_gone"), &json!(1006)), "{line}");
    });
}

#[test]
fn a_preface_may_come_in_pieces_and_what_only_begins_as_one_is_http1() {
    let (_backend, gateway) = start("");
    let mut client = gateway.connect();
    for byte in crate::support::http2::HELLO {
        client.send([*byte]);
    }
    client.send(crate::support::http2::raw_headers(
        1,
        &[(":method", "GET"), (":scheme", "http"), (":authority", "app.example"), (":path", "/")],
    ));
    assert_eq!(client.raw_reset(1), None, "it is answered");
    gateway.expect_refused_unruled("PRI * HTTP/2.0\r\n\r\nSN", Refusal::MalformedRequest);
    gateway.expect_refused_unruled("PRX / HTTP/1.1\r\n\r\n", Refusal::BadHost);
    let mut client = gateway.connect();
    client.send("PRI / HTTP/1.1\r\nHost: app.example\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    // Only the first request may be something else.
    client.send(crate::support::http2::HELLO);
    assert_eq!(client.answer().status(), 400);
}

#[test]
fn http2_can_be_switched_off() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).listener("http2: false"));
    gateway.expect_refused_unruled(crate::support::http2::HELLO, Refusal::MalformedRequest);
    assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n").status(), 200);
}
