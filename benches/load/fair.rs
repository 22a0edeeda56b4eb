//! Whether sessions are fair to each other: how long round trips of quiet clients take beside clients that send at full
//! speed what is the most work.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluicegate::ws::header::Sender;

use super::Result;
use super::proxy::Proxy;
use super::wire::{BINARY, FIN, PING, RSV1, Socket, TEXT, frame};
use super::worst::dynamic_blocks;

/// Clients that send at full speed.
const LOUD: usize = 8;
/// Clients that make a round trip, again and again.
const QUIET: usize = 16;
const PACE: Duration = Duration::from_millis(10);
const ROUND_TRIPS: usize = 300;
const PAYLOAD_BYTES: usize = 125;

/// How much a loud client sends at once, in bytes.
const BURST_BYTES: usize = 64 << 10;

pub async fn measure(backend: SocketAddr) -> Result<()> {
    let open = "message: { max_size: off, max_ratio: off, control_rate: off }";
    let mut proxies = vec![Proxy::none(backend), Proxy::nginx("nginx", backend)?];
    if let Some(program) = std::env::var_os("SLUICEGATE_BEFORE") {
        proxies.push(Proxy::sluicegate_at(&program, "another sluicegate", backend, open)?);
    }
    proxies.push(Proxy::sluicegate("sluicegate", backend, open)?);
    println!(
        "\n## Beside clients that send at full speed\n\n\
         Round trips of {PAYLOAD_BYTES} B of {QUIET} clients, one every {} ms, beside {LOUD} that send without a pause: \
         p50 / p99 / longest, in ms.\n",
        PACE.as_millis()
    );
    println!("| beside | {} |", proxies.iter().map(|proxy| proxy.name).collect::<Vec<_>>().join(" | "));
    println!("| --- |{}", " --- |".repeat(proxies.len()));
    let loads = [
        ("nobody", Vec::new()),
        ("messages of 1 byte", frame(FIN | TEXT, b"x", Sender::Client)),
        ("pings", frame(FIN | PING, b"", Sender::Client)),
        ("compressed nothing", frame(FIN | RSV1 | TEXT, &dynamic_blocks(1), Sender::Client)),
        ("messages of 64 KiB", frame(FIN | BINARY, &[b'x'; 64 << 10], Sender::Client)),
    ];
    for (name, load) in loads {
        eprintln!("measuring beside {name}");
        let mut cells = Vec::new();
        for proxy in &proxies {
            cells.push(beside(proxy, &load).await?);
        }
        println!("| {name} | {} |", cells.join(" | "));
    }
    Ok(())
}

async fn beside(proxy: &Proxy, load: &[u8]) -> Result<String> {
    let mut loud = Vec::new();
    if !load.is_empty() {
        let burst = load.repeat((BURST_BYTES / load.len()).max(1));
        for _ in 0..LOUD {
            let (mut socket, burst) = (Socket::open(proxy.address, "/drop", true).await?, burst.clone());
            loud.push(tokio::spawn(async move { while socket.send(&burst).await.is_ok() {} }));
        }
    }
    // In a thread of their own, where nothing but their own answers wakes them.
    let address = proxy.address;
    let quiet = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(round_trips(address))
    });
    let mut micros = quiet.await??;
    for task in loud {
        task.abort();
    }
    micros.sort_unstable();
    let at = |share: usize| micros[(micros.len() - 1) * share / 100] as f64 / 1000.0;
    Ok(format!("{:.2} / {:.1} / {:.1}", at(50), at(99), at(100)))
}

/// How long each round trip took, in µs.
async fn round_trips(address: SocketAddr) -> Result<Vec<u64>> {
    let mut tasks = Vec::new();
    for _ in 0..QUIET {
        let mut socket = Socket::open(address, "/echo", false).await?;
        tasks.push(tokio::spawn(async move {
            let message = frame(FIN | BINARY, &[b'x'; PAYLOAD_BYTES], Sender::Client);
            let mut pace = tokio::time::interval(PACE);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut micros = Vec::new();
            for _ in 0..ROUND_TRIPS {
                pace.tick().await;
                let start = Instant::now();
                socket.send(&message).await?;
                socket.frame().await?.ok_or("the session ended")?;
                micros.push(start.elapsed().as_micros() as u64);
            }
            Result::Ok(micros)
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    Ok(all)
}
