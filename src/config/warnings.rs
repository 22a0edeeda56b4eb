//! What is legal and dangerous.

use std::time::Duration;

use super::build_rule::Place;
use super::fault::Warning;
use super::key_path::KeyPath;
use super::model::{Config, EngineKind, Rule, Sticky, WebSocketMode};
use super::yaml::Source;
use crate::policy::client_address::Peer;

/// The idle timeouts of hops in front: 60 s in nginx and in AWS load balancers.
const HOP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The shortest idle timeout that does not cut sessions which are only quiet.
const SHORT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// All warnings about a configuration; `places` has those of its rules.
pub fn all(config: &Config, main: &Source, places: &[(&Source, KeyPath)]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |source: &Source, path: &KeyPath, message: &str| {
        warnings.push(Warning {
            file: source.name.clone(),
            line: source.line(path),
            path: path.to_string(),
            message: message.to_owned(),
        });
    };
    let root = KeyPath::default();
    let anybody = ["192.0.2.1", "2001:db8::1"].iter().filter_map(|text| text.parse().ok());
    if anybody.map(Peer::Ip).any(|peer| config.trusted_proxies.contains(peer)) {
        let message =
            "nearly every peer is trusted, so clients choose their own address and every per-IP limit is void";
        warn(main, &root.key("trusted_proxies"), message);
    }
    if config.shutdown.spread > config.shutdown.drain && main.has(&root.join("shutdown.spread")) {
        warn(
            main,
            &root.join("shutdown.spread"),
            "longer than `drain`, so the last sessions are cut without a Close frame",
        );
    }
    if config.backplane.as_ref().is_some_and(|backplane| matches!(backplane.engine, EngineKind::Nats(_))) {
        warn(
            main,
            &root.join("backplane.engine"),
            "nats: unless its `sync_interval` says otherwise, the server writes to its disk every minute or two, so a \
             power failure there takes entries that publishers were told are stored",
        );
    }
    if config.backplane.as_ref().is_some_and(|backplane| matches!(backplane.engine, EngineKind::RabbitMq(_))) {
        warn(
            main,
            &root.join("backplane.engine.rabbitmq"),
            "RabbitMQ stores every copy of a publication: gateways drop those within `dedupe_window` as they deliver, \
             while they have room for its ids; `history` is a bound of each gateway's, and a new stream keeps 1 GiB",
        );
    }
    for (index, upstream) in config.upstreams.iter().enumerate() {
        if !config.rules.iter().any(|rule| rule.action.upstream() == Some(index)) {
            let message = format!("no rule uses the upstream `{}`", upstream.name);
            warn(main, &root.key("upstreams").index(index), &message);
        }
    }
    for (rule, (source, path)) in config.rules.iter().zip(places) {
        let place = Place { source, path, main };
        // What is answered here has no sessions and no backend.
        if rule.action.upstream().is_none() {
            continue;
        }
        for (key, message) in of_rule(rule, config).into_iter().chain(of_stickiness(rule, &place)) {
            let (source, path) = place.locate(key);
            warn(source, &path, message);
        }
    }
    let mut unique: Vec<Warning> = Vec::with_capacity(warnings.len());
    for warning in warnings {
        if !unique.contains(&warning) {
            unique.push(warning);
        }
    }
    unique
}

/// The keys of a rule that are dangerous, and why.
fn of_rule(rule: &Rule, config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let mut when = |dangerous: bool, key, message| {
        if dangerous {
            found.push((key, message));
        }
    };
    when(rule.report_only, "enforcement", "report: the policies of the rule count and log, and refuse nothing");
    if rule.websocket != WebSocketMode::Deny {
        when(rule.origin.is_any(), "origin.allow", "every page may open a WebSocket here with its visitors' cookies");
        when(
            rule.origin.relies_on_same_origin() && !names_hosts(rule, config),
            "origin",
            "same_origin is relied on and neither the rule nor its listener names hosts: a page that rebinds its own \
             DNS name to this address passes; write `hosts`",
        );
        when(
            rule.keepalive.is_none(),
            "keepalive",
            "off: hops in front close idle sessions, and dead ones stay for ever",
        );
        when(rule.slow_client.is_none(), "slow_client", "off: a client that never reads holds its session for ever");
        when(rule.message.max_size_bytes.is_none(), "message.max_size", "off: a client's message has no bound");
        when(!rule.message.utf8, "message.utf8", "off: text that is not UTF-8 reaches peers that may not check it");
    }
    when(
        rule.keepalive.as_ref().is_some_and(|keepalive| keepalive.interval >= HOP_IDLE_TIMEOUT),
        "keepalive.interval",
        "60s or longer: many hops close idle sessions after 60s",
    );
    when(
        rule.idle_timeout.is_some_and(|timeout| timeout < SHORT_IDLE_TIMEOUT),
        "idle_timeout",
        "under 1h: sessions that are only quiet are closed",
    );
    when(rule.handshake_per_ip.is_none(), "handshake.per_ip", "off: one address may open handshakes without bound");
    when(rule.connections_per_ip.is_none(), "connections.per_ip", "off: one address may take all sessions of the rule");
    when(rule.connections_total.is_none(), "connections.total", "off: the rule may take all sessions of the process");
    found
}

fn of_stickiness(rule: &Rule, place: &Place<'_>) -> Vec<(&'static str, &'static str)> {
    let Some(Sticky::Cookie(cookie)) = &rule.sticky else { return Vec::new() };
    let mut found = Vec::new();
    if !place.is_written("sticky.cookie.secret_files") {
        let message = "no secret_files: the process makes its own secret, so its cookies outlive no restart and hold \
                       at no other gateway";
        found.push(("sticky.cookie", message));
    }
    if cookie.is_dropped() {
        found.push(("sticky.cookie.same_site", "`none` without `secure`: browsers drop the cookie"));
    }
    found
}

fn names_hosts(rule: &Rule, config: &Config) -> bool {
    let names = rule.matcher.listeners();
    let mut listeners = config.listeners.iter().filter(|listener| names.is_empty() || names.contains(&listener.name));
    rule.matcher.names_hosts() || listeners.all(|listener| listener.hosts.is_some())
}
