//! Bodies that publish, and stored items: what is taken can be stored and read back, and what is read is what was stored.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sluicegate::grip::Limits;
use sluicegate::grip::item::{Formats, Item};
use sluicegate::grip::publish::parse;

fuzz_target!(|input: &[u8]| {
    let limits = Limits::default();
    if let Ok(items) = parse(input, &limits) {
        for item in items {
            assert!((1..=limits.channel_bytes).contains(&item.channel.len()));
            assert!(item.formats != Formats::default());
            let mut stored = Vec::new();
            item.encode(&mut stored);
            assert_eq!(Item::decode(&Bytes::from(stored)), Ok(item));
        }
    }
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(item) = Item::decode(&bytes) {
        let mut stored = Vec::new();
        item.encode(&mut stored);
        assert_eq!(stored, bytes);
    }
});
