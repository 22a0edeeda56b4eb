//! Sessions of clients under TLS 1.3: memory while idle, and CPU time of round trips of 125 bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use sluicegate::ws::header::Sender;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Result;
use super::proxy::Proxy;
use super::wire::{BINARY, FIN, Socket, frame};

const IDLE_SESSIONS: usize = 2000;
const BUSY_SESSIONS: usize = 64;
const ROUND_TRIPS: usize = 200_000;
const PAYLOAD_BYTES: usize = 125;

/// A client that trusts the one certificate of the proxies.
struct Client {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Client {
    async fn open(&self, address: SocketAddr) -> Result<Socket<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), stream).await?;
        Socket::open_over(stream, "/echo", false).await
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
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Client { connector: Arc::new(config).into(), name: "localhost".try_into()? };

    let (cert, key) = (cert.display(), key.display());
    let listener = format!(", tls: {{ certificates: [{{ cert_file: \"{cert}\", key_file: \"{key}\" }}] }}");
    let server = format!("ssl_certificate {cert}; ssl_certificate_key {key};");
    println!(
        "\n| under TLS 1.3 | resident bytes per idle session, of {IDLE_SESSIONS} | CPU s per 1 M round trips, {BUSY_SESSIONS} sessions × {PAYLOAD_BYTES} B, 1 in flight |"
    );
    println!("| --- | --- | --- |");
    for proxy in [
        Proxy::nginx_with("nginx", backend, "ssl", &server),
        Proxy::sluicegate_with("sluicegate", backend, &listener, ""),
    ] {
        let proxy = proxy?;
        eprintln!("measuring {} at {} under TLS", proxy.name, proxy.address);
        let memory = idle_memory(&proxy, &client).await?;
        let spent = round_trips(&proxy, &client).await?;
        println!("| {} | {memory} | {spent:.2} |", proxy.name);
    }
    Ok(())
}

async fn idle_memory(proxy: &Proxy, client: &Client) -> Result<u64> {
    // One session first, so that what a process allocates once is not counted.
    drop(client.open(proxy.address).await?);
    let before = proxy.resident_bytes()?;
    let mut sessions = Vec::with_capacity(IDLE_SESSIONS);
    for _ in 0..IDLE_SESSIONS {
        sessions.push(client.open(proxy.address).await?);
    }
    Ok((proxy.resident_bytes()? - before) / IDLE_SESSIONS as u64)
}

async fn round_trips(proxy: &Proxy, client: &Client) -> Result<f64> {
    let mut tasks = Vec::new();
    for _ in 0..BUSY_SESSIONS {
        tasks.push(client.open(proxy.address).await?);
    }
    // Behind the handshakes.
    let before = proxy.cpu()?;
    let tasks: Vec<_> = tasks.into_iter().map(|socket| tokio::spawn(ping_pong(socket))).collect();
    for task in tasks {
        task.await??;
    }
    Ok((proxy.cpu()? - before) * 1e6 / ROUND_TRIPS as f64)
}

async fn ping_pong(mut socket: Socket<TlsStream<TcpStream>>) -> Result<()> {
    let frame = frame(FIN | BINARY, &[b'x'; PAYLOAD_BYTES], Sender::Client);
    for _ in 0..ROUND_TRIPS / BUSY_SESSIONS {
        socket.send(&frame).await?;
        socket.frame().await?.ok_or("the session ended")?;
    }
    Ok(())
}
