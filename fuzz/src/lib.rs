//! What the fuzz targets share: frames written anew, places to cut an input at, headers read from lines.

pub mod frames;
pub mod headers;

/// Where to cut `len` bytes, in order: at every place for 0, at the same ones for the same `seed` otherwise.
pub fn cuts(seed: u8, len: usize) -> Vec<usize> {
    if seed == 0 {
        return (1..len).collect();
    }
    // A linear congruence: which numbers they are does not matter, only that they are many and the same ones.
    let mut state = u32::from(seed);
    let mut at = 0;
    let steps = std::iter::from_fn(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        at += 1 + (state >> 24) as usize % (1 + usize::from(seed));
        (at < len).then_some(at)
    });
    steps.collect()
}
