//! The WebSocket side of the sample backend: one chat room, and an echo.
//!
//! Written as an application would be, on tokio-tungstenite, without any protection of its own: that is the gateway's.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// The lines that a guest may be behind; one who is further behind is told how many were missed.
const ROOM_LINES: usize = 256;
/// The longest line of the chat; with [`ROOM_LINES`] it bounds the room's memory to 1 MiB.
const MAX_LINE_BYTES: usize = 4 * 1024;
/// The longest message that is echoed. Above the gateway's limit, so that the limit which is met is the gateway's.
const MAX_ECHO_BYTES: usize = 4 * 1024 * 1024;
/// The read buffer of a session; the library's default of 128 KiB is for other loads than this.
const READ_BUFFER_BYTES: usize = 8 * 1024;

type Result = std::result::Result<(), tokio_tungstenite::tungstenite::Error>;

/// The chat room.
pub struct Room {
    lines: broadcast::Sender<Utf8Bytes>,
    guests: AtomicU64,
}

impl Room {
    /// Makes an empty room.
    pub fn new() -> Self {
        Self { lines: broadcast::channel(ROOM_LINES).0, guests: AtomicU64::new(0) }
    }

    /// Serves one guest: what each says goes to all of them, the speaker too.
    pub async fn chat(&self, stream: TcpStream, pre_read: Vec<u8>) -> Result {
        let mut guest = session(stream, pre_read, MAX_LINE_BYTES).await;
        let name = format!("guest {}", self.guests.fetch_add(1, Ordering::Relaxed) + 1);
        let mut lines = self.lines.subscribe();
        guest.send(Message::text(format!("welcome, {name}; {} here", self.lines.receiver_count()))).await?;
        loop {
            // Both arms are cancel-safe: a receiver loses nothing, and a partly read message stays in `guest`.
            tokio::select! {
                line = lines.recv() => match line {
                    Ok(line) => guest.send(Message::Text(line)).await?,
                    Err(RecvError::Lagged(n)) => guest.send(Message::text(format!("({n} lines missed)"))).await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                message = guest.next() => match message {
                    Some(Ok(Message::Text(text))) => self.say(format!("{name}: {text}")),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                },
            }
        }
    }

    fn say(&self, line: String) {
        // It fails only when nobody listens; the speaker does.
        let _ = self.lines.send(line.into());
    }
}

/// Sends every text and binary message back.
pub async fn echo(stream: TcpStream, pre_read: Vec<u8>) -> Result {
    let mut peer = session(stream, pre_read, MAX_ECHO_BYTES).await;
    while let Some(message) = peer.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            peer.send(message).await?;
        }
    }
    Ok(())
}

pub(super) async fn session(stream: TcpStream, pre_read: Vec<u8>, max_bytes: usize) -> WebSocketStream<TcpStream> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(max_bytes))
        .max_frame_size(Some(max_bytes));
    WebSocketStream::from_partially_read(stream, pre_read, Role::Server, Some(config)).await
}
