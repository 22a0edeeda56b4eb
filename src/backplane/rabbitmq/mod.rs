//! The engine over RabbitMQ: streams of RabbitMQ 3.9 and later, by AMQP 0.9.1.
//!
//! The channels of a region share 16 streams, by a hash of their names. A node that has to do with a channel follows its
//! stream: it takes all of the stream, from as far back as entries are kept and ids remembered, and keeps what is retained
//! of each channel in memory (`index.rs`, `channel_log.rs`). So a read asks the broker for nothing but that it come to the
//! end: a probe that is sent into the stream and has come back (`partition.rs`) proves that all before it has.
//!
//! RabbitMQ numbers the messages of a stream and knows nothing of channels. So numbers and epochs of a channel are each
//! node's own; see [`Engine::has_own_numbers`]. What all nodes agree on is an entry's id: its offset in the stream, and a
//! time. The time is the latest stamp of any message up to it, which a publisher takes from its own clock but never earlier
//! than what it has seen of the stream. So ids grow, and nodes come to the same, also where their clocks differ: if a
//! clock jumps by more than is read back, places are lost, and their readers told.
//!
//! A stream cannot refuse a message whose id it has. Copies are stored, and dropped by who reads: a message is a copy if its
//! id was in the stream less than the dedupe window before it. All nodes decide alike, unless one has let go of ids for
//! want of room.
//!
//! A publication is acknowledged when the broker has confirmed it and it has come back, since only that tells its offset,
//! and whether it is a copy.

mod channel_log;
mod dial;
mod envelope;
mod index;
mod partition;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use lapin::Confirmation;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::envelope::{Content, Envelope};
use self::partition::Partition;
use self::session::Session;
pub use self::settings::{Access, Settings};
use super::backoff::backoff;
use super::engine::{
    Capabilities, Channel, Dedupe, EVENTS_KEPT, Engine, EngineError, Entry, Event, History, Item, PublishError,
    Published, ReadLimit, Scope, Slice, Stored,
};
use super::position::{Position, Region};
use super::sink::Sink;

/// How many streams there are. Every node must agree: it is part of their names.
pub const PARTITIONS: usize = 16;

/// How far the clocks of nodes and broker may be apart without a stream being read back too little.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// Waiting bytes are counted in pieces of so many, so that their number fits a semaphore's.
const PIECE_BYTES: usize = 1024;

/// The engine. Its connections end when it is dropped.
#[derive(Debug)]
pub struct RabbitEngine {
    shared: Arc<Shared>,
    _tasks: Vec<Task>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the tasks of an engine share.
#[derive(Debug)]
struct Shared {
    region: Region,
    settings: Settings,
    partitions: [Arc<Partition>; PARTITIONS],
    session: watch::Sender<Option<Arc<Session>>>,
    status: Mutex<Result<(), EngineError>>,
    waiting: Semaphore,
    waiting_bytes: Semaphore,
    events: broadcast::Sender<Event>,
}

impl RabbitEngine {
    /// An engine that connects in the background, for as long as it takes. Must be called within a runtime.
    ///
    /// Until the first [`Event::Up`] every call fails, and says why.
    pub fn start(region: Region, settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            partitions: partition::all(&region),
            region,
            session: watch::Sender::new(None),
            status: Mutex::new(Err(EngineError::Unreachable)),
            waiting: Semaphore::new(settings.max_waiting),
            waiting_bytes: Semaphore::new(settings.max_waiting_bytes / PIECE_BYTES),
            events: broadcast::Sender::new(EVENTS_KEPT),
            settings,
        });
        let follow = |partition: &Arc<Partition>| {
            let (shared, partition) = (shared.clone(), partition.clone());
            Task(tokio::spawn(async move { partition.run(&shared).await }))
        };
        let mut tasks: Vec<_> = shared.partitions.iter().map(follow).collect();
        let supervised = shared.clone();
        tasks.push(Task(tokio::spawn(async move { supervised.supervise().await })));
        Self { shared, _tasks: tasks }
    }
}

#[async_trait]
impl Engine for RabbitEngine {
    fn region(&self) -> &Region {
        &self.shared.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        self.shared.publish(channel, item).await
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let shared = &self.shared;
        shared.status()?;
        shared
            .partition(channel)
            .when_live(shared.deadline(), |index| {
                // The share of one stream: no lock is taken while another is held.
                let most = shared.settings.max_subscriptions.div_ceil(PARTITIONS);
                if !index.is_subscribed(channel) && index.subscriptions() >= most {
                    return Err(EngineError::Full);
                }
                Ok(index.subscribe(channel, sink))
            })
            .await?
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.shared.partition(channel).now(|index| index.unsubscribe(channel));
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        let shared = &self.shared;
        let partition = shared.caught_up(channel).await?;
        let read = |index: &mut index::Index| {
            index.with_log(channel, now_ms(), &shared.settings, |log, region, is_other| {
                log.read(region, after, limit, is_other)
            })
        };
        partition.when_live(shared.deadline(), read).await
    }

    fn has_own_numbers(&self, _channel: &Channel) -> bool {
        true
    }

    async fn read_back(&self, channel: &Channel, to: &Position) -> Result<Vec<Entry>, EngineError> {
        let shared = &self.shared;
        shared.status()?;
        let read = |index: &mut index::Index| {
            index.with_log(channel, now_ms(), &shared.settings, |log, _, _| log.read_back(to))
        };
        // What leads up to an entry that is here is here too: there is nothing to wait for.
        shared.partition(channel).when_live(shared.deadline(), read).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            history: History::Engine,
            contiguous: true,
            dedupe: Dedupe::Delivery,
            dedupe_window: self.shared.settings.dedupe_window,
            retention: self.shared.settings.retention,
            latest: false,
        }
    }

    fn status(&self) -> Result<(), EngineError> {
        self.shared.status()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }
}

impl Shared {
    fn status(&self) -> Result<(), EngineError> {
        self.status.lock().clone()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.timeout
    }

    fn tell(&self, event: Event) {
        // Nobody may listen.
        let _ = self.events.send(event);
    }

    #[expect(clippy::indexing_slicing, reason = "there are as many as a remainder may come to")]
    fn partition(&self, channel: &Channel) -> &Partition {
        &self.partitions[partition_of(channel)]
    }

    /// The stream of a channel, when all has come that was there when this was called.
    async fn caught_up(&self, channel: &Channel) -> Result<&Partition, EngineError> {
        self.status()?;
        let (partition, until) = (self.partition(channel), self.deadline());
        partition.when_live(until, |_| ()).await?;
        partition.catch_up(until).await?;
        Ok(partition)
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        let settings = &self.settings;
        item.check_size(&settings.retention)?;
        self.status().map_err(PublishError::not_stored)?;
        let full = |_| PublishError::not_stored(EngineError::Full);
        let _waiting = self.waiting.try_acquire().map_err(full)?;
        let pieces = u32::try_from(item.size_bytes().div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX);
        let _bytes = self.waiting_bytes.try_acquire_many(pieces).map_err(full)?;
        let (partition, until) = (self.partition(channel), self.deadline());
        // Live, so that a copy of what this node has published before is known as one.
        let prepare = |index: &mut index::Index| match index.find(channel, &item.id, now_ms(), settings) {
            Some(position) => Err(Published { position, repeated: true }),
            None => Ok(index.stamp(now_ms())),
        };
        let prepared = partition.when_live(until, prepare).await.map_err(PublishError::not_stored)?;
        let stamp_ms = match prepared {
            Ok(stamp_ms) => stamp_ms,
            Err(known) => return Ok(known),
        };
        let session = self.session.borrow().clone();
        let session = session.ok_or(PublishError::not_stored(EngineError::Unreachable))?;
        let nonce = rand::random();
        let mut awaited = partition.await_publication(nonce);
        let content =
            Content::Item { channel: channel.clone(), message: item.id.clone(), payload: item.payload.clone() };
        let body = Envelope { stamp_ms, nonce, content }.encode();
        let acknowledged = async {
            let unknown = |reason| PublishError { reason, stored: Stored::Unknown };
            let confirm = session.publish(&partition.stream, &body).await.map_err(unknown)?;
            match confirm.await.map_err(|error| unknown(wire::error(&error)))? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                    // It came back: there is no such stream.
                    return Err(PublishError::not_stored(refused("NO_ROUTE")));
                }
                Confirmation::Nack(None) => return Err(unknown(refused("NACK"))),
                Confirmation::NotRequested => return Err(unknown(wire::malformed("a confirmation"))),
            }
            awaited.came().await.map_err(unknown)
        };
        let timed_out = PublishError { reason: EngineError::TimedOut, stored: Stored::Unknown };
        tokio::select! {
            acknowledged = tokio::time::timeout_at(until, acknowledged) => acknowledged.unwrap_or(Err(timed_out)),
            () = session.lost() => Err(PublishError { reason: EngineError::Unreachable, stored: Stored::Unknown }),
        }
    }

    /// Keeps a session, for ever.
    async fn supervise(&self) {
        let mut failures = 0_u32;
        loop {
            let why = match Session::connect(&self.settings).await {
                Ok((session, beats)) => {
                    failures = 0;
                    let session = Arc::new(session);
                    *self.status.lock() = Ok(());
                    self.session.send_replace(Some(session.clone()));
                    self.tell(Event::Up);
                    let beat = |engine_ms, round_trip| self.tell(Event::Heartbeat { engine_ms, round_trip });
                    let why = session.watch(beats, self.settings.heartbeat, beat).await;
                    *self.status.lock() = Err(why.clone());
                    self.session.send_replace(None);
                    session.lose();
                    self.tell(Event::Disrupted(Scope::All));
                    why
                }
                Err(why) => {
                    *self.status.lock() = Err(why.clone());
                    why
                }
            };
            self.tell(Event::Down(why));
            failures = failures.saturating_add(1);
            tokio::time::sleep(backoff(failures, self.settings.max_backoff)).await;
        }
    }
}

fn refused(code: &str) -> EngineError {
    EngineError::Refused { code: code.to_owned() }
}

/// The name of the stream that has a region's channel.
pub fn stream_of(region: &Region, channel: &Channel) -> String {
    stream(region, partition_of(channel))
}

/// The name of a region's stream.
fn stream(region: &Region, nth: usize) -> String {
    format!("sg.{region}.{PARTITIONS}.{nth}")
}

/// Which stream has a channel: FNV-1a of its name.
fn partition_of(channel: &Channel) -> usize {
    let hash = channel
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The low bits of FNV are its weakest.
    usize::try_from((hash ^ (hash >> 32)) % PARTITIONS as u64).unwrap_or(0)
}

/// This node's clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
