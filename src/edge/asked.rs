//! An upstream that was asked for a WebSocket, and what becomes of its answer.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v1::client::HttpSession;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::client::Client;
use super::socket::Socket;
use super::stream::PrereadStream;
use super::upstreams::{Endpoint, Lease};
use crate::backplane::over_http::Opened;
use crate::cause::Refusal;
use crate::ws::extensions::Parameters;

/// An upstream that was asked, and its answer.
pub(super) struct Asked {
    pub(super) source: Source,
    pub(super) answer: Box<ResponseHeader>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) sent: Box<RequestHeader>,
    /// The offers of permessage-deflate that the upstream was sent.
    pub(super) offers: Vec<Parameters>,
}

/// Where an answer's body comes from, and what becomes of the upstream once it has accepted.
pub(super) enum Source {
    /// A connection to the upstream.
    Connection(Box<HttpSession>, Lease),
    /// An upstream over HTTP, which has refused with this body.
    Body(Option<Bytes>),
    /// An upstream over HTTP, which has accepted.
    OverHttp(Box<Opened>),
}

/// The upstream's side of a session.
pub(super) enum Stream {
    Socket(Socket),
    OverHttp(Box<Opened>),
}

impl Source {
    /// The next piece of the body of an answer that is no 101.
    async fn read_body(&mut self) -> Result<Option<Bytes>, Box<pingora::Error>> {
        match self {
            Self::Connection(session, _) => session.read_body_bytes().await,
            Self::Body(body) => Ok(body.take()),
            Self::OverHttp(_) => Ok(None),
        }
    }

    /// The upstream's stream, what came behind its 101, and its place at the endpoint.
    pub(super) async fn take_stream(self) -> Option<(Stream, Vec<u8>, Option<Lease>)> {
        match self {
            Self::Connection(session, lease) => {
                let (io, preread) = take_stream(*session).await?;
                Some((Stream::Socket(io), preread, Some(lease)))
            }
            Self::OverHttp(opened) => Some((Stream::OverHttp(opened), Vec::new(), None)),
            Self::Body(_) => None,
        }
    }
}

/// Why no upstream answered, and what the log says besides.
pub(super) struct Unasked {
    pub(super) refusal: Refusal,
    pub(super) detail: Option<Cow<'static, str>>,
}

impl From<Refusal> for Unasked {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, detail: None }
    }
}

/// Who broke a relayed answer off.
#[derive(Clone, Copy)]
pub(super) enum BrokenOff {
    ByClient,
    ByUpstream,
}

impl BrokenOff {
    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::ByClient => "the client did not take the whole answer",
            Self::ByUpstream => "the upstream broke the answer off",
        }
    }
}

/// Relays an answer that is no 101 as what it is.
pub(super) async fn relay<C: Client>(
    client: &mut C,
    asked: &mut Asked,
    step_timeout: Duration,
) -> Result<(), BrokenOff> {
    let has_body = !matches!(asked.answer.status.as_u16(), 204 | 304);
    taken(timeout(step_timeout, client.begin(&asked.answer, has_body)).await)?;
    if !has_body {
        return Ok(());
    }
    loop {
        match timeout(step_timeout, asked.source.read_body()).await {
            Ok(Ok(Some(piece))) if piece.is_empty() => {}
            Ok(Ok(Some(piece))) => taken(timeout(step_timeout, client.send(piece)).await)?,
            Ok(Ok(None)) => return taken(timeout(step_timeout, client.finish()).await),
            Ok(Err(_)) | Err(_) => return Err(BrokenOff::ByUpstream),
        }
    }
}

/// Whether the client took what it was written in time.
fn taken(written: Result<io::Result<()>, Elapsed>) -> Result<(), BrokenOff> {
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(BrokenOff::ByClient),
    }
}

/// The upstream's stream, and what came behind its 101.
async fn take_stream(mut session: HttpSession) -> Option<(Socket, Vec<u8>)> {
    // Pingora gives what it read ahead as the first piece of the body. `into_inner` alone would lose it.
    let ahead = session.read_body_bytes().now_or_never().and_then(Result::ok).flatten();
    let (stream, _) = PrereadStream::unbox(session.into_inner())?;
    Some((stream, ahead.map(Vec::from).unwrap_or_default()))
}
