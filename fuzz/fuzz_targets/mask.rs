//! Masking: each byte by its definition, in two parts as in one, and undone by itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::mask::apply;

fuzz_target!(|input: &[u8]| {
    let Some((key, rest)) = input.split_first_chunk::<4>() else { return };
    let Some((numbers, payload)) = rest.split_first_chunk::<9>() else { return };
    // An offset is below 2^63, as a length is.
    let offset = u64::from_le_bytes(std::array::from_fn(|at| numbers[at])) >> 1;
    let mut masked = payload.to_vec();
    apply(&mut masked, *key, offset);
    let defined = |(at, byte): (usize, &u8)| byte ^ key[((offset + at as u64) % 4) as usize];
    assert_eq!(masked, payload.iter().enumerate().map(defined).collect::<Vec<u8>>());

    let cut = usize::from(numbers[8]).min(masked.len());
    let (front, back) = masked.split_at_mut(cut);
    apply(front, *key, offset);
    apply(back, *key, offset + cut as u64);
    assert_eq!(masked, payload);
});
