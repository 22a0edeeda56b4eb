//! The accept loops: one task for each listener, ours rather than Pingora's, so that listeners can come and go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use super::gateway::ListenerState;
use super::service::Service;

/// Connections that the kernel holds for us while we accept others; it cuts this to `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;

/// After an accept that failed for want of descriptors or memory the loop waits for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds a TCP listener.
///
/// # Errors
/// The address is taken, or not ours to take.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    // A restart must not wait for the connections of the process before it.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until `stop` turns true, and serves each in a task of its own.
pub async fn accept(
    listener: TcpListener,
    state: Arc<ListenerState>,
    service: Arc<Service>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => {
                tokio::spawn(service.clone().serve(state.clone(), io.into(), peer));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                log::error!("listener {}: cannot accept: {error}", state.config.name);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an accept failed for a connection that is gone, and the next may succeed at once. accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable)
}
