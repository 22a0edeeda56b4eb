//! The questions to the engine, one at a time for each channel.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;

use super::channel::Local;
use super::log::Task;
use super::regions::OfHub;
use super::values::Values;
use super::{Hub, now, now_ms};
use crate::backplane::engine::{Engine, EngineError, Entry, ReadLimit};
use crate::backplane::sink::{Delivery, Source};

/// How much one question asks for.
const READ: ReadLimit = ReadLimit { max_entries: 500, max_bytes: 1 << 20 };

/// The pause before a question that was not answered is asked again: the first, and the longest. Each is twice the one
/// before, and up to as much again by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often channels that nobody wants are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Takes what a region's engine pushes, until the hub is gone.
pub(super) async fn take_pushed(hub: Weak<Hub>, nth: usize, mut source: Source) {
    while let Some(delivery) = source.recv().await {
        let Some(hub) = hub.upgrade() else { return };
        let channel = match &delivery {
            Delivery::Entry(channel, _) | Delivery::Disrupted(channel) => channel,
        };
        // Nobody wants it any more.
        let Some(local) = hub.find(channel) else { continue };
        let asks = {
            let mut locked = local.lock();
            let Some(at) = locked.log_of(nth) else { continue };
            match delivery {
                Delivery::Entry(_, entry) => {
                    if let Some(of) = hub.regions.get(nth) {
                        hub.metrics.lag(nth, now_ms().saturating_sub(of.clock.to_node(entry.stored_ms())));
                    }
                    locked.on_entry(at, entry, &hub.metrics, now());
                }
                Delivery::Disrupted(_) => locked.on_disrupted(at),
            }
            locked.needs_reading(at)
        };
        if asks {
            hub.work(&local);
        }
        start_ticking(&hub, &local);
    }
}

/// Lets channels go that nobody has wanted for a while, until the hub is gone.
pub(super) async fn look_for_forgotten(hub: Weak<Hub>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(hub) = hub.upgrade() else { return };
        let all: Vec<_> = hub.channels.lock().values().cloned().collect();
        let now = now();
        for local in all {
            let mut locked = local.lock();
            if let Some(values) = locked.values() {
                values.rest();
            }
            let is_forgotten = locked.is_forgotten(now);
            drop(locked);
            if is_forgotten {
                hub.work(&local);
            }
        }
    }
}

/// Has a channel of newest values tick while it has something new and somebody is subscribed.
fn start_ticking(hub: &Hub, local: &Arc<Mutex<Local>>) {
    let interval = local.lock().values().and_then(Values::start_ticking);
    if let Some(interval) = interval {
        let (local, metrics) = (local.clone(), hub.metrics.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                if !local.lock().values().is_some_and(|values| values.tick(&metrics)) {
                    return;
                }
            }
        });
    }
}

/// Asks the engine of one of the channel's logs all that it needs, and then lets those in who waited for it.
pub(super) async fn ask(hub: Arc<Hub>, local: Arc<Mutex<Local>>, at: usize) {
    let mut pause = FIRST_PAUSE;
    let mut has_asked = false;
    loop {
        let task = {
            let mut locked = local.lock();
            let task = locked.next_task(at, now(), now_ms());
            if task.is_none() {
                locked.admit(at, &hub.metrics, now());
                if let Some(log) = locked.log_mut(at) {
                    log.working = false;
                }
            }
            task
        };
        let Some(task) = task else {
            start_ticking(&hub, &local);
            remove(&hub, &local);
            // Who waits for another log may be told more now, also where there was nothing to ask.
            let mut locked = local.lock();
            let again = (locked.take_moved() || has_asked) && locked.logs() > 1;
            drop(locked);
            if again {
                hub.work(&local);
            }
            return;
        };
        let answer = run(&hub, &local, at, &task).await;
        local.lock().on_answered(at, &task, answer.is_ok());
        match answer {
            Ok(()) => (pause, has_asked) = (FIRST_PAUSE, true),
            Err(_) => {
                // Those who come back to another log do not wait for this one.
                if local.lock().logs() > 1 {
                    hub.work(&local);
                }
                let chance = hub.chance.lock().random_range(0.0..1.0);
                tokio::time::sleep(pause.mul_f64(1.0 + chance)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Takes a channel out of the hub that nobody wants and no engine pushes.
fn remove(hub: &Hub, local: &Mutex<Local>) {
    if !local.lock().is_over(now()) {
        return;
    }
    let mut channels = hub.channels.lock();
    let mut locked = local.lock();
    // Somebody may have come meanwhile.
    if !locked.removed && locked.is_over(now()) {
        locked.removed = true;
        channels.remove(&locked.name);
    }
}

async fn run(hub: &Hub, local: &Mutex<Local>, at: usize, task: &Task) -> Result<(), EngineError> {
    let (channel, nth) = {
        let locked = local.lock();
        (locked.name.clone(), locked.log(at).map(|of| of.nth))
    };
    // Each log is of a region that the hub has.
    let Some(OfHub { engine, sink, .. }) = nth.and_then(|nth| hub.regions.get(nth)) else { return Ok(()) };
    match task {
        Task::Open => {
            let position = engine.subscribe(&channel, sink).await?;
            local.lock().on_opened(at, position);
        }
        Task::ReadOn(after) => {
            let slice = engine.read(&channel, Some(after), READ).await?;
            local.lock().on_read(at, after, slice, &hub.metrics, now());
        }
        Task::Fill => {
            let entries = read_all(&**engine, local, at).await?;
            local.lock().on_filled(at, entries, now());
        }
        Task::Latest(asked) => {
            let latest = engine.latest(&channel).await?;
            local.lock().on_latest(at, *asked, latest);
        }
        Task::Leave => {
            engine.unsubscribe(&channel).await;
            local.lock().on_left(at);
        }
    }
    Ok(())
}

/// Everything that the engine has of a channel, up to what is here of it.
async fn read_all(engine: &dyn Engine, local: &Mutex<Local>, at: usize) -> Result<Vec<Entry>, EngineError> {
    let (channel, ends) = {
        let locked = local.lock();
        (locked.name.clone(), locked.log(at).and_then(|of| of.log.fill_ends()))
    };
    let end = match ends {
        Some((to, true)) => return engine.read_back(&channel, &to).await,
        Some((to, false)) => to.n,
        None => 0,
    };
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map(|entry| entry.position.clone());
        let slice = engine.read(&channel, after.as_ref(), READ).await?;
        let complete = slice.is_complete() || slice.entries.is_empty();
        entries.extend(slice.entries);
        if complete || entries.last().is_some_and(|last| last.position.n >= end) {
            return Ok(entries);
        }
    }
}
