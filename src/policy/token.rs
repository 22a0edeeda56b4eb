//! A bearer token: compared in constant time and never shown.

use std::fmt;

use subtle::ConstantTimeEq as _;

use super::Fault;

/// The shortest token: out of reach of guessing when it is random.
const MIN_BYTES: usize = 16;

/// What a caller must present.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes the text of a token.
    ///
    /// # Errors
    /// Less than 16 bytes, and what cannot stand in an Authorization header.
    pub fn new(text: &str) -> Result<Self, Fault> {
        if text.len() >= MIN_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        let found = "a token that is short, or has other characters";
        Err(Fault::new("", found, "at least 16 characters of visible ASCII, such as `openssl rand -hex 32` writes"))
    }

    /// Whether this is the token. Takes as long for every text of the same length.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_compared_and_never_shown() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.matches(b"0123456789abcdef"));
        for other in [&b""[..], b"0123456789abcdeF", b"0123456789abcde", b"0123456789abcdef "] {
            assert!(!token.matches(other));
        }
        assert_eq!(format!("{token:?}"), "Token(***)");
    }

    #[test]
    fn short_and_unprintable_tokens_are_refused() {
        for text in ["", "0123456789abcde", "0123456789 abcdef", "0123456789abcdefé", "0123456789abcdef\n"] {
            assert!(Token::new(text).is_err(), "{text:?}");
        }
    }
}
