//! The regions whose logs this node reads, ours first, and where it publishes.
//!
//! Each region has an engine of its own, and a publication is appended to the log of one region: ours, or when that cannot
//! be, another's. Everybody reads the logs of all regions, so it comes to the same clients.

use std::sync::Arc;

use super::engine::{Channel, Engine, EngineError, Item, PublishError, Published, Stored};
use super::position::Region;

/// The engines, and what becomes of a publication.
#[derive(Debug)]
pub struct Regions {
    /// Ours first.
    engines: Vec<Arc<dyn Engine>>,
    /// Where a publication goes that ours does not take, in this order; numbers in `engines`.
    failover: Vec<usize>,
    homes: Homes,
}

/// Channels whose publications all go to one region's log, so that they have one order.
#[derive(Clone, Debug, Default)]
pub struct Homes {
    /// What their names begin with, and the number of the region; the longest first.
    prefixes: Arc<[(String, Option<usize>)]>,
}

/// A publication that was stored, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where.
    pub published: Published,
    /// Whether the region that should have it did not take it.
    pub failed_over: bool,
}

impl Homes {
    /// Channels whose names begin so are at home in the region of that number. Where several fit the longest counts.
    pub fn new(mut prefixes: Vec<(String, Option<usize>)>) -> Self {
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self { prefixes: prefixes.into() }
    }

    /// The number of the region that a channel is at home in.
    pub fn of(&self, channel: &Channel) -> Option<usize> {
        let fits = |(prefix, _): &&(String, Option<usize>)| channel.as_str().starts_with(prefix.as_str());
        self.prefixes.iter().find(fits).and_then(|(_, home)| *home)
    }
}

impl Regions {
    /// Regions by their engines, ours first; `failover` names others by their numbers there.
    pub fn new(engines: Vec<Arc<dyn Engine>>, failover: Vec<usize>, homes: Homes) -> Self {
        Self { engines, failover, homes }
    }

    /// The engines, ours first.
    pub fn engines(&self) -> &[Arc<dyn Engine>] {
        &self.engines
    }

    /// The regions, ours first.
    pub fn names(&self) -> impl Iterator<Item = &Region> {
        self.engines.iter().map(|engine| engine.region())
    }

    /// Whether a channel is filled by somebody else.
    pub fn is_foreign(&self, channel: &Channel) -> bool {
        self.engines.iter().any(|engine| engine.is_foreign(channel))
    }

    /// Stores an item in its channel's home, or in our region, or, when our region does not take it, in the next that does.
    ///
    /// A region that gave no answer may have stored it too: readers see by its id that both are the same.
    ///
    /// # Errors
    /// Of the first region that was asked. It is [`Stored::Unknown`] if any of them gave no answer.
    pub async fn publish(&self, channel: &Channel, item: &Item) -> Result<Placed, PublishError> {
        let order: Vec<usize> = match self.homes.of(channel) {
            Some(home) => vec![home],
            None => std::iter::once(0).chain(self.failover.iter().copied()).collect(),
        };
        let mut failed: Option<PublishError> = None;
        for engine in order.into_iter().filter_map(|nth| self.engines.get(nth)) {
            match engine.publish(channel, item).await {
                Ok(published) => return Ok(Placed { published, failed_over: failed.is_some() }),
                Err(error) if is_of_the_item(&error.reason) => return Err(error),
                Err(error) => match &mut failed {
                    None => failed = Some(error),
                    Some(first) if error.stored == Stored::Unknown => first.stored = Stored::Unknown,
                    Some(_) => {}
                },
            }
        }
        Err(failed.unwrap_or_else(|| PublishError::not_stored(EngineError::Unreachable)))
    }
}

/// Whether no other engine would take it either.
fn is_of_the_item(reason: &EngineError) -> bool {
    matches!(reason, EngineError::TooLarge { .. } | EngineError::Foreign)
}
