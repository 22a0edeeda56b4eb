//! Keeps browsers' pages away from the admin listener.
//!
//! A page can make a browser send requests to a loopback address, under a name of its own that it lets resolve to it
//! (DNS rebinding). Its requests name that Host, or an Origin that is not ours.

use std::net::IpAddr;

use http::uri::Authority;
use pingora::http::RequestHeader;

/// Whether the request comes from a page that is not ours: its Host is neither an IP literal nor localhost, or its
/// Origin is not what its Host says. No Host at all (HTTP/1.0) is no browser's.
pub(super) fn is_foreign(request: &RequestHeader) -> bool {
    let mut hosts =
        request.headers.get_all("host").iter().map(|host| host.to_str().ok().and_then(parse)).collect::<Vec<_>>();
    // RFC 9112 §3.2.2: an absolute-form target stands over Host. Here neither may be foreign.
    hosts.extend(request.uri.authority().map(|authority| parse(authority.as_str())));
    let own = hosts.first().cloned().flatten();
    if hosts.iter().any(|host| host.is_none() || *host != own) {
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
