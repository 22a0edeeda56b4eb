//! The scanner: one verdict and the same items however the bytes arrive, and what it accepts is written again as the
//! same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::header::Sender;
use sluicegate::ws::scan::{Compression, Scanner};
use sluicegate_fuzz::{cuts, frames};

fuzz_target!(|input: &[u8]| {
    let [control, seed, bytes @ ..] = input else { return };
    let sender = if control & 1 == 0 { Sender::Client } else { Sender::Server };
    let compression = [Compression::Refused, Compression::Opaque, Compression::Inflated][usize::from(control >> 2) % 3];
    let scanner = || Scanner::new(sender, control & 2 == 0).with_compression(compression);
    let whole = frames::scan(scanner(), bytes, &[]);
    for cuts in [cuts(*seed, bytes.len()), cuts(0, bytes.len())] {
        let split = frames::scan(scanner(), bytes, &cuts);
        match whole.error {
            None => assert_eq!(split, whole),
            // Payload that is neither deflate nor text may be refused as either.
            Some(_) if compression == Compression::Inflated => assert!(split.error.is_some()),
            Some(_) => assert_eq!(split.error, whole.error),
        }
    }
    // What is left is the start of a frame, or nothing.
    assert_eq!(frames::write(&whole.items, bytes), bytes[..whole.taken]);
    assert!(whole.error.is_some() || bytes.len() - whole.taken < 131);
});
