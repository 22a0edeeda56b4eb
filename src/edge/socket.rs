//! The byte streams of clients and upstreams: TCP or a Unix socket, in the clear or under TLS, as one type.
//!
//! It is one enum rather than a boxed trait, so that a cleartext session costs what it costs on a bare `TcpStream`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use crate::policy::keepalive::TcpSnapshot;
use crate::tls::ALPN_HTTP2;
use crate::tunnel::{Wire, sys};

/// What carries the bytes.
#[derive(Debug)]
pub enum Transport {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection of a Unix socket.
    Unix(UnixStream),
}

/// A client's or an upstream's connection.
#[derive(Debug)]
pub enum Socket {
    /// As it is.
    Clear(Transport),
    /// Under TLS, behind its handshake. Boxed: what TLS owns is large, and a cleartext session should not pay for it.
    Tls(Box<TlsStream<Transport>>),
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Clear(Transport::Tcp(stream))
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::Clear(Transport::Unix(stream))
    }
}

impl Transport {
    fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut byte = [MaybeUninit::uninit()];
        match self {
            Self::Tcp(io) => {
                ready!(io.poll_peek(cx, &mut ReadBuf::uninit(&mut byte))).map(|len| len > 0).map_or_else(failed, found)
            }
            Self::Unix(io) => loop {
                ready!(io.poll_read_ready(cx))?;
                match io.try_io(Interest::READABLE, || SockRef::from(io).peek(&mut byte)) {
                    // It was ready for what somebody has read since.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return failed(error),
                    Ok(len) => return found(len > 0),
                }
            },
        }
    }
}

fn found(byte: bool) -> Poll<io::Result<bool>> {
    Poll::Ready(Ok(byte))
}

fn failed(error: io::Error) -> Poll<io::Result<bool>> {
    Poll::Ready(Err(error))
}

impl Socket {
    /// Whether the peer has sent something, which stays to be read; `false` when its stream has ended.
    ///
    /// Under TLS that is a byte of the application's: tickets, key updates and alerts are none. What TLS had to read for
    /// it stays in TLS, and what it did not, in the kernel.
    ///
    /// # Errors
    /// The connection broke.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self {
            Self::Clear(io) => io.poll_peek(cx),
            Self::Tls(io) => {
                let is_client = matches!(**io, TlsStream::Server(_));
                match ready!(Pin::new(&mut **io).poll_fill_buf(cx)) {
                    Ok(bytes) => found(!bytes.is_empty()),
                    Err(error) if is_client && is_unannounced_end(&error) => found(false),
                    Err(error) => failed(error),
                }
            }
        }
    }

    /// Like [`Socket::poll_peek`], awaited.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn peek(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| self.poll_peek(cx)).await
    }

    /// Writes all of it, and leaves nothing of it in TLS, which holds back what the kernel does not take at once.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    fn transport(&self) -> &Transport {
        match self {
            Self::Clear(io) => io,
            Self::Tls(io) => io.get_ref().0,
        }
    }

    /// Whether it is under TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether TLS has agreed on HTTP/2. RFC 7301.
    pub fn has_agreed_on_http2(&self) -> bool {
        matches!(self, Self::Tls(io) if io.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2))
    }

    /// The TCP connection that carries it, where one does.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self.transport() {
            Transport::Tcp(io) => Some(io),
            Transport::Unix(_) => None,
        }
    }
}

/// A client that ends its stream without TLS's own end of it, as many do. What clients send says itself where it ends
/// (a Close frame, the length of a body), so nothing can be cut off unnoticed; what upstreams answer need not, so there it
/// stays an error. RFC 8446 §6.1.
fn is_unannounced_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

impl AsRawFd for Transport {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(io) => io.as_raw_fd(),
            Self::Unix(io) => io.as_raw_fd(),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.transport().as_raw_fd()
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The kernel has what was written.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => {
                let is_client = matches!(**io, TlsStream::Server(_));
                match ready!(Pin::new(&mut **io).poll_read(cx, buf)) {
                    Err(error) if is_client && is_unannounced_end(&error) => Poll::Ready(Ok(())),
                    read => Poll::Ready(read),
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => {
                ready!(poll_earlier(io, cx))?;
                Pin::new(&mut **io).poll_write(cx, buf)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => {
                ready!(poll_earlier(io, cx))?;
                Pin::new(&mut **io).poll_write_vectored(cx, bufs)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_flush(cx),
        }
    }

    /// Under TLS its own end (close_notify) goes before that of the connection.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_shutdown(cx),
        }
    }
}

/// Waits until the kernel has what was written before. Without it TLS would take more while the peer takes nothing, and
/// a slow peer would look like a fast one.
fn poll_earlier(io: &mut TlsStream<Transport>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    if io.get_ref().1.wants_write() { Pin::new(io).poll_flush(cx) } else { Poll::Ready(Ok(())) }
}

impl Wire for Socket {
    fn socket(&self) -> Option<RawFd> {
        self.tcp().map(AsRawFd::as_raw_fd)
    }

    fn tcp_snapshot(&mut self) -> Option<TcpSnapshot> {
        let mut snapshot = sys::tcp_snapshot(self.tcp()?)?;
        if let Self::Tls(io) = self
            && io.get_ref().1.wants_write()
        {
            // Nothing new is there to be processed; it is the call that tells how much waits in TLS.
            let state = match &mut **io {
                TlsStream::Client(io) => io.get_mut().1.process_new_packets(),
                TlsStream::Server(io) => io.get_mut().1.process_new_packets(),
            };
            snapshot.queued_bytes += state.map_or(0, |state| state.tls_bytes_to_write() as u64);
        }
        Some(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// A pair of each kind that needs no keys.
    async fn pairs() -> [(Socket, Socket); 2] {
        let (near, far) = UnixStream::pair().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        [(near.into(), far.into()), (served.into(), client.into())]
    }

    #[tokio::test]
    async fn a_peek_tells_bytes_from_an_end_and_takes_nothing() {
        for (mut near, mut far) in pairs().await {
            assert!(futures_util::FutureExt::now_or_never(near.peek()).is_none(), "{near:?}");
            far.send_all(b"ab").await.unwrap();
            assert!(near.peek().await.unwrap());
            assert!(near.peek().await.unwrap());
            let mut bytes = [0; 2];
            near.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"ab");
            // What was ready is not any more.
            assert!(futures_util::FutureExt::now_or_never(near.peek()).is_none(), "{near:?}");
            far.shutdown().await.unwrap();
            assert!(!near.peek().await.unwrap());
        }
    }

    #[tokio::test]
    async fn only_tcp_has_a_socket_for_the_kernel_to_tell_of() {
        let [(mut unix, _unix), (mut tcp, _tcp)] = pairs().await;
        assert!(unix.socket().is_none() && unix.tcp_snapshot().is_none());
        assert_eq!(tcp.socket(), Some(tcp.as_raw_fd()));
        assert!(tcp.tcp_snapshot().is_some());
    }

    #[test]
    fn a_cleartext_socket_is_no_larger_than_its_stream_and_a_word() {
        assert!(size_of::<Socket>() <= size_of::<TcpStream>() + size_of::<usize>());
    }
}
