//! Handshakes of a great many client addresses, with a Host, path, Origin and User-Agent of each one's own: what the maps by
//! address take, and that no client makes a metric series.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::metrics::Scrape;
use super::proxy::Proxy;
use super::report::{counted, mebibytes};
use super::{Backend, Result};

/// The goal, and how long it is tried.
const ADDRESSES: u64 = 1_000_000;
const FOR: Duration = Duration::from_secs(300);
const AT_ONCE: usize = 64;

pub async fn measure() -> Result<()> {
    eprintln!("playing: addresses");
    let backend = Backend::of_attackers()?;
    let backends = [backend.address, backend.address];
    let proxy = Proxy::administered("sluicegate", backends, "trusted_proxies: [127.0.0.0/8]\n")?;
    let admin = proxy.admin.ok_or("it has an admin endpoint")?;
    // One of each kind first, so that a series that all of them share is there.
    for nth in 0..AT_ONCE as u64 {
        handshake(proxy.address, u64::MAX - nth).await?;
    }
    let (before, resident) = (Scrape::of(admin)?, proxy.resident_bytes()?);
    let next = std::sync::Arc::new(AtomicU64::new(0));
    let (start, address) = (Instant::now(), proxy.address);
    let clients: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let next = next.clone();
            tokio::spawn(async move {
                while start.elapsed() < FOR {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= ADDRESSES {
                        break;
                    }
                    handshake(address, nth).await?;
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
        })
        .collect();
    for client in clients {
        client.await??;
    }
    let (took, after) = (start.elapsed(), Scrape::of(admin)?);
    let addresses = next.load(Ordering::Relaxed).min(ADDRESSES);
    println!("\n## Addresses and labels without end\n");
    println!(
        "{addresses} handshakes in {:.0} s through a trusted hop, each of another IPv6 /64 and with a Host, path, Origin and",
        took.as_secs_f64()
    );
    println!(
        "User-Agent of its own{}.",
        if addresses < ADDRESSES { "; a million were not reached in this time" } else { "" }
    );
    println!();
    println!("| | before | after |");
    println!("| --- | --- | --- |");
    println!("| series of `/metrics` | {} | {} |", before.len(), after.len());
    println!("| resident memory | {} | {} |", mebibytes(resident), mebibytes(proxy.resident_bytes()?));
    println!("| refused | | {} |", counted(&after.causes_since(&before)));
    Ok(())
}

/// One handshake that its Origin ends, behind the handshake limiter, where its address stays.
async fn handshake(proxy: SocketAddr, nth: u64) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    // One source address has 28,000 ports, and each stays taken for a while.
    let [_, a, b, c] = (nth as u32 % 200 + 2).to_be_bytes();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, a, b, c), 0)))?;
    let mut stream = socket.connect(proxy).await?;
    let [high, mid, low] = [nth >> 32, nth >> 16, nth].map(|part| part & 0xffff);
    let request = format!(
        "GET /{nth} HTTP/1.1\r\nHost: h{nth}.example\r\nX-Forwarded-For: 2001:{high:x}:{mid:x}:{low:x}::1\r\nUpgrade: \
         websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Origin: http://o{nth}.example\r\nUser-Agent: u{nth}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    match answer.starts_with(b"HTTP/1.1 403 ") {
        true => Ok(()),
        false => Err(format!("answered with {}", answer.escape_ascii()).into()),
    }
}
