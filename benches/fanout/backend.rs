//! The subscribers' backend: opts in to GRIP and subscribes every client to the one channel, over a WebSocket or over HTTP,
//! and has nothing else to do.

use std::net::SocketAddr;

use sluicegate::ws::handshake::accept_for;
use sluicegate::ws::header::{Opcode, Sender, parse};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::Result;
use super::wire::{FIN, PONG, TEXT, frame};

/// The channel of all subscribers.
pub const CHANNEL: &str = "prices";

const SUBSCRIBE: &str = r#"c:{"type":"subscribe","channel":"prices"}"#;

/// Starts it on a thread of its own, until the process ends.
pub fn start() -> Result<SocketAddr> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            send.send(listener.local_addr()?)?;
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(async move {
                    // A gateway that goes away ends its connections.
                    let _ = serve(stream).await;
                });
            }
        })
    });
    Ok(receive.recv()?)
}

/// The requests of a connection, one behind the other.
async fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(2 << 10, stream);
    loop {
        let (mut upgrades, mut key, mut body_bytes) = (false, String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                if line == "\r\n" {
                    break;
                }
                continue;
            };
            if name.eq_ignore_ascii_case("sec-websocket-key") {
                // Over HTTP the client's comes along.
                value.clone_into(&mut key);
            } else if name.eq_ignore_ascii_case("upgrade") {
                upgrades = true;
            } else if name.eq_ignore_ascii_case("content-length") {
                body_bytes = value.parse()?;
            }
        }
        if upgrades {
            return web_socket(stream, &key).await;
        }
        let mut body = vec![0; body_bytes];
        stream.read_exact(&mut body).await?;
        let events = if body.starts_with(b"OPEN\r\n") {
            format!("OPEN\r\nTEXT {:x}\r\n{SUBSCRIBE}\r\n", SUBSCRIBE.len())
        } else {
            String::new()
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/websocket-events\r\nSec-WebSocket-Extensions: grip\r\n\
             Content-Length: {}\r\n\r\n{events}",
            events.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn web_socket(mut stream: BufReader<TcpStream>, key: &str) -> Result<()> {
    let accept = accept_for(key.as_bytes());
    let accept = String::from_utf8_lossy(&accept);
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Extensions: grip\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes();
    answer.extend(frame(FIN | TEXT, SUBSCRIBE.as_bytes(), Sender::Server));
    stream.write_all(&answer).await?;
    let mut input = Vec::new();
    loop {
        let read = stream.fill_buf().await?;
        if read.is_empty() {
            return Ok(());
        }
        input.extend_from_slice(read);
        let len = read.len();
        stream.consume(len);
        let mut at = 0;
        while let Some((header, len)) = parse(&input[at..], Sender::Client, true)? {
            let end = at + len + header.payload_bytes as usize;
            let Some(payload) = input.get(at + len..end) else { break };
            if header.opcode == Opcode::Ping {
                let mut payload = payload.to_vec();
                if let Some(key) = header.mask {
                    sluicegate::ws::mask::apply(&mut payload, key, 0);
                }
                stream.write_all(&frame(FIN | PONG, &payload, Sender::Server)).await?;
            }
            at = end;
        }
        input.drain(..at);
    }
}
