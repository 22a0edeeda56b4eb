//! The checks of a handshake: keys and tokens as other crates read them, and an answer that opens a tunnel has exactly
//! what was asked for.
#![no_main]

use http::{HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sluicegate::ws::handshake::{accept_for, check_answer, is_token, is_valid_key, list};
use sluicegate_fuzz::headers;

/// The key of the RFC's example, whose accept is in the dictionary.
const KEY: &[u8] = b"dGhlIHNhbXBsZSBub25jZQ==";

fuzz_target!(|input: &[u8]| {
    assert!(input.len() > 1000 || is_token(input) == HeaderName::from_bytes(input).is_ok());
    let encoded = |nonce: &[u8]| tungstenite::handshake::derive_accept_key(nonce).into_bytes();
    assert!(!is_valid_key(input) || accept_for(input)[..] == encoded(input)[..]);

    let (offered, rest) = headers::read(input);
    let (answer, _) = headers::read(rest);
    for name in answer.keys() {
        let joined = headers::values(&answer, name.as_str()).join(&b", "[..]);
        let one = [(name.clone(), HeaderValue::from_bytes(&joined).expect("a value"))].into_iter().collect();
        assert!(list(&answer, name).eq(list(&one, name)));
    }
    if check_answer(KEY, &offered, &answer) != Ok(()) {
        return;
    }
    let only = |name: &str| match headers::values(&answer, name)[..] {
        [value] => Some(value.trim_ascii().to_vec()),
        _ => None,
    };
    // Empty elements of a list, and lines of them, mean nothing. RFC 9110 §5.6.1.
    let upgrade = headers::values(&answer, "upgrade").join(&b","[..]).to_ascii_lowercase();
    let elements = upgrade.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    assert!(elements.filter(|element| !element.is_empty()).eq([b"websocket"]));
    assert!(
        headers::values(&answer, "connection").concat().to_ascii_lowercase().windows(7).any(|word| word == b"upgrade")
    );
    assert_eq!(only("sec-websocket-accept").expect("one"), accept_for(KEY));
    let chosen = only("sec-websocket-protocol");
    assert_eq!(chosen.is_some(), answer.contains_key("sec-websocket-protocol"));
    let mut tokens =
        headers::values(&offered, "sec-websocket-protocol").into_iter().flat_map(|line| line.split(|b| *b == b','));
    assert!(chosen.is_none_or(|chosen| tokens.any(|token| token.trim_ascii() == chosen)));
});
