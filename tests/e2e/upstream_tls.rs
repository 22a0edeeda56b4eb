//! TLS to upstreams: whose certificate is believed, and which one is presented, for sessions and for plain requests.

use crate::support::backend::Connection;
use crate::support::{Backend, Config, Gateway, Pki};

fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("backend", &["backend.example"]).issue("client", &["gateway.example"]);
    pki
}

/// A gateway before a backend under TLS, with these keys of `tls`.
fn start(backend: &Backend, tls: &str) -> Gateway {
    Gateway::start(&Config::to(backend.address).upstream(&format!("tls: {{ {tls} }}")))
}

fn plain(gateway: &Gateway) -> u16 {
    gateway.ask("GET /plain HTTP/1.1\r\nHost: app.example\r\n\r\n").status()
}

#[test]
fn sessions_and_plain_requests_reach_a_backend_under_tls() {
    let pki = pki();
    let backend = pki.backend("backend", false, Connection::serve);
    let gateway = start(&backend, &format!("sni: backend.example, ca_file: \"{}\"", pki.ca()));
    let mut client = gateway.session();
    client.expect_echo("hello");
    client.expect_echo(&"long ".repeat(50_000));
    client.close();
    let mut client = gateway.connect();
    for body in ["one", "two"] {
        client.send(format!("POST /plain HTTP/1.1\r\nHost: app.example\r\nContent-Length: 3\r\n\r\n{body}"));
        assert_eq!(client.answer().body_text(), body);
    }
    // The second plain request found the connection of the first in the pool.
    assert_eq!(backend.connections(), 2);
    assert_eq!(backend.wait_for_request(1).head.one("host"), Some("app.example"));
}

#[test]
fn a_certificate_that_cannot_be_verified_is_502_and_the_log_says_why() {
    let (pki, other) = (pki(), Pki::new());
    for (tls, detail) in [
        (
            format!("sni: backend.example, ca_file: \"{}\"", other.ca()),
            "the certificate is issued by no CA that is trusted here",
        ),
        (format!("sni: other.example, ca_file: \"{}\"", pki.ca()), "the certificate is for another name"),
        // Its own host, which is an address.
        (format!("ca_file: \"{}\"", pki.ca()), "the certificate is for another name"),
    ] {
        let backend = pki.backend("backend", false, Connection::serve);
        let gateway = start(&backend, &tls);
        let mark = gateway.mark();
        assert_eq!(gateway.ask_for_session().status(), 502);
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
        assert_eq!((&line["cause"], &line["detail"]), (&"upstream_unreachable".into(), &detail.into()), "{line}");
        let mark = gateway.mark();
        assert_eq!(plain(&gateway), 502);
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
        assert_eq!(line["detail"], "the certificate is not valid here", "{line}");
        assert!(backend.requests().is_empty(), "nothing was sent");
    }
}

#[test]
fn a_backend_that_wants_a_certificate_gets_ours() {
    let pki = pki();
    let backend = pki.backend("backend", true, Connection::serve);
    let ours = format!("sni: backend.example, ca_file: \"{}\", {}", pki.ca(), pki.files("client"));
    let gateway = start(&backend, &ours);
    gateway.session().expect_echo("hello");
    assert_eq!(plain(&gateway), 200);
    let without = start(&backend, &format!("sni: backend.example, ca_file: \"{}\"", pki.ca()));
    assert_eq!(without.ask_for_session().status(), 502);
    assert_eq!(plain(&without), 502);
}

#[test]
fn an_address_is_verified_as_one_and_a_name_by_itself() {
    let pki = pki();
    pki.issue("address", &["127.0.0.1"]).issue("local", &["localhost"]);
    let backend = pki.backend("address", false, Connection::serve);
    let gateway = start(&backend, &format!("ca_file: \"{}\"", pki.ca()));
    gateway.session().expect_echo("hello");
    assert_eq!(plain(&gateway), 200);
    let backend = pki.backend("local", false, Connection::serve);
    let config = Config::to(format!("localhost:{}", backend.address.port()))
        .upstream(&format!("tls: {{ ca_file: \"{}\" }}", pki.ca()));
    let gateway = Gateway::start(&config);
    gateway.session().expect_echo("hello");
    assert_eq!(plain(&gateway), 200);
}

#[test]
fn cleartext_behind_tls_is_502() {
    let pki = pki();
    let backend = Backend::start(|connection| {
        connection.io.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        connection.io.read_to_any_end();
    });
    let gateway = start(&backend, &format!("sni: backend.example, ca_file: \"{}\"", pki.ca()));
    assert_eq!(gateway.ask_for_session().status(), 502);
    let line = gateway.wait_for_log(|line| line["event"] == "refusal");
    assert_eq!(line["detail"], "what the peer sent is no TLS");
    assert_eq!(plain(&gateway), 502);
}

#[test]
fn a_renewed_ca_is_taken() {
    let (old, new) = (pki(), pki());
    let backend = new.backend("backend", false, Connection::serve);
    let gateway = start(&backend, &format!("sni: backend.example, ca_file: \"{}\"", old.ca()));
    assert_eq!(plain(&gateway), 502);
    let mark = gateway.mark();
    std::fs::copy(new.path("ca.crt"), old.path("ca.crt")).expect("copied");
    gateway.wait_for_log_since(mark, |line| line["event"] == "tls_reloaded" && line["upstream"] == "app");
    assert_eq!(plain(&gateway), 200);
    gateway.session().expect_echo("hello");
}
