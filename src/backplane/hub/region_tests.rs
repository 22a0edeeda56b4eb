//! Two hubs on the engines of three regions that fail in every way, and publishers that try again elsewhere: seeded
//! schedules in paused time, and what must hold in all. `REGION_SCHEDULES` and `REGION_SEED` are as in `tests.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::tests::{ANY, Faulty, RETENTION, metrics, node};
use super::*;
use crate::backplane::engine::MessageId;
use crate::backplane::position::Position;
use crate::backplane::recover::Recovery;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];

/// What a client knows of one region's log.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The number behind which it is owed everything, since it subscribed first, or since a gap.
    owed: Option<u64>,
    /// Its cursor.
    place: Option<Position>,
    subscribed: bool,
}

/// A client over all its sessions, on one channel.
struct Client {
    member: Member,
    regions: BTreeMap<Region, Known>,
    /// What it got, and how often.
    got: BTreeMap<MessageId, usize>,
    gaps: usize,
    /// When it came without a place.
    began_ms: u64,
}

impl Client {
    fn new(hub: &Arc<Hub>, channel: &Channel, engines: &[Arc<Faulty>]) -> Self {
        let member = hub.join(InboxLimit::default());
        let mut client = Self { member, regions: BTreeMap::new(), got: BTreeMap::new(), gaps: 0, began_ms: 0 };
        client.begin(channel, engines);
        client
    }

    /// What comes from now on is owed to it, in regions that cannot be reached too.
    fn begin(&mut self, channel: &Channel, engines: &[Arc<Faulty>]) {
        self.began_ms = now_ms();
        for engine in engines {
            let owed = Some(engine.top(channel).n);
            self.regions.insert(engine.region.clone(), Known { owed, ..Known::default() });
        }
        self.member.subscribe(channel, From::Now, ANY);
    }

    /// Leaves, and comes back with what it has: a place in each region, if only a time.
    fn reconnect(&mut self, hub: &Arc<Hub>, channel: &Channel, engines: &[Arc<Faulty>]) {
        self.member = hub.join(InboxLimit::default());
        let places: Vec<_> = self.regions.values().filter_map(|known| known.place.clone()).collect();
        if places.is_empty() {
            // It was not told that its subscription is in force.
            return self.begin(channel, engines);
        }
        self.regions.values_mut().for_each(|known| known.subscribed = false);
        self.member.subscribe(channel, From::Places(places), ANY);
    }

    async fn take(&mut self, most: usize) {
        for _ in 0..most {
            let Some(notice) = poll_fn(|cx| self.member.poll_next(cx)).now_or_never() else { return };
            self.judge(notice);
        }
    }

    fn judge(&mut self, notice: Notice) {
        match notice {
            Notice::Values { .. } | Notice::Part(..) => panic!("no channel here has newest values"),
            Notice::Subscribed { top, recovery, since, .. } => {
                for place in since {
                    let known = self.regions.entry(place.region.clone()).or_default();
                    known.place.get_or_insert(place);
                }
                let known = self.regions.entry(top.region.clone()).or_default();
                assert!(!std::mem::replace(&mut known.subscribed, true), "told once of {}", top.region);
                match recovery {
                    Recovery::Live | Recovery::Gap(_) => {
                        if recovery != Recovery::Live {
                            self.gaps += 1;
                            known.owed = Some(top.n);
                        }
                        // What was stored while its subscription was made, in less than a second, it does not get.
                        let is_new = known.place.as_ref().is_none_or(|place| place.time().is_some());
                        if is_new && known.owed.is_some_and(|owed| owed < top.n) {
                            assert!(top.id.ms <= self.began_ms + 1_100, "it missed what came before {top}");
                            known.owed = Some(top.n);
                        }
                        known.place = Some(top);
                    }
                    Recovery::Replay { from, to } => {
                        assert_eq!(to, top.n);
                        if let Some(place) = known.place.as_ref().filter(|place| place.time().is_none()) {
                            assert_eq!(from, place.n + 1, "from where it was");
                        }
                        if from > to {
                            known.place = Some(top);
                        }
                    }
                }
            }
            Notice::Publication(publication) => {
                let position = publication.entry.position.clone();
                let known = self.regions.get_mut(&position.region).expect("it was subscribed to");
                assert!(known.subscribed, "nothing before the subscription");
                if let Some(place) = known.place.as_ref().filter(|place| place.time().is_none()) {
                    assert!(position.n > place.n, "in order: {position} behind {place}");
                }
                known.place = Some(position);
                *self.got.entry(publication.entry.message.clone()).or_default() += 1;
            }
            Notice::Gap { top, .. } => {
                self.gaps += 1;
                let known = self.regions.get_mut(&top.region).expect("it was subscribed to");
                (known.owed, known.place) = (Some(top.n), Some(top));
            }
            Notice::Region { .. } => {}
            Notice::Overrun(_) => panic!("there is room for all"),
        }
    }
}

async fn play(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    // A gentle schedule loses nothing and keeps within the retention, so there must be no gap. Where all regions answer, too,
    // nothing may come twice: what a region that does not answer has of before cannot be known.
    let (gentle, answering) = (seed.is_multiple_of(2), seed.is_multiple_of(4));
    let engines: Vec<_> = REGIONS.iter().map(|region| Faulty::in_region(region, seed)).collect();
    let channel = Channel::new("room").unwrap();
    let sink_limit = SinkLimit { max_entries: rng.random_range(1..50), max_bytes: 1 << 20 };
    let hubs = [0, 1].map(|number| {
        // Each node is in another region, so its own log is another.
        let ours = |nth: usize| node(&engines[(nth + number) % REGIONS.len()], number);
        Hub::start_with((0..REGIONS.len()).map(ours).collect(), ChannelPlan::default(), sink_limit, metrics(), seed)
    });
    let mut clients: Vec<Client> = (0..4).map(|at| Client::new(&hubs[at % 2], &channel, &engines)).collect();
    let (mut published, mut copied) = (0, BTreeSet::new());
    for _ in 0..rng.random_range(20..160) {
        let at = rng.random_range(0..clients.len());
        let region = rng.random_range(0..REGIONS.len());
        match rng.random_range(0..100) {
            0..25 => {
                if !gentle || published < RETENTION.max_entries / 2 {
                    published += 1;
                    engines[region].append(&channel, &format!("m{published}"));
                }
            }
            // No answer came, and the publisher tried another region.
            25..40 => {
                if !gentle || published < RETENTION.max_entries / 2 {
                    published += 1;
                    engines[region].append(&channel, &format!("m{published}"));
                    copied.insert(MessageId::new(&format!("m{published}")).unwrap());
                    if rng.random_bool(0.3) {
                        tokio::time::sleep(Duration::from_millis(rng.random_range(0..3000))).await;
                    }
                    engines[(region + rng.random_range(1..REGIONS.len())) % REGIONS.len()]
                        .append(&channel, &format!("m{published}"));
                }
            }
            40..52 => clients[at].reconnect(&hubs[rng.random_range(0..2)], &channel, &engines),
            52..72 => clients[at].take(rng.random_range(1..20)).await,
            72..78 => engines[region].state.lock().losing = rng.random_range(0..10),
            78..84 if !answering => engines[region].state.lock().failing = rng.random_range(0..11),
            84..87 => engines[region].confess(),
            87..89 if !gentle => engines[region].fail_over(rng.random_range(0..4)),
            89..92 if !answering => {
                for hub in &hubs {
                    hub.set_reachable(&engines[region].region, rng.random_bool(0.5));
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(rng.random_range(0..8000))).await,
        }
        tokio::task::yield_now().await;
    }
    for engine in &engines {
        let state = &mut *engine.state.lock();
        (state.failing, state.losing) = (0, 0);
    }
    engines.iter().for_each(|engine| engine.confess());
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        for client in &mut clients {
            client.take(usize::MAX).await;
        }
    }
    for client in &clients {
        assert!(!gentle || client.gaps == 0, "a gap without a loss");
        let (mut owed, mut older) = (BTreeSet::new(), BTreeSet::new());
        for engine in &engines {
            let known = client.regions.get(&engine.region).expect("each region comes into force");
            assert!(known.subscribed, "each region comes into force");
            let behind = known.owed.expect("since it is in force");
            let state = engine.state.lock();
            let log = state.logs.get(&channel).map_or(&[][..], Vec::as_slice);
            let of = |entry: &Entry| (entry.position.n > behind, entry.message.clone());
            for (is_owed, message) in log.iter().map(of) {
                if is_owed {
                    owed.insert(message)
                } else {
                    older.insert(message)
                };
            }
        }
        // What was in any log before it came, it has not missed.
        let owed = &owed - &older;
        // What it had before a gap is not owed again, and whether a copy was lost with the log is not known then.
        if client.gaps == 0 {
            let missing: Vec<_> = owed.iter().filter(|message| !client.got.contains_key(message)).collect();
            assert!(missing.is_empty(), "not delivered: {missing:?}");
            let twice: Vec<_> = client.got.iter().filter(|(_, times)| **times > 1).collect();
            assert!(!answering || twice.is_empty(), "delivered twice: {twice:?}");
            let is_copy = |message: &MessageId| copied.contains(message);
            assert!(twice.iter().all(|(message, times)| **times == 2 && is_copy(message)), "no copies: {twice:?}");
        } else {
            // The one of two copies that was chosen may be lost, which the gap tells.
            let is_there = |message: &MessageId| client.got.contains_key(message) || copied.contains(message);
            assert!(owed.iter().all(is_there), "not delivered behind a gap");
        }
    }
    clients.clear();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(hubs.map(|hub| hub.channels()), [0, 0], "nobody wants it any more");
    assert!(engines.iter().all(|engine| engine.state.lock().subscriptions.is_empty()));
}

#[test]
fn of_several_regions_each_message_comes_once_or_there_is_a_gap() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("REGION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("REGION_SCHEDULES").unwrap_or(300),
    };
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let played = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(play(seed))));
        assert!(played.is_ok(), "in schedule REGION_SEED={seed}");
    }
}

/// A client that comes back by a message is let into every log, also where all of it is here and no engine is asked: what
/// the message is to one log is found while another is looked at.
#[tokio::test(start_paused = true)]
async fn a_message_is_a_place_in_every_region_when_nothing_has_to_be_asked() {
    let engines: Vec<_> = REGIONS.iter().map(|region| Faulty::in_region(region, 1)).collect();
    let channel = Channel::new("room").unwrap();
    let sink_limit = SinkLimit { max_entries: 50, max_bytes: 1 << 20 };
    let nodes = engines.iter().map(|engine| node(engine, 0)).collect();
    let hub = Hub::start_with(nodes, ChannelPlan::default(), sink_limit, metrics(), 1);
    for (at, engine) in engines.iter().enumerate() {
        engine.append(&channel, &format!("m{at}"));
    }
    let mut members = Vec::new();
    for message in ["m0", "m1", "m2", "m0", "m1", "m2"] {
        let mut member = hub.join(InboxLimit::default());
        member.subscribe(&channel, From::Message(MessageId::new(message).unwrap()), ANY);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let mut regions = BTreeSet::new();
        while let Some(notice) = poll_fn(|cx| member.poll_next(cx)).now_or_never() {
            if let Notice::Subscribed { top, recovery, .. } = notice {
                assert!(matches!(recovery, Recovery::Replay { .. }), "behind {message}: {recovery:?}");
                regions.insert(top.region);
            }
        }
        assert_eq!(regions.len(), REGIONS.len(), "behind {message} in {regions:?}");
        // So that the channel stays as it is.
        members.push(member);
    }
}
