//! Several independent Redis servers as one engine: each channel is on one of them.
//!
//! A shard is a [`RedisEngine`] of its own; calls go to the one that has the channel (`record.rs`). What is particular is
//! the change of the list, which comes to gateways one after the other.
//!
//! # A change of the list
//! Each list has a generation, and every server keeps which one is in force (`sg:shards`). A gateway with a higher one begins
//! it on all servers of its list and of the one before, looks whether all still say so, and then puts it in force
//! (`decide.rs`; `keeper.rs` does the asking). The publish script writes only where the server says that the gateway's own
//! generation is in force. A gateway whose generation is passed publishes nothing any more, and is down.
//!
//! Why no publication that was acknowledged is missed by a subscriber who is told nothing, for a channel that moves from
//! `a` to `b` with generation 2:
//! - Nobody publishes on `b`, and nobody is subscribed there, before 2 is in force; and then `a` has 2 begun, so nobody
//!   publishes on `a` any more, nor later: a server says again that 1 is in force only if it was emptied, and another one
//!   says so after that, which none does, since all had 2 begun.
//! - A subscriber on `a` has a gateway with generation 1. It asks all its servers each heartbeat; as soon as one has 2
//!   begun, the gateway tells all its subscribers of moved channels of a gap, and again every 30 s, since from then on they
//!   miss what is published.
//! - Who comes back with a place on `a` finds another log on `b`: the epochs are of other processes and another store, so no
//!   entry proves the place, and neither does the log's beginning.
//! - A channel that comes back to `a` with generation 3 finds its old log there. Epochs carry the generation since which the
//!   channel is where it is. A log with another one is none: it is not read, and the next publication is its first. Nor does
//!   a place before the first entry prove anything: it has that generation too.
//!
//! Channels that do not move keep their logs, and their subscribers see nothing of all this. Each server has the lists of
//! before, so whoever skipped a generation knows what moved in it too.
//!
//! What is not covered: a server that comes back with data of before the change (a snapshot) takes publications of a gateway
//! of before until that one hears of the change from another server; servers of a list that all lose their data at once
//! forget it. Message ids do not move: what is published again behind a change is stored again on the new shard.

mod decide;
mod in_force;
mod keeper;
mod merged;
mod record;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

pub use self::in_force::InForce;
use self::merged::Merged;
pub use self::record::{List, ListError, MAX_GENERATION, MAX_SHARDS, MIN_SHARDS};
use super::{RedisEngine, Servers, Settings, Task};
use crate::backplane::engine::{
    Capabilities, Channel, Engine, EngineError, Event, Item, Latest, PublishError, Published, ReadLimit, Slice, Stored,
};
use crate::backplane::position::{Epoch, Position, Region};
use crate::backplane::recover::Log;
use crate::backplane::sink::Sink;

/// The key that says which list of shards is in force, on each of them.
pub const KEY: &str = "sg:shards";

/// What the publish script says where another list is in force.
pub const REFUSED: &str = "SHARDS";

/// How often subscribers of channels that have moved away are told of a gap.
const GAP_EVERY: Duration = Duration::from_secs(30);

/// Which servers are shards, by whose word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// They.
    pub list: List,
    /// To be raised with every change of the list; from 1.
    pub generation: u64,
    /// URLs of shards of before that are lost for good.
    pub gone: BTreeSet<String>,
}

/// The engine. Its tasks and connections end when it is dropped.
#[derive(Debug)]
pub struct ShardedEngine {
    shared: Arc<Shared>,
    _tasks: Vec<Task>,
}

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    region: Region,
    shards: Shards,
    /// Of each server.
    settings: Settings,
    /// In the order of the list.
    engines: Vec<RedisEngine>,
    in_force: Arc<InForce>,
    merged: Merged,
    /// Has the keeper look at the servers now.
    look: Notify,
    /// Subscriptions of channels that have moved away. No more than were subscribed to.
    parted: Mutex<HashMap<Channel, Sink>>,
    /// What reading such a channel gives as its log's life, so that each reader is told of a gap once, until it is another.
    life: AtomicU64,
}

impl ShardedEngine {
    /// An engine that connects in the background. Must be called within a runtime.
    ///
    /// Of the settings, `servers` and `ingest` are passed over, and `max_subscriptions` is for each shard.
    pub fn start(region: Region, shards: Shards, settings: &Settings) -> Self {
        let in_force = Arc::new(InForce::new(shards.generation));
        let of = |url: &str| Settings {
            servers: Servers::Standalone { url: url.to_owned() },
            ingest: Vec::new(),
            ..settings.clone()
        };
        let engines: Vec<_> = shards
            .list
            .urls()
            .map(|url| RedisEngine::start_shard(region.clone(), of(url), Some(in_force.clone())))
            .collect();
        let merged = Merged::new(engines.len());
        let settings = settings.clone();
        let (parted, life) = (Mutex::default(), AtomicU64::new(rand::random()));
        let look = Notify::new();
        let shared = Arc::new(Shared { region, shards, settings, engines, in_force, merged, look, parted, life });
        let mut tasks = vec![Task(tokio::spawn(keeper::keep(shared.clone())))];
        for (nth, engine) in shared.engines.iter().enumerate() {
            tasks.push(Task(tokio::spawn(merged::follow(shared.clone(), nth, engine.events()))));
        }
        Self { shared, _tasks: tasks }
    }
}

impl Shared {
    fn engine(&self, channel: &Channel) -> Result<&RedisEngine, EngineError> {
        self.engines.get(self.shards.list.at(channel)).ok_or(EngineError::Unreachable)
    }

    /// What a failure is called that may be another list's doing.
    fn explain(&self, channel: &Channel, reason: EngineError) -> EngineError {
        if reason != (EngineError::Refused { code: REFUSED.to_owned() }) {
            return reason;
        }
        self.look.notify_one();
        match self.in_force.own() {
            Err(reason) => reason,
            Ok(_) => {
                let name = self.shards.list.shards().get(self.shards.list.at(channel)).map_or("", |shard| &shard.name);
                EngineError::of_shard(name, reason)
            }
        }
    }

    fn superseded(&self) -> EngineError {
        self.in_force.own().err().unwrap_or(EngineError::Unreachable)
    }

    fn status(&self) -> Result<(), EngineError> {
        self.in_force.own()?;
        for (engine, shard) in self.engines.iter().zip(self.shards.list.shards()) {
            engine.status().map_err(|reason| EngineError::of_shard(&shard.name, reason))?;
        }
        self.merged.trouble()
    }

    /// Takes subscriptions of channels that have moved away from the shards, and tells all of those of a gap.
    fn part(&self) {
        self.life.store(rand::random(), Ordering::Relaxed);
        let mut parted = self.parted.lock();
        for engine in &self.engines {
            parted.extend(engine.part(|channel| self.in_force.has_moved(channel)));
        }
        for (channel, sink) in &*parted {
            sink.disrupt(channel);
        }
    }
}

#[async_trait]
impl Engine for ShardedEngine {
    fn region(&self) -> &Region {
        &self.shared.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        self.shared.in_force.own().map_err(PublishError::not_stored)?;
        let engine = self.shared.engine(channel).map_err(PublishError::not_stored)?;
        engine.publish(channel, item).await.map_err(|PublishError { reason, stored }| {
            let refused = matches!(&reason, EngineError::Refused { code } if code == REFUSED);
            let stored = if refused { Stored::No } else { stored };
            PublishError { reason: self.shared.explain(channel, reason), stored }
        })
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let shared = &self.shared;
        shared.in_force.record()?;
        if shared.in_force.has_moved(channel) {
            return Err(shared.superseded());
        }
        let engine = shared.engine(channel)?;
        let position = engine.subscribe(channel, sink).await?;
        // What moved away meanwhile, and was passed over by who told the others.
        if shared.in_force.has_moved(channel) {
            engine.unsubscribe(channel).await;
            return Err(shared.superseded());
        }
        shared.parted.lock().remove(channel);
        Ok(position)
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.shared.parted.lock().remove(channel);
        if let Ok(engine) = self.shared.engine(channel) {
            engine.unsubscribe(channel).await;
        }
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        let shared = &self.shared;
        shared.in_force.record()?;
        if shared.in_force.has_moved(channel) {
            return elsewhere(&shared.region, shared.life.load(Ordering::Relaxed), after);
        }
        shared.engine(channel)?.read(channel, after, limit).await
    }

    async fn latest(&self, channel: &Channel) -> Result<Latest, EngineError> {
        let shared = &self.shared;
        shared.in_force.record()?;
        if shared.in_force.has_moved(channel) {
            return Err(shared.superseded());
        }
        shared.engine(channel)?.latest(channel).await
    }

    fn capabilities(&self) -> Capabilities {
        super::capabilities(&self.shared.settings)
    }

    fn status(&self) -> Result<(), EngineError> {
        self.shared.status()
    }

    /// [`Event::Up`] is told when all shards are up, and [`Event::Down`] with the first that is not; its channels alone fail.
    /// A heartbeat is told when each shard has given one since the last: it is the one that came last.
    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.merged.events()
    }
}

/// What is read of a channel whose log is elsewhere: nothing, in a life of its own, so that no place of another is proven by
/// it and whoever reads is told of a gap.
fn elsewhere(region: &Region, life: u64, after: Option<&Position>) -> Result<Slice, EngineError> {
    let epoch = Epoch::new(&format!("elsewhere{life:016x}"));
    let epoch = epoch.map_err(|_| EngineError::Malformed { what: "a lineage" })?;
    let origin = Position::origin(region.clone(), epoch.clone());
    // With the reader's own number, so that it stays ahead of none that it has seen.
    let top = after.map_or(origin, |after| Position { epoch: epoch.clone(), ..after.clone() });
    let log = Log { top: top.n, first: top.n + 1, first_epoch: epoch };
    Ok(Slice { entries: Vec::new(), log, top, at: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::position::Place;
    use crate::backplane::recover::{Recovery, ReplayLimit, Why};

    #[test]
    fn what_is_elsewhere_proves_no_place() {
        let whole = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };
        for token in ["eu.ab-1-.0.0-0", "eu.ab-1-77.1.5-0", "eu.ab-1-77.9007199254740991.5-0"] {
            let mut place: Position = token.parse().unwrap();
            let read = |life, place: &Position| {
                let slice = elsewhere(&place.region, life, Some(place)).unwrap();
                assert!(slice.is_complete() && slice.entries.is_empty());
                assert_eq!(slice.top.to_string().parse(), Ok(slice.top.clone()));
                (slice.recover(&Place::After(place.clone()), whole), slice.top)
            };
            for life in 1..=3 {
                let (recovery, top) = read(life, &place);
                assert_eq!(recovery, Recovery::Gap(Why::Lineage));
                assert!(!matches!(read(life, &top).0, Recovery::Gap(_)), "once in a life");
                place = top;
            }
        }
    }
}
