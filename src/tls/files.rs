//! Certificates and keys from PEM files. RFC 7468.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::{KeyPair, Problem};

/// The most bytes of a file. The CA bundles of systems have 200 KB.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A certificate chain and its key, which belong together.
#[derive(Debug)]
pub struct Identity {
    /// The chain, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

/// Reads a whole file.
///
/// # Errors
/// Why not, for the end of a sentence.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened = File::open(file).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    match opened {
        Ok(len) if len as u64 > MAX_FILE_BYTES => Err("it is larger than 1 MiB".to_owned()),
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads the certificates of a file, at least one.
///
/// # Errors
/// The file cannot be read, is no PEM, or has no certificate.
pub fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let problem = |why: String| Problem { key: key.to_owned(), file: file.to_owned(), why };
    let bytes = read(file).map_err(problem)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(problem("it has no certificate in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(_) => Err(problem("it is malformed PEM".to_owned())),
    }
}

/// Reads the CAs of a file, each of which must be one that certificates can be verified by.
///
/// # Errors
/// As [`certificates`], and a certificate that cannot be parsed.
pub fn authorities(key: &str, file: &Path) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), Problem> {
    let found = certificates(key, file)?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in found.iter().enumerate() {
        store.add(certificate.clone()).map_err(|_| Problem {
            key: key.to_owned(),
            file: file.to_owned(),
            why: format!("its certificate number {} cannot be parsed", index + 1),
        })?;
    }
    Ok((found, store))
}

/// Reads a certificate and its key, which must belong together. `key` is where the pair stands.
///
/// # Errors
/// A file that cannot be read or used, and a key of another certificate.
pub fn identity(key: &str, pair: &KeyPair, provider: &CryptoProvider) -> Result<(Identity, CertifiedKey), Problem> {
    let dot = if key.is_empty() { "" } else { "." };
    let chain = certificates(&format!("{key}{dot}cert_file"), &pair.cert_file)?;
    let problem = |name: &str, file: &Path, why: &str| Problem {
        key: format!("{key}{dot}{name}"),
        file: file.to_owned(),
        why: why.to_owned(),
    };
    if webpki::EndEntityCert::try_from(&chain[0]).is_err() {
        let why = "its first certificate cannot be parsed as one of X.509 version 3";
        return Err(problem("cert_file", &pair.cert_file, why));
    }
    let of_key = |why: &str| problem("key_file", &pair.key_file, why);
    let bytes = read(&pair.key_file).map_err(|why| of_key(&why))?;
    let private = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| of_key("it has no private key in PEM, or one with a password"))?;
    let signing = provider
        .key_provider
        .load_private_key(private.clone_key())
        .map_err(|_| of_key("its key is malformed, or of a kind that is not used in TLS"))?;
    let certified = CertifiedKey::new(chain.clone(), signing);
    certified.keys_match().map_err(|_| of_key("it is not the key of the certificate beside it"))?;
    Ok((Identity { chain, key: private }, certified))
}
