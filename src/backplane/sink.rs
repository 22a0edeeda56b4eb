//! The bounded queue between an engine and who receives what it pushes.
//!
//! An engine never waits for it. When it is full the channel is marked as disrupted and its entries are dropped until the
//! receiver has taken notice of that; it reads them from the log then. So a receiver that is slow costs the bounds
//! of its queue and a mark a channel, and loses nothing that is retained.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::engine::{Channel, Entry};

/// How much a queue holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkLimit {
    /// Entries. Default 4,096.
    pub max_entries: usize,
    /// Bytes of their payloads. Default 16 MiB. One entry fits whatever its size.
    pub max_bytes: usize,
}

impl Default for SinkLimit {
    fn default() -> Self {
        Self { max_entries: 4096, max_bytes: 16 << 20 }
    }
}

/// What a receiver gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// An entry of a channel, in order within the channel.
    Entry(Channel, Entry),
    /// Entries of the channel were not pushed, or may not have been. The receiver reads from its last position on.
    Disrupted(Channel),
}

/// The engine's end. Clones push into the same queue.
#[derive(Clone, Debug)]
pub struct Sink(Arc<Sender>);

/// The receiver's end.
#[derive(Debug)]
pub struct Source(Arc<Shared>);

/// Marks the queue as finished when the last clone of a sink goes.
#[derive(Debug)]
struct Sender(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
    limit: SinkLimit,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<(Channel, Entry)>,
    bytes: usize,
    /// Channels that the receiver must read, and has not been told of yet. At most those that are subscribed to.
    disrupted: BTreeSet<Channel>,
    finished: bool,
    abandoned: bool,
}

/// A queue.
pub fn sink(limit: SinkLimit) -> (Sink, Source) {
    let shared = Arc::new(Shared { queue: Mutex::default(), changed: Notify::new(), limit });
    (Sink(Arc::new(Sender(shared.clone()))), Source(shared))
}

impl Sink {
    /// Queues an entry. `false` if it was dropped, and the receiver will be told that its channel is disrupted.
    pub fn push(&self, channel: &Channel, entry: Entry) -> bool {
        let shared = &*self.0.0;
        let mut queue = shared.queue.lock();
        if queue.abandoned {
            return false;
        }
        let size = entry.payload.len();
        let fits = queue.entries.is_empty()
            || (queue.entries.len() < shared.limit.max_entries
                && queue.bytes.saturating_add(size) <= shared.limit.max_bytes);
        // One that is pushed behind a hole would only be read twice.
        let accepted = fits && !queue.disrupted.contains(channel);
        if accepted {
            queue.bytes += size;
            queue.entries.push_back((channel.clone(), entry));
        } else {
            queue.disrupted.insert(channel.clone());
        }
        drop(queue);
        shared.changed.notify_one();
        accepted
    }

    /// Tells the receiver that entries of the channel were not pushed.
    pub fn disrupt(&self, channel: &Channel) {
        let mut queue = self.0.0.queue.lock();
        if !queue.abandoned {
            queue.disrupted.insert(channel.clone());
        }
        drop(queue);
        self.0.0.changed.notify_one();
    }
}

impl Source {
    /// What comes next; `None` when no sink is left. Disruptions come first. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Delivery> {
        loop {
            {
                let mut queue = self.0.queue.lock();
                if let Some(delivery) = queue.pop() {
                    return Some(delivery);
                }
                if queue.finished {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// What is there now.
    pub fn try_recv(&mut self) -> Option<Delivery> {
        self.0.queue.lock().pop()
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Delivery> {
        if let Some(channel) = self.disrupted.iter().next().cloned() {
            self.disrupted.remove(&channel);
            return Some(Delivery::Disrupted(channel));
        }
        let (channel, entry) = self.entries.pop_front()?;
        self.bytes -= entry.payload.len();
        Some(Delivery::Entry(channel, entry))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.queue.lock().finished = true;
        self.0.changed.notify_one();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        *queue = Queue { abandoned: true, ..Queue::default() };
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::engine::MessageId;
    use super::*;

    fn channel(name: &str) -> Channel {
        Channel::new(name).unwrap()
    }

    fn entry(n: u64, bytes: usize) -> Entry {
        let position = format!("eu.a.{n}.{n}-0").parse().unwrap();
        Entry { position, message: MessageId::new("m").unwrap(), payload: Bytes::from(vec![0; bytes]) }
    }

    fn numbers(source: &mut Source) -> Vec<String> {
        std::iter::from_fn(|| source.try_recv())
            .map(|delivery| match delivery {
                Delivery::Entry(channel, entry) => format!("{}{}", channel.as_str(), entry.position.n),
                Delivery::Disrupted(channel) => format!("{}!", channel.as_str()),
            })
            .collect()
    }

    #[test]
    fn entries_come_in_order_up_to_the_limit_and_then_a_disruption() {
        let (sink, mut source) = sink(SinkLimit { max_entries: 2, max_bytes: 100 });
        assert!(sink.push(&channel("a"), entry(1, 1)));
        assert!(sink.push(&channel("b"), entry(1, 1)));
        assert!(!sink.push(&channel("a"), entry(2, 1)));
        assert_eq!(numbers(&mut source), ["a!", "a1", "b1"]);
        assert!(sink.push(&channel("a"), entry(3, 1)), "the receiver knows that it must read");
    }

    #[test]
    fn nothing_is_queued_behind_a_hole_that_the_receiver_has_not_been_told_of() {
        let (sink, mut source) = sink(SinkLimit { max_entries: 8, max_bytes: 100 });
        sink.disrupt(&channel("a"));
        assert!(!sink.push(&channel("a"), entry(1, 1)));
        assert!(sink.push(&channel("b"), entry(1, 1)), "other channels go on");
        assert_eq!(numbers(&mut source), ["a!", "b1"]);
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let (sink, mut source) = sink(SinkLimit { max_entries: 8, max_bytes: 100 });
        assert!(sink.push(&channel("a"), entry(1, 1000)), "one fits whatever its size");
        assert!(!sink.push(&channel("a"), entry(2, 1)));
        assert_eq!(numbers(&mut source), ["a!", "a1"]);
        assert!(sink.push(&channel("a"), entry(3, 60)));
        assert!(sink.push(&channel("a"), entry(4, 40)));
        assert!(!sink.push(&channel("a"), entry(5, 1)));
    }

    #[tokio::test]
    async fn a_receiver_wakes_and_hears_the_end() {
        let (sink, mut source) = sink(SinkLimit::default());
        let receiver = tokio::spawn(async move { (source.recv().await.is_some(), source.recv().await) });
        let second = sink.clone();
        drop(sink);
        second.push(&channel("a"), entry(1, 1));
        drop(second);
        assert_eq!(receiver.await.unwrap(), (true, None));
    }

    #[test]
    fn nothing_is_kept_for_a_receiver_that_went() {
        let (sink, source) = sink(SinkLimit::default());
        sink.push(&channel("a"), entry(1, 1));
        drop(source);
        assert!(!sink.push(&channel("a"), entry(2, 1)));
        sink.disrupt(&channel("a"));
        let queue = sink.0.0.queue.lock();
        assert!(queue.entries.is_empty() && queue.disrupted.is_empty());
    }
}
