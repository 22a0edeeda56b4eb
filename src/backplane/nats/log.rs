//! Reading a channel's log out of the stream.
//!
//! The server keeps more than `history` says: entries that are too old, or too many bytes, until somebody trims them
//! (`trim.rs`), and the newest entry for a day so that numbers go on. What is retained is decided here, from what each
//! entry says of itself. Numbers, times and bytes of a log grow with the sequence, so the first that is retained, or the
//! one with a number, is found by halving: one question a step, and no more than 64.

use serde_json::json;

use super::super::engine::{EngineError, ReadLimit, Retention, Slice};
use super::super::position::{Epoch, Position, Region};
use super::super::recover::Log;
use super::session::Session;
use super::wire::{Record, malformed};

/// Up to so many entries are asked for one by one; for more the server is given a consumer.
const ONE_BY_ONE: usize = 3;

/// How many entries are read at once where those that are there have more bytes than are wanted.
const PART: usize = 16;

/// How often the ends of a log are read, when they change meanwhile.
const TRIES: usize = 4;

/// A log that is read.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    pub session: &'a Session,
    pub region: &'a Region,
    pub subject: &'a str,
    pub retention: &'a Retention,
    /// The server's time.
    pub now_ms: u64,
}

/// The ends of what the stream has of a log.
#[derive(Debug)]
pub struct Ends {
    pub first: Record,
    pub top: Record,
}

impl Reader<'_> {
    /// The newest entry that the stream has.
    pub async fn last(&self) -> Result<Option<Record>, EngineError> {
        self.session.get(self.region, self.subject, json!({ "last_by_subj": self.subject })).await
    }

    /// The oldest entry that the stream has from a sequence on.
    async fn next(&self, seq: u64) -> Result<Option<Record>, EngineError> {
        let question = json!({ "seq": seq.max(1), "next_by_subj": self.subject });
        self.session.get(self.region, self.subject, question).await
    }

    /// Both ends.
    pub async fn ends(&self) -> Result<Option<Ends>, EngineError> {
        for _ in 0..TRIES {
            let (first, top) = tokio::join!(self.next(1), self.last());
            match (first?, top?) {
                (None, None) => return Ok(None),
                (Some(first), Some(top)) if first.seq() <= top.seq() => return Ok(Some(Ends { first, top })),
                // One of them was gone before the other was asked for.
                _ => {}
            }
        }
        Err(malformed("ends of a log"))
    }

    /// The first entry from `first` to `top` of which `is_behind` holds, as it does of all that follow it and of `top`.
    async fn search(
        &self,
        first: &Record,
        top: &Record,
        is_behind: impl Fn(&Record) -> bool,
    ) -> Result<Record, EngineError> {
        if is_behind(first) {
            return Ok(first.clone());
        }
        // The one that is looked for is behind `low`, and is `found` unless it is before `high`.
        let (mut low, mut high, mut found) = (first.seq(), top.seq(), top.clone());
        while high > low + 1 {
            let middle = low + (high - low) / 2;
            let record = self.next(middle).await?.ok_or_else(|| malformed("middle of a log"))?;
            if is_behind(&record) {
                (high, found) = (middle, record);
            } else {
                low = record.seq();
            }
        }
        Ok(found)
    }

    /// The first entry that is retained, if any is.
    pub async fn first_kept(&self, ends: &Ends) -> Result<Option<Record>, EngineError> {
        let is_kept = |record: &Record| record.is_kept(&ends.top, self.retention, self.now_ms);
        if !is_kept(&ends.top) {
            return Ok(None);
        }
        self.search(&ends.first, &ends.top, is_kept).await.map(Some)
    }

    /// A part of the log, as [`super::super::engine::Engine::read`] gives it.
    pub async fn read(
        &self,
        lineage: &Epoch,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> Result<Slice, EngineError> {
        let at = async {
            match after.filter(|after| !after.is_origin()) {
                Some(after) => self.next(after.id.seq).await,
                None => Ok(None),
            }
        };
        let (ends, at) = tokio::join!(self.ends(), at);
        let (ends, at) = (ends?, at?);
        let Some(ends) = ends else {
            let top = Position::origin(self.region.clone(), lineage.clone());
            let log = Log { top: 0, first: 1, first_epoch: lineage.clone() };
            return Ok(Slice { entries: Vec::new(), log, top, at: None });
        };
        let top = ends.top.position().clone();
        let seen = after.map_or(0, |after| after.n);
        let at = at.filter(|at| after.is_some_and(|after| at.n() == after.n && at.position().id == after.id));
        let at_kept = at.as_ref().filter(|at| at.is_kept(&ends.top, self.retention, self.now_ms));
        // Whoever is at an entry that is retained does not ask how many are before it.
        let first = if at_kept.is_some() { Some(ends.first.clone()) } else { self.first_kept(&ends).await? };
        let Some(first) = first else {
            let log = Log { top: top.n, first: top.n.saturating_add(1), first_epoch: top.epoch.clone() };
            return Ok(Slice { entries: Vec::new(), log, top, at: None });
        };
        let mut log = Log { top: top.n, first: first.n(), first_epoch: first.position().epoch.clone() };
        let mark = at_kept.map(|at| at.entry.mark());
        let mut records = Vec::new();
        if seen < top.n {
            let from = if seen < first.n() {
                first.clone()
            } else if let Some(at) = &at {
                self.next(at.seq() + 1).await?.ok_or_else(|| malformed("end of a log"))?
            } else {
                self.search(&first, &ends.top, |record| record.n() > seen).await?
            };
            records = self.entries(from, &ends.top, limit).await?;
        }
        // What was dropped by the server while it was read was in front of what is left.
        if let Some(oldest) = records.first()
            && oldest.n() > log.first.max(seen + 1)
        {
            (log.first, log.first_epoch) = (oldest.n(), oldest.position().epoch.clone());
        }
        let entries = records.into_iter().map(|record| record.entry).collect();
        Ok(Slice { entries, log, top, at: mark })
    }

    /// Entries from one on, up to the top or the limit.
    async fn entries(&self, from: Record, top: &Record, limit: ReadLimit) -> Result<Vec<Record>, EngineError> {
        let there = usize::try_from(top.n().saturating_sub(from.n())).unwrap_or(usize::MAX).saturating_add(1);
        let wanted = there.min(limit.max_entries.max(1));
        let size = |record: &Record| record.entry.payload.len();
        // How many bytes are there is known, so that a consumer is not asked for more than is taken.
        let bytes_there = usize::try_from(top.bytes_up_to.saturating_sub(from.bytes_up_to)).unwrap_or(usize::MAX);
        let at_once = if bytes_there <= limit.max_bytes { usize::MAX } else { PART };
        let mut bytes = size(&from);
        let mut records = vec![from];
        while records.len() < wanted {
            // Behind a hole there may be fewer than were wanted.
            let Some(last) = records.last().filter(|last| last.n() < top.n()) else { break };
            let (next_seq, last_n) = (last.seq() + 1, last.n());
            let missing = (wanted - records.len()).min(at_once);
            let more = if missing == 1 && last_n + 1 == top.n() {
                vec![top.clone()]
            } else if missing <= ONE_BY_ONE {
                self.next(next_seq).await?.into_iter().collect()
            } else {
                self.session.fetch(self.region, self.subject, next_seq, missing).await?
            };
            // A server that is behind is asked again by whoever reads.
            if more.is_empty() {
                return Err(EngineError::TimedOut);
            }
            for record in more {
                let Some(last) = records.last() else { break };
                if record.n() != last.n() + 1 {
                    if record.n() <= last.n() {
                        return Err(malformed("numbers of a log"));
                    }
                    // The server has dropped what was just read and more: what it has now is the log.
                    bytes = 0;
                    records.clear();
                }
                bytes += size(&record);
                if (bytes > limit.max_bytes && !records.is_empty()) || record.n() > top.n() {
                    return Ok(records);
                }
                records.push(record);
            }
        }
        Ok(records)
    }
}
