//! `sluicegate demo`: a sample backend, the gateway in front of it, and a page that connects through it.
//!
//! [`backend`] is the sample backend with its pages; it knows nothing of the gateway but its URL. The page is opened
//! through the gateway, so its connections are same-origin; the same backend, asked past the gateway, serves the page
//! of a foreign origin. `rooms.rs` is its second application, a chat on the backplane, and `pair.rs` the two gateways before
//! that, which are processes of their own and start when its page is opened.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::app::{AdminFallback, App};
use crate::config::{self, Config};
use crate::events;

pub mod backend;
mod pair;
mod room;
mod rooms;

/// Where the demo listens when it can; it takes free ports where these are taken.
const GATEWAY_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9901;

/// Runs the demo until Ctrl-C, or for `run_for`.
///
/// # Errors
/// A port that cannot be bound, as a sentence.
pub async fn run(run_for: Option<Duration>) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    // Before anything is printed: whoever reads the URL may end the demo.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let backend = backend::Backend::bind(events::tap).await.map_err(failed)?;
    let file = configuration(backend.address());
    let app = App::start(load(&file)?, AdminFallback::FreePort).await.map_err(failed)?;
    let gateway = app.listeners.first().map(|(_, address)| address.clone()).ok_or("the demo has no listener")?;
    let url = format!("http://{gateway}");

    println!("The demo runs with this configuration:\n");
    for line in file.lines() {
        println!("    {line}");
    }
    if let Some(admin) = app.admin {
        println!("\nMetrics are on {admin}, at /metrics.");
    }
    println!("\nOpen {url} in a browser. Ctrl-C ends the demo.");

    let time_is_up = async {
        match run_for {
            Some(run_for) => tokio::time::sleep(run_for).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = backend.serve(&url) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = time_is_up => {}
    }
    app.cut().await;
    Ok(())
}

/// What a person would write for this backend, with limits low enough to be met by hand.
fn configuration(backend: SocketAddr) -> String {
    let gateway = free_or_any(GATEWAY_PORT);
    let admin = free_or_any(ADMIN_PORT);
    format!(
        "\
version: 1
listeners:
  - name: public
    bind: 127.0.0.1:{gateway}
    hosts: [localhost, 127.0.0.1]
admin: {{ bind: 127.0.0.1:{admin} }}
upstreams:
  - name: sample
    endpoints: [\"{backend}\"]
rules:
  - name: sample
    upstream: sample
    origin: {{ allow: [same_origin] }}
    handshake: {{ per_ip: {{ rate: 5/s, burst: 5 }} }}
    message: {{ max_size: 1MiB }}
    keepalive: {{ interval: 3s, timeout: 10s }}
"
    )
}

fn load(file: &str) -> Result<Config, String> {
    let text = config::Text { name: "the demo's configuration", text: file };
    let loaded = config::parse(text, &[], &|_| None);
    loaded.map(|loaded| loaded.config).map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

/// The port, or 0 for any where it is taken.
fn free_or_any(port: u16) -> u16 {
    match std::net::TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => port,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_sound() {
        let config = load(&configuration("127.0.0.1:1".parse().unwrap())).unwrap();
        assert_eq!(config.rules[0].name, "sample");
        assert!(config.rules[0].handshake_per_ip.unwrap().written);
    }
}
