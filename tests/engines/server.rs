//! Processes of Debian's `redis-server` on free ports, ended with the value. `scripts/setup test` installs it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Client, Connection, FromRedisValue, RedisResult};
use tempfile::TempDir;

use super::DEADLINE;

/// A server and its folder.
pub struct Server {
    child: Child,
    pub port: u16,
    folder: TempDir,
    arguments: Vec<String>,
}

impl Server {
    /// An empty server that keeps nothing on disk.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        // Another process may take a port between its choice and the start.
        for _ in 0..20 {
            let port = free_port();
            if let Some(child) = spawn(folder.path(), port, &arguments) {
                return Self { child, port, folder, arguments };
            }
        }
        panic!("redis-server did not start on any port");
    }

    /// A sentinel for one master.
    pub fn sentinel(master_port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!(
            "sentinel monitor main 127.0.0.1 {master_port} 2\nsentinel down-after-milliseconds main 1000\n\
             sentinel failover-timeout main 5000\nsentinel parallel-syncs main 1\n"
        );
        let file = folder.path().join("sentinel.conf");
        let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
        for _ in 0..20 {
            std::fs::write(&file, &text).expect("a file");
            let port = free_port();
            if let Some(child) = spawn(folder.path(), port, &arguments) {
                return Self { child, port, folder, arguments };
            }
        }
        panic!("the sentinel did not start on any port");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A command over a connection of its own.
    pub fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub fn try_command<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connection()?)
    }

    fn connection(&self) -> RedisResult<Connection> {
        let connection = Client::open(self.url())?.get_connection_with_timeout(DEADLINE)?;
        connection.set_read_timeout(Some(DEADLINE))?;
        Ok(connection)
    }

    /// Waits until a line of `INFO` is there.
    pub fn wait_for_info(&self, line: &str) {
        let until = Instant::now() + DEADLINE;
        while !self.try_command::<String>(&["INFO"]).is_ok_and(|info| info.lines().any(|found| found == line)) {
            assert!(Instant::now() < until, "no {line:?} in INFO of {}", self.port);
            pause();
        }
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Takes what a server that was killed has on disk.
    pub fn forget(&mut self) {
        self.folder = tempfile::tempdir().expect("a folder");
    }

    /// Starts it again on the same port, with what it has on disk: nothing, unless its arguments say so.
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

    /// Stops the process, and it goes on with [`Server::resume`].
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

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it listens").port()
}

/// A process that answers, or `None` if it ended before it did.
fn spawn(folder: &Path, port: u16, arguments: &[String]) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(arguments)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(folder)
        .args(if arguments.iter().any(|argument| argument == "--sentinel") { &[][..] } else { &["--save", ""][..] })
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed: scripts/setup test");
    let until = Instant::now() + DEADLINE;
    let client = Client::open(format!("redis://127.0.0.1:{port}")).expect("a URL");
    loop {
        if child.try_wait().expect("it is ours").is_some() {
            return None;
        }
        let answers = client
            .get_connection_with_timeout(DEADLINE)
            .and_then(|mut connection| redis::cmd("INFO").arg("server").query::<String>(&mut connection));
        // Somebody else's server on this port has another process id.
        if answers.is_ok_and(|info| info.contains(&format!("process_id:{}\r", child.id()))) {
            return Some(child);
        }
        assert!(Instant::now() < until, "redis-server does not answer");
        pause();
    }
}

/// Between two tries of what takes a moment.
#[expect(clippy::disallowed_methods, reason = "a process of its own is waited for, by a test's thread")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
