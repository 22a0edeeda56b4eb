//! The scanner: one verdict and the same items however the bytes arrive, and what it accepts is written again as the
//! same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::header::Sender;
use sluicegate_fuzz::{cuts, frames};

fuzz_target!(|input: &[u8]| {
    let [control, seed, bytes @ ..] = input else { return };
    let sender = if control & 1 == 0 { Sender::Client } else { Sender::Server };
    let check_text = control & 2 == 0;
    let whole = frames::scan(sender, check_text, bytes, &[]);
    for cuts in [cuts(*seed, bytes.len()), cuts(0, bytes.len())] {
        let split = frames::scan(sender, check_text, bytes, &cuts);
        assert_eq!(split.error, whole.error);
        if whole.error.is_none() {
            assert_eq!(split, whole);
        }
    }
    // What is left is the start of a frame, or nothing.
    assert_eq!(frames::write(&whole.items, bytes), bytes[..whole.taken]);
    assert!(whole.error.is_some() || bytes.len() - whole.taken < 131);
});
