//! The scanner against `tungstenite` and `soketto`, which read the same bytes in the server's role: what is delivered and
//! how it ends is the same, or the difference is one that `tests/oracle` explains.
#![no_main]

use libfuzzer_sys::fuzz_target;

use crate::reading::{Case, Known, Reading};

#[path = "../../tests/oracle/frames.rs"]
mod frames;
#[path = "../../tests/oracle/known.rs"]
#[allow(dead_code, reason = "some of it is about the third oracle, which runs in Node")]
mod known;
#[path = "../../tests/oracle/reading.rs"]
#[allow(dead_code, reason = "names are for the tallies of the test")]
mod reading;
#[path = "../../tests/oracle/scanner.rs"]
mod scanner;
#[path = "../../tests/oracle/oracles/soketto.rs"]
mod soketto_oracle;
#[path = "../../tests/oracle/oracles/tungstenite.rs"]
mod tungstenite_oracle;

fuzz_target!(|stream: &[u8]| {
    let (ours, last_frame_at) = scanner::read(stream);
    let compare = |oracle: &str, theirs: &Reading, known: &[Known]| {
        let case = Case { ours: &ours, theirs, stream, last_frame_at };
        let explained = ours.agrees_with(theirs) || known.iter().any(|known| (known.is_this)(&case));
        assert!(explained, "at {}\nscanner: {ours:?}\n{oracle}: {theirs:?}", reading::hex(case.last_frame()));
    };
    compare("tungstenite", &tungstenite_oracle::read(stream), tungstenite_oracle::KNOWN);
    compare("soketto", &soketto_oracle::read(stream), soketto_oracle::KNOWN);
});
