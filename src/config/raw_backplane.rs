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
    /// What channels are, by how their names begin. Default: none. At most 64; of several that fit a channel the one with
    /// the longest `prefix` counts.
    pub channels: Vec<RawChannel>,
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
    /// In RabbitMQ.
    RabbitMq(RawRabbitMqEngine),
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
    pub redis: Box<RawRedis>,
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

/// The servers of a Redis engine: exactly one of `url`, `sentinel`, `cluster` and `shards`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend(
    "oneOf" = [
        { "required": ["url"] },
        { "required": ["sentinel"] },
        { "required": ["cluster"] },
        { "required": ["shards", "generation"] },
    ],
))]
pub struct RawRedis {
    /// `redis://HOST:PORT`, or `rediss://HOST:PORT` for TLS. Required: this, `sentinel`, `cluster` or `shards`, exactly one.
    /// No password in it: see `password_file`.
    pub url: Option<String>,
    /// A master that Sentinel names, instead of `url`.
    pub sentinel: Option<RawSentinel>,
    /// A Cluster of Redis 7.0 or later, instead of `url`.
    pub cluster: Option<RawCluster>,
    /// 2 to 64 independent servers, each with a part of the channels, instead of `url`: `redis://HOST:PORT` or
    /// `rediss://HOST:PORT`. Default: none.
    pub shards: Option<Vec<String>>,
    /// Which list of `shards` this is: 1 for the first, and a higher number with every change. Required with `shards`.
    pub generation: Option<u64>,
    /// Shards of before that are lost for good, so that their leaving is not waited for. Default: none.
    pub gone: Option<Vec<String>>,
    /// The user. Default: Redis's `default`.
    pub username: Option<String>,
    /// A file with the password. Default: none.
    pub password_file: Option<String>,
}

/// In RabbitMQ.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRabbitMqEngine {
    /// The broker. Required.
    pub rabbitmq: RawRabbitMq,
}

/// The broker of a RabbitMQ engine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["url"]))]
pub struct RawRabbitMq {
    /// `amqp://HOST:PORT/VHOST`, or `amqps://HOST:PORT/VHOST` for TLS. Without a path the virtual host is `/`. Required.
    /// No password in it: see `password_file`.
    pub url: Option<String>,
    /// The user. Default: RabbitMQ's `guest`.
    pub username: Option<String>,
    /// A file with the password. Default: none, and the password is `guest`.
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

/// What channels are whose names begin so.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["prefix"]))]
pub struct RawChannel {
    /// What their names begin with, such as `prices:`; 1 to 512 bytes. Required.
    pub prefix: Option<String>,
    /// The region that their publications are appended to. Default: none. Not in this version.
    pub home: Option<String>,
    /// Of each key only the newest value counts, as of prices. Default: none.
    pub conflate: Option<RawConflate>,
}

/// How channels are sent of which only the newest value of each key counts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawConflate {
    /// How often what has changed is sent. Default 100ms, 10ms to 10s.
    pub interval: Option<Span>,
    /// What a publication is the newest value of: `meta:NAME`, an entry of its `meta`; or `json:POINTER`, a string or a
    /// whole number in its content (RFC 6901). Default `meta:conflate-key`.
    pub key: Option<String>,
    /// What a client gets of what has changed. Default `messages`.
    pub join: Option<RawJoin>,
}

/// A message for each value, or a text message that is a JSON array of the values, which have to be JSON.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawJoin {
    Messages,
    JsonArray,
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
