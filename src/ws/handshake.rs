//! The opening handshake: what of it can be judged from its fields alone. RFC 6455 §4.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use sha1::{Digest as _, Sha1};

use super::extensions::ExtensionError;

/// What `Sec-WebSocket-Accept` is made with. RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The bytes of a `Sec-WebSocket-Accept`: 20 of SHA-1 in base64.
pub const ACCEPT_BYTES: usize = 28;

/// Whether `key` is a `Sec-WebSocket-Key`: base64 of exactly 16 bytes.
///
/// # RFC
/// RFC 6455 §4.1, item 7.
pub fn is_valid_key(key: &[u8]) -> bool {
    let mut nonce = [0; 18];
    key.len() == 24 && matches!(STANDARD.decode_slice(key, &mut nonce), Ok(16))
}

/// The `Sec-WebSocket-Key` of a nonce.
///
/// # RFC
/// RFC 6455 §4.1, item 7.
pub fn key_of(nonce: [u8; 16]) -> String {
    STANDARD.encode(nonce)
}

/// The `Sec-WebSocket-Accept` that answers `key`.
///
/// # RFC
/// RFC 6455 §4.2.2, item 5.4.
pub fn accept_for(key: &[u8]) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    // 20 bytes are 28 of base64, so the slice always fits.
    let _ = STANDARD.encode_slice(digest, &mut accept);
    accept
}

/// The elements of a comma-separated list header, over all its lines, without the empty ones.
///
/// # RFC
/// RFC 9110 §5.6.1.
pub fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether a list header has `token`, compared without case.
pub fn list_has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether `bytes` is a token. RFC 9110 §5.6.2.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// The answer of an upstream to an upgrade, checked against what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// `Upgrade` is not exactly `websocket`.
    #[error("Upgrade is not websocket")]
    Upgrade,
    /// `Connection` has no `upgrade`.
    #[error("Connection is not upgrade")]
    Connection,
    /// `Sec-WebSocket-Accept` is missing, doubled or wrong.
    #[error("Sec-WebSocket-Accept is missing or wrong")]
    Accept,
    /// `Sec-WebSocket-Protocol` names what was not offered, or more than one.
    #[error("Sec-WebSocket-Protocol was not offered")]
    Subprotocol,
    /// `Sec-WebSocket-Extensions` accepts nothing that was offered.
    #[error("Sec-WebSocket-Extensions: {0}")]
    Extensions(#[from] ExtensionError),
}

/// Checks a 101 of the upstream: only after this may a tunnel be opened.
///
/// `offered` has the subprotocols that went upstream. Extensions are for [`super::extensions::answer`].
///
/// # Errors
/// The first rule that the answer breaks.
///
/// # RFC
/// RFC 6455 §4.1, the numbered list at its end, items 2 to 6.
pub fn check_answer(key: &[u8], offered: &HeaderMap, answer: &HeaderMap) -> Result<(), AnswerError> {
    let mut upgrades = list(answer, &http::header::UPGRADE);
    if !upgrades.next().is_some_and(|value| value.eq_ignore_ascii_case(b"websocket")) || upgrades.next().is_some() {
        return Err(AnswerError::Upgrade);
    }
    if !list_has(answer, &http::header::CONNECTION, "upgrade") {
        return Err(AnswerError::Connection);
    }
    let mut accepts = answer.get_all(http::header::SEC_WEBSOCKET_ACCEPT).into_iter();
    let matches = accepts.next().is_some_and(|accept| accept.as_bytes().trim_ascii() == accept_for(key));
    if !matches || accepts.next().is_some() {
        return Err(AnswerError::Accept);
    }
    let mut chosen = answer.get_all(http::header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    if let Some(chosen) = chosen.next().map(HeaderValue::as_bytes) {
        let offered = list(offered, &http::header::SEC_WEBSOCKET_PROTOCOL).any(|token| token == chosen.trim_ascii());
        if !offered {
            return Err(AnswerError::Subprotocol);
        }
    }
    if chosen.next().is_some() {
        return Err(AnswerError::Subprotocol);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header;

    const KEY: &[u8] = b"dGhlIHNhbXBsZSBub25jZQ==";

    fn headers(lines: &[(HeaderName, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn answer() -> HeaderMap {
        headers(&[
            (header::UPGRADE, "websocket"),
            (header::CONNECTION, "Upgrade"),
            (header::SEC_WEBSOCKET_ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ])
    }

    #[test]
    fn makes_the_accept_of_the_rfc() {
        assert_eq!(&accept_for(KEY), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_sixteen_bytes_of_base64() {
        assert!(is_valid_key(KEY));
        assert_eq!(key_of(*b"the sample nonce").as_bytes(), KEY);
        for bad in [&b""[..], b"dGhlIHNhbXBsZSBub25jZQ", b"dGhlIHNhbXBsZSBub25jZQ=*", b"AAAAAAAAAAAAAAAAAAAAAAAA"] {
            assert!(!is_valid_key(bad), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn takes_a_correct_answer_only() {
        let offered = headers(&[(header::SEC_WEBSOCKET_PROTOCOL, "chat, superchat")]);
        assert_eq!(check_answer(KEY, &offered, &answer()), Ok(()));
        let with = |name: HeaderName, value: &'static str| {
            let mut changed = answer();
            changed.insert(name, HeaderValue::from_static(value));
            check_answer(KEY, &offered, &changed)
        };
        assert_eq!(with(header::UPGRADE, "h2c"), Err(AnswerError::Upgrade));
        assert_eq!(with(header::UPGRADE, "websocket, h2c"), Err(AnswerError::Upgrade));
        assert_eq!(with(header::UPGRADE, "WebSocket"), Ok(()));
        assert_eq!(with(header::CONNECTION, "keep-alive"), Err(AnswerError::Connection));
        assert_eq!(with(header::CONNECTION, "keep-alive, upgrade"), Ok(()));
        assert_eq!(with(header::SEC_WEBSOCKET_ACCEPT, "c3pPLMBiTxaQ9kYGzzhZRbK+xOo="), Err(AnswerError::Accept));
        assert_eq!(with(header::SEC_WEBSOCKET_PROTOCOL, "chat"), Ok(()));
        assert_eq!(with(header::SEC_WEBSOCKET_PROTOCOL, "other"), Err(AnswerError::Subprotocol));
        let mut twice = answer();
        twice.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
        twice.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("superchat"));
        assert_eq!(check_answer(KEY, &offered, &twice), Err(AnswerError::Subprotocol));
        let mut none = answer();
        none.remove(header::SEC_WEBSOCKET_ACCEPT);
        assert_eq!(check_answer(KEY, &offered, &none), Err(AnswerError::Accept));
        let mut twice = answer();
        twice.append(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(check_answer(KEY, &offered, &twice), Err(AnswerError::Accept));
    }
}
