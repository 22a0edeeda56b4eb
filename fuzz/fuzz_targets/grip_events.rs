//! WebSocket-over-HTTP events: one verdict however the bytes arrive, and what is read is written as an equal event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::grip::events::{Event, EventError, Events, close_status, decode, encode, encoded_bytes};

const MAX_CONTENT_BYTES: usize = 256;

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    let mut events = Vec::new();
    let verdict = loop {
        if rest.is_empty() {
            break Ok(());
        }
        let (whole, first) = (decode(rest, MAX_CONTENT_BYTES), first_verdict(rest));
        assert_eq!(whole, first);
        match whole {
            Err(error) => break Err(error),
            Ok(None) => break Err(EventError::Truncated),
            Ok(Some((event, len))) => {
                assert!((1..=rest.len()).contains(&len) && event.content.len() <= MAX_CONTENT_BYTES);
                events.push(event);
                rest = &rest[len..];
            }
        }
    };
    assert_eq!(
        Events::new(input, MAX_CONTENT_BYTES).collect::<Result<Vec<Event<'_>>, _>>(),
        verdict.map(|()| events.clone())
    );

    let mut body = Vec::new();
    for event in &events {
        let before = body.len();
        encode(event.kind, event.content, &mut body);
        assert_eq!(body.len() - before, encoded_bytes(event.kind, event.content.len()));
        if let Some((code, reason)) = close_status(event.content) {
            assert!(code.is_valid_on_wire() && reason.len() <= 123);
        }
    }
    assert_eq!(Events::new(&body, MAX_CONTENT_BYTES).collect::<Result<Vec<_>, _>>(), Ok(events));
});

/// What is decoded when one byte comes after the other.
fn first_verdict(input: &[u8]) -> Result<Option<(Event<'_>, usize)>, EventError> {
    let mut verdicts = (0..=input.len()).map(|len| decode(&input[..len], MAX_CONTENT_BYTES));
    verdicts.find(|verdict| *verdict != Ok(None)).unwrap_or(Ok(None))
}
