//! The frame header: parsed from a peer's bytes, and written for the control frames that we originate. RFC 6455 §5.2.

use super::error::ProtocolError;
use super::mask;

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
    /// RSV1: this frame begins a compressed message. RFC 7692 §6.
    pub rsv1: bool,
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
/// `ReservedBit` when one of RSV1-3 is set, but for RSV1 of a message's first frame when `rsv1_allowed`, since
/// permessage-deflate is negotiated; `ReservedOpcode` for 3-7 and 11-15;
/// `FragmentedControl`; `Unmasked` and `Masked` against the sender's role; `ControlTooLong` over 125 bytes;
/// `NonMinimalLength` if a longer length form was used than needed; `LengthTooLarge` from 2^63.
///
/// # RFC
/// RFC 6455 §5.1, §5.2 and §5.5; RFC 7692 §6.1.
pub fn parse(input: &[u8], sender: Sender, rsv1_allowed: bool) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
    let Some(&first) = input.first() else { return Ok(None) };
    let rsv1 = first & 0x40 != 0;
    if first & 0x30 != 0 || (rsv1 && !rsv1_allowed) {
        return Err(ProtocolError::ReservedBit);
    }
    let opcode = Opcode::from_bits(first & 0x0f)?;
    if rsv1 && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(ProtocolError::ReservedBit);
    }
    let fin = first & 0x80 != 0;
    if opcode.is_control() && !fin {
        return Err(ProtocolError::FragmentedControl);
    }

    let [_, second, rest @ ..] = input else { return Ok(None) };
    let second = *second;
    match (sender, second & 0x80 != 0) {
        (Sender::Client, false) => return Err(ProtocolError::Unmasked),
        (Sender::Server, true) => return Err(ProtocolError::Masked),
        (Sender::Client, true) | (Sender::Server, false) => {}
    }
    let short = second & 0x7f;
    if opcode.is_control() && usize::from(short) > MAX_CONTROL_PAYLOAD_BYTES {
        return Err(ProtocolError::ControlTooLong);
    }

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
        Sender::Client => match rest.get(length_bytes..).and_then(|rest| rest.first_chunk::<4>()) {
            Some(key) => (Some(*key), 4),
            None => return Ok(None),
        },
    };
    Ok(Some((FrameHeader { fin, rsv1, opcode, mask, payload_bytes }, 2 + length_bytes + mask_bytes)))
}

/// Bytes that are built up without a heap. What has no room is left out; its owners leave none out.
#[derive(Clone, Copy, Debug)]
struct Built<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> Built<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Puts more behind, and returns it as it stands there.
    fn push(&mut self, more: &[u8]) -> &mut [u8] {
        let at = usize::from(self.len);
        let Some(room) = self.bytes.get_mut(at..at + more.len()) else { return &mut [] };
        room.copy_from_slice(more);
        self.len += more.len() as u8;
        room
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The header of a data frame of ours, at most [`MAX_HEADER_BYTES`], without a heap.
#[derive(Clone, Copy, Debug)]
pub struct DataHeader(Built<MAX_HEADER_BYTES>);

impl DataHeader {
    /// Builds the header of a data frame. A frame to an upstream has a masking key.
    ///
    /// # RFC
    /// RFC 6455 §5.2.
    pub fn new(header: &FrameHeader) -> Self {
        let mut built = Built::new();
        let first = u8::from(header.fin) << 7 | u8::from(header.rsv1) << 6 | header.opcode.bits();
        let masked = u8::from(header.mask.is_some()) << 7;
        match (u8::try_from(header.payload_bytes), u16::try_from(header.payload_bytes)) {
            (Ok(short @ 0..126), _) => {
                built.push(&[first, masked | short]);
            }
            (_, Ok(medium)) => {
                built.push(&[first, masked | 126]);
                built.push(&medium.to_be_bytes());
            }
            _ => {
                built.push(&[first, masked | 127]);
                built.push(&header.payload_bytes.to_be_bytes());
            }
        }
        if let Some(key) = header.mask {
            built.push(&key);
        }
        Self(built)
    }

    /// The header as it goes onto the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A whole control frame of ours, at most 131 bytes, without a heap.
#[derive(Clone, Copy, Debug)]
pub struct ControlFrame(Built<MAX_CONTROL_FRAME_BYTES>);

impl ControlFrame {
    /// Builds a control frame; what is over 125 bytes of `payload` is cut off.
    ///
    /// `mask` is the masking key of a frame that we send in the client's role, to an upstream.
    ///
    /// # RFC
    /// RFC 6455 §5.3 and §5.5.
    pub fn new(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) -> Self {
        debug_assert!(opcode.is_control());
        let payload = payload.get(..MAX_CONTROL_PAYLOAD_BYTES).unwrap_or(payload);
        let mut built = Built::new();
        let masked = u8::from(mask.is_some()) << 7;
        built.push(&[0x80 | opcode.bits(), masked | payload.len() as u8]);
        match mask {
            Some(key) => {
                built.push(&key);
                mask::apply(built.push(payload), key, 0);
            }
            None => {
                built.push(payload);
            }
        }
        Self(built)
    }

    /// The frame as it goes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(bytes: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        parse(bytes, Sender::Client, false)
    }

    fn server(bytes: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        parse(bytes, Sender::Server, false)
    }

    #[test]
    fn an_opcode_is_its_bits() {
        for bits in [0, 1, 2, 8, 9, 10] {
            assert_eq!(Opcode::from_bits(bits).map(Opcode::bits), Ok(bits));
        }
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
    fn takes_rsv1_on_the_first_frame_of_a_message_where_compression_is_negotiated() {
        for opcode in [1, 2] {
            let (header, _) = parse(&[0x40 | opcode, 0], Sender::Server, true).unwrap().unwrap();
            assert!(header.rsv1 && !header.fin);
        }
        for first in [0x40, 0xc0, 0xc8, 0xc9, 0xca, 0xe1, 0xd1] {
            assert_eq!(parse(&[first, 0], Sender::Server, true), Err(ProtocolError::ReservedBit), "{first:x}");
        }
    }

    #[test]
    fn writes_data_headers_that_parse_back() {
        for (payload_bytes, len) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10), (1 << 40, 10)] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let header = FrameHeader { fin: mask.is_none(), rsv1: true, opcode: Opcode::Text, mask, payload_bytes };
                let sender = if mask.is_some() { Sender::Client } else { Sender::Server };
                let written = DataHeader::new(&header);
                let whole = len + if mask.is_some() { 4 } else { 0 };
                assert_eq!(parse(written.as_bytes(), sender, true), Ok(Some((header, whole))));
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
