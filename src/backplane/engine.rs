//! What every engine of the backplane promises, as a trait, and the values that go through it.
//!
//! `tests/engines` holds one case for each promise, and runs all of them against every engine.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use super::position::{EntryId, Epoch, Place, Position, Region};
use super::recover::{Log, Mark, Recovery, ReplayLimit, recover};
use super::sink::Sink;

/// The most bytes of a channel's name.
pub const MAX_CHANNEL_BYTES: usize = 512;

/// The most bytes of a message's id.
pub const MAX_MESSAGE_ID_BYTES: usize = 256;

/// The most bytes of an item's key.
pub const MAX_KEY_BYTES: usize = 256;

/// How many events wait for one receiver; see [`Engine::events`].
pub const EVENTS_KEPT: usize = 256;

/// One region's logs, a log for each channel.
///
/// # Order and numbers
/// Entries of a channel have the numbers 1, 2, 3 … without a hole, in the order in which they were stored, whoever
/// published them. Ids grow with the numbers. Between channels there is no order.
///
/// # Epochs
/// While a log lives its numbers go on. Its epoch changes when another process of the engine takes over the log (a
/// restart, a fail-over), and when the log dies (after a day without a publication, or because the engine was emptied or
/// ran out of room) and is born again, from 1. [`recover`] says what that proves to a reader.
///
/// # When an engine is not reachable
/// Every call answers within the engine's time-out: with an error, never with silence. Subscriptions stay, and are made
/// anew when the engine is back; what was missed meanwhile is pushed, or the channel is told to be disrupted.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync {
    /// Whose logs these are.
    fn region(&self) -> &Region;

    /// Appends an item to a channel's log.
    ///
    /// Idempotent: an item whose id was published on this channel within the dedupe window is not stored again; the answer
    /// has the position of the first, and `repeated`. So whoever got an error may publish the same item again.
    /// The window is cut short where an engine loses its newest entries, ids with them, or is out of room.
    ///
    /// # Errors
    /// Each says whether the item may have been stored. Nothing is ever stored twice for it.
    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError>;

    /// Pushes what is published on a channel from now on into `sink`, and returns the position from which on it does.
    ///
    /// When this returns, the subscription is acknowledged: each entry behind the returned position is pushed, once, in
    /// the order of their numbers, or the sink is told that the channel is disrupted. Never neither. A sink that has no
    /// room is told so too: it is bounded, and an engine does not wait for it.
    ///
    /// After [`Delivery::Disrupted`](super::sink::Delivery::Disrupted) pushing goes on behind a hole of unknown size,
    /// maybe of none: the receiver reads from its last position on, with [`recover`] as its judge, and takes no notice of
    /// what is pushed twice. Every entry that was not pushed before the receiver took that notice can be read after it.
    ///
    /// An engine has one subscription a channel: a second one takes the place of the first.
    ///
    /// # Errors
    /// There is no subscription then.
    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError>;

    /// Ends a subscription: nothing is pushed after this was called. It is no error if there is none.
    async fn unsubscribe(&self, channel: &Channel);

    /// Reads a part of a channel's log: the entries with the lowest numbers above that of `after`, or those at the
    /// beginning.
    ///
    /// Entries beyond the retention may still be read for a while. At least one entry is given if there is one, however
    /// large.
    ///
    /// # Errors
    /// Nothing was changed; it can be tried again.
    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError>;

    /// Whether a channel is a stream that somebody else fills: it is not published to here.
    fn is_foreign(&self, _channel: &Channel) -> bool {
        false
    }

    /// Whether the numbers of a channel are this node's own, as those of every foreign channel are.
    ///
    /// The entries of such a channel have ids and no numbers: this node numbers what it sees of it, without a hole, so that
    /// it can be delivered as any log is. Numbers and epochs mean nothing to another node, or to this one after the
    /// subscription has ended; a place is proven by the presence of the entry with its id alone.
    fn has_own_numbers(&self, channel: &Channel) -> bool {
        self.is_foreign(channel)
    }

    /// Reads what a channel whose numbers are this node's own has up to the entry at `to`, which is the last one given: as far back as channels are
    /// kept, numbered to end with `to`. Nothing, if that entry is not there.
    ///
    /// # Errors
    /// Nothing was changed; it can be tried again.
    async fn read_back(&self, _channel: &Channel, _to: &Position) -> Result<Vec<Entry>, EngineError> {
        Ok(Vec::new())
    }

    /// The newest entry of each key of a channel whose items have keys, in the order of their numbers, and where the log is.
    ///
    /// The newest of a key is the one with the highest number. They are kept for as long as the log lives, however old,
    /// within a [`LatestLimit`]: an item with a key that does not fit is refused.
    ///
    /// # Errors
    /// Nothing was changed; it can be tried again, but not where [`Capabilities::latest`] is not.
    async fn latest(&self, _channel: &Channel) -> Result<Latest, EngineError> {
        Err(EngineError::Refused { code: "NOLATEST".to_owned() })
    }

    /// What this engine can do.
    fn capabilities(&self) -> Capabilities;

    /// Whether it can be asked now. What changes is told by [`Engine::events`]; who has missed some of them asks here.
    ///
    /// # Errors
    /// Why it cannot.
    fn status(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// What happens to the engine as a whole, from now on.
    ///
    /// For metrics and readiness: a receiver that is more than [`EVENTS_KEPT`] behind misses the oldest, and
    /// `RecvError::Lagged` says how many. What a subscriber must know comes through its sink, where nothing is missed.
    fn events(&self) -> broadcast::Receiver<Event>;
}

/// A channel's name: 1 to 512 bytes of UTF-8, any characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(Arc<str>);

/// What tells a message from every other on its channel: 1 to 256 bytes of UTF-8, chosen by the publisher or by the
/// gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Arc<str>);

/// A name that is empty or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name of {found_bytes} bytes; it must have 1 to {limit_bytes}")]
pub struct NameError {
    /// How long it is.
    pub found_bytes: usize,
    /// How long it may be.
    pub limit_bytes: usize,
}

/// What an item is the newest value of, on a channel of which only newest values count: 1 to 256 bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its id, by which it is stored once.
    pub id: MessageId,
    /// What it is the newest value of; `None` on most channels.
    pub key: Option<Key>,
    /// Opaque bytes.
    pub payload: Bytes,
}

/// An item in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place. `position.id.ms` is when it was stored, by the engine's clock.
    pub position: Position,
    /// The item's id.
    pub message: MessageId,
    /// The item's payload.
    pub payload: Bytes,
}

/// The payload of an entry that is no item: the engine has found that entries before it, which were acknowledged, are
/// lost. Who passes it is told of a gap.
pub const LOST: &[u8] = b"\0lost";

/// The answer to a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where the item is.
    pub position: Position,
    /// Whether it was there already.
    pub repeated: bool,
}

/// How much is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Entries.
    pub max_entries: usize,
    /// Bytes of their payloads.
    pub max_bytes: usize,
}

/// A part of a log, and what the log was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Entries in the order of their numbers.
    pub entries: Vec<Entry>,
    /// The log's ends.
    pub log: Log,
    /// The newest entry's position, whether it is retained or not; the origin if there never was one.
    pub top: Position,
    /// What the log has at the number of the position that was read from, if it is retained there with that id.
    pub at: Option<Mark>,
}

impl Slice {
    /// Whether the entries go up to the top.
    pub fn is_complete(&self) -> bool {
        self.entries.last().is_none_or(|last| last.position.n == self.log.top)
    }

    /// What a reader at `place`, which this slice was read from, gets of the log. What is not in the slice counts as over
    /// the limit in bytes.
    pub fn recover(&self, place: &Place, limit: ReplayLimit) -> Recovery {
        let bytes = |from: u64, to: u64| {
            let whole = self.entries.first().is_some_and(|first| first.position.n <= from)
                && self.entries.last().is_some_and(|last| last.position.n >= to);
            let sizes = self.entries.iter().filter(|entry| entry.position.n >= from).map(|entry| entry.payload.len());
            if whole { sizes.map(|size| size as u64).sum() } else { u64::MAX }
        };
        recover(place, &self.log, limit, |_| self.at.clone(), bytes)
    }
}

/// The newest entry of each key, and what the log was when they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// One entry a key, in the order of their numbers.
    pub entries: Vec<Entry>,
    /// The newest entry's position; the origin if there never was one.
    pub top: Position,
}

/// How long a log's entries are kept: until the first of these is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Entries of a channel. Default 1,000.
    pub max_entries: usize,
    /// Age of an entry. Default 5 minutes.
    pub max_age: Duration,
    /// Bytes of a channel's payloads and message ids. Default 1 MiB. An item that is larger is refused.
    pub max_bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_entries: 1000, max_age: Duration::from_secs(300), max_bytes: 1 << 20 }
    }
}

/// How much is kept of the newest values of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatestLimit {
    /// Keys. Default 10,000.
    pub max_keys: usize,
    /// Bytes of keys, payloads and message ids. Default 16 MiB.
    pub max_bytes: usize,
}

impl Default for LatestLimit {
    fn default() -> Self {
        Self { max_keys: 10_000, max_bytes: 16 << 20 }
    }
}

/// How long a message's id is remembered by default.
pub const DEDUPE_WINDOW: Duration = Duration::from_secs(300);

/// How long the numbers of a log go on without a publication. Then the log dies, and readers are told of a gap.
pub const LOG_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What an engine can do, as data: nothing else is relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Who keeps entries.
    pub history: History,
    /// Whether numbers have no holes, so that one that is missing proves a loss.
    pub contiguous: bool,
    /// Where a message whose id was published before is dropped.
    pub dedupe: Dedupe,
    /// How long a message's id is remembered.
    pub dedupe_window: Duration,
    /// What is kept of each channel.
    pub retention: Retention,
    /// Whether it keeps the newest entry of each key; see [`Engine::latest`].
    pub latest: bool,
}

/// Where a message whose id was published before is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedupe {
    /// By the engine, as it is published: it is stored once.
    Publish,
    /// By each node, as it is delivered: copies may be stored, and take their room there. All nodes drop the same ones, as
    /// long as each has room for the ids of the whole window.
    Delivery,
}

/// Who keeps entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// This process: nothing survives it, and no other node sees it.
    Process,
    /// The engine, for all nodes.
    Engine,
}

/// What happened to an engine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is reachable, and subscriptions are being made anew.
    Up,
    /// It is not reachable.
    Down(EngineError),
    /// Entries of these channels were not pushed, or may not have been. The sink of one channel was told of it; if it is
    /// all of them, what was missed is pushed when the engine is up again, or their sinks are told then.
    Disrupted(Scope),
    /// Another process answers for the logs than before.
    LineageChanged {
        /// The one before.
        from: Epoch,
        /// The one now.
        to: Epoch,
    },
    /// It answers, and what is published there comes back by the way that entries take.
    Heartbeat {
        /// The engine's clock, in milliseconds since 1970.
        engine_ms: u64,
        /// How long it took to ask for it.
        round_trip: Duration,
    },
}

/// Which channels are disrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that are subscribed to.
    All,
    /// One.
    Channel(Channel),
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// It answers, and what is published there does not come back: its subscriptions are dead.
    #[error("the engine answers, and what is published there does not arrive")]
    Deaf,
    /// The channel is a stream that somebody else fills: it is published to there.
    #[error("the channel is filled by its own producer")]
    Foreign,
    /// It has no room.
    #[error("the engine has no room")]
    Full,
    /// The answer is not one that the engine gives; `what` is a fixed text.
    #[error("the engine's answer cannot be read: {what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Of several servers another list is in force under the number of ours.
    #[error("generation {generation} of the shards is another list: raise `generation` with every change of `shards`")]
    OtherShards {
        /// The number.
        generation: u64,
    },
    /// It said no, with this code of its own (`NOPERM`, `WRONGTYPE` …).
    #[error("the engine refused with {code}")]
    Refused {
        /// The code, at most 32 characters.
        code: String,
    },
    /// One of several servers is not there for its channels.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// Its host and port.
        shard: String,
        /// Why.
        reason: Box<EngineError>,
    },
    /// The servers have a newer list of themselves than this gateway was given.
    #[error("generation {in_force} of the shards is in force, this configuration has {generation}")]
    Superseded {
        /// Theirs.
        in_force: u64,
        /// Ours.
        generation: u64,
    },
    /// There was no answer in time.
    #[error("the engine did not answer in time")]
    TimedOut,
    /// The item is larger than a channel may be.
    #[error("an item of {found_bytes} bytes exceeds the limit of {limit_bytes} bytes")]
    TooLarge {
        /// Bytes of its payload and id.
        found_bytes: usize,
        /// What a channel may have.
        limit_bytes: usize,
    },
    /// The newest values of the channel would be more than are kept: of other keys, or in bytes.
    #[error("the newest values of a channel may have {limit_keys} keys and {limit_bytes} bytes")]
    TooManyValues {
        /// Keys that a channel may have.
        limit_keys: usize,
        /// Bytes that they and their values may have.
        limit_bytes: usize,
    },
    /// None of several servers knows of a list, and ours is not the first.
    #[error("no shard knows of a generation before {generation}: begin with 1, or keep a shard of before")]
    UnknownShards {
        /// Its number.
        generation: u64,
    },
    /// There is no connection.
    #[error("the engine is not reachable")]
    Unreachable,
    /// The engine belongs to another region: two regions were pointed at one.
    #[error("the engine belongs to region {found}")]
    WrongRegion {
        /// The region that it belongs to, or `?` if that is no region's name.
        found: String,
    },
}

impl EngineError {
    /// The same, of one of several servers, by its URL or its name.
    pub(super) fn of_shard(shard: &str, reason: Self) -> Self {
        let shard = shard.split_once("://").map_or(shard, |(_, name)| name).to_owned();
        Self::Shard { shard, reason: Box::new(reason) }
    }
}

/// Whether an item is stored although its publication failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is not.
    No,
    /// It may be: the engine was asked and no answer came. Publishing it again with the same id is safe.
    Unknown,
}

/// A publication that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PublishError {
    /// Why.
    pub reason: EngineError,
    /// Whether the item is stored nevertheless.
    pub stored: Stored,
}

impl PublishError {
    /// A failure after which the item is certainly not stored.
    pub fn not_stored(reason: EngineError) -> Self {
        Self { reason, stored: Stored::No }
    }
}

impl Item {
    /// What the item takes of a channel's bytes.
    pub fn size_bytes(&self) -> usize {
        self.payload.len() + self.id.as_str().len()
    }

    /// What it takes of a channel's newest values.
    pub fn value_bytes(&self, key: &Key) -> usize {
        key.as_str().len() + self.size_bytes()
    }

    /// Refuses what no log could keep.
    ///
    /// # Errors
    /// [`EngineError::TooLarge`], and it is not stored.
    pub fn check_size(&self, retention: &Retention) -> Result<(), PublishError> {
        let (found_bytes, limit_bytes) = (self.size_bytes(), retention.max_bytes);
        if found_bytes <= limit_bytes {
            return Ok(());
        }
        Err(PublishError::not_stored(EngineError::TooLarge { found_bytes, limit_bytes }))
    }
}

fn bounded(name: &str, limit_bytes: usize) -> Result<Arc<str>, NameError> {
    if (1..=limit_bytes).contains(&name.len()) {
        Ok(name.into())
    } else {
        Err(NameError { found_bytes: name.len(), limit_bytes })
    }
}

impl Channel {
    /// The channel of this name.
    ///
    /// # Errors
    /// It is empty or has more than [`MAX_CHANNEL_BYTES`].
    pub fn new(name: &str) -> Result<Self, NameError> {
        bounded(name, MAX_CHANNEL_BYTES).map(Self)
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MessageId {
    /// The id of this text.
    ///
    /// # Errors
    /// It is empty or has more than [`MAX_MESSAGE_ID_BYTES`].
    pub fn new(id: &str) -> Result<Self, NameError> {
        bounded(id, MAX_MESSAGE_ID_BYTES).map(Self)
    }

    /// The id of what has none.
    pub(super) fn unnamed() -> Self {
        Self("-".into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Key {
    /// The key of this text.
    ///
    /// # Errors
    /// It is empty or has more than [`MAX_KEY_BYTES`].
    pub fn new(key: &str) -> Result<Self, NameError> {
        bounded(key, MAX_KEY_BYTES).map(Self)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LatestLimit {
    /// What a publication is refused with that does not fit.
    pub const fn refusal(&self) -> EngineError {
        EngineError::TooManyValues { limit_keys: self.max_keys, limit_bytes: self.max_bytes }
    }
}

impl Entry {
    /// What tells it from any other that ever had its number.
    pub fn mark(&self) -> Mark {
        Mark { epoch: self.position.epoch.clone(), id: self.position.id }
    }

    /// When it was stored, in milliseconds since 1970 by the engine's clock.
    pub fn stored_ms(&self) -> u64 {
        let EntryId { ms, .. } = self.position.id;
        ms
    }
}

#[cfg(test)]
mod tests {
    use super::super::recover::Why;
    use super::*;

    fn entry(n: u64) -> Entry {
        let position = format!("eu.a.{n}.{n}-0").parse().unwrap();
        Entry { position, message: MessageId::new("m").unwrap(), payload: Bytes::from(vec![0; 10]) }
    }

    fn slice(entries: &[u64], first: u64, top: u64) -> Slice {
        let top = entry(top).position;
        let log = Log { top: top.n, first, first_epoch: top.epoch.clone() };
        Slice { entries: entries.iter().map(|n| entry(*n)).collect(), log, top, at: None }
    }

    #[test]
    fn names_are_bounded_in_bytes() {
        assert!(Channel::new(&"é".repeat(256)).is_ok());
        let error = NameError { found_bytes: 513, limit_bytes: 512 };
        assert_eq!(Channel::new(&("é".repeat(256) + "x")), Err(error));
        assert_eq!(Channel::new(""), Err(NameError { found_bytes: 0, limit_bytes: 512 }));
        assert!(MessageId::new(&"x".repeat(256)).is_ok());
        assert_eq!(MessageId::new(&"x".repeat(257)), Err(NameError { found_bytes: 257, limit_bytes: 256 }));
    }

    #[test]
    fn a_part_of_a_log_counts_what_it_lacks_as_over_the_limit() {
        let limit = |max_bytes| ReplayLimit { max_entries: 100, max_bytes };
        let whole = slice(&[1, 2, 3], 1, 3);
        assert!(whole.is_complete());
        assert_eq!(whole.recover(&Place::Start, limit(30)), Recovery::Replay { from: 1, to: 3 });
        assert_eq!(whole.recover(&Place::Start, limit(29)), Recovery::Gap(Why::Limit));
        for part in [slice(&[1, 2], 1, 3), slice(&[2, 3], 1, 3), slice(&[], 1, 3)] {
            assert_eq!(part.recover(&Place::Start, limit(1 << 40)), Recovery::Gap(Why::Limit), "{part:?}");
        }
        assert!(!slice(&[1, 2], 1, 3).is_complete());
        assert!(slice(&[], 4, 3).is_complete());
    }
}
