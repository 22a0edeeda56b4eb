//! Answers that need no upstream: a rule's `redirect` and `respond`.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use tokio::time::timeout;

use super::answer;
use super::body::BodyEnd;
use super::gateway::Rule;
use super::http2_stream::Http2Client;
use super::request::Request;
use super::socket::Socket;
use crate::config::Respond;
use crate::policy::redirect::Redirect;
use crate::ws::handshake::list_has;

/// A fixed answer, with the rule's own headers.
pub struct Fixed {
    status: u16,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

/// What was answered, and the connection when it can be used again, with what was read of the next request.
pub struct Answered {
    /// The status.
    pub status: u16,
    /// The bytes of the body that were sent.
    pub body_bytes: usize,
    /// The connection, over HTTP/1.1.
    pub io: Option<(Socket, Bytes)>,
}

/// Sends the client elsewhere.
pub fn redirect(request: &Request, rule: &Rule, redirect: &Redirect) -> Fixed {
    let target = std::str::from_utf8(request.head.request.raw_path()).unwrap_or("/");
    let location = redirect.location(request.host(), target);
    Fixed::new(rule, redirect.status(), (header::LOCATION, &location), Bytes::new())
}

/// Answers as the rule says.
pub fn respond(rule: &Rule, respond: &Respond) -> Fixed {
    Fixed::new(rule, respond.status, (header::CONTENT_TYPE, &respond.content_type), respond.body.clone())
}

impl Fixed {
    fn new(rule: &Rule, status: u16, (name, value): (HeaderName, &str), body: Bytes) -> Self {
        let edits = &rule.response_headers;
        let edited = edits.remove.iter().chain(edits.set.iter().map(|(name, _)| name)).any(|edit| *edit == name);
        // What is no value of a header is left out.
        let own = HeaderValue::from_str(value).ok().filter(|_| !edited).map(|value| (name, value));
        Self { status, headers: own.into_iter().chain(edits.set.iter().cloned()).collect(), body }
    }

    /// Whether it says that the request has succeeded.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Writes it over HTTP/1.1.
    pub async fn write(self, mut io: Socket, request: &Request, rule: &Rule) -> Answered {
        let head = &request.head.request;
        let has_body = !BodyEnd::of(&head.headers).is_reached();
        let old = head.version == http::Version::HTTP_10;
        // A body that nobody reads ends the connection with the answer.
        let keep = !has_body && !old && !list_has(&head.headers, &header::CONNECTION, "close");
        let bytes = self.to_bytes(keep, head.method == http::Method::HEAD);
        let written = timeout(rule.http.idle_timeout, io.send_all(&bytes)).await;
        let (status, body_bytes) = (self.status, self.body.len());
        if keep && matches!(written, Ok(Ok(()))) {
            let rest = request.head.bytes.slice(request.head.len..);
            return Answered { status, body_bytes, io: Some((io, rest)) };
        }
        answer::end(io).await;
        Answered { status, body_bytes, io: None }
    }

    /// Writes it to a stream of HTTP/2. A body that nobody reads ends with the stream.
    pub async fn write_to_stream(self, client: &mut Http2Client, request: &Request, rule: &Rule) -> Answered {
        let (status, body_bytes) = (self.status, self.body.len());
        let has_no_body = self.has_no_body() || request.head.request.method == http::Method::HEAD;
        let body = if has_no_body { Bytes::new() } else { self.body.clone() };
        if let Ok(head) = self.to_header() {
            // One that is gone, or takes nothing in time, gets no more.
            let _ = timeout(rule.http.idle_timeout, client.answer(head, body)).await;
        }
        Answered { status, body_bytes, io: None }
    }

    fn has_no_body(&self) -> bool {
        matches!(self.status, 204 | 304)
    }

    fn to_header(&self) -> pingora::Result<ResponseHeader> {
        let mut head = ResponseHeader::build_no_case(self.status, Some(self.headers.len() + 1))?;
        for (name, value) in &self.headers {
            head.append_header(name, value.clone())?;
        }
        if !self.has_no_body() {
            head.insert_header(header::CONTENT_LENGTH, self.body.len())?;
        }
        Ok(head)
    }

    fn to_bytes(&self, keep: bool, head_only: bool) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let mut bytes = format!("HTTP/1.1 {} {}\r\n", self.status, reason.unwrap_or("")).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let connection = if keep { "" } else { "connection: close\r\n" };
        let length =
            if self.has_no_body() { String::new() } else { format!("content-length: {}\r\n", self.body.len()) };
        bytes.extend_from_slice(format!("{length}{connection}\r\n").as_bytes());
        if !head_only && !self.has_no_body() {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}
