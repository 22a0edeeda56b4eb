//! The live sessions of the process: what each lets others see of it, and what can be asked of it from outside.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;

use super::{Backlog, sys};
use crate::metrics::{Metrics, RuleMetrics};
use crate::ws::close::CloseCode;

/// How many locks the sessions are spread over: handshakes and closes on several cores seldom meet.
const SHARDS: u64 = 16;

/// A drain closes at least so many sessions a second, so that a short list does not take the whole spread.
const MIN_CLOSES_PER_SECOND: u32 = 50;

/// What a session was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    Run,
    /// Close with 1012 at the end of the message in progress.
    Drain,
    /// Close with this code at the end of the message in progress, since an operator said so.
    Close(CloseCode),
    /// End at once.
    Cut,
}

impl Order {
    const fn rank(self) -> u8 {
        match self {
            Self::Run => 0,
            Self::Drain => 1,
            Self::Close(_) => 2,
            Self::Cut => 3,
        }
    }
}

/// What a session and the rest of the process know of each other.
#[derive(Debug, Default)]
pub struct Control {
    order: AtomicU8,
    order_code: AtomicU16,
    waker: AtomicWaker,
    /// What it has carried so far.
    pub counts: Counts,
    /// What the client's and the upstream's socket have not taken of it, in bytes.
    pub pending_bytes: [AtomicU64; 2],
    /// The sockets, until the session gives them up: then their numbers may be others' already.
    sockets: Mutex<[Option<RawFd>; 2]>,
    retransmits_seen: [AtomicU32; 2],
    /// What waits in front of the session for the client, until the session ends.
    backlog: Mutex<Option<Arc<dyn Backlog>>>,
}

/// Running totals of a session.
#[derive(Debug, Default)]
pub struct Counts {
    /// Data messages of the client.
    pub messages_in: AtomicU64,
    /// Data messages to the client.
    pub messages_out: AtomicU64,
    /// Bytes of frames of the client.
    pub bytes_in: AtomicU64,
    /// Bytes of frames to the client.
    pub bytes_out: AtomicU64,
}

impl Control {
    /// Asks the session for `order`, unless it was asked for more already.
    pub fn give(&self, order: Order) {
        if let Order::Close(code) = order {
            self.order_code.store(code.0, Ordering::Release);
        }
        self.order.fetch_max(order.rank(), Ordering::AcqRel);
        self.waker.wake();
    }

    /// What the session was asked for.
    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Run,
            1 => Order::Drain,
            2 => Order::Close(CloseCode(self.order_code.load(Ordering::Acquire))),
            _ => Order::Cut,
        }
    }

    /// Whom to wake when an order is given: the session's task.
    pub fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Lets the sweep look at the session's sockets: the client's and the upstream's.
    pub(super) fn lend_sockets(&self, sockets: [Option<RawFd>; 2]) {
        *self.sockets.lock() = sockets;
    }

    /// Lets the sweep look at what waits in front of the session.
    pub(super) fn lend_backlog(&self, backlog: Option<Arc<dyn Backlog>>) {
        *self.backlog.lock() = backlog;
    }

    /// Takes the sockets back before they are closed, after a last look.
    pub(super) fn take_sockets(&self, metrics: &RuleMetrics) {
        let mut sockets = self.sockets.lock();
        self.count_retransmits(*sockets, metrics);
        *sockets = [None, None];
        drop(sockets);
        self.lend_backlog(None);
    }

    /// Looks at the session once: its queue to the client, and what the kernel has of it.
    fn sample(&self, metrics: &RuleMetrics) {
        let sockets = self.sockets.lock();
        let unsent = self.count_retransmits(*sockets, metrics);
        drop(sockets);
        for (side, unsent) in [&metrics.socket_unsent_client, &metrics.socket_unsent_upstream].into_iter().zip(unsent) {
            if let Some(unsent) = unsent {
                side.observe(unsent as f64);
            }
        }
        let queued = self.pending_bytes[0].load(Ordering::Relaxed) + unsent[0].unwrap_or(0);
        let backlog = self.backlog.lock().clone().map(|backlog| backlog.depth());
        let (waiting, waiting_bytes) = backlog.map_or((0, 0), |depth| (depth.messages as u64, depth.bytes as u64));
        metrics.send_queue_bytes.observe((queued + waiting_bytes) as f64);
        let (messages, bytes) =
            (self.counts.messages_out.load(Ordering::Relaxed), self.counts.bytes_out.load(Ordering::Relaxed));
        // Before the first whole message anything that is queued is one.
        let mean = bytes.checked_div(messages).unwrap_or(u64::MAX).max(1);
        metrics.send_queue_messages.observe((queued.div_ceil(mean) + waiting) as f64);
    }

    /// Counts what was sent again since the last look, and returns what is unsent, in bytes.
    fn count_retransmits(&self, sockets: [Option<RawFd>; 2], metrics: &RuleMetrics) -> [Option<u64>; 2] {
        let counters = [&metrics.retransmits_client, &metrics.retransmits_upstream];
        std::array::from_fn(|side| {
            let state = sys::send_state(sockets[side]?)?;
            let seen = self.retransmits_seen[side].swap(state.retransmits, Ordering::Relaxed);
            counters[side].inc_by(u64::from(state.retransmits.saturating_sub(seen)));
            Some(state.unsent_bytes)
        })
    }
}

/// A live session, as others see it. `T` is what its owner knows of it.
#[derive(Debug)]
pub struct Live<T> {
    /// Where it hears its orders.
    pub control: Arc<Control>,
    /// What its rule counts.
    pub metrics: Arc<RuleMetrics>,
    /// What its owner knows of it.
    pub tag: T,
}

/// All live sessions, in the order in which they began.
#[derive(Debug)]
pub struct Registry<T> {
    next_id: AtomicU64,
    shards: [Mutex<BTreeMap<u64, Arc<Live<T>>>>; SHARDS as usize],
}

/// A session's place in the registry, given back when it is dropped.
#[derive(Debug)]
pub struct Entry<T> {
    registry: Arc<Registry<T>>,
    id: u64,
    /// The session.
    pub live: Arc<Live<T>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { next_id: AtomicU64::new(0), shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl<T> Registry<T> {
    /// A registry without sessions.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Enters a session. It is bounded by the limit of sessions that the caller keeps.
    pub fn enter(self: &Arc<Self>, metrics: Arc<RuleMetrics>, tag: T) -> Entry<T> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live { control: Arc::default(), metrics, tag });
        self.shard(id).lock().insert(id, live.clone());
        Entry { registry: self.clone(), id, live }
    }

    /// All sessions, the oldest first.
    pub fn sessions(&self) -> Vec<Arc<Live<T>>> {
        let mut sessions: Vec<(u64, Arc<Live<T>>)> = Vec::new();
        for shard in &self.shards {
            sessions.extend(shard.lock().iter().map(|(id, live)| (*id, live.clone())));
        }
        sessions.sort_unstable_by_key(|(id, _)| *id);
        sessions.into_iter().map(|(_, live)| live).collect()
    }

    /// The session whose tag is the one looked for.
    pub fn find(&self, is_it: impl Fn(&T) -> bool) -> Option<Arc<Live<T>>> {
        self.shards.iter().find_map(|shard| shard.lock().values().find(|live| is_it(&live.tag)).cloned())
    }

    /// Looks at every session once in `every`, a shard at a time, for ever.
    pub async fn sweep(&self, every: Duration, metrics: &Metrics) {
        let pause = every / SHARDS as u32;
        loop {
            for shard in &self.shards {
                tokio::time::sleep(pause).await;
                // The lock is not held while the kernel is asked.
                let sessions: Vec<_> = shard.lock().values().cloned().collect();
                for live in sessions {
                    live.control.sample(&live.metrics);
                }
            }
            metrics.set_heap_bytes(sys::heap_bytes());
        }
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
        let sessions = self.sessions();
        let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        let pause = (spread / count).min(Duration::from_secs(1) / MIN_CLOSES_PER_SECOND);
        let start = tokio::time::Instant::now();
        for (nth, live) in (0u32..).zip(sessions) {
            // A random part of the pause keeps clients that came together from coming back together.
            let jitter = pause.mul_f64(rand::random::<f64>());
            tokio::time::sleep_until(start + pause * nth + jitter).await;
            live.control.give(Order::Drain);
        }
    }

    /// Ends all sessions at once.
    pub fn cut(&self) {
        for shard in &self.shards {
            for live in shard.lock().values() {
                live.control.give(Order::Cut);
            }
        }
    }

    fn shard(&self, id: u64) -> &Mutex<BTreeMap<u64, Arc<Live<T>>>> {
        &self.shards[(id % SHARDS) as usize]
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.registry.shard(self.id).lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Depth;
    use super::*;

    fn enter(registry: &Arc<Registry<()>>, count: usize) -> Vec<Entry<()>> {
        let metrics = Metrics::new().rule("test");
        (0..count).map(|_| registry.enter(metrics.clone(), ())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn drains_the_oldest_first_over_the_spread() {
        let registry = Registry::new();
        let entries = enter(&registry, 1500);
        let drained = || entries.iter().take_while(|entry| entry.live.control.order() == Order::Drain).count();
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
        let _entries = enter(&registry, 100);
        let start = tokio::time::Instant::now();
        registry.drain(Duration::from_secs(3600)).await;
        assert!(start.elapsed() <= Duration::from_secs(2) + Duration::from_millis(10), "{:?}", start.elapsed());
    }

    #[derive(Debug)]
    struct Waiting(Depth);

    impl Backlog for Waiting {
        fn depth(&self) -> Depth {
            self.0
        }
    }

    #[test]
    fn what_waits_in_front_of_a_session_is_in_its_sample_until_it_ends() {
        let metrics = Metrics::new().rule("test");
        let control = Control::default();
        control.pending_bytes[0].store(100, Ordering::Relaxed);
        control.lend_backlog(Some(Arc::new(Waiting(Depth { messages: 7, bytes: 5000, behind_since: None }))));
        control.sample(&metrics);
        let sums = || (metrics.send_queue_messages.get_sample_sum(), metrics.send_queue_bytes.get_sample_sum());
        assert_eq!(sums(), (8.0, 5100.0));
        control.take_sockets(&metrics);
        control.sample(&metrics);
        assert_eq!(sums(), (9.0, 5200.0));
    }

    #[test]
    fn an_order_is_never_taken_back() {
        let control = Control::default();
        control.give(Order::Cut);
        control.give(Order::Close(CloseCode(4000)));
        assert_eq!(control.order(), Order::Cut);
    }
}
