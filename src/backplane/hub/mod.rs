//! What the sessions of this node are subscribed to, and how entries come to them.
//!
//! A node asks the engine of each region to push a channel while a session of its own is subscribed to it, and each entry
//! is shared by all of them: one copy, of which each inbox holds a reference. For each channel at most one question to
//! each engine is under way, whoever waits for its answer, so that a thousand clients that come back at once cost one read.
//!
//! `channel.rs` decides for a channel and `log.rs` for one region's log of it, `work.rs` asks the engines, `inbox.rs` is
//! what waits for a session, `window.rs` the entries that this node has, and `copies.rs` which of them are the same message.
//! `values.rs` is for channels of which only the newest value of each key counts, and `conflated.rs` what is shared of these.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::Histogram;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::channels::ChannelRules;
use super::engine::{Channel, Engine, Entry};
use super::position::{EntryId, Position, Region};
use super::recover::ReplayLimit;
use super::rendered::Rendered;
use super::sink::{SinkLimit, sink};
use crate::metrics::BackplaneMetrics;
use crate::tunnel::Backlog;

mod channel;
mod conflated;
mod copies;
mod inbox;
mod log;
#[cfg(test)]
mod region_tests;
mod regions;
mod stood;
#[cfg(test)]
mod tests;
mod values;
mod window;
mod work;

pub use crate::tunnel::Depth;
pub use channel::From;
pub use conflated::{Form, Part};
pub use inbox::{InboxLimit, Notice};

use channel::{Local, OfRegion};
use copies::Copies;
use inbox::Inbox;
use log::Log;
use regions::OfHub;
use values::Values;
use window::Budget;

/// Of so many publications that a session takes the way of one is measured. The first is.
const SAMPLE_EVERY: u64 = 16;

/// What is older was not stored when its id says: nothing is kept for longer.
const OLDEST: Duration = Duration::from_secs(24 * 3600);

/// What the windows of all channels may have together, in bytes. Over it each channel keeps less, down to its newest entry.
const WINDOWS_BYTES: usize = 256 << 20;

/// An entry of a channel, as this node shares it among its sessions.
#[derive(Debug)]
pub struct Publication {
    /// The channel.
    pub channel: Channel,
    /// What the log has.
    pub entry: Entry,
    rendered: OnceLock<Option<Rendered>>,
}

impl Publication {
    pub(super) fn new(channel: Channel, entry: Entry) -> Self {
        Self { channel, entry, rendered: OnceLock::new() }
    }

    /// What WebSocket clients get of it, read and framed by the first who asks. `None`: what was stored is no item.
    pub fn rendered(&self) -> Option<&Rendered> {
        self.rendered.get_or_init(|| Rendered::of(&self.entry.payload)).as_ref()
    }

    /// Its number in the log.
    pub fn n(&self) -> u64 {
        self.entry.position.n
    }

    /// What it takes of a channel's bytes.
    fn size_bytes(&self) -> usize {
        self.entry.payload.len() + self.entry.message.as_str().len()
    }
}

/// Which regions' logs of a channel are read, as numbers in the list of them: ours is 0.
pub type Homes = Box<dyn Fn(&Channel) -> Option<usize> + Send + Sync>;

/// What is said of channels by their names.
pub struct ChannelPlan {
    /// The one region whose log of a channel is read, where that is so.
    pub homes: Homes,
    /// Of which only newest values count.
    pub rules: Arc<ChannelRules>,
}

impl Default for ChannelPlan {
    /// Of none anything.
    fn default() -> Self {
        Self { homes: Box::new(|_| None), rules: Arc::default() }
    }
}

impl std::fmt::Debug for ChannelPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChannelPlan").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// The channels of this node.
pub struct Hub {
    /// Ours first.
    regions: Vec<OfHub>,
    plan: ChannelPlan,
    channels: Mutex<BTreeMap<Channel, Arc<Mutex<Local>>>>,
    budget: Arc<Budget>,
    next_id: AtomicU64,
    chance: Mutex<SmallRng>,
    metrics: Arc<BackplaneMetrics>,
    myself: Weak<Self>,
}

impl Hub {
    /// A hub on the engines of regions, ours first, which all channels are read from. Tasks run until it is dropped: one for
    /// each engine takes what it pushes, one looks for channels that nobody wants any more.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn start(engines: Vec<Arc<dyn Engine>>, limit: SinkLimit, metrics: Arc<BackplaneMetrics>) -> Arc<Self> {
        Self::start_with(engines, ChannelPlan::default(), limit, metrics, rand::random())
    }

    /// The same, where some channels are read from one region alone, or have newest values.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn start_planned(
        engines: Vec<Arc<dyn Engine>>,
        plan: ChannelPlan,
        limit: SinkLimit,
        metrics: Arc<BackplaneMetrics>,
    ) -> Arc<Self> {
        Self::start_with(engines, plan, limit, metrics, rand::random())
    }

    /// The same with a seed of the pauses between questions, so that a test can play a schedule again.
    fn start_with(
        engines: Vec<Arc<dyn Engine>>,
        plan: ChannelPlan,
        limit: SinkLimit,
        metrics: Arc<BackplaneMetrics>,
        seed: u64,
    ) -> Arc<Self> {
        let (regions, sources): (Vec<_>, Vec<_>) = engines
            .into_iter()
            .map(|engine| {
                let (sink, source) = sink(limit);
                (OfHub { name: engine.region().clone(), engine, sink, clock: Arc::default() }, source)
            })
            .unzip();
        let hub = Arc::new_cyclic(|myself| Self {
            regions,
            plan,
            channels: Mutex::default(),
            budget: Arc::new(Budget::new(WINDOWS_BYTES)),
            next_id: AtomicU64::new(0),
            chance: Mutex::new(SmallRng::seed_from_u64(seed)),
            metrics,
            myself: myself.clone(),
        });
        for (nth, source) in sources.into_iter().enumerate() {
            tokio::spawn(work::take_pushed(hub.myself.clone(), nth, source));
        }
        tokio::spawn(work::look_for_forgotten(hub.myself.clone()));
        hub
    }

    /// A session joins, without a subscription yet.
    pub fn join(self: &Arc<Self>, limit: InboxLimit) -> Member {
        Member {
            hub: self.clone(),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            inbox: Arc::new(Inbox::new(limit, self.metrics.queued_bytes.clone())),
            channels: BTreeMap::new(),
            latency: None,
            taken: 0,
            began: BTreeMap::new(),
            form: Form::default(),
            served: None,
            values_next: false,
        }
    }

    /// How many channels the engine pushes to this node.
    pub fn channels(&self) -> usize {
        self.channels.lock().len()
    }

    /// How many sessions of this node are subscribed to a channel.
    pub fn subscribers(&self, channel: &Channel) -> usize {
        self.find(channel).map_or(0, |local| local.lock().subscribers())
    }

    fn find(&self, channel: &Channel) -> Option<Arc<Mutex<Local>>> {
        self.channels.lock().get(channel).cloned()
    }

    /// The channel's state, locked by the caller; made if there is none.
    fn find_or_make(&self, channel: &Channel) -> Arc<Mutex<Local>> {
        self.channels.lock().entry(channel.clone()).or_insert_with(|| Arc::new(Mutex::new(self.make(channel)))).clone()
    }

    fn make(&self, channel: &Channel) -> Local {
        let home = (self.plan.homes)(channel);
        let of_region = |(nth, region): (usize, &OfHub)| {
            let (engine, budget) = (&region.engine, self.budget.clone());
            let log = Log::new(engine.has_own_numbers(channel), engine.capabilities().retention, budget);
            OfRegion { region: region.name.clone(), nth, clock: region.clock.clone(), log }
        };
        let read = self.regions.iter().enumerate().filter(|(nth, _)| home.is_none_or(|home| home == *nth));
        let logs: Vec<OfRegion> = read.map(of_region).collect();
        if let Some(conflation) = self.plan.rules.conflation(channel).filter(|_| self.conflates(channel)) {
            let values = Values::new(channel.clone(), conflation.clone(), logs.len());
            return Local::of_values(channel.clone(), logs, values, now());
        }
        let windows = self.regions.iter().map(|region| region.engine.capabilities().dedupe_window);
        let window = windows.max().unwrap_or_default();
        let copies = (logs.len() > 1).then(|| Copies::new(window, self.budget.clone()));
        Local::new(channel.clone(), logs, copies, now())
    }

    /// Whether of a channel only the newest value of each key counts.
    pub fn conflates(&self, channel: &Channel) -> bool {
        let keeps = |of: &OfHub| of.engine.capabilities().latest && !of.engine.is_foreign(channel);
        self.plan.rules.conflation(channel).is_some() && self.regions.iter().all(keeps)
    }

    /// Says whether a region's engine can be reached, so that sessions hear of it. It is taken for reachable until then.
    pub fn set_reachable(&self, region: &Region, reachable: bool) {
        let Some(nth) = self.nth(region) else { return };
        if !self.regions.get(nth).is_some_and(|of| of.clock.set_reachable(reachable, now_ms())) {
            return;
        }
        let all: Vec<_> = self.channels.lock().values().cloned().collect();
        for local in all {
            let somebody_waits = local.lock().tell_region(nth, reachable);
            if somebody_waits {
                self.work(&local);
            }
        }
    }

    /// Says by how many milliseconds the clock of a region's engine is ahead of this node's. 0 until then.
    pub fn set_ahead(&self, region: &Region, ahead_ms: i64) {
        if let Some(of) = self.nth(region).and_then(|nth| self.regions.get(nth)) {
            of.clock.set_ahead(ahead_ms);
        }
    }

    /// The regions whose logs are read, ours first.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map(|of| &of.name)
    }

    fn nth(&self, region: &Region) -> Option<usize> {
        self.regions.iter().position(|of| of.name == *region)
    }

    /// Has the engines asked what the channel needs, unless somebody does so already.
    fn work(&self, local: &Arc<Mutex<Local>>) {
        let Some(hub) = self.myself.upgrade() else { return };
        let mut locked = local.lock();
        if locked.removed {
            return;
        }
        for at in 0..locked.logs() {
            if let Some(log) = locked.log_mut(at).filter(|log| !log.working) {
                log.working = true;
                tokio::spawn(work::ask(hub.clone(), local.clone(), at));
            }
        }
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("regions", &self.regions).finish_non_exhaustive()
    }
}

/// A session among the subscribers of a hub. Its subscriptions end when it is dropped.
#[derive(Debug)]
pub struct Member {
    hub: Arc<Hub>,
    id: u64,
    inbox: Arc<Inbox>,
    channels: BTreeMap<Channel, Arc<Mutex<Local>>>,
    /// Where it is told how long publications were on their way, and how many have come.
    latency: Option<Histogram>,
    taken: u64,
    /// Where each subscription began in the log of each region: what is replayed up to there was on its way for as long as its client was away.
    began: BTreeMap<Channel, Vec<(Region, EntryId)>>,
    /// What it is given newest values in.
    form: Form,
    /// The channel of newest values that it was given some of last.
    served: Option<Channel>,
    /// Whether these come before what is in the inbox: neither holds up the other.
    values_next: bool,
}

impl Member {
    /// Subscribes to a channel, from a place on. When it is in force in the log of a region there is a
    /// [`Notice::Subscribed`], and before that nothing of that log: an engine that cannot be reached is asked again until it
    /// can, and what was stored since is given then. A second subscription to a
    /// channel takes the place of the first.
    ///
    /// The caller bounds how many channels one session has.
    pub fn subscribe(&mut self, channel: &Channel, from: From, limit: ReplayLimit) {
        let local = loop {
            let local = self.hub.find_or_make(channel);
            let mut locked = local.lock();
            if !locked.removed {
                locked.subscribe(self.id, self.inbox.clone(), &from, limit, now_ms());
                drop(locked);
                break local;
            }
        };
        self.hub.work(&local);
        self.channels.insert(channel.clone(), local);
    }

    /// Ends a subscription. Nothing of the channel comes any more, nor what waited.
    pub fn unsubscribe(&mut self, channel: &Channel) {
        if let Some(local) = self.forget(channel) {
            local.lock().unsubscribe(self.id, now());
        }
    }

    /// How many channels it is subscribed to.
    pub fn subscriptions(&self) -> usize {
        self.channels.len()
    }

    /// Whether it is subscribed to a channel.
    pub fn is_subscribed(&self, channel: &Channel) -> bool {
        self.channels.contains_key(channel)
    }

    /// What comes next. Taking it makes room for more.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Notice> {
        for channel in self.inbox.hungry_for() {
            if let Some(local) = self.channels.get(&channel) {
                local.lock().feed(self.id);
            }
        }
        if std::mem::take(&mut self.values_next)
            && let Some(notice) = self.next_values()
        {
            return Poll::Ready(notice);
        }
        let notice = match self.inbox.poll_pop(cx) {
            Poll::Ready(notice) => notice,
            // Those that came before the waker was there did not wake it.
            Poll::Pending => return self.next_values().map_or(Poll::Pending, Poll::Ready),
        };
        self.values_next = true;
        match &notice {
            Notice::Subscribed { channel, top, .. } => {
                let began = self.began.entry(channel.clone()).or_default();
                began.retain(|(region, _)| *region != top.region);
                began.push((top.region.clone(), top.id));
            }
            Notice::Publication(publication) => self.measure(publication),
            Notice::Gap { .. } | Notice::Region { .. } | Notice::Values { .. } | Notice::Part(..) => {}
            Notice::Overrun(channel) => drop(self.forget(channel)),
        }
        Poll::Ready(notice)
    }

    /// What comes next of newest values.
    fn next_values(&mut self) -> Option<Notice> {
        // Those that have none after all are asked once.
        for _ in 0..=self.channels.len() {
            let channel = self.inbox.next_news(self.served.as_ref())?;
            let notice = match self.channels.get(&channel) {
                Some(local) => local.lock().take(self.id, self.form, &self.hub.metrics),
                None => {
                    self.inbox.no_news(&channel);
                    None
                }
            };
            self.served = Some(channel);
            if notice.is_some() {
                return notice;
            }
        }
        None
    }

    /// Whether of a channel only the newest value of each key counts.
    pub fn conflates(&self, channel: &Channel) -> bool {
        self.hub.conflates(channel)
    }

    /// What it is given newest values in.
    pub fn form(&mut self) -> &mut Form {
        &mut self.form
    }

    fn forget(&mut self, channel: &Channel) -> Option<Arc<Mutex<Local>>> {
        self.began.remove(channel);
        self.channels.remove(channel)
    }

    /// Tells how long a publication was on its way, if it is one of those that are measured.
    fn measure(&mut self, publication: &Publication) {
        let Some(latency) = &self.latency else { return };
        let Position { region, id, .. } = &publication.entry.position;
        let began = self.began.get(&publication.channel).and_then(|began| began.iter().find(|(of, _)| of == region));
        if began.is_none_or(|(_, began)| id <= began) {
            return;
        }
        let age = age(publication.entry.stored_ms(), SystemTime::now());
        // Who fills a stream by XADD may give ids that are no times.
        if self.taken.is_multiple_of(SAMPLE_EVERY) && age < OLDEST {
            latency.observe(age.as_secs_f64());
        }
        self.taken += 1;
    }

    /// Has it told how long publications were on their way from the engine to it, for some of them.
    #[must_use]
    pub fn measured(self, latency: Histogram) -> Self {
        let mut measured = self;
        measured.latency = Some(latency);
        measured
    }

    /// How much waits for it.
    pub fn depth(&self) -> Depth {
        self.inbox.depth()
    }

    /// The same for others to look at.
    pub fn backlog(&self) -> Arc<dyn Backlog> {
        self.inbox.clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let now = now();
        for local in self.channels.values() {
            local.lock().unsubscribe(self.id, now);
        }
    }
}

/// How long ago an entry was stored. By the clocks of two machines: what comes from the future has just been stored.
fn age(stored_ms: u64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(stored_ms))
}

/// This node's clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A test passes the time by Tokio's clock.
    #[cfg(test)]
    let since = since + now().saturating_duration_since(Instant::now());
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Tokio's clock, so that a test can pass the time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
