//! Sticky cookies: one that was issued brings its endpoint back, and none that a client made or changed chooses any.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sluicegate::policy::stickiness::{Found, SameSite, Secure, StickyCookie};

const ENDPOINTS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "backend:80"];
const NOW: u64 = 1_790_000_000;

fuzz_target!(|input: &[u8]| {
    let Some((&[at, change, endpoint, age], claims)) = input.split_first_chunk::<4>() else { return };
    let cookie = StickyCookie::new("s", Some(Duration::from_secs(60)), SameSite::Lax, Secure::Auto, &[vec![7; 32]]);
    let cookie = cookie.expect("the settings are sound");
    let find = |lines: &[&[u8]], now| cookie.find("chat", lines.iter().copied(), ENDPOINTS.into_iter(), now);
    let lines: Vec<&[u8]> = claims.split(|byte| *byte == b'\n').collect();
    assert_eq!(find(&lines, NOW), Found::Nothing);

    let index = usize::from(endpoint) % ENDPOINTS.len();
    let set = cookie.issue("chat", ENDPOINTS[index], NOW, u64::from(change), false);
    let pair = set.split(';').next().expect("a pair").as_bytes();
    let now = NOW + u64::from(age);
    let expected = if age <= 60 { Found::Endpoint { index, renew: age > 30 } } else { Found::Nothing };
    assert_eq!(find(&[b"a=b", pair], now), expected);
    // One byte other than it was, or one that is missing.
    let mut changed = pair.to_vec();
    let at = usize::from(at) % pair.len();
    changed[at] ^= change;
    assert!(change == 0 || find(&[&changed], NOW) == Found::Nothing);
    changed.remove(at);
    assert_eq!(find(&[&changed], NOW), Found::Nothing);
});
