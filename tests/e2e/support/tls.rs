//! A CA of the test's own, its certificates as files, and clients and backends under TLS.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

use super::backend::Connection;
use super::link::Link;
use super::{Backend, Client, DEADLINE};

/// A CA, and a folder with its certificates.
pub struct Pki {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// How a client speaks TLS.
#[derive(Clone, Copy, Default)]
pub struct Speaks<'a> {
    /// The name of the certificate that it presents.
    pub identity: Option<&'a str>,
    /// Only this version.
    pub only: Option<&'static SupportedProtocolVersion>,
    /// The protocols that it offers.
    pub alpn: &'a [&'a str],
}

impl Pki {
    /// A new CA.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let this = Self { folder: tempfile::tempdir().expect("a folder"), issuer };
        std::fs::write(this.path("ca.crt"), this.issuer.pem()).expect("written");
        this
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The CA's certificate.
    pub fn ca(&self) -> String {
        self.path("ca.crt").display().to_string()
    }

    /// Writes `NAME.crt` and `NAME.key` for these host names.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> &Self {
        self.issue_to(self.folder.path(), name, hosts)
    }

    /// The same, into another folder.
    pub fn issue_to(&self, folder: &Path, name: &str, hosts: &[&str]) -> &Self {
        let key = KeyPair::generate().expect("a key");
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(folder.join(format!("{name}.crt")), certificate.pem()).expect("written");
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("written");
        self
    }

    /// A certificate of the folder, in DER.
    pub fn der(&self, name: &str) -> Vec<u8> {
        self.chain(name)[0].to_vec()
    }

    /// `cert_file` and `key_file` of a certificate of the folder, as they stand in a configuration.
    pub fn files(&self, name: &str) -> String {
        let (cert, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        format!("cert_file: \"{}\", key_file: \"{}\"", cert.display(), key.display())
    }

    /// The `tls` of a listener with these certificates of the folder.
    pub fn listener(&self, names: &[&str]) -> String {
        let files: Vec<_> = names.iter().map(|name| format!("{{ {} }}", self.files(name))).collect();
        format!("certificates: [{}]", files.join(", "))
    }

    /// A client that trusts the CA, behind its handshake.
    pub fn connect(&self, to: SocketAddr, sni: &str) -> Client {
        self.try_connect(to, sni, Speaks::default()).expect("a handshake")
    }

    /// A client that trusts the CA, or why its handshake failed.
    pub fn try_connect(&self, to: SocketAddr, sni: &str, speaks: Speaks<'_>) -> io::Result<Client> {
        self.handshake(TcpStream::connect_timeout(&to, DEADLINE)?, sni, speaks)
    }

    /// The same on a connection.
    pub fn handshake(&self, mut stream: TcpStream, sni: &str, speaks: Speaks<'_>) -> io::Result<Client> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let name = ServerName::try_from(sni.to_owned()).expect("a name");
        let mut connection = ClientConnection::new(self.client_config(speaks), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Client::on(Link::TlsClient(Box::new(StreamOwned::new(connection, stream)))))
    }

    fn client_config(&self, speaks: Speaks<'_>) -> Arc<ClientConfig> {
        let versions = speaks.only.map_or(vec![&TLS13, &TLS12], |only| vec![only]);
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&versions)
            .expect("versions")
            .with_root_certificates(self.store());
        let mut config = match speaks.identity {
            Some(name) => builder.with_client_auth_cert(self.chain(name), self.key(name)).expect("an identity"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = speaks.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A backend under TLS with this certificate; `clients` says whether it wants one of theirs.
    pub fn backend(
        &self,
        name: &str,
        clients: bool,
        serve: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Backend {
        let verifier = match clients {
            true => WebPkiClientVerifier::builder_with_provider(Arc::new(self.store()), Arc::new(default_provider()))
                .build()
                .expect("a verifier"),
            false => WebPkiClientVerifier::no_client_auth(),
        };
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(name), self.key(name))
            .expect("a certificate");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let accept = move || {
            let (mut stream, _) = listener.accept().ok()?;
            stream.set_read_timeout(Some(DEADLINE)).ok()?;
            stream.set_nodelay(true).ok()?;
            let mut connection = ServerConnection::new(config.clone()).ok()?;
            while connection.is_handshaking() {
                connection.complete_io(&mut stream).ok()?;
            }
            Some(Client::on(Link::TlsServer(Box::new(StreamOwned::new(connection, stream)))))
        };
        Backend::accepting(address, accept, serve)
    }

    fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add(self.issuer.der().clone()).expect("a CA");
        store
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        let certificates = CertificateDer::pem_file_iter(self.path(&format!("{name}.crt"))).expect("a file");
        certificates.map(|certificate| certificate.expect("a certificate")).collect()
    }

    fn key(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("a key")
    }
}
