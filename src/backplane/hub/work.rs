//! The questions to the engine, one at a time for each channel.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;

use super::channel::{Local, Task};
use super::values::Values;
use super::{Hub, now};
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

/// Takes what the engine pushes, until the hub is gone.
pub(super) async fn take_pushed(hub: Weak<Hub>, mut source: Source) {
    while let Some(delivery) = source.recv().await {
        let Some(hub) = hub.upgrade() else { return };
        let channel = match &delivery {
            Delivery::Entry(channel, _) | Delivery::Disrupted(channel) => channel,
        };
        // Nobody wants it any more.
        let Some(local) = hub.find(channel) else { continue };
        let asks = {
            let mut locked = local.lock();
            match delivery {
                Delivery::Entry(_, entry) => locked.on_entry(entry, &hub.metrics, now()),
                Delivery::Disrupted(_) => locked.on_disrupted(),
            }
            locked.needs_reading()
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

/// Asks the engine all that the channel needs, and then lets those in who waited for it.
pub(super) async fn ask(hub: Arc<Hub>, local: Arc<Mutex<Local>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let task = {
            let mut locked = local.lock();
            match locked.next_task(now()) {
                Some(task) => task,
                None => {
                    locked.admit(&hub.metrics, now());
                    locked.working = false;
                    drop(locked);
                    return start_ticking(&hub, &local);
                }
            }
        };
        match run(&hub, &local, &task).await {
            Ok(Ran::Removed) => return,
            Ok(Ran::Answered) => pause = FIRST_PAUSE,
            Err(_) => {
                local.lock().on_failed(&task);
                let chance = hub.chance.lock().random_range(0.0..1.0);
                tokio::time::sleep(pause.mul_f64(1.0 + chance)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

enum Ran {
    Answered,
    /// The channel was taken out of the hub.
    Removed,
}

async fn run(hub: &Hub, local: &Mutex<Local>, task: &Task) -> Result<Ran, EngineError> {
    let channel = local.lock().name.clone();
    match task {
        Task::Open => {
            let position = hub.engine.subscribe(&channel, &hub.sink).await?;
            local.lock().on_opened(position);
        }
        Task::ReadOn(after) => {
            let slice = hub.engine.read(&channel, Some(after), READ).await?;
            local.lock().on_read(after, slice, &hub.metrics, now());
        }
        Task::Fill => {
            let entries = read_all(&*hub.engine, local).await?;
            local.lock().on_filled(entries);
        }
        Task::Latest(asked) => {
            let latest = hub.engine.latest(&channel).await?;
            local.lock().on_latest(*asked, latest);
        }
        Task::Leave => {
            hub.engine.unsubscribe(&channel).await;
            let mut channels = hub.channels.lock();
            let mut locked = local.lock();
            locked.on_left();
            // Somebody may have come meanwhile.
            if locked.is_forgotten(now()) {
                locked.removed = true;
                channels.remove(&channel);
                return Ok(Ran::Removed);
            }
        }
    }
    Ok(Ran::Answered)
}

/// Everything that the engine has of a channel, up to what is here of it.
async fn read_all(engine: &dyn Engine, local: &Mutex<Local>) -> Result<Vec<Entry>, EngineError> {
    let (channel, ends) = {
        let locked = local.lock();
        (locked.name.clone(), locked.fill_ends())
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
