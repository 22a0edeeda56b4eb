//! The newest value of each key of a channel, and what subscribers get of them.
//!
//! At a tick each value that is new takes its place at the end of one order. What a subscriber has is a place in that
//! order, a [`Mark`], and what it lacks is what lies behind. So a subscriber costs one number however slowly it reads:
//! whose mark is where the last tick began gets the tick, whose mark lies further back gets the values as they are now of
//! what has changed since, and a new one, whose mark is at the beginning, all of them. Nothing is dropped: a value that is
//! replaced before a subscriber has it lies further behind in the order, and is given then.
//!
//! What lies behind a mark is made into frames once for all who have that mark.
//!
//! No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::backplane::channels::{Join, Value};
use crate::backplane::engine::{Channel, Key};
use crate::backplane::position::{EntryId, Position, Region};
use crate::backplane::rendered::{deflated_frame, frame, lined};
use crate::grip::Kind;

/// At how many bytes of contents a part ends, where there is more behind it. A value fits whatever its size.
const PART_BYTES: usize = 64 << 10;

/// The same for an array, which is one message: more than most ticks have, and less than clients take at once.
const ARRAY_BYTES: usize = 512 << 10;

/// How many bytes of frames are kept for those who are behind the last tick. Beyond that they are made for each.
const KEPT_BYTES: usize = 4 << 20;

/// What a subscriber has: everything up to this place in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Mark(u64);

/// What frames look like: by default contents alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Form {
    /// With a header line, for clients who can resume.
    pub lined: bool,
    /// Compressed, each message by itself, for clients with the largest window.
    pub deflated: bool,
}

impl Form {
    /// A message whose newest value is at `position`, as a frame.
    fn frame(self, kind: Kind, content: &[u8], of: (&Channel, &Position, &str)) -> Vec<u8> {
        let line = self.lined.then(|| lined(content, of));
        let message = line.as_deref().unwrap_or(content);
        if self.deflated { deflated_frame(kind, message) } else { frame(kind, message) }
    }
}

/// What lies behind a mark, or the first part of it, for all who have that mark.
#[derive(Debug)]
pub struct Part {
    /// Whole frames.
    pub frames: Bytes,
    /// How many values are in them.
    pub values: usize,
    /// The newest of them.
    pub newest: Position,
    /// What who is given it has then.
    to: Mark,
}

/// What a tick came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ticked {
    /// Values that are new.
    pub(super) values: usize,
    /// Publications that were replaced before.
    pub(super) replaced: usize,
}

/// A channel's values.
#[derive(Debug)]
pub(super) struct Conflated {
    channel: Channel,
    join: Join,
    values: BTreeMap<Key, Newest>,
    /// The keys in the order in which their values became what they were at the last tick.
    order: BTreeMap<Mark, Key>,
    /// Where the order ends.
    end: Mark,
    /// Where it ended before the last tick.
    ticked_from: Mark,
    /// Keys whose value is another than at the last tick.
    changed: BTreeSet<Key>,
    /// Counts what came.
    came: u64,
    /// How much has come when the last tick was.
    came_before: u64,
    parts: HashMap<(Mark, Form), Arc<Part>>,
    kept_bytes: usize,
}

/// What is known of a key: of one region at least.
#[derive(Debug, Default)]
struct Newest {
    /// One of each region, one in all nearly always.
    of_regions: Vec<Placed>,
    /// As of the last tick, and its place in the order.
    ticked: Option<(Mark, Placed)>,
}

/// A value, and where its publication is.
#[derive(Clone, Debug)]
struct Placed {
    value: Arc<Value>,
    position: Position,
    /// The number of it among what came.
    nth: u64,
}

impl Placed {
    /// What the newest of several regions is decided by.
    fn rank(&self) -> (EntryId, &Region) {
        (self.position.id, &self.position.region)
    }
}

impl Newest {
    fn newest(&self) -> Option<&Placed> {
        self.of_regions.iter().max_by(|a, b| a.rank().cmp(&b.rank()))
    }

    fn of(&mut self, region: &Region) -> Option<&mut Placed> {
        self.of_regions.iter_mut().find(|placed| placed.position.region == *region)
    }

    /// Whether the newest is another than at the last tick.
    fn is_changed(&self) -> bool {
        match (self.newest(), &self.ticked) {
            (Some(newest), Some((_, ticked))) => newest.position != ticked.position,
            (newest, _) => newest.is_some(),
        }
    }
}

impl Conflated {
    pub(super) fn new(channel: Channel, join: Join) -> Self {
        Self {
            channel,
            join,
            values: BTreeMap::new(),
            order: BTreeMap::new(),
            end: Mark::default(),
            ticked_from: Mark::default(),
            changed: BTreeSet::new(),
            came: 0,
            came_before: 0,
            parts: HashMap::new(),
            kept_bytes: 0,
        }
    }

    /// Takes the next publication of a region's log.
    pub(super) fn update(&mut self, key: Key, value: Value, position: Position) {
        let is_older = |here: &mut Placed| here.position.epoch == position.epoch && here.position.n >= position.n;
        if self.values.get_mut(&key).and_then(|newest| newest.of(&position.region)).is_some_and(is_older) {
            return;
        }
        self.came += 1;
        let placed = Placed { value: Arc::new(value), position, nth: self.came };
        self.place(key, placed);
    }

    /// How much has come: what [`Self::replace`] has to know of the time at which the engine was asked.
    pub(super) fn came(&self) -> u64 {
        self.came
    }

    /// Takes the newest values of a region's log, whose newest entry is `top`, in the place of what was here of it. The
    /// engine was asked when `asked` had come: what came since and is behind `top` stays.
    pub(super) fn replace(&mut self, top: &Position, asked: u64, latest: Vec<(Key, Value, Position)>) {
        let stays = |placed: &Placed| placed.nth > asked && placed.position.n > top.n;
        let named: BTreeSet<Key> = latest.iter().map(|(key, ..)| key.clone()).collect();
        let mut gone = Vec::new();
        for (key, newest) in &mut self.values {
            let is_other = |placed: &Placed| placed.position.region != top.region || stays(placed);
            newest.of_regions.retain(|placed| is_other(placed) || named.contains(key));
            if newest.of_regions.is_empty() {
                gone.push(key.clone());
            } else if newest.is_changed() {
                self.changed.insert(key.clone());
            } else {
                self.changed.remove(key);
            }
        }
        for key in gone {
            self.changed.remove(&key);
            if let Some(Newest { ticked: Some((mark, _)), .. }) = self.values.remove(&key) {
                self.order.remove(&mark);
            }
        }
        for (key, value, position) in latest {
            let here = self.values.get_mut(&key).and_then(|newest| newest.of(&top.region));
            if !here.is_some_and(|placed| stays(placed)) {
                self.place(key, Placed { value: Arc::new(value), position, nth: asked });
            }
        }
        self.forget_parts();
    }

    fn place(&mut self, key: Key, placed: Placed) {
        let newest = self.values.entry(key.clone()).or_default();
        match newest.of(&placed.position.region) {
            Some(here) => *here = placed,
            None => newest.of_regions.push(placed),
        }
        if newest.is_changed() {
            self.changed.insert(key);
        } else {
            self.changed.remove(&key);
        }
    }

    /// Whether a tick would bring something.
    pub(super) fn is_dirty(&self) -> bool {
        !self.changed.is_empty()
    }

    /// How many values there are, as of the last tick.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Makes what has changed what subscribers get.
    pub(super) fn tick(&mut self) -> Ticked {
        self.forget_parts();
        self.ticked_from = self.end;
        let changed = std::mem::take(&mut self.changed);
        let mut news: Vec<(Key, Placed)> = Vec::with_capacity(changed.len());
        for key in changed {
            let newest = self.values.get(&key).and_then(Newest::newest).cloned();
            news.extend(newest.map(|newest| (key, newest)));
        }
        // So what a part ends with is its newest.
        news.sort_by(|(_, a), (_, b)| a.rank().cmp(&b.rank()));
        let values = news.len();
        for (key, placed) in news {
            let Some(newest) = self.values.get_mut(&key) else { continue };
            self.end.0 += 1;
            if let Some((earlier, _)) = newest.ticked.replace((self.end, placed)) {
                self.order.remove(&earlier);
            }
            self.order.insert(self.end, key);
        }
        let came = self.came - std::mem::replace(&mut self.came_before, self.came);
        Ticked { values, replaced: usize::try_from(came).unwrap_or(usize::MAX).saturating_sub(values) }
    }

    /// Whether something lies behind a mark.
    pub(super) fn is_behind(&self, mark: Mark) -> bool {
        self.order.last_key_value().is_some_and(|(newest, _)| *newest > mark)
    }

    /// Whether a mark is further back than where the last tick began.
    pub(super) fn has_skipped(&self, mark: Mark) -> bool {
        mark < self.ticked_from
    }

    /// What lies behind a mark, or its first part, and the mark behind that; nothing for who has everything.
    pub(super) fn part(&mut self, mark: Mark, form: Form) -> Option<(Arc<Part>, Mark)> {
        if let Some(part) = self.parts.get(&(mark, form)) {
            return Some((part.clone(), part.to));
        }
        let part = Arc::new(self.make(mark, form)?);
        let bytes = part.frames.len();
        // What a tick has is for nearly all: it is kept whatever its size, which that of all values bounds.
        if mark >= self.ticked_from {
            self.parts.insert((mark, form), part.clone());
        } else if self.kept_bytes + bytes <= KEPT_BYTES {
            self.kept_bytes += bytes;
            self.parts.insert((mark, form), part.clone());
        }
        Some((part.clone(), part.to))
    }

    fn make(&self, mark: Mark, form: Form) -> Option<Part> {
        let limit = match self.join {
            Join::Messages => PART_BYTES,
            Join::JsonArray => ARRAY_BYTES,
        };
        let behind = self.order.range(Mark(mark.0 + 1)..);
        let ticked = behind.filter_map(|(_, key)| self.values.get(key)?.ticked.as_ref());
        let (mut values, mut bytes) = (Vec::new(), 0);
        for (place, placed) in ticked {
            bytes += placed.value.content.len();
            if bytes > limit && !values.is_empty() {
                break;
            }
            values.push((*place, placed));
        }
        let (to, newest) = values.last().map(|(place, _)| *place).zip(self.newest_of(&values))?;
        let frames: Vec<u8> = match self.join {
            Join::Messages => {
                let framed = values.iter().flat_map(|(_, Placed { value, position, .. })| {
                    form.frame(value.kind, &value.content, (&self.channel, position, &value.id))
                });
                framed.collect()
            }
            Join::JsonArray => {
                let mut array = b"[".to_vec();
                for (_, placed) in &values {
                    if array.len() > 1 {
                        array.push(b',');
                    }
                    array.extend_from_slice(&placed.value.content);
                }
                array.push(b']');
                form.frame(Kind::Text, &array, (&self.channel, newest, ""))
            }
        };
        Some(Part { frames: frames.into(), values: values.len(), newest: newest.clone(), to })
    }

    fn newest_of<'a>(&self, values: &[(Mark, &'a Placed)]) -> Option<&'a Position> {
        let newest = values.iter().max_by(|(_, a), (_, b)| a.rank().cmp(&b.rank()));
        newest.map(|(_, placed)| &placed.position)
    }

    /// Gives back what is kept of frames, when nobody has asked for them for a while.
    pub(super) fn forget_parts(&mut self) {
        self.parts = HashMap::new();
        self.kept_bytes = 0;
    }
}

#[cfg(test)]
mod tests;
