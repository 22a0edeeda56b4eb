//! A process of subscribers: a great many WebSockets on one thread, as cheap as they can be, so that the cores are the
//! gateway's.
//!
//! A line on standard input is a command: `phase N` forgets what was counted, and from then on counts the publications of
//! phase N; `report` says what was counted. A publication that has come to each subscriber is said at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use mio::{Events, Interest, Poll, Token, Waker};
use sluicegate::ws::header::{Opcode, Sender, parse};

use super::Result;
use super::histogram::Histogram;
use super::publisher::Stamp;
use super::sockets::{AT_ONCE, answered, ask, commands, now_ns};
use super::wire::{FIN, PONG, frame};

const READ_BYTES: usize = 64 << 10;
const COMMAND: Token = Token(usize::MAX);

struct Subscriber {
    stream: mio::net::TcpStream,
    /// The start of a frame.
    held: Vec<u8>,
    /// The newest publication of this phase that it has.
    last: Option<u64>,
}

#[derive(Default)]
struct Counted {
    phase: u64,
    /// How many subscribers each publication has come to.
    came: Vec<usize>,
    received: u64,
    /// What came twice, or behind a later one.
    disordered: u64,
    /// Subscribers whose connection is gone.
    gone: u64,
    latency: Histogram,
}

/// Opens `count` of them from a source address, and serves until standard input ends.
pub fn run(gateway: SocketAddr, source: Ipv4Addr, count: usize) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut subscribers = Vec::with_capacity(count);
    while subscribers.len() < count {
        let opening: std::io::Result<Vec<_>> =
            (0..AT_ONCE.min(count - subscribers.len())).map(|_| ask(gateway, source, "", None)).collect();
        for stream in opening? {
            let (stream, held) = answered(stream)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(subscribers.len()), Interest::READABLE)?;
            subscribers.push(Subscriber { stream, held, last: None });
        }
    }
    let commands = commands(Arc::new(Waker::new(poll.registry(), COMMAND)?));
    println!("open");
    let (mut events, mut counted) = (Events::with_capacity(1024), Counted::default());
    let mut scratch = vec![0; READ_BYTES];
    loop {
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &events {
            if event.token() == COMMAND {
                loop {
                    match commands.try_recv() {
                        Ok(command) => obey(&command, &mut subscribers, &mut counted)?,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Ok(()),
                    }
                }
            } else if let Some(subscriber) = subscribers.get_mut(event.token().0) {
                read(subscriber, &mut counted, count, &mut scratch)?;
            }
        }
    }
}

fn obey(command: &str, subscribers: &mut [Subscriber], counted: &mut Counted) -> Result<()> {
    if let Some(phase) = command.strip_prefix("phase ") {
        let gone = counted.gone;
        *counted = Counted { phase: phase.parse()?, gone, ..Counted::default() };
        subscribers.iter_mut().for_each(|subscriber| subscriber.last = None);
        println!("phase");
    } else {
        let Counted { received, disordered, gone, latency, .. } = counted;
        println!("report {received} {disordered} {gone} {}", latency.to_text());
    }
    Ok(())
}

/// Takes what there is of a subscriber.
fn read(subscriber: &mut Subscriber, counted: &mut Counted, count: usize, scratch: &mut [u8]) -> Result<()> {
    loop {
        let len = match subscriber.stream.read(scratch) {
            Ok(0) => {
                counted.gone += 1;
                return Ok(());
            }
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => {
                counted.gone += 1;
                return Ok(());
            }
        };
        let now = now_ns()?;
        if subscriber.held.is_empty() {
            let taken = frames(subscriber, counted, count, &scratch[..len], now)?;
            subscriber.held.extend_from_slice(&scratch[taken..len]);
        } else {
            let mut held = std::mem::take(&mut subscriber.held);
            held.extend_from_slice(&scratch[..len]);
            let taken = frames(subscriber, counted, count, &held, now)?;
            held.drain(..taken);
            subscriber.held = held;
        }
        // A read that does not fill its room has taken all. epoll(7).
        if len < scratch.len() {
            return Ok(());
        }
    }
}

/// Takes the whole frames, and returns how many bytes they are.
fn frames(subscriber: &mut Subscriber, counted: &mut Counted, count: usize, input: &[u8], now: u64) -> Result<usize> {
    let mut at = 0;
    while let Some((header, len)) = parse(&input[at..], Sender::Server, true)? {
        let Some(payload) = input.get(at + len..at + len + header.payload_bytes as usize) else { break };
        match header.opcode {
            Opcode::Text => {
                if let Some(stamp) = Stamp::read(payload).filter(|stamp| stamp.phase == counted.phase) {
                    counted.take(&stamp, &mut subscriber.last, count, now);
                }
            }
            Opcode::Ping => subscriber.stream.write_all(&frame(FIN | PONG, payload, Sender::Client))?,
            _ => {}
        }
        at += len + payload.len();
    }
    Ok(at)
}

impl Counted {
    fn take(&mut self, stamp: &Stamp, last: &mut Option<u64>, count: usize, now: u64) {
        if last.is_some_and(|last| last >= stamp.sequence) {
            self.disordered += 1;
            return;
        }
        *last = Some(stamp.sequence);
        self.received += 1;
        self.latency.record(now.saturating_sub(stamp.at_ns));
        let index = stamp.sequence as usize;
        if self.came.len() <= index {
            self.came.resize(index + 1, 0);
        }
        self.came[index] += 1;
        if self.came[index] == count {
            println!("all {} {}", self.phase, stamp.sequence);
        }
    }
}
