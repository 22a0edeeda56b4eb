//! Peers that are slow or quiet and alive, which must not be given up; and stopped processes, which must be, on the
//! side that stopped.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    BINARY, CLOSE, End, Gateway, PING, PONG, TEXT, Upstream, connect_with_a_small_window, eventually, open_at,
    open_over, pause, signal,
};

/// Short enough for a test, and longer than anything here takes to answer.
const KEEPALIVE: &str = "keepalive: { interval: 1s, timeout: 2s }";

/// The end of a session that nobody but its client ended.
const END: End = End { cause: "client_closed", closed_by: "client", code: 1000, sent: Some(1000), policy: None };

/// A child of this test, which ends with it, stopped or not.
struct Process {
    child: Child,
    // A backend ends when its input does.
    _stdin: ChildStdin,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Runs a script of `tests/` with its interpreter.
    fn run(script: &str, args: &[&str]) -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let interpreter = if script.ends_with(".py") { tests.join(".venv/bin/python") } else { "node".into() };
        let mut child = Command::new(&interpreter)
            .arg(tests.join(script))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `scripts/setup test` installs it", interpreter.display()));
        let _stdin = child.stdin.take().unwrap();
        Self { child, _stdin }
    }

    /// Runs a backend, and waits until it listens.
    fn backend(script: &str) -> (Self, SocketAddr) {
        let mut process = Self::run(script, &[]);
        let mut line = String::new();
        BufReader::new(process.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        let port = u16::try_from(line["listening"].as_u64().unwrap()).unwrap();
        (process, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn stop(&self) {
        signal("STOP", self.child.id());
    }
}

/// The sessions that a backend has seen.
fn seen(backend: SocketAddr) -> Vec<Value> {
    use std::io::Write as _;
    let mut stream = std::net::TcpStream::connect(backend).unwrap();
    write!(stream, "GET /seen HTTP/1.1\r\nHost: {backend}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body = &answer[answer.find('[').expect("a list")..=answer.rfind(']').expect("a list")];
    serde_json::from_str(body).unwrap()
}

// ---- stopped processes ----------------------------------------------------------------------------------------------

#[test]
fn a_stopped_client_is_found_and_its_live_backend_is_not_given_up() {
    for script in ["clients/ws_client.mjs", "clients/websockets_client.py"] {
        let (_backend, address) = Process::backend("backends/ws_echo.mjs");
        let gateway = Gateway::start(address, &[KEEPALIVE]);
        let url = format!("ws://{}/stopped", gateway.address);
        let client = Process::run(script, &[&url, r#"[{"send":"x"},{"receive":1},{"sleep":60000}]"#]);
        gateway.awaits("sluicegate_messages_total", &["direction=\"out\"", "type=\"text\""], 1.0);
        // It lives on while it answers.
        gateway.eventually_over("sluicegate_ping_rtt_seconds_count", &["side=\"client\""], 1.0);
        client.stop();
        let stopped = Instant::now();
        let line = gateway.assert_end(End {
            cause: "client_silent",
            closed_by: "proxy",
            code: 1006,
            sent: None,
            policy: Some("keepalive"),
        });
        // An interval and a timeout are 3 s; the rest is for a busy machine.
        assert!(stopped.elapsed() >= Duration::from_millis(1900), "{script}: {:?}", stopped.elapsed());
        assert!(stopped.elapsed() < Duration::from_secs(8), "{script}: {:?} {line}", stopped.elapsed());
        // The backend sees it as it would without a gateway.
        let session = eventually("the backend's session ends", || {
            seen(address).into_iter().find(|session| session["open"] == false)
        });
        assert_eq!((&session["path"], &session["code"]), (&Value::from("/stopped"), &Value::from(1006)));
        assert_eq!(gateway.metric("sluicegate_pings_unanswered_total", &["side=\"upstream\""]), 0.0);
    }
}

#[test]
fn a_client_that_stops_in_a_download_is_slow_and_its_backend_is_alive() {
    let (_backend, address) = Process::backend("backends/ws_echo.mjs");
    let slow = "slow_client: { timeout: 5s, min_rate: 1KiB/s }";
    let gateway = Gateway::start(address, &[KEEPALIVE, slow, "close_timeout: 1s"]);
    let url = format!("ws://{}/flood?bytes=15000000", gateway.address);
    let client = Process::run("clients/ws_client.mjs", &[&url, r#"[{"pause":true},{"sleep":60000}]"#]);
    gateway.awaits("sluicegate_slow_clients", &[], 1.0);
    client.stop();
    // Its backend cannot be read meanwhile, for longer than its pong would be waited for.
    let end = End { cause: "slow_client", closed_by: "proxy", code: 1013, sent: None, policy: Some("slow_client") };
    gateway.assert_end(end);
    assert_eq!(gateway.metric("sluicegate_pings_unanswered_total", &[]), 0.0);
}

#[test]
fn a_stopped_backend_ends_its_sessions_with_1012() {
    for script in ["backends/ws_echo.mjs", "backends/websockets_echo.py"] {
        let (backend, address) = Process::backend(script);
        let gateway = Gateway::start(address, &[KEEPALIVE]);
        let mut client = open_at(&gateway, "/");
        client.send_frame(TEXT, b"hello");
        client.expect(TEXT, b"hello");
        // The client answers, and so does the backend until it stops.
        gateway.eventually_over("sluicegate_ping_rtt_seconds_count", &["side=\"upstream\""], 1.0);
        backend.stop();
        let (mut client, frame) = client.alive().join().unwrap();
        let frame = frame.expect("a Close frame");
        assert_eq!(frame.payload[..2], 1012u16.to_be_bytes(), "{frame:?}");
        assert_eq!(frame.payload[2..], *b"upstream does not answer");
        client.send_close(1012, "");
        client.expect_end();
        drop(client);
        gateway.assert_end(End {
            cause: "upstream_silent",
            closed_by: "proxy",
            code: 1012,
            sent: Some(1012),
            policy: Some("keepalive"),
        });
    }
}

// ---- the quiet ------------------------------------------------------------------------------------------------------

#[test]
fn a_backend_that_never_pongs_keeps_its_sessions() {
    let (_backend, address) = Process::backend("backends/ws_echo.mjs");
    let gateway = Gateway::start(address, &[KEEPALIVE]);
    let mut client = open_at(&gateway, "/nopong");
    // The second ping behind one that was given up.
    let unanswered = || gateway.metric("sluicegate_pings_unanswered_total", &["side=\"upstream\""]);
    client.answer_until(|| unanswered() >= 2.0);
    client.send_frame(TEXT, b"still here");
    client.expect_answering(TEXT, b"still here");
    client.send_close(1000, "");
    client.expect_answering(CLOSE, &1000u16.to_be_bytes());
    drop(client);
    let line = gateway.assert_end(END);
    assert!(line["pings_unanswered"].as_u64() >= Some(2), "{line}");
}

// ---- the slow -------------------------------------------------------------------------------------------------------

#[test]
fn a_large_frame_that_arrives_slowly_survives_a_short_timeout() {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &[KEEPALIVE]);
    let (mut client, backend) = upstream.open(&gateway);
    let payload = vec![5; 1 << 20];
    let backend = backend.alive();
    let start = Instant::now();
    let frame = client.frame(BINARY, &payload);
    // 200 KB a second, in which no pong can come: each byte is a sign of life, and a whole interval and timeout passes.
    for piece in frame.chunks(10_000) {
        client.send(piece);
        pause(Duration::from_millis(50));
    }
    assert!(start.elapsed() > Duration::from_secs(5));
    let (mut backend, received) = backend.join().unwrap();
    let received = received.expect("the frame");
    assert!(received.first == BINARY && received.payload == payload);
    backend.send_frame(TEXT, b"thanks");
    client.expect_answering(TEXT, b"thanks");
    assert_eq!(gateway.metric("sluicegate_connections", &[]), 1.0);
    assert_eq!(gateway.metric("sluicegate_pings_unanswered_total", &[]), 0.0);
}

#[test]
fn a_client_that_takes_a_large_message_slowly_and_steadily_is_not_closed() {
    let (_backend, address) = Process::backend("backends/ws_echo.mjs");
    let slow = "slow_client: { timeout: 2s, min_rate: 1KiB/s }";
    let gateway = Gateway::start(address, &[KEEPALIVE, slow]);
    let stream = connect_with_a_small_window(gateway.address);
    const MESSAGE: usize = 12_000_000;
    let mut client = open_over(&gateway, &format!("/flood?bytes={MESSAGE}"), stream);
    let start = Instant::now();
    // 2 MB a second, for 6 s: the backend is held back, and neither it nor the client answers a ping meanwhile.
    let mut head = [0; 10];
    client.stream.read_exact(&mut head).unwrap();
    assert_eq!(head, [&[BINARY, 127][..], &(MESSAGE as u64).to_be_bytes()].concat()[..]);
    let mut taken = 0;
    let mut piece = vec![0; 100_000];
    while taken < MESSAGE {
        client.stream.read_exact(&mut piece).unwrap();
        assert!(piece.iter().all(|byte| *byte == b'f'), "something else in the message");
        taken += piece.len();
        pause(Duration::from_millis(50));
    }
    assert!(start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
    client.send_frame(TEXT, b"whole");
    client.expect_answering(TEXT, b"whole");
    assert_eq!(gateway.metric("sluicegate_slow_client_evictions_total", &[]), 0.0);
    client.send_close(1000, "");
    client.expect_answering(CLOSE, &1000u16.to_be_bytes());
    drop(client);
    let line = gateway.assert_end(END);
    assert!(line["queue_max_bytes"].as_u64() > Some(0), "it never was slow: {line}");
}

#[test]
fn a_client_that_stops_reading_is_evicted_and_others_feel_nothing() {
    let (_backend, address) = Process::backend("backends/ws_echo.mjs");
    let slow = "slow_client: { timeout: 2s, min_rate: 1KiB/s }";
    let gateway = Gateway::start(address, &[KEEPALIVE, slow, "close_timeout: 1s"]);
    // Another session echoes all the time, and says how many times and how long the longest took.
    let done = Arc::new(AtomicBool::new(false));
    let mut other = open_at(&gateway, "/other");
    let echoing = thread::spawn({
        let done = done.clone();
        move || {
            let (mut echoes, mut longest) = (0u64, Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                other.send_frame(TEXT, b"still served");
                other.expect_answering(TEXT, b"still served");
                echoes += 1;
                longest = longest.max(start.elapsed());
                pause(Duration::from_millis(10));
            }
            (other, echoes, longest)
        }
    });
    gateway.eventually_over("sluicegate_messages_total", &["direction=\"out\"", "type=\"text\""], 5.0);
    let echoed = || gateway.metric("sluicegate_messages_total", &["direction=\"out\"", "type=\"text\""]);

    assert_eq!(gateway.metric("sluicegate_slow_clients", &[]), 0.0);
    let client = open_over(&gateway, "/flood?bytes=15000000", connect_with_a_small_window(gateway.address));
    let start = Instant::now();
    gateway.awaits("sluicegate_slow_clients", &[], 1.0);
    let before = echoed();
    gateway.awaits("sluicegate_slow_client_evictions_total", &[], 1.0);
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    let line = gateway.session_line(1);
    assert_eq!((line["cause"].as_str(), line["path"].as_str()), (Some("slow_client"), Some("/flood")), "{line}");
    assert_eq!((line["close_code"].as_u64(), line["closed_by"].as_str()), (Some(1013), Some("proxy")), "{line}");
    assert!(line.get("close_sent").is_none_or(Value::is_null), "no Close frame inside a frame: {line}");
    assert!(line["queue_max_bytes"].as_u64().unwrap() <= 70_000, "what is pending is bounded: {line}");
    gateway.awaits("sluicegate_slow_clients", &[], 0.0);
    drop(client);

    // The other one was served all the while, at its own pace.
    let during = echoed() - before;
    assert!(during >= 20.0, "{during} echoes");
    done.store(true, Ordering::Relaxed);
    let (other, echoes, longest) = echoing.join().unwrap();
    assert!(longest < Duration::from_secs(2), "an echo of {echoes} took {longest:?}");
    assert_eq!(gateway.metric("sluicegate_connections", &[]), 1.0);
    drop(other);
    let closes = "sluicegate_closes_total";
    gateway.awaits(closes, &["cause=\"slow_client\"", "code=\"1013\"", "closed_by=\"proxy\""], 1.0);
    gateway.awaits("sluicegate_policy_decisions_total", &["policy=\"slow_client\"", "decision=\"refused\""], 1.0);
    gateway.awaits(closes, &["cause=\"client_gone\""], 1.0);
    gateway.awaits(closes, &[], 2.0);
}

#[test]
fn pongs_of_the_peers_own_are_theirs() {
    let upstream = Upstream::bind();
    let gateway = Gateway::start(upstream.address(), &[KEEPALIVE]);
    let (mut client, backend) = upstream.open(&gateway);
    // An answer to a ping of ours is swallowed; a pong that nobody asked for, and one to the backend's ping, are not.
    let ping = client.receive().expect("a ping of ours");
    assert_eq!(ping.first, PING);
    client.send_frame(PONG, &ping.payload);
    client.send_frame(PONG, b"unasked");
    let (_, frame) = backend.alive().join().unwrap();
    let frame = frame.expect("a frame");
    assert_eq!((frame.first, &frame.payload[..]), (PONG, &b"unasked"[..]));
}
