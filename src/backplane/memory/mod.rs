//! The engine within this process: a ring a channel. The reference for what the others do.
//!
//! It has no other node, and nothing of it survives the process: a reader from before a restart is told of a gap, since
//! the epoch is that of this boot.

mod ring;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::Instant;

use self::ring::Ring;
use super::engine::{
    Capabilities, Channel, DEDUPE_WINDOW, Dedupe, EVENTS_KEPT, Engine, EngineError, Event, History, Item, LOG_LIFE,
    Latest, LatestLimit, PublishError, Published, ReadLimit, Retention, Scope, Slice,
};
use super::position::{Epoch, Position, PositionError, Region};
use super::recover::Log;
use super::sink::Sink;

/// How many logs are looked at for what has expired, beside each call.
const SWEPT_A_CALL: usize = 16;

/// The bounds of a memory engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is kept of each channel.
    pub retention: Retention,
    /// What is kept of the newest values of each channel.
    pub latest: LatestLimit,
    /// How long a message's id is remembered. Default 5 minutes.
    pub dedupe_window: Duration,
    /// How many ids are remembered for each channel; then the oldest is forgotten before its time. Default 10,000.
    pub max_ids: usize,
    /// Bytes of all channels: payloads, and about 100 for each entry and each id. Default 256 MiB. When it is passed, the
    /// channels that were not published on for longest lose their entries and ids, and readers are told of a gap; then those
    /// that have the newest values of keys lose these. The one that is being published on keeps its own.
    pub max_bytes: usize,
    /// Channels that have a log. Default 100,000. When it is passed, the one that was not published on for longest loses
    /// its log.
    pub max_channels: usize,
    /// Subscriptions. Default 1,000,000. When it is passed, a subscription fails.
    pub max_subscriptions: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            latest: LatestLimit::default(),
            dedupe_window: DEDUPE_WINDOW,
            max_ids: 10_000,
            max_bytes: 256 << 20,
            max_channels: 100_000,
            max_subscriptions: 1_000_000,
        }
    }
}

/// The engine.
#[derive(Debug)]
pub struct MemoryEngine {
    region: Region,
    /// Of this boot.
    lineage: Epoch,
    settings: Settings,
    start: Instant,
    /// The time of day at the start; from then on `start` counts, which never runs backwards.
    start_ms: u64,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct State {
    logs: HashMap<Channel, Ring>,
    /// The logs in the order of their last publication, which each knows its key of.
    by_publication: BTreeMap<u64, Channel>,
    publications: u64,
    /// Logs up to this publication have no entry and no id left.
    swept: u64,
    /// The last publications of the logs that have the newest values of keys.
    with_values: BTreeSet<u64>,
    /// What all logs take.
    bytes: usize,
    subscriptions: HashMap<Channel, Sink>,
    births: u64,
}

impl MemoryEngine {
    /// An engine without a channel.
    ///
    /// # Errors
    /// None, unless a random number makes no epoch.
    pub fn new(region: Region, settings: Settings) -> Result<Self, PositionError> {
        let lineage = Epoch::new(&format!("{:016x}", rand::random::<u64>()))?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            region,
            lineage,
            settings,
            start: Instant::now(),
            start_ms: u64::try_from(since.as_millis()).unwrap_or(1).max(1),
            state: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_KEPT),
        })
    }

    fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.start_ms.saturating_add(elapsed)
    }

    fn top(&self, log: Option<&Ring>) -> Position {
        let origin = || Position::origin(self.region.clone(), self.lineage.clone());
        log.map_or_else(origin, |log| log.top(&self.region))
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn region(&self) -> &Region {
        &self.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        item.check_size(&self.settings.retention)?;
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.sweep(&self.settings, now_ms);
        if !state.logs.contains_key(channel) {
            state.births += 1;
            let epoch = format!("{}-{}", self.lineage, state.births);
            let malformed = |_| PublishError::not_stored(EngineError::Malformed { what: "epoch" });
            state.logs.insert(channel.clone(), Ring::new(Epoch::new(&epoch).map_err(malformed)?));
        }
        let Some(log) = state.logs.get_mut(channel) else {
            return Err(PublishError::not_stored(EngineError::Full));
        };
        let before = log.bytes();
        log.trim(&self.settings, now_ms);
        let appended = log.append(&self.region, item, now_ms, &self.settings);
        state.bytes = (state.bytes + log.bytes()).saturating_sub(before);
        let (position, entry) = appended.map_err(PublishError::not_stored)?;
        let Some(entry) = entry else {
            return Ok(Published { position, repeated: true });
        };
        state.publications += 1;
        state.by_publication.remove(&log.last_publication);
        state.with_values.remove(&log.last_publication);
        log.last_publication = state.publications;
        if log.has_values() {
            state.with_values.insert(state.publications);
        }
        state.by_publication.insert(state.publications, channel.clone());
        if let Some(sink) = state.subscriptions.get(channel)
            && !sink.push(channel, entry)
        {
            // Nobody may be listening.
            let _ = self.events.send(Event::Disrupted(Scope::Channel(channel.clone())));
        }
        for evicted in state.evict(&self.settings) {
            let _ = self.events.send(Event::Disrupted(Scope::Channel(evicted)));
        }
        Ok(Published { position, repeated: false })
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let mut state = self.state.lock();
        if state.subscriptions.len() >= self.settings.max_subscriptions && !state.subscriptions.contains_key(channel) {
            return Err(EngineError::Full);
        }
        state.subscriptions.insert(channel.clone(), sink.clone());
        Ok(self.top(state.logs.get(channel)))
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.state.lock().subscriptions.remove(channel);
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.sweep(&self.settings, now_ms);
        let Some(log) = state.logs.get_mut(channel) else {
            let log = Log { top: 0, first: 1, first_epoch: self.lineage.clone() };
            return Ok(Slice { entries: Vec::new(), log, top: self.top(None), at: None });
        };
        let before = log.bytes();
        log.trim(&self.settings, now_ms);
        state.bytes = (state.bytes + log.bytes()).saturating_sub(before);
        Ok(log.read(&self.region, after, limit))
    }

    async fn latest(&self, channel: &Channel) -> Result<Latest, EngineError> {
        let now_ms = self.now_ms();
        let mut state = self.state.lock();
        state.sweep(&self.settings, now_ms);
        let log = state.logs.get(channel);
        Ok(log.map_or_else(|| Latest { entries: Vec::new(), top: self.top(None) }, |log| log.latest(&self.region)))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            history: History::Process,
            contiguous: true,
            dedupe: Dedupe::Publish,
            dedupe_window: self.settings.dedupe_window,
            retention: self.settings.retention,
            latest: true,
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

impl State {
    /// Frees what expired in logs that nobody publishes on, and logs that are dead. A few at a time: those are the first in
    /// the order of publication, and one that is empty is not looked at again.
    fn sweep(&mut self, settings: &Settings, now_ms: u64) {
        let oldest: Vec<_> = self
            .by_publication
            .range(self.swept + 1..)
            .take(SWEPT_A_CALL)
            .map(|(at, log)| (*at, log.clone()))
            .collect();
        for (at, channel) in oldest {
            let Some(log) = self.logs.get_mut(&channel) else { continue };
            let before = log.bytes();
            log.trim(settings, now_ms);
            self.bytes = (self.bytes + log.bytes()).saturating_sub(before);
            if !log.is_empty() {
                break;
            }
            self.swept = at;
        }
        for _ in 0..SWEPT_A_CALL {
            let Some(oldest) = self.by_publication.first_entry() else { break };
            let dead = |log: &Ring| now_ms.saturating_sub(log.last_id().ms) >= millis(LOG_LIFE);
            if !self.logs.get(oldest.get()).is_none_or(dead) {
                break;
            }
            let channel = oldest.remove();
            self.remove(&channel);
        }
    }

    /// Makes room, and names the subscribed channels whose log died for it.
    fn evict(&mut self, settings: &Settings) -> Vec<Channel> {
        let mut disrupted = Vec::new();
        while self.logs.len() > settings.max_channels.max(1) {
            let Some((_, channel)) = self.by_publication.pop_first() else { break };
            self.remove(&channel);
            if let Some(sink) = self.subscriptions.get(&channel) {
                sink.disrupt(&channel);
                disrupted.push(channel);
            }
        }
        while self.bytes > settings.max_bytes {
            // What was swept has nothing to give; the newest keeps what it was just given.
            let next = self.by_publication.range(self.swept + 1..self.publications).next();
            let Some((at, channel)) = next.map(|(at, channel)| (*at, channel.clone())) else { break };
            self.clear(at, &channel);
            self.swept = at;
        }
        while self.bytes > settings.max_bytes {
            let Some(at) = self.with_values.first().copied().filter(|at| *at < self.publications) else { break };
            self.with_values.remove(&at);
            let Some(channel) = self.by_publication.get(&at).cloned() else { continue };
            self.clear(at, &channel);
        }
        disrupted
    }

    fn clear(&mut self, at: u64, channel: &Channel) {
        self.with_values.remove(&at);
        if let Some(log) = self.logs.get_mut(channel) {
            self.bytes = self.bytes.saturating_sub(log.bytes());
            log.clear();
        }
    }

    fn remove(&mut self, channel: &Channel) {
        if let Some(log) = self.logs.remove(channel) {
            self.with_values.remove(&log.last_publication);
            self.bytes = self.bytes.saturating_sub(log.bytes());
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::engine::MessageId;
    use super::super::position::Place;
    use super::super::recover::{Recovery, ReplayLimit, Why};
    use super::super::sink::{Delivery, SinkLimit, sink};
    use super::*;

    const ALL: ReadLimit = ReadLimit { max_entries: usize::MAX, max_bytes: usize::MAX };
    const REPLAY: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

    fn engine(settings: Settings) -> MemoryEngine {
        MemoryEngine::new(Region::new("eu").unwrap(), settings).unwrap()
    }

    fn channel(name: &str) -> Channel {
        Channel::new(name).unwrap()
    }

    async fn publish(engine: &MemoryEngine, name: &str, id: &str, bytes: usize) -> Published {
        let item = Item { id: MessageId::new(id).unwrap(), key: None, payload: Bytes::from(vec![0; bytes]) };
        engine.publish(&channel(name), &item).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn entries_and_ids_of_quiet_channels_are_swept_while_others_are_published_on() {
        let engine = engine(Settings::default());
        for nth in 0..100 {
            publish(&engine, &format!("quiet{nth}"), "m", 1000).await;
        }
        assert!(engine.state.lock().bytes > 100_000);
        tokio::time::advance(Duration::from_secs(301)).await;
        for nth in 0..10 {
            publish(&engine, "busy", &format!("m{nth}"), 1).await;
        }
        let state = engine.state.lock();
        assert_eq!(state.bytes, state.logs[&channel("busy")].bytes());
        assert_eq!(state.logs.len(), 101, "the numbers stay");
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_dies_after_a_day_and_its_readers_are_told() {
        let engine = engine(Settings::default());
        let seen = publish(&engine, "quiet", "m1", 1).await.position;
        tokio::time::advance(LOG_LIFE).await;
        publish(&engine, "busy", "m", 1).await;
        assert_eq!(engine.state.lock().logs.len(), 1);
        let again = publish(&engine, "quiet", "m2", 1).await.position;
        assert_eq!(again.n, 1);
        let slice = engine.read(&channel("quiet"), Some(&seen), ALL).await.unwrap();
        assert_eq!(slice.recover(&Place::After(seen), REPLAY), Recovery::Gap(Why::Lineage));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_all_channels_are_bounded_and_the_longest_unpublished_lose_their_entries() {
        let engine = engine(Settings { max_bytes: 10_000, ..Settings::default() });
        let first = publish(&engine, "c0", "m1", 1000).await.position;
        for nth in 1..50 {
            publish(&engine, &format!("c{nth}"), "m1", 1000).await;
            assert!(engine.state.lock().bytes <= 10_000);
        }
        let slice = engine.read(&channel("c0"), Some(&first), ALL).await.unwrap();
        assert_eq!(slice.recover(&Place::After(first.clone()), REPLAY), Recovery::Replay { from: 2, to: 1 });
        publish(&engine, "c0", "m2", 1000).await;
        publish(&engine, "c0", "m3", 1000).await;
        let slice = engine.read(&channel("c0"), Some(&first), ALL).await.unwrap();
        assert_eq!(slice.recover(&Place::After(first), REPLAY), Recovery::Replay { from: 2, to: 3 }, "numbers go on");
    }

    #[tokio::test(start_paused = true)]
    async fn newest_values_outlive_their_entries_and_go_last_when_there_is_no_room() {
        let engine = engine(Settings { max_bytes: 10_000, ..Settings::default() });
        let key = Some(super::super::engine::Key::new("k").unwrap());
        let item = Item { id: MessageId::new("v").unwrap(), key, payload: Bytes::from(vec![0; 1000]) };
        engine.publish(&channel("prices"), &item).await.unwrap();
        publish(&engine, "quiet", "m", 1000).await;
        tokio::time::advance(Duration::from_secs(301)).await;
        publish(&engine, "busy", "m", 1).await;
        assert_eq!(engine.latest(&channel("prices")).await.unwrap().entries.len(), 1, "the log is swept");
        assert!(engine.read(&channel("prices"), None, ALL).await.unwrap().entries.is_empty());
        publish(&engine, "busy", "m1", 8000).await;
        assert_eq!(engine.latest(&channel("prices")).await.unwrap().entries.len(), 1);
        publish(&engine, "other", "m1", 8000).await;
        assert_eq!(engine.latest(&channel("prices")).await.unwrap().entries.len(), 1, "entries of others go first");
        publish(&engine, "other", "m2", 1500).await;
        let latest = engine.latest(&channel("prices")).await.unwrap();
        assert_eq!((latest.entries.len(), latest.top.n), (0, 1), "the number stays");
        let state = engine.state.lock();
        assert!(state.bytes <= 10_000 && state.with_values.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn channels_are_bounded_and_a_subscriber_of_one_that_went_is_told() {
        let engine = engine(Settings { max_channels: 2, max_subscriptions: 1, ..Settings::default() });
        let (sink, mut source) = sink(SinkLimit::default());
        let mut events = engine.events();
        let head = engine.subscribe(&channel("a"), &sink).await.unwrap();
        assert!(head.is_origin());
        assert_eq!(engine.subscribe(&channel("b"), &sink).await, Err(EngineError::Full));
        engine.subscribe(&channel("a"), &sink).await.unwrap();
        let seen = publish(&engine, "a", "m", 1).await.position;
        assert!(matches!(source.try_recv(), Some(Delivery::Entry(..))));
        publish(&engine, "b", "m", 1).await;
        assert_eq!(source.try_recv(), None);
        publish(&engine, "c", "m", 1).await;
        assert_eq!(source.try_recv(), Some(Delivery::Disrupted(channel("a"))));
        assert_eq!(events.try_recv(), Ok(Event::Disrupted(Scope::Channel(channel("a")))));
        let slice = engine.read(&channel("a"), Some(&seen), ALL).await.unwrap();
        assert_eq!(slice.recover(&Place::After(seen), REPLAY), Recovery::Gap(Why::Lineage));
        assert_eq!(engine.state.lock().logs.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn ids_are_bounded_and_the_oldest_is_forgotten() {
        let engine = engine(Settings { max_ids: 3, ..Settings::default() });
        for id in ["1", "2", "3", "4"] {
            publish(&engine, "a", id, 1).await;
        }
        assert!(publish(&engine, "a", "2", 1).await.repeated);
        assert!(!publish(&engine, "a", "1", 1).await.repeated);
    }
}
