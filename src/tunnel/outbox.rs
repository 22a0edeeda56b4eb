//! What a side's socket has not taken yet. Empty, and without memory, nearly always.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// The output of one side.
///
/// It is bounded by its owner: while anything is pending nothing more is read for it, so it holds at most one read and
/// the control frames that were injected meanwhile.
#[derive(Debug, Default)]
pub struct Outbox {
    pending: Vec<u8>,
    at: usize,
    /// Whether bytes were written that the stream may hold back until it is flushed, as TLS does.
    unflushed: bool,
}

impl Outbox {
    /// Whether the socket has taken everything.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// What is pending, in bytes.
    pub fn len(&self) -> usize {
        self.pending.len() - self.at
    }

    /// Writes `bytes` behind what is pending, and keeps what the socket does not take. Returns how many it took.
    ///
    /// # Errors
    /// Those of the socket: the side is gone.
    pub fn push<S: AsyncWrite + Unpin>(
        &mut self,
        mut bytes: &[u8],
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Result<usize> {
        let mut taken = 0;
        while self.pending.is_empty() && !bytes.is_empty() {
            match Pin::new(&mut *io).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(len)) => {
                    taken += len;
                    self.unflushed = true;
                    bytes = &bytes[len..];
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.pending.extend_from_slice(bytes);
        Ok(taken)
    }

    /// Writes what is pending, and flushes the stream when nothing is left. Returns how many bytes the socket took.
    ///
    /// # Errors
    /// Those of the socket: the side is gone.
    pub fn poll_drain<S: AsyncWrite + Unpin>(&mut self, io: &mut S, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut taken = 0;
        while !self.pending.is_empty() {
            match Pin::new(&mut *io).poll_write(cx, &self.pending[self.at..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(len)) => {
                    taken += len;
                    self.at += len;
                    self.unflushed = true;
                    if self.at == self.pending.len() {
                        self.clear();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(taken),
            }
        }
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(io).poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(taken)
    }

    /// Drops what is pending, and its memory.
    pub fn clear(&mut self) {
        self.pending = Vec::new();
        self.at = 0;
    }

    /// Resolves when everything is written and flushed, and the stream's sending half is shut down.
    ///
    /// # Errors
    /// Those of the socket: the side is gone.
    pub fn poll_shutdown<S: AsyncWrite + Unpin>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(io, cx)?;
        if !self.is_empty() || self.unflushed {
            return Poll::Pending;
        }
        ready!(Pin::new(io).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
