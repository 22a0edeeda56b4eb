//! The frames of a stream, read without any rule and without the scanner's parser.

/// What a frame declares about its length.
pub struct Declared {
    pub header_bytes: usize,
    pub length_bytes: usize,
    pub payload_bytes: u64,
}

impl Declared {
    /// `None` when the length is not whole. A masking key need not be there.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let second = *frame.get(1)?;
        let (length_bytes, payload_bytes) = match second & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes(frame.get(2..4)?.try_into().ok()?))),
            127 => (8, u64::from_be_bytes(frame.get(2..10)?.try_into().ok()?)),
            short => (0, u64::from(short)),
        };
        let header_bytes = 2 + length_bytes + if second & 0x80 == 0 { 0 } else { 4 };
        Some(Self { header_bytes, length_bytes, payload_bytes })
    }

    pub fn is_minimal(&self) -> bool {
        match self.length_bytes {
            0 => true,
            2 => self.payload_bytes > 125,
            _ => self.payload_bytes > 65535,
        }
    }

    pub fn is_whole(&self, frame: &[u8]) -> bool {
        frame.len().checked_sub(self.header_bytes).is_some_and(|there| self.payload_bytes <= there as u64)
    }
}

/// A frame with the payload that is there, unmasked.
pub struct Frame {
    pub at: usize,
    pub opcode: u8,
    pub fin: bool,
    pub is_whole: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn is_control(&self) -> bool {
        self.opcode & 8 != 0
    }
}

/// The frames up to and with the first that is not whole, as far as their headers are.
pub fn frames(stream: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(frame) = frame(stream, at) {
        let Some(declared) = Declared::read(&stream[at..]).filter(|_| frame.is_whole) else {
            frames.push(frame);
            break;
        };
        at += declared.header_bytes + declared.payload_bytes as usize;
        frames.push(frame);
    }
    frames
}

fn frame(stream: &[u8], at: usize) -> Option<Frame> {
    let bytes = &stream[at..];
    let declared = Declared::read(bytes)?;
    let there = bytes.get(declared.header_bytes..)?;
    let len = there.len().min(usize::try_from(declared.payload_bytes).unwrap_or(usize::MAX));
    let mut payload = there[..len].to_vec();
    if bytes[1] & 0x80 != 0 {
        let key = &bytes[declared.header_bytes - 4..declared.header_bytes];
        payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    }
    let is_whole = declared.is_whole(bytes);
    Some(Frame { at, opcode: bytes[0] & 0x0f, fin: bytes[0] & 0x80 != 0, is_whole, payload })
}

/// A message that has begun and not ended.
#[derive(Default)]
pub struct OpenMessage {
    /// 1 or 2, or 0 when no message is open.
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// The message that is open at a place of a stream whose frames before it are valid and whole.
pub fn open_message(stream: &[u8], at: usize) -> OpenMessage {
    let mut open = OpenMessage::default();
    for frame in frames(&stream[..at]).into_iter().filter(|frame| !frame.is_control()) {
        if frame.fin {
            open = OpenMessage::default();
            continue;
        }
        if frame.opcode != 0 {
            open.opcode = frame.opcode;
        }
        open.payload.extend(frame.payload);
    }
    open
}
