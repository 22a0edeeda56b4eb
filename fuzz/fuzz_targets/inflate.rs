//! Inflating: the verdict and the bytes of another implementation, however the bytes arrive, and within the ratio.
#![no_main]

use libfuzzer_sys::fuzz_target;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use sluicegate::ws::deflate::{Deflater, Inflater, MAX_RATIO};
use sluicegate::ws::error::ProtocolError;
use sluicegate_fuzz::cuts;

/// More than the longest input becomes.
const MOST_BYTES: usize = 8 << 20;

fuzz_target!(|input: &[u8]| {
    let [seed, message @ ..] = input else { return };
    let whole = inflate(message, &[]);
    assert_eq!(inflate(message, &cuts(*seed, message.len())), whole);
    assert_eq!(inflate(message, &cuts(0, message.len())), whole);
    assert_eq!(whole.ok(), reference(message));

    // And the other way: what is deflated inflates to itself.
    let mut compressed = Vec::new();
    let deflater = Deflater::new();
    let (front, back) = message.split_at(usize::from(*seed).min(message.len()));
    deflater.feed(front, false, &mut compressed);
    deflater.feed(back, true, &mut compressed);
    assert_eq!(inflate(&compressed, &[]).as_deref(), Ok(message));
});

fn inflate(message: &[u8], cuts: &[usize]) -> Result<Vec<u8>, ProtocolError> {
    let mut inflater = Inflater::new();
    let mut plain = Vec::new();
    let mut at = 0;
    for &end in cuts.iter().chain([&message.len()]) {
        let before = plain.len();
        inflater.feed(&message[at..end], &mut |bytes| {
            plain.extend_from_slice(bytes);
            Ok(())
        })?;
        assert!((plain.len() - before) as u64 <= ((end - at) as u64 + 2) * MAX_RATIO);
        at = end;
    }
    inflater.finish(&mut |bytes| {
        plain.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(plain)
}

/// RFC 7692 §7.2.2: the message and what its sender left out, and an empty last block behind it. A last block inside of
/// the message ends one stream, and what follows begins another. What was left out is taken whole or not at all: a last
/// block that ends inside of it was not whole.
fn reference(message: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (ended, taken) = stream(rest, &mut plain)?;
        if !ended {
            let whole = [rest, &[0, 0, 0xff, 0xff, 3, 0]].concat();
            let (_, taken) = stream(&whole, &mut plain)?;
            return [whole.len(), rest.len() + 4].contains(&taken).then_some(plain);
        }
        rest = &rest[taken..];
    }
    Some(plain)
}

/// One stream at the front of `bytes`, whose output is kept when it ends: whether it does, and how long it is.
fn stream(bytes: &[u8], plain: &mut Vec<u8>) -> Option<(bool, usize)> {
    let mut output = vec![0; MOST_BYTES];
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    match decompress(&mut DecompressorOxide::new(), bytes, &mut output, 0, flags) {
        (TINFLStatus::Done, taken, made) => {
            plain.extend_from_slice(&output[..made]);
            Some((true, taken))
        }
        (TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress, ..) => Some((false, 0)),
        _ => None,
    }
}
