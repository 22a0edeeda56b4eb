//! Requests of this gateway's own to a backend that speaks GRIP over HTTP, in the name of one client.
//!
//! Connections are Pingora's, pooled by each rule. How many requests of a rule are under way at once is bounded: the
//! others wait their turn, each with what its client has sent, so that ten thousand clients that come or go at once are
//! no ten thousand connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::v1::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v1::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::backplane::Backplane;
use super::forwarding;
use super::upstreams::{Endpoint, Lease, Preference, Upstream};
use crate::backplane::backend::{AskError, Asking, Backend, Question, Reply};
use crate::grip::headers;
use crate::policy::connection_limit::{ConnectionLimit, Enforce};
use crate::tls::NO_CA_FILE;

/// The most requests of a rule that are under way at once.
const REQUESTS: usize = 512;

/// The most connections that are kept for the next request.
const IDLE_CONNECTIONS: usize = 128;

/// How long a connection is kept: shorter than servers do that say nothing of it, since a request that meets their end of
/// it may not be made again. gunicorn ends one after 2 s, Node after 5 s.
const IDLE: Duration = Duration::from_secs(1);

/// The longest that one is kept where the server says how long it does (`Keep-Alive: timeout=N`): a second less.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// The most 1xx answers that are skipped before an answer. RFC 9110 §15.2.
const MAX_INTERIM_ANSWERS: usize = 16;

/// What the requests of a rule share.
pub struct Asker {
    connector: Connector,
    requests: Semaphore,
    descriptors: Arc<ConnectionLimit>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Asker {
    /// No connections yet. `descriptors` has the places of all descriptors of the process.
    pub fn new(descriptors: Arc<ConnectionLimit>) -> Self {
        let mut options = ConnectorOptions::new(IDLE_CONNECTIONS);
        options.ca_file = Some(NO_CA_FILE.to_owned());
        Self { connector: Connector::new(Some(options)), requests: Semaphore::new(REQUESTS), descriptors }
    }
}

/// Headers as few bytes: a session keeps them for its lifetime, and needs them seldom.
#[derive(Clone, Debug)]
pub struct Compact(Box<[u8]>);

impl Compact {
    /// Takes the headers of a handshake, without those of one hop.
    pub fn new(headers: &HeaderMap) -> Self {
        let mut lines = Vec::new();
        for (name, value) in headers.iter().filter(|(name, _)| !forwarding::is_hop_by_hop(name)) {
            // Neither has a line end, nor a name a colon. RFC 9110 §5.1, §5.5.
            for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"] {
                lines.extend_from_slice(part);
            }
        }
        Self(lines.into())
    }

    /// The headers.
    pub fn headers(&self) -> HeaderMap {
        let lines = self.0.split(|byte| *byte == b'\n').filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value.get(1..)?).ok()?))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers
    }
}

/// The backend of one client.
#[derive(Debug)]
pub struct ClientBackend {
    /// What its rule's requests share.
    pub asker: Arc<Asker>,
    /// What signs them.
    pub backplane: Arc<Backplane>,
    /// Where they go.
    pub upstream: Arc<Upstream>,
    /// Which endpoint gets them, if it can.
    pub preference: Preference,
    /// The headers of the client's handshake, without what is for one hop and what only a gateway may say.
    pub headers: Compact,
    /// The path and the query that requests with events go to.
    pub target: Box<str>,
    /// Says of which connection a request is: `Connection-Id`.
    pub connection_id: String,
    /// Which endpoint was asked last.
    pub asked: Mutex<Option<Arc<Endpoint>>>,
    /// How long a connection may take to be answered on, and a pause of the answer.
    pub timeout: Duration,
}

impl Backend for Arc<ClientBackend> {
    fn ask(&self, question: Question) -> Asking {
        let this = self.clone();
        Box::pin(async move { this.ask_once(question).await })
    }
}

impl ClientBackend {
    async fn ask_once(&self, question: Question) -> Result<Reply, AskError> {
        // It is never closed.
        let _turn = self.asker.requests.acquire().await.map_err(|_| AskError::Unreachable(None))?;
        let place = self.asker.descriptors.acquire(super::gateway::ANYBODY, Enforce::ALL);
        let _place = place.map_err(|_| AskError::Unreachable(Some("the process may open no more descriptors")))?;
        let (request, body) = self.request(question).ok_or(AskError::Malformed)?;
        let mut begun = self.begin(request, body).await?;
        let limits = &self.backplane.limits;
        let most = if begun.answer.status == StatusCode::OK { limits.response_bytes } else { limits.refusal_bytes };
        let body = begun.read_whole(most, self.timeout).await?;
        let mut answer = begun.end(&self.asker).await;
        forwarding::strip_answer(&mut answer);
        Ok(Reply { status: answer.status.as_u16(), headers: answer.headers.clone(), body })
    }

    /// The head and the body of a request. `None`: a value cannot stand in a header, or a link in a request line.
    fn request(&self, question: Question) -> Option<(RequestHeader, Bytes)> {
        let mut headers = self.headers.headers();
        let (method, target, body) = match question {
            Question::Events { body, replayed_bytes, meta } => {
                self.backplane.add(&mut headers, &[], true).ok()?;
                headers::over_http(&mut headers, &self.connection_id, body.len(), replayed_bytes, &meta).ok()?;
                (Method::POST, self.target.to_string(), body)
            }
            Question::Link { target, last: (channel, id), meta } => {
                let last = [(channel.as_str(), id.as_str())];
                self.backplane.add(&mut headers, if id.is_empty() { &[] } else { &last }, true).ok()?;
                headers::over_http(&mut headers, &self.connection_id, 0, 0, &meta).ok()?;
                headers.remove(header::CONTENT_TYPE);
                headers.remove(header::CONTENT_LENGTH);
                (Method::GET, target, Bytes::new())
            }
        };
        let mut request = RequestHeader::build(method, target.as_bytes(), Some(headers.len())).ok()?;
        for (name, value) in &headers {
            request.append_header(name.clone(), value.clone()).ok()?;
        }
        Some((request, body))
    }

    /// A connection to the endpoint that is picked, or to the others in turn: one that was kept, or a new one.
    async fn connect(&self) -> Result<(HttpSession, HttpPeer, Lease), AskError> {
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut error = AskError::Unreachable(None);
        while let Some(endpoint) = self.upstream.pick(&self.preference, &tried) {
            let lease = endpoint.lease();
            match self.connect_to(&endpoint).await {
                Ok((session, peer)) => return Ok((session, peer, lease)),
                Err(why) => error = why,
            }
            tried.push(endpoint);
        }
        Err(error)
    }

    async fn connect_to(&self, endpoint: &Arc<Endpoint>) -> Result<(HttpSession, HttpPeer), AskError> {
        let within = self.upstream.connect_timeout();
        let Ok(targets) = timeout(within, endpoint.resolve()).await else {
            return Err(AskError::ConnectTimeout);
        };
        let targets = targets.map_err(|error| {
            endpoint.failed(&error);
            AskError::Unreachable(None)
        })?;
        let target = targets.first().ok_or(AskError::Unreachable(None))?;
        let mut peer = endpoint.peer(target).map_err(|_| AskError::Unreachable(Some("TLS cannot be set up")))?;
        peer.options.connection_timeout = Some(within);
        peer.options.total_connection_timeout = Some(within);
        match self.asker.connector.get_http_session(&peer).await {
            Ok((session, reused)) => {
                if !reused {
                    endpoint.succeeded();
                }
                Ok((session, peer))
            }
            Err(error) => {
                endpoint.failed(&error.etype().as_str());
                Err(match error.etype() {
                    ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => AskError::ConnectTimeout,
                    _ => AskError::Unreachable(None),
                })
            }
        }
    }

    /// Makes one request, and reads the head of its answer.
    ///
    /// # Errors
    /// There is none.
    pub async fn begin(&self, request: RequestHeader, body: Bytes) -> Result<Begun, AskError> {
        let (mut session, peer, lease) = self.connect().await?;
        *self.asked.lock() = Some(lease.endpoint().clone());
        let mut sent_whole = false;
        let answer = timeout(self.timeout, async {
            session.write_request_header(Box::new(request)).await?;
            if !body.is_empty() {
                session.write_body(&body).await?;
            }
            session.finish_body().await?;
            sent_whole = true;
            for _ in 0..MAX_INTERIM_ANSWERS {
                let answer = session.read_resp_header_parts().await?;
                if !answer.status.is_informational() {
                    return Ok(answer);
                }
            }
            pingora::Error::e_explain(ErrorType::InvalidHTTPHeader, "too many interim answers")
        })
        .await;
        let answer = match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if *error.etype() == ErrorType::InvalidHTTPHeader => Err(AskError::Malformed),
            Ok(Err(_)) => Err(AskError::Broken { sent_whole }),
            Err(_) => Err(AskError::Timeout { sent_whole }),
        };
        match answer {
            Ok(answer) => {
                lease.endpoint().answered();
                Ok(Begun { session, peer, answer, _lease: lease })
            }
            Err(error) => {
                lease.endpoint().misbehaved();
                Err(error)
            }
        }
    }
}

/// A request whose answer has begun.
pub struct Begun {
    session: HttpSession,
    peer: HttpPeer,
    /// The head of the answer, as it came.
    pub answer: Box<ResponseHeader>,
    _lease: Lease,
}

impl Begun {
    /// The next piece of the body; `None` at its end. `within` is how long it may pause.
    ///
    /// # Errors
    /// The body breaks off.
    pub async fn read(&mut self, within: Duration) -> Result<Option<Bytes>, AskError> {
        match timeout(within, self.session.read_body_bytes()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(_)) => Err(AskError::Broken { sent_whole: true }),
            Err(_) => Err(AskError::Timeout { sent_whole: true }),
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// It breaks off; `Malformed`: it has more than `most` bytes.
    pub async fn read_whole(&mut self, most: usize, within: Duration) -> Result<Bytes, AskError> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.read(within).await? {
            if body.len() + piece.len() > most {
                return Err(AskError::Malformed);
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// Keeps the connection for the next request, where the body was read to its end. Returns the head.
    pub async fn end(self, asker: &Asker) -> Box<ResponseHeader> {
        let idle = kept_for(&self.answer.headers);
        asker.connector.release_http_session(self.session, &self.peer, Some(idle)).await;
        self.answer
    }
}

/// How long a connection is kept behind this answer.
fn kept_for(headers: &HeaderMap) -> Duration {
    let value = headers.get("keep-alive").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let told =
        value.split(',').filter_map(|part| part.trim().strip_prefix("timeout=")?.trim().parse::<u64>().ok()).next();
    told.map_or(IDLE, |secs| Duration::from_secs(secs.saturating_sub(1)).min(MAX_IDLE))
}

/// An id that tells a connection from all others: a random UUID. RFC 9562 §5.4.
pub fn connection_id() -> String {
    let random: u128 = rand::random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{id:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_headers_are_the_same_without_those_of_the_hop() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("cookie", &b"a=b: c"[..]), ("x-many", b"1"), ("x-many", b"2"), ("x-empty", b""), ("x-bytes", b"\xff\t")]
        {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        let expected = headers.clone();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        assert_eq!(Compact::new(&headers).headers(), expected);
    }

    #[test]
    fn a_connection_is_kept_shorter_than_its_server_keeps_it() {
        let kept = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("keep-alive", http::HeaderValue::from_static(value));
            kept_for(&headers)
        };
        assert_eq!(kept_for(&HeaderMap::new()), IDLE);
        assert_eq!(kept("timeout=5, max=100"), Duration::from_secs(4));
        assert_eq!(kept("timeout=3600"), MAX_IDLE);
        assert_eq!(kept("timeout=0"), Duration::ZERO);
        assert_eq!(kept("max=5"), IDLE);
    }

    #[test]
    fn an_id_is_a_uuid_of_version_4() {
        let id = connection_id();
        assert_eq!(id.len(), 36);
        assert!(id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'4',
            19 => matches!(byte, b'8' | b'9' | b'a' | b'b'),
            _ => byte.is_ascii_hexdigit(),
        }));
        assert_ne!(id, connection_id());
    }
}
