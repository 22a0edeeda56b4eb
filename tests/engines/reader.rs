//! A subscriber as the contract wants it: takes what is pushed, reads where it is told to, and judges by position.

use std::sync::Arc;

use sluicegate::backplane::engine::{Channel, Engine, Entry, ReadLimit};
use sluicegate::backplane::position::{Place, Position};
use sluicegate::backplane::recover::{Recovery, ReplayLimit, Why};
use sluicegate::backplane::sink::{Delivery, SinkLimit, Source, sink};

use super::{DEADLINE, channel, eventually};

/// Small, so that reading in parts is tried too.
const PART: ReadLimit = ReadLimit { max_entries: 7, max_bytes: 1 << 20 };

const UNLIMITED: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

/// A sink that nobody takes from.
pub fn unread() -> sluicegate::backplane::sink::Sink {
    sink(SinkLimit::default()).0
}

pub struct Reader {
    engine: Arc<dyn Engine>,
    channel: Channel,
    source: Source,
    pub last: Position,
    /// Everything that it was given, once each, in order.
    pub got: Vec<Entry>,
    /// Gaps that it was told of.
    pub gaps: Vec<Why>,
    /// How often it was told of a disruption.
    pub disruptions: usize,
}

impl Reader {
    pub async fn subscribe(engine: &Arc<dyn Engine>, name: &str, limit: SinkLimit) -> Self {
        let (sink, source) = sink(limit);
        let channel = channel(name);
        let last = engine.subscribe(&channel, &sink).await.expect("it subscribes");
        Self { engine: engine.clone(), channel, source, last, got: Vec::new(), gaps: Vec::new(), disruptions: 0 }
    }

    /// The message ids so far.
    pub fn ids(&self) -> Vec<&str> {
        self.got.iter().map(|entry| entry.message.as_str()).collect()
    }

    /// The next of what is pushed, as it is.
    pub async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(DEADLINE, self.source.recv()).await;
        next.unwrap_or_else(|_| panic!("nothing came behind {}; so far {:?}", self.last, self.ids()))
            .expect("the engine lives")
    }

    /// What is pushed now, or nothing.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.source.try_recv()
    }

    /// Takes what comes until it has the message, or is told that it may have missed it.
    pub async fn until(&mut self, id: &str) {
        while self.got.last().is_none_or(|entry| entry.message.as_str() != id) {
            let delivery = self.next().await;
            self.take(delivery).await;
        }
    }

    /// Takes what comes next.
    pub async fn step(&mut self) {
        let delivery = self.next().await;
        self.take(delivery).await;
    }

    /// Takes what comes until it is told of a gap.
    pub async fn until_gap(&mut self) -> Why {
        let before = self.gaps.len();
        while self.gaps.len() == before {
            let delivery = self.next().await;
            self.take(delivery).await;
        }
        self.gaps[before]
    }

    async fn take(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Entry(channel, entry) => {
                assert_eq!(channel, self.channel);
                if entry.position.epoch == self.last.epoch && entry.position.n <= self.last.n {
                    return;
                }
                if entry.position.n == self.last.n + 1 {
                    self.keep(entry);
                } else {
                    panic!("{} was pushed behind {} without a word", entry.position, self.last);
                }
            }
            Delivery::Disrupted(_) => {
                self.disruptions += 1;
                self.read_on().await;
            }
        }
    }

    /// Reads from the last position to the top.
    pub async fn read_on(&mut self) {
        loop {
            // An engine may be away for a moment: who must read tries again.
            let (engine, channel, last) = (&self.engine, &self.channel, &self.last);
            let slice = eventually("it is read", async || engine.read(channel, Some(last), PART).await.ok()).await;
            match slice.recover(&Place::After(self.last.clone()), UNLIMITED) {
                Recovery::Live => return,
                Recovery::Gap(why) => {
                    self.gaps.push(why);
                    self.last = slice.top;
                    return;
                }
                Recovery::Replay { .. } => {
                    let complete = slice.is_complete();
                    for entry in slice.entries {
                        assert_eq!(entry.position.n, self.last.n + 1);
                        self.keep(entry);
                    }
                    if complete {
                        return;
                    }
                }
            }
        }
    }

    fn keep(&mut self, entry: Entry) {
        self.last = entry.position.clone();
        self.got.push(entry);
    }
}

impl Reader {
    /// Takes what comes until it is told of a disruption.
    pub async fn until_disrupted(&mut self) {
        let before = self.disruptions;
        while self.disruptions == before {
            let delivery = self.next().await;
            self.take(delivery).await;
        }
    }
}
