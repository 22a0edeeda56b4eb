//! `tungstenite` in the server's role.

use std::io::{self, Cursor, Read, Write};

use sluicegate::ws::close::CloseCode;
use tokio_tungstenite::tungstenite;
use tungstenite::error::ProtocolError as Theirs;
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

use crate::known;
use crate::reading::{Breach, End, Item, Known, ORACLE_MAX_BYTES, Reading};

pub const KNOWN: &[Known] = &[
    Known { name: "takes a length that is not in its shortest form", is_this: known::takes_a_longer_length },
    Known {
        name: "takes a control frame's length that is not in its shortest form",
        is_this: known::takes_a_longer_length_in_control,
    },
    Known {
        name: "waits for the rest of a frame that is already wrong",
        is_this: known::waits_for_the_rest_of_a_frame,
    },
    Known {
        name: "turns a close code that must not be on the wire into 1002",
        is_this: known::turns_the_code_into_1002,
    },
    Known { name: "does not know close code 1014", is_this: known::does_not_know_1014 },
    Known { name: "is given a limit of a frame's size", is_this: known::has_a_limit_of_a_frame },
];

/// A connection whose peer sent `.0` and went away; what it is sent is dropped.
struct Sent<'a>(Cursor<&'a [u8]>);

impl Read for Sent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Sent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn read(stream: &[u8]) -> Reading {
    let config =
        WebSocketConfig::default().read_buffer_size(4096).max_message_size(None).max_frame_size(Some(ORACLE_MAX_BYTES));
    let mut socket = WebSocket::from_raw_socket(Sent(Cursor::new(stream)), Role::Server, Some(config));
    let mut items = Vec::new();
    let end = loop {
        match socket.read() {
            Ok(Message::Text(text)) => items.push(Item::Text(text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => items.push(Item::Binary(bytes.to_vec())),
            Ok(Message::Ping(bytes)) => items.push(Item::Ping(bytes.to_vec())),
            Ok(Message::Pong(bytes)) => items.push(Item::Pong(bytes.to_vec())),
            Ok(Message::Close(frame)) => break End::Closed(frame.map(|frame| CloseCode(frame.code.into()))),
            Ok(Message::Frame(_)) => unreachable!("tungstenite reads no raw frames"),
            Err(Error::Protocol(Theirs::ResetWithoutClosingHandshake)) => break End::Open,
            Err(Error::Capacity(_)) => break End::Refused(Breach::Capacity),
            Err(error @ (Error::Protocol(_) | Error::Utf8(_))) => {
                break End::Refused(Breach::Theirs(error.to_string()));
            }
            Err(error) => panic!("tungstenite fails otherwise than by a rule: {error}"),
        }
    };
    Reading { items, end }
}
