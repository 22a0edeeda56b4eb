//! Where a subscriber stands in one region's log of a channel, and which of two copies of a message it is sent.

use super::Publication;
use super::copies::Copies;
use super::log::Want;
use crate::backplane::position::Place;
use crate::backplane::recover::ReplayLimit;

#[derive(Debug)]
pub(super) struct Stood {
    pub(super) stand: Stand,
    /// The number up to which it had the log before it came here.
    pub(super) had: u64,
    /// The number behind which it gets the log here.
    pub(super) start: u64,
    /// How far it had come in each of the channel's logs when this came into force; empty where this is the first.
    pub(super) others: Box<[u64]>,
}

#[derive(Debug)]
pub(super) enum Stand {
    /// It is told of its subscription when the log is open, and what lies behind its place is known.
    Waiting { want: Want, limit: ReplayLimit, checked: bool },
    /// It has everything up to the newest entry.
    Live,
    /// Its inbox was full, or is being filled: the number of the first entry that it does not have.
    Behind { next: u64 },
}

impl Stood {
    pub(super) fn waits(&self) -> bool {
        matches!(self.stand, Stand::Waiting { .. })
    }

    pub(super) fn live_from(&mut self, n: u64) {
        (self.stand, self.had, self.start) = (Stand::Live, 0, n);
    }

    /// The number up to which it was given the log here, whose newest entry is `top`; 0 where it is not in force.
    pub(super) fn passed(&self, top: u64) -> u64 {
        match self.stand {
            Stand::Waiting { .. } => 0,
            Stand::Live => top,
            Stand::Behind { next } => next.saturating_sub(1),
        }
    }
}

/// Whether a subscriber has or gets the same message from the log of another region, and so is not sent this one.
pub(super) fn has_copy(copies: &Copies, stood: &[Stood], at: usize, publication: &Publication) -> bool {
    let copies = copies.of(&publication.entry.message);
    let Some(here) = stood.get(at) else { return false };
    let mut is_before = true;
    for copy in copies {
        if copy.log == at && copy.n == publication.n() {
            is_before = false;
            continue;
        }
        let Some(other) = stood.get(copy.log) else { continue };
        let had = match &other.stand {
            Stand::Waiting { want: Want::Place(Place::After(place)), .. } => {
                place.epoch == copy.epoch && copy.n <= place.n
            }
            _ => copy.n <= other.had,
        };
        // It was given when this log was not in force yet, so not kept back for the sake of this one.
        let was_given = here.others.get(copy.log).is_some_and(|passed| copy.n <= *passed);
        // Of two that are in force the one that was seen first is given.
        if had || (copy.n > other.start && (is_before || was_given)) {
            return true;
        }
    }
    false
}
