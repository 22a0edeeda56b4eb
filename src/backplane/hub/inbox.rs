//! What waits for one session, bounded.
//!
//! A channel never waits for a session: when an inbox is full, the channel stops filling it and remembers where it
//! stopped. When the session has taken half of what is there, it is fed on from the channel's window, at its own pace. So
//! a slow session holds nobody up and misses nothing that the window still has; what it has not any more, the session is
//! told ([`Notice::Overrun`]).

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;
use prometheus::IntGauge;

use super::Publication;
use super::conflated::Part;
use crate::backplane::engine::Channel;
use crate::backplane::position::{Position, Region};
use crate::backplane::recover::{Recovery, Why};
use crate::tunnel::{Backlog, Depth};

/// How much waits for a session at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLimit {
    /// Publications. Default 1,024.
    pub max_messages: usize,
    /// Bytes of their payloads. Default 1 MiB. One publication fits whatever its size.
    pub max_bytes: usize,
}

impl Default for InboxLimit {
    fn default() -> Self {
        Self { max_messages: 1024, max_bytes: 1 << 20 }
    }
}

/// What a session is told.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A subscription is in force. What comes of the channel follows from here.
    Subscribed {
        /// The channel.
        channel: Channel,
        /// The newest entry's position at this time.
        top: Position,
        /// What became of the place that the session asked for.
        recovery: Recovery,
        /// The place of the session in the logs of other regions that it has none in and that are not here yet.
        since: Vec<Position>,
    },
    /// An entry, in the order of the channel's log, without a hole since the last of the channel.
    Publication(Arc<Publication>),
    /// Entries of the channel may be missing, and nobody can say which. What comes next comes behind `top`.
    Gap {
        /// The channel.
        channel: Channel,
        /// Why.
        why: Why,
        /// Where it goes on.
        top: Position,
    },
    /// A region can be reached, or not any more: then nothing comes of it until it can. Only changes are told.
    Region {
        /// Which.
        region: Region,
        /// Whether it can be reached.
        reachable: bool,
    },
    /// The session has fallen behind what this node keeps of the channel. Nothing more comes of it.
    Overrun(Channel),
    /// A subscription to a channel of newest values is in force. They follow, all of them.
    Values {
        /// The channel.
        channel: Channel,
        /// The newest entry's position at this time, of each region.
        tops: Vec<Position>,
        /// How many values there are.
        values: usize,
        /// Whether a place was asked for: values have none.
        resumed: bool,
    },
    /// Newest values of a channel, which replace those that the session has of the same keys.
    Part(Channel, Arc<Part>),
}

#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    waker: AtomicWaker,
    limit: InboxLimit,
    /// Of all inboxes, and of what else waits for peers.
    queued_bytes: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    notices: VecDeque<Notice>,
    bytes: usize,
    /// Channels that have more for the session than fits. At most those that it is subscribed to.
    behind: BTreeSet<Channel>,
    behind_since: Option<Instant>,
    /// Regions that it was told, or is to be told, cannot be reached. At most those that are read.
    unreachable: BTreeSet<Region>,
    /// Channels of newest values that have some for the session. At most those that it is subscribed to.
    news: BTreeSet<Channel>,
}

impl Inbox {
    pub(super) fn new(limit: InboxLimit, queued_bytes: IntGauge) -> Self {
        Self { state: Mutex::default(), waker: AtomicWaker::new(), limit, queued_bytes }
    }

    /// Queues a publication; `false` if there is no room, and it is not queued.
    pub(super) fn push(&self, publication: &Arc<Publication>) -> bool {
        let mut state = self.state.lock();
        let size = publication.entry.payload.len();
        let fits = state.notices.is_empty()
            || (state.notices.len() < self.limit.max_messages && state.bytes + size <= self.limit.max_bytes);
        if fits {
            state.bytes += size;
            self.queued_bytes.add(size as i64);
            state.notices.push_back(Notice::Publication(publication.clone()));
            drop(state);
            self.waker.wake();
        }
        fits
    }

    /// Queues what is no publication. These are few: one for a subscription, and one for each gap, of which one a channel
    /// waits at most.
    pub(super) fn tell(&self, notice: Notice) {
        let mut state = self.state.lock();
        if let Notice::Gap { channel: of, top: end, .. } = &notice {
            let same = |waiting: &Notice| matches!(waiting, Notice::Gap { channel, .. } if channel == of);
            let of_channel = |waiting: &Notice| match waiting {
                Notice::Publication(publication) => {
                    publication.channel == *of && publication.entry.position.region == end.region
                }
                Notice::Subscribed { channel, top, .. } | Notice::Gap { channel, top, .. } => {
                    channel == of && top.region == end.region
                }
                Notice::Overrun(channel) => channel == of,
                // Newest values do not wait here.
                Notice::Region { .. } | Notice::Values { .. } | Notice::Part(..) => false,
            };
            // A gap behind a gap of the same log is one gap, which ends where the second does.
            let newest = state.notices.iter_mut().rev().find(|waiting| of_channel(waiting));
            if let Some(waiting) = newest.filter(|waiting| same(waiting)) {
                *waiting = notice;
                return;
            }
        }
        state.notices.push_back(notice);
        drop(state);
        self.waker.wake();
    }

    /// Tells whether a region can be reached, if the session knows otherwise. At most one of these waits for each region.
    pub(super) fn tell_region(&self, region: &Region, reachable: bool) {
        let mut state = self.state.lock();
        let is_news =
            if reachable { state.unreachable.remove(region) } else { state.unreachable.insert(region.clone()) };
        if !is_news {
            return;
        }
        let waiting =
            state.notices.iter().position(|notice| matches!(notice, Notice::Region { region: of, .. } if of == region));
        match waiting {
            // It had not heard that it was otherwise.
            Some(at) => drop(state.notices.remove(at)),
            None => state.notices.push_back(Notice::Region { region: region.clone(), reachable }),
        }
        drop(state);
        self.waker.wake();
    }

    /// Remembers that a channel has more than fits.
    pub(super) fn fell_behind(&self, channel: &Channel, now: Instant) {
        let mut state = self.state.lock();
        state.behind.insert(channel.clone());
        state.behind_since.get_or_insert(now);
    }

    /// The channel has no more than what is here.
    pub(super) fn caught_up(&self, channel: &Channel) {
        let mut state = self.state.lock();
        state.behind.remove(channel);
        if state.behind.is_empty() {
            state.behind_since = None;
        }
    }

    /// Drops what waits of a channel.
    pub(super) fn forget(&self, channel: &Channel) {
        self.caught_up(channel);
        let mut state = self.state.lock();
        let mut freed = 0;
        state.notices.retain(|notice| match notice {
            Notice::Publication(publication) if publication.channel == *channel => {
                freed += publication.entry.payload.len();
                false
            }
            Notice::Publication(_) | Notice::Region { .. } | Notice::Values { .. } | Notice::Part(..) => true,
            Notice::Subscribed { channel: of, .. } | Notice::Gap { channel: of, .. } | Notice::Overrun(of) => {
                of != channel
            }
        });
        state.bytes -= freed;
        state.news.remove(channel);
        self.queued_bytes.sub(freed as i64);
    }

    /// Remembers that a channel of newest values has some.
    pub(super) fn news(&self, channel: &Channel) {
        let is_new = self.state.lock().news.insert(channel.clone());
        if is_new {
            self.waker.wake();
        }
    }

    /// The session has what a channel of newest values has.
    pub(super) fn no_news(&self, channel: &Channel) {
        self.state.lock().news.remove(channel);
    }

    /// A channel of newest values that has some: the next one after the one that was served last.
    pub(super) fn next_news(&self, served: Option<&Channel>) -> Option<Channel> {
        let state = self.state.lock();
        let next = served.and_then(|served| state.news.range::<Channel, _>((Excluded(served), Unbounded)).next());
        next.or_else(|| state.news.first()).cloned()
    }

    pub(super) fn pop(&self) -> Option<Notice> {
        let mut state = self.state.lock();
        let notice = state.notices.pop_front()?;
        if let Notice::Publication(publication) = &notice {
            let size = publication.entry.payload.len();
            state.bytes -= size;
            self.queued_bytes.sub(size as i64);
        }
        Some(notice)
    }

    pub(super) fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Notice> {
        if let Some(notice) = self.pop() {
            return Poll::Ready(notice);
        }
        self.waker.register(cx.waker());
        // What came before the waker was there did not wake it.
        self.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// The channels that can feed on, when half of the room is free.
    pub(super) fn hungry_for(&self) -> Vec<Channel> {
        let state = self.state.lock();
        let half = state.notices.len() <= self.limit.max_messages / 2 && state.bytes <= self.limit.max_bytes / 2;
        if half && !state.behind.is_empty() { state.behind.iter().cloned().collect() } else { Vec::new() }
    }
}

impl Backlog for Inbox {
    fn depth(&self) -> Depth {
        let state = self.state.lock();
        Depth { messages: state.notices.len(), bytes: state.bytes, behind_since: state.behind_since }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.queued_bytes.sub(self.state.get_mut().bytes as i64);
    }
}
