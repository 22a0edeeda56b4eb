//! docs/operations.md: it has every metric of a scrape with its labels, every event and field of the log, and none that
//! there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use regex::Regex;
use sluicegate::cause::{Cause, Refusal};
use sluicegate::metrics::Metrics;

fn text_of(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manual() -> String {
    text_of("docs/operations.md")
}

/// A source without its tests.
fn program(path: &str) -> String {
    text_of(path).split("#[cfg(test)]").next().expect("there is a first part").to_owned()
}

/// Everything of the pattern's first group.
fn all(pattern: &str, text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The metrics of the manual's table: their names, and the labels of each in order.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let row = Regex::new(r"(?m)^\| `(sluicegate_[a-z_]+)(?:\{([a-z_,]+)\})?` \| (gauge|counter|histogram) \|")
        .expect("a pattern");
    let manual = manual();
    let mut metrics = BTreeMap::new();
    for found in row.captures_iter(&manual) {
        let labels = found.get(2).map_or("", |labels| labels.as_str()).split(',').filter(|label| !label.is_empty());
        let repeated = metrics.insert(found[1].to_owned(), labels.map(str::to_owned).collect());
        assert!(repeated.is_none(), "two rows of {}", &found[1]);
    }
    metrics
}

/// A scrape in which every family has a series: its names with their labels.
fn scraped() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new();
    let rule = metrics.rule("chat");
    rule.refused(&Refusal::NoRule);
    rule.closed(&Cause::Drain);
    rule.answered(200, Duration::from_millis(1));
    metrics.upstream_connections("chat", "127.0.0.1:9001");
    metrics.upstream_healthy("chat", "127.0.0.1:9001");
    metrics.backplane(&["eu"]);
    metrics.config_loaded(SystemTime::now());
    metrics.tls_reloaded("listener", "public", true);
    let text = metrics.render();
    let histograms = all(r"(?m)^# TYPE (\w+) histogram$", &text);
    let label = Regex::new(r#"(\w+)=""#).expect("a pattern");
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).expect("a series");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = family.filter(|family| histograms.contains(*family)).unwrap_or(name);
        let labels = label.captures_iter(labels).map(|found| found[1].to_owned()).filter(|label| label != "le");
        names.entry(name.to_owned()).or_default().extend(labels);
    }
    names
}

#[test]
fn every_metric_of_a_scrape_is_there_with_its_labels_and_no_other() {
    let (documented, scraped) = (documented(), scraped());
    assert!(scraped.len() > 25, "{}", scraped.len());
    assert_eq!(documented, scraped);
    // And a family that the scrape above misses is missing there.
    let program = program("src/metrics.rs") + &program("src/metrics/backplane.rs");
    let named = all(r#""(sluicegate_[a-z_]+)""#, &program);
    assert_eq!(named, scraped.into_keys().collect::<BTreeSet<_>>());
}

#[test]
fn no_page_names_a_metric_that_does_not_exist() {
    let scraped = scraped();
    for page in ["docs/operations.md", "docs/causes.md", "docs/configuration.md", "README.md", "ARCHITECTURE.md"] {
        for name in all(r"\b(sluicegate_[a-z_]+[a-z])\b", &text_of(page)) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_there = scraped.contains_key(&name) || family.is_some_and(|family| scraped.contains_key(family));
            assert!(is_there, "{page} names {name}");
        }
    }
}

/// The first cells of the rows of a table, from the line that heads it.
fn first_cells(head: &str) -> BTreeSet<String> {
    let manual = manual();
    let table = manual.split_once(head).unwrap_or_else(|| panic!("no table headed {head:?}")).1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| all("`([a-z_]+)`", row.split('|').nth(1).expect("a cell"))).collect()
}

/// Every source below a folder of the package.
fn collect(folder: &Path, sources: &mut Vec<String>) {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder") {
        let name = folder.join(entry.expect("an entry").file_name());
        match name.extension() {
            Some(extension) if extension == "rs" => sources.push(name.to_string_lossy().into_owned()),
            Some(_) => {}
            None => collect(&name, sources),
        }
    }
}

#[test]
fn every_event_and_field_of_the_log_is_there_and_no_other() {
    let mut sources = Vec::new();
    collect(Path::new("src"), &mut sources);
    // The log's own file has examples.
    sources.retain(|source| source != "src/events.rs");
    let mut events: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| all(r#"Event::(?:new|debug|warn|error)\("([a-z_]+)"\)"#, &program(source)))
        .collect();
    // The line of whatever is no event of its own.
    events.insert("log".to_owned());
    assert_eq!(first_cells("| `event` | when | its own fields |"), events);

    let mut fields = all(r#"\.field\("([a-z_]+)""#, &program("src/edge/record.rs"));
    for live in ["started", "age_seconds", "pending_bytes_in", "pending_bytes_out"] {
        assert!(fields.remove(live), "{live} is of a live session alone");
    }
    assert_eq!(first_cells("| field | in | what it is |"), fields);
}
