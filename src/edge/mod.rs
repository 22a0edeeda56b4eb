//! Where connections come in and go out: heads, rules, handshakes, upstreams. Pingora lives here.
//!
//! A connection passes through [`service`], where its head is read and its rule found, and then either through
//! [`upgrade`] into a tunnel or through [`plain`] and Pingora's `HttpProxy`. One that speaks HTTP/2 goes through [`http2`]
//! first, and each of its streams then as such a request.

pub mod answer;
mod asked;
pub mod asking;
pub mod backplane;
pub mod body;
pub mod client;
pub mod engine_watch;
mod engines;
mod fixed;
pub mod forwarding;
pub mod gateway;
pub mod head;
pub mod http2;
pub mod http2_stream;
pub mod listener;
pub mod memory;
mod over_http;
pub mod plain;
pub mod proxy_protocol;
pub mod publish;
pub mod record;
pub mod request;
pub mod routed;
pub mod service;
pub mod socket;
pub mod sticky;
pub mod stream;
pub mod subprotocol;
pub mod tls_accept;
pub mod upgrade;
pub mod upstreams;
