//! One AMQP connection over a socket that is ours: lapin speaks the protocol, and when the connection is let go its socket
//! is shut down, so that lapin's thread ends also where the broker does not answer any more.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_rs::Runtime;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use futures_util::{Stream, TryFutureExt as _};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use parking_lot::Mutex;
use socket2::{SockRef, Socket};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

use super::super::engine::EngineError;
use super::settings::Settings;
use super::wire;

/// How often each side says that it lives, in seconds, if it has nothing else to say. The broker lets go of who was silent
/// for twice as long.
const AMQP_HEARTBEAT_S: u16 = 10;

/// A connection. It ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    pub connection: Connection,
    _closing: Closing,
}

/// The socket of a connection, shut down when this is dropped, or as soon as it is there.
#[derive(Debug)]
struct Closing(Arc<Mutex<Line>>);

#[derive(Debug)]
enum Line {
    None,
    Open(Socket),
    Closed,
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Line::Open(socket) = std::mem::replace(&mut *self.0.lock(), Line::Closed) {
            // It may be closed already.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Connects, and is done with the handshakes of TLS and AMQP when this returns.
pub async fn dial(settings: &Settings) -> Result<Link, EngineError> {
    let mut uri: AMQPUri = settings.access.url.parse().map_err(|_| wire::malformed("the URL"))?;
    if let Some(username) = &settings.access.username {
        uri.authority.userinfo.username.clone_from(username);
    }
    if let Some(password) = &settings.access.password {
        uri.authority.userinfo.password.clone_from(password);
    }
    uri.query.heartbeat = Some(AMQP_HEARTBEAT_S);
    let tls = match uri.scheme {
        AMQPScheme::AMQP => None,
        AMQPScheme::AMQPS => Some(client_config()?),
    };
    let line = Arc::new(Mutex::new(Line::None));
    let closing = Closing(line.clone());
    let timeout = settings.timeout;
    let connect = async move |uri: AMQPUri, _| {
        let opened = open(&uri, tls.clone(), &line);
        let opened = tokio::time::timeout(timeout, opened).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        opened.map(AsyncTcpStream::Plain).map_err(lapin::Error::from)
    };
    let properties = ConnectionProperties::default().with_connection_name("sluicegate".into());
    let runtime = Runtime::new(Kit(async_rs::Tokio::current()));
    let connected = Connection::connector(uri, runtime, connect, properties);
    let connected = tokio::time::timeout(timeout.saturating_mul(2), connected).await;
    let connection = connected.map_err(|_| EngineError::TimedOut)?.map_err(|error| wire::error(&error))?;
    Ok(Link { connection, _closing: closing })
}

/// Verified by the CAs of the system.
fn client_config() -> Result<Arc<ClientConfig>, EngineError> {
    let mut store = RootCertStore::empty();
    // Those that cannot be parsed are left out.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        return Err(wire::malformed("the system's CA certificates"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| wire::malformed("the versions of TLS"))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn open(uri: &AMQPUri, tls: Option<Arc<ClientConfig>>, line: &Mutex<Line>) -> io::Result<Transport> {
    let (host, port) = (uri.authority.host.as_str(), uri.authority.port);
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    tcp.set_nodelay(true)?;
    {
        let socket = SockRef::from(&tcp).try_clone()?;
        let mut line = line.lock();
        if matches!(*line, Line::Closed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        *line = Line::Open(socket);
    }
    let Some(config) = tls else { return Ok(boxed(tcp)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(boxed(TlsConnector::from(config).connect(name, tcp).await?))
}

/// What lapin reads and writes.
type Transport = Compat<Box<dyn Io>>;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

fn boxed(io: impl Io + 'static) -> Transport {
    let io: Box<dyn Io> = Box::new(io);
    io.compat()
}

/// Tokio with connections of ours.
#[derive(Clone, Debug)]
struct Kit(async_rs::Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <async_rs::Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, f: F) -> T {
        self.0.block_on(f)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn(f)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(f)
    }
}

impl Reactor for Kit {
    type TcpStream = Transport;
    type Sleep = <async_rs::Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + std::os::fd::AsFd + std::os::fd::AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl futures_util::AsyncRead + futures_util::AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        TcpStream::connect(address).map_ok(boxed)
    }
}
