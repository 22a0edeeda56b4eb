//! What a gateway knows of the list in force: asked by each call of its shards' engines, changed by the keeper alone.

use std::sync::Arc;

use parking_lot::RwLock;

use super::record::{self, Record};
use crate::backplane::engine::{Channel, EngineError};

/// What a gateway knows of the list in force.
#[derive(Debug)]
pub struct InForce {
    /// Of this gateway's own list.
    generation: u64,
    known: RwLock<Result<Arc<Record>, EngineError>>,
}

impl InForce {
    pub(super) fn new(generation: u64) -> Self {
        Self { generation, known: RwLock::new(Err(EngineError::Unreachable)) }
    }

    /// The newest record that is known, of whichever generation; why there is none.
    pub(super) fn record(&self) -> Result<Arc<Record>, EngineError> {
        self.known.read().clone()
    }

    /// A newer record, or this gateway's own; an older one is not believed any more.
    pub(super) fn set(&self, record: Record) {
        let mut known = self.known.write();
        if known.as_ref().map_or(true, |known| known.generation <= record.generation) {
            *known = Ok(Arc::new(record));
        }
    }

    /// Why there is no record, as long as there is none.
    pub(super) fn wait(&self, reason: EngineError) {
        let mut known = self.known.write();
        if known.is_err() {
            *known = Err(reason);
        }
    }

    /// This gateway's own record, if it is in force as far as is known.
    pub(super) fn own(&self) -> Result<Arc<Record>, EngineError> {
        let record = self.record()?;
        if record.generation == self.generation {
            return Ok(record);
        }
        Err(EngineError::Superseded { in_force: record.generation, generation: self.generation })
    }

    /// What a shard has to say for a publication to be written.
    pub fn required(&self) -> Result<String, EngineError> {
        Ok(self.own()?.in_force())
    }

    /// What a channel's epochs have on its shard: since when it is there. By this gateway's list, for channels that a newer
    /// one has elsewhere too: of those nothing is believed.
    pub fn stamp(&self, channel: &Channel) -> Result<String, EngineError> {
        Ok(record::stamp(self.record()?.since(channel)))
    }

    /// Whether a newer list has, or had, the channel elsewhere.
    pub(super) fn has_moved(&self, channel: &Channel) -> bool {
        // Without a record of our own generation among those of before nobody knows where it was then.
        self.record().is_ok_and(|record| {
            record.generation > self.generation
                && (record.since(channel) > self.generation || !record.before.contains_key(&self.generation))
        })
    }
}
