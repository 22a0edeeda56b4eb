//! TLS by rustls: what is read from files for listeners and upstreams, and how it is read again when they change.
//!
//! [`server`] is what a listener needs, [`client`] what an upstream needs, [`files`] reads certificates and keys, [`reload`]
//! keeps what is at work in step with the files, and [`failure`] says in words of ours why a handshake failed.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub mod client;
pub mod failure;
pub mod files;
pub mod reload;
pub mod server;

/// A protocol that is spoken over TLS. RFC 7301.
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// The other, which a listener may offer. RFC 9113 §3.2.
pub const ALPN_HTTP2: &[u8] = b"h2";

/// Pingora reads the CAs of the system when it starts, and panics where one cannot be read. What an upstream is verified
/// by is given to it with each connection, so it gets a file without any.
pub const NO_CA_FILE: &str = "/dev/null";

/// A certificate with those that vouch for it, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate and its intermediates, in PEM, its own first.
    pub cert_file: PathBuf,
    /// Its private key, in PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key_file: PathBuf,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct Problem {
    /// The key that names it, below the `tls` that it stands in: `certificates[0].key_file`.
    pub key: String,
    /// The file.
    pub file: PathBuf,
    /// Why it cannot be used. Nothing of a key is in it.
    pub why: String,
}

/// The cryptography: ring, which Pingora's rustls uses too.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
pub(crate) mod fixtures;
