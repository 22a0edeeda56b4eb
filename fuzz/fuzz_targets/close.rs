//! The payload of a Close frame: an accepted one has a code that may be on the wire and a reason that is UTF-8.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::ws::close::{CloseCode, parse_close};
use sluicegate::ws::error::ProtocolError;

fuzz_target!(|payload: &[u8]| {
    let code = payload.first_chunk().map(|code| CloseCode(u16::from_be_bytes(*code)));
    let reason = payload.get(2..).map(std::str::from_utf8);
    match parse_close(payload) {
        Ok(None) => assert!(payload.is_empty()),
        Ok(found) => assert!(found == code && found.unwrap().is_valid_on_wire() && reason.unwrap().is_ok()),
        Err(ProtocolError::CloseTooShort) => assert_eq!(payload.len(), 1),
        Err(ProtocolError::InvalidCloseCode(found)) => assert!(Some(found) == code && !found.is_valid_on_wire()),
        Err(rule) => assert!(rule == ProtocolError::InvalidCloseReason && reason.unwrap().is_err()),
    }
});
