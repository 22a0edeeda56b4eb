//! Asks the servers which list of shards is in force, and puts ours in force; see `decide.rs`.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script};

use super::decide::{Own, Seen, Step, View, Write, decide};
use super::record::Said;
use super::{GAP_EVERY, KEY, Shared};
use crate::backplane::engine::{EngineError, Event, Scope};
use crate::backplane::redis::session::{self, Target};
use crate::backplane::redis::{Servers, Settings, wire};

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));

/// How often one looks again at once, where something was written. Others may write too.
const ROUNDS: usize = 16;

/// Runs until the engine is dropped.
pub async fn keep(shared: Arc<Shared>) {
    let mut more = BTreeSet::new();
    let mut gaps_told: Option<Instant> = None;
    loop {
        shared.settle(&mut more).await;
        if shared.is_superseded() && gaps_told.is_none_or(|at| at.elapsed() >= GAP_EVERY) {
            gaps_told = Some(Instant::now());
            shared.part();
            shared.merged.tell(Event::Disrupted(Scope::All));
        }
        shared.tell_status();
        // That the time is up is as good a reason.
        let _ = tokio::time::timeout(shared.settings.heartbeat, shared.look.notified()).await;
    }
}

impl Shared {
    fn is_superseded(&self) -> bool {
        matches!(self.in_force.own(), Err(EngineError::Superseded { .. }))
    }

    /// Brings all shards to say that this gateway's list is in force, as far as that can be now.
    async fn settle(&self, more: &mut BTreeSet<String>) {
        for _ in 0..ROUNDS {
            if self.is_steady().await {
                more.clear();
                self.merged.set_trouble(None);
                return;
            }
            let first = self.view(more).await;
            let second = self.view(more).await;
            let known = self.in_force.own().ok();
            let own = Own {
                generation: self.shards.generation,
                list: &self.shards.list,
                gone: &self.shards.gone,
                known: known.as_deref(),
            };
            match decide(&own, &first, &second, || format!("{:016x}", rand::random::<u64>())) {
                Step::Superseded(record) => {
                    self.in_force.set(*record);
                    return;
                }
                Step::Wait(reason) => {
                    // What is in force stays so; a shard that was emptied is told when another answers.
                    self.merged.set_trouble(Some(reason.clone()));
                    self.in_force.wait(reason);
                    return;
                }
                Step::Look(others) => more.extend(others),
                Step::Prepare(writes) => self.write_all(writes).await,
                Step::InForce(record, writes) => {
                    self.in_force.set(*record);
                    let waits = writes.is_empty();
                    self.write_all(writes).await;
                    if waits {
                        // Those that do not answer are told when they do.
                        self.merged.set_trouble(None);
                        return;
                    }
                }
            }
        }
        self.merged.set_trouble(Some(EngineError::Malformed { what: "the list of shards does not come to rest" }));
    }

    /// Whether all shards say that this gateway's list is in force: all that there is to ask as a rule.
    async fn is_steady(&self) -> bool {
        let Ok(record) = self.in_force.own() else { return false };
        let in_force = record.in_force();
        let ask = |engine| async move {
            let get = redis::cmd("HGET").arg(KEY).arg("now").to_owned();
            let now = self.through(engine, async |mut to| get.query_async::<Option<String>>(&mut to).await).await;
            now.ok().flatten()
        };
        join_all(self.engines.iter().map(ask)).await.iter().all(|now| now.as_deref() == Some(&in_force))
    }

    /// What each shard, and each of these servers, says.
    async fn view(&self, more: &BTreeSet<String>) -> View {
        let urls = self.shards.list.urls().chain(more.iter().map(String::as_str));
        let ask = |url: &str| {
            let url = url.to_owned();
            async move {
                let get = redis::cmd("HMGET").arg(KEY).arg("now").arg("record").to_owned();
                let query = async |mut to: MultiplexedConnection| get.query_async(&mut to).await;
                let seen = match self.on::<(Option<String>, Option<String>)>(&url, query).await {
                    Err(reason) => Seen::Silent(reason),
                    Ok((None, _)) => Seen::Blank,
                    Ok((Some(now), record)) => Said::parse(&now, &record.unwrap_or_default())
                        .map_or(Seen::Silent(EngineError::Malformed { what: "the key of the shards" }), |said| {
                            Seen::Says(Box::new(said))
                        }),
                };
                (url, seen)
            }
        };
        join_all(urls.map(ask)).await.into_iter().collect()
    }

    /// Writes; what does not come about is seen when one looks again.
    async fn write_all(&self, writes: Vec<Write>) {
        let write = |write: Write| async move {
            let query = async |mut to: MultiplexedConnection| {
                let mut script = CLAIM.prepare_invoke();
                script.key(KEY).arg(&write.from).arg(&write.to).arg(&write.record);
                script.invoke_async(&mut to).await
            };
            let _ = self.on::<i64>(&write.url, query).await;
        };
        join_all(writes.into_iter().map(write)).await;
    }

    /// Asks a server: a shard by the connection that publications take, another one by one of its own.
    async fn on<T>(
        &self,
        url: &str,
        query: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, EngineError> {
        if let Some(nth) = self.shards.list.urls().position(|of| of == url)
            && let Some(engine) = self.engines.get(nth)
        {
            return self.through(engine, query).await;
        }
        let servers = Servers::Standalone { url: url.to_owned() };
        let settings = Settings { servers, ..self.settings.clone() };
        let asked = async {
            let connection = session::ask(&settings, &Target::Master).await?;
            query(connection).await.map_err(|error| wire::error(&error))
        };
        tokio::time::timeout(settings.timeout, asked).await.map_err(|_| EngineError::TimedOut)?
    }

    async fn through<T>(
        &self,
        engine: &super::RedisEngine,
        query: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, EngineError> {
        engine.ask(query).await
    }
}
