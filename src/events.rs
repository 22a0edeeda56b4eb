//! The log: JSON lines on standard error, or the same for people.
//!
//! Nobody waits for it. A line goes into a bounded queue, one thread writes the queue out, and when standard error is
//! slower than we are a line is dropped and counted. Text that a peer may have sent is cut and its control characters
//! are escaped, so that it cannot forge a line or drive a terminal.
//!
//! [`Event`] makes a line; [`init`] starts the writer and turns the records of `log`, ours and Pingora's, into lines;
//! [`tap`] lets a part of this process read along.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;
use tokio::sync::broadcast;

mod writer;

pub use writer::{Format, flush, init};

/// The longest text field and message, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;

/// Lines that a tap may lag behind before it loses the oldest.
const TAP_LINES: usize = 1024;

static TAPS: LazyLock<broadcast::Sender<Arc<str>>> = LazyLock::new(|| broadcast::Sender::new(TAP_LINES));

static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// The level of what is written, as `log::LevelFilter as u8`; off until `init`.
static WRITTEN_LEVEL: AtomicU8 = AtomicU8::new(0);

/// Lines dropped since the process started because the queue was full.
pub fn lines_dropped() -> u64 {
    LINES_DROPPED.load(Ordering::Relaxed)
}

/// Every JSON line from now on, of whatever level.
pub fn tap() -> broadcast::Receiver<Arc<str>> {
    TAPS.subscribe()
}

/// Whether anybody sees debug events: ask before making one.
pub fn debug_enabled() -> bool {
    is_written(Level::Debug) || TAPS.receiver_count() > 0
}

fn is_written(level: Level) -> bool {
    level as u8 <= WRITTEN_LEVEL.load(Ordering::Relaxed)
}

/// One line, made field by field.
///
/// ```
/// use sluicegate::events::Event;
/// Event::new("session").field("rule", "chat").field("close_code", 1000u16).emit();
/// ```
#[must_use = "an event is nothing until it is emitted"]
#[derive(Debug)]
pub struct Event {
    level: Level,
    /// An object without its closing brace.
    json: String,
}

impl Event {
    /// An event of level info. `name` is the line's `event`; the time is now.
    pub fn new(name: &'static str) -> Self {
        Self::at(Level::Info, name)
    }

    /// An event of level debug: see [`debug_enabled`].
    pub fn debug(name: &'static str) -> Self {
        Self::at(Level::Debug, name)
    }

    /// An event of level warn.
    pub fn warn(name: &'static str) -> Self {
        Self::at(Level::Warn, name)
    }

    /// An event of level error.
    pub fn error(name: &'static str) -> Self {
        Self::at(Level::Error, name)
    }

    /// Fields that are no line of the log, for [`Event::into_json`].
    pub fn object() -> Self {
        Self { level: Level::Debug, json: "{".to_owned() }
    }

    /// The fields as a JSON object, as they would stand in the log.
    pub fn into_json(mut self) -> String {
        self.json.push('}');
        self.json
    }

    fn at(level: Level, name: &'static str) -> Self {
        let mut json = String::with_capacity(512);
        json.push_str("{\"time\":\"");
        write_time(&mut json, SystemTime::now());
        json.push_str("\",\"level\":\"");
        json.push_str(level_name(level));
        json.push_str("\",\"event\":");
        write_text(&mut json, name);
        Self { level, json }
    }

    /// Adds a field; an `Option` that is `None` adds nothing. Text is cut at [`MAX_TEXT_BYTES`].
    pub fn field(mut self, key: &'static str, value: impl Value) -> Self {
        if value.is_present() {
            if self.json.len() > 1 {
                self.json.push(',');
            }
            write_text(&mut self.json, key);
            self.json.push(':');
            value.write(&mut self.json);
        }
        self
    }

    /// Sends the line to the taps, and to standard error when its level is written.
    pub fn emit(mut self) {
        let is_written = is_written(self.level);
        let is_tapped = TAPS.receiver_count() > 0;
        if !is_written && !is_tapped {
            return;
        }
        self.json.push('}');
        let line: Arc<str> = self.json.into();
        if is_tapped {
            // The last tap may just have gone.
            let _ = TAPS.send(Arc::clone(&line));
        }
        if is_written && !writer::enqueue(line) {
            LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a field may hold.
pub trait Value {
    /// Appends the value as JSON.
    fn write(&self, json: &mut String);

    /// Whether there is a value at all.
    fn is_present(&self) -> bool {
        true
    }
}

impl Value for str {
    fn write(&self, json: &mut String) {
        write_text(json, self);
    }
}

impl Value for String {
    fn write(&self, json: &mut String) {
        write_text(json, self);
    }
}

impl Value for std::fmt::Arguments<'_> {
    fn write(&self, json: &mut String) {
        match self.as_str() {
            Some(text) => write_text(json, text),
            None => write_text(json, &self.to_string()),
        }
    }
}

impl Value for std::net::IpAddr {
    fn write(&self, json: &mut String) {
        let _ = write!(json, "\"{self}\"");
    }
}

impl Value for std::net::SocketAddr {
    fn write(&self, json: &mut String) {
        let _ = write!(json, "\"{self}\"");
    }
}

impl Value for SystemTime {
    /// In UTC, with milliseconds: RFC 3339.
    fn write(&self, json: &mut String) {
        json.push('"');
        write_time(json, *self);
        json.push('"');
    }
}

impl Value for bool {
    fn write(&self, json: &mut String) {
        json.push_str(if *self { "true" } else { "false" });
    }
}

macro_rules! number_value {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn write(&self, json: &mut String) {
                let _ = write!(json, "{self}");
            }
        }
    )*};
}
number_value!(u8, u16, u32, u64, usize, i32, i64);

impl Value for f64 {
    /// Three digits behind the point: milliseconds of a duration in seconds. JSON has no infinity.
    fn write(&self, json: &mut String) {
        let _ = if self.is_finite() { write!(json, "{self:.3}") } else { json.write_str("null") };
    }
}

impl<V: Value> Value for Option<V> {
    fn write(&self, json: &mut String) {
        if let Some(value) = self {
            value.write(json);
        }
    }

    fn is_present(&self) -> bool {
        self.as_ref().is_some_and(Value::is_present)
    }
}

impl<V: Value + ?Sized> Value for &V {
    fn write(&self, json: &mut String) {
        (**self).write(json);
    }

    fn is_present(&self) -> bool {
        (**self).is_present()
    }
}

/// Cuts text at [`MAX_TEXT_BYTES`] or just before, between two characters.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Appends a JSON string of the cut text. All control characters are escaped, not only those that JSON requires: DEL
/// and C1 drive terminals too.
fn write_text(json: &mut String, text: &str) {
    json.push('"');
    for char in cut(text).chars() {
        match char {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            control if control.is_control() => {
                let _ = write!(json, "\\u{:04x}", control as u32);
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

/// Appends RFC 3339 in UTC with milliseconds: `2026-11-30T09:05:07.042Z`.
fn write_time(text: &mut String, time: SystemTime) {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since_epoch.subsec_millis();
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z");
}

/// Days since 1970-01-01 to a date of the Gregorian calendar: Howard Hinnant's `civil_from_days`, for days from 1970 on.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last of a year; eras are of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Lines of other tests arrive too.
    fn next_with(tap: &mut broadcast::Receiver<Arc<str>>, needle: &str) -> Arc<str> {
        loop {
            let line = tap.try_recv().expect("the line was emitted before");
            if line.contains(needle) {
                return line;
            }
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, millis, text) in [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.001Z"),
            (1_709_251_199, 999, "2024-02-29T23:59:59.999Z"),
            (1_709_251_200, 0, "2024-03-01T00:00:00.000Z"),
            (1_796_029_507, 42, "2026-11-30T09:05:07.042Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000Z"),
        ] {
            let mut found = String::new();
            write_time(&mut found, UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis));
            assert_eq!(found, text);
        }
    }

    #[test]
    fn an_event_is_one_json_object_that_begins_with_time_level_and_event() {
        let mut tap = tap();
        assert!(debug_enabled());
        Event::new("session")
            .field("rule", "an event is one json object")
            .field("duration_seconds", 1.5)
            .field("close_code", Some(1000u16))
            .field("origin", None::<&str>)
            .field("bytes_in", 7u64)
            .field("client_ip", "192.0.2.1".parse::<std::net::IpAddr>().unwrap())
            .emit();
        let line = next_with(&mut tap, "an event is one json object");
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
        let keys: Vec<_> = object.keys().map(String::as_str).collect();
        let expected = ["time", "level", "event", "rule", "duration_seconds", "close_code", "bytes_in", "client_ip"];
        assert_eq!(keys, expected);
        assert_eq!(object["level"], "info");
        assert_eq!(object["event"], "session");
        assert_eq!(object["duration_seconds"], 1.5);
        assert_eq!(object["client_ip"], "192.0.2.1");
    }

    #[test]
    fn debug_events_reach_taps() {
        let mut tap = tap();
        Event::debug("ping").field("rule", "debug events reach taps").emit();
        assert!(next_with(&mut tap, "debug events reach taps").contains(r#""level":"debug","event":"ping""#));
    }

    #[test]
    fn text_is_cut_between_characters_and_cannot_forge_a_line() {
        let mut json = String::new();
        write_text(&mut json, "a\"b\\c\nd\u{1b}[2J\u{7f}\u{9b}é");
        assert_eq!(json, r#""a\"b\\c\nd\u001b[2J\u007f\u009bé""#);
        let parsed: String = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed, "a\"b\\c\nd\u{1b}[2J\u{7f}\u{9b}é");
        assert_eq!(cut(&"é".repeat(200)).len(), 256);
        assert_eq!(cut(&format!("x{}", "é".repeat(200))).len(), 255);
        assert_eq!(cut("short"), "short");
    }
}
