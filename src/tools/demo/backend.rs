//! The sample backend: pages, an event stream and WebSockets on one port, enough HTTP/1.1 for a browser and a proxy.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | the page, opened through the gateway |
//! | `/foreign` | a page that connects to the gateway from wherever it was loaded |
//! | `/info` | `{"gateway": URL, "foreign": URL}` |
//! | `/events` | the gateway's log lines as Server-Sent Events |
//! | `/chat`, `/echo` | WebSockets |
//! | `/rooms` | the page of the rooms over two gateways |
//! | `/control` | a WebSocket of that page: it is told how the two are, and may say `kill 0` and `start 0` |
//! | `/room/NAME?last=N` | a WebSocket of a room, by GRIP, for the two gateways |
//! | `/since/NAME?last=N` | what was said in a room since, for them |
//!
//! One request per connection: every answer ends with the connection. It must listen on loopback only, since it shows
//! the gateway's log to whoever asks.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, header};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::tungstenite::handshake::machine::TryParse;
use tokio_tungstenite::tungstenite::handshake::server::{Request, create_response, write_response};
use tokio_tungstenite::tungstenite::{self, Message};

use super::pair::Pair;
use super::room::{self, Room};
use super::rooms::Rooms;

/// The most connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1000;
/// The longest request head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a request head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest command of the page.
const MAX_COMMAND_BYTES: usize = 64;
/// How often the page is told how the gateways are.
const STATE_EVERY: Duration = Duration::from_millis(250);
/// How often an event stream without events gets a comment, so that a reader that is gone is noticed.
const EVENTS_KEEPALIVE: Duration = Duration::from_secs(15);
/// The pause after a failed accept, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const PAGE: &str = include_str!("page.html");
const FOREIGN_PAGE: &str = include_str!("foreign.html");
const ROOMS_PAGE: &str = include_str!("rooms.html");
/// The pages load nothing, run their own inline script, and connect to the gateway; the page frames the foreign one.
const PAGE_POLICY: &str = "content-security-policy: default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; img-src data:; connect-src http: ws:; frame-src http:\r\n";

/// Subscribes to the gateway's log: one JSON document per item.
type Events = dyn Fn() -> broadcast::Receiver<Arc<str>> + Send + Sync;

/// The sample backend, bound and not yet serving.
pub struct Backend {
    listener: TcpListener,
    address: SocketAddr,
    events: Arc<Events>,
}

impl Backend {
    /// Binds a free port on 127.0.0.1. Each event stream calls `events` once, for a subscription of its own.
    ///
    /// # Errors
    /// Whatever the system says when it has no port to give.
    pub async fn bind(events: impl Fn() -> broadcast::Receiver<Arc<str>> + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, events: Arc::new(events) })
    }

    /// Where it listens: the endpoint for the gateway's configuration.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped, which ends its connections too. `gateway_url` is what the pages connect to, such as
    /// `http://127.0.0.1:8080`. Connections made between `bind` and this wait.
    pub async fn serve(self, gateway_url: &str) {
        let info = json!({ "gateway": gateway_url, "foreign": format!("http://{}/foreign", self.address) });
        let site = Arc::new(Site {
            info: info.to_string(),
            events: self.events,
            room: Room::new(),
            rooms: OnceCell::new(),
            address: self.address,
            page: gateway_url.to_owned(),
        });
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
            // Both arms are cancel-safe: `accept` and `join_next` lose nothing when the other one wins.
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let site = Arc::clone(&site);
                        // Whatever ends a connection, the peer is gone, and a sample has nobody to tell.
                        connections.spawn(async move { drop(site.serve(stream).await) });
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// What the connections share.
struct Site {
    info: String,
    events: Arc<Events>,
    room: Room,
    /// Started when somebody wants to see them.
    rooms: OnceCell<(Arc<Rooms>, Robot)>,
    address: SocketAddr,
    page: String,
}

/// Talks until it is dropped.
struct Robot(AbortHandle);

impl Drop for Robot {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Site {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Ok(head) = timeout(HEAD_TIMEOUT, read_head(&mut stream)).await else {
            return answer(&mut stream, "408 Request Timeout", "text/plain", "", "too slow\n").await;
        };
        let Some((request, behind)) = head? else {
            return answer(&mut stream, "400 Bad Request", "text/plain", "", "only GET is served\n").await;
        };
        match request.uri().path() {
            "/" => answer(&mut stream, "200 OK", "text/html; charset=utf-8", PAGE_POLICY, PAGE).await,
            "/foreign" => answer(&mut stream, "200 OK", "text/html; charset=utf-8", PAGE_POLICY, FOREIGN_PAGE).await,
            "/info" => answer(&mut stream, "200 OK", "application/json", "", &self.info).await,
            "/rooms" => answer(&mut stream, "200 OK", "text/html; charset=utf-8", PAGE_POLICY, ROOMS_PAGE).await,
            "/events" => self.stream_events(stream).await,
            path if path.starts_with("/since/") => self.since(&mut stream, &request).await,
            path if matches!(path, "/chat" | "/echo" | "/control") || path.starts_with("/room/") => {
                let Ok(mut response) = create_response(&request) else {
                    return answer(&mut stream, "426 Upgrade Required", "text/plain", UPGRADE, "a WebSocket\n").await;
                };
                if path.starts_with("/room/") {
                    let grip = HeaderValue::from_static("grip; message-prefix=\"m:\"");
                    response.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, grip);
                }
                let mut head = Vec::new();
                write_response(&mut head, &response).map_err(io::Error::other)?;
                stream.write_all(&head).await?;
                let ended = match path {
                    "/chat" => self.room.chat(stream, behind).await,
                    "/echo" => room::echo(stream, behind).await,
                    "/control" => self.control(stream, behind).await,
                    path => {
                        let Some((rooms, _)) = self.rooms.get() else { return Ok(()) };
                        let room = path.trim_start_matches("/room/");
                        return rooms.serve(stream, behind, room, last(&request)).await;
                    }
                };
                ended.map_err(io::Error::other)
            }
            _ => answer(&mut stream, "404 Not Found", "text/plain", "", "not found\n").await,
        }
    }

    /// Starts the rooms and the gateways before them, once.
    async fn rooms(&self) -> io::Result<&Arc<Rooms>> {
        let start = async || {
            let rooms = Arc::new(Rooms::new(Arc::new(Pair::start(self.address, &self.page).await?)));
            let robot = tokio::spawn({
                let rooms = rooms.clone();
                async move { rooms.robot().await }
            });
            Ok::<_, io::Error>((rooms, Robot(robot.abort_handle())))
        };
        Ok(&self.rooms.get_or_try_init(start).await?.0)
    }

    /// Tells the page how the gateways are, and does what it says.
    async fn control(&self, stream: TcpStream, behind: Vec<u8>) -> Result<(), tungstenite::Error> {
        let mut page = room::session(stream, behind, MAX_COMMAND_BYTES).await;
        let rooms = match self.rooms().await {
            Ok(rooms) => rooms,
            Err(error) => {
                let why = json!({ "error": format!("the gateways do not start: {error}") });
                return page.send(Message::text(why.to_string())).await;
            }
        };
        let mut ticks = interval_at(Instant::now(), STATE_EVERY);
        loop {
            // Both arms are cancel-safe, as in a room.
            let message = tokio::select! {
                _ = ticks.tick() => None,
                message = page.next() => Some(message),
            };
            match message {
                None => {}
                Some(Some(Ok(Message::Text(command)))) => {
                    let (word, at) = command.split_once(' ').unwrap_or_default();
                    let done = match (word, at.parse()) {
                        ("kill", Ok(at)) => {
                            rooms.pair().kill(at).await;
                            Ok(())
                        }
                        ("start", Ok(at)) => rooms.start(at).await,
                        _ => Ok(()),
                    };
                    if let Err(error) = done {
                        page.send(Message::text(json!({ "error": error.to_string() }).to_string())).await?;
                    }
                }
                Some(Some(Ok(_))) => continue,
                Some(Some(Err(_)) | None) => return Ok(()),
            }
            page.send(Message::text(rooms.state().await)).await?;
        }
    }

    /// What was said in a room since a line, for a gateway that has less.
    async fn since(&self, stream: &mut TcpStream, request: &Request) -> io::Result<()> {
        let room = request.uri().path().trim_start_matches("/since/");
        let events = match (self.rooms.get(), last(request)) {
            (Some((rooms, _)), Some(last)) => rooms.since(room, last).await,
            _ => None,
        };
        match events.and_then(|events| String::from_utf8(events).ok()) {
            Some(events) => answer(stream, "200 OK", "application/websocket-events", "", &events).await,
            None => answer(stream, "404 Not Found", "text/plain", "", "no such room\n").await,
        }
    }

    /// Relays the log until the reader or the gateway goes away.
    async fn stream_events(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut events = (self.events)();
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n\
                  connection: close\r\n\r\nretry: 1000\n\n",
            )
            .await?;
        let mut keepalive = interval_at(Instant::now() + EVENTS_KEEPALIVE, EVENTS_KEEPALIVE);
        let mut ignored = [0; 64];
        loop {
            // All arms are cancel-safe: none of them holds anything between polls.
            let chunk = tokio::select! {
                event = events.recv() => match event {
                    Ok(line) => as_event("", &line),
                    Err(RecvError::Lagged(missed)) => as_event("missed", &missed.to_string()),
                    Err(RecvError::Closed) => return Ok(()),
                },
                _ = keepalive.tick() => ":\n\n".to_owned(),
                read = stream.read(&mut ignored) => match read? {
                    0 => return Ok(()),
                    _ => continue,
                },
            };
            stream.write_all(chunk.as_bytes()).await?;
        }
    }
}

/// The line that a client has as its newest: `last=N` of the query.
fn last(request: &Request) -> Option<u64> {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').find_map(|pair| pair.strip_prefix("last=")?.parse().ok())
}

/// What a 426 must say.
const UPGRADE: &str = "upgrade: websocket\r\n";

/// One event of the stream; a line break inside `data` is spelled as the format asks, never passed through.
fn as_event(name: &str, data: &str) -> String {
    let mut event = if name.is_empty() { String::new() } else { format!("event: {name}\n") };
    for line in data.split(['\r', '\n']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

/// Reads a request head; returns it with the bytes behind it, or `None` when it is not a GET of HTTP/1.1.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<(Request, Vec<u8>)>> {
    let mut read = Vec::with_capacity(1024);
    loop {
        match Request::try_parse(&read) {
            Ok(Some((length, request))) => return Ok(Some((request, read.split_off(length)))),
            Ok(None) if read.len() < MAX_HEAD_BYTES => {}
            Ok(None) | Err(_) => return Ok(None),
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Writes a whole answer, after which the connection ends. `headers` are whole lines.
async fn answer(stream: &mut TcpStream, status: &str, kind: &str, headers: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\n{headers}connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::{Error, Message};
    use tokio_tungstenite::{WebSocketStream, client_async};

    /// A served backend that ends with the test, and the log that it relays.
    async fn served() -> (SocketAddr, broadcast::Sender<Arc<str>>, JoinSet<()>) {
        let (log, _) = broadcast::channel(4);
        let events = log.clone();
        let backend = Backend::bind(move || events.subscribe()).await.unwrap();
        let address = backend.address();
        let mut task = JoinSet::new();
        task.spawn(async move { backend.serve("http://127.0.0.1:8080").await });
        (address, log, task)
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: demo\r\n\r\n")).await
    }

    async fn open(address: SocketAddr, path: &str) -> WebSocketStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        client_async(format!("ws://{address}{path}"), stream).await.unwrap().0
    }

    async fn text(peer: &mut WebSocketStream<TcpStream>) -> String {
        peer.next().await.unwrap().unwrap().into_text().unwrap().to_string()
    }

    #[tokio::test]
    async fn serves_the_pages_and_tells_them_where_the_gateway_is() {
        let (address, _log, _task) = served().await;
        for path in ["/", "/foreign"] {
            let page = get(address, path).await;
            assert!(page.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/html"), "{page}");
            assert!(page.ends_with("</html>\n"), "{page}");
        }
        let info = get(address, "/info").await;
        let body = info.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(body).unwrap(),
            json!({ "gateway": "http://127.0.0.1:8080", "foreign": format!("http://{address}/foreign") })
        );
    }

    #[tokio::test]
    async fn answers_what_it_does_not_serve() {
        let (address, _log, _task) = served().await;
        assert!(get(address, "/nowhere").await.starts_with("HTTP/1.1 404 "));
        assert!(get(address, "/chat").await.starts_with("HTTP/1.1 426 "));
        assert!(exchange(address, "POST / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        assert!(exchange(address, "\0\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn streams_the_log_line_by_line_and_says_what_it_missed() {
        let (address, log, _task) = served().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nhost: demo\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"retry: 1000\n\n") {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
        // One poll of this single-threaded runtime sends all six: the stream can hold four.
        for n in 0..6 {
            log.send(format!("{{\"event\":\"ping\",\"n\":{n}}}").into()).unwrap();
        }
        read.clear();
        while !read.ends_with(b"\"n\":5}\n\n") {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
        let read = String::from_utf8(read).unwrap();
        assert!(read.starts_with("event: missed\ndata: 2\n\ndata: {\"event\":\"ping\",\"n\":2}\n\n"), "{read}");
    }

    #[test]
    fn an_event_cannot_forge_another() {
        assert_eq!(as_event("", "a\n\ndata: b\rc"), "data: a\ndata: \ndata: data: b\ndata: c\n\n");
    }

    #[tokio::test]
    async fn echoes_text_and_binary() {
        let (address, _log, _task) = served().await;
        let mut peer = open(address, "/echo").await;
        for message in [Message::text("grüße"), Message::binary(vec![7; 70_000])] {
            peer.send(message.clone()).await.unwrap();
            assert_eq!(peer.next().await.unwrap().unwrap(), message);
        }
        peer.close(None).await.unwrap();
        assert!(matches!(peer.next().await, Some(Ok(Message::Close(None)))));
    }

    #[tokio::test]
    async fn relays_a_guest_s_line_to_every_guest() {
        let (address, _log, _task) = served().await;
        let mut first = open(address, "/chat").await;
        assert_eq!(text(&mut first).await, "welcome, guest 1; 1 here");
        let mut second = open(address, "/chat").await;
        assert_eq!(text(&mut second).await, "welcome, guest 2; 2 here");
        first.send(Message::text("hello")).await.unwrap();
        assert_eq!(text(&mut first).await, "guest 1: hello");
        assert_eq!(text(&mut second).await, "guest 1: hello");
    }

    #[tokio::test]
    async fn ends_its_connections_when_it_is_dropped() {
        let (address, _log, task) = served().await;
        let mut peer = open(address, "/echo").await;
        drop(task);
        assert!(matches!(peer.next().await, Some(Err(Error::Protocol(_) | Error::Io(_))) | None));
    }
}
