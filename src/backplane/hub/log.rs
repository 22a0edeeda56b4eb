//! What this node has of one region's log of a channel, and what it has to ask the region's engine of it.

use std::sync::Arc;

use super::window::{Budget, Window};
use crate::backplane::engine::{Entry, MessageId, Retention};
use crate::backplane::position::{EntryId, Place, Position};
use crate::backplane::recover::{self, Recovery, ReplayLimit, Why, recover};

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

/// From where on a subscriber wants one region's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// What comes from now on.
    Now,
    /// What comes behind this place.
    Place(Place),
    /// What comes behind the newest entry with this message id.
    Message(MessageId),
    /// What comes behind the entry with this id, in a log whose numbers are this node's own.
    Entry(EntryId),
    /// What was stored at this time or later, in milliseconds since 1970 by the engine's clock.
    Since(u64),
}

#[derive(Debug)]
pub(super) struct Log {
    /// Whether its numbers are this node's own; see [`Engine::has_own_numbers`](crate::backplane::engine::Engine::has_own_numbers).
    pub(super) own_numbers: bool,
    pub(super) window: Window,
    /// The newest entry that was delivered here, or where pushing began; `None` while the engine does not push.
    pub(super) last: Option<Position>,
    /// Whether the window goes back to the oldest entry that the engine retained when it was asked.
    pub(super) filled: bool,
    /// Whether something may have been missed.
    pub(super) disrupted: bool,
    /// The highest number that was seen.
    pub(super) seen: u64,
    /// Whether the engine was asked to push, and not to end that.
    pub(super) asked: bool,
    /// Whether the last question was not answered.
    pub(super) failing: bool,
    /// Whether a worker asks the engine for this log.
    pub(super) working: bool,
}

impl Log {
    pub(super) fn new(own_numbers: bool, retention: Retention, budget: Arc<Budget>) -> Self {
        Self {
            own_numbers,
            window: Window::new(retention, budget),
            last: None,
            filled: false,
            disrupted: false,
            seen: 0,
            asked: false,
            failing: false,
            working: false,
        }
    }

    /// Whether something was missed, as far as what was pushed tells.
    pub(super) fn needs_reading(&self) -> bool {
        self.last.as_ref().is_some_and(|last| self.disrupted || self.seen > last.n)
    }

    /// Whether a place lies beyond what is here: another node was ahead of this one, or the log has lost its end.
    pub(super) fn is_beyond(&self, want: &Want) -> bool {
        let Some(last) = &self.last else { return false };
        match want {
            Want::Now | Want::Place(Place::Now | Place::Start) | Want::Since(_) => false,
            Want::Place(Place::After(place)) => place.n > last.n,
            Want::Entry(id) => *id > last.id,
            Want::Message(message) => self.find(message).is_none(),
        }
    }

    /// Whether a place lies before the window.
    pub(super) fn needs_history(&self, want: &Want) -> bool {
        let top = self.last.as_ref().map_or(0, |last| last.n);
        let first = self.window.first().unwrap_or(top + 1);
        match want {
            Want::Now | Want::Place(Place::Now) => false,
            Want::Place(Place::Start) => first > 1,
            Want::Place(Place::After(place)) => {
                let follows = |oldest: &Arc<super::Publication>| oldest.entry.position.epoch == place.epoch;
                let proven = place.n + 1 == first && self.window.oldest().is_some_and(follows);
                place.n < first && !proven && !(place.n == top && self.is_last(place))
            }
            Want::Message(message) => self.find(message).is_none(),
            Want::Entry(id) => {
                self.window.find_entry(*id).is_none() && self.last.as_ref().is_none_or(|last| last.id != *id)
            }
            Want::Since(ms) => match self.window.oldest() {
                Some(oldest) => oldest.n() > 1 && oldest.entry.position.id.ms >= *ms,
                None => self.last.as_ref().is_some_and(|last| last.n > 0 && last.id.ms >= *ms),
            },
        }
    }

    /// The position of the newest entry with this message id; in a foreign channel, of the one whose id that is, too.
    pub(super) fn find(&self, message: &MessageId) -> Option<&Position> {
        let by_entry = || self.window.find_entry(message.as_str().parse().ok().filter(|_| self.own_numbers)?);
        self.window.find(message).or_else(by_entry)
    }

    fn is_last(&self, place: &Position) -> bool {
        self.last.as_ref().is_some_and(|last| last.id == place.id && last.epoch == place.epoch)
    }

    /// The newest entry that a filling needs: one that is here, to which the others must lead up; and whether only reading
    /// backwards from it does, since nobody else numbers them.
    pub(super) fn fill_ends(&self) -> Option<(Position, bool)> {
        let joint = self.window.oldest().map(|oldest| &oldest.entry.position).or(self.last.as_ref());
        joint.map(|joint| (joint.clone(), self.own_numbers))
    }

    /// The engine pushes what comes behind `position`.
    pub(super) fn on_opened(&mut self, position: Position) {
        self.seen = self.seen.max(position.n);
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

    /// What the engine has of the log up to [`Self::fill_ends`], the oldest first. Says what of it is older than what was
    /// here.
    pub(super) fn on_filled(&mut self, entries: Vec<Entry>, of: impl Fn(Entry) -> Arc<super::Publication>) -> u64 {
        let Some(last) = &self.last else { return 0 };
        let (joint, n) = match self.window.oldest() {
            Some(oldest) => (&oldest.entry.position, oldest.n()),
            None => (last, last.n + 1),
        };
        match entries.iter().find(|entry| entry.position.n == joint.n) {
            // The log is not what was delivered of it here: reading on tells how.
            Some(other) if other.position.id != joint.id => {
                self.disrupted = true;
                return 0;
            }
            Some(_) => self.window.prepend(entries.into_iter().map(of).collect(), n),
            // It ends before that: something was pushed while it was read, or the log has lost its end. Reading on tells.
            None if entries.last().is_some_and(|newest| newest.position.n < joint.n) => {
                self.disrupted = true;
                return 0;
            }
            // Even that is not retained any more, so nothing before it is.
            None => {}
        }
        self.filled = true;
        n
    }

    /// What a subscriber gets of the log, from where it wants it.
    pub(super) fn recovery(&self, want: &Want, limit: ReplayLimit, last: &Position) -> Recovery {
        let place = match want {
            Want::Now => Place::Now,
            Want::Place(place) => place.clone(),
            Want::Message(message) => match self.find(message) {
                Some(position) => Place::After(position.clone()),
                None => return Recovery::Gap(Why::Trimmed),
            },
            // At the end of what is here nothing is missing, though the entry may be gone.
            Want::Entry(id) if *id == last.id => return Recovery::Replay { from: last.n + 1, to: last.n },
            Want::Entry(id) => match self.window.find_entry(*id) {
                Some(position) => Place::After(position.clone()),
                None if *id > last.id => return Recovery::Gap(Why::Lineage),
                None => return Recovery::Gap(Why::Trimmed),
            },
            Want::Since(ms) if last.n == 0 || last.id.ms < *ms => return Recovery::Live,
            Want::Since(ms) => match self.window.newest_before(*ms) {
                Some(position) => Place::After(position.clone()),
                None if self.window.first() == Some(1) => Place::Start,
                None => return Recovery::Gap(Why::Trimmed),
            },
        };
        let ends = recover::Log {
            top: last.n,
            first: self.window.first().unwrap_or(last.n + 1),
            first_epoch: self.window.oldest().map_or(&last.epoch, |oldest| &oldest.entry.position.epoch).clone(),
        };
        recover(&place, &ends, limit, |n| self.window.mark(n), |from, to| self.window.payload_bytes(from, to))
    }
}
