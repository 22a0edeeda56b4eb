//! Position tokens: one that is read is written again as the same bytes, and no longer than any may be; a cursor of
//! them has one place a region.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::backplane::position::{Cursor, MAX_REGIONS, MAX_TOKEN_BYTES, Place, Position};

fuzz_target!(|input: &str| {
    if let Ok(position) = input.parse::<Position>() {
        assert_eq!(position.to_string(), input);
        assert!(input.len() <= MAX_TOKEN_BYTES);
    }
    let Ok(cursor) = Cursor::parse(input.split(',')) else { return };
    let positions: Vec<_> = cursor.positions().cloned().collect();
    assert!(positions.len() <= MAX_REGIONS);
    assert!(positions.is_sorted_by(|a, b| a.region < b.region));
    for position in positions {
        assert_eq!(cursor.place(&position.region), Place::After(position));
    }
});
