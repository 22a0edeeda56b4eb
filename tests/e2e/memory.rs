//! `limits.memory`: what is new is refused, what lives goes on in little memory, and all comes back.

use std::time::Instant;

use serde_json::json;
use sluicegate::cause::Refusal;

use crate::support::frames::{self, CLOSE, TEXT};
use crate::support::refusal::check_answer;
use crate::support::{Backend, Client, Config, DEADLINE, Gateway, upgrade};

const LIMIT: u64 = 64 << 20;

/// What one client makes the gateway hold: the beginning of a head.
const HELD_BYTES: usize = 200 << 10;

/// More than reach the limit.
const MOST_CLIENTS: usize = 2000;

/// A gateway over its limit, and the clients that hold what is in its memory.
struct Full {
    gateway: Gateway,
    held: Vec<Client>,
}

impl Full {
    /// A gateway with a limit that is not reached, and that pings nobody who only waits.
    fn limited(config: Config) -> Gateway {
        let config = config.listener("head: { timeout: 10m, max_bytes: 256KiB }").more("limits: { memory: 64MiB }");
        Gateway::start(&config)
    }

    /// Sends it heads that do not end, until it says that its limit is reached.
    fn fill(gateway: Gateway) -> Self {
        let begun = format!("GET / HTTP/1.1\r\nHost: app.example\r\nX-Long: {}", "x".repeat(HELD_BYTES));
        let is_full = |gateway: &Gateway| gateway.lines().iter().any(|line| line["event"] == "memory_reached");
        let mut held = Vec::new();
        while !is_full(&gateway) {
            assert!(held.len() < MOST_CLIENTS, "the limit is never reached");
            let mut clients: [Client; 8] = std::array::from_fn(|_| gateway.connect());
            clients.iter_mut().for_each(|client| client.send(&begun));
            // Only what was read is in its memory.
            let deadline = Instant::now() + DEADLINE;
            while is_unread(&gateway, &clients) {
                assert!(Instant::now() < deadline, "it reads what it is sent");
                std::thread::yield_now();
            }
            held.extend(clients);
        }
        Self { gateway, held }
    }

    /// Lets go of what fills it, and waits until something is admitted again.
    fn empty(self) -> Gateway {
        drop(self.held);
        self.gateway.wait_for_log(|line| line["event"] == "memory_left");
        self.gateway
    }
}

/// Whether the kernel holds something of these clients for the gateway: the second half of the fifth column is what is
/// not read. proc_pid_net(5).
fn is_unread(gateway: &Gateway, clients: &[Client]) -> bool {
    let port = |address: &str| address.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
    let ports: Vec<u16> = clients.iter().map(|client| client.local_addr().port()).collect();
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists its sockets");
    sockets.lines().skip(1).any(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (own, peer, queues) = (columns.next(), columns.next(), columns.nth(1));
        own.and_then(port) == Some(gateway.address.port())
            && peer.and_then(port).is_some_and(|port| ports.contains(&port))
            && queues.is_some_and(|queues| !queues.ends_with(":00000000"))
    })
}

fn expect_refused(gateway: &Gateway, client: &mut Client) {
    check_answer(&client.answer(), Refusal::ProcessMemory);
    client.expect_end();
    let counted = [("rule", "none"), ("result", "process_memory")];
    assert!(gateway.metric("sluicegate_handshakes_total", &counted) >= 1.0);
    let decided = [("rule", "none"), ("policy", "process"), ("decision", "refused")];
    assert!(gateway.metric("sluicegate_policy_decisions_total", &decided) >= 1.0);
    let line = gateway.wait_for_log(|line| line["event"] == "refusal");
    let told = json!([line["cause"], line["rule"], line["policy"], line["status"], line["client_ip"]]);
    assert_eq!(told, json!(["process_memory", "none", "process", 503, "127.0.0.1"]), "{line}");
}

/// Fills a gateway, and asks it for one connection more.
pub fn refuses_a_connection() {
    let backend = Backend::echoing();
    let full = Full::fill(Full::limited(Config::to(backend.address).rule("keepalive: off")));
    // It is answered before it has asked for anything.
    expect_refused(&full.gateway, &mut full.gateway.connect());
}

#[test]
fn what_is_new_is_refused_until_there_is_memory_again_and_sessions_go_on() {
    let backend = Backend::echoing();
    let gateway = Full::limited(Config::to(backend.address).rule("keepalive: off"));
    let mut session = gateway.session();
    let mut kept: [Client; 2] = std::array::from_fn(|_| {
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
        assert_eq!(client.answer().status(), 200);
        client
    });
    assert_eq!(gateway.admin_get("/readyz").json()["status"], "ready");

    let full = Full::fill(gateway);
    let gateway = &full.gateway;
    let line = gateway.wait_for_log(|line| line["event"] == "memory_reached");
    assert_eq!((&line["level"], &line["limit_bytes"]), (&json!("warn"), &json!(LIMIT)), "{line}");
    assert!(line["resident_bytes"].as_u64().is_some_and(|bytes| bytes >= LIMIT), "{line}");
    let ready = gateway.admin_get("/readyz");
    assert_eq!((ready.status(), &ready.json()["status"]), (200, &json!("degraded")));
    assert_eq!(ready.json()["degraded"], json!(["memory"]));

    expect_refused(gateway, &mut gateway.connect());
    kept[0].send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
    kept[1].send(upgrade("/", ""));
    kept.iter_mut().for_each(|client| expect_refused(gateway, client));
    session.expect_echo("still here");

    let gateway = full.empty();
    let line = gateway.wait_for_log(|line| line["event"] == "memory_left");
    assert_eq!((&line["level"], &line["limit_bytes"]), (&json!("info"), &json!(LIMIT)), "{line}");
    assert_eq!(gateway.admin_get("/readyz").json()["status"], "ready");
    gateway.session().close();
    session.expect_echo("and still");
    session.close();
    let warnings = gateway.lines().iter().filter(|line| line["event"] == "memory_reached").count();
    assert_eq!(warnings, 1, "one line for each time");
}

#[test]
fn a_head_that_has_begun_does_not_grow_over_the_limit() {
    let backend = Backend::echoing();
    let gateway = Full::limited(Config::to(backend.address).rule("keepalive: off"));
    let mut begun = gateway.connect();
    begun.send("GET / HTTP/1.1\r\nHost: app.example\r\n");
    let full = Full::fill(gateway);
    begun.send("X-More: 1\r\n");
    expect_refused(&full.gateway, &mut begun);
}

#[test]
fn a_session_over_the_limit_holds_little_of_what_its_client_does_not_read() {
    const FRAME_BYTES: usize = 32 << 10;
    // Whoever sends a message is sent more than the kernel holds for it.
    let backend = Backend::start(|connection| {
        if connection.request().is_some() {
            connection.io.send(crate::support::switching(""));
            while connection.io.try_frame().is_some_and(|frame| frame.opcode != CLOSE) {
                let frame = frames::plain(TEXT, &[b'x'; FRAME_BYTES]);
                while connection.io.try_send(&frame) {}
            }
        }
    });
    let gateway = Full::limited(Config::to(backend.address).rule("keepalive: off, slow_client: off"));
    let mut deaf = gateway.session();
    let full = Full::fill(gateway);
    deaf.send_frame(TEXT, "more");
    let pending =
        |gateway: &Gateway| gateway.admin_get("/sessions").json()["sessions"][0]["pending_bytes_out"].as_u64();
    let deadline = Instant::now() + DEADLINE;
    while pending(&full.gateway).is_none_or(|bytes| bytes == 0) {
        assert!(Instant::now() < deadline, "a client that does not read makes it wait");
        full.gateway.pause();
    }
    drop(deaf);
    let line = full.gateway.wait_for_log(|line| line["event"] == "session");
    // One read of 4 KiB, and what the frame before it began with.
    let most = line["queue_max_bytes"].as_u64().expect("it has waited");
    assert!((1..=8 << 10).contains(&most), "{line}");
}
