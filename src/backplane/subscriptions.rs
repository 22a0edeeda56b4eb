//! What is subscribed to, and how far each channel was pushed: nothing here awaits.
//!
//! ```text
//!             start                 read, complete
//! (none) ───────────────▶ Reading ─────────────────▶ Live
//!                           ▲  ▲                      │
//!                           │  └──────────────────────┘ a hole, another epoch
//!                           └─ a new session
//! ```
//! In `Live` the entry with the next number is pushed, and those with lower ones are dropped as known. Everything else
//! means that something was not heard, and the log is read from the last position on. While it is read, what arrives is
//! held, up to a bound; if that is passed the log is read again.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::engine::{Channel, Entry, Slice};
use super::position::{Place, Position};
use super::recover::{Recovery, ReplayLimit};
use super::sink::Sink;

/// How many entries that arrive are held while a log is read.
const MAX_HELD_ENTRIES: usize = 128;

/// How many bytes of payload those have.
const MAX_HELD_BYTES: usize = 1 << 20;

/// No more is asked for than the log has.
const UNLIMITED: ReplayLimit = ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX };

/// All subscriptions of an engine.
#[derive(Debug, Default)]
pub struct Subscriptions {
    channels: HashMap<Channel, Subscription>,
    attempts: u64,
}

#[derive(Debug)]
struct Subscription {
    sink: Sink,
    state: State,
}

#[derive(Debug)]
enum State {
    /// All up to this was pushed.
    Live(Position),
    /// The log is being read.
    Reading {
        /// Which reading; an older one has no say any more.
        attempt: u64,
        /// All up to this was pushed; none before the first reading.
        last: Option<Position>,
        held: Vec<Entry>,
        held_bytes: usize,
        /// More arrived than is held.
        overflowed: bool,
    },
}

/// A reading that has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Of this channel.
    pub channel: Channel,
    /// Which one it is.
    pub attempt: u64,
    /// From here on; from the top if there is none.
    pub after: Option<Position>,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well, or the subscription is gone.
    Done,
    /// The log has to be read.
    Read(Reading),
}

/// What a step did, and whether the sink was told of a disruption.
pub type Step = (Outcome, bool);

impl Subscriptions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// Whether there is one for the channel.
    pub fn contains(&self, channel: &Channel) -> bool {
        self.channels.contains_key(channel)
    }

    /// Begins a subscription in place of any other, and says what to read once the server has acknowledged it.
    pub fn start(&mut self, channel: &Channel, sink: &Sink) -> Reading {
        let (attempt, state) = self.reading(None);
        self.channels.insert(channel.clone(), Subscription { sink: sink.clone(), state });
        Reading { channel: channel.clone(), attempt, after: None }
    }

    /// Ends a subscription. Whether there was one.
    pub fn end(&mut self, channel: &Channel) -> bool {
        self.channels.remove(channel).is_some()
    }

    /// Ends subscriptions that were pushed from, and gives their receivers.
    pub fn part(&mut self, concerned: impl Fn(&Channel) -> bool) -> Vec<(Channel, Sink)> {
        let is_started = |subscription: &Subscription| !matches!(subscription.state, State::Reading { last: None, .. });
        let parted = self.channels.extract_if(|channel, subscription| is_started(subscription) && concerned(channel));
        parted.map(|(channel, subscription)| (channel, subscription.sink)).collect()
    }

    /// Ends a subscription whose start failed, unless another has taken its place.
    pub fn give_up_start(&mut self, reading: &Reading) {
        if self.is_current(reading) {
            self.channels.remove(&reading.channel);
        }
    }

    /// A new session for some channels: each of their logs that was pushed from has to be read, once the server has
    /// acknowledged the subscription. Those whose start is not finished are left to whoever started them.
    pub fn restart(&mut self, is_concerned: impl Fn(&Channel) -> bool) -> Vec<Reading> {
        let mut attempts = self.attempts;
        let mut readings = Vec::new();
        for (channel, subscription) in self.channels.iter_mut().filter(|(channel, _)| is_concerned(channel)) {
            let last = match &subscription.state {
                State::Live(last) | State::Reading { last: Some(last), .. } => last.clone(),
                State::Reading { last: None, .. } => continue,
            };
            attempts += 1;
            subscription.state = reading(attempts, Some(last.clone()));
            readings.push(Reading { channel: channel.clone(), attempt: attempts, after: Some(last) });
        }
        self.attempts = attempts;
        readings
    }

    /// An entry arrived.
    pub fn pushed(&mut self, channel: &Channel, entry: Entry) -> Step {
        let Some(subscription) = self.channels.get_mut(channel) else { return (Outcome::Done, false) };
        match &mut subscription.state {
            State::Live(last) => match follows(last, &entry) {
                Follows::Known => (Outcome::Done, false),
                Follows::Next => {
                    *last = entry.position.clone();
                    let disrupted = !subscription.sink.push(channel, entry);
                    (Outcome::Done, disrupted)
                }
                Follows::Unknown => {
                    let last = last.clone();
                    self.read_again(channel, last)
                }
            },
            State::Reading { held, held_bytes, overflowed, .. } => {
                *held_bytes += entry.payload.len();
                if held.len() < MAX_HELD_ENTRIES && *held_bytes <= MAX_HELD_BYTES && !*overflowed {
                    held.push(entry);
                } else {
                    *overflowed = true;
                    *held = Vec::new();
                }
                (Outcome::Done, false)
            }
        }
    }

    /// A message arrived that cannot be read.
    pub fn garbled(&mut self, channel: &Channel) -> Step {
        match self.channels.get_mut(channel).map(|subscription| &mut subscription.state) {
            Some(State::Live(last)) => {
                let last = last.clone();
                self.read_again(channel, last)
            }
            Some(State::Reading { overflowed, .. }) => {
                *overflowed = true;
                (Outcome::Done, false)
            }
            None => (Outcome::Done, false),
        }
    }

    /// A log was read.
    pub fn read(&mut self, reading: &Reading, slice: Slice) -> Step {
        if !self.is_current(reading) {
            return (Outcome::Done, false);
        }
        let Some(subscription) = self.channels.get_mut(&reading.channel) else { return (Outcome::Done, false) };
        let mut disrupted = false;
        let mut complete = true;
        let pushed_to = match &reading.after {
            None => slice.top,
            Some(after) => match slice.recover(&Place::After(after.clone()), UNLIMITED) {
                Recovery::Live => after.clone(),
                Recovery::Replay { .. } => {
                    complete = slice.is_complete();
                    let mut pushed_to = after.clone();
                    for entry in slice.entries {
                        pushed_to = entry.position.clone();
                        disrupted |= !subscription.sink.push(&reading.channel, entry);
                    }
                    pushed_to
                }
                Recovery::Gap(_) => {
                    subscription.sink.disrupt(&reading.channel);
                    disrupted = true;
                    slice.top
                }
            },
        };
        let State::Reading { held, overflowed, last, .. } = &mut subscription.state else {
            return (Outcome::Done, disrupted);
        };
        *last = Some(pushed_to.clone());
        if !complete {
            return (Outcome::Read(Reading { after: Some(pushed_to), ..reading.clone() }), disrupted);
        }
        let (held, overflowed) = (std::mem::take(held), *overflowed);
        subscription.state = State::Live(pushed_to.clone());
        if overflowed {
            let (outcome, _) = self.read_again(&reading.channel, pushed_to);
            return (outcome, disrupted);
        }
        for entry in held {
            let (outcome, also) = self.pushed(&reading.channel, entry);
            disrupted |= also;
            // What is held behind a hole is read with it.
            if outcome != Outcome::Done {
                return (outcome, disrupted);
            }
        }
        (Outcome::Done, disrupted)
    }

    /// A log cannot be read: the receiver is told, and may try itself. Whether there was one to tell.
    pub fn unreadable(&mut self, reading: &Reading) -> bool {
        if !self.is_current(reading) {
            return false;
        }
        let Some(subscription) = self.channels.get_mut(&reading.channel) else { return false };
        let State::Reading { last: Some(last), .. } = &subscription.state else { return false };
        subscription.state = State::Live(last.clone());
        subscription.sink.disrupt(&reading.channel);
        true
    }

    /// Whether a reading is still the one that its channel waits for.
    pub fn is_current(&self, reading: &Reading) -> bool {
        let state = self.channels.get(&reading.channel).map(|subscription| &subscription.state);
        matches!(state, Some(State::Reading { attempt, .. }) if *attempt == reading.attempt)
    }

    fn read_again(&mut self, channel: &Channel, last: Position) -> Step {
        let (attempt, state) = self.reading(Some(last.clone()));
        if let Slot::Occupied(mut slot) = self.channels.entry(channel.clone()) {
            slot.get_mut().state = state;
        }
        (Outcome::Read(Reading { channel: channel.clone(), attempt, after: Some(last) }), false)
    }

    fn reading(&mut self, last: Option<Position>) -> (u64, State) {
        self.attempts += 1;
        (self.attempts, reading(self.attempts, last))
    }
}

fn reading(attempt: u64, last: Option<Position>) -> State {
    State::Reading { attempt, last, held: Vec::new(), held_bytes: 0, overflowed: false }
}

/// How an entry stands to the last one that was pushed.
enum Follows {
    Known,
    Next,
    Unknown,
}

fn follows(last: &Position, entry: &Entry) -> Follows {
    let next = &entry.position;
    let same_epoch = if last.is_origin() { next.epoch.is_of(&last.epoch) } else { next.epoch == last.epoch };
    match same_epoch {
        true if next.n == last.n + 1 => Follows::Next,
        true if next.n <= last.n => Follows::Known,
        // The numbers of another epoch say nothing.
        _ => Follows::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::engine::MessageId;
    use super::super::recover::{Log, Mark};
    use super::super::sink::{Delivery, SinkLimit, Source, sink};
    use super::*;

    fn position(epoch: &str, n: u64) -> Position {
        format!("eu.{epoch}.{n}.{n}-0").parse().unwrap()
    }

    fn entry(epoch: &str, n: u64) -> Entry {
        Entry { position: position(epoch, n), message: MessageId::new("m").unwrap(), payload: Bytes::new() }
    }

    fn slice(epoch: &str, first: u64, from: u64, to: u64, top: u64) -> Slice {
        let log = Log { top, first, first_epoch: position(epoch, 1).epoch };
        let entries = (from..=to).map(|n| entry(epoch, n)).collect();
        let before = position(epoch, from.max(2) - 1);
        let at = (from > first).then_some(Mark { epoch: before.epoch, id: before.id });
        Slice { entries, log, top: position(epoch, top), at }
    }

    fn channel() -> Channel {
        Channel::new("a").unwrap()
    }

    /// A live subscription behind entry 3 of epoch `x1`.
    fn live() -> (Subscriptions, Source) {
        let (sink, source) = sink(SinkLimit::default());
        let mut all = Subscriptions::default();
        let reading = all.start(&channel(), &sink);
        assert_eq!(all.read(&reading, slice("x1", 1, 1, 0, 3)), (Outcome::Done, false));
        (all, source)
    }

    fn got(source: &mut Source) -> Vec<u64> {
        std::iter::from_fn(|| source.try_recv())
            .map(|delivery| match delivery {
                Delivery::Entry(_, entry) => entry.position.n,
                Delivery::Disrupted(_) => 0,
            })
            .collect()
    }

    fn read(step: Step) -> Reading {
        match step.0 {
            Outcome::Read(reading) => reading,
            Outcome::Done => panic!("nothing to read"),
        }
    }

    #[test]
    fn the_next_is_pushed_and_what_is_known_is_not() {
        let (mut all, mut source) = live();
        for n in [2, 3, 4, 4, 5, 1] {
            assert_eq!(all.pushed(&channel(), entry("x1", n)), (Outcome::Done, false));
        }
        assert_eq!(got(&mut source), [4, 5]);
    }

    #[test]
    fn a_hole_is_read_and_what_arrives_meanwhile_is_pushed_behind_it() {
        let (mut all, mut source) = live();
        let reading = read(all.pushed(&channel(), entry("x1", 6)));
        assert_eq!(reading.after, Some(position("x1", 3)));
        for n in [7, 8, 9] {
            all.pushed(&channel(), entry("x1", n));
        }
        assert!(got(&mut source).is_empty());
        assert_eq!(all.read(&reading, slice("x1", 1, 4, 8, 8)), (Outcome::Done, false));
        assert_eq!(got(&mut source), [4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_long_hole_is_read_in_parts() {
        let (mut all, mut source) = live();
        let first = read(all.pushed(&channel(), entry("x1", 9)));
        let second = read(all.read(&first, slice("x1", 1, 4, 6, 9)));
        assert_eq!(second.after, Some(position("x1", 6)));
        assert_eq!(all.read(&second, slice("x1", 1, 7, 9, 9)), (Outcome::Done, false));
        assert_eq!(got(&mut source), [4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn too_much_meanwhile_is_read_again() {
        let (mut all, mut source) = live();
        let reading = read(all.pushed(&channel(), entry("x1", 6)));
        for n in 7..7 + MAX_HELD_ENTRIES as u64 + 1 {
            all.pushed(&channel(), entry("x1", n));
        }
        let again = read(all.read(&reading, slice("x1", 1, 4, 6, 6)));
        assert_eq!(again.after, Some(position("x1", 6)));
        assert_eq!(got(&mut source), [4, 5, 6]);
    }

    #[test]
    fn another_epoch_is_read_and_a_gap_is_told() {
        let (mut all, mut source) = live();
        let reading = read(all.pushed(&channel(), entry("y1", 1)));
        assert_eq!(all.read(&reading, slice("y1", 1, 1, 1, 1)), (Outcome::Done, true));
        assert_eq!(got(&mut source), [0]);
        all.pushed(&channel(), entry("y1", 2));
        assert_eq!(got(&mut source), [2]);
    }

    #[test]
    fn the_first_entry_of_a_new_log_follows_its_lineage() {
        let (sink, mut source) = sink(SinkLimit::default());
        let mut all = Subscriptions::default();
        let reading = all.start(&channel(), &sink);
        let origin: Position = "eu.x.0.0-0".parse().unwrap();
        let log = Log { top: 0, first: 1, first_epoch: origin.epoch.clone() };
        all.read(&reading, Slice { entries: Vec::new(), log, top: origin, at: None });
        assert_eq!(all.pushed(&channel(), entry("x1", 1)), (Outcome::Done, false));
        assert_eq!(got(&mut source), [1]);
    }

    #[test]
    fn a_new_session_reads_from_the_last_position_and_an_older_reading_has_no_say() {
        let (mut all, mut source) = live();
        let old = read(all.pushed(&channel(), entry("x1", 6)));
        assert_eq!(all.restart(|_| false), []);
        let new = all.restart(|_| true);
        assert_eq!(new.len(), 1);
        assert_eq!(new[0].after, Some(position("x1", 3)));
        assert_eq!(all.read(&old, slice("x1", 1, 4, 6, 6)), (Outcome::Done, false));
        assert!(!all.unreadable(&old));
        assert!(got(&mut source).is_empty());
        all.read(&new[0], slice("x1", 1, 4, 6, 6));
        assert_eq!(got(&mut source), [4, 5, 6]);
    }

    #[test]
    fn a_start_belongs_to_who_started_it() {
        let (sink, _source) = sink(SinkLimit::default());
        let mut all = Subscriptions::default();
        let first = all.start(&channel(), &sink);
        assert_eq!(all.restart(|_| true), []);
        let second = all.start(&channel(), &sink);
        all.give_up_start(&first);
        assert!(all.contains(&channel()));
        all.give_up_start(&second);
        assert_eq!(all.len(), 0);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_tried_at_the_next_entry() {
        let (mut all, mut source) = live();
        let reading = read(all.garbled(&channel()));
        assert!(all.unreadable(&reading));
        assert_eq!(got(&mut source), [0]);
        assert_eq!(read(all.pushed(&channel(), entry("x1", 5))).after, Some(position("x1", 3)));
    }

    #[test]
    fn a_full_sink_is_told_of_once_and_the_place_moves_on() {
        let (sink, mut source) = sink(SinkLimit { max_entries: 1, max_bytes: 1 });
        let mut all = Subscriptions::default();
        let reading = all.start(&channel(), &sink);
        all.read(&reading, slice("x1", 1, 1, 0, 3));
        assert_eq!(all.pushed(&channel(), entry("x1", 4)), (Outcome::Done, false));
        assert_eq!(all.pushed(&channel(), entry("x1", 5)), (Outcome::Done, true));
        assert_eq!(got(&mut source), [0, 4]);
        assert_eq!(all.pushed(&channel(), entry("x1", 6)), (Outcome::Done, false));
        assert_eq!(got(&mut source), [6]);
    }
}
