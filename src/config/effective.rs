//! The configuration as a file would say it: rule files, `defaults`, variables and our own defaults resolved.
//!
//! What nobody wrote and has no single value stays unwritten: a limit per address that is written would be enforced
//! against hops too. No secret is in it, only the paths of their files.

use serde_json::{Map, Value, json};

use super::build::PlacedRule;
use super::build_rule::{Place, merge, merge_rule};
use super::files;
use super::key_path::KeyPath;
use super::model::{Action, Rule};
use super::yaml::Source;

/// What stands in the place of a header's secret value.
const MASK: &str = "***";

/// Parts of names of headers whose values are secrets.
const SECRET_HEADERS: [&str; 8] = ["auth", "cookie", "token", "secret", "password", "key", "credential", "session"];

/// What stands above the file, since it cannot stand in it.
const PREFACE: &str = "\
# The effective configuration. Paths are absolute. Where a rule has no handshake.per_ip and no connections.per_ip, the
# built-in ones count ({ rate: 10/s, burst: 20 } and 200), which are not enforced against hops; written, they would be.
";

/// The keys of a rule that come first, before its policies.
const FIRST_KEYS: [&str; 5] = ["name", "match", "upstream", "redirect", "respond"];

/// A configuration as a file would say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective(Value);

impl Effective {
    /// As a value; what it says is what a file would say.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// As a main file.
    pub fn yaml(&self) -> String {
        let mut value = self.0.clone();
        escape_dollars(&mut value);
        // A tree of text, numbers, lists and mappings can always be written.
        PREFACE.to_owned() + &serde_yaml::to_string(&value).unwrap_or_default()
    }
}

/// The effective configuration of a main file and the rules of all files.
pub fn build(main: &Source, rules: &[PlacedRule<'_>]) -> Effective {
    let tree = &main.tree;
    let mut whole = Map::new();
    whole.insert("version".to_owned(), json!(1));
    let mut listeners = each(tree.get("listeners"), &listener_defaults());
    for listener in items(&mut listeners) {
        place_listener(listener, main);
    }
    whole.insert("listeners".to_owned(), listeners);
    whole.insert("admin".to_owned(), admin(main));
    for key in ["probes", "limits", "backplane"] {
        whole.extend(tree.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    if let Some(backplane) = whole.get_mut("backplane") {
        place_backplane(backplane, main);
    }
    whole.insert("trusted_proxies".to_owned(), tree.get("trusted_proxies").cloned().unwrap_or_else(|| json!([])));
    let upstream_defaults = json!({ "balance": "least_connections", "connect_timeout": "5s" });
    let mut upstreams = each(tree.get("upstreams"), &upstream_defaults);
    for upstream in items(&mut upstreams) {
        place_upstream(upstream, main);
    }
    whole.insert("upstreams".to_owned(), upstreams);
    let rules = rules.iter().map(|(built, source, path)| rule(built, &Place { source, path, main })).collect();
    whole.insert("rules".to_owned(), Value::Array(rules));
    let shutdown = json!({ "delay": "0s", "drain": "25s", "spread": "15s" });
    whole.insert("shutdown".to_owned(), over(&shutdown, tree.get("shutdown")));
    whole.insert("access_log".to_owned(), tree.get("access_log").cloned().unwrap_or_else(|| json!("on")));
    Effective(Value::Object(whole))
}

fn listener_defaults() -> Value {
    json!({
        "head": { "timeout": "10s", "max_bytes": "32KiB", "max_headers": 100 },
        "client_address": "x_forwarded_for",
        "http2": true,
    })
}

fn items(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

/// What a listener's paths lead to, and the defaults of what is there only with something else.
fn place_listener(listener: &mut Value, main: &Source) {
    make_socket_absolute(listener.get_mut("bind"), main);
    if let Some(tls) = listener.get_mut("tls") {
        *tls = over(&json!({ "min_version": "1.2" }), Some(tls));
        make_absolute(tls, "client_ca_file", main);
        for pair in tls.get_mut("certificates").into_iter().flat_map(items) {
            for key in ["cert_file", "key_file"] {
                make_absolute(pair, key, main);
            }
        }
        if let Value::Object(tls) = tls
            && tls.contains_key("client_ca_file")
        {
            tls.entry("client_auth").or_insert_with(|| json!("required"));
        }
    }
    let is_unix = listener.get("bind").and_then(Value::as_str).is_some_and(|bind| bind.starts_with(files::UNIX));
    if let (true, Value::Object(listener)) = (is_unix, listener) {
        listener.entry("mode").or_insert_with(|| json!("0660"));
    }
}

/// What an upstream's paths lead to.
fn place_upstream(upstream: &mut Value, main: &Source) {
    if let Some(tls) = upstream.get_mut("tls") {
        for key in ["ca_file", "cert_file", "key_file"] {
            make_absolute(tls, key, main);
        }
    }
    for endpoint in upstream.get_mut("endpoints").into_iter().flat_map(items) {
        make_socket_absolute(Some(endpoint), main);
    }
}

/// What the backplane's paths lead to, and its defaults.
fn place_backplane(backplane: &mut Value, main: &Source) {
    let defaults = json!({
        "region": "local",
        "engine": "memory",
        "history": { "max_messages": 1000, "max_age": "5m", "max_bytes": "1MiB" },
        "dedupe_window": "5m",
        "grip": { "sig_iss": "sluicegate" },
    });
    *backplane = over(&defaults, Some(backplane));
    let conflate = json!({ "interval": "100ms", "key": "meta:conflate-key", "join": "messages" });
    for channel in backplane.get_mut("channels").into_iter().flat_map(items) {
        if let Some(written) = at(channel, "conflate").filter(|written| written.is_object()) {
            *written = over(&conflate, Some(written));
        }
    }
    for (at_key, key) in [
        ("engine.nats", "password_file"),
        ("engine.rabbitmq", "password_file"),
        ("engine.redis", "password_file"),
        ("engine.redis.sentinel", "password_file"),
        ("publish", "token_file"),
        ("publish", "jwt_key_file"),
        ("grip", "sig_key_file"),
    ] {
        if let Some(of) = at(backplane, at_key) {
            make_absolute(of, key, main);
        }
    }
}

/// The path of a Unix socket, so that it leads to the same from everywhere.
fn make_socket_absolute(value: Option<&mut Value>, main: &Source) {
    if let Some(value) = value
        && let Some(Ok(path)) = value.as_str().and_then(|text| files::unix_path(main, text))
    {
        *value = json!(format!("{}{}", files::UNIX, path.display()));
    }
}

fn admin(main: &Source) -> Value {
    let mut admin = over(&json!({ "bind": "127.0.0.1:9901" }), main.tree.get("admin"));
    make_absolute(&mut admin, "token_file", main);
    admin
}

fn rule(built: &Rule, place: &Place<'_>) -> Value {
    let nothing = Value::Object(Map::new());
    let defaults = place.main.tree.get("defaults").unwrap_or(&nothing);
    let written = merge_rule(defaults, place.path.value(&place.source.tree).unwrap_or(&nothing));
    let mut rule = over(&rule_defaults(), Some(&written));
    fill(&mut rule, built, place);
    let Value::Object(mut rest) = rule else { return rule };
    let mut first = Map::new();
    for key in FIRST_KEYS {
        first.extend(rest.shift_remove(key).map(|value| (key.to_owned(), value)));
    }
    first.extend(rest);
    Value::Object(first)
}

/// The defaults of `build_rule.rs` and `build_proxy.rs`, as they are written; a test holds them together.
fn rule_defaults() -> Value {
    json!({
        "rewrite": "off",
        "websocket": "allow",
        "enforcement": "enforce",
        "clients": "off",
        "origin": { "allow": ["same_origin"], "missing": "allow" },
        "handshake": { "upstream_timeout": "10s" },
        "connections": { "total": 20000 },
        "message": {
            "max_size": "1MiB",
            "max_ratio": 200,
            "max_fragments": 1024,
            "rate": "off",
            "control_rate": { "frames": "20/s", "burst": 100 },
            "stall_timeout": "60s",
            "timeout": "10m",
            "utf8": "on",
            "upstream_max_size": "16MiB",
        },
        "compression": "passthrough",
        "keepalive": { "interval": "25s", "timeout": "30s", "sides": ["client", "upstream"] },
        "idle_timeout": "off",
        "slow_client": { "timeout": "30s", "min_rate": "1KiB/s" },
        "close_timeout": "5s",
        "sticky": "off",
        "request_headers": "off",
        "response_headers": "off",
        "http": { "response_timeout": "60s", "idle_timeout": "1h", "max_body_size": "1MiB" },
    })
}

/// What is there only with something else, and what depends on the file that wrote it.
fn fill(rule: &mut Value, built: &Rule, place: &Place<'_>) {
    for (key, defaults) in [
        ("handshake.per_ip", json!({ "rate": "10/s", "burst": 20 })),
        ("message.rate", json!({ "messages": "off", "bytes": "off" })),
        ("sticky.cookie", json!({ "name": "sluicegate", "ttl": "1h", "same_site": "lax", "secure": "auto" })),
        ("redirect", json!({ "status": 308 })),
    ] {
        if let Some(value) = at(rule, key).filter(|value| value.is_object()) {
            *value = over(&defaults, Some(value));
        }
    }
    if let (Some(Value::Object(rate)), Some(messages)) = (at(rule, "message.rate"), &built.message.messages) {
        rate.entry("burst").or_insert_with(|| json!(messages.burst));
    }
    if let (Some(Value::Object(respond)), Action::Respond(built)) = (at(rule, "respond"), &built.action) {
        respond.entry("content_type").or_insert_with(|| json!(built.content_type));
    }
    if let Some(respond) = at(rule, "respond") {
        make_absolute(respond, "body_file", place.locate("respond.body_file").0);
    }
    if let Some(cookie) = at(rule, "sticky.cookie") {
        make_absolute(cookie, "secret_files", place.locate("sticky.cookie.secret_files").0);
    }
    if built.backplane.is_some()
        && !place.is_written("compression")
        && let Some(compression) = at(rule, "compression")
    {
        *compression = json!("terminate");
    }
    // What goes to clients is no secret.
    if let Some(Value::Object(set)) = at(rule, "request_headers.set") {
        for (name, value) in set {
            if SECRET_HEADERS.iter().any(|part| name.to_ascii_lowercase().contains(part)) {
                *value = json!(MASK);
            }
        }
    }
    // The rule of a configuration without any.
    let has_name = rule.get("name").is_some();
    if let Value::Object(map) = rule
        && !has_name
    {
        let upstream = KeyPath::default().join("upstreams[0].name").value(&place.main.tree).cloned();
        map.insert("name".to_owned(), json!(built.name));
        map.extend(upstream.map(|name| ("upstream".to_owned(), name)));
    }
}

/// What was written over defaults.
fn over(defaults: &Value, written: Option<&Value>) -> Value {
    written.map_or_else(|| defaults.clone(), |written| merge(defaults, written))
}

/// Each of a list over defaults, its name first.
fn each(list: Option<&Value>, defaults: &Value) -> Value {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.map(|item| {
        let (Value::Object(written), Value::Object(defaults)) = (item, defaults) else { return item.clone() };
        let mut merged = written.clone();
        for (key, default) in defaults {
            let value = over(default, written.get(key));
            merged.insert(key.clone(), value);
        }
        Value::Object(merged)
    })
    .collect()
}

fn at<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    key.split('.').try_fold(value, |value, key| value.get_mut(key))
}

/// Paths of files, so that they lead to the same from everywhere.
fn make_absolute(value: &mut Value, key: &str, source: &Source) {
    let absolute = |path: &mut Value| {
        if let Some(text) = path.as_str() {
            let resolved = files::resolve(source, text);
            let resolved = std::path::absolute(&resolved).unwrap_or(resolved);
            *path = json!(resolved.to_string_lossy());
        }
    };
    match value.get_mut(key) {
        Some(Value::Array(paths)) => paths.iter_mut().for_each(absolute),
        Some(path) => absolute(path),
        None => {}
    }
}

/// Doubles the dollar signs that would begin something.
fn escape_dollars(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('$') => {
            let mut escaped = String::with_capacity(text.len() + 1);
            let mut chars = text.chars().peekable();
            while let Some(c) = chars.next() {
                escaped.push(c);
                if c == '$' && matches!(chars.peek(), Some('$' | '{')) {
                    escaped.push('$');
                }
            }
            *text = escaped;
        }
        Value::Array(list) => list.iter_mut().for_each(escape_dollars),
        Value::Object(map) => map.values_mut().for_each(escape_dollars),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdminBind, Config, load, simple};
    use std::path::Path;

    /// Two configurations are the same when all of them but their secrets is. Returns what that is.
    fn same(back: &Config, config: &Config) -> String {
        let (back, config) = (format!("{back:#?}"), format!("{config:#?}"));
        let other = back.lines().zip(config.lines()).enumerate().find(|(_, (back, config))| back != config);
        assert_eq!(other, None);
        assert_eq!(back.len(), config.len());
        config
    }

    /// Writes the effective configuration elsewhere, and loads it.
    fn again(config: &Config) -> Config {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("effective.yaml");
        std::fs::write(&path, config.effective.yaml()).expect("written");
        load(&path).unwrap_or_else(|faults| panic!("{}\n{faults:#?}", config.effective.yaml())).config
    }

    fn loaded(path: &Path) -> Config {
        load(path).unwrap_or_else(|faults| panic!("{}: {faults:#?}", path.display())).config
    }

    #[test]
    fn every_example_comes_back_as_it_was() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut seen = 0;
        for entry in std::fs::read_dir(root.join("examples")).expect("the folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                continue;
            }
            let config = loaded(&path);
            same(&again(&config), &config);
            seen += 1;
        }
        assert!(seen > 3, "{seen}");
    }

    #[test]
    fn every_rule_file_comes_back_as_it_was() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().expect("a folder");
        let upstreams = ["default", "app", "api", "chat", "market-data", "mqtt"]
            .map(|name| format!("  - {{ name: {name}, endpoints: [\"127.0.0.1:9001\"] }}\n"));
        for entry in std::fs::read_dir(root.join("rules")).expect("the folder") {
            let rules = entry.expect("an entry").path();
            let main = format!(
                "listeners: [{{ name: public, bind: \"127.0.0.1:0\", hosts: [a.example] }}]\nupstreams:\n{}\
                 rule_files: [{:?}]\n",
                upstreams.concat(),
                rules
            );
            let path = folder.path().join("main.yaml");
            std::fs::write(&path, main).expect("written");
            let config = loaded(&path);
            same(&again(&config), &config);
        }
    }

    #[test]
    fn what_no_file_said_comes_back_too() {
        for (listen, admin) in [
            ("127.0.0.1:0", AdminBind::Standard),
            ("[::]:8080", AdminBind::Off),
            ("[::1]:0", AdminBind::Address("[::1]:9000".parse().expect("an address"))),
        ] {
            let config = simple(listen.parse().expect("an address"), "127.0.0.1:9001", admin);
            same(&again(&config), &config);
        }
    }

    const FULL: &str = r##"
listeners:
  - name: public
    bind: 127.0.0.1:0
    hosts: [a.example]
    head: { max_headers: "50" }
    client_address: { header: cf-connecting-ip }
  - { name: local, bind: "unix:run/local.sock", hosts: [a.example] }
admin: { bind: "0.0.0.0:0", token_file: secrets/admin.key }
probes: { bind: "127.0.0.1:0" }
trusted_proxies: [private]
limits: { connections: 100, memory: 512MiB }
upstreams:
  - { name: chat, endpoints: ["127.0.0.1:9001", "unix:run/back.sock"], balance: hash }
defaults:
  connections: { per_ip: 7 }
  sticky: { hash: client_ip }
  message: { rate: { messages: 90/m } }
  response_headers: { set: { x-a: "on" }, remove: [server] }
rule_files: ["inner/*.yaml"]
rules:
  - name: text
    match: { path_regex: "/v[0-9]+$", headers: { x-app: "^a[$${]b$" } }
    respond: { status: 503, body: "costs $${X} and $$$$5\n" }
  - name: away
    match: { listeners: [public], path: /old }
    redirect: { to: "https://{host}/new" }
    sticky: off
  - name: chat
    upstream: chat
    handshake: { per_ip: { burst: 5 } }
    keepalive: off
    message: { rate: off }
    enforcement: report
    request_headers: { set: { authorization: "***", x-tenant: "${TENANT:-off}" } }
access_log: errors
shutdown: { delay: 1s }
"##;

    const INNER: &str = r#"
rules:
  - name: page
    match: { path: /down }
    respond: { status: 503, body_file: down.html }
  - name: inner
    upstream: chat
    clients: { deny: [10.0.0.0/8] }
    rewrite: { strip_prefix: /api }
    sticky: { cookie: { ttl: session, same_site: none, secret_files: [../secrets/a.key, ../secrets/b.key] } }
    http: { max_body_size: off }
"#;

    fn full() -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("written");
        };
        for name in ["admin", "a", "b"] {
            write(&format!("secrets/{name}.key"), &format!("{name}-very-secret-indeed\n"));
        }
        write("main.yaml", FULL);
        write("inner/rules.yaml", INNER);
        write("inner/down.html", "<p>down</p>");
        let config = loaded(&folder.path().join("main.yaml"));
        (folder, config)
    }

    #[test]
    fn every_key_comes_back_as_it_was_and_from_elsewhere() {
        let (_folder, config) = full();
        let back = again(&config);
        same(&back, &config);
        assert_eq!(back.effective.yaml(), config.effective.yaml());
        let json = config.effective.json();
        assert_eq!(json["listeners"][1]["mode"], "0660");
        let bind = json["listeners"][1]["bind"].as_str().expect("a path");
        assert!(bind.starts_with("unix:/") && bind.ends_with("run/local.sock"), "{bind}");
        assert_eq!(json["rules"][0]["respond"]["body"], "costs ${X} and $$5\n");
        assert_eq!(json["rules"][2]["handshake"]["per_ip"], json!({ "rate": "10/s", "burst": 5 }));
        assert_eq!(json["rules"][3]["respond"]["content_type"], "text/html; charset=utf-8");
        assert_eq!(json["rules"][4]["message"]["rate"], json!({ "messages": "90/m", "bytes": "off", "burst": 3 }));
        assert!(json["rules"][4]["sticky"].get("hash").is_none(), "the rule's own stands alone");
        assert_eq!(json["rules"][4]["handshake"], json!({ "upstream_timeout": "10s" }), "nobody wrote a limit");
        let body_file = json["rules"][3]["respond"]["body_file"].as_str().expect("a path");
        assert!(Path::new(body_file).is_absolute() && body_file.ends_with("inner/down.html"), "{body_file}");
    }

    #[test]
    fn no_secret_is_shown() {
        let (_folder, config) = full();
        let all = config.effective.yaml() + &same(&config, &config);
        assert!(!all.contains("very-secret"), "{all}");
        assert!(all.contains("secrets/a.key"));
        let text = FULL.replace("***", "Bearer hunter2");
        let folder = tempfile::tempdir().expect("a folder");
        let text =
            text.replace("token_file: secrets/admin.key", "bind: 127.0.0.1:0").replace("bind: \"0.0.0.0:0\", ", "");
        let text = text.replace("rule_files: [\"inner/*.yaml\"]", "");
        std::fs::write(folder.path().join("main.yaml"), text).expect("written");
        let shown = loaded(&folder.path().join("main.yaml")).effective.yaml();
        assert!(!shown.contains("hunter2") && shown.contains("x-tenant: off"), "{shown}");
    }

    #[test]
    fn dollars_come_back_as_they_were() {
        for (text, escaped) in
            [("^v2$", "^v2$"), ("${A}", "$${A}"), ("$$", "$$$"), ("$${", "$$$${"), ("a$b$$$c", "a$b$$$$$c")]
        {
            let mut value = json!([{ "a": text }]);
            escape_dollars(&mut value);
            assert_eq!(value[0]["a"], escaped);
            let mut source = Source::default();
            source.tree = value;
            assert!(super::super::variables::replace(&mut source, &|_| None).is_empty());
            assert_eq!(source.tree[0]["a"], text);
        }
    }
}
