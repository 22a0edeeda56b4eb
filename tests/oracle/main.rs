//! The scanner against other implementations: `tungstenite`, `soketto` and Node's `ws` read the same bytes in the
//! server's role. No extension is negotiated.
//!
//! Valid client streams are broken in many ways, and all must agree about each: what was delivered, byte for byte, and
//! how it ended. Where an oracle is known to be laxer or later, its `KNOWN` says why and checks that the case is really
//! that one; any other difference fails. `SLUICEGATE_SEED=n` tries other streams than the default ones.

mod frames;
mod known;
mod oracles;
mod reading;
mod scanner;
mod streams;

use std::fmt;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::oracles::ws::Ws;
use crate::oracles::{soketto, tungstenite, ws};
use crate::reading::{Case, End, Known, Reading, hex};

/// How many streams are read.
const STREAMS: u64 = 100_000;

/// How many are held at once, with what each implementation made of them.
const BATCH: u64 = 5_000;

/// Which streams, when `SLUICEGATE_SEED` does not say.
const SEED: u64 = 6455;

#[test]
fn reads_broken_client_streams_as_three_others_do() {
    let tallies = compare_all(STREAMS, |random| {
        let mut frames = streams::valid(random);
        streams::mutate(&mut frames, random);
        frames.concat()
    });
    for tally in tallies {
        println!("{tally}");
        // A generator that makes only one kind of stream would compare nothing.
        for agreed in [tally.open, tally.closed, tally.refused] {
            assert!(agreed > STREAMS / 20, "{tally}");
        }
        for (name, seen) in &tally.known {
            assert!(*seen > 0, "no stream of SLUICEGATE_SEED={} shows any more that {} {name}", seed(), tally.oracle);
        }
    }
}

#[test]
fn reads_valid_client_streams_as_three_others_do() {
    let tallies = compare_all(STREAMS / 10, |random| streams::valid(random).concat());
    for tally in tallies {
        println!("{tally}");
        assert_eq!(tally.refused, 0, "{tally}");
        // soketto alone has a fault with streams that are valid.
        let (known, name) = (tally.known.iter().filter(|(_, seen)| *seen > 0), "forgets the open message at a Pong");
        assert!(known.clone().all(|(known, _)| tally.oracle == "soketto" && *known == name), "{tally}");
    }
}

fn seed() -> u64 {
    std::env::var("SLUICEGATE_SEED").map_or(SEED, |seed| seed.parse().expect("SLUICEGATE_SEED is a number"))
}

/// Makes streams, has each read by all, and fails at the first difference that is not known.
fn compare_all(streams: u64, make: fn(&mut SmallRng) -> Vec<u8>) -> [Tally; 3] {
    let mut node = Ws::start();
    let mut tallies = [
        Tally::new("tungstenite", tungstenite::KNOWN),
        Tally::new("soketto", soketto::KNOWN),
        Tally::new("ws", ws::KNOWN),
    ];
    for first in (0..streams).step_by(BATCH as usize) {
        // A generator of its own for each number, so that one can be looked at alone.
        let batch: Vec<Vec<u8>> = (first..streams.min(first + BATCH))
            .map(|number| make(&mut SmallRng::seed_from_u64(seed().wrapping_mul(1_000_003).wrapping_add(number))))
            .collect();
        let (ours, theirs) = read_all(&batch, &mut node);
        for (at, stream) in batch.iter().enumerate() {
            let (ours, last_frame_at) = (&ours[at].0, ours[at].1);
            for (tally, theirs) in tallies.iter_mut().zip(&theirs) {
                let case = Case { ours, theirs: &theirs[at], stream, last_frame_at };
                assert!(
                    tally.count(&case),
                    "stream {} of SLUICEGATE_SEED={} is read differently, at {}\nscanner: {ours:?}\n{}: {:?}",
                    first + at as u64,
                    seed(),
                    hex(case.last_frame()),
                    tally.oracle,
                    theirs[at],
                );
            }
        }
    }
    tallies
}

/// What the scanner made of each stream, with where it stopped, and what each oracle did; side by side.
fn read_all(batch: &[Vec<u8>], node: &mut Ws) -> (Vec<(Reading, usize)>, [Vec<Reading>; 3]) {
    std::thread::scope(|scope| {
        let ws = scope.spawn(|| node.read_all(batch));
        let soketto = scope.spawn(|| batch.iter().map(|stream| soketto::read(stream)).collect());
        let tungstenite = batch.iter().map(|stream| tungstenite::read(stream)).collect();
        let ours = batch.iter().map(|stream| scanner::read(stream)).collect();
        (ours, [tungstenite, soketto.join().expect("soketto reads"), ws.join().expect("ws reads")])
    })
}

/// How the streams were read by the scanner and one oracle, to show that all kinds were there.
struct Tally {
    oracle: &'static str,
    differences: &'static [Known],
    open: u64,
    closed: u64,
    refused: u64,
    /// The known differences, and how many streams showed each.
    known: Vec<(&'static str, u64)>,
}

impl Tally {
    fn new(oracle: &'static str, differences: &'static [Known]) -> Self {
        let known = differences.iter().map(|known| (known.name, 0)).collect();
        Self { oracle, differences, open: 0, closed: 0, refused: 0, known }
    }

    /// Whether the two agree or the difference is known.
    fn count(&mut self, case: &Case) -> bool {
        if case.ours.agrees_with(case.theirs) {
            match case.ours.end {
                End::Open => self.open += 1,
                End::Closed(_) => self.closed += 1,
                End::Refused(_) => self.refused += 1,
            }
            return true;
        }
        let known = self.differences.iter().position(|known| (known.is_this)(case));
        if let Some(known) = known {
            self.known[known].1 += 1;
        }
        known.is_some()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { oracle, open, closed, refused, known, .. } = self;
        writeln!(f, "{oracle} agrees about {open} open streams, {closed} closed and {refused} refused, and")?;
        known.iter().try_for_each(|(name, seen)| writeln!(f, "{seen:>8} times {name}"))
    }
}
