//! One set of connections to one process of Redis, from the first command to the loss of any of them.
//!
//! Three connections: publications, reads, and pushed messages, so that none waits behind another kind. All of them
//! end together: what a session says of its process (lineage, version) is true of every answer that comes by it.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion, PushInfo,
    RedisResult, TlsCertificates, Value,
};
use tokio::sync::Notify;

use super::super::engine::EngineError;
use super::super::position::{Epoch, Region};
use super::{Servers, Settings, keys, wire};

/// How much of a process's `run_id` is its lineage: 64 random bits.
const LINEAGE_CHARS: usize = 16;

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
    /// Notified when the session is of no use any more.
    pub lost: Arc<Notify>,
}

impl Session {
    /// Connects to the master, and makes sure that it is one, and belongs to this region.
    ///
    /// `on_push` is called with what the server pushes, by the task that reads the connection.
    pub async fn connect(
        settings: &Settings,
        region: &Region,
        number: u64,
        lost: Arc<Notify>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<Self, EngineError> {
        let client = client(settings, master(settings, number).await?)?;
        let mut commands = connection(&client, config(settings.timeout)).await?;
        let forward = move |info: PushInfo| -> Result<(), ()> {
            on_push(info);
            Ok(())
        };
        let info = info(&mut commands).await?;
        guard(&mut commands, region).await?;
        let reads = connection(&client, config(settings.timeout)).await?;
        let mut pushes = connection(&client, config(settings.timeout).set_push_sender(forward)).await?;
        // Behind one address may be several processes, one after the other.
        for other in [&mut reads.clone(), &mut pushes] {
            let same = self::info(other).await?.lineage == info.lineage;
            if !same {
                return Err(EngineError::Unreachable);
            }
        }
        Ok(Self { number, commands, reads, pushes, lineage: info.lineage, sharded: info.major >= 7, lost })
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
        pipeline.query_async::<Vec<Value>>(&mut self.pushes.clone()).await.map(drop)
    }
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

/// Where the master is. Each try begins with another sentinel, since one that is cut off names the master of before.
async fn master(settings: &Settings, number: u64) -> Result<ConnectionInfo, EngineError> {
    match &settings.servers {
        Servers::Standalone { url } => node(settings, url),
        Servers::Sentinel { urls, master } => {
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
    }
}

async fn ask_sentinel(settings: &Settings, url: &str, master: &str) -> Result<ConnectionInfo, EngineError> {
    let info = url.into_connection_info().map_err(|error| wire::error(&error))?;
    let client = client(settings, info.clone())?;
    let mut sentinel = connection(&client, config(settings.timeout)).await?;
    let found: Option<(String, u16)> = redis::cmd("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(master)
        .query_async(&mut sentinel)
        .await
        .map_err(|error| wire::error(&error))?;
    let (host, port) = found.ok_or(EngineError::Unreachable)?;
    let addr = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    // Not the credentials in a sentinel's URL: those are the sentinel's.
    let node = node(settings, "redis://unused")?;
    Ok(node.set_addr(addr))
}

fn node(settings: &Settings, url: &str) -> Result<ConnectionInfo, EngineError> {
    let info = url.into_connection_info().map_err(|error| wire::error(&error))?;
    // RESP3, since one connection has to carry answers and pushed messages.
    let mut redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = &settings.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &settings.password {
        redis = redis.set_password(password);
    }
    Ok(info.set_redis_settings(redis))
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
async fn guard(connection: &mut MultiplexedConnection, region: &Region) -> Result<(), EngineError> {
    let get = redis::cmd("GET").arg(keys::REGION).to_owned();
    let mut found: Option<Vec<u8>> = get.query_async(connection).await.map_err(|error| wire::error(&error))?;
    // Only where there is none: a Redis that is out of room refuses every write.
    if found.is_none() {
        let set = redis::cmd("SETNX").arg(keys::REGION).arg(region.as_str()).to_owned();
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
