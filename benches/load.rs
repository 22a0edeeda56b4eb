//! What the gateway costs, beside nginx and beside no proxy at all, in one run on one machine.
//!
//! `cargo bench --bench load` prints a Markdown table: resident memory per idle session, and CPU seconds of the proxy
//! per million round trips of 125 bytes. Client and backend are in this process; each proxy is a process of its own,
//! whose CPU time and memory the kernel tells. Absolute figures of a shared machine mean little: compare the columns.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const IDLE_SESSIONS: usize = 5000;
const BUSY_SESSIONS: usize = 64;
const ROUND_TRIPS: usize = 400_000;
const PAYLOAD_BYTES: usize = 125;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A process under test: its child and where it listens. Ended when it is dropped.
struct Proxy {
    name: &'static str,
    child: Option<Child>,
    pids: Vec<u32>,
    address: SocketAddr,
    _files: Option<tempfile::TempDir>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SIGTERM, since a killed nginx leaves its workers behind. It may have ended by itself.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let backend = TcpListener::bind("127.0.0.1:0").await?;
    let backend_address = backend.local_addr()?;
    tokio::spawn(serve_backend(backend));

    let mut rows = Vec::new();
    let direct = Proxy { name: "no proxy", child: None, pids: Vec::new(), address: backend_address, _files: None };
    for proxy in [Ok(direct), start_nginx(backend_address), start_sluicegate(backend_address)] {
        let proxy = proxy?;
        eprintln!("measuring {} at {}", proxy.name, proxy.address);
        let memory = idle_memory(&proxy).await?;
        let (one, sixteen) = (round_trips(&proxy, 1).await?, round_trips(&proxy, 16).await?);
        rows.push((proxy.name, memory, one, sixteen));
    }

    println!(
        "\n| | resident bytes per idle session, of {IDLE_SESSIONS} | CPU s per 1 M round trips, {BUSY_SESSIONS} sessions × {PAYLOAD_BYTES} B, 1 in flight | 16 in flight |"
    );
    println!("| --- | --- | --- | --- |");
    for (name, memory, one, sixteen) in rows {
        println!("| {name} | {memory} | {one} | {sixteen} |");
    }
    Ok(())
}

fn start_sluicegate(backend: SocketAddr) -> Result<Proxy> {
    let address = free_address()?;
    let child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(["run", "--listen", &address.to_string(), "--to", &format!("http://{backend}"), "--admin", "off"])
        .stderr(Stdio::null())
        .spawn()?;
    let pids = vec![child.id()];
    wait_for(address)?;
    Ok(Proxy { name: "sluicegate", child: Some(child), pids, address, _files: None })
}

fn start_nginx(backend: SocketAddr) -> Result<Proxy> {
    let address = free_address()?;
    let files = tempfile::tempdir()?;
    let config = format!(
        "worker_processes 2; worker_rlimit_nofile 20000; daemon off; pid {0}/nginx.pid; error_log /dev/null;
         events {{ worker_connections 20000; }}
         http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
           uwsgi_temp_path {0}; scgi_temp_path {0};
           server {{ listen {address} backlog=4096; location / {{ proxy_pass http://{backend}; proxy_http_version 1.1;
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_read_timeout 1h; }} }} }}",
        files.path().display(),
    );
    let file: PathBuf = files.path().join("nginx.conf");
    std::fs::File::create(&file)?.write_all(config.as_bytes())?;
    let nginx = if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let child = Command::new(nginx).arg("-c").arg(&file).arg("-p").arg(files.path()).stderr(Stdio::null()).spawn()?;
    wait_for(address)?;
    // The master listens before it has its workers.
    let pids = loop {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()))?;
        let pids: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if pids.len() == 2 {
            break pids;
        }
    };
    Ok(Proxy { name: "nginx", child: Some(child), pids, address, _files: Some(files) })
}

fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn wait_for(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            return Err(format!("nothing listens on {address}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

async fn idle_memory(proxy: &Proxy) -> Result<String> {
    // One session first, so that what a process allocates once is not counted.
    drop(open(proxy.address).await?);
    let before = resident_bytes(&proxy.pids)?;
    let mut sessions = Vec::with_capacity(IDLE_SESSIONS);
    for _ in 0..IDLE_SESSIONS {
        sessions.push(open(proxy.address).await?);
    }
    let after = resident_bytes(&proxy.pids)?;
    drop(sessions);
    Ok(if proxy.pids.is_empty() { "–".to_owned() } else { ((after - before) / IDLE_SESSIONS as u64).to_string() })
}

async fn round_trips(proxy: &Proxy, in_flight: usize) -> Result<String> {
    let before = cpu(&proxy.pids)?;
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..BUSY_SESSIONS {
        let stream = open(proxy.address).await?;
        tasks.push(tokio::spawn(ping_pong(stream, in_flight, ROUND_TRIPS / BUSY_SESSIONS)));
    }
    for task in tasks {
        task.await??;
    }
    let per_million = 1e6 / ROUND_TRIPS as f64;
    let spent = (cpu(&proxy.pids)? - before) * per_million;
    let rate = ROUND_TRIPS as f64 / start.elapsed().as_secs_f64();
    let spent = if proxy.pids.is_empty() { "–".to_owned() } else { format!("{spent:.2}") };
    Ok(format!("{spent} ({rate:.0} a second)"))
}

async fn ping_pong(mut stream: TcpStream, in_flight: usize, rounds: usize) -> std::io::Result<()> {
    let frame = frame(0x82, true);
    let answer = frame.len() - 4;
    let mut buffer = vec![0; answer * in_flight];
    for _ in 0..rounds / in_flight {
        stream.write_all(&frame.repeat(in_flight)).await?;
        stream.read_exact(&mut buffer).await?;
    }
    Ok(())
}

/// A frame of 125 bytes, masked with the key 0.
fn frame(first: u8, masked: bool) -> Vec<u8> {
    let mut frame = vec![first, PAYLOAD_BYTES as u8 | if masked { 0x80 } else { 0 }];
    frame.extend([0; 4].iter().take(if masked { 4 } else { 0 }));
    frame.extend([b'x'; PAYLOAD_BYTES]);
    frame
}

async fn open(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(String::from_utf8_lossy(&head).into_owned().into());
    }
    Ok(stream)
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// Accepts every handshake, answers pings, and echoes frames of 125 bytes.
async fn serve_backend(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // A client that goes away ends its session.
            let _ = echo(stream).await;
        });
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let _request = read_head(&mut stream).await?;
    let accept = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(accept.as_bytes()).await?;
    let (wanted, answer) = (frame(0x82, true).len(), frame(0x82, false));
    let mut buffer = vec![0; 64 << 10];
    let mut pending = 0;
    loop {
        pending += match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            len => len,
        };
        let whole = pending / wanted;
        pending %= wanted;
        stream.write_all(&answer.repeat(whole)).await?;
    }
}

/// Seconds of user and system time. proc(5), stat, fields 14 and 15.
fn cpu(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks as f64 / 100.0)
}

fn resident_bytes(pids: &[u32]) -> Result<u64> {
    let mut kib = 0;
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        kib += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(kib << 10)
}
