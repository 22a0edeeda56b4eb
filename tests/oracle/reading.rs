//! What an implementation made of a stream, and where two of them differ.

use std::fmt;

use sluicegate::ws::close::CloseCode;
use sluicegate::ws::error::ProtocolError;

/// The oracles reserve or count what a frame declares, so they need a limit here; the scanner leaves sizes to a policy.
/// No stream has a message of that size.
pub const ORACLE_MAX_BYTES: usize = 1 << 18;

/// How the bytes of a stream ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// No rule is broken so far, and more may come.
    Open,
    /// A Close frame, with this code if any.
    Closed(Option<CloseCode>),
    /// A rule is broken.
    Refused(Breach),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Breach {
    Ours(ProtocolError),
    /// An oracle's limit of a size.
    Capacity,
    /// Any other rule of an oracle's, in its words.
    Theirs(String),
}

/// What was delivered, with its payload: a message, a Ping or a Pong.
#[derive(Clone, PartialEq)]
pub enum Item {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

impl Item {
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Ping(_) | Self::Pong(_))
    }
}

/// Short, since a failure prints two readings; the stream is made again from its number.
impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (kind, payload) = match self {
            Self::Text(payload) => ("Text", payload),
            Self::Binary(payload) => ("Binary", payload),
            Self::Ping(payload) => ("Ping", payload),
            Self::Pong(payload) => ("Pong", payload),
        };
        write!(f, "{kind}({} bytes: {})", payload.len(), hex(payload))
    }
}

/// The first bytes, in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect()
}

/// What one implementation made of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub items: Vec<Item>,
    pub end: End,
}

impl Reading {
    /// Whether both deliver the same and end alike. Which of several broken rules is named first is nobody's business.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let ends = match (&self.end, &other.end) {
            (End::Refused(_), End::Refused(_)) => true,
            (end, other) => end == other,
        };
        ends && self.items == other.items
    }
}

/// A stream that the scanner and an oracle read differently.
pub struct Case<'a> {
    pub ours: &'a Reading,
    pub theirs: &'a Reading,
    pub stream: &'a [u8],
    /// Where the last frame begins that the scanner looked at.
    pub last_frame_at: usize,
}

impl Case<'_> {
    /// The bytes from the last frame on that the scanner looked at.
    pub fn last_frame(&self) -> &[u8] {
        &self.stream[self.last_frame_at..]
    }

    /// Whether the scanner refuses the stream for this rule.
    pub fn breaks(&self, rule: ProtocolError) -> bool {
        self.ours.end == End::Refused(Breach::Ours(rule))
    }
}

/// A difference that is understood, and how to tell that a case is that one.
pub struct Known {
    pub name: &'static str,
    pub is_this: fn(&Case) -> bool,
}
