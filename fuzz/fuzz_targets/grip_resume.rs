//! Messages of a resumable subprotocol: what is taken keeps its bounds, and what is read is written as an equal message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::grip::Limits;
use sluicegate::grip::position::Position;
use sluicegate::grip::resume::{FromClient, ToClient, from_client, to_client, write_delivery, write_notice};

fuzz_target!(|input: &[u8]| {
    let limits = Limits { channels: 4, positions: 2, line_bytes: 1024, ..Limits::default() };
    match from_client(input, &limits) {
        Ok(FromClient::Payload(payload)) => assert_eq!([b"\n", payload].concat(), input),
        Ok(FromClient::Resume(channels)) => {
            assert!(channels.len() <= 4);
            for (channel, positions) in channels {
                assert!(!channel.is_empty() && positions.len() <= 2);
                positions.iter().for_each(assert_whole);
            }
        }
        Ok(FromClient::Ack { channel, position }) => {
            assert!(!channel.is_empty());
            assert_whole(&position);
        }
        Ok(FromClient::New) | Err(_) => {}
    }
    let mut out = Vec::new();
    match to_client(input, &limits) {
        Ok(ToClient::Delivery(delivery, payload)) => {
            write_delivery(&delivery, &mut out);
            out.extend_from_slice(payload);
            // Escapes may be longer than what was read.
            assert_eq!(to_client(&out, &Limits::default()), Ok(ToClient::Delivery(delivery, payload)));
        }
        Ok(ToClient::Notice(notice)) => {
            write_notice(&notice, &mut out);
            assert_eq!(to_client(&out, &Limits::default()), Ok(ToClient::Notice(notice)));
        }
        Ok(ToClient::Payload(payload)) => assert_eq!([b"\n", payload].concat(), input),
        Err(_) => {}
    }
});

/// A position is its parts.
fn assert_whole(position: &Position) {
    let parts = Position::new(position.region(), position.epoch(), position.n(), position.entry());
    assert_eq!(parts.as_ref(), Ok(position));
}
