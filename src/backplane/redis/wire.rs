//! What Redis says: answers of the scripts, pushed messages, and errors. Nothing here awaits.

use bytes::Bytes;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use super::super::engine::{
    EngineError, Entry, Latest, LatestLimit, MessageId, PublishError, Published, Slice, Stored,
};
use super::super::position::{EntryId, Epoch, MAX_N, Position, Region};
use super::super::recover::{Log, Mark};
use super::shards;

/// Error codes of a server that did not begin to do what it was asked.
const NOT_BEGUN: [&str; 15] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    shards::REFUSED,
    "TRYAGAIN",
    "WRONGPASS",
];

/// Error codes of a server that is not, or not yet, the one to ask.
const NOT_THE_MASTER: [&str; 4] = ["LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED"];

/// Error codes of a Cluster's node that has not the keys it was asked for, or not all of them.
pub const IS_ELSEWHERE: [&str; 3] = ["ASK", "MOVED", "TRYAGAIN"];

/// Whether a Cluster may do soon, and maybe by another node, what it did not do now.
pub fn is_elsewhere(reason: &EngineError) -> bool {
    let passes = |code: &str| IS_ELSEWHERE.contains(&code) || code == "CLUSTERDOWN";
    matches!(reason, EngineError::Refused { code } if passes(code))
}

/// The answer cannot be read.
pub fn malformed(what: &'static str) -> EngineError {
    EngineError::Malformed { what }
}

/// What an error means.
pub fn error(error: &RedisError) -> EngineError {
    if error.is_timeout() {
        return EngineError::TimedOut;
    }
    match error.kind() {
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => malformed("not an answer of its kind"),
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
            // Before Redis 7 a script's own error has the code within its text.
            let within = error.detail().is_some_and(|detail| detail.contains("OOM command not allowed"));
            let code = error.code().unwrap_or("ERR");
            if code == "OOM" || within {
                return EngineError::Full;
            }
            EngineError::Refused { code: code.chars().take(32).collect() }
        }
        _ => EngineError::Unreachable,
    }
}

/// What an error of a publication means.
pub fn publish_error(cause: &RedisError) -> PublishError {
    let reason = error(cause);
    let stored = match (&reason, cause.kind()) {
        (EngineError::Full, _) => Stored::No,
        (_, ErrorKind::Server(ServerErrorKind::NoScript) | ErrorKind::AuthenticationFailed) => Stored::No,
        (EngineError::Refused { code }, _) if NOT_BEGUN.contains(&code.as_str()) => Stored::No,
        // A script is not undone where it fails.
        _ => Stored::Unknown,
    };
    PublishError { reason, stored }
}

/// Whether another connection, maybe to another process, is needed.
pub fn ends_session(cause: &RedisError) -> bool {
    if cause.is_timeout() {
        return false;
    }
    let not_master = cause.code().is_some_and(|code| NOT_THE_MASTER.contains(&code));
    not_master || cause.is_connection_dropped() || cause.is_unrecoverable_error()
}

/// The answer of `publish.lua`, which was given `limit`.
pub fn published(answer: Value, region: &Region, limit: &LatestLimit) -> Result<Published, PublishError> {
    let bad = || PublishError { reason: malformed("publish"), stored: Stored::Unknown };
    let Value::Array(parts) = answer else { return Err(bad()) };
    match parts.as_slice() {
        [Value::Int(2)] => Err(PublishError::not_stored(limit.refusal())),
        [Value::Int(repeated @ (0 | 1)), epoch, n, id] => {
            let position = position(region, epoch, n, id).ok_or_else(bad)?;
            Ok(Published { position, repeated: *repeated == 1 })
        }
        _ => Err(bad()),
    }
}

/// The answer of `latest.lua`.
pub fn latest(answer: Value, region: &Region, lineage: &Epoch) -> Result<Latest, EngineError> {
    let bad = || malformed("latest");
    let Value::Array(parts) = answer else { return Err(bad()) };
    let Ok([epoch, n, id, values]) = <[Value; 4]>::try_from(parts) else { return Err(bad()) };
    if [&n, &id].iter().any(|part| matches!(part, Value::Nil)) {
        return Ok(Latest { entries: Vec::new(), top: origin(&epoch, region, lineage) });
    }
    let top = position(region, &epoch, &n, &id).ok_or_else(bad)?;
    let values = match values {
        Value::Array(values) => values,
        // Only a gateway with another limit stores so many.
        Value::Int(_) => return Err(malformed("too many newest values")),
        _ => return Err(bad()),
    };
    let value = |value| match value {
        Value::BulkString(message) => push(message.into(), region).ok_or_else(bad),
        _ => Err(bad()),
    };
    let mut entries = values.into_iter().map(value).collect::<Result<Vec<Entry>, _>>()?;
    entries.sort_unstable_by_key(|entry| entry.position.n);
    Ok(Latest { entries, top })
}

/// The answer of `read.lua`, for a log read behind `after`.
pub fn slice(answer: Value, region: &Region, lineage: &Epoch, after: Option<&Position>) -> Result<Slice, EngineError> {
    let bad = || malformed("read");
    let Value::Array(parts) = answer else { return Err(bad()) };
    let Ok([epoch, n, id, first, first_epoch, at, entries]) = <[Value; 7]>::try_from(parts) else {
        return Err(bad());
    };
    if [&n, &id].iter().any(|part| matches!(part, Value::Nil)) {
        let top = origin(&epoch, region, lineage);
        let log = Log { top: 0, first: 1, first_epoch: top.epoch.clone() };
        return Ok(Slice { entries: Vec::new(), log, top, at: None });
    }
    let top = position(region, &epoch, &n, &id).ok_or_else(bad)?;
    let log = match (&first, &first_epoch) {
        (Value::Nil, _) => Log { top: top.n, first: top.n + 1, first_epoch: top.epoch.clone() },
        (first, epoch) => {
            let first_epoch = text(epoch).and_then(|epoch| Epoch::new(epoch).ok()).ok_or_else(bad)?;
            Log { top: top.n, first: number(first).ok_or_else(bad)?, first_epoch }
        }
    };
    let at = match (text(&at), after) {
        (Some(epoch), Some(after)) => Some(Mark { epoch: Epoch::new(epoch).map_err(|_| bad())?, id: after.id }),
        _ => None,
    };
    let Value::Array(entries) = entries else { return Err(bad()) };
    let entries = entries.into_iter().map(|parts| entry(parts, region).ok_or_else(bad)).collect::<Result<_, _>>()?;
    Ok(Slice { entries, log, top, at })
}

/// A message that `publish.lua` told subscribers: `epoch n id length` and a line feed, the message id of that length, the
/// payload.
pub fn push(message: Bytes, region: &Region) -> Option<Entry> {
    let end = message.iter().take(200).position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(message.get(..end)?).ok()?;
    let mut parts = head.split(' ');
    let epoch = Epoch::new(parts.next()?).ok()?;
    let n: u64 = parts.next()?.parse().ok().filter(|n| (1..=MAX_N).contains(n))?;
    let id: EntryId = parts.next()?.parse().ok()?;
    let length: usize = parts.next()?.parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    let payload_at = (end + 1).checked_add(length)?;
    let message_id = std::str::from_utf8(message.get(end + 1..payload_at)?).ok()?;
    let message_id = MessageId::new(message_id).ok()?;
    let position = Position { region: region.clone(), epoch, n, id };
    Some(Entry { position, message: message_id, payload: message.slice(payload_at..) })
}

/// The beginning of a log without an entry. That nothing was ever in it holds as long as what is stored lives, whoever
/// answers for it.
fn origin(life: &Value, region: &Region, lineage: &Epoch) -> Position {
    let life = text(life).and_then(|life| Epoch::new(life).ok()).unwrap_or_else(|| lineage.clone());
    Position::origin(region.clone(), life)
}

fn entry(parts: Value, region: &Region) -> Option<Entry> {
    let Value::Array(parts) = parts else { return None };
    let [id, n, epoch, message, payload] = <[Value; 5]>::try_from(parts).ok()?;
    let position = position(region, &epoch, &n, &id)?;
    let message = MessageId::new(text(&message)?).ok()?;
    let Value::BulkString(payload) = payload else { return None };
    Some(Entry { position, message, payload: payload.into() })
}

fn position(region: &Region, epoch: &Value, n: &Value, id: &Value) -> Option<Position> {
    let (epoch, id) = (Epoch::new(text(epoch)?).ok()?, text(id)?.parse().ok()?);
    Some(Position { region: region.clone(), epoch, n: number(n)?, id })
}

fn number(value: &Value) -> Option<u64> {
    text(value)?.parse().ok().filter(|n| (1..=MAX_N).contains(n))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        Region::new("eu").unwrap()
    }

    #[test]
    fn a_pushed_message_is_read_whole_and_every_cut_of_its_head_is_refused() {
        let message = b"abc 17 1795489098605-3 4\nm-17{\"x\":\n1}";
        let entry = push(Bytes::from_static(message), &region()).unwrap();
        assert_eq!(entry.position.to_string(), "eu.abc.17.1795489098605-3");
        assert_eq!((entry.message.as_str(), &entry.payload[..]), ("m-17", &b"{\"x\":\n1}"[..]));
        for end in 0..29 {
            assert_eq!(push(Bytes::from_static(&message[..end]), &region()), None, "{end}");
        }
        assert_eq!(push(Bytes::from_static(&message[..29]), &region()).unwrap().payload, Bytes::new());
    }

    #[test]
    fn malformed_messages_are_refused() {
        for message in [
            "",
            "\n",
            "a 1 1-1\nm",
            "a 0 1-1 1\nm",
            "a 1 1-1 0\nm",
            "a 1 1-1 2\nm",
            "a 1 1-1 1 \nm",
            "a 1 1-1 18446744073709551615\nm",
            "a 9007199254740992 1-1 1\nm",
            "a! 1 1-1 1\nm",
            "a -1 1-1 1\nm",
        ] {
            assert_eq!(push(Bytes::from_static(message.as_bytes()), &region()), None, "{message:?}");
        }
        assert_eq!(push(Bytes::from(vec![b'a'; 1000]), &region()), None);
        assert_eq!(push(Bytes::from_static(b"a 1 1-1 1\n\xff"), &region()), None);
    }

    #[test]
    fn newest_values_are_read_in_the_order_of_their_numbers() {
        let (lineage, text) = (Epoch::new("a").unwrap(), |text: &str| Value::BulkString(text.into()));
        let answer = |values| Value::Array(vec![text("abc"), text("9"), text("9-0"), values]);
        let values = Value::Array(vec![text("abc 9 9-0 1\nmnine"), text("abc 4 4-0 1\nmfour")]);
        let found = latest(answer(values), &region(), &lineage).unwrap();
        assert_eq!(found.entries.iter().map(|entry| &entry.payload[..]).collect::<Vec<_>>(), [&b"four"[..], b"nine"]);
        assert_eq!(found.top.n, 9);
        let few = Value::Array(vec![text("abc 4 4-0 1\nm"), text("abc 4 4-0 9\nm")]);
        assert_eq!(latest(answer(few), &region(), &lineage), Err(malformed("latest")));
        assert_eq!(latest(answer(Value::Int(-1)), &region(), &lineage), Err(malformed("too many newest values")));
        let none = Value::Array(vec![Value::Nil, Value::Nil, Value::Nil, Value::Array(vec![])]);
        assert!(latest(none, &region(), &lineage).unwrap().top.is_origin());
    }

    #[test]
    fn answers_of_another_shape_are_malformed() {
        let lineage = Epoch::new("a").unwrap();
        for answer in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Int(1); 4]), Value::Okay] {
            let unknown = PublishError { reason: malformed("publish"), stored: Stored::Unknown };
            assert_eq!(published(answer.clone(), &region(), &LatestLimit::default()), Err(unknown));
            assert_eq!(latest(answer.clone(), &region(), &lineage), Err(malformed("latest")));
            assert_eq!(slice(answer, &region(), &lineage, None), Err(malformed("read")));
        }
        assert_eq!(slice(Value::Array(vec![Value::Int(1); 7]), &region(), &lineage, None), Err(malformed("read")));
    }
}
