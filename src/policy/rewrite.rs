//! The path that the backend sees: a prefix taken off, another put on.
//!
//! Rules match paths with unreserved escapes decoded, and as backends read them that merge slashes or cut parameters
//! off, so the prefix is found in the same ways: `/%61pi`, `//api` and `/api;a` are `/api`. What is behind it stays as
//! the client sent it. RFC 3986 §3.3 and §6.2.2.

use std::borrow::Cow;

use super::Fault;
use super::route::normalize_path;

/// A rewrite, ready for use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// In the form of [`normalize_path`], without a slash at its end; empty when nothing is taken off.
    strip: String,
    /// Without a slash at its end; empty when nothing is put on.
    add: String,
}

impl Rewrite {
    /// Takes `strip_prefix` off and puts `add_prefix` on.
    ///
    /// # Errors
    /// What is no path, and neither of the two.
    pub fn new(strip_prefix: Option<&str>, add_prefix: Option<&str>) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut read = |key: &str, path: Option<&str>| {
            let path = path.unwrap_or("/");
            match normalize_path(path) {
                Ok(normal) if path.is_ascii() && !path.contains(['?', '#']) => {
                    normal.strip_suffix('/').unwrap_or(&normal).to_owned()
                }
                _ => {
                    let allowed = "a path that starts with \"/\", in ASCII, without query, dot segments and escaped \
                                   slashes";
                    faults.push(Fault::new(key, format!("{path:?}"), allowed));
                    String::new()
                }
            }
        };
        let rewrite = Self { strip: read("strip_prefix", strip_prefix), add: read("add_prefix", add_prefix) };
        if faults.is_empty() { Ok(rewrite) } else { Err(faults) }
    }

    /// The path and query that go upstream. A path that does not have the prefix, in whole segments, keeps what it has.
    /// The result begins with a slash.
    pub fn apply<'a>(&self, path_and_query: &'a str) -> Cow<'a, str> {
        let rest = strip(&self.strip, path_and_query)
            .or_else(|| strip_as_read(&self.strip, path_and_query))
            .unwrap_or(path_and_query);
        if !self.add.is_empty() {
            let slash = if rest.is_empty() || rest.starts_with(['/', '?']) { "" } else { "/" };
            return Cow::Owned(format!("{}{slash}{rest}", self.add));
        }
        if rest.starts_with('/') { Cow::Borrowed(rest) } else { Cow::Owned(format!("/{rest}")) }
    }
}

/// What is behind a prefix; `None` when the path does not begin with it, or goes on within a segment.
fn strip<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    let (mut prefix, mut rest) = (prefix, path);
    while !prefix.is_empty() {
        let (unit, raw_len) = next_unit(rest)?;
        prefix = prefix.strip_prefix(unit.as_ref())?;
        rest = rest.get(raw_len..)?;
    }
    (rest.is_empty() || rest.starts_with(['/', '?'])).then_some(rest)
}

/// What is behind a prefix, found as backends see it that merge slashes and cut parameters off. A prefix that itself has
/// an empty segment or a parameter is found only as it is written.
fn strip_as_read<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    let (mut prefix, mut rest) = (prefix, path);
    while !prefix.is_empty() {
        if let Some(segment) = prefix.strip_prefix('/') {
            (prefix, rest) = (segment, behind_slashes(behind_parameters(rest))?);
        } else {
            let (unit, raw_len) = next_unit(rest)?;
            prefix = prefix.strip_prefix(unit.as_ref())?;
            rest = rest.get(raw_len..)?;
        }
    }
    let rest = behind_parameters(rest);
    (rest.is_empty() || rest.starts_with(['/', '?'])).then_some(rest)
}

/// What is behind the parameters of a segment, which `path` is at the end of.
fn behind_parameters(path: &str) -> &str {
    if !path.starts_with(';') {
        return path;
    }
    path.find(['/', '?']).and_then(|end| path.get(end..)).unwrap_or_default()
}

/// What is behind a slash and the empty segments after it, of which some may have parameters; `None` without one.
fn behind_slashes(path: &str) -> Option<&str> {
    let mut rest = path.strip_prefix('/')?;
    while let Some(next) = behind_parameters(rest).strip_prefix('/') {
        rest = next;
    }
    Some(rest)
}

/// The first character of a path in its normal form, and how many bytes it has in the path.
fn next_unit(path: &str) -> Option<(Cow<'_, str>, usize)> {
    let first = path.chars().next()?;
    let raw = path.get(..if first == '%' { 3 } else { first.len_utf8() })?;
    if first != '%' {
        return Some((Cow::Borrowed(raw), raw.len()));
    }
    let byte = u8::from_str_radix(raw.strip_prefix('%')?, 16).ok()?;
    let is_unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let unit = if is_unreserved { char::from(byte).to_string() } else { raw.to_ascii_uppercase() };
    Some((Cow::Owned(unit), raw.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(strip: Option<&str>, add: Option<&str>, path_and_query: &str) -> String {
        Rewrite::new(strip, add).unwrap().apply(path_and_query).into_owned()
    }

    #[test]
    fn whole_segments_are_taken_off_and_put_on() {
        for (strip, add, path_and_query, expected) in [
            (Some("/api"), None, "/api/users?x=/api", "/users?x=/api"),
            (Some("/api/"), None, "/api/users", "/users"),
            (Some("/api"), None, "/api", "/"),
            (Some("/api"), None, "/api/", "/"),
            (Some("/api"), None, "/api?x", "/?x"),
            (Some("/api"), None, "/apix", "/apix"),
            (Some("/api"), None, "/other/api", "/other/api"),
            (Some("/api"), None, "/api//x", "//x"),
            (Some("/api"), Some("/v1"), "/api/users?q", "/v1/users?q"),
            (Some("/api"), Some("/v1"), "/api", "/v1"),
            (Some("/api"), Some("/v1"), "/api?q", "/v1?q"),
            (Some("/api"), Some("/v1/"), "/other", "/v1/other"),
            (None, Some("/v1"), "/", "/v1/"),
            (Some("/"), Some("/"), "/a", "/a"),
            (None, None, "*", "/*"),
            (None, None, "", "/"),
        ] {
            assert_eq!(applied(strip, add, path_and_query), expected, "{strip:?} {add:?} {path_and_query}");
        }
    }

    #[test]
    fn the_prefix_is_found_as_rules_match_it() {
        assert_eq!(applied(Some("/api"), None, "/%61p%69/%61"), "/%61");
        assert_eq!(applied(Some("/%61pi"), None, "/api/x"), "/x");
        assert_eq!(applied(Some("/caf%c3%a9"), None, "/caf%C3%A9/x"), "/x");
        assert_eq!(applied(Some("/caf%C3%A9"), None, "/caf%c3%a9/x"), "/x");
        assert_eq!(applied(Some("/api"), None, "/ap%6"), "/ap%6");
        assert_eq!(applied(Some("/api"), None, "/ap%é"), "/ap%é");
        assert_eq!(applied(Some("/api"), None, "/api%2Fx"), "/api%2Fx");
    }

    #[test]
    fn a_prefix_that_matched_by_merged_slashes_or_without_parameters_is_taken_off() {
        for (path, expected) in [
            ("//api/x", "/x"),
            ("///api//x", "//x"),
            ("/api;a=b/x;c", "/x;c"),
            ("/api;a?q", "/?q"),
            ("/;x//api;y", "/"),
            ("//%61pi;/", "/"),
            ("//apix", "//apix"),
            ("/a;pi/x", "/a;pi/x"),
            ("/?/api", "/?/api"),
        ] {
            assert_eq!(applied(Some("/api"), None, path), expected, "{path}");
        }
        assert_eq!(applied(Some("/a/b"), None, "/a;x///b;y/c"), "/c");
        assert_eq!(applied(Some("/a//b"), None, "/a//b/c"), "/c");
        assert_eq!(applied(Some("/a//b"), None, "/a/b/c"), "/a/b/c");
        assert_eq!(applied(Some("/a;x"), None, "/a;x/c"), "/c");
        assert_eq!(applied(Some("/a;x"), None, "/a/c"), "/a/c");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let keys = |strip, add| {
            let faults = Rewrite::new(Some(strip), Some(add)).unwrap_err();
            faults.into_iter().map(|fault| fault.key).collect::<Vec<_>>()
        };
        assert_eq!(keys("api", "/a?b"), ["strip_prefix", "add_prefix"]);
        assert_eq!(keys("/../a", "/é"), ["strip_prefix", "add_prefix"]);
        assert_eq!(keys("/a", "/a b"), ["add_prefix"]);
    }
}
