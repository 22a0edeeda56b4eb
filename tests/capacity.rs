//! The simulations of docs/capacity.md with fewer sessions, by the code that `make capacity` measures with: each session is
//! sent just what was published on its channels. And the page: what is computed on it follows from its constants.

#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/capacity/machine.rs"]
mod machine;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/capacity/model.rs"]
mod model;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/capacity/node.rs"]
mod node;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/capacity/page.rs"]
mod page;
#[path = "../benches/capacity/plan.rs"]
mod plan;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/capacity/region.rs"]
mod region;
#[allow(dead_code, reason = "the benchmark uses the rest")]
#[path = "../benches/capacity/simulation.rs"]
mod simulation;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

use model::{CONSTANTS, Constants, INPUTS, Inputs, nodes_with_subscriber};
use plan::plan;
use simulation::{Counted, Shape, play};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).expect("it can be read")
}

/// Everyone was sent what was due, and nodes were pushed no more than has a subscriber.
fn judge(shape: &Shape, counted: &Counted) {
    assert_eq!(counted.publications, shape.publications);
    assert!(counted.expected >= shape.publications, "each has a subscriber at least: who published it");
    assert_eq!((counted.deliveries, counted.wrong), (counted.expected, 0));
    // A formula of means, so within a few of a hundred.
    let (pushed, promised) = (counted.pushed as f64, counted.promised_pushes);
    assert!((pushed / promised - 1.0).abs() < 0.03, "{pushed} pushes, and the model has {promised}");
}

#[test]
fn in_a_chat_of_three_regions_every_session_is_sent_what_its_rooms_were() {
    let shape = Shape { publications: 2_000, per_second: 100_000, ..Shape::chat(20_000) };
    judge(&shape, &play(&shape).expect("it is played"));
}

#[test]
fn of_a_ticker_every_session_is_sent_everything() {
    let shape = Shape { publications: 200, per_second: 100_000, ..Shape::ticker(2_000) };
    let counted = play(&shape).expect("it is played");
    judge(&shape, &counted);
    assert_eq!((counted.deliveries, counted.pushed), (400_000, 400), "both nodes, and all sessions");
}

/// The constants that make each formula easy to follow.
fn plain() -> Constants {
    let mut constants = Constants::default();
    for constant in CONSTANTS {
        *(constant.of)(&mut constants) = 0.0;
    }
    constants
}

fn inputs(words: &str) -> Inputs {
    Inputs::default().read(words.split_whitespace()).expect("they are sound")
}

#[test]
fn a_publication_goes_to_the_nodes_that_have_a_subscriber() {
    assert_eq!(nodes_with_subscriber(10.0, 1.0).round(), 1.0);
    assert_eq!((nodes_with_subscriber(2.0, 2.0) * 100.0).round(), 150.0, "by chance both are on one");
    assert!((nodes_with_subscriber(10.0, 10_000.0) - 10.0).abs() < 1e-9);
}

#[test]
fn gateways_are_counted_by_what_is_scarce_first_and_one_is_spare() {
    let of = |words: &str, constants: &Constants| plan(&inputs(words), constants).regions[0].clone();
    // 10,000 sessions × 1 a second × 40 µs = 0.4 cores of 0.5 that are planned for.
    let by_cpu = Constants { alone_us: 40.0, ..plain() };
    let few = "users=10000 user_rate=0.05 fan_out=20 cores=1 tls=0";
    assert_eq!(of(few, &by_cpu).by_cpu, 1.0);
    let region = of("users=20000 user_rate=0.05 fan_out=20 cores=1 tls=0", &by_cpu);
    assert_eq!((region.by_cpu, region.nodes), (2.0, 3.0));
    // 20,000 × 1 MB of the three quarters of 16 GiB, less the windows.
    let by_memory = Constants { gateway_bytes: 1e6, ..plain() };
    let region = of("users=20000 slow=0 tls=0", &by_memory);
    assert_eq!((region.by_memory, region.nodes), (2.0, 3.0));
    // 10,000 × 10 messages of 10,004 B and seven segments: 8.5 Gbit/s of 5 that are planned for.
    let region = of("users=10000 user_rate=0.5 fan_out=20 content=10000 tls=0", &plain());
    assert_eq!((region.by_network, region.nodes), (2.0, 3.0));
}

#[test]
fn a_dark_regions_users_come_to_the_others_as_these_are_large() {
    let plan = plan(&inputs("users=1000 shares=0.5,0.3,0.2"), &plain());
    let sessions: Vec<f64> = plan.regions.iter().map(|region| region.most_sessions.round()).collect();
    // The first takes 5 of 7 when the second is dark, the others 3 and 2 of 5 when the first is.
    assert_eq!(sessions, [714.0, 600.0, 400.0]);
}

#[test]
fn newest_values_are_as_many_as_keys_that_changed() {
    let values = |words: &str| plan(&inputs(words), &plain()).values;
    let of_all = "users=10 user_rate=0 fan_out=0 keys=500 interval=100";
    assert!(values(&format!("{of_all} rate=1000000")) > 499.9, "each has changed, often");
    assert_eq!(values(&format!("{of_all} rate=1000")).round(), 91.0, "500 × (1 − e^(−100/500))");
    assert!(values(&format!("{of_all} rate=1000 skew=1")) < 60.0, "some change often, and count once");
}

#[test]
fn inputs_that_make_no_sense_are_refused() {
    for words in
        ["users=0", "users=-1", "users=many", "user=1", "users", "load=2", "shares=0.5,0.4", "interval=100", "rate=inf"]
    {
        assert!(Inputs::default().read(words.split_whitespace()).is_err(), "{words}");
    }
}

#[test]
fn the_page_has_what_follows_from_its_constants() {
    let page = read("docs/capacity.md");
    let computed = page::computed(&page).expect("it has its constants and blocks");
    if std::env::var_os("SLUICEGATE_UPDATE").is_some() {
        std::fs::write(file("docs/capacity.md"), &computed).expect("it can be written");
        return;
    }
    assert!(page == computed, "write it anew with SLUICEGATE_UPDATE=1 cargo test --test capacity");
}

#[test]
fn the_page_says_each_constant_as_the_code_does_and_once() {
    let page = read("docs/capacity.md");
    for constant in CONSTANTS {
        let rows: Vec<&str> =
            page.lines().filter(|line| line.starts_with(&format!("| `{}` |", constant.name))).collect();
        assert!(rows.len() == 1 && rows[0].ends_with(&format!("| {} |", constant.what)), "{}", constant.name);
    }
    assert!(INPUTS.iter().all(|input| page.matches(&format!("| `{}` |", input.name)).count() == 1));
}

#[test]
fn constants_of_other_pages_are_the_rows_that_it_names() {
    let mut constants = plain();
    page::from_other_pages(&mut constants, &read("docs/fanout.md"), &read("docs/bench.md"))
        .expect("the rows are there");
    let of_pages = [
        constants.alone_us,
        constants.gateway_bytes,
        constants.connection_kernel_bytes,
        constants.byte_us,
        constants.tls_bytes,
        constants.tls_write_us,
        constants.publish_ms,
    ];
    assert!(of_pages.iter().all(|value| *value > 0.0), "{of_pages:?}");
}

#[test]
fn each_command_of_the_page_is_a_target_and_its_words_are_inputs() {
    let (page, makefile) = (read("docs/capacity.md"), read("Makefile"));
    let command = Regex::new(r#"\bmake ([a-z]+)(?: ARGS="([^"]*)")?"#).expect("a pattern");
    let mut plans = 0;
    for found in command.captures_iter(&page) {
        assert!(makefile.contains(&format!("\n{}: ", &found[1])), "{}", &found[0]);
        if let Some(words) = found.get(2) {
            page::inputs_of(words.as_str().split_whitespace()).expect("the words of the command are inputs");
            plans += 1;
        }
    }
    assert!(plans >= 5, "{plans}");
}

#[test]
fn each_metric_of_the_page_is_in_the_manual() {
    let (page, manual) = (read("docs/capacity.md"), read("docs/operations.md"));
    let name = Regex::new("sluicegate_[a-z_]+").expect("a pattern");
    let names: BTreeSet<&str> = name.find_iter(&page).map(|found| found.as_str()).collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(manual.contains(&format!("| `{name}")), "docs/operations.md has no {name}");
    }
}
