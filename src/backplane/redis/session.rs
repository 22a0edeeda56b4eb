//! One set of connections to one process of Redis, from the first command to the loss of any of them.
//!
//! Three connections: publications, reads, and pushed messages, so that none waits behind another kind. All of them
//! end together: what a session says of its process (lineage, version) is true of every answer that comes by it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, ProtocolVersion,
    PushInfo, RedisError, RedisResult, TlsCertificates, Value,
};
use tokio::sync::Notify;

use super::super::engine::EngineError;
use super::super::position::{Epoch, Region};
use super::keys::Partition;
use super::routes::Partitions;
use super::settings::{Credentials, Servers, Settings};
use super::{keys, wire};

/// How much of a process's `run_id` is its lineage: 64 random bits.
const LINEAGE_CHARS: usize = 16;

/// The first version of Redis whose Pub/Sub is sharded.
const SHARDED_SINCE: u64 = 7;

/// Which server a session is with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The one that the settings lead to.
    Master,
    /// A node of a Cluster: its host and port.
    Node(String, u16),
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    /// Counts the sessions of an engine.
    pub number: u64,
    /// For publications, and what is quick.
    pub commands: MultiplexedConnection,
    /// For reads, which are long.
    pub reads: MultiplexedConnection,
    /// For subscriptions.
    pub pushes: MultiplexedConnection,
    /// Of the process.
    pub lineage: Epoch,
    /// Whether Pub/Sub is sharded: from Redis 7.0 on.
    pub sharded: bool,
    /// What its connections tell.
    pub link: Arc<Link>,
}

/// What is heard by a session's connections, beside answers.
#[derive(Debug, Default)]
pub struct Link {
    /// Notified when the session is of no use any more.
    pub lost: Notify,
    /// When a heartbeat last came back.
    pub heard: Mutex<Option<Instant>>,
    /// Wakes who waits for one.
    pub beat: Notify,
    /// The partition that heartbeats are sent in: one that the server has.
    pub beats_in: Mutex<Option<Partition>>,
    /// Partitions that the server said it has not any more.
    gone: Mutex<Partitions>,
}

impl Link {
    /// The server has a partition no more.
    pub fn gone(&self, partition: Partition) {
        let mut gone = self.gone.lock();
        *gone = gone.with(partition);
    }

    /// The partitions that the server has no more, as far as it was not asked before.
    pub fn take_gone(&self) -> Partitions {
        std::mem::take(&mut *self.gone.lock())
    }
}

impl Session {
    /// Connects to a master, and makes sure that it is one, and belongs to this region.
    ///
    /// `on_push` is called with what the server pushes, by the task that reads the connection.
    pub async fn connect(
        settings: &Settings,
        region: &Region,
        target: &Target,
        number: u64,
        link: Arc<Link>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<Self, EngineError> {
        let client = client(settings, address(settings, target, number).await?)?;
        let mut commands = connection(&client, config(settings.timeout)).await?;
        let forward = move |info: PushInfo| -> Result<(), ()> {
            on_push(info);
            Ok(())
        };
        let info = info(&mut commands).await?;
        if *target == Target::Master {
            guard(&mut commands, keys::REGION, region).await?;
        } else if info.major < SHARDED_SINCE {
            // Without shards every node would be sent what is published on any.
            return Err(EngineError::Refused { code: "VERSION".to_owned() });
        }
        let reads = connection(&client, config(settings.timeout)).await?;
        let mut pushes = connection(&client, config(settings.timeout).set_push_sender(forward)).await?;
        // Behind one address may be several processes, one after the other.
        for other in [&mut reads.clone(), &mut pushes] {
            let same = self::info(other).await?.lineage == info.lineage;
            if !same {
                return Err(EngineError::Unreachable);
            }
        }
        let sharded = info.major >= SHARDED_SINCE;
        Ok(Self { number, commands, reads, pushes, lineage: info.lineage, sharded, link })
    }

    /// Makes sure that partitions of a Cluster belong to this region.
    pub async fn guard(&self, partitions: Partitions, region: &Region) -> Result<(), EngineError> {
        for partition in partitions.iter() {
            match guard(&mut self.commands.clone(), &keys::region_of(partition), region).await {
                // It is on its way to another node, which is asked when it is there.
                Err(EngineError::Refused { code }) if wire::IS_ELSEWHERE.contains(&code.as_str()) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// The command that publishes to a Pub/Sub channel.
    pub fn publish_command(&self) -> &'static str {
        if self.sharded { "SPUBLISH" } else { "PUBLISH" }
    }

    /// Subscribes to Pub/Sub channels; the server has acknowledged all of them when this returns.
    pub async fn subscribe(&self, names: &[String]) -> RedisResult<()> {
        self.each(if self.sharded { "SSUBSCRIBE" } else { "SUBSCRIBE" }, names).await
    }

    /// Ends subscriptions to Pub/Sub channels.
    pub async fn unsubscribe(&self, names: &[String]) -> RedisResult<()> {
        self.each(if self.sharded { "SUNSUBSCRIBE" } else { "UNSUBSCRIBE" }, names).await
    }

    /// One command a channel: each has one acknowledgement, as any command has one answer.
    async fn each(&self, command: &str, names: &[String]) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for name in names {
            pipeline.cmd(command).arg(name);
        }
        let answers = pipeline.query_async::<Vec<Value>>(&mut self.pushes.clone()).await?;
        let own = answers.len() == names.len()
            && answers.iter().zip(names).all(|(answer, name)| acknowledges(answer, command, name));
        if !own {
            // A Cluster's node ends subscriptions by itself when their slot moves, and says so in the same words as an
            // answer has. The crate takes it for the answer to the oldest command, and all later ones are one off.
            self.link.lost.notify_one();
            return Err(RedisError::from((ErrorKind::Io, "answers are out of step")));
        }
        Ok(())
    }
}

/// Whether this is the server's word for a command about a Pub/Sub channel.
fn acknowledges(answer: &Value, command: &str, name: &str) -> bool {
    let Value::Push { kind, data } = answer else { return false };
    kind.to_string().eq_ignore_ascii_case(command)
        && matches!(data.first(), Some(Value::BulkString(of)) if of == name.as_bytes())
}

fn client(settings: &Settings, info: ConnectionInfo) -> Result<Client, EngineError> {
    let over_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let client = match &settings.ca {
        Some(ca) if over_tls => {
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(ca.clone()) })
        }
        _ => Client::open(info),
    };
    client.map_err(|error| wire::error(&error))
}

/// Within this time every command is answered or failed.
fn config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout))
}

async fn connection(client: &Client, config: AsyncConnectionConfig) -> Result<MultiplexedConnection, EngineError> {
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| wire::error(&error))
}

/// Where the server is. Each try begins with another sentinel, since one that is cut off names the master of before.
async fn address(settings: &Settings, target: &Target, number: u64) -> Result<ConnectionInfo, EngineError> {
    match (target, &settings.servers) {
        (Target::Master, Servers::Standalone { url }) => node(settings, url),
        (Target::Master, Servers::Sentinel { urls, master }) => {
            let mut failure = EngineError::Unreachable;
            let start = usize::try_from(number).unwrap_or(0).checked_rem(urls.len()).unwrap_or(0);
            for url in urls.iter().cycle().skip(start).take(urls.len()) {
                match ask_sentinel(settings, url, master).await {
                    Ok(info) => return Ok(info),
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        }
        (Target::Node(host, port), Servers::Cluster { urls }) => {
            let like = urls.first().ok_or(EngineError::Unreachable)?;
            let like = like.as_str().into_connection_info().map_err(|error| wire::error(&error))?;
            at(settings, &like, host.clone(), *port)
        }
        _ => Err(EngineError::Unreachable),
    }
}

async fn ask_sentinel(settings: &Settings, url: &str, master: &str) -> Result<ConnectionInfo, EngineError> {
    let info = url.into_connection_info().map_err(|error| wire::error(&error))?;
    let asked = known_as(info.clone(), &settings.sentinel_credentials);
    let client = client(settings, asked)?;
    let mut sentinel = connection(&client, config(settings.timeout)).await?;
    let found: Option<(String, u16)> = redis::cmd("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(master)
        .query_async(&mut sentinel)
        .await
        .map_err(|error| wire::error(&error))?;
    let (host, port) = found.ok_or(EngineError::Unreachable)?;
    // Without the credentials of the sentinel's: the master has its own.
    at(settings, &info, host, port)
}

/// A server at this address, over TLS if the one that named it was reached so.
fn at(settings: &Settings, like: &ConnectionInfo, host: String, port: u16) -> Result<ConnectionInfo, EngineError> {
    let addr = match like.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    Ok(node(settings, "redis://unused")?.set_addr(addr))
}

/// A connection for a few questions to a server of the settings, at its URL.
pub async fn ask(settings: &Settings, target: &Target) -> Result<MultiplexedConnection, EngineError> {
    let client = client(settings, address(settings, target, 0).await?)?;
    connection(&client, config(settings.timeout)).await
}

fn node(settings: &Settings, url: &str) -> Result<ConnectionInfo, EngineError> {
    let info = url.into_connection_info().map_err(|error| wire::error(&error))?;
    // RESP3, since one connection has to carry answers and pushed messages.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(known_as(info.set_redis_settings(redis), &settings.credentials))
}

fn known_as(info: ConnectionInfo, credentials: &Credentials) -> ConnectionInfo {
    let mut redis = info.redis_settings().clone();
    if let Some(username) = &credentials.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &credentials.password {
        redis = redis.set_password(password);
    }
    info.set_redis_settings(redis)
}

/// The host and port of a URL.
pub fn target_of(url: &str) -> Result<Target, EngineError> {
    let info = url.into_connection_info().map_err(|error| wire::error(&error))?;
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Ok(Target::Node(host.clone(), *port))
        }
        _ => Err(EngineError::Unreachable),
    }
}

/// The lineage of the process at the other end.
pub async fn lineage(connection: &mut MultiplexedConnection) -> Result<Epoch, EngineError> {
    Ok(info(connection).await?.lineage)
}

/// What a process says of itself.
struct Info {
    lineage: Epoch,
    major: u64,
}

async fn info(connection: &mut MultiplexedConnection) -> Result<Info, EngineError> {
    let sections = ["server", "replication"];
    let mut text = String::new();
    for section in sections {
        let part: String =
            redis::cmd("INFO").arg(section).query_async(connection).await.map_err(|error| wire::error(&error))?;
        text.push_str(&part);
    }
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).filter(|value| !value.is_empty())
    };
    if field("role") != Some("master") {
        return Err(EngineError::Refused { code: "READONLY".to_owned() });
    }
    // A managed service may hide the process, but not what its replicas follow.
    let process = field("run_id").or_else(|| field("master_replid")).and_then(|id| id.get(..LINEAGE_CHARS));
    let lineage = process.and_then(|id| Epoch::new(id).ok()).ok_or(wire::malformed("INFO"))?;
    let version = field("redis_version").and_then(|version| version.split('.').next()?.parse().ok());
    Ok(Info { lineage, major: version.ok_or(wire::malformed("INFO"))? })
}

/// Two regions that are pointed at one Redis would give the same numbers to different logs.
async fn guard(connection: &mut MultiplexedConnection, key: &str, region: &Region) -> Result<(), EngineError> {
    let get = redis::cmd("GET").arg(key).to_owned();
    let mut found: Option<Vec<u8>> = get.query_async(connection).await.map_err(|error| wire::error(&error))?;
    // Only where there is none: a Redis that is out of room refuses every write.
    if found.is_none() {
        let set = redis::cmd("SETNX").arg(key).arg(region.as_str()).to_owned();
        set.query_async::<Value>(connection).await.map_err(|error| wire::error(&error))?;
        found = get.query_async(connection).await.map_err(|error| wire::error(&error))?;
    }
    let found = found.unwrap_or_default();
    if found == region.as_str().as_bytes() {
        return Ok(());
    }
    let name = std::str::from_utf8(&found).ok().and_then(|name| Region::new(name).ok());
    Err(EngineError::WrongRegion { found: name.map_or_else(|| "?".to_owned(), |name| name.to_string()) })
}
