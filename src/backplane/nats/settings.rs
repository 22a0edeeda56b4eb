//! What a NATS engine is told of its servers, and its bounds.

use std::path::PathBuf;
use std::time::Duration;

use super::super::engine::{DEDUPE_WINDOW, LOG_LIFE, Retention};

/// Who we are at a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user. Without one nothing is said of who we are.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
}

impl std::fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The bounds of a NATS engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `nats://HOST:PORT` of servers of one cluster, of which one is needed; `tls://` for TLS.
    pub urls: Vec<String>,
    /// At the servers.
    pub credentials: Credentials,
    /// A file with CAs in PEM that servers are verified by over TLS, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How many servers of a cluster have the stream, if this engine makes it. Default 1.
    pub replicas: usize,
    /// What is kept of each channel.
    pub retention: Retention,
    /// How long a message's id is remembered. Default 5 minutes.
    pub dedupe_window: Duration,
    /// For every call, and for each step of connecting. Default 2 s.
    pub timeout: Duration,
    /// How often the engine is asked whether it lives. After three without an answer, or without hearing of them by the way
    /// that entries take, the connection is made anew. Default 1 s.
    pub heartbeat: Duration,
    /// The longest time between two tries to connect; the first is after a tenth of a second. Default 5 s.
    pub max_backoff: Duration,
    /// How many messages of one channel wait for whoever takes them from the connection, which never waits itself. Default
    /// 4,096. More are dropped by the client library, which says so, and all logs are read.
    pub max_waiting: usize,
    /// Subscriptions. Default 1,000,000. When it is passed, a subscription fails.
    pub max_subscriptions: usize,
}

impl Settings {
    /// The defaults for these servers.
    pub fn new(urls: Vec<String>) -> Self {
        Self {
            urls,
            credentials: Credentials::default(),
            ca_file: None,
            replicas: 1,
            retention: Retention::default(),
            dedupe_window: DEDUPE_WINDOW,
            timeout: Duration::from_secs(2),
            heartbeat: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5),
            max_waiting: 4096,
            max_subscriptions: 1_000_000,
        }
    }

    /// How long the server keeps entries: the newest one of a channel carries its numbers on. What is older than
    /// `retention.max_age` is neither read nor kept for long (`trim.rs`).
    pub(super) fn stored_for(&self) -> Duration {
        LOG_LIFE.max(self.retention.max_age).max(self.dedupe_window)
    }
}
