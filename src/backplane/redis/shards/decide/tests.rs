//! Seeded schedules of gateways with several lists, on servers that are emptied and do not answer: what one gateway does
//! is torn apart into single questions and writes, and those of all are mixed. `SHARD_SCHEDULES` says how many are played.

use std::collections::HashMap;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::backplane::engine::Channel;

fn url(nth: usize) -> String {
    format!("redis://s{nth}:6379")
}

fn list(of: &[usize]) -> List {
    let urls: Vec<_> = of.iter().map(|nth| url(*nth)).collect();
    List::new(urls.iter().map(String::as_str)).unwrap()
}

/// What the servers keep, and what was acknowledged.
#[derive(Default)]
struct World {
    keys: BTreeMap<String, (String, String)>,
    /// The highest generation that was decided to be in force.
    decided: u64,
    /// Of each channel: the servers and generations that its publications were stored under, each once in a row.
    stored: HashMap<String, Vec<(String, u64)>>,
    nonces: u64,
    acknowledged: u64,
    activations: u64,
}

impl World {
    fn ask(&self, url: &str) -> Seen {
        match self.keys.get(url) {
            None => Seen::Blank,
            Some((now, record)) => Seen::Says(Box::new(Said::parse(now, record).unwrap())),
        }
    }

    fn write(&mut self, write: Write) {
        let now = self.keys.get(&write.url).map_or("", |(now, _)| now);
        if now == write.from {
            self.keys.insert(write.url, (write.to, write.record));
        }
    }
}

enum Doing {
    First,
    Second,
    Writing(Vec<Write>),
}

struct Gateway {
    generation: u64,
    list: List,
    known: Option<Record>,
    superseded: bool,
    doing: Doing,
    more: BTreeSet<String>,
    to_ask: Vec<String>,
    first: View,
    second: View,
    waits: Option<EngineError>,
}

impl Gateway {
    fn new(generation: u64, list: List) -> Self {
        let to_ask = list.urls().map(str::to_owned).collect();
        Self {
            generation,
            list,
            known: None,
            superseded: false,
            doing: Doing::First,
            more: BTreeSet::new(),
            to_ask,
            first: View::new(),
            second: View::new(),
            waits: None,
        }
    }

    fn ask_all(&mut self, doing: Doing) {
        self.doing = doing;
        self.to_ask = self.list.urls().map(str::to_owned).chain(self.more.iter().cloned()).collect();
    }

    /// One question, or one write.
    fn step(&mut self, world: &mut World, silent: bool) {
        if let Doing::Writing(writes) = &mut self.doing {
            match writes.pop() {
                Some(write) => world.write(write),
                None => self.ask_all(Doing::First),
            }
            return;
        }
        if let Some(url) = self.to_ask.pop() {
            let seen = if silent { Seen::Silent(EngineError::TimedOut) } else { world.ask(&url) };
            let view = if matches!(self.doing, Doing::First) { &mut self.first } else { &mut self.second };
            view.insert(url, seen);
            return;
        }
        if matches!(self.doing, Doing::First) {
            self.ask_all(Doing::Second);
            return;
        }
        let gone = BTreeSet::new();
        let own = Own { generation: self.generation, list: &self.list, gone: &gone, known: self.known.as_ref() };
        let step = decide(&own, &self.first, &self.second, || {
            world.nonces += 1;
            world.nonces.to_string()
        });
        self.waits = None;
        self.first.clear();
        self.second.clear();
        match step {
            Step::Superseded(_) => self.superseded = true,
            Step::Wait(reason) => {
                self.waits = Some(reason);
                self.ask_all(Doing::First);
            }
            Step::Look(more) => {
                self.more.extend(more);
                self.ask_all(Doing::First);
            }
            Step::Prepare(writes) => self.doing = Doing::Writing(writes),
            Step::InForce(record, writes) => {
                if self.generation > world.decided {
                    world.activations += 1;
                    world.decided = self.generation;
                }
                self.known = Some(*record);
                self.doing = Doing::Writing(writes);
            }
        }
    }

    /// A publication, as the script does it.
    fn publish(&self, world: &mut World, channel: &str) {
        let Some(record) = self.known.as_ref().filter(|_| !self.superseded) else { return };
        let name = Channel::new(channel).unwrap();
        let shard = self.list.shards()[self.list.at(&name)].url.clone();
        if world.keys.get(&shard).is_none_or(|(now, _)| *now != record.in_force()) {
            return;
        }
        world.acknowledged += 1;
        assert!(self.generation >= world.decided, "{} stored while {} is in force", self.generation, world.decided);
        let of = world.stored.entry(channel.to_owned()).or_default();
        let place = (shard, record.since(&name));
        if of.last() != Some(&place) {
            assert!(!of.contains(&place), "{channel}: {place:?} again behind {of:?}");
            of.push(place);
        }
    }
}

fn play(seed: u64) -> World {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::default();
    let lists: Vec<List> = (0..4)
        .map(|_| {
            let count = random.random_range(2..=4);
            list(&(0..6).choose_multiple(&mut random, count))
        })
        .collect();
    let mut gateways = vec![Gateway::new(1, lists[0].clone()), Gateway::new(1, lists[0].clone())];
    for tick in 0..3000 {
        if tick % 400 == 399 && random.random_bool(0.8) {
            let generation = random.random_range(1..=4);
            gateways.push(Gateway::new(generation, lists[generation as usize - 1].clone()));
        }
        if random.random_bool(0.003) {
            // A gateway begins anew.
            let nth = random.random_range(0..gateways.len());
            gateways[nth] = Gateway::new(gateways[nth].generation, gateways[nth].list.clone());
        }
        if random.random_bool(0.01)
            && let Some(url) = world.keys.keys().choose(&mut random).cloned()
        {
            // Emptied, but not the last of a list that knows anything.
            let keeps = |list: &List| list.urls().any(|other| other != url && world.keys.contains_key(other));
            if lists.iter().filter(|list| list.urls().any(|of| of == url)).all(keeps) {
                world.keys.remove(&url);
            }
        }
        let nth = random.random_range(0..gateways.len());
        if random.random_bool(0.2) {
            let channel = ["a", "b", "c", "d", "e"].choose(&mut random).unwrap();
            gateways[nth].publish(&mut world, channel);
        }
        let silent = random.random_bool(0.02);
        if !gateways[nth].superseded {
            gateways[nth].step(&mut world, silent);
        }
    }
    world
}

#[test]
fn what_is_stored_under_a_list_is_stored_before_a_newer_one_is_in_force() {
    let schedules = std::env::var("SHARD_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(60);
    let (mut acknowledged, mut activations, mut moves) = (0, 0, 0);
    for seed in 0..schedules {
        let world = play(seed);
        acknowledged += world.acknowledged;
        activations += world.activations;
        moves += world.stored.values().map(|of| of.len() - 1).sum::<usize>();
    }
    // That the schedules come to what they are about.
    assert!(
        acknowledged > 20 * schedules && activations > schedules && moves as u64 > schedules / 4,
        "{acknowledged} {activations} {moves}"
    );
}

/// Lets a gateway do what it does until it has nothing to write.
fn settle(world: &mut World, gateway: &mut Gateway) -> Result<Record, EngineError> {
    for _ in 0..200 {
        gateway.step(world, false);
        let quiet = matches!(&gateway.doing, Doing::Writing(writes) if writes.is_empty());
        if let Some(reason) = gateway.waits.clone() {
            return Err(reason);
        }
        if quiet && let Some(record) = &gateway.known {
            let all = |url: &str| world.keys.get(url).is_some_and(|(now, _)| *now == record.in_force());
            if gateway.list.urls().all(all) {
                return Ok(record.clone());
            }
        }
        if gateway.superseded {
            return Err(EngineError::Unreachable);
        }
    }
    panic!("it does not settle");
}

#[test]
fn a_change_tells_the_shards_of_before_and_forgets_none() {
    let mut world = World::default();
    let first = settle(&mut world, &mut Gateway::new(1, list(&[0, 1]))).unwrap();
    assert!(first.leaving.is_empty() && first.before.is_empty());
    let second = settle(&mut world, &mut Gateway::new(2, list(&[1, 2]))).unwrap();
    assert_eq!(second.leaving, BTreeSet::from([url(0)]));
    assert!(world.keys[&url(0)].0.starts_with("2 "), "the one that left knows it");
    let fourth = settle(&mut world, &mut Gateway::new(4, list(&[2, 0]))).unwrap();
    assert_eq!(fourth.leaving, BTreeSet::from([url(1)]));
    assert!(fourth.before.keys().eq(&[1, 2]));
    for old in [1, 2, 3] {
        assert_eq!(settle(&mut world, &mut Gateway::new(old, list(&[0, 1]))), Err(EngineError::Unreachable));
    }
    let other = settle(&mut world, &mut Gateway::new(4, list(&[2, 3])));
    assert_eq!(other, Err(EngineError::OtherShards { generation: 4 }));
}

#[test]
fn an_emptied_shard_is_told_what_the_others_say() {
    let mut world = World::default();
    let mut gateway = Gateway::new(1, list(&[0, 1, 2]));
    let record = settle(&mut world, &mut gateway).unwrap();
    world.keys.remove(&url(1));
    let mut fresh = Gateway::new(1, list(&[0, 1, 2]));
    assert_eq!(settle(&mut world, &mut fresh).unwrap(), record);
    // All of them at once: only the first generation begins anew, or a gateway that was there.
    let mut second = Gateway::new(2, list(&[0, 1]));
    let record = settle(&mut world, &mut second).unwrap();
    world.keys.clear();
    let unknown = settle(&mut world, &mut Gateway::new(2, list(&[0, 1])));
    assert_eq!(unknown, Err(EngineError::UnknownShards { generation: 2 }));
    second.ask_all(Doing::First);
    assert_eq!(settle(&mut world, &mut second).unwrap().before, record.before);
}

#[test]
fn nothing_is_begun_while_a_shard_of_before_is_silent_unless_it_is_gone() {
    let mut world = World::default();
    settle(&mut world, &mut Gateway::new(1, list(&[0, 1]))).unwrap();
    let before = world.keys.clone();
    let view: View = [0, 1, 2]
        .map(|nth| (url(nth), if nth == 0 { Seen::Silent(EngineError::TimedOut) } else { world.ask(&url(nth)) }))
        .into();
    let list = list(&[1, 2]);
    let decide = |gone: &[String]| {
        let gone = gone.iter().cloned().collect();
        decide(&Own { generation: 2, list: &list, gone: &gone, known: None }, &view, &view, || "x".to_owned())
    };
    let silent = EngineError::Shard { shard: "s0:6379".to_owned(), reason: Box::new(EngineError::TimedOut) };
    assert_eq!(decide(&[]), Step::Wait(silent));
    assert_eq!(world.keys, before);
    let Step::Prepare(writes) = decide(&[url(0)]) else { panic!("nothing to write") };
    assert!(writes.iter().map(|write| &write.url).eq([&url(1), &url(2)]));
}
