//! The model evaluated: what a service of these inputs needs. The page's formulas are these.

use super::model::{Constants, INPUTS, Inputs, nodes_with_subscriber};

/// Bytes of Ethernet, IP and TCP with timestamps for a segment, and how much such a segment carries.
const SEGMENT_OVERHEAD: f64 = 90.0;
const SEGMENT_BYTES: f64 = 1448.0;

/// Bytes of a record of TLS 1.3 besides its content, and how much one carries.
const RECORD_OVERHEAD: f64 = 22.0;
const RECORD_BYTES: f64 = 16_384.0;

/// Of both sides, after so many seconds of silence.
const PING_SECONDS: f64 = 25.0;

/// How much of one core is planned for what one task or one process of Redis does.
const SERIAL_LOAD: f64 = 0.5;

/// How much of a gateway's cores may be busy while users of a dark region come.
const STORM_LOAD: f64 = 0.9;

/// How much of a machine's memory is planned for.
const MEMORY_LOAD: f64 = 0.75;

/// What windows of channels have at most on a node.
const WINDOWS_BYTES: f64 = 268_435_456.0;

const GIB: f64 = 1_073_741_824.0;

/// How often the numbers of nodes are found anew, since what a publication costs depends on how many nodes there are.
const ROUNDS: usize = 50;

/// A region.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfRegion {
    /// Sessions, and with those of the largest other region.
    pub sessions: f64,
    pub most_sessions: f64,
    /// Machines by each of these, and what is taken.
    pub by_cpu: f64,
    pub by_memory: f64,
    pub by_network: f64,
    pub by_storm: f64,
    pub nodes: f64,
    /// Of one machine of those that are not spare, with the sessions of the other region.
    pub cores: f64,
    pub bytes: f64,
    pub bits: f64,
    /// Cores while the users of a dark region come.
    pub storm_cores: f64,
    /// Of the region's Redis.
    pub redis_cores: f64,
    pub redis_masters: f64,
    pub redis_bytes: f64,
    /// Bits a second to nodes of the other regions.
    pub wan_bits: f64,
}

impl OfRegion {
    /// What needs the most gateways; where several need as many, the first of them.
    fn limit(&self) -> &'static str {
        let all =
            [("CPU", self.by_cpu), ("memory", self.by_memory), ("network", self.by_network), ("coming", self.by_storm)];
        all.into_iter().rev().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or("nothing", |(name, _)| name)
    }
}

/// What comes out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub sessions: f64,
    pub publications: f64,
    /// Messages to clients a second, and writes that they are in.
    pub deliveries: f64,
    pub writes: f64,
    /// Newest values in one interval.
    pub values: f64,
    pub nodes: f64,
    /// Nodes that a publication is pushed to.
    pub pushed_nodes: f64,
    /// CPU µs and bytes on the wire a second, and bytes of memory, of one session.
    pub session_us: f64,
    pub session_wire_bytes: f64,
    pub session_bytes: f64,
    pub open_us: f64,
    /// Of one core, the task that takes a region's publications on a node.
    pub taker: f64,
    pub regions: Vec<OfRegion>,
    /// What a publication's time is spent with, in ms: within its region, and between those farthest apart.
    pub latency: Vec<(&'static str, f64, f64)>,
}

/// How many keys have a new value in one interval, where publications come by chance.
fn values_of_interval(inputs: &Inputs, publications: f64) -> f64 {
    let weight = |rank: u64| (rank as f64).powf(-inputs.skew);
    let ranks = 1..=inputs.keys as u64;
    let sum: f64 = ranks.clone().map(weight).sum();
    let came = publications * inputs.interval / 1000.0;
    ranks.map(|rank| 1.0 - (-came * weight(rank) / sum).exp()).sum()
}

/// Evaluates the model.
pub fn plan(inputs: &Inputs, constants: &Constants) -> Plan {
    let sessions = inputs.users * inputs.connections;
    let publications = inputs.users * inputs.user_rate + inputs.rate;
    let fan_out = if inputs.fan_out == 0.0 { sessions } else { inputs.fan_out.min(sessions) };
    let message_bytes = inputs.content + inputs.line;
    let frame_bytes = message_bytes + if message_bytes < 126.0 { 2.0 } else { 4.0 };
    let (is_conflated, tls) = (inputs.interval > 0.0, if inputs.tls > 0.0 { 1.0 } else { 0.0 });
    let values = if is_conflated { values_of_interval(inputs, publications) } else { 0.0 };
    // Of one session, a second.
    let (writes, messages) = match is_conflated {
        true => (1000.0 / inputs.interval, values * 1000.0 / inputs.interval),
        false => (publications * fan_out / sessions, publications * fan_out / sessions),
    };
    let bytes = messages * frame_bytes;
    let write_bytes = if writes > 0.0 { bytes / writes } else { 0.0 };
    let pings = 1.0 / PING_SECONDS;
    // What `alone_us` was measured with is in it.
    let beyond = (bytes - writes * 127.0).max(0.0);
    let session_us = (writes + pings) * constants.alone_us
        + beyond * constants.byte_us
        + tls * (writes * constants.tls_write_us + bytes * constants.tls_byte_us);
    let session_wire_bytes = bytes
        + writes * (write_bytes / SEGMENT_BYTES).ceil() * SEGMENT_OVERHEAD
        + tls * writes * (write_bytes / RECORD_BYTES).ceil() * RECORD_OVERHEAD;
    let regions = inputs.shares.len() as f64;
    let session_bytes = constants.gateway_bytes
        + (inputs.subscriptions - 1.0).max(0.0) * constants.subscription_bytes
        + inputs.subscriptions * (regions - 1.0) * constants.subscription_region_bytes
        + inputs.sockets * constants.connection_kernel_bytes
        + tls * constants.tls_bytes
        + inputs.slow * inputs.slow_bytes;
    let mut plan = Plan {
        sessions,
        publications,
        deliveries: sessions * messages,
        writes: sessions * writes,
        values,
        session_us,
        session_wire_bytes,
        session_bytes,
        regions: vec![OfRegion { nodes: 1.0, ..OfRegion::default() }; inputs.shares.len()],
        ..Plan::default()
    };
    for _ in 0..ROUNDS {
        round(&mut plan, inputs, constants, fan_out);
    }
    plan.latency = latency(&plan, inputs, constants, fan_out, is_conflated);
    plan
}

/// The largest share of the other regions, which may be dark.
fn darkest(inputs: &Inputs, at: usize) -> f64 {
    inputs.shares.iter().enumerate().filter(|(nth, _)| *nth != at).fold(0.0, |most, (_, share)| share.max(most))
}

/// Finds the numbers of nodes from those that were found before.
fn round(plan: &mut Plan, inputs: &Inputs, constants: &Constants, fan_out: f64) {
    let nodes: f64 = plan.regions.iter().map(|region| region.nodes).sum();
    let pushed = nodes_with_subscriber(nodes, fan_out);
    let tls = if inputs.tls > 0.0 { constants.tls_handshake_us } else { 0.0 };
    let regions = inputs.shares.len() as f64;
    let others = fan_out / nodes;
    let of_channel = constants.channel_bytes
        + (regions - 1.0) * constants.channel_region_bytes
        + regions * constants.redis_node_bytes;
    plan.open_us = constants.open_us
        + tls
        + (inputs.subscriptions * regions - 1.0).max(0.0) * constants.join_us
        + inputs.subscriptions * regions * others * constants.join_member_us;
    let stored = inputs.content;
    let largest = inputs.shares.iter().copied().fold(0.0, f64::max);
    let (mut all, before) = (Vec::new(), plan.regions.clone());
    for (at, share) in inputs.shares.iter().enumerate() {
        let dark = darkest(inputs, at);
        let with_dark = share / (1.0 - dark);
        let most_sessions = plan.sessions * with_dark;
        // A node with a subscriber takes a publication; how likely one is to be such a node is the same for all.
        // And each looks after its channels: those of its sessions, at most all.
        let channels = inputs.channels.min(plan.sessions / nodes * inputs.subscriptions);
        let taking =
            (plan.publications * pushed / nodes * constants.publication_us + channels * constants.sweep_us) / 1e6;
        let of_sessions = most_sessions * plan.session_us / 1e6;
        let coming = (most_sessions - plan.sessions * share) / inputs.back * plan.open_us / 1e6;
        let (cores, memory) = (inputs.cores * inputs.load - taking, inputs.memory * GIB * MEMORY_LOAD);
        let by_cpu = (of_sessions / cores.max(0.01)).ceil();
        let by_memory =
            (most_sessions * plan.session_bytes / (memory - WINDOWS_BYTES - channels * of_channel).max(1.0)).ceil();
        let bits = most_sessions * plan.session_wire_bytes * 8.0;
        let by_network = (bits / (inputs.network * 1e9 * inputs.load)).ceil();
        let by_storm = ((of_sessions + coming) / (inputs.cores * STORM_LOAD - taking).max(0.01)).ceil();
        let working = by_cpu.max(by_memory).max(by_network).max(by_storm).max(1.0);
        let made = plan.publications * with_dark;
        let of_redis = constants.redis_publication_us
            + stored * constants.redis_byte_us
            + pushed * (constants.redis_push_us + stored * constants.redis_push_byte_us);
        let redis_cores = made * of_redis / 1e6;
        let kept = (made * inputs.history).min(inputs.channels * inputs.messages);
        let mine = before.get(at).map_or(1.0, |region| region.nodes);
        let far = plan.publications * share * pushed * (nodes - mine) / nodes;
        all.push(OfRegion {
            sessions: plan.sessions * share,
            most_sessions,
            by_cpu,
            by_memory,
            by_network,
            by_storm,
            nodes: working + inputs.spare,
            cores: of_sessions / working + taking,
            bytes: most_sessions * plan.session_bytes / working + WINDOWS_BYTES + channels * of_channel,
            bits: bits / working,
            storm_cores: (of_sessions + coming) / working + taking,
            redis_cores,
            redis_masters: (redis_cores / SERIAL_LOAD).ceil().max(1.0),
            redis_bytes: kept * (constants.redis_kept_bytes + stored * constants.redis_kept_part)
                + inputs.channels * constants.redis_channel_bytes
                + nodes * channels * constants.redis_subscription_bytes,
            wan_bits: far * (inputs.content + constants.redis_wire_bytes) * 8.0,
        });
    }
    let per_node = plan.publications * largest * pushed / nodes;
    let pushes = if inputs.interval > 0.0 { 0.0 } else { plan.publications * largest * fan_out / nodes };
    (plan.nodes, plan.pushed_nodes) = (all.iter().map(|region| region.nodes).sum(), pushed);
    plan.taker = (per_node * constants.publication_us + pushes * constants.push_us) / 1e6;
    plan.regions = all;
}

/// The budget of a publication: each line at its worst, so that the sum is above any percentile.
fn latency(
    plan: &Plan,
    inputs: &Inputs,
    constants: &Constants,
    fan_out: f64,
    is_conflated: bool,
) -> Vec<(&'static str, f64, f64)> {
    let of_node = fan_out / plan.nodes;
    let write_us = if is_conflated { plan.session_us * inputs.interval / 1000.0 } else { constants.alone_us };
    let last = of_node * write_us / inputs.cores / 1000.0;
    let both = |what, ms| (what, ms, ms);
    vec![
        both(
            "a publisher that is a client: to its gateway, `client`",
            if inputs.user_rate > 0.0 { inputs.client } else { 0.0 },
        ),
        both("publishing, Redis, and the push to a node of the region: `publish_ms`", constants.publish_ms),
        ("between the regions that are farthest apart: `distance`", 0.0, inputs.distance),
        both("until the next tick: `interval`", inputs.interval),
        both("the last subscriber of a node waits for the others: fan-out ÷ nodes × CPU of a write ÷ cores", last),
        both("from the gateway to the client: `client`", inputs.client),
    ]
}

/// The tables of the page.
pub fn render(inputs: &Inputs, plan: &Plan) -> String {
    let mut text = format!("Inputs: `{}`\n\n", words(inputs));
    let mut row = |cells: &[String]| text += &format!("| {} |\n", cells.join(" | "));
    let cells = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    row(&cells(&["altogether", ""]));
    row(&cells(&["---", "---"]));
    let mut line = |what: &str, value: String| row(&[what.to_owned(), value]);
    line("sessions", number(plan.sessions));
    line("publications a second", number(plan.publications));
    if plan.values > 0.0 {
        line("keys with a new value in one interval", number(plan.values));
    }
    line("messages to clients a second", number(plan.deliveries));
    line("writes to clients a second", number(plan.writes));
    line("gateways", number(plan.nodes));
    line("gateways that a publication is pushed to", number(plan.pushed_nodes));
    line("a session: bytes of memory", number(plan.session_bytes));
    line("a session: CPU µs a second", number(plan.session_us));
    line("a session: kbit/s on the wire", number(plan.session_wire_bytes * 8.0 / 1e3));
    line("CPU µs to open a session and subscribe it", number(plan.open_us));
    line("of one core, the task that takes the largest region's publications", percent(plan.taker));
    text += "\n";
    let mut row = |what: &str, of: &dyn Fn(&OfRegion) -> String| {
        let values: Vec<String> = plan.regions.iter().map(of).collect();
        text += &format!("| {what} | {} |\n", values.join(" | "));
    };
    let share = |region: &OfRegion| format!("region with {} of the users", percent(region.sessions / plan.sessions));
    row("", &share);
    row("---", &|_| "---".to_owned());
    row("sessions", &|of| number(of.sessions));
    row("sessions when the largest other region is dark", &|of| number(of.most_sessions));
    row("gateways needed then by CPU", &|of| number(of.by_cpu));
    row("by memory", &|of| number(of.by_memory));
    row("by network", &|of| number(of.by_network));
    row("by the coming of those users", &|of| number(of.by_storm));
    row("what limits first", &|of| of.limit().to_owned());
    row("**gateways**, spare ones included", &|of| format!("**{}**", number(of.nodes)));
    row("one of them then: cores busy, spare ones gone", &|of| number(of.cores));
    row("while those users come", &|of| number(of.storm_cores));
    row("its memory in GiB", &|of| number(of.bytes / GIB));
    row("its network in Gbit/s", &|of| number(of.bits / 1e9));
    row("Redis then: cores busy", &|of| number(of.redis_cores));
    row("masters, each half busy at most", &|of| number(of.redis_masters));
    row("memory of all in GiB", &|of| number(of.redis_bytes / GIB));
    row("Mbit/s to the other regions", &|of| number(of.wan_bits / 1e6));
    text += "\n| latency in ms, each line at its worst | within a region | between regions |\n| --- | --- | --- |\n";
    for (what, within, between) in plan.latency.iter().filter(|(_, _, between)| *between > 0.0) {
        text += &format!("| {what} | {} | {} |\n", number(*within), number(*between));
    }
    let sum = |of: fn(&(&'static str, f64, f64)) -> f64| number(plan.latency.iter().map(of).sum());
    text += &format!("| **together** | **{}** | **{}** |\n", sum(|line| line.1), sum(|line| line.2));
    text
}

/// Those inputs that are not as they are by default, as words.
pub fn words(inputs: &Inputs) -> String {
    let (mut mine, mut default) = (inputs.clone(), Inputs::default());
    let shares: Vec<String> = inputs.shares.iter().map(f64::to_string).collect();
    let changed = INPUTS.iter().filter_map(|input| {
        let (value, usual) = (*(input.of)(&mut mine), *(input.of)(&mut default));
        (value != usual).then(|| format!("{}={value}", input.name))
    });
    let shares = (shares.len() > 1).then(|| format!("shares={}", shares.join(",")));
    changed.chain(shares).collect::<Vec<_>>().join(" ")
}

fn percent(part: f64) -> String {
    format!("{} %", number(part * 100.0))
}

/// With three digits that say something, and thousands apart.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        ..0.001 => 0,
        ..0.1 => 3,
        ..10.0 if value.fract() != 0.0 => 2,
        ..100.0 if value.fract() != 0.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((&*text, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut grouped = String::new();
    for (nth, digit) in whole.chars().enumerate() {
        if nth > 0 && (whole.len() - nth).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}
