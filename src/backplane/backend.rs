//! A backend that is asked over HTTP: with what a client sent, or for what it has missed.
//!
//! What speaks GRIP over it says what to ask and reads the answers. How a request reaches an endpoint, with which headers
//! of the client's and with which signature, is what an implementation knows.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::HeaderMap;

use crate::grip::meta::Meta;
use crate::grip::retry::Failure;

/// A question, as it is asked once.
#[derive(Clone, Debug)]
pub enum Question {
    /// A POST with events, to where the client's handshake went.
    Events {
        /// The events.
        body: Bytes,
        /// How many bytes of their contents were sent before: `Content-Bytes-Replayed`.
        replayed_bytes: usize,
        /// What the backend had kept: `Meta-Name`.
        meta: Meta,
    },
    /// A GET for what a client has missed of a channel.
    Link {
        /// A path and a query, below the backend's own origin.
        target: String,
        /// The channel and the last id that the client has of it: `Grip-Last`.
        last: (String, String),
        /// What the backend had kept.
        meta: Meta,
    },
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers, without those of one hop.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No endpoint took a connection. The reason is for the log; `None` for one that is of no use there.
    #[error("no endpoint could be connected to")]
    Unreachable(Option<&'static str>),
    /// No endpoint took a connection in time.
    #[error("no endpoint took a connection in time")]
    ConnectTimeout,
    /// The connection broke.
    #[error("the connection broke before the answer was whole")]
    Broken {
        /// Whether the whole request was given to it.
        sent_whole: bool,
    },
    /// No answer came in time.
    #[error("no answer in time")]
    Timeout {
        /// Whether the whole request was given to the connection.
        sent_whole: bool,
    },
    /// The answer is no HTTP, or its body is longer than allowed.
    #[error("the answer is malformed or too long")]
    Malformed,
}

impl AskError {
    /// As the rules of when a request is made again see it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Unreachable(_) | Self::ConnectTimeout => Failure::Connect,
            Self::Broken { sent_whole } | Self::Timeout { sent_whole } => Failure::Broken { sent_whole: *sent_whole },
            Self::Malformed => Failure::Broken { sent_whole: true },
        }
    }
}

/// A question under way. Dropping it breaks the request off.
pub type Asking = Pin<Box<dyn Future<Output = Result<Reply, AskError>> + Send>>;

/// Asks the backend of one client.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Asks once; a request that fails is not made again.
    ///
    /// A refusal of an opening and all other answers are read whole, within the bounds of [`crate::grip::Limits`].
    fn ask(&self, question: Question) -> Asking;
}
