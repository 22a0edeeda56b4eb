//! What a published item is for each kind of client, made once for all of a node.

use std::sync::OnceLock;

use bytes::Bytes;

use super::engine::{Channel, LOST};
use super::position::Position;
use crate::grip::Kind;
use crate::grip::events::close_status;
use crate::grip::item::{Formats, HttpResponse, HttpStream, Item, WsMessage};
use crate::grip::meta::Meta;
use crate::grip::resume::{Delivery, PAYLOAD_LINE, write_delivery};
use crate::ws::close::{CloseCode, MAX_REASON_BYTES};
use crate::ws::deflate::{Deflater, MIN_DEFLATED_BYTES};
use crate::ws::header::{ControlFrame, DataHeader, FrameHeader, Opcode};

/// An item, read and framed.
#[derive(Debug)]
pub struct Rendered {
    /// What filters read.
    pub meta: Meta,
    /// The id that its publisher gave it; empty for none.
    pub id: String,
    /// What WebSocket clients are sent.
    pub message: Message,
    /// What plain requests get that are held as a stream.
    pub http_stream: Option<HttpStream>,
    /// What plain requests get that wait for a response.
    pub http_response: Option<HttpResponse>,
    /// The whole frame for those who can resume behind it, made for the first of them.
    resumable: OnceLock<Bytes>,
}

/// What a WebSocket client gets of an item.
#[derive(Debug)]
pub enum Message {
    /// A message.
    Send {
        /// Its type.
        kind: Kind,
        /// Its content.
        content: Bytes,
        /// The whole frame, for those for whom the content is not changed.
        frame: Bytes,
        /// The filters that a subscriber needs to have; `None` for any.
        content_filters: Option<Vec<String>>,
    },
    /// A Close frame, whole.
    Close(Bytes),
    /// No frame: a backend over HTTP is to be asked at once.
    Refresh,
    /// No frame: entries before it are lost.
    Lost,
    /// Nothing: it has no form for WebSocket clients, or is not for them.
    Nothing,
}

impl Rendered {
    /// Reads what an engine stored. `None` if it is no item.
    pub fn of(payload: &Bytes) -> Option<Self> {
        if payload == LOST {
            let (meta, resumable) = (Meta::default(), OnceLock::new());
            let (http_stream, http_response) = (Some(HttpStream::Hint), Some(HttpResponse::Hint));
            let (id, message) = (String::new(), Message::Lost);
            return Some(Self { meta, id, message, http_stream, http_response, resumable });
        }
        let item = Item::decode(payload).ok()?;
        let Formats { ws_message, http_stream, http_response } = item.formats;
        let message = match ws_message {
            Some(WsMessage::Send { kind, content, content_filters }) => {
                Message::Send { kind, frame: frame(kind, &content).into(), content, content_filters }
            }
            Some(WsMessage::Close { code, reason }) => Message::Close(close_frame(code.map(CloseCode), &reason).into()),
            Some(WsMessage::Refresh) => Message::Refresh,
            Some(WsMessage::Hint) | None => Message::Nothing,
        };
        let resumable = OnceLock::new();
        Some(Self { meta: item.meta, id: item.id.unwrap_or_default(), message, http_stream, http_response, resumable })
    }

    /// The frame of a message for clients who can resume behind it: a line with its position, then its content. The same
    /// for all of them, so this keeps what it is asked for first.
    pub fn resumable(&self, kind: Kind, content: &[u8], channel: &Channel, position: &Position) -> &Bytes {
        self.resumable.get_or_init(|| self.with_line(kind, content, channel, position).into())
    }

    /// The same of a content that was changed for one client.
    pub fn with_line(&self, kind: Kind, content: &[u8], channel: &Channel, position: &Position) -> Vec<u8> {
        frame(kind, &lined(content, (channel, position, &self.id)))
    }
}

/// A whole message for a client who can resume: behind a line with the channel, the position, and the id that its
/// publisher gave it, empty for none.
pub fn lined(content: &[u8], (channel, position, id): (&Channel, &Position, &str)) -> Vec<u8> {
    let mut message = Vec::new();
    let delivery = Delivery {
        channel: channel.as_str().into(),
        position: position.to_string().into(),
        id: (!id.is_empty()).then_some(id.into()),
        stored_ms: Some(position.id.ms),
    };
    write_delivery(&delivery, &mut message);
    message.extend_from_slice(content);
    message
}

/// An unmasked frame with a whole message, compressed by itself within the largest window unless it is small. RFC 7692
/// §7.2.1. It is for every client that has that window and was promised `server_no_context_takeover`.
pub fn deflated_frame(kind: Kind, content: &[u8]) -> Vec<u8> {
    if kind.opcode().is_control() || (content.len() as u64) < MIN_DEFLATED_BYTES {
        return frame(kind, content);
    }
    let mut deflated = Vec::new();
    Deflater::new().feed(content, true, &mut deflated);
    let (opcode, payload_bytes) = (kind.opcode(), deflated.len() as u64);
    let header = FrameHeader { fin: true, rsv1: true, opcode, mask: None, payload_bytes };
    [DataHeader::new(&header).as_bytes(), &deflated].concat()
}

/// An unmasked frame with a whole message. RFC 6455 §5.2.
pub fn frame(kind: Kind, content: &[u8]) -> Vec<u8> {
    let opcode = kind.opcode();
    if opcode.is_control() {
        return ControlFrame::new(opcode, content, None).as_bytes().to_vec();
    }
    let header = FrameHeader { fin: true, rsv1: false, opcode, mask: None, payload_bytes: content.len() as u64 };
    [DataHeader::new(&header).as_bytes(), content].concat()
}

/// An unmasked frame with a whole message that is no channel's, for a client who can resume: behind an empty line.
pub fn payload_frame(kind: Kind, content: &[u8]) -> Vec<u8> {
    if kind.opcode().is_control() { frame(kind, content) } else { frame(kind, &[PAYLOAD_LINE, content].concat()) }
}

/// An unmasked Close frame; without a code where that must not be on the wire. RFC 6455 §5.5.1, §7.4.
pub fn close_frame(code: Option<CloseCode>, reason: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some(code) = code.filter(|code| code.is_valid_on_wire()) {
        payload.extend(code.0.to_be_bytes());
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        payload.extend(reason.as_bytes().get(..end).unwrap_or_default());
    }
    ControlFrame::new(Opcode::Close, &payload, None).as_bytes().to_vec()
}

/// The Close frame that says what the content of a CLOSE event, or of a Close frame, says.
pub fn close_frame_of(content: &[u8]) -> Vec<u8> {
    match close_status(content) {
        Some((code, reason)) => close_frame(Some(code), reason),
        None => close_frame(None, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_and_reasons_are_cut_between_characters() {
        assert_eq!(frame(Kind::Text, b"hi"), b"\x81\x02hi");
        assert_eq!(frame(Kind::Binary, &[7; 200])[..4], [0x82, 126, 0, 200]);
        assert_eq!(frame(Kind::Ping, b"p"), b"\x89\x01p");
        assert_eq!(close_frame(None, "lost"), b"\x88\x00");
        assert_eq!(close_frame(Some(CloseCode(0)), "lost"), b"\x88\x00");
        assert_eq!(close_frame(Some(CloseCode(4001)), "bye"), b"\x88\x05\x0f\xa1bye");
        let long = close_frame(Some(CloseCode(4001)), &"ü".repeat(100));
        assert_eq!((long.len(), long[1]), (2 + 2 + 122, 124));
        assert!(std::str::from_utf8(&long[4..]).is_ok());
    }

    #[test]
    fn what_is_no_item_is_nothing() {
        assert!(Rendered::of(&Bytes::from_static(b"\xffjunk")).is_none());
    }
}
