//! The tables of docs/fanout.md.

use super::load::Outcome;
use super::publisher::PAYLOAD_BYTES;
use super::system::{KINDS, Kind, Mode};
use super::{AUDIENCES, Measured, PACED_PER_SECOND, Result, Run};

/// How many processes have been waiting for a core, over the last minute. proc_loadavg(5).
pub fn load_of_machine() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Prints everything. The load of the machine before the run goes into the text.
pub fn print(measured: &Measured, rounds: usize, load_before: String) -> Result<()> {
    println!(
        "Medians of {rounds} rounds in which the systems take turns; of Pushpin the larger audiences and the packaged limit are \
         of one round.\nEach publication is a text of {PAYLOAD_BYTES} B to all subscribers. CPU s are those of the gateway's own \
         processes, and of Redis behind a\nplus sign. Pushpin is Debian's, as packaged, with a limit of 2,500 deliveries a \
         second; *unlimited* is the same without it. The machine's\nload was {load_before} before and {} at the end. \
         Compare the rows: absolute figures of a shared machine mean little.",
        load_of_machine()?
    );
    println!("\n## As fast as it goes\n");
    println!("The next publication goes out when fewer than so many have yet to come to everyone.\n");
    println!(
        "| subscribers | | 1 in flight: deliveries a second | p50 / p99 ms | CPU s per 1 M deliveries | 16 in flight: deliveries a second | p50 / p99 ms | CPU s per 1 M deliveries | lost |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    rows(measured, |runs| {
        let fast = |of: fn(&Run) -> &Outcome| {
            let rate = thousands(median(runs, |run| of(run).deliveries_per_second()));
            format!("{rate} | {} | {}", latency(runs, of), cpu(runs, of))
        };
        let (one, sixteen) = (fast(|run| &run.one), fast(|run| &run.sixteen));
        format!("{one} | {sixteen} | {}", lost(runs.iter().flat_map(|run| [&run.one, &run.sixteen])))
    });
    println!("\n## At a rate that all carry\n");
    println!(
        "{} deliveries a second; *lost* is what had not come 5 s behind the last publication.\n",
        thousands(PACED_PER_SECOND as f64)
    );
    println!("| subscribers | | p50 / p99 ms | CPU s per 1 M deliveries | lost |");
    println!("| --- | --- | --- | --- | --- |");
    rows(measured, |runs| {
        let paced: fn(&Run) -> &Outcome = |run| &run.paced;
        format!("{} | {} | {}", latency(runs, paced), cpu(runs, paced), lost(runs.iter().map(paced)))
    });
    println!("\n## One subscriber\n");
    println!("From publishing to delivery, one publication behind the other.\n");
    println!("| | p50 / p99 ms | CPU ms per publication |");
    println!("| --- | --- | --- |");
    for (at, outcomes) in &measured.alone {
        let [cpu, redis] = [0, 1].map(|nth| median(outcomes, |outcome| outcome.cpu_per_million()[nth] / 1e3));
        println!("| {} | {} | {} |", KINDS[*at].name(), latency(outcomes, |outcome| outcome), with_redis([cpu, redis]));
    }
    println!("\n## Idle subscribers\n");
    println!(
        "Resident bytes of the gateway's processes; and of the kernel's objects that it cannot take back, of the whole machine:\nall ends of a subscriber's connections."
    );
    println!("\n| subscribers | | resident bytes a subscriber | kernel |");
    println!("| --- | --- | --- | --- |");
    rows(measured, |runs| {
        let [resident, slab] =
            [median(runs, |run| run.resident_bytes), median(runs, |run| run.slab_bytes)].map(thousands);
        format!("{resident} | {slab}")
    });
    ratios(measured);
    if !measured.failed.is_empty() {
        println!("\n## Not measured\n");
        measured.failed.iter().for_each(|failure| println!("- {failure}"));
    }
    Ok(())
}

fn rows(measured: &Measured, columns: impl Fn(&[Run]) -> String) {
    for ((audience, at), runs) in &measured.runs {
        println!("| {} | {} | {} |", audience_name(*audience), KINDS[*at].name(), columns(runs));
    }
}

fn audience_name(audience: usize) -> String {
    let (mode, count) = AUDIENCES[audience];
    let mode = match mode {
        Mode::WebSocket => "`grip`",
        Mode::OverHttp => "`grip_http`",
    };
    format!("{}, {mode}", thousands(count as f64))
}

/// Pushpin's figures over the gateway's with the engine in memory: what more is better the other way round.
fn ratios(measured: &Measured) {
    println!("\n## Pushpin against Sluicegate with the engine in memory\n");
    println!(
        "| subscribers | CPU, 1 in flight | CPU, 16 in flight | deliveries a second, 1 in flight | 16 in flight | p99 at the rate that all carry | resident bytes |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let place = |kind| KINDS.iter().position(|of| *of == kind).unwrap_or(0);
    for audience in 0..AUDIENCES.len() {
        let of = |kind| measured.runs.get(&(audience, place(kind)));
        let (Some(ours), Some(theirs)) = (of(Kind::Memory), of(Kind::Pushpin)) else { continue };
        let ratio = |value: fn(&Run) -> f64| format!("×{:.2}", median(theirs, value) / median(ours, value));
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            audience_name(audience),
            ratio(|run| run.one.cpu_per_million()[0]),
            ratio(|run| run.sixteen.cpu_per_million()[0]),
            ratio(|run| run.one.deliveries_per_second()),
            ratio(|run| run.sixteen.deliveries_per_second()),
            ratio(|run| run.paced.latency_ms()[1]),
            ratio(|run| run.resident_bytes),
        );
    }
}

fn latency<T>(runs: &[T], of: fn(&T) -> &Outcome) -> String {
    let [p50, p99] = [0, 1].map(|nth| median(runs, |run| of(run).latency_ms()[nth]));
    format!("{} / {}", significant(p50), significant(p99))
}

fn cpu<T>(runs: &[T], of: fn(&T) -> &Outcome) -> String {
    with_redis([0, 1].map(|nth| median(runs, |run| of(run).cpu_per_million()[nth])))
}

fn with_redis([cpu, redis]: [f64; 2]) -> String {
    let redis = if redis > 0.0 { format!(" + {redis:.2}") } else { String::new() };
    format!("{cpu:.2}{redis}")
}

/// What did not come, of all rounds, and what came twice or behind a later one.
fn lost<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> String {
    let sum = |of: fn(&Outcome) -> u64| outcomes.clone().map(of).sum::<u64>();
    let (lost, expected) = (sum(Outcome::lost), sum(|outcome| outcome.expected));
    let (disordered, gone) = (sum(|outcome| outcome.counted.disordered), sum(|outcome| outcome.counted.gone));
    let mut text = match lost {
        0 => format!("0 of {}", thousands(expected as f64)),
        _ => format!("{} of {}", thousands(lost as f64), thousands(expected as f64)),
    };
    if disordered > 0 {
        text += &format!(", {disordered} out of order");
    }
    if gone > 0 {
        text += &format!(", {gone} connections");
    }
    text
}

fn median<T>(runs: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

fn significant(value: f64) -> String {
    match value {
        0.0..1.0 => format!("{value:.2}"),
        1.0..10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
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
