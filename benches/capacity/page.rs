//! docs/capacity.md as values: the constants that are in it, the blocks of it that are computed, and the rows of other
//! pages that constants are taken from.

use super::Result;
use super::model::{CONSTANTS, Constants, INPUTS, Inputs};
use super::plan::{number, plan, render};

/// The designs that the page works through, by the names of their blocks.
pub const DESIGNS: [(&str, &str); 2] = [
    (
        "chat",
        "users=1000000 shares=0.4,0.35,0.25 subscriptions=5 channels=500000 user_rate=0.01 fan_out=100 content=300 \
         line=120 distance=100 client=30 back=120",
    ),
    (
        "prices",
        "users=50000 channels=1 user_rate=0 rate=1000 fan_out=0 content=60 keys=500 interval=100 sockets=1 client=150 \
         history=60",
    ),
];

/// The inputs of a design, if that is its name.
pub fn design(name: &str) -> Option<&'static str> {
    DESIGNS.iter().find(|(of, _)| *of == name).map(|(_, words)| *words)
}

/// The inputs that words are: a design's, where one is its name, changed by the others.
///
/// # Errors
/// A word is no input.
pub fn inputs_of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Inputs> {
    let (names, words): (Vec<&str>, Vec<&str>) = words.into_iter().partition(|word| design(word).is_some());
    let start = names.first().and_then(|name| design(name)).unwrap_or_default();
    Inputs::default().read(start.split_whitespace())?.read(words)
}

/// What stands between the two comments of a block.
pub fn block<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&begin(name))?;
    Some(rest.split_once(&end(name))?.0)
}

fn begin(name: &str) -> String {
    format!("<!-- {name}: computed from here -->\n")
}

fn end(name: &str) -> String {
    format!("<!-- {name}: to here -->")
}

/// The page with another text in a block.
///
/// # Errors
/// The page has no such block.
pub fn with_block(page: &str, name: &str, text: &str) -> Result<String> {
    let old = block(page, name).ok_or_else(|| format!("the page has no block {name}"))?;
    let at = begin(name);
    Ok(page.replacen(&format!("{at}{old}"), &format!("{at}\n{}\n\n", text.trim()), 1))
}

/// The page with all that follows from its constants.
///
/// # Errors
/// A block or a constant is not there.
pub fn computed(page: &str) -> Result<String> {
    let constants = constants(page)?;
    let mut page = with_block(page, "inputs", &inputs())?;
    for (name, words) in DESIGNS {
        let inputs = Inputs::default().read(words.split_whitespace())?;
        page = with_block(&page, name, &render(&inputs, &plan(&inputs, &constants)))?;
    }
    Ok(page)
}

fn inputs() -> String {
    let rows =
        INPUTS.iter().map(|input| format!("| `{}` | {} | {} |\n", input.name, number(input.default), input.what));
    let shares = "| `shares` | 1 | Of the users, the part of each region: `0.5,0.3,0.2`. |\n";
    format!("| input | default | |\n| --- | --- | --- |\n{}{shares}", rows.collect::<String>())
}

/// The constants that the page has.
///
/// # Errors
/// One is not there, or no number.
pub fn constants(page: &str) -> Result<Constants> {
    let mut constants = Constants::default();
    for constant in CONSTANTS {
        let start = format!("| `{}` | ", constant.name);
        let row = page.lines().find_map(|line| line.strip_prefix(&start));
        let value = row.and_then(|row| row.split(" |").next());
        let value = value.ok_or_else(|| format!("the page has no constant {}", constant.name))?;
        *(constant.of)(&mut constants) = value.replace(',', "").parse()?;
    }
    Ok(constants)
}

/// The table of constants.
pub fn table(constants: &Constants) -> String {
    let mut constants = constants.clone();
    let rows = CONSTANTS.iter().map(|constant| {
        format!("| `{}` | {} | {} |\n", constant.name, value(*(constant.of)(&mut constants)), constant.what)
    });
    format!("| constant | value | what, and where it was measured |\n| --- | --- | --- |\n{}", rows.collect::<String>())
}

/// A constant, so that it can be read again.
fn value(value: f64) -> String {
    if value.abs() < 0.1 { format!("{value:.5}") } else { number(value) }
}

/// Takes the constants that are in docs/fanout.md and docs/bench.md.
///
/// # Errors
/// A row is not there.
pub fn from_other_pages(constants: &mut Constants, fanout: &str, bench: &str) -> Result<()> {
    let ours = |section: &str, column: usize, is_wanted: &dyn Fn(&str) -> bool| -> Result<f64> {
        let rows = rows(fanout, section)?;
        let rows =
            rows.iter().filter(|row| row.iter().any(|cell| cell.starts_with("Sluicegate")) && is_wanted(&row[0]));
        let values = rows.map(|row| first_number(row.get(column).map_or("", String::as_str)));
        let highest = values.collect::<Result<Vec<_>>>()?.into_iter().reduce(f64::max);
        Ok(highest.ok_or_else(|| format!("docs/fanout.md has no row of ours in {section:?}"))?)
    };
    constants.alone_us = ours("At a rate that all carry", 3, &|_| true)?;
    constants.gateway_bytes = ours("Idle subscribers", 2, &|_| true)?;
    constants.connection_kernel_bytes = ours("Idle subscribers", 3, &|of| of.contains("grip_http"))? / 2.0;
    let alone = rows(fanout, "One subscriber")?;
    let alone = alone.iter().find(|row| row[0] == "Sluicegate, Redis").and_then(|row| row.get(1)?.split('/').nth(1));
    constants.publish_ms = first_number(alone.ok_or("docs/fanout.md has Redis with one subscriber")?)?;
    let cell = |section: &str, name: &str, column: usize| -> Result<f64> {
        let rows = rows(bench, section)?;
        let row = rows.iter().find(|row| row[0] == name).ok_or_else(|| format!("docs/bench.md has no row {name:?}"))?;
        first_number(row.get(column).map_or("", String::as_str))
    };
    let plain = |column| cell("Compression", "sluicegate, no compression", column);
    constants.byte_us = (plain(5)? - plain(4)?) / (16_384.0 - 200.0) / 2.0;
    let front = |name, column| cell("The front", name, column);
    constants.tls_bytes = front("sluicegate, HTTP/1.1 over TLS", 1)? - front("sluicegate, HTTP/1.1", 1)?;
    constants.tls_write_us = (front("sluicegate, HTTP/1.1 over TLS", 2)? - front("sluicegate, HTTP/1.1", 2)?) / 2.0;
    Ok(())
}

/// The rows of the first table behind a heading that begins so.
fn rows(page: &str, section: &str) -> Result<Vec<Vec<String>>> {
    let start = format!("\n## {section}");
    let (_, text) = page.split_once(&start).ok_or_else(|| format!("no heading {section:?}"))?;
    let lines = text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    Ok(lines.skip(2).map(cells).collect())
}

fn first_number(text: &str) -> Result<f64> {
    let word = text.split_whitespace().next().unwrap_or_default().replace(',', "");
    word.parse().map_err(|_| format!("{text:?} begins with no number").into())
}
