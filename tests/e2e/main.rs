//! The real binary from outside: raw clients and backends on free ports, and what the gateway answers, logs and counts.
//!
//! A test never sleeps to let something happen: it waits for a log line, a metric or bytes, until a deadline that only
//! a broken gateway reaches.

mod admin;
mod commands;
mod compression;
mod endpoints;
mod features;
mod forwarding;
mod heads;
mod http2;
mod http2_connection;
mod limits;
mod memory;
mod plain;
mod proxy_protocol;
mod refusals;
mod shutdown;
mod support;
mod tls;
mod unix;
mod upgrade;
mod upstream_tls;
