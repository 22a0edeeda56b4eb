//! The opt-in of a backend: `Sec-WebSocket-Extensions: grip; message-prefix="m:"`.
//!
//! `ws/extensions.rs` has the list of RFC 6455 §9.1, in which a value is a token even where it is quoted. GRIP's prefix is
//! none (`m:`), so its answer has a parser of its own.

use std::fmt;

use http::header::{HeaderMap, SEC_WEBSOCKET_EXTENSIONS};

use super::parameters::{Element, split};

/// What a gateway offers a backend.
pub const OFFER: &str = "grip";

/// The longest prefix, in bytes: so much of a message is held back until it is known.
pub const MAX_PREFIX_BYTES: usize = 32;

/// The prefix where the answer names none.
const DEFAULT_PREFIX: &[u8] = b"m:";

/// What stands in front of each control message, and of none that is relayed.
pub const CONTROL_PREFIX: &[u8] = b"c:";

/// Why a backend's answer is no opt-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// It does not keep the grammar of RFC 6455 §9.1.
    #[error("Sec-WebSocket-Extensions is malformed")]
    Grammar,
    /// RFC 6455 §9.1: it names another extension, or `grip` twice.
    #[error("extension was not offered")]
    NotOffered,
    /// `message-prefix` stands twice, or has no value.
    #[error("message-prefix stands twice or has no value")]
    BadPrefix,
    /// `message-prefix` is longer than [`MAX_PREFIX_BYTES`], or has other characters than those of visible ASCII and
    /// the blank: what is left of a text behind it must be UTF-8.
    #[error("message-prefix is longer than 32 bytes or not ASCII")]
    UnusablePrefix,
    /// `message-prefix` is `c` or begins with `c:`: a message with it would be read as a control message.
    #[error("message-prefix cannot be told from a control message")]
    AmbiguousPrefix,
}

/// How a backend has opted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptIn {
    /// Messages for the client begin with this prefix; others are dropped.
    Prefix(Prefix),
    /// `message-prefix=""`: every message that is no control message is for the client. A backend that repeats what a
    /// user wrote lets that user write control messages, so a caller may well refuse this.
    NoPrefix,
}

impl OptIn {
    /// The bytes of the prefix, none for [`OptIn::NoPrefix`].
    pub fn prefix(&self) -> &[u8] {
        match self {
            Self::Prefix(prefix) => prefix.as_bytes(),
            Self::NoPrefix => &[],
        }
    }
}

/// A prefix of 1 to [`MAX_PREFIX_BYTES`] bytes, without a heap.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    bytes: [u8; MAX_PREFIX_BYTES],
    len: u8,
}

impl Prefix {
    /// Takes the bytes of a prefix.
    ///
    /// # Errors
    /// `BadPrefix` when there is none, `UnusablePrefix` and `AmbiguousPrefix`.
    pub fn new(text: &[u8]) -> Result<Self, ExtensionError> {
        if text.is_empty() {
            return Err(ExtensionError::BadPrefix);
        }
        if !text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(ExtensionError::UnusablePrefix);
        }
        if text.starts_with(CONTROL_PREFIX) || CONTROL_PREFIX.starts_with(text) {
            return Err(ExtensionError::AmbiguousPrefix);
        }
        let mut bytes = [0; MAX_PREFIX_BYTES];
        bytes.get_mut(..text.len()).ok_or(ExtensionError::UnusablePrefix)?.copy_from_slice(text);
        Ok(Self { bytes, len: text.len() as u8 })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({:?})", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Reads what a backend answered to [`OFFER`]. `None`: it has not opted in, and is a backend like any other.
///
/// Parameters that GRIP does not know are passed over.
///
/// # Errors
/// What is malformed, and an answer that accepts what was not offered: the connection must fail. RFC 6455 §4.1, the
/// numbered list at its end, item 5.
pub fn answer(headers: &HeaderMap) -> Result<Option<OptIn>, ExtensionError> {
    let mut answered = None;
    for line in headers.get_all(SEC_WEBSOCKET_EXTENSIONS) {
        for element in split(line.as_bytes(), b',') {
            let element = element.ok_or(ExtensionError::Grammar)?;
            // RFC 9110 §5.6.1.2: a recipient ignores empty elements.
            if element.is_empty() {
                continue;
            }
            let element = Element::parse(element).ok_or(ExtensionError::Grammar)?;
            if &*element.first != OFFER.as_bytes() || answered.is_some() {
                return Err(ExtensionError::NotOffered);
            }
            answered = Some(opt_in(&element)?);
        }
    }
    Ok(answered)
}

fn opt_in(element: &Element<'_>) -> Result<OptIn, ExtensionError> {
    let mut prefixes = element.parameters().filter(|(name, _)| *name == b"message-prefix");
    let prefix = match prefixes.next() {
        None => DEFAULT_PREFIX,
        Some((_, Some(prefix))) => prefix,
        Some((_, None)) => return Err(ExtensionError::BadPrefix),
    };
    if prefixes.next().is_some() {
        return Err(ExtensionError::BadPrefix);
    }
    Ok(if prefix.is_empty() { OptIn::NoPrefix } else { OptIn::Prefix(Prefix::new(prefix)?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn answered(lines: &[&str]) -> Result<Option<Vec<u8>>, ExtensionError> {
        let name = SEC_WEBSOCKET_EXTENSIONS;
        let headers: HeaderMap =
            lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect();
        answer(&headers).map(|answer| answer.map(|opt_in| opt_in.prefix().to_vec()))
    }

    #[test]
    fn opts_in_with_each_form_of_prefix() {
        for (line, prefix) in [
            ("grip", "m:"),
            (r#"grip; message-prefix="m:""#, "m:"),
            ("grip;message-prefix=#", "#"),
            (r#"grip; message-prefix="a\"\\;,b""#, r#"a"\;,b"#),
            ("grip; message-prefix=c1:", "c1:"),
            (", grip; new=1; other ,", "m:"),
        ] {
            assert_eq!(answered(&[line]), Ok(Some(prefix.as_bytes().to_vec())), "{line}");
        }
        assert_eq!(answered(&[]), Ok(None));
        assert_eq!(answered(&[""]), Ok(None));
        let headers: HeaderMap =
            [(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(r#"grip; message-prefix="""#))].into_iter().collect();
        assert_eq!(answer(&headers), Ok(Some(OptIn::NoPrefix)));
    }

    #[test]
    fn what_is_malformed_or_was_not_offered_is_refused() {
        use ExtensionError::{AmbiguousPrefix, BadPrefix, Grammar, NotOffered, UnusablePrefix};
        let long = format!("grip; message-prefix={}", "x".repeat(MAX_PREFIX_BYTES + 1));
        for (lines, error) in [
            (&["permessage-deflate"][..], NotOffered),
            (&["grip, permessage-deflate"], NotOffered),
            (&["grip", "grip"], NotOffered),
            (&["Grip"], NotOffered),
            (&["grip; message-prefix"], BadPrefix),
            (&["grip; message-prefix=a; message-prefix=a"], BadPrefix),
            (&["grip; message-prefix=\"a"], Grammar),
            (&["grip; =a"], Grammar),
            (&["grip;"], Grammar),
            (&["grip; message-prefix=\"c:\""], AmbiguousPrefix),
            (&["grip; message-prefix=c"], AmbiguousPrefix),
            (&["grip; message-prefix=c:m"], AmbiguousPrefix),
            (&["grip; message-prefix=\"a\tb\""], UnusablePrefix),
            (&[&long], UnusablePrefix),
        ] {
            assert_eq!(answered(lines), Err(error), "{lines:?}");
        }
        let longest = "x".repeat(MAX_PREFIX_BYTES);
        assert_eq!(answered(&[&format!("grip; message-prefix={longest}")]), Ok(Some(longest.into_bytes())));
    }
}
