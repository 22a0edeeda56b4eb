//! What operators see and do while sessions live, and what they need for it.

use std::process::Stdio;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::frames::CLOSE;
use crate::support::gateway::binary;
use crate::support::{Answer, Backend, Client, Config, DEADLINE, Gateway, upgrade};

const TOKEN: &str = "b4f1c6a5d0e94b0c8f7a";
const WITH_TOKEN: &str = "Authorization: Bearer b4f1c6a5d0e94b0c8f7a\r\n";

fn start() -> (Backend, Gateway) {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).first_rule("feed", "match: { path: /feed }"));
    (backend, gateway)
}

/// A session at a path.
fn session(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.connect();
    client.send(upgrade(path, "User-Agent: test\r\n"));
    assert_eq!(client.answer_head().status(), 101);
    // It is listed a moment after its 101, when it is counted.
    client.expect_echo("hello");
    client
}

fn sessions(gateway: &Gateway, query: &str) -> Value {
    let answer = gateway.admin_get(&format!("/sessions{query}"));
    assert_eq!(answer.status(), 200, "{}", answer.body_text());
    answer.json()
}

/// The ids of the live sessions, the oldest first.
fn ids(gateway: &Gateway) -> Vec<String> {
    let listed = sessions(gateway, "?limit=1000");
    let listed = listed["sessions"].as_array().expect("a list");
    listed.iter().map(|session| session["session_id"].as_str().expect("an id").to_owned()).collect()
}

fn part(client: &mut Client, code: u16, reason: &str) {
    let close = client.frame();
    assert_eq!((close.close_code(), &close.payload[2..]), (Some(code), reason.as_bytes()));
    client.send_frame(CLOSE, code.to_be_bytes());
    client.expect_end();
}

#[test]
fn live_sessions_are_listed_the_oldest_first_with_what_the_log_will_say_of_them() {
    let (backend, gateway) = start();
    assert_eq!(sessions(&gateway, ""), json!({ "sessions": [], "total": 0 }));
    let first = session(&gateway, "/feed?token=secret");
    let others = [session(&gateway, "/chat"), session(&gateway, "/feed")];
    // A client may have its echo before the session has told its counts.
    let deadline = Instant::now() + DEADLINE;
    let listed = loop {
        let listed = sessions(&gateway, "");
        if listed["sessions"][0]["messages_out"] == 1 || Instant::now() > deadline {
            break listed;
        }
    };
    assert_eq!(listed["total"], 3);
    let of = |key: &str| -> Vec<&Value> {
        listed["sessions"].as_array().into_iter().flatten().map(|session| &session[key]).collect()
    };
    assert_eq!(of("rule"), ["feed", "app", "feed"]);
    assert_eq!(of("path"), ["/feed", "/chat", "/feed"], "and no query");
    let oldest = &listed["sessions"][0];
    for (key, value) in [
        ("listener", json!("public")),
        ("host", json!("app.example")),
        ("method", json!("GET")),
        ("client_ip", json!("127.0.0.1")),
        ("peer_ip", json!("127.0.0.1")),
        ("user_agent", json!("test")),
        ("protocol", json!("h1")),
        ("upstream", json!("app")),
        ("endpoint", json!(backend.address.to_string())),
        ("messages_in", json!(1)),
        ("messages_out", json!(1)),
        // Five bytes of text behind a header of two, and the client's mask.
        ("bytes_in", json!(11)),
        ("bytes_out", json!(7)),
        ("pending_bytes_in", json!(0)),
        ("pending_bytes_out", json!(0)),
    ] {
        assert_eq!(oldest[key], value, "{key} of {oldest}");
    }
    assert!(oldest["age_seconds"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{oldest}");
    assert!(oldest["started"].as_str().is_some_and(|time| time.ends_with('Z')), "{oldest}");

    let feeds = sessions(&gateway, "?rule=feed&limit=1");
    assert_eq!((&feeds["total"], feeds["sessions"].as_array().map(Vec::len)), (&json!(2), Some(1)));
    assert_eq!(feeds["sessions"][0]["session_id"], oldest["session_id"]);
    assert_eq!(sessions(&gateway, "?rule=nobody")["total"], 0);

    // The log names the session as the list did, and says no less of it. Its Close frames are bytes more.
    first.close();
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    for (key, value) in oldest.as_object().expect("an object") {
        let live = ["started", "age_seconds", "pending_bytes_in", "pending_bytes_out", "bytes_in", "bytes_out"];
        assert!(live.contains(&key.as_str()) || line[key] == *value, "{key} of {line} is {value}");
    }
    gateway.wait_for_metric("sluicegate_connections", &[], 2.0);
    assert_eq!(sessions(&gateway, "")["total"], 2);
    drop(others);
}

#[test]
fn an_operator_ends_one_session_and_no_other() {
    let (_backend, gateway) = start();
    let mut kept = session(&gateway, "/");
    let mut closed = session(&gateway, "/");
    let mut restarted = session(&gateway, "/");
    let ids = ids(&gateway);
    for path in ["/sessions/0000000000000000", "/sessions/x", "/sessions/"] {
        assert_eq!(gateway.admin_ask("DELETE", path, "").status(), 404, "{path}");
    }
    for code in ["999", "1004", "1005", "1006", "1014", "1015", "2000", "5000", "x", "01012x"] {
        let answer = gateway.admin_ask("DELETE", &format!("/sessions/{}?code={code}", ids[1]), "");
        assert_eq!(answer.status(), 400, "{code}");
    }
    let answer = gateway.admin_ask("DELETE", &format!("/sessions/{}?code=4001", ids[1]), "");
    assert_eq!((answer.status(), answer.json()), (202, json!({ "session_id": ids[1], "code": 4001 })));
    part(&mut closed, 4001, "closed by the operator");
    assert_eq!(gateway.admin_ask("DELETE", &format!("/sessions/{}", ids[2]), "").status(), 202);
    part(&mut restarted, 1012, "closed by the operator");
    for (id, code) in [(&ids[1], 4001), (&ids[2], 1012)] {
        let line = gateway.wait_for_log(|line| line["event"] == "session" && line["session_id"] == **id);
        assert_eq!((&line["cause"], &line["close_code"]), (&json!("operator"), &json!(code)), "{line}");
        let line = gateway.wait_for_log(|line| line["event"] == "operator" && line["session_id"] == **id);
        assert_eq!((&line["action"], &line["peer_ip"]), (&json!("close"), &json!("127.0.0.1")), "{line}");
    }
    assert_eq!(gateway.admin_ask("DELETE", &format!("/sessions/{}", ids[1]), "").status(), 404, "it is gone");
    kept.expect_echo("still here");
    assert_eq!(sessions(&gateway, "")["total"], 1);
}

#[test]
fn an_operator_drains_the_process_and_it_ends() {
    let (_backend, mut gateway) = start();
    let mut client = session(&gateway, "/");
    assert_eq!(gateway.admin_ask("POST", "/drain", "Origin: http://page.example\r\n").status(), 403);
    assert_eq!(gateway.admin_get("/readyz").status(), 200);
    assert_eq!(gateway.admin_ask("POST", "/drain", "Content-Length: 0\r\n").status(), 202);
    gateway.wait_for_log(|line| line["event"] == "draining");
    assert_eq!(gateway.admin_get("/readyz").status(), 503);
    part(&mut client, 1012, "service restart");
    drop(client);
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!(line["cause"], "drain", "{line}");
}

#[test]
fn an_idle_process_answers_the_order_to_drain_before_it_ends() {
    let (_backend, mut gateway) = start();
    let answer = gateway.admin_ask("POST", "/drain", "");
    assert_eq!((answer.status(), answer.json()), (202, json!({ "status": "draining" })));
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
}

#[test]
fn a_signal_behind_the_order_to_drain_does_not_cut_and_a_second_one_does() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address).rule("close_timeout: 5m");
    let mut gateway = Gateway::start(&config.more("shutdown: { delay: 0s, drain: 5m, spread: 0s }"));
    let mut client = session(&gateway, "/");
    assert_eq!(gateway.admin_ask("POST", "/drain", "").status(), 202);
    assert_eq!(client.frame().close_code(), Some(1012));
    // As Kubernetes does: a hook, and then the signal.
    gateway.terminate();
    // It is there when the answer to a request behind it is.
    assert_eq!(gateway.admin_ask("POST", "/drain", "").status(), 202);
    assert!(!gateway.lines().iter().any(|line| line["event"] == "cutting"));
    assert!(gateway.is_running());
    gateway.signal("INT");
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
    assert!(gateway.lines().iter().any(|line| line["event"] == "cutting"));
    client.expect_end();
}

#[test]
fn with_a_token_operators_need_it_on_every_address() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address).admin("token_file: admin.key").file("admin.key", TOKEN);
    let gateway = Gateway::start(&config);
    let _session = session(&gateway, "/");
    for (method, path) in
        [("GET", "/sessions"), ("GET", "/config"), ("POST", "/drain"), ("DELETE", "/sessions/0000000000000000")]
    {
        for lines in ["", "Authorization: Bearer b4f1c6a5d0e94b0c8f7b\r\n"] {
            let answer = gateway.admin_ask(method, path, lines);
            assert_eq!((answer.status(), answer.head.one("www-authenticate")), (401, Some("Bearer")), "{path}");
            assert!(!answer.body_text().contains(TOKEN));
        }
    }
    let listed = gateway.admin_ask("GET", "/sessions", WITH_TOKEN);
    assert_eq!((listed.status(), &listed.json()["total"]), (200, &json!(1)));
    assert_eq!(gateway.admin_ask("GET", "/config", WITH_TOKEN).status(), 200);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(gateway.admin_get(path).status(), 200, "{path}");
    }
}

#[test]
fn the_configuration_is_what_the_command_says_and_a_file_again() {
    let backend = Backend::echoing();
    let config = Config::to(backend.address)
        .rule("request_headers: { set: { x-api-key: sesame, x-tenant: acme } }")
        .admin("token_file: admin.key")
        .file("admin.key", TOKEN);
    let gateway = Gateway::start(&config);
    let run = |command: &str, file: &std::path::Path| {
        let output = binary().arg(command).arg("-c").arg(file).stderr(Stdio::null()).output().expect("it runs");
        assert!(output.status.success(), "{command}");
        String::from_utf8(output.stdout).expect("text")
    };
    let answer: Answer = gateway.admin_ask("GET", "/config", WITH_TOKEN);
    assert_eq!(answer.head.one("content-type"), Some("application/yaml"));
    let yaml = answer.body_text();
    assert_eq!(yaml, run("config", &gateway.file()));
    for secret in [TOKEN, "sesame"] {
        assert!(!yaml.contains(secret), "{yaml}");
    }
    assert!(yaml.contains("acme"), "{yaml}");
    let copy = gateway.file().with_file_name("copy.yaml");
    std::fs::write(&copy, yaml).expect("the copy is written");
    run("check", &copy);
}

#[test]
fn the_listener_of_probes_shows_and_does_nothing_else() {
    let backend = Backend::echoing();
    let gateway = Gateway::start(&Config::to(backend.address).more("probes: { bind: \"127.0.0.1:0\" }"));
    let _session = session(&gateway, "/");
    let probes = gateway.address_of("probes");
    let ask = |method: &str, path: &str| {
        let mut client = Client::connect(probes);
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: sluicegate.monitoring.svc:9902\r\n\r\n"));
        client.answer()
    };
    assert_eq!(ask("GET", "/healthz").status(), 200);
    assert_eq!(ask("GET", "/readyz").json()["status"], "ready");
    assert!(ask("GET", "/metrics").body_text().contains("sluicegate_connections{rule=\"app\"} 1"));
    for (method, path) in [
        ("GET", "/sessions"),
        ("GET", "/config"),
        ("POST", "/drain"),
        ("DELETE", "/sessions/0000000000000000"),
        ("GET", "/"),
    ] {
        assert_eq!(ask(method, path).status(), 404, "{method} {path}");
    }
    assert_eq!(gateway.admin_get("/readyz").json()["status"], "ready");
}

#[test]
fn a_client_that_comes_back_is_counted() {
    let (_backend, gateway) = start();
    let returned = |rule: &str| {
        let labels = [("rule", rule), ("by", "address")];
        gateway.metric("sluicegate_reconnects_total", &labels)
    };
    let open_and_close = |path: &str, agent: &str, ended: usize| {
        let mut client = gateway.connect();
        client.send(upgrade(path, &format!("User-Agent: {agent}\r\n")));
        assert_eq!(client.answer_head().status(), 101);
        client.close();
        // Its end is remembered before it is logged.
        let ends = || gateway.lines().iter().filter(|line| line["event"] == "session").count();
        while ends() < ended {
            gateway.pause();
        }
    };
    open_and_close("/", "browser", 1);
    assert_eq!(returned("app"), 0.0);
    open_and_close("/", "browser", 2);
    assert_eq!(returned("app"), 1.0);
    open_and_close("/", "other", 3);
    open_and_close("/feed", "browser", 4);
    assert_eq!((returned("app"), returned("feed")), (1.0, 0.0), "another agent, another rule");
    open_and_close("/", "other", 5);
    assert_eq!(returned("app"), 2.0);
    assert_eq!(gateway.metric("sluicegate_reconnects_total", &[("by", "cookie")]), 0.0);
}

#[test]
fn the_time_of_the_configuration_is_known() {
    let (_backend, gateway) = start();
    assert_eq!(gateway.metric("sluicegate_config_last_reload_successful", &[]), 1.0);
    let read = gateway.metric("sluicegate_config_last_reload_success_timestamp_seconds", &[]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((now - 60.0..=now).contains(&read), "{read} at {now}");
}
