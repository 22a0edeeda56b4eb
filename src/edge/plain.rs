//! Plain HTTP: everything that is no WebSocket goes through Pingora's `HttpProxy`, which keeps connections alive, pools
//! them, and streams bodies. No Upgrade ever reaches it.

use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use parking_lot::Mutex;
use pingora::apps::HttpServerApp;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::client::http_req_header_to_wire;
use pingora::protocols::http::v2::server::HttpSession;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use tokio::sync::watch;

use super::answer;
use super::backplane;
use super::body::BodyEnd;
use super::forwarding;
use super::head::{Head, Protocol};
use super::record::PlainAnswer;
use super::request::{Intent, Request};
use super::routed::{Routed, note_answer};
use super::socket::Socket;
use super::sticky;
use super::stream::PrereadStream;
use super::upstreams::{Endpoint, Lease};
use crate::cause::Refusal;
use crate::config::AccessLog;
use crate::grip::instruct;
use crate::policy::client_address::Source;
use crate::policy::connection_limit::Guard;
use crate::tls::NO_CA_FILE;
use crate::tunnel::sys;
use crate::ws::handshake::list;

mod held;

/// An upstream that answers a plain request with a 101.
const UNASKED_UPGRADE: ErrorType = ErrorType::new("UnaskedUpgrade");

/// What a request brings with it into Pingora and out again.
pub struct Plain {
    routed: Routed,
    source: Source,
    access_log: AccessLog,
    started: Instant,
    tried: Vec<Arc<Endpoint>>,
    /// Where the request is sent anew, over another connection.
    again: Option<Arc<Endpoint>>,
    /// It was written to an endpoint, so no other gets it.
    written: bool,
    lease: Option<Lease>,
    /// Ends the wait for the response's head.
    alarm: Option<ResponseAlarm>,
    timed_out: Arc<AtomicBool>,
    body_bytes: u64,
    /// A refusal was logged and counted: the request is no answered one.
    refused: bool,
    /// What the log says besides a refusal.
    detail: Option<String>,
    _upstream_descriptor: Guard,
}

impl Plain {
    fn new(routed: Routed, source: Source, access_log: AccessLog, upstream_descriptor: Guard) -> Self {
        Self {
            routed,
            source,
            access_log,
            started: Instant::now(),
            tried: Vec::new(),
            again: None,
            written: false,
            lease: None,
            alarm: None,
            timed_out: Arc::default(),
            body_bytes: 0,
            refused: false,
            detail: None,
            _upstream_descriptor: upstream_descriptor,
        }
    }
}

/// Shuts an upstream connection down that brings no response in time, so that Pingora's read of it ends.
///
/// Pingora has one limit for each read, of a head and of a body, and a body may be silent for an hour where a head may
/// not. The descriptor is our own copy, so it cannot have become another connection's meanwhile.
struct ResponseAlarm(tokio::task::AbortHandle);

impl ResponseAlarm {
    fn set(connection: RawFd, after: Duration, timed_out: Arc<AtomicBool>) -> Option<Self> {
        let connection = sys::duplicate_socket(connection).ok()?;
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            timed_out.store(true, Ordering::Relaxed);
            // A connection that is gone already is what we want.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        });
        Some(Self(task.abort_handle()))
    }
}

impl Drop for ResponseAlarm {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves plain requests.
pub struct PlainProxy {
    proxy: Arc<HttpProxy<Hooks>>,
    shutdown: watch::Receiver<bool>,
    in_flight: AtomicUsize,
}

/// What we decide within Pingora's request.
struct Hooks {
    stopped: watch::Receiver<bool>,
}

impl PlainProxy {
    /// A proxy with its own pool of upstream connections. `shutdown` ends keep-alive.
    pub fn new(shutdown: watch::Receiver<bool>) -> Self {
        let conf = Arc::new(ServerConf { ca_file: Some(NO_CA_FILE.to_owned()), ..ServerConf::default() });
        let mut proxy = HttpProxy::new(Hooks { stopped: shutdown.clone() }, conf);
        proxy.handle_init_modules();
        Self { proxy: Arc::new(proxy), shutdown, in_flight: AtomicUsize::new(0) }
    }

    /// How many requests are being served.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Serves one request. Returns the connection, and what was read of the next request, when it can be used again.
    pub async fn serve(
        &self,
        io: Socket,
        routed: Routed,
        source: Source,
        access_log: AccessLog,
        upstream_descriptor: Guard,
    ) -> Option<(Socket, Bytes)> {
        let request = &routed.request;
        let head = head_for_pingora(request)?;
        let behind = request.head.bytes.slice(request.head.len..);
        let end = BodyEnd::of(&request.head.request.headers);
        let idle_timeout = routed.rule.http.idle_timeout;
        let _counted = InFlight::new(&self.in_flight);
        let mut session = ServerSession::new_http1(PrereadStream::of_request(io, head, behind, end));
        session.set_keepalive(Some(idle_timeout.as_secs()));
        session.set_read_timeout(Some(idle_timeout));
        session.set_write_timeout(Some(idle_timeout));
        let plain = Plain::new(routed, source, access_log, upstream_descriptor);
        session.set_connection_user_context(Some(Box::new(plain)));
        let reused = self.proxy.process_new_http(session, &self.shutdown).await?;
        let (stream, _settings) = reused.consume();
        PrereadStream::unbox(stream)
    }

    /// Serves the request of a stream of HTTP/2.
    pub async fn serve_stream(
        &self,
        mut stream: HttpSession,
        routed: Routed,
        source: Source,
        access_log: AccessLog,
        upstream_descriptor: Guard,
    ) {
        let mut header = routed.request.head.request.clone();
        header.set_version(http::Version::HTTP_2);
        let idle_timeout = routed.rule.http.idle_timeout;
        let _counted = InFlight::new(&self.in_flight);
        let plain = Plain::new(routed, source, access_log, upstream_descriptor);
        header.extensions_mut().insert(Brought::of(plain));
        *stream.req_header_mut() = header;
        let mut session = ServerSession::new_http2(stream);
        session.set_write_timeout(Some(idle_timeout));
        // Nothing is left of a stream behind its answer.
        let _ = self.proxy.process_new_http(session, &self.shutdown).await;
    }
}

/// A value on its way into Pingora: a stream has no place for one but its request's extensions, which are cloned.
#[derive(Clone)]
struct Brought(Arc<Mutex<Option<Box<Plain>>>>);

impl Brought {
    fn of(plain: Plain) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(plain)))))
    }
}

/// Counts a request until it is over, however it ends.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The head that Pingora reads: as it came, or without what asks for another protocol and what is for one hop only.
/// `None` only if a head that was parsed cannot be written.
fn head_for_pingora(request: &Request) -> Option<Bytes> {
    let Head { request: header, bytes, len, rewritten, .. } = &request.head;
    let only_persistence = list(&header.headers, &header::CONNECTION).all(is_persistence);
    if request.intent == Intent::Plain && only_persistence && !rewritten {
        return Some(bytes.slice(..*len));
    }
    let mut header = header.clone();
    let persistence: Vec<_> = list(&header.headers, &header::CONNECTION)
        .filter(|token| is_persistence(token))
        .map(|token| String::from_utf8_lossy(token).into_owned())
        .collect();
    // What Connection may not name was refused before. Framing goes on to Pingora, which needs it and drops it.
    for name in forwarding::nominated(&header.headers).ok()? {
        header.remove_header(&name);
    }
    header.remove_header(&header::CONNECTION);
    header.remove_header(&header::UPGRADE);
    header.remove_header("http2-settings");
    if !persistence.is_empty() {
        // Tokens that were a valid value are one again.
        let _ = header.insert_header(header::CONNECTION, persistence.join(", "));
    }
    Some(http_req_header_to_wire(&header)?.freeze())
}

/// Whether a token of Connection says what becomes of the connection, and names no header. RFC 9112 §9.3.
fn is_persistence(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive")
}

#[async_trait]
impl ProxyHttp for Hooks {
    type CTX = Option<Box<Plain>>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    /// Pingora's way to bring a value along: it is ours, put there by [`PlainProxy::serve`].
    fn on_connection_reuse(&self, _session: &mut Session, ctx: &mut Self::CTX, value: Box<dyn Any + Send + Sync>) {
        *ctx = value.downcast().ok();
    }

    /// The same for a stream of HTTP/2.
    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> pingora::Result<()> {
        if ctx.is_none() {
            *ctx = session.req_header().extensions.get::<Brought>().and_then(|brought| brought.0.lock().take());
        }
        Ok(())
    }

    /// Requests that the backend may have held are served without Pingora's proxy.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> pingora::Result<bool> {
        match ctx {
            Some(plain) => held::serve(session, plain, &self.stopped).await,
            None => Ok(false),
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Self::CTX) -> pingora::Result<Box<HttpPeer>> {
        let plain = ctx.as_mut().ok_or_else(|| Error::new(ErrorType::InternalError))?;
        let Routed { upstream, choice, rule, .. } = &plain.routed;
        let again = plain.again.take();
        let Some(endpoint) = again.or_else(|| upstream.pick(&choice.preference, &plain.tried)) else {
            return Error::e_explain(ErrorType::ConnectError, "no other endpoint");
        };
        plain.tried.push(endpoint.clone());
        plain.lease = Some(endpoint.lease());
        let addresses = endpoint.resolve().await.map_err(|error| {
            endpoint.failed(&error);
            Error::because(ErrorType::ConnectError, "look-up", error)
        })?;
        let Some(target) = addresses.first() else { return Error::e_explain(ErrorType::ConnectError, "no address") };
        let mut peer = endpoint.peer(target)?;
        peer.options.connection_timeout = Some(upstream.connect_timeout());
        peer.options.read_timeout = Some(rule.http.idle_timeout);
        peer.options.write_timeout = Some(rule.http.idle_timeout);
        Ok(Box::new(peer))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(plain) = ctx
            && let Some(endpoint) = plain.tried.last()
        {
            endpoint.failed(&error.etype().as_str());
            // While nothing was written another endpoint may be tried, as long as there is one.
            error.set_retry(!plain.written && plain.tried.len() < plain.routed.upstream.endpoints().len());
        }
        error
    }

    /// An upstream may close a connection of the pool just when a request is written to it. One that may be repeated is
    /// sent anew over another connection, to the same endpoint. RFC 9112 §9.3.1.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        let repeatable = session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        error.retry.decide_reuse(reused && repeatable);
        let Some(plain) = ctx else { return error };
        plain.written = true;
        let retry = error.retry() && repeatable && !plain.timed_out.load(Ordering::Relaxed);
        error.set_retry(retry);
        if retry {
            plain.again = plain.tried.pop();
        }
        error
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        connection: RawFd,
        _digest: Option<&pingora::protocols::Digest>,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        if let Some(plain) = ctx {
            if let Some(endpoint) = plain.tried.last() {
                endpoint.succeeded();
            }
            let within = plain.routed.rule.http.response_timeout;
            plain.alarm = ResponseAlarm::set(connection, within, plain.timed_out.clone());
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        if let Some(plain) = ctx {
            let Routed { request, rule, .. } = &plain.routed;
            forwarding::tell_client(upstream, request, &plain.source);
            if let Some(backplane) = &rule.backplane {
                backplane::strip(upstream);
                backplane.shared.introduce(upstream, &[])?;
            }
            forwarding::apply(&rule.request_headers, upstream);
            forwarding::rewrite(rule.rewrite.as_ref(), upstream)?;
        }
        Ok(())
    }

    /// A body whose length nobody said is counted as it comes.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            // The last frame of a stream may be empty. Pingora would write it as a chunk without bytes, which ends the
            // body, and then end it once more: the next request of the upstream's connection would begin behind that.
            *body = None;
        }
        let (Some(plain), Some(body)) = (ctx, body) else { return Ok(()) };
        let before = plain.body_bytes;
        plain.body_bytes += body.len() as u64;
        let Routed { rule, record, .. } = &plain.routed;
        match rule.http.max_body_size {
            // Once only, also where the rule lets it pass.
            Some(limit) if before <= limit && plain.body_bytes > limit => rule
                .judge(Err(Refusal::BodyTooLarge), record)
                .map_err(|_| Error::explain(ErrorType::HTTPStatus(413), "body over its limit").into_down()),
            _ => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        // No request that comes here asks for another protocol.
        if answer.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::new_up(UNASKED_UPGRADE));
        }
        forwarding::strip_answer(answer);
        let Some(plain) = ctx else { return Ok(()) };
        if answer.status.is_informational() {
            return Ok(());
        }
        plain.alarm = None;
        let Routed { rule, upstream, request, choice, .. } = &plain.routed;
        if rule.backplane.is_some() && answer.headers.keys().any(instruct::is_grip) {
            plain.detail = Some("a request with a long body cannot be held".to_owned());
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        if let Some(endpoint) = plain.tried.last() {
            endpoint.answered();
            if let Some(cookie) = sticky::set_cookie(rule, upstream, request, choice, endpoint) {
                answer.append_header(header::SET_COOKIE, cookie)?;
            }
        }
        forwarding::apply(&rule.response_headers, answer);
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        let timed_out = ctx.as_ref().is_some_and(|plain| plain.timed_out.load(Ordering::Relaxed));
        let refusal = match (error.esource(), error.etype()) {
            (_, ErrorType::HTTPStatus(413)) => Refusal::BodyTooLarge,
            (ErrorSource::Downstream, ErrorType::InvalidHTTPHeader) => Refusal::MalformedRequest,
            (ErrorSource::Downstream, _) => Refusal::ClientGone,
            _ if timed_out => Refusal::UpstreamTimeout,
            (_, ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
                Refusal::UpstreamTimeout
            }
            (_, ErrorType::InvalidHTTPHeader) => Refusal::UpstreamMalformed,
            (_, error) if *error == UNASKED_UPGRADE => Refusal::UpstreamInvalidUpgrade,
            _ => Refusal::UpstreamUnreachable,
        };
        // An interim answer leaves room for ours. One that breaks off behind its head is an answer all the same: its line
        // says so.
        let answered = session.response_written().is_some_and(|head| !head.status.is_informational());
        if let Some(plain) = ctx.as_mut().filter(|_| !answered) {
            plain.alarm = None;
            plain.refused = true;
            plain.routed.record.refused(&refusal, plain.detail.as_deref().or_else(|| tls_detail(error)));
            plain.routed.rule.metrics.refused(&refusal);
            let silent = timed_out || brought_no_answer(error);
            if let Some(endpoint) = plain.tried.last().filter(|_| silent) {
                endpoint.misbehaved();
            }
        }
        let protocol = ctx.as_ref().map_or(Protocol::Http1, |plain| plain.routed.request.head.protocol);
        let Some(answer) = answer::document(&refusal, protocol).filter(|_| !answered) else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let error_code = answer.status;
        // A client that is gone gets no answer.
        if write(session, answer).await.is_ok() {
            if let Some(plain) = ctx {
                plain.lease = None;
            }
            linger(session).await;
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Self::CTX) {
        let Some(plain) = ctx else { return };
        let Some(status) = session.response_written().map(|answer| answer.status.as_u16()) else { return };
        if plain.refused {
            return;
        }
        let line = PlainAnswer {
            upstream: Some(plain.routed.upstream.name()),
            endpoint: plain.tried.last().map(|endpoint| endpoint.address()),
            status,
            duration: plain.started.elapsed(),
            bytes_in: session.body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
            broken: error.is_some(),
        };
        note_answer(plain.access_log, &plain.routed.rule, &plain.routed.record, &line);
    }

    /// Our own line says it, without what a peer sent.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Self::CTX, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        _error: &Error,
        _log: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// Why TLS to the upstream failed, where it did. Pingora tells no more of it than a text.
fn tls_detail(error: &Error) -> Option<&'static str> {
    let is_tls = *error.etype() == ErrorType::TLSHandshakeFailure;
    is_tls.then(|| match error.to_string().contains("invalid peer certificate") {
        true => "the certificate is not valid here",
        false => "the TLS handshake failed",
    })
}

/// Whether an endpoint that was connected to brought no answer: it hung, broke off, or spoke no HTTP. A client that goes
/// away says nothing of it.
fn brought_no_answer(error: &Error) -> bool {
    let broken = matches!(
        error.etype(),
        ErrorType::InvalidHTTPHeader
            | ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::ReadTimedout
            | ErrorType::WriteTimedout
    );
    broken && *error.esource() == ErrorSource::Upstream
}

/// Reads and drops what is left of a request that was answered before its end, as [`answer::end`] does.
async fn linger(session: &mut Session) {
    if session.as_downstream().is_http2() {
        // Its stream ends by itself, and takes no answer of another with it.
        return;
    }
    let client = session.as_downstream_mut();
    client.set_read_timeout(Some(answer::LINGER));
    client.set_total_drain_timeout(Some(answer::LINGER_WHOLE));
    let _ = client.drain_request_body().await;
}

async fn write(session: &mut Session, answer: answer::Answer) -> pingora::Result<()> {
    let head = answer.to_header()?;
    session.as_downstream_mut().write_error_response(head, answer.body.into()).await
}
