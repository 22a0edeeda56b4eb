//! One client of a backend that speaks GRIP: what it is subscribed to, its metadata, and what it is sent of its channels.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::engine::{Channel, MessageId};
use super::hub::{From, Member, Notice, Part, Publication};
use super::position::{EntryId, Place, Position, Region};
use super::recover::{Recovery, ReplayLimit, Why};
use super::rendered::{Message, close_frame, frame, payload_frame};
use super::resume::{self, Resume, Track, Wanted};
use crate::grip::control::{Control, DEFAULT_GAP_CODE, KeepAlive, KeepAliveMode, Mode, OnGap, Outgoing, Subscribe};
use crate::grip::filters::{self, Filters};
use crate::grip::meta::Meta;
use crate::grip::resume::FromClient;
use crate::grip::{Kind, Limits};
use crate::tunnel::Backlog;

/// What a client is closed with that has missed messages.
const MISSED: &str = "messages were missed";

/// How often in a row a link may lead to a gap again, before the client is closed: a backend that hands out ids which the
/// log does not have would be asked for ever.
const MAX_LINKS: u32 = 3;

/// Within how many milliseconds a client comes back that is told to: by chance, so that they do not come at once.
const MOVE_WITHIN_MS: u64 = 2_000;

/// What a control message asks of the connection besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The backend's connection is to end; the client stays.
    Detach,
    /// The message was passed over, for this reason.
    Ignored(&'static str),
}

/// A client, between its hub and its connection.
#[derive(Debug)]
pub struct Subscriber {
    member: Member,
    limits: Limits,
    meta: Meta,
    subscriptions: BTreeMap<Channel, Subscription>,
    keep_alive: Option<(KeepAlive, Instant)>,
    delayed: Option<(Outgoing, Instant)>,
    /// It fell behind what this node keeps, or its backend asked for its end at a gap.
    over: Option<Over>,
    /// What its backend is to be asked for, one for each channel. Nothing more is taken of any channel meanwhile.
    missed: VecDeque<Missed>,
    /// A backend over HTTP is to be asked at once.
    refresh: bool,
    /// Where the client speaks the subprotocol `sluicegate.v1`.
    resume: Option<Box<Resume>>,
    /// Whether newest values are compressed for it.
    deflates: bool,
}

/// What a client has missed of a channel, and its backend can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The channel.
    pub channel: Channel,
    /// Where the backend is asked: a path and a query.
    pub link: String,
    /// The last id that the client has; empty where it is not known.
    pub last_id: String,
}

/// Why a subscriber's session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It fell behind what this node keeps of a channel.
    Overrun,
}

#[derive(Debug)]
struct Subscription {
    filters: Filters,
    on_gap: OnGap,
    last_id: String,
    /// How often in a row its backend was asked for what was missed, and then there was a gap again in a region.
    links: u32,
    linked: Option<Region>,
    /// The region of whose log nothing has come since a gap.
    gapped: Option<Region>,
    /// The newest entry of each region that says of a loss, of which the client was told: once, also when it is read again.
    told: BTreeMap<Region, EntryId>,
    /// What a client is told of it that can resume. Without one, or not yet in force, it has none.
    track: Option<Box<Track>>,
}

impl Subscriber {
    /// A client without a subscription.
    pub fn new(member: Member, limits: Limits) -> Self {
        Self {
            member,
            limits,
            meta: Meta::default(),
            subscriptions: BTreeMap::new(),
            keep_alive: None,
            delayed: None,
            over: None,
            missed: VecDeque::new(),
            refresh: false,
            resume: None,
            deflates: false,
        }
    }

    /// The same for a client of the subprotocol `sluicegate.v1`, whose session begins now. What it is to read first is
    /// appended to `out`, all that it is sent has a header line, and subscriptions wait until it says where it was: hand
    /// what it sends to [`Self::hear`].
    pub fn resumable(mut self, settings: resume::Settings, now: Instant, out: &mut Vec<u8>) -> Self {
        let resume = Resume::new(settings, now);
        resume.hello(out);
        self.resume = Some(Box::new(resume));
        self.member.form().lined = true;
        self
    }

    /// The same for a client that may be sent compressed messages within the largest window: what all such clients get of a
    /// channel of newest values is compressed once for all of them.
    #[must_use]
    pub fn compressing(mut self) -> Self {
        self.member.form().deflated = true;
        self.deflates = true;
        self
    }

    /// Whether some of what it appends is compressed.
    pub fn deflates(&self) -> bool {
        self.deflates
    }

    /// Whether the client speaks the subprotocol: then a message of its backend has an empty line in front
    /// ([`payload_frame`]).
    pub fn is_resumable(&self) -> bool {
        self.resume.is_some()
    }

    /// Takes what a client of the subprotocol said; of a message for the backend that one came.
    ///
    /// # Errors
    /// How it breaks the subprotocol.
    pub fn hear(&mut self, message: FromClient<'_>, now: Instant) -> Result<(), &'static str> {
        let Self { resume: Some(resume), subscriptions, member, .. } = self else { return Ok(()) };
        // Of newest values nothing is missed.
        let is_subscribed = |channel: &str| {
            Channel::new(channel).is_ok_and(|name| subscriptions.contains_key(&name) && !member.conflates(&name))
        };
        let begun = resume.hear(message, now, is_subscribed)?;
        self.join(begun);
        Ok(())
    }

    /// Makes subscriptions that waited.
    fn join(&mut self, begun: Vec<(Wanted, Track)>) {
        for (wanted, track) in begun {
            if let Some(subscription) = self.subscriptions.get_mut(&wanted.channel) {
                subscription.track = Some(Box::new(track));
                self.member.subscribe(&wanted.channel, wanted.from, wanted.limit);
            }
        }
    }

    /// A message that is no channel's, as the client reads it.
    pub fn plain(&self, kind: Kind, content: &[u8]) -> Vec<u8> {
        if self.is_resumable() { payload_frame(kind, content) } else { frame(kind, content) }
    }

    /// Does what a control message says; what it has the client sent at once is appended to `out`.
    pub fn control(&mut self, control: Control, now: Instant, out: &mut Vec<u8>) -> Effect {
        match control {
            Control::Subscribe(subscribe) => return self.subscribe(subscribe, now),
            Control::Unsubscribe { channel } => {
                if let Ok(channel) = Channel::new(&channel) {
                    self.subscriptions.remove(&channel);
                    self.member.unsubscribe(&channel);
                    if let Some(resume) = &mut self.resume {
                        resume.unsubscribe(&channel);
                    }
                }
            }
            Control::Detach => return Effect::Detach,
            // Nothing asks for the id of a session.
            Control::Session { .. } => {}
            Control::SetMeta { name, value: Some(value) } => {
                if self.meta.set(&name, &value, &self.limits).is_err() {
                    return Effect::Ignored("the connection's metadata is full");
                }
            }
            Control::SetMeta { name, value: None } => self.meta.remove(&name),
            Control::KeepAlive(keep_alive) => self.keep_alive = keep_alive.map(|keep_alive| (keep_alive, now)),
            Control::SendDelayed { message, timeout_secs } => {
                self.flush_delayed(out);
                self.delayed = Some((message, now + Duration::from_secs(timeout_secs.into())));
            }
            Control::FlushDelayed => self.flush_delayed(out),
        }
        Effect::None
    }

    fn subscribe(&mut self, subscribe: Subscribe, now: Instant) -> Effect {
        let Subscribe { channel, filters, prev_id, recover, mode } = subscribe;
        let Ok(channel) = Channel::new(&channel) else { return Effect::Ignored("the channel's name is too long") };
        // Without an effect they would deliver something else than was asked for.
        let conflates = self.member.conflates(&channel);
        if mode == Mode::Latest && !conflates {
            return Effect::Ignored("mode latest is for channels with a rule that has `conflate`");
        }
        if conflates && !filters.as_slice().is_empty() {
            return Effect::Ignored("a channel of newest values has no filters: they are the same for all");
        }
        let is_new = !self.subscriptions.contains_key(&channel);
        if is_new && self.subscriptions.len() >= self.limits.subscriptions {
            return Effect::Ignored("the connection has as many subscriptions as it may");
        }
        let from = match prev_id.as_deref().map(|id| (id.parse::<Position>(), MessageId::new(id))) {
            None => From::Now,
            Some((Ok(position), _)) => From::Place(Place::After(position)),
            Some((Err(_), Ok(id))) => From::Message(id),
            Some((Err(_), Err(_))) => return Effect::Ignored("prev-id is too long"),
        };
        let limit = ReplayLimit {
            max_entries: recover.max.unwrap_or(u64::MAX),
            max_bytes: recover.max_bytes.unwrap_or(u64::MAX),
        };
        let last_id = prev_id.unwrap_or_default();
        self.missed.retain(|missed| missed.channel != channel);
        let mut earlier = self.subscriptions.remove(&channel);
        let (links, linked, told) = earlier.as_mut().map_or_else(Default::default, |earlier| {
            (earlier.links, earlier.linked.take(), std::mem::take(&mut earlier.told))
        });
        let on_gap = recover.on_gap;
        let subscription = Subscription { filters, on_gap, last_id, links, linked, gapped: None, told, track: None };
        self.subscriptions.insert(channel.clone(), subscription);
        match &mut self.resume {
            // It goes on where it is, or is to begin.
            None if earlier.is_some() && from == From::Now => {}
            None => self.member.subscribe(&channel, from, limit),
            Some(resume) => {
                let now_or_later = resume.subscribe(
                    Wanted { channel, from, limit },
                    earlier.and_then(|earlier| earlier.track).map(|track| *track),
                    now,
                );
                self.join(now_or_later.into_iter().collect());
            }
        }
        Effect::None
    }

    /// Appends what the client is to be sent, as far as it is there, until `out` has `most` bytes. Must be called between
    /// messages of the backend only. Returns whether there is more.
    pub fn poll_frames(&mut self, most: usize, now: Instant, out: &mut Vec<u8>, cx: &mut Context<'_>) -> bool {
        let before = out.len();
        if self.delayed.as_ref().is_some_and(|(_, at)| now >= *at) {
            self.flush_delayed(out);
        }
        self.on_time(now, out);
        let more = loop {
            if self.over.is_some() || !self.missed.is_empty() {
                break false;
            }
            if out.len() >= most {
                break true;
            }
            match self.member.poll_next(cx) {
                Poll::Pending => break false,
                Poll::Ready(notice) => self.take(notice, out),
            }
        };
        if out.len() > before {
            self.sent(now);
        }
        if let Some((keep_alive, since)) = &mut self.keep_alive
            && now >= *since + Duration::from_secs(keep_alive.timeout_secs.into())
        {
            *since = now;
            let message = keep_alive.message.clone();
            out.extend(self.plain(message.kind, &message.content));
        }
        more
    }

    /// Tells a client of the subprotocol what its time has come for.
    fn on_time(&mut self, now: Instant, out: &mut Vec<u8>) {
        let Some(resume) = &mut self.resume else { return };
        let begun = resume.on_time(now);
        resume.flush(out);
        self.join(begun);
        for (channel, subscription) in &mut self.subscriptions {
            if let Some(track) = &mut subscription.track {
                track.on_time(channel, now, out);
            }
        }
    }

    /// The client was sent something.
    pub fn sent(&mut self, now: Instant) {
        if let Some((KeepAlive { mode: KeepAliveMode::Idle, .. }, since)) = &mut self.keep_alive {
            *since = now;
        }
    }

    fn take(&mut self, notice: Notice, out: &mut Vec<u8>) {
        let gapped = match notice {
            Notice::Publication(publication) => return self.publication(&publication, out),
            Notice::Overrun(_) => return self.over = Some(Over::Overrun),
            Notice::Part(channel, part) => return self.part(&channel, &part, out),
            Notice::Values { channel, tops, values, resumed } => {
                if let Some(subscription) = self.subscriptions.get_mut(&channel) {
                    subscription.links = 0;
                    if let Some(track) = &mut subscription.track {
                        track.values(&channel, &tops, values, resumed, out);
                    }
                }
                return;
            }
            Notice::Subscribed { channel, top, recovery, since } => {
                let gapped = matches!(recovery, Recovery::Gap(_));
                if let Some(subscription) = self.subscriptions.get_mut(&channel) {
                    if !gapped && subscription.linked.as_ref().is_none_or(|linked| *linked == top.region) {
                        subscription.links = 0;
                    }
                    if let Some(track) = &mut subscription.track {
                        track.subscribed(&channel, &top, recovery, since, out);
                    }
                }
                gapped.then_some((channel, top.region))
            }
            Notice::Gap { channel, why, top } => {
                let track = self.subscriptions.get_mut(&channel).and_then(|subscription| subscription.track.as_mut());
                if let Some(track) = track {
                    track.gap(&channel, why, &top, out);
                }
                Some((channel, top.region))
            }
            Notice::Region { region, reachable } => {
                if let Some(resume) = &mut self.resume {
                    resume.region(&region, reachable, out);
                }
                None
            }
        };
        if let Some((channel, region)) = gapped {
            self.gap(channel, region, out);
        }
    }

    fn gap(&mut self, channel: Channel, region: Region, out: &mut Vec<u8>) {
        let resumable = self.is_resumable();
        let Some(subscription) = self.subscriptions.get_mut(&channel) else { return };
        subscription.gapped = Some(region.clone());
        match &subscription.on_gap {
            OnGap::Ignore => {}
            OnGap::Send(content) if resumable => out.extend(payload_frame(Kind::Text, content)),
            OnGap::Send(content) => out.extend(frame(Kind::Text, content)),
            OnGap::Close(code) => out.extend(close_frame(Some(*code), MISSED)),
            OnGap::Link(_) if subscription.links == MAX_LINKS => {
                out.extend(close_frame(Some(DEFAULT_GAP_CODE), MISSED));
            }
            OnGap::Link(link) => {
                subscription.links += 1;
                subscription.linked = Some(region);
                let (link, last_id) = (link.clone(), subscription.last_id.clone());
                self.missed.push_back(Missed { channel, link, last_id });
            }
        }
    }

    /// What the backend is to be asked for next. Until it has answered nothing may be taken of the channels.
    pub fn next_missed(&mut self) -> Option<Missed> {
        self.missed.pop_front()
    }

    /// The backend had nothing for who missed something: the client is closed, so that it knows.
    pub fn not_retrieved(&mut self, missed: &Missed, out: &mut Vec<u8>) {
        if self.subscriptions.contains_key(&missed.channel) {
            out.extend(close_frame(Some(DEFAULT_GAP_CODE), MISSED));
        }
    }

    /// Whether its backend is to be asked for something: what was missed, or at once.
    pub fn wants_backend(&self) -> bool {
        self.refresh || !self.missed.is_empty()
    }

    /// Whether a backend over HTTP is to be asked at once, as it has published. Once.
    pub fn take_refresh(&mut self) -> bool {
        std::mem::take(&mut self.refresh)
    }

    fn publication(&mut self, publication: &Publication, out: &mut Vec<u8>) {
        // What is no item was stored by somebody else; it is nothing for a client.
        let Some(rendered) = publication.rendered() else { return };
        let (channel, position) = (&publication.channel, &publication.entry.position);
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        let gapped = subscription.gapped.take_if(|region| *region == position.region).is_some();
        if matches!(rendered.message, Message::Lost) {
            return self.lost(channel.clone(), position, gapped, out);
        }
        let Some(subscription) = self.subscriptions.get(channel) else { return };
        // Whether the client learns the position of this.
        let mut seen = false;
        match &rendered.message {
            Message::Send { kind, content, frame: whole, content_filters } => {
                let last_id = |channel: &str| {
                    let channel = Channel::new(channel).ok()?;
                    self.subscriptions.get(&channel).map(|subscription| subscription.last_id.as_str())
                };
                let context = filters::Context { subscriber: &self.meta, item: &rendered.meta, last_id: &last_id };
                let filters = &subscription.filters;
                // Control frames have no line.
                let lined = self.is_resumable() && !kind.opcode().is_control();
                if filters.accept(content_filters.as_deref()) && filters.pass(context) {
                    match filters.render(content, context, &self.limits) {
                        Ok(Cow::Borrowed(_)) if lined => {
                            out.extend_from_slice(rendered.resumable(*kind, content, channel, position));
                            seen = true;
                        }
                        Ok(Cow::Owned(content)) if lined => {
                            out.extend(rendered.with_line(*kind, &content, channel, position));
                            seen = true;
                        }
                        Ok(Cow::Borrowed(_)) => out.extend_from_slice(whole),
                        Ok(Cow::Owned(content)) => out.extend(frame(*kind, &content)),
                        // This subscriber does not get it, as GRIP has it.
                        Err(_) => {}
                    }
                }
            }
            Message::Close(close) => {
                // Who comes back is not to be closed by it again.
                if let Some(track) =
                    self.subscriptions.get_mut(channel).and_then(|subscription| subscription.track.as_mut())
                {
                    track.passed(channel, position, out);
                    seen = true;
                }
                out.extend_from_slice(close);
            }
            Message::Refresh => self.refresh = true,
            Message::Lost | Message::Nothing => {}
        }
        if let Some(subscription) = self.subscriptions.get_mut(channel) {
            subscription.last_id.clone_from(&rendered.id);
            match &mut subscription.track {
                Some(track) if seen => track.seen(position),
                Some(track) => track.unseen(channel, position, out),
                None => {}
            }
        }
    }

    /// Newest values, as frames that are the same for all.
    fn part(&mut self, channel: &Channel, part: &Part, out: &mut Vec<u8>) {
        let Some(subscription) = self.subscriptions.get_mut(channel) else { return };
        out.extend_from_slice(&part.frames);
        if let Some(track) = &mut subscription.track {
            track.seen(&part.newest);
        }
    }

    /// Entries before this place are lost. Who was told of a gap right before it knows.
    fn lost(&mut self, channel: Channel, at: &Position, gapped: bool, out: &mut Vec<u8>) {
        let Some(subscription) = self.subscriptions.get_mut(&channel) else { return };
        if gapped || subscription.told.get(&at.region).is_some_and(|told| at.id <= *told) {
            if let Some(track) = &mut subscription.track {
                track.unseen(&channel, at, out);
            }
            return;
        }
        subscription.told.insert(at.region.clone(), at.id);
        if let Some(track) = &mut subscription.track {
            track.gap(&channel, Why::Lineage, at, out);
        }
        self.gap(channel, at.region.clone(), out);
    }

    fn flush_delayed(&mut self, out: &mut Vec<u8>) {
        if let Some((message, _)) = self.delayed.take() {
            out.extend(self.plain(message.kind, &message.content));
        }
    }

    /// When it has something to send though nothing comes.
    pub fn next_deadline(&self) -> Option<Instant> {
        let keep_alive = self.keep_alive.as_ref();
        let keep_alive =
            keep_alive.map(|(keep_alive, since)| *since + Duration::from_secs(keep_alive.timeout_secs.into()));
        let resume = self.resume.as_ref().and_then(|resume| resume.next_deadline());
        let pending =
            self.subscriptions.values().filter_map(|subscription| subscription.track.as_ref()?.next_deadline());
        let delayed = self.delayed.as_ref().map(|(_, at)| *at);
        [keep_alive, delayed, resume].into_iter().flatten().chain(pending).min()
    }

    /// Why its session has to end, if it has.
    pub fn over(&self) -> Option<Over> {
        self.over
    }

    /// What a client of the subprotocol is told before it is closed because this process ends: when to come back.
    pub fn farewell(&self) -> Option<Vec<u8>> {
        self.resume.as_ref().map(|_| resume::moved(rand::random_range(0..MOVE_WITHIN_MS)))
    }

    /// How much waits for it, for others to look at.
    pub fn backlog(&self) -> Arc<dyn Backlog> {
        self.member.backlog()
    }
}
