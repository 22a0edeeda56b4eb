//! The end in good order: unready first, then nothing new, then sessions one after the other, then nothing.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluicegate::cause::Refusal;

use crate::support::frames::{self, CLOSE};
use crate::support::refusal::check_answer;
use crate::support::{Backend, Client, Config, DEADLINE, Gateway, upgrade};

const LONG: &str = "shutdown: { delay: 0s, drain: 5m, spread: 0s }";

fn start(more: &str, rule: &str) -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).rule(rule).more(more));
    (backend, gateway)
}

/// Reads the Close frame of a drain and answers it.
fn part(mut session: Client) {
    let close = session.frame();
    assert_eq!((close.close_code(), &close.payload[2..]), (Some(1012), &b"service restart"[..]));
    session.send_frame(CLOSE, 1012u16.to_be_bytes());
    session.expect_end();
}

#[test]
fn is_unready_first_then_takes_nothing_new_and_then_closes_sessions() {
    let (_backend, mut gateway) = start("shutdown: { delay: 3s, drain: 5m, spread: 0s }", "");
    assert_eq!(gateway.admin_get("/readyz").status(), 200);
    let mut old = gateway.session();
    let mut kept_alive = gateway.connect();
    kept_alive.send("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n");
    assert_eq!(kept_alive.answer().status(), 200);

    gateway.terminate();
    gateway.wait_for_log(|line| line["event"] == "draining");
    // Within the delay: whoever was sent here by a balancer that has not noticed yet is served.
    let late = gateway.session();
    let ready = gateway.admin_get("/readyz");
    assert_eq!((ready.status(), &ready.json()["status"]), (503, &"unready".into()));
    assert_eq!(ready.json()["reasons"][0], "draining");
    assert_eq!(gateway.admin_get("/healthz").status(), 200);
    old.expect_echo("still here");

    // Behind the delay.
    assert_eq!(old.frame().close_code(), Some(1012));
    let answer = gateway.expect_refused_unruled(upgrade("/", ""), Refusal::Draining);
    assert_eq!(answer.status(), 503);
    gateway.expect_refused_unruled("GET / HTTP/1.1\r\nHost: app.example\r\n\r\n", Refusal::Draining);
    kept_alive.expect_end();
    part(late);
    assert!(gateway.is_running(), "one session is left");
    old.send_frame(CLOSE, 1012u16.to_be_bytes());
    drop(old);
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    for line in gateway.lines().iter().filter(|line| line["event"] == "session") {
        assert_eq!((&line["cause"], &line["close_code"]), (&"drain".into(), &1012.into()), "{line}");
    }
    assert!(gateway.lines().iter().any(|line| line["event"] == "stopped"));
}

#[test]
fn sessions_are_closed_one_after_the_other() {
    const SESSIONS: usize = 50;
    let (_backend, mut gateway) = start("shutdown: { delay: 0s, drain: 5m, spread: 5m }", "handshake: { per_ip: off }");
    let sessions: Vec<_> = (0..SESSIONS).map(|_| gateway.session()).collect();
    gateway.terminate();
    let mut told = Vec::new();
    // The oldest is told first, and never fewer than 50 a second.
    for session in sessions {
        part(session);
        told.push(Instant::now());
    }
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    let took = told[SESSIONS - 1] - told[0];
    assert!(took >= Duration::from_millis(800), "{took:?} for {SESSIONS} sessions");
}

#[test]
fn an_idle_gateway_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let (_backend, mut gateway) = start(LONG, "");
        gateway.session().close();
        gateway.wait_for_metric("sluicegate_connections", &[], 0.0);
        let started = Instant::now();
        gateway.signal(signal);
        assert_eq!(gateway.wait_for_exit().code(), Some(0));
        assert!(started.elapsed() < DEADLINE);
    }
}

#[test]
fn a_plain_request_in_flight_is_answered() {
    let (open, wait) = sync_channel(1);
    let wait = Mutex::new(wait);
    let backend = Backend::start(move |connection| {
        if let Some(request) = connection.request() {
            wait.lock().recv_timeout(DEADLINE).expect("the test opens");
            connection.echo_plain(&request);
        }
    });
    let mut gateway = Gateway::start(&Config::to(backend.address).more(LONG));
    let mut client = gateway.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: app.example\r\n\r\n");
    backend.wait_for_request(1);
    gateway.terminate();
    gateway.wait_for_log(|line| line["event"] == "draining");
    open.send(()).expect("the backend waits");
    assert_eq!(client.answer().head.one("x-target"), Some("/slow"));
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
}

#[test]
fn a_message_in_progress_is_finished_before_the_close() {
    let (_backend, mut gateway) = start(LONG, "");
    let mut session = gateway.session();
    let frame = frames::masked(frames::TEXT, b"hello");
    session.send(&frame[..8]);
    gateway.wait_for_metric("sluicegate_bytes_total", &[("rule", "app"), ("direction", "in")], 8.0);
    gateway.terminate();
    gateway.wait_for_log(|line| line["event"] == "draining");
    session.send(&frame[8..]);
    let mut echoed = session.frame();
    if echoed.opcode != CLOSE {
        assert_eq!(echoed.text(), "hello");
        echoed = session.frame();
    }
    assert_eq!(echoed.close_code(), Some(1012));
    session.send_frame(CLOSE, 1012u16.to_be_bytes());
    session.expect_end();
    drop(session);
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
}

#[test]
fn what_is_left_after_the_drain_is_cut() {
    let (_backend, mut gateway) = start("shutdown: { delay: 0s, drain: 500ms, spread: 0s }", "close_timeout: 5m");
    // One that never answers the Close frame, and one in the middle of a message.
    let mut deaf = gateway.session();
    let mut busy = gateway.session();
    busy.send(&frames::masked(frames::TEXT, b"hello")[..8]);
    gateway.wait_for_metric("sluicegate_bytes_total", &[("rule", "app"), ("direction", "in")], 8.0);
    gateway.terminate();
    assert_eq!(deaf.frame().close_code(), Some(1012));
    deaf.expect_end();
    busy.expect_end();
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    let line = gateway.wait_for_log(|line| line["event"] == "session" && line["cause"] == "drain");
    assert_eq!(line["close_code"], 1012, "{line}");
    let line = gateway.wait_for_log(|line| line["event"] == "session" && line["cause"] == "drain_cut");
    assert_eq!((&line["close_code"], &line["closed_by"]), (&1006.into(), &"proxy".into()), "{line}");
}

#[test]
fn sessions_that_the_drain_has_not_come_to_are_cut_without_a_close() {
    let more = "shutdown: { delay: 0s, drain: 100ms, spread: 5m }";
    let (_backend, mut gateway) = start(more, "handshake: { per_ip: off }");
    // At 50 a second the drain does not come far.
    let mut sessions: Vec<_> = (0..60).map(|_| gateway.session()).collect();
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    sessions.pop().expect("the last one").expect_end();
    let lines = gateway.lines();
    let line = lines.iter().find(|line| line["event"] == "session" && line["cause"] == "drain_cut");
    let line = line.expect("a session that was cut");
    assert_eq!((&line["close_code"], &line["closed_by"]), (&1006.into(), &"proxy".into()), "{line}");
    assert!(line["close_sent"].is_null(), "{line}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let (_backend, mut gateway) = start(LONG, "close_timeout: 5m");
    let mut session = gateway.session();
    gateway.terminate();
    assert_eq!(session.frame().close_code(), Some(1012));
    assert!(gateway.is_running());
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    session.expect_end();
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!(line["cause"], "drain", "{line}");
}

#[test]
fn a_handshake_that_the_upstream_has_not_answered_is_told_503() {
    let backend = Backend::hanging();
    let mut gateway =
        Gateway::start(&Config::to(backend.address).rule("handshake: { upstream_timeout: 5m }").more(LONG));
    let mut client = gateway.connect();
    client.send(upgrade("/", ""));
    backend.wait_for_request(1);
    gateway.terminate();
    check_answer(&client.answer(), Refusal::Draining);
    client.expect_end();
    drop(client);
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    let line = gateway.wait_for_log(|line| line["event"] == "refusal");
    assert_eq!((&line["cause"], &line["rule"]), (&"draining".into(), &"app".into()), "{line}");
}

#[test]
fn signals_that_mean_a_reload_elsewhere_end_nothing() {
    let (_backend, mut gateway) = start("", "");
    let mut session = gateway.session();
    for (signal, says) in [("HUP", "a reload is not in this version"), ("QUIT", "a hand-over is not in this version")] {
        gateway.signal(signal);
        let says_so = |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains(says));
        gateway.wait_for_log(says_so);
        session.expect_echo("still here");
    }
    assert!(gateway.is_running());
}
