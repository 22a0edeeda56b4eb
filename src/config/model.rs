//! What the program uses: a configuration that cannot hold an invalid value.
//!
//! Values are made in `build.rs` only, from files that had no fault, and by `simple.rs`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::effective::Effective;
use crate::backplane::channels::ChannelRules;
use crate::backplane::engine::{DEDUPE_WINDOW, Retention};
use crate::backplane::hub::InboxLimit;
use crate::backplane::nats;
use crate::backplane::position::Region;
use crate::backplane::rabbitmq;
use crate::backplane::redis::{Credentials, IngestRule, Servers};
use crate::grip::signature::{SigningKey, VerifyingKey};
use crate::policy::client_address::{Source, TrustedProxies};
use crate::policy::clients::Clients;
use crate::policy::headers::HeaderEdits;
use crate::policy::origin::OriginPolicy;
use crate::policy::redirect::Redirect;
use crate::policy::rewrite::Rewrite;
use crate::policy::route::{HostPattern, Matcher};
use crate::policy::stickiness::{HashKey, StickyCookie};
use crate::policy::token::Token;
use crate::policy::{handshake_limit, keepalive, message, slow_client};
use crate::tls::client::ClientFiles;
use crate::tls::server::ServerFiles;

/// All of a gateway's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients come in; at least one, names are unique.
    pub listeners: Vec<Listener>,
    /// Health, metrics and control; `None` is off.
    pub admin: Option<Admin>,
    /// Where health and metrics can be read only; `None` is off.
    pub probes: Option<SocketAddr>,
    /// Peers that are believed when they name a client.
    pub trusted_proxies: TrustedProxies,
    /// Limits of the process.
    pub limits: Limits,
    /// Where requests go; at least one, names are unique.
    pub upstreams: Vec<Upstream>,
    /// In the order in which they are tried; at least one, names are unique.
    pub rules: Vec<Rule>,
    /// Fan-out; `None` where no rule and nobody has it.
    pub backplane: Option<Backplane>,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// Which plain HTTP requests get a log line.
    pub access_log: AccessLog,
    /// The same as a file would say it.
    pub effective: Effective,
}

/// Health, metrics and control.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where they are served; a loopback address when there is no token.
    pub bind: SocketAddr,
    /// What operators must present; `None`: nothing.
    pub token: Option<Token>,
}

/// Which plain HTTP requests get a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// All.
    On,
    /// Those that were answered with 400 or more, or not to the end.
    Errors,
    /// None.
    Off,
}

/// Limits of the process.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The most sessions; `None`: what the descriptor limit allows.
    pub connections: Option<usize>,
    /// Resident bytes from which on nothing new is taken; `None` is off.
    pub memory_bytes: Option<u64>,
}

/// Where clients come in.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in rules, metrics and logs.
    pub name: String,
    /// Where it listens.
    pub bind: Bind,
    /// The hosts that it serves; `None`: all.
    pub hosts: Option<Vec<HostPattern>>,
    /// Limits of a request's head.
    pub head: HeadLimits,
    /// Where a trusted peer names the client.
    pub client_address: Source,
    /// Its TLS; `None` is cleartext.
    pub tls: Option<ServerFiles>,
    /// Whether HTTP/2 is spoken besides HTTP/1.1.
    pub http2: bool,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// An address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix {
        /// Its file.
        path: PathBuf,
        /// The file's permissions, as in chmod(1).
        mode: u32,
    },
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Limits of a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// From accept, or the end of the previous response, to the end of the head.
    pub timeout: Duration,
    /// The most bytes.
    pub max_bytes: usize,
    /// The most header lines.
    pub max_headers: usize,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name in rules, metrics and logs.
    pub name: String,
    /// `host:port`, `[v6]:port` or `unix:/path`; at least one, without repetition.
    pub endpoints: Vec<String>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// Its TLS; `None` is cleartext.
    pub tls: Option<UpstreamTls>,
}

/// TLS to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name that is asked for and that its certificate must have; `None`: each endpoint's own.
    pub sni: Option<String>,
    /// Its files.
    pub files: ClientFiles,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest connections.
    LeastConnections,
    /// One after the other.
    RoundRobin,
    /// By a hash of the client's address, or of what the rule says in `sticky.hash`.
    Hash,
}

/// What is done with the requests that it matches.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name in metrics and logs.
    pub name: String,
    /// Which requests it is for.
    pub matcher: Matcher,
    /// What is done with them.
    pub action: Action,
    /// The path that the upstream sees; `None`: as it came.
    pub rewrite: Option<Rewrite>,
    /// Whether what the policies would refuse is only counted and logged.
    pub report_only: bool,
    /// Which client addresses are served; `None`: all.
    pub clients: Option<Clients>,
    /// How a client comes back to the endpoint that it had; `None` is off.
    pub sticky: Option<Sticky>,
    /// Headers of what goes to the upstream.
    pub request_headers: HeaderEdits,
    /// Headers of what goes to the client.
    pub response_headers: HeaderEdits,
    /// Limits of plain HTTP.
    pub http: HttpLimits,
    /// Whether upgrades are taken.
    pub websocket: WebSocketMode,
    /// Which pages may open a WebSocket.
    pub origin: OriginPolicy,
    /// Handshakes of one client address; `None` is off.
    pub handshake_per_ip: Option<PerIp<handshake_limit::Rate>>,
    /// How long the upstream may take to answer a handshake.
    pub upstream_timeout: Duration,
    /// Sessions of one client address; `None` is off.
    pub connections_per_ip: Option<PerIp<usize>>,
    /// Sessions of the rule; `None` is off.
    pub connections_total: Option<usize>,
    /// What a message may be.
    pub message: message::Settings,
    /// Who negotiates permessage-deflate with whom.
    pub compression: CompressionMode,
    /// When a side is pinged and given up; `None` is off.
    pub keepalive: Option<keepalive::Settings>,
    /// How long a session may be without messages; `None` is off.
    pub idle_timeout: Option<Duration>,
    /// When a client that takes no output is given up; `None` is off.
    pub slow_client: Option<slow_client::Settings>,
    /// How long the closing handshake may take.
    pub close_timeout: Duration,
    /// How the backend may subscribe the rule's clients to channels; `None`: not at all.
    pub backplane: Option<BackplaneMode>,
    /// How much of what is published waits for a client.
    pub queue: InboxLimit,
}

/// How a backend and its gateway speak of a client's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackplaneMode {
    /// Over a WebSocket to the backend.
    Grip,
    /// By requests to the backend, which holds no WebSocket.
    GripHttp,
}

/// Fan-out.
#[derive(Clone, Debug)]
pub struct Backplane {
    /// The region that the engine serves.
    pub region: Region,
    /// Where publications are kept.
    pub engine: EngineKind,
    /// The engines of other regions, which are read too.
    pub regions: Vec<(Region, EngineKind)>,
    /// Those of them that take a publication which ours does not, in this order.
    pub publish_failover: Vec<Region>,
    /// Whether the gateway is not ready while our engine cannot be reached.
    pub required_for_readiness: bool,
    /// Streams there that others fill.
    pub ingest: Vec<IngestRule>,
    /// What channels are, by how their names begin.
    pub channels: ChannelRules,
    /// How much is kept of each channel.
    pub retention: Retention,
    /// How long a publication's id is known.
    pub dedupe_window: Duration,
    /// Where publishers publish; `None` is nowhere.
    pub publish: Option<Publish>,
    /// How backends know the gateway; `None` is not at all.
    pub signature: Option<GripSignature>,
}

impl Default for Backplane {
    fn default() -> Self {
        Self {
            region: Region::default(),
            engine: EngineKind::Memory,
            regions: Vec::new(),
            publish_failover: Vec::new(),
            required_for_readiness: false,
            ingest: Vec::new(),
            channels: ChannelRules::default(),
            retention: Retention::default(),
            dedupe_window: DEDUPE_WINDOW,
            publish: None,
            signature: None,
        }
    }
}

/// Where publications are kept.
#[derive(Clone)]
pub enum EngineKind {
    /// In this process.
    Memory,
    /// In Redis.
    Redis(RedisAccess),
    /// In NATS JetStream.
    Nats(NatsAccess),
    /// In RabbitMQ.
    RabbitMq(rabbitmq::Access),
}

/// The servers of a NATS engine, and how they are reached.
#[derive(Clone)]
pub struct NatsAccess {
    /// Servers of one cluster.
    pub urls: Vec<String>,
    /// The user and the password there.
    pub credentials: nats::Credentials,
    /// How many servers keep the stream.
    pub replicas: usize,
}

/// The servers of a Redis engine, and how they are reached.
#[derive(Clone)]
pub struct RedisAccess {
    /// Which there are.
    pub servers: Servers,
    /// The user and the password there.
    pub credentials: Credentials,
    /// The user and the password at sentinels.
    pub sentinel_credentials: Credentials,
}

impl EngineKind {
    /// Whether it keeps the newest value of each key of a channel.
    pub const fn keeps_latest(&self) -> bool {
        match self {
            Self::Memory | Self::Redis(_) => true,
            Self::Nats(_) | Self::RabbitMq(_) => false,
        }
    }
}

impl fmt::Debug for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::Redis(access) => write!(f, "Redis({:?})", access.servers),
            Self::Nats(access) => write!(f, "Nats({:?})", access.urls),
            Self::RabbitMq(access) => write!(f, "RabbitMq({:?})", access.url),
        }
    }
}

/// Where publishers publish.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The address.
    pub bind: SocketAddr,
    /// What publishers bear.
    pub token: Option<Token>,
    /// The key of the JSON Web Tokens that they bear.
    pub jwt: Option<Arc<VerifyingKey>>,
}

/// How backends know the gateway.
#[derive(Clone, Debug)]
pub struct GripSignature {
    /// What `Grip-Sig` is signed with.
    pub key: Arc<SigningKey>,
    /// Its `iss`.
    pub issuer: String,
}

/// Who negotiates permessage-deflate with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionMode {
    /// The client with the upstream; what the client sends is inspected.
    Passthrough,
    /// The client with the gateway; the upstream is offered none.
    Terminate,
    /// Nobody.
    Refuse,
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// It goes to the upstream at this index in [`Config::upstreams`].
    Upstream(usize),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Respond(Respond),
}

impl Action {
    /// The upstream, when it goes to one.
    pub fn upstream(&self) -> Option<usize> {
        match self {
            Self::Upstream(index) => Some(*index),
            Self::Redirect(_) | Self::Respond(_) => None,
        }
    }
}

/// An answer that is the same for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// Its status, 200 to 599.
    pub status: u16,
    /// Its body, at most 1 MiB.
    pub body: Bytes,
    /// The body's type.
    pub content_type: String,
}

/// How a client comes back to the endpoint that it had.
#[derive(Clone, Debug)]
pub enum Sticky {
    /// By a signed cookie.
    Cookie(StickyCookie),
    /// By a hash.
    Hash(HashKey),
}

/// Limits of plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// How long the upstream may take to its response's head.
    pub response_timeout: Duration,
    /// How long nothing may come of a request's or response's body.
    pub idle_timeout: Duration,
    /// The most bytes of a request's body; `None` is off.
    pub max_body_size: Option<u64>,
}

/// Whether a rule takes WebSocket upgrades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebSocketMode {
    /// Upgrades and plain HTTP.
    Allow,
    /// Upgrades only.
    Require,
    /// Plain HTTP only.
    Deny,
}

/// A limit per client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerIp<T> {
    /// The limit.
    pub limit: T,
    /// Whether the rule or `defaults` names it. One that nobody wrote is not enforced against a hop.
    pub written: bool,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// From unready to the refusal of new handshakes.
    pub delay: Duration,
    /// From then on: how long sessions may take to end.
    pub drain: Duration,
    /// Over how long the Close frames are spread.
    pub spread: Duration,
}
