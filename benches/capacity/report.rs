//! The measured part of docs/capacity.md.

use std::fmt::Write as _;

use super::model::{Constants, hub_bytes, polling_us, taking_us};
use super::plan::number;
use super::simulation::{Counted, Shape};
use super::{Measured, Result, machine, page};

/// All of it.
pub fn measured(by: &str, load_before: &str, constants: &Constants, measured: &Measured) -> Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "By `make capacity` {by}. The machine is shared; its load was {load_before} before and {} at the end.\n",
        machine::load()?
    )?;
    text += &page::table(constants);
    text += "\n### A publication on a node\n\n\
        CPU µs of a publication that a node takes from an engine: of the hub that decides, puts it into the channel's window and \
        into each inbox; and of the sessions, each of which is woken and has its frame copied to its output buffer. One publication \
        on each channel at a time, so that each session is woken for each. One thread; few of these sessions leave the caches.\n\n\
        | subscribers | bytes | hub | sessions | together, for each subscriber |\n| --- | --- | --- | --- | --- |\n";
    for cost in &measured.costs {
        let (fan_out, each) = (cost.fan_out as f64, (cost.taking + cost.polling) / cost.fan_out as f64);
        let cells = [fan_out, cost.content_bytes as f64, cost.taking, cost.polling, each].map(number);
        writeln!(text, "| {} |", cells.join(" | "))?;
    }
    text += "\n### Redis\n\nA `redis-server` of its own, 10,000 publications on 100 channels by one publisher; \
        each node is an engine that is subscribed to all channels.\n\n\
        | nodes | bytes | under way at once | CPU µs for a publication | bytes sent for a publication | answered a second |\n\
        | --- | --- | --- | --- | --- | --- |\n";
    for run in &measured.redis {
        let cells = [
            run.nodes as f64,
            run.content_bytes as f64,
            run.at_once as f64,
            run.cpu_us,
            run.output_bytes,
            run.per_second.round(),
        ];
        writeln!(text, "| {} |", cells.map(number).join(" | "))?;
    }
    text += "\n| bytes | memory of a channel with its first publication | of each further one | of a node's subscription | of the node's engine for it |\n| --- | --- | --- | --- | --- |\n";
    for memory in &measured.redis_memory {
        let cells = [
            memory.content_bytes as f64,
            memory.channel.round(),
            memory.kept.round(),
            memory.subscription.round(),
            memory.of_node.round(),
        ];
        writeln!(text, "| {} |", cells.map(number).join(" | "))?;
    }
    text += "\n### The simulations\n\n| | counted | the model | error |\n| --- | --- | --- | --- |\n";
    for (shape, counted) in &measured.simulations {
        text += &simulation(shape, counted, constants)?;
    }
    Ok(text)
}

/// What was counted beside what the model says.
fn simulation(shape: &Shape, counted: &Counted, constants: &Constants) -> Result<String> {
    let mut text = String::new();
    let sizes = [shape.sessions, shape.channels, shape.regions, shape.regions * shape.nodes_per_region];
    let [sessions, channels, regions, nodes] = sizes.map(|size| number(size as f64));
    writeln!(
        text,
        "| **{}**: sessions, channels, regions, nodes | {sessions}, {channels}, {regions}, {nodes} | | |",
        shape.name
    )?;
    let [publications, fan_out, largest, seconds] =
        [counted.publications as f64, counted.fan_out, counted.largest as f64, counted.seconds].map(number);
    writeln!(text, "| publications, in how many seconds | {publications}, {seconds} | | |")?;
    writeln!(text, "| subscribers of a publication in the mean, of the largest channel | {fan_out}, {largest} | | |")?;
    writeln!(text, "| sessions that were not sent just what they should have been | {} | 0 | |", counted.wrong)?;
    let mut line = |what: &str, counted: f64, model: f64| {
        let error = (model / counted - 1.0) * 100.0;
        writeln!(text, "| {what} | {} | {} | {error:+.1} % |", number(counted), number(model))
    };
    line("deliveries", counted.deliveries as f64, counted.expected as f64)?;
    line("publications that nodes were pushed", counted.pushed as f64, counted.promised_pushes)?;
    let deliveries = counted.deliveries as f64;
    let channels = counted.node_channels as f64;
    let taking = taking_us(constants, counted.pushed as f64, deliveries, channels, counted.seconds);
    let polling = polling_us(constants, counted.polls as f64, deliveries);
    line("CPU s of hubs", counted.taking / 1e6, taking / 1e6)?;
    line("CPU s of sessions", counted.polling / 1e6, polling / 1e6)?;
    let both = counted.taking + counted.polling;
    line("CPU µs for a delivery, of both", both / deliveries, (taking + polling) / deliveries)?;
    let [sessions, subscriptions] = [shape.sessions as f64, counted.subscriptions as f64];
    let model = hub_bytes(constants, sessions, subscriptions, channels, shape.regions as f64) / sessions;
    line("bytes of memory of a session, its subscriptions and channels", counted.bytes as f64 / sessions, model)?;
    Ok(text)
}
