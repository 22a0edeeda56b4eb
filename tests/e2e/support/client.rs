//! A client that sends whatever a test wants, and reads with a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::DEADLINE;
use super::frames::{self, Frame};
use super::http::{Answer, Framing, Head};
use super::link::Link;

/// One end of a connection: a client's, or a backend's.
pub struct Client {
    stream: Link,
    /// What was read and not used.
    read: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&to, DEADLINE).expect("it takes connections"))
    }

    /// Connects from a loopback address, such as `127.0.0.2`.
    pub fn connect_from(source: &str, to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let source = SocketAddr::new(source.parse().expect("an address"), 0);
        socket.bind(&source.into()).expect("every address of 127.0.0.0/8 is local");
        socket.connect_timeout(&to.into(), DEADLINE).expect("it takes connections");
        Self::over(socket.into())
    }

    /// Takes a connection over.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an open socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("an open socket");
        stream.set_write_timeout(Some(DEADLINE)).expect("an open socket");
        Self::on(Link::Tcp(stream))
    }

    /// Connects to a Unix socket.
    pub fn connect_unix(path: &Path) -> Self {
        Self::over_unix(UnixStream::connect(path).expect("it takes connections"))
    }

    /// Takes a connection of a Unix socket over.
    pub fn over_unix(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("an open socket");
        stream.set_write_timeout(Some(DEADLINE)).expect("an open socket");
        Self::on(Link::Unix(stream))
    }

    /// One end of whatever carries it.
    pub fn on(stream: Link) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Sends all of it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush()).expect("the peer takes it");
    }

    /// Sends all of it, or what a peer takes that closes meanwhile.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush()).is_ok()
    }

    /// Sends a frame of a client.
    pub fn send_frame(&mut self, opcode: u8, payload: impl AsRef<[u8]>) {
        self.send(frames::masked(opcode, payload.as_ref()));
    }

    /// Ends the sending half.
    pub fn finish(&mut self) {
        self.stream.finish().expect("an open socket");
    }

    /// The own address.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr()
    }

    /// The next head; `None` when the connection ends before it.
    pub fn head(&mut self) -> Option<Head> {
        self.head_bytes().map(|(head, _)| head)
    }

    /// The next head and its bytes.
    pub fn head_bytes(&mut self) -> Option<(Head, Vec<u8>)> {
        loop {
            if let Some((head, len)) = Head::parse(&self.read) {
                return Some((head, self.read.drain(..len).collect()));
            }
            if !self.more() {
                assert!(self.read.is_empty(), "the connection ended within a head: {}", self.read.escape_ascii());
                return None;
            }
        }
    }

    /// The next head, unless the connection ends before it, however it does.
    pub fn head_if_any(&mut self) -> Option<Head> {
        loop {
            if let Some((head, len)) = Head::parse(&self.read) {
                self.read.drain(..len);
                return Some(head);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(len) => self.read.extend_from_slice(&buffer[..len]),
            }
        }
    }

    /// Reads and drops what comes until the connection ends, however it does.
    pub fn read_to_any_end(&mut self) {
        while matches!(self.stream.read(&mut [0; 4096]), Ok(1..)) {}
    }

    /// The head of an answer.
    pub fn answer_head(&mut self) -> Head {
        self.head().expect("an answer")
    }

    /// An answer with its body.
    pub fn answer(&mut self) -> Answer {
        let head = self.answer_head();
        let body = match head.status() {
            100..200 | 204 | 304 => Vec::new(),
            _ => self.body(head.framing()),
        };
        Answer { head, body }
    }

    /// A body.
    pub fn body(&mut self, framing: Framing) -> Vec<u8> {
        match framing {
            Framing::Length(len) => self.exactly(len),
            Framing::Close => self.rest(),
            Framing::Chunked => {
                let mut body = Vec::new();
                loop {
                    let chunk = self.chunk();
                    if chunk.is_empty() {
                        return body;
                    }
                    body.extend(chunk);
                }
            }
        }
    }

    /// The next chunk of a chunked body; empty at its end.
    pub fn chunk(&mut self) -> Vec<u8> {
        let line = self.until(b"\r\n");
        let size = std::str::from_utf8(&line[..line.len() - 2]).ok();
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).expect("a chunk's size");
        let chunk = self.exactly(size);
        assert_eq!(self.exactly(2), b"\r\n");
        chunk
    }

    /// So many bytes.
    pub fn exactly(&mut self, len: usize) -> Vec<u8> {
        while self.read.len() < len {
            assert!(self.more(), "the connection ended before {len} bytes: {}", self.read.escape_ascii());
        }
        self.read.drain(..len).collect()
    }

    /// Bytes to the end of `end`.
    fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return self.read.drain(..at + end.len()).collect();
            }
            assert!(self.more(), "the connection ended: {}", self.read.escape_ascii());
        }
    }

    /// All bytes to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.read)
    }

    /// Fails unless the connection ends in good order with nothing more.
    pub fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "nothing follows: {}", rest.escape_ascii());
    }

    /// The next frame; `None` when the connection ends before it.
    pub fn try_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, len)) = Frame::parse(&self.read) {
                self.read.drain(..len);
                return Some(frame);
            }
            if !self.more() {
                assert!(self.read.is_empty(), "the connection ended within a frame");
                return None;
            }
        }
    }

    /// The next frame.
    pub fn frame(&mut self) -> Frame {
        self.try_frame().expect("a frame")
    }

    /// Sends text and reads its echo.
    pub fn expect_echo(&mut self, text: &str) {
        self.send_frame(frames::TEXT, text);
        let echo = self.frame();
        assert_eq!((echo.opcode, echo.text()), (frames::TEXT, text));
    }

    /// Closes a session from this side, to the end of its connection.
    pub fn close(mut self) {
        self.send_frame(frames::CLOSE, 1000u16.to_be_bytes());
        while self.try_frame().is_some() {}
    }

    /// Sends bytes one at a time, until all are sent or something comes back.
    pub fn drip(&mut self, bytes: &[u8], pause: Duration) {
        for byte in bytes {
            if !self.try_send([*byte]) || self.comes_within(pause) {
                return;
            }
        }
    }

    /// Whether bytes, or the end, come within the time.
    pub fn comes_within(&mut self, within: Duration) -> bool {
        self.stream.set_read_timeout(within).expect("an open socket");
        let came = self.stream.tcp().expect("a TCP connection").peek(&mut [0]);
        self.stream.set_read_timeout(DEADLINE).expect("an open socket");
        !matches!(came, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    /// Reads some; `false` at the end of the connection. Fails when nothing comes in time.
    fn more(&mut self) -> bool {
        let started = Instant::now();
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(len) => {
                self.read.extend_from_slice(&buffer[..len]);
                true
            }
            Err(error) => {
                panic!("{error} after {:?}, with {} read", started.elapsed(), self.read.escape_ascii())
            }
        }
    }
}
