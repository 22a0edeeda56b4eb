//! From what the user wrote about channels, by how their names begin, to what the program uses.

use super::build::Report;
use super::key_path::KeyPath;
use super::ranges;
use super::raw_backplane::{RawChannel, RawConflate, RawJoin};
use crate::backplane::channels::{ChannelRule, ChannelRules, Conflation, INTERVAL, Join, KeySource, MAX_RULES};
use crate::backplane::engine::MAX_CHANNEL_BYTES;
use crate::backplane::position::Region;
use crate::backplane::redis::IngestRule;
use crate::policy::{Fault, range};

pub(super) fn build(
    raw: &[RawChannel],
    regions: &[&str],
    keeps_latest: bool,
    ingest: &[IngestRule],
    base: &KeyPath,
    report: &mut Report<'_>,
) -> ChannelRules {
    if raw.len() > MAX_RULES {
        let fault = Fault::new("channels", format!("a list of {}", raw.len()), format!("at most {MAX_RULES}"));
        report.extend(base, Some(fault));
        return ChannelRules::default();
    }
    let base = base.key("channels");
    let mut rules: Vec<ChannelRule> = Vec::new();
    for (nth, raw) in raw.iter().enumerate() {
        let base = base.index(nth);
        let Some(rule) = rule(raw, regions, &base, report) else { continue };
        let mut fault = |key, found: String, allowed: &str| report.extend(&base, Some(Fault::new(key, found, allowed)));
        if rules.iter().any(|other| other.prefix == rule.prefix) {
            fault("prefix", format!("{:?} again", rule.prefix), "a prefix that no other rule has");
            continue;
        }
        if rule.conflate.is_some() {
            for (refused, found, allowed) in refusals(&rule.prefix, keeps_latest, ingest) {
                if refused {
                    fault("conflate", found.to_owned(), allowed);
                }
            }
        }
        rules.push(rule);
    }
    ChannelRules::new(rules)
}

/// Why channels cannot be conflated here: whether, what is found, and what is allowed.
fn refusals(prefix: &str, keeps_latest: bool, ingest: &[IngestRule]) -> [(bool, &'static str, &'static str); 2] {
    let filled = ingest.iter().any(|rule| rule.channels.may_begin_with(prefix));
    [
        (
            !keeps_latest,
            "this with an engine that keeps no newest values",
            "only with engines that do: `memory` and `redis`",
        ),
        (
            filled,
            "this for channels that `ingest` fills",
            "only for channels that are published to: others have no keys",
        ),
    ]
}

fn rule(raw: &RawChannel, regions: &[&str], base: &KeyPath, report: &mut Report<'_>) -> Option<ChannelRule> {
    let prefix = raw.prefix.clone()?;
    if !(1..=MAX_CHANNEL_BYTES).contains(&prefix.len()) {
        let allowed = format!("1 to {MAX_CHANNEL_BYTES} bytes");
        report.extend(base, Some(Fault::new("prefix", format!("a text of {} bytes", prefix.len()), allowed)));
        return None;
    }
    let home = match raw.home.as_deref() {
        None => None,
        Some(name) => match Region::new(name).ok().filter(|region| regions.contains(&region.as_str())) {
            Some(region) => Some(region),
            None => {
                let allowed = "the name of our own region or one of `regions`";
                report.extend(base, Some(Fault::new("home", format!("{name:?}"), allowed)));
                return None;
            }
        },
    };
    let conflate = match &raw.conflate {
        Some(raw) => Some(conflation(raw, &base.key("conflate"), report)?),
        None => None,
    };
    Some(ChannelRule { prefix, home, conflate })
}

fn conflation(raw: &RawConflate, base: &KeyPath, report: &mut Report<'_>) -> Option<Conflation> {
    let interval = raw.interval.map_or(INTERVAL, |span| span.0);
    report.extend(base, range::span("interval", interval, &ranges::CONFLATE_INTERVAL));
    let key = match raw.key.as_deref() {
        None => Some(KeySource::default()),
        Some(text) => KeySource::from_text(text).or_else(|| {
            let allowed = "`meta:` and a name, or `json:` and a JSON Pointer such as `json:/symbol`";
            report.extend(base, Some(Fault::new("key", format!("{text:?}"), allowed)));
            None
        }),
    };
    let join = match raw.join {
        None | Some(RawJoin::Messages) => Join::Messages,
        Some(RawJoin::JsonArray) => Join::JsonArray,
    };
    Some(Conflation { interval, key: key?, join })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backplane::engine::Channel;
    use crate::backplane::redis::Pattern;
    use crate::config::{Text, parse};

    const FRONT: &str = "listeners: [{ name: public, bind: \"127.0.0.1:0\", hosts: [a.example] }]\n\
                         upstreams: [{ name: chat, endpoints: [\"127.0.0.1:9001\"] }]\n";

    fn read(text: &str) -> Result<ChannelRules, Vec<String>> {
        let text = format!("{FRONT}backplane: {{ {text} }}\n");
        parse(Text { name: "a.yaml", text: &text }, &[], &|_| None)
            .map(|loaded| loaded.config.backplane.expect("written").channels)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn rules_are_read_with_their_defaults() {
        let rules = read(
            "channels: [{ prefix: \"a:\", conflate: {} }, \
             { prefix: \"a:raw:\" }, \
             { prefix: \"b:\", conflate: { interval: 1s, key: \"json:/s\", join: json_array } }]",
        )
        .expect("sound");
        let of = |name: &str| rules.conflation(&Channel::new(name).expect("a name")).cloned();
        assert_eq!(of("a:x"), Some(Conflation::default()));
        assert_eq!((of("a:raw:x"), of("c")), (None, None));
        let (interval, key) = (Duration::from_secs(1), KeySource::Json("/s".to_owned()));
        assert_eq!(of("b:x"), Some(Conflation { interval, key, join: Join::JsonArray }));
    }

    #[test]
    fn faults_name_their_key() {
        let redis = "engine: { redis: { url: \"redis://a:1\" } }, \
                     ingest: [{ streams: \"s:*\", channel: \"room:*\", data_field: d }]";
        for (text, expected) in [
            ("channels: [{}]", "backplane.channels[0].prefix: this key is missing"),
            (
                "channels: [{ prefix: \"\" }]",
                "backplane.channels[0].prefix: a text of 0 bytes; allowed: 1 to 512 bytes",
            ),
            ("channels: [{ prefix: a }, { prefix: a }]", "backplane.channels[1].prefix: \"a\" again; allowed"),
            (
                "region: eu, channels: [{ prefix: a, home: us }]",
                "backplane.channels[0].home: \"us\"; allowed: the name of our own region or one of `regions`",
            ),
            (
                "channels: [{ prefix: a, conflate: { interval: 5ms } }]",
                "backplane.channels[0].conflate.interval: \"5ms\"; allowed: a duration from",
            ),
            (
                "channels: [{ prefix: a, conflate: { key: \"json:s\" } }]",
                "backplane.channels[0].conflate.key: \"json:s\"; allowed: `meta:` and a name",
            ),
            ("channels: [{ prefix: a, conflate: { join: array } }]", "backplane.channels[0].conflate.join: \"array\""),
            (
                &format!("{redis}, channels: [{{ prefix: ro, conflate: {{}} }}]"),
                "backplane.channels[0].conflate: this for channels that `ingest` fills; allowed",
            ),
        ] {
            let found = read(text).map(|_| ()).expect_err(text);
            assert!(found.len() == 1 && found[0].contains(expected), "{text}\n{found:#?}");
        }
        assert!(read(&format!("{redis}, channels: [{{ prefix: ro }}]")).is_ok(), "without `conflate` it may");
        let many: Vec<_> = (0..65).map(|nth| format!("{{ prefix: p{nth} }}")).collect();
        let found = read(&format!("channels: [{}]", many.join(", "))).expect_err("too many");
        assert!(found[0].contains("backplane.channels: a list of 65; allowed: at most 64"), "{found:?}");
    }

    #[test]
    fn what_conflation_needs_is_known_before_it_is_started() {
        let pattern = |text: &str| Pattern::new(text).expect("a pattern");
        let rule = |channels: &str| IngestRule {
            streams: pattern("s"),
            channels: pattern(channels),
            id_field: String::new(),
            data_field: "d".to_owned(),
        };
        for (prefix, channels, filled) in [
            ("room:", "room:*", true),
            ("room:x", "room:*", true),
            ("ro", "room:*:x", true),
            ("room", "room", true),
            ("room:", "room", false),
            ("room:", "rooms:*", false),
            ("b", "a*b", false),
        ] {
            assert_eq!(
                refusals(prefix, true, &[rule(channels)]).map(|(refused, ..)| refused),
                [false, filled],
                "{prefix}"
            );
        }
        assert_eq!(refusals("a", false, &[]).map(|(refused, ..)| refused), [true, false]);
        assert!(crate::config::EngineKind::Memory.keeps_latest());
    }
}
