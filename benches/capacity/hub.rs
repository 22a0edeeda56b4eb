//! What the hub takes: memory of sessions, subscriptions and channels, and CPU of publications and of those who join.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluicegate::backplane::engine::Engine;

use super::Result;
use super::machine::{micros_since, resident_bytes, thread_cpu};
use super::node::{Node, channel, channel_name, publication};
use super::region::Shared;
use super::simulation::settle;

/// Sessions join in parts of so many.
const JOINING: usize = 50_000;

/// What is measured in a process of its own has this much CPU time at least, in microseconds, or so many rounds.
const ENOUGH_US: f64 = 400_000.0;
const ROUNDS: usize = 200;

/// How often nothing may come, while something is missing.
const PATIENCE: usize = 100_000;

/// How long a hub has nothing to do, so that what it does is seen.
const IDLE: Duration = Duration::from_secs(5);

/// What sessions are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowd {
    pub sessions: usize,
    pub regions: usize,
    /// 0: each session has one of its own.
    pub channels: usize,
    /// Subscriptions of each, in the end.
    pub subscriptions: usize,
}

/// What they took, in bytes: of a session without a subscription, of its first one, and of each further one; and in CPU µs,
/// where one publication on each channel was pushed to them, and was taken.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Taken {
    pub session: f64,
    pub first: f64,
    pub further: f64,
    pub push_us: f64,
    pub poll_us: f64,
    /// CPU µs a second for each channel.
    pub sweep_us: f64,
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn start(regions: usize, channels: usize) -> Result<(Arc<Shared>, Node)> {
    let all = (0..regions).map(|nth| Shared::new(["us", "eu", "ap"][nth], channels)).collect::<Result<Vec<_>>>()?;
    let engines: Vec<Arc<dyn Engine>> = all.iter().map(|shared| shared.node(0)).collect();
    let own = all.into_iter().next().ok_or("there is a region")?;
    Ok((own, Node::start(engines)))
}

/// Makes a crowd, in a process that has nothing else.
pub fn memory(crowd: Crowd) -> Result<Taken> {
    runtime()?.block_on(async {
        let channels = if crowd.channels == 0 { crowd.sessions } else { crowd.channels };
        let (shared, mut node) = start(crowd.regions, channels * crowd.subscriptions)?;
        node.reserve(crowd.sessions);
        let per_session = |before: u64| {
            Ok::<_, super::Error>(resident_bytes()?.saturating_sub(before) as f64 / crowd.sessions as f64)
        };
        let before = resident_bytes()?;
        for _ in 0..crowd.sessions {
            node.join();
        }
        let mut taken = Taken { session: per_session(before)?, ..Taken::default() };
        for nth in 0..crowd.subscriptions {
            let before = resident_bytes()?;
            for session in 0..crowd.sessions {
                let of_session = nth * channels + session % channels;
                node.subscribe(session as u32, &channel_name(of_session))?;
                if session % JOINING == JOINING - 1 || session + 1 == crowd.sessions {
                    let wanted = node.subscriptions()?;
                    settle(|| Ok(shared.subscriptions() == node.hub.channels())).await?;
                    settle(|| Ok(node.subscriptions()? >= wanted)).await?;
                    node.poll(8)?;
                }
            }
            let wanted = crowd.sessions * (nth + 1);
            settle(|| Ok(node.subscriptions()? == wanted)).await?;
            node.poll(8)?;
            let bytes = per_session(before)?;
            match nth {
                0 => taken.first = bytes,
                _ => taken.further += bytes / (crowd.subscriptions - 1) as f64,
            }
            if nth == 0 && crowd.channels > 0 {
                (taken.push_us, taken.poll_us) = cold(&shared, &mut node, channels).await?;
            }
        }
        if crowd.channels == 0 {
            let at = thread_cpu();
            tokio::time::sleep(IDLE).await;
            taken.sweep_us = micros_since(at) / IDLE.as_secs_f64() / channels as f64;
        }
        Ok(taken)
    })
}

/// CPU µs of pushing to a session, and of its taking what was pushed, where all sessions take turns.
async fn cold(shared: &Arc<Shared>, node: &mut Node, channels: usize) -> Result<(f64, f64)> {
    let (mut taking, mut polling, mut deliveries) = (0.0, 0.0, 0);
    for round in 0..3 {
        for nth in 0..channels {
            let channel = channel(nth)?;
            let number = (round * channels + nth) as u64;
            shared.node(0).publish(&channel, &publication(&channel, number, 125)?).await?;
        }
        let due = node.len() as u64 * (round as u64 + 1);
        while deliveries < due {
            let at = thread_cpu();
            tokio::task::yield_now().await;
            taking += micros_since(at);
            let at = thread_cpu();
            deliveries += node.poll(125)?.0;
            polling += micros_since(at);
        }
    }
    Ok((taking / deliveries as f64, polling / deliveries as f64))
}

/// CPU µs of a publication with so many subscribers on a node: of the hub that takes it, and of the sessions that do.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub fan_out: usize,
    pub content_bytes: usize,
    pub taking: f64,
    pub polling: f64,
}

/// Publishes on `channels` with `fan_out` subscribers each, `batch` times on each in a round, before anyone takes it.
pub fn cost(fan_out: usize, channels: usize, content_bytes: usize, batch: usize) -> Result<Cost> {
    runtime()?.block_on(async {
        let (shared, mut node) = start(1, channels)?;
        for session in 0..fan_out * channels {
            let joined = node.join();
            node.subscribe(joined, &channel_name(session % channels))?;
        }
        let wanted = fan_out * channels;
        settle(|| Ok(node.subscriptions()? == wanted)).await?;
        node.poll(content_bytes)?;
        let names = (0..channels).map(channel).collect::<Result<Vec<_>>>()?;
        let (mut taking, mut polling, mut number) = (0.0, 0.0, 0);
        let mut rounds = 0;
        // The first round is not counted.
        while rounds <= ROUNDS && (rounds < 3 || taking + polling < ENOUGH_US) {
            for channel in names.iter().cycle().take(channels * batch) {
                number += 1;
                shared.node(0).publish(channel, &publication(channel, number, content_bytes)?).await?;
            }
            let (at, mut turns) = (thread_cpu(), 0);
            while !node.is_ready(wanted) {
                tokio::task::yield_now().await;
                turns += 1;
                if turns > PATIENCE {
                    return Err("a publication does not come".into());
                }
            }
            let took = micros_since(at);
            let at = thread_cpu();
            if node.poll(content_bytes)?.0 != (wanted * batch) as u64 {
                return Err("a publication came to some".into());
            }
            if rounds > 0 {
                (taking, polling) = (taking + took, polling + micros_since(at));
            }
            rounds += 1;
        }
        let publications = ((rounds - 1) * channels * batch) as f64;
        Ok(Cost { fan_out, content_bytes, taking: taking / publications, polling: polling / publications })
    })
}

/// CPU µs of a session that joins and subscribes to a channel which so many are on.
pub fn join(members: usize, times: usize) -> Result<f64> {
    runtime()?.block_on(async {
        let (_shared, mut node) = start(1, 1)?;
        for _ in 0..members {
            let joined = node.join();
            node.subscribe(joined, &channel_name(0))?;
        }
        settle(|| Ok(node.subscriptions()? == members)).await?;
        node.poll(125)?;
        let start = thread_cpu();
        for _ in 0..times {
            let joined = node.join();
            node.subscribe(joined, &channel_name(0))?;
            node.poll(125)?;
            let mut turns = 0;
            while !node.is_ready(1) {
                tokio::task::yield_now().await;
                turns += 1;
                if turns > PATIENCE {
                    return Err("a subscription does not come into force".into());
                }
            }
            node.poll(125)?;
            node.leave();
        }
        Ok(micros_since(start) / times as f64)
    })
}
