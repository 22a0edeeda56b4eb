//! The frame header: parsed from a peer's bytes, and written for the control frames that we originate. RFC 6455 §5.2.

use super::error::ProtocolError;

/// The most bytes that a frame header has: two, eight of extended length, four of masking key.
pub const MAX_HEADER_BYTES: usize = 14;

/// The most bytes that a control frame carries. RFC 6455 §5.5.
pub const MAX_CONTROL_PAYLOAD_BYTES: usize = 125;

/// The most bytes of a whole control frame: its header with a masking key, and its payload.
pub const MAX_CONTROL_FRAME_BYTES: usize = 2 + 4 + MAX_CONTROL_PAYLOAD_BYTES;

/// What a frame is for. RFC 6455 §5.2; the reserved opcodes have no value here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// 0: the next fragment of a message.
    Continuation,
    /// 1: the first frame of a text message.
    Text,
    /// 2: the first frame of a binary message.
    Binary,
    /// 8: Close.
    Close,
    /// 9: Ping.
    Ping,
    /// 10: Pong.
    Pong,
}

impl Opcode {
    /// The four bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    const fn from_bits(bits: u8) -> Result<Self, ProtocolError> {
        Ok(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            reserved => return Err(ProtocolError::ReservedOpcode(reserved)),
        })
    }

    /// Whether this is a Close, a Ping or a Pong. RFC 6455 §5.5.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Which endpoint sends a stream of frames, and so whether they are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A client: each frame is masked. RFC 6455 §5.1.
    Client,
    /// A server: no frame is masked. RFC 6455 §5.1.
    Server,
}

/// A frame header that keeps the rules that can be seen in it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whether this frame ends its message.
    pub fin: bool,
    /// The opcode.
    pub opcode: Opcode,
    /// The masking key; `None` in a server's frame.
    pub mask: Option<[u8; 4]>,
    /// The length of the payload in bytes, below 2^63.
    pub payload_bytes: u64,
}

/// Parses a frame header of `sender` from the front of `input`.
///
/// Returns the header and its length in bytes (2 to 14), or `None` if `input` does not hold a whole header yet. The
/// verdict is the same however the bytes arrive.
///
/// # Errors
/// `ReservedBit` when one of RSV1-3 is set, since no extension is negotiated; `ReservedOpcode` for 3-7 and 11-15;
/// `FragmentedControl`; `Unmasked` and `Masked` against the sender's role; `ControlTooLong` over 125 bytes;
/// `NonMinimalLength` if a longer length form was used than needed; `LengthTooLarge` from 2^63.
///
/// # RFC
/// RFC 6455 §5.1, §5.2 and §5.5.
pub fn parse(input: &[u8], sender: Sender) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
    let Some(&first) = input.first() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(ProtocolError::ReservedBit);
    }
    let opcode = Opcode::from_bits(first & 0x0f)?;
    let fin = first & 0x80 != 0;
    if opcode.is_control() && !fin {
        return Err(ProtocolError::FragmentedControl);
    }

    let Some(&second) = input.get(1) else { return Ok(None) };
    match (sender, second & 0x80 != 0) {
        (Sender::Client, false) => return Err(ProtocolError::Unmasked),
        (Sender::Server, true) => return Err(ProtocolError::Masked),
        (Sender::Client, true) | (Sender::Server, false) => {}
    }
    let short = second & 0x7f;
    if opcode.is_control() && usize::from(short) > MAX_CONTROL_PAYLOAD_BYTES {
        return Err(ProtocolError::ControlTooLong);
    }

    let rest = &input[2..];
    let (payload_bytes, length_bytes) = match short {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
            None => return Ok(None),
        },
        127 => {
            if rest.first().is_some_and(|&high| high & 0x80 != 0) {
                return Err(ProtocolError::LengthTooLarge);
            }
            match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => return Ok(None),
            }
        }
        short => (u64::from(short), 0),
    };
    if (length_bytes == 2 && payload_bytes < 126) || (length_bytes == 8 && payload_bytes <= u64::from(u16::MAX)) {
        return Err(ProtocolError::NonMinimalLength);
    }

    let (mask, mask_bytes) = match sender {
        Sender::Server => (None, 0),
        Sender::Client => match rest[length_bytes..].first_chunk::<4>() {
            Some(key) => (Some(*key), 4),
            None => return Ok(None),
        },
    };
    Ok(Some((FrameHeader { fin, opcode, mask, payload_bytes }, 2 + length_bytes + mask_bytes)))
}

/// A whole control frame of ours, at most 131 bytes, without a heap.
#[derive(Clone, Copy, Debug)]
pub struct ControlFrame {
    bytes: [u8; MAX_CONTROL_FRAME_BYTES],
    len: u8,
}

impl ControlFrame {
    /// Builds a control frame; what is over 125 bytes of `payload` is cut off.
    ///
    /// `mask` is the masking key of a frame that we send in the client's role, to an upstream.
    ///
    /// # RFC
    /// RFC 6455 §5.3 and §5.5.
    pub fn new(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) -> Self {
        debug_assert!(opcode.is_control());
        let payload = &payload[..payload.len().min(MAX_CONTROL_PAYLOAD_BYTES)];
        let mut bytes = [0; MAX_CONTROL_FRAME_BYTES];
        bytes[0] = 0x80 | opcode.bits();
        bytes[1] = payload.len() as u8;
        let mut at = 2;
        if let Some(key) = mask {
            bytes[1] |= 0x80;
            bytes[at..at + 4].copy_from_slice(&key);
            at += 4;
        }
        bytes[at..at + payload.len()].copy_from_slice(payload);
        if let Some(key) = mask {
            super::mask::apply(&mut bytes[at..at + payload.len()], key, 0);
        }
        Self { bytes, len: (at + payload.len()) as u8 }
    }

    /// The frame as it goes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(bytes: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        parse(bytes, Sender::Client)
    }

    fn server(bytes: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        parse(bytes, Sender::Server)
    }

    #[test]
    fn parses_each_length_form() {
        let (header, len) = server(&[0x82, 125]).unwrap().unwrap();
        assert_eq!((header.payload_bytes, len), (125, 2));
        let (header, len) = server(&[0x82, 126, 0, 126]).unwrap().unwrap();
        assert_eq!((header.payload_bytes, len), (126, 4));
        let (header, len) = server(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]).unwrap().unwrap();
        assert_eq!((header.payload_bytes, len), (65536, 10));
        let (header, len) = client(&[0x01, 0xfe, 1, 0, 1, 2, 3, 4]).unwrap().unwrap();
        assert_eq!((header.mask, header.fin, header.opcode, len), (Some([1, 2, 3, 4]), false, Opcode::Text, 8));
    }

    #[test]
    fn needs_more_until_the_header_is_whole() {
        let whole = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4];
        for cut in 0..whole.len() {
            assert_eq!(client(&whole[..cut]), Ok(None), "{cut} bytes");
        }
        assert!(client(&whole).unwrap().is_some());
    }

    #[test]
    fn refuses_every_reserved_bit_with_every_opcode() {
        for rsv in [0x40, 0x20, 0x10, 0x70] {
            for opcode in [0, 1, 2, 8, 9, 10] {
                assert_eq!(server(&[0x80 | rsv | opcode, 0]), Err(ProtocolError::ReservedBit));
            }
        }
    }

    #[test]
    fn refuses_reserved_opcodes() {
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            assert_eq!(server(&[0x80 | opcode]), Err(ProtocolError::ReservedOpcode(opcode)));
        }
    }

    #[test]
    fn refuses_lengths_that_are_not_in_their_shortest_form() {
        assert_eq!(server(&[0x82, 126, 0, 125]), Err(ProtocolError::NonMinimalLength));
        assert_eq!(server(&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), Err(ProtocolError::NonMinimalLength));
        assert_eq!(server(&[0x82, 127, 0x80]), Err(ProtocolError::LengthTooLarge));
        let (header, _) = server(&[0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255]).unwrap().unwrap();
        assert_eq!(header.payload_bytes, (1 << 63) - 1);
    }

    #[test]
    fn refuses_bad_control_frames_and_the_wrong_masking() {
        assert_eq!(server(&[0x09]), Err(ProtocolError::FragmentedControl));
        assert_eq!(server(&[0x89, 126]), Err(ProtocolError::ControlTooLong));
        assert_eq!(client(&[0x81, 5]), Err(ProtocolError::Unmasked));
        assert_eq!(server(&[0x81, 0x85]), Err(ProtocolError::Masked));
    }

    #[test]
    fn writes_control_frames_that_parse_back() {
        let frame = ControlFrame::new(Opcode::Ping, b"token", None);
        assert_eq!(frame.as_bytes(), b"\x89\x05token");
        let frame = ControlFrame::new(Opcode::Close, b"\x03\xe9", Some([1, 2, 3, 4]));
        let (header, len) = client(frame.as_bytes()).unwrap().unwrap();
        let mut payload = frame.as_bytes()[len..].to_vec();
        super::super::mask::apply(&mut payload, header.mask.unwrap(), 0);
        assert_eq!(payload, b"\x03\xe9");
        assert_eq!(ControlFrame::new(Opcode::Ping, &[7; 200], None).as_bytes().len(), 127);
    }
}
