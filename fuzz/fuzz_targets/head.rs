//! Request heads: one verdict however the bytes arrive, within their limits, and a target that is read in one way.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sluicegate::config::{Bind, HeadLimits, Listener};
use sluicegate::edge::head::{Head, Progress, Protocol, parse};
use sluicegate::edge::request::{Arrival, Request};
use sluicegate::policy::client_address::{Peer, Source, TrustedProxies};
use sluicegate_fuzz::cuts;

const LIMITS: HeadLimits = HeadLimits { timeout: Duration::from_secs(1), max_bytes: 1024, max_headers: 20 };

fuzz_target!(|input: &[u8]| {
    let [seed, bytes @ ..] = input else { return };
    let whole = parse(bytes, &mut Progress::default(), &LIMITS).map(|head| head.map(|(_, len)| len));
    for cuts in [cuts(*seed, bytes.len()), cuts(0, bytes.len())] {
        let mut progress = Progress::default();
        let mut ends = cuts.into_iter().chain([bytes.len()]);
        let split = ends.find_map(|end| parse(&bytes[..end], &mut progress, &LIMITS).transpose()).transpose();
        // What is wrong in a line behind the first one may show before the head is whole, or only then, and of two faults
        // either may be named.
        match (split, &whole) {
            (Ok(split), Ok(whole)) => assert_eq!(split.map(|(_, len)| len), *whole),
            (Err(_) | Ok(None), Err(_)) => {}
            (split, whole) => panic!("{split:?} in pieces, {whole:?} at once"),
        }
    }
    let Ok(Some((request, len))) = parse(bytes, &mut Progress::default(), &LIMITS) else { return };
    assert!(len <= bytes.len() && len <= LIMITS.max_bytes && request.headers.len() <= LIMITS.max_headers);
    assert!(bytes[..len].ends_with(b"\n\r\n") || bytes[..len].ends_with(b"\n\n"));
    read(Head { request, bytes: Bytes::copy_from_slice(bytes), len, rewritten: false, protocol: Protocol::Http1 });
});

/// What a request says of its host and path is the same when it is read again as it goes upstream.
fn read(head: Head) {
    let peer = Peer::from(IpAddr::from([10, 0, 0, 5]));
    let arrival = Arrival { peer, named: None, tls: false, identity: None };
    let listener = Listener {
        name: "public".to_owned(),
        bind: Bind::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        hosts: None,
        head: LIMITS,
        client_address: Source::XForwardedFor,
        tls: None,
        http2: false,
    };
    let trusted = TrustedProxies::default();
    let Ok(request) = Request::read(head, &arrival, &listener, &trusted) else { return };
    assert_eq!(request.client, peer);
    assert!(request.path.starts_with('/') || request.path == "*");
    let Request { head, authority, path, intent, .. } = request;
    let again = Request::read(head, &arrival, &listener, &trusted).expect("it was read once");
    assert_eq!((again.authority, again.path, again.intent), (authority, path, intent));
    assert!(!again.head.rewritten || again.head.request.raw_path().starts_with(b"/"));
}
