//! The shape of a file: which keys there are and what kind of value each has, by the JSON Schema.
//!
//! The schema's validator gives all errors with their paths; here they become sentences of ours. What has a fault is
//! pruned, so that the rest can be read and checked further.

use std::sync::LazyLock;

use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::{Location, LocationSegment};
use jsonschema::{ValidationError, Validator};
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::fault::ConfigFault;
use super::key_path::{KeyPath, shown};
use super::raw::{RawMain, RawRuleFile};
use super::unsupported;
use super::yaml::Source;

/// How alike two keys must be, from 0 to 1, for one to be offered for the other.
const LIKENESS: f64 = 0.8;

/// The most errors of one file that are told; nobody reads more, and a hostile file would have a million.
const MAX_ERRORS: usize = 1000;

/// The two kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The main file.
    Main,
    /// A file of rules.
    Rules,
}

/// The JSON Schema of both kinds of file; one that a file fits has that file's kind.
pub fn schema() -> Value {
    let without_meta = |kind: Kind| {
        let mut schema = kind.compiled().schema.clone();
        if let Some(map) = schema.as_object_mut() {
            map.shift_remove("$schema");
        }
        schema
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sluicegate",
        "description": "A main file, or a file of rules that a main file names under `rule_files`.",
        "anyOf": [without_meta(Kind::Main), without_meta(Kind::Rules)],
    })
}

struct Compiled {
    schema: Value,
    validator: Validator,
}

impl Kind {
    fn compiled(self) -> &'static Compiled {
        static MAIN: LazyLock<Compiled> = LazyLock::new(compile::<RawMain>);
        static RULES: LazyLock<Compiled> = LazyLock::new(compile::<RawRuleFile>);
        match self {
            Self::Main => &MAIN,
            Self::Rules => &RULES,
        }
    }
}

fn compile<T: JsonSchema>() -> Compiled {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.with_transform(WithoutNull).into_generator().into_root_schema_for::<T>().to_value();
    let validator =
        jsonschema::validator_for(&schema).expect("the schema is made of our own types, and tests compile it");
    Compiled { schema, validator }
}

/// Takes `null` out of a schema: an absent key is left out, not written without a value.
#[derive(Clone)]
struct WithoutNull;

impl Transform for WithoutNull {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(map) = schema.as_object_mut() else { return };
        if map.get("default").is_some_and(Value::is_null) {
            map.shift_remove("default");
        }
        if let Some(Value::Array(kinds)) = map.get_mut("type") {
            kinds.retain(|kind| kind != "null");
            if let [only] = kinds.as_slice() {
                let only = only.clone();
                map.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(values)) = map.get_mut("enum") {
            values.retain(|value| !value.is_null());
        }
        if let Some(Value::Array(branches)) = map.get_mut("anyOf") {
            branches.retain(|branch| branch.get("type").is_none_or(|kind| kind != "null"));
            if let [Value::Object(only)] = branches.as_slice() {
                let only: Map<String, Value> = only.clone();
                map.shift_remove("anyOf");
                for (key, value) in only {
                    map.entry(key).or_insert(value);
                }
            }
        }
    }
}

/// Checks a file's shape and prunes what has a fault.
pub fn check(source: &mut Source, kind: Kind) -> Vec<ConfigFault> {
    let mut faults = unsupported::check(source);
    let Compiled { schema, validator } = kind.compiled();
    let mut errors = Errors { source, schema, found: Vec::new() };
    for error in validator.iter_errors(&source.tree).take(MAX_ERRORS) {
        errors.explain(&error);
    }
    let mut prune = Vec::new();
    for (path, fault) in errors.found {
        match path {
            // What was pruned before for another fault is not missing.
            Found::Missing(path) if source.has(&path) => {}
            Found::Missing(_) => faults.push(fault),
            // A word of the wrong kind breaks `type` and `enum` at once.
            Found::Wrong(path) if prune.contains(&path) => {}
            Found::Wrong(path) => {
                faults.push(fault);
                prune.push(path);
            }
        }
    }
    for path in prune {
        path.prune(&mut source.tree);
    }
    faults
}

enum Found {
    Missing(KeyPath),
    Wrong(KeyPath),
}

struct Errors<'a> {
    source: &'a Source,
    schema: &'a Value,
    found: Vec<(Found, ConfigFault)>,
}

impl Errors<'_> {
    fn explain(&mut self, error: &ValidationError<'_>) {
        let path = to_key_path(error.instance_path());
        match error.kind() {
            // A rule's action is judged over all files, with what was pruned: `build.rs` does.
            ValidationErrorKind::OneOfNotValid { .. } | ValidationErrorKind::OneOfMultipleValid { .. } => {}
            ValidationErrorKind::AnyOf { context } => {
                // The branch whose kind of value this is, such as the mapping of "a mapping or `off`", says more.
                let is_of_its_kind = |errors: &&Vec<ValidationError<'static>>| {
                    !errors.iter().any(|inner| inner.instance_path() == error.instance_path() && is_other_kind(inner))
                };
                // Of several mappings the one whose keys these are.
                let has_its_keys = |errors: &&Vec<ValidationError<'static>>| {
                    !errors.iter().any(|inner| inner.instance_path() == error.instance_path())
                };
                let mut mappings = context.iter().filter(is_of_its_kind);
                match (mappings.clone().find(has_its_keys), mappings.next(), mappings.next()) {
                    (Some(errors), ..) | (None, Some(errors), None) => {
                        errors.iter().for_each(|inner| self.explain(inner));
                    }
                    _ => self.wrong(path, error),
                }
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let allowed = self.keys_at(error.schema_path());
                for key in unexpected {
                    let path = path.key(key);
                    let mut fault = self.source.fault(&path, "unknown key", allowed.join(", "));
                    fault.hint = likely(key, &allowed).map(|likely| format!("did you mean `{likely}`?"));
                    self.found.push((Found::Wrong(path), fault));
                }
            }
            ValidationErrorKind::Required { property } => {
                let path = path.key(property.as_str().unwrap_or_default());
                let wanted = parent(error.schema_path().as_str())
                    .and_then(|at| self.schema.pointer(at)?.get("properties")?.get(property.as_str()?))
                    .map_or_else(String::new, describe);
                let fault = self.source.fault(&path, "this key is missing", wanted);
                self.found.push((Found::Missing(path), fault));
            }
            _ => self.wrong(path, error),
        }
    }

    fn wrong(&mut self, path: KeyPath, error: &ValidationError<'_>) {
        let allowed = parent(error.schema_path().as_str()).and_then(|at| self.schema.pointer(at));
        let mut fault = self.source.fault(&path, shown(error.instance()), allowed.map_or_else(String::new, describe));
        fault.hint = hint(&path, error.instance(), allowed);
        self.found.push((Found::Wrong(path), fault));
    }

    /// The keys of the mapping whose `additionalProperties` is at this place of the schema.
    fn keys_at(&self, place: &Location) -> Vec<String> {
        let properties = parent(place.as_str()).and_then(|at| self.schema.pointer(at)?.get("properties")?.as_object());
        properties.map_or_else(Vec::new, |properties| properties.keys().cloned().collect())
    }
}

/// Whether an error says that a value is of another kind than the branch of the schema is for.
fn is_other_kind(error: &ValidationError<'_>) -> bool {
    matches!(
        error.kind(),
        ValidationErrorKind::Type { .. }
            | ValidationErrorKind::Constant { .. }
            | ValidationErrorKind::Enum { .. }
            | ValidationErrorKind::Pattern { .. }
            | ValidationErrorKind::AnyOf { .. }
            | ValidationErrorKind::OneOfNotValid { .. }
    )
}

fn to_key_path(location: &Location) -> KeyPath {
    location.segments().fold(KeyPath::default(), |path, segment| match segment {
        LocationSegment::Index(index) => path.index(index),
        LocationSegment::Property(key) => path.key(&key),
    })
}

fn parent(pointer: &str) -> Option<&str> {
    pointer.rsplit_once('/').map(|(parent, _)| parent)
}

/// What a part of the schema allows, as half a sentence.
fn describe(schema: &Value) -> String {
    if let Some(title) = schema.get("title").and_then(Value::as_str) {
        return title.to_owned();
    }
    if let Some(word) = schema.get("const") {
        return word.as_str().map_or_else(|| word.to_string(), |word| format!("`{word}`"));
    }
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    if let Some(words) = list("enum") {
        return words.iter().map(|word| word.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ");
    }
    if let Some(branches) = list("anyOf").or(list("oneOf")) {
        return branches.iter().map(describe).collect::<Vec<_>>().join(", or ");
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => match schema.get("properties").and_then(Value::as_object) {
            Some(keys) => format!("a mapping with {}", keys.keys().cloned().collect::<Vec<_>>().join(", ")),
            None => "a mapping".to_owned(),
        },
        Some("array") => {
            let items = schema.get("items").map_or_else(String::new, describe);
            let some = if schema.get("minItems").is_some() { "a list of one or more of: " } else { "a list of: " };
            format!("{some}{items}")
        }
        Some("string") => "text".to_owned(),
        _ => String::new(),
    }
}

/// What to do about values that users write for a reason.
fn hint(path: &KeyPath, found: &Value, allowed: Option<&Value>) -> Option<String> {
    let key = path.to_string();
    if found.is_null() {
        return Some("leave the key out for its default".to_owned());
    }
    if key.ends_with("origin") && found == "off" {
        return Some("`origin: { allow: any }` allows every page".to_owned());
    }
    match found {
        Value::Bool(value) => Some(format!("write `{}`", if *value { "on" } else { "off" })),
        Value::Number(_) if allowed.map(describe)?.contains("unit") => Some("write the unit".to_owned()),
        Value::String(word) => {
            let words: Vec<String> = allowed.map(words)?;
            likely(word, &words).map(|likely| format!("did you mean `{likely}`?"))
        }
        _ => None,
    }
}

/// The words that a part of the schema allows.
fn words(schema: &Value) -> Vec<String> {
    let own = schema.get("const").into_iter().chain(schema.get("enum").and_then(Value::as_array).into_iter().flatten());
    let mut words: Vec<String> = own.filter_map(Value::as_str).map(str::to_owned).collect();
    for branches in ["anyOf", "oneOf"] {
        words.extend(schema.get(branches).and_then(Value::as_array).into_iter().flatten().flat_map(self::words));
    }
    words
}

/// The word that was likely meant.
pub fn likely<'a>(written: &str, words: &'a [String]) -> Option<&'a String> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    let alike = words.iter().map(|word| (strsim::jaro_winkler(&written, word), word));
    alike.filter(|(likeness, _)| *likeness >= LIKENESS).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml;

    fn faults(text: &str) -> Vec<String> {
        let (mut source, mut faults) = yaml::read("a.yaml", text).expect("a tree");
        faults.extend(check(&mut source, Kind::Main));
        faults.sort_by_key(|fault| fault.line);
        faults.iter().map(ToString::to_string).collect()
    }

    const FRONT: &str =
        "listeners: [{ name: a, bind: \"127.0.0.1:0\" }]\nupstreams: [{ name: b, endpoints: [\"c:1\"] }]\n";

    #[test]
    fn an_unknown_key_is_told_from_one_that_is_not_in_this_version() {
        let found = faults(&format!("{FRONT}upgrade_socket: x\nshutdwn: {{}}\nshutdown: {{ drian: 1s }}\nxyzzy: 1\n"));
        assert_eq!(found[0], "a.yaml:3: upgrade_socket: this key is not in this version");
        assert!(found[1].starts_with("a.yaml:4: shutdwn: unknown key; allowed: version, listeners, "), "{found:?}");
        assert!(found[1].ends_with("hint: did you mean `shutdown`?"), "{found:?}");
        assert_eq!(
            found[2],
            "a.yaml:5: shutdown.drian: unknown key; allowed: delay, drain, spread; hint: did you mean `drain`?"
        );
        assert!(!found[3].contains("hint"), "{found:?}");
    }

    #[test]
    fn values_that_are_not_in_this_version_are_named() {
        let found = faults(
            "listeners: [{ name: a, bind: \"unix:/x\" }]\n\
             upstreams: [{ name: b, endpoints: [\"unix:/x\"] }]\n\
             admin: { bind: \"unix:/x\" }\nprobes: { bind: \"unix:/x\" }\n\
             rules: [{ name: r, upstream: b }]\n",
        );
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found.iter().all(|fault| fault.contains("is not in this version")), "{found:#?}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_says_what_is_allowed() {
        let found = faults(&format!(
            "{FRONT}shutdown: {{ drain: 25 }}\ndefaults:\n  keepalive: {{ timeout: 30x, sides: [clinet] }}\n  \
             slow_client: of\n  message: {{ utf8: true }}\n  websocket: requir\n  origin: off\n  idle_timeout:\n"
        ));
        let span = "a duration with its unit, such as \"250ms\", \"30s\", \"5m\" or \"1h\"";
        let expected = [
            format!("a.yaml:3: shutdown.drain: 25; allowed: {span}; hint: write the unit"),
            format!("a.yaml:5: defaults.keepalive.timeout: \"30x\"; allowed: {span}"),
            "a.yaml:5: defaults.keepalive.sides[0]: \"clinet\"; allowed: client, upstream; hint: did you mean `client`?"
                .to_owned(),
            "a.yaml:6: defaults.slow_client: \"of\"; allowed: a mapping with timeout, min_rate, max_queue_messages, max_queue_bytes, or `off`; hint: did you \
             mean `off`?"
                .to_owned(),
            "a.yaml:7: defaults.message.utf8: true; allowed: on, off; hint: write `on`".to_owned(),
            "a.yaml:8: defaults.websocket: \"requir\"; allowed: allow, require, deny; hint: did you mean `require`?"
                .to_owned(),
            "a.yaml:9: defaults.origin: \"off\"; allowed: a mapping with allow, missing; hint: `origin: { allow: any }` \
             allows every page"
                .to_owned(),
            format!("a.yaml:10: defaults.idle_timeout: nothing; allowed: {span}, or `off`; hint: leave the key out for its default"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_must_be_written_is_missed() {
        let found = faults("rules: [{ upstream: a }]\nlisteners: []\n");
        let keys: Vec<&str> = found.iter().filter_map(|fault| fault.split(": ").nth(1)).collect();
        assert_eq!(keys, ["upstreams", "rules[0].name", "listeners"], "{found:#?}");
    }

    #[test]
    fn every_key_of_the_schema_is_described_with_its_default() {
        fn visit(schema: &Value, path: &str, seen: &mut usize) {
            for (key, value) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let path = format!("{path}.{key}");
                let text = value.get("description").and_then(Value::as_str).unwrap_or_default();
                let is_mapping = value.get("properties").is_some();
                assert!(is_mapping || text.contains("efault") || text.contains("Required"), "{path}: {text:?}");
                *seen += 1;
                visit(value, &path, seen);
                visit(value.get("items").unwrap_or(&Value::Null), &path, seen);
            }
            for branch in schema.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
                visit(branch, path, seen);
            }
        }
        let mut seen = 0;
        visit(&schema(), "", &mut seen);
        assert!(seen > 100, "{seen}");
        let text = schema().to_string();
        assert!(!text.contains("null") && !text.contains("upgrade_socket"), "{text}");
    }
}
