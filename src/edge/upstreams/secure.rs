//! TLS to the endpoints of an upstream, for the connections that we make and for those that Pingora makes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config;
use crate::edge::socket::Socket;
use crate::tls::Problem;
use crate::tls::client::{Client, ClientFiles, server_name};
use crate::tls::reload::{Reloading, Source};

/// The files of an upstream's TLS, as both kinds of connection need them.
#[derive(Clone, Debug)]
pub struct SecureFiles(ClientFiles);

/// What its connections need.
pub struct Secure {
    client: Client,
    authorities: Arc<CaType>,
    identity: Option<Arc<CertKey>>,
    /// Parts the pooled connections of one reading of the files from those of another, and of other upstreams: what a
    /// connection was verified by is not in what Pingora tells them apart by.
    group: u64,
}

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secure").field("authorities", &self.authorities.len()).finish_non_exhaustive()
    }
}

impl Source for SecureFiles {
    type Loaded = Secure;

    fn files(&self) -> Vec<&Path> {
        self.0.files()
    }

    fn load(&self) -> Result<Secure, Vec<Problem>> {
        let client = self.0.load()?;
        // Pingora's own type panics where it cannot parse one.
        let readable = |bytes: &[u8]| X509Certificate::from_der(bytes).is_ok();
        let authorities = client.authorities.iter().filter(|authority| readable(authority));
        let authorities: Arc<CaType> =
            authorities.map(|authority| WrappedX509::new(authority.to_vec(), parse_x509)).collect();
        let identity = match (&client.identity, &self.0.identity) {
            (Some(identity), Some(pair)) if !identity.chain.iter().all(|certificate| readable(certificate)) => {
                let why = "one of its certificates cannot be parsed".to_owned();
                return Err(vec![Problem { key: "cert_file".to_owned(), file: pair.cert_file.clone(), why }]);
            }
            (Some(identity), _) => {
                let chain = identity.chain.iter().map(|certificate| certificate.to_vec()).collect();
                Some(Arc::new(CertKey::new(chain, identity.key.secret_der().to_vec())))
            }
            (None, _) => None,
        };
        Ok(Secure { client, authorities, identity, group: rand::random() })
    }
}

/// The TLS of an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Its files.
    pub files: Arc<Reloading<SecureFiles>>,
    sni: Option<String>,
}

impl UpstreamTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Every file that cannot be used.
    pub fn new(tls: &config::UpstreamTls) -> Result<Self, Vec<Problem>> {
        let files = Arc::new(Reloading::new(SecureFiles(tls.files.clone()))?);
        Ok(Self { files, sni: tls.sni.clone() })
    }

    /// The TLS of one endpoint.
    pub(super) fn of_endpoint(&self, address: &str) -> EndpointTls {
        EndpointTls { files: self.files.clone(), name: server_name(self.sni.as_deref(), address) }
    }
}

/// The TLS of an endpoint.
#[derive(Debug)]
pub struct EndpointTls {
    files: Arc<Reloading<SecureFiles>>,
    /// The name that its certificate must have.
    name: Option<ServerName<'static>>,
}

impl EndpointTls {
    /// Finishes the handshake on a connection.
    ///
    /// # Errors
    /// The certificate is not one that is trusted, or the handshake failed otherwise.
    pub(super) async fn connect(&self, socket: Socket) -> io::Result<Socket> {
        let Socket::Clear(transport) = socket else { return Ok(socket) };
        let Some(name) = self.name.clone() else { return Err(io::Error::other("the endpoint has no name")) };
        let connector = TlsConnector::from(self.files.current().client.config.clone());
        let stream = connector.connect(name, transport).await?;
        Ok(Socket::Tls(Box::new(stream.into())))
    }

    /// Has Pingora make its connections the same way.
    ///
    /// The name is always there: without one Pingora verifies nothing.
    pub fn prepare(&self, peer: &mut HttpPeer) -> io::Result<()> {
        let Some(name) = &self.name else { return Err(io::Error::other("the endpoint has no name")) };
        let secure = self.files.current();
        peer.sni = name.to_str().into_owned();
        peer.scheme = pingora::upstreams::peer::Scheme::HTTPS;
        peer.options.ca = Some(secure.authorities.clone());
        peer.client_cert_key = secure.identity.clone();
        peer.group_key = secure.group;
        Ok(())
    }
}
