//! TLS to an upstream: by whom its certificate must be issued, and the one that we present. Verification is always on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::files::{self, Identity};
use super::reload::Source;
use super::{ALPN_HTTP1, KeyPair, Problem, provider};
use crate::policy::route::parse_authority;

/// The files of an upstream's TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The CAs that its certificate may be issued by; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// What we present; `None`: nothing.
    pub identity: Option<KeyPair>,
}

/// What is needed for connections to an upstream.
#[derive(Debug)]
pub struct Client {
    /// For connections of our own.
    pub config: Arc<ClientConfig>,
    /// The CAs, for connections that Pingora makes.
    pub authorities: Vec<CertificateDer<'static>>,
    /// What we present.
    pub identity: Option<Identity>,
}

impl Source for ClientFiles {
    type Loaded = Client;

    fn files(&self) -> Vec<&Path> {
        let pair = self.identity.iter().flat_map(|pair| [&*pair.cert_file, &*pair.key_file]);
        self.ca_file.as_deref().into_iter().chain(pair).collect()
    }

    fn load(&self) -> Result<Client, Vec<Problem>> {
        let provider = provider();
        let mut problems = Vec::new();
        let authorities = match &self.ca_file {
            Some(file) => files::authorities("ca_file", file),
            None => of_system(),
        };
        let authorities = authorities.map_err(|problem| problems.push(problem)).ok();
        let identity = self.identity.as_ref().map(|pair| files::identity("", pair, &provider));
        let identity = identity.transpose().map_err(|problem| problems.push(problem)).ok().flatten();
        let Some((authorities, store)) = authorities.filter(|_| problems.is_empty()) else { return Err(problems) };
        let broken = |error: tokio_rustls::rustls::Error| {
            vec![Problem { key: "ca_file".to_owned(), file: PathBuf::new(), why: error.to_string() }]
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_root_certificates(store);
        let mut config = match &identity {
            Some((identity, _)) => {
                builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()).map_err(broken)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
        Ok(Client { config: Arc::new(config), authorities, identity: identity.map(|(identity, _)| identity) })
    }
}

/// The name that the certificate of an endpoint must have: `sni`, or the endpoint's own.
pub fn server_name(sni: Option<&str>, endpoint: &str) -> Option<ServerName<'static>> {
    let own;
    let name = match sni {
        Some(sni) => sni,
        None if endpoint.starts_with("unix:") => return None,
        None => {
            own = parse_authority(endpoint).ok()?.host;
            &own
        }
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    ServerName::try_from(name.to_owned()).ok()
}

/// The CAs that the system trusts: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or where distributions have them. Those that
/// cannot be parsed are left out.
fn of_system() -> Result<(Vec<CertificateDer<'static>>, RootCertStore), Problem> {
    let mut store = RootCertStore::empty();
    let mut found = rustls_native_certs::load_native_certs().certs;
    found.retain(|certificate| store.add(certificate.clone()).is_ok());
    if found.is_empty() {
        let why = "the system has no CA certificates that could be read; name those of the upstream".to_owned();
        return Err(Problem { key: "ca_file".to_owned(), file: PathBuf::new(), why });
    }
    Ok((found, store))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::fixtures::Folder;

    #[test]
    fn each_part_is_optional_and_a_faulty_one_is_named() {
        let folder = Folder::new();
        let pair = folder.certificate("a", &["a.example"]);
        let sound = ClientFiles { ca_file: Some(folder.authority()), identity: Some(pair.clone()) };
        let client = sound.load().expect("sound");
        assert_eq!((client.authorities.len(), client.identity.is_some()), (1, true));
        assert_eq!(sound.files().len(), 3);
        let faulty = ClientFiles {
            ca_file: Some(folder.path("none.pem")),
            identity: Some(KeyPair { key_file: folder.authority(), ..pair }),
        };
        let keys: Vec<_> = faulty.load().expect_err("faulty").into_iter().map(|problem| problem.key).collect();
        assert_eq!(keys, ["ca_file", "key_file"]);
    }
}
