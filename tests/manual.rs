//! docs/configuration.md: it has every key of the schema with its default and range, no key that there is not, and
//! examples that are sound.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde_json::Value;
use sluicegate::config::{self, ConfigFault, Text};

/// What an example of a part of the main file is completed with.
const LISTENERS: &str = "listeners: [{ name: public, bind: \"127.0.0.1:0\", hosts: [a.example] }]\n";
const UPSTREAMS: &str = "upstreams: [{ name: chat, endpoints: [\"127.0.0.1:9001\"] }]\n";

/// What an example of keys of a rule is completed with.
const RULE: &str = "rules:\n  - name: example\n    upstream: chat\n";

fn manual() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    std::fs::read_to_string(path).expect("docs/configuration.md can be read")
}

/// The keys of the schema with their descriptions, as the manual writes them: those of a rule without `rules[].`.
fn keys() -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    for branch in config::schema()["anyOf"].as_array().expect("both kinds of file") {
        gather(branch, "", &mut keys);
    }
    keys
}

fn gather(schema: &Value, path: &str, keys: &mut BTreeMap<String, Value>) {
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        // `defaults` has the keys of a rule, and `rules` has them too.
        if path != "defaults" {
            gather(value, &path, keys);
        }
        // `rules` is a key of both kinds of file; the main file comes first.
        keys.entry(path).or_insert_with(|| value.clone());
    }
    if !schema["items"].is_null() {
        let path = if path == "rules" { String::new() } else { format!("{path}[]") };
        gather(&schema["items"], &path, keys);
    }
    for branch in schema["anyOf"].as_array().into_iter().flatten() {
        gather(branch, path, keys);
    }
}

/// The tables' rows whose first cell is a key.
fn rows(manual: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    for line in manual.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        if let [key, _default, _range, _text] = cells.as_slice() {
            let key = key.trim_matches('`').to_owned();
            assert!(rows.insert(key.clone(), cells).is_none(), "two rows of {key}");
        }
    }
    rows
}

/// The default that a description says: `Default 10s, 100ms to 10m.`, ``Default `off`.``, `Default: all, which ...`.
fn default_of(description: &str) -> Option<String> {
    if description.contains("Required") {
        return Some("required".to_owned());
    }
    let starts = ["Default and only value: ", "Default: ", "Default "];
    let rest = starts.iter().find_map(|start| description.split_once(start)).map(|(_, rest)| rest)?;
    let end = match rest.strip_prefix('`') {
        Some(code) => code.find('`').map_or(rest.len(), |end| end + 2),
        None => [". ", ", ", "; "].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len()),
    };
    Some(rest[..end].trim_end_matches('.').replace('`', ""))
}

#[test]
fn every_key_is_there_with_its_default_and_range() {
    let manual = manual();
    let rows = rows(&manual);
    let range = Regex::new(r"[0-9]+[A-Za-z]*(/[smh])? to [0-9]+[A-Za-z]*(/[smh])?").expect("a pattern");
    let mut missing = Vec::new();
    let keys = keys();
    for (key, schema) in &keys {
        // The schema wraps lines; what it says does not depend on where.
        let description = schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        let description = description.join(" ");
        let Some(default) = default_of(&description) else {
            // A mapping whose keys have defaults.
            if !manual.contains(&format!("`{key}`")) {
                missing.push(format!("`{key}`"));
            }
            continue;
        };
        let Some(cells) = rows.get(key) else {
            missing.push(format!("| `{key}` | {default} | | {description} |"));
            continue;
        };
        if cells[1].replace('`', "") != default {
            missing.push(format!("`{key}`: the default {default}, not {}", cells[1]));
        }
        if let Some(range) = range.find(&description).map(|range| range.as_str())
            && !cells[2].replace('`', "").contains(range)
        {
            missing.push(format!("`{key}`: the range {range}, not {}", cells[2]));
        }
    }
    assert!(keys.len() > 60, "{}", keys.len());
    assert!(missing.is_empty(), "docs/configuration.md lacks {}:\n{}", missing.len(), missing.join("\n"));
}

#[test]
fn no_key_is_there_that_does_not_exist() {
    let keys = keys();
    for key in rows(&manual()).into_keys() {
        assert!(keys.contains_key(&key), "docs/configuration.md has a row of `{key}`, which the schema does not have");
    }
}

/// The README's short table of nginx' directives is part of the manual's.
#[test]
fn the_readme_says_of_nginx_what_the_manual_says() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    let section = readme.split("## Coming from nginx").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("its end").replace("(docs/configuration.md#", "(#");
    let manual = manual();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        assert!(manual.lines().any(|line| line == row), "not in the manual: {row}");
    }
}

/// What the second column of the table of nginx' directives has is a key of a rule or of the main file.
#[test]
fn what_nginx_directives_become_is_sound() {
    let manual = manual();
    let section = manual.split("## Coming from nginx").nth(1).expect("the section");
    let table = section.split("What there is no equivalent of").next().expect("the first table");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("maintenance.html"), "<p>back soon</p>").expect("a page");
    std::fs::create_dir(folder.path().join("rules")).expect("a folder");
    let path = folder.path().join("gateway.yaml");
    let mut seen = 0;
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [_, here, _] = cells.as_slice() else { panic!("{line}") };
        let Some(keys) = here.strip_prefix('`').and_then(|here| here.strip_suffix('`')) else { continue };
        if keys.contains('`') {
            // Commands.
            continue;
        }
        let is_main = ["listeners", "upstreams", "trusted_proxies", "access_log", "limits", "rule_files", "admin"]
            .iter()
            .any(|key| keys.starts_with(&format!("{key}:")));
        let mut text = String::new();
        if !keys.starts_with("listeners:") {
            text += LISTENERS;
        }
        if !keys.starts_with("upstreams:") {
            text += "upstreams: [{ name: app, endpoints: [\"127.0.0.1:9001\"] }]\n";
        }
        let action = ["upstream:", "redirect:", "respond:"].iter().any(|key| keys.starts_with(key));
        let of_rule = "{ name: inner, upstream: app }";
        std::fs::write(folder.path().join("rules/inner.yaml"), format!("rules: [{of_rule}]")).expect("a rule file");
        text += &match (is_main, action) {
            (true, _) => format!("{keys}\n"),
            (false, true) => format!("rules:\n  - name: example\n    {keys}\n"),
            (false, false) => format!("rules:\n  - name: example\n    upstream: app\n    {keys}\n"),
        };
        std::fs::write(&path, &text).expect("a file");
        let loaded = config::load(&path);
        assert!(loaded.is_ok(), "{line}\n{text}\n{:#?}", loaded.err());
        seen += 1;
    }
    assert!(seen > 25, "{seen}");
}

/// The certificates that examples name, of a CA that is none of theirs: what `check` reads of one it reads of all.
fn issue(folder: &std::path::Path) {
    std::fs::create_dir(folder.join("tls")).expect("a folder");
    let names =
        ["tls/chat.example.com", "tls/wildcard.example.org", "tls/machines", "tls/clients", "internal-ca", "gateway"];
    for name in names {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["example.org".to_owned()]).expect("a certificate");
        std::fs::write(folder.join(format!("{name}.crt")), cert.pem()).expect("a certificate");
        std::fs::write(folder.join(format!("{name}.key")), signing_key.serialize_pem()).expect("a key");
    }
}

/// Examples are blocks of `yaml main` (parts of a main file), `yaml rules` (a rule file) and `yaml rule` (keys of one).
#[test]
fn every_example_is_sound() {
    let manual = manual();
    // The files that examples name.
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["sticky-new.key", "sticky-old.key", "admin.key"] {
        std::fs::write(folder.path().join(file), "0123456789abcdef0123456789abcdef\n").expect("a secret");
    }
    issue(folder.path());
    let name = folder.path().join("example").display().to_string();
    let environment = |name: &str| (name == "APP_PORT").then(|| "9001".to_owned());
    let mut seen = 0;
    for (at, block) in manual.split("\n```").enumerate().filter(|(at, _)| at % 2 == 1) {
        let Some((info, text)) = block.split_once('\n') else { continue };
        let complete = |text: &str, key: &str, part: &str| {
            let has = text.lines().any(|line| line.starts_with(&format!("{key}:")));
            if has { String::new() } else { part.to_owned() }
        };
        let parsed = |text: &str| -> Vec<ConfigFault> {
            let front = complete(text, "listeners", LISTENERS) + &complete(text, "upstreams", UPSTREAMS);
            let text = format!("{text}\n{front}");
            config::parse(Text { name: &name, text: &text }, &[], &environment).err().unwrap_or_default()
        };
        let faults = match info {
            "yaml main" => parsed(text),
            "yaml rule" => {
                parsed(&(RULE.to_owned() + &text.lines().map(|line| format!("    {line}\n")).collect::<String>()))
            }
            "yaml rules" => config::check_rules(Text { name: &name, text }, &environment).err().unwrap_or_default(),
            info => {
                assert!(!info.starts_with("yaml"), "block {at}: `{info}` is none of main, rules and rule");
                continue;
            }
        };
        assert!(faults.is_empty(), "{text}\n{faults:#?}");
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}
