//! A frame header: what is accepted is written again as the same bytes, and no shorter input had another verdict.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::header::{DataHeader, MAX_HEADER_BYTES, Sender, parse};
use sluicegate_fuzz::frames::write_header;

fuzz_target!(|bytes: &[u8]| {
    let kinds = [Sender::Client, Sender::Server].into_iter().flat_map(|sender| [(sender, false), (sender, true)]);
    for (sender, rsv1_allowed) in kinds {
        let parse = |bytes| parse(bytes, sender, rsv1_allowed);
        let verdict = parse(bytes);
        if let Ok(Some((header, len))) = verdict {
            assert_eq!(write_header(&header), bytes[..len]);
            assert_eq!(DataHeader::new(&header).as_bytes(), &bytes[..len]);
            assert!(len <= MAX_HEADER_BYTES && header.payload_bytes < 1 << 63);
        }
        // The verdict falls once: before it every prefix is unfinished, from it on every prefix has it.
        let at = (0..=bytes.len()).find(|end| parse(&bytes[..*end]) != Ok(None)).unwrap_or(bytes.len());
        assert!((at..=bytes.len()).all(|end| parse(&bytes[..end]) == verdict));
    }
});
