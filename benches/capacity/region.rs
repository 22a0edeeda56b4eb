//! A region of many nodes in one process: the engine in memory keeps the logs, and each entry goes to every node that has a
//! subscriber, as Redis's Pub/Sub has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use sluicegate::backplane::engine::{
    Capabilities, Channel, Engine, EngineError, Entry, Event, Item, PublishError, Published, ReadLimit, Slice,
};
use sluicegate::backplane::memory::{MemoryEngine, Settings};
use sluicegate::backplane::position::{Position, Region};
use sluicegate::backplane::sink::Sink;
use tokio::sync::broadcast;

use super::Result;

/// What the nodes of all regions share of one.
#[derive(Debug)]
pub struct Shared {
    log: MemoryEngine,
    /// Which nodes want a channel. Locked while something is stored, so that all are pushed the same order.
    nodes: Mutex<HashMap<Channel, Vec<(usize, Sink)>>>,
    pushed: AtomicU64,
    refused: AtomicU64,
}

/// The engine of a region, as one node has it.
#[derive(Debug)]
pub struct OfNode {
    shared: Arc<Shared>,
    node: usize,
}

impl Shared {
    /// A region that keeps the logs of so many channels.
    pub fn new(name: &str, channels: usize) -> Result<Arc<Self>> {
        let settings = Settings { max_channels: channels.max(1), max_bytes: 1 << 30, ..Settings::default() };
        let log = MemoryEngine::new(Region::new(name)?, settings)?;
        Ok(Arc::new(Self { log, nodes: Mutex::default(), pushed: AtomicU64::new(0), refused: AtomicU64::new(0) }))
    }

    pub fn node(self: &Arc<Self>, node: usize) -> Arc<dyn Engine> {
        Arc::new(OfNode { shared: self.clone(), node })
    }

    /// How many entries were pushed to nodes: one for each node.
    pub fn pushed(&self) -> u64 {
        self.pushed.load(Ordering::Relaxed)
    }

    /// How many of them a node had no room for.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many channels are pushed, counted for each node.
    pub fn subscriptions(&self) -> usize {
        self.nodes.lock().values().map(Vec::len).sum()
    }
}

/// What the engine in memory answers: it never waits.
fn at_once<T>(answer: impl Future<Output = T>) -> Option<T> {
    answer.now_or_never()
}

#[async_trait]
impl Engine for OfNode {
    fn region(&self) -> &Region {
        self.shared.log.region()
    }

    async fn publish(&self, channel: &Channel, item: &Item) -> std::result::Result<Published, PublishError> {
        let waited = || PublishError::not_stored(EngineError::TimedOut);
        let nodes = self.shared.nodes.lock();
        let published = at_once(self.shared.log.publish(channel, item)).ok_or_else(waited)??;
        for (_, sink) in nodes.get(channel).into_iter().flatten().filter(|_| !published.repeated) {
            let (position, payload) = (published.position.clone(), item.payload.clone());
            let accepted = sink.push(channel, Entry { position, message: item.id.clone(), payload });
            self.shared.pushed.fetch_add(1, Ordering::Relaxed);
            self.shared.refused.fetch_add(u64::from(!accepted), Ordering::Relaxed);
        }
        Ok(published)
    }

    async fn subscribe(&self, channel: &Channel, sink: &Sink) -> std::result::Result<Position, EngineError> {
        let mut nodes = self.shared.nodes.lock();
        let newest = ReadLimit { max_entries: 1, max_bytes: 1 };
        let read = at_once(self.shared.log.read(channel, None, newest)).ok_or(EngineError::TimedOut)??;
        let of_channel = nodes.entry(channel.clone()).or_default();
        of_channel.retain(|(node, _)| *node != self.node);
        of_channel.push((self.node, sink.clone()));
        Ok(read.top)
    }

    async fn unsubscribe(&self, channel: &Channel) {
        let mut nodes = self.shared.nodes.lock();
        if let Some(of_channel) = nodes.get_mut(channel) {
            of_channel.retain(|(node, _)| *node != self.node);
        }
    }

    async fn read(
        &self,
        channel: &Channel,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> std::result::Result<Slice, EngineError> {
        self.shared.log.read(channel, after, limit).await
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.log.capabilities()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.log.events()
    }
}
