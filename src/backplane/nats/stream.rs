//! The stream that all channels are in: what it has to be, and what is done where it is not.
//!
//! Whoever comes first makes it. What makes it ours (its subjects, what it republishes) is fixed; a stream that differs
//! there is refused, and the error names the first difference. Its limits are only ever raised to what this gateway keeps,
//! so that two gateways with other limits do not fight, and each reads no more than its own `history`: lowering them is
//! for the operator. Everything else (storage, placement, replicas, bytes) is left as it is found.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::engine::EngineError;
use super::super::position::Region;
use super::settings::Settings;
use super::subjects::{PUSHED, STORED, STREAM};
use super::wire::{ApiError, malformed};

/// How a stream of ours is described, with its region behind.
const DESCRIPTION: &str = "sluicegate ";

/// What is known of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it was made: tells it from another of its name.
    pub created: String,
    /// Who leads it, in a cluster.
    pub leader: Option<String>,
    /// How many servers have it.
    pub replicas: u64,
    /// The server's time when it stored last, in milliseconds since 1970; 0 if it never did.
    pub last_ms: u64,
}

/// The answer to a question about a stream.
#[derive(Debug, Deserialize)]
pub struct Info {
    #[serde(default)]
    pub error: Option<ApiError>,
    #[serde(default)]
    pub config: Map<String, Value>,
    #[serde(default)]
    created: String,
    #[serde(default)]
    state: State,
    #[serde(default)]
    cluster: Option<Cluster>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    last_seq: u64,
    last_ts: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cluster {
    leader: Option<String>,
}

impl Info {
    /// How many servers have it.
    pub fn replicas(&self) -> u64 {
        self.config.get("num_replicas").and_then(Value::as_u64).unwrap_or(1)
    }

    pub fn seen(&self) -> Result<Seen, EngineError> {
        let parsed = time::OffsetDateTime::parse(&self.state.last_ts, &time::format_description::well_known::Rfc3339);
        let last_ms = match parsed {
            Ok(at) if self.state.last_seq > 0 => u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0),
            Ok(_) => 0,
            Err(_) => return Err(malformed("the time of a stream")),
        };
        Ok(Seen {
            created: self.created.clone(),
            leader: self.cluster.as_ref().and_then(|cluster| cluster.leader.clone()),
            replicas: self.replicas(),
            last_ms,
        })
    }
}

/// The stream that this gateway makes.
pub fn wanted(settings: &Settings, region: &Region) -> Value {
    json!({
        "name": STREAM,
        "description": format!("{DESCRIPTION}{region}"),
        "subjects": [STORED],
        "retention": "limits",
        "discard": "old",
        "storage": "file",
        "num_replicas": settings.replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs_per_subject": settings.retention.max_entries.max(1),
        "max_age": nanos(settings.stored_for()),
        "duplicate_window": nanos(settings.dedupe_window),
        "republish": { "src": STORED, "dest": PUSHED },
        "allow_direct": true,
        "allow_rollup_hdrs": true,
    })
}

/// What a stream that is there has to become, or nothing if it will do.
///
/// # Errors
/// It is not ours.
pub fn check(
    found: &Map<String, Value>,
    settings: &Settings,
    region: &Region,
) -> Result<Option<Map<String, Value>>, EngineError> {
    let text = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default();
    let differs = |key: &str| Err(EngineError::Refused { code: format!("STREAM {key}") });
    let Some(found_region) = text("description").strip_prefix(DESCRIPTION) else { return differs("description") };
    if found_region != region.as_str() {
        let found = if Region::new(found_region).is_ok() { found_region } else { "?" };
        return Err(EngineError::WrongRegion { found: found.to_owned() });
    }
    if found.get("subjects") != Some(&json!([STORED])) {
        return differs("subjects");
    }
    for (key, value) in [("retention", "limits"), ("discard", "old")] {
        if text(key) != value {
            return differs(key);
        }
    }
    let republish = found.get("republish").and_then(Value::as_object);
    let part = |key: &str| republish.and_then(|republish| republish.get(key)).and_then(Value::as_str);
    let headers_only = republish.and_then(|republish| republish.get("headers_only")) == Some(&Value::Bool(true));
    if part("src") != Some(STORED) || part("dest") != Some(PUSHED) || headers_only {
        return differs("republish");
    }
    for (key, wanted) in [("allow_direct", true), ("allow_rollup_hdrs", true), ("no_ack", false), ("sealed", false)] {
        if found.get(key).and_then(Value::as_bool).unwrap_or(false) != wanted {
            return differs(key);
        }
    }
    let mut raised = found.clone();
    let count = i64::try_from(settings.retention.max_entries.max(1)).unwrap_or(i64::MAX);
    for (key, wanted) in [
        ("max_msgs_per_subject", count),
        ("max_age", nanos(settings.stored_for())),
        ("duplicate_window", nanos(settings.dedupe_window)),
    ] {
        let now = found.get(key).and_then(Value::as_i64).unwrap_or(0);
        // No limit at all is written as 0 or less; a window of nothing remembers nothing.
        let unlimited = now <= 0 && key != "duplicate_window";
        if !unlimited && now < wanted {
            raised.insert(key.to_owned(), wanted.into());
        }
    }
    Ok((raised != *found).then_some(raised))
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::super::engine::Retention;
    use super::*;

    fn region(name: &str) -> Region {
        Region::new(name).unwrap()
    }

    fn settings(max_entries: usize) -> Settings {
        let retention = Retention { max_entries, ..Retention::default() };
        Settings { retention, ..Settings::new(Vec::new()) }
    }

    fn made() -> Map<String, Value> {
        wanted(&settings(100), &region("eu")).as_object().unwrap().clone()
    }

    #[test]
    fn limits_are_raised_and_never_lowered_and_the_rest_stays() {
        assert_eq!(check(&made(), &settings(100), &region("eu")), Ok(None));
        assert_eq!(check(&made(), &settings(10), &region("eu")), Ok(None), "another gateway may keep more");
        let mut found = made();
        found.insert("compression".to_owned(), "s2".into());
        found.insert("duplicate_window".to_owned(), 1.into());
        let raised = check(&found, &settings(200), &region("eu")).unwrap().unwrap();
        assert_eq!(raised["max_msgs_per_subject"], 200);
        assert_eq!(raised["duplicate_window"], 300_000_000_000_u64);
        assert_eq!(raised["compression"], "s2");
        assert_eq!(check(&raised, &settings(100), &region("eu")), Ok(None));
        found = made();
        found.insert("max_msgs_per_subject".to_owned(), (-1).into());
        found.insert("max_age".to_owned(), 0.into());
        assert_eq!(check(&found, &settings(100), &region("eu")), Ok(None), "no limit is no limit");
    }

    #[test]
    fn what_is_not_ours_is_refused_with_the_difference() {
        let with = |key: &str, value: Value| {
            let mut found = made();
            found.insert(key.to_owned(), value);
            check(&found, &settings(100), &region("eu"))
        };
        let refused = |code: &str| Err(EngineError::Refused { code: code.to_owned() });
        for (key, value) in [
            ("description", json!("mine")),
            ("subjects", json!(["sluicegate.>"])),
            ("retention", json!("workqueue")),
            ("discard", json!("new")),
            ("republish", json!({ "src": STORED, "dest": "elsewhere.>" })),
            ("republish", json!({ "src": STORED, "dest": PUSHED, "headers_only": true })),
            ("republish", Value::Null),
            ("allow_direct", json!(false)),
            ("allow_rollup_hdrs", Value::Null),
            ("no_ack", json!(true)),
            ("sealed", json!(true)),
        ] {
            assert_eq!(with(key, value.clone()), refused(&format!("STREAM {key}")), "{value}");
        }
        let wrong = |found: &str| Err(EngineError::WrongRegion { found: found.to_owned() });
        assert_eq!(with("description", json!("sluicegate us")), wrong("us"));
        assert_eq!(with("description", json!("sluicegate U S")), wrong("?"));
    }

    #[test]
    fn the_answer_of_debians_server_is_read() {
        let text = r#"{"config":{"num_replicas":1},"created":"2026-11-25T00:44:23.615833367Z","state":{"messages":3,
            "last_seq":9,"last_ts":"2026-11-25T00:44:24.45247814Z"},"cluster":{"name":"c","leader":"n1"}}"#;
        let seen = serde_json::from_str::<Info>(text).unwrap().seen().unwrap();
        assert_eq!((seen.last_ms, seen.replicas, seen.leader.as_deref()), (1_795_567_464_452, 1, Some("n1")));
        let empty = r#"{"created":"x","state":{"last_seq":0,"last_ts":"0001-01-01T00:00:00Z"}}"#;
        assert_eq!(serde_json::from_str::<Info>(empty).unwrap().seen().unwrap().last_ms, 0);
        assert!(serde_json::from_str::<Info>(r#"{"state":{"last_ts":"yesterday"}}"#).unwrap().seen().is_err());
    }
}
