//! WebSockets of clients over HTTP/1.1 and HTTP/2, in the clear and under TLS 1.3: memory while idle, and CPU time of round
//! trips of 125 bytes. nginx has no WebSockets over HTTP/2.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use sluicegate::ws::header::Sender;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Result;
use super::http2::Connection;
use super::proxy::Proxy;
use super::wire::{BINARY, FIN, Socket, frame};

const IDLE_SESSIONS: usize = 2000;
/// The most that the gateway takes on a connection (`SETTINGS_MAX_CONCURRENT_STREAMS`).
const STREAMS: usize = 100;
const BUSY_SESSIONS: usize = 64;
const ROUND_TRIPS: usize = 200_000;
const PAYLOAD_BYTES: usize = 125;

trait Bytes: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Bytes for T {}
type AnyStream = Pin<Box<dyn Bytes>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Front {
    Http1,
    Http1Tls,
    Http2,
    Http2Tls,
}

impl Front {
    const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Http1Tls, Self::Http2Tls];

    const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http1Tls => "HTTP/1.1 over TLS",
            Self::Http2 => "HTTP/2",
            Self::Http2Tls => "HTTP/2 over TLS",
        }
    }

    const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Http2Tls)
    }

    const fn is_tls(self) -> bool {
        matches!(self, Self::Http1Tls | Self::Http2Tls)
    }
}

/// Clients that trust the one certificate of the proxies.
struct Clients {
    front: Front,
    roots: RootCertStore,
}

impl Clients {
    async fn connect(&self, address: SocketAddr) -> Result<AnyStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if !self.front.is_tls() {
            return Ok(Box::pin(stream));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![if self.front.is_http2() { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let name: ServerName<'static> = "localhost".try_into()?;
        Ok(Box::pin(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }

    /// Opens so many sessions.
    async fn open(&self, address: SocketAddr, sessions: usize) -> Result<Vec<Socket<AnyStream>>> {
        let mut opened = Vec::with_capacity(sessions);
        while opened.len() < sessions {
            let stream = self.connect(address).await?;
            if !self.front.is_http2() {
                opened.push(Socket::open_over(stream, "/echo", false).await?);
                continue;
            }
            let mut connection = Connection::over(stream).await?;
            for _ in 0..STREAMS.min(sessions - opened.len()) {
                opened.push(Socket::over(Box::pin(connection.open("/echo").await?) as AnyStream));
            }
        }
        Ok(opened)
    }
}

pub async fn measure(backend: SocketAddr) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (cert, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
    std::fs::write(&cert, issued.cert.pem())?;
    std::fs::write(&key, issued.signing_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone())?;
    let (cert, key) = (cert.display(), key.display());
    let listener = format!(", tls: {{ certificates: [{{ cert_file: \"{cert}\", key_file: \"{key}\" }}] }}");
    let server = format!("ssl_certificate {cert}; ssl_certificate_key {key};");

    println!("\n## The front: WebSockets over HTTP/1.1 and HTTP/2, in the clear and under TLS 1.3\n");
    println!(
        "Over HTTP/2 {STREAMS} sessions share a connection. With TLS the figures hold what it keeps for each connection.\n"
    );
    println!(
        "| | resident bytes per idle session, of {IDLE_SESSIONS} | CPU s per 1 M round trips, {BUSY_SESSIONS} sessions × {PAYLOAD_BYTES} B, 1 in flight |"
    );
    println!("| --- | --- | --- |");
    for front in Front::ALL {
        let clients = Clients { front, roots: roots.clone() };
        let (listener, server) = if front.is_tls() { (&*listener, &*server) } else { ("", "") };
        let mut proxies = vec![Proxy::sluicegate_with("sluicegate", backend, listener, "")];
        if !front.is_http2() {
            let listen = if front.is_tls() { "ssl" } else { "" };
            proxies.insert(0, Proxy::nginx_with("nginx", [backend, backend], listen, server));
        }
        for proxy in proxies {
            let proxy = proxy?;
            eprintln!("measuring {} at {}, {}", proxy.name, proxy.address, front.name());
            let memory = idle_memory(&proxy, &clients).await?;
            let spent = round_trips(&proxy, &clients).await?;
            println!("| {}, {} | {memory} | {spent:.2} |", proxy.name, front.name());
        }
    }
    Ok(())
}

async fn idle_memory(proxy: &Proxy, clients: &Clients) -> Result<u64> {
    // One session first, so that what a process allocates once is not counted.
    drop(clients.open(proxy.address, 1).await?);
    let before = proxy.resident_bytes()?;
    let _sessions = clients.open(proxy.address, IDLE_SESSIONS).await?;
    Ok((proxy.resident_bytes()? - before) / IDLE_SESSIONS as u64)
}

async fn round_trips(proxy: &Proxy, clients: &Clients) -> Result<f64> {
    let sessions = clients.open(proxy.address, BUSY_SESSIONS).await?;
    // Behind the handshakes.
    let before = proxy.cpu()?;
    let tasks: Vec<_> = sessions.into_iter().map(|socket| tokio::spawn(ping_pong(socket))).collect();
    for task in tasks {
        task.await??;
    }
    Ok((proxy.cpu()? - before) * 1e6 / ROUND_TRIPS as f64)
}

async fn ping_pong(mut socket: Socket<AnyStream>) -> Result<()> {
    let frame = frame(FIN | BINARY, &[b'x'; PAYLOAD_BYTES], Sender::Client);
    for _ in 0..ROUND_TRIPS / BUSY_SESSIONS {
        socket.send(&frame).await?;
        socket.frame().await?.ok_or("the session ended")?;
    }
    Ok(())
}
