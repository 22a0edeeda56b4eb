//! From what the user wrote about Redis to what the program uses.

use std::collections::BTreeSet;

use super::build::Report;
use super::files;
use super::key_path::KeyPath;
use super::model::{EngineKind, RedisAccess};
use super::raw_backplane::{RawIngest, RawRedis};
use crate::backplane::redis::{
    Credentials, IngestRule, List, ListError, MAX_GENERATION, MAX_SHARDS, MIN_SHARDS, Pattern, Servers, Shards,
};
use crate::policy::Fault;

/// The most URLs of a list.
const MAX_URLS: usize = 64;

/// The most kinds of streams that others fill: each channel's name is held against all of them.
const MAX_INGEST_RULES: usize = 64;

/// The ways to say which servers there are.
const SERVERS: [&str; 4] = ["url", "sentinel", "cluster", "shards"];

/// What is of shards alone.
const OF_SHARDS: [&str; 2] = ["generation", "gone"];

pub(super) fn build(raw: &RawRedis, base: &KeyPath, report: &mut Report<'_>) -> Option<RedisAccess> {
    let servers = servers(raw, base, report);
    let password = raw.password_file.as_deref();
    let credentials = credentials(raw.username.as_ref(), password, base, report);
    let sentinel_credentials = match &raw.sentinel {
        Some(raw) => {
            let password = raw.password_file.as_deref();
            self::credentials(raw.username.as_ref(), password, &base.key("sentinel"), report)
        }
        None => Some(Credentials::default()),
    };
    Some(RedisAccess { servers: servers?, credentials: credentials?, sentinel_credentials: sentinel_credentials? })
}

/// The streams that others fill, for an engine that has them.
pub(super) fn ingest(
    raw: &[RawIngest],
    engine: Option<&EngineKind>,
    base: &KeyPath,
    report: &mut Report<'_>,
) -> Vec<IngestRule> {
    let has_streams = match engine {
        // It has a fault already.
        None => true,
        Some(EngineKind::Memory | EngineKind::Nats(_) | EngineKind::RabbitMq(_)) => false,
        Some(EngineKind::Redis(access)) => !matches!(access.servers, Servers::Cluster { .. } | Servers::Shards(_)),
    };
    if !raw.is_empty() && !has_streams {
        let allowed = "only with an engine that is one Redis server, or a master that Sentinel names";
        report.extend(base, Some(Fault::new("ingest", "streams of a Redis", allowed)));
        return Vec::new();
    }
    if raw.len() > MAX_INGEST_RULES {
        let allowed = format!("at most {MAX_INGEST_RULES}");
        report.extend(base, Some(Fault::new("ingest", format!("a list of {}", raw.len()), allowed)));
        return Vec::new();
    }
    let base = base.key("ingest");
    raw.iter().enumerate().filter_map(|(nth, raw)| ingest_rule(raw, &base.index(nth), report)).collect()
}

fn ingest_rule(raw: &RawIngest, base: &KeyPath, report: &mut Report<'_>) -> Option<IngestRule> {
    let (written, data_field) = (raw.streams.as_deref()?, raw.data_field.clone()?);
    let is_ours = written.starts_with("sg:") || written.starts_with('*');
    let Some(streams) = Pattern::new(written).filter(|_| !is_ours) else {
        let allowed = "a key with at most one `*`, which does not begin with it or with `sg:`, as keys of ours do";
        report.extend(base, Some(Fault::new("streams", format!("{written:?}"), allowed)));
        return None;
    };
    let channel = raw.channel.as_deref().unwrap_or(written);
    let Some(channels) = Pattern::new(channel).filter(|of| of.has_star() == streams.has_star()) else {
        let allowed = "a channel's name with one `*` if `streams` has one, and none if it has none";
        report.extend(base, Some(Fault::new("channel", format!("{channel:?}"), allowed)));
        return None;
    };
    if data_field.is_empty() {
        report.extend(base, Some(Fault::new("data_field", "\"\"", "the name of a field")));
        return None;
    }
    Some(IngestRule { streams, channels, id_field: raw.id_field.clone().unwrap_or_default(), data_field })
}

fn servers(raw: &RawRedis, base: &KeyPath, report: &mut Report<'_>) -> Option<Servers> {
    // What was pruned has its fault already, and is not missing.
    let written: Vec<&str> = SERVERS.into_iter().filter(|key| report.source.has(&base.key(key))).collect();
    match written.as_slice() {
        [] => {
            let allowed = "one of `url`, `sentinel`, `cluster` and `shards`";
            report.extend(base, Some(Fault::new("url", "this key is missing", allowed)));
            return None;
        }
        [_] => {}
        [first, others @ ..] => {
            let allowed = "only one of `url`, `sentinel`, `cluster` and `shards`";
            let fault = |key: &&str| Fault::new(*key, format!("this beside `{first}`"), allowed);
            report.extend(base, others.iter().map(fault));
            return None;
        }
    }
    if written != ["shards"] {
        let alone = OF_SHARDS.into_iter().filter(|key| report.source.has(&base.key(key)));
        let faults: Vec<_> = alone.map(|key| Fault::new(key, "this without `shards`", "only with `shards`")).collect();
        if !faults.is_empty() {
            report.extend(base, faults);
            return None;
        }
    }
    if let Some(urls) = &raw.shards {
        return shards(raw, urls, base, report).map(Servers::Shards);
    }
    if let Some(url) = &raw.url {
        return is_url("url", url, base, report).then(|| Servers::Standalone { url: url.clone() });
    }
    if let Some(raw) = &raw.sentinel {
        let base = base.key("sentinel");
        let urls = urls(raw.urls.as_ref()?, &base, report);
        let master = raw.master.clone()?;
        if master.is_empty() {
            report.extend(&base, Some(Fault::new("master", "\"\"", "the name of a master")));
            return None;
        }
        return Some(Servers::Sentinel { urls: urls?, master });
    }
    let urls = urls(raw.cluster.as_ref()?.urls.as_ref()?, &base.key("cluster"), report)?;
    Some(Servers::Cluster { urls })
}

fn shards(raw: &RawRedis, urls: &[String], base: &KeyPath, report: &mut Report<'_>) -> Option<Shards> {
    let mut sound = true;
    let mut fault = |key: &str, found: String, allowed: String| {
        report.extend(base, Some(Fault::new(key, found, allowed)));
        sound = false;
    };
    let list = List::new(urls.iter().map(String::as_str));
    if let Err(error) = &list {
        let allowed = match error {
            ListError::Count(_) => format!("{MIN_SHARDS} to {MAX_SHARDS} URLs"),
            ListError::Url(_) => "redis://HOST:PORT or rediss://HOST:PORT, without a user, password or path".to_owned(),
            ListError::Twice(_) => "each server once".to_owned(),
        };
        fault("shards", told(error), allowed);
    }
    let generation = raw.generation.unwrap_or_default();
    if !(1..=MAX_GENERATION).contains(&generation) {
        let found = raw.generation.map_or_else(|| "this key is missing".to_owned(), |found| found.to_string());
        let allowed = format!("a number from 1 to {MAX_GENERATION}, higher with every change of `shards`");
        fault("generation", found, allowed);
    }
    let mut gone = BTreeSet::new();
    for url in raw.gone.iter().flatten() {
        match List::server(url) {
            Ok(server) if list.iter().flat_map(List::urls).any(|url| url == server) => {
                fault("gone", format!("{server:?}"), "no server that is in `shards`".to_owned());
            }
            Ok(server) => drop(gone.insert(server)),
            Err(error) => fault("gone", told(&error), "redis://HOST:PORT or rediss://HOST:PORT".to_owned()),
        }
    }
    if gone.len() > MAX_URLS {
        fault("gone", format!("a list of {}", gone.len()), format!("at most {MAX_URLS} URLs"));
    }
    list.ok().filter(|_| sound).map(|list| Shards { list, generation, gone })
}

/// Without what stands before an @, which may be a secret.
fn told(error: &ListError) -> String {
    match error {
        ListError::Url(url) if url.contains('@') => "a URL with a user".to_owned(),
        ListError::Url(url) => format!("{url:?}"),
        ListError::Count(count) => format!("a list of {count}"),
        ListError::Twice(name) => format!("{name} twice"),
    }
}

fn urls(urls: &[String], base: &KeyPath, report: &mut Report<'_>) -> Option<Vec<String>> {
    if !(1..=MAX_URLS).contains(&urls.len()) {
        let allowed = format!("1 to {MAX_URLS} URLs");
        report.extend(base, Some(Fault::new("urls", format!("a list of {}", urls.len()), allowed)));
        return None;
    }
    let mut sound = true;
    let over_tls = |url: &str| url.starts_with("rediss:");
    for (nth, url) in urls.iter().enumerate() {
        let key = format!("urls[{nth}]");
        if !is_url(&key, url, base, report) {
            sound = false;
        } else if urls.first().is_some_and(|first| over_tls(first) != over_tls(url)) {
            // Whether what these lead to is reached over TLS would depend on which of them answers.
            let allowed = "a URL that begins as the first does, with redis:// or rediss://";
            report.extend(base, Some(Fault::new(key, format!("{url:?}"), allowed)));
            sound = false;
        }
    }
    sound.then(|| urls.to_vec())
}

fn is_url(key: &str, url: &str, base: &KeyPath, report: &mut Report<'_>) -> bool {
    let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("rediss://"));
    if rest.is_some_and(|rest| !rest.is_empty()) && !url.contains('@') {
        return true;
    }
    let allowed = "redis://HOST:PORT or rediss://HOST:PORT, without a user or password";
    // What stands before an @ may be a secret.
    let found = if url.contains('@') { "a URL with a user".to_owned() } else { format!("{url:?}") };
    report.extend(base, Some(Fault::new(key, found, allowed)));
    false
}

fn credentials(
    username: Option<&String>,
    password_file: Option<&str>,
    base: &KeyPath,
    report: &mut Report<'_>,
) -> Option<Credentials> {
    let username = username.cloned();
    let Some(file) = password_file else { return Some(Credentials { username, password: None }) };
    password(file, base, report).map(|password| Credentials { username, password: Some(password) })
}

/// The text of a `password_file`.
pub(super) fn password(file: &str, base: &KeyPath, report: &mut Report<'_>) -> Option<String> {
    let read = files::read_secret(report.source, file);
    match read.and_then(|secret| String::from_utf8(secret).map_err(|_| "it is not text".to_owned())) {
        Ok(password) => Some(password),
        Err(why) => {
            let allowed = format!("a file that can be read ({why})");
            report.extend(base, Some(Fault::new("password_file", format!("{file:?}"), allowed)));
            None
        }
    }
}
