//! What happens to the shards, as what happens to one engine.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use crate::backplane::engine::{EVENTS_KEPT, EngineError, Event};

/// The events of all shards, and what was told of them.
#[derive(Debug)]
pub struct Merged {
    events: broadcast::Sender<Event>,
    since: Instant,
    /// What was last told of the engine as a whole.
    told: Mutex<Option<Result<(), EngineError>>>,
    /// Which shards have given a heartbeat since the last that was told.
    beats: Mutex<Vec<bool>>,
    /// A shard that answers and does not say that the list is in force.
    trouble: Mutex<Option<EngineError>>,
}

impl Merged {
    pub fn new(shards: usize) -> Self {
        Self {
            events: broadcast::Sender::new(EVENTS_KEPT),
            since: Instant::now(),
            told: Mutex::new(None),
            beats: Mutex::new(vec![false; shards]),
            trouble: Mutex::new(None),
        }
    }

    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub fn trouble(&self) -> Result<(), EngineError> {
        self.trouble.lock().clone().map_or(Ok(()), Err)
    }

    pub fn set_trouble(&self, trouble: Option<EngineError>) {
        *self.trouble.lock() = trouble;
    }

    pub fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Whether all have given one now.
    fn beat(&self, nth: usize) -> bool {
        let mut beats = self.beats.lock();
        if let Some(beat) = beats.get_mut(nth) {
            *beat = true;
        }
        let all = beats.iter().all(|beat| *beat);
        if all {
            beats.fill(false);
        }
        all
    }
}

impl Shared {
    /// Tells how the engine is as a whole, if that is news.
    pub fn tell_status(&self) {
        let mut told = self.merged.told.lock();
        let status = self.status();
        // The shards come up one after the other: that some are not there yet is no news at the beginning.
        let begins = told.is_none() && status.is_err() && self.merged.since.elapsed() < self.settings.heartbeat;
        if begins || told.as_ref() == Some(&status) {
            return;
        }
        *told = Some(status.clone());
        self.merged.tell(status.map_or_else(Event::Down, |()| Event::Up));
    }
}

/// Passes on what happens to one shard, until the engine is dropped.
pub async fn follow(shared: Arc<Shared>, nth: usize, mut events: broadcast::Receiver<Event>) {
    loop {
        match events.recv().await {
            // It may be one that was emptied, or that knows of another list.
            Ok(Event::Up) => {
                shared.look.notify_one();
                shared.tell_status();
            }
            // What was missed is told by its status.
            Ok(Event::Down(_)) | Err(RecvError::Lagged(_)) => shared.tell_status(),
            Ok(Event::Heartbeat { engine_ms, round_trip }) => {
                if shared.merged.beat(nth) {
                    shared.merged.tell(Event::Heartbeat { engine_ms, round_trip });
                }
            }
            Ok(event @ (Event::Disrupted(_) | Event::LineageChanged { .. })) => shared.merged.tell(event),
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_told_when_each_shard_has_given_one() {
        let merged = Merged::new(2);
        let told: Vec<_> = [0, 0, 1, 1, 0].iter().map(|nth| merged.beat(*nth)).collect();
        assert_eq!(told, [false, false, true, false, true]);
    }
}
