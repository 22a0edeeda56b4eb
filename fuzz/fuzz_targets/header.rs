//! A frame header: what is accepted is written again as the same bytes, and no shorter input had another verdict.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::header::{MAX_HEADER_BYTES, Sender, parse};
use sluicegate_fuzz::frames::write_header;

fuzz_target!(|bytes: &[u8]| {
    for sender in [Sender::Client, Sender::Server] {
        let verdict = parse(bytes, sender);
        if let Ok(Some((header, len))) = verdict {
            assert_eq!(write_header(&header), bytes[..len]);
            assert!(len <= MAX_HEADER_BYTES && header.payload_bytes < 1 << 63);
        }
        // The verdict falls once: before it every prefix is unfinished, from it on every prefix has it.
        let at = (0..=bytes.len()).find(|end| parse(&bytes[..*end], sender) != Ok(None)).unwrap_or(bytes.len());
        assert!((at..=bytes.len()).all(|end| parse(&bytes[..end], sender) == verdict));
    }
});
