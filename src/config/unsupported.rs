//! What the manual names and this version does not have: a fault, never accepted without effect.

use serde_json::Value;

use super::fault::ConfigFault;
use super::key_path::{KeyPath, Step, shown};
use super::yaml::Source;

/// Keys by the place of the mapping that they stand in. `[]` is any index; `defaults` has those of a rule.
const KEYS: [(&str, &[&str]); 3] = [
    ("", &["upgrade_socket"]),
    ("probes", &["prestop_token_file"]),
    ("upstreams[]", &["health_check", "slow_start", "admission"]),
];

/// Values by the place of the key: the word itself, or what it begins with when that ends in a colon; and what may be
/// written instead.
const VALUES: [(&str, &[&str], &str); 2] = [
    ("admin.bind", &["unix:"], "an address and port such as \"127.0.0.1:9901\""),
    ("probes.bind", &["unix:"], "an address and port such as \"127.0.0.1:9902\""),
];

/// Finds and prunes what this version does not have.
pub fn check(source: &mut Source) -> Vec<ConfigFault> {
    let mut found = Vec::new();
    walk(&source.tree, &KeyPath::default(), "", &mut found);
    let mut faults = Vec::with_capacity(found.len());
    for (path, what, allowed) in found {
        faults.push(source.fault(&path, format!("{what} is not in this version"), allowed));
        path.prune(&mut source.tree);
    }
    faults
}

fn walk(value: &Value, path: &KeyPath, place: &str, found: &mut Vec<(KeyPath, String, &'static str)>) {
    match value {
        Value::Object(map) => {
            let keys = KEYS.iter().find(|(at, _)| *at == place).map_or(&[][..], |(_, keys)| keys);
            for (key, item) in map {
                let path = path.key(key);
                if keys.contains(&key.as_str()) {
                    found.push((path, "this key".to_owned(), ""));
                } else {
                    walk(item, &path, &place_below(place, &Step::Key(key.clone())), found);
                }
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                walk(item, &path.index(index), &place_below(place, &Step::Index(index)), found);
            }
        }
        Value::String(text) => {
            let rows = VALUES.iter().filter(|(at, ..)| *at == place);
            for (_, words, allowed) in rows {
                let is = |word: &&&str| text == **word || (word.ends_with(':') && text.starts_with(**word));
                if words.iter().any(|word| is(&word)) {
                    found.push((path.clone(), shown(value), allowed));
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn place_below(place: &str, step: &Step) -> String {
    match step {
        Step::Index(_) => format!("{place}[]"),
        Step::Key(key) if place.is_empty() && key == "defaults" => "rules[]".to_owned(),
        Step::Key(key) if place.is_empty() => key.clone(),
        Step::Key(key) => format!("{place}.{key}"),
    }
}
