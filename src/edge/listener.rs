//! The accept loops: one task for each listener, ours rather than Pingora's, so that listeners can come and go.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::watch;

use super::gateway::ListenerState;
use super::service::Service;
use super::socket::Socket;
use crate::config::Bind;
use crate::policy::client_address::Peer;

/// Connections that the kernel holds for us while we accept others; it cuts this to `net.core.somaxconn`.
const BACKLOG: u16 = 65_535;

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
    socket.listen(BACKLOG.into())
}

/// Where clients come in.
#[derive(Debug)]
pub enum Listener {
    /// On an address.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixListener, PathBuf),
}

/// The file of a Unix socket of ours, removed when this is dropped, unless another process has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Its device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_some_and(|now| now == self.identity) {
            // One that is gone already is what we want.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Listener {
    /// Binds a listener.
    ///
    /// # Errors
    /// The address is taken, or not ours to take; a Unix socket on which somebody listens, or a file that is none.
    pub fn bind(bind: &Bind) -> io::Result<Self> {
        match bind {
            Bind::Tcp(address) => self::bind(*address).map(Self::Tcp),
            Bind::Unix { path, mode } => bind_unix(path, *mode).map(|listener| Self::Unix(listener, path.clone())),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|address| address.to_string()),
            Self::Unix(_, path) => Ok(format!("unix:{}", path.display())),
        }
    }

    /// The file of its Unix socket.
    pub fn socket_file(&self) -> Option<SocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(_, path) => Some(SocketFile { identity: identity(path)?, path: path.clone() }),
        }
    }

    async fn accept(&self) -> io::Result<(Socket, Peer)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(io, peer)| (io.into(), peer.ip().into())),
            Self::Unix(listener, _) => listener.accept().await.map(|(io, _)| (io.into(), Peer::Unix)),
        }
    }
}

/// Binds a Unix socket. Nobody can connect before its file has its permissions, since it listens only then.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG.into())?;
    UnixListener::from_std(socket.into())
}

/// Removes the socket file of a process that ended without doing so: one that refuses connections.
fn remove_stale(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file is there that is no socket"));
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // A full queue has somebody behind it too.
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

impl Listener {
    /// Accepts connections until `stop` turns true, and serves each in a task of its own.
    pub async fn serve(self, state: Arc<ListenerState>, service: Arc<Service>, mut stop: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((io, peer)) => {
                    tokio::spawn(service.clone().serve(state.clone(), io, peer));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    log::error!("listener {}: cannot accept: {error}", state.config.name);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether an accept failed for a connection that is gone, and the next may succeed at once. accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream as Client;

    fn bind_at(path: &Path, mode: u32) -> io::Result<Listener> {
        Listener::bind(&Bind::Unix { path: path.to_owned(), mode })
    }

    #[tokio::test]
    async fn a_unix_socket_has_its_mode_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = bind_at(&path, 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        Client::connect(&path).unwrap();
        let (_io, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, Peer::Unix);
        drop(listener.socket_file());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_a_live_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        // Its process is gone, and its file is left.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = bind_at(&path, 0o600).unwrap();
        assert_eq!(bind_at(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = listener.socket_file();
        // A successor has put its own there.
        fs::remove_file(&path).unwrap();
        let _successor = bind_at(&path, 0o600).unwrap();
        drop(file);
        assert!(path.exists());
        let other = folder.path().join("b.sock");
        fs::write(&other, "kept").unwrap();
        assert_eq!(bind_at(&other, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&other).unwrap(), b"kept");
    }
}
