//! One channel on this node: who is subscribed, how far each region's log of it has come, and what has to be asked next.
//!
//! No I/O: [`Local::next_task`] says what to ask, and the `on_` functions take what came. Whatever comes from the engines,
//! and in whatever order, a subscriber gets each entry behind its place once and in the order of its log, or a gap. Logs
//! of several regions are one beside the other: each is asked, repaired and resumed by itself, so that one that cannot be
//! reached holds up none. What they have in common is `copies.rs`: a message that is in two of them is delivered once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Publication;
use super::conflated::Form;
use super::copies::Copies;
use super::inbox::{Inbox, Notice};
use super::log::{Log, Task, Want};
use super::regions::Clock;
use super::stood::{Stand, Stood, has_copy};
use super::values::Values;
use crate::backplane::engine::{Channel, Entry, Latest, MessageId, Slice};
use crate::backplane::position::{Place, Position, Region};
use crate::backplane::recover::{Recovery, ReplayLimit};
use crate::metrics::{BackplaneMetrics, SubscriptionMark};

/// How long a channel that nobody is subscribed to is kept: clients that reconnect find it as it was.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A repair takes whatever was missed.
const WHOLE: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

/// A subscriber that waited for so long for a log gets what was stored meanwhile, once it is there.
const WAITED_MS: u64 = 1_000;

/// From where on a subscriber wants a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// What comes from now on.
    #[default]
    Now,
    /// What comes behind this place in the log of its region. In the others: what was stored since a little before it.
    Place(Place),
    /// What comes behind these places, one of each region; of a region without one, what was stored since a little before
    /// the latest of them.
    Places(Vec<Position>),
    /// What comes behind the newest entry with this message id; in other regions than that entry's, what was stored since
    /// a little before it.
    Message(MessageId),
}

impl From {
    fn is_now(&self) -> bool {
        match self {
            Self::Now | Self::Place(Place::Now) => true,
            Self::Places(places) => places.is_empty(),
            Self::Place(_) | Self::Message(_) => false,
        }
    }
}

#[derive(Debug)]
struct Subscriber {
    inbox: Arc<Inbox>,
    /// Where it stands in each of the channel's logs.
    stood: Box<[Stood]>,
    /// When it subscribed, in milliseconds since 1970 by this node's clock.
    at_ms: u64,
    /// Whether it asked for something of before.
    resumes: bool,
    /// Since it is in force in any log.
    mark: Option<SubscriptionMark>,
}

#[derive(Debug)]
pub(super) struct Local {
    pub(super) name: Channel,
    subscribers: BTreeMap<u64, Subscriber>,
    /// One for each region that the channel is read from.
    logs: Vec<OfRegion>,
    /// Where there is more than one log.
    copies: Option<Copies>,
    /// Where only newest values count: these have the subscribers, and windows stay empty.
    values: Option<Box<Values>>,
    idle_since: Option<Instant>,
    /// Whether it was taken out of the hub: who holds it looks for the channel anew.
    pub(super) removed: bool,
    /// Whether more is known of a subscriber's place in one log than when the others were last looked at: it may wait there
    /// for just that.
    moved: bool,
}

/// One region's log of the channel.
#[derive(Debug)]
pub(super) struct OfRegion {
    pub(super) region: Region,
    /// Which of the hub's regions it is.
    pub(super) nth: usize,
    pub(super) clock: Arc<Clock>,
    pub(super) log: Log,
}

impl Local {
    pub(super) fn new(name: Channel, logs: Vec<OfRegion>, copies: Option<Copies>, now: Instant) -> Self {
        let subscribers = BTreeMap::new();
        Self { name, subscribers, logs, copies, values: None, idle_since: Some(now), removed: false, moved: false }
    }

    /// The same of a channel of which only newest values count.
    pub(super) fn of_values(name: Channel, logs: Vec<OfRegion>, values: Values, now: Instant) -> Self {
        Self { values: Some(Box::new(values)), ..Self::new(name, logs, None, now) }
    }

    /// Its newest values, where only these count.
    pub(super) fn values(&mut self) -> Option<&mut Values> {
        self.values.as_deref_mut()
    }

    pub(super) fn log(&self, at: usize) -> Option<&OfRegion> {
        self.logs.get(at)
    }

    pub(super) fn log_mut(&mut self, at: usize) -> Option<&mut Log> {
        self.logs.get_mut(at).map(|of| &mut of.log)
    }

    /// Which of its logs is that of a region.
    pub(super) fn log_of(&self, nth: usize) -> Option<usize> {
        self.logs.iter().position(|of| of.nth == nth)
    }

    pub(super) fn logs(&self) -> usize {
        self.logs.len()
    }

    pub(super) fn subscribe(&mut self, id: u64, inbox: Arc<Inbox>, from: &From, limit: ReplayLimit, at_ms: u64) {
        self.idle_since = None;
        inbox.forget(&self.name);
        let wants = self.wants(from);
        let waiting = |want| Stood {
            stand: Stand::Waiting { want, limit, checked: false },
            had: 0,
            start: u64::MAX,
            others: Box::default(),
        };
        let stood = wants.into_iter().map(waiting).collect();
        for of in &self.logs {
            if !of.clock.is_reachable() {
                inbox.tell_region(&of.region, false);
            }
        }
        if let Some(values) = &mut self.values {
            return values.subscribe(id, inbox, !from.is_now());
        }
        self.subscribers.insert(id, Subscriber { inbox, stood, at_ms, resumes: !from.is_now(), mark: None });
    }

    /// From where on a subscriber wants each log.
    fn wants(&self, from: &From) -> Vec<Want> {
        let places = match from {
            From::Now | From::Place(Place::Now) => return vec![Want::Now; self.logs.len()],
            From::Place(Place::Start) => return vec![Want::Place(Place::Start); self.logs.len()],
            From::Message(message) => return vec![Want::Message(message.clone()); self.logs.len()],
            From::Place(Place::After(position)) => std::slice::from_ref(position),
            From::Places(places) => places.as_slice(),
        };
        let at = |of: &OfRegion| places.iter().find(|position| position.region == of.region);
        let times = self.logs.iter().filter_map(|of| Some(of.clock.to_node(at(of)?.id.ms)));
        let latest = times.max();
        let of_log = |(nth, of): (usize, &OfRegion)| match (at(of), latest) {
            (Some(position), _) if position.time().is_some() => position.time().map_or(Want::Now, Want::Since),
            (Some(position), _) if of.log.own_numbers => Want::Entry(position.id),
            (Some(position), _) => Want::Place(Place::After(position.clone())),
            (None, Some(latest)) => Want::Since(of.clock.since(latest)),
            // Of regions that nobody reads here: nothing can be proven.
            (None, None) if nth == 0 => {
                places.first().map_or(Want::Now, |position| Want::Place(Place::After(position.clone())))
            }
            (None, None) => Want::Now,
        };
        self.logs.iter().enumerate().map(of_log).collect()
    }

    pub(super) fn unsubscribe(&mut self, id: u64, now: Instant) {
        if let Some(subscriber) = self.subscribers.remove(&id) {
            subscriber.inbox.forget(&self.name);
        }
        if let Some(values) = &mut self.values {
            values.unsubscribe(id);
        }
        if self.subscribers() == 0 {
            self.idle_since.get_or_insert(now);
        }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.subscribers.len() + self.values.as_ref().map_or(0, |values| values.subscribers())
    }

    /// Tells all subscribers that a region that the channel is read from can be reached, or not any more. Whether somebody
    /// waits for what can be known without it.
    pub(super) fn tell_region(&self, nth: usize, reachable: bool) -> bool {
        let Some(of) = self.logs.iter().find(|of| of.nth == nth) else { return false };
        if let Some(values) = &self.values {
            return values.tell_region(&of.region, reachable);
        }
        for subscriber in self.subscribers.values() {
            subscriber.inbox.tell_region(&of.region, reachable);
        }
        self.subscribers.values().any(|subscriber| subscriber.stood.iter().any(Stood::waits))
    }

    /// Whether nobody has wanted it for so long that it can go.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        self.idle_since.is_some_and(|since| now.duration_since(since) >= LINGER)
    }

    /// Whether it can go now: no engine pushes it, nor will.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.is_forgotten(now) && self.logs.iter().all(|of| !of.log.asked)
    }

    /// What to ask the engine of a log, if anything. Marks what the answer will cover.
    pub(super) fn next_task(&mut self, at: usize, now: Instant, now_ms: u64) -> Option<Task> {
        if self.is_forgotten(now) {
            return self.log(at).filter(|of| of.log.asked).map(|_| Task::Leave);
        }
        self.find_messages(at);
        self.count_waiting(at, now_ms);
        let several = self.logs.len() > 1;
        let log = self.logs.get_mut(at).map(|of| &mut of.log)?;
        let Some(last) = log.last.clone() else {
            log.asked = true;
            return Some(Task::Open);
        };
        if let Some(values) = self.values.as_ref().filter(|values| !values.is_loaded(at)) {
            // What was missed is among them. What comes while they are read counts anew.
            (log.disrupted, log.seen) = (false, last.n);
            return Some(Task::Latest(values.came()));
        }
        let mut ahead = false;
        for subscriber in self.subscribers.values_mut() {
            let Some(Stood { stand: Stand::Waiting { want, checked, .. }, .. }) = subscriber.stood.get_mut(at) else {
                continue;
            };
            // Where a message is that is not here is known when all is here that came before.
            if matches!(want, Want::Message(_)) && !log.filled {
                continue;
            }
            ahead |= !*checked && log.is_beyond(want);
            self.moved |= !*checked;
            *checked = true;
        }
        if log.disrupted || log.seen > last.n || ahead {
            // What comes while it is read counts anew.
            (log.disrupted, log.seen) = (false, last.n);
            return Some(Task::ReadOn(last));
        }
        let needs_history = |subscriber: &Subscriber| {
            let stand = subscriber.stood.get(at).map(|stood| &stood.stand);
            matches!(stand, Some(Stand::Waiting { want, .. }) if log.needs_history(want))
        };
        // What comes back to one log may be in another, which says so only where it is known.
        let comes_back =
            |subscriber: &Subscriber| several && subscriber.resumes && subscriber.stood.iter().any(Stood::waits);
        let needs_history = |subscriber: &Subscriber| needs_history(subscriber) || comes_back(subscriber);
        (!log.filled && self.subscribers.values().any(needs_history)).then_some(Task::Fill)
    }

    /// Who has waited for a log for long, since it could not be reached or read, gets what was stored since it came.
    fn count_waiting(&mut self, at: usize, now_ms: u64) {
        let Some(of) = self.logs.get(at) else { return };
        for subscriber in self.subscribers.values_mut() {
            if now_ms.saturating_sub(subscriber.at_ms) < WAITED_MS {
                continue;
            }
            if let Some(Stood { stand: Stand::Waiting { want: want @ Want::Now, .. }, .. }) =
                subscriber.stood.get_mut(at)
            {
                *want = Want::Since(of.clock.to_engine(subscriber.at_ms).saturating_sub(WAITED_MS));
            }
        }
    }

    /// Where a message that a subscriber had last is in the log of another region, its place there is a time here.
    fn find_messages(&mut self, at: usize) {
        if self.logs.len() == 1 {
            return;
        }
        let mut found = Vec::new();
        for (id, subscriber) in &self.subscribers {
            let Some(Stand::Waiting { want: Want::Message(message), .. }) =
                subscriber.stood.get(at).map(|stood| &stood.stand)
            else {
                continue;
            };
            let Some(here) = self.logs.get(at).filter(|of| of.log.find(message).is_none()) else { continue };
            let others = self.logs.iter().filter(|of| of.nth != here.nth);
            let time =
                others.filter_map(|of| of.log.find(message).map(|position| of.clock.to_node(position.id.ms))).max();
            if let Some(time) = time {
                found.push((*id, Want::Since(here.clock.since(time))));
            }
        }
        for (id, since) in found {
            let stood = self.subscribers.get_mut(&id).and_then(|subscriber| subscriber.stood.get_mut(at));
            if let Some(Stood { stand: Stand::Waiting { want, .. }, .. }) = stood {
                *want = since;
                self.moved = true;
            }
        }
    }

    /// Whether who waits for other logs may be told more than when this was last asked.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Whether another log than this is on its way here with what it has of before, up to where the subscriber has it: of two
    /// copies of a message only one that is known can be left out. A log that cannot be reached, or does not answer, is
    /// not waited for.
    fn awaits_others(&self, at: usize, stood: &[Stood]) -> bool {
        let is_coming = |of: &OfRegion, stood: &Stood| {
            let log = &of.log;
            let beyond = match &stood.stand {
                Stand::Waiting { want, .. } => log.working && log.is_beyond(want),
                Stand::Live | Stand::Behind { .. } => false,
            };
            let unknown = log.last.is_none() || !log.filled || log.disrupted || beyond;
            of.clock.is_reachable() && !log.failing && unknown
        };
        self.logs.iter().zip(stood).enumerate().any(|(nth, (of, stood))| nth != at && is_coming(of, stood))
    }

    /// From when on a subscriber is to have the logs that it waits for and has no place in, but this.
    fn waited_for(&self, at: usize, stood: &[Stood], at_ms: u64) -> Vec<Position> {
        let others = self.logs.iter().zip(stood).enumerate().filter(|(nth, _)| *nth != at);
        let since = others.filter_map(|(_, (of, stood))| {
            let ms = match &stood.stand {
                Stand::Waiting { want: Want::Now, .. } => of.clock.since(at_ms),
                Stand::Waiting { want: Want::Since(ms), .. } => *ms,
                Stand::Waiting { .. } | Stand::Live | Stand::Behind { .. } => return None,
            };
            Some(Position::at_time(of.region.clone(), ms))
        });
        since.collect()
    }

    /// The engine pushes what comes behind `position`.
    pub(super) fn on_opened(&mut self, at: usize, position: Position) {
        let Some(of) = self.logs.get_mut(at) else { return };
        of.log.on_opened(position);
        if let Some(values) = &mut self.values {
            values.unload(at);
        }
    }

    /// The engine does not push any more.
    pub(super) fn on_left(&mut self, at: usize) {
        if let Some(log) = self.log_mut(at) {
            (log.last, log.asked) = (None, false);
        }
    }

    /// The engine answered, or did not: what was to be read still has to be then.
    pub(super) fn on_answered(&mut self, at: usize, task: &Task, answered: bool) {
        if let Some(log) = self.log_mut(at) {
            log.failing = !answered;
            log.disrupted |= !answered && matches!(task, Task::ReadOn(_));
        }
    }

    pub(super) fn on_disrupted(&mut self, at: usize) {
        if let Some(log) = self.log_mut(at) {
            log.disrupted = true;
        }
    }

    /// An entry was pushed.
    pub(super) fn on_entry(&mut self, at: usize, entry: Entry, metrics: &BackplaneMetrics, now: Instant) {
        let Some(log) = self.log_mut(at) else { return };
        // Before it is known where pushing begins: reading on from there tells what of this is to be had.
        if log.last.is_none() {
            log.seen = log.seen.max(entry.position.n);
        }
        let Some(last) = &log.last else { return };
        // Where nobody numbers the entries, an id tells more than a number does.
        if log.own_numbers && entry.position.id <= last.id {
            metrics.duplicates.inc();
            return;
        }
        let n = entry.position.n;
        log.seen = log.seen.max(n);
        // Of another epoch: the log may have lost its end, and numbers be given out again. Reading tells.
        if entry.position.epoch != last.epoch && last.n > 0 {
            log.disrupted = true;
        } else if n == last.n + 1 {
            self.deliver(at, entry, metrics, now);
        } else if n <= last.n {
            metrics.duplicates.inc();
        }
    }

    fn deliver(&mut self, at: usize, entry: Entry, metrics: &BackplaneMetrics, now: Instant) {
        let Some(OfRegion { log, .. }) = self.logs.get_mut(at) else { return };
        log.last = Some(entry.position.clone());
        if let Some(values) = &mut self.values {
            return values.on_entry(at, entry);
        }
        let publication = Arc::new(Publication::new(self.name.clone(), entry));
        let several = self.copies.as_mut().is_some_and(|copies| copies.note(at, &publication, now));
        let copies = self.copies.as_ref().filter(|_| several);
        if several {
            metrics.duplicates.inc();
        }
        for subscriber in self.subscribers.values_mut() {
            let Subscriber { inbox, stood, .. } = subscriber;
            if !stood.get(at).is_some_and(|stood| matches!(stood.stand, Stand::Live)) {
                continue;
            }
            if copies.is_some_and(|copies| has_copy(copies, stood, at, &publication)) {
                continue;
            }
            if !inbox.push(&publication)
                && let Some(stood) = stood.get_mut(at)
            {
                inbox.fell_behind(&self.name, now);
                stood.stand = Stand::Behind { next: publication.n() };
            }
        }
        log.window.push(publication);
    }

    /// The engine's answer to [`Task::ReadOn`], which asked for what lies behind `after`.
    pub(super) fn on_read(
        &mut self,
        at: usize,
        after: &Position,
        slice: Slice,
        metrics: &BackplaneMetrics,
        now: Instant,
    ) {
        match slice.recover(&Place::After(after.clone()), WHOLE) {
            Recovery::Live | Recovery::Replay { .. } => {
                if let Some(log) = self.log_mut(at) {
                    log.seen = log.seen.max(slice.log.top);
                }
                for entry in slice.entries {
                    let Some(log) = self.log_mut(at) else { return };
                    let Some(last) = &log.last else { return };
                    if entry.position.n == last.n && entry.position.id != last.id {
                        // What was pushed meanwhile is not what the log has now.
                        log.disrupted = true;
                        return;
                    }
                    if entry.position.n == last.n + 1 {
                        self.deliver(at, entry, metrics, now);
                    }
                }
            }
            Recovery::Gap(_) if self.values.is_some() => {
                if let (Some(values), Some(of)) = (&mut self.values, self.logs.get_mut(at)) {
                    values.unload(at);
                    of.log.last = Some(slice.top);
                }
            }
            Recovery::Gap(why) => {
                let Some(OfRegion { nth, log, .. }) = self.logs.get_mut(at) else { return };
                metrics.gap(*nth, why);
                log.window.clear();
                log.filled = false;
                // What came meanwhile is read once more, from the new top on.
                log.disrupted |= log.last.as_ref() != Some(after);
                log.seen = log.seen.max(slice.top.n);
                if let Some(copies) = &mut self.copies {
                    copies.forget_log(at);
                }
                let several = self.logs.len() > 1;
                for subscriber in self.subscribers.values_mut() {
                    let Some(stood) = subscriber.stood.get_mut(at).filter(|stood| !stood.waits()) else { continue };
                    let (channel, top) = (self.name.clone(), slice.top.clone());
                    stood.live_from(slice.top.n);
                    // What it is behind with in other logs, it is fed on.
                    if !several || !subscriber.is_behind() {
                        subscriber.inbox.caught_up(&channel);
                    }
                    subscriber.inbox.tell(Notice::Gap { channel, why, top });
                }
                if let Some(log) = self.log_mut(at) {
                    log.last = Some(slice.top);
                }
            }
        }
    }

    /// What the engine has of the channel up to what is here of it, the oldest first.
    pub(super) fn on_filled(&mut self, at: usize, entries: Vec<Entry>, now: Instant) {
        let name = self.name.clone();
        let Some(OfRegion { log, .. }) = self.logs.get_mut(at) else { return };
        let before = log.on_filled(entries, |entry| Arc::new(Publication::new(name.clone(), entry)));
        if let Some(copies) = &mut self.copies {
            for publication in log.window.up_to(before) {
                copies.note(at, publication, now);
            }
        }
    }

    /// The engine's answer to [`Task::Latest`].
    pub(super) fn on_latest(&mut self, at: usize, asked: u64, latest: Latest) {
        let (Some(values), Some(OfRegion { log, .. })) = (&mut self.values, self.logs.get_mut(at)) else { return };
        let Some(last) = &log.last else { return };
        log.seen = log.seen.max(latest.top.n);
        // Nothing came meanwhile, or the engine has seen it: it goes on from there. Otherwise from what came.
        if values.came() == asked || latest.top.n > last.n {
            log.last = Some(latest.top.clone());
        }
        values.on_latest(at, asked, latest);
    }

    /// What comes next of newest values for a subscriber.
    pub(super) fn take(&mut self, id: u64, form: Form, metrics: &BackplaneMetrics) -> Option<Notice> {
        self.values.as_mut()?.take(id, form, metrics)
    }

    /// Whether something was missed of a log, as far as what was pushed tells.
    pub(super) fn needs_reading(&self, at: usize) -> bool {
        let Some(log) = self.log(at).map(|of| &of.log) else { return false };
        let unloaded = self.values.as_ref().is_some_and(|values| !values.is_loaded(at));
        log.needs_reading() || (log.last.is_some() && unloaded)
    }

    /// Lets those in who wait for newest values, when they are here of all regions that they are coming of.
    fn admit_to_values(&mut self, metrics: &BackplaneMetrics) {
        let Some(values) = &mut self.values else { return };
        let is_coming =
            |(at, of): (usize, &OfRegion)| !values.is_loaded(at) && of.clock.is_reachable() && !of.log.failing;
        if self.logs.iter().enumerate().any(is_coming) {
            return;
        }
        let tops: Vec<_> = self.logs.iter().filter_map(|of| of.log.last.clone()).collect();
        values.admit(&tops, metrics);
    }

    /// Tells those who wait for a log what they get of it, and feeds it to them.
    pub(super) fn admit(&mut self, at: usize, metrics: &BackplaneMetrics, now: Instant) {
        if self.values.is_some() {
            return self.admit_to_values(metrics);
        }
        let Some(OfRegion { log, .. }) = self.logs.get(at) else { return };
        let Some(last) = log.last.clone() else { return };
        let waits = |subscriber: &Subscriber| subscriber.stood.get(at).is_some_and(Stood::waits);
        let waiting: Vec<u64> =
            self.subscribers.iter().filter(|(_, subscriber)| waits(subscriber)).map(|(id, _)| *id).collect();
        for id in waiting {
            let Some(OfRegion { log, .. }) = self.logs.get(at) else { return };
            let Some(Subscriber { inbox, stood, resumes, at_ms, .. }) = self.subscribers.get(&id) else { continue };
            let Some(Stood { stand: Stand::Waiting { want, limit, .. }, .. }) = stood.get(at) else { continue };
            if *resumes && self.awaits_others(at, stood) {
                continue;
            }
            let recovery = log.recovery(want, *limit, &last);
            if *resumes {
                metrics.resume(self.logs.get(at).map_or(0, |of| of.nth), &recovery);
            }
            let since = self.waited_for(at, stood, *at_ms);
            inbox.tell(Notice::Subscribed { channel: self.name.clone(), top: last.clone(), recovery, since });
            let had_before = matches!(want, Want::Place(Place::After(_)) | Want::Message(_) | Want::Entry(_));
            let (stand, start) = match recovery {
                Recovery::Live | Recovery::Gap(_) => (Stand::Live, last.n),
                Recovery::Replay { from, to } if from > to => (Stand::Live, last.n),
                Recovery::Replay { from, .. } => {
                    inbox.fell_behind(&self.name, now);
                    (Stand::Behind { next: from }, from.saturating_sub(1))
                }
            };
            let had = if had_before && !matches!(recovery, Recovery::Gap(_)) { start } else { 0 };
            let tops = self.logs.iter().map(|of| of.log.last.as_ref().map_or(0, |last| last.n));
            let others = match stood.iter().all(Stood::waits) {
                true => Box::default(),
                false => stood.iter().zip(tops).map(|(stood, top)| stood.passed(top)).collect(),
            };
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                if let Some(stood) = subscriber.stood.get_mut(at) {
                    *stood = Stood { stand, had, start, others };
                }
                subscriber.mark.get_or_insert_with(|| metrics.subscription());
                self.moved = true;
            }
            self.feed(id);
        }
    }

    /// Fills a subscriber's inbox on, as far as there is room.
    pub(super) fn feed(&mut self, id: u64) {
        for at in 0..self.logs.len() {
            match self.feed_of(id, at) {
                Fed::All => {}
                Fed::Full => return,
                Fed::Overrun => {
                    if let Some(subscriber) = self.subscribers.remove(&id) {
                        subscriber.inbox.caught_up(&self.name);
                        subscriber.inbox.tell(Notice::Overrun(self.name.clone()));
                    }
                    return;
                }
            }
        }
        if let Some(subscriber) = self.subscribers.get(&id) {
            subscriber.inbox.caught_up(&self.name);
        }
    }

    fn feed_of(&mut self, id: u64, at: usize) -> Fed {
        let Some(OfRegion { log, .. }) = self.logs.get(at) else { return Fed::All };
        let Some(Subscriber { inbox, stood, .. }) = self.subscribers.get_mut(&id) else { return Fed::All };
        let Some(Stood { stand: Stand::Behind { next }, .. }) = stood.get(at) else { return Fed::All };
        let (mut next, top) = (*next, log.last.as_ref().map_or(0, |last| last.n));
        let fed = loop {
            if next > top {
                break Fed::All;
            }
            let Some(publication) = log.window.get(next) else { break Fed::Overrun };
            let copies = self.copies.as_ref();
            let is_sent = copies.is_some_and(|copies| has_copy(copies, stood, at, publication));
            if !is_sent && !inbox.push(publication) {
                break Fed::Full;
            }
            next += 1;
        };
        if let Some(stood) = stood.get_mut(at) {
            stood.stand = if matches!(fed, Fed::All) { Stand::Live } else { Stand::Behind { next } };
        }
        fed
    }
}

enum Fed {
    All,
    Full,
    Overrun,
}

impl Subscriber {
    fn is_behind(&self) -> bool {
        self.stood.iter().any(|stood| matches!(stood.stand, Stand::Behind { .. }))
    }
}
