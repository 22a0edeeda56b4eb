//! Sluicegate: a WebSocket gateway that stands in front of any WebSocket backend and enforces its rules.
//!
//! The floors, from the bottom: [`ws`] (the protocol, without I/O), [`policy`] and [`cause`] (what is allowed, and why
//! a session ended) with [`grip`] (what backends that subscribe their clients say, without I/O), [`tunnel`], [`backplane`]
//! and [`metrics`] (the places that await), [`edge`], [`config`] and [`admin`] (sockets and HTTP, files, operators), and
//! [`app`], [`cli`] and [`tools`], which wire it together. A file imports only from its own
//! floor or from a lower one; `tests/tidy.rs` says so. ARCHITECTURE.md walks one connection from accept to close.

pub mod admin;
pub mod app;
pub mod backplane;
pub mod cause;
pub mod cli;
pub mod config;
pub mod edge;
pub mod events;
pub mod grip;
pub mod metrics;
pub mod policy;
pub mod tls;
pub mod tools;
pub mod tunnel;
pub mod ws;
