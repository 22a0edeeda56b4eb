//! From what the user wrote to what the program uses: names resolved, values in range, defaults filled in.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::HeaderName;
use serde_json::Value;

use super::build_rule::{self, Names, Place, merge_rule};

use super::fault::{ConfigFault, Warning};
use super::key_path::KeyPath;
use super::model::{
    AccessLog, Admin, Backplane, Balance, Bind, Config, HeadLimits, Limits, Listener, Rule, Shutdown, Upstream,
};
use super::raw::{
    OrOff, RawAccessLog, RawAddressList, RawAdmin, RawBalance, RawClientAddress, RawHead, RawListener, RawMain,
    RawProbes, RawShutdown, RawUpstream,
};
use super::raw_rule::RawRule;
use super::units::{Count, Size, Span};
use super::yaml::Source;
use super::{build_backplane, build_tls, effective, files, ranges, warnings};
use crate::policy::client_address::{Source as AddressSource, TrustedProxies};
use crate::policy::memory_limit;
use crate::policy::route::{parse_authority, parse_hosts};
use crate::policy::token::Token;
use crate::policy::{Fault, range};

/// Where the admin endpoints are when the file says nothing.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// Stands in for an address with a fault.
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Its owner and its group: what a proxy in front on the same machine runs as.
const SOCKET_MODE: u32 = 0o660;
const HEAD_TIMEOUT: Span = Span(Duration::from_secs(10));
const HEAD_BYTES: Size = Size(32 << 10);
const HEAD_HEADERS: Count = Count(100);
const CONNECT_TIMEOUT: Span = Span(Duration::from_secs(5));
const SHUTDOWN_DELAY: Span = Span(Duration::ZERO);
const SHUTDOWN_DRAIN: Span = Span(Duration::from_secs(25));
const SHUTDOWN_SPREAD: Span = Span(Duration::from_secs(15));

/// The longest name of a listener, upstream or rule, in bytes; it is a label of every metric.
const MAX_NAME_BYTES: usize = 63;

/// What a rule can do with a request, one of them.
const ACTIONS: [&str; 3] = ["upstream", "redirect", "respond"];

/// A rule with the place that it is written in.
pub type PlacedRule<'a> = (Rule, &'a Source, KeyPath);

/// Makes a configuration of a main file and its rule files, whose shapes were checked.
///
/// With faults there is no configuration, or one that stands in for it.
pub fn build(main: &Source, rule_files: &[Source], faults: &mut Vec<ConfigFault>) -> Option<(Config, Vec<Warning>)> {
    let root = KeyPath::default();
    let raw: RawMain = match serde_json::from_value(main.tree.clone()) {
        Ok(raw) => raw,
        Err(error) => {
            faults.push(main.fault(&root, error.to_string(), ""));
            return None;
        }
    };
    let mut report = Report { source: main, faults };
    let listeners = listeners(&raw.listeners, &mut report);
    let upstreams = upstreams(&raw.upstreams, &mut report);
    let admin = admin(raw.admin.as_ref(), &mut report);
    let probes = raw.probes.as_ref().and_then(OrOff::on).and_then(|raw| probes(raw, &mut report));
    let backplane_base = root.key("backplane");
    let backplane = raw.backplane.as_ref().map(|raw| build_backplane::build(raw, &backplane_base, &mut report));
    let publish = backplane.as_ref().and_then(Option::as_ref).and_then(|backplane| backplane.publish.as_ref());
    binds_once(&listeners, admin.as_ref(), [probes, publish.map(|publish| publish.bind)], &mut report);
    let trusted_proxies = TrustedProxies::new(&raw.trusted_proxies);
    let trusted_proxies = trusted_proxies.unwrap_or_else(|list| {
        report.extend(&root.key("trusted_proxies"), list);
        TrustedProxies::default()
    });
    let connections = raw.limits.connections;
    let memory_bytes = raw.limits.memory.map(|size| size.0);
    let of_limits = [
        connections.and_then(|value| range::count("connections", value.0, &ranges::CONNECTIONS)),
        memory_bytes.and_then(|value| range::size("memory", value, &memory_limit::LIMIT_BYTES)),
    ];
    report.extend(&root.key("limits"), of_limits.into_iter().flatten());
    let shutdown = shutdown(&raw.shutdown, &mut report);
    // A name that was pruned for a fault may be the one that a rule means.
    let listener_names = all_names(raw.listeners.iter().map(|listener| listener.name.as_ref()));
    let upstream_names = all_names(raw.upstreams.iter().map(|upstream| upstream.name.as_ref()));
    let names = Names { listeners: listener_names.as_deref(), upstreams: upstream_names.as_deref() };
    let placed = rules(main, rule_files, names, raw.rule_files.is_empty(), faults);
    if placed.is_empty() && faults.is_empty() {
        let found = "files without a rule";
        faults.push(main.fault(&root.key("rule_files"), found, "at least one rule, here or in the files"));
    }
    if !faults.is_empty() {
        return None;
    }
    let limits = Limits { connections: connections.map(ranges::to_usize), memory_bytes };
    let access_log = match raw.access_log {
        None | Some(RawAccessLog::On) => AccessLog::On,
        Some(RawAccessLog::Errors) => AccessLog::Errors,
        Some(RawAccessLog::Off) => AccessLog::Off,
    };
    let backplane = match backplane {
        Some(backplane) => Some(backplane?),
        None => placed.iter().any(|(rule, ..)| rule.backplane.is_some()).then(Backplane::default),
    };
    let effective = effective::build(main, &placed);
    let places: Vec<(&Source, KeyPath)> = placed.iter().map(|(_, source, path)| (*source, path.clone())).collect();
    let rules = placed.into_iter().map(|(rule, ..)| rule).collect();
    let config = Config {
        listeners,
        admin,
        probes,
        trusted_proxies,
        limits,
        upstreams,
        rules,
        backplane,
        shutdown,
        access_log,
        effective,
    };
    let warnings = warnings::all(&config, main, &places);
    Some((config, warnings))
}

/// Checks a file of rules alone: all but the names of listeners and upstreams.
pub fn check_rules(source: &Source, faults: &mut Vec<ConfigFault>) {
    let nothing = Source::default();
    let names = Names { listeners: None, upstreams: None };
    rules(&nothing, std::slice::from_ref(source), names, false, faults);
}

/// Gathers faults of one file.
pub(super) struct Report<'a> {
    pub(super) source: &'a Source,
    faults: &'a mut Vec<ConfigFault>,
}

impl Report<'_> {
    pub(super) fn extend(&mut self, base: &KeyPath, faults: impl IntoIterator<Item = Fault>) {
        let source = self.source;
        self.faults
            .extend(faults.into_iter().map(|fault| source.fault(&base.join(&fault.key), fault.found, fault.allowed)));
    }

    /// Faults of a name, with the names so far.
    fn name(&mut self, base: &KeyPath, name: Option<&String>, seen: &mut HashMap<String, usize>) -> String {
        let Some(name) = name else { return String::new() };
        let path = base.key("name");
        self.extend(base, name_fault(name));
        if let Some(line) = seen.insert(name.clone(), self.source.line(&path)) {
            self.extend(base, Some(Fault::new("name", format!("{name:?}, which line {line} has"), "each name once")));
        }
        name.clone()
    }
}

fn name_fault(name: &str) -> Option<Fault> {
    let valid = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    let allowed = "1 to 63 letters, digits, \"_\", \".\" and \"-\"";
    (!valid).then(|| Fault::new("name", format!("{name:?}"), allowed))
}

fn all_names<'a>(names: impl Iterator<Item = Option<&'a String>>) -> Option<Vec<String>> {
    names.map(Option::<&String>::cloned).collect::<Option<Vec<String>>>().filter(|names| !names.is_empty())
}

fn listeners(raw: &[RawListener], report: &mut Report<'_>) -> Vec<Listener> {
    let mut names = HashMap::new();
    let mut binds = HashMap::new();
    let mut listeners = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let base = KeyPath::default().key("listeners").index(index);
        let name = report.name(&base, raw.name.as_ref(), &mut names);
        let bind = bind(raw, report, &base);
        let line = report.source.line(&base.key("bind"));
        let is_any = matches!(&bind, Bind::Tcp(address) if address.port() == 0);
        if raw.bind.is_some()
            && !is_any
            && let Some(first) = binds.insert(bind.to_string(), line)
        {
            let found = format!("\"{bind}\", which line {first} has");
            report.extend(&base, Some(Fault::new("bind", found, "each address once")));
        }
        let mut faults = Vec::new();
        let hosts = raw.hosts.as_ref().map(|hosts| parse_hosts("hosts", hosts, &mut faults));
        report.extend(&base, faults);
        let head = head(&raw.head, &base.key("head"), report);
        let client_address = match &raw.client_address {
            None | Some(RawClientAddress::List(RawAddressList::XForwardedFor)) => AddressSource::XForwardedFor,
            Some(RawClientAddress::List(RawAddressList::Forwarded)) => AddressSource::Forwarded,
            Some(RawClientAddress::List(RawAddressList::ProxyProtocol)) => AddressSource::ProxyProtocol,
            Some(RawClientAddress::Header(raw)) => HeaderName::try_from(&raw.header).map_or_else(
                |_| {
                    let allowed = "the name of a header, such as \"cf-connecting-ip\"";
                    let fault = Fault::new("client_address.header", format!("{:?}", raw.header), allowed);
                    report.extend(&base, Some(fault));
                    AddressSource::XForwardedFor
                },
                AddressSource::Header,
            ),
        };
        let http2 = raw.http2.unwrap_or(true);
        let tls = raw.tls.as_ref().map(|raw| build_tls::listener(raw, http2, &base.key("tls"), report));
        listeners.push(Listener { name, bind, hosts, head, client_address, tls, http2 });
    }
    listeners
}

/// Where a listener listens, or what stands in for it.
fn bind(raw: &RawListener, report: &mut Report<'_>, base: &KeyPath) -> Bind {
    let text = raw.bind.as_deref().unwrap_or_default();
    let mode = raw.mode.as_deref().map(|text| (text, mode(text)));
    if let Some((text, None)) = mode {
        report
            .extend(base, Some(Fault::new("mode", format!("{text:?}"), "octal digits such as \"0660\", to \"0777\"")));
    }
    match files::unix_path(report.source, text) {
        Some(Ok(path)) => return Bind::Unix { path, mode: mode.and_then(|(_, mode)| mode).unwrap_or(SOCKET_MODE) },
        Some(Err(allowed)) => report.extend(base, Some(Fault::new("bind", format!("{text:?}"), allowed))),
        None if mode.is_some() => {
            let fault = Fault::new("mode", "this without a Unix socket", "`bind: unix:PATH` beside it, or no `mode`");
            report.extend(base, Some(fault));
        }
        None => {}
    }
    let is_tcp = raw.bind.is_some() && !text.starts_with(files::UNIX);
    let address = is_tcp.then(|| address("bind", text, report, base)).flatten();
    Bind::Tcp(address.unwrap_or(ANY_PORT))
}

/// Reads permissions in octal.
fn mode(text: &str) -> Option<u32> {
    let is_octal = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777)
}

pub(super) fn address(key: &str, text: &str, report: &mut Report<'_>, base: &KeyPath) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        let allowed = "an IP address and port, such as \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"[::1]:8080\"";
        report.extend(base, Some(Fault::new(key, format!("{text:?}"), allowed)));
    }
    address
}

fn head(raw: &RawHead, base: &KeyPath, report: &mut Report<'_>) -> HeadLimits {
    let timeout = raw.timeout.unwrap_or(HEAD_TIMEOUT).0;
    let max_bytes = raw.max_bytes.unwrap_or(HEAD_BYTES).0;
    let max_headers = raw.max_headers.unwrap_or(HEAD_HEADERS);
    let faults = [
        range::span("timeout", timeout, &ranges::HEAD_TIMEOUT),
        range::size("max_bytes", max_bytes, &ranges::HEAD_BYTES),
        range::count("max_headers", max_headers.0, &ranges::HEAD_HEADERS),
    ];
    report.extend(base, faults.into_iter().flatten());
    HeadLimits { timeout, max_bytes: ranges::to_usize(Count(max_bytes)), max_headers: ranges::to_usize(max_headers) }
}

fn upstreams(raw: &[RawUpstream], report: &mut Report<'_>) -> Vec<Upstream> {
    let mut names = HashMap::new();
    let mut upstreams = Vec::with_capacity(raw.len());
    for (index, raw) in raw.iter().enumerate() {
        let base = KeyPath::default().key("upstreams").index(index);
        let name = report.name(&base, raw.name.as_ref(), &mut names);
        let mut endpoints = Vec::with_capacity(raw.endpoints.len());
        for (at, text) in raw.endpoints.iter().enumerate() {
            let key = format!("endpoints[{at}]");
            let endpoint = match files::unix_path(report.source, text) {
                Some(Ok(path)) => Ok(format!("{}{}", files::UNIX, path.display())),
                Some(Err(allowed)) => Err(Fault::new("", format!("{text:?}"), allowed)),
                None => check_endpoint(text).map(|()| text.clone()),
            };
            let endpoint = endpoint.unwrap_or_else(|fault| {
                report.extend(&base, Some(Fault { key: key.clone(), ..fault }));
                text.clone()
            });
            if endpoints.contains(&endpoint) {
                report.extend(&base, Some(Fault::new(key, format!("{text:?} again"), "each endpoint once")));
            }
            endpoints.push(endpoint);
        }
        let connect_timeout = raw.connect_timeout.unwrap_or(CONNECT_TIMEOUT).0;
        report.extend(&base, range::span("connect_timeout", connect_timeout, &ranges::CONNECT_TIMEOUT));
        let tls = raw.tls.as_ref().map(|raw| build_tls::upstream(raw, &endpoints, &base.key("tls"), report));
        let balance = match raw.balance {
            None | Some(RawBalance::LeastConnections) => Balance::LeastConnections,
            Some(RawBalance::RoundRobin) => Balance::RoundRobin,
            Some(RawBalance::Hash) => Balance::Hash,
        };
        upstreams.push(Upstream { name, endpoints, balance, connect_timeout, tls });
    }
    upstreams
}

/// Whether text names an endpoint: `host:port`, `[IPv6]:port`.
///
/// # Errors
/// A scheme, a path, no port, port 0.
pub fn check_endpoint(text: &str) -> Result<(), Fault> {
    match parse_authority(text) {
        Ok(authority) if authority.port.is_some() => Ok(()),
        _ => {
            let allowed =
                "host and port without a scheme, such as \"127.0.0.1:9001\", \"chat.internal:80\" or \"[::1]:9001\"";
            Err(Fault::new("", format!("{text:?}"), allowed))
        }
    }
}

fn admin(raw: Option<&OrOff<RawAdmin>>, report: &mut Report<'_>) -> Option<Admin> {
    let Some(raw) = raw else { return Some(Admin { bind: DEFAULT_ADMIN, token: None }) };
    let base = KeyPath::default().key("admin");
    let raw = raw.on()?;
    let bind = raw.bind.as_deref().map_or(Some(DEFAULT_ADMIN), |text| address("bind", text, report, &base));
    let token = raw.token_file.as_deref().and_then(|file| token(file, report, &base));
    let bind = bind?;
    if !bind.ip().to_canonical().is_loopback() && !report.source.has(&base.key("token_file")) {
        let allowed = "a loopback address; or a `token_file` beside it, so that not everybody can end sessions";
        report.extend(&base, Some(Fault::new("bind", format!("\"{bind}\""), allowed)));
    }
    Some(Admin { bind, token })
}

pub(super) fn token(file: &str, report: &mut Report<'_>, base: &KeyPath) -> Option<Token> {
    let text = files::read_secret(report.source, file)
        .and_then(|secret| String::from_utf8(secret).map_err(|_| "it is not text".to_owned()));
    let fault = match text.map(|text| Token::new(&text)) {
        Ok(Ok(token)) => return Some(token),
        Ok(Err(fault)) => Fault { key: "token_file".to_owned(), ..fault },
        Err(why) => Fault::new("token_file", format!("{file:?}"), format!("a file that can be read ({why})")),
    };
    report.extend(base, Some(fault));
    None
}

fn probes(raw: &RawProbes, report: &mut Report<'_>) -> Option<SocketAddr> {
    address("bind", raw.bind.as_deref()?, report, &KeyPath::default().key("probes"))
}

/// Faults of the admin address and that of the probes, where a listener has the same.
fn binds_once(
    listeners: &[Listener],
    admin: Option<&Admin>,
    [probes, publish]: [Option<SocketAddr>; 2],
    report: &mut Report<'_>,
) {
    let addresses = listeners.iter().filter_map(|listener| match listener.bind {
        Bind::Tcp(address) => Some(address),
        Bind::Unix { .. } => None,
    });
    let mut seen: Vec<SocketAddr> = addresses.collect();
    for (key, bind) in [("admin", admin.map(|admin| admin.bind)), ("probes", probes), ("backplane.publish", publish)] {
        let Some(bind) = bind.filter(|bind| bind.port() != 0) else { continue };
        if seen.contains(&bind) {
            let fault = Fault::new("bind", format!("\"{bind}\" again"), "each address once");
            report.extend(&KeyPath::default().join(key), Some(fault));
        }
        seen.push(bind);
    }
}

fn shutdown(raw: &RawShutdown, report: &mut Report<'_>) -> Shutdown {
    let shutdown = Shutdown {
        delay: raw.delay.unwrap_or(SHUTDOWN_DELAY).0,
        drain: raw.drain.unwrap_or(SHUTDOWN_DRAIN).0,
        spread: raw.spread.unwrap_or(SHUTDOWN_SPREAD).0,
    };
    let faults = [
        range::span("delay", shutdown.delay, &ranges::SHUTDOWN_DELAY),
        range::span("drain", shutdown.drain, &ranges::SHUTDOWN_DRAIN),
        range::span("spread", shutdown.spread, &ranges::SHUTDOWN_DRAIN),
    ];
    report.extend(&KeyPath::default().key("shutdown"), faults.into_iter().flatten());
    shutdown
}

/// The rules of all files in their order; the one rule of a configuration without any.
fn rules<'a>(
    main: &'a Source,
    rule_files: &'a [Source],
    names: Names<'_>,
    is_alone: bool,
    faults: &mut Vec<ConfigFault>,
) -> Vec<PlacedRule<'a>> {
    let nothing = Value::Object(serde_json::Map::new());
    let defaults_path = KeyPath::default().key("defaults");
    let defaults = main.tree.get("defaults").unwrap_or(&nothing);
    // On their own too, for leaves that every rule overrides.
    build_one(main, &defaults_path, main, defaults, names, faults);
    let mut placed = Vec::new();
    let mut seen: HashMap<String, String> = HashMap::new();
    for source in std::iter::once(main).chain(rule_files) {
        let list = source.tree.get("rules").and_then(Value::as_array);
        for (index, rule) in list.into_iter().flatten().enumerate() {
            let path = KeyPath::default().key("rules").index(index);
            if let Some(name) = rule.get("name").and_then(Value::as_str) {
                let mut report = Report { source, faults };
                report.extend(&path, rule_name_fault(name));
                let place = format!("{}:{}", source.name, source.line(&path.key("name")));
                if let Some(first) = seen.insert(name.to_owned(), place) {
                    let found = format!("{name:?}, which {first} has");
                    report.extend(&path, Some(Fault::new("name", found, "each name once over all files")));
                }
            }
            one_action(source, &path, faults);
            let rule = build_one(source, &path, main, &merge_rule(defaults, rule), names, faults);
            placed.extend(rule.map(|rule| (rule, source, path)));
        }
    }
    let has_pruned = main.has(&KeyPath::default().key("rules")) && main.tree.get("rules").is_none();
    if placed.is_empty() && is_alone && rule_files.is_empty() && !has_pruned {
        placed.extend(only_rule(main, defaults, names, faults));
    }
    placed
}

/// Faults of a rule that says nothing of what is done, or several things.
fn one_action(source: &Source, path: &KeyPath, faults: &mut Vec<ConfigFault>) {
    let written: Vec<&str> = ACTIONS.into_iter().filter(|key| source.has(&path.key(key))).collect();
    match written.as_slice() {
        [] => {
            let allowed = "one of `upstream`, `redirect` and `respond`";
            faults.push(source.fault(&path.key("upstream"), "this key is missing", allowed));
        }
        [_] => {}
        [first, others @ ..] => faults.extend(others.iter().map(|key| {
            let allowed = "only one of `upstream`, `redirect` and `respond`";
            source.fault(&path.key(key), format!("this beside `{first}`"), allowed)
        })),
    }
}

fn rule_name_fault(name: &str) -> Option<Fault> {
    // Metrics say `none` where no rule is known.
    let reserved = || Fault::new("name", format!("{name:?}"), "a name other than \"none\"");
    name_fault(name).or_else(|| (name == "none").then(reserved))
}

/// The rule of a configuration without rules: everything to the only upstream.
fn only_rule<'a>(
    main: &'a Source,
    defaults: &Value,
    names: Names<'_>,
    faults: &mut Vec<ConfigFault>,
) -> Option<PlacedRule<'a>> {
    let root = KeyPath::default();
    if let Some(upstreams) = names.upstreams
        && upstreams.len() > 1
    {
        let found = format!("no rules, and {} upstreams", upstreams.len());
        let allowed = "rules that say what goes where, or one upstream";
        faults.push(main.fault(&root.key("upstreams"), found, allowed));
        return None;
    }
    let path = root.key("rules").index(0);
    let mut rule = build_one(main, &path, main, defaults, names, faults)?;
    rule.name = "default".to_owned();
    Some((rule, main, path))
}

fn build_one(
    source: &Source,
    path: &KeyPath,
    main: &Source,
    merged: &Value,
    names: Names<'_>,
    faults: &mut Vec<ConfigFault>,
) -> Option<Rule> {
    match serde_json::from_value::<RawRule>(merged.clone()) {
        Ok(raw) => build_rule::build(raw, &Place { source, path, main }, names, faults),
        Err(error) => {
            faults.push(source.fault(path, error.to_string(), ""));
            None
        }
    }
}
