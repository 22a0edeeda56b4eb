//! Which rule a request belongs to: its listener, host, path and headers.
//!
//! Paths are compared in one normal form; whatever two parsers could read in two ways is an error there, never a guess.
//! What goes upstream stays what the client sent. RFC 3986 §2.3, §3.3 and §6.2.2; RFC 9110 §4.2.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderName};
use regex::{Regex, RegexBuilder};
use thiserror::Error;

use super::Fault;

/// The largest compiled pattern, in bytes; enough for hundreds of alternatives.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

/// The most characters of a host name (RFC 1035 §2.3.4, written with dots).
const MAX_HOST_BYTES: usize = 253;

/// The `match` of a rule, as it is written.
#[derive(Clone, Debug, Default)]
pub struct MatchSpec {
    /// Names of listeners; empty: all.
    pub listeners: Vec<String>,
    /// Host patterns; empty: all.
    pub hosts: Vec<String>,
    /// The path; `None`: all.
    pub path: Option<PathSpec>,
    /// Header names with a regular expression each; all must match.
    pub headers: Vec<(String, String)>,
}

/// The path of a `match`, as it is written.
#[derive(Clone, Debug)]
pub enum PathSpec {
    /// This path.
    Exact(String),
    /// This path and all below it, in whole segments.
    Prefix(String),
    /// A regular expression for the whole path.
    Regex(String),
}

/// What a [`Matcher`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The listener that took the request.
    pub listener: &'a str,
    /// The request's host, in lower case and without a port, as [`parse_authority`] gives it.
    pub host: &'a str,
    /// The request's path, as [`normalize_path`] gives it.
    pub path: &'a str,
    /// The request's headers.
    pub headers: &'a HeaderMap,
}

/// A rule's `match`, ready for use.
#[derive(Clone, Debug)]
pub struct Matcher {
    listeners: Vec<String>,
    hosts: Vec<HostPattern>,
    path: PathMatcher,
    headers: Vec<(HeaderName, Regex)>,
}

#[derive(Clone, Debug)]
enum PathMatcher {
    Any,
    Exact(String),
    /// Without its trailing slash, so the root is empty.
    Prefix(String),
    Regex(Regex),
}

impl Matcher {
    /// Compiles a `match`.
    ///
    /// # Errors
    /// One fault per host, path and header that cannot be read; keys: `hosts[1]`, `path_regex`, `headers.x-app`.
    pub fn new(spec: MatchSpec) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let hosts = parse_hosts("hosts", &spec.hosts, &mut faults);
        let path = match spec.path {
            None => PathMatcher::Any,
            Some(path) => PathMatcher::new(path).unwrap_or_else(|fault| {
                faults.push(fault);
                PathMatcher::Any
            }),
        };
        let mut headers = Vec::new();
        for (name, pattern) in spec.headers {
            let key = format!("headers.{name}");
            let header = HeaderName::try_from(name.as_str())
                .map_err(|_| Fault::new(&key, format!("{name:?}"), "the name of a header, such as \"x-app\""));
            match (header, compile(&key, &pattern, &pattern)) {
                (Ok(header), Ok(regex)) => headers.push((header, regex)),
                (header, regex) => faults.extend(header.err().into_iter().chain(regex.err())),
            }
        }
        if faults.is_empty() { Ok(Self { listeners: spec.listeners, hosts, path, headers }) } else { Err(faults) }
    }

    /// Whether the request is this rule's. Every part that is written must match; a header matches when one of its
    /// values does.
    pub fn matches(&self, request: &Request<'_>) -> bool {
        (self.listeners.is_empty() || self.listeners.iter().any(|name| name == request.listener))
            && (self.hosts.is_empty() || self.hosts.iter().any(|host| host.matches(request.host)))
            && self.path.matches(request.path)
            && self.headers.iter().all(|(name, regex)| {
                let mut values = request.headers.get_all(name).iter();
                values.any(|value| regex.is_match(&String::from_utf8_lossy(value.as_bytes())))
            })
    }

    /// Whether the rule names the hosts that it serves.
    pub fn names_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// The listeners that the rule names; empty: all.
    pub fn listeners(&self) -> &[String] {
        &self.listeners
    }
}

impl PathMatcher {
    fn new(spec: PathSpec) -> Result<Self, Fault> {
        match spec {
            PathSpec::Exact(path) => Ok(Self::Exact(normalized("path", &path)?)),
            PathSpec::Prefix(path) => {
                let path = normalized("path_prefix", &path)?;
                Ok(Self::Prefix(path.strip_suffix('/').unwrap_or(&path).to_owned()))
            }
            PathSpec::Regex(pattern) => {
                // Alone first, so that a pattern such as `a)(b` is not made valid by the group around it.
                compile("path_regex", &pattern, &pattern)?;
                compile("path_regex", &format!(r"\A(?:{pattern})\z"), &pattern).map(Self::Regex)
            }
        }
    }

    /// Whether a path matches as it is written, or as a backend reads it that merges slashes or cuts parameters off:
    /// neither spelling is a way around a rule.
    fn matches(&self, path: &str) -> bool {
        if self.matches_as_written(path) {
            return true;
        }
        if !path.contains("//") && !path.contains(';') {
            return false;
        }
        let cut = cut_parameters(path);
        [merge_slashes(path), merge_slashes(&cut)].iter().any(|read| self.matches_as_written(read))
    }

    fn matches_as_written(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// A path without empty segments but the last, as most servers of files and some frameworks read it.
fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    merged
}

/// A path without what stands behind a semicolon in its segments, as servlets read it. RFC 3986 §3.3.
fn cut_parameters(path: &str) -> String {
    let segments = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join("/")
}

fn normalized(key: &str, path: &str) -> Result<String, Fault> {
    let allowed = "a path that starts with \"/\", without query, dot segments and escaped slashes";
    match normalize_path(path) {
        Ok(normal) if !path.contains(['?', '#']) => Ok(normal.into_owned()),
        _ => Err(Fault::new(key, format!("{path:?}"), allowed)),
    }
}

fn compile(key: &str, pattern: &str, written: &str) -> Result<Regex, Fault> {
    RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES).build().map_err(|error| {
        let allowed = match error {
            regex::Error::CompiledTooBig(_) => {
                format!("a regular expression of at most {MAX_REGEX_BYTES} bytes compiled")
            }
            other => {
                // The last line says what is wrong; those above it draw the pattern with a caret.
                let text = other.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                format!("a regular expression without look-around and back-references ({reason})")
            }
        };
        Fault::new(key, format!("{written:?}"), allowed)
    })
}

/// Reads host patterns and gathers a fault per bad one, under `key[index]`.
pub fn parse_hosts(key: &str, hosts: &[String], faults: &mut Vec<Fault>) -> Vec<HostPattern> {
    let mut patterns = Vec::with_capacity(hosts.len());
    for (index, host) in hosts.iter().enumerate() {
        match HostPattern::parse(host) {
            Ok(pattern) => patterns.push(pattern),
            Err(fault) => faults.push(Fault { key: format!("{key}[{index}]{}", fault.key), ..fault }),
        }
    }
    patterns
}

/// A host name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name or address; an IPv6 address in brackets.
    Exact(String),
    /// `*.`: one label in front of this name.
    OneLabel(String),
    /// `**.`: one or more labels in front of this name.
    AnyLabels(String),
}

impl HostPattern {
    /// Reads `example.com`, `*.example.com`, `**.example.com`, `192.0.2.1` or `[2001:db8::1]`, in any case.
    ///
    /// # Errors
    /// A port, a wildcard elsewhere, and characters that no host has (write other alphabets as `xn--`).
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let fault = || {
            let allowed = "a host without port and scheme, such as \"example.com\", \"*.example.com\" (one label) or \
                           \"**.example.com\" (one or more), other alphabets as \"xn--\"";
            Fault::new("", format!("{text:?}"), allowed)
        };
        let wildcard = ["**.", "*."].into_iter().find(|wildcard| text.starts_with(wildcard)).unwrap_or_default();
        let name = text.strip_prefix(wildcard).unwrap_or(text);
        let host = parse_host(name).ok_or_else(fault)?;
        let host = without_trailing_dot(&host).to_owned();
        let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
        match wildcard {
            "" => Ok(Self::Exact(host)),
            _ if is_address => Err(fault()),
            "*." => Ok(Self::OneLabel(host)),
            _ => Ok(Self::AnyLabels(host)),
        }
    }

    /// Whether a host matches, in any case and with or without its trailing dot.
    pub fn matches(&self, host: &str) -> bool {
        let host = without_trailing_dot(host);
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::OneLabel(name) => labels_before(host, name).is_some_and(|label| !label.contains('.')),
            Self::AnyLabels(name) => labels_before(host, name).is_some(),
        }
    }
}

/// What stands before `.name` in a host; `None` when nothing does.
fn labels_before<'a>(host: &'a str, name: &str) -> Option<&'a str> {
    let at = host.len().checked_sub(name.len() + 1)?;
    let (labels, rest) = (host.get(..at)?, host.get(at..)?);
    let rest = rest.strip_prefix('.')?;
    (!labels.is_empty() && rest.eq_ignore_ascii_case(name)).then_some(labels)
}

fn without_trailing_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// A host in lower case: a name, an IPv4 address, or an IPv6 address in brackets, in its shortest form. A trailing dot
/// is kept. `None` for everything else, an empty label included.
pub(super) fn parse_host(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let labels = without_trailing_dot(text);
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (labels.len() <= MAX_HOST_BYTES && labels.split('.').all(is_label)).then(|| text.to_ascii_lowercase())
}

/// A request's host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// In lower case; an IPv6 address in brackets and its shortest form; a trailing dot is kept.
    pub host: String,
    /// The port, when one is written.
    pub port: Option<u16>,
}

/// A Host that cannot be read in exactly one way.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// Nothing, or a port only.
    #[error("host is empty")]
    Empty,
    /// Userinfo, a list, a space, NUL, non-ASCII, an empty label, a bare IPv6 address.
    #[error("host has characters that no host has")]
    BadHost,
    /// An empty port, or one that is not 1 to 65535.
    #[error("port is not a number from 1 to 65535")]
    BadPort,
}

/// Reads `Host` or `:authority`.
///
/// # Errors
/// Userinfo, a comma, a space, NUL, non-ASCII, an empty host or port, an IPv6 address without brackets.
///
/// # RFC
/// RFC 9110 §7.2, RFC 3986 §3.2.2, narrowed to what DNS and addresses use.
pub fn parse_authority(text: &str) -> Result<Authority, AuthorityError> {
    if text.is_empty() || text.starts_with(':') {
        return Err(AuthorityError::Empty);
    }
    let host_end = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find(':') };
    let (host, rest) = text.split_at(host_end.unwrap_or(text.len()));
    let port = match rest.strip_prefix(':') {
        Some(port) => Some(parse_port(port).ok_or(AuthorityError::BadPort)?),
        None if rest.is_empty() => None,
        None => return Err(AuthorityError::BadHost),
    };
    Ok(Authority { host: parse_host(host).ok_or(AuthorityError::BadHost)?, port })
}

/// A port from 1 to 65535, in digits without leading zeros.
pub(super) fn parse_port(text: &str) -> Option<u16> {
    (text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0')).then(|| text.parse().ok()).flatten()
}

/// A path that cannot be read in exactly one way.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// It does not start with a slash.
    #[error("path does not start with a slash")]
    NotAbsolute,
    /// `%` without two hexadecimal digits.
    #[error("path has a broken escape")]
    BrokenEscape,
    /// `.` or `..` as a segment, plain, escaped, or with a parameter (`..;a`), which some backends cut off.
    #[error("path has a dot segment")]
    DotSegment,
    /// `%2f`, `%5c` or a backslash.
    #[error("path has an escaped slash or a backslash")]
    EscapedSlash,
    /// NUL, plain or escaped, or another plain control character or space.
    #[error("path has a control character")]
    Control,
}

/// A path in the one form that rules are compared with: unreserved characters decoded, other escapes in upper case.
///
/// The path comes without its query. Empty segments and parameters stay; a [`Matcher`] looks behind them.
///
/// # Errors
/// Whatever backends read in different ways: dot segments, escaped slashes and backslashes, NUL, broken escapes.
///
/// # RFC
/// RFC 3986 §2.3 and §6.2.2.
pub fn normalize_path(raw_path: &str) -> Result<Cow<'_, str>, PathError> {
    if !raw_path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let path = if raw_path.contains('%') { Cow::Owned(decode_unreserved(raw_path)?) } else { Cow::Borrowed(raw_path) };
    if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(PathError::Control);
    }
    if path.contains('\\') {
        return Err(PathError::EscapedSlash);
    }
    let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    if path.split('/').any(is_dots) { Err(PathError::DotSegment) } else { Ok(path) }
}

fn decode_unreserved(raw_path: &str) -> Result<String, PathError> {
    let mut path = String::with_capacity(raw_path.len());
    let mut parts = raw_path.split('%');
    path.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (hex, rest) = part.split_at_checked(2).ok_or(PathError::BrokenEscape)?;
        if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(PathError::BrokenEscape);
        }
        match u8::from_str_radix(hex, 16).map_err(|_| PathError::BrokenEscape)? {
            0 => return Err(PathError::Control),
            b'/' | b'\\' => return Err(PathError::EscapedSlash),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => path.push(char::from(byte)),
            _ => {
                path.push('%');
                path.push_str(&hex.to_ascii_uppercase());
            }
        }
        path.push_str(rest);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn matcher(spec: MatchSpec) -> Matcher {
        Matcher::new(spec).expect("a test's own spec")
    }

    fn path_matches(spec: PathSpec, path: &str) -> bool {
        let headers = HeaderMap::new();
        let matcher = matcher(MatchSpec { path: Some(spec), ..MatchSpec::default() });
        matcher.matches(&Request { listener: "public", host: "a", path, headers: &headers })
    }

    #[test]
    fn host_wildcards_are_whole_labels_and_never_the_apex() {
        for (pattern, host, expected) in [
            ("example.com", "EXAMPLE.com.", true),
            ("Example.COM.", "example.com", true),
            ("example.com", "a.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "A.EXAMPLE.COM.", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "xexample.com", false),
            ("*.example.com", "a.example.com.evil.com", false),
            ("**.example.com", "a.b.example.com", true),
            ("**.example.com", "a.example.com", true),
            ("**.example.com", "example.com", false),
            ("**.example.com", "a.xexample.com", false),
            ("[::1]", "[::1]", true),
            ("[0:0::1]", "[::1]", true),
            ("127.0.0.1", "127.0.0.1", true),
        ] {
            let parsed = HostPattern::parse(pattern).expect("a test's own pattern");
            assert_eq!(parsed.matches(host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn host_patterns_that_no_host_could_match_are_faults() {
        for pattern in [
            "",
            "*",
            "a.*.com",
            "*example.com",
            "example.com:80",
            "https://a",
            "a b",
            "bücher.de",
            "a..b",
            "*.127.0.0.1",
            "*.[::1]",
            "::1",
            "a/b",
            ".",
        ] {
            assert!(HostPattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_prefix_matches_whole_segments() {
        for (prefix, path, expected) in [
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/v1", true),
            ("/api", "/apix", false),
            ("/api/", "/api", true),
            ("/", "/", true),
            ("/", "/x", true),
        ] {
            assert_eq!(path_matches(PathSpec::Prefix(prefix.into()), path), expected, "{prefix} {path}");
        }
    }

    #[test]
    fn slashes_and_parameters_are_no_way_around_a_rule() {
        for path in ["//api", "///api//x", "/api;a", "/api;a=b/x", "/;a/api", "//;a/api;b/", "/api//x;y"] {
            assert!(path_matches(PathSpec::Prefix("/api".into()), path), "{path}");
            assert!(path_matches(PathSpec::Regex("/api(/.*)?".into()), path), "{path}");
        }
        assert!(path_matches(PathSpec::Exact("/ws".into()), "//ws;a"));
        // A rule for one such spelling still has it.
        assert!(path_matches(PathSpec::Exact("/a//b;c".into()), "/a//b;c"));
        assert!(path_matches(PathSpec::Regex("/a;b=[0-9]+".into()), "/a;b=1"));
        for path in ["/apix;y", "/x/api", "/x;/api", "/ap;i", "/x//api"] {
            assert!(!path_matches(PathSpec::Prefix("/api".into()), path), "{path}");
        }
    }

    #[test]
    fn a_rule_without_a_path_matches_all() {
        let request = Request { listener: "public", host: "a", path: "/any", headers: &HeaderMap::new() };
        assert!(matcher(MatchSpec::default()).matches(&request));
    }

    #[test]
    fn a_regex_matches_the_whole_path_and_an_exact_path_its_normal_form() {
        assert!(path_matches(PathSpec::Regex("/a|/b".into()), "/b"));
        assert!(!path_matches(PathSpec::Regex("/a|/b".into()), "/a/x"));
        assert!(!path_matches(PathSpec::Regex("ws".into()), "/ws"));
        assert!(path_matches(PathSpec::Exact("/%7Euser".into()), "/~user"));
        assert!(!path_matches(PathSpec::Exact("/ws".into()), "/ws/"));
    }

    #[test]
    fn every_part_of_a_match_must_hold() {
        let matcher = matcher(MatchSpec {
            listeners: vec!["public".into()],
            hosts: vec!["*.example.com".into()],
            path: Some(PathSpec::Exact("/ws".into())),
            headers: vec![("X-App".into(), "^v2".into())],
        });
        let mut headers = HeaderMap::new();
        headers.append("x-app", HeaderValue::from_static("v1"));
        let request = Request { listener: "public", host: "a.example.com", path: "/ws", headers: &headers };
        assert!(!matcher.matches(&request));
        let mut headers = headers.clone();
        headers.append("x-app", HeaderValue::from_bytes(b"v2\xff").expect("a legal value"));
        let request = Request { headers: &headers, ..request };
        assert!(matcher.matches(&request));
        assert!(!matcher.matches(&Request { listener: "other", ..request }));
        assert!(!matcher.matches(&Request { host: "example.com", ..request }));
        assert!(!matcher.matches(&Request { path: "/", ..request }));
    }

    #[test]
    fn every_fault_of_a_match_is_named() {
        let faults = Matcher::new(MatchSpec {
            listeners: vec![],
            hosts: vec!["ok".into(), "a:1".into()],
            path: Some(PathSpec::Regex("(".into())),
            headers: vec![("x-app".into(), "(?=a)".into()), ("a b".into(), "x".into())],
        })
        .expect_err("faults");
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["hosts[1]", "path_regex", "headers.x-app", "headers.a b"]);
        let huge = MatchSpec { path: Some(PathSpec::Regex(r"\w{1000}{1000}".into())), ..MatchSpec::default() };
        assert!(Matcher::new(huge).is_err());
        let unbalanced = MatchSpec { path: Some(PathSpec::Regex("a)(b".into())), ..MatchSpec::default() };
        assert!(Matcher::new(unbalanced).is_err());
        for no_path in
            [PathSpec::Exact("ws".into()), PathSpec::Prefix("/a/../b".into()), PathSpec::Exact("/a?b".into())]
        {
            let faults = Matcher::new(MatchSpec { path: Some(no_path), ..MatchSpec::default() }).expect_err("a fault");
            assert!(faults[0].allowed.starts_with("a path that starts with"), "{faults:?}");
        }
    }

    #[test]
    fn paths_have_one_normal_form() {
        for (raw, normal) in [
            ("/ws", "/ws"),
            ("/%77s", "/ws"),
            ("/%7euser/%2D", "/~user/-"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/a//b/", "/a//b/"),
            ("/%252e", "/%252e"),
            ("/a.b/..c", "/a.b/..c"),
        ] {
            assert_eq!(normalize_path(raw).as_deref(), Ok(normal), "{raw}");
        }
    }

    #[test]
    fn paths_that_backends_read_differently_are_errors() {
        for (raw, error) in [
            ("", PathError::NotAbsolute),
            ("ws", PathError::NotAbsolute),
            ("/a/../b", PathError::DotSegment),
            ("/.", PathError::DotSegment),
            ("/a/%2e%2E/b", PathError::DotSegment),
            ("/a/.%2e", PathError::DotSegment),
            ("/a/..;x/b", PathError::DotSegment),
            ("/a%2fb", PathError::EscapedSlash),
            ("/a%2Fb", PathError::EscapedSlash),
            ("/a%5cb", PathError::EscapedSlash),
            ("/a\\b", PathError::EscapedSlash),
            ("/a%00", PathError::Control),
            ("/a\0", PathError::Control),
            ("/a b", PathError::Control),
            ("/%", PathError::BrokenEscape),
            ("/%4", PathError::BrokenEscape),
            ("/%zz", PathError::BrokenEscape),
            ("/%+1", PathError::BrokenEscape),
            ("/%é", PathError::BrokenEscape),
        ] {
            assert_eq!(normalize_path(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn an_authority_is_read_strictly() {
        let good = |host: &str, port| Ok(Authority { host: host.into(), port });
        for (text, expected) in [
            ("Example.COM", good("example.com", None)),
            ("example.com:8080", good("example.com", Some(8080))),
            ("[2001:DB8:0::1]:443", good("[2001:db8::1]", Some(443))),
            ("127.0.0.1", good("127.0.0.1", None)),
            ("example.com.", good("example.com.", None)),
            ("", Err(AuthorityError::Empty)),
            (":80", Err(AuthorityError::Empty)),
            ("a:", Err(AuthorityError::BadPort)),
            ("a:0", Err(AuthorityError::BadPort)),
            ("a:080", Err(AuthorityError::BadPort)),
            ("a:65536", Err(AuthorityError::BadPort)),
            ("a:+80", Err(AuthorityError::BadPort)),
            ("user@a", Err(AuthorityError::BadHost)),
            ("user:pass@a", Err(AuthorityError::BadPort)),
            ("a,b", Err(AuthorityError::BadHost)),
            ("a b", Err(AuthorityError::BadHost)),
            (" a", Err(AuthorityError::BadHost)),
            ("a\0", Err(AuthorityError::BadHost)),
            ("bücher.de", Err(AuthorityError::BadHost)),
            ("a..b", Err(AuthorityError::BadHost)),
            ("a/b", Err(AuthorityError::BadHost)),
            ("::1", Err(AuthorityError::Empty)),
            ("[::1", Err(AuthorityError::BadHost)),
            ("[::1]x", Err(AuthorityError::BadHost)),
            ("[fe80::1%25eth0]", Err(AuthorityError::BadHost)),
        ] {
            assert_eq!(parse_authority(text), expected, "{text}");
        }
    }
}
