//! A client's end of HTTP/2: WebSockets as the streams of few connections.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::client::{Builder, SendRequest};
use h2::ext::Protocol;
use h2::{Ping, RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Result;

/// A connection.
pub struct Connection {
    requests: SendRequest<Bytes>,
}

impl Connection {
    pub async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (requests, mut connection) = Builder::new().handshake(io).await?;
        let mut ping = connection.ping_pong().ok_or("it has a ping")?;
        // It ends with its connection, as that does when the last of its streams is dropped.
        tokio::spawn(connection);
        // Behind it the proxy's SETTINGS are known, and with them whether it takes extended CONNECT.
        ping.ping(Ping::opaque()).await?;
        Ok(Self { requests })
    }

    /// Opens a WebSocket (RFC 8441 §5).
    pub async fn open(&mut self, path: &str) -> Result<Stream> {
        let request = Request::connect(format!("https://localhost{path}"))
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(())?;
        poll_fn(|cx| self.requests.poll_ready(cx)).await?;
        let (answer, out) = self.requests.send_request(request, false)?;
        let answer = answer.await?;
        if answer.status() != 200 {
            return Err(format!("answered with {}", answer.status()).into());
        }
        Ok(Stream { out, body: answer.into_body(), read: Bytes::new() })
    }
}

/// The bytes of a WebSocket: the DATA frames of a stream.
pub struct Stream {
    out: SendStream<Bytes>,
    body: RecvStream,
    read: Bytes,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.body.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(piece) => self.read = piece.map_err(io::Error::other)?,
            }
            let len = self.read.len();
            self.body.flow_control().release_capacity(len).map_err(io::Error::other)?;
        }
        let len = self.read.len().min(into.remaining());
        into.put_slice(&self.read[..len]);
        self.read.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.out.reserve_capacity(bytes.len());
        let capacity = match self.out.capacity() {
            0 => match ready!(self.out.poll_capacity(cx)) {
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Some(capacity) => capacity.map_err(io::Error::other)?,
            },
            capacity => capacity,
        };
        let len = capacity.min(bytes.len());
        self.out.send_data(Bytes::copy_from_slice(&bytes[..len]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.out.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
