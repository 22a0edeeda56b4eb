//! What a reader who comes back can be given: everything since its place, or a gap that says so.
//!
//! Pure: the whole decision is one function over the place, the log's ends, and the entry that has the place's number.
//! The numbers of a log alone prove nothing, since an engine that lost its newest entries gives the same numbers out
//! again; an entry's id and epoch do.

use super::position::{EntryId, Epoch, Place};

/// The two ends of a log as they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The number of the newest entry; 0 if there never was one.
    pub top: u64,
    /// The number of the oldest entry that is retained; `top + 1` if none is.
    pub first: u64,
    /// The epoch that the oldest retained entry was written in; if none is, that of the newest that was written; if there
    /// never was one, the engine's lineage.
    pub first_epoch: Epoch,
}

/// What tells an entry from any other that ever had its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The epoch that it was written in.
    pub epoch: Epoch,
    /// Its id.
    pub id: EntryId,
}

/// How much is replayed at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimit {
    /// Entries.
    pub max_entries: u64,
    /// Bytes of their payloads.
    pub max_bytes: u64,
}

/// Why nothing can be said of the entries between a place and the log's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The entries at the place are not those that the reader saw, or nothing proves that they are: the engine was
    /// emptied, or lost what was not replicated.
    Lineage,
    /// There are more than the replay may have.
    Limit,
    /// They were dropped by age, count or bytes.
    Trimmed,
}

/// What a reader gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// What comes from now on; it missed nothing that it asked for.
    Live,
    /// All entries from `from` to `to`, both included, then what comes. Nothing if `from` is `to + 1`.
    Replay {
        /// The first that it has not seen.
        from: u64,
        /// The newest.
        to: u64,
    },
    /// It must be told that entries may be missing, and gets what comes from now on.
    Gap(Why),
}

/// Decides what a reader at `place` gets of a log.
///
/// `entry` gives the mark of the entry with a number, if it is retained; `bytes` how many bytes of payload the entries of
/// a range have, both ends included. Each is asked once at most.
pub fn recover(
    place: &Place,
    log: &Log,
    limit: ReplayLimit,
    entry: impl FnOnce(u64) -> Option<Mark>,
    bytes: impl FnOnce(u64, u64) -> u64,
) -> Recovery {
    let seen = match place {
        Place::Now => return Recovery::Live,
        Place::Start => 0,
        Place::After(position) => position.n,
    };
    // A log that died and was born again has lower numbers; so has an engine that lost its newest entries.
    if seen > log.top {
        return Recovery::Gap(Why::Lineage);
    }
    let before_first = log.first.saturating_sub(1);
    if seen < before_first {
        return Recovery::Gap(Why::Trimmed);
    }
    let proven = match place {
        Place::Now | Place::Start => true,
        // The entry itself is gone. A log's beginning is never lost alone, so if the next entry was written in the same
        // epoch, it was written behind the one that the reader saw. A log's very first entry was born under a lineage.
        Place::After(position) if position.is_origin() => log.first_epoch.is_of(&position.epoch),
        Place::After(position) if seen == before_first => log.first_epoch == position.epoch,
        Place::After(position) => {
            entry(seen).is_some_and(|mark| mark.id == position.id && mark.epoch == position.epoch)
        }
    };
    if !proven {
        return Recovery::Gap(Why::Lineage);
    }
    let missed = log.top - seen;
    if missed == 0 {
        return if seen == 0 { Recovery::Live } else { Recovery::Replay { from: log.top + 1, to: log.top } };
    }
    if missed > limit.max_entries || bytes(seen + 1, log.top) > limit.max_bytes {
        return Recovery::Gap(Why::Limit);
    }
    Recovery::Replay { from: seen + 1, to: log.top }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::position::{Position, Region};
    use super::*;

    const LIMIT: ReplayLimit = ReplayLimit { max_entries: 100, max_bytes: 1000 };

    fn epoch(name: &str) -> Epoch {
        Epoch::new(name).unwrap()
    }

    fn at(name: &str, n: u64, ms: u64) -> Place {
        let region = Region::new("eu").unwrap();
        Place::After(Position { region, epoch: epoch(name), n, id: EntryId { ms, seq: 0 } })
    }

    /// Entries `first..=top` of epoch `a1`, entry n written at 10 n ms with 10 bytes.
    fn decide(place: &Place, first: u64, top: u64) -> Recovery {
        let log = Log { top, first, first_epoch: epoch("a1") };
        let mark = |n: u64| Mark { epoch: epoch("a1"), id: EntryId { ms: 10 * n, seq: 0 } };
        let retained = |n: u64| (first..=top).contains(&n).then(|| mark(n));
        recover(place, &log, LIMIT, retained, |from, to| 10 * (to - from + 1))
    }

    #[test]
    fn row_1_a_reader_without_a_place_goes_live() {
        assert_eq!(decide(&Place::Now, 3, 9), Recovery::Live);
    }

    #[test]
    fn row_2_before_the_first_entry_of_a_log_that_has_none_goes_live() {
        assert_eq!(decide(&Place::Start, 1, 0), Recovery::Live);
        assert_eq!(decide(&at("a", 0, 0), 1, 0), Recovery::Live);
        assert_eq!(decide(&at("b", 0, 0), 1, 0), Recovery::Gap(Why::Lineage), "entries may have come and gone");
    }

    #[test]
    fn row_3_a_place_beyond_the_top_is_a_lost_suffix() {
        assert_eq!(decide(&at("a1", 10, 100), 3, 9), Recovery::Gap(Why::Lineage));
        assert_eq!(decide(&at("a1", 1, 10), 1, 0), Recovery::Gap(Why::Lineage));
    }

    #[test]
    fn row_4_an_entry_that_is_still_there_proves_what_came_before() {
        assert_eq!(decide(&at("a1", 3, 30), 3, 9), Recovery::Replay { from: 4, to: 9 });
        assert_eq!(decide(&at("a1", 8, 80), 3, 9), Recovery::Replay { from: 9, to: 9 });
        assert_eq!(decide(&at("a1", 9, 90), 3, 9), Recovery::Replay { from: 10, to: 9 });
        // The epoch of the log's other end does not matter.
        let log = Log { top: 9, first: 3, first_epoch: epoch("old") };
        let mark = Mark { epoch: epoch("a1"), id: EntryId { ms: 80, seq: 0 } };
        let recovery = recover(&at("a1", 8, 80), &log, LIMIT, |_| Some(mark), |_, _| 1);
        assert_eq!(recovery, Recovery::Replay { from: 9, to: 9 });
    }

    #[test]
    fn row_5_another_entry_of_the_same_number_is_a_lost_suffix() {
        assert_eq!(decide(&at("a1", 9, 91), 3, 9), Recovery::Gap(Why::Lineage));
        assert_eq!(decide(&at("a1", 3, 29), 3, 9), Recovery::Gap(Why::Lineage));
        assert_eq!(decide(&at("b1", 9, 90), 3, 9), Recovery::Gap(Why::Lineage), "the same id by another clock");
        let log = Log { top: 9, first: 3, first_epoch: epoch("a1") };
        let recovery = recover(&at("a1", 5, 50), &log, LIMIT, |_| None, |_, _| 1);
        assert_eq!(recovery, Recovery::Gap(Why::Lineage), "a hole in the log");
    }

    #[test]
    fn row_6_the_first_retained_entry_of_the_same_epoch_proves_the_one_before_it() {
        assert_eq!(decide(&at("a1", 2, 20), 3, 9), Recovery::Replay { from: 3, to: 9 });
        assert_eq!(decide(&at("a1", 9, 90), 10, 9), Recovery::Replay { from: 10, to: 9 }, "all is trimmed and seen");
        assert_eq!(decide(&at("a", 0, 0), 1, 9), Recovery::Replay { from: 1, to: 9 }, "born under the lineage");
        assert_eq!(decide(&Place::Start, 1, 9), Recovery::Replay { from: 1, to: 9 });
    }

    #[test]
    fn row_7_the_first_retained_entry_of_another_epoch_proves_nothing() {
        assert_eq!(decide(&at("b1", 2, 20), 3, 9), Recovery::Gap(Why::Lineage));
        assert_eq!(decide(&at("a", 2, 20), 3, 9), Recovery::Gap(Why::Lineage), "a lineage is no epoch");
        assert_eq!(decide(&at("b", 0, 0), 1, 9), Recovery::Gap(Why::Lineage));
    }

    #[test]
    fn row_8_a_place_before_what_is_retained_is_trimmed() {
        assert_eq!(decide(&at("a1", 1, 10), 3, 9), Recovery::Gap(Why::Trimmed));
        assert_eq!(decide(&at("a1", 8, 80), 10, 9), Recovery::Gap(Why::Trimmed));
        assert_eq!(decide(&Place::Start, 2, 9), Recovery::Gap(Why::Trimmed));
        assert_eq!(decide(&at("a", 0, 0), 2, 9), Recovery::Gap(Why::Trimmed));
    }

    #[test]
    fn row_9_more_than_the_limit_is_not_replayed() {
        assert_eq!(decide(&at("a1", 1, 10), 1, 101), Recovery::Replay { from: 2, to: 101 });
        assert_eq!(decide(&at("a1", 1, 10), 1, 102), Recovery::Gap(Why::Limit));
        assert_eq!(decide(&at("a1", 1, 10), 2, 102), Recovery::Gap(Why::Limit), "also behind row 6");
        let log = Log { top: 5, first: 1, first_epoch: epoch("a1") };
        for (bytes, expected) in [(1000, Recovery::Replay { from: 1, to: 5 }), (1001, Recovery::Gap(Why::Limit))] {
            let size = |from, to| {
                assert_eq!((from, to), (1, 5));
                bytes
            };
            assert_eq!(recover(&Place::Start, &log, LIMIT, |_| None, size), expected);
        }
    }

    /// What happens to a log in the model.
    #[derive(Clone, Debug)]
    enum Step {
        Publish,
        Trim,
        /// The newest so many are lost and another process goes on.
        LoseSuffix(usize),
        /// All is lost, the numbers too, and another process goes on.
        Empty,
        /// All entries go by age; the numbers stay.
        Expire,
        /// A reader notes its place.
        Note,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => Just(Step::Publish),
            3 => Just(Step::Trim),
            1 => (0..4usize).prop_map(Step::LoseSuffix),
            1 => Just(Step::Empty),
            1 => Just(Step::Expire),
            4 => Just(Step::Note),
        ];
        proptest::collection::vec(step, 1..60)
    }

    /// A log that remembers what was ever in it, beside what an engine would know.
    #[derive(Default)]
    struct Model {
        /// All that is in the log's history as it stands, with what was trimmed: (serial, epoch, id).
        history: Vec<(u64, String, u64)>,
        trimmed: usize,
        lineage: u64,
        epoch: Option<String>,
        serial: u64,
    }

    impl Model {
        fn step(&mut self, step: &Step) {
            match step {
                Step::Publish => {
                    let lineage = format!("L{}-", self.lineage);
                    if !self.epoch.as_ref().is_some_and(|epoch| epoch.starts_with(&lineage)) {
                        self.epoch = Some(format!("{lineage}{}", self.serial));
                    }
                    self.serial += 1;
                    self.history.push((self.serial, self.epoch.clone().unwrap(), self.serial));
                }
                Step::Trim => self.trimmed = (self.trimmed + 1).min(self.history.len()),
                Step::Expire => self.trimmed = self.history.len(),
                Step::LoseSuffix(count) => {
                    self.history.truncate(self.history.len().saturating_sub(*count));
                    self.trimmed = self.trimmed.min(self.history.len());
                    self.epoch = self.history.last().map(|entry| entry.1.clone());
                    self.lineage += 1;
                }
                Step::Empty => {
                    self.history.clear();
                    (self.trimmed, self.epoch) = (0, None);
                    self.lineage += 1;
                }
                Step::Note => {}
            }
        }

        fn log(&self) -> Log {
            let lineage = format!("L{}-", self.lineage);
            let first =
                self.history.get(self.trimmed).map(|entry| &entry.1).or(self.epoch.as_ref()).unwrap_or(&lineage);
            Log { top: self.history.len() as u64, first: self.trimmed as u64 + 1, first_epoch: epoch(first) }
        }

        fn place(&self) -> Place {
            match self.history.last() {
                Some((_, name, id)) => at(name, self.history.len() as u64, *id),
                None => at(&format!("L{}-", self.lineage), 0, 0),
            }
        }
    }

    proptest! {
        #[test]
        fn a_replay_is_exactly_what_was_missed_and_a_loss_is_always_told(steps in steps()) {
            let mut model = Model::default();
            let mut notes: Vec<(Place, u64, u64, Vec<u64>)> = Vec::new();
            for step in &steps {
                model.step(step);
                if matches!(step, Step::Note) {
                    let seen = model.history.iter().map(|entry| entry.0).collect();
                    let place = model.place();
                    let Place::After(position) = &place else { unreachable!("a model's place is a position") };
                    let written = position.epoch.as_str().trim_start_matches('L').split('-').next().unwrap();
                    let written = written.parse().unwrap();
                    notes.push((place, model.serial, written, seen));
                }
                for (place, serial, lineage, seen) in &notes {
                    let mark = |n: u64| {
                        let index = usize::try_from(n).unwrap() - 1;
                        let entry = model.history.get(index).filter(|_| index >= model.trimmed)?;
                        Some(Mark { epoch: epoch(&entry.1), id: EntryId { ms: entry.2, seq: 0 } })
                    };
                    let limit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };
                    let published = model.serial - serial;
                    match recover(place, &model.log(), limit, mark, |_, _| 0) {
                        Recovery::Gap(Why::Trimmed) => prop_assert!(model.trimmed > 0),
                        Recovery::Gap(Why::Limit) => prop_assert!(false, "there is no limit"),
                        // A reader hears of another lineage only if there was one since its entry was written.
                        Recovery::Gap(Why::Lineage) => prop_assert!(model.lineage > *lineage),
                        Recovery::Live => prop_assert!(seen.is_empty() && published == 0),
                        Recovery::Replay { from, to } => {
                            let from = usize::try_from(from).unwrap() - 1;
                            prop_assert_eq!(usize::try_from(to).unwrap(), model.history.len());
                            prop_assert!(from >= model.trimmed, "all of it is retained");
                            // What the reader saw is still what the log says came before.
                            let before: Vec<_> = model.history.iter().take(from).map(|entry| entry.0).collect();
                            prop_assert_eq!(&before, seen);
                            if model.lineage == *lineage {
                                prop_assert_eq!((model.history.len() - from) as u64, published);
                            }
                        }
                    }
                }
            }
        }
    }
}
