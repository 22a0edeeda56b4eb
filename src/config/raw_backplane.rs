//! What the user writes: fan-out for backends that opt in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::units::{Count, Size, Span};

/// Who speaks of the channels of a rule's clients.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawRuleBackplane {
    /// Nobody.
    Off,
    /// The backend, by control messages of GRIP over its WebSocket.
    Grip,
    /// The backend, over HTTP: it holds no WebSocket, and gets what clients send in requests.
    GripHttp,
}

/// Fan-out: what is published once reaches the clients of every gateway that is subscribed to it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawBackplane {
    /// A short name of the region that this gateway's engine serves; it is in every position. Default `local`. 1 to 32
    /// lower-case letters, digits and `-`.
    pub region: Option<String>,
    /// Where publications are kept. Default `memory`: in this process alone, and lost with it.
    pub engine: Option<RawEngine>,
    /// Other regions, whose engines are read besides ours: a name and an engine for each. Default: none. At most 31. Every
    /// region has the same list, each without itself.
    pub regions: BTreeMap<String, RawEngine>,
    /// Where a publication goes that our own engine does not take, in this order: names of `regions`. Default: nowhere, and
    /// it is a 503.
    pub publish_failover: Vec<String>,
    /// Whether `/readyz` is 503 while our own engine cannot be reached. Default false. Otherwise it is only
    /// degraded, since another gateway asks the same engine, and what needs no engine is served.
    pub required_for_readiness: Option<bool>,
    /// How much is kept of each channel.
    pub history: RawHistory,
    /// How long a publication with the same id is known to be the same. Default 5m, 1s to 1d. Short lets a publisher
    /// that tries again publish twice.
    pub dedupe_window: Option<Span>,
    /// Streams in the engine's Redis that others fill with plain XADD, delivered as channels. Default: none. At most 64;
    /// only with Redis, and not in a Cluster.
    pub ingest: Vec<RawIngest>,
    /// Where publishers publish. Default: nowhere.
    pub publish: Option<RawPublish>,
    /// How backends know this gateway.
    pub grip: RawGrip,
}

/// Where publications are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawEngine {
    /// In this process.
    Name(RawEngineName),
    /// In Redis.
    Redis(RawRedisEngine),
    /// In NATS.
    Nats(RawNatsEngine),
}

/// In this process.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawEngineName {
    Memory,
}

/// In Redis or Valkey.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRedisEngine {
    /// The servers. Required.
    pub redis: RawRedis,
}

/// In NATS JetStream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawNatsEngine {
    /// The servers. Required.
    pub nats: RawNats,
}

/// The servers of a NATS engine: exactly one of `url` and `urls`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("oneOf" = [{ "required": ["url"] }, { "required": ["urls"] }]))]
pub struct RawNats {
    /// `nats://HOST:PORT`, or `tls://HOST:PORT` for TLS. Required: this or `urls`, exactly one. No password in it: see
    /// `password_file`.
    pub url: Option<String>,
    /// The same of several servers of one cluster, 1 to 64, of which one at a time is connected to. Default: none.
    pub urls: Option<Vec<String>>,
    /// The user. Default: none.
    pub username: Option<String>,
    /// A file with the password. Default: none.
    pub password_file: Option<String>,
    /// How many servers of a cluster keep the stream, where this gateway makes it. Default 1, 1 to 5; more
    /// than 1 needs NATS 2.12.
    pub replicas: Option<Count>,
}

/// The servers of a Redis engine: exactly one of `url`, `sentinel` and `cluster`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend(
    "oneOf" = [{ "required": ["url"] }, { "required": ["sentinel"] }, { "required": ["cluster"] }],
))]
pub struct RawRedis {
    /// `redis://HOST:PORT`, or `rediss://HOST:PORT` for TLS. Required: this, `sentinel` or `cluster`, exactly one. No
    /// password in it: see `password_file`.
    pub url: Option<String>,
    /// A master that Sentinel names, instead of `url`.
    pub sentinel: Option<RawSentinel>,
    /// A Cluster of Redis 7.0 or later, instead of `url`.
    pub cluster: Option<RawCluster>,
    /// The user. Default: Redis's `default`.
    pub username: Option<String>,
    /// A file with the password. Default: none.
    pub password_file: Option<String>,
}

/// A master that Sentinel names.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["urls", "master"]))]
pub struct RawSentinel {
    /// The sentinels: `redis://HOST:PORT`, 1 to 64 of them; with `rediss` the master is reached over TLS too. Required.
    pub urls: Option<Vec<String>>,
    /// The name that they know the master by. Required.
    pub master: Option<String>,
    /// The user at the sentinels. Default: Redis's `default`.
    pub username: Option<String>,
    /// A file with the password of the sentinels. Default: none.
    pub password_file: Option<String>,
}

/// A Cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["urls"]))]
pub struct RawCluster {
    /// Some of its nodes: `redis://HOST:PORT`, 1 to 64 of them; with `rediss` all nodes are reached over TLS. Required.
    pub urls: Option<Vec<String>>,
}

/// How much is kept of each channel: what a client that comes back can be given.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHistory {
    /// Publications. Default 1000, 1 to 100000.
    pub max_messages: Option<Count>,
    /// Their age. Default 5m, 1s to 1d.
    pub max_age: Option<Span>,
    /// Their bytes. Default 1MiB, 1KiB to 1GiB. A larger publication is refused.
    pub max_bytes: Option<Size>,
}

/// Streams that others fill.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["streams", "data_field"]))]
pub struct RawIngest {
    /// The streams' keys, such as `room:*`: one `*` at most, for any characters. Required.
    pub streams: Option<String>,
    /// The channels' names, with a `*` for what it is in `streams`. Default: the keys.
    pub channel: Option<String>,
    /// The field with a message's id. Default: none, and a message has its entry's id.
    pub id_field: Option<String>,
    /// The field with what is sent. Required.
    pub data_field: Option<String>,
}

/// Where publishers publish: `POST /publish`, as GRIP has it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["bind"]))]
pub struct RawPublish {
    /// An address and port; port 0 takes a free one. GRIP's own port is 5561. Required. Beyond loopback it needs
    /// `token_file` or `jwt_key_file`.
    pub bind: Option<String>,
    /// A file with a token that publishers bear, 16 characters at least. Default: none.
    pub token_file: Option<String>,
    /// A file with the key of the JSON Web Tokens that publishers bear: a secret (HS256), `base64:` and a secret, or a
    /// public key in PEM (ES256, RS256). Default: none.
    pub jwt_key_file: Option<String>,
}

/// How backends know this gateway.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawGrip {
    /// A file with the key that `Grip-Sig` is signed with: a secret (HS256), `base64:` and a secret, or a private key in
    /// PEM (ES256, RS256). Default: none, and there is no `Grip-Sig`.
    pub sig_key_file: Option<String>,
    /// The `iss` of `Grip-Sig`. Default `sluicegate`.
    pub sig_iss: Option<String>,
}
