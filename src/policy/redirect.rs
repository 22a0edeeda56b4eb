//! Where a redirect sends a client: a template with parts of the request.
//!
//! What a client sent reaches the Location header percent-encoded wherever it is not plain ASCII of a URI, and never
//! its authority, but for the host. So a client can neither add a header nor choose another site. RFC 9110 §10.2.2.

use super::Fault;
use super::route::parse_host;

/// The statuses of a redirect. 300, 304 and 305 are something else.
const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// A redirect, ready for use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    status: u16,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Host,
    Path,
    Query,
    PathAndQuery,
}

impl Redirect {
    /// Reads a template: `http://`, `https://` or a path, with `{host}`, `{path}`, `{query}` and `{path_and_query}`.
    ///
    /// # Errors
    /// Another status or scheme, anything else in braces, characters that no URI has, and parts of the request other
    /// than its host where the host of the target is.
    pub fn new(to: &str, status: u16) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        if !STATUSES.contains(&status) {
            faults.push(Fault::new("status", status.to_string(), "301, 302, 303, 307 or 308"));
        }
        let parts = check(to).and_then(|()| parse(to));
        match parts {
            Ok(parts) if faults.is_empty() => Ok(Self { status, parts }),
            Ok(_) => Err(faults),
            Err(allowed) => {
                faults.push(Fault::new("to", format!("{to:?}"), allowed));
                Err(faults)
            }
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The value of the Location header: visible ASCII without spaces. `host` is the request's, without a port.
    pub fn location(&self, host: &str, path_and_query: &str) -> String {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut location = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => location.push_str(text),
                // A host that is none is left out: the target is then no URI, and no other site.
                Part::Host => location.push_str(&parse_host(host).unwrap_or_default()),
                Part::Path => push_path(&mut location, path),
                Part::Query => push_encoded(&mut location, query.unwrap_or_default()),
                Part::PathAndQuery => {
                    push_path(&mut location, path);
                    if let Some(query) = query {
                        location.push('?');
                        push_encoded(&mut location, query);
                    }
                }
            }
        }
        // `//host` is another site, and browsers read a backslash as a slash; those are encoded.
        if location.starts_with("//") {
            location = format!("/{}", location.trim_start_matches('/'));
        }
        location
    }
}

fn parse(to: &str) -> Result<Vec<Part>, &'static str> {
    let allowed = "`{host}`, `{path}`, `{query}` and `{path_and_query}`, and no other braces";
    let mut parts = Vec::new();
    let mut rest = to;
    while let Some((text, braced)) = rest.find(['{', '}']).and_then(|at| rest.split_at_checked(at)) {
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let (name, after) = braced.strip_prefix('{').and_then(|inner| inner.split_once('}')).ok_or(allowed)?;
        parts.push(match name {
            "host" => Part::Host,
            "path" => Part::Path,
            "query" => Part::Query,
            "path_and_query" => Part::PathAndQuery,
            _ => return Err(allowed),
        });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

fn check(to: &str) -> Result<(), &'static str> {
    let is_uri = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`|".contains(&byte);
    if !to.bytes().all(|byte| is_uri(byte) || b"{}".contains(&byte)) {
        return Err("a URI in ASCII, other characters percent-encoded");
    }
    if to.starts_with('/') && !to.starts_with("//") {
        return Ok(());
    }
    let rest = to.strip_prefix("https://").or_else(|| to.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err("a target that starts with \"https://\", \"http://\" or one \"/\", such as \
             \"https://{host}{path_and_query}\"");
    };
    // A path begins with a slash, and ends the authority; a query would be within it.
    let end = ["/", "?", "#", "{path}", "{path_and_query}"].iter().filter_map(|end| rest.find(end)).min();
    let authority = end.and_then(|end| rest.get(..end)).unwrap_or(rest);
    if authority.is_empty() || authority.contains(['@', '\\']) {
        return Err("a target with a host and without a user, such as \"https://{host}{path_and_query}\"");
    }
    if authority.contains("{query}") {
        return Err("`{query}` after a path: where the host stands a client could choose another site");
    }
    Ok(())
}

fn push_path(location: &mut String, path: &str) {
    if !path.starts_with('/') {
        location.push('/');
    }
    push_encoded(location, path);
}

/// Percent-encodes what no URI has, `#` too, since a request has no fragment. Escapes stay as they are.
fn push_encoded(location: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte) {
            location.push(char::from(byte));
        } else {
            location.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(to: &str, host: &str, path_and_query: &str) -> String {
        Redirect::new(to, 308).unwrap().location(host, path_and_query)
    }

    #[test]
    fn parts_of_the_request_are_filled_in() {
        for (to, path_and_query, expected) in [
            ("https://{host}{path_and_query}", "/a%20b?c=d?e", "https://app.example/a%20b?c=d?e"),
            ("https://{host}{path_and_query}", "/a", "https://app.example/a"),
            ("https://{host}{path_and_query}", "/a?", "https://app.example/a?"),
            ("https://new.example{path}", "/a?b=c", "https://new.example/a"),
            ("https://{host}:8443/x{path}?from=old&{query}", "/a?b=c", "https://app.example:8443/x/a?from=old&b=c"),
            ("/login?back={path}", "/a", "/login?back=/a"),
            ("https://www.example/", "/a?b", "https://www.example/"),
        ] {
            assert_eq!(location(to, "app.example", path_and_query), expected);
        }
        assert_eq!(location("http://{host}/", "[::1]", "/"), "http://[::1]/");
    }

    #[test]
    fn no_client_can_add_a_header_or_choose_another_site() {
        assert_eq!(location("https://{host}{path}", "a", "/x\r\nset-cookie: y"), "https://a/x%0D%0Aset-cookie:%20y");
        assert_eq!(location("https://{host}{path}", "a\r\nb: c", "/x"), "https:///x");
        assert_eq!(location("https://{host}{path}", "user@evil.example/", "/"), "https:///");
        assert_eq!(location("https://a.example{path}", "a", "@evil.example"), "https://a.example/@evil.example");
        assert_eq!(location("/{path}", "a", "//evil.example"), "/evil.example");
        assert_eq!(location("/{path}", "a", "/\\evil.example"), "/%5Cevil.example");
        assert_eq!(location("/x?{query}", "a", "/?é#\u{7f}\0{"), "/x?%C3%A9%23%7F%00%7B");
    }

    #[test]
    fn templates_that_cannot_be_filled_in_safely_are_refused() {
        for to in [
            "",
            "a",
            "//evil.example/",
            "ftp://a/",
            "javascript:alert(1)",
            "{path}",
            "https://",
            "https:///a",
            "https://{path}",
            "https://user@{host}/",
            "https://a{query}",
            "https://{hots}/",
            "https://{host/",
            "https://host}/",
            "https://a/\u{e9}",
            "https://a/b c",
            "https://a/\r\n",
            "/\\a",
        ] {
            let faults = Redirect::new(to, 308).unwrap_err();
            assert_eq!(faults.iter().map(|fault| fault.key.as_str()).collect::<Vec<_>>(), ["to"], "{to}");
        }
        for status in [200, 300, 304, 305, 399] {
            assert_eq!(Redirect::new("/", status).unwrap_err()[0].key, "status");
        }
        assert_eq!(Redirect::new("a", 200).unwrap_err().len(), 2);
    }
}
