//! Dropping what is not retained any more, which the server does not do by itself.
//!
//! The server bounds the entries of a channel by their count, and all of them by a day, since the newest has to stay for
//! the numbers to go on. What is too old, or too much, whoever published it drops, a while later; nobody reads it meanwhile.
//! What was published by a gateway that is gone stays for that day.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::engine::{Channel, EngineError};
use super::tails::Slot;
use super::{Shared, subjects};

/// The longest time between two rounds. With a short `max_age` it is a quarter of that, and a second at least.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How many channels are trimmed in one round; the others wait for the next.
const CHANNELS_A_ROUND: usize = 2_000;

/// Runs until it is dropped.
pub async fn run(shared: Arc<Shared>) {
    let max_age = shared.settings.retention.max_age;
    let pause = (max_age / 4).clamp(Duration::from_secs(1), LONGEST_PAUSE);
    loop {
        tokio::time::sleep(pause).await;
        let due: Vec<_> = shared.tails.all().into_iter().filter(|(_, slot)| shared.is_due(slot)).collect();
        for (channel, slot) in due.into_iter().take(CHANNELS_A_ROUND) {
            // What fails is tried in the next round.
            if shared.trim(&channel, &slot).await.is_err() && shared.session().is_err() {
                break;
            }
        }
    }
}

impl Shared {
    /// Whether something of a channel is surely not retained any more. One that is published to now is not waited for.
    fn is_due(&self, slot: &Slot) -> bool {
        let Ok(known) = slot.try_lock() else { return false };
        let Some(since) = known.untrimmed_since else { return false };
        let retention = &self.settings.retention;
        let tail = known.end.as_ref().and_then(|(_, tail)| tail.as_ref());
        let more = tail.map_or(0, |tail| tail.bytes_up_to.saturating_sub(known.trimmed_at_bytes));
        since.elapsed() > retention.max_age || more > u64::try_from(retention.max_bytes).unwrap_or(u64::MAX)
    }

    async fn trim(&self, channel: &Channel, slot: &Slot) -> Result<(), EngineError> {
        let session = self.session()?;
        let subject = subjects::stored(channel);
        // Said before it is looked at: what is published from here on is not lost sight of.
        slot.lock().await.untrimmed_since = Some(Instant::now());
        let reader = self.reader(&session, &subject);
        let Some(ends) = reader.ends().await? else {
            slot.lock().await.untrimmed_since = None;
            return Ok(());
        };
        let kept = reader.first_kept(&ends).await?;
        // The newest stays for its number.
        let before = kept.as_ref().unwrap_or(&ends.top).seq();
        if before > ends.first.seq() {
            session.purge(&subject, before).await?;
        }
        let mut known = slot.lock().await;
        known.trimmed_at_bytes = ends.top.bytes_up_to;
        let is_quiet = match &known.end {
            Some((_, Some(tail))) => tail.position.id.seq <= ends.top.seq(),
            _ => false,
        };
        if kept.is_none() && is_quiet {
            known.untrimmed_since = None;
        }
        Ok(())
    }
}
