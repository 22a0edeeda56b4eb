//! The two loads: publications at a rate, and each as soon as an earlier one has come to everyone.

use std::time::{Duration, Instant};

use super::Result;
use super::crowd::{Counted, Crowd};
use super::publisher::Publisher;
use super::system::System;

/// How long a publication may take to come to everyone, before it is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a load came to.
#[derive(Debug)]
pub struct Outcome {
    pub counted: Counted,
    pub expected: u64,
    /// Of what was counted, without the waiting for what did not come.
    pub seconds: f64,
    pub cpu: f64,
    pub redis_cpu: f64,
}

impl Outcome {
    pub fn deliveries_per_second(&self) -> f64 {
        self.counted.received as f64 / self.seconds
    }

    /// Per million deliveries: of the gateway, and of Redis.
    pub fn cpu_per_million(&self) -> [f64; 2] {
        [self.cpu, self.redis_cpu].map(|cpu| cpu * 1e6 / self.counted.received.max(1) as f64)
    }

    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.counted.received)
    }

    /// p50 and p99 in ms.
    pub fn latency_ms(&self) -> [f64; 2] {
        [0.5, 0.99].map(|part| self.counted.latency.quantile(part).unwrap_or(0) as f64 / 1e6)
    }
}

/// When to publish.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// So many times, one behind the other in this time.
    Paced { times: u64, every: Duration },
    /// As soon as fewer than so many are under way, for this time.
    Closed { window: u64, during: Duration },
    /// The same with one under way, so many times.
    Counted { times: u64 },
}

/// Publishes until what is published comes to everyone: the subscriptions are in force.
pub fn settle(publisher: &mut Publisher, crowd: &mut Crowd) -> Result<()> {
    let (phase, deadline) = (crowd.begin()?, Instant::now() + Duration::from_secs(60));
    for sequence in 0.. {
        publisher.insist(phase, sequence)?;
        let wait = Instant::now() + PATIENCE;
        while let Some(came) = crowd.came_to_all(wait.saturating_duration_since(Instant::now()))? {
            if came == sequence {
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            break;
        }
    }
    Err("no publication comes to every subscriber".into())
}

pub fn play(load: Load, system: &System, publisher: &mut Publisher, crowd: &mut Crowd) -> Result<Outcome> {
    eprintln!("  {load:?}");
    let phase = crowd.begin()?;
    let (window, most, every, during) = match load {
        Load::Paced { times, every } => (u64::MAX, times, every, Duration::MAX),
        Load::Closed { window, during } => (window, u64::MAX, Duration::ZERO, during),
        Load::Counted { times } => (1, times, Duration::ZERO, Duration::MAX),
    };
    let (cpu, redis_cpu) = system.cpu()?;
    let start = Instant::now();
    // `settled` have come to everyone or were given up.
    let (mut sent, mut settled, mut last) = (0, 0, start);
    loop {
        while sent < most && sent - settled < window && start.elapsed() < during {
            let at = start + every * sent as u32;
            if at > Instant::now() {
                break;
            }
            publisher.publish(phase, sent)?;
            (sent, last) = (sent + 1, Instant::now());
        }
        let over = sent == most || start.elapsed() >= during;
        if over && settled == sent {
            break;
        }
        let next = start + every * sent as u32;
        let wait = match over || sent - settled >= window {
            true => PATIENCE,
            false => next.saturating_duration_since(Instant::now()),
        };
        match crowd.came_to_all(wait)? {
            Some(sequence) => {
                settled = settled.max(sequence + 1);
                last = Instant::now();
            }
            None if over || sent - settled >= window => settled = sent,
            None => {}
        }
    }
    let seconds = (last - start).as_secs_f64();
    let (cpu_after, redis_after) = system.cpu()?;
    let counted = crowd.counted()?;
    Ok(Outcome {
        counted,
        expected: sent * crowd.count as u64,
        seconds,
        cpu: cpu_after - cpu,
        redis_cpu: redis_after - redis_cpu,
    })
}
