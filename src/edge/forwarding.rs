//! What the backend is told of the client, and which headers are not for it. RFC 9110 §7.6.1, RFC 7239.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};

use super::request::Request;
use crate::cause::Refusal;
use crate::policy::client_address::Source;
use crate::policy::headers::HeaderEdits;
use crate::policy::rewrite::Rewrite;
use crate::ws::handshake::list;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Headers of one connection only. RFC 9110 §7.6.1.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HTTP2_SETTINGS,
];

/// Headers that mean something to a backend's security, or to where a body ends: a client that names one in Connection wants it dropped on the
/// way, and is refused.
const END_TO_END: [HeaderName; 11] = [
    header::HOST,
    header::ORIGIN,
    header::COOKIE,
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::FORWARDED,
];

/// The headers that Connection names, which go no further than this hop.
///
/// # Errors
/// `MalformedRequest` when it names a header that is not for one hop to drop.
pub fn nominated(headers: &HeaderMap) -> Result<Vec<HeaderName>, Refusal> {
    let mut names = Vec::new();
    for token in list(headers, &header::CONNECTION) {
        let name = HeaderName::from_bytes(token).map_err(|_| Refusal::MalformedRequest)?;
        if END_TO_END.contains(&name) {
            return Err(Refusal::MalformedRequest);
        }
        names.push(name);
    }
    Ok(names)
}

/// Whether a header is for one connection only.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Removes what is not for the next hop.
///
/// # Errors
/// As [`nominated`].
pub fn strip_hop_by_hop(request: &mut RequestHeader) -> Result<(), Refusal> {
    for name in nominated(&request.headers)?.iter().chain(&HOP_BY_HOP) {
        request.remove_header(name);
    }
    Ok(())
}

/// Removes what of an answer is not for the client. Transfer-Encoding stays: it is for who reads the body next.
///
/// What Connection may not name is passed on: an answer is not refused for it.
pub fn strip_answer(answer: &mut ResponseHeader) {
    let named: Vec<_> =
        list(&answer.headers, &header::CONNECTION).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    let asks_for_upgrade = answer.status == http::StatusCode::UPGRADE_REQUIRED;
    for name in named.iter().chain(&HOP_BY_HOP) {
        let kept = END_TO_END.contains(name)
            || *name == header::TRANSFER_ENCODING
            // RFC 9110 §15.5.22.
            || (*name == header::UPGRADE && asks_for_upgrade);
        if !kept {
            answer.remove_header(name);
        }
    }
}

/// Says who the client is, in one voice: what a peer that is not trusted claims is removed, and what a trusted one
/// says is kept or gone on with.
pub fn tell_client(upstream: &mut RequestHeader, request: &Request, source: &Source) {
    let came = &request.head.request.headers;
    let source_kept = |name: &HeaderName| {
        request.peer_trusted
            && match source {
                Source::XForwardedFor => *name == X_FORWARDED_FOR,
                Source::Forwarded => *name == header::FORWARDED,
                Source::Header(chosen) => name == chosen,
                Source::ProxyProtocol => false,
            }
    };
    let chosen = match source {
        Source::Header(name) => Some(name),
        Source::XForwardedFor | Source::Forwarded | Source::ProxyProtocol => None,
    };
    let chain = source_kept(&X_FORWARDED_FOR).then(|| joined(came, &X_FORWARDED_FOR)).flatten();
    for name in [&header::FORWARDED, &X_REAL_IP].into_iter().chain(chosen) {
        if !source_kept(name) {
            upstream.remove_header(name);
        }
    }
    // A peer on a Unix socket has no address that could be told.
    let client = request.client.ip().map(|address| address.to_string());
    let forwarded_for = match (chain, request.peer.ip()) {
        (Some(chain), Some(peer)) => Some(format!("{chain}, {peer}")),
        (Some(chain), None) => Some(chain),
        (None, _) => client.clone(),
    };
    for (name, value) in [(&X_FORWARDED_FOR, forwarded_for), (&X_REAL_IP, client)] {
        match value {
            Some(value) => set(upstream, name, &value),
            None => drop(upstream.remove_header(name)),
        }
    }
    if !(request.peer_trusted && came.contains_key(&X_FORWARDED_PROTO)) {
        set(upstream, &X_FORWARDED_PROTO, if request.tls { "https" } else { "http" });
    }
    // Whoever sent it: only a certificate that was verified here is told. RFC 9440 §4.
    for name in [&CLIENT_CERT, &CLIENT_CERT_CHAIN] {
        upstream.remove_header(name);
    }
    if let Some(identity) = &request.identity {
        insert(upstream, &CLIENT_CERT, identity.clone());
    }
    if !(request.peer_trusted && came.contains_key(&X_FORWARDED_HOST)) {
        match came.get(header::HOST) {
            Some(host) => insert(upstream, &X_FORWARDED_HOST, host.clone()),
            None => drop(upstream.remove_header(&X_FORWARDED_HOST)),
        }
    }
}

/// Applies a rule's edits to a request or an answer.
pub fn apply(edits: &HeaderEdits, message: &mut impl Headers) {
    for name in &edits.remove {
        message.remove(name);
    }
    for (name, value) in &edits.set {
        message.set(name, value.clone());
    }
}

/// Gives the upstream the path that its rule says.
///
/// # Errors
/// A path that cannot be one.
pub fn rewrite(rewrite: Option<&Rewrite>, upstream: &mut RequestHeader) -> pingora::Result<()> {
    let Some(rewrite) = rewrite else { return Ok(()) };
    let target = String::from_utf8_lossy(upstream.raw_path()).into_owned();
    upstream.set_raw_path(rewrite.apply(&target).as_bytes())
}

/// Headers that can be edited: a request's or an answer's.
pub trait Headers {
    /// Removes all lines of a header.
    fn remove(&mut self, name: &HeaderName);
    /// Replaces all lines of a header by one.
    fn set(&mut self, name: &HeaderName, value: HeaderValue);
}

impl Headers for RequestHeader {
    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        insert(self, name, value);
    }
}

impl Headers for ResponseHeader {
    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }

    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        // A valid name and a valid value are always taken.
        let _ = self.insert_header(name.clone(), value);
    }
}

/// All lines of a list header as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<_> = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn set(request: &mut RequestHeader, name: &HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        insert(request, name, value);
    }
}

fn insert(request: &mut RequestHeader, name: &HeaderName, value: HeaderValue) {
    // A valid name and a valid value are always taken.
    let _ = request.insert_header(name.clone(), value);
}
