//! One attack after the other, through the gateway and through nginx, and a table of what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::attacks::{self, Attack};
use super::legal::{self, Latency, Legal};
use super::metrics::Scrape;
use super::proxy::Proxy;
use super::wire::{FRAMES, HANDSHAKES};
use super::{Backend, Result};

/// How long the legal clients are alone, and first without being measured.
const WARM: Duration = Duration::from_millis(1500);
const BEFORE: Duration = Duration::from_secs(2);
/// How long an attack takes.
const DURING: Duration = Duration::from_secs(8);

/// What an attack did through one proxy.
struct Outcome {
    connections: u64,
    bytes: u64,
    /// Of the proxy: by how much its resident memory has grown at most.
    grown_bytes: u64,
    resident_bytes: u64,
    before: Latency,
    during: Latency,
    backend_frames: u64,
    backend_handshakes: u64,
    causes: BTreeMap<String, u64>,
}

/// Plays the attacks whose name has the word, and prints their tables.
pub async fn print(wanted: &str) -> Result<()> {
    let mut rows = Vec::new();
    for attack in attacks::all().into_iter().filter(|attack| attack.name.contains(wanted)) {
        let attack = Arc::new(attack);
        eprintln!("playing: {}", attack.name);
        match both(&attack).await {
            Ok((gateway, nginx)) => rows.push((attack, gateway, nginx)),
            Err(error) => println!("\nNot measured: {}: {error}", attack.name),
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    println!("\n## What it costs other clients, and the process\n");
    println!(
        "| attack | legal clients' p50 / p99 in ms: before → during | nginx | peak memory above the memory before, of all: a connection of the attack | nginx |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for (attack, gateway, nginx) in &rows {
        let (ours, theirs) = (gateway.memory(attack), nginx.memory(attack));
        println!("| {} | {} | {} | {ours} | {theirs} |", attack.name, gateway.latency(), nginx.latency());
    }
    println!("\n## What was sent, and what became of it\n");
    println!(
        "| attack | attackers | connections, bytes sent | the gateway counted | the backend saw: handshakes, frames | nginx: connections, bytes sent | the backend saw |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (attack, gateway, nginx) in &rows {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            attack.name,
            attack.attackers,
            gateway.sent(),
            counted(&gateway.causes),
            gateway.seen(),
            nginx.sent(),
            nginx.seen()
        );
    }
    Ok(())
}

/// The gateway's outcome, and nginx' one.
async fn both(attack: &Arc<Attack>) -> Result<(Outcome, Outcome)> {
    let backends = [Backend::of_attackers()?, Backend::of_legal_clients()?];
    let addresses = [backends[0].address, backends[1].address];
    let proxy = Proxy::administered("sluicegate", addresses, attack.configuration)?;
    let gateway = measure(attack, &proxy).await?;
    drop((proxy, backends));
    let backends = [Backend::of_attackers()?, Backend::of_legal_clients()?];
    let addresses = [backends[0].address, backends[1].address];
    let nginx = measure(attack, &Proxy::nginx_with("nginx", addresses, "", "")?).await?;
    Ok((gateway, nginx))
}

async fn measure(attack: &Arc<Attack>, proxy: &Proxy) -> Result<Outcome> {
    let legal = Legal::start(proxy.address);
    tokio::time::sleep(WARM).await;
    let quiet_from = Instant::now();
    tokio::time::sleep(BEFORE).await;
    let scrape = proxy.admin.map(Scrape::of).transpose()?;
    let resident_before = proxy.resident_bytes()?;
    let seen = || (FRAMES.load(Ordering::Relaxed), HANDSHAKES.load(Ordering::Relaxed));
    let (frames, handshakes) = seen();
    let from = Instant::now();
    let done = attacks::play(attack, proxy.address, from + DURING).await;
    let to = Instant::now();
    let (frames_after, handshakes_after) = seen();
    let resident_bytes = proxy.peak_resident_bytes()?;
    let trips = legal.end()?;
    let causes = match proxy.admin.zip(scrape) {
        Some((admin, before)) => Scrape::of(admin)?.causes_since(&before),
        None => BTreeMap::new(),
    };
    Ok(Outcome {
        connections: done.connections.load(Ordering::Relaxed),
        bytes: done.bytes.load(Ordering::Relaxed),
        grown_bytes: resident_bytes.saturating_sub(resident_before),
        resident_bytes,
        before: legal::latency(&trips, quiet_from, from)?,
        during: legal::latency(&trips, from, to)?,
        backend_frames: frames_after - frames,
        backend_handshakes: handshakes_after - handshakes,
        causes,
    })
}

impl Outcome {
    fn latency(&self) -> String {
        let shown = |of: Latency| format!("{} / {}", millis(of.p50), millis(of.p99));
        format!("{} → {}", shown(self.before), shown(self.during))
    }

    fn memory(&self, attack: &Attack) -> String {
        // Those that come back have no more than one connection at a time.
        let per_attacker = self.grown_bytes as f64 / attack.attackers as f64 / 1024.0;
        format!("{} of {}: {per_attacker:.1} KiB", mebibytes(self.grown_bytes), mebibytes(self.resident_bytes))
    }

    fn sent(&self) -> String {
        format!("{}, {}", self.connections, mebibytes(self.bytes))
    }

    fn seen(&self) -> String {
        format!("{}, {}", self.backend_handshakes, self.backend_frames)
    }
}

pub fn counted(causes: &BTreeMap<String, u64>) -> String {
    causes.iter().map(|(cause, times)| format!("`{cause}` {times}")).collect::<Vec<_>>().join(", ")
}

pub fn millis(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
