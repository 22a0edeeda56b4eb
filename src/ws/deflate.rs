//! The payload of permessage-deflate: a message inflated as it streams, and a message deflated. RFC 7692 §7.2.
//!
//! Each message stands by itself: the gateway asks for `client_no_context_takeover` and promises
//! `server_no_context_takeover`, so no window outlives a message, and a back-reference before its start is refused.
//! An [`Inflater`] is borrowed from a pool of the thread and goes back when it is dropped, and what a [`Deflater`] works
//! with is the thread's: an idle session owns neither.

use std::cell::RefCell;

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

use super::error::ProtocolError;

/// The most that one byte of a deflate stream can become, in bytes: 258 bytes for two bits, with what comes around.
pub const MAX_RATIO: u64 = 1032;

/// The window of our compressor is two to the power of this many bytes, where the client does not want a smaller one.
pub const WINDOW_BITS: u8 = 15;

/// And this is the smallest that it can have.
pub const MIN_WINDOW_BITS: u8 = 9;

/// Below this a message of one frame is not compressed, in bytes: it would hardly be smaller.
pub const MIN_DEFLATED_BYTES: u64 = 256;

/// How many windows there are.
const WINDOWS: usize = (WINDOW_BITS - MIN_WINDOW_BITS + 1) as usize;

/// What a sender leaves out at the end of each message: the length of an empty stored block. RFC 7692 §7.2.1.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// An empty block that is the last: a whole message and this behind it are a whole deflate stream.
const END: [u8; 2] = [0x03, 0x00];

/// What is inflated at once, in bytes.
const OUTPUT_BYTES: usize = 8 << 10;

/// The most that a thread keeps for later of each kind.
const POOL: usize = 16;

/// Inflates one message.
#[derive(Default)]
pub struct Inflater(Option<Box<InflateState>>);

struct InflateState {
    stream: Inflate,
    /// The last block of a stream has ended, and nothing came behind it. RFC 7692 §7.2.3.4.
    ended: bool,
    /// Nothing of the message came yet.
    untouched: bool,
    output: [u8; OUTPUT_BYTES],
}

thread_local! {
    static INFLATERS: RefCell<Vec<Box<InflateState>>> = const { RefCell::new(Vec::new()) };
    /// One for each window.
    static DEFLATERS: RefCell<[Option<Box<DeflateState>>; WINDOWS]> = const { RefCell::new([const { None }; WINDOWS]) };
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Inflater").finish_non_exhaustive()
    }
}

impl Inflater {
    /// One at the start of a message.
    pub fn new() -> Self {
        let pooled = INFLATERS.with_borrow_mut(Vec::pop);
        Self(Some(pooled.unwrap_or_else(|| {
            Box::new(InflateState {
                stream: Inflate::new(false, 15),
                ended: false,
                untouched: true,
                output: [0; OUTPUT_BYTES],
            })
        })))
    }

    /// Inflates the next bytes of the message, hands what they become to `sink` piece by piece, and returns how many
    /// blocks they touch.
    ///
    /// `compressed` of n bytes become at most n * [`MAX_RATIO`], and each block may bring Huffman tables that take as
    /// long to make as hundreds of bytes to inflate: the caller bounds the work by both. The first block of a message
    /// is not counted if it brings none.
    ///
    /// # Errors
    /// `InvalidDeflate`, and those of `sink`.
    ///
    /// # RFC
    /// RFC 7692 §7.2.2. A block that says it is the last one is followed by the start of another stream, §7.2.3.4.
    pub fn feed(&mut self, compressed: &[u8], sink: &mut Sink<'_>) -> Result<u32, ProtocolError> {
        let Some(state) = &mut self.0 else { return Ok(0) };
        // A block begins with one bit for whether it is the last, and two for its type. RFC 1951 §3.2.3.
        let free = state.untouched && compressed.first().is_some_and(|first| first & 0b110 != 0b100);
        state.untouched &= compressed.is_empty();
        Ok(state.feed(compressed, sink)?.saturating_sub(free.into()))
    }

    /// Ends the message.
    ///
    /// # Errors
    /// `InvalidDeflate` when it breaks off inside a block, and those of `sink`.
    ///
    /// # RFC
    /// RFC 7692 §7.2.2: the four bytes that the sender has left out are put back.
    pub fn finish(mut self, sink: &mut Sink<'_>) -> Result<(), ProtocolError> {
        let Some(state) = &mut self.0 else { return Ok(()) };
        // That a block was the last shows when it is gone on from.
        if !state.untouched {
            state.feed(&[], sink)?;
        }
        // A message of no byte is taken as an empty one, and a last block as the end of a message; some senders do so.
        if state.untouched || state.ended {
            return Ok(());
        }
        state.feed(&TAIL, sink)?;
        // Only where a block may begin do these bytes end the stream.
        state.feed(&END, sink)?;
        state.feed(&[], sink)?;
        if state.ended { Ok(()) } else { Err(ProtocolError::InvalidDeflate) }
    }
}

/// Where inflated bytes go.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), ProtocolError> + 'a;

impl InflateState {
    fn feed(&mut self, mut compressed: &[u8], sink: &mut Sink<'_>) -> Result<u32, ProtocolError> {
        let (mut blocks, mut full, mut stuck) = (0, false, false);
        loop {
            if std::mem::take(&mut self.ended) {
                if compressed.is_empty() {
                    self.ended = true;
                    return Ok(blocks);
                }
                self.stream.reset(false);
            }
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let status = self
                .stream
                .decompress(compressed, &mut self.output, InflateFlush::Block)
                .map_err(|_| ProtocolError::InvalidDeflate)?;
            let taken = (self.stream.total_in() - before_in) as usize;
            let made = (self.stream.total_out() - before_out) as usize;
            compressed = compressed.get(taken..).unwrap_or_default();
            if made > 0 {
                sink(self.output.get(..made).unwrap_or_default())?;
            }
            // It stops behind each block, so this is no less than the blocks. Going on where room ran out is none.
            blocks += u32::from(taken > 0 && !full);
            full = made == OUTPUT_BYTES;
            match status {
                Status::StreamEnd => self.ended = true,
                // More of what the input says may be to come out.
                Status::Ok | Status::BufError if full => {}
                Status::Ok | Status::BufError if compressed.is_empty() => return Ok(blocks),
                // The end of a block may be in bits that it has taken already, but not of two in a row.
                Status::Ok | Status::BufError => {
                    let moved = taken > 0 || made > 0;
                    if std::mem::replace(&mut stuck, !moved) && !moved {
                        return Err(ProtocolError::InvalidDeflate);
                    }
                }
            }
        }
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        let Some(mut state) = self.0.take() else { return };
        state.stream.reset(false);
        (state.ended, state.untouched) = (false, true);
        give_back(&INFLATERS, state);
    }
}

/// Deflates messages in pieces, each by itself.
///
/// So nothing of a message is kept between two pieces, where its window and tables would take more than 300 KiB of each
/// session; and a piece is out when it is in.
#[derive(Clone, Copy, Debug)]
pub struct Deflater {
    window_bits: u8,
}

struct DeflateState {
    stream: Deflate,
    output: [u8; OUTPUT_BYTES],
}

impl Deflater {
    /// One with a window of [`WINDOW_BITS`].
    pub fn new() -> Self {
        Self::with_window_bits(WINDOW_BITS)
    }

    /// One with another window: [`MIN_WINDOW_BITS`] to [`WINDOW_BITS`], where a client asks for it.
    pub fn with_window_bits(window_bits: u8) -> Self {
        Self { window_bits: window_bits.clamp(MIN_WINDOW_BITS, WINDOW_BITS) }
    }

    /// Deflates the next piece of a message onto the end of `into`. With `last` the message ends: then the four bytes
    /// that RFC 7692 §7.2.1 leaves out are left out.
    ///
    /// Its cost is linear in the piece, and some microseconds for each.
    pub fn feed(&self, plain: &[u8], last: bool, into: &mut Vec<u8>) {
        if plain.is_empty() && !last {
            return;
        }
        DEFLATERS.with_borrow_mut(|deflaters| {
            let slot = deflaters.get_mut(usize::from(self.window_bits - MIN_WINDOW_BITS));
            let Some(slot) = slot else { return };
            slot.get_or_insert_with(|| Box::new(DeflateState::new(self.window_bits))).feed(plain, into);
        });
        if last && into.ends_with(&TAIL) {
            into.truncate(into.len() - TAIL.len());
        }
    }
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

impl DeflateState {
    fn new(window_bits: u8) -> Self {
        // Level 2 takes half the time of level 6 for texts that are 7 % larger; smaller windows take longer.
        let config =
            DeflateConfig { window_bits: -i32::from(window_bits), mem_level: 8, level: 2, ..Default::default() };
        Self { stream: Deflate::new_with_config(config), output: [0; OUTPUT_BYTES] }
    }

    fn feed(&mut self, mut plain: &[u8], into: &mut Vec<u8>) {
        loop {
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            // It fails only when its state is broken or was ended, which nothing here does.
            let status = self.stream.compress(plain, &mut self.output, DeflateFlush::SyncFlush);
            let taken = (self.stream.total_in() - before_in) as usize;
            let made = (self.stream.total_out() - before_out) as usize;
            plain = plain.get(taken..).unwrap_or_default();
            into.extend_from_slice(self.output.get(..made).unwrap_or_default());
            if status.is_err() || made < OUTPUT_BYTES {
                break;
            }
        }
        self.stream.reset();
    }
}

fn give_back<T>(pool: &'static std::thread::LocalKey<RefCell<Vec<T>>>, state: T) {
    // At the end of a thread its pool may be gone already.
    let _ = pool.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < POOL {
            pool.push(state);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Deflater::new().feed(plain, true, &mut bytes);
        bytes
    }

    fn inflate_in(message: &[u8], piece: usize) -> Result<Vec<u8>, ProtocolError> {
        let mut inflater = Inflater::new();
        let mut plain = Vec::new();
        let mut sink = |bytes: &[u8]| {
            plain.extend_from_slice(bytes);
            Ok(())
        };
        for piece in message.chunks(piece) {
            inflater.feed(piece, &mut sink)?;
        }
        inflater.finish(&mut sink)?;
        Ok(plain)
    }

    fn inflate(message: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let whole = inflate_in(message, usize::MAX);
        assert_eq!(whole, inflate_in(message, 1));
        whole
    }

    const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

    #[test]
    fn reads_the_examples_of_the_rfc() {
        let hello = Ok(b"Hello".to_vec());
        assert_eq!(inflate(&HELLO), hello);
        // §7.2.3.3, without compression, and §7.2.3.4, with a last block.
        assert_eq!(inflate(&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]), hello);
        assert_eq!(inflate(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]), hello);
        // §7.2.3.5, two blocks, and §7.2.3.6, an empty message.
        assert_eq!(inflate(&[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]), hello);
        assert_eq!(inflate(&[0x00]), Ok(Vec::new()));
        assert_eq!(inflate(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_piece_of_nothing_is_nothing() {
        let mut bytes = Vec::new();
        Deflater::default().feed(b"", false, &mut bytes);
        assert!(bytes.is_empty());
        let mut inflater = Inflater::new();
        assert!(format!("{inflater:?}").starts_with("Inflater"));
        assert_eq!(inflater.feed(b"", &mut |_| Ok(())), Ok(0));
    }

    #[test]
    fn refuses_a_back_reference_before_the_message() {
        // §7.2.3.2: "Hello" again, as a reference to the message before it.
        assert_eq!(inflate(&HELLO), Ok(b"Hello".to_vec()));
        assert_eq!(inflate(&[0xf2, 0x00, 0x11, 0x00, 0x00]), Err(ProtocolError::InvalidDeflate));
    }

    #[test]
    fn follows_what_stands_behind_a_last_block() {
        let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let twice = [&last[..], &HELLO].concat();
        assert_eq!(inflate(&twice), Ok(b"HelloHello".to_vec()));
        let bomb = [&last[..], &deflate(&vec![b'a'; 1 << 20])].concat();
        assert_eq!(inflate_in(&bomb, 512).map(|plain| plain.len()), Ok((1 << 20) + 5));
        assert_eq!(inflate(&last), Ok(b"Hello".to_vec()));
        assert_eq!(inflate(&[&last[..], &[0xf2, 0x00, 0x11, 0x00, 0x00]].concat()), Err(ProtocolError::InvalidDeflate));
    }

    #[test]
    fn refuses_what_breaks_off_and_what_is_no_deflate() {
        assert_eq!(inflate(&HELLO[..4]), Err(ProtocolError::InvalidDeflate));
        assert_eq!(inflate(&[0x07]), Err(ProtocolError::InvalidDeflate));
        assert_eq!(inflate(b"\xff\xff\xff"), Err(ProtocolError::InvalidDeflate));
        // A stored block of 10 bytes that has none.
        assert_eq!(inflate(&[0x00, 0x0a, 0x00, 0xf5, 0xff]), Err(ProtocolError::InvalidDeflate));
    }

    #[test]
    fn counts_blocks_however_they_arrive() {
        let blocks_in = |message: &[u8], piece: usize| {
            let mut inflater = Inflater::new();
            message.chunks(piece).map(|piece| inflater.feed(piece, &mut |_| Ok(())).unwrap()).sum::<u32>()
        };
        // The start of the block whose rest the sender leaves out is one, where it has a byte of its own.
        assert!(blocks_in(&HELLO, usize::MAX) <= 1);
        assert!(blocks_in(&deflate(&[7; 100_000]), usize::MAX) <= 3);
        let nothing = [0x03, 0x00].repeat(1000);
        for piece in [1, 2, 3, 64, 512, 2000] {
            assert!(blocks_in(&nothing, piece) >= 999, "in pieces of {piece}");
        }
        assert!(blocks_in(&nothing, 512) <= 1004);
    }

    #[test]
    fn no_byte_becomes_more_than_the_ratio_says() {
        let bomb = deflate(&vec![0; 16 << 20]);
        let mut inflater = Inflater::new();
        for piece in bomb.chunks(64) {
            let mut made = 0;
            inflater
                .feed(piece, &mut |bytes| {
                    made += bytes.len() as u64;
                    Ok(())
                })
                .unwrap();
            // A match that a piece breaks off in comes with the next one.
            assert!(made <= (piece.len() as u64 + 2) * MAX_RATIO, "{made}");
        }
    }

    #[test]
    fn a_sink_that_has_enough_ends_it() {
        let mut inflater = Inflater::new();
        let mut seen = 0;
        let result = inflater.feed(&deflate(&vec![0; 1 << 20]), &mut |bytes| {
            seen += bytes.len();
            Err(ProtocolError::InvalidUtf8)
        });
        assert_eq!((result, seen), (Err(ProtocolError::InvalidUtf8), OUTPUT_BYTES));
        drop(inflater);
        // And the one that comes from the pool next begins anew.
        assert_eq!(inflate(&HELLO), Ok(b"Hello".to_vec()));
    }

    #[test]
    fn a_small_window_is_kept_to() {
        // Numbers that come again after 700 to 30,000 bytes: what a window does not reach is not referred to.
        for (window_bits, period) in [(9, 700), (10, 1600), (11, 3600), (14, 30_000)] {
            let plain = (0..period / 4).flat_map(u32::to_be_bytes).collect::<Vec<_>>().repeat(20);
            let deflated = |window_bits| {
                let mut bytes = Vec::new();
                Deflater::with_window_bits(window_bits).feed(&plain, true, &mut bytes);
                bytes
            };
            let (kept_to, reached) = (deflated(window_bits), deflated(window_bits + 1));
            assert!(kept_to.len() > 2 * reached.len(), "{} and {} bytes", kept_to.len(), reached.len());
            assert!(inflate(&kept_to).as_ref() == Ok(&plain));
        }
    }

    proptest! {
        #[test]
        fn what_is_deflated_inflates_to_itself(
            plain in proptest::collection::vec(any::<u8>(), 0..3000), repeat in 1usize..40, piece in 1usize..5000,
        ) {
            let plain = plain.repeat(repeat);
            let deflater = Deflater::new();
            let mut bytes = Vec::new();
            for piece in plain.chunks(piece) {
                deflater.feed(piece, false, &mut bytes);
            }
            deflater.feed(&[], true, &mut bytes);
            prop_assert_eq!(inflate_in(&bytes, piece), Ok(plain));
        }

        #[test]
        fn any_bytes_get_one_verdict_however_they_arrive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(inflate_in(&bytes, usize::MAX), inflate_in(&bytes, 1));
        }
    }
}
