//! UTF-8 checked as it streams: fails at the first byte that cannot belong to it. RFC 6455 §8.1, RFC 3629.

use super::error::ProtocolError;
use super::mask;

/// The state between two pieces of one text message: the start of a character that a piece ended in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8Check {
    partial: [u8; 4],
    partial_len: u8,
}

/// How much is unmasked at a time, in bytes: it lives on the stack.
const BLOCK_BYTES: usize = 4096;

impl Utf8Check {
    /// Checks the next bytes of the message.
    ///
    /// # Errors
    /// `InvalidUtf8` with the first byte that no continuation could make valid.
    ///
    /// # RFC
    /// RFC 3629 §3 and §4: no surrogates, no overlong forms, nothing above U+10FFFF.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ProtocolError> {
        while self.partial_len > 0 {
            let Some((&next, rest)) = bytes.split_first() else { return Ok(()) };
            let len = usize::from(self.partial_len);
            let Some(partial) = self.partial.get_mut(..=len) else { return Err(ProtocolError::InvalidUtf8) };
            if let Some(last) = partial.last_mut() {
                *last = next;
            }
            bytes = rest;
            match std::str::from_utf8(partial) {
                Ok(_) => self.partial_len = 0,
                // `None` says that the bytes are the start of a character; four bytes are never only a start.
                Err(error) if error.error_len().is_none() => self.partial_len += 1,
                Err(_) => return Err(ProtocolError::InvalidUtf8),
            }
        }
        match simdutf8::compat::from_utf8(bytes) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                // At most three bytes: a whole character would be valid, or be no start of one.
                let tail = bytes.get(error.valid_up_to()..).unwrap_or_default();
                self.partial_len = 0;
                for (kept, byte) in self.partial.iter_mut().zip(tail) {
                    *kept = *byte;
                    self.partial_len += 1;
                }
                Ok(())
            }
            Err(_) => Err(ProtocolError::InvalidUtf8),
        }
    }

    /// Checks the next bytes of the message as a client sent them, `offset` bytes into the payload of their frame.
    ///
    /// # Errors
    /// As [`Utf8Check::feed`].
    pub fn feed_masked(&mut self, bytes: &[u8], key: [u8; 4], offset: u64) -> Result<(), ProtocolError> {
        let mut block = [0; BLOCK_BYTES];
        let mut at = offset;
        for piece in bytes.chunks(BLOCK_BYTES) {
            let (plain, _) = block.split_at_mut(piece.len());
            plain.copy_from_slice(piece);
            mask::apply(plain, key, at);
            self.feed(plain)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Ends the message, and makes the check ready for the next one.
    ///
    /// # Errors
    /// `InvalidUtf8` when the message ends inside a character.
    pub fn finish(&mut self) -> Result<(), ProtocolError> {
        match std::mem::take(&mut self.partial_len) {
            0 => Ok(()),
            _ => Err(ProtocolError::InvalidUtf8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> bool {
        let mut check = Utf8Check::default();
        check.feed(bytes).and_then(|()| check.finish()).is_ok()
    }

    fn by_bytes(bytes: &[u8]) -> bool {
        let mut check = Utf8Check::default();
        bytes.iter().try_for_each(|byte| check.feed(&[*byte])).and_then(|()| check.finish()).is_ok()
    }

    #[test]
    fn fails_at_the_first_bad_byte() {
        for (good, bad) in [
            (&b"\xed"[..], 0xa0), // a surrogate
            (b"\xf4", 0x90),      // above U+10FFFF
            (b"\xe0", 0x80),      // overlong
            (b"ok", 0xff),
            (b"\xf0\x9f\x98", b'a'),
        ] {
            let mut check = Utf8Check::default();
            assert_eq!(check.feed(good), Ok(()));
            assert_eq!(check.feed(&[bad]), Err(ProtocolError::InvalidUtf8));
        }
    }

    #[test]
    fn a_message_must_not_end_inside_a_character() {
        let mut check = Utf8Check::default();
        assert_eq!(check.feed("é".as_bytes().split_at(1).0), Ok(()));
        assert_eq!(check.finish(), Err(ProtocolError::InvalidUtf8));
        assert_eq!(check.feed(b"next"), Ok(()));
        assert_eq!(check.finish(), Ok(()));
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library_whole_and_byte_by_byte(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(whole(&bytes), std::str::from_utf8(&bytes).is_ok());
            prop_assert_eq!(by_bytes(&bytes), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn accepts_every_string_masked_and_cut_anywhere(text in "\\PC{0,80}", key: [u8; 4], cut: prop::sample::Index) {
            let mut bytes = text.as_bytes().to_vec();
            mask::apply(&mut bytes, key, 0);
            let cut = cut.index(bytes.len() + 1);
            let mut check = Utf8Check::default();
            check.feed_masked(&bytes[..cut], key, 0).unwrap();
            check.feed_masked(&bytes[cut..], key, cut as u64).unwrap();
            prop_assert!(check.finish().is_ok());
        }
    }
}
