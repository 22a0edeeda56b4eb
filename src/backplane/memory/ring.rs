//! The log of one channel in memory: its newest entries, the newest of each key, and the ids of messages that are
//! remembered.

use std::collections::{HashMap, VecDeque};

use super::super::engine::{EngineError, Entry, Item, Key, Latest, LatestLimit, MessageId, ReadLimit, Slice};
use super::super::position::{EntryId, Epoch, Position, Region};
use super::super::recover::Log;
use super::{Settings, millis};

/// What an entry takes beside its payload and id, and what a remembered id takes beside its text. Estimates.
const OVERHEAD_BYTES: usize = 100;

/// A log.
#[derive(Debug)]
pub struct Ring {
    /// The key of its last publication in the order of all.
    pub last_publication: u64,
    epoch: Epoch,
    /// Contiguous; the last is the newest, or none is retained.
    entries: VecDeque<Entry>,
    /// The newest entry's number and id, retained or not.
    top: u64,
    last: EntryId,
    /// Payloads and ids of the entries.
    entry_bytes: usize,
    values: HashMap<Key, Entry>,
    /// Keys, payloads and ids of the values.
    value_bytes: usize,
    remembered: HashMap<MessageId, (u64, EntryId)>,
    /// The same, the oldest first.
    remembered_order: VecDeque<(MessageId, EntryId)>,
    remembered_bytes: usize,
}

impl Ring {
    /// An empty log.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            last_publication: 0,
            epoch,
            entries: VecDeque::new(),
            top: 0,
            last: EntryId::default(),
            entry_bytes: 0,
            values: HashMap::new(),
            value_bytes: 0,
            remembered: HashMap::new(),
            remembered_order: VecDeque::new(),
            remembered_bytes: 0,
        }
    }

    /// The newest entry's id.
    pub fn last_id(&self) -> EntryId {
        self.last
    }

    /// The newest entry's position.
    pub fn top(&self, region: &Region) -> Position {
        self.position(region, self.top, self.last)
    }

    /// What it takes in memory, nearly.
    pub fn bytes(&self) -> usize {
        let overhead = (self.entries.len() + self.values.len()) * OVERHEAD_BYTES;
        self.entry_bytes + self.value_bytes + overhead + self.remembered_bytes
    }

    /// Whether it has neither entries nor ids: nothing of it expires before the log does.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.remembered.is_empty()
    }

    /// Whether it has the newest value of a key.
    pub fn has_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// Drops entries, values and ids; the numbers stay.
    pub fn clear(&mut self) {
        *self = Self {
            last_publication: self.last_publication,
            top: self.top,
            last: self.last,
            ..Self::new(self.epoch.clone())
        };
    }

    /// Appends an item, and gives its entry; or only the position that it has already.
    ///
    /// # Errors
    /// [`EngineError::TooManyValues`], and it is not stored.
    pub fn append(
        &mut self,
        region: &Region,
        item: &Item,
        now_ms: u64,
        settings: &Settings,
    ) -> Result<(Position, Option<Entry>), EngineError> {
        if let Some((n, id)) = self.remembered.get(&item.id) {
            return Ok((self.position(region, *n, *id), None));
        }
        if let Some(key) = &item.key {
            self.make_room(key, item, &settings.latest)?;
        }
        self.top += 1;
        self.last = if now_ms > self.last.ms {
            EntryId { ms: now_ms, seq: 0 }
        } else {
            EntryId { ms: self.last.ms, seq: self.last.seq + 1 }
        };
        let position = self.position(region, self.top, self.last);
        let entry = Entry { position: position.clone(), message: item.id.clone(), payload: item.payload.clone() };
        self.entry_bytes += item.size_bytes();
        self.entries.push_back(entry.clone());
        if let Some(key) = &item.key {
            self.values.insert(key.clone(), entry.clone());
        }
        self.remembered.insert(item.id.clone(), (self.top, self.last));
        self.remembered_order.push_back((item.id.clone(), self.last));
        self.remembered_bytes += remembered_size(&item.id);
        self.trim(settings, now_ms);
        Ok((position, Some(entry)))
    }

    /// Counts the newest value of a key in the place of the one that it has.
    fn make_room(&mut self, key: &Key, item: &Item, limit: &LatestLimit) -> Result<(), EngineError> {
        let size = |entry: &Entry| key.as_str().len() + entry.payload.len() + entry.message.as_str().len();
        let earlier = self.values.get(key).map(size);
        let bytes = self.value_bytes + item.value_bytes(key) - earlier.unwrap_or(0);
        let grows = bytes > self.value_bytes;
        if (earlier.is_none() && self.values.len() >= limit.max_keys) || (grows && bytes > limit.max_bytes) {
            return Err(limit.refusal());
        }
        self.value_bytes = bytes;
        Ok(())
    }

    /// The newest entry of each key.
    pub fn latest(&self, region: &Region) -> Latest {
        let mut entries: Vec<Entry> = self.values.values().cloned().collect();
        entries.sort_unstable_by_key(|entry| entry.position.n);
        Latest { entries, top: self.top(region) }
    }

    /// Drops what is beyond the retention and the dedupe window.
    pub fn trim(&mut self, settings: &Settings, now_ms: u64) {
        let retention = &settings.retention;
        let oldest_ms = now_ms.saturating_sub(millis(retention.max_age));
        while let Some(first) = self.entries.front()
            && (self.entries.len() > retention.max_entries
                || self.entry_bytes > retention.max_bytes
                || first.position.id.ms < oldest_ms)
        {
            self.entry_bytes -= first.payload.len() + first.message.as_str().len();
            self.entries.pop_front();
        }
        let oldest_ms = now_ms.saturating_sub(millis(settings.dedupe_window));
        while let Some((message, id)) = self.remembered_order.front()
            && (self.remembered_order.len() > settings.max_ids || id.ms < oldest_ms)
        {
            self.remembered_bytes -= remembered_size(message);
            self.remembered.remove(message);
            self.remembered_order.pop_front();
        }
    }

    /// Reads a part.
    pub fn read(&self, region: &Region, after: Option<&Position>, limit: ReadLimit) -> Slice {
        let first = self.top + 1 - self.entries.len() as u64;
        let index_of = |n: u64| usize::try_from(n.saturating_sub(first)).unwrap_or(usize::MAX);
        let at = after.filter(|position| position.n >= first).and_then(|position| {
            let entry = self.entries.get(index_of(position.n))?;
            (entry.position.id == position.id).then(|| entry.mark())
        });
        let mut entries = Vec::new();
        let mut bytes = 0_usize;
        for entry in self.entries.iter().skip(after.map_or(0, |position| index_of(position.n + 1))) {
            bytes = bytes.saturating_add(entry.payload.len());
            if !entries.is_empty() && (entries.len() >= limit.max_entries || bytes > limit.max_bytes) {
                break;
            }
            entries.push(entry.clone());
        }
        let log = Log { top: self.top, first, first_epoch: self.epoch.clone() };
        Slice { entries, log, top: self.top(region), at }
    }

    fn position(&self, region: &Region, n: u64, id: EntryId) -> Position {
        Position { region: region.clone(), epoch: self.epoch.clone(), n, id }
    }
}

fn remembered_size(message: &MessageId) -> usize {
    message.as_str().len() + OVERHEAD_BYTES
}
