//! Sessions without compression: memory while idle, and CPU time of round trips of 125 bytes.

use std::net::SocketAddr;
use std::time::Instant;

use sluicegate::ws::header::Sender;

use super::Result;
use super::proxy::Proxy;
use super::wire::{BINARY, FIN, Socket, frame};

const IDLE_SESSIONS: usize = 5000;
const BUSY_SESSIONS: usize = 64;
const ROUND_TRIPS: usize = 400_000;
const PAYLOAD_BYTES: usize = 125;

pub async fn measure(backend: SocketAddr) -> Result<()> {
    let mut rows = Vec::new();
    let sluicegate = Proxy::sluicegate("sluicegate", backend, "");
    for proxy in [Ok(Proxy::none(backend)), Proxy::nginx("nginx", backend), sluicegate] {
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

async fn idle_memory(proxy: &Proxy) -> Result<String> {
    if !proxy.is_measured() {
        return Ok("–".to_owned());
    }
    // One session first, so that what a process allocates once is not counted.
    drop(Socket::open(proxy.address, "/echo", false).await?);
    let before = proxy.resident_bytes()?;
    let mut sessions = Vec::with_capacity(IDLE_SESSIONS);
    for _ in 0..IDLE_SESSIONS {
        sessions.push(Socket::open(proxy.address, "/echo", false).await?);
    }
    let after = proxy.resident_bytes()?;
    drop(sessions);
    Ok(((after - before) / IDLE_SESSIONS as u64).to_string())
}

async fn round_trips(proxy: &Proxy, in_flight: usize) -> Result<String> {
    let before = proxy.cpu()?;
    let start = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..BUSY_SESSIONS {
        let socket = Socket::open(proxy.address, "/echo", false).await?;
        tasks.push(tokio::spawn(ping_pong(socket, in_flight, ROUND_TRIPS / BUSY_SESSIONS)));
    }
    for task in tasks {
        task.await??;
    }
    let per_million = 1e6 / ROUND_TRIPS as f64;
    let spent = (proxy.cpu()? - before) * per_million;
    let rate = ROUND_TRIPS as f64 / start.elapsed().as_secs_f64();
    let spent = if proxy.is_measured() { format!("{spent:.2}") } else { "–".to_owned() };
    Ok(format!("{spent} ({rate:.0} a second)"))
}

async fn ping_pong(mut socket: Socket, in_flight: usize, rounds: usize) -> Result<()> {
    let frames = frame(FIN | BINARY, &[b'x'; PAYLOAD_BYTES], Sender::Client).repeat(in_flight);
    for _ in 0..rounds / in_flight {
        socket.send(&frames).await?;
        for _ in 0..in_flight {
            socket.frame().await?.ok_or("the session ended")?;
        }
    }
    Ok(())
}
