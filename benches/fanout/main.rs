//! What fan-out costs, beside Debian's Pushpin, in one run on one machine.
//!
//! `make fanout` leaves its tables in docs/fanout.md. The subscribers are processes of their own, so is each gateway, and
//! Redis where there is one; backend and publisher are in this process, and have nothing to do while publications go out.
//! Each row is the median of rounds in which the systems take turns; Pushpin's larger audiences are in the first alone. Behind `--` a number is
//! how many rounds there are, and a word measures those whose system and audience have it, such as `memory, 1000.`.

mod backend;
mod crowd;
mod histogram;
mod load;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../load/proxy.rs"]
mod proxy;
mod publisher;
mod report;
mod sockets;
mod subscribers;
mod system;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../load/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use crowd::Crowd;
use load::{Load, Outcome, play, settle};
use publisher::Publisher;
use system::{KINDS, Kind, Mode, System};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 3;

/// Who is subscribed.
const AUDIENCES: [(Mode, usize); 3] = [(Mode::WebSocket, 1000), (Mode::WebSocket, 5000), (Mode::OverHttp, 15_000)];

/// The rate that every system carries, in deliveries a second, and for how many.
const PACED_PER_SECOND: u64 = 5000;
const PACED: u64 = 30_000;

/// How long it goes as fast as it goes.
const FAST: Duration = Duration::from_secs(3);

/// How often one subscriber is published to, alone.
const ALONE: u64 = 1000;

/// After so long memory that was only needed while connections opened is given back.
const QUIET: Duration = Duration::from_millis(1500);

/// What one system did for one audience.
struct Run {
    /// Of the gateway, for each subscriber that does nothing.
    resident_bytes: f64,
    /// Of the kernel, all ends of its connections together.
    slab_bytes: f64,
    paced: Outcome,
    one: Outcome,
    sixteen: Outcome,
}

/// What was measured, by audience and system.
#[derive(Default)]
struct Measured {
    runs: BTreeMap<(usize, usize), Vec<Run>>,
    alone: BTreeMap<usize, Vec<Outcome>>,
    failed: Vec<String>,
}

fn main() -> Result<()> {
    sluicegate::tunnel::sys::raise_descriptor_limit()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, gateway, source, count] = &*arguments
        && word == crowd::ARGUMENT
    {
        return subscribers::run(gateway.parse()?, source.parse()?, count.parse()?);
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let word = arguments.iter().find(|word| !word.starts_with('-') && word.parse::<usize>().is_err());
    let wanted = |kind: Kind, count: usize| word.is_none_or(|word| format!("{}, {count}.", kind.name()).contains(word));
    let backend = backend::start()?;
    let mut measured = Measured::default();
    let load_before = report::load_of_machine()?;
    for round in 0..rounds {
        for (kind, at) in KINDS.into_iter().zip(0..) {
            if kind == Kind::Packaged || !wanted(kind, 1) {
                continue;
            }
            eprintln!("round {round}: {}, 1 subscriber", kind.name());
            match alone(kind, backend) {
                Ok(outcome) => measured.alone.entry(at).or_default().push(outcome),
                Err(error) => measured.failed.push(format!("{}, 1 subscriber: {error}", kind.name())),
            }
        }
        for ((mode, count), audience) in AUDIENCES.into_iter().zip(0..) {
            for (kind, at) in KINDS.into_iter().zip(0..) {
                // At 2,500 deliveries a second a larger audience shows the limit again.
                let shown = kind != Kind::Packaged || audience == 0;
                if !shown || (round > 0 && is_slow(kind, audience)) || !wanted(kind, count) {
                    continue;
                }
                eprintln!("round {round}: {}, {count} subscribers", kind.name());
                match run(kind, mode, count, backend) {
                    Ok(run) => measured.runs.entry((audience, at)).or_default().push(run),
                    Err(error) => measured.failed.push(format!("{}, {count} subscribers: {error}", kind.name())),
                }
            }
        }
    }
    report::print(&measured, rounds, load_before)
}

/// What is measured in the first round alone: Pushpin takes a minute to open its larger audiences.
fn is_slow(kind: Kind, audience: usize) -> bool {
    kind == Kind::Packaged || (kind == Kind::Pushpin && audience > 0)
}

/// Publications to one subscriber, each behind the other.
fn alone(kind: Kind, backend: std::net::SocketAddr) -> Result<Outcome> {
    let system = System::start(kind, Mode::WebSocket, backend)?;
    let mut publisher = Publisher::new(system.publish);
    let mut crowd = Crowd::open(system.proxy.address, 1)?;
    settle(&mut publisher, &mut crowd)?;
    play(Load::Counted { times: ALONE }, &system, &mut publisher, &mut crowd)
}

fn run(kind: Kind, mode: Mode, count: usize, backend: std::net::SocketAddr) -> Result<Run> {
    // Ends behind the gateway, which would tell the backend of each subscriber that goes.
    let mut crowd;
    let system = System::start(kind, mode, backend)?;
    let mut publisher = Publisher::new(system.publish);
    // One subscriber first, so that what a process allocates once is not counted.
    settle(&mut publisher, &mut Crowd::open(system.proxy.address, 1)?)?;
    rest();
    let (resident, slab) = (system.proxy.resident_bytes()?, slab_bytes()?);
    crowd = Crowd::open(system.proxy.address, count)?;
    settle(&mut publisher, &mut crowd)?;
    rest();
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / count as f64;
    let resident_bytes = each(system.proxy.resident_bytes()?, resident);
    let slab_bytes = each(slab_bytes()?, slab);
    let every = Duration::from_nanos(count as u64 * 1_000_000_000 / PACED_PER_SECOND);
    // Two at least: the first is at the start.
    let times = (PACED / count as u64).max(2);
    let paced = play(Load::Paced { times, every }, &system, &mut publisher, &mut crowd)?;
    let closed = |window| Load::Closed { window, during: FAST };
    let one = play(closed(1), &system, &mut publisher, &mut crowd)?;
    let sixteen = play(closed(16), &system, &mut publisher, &mut crowd)?;
    Ok(Run { resident_bytes, slab_bytes, paced, one, sixteen })
}

/// Lets [`QUIET`] pass.
#[allow(clippy::disallowed_methods, reason = "no runtime, and nothing to wait for but time")]
fn rest() {
    std::thread::sleep(QUIET);
}

/// What the kernel cannot take back of its own objects, of all processes. proc_meminfo(5).
fn slab_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:")).ok_or("a kernel has slabs")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
