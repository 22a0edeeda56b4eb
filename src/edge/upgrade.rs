//! The opening handshake: from a request that asks for a WebSocket to a tunnel, or to an answer. RFC 6455 §4.
//!
//! Every check comes before the upstream is asked; nothing of the client's goes on before the upstream's 101 has been
//! verified; the 101 is written at once. A tunnel is a task of its own, so that what the handshake needed is given
//! back. A client's connection ends here in every case: a refused upgrade closes it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::FutureExt as _;
use http::header;
use pingora::ErrorType;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v1::client::HttpSession;
use tokio::time::timeout;

use super::answer;
use super::forwarding;
use super::gateway::{Gateway, ListenerState, Rule};
use super::record::{Record, SessionRecord, kept};
use super::request::Request;
use super::routed::Routed;
use super::socket::Socket;
use super::sticky::{self, Choice};
use super::stream::PrereadStream;
use super::upstreams::{ConnectError, Lease, Upstream};
use crate::cause::Refusal;
use crate::config::{CompressionMode, WebSocketMode};
use crate::metrics::SessionMark;
use crate::policy::connection_limit::{Denied, Enforce, Guard};
use crate::policy::origin::Site;
use crate::policy::reconnects;
use crate::tunnel::Compression;
use crate::tunnel::registry::{Entry, Order};
use crate::tunnel::session::{Opening, Session};
use crate::ws::extensions::{self, Parameters};
use crate::ws::{deflate, handshake};

/// Unsent bytes of a client's socket from which it counts as not writable, so that pending output is noticed in time.
const CLIENT_NOTSENT_LOWAT_BYTES: u32 = 128 << 10;

/// The most 1xx answers that are skipped before the upstream's answer. RFC 9110 §15.2.
const MAX_INTERIM_ANSWERS: usize = 16;

/// As it is written by those who know only this spelling.
const EXTENSIONS: &str = "Sec-WebSocket-Extensions";

/// What a session holds until it ends.
struct Held {
    _places: Places,
    _lease: Lease,
    entry: Entry<SessionRecord>,
    _mark: SessionMark,
}

/// A session's places under the limits.
struct Places {
    _client_descriptor: Guard,
    _upstream_descriptor: Guard,
    _in_rule: Guard,
    _in_process: Guard,
}

/// Answers a request for a WebSocket, and runs its tunnel in a task of its own.
pub async fn serve(
    gateway: &Arc<Gateway>,
    listener: &ListenerState,
    mut io: Socket,
    routed: Routed,
    client_descriptor: Guard,
) {
    let Routed { request, rule, upstream: to, choice, record } = routed;
    let metrics = rule.metrics.clone();
    let refuse_because = async |io: Socket, refusal: Refusal, detail: Option<&str>| {
        metrics.refused(&refusal);
        record.refused(&refusal, detail);
        answer::refuse(io, &refusal).await;
    };
    let refuse = async |io: Socket, refusal: Refusal| refuse_because(io, refusal, None).await;
    let (places, offers) = match admit(gateway, &request, &rule, &record, client_descriptor) {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(io, refusal).await,
    };
    let asked = tokio::select! {
        biased;
        asked = ask(&request, &rule, &to, &choice, listener, &offers) => asked,
        refusal = watch(&mut io) => Err(refusal.into()),
        () = gateway.refusing() => Err(Refusal::Draining.into()),
    };
    let mut asked = match asked {
        Ok(asked) => asked,
        Err(Unasked { refusal, detail }) => return refuse_because(io, refusal, detail).await,
    };
    let cookie = sticky::set_cookie(&rule, &to, &request, &choice, asked.lease.endpoint());
    if let Some(cookie) = &cookie {
        // The value is ours, so it is always one.
        let _ = asked.answer.append_header(header::SET_COOKIE, cookie);
    }
    if asked.answer.status.as_u16() != 101 {
        forwarding::apply(&rule.response_headers, &mut *asked.answer);
        let refusal = Refusal::UpstreamAnswered(asked.answer.status.as_u16());
        metrics.refused(&refusal);
        // Places and lease are held until the answer is relayed: it takes an upstream connection like any other.
        let relayed = relay(&mut io, &mut asked, rule.upstream_timeout).await;
        record.refused(&refusal, relayed.err().map(BrokenOff::detail));
        return answer::end(io).await;
    }
    let accepted = match verify(&request, &asked) {
        Ok(accepted) => accepted,
        Err(error) => {
            let refusal = Refusal::UpstreamInvalidUpgrade;
            metrics.refused(&refusal);
            record.refused(&refusal, Some(&error.to_string()));
            return answer::refuse(io, &refusal).await;
        }
    };
    forwarding::apply(&rule.response_headers, &mut *asked.answer);
    let compression = compress(&rule, &offers, accepted, &mut asked.answer);
    if let Some(refusal) = watch(&mut io).now_or_never() {
        return refuse(io, refusal).await;
    }
    if gateway.is_refusing() {
        return refuse(io, Refusal::Draining).await;
    }
    if !matches!(timeout(rule.upstream_timeout, io.send_all(&switching_protocols(&asked.answer))).await, Ok(Ok(()))) {
        return refuse(io, Refusal::ClientGone).await;
    }
    let Some((upstream, preread)) = take_stream(asked.session).await else {
        // The stream that went in is the one that comes out; without it there is no session to run.
        return answer::end(io).await;
    };
    rule.metrics.accepted.inc();
    let cookie = sticky::client_cookie(&rule, &request, &choice, cookie.as_deref());
    let client = note_client(gateway, &request, &rule, cookie);
    let subprotocol = asked.answer.headers.get(header::SEC_WEBSOCKET_PROTOCOL).map(|value| kept(value.as_bytes()));
    let record = SessionRecord {
        request: record,
        started: SystemTime::now(),
        upstream: to.name().into(),
        endpoint: asked.lease.endpoint().address().into(),
        subprotocol,
        compression,
    };
    let entry = gateway.registry.enter(rule.metrics.clone(), record);
    if gateway.is_refusing() {
        // The drain began behind the check above, and may not have seen this session.
        entry.live.control.give(Order::Drain);
    }
    let session = Session::new(Opening {
        client: io,
        upstream,
        upstream_preread: preread,
        compression,
        settings: rule.tunnel.clone(),
        metrics: rule.metrics.clone(),
        control: entry.live.control.clone(),
        endpoint_answers: asked.lease.endpoint().answers_pings().clone(),
    });
    let held = Held { _places: places, _lease: asked.lease, entry, _mark: rule.metrics.session() };
    tokio::spawn(run(session, held, gateway.clone(), client));
}

/// A session from its 101 to its log line.
async fn run(session: Session<Socket, Socket>, held: Held, gateway: Arc<Gateway>, client: reconnects::Client) {
    let outcome = session.await;
    gateway.reconnects.ended(&client, Instant::now());
    held.entry.live.metrics.closed(&outcome.cause);
    held.entry.live.tag.ended(&outcome);
}

/// Every check that needs no upstream, in the order of the table in the manual; and the client's offers of
/// permessage-deflate.
fn admit(
    gateway: &Gateway,
    request: &Request,
    rule: &Rule,
    record: &Record,
    client_descriptor: Guard,
) -> Result<(Places, Vec<Parameters>), Refusal> {
    let key = request.client.limit_key();
    let by_default = gateway.enforces_defaults_against(request.peer, request.client_is_known());
    if let Some((limit, written)) = rule.handshake_limit() {
        let verdict = limit.check(key, Instant::now()).map_err(Refusal::HandshakeRate);
        pass(gateway, request, rule, record, verdict, written || by_default, HANDSHAKE_RATE)?;
    }
    if rule.websocket == WebSocketMode::Deny {
        rule.judge(Err(Refusal::UpgradeDenied), record)?;
    }
    let offers = check_handshake(request)?;
    pass(gateway, request, rule, record, check_origin(request, rule), true, Refusal::OriginNotAllowed)?;
    let in_process = gateway.sessions.acquire(key, Enforce::ALL).map_err(|_| Refusal::ProcessConnections)?.guard;
    let (limit, written) = rule.connection_limit();
    let enforced = (written || by_default) && !rule.reports_only();
    let enforce = Enforce { per_ip: enforced, total: !rule.reports_only() };
    let in_rule = limit.acquire(key, enforce).map_err(refusal_of)?;
    let verdict = in_rule.would_refuse.map_or(Ok(()), |denied| Err(refusal_of(denied)));
    let hop = !(written || by_default);
    pass(gateway, request, rule, record, verdict, !hop, Refusal::ConnectionsPerIp)?;
    let places = Places {
        _client_descriptor: client_descriptor,
        _upstream_descriptor: gateway.take_descriptor().ok_or(Refusal::ProcessConnections)?,
        _in_rule: in_rule.guard,
        _in_process: in_process,
    };
    Ok((places, offers))
}

const HANDSHAKE_RATE: Refusal = Refusal::HandshakeRate(std::time::Duration::ZERO);

fn refusal_of(denied: Denied) -> Refusal {
    match denied {
        Denied::PerIp => Refusal::ConnectionsPerIp,
        Denied::Total => Refusal::ConnectionsTotal,
    }
}

/// Counts what a policy decided. `enforced` is false where a limit that nobody wrote meets a hop: then the refusal is
/// only counted, and one warning says what to set. `policy` names the policy when it lets the handshake pass.
fn pass(
    gateway: &Gateway,
    request: &Request,
    rule: &Rule,
    record: &Record,
    verdict: Result<(), Refusal>,
    enforced: bool,
    policy: Refusal,
) -> Result<(), Refusal> {
    match verdict {
        Ok(()) => {
            rule.metrics.allowed(policy.row().policy);
            Ok(())
        }
        Err(refusal) if enforced => rule.judge(Err(refusal), record),
        Err(refusal) => {
            rule.metrics.would_refuse(refusal.row().policy);
            gateway.warn_of_hop(request.peer);
            Ok(())
        }
    }
}

/// What RFC 6455 §4.2.1 asks of a client's handshake, and what must not come with one. Returns the offers of
/// permessage-deflate.
fn check_handshake(request: &Request) -> Result<Vec<Parameters>, Refusal> {
    let head = &request.head;
    let headers = &head.request.headers;
    if head.request.method != http::Method::GET {
        return Err(Refusal::UpgradeMethod);
    }
    let empty_body = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
    if !empty_body || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Refusal::BodyOnUpgrade);
    }
    let mut versions = headers.get_all(header::SEC_WEBSOCKET_VERSION).into_iter();
    if versions.next().is_none_or(|version| version != "13") || versions.next().is_some() {
        return Err(Refusal::UnsupportedVersion);
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).into_iter();
    if !keys.next().is_some_and(|key| handshake::is_valid_key(key.as_bytes())) || keys.next().is_some() {
        return Err(Refusal::BadKey);
    }
    let subprotocols = handshake::list(headers, &header::SEC_WEBSOCKET_PROTOCOL).all(handshake::is_token);
    let offers = extensions::offers(headers).map_err(|_| Refusal::BadOffer)?;
    if !subprotocols {
        return Err(Refusal::BadOffer);
    }
    if head.bytes.len() > head.len {
        return Err(Refusal::EarlyData);
    }
    Ok(offers)
}

/// Against cross-site WebSocket hijacking. RFC 6455 §10.2.
fn check_origin(request: &Request, rule: &Rule) -> Result<(), Refusal> {
    let lines: Vec<&[u8]> =
        request.head.request.headers.get_all(header::ORIGIN).into_iter().map(|value| value.as_bytes()).collect();
    let allowed = request.sites().any(|authority| {
        let site = Site { host: &authority.host, port: authority.port, secure: request.secure() };
        rule.origin.decide(&lines, &site).is_ok()
    });
    if allowed { Ok(()) } else { Err(Refusal::OriginNotAllowed) }
}

/// Ends when the client sends something before its answer, or goes away.
async fn watch(io: &mut Socket) -> Refusal {
    match io.peek().await {
        Ok(false) | Err(_) => Refusal::ClientGone,
        Ok(true) => Refusal::EarlyData,
    }
}

/// An upstream that was asked, and its answer.
struct Asked {
    session: HttpSession,
    answer: Box<ResponseHeader>,
    lease: Lease,
    sent: Box<RequestHeader>,
    /// The offers of permessage-deflate that the upstream was sent.
    offers: Vec<Parameters>,
}

/// Why no upstream answered, and what the log says besides.
struct Unasked {
    refusal: Refusal,
    detail: Option<&'static str>,
}

impl From<Refusal> for Unasked {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, detail: None }
    }
}

async fn ask(
    request: &Request,
    rule: &Rule,
    to: &Upstream,
    choice: &Choice,
    listener: &ListenerState,
    offers: &[Parameters],
) -> Result<Asked, Unasked> {
    let (stream, lease) = to.connect(&choice.preference).await.map_err(|error| Unasked {
        refusal: match error {
            ConnectError::Timeout(_) => Refusal::UpstreamTimeout,
            ConnectError::Unreachable(_) => Refusal::UpstreamUnreachable,
        },
        detail: error.detail(),
    })?;
    let offers = if rule.compression == CompressionMode::Passthrough { offers } else { &[] }.to_vec();
    let sent = Box::new(upstream_request(request, rule, listener, &offers)?);
    let mut session = HttpSession::new(PrereadStream::boxed(stream));
    let answer = timeout(rule.upstream_timeout, async {
        session.write_request_header(sent.clone()).await?;
        for _ in 0..MAX_INTERIM_ANSWERS {
            let answer = session.read_resp_header_parts().await?;
            if !answer.status.is_informational() || answer.status.as_u16() == 101 {
                return Ok(answer);
            }
        }
        pingora::Error::e_explain(ErrorType::InvalidHTTPHeader, "too many interim answers")
    })
    .await;
    let endpoint = lease.endpoint().clone();
    match &answer {
        Ok(Ok(_)) => endpoint.answered(),
        Ok(Err(_)) | Err(_) => endpoint.misbehaved(),
    }
    match answer {
        Ok(Ok(answer)) => Ok(Asked { session, answer, lease, sent, offers }),
        Ok(Err(error)) if *error.etype() == ErrorType::InvalidHTTPHeader => Err(Refusal::UpstreamMalformed.into()),
        Ok(Err(_)) => Err(Refusal::UpstreamUnreachable.into()),
        Err(_) => Err(Refusal::UpstreamTimeout.into()),
    }
}

/// The handshake as the backend sees it.
fn upstream_request(
    request: &Request,
    rule: &Rule,
    listener: &ListenerState,
    offers: &[Parameters],
) -> Result<RequestHeader, Refusal> {
    let malformed = |_| Refusal::MalformedRequest;
    let mut upstream = request.head.request.clone();
    forwarding::strip_hop_by_hop(&mut upstream)?;
    upstream.remove_header(&header::CONTENT_LENGTH);
    // What is not offered cannot be chosen: no extension whose frames cannot be checked.
    upstream.remove_header(&header::SEC_WEBSOCKET_EXTENSIONS);
    if !offers.is_empty() {
        let offers = extensions::write_offers(offers);
        upstream.insert_header(EXTENSIONS, offers).map_err(malformed)?;
    }
    forwarding::tell_client(&mut upstream, request, &listener.config.client_address);
    forwarding::apply(&rule.request_headers, &mut upstream);
    forwarding::rewrite(rule.rewrite.as_ref(), &mut upstream).map_err(|_| Refusal::BadPath)?;
    upstream.insert_header("Connection", "Upgrade").map_err(malformed)?;
    upstream.insert_header("Upgrade", "websocket").map_err(malformed)?;
    Ok(upstream)
}

/// Whether the upstream's 101 is one, and the permessage-deflate that it has accepted.
fn verify(request: &Request, asked: &Asked) -> Result<Option<Parameters>, handshake::AnswerError> {
    let key = request.head.request.headers.get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes());
    handshake::check_answer(key.unwrap_or_default(), &asked.sent.headers, &asked.answer.headers)?;
    Ok(extensions::answer(&asked.offers, &asked.answer.headers)?)
}

/// Says in the answer to the client what is compressed how. RFC 7692 §5.1.
fn compress(
    rule: &Rule,
    offers: &[Parameters],
    accepted: Option<Parameters>,
    answer: &mut ResponseHeader,
) -> Compression {
    let (compression, parameters) = match rule.compression {
        // A server may ask for this unasked (§7.1.1.2), and need not know it: so no message of the client's refers to
        // an earlier one, and each can be inflated by itself.
        CompressionMode::Passthrough => {
            let told = accepted.map(|accepted| Parameters { client_no_context_takeover: true, ..accepted });
            (Compression::Passthrough, told)
        }
        CompressionMode::Terminate => {
            let chosen = extensions::accept(offers, deflate::WINDOW_BITS);
            let agreed = chosen.and_then(|chosen| chosen.server_max_window_bits);
            (Compression::Terminate { window_bits: agreed.unwrap_or(deflate::WINDOW_BITS) }, chosen)
        }
        CompressionMode::Refuse => (Compression::Off, None),
    };
    answer.remove_header(&header::SEC_WEBSOCKET_EXTENSIONS);
    let Some(parameters) = parameters else { return Compression::Off };
    // The value is ours, so it is always one.
    let _ = answer.insert_header(EXTENSIONS, parameters.to_string());
    compression
}

/// The 101 to the client: the upstream's, with exact Upgrade and Connection. RFC 6455 §4.2.2.
fn switching_protocols(answer: &ResponseHeader) -> Vec<u8> {
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".to_vec();
    write_end_to_end_headers(&mut head, answer, &[header::CONTENT_LENGTH]);
    head.extend_from_slice(b"\r\n");
    head
}

/// Writes the headers that are for the client, in the upstream's own case.
fn write_end_to_end_headers(into: &mut Vec<u8>, answer: &ResponseHeader, without: &[http::HeaderName]) {
    // What an upstream's Connection names badly is dropped with it: the answer is judged by what is left.
    let nominated = forwarding::nominated(&answer.headers).unwrap_or_default();
    for (name, value) in answer.case_header_iter() {
        let Ok(plain) = http::HeaderName::from_bytes(name.as_slice()) else { continue };
        if forwarding::is_hop_by_hop(&plain) || nominated.contains(&plain) || without.contains(&plain) {
            continue;
        }
        into.extend_from_slice(name.as_slice());
        into.extend_from_slice(b": ");
        into.extend_from_slice(value.as_bytes());
        into.extend_from_slice(b"\r\n");
    }
}

/// Who broke a relayed answer off.
#[derive(Clone, Copy)]
enum BrokenOff {
    ByClient,
    ByUpstream,
}

impl BrokenOff {
    fn detail(self) -> &'static str {
        match self {
            Self::ByClient => "the client did not take the whole answer",
            Self::ByUpstream => "the upstream broke the answer off",
        }
    }
}

/// Relays an answer that is no 101 as what it is, and with it the end of the connection.
async fn relay(io: &mut Socket, asked: &mut Asked, step_timeout: std::time::Duration) -> Result<(), BrokenOff> {
    let answer = &asked.answer;
    let status = answer.status;
    let reason = answer.get_reason_phrase().unwrap_or("");
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    let has_body = !matches!(status.as_u16(), 204 | 304);
    let chunked = has_body && !answer.headers.contains_key(header::CONTENT_LENGTH);
    write_end_to_end_headers(&mut head, answer, &[]);
    // A 426 must name what it asks for: RFC 9110 §15.5.22.
    match answer.headers.get(header::UPGRADE).filter(|_| status.as_u16() == 426) {
        Some(upgrade) => {
            head.extend_from_slice(b"Upgrade: ");
            head.extend_from_slice(upgrade.as_bytes());
            head.extend_from_slice(b"\r\nConnection: Upgrade, close\r\n");
        }
        None => head.extend_from_slice(b"Connection: close\r\n"),
    }
    head.extend_from_slice(if chunked { b"Transfer-Encoding: chunked\r\n\r\n" } else { b"\r\n" });
    // An error on either side breaks off the body, and the end of the connection shows that to the client.
    relay_body(io, &mut asked.session, &head, has_body, chunked, step_timeout).await
}

async fn relay_body(
    io: &mut Socket,
    session: &mut HttpSession,
    head: &[u8],
    has_body: bool,
    chunked: bool,
    step_timeout: std::time::Duration,
) -> Result<(), BrokenOff> {
    let write = async |io: &mut Socket, bytes: &[u8]| match timeout(step_timeout, io.send_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(BrokenOff::ByClient),
    };
    write(io, head).await?;
    if !has_body {
        return Ok(());
    }
    loop {
        let piece = match timeout(step_timeout, session.read_body_bytes()).await {
            Ok(Ok(Some(piece))) if piece.is_empty() => continue,
            Ok(Ok(piece)) => piece,
            Ok(Err(_)) | Err(_) => return Err(BrokenOff::ByUpstream),
        };
        match piece {
            Some(piece) if chunked => {
                write(io, format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                write(io, &piece).await?;
                write(io, b"\r\n").await?;
            }
            Some(piece) => write(io, &piece).await?,
            None if chunked => return write(io, b"0\r\n\r\n").await,
            None => return Ok(()),
        }
    }
}

/// The upstream's stream, and what came behind its 101.
async fn take_stream(mut session: HttpSession) -> Option<(Socket, Vec<u8>)> {
    // Pingora gives what it read ahead as the first piece of the body. `into_inner` alone would lose it.
    let ahead = session.read_body_bytes().now_or_never().and_then(Result::ok).flatten();
    let (stream, _) = PrereadStream::unbox(session.into_inner())?;
    Some((stream, ahead.map(Vec::from).unwrap_or_default()))
}

/// Keeps a client's socket from hiding that it is slow.
pub fn tune_client(io: &Socket) {
    let Some(tcp) = io.tcp() else { return };
    let socket = socket2::SockRef::from(tcp);
    // Both are only faster or sooner with them; a socket that does not know them works.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(CLIENT_NOTSENT_LOWAT_BYTES);
}

/// Counts a client that comes back, and says who it is for the end of its session.
fn note_client(gateway: &Gateway, request: &Request, rule: &Rule, cookie: Option<&[u8]>) -> reconnects::Client {
    let user_agent = request.head.request.headers.get(header::USER_AGENT).map_or(&b""[..], |value| value.as_bytes());
    let client = gateway.reconnects.client(&rule.name, cookie, request.client.limit_key(), user_agent);
    match gateway.reconnects.returns(&client, Instant::now()) {
        Some(reconnects::By::Cookie) => rule.metrics.reconnects_by_cookie.inc(),
        Some(reconnects::By::Address) => rule.metrics.reconnects_by_address.inc(),
        None => {}
    }
    client
}
