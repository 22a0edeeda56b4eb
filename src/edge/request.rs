//! What a request asks for, read from its head in exactly one way: its host, its path, its client.

use std::net::IpAddr;

use http::{HeaderValue, header};

use super::forwarding;
use super::head::{Head, Protocol};
use super::http2_stream;
use crate::cause::Refusal;
use crate::config;
use crate::policy::client_address::{self, Peer, Source, TrustedProxies};
use crate::policy::route::{self, Authority};
use crate::ws::handshake::{list, list_has};

/// A request, as the rules see it.
#[derive(Debug)]
pub struct Request {
    /// Its head.
    pub head: Head,
    /// Its host and port; `None` only over HTTP/1.0.
    pub authority: Option<Authority>,
    /// Its path as rules compare it: without query, unreserved escapes decoded.
    pub path: String,
    /// The client.
    pub client: Peer,
    /// The other end of the connection.
    pub peer: Peer,
    /// Whether the peer is believed in what its headers say of the client. Behind the PROXY protocol they are the
    /// client's own.
    pub peer_trusted: bool,
    /// Whether it asks for a WebSocket.
    pub intent: Intent,
    /// Whether it came over TLS.
    pub tls: bool,
    /// Who the client is by its certificate.
    pub identity: Option<HeaderValue>,
}

/// What is known of a connection before its first request.
#[derive(Debug)]
pub struct Arrival {
    /// Its other end.
    pub peer: Peer,
    /// The client that the PROXY protocol has named.
    pub named: Option<IpAddr>,
    /// Whether it is under TLS.
    pub tls: bool,
    /// Who the client is by its certificate, as `Client-Cert` says it.
    pub identity: Option<HeaderValue>,
}

/// A head that is no request, and why.
#[derive(Debug)]
pub struct Unread {
    /// The head.
    pub head: Head,
    /// The client.
    pub client: Peer,
    /// Why.
    pub refusal: Refusal,
}

/// What a request's Upgrade, or its `:protocol`, asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Nothing: plain HTTP.
    Plain,
    /// A WebSocket. RFC 6455 §4.1.
    WebSocket,
    /// Something that is not done: it is served as plain HTTP without its Upgrade. RFC 9110 §7.8.
    Ignored,
}

impl Request {
    /// Reads a head.
    ///
    /// # Errors
    /// `ConnectMethod`, `ConnectProtocol`, `BadHost`, `BadPath`, `MixedUpgrade`, `UpgradeOverHttp10`, `HostNotServed`, and
    /// `MalformedRequest` for what Connection may not name, `HeadTooLarge` over HTTP/2: what two readers could read in different ways, or what this
    /// listener does not serve.
    pub fn read(
        mut head: Head,
        arrival: &Arrival,
        listener: &config::Listener,
        trusted_proxies: &TrustedProxies,
    ) -> Result<Self, Box<Unread>> {
        let Arrival { peer, named, tls, .. } = *arrival;
        let source = &listener.client_address;
        let peer_trusted = *source != Source::ProxyProtocol && trusted_proxies.contains(peer);
        let client = match named {
            Some(address) => address.into(),
            None => client_address::resolve(source, trusted_proxies, peer, &head.request.headers),
        };
        let read = |head: &mut Head| {
            if head.protocol.is_http2() {
                http2_stream::check(&head.request, &listener.head)?;
            }
            match head.protocol {
                Protocol::Http2WebSocket => {}
                Protocol::Http2Extended => return Err(Refusal::ConnectProtocol),
                Protocol::Http1 | Protocol::Http2 if head.request.method == http::Method::CONNECT => {
                    return Err(Refusal::ConnectMethod);
                }
                Protocol::Http1 | Protocol::Http2 => {}
            }
            let authority = read_target(head)?;
            let raw_path = head.request.raw_path();
            let raw_path = std::str::from_utf8(raw_path).map_err(|_| Refusal::BadPath)?;
            let (path, _query) = raw_path.split_once('?').unwrap_or((raw_path, ""));
            // `OPTIONS *` asks about the server as a whole: RFC 9110 §9.3.7.
            let asterisk = path == "*" && head.request.method == http::Method::OPTIONS;
            let path = match asterisk {
                true => "*".to_owned(),
                false => route::normalize_path(path).map_err(|_| Refusal::BadPath)?.into_owned(),
            };
            if let Some(hosts) = &listener.hosts {
                let host = authority.as_ref().map_or("", |authority| &authority.host);
                if !hosts.iter().any(|pattern| pattern.matches(host)) {
                    return Err(Refusal::HostNotServed);
                }
            }
            forwarding::nominated(&head.request.headers)?;
            Ok((authority, path, read_intent(head)?))
        };
        match read(&mut head) {
            Ok((authority, path, intent)) => {
                let identity = arrival.identity.clone();
                Ok(Self { head, authority, path, client, peer, peer_trusted, intent, tls, identity })
            }
            Err(refusal) => Err(Box::new(Unread { head, client, refusal })),
        }
    }

    /// Whether the client is known apart from its peer: then limits per client address are meant for it.
    pub fn client_is_known(&self) -> bool {
        self.client.ip().is_some() && (self.peer_trusted || self.client != self.peer)
    }

    /// Its host, in lower case and without a port; empty when it has none.
    pub fn host(&self) -> &str {
        self.authority.as_ref().map_or("", |authority| &authority.host)
    }

    /// Whether it has a body over `limit`, as far as its head says.
    pub fn declares_body_over(&self, limit: u64) -> bool {
        let length = self.head.request.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit)
    }

    /// Its query, without the question mark.
    pub fn query(&self) -> &str {
        let target = std::str::from_utf8(self.head.request.raw_path()).unwrap_or("");
        target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The sites that an Origin may be the same as: the host that a trusted peer says the client asked for, and Host.
    pub fn sites(&self) -> impl Iterator<Item = Authority> {
        let forwarded = self.trusted("x-forwarded-host").and_then(|value| route::parse_authority(value.trim()).ok());
        forwarded.into_iter().chain(self.authority.clone())
    }

    /// Whether the client used TLS: with us, or as a trusted peer says. In the clear without such a word it is unknown,
    /// since TLS may end before us.
    pub fn secure(&self) -> Option<bool> {
        if self.tls {
            return Some(true);
        }
        match self.trusted("x-forwarded-proto")? {
            "https" | "wss" => Some(true),
            "http" | "ws" => Some(false),
            _ => None,
        }
    }

    fn trusted(&self, name: &str) -> Option<&str> {
        self.head.request.headers.get(name).filter(|_| self.peer_trusted)?.to_str().ok()
    }
}

/// Reads the authority from an absolute-form target or from Host, which the two must agree on. RFC 9112 §3.2.
fn read_target(head: &mut Head) -> Result<Option<Authority>, Refusal> {
    let mut hosts = head.request.headers.get_all(header::HOST).into_iter();
    let host = hosts.next().map(|value| value.to_str().map_err(|_| Refusal::BadHost)).transpose()?;
    if hosts.next().is_some() {
        return Err(Refusal::BadHost);
    }
    let parse = |text: &str| route::parse_authority(text).map_err(|_| Refusal::BadHost);
    let from_host = host.map(parse).transpose()?;
    if from_host.is_none() && head.request.version != http::Version::HTTP_10 {
        return Err(Refusal::BadHost);
    }
    let target = std::str::from_utf8(head.request.raw_path()).map_err(|_| Refusal::BadPath)?;
    let lower = target.get(..8).unwrap_or(target).to_ascii_lowercase();
    let rest = match (lower.strip_prefix("http://"), lower.strip_prefix("https://")) {
        (Some(_), _) => &target[7..],
        (_, Some(_)) => &target[8..],
        (None, None) => return Ok(from_host),
    };
    let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let from_target = &rest[..path_at];
    let authority = parse(from_target)?;
    let path = match &rest[path_at..] {
        path if path.starts_with('/') => path.to_owned(),
        query => format!("/{query}"),
    };
    match from_host {
        Some(host) if host != authority => return Err(Refusal::BadHost),
        Some(_) => {}
        // Over HTTP/1.0 the target may be all that names the host; the upstream gets it where it looks for it.
        None => {
            let from_target = from_target.to_owned();
            head.request.insert_header(header::HOST, from_target).map_err(|_| Refusal::BadHost)?;
        }
    }
    head.request.set_raw_path(path.as_bytes()).map_err(|_| Refusal::BadPath)?;
    head.rewritten = true;
    Ok(Some(authority))
}

/// Reads what Upgrade and Connection ask for. RFC 9110 §7.8, RFC 6455 §4.2.1.
fn read_intent(head: &Head) -> Result<Intent, Refusal> {
    match head.protocol {
        // Over HTTP/2 nothing is upgraded, and a request that asks for it is malformed: RFC 9113 §8.2.2.
        Protocol::Http2WebSocket => return Ok(Intent::WebSocket),
        Protocol::Http2 | Protocol::Http2Extended => return Ok(Intent::Plain),
        Protocol::Http1 => {}
    }
    let headers = &head.request.headers;
    let mut lines = headers.get_all(header::UPGRADE).into_iter();
    if lines.next().is_none() {
        return Ok(Intent::Plain);
    }
    if lines.next().is_some() {
        return Err(Refusal::MixedUpgrade);
    }
    let websocket = list_has(headers, &header::UPGRADE, "websocket");
    if websocket && list(headers, &header::UPGRADE).count() > 1 {
        return Err(Refusal::MixedUpgrade);
    }
    if !websocket || !list_has(headers, &header::CONNECTION, "upgrade") {
        return Ok(Intent::Ignored);
    }
    if head.request.version == http::Version::HTTP_10 {
        return Err(Refusal::UpgradeOverHttp10);
    }
    Ok(Intent::WebSocket)
}
