//! What TLS takes: a handshake of a server, and a byte.

use std::sync::Arc;

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::Result;
use super::machine::{micros_since, thread_cpu};

const HANDSHAKES: usize = 300;
const RECORDS: usize = 5_000;
const RECORD_BYTES: usize = 16 << 10;

/// CPU µs of the server for a full handshake.
pub fn handshake() -> Result<f64> {
    let own = rcgen::generate_simple_self_signed(["app.example.com".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let provider = Arc::new(default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let server = Arc::new(server.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key)?);
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone())?;
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let mut micros = 0.0;
    for _ in 0..HANDSHAKES {
        // Without what was kept of the last one.
        let mut fresh = client.clone();
        fresh.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        let mut client = ClientConnection::new(Arc::new(fresh), ServerName::try_from("app.example.com")?.to_owned())?;
        let at = thread_cpu();
        let mut server = ServerConnection::new(server.clone())?;
        micros += micros_since(at);
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire)?;
            }
            let (at, mut input, mut answer) = (thread_cpu(), wire.as_slice(), Vec::new());
            while !input.is_empty() {
                server.read_tls(&mut input)?;
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut answer)?;
            }
            micros += micros_since(at);
            let mut input = answer.as_slice();
            while !input.is_empty() {
                client.read_tls(&mut input)?;
                client.process_new_packets()?;
            }
        }
    }
    Ok(micros / HANDSHAKES as f64)
}

/// CPU µs for each byte that is encrypted.
pub fn byte() -> Result<f64> {
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(|_| "the key has the cipher's length")?;
    let key = LessSafeKey::new(key);
    let (mut record, start) = (vec![0; RECORD_BYTES], thread_cpu());
    for nth in 0..RECORDS {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&nth.to_le_bytes());
        // The tag is of no use here.
        let _tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)
            .map_err(|_| "a record can be encrypted")?;
    }
    Ok(micros_since(start) / (RECORDS * RECORD_BYTES) as f64)
}
