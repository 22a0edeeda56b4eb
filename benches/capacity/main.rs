//! The constants of docs/capacity.md, two simulations of them, and the calculator.
//!
//! `make capacity` has it measure and write the page, `make plan` has it evaluate the model for inputs that are given. What
//! needs memory of its own is measured in a process of its own: this program with a word in front.

#[path = "../fanout/backend.rs"]
mod backend;
mod broker;
#[allow(dead_code, reason = "the benchmark of fan-out uses the rest")]
#[path = "../fanout/crowd.rs"]
mod crowd;
#[allow(dead_code, reason = "the benchmark of fan-out uses the rest")]
#[path = "../fanout/histogram.rs"]
mod histogram;
mod hub;
mod machine;
mod model;
mod node;
mod opening;
mod page;
mod plan;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../load/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "the benchmark of fan-out uses the rest")]
#[path = "../fanout/publisher.rs"]
mod publisher;
mod region;
mod report;
mod simulation;
#[path = "../fanout/sockets.rs"]
mod sockets;
#[path = "../fanout/subscribers.rs"]
mod subscribers;
#[allow(dead_code, reason = "the benchmark of fan-out uses the rest")]
#[path = "../fanout/system.rs"]
mod system;
mod tls;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
#[path = "../load/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::de::DeserializeOwned;

use hub::{Cost, Crowd, Taken};
use model::Constants;
use simulation::{Counted, Shape};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// Fan-outs of which a publication is measured, and of how many channels each, so that a round is long enough.
const FAN_OUTS: [(usize, usize); 4] = [(1, 4000), (20, 1000), (1000, 20), (100_000, 1)];
const CONTENT_BYTES: [usize; 2] = [125, 2048];
const NODES: [usize; 4] = [0, 1, 3, 10];
const AT_ONCE: [u64; 2] = [1, 16];

/// Sessions of the simulations.
const CHAT_SESSIONS: usize = 1_000_000;
const TICKER_SESSIONS: usize = 50_000;

/// What was measured besides the constants.
struct Measured {
    costs: Vec<Cost>,
    redis: Vec<broker::Run>,
    redis_memory: Vec<broker::Memory>,
    simulations: Vec<(Shape, Counted)>,
}

fn main() -> Result<()> {
    sluicegate::tunnel::sys::raise_descriptor_limit()?;
    // `cargo bench` puts an option of its own among them.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match &*words {
        ["plan", words @ ..] => calculate(words),
        ["write", by] => write(by),
        ["memory", sessions, regions, channels, subscriptions] => {
            let [sessions, regions] = [sessions.parse()?, regions.parse()?];
            let [channels, subscriptions] = [channels.parse()?, subscriptions.parse()?];
            say(&hub::memory(Crowd { sessions, regions, channels, subscriptions })?)
        }
        ["simulate", "chat", sessions] => say(&simulation::play(&Shape::chat(sessions.parse()?))?),
        ["simulate", "ticker", sessions] => say(&simulation::play(&Shape::ticker(sessions.parse()?))?),
        [crowd::ARGUMENT, gateway, source, count] => {
            subscribers::run(gateway.parse()?, source.parse()?, count.parse()?)
        }
        _ => Err("capacity write BY | capacity plan NAME=VALUE ...".into()),
    }
}

/// What a process of this program says at its end.
fn say(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Runs this program with these words, and reads what it says.
fn child<T: DeserializeOwned>(words: &[&str]) -> Result<T> {
    eprintln!("{}", words.join(" "));
    let output = Command::new(std::env::current_exe()?).args(words).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{} has ended with {}", words.join(" "), output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Prints what the model says of inputs, with the constants of the page.
fn calculate(words: &[&str]) -> Result<()> {
    let constants = page::constants(&std::fs::read_to_string(root().join("docs/capacity.md"))?)?;
    let inputs = page::inputs_of(words.iter().copied())?;
    print!("{}", plan::render(&inputs, &plan::plan(&inputs, &constants)));
    Ok(())
}

/// Measures, and writes the page.
fn write(by: &str) -> Result<()> {
    let load_before = machine::load()?;
    let (constants, measured) = measure()?;
    let file = root().join("docs/capacity.md");
    let text = report::measured(by, &load_before, &constants, &measured)?;
    let page = page::with_block(&std::fs::read_to_string(&file)?, "measured", &text)?;
    std::fs::write(&file, page::computed(&page)?)?;
    Ok(())
}

fn measure() -> Result<(Constants, Measured)> {
    let mut constants = Constants::default();
    let other = |name: &str| std::fs::read_to_string(root().join("docs").join(name));
    page::from_other_pages(&mut constants, &other("fanout.md")?, &other("bench.md")?)?;
    of_hub(&mut constants)?;
    let mut costs = Vec::new();
    for content_bytes in CONTENT_BYTES {
        for (fan_out, channels) in FAN_OUTS {
            eprintln!("a publication of {content_bytes} B to {fan_out}");
            costs.push(hub::cost(fan_out, channels, content_bytes, 1)?);
        }
    }
    // Two points of a line: what lies at no subscriber is the publication's own.
    let [one, twenty] = [costs[0].taking, costs[1].taking];
    constants.publication_us = (one - (twenty - one) / 19.0).max(0.0);
    let (fan_out, channels) = FAN_OUTS[2];
    let sixteen = hub::cost(fan_out, channels, CONTENT_BYTES[0], 16)?.polling * 16.0;
    constants.frame_us = (sixteen - costs[2].polling).max(0.0) / 15.0 / fan_out as f64;
    eprintln!("sessions that join");
    constants.join_us = hub::join(1, 5000)?;
    constants.join_member_us = (hub::join(100_000, 50)? - constants.join_us).max(0.0) / 100_000.0;
    eprintln!("TLS");
    (constants.tls_handshake_us, constants.tls_byte_us) = (tls::handshake()?, tls::byte()?);
    eprintln!("sessions that are opened");
    constants.open_us = opening::open()?;
    let (mut runs, mut memories) = (Vec::new(), Vec::new());
    for content_bytes in CONTENT_BYTES {
        for (nodes, at_once) in NODES.iter().flat_map(|nodes| AT_ONCE.map(|at_once| (*nodes, at_once))) {
            eprintln!("Redis: {at_once} publications of {content_bytes} B at once to {nodes} nodes");
            runs.push(broker::run(nodes, content_bytes, at_once)?);
        }
        memories.push(broker::memory(content_bytes)?);
    }
    of_redis(&mut constants, &runs, &memories)?;
    let mut simulations = Vec::new();
    for shape in [Shape::chat(CHAT_SESSIONS), Shape::ticker(TICKER_SESSIONS)] {
        let counted = child(&["simulate", shape.name, &shape.sessions.to_string()])?;
        simulations.push((shape, counted));
    }
    Ok((constants, Measured { costs, redis: runs, redis_memory: memories, simulations }))
}

fn of_hub(constants: &mut Constants) -> Result<()> {
    let taken = |sessions: usize, regions: usize, channels: usize, subscriptions: usize| -> Result<Taken> {
        let [sessions, regions] = [sessions, regions].map(|number| number.to_string());
        let [channels, subscriptions] = [channels, subscriptions].map(|number| number.to_string());
        child(&["memory", &sessions, &regions, &channels, &subscriptions])
    };
    let crowd = taken(1_000_000, 1, 1000, 5)?;
    (constants.session_bytes, constants.subscription_bytes) = (crowd.session, crowd.further);
    constants.first_subscription_bytes = crowd.first;
    (constants.push_us, constants.poll_us) = (crowd.push_us, crowd.poll_us);
    let all = |taken: &Taken| taken.first + 4.0 * taken.further;
    let (one, three) = (taken(300_000, 1, 300, 5)?, taken(300_000, 3, 300, 5)?);
    constants.subscription_region_bytes = (all(&three) - all(&one)) / 5.0 / 2.0;
    let (one, three) = (taken(300_000, 1, 0, 1)?, taken(300_000, 3, 0, 1)?);
    constants.sweep_us = one.sweep_us;
    constants.channel_bytes = one.first - crowd.first;
    constants.channel_region_bytes = (three.first - one.first) / 2.0 - constants.subscription_region_bytes;
    Ok(())
}

fn of_redis(constants: &mut Constants, runs: &[broker::Run], memories: &[broker::Memory]) -> Result<()> {
    let [small, large] = CONTENT_BYTES;
    let further = (large - small) as f64;
    let run = |nodes: usize, content_bytes: usize| {
        let is = |run: &&broker::Run| (run.nodes, run.content_bytes, run.at_once) == (nodes, content_bytes, AT_ONCE[0]);
        runs.iter().find(is).ok_or("each number of nodes was measured")
    };
    let push_us = |content: usize| Ok::<_, Error>((run(10, content)?.cpu_us - run(1, content)?.cpu_us) / 9.0);
    constants.redis_byte_us = ((run(0, large)?.cpu_us - run(0, small)?.cpu_us) / further).max(0.0);
    constants.redis_publication_us = run(0, small)?.cpu_us - small as f64 * constants.redis_byte_us;
    constants.redis_push_byte_us = ((push_us(large)? - push_us(small)?) / further).max(0.0);
    constants.redis_push_us = push_us(small)? - small as f64 * constants.redis_push_byte_us;
    constants.redis_wire_bytes = (run(10, small)?.output_bytes - run(1, small)?.output_bytes) / 9.0 - small as f64;
    let [first, second] = memories else { return Err("memory was measured for both sizes".into()) };
    constants.redis_channel_bytes = first.channel;
    constants.redis_subscription_bytes = first.subscription;
    constants.redis_node_bytes = first.of_node;
    constants.redis_kept_part = (second.kept - first.kept) / further;
    constants.redis_kept_bytes = first.kept - small as f64 * constants.redis_kept_part;
    Ok(())
}
