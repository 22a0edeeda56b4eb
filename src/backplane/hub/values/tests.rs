//! A hub with a channel of newest values, on an engine that fails and keeps little: seeded schedules in paused time.
//!
//! `HUB_SCHEDULES` is how many are played (100 by default), `HUB_SEED` plays one, which a failure names.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::broadcast;

use super::super::{ChannelPlan, From, Hub, InboxLimit, Member};
use super::*;
use crate::backplane::channels::{ChannelRule, ChannelRules};
use crate::backplane::engine::{
    Capabilities, Engine, EngineError, Event, Item, Key, MessageId, PublishError, Published, ReadLimit, Retention,
    Slice,
};
use crate::backplane::memory::{MemoryEngine, Settings};
use crate::backplane::position::Place;
use crate::backplane::recover::ReplayLimit;
use crate::backplane::sink::{Sink, SinkLimit};
use crate::grip::item::{Formats, Item as GripItem, WsMessage};
use crate::grip::meta::Meta;
use crate::grip::{Kind, Limits};
use crate::ws::header::{Sender, parse};

const ANY: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

/// An engine of which calls take a while and may fail, and whose log has room for a few entries.
#[derive(Debug)]
struct Unsteady {
    inner: MemoryEngine,
    rng: Mutex<StdRng>,
    /// Out of ten.
    failing: AtomicU32,
    /// How often it was asked for its newest values.
    asked: AtomicU32,
}

impl Unsteady {
    fn new(seed: u64, max_entries: usize) -> Arc<Self> {
        Self::of("eu", seed, max_entries)
    }

    fn of(region: &str, seed: u64, max_entries: usize) -> Arc<Self> {
        let retention = Retention { max_entries, ..Retention::default() };
        let settings = Settings { retention, ..Settings::default() };
        let inner = MemoryEngine::new(Region::new(region).unwrap(), settings).unwrap();
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Arc::new(Self { inner, rng, failing: AtomicU32::new(0), asked: AtomicU32::new(0) })
    }

    async fn answer(&self) -> Result<(), EngineError> {
        let (pause, chance) = {
            let mut rng = self.rng.lock();
            (rng.random_range(0..30), rng.random_range(0..10))
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if chance < self.failing.load(Ordering::Relaxed) { Err(EngineError::TimedOut) } else { Ok(()) }
    }

    async fn put(&self, channel: &Channel, key: &str, nth: u64) -> Position {
        let mut meta = Meta::default();
        meta.set("conflate-key", key, &Limits::default()).unwrap();
        let content = Bytes::from(format!("{key} {nth}"));
        let ws_message = Some(WsMessage::Send { kind: Kind::Text, content, content_filters: None });
        let formats = Formats { ws_message, ..Formats::default() };
        let of = channel.as_str().to_owned();
        let item = GripItem { channel: of, id: None, prev_id: None, no_seq: false, size: None, meta, formats };
        let mut payload = Vec::new();
        item.encode(&mut payload);
        let id = MessageId::new(&format!("m{nth}")).unwrap();
        let item = Item { id, key: Some(Key::new(key).unwrap()), payload: payload.into() };
        self.inner.publish(channel, &item).await.unwrap().position
    }
}

#[async_trait]
impl Engine for Unsteady {
    fn region(&self) -> &Region {
        self.inner.region()
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        self.inner.publish(channel, item).await
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        self.answer().await?;
        self.inner.subscribe(channel, sink).await
    }

    async fn unsubscribe(&self, channel: &Channel) {
        self.inner.unsubscribe(channel).await;
    }

    async fn read(&self, channel: &Channel, after: Option<&Position>, limit: ReadLimit) -> Result<Slice, EngineError> {
        let slice = self.inner.read(channel, after, limit).await;
        self.answer().await?;
        slice
    }

    async fn latest(&self, channel: &Channel) -> Result<Latest, EngineError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        // As it was a while ago.
        let latest = self.inner.latest(channel).await;
        self.answer().await?;
        latest
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events()
    }
}

fn metrics() -> Arc<BackplaneMetrics> {
    crate::metrics::Metrics::new().backplane(&["eu", "us"])
}

fn plan() -> ChannelPlan {
    let conflate = Some(Conflation::default());
    let rules = ChannelRules::new(vec![ChannelRule { prefix: "prices:".to_owned(), home: None, conflate }]);
    ChannelPlan { rules: Arc::new(rules), ..ChannelPlan::default() }
}

fn channel(name: &str) -> Channel {
    Channel::new(name).unwrap()
}

/// A session, and what it has.
struct Client {
    member: Member,
    /// By channel; nothing before it is told that its subscription is in force.
    got: BTreeMap<Channel, Option<BTreeMap<String, u64>>>,
    /// How many values it was told to follow.
    promised: usize,
    parts: usize,
}

impl Client {
    fn new(hub: &Arc<Hub>) -> Self {
        let member = hub.join(InboxLimit::default());
        Self { member, got: BTreeMap::new(), promised: 0, parts: 0 }
    }

    fn subscribe(&mut self, channel: &Channel, from: From) {
        self.member.subscribe(channel, from, ANY);
        self.got.insert(channel.clone(), None);
    }

    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let Some(notice) = poll_fn(|cx| self.member.poll_next(cx)).now_or_never() else { return };
            match notice {
                Notice::Values { channel, values, .. } => {
                    let got = self.got.get_mut(&channel).expect("it was asked for");
                    assert!(got.replace(BTreeMap::new()).is_none(), "told once");
                    self.promised = values;
                }
                Notice::Part(channel, part) => {
                    let got = self.got.get_mut(&channel).expect("it was asked for");
                    let got = got.as_mut().expect("nothing before the subscription");
                    self.parts += 1;
                    let mut frames = &part.frames[..];
                    while let Some((header, len)) = parse(frames, Sender::Server, false).unwrap() {
                        let end = len + header.payload_bytes as usize;
                        let text = std::str::from_utf8(&frames[len..end]).unwrap();
                        let (key, nth) = text.split_once(' ').unwrap();
                        let nth = nth.parse().unwrap();
                        let earlier = got.insert(key.to_owned(), nth).unwrap_or(0);
                        assert!(nth > earlier, "{key}: {nth} behind {earlier}");
                        frames = &frames[end..];
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn play(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let engines =
        [("eu", seed), ("us", seed + 1)].map(|(region, seed)| Unsteady::of(region, seed, rng.random_range(1..30)));
    // By how much one engine's clock is ahead of the other's, and a little: so long between two publications, and the later
    // one is the newer.
    let [near, far] = &engines;
    let (a, b) = (near.put(&channel("clock"), "x", 0).await, far.put(&channel("clock"), "x", 0).await);
    let apart = Duration::from_millis(a.id.ms.abs_diff(b.id.ms) + 1);
    let sink = SinkLimit { max_entries: rng.random_range(1..40), max_bytes: 1 << 20 };
    let regions = if seed.is_multiple_of(3) { 2 } else { 1 };
    let read = engines.iter().take(regions).map(|engine| engine.clone() as Arc<dyn Engine>).collect();
    let hub = Hub::start_with(read, plan(), sink, metrics(), seed);
    let channels = [channel("prices:a"), channel("prices:b")];
    let mut clients: Vec<Client> = (0..4).map(|_| Client::new(&hub)).collect();
    let mut expected: BTreeMap<Channel, BTreeMap<String, u64>> = BTreeMap::new();
    let mut nth = 0;
    for _ in 0..rng.random_range(20..200) {
        let channel = &channels[rng.random_range(0..2)];
        let at = rng.random_range(0..clients.len());
        match rng.random_range(0..100) {
            0..45 => {
                for _ in 0..rng.random_range(1..8) {
                    nth += 1;
                    let key = format!("k{}", rng.random_range(0..6));
                    tokio::time::sleep(if regions > 1 { apart } else { Duration::ZERO }).await;
                    engines[rng.random_range(0..regions)].put(channel, &key, nth).await;
                    expected.entry(channel.clone()).or_default().insert(key, nth);
                }
            }
            45..55 => {
                let from = if rng.random_bool(0.5) { From::Now } else { From::Place(Place::Start) };
                clients[at].subscribe(channel, from);
            }
            55..58 => {
                clients[at].member.unsubscribe(channel);
                clients[at].got.remove(channel);
            }
            58..61 => clients[at] = Client::new(&hub),
            61..80 => clients[at].take(rng.random_range(1..10)),
            80..85 => engines[rng.random_range(0..regions)].failing.store(rng.random_range(0..10), Ordering::Relaxed),
            _ => tokio::time::sleep(Duration::from_millis(rng.random_range(0..3000))).await,
        }
        tokio::task::yield_now().await;
    }
    engines.iter().for_each(|engine| engine.failing.store(0, Ordering::Relaxed));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        clients.iter_mut().for_each(|client| client.take(usize::MAX));
    }
    for client in &clients {
        for (channel, got) in &client.got {
            let got = got.as_ref().expect("a subscription comes into force");
            assert_eq!(got, expected.get(channel).unwrap_or(&BTreeMap::new()));
        }
    }
    clients.clear();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(hub.channels(), 0);
}

#[test]
fn whatever_an_engine_does_values_never_go_back_and_the_last_always_comes() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("HUB_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HUB_SCHEDULES").unwrap_or(100),
    };
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let played = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(play(seed))));
        assert!(played.is_ok(), "in schedule HUB_SEED={seed}");
    }
}

/// Lets the hub's tasks do what they have to, and no time pass that matters.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(40)).await;
}

#[tokio::test(start_paused = true)]
async fn it_ticks_only_while_something_is_new_for_somebody() {
    let (engine, metrics, prices) = (Unsteady::new(1, 100), metrics(), channel("prices:a"));
    let hub = Hub::start_planned(vec![engine.clone()], plan(), SinkLimit::default(), metrics.clone());
    let ticks = || metrics.conflation.ticks.get();
    engine.put(&prices, "x", 1).await;
    let mut client = Client::new(&hub);
    client.subscribe(&prices, From::Now);
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.take(usize::MAX);
    assert_eq!((client.promised, ticks()), (1, 1));
    // Ten of a key within one interval are one value.
    for nth in 2..=11 {
        engine.put(&prices, "x", nth).await;
    }
    settle().await;
    client.take(usize::MAX);
    assert_eq!((client.parts, ticks()), (1, 1), "not before the interval is over");
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.take(usize::MAX);
    assert_eq!((client.parts, ticks(), metrics.conflation.replaced.get()), (2, 2, 9));
    assert_eq!(client.got[&prices].as_ref().unwrap()["x"], 11);
    // Nobody is there: none, until somebody comes.
    drop(client);
    engine.put(&prices, "x", 12).await;
    engine.put(&prices, "y", 13).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ticks(), 2);
    let mut client = Client::new(&hub);
    client.subscribe(&prices, From::Now);
    settle().await;
    client.take(usize::MAX);
    assert_eq!((client.promised, client.parts, ticks()), (2, 1, 3), "what it is given first is new");
    assert_eq!(engine.asked.load(Ordering::Relaxed), 1, "the channel was as it was");
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_repaired_from_the_engines_values_and_nobody_is_told() {
    let (engine, metrics, prices) = (Unsteady::new(1, 2), metrics(), channel("prices:a"));
    let sink = SinkLimit { max_entries: 1, max_bytes: 1 << 20 };
    let hub = Hub::start_planned(vec![engine.clone()], plan(), sink, metrics.clone());
    let mut client = Client::new(&hub);
    client.subscribe(&prices, From::Now);
    settle().await;
    // More at once than the sink takes and the log retains.
    for nth in 1..=20 {
        engine.put(&prices, &format!("k{nth}"), nth).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    client.take(usize::MAX);
    assert_eq!(client.got[&prices].as_ref().unwrap().len(), 20);
    assert_eq!(engine.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_says_of_a_loss_has_the_values_read_anew() {
    let (engine, prices) = (Unsteady::new(1, 100), channel("prices:a"));
    let hub = Hub::start_planned(vec![engine.clone()], plan(), SinkLimit::default(), metrics());
    let mut client = Client::new(&hub);
    client.subscribe(&prices, From::Now);
    engine.put(&prices, "x", 1).await;
    settle().await;
    let item = Item { id: MessageId::new("lost").unwrap(), key: None, payload: Bytes::from_static(LOST) };
    engine.inner.publish(&prices, &item).await.unwrap();
    engine.put(&prices, "x", 2).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    client.take(usize::MAX);
    assert_eq!(client.got[&prices].as_ref().unwrap()["x"], 2);
    assert_eq!(engine.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn who_is_subscribed_to_both_kinds_of_channels_is_served_of_both() {
    let (engine, prices, room) = (Unsteady::new(1, 1000), channel("prices:a"), channel("room:a"));
    let hub = Hub::start_planned(vec![engine.clone()], plan(), SinkLimit::default(), metrics());
    assert!(hub.conflates(&prices) && !hub.conflates(&room));
    let mut client = hub.join(InboxLimit::default());
    client.subscribe(&prices, From::Now, ANY);
    client.subscribe(&room, From::Now, ANY);
    settle().await;
    for nth in 1..=50 {
        engine.put(&room, "x", nth).await;
        engine.put(&prices, "x", 1000 + nth).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut kinds = String::new();
    while let Some(notice) = poll_fn(|cx| client.poll_next(cx)).now_or_never() {
        kinds.push(match notice {
            Notice::Subscribed { .. } => 's',
            Notice::Publication(_) => 'm',
            Notice::Values { .. } => 'v',
            Notice::Part(..) => 'p',
            other => panic!("{other:?}"),
        });
    }
    assert_eq!((kinds.matches('m').count(), kinds.matches('p').count()), (50, 1));
    assert!(kinds.find('p') < Some(6), "values do not wait behind messages: {kinds}");
}

#[tokio::test(start_paused = true)]
async fn a_region_that_does_not_answer_holds_up_nobody_and_its_values_come_later() {
    let (near, far, prices) = (Unsteady::of("eu", 1, 100), Unsteady::of("us", 2, 100), channel("prices:a"));
    near.put(&prices, "x", 1).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    far.put(&prices, "x", 2).await;
    far.put(&prices, "y", 3).await;
    far.failing.store(10, Ordering::Relaxed);
    let hub = Hub::start_planned(vec![near.clone(), far.clone()], plan(), SinkLimit::default(), metrics());
    let mut client = Client::new(&hub);
    client.subscribe(&prices, From::Now);
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.take(usize::MAX);
    let got = |client: &Client| client.got[&prices].clone().unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!((got(&client), client.promised), (vec![("x".to_owned(), 1)], 1));
    far.failing.store(0, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    client.take(usize::MAX);
    assert_eq!(got(&client), [("x".to_owned(), 2), ("y".to_owned(), 3)]);
    // Where both answer, what they have is given at once.
    let mut late = Client::new(&hub);
    late.subscribe(&prices, From::Now);
    settle().await;
    late.take(usize::MAX);
    assert_eq!((got(&late).len(), late.promised, late.parts), (2, 2, 1));
}
