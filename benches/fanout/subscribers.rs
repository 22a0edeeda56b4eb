//! A process of subscribers: a great many WebSockets on one thread, as cheap as they can be, so that the cores are the
//! gateway's.
//!
//! A line on standard input is a command: `phase N` forgets what was counted, and from then on counts the publications of
//! phase N; `report` says what was counted. A publication that has come to each subscriber is said at once.

use std::io::{BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mio::{Events, Interest, Poll, Token, Waker};
use sluicegate::ws::header::{Opcode, Sender, parse};
use socket2::{Domain, Protocol, Socket, Type};

use super::Result;
use super::histogram::Histogram;
use super::publisher::Stamp;
use super::wire::{FIN, PONG, frame};

/// Handshakes under way at once.
const AT_ONCE: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 << 10;
/// Commands that wait; who gives more waits.
const COMMANDS: usize = 16;
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
            (0..AT_ONCE.min(count - subscribers.len())).map(|_| ask(gateway, source)).collect();
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

/// Connects, and sends a handshake.
fn ask(gateway: SocketAddr, source: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&gateway.into(), HANDSHAKE_TIMEOUT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let mut stream = TcpStream::from(socket);
    write!(
        stream,
        "GET /prices HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )?;
    Ok(stream)
}

/// Reads the answer to a handshake, and returns what came behind it.
fn answered(mut stream: TcpStream) -> Result<(TcpStream, Vec<u8>)> {
    let mut read = Vec::new();
    let head = loop {
        let mut buffer = [0; 1024];
        let len = stream.read(&mut buffer)?;
        read.extend_from_slice(&buffer[..len]);
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if len == 0 {
            return Err("a handshake was not answered".into());
        }
    };
    if !read.starts_with(b"HTTP/1.1 101") {
        return Err(format!("a handshake was answered with {}", read.escape_ascii()).into());
    }
    stream.set_nonblocking(true)?;
    Ok((stream, read.split_off(head)))
}

/// The lines of standard input, until it ends.
fn commands(waker: Arc<Waker>) -> Receiver<String> {
    let (send, receive) = sync_channel(COMMANDS);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            if send.send(line).is_err() || waker.wake().is_err() {
                break;
            }
        }
        drop(send);
        // Without it the other thread is not waiting for commands either.
        let _ = waker.wake();
    });
    receive
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

/// The clock of all processes of this machine.
pub fn now_ns() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64)
}
