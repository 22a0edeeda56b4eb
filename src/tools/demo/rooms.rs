//! Chat rooms for clients of several gateways: the application of the backplane.
//!
//! Written as an application would be: it numbers what is said in a room, keeps the last of it, publishes each line once,
//! and has each client subscribed to its room, behind the line that the client had last. It keeps no list of its clients.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::pair::Pair;
use super::room::session;

/// The rooms that there are: a client cannot make more.
pub const ROOMS: [&str; 2] = ["tea", "coffee"];
/// The lines that a room keeps for those who were away.
const KEPT_LINES: usize = 1000;
/// The longest line.
const MAX_LINE_BYTES: usize = 1024;
/// How often the robot says something, in each room in turn.
const ROBOT_PAUSE: Duration = Duration::from_millis(100);
/// How long a publication may take.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a line is published again that no gateway took. The same id again is stored once.
const PUBLISH_AGAIN: Duration = Duration::from_millis(100);

/// The rooms, in front of which the gateways stand.
pub struct Rooms {
    pair: Arc<Pair>,
    /// Each is locked while a line of it is published, so that lines are published in their order.
    rooms: BTreeMap<&'static str, Mutex<Room>>,
}

#[derive(Default)]
struct Room {
    /// The number of the newest line.
    newest: u64,
    lines: VecDeque<(u64, String)>,
}

impl Rooms {
    /// Empty rooms.
    pub fn new(pair: Arc<Pair>) -> Self {
        Self { pair, rooms: ROOMS.into_iter().map(|name| (name, Mutex::default())).collect() }
    }

    /// The processes in front of it.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Says something in each room in turn, until it is dropped.
    pub async fn robot(&self) {
        for room in ROOMS.iter().cycle() {
            self.say(room, "robot", "beep").await;
            sleep(ROBOT_PAUSE).await;
        }
    }

    /// Numbers a line, keeps it and publishes it. Waits while no gateway takes it.
    pub async fn say(&self, room: &str, who: &str, text: &str) {
        let Some(room_lock) = self.rooms.get(room) else { return };
        let mut state = room_lock.lock().await;
        state.newest += 1;
        let n = state.newest;
        let line = json!({ "n": n, "from": who, "text": text }).to_string();
        state.lines.push_back((n, line.clone()));
        if state.lines.len() > KEPT_LINES {
            state.lines.pop_front();
        }
        let body = json!({ "items": [item(room, n, &line)] }).to_string();
        while !self.publish(&body).await {
            sleep(PUBLISH_AGAIN).await;
        }
    }

    /// Whether the item is stored: once where the gateways share a log, else in each that runs.
    async fn publish(&self, body: &str) -> bool {
        let mut stored = false;
        for at in 0..self.pair.len() {
            if let Some(address) = self.pair.publish(at).await {
                stored |= matches!(timeout(PUBLISH_TIMEOUT, post(address, body)).await, Ok(Ok(())));
            }
            if stored && self.pair.shares_a_log() {
                break;
            }
        }
        stored
    }

    /// Starts a gateway again. One with a log of its own is told what the rooms have, while nothing is said in them.
    ///
    /// # Errors
    /// It does not start, or takes nothing.
    pub async fn start(&self, at: usize) -> io::Result<()> {
        if self.pair.shares_a_log() {
            return self.pair.run(at).await;
        }
        let mut rooms = Vec::new();
        for (name, room) in &self.rooms {
            rooms.push((*name, room.lock().await));
        }
        self.pair.run(at).await?;
        let Some(address) = self.pair.publish(at).await else { return Ok(()) };
        for (name, room) in rooms {
            let items: Vec<_> = room.lines.iter().map(|(n, line)| item(name, *n, line)).collect();
            post(address, &json!({ "items": items }).to_string()).await?;
        }
        Ok(())
    }

    /// Serves a client of a room, which had the line `last` as its newest.
    pub async fn serve(&self, stream: TcpStream, pre_read: Vec<u8>, room: &str, last: Option<u64>) -> io::Result<()> {
        if !self.rooms.contains_key(room) {
            return Ok(());
        }
        let mut guest = session(stream, pre_read, MAX_LINE_BYTES).await;
        let subscribe = match last {
            Some(last) => {
                let recover = json!({ "link": format!("/since/{room}?last={last}") });
                json!({ "type": "subscribe", "channel": room, "prev-id": id(room, last), "recover": recover })
            }
            None => json!({ "type": "subscribe", "channel": room }),
        };
        guest.send(Message::text(format!("c:{subscribe}"))).await.map_err(io::Error::other)?;
        while let Some(Ok(message)) = guest.next().await {
            if let Message::Text(text) = message {
                self.say(room, "you", &text).await;
            }
        }
        Ok(())
    }

    /// The lines of a room behind `last`, as events of WebSocket-over-HTTP: what a gateway asks for whose log has less.
    pub async fn since(&self, room: &str, last: u64) -> Option<Vec<u8>> {
        let room_state = self.rooms.get(room)?.lock().await;
        let mut events = Vec::new();
        let mut event = |text: &str| events.extend(format!("TEXT {:x}\r\n{text}\r\n", text.len()).bytes());
        for (_, line) in room_state.lines.iter().filter(|(n, _)| *n > last) {
            event(&format!("m:{line}"));
        }
        let subscribe = json!({ "type": "subscribe", "channel": room, "prev-id": id(room, room_state.newest) });
        event(&format!("c:{subscribe}"));
        Some(events)
    }

    /// What the page is told: where the gateways are, which of them run, and how many lines were said.
    pub async fn state(&self) -> String {
        let mut gateways = Vec::new();
        for at in 0..self.pair.len() {
            let url = self.pair.public(at).map(|address| format!("ws://{address}"));
            gateways.push(json!({ "url": url, "runs": self.pair.publish(at).await.is_some() }));
        }
        let mut said = BTreeMap::new();
        for (name, room) in &self.rooms {
            // One that waits for a gateway says so by standing still.
            if let Ok(room) = room.try_lock() {
                said.insert(*name, room.newest);
            }
        }
        let engine = if self.pair.shares_a_log() { "one Redis" } else { "a memory of its own each" };
        json!({ "gateways": gateways, "rooms": ROOMS, "said": said, "engine": engine }).to_string()
    }
}

fn id(room: &str, n: u64) -> String {
    format!("{room}-{n}")
}

fn item(room: &str, n: u64, line: &str) -> Value {
    json!({ "channel": room, "id": id(room, n), "formats": { "ws-message": { "content": line } } })
}

/// `POST /publish`.
async fn post(address: SocketAddr, body: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "POST /publish HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    // The answer is short, and the connection ends behind it.
    stream.take(4096).read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(io::Error::other("the gateway has not stored it")) }
}
