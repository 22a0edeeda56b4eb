//! Unix sockets, as listeners and as upstreams: what is the same as over TCP, and what a peer without an address changes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::support::backend::Connection;
use crate::support::{Backend, Client, Config, Gateway, gateway, upgrade};

/// A folder for sockets, and the path of one that clients connect to and of one that a backend listens on.
fn paths() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let (front, back) = (folder.path().join("front.sock"), folder.path().join("back.sock"));
    (folder, front, back)
}

fn listening_on(config: Config, path: &Path, keys: &str) -> Config {
    config.other_listener(&format!("name: local, bind: \"unix:{}\"{keys}", path.display()))
}

/// Starts a gateway and waits until the Unix socket takes connections.
fn start(config: &Config, path: &Path) -> Gateway {
    let gateway = Gateway::start(config);
    let line = gateway.wait_for_log(|line| line["event"] == "listening" && line["listener"] == "local");
    assert_eq!(line["address"], json!(format!("unix:{}", path.display())));
    gateway
}

#[test]
fn sessions_and_plain_requests_pass_from_one_unix_socket_to_another() {
    let (_folder, front, back) = paths();
    let backend = Backend::on_unix(&back, Connection::serve);
    let config = listening_on(Config::to(format!("unix:{}", back.display())), &front, "");
    let gateway = start(&config, &front);
    let mut client = gateway.session_over(Client::connect_unix(&front));
    client.expect_echo("hello");
    client.close();
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    for (field, value) in [("client_ip", "unix"), ("peer_ip", "unix"), ("listener", "local")] {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!(line["endpoint"], json!(format!("unix:{}", back.display())));

    let mut client = Client::connect_unix(&front);
    for body in ["one", "two"] {
        client.send(format!("POST /plain HTTP/1.1\r\nHost: app.example\r\nContent-Length: 3\r\n\r\n{body}"));
        assert_eq!(client.answer().body_text(), body);
    }
    // The second found the first one's connection in the pool.
    assert_eq!(backend.connections(), 2);
    for request in backend.requests() {
        for name in ["x-forwarded-for", "x-real-ip", "forwarded"] {
            assert_eq!(request.head.one(name), None, "a peer without an address has none to tell: {request:?}");
        }
        assert_eq!(request.head.one("x-forwarded-proto"), Some("http"));
    }
}

#[test]
fn a_unix_peer_names_its_client_only_when_it_is_trusted() {
    let lines = "X-Forwarded-For: 203.0.113.7\r\n";
    for (more, client_ip, told) in [("", "unix", None), ("trusted_proxies: [unix]", "203.0.113.7", Some("203.0.113.7"))]
    {
        let (_folder, front, _) = paths();
        let backend = Backend::echoing();
        let gateway = start(&listening_on(Config::to(backend.address).more(more), &front, ""), &front);
        let mut client = Client::connect_unix(&front);
        client.send(upgrade("/", lines));
        assert_eq!(client.answer_head().status(), 101);
        client.close();
        let line = gateway.wait_for_log(|line| line["event"] == "session");
        assert_eq!((&line["client_ip"], &line["peer_ip"]), (&client_ip.into(), &"unix".into()));
        let seen = backend.wait_for_request(1).head;
        assert_eq!(seen.one("x-forwarded-for"), told);
        assert_eq!(seen.one("x-real-ip"), told);
    }
}

#[test]
fn default_limits_per_address_are_not_for_unix_peers_and_written_ones_are() {
    for (rule, last) in [("", 101), ("handshake: { per_ip: { rate: 1/m, burst: 3 } }", 429)] {
        let (_folder, front, _) = paths();
        let backend = Backend::echoing();
        // The default is 20 at once.
        let gateway = start(&listening_on(Config::to(backend.address).rule(rule), &front, ""), &front);
        let statuses: Vec<u16> = (0..25)
            .map(|_| {
                let mut client = Client::connect_unix(&front);
                client.send(upgrade("/", ""));
                client.answer_head().status()
            })
            .collect();
        assert_eq!((statuses[0], statuses[24]), (101, last), "{statuses:?}");
        let reported = gateway.metric("sluicegate_policy_decisions_total", &[("decision", "would_refuse")]);
        assert_eq!(reported > 0.0, last == 101);
    }
}

#[test]
fn the_socket_has_its_mode_is_taken_over_when_stale_and_goes_with_the_process() {
    let (_folder, front, _) = paths();
    let backend = Backend::echoing();
    // Left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&front).expect("a free path"));
    let config = listening_on(Config::to(backend.address), &front, ", mode: \"0600\"");
    let mut gateway = start(&config, &front);
    let mode = std::fs::metadata(&front).expect("the socket's file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    gateway.session_over(Client::connect_unix(&front)).close();

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("second.yaml");
    std::fs::write(&file, config.yaml()).expect("written");
    let second = gateway::binary().arg("run").arg("-c").arg(&file).output().expect("the binary starts");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("front.sock") && said.contains("in use"), "{said}");
    gateway.session_over(Client::connect_unix(&front)).close();

    gateway.terminate();
    assert!(gateway.wait_for_exit().success());
    assert!(!front.exists(), "its file is removed");
}

#[test]
fn an_early_byte_and_a_client_that_goes_away_are_seen_on_a_unix_socket() {
    let (_folder, front, _) = paths();
    let backend = Backend::hanging();
    let gateway = start(&listening_on(Config::to(backend.address), &front, ""), &front);
    for (number, early) in [(1, true), (2, false)] {
        let mark = gateway.mark();
        let mut client = Client::connect_unix(&front);
        client.send(upgrade("/", ""));
        backend.wait_for_request(number);
        if early {
            client.send("x");
            assert_eq!(client.answer().status(), 400);
        } else {
            drop(client);
        }
        let line = gateway.wait_for_log_since(mark, |line| line["event"] == "refusal");
        assert_eq!(line["cause"], if early { "early_data" } else { "client_gone" });
    }
}
