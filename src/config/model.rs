//! What the program uses: a configuration that cannot hold an invalid value.
//!
//! Values are made in `build.rs` only, from files that had no fault, and by `simple.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::policy::client_address::{Source, TrustedProxies};
use crate::policy::origin::OriginPolicy;
use crate::policy::route::{HostPattern, Matcher};
use crate::policy::{handshake_limit, keepalive, message, slow_client};

/// All of a gateway's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients come in; at least one, names are unique.
    pub listeners: Vec<Listener>,
    /// Where health, metrics and control are served, a loopback address; `None` is off.
    pub admin: Option<SocketAddr>,
    /// Peers that are believed when they name a client.
    pub trusted_proxies: TrustedProxies,
    /// Limits of the process.
    pub limits: Limits,
    /// Where requests go; at least one, names are unique.
    pub upstreams: Vec<Upstream>,
    /// In the order in which they are tried; at least one, names are unique.
    pub rules: Vec<Rule>,
    /// How the process ends.
    pub shutdown: Shutdown,
}

/// Limits of the process.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The most sessions; `None`: what the descriptor limit allows.
    pub connections: Option<usize>,
}

/// Where clients come in.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in rules, metrics and logs.
    pub name: String,
    /// Its address; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The hosts that it serves; `None`: all.
    pub hosts: Option<Vec<HostPattern>>,
    /// Limits of a request's head.
    pub head: HeadLimits,
    /// Where a trusted peer names the client.
    pub client_address: Source,
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
    /// `host:port` or `[v6]:port`; at least one, without repetition.
    pub endpoints: Vec<String>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest connections.
    LeastConnections,
    /// One after the other.
    RoundRobin,
}

/// What is done with the requests that it matches.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name in metrics and logs.
    pub name: String,
    /// Which requests it is for.
    pub matcher: Matcher,
    /// The index of its upstream in [`Config::upstreams`].
    pub upstream: usize,
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
    /// When a side is pinged and given up; `None` is off.
    pub keepalive: Option<keepalive::Settings>,
    /// How long a session may be without messages; `None` is off.
    pub idle_timeout: Option<Duration>,
    /// When a client that takes no output is given up; `None` is off.
    pub slow_client: Option<slow_client::Settings>,
    /// How long the closing handshake may take.
    pub close_timeout: Duration,
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
