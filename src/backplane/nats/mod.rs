//! The engine over NATS JetStream: one stream with a subject a channel is the truth, and what it republishes tells of what
//! is new.
//!
//! A publication says which entry it follows (`publish.rs`), so numbers have no hole. Subscribers hear what the stream
//! republishes, which is what it has stored and nothing else: what it refuses, a core subscriber of the same subject would
//! hear too. After every subscription, every new connection, and when messages were dropped on the way, the stream is read
//! from the last entry that was pushed, so nothing depends on the messages being complete over time.
//!
//! Needs a NATS server 2.9 or later with JetStream. A consumer a channel, which the server would drive and remember, costs
//! it a task and a state each; a subscription costs it an entry of a tree. So each channel has a subscription here, and a
//! consumer is made for the moment in which more than a few entries are read.
//!
//! Three things are not as with Redis. The time of an entry is the server's as the gateway that published it reckons it
//! (`clock.rs`). What an acknowledged entry is worth depends on when the server writes to its disk (`sync_interval`): those
//! that go with a power failure are told of by the gateway that published them (`witness.rs`). And in a cluster the leader of the stream stands for the process that answers: that it was restarted and leads again is not noticed.

mod clock;
mod log;
mod publish;
mod session;
mod settings;
mod stream;
mod subjects;
mod supervisor;
mod tails;
mod trim;
mod wire;
mod witness;

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinHandle;

use self::clock::Clock;
use self::session::Session;
pub use self::settings::{Credentials, Settings};
use self::tails::Tails;
use super::backoff::backoff;
use super::engine::{
    Capabilities, Channel, Dedupe, EVENTS_KEPT, Engine, EngineError, Event, History, Item, PublishError, Published,
    ReadLimit, Scope, Slice,
};
use super::position::{Epoch, Position, Region};
use super::recover::Log;
use super::sink::Sink;
use super::subscriptions::{Outcome, Reading, Step, Subscriptions};

/// What is read at once to push it.
const PART: ReadLimit = ReadLimit { max_entries: 500, max_bytes: 1 << 20 };

/// How often a log is tried to be read to push from it, before its receiver is told.
const READ_TRIES: u32 = 3;

/// How many logs are read at once to push from them.
const READS_AT_ONCE: usize = 16;

/// How many locks order the subscriptions and their ends, each for a part of the channels.
const ORDER_LOCKS: usize = 64;

/// The engine. Its connection ends when it is dropped.
#[derive(Debug)]
pub struct NatsEngine {
    shared: Arc<Shared>,
    _supervisor: Task,
    _trimmer: Task,
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
    state: Mutex<State>,
    clock: Clock,
    tails: Tails,
    subscriptions: Mutex<Subscriptions>,
    /// A channel's subscription and its end come in the order in which the subscriptions changed.
    order: Vec<tokio::sync::Mutex<()>>,
    reads: Arc<Semaphore>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct State {
    /// Who is asked now, or why nobody is.
    session: Result<Arc<Session>, EngineError>,
    /// Of the session before.
    lineage: Option<Epoch>,
    /// What was last told of the engine as a whole.
    told: Option<Result<(), EngineError>>,
}

impl NatsEngine {
    /// An engine that connects in the background, for as long as it takes. Must be called within a runtime.
    ///
    /// Until the first [`Event::Up`] every call fails, and says why.
    pub fn start(region: Region, settings: Settings) -> Self {
        let state = State { session: Err(EngineError::Unreachable), lineage: None, told: None };
        let shared = Arc::new(Shared {
            region,
            settings,
            node: rand::random(),
            state: Mutex::new(state),
            clock: Clock::default(),
            tails: Tails::default(),
            subscriptions: Mutex::default(),
            order: (0..ORDER_LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            events: broadcast::Sender::new(EVENTS_KEPT),
        });
        let supervisor = Task(tokio::spawn(supervisor::run(shared.clone())));
        let trimmer = Task(tokio::spawn(trim::run(shared.clone())));
        Self { shared, _supervisor: supervisor, _trimmer: trimmer }
    }
}

impl Drop for NatsEngine {
    fn drop(&mut self) {
        if let Ok(session) = self.shared.session() {
            session.close(EngineError::Unreachable);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait]
impl Engine for NatsEngine {
    fn region(&self) -> &Region {
        &self.shared.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        self.shared.publish(channel, item).await
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let (shared, channel, sink) = (self.shared.clone(), channel.clone(), sink.clone());
        // In a task of its own, so that a caller who gives up leaves nothing half done.
        let started = tokio::spawn(async move { shared.subscribe(&channel, &sink).await });
        started.await.unwrap_or(Err(EngineError::Unreachable))
    }

    async fn unsubscribe(&self, channel: &Channel) {
        if !self.shared.subscriptions.lock().end(channel) {
            return;
        }
        let (shared, channel) = (self.shared.clone(), channel.clone());
        // Whether it came to an end is of no interest to anybody: nothing is pushed any more.
        let _ = tokio::spawn(async move { shared.unsubscribe(&channel).await }).await;
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        self.shared.read(&*self.shared.session()?, channel, after, limit).await
    }

    fn status(&self) -> Result<(), EngineError> {
        self.shared.session().map(|_| ())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            history: History::Engine,
            contiguous: true,
            dedupe: Dedupe::Publish,
            dedupe_window: self.shared.settings.dedupe_window,
            retention: self.shared.settings.retention,
            latest: false,
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }
}

impl Shared {
    /// Who is asked now.
    fn session(&self) -> Result<Arc<Session>, EngineError> {
        self.state.lock().session.clone()
    }

    fn is_current(&self, number: u64) -> bool {
        self.session().is_ok_and(|session| session.number == number)
    }

    /// A session is asked from now on.
    fn taken_over(self: &Arc<Self>, session: &Arc<Session>) {
        let before = {
            let mut state = self.state.lock();
            state.session = Ok(session.clone());
            state.lineage.replace(session.lineage.clone())
        };
        self.tell_status();
        if let Some(from) = before.filter(|before| *before != session.lineage) {
            self.tell(Event::LineageChanged { from, to: session.lineage.clone() });
            self.look_for_losses(session);
        }
    }

    /// The session that was asked is lost.
    fn lost(&self, session: &Session, reason: &EngineError) {
        self.closed(reason);
        session.close(reason.clone());
        self.tell(Event::Disrupted(Scope::All));
    }

    /// Nobody can be asked.
    fn closed(&self, reason: &EngineError) {
        self.state.lock().session = Err(reason.clone());
        self.tell_status();
    }

    /// Tells how the engine is as a whole, if that is news.
    fn tell_status(&self) {
        let mut state = self.state.lock();
        let status = state.session.as_ref().map(|_| ()).map_err(Clone::clone);
        if state.told.as_ref() == Some(&status) {
            return;
        }
        state.told = Some(status.clone());
        self.tell(status.map_or_else(Event::Down, |()| Event::Up));
    }

    fn beat(&self, engine_ms: u64, round_trip: Duration) {
        self.tell(Event::Heartbeat { engine_ms, round_trip });
    }

    async fn read(
        &self,
        session: &Session,
        channel: &Channel,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> Result<Slice, EngineError> {
        let subject = subjects::stored(channel);
        let reader = self.reader(session, &subject);
        // Of several questions each may take nearly as long as all may.
        let read = tokio::time::timeout(self.settings.timeout, reader.read(&session.lineage, after, limit)).await;
        read.unwrap_or(Err(EngineError::TimedOut))
    }

    /// Makes the subscriptions anew, and reads each log from where it was pushed to.
    async fn renew(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), EngineError> {
        let readings = self.subscriptions.lock().restart(|_| true);
        for reading in readings {
            let _order = self.order_of(&reading.channel).lock().await;
            if !self.subscriptions.lock().contains(&reading.channel) {
                continue;
            }
            self.listen(session, &reading.channel).await?;
            // Waited for here, so that there are not as many tasks as there are channels.
            let Ok(permit) = self.reads.clone().acquire_owned().await else { continue };
            tokio::spawn(self.clone().catch_up(reading, permit));
        }
        Ok(())
    }

    /// Messages were dropped on this side, and of which channels is not known: all logs are read.
    async fn dropped(self: &Arc<Self>, session: &Session) {
        self.tell(Event::Disrupted(Scope::All));
        let readings = self.subscriptions.lock().restart(|_| true);
        for reading in readings {
            let Ok(permit) = self.reads.clone().acquire_owned().await else { return };
            if !self.is_current(session.number) {
                return;
            }
            tokio::spawn(self.clone().catch_up(reading, permit));
        }
    }

    /// Has what is stored of a channel pushed.
    async fn listen(self: &Arc<Self>, session: &Arc<Session>, channel: &Channel) -> Result<(), EngineError> {
        let subscriber = session.subscribe(subjects::pushed(channel)).await?;
        // Weak, since it lives as long as the session, which the engine holds.
        let (shared, number, name) = (Arc::downgrade(self), session.number, channel.clone());
        let forwarder = session::forward(subscriber, session.link.clone(), move |message| {
            if let Some(shared) = shared.upgrade() {
                shared.pushed(number, &name, message);
            }
        });
        session.keep(channel, forwarder);
        Ok(())
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
        let top = tokio::time::timeout(self.settings.timeout, self.acknowledge(&session, &reading)).await;
        let top = top.unwrap_or(Err(EngineError::TimedOut));
        if top.is_err() {
            self.subscriptions.lock().give_up_start(&reading);
            session.end(channel);
        }
        top
    }

    /// The first reading of a subscription: where it begins.
    async fn acknowledge(self: &Arc<Self>, session: &Arc<Session>, reading: &Reading) -> Result<Position, EngineError> {
        self.listen(session, &reading.channel).await?;
        // The server takes what a connection sends in its order, so what is stored behind this answer is pushed.
        let subject = subjects::stored(&reading.channel);
        let last = self.reader(session, &subject).last().await?;
        let origin = || Position::origin(self.region.clone(), session.lineage.clone());
        let top = last.map_or_else(origin, |last| last.entry.position);
        let log = Log { top: top.n, first: top.n.saturating_add(1), first_epoch: top.epoch.clone() };
        let slice = Slice { entries: Vec::new(), log, top: top.clone(), at: None };
        // Locked while it becomes live, so that a session that is lost meanwhile either finds it live, and makes it anew,
        // or is seen here.
        let state = self.state.lock();
        if !state.session.as_ref().is_ok_and(|now| now.number == session.number) {
            return Err(EngineError::Unreachable);
        }
        let mut subscriptions = self.subscriptions.lock();
        if !subscriptions.is_current(reading) {
            return Err(EngineError::Unreachable);
        }
        let step = subscriptions.read(reading, slice);
        drop(subscriptions);
        drop(state);
        self.go_on(&reading.channel, step);
        Ok(top)
    }

    async fn unsubscribe(&self, channel: &Channel) {
        let _order = self.order_of(channel).lock().await;
        if self.subscriptions.lock().contains(channel) {
            return;
        }
        if let Ok(session) = self.session() {
            session.end(channel);
        }
    }

    fn order_of(&self, channel: &Channel) -> &tokio::sync::Mutex<()> {
        static FALLBACK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let sum = channel.as_str().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        self.order.get(sum % ORDER_LOCKS).unwrap_or(&FALLBACK)
    }

    /// What the server pushed. Called by the task that takes from the subscription: it must not wait.
    fn pushed(self: &Arc<Self>, session: u64, channel: &Channel, message: Message) {
        // A connection may outlive its session, and then speak for a process that is not asked any more.
        if !self.is_current(session) {
            return;
        }
        let headers = message.headers.unwrap_or_default();
        let record =
            wire::sequence(&headers).and_then(|seq| wire::record(&self.region, &headers, seq, message.payload));
        let mut subscriptions = self.subscriptions.lock();
        let step = match record {
            Some(record) => subscriptions.pushed(channel, record.entry),
            None => subscriptions.garbled(channel),
        };
        drop(subscriptions);
        self.go_on(channel, step);
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
                Err(_) if !self.is_current(session.number) => return,
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
