//! A TCP stream from which something was already read, as Pingora takes and gives it back.
//!
//! Pingora's own stream type buffers 64 KiB a connection, and a stream that went into it comes out only as a
//! descriptor. This one has no buffer but the bytes that were read ahead, and `into_any` gives the tokio stream back.

use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// A TCP stream behind the bytes that were read of it.
#[derive(Debug)]
pub struct PrereadStream {
    preread: Bytes,
    io: TcpStream,
}

impl PrereadStream {
    /// A stream that reads `preread` first.
    pub fn boxed(io: TcpStream, preread: Bytes) -> Stream {
        Box::new(Self { preread, io })
    }

    /// The stream in a stream of Pingora's that [`PrereadStream::boxed`] made, and what was not read again of it.
    pub fn unbox(stream: Stream) -> Option<(TcpStream, Bytes)> {
        let boxed: Box<dyn Any> = stream.into_any();
        boxed.downcast::<Self>().ok().map(|this| (this.io, this.preread))
    }
}

impl AsyncRead for PrereadStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.preread.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.preread.len().min(buf.remaining());
        buf.put_slice(&self.preread[..len]);
        self.preread.advance(len);
        Poll::Ready(Ok(()))
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
