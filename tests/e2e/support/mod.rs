//! What the tests drive the binary with.

pub mod backend;
pub mod client;
pub mod config;
pub mod frames;
pub mod gateway;
pub mod http;
pub mod http2;
pub mod link;
pub mod metrics;
pub mod node;
pub mod refusal;
pub mod tls;

use std::time::Duration;

use sluicegate::ws::handshake::accept_for;

pub use backend::{Backend, Refusing};
pub use client::Client;
pub use config::Config;
pub use gateway::Gateway;
pub use http::{Answer, Head};
pub use tls::Pki;

/// How long a test waits for what must come: far longer than a loaded machine needs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A `Sec-WebSocket-Key`, that of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The `Sec-WebSocket-Accept` for [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A sound request for a WebSocket, with these lines besides.
pub fn upgrade(path: &str, lines: &str) -> String {
    assert!(lines.is_empty() || lines.ends_with("\r\n"), "whole lines");
    format!(
        "GET {path} HTTP/1.1\r\nHost: app.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{lines}\r\n"
    )
}

/// The request of [`upgrade`] with one of its parts replaced.
pub fn upgrade_but(from: &str, to: &str) -> String {
    let request = upgrade("/", "");
    assert!(request.contains(from), "{from:?} is part of the request");
    request.replacen(from, to, 1)
}

/// A sound answer to a handshake with any key.
pub fn switching_for(request: &Head) -> String {
    let accept = accept_for(request.one("sec-websocket-key").unwrap_or_default().as_bytes());
    switching("").replace(ACCEPT, std::str::from_utf8(&accept).expect("base64"))
}

/// A sound answer to [`upgrade`], with these lines besides.
pub fn switching(lines: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{lines}\r\n"
    )
}
