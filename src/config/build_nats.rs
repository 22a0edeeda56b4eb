//! From what the user wrote about NATS to what the program uses.

use super::build::Report;
use super::key_path::KeyPath;
use super::model::NatsAccess;
use super::raw_backplane::RawNats;
use super::units::Count;
use super::{build_redis, ranges};
use crate::backplane::nats::Credentials;
use crate::policy::{Fault, range};

/// The most URLs of a list.
const MAX_URLS: usize = 64;

pub(super) fn build(raw: &RawNats, base: &KeyPath, report: &mut Report<'_>) -> Option<NatsAccess> {
    let urls = urls(raw, base, report);
    let credentials = credentials(raw, base, report);
    let replicas = raw.replicas.unwrap_or(Count(1));
    report.extend(base, range::count("replicas", replicas.0, &ranges::NATS_REPLICAS));
    Some(NatsAccess { urls: urls?, credentials: credentials?, replicas: ranges::to_usize(replicas) })
}

fn urls(raw: &RawNats, base: &KeyPath, report: &mut Report<'_>) -> Option<Vec<String>> {
    // What was pruned has its fault already, and is not missing.
    let is_written = |key: &str| report.source.has(&base.key(key));
    match (is_written("url"), is_written("urls")) {
        (false, false) => {
            report.extend(base, Some(Fault::new("url", "this key is missing", "one of `url` and `urls`")));
            return None;
        }
        (true, true) => {
            report.extend(base, Some(Fault::new("urls", "this beside `url`", "only one of `url` and `urls`")));
            return None;
        }
        _ => {}
    }
    if let Some(url) = &raw.url {
        return is_url("url", url, base, report).then(|| vec![url.clone()]);
    }
    let urls = raw.urls.as_ref()?;
    if !(1..=MAX_URLS).contains(&urls.len()) {
        let allowed = format!("1 to {MAX_URLS} URLs");
        report.extend(base, Some(Fault::new("urls", format!("a list of {}", urls.len()), allowed)));
        return None;
    }
    let mut sound = true;
    let over_tls = |url: &str| url.starts_with("tls:");
    for (nth, url) in urls.iter().enumerate() {
        let key = format!("urls[{nth}]");
        if !is_url(&key, url, base, report) {
            sound = false;
        } else if urls.first().is_some_and(|first| over_tls(first) != over_tls(url)) {
            let allowed = "a URL that begins as the first does, with nats:// or tls://";
            report.extend(base, Some(Fault::new(key, format!("{url:?}"), allowed)));
            sound = false;
        }
    }
    sound.then(|| urls.clone())
}

fn is_url(key: &str, url: &str, base: &KeyPath, report: &mut Report<'_>) -> bool {
    let rest = url.strip_prefix("nats://").or_else(|| url.strip_prefix("tls://"));
    if rest.is_some_and(|rest| !rest.is_empty()) && !url.contains('@') {
        return true;
    }
    let allowed = "nats://HOST:PORT or tls://HOST:PORT, without a user or password";
    // What stands before an @ may be a secret.
    let found = if url.contains('@') { "a URL with a user".to_owned() } else { format!("{url:?}") };
    report.extend(base, Some(Fault::new(key, found, allowed)));
    false
}

fn credentials(raw: &RawNats, base: &KeyPath, report: &mut Report<'_>) -> Option<Credentials> {
    let username = raw.username.clone();
    let Some(file) = raw.password_file.as_deref() else { return Some(Credentials { username, password: None }) };
    if username.is_none() {
        let fault = Fault::new("password_file", format!("{file:?}"), "a `username` beside it");
        report.extend(base, Some(fault));
        return None;
    }
    let password = build_redis::password(file, base, report)?;
    Some(Credentials { username, password: Some(password) })
}
