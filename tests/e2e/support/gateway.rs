//! The binary as a process: its log as it is written, its metrics, its signals and its end.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tempfile::TempDir;

use super::metrics::Metrics;
use super::{Answer, Client, Config, DEADLINE};

/// How often something that cannot announce itself is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long a process may take to end when a test no longer needs it.
const END_WITHIN: Duration = Duration::from_secs(3);

/// A running gateway.
pub struct Gateway {
    process: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    /// The listener `public`.
    pub address: SocketAddr,
    /// The admin endpoint.
    pub admin: SocketAddr,
    folder: TempDir,
}

/// What the process wrote to standard error so far.
#[derive(Default)]
struct Log {
    written: Mutex<Written>,
    more: Condvar,
}

#[derive(Default)]
struct Written {
    lines: Vec<Value>,
    /// Lines that are no JSON: nothing but a panic or a failed start writes one.
    other: Vec<String>,
    ended: bool,
}

/// The binary as a command.
pub fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sluicegate"))
}

impl Gateway {
    /// Starts the binary on a file and waits until it listens.
    pub fn start(config: &Config) -> Self {
        Self::start_by(binary(), config)
    }

    /// Starts a command that becomes the binary, on a file, and waits until it listens.
    pub fn start_by(command: Command, config: &Config) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sluicegate.yaml");
        std::fs::write(&file, config.yaml()).expect("the configuration is written");
        for (name, text) in &config.files {
            std::fs::write(folder.path().join(name), text).expect("a file is written");
        }
        Self::start_in(folder, command, &["-c", file.to_str().expect("a path in UTF-8")])
    }

    /// Starts `run` with these arguments and waits until it listens.
    pub fn start_with(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), binary(), args)
    }

    fn start_in(folder: TempDir, mut command: Command, args: &[&str]) -> Self {
        let mut process = command
            .arg("run")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::<Log>::default();
        let stderr = process.stderr.take().expect("it is piped");
        let reader = std::thread::spawn({
            let log = log.clone();
            move || log.read(BufReader::new(stderr))
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut this = Self { process, log, reader: Some(reader), address: nowhere, admin: nowhere, folder };
        (this.address, this.admin) = (this.address_of("public"), this.address_of("admin"));
        this.wait_for_log(|line| line["event"] == "started");
        this
    }

    /// Where the listener of this name is, once it listens.
    pub fn address_of(&self, listener: &str) -> SocketAddr {
        let line = self.wait_for_log(|line| line["event"] == "listening" && line["listener"] == listener);
        line["address"].as_str().and_then(|text| text.parse().ok()).expect("an address")
    }

    /// The file that it runs on.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("sluicegate.yaml")
    }

    /// A connection to the listener.
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// A connection to the listener from another loopback address.
    pub fn connect_from(&self, source: &str) -> Client {
        Client::connect_from(source, self.address)
    }

    /// The answer to one request on a connection of its own.
    pub fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.send(request);
        client.answer()
    }

    /// The answer to a handshake, whose session ends at once when it is accepted.
    pub fn ask_for_session(&self) -> Answer {
        self.ask(&super::upgrade("/", ""))
    }

    /// A session: the client of a handshake that was accepted.
    pub fn session(&self) -> Client {
        self.session_over(self.connect())
    }

    /// A session on this connection.
    pub fn session_over(&self, client: Client) -> Client {
        self.try_session(client, "").expect("a session")
    }

    /// A session on this connection, asked for with these lines; `None` when it is refused.
    pub fn try_session(&self, mut client: Client, lines: &str) -> Option<Client> {
        let accepted = || self.metric("sluicegate_handshakes_total", &[("result", "accepted")]);
        let before = accepted();
        client.send(super::upgrade("/", lines));
        if client.answer_head().status() != 101 {
            return None;
        }
        // It is counted a moment after its 101: what a test looks at next is to be without it.
        let deadline = Instant::now() + DEADLINE;
        while accepted() <= before {
            assert!(Instant::now() < deadline, "a session is counted");
            self.pause();
        }
        Some(client)
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<Value> {
        self.log.written.lock().lines.clone()
    }

    /// How many lines there are: a mark for [`Gateway::wait_for_log_since`].
    pub fn mark(&self) -> usize {
        self.log.written.lock().lines.len()
    }

    /// The first line of all that the predicate holds for.
    pub fn wait_for_log(&self, holds: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_log_since(0, holds)
    }

    /// The first line since the mark that the predicate holds for.
    pub fn wait_for_log_since(&self, mark: usize, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut written = self.log.written.lock();
        loop {
            if let Some(line) = written.lines.iter().skip(mark).find(|line| holds(line)) {
                return line.clone();
            }
            let over = written.ended || self.log.more.wait_until(&mut written, deadline).timed_out();
            assert!(!over, "the awaited line did not come\n{:#?}\n{:#?}", written.lines, written.other);
        }
    }

    /// All metrics as they are now.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin_get("/metrics").body_text())
    }

    /// One metric as it is now; 0 when it is not there.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().get(name, labels)
    }

    /// Waits until a metric has this value.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.metric(name, labels);
            if found == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name}{labels:?} is {found}, not {value}");
            self.pause();
        }
    }

    /// The admin endpoint's answer.
    pub fn admin_get(&self, path: &str) -> Answer {
        self.admin_ask("GET", path, "")
    }

    /// The admin endpoint's answer to a request with these lines.
    pub fn admin_ask(&self, method: &str, path: &str, lines: &str) -> Answer {
        let mut client = Client::connect(self.admin);
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{lines}\r\n", self.admin));
        client.answer()
    }

    /// The line of a warning that has this in its message, since the mark.
    pub fn wait_for_warning(&self, mark: usize, part: &str) -> Value {
        self.wait_for_log_since(mark, |line| {
            line["level"] == "warn" && line["message"].as_str().is_some_and(|message| message.contains(part))
        })
    }

    /// Waits for a moment, or for the next log line, before something is looked at again.
    pub fn pause(&self) {
        let mut written = self.log.written.lock();
        self.log.more.wait_for(&mut written, LOOK_AGAIN);
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by the shell, which has `kill` built in on every machine.
    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.process.id());
        let sent = Command::new("sh").args(["-c", &command]).status().expect("a shell");
        assert!(sent.success(), "the process takes a signal");
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("it is our child").is_none()
    }

    /// Waits until the process ended, and until all that it wrote is read.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let status = wait(&mut self.process, DEADLINE).expect("the process ends");
        self.join_reader();
        status
    }

    fn join_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading does not panic");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.is_running() {
            self.terminate();
            if wait(&mut self.process, END_WITHIN).is_none() {
                // It may have ended just now.
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
        self.join_reader();
        let written = self.log.written.lock();
        if std::thread::panicking() {
            for line in &written.lines {
                eprintln!("log: {line}");
            }
            eprintln!("stderr: {:?}", written.other);
        } else {
            assert!(written.other.is_empty(), "it wrote what is no log line: {:#?}", written.other);
        }
    }
}

impl Log {
    fn read(&self, stderr: impl BufRead) {
        for line in stderr.lines() {
            let line = line.expect("the log is UTF-8");
            let mut written = self.written.lock();
            match serde_json::from_str(&line) {
                Ok(line) => written.lines.push(line),
                Err(_) => written.other.push(line),
            }
            self.more.notify_all();
        }
        self.written.lock().ended = true;
        self.more.notify_all();
    }
}

/// Waits for a process to end; `None` when it did not in time.
pub fn wait(process: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    let never = (Mutex::new(()), Condvar::new());
    loop {
        if let Some(status) = process.try_wait().expect("it is our child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        never.1.wait_for(&mut never.0.lock(), LOOK_AGAIN);
    }
}
