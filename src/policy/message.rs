//! What a message may be: its size, its fragments, its rate.

use std::time::{Duration, Instant};

use super::Fault;
use super::gcra::Gcra;
pub use super::gcra::Rate;
use super::range::{self, BYTES, HOUR};
use crate::cause::Cause;
use crate::ws::deflate::MAX_RATIO;
use crate::ws::scan::{Inflated, Message};

/// The `message` settings of a rule. `None` is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The largest message of a client, in bytes over all its fragments: 1009.
    pub max_size_bytes: Option<u64>,
    /// What a client's compressed messages may become, as a multiple of what they are on the wire: 1009.
    /// [`FREE_INFLATION_BYTES`] at once and [`FREE_INFLATION_BYTES_PER_SECOND`] on average are free.
    pub max_ratio: Option<u32>,
    /// The most fragments of a client's message: 1008.
    pub max_fragments: Option<u32>,
    /// Data messages of a client: 1008.
    pub messages: Option<Rate>,
    /// Payload bytes of a client's data frames, in a second: 1008.
    pub bytes: Option<Rate>,
    /// Pings and pongs of a client, ours not counted: 1008.
    pub control: Option<Rate>,
    /// No byte of an unfinished message of a client for so long: 1008.
    pub stall_timeout: Option<Duration>,
    /// A message of a client is not whole so long after its first byte: 1008.
    pub timeout: Option<Duration>,
    /// Whether text is checked to be UTF-8, in both directions: 1007.
    pub utf8: bool,
    /// The largest message of a backend, in bytes on the wire over all its fragments: 1009.
    pub upstream_max_size_bytes: Option<u64>,
}

impl Settings {
    /// What is outside its range.
    pub fn faults(&self) -> Vec<Fault> {
        let rate = |keys, rate: Option<Rate>| {
            rate.map_or_else(Vec::new, |rate| range::rate(keys, rate.count, rate.per, rate.burst))
        };
        let single = [
            self.max_size_bytes.and_then(|bytes| range::size("max_size", bytes, &BYTES)),
            self.max_ratio.and_then(|ratio| range::count("max_ratio", ratio.into(), &(1..=MAX_RATIO))),
            self.max_fragments.and_then(|count| range::count("max_fragments", count.into(), &(1..=1_000_000))),
            self.bytes.and_then(|bytes| range::byte_rate("rate.bytes", bytes.count)),
            self.stall_timeout.and_then(|timeout| range::span("stall_timeout", timeout, &range::millis(100, HOUR))),
            self.timeout.and_then(|timeout| range::span("timeout", timeout, &range::millis(100, HOUR))),
            self.upstream_max_size_bytes.and_then(|bytes| range::size("upstream_max_size", bytes, &BYTES)),
        ];
        let messages = rate(["rate.messages", "rate.burst"], self.messages);
        let control = rate(["control_rate.frames", "control_rate.burst"], self.control);
        single.into_iter().flatten().chain(messages).chain(control).collect()
    }
}

/// What a session may inflate at once beyond `max_ratio`, in bytes: a few large messages that repeat themselves are no
/// attack.
pub const FREE_INFLATION_BYTES: u64 = 16 << 20;

/// And on average, in bytes per second: some milliseconds of a core.
pub const FREE_INFLATION_BYTES_PER_SECOND: u64 = 4 << 20;

/// What a block counts for, in compressed bytes on the wire: its Huffman tables take about as long as these.
pub const BLOCK_BYTES: u64 = 64;

/// How many blocks a session may send at once beyond one in [`BLOCK_BYTES`]: a message that is flushed behind each byte
/// has two for each.
pub const FREE_BLOCKS: u64 = 64 << 10;

/// And on average, in a second: a hundredth of a core.
pub const FREE_BLOCKS_PER_SECOND: u64 = 16 << 10;

/// The message policies of one session: it sees the client's frames and says which are too much.
#[derive(Debug)]
pub struct MessagePolicy {
    max_size_bytes: u64,
    upstream_max_size_bytes: u64,
    max_fragments: u32,
    max_ratio: Option<u32>,
    /// What may be inflated before the ratio is too high, in bytes: it grows with the bytes on the wire and with time.
    inflation_credit_bytes: u64,
    /// What blocks may count for before there are too many, in bytes on the wire.
    block_credit_bytes: u64,
    inflated_at: Option<Instant>,
    stall_timeout: Option<Duration>,
    timeout: Option<Duration>,
    messages: Option<Gcra>,
    bytes: Option<Gcra>,
    control: Option<Gcra>,
    /// When the last byte of an unfinished message of the client arrived; `None` between messages.
    unfinished_since: Option<Instant>,
    begun: Begun,
}

/// When the unfinished message of the client began.
#[derive(Clone, Copy, Debug)]
enum Begun {
    /// There is none.
    Not,
    /// Then.
    At(Instant),
    /// It took too long, which was only reported.
    Excused,
}

/// How far the client's bytes have come with a read.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// They end inside a message or a frame.
    pub unfinished: bool,
    /// Some belonged to it: a pong between two fragments does not.
    pub moved: bool,
    /// A message ended among them, or a control frame between two messages: what is unfinished began behind it.
    pub ended: bool,
}

impl MessagePolicy {
    /// The policies of a new session.
    pub fn new(settings: &Settings) -> Self {
        Self {
            max_size_bytes: settings.max_size_bytes.unwrap_or(u64::MAX),
            upstream_max_size_bytes: settings.upstream_max_size_bytes.unwrap_or(u64::MAX),
            max_fragments: settings.max_fragments.unwrap_or(u32::MAX),
            max_ratio: settings.max_ratio,
            inflation_credit_bytes: FREE_INFLATION_BYTES,
            block_credit_bytes: FREE_BLOCKS * BLOCK_BYTES,
            inflated_at: None,
            stall_timeout: settings.stall_timeout,
            timeout: settings.timeout,
            messages: settings.messages.map(Gcra::new),
            bytes: settings.bytes.map(Gcra::new),
            control: settings.control.map(Gcra::new),
            unfinished_since: None,
            begun: Begun::Not,
        }
    }

    /// A data frame of the client begins; `message` counts it whole.
    ///
    /// # Errors
    /// `MessageTooBig`, `TooManyFragments` and `MessageRate`, before any byte of the frame has been forwarded.
    pub fn on_frame(&mut self, message: &Message, now: Instant) -> Result<(), Cause> {
        if message.size_bytes > self.max_size_bytes {
            return Err(Cause::MessageTooBig { size_bytes: message.size_bytes, limit_bytes: self.max_size_bytes });
        }
        if message.fragments > self.max_fragments {
            return Err(Cause::TooManyFragments { limit: self.max_fragments });
        }
        if message.fragments == 1 && self.messages.as_mut().is_some_and(|rate| !rate.take(1, now)) {
            return Err(Cause::MessageRate);
        }
        Ok(())
    }

    /// Payload of the client's data frames arrived.
    ///
    /// # Errors
    /// `ByteRate`.
    pub fn on_payload(&mut self, len: usize, now: Instant) -> Result<(), Cause> {
        let kept = self.bytes.as_mut().is_none_or(|rate| rate.take(len as u64, now));
        if kept { Ok(()) } else { Err(Cause::ByteRate) }
    }

    /// `wire_bytes` of a compressed message of the client were inflated.
    ///
    /// The ratio is that of the session, so that many small messages are judged as one large message is.
    ///
    /// # Errors
    /// `MessageTooBig`, `InflationRatio` and `DeflateBlocks`.
    pub fn on_inflated(&mut self, wire_bytes: usize, inflated: &Inflated, now: Instant) -> Result<(), Cause> {
        if inflated.message_bytes > self.max_size_bytes {
            return Err(Cause::MessageTooBig { size_bytes: inflated.message_bytes, limit_bytes: self.max_size_bytes });
        }
        let Some(limit) = self.max_ratio else { return Ok(()) };
        let since = self.inflated_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let free = |per_second: u64| micros.saturating_mul(per_second) / 1_000_000;
        let wire_bytes = wire_bytes as u64;

        let earned = wire_bytes.saturating_add(free(FREE_BLOCKS_PER_SECOND * BLOCK_BYTES));
        let credit_bytes = self.block_credit_bytes.saturating_add(earned);
        let spent = u64::from(inflated.blocks) * BLOCK_BYTES;
        self.block_credit_bytes = credit_bytes.saturating_sub(spent).min(FREE_BLOCKS * BLOCK_BYTES);
        if spent > credit_bytes {
            return Err(Cause::DeflateBlocks);
        }

        let earned = wire_bytes.saturating_mul(limit.into()).saturating_add(free(FREE_INFLATION_BYTES_PER_SECOND));
        let credit_bytes = self.inflation_credit_bytes.saturating_add(earned);
        self.inflation_credit_bytes = credit_bytes.saturating_sub(inflated.bytes).min(FREE_INFLATION_BYTES);
        if inflated.bytes > credit_bytes { Err(Cause::InflationRatio { limit }) } else { Ok(()) }
    }

    /// A ping or a pong of the client's own arrived.
    ///
    /// # Errors
    /// `ControlRate`.
    pub fn on_control(&mut self, now: Instant) -> Result<(), Cause> {
        let kept = self.control.as_mut().is_none_or(|rate| rate.take(1, now));
        if kept { Ok(()) } else { Err(Cause::ControlRate) }
    }

    /// A data frame of the upstream begins; `message` counts it whole.
    ///
    /// # Errors
    /// `UpstreamMessageTooBig`.
    pub fn on_upstream_frame(&self, message: &Message) -> Result<(), Cause> {
        match message.size_bytes > self.upstream_max_size_bytes {
            true => Err(Cause::UpstreamMessageTooBig {
                size_bytes: message.size_bytes,
                limit_bytes: self.upstream_max_size_bytes,
            }),
            false => Ok(()),
        }
    }

    /// Bytes of the client arrived and were scanned.
    pub fn on_scanned(&mut self, progress: Progress, now: Instant) {
        if !progress.unfinished {
            (self.unfinished_since, self.begun) = (None, Begun::Not);
            return;
        }
        if progress.moved || self.unfinished_since.is_none() {
            self.unfinished_since = Some(now);
        }
        if progress.ended || matches!(self.begun, Begun::Not) {
            self.begun = Begun::At(now);
        }
    }

    /// The client was not read for `paused`, up to `now`: the clocks of its message stood still meanwhile.
    pub fn on_resumed(&mut self, paused: Duration, now: Instant) {
        // What was read since then is not moved into the future.
        let moved = |at: Instant| at.checked_add(paused).map_or(now, |at| at.min(now));
        self.unfinished_since = self.unfinished_since.map(moved);
        if let Begun::At(at) = &mut self.begun {
            *at = moved(*at);
        }
    }

    /// When [`MessagePolicy::check_clocks`] may find something.
    pub fn next_deadline(&self) -> Option<Instant> {
        [self.stall_deadline(), self.deadline()].into_iter().flatten().min()
    }

    fn stall_deadline(&self) -> Option<Instant> {
        Some(self.unfinished_since? + self.stall_timeout?)
    }

    fn deadline(&self) -> Option<Instant> {
        match self.begun {
            Begun::At(at) => Some(at + self.timeout?),
            Begun::Not | Begun::Excused => None,
        }
    }

    /// Whether an unfinished message has stalled, or takes altogether, for too long.
    ///
    /// # Errors
    /// `MessageStalled` and `MessageTimeout`.
    pub fn check_clocks(&self, now: Instant) -> Result<(), Cause> {
        if let (Some(since), Some(deadline)) = (self.unfinished_since, self.stall_deadline())
            && now >= deadline
        {
            return Err(Cause::MessageStalled(now - since));
        }
        match (self.begun, self.deadline()) {
            (Begun::At(at), Some(deadline)) if now >= deadline => Err(Cause::MessageTimeout(now - at)),
            _ => Ok(()),
        }
    }

    /// `found` of [`MessagePolicy::check_clocks`] was only reported: a stall is looked for anew, and that this message
    /// takes too long is not said again.
    pub fn excuse(&mut self, found: &Cause, now: Instant) {
        match found {
            Cause::MessageTimeout(_) => self.begun = Begun::Excused,
            _ => self.unfinished_since = Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::scan::MessageType;

    fn settings() -> Settings {
        Settings {
            max_size_bytes: Some(100),
            max_fragments: Some(3),
            max_ratio: Some(10),
            messages: Some(Rate::per_second(1, 2)),
            bytes: Some(Rate::per_second(10, 20)),
            control: Some(Rate::per_second(1, 1)),
            stall_timeout: Some(Duration::from_secs(60)),
            timeout: Some(Duration::from_secs(600)),
            utf8: true,
            upstream_max_size_bytes: Some(1000),
        }
    }

    fn message(fragments: u32, size_bytes: u64) -> Message {
        Message { kind: MessageType::Text, fragments, size_bytes, compressed: false, inflated_bytes: 0 }
    }

    #[test]
    fn refuses_a_message_over_its_size_and_not_at_it() {
        let mut policy = MessagePolicy::new(&settings());
        let now = Instant::now();
        assert_eq!(policy.on_frame(&message(1, 100), now), Ok(()));
        let too_big = Cause::MessageTooBig { size_bytes: 101, limit_bytes: 100 };
        assert_eq!(policy.on_frame(&message(2, 101), now), Err(too_big));
        assert_eq!(policy.on_upstream_frame(&message(1, 1000)), Ok(()));
        assert!(policy.on_upstream_frame(&message(1, 1001)).is_err());
    }

    #[test]
    fn refuses_too_many_fragments_and_too_high_rates() {
        let mut policy = MessagePolicy::new(&settings());
        let now = Instant::now();
        assert_eq!(policy.on_frame(&message(4, 1), now), Err(Cause::TooManyFragments { limit: 3 }));
        assert!((0..2).all(|_| policy.on_frame(&message(1, 1), now).is_ok()));
        assert_eq!(policy.on_frame(&message(1, 1), now), Err(Cause::MessageRate));
        // Fragments of the same message are one message.
        assert_eq!(policy.on_frame(&message(2, 1), now), Ok(()));
        assert_eq!(policy.on_payload(20, now), Ok(()));
        assert_eq!(policy.on_payload(1, now), Err(Cause::ByteRate));
        assert_eq!(policy.on_control(now), Ok(()));
        assert_eq!(policy.on_control(now), Err(Cause::ControlRate));
    }

    #[test]
    fn refuses_what_inflates_to_too_much_in_one_message_or_in_many() {
        let unlimited = Settings { max_size_bytes: Some(4 << 20), ..settings() };
        let mut policy = MessagePolicy::new(&unlimited);
        let now = Instant::now();
        let inflated = |bytes, message_bytes| Inflated { bytes, message_bytes, blocks: 0 };
        let too_big = Cause::MessageTooBig { size_bytes: (4 << 20) + 1, limit_bytes: 4 << 20 };
        assert_eq!(policy.on_inflated(512, &inflated(1, (4 << 20) + 1), now), Err(too_big));
        // Each message is far below the limit, and inflates a thousandfold.
        let bombs = |policy: &mut MessagePolicy, now| {
            (0..100_000).take_while(|_| policy.on_inflated(1, &inflated(1000, 1000), now).is_ok()).count() as u64
        };
        assert_eq!(bombs(&mut policy, now), FREE_INFLATION_BYTES / 990);
        let refused = Err(Cause::InflationRatio { limit: 10 });
        assert_eq!(policy.on_inflated(1, &inflated(1000, 1000), now), refused);
        // Time and what is compressed as usual earn credit again, and never more than there was.
        let later = now + Duration::from_secs(1);
        assert!(bombs(&mut policy, later).abs_diff(FREE_INFLATION_BYTES_PER_SECOND / 990) <= 1);
        for _ in 0..10_000 {
            assert_eq!(policy.on_inflated(512, &inflated(2000, 2000), later), Ok(()));
        }
        assert_eq!(policy.on_inflated(512, &inflated(FREE_INFLATION_BYTES + 5120, 1), later), Ok(()));
        assert_eq!(policy.on_inflated(1, &inflated(11, 11), later), refused);
        let mut policy = MessagePolicy::new(&Settings { max_ratio: None, ..unlimited });
        assert_eq!(bombs(&mut policy, now), 100_000);
    }

    #[test]
    fn refuses_more_blocks_than_their_bytes_and_time_earn() {
        let mut policy = MessagePolicy::new(&Settings { max_size_bytes: None, ..settings() });
        let now = Instant::now();
        let blocks = |blocks| Inflated { bytes: 10, message_bytes: 10, blocks };
        let passed = |policy: &mut MessagePolicy, wire_bytes, now| {
            (0..1_000_000).take_while(|_| policy.on_inflated(wire_bytes, &blocks(1), now).is_ok()).count() as u64
        };
        // The shortest block with tables of its own has 13 bytes.
        let at_once = FREE_BLOCKS * BLOCK_BYTES / (BLOCK_BYTES - 13);
        assert!(passed(&mut policy, 13, now).abs_diff(at_once) <= 1);
        assert_eq!(policy.on_inflated(13, &blocks(1), now), Err(Cause::DeflateBlocks));
        let later = now + Duration::from_secs(1);
        let a_second = FREE_BLOCKS_PER_SECOND * BLOCK_BYTES / (BLOCK_BYTES - 13);
        assert!(passed(&mut policy, 13, later).abs_diff(a_second) <= 1);
        // What is compressed as usual passes at any rate, and earns the credit again.
        assert_eq!(passed(&mut policy, 64, later), 1_000_000);
        assert_eq!(passed(&mut policy, 512, later), 1_000_000);
        assert_eq!(policy.on_inflated(13, &blocks(FREE_BLOCKS as u32), later), Ok(()));
        let mut policy = MessagePolicy::new(&Settings { max_size_bytes: None, max_ratio: None, ..settings() });
        assert_eq!(passed(&mut policy, 1, now), 1_000_000);
    }

    /// What a read was that left a message unfinished.
    const MORE: Progress = Progress { unfinished: true, moved: true, ended: false };

    #[test]
    fn closes_a_stalled_message_and_stands_still_while_not_reading() {
        let mut policy = MessagePolicy::new(&settings());
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(policy.next_deadline(), None);
        policy.on_scanned(MORE, start);
        policy.on_scanned(Progress { moved: false, ..MORE }, after(30));
        assert_eq!(policy.next_deadline(), Some(after(60)));
        assert_eq!(policy.check_clocks(after(59)), Ok(()));
        assert_eq!(policy.check_clocks(after(60)), Err(Cause::MessageStalled(Duration::from_secs(60))));
        policy.on_resumed(Duration::from_secs(30), after(60));
        assert_eq!(policy.check_clocks(after(89)), Ok(()));
        assert!(policy.check_clocks(after(90)).is_err());
        policy.on_scanned(Progress { unfinished: false, ..MORE }, after(91));
        assert_eq!(policy.next_deadline(), None);
        // What was read in the moment in which reading went on is not stalled later than from then on.
        policy.on_scanned(MORE, after(100));
        policy.on_resumed(Duration::from_secs(30), after(100));
        assert_eq!(policy.next_deadline(), Some(after(160)));
    }

    #[test]
    fn closes_a_message_that_takes_too_long_from_its_first_byte() {
        let mut policy = MessagePolicy::new(&settings());
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let drip = |policy: &mut MessagePolicy, from: u64, to: u64| {
            for at in (from..to).step_by(50) {
                policy.on_scanned(MORE, after(at));
                assert_eq!(policy.check_clocks(after(at)), Ok(()), "at {at} s");
            }
        };
        drip(&mut policy, 0, 600);
        assert_eq!(policy.next_deadline(), Some(after(600)));
        assert_eq!(policy.check_clocks(after(600)), Err(Cause::MessageTimeout(Duration::from_secs(600))));
        // Neither a control frame nor the end of a fragment begins it anew; the end of the message does.
        policy.on_scanned(Progress { moved: false, ..MORE }, after(600));
        assert!(policy.check_clocks(after(600)).is_err());
        policy.on_scanned(Progress { ended: true, ..MORE }, after(600));
        drip(&mut policy, 650, 1200);
        // The time in which the client was not read does not count.
        policy.on_resumed(Duration::from_secs(40), after(1190));
        assert_eq!(policy.check_clocks(after(1239)), Ok(()));
        assert_eq!(policy.check_clocks(after(1240)), Err(Cause::MessageTimeout(Duration::from_secs(600))));
        let mut policy = MessagePolicy::new(&Settings { timeout: None, ..settings() });
        drip(&mut policy, 0, 36_000);
    }

    #[test]
    fn a_message_that_is_excused_is_not_found_twice() {
        let mut policy = MessagePolicy::new(&settings());
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        policy.on_scanned(MORE, start);
        let stalled = policy.check_clocks(after(600)).unwrap_err();
        assert!(matches!(stalled, Cause::MessageStalled(_)));
        policy.excuse(&stalled, after(600));
        let late = policy.check_clocks(after(600)).unwrap_err();
        assert!(matches!(late, Cause::MessageTimeout(_)));
        policy.excuse(&late, after(600));
        assert_eq!(policy.next_deadline(), Some(after(660)));
        policy.on_scanned(MORE, after(650));
        assert_eq!(policy.next_deadline(), Some(after(710)));
        policy.on_scanned(Progress { ended: true, ..MORE }, after(700));
        policy.on_scanned(MORE, after(1290));
        assert_eq!(policy.next_deadline(), Some(after(1300)));
    }
}
