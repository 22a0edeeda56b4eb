//! What runs between the 101 and the end of a session: two byte streams, and the frames that pass between them.
//!
//! [`session`] is the one loop, `flow` what it does with the bytes of one side, `work` how much of it at once,
//! [`closing`] is how a session ends, [`outbox`] is what a socket has not taken yet, [`registry`] knows the live sessions
//! and can ask them to end, [`pressure`] whether memory is short, and [`sys`] asks the kernel.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::cause::Cause;
use crate::policy::keepalive::{self, TcpSnapshot};
use crate::policy::{message, slow_client};

pub mod closing;
mod core;
mod flow;
pub mod outbox;
pub mod pressure;
mod recode;
pub mod registry;
pub mod session;
mod side;
pub mod stats;
pub mod sys;
mod work;

/// A byte stream that a session runs on.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// What the kernel knows of the connection; `None` where it is not TCP.
    fn tcp_snapshot(&mut self) -> Option<TcpSnapshot> {
        None
    }

    /// The socket, where there is one.
    fn socket(&self) -> Option<RawFd> {
        None
    }

    /// Why the session has to end, where the stream knows.
    fn verdict(&self) -> Option<Verdict> {
        None
    }

    /// What waits behind the stream to be read for the session, where something does that is not the peer's own.
    fn backlog(&self) -> Option<Arc<dyn Backlog>> {
        None
    }

    /// Whether messages of an upstream's stream may be compressed for the client already, each by itself and within the
    /// window that was agreed on (RFC 7692 §7.2.3): they pass as they are. What its peer compresses is no such message: the
    /// stream must not let it through.
    fn deflates(&self) -> bool {
        false
    }

    /// What the client is to be told, in whole frames, before it is closed because the process ends.
    fn farewell(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Says that the stream ends without its session's being over, for who can tell that from an end in good order. It
    /// is shut down behind this.
    fn break_off(&mut self) {}
}

/// A queue in front of a session, which others look at too.
pub trait Backlog: std::fmt::Debug + Send + Sync {
    /// How full it is.
    fn depth(&self) -> Depth;
}

/// How full a queue in front of a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Since when there is more for the session than fits.
    pub behind_since: Option<Instant>,
}

/// Why a session has to end, as the stream of its upstream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client has fallen behind what this node keeps of one of its channels.
    Overrun,
    /// A message of the client's is longer than its backend can be sent.
    MessageTooBig {
        /// Its size so far.
        size_bytes: u64,
        /// The most that can be sent.
        limit_bytes: u64,
    },
    /// The client has broken the subprotocol that is the gateway's own, in this way.
    Subprotocol(&'static str),
}

impl Verdict {
    /// The cause that the session ends with.
    pub const fn cause(self) -> Cause {
        match self {
            Self::Overrun => Cause::Overrun,
            Self::MessageTooBig { size_bytes, limit_bytes } => Cause::MessageTooBig { size_bytes, limit_bytes },
            Self::Subprotocol(how) => Cause::ClientSubprotocol(how),
        }
    }
}

impl Wire for tokio::net::TcpStream {
    fn socket(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }

    fn tcp_snapshot(&mut self) -> Option<TcpSnapshot> {
        sys::tcp_snapshot(self)
    }
}

impl Wire for tokio::io::DuplexStream {}

/// Who compresses messages in a session. RFC 7692.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Nobody: permessage-deflate is not negotiated.
    #[default]
    Off,
    /// The client and the upstream. What the client sends is inflated to be judged, and passes as it came.
    Passthrough,
    /// The client and the gateway: the upstream sends and receives plain messages.
    Terminate {
        /// The window for what the client is sent, as it was agreed on: two to the power of this many bytes.
        window_bits: u8,
    },
}

impl Compression {
    /// Its name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Passthrough => "passthrough",
            Self::Terminate { .. } => "terminate",
        }
    }
}

/// The policies of a rule that its tunnels enforce.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sizes, fragments and rates.
    pub message: message::Settings,
    /// Pings; `None` sends none and never gives a silent side up.
    pub keepalive: Option<keepalive::Settings>,
    /// Closes a session in which neither peer sends anything of its own for so long.
    pub idle_timeout: Option<Duration>,
    /// Closes a client that reads too slowly.
    pub slow_client: Option<slow_client::Settings>,
    /// Bounds the closing handshake.
    pub close_timeout: Duration,
    /// Whether policies only count and log what they would close. Broken protocol is always closed, and so are dead
    /// peers.
    pub report_only: bool,
}
