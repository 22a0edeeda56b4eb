//! What the sessions of this node are subscribed to, and how entries come to them.
//!
//! A node asks the engine to push a channel while a session of its own is subscribed to it, and each entry is shared by
//! all of them: one copy, of which each inbox holds a reference. For each channel at most one question to the engine is
//! under way, whoever waits for its answer, so that a thousand clients that come back at once cost one read.
//!
//! `channel.rs` decides, `work.rs` asks the engine, `inbox.rs` is what waits for a session, and `window.rs` the entries
//! that this node has. `values.rs` is for channels of which only the newest value of each key counts, and `conflated.rs`
//! what is shared of these.

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
use super::engine::{Channel, Engine, Entry, Retention};
use super::position::EntryId;
use super::recover::ReplayLimit;
use super::rendered::Rendered;
use super::sink::{Sink, SinkLimit, sink};
use crate::metrics::BackplaneMetrics;
use crate::tunnel::Backlog;

mod channel;
mod conflated;
mod inbox;
#[cfg(test)]
mod tests;
mod values;
mod window;
mod work;

pub use crate::tunnel::Depth;
pub use channel::From;
pub use conflated::{Form, Part};
pub use inbox::{InboxLimit, Notice};

use channel::Local;
use inbox::Inbox;
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

/// The channels of this node, on one engine.
#[derive(Debug)]
pub struct Hub {
    engine: Arc<dyn Engine>,
    sink: Sink,
    channels: Mutex<BTreeMap<Channel, Arc<Mutex<Local>>>>,
    rules: Arc<ChannelRules>,
    retention: Retention,
    budget: Arc<Budget>,
    next_id: AtomicU64,
    chance: Mutex<SmallRng>,
    metrics: Arc<BackplaneMetrics>,
    myself: Weak<Self>,
}

impl Hub {
    /// A hub on an engine. Two tasks run until it is dropped: one takes what the engine pushes, one looks for channels
    /// that nobody wants any more.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn start(
        engine: Arc<dyn Engine>,
        rules: Arc<ChannelRules>,
        limit: SinkLimit,
        metrics: Arc<BackplaneMetrics>,
    ) -> Arc<Self> {
        Self::start_with(engine, rules, limit, metrics, rand::random())
    }

    /// The same with a seed of the pauses between questions, so that a test can play a schedule again.
    fn start_with(
        engine: Arc<dyn Engine>,
        rules: Arc<ChannelRules>,
        limit: SinkLimit,
        metrics: Arc<BackplaneMetrics>,
        seed: u64,
    ) -> Arc<Self> {
        let (sink, source) = sink(limit);
        let retention = engine.capabilities().retention;
        let hub = Arc::new_cyclic(|myself| Self {
            engine,
            sink,
            channels: Mutex::default(),
            rules,
            retention,
            budget: Arc::new(Budget::new(WINDOWS_BYTES)),
            next_id: AtomicU64::new(0),
            chance: Mutex::new(SmallRng::seed_from_u64(seed)),
            metrics,
            myself: myself.clone(),
        });
        tokio::spawn(work::take_pushed(hub.myself.clone(), source));
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
            form: Form::Plain,
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
        let is_foreign = self.engine.is_foreign(channel);
        let make = || {
            let values = self.values(channel);
            let local = Local::new(channel.clone(), values, is_foreign, self.retention, self.budget.clone(), now());
            Arc::new(Mutex::new(local))
        };
        self.channels.lock().entry(channel.clone()).or_insert_with(make).clone()
    }

    /// Whether of a channel only the newest value of each key counts.
    pub fn conflates(&self, channel: &Channel) -> bool {
        self.rules.conflation(channel).is_some()
            && self.engine.capabilities().latest
            && !self.engine.is_foreign(channel)
    }

    fn values(&self, channel: &Channel) -> Option<Values> {
        let conflation = self.rules.conflation(channel).filter(|_| self.conflates(channel))?;
        Some(Values::new(channel.clone(), conflation.clone()))
    }

    /// Has the engine asked what the channel needs, unless somebody does so already.
    fn work(&self, local: &Arc<Mutex<Local>>) {
        {
            let mut local = local.lock();
            if local.working || local.removed {
                return;
            }
            local.working = true;
        }
        if let Some(hub) = self.myself.upgrade() {
            tokio::spawn(work::ask(hub, local.clone()));
        }
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
    /// Where each subscription began: what is replayed up to there was on its way for as long as its client was away.
    began: BTreeMap<Channel, EntryId>,
    /// What it is given newest values in.
    form: Form,
    /// The channel of newest values that it was given some of last.
    served: Option<Channel>,
    /// Whether these come before what is in the inbox: neither holds up the other.
    values_next: bool,
}

impl Member {
    /// Subscribes to a channel, from a place on. When it is in force there is a [`Notice::Subscribed`], and before that
    /// nothing of the channel: an engine that cannot be reached is asked again until it can. A second subscription to a
    /// channel takes the place of the first.
    ///
    /// The caller bounds how many channels one session has.
    pub fn subscribe(&mut self, channel: &Channel, from: From, limit: ReplayLimit) {
        let local = loop {
            let local = self.hub.find_or_make(channel);
            let mut locked = local.lock();
            if !locked.removed {
                locked.subscribe(self.id, self.inbox.clone(), from, limit);
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
            Notice::Subscribed { channel, top, .. } => drop(self.began.insert(channel.clone(), top.id)),
            Notice::Publication(publication) => self.measure(publication),
            Notice::Gap { .. } | Notice::Values { .. } | Notice::Part(..) => {}
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

    /// Has newest values given to it in another form than that of contents alone.
    pub fn set_form(&mut self, form: Form) {
        self.form = form;
    }

    fn forget(&mut self, channel: &Channel) -> Option<Arc<Mutex<Local>>> {
        self.began.remove(channel);
        self.channels.remove(channel)
    }

    /// Tells how long a publication was on its way, if it is one of those that are measured.
    fn measure(&mut self, publication: &Publication) {
        let Some(latency) = &self.latency else { return };
        if self.began.get(&publication.channel).is_none_or(|began| publication.entry.position.id <= *began) {
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

/// Tokio's clock, so that a test can pass the time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
