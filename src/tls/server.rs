//! TLS of a listener: its certificates by the name that a client asks for, and which clients must have one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring::Ticketer;
use tokio_rustls::rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::reload::Source;
use super::{ALPN_HTTP1, ALPN_HTTP2, KeyPair, Problem, files, provider};

/// The files and settings of a listener's TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// At least one. The first is for clients that ask for a name that none has, or for none.
    pub certificates: Vec<KeyPair>,
    /// Whose certificates clients present; `None` asks for none.
    pub client_auth: Option<ClientAuth>,
    /// The oldest version of TLS.
    pub min_version: MinVersion,
    /// Whether HTTP/2 is offered, before HTTP/1.1.
    pub http2: bool,
}

/// Which clients are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// The CAs that have issued their certificates.
    pub ca_file: PathBuf,
    /// Whether a client without one is served.
    pub optional: bool,
}

/// The oldest version of TLS that is spoken. RFC 8996 ends those before 1.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// RFC 5246.
    #[default]
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Source for ServerFiles {
    type Loaded = ServerConfig;

    fn files(&self) -> Vec<&Path> {
        let pairs = self.certificates.iter().flat_map(|pair| [&*pair.cert_file, &*pair.key_file]);
        pairs.chain(self.client_auth.as_ref().map(|auth| &*auth.ca_file)).collect()
    }

    fn load(&self) -> Result<Self::Loaded, Vec<Problem>> {
        let provider = provider();
        let mut problems = Vec::new();
        let mut certified = Vec::with_capacity(self.certificates.len());
        for (index, pair) in self.certificates.iter().enumerate() {
            match files::identity(&format!("certificates[{index}]"), pair, &provider) {
                Ok((_, key)) => certified.push(Arc::new(key)),
                Err(problem) => problems.push(problem),
            }
        }
        let verifier = match self.client_auth.as_ref().map(ClientAuth::verifier) {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(Ok(verifier)) => verifier,
            Some(Err(problem)) => {
                problems.push(problem);
                WebPkiClientVerifier::no_client_auth()
            }
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let versions = match self.min_version {
            MinVersion::Tls12 => &[&TLS13, &TLS12][..],
            MinVersion::Tls13 => &[&TLS13],
        };
        let broken = |error: tokio_rustls::rustls::Error| {
            vec![Problem { key: String::new(), file: PathBuf::new(), why: error.to_string() }]
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(broken)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(ByName::new(certified)));
        config.alpn_protocols = match self.http2 {
            true => vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()],
            false => vec![ALPN_HTTP1.to_vec()],
        };
        // What is resumed is in the ticket, sealed with a key that changes every 6 h: nothing is kept for a client that
        // is gone. Early data stays off: whoever hears it could play it again (RFC 8446 §8).
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(broken)?;
        Ok(config)
    }
}

impl ClientAuth {
    fn verifier(&self) -> Result<Arc<dyn tokio_rustls::rustls::server::danger::ClientCertVerifier>, Problem> {
        let (_, store) = files::authorities("client_ca_file", &self.ca_file)?;
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider());
        let builder = if self.optional { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(|error| Problem {
            key: "client_ca_file".to_owned(),
            file: self.ca_file.clone(),
            why: error.to_string(),
        })
    }
}

/// Certificates by the names in them. RFC 6066 §3, RFC 6125.
#[derive(Debug)]
struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what stands behind `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl ByName {
    /// Of several with the same name the first has it.
    fn new(certified: Vec<Arc<CertifiedKey>>) -> Self {
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for key in &certified {
            let Some(Ok(certificate)) = key.cert.first().map(webpki::EndEntityCert::try_from) else { continue };
            for name in certificate.valid_dns_names() {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_insert_with(|| key.clone()),
                    None => exact.entry(name).or_insert_with(|| key.clone()),
                };
            }
        }
        Self { exact, wildcard, first: certified.into_iter().next() }
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        self.exact.get(&name).or_else(|| self.wildcard.get(parent))
    }
}

impl ResolvesServerCert for ByName {
    /// A name that no certificate has gets the first as well: which hosts are served, `hosts` says by 421.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.server_name().and_then(|name| self.find(name)).or(self.first.as_ref()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::fixtures::Folder;

    fn server(certificates: Vec<KeyPair>) -> ServerFiles {
        ServerFiles { certificates, client_auth: None, min_version: MinVersion::Tls12, http2: true }
    }

    #[test]
    fn a_certificate_is_found_by_its_names_exact_before_wildcard_and_the_first_before_later_ones() {
        let folder = Folder::new();
        let names = [&["a.example", "*.b.example"][..], &["x.b.example", "a.example"], &["*.a.example"]];
        let certified: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(index, names)| {
                let pair = folder.certificate(&format!("{index}"), names);
                Arc::new(files::identity("", &pair, &provider()).expect("sound").1)
            })
            .collect();
        let by_name = ByName::new(certified.clone());
        for (name, index) in [
            ("a.example", Some(0)),
            ("A.Example", Some(0)),
            ("y.b.example", Some(0)),
            ("x.b.example", Some(1)),
            ("x.a.example", Some(2)),
            ("x.y.b.example", None),
            ("b.example", None),
            ("other.example", None),
        ] {
            let expected = index.map(|index: usize| &certified[index]);
            assert!(by_name.find(name).map(Arc::as_ptr) == expected.map(Arc::as_ptr), "{name}");
        }
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named() {
        let folder = Folder::new();
        let (sound, other) = (folder.certificate("a", &["a.example"]), folder.certificate("b", &["b.example"]));
        let empty = folder.file("empty.pem", "");
        let pair = |cert_file: &Path, key_file: &Path| KeyPair {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
        };
        let mut files = server(vec![
            sound.clone(),
            pair(&sound.cert_file, &other.key_file),
            pair(&folder.path("none.pem"), &sound.key_file),
            pair(&sound.key_file, &sound.key_file),
            pair(&sound.cert_file, &empty),
        ]);
        files.client_auth = Some(ClientAuth { ca_file: empty, optional: false });
        let problems = files.load().map(|_| ()).expect_err("most of it is faulty");
        let told: Vec<_> = problems.iter().map(|problem| (problem.key.as_str(), problem.why.as_str())).collect();
        for (told, (key, why)) in told.iter().zip([
            ("certificates[1].key_file", "not the key of"),
            ("certificates[2].cert_file", "No such file"),
            ("certificates[3].cert_file", "no certificate"),
            ("certificates[4].key_file", "no private key"),
            ("client_ca_file", "no certificate"),
        ]) {
            assert!(told.0 == key && told.1.contains(why), "{told:?}");
        }
        assert_eq!(told.len(), 5, "{told:?}");
        assert_eq!(server(vec![sound]).load().expect("sound").alpn_protocols, [ALPN_HTTP2, ALPN_HTTP1]);
    }
}
