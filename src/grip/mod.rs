//! GRIP, the protocol between a gateway and a backend that subscribes its clients to channels, as pure functions.
//!
//! A backend opts in and says over its own connection what each client is subscribed to ([`extension`], [`control`],
//! [`filter`]), or holds no connection and is asked by HTTP ([`events`], [`headers`], [`instruct`]). Who may publishes
//! items to channels ([`publish`], [`item`]), which reach subscribers through their [`filters`]. [`signature`] proves the
//! gateway to the backend and publishers to the gateway, and [`resume`] is the framing by which a client says what it has.
//!
//! Nothing in this folder awaits, reads a clock, draws a random number, logs or counts: time, ids and randomness are
//! arguments. Each parser is bounded by [`Limits`]; what it refuses is an error value, of which the caller says so.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod batch;
pub mod control;
pub mod events;
pub mod extension;
pub mod filter;
pub mod filters;
pub mod headers;
pub mod instruct;
pub mod item;
mod json;
mod limits;
pub mod meta;
mod parameters;
pub mod position;
pub mod publish;
pub mod resume;
pub mod retry;
pub mod signature;

pub use json::FormatError;
pub use limits::Limits;

use crate::ws::header::Opcode;

/// The types of WebSocket messages that a backend and a publisher can have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Text, which is UTF-8.
    Text,
    /// Binary.
    Binary,
    /// A Ping, of at most 125 bytes.
    Ping,
    /// A Pong, of at most 125 bytes.
    Pong,
}

impl Kind {
    /// The opcode of its frame. RFC 6455 §5.2.
    pub const fn opcode(self) -> Opcode {
        match self {
            Self::Text => Opcode::Text,
            Self::Binary => Opcode::Binary,
            Self::Ping => Opcode::Ping,
            Self::Pong => Opcode::Pong,
        }
    }

    /// Reads `text`, `binary`, `ping` or `pong`, as GRIP writes them in JSON.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "text" => Self::Text,
            "binary" => Self::Binary,
            "ping" => Self::Ping,
            "pong" => Self::Pong,
            _ => return None,
        })
    }

    /// Whether `content` may be in one message of this type: text is UTF-8 (RFC 6455 §8.1), a control frame has at most
    /// 125 bytes (§5.5).
    pub fn allows(self, content: &[u8]) -> bool {
        match self {
            Self::Text => simdutf8::basic::from_utf8(content).is_ok(),
            Self::Binary => true,
            Self::Ping | Self::Pong => content.len() <= crate::ws::header::MAX_CONTROL_PAYLOAD_BYTES,
        }
    }
}
