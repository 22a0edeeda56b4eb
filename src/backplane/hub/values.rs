//! A channel of newest values on this node: its subscribers, what each has, and when it ticks.
//!
//! No I/O and no clock: the hub's tasks ask the engines for what is not [loaded](Values::is_loaded), and call
//! [`Values::tick`] as long as it wants to be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::conflated::{Conflated, Form, Mark};
use super::inbox::{Inbox, Notice};
use crate::backplane::channels::Conflation;
use crate::backplane::engine::{Channel, Entry, LOST, Latest};
use crate::backplane::position::{Position, Region};
use crate::metrics::{BackplaneMetrics, SubscriptionMark};

#[derive(Debug)]
pub(super) struct Values {
    channel: Channel,
    conflation: Conflation,
    state: Conflated,
    /// Of the log of each region, whether what is here is all that its engine had when it was asked, and what came since.
    loaded: Vec<bool>,
    readers: BTreeMap<u64, Reader>,
    /// Whether a task calls [`Self::tick`].
    ticking: bool,
}

/// A subscriber.
#[derive(Debug)]
struct Reader {
    inbox: Arc<Inbox>,
    resumes: bool,
    stand: Stand,
    _counted: Option<SubscriptionMark>,
}

#[derive(Debug)]
enum Stand {
    /// For the channel to be open, and the engine's values to be here.
    Waiting,
    /// Its subscription is in force, with these newest positions, and it has not been told.
    Untold(Vec<Position>),
    /// What it has, and whether it is being given what it lacks from before the last tick.
    Reading { mark: Mark, behind: bool },
}

impl Values {
    pub(super) fn new(channel: Channel, conflation: Conflation, logs: usize) -> Self {
        let (state, loaded) = (Conflated::new(channel.clone(), conflation.join), vec![false; logs]);
        Self { channel, conflation, state, loaded, readers: BTreeMap::new(), ticking: false }
    }

    pub(super) fn subscribe(&mut self, id: u64, inbox: Arc<Inbox>, resumes: bool) {
        self.readers.insert(id, Reader { inbox, resumes, stand: Stand::Waiting, _counted: None });
    }

    pub(super) fn unsubscribe(&mut self, id: u64) {
        if let Some(reader) = self.readers.remove(&id) {
            reader.inbox.forget(&self.channel);
        }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.readers.len()
    }

    /// Tells all subscribers whether a region can be reached. Whether somebody waits for what can be known without it.
    pub(super) fn tell_region(&self, region: &Region, reachable: bool) -> bool {
        for reader in self.readers.values() {
            reader.inbox.tell_region(region, reachable);
        }
        self.readers.values().any(|reader| matches!(reader.stand, Stand::Waiting))
    }

    /// Whether the newest values of a log are here; otherwise its engine has to be asked for them.
    pub(super) fn is_loaded(&self, at: usize) -> bool {
        self.loaded.get(at).copied().unwrap_or(false)
    }

    /// What is here may not be what the engine has.
    pub(super) fn unload(&mut self, at: usize) {
        self.set_loaded(at, false);
    }

    fn set_loaded(&mut self, at: usize, loaded: bool) {
        if let Some(of) = self.loaded.get_mut(at) {
            *of = loaded;
        }
    }

    /// How much has come, for [`Self::on_latest`].
    pub(super) fn came(&self) -> u64 {
        self.state.came()
    }

    /// Takes the next entry of a log.
    pub(super) fn on_entry(&mut self, at: usize, entry: Entry) {
        if entry.payload == LOST {
            // What was lost may be here.
            return self.unload(at);
        }
        match self.conflation.read(&entry.payload) {
            Ok((key, value)) => self.state.update(key, value, entry.position),
            // Its publisher has another rule, and nobody could say what it is the newest of.
            Err(why) => log::debug!("an entry of {:?} is no value: it {why}", self.channel.as_str()),
        }
    }

    /// The engine's newest values, which was asked when `asked` had come.
    pub(super) fn on_latest(&mut self, at: usize, asked: u64, latest: Latest) {
        let read = |entry: Entry| {
            let (key, value) = self.conflation.read(&entry.payload).ok()?;
            Some((key, value, entry.position))
        };
        let values = latest.entries.into_iter().filter_map(read).collect();
        self.state.replace(&latest.top, asked, values);
        self.set_loaded(at, true);
    }

    /// Lets those in who wait, when the newest entries are at `tops`.
    pub(super) fn admit(&mut self, tops: &[Position], metrics: &BackplaneMetrics) {
        // What they are given first is as new as what comes next, and no older than what they were away for.
        if !self.ticking && self.state.is_dirty() {
            self.tick_now(metrics);
        }
        for reader in self.readers.values_mut().filter(|reader| matches!(reader.stand, Stand::Waiting)) {
            reader.stand = Stand::Untold(tops.to_vec());
            reader._counted = Some(metrics.subscription());
            metrics.conflation.subscribed.inc();
            reader.inbox.news(&self.channel);
        }
    }

    /// What comes next for a subscriber; nothing until its inbox has news again.
    pub(super) fn take(&mut self, id: u64, form: Form, metrics: &BackplaneMetrics) -> Option<Notice> {
        let reader = self.readers.get_mut(&id)?;
        match &mut reader.stand {
            Stand::Waiting => {
                reader.inbox.no_news(&self.channel);
                None
            }
            Stand::Untold(tops) => {
                let (channel, tops, resumed) = (self.channel.clone(), std::mem::take(tops), reader.resumes);
                let values = self.state.len();
                reader.stand = Stand::Reading { mark: Mark::default(), behind: true };
                Some(Notice::Values { channel, tops, values, resumed })
            }
            Stand::Reading { mark, behind } => {
                if !*behind && self.state.has_skipped(*mark) {
                    *behind = true;
                    metrics.conflation.behind.inc();
                }
                let part = self.state.part(*mark, form);
                if let Some((_, to)) = &part {
                    *mark = *to;
                }
                if !self.state.is_behind(*mark) {
                    *behind = false;
                    reader.inbox.no_news(&self.channel);
                }
                part.map(|(part, _)| Notice::Part(self.channel.clone(), part))
            }
        }
    }

    /// Whether there is something new for somebody. Who waits is given what is here when that is complete, and not before.
    fn wants_tick(&self) -> bool {
        self.state.is_dirty() && self.readers.values().any(|reader| !matches!(reader.stand, Stand::Waiting))
    }

    /// The time between two ticks, if it is to tick and nobody has it do so: then the caller does.
    pub(super) fn start_ticking(&mut self) -> Option<Duration> {
        let starts = !self.ticking && self.wants_tick();
        self.ticking |= starts;
        starts.then_some(self.conflation.interval)
    }

    /// Ticks. Whether it is to tick again; if not, nobody has it do so any more.
    pub(super) fn tick(&mut self, metrics: &BackplaneMetrics) -> bool {
        self.ticking = self.wants_tick();
        if self.ticking {
            self.tick_now(metrics);
        }
        self.ticking
    }

    fn tick_now(&mut self, metrics: &BackplaneMetrics) {
        let ticked = self.state.tick();
        metrics.conflation.ticks.inc();
        metrics.conflation.replaced.inc_by(u64::try_from(ticked.replaced).unwrap_or(u64::MAX));
        for reader in self.readers.values() {
            if let Stand::Reading { mark, .. } = &reader.stand
                && self.state.is_behind(*mark)
            {
                reader.inbox.news(&self.channel);
            }
        }
    }

    /// Gives back what is kept for others who ask for the same, when that is over.
    pub(super) fn rest(&mut self) {
        if !self.ticking {
            self.state.forget_parts();
        }
    }
}

#[cfg(test)]
mod tests;
