//! What this node knows of one stream: the logs of its channels, and which messages are copies of earlier ones.
//!
//! Nothing here awaits. Every node that has read far enough back comes to the same entries with the same ids, since both
//! follow from the stream alone: an entry's time is the latest stamp up to it, and a message is a copy if its id was seen
//! less than a window before it, be it as a copy.

use std::collections::{HashMap, VecDeque};

use super::super::engine::{Channel, Entry, MessageId};
use super::super::position::{EntryId, Epoch, Position, Region};
use super::super::sink::Sink;
use super::channel_log::{Log, born_under, fresh};
use super::envelope::{Content, Envelope};
use super::settings::Settings;

/// What an entry takes beside its payload and id, and what a remembered id takes beside its text. Estimates.
const OVERHEAD_BYTES: usize = 250;

/// One stream, as far as it was read.
#[derive(Debug)]
pub struct Index {
    region: Region,
    /// Whose numbers and continuity these are: another one when the stream is not the one that was followed.
    pub lineage: Epoch,
    logs: HashMap<Channel, Log>,
    /// All that was taken, the oldest first.
    taken: VecDeque<Taken>,
    /// Ids and estimates of what was taken; the payloads are counted by the logs.
    taken_bytes: usize,
    payload_bytes: usize,
    subscriptions: usize,
    /// The latest stamp.
    ms: u64,
    /// What was read last: its offset, and what tells it from another message there.
    pub last: Option<(u64, u64)>,
    /// Whether all that the stream ever had was read, and is still known.
    is_whole: bool,
    /// Whether what is read is older than the end of the stream when it was begun with: it is not pushed then.
    pub is_building: bool,
    /// Everything up to here was in another stream.
    other: Option<EntryId>,
}

#[derive(Debug)]
struct Taken {
    id: EntryId,
    channel: Channel,
    message: MessageId,
}

/// What came of a message.
#[derive(Debug)]
pub struct Outcome {
    /// Where it is, or the one that it is a copy of.
    pub position: Position,
    /// Whether it is a copy.
    pub is_copy: bool,
    /// The channel, if its receiver had no room.
    pub overrun: Option<Channel>,
}

impl Index {
    /// Of a stream that was not read.
    pub fn new(region: Region) -> Self {
        Self {
            region,
            lineage: fresh(),
            logs: HashMap::new(),
            taken: VecDeque::new(),
            taken_bytes: 0,
            payload_bytes: 0,
            subscriptions: 0,
            ms: 0,
            last: None,
            is_whole: false,
            is_building: true,
            other: None,
        }
    }

    /// Forgets what was read; subscriptions stay. `is_other`: it was another stream than the one that is read next.
    pub fn restart(&mut self, is_other: bool) {
        let mut kept = HashMap::new();
        for (channel, log) in self.logs.drain() {
            if log.sink.is_some() {
                let mut anew = Log::new(fresh());
                anew.sink = log.sink;
                kept.insert(channel, anew);
            }
        }
        if is_other && let Some((offset, _)) = self.last {
            self.other = Some(EntryId { ms: self.ms, seq: offset }.max(self.other.unwrap_or_default()));
            // Offsets begin anew: with a time that is later no id is given out twice, also where clocks stand behind.
            self.ms += 1;
        }
        *self = Self {
            logs: kept,
            subscriptions: self.subscriptions,
            ms: self.ms,
            other: self.other,
            ..Self::new(self.region.clone())
        };
    }

    /// Reading begins with the stream's first message.
    pub fn begins_whole(&mut self) {
        self.is_whole = true;
    }

    /// How many channels are subscribed to.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// A time that is not before any that was seen.
    pub fn stamp(&self, now_ms: u64) -> u64 {
        now_ms.max(self.ms)
    }

    /// What it takes in memory, nearly.
    fn bytes(&self) -> usize {
        self.taken_bytes + self.payload_bytes
    }

    /// The position of a message that would be a copy if it were published now.
    pub fn find(&self, channel: &Channel, message: &MessageId, now_ms: u64, settings: &Settings) -> Option<Position> {
        let window_ms = super::millis(settings.dedupe_window);
        self.logs.get(channel)?.find(&self.region, message, self.stamp(now_ms), window_ms)
    }

    /// Takes the next message of the stream; `None` if it is no item.
    pub fn take(&mut self, offset: u64, envelope: Envelope, now_ms: u64, settings: &Settings) -> Option<Outcome> {
        self.last = Some((offset, envelope.nonce));
        self.ms = self.ms.max(envelope.stamp_ms);
        self.expire(now_ms, settings);
        let Content::Item { channel, message, payload } = envelope.content else { return None };
        // `0-0` is no entry.
        let id = EntryId { ms: self.ms.max(1), seq: offset };
        let window_ms = super::millis(settings.dedupe_window);
        let (is_whole, lineage) = (self.is_whole, &self.lineage);
        let make = || if is_whole { Log::new(born_under(lineage)) } else { Log::new(fresh()).uncounted() };
        let log = self.logs.entry(channel.clone()).or_insert_with(make);
        self.taken_bytes += OVERHEAD_BYTES + message.as_str().len();
        self.taken.push_back(Taken { id, channel: channel.clone(), message: message.clone() });
        let outcome = if let Some(position) = log.find(&self.region, &message, id.ms, window_ms) {
            log.see_copy(&message, id.ms);
            Outcome { position, is_copy: true, overrun: None }
        } else {
            let before = log.bytes();
            let entry = log.append(&self.region, id, message, payload);
            log.trim(&settings.retention, now_ms);
            self.payload_bytes = (self.payload_bytes + log.bytes()).saturating_sub(before);
            let position = entry.position.clone();
            let overrun = push(log, &channel, entry, self.is_building).then_some(channel);
            Outcome { position, is_copy: false, overrun }
        };
        self.make_room(settings);
        Some(outcome)
    }

    /// Subscribes, in the place of an earlier subscription, and gives the position behind which all is pushed.
    pub fn subscribe(&mut self, channel: &Channel, sink: &Sink) -> Position {
        let (is_whole, lineage) = (self.is_whole, &self.lineage);
        let make = || Log::new(if is_whole { born_under(lineage) } else { fresh() });
        let log = self.logs.entry(channel.clone()).or_insert_with(make);
        if log.sink.replace(sink.clone()).is_none() {
            self.subscriptions += 1;
        }
        log.top(&self.region)
    }

    /// Whether a channel is subscribed to.
    pub fn is_subscribed(&self, channel: &Channel) -> bool {
        self.logs.get(channel).is_some_and(|log| log.sink.is_some())
    }

    /// Ends a subscription. Says whether there was one.
    pub fn unsubscribe(&mut self, channel: &Channel) -> bool {
        let Some(log) = self.logs.get_mut(channel) else { return false };
        let ended = log.sink.take().is_some();
        self.subscriptions -= usize::from(ended);
        if log.is_forgotten() {
            self.logs.remove(channel);
            self.is_whole = false;
        }
        ended
    }

    /// Tells all subscribers that they may have missed something, and says which channels they have.
    pub fn disrupt(&self) -> Vec<Channel> {
        let subscribed = self.logs.iter().filter_map(|(channel, log)| Some((channel, log.sink.as_ref()?)));
        subscribed
            .map(|(channel, sink)| {
                sink.disrupt(channel);
                channel.clone()
            })
            .collect()
    }

    /// The log of a channel as of now. One that nothing is known of is made for the moment.
    pub fn with_log<T>(
        &mut self,
        channel: &Channel,
        now_ms: u64,
        settings: &Settings,
        read: impl FnOnce(&mut Log, &Region, &dyn Fn(EntryId) -> bool) -> T,
    ) -> T {
        let other = self.other;
        let is_other = move |id| other.is_some_and(|other| id <= other);
        let Some(log) = self.logs.get_mut(channel) else {
            let epoch = if self.is_whole { self.lineage.clone() } else { fresh() };
            return read(&mut Log::new(epoch), &self.region, &is_other);
        };
        let before = log.bytes();
        log.trim(&settings.retention, now_ms);
        let answer = read(log, &self.region, &is_other);
        self.payload_bytes = (self.payload_bytes + log.bytes()).saturating_sub(before);
        answer
    }

    /// Forgets what is older than both the window and the retention.
    fn expire(&mut self, now_ms: u64, settings: &Settings) {
        let keep_ms = super::millis(settings.dedupe_window.max(settings.retention.max_age));
        let now_ms = self.stamp(now_ms);
        while self.taken.front().is_some_and(|oldest| now_ms.saturating_sub(oldest.id.ms) > keep_ms) {
            self.drop_oldest();
        }
    }

    fn make_room(&mut self, settings: &Settings) {
        // The newest stays.
        while self.bytes() > settings.max_index_bytes && self.taken.len() > 1 {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(Taken { id, channel, message }) = self.taken.pop_front() else { return };
        self.taken_bytes -= OVERHEAD_BYTES + message.as_str().len();
        let Some(log) = self.logs.get_mut(&channel) else { return };
        let before = log.bytes();
        log.forget(&message, id.ms);
        log.drop_to(id);
        self.payload_bytes = (self.payload_bytes + log.bytes()).saturating_sub(before);
        if log.is_forgotten() {
            self.logs.remove(&channel);
            self.is_whole = false;
        }
    }
}

/// Pushes an entry. `true` if there was no room for it.
fn push(log: &Log, channel: &Channel, entry: Entry, is_building: bool) -> bool {
    match &log.sink {
        Some(sink) if !is_building => !sink.push(channel, entry),
        _ => false,
    }
}
