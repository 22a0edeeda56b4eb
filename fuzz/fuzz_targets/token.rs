//! Tokens: visible ASCII of some length, and equal to themselves alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::policy::token::Token;

fuzz_target!(|input: &str| {
    let (text, presented) = input.split_once('\n').unwrap_or((input, input));
    let Ok(token) = Token::new(text) else { return };
    assert!(text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic()));
    assert_eq!(token.matches(presented.as_bytes()), text == presented);
    assert_eq!(format!("{token:?}"), "Token(***)");
});
