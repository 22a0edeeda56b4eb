//! The PROXY protocol, versions 1 and 2: a hop in front says whose connection it passes on.
//!
//! It is read before anything else, from trusted peers only, within the deadline of the first head. What it carries
//! besides addresses is skipped. <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use ppp::{PartialResult as _, v1, v2};
use tokio::time::{Instant, timeout_at};

use super::head::{NoHead, read_some};
use super::socket::Socket;
use crate::cause::Refusal;

/// The most bytes of a header: those of version 2 with what hops add to the addresses, such as the name and the
/// certificate's subject of a TLS client.
const MAX_HEADER_BYTES: usize = 4096;

/// The most bytes of the line of version 1, its end counted.
const MAX_VERSION_1_BYTES: usize = 107;

/// What the line of version 1 begins with.
const VERSION_1_PREFIX: &[u8] = b"PROXY ";

/// Reads the header by `deadline`. Returns the client that it names, and what was read behind it.
///
/// The client is `None` where the hop speaks for itself (LOCAL, as in its health checks) or does not know (UNKNOWN).
///
/// # Errors
/// `ProxyHeader` when it is malformed, too long or not there in time; quiet when the connection ends without a byte, as
/// simple health checks do.
pub async fn read(io: &mut Socket, deadline: Instant) -> Result<(Option<IpAddr>, Bytes), NoHead> {
    let mut bytes = BytesMut::new();
    loop {
        match parse(&bytes).map_err(NoHead::Refused)? {
            Some((client, len)) => {
                let rest = bytes.split_off(len);
                return Ok((client, rest.freeze()));
            }
            None if bytes.len() >= MAX_HEADER_BYTES => return Err(NoHead::Refused(Refusal::ProxyHeader)),
            None => {}
        }
        match timeout_at(deadline, read_some(io, &mut bytes)).await {
            Ok(Ok(0) | Err(_)) if bytes.is_empty() => return Err(NoHead::Quiet),
            Ok(Ok(0) | Err(_)) | Err(_) => return Err(NoHead::Refused(Refusal::ProxyHeader)),
            Ok(Ok(_)) => {}
        }
    }
}

/// Parses the header at the front of `bytes`.
///
/// Returns the client that it names, if it names one, and its length in bytes, or `None` if `bytes` does not hold a whole
/// header yet.
///
/// # Errors
/// `ProxyHeader`.
pub fn parse(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, Refusal> {
    let begins_with = |start: &[u8]| bytes.iter().zip(start).all(|(byte, expected)| byte == expected);
    if begins_with(v2::PROTOCOL_PREFIX) {
        parse_version_2(bytes)
    } else if begins_with(VERSION_1_PREFIX) {
        parse_version_1(bytes)
    } else {
        Err(Refusal::ProxyHeader)
    }
}

/// The line of version 1. It is parsed when it is whole: an address that is cut off is another one.
fn parse_version_1(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, Refusal> {
    let line = bytes.get(..MAX_VERSION_1_BYTES).unwrap_or(bytes);
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() < MAX_VERSION_1_BYTES { Ok(None) } else { Err(Refusal::ProxyHeader) };
    };
    let header = v1::Header::try_from(&bytes[..=end]).map_err(|_| Refusal::ProxyHeader)?;
    let client = match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
    };
    Ok(Some((client.map(canonical), end + 1)))
}

fn parse_version_2(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, Refusal> {
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(error) if error.is_incomplete() => return Ok(None),
        Err(_) => return Err(Refusal::ProxyHeader),
    };
    let client = match (header.command, header.addresses) {
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
    };
    Ok(Some((client.map(canonical), header.len())))
}

fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn version_2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = (body.len() as u16).to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &len, body].concat()
    }

    /// Parses a header with something behind it: whole, and byte by byte.
    fn client(header: &[u8]) -> Result<Option<IpAddr>, Refusal> {
        let bytes = [header, b"GET / HTTP/1.1\r\n"].concat();
        for len in 0..header.len() {
            match parse(&bytes[..len]) {
                Ok(None) => {}
                // What is wrong may show before the end.
                Err(refusal) => return Err(refusal),
                early => panic!("{early:?} after {len} bytes"),
            }
        }
        parse(&bytes).map(|parsed| {
            let (client, len) = parsed.expect("it is whole");
            assert_eq!(len, header.len());
            client
        })
    }

    #[test]
    fn names_the_client_in_both_versions() {
        let ip = |text: &str| Ok(Some(text.parse().unwrap()));
        assert_eq!(client(b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n"), ip("203.0.113.7"));
        assert_eq!(client(b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n"), ip("2001:db8::7"));
        assert_eq!(client(b"PROXY TCP6 ::ffff:203.0.113.7 ::1 56324 443\r\n"), ip("203.0.113.7"));
        let four = [203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
        assert_eq!(client(&version_2(1, 0x11, &four)), ip("203.0.113.7"));
        // A type, a length and a value behind the addresses.
        let more = [&four[..], &[0x02, 0, 3, b'a', b'b', b'c']].concat();
        assert_eq!(client(&version_2(1, 0x11, &more)), ip("203.0.113.7"));
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(client(&version_2(1, 0x21, &six)), ip("2001:db8::7"));
    }

    #[test]
    fn keeps_the_peer_where_nobody_is_named() {
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), Ok(None));
        assert_eq!(client(b"PROXY UNKNOWN ffff::1 ffff::1 1 1\r\n"), Ok(None));
        assert_eq!(client(&version_2(0, 0, &[])), Ok(None));
        assert_eq!(client(&version_2(0, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0, 1, 0, 1])), Ok(None));
        assert_eq!(client(&version_2(1, 0x31, &[0; 216])), Ok(None));
    }

    #[test]
    fn refuses_what_is_no_header() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00",
            b"PROXY TCP4 203.0.113.256 10.0.0.1 56324 443\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 99999\r\n",
            b"PROXY TCP4 2001:db8::7 10.0.0.1 56324 443\r\n",
            b"PROXY TCP5 203.0.113.7 10.0.0.1 56324 443\r\n",
            b"proxy TCP4 203.0.113.7 10.0.0.1 56324 443\r\n",
            &version_2(7, 0x11, &[0; 12]),
            &version_2(1, 0x11, &[0; 11]),
            &[SIGNATURE, &[0x31, 0x11, 0, 12], &[0; 12]].concat(),
        ] {
            assert_eq!(client(bad), Err(Refusal::ProxyHeader), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), signed: bool) {
            let bytes = if signed { [SIGNATURE, &bytes].concat() } else { bytes };
            if let Ok(Some((_, len))) = parse(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
