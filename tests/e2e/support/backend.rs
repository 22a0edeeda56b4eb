//! A backend in this process that does what a test says, however wrong, and keeps what it was sent.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use socket2::{Domain, Socket, Type};

use super::frames::{self, CLOSE, PING};
use super::http::Framing;
use super::{Client, DEADLINE, Head, switching_for};

/// A listening backend; it lives until the test's process ends.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    more: Condvar,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its head.
    pub head: Head,
    /// Its head's bytes.
    pub bytes: Vec<u8>,
}

/// A connection that was accepted.
pub struct Connection {
    /// The connection.
    pub io: Client,
    seen: Arc<Seen>,
}

impl Backend {
    /// A backend that serves each connection with `serve`, in a thread of its own.
    pub fn start(serve: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        Self::over(TcpListener::bind("127.0.0.1:0").expect("a free port"), serve)
    }

    /// The same over a listener of the test's.
    pub fn over(listener: TcpListener, serve: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("it listens");
        let connections = move || listener.accept().map(|(stream, _)| Client::over(stream)).ok();
        Self::accepting(address, connections, serve)
    }

    /// The same on a Unix socket; its address is nowhere.
    pub fn on_unix(path: &Path, serve: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).expect("a free path");
        let connections = move || listener.accept().map(|(stream, _)| Client::over_unix(stream)).ok();
        Self::accepting(SocketAddr::from(([0, 0, 0, 0], 0)), connections, serve)
    }

    /// The same over connections that a test makes; one that is `None` came to nothing.
    pub fn accepting(
        address: SocketAddr,
        accept: impl Fn() -> Option<Client> + Send + 'static,
        serve: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::<Seen>::default();
        let serve = Arc::new(serve);
        std::thread::spawn({
            let seen = seen.clone();
            move || {
                loop {
                    let Some(io) = accept() else { continue };
                    let (serve, seen) = (serve.clone(), seen.clone());
                    seen.connections.fetch_add(1, Ordering::Relaxed);
                    std::thread::spawn(move || serve(&mut Connection { io, seen }));
                }
            }
        });
        Self { address, seen }
    }

    /// Answers every first request of a connection with these bytes, and waits for the end of the connection.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |connection| {
            if connection.request().is_some() {
                connection.io.try_send(&answer);
                connection.linger();
            }
        })
    }

    /// Answers every first request of a connection with these bytes, and ends the connection.
    pub fn answering_and_closing(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |connection| {
            if connection.request().is_some() {
                connection.io.try_send(&answer);
            }
        })
    }

    /// Reads requests, and answers none.
    pub fn hanging() -> Self {
        Self::answering("")
    }

    /// Takes every handshake and echoes data messages; answers pings and Close frames. Other requests get `200`, with
    /// the request's body.
    pub fn echoing() -> Self {
        Self::start(Connection::serve)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.requests.lock().clone()
    }

    /// The connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// Waits for the request with this number, from 1.
    pub fn wait_for_request(&self, number: usize) -> Request {
        let deadline = Instant::now() + DEADLINE;
        let mut requests = self.seen.requests.lock();
        while requests.len() < number {
            let late = self.seen.more.wait_until(&mut requests, deadline).timed_out();
            assert!(!late, "request {number} did not come: {requests:#?}");
        }
        requests[number - 1].clone()
    }
}

impl Connection {
    /// The next request's head; `None` at the end of the connection.
    pub fn request(&mut self) -> Option<Request> {
        let (head, bytes) = self.io.head_bytes()?;
        let request = Request { head, bytes };
        self.seen.requests.lock().push(request.clone());
        self.seen.more.notify_all();
        Some(request)
    }

    /// Takes a handshake and echoes data messages; echoes the bodies of other requests.
    pub fn serve(&mut self) {
        while let Some(request) = self.request() {
            if request.head.has("upgrade") {
                self.io.send(switching_for(&request.head));
                return self.echo();
            }
            self.echo_plain(&request);
        }
    }

    /// Waits for the end of the connection.
    pub fn linger(&mut self) {
        self.io.rest();
    }

    /// Answers one plain request with its own body.
    pub fn echo_plain(&mut self, request: &Request) {
        let body = match request.head.framing() {
            Framing::Close => Vec::new(),
            framing => self.io.body(framing),
        };
        let len = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nX-Target: {}\r\n\r\n", request.head.target());
        let body = if request.head.line.starts_with("HEAD ") { Vec::new() } else { body };
        self.io.send([head.into_bytes(), body].concat());
    }

    /// Echoes data messages, and answers pings and Close frames, to the end of the connection.
    pub fn echo(&mut self) {
        while let Some(frame) = self.io.try_frame() {
            let opcode = if frame.opcode == PING { frames::PONG } else { frame.opcode };
            let sent = frame.opcode == frames::PONG || self.io.try_send(frames::plain(opcode, &frame.payload));
            if !sent || frame.opcode == CLOSE {
                return;
            }
        }
    }
}

/// An address where nobody listens: bound, so that nobody else takes it.
pub struct Refusing {
    socket: Socket,
}

impl Refusing {
    /// Takes a free port.
    pub fn bind() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        Self { socket }
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().ok().and_then(|address| address.as_socket()).expect("it is bound")
    }
}
