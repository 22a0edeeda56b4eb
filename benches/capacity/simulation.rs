//! Sessions in memory on real hubs: a chat and a ticker, publishing at a rate. What each session was sent is counted and
//! compared with what it should have been sent; `tests/capacity.rs` runs the same code with fewer sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use sluicegate::backplane::engine::{Channel, Engine};

use super::Result;
use super::machine::{micros_since, resident_bytes, thread_cpu};
use super::node::{Got, Node, channel, channel_name, publication};
use super::region::Shared;

/// So often publications go out, with as many as belong to that time.
const BEAT: Duration = Duration::from_millis(10);

/// How often nothing may come, while something is missing, before it counts as lost.
const PATIENCE: usize = 100_000;

/// Sessions join in parts of so many, and the hubs' tasks have their turn between.
const JOINING: usize = 2_000;

/// Where the distribution of rooms' sizes becomes flat, and how steep it is behind that: a room's share of the users falls
/// with its rank, as (rank + 100)^-0.8.
const FLAT_RANKS: f64 = 100.0;
const STEEPNESS: f64 = 0.8;

/// The regions' names.
const REGIONS: [&str; 3] = ["us", "eu", "ap"];

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub sessions: usize,
    pub channels: usize,
    /// Channels of each session.
    pub each: usize,
    /// At most three.
    pub regions: usize,
    pub nodes_per_region: usize,
    pub publications: u64,
    pub per_second: u64,
    pub content_bytes: usize,
    pub seed: u64,
}

impl Shape {
    /// A chat: rooms of a Zipf-like size distribution, of which each session is in three, in three regions.
    pub fn chat(sessions: usize) -> Self {
        Self {
            name: "chat",
            sessions,
            channels: (sessions / 5).max(10),
            each: 3,
            regions: 3,
            nodes_per_region: 2,
            publications: 20_000,
            per_second: 1000,
            content_bytes: 125,
            seed: 1,
        }
    }

    /// A ticker: everyone is subscribed to the one channel in which all symbols are, in one region.
    pub fn ticker(sessions: usize) -> Self {
        Self {
            name: "ticker",
            sessions,
            channels: 1,
            each: 1,
            regions: 1,
            nodes_per_region: 2,
            publications: 1000,
            per_second: 1000,
            content_bytes: 100,
            seed: 2,
        }
    }

    fn nodes(&self) -> usize {
        self.regions * self.nodes_per_region
    }
}

/// What was counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    pub publications: u64,
    /// What a publication has of subscribers in the mean, and the most that one had.
    pub fan_out: f64,
    pub largest: usize,
    pub expected: u64,
    pub deliveries: u64,
    /// How often a session was woken.
    pub polls: u64,
    /// Sessions that were not sent just what they should have been.
    pub wrong: usize,
    /// Entries that were pushed to nodes, and those that a node had no room for at first.
    pub pushed: u64,
    pub refused: u64,
    /// How many pushes the sizes of the channels promise: see [`super::model::nodes_with_subscriber`].
    pub promised_pushes: f64,
    /// CPU µs: of the engines in memory, of hubs that take what is pushed, of sessions that are polled.
    pub publishing: f64,
    pub taking: f64,
    pub polling: f64,
    /// From the first publication to the last delivery.
    pub seconds: f64,
    pub subscriptions: usize,
    /// Channels that have a subscriber, counted for each node.
    pub node_channels: usize,
    pub bytes: u64,
}

/// Who is in which channel, and how many of them.
struct Members {
    of_session: Vec<u32>,
    sizes: Vec<u32>,
}

impl Members {
    fn draw(shape: &Shape, rng: &mut StdRng) -> Self {
        let mut sum = 0.0;
        let sums: Vec<f64> = (0..shape.channels)
            .map(|rank| {
                sum += (rank as f64 + FLAT_RANKS).powf(-STEEPNESS);
                sum
            })
            .collect();
        let mut of_session: Vec<u32> = Vec::with_capacity(shape.sessions * shape.each);
        let mut sizes = vec![0; shape.channels];
        for _ in 0..shape.sessions {
            let first = of_session.len();
            while of_session.len() < first + shape.each.min(shape.channels) {
                let at = rng.random_range(0.0..sum);
                let nth = sums.partition_point(|sum| *sum <= at).min(shape.channels - 1) as u32;
                if !of_session[first..].contains(&nth) {
                    of_session.push(nth);
                    sizes[nth as usize] += 1;
                }
            }
        }
        Self { of_session, sizes }
    }

    fn of(&self, session: usize, shape: &Shape) -> &[u32] {
        let each = shape.each.min(shape.channels);
        &self.of_session[session * each..(session + 1) * each]
    }
}

/// Plays it on a runtime of this thread alone.
pub fn play(shape: &Shape) -> Result<Counted> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(shape))
}

async fn run(shape: &Shape) -> Result<Counted> {
    let mut rng = StdRng::seed_from_u64(shape.seed);
    let members = Members::draw(shape, &mut rng);
    let channels = (0..shape.channels).map(channel).collect::<Result<Vec<_>>>()?;
    let before = resident_bytes()?;
    let regions = REGIONS[..shape.regions].iter().map(|name| Shared::new(name, shape.channels));
    let regions = regions.collect::<Result<Vec<_>>>()?;
    // Each node has the engine of its own region first.
    let own = |node: usize| (0..shape.regions).map(move |nth| (node + nth) % shape.regions);
    let mut nodes: Vec<Node> = (0..shape.nodes())
        .map(|node| Node::start(own(node).map(|region| regions[region].node(node)).collect()))
        .collect();
    join(shape, &members, &regions, &mut nodes).await?;
    let mut counted = Counted {
        subscriptions: members.of_session.len(),
        node_channels: nodes.iter().map(|node| node.hub.channels()).sum(),
        bytes: resident_bytes()?.saturating_sub(before),
        ..Counted::default()
    };
    let sent = publish(shape, &members, &channels, &regions, &mut nodes, &mut rng, &mut counted).await?;
    let all = members.sizes.iter().map(|size| f64::from(*size));
    counted.fan_out = all.clone().map(|size| size * size).sum::<f64>() / all.sum::<f64>();
    counted.largest = members.sizes.iter().max().copied().unwrap_or(0) as usize;
    counted.pushed = regions.iter().map(|region| region.pushed()).sum();
    counted.refused = regions.iter().map(|region| region.refused()).sum();
    // Session n is on node n % nodes.
    let mut got: Vec<_> = nodes.iter().map(Node::got).collect();
    for session in 0..shape.sessions {
        let mut due = Got::default();
        for nth in members.of(session, shape) {
            let of_channel = sent[*nth as usize];
            due = Got { count: due.count + of_channel.count, sum: due.sum.wrapping_add(of_channel.sum) };
        }
        let at = session % shape.nodes();
        counted.wrong += usize::from(got[at].next() != Some(due));
    }
    Ok(counted)
}

/// Everybody joins and subscribes, and all subscriptions come into force.
async fn join(shape: &Shape, members: &Members, regions: &[Arc<Shared>], nodes: &mut [Node]) -> Result<()> {
    for node in nodes.iter_mut() {
        node.reserve(shape.sessions.div_ceil(shape.nodes()));
    }
    for session in 0..shape.sessions {
        let node = &mut nodes[session % shape.nodes()];
        let joined = node.join();
        for nth in members.of(session, shape) {
            node.subscribe(joined, &channel_name(*nth as usize))?;
        }
        if session % JOINING == JOINING - 1 {
            let wanted: usize = nodes.iter().map(|node| node.hub.channels() * shape.regions).sum();
            settle(|| Ok(regions.iter().map(|region| region.subscriptions()).sum::<usize>() == wanted)).await?;
        }
    }
    settle(|| {
        let in_force = nodes.iter().map(Node::subscriptions).sum::<Result<usize>>()?;
        Ok(in_force == members.of_session.len())
    })
    .await?;
    // One region's log is in force for each; those of the others are when these tasks have run.
    for _ in 0..JOINING {
        tokio::task::yield_now().await;
    }
    for node in nodes {
        node.poll(shape.content_bytes)?;
    }
    Ok(())
}

/// Lets the hubs' tasks run until something holds.
pub async fn settle(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    for turn in 0..PATIENCE {
        // What it costs to look is not to be paid at each turn.
        if (turn % 64 == 0) && holds()? {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
    Err("the hubs do not come to rest".into())
}

/// Publishes at the rate, each time from a session to one of its channels by the node where it is, and has everybody take
/// what comes. Returns what was sent on each channel.
async fn publish(
    shape: &Shape,
    members: &Members,
    channels: &[Channel],
    regions: &[Arc<Shared>],
    nodes: &mut [Node],
    rng: &mut StdRng,
    counted: &mut Counted,
) -> Result<Vec<Got>> {
    let engines: Vec<Vec<Arc<dyn Engine>>> =
        (0..shape.regions).map(|region| (0..shape.nodes()).map(|node| regions[region].node(node)).collect()).collect();
    let mut sent = vec![Got::default(); channels.len()];
    let start = Instant::now();
    let mut beat = 0;
    while counted.publications < shape.publications {
        let due = (shape.per_second * BEAT.as_millis() as u64 / 1000).max(1);
        for _ in 0..due.min(shape.publications - counted.publications) {
            let session = rng.random_range(0..shape.sessions);
            let of_session = members.of(session, shape);
            let nth = of_session[rng.random_range(0..of_session.len())] as usize;
            counted.publications += 1;
            let item = publication(&channels[nth], counted.publications, shape.content_bytes)?;
            let node = session % shape.nodes();
            let at = thread_cpu();
            engines[node % shape.regions][node].publish(&channels[nth], &item).await?;
            counted.publishing += micros_since(at);
            sent[nth].count += 1;
            sent[nth].sum = sent[nth].sum.wrapping_add(counted.publications);
            let size = members.sizes[nth];
            counted.expected += u64::from(size);
            counted.promised_pushes += super::model::nodes_with_subscriber(shape.nodes() as f64, f64::from(size));
        }
        let mut idle = 0;
        while counted.deliveries < counted.expected && idle < PATIENCE {
            let at = thread_cpu();
            tokio::task::yield_now().await;
            counted.taking += micros_since(at);
            let at = thread_cpu();
            let mut came = (0, 0);
            for node in nodes.iter_mut().filter(|node| node.is_ready(1)) {
                let (messages, sessions) = node.poll(shape.content_bytes)?;
                came = (came.0 + messages, came.1 + sessions);
            }
            counted.polling += micros_since(at);
            (counted.deliveries, counted.polls) = (counted.deliveries + came.0, counted.polls + came.1);
            idle = if came.0 > 0 { 0 } else { idle + 1 };
        }
        beat += 1;
        // What hubs do beside publications is done here, where there is time.
        let at = thread_cpu();
        tokio::time::sleep_until((start + BEAT * beat).into()).await;
        counted.taking += micros_since(at);
    }
    counted.seconds = start.elapsed().as_secs_f64();
    Ok(sent)
}
