//! Keeps browsers' pages away from the admin listener.
//!
//! A page can make a browser send requests to a loopback address, under a name of its own that it lets resolve to it
//! (DNS rebinding). Its requests name that Host, or an Origin that is not ours, or the browser says that they come from
//! another site.

use std::net::IpAddr;

use http::uri::Authority;
use pingora::http::RequestHeader;

/// Whether the request comes from a page that is not ours: its Host is neither an IP literal nor localhost, or its
/// Origin is not what its Host says, or its browser calls it cross-site. No Host at all (HTTP/1.0) is no browser's.
pub(super) fn is_foreign(request: &RequestHeader) -> bool {
    let mut hosts =
        request.headers.get_all("host").iter().map(|host| host.to_str().ok().and_then(parse)).collect::<Vec<_>>();
    // RFC 9112 §3.2.2: an absolute-form target stands over Host. Here neither may be foreign.
    hosts.extend(request.uri.authority().map(|authority| parse(authority.as_str())));
    let own = hosts.first().cloned().flatten();
    if hosts.iter().any(|host| host.is_none() || *host != own) {
        return true;
    }
    // Fetch Metadata: a page cannot set it, and other clients than browsers do not.
    if request.headers.get_all("sec-fetch-site").iter().any(|site| site == "cross-site") {
        return true;
    }
    let mut origins = request.headers.get_all("origin").iter();
    match (origins.next(), origins.next()) {
        (None, _) => false,
        (Some(_), Some(_)) => true,
        (Some(origin), None) => {
            // The listener is cleartext; a proxy in front of it has its own name and is refused for that.
            let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")).and_then(parse);
            origin.is_none() || origin != own
        }
    }
}

/// Host and port of an authority that names this machine without DNS; 80 when it has no port.
fn parse(authority: &str) -> Option<(String, u16)> {
    if authority.contains('@') {
        return None;
    }
    let authority: Authority = authority.parse().ok()?;
    let host = authority.host().to_ascii_lowercase();
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
    let is_local = host == "localhost" || literal.parse::<IpAddr>().is_ok();
    is_local.then(|| (host, authority.port_u16().unwrap_or(80)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(target: &str, lines: &[(&'static str, &str)]) -> bool {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.set_uri(target.parse().unwrap());
        for (name, value) in lines {
            request.append_header(*name, *value).unwrap();
        }
        is_foreign(&request)
    }

    #[test]
    fn literals_and_localhost_are_ours_under_any_port() {
        for host in ["127.0.0.1:9901", "127.0.0.1", "[::1]:9901", "[::1]", "LocalHost:1", "10.1.2.3"] {
            assert!(!foreign("/healthz", &[("host", host)]), "{host}");
        }
        for host in ["rebound.example", "localhost.example", "127.0.0.1.example", "user@127.0.0.1", "", "::1", "a b"] {
            assert!(foreign("/healthz", &[("host", host)]), "{host}");
        }
        assert!(!foreign("/healthz", &[]), "HTTP/1.0");
        assert!(foreign("/healthz", &[("host", "localhost"), ("host", "rebound.example")]));
        assert!(foreign("http://rebound.example/healthz", &[("host", "localhost")]));
        assert!(!foreign("http://localhost/healthz", &[("host", "localhost:80")]));
    }

    #[test]
    fn an_origin_is_ours_when_it_is_what_host_says() {
        let host = ("host", "127.0.0.1:9901");
        assert!(!foreign("/", &[host, ("origin", "http://127.0.0.1:9901")]));
        assert!(!foreign("/", &[("host", "localhost"), ("origin", "http://localhost:80")]));
        for origin in [
            "http://rebound.example",
            "http://127.0.0.1:9901.example",
            "http://127.0.0.1:9901@rebound.example",
            "http://127.0.0.1:1",
            "http://127.0.0.1",
            "http://localhost:9901",
            "https://127.0.0.1:9901",
            "http://127.0.0.1:9901/",
            "null",
            "",
        ] {
            assert!(foreign("/", &[host, ("origin", origin)]), "{origin}");
        }
        assert!(foreign("/", &[host, ("origin", "http://127.0.0.1:9901"), ("origin", "http://rebound.example")]));
        assert!(foreign("/", &[("origin", "http://localhost")]), "an Origin without Host");
    }

    #[test]
    fn what_a_browser_calls_cross_site_is_foreign() {
        let host = ("host", "127.0.0.1:9901");
        assert!(foreign("/", &[host, ("sec-fetch-site", "cross-site")]));
        for site in ["none", "same-origin"] {
            assert!(!foreign("/", &[host, ("sec-fetch-site", site)]), "{site}");
        }
    }
}
