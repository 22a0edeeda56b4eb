//! TLS listeners: which certificate a client gets, which clients are served, and files that change under live sessions.

use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;
use sluicegate::cause::Refusal;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use crate::support::refusal::check_answer;
use crate::support::tls::Speaks;
use crate::support::{Backend, Config, Gateway, Pki, upgrade};

/// A gateway with these keys of `tls`, before an echoing backend.
fn start(tls: &str, listener: &str) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).listener(&format!("tls: {{ {tls} }}{listener}")));
    (backend, gateway)
}

fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("a", &["a.example", "app.example"]).issue("b", &["b.example", "*.c.example"]);
    pki
}

#[test]
fn sessions_and_plain_requests_are_served_over_both_versions() {
    let pki = pki();
    let (backend, gateway) = start(&pki.listener(&["a"]), "");
    for (number, only) in [&TLS12, &TLS13].into_iter().enumerate() {
        let speaks = Speaks { only: Some(only), alpn: &["http/1.1"], ..Speaks::default() };
        let client = pki.try_connect(gateway.address, "app.example", speaks).expect("a handshake");
        let mut client = gateway.session_over(client);
        client.expect_echo("hello");
        client.expect_echo(&"long ".repeat(50_000));
        client.close();
        let seen = backend.wait_for_request(2 * number + 1).head;
        assert_eq!(seen.one("x-forwarded-proto"), Some("https"));

        let mut client = pki.connect(gateway.address, "app.example");
        client.send("GET /one HTTP/1.1\r\nHost: app.example\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
        assert_eq!(backend.wait_for_request(2 * number + 2).head.one("x-forwarded-proto"), Some("https"));
        client.send("GET /two HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
        client.expect_end();
    }
}

#[test]
fn the_certificate_is_chosen_by_name_and_the_first_is_for_all_others() {
    let pki = pki();
    let (_backend, gateway) = start(&pki.listener(&["a", "b"]), "");
    for name in ["a.example", "b.example", "x.c.example"] {
        // The client verifies that it is shown a certificate of this name.
        assert!(pki.try_connect(gateway.address, name, Speaks::default()).is_ok(), "{name}");
    }
    // Nobody has this name, so the first certificate is shown, and a client that looks refuses it.
    let mark = gateway.mark();
    let error = pki.try_connect(gateway.address, "other.example", Speaks::default()).map(|_| ()).expect_err("a name");
    assert!(error.to_string().contains("a.example"), "{error}");
    let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
    assert_eq!(
        (&line["cause"], &line["detail"]),
        (&"tls_handshake".into(), &"the peer refused our certificate".into())
    );
}

#[test]
fn a_handshake_that_fails_is_one_line_and_one_count_and_no_answer() {
    let pki = pki();
    let (_backend, gateway) = start(&format!("{}, min_version: \"1.3\"", pki.listener(&["a"])), "");
    let before = gateway.before();
    let speaks = Speaks { only: Some(&TLS12), ..Speaks::default() };
    assert!(pki.try_connect(gateway.address, "a.example", speaks).is_err());
    let line = before.expect_told("none", Refusal::TlsHandshake, None, "127.0.0.1");
    assert_eq!(line["detail"], "no version of TLS, cipher suite or group in common");

    let before = gateway.before();
    let speaks = Speaks { alpn: &["h3"], ..Speaks::default() };
    assert!(pki.try_connect(gateway.address, "a.example", speaks).is_err());
    let line = before.expect_told("none", Refusal::TlsHandshake, None, "127.0.0.1");
    assert_eq!(line["detail"], "no application protocol in common");

    // A hello of TLS 1.1, with one cipher suite and no extension.
    let random = [7; 32];
    let body = [&[3, 2][..], &random, &[0, 0, 2, 0xc0, 0x13, 1, 0]].concat();
    let hello = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    let record = [&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat();
    for bytes in [&record[..], b"\x16\x03\x01\x00\x05nonsense", b"\x00\x01\x02"] {
        let before = gateway.before();
        let mut client = gateway.connect();
        client.send(bytes);
        client.read_to_any_end();
        before.expect_told("none", Refusal::TlsHandshake, None, "127.0.0.1");
    }
}

#[test]
fn a_request_in_the_clear_is_told_so() {
    let pki = pki();
    let (_backend, gateway) = start(&pki.listener(&["a"]), "");
    let answer = gateway.expect_refused_unruled(upgrade("/", ""), Refusal::CleartextOnTls);
    check_answer(&answer, Refusal::CleartextOnTls);
}

#[test]
fn a_slow_handshake_is_cut_at_the_deadline_of_the_head_and_a_silent_connection_too() {
    let pki = pki();
    let (_backend, gateway) = start(&pki.listener(&["a"]), ", head: { timeout: 500ms }");
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b""] {
        let before = gateway.before();
        let mut client = gateway.connect();
        client.drip(bytes, Duration::from_millis(100));
        client.expect_end();
        let line = before.expect_told("none", Refusal::TlsHandshake, None, "127.0.0.1");
        assert_eq!(line["detail"], "the TLS handshake was not complete in time");
    }
    // Behind the handshake the same deadline is the head's, and there is an answer to read.
    let before = gateway.before();
    let mut client = pki.connect(gateway.address, "a.example");
    client.send("GET / HT");
    let answer = client.answer();
    check_answer(&answer, Refusal::HeadTimeout);
    before.expect_told("none", Refusal::HeadTimeout, Some(408), "127.0.0.1");
}

#[test]
fn client_certificates_are_required_or_optional_and_told_to_the_backend_only_as_verified() {
    let pki = pki();
    pki.issue("client", &["client.example"]);
    Pki::new().issue_to(&pki.path(""), "foreign", &["client.example"]);
    let expected = format!(":{}:", base64::engine::general_purpose::STANDARD.encode(pki.der("client")));
    let forged = "Client-Cert: :Zm9yZ2Vk:\r\nClient-Cert-Chain: :Zm9yZ2Vk:\r\n";
    for (auth, optional) in [("", false), (", client_auth: optional", true)] {
        let tls = format!("{}, client_ca_file: \"{}\"{auth}", pki.listener(&["a"]), pki.ca());
        let (backend, gateway) = start(&tls, "");
        for only in [&TLS12, &TLS13] {
            let speaks = Speaks { identity: Some("client"), only: Some(only), ..Speaks::default() };
            let mut client = pki.try_connect(gateway.address, "a.example", speaks).expect("a handshake");
            client.send(upgrade("/", forged));
            assert_eq!(client.answer_head().status(), 101);
            client.close();
            let mut client = pki.try_connect(gateway.address, "a.example", speaks).expect("a handshake");
            client.send(format!("GET /plain HTTP/1.1\r\nHost: a.example\r\n{forged}\r\n"));
            assert_eq!(client.answer().status(), 200);
        }
        let requests = backend.requests();
        assert_eq!(requests.len(), 4);
        for request in &requests {
            assert_eq!(request.head.one("client-cert"), Some(&*expected));
            assert_eq!(request.head.one("client-cert-chain"), None);
        }
        // Without a certificate.
        let mark = gateway.mark();
        let mut client = pki.connect(gateway.address, "a.example");
        let sent = client.try_send(upgrade("/", forged));
        let served = sent && client.head_if_any().is_some_and(|head| head.status() == 101);
        assert_eq!(served, optional);
        if optional {
            assert_eq!(backend.wait_for_request(5).head.one("client-cert"), None);
        } else {
            let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
            assert_eq!(line["detail"], "the peer presented no certificate");
        }
        // One of another CA is refused in both cases.
        let mark = gateway.mark();
        let speaks = Speaks { identity: Some("foreign"), ..Speaks::default() };
        let mut client = pki.try_connect(gateway.address, "a.example", speaks).expect("the client's part of it");
        client.try_send(upgrade("/", ""));
        assert!(client.head_if_any().is_none());
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
        assert_eq!(line["detail"], "the certificate is issued by no CA that is trusted here");
    }
}

#[test]
fn a_forged_client_cert_does_not_pass_a_cleartext_listener_either() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).more("trusted_proxies: [127.0.0.1]"));
    gateway.ask("GET / HTTP/1.1\r\nHost: app.example\r\nClient-Cert: :Zm9yZ2Vk:\r\n\r\n");
    assert_eq!(backend.wait_for_request(1).head.one("client-cert"), None);
}

#[test]
fn an_http_origin_is_not_the_same_over_tls() {
    let pki = pki();
    let (_backend, gateway) = start(&pki.listener(&["a"]), "");
    let gateway = &gateway;
    for (origin, status) in
        [("https://app.example", 101), ("https://app.example:443", 101), ("http://app.example", 403)]
    {
        // Not even a hop that is trusted makes it so.
        let mut client = pki.connect(gateway.address, "app.example");
        client.send(upgrade("/", &format!("Origin: {origin}\r\nX-Forwarded-Proto: http\r\n")));
        assert_eq!(client.answer_head().status(), status, "{origin}");
    }
}

#[test]
fn the_sticky_cookie_is_secure_over_tls() {
    let pki = pki();
    let backend = Backend::echoing();
    let config = Config::to(backend.address)
        .listener(&format!("tls: {{ {} }}", pki.listener(&["a"])))
        .rule("sticky: { cookie: {} }");
    let gateway = Gateway::start(&config);
    let mut client = pki.connect(gateway.address, "app.example");
    client.send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
    let answer = client.answer();
    assert!(answer.head.one("set-cookie").is_some_and(|cookie| cookie.contains("; Secure")), "{:?}", answer.head);
}

/// The metric of certificates that were read again.
fn reloads(gateway: &Gateway, result: &str) -> f64 {
    let labels = [("kind", "listener"), ("name", "public"), ("result", result)];
    gateway.metric("sluicegate_tls_reloads_total", &labels)
}

fn event(line: &Value, name: &str) -> bool {
    line["event"] == name && line["listener"] == "public"
}

#[test]
fn a_renewed_certificate_is_taken_while_a_session_lives_and_a_faulty_one_is_not() {
    let (pki, next) = (pki(), pki());
    let (_backend, gateway) = start(&pki.listener(&["a"]), "");
    let mut old = gateway.session_over(pki.connect(gateway.address, "app.example"));
    let mark = gateway.mark();
    std::fs::write(pki.path("a.key"), "no key").expect("written");
    let line = gateway.wait_for_log_since(mark, |line| event(line, "tls_reload_failed"));
    assert_eq!(line["level"], "error");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("a.key: it has no private key")), "{line}");
    assert_eq!((reloads(&gateway, "failed"), reloads(&gateway, "ok")), (1.0, 0.0));
    gateway.session_over(pki.connect(gateway.address, "app.example")).close();

    // Of another CA, so that a client can tell.
    let mark = gateway.mark();
    for name in ["a.crt", "a.key"] {
        std::fs::rename(next.path(name), pki.path(name)).expect("replaced");
    }
    gateway.wait_for_log_since(mark, |line| event(line, "tls_reloaded"));
    assert!(reloads(&gateway, "ok") >= 1.0);
    gateway.session_over(next.connect(gateway.address, "app.example")).close();
    assert!(pki.try_connect(gateway.address, "app.example", Speaks::default()).is_err());
    old.expect_echo("still there");
    old.close();
}

#[test]
fn a_swapped_symlink_is_taken_as_kubernetes_swaps_it() {
    let (pki, next) = (pki(), pki());
    for (ca, folder) in [(&pki, "one"), (&next, "two")] {
        std::fs::create_dir(pki.path(folder)).expect("a folder");
        ca.issue_to(&pki.path(folder), "tls", &["app.example"]);
    }
    symlink("one", pki.path("..data")).expect("a symlink");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), pki.path(name)).expect("a symlink");
    }
    let (_backend, gateway) = start(&pki.listener(&["tls"]), "");
    let mut old = gateway.session_over(pki.connect(gateway.address, "app.example"));
    let mark = gateway.mark();
    symlink("two", pki.path("..data_tmp")).expect("a symlink");
    std::fs::rename(pki.path("..data_tmp"), pki.path("..data")).expect("swapped");
    gateway.wait_for_log_since(mark, |line| event(line, "tls_reloaded"));
    gateway.session_over(next.connect(gateway.address, "app.example")).close();
    old.expect_echo("still there");
    old.close();
    assert_eq!(reloads(&gateway, "failed"), 0.0);
}

#[test]
fn the_proxy_protocol_comes_before_tls() {
    let pki = pki();
    let backend = Backend::echoing();
    let listener = format!("tls: {{ {} }}, client_address: proxy_protocol", pki.listener(&["a"]));
    let gateway = Gateway::start(&Config::to(backend.address).listener(&listener).more("trusted_proxies: [127.0.0.1]"));
    let version_2 =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"[..], &[203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb]].concat();
    for header in [version_2, b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n".to_vec()] {
        let mark = gateway.mark();
        let mut stream = TcpStream::connect(gateway.address).expect("it takes connections");
        std::io::Write::write_all(&mut stream, &header).expect("sent");
        let client = pki.handshake(stream, "app.example", Speaks::default()).expect("a handshake");
        let mut client = gateway.session_over(client);
        client.expect_echo("hello");
        client.close();
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "session");
        assert_eq!((&line["client_ip"], &line["peer_ip"]), (&"203.0.113.7".into(), &"127.0.0.1".into()));
    }
    // TLS without it is refused as any other connection without it.
    let before = gateway.before();
    assert!(pki.try_connect(gateway.address, "app.example", Speaks::default()).is_err());
    before.expect_told("none", Refusal::ProxyHeader, None, "127.0.0.1");
    // In one segment with the hello.
    let mark = gateway.mark();
    let mut stream = TcpStream::connect(gateway.address).expect("it takes connections");
    let bytes = [&b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 443\r\n"[..], b"\x16\x03\x01\x00\x05nonsense"].concat();
    std::io::Write::write_all(&mut stream, &bytes).expect("sent");
    let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
    assert_eq!((&line["cause"], &line["client_ip"]), (&"tls_handshake".into(), &"203.0.113.9".into()));
}

#[test]
fn an_early_byte_and_a_client_that_goes_away_are_seen_under_tls() {
    let pki = pki();
    let backend = Backend::hanging();
    let gateway =
        Gateway::start(&Config::to(backend.address).listener(&format!("tls: {{ {} }}", pki.listener(&["a"]))));
    for (number, early) in [(1, true), (2, false)] {
        let before = gateway.before();
        let mut client = pki.connect(gateway.address, "app.example");
        client.send(upgrade("/", ""));
        backend.wait_for_request(number);
        if early {
            client.send("x");
            check_answer(&client.answer(), Refusal::EarlyData);
            before.expect_told("app", Refusal::EarlyData, Some(400), "127.0.0.1");
        } else {
            client.finish();
            before.expect_told("app", Refusal::ClientGone, None, "127.0.0.1");
        }
    }
}

#[test]
fn a_session_ends_with_its_close_frame_and_the_end_of_tls() {
    let pki = pki();
    let (_backend, gateway) = start(&pki.listener(&["a"]), "");
    let mut client = gateway.session_over(pki.connect(gateway.address, "app.example"));
    // Unmasked: the protocol is broken.
    client.send([0x81, 0x00]);
    let close = client.frame();
    assert_eq!(close.close_code(), Some(1002));
    // An end without close_notify would be an error of the read.
    client.expect_end();
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!((&line["cause"], &line["close_sent"]), (&"client_protocol".into(), &1002.into()));
}
