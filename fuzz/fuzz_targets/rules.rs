//! Rule files: whatever is a fault in one alone is one beside a main file too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::config::{Text, check_rules, parse};

const MAIN: &str = r#"{ "version": 1, "listeners": [{ "name": "public", "bind": "127.0.0.1:0" }],
"upstreams": [{ "name": "app", "endpoints": ["127.0.0.1:1"] }] }"#;

fuzz_target!(|text: &str| {
    // Files that one names are looked for where there are none, and nothing else is opened.
    if text.contains("_file") && text.contains("/dev") {
        return;
    }
    let rules = Text { name: "/nowhere/rules.yaml", text };
    let Err(alone) = check_rules(rules, &|_| None) else { return };
    let beside = parse(Text { name: "/nowhere/a.yaml", text: MAIN }, &[rules], &|_| None).expect_err("it has faults");
    assert!(!alone.is_empty() && alone.iter().all(|fault| beside.contains(fault)), "{alone:#?}\n{beside:#?}");
});
