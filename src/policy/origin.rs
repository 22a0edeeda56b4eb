//! Which pages may open a WebSocket: Origin against an allow-list, the answer to cross-site WebSocket hijacking.
//!
//! Origins are parsed and compared by scheme, host and port, never as text. What is no origin is refused, never
//! repaired: a trailing dot makes another host, as it does for browsers. RFC 6454 §4, §5 and §7; RFC 6455 §10.2.

use thiserror::Error;

use super::Fault;
use super::route::{HostPattern, parse_host, parse_port};

/// The `allow` of an `origin` policy, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Any origin, `null` too: the check is off but for several Origin headers.
    Any,
    /// `same_origin`, and origins such as `https://*.example.com` or `http://localhost:*`.
    List(Vec<String>),
}

/// What the request was sent to.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The request's host, as `route::parse_authority` gives it.
    pub host: &'a str,
    /// The request's port, when one is written.
    pub port: Option<u16>,
    /// Whether the client used TLS: a TLS listener or a trusted `X-Forwarded-Proto` says so. `None`: a cleartext
    /// listener, before which TLS may have ended, so both schemes are accepted.
    pub secure: Option<bool>,
}

/// Why a handshake's origin is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OriginRefusal {
    /// No Origin header, and `missing: refuse`.
    #[error("origin is missing")]
    Missing,
    /// More than one Origin header.
    #[error("several origins")]
    Several,
    /// `null`: a sandboxed frame, a local file, a redirect across sites.
    #[error("origin is null")]
    Null,
    /// Not `scheme://host[:port]`.
    #[error("origin is malformed")]
    Malformed,
    /// An origin that the list does not have.
    #[error("origin is not in the allow-list")]
    NotAllowed,
}

/// A rule's `origin`, ready for use.
#[derive(Clone, Debug)]
pub struct OriginPolicy {
    /// `None`: any.
    entries: Option<Vec<Entry>>,
    missing_allowed: bool,
}

#[derive(Clone, Debug)]
enum Entry {
    SameOrigin,
    Explicit { scheme: String, host: HostPattern, port: PortPattern },
}

#[derive(Clone, Copy, Debug)]
enum PortPattern {
    Any,
    /// The written port without the scheme's default, or a port that is that default: `None`.
    Only(Option<u16>),
}

impl OriginPolicy {
    /// Reads an allow-list.
    ///
    /// # Errors
    /// One fault per entry that is no origin, with its index as key: `allow[1]`; and one for an empty list.
    pub fn new(allow: Allow, missing_allowed: bool) -> Result<Self, Vec<Fault>> {
        let Allow::List(list) = allow else { return Ok(Self { entries: None, missing_allowed }) };
        let mut entries = Vec::with_capacity(list.len());
        let mut faults = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match Entry::parse(text) {
                Some(entry) => entries.push(entry),
                None => faults.push(Fault::new(
                    format!("allow[{index}]"),
                    format!("{text:?}"),
                    "\"same_origin\", or scheme, host and perhaps port only: \"https://app.example.com\", \
                     \"https://*.example.com\", \"http://localhost:*\"",
                )),
            }
        }
        if list.is_empty() {
            faults.push(Fault::new("allow", "an empty list", "one or more origins, or \"any\""));
        }
        if faults.is_empty() { Ok(Self { entries: Some(entries), missing_allowed }) } else { Err(faults) }
    }

    /// Whether a handshake may go on, by the values of all its Origin headers.
    ///
    /// # Errors
    /// Why not; what the client is told is the same for all reasons.
    pub fn decide(&self, origins: &[&[u8]], site: &Site<'_>) -> Result<(), OriginRefusal> {
        let origin = match origins {
            [] if self.missing_allowed => return Ok(()),
            [] => return Err(OriginRefusal::Missing),
            [origin] => *origin,
            _ => return Err(OriginRefusal::Several),
        };
        let Some(entries) = &self.entries else { return Ok(()) };
        if origin == b"null" {
            return Err(OriginRefusal::Null);
        }
        let origin = Origin::parse(origin).ok_or(OriginRefusal::Malformed)?;
        if entries.iter().any(|entry| entry.allows(&origin, site)) { Ok(()) } else { Err(OriginRefusal::NotAllowed) }
    }

    /// Whether the list has `same_origin`, which only holds against DNS rebinding where hosts are named.
    pub fn relies_on_same_origin(&self) -> bool {
        self.entries.iter().flatten().any(|entry| matches!(entry, Entry::SameOrigin))
    }

    /// Whether any origin is allowed.
    pub fn is_any(&self) -> bool {
        self.entries.is_none()
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        if text == "same_origin" {
            return Some(Self::SameOrigin);
        }
        let (scheme, rest) = parse_scheme(text)?;
        let (host, port) = split_port(rest)?;
        // A pattern with a trailing dot would match without it; a browser's origin would not.
        let host = (!host.ends_with('.')).then(|| HostPattern::parse(host).ok()).flatten()?;
        let port = match port {
            Some("*") => PortPattern::Any,
            Some(port) => PortPattern::Only(without_default(&scheme, Some(parse_port(port)?))),
            None => PortPattern::Only(None),
        };
        Some(Self::Explicit { scheme, host, port })
    }

    fn allows(&self, origin: &Origin, site: &Site<'_>) -> bool {
        match self {
            Self::SameOrigin => origin.is_same(site),
            Self::Explicit { scheme, host, port } => {
                let port_allowed = match port {
                    PortPattern::Any => true,
                    PortPattern::Only(port) => *port == origin.port,
                };
                *scheme == origin.scheme && port_allowed && !origin.host.ends_with('.') && host.matches(&origin.host)
            }
        }
    }
}

/// A parsed Origin header. Scheme and host are in lower case; the port is `None` when it is the scheme's default.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (scheme, rest) = parse_scheme(text)?;
        let (host, port) = split_port(rest)?;
        let host = parse_host(host)?;
        let port = match port {
            Some(port) => Some(parse_port(port)?),
            None => None,
        };
        let port = without_default(&scheme, port);
        Some(Self { scheme, host, port })
    }

    /// Hosts equal, and ports equal after each side's default is dropped.
    fn is_same(&self, site: &Site<'_>) -> bool {
        let scheme_accepted = match (self.scheme.as_str(), site.secure) {
            ("https", secure) => secure != Some(false),
            ("http", secure) => secure != Some(true),
            _ => false,
        };
        let site_port = without_default(&self.scheme, site.port);
        // With both schemes accepted a Host without port stands for the default port of either.
        let either_default = site.secure.is_none() && site.port.is_none() && matches!(self.port, Some(80 | 443));
        scheme_accepted && self.host == site.host && (self.port == site_port || either_default)
    }
}

/// RFC 3986 §3.1, then `://`.
fn parse_scheme(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    valid.then(|| (scheme.to_ascii_lowercase(), rest))
}

fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    let host_end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (host, rest) = text.split_at(host_end);
    match rest.strip_prefix(':') {
        Some(port) => Some((host, Some(port))),
        None => rest.is_empty().then_some((host, None)),
    }
}

fn without_default(scheme: &str, port: Option<u16>) -> Option<u16> {
    match (scheme, port) {
        ("http", Some(80)) | ("https", Some(443)) => None,
        _ => port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(entries: &[&str]) -> OriginPolicy {
        let entries = entries.iter().map(ToString::to_string).collect();
        OriginPolicy::new(Allow::List(entries), true).expect("a test's own entries")
    }

    const SITE: Site<'_> = Site { host: "example.com", port: None, secure: None };

    #[test]
    fn the_hijacking_corpus_has_one_verdict_each() {
        use OriginRefusal::{Malformed, NotAllowed, Null};
        let policy = policy(&["https://example.com", "https://xn--bcher-kva.example"]);
        for (origin, verdict) in [
            (&b"https://example.com"[..], Ok(())),
            (b"https://example.com:443", Ok(())),
            (b"HTTPS://EXAMPLE.COM", Ok(())),
            (b"https://xn--bcher-kva.example", Ok(())),
            (b"http://example.com", Err(NotAllowed)),
            (b"http://example.com:443", Err(NotAllowed)),
            (b"https://example.com:80", Err(NotAllowed)),
            (b"https://example.com:8443", Err(NotAllowed)),
            (b"https://example.com.", Err(NotAllowed)),
            (b"https://evil-example.com", Err(NotAllowed)),
            (b"https://example.com.evil.com", Err(NotAllowed)),
            (b"https://exampleXcom", Err(NotAllowed)),
            (b"https://a.example.com", Err(NotAllowed)),
            (b"https://xn--exmple-cua.com", Err(NotAllowed)),
            (b"chrome-extension://example.com", Err(NotAllowed)),
            (b"null", Err(Null)),
            (b"", Err(Malformed)),
            (b"NULL", Err(Malformed)),
            (b"https://example.com@evil.com", Err(Malformed)),
            (b"https://evil.com@example.com", Err(Malformed)),
            (b"https://b\xc3\xbccher.example", Err(Malformed)),
            (b"https://ex\xd0\xb0mple.com", Err(Malformed)),
            (b"https://example.com\xff", Err(Malformed)),
            (b"file://", Err(Malformed)),
            (b"https://", Err(Malformed)),
            (b"https:example.com", Err(Malformed)),
            (b"example.com", Err(Malformed)),
            (b"//example.com", Err(Malformed)),
            (b"https://example.com/", Err(Malformed)),
            (b"https://example.com/path", Err(Malformed)),
            (b"https://example.com?q", Err(Malformed)),
            (b"https://example.com#f", Err(Malformed)),
            (b"https://example.com ", Err(Malformed)),
            (b" https://example.com", Err(Malformed)),
            (b"https://example.com https://evil.com", Err(Malformed)),
            (b"https://example.com, https://evil.com", Err(Malformed)),
            (b"https://example.com\0", Err(Malformed)),
            (b"https://example.com\0.evil.com", Err(Malformed)),
            (b"https://example.com:", Err(Malformed)),
            (b"https://example.com:0443", Err(Malformed)),
            (b"https://example.com:99999", Err(Malformed)),
            (b"https://*", Err(Malformed)),
        ] {
            assert_eq!(policy.decide(&[origin], &SITE), verdict, "{}", String::from_utf8_lossy(origin));
        }
        assert_eq!(policy.decide(&[], &SITE), Ok(()));
        let twice: [&[u8]; 2] = [b"https://example.com"; 2];
        assert_eq!(policy.decide(&twice, &SITE), Err(OriginRefusal::Several));
    }

    #[test]
    fn a_missing_origin_is_refused_where_the_policy_says_so() {
        let policy = OriginPolicy::new(Allow::List(vec!["same_origin".into()]), false).expect("valid");
        assert_eq!(policy.decide(&[], &SITE), Err(OriginRefusal::Missing));
        let any = OriginPolicy::new(Allow::Any, false).expect("valid");
        assert_eq!(any.decide(&[], &SITE), Err(OriginRefusal::Missing));
        assert_eq!(any.decide(&[b"https://evil.com"], &SITE), Ok(()));
        assert_eq!(any.decide(&[b"null"], &SITE), Ok(()));
        assert_eq!(any.decide(&[b"https://a", b"https://b"], &SITE), Err(OriginRefusal::Several));
    }

    #[test]
    fn wildcards_are_whole_labels_and_never_the_apex() {
        let one = policy(&["https://*.example.com"]);
        let any = policy(&["https://**.example.com"]);
        for (origin, in_one, in_any) in [
            ("https://a.example.com", true, true),
            ("https://A.example.com:443", true, true),
            ("https://a.b.example.com", false, true),
            ("https://example.com", false, false),
            ("https://xexample.com", false, false),
            ("https://.example.com", false, false),
            ("https://a.example.com.evil.com", false, false),
            ("https://a.example.com.", false, false),
            ("http://a.example.com", false, false),
            ("https://a.example.com:8443", false, false),
        ] {
            assert_eq!(one.decide(&[origin.as_bytes()], &SITE).is_ok(), in_one, "{origin}");
            assert_eq!(any.decide(&[origin.as_bytes()], &SITE).is_ok(), in_any, "{origin}");
        }
    }

    #[test]
    fn ports_are_the_schemes_default_or_the_written_one_or_any() {
        let policy = policy(&["http://localhost:*", "https://app.example.com:8443", "capacitor://localhost"]);
        for (origin, allowed) in [
            ("http://localhost", true),
            ("http://localhost:5173", true),
            ("https://localhost:5173", false),
            ("https://app.example.com:8443", true),
            ("https://app.example.com", false),
            ("capacitor://localhost", true),
        ] {
            assert_eq!(policy.decide(&[origin.as_bytes()], &SITE).is_ok(), allowed, "{origin}");
        }
    }

    #[test]
    fn same_origin_compares_host_and_port_after_the_defaults_are_dropped() {
        let policy = policy(&["same_origin"]);
        for (origin, host, port, secure, allowed) in [
            ("https://example.com", "example.com", None, None, true),
            ("http://example.com", "example.com", None, None, true),
            ("https://example.com", "example.com", Some(443), None, true),
            ("http://example.com", "example.com", Some(80), None, true),
            ("https://example.com:443", "example.com", None, None, true),
            ("http://example.com:8080", "example.com", Some(8080), None, true),
            ("http://example.com:8080", "example.com", None, None, false),
            ("http://example.com", "example.com", Some(8080), None, false),
            ("https://example.com", "example.com", Some(8080), None, false),
            ("https://evil.com", "example.com", None, None, false),
            ("https://a.example.com", "example.com", None, None, false),
            ("https://example.com.", "example.com", None, None, false),
            ("https://example.com.", "example.com.", None, None, true),
            ("ftp://example.com", "example.com", None, None, false),
            ("http://[::1]:8080", "[::1]", Some(8080), None, true),
            ("http://[0:0:0::1]:8080", "[::1]", Some(8080), None, true),
            ("https://example.com", "example.com", None, Some(true), true),
            ("http://example.com", "example.com", None, Some(true), false),
            ("http://example.com", "example.com", None, Some(false), true),
            ("https://example.com", "example.com", None, Some(false), false),
            ("https://example.com:80", "example.com", None, Some(true), false),
            ("https://example.com", "example.com", Some(443), Some(true), true),
            ("http://example.com:443", "example.com", Some(443), Some(true), false),
        ] {
            let site = Site { host, port, secure };
            assert_eq!(policy.decide(&[origin.as_bytes()], &site).is_ok(), allowed, "{origin} {site:?}");
        }
        assert!(policy.relies_on_same_origin());
    }

    #[test]
    fn entries_that_are_no_origin_are_faults() {
        for entry in [
            "",
            "*",
            "null",
            "example.com",
            "https://",
            "https://*",
            "https://a.com/",
            "https://a.com/path",
            "https://u@a.com",
            "https://a.com?q",
            "https://b\u{fc}cher.de",
            "https://a.*.com",
            "https://a.com:",
            "https://a.com.",
            "https://a.com:x",
            "https://*example.com",
            "SAME_ORIGIN",
        ] {
            let faults = OriginPolicy::new(Allow::List(vec!["same_origin".into(), entry.into()]), true);
            assert_eq!(faults.expect_err("a fault")[0].key, "allow[1]", "{entry}");
        }
        assert!(OriginPolicy::new(Allow::List(vec![]), true).is_err());
    }
}
