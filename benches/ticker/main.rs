//! What prices cost: examples/ticker as it is, with many clients, some of which read slowly, in one run on one machine.
//!
//! `make ticker` leaves its table in docs/ticker.md. The clients are one process, the feed, which is the backend too, another,
//! and the gateway the third. Behind `--` a number is the largest audience. A promise that is not kept fails the run.

mod clients;
mod crowd;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../fanout/histogram.rs"]
mod histogram;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../exhaustion/metrics.rs"]
mod metrics;
mod prices;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../load/proxy.rs"]
mod proxy;
mod report;
#[path = "../fanout/sockets.rs"]
mod sockets;
mod system;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../load/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use crowd::{Crowd, Report};
use metrics::Scrape;
use prices::{Last, Reader};
use system::System;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// As many as one gateway holds where a process may have 20,000 descriptors, and connections to its backend beside them.
const MOST: usize = 15_000;
const SMALLER: [usize; 2] = [1000, 5000];
/// How many offer compression as browsers do, in a run of their own.
const COMPRESSED: usize = 1000;

/// How long is measured.
const WINDOW: Duration = Duration::from_secs(20);
/// After so long memory that was only needed while connections opened is given back, and slow clients are as slow as they get.
const QUIET: Duration = Duration::from_secs(4);
/// How long all may take to have a price of every symbol.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long slow clients read slowly after the last publication, before they read as the others do.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long all may take then.
const SAME_TIMEOUT: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(250);

/// CPU seconds so far: of the gateway, the feed and the clients.
type Cpu = [f64; 3];

/// What became of an audience.
pub struct Run {
    count: usize,
    compressed: bool,
    /// How long it took to open, with a price of every symbol for everyone.
    opening_s: f64,
    seconds: f64,
    cpu: Cpu,
    /// Of the gateway, for each client, beside the traffic.
    resident_bytes: f64,
    report: Report,
    /// What the gateway counted: publications stored, those replaced before they were sent, ticks, and how often it gave a
    /// client what it had missed.
    stored: f64,
    conflated: f64,
    ticks: f64,
    behind: f64,
    last: Last,
    /// Seconds from the feed's end until the clients of each kind had its last prices; slow ones may not have within
    /// [`PATIENCE`].
    same_s: Vec<Option<f64>>,
    /// How many had them in the end.
    same: usize,
    /// Over the whole run.
    back: u64,
    gone: u64,
}

fn main() -> Result<()> {
    sluicegate::tunnel::sys::raise_descriptor_limit()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, gateway, source, count, compressed] = &*arguments
        && word == crowd::ARGUMENT
    {
        return clients::run(gateway.parse()?, source.parse()?, count.parse()?, compressed.parse()?);
    }
    let most = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(MOST);
    let load_before = report::load_of_machine()?;
    let mut runs = Vec::new();
    let plain = SMALLER.into_iter().filter(|count| *count < most).chain([most]).map(|count| (count, false));
    for (count, compressed) in plain.chain([(COMPRESSED.min(most), true)]) {
        eprintln!("{count} clients{}", if compressed { ", compressed" } else { "" });
        runs.push(run(count, compressed)?);
    }
    report::print(&runs, &load_before)?;
    match runs.iter().all(Run::is_as_promised) {
        true => Ok(()),
        false => Err("a promise was not kept".into()),
    }
}

impl Run {
    fn is_as_promised(&self) -> bool {
        self.same == self.count && self.back == 0 && self.gone == 0
    }
}

fn run(count: usize, compressed: bool) -> Result<Run> {
    let system = System::start()?;
    // One client first, so that what a process allocates once is not counted.
    complete(&mut Crowd::open(system.gateway.address, 1, compressed)?, 1)?;
    rest(QUIET);
    let resident = system.gateway.resident_bytes()?;
    let start = Instant::now();
    let mut crowd = Crowd::open(system.gateway.address, count, compressed)?;
    complete(&mut crowd, count)?;
    let opening_s = start.elapsed().as_secs_f64();
    rest(QUIET);

    crowd.ask("begin")?;
    let (before, start, scrape) = (cpu(&system, &crowd)?, Instant::now(), Scrape::of(system.admin)?);
    rest(WINDOW);
    let report = crowd.report()?;
    let seconds = start.elapsed().as_secs_f64();
    let (after, scrape_after) = (cpu(&system, &crowd)?, Scrape::of(system.admin)?);
    let more = |counter| scrape_after.more(counter, &scrape);
    let resident_bytes = system.gateway.resident_bytes()?.saturating_sub(resident) as f64 / count as f64;

    let System { gateway, feed, last, files: _files, .. } = system;
    // It ends with its last publication stored.
    drop(feed);
    let (end, mut same_s, mut same, mut free) = (Instant::now(), vec![None; clients::KINDS.len()], 0, false);
    let of_kinds = clients::KINDS.map(|kind| (0..count).filter(|index| clients::Kind::of(*index) == kind).count());
    while same < count && end.elapsed() < PATIENCE + SAME_TIMEOUT {
        rest(ASK_EVERY);
        let of_each = crowd.count(&format!("same {}", last.display()))?;
        for ((took, has), all) in same_s.iter_mut().zip(&of_each).zip(of_kinds) {
            *took = took.or((*has == all && !free).then_some(end.elapsed().as_secs_f64()));
        }
        same = of_each.iter().sum();
        if !free && end.elapsed() > PATIENCE {
            crowd.ask("free")?;
            free = true;
        }
    }
    let ended = crowd.report()?;
    // Before the clients, of each of which it would tell the backend.
    drop(gateway);
    Ok(Run {
        count,
        compressed,
        opening_s,
        seconds,
        cpu: [0, 1, 2].map(|at| after[at] - before[at]),
        resident_bytes,
        stored: more("sluicegate_publishes_total"),
        conflated: more("sluicegate_conflated_total"),
        ticks: more("sluicegate_conflation_ticks_total"),
        behind: more("sluicegate_conflation_snapshots_total"),
        last: Reader::default().last(&last)?,
        same_s,
        same,
        back: ended.kinds.iter().map(|kind| kind.back).sum(),
        gone: ended.gone,
        report,
    })
}

fn cpu(system: &System, crowd: &Crowd) -> Result<Cpu> {
    Ok([system.gateway.cpu()?, system.feed.cpu()?, crowd.cpu()?])
}

/// Waits until all have a price of every symbol.
fn complete(crowd: &mut Crowd, count: usize) -> Result<()> {
    let until = Instant::now() + COMPLETE_TIMEOUT;
    loop {
        let complete = crowd.count("complete")?;
        if complete.iter().sum::<usize>() == count {
            break;
        }
        if Instant::now() > until {
            let kinds = clients::KINDS;
            return Err(format!("of {count} clients {complete:?} have a price of every symbol, by {kinds:?}").into());
        }
        rest(ASK_EVERY);
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "no runtime, and nothing to wait for but time")]
fn rest(time: Duration) {
    std::thread::sleep(time);
}
