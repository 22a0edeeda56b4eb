//! What is allowed: one small pure type per file.
//!
//! A policy decides and never acts: it does not send, close, log or count, and time is an argument. What must happen
//! later is a deadline that the caller can ask for. A policy that is off is an `Option::None` at its owner.
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

pub mod client_address;
pub mod clients;
pub mod connection_limit;
pub mod gcra;
pub mod handshake_limit;
pub mod headers;
pub mod keepalive;
pub mod memory_limit;
pub mod message;
pub mod origin;
pub mod range;
pub mod reconnects;
pub mod redirect;
pub mod rewrite;
pub mod route;
pub mod slow_client;
pub mod stickiness;
pub mod token;

/// A setting that a policy's constructor does not accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key below the policy's own, such as `timeout`, or `allow[2]`; empty for the policy as a whole.
    pub key: String,
    /// What was found, as the user wrote it or nearly so.
    pub found: String,
    /// What is allowed, as half a sentence: `a duration from "1s" to "10m"`.
    pub allowed: String,
}

impl Fault {
    /// A fault of one key.
    pub fn new(key: impl Into<String>, found: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self { key: key.into(), found: found.into(), allowed: allowed.into() }
    }
}
