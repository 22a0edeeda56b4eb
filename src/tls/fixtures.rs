//! Certificates for tests, made where they are used.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as Key};

use super::KeyPair;

/// A folder with a CA of its own.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, Key>,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, Key::generate().expect("a key")).expect("a CA");
        Self { folder: tempfile::tempdir().expect("a folder"), issuer }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file in it.
    pub(crate) fn file(&self, name: impl AsRef<Path>, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A certificate for these names, and its key.
    pub(crate) fn certificate(&self, name: &str, names: &[&str]) -> KeyPair {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = Key::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        KeyPair {
            cert_file: self.file(format!("{name}.crt"), &certificate.pem()),
            key_file: self.file(format!("{name}.key"), &key.serialize_pem()),
        }
    }

    /// The CA's certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.file("ca.crt", &self.issuer.pem())
    }
}
