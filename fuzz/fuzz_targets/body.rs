//! Where a body ends: the same place however the bytes arrive, never behind what there is, and nothing behind the end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::edge::body::BodyEnd;
use sluicegate_fuzz::cuts;

fuzz_target!(|input: &[u8]| {
    let [control, seed, bytes @ ..] = input else { return };
    let start = if *control == 0 { BodyEnd::Size(0) } else { BodyEnd::Length(u64::from(*control) - 1) };
    let mut whole = start;
    let taken = whole.take(bytes);
    assert!(taken <= bytes.len() && (whole.is_reached() || taken == bytes.len()));
    assert!(!whole.is_reached() || whole.take(bytes) == 0);
    for cuts in [cuts(*seed, bytes.len()), cuts(0, bytes.len())] {
        let (mut split, mut at, mut sum) = (start, 0, 0);
        for end in cuts.into_iter().chain([bytes.len()]) {
            sum += split.take(&bytes[at..end]);
            at = end;
        }
        assert_eq!((split, sum), (whole, taken));
    }
});
