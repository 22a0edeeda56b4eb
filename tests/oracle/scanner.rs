//! What the scanner makes of a stream.

use sluicegate::ws::close::parse_close;
use sluicegate::ws::header::{Opcode, Sender};
use sluicegate::ws::mask;
use sluicegate::ws::scan::{MessageType, Scanner, Step};

use crate::reading::{Breach, End, Item, Reading};

/// Reads a stream as the tunnel does: up to a Close frame, whose payload is parsed. Also says where the last frame is
/// that it looked at.
pub fn read(stream: &[u8]) -> (Reading, usize) {
    let mut scanner = Scanner::new(Sender::Client, true);
    let mut items = Vec::new();
    let (mut message, mut kind) = (Vec::new(), MessageType::Binary);
    let (mut key, mut frame_at, mut payload_at, mut at) = ([0; 4], 0, 0, 0);
    let deliver = |kind, message: &mut Vec<u8>| match kind {
        MessageType::Text => Item::Text(std::mem::take(message)),
        MessageType::Binary => Item::Binary(std::mem::take(message)),
    };
    let end = loop {
        if scanner.at_frame_boundary() {
            frame_at = at;
        }
        match scanner.next(&stream[at..]) {
            Ok(Step::NeedMore) => break End::Open,
            Ok(Step::Header { header, len, message: seen }) => {
                at += len;
                (key, payload_at, kind) = (header.mask.expect("a client's frame is masked"), at, seen.kind);
                if header.payload_bytes == 0 && header.fin {
                    items.push(deliver(kind, &mut message));
                }
            }
            Ok(Step::Payload { len, ends_message, .. }) => {
                let start = message.len();
                message.extend_from_slice(&stream[at..at + len]);
                mask::apply(&mut message[start..], key, (at - payload_at) as u64);
                at += len;
                if let Some(ended) = ends_message {
                    assert_eq!(ended.kind, kind);
                    items.push(deliver(kind, &mut message));
                }
            }
            Ok(Step::Control { header, header_len }) => {
                let end = at + header_len + header.payload_bytes as usize;
                let mut payload = stream[at + header_len..end].to_vec();
                mask::apply(&mut payload, header.mask.expect("a client's frame is masked"), 0);
                match header.opcode {
                    Opcode::Ping => items.push(Item::Ping(payload)),
                    Opcode::Pong => items.push(Item::Pong(payload)),
                    _ => match parse_close(&payload) {
                        Ok(code) => break End::Closed(code),
                        Err(rule) => break End::Refused(Breach::Ours(rule)),
                    },
                }
                at = end;
            }
            Err(rule) => break End::Refused(Breach::Ours(rule)),
        }
    };
    (Reading { items, end }, frame_at)
}
