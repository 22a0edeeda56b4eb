//! The tables of docs/ticker.md.

use super::clients::{KINDS, Kind};
use super::crowd::Counted;
use super::prices::SYMBOLS;
use super::{PATIENCE, Result, Run, WINDOW};

/// How many processes have been waiting for a core, over the last minute. proc_loadavg(5).
pub fn load_of_machine() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Prints everything. The load of the machine before the run goes into the text.
pub fn print(runs: &[Run], load_before: &str) -> Result<()> {
    println!(
        "[examples/ticker](../examples/ticker/README.md) as it is: 1,000 changes a second of the prices of {SYMBOLS} symbols, over \
         HTTP to one gateway\nwith the engine in memory; a client gets an array of what has changed every 100 ms. With \
         `backplane: grip_http` a client takes one descriptor\nof the gateway. Of 100 clients one *stalls* (reads nothing for \
         2 s, then for 2 s all there is) and one *trickles* (reads 2,000 bytes a second); the\nkernel holds little of what \
         these have not read (`SO_RCVBUF`, 8 KiB asked for). In the last column clients offer permessage-deflate as\nbrowsers \
         do, in the others nothing. Feed, gateway and clients are on the same cores; each column is one run of {} s. The \
         load of the\nmachine was {load_before} before and {} at the end: where that is more than the run's own cores, \
         others shared them. Compare the columns:\nabsolute figures of a shared machine mean little.\n",
        WINDOW.as_secs(),
        load_of_machine()?
    );
    header(runs);
    row(runs, "of these: stall, trickle", |run| {
        let of = |kind| (0..run.count).filter(|index| Kind::of(*index) == kind).count();
        format!("{}, {}", of(Kind::Stalls), of(Kind::Trickles))
    });
    row(runs, "published: changes a second", |run| thousands(run.stored / run.seconds));
    row(runs, "replaced within their 100 ms", |run| format!("{:.1} %", 100.0 * run.conflated / run.stored));
    row(runs, "ticks a second", |run| format!("{:.1}", run.ticks / run.seconds));
    row(runs, "frames a second, a fast client", |run| format!("{:.1}", each(run, 0, |of| of.frames)));
    row(runs, "prices a second, a fast client", |run| thousands(each(run, 0, |of| of.updates)));
    row(runs, "bytes a second, a fast client", |run| thousands(each(run, 0, |of| of.bytes)));
    row(runs, "prices a second, one that stalls", |run| thousands(each(run, 1, |of| of.updates)));
    row(runs, "prices a second, one that trickles", |run| thousands(each(run, 2, |of| of.updates)));
    row(runs, "frames a second, all clients", |run| thousands(all(run, |of| of.frames) / run.seconds));
    row(runs, "bytes a second, all clients", |run| thousands(all(run, |of| of.bytes) / run.seconds));
    row(runs, "without conflation: messages a second", |run| thousands(run.stored / run.seconds * run.count as f64));
    for (at, of) in ["gateway", "feed", "clients"].into_iter().enumerate() {
        row(runs, &format!("cores taken: {of}"), |run| format!("{:.2}", run.cpu[at] / run.seconds));
    }
    row(runs, "gateway: CPU ms a second for a client", |run| {
        format!("{:.3}", run.cpu[0] * 1e3 / run.seconds / run.count as f64)
    });
    row(runs, "gateway: CPU µs for a frame", |run| format!("{:.2}", run.cpu[0] * 1e6 / all(run, |of| of.frames)));
    row(runs, "gateway: CPU s for a GB", |run| format!("{:.2}", run.cpu[0] * 1e9 / all(run, |of| of.bytes)));
    row(runs, "gateway: resident bytes for a client", |run| thousands(run.resident_bytes));
    row(runs, "gateway: given to a client from before a tick", |run| {
        format!("{} a second", thousands(run.behind / run.seconds))
    });
    row(runs, "s until all were open and had all prices", |run| format!("{:.1}", run.opening_s));

    println!(
        "\n## How old a price is when it arrives\n\nFrom the moment at which the feed made it to the read of its frame, p50 / p99 \
         in ms, of all prices in all frames; of 1,000 of the fast clients.\nThe 100 ms of the interval are in it.\n"
    );
    header(runs);
    for (at, name) in ["fast", "stall: what they read when they read again", "trickle"].into_iter().enumerate() {
        row(runs, name, |run| {
            let quantile = |part| run.report.kinds.get(at).and_then(|of| of.staleness.quantile(part));
            match (quantile(0.5), quantile(0.99)) {
                (Some(p50), Some(p99)) => format!("{} / {}", thousands(p50 as f64 / 1e3), thousands(p99 as f64 / 1e3)),
                _ => "none".to_owned(),
            }
        });
    }

    println!(
        "\n## What is promised\n\nThe feed ends, and each client's price of each of {SYMBOLS} symbols is compared with the feed's \
         last one. Slow clients stay slow for {} s, and\nthen read as the others do.\n",
        PATIENCE.as_secs()
    );
    header(runs);
    row(runs, "published in all: changes, in requests", |run| {
        let again = if run.last.again > 0 { format!(", {} of them again", run.last.again) } else { String::new() };
        format!("{} in {}{again}", thousands(run.last.published as f64), thousands(run.last.requests as f64))
    });
    row(runs, "clients with the feed's last price of every symbol", |run| {
        format!("{} of {}", thousands(run.same as f64), thousands(run.count as f64))
    });
    for (at, name) in ["fast", "stall", "trickle"].into_iter().enumerate() {
        row(runs, &format!("s until all had them: {name}"), |run| match run.same_s.get(at).copied().flatten() {
            Some(seconds) => format!("{seconds:.1}"),
            None => format!("after {} s, when they read faster", PATIENCE.as_secs()),
        });
    }
    row(runs, "prices that were older than the client's", |run| run.back.to_string());
    row(runs, "connections that ended", |run| run.gone.to_string());
    Ok(())
}

fn header(runs: &[Run]) {
    let name = |run: &Run| {
        let compressed = if run.compressed { ", compressed" } else { "" };
        format!("{} clients{compressed}", thousands(run.count as f64))
    };
    let counts: Vec<String> = runs.iter().map(name).collect();
    println!("| | {} |", counts.join(" | "));
    println!("| --- |{}", " --- |".repeat(runs.len()));
}

fn row(runs: &[Run], name: &str, cell: impl Fn(&Run) -> String) {
    println!("| {name} | {} |", runs.iter().map(cell).collect::<Vec<_>>().join(" | "));
}

/// Of all clients.
fn all(run: &Run, of: fn(&Counted) -> u64) -> f64 {
    run.report.kinds.iter().map(of).sum::<u64>() as f64
}

/// A second, for each client of a kind.
fn each(run: &Run, at: usize, of: fn(&Counted) -> u64) -> f64 {
    let count = (0..run.count).filter(|index| Kind::of(*index) == KINDS[at]).count();
    run.report.kinds.get(at).map_or(0, of) as f64 / run.seconds / count.max(1) as f64
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
