//! Publications: what they hold, and how they are posted.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use super::Result;
use super::backend::CHANNEL;
use super::sockets::now_ns;

/// What each publication has.
pub const PAYLOAD_BYTES: usize = 125;

const TIMEOUT: Duration = Duration::from_secs(30);

/// The pause before what was not stored is published again.
const AGAIN: Duration = Duration::from_millis(100);

/// What a publication begins with.
#[derive(Debug)]
pub struct Stamp {
    pub phase: u64,
    pub sequence: u64,
    /// When it was published, on the clock of [`now_ns`].
    pub at_ns: u64,
}

impl Stamp {
    pub fn read(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let mut words = text.split(' ').map(str::parse);
        let mut next = || words.next()?.ok();
        Some(Self { phase: next()?, sequence: next()?, at_ns: next()? })
    }
}

/// A connection to where publishers publish, made anew where the other end has it so.
pub struct Publisher {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Publisher {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None }
    }

    /// Publishes, and returns when that was answered with 200; again while a gateway that has just started has no engine
    /// yet.
    pub fn insist(&mut self, phase: u64, sequence: u64) -> Result<()> {
        let until = Instant::now() + TIMEOUT;
        loop {
            match self.publish(phase, sequence) {
                Err(error) if error.to_string().contains(" 503 ") && Instant::now() < until => park_timeout(AGAIN),
                answer => return answer,
            }
        }
    }

    /// Publishes, and returns when that was answered with 200.
    pub fn publish(&mut self, phase: u64, sequence: u64) -> Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream
            }
        };
        let content = format!("{phase} {sequence} {} ", now_ns()?);
        let body = format!(
            "{{\"items\":[{{\"channel\":\"{CHANNEL}\",\"formats\":{{\"ws-message\":{{\"content\":\"{content:x<PAYLOAD_BYTES$}\"}}}}}}]}}"
        );
        let request = format!(
            "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"Published\n") {
            let mut buffer = [0; 1024];
            let len = stream.read(&mut buffer)?;
            answer.extend_from_slice(&buffer[..len]);
            // A refusal ends otherwise.
            if len == 0 || !answer.starts_with(b"HTTP/1.1 200") {
                break;
            }
        }
        let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") || !head.ends_with("published\n") {
            return Err(format!("publishing was answered with {head:?}").into());
        }
        self.stream = (!head.contains("connection: close")).then_some(stream);
        Ok(())
    }
}
