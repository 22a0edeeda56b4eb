//! The attacks: what each attacker sends, as bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluicegate::ws::header::Sender;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout_at};

use super::Result;
use super::compression::deflate;
use super::wire::{FIN, PING, RSV1, Socket, TEXT, frame};
use super::worst::dynamic_blocks;

/// How many open their connections at once.
const OPENING_AT_ONCE: usize = 100;

/// An attacker whose connection was ended comes back after so long.
const BACK_AFTER: Duration = Duration::from_millis(100);

/// The most frames that a part of what is sent at full speed has.
const FRAMES_AT_ONCE: usize = 2000;

/// An attack by some attackers at once, none of which reads anything.
pub struct Attack {
    pub name: &'static str,
    pub attackers: usize,
    /// The path of the handshake; `None`: what is sent is no handshake.
    path: Option<&'static str>,
    /// Whether permessage-deflate is offered.
    offers: bool,
    /// What is sent first.
    once: Vec<u8>,
    /// What is sent then, again and again.
    again: Vec<u8>,
    /// How long it waits before each time.
    pause: Duration,
    /// More lines of the gateway's main file.
    pub configuration: &'static str,
}

impl Attack {
    fn new(name: &'static str, attackers: usize) -> Self {
        let (once, again) = (Vec::new(), Vec::new());
        let (path, pause) = (Some("/sink"), Duration::ZERO);
        Self { name, attackers, path, offers: false, once, again, pause, configuration: "" }
    }
}

pub fn all() -> Vec<Attack> {
    let client = |first: u8, payload: &[u8]| frame(first, payload, Sender::Client);
    let compressed = |payload: &[u8]| client(FIN | RSV1 | TEXT, payload);
    let begun = client(TEXT, &vec![b'x'; 32 << 10]);
    let half_head =
        |bytes: usize| format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {}", "x".repeat(bytes)).into_bytes();
    vec![
        Attack {
            again: client(FIN | PING, &[b'x'; 125]).repeat(100),
            ..Attack::new("ping floods, pongs not read", 50)
        },
        Attack {
            once: client(TEXT, b"x"),
            again: client(0, b"").repeat(FRAMES_AT_ONCE),
            ..Attack::new("empty continuation frames without end", 10)
        },
        Attack { again: one_byte_fragments(), ..Attack::new("messages of 1,000 fragments of one byte", 10) },
        Attack {
            again: client(FIN | TEXT, b"x").repeat(FRAMES_AT_ONCE),
            ..Attack::new("messages of one byte at full speed", 10)
        },
        Attack { once: begun.clone(), ..Attack::new("messages never finished, silent", 2000) },
        Attack {
            once: begun,
            again: client(0, b"x"),
            pause: BACK_AFTER,
            ..Attack::new("messages never finished, a byte each 100 ms", 1000)
        },
        Attack { path: Some("/download"), ..Attack::new("downloads of 16 MiB that are not read", 2000) },
        Attack {
            offers: true,
            again: compressed(&deflate(&vec![0; 16 << 20])),
            ..Attack::new("deflate bombs: 16 MiB in 16 KiB", 10)
        },
        Attack {
            offers: true,
            again: compressed(&dynamic_blocks(15)),
            ..Attack::new("compressed blocks that hold nothing, at full speed", 4)
        },
        Attack {
            path: None,
            once: half_head(0),
            again: b"x".to_vec(),
            pause: Duration::from_secs(1),
            ..Attack::new("heads, a byte a second", 5000)
        },
        Attack {
            path: None,
            once: half_head(30 << 10),
            configuration: "limits: { memory: 64MiB }\n",
            ..Attack::new("heads of 30 KiB that do not end, `limits.memory` 64 MiB", 5000)
        },
    ]
}

fn one_byte_fragments() -> Vec<u8> {
    let client = |first: u8| frame(first, b"x", Sender::Client);
    [client(TEXT), client(0).repeat(998), client(FIN)].concat()
}

/// What the attackers have done so far.
#[derive(Debug, Default)]
pub struct Done {
    pub connections: AtomicU64,
    pub bytes: AtomicU64,
}

/// Plays an attack until its time is over. All its connections are open then, but those that were ended.
pub async fn play(attack: &Arc<Attack>, proxy: SocketAddr, until: Instant) -> Arc<Done> {
    let done = Arc::<Done>::default();
    let opening = Arc::new(tokio::sync::Semaphore::new(OPENING_AT_ONCE));
    let attackers: Vec<_> = (0..attack.attackers)
        .map(|_| {
            let (attack, done, opening) = (attack.clone(), done.clone(), opening.clone());
            tokio::spawn(timeout_at(until.into(), async move {
                loop {
                    // A connection that is refused or ended is what an attacker reckons with.
                    let _ = one(&attack, proxy, &done, &opening).await;
                    sleep(BACK_AFTER).await;
                }
            }))
        })
        .collect();
    for attacker in attackers {
        let _ = attacker.await;
    }
    done
}

async fn one(attack: &Attack, proxy: SocketAddr, done: &Done, opening: &tokio::sync::Semaphore) -> Result<()> {
    let place = opening.acquire().await?;
    let mut stream = match attack.path {
        Some(path) => Socket::open(proxy, path, attack.offers).await?.into_stream(),
        None => TcpStream::connect(proxy).await?,
    };
    done.connections.fetch_add(1, Ordering::Relaxed);
    drop(place);
    send(&mut stream, &attack.once, done).await?;
    while !attack.again.is_empty() {
        if !attack.pause.is_zero() {
            sleep(attack.pause).await;
        }
        send(&mut stream, &attack.again, done).await?;
    }
    // What it is sent is not read; but its end shows.
    stream.ready(tokio::io::Interest::ERROR).await?;
    Ok(())
}

async fn send(stream: &mut TcpStream, bytes: &[u8], done: &Done) -> Result<()> {
    stream.write_all(bytes).await?;
    done.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    Ok(())
}
