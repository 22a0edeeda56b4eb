//! What this node knows to be stored, so that somebody notices when it is not any more.
//!
//! A master that dies may take entries with it which it has acknowledged and its replica never had. Nothing in what is left
//! shows that there were any, so only who published them can tell. Each node remembers, of the channels that it has
//! published to, the newest entry; when another process has taken a log over, it looks whether that entry is there, and if
//! not, says so in the log itself: every reader who passes that entry ([`crate::backplane::engine::LOST`]) is told of a gap.
//! What is lost when the node that published it dies at the same time, nobody tells.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::routes::Partitions;
use super::{Shared, keys};
use crate::backplane::engine::{Channel, Item, LOST, MessageId, ReadLimit};
use crate::backplane::position::{Epoch, Place, Position};
use crate::backplane::recover::{Recovery, ReplayLimit, Why};

/// How long an entry is remembered: a replica that is further behind is none, and a fail-over that takes longer is an
/// outage.
const REMEMBERED: Duration = Duration::from_secs(300);

/// The most channels that are remembered. When there are as many, what is published to others is not looked for.
const MAX_CHANNELS: usize = 50_000;

/// How often a channel is looked at, when its server does not answer, and how long between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// The newest entries that this node has had stored.
#[derive(Debug, Default)]
pub(super) struct Witness(Mutex<HashMap<Channel, Known>>);

/// The newest entry of one channel.
#[derive(Debug)]
struct Known {
    position: Position,
    at: Instant,
    /// Under which lineage it was looked for.
    looked_under: Option<Epoch>,
}

impl Witness {
    /// An entry was stored.
    pub(super) fn stored(&self, channel: &Channel, position: &Position, now: Instant) {
        let mut known = self.0.lock();
        if let Some(known) = known.get_mut(channel) {
            // Answers may overtake each other, and behind a fail-over numbers are given out again.
            if known.position.epoch != position.epoch || known.position.n < position.n {
                known.position = position.clone();
            }
            known.at = now;
            return;
        }
        if known.len() >= MAX_CHANNELS {
            known.retain(|_, known| known.is_fresh(now));
        }
        if known.len() < MAX_CHANNELS {
            known.insert(channel.clone(), Known { position: position.clone(), at: now, looked_under: None });
        }
    }

    /// An entry that was stored under another lineage than this, and was not looked for under it.
    pub(super) fn doubt(&self, channel: &Channel, lineage: &Epoch, now: Instant) -> Option<Position> {
        let known = self.0.lock();
        let known = known.get(channel).filter(|known| known.is_fresh(now))?;
        let looked = known.position.epoch.is_of(lineage) || known.looked_under.as_ref() == Some(lineage);
        (!looked).then(|| known.position.clone())
    }

    fn looked(&self, channel: &Channel, lineage: &Epoch) {
        if let Some(known) = self.0.lock().get_mut(channel) {
            known.looked_under = Some(lineage.clone());
        }
    }

    /// What is to be looked for in these partitions.
    fn in_doubt(&self, partitions: Partitions, now: Instant) -> Vec<(Channel, Position)> {
        let known = self.0.lock();
        let fresh = known
            .iter()
            .filter(|(channel, known)| partitions.contains(keys::partition(channel)) && known.is_fresh(now));
        fresh.map(|(channel, known)| (channel.clone(), known.position.clone())).collect()
    }
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < REMEMBERED
    }
}

impl Shared {
    /// Looks for what this node has had stored, behind a change of who has these partitions.
    pub(super) fn look_for_losses(self: &Arc<Self>, partitions: Partitions) {
        let in_doubt = self.witness.in_doubt(partitions, Instant::now());
        if in_doubt.is_empty() {
            return;
        }
        // It ends by itself, and holds the engine no longer than that.
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            for (channel, position) in in_doubt {
                for _ in 0..TRIES {
                    let Some(shared) = shared.upgrade() else { return };
                    if shared.look_for(&channel, &position).await {
                        break;
                    }
                    drop(shared);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
    }

    /// Looks for what this node has had stored of a channel, before it stores more: what is told of a loss is to stand
    /// before what came since. A server that does not answer that will not store either.
    pub(super) async fn look_before(&self, channel: &Channel) {
        let Ok(route) = self.route(channel) else { return };
        if let Some(position) = self.witness.doubt(channel, &route.session.lineage, Instant::now()) {
            self.look_for(channel, &position).await;
        }
    }

    /// Looks for one entry, and says so in its log where it is lost. Whether it could.
    async fn look_for(&self, channel: &Channel, position: &Position) -> bool {
        let limit = ReadLimit { max_entries: 1, max_bytes: 0 };
        let Ok(route) = self.route(channel) else { return false };
        let Ok(slice) = self.read(&route.session, channel, Some(position), limit).await else { return false };
        let whole = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };
        // Where nothing of before is left, not even that it was this store, no place of before is proven, and every reader is
        // told without this.
        let is_new = !position.epoch.shares_life(&slice.log.first_epoch);
        if is_new || slice.recover(&Place::After(position.clone()), whole) != Recovery::Gap(Why::Lineage) {
            self.witness.looked(channel, &route.session.lineage);
            return true;
        }
        // Once for all nodes that notice.
        let Ok(id) = MessageId::new(&format!("lost {}", position.epoch)) else { return true };
        let said = self.publish(channel, &Item { id, key: None, payload: Bytes::from_static(LOST) }).await.is_ok();
        if said {
            self.witness.looked(channel, &route.session.lineage);
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::position::{EntryId, Region};

    fn position(epoch: &str, n: u64) -> Position {
        let (region, epoch) = (Region::new("eu").unwrap(), Epoch::new(epoch).unwrap());
        Position { region, epoch, n, id: EntryId { ms: n, seq: 0 } }
    }

    #[test]
    fn the_newest_entry_of_a_channel_is_remembered_for_a_while() {
        let (witness, now) = (Witness::default(), Instant::now());
        let channel = Channel::new("room").unwrap();
        for (epoch, n) in [("a1", 2), ("a1", 3), ("a1", 1), ("b1", 2)] {
            witness.stored(&channel, &position(epoch, n), now);
        }
        assert_eq!(witness.in_doubt(Partitions::ALL, now), [(channel.clone(), position("b1", 2))]);
        let lineage = |name: &str| Epoch::new(name).unwrap();
        assert_eq!(witness.doubt(&channel, &lineage("b"), now), None);
        assert_eq!(witness.doubt(&channel, &lineage("c"), now), Some(position("b1", 2)));
        witness.looked(&channel, &lineage("c"));
        assert_eq!(witness.doubt(&channel, &lineage("c"), now), None);
        assert!(witness.in_doubt(Partitions::ALL, now + REMEMBERED).is_empty());
        witness.stored(&channel, &position("b1", 2), now + REMEMBERED);
        assert_eq!(witness.in_doubt(Partitions::ALL, now + REMEMBERED).len(), 1);
    }

    #[test]
    fn it_remembers_no_more_than_so_many_channels() {
        let (witness, now) = (Witness::default(), Instant::now());
        let of = |n: usize| Channel::new(&format!("room:{n}")).unwrap();
        for n in 0..MAX_CHANNELS + 1 {
            witness.stored(&of(n), &position("a1", 1), now);
        }
        assert_eq!(witness.0.lock().len(), MAX_CHANNELS);
        witness.stored(&of(MAX_CHANNELS), &position("a1", 1), now + REMEMBERED);
        assert_eq!(witness.0.lock().len(), 1);
    }
}
