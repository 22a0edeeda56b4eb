//! Waiting for foreign streams: each group of at most 512 has a connection that `XREAD BLOCK` waits on.
//!
//! What XREAD gives is only the news that there is something; it is read by the script. A stream that comes or goes ends
//! the waiting by `CLIENT UNBLOCK`, so that none waits for another's block to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult, Value};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::super::super::engine::{Channel, EngineError};
use super::super::session::{self, Session, Target};
use super::super::{Shared, wire};
use super::Stream;
use crate::backplane::backoff::backoff;

/// How many streams one connection waits for: XREAD looks at each of them every time.
const MAX_STREAMS: usize = 512;

/// How long one XREAD waits at most. Less than the time-out of a command.
const BLOCK: Duration = Duration::from_secs(1);

/// How often every stream is read though nothing was heard of it: one that was deleted and filled again within the same
/// millisecond has lower ids than before, which XREAD does not tell of.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The time between two tries to end a wait that had not begun at the first.
const UNBLOCK_PAUSE: Duration = Duration::from_millis(20);

/// The groups of an engine. There are as many as there ever had to be.
#[derive(Debug, Default)]
pub struct Groups {
    all: Mutex<Vec<Arc<Group>>>,
    more: Notify,
}

/// Streams that share a connection.
#[derive(Debug, Default)]
pub struct Group {
    streams: Mutex<BTreeMap<Channel, Arc<Stream>>>,
    /// Places that were given away: streams, and those that are about to come.
    taken: Mutex<usize>,
    changed: Notify,
}

impl Groups {
    /// A group with a place for one more stream, which is the caller's.
    pub(super) fn with_room(&self) -> Arc<Group> {
        let mut all = self.all.lock();
        for group in all.iter() {
            let mut taken = group.taken.lock();
            if *taken < MAX_STREAMS {
                *taken += 1;
                return group.clone();
            }
        }
        let group = Arc::new(Group { taken: Mutex::new(1), ..Group::default() });
        all.push(group.clone());
        drop(all);
        self.more.notify_one();
        group
    }
}

impl Group {
    pub(super) fn add(&self, stream: Arc<Stream>) {
        let mut streams = self.streams.lock();
        // It may have ended before it was here; if it ends behind this, it finds itself here.
        let is_open = stream.sink.lock().is_some();
        if is_open {
            streams.insert(stream.channel.clone(), stream);
        }
        drop(streams);
        self.changed.notify_one();
    }

    /// Gives a stream's place back.
    pub(super) fn remove(&self, stream: &Stream) {
        let mut streams = self.streams.lock();
        if streams.get(&stream.channel).is_some_and(|other| std::ptr::eq(&**other, stream)) {
            streams.remove(&stream.channel);
        }
        drop(streams);
        *self.taken.lock() -= 1;
        self.changed.notify_one();
    }

    fn list(&self) -> Vec<Arc<Stream>> {
        self.streams.lock().values().cloned().collect()
    }
}

/// Waits for the streams of all groups, by connections to the process of this session. Runs until it is dropped.
pub async fn serve(shared: Arc<Shared>, session: Arc<Session>) {
    let mut tasks = JoinSet::new();
    loop {
        let groups: Vec<_> = shared.ingest.groups.all.lock().iter().skip(tasks.len()).cloned().collect();
        for group in groups {
            tasks.spawn(wait(shared.clone(), session.clone(), group));
        }
        shared.ingest.groups.more.notified().await;
    }
}

/// Waits for the streams of a group, and has what comes of them pushed.
async fn wait(shared: Arc<Shared>, session: Arc<Session>, group: Arc<Group>) {
    // What came while there was no session. One that cannot be read, since it is no stream any more, is not waited for,
    // and tried again each time.
    let mut unread = group.list();
    let mut connection = None;
    let mut failures = 0;
    let mut looked = Instant::now();
    loop {
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            unread = group.list();
        }
        let mut sick = Vec::new();
        for stream in unread {
            let mut tail = stream.tail.lock().await;
            if shared.pull(&session, &stream, &mut tail).await.is_err() {
                drop(tail);
                sick.push(stream);
            }
        }
        let streams: Vec<_> = group.list().into_iter().filter(|of| !is_among(&sick, of)).collect();
        if streams.is_empty() {
            connection = None;
            let pause = if sick.is_empty() { Duration::MAX } else { BLOCK };
            // That the time is up is as good a reason.
            let _ = tokio::time::timeout(pause, group.changed.notified()).await;
            unread = sick;
            continue;
        }
        match read(&shared, &session, &group, &mut connection, &streams).await {
            Ok(keys) => {
                failures = 0;
                unread = streams.into_iter().filter(|of| keys.contains(&of.source.key)).chain(sick).collect();
            }
            Err(_) => {
                // The connection, or one of the streams is no stream any more: reading each tells.
                connection = None;
                failures += 1;
                tokio::time::sleep(backoff(failures, shared.settings.max_backoff)).await;
                unread = group.list();
            }
        }
        unread.retain(|stream| stream.sink.lock().is_some());
    }
}

fn is_among(streams: &[Arc<Stream>], stream: &Arc<Stream>) -> bool {
    streams.iter().any(|other| Arc::ptr_eq(other, stream))
}

/// A connection that waits, and its number at the server.
type Waiting = (MultiplexedConnection, i64);

/// Waits until one of the streams has something new, a moment has passed, or the group has changed. Gives the keys of
/// those that have.
async fn read(
    shared: &Shared,
    session: &Session,
    group: &Group,
    connection: &mut Option<Waiting>,
    streams: &[Arc<Stream>],
) -> Result<Vec<String>, EngineError> {
    let failed = |error: RedisError| wire::error(&error);
    let (waiting, id) = match connection {
        Some(there) => there,
        None => connection.insert(connect(shared, session).await?),
    };
    let block = BLOCK.min(shared.settings.timeout / 2).max(Duration::from_millis(1));
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(1).arg("BLOCK").arg(super::super::millis(block)).arg("STREAMS");
    for stream in streams {
        command.arg(&stream.source.key);
    }
    for stream in streams {
        command.arg(stream.read_to.lock().to_string());
    }
    let answer = command.query_async::<Value>(waiting);
    tokio::pin!(answer);
    let answer: RedisResult<Value> = tokio::select! {
        answer = &mut answer => answer,
        () = group.changed.notified() => loop {
            let mut unblock = redis::cmd("CLIENT");
            unblock.arg("UNBLOCK").arg(*id);
            // It fails where it may not be sent; then the wait ends by itself.
            let _ = unblock.query_async::<Value>(&mut session.commands.clone()).await;
            if let Ok(answer) = tokio::time::timeout(UNBLOCK_PAUSE, &mut answer).await {
                break answer;
            }
        },
    };
    let text = |value: &Value| match value {
        Value::BulkString(key) => String::from_utf8(key.clone()).ok(),
        _ => None,
    };
    match answer.map_err(failed)? {
        Value::Nil => Ok(Vec::new()),
        Value::Map(pairs) => Ok(pairs.iter().filter_map(|(key, _)| text(key)).collect()),
        _ => Err(wire::malformed("XREAD")),
    }
}

/// A connection to the process of the session. To another, the session is of no use any more.
async fn connect(shared: &Shared, session: &Session) -> Result<Waiting, EngineError> {
    let whole = shared.settings.timeout.saturating_mul(4);
    let connect = async {
        let mut connection = session::ask(&shared.settings, &Target::Master).await?;
        if session::lineage(&mut connection).await? != session.lineage {
            session.link.lost.notify_one();
            return Err(EngineError::Unreachable);
        }
        let id = redis::cmd("CLIENT").arg("ID").query_async::<i64>(&mut connection).await;
        Ok((connection, id.map_err(|error| wire::error(&error))?))
    };
    tokio::time::timeout(whole, connect).await.map_err(|_| EngineError::TimedOut)?
}
