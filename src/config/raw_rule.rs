//! What the user writes: a rule and its policies.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::raw::OrOff;
use super::raw_backplane::RawRuleBackplane;
use super::raw_proxy::{RawClients, RawHeaders, RawHttp, RawRedirect, RawRespond, RawRewrite, RawSticky};
use super::units::{ByteRate, Count, Rate, Size, Span};

/// What is done with the requests that it matches.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend(
    "required" = ["name"],
    "oneOf" = [{ "required": ["upstream"] }, { "required": ["redirect"] }, { "required": ["respond"] }],
))]
pub struct RawRule {
    /// Its name in metrics and logs: 1 to 63 letters, digits, `_`, `.` and `-`, unique over all files. Required.
    pub name: Option<String>,
    /// Which requests it is for; every part that is written must match. Default: all.
    #[serde(rename = "match")]
    pub matching: RawMatch,
    /// The name of the upstream that the requests go to. Required: this, `redirect` or `respond`, exactly one.
    pub upstream: Option<String>,
    /// Sends the client elsewhere, instead of `upstream`.
    pub redirect: Option<RawRedirect>,
    /// Answers here, instead of `upstream`.
    pub respond: Option<RawRespond>,
    /// The path that the upstream sees. Default `off`: as the client sent it.
    pub rewrite: Option<OrOff<RawRewrite>>,
    /// Default `allow`: WebSocket upgrades and plain HTTP. `require`: anything but an upgrade gets 426. `deny`:
    /// upgrades get 403.
    pub websocket: Option<RawWebSocket>,
    /// Default `enforce`. `report`: what the policies would refuse is counted and logged, and served. Violations of the
    /// protocol are always refused. A rule that reports protects nothing.
    pub enforcement: Option<RawEnforcement>,
    /// Which client addresses are served; any other gets 403. Default `off`: all.
    pub clients: Option<OrOff<RawClients>>,
    /// Which pages may open a WebSocket; any other gets 403. Default `{ allow: [same_origin], missing: allow }`. Cannot
    /// be switched off: `{ allow: any }` says it, and lets every page use its visitors' cookies here.
    pub origin: RawOrigin,
    /// Handshakes.
    pub handshake: RawHandshake,
    /// How many sessions there may be. Default: the defaults of its keys; `off` is no limit.
    pub connections: Option<OrOff<RawConnections>>,
    /// What a client's messages may be. Default: the defaults of its keys; `off` is no limit and no check of UTF-8.
    pub message: Option<OrOff<RawMessage>>,
    /// Compression, permessage-deflate. Default `passthrough`: client and backend negotiate it, and what a client sends
    /// is inflated and checked. `terminate`: with the client only; the backend sees plain messages. `refuse`: none.
    pub compression: Option<RawCompression>,
    /// Who subscribes the rule's clients to channels. Default `off`. `grip`: the backend, over its WebSocket;
    /// `grip_http`: the backend, which holds no WebSocket and is asked over HTTP. Then compression is with the client only.
    pub backplane: Option<RawRuleBackplane>,
    /// When a side is pinged and given up. Default: the defaults of its keys. `off` lets the hops in front close idle
    /// sessions and keeps dead ones for ever.
    pub keepalive: Option<OrOff<RawKeepalive>>,
    /// How long a session may be without a data message or a peer's own ping or pong, either way. Default `off`, 100ms
    /// to 30d. Below 1h it cuts sessions that are only quiet.
    pub idle_timeout: Option<OrOff<Span>>,
    /// When a client that takes no output is given up. Default: the defaults of its keys. `off` lets a client that
    /// never reads hold its backend connection for ever.
    pub slow_client: Option<OrOff<RawSlowClient>>,
    /// How long the closing handshake may take. Default 5s, 100ms to 5m. Short cuts clients that are still sending.
    pub close_timeout: Option<Span>,
    /// How a client comes back to the endpoint that it had. Default `off`.
    pub sticky: Option<OrOff<RawSticky>>,
    /// Headers of what goes to the upstream. Default `off`.
    pub request_headers: Option<OrOff<RawHeaders>>,
    /// Headers of what goes to the client. Default `off`.
    pub response_headers: Option<OrOff<RawHeaders>>,
    /// Limits of plain HTTP.
    pub http: RawHttp,
}

/// Which requests a rule is for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMatch {
    /// Names of listeners. Default: all.
    #[schemars(length(min = 1))]
    pub listeners: Option<Vec<String>>,
    /// Hosts: names, `*.` for one label in front, `**.` for one or more, neither the apex. Default: all.
    #[schemars(length(min = 1))]
    pub hosts: Option<Vec<String>>,
    /// This path exactly, unreserved escapes decoded. Default: all paths. At most one of `path`, `path_prefix`,
    /// `path_regex`.
    pub path: Option<String>,
    /// This path and all below it, in whole segments: `/api` is not `/apix`. Default: all paths.
    pub path_prefix: Option<String>,
    /// A regular expression for the whole path, without look-around. Default: all paths.
    pub path_regex: Option<String>,
    /// A regular expression per header, unanchored; one of the header's values must match. Default: none.
    pub headers: BTreeMap<String, String>,
}

/// Whether upgrades are taken.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawWebSocket {
    Allow,
    Require,
    Deny,
}

/// Whether the policies refuse.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RawEnforcement {
    Enforce,
    Report,
}

/// Which pages may open a WebSocket.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawOrigin {
    /// `same_origin` and origins: `https://app.example.com`, `https://*.example.com`, `http://localhost:*`. Default
    /// `[same_origin]`. `any` allows every page.
    pub allow: Option<RawAllow>,
    /// Handshakes without Origin, which browsers never send: `allow` or `deny`. Default `allow`. `deny` refuses clients
    /// that are no browser and do not add the header.
    pub missing: Option<RawMissing>,
}

/// The allow-list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawAllow {
    /// Any origin.
    Any(RawAny),
    /// These.
    List(Vec<String>),
}

/// The word `any`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawAny {
    Any,
}

/// What happens without Origin.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RawMissing {
    Allow,
    Deny,
}

/// Handshakes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHandshake {
    /// Handshakes of one client address, IPv6 by its /64; over it 429. Default: the defaults of its keys, not enforced
    /// against loopback and private peers outside `trusted_proxies`; once written, always enforced. `off` is no limit.
    pub per_ip: Option<OrOff<RawHandshakeRate>>,
    /// How long the upstream may take to answer a handshake; over it 504. Default 10s, 100ms to 10m. Short refuses
    /// clients while a backend authenticates slowly.
    pub upstream_timeout: Option<Span>,
}

/// A rate of handshakes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHandshakeRate {
    /// How many on average, a second (`10/s`), a minute (`100/m`) or an hour. Default 10/s, 1/h to 1000000/s. Low locks out an office behind one address when it
    /// reconnects; high does not slow a flood.
    pub rate: Option<Rate>,
    /// How many at once. Default 20, 1 to 1000000.
    pub burst: Option<Count>,
}

/// How many sessions there may be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawConnections {
    /// Of one client address, IPv6 by its /64; over it 429. Default 200, 1 to 10000000, not enforced against loopback
    /// and private peers outside `trusted_proxies`; once written, always enforced. Low locks out an office behind one
    /// address; `off` lets one client take all of `total`.
    pub per_ip: Option<OrOff<Count>>,
    /// Of the rule; over it 503. Default 20000, 1 to 10000000, or `off`.
    pub total: Option<OrOff<Count>>,
}

/// What a client's messages may be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMessage {
    /// The largest message of a client over all its fragments; over it 1009. Default 1MiB, 1B to 1024GiB, or `off`.
    /// Large or off costs the backend that much memory for each client that asks.
    pub max_size: Option<OrOff<Size>>,
    /// The most fragments of a client's message; over it 1008. Default 1024, 1 to 1000000, or `off`. Low refuses
    /// clients that stream.
    pub max_fragments: Option<OrOff<Count>>,
    /// How fast a client's data messages may come; over it 1008. Default `off`.
    pub rate: Option<OrOff<RawMessageRate>>,
    /// What a client's compressed messages may become, as a multiple of what they are on the wire, over the session and
    /// beyond 16MiB at once and 4MiB/s; over it 1009. Default 200, 1 to 1032, or `off`. Low cuts clients whose messages
    /// repeat themselves; `off` lets a client make the gateway and the backend inflate 1,032 bytes for each that it
    /// sends.
    pub max_ratio: Option<OrOff<Count>>,
    /// How fast a client's pings and pongs may come; over it 1008. Default: the defaults of its keys, or `off`.
    pub control_rate: Option<OrOff<RawControlRate>>,
    /// How long a client may send no byte of a message that it has begun; over it 1008. Default 60s, 100ms to 1h, or
    /// `off`. Short cuts clients on bad links.
    pub stall_timeout: Option<OrOff<Span>>,
    /// How long a client's message may take from its first byte to its last; over it 1008. Default 10m, 100ms to 1h, or
    /// `off`. Short cuts large messages on slow links; `off` lets a client keep a message open for ever, a byte at a
    /// time.
    pub timeout: Option<OrOff<Span>>,
    /// Whether text is checked to be UTF-8, both ways; 1007. Default `on`. `off` breaks RFC 6455 for the peer behind
    /// us.
    pub utf8: Option<RawSwitch>,
    /// The largest message of a backend over all its fragments, in bytes on the wire; over it 1011. Default 16MiB, 1B
    /// to 1024GiB, or `off`.
    pub upstream_max_size: Option<OrOff<Size>>,
}

/// A rate of data messages.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMessageRate {
    /// Data messages on average, such as `100/s` or `300/m`. Default `off`, 1/h to 1000000/s.
    pub messages: Option<OrOff<Rate>>,
    /// Data messages at once. Default: twice the messages of a second rounded up, 1 to 1000000.
    pub burst: Option<Count>,
    /// Payload bytes on average; at once: those of a second, and never less than `max_size`. Default `off`, 1B/s to
    /// 1024GiB/s.
    pub bytes: Option<OrOff<ByteRate>>,
}

/// A rate of control frames.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawControlRate {
    /// Pings and pongs on average. Default 20/s, 1/h to 1000000/s.
    pub frames: Option<Rate>,
    /// Pings and pongs at once. Default 100, 1 to 1000000.
    pub burst: Option<Count>,
}

/// On or off.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RawSwitch {
    On,
    Off,
}

/// Compression.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawCompression {
    Passthrough,
    Terminate,
    Refuse,
}

/// When a side is pinged and given up.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawKeepalive {
    /// A side is pinged when for so long nothing was written to it or nothing was read from it. Default 25s, 1s to 1h.
    /// Over 60s the hops in front close the session first; a few seconds drain the batteries of phones.
    pub interval: Option<Span>,
    /// A side is dead so long after the last sign of life that followed our ping. Default 30s, 1s to 10m. Short cuts
    /// phones in tunnels; long keeps the dead.
    pub timeout: Option<Span>,
    /// Which sides are pinged: `client`, `upstream`. Default: both.
    #[schemars(length(min = 1))]
    pub sides: Option<Vec<RawSide>>,
}

/// A side of a session.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RawSide {
    Client,
    Upstream,
}

/// When a client that takes no output is given up.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSlowClient {
    /// A client is slow when output was pending for so long without a pause. Default 30s, 1s to 1h. Short cuts phones
    /// in tunnels; long lets attackers hold backend connections.
    pub timeout: Option<Span>,
    /// And less than this was taken meanwhile. Default 1KiB/s, 1B/s to 1024GiB/s. High cuts honest clients on bad
    /// links.
    pub min_rate: Option<ByteRate>,
    /// How many publications wait for a client of a rule with `backplane`. Default 1024, 1 to 100000. What is more waits
    /// in the channel's history, and a client that falls behind that is closed with 1013.
    pub max_queue_messages: Option<Count>,
    /// Their bytes. Default 1MiB, 1KiB to 1GiB.
    pub max_queue_bytes: Option<Size>,
}
