//! Which messages of a channel are in the logs of several regions: a publisher that got no answer from one region
//! publishes the same message in another, and it may be stored in both.
//!
//! A node remembers where it has seen each message id, in the order in which it saw them. Of two copies a subscriber is
//! sent one: none that it had before it came here, and else the one that this node saw first, unless the subscriber does
//! not get that one. When an id is forgotten a second copy is delivered: never the other way round.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Publication;
use super::window::Budget;
use crate::backplane::engine::MessageId;
use crate::backplane::position::Epoch;

/// The most ids of a channel. Over it the oldest are forgotten.
const MAX_IDS: usize = 16_384;

/// What an id takes of the budget that windows share, besides its text: by the sizes of what is kept.
const ID_BYTES: usize = 160;

/// Where a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Which of the channel's logs has it.
    pub(super) log: usize,
    pub(super) epoch: Epoch,
    pub(super) n: u64,
}

#[derive(Debug)]
pub(super) struct Copies {
    by_id: HashMap<MessageId, Vec<Copy>>,
    /// The ids in the order in which they were seen, an id once for each copy.
    order: VecDeque<(Instant, MessageId)>,
    window: Duration,
    budget: Arc<Budget>,
    bytes: usize,
}

impl Copies {
    /// Ids are remembered for `window`.
    pub(super) fn new(window: Duration, budget: Arc<Budget>) -> Self {
        Self { by_id: HashMap::new(), order: VecDeque::new(), window, budget, bytes: 0 }
    }

    /// Remembers a message. Whether it is in the log of another region too.
    pub(super) fn note(&mut self, log: usize, publication: &Publication, now: Instant) -> bool {
        let position = &publication.entry.position;
        let copies = self.by_id.entry(publication.entry.message.clone()).or_default();
        if copies.iter().any(|copy| copy.log == log && copy.n == position.n && copy.epoch == position.epoch) {
            return copies.len() > 1;
        }
        copies.push(Copy { log, epoch: position.epoch.clone(), n: position.n });
        let several = copies.len() > 1;
        let bytes = ID_BYTES + publication.entry.message.as_str().len();
        self.bytes += bytes;
        self.budget.take(bytes);
        self.order.push_back((now, publication.entry.message.clone()));
        self.forget_old(now);
        several
    }

    /// The copies of a message in the order in which they were seen; none if there is one alone.
    pub(super) fn of(&self, message: &MessageId) -> &[Copy] {
        self.by_id.get(message).map(Vec::as_slice).filter(|copies| copies.len() > 1).unwrap_or_default()
    }

    /// The numbers of a log say nothing any more.
    pub(super) fn forget_log(&mut self, log: usize) {
        // What is left in the order finds nothing, when its time has come.
        for copies in self.by_id.values_mut() {
            copies.retain(|copy| copy.log != log);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((seen, _)) = self.order.front() {
            let over = self.order.len() > MAX_IDS || (self.order.len() > 1 && self.budget.is_passed());
            if !over && now.duration_since(*seen) < self.window {
                return;
            }
            let Some((_, message)) = self.order.pop_front() else { return };
            let bytes = ID_BYTES + message.as_str().len();
            self.bytes -= bytes;
            self.budget.give_back(bytes);
            if let Some(copies) = self.by_id.get_mut(&message) {
                if !copies.is_empty() {
                    copies.remove(0);
                }
                if copies.is_empty() {
                    self.by_id.remove(&message);
                }
            }
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}
