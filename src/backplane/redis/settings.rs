//! What a Redis engine is told of its servers, and its bounds.

use std::time::Duration;

use super::super::engine::{DEDUPE_WINDOW, LatestLimit, Retention};
use super::ingest::IngestRule;
use super::shards::Shards;

/// Which servers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One, or one address behind which is the master.
    Standalone {
        /// `redis://HOST:PORT`, `rediss://HOST:PORT` for TLS.
        url: String,
    },
    /// Sentinels, which are asked in this order for the master.
    Sentinel {
        /// `redis://HOST:PORT` of each; with `rediss://` the master is reached over TLS too.
        urls: Vec<String>,
        /// The name that they know it by.
        master: String,
    },
    /// A Cluster, of Redis 7.0 or later.
    Cluster {
        /// `redis://HOST:PORT` of any of its nodes, of which one is needed to find the others; with `rediss://` all are
        /// reached over TLS.
        urls: Vec<String>,
    },
    /// Several servers that know nothing of each other.
    Shards(Shards),
}

/// Who we are at a server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user; Redis's `default` if there is none.
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

/// The bounds of a Redis engine.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub servers: Servers,
    /// At the servers, not at sentinels.
    pub credentials: Credentials,
    /// At sentinels.
    pub sentinel_credentials: Credentials,
    /// CAs in PEM that servers and sentinels are verified by over TLS, in place of the system's.
    pub ca: Option<Vec<u8>>,
    /// Streams that others fill. Not in a Cluster, and not with shards.
    pub ingest: Vec<IngestRule>,
    /// What is kept of each channel.
    pub retention: Retention,
    /// What is kept of the newest values of each channel.
    pub latest: LatestLimit,
    /// How long a message's id is remembered. Default 5 minutes.
    pub dedupe_window: Duration,
    /// For every command, and for each step of connecting. Default 2 s.
    pub timeout: Duration,
    /// How often the engine is asked whether it lives. After three without an answer the connections are made anew.
    /// Default 1 s.
    pub heartbeat: Duration,
    /// The longest time between two tries to connect; the first is after a tenth of a second. Default 5 s.
    pub max_backoff: Duration,
    /// Subscriptions, of each shard. Default 1,000,000. When it is passed, a subscription fails.
    pub max_subscriptions: usize,
}

impl Settings {
    /// The defaults for these servers.
    pub fn new(servers: Servers) -> Self {
        Self {
            servers,
            credentials: Credentials::default(),
            sentinel_credentials: Credentials::default(),
            ingest: Vec::new(),
            ca: None,
            retention: Retention::default(),
            latest: LatestLimit::default(),
            dedupe_window: DEDUPE_WINDOW,
            timeout: Duration::from_secs(2),
            heartbeat: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5),
            max_subscriptions: 1_000_000,
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Without the password, and without URLs, which may have one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("retention", &self.retention).finish_non_exhaustive()
    }
}
