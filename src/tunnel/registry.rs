//! The live sessions of the process, and the one thing that can be asked of them from outside: to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;

/// How many locks the sessions are spread over: handshakes and closes on several cores seldom meet.
const SHARDS: u64 = 16;

/// A drain closes at least so many sessions a second, so that a short list does not take the whole spread.
const MIN_CLOSES_PER_SECOND: u32 = 50;

/// What a session was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// Go on.
    Run = 0,
    /// Close with 1012 at the end of the message in progress.
    Drain = 1,
    /// End at once.
    Cut = 2,
}

/// A session's end of the line to the registry.
#[derive(Debug, Default)]
pub struct Control {
    order: AtomicU8,
    waker: AtomicWaker,
}

impl Control {
    /// Asks the session for `order`, unless it was asked for more already.
    pub fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// What the session was asked for.
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Drain,
            _ => Order::Cut,
        }
    }

    /// Whom to wake when an order is given: the session's task.
    pub fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

/// All live sessions, in the order in which they began.
#[derive(Debug, Default)]
pub struct Registry {
    next_id: AtomicU64,
    shards: [Mutex<BTreeMap<u64, Arc<Control>>>; SHARDS as usize],
}

/// A session's place in the registry, given back when it is dropped.
#[derive(Debug)]
pub struct Entry {
    registry: Arc<Registry>,
    id: u64,
    /// Where the session hears its orders.
    pub control: Arc<Control>,
}

impl Registry {
    /// A registry without sessions.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Enters a session. It is bounded by the limit of sessions that the caller keeps.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let control = Arc::<Control>::default();
        self.shard(id).lock().insert(id, control.clone());
        Entry { registry: self.clone(), id, control }
    }

    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no session lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks all sessions to end, the oldest first, evenly over `spread` but never fewer than 50 a second.
    pub async fn drain(&self, spread: Duration) {
        let mut sessions: Vec<(u64, Arc<Control>)> = Vec::new();
        for shard in &self.shards {
            sessions.extend(shard.lock().iter().map(|(id, control)| (*id, control.clone())));
        }
        sessions.sort_unstable_by_key(|(id, _)| *id);
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        let pause = (spread / count).min(Duration::from_secs(1) / MIN_CLOSES_PER_SECOND);
        let start = tokio::time::Instant::now();
        for (nth, (_, control)) in (0u32..).zip(sessions) {
            // A random part of the pause keeps clients that came together from coming back together.
            let jitter = pause.mul_f64(rand::random::<f64>());
            tokio::time::sleep_until(start + pause * nth + jitter).await;
            control.give(Order::Drain);
        }
    }

    /// Ends all sessions at once.
    pub fn cut(&self) {
        for shard in &self.shards {
            for control in shard.lock().values() {
                control.give(Order::Cut);
            }
        }
    }

    fn shard(&self, id: u64) -> &Mutex<BTreeMap<u64, Arc<Control>>> {
        &self.shards[(id % SHARDS) as usize]
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.shard(self.id).lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drains_the_oldest_first_over_the_spread() {
        let registry = Registry::new();
        let entries: Vec<_> = (0..1500).map(|_| registry.enter()).collect();
        let drained = || entries.iter().take_while(|entry| entry.control.order() == Order::Drain).count();
        let drain = tokio::spawn({
            let registry = registry.clone();
            async move { registry.drain(Duration::from_secs(15)).await }
        });
        tokio::time::sleep(Duration::from_millis(7500)).await;
        assert!((745..=755).contains(&drained()), "{}", drained());
        drain.await.unwrap();
        assert_eq!(drained(), 1500);
        drop(entries);
        assert!(registry.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn drains_at_least_fifty_a_second() {
        let registry = Registry::new();
        let _entries: Vec<_> = (0..100).map(|_| registry.enter()).collect();
        let start = tokio::time::Instant::now();
        registry.drain(Duration::from_secs(3600)).await;
        assert!(start.elapsed() <= Duration::from_secs(2) + Duration::from_millis(10), "{:?}", start.elapsed());
    }

    #[test]
    fn an_order_is_never_taken_back() {
        let control = Control::default();
        control.give(Order::Cut);
        control.give(Order::Drain);
        assert_eq!(control.order(), Order::Cut);
    }
}
