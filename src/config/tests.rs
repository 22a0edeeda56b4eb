//! Whole files: what is read, what is refused, and the files that are shipped.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::policy::client_address::Source as AddressSource;
use crate::policy::handshake_limit;
use crate::policy::message::Rate;

const FRONT: &str = "version: 1
listeners: [{ name: public, bind: \"127.0.0.1:0\", hosts: [a.example] }]
upstreams: [{ name: chat, endpoints: [\"127.0.0.1:9001\"] }]
";

fn read(text: &str) -> Result<Loaded, Vec<String>> {
    let environment = |name: &str| (name == "BIG").then(|| "2MiB".to_owned());
    let faults = |faults: Vec<ConfigFault>| faults.iter().map(ToString::to_string).collect();
    parse(Text { name: "a.yaml", text }, &[], &environment).map_err(faults)
}

fn rule(text: &str) -> Rule {
    let loaded = read(&format!("{FRONT}{text}")).unwrap_or_else(|faults| panic!("{faults:#?}"));
    loaded.config.rules.into_iter().next().expect("a rule")
}

fn faults(text: &str) -> Vec<String> {
    read(&format!("{FRONT}{text}")).map(|loaded| loaded.config.rules.len()).expect_err("faults")
}

#[test]
fn a_file_without_rules_takes_everything_to_the_only_upstream_by_the_defaults() {
    let loaded = read(FRONT).expect("sound");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!(config.admin.map(|admin| (admin.bind, admin.token.is_some())), Some((DEFAULT_ADMIN, false)));
    assert_eq!((config.probes, config.access_log), (None, AccessLog::On));
    assert_eq!((config.limits.connections, config.limits.memory_bytes), (None, None));
    let head = HeadLimits { timeout: Duration::from_secs(10), max_bytes: 32768, max_headers: 100 };
    assert_eq!(config.listeners[0].head, head);
    assert_eq!(config.listeners[0].client_address, AddressSource::XForwardedFor);
    assert_eq!(config.upstreams[0].balance, Balance::LeastConnections);
    assert_eq!(config.upstreams[0].connect_timeout, Duration::from_secs(5));
    let seconds = Duration::from_secs;
    assert_eq!(config.shutdown, Shutdown { delay: seconds(0), drain: seconds(25), spread: seconds(15) });
    let [rule] = config.rules.as_slice() else { panic!("{:?}", config.rules) };
    assert_eq!((rule.name.as_str(), rule.websocket), ("default", WebSocketMode::Allow));
    assert_eq!(rule.action.upstream(), Some(0));
    assert!(!rule.report_only && rule.rewrite.is_none() && rule.clients.is_none() && rule.sticky.is_none());
    assert!(rule.request_headers.is_empty() && rule.response_headers.is_empty());
    let http = HttpLimits { response_timeout: seconds(60), idle_timeout: seconds(3600), max_body_size: Some(1 << 20) };
    assert_eq!(rule.http, http);
    assert!(rule.origin.relies_on_same_origin());
    let rate = handshake_limit::Rate::new(10, seconds(1), 20).expect("a rate");
    let handshake = PerIp { limit: rate, written: false };
    assert_eq!(rule.handshake_per_ip, Some(handshake));
    assert_eq!(rule.connections_per_ip, Some(PerIp { limit: 200, written: false }));
    assert_eq!(rule.connections_total, Some(20_000));
    assert_eq!(rule.upstream_timeout, seconds(10));
    assert_eq!(rule.message.max_size_bytes, Some(1 << 20));
    assert_eq!(rule.message.max_fragments, Some(1024));
    assert_eq!(rule.message.max_ratio, Some(200));
    assert_eq!(rule.compression, CompressionMode::Passthrough);
    assert_eq!((rule.message.messages, rule.message.bytes), (None, None));
    assert_eq!(rule.message.control, Some(Rate::per_second(20, 100)));
    assert_eq!(rule.message.stall_timeout, Some(seconds(60)));
    assert_eq!(rule.message.timeout, Some(seconds(600)));
    assert!(rule.message.utf8);
    assert_eq!(rule.message.upstream_max_size_bytes, Some(16 << 20));
    let keepalive = rule.keepalive.as_ref().expect("on");
    assert_eq!((keepalive.interval, keepalive.timeout), (seconds(25), seconds(30)));
    assert!(keepalive.client && keepalive.upstream);
    assert_eq!(rule.idle_timeout, None);
    let slow_client = rule.slow_client.as_ref().expect("on");
    assert_eq!((slow_client.timeout, slow_client.min_rate_bytes), (seconds(30), 1024));
    assert_eq!(rule.close_timeout, seconds(5));
}

#[test]
fn a_rule_overrides_the_defaults_leaf_by_leaf_and_lists_whole() {
    let rule = rule(
        "defaults:
  keepalive: { interval: 10s, timeout: 11s, sides: [client] }
  message: { max_size: 1KiB, rate: { messages: 5/s } }
  slow_client: off
  origin: { allow: [\"https://a.example\"], missing: deny }
rules:
  - name: r
    upstream: chat
    keepalive: { timeout: 12s, sides: [upstream] }
    message: { max_size: \"${BIG}\" }
    slow_client: { timeout: 40s }
    origin: { allow: [same_origin] }
",
    );
    let keepalive = rule.keepalive.expect("on");
    assert_eq!((keepalive.interval.as_secs(), keepalive.timeout.as_secs()), (10, 12));
    assert!(!keepalive.client && keepalive.upstream);
    assert_eq!(rule.message.max_size_bytes, Some(2 << 20));
    assert_eq!(rule.message.messages, Some(Rate::per_second(5, 10)));
    let slow_client = rule.slow_client.expect("on again");
    assert_eq!((slow_client.timeout.as_secs(), slow_client.min_rate_bytes), (40, 1024));
    let site = crate::policy::origin::Site { host: "b.example", port: None, secure: None };
    assert!(rule.origin.decide(&[], &site).is_err());
    assert!(rule.origin.decide(&[b"https://a.example"], &site).is_err());
    assert!(rule.origin.decide(&[b"https://b.example"], &site).is_ok());
}

#[test]
fn a_rate_is_of_a_second_a_minute_or_an_hour() {
    let rule = rule(
        "rules:
  - name: r
    upstream: chat
    handshake: { per_ip: { rate: 100/m, burst: 7 } }
    message: { rate: { messages: 100/m }, control_rate: { frames: 90/h } }
",
    );
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    let expected = handshake_limit::Rate::new(100, minute, 7).ok();
    assert_eq!(rule.handshake_per_ip.map(|per_ip| per_ip.limit), expected);
    assert_eq!(rule.message.messages, Some(Rate { count: 100, per: minute, burst: 4 }));
    assert_eq!(rule.message.control, Some(Rate { count: 90, per: hour, burst: 100 }));
    let fastest = self::rule("defaults: { message: { rate: { messages: 1000000/s } } }");
    assert_eq!(fastest.message.messages, Some(Rate::per_second(1_000_000, 1_000_000)));
    let found = faults("defaults: { message: { rate: { messages: 2000000/m }, control_rate: { frames: 0/h } } }");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains(".message.rate.messages: \"2000000/m\"; allowed: 1 to 1000000 in"), "{found:#?}");
    assert!(found[1].contains(".message.control_rate.frames: \"0/h\"; allowed: 1 to 1000000 in"), "{found:#?}");
}

#[test]
fn off_switches_leaves_and_policies_off() {
    let rule = rule(
        "rules:
  - name: r
    upstream: chat
    handshake: { per_ip: off }
    connections: { per_ip: off, total: off }
    message: { max_size: off, max_fragments: off, max_ratio: off, rate: off, control_rate: off, stall_timeout: off, timeout: off, utf8: off, upstream_max_size: off }
    keepalive: off
    idle_timeout: off
    slow_client: off
",
    );
    assert!(rule.handshake_per_ip.is_none() && rule.connections_per_ip.is_none() && rule.connections_total.is_none());
    assert!(rule.message.timeout.is_none() && rule.message.stall_timeout.is_none());
    assert!(rule.message.max_size_bytes.is_none() && rule.message.control.is_none() && !rule.message.utf8);
    assert!(rule.keepalive.is_none() && rule.slow_client.is_none() && rule.idle_timeout.is_none());
}

#[test]
fn limits_per_address_are_written_where_a_rule_or_the_defaults_name_them() {
    let written = |text: &str| {
        let rule = rule(text);
        (rule.handshake_per_ip.is_some_and(|l| l.written), rule.connections_per_ip.is_some_and(|l| l.written))
    };
    assert_eq!(written("rules: [{ name: r, upstream: chat, connections: { total: 5 } }]"), (false, false));
    assert_eq!(written("rules: [{ name: r, upstream: chat, connections: { per_ip: 5 } }]"), (false, true));
    assert_eq!(written("rules: [{ name: r, upstream: chat, handshake: { per_ip: { burst: 5 } } }]"), (true, false));
    assert_eq!(written("defaults: { handshake: { per_ip: { rate: 5/s } }, connections: { per_ip: 9 } }"), (true, true));
}

#[test]
fn every_fault_is_told_at_once_with_its_place() {
    let found = faults(
        "admin: { bind: \"0.0.0.0:9901\" }
trusted_proxies: [10.0.0.0/8, everyone]
limits: { connections: 0, memory: 1MiB }
defaults:
  close_timeout: 1h
rules:
  - name: r
    upstream: chta
    keepalive: { timeout: 0s }
    match: { listeners: [pulbic], path: /a, path_regex: \"(\" }
    probe: 1
  - name: r
    upstream: chat
    origin: { allow: [\"https://a.example/path\"] }
    handshake: { per_ip: { rate: 0/m, burst: 0 } }
    backplane: grip_http
  - name: none
    upstream: chat
    message: { max_size: 0B, rate: { burst: 5 } }
    idle_timeout: \"${NOPE}\"
shutdown: { drain: 25 }
",
    );
    let expected = [
        ":4: admin.bind: \"0.0.0.0:9901\"; allowed: a loopback address; or a `token_file` beside it",
        ":5: trusted_proxies[1]: \"everyone\"; allowed: a network",
        ":6: limits.connections: 0; allowed: a number from 1 to 10000000",
        ":6: limits.memory: \"1MiB\"; allowed: a size from \"32MiB\" to \"1024GiB\"",
        ":8: defaults.close_timeout: \"1h\"; allowed: a duration from \"100ms\" to \"5m\"",
        ":11: rules[0].upstream: \"chta\"; allowed: an upstream: chat; hint: did you mean `chat`?",
        ":12: rules[0].keepalive.timeout: \"0s\"; allowed: a duration from \"1s\" to \"10m\", or `keepalive: off`",
        ":13: rules[0].match.listeners[0]: \"pulbic\"; allowed: a listener: public; hint: did you mean `public`?",
        ":13: rules[0].match.path_regex: \"(\"; allowed: only one of path, path_prefix and path_regex",
        ":13: rules[0].match.path_regex: \"(\"; allowed: a regular expression",
        ":14: rules[0].probe: unknown key; allowed: name, match, upstream,",
        ":15: rules[1].name: \"r\", which a.yaml:10 has; allowed: each name once over all files",
        ":17: rules[1].origin.allow[0]: \"https://a.example/path\"; allowed: \"same_origin\", or",
        ":18: rules[1].handshake.per_ip.rate: \"0/m\"; allowed: 1 to 1000000 in a second, minute or hour, such as",
        ":18: rules[1].handshake.per_ip.burst: 0; allowed: a number from 1 to 1000000",
        ":20: rules[2].name: \"none\"; allowed: a name other than \"none\"",
        ":22: rules[2].message.rate.burst: 5; allowed: a burst beside a rate",
        ":22: rules[2].message.max_size: \"0B\"; allowed: a size from \"1B\" to \"1024GiB\"",
        ":23: rules[2].idle_timeout: the environment has no variable NOPE; allowed: a variable",
        ":24: shutdown.drain: 25; allowed: a duration with its unit",
    ];
    for (at, expected) in expected.iter().enumerate() {
        let whole = format!("a.yaml{expected}");
        assert!(found.get(at).is_some_and(|fault| fault.starts_with(&whole)), "{at}: {whole}\n{found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn faults_of_listeners_and_upstreams_name_their_key() {
    let found = read(
        "listeners:
  - { name: a, bind: \"127.0.0.1:80\" }
  - { name: a, bind: \"127.0.0.1:80\", hosts: [\"b:1\"] }
  - { name: \"c d\", bind: \"localhost:80\", head: { timeout: 1ms, max_bytes: 1B, max_headers: 0 }, client_address: { header: \"a b\" } }
upstreams:
  - { name: a, endpoints: [\"http://a:1\", \"a\", \"b:1\", \"b:1\"], connect_timeout: 1h }
  - { name: a, endpoints: [\"[::1]:9\"] }
  - { endpoints: [] }
",
    )
    .map(|_| ())
    .expect_err("faults");
    let places: Vec<&str> = found.iter().filter_map(|fault| fault.split(": ").nth(1)).collect();
    let expected = [
        "listeners[1].name",
        "listeners[1].bind",
        "listeners[1].hosts[0]",
        "listeners[2].name",
        "listeners[2].bind",
        "listeners[2].head.timeout",
        "listeners[2].head.max_bytes",
        "listeners[2].head.max_headers",
        "listeners[2].client_address.header",
        "upstreams[0].endpoints[0]",
        "upstreams[0].endpoints[1]",
        "upstreams[0].endpoints[3]",
        "upstreams[0].connect_timeout",
        "upstreams[1].name",
        "upstreams[2].name",
        "upstreams[2].endpoints",
    ];
    for place in expected {
        assert!(places.contains(&place), "{place}\n{found:#?}");
    }
    assert_eq!(places.len(), expected.len(), "{found:#?}");
}

#[test]
fn several_upstreams_need_rules() {
    let text = FRONT.replace("upstreams: [", "upstreams: [{ name: b, endpoints: [\"b:1\"] }, ");
    let found = read(&text).map(|_| ()).expect_err("a fault");
    assert_eq!(
        found,
        ["a.yaml:3: upstreams: no rules, and 2 upstreams; allowed: rules that say what goes where, or one upstream"]
    );
}

#[test]
fn what_is_legal_and_dangerous_is_a_warning() {
    let text = FRONT.replace(", hosts: [a.example]", "");
    let loaded = read(&format!(
        "{text}trusted_proxies: [0.0.0.0/0]
defaults: {{ keepalive: off, idle_timeout: 5m }}
rules:
  - {{ name: a, upstream: chat, origin: {{ allow: any }} }}
  - {{ name: b, upstream: chat }}
  - {{ name: c, upstream: chat, match: {{ hosts: [c.example] }} }}
  - {{ name: d, upstream: chat, websocket: deny }}
"
    ))
    .expect("sound");
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    for start in [
        "a.yaml:4: trusted_proxies: nearly every peer",
        "a.yaml:5: defaults.keepalive: off",
        "a.yaml:5: defaults.idle_timeout: under 1h",
        "a.yaml:7: rules[0].origin.allow: every page",
        "a.yaml:8: rules[1].origin: same_origin is relied on",
    ] {
        assert_eq!(warnings.iter().filter(|warning| warning.starts_with(start)).count(), 1, "{start}\n{warnings:#?}");
    }
    assert_eq!(warnings.len(), 5, "{warnings:#?}");
}

#[test]
fn rule_files_come_after_the_rules_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("main.yaml", &format!("{FRONT}rules: [{{ name: z, upstream: chat }}]\nrule_files: [\"r/*.yaml\"]\n"));
    std::fs::create_dir(folder.path().join("r")).expect("a folder");
    write("r/b.yaml", "rules: [{ name: b, upstream: chat }]");
    write("r/a.yaml", "rules: [{ name: a2, upstream: chat }, { name: a1, upstream: chat }]");
    write("r/.c.yaml", "no rules");
    let loaded = load(&folder.path().join("main.yaml")).unwrap_or_else(|faults| panic!("{faults:#?}"));
    let names: Vec<&str> = loaded.config.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["z", "a2", "a1", "b"]);

    write("r/b.yaml", "rules: [{ name: z, upstream: x }]\nlisteners: []\n");
    write(
        "main.yaml",
        &format!("{FRONT}rules: [{{ name: z, upstream: chat }}]\nrule_files: [\"r/*.yaml\", none.yaml]\n"),
    );
    let found = load(&folder.path().join("main.yaml")).map(|_| ()).expect_err("faults");
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(shown[0].contains("main.yaml:5: rule_files[1]: \"none.yaml\", which no file matches"), "{shown:#?}");
    assert!(shown[1].contains("r/b.yaml:1: rules[0].name: \"z\", which "), "{shown:#?}");
    assert!(shown[2].contains("r/b.yaml:1: rules[0].upstream: \"x\"; allowed: an upstream: chat"), "{shown:#?}");
    assert!(shown[3].contains("r/b.yaml:2: listeners: unknown key; allowed: rules"), "{shown:#?}");
    assert_eq!(shown.len(), 4, "{shown:#?}");
}

#[test]
fn a_file_that_cannot_be_read_is_one_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("main.yaml");
    let fault = |path: &Path| load(path).map(|_| ()).expect_err("a fault").remove(0);
    assert!(fault(&path).found.starts_with("cannot be read"));
    std::fs::write(&path, b"a: 1\nb: \xff\n").expect("written");
    assert_eq!((fault(&path).line, fault(&path).found.as_str()), (2, "bytes that are not UTF-8"));
    std::fs::write(&path, " ".repeat(yaml::MAX_FILE_BYTES + 1)).expect("written");
    assert_eq!(fault(&path).found, "more than 1 MiB");
    std::fs::write(&path, "").expect("written");
    assert!(fault(&path).found.contains("nothing"), "{}", fault(&path));
    assert!(fault(folder.path()).found.starts_with("cannot be read"));
}

#[test]
fn a_file_of_rules_alone_is_checked_as_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rules.yaml");
    let checked = |text: &str| {
        std::fs::write(&path, text).expect("written");
        check(&path)
    };
    let sound = checked("rules: [{ name: a, upstream: anything, match: { listeners: [any] } }]").expect("sound");
    assert!(matches!(sound, Checked::Rules { rules: 1 }), "{sound:?}");
    let found =
        checked("rules: [{ name: a, upstream: b, keepalive: { timeout: 0s } }]\ndefaults: {}\n").expect_err("two");
    assert_eq!(
        found.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(),
        ["rules[0].keepalive.timeout", "defaults"]
    );
    // What has a key of a main file is one, and misses the others.
    let found = checked("version: 1\nrules: []\n").expect_err("a main file");
    assert_eq!(found.iter().map(|fault| fault.path.as_str()).collect::<Vec<_>>(), ["listeners", "upstreams"]);
    assert!(matches!(checked(FRONT).expect("sound"), Checked::Main(_)));
}

#[test]
fn every_shipped_file_is_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |folder: &str| {
        let entries = std::fs::read_dir(root.join(folder)).expect("the folder");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.extension().is_some_and(|of| of == "yaml")).collect::<Vec<_>>()
    };
    for path in files("examples") {
        let loaded = load(&path).unwrap_or_else(|faults| panic!("{}: {faults:#?}", path.display()));
        assert!(loaded.warnings.is_empty(), "{}: {:#?}", path.display(), loaded.warnings);
    }
    for path in files("rules") {
        let text = std::fs::read_to_string(&path).expect("text");
        let checked = check_rules(Text { name: "rules", text: &text }, &|_| None);
        assert_eq!(checked, Ok(()), "{}", path.display());
        let rule = ["handshake.per_ip", "connections.per_ip"];
        assert!(rule.iter().all(|key| !text.contains(&format!("{}:", key.rsplit('.').next().unwrap_or(key)))));
    }
}

#[test]
fn no_text_makes_the_reader_panic() {
    for text in [
        "",
        "~",
        "1",
        "a",
        "[]",
        "{}",
        "rules: 1",
        "listeners: [1]",
        "defaults: []",
        "rules: [[]]",
        ": :",
        "\u{feff}a: 1",
        "- a",
        "a: {b: {c: [{}]}}",
    ] {
        assert!(read(text).is_err(), "{text}");
        assert!(read(&format!("{FRONT}x: {text}")).is_err(), "{text}");
    }
}
