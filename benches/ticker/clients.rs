//! A process of clients: a great many WebSockets on one thread, some of which read slowly. Each keeps the newest price of
//! every symbol, as a page would.
//!
//! A line on standard input is a command, and is answered with a line: `begin` forgets what was counted; `report` says what
//! was; `complete` how many have a price of every symbol; `same FILE` how many of each kind have the prices that the feed
//! left in a file; `free` has the slow ones read as the others do.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use sluicegate::ws::header::{Opcode, Sender, parse};

use super::Result;
use super::histogram::Histogram;
use super::prices::{Price, Reader, SYMBOLS};
use super::sockets::{AT_ONCE, answered, ask, commands, now_ns};
use super::wire::{FIN, PONG, frame};

const COMMAND: Token = Token(usize::MAX);
const READ_BYTES: usize = 64 << 10;

/// One client in so many is slow, and of these every second reads little, and the others nothing for a while.
const SLOW_IN: usize = 50;
/// What the kernel may hold for a slow client that it has not read: little, so that it is the gateway that notices.
const SLOW_RECEIVE_BYTES: usize = 8 << 10;
/// How often slow clients are looked at.
const TICK: Duration = Duration::from_millis(20);
/// One that stalls does not read for the first half of this, and then reads all there is.
const STALL_CYCLE_MS: u64 = 4000;
/// One that trickles reads this much so often: 2,000 bytes a second.
const TRICKLE_BYTES: usize = 200;
const TRICKLE_MS: u64 = 100;

/// What browsers offer.
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// Clients whose staleness is counted, of the fast ones.
const TIMED: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fast,
    Stalls,
    Trickles,
}

/// In the order of reports.
pub const KINDS: [Kind; 3] = [Kind::Fast, Kind::Stalls, Kind::Trickles];

impl Kind {
    pub fn of(index: usize) -> Self {
        match (index % SLOW_IN, index / SLOW_IN % 2) {
            (1, 0) => Self::Stalls,
            (1, _) => Self::Trickles,
            _ => Self::Fast,
        }
    }
}

struct Client {
    stream: mio::net::TcpStream,
    kind: Kind,
    /// Counts how old what it gets is.
    timed: bool,
    gone: bool,
    /// The start of a frame.
    held: Vec<u8>,
    /// The fragments so far of a message, and whether it is compressed.
    fragments: Option<(Vec<u8>, bool)>,
    prices: Vec<Price>,
}

/// What was counted of a kind.
#[derive(Default)]
struct Counted {
    /// Messages: each is one frame, but for fragments.
    frames: u64,
    bytes: u64,
    updates: u64,
    /// Prices that were older than what the client had.
    back: u64,
    /// In microseconds, from publication to arrival.
    staleness: Histogram,
}

#[derive(Default)]
struct Counts {
    kinds: [Counted; 3],
    reader: Reader,
}

/// Opens `count` of them from a source address, and serves until standard input ends.
pub fn run(gateway: SocketAddr, source: Ipv4Addr, count: usize, compressed: bool) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    let mut commanded = None;
    let (mut events, mut counts) = (Events::with_capacity(1024), Counts::default());
    let mut scratch = vec![0; READ_BYTES];
    let (start, mut ticks, mut trickles) = (Instant::now(), 0, 0);
    let mut free = false;
    loop {
        // Those who are there read while others open: what they leave would take the kernel's memory for sockets.
        if clients.len() < count {
            open(&poll, &mut clients, count, |index| {
                let slow = Kind::of(index) != Kind::Fast;
                ask(gateway, source, if compressed { OFFER } else { "" }, slow.then_some(SLOW_RECEIVE_BYTES))
            })?;
            if clients.len() == count {
                commanded = Some(commands(Arc::new(Waker::new(poll.registry(), COMMAND)?)));
                println!("open");
            }
        }
        let next = start + TICK * ticks;
        let wait = match commanded {
            Some(_) => next.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        };
        if let Err(error) = poll.poll(&mut events, Some(wait))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &events {
            if event.token() == COMMAND {
                while let Some(commands) = &commanded {
                    match commands.try_recv() {
                        Ok(command) if command == "free" => {
                            free = true;
                            println!("free");
                        }
                        Ok(command) => obey(&command, &clients, &mut counts)?,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Ok(()),
                    }
                }
            } else if let Some(client) = clients.get_mut(event.token().0) {
                read(client, &mut counts, usize::MAX, &mut scratch)?;
            }
        }
        if Instant::now() < next {
            continue;
        }
        // Ticks that were missed are not made up for.
        ticks = (start.elapsed().as_nanos() / TICK.as_nanos()) as u32 + 1;
        let now_ms = start.elapsed().as_millis() as u64;
        let trickle = now_ms / TRICKLE_MS > trickles;
        trickles = now_ms / TRICKLE_MS;
        for (index, client) in clients.iter_mut().enumerate().filter(|(_, client)| client.kind != Kind::Fast) {
            let most = match client.kind {
                _ if free => usize::MAX,
                // Spread over the cycle.
                Kind::Stalls if (now_ms + 137 * index as u64) % STALL_CYCLE_MS >= STALL_CYCLE_MS / 2 => usize::MAX,
                Kind::Trickles if trickle => TRICKLE_BYTES,
                _ => continue,
            };
            read(client, &mut counts, most, &mut scratch)?;
        }
    }
}

/// Opens some more of `count`.
fn open(
    poll: &Poll,
    clients: &mut Vec<Client>,
    count: usize,
    ask: impl Fn(usize) -> std::io::Result<TcpStream>,
) -> Result<()> {
    let every = (count / TIMED).max(1);
    let opening: std::io::Result<Vec<_>> = (clients.len()..count.min(clients.len() + AT_ONCE)).map(ask).collect();
    for stream in opening? {
        let (stream, held) = answered(stream)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let (index, kind) = (clients.len(), Kind::of(clients.len()));
        if kind == Kind::Fast {
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
        }
        let timed = kind != Kind::Fast || index % every == 0;
        let prices = vec![Price::default(); SYMBOLS];
        clients.push(Client { stream, kind, timed, gone: false, held, fragments: None, prices });
    }
    Ok(())
}

fn obey(command: &str, clients: &[Client], counts: &mut Counts) -> Result<()> {
    let of_kind = |holds: &dyn Fn(&Client) -> bool| {
        KINDS
            .map(|kind| clients.iter().filter(|client| client.kind == kind && holds(client)).count().to_string())
            .join(" ")
    };
    match command.split_once(' ') {
        Some(("same", file)) => {
            let last = counts.reader.last(Path::new(file))?;
            println!("same {}", of_kind(&|client| client.prices == last.prices));
        }
        _ if command == "complete" => {
            println!("complete {}", of_kind(&|client| client.prices.iter().all(|price| price.number > 0)));
        }
        _ if command == "begin" => {
            counts.kinds = Default::default();
            println!("begin");
        }
        _ => {
            let gone = clients.iter().filter(|client| client.gone).count();
            let kinds = counts.kinds.each_ref().map(|Counted { frames, bytes, updates, back, staleness }| {
                format!("{frames} {bytes} {updates} {back} {}", staleness.to_text())
            });
            println!("report {gone} {}", kinds.join(" "));
        }
    }
    Ok(())
}

/// Takes what there is of a client, or `most` bytes of it.
fn read(client: &mut Client, counts: &mut Counts, mut most: usize, scratch: &mut [u8]) -> Result<()> {
    while most > 0 && !client.gone {
        let room = most.min(scratch.len());
        let len = match client.stream.read(&mut scratch[..room]) {
            Ok(len) if len > 0 => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            _ => {
                client.gone = true;
                return Ok(());
            }
        };
        most = if most == usize::MAX { most } else { most - len };
        counts.kinds[client.kind as usize].bytes += len as u64;
        let now_us = now_ns()? / 1000;
        if client.held.is_empty() {
            let taken = frames(client, counts, &scratch[..len], now_us)?;
            client.held.extend_from_slice(&scratch[taken..len]);
        } else {
            let mut held = std::mem::take(&mut client.held);
            held.extend_from_slice(&scratch[..len]);
            let taken = frames(client, counts, &held, now_us)?;
            held.drain(..taken);
            client.held = held;
        }
        // A read that does not fill its room has taken all. epoll(7).
        if len < room {
            return Ok(());
        }
    }
    Ok(())
}

/// Takes the whole frames, and returns how many bytes they are.
fn frames(client: &mut Client, counts: &mut Counts, input: &[u8], now_us: u64) -> Result<usize> {
    let mut at = 0;
    while let Some((header, len)) = parse(&input[at..], Sender::Server, true)? {
        let end = at + len + header.payload_bytes as usize;
        let Some(payload) = input.get(at + len..end) else { break };
        match header.opcode {
            Opcode::Text if header.fin => take(client, counts, payload, header.rsv1, now_us)?,
            Opcode::Text => client.fragments = Some((payload.to_vec(), header.rsv1)),
            Opcode::Continuation => {
                let (mut message, compressed) = client.fragments.take().ok_or("a fragment has a start")?;
                message.extend_from_slice(payload);
                match header.fin {
                    true => take(client, counts, &message, compressed, now_us)?,
                    false => client.fragments = Some((message, compressed)),
                }
            }
            Opcode::Ping => client.stream.write_all(&frame(FIN | PONG, payload, Sender::Client))?,
            _ => {}
        }
        at = end;
    }
    Ok(at)
}

fn take(client: &mut Client, counts: &mut Counts, message: &[u8], compressed: bool, now_us: u64) -> Result<()> {
    let updates = counts.reader.read(message, compressed)?;
    let counted = &mut counts.kinds[client.kind as usize];
    counted.frames += 1;
    counted.updates += updates.len() as u64;
    for update in &*updates {
        let has = &mut client.prices[update.symbol];
        if update.price.number < has.number {
            counted.back += 1;
        }
        *has = update.price;
        if client.timed {
            counted.staleness.record(now_us.saturating_sub(update.at_ms * 1000));
        }
    }
    Ok(())
}
