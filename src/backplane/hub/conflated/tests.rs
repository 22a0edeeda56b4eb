//! The newest values of a channel: cases, and any schedule of publications, ticks, readers and answers of engines.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::backplane::position::Epoch;
use crate::ws::deflate::Inflater;
use crate::ws::header::{Sender, parse};

const PLAIN: Form = Form { lined: false, deflated: false };
const LINED: Form = Form { lined: true, deflated: false };

fn position(region: &str, n: u64, ms: u64) -> Position {
    let (region, epoch) = (Region::new(region).unwrap(), Epoch::new("a").unwrap());
    Position { region, epoch, n, id: EntryId { ms, seq: 0 } }
}

fn value(content: impl Into<Bytes>) -> Value {
    Value { kind: Kind::Text, content: content.into(), id: String::new() }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn conflated(join: Join) -> Conflated {
    Conflated::new(Channel::new("prices").unwrap(), join)
}

/// A value of one region, the nth there.
fn put(of: &mut Conflated, name: &str, n: u64, content: &str) {
    of.update(key(name), value(content.to_owned()), position("eu", n, n));
}

/// The payloads of whole frames.
fn payloads(mut frames: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((header, len)) = parse(frames, Sender::Server, false).unwrap() {
        let end = len + header.payload_bytes as usize;
        found.push(String::from_utf8(frames[len..end].to_vec()).unwrap());
        frames = &frames[end..];
    }
    assert!(frames.is_empty());
    found
}

/// All that lies behind a mark.
fn read(of: &mut Conflated, mark: &mut Mark, form: Form) -> Vec<String> {
    let mut got = Vec::new();
    while let Some((part, to)) = of.part(*mark, form) {
        got.extend(payloads(&part.frames));
        *mark = to;
    }
    assert!(!of.is_behind(*mark));
    got
}

#[test]
fn a_tick_has_what_has_changed_once_and_is_shared() {
    let mut of = conflated(Join::Messages);
    put(&mut of, "x", 1, "x1");
    put(&mut of, "y", 2, "y1");
    put(&mut of, "x", 3, "x2");
    assert!(of.is_dirty() && of.part(Mark::default(), PLAIN).is_none(), "not before the tick");
    assert_eq!(of.tick(), Ticked { values: 2, replaced: 1 });
    let (mut fast, mut second, mut slow) = (Mark::default(), Mark::default(), Mark::default());
    assert_eq!(read(&mut of, &mut fast, PLAIN), ["y1", "x2"]);
    assert_eq!(read(&mut of, &mut second, PLAIN), ["y1", "x2"]);
    put(&mut of, "y", 4, "y2");
    put(&mut of, "z", 5, "z1");
    assert_eq!(of.tick(), Ticked { values: 2, replaced: 0 });
    let shared = [fast, second].map(|mark| of.part(mark, PLAIN).unwrap().0);
    assert!(Arc::ptr_eq(&shared[0], &shared[1]));
    assert_eq!((shared[0].values, shared[0].newest.n), (2, 5));
    assert!(of.has_skipped(slow) && !of.has_skipped(fast));
    assert_eq!(read(&mut of, &mut fast, PLAIN), ["y2", "z1"]);
    assert_eq!(read(&mut of, &mut slow, PLAIN), ["x2", "y2", "z1"], "the current values, once");
    assert_eq!(of.tick(), Ticked::default());
    assert!(of.part(fast, PLAIN).is_none() && of.part(slow, PLAIN).is_none());
    assert_eq!((of.len(), second.0), (3, 2));
    assert_eq!(read(&mut of, &mut second, PLAIN), ["y2", "z1"]);
}

#[test]
fn a_value_that_changes_in_every_tick_reaches_who_is_always_late() {
    let mut of = conflated(Join::Messages);
    let mut late = Mark::default();
    for nth in 1..10 {
        put(&mut of, "busy", 2 * nth - 1, &format!("{nth}"));
        of.tick();
        put(&mut of, "busy", 2 * nth, "between");
        assert_eq!(read(&mut of, &mut late, PLAIN), [format!("{nth}")]);
    }
}

#[test]
fn lines_have_each_values_place_or_the_newest_of_an_array() {
    for (join, plain, lined) in [
        (
            Join::Messages,
            vec!["1", "2"],
            vec![
                "{\"c\":\"prices\",\"p\":\"eu.a.1.1-0\",\"i\":\"m\",\"ts\":1}\n1",
                "{\"c\":\"prices\",\"p\":\"eu.a.2.2-0\",\"ts\":2}\n2",
            ],
        ),
        (Join::JsonArray, vec!["[1,2]"], vec!["{\"c\":\"prices\",\"p\":\"eu.a.2.2-0\",\"ts\":2}\n[1,2]"]),
    ] {
        let mut of = conflated(join);
        of.update(key("x"), Value { id: "m".to_owned(), ..value("1") }, position("eu", 1, 1));
        put(&mut of, "y", 2, "2");
        of.tick();
        assert_eq!(read(&mut of, &mut Mark::default(), PLAIN), plain);
        assert_eq!(read(&mut of, &mut Mark::default(), LINED), lined);
    }
}

#[test]
fn what_is_compressed_is_compressed_once_and_each_message_by_itself() {
    const DEFLATED: Form = Form { lined: false, deflated: true };
    let mut of = conflated(Join::Messages);
    let texts = ["small".to_owned(), "large ".repeat(100), "large ".repeat(100)];
    for (nth, text) in (1..).zip(&texts) {
        put(&mut of, &format!("k{nth}"), nth, text);
    }
    of.tick();
    let [first, second] = [(); 2].map(|()| of.part(Mark::default(), DEFLATED).unwrap().0);
    assert!(Arc::ptr_eq(&first, &second));
    assert!(first.frames.len() < 100, "{}", first.frames.len());
    // Read from the second compressed message on, whoever has not seen the first inflates it all the same.
    let mut frames = &first.frames[..];
    let mut found = Vec::new();
    while let Some((header, len)) = parse(frames, Sender::Server, true).unwrap() {
        let (payload, rest) = frames[len..].split_at(header.payload_bytes as usize);
        let mut plain = Vec::new();
        if header.rsv1 {
            let mut sink = |piece: &[u8]| {
                plain.extend_from_slice(piece);
                Ok(())
            };
            let mut inflater = Inflater::new();
            inflater.feed(payload, &mut sink).unwrap();
            inflater.finish(&mut sink).unwrap();
        } else {
            plain.extend_from_slice(payload);
        }
        found.push((header.rsv1, String::from_utf8(plain).unwrap()));
        frames = rest;
    }
    let [small, large, again] = texts;
    assert_eq!(found, [(false, small), (true, large), (true, again)]);
}

#[test]
fn what_is_large_comes_in_parts() {
    for (join, bytes, expected) in
        [(Join::Messages, 30 << 10, vec![2, 2, 1]), (Join::JsonArray, 200 << 10, vec![2, 2, 1])]
    {
        let mut of = conflated(join);
        for nth in 1..=5 {
            put(&mut of, &format!("k{nth}"), nth, &"1".repeat(bytes));
        }
        put(&mut of, "huge", 6, &"1".repeat(1 << 20));
        of.tick();
        let (mut mark, mut sizes) = (Mark::default(), Vec::new());
        while let Some((part, to)) = of.part(mark, PLAIN) {
            sizes.push(part.values);
            mark = to;
        }
        assert_eq!(sizes, [expected, vec![1]].concat());
    }
}

#[test]
fn frames_for_those_behind_are_kept_up_to_a_bound() {
    let mut of = conflated(Join::Messages);
    for nth in 1..=200 {
        put(&mut of, &format!("k{nth:03}"), nth, &"1".repeat(60 << 10));
    }
    of.tick();
    put(&mut of, "new", 201, "1");
    of.tick();
    let mut mark = Mark::default();
    let firsts: Vec<_> = [mark; 2].map(|mark| of.part(mark, PLAIN).unwrap().0).into();
    assert!(Arc::ptr_eq(&firsts[0], &firsts[1]));
    assert_eq!(read(&mut of, &mut mark, PLAIN).len(), 201);
    assert!(of.kept_bytes <= KEPT_BYTES && of.parts.len() < 80, "{}", of.parts.len());
    of.forget_parts();
    assert_eq!((of.kept_bytes, of.parts.len()), (0, 0));
    assert_eq!(read(&mut of, &mut Mark::default(), PLAIN).len(), 201);
}

#[test]
fn what_the_engine_has_takes_the_place_of_what_was_here() {
    let mut of = conflated(Join::Messages);
    for (nth, name) in (1..).zip(["x", "y", "z"]) {
        put(&mut of, name, nth, &format!("{name}{nth}"));
    }
    of.tick();
    let mut mark = Mark::default();
    read(&mut of, &mut mark, PLAIN);
    // The log lost its end: y is what it was before, z is gone, x is the same.
    let asked = of.came();
    let top = position("eu", 2, 20);
    let latest = vec![(key("x"), value("x1"), position("eu", 1, 1)), (key("y"), value("y0"), position("eu", 2, 20))];
    of.replace(&top, asked, latest.clone());
    assert_eq!(of.tick().values, 1);
    assert_eq!((read(&mut of, &mut mark, PLAIN), of.len()), (vec!["y0".to_owned()], 2));
    // What came while it was asked is newer.
    let asked = of.came();
    put(&mut of, "y", 3, "y3");
    put(&mut of, "w", 4, "w4");
    of.replace(&top, asked, latest.clone());
    of.tick();
    assert_eq!(read(&mut of, &mut mark, PLAIN), ["y3", "w4"]);
    // Unless the engine has seen it, and something newer.
    let asked = of.came();
    put(&mut of, "y", 5, "y5");
    let newer = [latest, vec![(key("y"), value("y6"), position("eu", 6, 60))]].concat();
    of.replace(&position("eu", 6, 60), asked, newer);
    of.tick();
    assert_eq!((read(&mut of, &mut mark, PLAIN), of.len()), (vec!["y6".to_owned()], 2));
}

#[test]
fn of_several_regions_the_newest_counts_and_each_has_its_own() {
    let mut of = conflated(Join::Messages);
    let mut mark = Mark::default();
    of.update(key("x"), value("eu"), position("eu", 7, 100));
    of.update(key("x"), value("us"), position("us", 1, 90));
    of.tick();
    assert_eq!(read(&mut of, &mut mark, PLAIN), ["eu"]);
    of.update(key("x"), value("us2"), position("us", 2, 100));
    of.tick();
    assert_eq!(read(&mut of, &mut mark, PLAIN), ["us2"], "at the same time the later name");
    of.update(key("x"), value("us3"), position("us", 3, 101));
    of.replace(&position("us", 0, 0), of.came(), Vec::new());
    of.tick();
    assert_eq!(read(&mut of, &mut mark, PLAIN), ["eu"], "the other region's log is empty");
    of.replace(&position("eu", 0, 0), of.came(), Vec::new());
    assert!(!of.is_dirty() && of.len() == 0);
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        key: u8,
        region: bool,
    },
    Tick,
    /// A subscriber takes so many parts.
    Read(usize, usize),
    Subscribe(usize),
    /// The engine is asked for its newest values.
    Ask {
        region: bool,
    },
    /// It has answered.
    Answer,
}

const READERS: usize = 4;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..6_u8, any::<bool>()).prop_map(|(key, region)| Step::Publish { key, region }),
        3 => Just(Step::Tick),
        5 => (0..READERS, 1..4_usize).prop_map(|(reader, parts)| Step::Read(reader, parts)),
        1 => (0..READERS).prop_map(Step::Subscribe),
        1 => any::<bool>().prop_map(|region| Step::Ask { region }),
        1 => Just(Step::Answer),
    ];
    proptest::collection::vec(step, 1..120)
}

type Latest = Vec<(Key, Value, Position)>;

/// What is published, what an engine would say of it, and what subscribers have.
struct Model {
    of: Conflated,
    tops: [u64; 2],
    /// By region and key.
    stored: BTreeMap<(bool, Key), (Value, Position)>,
    asked: Option<(Position, u64, Latest)>,
    clock: u64,
    readers: Vec<(Mark, BTreeMap<String, u64>)>,
}

impl Model {
    fn new(join: Join) -> Self {
        let readers = vec![(Mark::default(), BTreeMap::new()); READERS];
        Self { of: conflated(join), tops: [0; 2], stored: BTreeMap::new(), asked: None, clock: 0, readers }
    }

    fn name(region: bool) -> &'static str {
        if region { "us" } else { "eu" }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { key: number, region } => {
                self.clock += 1;
                let top = &mut self.tops[usize::from(*region)];
                *top += 1;
                let at = position(Self::name(*region), *top, self.clock);
                let name = key(&format!("k{number}"));
                // Long enough that a tick of several keys has several parts.
                let content = format!("[\"k{number}\",{:>30000}]", self.clock);
                self.stored.insert((*region, name.clone()), (value(content.clone()), at.clone()));
                self.of.update(name, value(content), at);
            }
            Step::Tick => drop(self.of.tick()),
            Step::Read(reader, parts) => self.read(*reader, *parts),
            Step::Subscribe(reader) => self.readers[*reader] = (Mark::default(), BTreeMap::new()),
            Step::Ask { region } => {
                let of_region = self.stored.iter().filter(|((of, _), _)| of == region);
                let latest = of_region.map(|((_, key), (value, at))| (key.clone(), value.clone(), at.clone()));
                let top = position(Self::name(*region), self.tops[usize::from(*region)], self.clock);
                self.asked = Some((top, self.of.came(), latest.collect()));
            }
            Step::Answer => {
                if let Some((top, asked, latest)) = self.asked.take() {
                    self.of.replace(&top, asked, latest);
                }
            }
        }
    }

    fn read(&mut self, reader: usize, parts: usize) {
        let (mark, got) = &mut self.readers[reader];
        for _ in 0..parts {
            let Some((part, to)) = self.of.part(*mark, PLAIN) else { return };
            assert!(to > *mark);
            *mark = to;
            let frames = payloads(&part.frames);
            let values: Vec<(String, u64)> = match self.of.join {
                Join::Messages => frames.iter().map(|text| serde_json::from_str(text).unwrap()).collect(),
                Join::JsonArray => serde_json::from_str(&frames.concat()).unwrap(),
            };
            assert_eq!(values.len(), part.values);
            for (name, clock) in values {
                let earlier = got.insert(name.clone(), clock).unwrap_or(0);
                assert!(clock > earlier, "{name}: {clock} behind {earlier}");
            }
        }
    }

    /// The newest of each key, by what was published.
    fn expected(&self) -> BTreeMap<String, u64> {
        let mut newest = BTreeMap::new();
        for ((_, name), (_, at)) in &self.stored {
            let known = newest.entry(name.as_str().to_owned()).or_insert(0);
            *known = at.id.ms.max(*known);
        }
        newest
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn values_never_go_back_and_the_last_always_comes(steps in steps(), array in any::<bool>()) {
        let mut model = Model::new(if array { Join::JsonArray } else { Join::Messages });
        for step in &steps {
            model.step(step);
        }
        model.step(&Step::Answer);
        model.step(&Step::Tick);
        let expected = model.expected();
        prop_assert_eq!(model.of.len(), expected.len());
        for reader in 0..READERS {
            model.read(reader, usize::MAX);
            prop_assert_eq!(&model.readers[reader].1, &expected);
        }
    }
}
