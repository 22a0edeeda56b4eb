//! The messages of a session whose compression ends here: a client's are inflated for the upstream, an upstream's are
//! deflated for the client.
//!
//! Payload is recoded as it arrives, and each piece becomes a fragment of its own, so no message is gathered. Messages
//! that a client did not compress, and small ones of an upstream, pass as they are. RFC 7692 §6 and §7.2.

use crate::ws::deflate::Deflater;
use crate::ws::header::{DataHeader, FrameHeader, MAX_HEADER_BYTES, Opcode, Sender};
use crate::ws::mask;
use crate::ws::scan::Message;

/// Below this a message of an upstream that is one frame is not compressed, in bytes: it would hardly be smaller.
const MIN_DEFLATED_BYTES: u64 = 256;

/// Recodes what one side sends.
pub(super) struct Recode {
    from: Sender,
    /// Whether the message in progress is recoded.
    active: bool,
    /// The opcode of its next fragment.
    opcode: Opcode,
    deflater: Option<Deflater>,
    /// The window of what a client is sent.
    window_bits: u8,
}

/// A frame that is being made: room for its header, and its payload behind it.
#[derive(Default)]
pub(super) struct FrameBuffer(Vec<u8>);

impl FrameBuffer {
    fn start(&mut self) {
        self.0.clear();
        self.0.resize(MAX_HEADER_BYTES, 0);
    }

    /// Takes more payload.
    pub(super) fn extend(&mut self, payload: &[u8]) {
        self.0.extend_from_slice(payload);
    }

    fn payload(&mut self) -> &mut [u8] {
        &mut self.0[MAX_HEADER_BYTES..]
    }

    /// Puts the header in front, masks the payload, and returns the whole frame.
    fn finish(&mut self, header: &FrameHeader) -> &[u8] {
        if let Some(key) = header.mask {
            mask::apply(self.payload(), key, 0);
        }
        let written = DataHeader::new(header);
        let at = MAX_HEADER_BYTES - written.as_bytes().len();
        self.0[at..MAX_HEADER_BYTES].copy_from_slice(written.as_bytes());
        &self.0[at..]
    }
}

impl Recode {
    pub(super) fn new(from: Sender, window_bits: u8) -> Self {
        Self { from, active: false, opcode: Opcode::Continuation, deflater: None, window_bits }
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
                Sender::Server => !header.fin || header.payload_bytes >= MIN_DEFLATED_BYTES,
            };
            let deflates = self.active && self.from == Sender::Server;
            self.deflater = deflates.then(|| Deflater::with_window_bits(self.window_bits));
        }
        self.active
    }

    /// Makes ready for what the next step inflates.
    pub(super) fn start(frame: &mut FrameBuffer) {
        frame.start();
    }

    /// Makes a frame of what `payload` became: `frame` has it when it was inflated. `None`: nothing came out yet.
    pub(super) fn frame<'a>(&mut self, payload: &[u8], last: bool, frame: &'a mut FrameBuffer) -> Option<&'a [u8]> {
        if let Some(deflater) = &mut self.deflater {
            deflater.feed(payload, last, &mut frame.0);
        }
        if !last && frame.payload().is_empty() {
            return None;
        }
        let opcode = std::mem::replace(&mut self.opcode, Opcode::Continuation);
        if last {
            self.active = false;
            self.deflater = None;
        }
        let to_client = self.from == Sender::Server;
        let payload_bytes = frame.payload().len() as u64;
        let rsv1 = to_client && opcode != Opcode::Continuation;
        let mask = (!to_client).then(rand::random);
        Some(frame.finish(&FrameHeader { fin: last, rsv1, opcode, mask, payload_bytes }))
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

    #[test]
    fn makes_masked_fragments_of_what_was_inflated() {
        let mut recode = Recode::new(Sender::Client, WINDOW_BITS);
        let mut frame = FrameBuffer::default();
        assert!(recode.on_header(&header(true, Opcode::Text, 5), &message(true)));
        Recode::start(&mut frame);
        assert_eq!(recode.frame(b"unread", false, &mut frame), None);
        frame.extend(b"abc");
        let first = recode.frame(b"unread", false, &mut frame).unwrap().to_vec();
        assert_eq!((first[0], first[1]), (0x01, 0x83));
        let mut payload = first[6..].to_vec();
        mask::apply(&mut payload, [first[2], first[3], first[4], first[5]], 0);
        assert_eq!(payload, b"abc");
        Recode::start(&mut frame);
        assert_eq!(recode.frame(b"", true, &mut frame).map(|frame| (frame[0], frame[1])), Some((0x80, 0x80)));
        assert!(!recode.is_active());
        assert!(!recode.on_header(&header(true, Opcode::Text, 5), &message(false)));
    }

    #[test]
    fn deflates_large_messages_and_fragmented_ones() {
        let mut recode = Recode::new(Sender::Server, WINDOW_BITS);
        let mut frame = FrameBuffer::default();
        assert!(!recode.on_header(&header(true, Opcode::Text, MIN_DEFLATED_BYTES - 1), &message(false)));
        assert!(recode.on_header(&header(true, Opcode::Binary, MIN_DEFLATED_BYTES), &message(false)));
        Recode::start(&mut frame);
        let whole = recode.frame(&[b'a'; 256], true, &mut frame).unwrap();
        assert!(whole[0] == 0xc2 && whole.len() < 20, "{whole:?}");
        assert!(recode.on_header(&header(false, Opcode::Text, 1), &message(false)));
        assert!(recode.on_header(&header(true, Opcode::Continuation, 1), &message(false)));
    }
}
