//! Responses that are held: what is taken of their headers and bodies keeps its bounds.
#![no_main]

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sluicegate::grip::Limits;
use sluicegate::grip::instruct::{self, from_response, has_body, is_grip};

/// A line each, in this order; what stands behind an empty line is a body.
const NAMES: [&str; 9] = [
    "grip-hold",
    "grip-channel",
    "grip-timeout",
    "grip-keep-alive",
    "grip-set-meta",
    "grip-status",
    "grip-expose-headers",
    "grip-link",
    "grip-channel",
];

fuzz_target!(|input: &[u8]| {
    let split = input.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = match split {
        Some(at) => (&input[..at], Some(&input[at + 2..])),
        None => (input, None),
    };
    let mut headers = HeaderMap::new();
    for (name, line) in NAMES.into_iter().zip(head.split(|byte| *byte == b'\n')) {
        let name = HeaderName::from_static(name);
        assert!(is_grip(&name));
        if let Ok(value) = HeaderValue::from_bytes(line)
            && !line.is_empty()
        {
            headers.append(name, value);
        }
    }
    if body.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(instruct::CONTENT_TYPE));
    }
    assert_eq!(has_body(&headers), body.is_some());
    let limits = Limits { channels: 4, meta_entries: 4, kept_bytes: 64, ..Limits::default() };
    let Ok(instruction) = from_response(200, &headers, body.unwrap_or_default(), &limits) else { return };
    if let Some(hold) = &instruction.hold {
        assert!((1..=4).contains(&hold.channels.len()) && hold.meta.iter().len() <= 4);
        assert!((5..=86_400).contains(&hold.timeout_secs));
        for channel in &hold.channels {
            assert!(!channel.name.is_empty() && channel.filters.as_slice().len() <= limits.filters);
        }
        if let Some(keep_alive) = &hold.keep_alive {
            assert!((1..=64).contains(&keep_alive.content.len()) && keep_alive.timeout_secs > 0);
        }
    }
    assert!(instruction.status.is_none_or(|(code, _)| (100..=999).contains(&code)));
    for link in instruction.next.iter().map(|next| &next.link).chain(&instruction.gone) {
        assert!(!link.is_empty() && link.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    for (name, value) in instruction.response.iter().flat_map(|response| &response.headers) {
        assert!(HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok());
    }
});
