//! Writes the log's queue to standard error, and takes the records of the `log` crate into it.

use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::{Event, WRITTEN_LEVEL, is_written};

/// The queue, in lines. A session's line is about 600 bytes, so 5 MiB; when each of its four texts of a peer is as long
/// as it may be and of nothing but control characters it is under 8 KiB, so 64 MiB at the very worst.
const QUEUE_LINES: usize = 8192;

/// What is written at once, in bytes: standard error has no buffer, and each write is a system call.
const BATCH_BYTES: usize = 64 * 1024;

/// How long an exit waits for a reader of standard error that does not read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

static QUEUE: OnceLock<SyncSender<Item>> = OnceLock::new();

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people: time, level, event, then `key=value`.
    Text,
}

enum Item {
    Line(Arc<str>),
    Flush(SyncSender<()>),
}

/// Starts the writer and takes over the `log` crate's records: ours from `level`, those of dependencies from warn.
///
/// The first call of a process counts; a later one does nothing.
pub fn init(format: Format, level: LevelFilter) {
    let (sender, receiver) = sync_channel(QUEUE_LINES);
    if QUEUE.set(sender).is_err() {
        return;
    }
    let writer = std::thread::Builder::new().name("log".into());
    if let Err(error) = writer.spawn(move || write_lines(&receiver, format)) {
        eprintln!("no log: cannot start its thread: {error}");
        return;
    }
    WRITTEN_LEVEL.store(level as u8, Ordering::Relaxed);
    // Fails when the program that embeds the library has a logger of its own, which then keeps the records.
    if log::set_logger(&Bridge).is_ok() {
        log::set_max_level(level);
    }
}

/// Waits until every line queued before is written, 5 s at most.
pub fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    let (done, wait) = sync_channel(1);
    let mut item = Item::Flush(done);
    while let Err(TrySendError::Full(back)) = queue.try_send(item) {
        if Instant::now() >= deadline {
            return;
        }
        item = back;
        #[expect(
            clippy::disallowed_methods,
            reason = "the process ends, and the queue cannot wait for room until a time"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// Whether there was room for the line.
pub(super) fn enqueue(line: Arc<str>) -> bool {
    // Without a writer nothing is written: is_written() has said so before.
    QUEUE.get().is_none_or(|queue| queue.try_send(Item::Line(line)).is_ok())
}

fn write_lines(queue: &Receiver<Item>, format: Format) {
    let mut batch = String::with_capacity(BATCH_BYTES);
    while let Ok(first) = queue.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Line(line) => {
                    match format {
                        Format::Json => batch.push_str(&line),
                        Format::Text => write_for_people(&mut batch, &line),
                    }
                    batch.push('\n');
                }
                Item::Flush(done) => flushed.push(done),
            }
            next = if batch.len() < BATCH_BYTES { queue.try_recv().ok() } else { None };
        }
        // A log that cannot be written has nowhere to say so.
        let _ = std::io::stderr().write_all(batch.as_bytes());
        batch.clear();
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// Turns a JSON line into `2026-11-30T09:05:07.042Z INFO  session rule=chat cause=client_closed`.
fn write_for_people(text: &mut String, line: &str) {
    use std::fmt::Write as _;
    let Ok(object) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line) else {
        text.push_str(line);
        return;
    };
    let string = |key: &str| object.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let _ = write!(text, "{} {:<5}", string("time"), string("level").to_ascii_uppercase());
    // A record of the `log` crate is its target and its message.
    match string("event") {
        "log" => {
            let _ = write!(text, " {}: ", string("target"));
            write_bare(text, string("message"));
        }
        event => {
            let _ = write!(text, " {event}");
        }
    }
    for (key, value) in &object {
        if matches!(key.as_str(), "time" | "level" | "event" | "target" | "message") {
            continue;
        }
        let _ = write!(text, " {key}=");
        match value.as_str() {
            Some(word) if !word.is_empty() && !word.contains([' ', '"', '=', '\\']) => write_bare(text, word),
            Some(words) => super::write_text(text, words),
            None => {
                let _ = write!(text, "{value}");
            }
        }
    }
}

/// Without quotes, but with control characters escaped.
fn write_bare(text: &mut String, words: &str) {
    for char in words.chars() {
        if char.is_control() { text.extend(char.escape_unicode()) } else { text.push(char) }
    }
}

struct Bridge;

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = metadata.target().split("::").next() == Some("sluicegate");
        is_written(metadata.level()) && (is_ours || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            Event::at(record.level(), "log").field("target", record.target()).field("message", *record.args()).emit();
        }
    }

    fn flush(&self) {
        flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_for_people() {
        let json =
            r#"{"time":"T","level":"info","event":"session","rule":"chat","code":1000,"host":"a b","path":"/\u001b"}"#;
        let mut text = String::new();
        write_for_people(&mut text, json);
        assert_eq!(text, r#"T INFO  session rule=chat code=1000 host="a b" path=/\u{1b}"#);
        text.clear();
        write_for_people(&mut text, r#"{"time":"T","level":"warn","event":"log","target":"t","message":"it is late"}"#);
        assert_eq!(text, "T WARN  t: it is late");
    }

    #[test]
    fn records_become_lines_and_flush_waits_for_them() {
        let mut tap = super::super::tap();
        init(Format::Json, LevelFilter::Info);
        init(Format::Text, LevelFilter::Trace);
        let long = "y".repeat(1000);
        log::info!(target: "sluicegate::edge", "records become lines: {long}");
        log::info!(target: "pingora_core", "records become lines: too chatty");
        log::warn!(target: "pingora_core", "records become lines: \x07 last");
        flush();
        let mut lines = Vec::new();
        while let Ok(line) = tap.try_recv() {
            if line.contains("records become lines") {
                lines.push(serde_json::from_str::<serde_json::Value>(&line).unwrap());
            }
        }
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0]["event"], "log");
        assert_eq!(lines[0]["target"], "sluicegate::edge");
        assert_eq!(lines[0]["message"].as_str().unwrap().len(), super::super::MAX_TEXT_BYTES);
        assert_eq!(lines[1]["level"], "warn");
        assert_eq!(lines[1]["message"], "records become lines: \x07 last");
    }
}
