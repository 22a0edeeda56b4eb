//! How a process with a great many WebSockets on one thread opens them, and hears what to do.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mio::Waker;
use socket2::{Domain, Protocol, Socket, Type};

use super::Result;

/// Handshakes under way at once.
pub const AT_ONCE: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands that wait; who gives more waits.
const COMMANDS: usize = 16;

/// Connects, and sends a handshake, with more header lines. The kernel holds so much for it, or as much as it sees fit.
pub fn ask(
    gateway: SocketAddr,
    source: Ipv4Addr,
    more: &str,
    receive_bytes: Option<usize>,
) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&gateway.into(), HANDSHAKE_TIMEOUT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let mut stream = TcpStream::from(socket);
    write!(
        stream,
        "GET /prices HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )?;
    Ok(stream)
}

/// Reads the answer to a handshake, and returns what came behind it.
pub fn answered(mut stream: TcpStream) -> Result<(TcpStream, Vec<u8>)> {
    let mut read = Vec::new();
    let head = loop {
        let mut buffer = [0; 1024];
        let len = stream.read(&mut buffer)?;
        read.extend_from_slice(&buffer[..len]);
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if len == 0 {
            return Err("a handshake was not answered".into());
        }
    };
    if !read.starts_with(b"HTTP/1.1 101") {
        return Err(format!("a handshake was answered with {}", read.escape_ascii()).into());
    }
    stream.set_nonblocking(true)?;
    Ok((stream, read.split_off(head)))
}

/// The lines of standard input, until it ends.
pub fn commands(waker: Arc<Waker>) -> Receiver<String> {
    let (send, receive) = sync_channel(COMMANDS);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            if send.send(line).is_err() || waker.wake().is_err() {
                break;
            }
        }
        drop(send);
        // Without it the other thread is not waiting for commands either.
        let _ = waker.wake();
    });
    receive
}

/// The clock of all processes of this machine.
pub fn now_ns() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64)
}
