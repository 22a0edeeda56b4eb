//! The backend on Node's `ws`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A running `tests/backends/ws_echo.mjs`.
pub struct NodeBackend {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl NodeBackend {
    /// Starts it on a free port and waits until it listens.
    pub fn start() -> Self {
        Self::start_at(0)
    }

    /// Starts it on a port of 127.0.0.1 and waits until it listens.
    pub fn start_at(port: u16) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/backends/ws_echo.mjs");
        let mut process = Command::new("node")
            .arg(script)
            .arg(port.to_string())
            // It ends with this pipe, even when the test is killed.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is installed");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let line: Value = serde_json::from_str(&line).expect("the packages are installed: scripts/setup test");
        let port = line["listening"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

impl Drop for NodeBackend {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
