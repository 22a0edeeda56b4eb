//! Why a request was refused and why a session ended: the one table that answers what the peer is told, which metric
//! counts it and what the log calls it.
//!
//! [`Refusal`] is for everything before the 101, and its rows hold HTTP statuses; [`Cause`] is for everything after,
//! and its rows hold close codes. docs/causes.md is written from these two tables; a test compares it. A peer never
//! sees more than the fixed strings of a row: no byte of the other side, no address, no error text.

use std::fmt;
use std::time::Duration;

use crate::ws::close::CloseCode;
use crate::ws::error::ProtocolError;

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The client, by a Close frame or by going away.
    Client,
    /// The upstream, by a Close frame or by going away.
    Upstream,
    /// Sluicegate, because a policy or the protocol said so.
    Proxy,
}

impl By {
    /// The metric label and log value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
        }
    }
}

/// Why a request got no tunnel and no answer of the upstream's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The head is not HTTP/1.x, or breaks its grammar.
    MalformedRequest,
    /// Host is missing, doubled, malformed, or differs from an absolute-form target.
    BadHost,
    /// The path has dot segments, an escaped slash, a NUL or a broken escape.
    BadPath,
    /// `Sec-WebSocket-Key` is missing, doubled or not 16 bytes of base64.
    BadKey,
    /// `Sec-WebSocket-Protocol` or `-Extensions` breaks its grammar.
    BadOffer,
    /// An upgrade with a body: `Content-Length` or `Transfer-Encoding`.
    BodyOnUpgrade,
    /// Bytes behind the head before the 101.
    EarlyData,
    /// `websocket` beside another protocol, or two Upgrade headers.
    MixedUpgrade,
    /// An upgrade with a method other than GET.
    UpgradeMethod,
    /// An upgrade over HTTP/1.0.
    UpgradeOverHttp10,
    /// CONNECT, which is never proxied.
    ConnectMethod,
    /// An extended CONNECT whose `:protocol` is not websocket. RFC 8441 §4.
    ConnectProtocol,
    /// The head was not complete in time.
    HeadTimeout,
    /// The head is over `head.max_bytes` or `head.max_headers`.
    HeadTooLarge,
    /// `Sec-WebSocket-Version` is not 13.
    UnsupportedVersion,
    /// The rule takes WebSocket upgrades only.
    UpgradeRequired,
    /// The rule takes no upgrades.
    UpgradeDenied,
    /// The client's address is not among the rule's `clients`.
    ClientNotAllowed,
    /// Origin is not in the allow-list.
    OriginNotAllowed,
    /// No rule matches.
    NoRule,
    /// The body is over `http.max_body_size`.
    BodyTooLarge,
    /// Host is not in the listener's `hosts`.
    HostNotServed,
    /// Handshakes of this client come too fast; another is possible after the duration.
    HandshakeRate(Duration),
    /// The client has as many sessions as `connections.per_ip` allows.
    ConnectionsPerIp,
    /// The rule has as many sessions as `connections.total` allows.
    ConnectionsTotal,
    /// The process has as many sessions as `limits.connections` or its descriptors allow.
    ProcessConnections,
    /// The process has as much memory as `limits.memory` allows.
    ProcessMemory,
    /// The process drains.
    Draining,
    /// No endpoint of the upstream could be connected to, or the connection broke before an answer.
    UpstreamUnreachable,
    /// The upstream's answer is not HTTP.
    UpstreamMalformed,
    /// The upstream claims a 101 that is not a valid one for this request.
    UpstreamInvalidUpgrade,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The upstream answered an upgrade with plain HTTP of this status, which was relayed.
    UpstreamAnswered(u16),
    /// The client went away before the answer.
    ClientGone,
    /// A listener that reads the PROXY protocol was sent no sound header, or by a peer that is not trusted.
    ProxyHeader,
    /// The client did not finish the TLS handshake in time, or it failed.
    TlsHandshake,
    /// A request in the clear on a listener with TLS.
    CleartextOnTls,
    /// More streams of a connection than are served at once.
    StreamLimit,
}

/// A row of the table of refusals.
#[derive(Clone, Copy, Debug)]
pub struct RefusalRow {
    /// The `result` label, the log's `cause`, and the last part of the problem's `type`.
    pub name: &'static str,
    /// The policy that refused: the `policy` label.
    pub policy: &'static str,
    /// The HTTP status of the answer; `None` when there is none of ours.
    pub status: Option<u16>,
    /// The title of the problem document: all that the client is told.
    pub title: &'static str,
}

const fn refusal(name: &'static str, policy: &'static str, status: u16, title: &'static str) -> RefusalRow {
    RefusalRow { name, policy, status: Some(status), title }
}

impl Refusal {
    /// One of each, in the order of the table.
    pub const ALL: [Self; 38] = [
        Self::MalformedRequest,
        Self::BadHost,
        Self::BadPath,
        Self::BadKey,
        Self::BadOffer,
        Self::BodyOnUpgrade,
        Self::EarlyData,
        Self::MixedUpgrade,
        Self::UpgradeMethod,
        Self::UpgradeOverHttp10,
        Self::ConnectMethod,
        Self::ConnectProtocol,
        Self::HeadTimeout,
        Self::HeadTooLarge,
        Self::UnsupportedVersion,
        Self::UpgradeRequired,
        Self::UpgradeDenied,
        Self::ClientNotAllowed,
        Self::OriginNotAllowed,
        Self::NoRule,
        Self::BodyTooLarge,
        Self::HostNotServed,
        Self::HandshakeRate(Duration::ZERO),
        Self::ConnectionsPerIp,
        Self::ConnectionsTotal,
        Self::ProcessConnections,
        Self::ProcessMemory,
        Self::Draining,
        Self::UpstreamUnreachable,
        Self::UpstreamMalformed,
        Self::UpstreamInvalidUpgrade,
        Self::UpstreamTimeout,
        Self::UpstreamAnswered(401),
        Self::ClientGone,
        Self::ProxyHeader,
        Self::TlsHandshake,
        Self::CleartextOnTls,
        Self::StreamLimit,
    ];

    /// This refusal's row.
    pub const fn row(&self) -> RefusalRow {
        match self {
            Self::MalformedRequest => refusal("malformed_request", "request", 400, "malformed request"),
            Self::BadHost => refusal("bad_host", "request", 400, "missing or malformed Host"),
            Self::BadPath => refusal("bad_path", "request", 400, "malformed path"),
            Self::BadKey => refusal("bad_key", "handshake", 400, "missing or malformed Sec-WebSocket-Key"),
            Self::BadOffer => {
                refusal("bad_offer", "handshake", 400, "malformed Sec-WebSocket-Protocol or Sec-WebSocket-Extensions")
            }
            Self::BodyOnUpgrade => refusal("body_on_upgrade", "handshake", 400, "a WebSocket upgrade has no body"),
            Self::EarlyData => refusal("early_data", "handshake", 400, "data before the upgrade was answered"),
            Self::MixedUpgrade => refusal("mixed_upgrade", "handshake", 400, "more than one protocol in Upgrade"),
            Self::UpgradeMethod => refusal("upgrade_method", "handshake", 400, "a WebSocket upgrade uses GET"),
            Self::UpgradeOverHttp10 => {
                refusal("upgrade_over_http10", "handshake", 400, "a WebSocket upgrade needs HTTP/1.1")
            }
            Self::ConnectMethod => refusal("connect_method", "request", 405, "CONNECT is not served"),
            Self::ConnectProtocol => refusal("connect_protocol", "request", 501, "only websocket is served by CONNECT"),
            Self::HeadTimeout => refusal("head_timeout", "head", 408, "request head not complete in time"),
            Self::HeadTooLarge => refusal("head_too_large", "head", 431, "request head too large"),
            Self::UnsupportedVersion => {
                refusal("unsupported_version", "handshake", 426, "Sec-WebSocket-Version must be 13")
            }
            Self::UpgradeRequired => refusal("upgrade_required", "websocket", 426, "a WebSocket upgrade is required"),
            Self::UpgradeDenied => refusal("upgrade_denied", "websocket", 403, "WebSocket upgrades are not allowed"),
            Self::ClientNotAllowed => refusal("client_not_allowed", "clients", 403, "client address not allowed"),
            Self::OriginNotAllowed => refusal("origin_not_allowed", "origin", 403, "Origin not allowed"),
            Self::NoRule => refusal("no_rule", "route", 404, "no rule matches"),
            Self::BodyTooLarge => refusal("body_too_large", "body_size", 413, "request body too large"),
            Self::HostNotServed => refusal("host_not_served", "route", 421, "Host not served here"),
            Self::HandshakeRate(_) => refusal("handshake_rate", "handshake_rate", 429, "too many handshakes"),
            Self::ConnectionsPerIp => {
                refusal("connections_per_ip", "connections_per_ip", 429, "too many connections from this address")
            }
            Self::ConnectionsTotal => refusal("connections_total", "connections_total", 503, "too many connections"),
            Self::ProcessConnections => refusal("process_connections", "process", 503, "too many connections"),
            Self::ProcessMemory => refusal("process_memory", "process", 503, "memory limit reached"),
            Self::Draining => refusal("draining", "process", 503, "shutting down"),
            Self::UpstreamUnreachable => refusal("upstream_unreachable", "upstream", 502, "upstream unreachable"),
            Self::UpstreamMalformed => refusal("upstream_malformed", "upstream", 502, "upstream answer malformed"),
            Self::UpstreamInvalidUpgrade => {
                refusal("upstream_invalid_upgrade", "upstream", 502, "upstream answered the upgrade wrongly")
            }
            Self::UpstreamTimeout => refusal("upstream_timeout", "upstream", 504, "upstream did not answer in time"),
            Self::UpstreamAnswered(_) => RefusalRow {
                name: "upstream_answered",
                policy: "upstream",
                status: None,
                title: "the upstream's own answer, relayed",
            },
            Self::ClientGone => RefusalRow {
                name: "client_gone",
                policy: "request",
                status: None,
                title: "the client went away before the answer",
            },
            Self::ProxyHeader => RefusalRow {
                name: "proxy_header",
                policy: "proxy_protocol",
                status: None,
                title: "no sound PROXY header of a trusted peer; closed without an answer",
            },
            Self::TlsHandshake => RefusalRow {
                name: "tls_handshake",
                policy: "tls",
                status: None,
                title: "the TLS handshake failed; closed without an answer",
            },
            Self::CleartextOnTls => refusal("cleartext_on_tls", "tls", 400, "this port is for HTTPS"),
            Self::StreamLimit => RefusalRow {
                name: "stream_limit",
                policy: "http2",
                status: None,
                title: "more streams of an HTTP/2 connection than are served at once; reset",
            },
        }
    }
}

/// Why a session ended, with the numbers that the log needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The client sent a Close frame, with this code if any.
    ClientClosed(Option<CloseCode>),
    /// The upstream sent a Close frame, with this code if any.
    UpstreamClosed(Option<CloseCode>),
    /// The client's connection ended without a Close frame.
    ClientGone,
    /// The upstream's connection ended without a Close frame.
    UpstreamGone,
    /// The client broke RFC 6455.
    ClientProtocol(ProtocolError),
    /// The client sent text that is not UTF-8.
    ClientInvalidUtf8,
    /// The client broke the subprotocol `sluicegate.v1`, in this way.
    ClientSubprotocol(&'static str),
    /// The client's message is over `message.max_size`.
    MessageTooBig {
        /// What its frames add up to so far, in bytes.
        size_bytes: u64,
        /// What is allowed, in bytes.
        limit_bytes: u64,
    },
    /// The client's compressed messages become more than `message.max_ratio` times what they are on the wire.
    InflationRatio {
        /// What is allowed.
        limit: u32,
    },
    /// The client's compressed messages consist of more blocks than their size and time let pass.
    DeflateBlocks,
    /// The client's message has more fragments than `message.max_fragments`.
    TooManyFragments {
        /// What is allowed.
        limit: u32,
    },
    /// The client's messages come faster than `message.rate.messages`.
    MessageRate,
    /// The client's bytes come faster than `message.rate.bytes`.
    ByteRate,
    /// The client's pings and pongs come faster than `message.control_rate`.
    ControlRate,
    /// The client left a message unfinished for `message.stall_timeout`.
    MessageStalled(Duration),
    /// The client's message was not whole so long after its first byte: `message.timeout`.
    MessageTimeout(Duration),
    /// The upstream broke RFC 6455.
    UpstreamProtocol(ProtocolError),
    /// The upstream sent text that is not UTF-8.
    UpstreamInvalidUtf8,
    /// The upstream's message is over `message.upstream_max_size`.
    UpstreamMessageTooBig {
        /// What its frames add up to so far, in bytes.
        size_bytes: u64,
        /// What is allowed, in bytes.
        limit_bytes: u64,
    },
    /// The client took less than `slow_client.min_rate` for `slow_client.timeout`.
    SlowClient {
        /// What it took meanwhile, in bytes.
        taken_bytes: u64,
        /// How long output was pending.
        pending_for: Duration,
    },
    /// The client has fallen behind what this node keeps of one of its channels.
    Overrun,
    /// The client did not answer our ping.
    ClientSilent(Duration),
    /// The upstream did not answer our ping.
    UpstreamSilent(Duration),
    /// Nobody sent anything for `idle_timeout`.
    IdleTimeout(Duration),
    /// The process drains.
    Drain,
    /// An operator asked for the end, with this code.
    Operator(CloseCode),
    /// The process drained for `shutdown.drain`, and this session was still there.
    DrainCut,
}

/// A row of the table of causes.
#[derive(Clone, Copy, Debug)]
pub struct CauseRow {
    /// The `cause` label and the log's `cause`.
    pub name: &'static str,
    /// The policy that closed the session, for `sluicegate_policy_decisions_total`; `None` when no policy did.
    pub policy: Option<&'static str>,
    /// Who ended the session.
    pub by: By,
    /// The code of the Close frame that we originate to the client; `None`: no Close frame.
    pub to_client: Option<CloseCode>,
    /// The code of the Close frame that we originate to the upstream; `None`: no Close frame.
    pub to_upstream: Option<CloseCode>,
    /// The reason in the Close frame to the guilty or closed side, at most 123 bytes.
    pub reason: &'static str,
}

impl Cause {
    /// One of each, in the order of the table.
    pub const ALL: [Self; 27] = [
        Self::ClientClosed(None),
        Self::UpstreamClosed(None),
        Self::ClientGone,
        Self::UpstreamGone,
        Self::ClientProtocol(ProtocolError::Unmasked),
        Self::ClientInvalidUtf8,
        Self::ClientSubprotocol(""),
        Self::MessageTooBig { size_bytes: 0, limit_bytes: 0 },
        Self::InflationRatio { limit: 0 },
        Self::DeflateBlocks,
        Self::TooManyFragments { limit: 0 },
        Self::MessageRate,
        Self::ByteRate,
        Self::ControlRate,
        Self::MessageStalled(Duration::ZERO),
        Self::MessageTimeout(Duration::ZERO),
        Self::UpstreamProtocol(ProtocolError::Masked),
        Self::UpstreamInvalidUtf8,
        Self::UpstreamMessageTooBig { size_bytes: 0, limit_bytes: 0 },
        Self::SlowClient { taken_bytes: 0, pending_for: Duration::ZERO },
        Self::Overrun,
        Self::ClientSilent(Duration::ZERO),
        Self::UpstreamSilent(Duration::ZERO),
        Self::IdleTimeout(Duration::ZERO),
        Self::Drain,
        Self::Operator(CloseCode::SERVICE_RESTART),
        Self::DrainCut,
    ];

    /// This cause's row.
    pub const fn row(&self) -> CauseRow {
        use CloseCode as C;
        match self {
            Self::ClientClosed(_) => passed("client_closed", By::Client),
            Self::UpstreamClosed(_) => passed("upstream_closed", By::Upstream),
            Self::ClientGone => passed("client_gone", By::Client),
            Self::UpstreamGone => CauseRow {
                to_client: Some(C::SERVICE_RESTART),
                reason: "upstream connection lost",
                ..passed("upstream_gone", By::Upstream)
            },
            Self::ClientProtocol(_) => client_fault("client_protocol", "protocol", C::PROTOCOL_ERROR, "protocol error"),
            Self::ClientInvalidUtf8 => {
                client_fault("client_invalid_utf8", "utf8", C::INVALID_DATA, "text is not UTF-8")
            }
            Self::ClientSubprotocol(_) => {
                client_fault("client_subprotocol", "protocol", C::PROTOCOL_ERROR, "message breaks the subprotocol")
            }
            Self::MessageTooBig { .. } => {
                client_fault("message_too_big", "message_size", C::MESSAGE_TOO_BIG, "message too big")
            }
            Self::InflationRatio { .. } => {
                client_fault("inflation_ratio", "inflation_ratio", C::MESSAGE_TOO_BIG, "message inflates too much")
            }
            Self::DeflateBlocks => {
                client_fault("deflate_blocks", "inflation_ratio", C::POLICY_VIOLATION, "too many compressed blocks")
            }
            Self::TooManyFragments { .. } => {
                client_fault("too_many_fragments", "message_fragments", C::POLICY_VIOLATION, "too many fragments")
            }
            Self::MessageRate => client_fault("message_rate", "message_rate", C::POLICY_VIOLATION, "too many messages"),
            Self::ByteRate => client_fault("byte_rate", "message_rate", C::POLICY_VIOLATION, "too many bytes"),
            Self::ControlRate => {
                client_fault("control_rate", "control_rate", C::POLICY_VIOLATION, "too many control frames")
            }
            Self::MessageStalled(_) => {
                client_fault("message_stalled", "message_stall", C::POLICY_VIOLATION, "message not finished in time")
            }
            Self::MessageTimeout(_) => {
                client_fault("message_timeout", "message_timeout", C::POLICY_VIOLATION, "message takes too long")
            }
            Self::UpstreamProtocol(_) => {
                upstream_fault("upstream_protocol", "protocol", C::PROTOCOL_ERROR, "upstream protocol error")
            }
            Self::UpstreamInvalidUtf8 => {
                upstream_fault("upstream_invalid_utf8", "utf8", C::INVALID_DATA, "upstream text is not UTF-8")
            }
            Self::UpstreamMessageTooBig { .. } => upstream_fault(
                "upstream_message_too_big",
                "upstream_message_size",
                C::MESSAGE_TOO_BIG,
                "upstream message too big",
            ),
            Self::SlowClient { .. } => {
                client_fault("slow_client", "slow_client", C::TRY_AGAIN_LATER, "client reads too slowly")
            }
            Self::Overrun => {
                client_fault("overrun", "slow_client", C::TRY_AGAIN_LATER, "client reads slower than its channels")
            }
            Self::ClientSilent(_) => CauseRow { policy: Some("keepalive"), ..passed("client_silent", By::Proxy) },
            Self::UpstreamSilent(_) => CauseRow {
                policy: Some("keepalive"),
                to_client: Some(C::SERVICE_RESTART),
                reason: "upstream does not answer",
                ..passed("upstream_silent", By::Proxy)
            },
            Self::IdleTimeout(_) => client_fault("idle_timeout", "idle_timeout", C::GOING_AWAY, "idle for too long"),
            Self::Drain => {
                CauseRow { policy: None, ..client_fault("drain", "", C::SERVICE_RESTART, "service restart") }
            }
            Self::Operator(code) => {
                CauseRow { policy: None, ..client_fault("operator", "", *code, "closed by the operator") }
            }
            Self::DrainCut => passed("drain_cut", By::Proxy),
        }
    }

    /// The close code that the metric and the log give the session.
    ///
    /// A peer's own Close keeps its code, 1005 when it gave none; an end without a Close frame is 1006; what we
    /// originate has the code of the Close frame to the client, sent or not.
    pub const fn code(&self) -> CloseCode {
        match self {
            Self::ClientClosed(Some(code)) | Self::UpstreamClosed(Some(code)) => *code,
            Self::ClientClosed(None) | Self::UpstreamClosed(None) => CloseCode::NO_STATUS,
            Self::ClientGone | Self::UpstreamGone => CloseCode::ABNORMAL,
            other => match other.row().to_client {
                Some(code) => code,
                None => CloseCode::ABNORMAL,
            },
        }
    }
}

const fn passed(name: &'static str, by: By) -> CauseRow {
    CauseRow { name, policy: None, by, to_client: None, to_upstream: None, reason: "" }
}

const fn client_fault(name: &'static str, policy: &'static str, code: CloseCode, reason: &'static str) -> CauseRow {
    CauseRow {
        name,
        policy: Some(policy),
        by: By::Proxy,
        to_client: Some(code),
        to_upstream: Some(CloseCode::GOING_AWAY),
        reason,
    }
}

const fn upstream_fault(name: &'static str, policy: &'static str, code: CloseCode, reason: &'static str) -> CauseRow {
    CauseRow {
        name,
        policy: Some(policy),
        by: By::Proxy,
        to_client: Some(CloseCode::INTERNAL_ERROR),
        to_upstream: Some(code),
        reason,
    }
}

impl fmt::Display for Cause {
    /// The log's `detail`: found, then allowed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientProtocol(rule) | Self::UpstreamProtocol(rule) => rule.fmt(f),
            Self::ClientSubprotocol(how) => f.write_str(how),
            Self::MessageTooBig { size_bytes, limit_bytes }
            | Self::UpstreamMessageTooBig { size_bytes, limit_bytes } => {
                write!(f, "message of {size_bytes} bytes exceeds the limit of {limit_bytes} bytes")
            }
            Self::InflationRatio { limit } => {
                write!(f, "compressed messages exceed the limit of {limit} times their size on the wire")
            }
            Self::TooManyFragments { limit } => write!(f, "message exceeds the limit of {limit} fragments"),
            Self::MessageStalled(idle) => write!(f, "no byte of an unfinished message for {idle:.1?}"),
            Self::MessageTimeout(after) => write!(f, "message not whole {after:.1?} after its first byte"),
            Self::SlowClient { taken_bytes, pending_for } => {
                write!(f, "took {taken_bytes} bytes while output was pending for {pending_for:.1?}")
            }
            Self::ClientSilent(silent) | Self::UpstreamSilent(silent) => {
                write!(f, "no sign of life for {silent:.1?} after a ping")
            }
            Self::IdleTimeout(idle) => write!(f, "no message for {idle:.1?}"),
            other => f.write_str(other.row().reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_reasons_fit_a_close_frame() {
        let mut names = HashSet::new();
        for cause in Cause::ALL {
            let row = cause.row();
            assert!(names.insert(row.name), "{} twice", row.name);
            assert!(row.reason.len() <= crate::ws::close::MAX_REASON_BYTES);
            for code in [row.to_client, row.to_upstream].into_iter().flatten() {
                assert!(code.is_valid_on_wire() && code.0 != 1014, "{} sends {}", row.name, code.0);
            }
        }
        let mut names = HashSet::new();
        for refusal in Refusal::ALL {
            assert!(names.insert(refusal.row().name), "{} twice", refusal.row().name);
        }
    }
}
