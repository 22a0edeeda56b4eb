//! The commands that are programs of their own.

pub mod demo;
pub mod host;
