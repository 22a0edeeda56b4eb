//! What a RabbitMQ engine is told of its broker, and its bounds.

use std::time::Duration;

use super::super::engine::{DEDUPE_WINDOW, Retention};

/// Where the broker is, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// `amqp://HOST:PORT/VHOST`, `amqps://HOST:PORT/VHOST` for TLS. Without a path the virtual host is `/`.
    pub url: String,
    /// The user; RabbitMQ's `guest` if there is none, which it lets in over loopback alone.
    pub username: Option<String>,
    /// The password; `guest` if there is none.
    pub password: Option<String>,
}

impl std::fmt::Debug for Access {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("url", &self.url).field("username", &self.username).finish_non_exhaustive()
    }
}

/// The bounds of a RabbitMQ engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub access: Access,
    /// What is kept of each channel, by this node.
    pub retention: Retention,
    /// How long a message's id is remembered. Default 5 minutes.
    pub dedupe_window: Duration,
    /// For every call, and for each step of connecting. Default 2 s.
    pub timeout: Duration,
    /// How often the broker is asked whether it lives, and how long a stream may be quiet before it is. Default 1 s.
    pub heartbeat: Duration,
    /// The longest time between two tries to connect; the first is after a tenth of a second. Default 5 s.
    pub max_backoff: Duration,
    /// How long a stream is followed after the last call that needed it. Default 5 minutes.
    pub linger: Duration,
    /// Subscriptions, each stream a sixteenth. Default 1,000,000. When it is passed, a subscription fails.
    pub max_subscriptions: usize,
    /// Publications that wait for the broker. Default 4,096. When it is passed, a publication fails.
    pub max_waiting: usize,
    /// Their bytes, and the largest publication. Default 64 MiB.
    pub max_waiting_bytes: usize,
    /// What this node keeps of one stream, in bytes. Default 64 MiB. Over it the stream's oldest entries and ids go.
    pub max_index_bytes: usize,
    /// What a stream that we make keeps at most on the broker, in bytes. Default 1 GiB.
    pub max_stream_bytes: u64,
}

impl Settings {
    /// The defaults for this broker.
    pub fn new(access: Access) -> Self {
        Self {
            access,
            retention: Retention::default(),
            dedupe_window: DEDUPE_WINDOW,
            timeout: Duration::from_secs(2),
            heartbeat: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5),
            linger: Duration::from_secs(300),
            max_subscriptions: 1_000_000,
            max_waiting: 4096,
            max_waiting_bytes: 64 << 20,
            max_index_bytes: 64 << 20,
            max_stream_bytes: 1 << 30,
        }
    }

    /// How far back a stream is read by who begins to follow it: entries as old as are kept, and before the oldest of them
    /// as many as are needed to know which of them are copies.
    pub fn reach(&self) -> Duration {
        self.retention.max_age.saturating_add(self.dedupe_window)
    }
}
