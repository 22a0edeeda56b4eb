//! Legal clients: round trips at a fixed rate, and how long they take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate::ws::header::Sender;

use super::Result;
use super::wire::{BINARY, FIN, Socket, frame};

const CLIENTS: usize = 8;
const EVERY: Duration = Duration::from_millis(20);
const PAYLOAD_BYTES: usize = 125;

/// Clients at work on a thread of their own.
pub struct Legal {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Trip>>>,
}

/// One round trip: when it was due, and how long after that its echo was there.
#[derive(Clone, Copy, Debug)]
pub struct Trip {
    due: Instant,
    took: Duration,
}

/// How long the round trips of a while took.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: Duration,
    pub p99: Duration,
}

impl Legal {
    /// Opens their sessions and lets them go.
    pub fn start(proxy: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work(proxy, stop))
        });
        Self { stop, thread }
    }

    /// Ends them, and gives all their round trips.
    pub fn end(self) -> Result<Vec<Trip>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the thread of the legal clients panicked")?
    }
}

async fn work(proxy: SocketAddr, stop: Arc<AtomicBool>) -> Result<Vec<Trip>> {
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        let socket = Socket::open(proxy, "/echo", false).await?;
        clients.push(tokio::spawn(client(socket, EVERY * nth as u32 / CLIENTS as u32, stop.clone())));
    }
    let mut trips = Vec::new();
    for client in clients {
        trips.extend(client.await??);
    }
    Ok(trips)
}

async fn client(mut socket: Socket, offset: Duration, stop: Arc<AtomicBool>) -> Result<Vec<Trip>> {
    let message = frame(FIN | BINARY, &[b'x'; PAYLOAD_BYTES], Sender::Client);
    let mut due = Instant::now() + offset;
    let mut trips = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        socket.send(&message).await?;
        socket.message().await?.ok_or("the session of a legal client ended")?;
        trips.push(Trip { due, took: due.elapsed() });
        // One that comes late is late for the next too: nothing is left out.
        due += EVERY;
    }
    Ok(trips)
}

/// The latency of what was due in this time.
pub fn latency(trips: &[Trip], from: Instant, to: Instant) -> Result<Latency> {
    let mut took: Vec<_> = trips.iter().filter(|trip| (from..to).contains(&trip.due)).map(|trip| trip.took).collect();
    took.sort_unstable();
    let at = |part: usize| took.get((took.len() * part / 100).min(took.len().saturating_sub(1))).copied();
    let (p50, p99) = at(50).zip(at(99)).ok_or("no round trip of a legal client was due")?;
    Ok(Latency { p50, p99 })
}
