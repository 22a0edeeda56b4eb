//! The engine over Redis or Valkey: a stream a channel is the truth, Pub/Sub tells of what is new.
//!
//! Each publication is one script (`publish.lua`), so it is whole or it is not. Pub/Sub is in order and complete as long
//! as its connection lives; after every subscription, and after every new connection, the stream is read from the last
//! entry that was pushed, so nothing depends on Pub/Sub being complete over time.
//!
//! Needs Redis 6.2 or later, or Valkey; from 7.0 on Pub/Sub is sharded. A single server, or a master that Sentinel names.
//! Two things are lost with a master that dies before its replica has them: entries, which readers are told of, since the
//! entries that come in their place have other ids; and message ids, so that a repeated publication is stored again.
//! A master that is demoted and promoted again without a restart has the lineage that it had; what it lost between is
//! told of where the entry that a reader saw is still retained or has a number that is not given out again yet.

mod keys;
mod session;
mod subscriptions;
mod supervisor;
mod wire;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, RedisResult, Script, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinHandle;

use self::session::Session;
use self::subscriptions::{Outcome, Reading, Step, Subscriptions};
use super::engine::{
    Capabilities, Channel, DEDUPE_WINDOW, EVENTS_KEPT, Engine, EngineError, Event, History, Item, LOG_LIFE,
    PublishError, Published, ReadLimit, Retention, Scope, Slice, Stored,
};
use super::position::{Position, Region};
use super::sink::Sink;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("publish.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));

/// What is read at once to push it.
const PART: ReadLimit = ReadLimit { max_entries: 500, max_bytes: 1 << 20 };

/// How often a log is tried to be read to push from it, before its receiver is told.
const READ_TRIES: u32 = 3;

/// How many logs are read at once to push from them.
const READS_AT_ONCE: usize = 16;

/// How many locks order the subscriptions and their ends, each for a part of the channels.
const ORDER_LOCKS: usize = 64;

/// Which servers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One, or one address behind which is the master.
    Standalone {
        /// `redis://HOST:PORT`, `rediss://HOST:PORT` for TLS.
        url: String,
    },
    /// Sentinels, which are asked in this order for the master.
    Sentinel {
        /// `redis://HOST:PORT` of each; with `rediss://` the master is reached over TLS too.
        urls: Vec<String>,
        /// The name that they know it by.
        master: String,
    },
}

/// The bounds of a Redis engine.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub servers: Servers,
    /// For the servers, not for sentinels.
    pub username: Option<String>,
    /// For the servers, not for sentinels.
    pub password: Option<String>,
    /// CAs in PEM that servers and sentinels are verified by over TLS, in place of the system's.
    pub ca: Option<Vec<u8>>,
    /// What is kept of each channel.
    pub retention: Retention,
    /// How long a message's id is remembered. Default 5 minutes.
    pub dedupe_window: Duration,
    /// For every command, and for each step of connecting. Default 2 s.
    pub timeout: Duration,
    /// How often the engine is asked whether it lives. After three without an answer the connections are made anew.
    /// Default 1 s.
    pub heartbeat: Duration,
    /// The longest time between two tries to connect; the first is after a tenth of a second. Default 5 s.
    pub max_backoff: Duration,
    /// Subscriptions. Default 1,000,000. When it is passed, a subscription fails.
    pub max_subscriptions: usize,
}

impl Settings {
    /// The defaults for these servers.
    pub fn new(servers: Servers) -> Self {
        Self {
            servers,
            username: None,
            password: None,
            ca: None,
            retention: Retention::default(),
            dedupe_window: DEDUPE_WINDOW,
            timeout: Duration::from_secs(2),
            heartbeat: Duration::from_secs(1),
            max_backoff: Duration::from_secs(5),
            max_subscriptions: 1_000_000,
        }
    }
}

impl std::fmt::Debug for Settings {
    /// Without the password, and without URLs, which may have one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("retention", &self.retention).finish_non_exhaustive()
    }
}

/// The engine. Its connections end when it is dropped.
#[derive(Debug)]
pub struct RedisEngine {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

/// What the tasks of an engine share.
#[derive(Debug)]
struct Shared {
    region: Region,
    settings: Settings,
    /// Tells the heartbeats of this engine from those of others.
    node: u64,
    session: Mutex<Result<Session, EngineError>>,
    subscriptions: Mutex<Subscriptions>,
    /// The server gets a channel's SUBSCRIBE and UNSUBSCRIBE in the order in which the subscriptions changed.
    order: Vec<tokio::sync::Mutex<()>>,
    reads: Arc<Semaphore>,
    /// When a heartbeat last came back, and by which session.
    heard: Mutex<Option<(u64, Instant)>>,
    events: broadcast::Sender<Event>,
}

impl RedisEngine {
    /// An engine that connects in the background, for as long as it takes. Must be called within a runtime.
    ///
    /// Until the first [`Event::Up`] every call fails, and says why.
    pub fn start(region: Region, settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            region,
            settings,
            node: rand::random(),
            session: Mutex::new(Err(EngineError::Unreachable)),
            subscriptions: Mutex::default(),
            order: (0..ORDER_LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            heard: Mutex::new(None),
            events: broadcast::Sender::new(EVENTS_KEPT),
        });
        Self { supervisor: tokio::spawn(supervisor::run(shared.clone())), shared }
    }

    /// Whether it is connected now, and if not, why.
    ///
    /// # Errors
    /// What the last try to connect came to.
    pub fn status(&self) -> Result<(), EngineError> {
        self.shared.session().map(drop)
    }
}

impl Drop for RedisEngine {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

#[async_trait]
impl Engine for RedisEngine {
    fn region(&self) -> &Region {
        &self.shared.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        let shared = &self.shared;
        item.check_size(&shared.settings.retention)?;
        let session = shared.session().map_err(PublishError::not_stored)?;
        let settings = &shared.settings;
        let mut script = PUBLISH.prepare_invoke();
        script
            .key(keys::stream(channel))
            .key(keys::log(channel))
            .key(keys::dedupe(channel, &item.id))
            .arg(&item.payload[..])
            .arg(item.id.as_str())
            .arg(session.lineage.as_str())
            .arg(format!("{:08x}", rand::random::<u32>()))
            .arg(settings.retention.max_entries.max(1))
            .arg(settings.retention.max_bytes)
            .arg(millis(settings.retention.max_age))
            .arg(millis(LOG_LIFE))
            .arg(millis(settings.dedupe_window))
            .arg(keys::push(channel))
            .arg(session.publish_command());
        let mut commands = session.commands.clone();
        match shared.within(&session, script.invoke_async(&mut commands)).await {
            Ok(answer) => wire::published(answer, &shared.region)
                .map_err(|reason| PublishError { reason, stored: Stored::Unknown }),
            Err(None) => Err(PublishError { reason: EngineError::TimedOut, stored: Stored::Unknown }),
            Err(Some(error)) => Err(wire::publish_error(&error)),
        }
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let (shared, channel, sink) = (self.shared.clone(), channel.clone(), sink.clone());
        // In a task of its own, so that a caller who gives up leaves nothing half done.
        let started = tokio::spawn(async move { shared.subscribe(&channel, &sink).await });
        started.await.unwrap_or(Err(EngineError::Unreachable))
    }

    async fn unsubscribe(&self, channel: &Channel) {
        let (shared, channel) = (self.shared.clone(), channel.clone());
        if !shared.subscriptions.lock().end(&channel) {
            return;
        }
        // Whether it came to an end is of no interest to anybody: nothing is pushed any more.
        let _ = tokio::spawn(async move { shared.unsubscribe(&channel).await }).await;
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        let session = self.shared.session()?;
        self.shared.read(&session, channel, after, limit).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            history: History::Engine,
            contiguous: true,
            dedupe_window: self.shared.settings.dedupe_window,
            retention: self.shared.settings.retention,
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }
}

impl Shared {
    /// The session of now.
    fn session(&self) -> Result<Session, EngineError> {
        self.session.lock().clone()
    }

    fn is_current(&self, session: &Session) -> bool {
        self.session.lock().as_ref().is_ok_and(|current| current.number == session.number)
    }

    /// Waits for an answer, no longer than the time-out, and ends the session where its failure says so. `None` is the
    /// time-out.
    async fn within<T>(
        &self,
        session: &Session,
        answer: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Option<redis::RedisError>> {
        let answer = tokio::time::timeout(self.settings.timeout, answer).await.map_err(|_| None)?;
        answer.map_err(|error| {
            if wire::ends_session(&error) {
                session.lost.notify_one();
            }
            Some(error)
        })
    }

    async fn read(
        &self,
        session: &Session,
        channel: &Channel,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> Result<Slice, EngineError> {
        let mut script = READ.prepare_invoke();
        script
            .key(keys::stream(channel))
            .key(keys::log(channel))
            .arg(after.map_or(0, |position| position.n))
            .arg(
                after
                    .filter(|position| !position.is_origin())
                    .map(|position| position.id.to_string())
                    .unwrap_or_default(),
            )
            .arg(limit.max_entries)
            .arg(limit.max_bytes);
        let mut reads = session.reads.clone();
        match self.within(session, script.invoke_async(&mut reads)).await {
            Ok(answer) => wire::slice(answer, &self.region, &session.lineage, after),
            Err(None) => Err(EngineError::TimedOut),
            Err(Some(error)) => Err(wire::error(&error)),
        }
    }

    async fn subscribe(self: Arc<Self>, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let _order = self.order_of(channel).lock().await;
        let session = self.session()?;
        let reading = {
            let mut subscriptions = self.subscriptions.lock();
            if subscriptions.len() >= self.settings.max_subscriptions && !subscriptions.contains(channel) {
                return Err(EngineError::Full);
            }
            subscriptions.start(channel, sink)
        };
        let top = self.acknowledge(&session, &reading).await;
        if top.is_err() {
            self.subscriptions.lock().give_up_start(&reading);
            // The server may have taken it.
            let _ = self.within(&session, session.unsubscribe(&[keys::push(channel)])).await;
        }
        top
    }

    /// The first reading of a subscription: where it begins.
    async fn acknowledge(self: &Arc<Self>, session: &Session, reading: &Reading) -> Result<Position, EngineError> {
        let names = [keys::push(&reading.channel)];
        let failed =
            |error: Option<redis::RedisError>| error.map_or(EngineError::TimedOut, |error| wire::error(&error));
        self.within(session, session.subscribe(&names)).await.map_err(failed)?;
        let limit = ReadLimit { max_entries: 1, max_bytes: 0 };
        let slice = self.read(session, &reading.channel, None, limit).await?;
        // Locked while it becomes live, so that a session that is lost meanwhile either finds it live, and makes it anew,
        // or is seen here.
        let current = self.session.lock();
        if !current.as_ref().is_ok_and(|current| current.number == session.number) {
            return Err(EngineError::Unreachable);
        }
        let mut subscriptions = self.subscriptions.lock();
        if !subscriptions.is_current(reading) {
            return Err(EngineError::Unreachable);
        }
        let top = slice.top.clone();
        let step = subscriptions.read(reading, slice);
        drop(subscriptions);
        drop(current);
        self.go_on(&reading.channel, step);
        Ok(top)
    }

    async fn unsubscribe(&self, channel: &Channel) {
        let _order = self.order_of(channel).lock().await;
        if self.subscriptions.lock().contains(channel) {
            return;
        }
        if let Ok(session) = self.session() {
            let _ = self.within(&session, session.unsubscribe(&[keys::push(channel)])).await;
        }
    }

    fn order_of(&self, channel: &Channel) -> &tokio::sync::Mutex<()> {
        static FALLBACK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let sum = channel.as_str().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        self.order.get(sum % ORDER_LOCKS).unwrap_or(&FALLBACK)
    }

    /// What the server pushed. Called by the task that reads the connection: it must not wait.
    fn pushed(self: &Arc<Self>, session: u64, lost: &tokio::sync::Notify, info: PushInfo) {
        match info.kind {
            PushKind::Disconnection => lost.notify_one(),
            PushKind::Message | PushKind::SMessage => {
                let Ok([Value::BulkString(name), Value::BulkString(message)]) = <[Value; 2]>::try_from(info.data)
                else {
                    return;
                };
                let Ok(name) = std::str::from_utf8(&name) else { return };
                if name == keys::heartbeat(self.node) {
                    *self.heard.lock() = Some((session, Instant::now()));
                    return;
                }
                // A connection may outlive its session for as long as an answer is waited for, and then speak for a
                // process that is not asked any more.
                if !self.session.lock().as_ref().is_ok_and(|current| current.number == session) {
                    return;
                }
                let Some(channel) = keys::pushed(name) else { return };
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
            let Ok(session) = self.session() else { return };
            match self.read(&session, &reading.channel, reading.after.as_ref(), PART).await {
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
                Err(_) if !self.is_current(&session) => return,
                Err(_) => {
                    tries += 1;
                    if tries >= READ_TRIES {
                        if self.subscriptions.lock().unreadable(&reading) {
                            self.tell(Event::Disrupted(Scope::Channel(reading.channel.clone())));
                        }
                        return;
                    }
                    tokio::time::sleep(supervisor::backoff(tries, self.settings.max_backoff)).await;
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

fn millis(duration: Duration) -> u64 {
    // Redis counts in signed numbers.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2)
}
