//! A rule, from what the user wrote over `defaults` over our own defaults.

use std::time::Duration;

use serde_json::Value;

use super::build_proxy;
use super::fault::ConfigFault;
use super::key_path::{KeyPath, shown};
use super::model::{Action, BackplaneMode, CompressionMode, PerIp, Rule, WebSocketMode};
use super::ranges;
use super::raw::OrOff;
use super::raw_backplane::RawRuleBackplane;
use super::raw_rule::{
    RawAllow, RawCompression, RawConnections, RawControlRate, RawEnforcement, RawHandshakeRate, RawKeepalive, RawMatch,
    RawMessage, RawMessageRate, RawMissing, RawOrigin, RawRule, RawSide, RawSlowClient, RawSwitch, RawWebSocket,
};
use super::shape::likely;
use super::units::{ByteRate, Count, Rate, Size, Span};
use super::yaml::Source;
use crate::backplane::hub::InboxLimit;
use crate::policy::headers::Of;
use crate::policy::origin::{Allow, OriginPolicy};
use crate::policy::route::{MatchSpec, Matcher, PathSpec};
use crate::policy::{Fault, handshake_limit, keepalive, message, range, slow_client};

const HANDSHAKE_RATE: Rate = Rate::per_second(10);
const HANDSHAKE_BURST: Count = Count(20);
const UPSTREAM_TIMEOUT: Span = Span(Duration::from_secs(10));
const CONNECTIONS_PER_IP: Count = Count(200);
const CONNECTIONS_TOTAL: Count = Count(20_000);
/// Where the default of a message rate's burst ends, which is where its range does.
const MAX_BURST: u64 = 1_000_000;
const MAX_SIZE: Size = Size(1 << 20);
const MAX_FRAGMENTS: Count = Count(1024);
const MAX_RATIO: Count = Count(200);
const CONTROL_RATE: Rate = Rate::per_second(20);
const CONTROL_BURST: Count = Count(100);
const STALL_TIMEOUT: Span = Span(Duration::from_secs(60));
const MESSAGE_TIMEOUT: Span = Span(Duration::from_secs(600));
const UPSTREAM_MAX_SIZE: Size = Size(16 << 20);
const KEEPALIVE_INTERVAL: Span = Span(Duration::from_secs(25));
const KEEPALIVE_TIMEOUT: Span = Span(Duration::from_secs(30));
const SLOW_CLIENT_TIMEOUT: Span = Span(Duration::from_secs(30));
const SLOW_CLIENT_RATE: ByteRate = ByteRate(1024);
const CLOSE_TIMEOUT: Span = Span(Duration::from_secs(5));

/// The names that a rule may use; `None` when they are not known, as for a file of rules alone.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Of listeners.
    pub listeners: Option<&'a [String]>,
    /// Of upstreams.
    pub upstreams: Option<&'a [String]>,
}

/// Where a rule is written.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The file with the rule.
    pub source: &'a Source,
    /// The rule in that file.
    pub path: &'a KeyPath,
    /// The file with `defaults`.
    pub main: &'a Source,
}

impl<'a> Place<'a> {
    /// The file and path that a key's value comes from: the rule's, or that of `defaults`.
    pub fn locate(&self, key: &str) -> (&'a Source, KeyPath) {
        let path = self.path.join(key);
        let default = KeyPath::default().key("defaults").join(key);
        // `message: off` in a rule takes the place of all that `defaults` has below `message`.
        let first = self.path.key(key.split('.').next().unwrap_or_default());
        let is_whole = first.value(&self.source.tree).is_some_and(|value| !value.is_object());
        let is_default = !is_whole && !self.source.has(&path) && self.main.has(&default);
        if is_default { (self.main, default) } else { (self.source, path) }
    }

    /// Whether the rule or `defaults` names a key.
    pub fn is_written(&self, key: &str) -> bool {
        let (source, path) = self.locate(key);
        source.has(&path)
    }

    /// A policy's fault as one of the file, with the value as it is written there.
    fn fault(&self, policy: &str, fault: Fault) -> ConfigFault {
        let key = match (policy, fault.key) {
            ("", key) => key,
            (policy, key) if key.is_empty() => policy.to_owned(),
            (policy, key) => format!("{policy}.{key}"),
        };
        let (source, path) = self.locate(&key);
        let found = path.value(&source.tree).map_or(fault.found, shown);
        source.fault(&path, found, fault.allowed)
    }
}

/// What `defaults` has under what the rule has, leaf by leaf; lists whole.
pub fn merge(defaults: &Value, rule: &Value) -> Value {
    match (defaults, rule) {
        (Value::Object(defaults), Value::Object(rule)) => {
            let mut merged = defaults.clone();
            for (key, value) in rule {
                let value = defaults.get(key).map_or_else(|| value.clone(), |default| merge(default, value));
                merged.insert(key.clone(), value);
            }
            Value::Object(merged)
        }
        (_, rule) => rule.clone(),
    }
}

/// What `defaults` has under a rule. Of what excludes each other, the rule's own stands alone.
pub fn merge_rule(defaults: &Value, rule: &Value) -> Value {
    let mut merged = merge(defaults, rule);
    for (one, other) in [("cookie", "hash"), ("hash", "cookie")] {
        let own = rule.get("sticky");
        if own.is_some_and(|own| own.get(one).is_some() && own.get(other).is_none())
            && let Some(Value::Object(sticky)) = merged.get_mut("sticky")
        {
            sticky.shift_remove(other);
        }
    }
    merged
}

/// Makes a rule. With faults there is none, or one that stands in for it.
pub fn build(raw: RawRule, place: &Place<'_>, names: Names<'_>, faults: &mut Vec<ConfigFault>) -> Option<Rule> {
    let mut found = Found::new();
    let upstream = upstream_index(raw.upstream.as_deref(), names.upstreams, &mut found);
    let action = match (raw.redirect, raw.respond) {
        (Some(raw), _) => build_proxy::redirect(&raw, &mut found).map(Action::Redirect),
        (None, Some(raw)) => build_proxy::respond(raw, place, &mut found).map(Action::Respond),
        (None, None) => Some(Action::Upstream(upstream)),
    };
    let rewrite = build_proxy::rewrite(raw.rewrite, place, &mut found);
    let clients = build_proxy::clients(raw.clients, place, &mut found);
    let sticky = build_proxy::sticky(raw.sticky, place, &mut found);
    let request_headers = build_proxy::headers("request_headers", Of::Requests, raw.request_headers, place, &mut found);
    let response_headers =
        build_proxy::headers("response_headers", Of::Responses, raw.response_headers, place, &mut found);
    let http = build_proxy::http(&raw.http, &mut found);
    let matcher = matcher(raw.matching, names.listeners, &mut found);
    let origin = origin(raw.origin, &mut found);
    let handshake = handshake_rate(raw.handshake.per_ip, &mut found);
    let (per_ip, connections_total) = connections(raw.connections, &mut found);
    let upstream_timeout = raw.handshake.upstream_timeout.unwrap_or(UPSTREAM_TIMEOUT).0;
    let idle_timeout = raw.idle_timeout.and_then(|value| value.on().copied()).map(|span| span.0);
    let close_timeout = raw.close_timeout.unwrap_or(CLOSE_TIMEOUT).0;
    let spans = [
        range::span("handshake.upstream_timeout", upstream_timeout, &ranges::UPSTREAM_TIMEOUT),
        idle_timeout.and_then(|value| range::span("idle_timeout", value, &ranges::IDLE_TIMEOUT)),
        range::span("close_timeout", close_timeout, &ranges::CLOSE_TIMEOUT),
    ];
    found.extend(spans.into_iter().flatten().map(|fault| ("", fault)));
    let message = message(raw.message, &mut found);
    let keepalive = whole(raw.keepalive).map(|raw| keepalive(&raw, &mut found));
    let backplane = match raw.backplane {
        None | Some(RawRuleBackplane::Off) => None,
        Some(RawRuleBackplane::Grip) => Some(BackplaneMode::Grip),
        Some(RawRuleBackplane::GripHttp) => Some(BackplaneMode::GripHttp),
    };
    if backplane.is_some() && matches!(raw.compression, Some(RawCompression::Passthrough)) {
        let allowed = "terminate or refuse, since a rule with a backplane reads what the backend sends";
        found.push(("", Fault::new("compression", "passthrough", allowed)));
    }
    let queue = queue(raw.slow_client.as_ref().and_then(OrOff::on), &mut found);
    let slow_client = whole(raw.slow_client).map(|raw| slow_client(&raw, &mut found));
    faults.extend(found.into_iter().map(|(policy, fault)| {
        let fault = place.fault(policy, fault);
        ConfigFault { hint: unknown_name_hint(&fault, names), ..fault }
    }));
    let handshake_written = place.is_written("handshake.per_ip");
    let connections_written = place.is_written("connections.per_ip");
    Some(Rule {
        name: raw.name.unwrap_or_default(),
        matcher: matcher?,
        action: action?,
        rewrite,
        report_only: raw.enforcement == Some(RawEnforcement::Report),
        clients,
        sticky,
        request_headers,
        response_headers,
        http,
        websocket: match raw.websocket {
            None | Some(RawWebSocket::Allow) => WebSocketMode::Allow,
            Some(RawWebSocket::Require) => WebSocketMode::Require,
            Some(RawWebSocket::Deny) => WebSocketMode::Deny,
        },
        origin: origin?,
        handshake_per_ip: handshake.map(|limit| PerIp { limit, written: handshake_written }),
        upstream_timeout,
        connections_per_ip: per_ip.map(|limit| PerIp { limit, written: connections_written }),
        connections_total,
        message,
        compression: match raw.compression {
            None if backplane.is_some() => CompressionMode::Terminate,
            None | Some(RawCompression::Passthrough) => CompressionMode::Passthrough,
            Some(RawCompression::Terminate) => CompressionMode::Terminate,
            Some(RawCompression::Refuse) => CompressionMode::Refuse,
        },
        keepalive,
        idle_timeout,
        slow_client,
        close_timeout,
        backplane,
        queue,
    })
}

/// Faults with the policy that each is of; the name of none is empty.
pub type Found = Vec<(&'static str, Fault)>;

/// A policy as a whole: `None` when it is off, its defaults when it is not written.
fn whole<T: Default>(value: Option<OrOff<T>>) -> Option<T> {
    match value {
        None => Some(T::default()),
        Some(OrOff::Off(_)) => None,
        Some(OrOff::On(value)) => Some(value),
    }
}

/// A leaf that can be off.
fn or_default<T: Copy>(value: Option<OrOff<T>>, default: T) -> Option<T> {
    value.map_or(Some(default), |value| value.on().copied())
}

fn upstream_index(name: Option<&str>, known: Option<&[String]>, found: &mut Found) -> usize {
    let (Some(name), Some(known)) = (name, known) else { return 0 };
    known.iter().position(|upstream| upstream == name).unwrap_or_else(|| {
        found.push(("", Fault::new("upstream", format!("{name:?}"), format!("an upstream: {}", known.join(", ")))));
        0
    })
}

fn unknown_name_hint(fault: &ConfigFault, names: Names<'_>) -> Option<String> {
    let known = if fault.path.ends_with(".upstream") {
        names.upstreams
    } else if fault.path.contains(".match.listeners") {
        names.listeners
    } else {
        None
    };
    likely(fault.found.trim_matches('"'), known?).map(|likely| format!("did you mean `{likely}`?"))
}

fn matcher(raw: RawMatch, known: Option<&[String]>, found: &mut Found) -> Option<Matcher> {
    let listeners = raw.listeners.unwrap_or_default();
    for (index, name) in listeners.iter().enumerate() {
        if known.is_some_and(|known| !known.contains(name)) {
            let allowed = format!("a listener: {}", known.unwrap_or_default().join(", "));
            found.push(("match", Fault::new(format!("listeners[{index}]"), format!("{name:?}"), allowed)));
        }
    }
    let paths = [
        raw.path.map(|path| ("path", PathSpec::Exact(path))),
        raw.path_prefix.map(|path| ("path_prefix", PathSpec::Prefix(path))),
        raw.path_regex.map(|path| ("path_regex", PathSpec::Regex(path))),
    ];
    let mut paths = paths.into_iter().flatten();
    let path = paths.next().map(|(_, path)| path);
    for (key, path) in paths {
        let text = match &path {
            PathSpec::Exact(text) | PathSpec::Prefix(text) | PathSpec::Regex(text) => text,
        };
        found.push(("match", Fault::new(key, format!("{text:?}"), "only one of path, path_prefix and path_regex")));
        let alone = Matcher::new(MatchSpec { path: Some(path), ..MatchSpec::default() });
        found.extend(alone.err().into_iter().flatten().map(|fault| ("match", fault)));
    }
    let hosts = raw.hosts.unwrap_or_default();
    let matcher = Matcher::new(MatchSpec { listeners, hosts, path, headers: raw.headers.into_iter().collect() });
    matcher.map_err(|faults| found.extend(faults.into_iter().map(|fault| ("match", fault)))).ok()
}

fn origin(raw: RawOrigin, found: &mut Found) -> Option<OriginPolicy> {
    let allow = match raw.allow {
        None => Allow::List(vec!["same_origin".to_owned()]),
        Some(RawAllow::Any(_)) => Allow::Any,
        Some(RawAllow::List(list)) => Allow::List(list),
    };
    let policy = OriginPolicy::new(allow, raw.missing != Some(RawMissing::Deny));
    policy.map_err(|faults| found.extend(faults.into_iter().map(|fault| ("origin", fault)))).ok()
}

/// The limits per address and in total.
fn connections(raw: Option<OrOff<RawConnections>>, found: &mut Found) -> (Option<usize>, Option<usize>) {
    let Some(raw) = whole(raw) else { return (None, None) };
    let per_ip = or_default(raw.per_ip, CONNECTIONS_PER_IP);
    let total = or_default(raw.total, CONNECTIONS_TOTAL);
    for (key, value) in [("per_ip", per_ip), ("total", total)] {
        let fault = value.and_then(|value| range::count(key, value.0, &ranges::CONNECTIONS));
        found.extend(fault.map(|fault| ("connections", fault)));
    }
    (per_ip.map(ranges::to_usize), total.map(ranges::to_usize))
}

fn handshake_rate(raw: Option<OrOff<RawHandshakeRate>>, found: &mut Found) -> Option<handshake_limit::Rate> {
    let raw = whole(raw)?;
    let (rate, burst) = (raw.rate.unwrap_or(HANDSHAKE_RATE), raw.burst.unwrap_or(HANDSHAKE_BURST));
    let limit = handshake_limit::Rate::new(rate.count, rate.per, burst.0);
    limit.map_err(|faults| found.extend(faults.into_iter().map(|fault| ("handshake.per_ip", fault)))).ok()
}

fn message(raw: Option<OrOff<RawMessage>>, found: &mut Found) -> message::Settings {
    let Some(raw) = whole(raw) else {
        return message::Settings {
            max_size_bytes: None,
            max_fragments: None,
            max_ratio: None,
            messages: None,
            bytes: None,
            control: None,
            stall_timeout: None,
            timeout: None,
            utf8: false,
            upstream_max_size_bytes: None,
        };
    };
    let max_size_bytes = or_default(raw.max_size, MAX_SIZE).map(|size| size.0);
    let rate = raw.rate.and_then(|rate| match rate {
        OrOff::Off(_) => None,
        OrOff::On(rate) => Some(rate),
    });
    let rate = rate.unwrap_or_default();
    let bytes = rate.bytes.and_then(|bytes| bytes.on().copied()).map(|bytes| {
        // One message of the largest size must pass, however low the rate.
        message::Rate::per_second(bytes.0, bytes.0.max(max_size_bytes.unwrap_or_default()))
    });
    let settings = message::Settings {
        max_size_bytes,
        max_ratio: or_default(raw.max_ratio, MAX_RATIO).map(|count| u32::try_from(count.0).unwrap_or(u32::MAX)),
        max_fragments: or_default(raw.max_fragments, MAX_FRAGMENTS)
            .map(|count| u32::try_from(count.0).unwrap_or(u32::MAX)),
        messages: message_rate(&rate, found),
        bytes,
        control: control_rate(raw.control_rate),
        stall_timeout: or_default(raw.stall_timeout, STALL_TIMEOUT).map(|span| span.0),
        timeout: or_default(raw.timeout, MESSAGE_TIMEOUT).map(|span| span.0),
        utf8: raw.utf8 != Some(RawSwitch::Off),
        upstream_max_size_bytes: or_default(raw.upstream_max_size, UPSTREAM_MAX_SIZE).map(|size| size.0),
    };
    found.extend(settings.faults().into_iter().map(|fault| ("message", fault)));
    settings
}

fn message_rate(raw: &RawMessageRate, found: &mut Found) -> Option<message::Rate> {
    match (raw.messages.and_then(|messages| messages.on().copied()), raw.burst) {
        (None, None) => None,
        (None, Some(burst)) => {
            let fault = Fault::new("rate.burst", burst.to_string(), "a burst beside a rate: `messages: 100/s`");
            found.push(("message", fault));
            None
        }
        (Some(rate), burst) => {
            let twice = rate.count.saturating_mul(2).div_ceil(rate.per.as_secs().max(1)).clamp(1, MAX_BURST);
            Some(with_burst(rate, burst.unwrap_or(Count(twice))))
        }
    }
}

fn control_rate(raw: Option<OrOff<RawControlRate>>) -> Option<message::Rate> {
    let raw = whole(raw)?;
    Some(with_burst(raw.frames.unwrap_or(CONTROL_RATE), raw.burst.unwrap_or(CONTROL_BURST)))
}

fn with_burst(rate: Rate, burst: Count) -> message::Rate {
    message::Rate { count: rate.count, per: rate.per, burst: burst.0 }
}

fn keepalive(raw: &RawKeepalive, found: &mut Found) -> keepalive::Settings {
    let pings = |side| raw.sides.as_ref().is_none_or(|sides| sides.contains(&side));
    let settings = keepalive::Settings {
        interval: raw.interval.unwrap_or(KEEPALIVE_INTERVAL).0,
        timeout: raw.timeout.unwrap_or(KEEPALIVE_TIMEOUT).0,
        client: pings(RawSide::Client),
        upstream: pings(RawSide::Upstream),
    };
    found.extend(settings.faults().into_iter().map(|fault| ("keepalive", fault)));
    settings
}

fn queue(raw: Option<&RawSlowClient>, found: &mut Found) -> InboxLimit {
    let defaults = InboxLimit::default();
    let Some(raw) = raw else { return defaults };
    let max_messages = raw.max_queue_messages.unwrap_or(Count(defaults.max_messages as u64));
    let max_bytes = raw.max_queue_bytes.unwrap_or(Size(defaults.max_bytes as u64)).0;
    let faults = [
        range::count("max_queue_messages", max_messages.0, &ranges::QUEUE_MESSAGES),
        range::size("max_queue_bytes", max_bytes, &ranges::QUEUE_BYTES),
    ];
    found.extend(faults.into_iter().flatten().map(|fault| ("slow_client", fault)));
    InboxLimit { max_messages: ranges::to_usize(max_messages), max_bytes: ranges::to_usize(Count(max_bytes)) }
}

fn slow_client(raw: &RawSlowClient, found: &mut Found) -> slow_client::Settings {
    let settings = slow_client::Settings {
        timeout: raw.timeout.unwrap_or(SLOW_CLIENT_TIMEOUT).0,
        min_rate_bytes: raw.min_rate.unwrap_or(SLOW_CLIENT_RATE).0,
    };
    found.extend(settings.faults().into_iter().map(|fault| ("slow_client", fault)));
    settings
}
