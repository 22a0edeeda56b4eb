//! What Redis takes: CPU and bytes on the wire for each publication and each node that it is pushed to, and memory.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use sluicegate::backplane::engine::{Channel, Engine};
use sluicegate::backplane::position::Region;
use sluicegate::backplane::redis::{RedisEngine, Servers, Settings};
use sluicegate::backplane::sink::{Delivery, SinkLimit, sink};
use sluicegate::tunnel::sys::heap_bytes;

use super::Result;
use super::node::{channel, publication};
use super::proxy::{Proxy, free_address};

const CHANNELS: usize = 100;
const PUBLICATIONS: u64 = 10_000;
/// Publications that are under way at once, where it is not said.
const AT_ONCE: u64 = 16;
const DEADLINE: Duration = Duration::from_secs(20);

/// What a run came to, for each publication.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub nodes: usize,
    pub content_bytes: usize,
    pub at_once: u64,
    pub cpu_us: f64,
    pub output_bytes: f64,
    /// Publications a second that the one publisher got answered.
    pub per_second: f64,
}

/// Bytes of memory of Redis: a channel with its first publication, each further one, and a node's subscription; and of the
/// node's engine for that.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub content_bytes: usize,
    pub channel: f64,
    pub kept: f64,
    pub subscription: f64,
    pub of_node: f64,
}

/// A Redis that keeps nothing on disk.
fn start() -> Result<Proxy> {
    let address = free_address()?;
    let files = tempfile::tempdir()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(files.path());
    Proxy::other("redis", &mut command, 0, address, files)
}

/// Numbers of INFO.
struct Info(String);

impl Info {
    fn of(server: &Proxy) -> Result<Self> {
        let mut connection = ::redis::Client::open(format!("redis://{}", server.address))?.get_connection()?;
        Ok(Self(::redis::cmd("INFO").arg("everything").query(&mut connection)?))
    }

    fn number(&self, name: &str) -> Result<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.ok_or_else(|| format!("INFO has {name}"))?.trim().parse()?)
    }

    fn cpu_us(&self) -> Result<f64> {
        Ok((self.number("used_cpu_user")? + self.number("used_cpu_sys")?) * 1e6)
    }
}

async fn engine(server: &Proxy) -> Result<Arc<RedisEngine>> {
    let settings = Settings::new(Servers::Standalone { url: format!("redis://{}", server.address) });
    let engine = Arc::new(RedisEngine::start(Region::new("eu")?, settings));
    let deadline = Instant::now() + DEADLINE;
    while engine.status().is_err() {
        if Instant::now() > deadline {
            return Err("Redis cannot be reached".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(engine)
}

/// Publishes on channels that so many nodes are pushed, so many times at once.
pub fn run(nodes: usize, content_bytes: usize, at_once: u64) -> Result<Run> {
    let server = start()?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let names = (0..CHANNELS).map(channel).collect::<Result<Vec<_>>>()?;
        let came = Arc::new(AtomicU64::new(0));
        let mut engines = Vec::new();
        for _ in 0..nodes {
            let engine = engine(&server).await?;
            let (sink, mut source) = sink(SinkLimit::default());
            for name in &names {
                engine.subscribe(name, &sink).await?;
            }
            let came = came.clone();
            tokio::spawn(async move {
                while let Some(delivery) = source.recv().await {
                    came.fetch_add(u64::from(matches!(delivery, Delivery::Entry(..))), Ordering::Relaxed);
                }
            });
            engines.push((engine, sink));
        }
        let publisher = engine(&server).await?;
        let (before, start) = (Info::of(&server)?, Instant::now());
        publish(&publisher, &names, 0..PUBLICATIONS, content_bytes, at_once).await?;
        let seconds = start.elapsed().as_secs_f64();
        let deadline = Instant::now() + DEADLINE;
        while came.load(Ordering::Relaxed) < PUBLICATIONS * nodes as u64 {
            if Instant::now() > deadline {
                return Err("what was published does not come to all nodes".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let after = Info::of(&server)?;
        let each = |after: f64, before: f64| (after - before) / PUBLICATIONS as f64;
        let output = "total_net_output_bytes";
        Ok(Run {
            nodes,
            content_bytes,
            at_once,
            cpu_us: each(after.cpu_us()?, before.cpu_us()?),
            output_bytes: each(after.number(output)?, before.number(output)?),
            per_second: PUBLICATIONS as f64 / seconds,
        })
    })
}

async fn publish(
    engine: &Arc<RedisEngine>,
    names: &[Channel],
    numbers: std::ops::Range<u64>,
    content_bytes: usize,
    at_once: u64,
) -> Result<()> {
    let part = |first: u64| {
        let numbers = numbers.clone();
        async move {
            for number in (numbers.start + first..numbers.end).step_by(at_once as usize) {
                let name = &names[number as usize % names.len()];
                engine.publish(name, &publication(name, number, content_bytes)?).await?;
            }
            Ok::<_, super::Error>(())
        }
    };
    try_join_all((0..at_once).map(part)).await?;
    Ok(())
}

/// Publishes once on each of many channels, and then more on some of them.
pub fn memory(content_bytes: usize) -> Result<Memory> {
    const MANY: u64 = 20_000;
    const SOME: usize = 400;
    const MORE: u64 = 50;
    let server = start()?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let names = (0..MANY as usize).map(channel).collect::<Result<Vec<_>>>()?;
        let publisher = engine(&server).await?;
        let used = || Info::of(&server)?.number("used_memory");
        let empty = used()?;
        publish(&publisher, &names, 0..MANY, content_bytes, AT_ONCE).await?;
        let with_channels = used()?;
        let numbers = MANY..MANY + SOME as u64 * MORE;
        let count = (numbers.end - numbers.start) as f64;
        publish(&publisher, &names[..SOME], numbers, content_bytes, AT_ONCE).await?;
        let with_kept = used()?;
        let (node, before) = (engine(&server).await?, heap_bytes());
        let (sink, _source) = sink(SinkLimit::default());
        let part = |first: usize| {
            let (node, sink, names) = (&node, &sink, &names);
            async move {
                for name in names[first..].iter().step_by(AT_ONCE as usize) {
                    node.subscribe(name, sink).await?;
                }
                Ok::<_, super::Error>(())
            }
        };
        try_join_all((0..AT_ONCE as usize).map(part)).await?;
        Ok(Memory {
            content_bytes,
            channel: (with_channels - empty) / MANY as f64,
            kept: (with_kept - with_channels) / count,
            subscription: (used()? - with_kept) / MANY as f64,
            of_node: heap_bytes().saturating_sub(before) as f64 / MANY as f64,
        })
    })
}
