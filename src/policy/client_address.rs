//! Whose request it is: the client's address behind hops that are trusted to name it.
//!
//! Exactly one header is read, and only from a peer in `trusted_proxies`; it is read from its right end, where the
//! hops nearest to us wrote. Nothing here fails: what cannot be read ends the walk, and the address found so far
//! counts. RFC 7239 (Forwarded); X-Forwarded-For has no standard.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::Fault;

/// The other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP peer.
    Ip(IpAddr),
    /// A peer on a Unix socket, which has no address.
    Unix,
}

impl Peer {
    /// Its address, when it has one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Unix => None,
        }
    }

    /// The key that limits per client address count it by. All peers on Unix sockets share one.
    pub fn limit_key(self) -> IpAddr {
        self.ip().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), limit_key)
    }

    /// Whether it is far more often a hop than a client: see [`is_hop`]. A peer on a Unix socket is.
    pub fn is_hop(self) -> bool {
        self.ip().is_none_or(is_hop)
    }
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Where the client's address is read from when the peer is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239), its `for` parameter.
    Forwarded,
    /// A header that holds one address, such as `cf-connecting-ip`.
    Header(HeaderName),
    /// No header: the PROXY protocol, in front of the first request.
    ProxyProtocol,
}

/// The peers that are believed when they name a client: `trusted_proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    private: bool,
    unix: bool,
}

impl TrustedProxies {
    /// Reads networks (`10.0.0.0/8`), single addresses, and the words `private` and `unix`.
    ///
    /// # Errors
    /// One fault per entry that is none of these; its key is the entry's index, `[2]`.
    pub fn new(entries: &[String]) -> Result<Self, Vec<Fault>> {
        let mut trusted = Self::default();
        let mut faults = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            match entry.as_str() {
                "private" => trusted.private = true,
                "unix" => trusted.unix = true,
                text => match parse_network(text) {
                    Some(network) => trusted.networks.push(network),
                    None => faults.push(Fault::new(
                        format!("[{index}]"),
                        format!("{text:?}"),
                        "a network such as \"10.0.0.0/8\", an address, or the words \"private\" and \"unix\"",
                    )),
                },
            }
        }
        if faults.is_empty() { Ok(trusted) } else { Err(faults) }
    }

    /// Whether this peer may name the client.
    pub fn contains(&self, peer: Peer) -> bool {
        match peer {
            Peer::Unix => self.unix,
            Peer::Ip(address) => {
                let address = address.to_canonical();
                (self.private && is_hop(address)) || self.networks.iter().any(|network| network.contains(&address))
            }
        }
    }
}

pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    if let Ok(address) = IpAddr::from_str(text) {
        return Some(IpNet::from(address.to_canonical()));
    }
    let network = IpNet::from_str(text).ok()?;
    // `::ffff:10.0.0.0/104` means 10.0.0.0/8: peers are compared in their IPv4 form.
    match network.addr().to_canonical() {
        IpAddr::V4(address) if network.addr().is_ipv6() => {
            IpNet::new(address.into(), network.prefix_len().checked_sub(96)?).ok()
        }
        _ => Some(network),
    }
}

/// The client's address: the peer's own, or what `source` says when the peer is trusted.
///
/// In a list the right-most address that is not itself a trusted proxy counts, over all header lines in their order;
/// when all are trusted, the left-most. An entry that is no address (`unknown`, `_hidden`, garbage) ends the walk: the
/// last address to its right counts, else the peer. A header of one address must come once and parse, else the peer
/// counts. Where the PROXY protocol names the client no header does.
///
/// # RFC
/// RFC 7239 §4, §6 and §7.1.
pub fn resolve(source: &Source, trusted: &TrustedProxies, peer: Peer, headers: &HeaderMap) -> Peer {
    if !trusted.contains(peer) {
        return peer;
    }
    let found = match source {
        Source::ProxyProtocol => None,
        Source::Header(name) => single(headers, name),
        Source::XForwardedFor => walk(headers, "x-forwarded-for", trusted, parse_node),
        Source::Forwarded => walk(headers, "forwarded", trusted, parse_forwarded_element),
    };
    found.map_or(peer, Peer::from)
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse_node(value.to_str().ok()?.trim()),
        _ => None,
    }
}

fn walk(
    headers: &HeaderMap,
    name: &str,
    trusted: &TrustedProxies,
    parse: fn(&str) -> Option<IpAddr>,
) -> Option<IpAddr> {
    let mut found = None;
    for line in headers.get_all(name).iter().rev() {
        for element in elements_from_the_right(line.as_bytes()) {
            // RFC 9110 §5.6.1: empty list elements are ignored.
            if element.is_empty() {
                continue;
            }
            // One that is no text is no address; what stands beside it is still read.
            match std::str::from_utf8(element).ok().and_then(parse) {
                Some(address) if trusted.contains(Peer::Ip(address)) => found = Some(address),
                Some(address) => return Some(address),
                None => return found,
            }
        }
    }
    found
}

/// Splits a list at the commas outside of quotes, starting at its right end.
///
/// The left end is the client's own: read from there, a lone quote of its making would swallow what a hop appended.
fn elements_from_the_right(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let mut quoted = false;
        let comma = bytes.iter().enumerate().rev().find(|(at, byte)| match byte {
            b'"' if !is_escaped(bytes, *at) => {
                quoted = !quoted;
                false
            }
            byte => **byte == b',' && !quoted,
        });
        let (front, element) = match comma {
            Some((at, _)) => (bytes.get(..at), bytes.get(at..)?.get(1..)?),
            None => (None, bytes),
        };
        rest = front;
        Some(element.trim_ascii())
    })
}

fn is_escaped(bytes: &[u8], at: usize) -> bool {
    let before = bytes.get(..at).unwrap_or_default();
    !before.iter().rev().take_while(|byte| **byte == b'\\').count().is_multiple_of(2)
}

/// The address of a `Forwarded` element: its one `for` parameter.
fn parse_forwarded_element(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in element.split(';') {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            if found.is_some() {
                return None;
            }
            found = Some(parse_node(value.trim())?);
        }
    }
    found
}

/// An address with or without quotes, brackets and port: `1.2.3.4:80`, `"[2001:db8::1]:80"`, `2001:db8::1`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let text = match text.strip_prefix('"') {
        Some(inner) => inner.strip_suffix('"')?,
        None => text,
    };
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let (host, rest) = inner.split_once(']')?;
        (
            IpAddr::V6(host.parse().ok()?),
            rest.strip_prefix(':').map_or(rest.is_empty().then_some(None), |p| Some(Some(p)))?,
        )
    } else if let Ok(address) = text.parse::<IpAddr>() {
        (address, None)
    } else {
        let (host, port) = text.split_once(':')?;
        (IpAddr::V4(host.parse().ok()?), Some(port))
    };
    match port {
        Some(port) if !is_node_port(port) => None,
        _ => Some(host.to_canonical()),
    }
}

/// RFC 7239 §6: a port is 1 to 5 digits, or obfuscated: `_` and a token.
fn is_node_port(port: &str) -> bool {
    match port.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
        None => (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// The key that per-IP limits count by: an IPv4 address, or the /64 of an IPv6 one, since a host owns all of it.
pub fn limit_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

/// Whether an address is far more often a hop's than a client's: loopback, private (RFC 1918, RFC 4193), link-local, or
/// shared by a carrier (RFC 6598). The word `private` in `trusted_proxies` means the same.
pub fn is_hop(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_carrier_shared(v4),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn is_carrier_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0xc0 == 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a test's own address")
    }

    fn trusted(entries: &[&str]) -> TrustedProxies {
        let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
        TrustedProxies::new(&entries).expect("a test's own entries")
    }

    fn resolved(source: &Source, name: &'static str, lines: &[&str]) -> IpAddr {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line.as_bytes()).expect("a test's own value"));
        }
        let trusted = trusted(&["10.0.0.0/8", "2001:db8:1::/48", "unix"]);
        let client = resolve(source, &trusted, ip("10.0.0.1").into(), &headers);
        // A hop on a Unix socket says the same, and is itself what counts when it says nothing.
        let by_unix = resolve(source, &trusted, Peer::Unix, &headers).ip();
        assert_eq!(Some(by_unix.unwrap_or(ip("10.0.0.1"))), client.ip());
        client.ip().expect("the peer has an address")
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("1.2.3.4"));
        let peer = Peer::from(ip("192.0.2.9"));
        let mapped = Peer::from(ip("::ffff:192.0.2.9"));
        assert_eq!(resolve(&Source::XForwardedFor, &trusted(&["10.0.0.0/8"]), peer, &headers), peer);
        assert_eq!(resolve(&Source::XForwardedFor, &trusted(&[]), peer, &headers), peer);
        assert_eq!(resolve(&Source::XForwardedFor, &trusted(&["private"]), mapped, &headers), peer);
        assert_eq!(resolve(&Source::XForwardedFor, &trusted(&["private"]), Peer::Unix, &headers), Peer::Unix);
    }

    #[test]
    fn a_peer_says_its_address_and_whether_it_is_a_hop() {
        for (peer, shown, hop) in [
            (Peer::Unix, "unix", true),
            (ip("127.0.0.1").into(), "127.0.0.1", true),
            (ip("::ffff:203.0.113.9").into(), "203.0.113.9", false),
            (ip("2001:db8::1").into(), "2001:db8::1", false),
        ] {
            assert_eq!((peer.to_string().as_str(), peer.is_hop()), (shown, hop));
        }
    }

    #[test]
    fn no_header_counts_where_the_proxy_protocol_names_the_client() {
        assert_eq!(resolved(&Source::ProxyProtocol, "x-forwarded-for", &["1.2.3.4"]), ip("10.0.0.1"));
    }

    #[test]
    fn the_rightmost_untrusted_address_counts() {
        for (lines, client) in [
            (&["1.2.3.4"][..], "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4, 10.9.9.9"], "1.2.3.4"),
            (&["6.6.6.6", "1.2.3.4", "10.9.9.9"], "1.2.3.4"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["1.2.3.4:5678,10.0.0.2:80"], "1.2.3.4"),
            (&["[2001:db8::7]:443"], "2001:db8::7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["2001:db8::7, 2001:db8:1::1"], "2001:db8::7"),
            (&["::ffff:1.2.3.4"], "1.2.3.4"),
            (&["1.2.3.4, ::ffff:10.0.0.2"], "1.2.3.4"),
            (&[" 1.2.3.4 , , "], "1.2.3.4"),
            (&[""], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(resolved(&Source::XForwardedFor, "x-forwarded-for", lines), ip(client), "{lines:?}");
        }
    }

    #[test]
    fn garbage_ends_the_walk_at_the_last_address_to_its_right() {
        for (lines, client) in [
            (&["6.6.6.6, unknown"][..], "10.0.0.1"),
            (&["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["6.6.6.6, _hidden, 1.2.3.4"], "1.2.3.4"),
            (&["6.6.6.6, 1.2.3.4.5"], "10.0.0.1"),
            (&["6.6.6.6", "\u{fc}"], "10.0.0.1"),
            (&["6.6.6.6, 1.2.3.4:port"], "10.0.0.1"),
            (&["6.6.6.6, [2001:db8::7"], "10.0.0.1"),
            (&["6.6.6.6, [2001:db8::7]x"], "10.0.0.1"),
            (&["6.6.6.6, fe80::1%eth0"], "10.0.0.1"),
        ] {
            assert_eq!(resolved(&Source::XForwardedFor, "x-forwarded-for", lines), ip(client), "{lines:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_hide_nothing_that_a_hop_appended() {
        let trusted = trusted(&["10.0.0.0/8"]);
        for (source, name, line) in [
            (Source::XForwardedFor, "x-forwarded-for", &b"\xad, 203.0.113.9"[..]),
            (Source::XForwardedFor, "x-forwarded-for", b"\xff\", 203.0.113.9, 10.0.0.7"),
            (Source::Forwarded, "forwarded", b"for=\"\xff, for=203.0.113.9;proto=https"),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(name, HeaderValue::from_bytes(line).expect("a value"));
            assert_eq!(
                resolve(&source, &trusted, ip("10.0.0.5").into(), &headers),
                ip("203.0.113.9").into(),
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn forwarded_is_read_by_its_for_parameter() {
        for (lines, client) in [
            (&["for=1.2.3.4"][..], "1.2.3.4"),
            (&["For=\"[2001:db8::7]:4711\";proto=https, for=10.0.0.2;by=203.0.113.43"], "2001:db8::7"),
            (&["for=6.6.6.6", "for=1.2.3.4;host=\"a,b\""], "1.2.3.4"),
            (&["for=\"1.2.3.4:_obf\""], "1.2.3.4"),
            (&["for=6.6.6.6, for=unknown"], "10.0.0.1"),
            (&["for=6.6.6.6, for=_secret, for=10.0.0.2"], "10.0.0.2"),
            (&["for=6.6.6.6, proto=https"], "10.0.0.1"),
            (&["for=6.6.6.6;for=1.2.3.4"], "10.0.0.1"),
            // A client's open quote does not swallow what the hop appended.
            (&["for=\", for=1.2.3.4"], "1.2.3.4"),
        ] {
            assert_eq!(resolved(&Source::Forwarded, "forwarded", lines), ip(client), "{lines:?}");
        }
    }

    #[test]
    fn a_header_of_one_address_counts_only_when_it_is_one() {
        let source = Source::Header(HeaderName::from_static("cf-connecting-ip"));
        for (lines, client) in [
            (&["1.2.3.4"][..], "1.2.3.4"),
            (&["::ffff:1.2.3.4"], "1.2.3.4"),
            (&["1.2.3.4", "6.6.6.6"], "10.0.0.1"),
            (&["1.2.3.4, 6.6.6.6"], "10.0.0.1"),
            (&["x"], "10.0.0.1"),
        ] {
            assert_eq!(resolved(&source, "cf-connecting-ip", lines), ip(client), "{lines:?}");
        }
    }

    #[test]
    fn limits_count_ipv6_by_its_64() {
        assert_eq!(limit_key(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(limit_key(ip("::ffff:1.2.3.4")), ip("1.2.3.4"));
        assert_eq!(limit_key(ip("1.2.3.4")), ip("1.2.3.4"));
        assert_eq!(Peer::Unix.limit_key(), Peer::Unix.limit_key());
    }

    #[test]
    fn hops_are_loopback_private_link_local_and_carrier_shared() {
        for hop in [
            "127.0.0.1",
            "::1",
            "10.1.1.1",
            "172.31.0.1",
            "192.168.0.1",
            "fd00::1",
            "fe80::1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_hop(ip(hop)), "{hop}");
        }
        for client in ["1.2.3.4", "172.32.0.1", "100.63.0.1", "100.128.0.1", "2001:db8::1"] {
            assert!(!is_hop(ip(client)), "{client}");
        }
    }

    #[test]
    fn words_and_networks_are_read_and_every_other_entry_is_a_fault() {
        assert!(trusted(&["unix"]).contains(Peer::Unix));
        assert!(!trusted(&["private"]).contains(Peer::Unix));
        assert!(trusted(&["private"]).contains(Peer::Ip(ip("100.64.0.1"))));
        assert!(trusted(&["192.0.2.1"]).contains(Peer::Ip(ip("::ffff:192.0.2.1"))));
        assert!(trusted(&["::ffff:192.0.2.0/120"]).contains(Peer::Ip(ip("192.0.2.77"))));
        let faults = TrustedProxies::new(&["10.0.0.0/33".into(), "unix".into(), "all".into()]).expect_err("two faults");
        assert_eq!(faults.iter().map(|f| f.key.as_str()).collect::<Vec<_>>(), ["[0]", "[2]"]);
    }
}
