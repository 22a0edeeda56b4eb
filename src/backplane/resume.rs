//! A client of the subprotocol `sluicegate.v1`, as its subscriber sees it: the positions that it came with, the
//! subscriptions that wait for them, and what it is told of each.
//!
//! ```text
//!   Waiting --- new, an application's message, or resume_wait has passed ---> Begun, without positions
//!      |
//!      +------- resume ------------------------------------------------------> Begun, with positions
//! ```
//!
//! A position grants nothing: it is only looked at when the backend subscribes this connection to its channel.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::Channel;
use super::hub::From;
use super::position::{Position, Region};
use super::recover::{Recovery, ReplayLimit, Why};
use super::rendered::frame;
use crate::grip::resume::{FromClient, GapReason, Notice, RegionState, SubState, write_notice};
use crate::grip::{Kind, position};

/// How long a client may take to say where it was.
pub const RESUME_WAIT: Duration = Duration::from_secs(2);

/// How long positions are kept for channels that the backend has not subscribed the client to.
const POSITIONS_KEPT: Duration = Duration::from_secs(60);

/// How long a subscription may take before its client is told that it does.
const PENDING_AFTER: Duration = Duration::from_secs(1);

/// After so many entries of a channel that are not for the client, it is told its position.
const UNSEEN_ENTRIES: u32 = 64;

/// What a client is told in the first message.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The id of the connection, as the log has it.
    pub connection: String,
    /// The regions whose logs are read here, ours first.
    pub regions: Arc<[Region]>,
    /// How often the client is pinged when it is quiet; `None` for never.
    pub ping: Option<Duration>,
    /// The largest message that it may send, in bytes; `None` for no bound.
    pub max_message_bytes: Option<u64>,
}

/// One client.
#[derive(Debug)]
pub(super) struct Resume {
    settings: Settings,
    stand: Stand,
    /// Where the client was, by channel. The parser bounds them together to one header line.
    places: BTreeMap<String, Vec<position::Position>>,
    /// What it is to be told between two messages, as frames. At most one for each channel that it named.
    told: Vec<u8>,
}

#[derive(Debug)]
enum Stand {
    /// It has not said where it was. Subscriptions wait: as many as a connection may have.
    Waiting { until: Instant, subscriptions: Vec<Wanted> },
    /// It has, or took too long. Positions are kept until then.
    Begun { late: bool, forget_at: Option<Instant> },
}

/// A subscription of the backend's.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) channel: Channel,
    pub(super) from: From,
    pub(super) limit: ReplayLimit,
}

/// How one subscription of the client came to be.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// What is known of the client's place in the log of each region. At most one for each that is read.
    regions: BTreeMap<Region, OfRegion>,
    /// From where on the channel was asked for, while no region's log is in force.
    asked: Option<From>,
    /// Whether anything from before was asked for.
    resumed: bool,
    /// Positions that nothing can be done with here.
    lost: Vec<(position::Position, GapReason)>,
    /// When the client is told that it takes long.
    pending_at: Option<Instant>,
    unseen: u32,
}

/// A client's place in the log of one region.
#[derive(Debug, Default)]
struct OfRegion {
    /// The client's own position, which the log was asked from.
    from: Option<Position>,
    /// Where the client is by what it was sent; `None` while it is at `from`.
    last: Option<Position>,
}

impl Resume {
    /// A client whose session begins now.
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        let stand = Stand::Waiting { until: now + RESUME_WAIT, subscriptions: Vec::new() };
        Self { settings, stand, places: BTreeMap::new(), told: Vec::new() }
    }

    /// Appends the first message.
    pub(super) fn hello(&self, out: &mut Vec<u8>) {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        tell(
            &Notice::Hello {
                v: 1,
                cid: self.settings.connection.as_str().into(),
                region: self.settings.regions.first().map_or("", Region::as_str).into(),
                resume_wait: millis(RESUME_WAIT),
                ping: self.settings.ping.map_or(0, millis),
                max_frame: self.settings.max_message_bytes.unwrap_or(0),
            },
            out,
        );
    }

    /// The backend subscribes, in the place of an earlier subscription if there is one. Returns the subscription to make
    /// now, if it need not wait.
    pub(super) fn subscribe(
        &mut self,
        wanted: Wanted,
        earlier: Option<Track>,
        now: Instant,
    ) -> Option<(Wanted, Track)> {
        if let Stand::Waiting { subscriptions, .. } = &mut self.stand {
            // The caller has counted its channel.
            subscriptions.retain(|other| other.channel != wanted.channel);
            subscriptions.push(wanted);
            return None;
        }
        Some(self.place(wanted, earlier, now))
    }

    /// The backend unsubscribes.
    pub(super) fn unsubscribe(&mut self, channel: &Channel) {
        if let Stand::Waiting { subscriptions, .. } = &mut self.stand {
            subscriptions.retain(|other| other.channel != *channel);
        }
    }

    /// The client has said something. Returns the subscriptions to make now. `is_subscribed` says to which channels it
    /// is; of those it may have missed what it comes too late to ask for.
    ///
    /// # Errors
    /// What has no place here.
    pub(super) fn hear(
        &mut self,
        message: FromClient<'_>,
        now: Instant,
        is_subscribed: impl Fn(&str) -> bool,
    ) -> Result<Vec<(Wanted, Track)>, &'static str> {
        let waits = matches!(self.stand, Stand::Waiting { .. });
        match message {
            FromClient::Payload(_) | FromClient::New if waits => Ok(self.begin(now, false)),
            FromClient::Resume(places) if waits => {
                self.places = places.into_iter().collect();
                Ok(self.begin(now, false))
            }
            FromClient::Payload(_) => Ok(Vec::new()),
            // Nothing of a backend's asks for it.
            FromClient::Ack { .. } => Ok(Vec::new()),
            FromClient::New | FromClient::Resume(_) => {
                let Stand::Begun { late: late @ true, forget_at } = &mut self.stand else {
                    return Err("resume or new behind another message");
                };
                // It was on its way when the time was over.
                (*late, *forget_at) = (false, Some(now + POSITIONS_KEPT));
                if let FromClient::Resume(places) = message {
                    let (known, rest) = places.into_iter().partition(|(channel, _)| is_subscribed(channel));
                    self.places = rest;
                    let known: BTreeMap<String, Vec<position::Position>> = known;
                    for (channel, positions) in &known {
                        for position in positions {
                            gap(
                                channel,
                                position.region(),
                                GapReason::Expired,
                                Some(position.as_str()),
                                None,
                                &mut self.told,
                            );
                        }
                    }
                }
                Ok(Vec::new())
            }
        }
    }

    /// Ends the waiting when its time has come, and forgets what is of no use. Returns the subscriptions to make now.
    pub(super) fn on_time(&mut self, now: Instant) -> Vec<(Wanted, Track)> {
        match &mut self.stand {
            Stand::Waiting { until, .. } if now >= *until => self.begin(now, true),
            Stand::Begun { forget_at, .. } if forget_at.is_some_and(|at| now >= at) => {
                *forget_at = None;
                self.places = BTreeMap::new();
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// When to ask [`Self::on_time`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match &self.stand {
            Stand::Waiting { until, .. } => Some(*until),
            Stand::Begun { forget_at, .. } => *forget_at,
        }
    }

    /// A region can be reached, or not any more: appends what the client is told of it.
    pub(super) fn region(&self, region: &Region, reachable: bool, out: &mut Vec<u8>) {
        let state = if reachable { RegionState::Ok } else { RegionState::Stale };
        tell(&Notice::Region { region: region.as_str().into(), state, lag_ms: None }, out);
    }

    /// Appends what the client is to be told besides. Must be called between messages only.
    pub(super) fn flush(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.told);
    }

    fn begin(&mut self, now: Instant, late: bool) -> Vec<(Wanted, Track)> {
        let forget_at = (!self.places.is_empty()).then(|| now + POSITIONS_KEPT);
        match std::mem::replace(&mut self.stand, Stand::Begun { late, forget_at }) {
            Stand::Waiting { subscriptions, .. } => {
                subscriptions.into_iter().map(|wanted| self.place(wanted, None, now)).collect()
            }
            Stand::Begun { .. } => Vec::new(),
        }
    }

    /// From where on a channel is wanted: the client's own position is nearer to what it has than what its backend knows.
    /// Behind a subscription whose place this takes it goes on, since what waited of that is not sent any more.
    fn place(&mut self, wanted: Wanted, earlier: Option<Track>, now: Instant) -> (Wanted, Track) {
        let mut track = Track { pending_at: Some(now + PENDING_AFTER), ..Track::default() };
        let mut from = wanted.from;
        if let Some(earlier) = earlier {
            track.lost = earlier.lost;
            let places: Vec<_> = earlier.regions.into_values().filter_map(|of| of.last.or(of.from)).collect();
            if from == From::Now && !places.is_empty() {
                for place in &places {
                    track.regions.entry(place.region.clone()).or_default().from = Some(place.clone());
                }
                from = From::Places(places);
            } else if let (From::Now, Some(asked)) = (&from, earlier.asked) {
                from = asked;
            }
        }
        let mut own = Vec::new();
        for position in self.places.remove(wanted.channel.as_str()).unwrap_or_default() {
            if !self.settings.regions.iter().any(|region| region.as_str() == position.region()) {
                track.lost.push((position, GapReason::RegionDown));
            } else if let Ok(place) = position.as_str().parse::<Position>() {
                track.regions.entry(place.region.clone()).or_default().from = Some(place.clone());
                own.push(place);
            } else {
                track.lost.push((position, GapReason::Lineage));
            }
        }
        if !own.is_empty() {
            from = From::Places(own);
        }
        track.asked = Some(from.clone());
        track.resumed = from != From::Now;
        (Wanted { from, ..wanted }, track)
    }
}

impl Track {
    /// The subscription is in force: says so, and what became of its place.
    ///
    /// `since` has places in logs of other regions that are not there yet: of those that the client has none in it is told,
    /// so that it does not miss what is stored there meanwhile, also if it goes before they are.
    pub(super) fn subscribed(
        &mut self,
        channel: &Channel,
        top: &Position,
        recovery: Recovery,
        since: Vec<Position>,
        out: &mut Vec<u8>,
    ) {
        (self.pending_at, self.asked) = (None, None);
        let (channel, head) = (channel.as_str(), top.to_string());
        let lost = std::mem::take(&mut self.lost);
        for (position, why) in &lost {
            gap(channel, position.region(), *why, Some(position.as_str()), None, out);
        }
        let of = self.regions.entry(top.region.clone()).or_default();
        let from_place = of.from.take();
        let from = from_place.as_ref().map(Position::to_string);
        if let Recovery::Gap(why) = recovery {
            gap(channel, top.region.as_str(), reason(why), from.as_deref(), Some(&head), out);
        }
        let state = match recovery {
            _ if !lost.is_empty() => SubState::Gap,
            Recovery::Gap(_) => SubState::Gap,
            Recovery::Live if self.resumed => SubState::Recovered,
            Recovery::Live => SubState::Live,
            Recovery::Replay { .. } => SubState::Recovered,
        };
        let replayed = match recovery {
            Recovery::Replay { from, to } => (to + 1).saturating_sub(from),
            Recovery::Live | Recovery::Gap(_) => 0,
        };
        let of = self.regions.entry(top.region.clone()).or_default();
        if replayed == 0 {
            of.last = Some(top.clone());
        } else {
            of.from = from_place;
        }
        tell(&Notice::Sub { channel: channel.into(), heads: vec![head.into()], state, replayed }, out);
        for position in since {
            let of = self.regions.entry(position.region.clone()).or_default();
            if of.from.is_none() && of.last.is_none() {
                tell(&Notice::Pos { channel: channel.into(), position: position.to_string().into() }, out);
                of.from = Some(position);
            }
        }
    }

    /// The subscription to a channel of newest values is in force: all of them follow, wherever the client was. Of what it
    /// had, nothing that still counts can be missing.
    pub(super) fn values(
        &mut self,
        channel: &Channel,
        tops: &[Position],
        values: usize,
        resumed: bool,
        out: &mut Vec<u8>,
    ) {
        self.pending_at = None;
        let came_back = self.resumed || resumed || !std::mem::take(&mut self.lost).is_empty();
        self.regions.values_mut().for_each(|of| of.from = None);
        let state = if came_back { SubState::Recovered } else { SubState::Live };
        let heads = tops.iter().map(|top| top.to_string().into()).collect();
        let replayed = u64::try_from(values).unwrap_or(u64::MAX);
        tell(&Notice::Sub { channel: channel.as_str().into(), heads, state, replayed }, out);
    }

    /// Messages of the channel may be missing.
    pub(super) fn gap(&mut self, channel: &Channel, why: Why, top: &Position, out: &mut Vec<u8>) {
        self.regions.entry(top.region.clone()).or_default().last = Some(top.clone());
        gap(channel.as_str(), top.region.as_str(), reason(why), None, Some(&top.to_string()), out);
    }

    /// Says that the subscription is not in force yet, once, when that takes long.
    pub(super) fn on_time(&mut self, channel: &Channel, now: Instant, out: &mut Vec<u8>) {
        if self.pending_at.take_if(|at| now >= *at).is_some() {
            let (channel, heads, state) = (channel.as_str().into(), Vec::new(), SubState::Pending);
            tell(&Notice::Sub { channel, heads, state, replayed: 0 }, out);
        }
    }

    /// When to ask [`Self::on_time`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.pending_at
    }

    /// An entry was sent to the client, with its position.
    pub(super) fn seen(&mut self, position: &Position) {
        self.move_to(position);
        self.unseen = 0;
    }

    /// An entry was not for the client. Of many it is told the position, so that it does not fall behind the history.
    pub(super) fn unseen(&mut self, channel: &Channel, position: &Position, out: &mut Vec<u8>) {
        self.move_to(position);
        self.unseen += 1;
        if self.unseen >= UNSEEN_ENTRIES {
            self.passed(channel, position, out);
        }
    }

    /// Takes what differs: the names are shared by all sessions of the node, and counting them for each message would have
    /// its cores wait for each other.
    fn move_to(&mut self, position: &Position) {
        match self.regions.get_mut(&position.region).and_then(|of| of.last.as_mut()) {
            Some(last) if last.epoch == position.epoch => (last.n, last.id) = (position.n, position.id),
            _ => self.regions.entry(position.region.clone()).or_default().last = Some(position.clone()),
        }
    }

    /// The client has the channel up to here.
    pub(super) fn passed(&mut self, channel: &Channel, position: &Position, out: &mut Vec<u8>) {
        self.unseen = 0;
        tell(&Notice::Pos { channel: channel.as_str().into(), position: position.to_string().into() }, out);
    }
}

const fn reason(why: Why) -> GapReason {
    match why {
        Why::Lineage => GapReason::Lineage,
        Why::Limit => GapReason::Limit,
        Why::Trimmed => GapReason::Trimmed,
    }
}

fn gap(channel: &str, region: &str, why: GapReason, from: Option<&str>, to: Option<&str>, out: &mut Vec<u8>) {
    let (from, to) = (from.map(Cow::from), to.map(Cow::from));
    tell(&Notice::Gap { channel: channel.into(), region: region.into(), why, from, to }, out);
}

/// What a client is told that is to come back after so long, here or at another gateway.
pub(super) fn moved(after_ms: u64) -> Vec<u8> {
    let mut frames = Vec::new();
    tell(&Notice::Moved { url: None, after_ms }, &mut frames);
    frames
}

/// Appends a notice as a frame.
fn tell(notice: &Notice<'_>, out: &mut Vec<u8>) {
    let mut line = Vec::new();
    write_notice(notice, &mut line);
    out.extend(frame(Kind::Text, &line));
}
