//! Processes of Debian's `nats-server` with JetStream on free ports, ended with the value. `scripts/setup test` installs it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::DEADLINE;
use super::server::{free_port, pause};

/// A server and its folder.
pub struct NatsServer {
    child: Child,
    pub port: u16,
    folder: TempDir,
    arguments: Vec<String>,
}

impl NatsServer {
    /// An empty server.
    pub fn start(arguments: &[&str]) -> Self {
        Self::without_jetstream(&[&["-js"], arguments].concat())
    }

    /// The same, which stores nothing.
    pub fn without_jetstream(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        // Another process may take a port between its choice and the start.
        for _ in 0..20 {
            let port = free_port();
            if let Some(child) = spawn(folder.path(), port, &arguments) {
                return Self { child, port, folder, arguments };
            }
        }
        panic!("nats-server did not start on any port");
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The server's version.
    pub fn version() -> (u32, u32) {
        let output = Command::new("nats-server").arg("--version").output();
        let output = output.expect("nats-server is installed: scripts/setup test").stdout;
        let text = String::from_utf8(output).expect("text");
        let mut parts =
            text.trim().rsplit('v').next().expect("a version").split('.').map_while(|part| part.parse().ok());
        (parts.next().expect("a number"), parts.next().expect("a number"))
    }

    /// What the server says to a question of its JetStream API.
    pub fn api(&self, subject: &str, question: &Value) -> Value {
        let payload = if question.is_null() { String::new() } else { question.to_string() };
        let mut line = String::new();
        let mut reader = BufReader::new(self.dial());
        reader.read_line(&mut line).expect("INFO");
        let connect = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB answer 1\r\n";
        let publish = format!("PUB $JS.API.{subject} answer {}\r\n{payload}\r\n", payload.len());
        reader.get_mut().write_all(format!("{connect}{publish}").as_bytes()).expect("it takes commands");
        loop {
            line.clear();
            assert_ne!(reader.read_line(&mut line).expect("an answer"), 0, "the server hung up");
            if line.starts_with("HMSG") {
                panic!("nobody answers to {subject}");
            }
            if line.starts_with("MSG") {
                let length = line.split_whitespace().last().and_then(|length| length.parse().ok()).expect("a length");
                let mut answer = vec![0; length];
                reader.read_exact(&mut answer).expect("the answer");
                return serde_json::from_slice(&answer).expect("JSON");
            }
        }
    }

    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        stream
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Starts it again on the same port, with what it has on its disk.
    pub fn restart(&mut self) {
        self.kill();
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(child) = spawn(self.folder.path(), self.port, &self.arguments) {
                self.child = child;
                return;
            }
            assert!(Instant::now() < until, "it does not start again");
        }
    }

    /// Starts it again on the same port, empty.
    pub fn restart_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.folder.path().join("js")).expect("what it had");
        self.restart();
    }

    /// Starts it again, having kept what is on its disk now for [`NatsServer::restart_from_backup`].
    pub fn back_up(&mut self) {
        self.kill();
        self.copy("js", "backup");
        self.restart();
    }

    /// Starts it again with what was on its disk then: all that came since is lost, as in a power failure.
    pub fn restart_from_backup(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.folder.path().join("js")).expect("what it had");
        self.copy("backup", "js");
        self.restart();
    }

    fn copy(&self, from: &str, to: &str) {
        let status = Command::new("cp").arg("-r").args([from, to]).current_dir(self.folder.path()).status();
        assert!(status.expect("cp is there").success());
    }

    /// Stops the process, and it goes on with [`NatsServer::resume`].
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill is there");
        assert!(status.success());
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that takes connections, or `None` if it ended before it did.
fn spawn(folder: &Path, port: u16, arguments: &[String]) -> Option<Child> {
    let pid = folder.join("pid");
    let _ = std::fs::remove_file(&pid);
    let mut child = Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.join("js"))
        .arg("-P")
        .arg(&pid)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server is installed: scripts/setup test");
    let until = Instant::now() + DEADLINE;
    loop {
        if child.try_wait().expect("it is ours").is_some() {
            return None;
        }
        // It greets who connects once JetStream is there; where it cannot have the port it ends.
        let greets = TcpStream::connect(("127.0.0.1", port)).is_ok_and(|stream| {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO")
        });
        if greets && pid.exists() {
            return Some(child);
        }
        assert!(Instant::now() < until, "nats-server does not answer");
        pause();
    }
}
