//! The TLS handshake of a client, between accept and its first head: within the same deadline as that head.
//!
//! What comes is looked at before TLS is, so that a request in the clear gets an answer that it can read. A client that
//! does not finish holds what TLS keeps of a handshake, at most 64 KiB, until the deadline. RFC 8446, RFC 5246.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::HeaderValue;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};

use super::head::read_some;
use super::socket::{Socket, Transport};
use crate::tls::failure;
use crate::ws::handshake::is_token;

/// What a record of a handshake begins with. RFC 8446 §5.1.
const HANDSHAKE_RECORD: u8 = 22;

/// A client behind its handshake.
pub struct Accepted {
    /// Its connection.
    pub io: Socket,
    /// Who it is by its certificate, as `Client-Cert` says it. RFC 9440 §2.1.
    pub identity: Option<HeaderValue>,
}

/// Why there was no handshake.
pub enum NoTls {
    /// The connection ended before a byte, as that of a simple health check: nobody is told.
    Quiet,
    /// A request in the clear, and its connection, on which it can be answered.
    Cleartext(Socket),
    /// Nobody is answered. The log says this.
    Failed(&'static str),
}

/// Finishes a client's handshake by `deadline`. `read` is what was read of its connection already.
///
/// # Errors
/// See [`NoTls`].
pub async fn accept(
    mut io: Socket,
    read: Bytes,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<Accepted, NoTls> {
    let mut first = BytesMut::from(read);
    if first.is_empty() {
        match timeout_at(deadline, read_some(&mut io, &mut first)).await {
            Ok(Ok(0) | Err(_)) => return Err(NoTls::Quiet),
            Ok(Ok(_)) => {}
            Err(_) => return Err(NoTls::Failed(LATE)),
        }
    }
    match first.first() {
        Some(&HANDSHAKE_RECORD) => {}
        Some(byte) if is_token(&[*byte]) => return Err(NoTls::Cleartext(io)),
        _ => return Err(NoTls::Failed("what the peer sent is no TLS")),
    }
    let Socket::Clear(transport) = io else { return Err(NoTls::Failed("the connection has TLS already")) };
    finish(transport, &first, config, deadline).await.map_err(NoTls::Failed)
}

const LATE: &str = "the TLS handshake was not complete in time";

async fn finish(
    transport: Transport,
    first: &[u8],
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<Accepted, &'static str> {
    let mut fed = Ok(());
    let handshake = TlsAcceptor::from(config).accept_with(transport, |connection| fed = feed(connection, first));
    let reason = |error: &io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "the peer went away during the TLS handshake",
        _ => failure::reason(error).unwrap_or("the connection broke during the TLS handshake"),
    };
    if let Err(error) = fed {
        // One poll sends the alert that says so.
        drop(handshake.now_or_never());
        return Err(reason(&error));
    }
    match timeout_at(deadline, handshake).await {
        Err(_) => Err(LATE),
        Ok(Err(error)) => Err(reason(&error)),
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let identity = certificates.and_then(|chain| chain.first()).and_then(client_cert);
            Ok(Accepted { io: Socket::Tls(Box::new(stream.into())), identity })
        }
    }
}

/// Gives TLS what was read before it began.
fn feed(connection: &mut ServerConnection, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes)?;
        connection.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
    Ok(())
}

/// A certificate as a byte sequence of structured fields. RFC 9440 §2.1, RFC 9651 §3.3.5.
fn client_cert(certificate: &CertificateDer<'_>) -> Option<HeaderValue> {
    HeaderValue::try_from(format!(":{}:", STANDARD.encode(certificate))).ok()
}
