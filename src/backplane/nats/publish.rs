//! Storing an item: once, and with the number behind the newest entry's.
//!
//! A publication says which entry it follows, and the server refuses it if another has come since; then the newest is asked
//! for, and it is tried again until the time-out. So numbers have no hole whoever publishes. What the server knows the id
//! of it does not store again, whatever it follows: that is looked at first.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use serde_json::json;

use super::super::engine::{Channel, EngineError, Item, PublishError, Published, Stored};
use super::super::position::{EntryId, Epoch, Position};
use super::log::Reader;
use super::session::Session;
use super::tails::{Known, Tail};
use super::wire::{self, Ack};
use super::witness::Witnessed;
use super::{Shared, clock, subjects};

/// The longest time between two tries of a publication that others were faster than; it is chosen by chance.
pub const CONFLICT_PAUSE: Duration = Duration::from_millis(10);

/// What one try came to.
pub enum Tried {
    /// It is there.
    Stored(Published),
    /// Another was faster.
    Conflict,
    /// The same item is being stored by another try, which may come to nothing.
    UnderWay,
}

impl Shared {
    pub(super) async fn publish(&self, channel: &Channel, item: &Item) -> Result<Published, PublishError> {
        item.check_size(&self.settings.retention)?;
        let until = Instant::now() + self.settings.timeout;
        let slot = self.tails.slot(channel);
        // Those of one channel wait for each other; the time-out is that of all of it.
        let Ok(mut known) = tokio::time::timeout_at(until.into(), slot.lock()).await else {
            return Err(PublishError::not_stored(EngineError::TimedOut));
        };
        let (mut conflicts, mut under_way) = (0_u32, false);
        while Instant::now() < until {
            let session = self.session().map_err(PublishError::not_stored)?;
            // What is told of a loss is to stand before what came since. A server that does not answer that will not store
            // either.
            let _ = self.look(&session, &mut known, channel, until).await;
            match self.try_publish(&session, &mut known, channel, item, until).await? {
                Tried::Stored(published) => return Ok(published),
                Tried::UnderWay => under_way = true,
                Tried::Conflict => under_way = false,
            }
            conflicts = conflicts.saturating_add(1);
            let longest = CONFLICT_PAUSE.mul_f64((f64::from(conflicts) / 16.0).min(1.0));
            tokio::time::sleep(longest.mul_f64(rand::random_range(0.0..=1.0))).await;
        }
        let stored = if under_way { Stored::Unknown } else { Stored::No };
        Err(PublishError { reason: EngineError::TimedOut, stored })
    }

    /// One try. What is known of the channel's end is taken, and is put back where it is known still.
    pub(super) async fn try_publish(
        &self,
        session: &Session,
        known: &mut Known,
        channel: &Channel,
        item: &Item,
        until: Instant,
    ) -> Result<Tried, PublishError> {
        let limit_bytes = session.max_item();
        if item.size_bytes() > limit_bytes {
            let found_bytes = item.size_bytes();
            return Err(PublishError::not_stored(EngineError::TooLarge { found_bytes, limit_bytes }));
        }
        let subject = subjects::stored(channel);
        let tail = match known.end.take() {
            Some((number, tail)) if number == session.number => tail,
            // Of another session nothing is known to be there still.
            _ => {
                let last = tokio::time::timeout_at(until.into(), self.reader(session, &subject).last()).await;
                let last = last.unwrap_or(Err(EngineError::TimedOut)).map_err(PublishError::not_stored)?;
                last.map(Tail::from)
            }
        };
        let (position, bytes_up_to, follows) = self.next(session, tail.as_ref(), item)?;
        let mut headers: HeaderMap = wire::headers(&position, bytes_up_to, item);
        headers.insert("Nats-Msg-Id", subjects::message(channel, &item.id));
        headers.insert("Nats-Expected-Last-Subject-Sequence", follows.to_string());
        let within = until.saturating_duration_since(Instant::now());
        let ack = session.publish(subject.clone(), headers, item.payload.clone(), within).await;
        match ack {
            Err(failure) => {
                // Whether it is stored is not known, so neither is the end. Without the stream the next session makes one.
                if failure.reason == EngineError::Unreachable {
                    session.link.lose(EngineError::Unreachable);
                }
                let stored = if failure.asked { Stored::Unknown } else { Stored::No };
                Err(PublishError { reason: failure.reason, stored })
            }
            Ok(Ack { error: Some(error), .. }) if error.is_conflict() => Ok(Tried::Conflict),
            Ok(Ack { error: Some(error), .. }) => Err(PublishError::not_stored(error.as_engine_error())),
            // In a cluster another try of the same item is under way.
            Ok(Ack { seq: 0, duplicate: true, .. }) => Ok(Tried::UnderWay),
            Ok(Ack { seq, duplicate: true, .. }) => {
                known.end = Some((session.number, tail));
                let first = tokio::time::timeout_at(until.into(), self.first_of(session, &subject, item, seq)).await;
                let late = PublishError { reason: EngineError::TimedOut, stored: Stored::Unknown };
                first.unwrap_or(Err(late)).map(Tried::Stored)
            }
            Ok(Ack { seq, .. }) => {
                let position = Position { id: EntryId { seq, ..position.id }, ..position };
                known.end = Some((session.number, Some(Tail { position: position.clone(), bytes_up_to })));
                known.witnessed = Some(Witnessed::now(position.clone()));
                known.untrimmed_since.get_or_insert_with(Instant::now);
                Ok(Tried::Stored(Published { position, repeated: false }))
            }
        }
    }

    /// The place behind the newest entry, without its sequence, which the server gives; the bytes up to it; and the sequence
    /// that it follows.
    fn next(&self, session: &Session, tail: Option<&Tail>, item: &Item) -> Result<(Position, u64, u64), PublishError> {
        let epoch = match tail.map(|tail| &tail.position.epoch) {
            Some(epoch) if epoch.is_of(&session.lineage) => epoch.clone(),
            // A log that is born, or that another process goes on with.
            _ => Epoch::new(&format!("{}{:08x}", session.lineage, rand::random::<u32>()))
                .map_err(|_| PublishError::not_stored(wire::malformed("epoch")))?,
        };
        let (n, before_ms, bytes, follows) = tail.map_or((0, 0, 0, 0), |tail| {
            (tail.position.n, tail.position.id.ms, tail.bytes_up_to, tail.position.id.seq)
        });
        // Ids grow with the numbers, whatever the clocks of others say.
        let ms = self.clock.at(clock::local_ms()).max(before_ms);
        let position = Position { region: self.region.clone(), epoch, n: n + 1, id: EntryId { ms, seq: 0 } };
        let size = u64::try_from(item.size_bytes()).unwrap_or(u64::MAX);
        Ok((position, bytes.saturating_add(size), follows))
    }

    /// Where an item is that was stored before.
    async fn first_of(
        &self,
        session: &Session,
        subject: &str,
        item: &Item,
        seq: u64,
    ) -> Result<Published, PublishError> {
        let stored = |reason| PublishError { reason, stored: Stored::Unknown };
        let reader = self.reader(session, subject);
        let found = session.get(&self.region, subject, json!({ "seq": seq })).await.map_err(stored)?;
        if let Some(record) = found.filter(|record| record.entry.message == item.id) {
            return Ok(Published { position: record.entry.position, repeated: true });
        }
        // It is dropped already, while its id is still known: the oldest that is left is the nearest to it.
        let ends = reader.ends().await.map_err(stored)?.ok_or_else(|| stored(wire::malformed("publication")))?;
        Ok(Published { position: ends.first.entry.position, repeated: true })
    }

    pub(super) fn reader<'a>(&'a self, session: &'a Session, subject: &'a str) -> Reader<'a> {
        let now_ms = self.clock.at(clock::local_ms());
        Reader { session, region: &self.region, subject, retention: &self.settings.retention, now_ms }
    }
}
