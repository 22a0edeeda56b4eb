//! The WebSocket protocol (RFC 6455, RFC 7692) as pure functions and state machines.
//!
//! Nothing in this folder awaits, reads a clock, draws a random number, logs or counts. Bytes go in, values come out,
//! and each decoder has three answers: an item, "need more bytes", or the rule that was broken.
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

pub mod close;
pub mod deflate;
pub mod error;
pub mod extensions;
pub mod handshake;
pub mod header;
pub mod mask;
pub mod scan;
pub mod utf8;
