//! Frames as they are on the wire. RFC 6455 §5.2.

/// Text, whole.
pub const TEXT: u8 = 1;
/// Binary, whole.
pub const BINARY: u8 = 2;
/// Close.
pub const CLOSE: u8 = 8;
/// Ping.
pub const PING: u8 = 9;
/// Pong.
pub const PONG: u8 = 10;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame, its payload unmasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The opcode.
    pub opcode: u8,
    /// Whether it is the last of its message.
    pub fin: bool,
    /// Whether RSV1 is set: it begins a compressed message.
    pub rsv1: bool,
    /// Whether it came masked.
    pub masked: bool,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads a frame from the front and says how long it is; `None` when it is not whole.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let [first, second, rest @ ..] = bytes else { return None };
        let (len, rest) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
            127 => (u64::from_be_bytes(*rest.first_chunk()?) as usize, &rest[8..]),
            len => (usize::from(len), rest),
        };
        let masked = second & 0x80 != 0;
        let (mask, rest) = if masked { (*rest.first_chunk()?, &rest[4..]) } else { ([0; 4], rest) };
        let payload = rest.get(..len)?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let used = bytes.len() - rest.len() + len;
        Some((Self { opcode: first & 0x0f, fin: first & 0x80 != 0, rsv1: first & 0x40 != 0, masked, payload }, used))
    }

    /// The code of a Close frame.
    pub fn close_code(&self) -> Option<u16> {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }

    /// The payload as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("text")
    }
}

/// A frame of a server.
pub fn plain(opcode: u8, payload: &[u8]) -> Vec<u8> {
    build(opcode, payload, None)
}

/// A frame of a client.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    build(opcode, payload, Some(MASK))
}

fn build(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => frame.push(mask_bit | len as u8),
        len @ 126..65_536 => {
            frame.push(mask_bit | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(mask_bit | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
