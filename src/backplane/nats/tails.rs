//! What this node knows of the newest entry of each channel that it publishes to.
//!
//! Only a guess to save a question: the server refuses a publication that does not follow the newest entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::super::engine::Channel;
use super::super::position::Position;
use super::wire::Record;
use super::witness::Witnessed;

/// The most channels of one generation. When there are as many, those that were not published to since the last time that
/// this happened are forgotten: the next publication to them asks first, and what is to be trimmed of them the server drops
/// when it is too old even for their numbers.
const MAX_CHANNELS: usize = 25_000;

/// A channel's end. Locked while it is published to, since a publication has to know the one before.
pub type Slot = Arc<tokio::sync::Mutex<Known>>;

/// What is known of a channel.
#[derive(Debug, Default)]
pub struct Known {
    /// Its end, under which session; nothing if it has to be asked for.
    pub end: Option<(u64, Option<Tail>)>,
    /// The newest entry that this node has had stored there.
    pub witnessed: Option<Witnessed>,
    /// Since when there is something that will have to be trimmed.
    pub untrimmed_since: Option<Instant>,
    /// The bytes up to where it was trimmed last.
    pub trimmed_at_bytes: u64,
}

/// The newest entry.
#[derive(Clone, Debug)]
pub struct Tail {
    pub position: Position,
    pub bytes_up_to: u64,
}

impl From<Record> for Tail {
    fn from(record: Record) -> Self {
        Self { bytes_up_to: record.bytes_up_to, position: record.entry.position }
    }
}

/// All channels that are known.
#[derive(Debug, Default)]
pub struct Tails(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Channel, Slot>,
    old: HashMap<Channel, Slot>,
}

impl Tails {
    /// The slot of a channel.
    pub fn slot(&self, channel: &Channel) -> Slot {
        let mut generations = self.0.lock();
        if let Some(slot) = generations.young.get(channel) {
            return slot.clone();
        }
        let slot = generations.old.remove(channel).unwrap_or_default();
        if generations.young.len() >= MAX_CHANNELS {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(channel.clone(), slot.clone());
        slot
    }

    /// All that are known.
    pub fn all(&self) -> Vec<(Channel, Slot)> {
        let generations = self.0.lock();
        let all = generations.young.iter().chain(&generations.old);
        all.map(|(channel, slot)| (channel.clone(), slot.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_published_to_is_forgotten_and_the_rest_is_bounded() {
        let tails = Tails::default();
        let channel = |n: usize| Channel::new(&format!("c{n}")).unwrap();
        let first = tails.slot(&channel(0));
        for n in 1..3 * MAX_CHANNELS {
            tails.slot(&channel(n));
            if n % MAX_CHANNELS == 1 {
                assert!(Arc::ptr_eq(&first, &tails.slot(&channel(0))), "{n}");
            }
        }
        assert!(tails.all().len() <= 2 * MAX_CHANNELS);
        assert!(!Arc::ptr_eq(&tails.slot(&channel(1)), &tails.slot(&channel(2))));
    }
}
