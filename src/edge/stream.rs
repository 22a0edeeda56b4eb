//! A connection from which something was already read, as Pingora takes and gives it back.
//!
//! Pingora's own stream type buffers 64 KiB a connection, and a stream that went into it comes out only as a
//! descriptor. This one has no buffer but the bytes that were read ahead, and `into_any` gives the connection back.
//! Of a client's connection it gives one request and no byte more: what a client sends behind it is the next request,
//! which Pingora would take for a fault of this one.

use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::Bytes;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::body::BodyEnd;
use super::socket::Socket;

/// A connection behind the bytes that were read of it.
#[derive(Debug)]
pub struct PrereadStream {
    /// The head of a request, which comes first.
    head: Bytes,
    /// What was read of the connection behind it.
    preread: Bytes,
    io: Socket,
    /// Where the reader is to see no more; `None` is nowhere.
    end: Option<BodyEnd>,
}

impl PrereadStream {
    /// An upstream's stream, of which nothing was read.
    pub fn boxed(io: Socket) -> Stream {
        Box::new(Self { head: Bytes::new(), preread: Bytes::new(), io, end: None })
    }

    /// A client's stream, as far as one request goes: its head, and its body, of which `preread` may be the front.
    pub fn of_request(io: Socket, head: Bytes, preread: Bytes, end: BodyEnd) -> Stream {
        Box::new(Self { head, preread, io, end: Some(end) })
    }

    /// A client's stream as a whole, behind what was read of it.
    pub fn whole(io: Socket, read: Bytes) -> Stream {
        Box::new(Self { head: read, preread: Bytes::new(), io, end: None })
    }

    /// The stream in a stream of Pingora's that was made here, and what was read ahead of it and is left.
    pub fn unbox(stream: Stream) -> Option<(Socket, Bytes)> {
        let boxed: Box<dyn Any> = stream.into_any();
        boxed.downcast::<Self>().ok().map(|this| (this.io, this.preread))
    }
}

impl AsyncRead for PrereadStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.head.is_empty() {
            let len = this.head.len().min(buf.remaining());
            buf.put_slice(&this.head.split_to(len));
            return Poll::Ready(Ok(()));
        }
        if this.end.is_some_and(|end| end.is_reached()) {
            return this.poll_gone(cx);
        }
        if !this.preread.is_empty() {
            let len = this.preread.len().min(buf.remaining());
            let len = this.end.as_mut().map_or(len, |end| end.take(&this.preread[..len]));
            buf.put_slice(&this.preread.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if let Some(end) = &mut this.end {
            let own = before + end.take(&buf.filled()[before..]);
            this.preread = Bytes::copy_from_slice(&buf.filled()[own..]);
            buf.set_filled(own);
        }
        Poll::Ready(Ok(()))
    }
}

impl PrereadStream {
    /// Behind the request there is only one thing to tell of the client: that it is gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.preread.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.io.poll_peek(cx)) {
            Ok(false) => Poll::Ready(Ok(())),
            // The next request. Nobody is woken for it: it is read when this one is over.
            Ok(true) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for PrereadStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[async_trait]
impl Shutdown for PrereadStream {
    async fn shutdown(&mut self) {
        // The peer may be gone: there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(&mut self.io).await;
    }
}

impl UniqueID for PrereadStream {
    fn id(&self) -> UniqueIDType {
        self.io.as_raw_fd()
    }
}

impl Ssl for PrereadStream {}

impl GetTimingDigest for PrereadStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for PrereadStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for PrereadStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::new(SocketDigest::from_raw_fd(self.io.as_raw_fd())))
    }
}

impl Peek for PrereadStream {}
