//! Streams that somebody else fills with plain `XADD`, delivered as channels.
//!
//! Nobody numbers their entries, tells of them by Pub/Sub or keeps to our retention, so this is no log as ours are. The
//! streams that this node is subscribed to are waited for by `XREAD BLOCK`, at most 512 on one connection (`groups.rs`);
//! what comes is read by a script that says in the same moment whether it follows on what was read before (`tail.rs`).
//! Numbers are this node's own, which the rest of the backplane needs; a place is proven by the entry's presence alone.

mod groups;
mod rule;
mod tail;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use redis::{Script, Value};

pub use self::groups::serve;
use self::groups::{Group, Groups};
use self::rule::Fields;
pub use self::rule::{IngestRule, Pattern};
use self::tail::{Part, Tail, Taken};
use super::super::engine::{Channel, EngineError, Entry, Event, ReadLimit, Scope, Slice};
use super::super::position::{EntryId, Position};
use super::super::sink::Sink;
use super::session::Session;
use super::{PART, Shared, keys, wire};

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));
static READ_BACK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read_back.lua")));

/// The foreign streams of an engine.
#[derive(Debug, Default)]
pub struct Ingest {
    rules: Vec<IngestRule>,
    subscribed: Mutex<HashMap<Channel, Arc<Stream>>>,
    groups: Groups,
}

/// A stream that is subscribed to.
#[derive(Debug)]
struct Stream {
    channel: Channel,
    source: Source,
    /// `None` when the subscription has ended: nothing is pushed any more.
    sink: Mutex<Option<Sink>>,
    /// Locked while it is read, so that one reads at a time.
    tail: tokio::sync::Mutex<Tail>,
    /// Where to wait from: what the tail has read.
    read_to: Mutex<EntryId>,
    group: Arc<Group>,
}

/// Where a stream is, and what of its entries is of interest.
#[derive(Clone, Debug)]
struct Source {
    key: String,
    id_field: String,
    data_field: String,
}

impl Ingest {
    pub fn new(rules: Vec<IngestRule>) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    fn source(&self, channel: &Channel) -> Option<Source> {
        self.rules.iter().find_map(|rule| {
            let key = rule.stream_of(channel)?;
            Some(Source { key, id_field: rule.id_field.clone(), data_field: rule.data_field.clone() })
        })
    }

    /// Whether a channel is a foreign stream.
    pub fn has(&self, channel: &Channel) -> bool {
        self.rules.iter().any(|rule| rule.stream_of(channel).is_some())
    }

    /// How many are subscribed to.
    pub fn len(&self) -> usize {
        self.subscribed.lock().len()
    }

    fn find(&self, channel: &Channel) -> Option<Arc<Stream>> {
        self.subscribed.lock().get(channel).cloned()
    }

    /// Ends a subscription, if there is one.
    pub fn unsubscribe(&self, channel: &Channel) {
        // In a statement of its own, so that the lock is not held.
        let ended = self.subscribed.lock().remove(channel);
        if let Some(stream) = ended {
            stream.end();
        }
    }
}

impl Stream {
    fn end(&self) {
        *self.sink.lock() = None;
        self.group.remove(self);
    }
}

impl Shared {
    /// As of [`Engine::subscribe`](super::super::engine::Engine::subscribe), for a foreign stream.
    pub async fn subscribe_foreign(&self, channel: &Channel, sink: &Sink) -> Result<Position, EngineError> {
        let source = self.ingest.source(channel).ok_or(EngineError::Foreign)?;
        let session = self.route(channel)?.session;
        if self.ingest.len() >= self.settings.max_subscriptions {
            return Err(EngineError::Full);
        }
        let part = self.read_part(&session, channel, &source, None, PART).await?;
        let start = Position::origin(self.region.clone(), session.lineage.clone());
        let tail = Tail::new(channel.clone(), &start, &session.lineage, &part);
        let last = tail.last().clone();
        let stream = Arc::new(Stream {
            channel: channel.clone(),
            source,
            sink: Mutex::new(Some(sink.clone())),
            tail: tokio::sync::Mutex::new(tail),
            read_to: Mutex::new(last.id),
            group: self.ingest.groups.with_room(),
        });
        let replaced = self.ingest.subscribed.lock().insert(channel.clone(), stream.clone());
        if let Some(replaced) = replaced {
            replaced.end();
        }
        stream.group.add(stream.clone());
        Ok(last)
    }

    /// As of [`Engine::read`](super::super::engine::Engine::read), for a foreign stream.
    pub async fn read_foreign(
        &self,
        channel: &Channel,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> Result<Slice, EngineError> {
        let source = self.ingest.source(channel).ok_or(EngineError::Foreign)?;
        let session = self.route(channel)?.session;
        let Some(stream) = self.ingest.find(channel) else {
            let part = self.read_part(&session, channel, &source, None, PART).await?;
            let start = Position::origin(self.region.clone(), session.lineage.clone());
            let mut tail = Tail::new(channel.clone(), &start, &session.lineage, &part);
            return self.slice(&session, channel, &source, &mut tail, after, limit).await;
        };
        let mut tail = stream.tail.lock().await;
        // So that what is read ends where pushing goes on.
        self.pull(&session, &stream, &mut tail).await?;
        let slice = self.slice(&session, channel, &source, &mut tail, after, limit).await;
        *stream.read_to.lock() = tail.last().id;
        slice
    }

    async fn slice(
        &self,
        session: &Session,
        channel: &Channel,
        source: &Source,
        tail: &mut Tail,
        after: Option<&Position>,
        limit: ReadLimit,
    ) -> Result<Slice, EngineError> {
        let Some(after) = after else {
            let mut entries = self.read_back_from(session, channel, source, tail.last()).await?;
            let first = entries.first().map_or(tail.last(), |first| &first.position).clone();
            let mut bytes = limit.max_bytes;
            let fits = |(nth, entry): (usize, &Entry)| {
                let room = bytes.checked_sub(entry.payload.len());
                bytes = room.unwrap_or(0);
                nth == 0 || (nth < limit.max_entries && room.is_some())
            };
            let count = entries.iter().enumerate().map(fits).take_while(|fits| *fits).count();
            entries.truncate(count);
            let log = super::super::recover::Log { top: tail.last().n, first: first.n, first_epoch: first.epoch };
            return Ok(Slice { entries, log, top: tail.last().clone(), at: None });
        };
        let part = if after.id == tail.last().id {
            None
        } else {
            Some(self.read_part(session, channel, source, Some(after.id), limit).await?)
        };
        Ok(tail.slice(after, &session.lineage, part))
    }

    /// As of [`Engine::read_back`](super::super::engine::Engine::read_back).
    pub async fn read_back_foreign(&self, channel: &Channel, to: &Position) -> Result<Vec<Entry>, EngineError> {
        let source = self.ingest.source(channel).ok_or(EngineError::Foreign)?;
        let session = self.route(channel)?.session;
        self.read_back_from(&session, channel, &source, to).await
    }

    async fn read_back_from(
        &self,
        session: &Session,
        channel: &Channel,
        source: &Source,
        to: &Position,
    ) -> Result<Vec<Entry>, EngineError> {
        let mut entries: Vec<Entry> = Vec::new();
        let (retention, mut bytes) = (self.settings.retention, 0);
        let mut from = to.id.to_string();
        let mut n = to.n;
        loop {
            let part = self.read_back_part(session, channel, source, &from).await?;
            let Some((oldest, _)) = part.last() else { break };
            from = format!("({oldest}");
            for (id, fields) in part {
                bytes += fields.data.as_ref().map_or(0, Vec::len);
                let full = entries.len() >= retention.max_entries || bytes > retention.max_bytes;
                if n == 0 || (full && !entries.is_empty()) || (entries.is_empty() && id != to.id) {
                    entries.reverse();
                    return Ok(entries);
                }
                entries.push(rule::entry(channel, Position { n, id, ..to.clone() }, fields));
                n -= 1;
            }
        }
        entries.reverse();
        Ok(entries)
    }

    /// Reads a stream on and pushes what is new of it.
    async fn pull(&self, session: &Session, stream: &Stream, tail: &mut Tail) -> Result<(), EngineError> {
        loop {
            let behind = Some(tail.last().id);
            let part = self.read_part(session, &stream.channel, &stream.source, behind, PART).await?;
            let more = part.more;
            let taken = tail.take(&session.lineage, part);
            *stream.read_to.lock() = tail.last().id;
            let sink = stream.sink.lock();
            let Some(sink) = &*sink else { return Ok(()) };
            let told = match taken {
                Taken::Gap => {
                    sink.disrupt(&stream.channel);
                    true
                }
                Taken::Entries(entries) => {
                    let mut told = false;
                    for entry in entries {
                        told |= !sink.push(&stream.channel, entry);
                    }
                    told
                }
            };
            if told {
                self.tell(Event::Disrupted(Scope::Channel(stream.channel.clone())));
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn read_part(
        &self,
        session: &Session,
        channel: &Channel,
        source: &Source,
        behind: Option<EntryId>,
        limit: ReadLimit,
    ) -> Result<Part, EngineError> {
        let mut script = READ.prepare_invoke();
        script
            .key(&source.key)
            .arg(behind.map(|id| id.to_string()).unwrap_or_default())
            .arg(limit.max_entries)
            .arg(limit.max_bytes)
            .arg(&source.id_field)
            .arg(&source.data_field);
        let mut reads = session.reads.clone();
        match self.within(session, keys::partition(channel), script.invoke_async(&mut reads)).await {
            Ok(answer) => part(answer).ok_or(wire::malformed("a foreign stream")),
            Err(None) => Err(EngineError::TimedOut),
            Err(Some(error)) => Err(wire::error(&error)),
        }
    }

    async fn read_back_part(
        &self,
        session: &Session,
        channel: &Channel,
        source: &Source,
        from: &str,
    ) -> Result<Vec<(EntryId, Fields)>, EngineError> {
        let mut script = READ_BACK.prepare_invoke();
        script
            .key(&source.key)
            .arg(from)
            .arg(PART.max_entries)
            .arg(PART.max_bytes)
            .arg(&source.id_field)
            .arg(&source.data_field);
        let mut reads = session.reads.clone();
        match self.within(session, keys::partition(channel), script.invoke_async(&mut reads)).await {
            Ok(answer) => entries(answer).ok_or(wire::malformed("a foreign stream")),
            Err(None) => Err(EngineError::TimedOut),
            Err(Some(error)) => Err(wire::error(&error)),
        }
    }
}

/// The answer of `read.lua`.
fn part(answer: Value) -> Option<Part> {
    let Value::Array(parts) = answer else { return None };
    let parts = <[Value; 6]>::try_from(parts).ok()?;
    let [Value::Int(added), Value::Int(length), newest, Value::Int(is_there), Value::Int(more), list] = parts else {
        return None;
    };
    Some(Part {
        added: u64::try_from(added).ok(),
        length: u64::try_from(length).ok()?,
        newest: id(&newest)?,
        is_there: is_there > 0,
        more: more > 0,
        entries: entries(list)?,
    })
}

/// Entries with the two fields that are of interest.
fn entries(list: Value) -> Option<Vec<(EntryId, Fields)>> {
    let Value::Array(list) = list else { return None };
    let bytes = |value| match value {
        Value::BulkString(bytes) => Some(Some(bytes)),
        Value::Nil => Some(None),
        _ => None,
    };
    let entry = |parts| {
        let Value::Array(parts) = parts else { return None };
        let [name, message, data] = <[Value; 3]>::try_from(parts).ok()?;
        Some((id(&name)?, Fields { id: bytes(message)?, data: bytes(data)? }))
    };
    list.into_iter().map(entry).collect()
}

fn id(value: &Value) -> Option<EntryId> {
    let Value::BulkString(text) = value else { return None };
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_and_others_refused() {
        let text = |text: &str| Value::BulkString(text.into());
        let entry = Value::Array(vec![text("5-1"), Value::Nil, text("hello")]);
        let answer = |entry: &Value| {
            let list = Value::Array(vec![entry.clone()]);
            Value::Array(vec![Value::Int(-1), Value::Int(1), text("5-1"), Value::Int(1), Value::Int(0), list])
        };
        let part_of = part(answer(&entry)).unwrap();
        assert_eq!((part_of.added, part_of.is_there, part_of.more), (None, true, false));
        let fields = Fields { id: None, data: Some(b"hello".to_vec()) };
        assert_eq!(part_of.entries, [(EntryId { ms: 5, seq: 1 }, fields)]);
        for wrong in [
            Value::Nil,
            Value::Array(vec![]),
            answer(&Value::Nil),
            answer(&Value::Array(vec![text("5"), Value::Nil, Value::Nil])),
            answer(&Value::Array(vec![text("5-1"), Value::Int(1), Value::Nil])),
        ] {
            assert!(part(wrong).is_none());
        }
    }
}
