//! One channel on this node: who is subscribed, how far it has come, and what it has to ask the engine next.
//!
//! No I/O: [`Local::next_task`] says what to ask, and the `on_` functions take what came. Whatever comes from the engine,
//! and in whatever order, a subscriber gets each entry behind its place once and in the order of the log, or a gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Publication;
use super::conflated::Form;
use super::inbox::{Inbox, Notice};
use super::values::Values;
use super::window::{Budget, Window};
use crate::backplane::engine::{Channel, Entry, Latest, MessageId, Retention, Slice};
use crate::backplane::position::{EntryId, Place, Position};
use crate::backplane::recover::{Log, Recovery, ReplayLimit, Why, recover};
use crate::metrics::{BackplaneMetrics, SubscriptionMark};

/// How long a channel that nobody is subscribed to is kept: clients that reconnect find it as it was.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A repair takes whatever was missed.
const WHOLE: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

/// From where on a subscriber wants a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// What comes from now on.
    #[default]
    Now,
    /// What comes behind this place.
    Place(Place),
    /// What comes behind the newest entry with this message id.
    Message(MessageId),
    /// What comes behind the entry with this id, in a channel whose numbers are this node's own: there a place is no more.
    Entry(EntryId),
}

impl From {
    fn is_now(&self) -> bool {
        matches!(self, Self::Now | Self::Place(Place::Now))
    }
}

/// What the engine is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// To push the channel.
    Open,
    /// For what comes behind the newest entry that is here.
    ReadOn(Position),
    /// For what it has of the channel before what is here.
    Fill,
    /// For its newest values, when so much had come here.
    Latest(u64),
    /// Not to push the channel any more.
    Leave,
}

#[derive(Debug)]
struct Subscriber {
    inbox: Arc<Inbox>,
    stand: Stand,
    /// Since it is in force.
    mark: Option<SubscriptionMark>,
}

#[derive(Debug)]
enum Stand {
    /// It is told of its subscription when the channel is open, and what lies behind its place is known.
    Waiting { from: From, limit: ReplayLimit, checked: bool },
    /// It has everything up to the newest entry.
    Live,
    /// Its inbox was full, or is being filled: the number of the first entry that it does not have.
    Behind { next: u64 },
}

#[derive(Debug)]
pub(super) struct Local {
    pub(super) name: Channel,
    subscribers: BTreeMap<u64, Subscriber>,
    /// Where only newest values count: these have the subscribers, and the window stays empty.
    values: Option<Box<Values>>,
    /// Whether its numbers are this node's own; see [`Engine::is_foreign`](crate::backplane::engine::Engine::is_foreign).
    is_foreign: bool,
    window: Window,
    /// The newest entry that was delivered here, or where pushing began; `None` while the engine does not push.
    last: Option<Position>,
    /// Whether the window goes back to the oldest entry that the engine retained when it was asked.
    filled: bool,
    /// Whether something may have been missed.
    disrupted: bool,
    /// The highest number that was seen.
    seen: u64,
    idle_since: Option<Instant>,
    /// Whether a worker asks the engine for this channel.
    pub(super) working: bool,
    /// Whether it was taken out of the hub: who holds it looks for the channel anew.
    pub(super) removed: bool,
}

impl Local {
    pub(super) fn new(
        name: Channel,
        values: Option<Values>,
        is_foreign: bool,
        retention: Retention,
        budget: Arc<Budget>,
        now: Instant,
    ) -> Self {
        Self {
            name,
            subscribers: BTreeMap::new(),
            values: values.map(Box::new),
            is_foreign,
            window: Window::new(retention, budget),
            last: None,
            filled: false,
            disrupted: false,
            seen: 0,
            idle_since: Some(now),
            working: false,
            removed: false,
        }
    }

    pub(super) fn subscribe(&mut self, id: u64, inbox: Arc<Inbox>, from: From, limit: ReplayLimit) {
        self.idle_since = None;
        inbox.forget(&self.name);
        if let Some(values) = &mut self.values {
            return values.subscribe(id, inbox, !from.is_now());
        }
        let from = match from {
            From::Place(Place::After(place)) if self.is_foreign => From::Entry(place.id),
            from => from,
        };
        self.subscribers
            .insert(id, Subscriber { inbox, stand: Stand::Waiting { from, limit, checked: false }, mark: None });
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

    /// Whether nobody has wanted it for so long that it can go.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        self.idle_since.is_some_and(|since| now.duration_since(since) >= LINGER)
    }

    /// What to ask the engine, if anything. Marks what the answer will cover.
    pub(super) fn next_task(&mut self, now: Instant) -> Option<Task> {
        if self.is_forgotten(now) {
            return Some(Task::Leave);
        }
        let Some(last) = &self.last else { return Some(Task::Open) };
        if let Some(values) = self.values.as_ref().filter(|values| values.needs_loading()) {
            // What was missed is among them. What comes while they are read counts anew.
            (self.disrupted, self.seen) = (false, last.n);
            return Some(Task::Latest(values.came()));
        }
        let mut ahead = false;
        for subscriber in self.subscribers.values_mut() {
            let Stand::Waiting { from, checked, .. } = &mut subscriber.stand else { continue };
            // Another node was ahead of this one, or the log has lost its end: reading on tells.
            let beyond = match from {
                From::Now | From::Place(Place::Now | Place::Start) => continue,
                From::Place(Place::After(place)) => place.n > last.n,
                From::Entry(id) => *id > last.id,
                // Where a message is that is not here is known when all is here that came before.
                From::Message(_) if !self.filled => continue,
                From::Message(message) => self.window.find(message).is_none(),
            };
            ahead |= !*checked && beyond;
            *checked = true;
        }
        if self.disrupted || self.seen > last.n || ahead {
            // What comes while it is read counts anew.
            (self.disrupted, self.seen) = (false, last.n);
            return Some(Task::ReadOn(last.clone()));
        }
        if !self.filled && self.subscribers.values().any(|subscriber| self.needs_history(&subscriber.stand)) {
            return Some(Task::Fill);
        }
        None
    }

    /// Whether something was missed, as far as what was pushed tells.
    pub(super) fn needs_reading(&self) -> bool {
        let unloaded = self.values.as_ref().is_some_and(|values| values.needs_loading());
        self.last.as_ref().is_some_and(|last| self.disrupted || self.seen > last.n || unloaded)
    }

    /// The newest entry that a filling needs: one that is here, to which the others must lead up; and whether only reading
    /// backwards from it does, since nobody else numbers them.
    pub(super) fn fill_ends(&self) -> Option<(Position, bool)> {
        let joint = self.window.oldest().map(|oldest| &oldest.entry.position).or(self.last.as_ref());
        joint.map(|joint| (joint.clone(), self.is_foreign))
    }

    /// Whether a subscriber's place lies before the window.
    fn needs_history(&self, stand: &Stand) -> bool {
        let Stand::Waiting { from, .. } = stand else { return false };
        let top = self.last.as_ref().map_or(0, |last| last.n);
        let first = self.window.first().unwrap_or(top + 1);
        match from {
            From::Now | From::Place(Place::Now) => false,
            From::Place(Place::Start) => first > 1,
            From::Place(Place::After(place)) => {
                let follows = |oldest: &Arc<Publication>| oldest.entry.position.epoch == place.epoch;
                let proven = place.n + 1 == first && self.window.oldest().is_some_and(follows);
                place.n < first && !proven && !(place.n == top && self.is_last(place))
            }
            From::Message(message) => self.find(message).is_none(),
            From::Entry(id) => {
                self.window.find_entry(*id).is_none() && self.last.as_ref().is_none_or(|last| last.id != *id)
            }
        }
    }

    /// The position of the newest entry with this message id; in a foreign channel, of the one whose id that is, too.
    fn find(&self, message: &MessageId) -> Option<&Position> {
        let by_entry = || self.window.find_entry(message.as_str().parse().ok().filter(|_| self.is_foreign)?);
        self.window.find(message).or_else(by_entry)
    }

    fn is_last(&self, place: &Position) -> bool {
        self.last.as_ref().is_some_and(|last| last.id == place.id && last.epoch == place.epoch)
    }

    /// The engine pushes what comes behind `position`.
    pub(super) fn on_opened(&mut self, position: Position) {
        self.seen = self.seen.max(position.n);
        if let Some(values) = &mut self.values {
            values.unload();
        }
        match self.window.newest() {
            // It was open before: what was missed meanwhile is read.
            Some(newest) => {
                self.last = Some(newest.entry.position.clone());
                self.disrupted = true;
            }
            // What was read of the log when it was open before says nothing of what came since.
            None => (self.last, self.filled) = (Some(position), false),
        }
    }

    /// The engine does not push any more.
    pub(super) fn on_left(&mut self) {
        self.last = None;
    }

    /// The engine did not answer: what was to be read still has to be.
    pub(super) fn on_failed(&mut self, task: &Task) {
        if let Task::ReadOn(_) | Task::Latest(_) = task {
            self.disrupted = true;
        }
    }

    pub(super) fn on_disrupted(&mut self) {
        self.disrupted = true;
    }

    /// An entry was pushed.
    pub(super) fn on_entry(&mut self, entry: Entry, metrics: &BackplaneMetrics, now: Instant) {
        let Some(last) = &self.last else { return };
        // Where nobody numbers the entries, an id tells more than a number does.
        if self.is_foreign && entry.position.id <= last.id {
            metrics.duplicates.inc();
            return;
        }
        let n = entry.position.n;
        self.seen = self.seen.max(n);
        // Of another epoch: the log may have lost its end, and numbers be given out again. Reading tells.
        if entry.position.epoch != last.epoch && last.n > 0 {
            self.disrupted = true;
        } else if n == last.n + 1 {
            self.deliver(entry, now);
        } else if n <= last.n {
            metrics.duplicates.inc();
        }
    }

    fn deliver(&mut self, entry: Entry, now: Instant) {
        self.last = Some(entry.position.clone());
        if let Some(values) = &mut self.values {
            return values.on_entry(entry);
        }
        let publication = Arc::new(Publication::new(self.name.clone(), entry));
        for subscriber in self.subscribers.values_mut() {
            if matches!(subscriber.stand, Stand::Live) && !subscriber.inbox.push(&publication) {
                subscriber.inbox.fell_behind(&self.name, now);
                subscriber.stand = Stand::Behind { next: publication.n() };
            }
        }
        self.window.push(publication);
    }

    /// The engine's answer to [`Task::ReadOn`], which asked for what lies behind `after`.
    pub(super) fn on_read(&mut self, after: &Position, slice: Slice, metrics: &BackplaneMetrics, now: Instant) {
        match slice.recover(&Place::After(after.clone()), WHOLE) {
            Recovery::Live | Recovery::Replay { .. } => {
                self.seen = self.seen.max(slice.log.top);
                for entry in slice.entries {
                    let Some(last) = &self.last else { return };
                    if entry.position.n == last.n && entry.position.id != last.id {
                        // What was pushed meanwhile is not what the log has now.
                        self.disrupted = true;
                        return;
                    }
                    if entry.position.n == last.n + 1 {
                        self.deliver(entry, now);
                    }
                }
            }
            Recovery::Gap(_) if let Some(values) = &mut self.values => {
                values.unload();
                self.last = Some(slice.top);
            }
            Recovery::Gap(why) => {
                metrics.gap(why);
                self.window.clear();
                self.filled = false;
                // What came meanwhile is read once more, from the new top on.
                self.disrupted |= self.last.as_ref() != Some(after);
                self.seen = self.seen.max(slice.top.n);
                for subscriber in self.subscribers.values_mut() {
                    if !matches!(subscriber.stand, Stand::Waiting { .. }) {
                        let (channel, top) = (self.name.clone(), slice.top.clone());
                        subscriber.inbox.caught_up(&channel);
                        subscriber.inbox.tell(Notice::Gap { channel, why, top });
                        subscriber.stand = Stand::Live;
                    }
                }
                self.last = Some(slice.top);
            }
        }
    }

    /// What the engine has of the channel up to [`Self::fill_ends`], the oldest first.
    pub(super) fn on_filled(&mut self, entries: Vec<Entry>) {
        let Some(last) = &self.last else { return };
        let (joint, n) = match self.window.oldest() {
            Some(oldest) => (&oldest.entry.position, oldest.n()),
            None => (last, last.n + 1),
        };
        match entries.iter().find(|entry| entry.position.n == joint.n) {
            // The log is not what was delivered of it here: reading on tells how.
            Some(other) if other.position.id != joint.id => return self.disrupted = true,
            Some(_) => {
                let of = |entry| Arc::new(Publication::new(self.name.clone(), entry));
                self.window.prepend(entries.into_iter().map(of).collect(), n);
            }
            // It ends before that: something was pushed while it was read, or the log has lost its end. Reading on tells.
            None if entries.last().is_some_and(|newest| newest.position.n < joint.n) => return self.disrupted = true,
            // Even that is not retained any more, so nothing before it is.
            None => {}
        }
        self.filled = true;
    }

    /// The engine's answer to [`Task::Latest`].
    pub(super) fn on_latest(&mut self, asked: u64, latest: Latest) {
        let (Some(values), Some(last)) = (&mut self.values, &self.last) else { return };
        self.seen = self.seen.max(latest.top.n);
        // Nothing came meanwhile, or the engine has seen it: it goes on from there. Otherwise from what came.
        if values.came() == asked || latest.top.n > last.n {
            self.last = Some(latest.top.clone());
        }
        values.on_latest(asked, latest);
    }

    /// What comes next of newest values for a subscriber.
    pub(super) fn take(&mut self, id: u64, form: Form, metrics: &BackplaneMetrics) -> Option<Notice> {
        self.values.as_mut()?.take(id, form, metrics)
    }

    /// Its newest values, where only these count.
    pub(super) fn values(&mut self) -> Option<&mut Values> {
        self.values.as_deref_mut()
    }

    /// Tells those who wait what they get, and feeds it to them.
    pub(super) fn admit(&mut self, metrics: &BackplaneMetrics, now: Instant) {
        let Some(last) = self.last.clone() else { return };
        if let Some(values) = &mut self.values {
            return values.admit(&[last], metrics);
        }
        let waiting: Vec<u64> = self
            .subscribers
            .iter()
            .filter(|(_, subscriber)| matches!(subscriber.stand, Stand::Waiting { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            let Some(Subscriber { inbox, stand: Stand::Waiting { from, limit, .. }, .. }) = self.subscribers.get(&id)
            else {
                continue;
            };
            let recovery = self.recovery(from, *limit, &last);
            if !from.is_now() {
                metrics.resume(&recovery);
            }
            inbox.tell(Notice::Subscribed { channel: self.name.clone(), top: last.clone(), recovery });
            let stand = match recovery {
                Recovery::Live | Recovery::Gap(_) => Stand::Live,
                Recovery::Replay { from, to } if from > to => Stand::Live,
                Recovery::Replay { from, .. } => {
                    inbox.fell_behind(&self.name, now);
                    Stand::Behind { next: from }
                }
            };
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                subscriber.stand = stand;
                subscriber.mark = Some(metrics.subscription());
            }
            self.feed(id);
        }
    }

    fn recovery(&self, from: &From, limit: ReplayLimit, last: &Position) -> Recovery {
        let place = match from {
            From::Now => Place::Now,
            From::Place(place) => place.clone(),
            From::Message(message) => match self.find(message) {
                Some(position) => Place::After(position.clone()),
                None => return Recovery::Gap(Why::Trimmed),
            },
            // At the end of what is here nothing is missing, though the entry may be gone.
            From::Entry(id) if *id == last.id => return Recovery::Replay { from: last.n + 1, to: last.n },
            From::Entry(id) => match self.window.find_entry(*id) {
                Some(position) => Place::After(position.clone()),
                None if *id > last.id => return Recovery::Gap(Why::Lineage),
                None => return Recovery::Gap(Why::Trimmed),
            },
        };
        let log = Log {
            top: last.n,
            first: self.window.first().unwrap_or(last.n + 1),
            first_epoch: self.window.oldest().map_or(&last.epoch, |oldest| &oldest.entry.position.epoch).clone(),
        };
        recover(&place, &log, limit, |n| self.window.mark(n), |from, to| self.window.payload_bytes(from, to))
    }

    /// Fills a subscriber's inbox on, as far as there is room.
    pub(super) fn feed(&mut self, id: u64) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let Stand::Behind { next } = &mut subscriber.stand else { return };
        let top = self.last.as_ref().map_or(0, |last| last.n);
        while *next <= top {
            let Some(publication) = self.window.get(*next) else {
                subscriber.inbox.caught_up(&self.name);
                subscriber.inbox.tell(Notice::Overrun(self.name.clone()));
                self.subscribers.remove(&id);
                return;
            };
            if !subscriber.inbox.push(publication) {
                return;
            }
            *next += 1;
        }
        subscriber.inbox.caught_up(&self.name);
        subscriber.stand = Stand::Live;
    }
}
