//! The client of one request as a handshake sees it: what is watched, how it is answered, and what it becomes as one side
//! of a tunnel. Over HTTP/1.1 that is its connection, over HTTP/2 one stream of it (see [`super::http2_stream`]).

use std::future::Future;
use std::io;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;

use super::answer;
use super::forwarding;
use super::socket::Socket;
use crate::cause::Refusal;
use crate::tunnel::Wire;

/// A client that waits for the answer to its request.
pub trait Client: Send + Sized + 'static {
    /// What it becomes when it is answered with a tunnel.
    type Wire: Wire + 'static;

    /// Whether a 2xx that the upstream answers is one to the client too. To a CONNECT it would open a tunnel that there
    /// is not. RFC 9110 §9.3.6.
    const RELAYS_SUCCESS: bool;

    /// Ends when it sends something before its answer, or goes away.
    fn watch(&mut self) -> impl Future<Output = Refusal> + Send;

    /// Opens the tunnel, with the headers of the upstream's 101.
    ///
    /// # Errors
    /// It is gone.
    fn accept(&mut self, answer: &ResponseHeader) -> impl Future<Output = io::Result<()>> + Send;

    /// What it is as one side of the tunnel that [`Client::accept`] has opened; `None` where it was not called.
    fn into_wire(self) -> Option<Self::Wire>;

    /// Begins an answer of the upstream's that opens no tunnel. `has_body` is whether anything comes behind it.
    ///
    /// # Errors
    /// It is gone.
    fn begin(&mut self, answer: &ResponseHeader, has_body: bool) -> impl Future<Output = io::Result<()>> + Send;

    /// Goes on with the body of that answer.
    ///
    /// # Errors
    /// It is gone.
    fn send(&mut self, piece: Bytes) -> impl Future<Output = io::Result<()>> + Send;

    /// Ends the body of that answer.
    ///
    /// # Errors
    /// It is gone.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;

    /// Lets it go behind its last answer. One that is not finished is broken off.
    fn end(self) -> impl Future<Output = ()> + Send;

    /// Answers a refusal, and lets it go.
    fn refuse(self, refusal: &Refusal) -> impl Future<Output = ()> + Send;
}

/// A client over HTTP/1.1. Its connection ends with every answer but a tunnel.
pub struct Http1Client {
    io: Socket,
    /// Whether the body of the answer has no length that is known beforehand.
    chunked: bool,
}

impl Http1Client {
    /// The client at the other end of a connection.
    pub fn new(io: Socket) -> Self {
        Self { io, chunked: false }
    }
}

impl Client for Http1Client {
    type Wire = Socket;

    const RELAYS_SUCCESS: bool = true;

    async fn watch(&mut self) -> Refusal {
        match self.io.peek().await {
            Ok(false) | Err(_) => Refusal::ClientGone,
            Ok(true) => Refusal::EarlyData,
        }
    }

    /// The 101: the upstream's, with exact Upgrade and Connection. RFC 6455 §4.2.2.
    async fn accept(&mut self, answer: &ResponseHeader) -> io::Result<()> {
        let mut head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".to_vec();
        for (name, as_it_came, value) in end_to_end(answer) {
            if name != header::CONTENT_LENGTH {
                write_header(&mut head, as_it_came, value);
            }
        }
        head.extend_from_slice(b"\r\n");
        self.io.send_all(&head).await
    }

    fn into_wire(self) -> Option<Socket> {
        Some(self.io)
    }

    async fn begin(&mut self, answer: &ResponseHeader, has_body: bool) -> io::Result<()> {
        let status = answer.status.as_u16();
        let reason = answer.get_reason_phrase().unwrap_or("");
        let mut head = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
        self.chunked = has_body && !answer.headers.contains_key(header::CONTENT_LENGTH);
        for (_, as_it_came, value) in end_to_end(answer) {
            write_header(&mut head, as_it_came, value);
        }
        // A 426 must name what it asks for: RFC 9110 §15.5.22.
        match answer.headers.get(header::UPGRADE).filter(|_| status == 426) {
            Some(upgrade) => {
                write_header(&mut head, b"Upgrade", upgrade);
                head.extend_from_slice(b"Connection: Upgrade, close\r\n");
            }
            None => head.extend_from_slice(b"Connection: close\r\n"),
        }
        head.extend_from_slice(if self.chunked { b"Transfer-Encoding: chunked\r\n\r\n" } else { b"\r\n" });
        self.io.send_all(&head).await
    }

    async fn send(&mut self, piece: Bytes) -> io::Result<()> {
        if !self.chunked {
            return self.io.send_all(&piece).await;
        }
        self.io.send_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        self.io.send_all(&piece).await?;
        self.io.send_all(b"\r\n").await
    }

    async fn finish(&mut self) -> io::Result<()> {
        if self.chunked { self.io.send_all(b"0\r\n\r\n").await } else { Ok(()) }
    }

    /// The end of the connection is also what shows a body that broke off.
    async fn end(self) {
        answer::end(self.io).await;
    }

    async fn refuse(self, refusal: &Refusal) {
        answer::refuse(self.io, refusal).await;
    }
}

/// The headers of an upstream's answer that are for the client: their names, the same in the upstream's own case, and
/// their values.
pub fn end_to_end(answer: &ResponseHeader) -> impl Iterator<Item = (HeaderName, &[u8], &HeaderValue)> {
    // What an upstream's Connection names badly is dropped with it: the answer is judged by what is left.
    let nominated = forwarding::nominated(&answer.headers).unwrap_or_default();
    answer.case_header_iter().filter_map(move |(as_it_came, value)| {
        let name = HeaderName::from_bytes(as_it_came.as_slice()).ok()?;
        let kept = !forwarding::is_hop_by_hop(&name) && !nominated.contains(&name);
        kept.then_some((name, as_it_came.as_slice(), value))
    })
}

fn write_header(into: &mut Vec<u8>, name: &[u8], value: &HeaderValue) {
    into.extend_from_slice(name);
    into.extend_from_slice(b": ");
    into.extend_from_slice(value.as_bytes());
    into.extend_from_slice(b"\r\n");
}
