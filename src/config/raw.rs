//! What the user writes: the main file and what is common to both kinds of file.
//!
//! The JSON Schema is made from these types, so their doc comments are the reference that users read: each key says
//! its unit, default, range, and what goes wrong at the extremes. Every field is optional here, so that a file can be
//! checked further without its faulty parts; what must be written is said to the schema.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::raw_backplane::RawBackplane;
use super::raw_rule::RawRule;
use super::raw_tls::{RawListenerTls, RawUpstreamTls};
use super::units::{Count, Size, Span};

/// The main file of Sluicegate.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["listeners", "upstreams"]))]
pub struct RawMain {
    /// The version of the file's format. Default and only value: 1.
    #[schemars(extend("const" = 1, "title" = "1"))]
    pub version: Option<u64>,
    /// Where clients come in. Required, at least one.
    #[schemars(length(min = 1))]
    pub listeners: Vec<RawListener>,
    /// Health, metrics and control. Default: on, at 127.0.0.1:9901. `off` leaves no way to see or drain the process but
    /// signals and logs.
    pub admin: Option<OrOff<RawAdmin>>,
    /// Health and metrics to be read only, for machines that have no token. Default `off`.
    pub probes: Option<OrOff<RawProbes>>,
    /// Peers that are believed when they name a client or a scheme: networks (`10.0.0.0/8`), addresses, or the words
    /// `private` (loopback, private, link-local and carrier-shared addresses) and `unix`. Default: nobody. A network
    /// that clients can connect from lets each of them choose its own address, past every per-IP limit.
    pub trusted_proxies: Vec<String>,
    /// Limits of the process.
    pub limits: RawLimits,
    /// Where requests go. Required, at least one.
    #[schemars(length(min = 1))]
    pub upstreams: Vec<RawUpstream>,
    /// Any policy of a rule. A rule overrides it leaf by leaf, lists whole. Default: none, so what is not written in a
    /// rule has the default of its key.
    #[schemars(schema_with = "defaults_schema")]
    pub defaults: Option<RawRule>,
    /// Fan-out to the clients of rules with `backplane`. When a rule has it and this is not written, publications are
    /// kept in memory, and nobody can publish.
    pub backplane: Option<RawBackplane>,
    /// Files with more rules: paths and patterns such as `rules/*.yaml`, relative to this file. Their rules come after
    /// those below, in the order of the files' names. Default: none. A pattern that no file matches is a fault.
    pub rule_files: Vec<String>,
    /// What is done with requests; the first rule that matches wins, and without one the answer is 404. Default: one
    /// that takes everything to the only upstream, when no file has any.
    pub rules: Vec<RawRule>,
    /// How the process ends.
    pub shutdown: RawShutdown,
    /// Which plain HTTP requests get a log line. Default `on`. `errors`: those answered with 400 or more, or not to the
    /// end. `off`. Sessions and refusals always have theirs.
    pub access_log: Option<RawAccessLog>,
}

/// A file of rules.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["rules"]))]
pub struct RawRuleFile {
    /// What is done with requests; the first rule that matches wins. Required.
    pub rules: Vec<RawRule>,
}

/// Where clients come in.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "bind"]))]
pub struct RawListener {
    /// Its name in rules, metrics and logs: 1 to 63 letters, digits, `_`, `.` and `-`, unique. Required.
    pub name: Option<String>,
    /// Its address and port, such as `127.0.0.1:8080` or `[::]:8080`; port 0 takes a free one. Or `unix:` and the path
    /// of a Unix socket. Required. `0.0.0.0` is open to whoever can reach the machine.
    pub bind: Option<String>,
    /// Who may connect to a Unix socket: the permissions of its file, in octal, quoted. Default "0660", "0" to
    /// "0777".
    pub mode: Option<String>,
    /// The hosts that it serves: names, `*.` for one label in front, `**.` for one or more; any other Host gets 421.
    /// Default: all, which leaves `same_origin` open to DNS rebinding.
    #[schemars(length(min = 1))]
    pub hosts: Option<Vec<String>>,
    /// Limits of a request's head.
    pub head: RawHead,
    /// Where a peer in `trusted_proxies` names the client: `x_forwarded_for`, `forwarded`, or `{ header: NAME }` for a
    /// header with one address. Default: `x_forwarded_for`. One that the hop in front does not write itself is the
    /// client's to forge.
    pub client_address: Option<RawClientAddress>,
    /// TLS. Default: none, so that clients are served in the clear.
    pub tls: Option<RawListenerTls>,
    /// HTTP/2 besides HTTP/1.1: by ALPN under TLS, by prior knowledge in the clear. Default `true`, or `false`.
    pub http2: Option<bool>,
}

/// Limits of a request's head.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHead {
    /// From accept, or from the end of the previous response, to the end of the head. Default 10s, 100ms to 10m. Short
    /// cuts off clients on bad links and idle keep-alive connections; long holds a socket for a client that sends a
    /// byte at a time.
    pub timeout: Option<Span>,
    /// The most bytes of a head. Default 32KiB, 1KiB to 256KiB. Small refuses large cookies; large is memory that any
    /// client can take.
    pub max_bytes: Option<Size>,
    /// The most header lines. Default 100, 1 to 256. Below about 20 browsers are refused.
    pub max_headers: Option<Count>,
}

/// Where the client's address comes from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawClientAddress {
    /// A list that each hop appends to, or the PROXY protocol.
    List(RawAddressList),
    /// One address in a header.
    Header(RawAddressHeader),
}

/// A list that each hop appends to, or the PROXY protocol, versions 1 and 2.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawAddressList {
    XForwardedFor,
    Forwarded,
    ProxyProtocol,
}

/// One address in a header.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAddressHeader {
    /// The header's name, such as `cf-connecting-ip`. Required.
    pub header: String,
}

/// Health, metrics and control.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// An address and port; port 0 takes a free one. Default 127.0.0.1:9901. Beyond loopback it needs `token_file`.
    pub bind: Option<String>,
    /// A file with the token that requests for `/sessions`, `/drain` and `/config` must bear, 16 characters at least.
    /// Default: none. Without one whoever can reach the address can end sessions.
    pub token_file: Option<String>,
}

/// Health and metrics, read only.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["bind"]))]
pub struct RawProbes {
    /// An address and port; port 0 takes a free one. Required. Whoever can reach it reads the names of rules, upstreams
    /// and endpoints.
    pub bind: Option<String>,
}

/// Which plain HTTP requests get a log line.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawAccessLog {
    On,
    Errors,
    Off,
}

/// Limits of the process.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// The most sessions; over it the answer is 503. Default: what the limit of open descriptors allows, 1 to 10000000.
    pub connections: Option<Count>,
    /// The most memory that the process may have in use, as `sluicegate_process_resident_bytes` shows it; from there on
    /// what is new gets 503, until 5 % less is in use, and what lives goes on. Default: no limit, 32MiB to 1024GiB. It must
    /// leave the kernel room for the buffers of sockets, which count against a container's limit and not here.
    pub memory: Option<Size>,
}

/// Where requests go.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "endpoints"]))]
pub struct RawUpstream {
    /// Its name in rules, metrics and logs: 1 to 63 letters, digits, `_`, `.` and `-`, unique. Required.
    pub name: Option<String>,
    /// `host:port`, `[IPv6]:port`, or `unix:` and the path of a Unix socket, of each. Names are resolved again every
    /// 10 s. Required, at least one.
    #[schemars(length(min = 1))]
    pub endpoints: Vec<String>,
    /// How an endpoint is chosen. Default: `least_connections`. `round_robin` piles sessions onto old endpoints, since
    /// WebSockets live long. `hash`: by the client's address, or what the rule says in `sticky.hash`.
    pub balance: Option<RawBalance>,
    /// How long a connection may take to be made. Default 5s, 10ms to 5m. Short fails on a lost packet; long keeps
    /// clients waiting for a dead endpoint.
    pub connect_timeout: Option<Span>,
    /// TLS to its endpoints, which are always verified. Default: none, so that they are spoken to in the clear.
    pub tls: Option<RawUpstreamTls>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawBalance {
    LeastConnections,
    RoundRobin,
    Hash,
}

/// How the process ends.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawShutdown {
    /// From unready to the refusal of new handshakes: the time that load balancers take to notice. Default 0s, 0s to
    /// 1h.
    pub delay: Option<Span>,
    /// How long sessions may take to end; the rest is cut. Default 25s, 0s to 24h. Together with `delay` it must be
    /// shorter than what the supervisor waits before SIGKILL (30 s in Kubernetes).
    pub drain: Option<Span>,
    /// Over how long the Close frames are spread, never fewer than 50 a second. Default 15s, 0s to 24h. Short brings
    /// all clients back at once.
    pub spread: Option<Span>,
}

/// A value, or `off`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum OrOff<T> {
    /// The policy is off.
    Off(Off),
    /// The policy is on.
    On(T),
}

/// The word `off`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Off {
    /// `off`.
    Off,
}

impl<T> OrOff<T> {
    /// The value when it is on.
    pub fn on(&self) -> Option<&T> {
        match self {
            Self::Off(_) => None,
            Self::On(value) => Some(value),
        }
    }
}

impl<T: JsonSchema> JsonSchema for OrOff<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrOff", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let on = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [on, { "type": "string", "const": "off" }] })
    }
}

/// `defaults`: a rule without what makes it one.
fn defaults_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = RawRule::json_schema(generator);
    if let Some(properties) = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut) {
        for key in ["name", "match", "upstream", "redirect", "respond"] {
            properties.shift_remove(key);
        }
    }
    schema.remove("required");
    schema.remove("oneOf");
    schema
}
