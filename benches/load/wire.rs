//! The two peers around a proxy under test: a client's socket, and the backend.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use sluicegate::ws::handshake::accept_for;
use sluicegate::ws::header::{FrameHeader, Opcode, Sender, parse};
use sluicegate::ws::mask;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Result;

pub const FIN: u8 = 0x80;
pub const RSV1: u8 = 0x40;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Room for a read.
const READ_BYTES: usize = 32 << 10;

/// How many data frames the backend has read.
pub static FRAMES: AtomicU64 = AtomicU64::new(0);

/// How many handshakes the backend has answered.
pub static HANDSHAKES: AtomicU64 = AtomicU64::new(0);

/// How much a download is, in bytes.
const DOWNLOAD_BYTES: usize = 16 << 20;

/// A frame of a client, masked with the key 0, or of a server.
pub fn frame(first: u8, payload: &[u8], sender: Sender) -> Vec<u8> {
    let masked = sender == Sender::Client;
    let bit = if masked { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(bit | len as u8),
        len @ 126..65536 => {
            frame.push(bit | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(bit | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(&[0; 4][..if masked { 4 } else { 0 }]);
    frame.extend(payload);
    frame
}

/// A WebSocket, from either end.
pub struct Socket<S = TcpStream> {
    stream: S,
    /// Sends what is read here.
    peer: Sender,
    buffer: Vec<u8>,
    at: usize,
}

impl Socket {
    /// Opens one as a client, with an offer of permessage-deflate or without.
    pub async fn open(address: SocketAddr, path: &str, offers: bool) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::open_over(stream, path, offers).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// The same on a connection.
    pub async fn open_over(mut stream: S, path: &str, offers: bool) -> Result<Self> {
        let offer = if offers { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\n{offer}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let head = read_head(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 101") {
            return Err(head.into());
        }
        Ok(Self::over(stream))
    }

    /// The same on a stream that a handshake has opened already.
    pub fn over(stream: S) -> Self {
        Self { stream, peer: Sender::Server, buffer: Vec::new(), at: 0 }
    }

    /// The connection, to be written to and read as it comes. What was read of it is lost.
    pub fn into_stream(self) -> S {
        self.stream
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Whether a whole frame has been read already.
    fn has_frame(&self) -> bool {
        let input = &self.buffer[self.at..];
        let header = parse(input, self.peer, true).ok().flatten();
        header.is_some_and(|(header, len)| input.len() >= len + header.payload_bytes as usize)
    }

    /// The next frame, its payload unmasked. `None` at the end.
    pub async fn frame(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>> {
        loop {
            let input = &self.buffer[self.at..];
            if let Some((header, len)) = parse(input, self.peer, true)?
                && let Some(payload) = input.get(len..len + header.payload_bytes as usize)
            {
                let mut payload = payload.to_vec();
                if let Some(key) = header.mask {
                    mask::apply(&mut payload, key, 0);
                }
                self.at += len + payload.len();
                return Ok(Some((header, payload)));
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            // A read takes what there is room for.
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next message: its first byte, as if it was one frame, and its payload. Control frames are passed over.
    pub async fn message(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let (mut first, mut whole) = (0, Vec::new());
        while let Some((header, payload)) = self.frame().await? {
            match header.opcode {
                Opcode::Continuation => {}
                Opcode::Text => first = FIN | TEXT,
                Opcode::Binary => first = FIN | BINARY,
                _ => continue,
            }
            if header.rsv1 {
                first |= RSV1;
            }
            whole.extend(payload);
            if header.fin {
                return Ok(Some((first, whole)));
            }
        }
        Ok(None)
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Starts a backend that accepts permessage-deflate where it is offered. By the path of a handshake:
///
/// - `/echo` sends each message back in one frame;
/// - `/sink` sends back only what is binary and not compressed;
/// - `/drop` takes what comes and looks at nothing;
/// - `/download` sends messages of 64 KiB, 16 MiB altogether;
/// - `/begin` sends the first fragment of a message for each message, and no more of it.
pub async fn start_backend() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A client that goes away ends its session.
                let _ = serve(stream).await;
            });
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let head = read_head(&mut stream).await?;
    let offered = head.to_ascii_lowercase().contains("sec-websocket-extensions:");
    let answer = if offered { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
    // Over HTTP/2 the key is the gateway's own.
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let key = lines.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key).next();
    let accept = accept_for(key.unwrap_or_default().as_bytes());
    let accept = String::from_utf8_lossy(&accept);
    let accept = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{answer}\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(accept.as_bytes()).await?;
    HANDSHAKES.fetch_add(1, Ordering::Relaxed);
    if head.starts_with("GET /drop ") {
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Ok(());
    }
    let mut socket = Socket { stream, peer: Sender::Client, buffer: Vec::new(), at: 0 };
    if head.starts_with("GET /echo ") {
        let mut echoes = Vec::new();
        while let Some((first, payload)) = socket.message().await? {
            echoes.extend(frame(first, &payload, Sender::Server));
            if !socket.has_frame() {
                socket.send(&echoes).await?;
                echoes.clear();
            }
        }
        return Ok(());
    }
    if head.starts_with("GET /download ") {
        let message = frame(FIN | BINARY, &vec![b'x'; 64 << 10], Sender::Server);
        for _ in 0..DOWNLOAD_BYTES / message.len() {
            socket.send(&message).await?;
        }
    }
    let begins = head.starts_with("GET /begin ");
    while let Some((header, payload)) = socket.frame().await? {
        FRAMES.fetch_add(1, Ordering::Relaxed);
        if begins {
            socket.send(&frame(TEXT, &payload, Sender::Server)).await?;
        } else if header.opcode == Opcode::Ping {
            socket.send(&frame(FIN | PONG, &payload, Sender::Server)).await?;
        } else if header.opcode == Opcode::Binary && header.fin && !header.rsv1 {
            socket.send(&frame(FIN | BINARY, &payload, Sender::Server)).await?;
        }
    }
    Ok(())
}
