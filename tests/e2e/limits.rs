//! Limits per client and in total: whom they count, whom they spare, and that places come back.

use serde_json::json;
use sluicegate::cause::Refusal;

use crate::support::refusal::check_answer;
use crate::support::{Backend, Client, Config, Gateway, upgrade};

/// A rate that a test passes at once, and that gives a place back after a second.
const WRITTEN_RATE: &str = "handshake: { per_ip: { rate: 1/s, burst: 3 } }";

fn start(config: impl Fn(Config) -> Config) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&config(Config::to(backend.address)));
    (backend, gateway)
}

/// The answer to a handshake from this address.
fn status_from(gateway: &Gateway, source: &str, lines: &str) -> u16 {
    let mut client = gateway.connect_from(source);
    client.send(upgrade("/", lines));
    let head = client.answer_head();
    head.status()
}

/// Handshakes from this address until one is refused.
fn exhaust(gateway: &Gateway, source: &str) -> u16 {
    (0..1000).map(|_| status_from(gateway, source, "")).find(|status| *status != 101).expect("the rate is limited")
}

fn decisions(gateway: &Gateway, policy: &str, decision: &str) -> f64 {
    let labels = [("rule", "app"), ("policy", policy), ("decision", decision)];
    gateway.metric("sluicegate_policy_decisions_total", &labels)
}

fn session_with(gateway: &Gateway, source: &str, lines: &str) -> Option<Client> {
    gateway.try_session(gateway.connect_from(source), lines)
}

#[test]
fn the_rate_of_one_client_does_not_touch_another() {
    let (_backend, gateway) = start(|config| config.rule(WRITTEN_RATE));
    let accepted = (0..3).filter(|_| status_from(&gateway, "127.0.0.2", "") == 101).count();
    assert_eq!(accepted, 3, "the burst");
    assert_eq!(exhaust(&gateway, "127.0.0.2"), 429);
    assert_eq!(status_from(&gateway, "127.0.0.3", ""), 101);
    let line = gateway.wait_for_log(|line| line["cause"] == "handshake_rate");
    assert_eq!((&line["client_ip"], &line["status"]), (&json!("127.0.0.2"), &json!(429)), "{line}");
    assert_eq!(decisions(&gateway, "handshake_rate", "refused"), 1.0);
    assert_eq!(decisions(&gateway, "handshake_rate", "would_refuse"), 0.0);
}

#[test]
fn a_refused_client_is_told_when_to_come_back_and_may() {
    let (_backend, gateway) = start(|config| config.rule(WRITTEN_RATE));
    assert_eq!(exhaust(&gateway, "127.0.0.2"), 429);
    loop {
        let mut client = gateway.connect_from("127.0.0.2");
        client.send(upgrade("/", ""));
        let answer = client.answer();
        if answer.status() == 101 {
            break;
        }
        // At one a second no one waits for longer, and a wait of nothing is none.
        assert_eq!(answer.head.one("retry-after"), Some("1"));
        gateway.pause();
    }
}

#[test]
fn refused_handshakes_count_against_their_client_too() {
    let (_backend, gateway) = start(|config| config.rule(WRITTEN_RATE));
    let foreign = "Origin: http://evil.example\r\n";
    let refused = (0..1000).map(|_| status_from(&gateway, "127.0.0.2", foreign)).find(|status| *status != 403);
    assert_eq!(refused, Some(429));
}

#[test]
fn sessions_of_one_client_do_not_touch_another() {
    let (_backend, gateway) = start(|config| config.rule("connections: { per_ip: 2 }"));
    let first = session_with(&gateway, "127.0.0.2", "").expect("a place");
    let _second = session_with(&gateway, "127.0.0.2", "").expect("a place");
    let before = gateway.before();
    let mut third = gateway.connect_from("127.0.0.2");
    third.send(upgrade("/", ""));
    before.expect(&mut third, "app", Refusal::ConnectionsPerIp);
    let _other = session_with(&gateway, "127.0.0.3", "").expect("a place of its own");
    gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 3.0);
    first.close();
    gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 2.0);
    assert!(session_with(&gateway, "127.0.0.2", "").is_some(), "a place came back");
}

#[test]
fn a_place_comes_back_however_a_handshake_or_session_ends() {
    let backend = Backend::start(|connection| {
        let Some(request) = connection.request() else { return };
        match request.head.target() {
            "/no" => connection.io.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
            "/bad" => connection.io.send("HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            "/gone" => {}
            "/hang" => connection.linger(),
            _ => {
                connection.io.send(crate::support::switching(""));
                connection.echo();
            }
        }
    });
    let rule = "connections: { total: 1, per_ip: 1 }, handshake: { upstream_timeout: 300ms }";
    let gateway = Gateway::start(&Config::to(backend.address).rule(rule).more("limits: { connections: 1 }"));
    for (path, status) in [("/no", 401), ("/bad", 502), ("/gone", 502), ("/hang", 504), ("/", 101), ("/", 101)] {
        assert_eq!(gateway.ask(&upgrade(path, "")).status(), status, "{path}");
        // A session that was cut ends a moment after its client is gone.
        gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 0.0);
        gateway.wait_for_metric("sluicegate_upstream_connections", &[("upstream", "app")], 0.0);
    }
    assert_eq!(
        gateway.metric("sluicegate_policy_decisions_total", &[("decision", "refused"), ("policy", "process")]),
        0.0
    );
}

#[test]
fn totals_count_all_clients() {
    for (config, refusal) in [
        (Config::to("127.0.0.1:9").rule("connections: { total: 2 }"), Refusal::ConnectionsTotal),
        (Config::to("127.0.0.1:9").more("limits: { connections: 2 }"), Refusal::ProcessConnections),
    ] {
        let backend = Backend::echoing();
        let gateway = Gateway::start(&config.endpoint(backend.address));
        let first = session_with(&gateway, "127.0.0.2", "").expect("a place");
        let _second = session_with(&gateway, "127.0.0.3", "").expect("a place");
        let before = gateway.before();
        let mut third = gateway.connect_from("127.0.0.4");
        third.send(upgrade("/", ""));
        before.expect(&mut third, "app", refusal);
        first.close();
        gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 1.0);
        assert!(session_with(&gateway, "127.0.0.4", "").is_some(), "a place came back");
    }
}

#[test]
fn the_default_rate_spares_a_loopback_peer_and_says_so_once() {
    let (_backend, gateway) = start(|config| config);
    for _ in 0..1000 {
        assert_eq!(status_from(&gateway, "127.0.0.2", ""), 101);
        if decisions(&gateway, "handshake_rate", "would_refuse") >= 3.0 {
            break;
        }
    }
    assert!(decisions(&gateway, "handshake_rate", "would_refuse") >= 3.0);
    assert_eq!(decisions(&gateway, "handshake_rate", "refused"), 0.0);
    let warns =
        |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains("trusted_proxies"));
    let line = gateway.wait_for_log(warns);
    let message = line["message"].as_str().unwrap_or_default();
    assert_eq!(line["level"], "warn");
    assert!(message.contains("client_address") && message.contains("127.0.0.2"), "{line}");
    assert_eq!(gateway.lines().iter().filter(|line| warns(line)).count(), 1);
}

#[test]
fn the_default_number_of_sessions_spares_a_loopback_peer() {
    let (_backend, gateway) = start(|config| config.rule("handshake: { per_ip: off }"));
    let sessions: Vec<_> = (0..205).map(|_| session_with(&gateway, "127.0.0.2", "").expect("not enforced")).collect();
    assert_eq!(decisions(&gateway, "connections_per_ip", "would_refuse"), 5.0);
    assert_eq!(decisions(&gateway, "connections_per_ip", "refused"), 0.0);
    drop(sessions);
}

#[test]
fn the_defaults_hold_for_clients_that_a_trusted_proxy_names() {
    let (_backend, gateway) = start(|config| config.more("trusted_proxies: [127.0.0.0/8]"));
    let lines = "X-Forwarded-For: 203.0.113.1\r\n";
    let mut sessions = Vec::new();
    loop {
        match session_with(&gateway, "127.0.0.2", lines) {
            Some(session) => sessions.push(session),
            None => break,
        }
        assert!(sessions.len() <= 1000, "the rate is limited");
    }
    assert!(sessions.len() >= 20, "the default burst is 20, not {}", sessions.len());
    let line = gateway.wait_for_log(|line| line["event"] == "refusal");
    assert_eq!((&line["client_ip"], &line["peer_ip"]), (&json!("203.0.113.1"), &json!("127.0.0.2")), "{line}");
    assert_eq!(line["cause"], "handshake_rate", "{line}");
    // The proxy's other clients are not refused.
    assert_eq!(status_from(&gateway, "127.0.0.2", "X-Forwarded-For: 203.0.113.2\r\n"), 101);
}

#[test]
fn clients_behind_a_trusted_proxy_are_counted_by_address_and_ipv6_by_its_64() {
    let (_backend, gateway) =
        start(|config| config.rule("connections: { per_ip: 1 }").more("trusted_proxies: [127.0.0.1]"));
    let client = |address: &str| session_with(&gateway, "127.0.0.1", &format!("X-Forwarded-For: {address}\r\n"));
    let first = client("2001:db8:0:1::1").expect("a place");
    let before = gateway.before();
    let mut second = gateway.connect();
    second.send(upgrade("/", "X-Forwarded-For: 2001:db8:0:1:ffff::2\r\n"));
    let answer = second.answer();
    check_answer(&answer, Refusal::ConnectionsPerIp);
    before.expect_told("app", Refusal::ConnectionsPerIp, Some(429), "2001:db8:0:1:ffff::2");
    let _other = client("2001:db8:0:2::1").expect("another network");
    let _v4 = client("203.0.113.1").expect("another client");
    assert!(client("::ffff:203.0.113.1").is_none(), "the same client in another form");
    let _v4_neighbour = client("203.0.113.2").expect("another client");
    // A client cannot choose its place by what it says of itself to the proxy.
    assert!(client("192.0.2.66, 203.0.113.1").is_none(), "the right-most address counts");
    first.close();
    gateway.wait_for_log(|line| line["event"] == "session");
    gateway.wait_for_metric("sluicegate_connections", &[("rule", "app")], 3.0);
    assert!(client("2001:db8:0:1::3").is_some(), "a place came back");
}

#[test]
fn what_an_untrusted_peer_says_of_its_client_is_not_counted() {
    let (_backend, gateway) = start(|config| config.rule("connections: { per_ip: 1 }"));
    let _first = session_with(&gateway, "127.0.0.2", "X-Forwarded-For: 203.0.113.1\r\n").expect("a place");
    assert!(session_with(&gateway, "127.0.0.2", "X-Forwarded-For: 203.0.113.2\r\n").is_none());
}
