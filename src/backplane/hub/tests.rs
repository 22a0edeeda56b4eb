//! A hub on an engine that fails in every way an engine may: seeded schedules in paused time, and what must hold in all.
//!
//! `HUB_SCHEDULES` is how many are played (300 by default), `HUB_SEED` plays one, which a failure names.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::broadcast;

use super::*;
use crate::backplane::engine::{
    Capabilities, Dedupe, EngineError, Event, History, Item, MessageId, PublishError, Published, ReadLimit, Retention,
    Slice,
};
use crate::backplane::position::{EntryId, Epoch, Place, Position, Region};
use crate::backplane::recover::{Log, Mark, Recovery, Why};
use crate::backplane::sink::Sink;

pub(super) const RETENTION: Retention =
    Retention { max_entries: 40, max_age: Duration::from_secs(3600), max_bytes: 1 << 20 };
pub(super) const ANY: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

/// What the engines of two nodes share, and a schedule makes fail.
#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) region: Region,
    pub(super) state: Mutex<State>,
}

/// The engine of one node.
#[derive(Debug)]
struct Node {
    shared: Arc<Faulty>,
    number: usize,
}

#[derive(Debug)]
pub(super) struct State {
    rng: StdRng,
    pub(super) logs: BTreeMap<Channel, Vec<Entry>>,
    /// Which entry was the newest when an entry was stored.
    predecessors: BTreeMap<EntryId, EntryId>,
    pub(super) subscriptions: BTreeMap<(usize, Channel), Sink>,
    lineage: u32,
    pub(super) clock: u64,
    /// Out of ten: calls that fail, and pushes that are lost until the channel is told to be disrupted.
    pub(super) failing: u32,
    pub(super) losing: u32,
    lost: Vec<(usize, Channel)>,
    reads: usize,
}

impl Faulty {
    fn new(seed: u64) -> Arc<Self> {
        Self::in_region("eu", seed)
    }

    pub(super) fn in_region(region: &str, seed: u64) -> Arc<Self> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            logs: BTreeMap::new(),
            predecessors: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            lineage: 1,
            clock: 1,
            failing: 0,
            losing: 0,
            lost: Vec::new(),
            reads: 0,
        };
        Arc::new(Self { region: Region::new(region).unwrap(), state: Mutex::new(state) })
    }

    fn epoch(lineage: u32) -> Epoch {
        Epoch::new(&format!("l{lineage:04}")).unwrap()
    }

    /// Takes a while, and may fail.
    async fn answer(&self) -> Result<(), EngineError> {
        let (pause, fails) = {
            let state = &mut *self.state.lock();
            (state.rng.random_range(0..30), state.rng.random_range(0..10) < state.failing)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if fails { Err(EngineError::TimedOut) } else { Ok(()) }
    }

    pub(super) fn append(&self, channel: &Channel, message: &str) -> Position {
        let state = &mut *self.state.lock();
        state.clock = (state.clock + 1).max(now_ms());
        let log = state.logs.entry(channel.clone()).or_default();
        let n = log.last().map_or(0, |entry| entry.position.n) + 1;
        let id = EntryId { ms: state.clock, seq: 0 };
        let position = Position { region: self.region.clone(), epoch: Self::epoch(state.lineage), n, id };
        let message = MessageId::new(message).unwrap();
        let entry = Entry { position: position.clone(), message, payload: Bytes::from_static(b"0123456789") };
        if let Some(newest) = log.last() {
            state.predecessors.insert(id, newest.position.id);
        }
        log.push(entry.clone());
        for ((node, of), sink) in &state.subscriptions {
            if of == channel && state.rng.random_range(0..10) < state.losing {
                state.lost.push((*node, channel.clone()));
            } else if of == channel {
                sink.push(channel, entry.clone());
            }
        }
        position
    }

    /// Says what was lost, as an engine must in the end.
    pub(super) fn confess(&self) {
        let state = &mut *self.state.lock();
        for lost in std::mem::take(&mut state.lost) {
            if let Some(sink) = state.subscriptions.get(&lost) {
                sink.disrupt(&lost.1);
            }
        }
    }

    /// Another process takes over, without the newest entries.
    pub(super) fn fail_over(&self, without: usize) {
        let state = &mut *self.state.lock();
        state.lineage += 1;
        for log in state.logs.values_mut() {
            log.truncate(log.len() - without.min(log.len()));
        }
        // Nodes hear of it sooner or later.
        for (subscription, sink) in &state.subscriptions {
            if state.rng.random_bool(0.5) {
                sink.disrupt(&subscription.1);
            } else {
                state.lost.push(subscription.clone());
            }
        }
    }

    pub(super) fn top(&self, channel: &Channel) -> Position {
        let state = self.state.lock();
        let newest = state.logs.get(channel).and_then(|log| log.last()).map(|entry| entry.position.clone());
        newest.unwrap_or_else(|| Position::origin(self.region.clone(), Self::epoch(state.lineage)))
    }

    /// Whether one entry was stored right behind the other.
    fn follows(&self, entry: &Entry, before: &Position) -> bool {
        let predecessor = self.state.lock().predecessors.get(&entry.position.id).copied();
        if before.n == 0 { predecessor.is_none() } else { predecessor == Some(before.id) }
    }

    fn has(&self, channel: &Channel, entry: &Entry) -> bool {
        self.state.lock().logs.get(channel).is_some_and(|log| log.contains(entry))
    }
}

pub(super) fn node(shared: &Arc<Faulty>, number: usize) -> Arc<dyn Engine> {
    Arc::new(Node { shared: shared.clone(), number })
}

#[async_trait]
impl Engine for Node {
    fn region(&self) -> &Region {
        &self.shared.region
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        Ok(Published { position: self.shared.append(channel, item.id.as_str()), repeated: false })
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        self.shared.answer().await?;
        self.shared.state.lock().subscriptions.insert((self.number, channel.clone()), sink.clone());
        Ok(self.shared.top(channel))
    }

    async fn unsubscribe(&self, channel: &Channel) {
        let _ = self.shared.answer().await;
        self.shared.state.lock().subscriptions.remove(&(self.number, channel.clone()));
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        self.shared.answer().await?;
        let top = self.shared.top(channel);
        let state = &mut *self.shared.state.lock();
        state.reads += 1;
        let log = state.logs.get(channel).map_or(&[][..], |log| log);
        let retained = &log[log.len().saturating_sub(RETENTION.max_entries)..];
        let first = retained.first().map_or(top.n + 1, |entry| entry.position.n);
        let first_epoch = retained.first().map_or(&top.epoch, |entry| &entry.position.epoch).clone();
        let seen = after.map_or(0, |position| position.n);
        let at = retained
            .iter()
            .find(|entry| entry.position.n == seen && after.is_some_and(|at| at.id == entry.position.id));
        // Sometimes less than was asked for.
        let most = state.rng.random_range(1..=limit.max_entries);
        let behind = retained.iter().filter(|entry| entry.position.n > seen);
        Ok(Slice {
            entries: behind.take(most).cloned().collect(),
            log: Log { top: top.n, first, first_epoch },
            top,
            at: at.map(|entry| Mark { epoch: entry.position.epoch.clone(), id: entry.position.id }),
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            history: History::Engine,
            contiguous: true,
            dedupe: Dedupe::Publish,
            dedupe_window: Duration::from_secs(3600),
            retention: RETENTION,
            latest: false,
        }
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        unreachable!("a hub does not ask")
    }
}

pub(super) fn metrics() -> Arc<BackplaneMetrics> {
    crate::metrics::Metrics::new().backplane(&["eu", "us", "ap"])
}

/// A session, and what it saw of each channel.
struct Client {
    member: Member,
    places: BTreeMap<Channel, Seen>,
    gaps: usize,
}

#[derive(Clone, Default)]
struct Seen {
    /// The last entry, or where it began.
    at: Option<Position>,
    /// Whether of that place only the number is known.
    by_number: bool,
    subscribed: bool,
    /// What it asks for when it comes back.
    cursor: From,
}

impl Seen {
    fn reach(&mut self, position: Position) {
        self.cursor = From::Place(Place::After(position.clone()));
        (self.at, self.by_number) = (Some(position), false);
    }
}

impl Client {
    fn new(hub: &Arc<Hub>, limit: InboxLimit) -> Self {
        Self { member: hub.join(limit), places: BTreeMap::new(), gaps: 0 }
    }

    fn subscribe(&mut self, channel: &Channel, from: From) {
        let seen = self.places.entry(channel.clone()).or_default();
        (seen.subscribed, seen.cursor) = (false, from.clone());
        self.member.subscribe(channel, from, ANY);
    }

    /// Takes what is there, at most so much, and judges it.
    async fn take(&mut self, most: usize, engine: &Faulty, lost_entries: bool) {
        for _ in 0..most {
            let Some(notice) = poll_fn(|cx| self.member.poll_next(cx)).now_or_never() else { return };
            self.judge(notice, engine, lost_entries);
        }
    }

    fn judge(&mut self, notice: Notice, engine: &Faulty, lost_entries: bool) {
        match notice {
            Notice::Values { .. } | Notice::Part(..) => panic!("no channel here has newest values"),
            Notice::Subscribed { channel, top, recovery, .. } => {
                let seen = self.places.get_mut(&channel).expect("it was asked for");
                assert!(!std::mem::replace(&mut seen.subscribed, true), "told once");
                match recovery {
                    Recovery::Live => seen.reach(top),
                    Recovery::Replay { from, to } => {
                        assert_eq!(to, top.n);
                        match &seen.cursor {
                            From::Place(Place::After(place)) => assert_eq!(from, place.n + 1),
                            From::Place(Place::Start) => assert_eq!(from, 1),
                            From::Message(_) | From::Places(_) => {}
                            // It waited, and gets what was stored meanwhile.
                            From::Now | From::Place(Place::Now) => {}
                        }
                        match &seen.cursor {
                            From::Place(Place::After(place)) => seen.reach(place.clone()),
                            _ => (seen.at, seen.by_number) = (Some(Position { n: from - 1, ..top }), true),
                        }
                    }
                    Recovery::Gap(_) => {
                        self.gaps += 1;
                        seen.reach(top);
                    }
                }
            }
            Notice::Publication(publication) => {
                let seen = self.places.get_mut(&publication.channel).expect("it was asked for");
                assert!(seen.subscribed, "nothing before the subscription");
                let at = seen.at.as_ref().expect("a place");
                assert_eq!(publication.n(), at.n + 1, "no hole and no repetition");
                assert!(
                    seen.by_number || engine.follows(&publication.entry, at),
                    "what lay between is missing: {at} then {}: {:?}",
                    publication.entry.position,
                    engine.state.lock().logs[&publication.channel]
                        .iter()
                        .map(|e| e.position.to_string())
                        .collect::<Vec<_>>()
                );
                assert!(lost_entries || engine.has(&publication.channel, &publication.entry), "a phantom");
                seen.reach(publication.entry.position.clone());
            }
            Notice::Gap { channel, top, .. } => {
                self.gaps += 1;
                self.places.get_mut(&channel).expect("it was asked for").reach(top);
            }
            Notice::Region { .. } => panic!("nobody said that"),
            Notice::Overrun(channel) => {
                self.gaps += 1;
                self.places.remove(&channel);
            }
        }
    }

    /// Leaves, and comes back with what it has.
    fn reconnect(&mut self, hub: &Arc<Hub>, limit: InboxLimit) {
        let before = std::mem::replace(self, Self { gaps: self.gaps, ..Self::new(hub, limit) });
        for (channel, seen) in before.places {
            self.subscribe(&channel, seen.cursor);
        }
    }
}

/// How hard a schedule is: whether entries are lost and dropped, so that gaps are right.
async fn play(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (gentle, engine) = (seed.is_multiple_of(2), Faulty::new(seed));
    let small = InboxLimit { max_messages: rng.random_range(1..20), max_bytes: 1 << 20 };
    let limit = if gentle { InboxLimit::default() } else { small };
    let sink_limit = SinkLimit { max_entries: rng.random_range(1..50), max_bytes: 1 << 20 };
    let hubs = [0, 1].map(|number| {
        Hub::start_with(vec![node(&engine, number)], ChannelPlan::default(), sink_limit, metrics(), seed)
    });
    let channels: Vec<Channel> = (0..3).map(|at| Channel::new(&format!("room:{at}")).unwrap()).collect();
    let mut clients: Vec<Client> = (0..4).map(|at| Client::new(&hubs[at % 2], limit)).collect();
    let (mut published, mut failed_over) = (0, false);
    for _ in 0..rng.random_range(20..200) {
        let channel = &channels[rng.random_range(0..channels.len())];
        let at = rng.random_range(0..clients.len());
        match rng.random_range(0..100) {
            0..40 => {
                // A gentle schedule keeps within the retention.
                if !gentle || published < RETENTION.max_entries {
                    published += 1;
                    engine.append(channel, &format!("m{published}"));
                }
            }
            40..52 => {
                let from = match rng.random_range(0..4) {
                    0 => From::Place(Place::Start),
                    1 if !gentle => From::Message(MessageId::new(&format!("m{}", rng.random_range(1..50))).unwrap()),
                    // Another node may have pushed it already, and this one not.
                    1 => match engine.state.lock().logs.get(channel).and_then(|log| log.last()) {
                        Some(newest) => From::Message(newest.message.clone()),
                        None => From::Now,
                    },
                    _ => From::Now,
                };
                clients[at].subscribe(channel, from);
            }
            52..55 => {
                clients[at].member.unsubscribe(channel);
                clients[at].places.remove(channel);
            }
            55..62 => clients[at].reconnect(&hubs[rng.random_range(0..2)], limit),
            62..80 => clients[at].take(rng.random_range(1..30), &engine, failed_over).await,
            80..85 => engine.state.lock().losing = rng.random_range(0..10),
            85..90 => engine.state.lock().failing = rng.random_range(0..10),
            90..93 => engine.confess(),
            93..95 if !gentle => {
                failed_over = true;
                engine.fail_over(rng.random_range(0..4));
            }
            _ => tokio::time::sleep(Duration::from_millis(rng.random_range(0..8000))).await,
        }
        tokio::task::yield_now().await;
    }
    // The faults end, and the engine says what it has lost.
    {
        let state = &mut *engine.state.lock();
        (state.failing, state.losing) = (0, 0);
    }
    engine.confess();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        for client in &mut clients {
            client.take(usize::MAX, &engine, failed_over).await;
        }
    }
    for client in &clients {
        for (channel, seen) in &client.places {
            assert!(seen.subscribed, "a subscription comes into force");
            let top = engine.top(channel);
            assert_eq!(seen.at.as_ref().map(|at| at.n), Some(top.n), "everything arrives");
        }
        assert!(!gentle || client.gaps == 0, "a gap without a loss");
        assert_eq!(client.member.depth().behind_since, None);
    }
    // Nobody wants them any more: the engine is told so.
    clients.clear();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((hubs.map(|hub| hub.channels()), engine.state.lock().subscriptions.len()), ([0, 0], 0));
}

#[test]
fn whatever_an_engine_does_a_subscriber_gets_each_entry_once_and_in_order_or_a_gap() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("HUB_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HUB_SCHEDULES").unwrap_or(300),
    };
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let played = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(play(seed))));
        assert!(played.is_ok(), "in schedule HUB_SEED={seed}");
    }
}

/// A hub on an engine without faults, with so many entries in its one channel.
async fn stocked(entries: usize) -> (Arc<Faulty>, Arc<Hub>, Channel) {
    let engine = Faulty::new(1);
    let channel = Channel::new("room").unwrap();
    for at in 1..=entries {
        engine.append(&channel, &format!("m{at}"));
    }
    let hub = Hub::start(vec![node(&engine, 0)], SinkLimit::default(), metrics());
    (engine, hub, channel)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_who_come_back_at_once_cost_one_read() {
    let (engine, hub, channel) = stocked(30).await;
    let place = engine.state.lock().logs[&channel][9].position.clone();
    let mut members: Vec<Member> = (0..1000).map(|_| hub.join(InboxLimit::default())).collect();
    for member in &mut members {
        member.subscribe(&channel, From::Place(Place::After(place.clone())), ANY);
    }
    for member in &mut members {
        let first = poll_fn(|cx| member.poll_next(cx)).await;
        assert!(
            matches!(first, Notice::Subscribed { recovery: Recovery::Replay { from: 11, to: 30 }, .. }),
            "{first:?}"
        );
        for n in 11..=30 {
            let Notice::Publication(publication) = poll_fn(|cx| member.poll_next(cx)).await else {
                panic!("entry {n}")
            };
            assert_eq!(publication.n(), n);
        }
    }
    assert!(engine.state.lock().reads <= 30, "pages of one read, not one read each");
    assert_eq!((hub.channels(), hub.subscribers(&channel)), (1, 1000));
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_from_a_node_that_was_ahead_is_told_of_no_gap() {
    let (engine, hub, channel) = stocked(3).await;
    let [mut first, mut second] = [(); 2].map(|()| hub.join(InboxLimit::default()));
    let from = |id: &str| From::Message(MessageId::new(id).unwrap());
    first.subscribe(&channel, from("m3"), ANY);
    let notice = poll_fn(|cx| first.poll_next(cx)).await;
    assert!(matches!(notice, Notice::Subscribed { recovery: Recovery::Replay { from: 4, to: 3 }, .. }), "{notice:?}");
    // What is stored now comes to the other nodes sooner than to this one, which has all that was stored before.
    engine.state.lock().losing = 10;
    engine.append(&channel, "m4");
    second.subscribe(&channel, from("m4"), ANY);
    let notice = poll_fn(|cx| second.poll_next(cx)).await;
    assert!(matches!(notice, Notice::Subscribed { recovery: Recovery::Replay { from: 5, to: 4 }, .. }), "{notice:?}");
    assert!(
        matches!(poll_fn(|cx| first.poll_next(cx)).await, Notice::Publication(publication) if publication.n() == 4)
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_session_is_fed_at_its_own_pace_and_told_when_the_window_has_passed_it() {
    let (engine, hub, channel) = stocked(0).await;
    let mut slow = hub.join(InboxLimit { max_messages: 4, max_bytes: 1 << 20 });
    let mut fast = hub.join(InboxLimit::default());
    for member in [&mut slow, &mut fast] {
        member.subscribe(&channel, From::Now, ANY);
        assert!(matches!(poll_fn(|cx| member.poll_next(cx)).await, Notice::Subscribed { .. }));
    }
    for at in 1..=30 {
        engine.append(&channel, &format!("m{at}"));
        let Notice::Publication(publication) = poll_fn(|cx| fast.poll_next(cx)).await else { panic!("entry {at}") };
        assert_eq!(publication.n(), at);
    }
    assert_eq!(slow.depth().messages, 4);
    assert!(slow.depth().behind_since.is_some());
    for n in 1..=30 {
        let Notice::Publication(publication) = poll_fn(|cx| slow.poll_next(cx)).await else { panic!("entry {n}") };
        assert_eq!(publication.n(), n);
    }
    assert_eq!(slow.depth().behind_since, None);
    for at in 31..=100 {
        engine.append(&channel, &format!("m{at}"));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut got = 30;
    loop {
        match poll_fn(|cx| slow.poll_next(cx)).await {
            Notice::Publication(publication) => {
                got += 1;
                assert_eq!(publication.n(), got);
            }
            Notice::Overrun(of) => break assert_eq!(of, channel),
            other => panic!("{other:?}"),
        }
    }
    assert!((34..60).contains(&got), "{got}");
    assert_eq!((slow.subscriptions(), hub.subscribers(&channel)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_another_node_had_first_is_read_before_it_is_given_up() {
    let (engine, hub, channel) = stocked(3).await;
    let mut early = hub.join(InboxLimit::default());
    early.subscribe(&channel, From::Now, ANY);
    assert!(matches!(poll_fn(|cx| early.poll_next(cx)).await, Notice::Subscribed { .. }));
    // On its way to this node, when a client that another has given m4 comes here.
    engine.state.lock().losing = 10;
    engine.append(&channel, "m4");
    engine.append(&channel, "m5");
    let mut late = hub.join(InboxLimit::default());
    late.subscribe(&channel, From::Message(MessageId::new("m4").unwrap()), ANY);
    let first = poll_fn(|cx| late.poll_next(cx)).await;
    assert!(matches!(first, Notice::Subscribed { recovery: Recovery::Replay { from: 5, to: 5 }, .. }), "{first:?}");
    // One that nobody had is a gap all the same.
    let mut lost = hub.join(InboxLimit::default());
    lost.subscribe(&channel, From::Message(MessageId::new("m9").unwrap()), ANY);
    let first = poll_fn(|cx| lost.poll_next(cx)).await;
    assert!(matches!(first, Notice::Subscribed { recovery: Recovery::Gap(Why::Trimmed), .. }), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_counted_until_it_is_taken() {
    let (engine, hub, channel) = stocked(0).await;
    let queued = || hub.metrics.queued_bytes.get();
    let mut member = hub.join(InboxLimit::default());
    member.subscribe(&channel, From::Now, ANY);
    assert!(matches!(poll_fn(|cx| member.poll_next(cx)).await, Notice::Subscribed { .. }));
    for at in 1..=20 {
        engine.append(&channel, &format!("m{at}"));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let waiting = member.depth();
    assert_eq!((waiting.messages, queued()), (20, waiting.bytes as i64));
    assert!(waiting.bytes > 0 && member.backlog().depth() == waiting);
    for _ in 1..=17 {
        poll_fn(|cx| member.poll_next(cx)).await;
    }
    assert_eq!(queued(), member.depth().bytes as i64);
    member.unsubscribe(&channel);
    assert_eq!(queued(), 0);
    member.subscribe(&channel, From::Now, ANY);
    assert!(matches!(poll_fn(|cx| member.poll_next(cx)).await, Notice::Subscribed { .. }));
    engine.append(&channel, "m21");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(queued() > 0);
    drop(member);
    assert_eq!(queued(), 0, "what a session leaves waits for nobody");
}

#[tokio::test]
async fn the_way_of_one_in_sixteen_is_measured_and_none_of_what_was_missed() {
    let (_engine, hub, channel) = stocked(0).await;
    let latency = crate::metrics::Metrics::new().rule("r").message_latency_backplane.clone();
    let mut member = hub.join(InboxLimit::default()).measured(latency.clone());
    let eu = Region::new("eu").unwrap();
    let now_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let take = |member: &mut Member, ms: u64| {
        let position = format!("eu.a.1.{ms}-0").parse().unwrap();
        let entry = Entry { position, message: MessageId::new("m").unwrap(), payload: Bytes::new() };
        member.measure(&Publication::new(channel.clone(), entry));
        latency.get_sample_count()
    };
    assert_eq!(take(&mut member, now_ms), 0, "it is not subscribed");
    member.began.insert(channel.clone(), vec![(eu.clone(), EntryId { ms: now_ms - 60_000, seq: 0 })]);
    assert_eq!(take(&mut member, now_ms - 60_000), 0, "the last that it may have missed");
    let counts: Vec<_> = (0..17).map(|_| take(&mut member, now_ms - 50)).collect();
    assert_eq!((counts[0], counts[15], counts[16]), (1, 1, 2));
    assert!(latency.get_sample_sum() >= 0.1, "{}", latency.get_sample_sum());
    member.began.insert(channel.clone(), vec![(eu, EntryId::default())]);
    member.taken = 0;
    assert_eq!(take(&mut member, 17), 2, "an id that is no time");
}

#[test]
fn an_entry_of_a_clock_that_is_ahead_has_just_been_stored() {
    let now = UNIX_EPOCH + Duration::from_millis(5000);
    assert_eq!(age(4000, now), Duration::from_secs(1));
    assert_eq!(age(9000, now), Duration::ZERO);
}

#[test]
fn all_windows_together_are_bounded() {
    let channel = Channel::new("room").unwrap();
    let budget = Arc::new(Budget::new(100));
    let retention = Retention { max_entries: 100, max_age: Duration::from_secs(1), max_bytes: 1000 };
    let publication = |n: u64| {
        let position = format!("eu.a.{n}.{n}-0").parse().unwrap();
        let entry = Entry { position, message: MessageId::new("m").unwrap(), payload: Bytes::from_static(&[0; 19]) };
        Arc::new(Publication::new(channel.clone(), entry))
    };
    let [mut one, mut two] = [(); 2].map(|()| window::Window::new(retention, budget.clone()));
    for n in 1..=5 {
        one.push(publication(n));
    }
    assert_eq!(one.first(), Some(1));
    two.push(publication(1));
    two.push(publication(2));
    assert_eq!((one.first(), two.first()), (Some(1), Some(2)), "the one that grows keeps its newest");
    one.push(publication(6));
    assert_eq!(one.first(), Some(3));
    drop(one);
    two.prepend(vec![publication(1)], 2);
    assert_eq!(two.first(), Some(1), "what is given back can be used");
}
