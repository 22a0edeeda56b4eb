//! One stream as this node follows it: a task that takes what comes, and what waits for it.
//!
//! ```text
//!   not followed -- somebody needs it --> behind -- a probe sent after it was begun with has come --> live
//!        ^                                  ^                                                          |
//!        |                                  +---- the connection is lost, the broker cancels, ---------+
//!        |                                        a probe does not come back                           |
//!        +---- nobody is subscribed, and none has published or read for a while -----------------------+
//! ```
//!
//! Followed anew, a stream is read from the very message that was read last: if that is not there, or is another one, the
//! stream is not what it was, or was trimmed beyond that, and subscribers are told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::Channel as Line;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::super::engine::{EngineError, Event, Published, Scope};
use super::super::position::Region;
use super::envelope::Envelope;
use super::index::Index;
use super::session::{PREFETCH, Session};
use super::{Shared, now_ms, wire};
use crate::backplane::backoff::backoff;

/// How many calls wait for one probe at most.
const MAX_WAITING_READS: usize = 65_536;

/// So many messages are acknowledged at once.
const ACKNOWLEDGED_AT_ONCE: u16 = PREFETCH / 4;

/// The longest pause before a stream is followed again: the first is that before the broker is connected to again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A stream.
#[derive(Debug)]
pub struct Partition {
    /// Its name on the broker.
    pub stream: String,
    state: Mutex<State>,
    stand: watch::Sender<Stand>,
    wanted: Notify,
    /// Publications of this node that have not come back yet, by their nonces.
    published: Mutex<HashMap<u64, oneshot::Sender<Published>>>,
    probes: Mutex<Probes>,
    probe: Notify,
}

#[derive(Debug)]
struct State {
    index: Index,
    is_live: bool,
    needed_at: Option<Instant>,
}

impl State {
    fn is_needed(&self, linger: Duration) -> bool {
        self.index.subscriptions() > 0 || self.needed_at.is_some_and(|at| at.elapsed() < linger)
    }
}

/// How far it has come, for those who wait.
#[derive(Clone, Debug)]
enum Stand {
    NotLive(Option<EngineError>),
    Live,
}

/// What is asked by one probe at a time: whoever comes while one is on its way waits for the next.
#[derive(Debug, Default)]
struct Probes {
    waiting: Vec<oneshot::Sender<()>>,
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    nonce: u64,
    at: Instant,
    waiting: Vec<oneshot::Sender<()>>,
}

/// A publication that is waited for; forgotten when this is dropped.
pub struct Awaited<'a> {
    partition: &'a Partition,
    nonce: u64,
    came: oneshot::Receiver<Published>,
}

impl Awaited<'_> {
    /// Where it is, when it has come back.
    pub async fn came(&mut self) -> Result<Published, EngineError> {
        (&mut self.came).await.map_err(|_| EngineError::Unreachable)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.partition.published.lock().remove(&self.nonce);
    }
}

impl Partition {
    pub fn new(stream: String, region: Region) -> Self {
        Self {
            stream,
            state: Mutex::new(State { index: Index::new(region), is_live: false, needed_at: None }),
            stand: watch::Sender::new(Stand::NotLive(None)),
            wanted: Notify::new(),
            published: Mutex::default(),
            probes: Mutex::default(),
            probe: Notify::new(),
        }
    }

    /// Does something with what is known of the stream, when that is up to date but for what is on its way.
    pub async fn when_live<T>(
        &self,
        until: tokio::time::Instant,
        mut work: impl FnMut(&mut Index) -> T,
    ) -> Result<T, EngineError> {
        let mut stand = self.stand.subscribe();
        loop {
            {
                let mut state = self.state.lock();
                state.needed_at = Some(Instant::now());
                if state.is_live {
                    return Ok(work(&mut state.index));
                }
            }
            self.wanted.notify_one();
            let live = stand.wait_for(|stand| matches!(stand, Stand::Live));
            // The error first: the borrow of what is waited for ends with it.
            let is_live = tokio::time::timeout_at(until, live).await.is_ok();
            if !is_live {
                let Stand::NotLive(Some(error)) = &*self.stand.borrow() else { return Err(EngineError::TimedOut) };
                return Err(error.clone());
            }
        }
    }

    /// Does something with what is known of the stream, live or not.
    pub fn now<T>(&self, work: impl FnOnce(&mut Index) -> T) -> T {
        work(&mut self.state.lock().index)
    }

    /// Returns when all has come that was in the stream when this was called.
    pub async fn catch_up(&self, until: tokio::time::Instant) -> Result<(), EngineError> {
        let (tell, told) = oneshot::channel();
        {
            let mut probes = self.probes.lock();
            if probes.waiting.len() >= MAX_WAITING_READS {
                return Err(EngineError::Full);
            }
            probes.waiting.push(tell);
        }
        self.probe.notify_one();
        match tokio::time::timeout_at(until, told).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(EngineError::Unreachable),
            Err(_) => Err(EngineError::TimedOut),
        }
    }

    /// Waits for a publication with this nonce from now on.
    pub fn await_publication(&self, nonce: u64) -> Awaited<'_> {
        let (tell, came) = oneshot::channel();
        self.published.lock().insert(nonce, tell);
        Awaited { partition: self, nonce, came }
    }

    /// Follows the stream whenever it is needed, for ever.
    pub async fn run(&self, shared: &Shared) {
        let mut sessions = shared.session.subscribe();
        let mut failures = 0;
        loop {
            while !self.is_needed(shared) {
                self.wanted.notified().await;
            }
            // The sender lives as long as `shared`.
            let Ok(session) = sessions.wait_for(Option::is_some).await.map(|session| session.clone()) else { return };
            let Some(session) = session else { continue };
            let ended = tokio::select! {
                ended = self.follow(shared, &session) => ended,
                () = session.lost() => Err(EngineError::Unreachable),
            };
            let was_live = self.not_live(ended.as_ref().err());
            if ended.is_err() {
                failures = if was_live { 1 } else { failures + 1 };
                tokio::time::sleep(backoff(failures, LONGEST_PAUSE)).await;
            }
        }
    }

    fn is_needed(&self, shared: &Shared) -> bool {
        self.state.lock().is_needed(shared.settings.linger)
    }

    /// Says whether it was.
    fn not_live(&self, why: Option<&EngineError>) -> bool {
        let was_live = {
            let mut state = self.state.lock();
            // Under the lock: who waits for one must find the other.
            self.stand.send_replace(Stand::NotLive(why.cloned()));
            std::mem::take(&mut state.is_live)
        };
        // Who waits hears that nothing is known.
        self.published.lock().clear();
        *self.probes.lock() = Probes::default();
        was_live
    }

    /// Follows the stream until that comes to an end; without an error if nobody needs it any more.
    async fn follow(&self, shared: &Shared, session: &Session) -> Result<(), EngineError> {
        let settings = &shared.settings;
        let resumed = self.now(|index| index.last);
        let (line, mut consumer) = session.consume(&self.stream, resumed.map(|(offset, _)| offset), settings).await?;
        // What waited has no answer yet; this probe is the first.
        let mut first = Some(resumed);
        let mut was_live = false;
        let mut unacknowledged = 0;
        let mut came_at = Instant::now();
        self.send_probe(shared, session).await?;
        // Nodes that follow a quiet stream see each other's probes: the first sends for all.
        let quiet = settings.heartbeat.mul_f64(rand::random_range(0.6..1.0));
        let mut ticks = tokio::time::interval(settings.heartbeat / 4);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.probe.notified() => self.send_probe(shared, session).await?,
                _ = ticks.tick() => {
                    if self.is_overdue(settings.timeout) {
                        return Err(EngineError::TimedOut);
                    }
                    if came_at.elapsed() >= quiet {
                        self.send_probe(shared, session).await?;
                    }
                    if !self.is_needed(shared) && self.let_go(shared) {
                        return Ok(());
                    }
                }
                came = consumer.next() => {
                    let delivery = match came {
                        Some(Ok(delivery)) => delivery,
                        Some(Err(error)) => return Err(wire::error(&error)),
                        // The broker has cancelled it: the stream was deleted, or its leader is gone.
                        None => return Err(EngineError::Unreachable),
                    };
                    came_at = Instant::now();
                    let tag = delivery.delivery_tag;
                    let is_probed = self.take(shared, delivery, &mut first)?;
                    unacknowledged += 1;
                    if unacknowledged >= ACKNOWLEDGED_AT_ONCE {
                        unacknowledged = 0;
                        acknowledge(&line, tag).await?;
                    }
                    if is_probed {
                        if !was_live {
                            was_live = true;
                            self.live(shared);
                        }
                        // Those who came meanwhile.
                        if !self.probes.lock().waiting.is_empty() {
                            self.send_probe(shared, session).await?;
                        }
                    }
                }
            }
        }
    }

    /// Takes one message. Says whether it is the probe that is waited for. `first` is what was read last, if this is to be
    /// that once more.
    fn take(
        &self,
        shared: &Shared,
        delivery: Delivery,
        first: &mut Option<Option<(u64, u64)>>,
    ) -> Result<bool, EngineError> {
        let offset = wire::offset(&delivery).ok_or(wire::malformed("a queue that is no stream"))?;
        let envelope = Envelope::decode(Bytes::from(delivery.data));
        let nonce = envelope.as_ref().map_or(0, |envelope| envelope.nonce);
        let mut state = self.state.lock();
        let index = &mut state.index;
        if let Some(resumed) = first.take() {
            match resumed {
                None if offset == 0 => index.begins_whole(),
                None => {}
                Some(last) if last == (offset, nonce) => return Ok(false),
                // Trimmed, if it begins behind that; otherwise it is another stream.
                Some((last, _)) => {
                    let is_other = offset <= last;
                    let from = index.lineage.clone();
                    index.restart(is_other);
                    if is_other {
                        shared.tell(Event::LineageChanged { from, to: index.lineage.clone() });
                    }
                    return Err(EngineError::Unreachable);
                }
            }
        }
        let Some(envelope) = envelope else {
            // Somebody else's: passed over.
            index.last = Some((offset, nonce));
            return Ok(false);
        };
        let outcome = index.take(offset, envelope, now_ms(), &shared.settings);
        if let Some(outcome) = outcome {
            // In order, and behind what was pushed.
            let waiting = self.published.lock().remove(&nonce);
            drop(state);
            if let Some(waiting) = waiting {
                // The publisher may have given up.
                let _ = waiting.send(Published { position: outcome.position, repeated: outcome.is_copy });
            }
            if let Some(channel) = outcome.overrun {
                shared.tell(Event::Disrupted(Scope::Channel(channel)));
            }
            return Ok(false);
        }
        drop(state);
        let mut probes = self.probes.lock();
        let Some(sent) = probes.sent.take_if(|sent| sent.nonce == nonce) else { return Ok(false) };
        drop(probes);
        for waiting in sent.waiting {
            // The reader may have given up.
            let _ = waiting.send(());
        }
        Ok(true)
    }

    /// All that was there when it was begun with has come.
    fn live(&self, shared: &Shared) {
        let mut state = self.state.lock();
        state.is_live = true;
        if std::mem::take(&mut state.index.is_building) {
            for channel in state.index.disrupt() {
                shared.tell(Event::Disrupted(Scope::Channel(channel)));
            }
        }
        self.stand.send_replace(Stand::Live);
    }

    /// Forgets what nobody needs; `false` if somebody came.
    fn let_go(&self, shared: &Shared) -> bool {
        let mut state = self.state.lock();
        if state.is_needed(shared.settings.linger) {
            return false;
        }
        state.is_live = false;
        self.stand.send_replace(Stand::NotLive(None));
        state.index.restart(false);
        true
    }

    async fn send_probe(&self, shared: &Shared, session: &Session) -> Result<(), EngineError> {
        let nonce = rand::random();
        {
            let mut probes = self.probes.lock();
            if probes.sent.is_some() {
                return Ok(());
            }
            let waiting = std::mem::take(&mut probes.waiting);
            probes.sent = Some(Sent { nonce, at: Instant::now(), waiting });
        }
        let stamp = self.now(|index| index.stamp(now_ms()));
        let sent = tokio::time::timeout(shared.settings.timeout, session.probe(&self.stream, nonce, stamp)).await;
        sent.unwrap_or(Err(EngineError::TimedOut))
    }

    fn is_overdue(&self, timeout: Duration) -> bool {
        self.probes.lock().sent.as_ref().is_some_and(|sent| sent.at.elapsed() >= timeout)
    }
}

async fn acknowledge(line: &Line, tag: u64) -> Result<(), EngineError> {
    let options = BasicAckOptions { multiple: true };
    line.basic_ack(tag, options).await.map_err(|error| wire::error(&error))
}

/// All streams of an engine.
pub fn all(region: &Region) -> [Arc<Partition>; super::PARTITIONS] {
    std::array::from_fn(|nth| Arc::new(Partition::new(super::stream(region, nth), region.clone())))
}
