//! Values with their unit: what is shown of a value reads as that value, and each has one meaning.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sluicegate::config::units::{ByteRate, Rate, Size, Span};
use sluicegate::policy::range;

fuzz_target!(|text: &str| {
    if let Ok(Span(span)) = text.parse() {
        assert_eq!(shown(range::span("", span, &(Duration::MAX..=Duration::MAX))).parse(), Ok(Span(span)));
    }
    if let Ok(Size(bytes)) = text.parse() {
        assert_eq!(shown(range::size("", bytes, &(1..=0))).parse(), Ok(Size(bytes)));
        assert_eq!(format!("{text}/s").parse(), Ok(ByteRate(bytes)));
    }
    if let Ok(rate) = text.parse::<Rate>() {
        let per =
            [("s", 1), ("m", 60), ("h", 3600)].into_iter().find(|(_, secs)| rate.per == Duration::from_secs(*secs));
        assert_eq!(format!("{}/{}", rate.count, per.expect("a unit").0).parse(), Ok(rate));
    }
});

/// The value in the fault of a range that nothing is in.
fn shown(fault: Option<sluicegate::policy::Fault>) -> String {
    fault.expect("nothing is in the range").found.trim_matches('"').to_owned()
}
