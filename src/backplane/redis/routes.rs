//! Which session is asked for which partition.
//!
//! A single server has all partitions; a Cluster's masters have some each, and a partition moves from one to another.
//! Each time a partition is taken over by a session its route has another serial number, so that who began something by
//! one route sees that it is not the one of now.

use std::sync::Arc;

use super::super::engine::EngineError;
use super::super::position::Epoch;
use super::keys::{PARTITIONS, Partition};
use super::session::Session;

/// A set of partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partitions(u128);

// A partition is a bit.
const _: () = assert!(PARTITIONS == u128::BITS as usize);

impl Partitions {
    /// All of them.
    pub const ALL: Self = Self(u128::MAX);

    /// The same with one more.
    pub fn with(self, partition: Partition) -> Self {
        Self(self.0 | Self::bit(partition))
    }

    /// Whether one is in it.
    pub fn contains(self, partition: Partition) -> bool {
        self.0 & Self::bit(partition) != 0
    }

    /// Those that are in this set and not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each, from the lowest.
    pub fn iter(self) -> impl Iterator<Item = Partition> {
        (0..PARTITIONS).filter(move |partition| self.contains(*partition))
    }

    fn bit(partition: Partition) -> u128 {
        u32::try_from(partition).ok().and_then(|shift| 1_u128.checked_shl(shift)).unwrap_or(0)
    }
}

/// The way to one partition.
#[derive(Clone, Debug)]
pub struct Route {
    /// The session with the server that has it.
    pub session: Arc<Session>,
    serial: u64,
}

/// The ways to all partitions.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Result<Route, EngineError>>,
    /// Who answered for each partition last.
    lineages: Vec<Option<Epoch>>,
    serial: u64,
}

impl Routes {
    /// None yet.
    pub fn new() -> Self {
        Self { routes: vec![Err(EngineError::Unreachable); PARTITIONS], lineages: vec![None; PARTITIONS], serial: 0 }
    }

    /// The way to a partition, or why there is none.
    pub fn to(&self, partition: Partition) -> Result<Route, EngineError> {
        self.routes.get(partition).cloned().unwrap_or(Err(EngineError::Unreachable))
    }

    /// Whether a route is still the one to its partition.
    pub fn is_current(&self, partition: Partition, route: &Route) -> bool {
        matches!(self.routes.get(partition), Some(Ok(current)) if current.serial == route.serial)
    }

    /// Whether a session is the one that is asked for a partition.
    pub fn leads_to(&self, partition: Partition, session: u64) -> bool {
        matches!(self.routes.get(partition), Some(Ok(current)) if current.session.number == session)
    }

    /// A session takes over these partitions. Gives each change of a lineage, once.
    pub fn take_over(&mut self, partitions: Partitions, session: &Arc<Session>) -> Vec<(Epoch, Epoch)> {
        let mut changes = Vec::new();
        for partition in partitions.iter() {
            self.serial += 1;
            if let Some(route) = self.routes.get_mut(partition) {
                *route = Ok(Route { session: session.clone(), serial: self.serial });
            }
            let before = self.lineages.get_mut(partition).and_then(|of| of.replace(session.lineage.clone()));
            if let Some(from) = before.filter(|from| *from != session.lineage) {
                let change = (from, session.lineage.clone());
                if !changes.contains(&change) {
                    changes.push(change);
                }
            }
        }
        changes
    }

    /// A session is lost: nothing leads to what it had.
    pub fn lose(&mut self, session: u64, reason: &EngineError) {
        for route in &mut self.routes {
            if matches!(route, Ok(current) if current.session.number == session) {
                *route = Err(reason.clone());
            }
        }
    }

    /// Nothing leads to these partitions.
    pub fn close(&mut self, partitions: Partitions, reason: &EngineError) {
        for partition in partitions.iter() {
            if let Some(route) = self.routes.get_mut(partition) {
                *route = Err(reason.clone());
            }
        }
    }

    /// Whether all partitions can be reached, and if not, why.
    pub fn status(&self) -> Result<(), EngineError> {
        self.routes.iter().find_map(|route| route.as_ref().err()).map_or(Ok(()), |reason| Err(reason.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        let some = [0, 63, 64, 127].into_iter().fold(Partitions::default(), Partitions::with);
        assert!(some.iter().eq([0, 63, 64, 127]));
        assert!(!some.contains(1) && !some.contains(128), "what is no partition is in no set");
        assert!(some.without(Partitions::default().with(63)).iter().eq([0, 64, 127]));
        assert!(Partitions::ALL.without(Partitions::ALL).is_empty());
        assert_eq!(Partitions::ALL.iter().count(), PARTITIONS);
    }

    #[test]
    fn without_a_session_every_partition_says_why() {
        let mut routes = Routes::new();
        assert_eq!(routes.to(3).map(drop), Err(EngineError::Unreachable));
        routes.close(Partitions::default().with(0), &EngineError::TimedOut);
        assert_eq!(routes.status(), Err(EngineError::TimedOut));
        assert_eq!(routes.to(PARTITIONS).map(drop), Err(EngineError::Unreachable));
    }
}
