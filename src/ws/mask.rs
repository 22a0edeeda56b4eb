//! Masking. RFC 6455 §5.3.

/// Masks or unmasks `payload` in place; `offset` is the position of its first byte in the frame's payload.
pub fn apply(payload: &mut [u8], key: [u8; 4], offset: u64) {
    let [a, b, c, d] = match offset % 4 {
        0 => key,
        1 => [key[1], key[2], key[3], key[0]],
        2 => [key[2], key[3], key[0], key[1]],
        _ => [key[3], key[0], key[1], key[2]],
    };
    let key = [a, b, c, d];
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition_at_every_offset_and_length() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for offset in 0..9u64 {
            for len in 0..40 {
                let plain: Vec<u8> = (0..len).collect();
                let mut masked = plain.clone();
                apply(&mut masked, key, offset);
                for (i, byte) in masked.iter().enumerate() {
                    assert_eq!(*byte, plain[i] ^ key[(offset as usize + i) % 4]);
                }
            }
        }
    }
}
