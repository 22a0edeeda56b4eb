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
    keys: BTreeMap<String, Said>,
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
            Some(said) => Seen::Says(Box::new(said.clone())),
        }
    }

    fn write(&mut self, write: Write) {
        let now = self.keys.get(&write.url).map_or("", |said| &said.now);
        if now == write.from {
            self.keys.insert(write.url, Said::parse(&write.to, &write.record).unwrap());
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
        if world.keys.get(&shard).is_none_or(|said| said.now != record.in_force()) {
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
    // Few servers, so that lists have much in common and channels come back to where they were.
    let mut lists: Vec<List> = (0..4)
        .map(|_| {
            let count = random.random_range(2..=3);
            list(&(0..4).choose_multiple(&mut random, count))
        })
        .collect();
    lists[2] = lists[random.random_range(0..3)].clone();
    let new = |generation: usize| Gateway::new(generation as u64, lists[generation - 1].clone());
    let mut gateways = vec![new(1), new(1)];
    let (mut tick, mut highest) = (0, 1);
    while tick < 1500 {
        match random.random_range(0..40) {
            0 if highest < lists.len() => {
                highest += 1;
                gateways.extend([new(highest), new(highest)]);
            }
            1 => gateways.push(new(random.random_range(1..=highest))),
            2 => {
                let nth = random.random_range(0..gateways.len());
                gateways[nth] = new(gateways[nth].generation as usize);
            }
            3..6 => {
                if let Some(url) = world.keys.keys().choose(&mut random).cloned() {
                    // Emptied, but not the last of a list that knows anything.
                    let keeps = |list: &List| list.urls().any(|other| other != url && world.keys.contains_key(other));
                    if lists.iter().filter(|list| list.urls().any(|of| of == url)).all(keeps) {
                        world.keys.remove(&url);
                    }
                }
            }
            _ => {}
        }
        // One or two run for a while, and the others stand still wherever they are.
        let running = [(); 2].map(|()| random.random_range(0..gateways.len()));
        for _ in 0..random.random_range(1..25) {
            tick += 1;
            let gateway = &mut gateways[*running.choose(&mut random).unwrap()];
            if random.random_bool(0.2) {
                let channel = ["a", "b", "c", "d", "e"].choose(&mut random).unwrap();
                gateway.publish(&mut world, channel);
            }
            if !gateway.superseded {
                gateway.step(&mut world, random.random_bool(0.01));
            }
        }
    }
    world
}

#[test]
fn what_is_stored_under_a_list_is_stored_before_a_newer_one_is_in_force() {
    let schedules = std::env::var("SHARD_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(200);
    let (mut acknowledged, mut activations, mut moves) = (0, 0, 0);
    for seed in 0..schedules {
        let world = play(seed);
        acknowledged += world.acknowledged;
        activations += world.activations;
        moves += world.stored.values().map(|of| of.len() - 1).sum::<usize>();
    }
    // That the schedules come to what they are about.
    let enough = acknowledged > 10 * schedules && activations > schedules && moves as u64 > schedules / 2;
    assert!(enough, "{acknowledged} stored, {activations} lists in force, {moves} moves");
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
            let all = |url: &str| world.keys.get(url).is_some_and(|said| said.now == record.in_force());
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
    assert!(world.keys[&url(0)].now.starts_with("2 "), "the one that left knows it");
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

/// What servers say of a generation: begun, or in force.
fn said(record: &Record, nonce: Option<&str>) -> Seen {
    let now = nonce.map_or_else(|| record.in_force(), |nonce| record.begun(nonce));
    Seen::Says(Box::new(Said::parse(&now, &record.text).unwrap()))
}

#[test]
fn a_server_that_went_back_while_the_others_were_told_is_told_again() {
    let (old, list) = (Record::new(1, list(&[0, 1]), BTreeSet::new(), BTreeMap::new()), list(&[0, 1, 2]));
    let new = Record::new(2, list.clone(), BTreeSet::new(), BTreeMap::from([(1, old.list.clone())]));
    let gone = BTreeSet::new();
    let own = Own { generation: 2, list: &list, gone: &gone, known: None };
    let nonce = || "x".to_owned();
    let begun: View = (0..3).map(|nth| (url(nth), said(&new, Some("a")))).collect();
    // Emptied and told of 1 again, by a gateway that found the other one saying so still.
    for back in [said(&old, None), said(&old, Some("b")), Seen::Blank, Seen::Silent(EngineError::TimedOut)] {
        let mut second = begun.clone();
        second.insert(url(0), back);
        assert_eq!(decide(&own, &begun, &second, nonce), Step::Prepare(Vec::new()));
        assert!(!matches!(decide(&own, &second, &begun, nonce), Step::InForce(..)));
    }
    let Step::InForce(record, writes) = decide(&own, &begun, &begun, nonce) else { panic!("not in force") };
    assert!(*record == new && writes.iter().all(|write| write.from == new.begun("a") && write.to == new.in_force()));
}

#[test]
fn an_emptied_server_is_told_only_while_another_says_so_after_it() {
    let list = list(&[0, 1, 2]);
    let record = Record::new(1, list.clone(), BTreeSet::new(), BTreeMap::new());
    let gone = BTreeSet::new();
    let own = Own { generation: 1, list: &list, gone: &gone, known: Some(&record) };
    let view = |of: [Seen; 3]| -> View { of.into_iter().enumerate().map(|(nth, seen)| (url(nth), seen)).collect() };
    let (silent, in_force) = (|| Seen::Silent(EngineError::TimedOut), || said(&record, None));
    let writes = |first, second| match decide(&own, &view(first), &view(second), || "y".to_owned()) {
        Step::InForce(_, writes) => writes.into_iter().map(|write| (write.url, write.from, write.to)).collect(),
        step => panic!("{step:?}"),
    };
    // First it is told that this is begun, with a number that nobody else has.
    let told: Vec<_> = writes([Seen::Blank, in_force(), silent()], [Seen::Blank, in_force(), silent()]);
    assert_eq!(told, [(url(0), String::new(), record.begun("y"))]);
    let begun = || said(&record, Some("y"));
    let told = writes([begun(), in_force(), silent()], [begun(), in_force(), silent()]);
    assert_eq!(told, [(url(0), record.begun("y"), record.in_force())]);
    // What another said before it counts for nothing, nor what it says itself.
    assert_eq!(writes([begun(), in_force(), silent()], [in_force(), silent(), silent()]), []);
    let lost =
        decide(&own, &view([begun(), in_force(), silent()]), &view([begun(), silent(), silent()]), || "z".to_owned());
    assert!(matches!(lost, Step::Wait(EngineError::Shard { .. })), "{lost:?}");
}
