//! The PROXY protocol: the verdict falls once, and its length is that of the header and no more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::edge::proxy_protocol::parse;

fuzz_target!(|bytes: &[u8]| {
    let verdict = parse(bytes);
    let at = (0..=bytes.len()).find(|end| parse(&bytes[..*end]) != Ok(None)).unwrap_or(bytes.len());
    match verdict {
        Ok(Some((_, len))) => assert!(at == len && (at..=bytes.len()).all(|end| parse(&bytes[..end]) == verdict)),
        // The line of version 1 is judged at its end, and a fault stays one.
        Ok(None) => assert_eq!(at, bytes.len()),
        Err(_) => assert!((at..=bytes.len()).all(|end| parse(&bytes[..end]).is_err())),
    }
    let Some(line) = bytes.split_inclusive(|byte| *byte == b'\n').next().filter(|line| line.starts_with(b"PROXY "))
    else {
        return;
    };
    if let Ok(Some((Some(client), len))) = verdict {
        let text = std::str::from_utf8(line).expect("it was read");
        let source: std::net::IpAddr = text.split(' ').nth(2).expect("a source").parse().expect("an address");
        assert_eq!((source.to_canonical(), line.len()), (client, len));
    }
});
