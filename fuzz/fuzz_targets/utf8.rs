//! Text: the verdict of the standard library, however the bytes arrive and masked or not, and as early as it can fall.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::mask;
use sluicegate::ws::utf8::Utf8Check;
use sluicegate_fuzz::cuts;

fuzz_target!(|input: &[u8]| {
    let Some((&[seed, ref key @ ..], text)) = input.split_first_chunk::<5>() else { return };
    let expected = std::str::from_utf8(text);
    // A text that is cut off inside a character is wrong at its end only.
    let refused_at = expected.err().and_then(|error| error.error_len().map(|_| error.valid_up_to()));
    let mut masked = text.to_vec();
    mask::apply(&mut masked, *key, 0);
    for cuts in [vec![], cuts(seed, text.len()), cuts(0, text.len())] {
        let (mut plain, mut unmasked) = (Utf8Check::default(), Utf8Check::default());
        let mut at = 0;
        let ended = cuts.iter().chain([&text.len()]).try_for_each(|&end| {
            let verdict = plain.feed(&text[at..end]);
            assert_eq!(unmasked.feed_masked(&masked[at..end], *key, at as u64), verdict);
            // Refused no later than the piece that has the end of the bad sequence, and never before its start.
            assert!(verdict.is_ok() || refused_at.is_some_and(|bad| bad < end));
            assert!(verdict.is_err() || refused_at.is_none_or(|bad| bad + 4 > end));
            at = end;
            verdict
        });
        assert_eq!(ended.and_then(|()| plain.finish()).is_ok(), expected.is_ok());
    }
});
