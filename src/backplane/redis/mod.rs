//! The engine over Redis or Valkey: a stream a channel is the truth, Pub/Sub tells of what is new.
//!
//! Each publication is one script (`publish.lua`), so it is whole or it is not. Pub/Sub is in order and complete as long
//! as its connection lives; after every subscription, and after every new connection, the stream is read from the last
//! entry that was pushed, so nothing depends on Pub/Sub being complete over time.
//!
//! Needs Redis 6.2 or later, or Valkey; from 7.0 on Pub/Sub is sharded. A single server, a master that Sentinel names, or a
//! Cluster, of which each master has a session of its own and answers for its slots.
//!
//! Two things are lost with a master that dies before its replica has them: entries, which readers are told of, since the
//! entries that come in their place have other ids, or since who published them finds them gone (`witness.rs`); and message
//! ids, so that a repeated publication is stored again.
//! A master that is demoted and promoted again without a restart has the lineage that it had; what it lost between is
//! told of where the entry that a reader saw is still retained or has a number that is not given out again yet.
//!
//! While a slot of a Cluster moves, neither of its two nodes runs a script whose keys are not all there, and a message's id
//! never is. So a publication waits, for no longer than the time-out, until the slot is where it goes.

mod cluster;
mod ingest;
mod keys;
mod routes;
mod session;
mod settings;
mod shards;
mod supervisor;
mod wire;
mod witness;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisResult, Script, Value};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::task::JoinHandle;

use self::ingest::Ingest;
pub use self::ingest::{IngestRule, Pattern};
use self::keys::Partition;
use self::routes::{Partitions, Route, Routes};
use self::session::{Link, Session, Target};
pub use self::settings::{Credentials, Servers, Settings};
use self::shards::InForce;
pub use self::shards::{List, ListError, MAX_GENERATION, MAX_SHARDS, MIN_SHARDS, ShardedEngine, Shards};
use self::witness::Witness;
use super::backoff::backoff;
use super::engine::{
    Capabilities, Channel, Dedupe, EVENTS_KEPT, Engine, EngineError, Entry, Event, History, Item, Key, LOG_LIFE,
    Latest, PublishError, Published, ReadLimit, Scope, Slice, Stored,
};
use super::position::{Epoch, Position, Region};
use super::sink::Sink;
use super::subscriptions::{Outcome, Reading, Step, Subscriptions};

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("publish.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
static LATEST: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("latest.lua")));

/// What is read at once to push it.
const PART: ReadLimit = ReadLimit { max_entries: 500, max_bytes: 1 << 20 };

/// How often a log is tried to be read to push from it, before its receiver is told.
const READ_TRIES: u32 = 3;

/// The time between two tries of a publication whose slot is elsewhere or on its way.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(20);

/// How many logs are read at once to push from them.
const READS_AT_ONCE: usize = 16;

/// How many locks order the subscriptions and their ends, each for a part of the channels.
const ORDER_LOCKS: usize = 64;

/// The engine. Its connections end when it is dropped.
#[derive(Debug)]
pub struct RedisEngine {
    shared: Arc<Shared>,
    _supervisor: Task,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

/// What the tasks of an engine share.
#[derive(Debug)]
struct Shared {
    region: Region,
    settings: Settings,
    /// Tells the heartbeats of this engine from those of others.
    node: u64,
    routes: Mutex<Routes>,
    /// What was last told of the engine as a whole.
    told: Mutex<Option<Result<(), EngineError>>>,
    sessions: AtomicU64,
    /// Notified when a Cluster's nodes may not have what they had.
    refresh: Notify,
    subscriptions: Mutex<Subscriptions>,
    /// The server gets a channel's SUBSCRIBE and UNSUBSCRIBE in the order in which the subscriptions changed.
    order: Vec<tokio::sync::Mutex<()>>,
    reads: Arc<Semaphore>,
    ingest: Ingest,
    witness: Witness,
    /// Where this is one of several servers.
    in_force: Option<Arc<InForce>>,
    events: broadcast::Sender<Event>,
}

/// The engine over these servers, which connects in the background. Must be called within a runtime.
pub fn start(region: Region, settings: Settings) -> Arc<dyn Engine> {
    match settings.servers.clone() {
        Servers::Shards(shards) => Arc::new(ShardedEngine::start(region, shards, &settings)),
        Servers::Standalone { .. } | Servers::Sentinel { .. } | Servers::Cluster { .. } => {
            Arc::new(RedisEngine::start(region, settings))
        }
    }
}

impl RedisEngine {
    /// An engine of servers that are no shards, which connects in the background, for as long as it takes. Must be called within a runtime.
    ///
    /// Until the first [`Event::Up`] every call fails, and says why.
    pub fn start(region: Region, settings: Settings) -> Self {
        Self::start_shard(region, settings, None)
    }

    /// The same for one of several servers, which does what the list in force says.
    fn start_shard(region: Region, settings: Settings, in_force: Option<Arc<InForce>>) -> Self {
        let shared = Arc::new(Shared {
            region,
            ingest: Ingest::new(settings.ingest.clone()),
            settings,
            witness: Witness::default(),
            in_force,
            node: rand::random(),
            routes: Mutex::new(Routes::new()),
            told: Mutex::new(None),
            sessions: AtomicU64::new(0),
            refresh: Notify::new(),
            subscriptions: Mutex::default(),
            order: (0..ORDER_LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            events: broadcast::Sender::new(EVENTS_KEPT),
        });
        let also = shared.clone();
        let supervisor = tokio::spawn(async move {
            match also.settings.servers.clone() {
                Servers::Cluster { urls } => cluster::run(also, urls).await,
                // Those that are shards have engines of their own; as one server they are never reached.
                Servers::Standalone { .. } | Servers::Sentinel { .. } | Servers::Shards(_) => {
                    let (_all, wanted) = watch::channel(Partitions::ALL);
                    supervisor::keep(also, Target::Master, wanted).await;
                }
            }
        });
        Self { shared, _supervisor: Task(supervisor) }
    }

    /// Whether it is connected now, to all servers that it needs, and if not, why.
    ///
    /// # Errors
    /// What the last try to connect came to.
    pub fn status(&self) -> Result<(), EngineError> {
        self.shared.status()
    }

    /// Asks the server, by the connection of publications. Not in a Cluster.
    async fn ask<T>(&self, query: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>) -> Result<T, EngineError> {
        let Route { session, .. } = self.shared.routes.lock().to(0)?;
        match self.shared.within(&session, 0, query(session.commands.clone())).await {
            Ok(answer) => Ok(answer),
            Err(None) => Err(EngineError::TimedOut),
            Err(Some(error)) => Err(wire::error(&error)),
        }
    }

    /// Ends these subscriptions, and gives their receivers. What the server still pushes of them is dropped.
    fn part(&self, concerned: impl Fn(&Channel) -> bool) -> Vec<(Channel, Sink)> {
        self.shared.subscriptions.lock().part(concerned)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait]
impl Engine for RedisEngine {
    fn region(&self) -> &Region {
        &self.shared.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        let shared = &self.shared;
        if shared.ingest.has(channel) {
            return Err(PublishError::not_stored(EngineError::Foreign));
        }
        item.check_size(&shared.settings.retention)?;
        let until = Instant::now() + shared.settings.timeout;
        loop {
            shared.look_before(channel).await;
            match shared.publish(channel, item).await {
                Err(error)
                    if shared.is_cluster()
                        && error.stored == Stored::No
                        && wire::is_elsewhere(&error.reason)
                        && Instant::now() < until => {}
                answer => {
                    if let Ok(published) = &answer {
                        shared.witness.stored(channel, &published.position, Instant::now());
                    }
                    return answer;
                }
            }
            tokio::time::sleep(ELSEWHERE_PAUSE).await;
        }
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let (shared, channel, sink) = (self.shared.clone(), channel.clone(), sink.clone());
        // In a task of its own, so that a caller who gives up leaves nothing half done.
        let started = tokio::spawn(async move {
            if shared.ingest.has(&channel) {
                let _order = shared.order_of(&channel).lock().await;
                return shared.subscribe_foreign(&channel, &sink).await;
            }
            shared.subscribe(&channel, &sink).await
        });
        started.await.unwrap_or(Err(EngineError::Unreachable))
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.shared.ingest.unsubscribe(channel);
        let (shared, channel) = (self.shared.clone(), channel.clone());
        if !shared.subscriptions.lock().end(&channel) {
            return;
        }
        // Whether it came to an end is of no interest to anybody: nothing is pushed any more.
        let _ = tokio::spawn(async move { shared.unsubscribe(&channel).await }).await;
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        if self.shared.ingest.has(channel) {
            return self.shared.read_foreign(channel, after, limit).await;
        }
        let route = self.shared.route(channel)?;
        self.shared.read(&route.session, channel, after, limit).await
    }

    fn is_foreign(&self, channel: &Channel) -> bool {
        self.shared.ingest.has(channel)
    }

    async fn read_back(&self, channel: &Channel, to: &Position) -> Result<Vec<Entry>, EngineError> {
        self.shared.read_back_foreign(channel, to).await
    }

    async fn latest(&self, channel: &Channel) -> Result<Latest, EngineError> {
        // Who fills it gives no keys.
        if self.shared.ingest.has(channel) {
            return Err(EngineError::Foreign);
        }
        let route = self.shared.route(channel)?;
        self.shared.latest(&route.session, channel).await
    }

    fn status(&self) -> Result<(), EngineError> {
        self.shared.status()
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(&self.shared.settings)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }
}

fn capabilities(settings: &Settings) -> Capabilities {
    Capabilities {
        history: History::Engine,
        contiguous: true,
        dedupe: Dedupe::Publish,
        dedupe_window: settings.dedupe_window,
        retention: settings.retention,
        latest: true,
    }
}

impl Shared {
    fn is_cluster(&self) -> bool {
        matches!(self.settings.servers, Servers::Cluster { .. })
    }

    fn serves_foreign(&self) -> bool {
        !self.ingest.is_empty() && !self.is_cluster()
    }

    fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// The way to a channel's server now.
    fn route(&self, channel: &Channel) -> Result<Route, EngineError> {
        self.routes.lock().to(keys::partition(channel))
    }

    fn is_current(&self, channel: &Channel, route: &Route) -> bool {
        self.routes.lock().is_current(keys::partition(channel), route)
    }

    fn status(&self) -> Result<(), EngineError> {
        self.routes.lock().status()
    }

    /// A session is asked for these partitions from now on.
    fn taken_over(self: &Arc<Self>, partitions: Partitions, session: &Arc<Session>) {
        let changes = self.routes.lock().take_over(partitions, session);
        self.tell_status();
        if !changes.is_empty() {
            self.look_for_losses(partitions);
        }
        for (from, to) in changes {
            self.tell(Event::LineageChanged { from, to });
        }
    }

    /// A session is lost, before or after it took over what is wanted of it.
    fn lost(&self, session: &Session, wanted: Partitions, reason: &EngineError) {
        self.routes.lock().lose(session.number, reason);
        self.closed(wanted, reason);
        self.tell(Event::Disrupted(Scope::All));
    }

    /// Nobody can be asked for these partitions.
    fn closed(&self, partitions: Partitions, reason: &EngineError) {
        self.routes.lock().close(partitions, reason);
        self.tell_status();
    }

    /// Tells how the engine is as a whole, if that is news.
    fn tell_status(&self) {
        let mut told = self.told.lock();
        let status = self.status();
        if told.as_ref() == Some(&status) {
            return;
        }
        *told = Some(status.clone());
        self.tell(status.map_or_else(Event::Down, |()| Event::Up));
    }

    fn beat(&self, engine_ms: u64, round_trip: Duration) {
        self.tell(Event::Heartbeat { engine_ms, round_trip });
    }

    /// Waits for an answer about a partition, no longer than the time-out, and ends the session or looks for another
    /// server where its failure says so. `None` is the time-out.
    async fn within<T>(
        &self,
        session: &Session,
        partition: Partition,
        answer: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Option<redis::RedisError>> {
        let answer = tokio::time::timeout(self.settings.timeout, answer).await.map_err(|_| None)?;
        answer.map_err(|error| {
            if wire::ends_session(&error) {
                session.link.lost.notify_one();
            } else if error.code() == Some("MOVED") {
                self.gone(&session.link, partition);
            } else if error.code() == Some("CLUSTERDOWN") {
                self.refresh.notify_one();
            }
            Some(error)
        })
    }

    /// A server of a Cluster said that it has a partition no more.
    fn gone(&self, link: &Link, partition: Partition) {
        link.gone(partition);
        self.refresh.notify_one();
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        let Route { session, .. } = self.route(channel).map_err(PublishError::not_stored)?;
        let settings = &self.settings;
        let stamp = self.stamp(channel).map_err(PublishError::not_stored)?;
        let shards = self.in_force.as_ref().map(|in_force| in_force.required()).transpose();
        let shards = shards.map_err(PublishError::not_stored)?.unwrap_or_default();
        let mut script = PUBLISH.prepare_invoke();
        script
            .key(keys::stream(channel))
            .key(keys::log(channel))
            .key(keys::dedupe(channel, &item.id))
            .key(keys::values(channel))
            .key(keys::life(channel))
            .arg(&item.payload[..])
            .arg(item.id.as_str())
            .arg(session.lineage.as_str())
            .arg(fresh())
            .arg(settings.retention.max_entries.max(1))
            .arg(settings.retention.max_bytes)
            .arg(millis(settings.retention.max_age))
            .arg(millis(LOG_LIFE))
            .arg(millis(settings.dedupe_window))
            .arg(keys::push(channel))
            .arg(session.publish_command())
            .arg(item.key.as_ref().map_or("", Key::as_str))
            .arg(settings.latest.max_keys)
            .arg(settings.latest.max_bytes)
            .arg(stamp)
            .arg(shards);
        let mut commands = session.commands.clone();
        match self.within(&session, keys::partition(channel), script.invoke_async(&mut commands)).await {
            Ok(answer) => wire::published(answer, &self.region, &settings.latest),
            Err(None) => Err(PublishError { reason: EngineError::TimedOut, stored: Stored::Unknown }),
            Err(Some(error)) => Err(wire::publish_error(&error)),
        }
    }

    async fn read(
        &self,
        session: &Session,
        channel: &Channel,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> Result<Slice, EngineError> {
        let stamp = self.stamp(channel)?;
        let lineage = Epoch::new(&format!("{}{stamp}", session.lineage)).map_err(|_| wire::malformed("a lineage"))?;
        let mut script = READ.prepare_invoke();
        script
            .key(keys::stream(channel))
            .key(keys::log(channel))
            .key(keys::life(channel))
            .arg(after.map_or(0, |position| position.n))
            .arg(
                after
                    .filter(|position| !position.is_origin())
                    .map(|position| position.id.to_string())
                    .unwrap_or_default(),
            )
            .arg(limit.max_entries)
            .arg(limit.max_bytes)
            .arg(fresh())
            .arg(&stamp);
        let mut reads = session.reads.clone();
        match self.within(session, keys::partition(channel), script.invoke_async(&mut reads)).await {
            Ok(answer) => wire::slice(answer, &self.region, &lineage, after),
            Err(None) => Err(EngineError::TimedOut),
            Err(Some(error)) => Err(wire::error(&error)),
        }
    }

    async fn latest(&self, session: &Session, channel: &Channel) -> Result<Latest, EngineError> {
        let limit = &self.settings.latest;
        let mut script = LATEST.prepare_invoke();
        script
            .key(keys::log(channel))
            .key(keys::values(channel))
            .key(keys::life(channel))
            .arg(limit.max_keys)
            .arg(limit.max_bytes)
            .arg(self.stamp(channel)?);
        let mut reads = session.reads.clone();
        match self.within(session, keys::partition(channel), script.invoke_async(&mut reads)).await {
            Ok(answer) => wire::latest(answer, &self.region, &session.lineage),
            Err(None) => Err(EngineError::TimedOut),
            Err(Some(error)) => Err(wire::error(&error)),
        }
    }

    /// What the epochs of a channel's log have of the list in force; nothing where there is none.
    fn stamp(&self, channel: &Channel) -> Result<String, EngineError> {
        self.in_force.as_ref().map_or_else(|| Ok(String::new()), |in_force| in_force.stamp(channel))
    }

    async fn subscribe(self: Arc<Self>, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let _order = self.order_of(channel).lock().await;
        let route = self.route(channel)?;
        let reading = {
            let mut subscriptions = self.subscriptions.lock();
            if subscriptions.len() >= self.settings.max_subscriptions && !subscriptions.contains(channel) {
                return Err(EngineError::Full);
            }
            subscriptions.start(channel, sink)
        };
        let top = self.acknowledge(&route, &reading).await;
        if top.is_err() {
            self.subscriptions.lock().give_up_start(&reading);
            // The server may have taken it.
            let (session, names) = (&route.session, [keys::push(channel)]);
            let _ = self.within(session, keys::partition(channel), session.unsubscribe(&names)).await;
        }
        top
    }

    /// The first reading of a subscription: where it begins.
    async fn acknowledge(self: &Arc<Self>, route: &Route, reading: &Reading) -> Result<Position, EngineError> {
        let (session, partition) = (&route.session, keys::partition(&reading.channel));
        let names = [keys::push(&reading.channel)];
        let failed =
            |error: Option<redis::RedisError>| error.map_or(EngineError::TimedOut, |error| wire::error(&error));
        self.within(session, partition, session.subscribe(&names)).await.map_err(failed)?;
        let limit = ReadLimit { max_entries: 1, max_bytes: 0 };
        let slice = self.read(session, &reading.channel, None, limit).await?;
        // Locked while it becomes live, so that a session that is lost meanwhile either finds it live, and makes it anew,
        // or is seen here.
        let routes = self.routes.lock();
        if !routes.is_current(partition, route) {
            return Err(EngineError::Unreachable);
        }
        let mut subscriptions = self.subscriptions.lock();
        if !subscriptions.is_current(reading) {
            return Err(EngineError::Unreachable);
        }
        let top = slice.top.clone();
        let step = subscriptions.read(reading, slice);
        drop(subscriptions);
        drop(routes);
        self.go_on(&reading.channel, step);
        Ok(top)
    }

    async fn unsubscribe(&self, channel: &Channel) {
        let _order = self.order_of(channel).lock().await;
        if self.subscriptions.lock().contains(channel) {
            return;
        }
        if let Ok(Route { session, .. }) = self.route(channel) {
            let names = [keys::push(channel)];
            let _ = self.within(&session, keys::partition(channel), session.unsubscribe(&names)).await;
        }
    }

    fn order_of(&self, channel: &Channel) -> &tokio::sync::Mutex<()> {
        static FALLBACK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let sum = channel.as_str().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        self.order.get(sum % ORDER_LOCKS).unwrap_or(&FALLBACK)
    }

    /// What the server pushed. Called by the task that reads the connection: it must not wait.
    fn pushed(self: &Arc<Self>, session: u64, link: &Link, info: PushInfo) {
        match info.kind {
            PushKind::Disconnection => link.lost.notify_one(),
            // One that was asked for has no subscription any more.
            PushKind::SUnsubscribe => {
                let Some(Value::BulkString(name)) = info.data.first() else { return };
                let Ok(name) = std::str::from_utf8(name) else { return };
                let beats_in = link.beats_in.lock().filter(|in_it| name == keys::heartbeat(*in_it, self.node));
                let wanted = keys::pushed(name).filter(|channel| self.subscriptions.lock().contains(channel));
                if let Some(partition) = beats_in.or(wanted.as_ref().map(keys::partition)) {
                    self.gone(link, partition);
                }
            }
            PushKind::Message | PushKind::SMessage => {
                let Ok([Value::BulkString(name), Value::BulkString(message)]) = <[Value; 2]>::try_from(info.data)
                else {
                    return;
                };
                let Ok(name) = std::str::from_utf8(&name) else { return };
                if link.beats_in.lock().is_some_and(|in_it| name == keys::heartbeat(in_it, self.node)) {
                    *link.heard.lock() = Some(Instant::now());
                    link.beat.notify_waiters();
                    return;
                }
                // A connection may outlive its session for as long as an answer is waited for, and then speak for a
                // process that is not asked any more.
                let Some(channel) = keys::pushed(name) else { return };
                if !self.routes.lock().leads_to(keys::partition(&channel), session) {
                    return;
                }
                let entry = wire::push(message.into(), &self.region);
                let mut subscriptions = self.subscriptions.lock();
                let step = match entry {
                    Some(entry) => subscriptions.pushed(&channel, entry),
                    None => subscriptions.garbled(&channel),
                };
                drop(subscriptions);
                self.go_on(&channel, step);
            }
            _ => {}
        }
    }

    /// Tells of a disruption, and reads where a step asks for it.
    fn go_on(self: &Arc<Self>, channel: &Channel, (outcome, disrupted): Step) {
        if disrupted {
            self.tell(Event::Disrupted(Scope::Channel(channel.clone())));
        }
        if let Outcome::Read(reading) = outcome {
            let shared = self.clone();
            // One for a channel at a time, and those that are too old by their turn end at once.
            tokio::spawn(async move {
                let Ok(permit) = shared.reads.clone().acquire_owned().await else { return };
                shared.catch_up(reading, permit).await;
            });
        }
    }

    /// Reads a log from the last position that was pushed to its end.
    async fn catch_up(self: Arc<Self>, mut reading: Reading, _permit: OwnedSemaphorePermit) {
        let mut tries = 0;
        while self.subscriptions.lock().is_current(&reading) {
            // Without a session the next one reads.
            let Ok(route) = self.route(&reading.channel) else { return };
            match self.read(&route.session, &reading.channel, reading.after.as_ref(), PART).await {
                Ok(slice) => {
                    tries = 0;
                    let (outcome, disrupted) = self.subscriptions.lock().read(&reading, slice);
                    if disrupted {
                        self.tell(Event::Disrupted(Scope::Channel(reading.channel.clone())));
                    }
                    match outcome {
                        Outcome::Read(next) => reading = next,
                        Outcome::Done => return,
                    }
                }
                Err(_) if !self.is_current(&reading.channel, &route) => return,
                Err(_) => {
                    tries += 1;
                    if tries >= READ_TRIES {
                        if self.subscriptions.lock().unreadable(&reading) {
                            self.tell(Event::Disrupted(Scope::Channel(reading.channel.clone())));
                        }
                        return;
                    }
                    tokio::time::sleep(backoff(tries, self.settings.max_backoff)).await;
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// What tells one life of a log, or of a store, from another.
fn fresh() -> String {
    format!("{:08x}", rand::random::<u32>())
}

fn millis(duration: Duration) -> u64 {
    // Redis counts in signed numbers.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2)
}
