//! The real binary, and peers on raw sockets: a client and an upstream that send what no library would.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use sluicegate::ws::handshake::accept_for;

/// How long anything may take that is awaited. Generous: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How often what cannot be waited for is looked at.
const POLL: Duration = Duration::from_millis(10);

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// First bytes of frames, with FIN.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// Waits until `find` finds something.
pub fn eventually<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let by = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < by, "{what}: not within {DEADLINE:?}");
        pause(POLL);
    }
}

/// Lets time pass: between two looks, or between two pieces of a slow stream.
#[expect(clippy::disallowed_methods, reason = "no runtime: each peer is a thread")]
pub fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// A gateway that runs, with one rule named `app`; it ends with the test.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    pub address: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

/// How a session ended, as every place must say it.
#[derive(Clone, Copy)]
pub struct End {
    pub cause: &'static str,
    pub closed_by: &'static str,
    /// The log's `close_code`.
    pub code: u16,
    /// The log's `close_sent`.
    pub sent: Option<u16>,
    /// The policy whose refusal is counted.
    pub policy: Option<&'static str>,
}

impl Gateway {
    /// Runs in front of `upstream` with these lines in its rule. Without a word of theirs there is no keepalive.
    pub fn start(upstream: SocketAddr, rule: &[&str]) -> Self {
        Self::start_with(upstream, rule, "")
    }

    /// The same, with a line of the main file.
    pub fn start_with(upstream: SocketAddr, rule: &[&str], main: &str) -> Self {
        let mut rule = rule.to_vec();
        if !rule.iter().any(|line| line.starts_with("keepalive:")) {
            rule.push("keepalive: off");
        }
        let rule: String = rule.iter().map(|line| format!("    {line}\n")).collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sluicegate.yaml");
        let configuration = format!(
            "version: 1\n\
             listeners: [{{ name: public, bind: \"127.0.0.1:0\" }}]\n\
             admin: {{ bind: \"127.0.0.1:0\" }}\n\
             upstreams: [{{ name: app, endpoints: [\"{upstream}\"] }}]\n\
             {main}\n\
             rules:\n  - name: app\n    upstream: app\n{rule}"
        );
        std::fs::write(&file, &configuration).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["run", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::<Mutex<Vec<Value>>>::default();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn({
            let log = log.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    log.lock().push(entry);
                }
            }
        });
        let mut listening = |name: &str| {
            eventually("the gateway listens", || {
                let log = log.lock();
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{ended:?} {log:?}, on\n{configuration}");
                let line = log.iter().find(|line| line["listener"] == name && line["event"] == "listening")?;
                line["address"].as_str()?.parse().ok()
            })
        };
        let (address, admin) = (listening("public"), listening("admin"));
        Self { child, log, address, admin, _folder: folder }
    }

    /// Publishes a text on a channel, at the listener for that.
    pub fn publishes(&self, channel: &str, text: &str) {
        let listening = |line: &&Value| line["event"] == "listening" && line["listener"] == "publish";
        let address = self.log.lock().iter().find(listening).and_then(|line| line["address"].as_str()?.parse().ok());
        let mut stream = connect(address.expect("it listens for publications"));
        let body =
            serde_json::json!({ "items": [{ "channel": channel, "formats": { "ws-message": { "content": text } } }] });
        let body = body.to_string();
        let len = body.len();
        write!(stream, "POST /publish HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// The `nth` line of a session, from 1.
    pub fn session_line(&self, nth: usize) -> Value {
        eventually("the session's log line", || {
            let log = self.log.lock();
            let line = log.iter().filter(|line| line["event"] == "session").nth(nth - 1).cloned();
            assert!(line.is_some() || log.last().is_none_or(|line| line["event"] != "stopped"), "no line: {log:#?}");
            line
        })
    }

    /// Everything that /metrics says.
    pub fn metrics(&self) -> String {
        let answer = self.asks_admin("GET", "/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer
    }

    /// What the admin endpoint answers.
    pub fn asks_admin(&self, method: &str, path: &str) -> String {
        let mut admin = connect(self.admin);
        write!(admin, "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).unwrap();
        let mut answer = String::new();
        admin.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The sum of the series of a metric whose line has all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric has a value.
    pub fn awaits(&self, name: &str, labels: &[&str], wanted: f64) {
        let mut last = f64::NAN;
        eventually(&format!("{name} {labels:?} becomes {wanted}"), || {
            last = self.metric(name, labels);
            (last == wanted).then_some(())
        });
    }

    /// Waits until a metric has at least a value.
    pub fn eventually_over(&self, name: &str, labels: &[&str], least: f64) {
        eventually(&format!("{name} {labels:?} reaches {least}"), || {
            (self.metric(name, labels) >= least).then_some(())
        });
    }

    /// Asserts that the one session so far ended like this, in its log line and in all metrics. Returns the line.
    #[track_caller]
    pub fn assert_end(&self, end: End) -> Value {
        let line = self.assert_logged(end);
        self.assert_counted(end);
        line
    }

    /// The part of [`Gateway::assert_end`] that is the log's.
    #[track_caller]
    pub fn assert_logged(&self, end: End) -> Value {
        let line = self.session_line(1);
        let number = |field: &str| line[field].as_u64();
        assert_eq!(
            (line["cause"].as_str(), line["closed_by"].as_str(), number("close_code"), number("close_sent")),
            (Some(end.cause), Some(end.closed_by), Some(end.code.into()), end.sent.map(u64::from)),
            "{line}"
        );
        assert_eq!((line["rule"].as_str(), line["event"].as_str()), (Some("app"), Some("session")));
        line
    }

    /// The part of [`Gateway::assert_end`] that is the metrics'.
    #[track_caller]
    pub fn assert_counted(&self, end: End) {
        self.awaits("sluicegate_connections", &[], 0.0);
        let code = match end.code {
            3000..=3999 => "3xxx".to_owned(),
            4000..=4999 => "4xxx".to_owned(),
            code => code.to_string(),
        };
        let text = self.metrics();
        let sum = |name: &str, labels: &[String]| -> f64 {
            let held = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(&**label));
            text.lines().filter(held).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        let closes = [
            format!("cause=\"{}\"", end.cause),
            format!("closed_by=\"{}\"", end.closed_by),
            format!("code=\"{code}\""),
            "rule=\"app\"".to_owned(),
        ];
        assert_eq!(sum("sluicegate_closes_total{", &closes), 1.0, "{text}");
        assert_eq!(sum("sluicegate_closes_total{", &[]), 1.0, "{text}");
        let refused = "decision=\"refused\"".to_owned();
        let decisions = "sluicegate_policy_decisions_total{";
        assert_eq!(sum(decisions, std::slice::from_ref(&refused)), f64::from(u8::from(end.policy.is_some())), "{text}");
        if let Some(policy) = end.policy {
            assert_eq!(sum(decisions, &[refused, format!("policy=\"{policy}\"")]), 1.0, "{text}");
        }
        let evicted = f64::from(u8::from(matches!(end.cause, "slow_client" | "overrun")));
        assert_eq!(sum("sluicegate_slow_client_evictions_total{", &[]), evicted, "{text}");
        assert_eq!(sum("sluicegate_slow_clients ", &[]), 0.0, "{text}");
    }

    /// Asks the process to drain, and does not wait.
    pub fn terminate(&self) {
        signal("TERM", self.child.id());
    }

    /// Says whether what is new is refused because the process drains. It is refused for its Origin before.
    pub fn refuses_as_draining(&self) -> bool {
        let mut client = Peer { stream: connect(self.address), is_client: true };
        client.ask(self.address, "/", "Origin: https://foreign.example\r\n");
        let answer = client.head();
        assert!(answer.starts_with("HTTP/1.1 503 ") || answer.starts_with("HTTP/1.1 403 "), "{answer}");
        answer.starts_with("HTTP/1.1 503 ")
    }

    /// Waits for the end of the process.
    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the gateway ends", || child.try_wait().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process of this test.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(sent.success(), "kill -{name} {pid}");
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Where sessions arrive: an upstream that is written by hand.
pub struct Upstream(TcpListener);

impl Upstream {
    pub fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Opens a session through the gateway: its client, and its upstream.
    pub fn open(&self, gateway: &Gateway) -> (Peer, Peer) {
        self.open_from(gateway, connect(gateway.address))
    }

    /// The same, from a connection to the gateway.
    pub fn open_from(&self, gateway: &Gateway, stream: TcpStream) -> (Peer, Peer) {
        self.open_with(gateway, stream, "")
    }

    /// The same, with an offer of extensions.
    pub fn open_offering(&self, gateway: &Gateway, offer: &str) -> (Peer, Peer) {
        self.open_with(gateway, connect(gateway.address), &format!("Sec-WebSocket-Extensions: {offer}\r\n"))
    }

    /// The same, of a client that asks for the subprotocol `sluicegate.v1`.
    pub fn open_resumable(&self, gateway: &Gateway) -> (Peer, Peer) {
        self.open_with(gateway, connect(gateway.address), "Sec-WebSocket-Protocol: sluicegate.v1\r\n")
    }

    fn open_with(&self, gateway: &Gateway, stream: TcpStream, header: &str) -> (Peer, Peer) {
        let mut client = Peer { stream, is_client: true };
        client.ask(gateway.address, "/", header);
        let mut upstream = Peer { stream: self.accept(), is_client: false };
        let asked = upstream.head();
        let key = asked.lines().filter_map(|line| line.split_once(": "));
        let key = key.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key).next();
        // It opts in where it is asked.
        let grip = if asked.contains("grip\r\n") { "Sec-WebSocket-Extensions: grip\r\n" } else { "" };
        let accept = String::from_utf8(accept_for(key.expect("a key").as_bytes()).to_vec()).unwrap();
        upstream.send(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 {grip}Sec-WebSocket-Accept: {accept}\r\n\r\n"
            )
            .as_bytes(),
        );
        client.upgraded();
        (client, upstream)
    }

    /// Sends a plain request through the gateway and leaves it unanswered: where it came from, and where it arrived.
    pub fn ask_plainly(&self, gateway: &Gateway) -> (TcpStream, TcpStream) {
        let mut asking = connect(gateway.address);
        write!(asking, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", gateway.address).unwrap();
        let mut asked = Peer { stream: self.accept(), is_client: false };
        assert!(asked.head().starts_with("GET / HTTP/1.1"));
        (asking, asked.stream)
    }

    fn accept(&self) -> TcpStream {
        let stream = eventually("the gateway connects", || self.0.accept().ok()).0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// Opens a session at a path of whatever is behind the gateway.
pub fn open_at(gateway: &Gateway, path: &str) -> Peer {
    open_over(gateway, path, connect(gateway.address))
}

/// The same, over a connection to the gateway.
pub fn open_over(gateway: &Gateway, path: &str, stream: TcpStream) -> Peer {
    let mut client = Peer { stream, is_client: true };
    client.ask(gateway.address, path, "");
    client.upgraded();
    client
}

/// A connection whose kernel takes little that its owner does not read.
pub fn connect_with_a_small_window(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect_timeout(&address.into(), DEADLINE).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// One end of a session, on a raw socket.
pub struct Peer {
    pub stream: TcpStream,
    is_client: bool,
}

/// A frame that a peer received, its payload unmasked.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Peer {
    fn ask(&mut self, host: SocketAddr, path: &str, header: &str) {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{header}\r\n"
        );
        self.send(request.as_bytes());
    }

    fn upgraded(&mut self) {
        let answer = self.head();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    }

    /// Reads a head, and no byte more.
    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// A frame as this peer sends it: masked if it is the client.
    pub fn frame(&self, first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(len as u8),
            len @ 126..65536 => {
                frame.push(126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        if self.is_client {
            frame[1] |= 0x80;
            let key = [0x11, 0x22, 0x33, 0x44];
            frame.extend(key);
            frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        } else {
            frame.extend(payload);
        }
        frame
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&self.frame(first, payload));
    }

    pub fn send_close(&mut self, code: u16, reason: &str) {
        self.send_frame(CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat());
    }

    /// The next frame; `None` when the stream ends between two of them, or is reset.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; 2];
        match self.stream.read_exact(&mut head[..1]) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
            Err(error) => panic!("no frame: {error}"),
        }
        let mut exactly = |buffer: &mut [u8]| self.stream.read_exact(buffer).expect("a whole frame");
        exactly(&mut head[1..]);
        assert_eq!(head[1] & 0x80 != 0, !self.is_client, "what goes to an upstream is masked, and nothing else");
        let mut length = u64::from(head[1] & 0x7f);
        if length >= 126 {
            let mut bytes = [0; 8];
            exactly(&mut bytes[if length == 126 { 6 } else { 0 }..]);
            length = u64::from_be_bytes(bytes);
        }
        let mut key = [0; 4];
        if !self.is_client {
            exactly(&mut key);
        }
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        exactly(&mut payload);
        for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        Some(Frame { first: head[0], payload })
    }

    #[track_caller]
    pub fn expect(&mut self, first: u8, payload: &[u8]) {
        let frame = self.receive().expect("a frame, not the end");
        assert!(frame.first == first && frame.payload == payload, "{:02x} {:02x?}", frame.first, frame.payload);
    }

    /// The next frame is a Close frame with this code; returns its reason.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        let frame = self.receive().unwrap_or_else(|| panic!("the end, not a Close frame with {code}"));
        assert_eq!(frame.first, CLOSE, "{frame:02x?}");
        assert_eq!(frame.payload[..2], code.to_be_bytes(), "{frame:02x?}");
        String::from_utf8(frame.payload[2..].to_vec()).unwrap()
    }

    /// The stream ends here, without another byte.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let frame = self.receive();
        assert_eq!(frame, None, "nothing but the end");
    }

    /// Answers the Close frame of `code` that is expected next, and sees the end.
    #[track_caller]
    pub fn expect_close_and_end(&mut self, code: u16) {
        let reason = self.expect_close(code);
        assert!(!reason.is_empty() || !self.is_client, "the client is told why");
        self.send_close(code, "");
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        self.expect_end();
    }

    /// The next frame that is no ping; those are answered.
    pub fn receive_answering(&mut self) -> Option<Frame> {
        loop {
            match self.receive() {
                Some(Frame { first: PING, payload }) => self.send_frame(PONG, &payload),
                other => return other,
            }
        }
    }

    #[track_caller]
    pub fn expect_answering(&mut self, first: u8, payload: &[u8]) {
        let frame = self.receive_answering().expect("a frame, not the end");
        assert!(frame.first == first && frame.payload == payload, "{:02x} {:02x?}", frame.first, frame.payload);
    }

    /// Answers pings, in this thread, until `holds` does: it is asked after each.
    pub fn answer_until(&mut self, mut holds: impl FnMut() -> bool) {
        while !holds() {
            let frame = self.receive().expect("a ping, not the end");
            assert_eq!(frame.first, PING, "{frame:02x?}");
            self.send_frame(PONG, &frame.payload);
        }
    }

    /// Answers pings in a thread of its own until something else comes, and returns that.
    pub fn alive(mut self) -> thread::JoinHandle<(Self, Option<Frame>)> {
        thread::spawn(move || {
            let frame = self.receive_answering();
            (self, frame)
        })
    }
}
