//! The log of one channel as this node has it: its newest entries, numbered by this node, and the ids that are remembered.
//!
//! A place of another node's, or of this one's before it began to follow the stream anew, is found by its entry's id. Then
//! the numbers go on from that place, so that what is pushed afterwards follows on what its reader has.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::super::engine::{Entry, MessageId, ReadLimit, Retention, Slice};
use super::super::position::{EntryId, Epoch, Position, Region};
use super::super::recover::{Log as Ends, Mark};
use super::super::sink::Sink;

/// The number of the first entry that is seen of a log which may have had others: leaves room for what came before.
const UNCOUNTED: u64 = 1 << 40;

/// An entry without its number.
#[derive(Clone, Debug)]
struct Kept {
    id: EntryId,
    message: MessageId,
    payload: Bytes,
}

impl Kept {
    fn size(&self) -> usize {
        self.payload.len() + self.message.as_str().len()
    }
}

/// What is known of a message's id.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Its first entry within the window.
    id: EntryId,
    /// That entry's number, by the numbering that `shift` is of.
    n: u64,
    /// When it was last published, be it as a copy.
    newest_ms: u64,
}

/// A log.
#[derive(Debug)]
pub struct Log {
    epoch: Epoch,
    entries: VecDeque<Kept>,
    /// Payloads and ids of the entries.
    bytes: usize,
    /// The newest entry's number and id, retained or not; 0 and `0-0` if none was seen.
    top: u64,
    last: EntryId,
    known: HashMap<MessageId, Known>,
    /// Who is pushed what comes.
    pub sink: Option<Sink>,
}

/// A name for a numbering that no other has.
pub fn fresh() -> Epoch {
    named(&format!("q{:016x}", rand::random::<u64>()))
}

/// The same for a log that is known from its first entry on: whoever was before that is at its origin, whatever the log
/// was called then.
pub fn born_under(lineage: &Epoch) -> Epoch {
    named(&format!("{}-{:016x}", lineage.as_str(), rand::random::<u64>()))
}

fn named(name: &str) -> Epoch {
    // All of these are.
    Epoch::new(name).unwrap_or_else(|_| Epoch::unnamed())
}

impl Log {
    /// A log of which nothing was seen.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            entries: VecDeque::new(),
            bytes: 0,
            top: 0,
            last: EntryId::default(),
            known: HashMap::new(),
            sink: None,
        }
    }

    /// Leaves room below the number of the first entry, since others may have come before it.
    pub fn uncounted(mut self) -> Self {
        self.top = UNCOUNTED - 1;
        self
    }

    /// The newest entry's position.
    pub fn top(&self, region: &Region) -> Position {
        if self.last == EntryId::default() {
            return Position::origin(region.clone(), self.epoch.clone());
        }
        self.position(region, self.top, self.last)
    }

    /// Bytes of what is retained.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is left that anybody could ask for.
    pub fn is_forgotten(&self) -> bool {
        self.entries.is_empty() && self.known.is_empty() && self.sink.is_none()
    }

    /// The position of a message that was published less than `window_ms` before.
    pub fn find(&self, region: &Region, message: &MessageId, ms: u64, window_ms: u64) -> Option<Position> {
        let known = self.known.get(message).filter(|known| ms.saturating_sub(known.newest_ms) < window_ms)?;
        Some(self.position(region, known.n, known.id))
    }

    /// A copy of a message that is known was seen: the window begins anew.
    pub fn see_copy(&mut self, message: &MessageId, ms: u64) {
        if let Some(known) = self.known.get_mut(message) {
            known.newest_ms = ms;
        }
    }

    /// Appends an entry.
    pub fn append(&mut self, region: &Region, id: EntryId, message: MessageId, payload: Bytes) -> Entry {
        self.top += 1;
        self.last = id;
        self.known.insert(message.clone(), Known { id, n: self.top, newest_ms: id.ms });
        let kept = Kept { id, message, payload };
        self.bytes += kept.size();
        let entry = self.entry(region, self.top, &kept);
        self.entries.push_back(kept);
        entry
    }

    /// Drops what is beyond the retention.
    pub fn trim(&mut self, retention: &Retention, now_ms: u64) {
        let max_age_ms = super::millis(retention.max_age);
        while let Some(first) = self.entries.front()
            && (self.entries.len() > retention.max_entries
                || self.bytes > retention.max_bytes
                || now_ms.saturating_sub(first.id.ms) > max_age_ms)
        {
            self.pop();
        }
    }

    /// Drops the entries up to this one.
    pub fn drop_to(&mut self, id: EntryId) {
        while self.entries.front().is_some_and(|first| first.id <= id) {
            self.pop();
        }
    }

    /// Forgets a message's id, unless it was seen again after `ms`.
    pub fn forget(&mut self, message: &MessageId, ms: u64) {
        if self.known.get(message).is_some_and(|known| known.newest_ms <= ms) {
            self.known.remove(message);
        }
    }

    fn pop(&mut self) {
        if let Some(first) = self.entries.pop_front() {
            self.bytes -= first.size();
        }
    }

    /// Reads a part. `is_other` says whether a place up to there was in another stream than the one that is followed.
    pub fn read(
        &mut self,
        region: &Region,
        after: Option<&Position>,
        limit: ReadLimit,
        is_other: impl Fn(EntryId) -> bool,
    ) -> Slice {
        let Some(after) = after else { return self.slice(region, 0, None, limit) };
        if let Some(mut at) = self.index_of(after.id) {
            if after.epoch != self.epoch || self.first() + at as u64 != after.n {
                at = self.number_from(at, after);
            }
            return self.slice(region, at + 1, Some(self.mark(after.id)), limit);
        }
        let is_ours = after.epoch == self.epoch || (after.is_origin() && self.epoch.is_of(&after.epoch));
        if !is_ours {
            // The newest was seen and is not retained any more: what came before it was too.
            if after.id == self.last && !after.is_origin() {
                self.renumber(after.epoch.clone(), after.n);
            } else {
                // Nothing proves what came between. The numbers go on behind a hole that says so.
                let trimmed = !is_other(after.id) && !after.is_origin() && after.id < self.oldest();
                let first = after.n.saturating_add(if trimmed { 2 } else { 1 });
                if self.last != EntryId::default() {
                    let retained = self.entries.len() as u64;
                    self.renumber(fresh(), (first - 1).saturating_add(retained));
                }
            }
        }
        let skip = usize::try_from((after.n + 1).saturating_sub(self.first())).unwrap_or(usize::MAX);
        self.slice(region, skip, None, limit)
    }

    /// What is retained up to the entry at `to`, numbered to end with it; nothing if that is not there.
    pub fn read_back(&self, to: &Position) -> Vec<Entry> {
        let Some(at) = self.index_of(to.id) else { return Vec::new() };
        let back = self.entries.iter().take(at + 1).rev().zip((1..=to.n).rev());
        let mut entries: Vec<_> = back
            .map(|(kept, n)| Entry {
                position: Position { n, id: kept.id, ..to.clone() },
                message: kept.message.clone(),
                payload: kept.payload.clone(),
            })
            .collect();
        entries.reverse();
        entries
    }

    /// The number of the oldest entry that is retained, or the next one.
    fn first(&self) -> u64 {
        if self.last == EntryId::default() { 1 } else { self.top + 1 - self.entries.len() as u64 }
    }

    fn oldest(&self) -> EntryId {
        self.entries.front().map_or(self.last, |first| first.id)
    }

    fn index_of(&self, id: EntryId) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |kept| kept.id).ok()
    }

    /// Numbers the entries so that the one at an index has the place's number and epoch, and says where that is then: what
    /// would have no number left goes.
    fn number_from(&mut self, at: usize, place: &Position) -> usize {
        let behind = self.entries.len() - 1 - at;
        self.renumber(place.epoch.clone(), place.n.saturating_add(behind as u64));
        while self.entries.len() as u64 > self.top {
            self.pop();
        }
        self.entries.len() - 1 - behind
    }

    fn renumber(&mut self, epoch: Epoch, top: u64) {
        for known in self.known.values_mut() {
            // One that has no number left is behind all that can be read.
            known.n = known.n.saturating_add(top).saturating_sub(self.top).max(1);
        }
        (self.epoch, self.top) = (epoch, top);
    }

    fn slice(&self, region: &Region, skip: usize, at: Option<Mark>, limit: ReadLimit) -> Slice {
        let mut entries = Vec::new();
        let mut bytes = 0_usize;
        for (n, kept) in (self.first()..).zip(&self.entries).skip(skip) {
            bytes = bytes.saturating_add(kept.payload.len());
            if !entries.is_empty() && (entries.len() >= limit.max_entries || bytes > limit.max_bytes) {
                break;
            }
            entries.push(self.entry(region, n, kept));
        }
        let top = self.top(region);
        Slice { entries, log: Ends { top: top.n, first: self.first(), first_epoch: self.epoch.clone() }, top, at }
    }

    fn mark(&self, id: EntryId) -> Mark {
        Mark { epoch: self.epoch.clone(), id }
    }

    fn entry(&self, region: &Region, n: u64, kept: &Kept) -> Entry {
        let position = self.position(region, n, kept.id);
        Entry { position, message: kept.message.clone(), payload: kept.payload.clone() }
    }

    fn position(&self, region: &Region, n: u64, id: EntryId) -> Position {
        Position { region: region.clone(), epoch: self.epoch.clone(), n, id }
    }
}
