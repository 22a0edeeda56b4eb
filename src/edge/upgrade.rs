//! The opening handshake: from a request that asks for a WebSocket to a tunnel, or to an answer. RFC 6455 §4.
//!
//! Every check comes before the upstream is asked; nothing of the client's goes on before the upstream's 101 has been
//! verified; the 101 is written at once. A tunnel is a task of its own, so that what the handshake needed is given
//! back. A client ends here in every case: over HTTP/1.1 a refused upgrade closes its connection.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::FutureExt as _;
use http::header;
use pingora::ErrorType;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v1::client::HttpSession;
use tokio::time::timeout;

use super::asked::{Asked, BrokenOff, Source, Stream, Unasked, relay};
use super::backplane::{self, RuleBackplane};
use super::client::Client;
use super::forwarding;
use super::gateway::{Gateway, ListenerState, Rule};
use super::over_http;
use super::record::{Record, SessionRecord, kept};
use super::request::Request;
use super::routed::Routed;
use super::socket::Socket;
use super::sticky::{self, Choice};
use super::stream::PrereadStream;
use super::subprotocol;
use super::upstreams::{ConnectError, Lease, Upstream};
use crate::cause::Refusal;
use crate::config::{BackplaneMode, CompressionMode, WebSocketMode};
use crate::grip::extension::{self as grip, OptIn};
use crate::metrics::SessionMark;
use crate::policy::connection_limit::{Denied, Enforce, Guard};
use crate::policy::origin::Site;
use crate::policy::reconnects;
use crate::tunnel::registry::{Entry, Order};
use crate::tunnel::session::{Opening, Session};
use crate::tunnel::{Compression, Wire};
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
    _lease: Option<Lease>,
    entry: Entry<SessionRecord>,
    _mark: SessionMark,
}

/// A session's places under the limits.
struct Places {
    _client_descriptor: Option<Guard>,
    _upstream_descriptor: Option<Guard>,
    _in_rule: Guard,
    _in_process: Guard,
}

/// Answers a request for a WebSocket, and runs its tunnel in a task of its own. `client_descriptor` is the place of the
/// client's connection, where the session has it for itself.
pub async fn serve<C: Client>(
    gateway: &Arc<Gateway>,
    listener: &ListenerState,
    mut client: C,
    routed: Routed,
    client_descriptor: Option<Guard>,
) {
    let Routed { request, rule, upstream: to, choice, record } = routed;
    let metrics = rule.metrics.clone();
    let refuse_because = async |client: C, refusal: Refusal, detail: Option<&str>| {
        metrics.refused(&refusal);
        record.refused(&refusal, detail);
        client.refuse(&refusal).await;
    };
    let refuse = async |client: C, refusal: Refusal| refuse_because(client, refusal, None).await;
    let (places, offers) = match admit(gateway, &request, &rule, &record, client_descriptor) {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(client, refusal).await,
    };
    let asked = tokio::select! {
        biased;
        asked = ask(&request, &rule, &to, &choice, listener, &offers) => asked,
        refusal = client.watch() => Err(refusal.into()),
        () = gateway.refusing() => Err(Refusal::Draining.into()),
    };
    let mut asked = match asked {
        Ok(asked) => asked,
        Err(Unasked { refusal, detail }) => return refuse_because(client, refusal, detail.as_deref()).await,
    };
    let cookie = sticky::set_cookie(&rule, &to, &request, &choice, &asked.endpoint);
    if let Some(cookie) = &cookie {
        // The value is ours, so it is always one.
        let _ = asked.answer.append_header(header::SET_COOKIE, cookie);
    }
    let status = asked.answer.status;
    if status.is_success() && !C::RELAYS_SUCCESS {
        let refusal = Refusal::UpstreamInvalidUpgrade;
        return refuse_because(client, refusal, Some("the upstream answered without an upgrade")).await;
    }
    if status != http::StatusCode::SWITCHING_PROTOCOLS {
        forwarding::apply(&rule.response_headers, &mut *asked.answer);
        let refusal = Refusal::UpstreamAnswered(status.as_u16());
        metrics.refused(&refusal);
        // Places and lease are held until the answer is relayed: it takes an upstream connection like any other.
        let relayed = relay(&mut client, &mut asked, rule.upstream_timeout).await;
        record.refused(&refusal, relayed.err().map(BrokenOff::detail));
        return client.end().await;
    }
    let Accepted { compression: accepted, grip } = match verify(&asked, &rule) {
        Ok(accepted) => accepted,
        Err(error) => return refuse_because(client, Refusal::UpstreamInvalidUpgrade, Some(&error)).await,
    };
    let client_headers = &request.head.request.headers;
    let resumable =
        match subprotocol::answer(client_headers, rule.backplane.is_some(), grip.is_some(), &mut asked.answer) {
            Ok(resumable) => resumable,
            Err(refusal) => return refuse(client, refusal).await,
        };
    forwarding::apply(&rule.response_headers, &mut *asked.answer);
    let compression = compress(&rule, &offers, accepted, &mut asked.answer);
    if let Some(refusal) = client.watch().now_or_never() {
        return refuse(client, refusal).await;
    }
    if gateway.is_refusing() {
        return refuse(client, Refusal::Draining).await;
    }
    if !matches!(timeout(rule.upstream_timeout, client.accept(&asked.answer)).await, Ok(Ok(()))) {
        return refuse(client, Refusal::ClientGone).await;
    }
    let Some((upstream, preread, lease)) = asked.source.take_stream().await else {
        // The stream that went in is the one that comes out; without it there is no session to run.
        return client.end().await;
    };
    // Behind `accept` it is always one.
    let Some(wire) = client.into_wire() else { return };
    rule.metrics.accepted.inc();
    let cookie = sticky::client_cookie(&rule, &request, &choice, cookie.as_deref());
    let returning = note_client(gateway, &request, &rule, cookie);
    let subprotocol = asked.answer.headers.get(header::SEC_WEBSOCKET_PROTOCOL).map(|value| kept(value.as_bytes()));
    let record = SessionRecord {
        request: record,
        started: SystemTime::now(),
        upstream: to.name().into(),
        endpoint: asked.endpoint.address().into(),
        subprotocol,
        compression,
    };
    let entry = gateway.registry.enter(rule.metrics.clone(), record);
    if gateway.is_refusing() {
        // The drain began behind the check above, and may not have seen this session.
        entry.live.control.give(Order::Drain);
    }
    let control = entry.live.control.clone();
    let endpoint_answers = asked.endpoint.answers_pings().clone();
    let held = Held { _places: places, _lease: lease, entry, _mark: rule.metrics.session() };
    let (settings, metrics) = (rule.tunnel.clone(), rule.metrics.clone());
    let opening = Opening {
        client: wire,
        upstream: (),
        upstream_preread: preread,
        compression,
        settings,
        metrics,
        control,
        endpoint_answers,
    };
    let (gateway, name) = (gateway.clone(), &rule.name);
    let resume = |backplane: &RuleBackplane| {
        resumable.then(|| backplane.shared.resume(held.entry.live.tag.session_id(), &rule.tunnel))
    };
    match (upstream, &rule.backplane, grip) {
        (Stream::Socket(io), Some(backplane), Some(opt_in)) => {
            let backend = backplane.backend(&to, &choice.preference, &asked.sent, rule.upstream_timeout);
            let resume = resume(backplane);
            let of = (&**name, backplane.subscriber(&rule.metrics, compression));
            let opening =
                opening.map_upstream(|(), preread| backplane.upstream(io, preread, opt_in, backend, of, resume));
            tokio::spawn(run(Session::new(opening), held, gateway, returning));
        }
        (Stream::Socket(io), ..) => {
            let opening = opening.with_upstream(io);
            tokio::spawn(run(Session::new(opening), held, gateway, returning));
        }
        (Stream::OverHttp(opened), Some(backplane), _) => {
            let subscriber = backplane.subscriber(&rule.metrics, compression);
            let upstream = opened.into_upstream(subscriber, resume(backplane), name.clone());
            tokio::spawn(run(Session::new(opening.with_upstream(upstream)), held, gateway, returning));
        }
        // Only a rule with a backplane asks over HTTP.
        (Stream::OverHttp(_), None, _) => {}
    }
}

/// A session from its 101 to its log line. It is polled where it was captured: an `async fn` keeps an argument that it
/// awaits in two places, and a session is most of what an idle connection takes.
#[allow(clippy::manual_async_fn, reason = "said above")]
fn run<W: Wire, U: Wire>(
    mut session: Session<W, U>,
    held: Held,
    gateway: Arc<Gateway>,
    client: reconnects::Client,
) -> impl Future<Output = ()> {
    async move {
        // All of it is captured, not the one field that is read.
        let held = &held;
        let outcome = (&mut session).await;
        // Its connections end before it is counted as ended.
        drop(session);
        gateway.reconnects.ended(&client, Instant::now());
        held.entry.live.metrics.closed(&outcome.cause);
        held.entry.live.tag.ended(&outcome);
    }
}

/// Every check that needs no upstream, in the order of the table in the manual; and the client's offers of
/// permessage-deflate.
fn admit(
    gateway: &Gateway,
    request: &Request,
    rule: &Rule,
    record: &Record,
    client_descriptor: Option<Guard>,
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
        _upstream_descriptor: match &rule.backplane {
            // It has a connection to its backend only while it asks.
            Some(RuleBackplane { mode: BackplaneMode::GripHttp, .. }) => None,
            _ => Some(gateway.take_descriptor().ok_or(Refusal::ProcessConnections)?),
        },
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
    let is_http2 = head.protocol.is_http2();
    if !is_http2 && head.request.method != http::Method::GET {
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
    let one_key = keys.next().is_some_and(|key| handshake::is_valid_key(key.as_bytes())) && keys.next().is_none();
    // RFC 8441 §5: over HTTP/2 it has no key, and one that came means nothing.
    if !one_key && !is_http2 {
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

async fn ask(
    request: &Request,
    rule: &Rule,
    to: &Arc<Upstream>,
    choice: &Choice,
    listener: &ListenerState,
    offers: &[Parameters],
) -> Result<Asked, Unasked> {
    if let Some(backplane @ RuleBackplane { mode: BackplaneMode::GripHttp, .. }) = &rule.backplane {
        let sent = Box::new(upstream_request(request, rule, listener, &[])?);
        return over_http::ask(backplane, rule, to, choice, sent).await;
    }
    let (stream, lease) = to.connect(&choice.preference).await.map_err(|error| Unasked {
        refusal: match error {
            ConnectError::Timeout(_) => Refusal::UpstreamTimeout,
            ConnectError::Unreachable(_) => Refusal::UpstreamUnreachable,
        },
        detail: error.detail().map(Cow::Borrowed),
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
        Ok(Ok(answer)) => {
            Ok(Asked { source: Source::Connection(Box::new(session), lease), answer, endpoint, sent, offers })
        }
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
    if let Some(backplane) = &rule.backplane {
        backplane::strip(&mut upstream);
        backplane.shared.offer(&mut upstream)?;
    }
    subprotocol::offer(&request.head.request.headers, rule.backplane.is_some(), &mut upstream)?;
    forwarding::tell_client(&mut upstream, request, &listener.config.client_address);
    forwarding::apply(&rule.request_headers, &mut upstream);
    forwarding::rewrite(rule.rewrite.as_ref(), &mut upstream).map_err(|_| Refusal::BadPath)?;
    if request.head.protocol.is_http2() {
        // What a CONNECT is over HTTP/1.1, with a key of ours. RFC 8441 §5.
        upstream.set_method(http::Method::GET);
        upstream.insert_header("Sec-WebSocket-Key", handshake::key_of(rand::random())).map_err(malformed)?;
    }
    upstream.insert_header("Connection", "Upgrade").map_err(malformed)?;
    upstream.insert_header("Upgrade", "websocket").map_err(malformed)?;
    Ok(upstream)
}

/// What an upstream has accepted.
struct Accepted {
    /// permessage-deflate.
    compression: Option<Parameters>,
    /// GRIP.
    grip: Option<OptIn>,
}

/// Whether the upstream's 101 is one, and what it has accepted.
fn verify(asked: &Asked, rule: &Rule) -> Result<Accepted, String> {
    let key = asked.sent.headers.get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes());
    let checked = handshake::check_answer(key.unwrap_or_default(), &asked.sent.headers, &asked.answer.headers);
    checked.map_err(|error| error.to_string())?;
    if let Source::OverHttp(opened) = &asked.source {
        return Ok(Accepted { compression: None, grip: opened.opt_in().cloned() });
    }
    if rule.backplane.is_some() {
        return match grip::answer(&asked.answer.headers) {
            Ok(Some(OptIn::NoPrefix)) => Err("grip with an empty message-prefix: users could subscribe".to_owned()),
            Ok(grip) => Ok(Accepted { compression: None, grip }),
            Err(error) => Err(error.to_string()),
        };
    }
    let compression = extensions::answer(&asked.offers, &asked.answer.headers).map_err(|error| error.to_string())?;
    Ok(Accepted { compression, grip: None })
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
