//! The command line: what each command says, and its exit codes.

use std::net::TcpListener;
use std::process::{Output, Stdio};

use crate::support::gateway::{binary, wait};
use crate::support::{Backend, Config, DEADLINE, Gateway};

/// Runs a command that ends by itself.
fn output(args: &[&str]) -> Output {
    let mut process = binary()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    if wait(&mut process, DEADLINE).is_none() {
        // It may have ended just now.
        let _ = process.kill();
        panic!("{args:?} does not end");
    }
    process.wait_with_output().expect("its output")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Runs a command on a file with this text.
fn on_file(command: &str, yaml: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sluicegate.yaml");
    std::fs::write(&file, yaml).expect("the file is written");
    output(&[command, "-c", file.to_str().expect("a path in UTF-8")])
}

#[test]
fn check_accepts_a_sound_file() {
    let output = on_file("check", &Config::to("127.0.0.1:9001").listener("hosts: [a.example]").yaml());
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert!(text(&output.stdout).contains("sound (1 listener(s), 1 rule(s))"), "{output:?}");
}

#[test]
fn check_warns_of_what_is_dangerous_and_accepts_it() {
    let config = Config::to("127.0.0.1:9001").rule("origin: { allow: any }, keepalive: off");
    let output = on_file("check", &config.yaml());
    assert_eq!(output.status.code(), Some(0));
    let warnings = text(&output.stderr);
    for expected in ["rules[0].origin.allow: ", "rules[0].keepalive: "] {
        assert!(warnings.lines().any(|line| line.starts_with("warning: ") && line.contains(expected)), "{warnings}");
    }
}

const FAULTY: &str = r#"version: 1
listeners:
  - name: public
    bind: 127.0.0.1
    hots: [a.example]
upstreams:
  - name: app
    endpoints: ["127.0.0.1:9001"]
    connect_timeout: 5
rules:
  - name: app
    upstream: ap
    message: { max_size: 0B }
    handshake: { per_ip: { rate: 10 } }
"#;

/// Lines with a fault, and a part of what is said of it.
const FAULTS: [(usize, &str); 6] = [
    (4, "listeners[0].bind"),
    (5, "hosts"),
    (9, "upstreams[0].connect_timeout"),
    (12, "rules[0].upstream"),
    (13, "rules[0].message.max_size"),
    (14, "rules[0].handshake.per_ip.rate"),
];

#[test]
fn check_and_run_report_every_fault_at_once_with_its_line() {
    for command in ["check", "run"] {
        let output = on_file(command, FAULTY);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{command}");
        let report = text(&output.stderr);
        for (line, part) in FAULTS {
            let place = format!("sluicegate.yaml:{line}: ");
            let found = report.lines().any(|line| line.contains(&place) && line.contains(part));
            assert!(found, "{command}: {place}{part}\n{report}");
        }
        assert!(report.contains(&format!("{} fault(s)", FAULTS.len())), "{report}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    for command in ["check", "run"] {
        let output = output(&[command, "-c", "/nowhere/sluicegate.yaml"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains("/nowhere/sluicegate.yaml"), "{output:?}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [
        &["run"][..],
        &[],
        &["walk"],
        &["check"],
        &["run", "--listen", "127.0.0.1:0"],
        &["run", "--listen", "nowhere", "--to", "http://127.0.0.1:9"],
        &["run", "--listen", "127.0.0.1:0", "--to", "https://127.0.0.1:9"],
        &["run", "-c", "a.yaml", "--listen", "127.0.0.1:0", "--to", "http://127.0.0.1:9"],
        &["run", "--listen", "127.0.0.1:0", "--to", "http://127.0.0.1:9", "--admin", "0.0.0.0:0"],
    ] {
        let output = output(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(output(&["--help"]).status.code(), Some(0));
    assert!(text(&output(&["--version"]).stdout).starts_with("sluicegate "));
}

#[test]
fn an_address_that_is_taken_exits_with_1_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it listens").to_string();
    let yaml = Config::to("127.0.0.1:9").yaml();
    for (from, name) in [("name: public, bind: \"127.0.0.1:0\"", "public"), ("admin: { bind: \"127.0.0.1:0\"", "admin")]
    {
        assert!(yaml.contains(from));
        let output = on_file("run", &yaml.replace(from, &from.replace("127.0.0.1:0", &address)));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let stderr = text(&output.stderr);
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.contains(&format!("cannot listen on {address} ({name})")), "{stderr}");
        assert!(!stderr.contains("\"event\":\"listening\""), "nothing is served before all is bound: {stderr}");
    }
}

#[test]
fn runs_without_a_file() {
    let backend = Backend::echoing();
    let to = format!("http://{}", backend.address);
    let mut gateway = Gateway::start_with(&["--listen", "127.0.0.1:0", "--to", &to, "--admin", "127.0.0.1:0"]);
    for (host, status) in [("localhost", 200), ("127.0.0.1:1", 200), ("app.localhost", 200), ("rebound.example", 421)] {
        let answer = gateway.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status(), status, "{host}");
    }
    gateway.terminate();
    assert_eq!(gateway.wait_for_exit().code(), Some(0));
}

#[test]
fn a_demo_ends_by_itself() {
    let output = output(&["demo", "--for", "1s"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("http://"), "{output:?}");
}
