//! Configuration files: read, checked as a whole, and made into a [`Config`] that cannot hold an invalid value.
//!
//! A file goes through `yaml` (values and lines), `variables`, `unsupported` and `shape` (the JSON Schema made from
//! `raw`), each of which prunes what it finds at fault, and then with its rule files through `build` (names, ranges,
//! defaults). So every fault of every file is told at once.

mod build;
mod build_backplane;
mod build_channels;
mod build_nats;
mod build_proxy;
mod build_rabbitmq;
mod build_redis;
mod build_rule;
mod build_tls;
mod effective;
pub mod fault;
mod files;
mod key_path;
pub mod model;
mod ranges;
mod raw;
mod raw_backplane;
mod raw_proxy;
mod raw_rule;
mod raw_tls;
mod shape;
mod simple;
pub mod units;
mod unsupported;
mod variables;
mod warnings;
mod yaml;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use crate::policy::token::Token;
pub use build::{DEFAULT_ADMIN, check_endpoint};
pub use effective::Effective;
pub use fault::{ConfigFault, Warning};
pub use model::{
    AccessLog, Action, Admin, Backplane, BackplaneMode, Balance, Bind, CompressionMode, Config, EngineKind,
    GripSignature, HeadLimits, HttpLimits, Limits, Listener, NatsAccess, PerIp, Publish, RedisAccess, Respond, Rule,
    Shutdown, Sticky, Upstream, UpstreamTls, WebSocketMode,
};
pub use shape::schema;
pub use simple::{AdminBind, simple};
pub use units::parse_duration;
pub use variables::Environment;

use key_path::KeyPath;
use shape::Kind;
use yaml::{MAX_FILE_BYTES, Source};

/// A sound configuration, and what is dangerous about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is legal and dangerous.
    pub warnings: Vec<Warning>,
}

/// A file without faults.
#[derive(Clone, Debug)]
pub enum Checked {
    /// A main file, with the rule files that it names.
    Main(Box<Loaded>),
    /// A file of rules alone: the names of listeners and upstreams in it were not checked.
    Rules {
        /// How many rules it has.
        rules: usize,
    },
}

/// A file's text under its name.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// The name in faults and warnings.
    pub name: &'a str,
    /// What is in the file.
    pub text: &'a str,
}

/// Reads a main file and the rule files that it names, with the variables of the process.
///
/// # Errors
/// Every fault of every file at once.
pub fn load(path: &Path) -> Result<Loaded, Vec<ConfigFault>> {
    load_text(path, &read_text(path)?)
}

/// Checks a file of either kind, with the variables of the process.
///
/// # Errors
/// Every fault at once; of a main file those of the rule files that it names too.
pub fn check(path: &Path) -> Result<Checked, Vec<ConfigFault>> {
    let text = read_text(path)?;
    let name = path.display().to_string();
    if let Ok((source, _)) = yaml::read(&name, &text)
        && let Some(rules) = rules_alone(&source.tree)
    {
        return check_rules(Text { name: &name, text: &text }, &of_process).map(|()| Checked::Rules { rules });
    }
    load_text(path, &text).map(|loaded| Checked::Main(Box::new(loaded)))
}

/// How many rules a file has that has nothing of a main file.
fn rules_alone(tree: &serde_json::Value) -> Option<usize> {
    let is_main = ["version", "listeners", "upstreams"].iter().any(|key| tree.get(key).is_some());
    let rules = tree.get("rules").filter(|_| !is_main)?;
    Some(rules.as_array().map_or(0, Vec::len))
}

/// The variables of the process.
fn of_process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn load_text(path: &Path, text: &str) -> Result<Loaded, Vec<ConfigFault>> {
    let name = path.display().to_string();
    let mut faults = Vec::new();
    let main = open(Text { name: &name, text }, Kind::Main, &of_process, &mut faults);
    let Some(main) = main else { return Err(faults) };
    let mut rule_files = Vec::new();
    for path in rule_paths(path, &main, &mut faults) {
        let name = path.display().to_string();
        match read_text(&path) {
            Ok(text) => {
                rule_files.extend(open(Text { name: &name, text: &text }, Kind::Rules, &of_process, &mut faults));
            }
            Err(refused) => faults.extend(refused),
        }
    }
    finish(&main, &rule_files, faults)
}

/// Reads a main file and rule files from text. `rule_files` are those that the main file's own key would name.
///
/// # Errors
/// Every fault of every text at once.
pub fn parse(
    main: Text<'_>,
    rule_files: &[Text<'_>],
    environment: Environment<'_>,
) -> Result<Loaded, Vec<ConfigFault>> {
    let mut faults = Vec::new();
    let opened = open(main, Kind::Main, environment, &mut faults);
    let rule_files: Vec<Source> =
        rule_files.iter().filter_map(|text| open(*text, Kind::Rules, environment, &mut faults)).collect();
    match opened {
        Some(main) => finish(&main, &rule_files, faults),
        None => Err(faults),
    }
}

/// Checks a file of rules alone, without the names of listeners and upstreams.
///
/// # Errors
/// Every fault at once.
pub fn check_rules(text: Text<'_>, environment: Environment<'_>) -> Result<(), Vec<ConfigFault>> {
    let mut faults = Vec::new();
    if let Some(source) = open(text, Kind::Rules, environment, &mut faults) {
        build::check_rules(&source, &mut faults);
    }
    if faults.is_empty() { Ok(()) } else { Err(in_order(faults)) }
}

/// Reads one file as far as it can be read.
fn open(text: Text<'_>, kind: Kind, environment: Environment<'_>, faults: &mut Vec<ConfigFault>) -> Option<Source> {
    match yaml::read(text.name, text.text) {
        Ok((mut source, duplicates)) => {
            faults.extend(duplicates);
            faults.extend(variables::replace(&mut source, environment));
            faults.extend(shape::check(&mut source, kind));
            Some(source)
        }
        Err(refused) => {
            faults.extend(refused);
            None
        }
    }
}

fn finish(main: &Source, rule_files: &[Source], mut faults: Vec<ConfigFault>) -> Result<Loaded, Vec<ConfigFault>> {
    match build::build(main, rule_files, &mut faults) {
        Some((config, warnings)) if faults.is_empty() => Ok(Loaded { config, warnings }),
        _ => Err(in_order(faults)),
    }
}

/// Faults by file, in the order in which the files were read, and by line; a fault of `defaults` that several rules
/// meet once.
fn in_order(faults: Vec<ConfigFault>) -> Vec<ConfigFault> {
    let mut files: Vec<String> = Vec::new();
    let mut unique: Vec<(usize, ConfigFault)> = Vec::with_capacity(faults.len());
    for fault in faults {
        let file = files.iter().position(|file| *file == fault.file).unwrap_or_else(|| {
            files.push(fault.file.clone());
            files.len() - 1
        });
        if !unique.iter().any(|(_, seen)| *seen == fault) {
            unique.push((file, fault));
        }
    }
    unique.sort_by_key(|(file, fault)| (*file, fault.line));
    unique.into_iter().map(|(_, fault)| fault).collect()
}

fn read_text(path: &Path) -> Result<String, Vec<ConfigFault>> {
    let fault = |line, found: String, allowed: &str| {
        let (file, allowed) = (path.display().to_string(), allowed.to_owned());
        vec![ConfigFault { file, line, path: String::new(), found, allowed, hint: None }]
    };
    let file = std::fs::File::open(path).map_err(|error| fault(0, format!("cannot be read: {error}"), ""))?;
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that a larger file is seen as one, and an endless one ends.
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|error| fault(0, format!("cannot be read: {error}"), ""))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(fault(0, "more than 1 MiB".to_owned(), "at most 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        fault(line, "bytes that are not UTF-8".to_owned(), "UTF-8 text")
    })
}

/// The files that `rule_files` names, in the order of their names, each once.
fn rule_paths(main_path: &Path, main: &Source, faults: &mut Vec<ConfigFault>) -> BTreeSet<PathBuf> {
    let folder = main_path.parent().unwrap_or(Path::new(""));
    let patterns = main.tree.get("rule_files").and_then(serde_json::Value::as_array);
    // Hidden files are those of editors and of Kubernetes' mounts.
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let mut paths = BTreeSet::new();
    for (index, pattern) in patterns.into_iter().flatten().enumerate() {
        let Some(pattern) = pattern.as_str() else { continue };
        let key = KeyPath::default().key("rule_files").index(index);
        let escaped = glob::Pattern::escape(&folder.to_string_lossy());
        // `join` lets an absolute pattern stand for itself.
        let whole = Path::new(&escaped).join(pattern);
        let found = match glob::glob_with(&whole.to_string_lossy(), options) {
            Ok(found) => found.flatten().filter(|path| !path.is_dir()).collect::<Vec<_>>(),
            Err(error) => {
                faults.push(main.fault(&key, format!("{pattern:?}"), format!("a path or pattern ({error})")));
                continue;
            }
        };
        if found.is_empty() {
            let allowed = "a path or pattern that names at least one file, relative to this file";
            faults.push(main.fault(&key, format!("{pattern:?}, which no file matches"), allowed));
        }
        paths.extend(found);
    }
    paths
}

#[cfg(test)]
mod tests;
