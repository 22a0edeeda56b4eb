//! The newest entries of a channel that this node has, without a hole: what resumes and slow sessions are fed from.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Publication;
use crate::backplane::engine::{MessageId, Retention};
use crate::backplane::position::{EntryId, Position};
use crate::backplane::recover::Mark;

/// What the windows of all channels of a hub may have together, in bytes.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    pub(super) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether more is used than there is.
    pub(super) fn is_passed(&self) -> bool {
        self.used() > self.limit
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Entries with contiguous numbers, the newest last. Bounded as a log is, and by what all windows may have; the oldest go,
/// but never the newest.
#[derive(Debug)]
pub(super) struct Window {
    entries: VecDeque<Arc<Publication>>,
    bytes: usize,
    retention: Retention,
    budget: Arc<Budget>,
}

impl Window {
    pub(super) fn new(retention: Retention, budget: Arc<Budget>) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, retention, budget }
    }

    /// Appends the entry behind the newest. One that does not follow on it starts the window anew.
    pub(super) fn push(&mut self, publication: Arc<Publication>) {
        if self.entries.back().is_some_and(|newest| newest.n() + 1 != publication.n()) {
            self.clear();
        }
        self.bytes += publication.size_bytes();
        self.budget.take(publication.size_bytes());
        self.entries.push_back(publication);
        self.trim();
    }

    /// Puts entries before number `next`, which is that of the oldest, or of what comes next where there is none: as far
    /// as they lead up to it without a hole and there is room.
    pub(super) fn prepend(&mut self, older: Vec<Arc<Publication>>, mut next: u64) {
        for publication in older.into_iter().rev() {
            if publication.n() >= next {
                continue;
            }
            let bytes = self.bytes + publication.size_bytes();
            let fits = self.entries.len() < self.retention.max_entries
                && bytes <= self.retention.max_bytes
                && self.budget.used() + publication.size_bytes() <= self.budget.limit;
            if publication.n() + 1 != next || !fits {
                return;
            }
            (next, self.bytes) = (publication.n(), bytes);
            self.budget.take(publication.size_bytes());
            self.entries.push_front(publication);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.budget.give_back(std::mem::take(&mut self.bytes));
    }

    /// The number of the oldest entry.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.n())
    }

    pub(super) fn oldest(&self) -> Option<&Arc<Publication>> {
        self.entries.front()
    }

    pub(super) fn newest(&self) -> Option<&Arc<Publication>> {
        self.entries.back()
    }

    pub(super) fn get(&self, n: u64) -> Option<&Arc<Publication>> {
        let index = n.checked_sub(self.first()?)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// What tells the entry with this number from any other.
    pub(super) fn mark(&self, n: u64) -> Option<Mark> {
        self.get(n).map(|publication| publication.entry.mark())
    }

    /// The payloads of the entries `from..=to` that are here.
    pub(super) fn payload_bytes(&self, from: u64, to: u64) -> u64 {
        let of = |publication: &Arc<Publication>| publication.entry.payload.len() as u64;
        self.entries.iter().filter(|entry| (from..=to).contains(&entry.n())).map(of).sum()
    }

    /// The position of the newest entry with this message id.
    pub(super) fn find(&self, message: &MessageId) -> Option<&Position> {
        let found = self.entries.iter().rev().find(|publication| publication.entry.message == *message);
        found.map(|publication| &publication.entry.position)
    }

    /// The position of the entry with this id.
    pub(super) fn find_entry(&self, id: EntryId) -> Option<&Position> {
        let at = self.entries.binary_search_by_key(&id, |publication| publication.entry.position.id).ok()?;
        self.entries.get(at).map(|publication| &publication.entry.position)
    }

    /// The position of the newest entry that was stored before this time, in milliseconds since 1970.
    pub(super) fn newest_before(&self, ms: u64) -> Option<&Position> {
        let behind = self.entries.partition_point(|publication| publication.entry.position.id.ms < ms);
        self.entries.get(behind.checked_sub(1)?).map(|publication| &publication.entry.position)
    }

    /// The entries up to this number, the oldest first.
    pub(super) fn up_to(&self, n: u64) -> impl Iterator<Item = &Arc<Publication>> {
        self.entries.iter().take_while(move |publication| publication.n() <= n)
    }

    fn trim(&mut self) {
        while self.entries.len() > self.retention.max_entries
            || self.bytes > self.retention.max_bytes
            || (self.entries.len() > 1 && self.budget.is_passed())
        {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.size_bytes();
            self.budget.give_back(oldest.size_bytes());
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.clear();
    }
}
