//! Sessions with permessage-deflate: memory while idle and within a message, and CPU time of round trips.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluicegate::ws::deflate::Deflater;
use sluicegate::ws::header::Sender;

use super::Result;
use super::proxy::Proxy;
use super::wire::{FIN, FRAMES, RSV1, Socket, TEXT, frame};

const IDLE_SESSIONS: usize = 5000;
const UNFINISHED_SESSIONS: usize = 1000;
const BUSY_SESSIONS: usize = 64;
const SMALL_BYTES: usize = 200;
const SMALL_ROUND_TRIPS: usize = 128_000;
const LARGE_BYTES: usize = 16 << 10;
const LARGE_ROUND_TRIPS: usize = 19_200;
/// Of so many measurements of CPU time the median counts.
const MEASUREMENTS: usize = 3;

/// A JSON text of so many bytes, as chats and feeds send it.
pub fn json(bytes: usize) -> Vec<u8> {
    let mut text = String::from("[");
    for id in 0.. {
        if text.len() >= bytes {
            break;
        }
        let (user, price) = (id * 7919 % 1000, id * 104_729 % 9973);
        text += &format!(
            r#"{{"type":"message","id":{id},"user":{{"id":{user},"name":"user {user}"}},"price":{price}.25,"text":"the quick brown fox {price}"}},"#
        );
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// A text message of a client, in one frame.
pub fn text(plain: &[u8], compressed: bool) -> Vec<u8> {
    if !compressed {
        return frame(FIN | TEXT, plain, Sender::Client);
    }
    frame(FIN | RSV1 | TEXT, &deflate(plain), Sender::Client)
}

pub fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    Deflater::new().feed(plain, true, &mut payload);
    payload
}

/// What one proxy costs.
struct Row {
    name: &'static str,
    idle_bytes: u64,
    unfinished_bytes: u64,
    both_unfinished_bytes: u64,
    small_micros: f64,
    large_micros: f64,
}

pub async fn measure(backend: SocketAddr) -> Result<()> {
    let mut rows = Vec::new();
    for (name, mode, compressed) in [
        ("nginx, no compression", None, false),
        ("sluicegate, no compression", Some("passthrough"), false),
        ("nginx, compressed", None, true),
        ("sluicegate, `passthrough`", Some("passthrough"), true),
        ("sluicegate, `terminate`", Some("terminate"), true),
    ] {
        let start = || match mode {
            None => Proxy::nginx(name, backend),
            Some(mode) => Proxy::sluicegate(name, backend, &format!("compression: {mode}")),
        };
        eprintln!("measuring {name}");
        rows.push(Row {
            name,
            idle_bytes: idle(&start()?, compressed).await?,
            unfinished_bytes: unfinished(&start()?, "/sink", compressed).await?,
            both_unfinished_bytes: unfinished(&start()?, "/begin", compressed).await?,
            small_micros: round_trips(&start()?, SMALL_BYTES, SMALL_ROUND_TRIPS, compressed).await?,
            large_micros: round_trips(&start()?, LARGE_BYTES, LARGE_ROUND_TRIPS, compressed).await?,
        });
    }
    let (small, large) = (deflate(&json(SMALL_BYTES)).len(), deflate(&json(LARGE_BYTES)).len());
    println!("\n## Compression\n");
    println!(
        "Resident bytes per session; CPU µs of the proxy per round trip of a JSON text, {BUSY_SESSIONS} sessions, 1 in"
    );
    println!("flight. {SMALL_BYTES} B are {small} B on the wire, and {LARGE_BYTES} B are {large} B.\n");
    println!(
        "| | idle, of {IDLE_SESSIONS} | within a message of the client, of {UNFINISHED_SESSIONS} | and within one of the backend | {SMALL_BYTES} B | {LARGE_BYTES} B |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for Row { name, idle_bytes, unfinished_bytes, both_unfinished_bytes, small_micros, large_micros } in rows {
        println!(
            "| {name} | {idle_bytes} | {unfinished_bytes} | {both_unfinished_bytes} | {small_micros:.1} | {large_micros:.1} |"
        );
    }
    Ok(())
}

/// What a session takes while it is idle, after a round trip.
async fn idle(proxy: &Proxy, compressed: bool) -> Result<u64> {
    let message = text(&json(SMALL_BYTES), compressed);
    let open = async || {
        let mut socket = Socket::open(proxy.address, "/echo", compressed).await?;
        socket.send(&message).await?;
        socket.message().await?.ok_or("the session ended")?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(socket)
    };
    grown(proxy, IDLE_SESSIONS, open).await
}

/// What a session takes while a message of its client, and with `/begin` one of its backend, has begun and not ended.
async fn unfinished(proxy: &Proxy, path: &'static str, compressed: bool) -> Result<u64> {
    let payload = if compressed { deflate(&json(LARGE_BYTES)) } else { json(LARGE_BYTES) };
    let half = &payload[..payload.len() / 2];
    let begun = frame(if compressed { RSV1 | TEXT } else { TEXT }, half, Sender::Client);
    let open = async || {
        let mut socket = Socket::open(proxy.address, path, compressed).await?;
        let before = FRAMES.load(Ordering::Relaxed);
        socket.send(&begun).await?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while FRAMES.load(Ordering::Relaxed) == before {
            if Instant::now() > deadline {
                return Err("the beginning of the message did not arrive".into());
            }
            tokio::task::yield_now().await;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(socket)
    };
    grown(proxy, UNFINISHED_SESSIONS, open).await
}

/// By how many resident bytes a proxy grows with each session that `open` makes, of so many.
async fn grown(proxy: &Proxy, sessions: usize, open: impl AsyncFn() -> Result<Socket>) -> Result<u64> {
    // A few sessions first, so that what a process allocates once is not counted.
    for _ in 0..4 {
        drop(open().await?);
    }
    let before = proxy.resident_bytes()?;
    let mut held = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        held.push(open().await?);
    }
    let after = proxy.resident_bytes()?;
    drop(held);
    Ok(after.saturating_sub(before) / sessions as u64)
}

/// CPU time of the proxy for a round trip, in microseconds.
async fn round_trips(proxy: &Proxy, bytes: usize, rounds: usize, compressed: bool) -> Result<f64> {
    let mut measured = Vec::new();
    for _ in 0..MEASUREMENTS {
        let before = proxy.cpu()?;
        let mut tasks = Vec::new();
        for _ in 0..BUSY_SESSIONS {
            let mut socket = Socket::open(proxy.address, "/echo", compressed).await?;
            let message = text(&json(bytes), compressed);
            tasks.push(tokio::spawn(async move {
                for _ in 0..rounds / BUSY_SESSIONS {
                    socket.send(&message).await?;
                    socket.message().await?.ok_or("the session ended")?;
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        measured.push((proxy.cpu()? - before) * 1e6 / rounds as f64);
    }
    measured.sort_by(f64::total_cmp);
    Ok(measured[MEASUREMENTS / 2])
}
