//! The tables of what came of all cases: docs/attacks.md, and its short form in the README.

use std::fmt::Write as _;
use std::process::Command;

use crate::case::{Case, Nginx, Outcome};
use crate::routes;
use crate::runner::{Verdict, Verdicts};

/// Where the page is.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/attacks.md");

/// Where the short table is, between two lines of its own.
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const BEGIN: &str = "<!-- make attacks writes from here -->\n";
const END: &str = "<!-- to here -->\n";

/// Writes the page and the README's table.
pub fn write(results: &[(Case, Verdicts)]) {
    let page = page(results);
    println!("{page}");
    std::fs::write(PAGE, &page).expect("docs is there");
    let readme = std::fs::read_to_string(README).expect("the README is there");
    let (before, _, after) = around_table(&readme);
    std::fs::write(README, [before, BEGIN, &short(&page), END, after].concat()).expect("it can be written");
}

/// Fails when the page or the README's table is not of these cases.
pub fn check(cases: &[Case]) {
    let page = std::fs::read_to_string(PAGE).expect("docs/attacks.md is there: make attacks");
    let readme = std::fs::read_to_string(README).expect("the README is there");
    let rows: Vec<_> = rows(&page).map(|cells| (cells[0].to_owned(), cells[3].to_owned())).collect();
    let expected: Vec<_> = cases.iter().map(|case| (title(case), harm(case.tries.len(), case.tries.len()))).collect();
    assert_eq!(rows, expected, "docs/attacks.md is of other cases: make attacks");
    assert_eq!(
        around_table(&readme).1,
        short(&page),
        "the README has another table than docs/attacks.md: make attacks"
    );
    for case in cases {
        assert!(!case.tries.is_empty() && !case.stopped_by.is_empty(), "{} is empty", case.name);
        for (what, _) in case.open {
            assert!(case.tries.iter().any(|one| one.what == *what), "{}: {what} is no try", case.name);
        }
    }
}

/// What stands before, in and behind the README's table.
fn around_table(readme: &str) -> (&str, &str, &str) {
    let (before, rest) = readme.split_once(BEGIN).expect("the README has the line before its table");
    let (table, after) = rest.split_once(END).expect("the README has the line behind its table");
    (before, table, after)
}

/// The cells of the first table of the page.
fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = page.lines().skip_while(|line| !line.starts_with("| --- ")).skip(1);
    rows.take_while(|line| line.starts_with('|')).map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

/// The README's table, from that of the page.
fn short(page: &str) -> String {
    let mut table = "| attack | direct | nginx | Sluicegate |\n| --- | --- | --- | --- |\n".to_owned();
    for cells in rows(page) {
        let attack = cells[0].split(" (like ").next().unwrap_or_default();
        let _ = writeln!(table, "| {attack} | {} | {} | {} |", cells[3], cells[4], cells[5]);
    }
    table
}

/// The first cell of a case's row.
fn title(case: &Case) -> String {
    if case.seen_in.is_empty() { case.name.to_owned() } else { format!("{} ({})", case.name, case.seen_in) }
}

/// The whole page.
fn page(results: &[(Case, Verdicts)]) -> String {
    let mut page = introduction(results);
    page += "| attack | what the attacker does | harm | direct | nginx | Sluicegate | set besides |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n";
    for (case, verdicts) in results {
        let nginx = match case.settings.nginx {
            Nginx::Absent => "has none".to_owned(),
            _ => cell(&verdicts.nginx),
        };
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {nginx} | {} | {} |",
            title(case),
            case.attack,
            case.harm,
            cell(&verdicts.direct),
            cell(&verdicts.gateway),
            case.settings.note,
        );
    }
    let open: Vec<_> =
        results.iter().flat_map(|(case, _)| case.open.iter().map(move |open| (case.name, open))).collect();
    if !open.is_empty() {
        page += "\n## Open\n\nWhat does harm through Sluicegate too:\n\n| attack | way | why |\n| --- | --- | --- |\n";
        for (name, (what, why)) in open {
            let _ = writeln!(page, "| {name} | `{what}` | {why} |");
        }
    }
    page
}

fn introduction(results: &[(Case, Verdicts)]) -> String {
    let tries: usize = results.iter().map(|(case, _)| case.tries.len()).sum();
    let counted = results.iter().filter(|(case, _)| !matches!(case.settings.nginx, Nginx::Absent));
    let through_nginx = counted.clone().filter(|(_, verdicts)| verdicts.nginx.harmed > 0).count();
    let through_gateway = results.iter().filter(|(_, verdicts)| verdicts.gateway.harmed > 0).count();
    let grown = results.iter().map(|(_, verdicts)| verdicts.grown_bytes).max().unwrap_or(0);
    format!(
        "<!-- Written by make attacks. -->\n\
         # Attacks\n\n\
         Each row is an attack that was played three times: against a backend that checks nothing, against that backend\n\
         behind {nginx} set up for WebSockets as its documentation says, and behind Sluicegate {version} with its defaults.\n\
         Where an operator had to set something, the row says so, and nginx has its own directive for it if there is one.\n\
         Both proxies deny `/internal`. A row counts only because the attack does its harm without a proxy.\n\n\
         The cases are values in `tests/attacks/cases`, and nginx' configuration is in `tests/attacks/routes.rs`. `cargo\n\
         test --test attacks` plays them with shorter floods; `make attacks` plays them at full length and writes this page.\n\n\
         On {date} at commit {commit}: {rows} attacks in {tries} ways. {through_nginx} of {counted} did harm through nginx,\n\
         {through_gateway} of {rows} through Sluicegate. Sluicegate's memory grew by {grown} KiB in the worst of them, floods\n\
         included, and it had no descriptor left of any.\n\n\
         *harm 3/8* is harm in three of eight ways. A number is the status of the answer or the code of the Close frame;\n\
         *cut* is a connection that was ended without either, and *served without it* a request or a session that was\n\
         served while what harms did not get through.\n\n",
        nginx = nginx_version(),
        version = env!("CARGO_PKG_VERSION"),
        date = output(Command::new("date").args(["-u", "+%F"])),
        commit = output(Command::new("git").args(["describe", "--always", "--dirty"])),
        rows = results.len(),
        counted = counted.clone().count(),
        grown = grown >> 10,
    )
}

fn harm(harmed: usize, tries: usize) -> String {
    format!("**harm** {harmed}/{tries}")
}

fn cell(verdict: &Verdict) -> String {
    let outcomes: Vec<_> = verdict.outcomes.iter().map(Outcome::to_string).collect();
    let outcomes = if outcomes.is_empty() { "no answer".to_owned() } else { outcomes.join(", ") };
    match (verdict.harmed, verdict.tries) {
        (0, _) => format!("stopped: {outcomes}"),
        (harmed, tries) if harmed == tries => harm(harmed, tries),
        (harmed, tries) => format!("{}; {outcomes}", harm(harmed, tries)),
    }
}

fn nginx_version() -> String {
    let version = Command::new(routes::Nginx::PATH).arg("-v").output();
    let version = version.expect("nginx is installed: scripts/setup test").stderr;
    String::from_utf8_lossy(&version).trim().trim_start_matches("nginx version: ").replace('/', " ")
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it is installed").stdout;
    String::from_utf8_lossy(&output).trim().to_owned()
}
