//! What this node knows to be stored, so that somebody notices when it is not any more.
//!
//! A power failure may take entries that the server has acknowledged and not written to its disk yet. Nothing in what is
//! left shows that there were any, so only who published them can tell. Under another lineage, before it publishes to a
//! channel and for all channels at once, a node looks whether its newest entry is there, and if not, says so in the log
//! itself: every reader who passes that entry ([`LOST`]) is told of a gap. What is lost when the node that published it
//! ends at the same time, nobody tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::engine::{Channel, EngineError, Item, LOST, MessageId, ReadLimit};
use super::super::position::{Epoch, Place, Position};
use super::super::recover::{Recovery, ReplayLimit, Why};
use super::publish::{CONFLICT_PAUSE, Tried};
use super::session::Session;
use super::tails::Known;
use super::{Shared, subjects};

/// How long an entry is remembered: longer than a server may leave what it acknowledged unwritten by default, 2 minutes.
const REMEMBERED: Duration = Duration::from_secs(300);

/// How often a channel is looked at, when the server does not answer, and how long between.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// The newest entry that this node has had stored in a channel.
#[derive(Debug)]
pub struct Witnessed {
    pub position: Position,
    pub at: Instant,
    /// Under which lineage it was looked for.
    pub looked_under: Option<Epoch>,
}

impl Witnessed {
    pub fn now(position: Position) -> Self {
        Self { position, at: Instant::now(), looked_under: None }
    }

    /// Whether it was stored under another lineage than this, and was not looked for under it.
    fn is_in_doubt(&self, lineage: &Epoch, now: Instant) -> bool {
        let looked = self.position.epoch.is_of(lineage) || self.looked_under.as_ref() == Some(lineage);
        !looked && now.duration_since(self.at) < REMEMBERED
    }
}

impl Shared {
    /// Looks for what this node has had stored, behind a change of lineage.
    pub(super) fn look_for_losses(self: &Arc<Self>, session: &Arc<Session>) {
        // It ends by itself, and holds neither the engine nor the session longer than for one channel.
        let (shared, session) = (Arc::downgrade(self), Arc::downgrade(session));
        tokio::spawn(async move {
            let Some(all) = shared.upgrade().map(|shared| shared.tails.all()) else { return };
            for (channel, slot) in all {
                for _ in 0..TRIES {
                    let (Some(shared), Some(session)) = (shared.upgrade(), session.upgrade()) else { return };
                    let until = Instant::now() + shared.settings.timeout;
                    let mut known = slot.lock().await;
                    if shared.look(&session, &mut known, &channel, until).await.is_ok() {
                        break;
                    }
                    drop((known, session, shared));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
    }

    /// Looks for the newest entry that this node has had stored in a channel, and says so in its log where it is lost.
    pub(super) async fn look(
        &self,
        session: &Session,
        known: &mut Known,
        channel: &Channel,
        until: Instant,
    ) -> Result<(), EngineError> {
        let lineage = &session.lineage;
        let Some(witnessed) = known.witnessed.as_mut().filter(|of| of.is_in_doubt(lineage, Instant::now())) else {
            return Ok(());
        };
        let position = witnessed.position.clone();
        let subject = subjects::stored(channel);
        let limit = ReadLimit { max_entries: 1, max_bytes: 0 };
        let reader = self.reader(session, &subject);
        let read = tokio::time::timeout_at(until.into(), reader.read(lineage, Some(&position), limit)).await;
        let slice = read.unwrap_or(Err(EngineError::TimedOut))?;
        let whole = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };
        // Where nothing of before is left, no place of before is proven, and every reader is told without this.
        let is_new = slice.log.top == 0 || slice.log.first_epoch.is_of(lineage);
        if is_new || slice.recover(&Place::After(position.clone()), whole) != Recovery::Gap(Why::Lineage) {
            witnessed.looked_under = Some(lineage.clone());
            return Ok(());
        }
        // Once for all nodes that notice.
        let Ok(id) = MessageId::new(&format!("lost {}", position.epoch)) else { return Ok(()) };
        let item = Item { id, key: None, payload: Bytes::from_static(LOST) };
        while Instant::now() < until {
            match self.try_publish(session, known, channel, &item, until).await {
                Ok(Tried::Stored(_)) => {
                    if let Some(witnessed) = &mut known.witnessed {
                        witnessed.looked_under = Some(lineage.clone());
                    }
                    return Ok(());
                }
                Ok(Tried::Conflict | Tried::UnderWay) => tokio::time::sleep(CONFLICT_PAUSE).await,
                Err(error) => return Err(error.reason),
            }
        }
        Err(EngineError::TimedOut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_in_doubt_under_another_lineage_once_and_for_a_while() {
        let lineage = |name: &str| Epoch::new(name).unwrap();
        let mut witnessed = Witnessed::now("eu.a1.7.7-7".parse().unwrap());
        let now = witnessed.at;
        assert!(!witnessed.is_in_doubt(&lineage("a"), now));
        assert!(witnessed.is_in_doubt(&lineage("b"), now));
        assert!(!witnessed.is_in_doubt(&lineage("b"), now + REMEMBERED));
        witnessed.looked_under = Some(lineage("b"));
        assert!(!witnessed.is_in_doubt(&lineage("b"), now));
        assert!(witnessed.is_in_doubt(&lineage("c"), now));
    }
}
