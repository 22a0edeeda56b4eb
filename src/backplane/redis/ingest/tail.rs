//! How far a foreign stream was read, and whether what is read next follows on it: nothing here awaits.
//!
//! That nothing was missed between two reads is proven in one of two ways. The entry that was read last is still there:
//! streams are trimmed from their beginning, so all that came behind it is there too. Or the server counts what was ever
//! added (Redis 7.0 and later), it is the same process as before, and as many were added since as are there now: then
//! nothing but what was read is gone. Everything else is a gap.

use super::super::super::engine::{Channel, Entry, Slice};
use super::super::super::position::{EntryId, Epoch, Position};
use super::super::super::recover::{Log, Mark};
use super::rule::{self, Fields};

/// What `read.lua` gives.
#[derive(Debug)]
pub struct Part {
    /// How many entries were ever added, if the server counts them.
    pub added: Option<u64>,
    /// How many there are.
    pub length: u64,
    /// The newest entry's id.
    pub newest: EntryId,
    /// Whether the entry that was read behind is there.
    pub is_there: bool,
    /// Whether there is more.
    pub more: bool,
    /// The entries.
    pub entries: Vec<(EntryId, Fields)>,
}

/// The end of a stream, as far as it was read.
#[derive(Debug)]
pub struct Tail {
    channel: Channel,
    /// The last entry that was read, numbered by this node.
    last: Position,
    /// How many entries had been added up to that, by the count of this process.
    count: Option<(Epoch, u64)>,
}

/// What came of a part.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// These follow on the last.
    Entries(Vec<Entry>),
    /// Something may be missing. The tail is at the stream's end now.
    Gap,
}

impl Tail {
    /// At the end of a stream, of which `part` says where that is.
    pub fn new(channel: Channel, start: &Position, lineage: &Epoch, part: &Part) -> Self {
        // Any number does that leaves room for what is before it; where it is counted, the count is told to clients.
        let n = if part.newest == EntryId::default() { 0 } else { part.added.unwrap_or(UNCOUNTED).max(1) };
        let last = Position { epoch: fresh(), n, id: part.newest, ..start.clone() };
        Self { channel, last, count: part.added.map(|added| (lineage.clone(), added)) }
    }

    /// The last entry that was read.
    pub fn last(&self) -> &Position {
        &self.last
    }

    /// Takes what was read behind the last entry.
    pub fn take(&mut self, lineage: &Epoch, part: Part) -> Taken {
        if !self.follows(lineage, &part) {
            self.restart(lineage, &part, self.last.n);
            return Taken::Gap;
        }
        let entries: Vec<Entry> = self.number(&self.last.clone(), &self.last.epoch.clone(), part.entries);
        if let Some(newest) = entries.last() {
            self.last = newest.position.clone();
        }
        self.count = part.added.filter(|_| !part.more).map(|added| (lineage.clone(), added));
        Taken::Entries(entries)
    }

    fn follows(&self, lineage: &Epoch, part: &Part) -> bool {
        let read = part.entries.len() as u64;
        let counted = |(of, count): &(Epoch, u64)| {
            of == lineage && !part.more && part.added.is_some_and(|added| added == count.saturating_add(read))
        };
        // The newest id that was given out is given out once.
        let nothing_new = part.entries.is_empty() && part.newest == self.last.id && !self.last.is_origin();
        part.is_there || nothing_new || self.count.as_ref().is_some_and(counted)
    }

    /// Goes on at the stream's end, behind a hole of unknown size.
    fn restart(&mut self, lineage: &Epoch, part: &Part, n: u64) {
        let is_empty = part.newest == EntryId::default();
        self.last = Position {
            epoch: fresh(),
            n: if is_empty { 0 } else { n.saturating_add(2) },
            id: part.newest,
            region: self.last.region.clone(),
        };
        self.count = part.added.map(|added| (lineage.clone(), added));
    }

    /// What a reader at `after` gets of a tail that is up to date: `part` was read behind that place, if it is another
    /// than the last.
    ///
    /// A reader's numbers and this tail's may differ, when the producer has deleted an entry that one of them has seen.
    /// Then they go on from the reader's, in another epoch.
    pub fn slice(&mut self, after: &Position, lineage: &Epoch, part: Option<Part>) -> Slice {
        let Some(part) = part else {
            if *after != self.last {
                self.last = Position { epoch: self.epoch_for(after), ..after.clone() };
            }
            return continuous(after, Vec::new(), after.clone());
        };
        let read = part.entries.len() as u64;
        let whole = after.is_origin() && part.added == Some(part.length);
        if !(part.is_there || whole) {
            return self.gap(after);
        }
        let epoch = match part.entries.last() {
            Some((id, _)) if !part.more => {
                let newest = Position { n: after.n.saturating_add(read), id: *id, ..self.last.clone() };
                self.epoch_for(&newest)
            }
            _ if after.epoch == self.last.epoch => after.epoch.clone(),
            _ => fresh(),
        };
        let entries = self.number(after, &epoch, part.entries);
        let newest = entries.last().map_or(after, |entry| &entry.position).clone();
        if part.more {
            // One more at least: the reader comes again.
            let top = Position { n: newest.n.saturating_add(1), id: part.newest, ..newest };
            return continuous(after, entries, top);
        }
        self.last = newest.clone();
        self.count = part.added.map(|added| (lineage.clone(), added));
        continuous(after, entries, newest)
    }

    /// The epoch of what has this position: the one of now, if the last entry has its number here too.
    fn epoch_for(&self, newest: &Position) -> Epoch {
        let same = newest.n == self.last.n && newest.id == self.last.id;
        if same { self.last.epoch.clone() } else { fresh() }
    }

    fn gap(&mut self, after: &Position) -> Slice {
        // The stream ends before what the reader has seen: it was emptied, or has lost its end.
        let is_behind = after.id > self.last.id;
        let is_empty = self.last.is_origin();
        let n = if is_empty { 0 } else { self.last.n.max(after.n).saturating_add(2) };
        self.last = Position { epoch: fresh(), n, ..self.last.clone() };
        let first = if is_behind { 1 } else { n.saturating_add(1) };
        let log = Log { top: n, first, first_epoch: self.last.epoch.clone() };
        Slice { entries: Vec::new(), log, top: self.last.clone(), at: None }
    }

    fn number(&self, after: &Position, epoch: &Epoch, entries: Vec<(EntryId, Fields)>) -> Vec<Entry> {
        let numbered = (after.n.saturating_add(1)..).zip(entries);
        let position = |n, id| Position { region: self.last.region.clone(), epoch: epoch.clone(), n, id };
        numbered.map(|(n, (id, fields))| rule::entry(&self.channel, position(n, id), fields)).collect()
    }
}

/// Where numbers begin that nobody counts: higher than what is ever read back.
const UNCOUNTED: u64 = 1 << 20;

/// An epoch that no other is: numbers of another say nothing of this one's.
fn fresh() -> Epoch {
    let name = format!("x{:016x}", rand::random::<u64>());
    Epoch::new(&name).unwrap_or_else(|_| Epoch::unnamed())
}

/// Entries that follow on `after`, which is proven.
fn continuous(after: &Position, entries: Vec<Entry>, top: Position) -> Slice {
    let log = Log { top: top.n, first: after.n.max(1), first_epoch: after.epoch.clone() };
    let at = (!after.is_origin()).then(|| Mark { epoch: after.epoch.clone(), id: after.id });
    Slice { entries, log, top, at }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::position::Place;
    use super::super::super::super::recover::{Recovery, ReplayLimit, Why};
    use super::*;

    const ALL: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

    fn lineage(name: &str) -> Epoch {
        Epoch::new(name).unwrap()
    }

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    /// What a stream with entries at these times says to who read behind `after`.
    fn part(added: Option<u64>, ids: &[u64], after: u64) -> Part {
        let fields = || Fields { id: None, data: Some(b"x".to_vec()) };
        Part {
            added,
            length: ids.len() as u64,
            newest: id(ids.last().copied().unwrap_or_default()),
            is_there: ids.contains(&after),
            more: false,
            entries: ids.iter().filter(|ms| **ms > after).map(|ms| (id(*ms), fields())).collect(),
        }
    }

    fn tail(added: Option<u64>, newest: u64) -> Tail {
        let channel = Channel::new("room:1").unwrap();
        let start = "eu.a.0.0-0".parse().unwrap();
        let ids: &[u64] = if newest == 0 { &[] } else { &[newest] };
        Tail::new(channel, &start, &lineage("a"), &part(added, ids, u64::MAX))
    }

    /// The numbers and times of what was taken, or nothing for a gap.
    fn taken(taken: Taken) -> Option<Vec<(u64, u64)>> {
        match taken {
            Taken::Entries(entries) => {
                Some(entries.iter().map(|entry| (entry.position.n, entry.position.id.ms)).collect())
            }
            Taken::Gap => None,
        }
    }

    #[test]
    fn what_follows_an_entry_that_is_there_is_numbered_on() {
        let mut tail = tail(Some(7), 70);
        assert_eq!(taken(tail.take(&lineage("a"), part(Some(9), &[70, 80, 90], 70))), Some(vec![(8, 80), (9, 90)]));
        // After a fail-over too: the entry is there, so is what came behind it.
        assert_eq!(taken(tail.take(&lineage("b"), part(Some(10), &[90, 95], 90))), Some(vec![(10, 95)]));
        let uncounted = tail_at_uncounted();
        assert_eq!(uncounted, UNCOUNTED);
    }

    fn tail_at_uncounted() -> u64 {
        tail(None, 5).last().n
    }

    #[test]
    fn without_the_entry_the_count_of_the_same_process_proves_it() {
        let take = |name: &str, added: Option<u64>, ids: &[u64]| {
            taken(tail(Some(7), 70).take(&lineage(name), part(added, ids, 70)))
        };
        assert_eq!(take("a", Some(8), &[80]), Some(vec![(8, 80)]), "only the one that was read was trimmed");
        assert_eq!(take("a", Some(9), &[90]), None, "80 came and went");
        assert_eq!(take("b", Some(8), &[80]), None, "another process may have lost 70, and counted on");
        assert_eq!(take("a", None, &[80]), None);
        assert_eq!(take("a", Some(1), &[80]), None, "emptied, and filled again");
        assert_eq!(take("a", Some(0), &[]), None, "emptied");
    }

    #[test]
    fn the_first_entry_of_a_stream_follows_on_none() {
        let mut first = tail(Some(0), 0);
        assert!(first.last().is_origin());
        assert_eq!(taken(first.take(&lineage("a"), part(Some(0), &[], 0))), Some(vec![]));
        assert_eq!(taken(first.take(&lineage("a"), part(Some(2), &[10, 20], 0))), Some(vec![(1, 10), (2, 20)]));
        assert_eq!(taken(tail(Some(0), 0).take(&lineage("a"), part(Some(3), &[20, 30], 0))), None, "10 was trimmed");
        assert_eq!(taken(tail(Some(0), 0).take(&lineage("a"), part(None, &[10], 0))), None, "nobody counted");
    }

    #[test]
    fn behind_a_gap_it_goes_on_in_another_epoch_with_a_higher_number() {
        let mut tail = tail(Some(7), 70);
        let before = tail.last().clone();
        assert_eq!(tail.take(&lineage("a"), part(Some(12), &[110, 120], 70)), Taken::Gap);
        let last = tail.last().clone();
        assert_eq!((last.id, last.n > before.n, last.epoch == before.epoch), (id(120), true, false));
        let slice = tail.slice(&before, &lineage("a"), Some(part(Some(12), &[110, 120], 70)));
        assert_eq!(slice.recover(&Place::After(before), ALL), Recovery::Gap(Why::Trimmed));
        assert_eq!((&slice.top, slice.top.id), (tail.last(), id(120)));
    }

    #[test]
    fn a_reader_gets_what_lies_behind_its_place_or_a_gap() {
        let mut tail = tail(Some(7), 70);
        let seen = tail.last().clone();
        tail.take(&lineage("a"), part(Some(9), &[70, 80, 90], 70));
        let slice = tail.slice(&seen, &lineage("a"), Some(part(Some(9), &[70, 80, 90], 70)));
        assert_eq!(slice.recover(&Place::After(seen.clone()), ALL), Recovery::Replay { from: 8, to: 9 });
        assert!(slice.is_complete() && slice.entries[0].position.epoch == seen.epoch);
        // It is where the tail is, though the entry is gone.
        let last = tail.last().clone();
        let slice = tail.slice(&last, &lineage("a"), None);
        assert_eq!(slice.recover(&Place::After(last.clone()), ALL), Recovery::Replay { from: 10, to: 9 });
        // The stream lost its end.
        tail.take(&lineage("b"), part(Some(7), &[70], 90));
        let slice = tail.slice(&last, &lineage("b"), Some(part(Some(7), &[70], 90)));
        assert_eq!(slice.recover(&Place::After(last), ALL), Recovery::Gap(Why::Lineage));
    }

    #[test]
    fn a_reader_that_counts_otherwise_changes_the_epoch() {
        let mut tail = tail(Some(7), 70);
        let seen = tail.last().clone();
        tail.take(&lineage("a"), part(Some(10), &[70, 80, 90, 100], 70));
        // 80 was deleted before the reader saw it.
        let slice = tail.slice(&seen, &lineage("a"), Some(part(Some(10), &[70, 90, 100], 70)));
        let numbers: Vec<_> = slice.entries.iter().map(|entry| (entry.position.n, entry.position.id.ms)).collect();
        assert_eq!(numbers, [(8, 90), (9, 100)]);
        assert_eq!((tail.last(), tail.last().epoch == seen.epoch), (&slice.top, false));
    }

    #[test]
    fn a_part_with_more_behind_it_says_so() {
        let mut tail = tail(Some(7), 70);
        let seen = tail.last().clone();
        let cut = Part { more: true, newest: id(99), ..part(Some(30), &[70, 80], 70) };
        let slice = tail.slice(&seen, &lineage("a"), Some(cut));
        assert_eq!(slice.recover(&Place::After(seen), ALL), Recovery::Replay { from: 8, to: 9 });
        assert!(!slice.is_complete());
        assert_eq!(tail.last().id, id(70), "the tail goes its own way");
    }
}
