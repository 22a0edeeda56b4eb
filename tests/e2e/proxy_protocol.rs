//! The PROXY protocol: whom a hop names is the client everywhere, and nobody else may name one.

use std::time::Duration;

use sluicegate::cause::Refusal;

use crate::support::{Backend, Client, Config, Gateway, upgrade};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn start(more: &str) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let config = Config::to(backend.address)
        .listener("client_address: proxy_protocol, head: { timeout: 500ms }")
        .rule("connections: { per_ip: 2 }")
        .more(&format!("trusted_proxies: [127.0.0.1]\n{more}"));
    let gateway = Gateway::start(&config);
    (backend, gateway)
}

fn version_1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 10.0.0.1 56324 443\r\n").into_bytes()
}

fn version_2(command: u8, client: [u8; 4]) -> Vec<u8> {
    [SIGNATURE, &[0x20 | command, 0x11, 0, 12], &client, &[10, 0, 0, 1, 1, 2, 3, 4]].concat()
}

/// A session behind a header; `pieces` says how the bytes are cut.
fn session(gateway: &Gateway, header: &[u8], pieces: usize) -> (Client, u16) {
    let mut client = gateway.connect();
    let lines = "X-Forwarded-For: 9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\n\
                 X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n";
    for piece in [header, upgrade("/", lines).as_bytes()].concat().chunks(pieces) {
        client.send(piece);
    }
    let status = client.answer_head().status();
    (client, status)
}

#[test]
fn the_named_client_counts_for_limits_logs_and_the_backend_and_headers_do_not() {
    for header in [version_1("203.0.113.7"), version_2(1, [203, 0, 113, 7])] {
        for pieces in [usize::MAX, 1] {
            let (backend, gateway) = start("");
            let (mut first, _) = session(&gateway, &header, pieces);
            first.expect_echo("hello");
            let seen = backend.wait_for_request(1).head;
            for (name, value) in [
                ("x-forwarded-for", Some("203.0.113.7")),
                ("x-real-ip", Some("203.0.113.7")),
                ("x-forwarded-proto", Some("http")),
                ("x-forwarded-host", Some("app.example")),
                ("forwarded", None),
            ] {
                assert_eq!(seen.one(name), value, "{name}");
            }
            let _second = session(&gateway, &header, pieces);
            let (_, status) = session(&gateway, &header, pieces);
            assert_eq!(status, 429);
            // Another client behind the same hop has places of its own.
            let (_, status) = session(&gateway, &version_1("203.0.113.8"), pieces);
            assert_eq!(status, 101);
            first.close();
            let line = gateway.wait_for_log(|line| line["event"] == "session" && line["messages_in"] == 1);
            assert_eq!((&line["client_ip"], &line["peer_ip"]), (&"203.0.113.7".into(), &"127.0.0.1".into()));
        }
    }
}

#[test]
fn a_hop_that_speaks_for_itself_is_the_client() {
    let (_backend, gateway) = start("");
    for header in [version_2(0, [203, 0, 113, 7]), b"PROXY UNKNOWN\r\n".to_vec()] {
        let (mut client, status) = session(&gateway, &header, usize::MAX);
        assert_eq!(status, 101);
        client.expect_echo("hello");
        client.close();
        let line = gateway.wait_for_log(|line| line["event"] == "session");
        assert_eq!(line["client_ip"], "127.0.0.1");
    }
}

#[test]
fn requests_one_after_another_keep_the_client_of_their_connection() {
    let (backend, gateway) = start("");
    let mut client = gateway.connect();
    client.send(version_1("203.0.113.7"));
    for number in 1..=2 {
        client.send("GET /plain HTTP/1.1\r\nHost: app.example\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
        assert_eq!(backend.wait_for_request(number).head.one("x-real-ip"), Some("203.0.113.7"));
    }
    // Only in front of the first request is it a header.
    client.send(version_1("203.0.113.8"));
    assert_eq!(client.answer().status(), 400);
}

#[test]
fn anything_but_a_sound_header_of_a_trusted_peer_is_closed_without_an_answer() {
    let (backend, gateway) = start("");
    for bad in [
        upgrade("/", "").into_bytes(),
        b"PROXY TCP4 203.0.113.256 10.0.0.1 56324 443\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7".to_vec(),
        [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(),
        version_2(1, [203, 0, 113, 7])[..20].to_vec(),
        [SIGNATURE, &[0x21, 0x11, 0xff, 0xff], &[0; 5000]].concat(),
    ] {
        let before = gateway.before();
        let mut client = gateway.connect();
        client.send(&bad);
        client.expect_end();
        before.expect_told("none", Refusal::ProxyHeader, None, "127.0.0.1");
    }
    // A header that trickles in has one deadline.
    let before = gateway.before();
    let mut client = gateway.connect();
    client.drip(&version_1("203.0.113.7")[..8], Duration::from_millis(100));
    client.expect_end();
    before.expect_told("none", Refusal::ProxyHeader, None, "127.0.0.1");
    let before = gateway.before();
    let mut client = gateway.connect_from("127.0.0.2");
    client.try_send(version_1("203.0.113.7"));
    client.expect_end();
    before.expect_told("none", Refusal::ProxyHeader, None, "127.0.0.2");
    assert_eq!(backend.connections(), 0);
}
