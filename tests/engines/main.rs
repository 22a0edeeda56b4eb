//! Every engine of the backplane, held to one contract, and those with servers to what happens to them: real processes on free ports.

mod cable;
mod cluster;
mod cluster_server;
mod contract;
mod faults;
mod ingest;
mod nats_cluster;
mod nats_faults;
mod nats_limits;
mod nats_server;
mod rabbit;
mod rabbit_server;
mod reader;
mod sentinel;
mod server;
mod shards;
mod values;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluicegate::backplane::engine::{
    Channel, Engine, Item, Key, LatestLimit, MessageId, PublishError, Published, ReadLimit, Retention,
};
use sluicegate::backplane::position::{Position, Region};

/// How long a test waits for what must happen. It is no measure of anything.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A whole log.
pub const ALL: ReadLimit = ReadLimit { max_entries: 100_000, max_bytes: 1 << 30 };

/// What a test asks of an engine.
#[derive(Clone, Copy)]
pub struct Wish {
    /// What is kept.
    pub retention: Retention,
    /// How long ids are remembered.
    pub dedupe_window: Duration,
    /// What is kept of newest values.
    pub latest: LatestLimit,
}

impl Default for Wish {
    fn default() -> Self {
        let (retention, latest) = (Retention::default(), LatestLimit::default());
        Self { retention, dedupe_window: Duration::from_secs(300), latest }
    }
}

/// The region of all engines here.
pub fn region() -> Region {
    Region::new("eu").expect("a region")
}

/// A channel.
pub fn channel(name: &str) -> Channel {
    Channel::new(name).expect("a channel")
}

/// An item.
pub fn item(id: &str, payload: impl Into<Bytes>) -> Item {
    Item { id: MessageId::new(id).expect("an id"), key: None, payload: payload.into() }
}

/// An item with a key.
pub fn value(key: &str, id: &str, payload: impl Into<Bytes>) -> Item {
    Item { key: Some(Key::new(key).expect("a key")), ..item(id, payload) }
}

/// Publishes an item whose payload is its id.
pub async fn try_publish(engine: &Arc<dyn Engine>, name: &str, id: &str) -> Result<Published, PublishError> {
    engine.publish(&channel(name), &item(id, id.to_owned())).await
}

/// The same, where it must succeed.
pub async fn publish(engine: &Arc<dyn Engine>, name: &str, id: &str) -> Position {
    try_publish(engine, name, id).await.expect("it is stored").position
}

/// Tries until there is an answer.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(answer) = attempt().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(DEADLINE, tries).await;
    answer.unwrap_or_else(|_| panic!("it did not happen: {what}"))
}
