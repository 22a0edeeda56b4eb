//! The messages of a session whose compression ends here: a client's are inflated for the upstream, an upstream's are
//! deflated for the client.
//!
//! Payload is recoded as it arrives: what one read has of a message becomes a frame, or several of some size, so no
//! message is gathered, and one that comes in one read is one frame again. Messages that a client did not compress, and
//! of an upstream those that are small or that its stream has compressed for many clients at once, pass as they are.
//! RFC 7692 §6 and §7.2.

use crate::ws::deflate::{Deflater, MIN_DEFLATED_BYTES};
use crate::ws::header::{DataHeader, FrameHeader, MAX_HEADER_BYTES, Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::Message;

/// When a message has become so many bytes they go on, though there is more of it in the same read.
const FRAGMENT_BYTES: usize = 64 << 10;

/// Recodes what one side sends.
pub(super) struct Recode {
    from: Sender,
    /// Whether the message in progress is recoded.
    active: bool,
    /// The opcode of its next fragment.
    opcode: Opcode,
    /// For what a client is sent.
    deflater: Deflater,
}

/// Where frames are made: plain payload as it is gathered, and what it is deflated to, each behind room for a header.
#[derive(Default)]
pub(super) struct FrameBuffer {
    plain: Vec<u8>,
    deflated: Vec<u8>,
    /// Whole frames that wait to be written: many small ones take one write.
    ready: Vec<u8>,
}

impl FrameBuffer {
    /// Begins the next frame.
    pub(super) fn start(&mut self) {
        for buffer in [&mut self.plain, &mut self.deflated] {
            buffer.clear();
            buffer.resize(MAX_HEADER_BYTES, 0);
        }
    }

    /// Takes more plain payload.
    pub(super) fn extend(&mut self, payload: &[u8]) {
        self.plain.extend_from_slice(payload);
    }

    /// How much payload was taken for the next frame.
    pub(super) fn plain_bytes(&self) -> usize {
        self.plain.len().saturating_sub(MAX_HEADER_BYTES)
    }

    /// Whether the payload has to become a frame before more of its message is taken.
    pub(super) fn is_full(&self) -> bool {
        self.plain.len() >= FRAGMENT_BYTES
    }

    /// The whole frames that wait to be written.
    pub(super) fn ready(&mut self) -> &mut Vec<u8> {
        &mut self.ready
    }
}

/// Puts a header in front of the payload in `buffer`, masks the payload, and returns the whole frame.
fn finish(buffer: &mut [u8], mut header: FrameHeader) -> &[u8] {
    let payload = &mut buffer[MAX_HEADER_BYTES..];
    header.payload_bytes = payload.len() as u64;
    if let Some(key) = header.mask {
        mask::apply(payload, key, 0);
    }
    let written = DataHeader::new(&header);
    let at = MAX_HEADER_BYTES - written.as_bytes().len();
    buffer[at..MAX_HEADER_BYTES].copy_from_slice(written.as_bytes());
    &buffer[at..]
}

impl Recode {
    /// Recodes what `from` sends; a client keeps a window of `window_bits`.
    pub(super) fn new(from: Sender, window_bits: u8) -> Self {
        let deflater = Deflater::with_window_bits(window_bits);
        Self { from, active: false, opcode: Opcode::Continuation, deflater }
    }

    /// Whether the message in progress is recoded.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// A data frame begins. Returns whether its message is recoded: then its bytes must not pass as they are.
    pub(super) fn on_header(&mut self, header: &FrameHeader, message: &Message) -> bool {
        if header.opcode != Opcode::Continuation {
            self.opcode = header.opcode;
            self.active = match self.from {
                Sender::Client => message.compressed,
                Sender::Server => !message.compressed && (!header.fin || header.payload_bytes >= MIN_DEFLATED_BYTES),
            };
        }
        self.active
    }

    /// Makes the payload in `buffer` a frame that is ready, unless there is none and the message goes on. Returns the
    /// length of the frame.
    pub(super) fn frame(&mut self, last: bool, buffer: &mut FrameBuffer) -> usize {
        if !last && buffer.plain.len() == MAX_HEADER_BYTES {
            return 0;
        }
        let opcode = std::mem::replace(&mut self.opcode, Opcode::Continuation);
        self.active = !last;
        let header = FrameHeader { fin: last, rsv1: false, opcode, mask: None, payload_bytes: 0 };
        let made = match self.from {
            Sender::Client => finish(&mut buffer.plain, FrameHeader { mask: Some(rand::random()), ..header }),
            Sender::Server => {
                self.deflater.feed(&buffer.plain[MAX_HEADER_BYTES..], last, &mut buffer.deflated);
                finish(&mut buffer.deflated, FrameHeader { rsv1: opcode != Opcode::Continuation, ..header })
            }
        };
        buffer.ready.extend_from_slice(made);
        let len = made.len();
        buffer.start();
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::deflate::WINDOW_BITS;
    use crate::ws::scan::MessageType;

    fn header(fin: bool, opcode: Opcode, payload_bytes: u64) -> FrameHeader {
        FrameHeader { fin, rsv1: false, opcode, mask: None, payload_bytes }
    }

    fn message(compressed: bool) -> Message {
        Message { kind: MessageType::Text, fragments: 1, size_bytes: 5, compressed, inflated_bytes: 0 }
    }

    fn buffer(payload: &[u8]) -> FrameBuffer {
        let mut buffer = FrameBuffer::default();
        buffer.start();
        buffer.extend(payload);
        buffer
    }

    /// The frame that is made of what `buffer` holds.
    fn made(recode: &mut Recode, last: bool, buffer: &mut FrameBuffer) -> Vec<u8> {
        let len = recode.frame(last, buffer);
        let frame = std::mem::take(buffer.ready());
        assert_eq!(frame.len(), len);
        frame
    }

    #[test]
    fn makes_masked_fragments_of_what_was_inflated() {
        let mut recode = Recode::new(Sender::Client, WINDOW_BITS);
        assert!(recode.on_header(&header(true, Opcode::Text, 5), &message(true)));
        assert!(made(&mut recode, false, &mut buffer(b"")).is_empty());
        let mut buffer = buffer(b"ab");
        buffer.extend(b"c");
        let first = made(&mut recode, false, &mut buffer);
        assert_eq!((first[0], first[1]), (0x01, 0x83));
        let mut payload = first[6..].to_vec();
        mask::apply(&mut payload, [first[2], first[3], first[4], first[5]], 0);
        assert_eq!(payload, b"abc");
        assert_eq!(made(&mut recode, true, &mut buffer)[..2], [0x80, 0x80]);
        assert!(!recode.is_active());
        assert!(!recode.on_header(&header(true, Opcode::Text, 5), &message(false)));
    }

    #[test]
    fn deflates_large_messages_and_fragmented_ones() {
        let mut recode = Recode::new(Sender::Server, WINDOW_BITS);
        assert!(!recode.on_header(&header(true, Opcode::Text, MIN_DEFLATED_BYTES - 1), &message(false)));
        assert!(!recode.on_header(&header(true, Opcode::Text, MIN_DEFLATED_BYTES), &message(true)));
        assert!(recode.on_header(&header(true, Opcode::Binary, MIN_DEFLATED_BYTES), &message(false)));
        let whole = made(&mut recode, true, &mut buffer(&[b'a'; 256]));
        assert!(whole[0] == 0xc2 && whole.len() < 20, "{whole:?}");
        assert!(recode.on_header(&header(false, Opcode::Text, 1), &message(false)));
        let firsts = [false, true].map(|last| made(&mut recode, last, &mut buffer(b"x"))[0]);
        assert_eq!(firsts, [0x41, 0x80]);
        assert!(!recode.is_active());
    }
}
