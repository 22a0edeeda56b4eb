//! From what the user wrote about fan-out to what the program uses.

use std::net::SocketAddr;
use std::sync::Arc;

use ring::rand::SystemRandom;

use super::build::Report;
use super::key_path::KeyPath;
use super::model::{Backplane, EngineKind, GripSignature, Publish};
use super::ranges;
use super::raw_backplane::{RawBackplane, RawEngine, RawHistory, RawPublish};
use super::units::{Count, Size};
use super::{build_channels, build_nats, build_rabbitmq, build_redis, files};
use crate::backplane::engine::{DEDUPE_WINDOW, Retention};
use crate::backplane::position::{MAX_REGIONS, Region};
use crate::grip::signature::{SigningKey, VerifyingKey};
use crate::policy::{Fault, range};

const SIG_ISS: &str = "sluicegate";

pub(super) fn build(raw: &RawBackplane, base: &KeyPath, report: &mut Report<'_>) -> Option<Backplane> {
    let region = raw.region.as_deref().map_or_else(|| Ok(Region::default()), Region::new).map_err(|_| {
        let allowed = "1 to 32 lower-case letters, digits and \"-\"";
        let fault = Fault::new("region", format!("{:?}", raw.region.as_deref().unwrap_or_default()), allowed);
        report.extend(base, Some(fault));
    });
    let engine = match &raw.engine {
        None => Some(EngineKind::Memory),
        Some(raw) => engine(raw, &base.key("engine"), report),
    };
    let regions = regions(raw, base, report);
    let publish_failover = publish_failover(raw, base, report);
    let ingest = build_redis::ingest(&raw.ingest, engine.as_ref(), base, report);
    // Those with a fault have said so.
    let engines = engine.iter().chain(regions.iter().flatten().map(|(_, engine)| engine));
    let keeps_latest = engines.into_iter().all(EngineKind::keeps_latest);
    let own = region.as_ref().ok().map(Region::as_str);
    let names: Vec<&str> = own.into_iter().chain(raw.regions.keys().map(String::as_str)).collect();
    let channels = build_channels::build(&raw.channels, &names, keeps_latest, &ingest, base, report);
    let retention = history(&raw.history, &base.key("history"), report);
    let dedupe_window = raw.dedupe_window.map_or(DEDUPE_WINDOW, |span| span.0);
    report.extend(base, range::span("dedupe_window", dedupe_window, &ranges::DEDUPE_WINDOW));
    let publish = match &raw.publish {
        Some(raw) => Some(publish(raw, &base.key("publish"), report)?),
        None => None,
    };
    let base = base.key("grip");
    let key = raw.grip.sig_key_file.as_deref().map(|file| {
        let read = files::read_secret(report.source, file);
        read.and_then(|key| SigningKey::from_text(&key, &SystemRandom::new()).map_err(|error| error.to_string()))
            .map_err(|why| {
                let fault = Fault::new("sig_key_file", format!("{file:?}"), format!("a file with a key ({why})"));
                report.extend(&base, Some(fault));
            })
    });
    let issuer = raw.grip.sig_iss.clone().unwrap_or_else(|| SIG_ISS.to_owned());
    let signature = match key {
        Some(key) => Some(GripSignature { key: Arc::new(key.ok()?), issuer }),
        None => None,
    };
    Some(Backplane {
        region: region.ok()?,
        engine: engine?,
        regions: regions?,
        publish_failover: publish_failover?,
        required_for_readiness: raw.required_for_readiness.unwrap_or(false),
        ingest,
        channels,
        retention,
        dedupe_window,
        publish,
        signature,
    })
}

/// The engines of other regions.
fn regions(raw: &RawBackplane, base: &KeyPath, report: &mut Report<'_>) -> Option<Vec<(Region, EngineKind)>> {
    let fault = |found: String, allowed: &str| Some(Fault::new("regions", found, allowed));
    if raw.regions.len() >= MAX_REGIONS {
        let allowed = format!("at most {} besides our own", MAX_REGIONS - 1);
        report.extend(base, fault(format!("{} regions", raw.regions.len()), &allowed));
        return None;
    }
    if !raw.regions.is_empty() && raw.region.is_none() {
        report.extend(base, fault("other regions without `region`".to_owned(), "beside `region`, the name of our own"));
        return None;
    }
    let base = base.key("regions");
    let mut built = Vec::new();
    let mut sound = true;
    for (name, raw_engine) in &raw.regions {
        let region = Region::new(name).ok().filter(|region| Some(region.as_str()) != raw.region.as_deref());
        if region.is_none() {
            let allowed = "1 to 32 lower-case letters, digits and \"-\", and not the name of our own region";
            report.extend(&base, Some(Fault::new(name, format!("{name:?}"), allowed)));
        }
        let engine = match raw_engine {
            RawEngine::Name(_) => {
                let allowed = "an engine that can be reached from here: that in memory is another process's own";
                report.extend(&base, Some(Fault::new(name, "memory", allowed)));
                None
            }
            raw_engine => engine(raw_engine, &base.key(name), report),
        };
        match (region, engine) {
            (Some(region), Some(engine)) => built.push((region, engine)),
            _ => sound = false,
        }
    }
    sound.then_some(built)
}

/// Where a publication goes that our own engine does not take.
fn publish_failover(raw: &RawBackplane, base: &KeyPath, report: &mut Report<'_>) -> Option<Vec<Region>> {
    let mut built: Vec<Region> = Vec::new();
    for (nth, name) in raw.publish_failover.iter().enumerate() {
        let known = raw.regions.contains_key(name);
        match Region::new(name).ok().filter(|region| known && !built.contains(region)) {
            Some(region) => built.push(region),
            None => {
                let allowed = "names of `regions`, each once";
                let fault = Fault::new(format!("publish_failover[{nth}]"), format!("{name:?}"), allowed);
                report.extend(base, Some(fault));
                return None;
            }
        }
    }
    Some(built)
}

/// The engine of a region, whose key is `base`.
fn engine(raw: &RawEngine, base: &KeyPath, report: &mut Report<'_>) -> Option<EngineKind> {
    match raw {
        RawEngine::Name(_) => Some(EngineKind::Memory),
        RawEngine::Redis(raw) => build_redis::build(&raw.redis, &base.key("redis"), report).map(EngineKind::Redis),
        RawEngine::Nats(raw) => build_nats::build(&raw.nats, &base.key("nats"), report).map(EngineKind::Nats),
        RawEngine::RabbitMq(raw) => {
            build_rabbitmq::build(&raw.rabbitmq, &base.key("rabbitmq"), report).map(EngineKind::RabbitMq)
        }
    }
}

fn history(raw: &RawHistory, base: &KeyPath, report: &mut Report<'_>) -> Retention {
    let defaults = Retention::default();
    let max_entries = raw.max_messages.unwrap_or(Count(defaults.max_entries as u64));
    let max_age = raw.max_age.map_or(defaults.max_age, |span| span.0);
    let max_bytes = raw.max_bytes.unwrap_or(Size(defaults.max_bytes as u64)).0;
    let faults = [
        range::count("max_messages", max_entries.0, &ranges::HISTORY_MESSAGES),
        range::span("max_age", max_age, &ranges::HISTORY_AGE),
        range::size("max_bytes", max_bytes, &ranges::HISTORY_BYTES),
    ];
    report.extend(base, faults.into_iter().flatten());
    Retention { max_entries: ranges::to_usize(max_entries), max_age, max_bytes: ranges::to_usize(Count(max_bytes)) }
}

fn publish(raw: &RawPublish, base: &KeyPath, report: &mut Report<'_>) -> Option<Publish> {
    let bind: SocketAddr = super::build::address("bind", raw.bind.as_deref()?, report, base)?;
    let token = match raw.token_file.as_deref() {
        Some(file) => Some(super::build::token(file, report, base)?),
        None => None,
    };
    let jwt = match raw.jwt_key_file.as_deref() {
        None => None,
        Some(file) => {
            let read = files::read_secret(report.source, file);
            let key = read.and_then(|key| VerifyingKey::from_text(&key).map_err(|error| error.to_string()));
            match key {
                Ok(key) => Some(Arc::new(key)),
                Err(why) => {
                    let fault = Fault::new("jwt_key_file", format!("{file:?}"), format!("a file with a key ({why})"));
                    report.extend(base, Some(fault));
                    return None;
                }
            }
        }
    };
    if !bind.ip().to_canonical().is_loopback() && token.is_none() && jwt.is_none() {
        let allowed =
            "a loopback address; or a `token_file` or `jwt_key_file` beside it, so that not everybody can publish";
        report.extend(base, Some(Fault::new("bind", format!("\"{bind}\""), allowed)));
        return None;
    }
    Some(Publish { bind, token, jwt })
}

#[cfg(test)]
mod tests {
    use crate::backplane::engine::Channel;
    use crate::backplane::position::Region;
    use crate::backplane::redis::{Credentials, Servers};
    use crate::config::{BackplaneMode, CompressionMode, EngineKind, Loaded, Text, parse};

    const FRONT: &str = "listeners: [{ name: public, bind: \"127.0.0.1:0\", hosts: [a.example] }]\n\
                         upstreams: [{ name: chat, endpoints: [\"127.0.0.1:9001\"] }]\n";

    fn read(text: &str) -> Result<Loaded, Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("a.key", "0123456789abcdef\n"), ("short", "0123"), ("empty", "")] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let name = folder.path().join("a.yaml").display().to_string();
        let text = format!("{FRONT}{text}");
        parse(Text { name: &name, text: &text }, &[], &|_| None).map_err(|faults| {
            let start = format!("{}/", folder.path().display());
            faults.iter().map(|fault| fault.to_string().trim_start_matches(&start).to_owned()).collect()
        })
    }

    #[test]
    fn other_regions_have_engines_of_their_own() {
        let text = "backplane:
  region: eu
  engine: { redis: { url: \"redis://a:1\" } }
  regions: { us: { redis: { url: \"redis://b:1\" } }, ap: { redis: { url: \"redis://c:1\" } } }
  publish_failover: [us, ap]
  required_for_readiness: true
";
        let backplane = read(text).expect("sound").config.backplane.expect("written");
        let names: Vec<_> = backplane.regions.iter().map(|(region, _)| region.as_str()).collect();
        assert_eq!(names, ["ap", "us"]);
        let failover: Vec<_> = backplane.publish_failover.iter().map(Region::as_str).collect();
        assert_eq!((failover, backplane.required_for_readiness), (vec!["us", "ap"], true));
    }

    #[test]
    fn a_rule_with_a_backplane_needs_no_more() {
        let loaded = read("rules: [{ name: r, upstream: chat, backplane: grip }]\n").expect("sound");
        let backplane = loaded.config.backplane.expect("the default");
        assert!(matches!(backplane.engine, EngineKind::Memory));
        assert!(backplane.publish.is_none() && backplane.signature.is_none());
        assert_eq!(backplane.region.as_str(), "local");
        assert_eq!(loaded.config.rules[0].compression, CompressionMode::Terminate);
        assert_eq!(loaded.config.rules[0].backplane, Some(BackplaneMode::Grip));
        let none = read("rules: [{ name: r, upstream: chat }]\n").expect("sound");
        assert!(none.config.backplane.is_none());
        assert_eq!(none.config.rules[0].compression, CompressionMode::Passthrough);
    }

    #[test]
    fn everything_can_be_written() {
        let text = "backplane:
  region: eu-1
  engine: { redis: { url: \"rediss://redis.internal:6379\", username: u, password_file: a.key } }
  ingest:
    - { streams: \"room:*\", id_field: msgId, data_field: message }
    - { streams: \"app:*:events\", channel: \"events:*\", data_field: d }
  history: { max_messages: 10, max_age: 1h, max_bytes: 2MiB }
  dedupe_window: 10m
  publish: { bind: \"0.0.0.0:5561\", token_file: a.key, jwt_key_file: a.key }
  grip: { sig_key_file: a.key, sig_iss: me }
rules:
  - name: r
    upstream: chat
    backplane: grip
    slow_client: { max_queue_messages: 7, max_queue_bytes: 64KiB }
";
        let loaded = read(text).expect("sound");
        let backplane = loaded.config.backplane.expect("written");
        let EngineKind::Redis(access) = backplane.engine else { panic!("no Redis") };
        assert_eq!(access.servers, Servers::Standalone { url: "rediss://redis.internal:6379".to_owned() });
        let credentials = Credentials { username: Some("u".to_owned()), password: Some("0123456789abcdef".to_owned()) };
        assert_eq!((access.credentials, access.sentinel_credentials), (credentials, Credentials::default()));
        let channel = Channel::new("events:7").expect("a name");
        let stream = backplane.ingest.iter().find_map(|rule| rule.stream_of(&channel));
        assert_eq!((backplane.ingest.len(), stream.as_deref()), (2, Some("app:7:events")));
        assert_eq!((backplane.retention.max_entries, backplane.retention.max_bytes), (10, 2 << 20));
        assert_eq!(backplane.retention.max_age.as_secs(), 3600);
        assert_eq!(backplane.dedupe_window.as_secs(), 600);
        let publish = backplane.publish.expect("written");
        assert!(publish.token.is_some() && publish.jwt.is_some());
        assert_eq!(backplane.signature.expect("written").issuer, "me");
        let queue = loaded.config.rules[0].queue;
        assert_eq!((queue.max_messages, queue.max_bytes), (7, 64 << 10));
    }

    #[test]
    fn redis_may_be_behind_sentinels_or_a_cluster_or_in_shards() {
        let engine = |redis: &str| {
            let loaded = read(&format!("backplane: {{ engine: {{ redis: {redis} }} }}")).expect("sound");
            match loaded.config.backplane.expect("written").engine {
                EngineKind::Redis(access) => access,
                other => panic!("no Redis: {other:?}"),
            }
        };
        let urls = vec!["rediss://a:26379".to_owned(), "rediss://b:26379".to_owned()];
        let written = "[\"rediss://a:26379\", \"rediss://b:26379\"]";
        let access = engine(&format!(
            "{{ sentinel: {{ urls: {written}, master: main, username: s, password_file: a.key }}, username: u }}"
        ));
        assert_eq!(access.servers, Servers::Sentinel { urls: urls.clone(), master: "main".to_owned() });
        assert_eq!((access.credentials.username.as_deref(), access.credentials.password), (Some("u"), None));
        assert_eq!(access.sentinel_credentials.username.as_deref(), Some("s"));
        assert_eq!(access.sentinel_credentials.password.as_deref(), Some("0123456789abcdef"));
        let access = engine(&format!("{{ cluster: {{ urls: {written} }}, password_file: a.key }}"));
        assert_eq!(access.servers, Servers::Cluster { urls });
        assert_eq!(access.credentials.password.as_deref(), Some("0123456789abcdef"));
        let access = engine(
            "{ shards: [\"redis://b\", \"redis://a:1\"], generation: 3, gone: [\"redis://c\"], password_file: a.key }",
        );
        let Servers::Shards(shards) = access.servers else { panic!("no shards") };
        assert!(shards.list.urls().eq(["redis://a:1", "redis://b:6379"]));
        assert!(shards.generation == 3 && shards.gone.iter().eq(["redis://c:6379"]));
        assert_eq!(access.credentials.password.as_deref(), Some("0123456789abcdef"));
    }

    #[test]
    fn nats_is_one_server_or_several_of_a_cluster() {
        let engine = |nats: &str| {
            let loaded = read(&format!("backplane: {{ engine: {{ nats: {nats} }} }}")).expect("sound");
            match loaded.config.backplane.expect("written").engine {
                EngineKind::Nats(access) => (access, loaded.warnings),
                other => panic!("no NATS: {other:?}"),
            }
        };
        let (access, warnings) = engine("{ url: \"tls://nats.internal:4222\", username: u, password_file: a.key }");
        assert_eq!((access.urls, access.replicas), (vec!["tls://nats.internal:4222".to_owned()], 1));
        assert_eq!(access.credentials.username.as_deref(), Some("u"));
        assert_eq!(access.credentials.password.as_deref(), Some("0123456789abcdef"));
        let told: Vec<_> = warnings.iter().filter(|warning| warning.path == "backplane.engine").collect();
        assert!(told.len() == 1 && told[0].message.contains("sync_interval"), "{warnings:?}");
        let (access, _) = engine("{ urls: [\"nats://a:4222\", \"nats://b:4222\"], replicas: 3 }");
        assert_eq!((access.urls.len(), access.replicas), (2, 3));
    }

    #[test]
    fn a_rabbitmq_is_a_url_and_who_we_are_there() {
        let of = |written: &str| {
            let loaded = read(&format!("backplane: {{ engine: {{ rabbitmq: {written} }} }}")).expect("sound");
            assert!(loaded.warnings.iter().any(|warning| warning.path == "backplane.engine.rabbitmq"));
            match loaded.config.backplane.expect("written").engine {
                EngineKind::RabbitMq(access) => access,
                other => panic!("{other:?}"),
            }
        };
        let plain = of("{ url: \"amqp://a:5672\" }");
        assert_eq!((plain.url.as_str(), plain.username, plain.password), ("amqp://a:5672", None, None));
        let access = of("{ url: \"amqps://a/chat\", username: u, password_file: a.key }");
        let known = (access.username.as_deref(), access.password.as_deref());
        assert_eq!(known, (Some("u"), Some("0123456789abcdef")));
    }

    #[test]
    fn faults_name_their_key() {
        for (text, expected) in [
            ("backplane: { region: \"E U\" }", "backplane.region: \"E U\"; allowed: 1 to 32 lower-case letters"),
            (
                "backplane: { engine: { redis: { url: \"localhost\" } } }",
                "backplane.engine.redis.url: \"localhost\"; allowed",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://u:secret@a:1\" } } }",
                "backplane.engine.redis.url: a URL with a user; allowed",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\", password_file: none } } }",
                "backplane.engine.redis.password_file: \"none\"; allowed: a file that can be read",
            ),
            (
                "backplane: { engine: { redis: { username: u } } }",
                "backplane.engine.redis.url: this key is missing; allowed: one of `url`, `sentinel`, `cluster` and `shards`",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\", cluster: { urls: [\"redis://a:1\"] } } } }",
                "backplane.engine.redis.cluster: this beside `url`; allowed: only one of `url`, `sentinel`, `cluster` and ",
            ),
            (
                "backplane: { engine: { redis: { cluster: { urls: [] } } } }",
                "backplane.engine.redis.cluster.urls: a list of 0; allowed: 1 to 64 URLs",
            ),
            (
                "backplane: { engine: { redis: { cluster: { urls: [\"redis://a:1\", \"b:1\"] } } } }",
                "backplane.engine.redis.cluster.urls[1]: \"b:1\"; allowed: redis://HOST:PORT",
            ),
            (
                "backplane: { engine: { redis: { cluster: { urls: [\"redis://a:1\", \"rediss://b:1\"] } } } }",
                "backplane.engine.redis.cluster.urls[1]: \"rediss://b:1\"; allowed: a URL that begins as the first does",
            ),
            (
                "backplane: { engine: { redis: { sentinel: { urls: [\"redis://a:1\"] } } } }",
                "backplane.engine.redis.sentinel.master: this key is missing",
            ),
            (
                "backplane: { engine: { redis: { sentinel: { urls: [\"redis://a:1\"], master: \"\" } } } }",
                "backplane.engine.redis.sentinel.master: \"\"; allowed: the name of a master",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\", shard: [] } } }",
                "backplane.engine.redis.shard: unknown key",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\", generation: 1 } } }",
                "backplane.engine.redis.generation: this without `shards`; allowed: only with `shards`",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\"], generation: 1 } } }",
                "backplane.engine.redis.shards: a list of 1; allowed: 2 to 64 URLs",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\", \"redis://A:1\"], generation: 1 } } }",
                "backplane.engine.redis.shards: a:1 twice; allowed: each server once",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\", \"redis://u:secret@b\"], generation: 1 } } }",
                "backplane.engine.redis.shards: a URL with a user; allowed: redis://HOST:PORT",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\", \"redis://b:1\"] } } }",
                "backplane.engine.redis.generation: this key is missing; allowed: a number from 1",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\", \"redis://b:1\"], generation: 0 } } }",
                "backplane.engine.redis.generation: 0; allowed: a number from 1",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\", \"redis://b\"], generation: 2, gone: [\"redis://B:6379\"] } } }",
                "backplane.engine.redis.gone: \"redis://b:6379\"; allowed: no server that is in `shards`",
            ),
            (
                "backplane: { engine: { redis: { shards: [\"redis://a:1\", \"redis://b:1\"], generation: 1 } }, ingest: [{ streams: a, data_field: b }] }",
                "backplane.ingest: streams of a Redis; allowed: only with",
            ),
            (
                "backplane: { engine: { nast: { url: \"nats://a:1\" } } }",
                "backplane.engine: a mapping; allowed: memory, or a mapping with redis, or a mapping with nats",
            ),
            (
                "backplane: { engine: { nats: { url: \"localhost\" } } }",
                "backplane.engine.nats.url: \"localhost\"; allowed: nats://HOST:PORT or tls://HOST:PORT",
            ),
            (
                "backplane: { engine: { nats: { urls: [\"nats://a:1\", \"nats://u:secret@a:1\"] } } }",
                "backplane.engine.nats.urls[1]: a URL with a user; allowed",
            ),
            (
                "backplane: { engine: { nats: { urls: [\"nats://a:1\", \"tls://a:1\"] } } }",
                "backplane.engine.nats.urls[1]: \"tls://a:1\"; allowed: a URL that begins as the first does",
            ),
            (
                "backplane: { engine: { nats: { urls: [] } } }",
                "backplane.engine.nats.urls: a list of 0; allowed: 1 to 64 URLs",
            ),
            (
                "backplane: { engine: { nats: { replicas: 3 } } }",
                "backplane.engine.nats.url: this key is missing; allowed: one of `url` and `urls`",
            ),
            (
                "backplane: { engine: { nats: { url: \"nats://a:1\", urls: [\"nats://a:1\"] } } }",
                "backplane.engine.nats.urls: this beside `url`; allowed: only one of `url` and `urls`",
            ),
            (
                "backplane: { engine: { nats: { url: \"nats://a:1\", replicas: 6 } } }",
                "backplane.engine.nats.replicas: 6; allowed: a number from 1",
            ),
            (
                "backplane: { engine: { nats: { url: \"nats://a:1\", password_file: a.key } } }",
                "backplane.engine.nats.password_file: \"a.key\"; allowed: a `username` beside it",
            ),
            (
                "backplane: { engine: { nats: { url: \"nats://a:1\" } }, ingest: [{ streams: a, data_field: b }] }",
                "backplane.ingest: streams of a Redis; allowed: only with",
            ),
            (
                "backplane: { engine: { rabbitmq: { username: u } } }",
                "backplane.engine.rabbitmq.url: this key is missing",
            ),
            (
                "backplane: { engine: { rabbitmq: { url: \"amqp://u:secret@a:1\" } } }",
                "backplane.engine.rabbitmq.url: a URL with a user; allowed: amqp://HOST:PORT/VHOST",
            ),
            (
                "backplane: { engine: { rabbitmq: { url: \"amqp://a:1?heartbeat=1\" } } }",
                "backplane.engine.rabbitmq.url: \"amqp://a:1?heartbeat=1\"; allowed",
            ),
            (
                "backplane: { engine: { rabbitmq: { url: \"redis://a:1\" } } }",
                "backplane.engine.rabbitmq.url: \"redis://a:1\"; allowed",
            ),
            (
                "backplane: { engine: { rabbitmq: { url: \"amqp://a:1\", password_file: none } } }",
                "backplane.engine.rabbitmq.password_file: \"none\"; allowed: a file that can be read",
            ),
            (
                "backplane: { engine: { rabbitmq: { url: \"amqp://a:1\", stream: x } } }",
                "backplane.engine.rabbitmq.stream: unknown key",
            ),
            (
                "backplane: { engine: { rabbitmq: { url: \"amqp://a\" } }, ingest: [{ streams: a, data_field: b }] }",
                "backplane.ingest: streams of a Redis; allowed: only with an engine that is one Redis server",
            ),
            (
                "backplane: { history: { max_messages: 0 } }",
                "backplane.history.max_messages: 0; allowed: a number from 1",
            ),
            ("backplane: { dedupe_window: 2d }", "backplane.dedupe_window: \"48h\"; allowed: a duration from"),
            ("backplane: { publish: {} }", "backplane.publish.bind: this key is missing"),
            (
                "backplane: { publish: { bind: \"0.0.0.0:1\" } }",
                "backplane.publish.bind: \"0.0.0.0:1\"; allowed: a loopback address; or a `token_file`",
            ),
            (
                "backplane: { publish: { bind: \"127.0.0.1:9901\" } }",
                "backplane.publish.bind: \"127.0.0.1:9901\" again",
            ),
            (
                "backplane: { publish: { bind: \"127.0.0.1:1\", token_file: short } }",
                "backplane.publish.token_file: a token that is short",
            ),
            (
                "backplane: { grip: { sig_key_file: empty } }",
                "backplane.grip.sig_key_file: \"empty\"; allowed: a file with a key (key is empty)",
            ),
            (
                "backplane: { ingest: [{ streams: \"room:*\", data_field: message }] }",
                "backplane.ingest: streams of a Redis; allowed: only with an engine that is one Redis server",
            ),
            (
                "backplane: { engine: { redis: { cluster: { urls: [\"redis://a:1\"] } } }, ingest: [{ streams: a, data_field: b }] }",
                "backplane.ingest: streams of a Redis; allowed: only with",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\" } }, ingest: [{ streams: \"a*b*\", data_field: d }] }",
                "backplane.ingest[0].streams: \"a*b*\"; allowed: a key with at most one `*`",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\" } }, ingest: [{ streams: \"sg:*\", data_field: d }] }",
                "backplane.ingest[0].streams: \"sg:*\"; allowed",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\" } }, ingest: [{ streams: \"a:*\", channel: b, data_field: d }] }",
                "backplane.ingest[0].channel: \"b\"; allowed: a channel's name with one `*`",
            ),
            (
                "backplane: { engine: { redis: { url: \"redis://a:1\" } }, ingest: [{ streams: \"a:*\" }] }",
                "backplane.ingest[0].data_field: this key is missing",
            ),
            (
                "backplane: { regions: { us: { redis: { url: \"redis://a:1\" } } } }",
                "backplane.regions: other regions without `region`; allowed: beside `region`",
            ),
            (
                "backplane: { region: eu, regions: { eu: { redis: { url: \"redis://a:1\" } } } }",
                "backplane.regions.eu: \"eu\"; allowed: 1 to 32 lower-case letters, digits and \"-\", and not the name of our own",
            ),
            (
                "backplane: { region: eu, regions: { us: memory } }",
                "backplane.regions.us: memory; allowed: an engine that can be reached from here",
            ),
            (
                "backplane: { region: eu, regions: { us: { redis: { url: \"a\" } } } }",
                "backplane.regions.us.redis.url: \"a\"; allowed",
            ),
            (
                "backplane: { region: eu, regions: { us: { redis: { url: \"redis://a:1\" } } }, publish_failover: [us, ap] }",
                "backplane.publish_failover[1]: \"ap\"; allowed: names of `regions`, each once",
            ),
            (
                "rules: [{ name: r, upstream: chat, backplane: grip, compression: passthrough }]",
                "rules[0].compression: \"passthrough\"; allowed: terminate or refuse",
            ),
            (
                "rules: [{ name: r, upstream: chat, slow_client: { max_queue_messages: 0 } }]",
                "rules[0].slow_client.max_queue_messages: 0; allowed: a number from 1",
            ),
        ] {
            let found = read(text).map(|_| ()).expect_err(text);
            assert!(found.len() == 1 && found[0].contains(expected), "{text}\n{found:#?}");
        }
    }
}
