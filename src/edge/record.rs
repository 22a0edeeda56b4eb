//! The log lines of requests and sessions: what is kept of a request for them, and how they are written.
//!
//! Fields of a peer's are cut at 256 bytes when they are kept, and the log escapes what they hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName};

use super::head::{Head, Protocol};
use super::request::Request;
use crate::cause::{Cause, Refusal};
use crate::events::{self, Event};
use crate::metrics::NO_RULE;
use crate::policy::client_address::Peer;
use crate::tunnel::Compression;
use crate::tunnel::registry::Control;
use crate::tunnel::session::Outcome;

/// What the log says of a request, kept until its end.
#[derive(Debug)]
pub struct Record {
    listener: Arc<str>,
    protocol: Protocol,
    rule: Option<Arc<str>>,
    host: Option<Box<str>>,
    path: Option<Box<str>>,
    method: Option<Box<str>>,
    origin: Option<Box<str>>,
    user_agent: Option<Box<str>>,
    request_id: Option<Box<str>>,
    traceparent: Option<Box<str>>,
    client: Peer,
    peer: Peer,
    session_id: u64,
}

/// How a plain request was answered.
#[derive(Clone, Copy, Debug)]
pub struct PlainAnswer<'a> {
    /// The upstream's name; `None` when the rule answered.
    pub upstream: Option<&'a str>,
    /// The endpoint.
    pub endpoint: Option<&'a str>,
    /// The status.
    pub status: u16,
    /// From the end of the request's head to the end of the answer.
    pub duration: Duration,
    /// The bytes of the request's body.
    pub bytes_in: usize,
    /// The bytes of the answer's body.
    pub bytes_out: usize,
    /// Whether the answer broke off.
    pub broken: bool,
}

/// What the log says of a session.
#[derive(Debug)]
pub struct SessionRecord {
    /// Its handshake.
    pub request: Record,
    /// When it was opened.
    pub started: SystemTime,
    /// The upstream's name.
    pub upstream: Box<str>,
    /// The endpoint.
    pub endpoint: Box<str>,
    /// The subprotocol that the upstream chose.
    pub subprotocol: Option<Box<str>>,
    /// Who compresses messages.
    pub compression: Compression,
}

impl Record {
    /// Of a connection that sent no head that could be read.
    pub fn of_peer(listener: &Arc<str>, peer: Peer) -> Self {
        Self {
            listener: listener.clone(),
            protocol: Protocol::Http1,
            rule: None,
            host: None,
            path: None,
            method: None,
            origin: None,
            user_agent: None,
            request_id: None,
            traceparent: None,
            client: peer,
            peer,
            session_id: rand::random(),
        }
    }

    /// Of a head that could be parsed.
    pub fn of_head(listener: &Arc<str>, peer: Peer, head: &Head) -> Self {
        let text = |name: &HeaderName| head.request.headers.get(name).map(|value| kept(value.as_bytes()));
        Self {
            protocol: head.protocol,
            host: text(&header::HOST),
            path: Some(kept(path_of(head.request.raw_path()))),
            method: Some(kept(head.request.method.as_str().as_bytes())),
            origin: text(&header::ORIGIN),
            user_agent: text(&header::USER_AGENT),
            request_id: text(&HeaderName::from_static("x-request-id")),
            traceparent: text(&HeaderName::from_static("traceparent")),
            ..Self::of_peer(listener, peer)
        }
    }

    /// Of a request.
    pub fn of_request(listener: &Arc<str>, request: &Request) -> Self {
        Self { client: request.client, ..Self::of_head(listener, request.peer, &request.head) }
    }

    /// Says that the connection speaks HTTP/2.
    pub fn set_http2(&mut self) {
        self.protocol = Protocol::Http2;
    }

    /// Names the client that a trusted peer spoke for.
    pub fn set_client(&mut self, client: Peer) {
        self.client = client;
    }

    /// Names the rule that matched.
    pub fn set_rule(&mut self, rule: &str) {
        self.rule = Some(rule.into());
    }

    /// Writes the line of a refusal. `detail` is ours, with no byte of a peer's.
    pub fn refused(&self, refusal: &Refusal, detail: Option<&str>) {
        let row = refusal.row();
        let status = match refusal {
            Refusal::UpstreamAnswered(status) => Some(*status),
            _ => row.status.map(|status| self.protocol.status(status)),
        };
        self.fields(Event::new("refusal"))
            .field("status", status)
            .field("cause", row.name)
            .field("policy", row.policy)
            .field("detail", detail)
            .emit();
    }

    /// Writes the line of what a rule that only reports would have refused.
    pub fn would_refuse(&self, refusal: &Refusal) {
        let row = refusal.row();
        self.fields(Event::new("would_refuse")).field("cause", row.name).field("policy", row.policy).emit();
    }

    /// Writes the line of a plain request.
    pub fn answered(&self, answered: &PlainAnswer<'_>) {
        self.fields(Event::new("request"))
            .field("upstream", answered.upstream)
            .field("endpoint", answered.endpoint)
            .field("status", answered.status)
            .field("duration_seconds", answered.duration.as_secs_f64())
            .field("bytes_in", answered.bytes_in)
            .field("bytes_out", answered.bytes_out)
            .field("cause", answered.broken.then_some("broken_off"))
            .emit();
    }

    fn fields(&self, event: Event) -> Event {
        event
            .field("listener", &*self.listener)
            .field("rule", self.rule.as_deref().unwrap_or(NO_RULE))
            .field("host", self.host.as_deref())
            .field("path", self.path.as_deref())
            .field("method", self.method.as_deref())
            .field("client_ip", format_args!("{}", self.client))
            .field("peer_ip", format_args!("{}", self.peer))
            .field("origin", self.origin.as_deref())
            .field("user_agent", self.user_agent.as_deref())
            .field("protocol", self.protocol.name())
            .field("session_id", session_id(self.session_id))
            .field("request_id", self.request_id.as_deref())
            .field("traceparent", self.traceparent.as_deref())
    }
}

/// A target without its query, and without an authority, which may hold a password.
fn path_of(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let target = &target[..end];
    if target.starts_with(b"/") {
        return target;
    }
    let Some(authority) = target.windows(3).position(|three| three == b"://").map(|at| at + 3) else { return target };
    let path = target[authority..].iter().position(|byte| *byte == b'/').map_or(target.len(), |at| authority + at);
    &target[path..]
}

/// A session's number as the log writes it.
fn session_id(id: u64) -> String {
    format!("{id:016x}")
}

impl SessionRecord {
    /// The session's number, which [`SessionRecord::parse_id`] reads from what the log writes.
    pub fn id(&self) -> u64 {
        self.request.session_id
    }

    /// The session's id, as the log has it.
    pub fn session_id(&self) -> String {
        session_id(self.id())
    }

    /// Reads a `session_id` of the log.
    pub fn parse_id(text: &str) -> Option<u64> {
        u64::from_str_radix(text, 16).ok().filter(|id| session_id(*id) == text)
    }

    /// The name of the session's rule.
    pub fn rule(&self) -> &str {
        self.request.rule.as_deref().unwrap_or(NO_RULE)
    }

    /// What the log will say of the session as far as it is known, and what it has carried so far: a JSON object.
    pub fn live(&self, control: &Control, now: SystemTime) -> String {
        let counts = &control.counts;
        let [messages_in, messages_out, bytes_in, bytes_out, pending_out, pending_in] = [
            &counts.messages_in,
            &counts.messages_out,
            &counts.bytes_in,
            &counts.bytes_out,
            &control.pending_bytes[0],
            &control.pending_bytes[1],
        ]
        .map(|count| count.load(Ordering::Relaxed));
        self.handshake_fields(self.request.fields(Event::object()))
            .field("started", self.started)
            .field("age_seconds", now.duration_since(self.started).unwrap_or_default().as_secs_f64())
            .field("messages_in", messages_in)
            .field("messages_out", messages_out)
            .field("bytes_in", bytes_in)
            .field("bytes_out", bytes_out)
            .field("pending_bytes_in", pending_in)
            .field("pending_bytes_out", pending_out)
            .into_json()
    }

    fn handshake_fields(&self, event: Event) -> Event {
        event
            .field("upstream", &*self.upstream)
            .field("endpoint", &*self.endpoint)
            // RFC 8441 §5: over HTTP/2 a tunnel is opened by a 200.
            .field("status", if self.request.protocol.is_http2() { 200u16 } else { 101 })
            .field("subprotocol", self.subprotocol.as_deref())
            .field("compression", self.compression.name())
    }

    /// Writes the line of a session.
    pub fn ended(&self, outcome: &Outcome) {
        let row = outcome.cause.row();
        let stats = &outcome.stats;
        self.handshake_fields(self.request.fields(Event::new("session")))
            .field("duration_seconds", outcome.duration.as_secs_f64())
            .field("messages_in", stats.inbound.messages)
            .field("messages_out", stats.outbound.messages)
            .field("bytes_in", stats.inbound.bytes)
            .field("bytes_out", stats.outbound.bytes)
            .field("close_code", outcome.cause.code().0)
            .field("close_sent", outcome.close_sent.map(|code| code.0))
            .field("closed_by", row.by.name())
            .field("cause", row.name)
            .field("detail", detail(&outcome.cause))
            .field("ping_rtt_ms", stats.ping_rtt.map(|rtt| rtt.as_secs_f64() * 1e3))
            .field("pings_unanswered", stats.upstream_pings_unanswered)
            .field("queue_max_bytes", stats.queue_max_bytes)
            .emit();
    }
}

/// The part of a peer's text that is kept.
pub fn kept(bytes: &[u8]) -> Box<str> {
    // One character more than the limit is enough to cut at it.
    let front = &bytes[..bytes.len().min(events::MAX_TEXT_BYTES + 4)];
    events::cut(&String::from_utf8_lossy(front)).into()
}

fn detail(cause: &Cause) -> Option<String> {
    Some(cause.to_string()).filter(|detail| !detail.is_empty())
}
