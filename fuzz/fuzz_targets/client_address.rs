//! The client's address: nobody but a trusted peer names it, and what a client wrote never counts against what the hop
//! behind it appended.
#![no_main]

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sluicegate::policy::client_address::{self, Source, TrustedProxies, limit_key};

const HOP: [u8; 4] = [10, 0, 0, 5];
const CLIENT: [u8; 4] = [203, 0, 113, 9];

fuzz_target!(|claims: &[u8]| {
    let trusted = TrustedProxies::new(&["10.0.0.0/8".to_owned()]).expect("a network");
    let (hop, client) = (IpAddr::from(HOP), IpAddr::from(CLIENT));
    for (source, name, element) in [
        (Source::XForwardedFor, "x-forwarded-for", "203.0.113.9"),
        (Source::Forwarded, "forwarded", "for=203.0.113.9"),
        (Source::Header(HeaderName::from_static("x-client")), "x-client", ""),
    ] {
        let lines = claims.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
        let mut headers: HeaderMap = lines.map(|line| (HeaderName::from_static(name), line)).collect();
        assert_eq!(resolve(&source, &trusted, client, &headers), client);
        let found = resolve(&source, &trusted, hop, &headers);
        assert_eq!(limit_key(limit_key(found)), limit_key(found));
        if element.is_empty() {
            continue;
        }
        // A hop appends to the last line, or adds one of its own.
        let mut joined = headers.clone();
        joined.append(name, HeaderValue::from_static(element));
        assert_eq!(resolve(&source, &trusted, hop, &joined), client);
        let Some(last) = headers.get_all(name).iter().next_back().map(HeaderValue::as_bytes) else { continue };
        let appended = HeaderValue::from_bytes(&[last, b", ", element.as_bytes()].concat()).expect("a value");
        headers.insert(name, appended);
        assert_eq!(resolve(&source, &trusted, hop, &headers), client);
    }
});

fn resolve(source: &Source, trusted: &TrustedProxies, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    client_address::resolve(source, trusted, peer.into(), headers).ip().expect("both peers have addresses")
}
