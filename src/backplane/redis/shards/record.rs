//! Which shard has a channel, and what the shards keep of the lists that were and are in force. Pure.
//!
//! The choice is by rendezvous hashing: each pair of a channel and a shard has a weight, and the shard with the highest has
//! the channel. So a shard that is added takes channels from all others and moves none between them.

use std::collections::{BTreeMap, BTreeSet};

use redis::{ConnectionAddr, IntoConnectionInfo as _};
use sha1::{Digest as _, Sha1};

use crate::backplane::engine::Channel;

/// How many shards a list has.
pub const MIN_SHARDS: usize = 2;
/// See [`MIN_SHARDS`].
pub const MAX_SHARDS: usize = 64;

/// How many lists of before are kept. When there were more, channels that have not moved since the oldest are taken for
/// moved at each change.
pub(super) const MAX_BEFORE: usize = 64;

/// The most servers that leave with one change.
pub(super) const MAX_LEAVING: usize = 256;

/// The most bytes of a record that is read.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// The highest generation: what a double holds exactly.
pub const MAX_GENERATION: u64 = (1 << 53) - 1;

/// One of the servers.
#[derive(Clone, Debug)]
pub struct Shard {
    /// `redis://HOST:PORT` or `rediss://HOST:PORT`, always with the port.
    pub url: String,
    /// `HOST:PORT`, which is its identity.
    pub name: String,
    seed: u64,
}

/// The shards, in the order of their names.
#[derive(Clone, Debug)]
pub struct List(Vec<Shard>);

/// Why servers make no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// There are too few or too many.
    #[error("{0} shards; there must be 2 to 64")]
    Count(usize),
    /// One is no URL of a server.
    #[error("{0:?} is not redis://HOST:PORT or rediss://HOST:PORT")]
    Url(String),
    /// One is there twice.
    #[error("{0} is there twice")]
    Twice(String),
}

impl Shard {
    fn new(written: &str) -> Option<Self> {
        let scheme = ["redis", "rediss"].into_iter().find(|scheme| {
            let rest = written.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
            rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '@', '?', '#', ' ', '\n']))
        })?;
        let info = written.into_connection_info().ok()?;
        let (host, port) = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host, port),
            _ => return None,
        };
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let name = format!("{host}:{port}");
        Some(Self { url: format!("{scheme}://{name}"), seed: digest(&name), name })
    }
}

impl List {
    /// The list of these servers, in whatever order they are written.
    ///
    /// # Errors
    /// They are too few, too many, the same, or no URLs.
    pub fn new<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, ListError> {
        let shards: Result<Vec<_>, _> =
            urls.into_iter().map(|url| Shard::new(url).ok_or_else(|| ListError::Url(url.to_owned()))).collect();
        let mut shards = shards?;
        shards.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some([one, _]) = shards.array_windows().find(|[one, other]| one.name == other.name) {
            return Err(ListError::Twice(one.name.clone()));
        }
        let fits = (MIN_SHARDS..=MAX_SHARDS).contains(&shards.len());
        if fits { Ok(Self(shards)) } else { Err(ListError::Count(shards.len())) }
    }

    /// A server's URL as lists have it.
    ///
    /// # Errors
    /// It is none.
    pub fn server(url: &str) -> Result<String, ListError> {
        Shard::new(url).map(|shard| shard.url).ok_or_else(|| ListError::Url(url.to_owned()))
    }

    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.0
    }

    /// The URLs, in order.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|shard| shard.url.as_str())
    }

    /// The number of the shard that has a channel.
    pub fn at(&self, channel: &Channel) -> usize {
        self.at_hash(digest(channel.as_str()))
    }

    fn at_hash(&self, channel: u64) -> usize {
        let weights = self.0.iter().map(|shard| mix(shard.seed ^ channel)).enumerate();
        weights.max_by_key(|(_, weight)| *weight).map_or(0, |(nth, _)| nth)
    }

    fn name_at(&self, channel: u64) -> &str {
        self.0.get(self.at_hash(channel)).map_or("", |shard| &shard.name)
    }
}

impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        self.urls().eq(other.urls())
    }
}

impl Eq for List {}

/// The first 64 bits of SHA-1. It is part of where channels are: it never changes.
fn digest(text: &str) -> u64 {
    Sha1::digest(text).iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// The end of SplitMix64: a bijection whose every output bit depends on every input bit.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One generation of the shards, as all of them keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub generation: u64,
    /// Its shards.
    pub list: List,
    /// URLs of servers that are no shards any more, and must know it before this is in force.
    pub leaving: BTreeSet<String>,
    /// The lists of before, by their generations, whether they were in force or only begun.
    pub before: BTreeMap<u64, List>,
    /// What a shard keeps of it.
    pub text: String,
    hash: String,
}

impl Record {
    /// A record; of the lists of before the newest are kept.
    pub fn new(generation: u64, list: List, leaving: BTreeSet<String>, before: BTreeMap<u64, List>) -> Self {
        let mut before = before;
        while before.len() > MAX_BEFORE {
            before.pop_first();
        }
        let mut text = String::new();
        let mut line = |words: &mut dyn Iterator<Item = &str>| {
            let words: Vec<&str> = words.collect();
            text.push_str(&words.join(" "));
            text.push('\n');
        };
        let number = generation.to_string();
        line(&mut ["generation", &number].into_iter());
        line(&mut std::iter::once("shards").chain(list.urls()));
        line(&mut std::iter::once("leaving").chain(leaving.iter().map(String::as_str)));
        for (generation, list) in &before {
            let number = generation.to_string();
            line(&mut ["before", &number].into_iter().chain(list.urls()));
        }
        let hash = format!("{:016x}", digest(&text));
        Self { generation, list, leaving, before, text, hash }
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_RECORD_BYTES {
            return None;
        }
        let mut lines = text.lines();
        let generation = lines.next()?.strip_prefix("generation ")?.parse().ok()?;
        let list = List::new(lines.next()?.strip_prefix("shards ")?.split(' ')).ok()?;
        let mut leaving = BTreeSet::new();
        for url in lines.next()?.strip_prefix("leaving")?.split(' ').skip(1) {
            leaving.insert(Shard::new(url)?.url);
        }
        let mut before = BTreeMap::new();
        for line in lines {
            let (generation, urls) = line.strip_prefix("before ")?.split_once(' ')?;
            before.insert(generation.parse().ok()?, List::new(urls.split(' ')).ok()?);
        }
        let record = Self::new(generation, list, leaving, before);
        (record.text == text && record.generation <= MAX_GENERATION).then_some(record)
    }

    /// What a shard says when this is in force: publications are written only then.
    pub fn in_force(&self) -> String {
        format!("{} {} active", self.generation, self.hash)
    }

    /// What a shard says when this is begun; `nonce` is given once.
    pub fn begun(&self, nonce: &str) -> String {
        format!("{} {} begun {nonce}", self.generation, self.hash)
    }

    /// The generation since which a channel is where it is.
    pub fn since(&self, channel: &Channel) -> u64 {
        let hash = digest(channel.as_str());
        let here = self.list.name_at(hash);
        let same = self.before.iter().rev().take_while(|(_, list)| list.name_at(hash) == here);
        same.last().map_or(self.generation, |(generation, _)| *generation)
    }
}

/// What a shard says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// In so many words.
    pub now: String,
    /// Of which generation.
    pub record: Record,
    /// Whether it is in force there, or only begun.
    pub active: bool,
}

impl Said {
    /// What the fields of the key mean.
    pub fn parse(now: &str, record: &str) -> Option<Self> {
        let record = Record::parse(record)?;
        let active = now == record.in_force();
        let begun = now.strip_prefix(&record.begun("")).is_some_and(|nonce| !nonce.is_empty());
        (active || begun).then(|| Self { now: now.to_owned(), record, active })
    }
}

/// What an epoch has of the generation since which a channel is on its shard. Between the two signs no number is the
/// beginning or the end of another.
pub fn stamp(since: u64) -> String {
    format!("-{since}-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backplane::position::Epoch;

    fn list(names: &[&str]) -> List {
        let urls: Vec<_> = names.iter().map(|name| format!("redis://{name}:6379")).collect();
        List::new(urls.iter().map(String::as_str)).unwrap()
    }

    fn channel(name: &str) -> Channel {
        Channel::new(name).unwrap()
    }

    #[test]
    fn the_choice_is_the_same_on_every_machine_and_version() {
        assert_eq!(digest("abc"), 0xa999_3e36_4706_816a, "FIPS 180-4");
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf, "SplitMix64's first number of seed 0");
        let list = list(&["a", "b", "c"]);
        let names = ["room:1", "room:4", "room:5", "room:6", "room:7", "ä"];
        let at: Vec<_> = names.iter().map(|name| list.shards()[list.at(&channel(name))].name.as_str()).collect();
        assert_eq!(at, ["a:6379", "c:6379", "b:6379", "a:6379", "a:6379", "c:6379"]);
    }

    #[test]
    fn a_list_has_each_server_once_in_any_order() {
        assert_eq!(list(&["b", "a"]), list(&["a", "b"]));
        let new = |urls: &[&str]| List::new(urls.iter().copied());
        let written = new(&["redis://B", "rediss://[::1]:7000"]).unwrap();
        assert!(written.urls().eq(["rediss://[::1]:7000", "redis://b:6379"]));
        assert_eq!(new(&["redis://a"]), Err(ListError::Count(1)));
        assert_eq!(new(&["redis://a", "redis://A:6379"]), Err(ListError::Twice("a:6379".to_owned())));
        for url in ["a:1", "redis://", "redis://a:1/2", "redis://u@a:1", "redis://a:1 b", "unix://a", "redis://a:x"] {
            assert_eq!(new(&["redis://a", url]), Err(ListError::Url(url.to_owned())));
        }
        let many: Vec<_> = (0..65).map(|nth| format!("redis://a{nth}")).collect();
        assert_eq!(List::new(many.iter().map(String::as_str)), Err(ListError::Count(65)));
    }

    proptest! {
        #[test]
        fn a_shard_that_is_added_takes_its_part_and_moves_nothing_else(names in proptest::collection::hash_set("[a-z]{1,12}", 3..16)) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let (after, before) = (list(&names), list(&names[1..]));
            let added = format!("{}:6379", names[0]);
            let mut moved = 0_usize;
            for nth in 0..4000 {
                let channel = channel(&format!("room:{nth}"));
                let (old, new) = (&before.shards()[before.at(&channel)].name, &after.shards()[after.at(&channel)].name);
                if old != new {
                    prop_assert_eq!(new, &added);
                    moved += 1;
                }
            }
            // Within six standard deviations of 1/N.
            let (count, part) = (4000.0, 1.0 / names.len() as f64);
            let off = (moved as f64 - count * part).abs();
            prop_assert!(off < 6.0 * (count * part * (1.0 - part)).sqrt(), "{} of {} shards", moved, names.len());
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is() {
        let before = BTreeMap::from([(1, list(&["a", "b"])), (3, list(&["a", "c"]))]);
        let leaving = BTreeSet::from(["redis://b:6379".to_owned()]);
        for record in [
            Record::new(4, list(&["a", "c", "d"]), leaving, before),
            Record::new(1, list(&["a", "b"]), BTreeSet::new(), BTreeMap::new()),
        ] {
            assert_eq!(Record::parse(&record.text), Some(record.clone()), "{:?}", record.text);
            let said = Said::parse(&record.in_force(), &record.text).unwrap();
            assert!(said.active && said.record == record);
            assert!(!Said::parse(&record.begun("x"), &record.text).unwrap().active);
            for now in ["", "1", &record.begun(""), &format!("{} ", record.in_force())] {
                assert_eq!(Said::parse(now, &record.text), None, "{now:?}");
            }
            for end in 0..record.text.len() {
                assert_eq!(Said::parse(&record.in_force(), &record.text[..end]), None);
            }
        }
    }

    #[test]
    fn a_channel_is_where_it_is_since_the_last_list_that_had_it_elsewhere() {
        let (two, three) = (list(&["a", "b"]), list(&["a", "b", "c"]));
        let of = |now: &List, before: &[&List]| {
            let before = before.iter().zip(1..).map(|(list, generation)| (generation, (*list).clone())).collect();
            Record::new(9, now.clone(), BTreeSet::new(), before)
        };
        for nth in 0..200 {
            let channel = channel(&format!("room:{nth}"));
            let moves = three.shards()[three.at(&channel)].name == "c:6379";
            assert_eq!(of(&three, &[&two, &two]).since(&channel), if moves { 9 } else { 1 });
            assert_eq!(of(&two, &[&two, &three]).since(&channel), if moves { 9 } else { 1 });
            assert_eq!(of(&two, &[&two, &three, &two]).since(&channel), if moves { 3 } else { 1 });
            assert_eq!(of(&two, &[]).since(&channel), 9);
        }
        let many = (1..200).map(|generation| (generation, two.clone())).collect();
        let long = Record::new(200, two, BTreeSet::new(), many);
        assert_eq!((long.before.len(), long.since(&channel("a"))), (MAX_BEFORE, 136));
    }

    #[test]
    fn the_life_of_a_store_is_another_with_each_generation() {
        let epoch = |since| Epoch::new(&format!("0011ffff{}77777777", stamp(since))).unwrap();
        let origin = |since| Epoch::new(&format!("{}77777777", stamp(since))).unwrap();
        assert!(epoch(2).is_of(&origin(2)) && epoch(12).is_of(&origin(12)));
        assert!(!epoch(12).is_of(&origin(2)) && !epoch(2).is_of(&origin(12)) && !epoch(1).is_of(&origin(12)));
    }
}
