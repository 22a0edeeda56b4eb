//! The fan-out backplane's engines: logs of channels that every node of a region shares, read by position.
//!
//! [`position`] and [`recover`] are pure: what a reader's place in a log is, and what can be proven of it later.
//! [`engine`] is the contract that an engine keeps; [`memory`], [`redis`], [`nats`] and [`rabbitmq`] keep it, and
//! `tests/engines` holds every engine to the same cases.
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

pub mod backend;
mod backoff;
pub mod channels;
pub mod client_frames;
pub mod engine;
pub mod hold;
pub mod hub;
pub mod link;
pub mod memory;
pub mod nats;
pub mod over_http;
pub mod position;
pub mod rabbitmq;
pub mod recover;
pub mod redis;
pub mod regions;
pub mod rendered;
pub mod resume;
mod said;
pub mod sink;
pub mod subscriber;
mod subscriptions;
pub mod upstream;
