//! What goes over the wire: requests, answers and frames, right and wrong, and how they are read back.

/// What must not get through: a payload, or part of one.
pub const MARK: &[u8] = b"SLUICE-MARK";

/// What an honest client says, and must get back while others attack.
pub const HONEST: &[u8] = b"still here";

/// First bytes of frames, with FIN.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// First bytes of frames, without FIN.
pub const TEXT_BEGIN: u8 = 0x01;
pub const BINARY_BEGIN: u8 = 0x02;
pub const MORE: u8 = 0x00;

/// The last frame of a message in fragments.
pub const LAST: u8 = 0x80;

/// A request for what both proxies are told to deny.
pub const INTERNAL: &[u8] = b"GET /internal HTTP/1.1\r\nHost: app.example\r\n\r\n";

/// A sound request for a WebSocket, with these lines besides.
pub fn upgrade(path: &str, lines: &str) -> Vec<u8> {
    upgrade_text(path, lines).into_bytes()
}

fn upgrade_text(path: &str, lines: &str) -> String {
    assert!(lines.is_empty() || lines.ends_with("\r\n"), "whole lines");
    format!(
        "GET {path} HTTP/1.1\r\nHost: app.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

/// The request of [`upgrade`] with one of its parts replaced.
pub fn upgrade_but(from: &str, to: &str) -> Vec<u8> {
    let request = upgrade_text("/", "");
    assert!(request.contains(from), "{from:?} is part of the request");
    request.replacen(from, to, 1).into_bytes()
}

/// A sound answer to [`upgrade`], with these lines besides.
pub fn switching(lines: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{lines}\r\n"
    )
    .into_bytes()
}

/// A plain answer with this body.
pub fn answer(status: u16, lines: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n{lines}\r\n{body}", body.len()).into_bytes()
}

/// A frame's header: its first byte, and its length in the shortest form.
fn header(first: u8, mask_bit: u8, len: usize) -> Vec<u8> {
    let mut header = vec![first];
    match len {
        len @ 0..126 => header.push(mask_bit | len as u8),
        len @ 126..65536 => {
            header.push(mask_bit | 126);
            header.extend((len as u16).to_be_bytes());
        }
        len => {
            header.push(mask_bit | 127);
            header.extend((len as u64).to_be_bytes());
        }
    }
    header
}

/// A frame of a client. Its masking key is 0, so that a payload can be seen on the wire.
pub fn from_client(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, 0x80, payload.len())[..], &[0; 4], payload].concat()
}

/// A frame of a backend.
pub fn from_backend(first: u8, payload: &[u8]) -> Vec<u8> {
    [&header(first, 0, payload.len())[..], payload].concat()
}

/// Who sends what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

impl Side {
    /// A frame as this side has to send it.
    pub fn frame(self, first: u8, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Client => from_client(first, payload),
            Self::Backend => from_backend(first, payload),
        }
    }

    /// A frame as only the other side may send it.
    pub fn frame_of_the_other(self, first: u8, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Client => from_backend(first, payload),
            Self::Backend => from_client(first, payload),
        }
    }

    /// A frame whose length is written in these bytes, whatever its payload's is.
    pub fn declaring(self, first: u8, length: &[u8], payload: &[u8]) -> Vec<u8> {
        let (mask_bit, key): (u8, &[u8]) = match self {
            Self::Client => (0x80, &[0; 4]),
            Self::Backend => (0, &[]),
        };
        [&[first, mask_bit | length[0]], &length[1..], key, payload].concat()
    }
}

/// A Close frame's payload.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

/// Where `what` begins.
pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A head as it came.
#[derive(Clone, Debug)]
pub struct Head {
    /// The first line.
    pub line: String,
    /// The names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Its length in bytes.
    pub len: usize,
}

impl Head {
    /// Reads one; `None` when it is not whole. What is no header is passed over: a backend of this suite checks nothing.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let len = find(bytes, b"\r\n\r\n")? + 4;
        let text: String = bytes[..len - 4].iter().map(|byte| char::from(*byte)).collect();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers =
            headers.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned())).collect();
        Some(Self { line, headers, len })
    }

    /// The second word of the first line: a request's target, an answer's status.
    pub fn second_word(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// All values of a header.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether one of a header's lines has a token.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
    }
}

/// A frame as whoever checks nothing reads it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    /// The payload, unmasked.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads one and says how long it is; `None` when it is not whole.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let [first, second, rest @ ..] = bytes else { return None };
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let len = rest.get(..extended)?.iter().fold(0u64, |len, byte| len << 8 | u64::from(*byte));
        let len = usize::try_from(if extended == 0 { u64::from(second & 0x7f) } else { len }).ok()?;
        let key = if second & 0x80 != 0 { rest.get(extended..extended + 4)? } else { &[] };
        let at = extended + key.len();
        let mut payload = rest.get(at..at.checked_add(len)?)?.to_vec();
        payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        Some((Self { first: *first, payload }, 2 + at + len))
    }

    /// All frames at the front of `bytes`.
    pub fn all(mut bytes: &[u8]) -> Vec<Self> {
        let mut frames = Vec::new();
        while let Some((frame, len)) = Self::parse(bytes) {
            frames.push(frame);
            bytes = &bytes[len..];
        }
        frames
    }

    /// The code of a Close frame, 1005 for one without.
    pub fn close_code(&self) -> Option<u16> {
        let code = self.payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
        (self.first == CLOSE).then_some(code)
    }
}
