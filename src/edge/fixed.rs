//! Answers that need no upstream: a rule's `redirect` and `respond`.

use bytes::Bytes;
use http::header;
use tokio::time::timeout;

use super::answer;
use super::body::BodyEnd;
use super::gateway::Rule;
use super::request::Request;
use super::socket::Socket;
use crate::config::Respond;
use crate::policy::redirect::Redirect;
use crate::ws::handshake::list_has;

/// A fixed answer, before the rule's own headers.
struct Fixed {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

/// What was answered, and the connection when it can be used again, with what was read of the next request.
pub struct Answered {
    /// The status.
    pub status: u16,
    /// The bytes of the body that were sent.
    pub body_bytes: usize,
    /// The connection.
    pub io: Option<(Socket, Bytes)>,
}

/// Sends the client elsewhere.
pub async fn redirect(io: Socket, request: &Request, rule: &Rule, redirect: &Redirect) -> Answered {
    let target = std::str::from_utf8(request.head.request.raw_path()).unwrap_or("/");
    let location = redirect.location(request.host(), target);
    let headers = vec![("location", location)];
    write(io, request, rule, Fixed { status: redirect.status(), headers, body: Bytes::new() }).await
}

/// Answers as the rule says.
pub async fn respond(io: Socket, request: &Request, rule: &Rule, respond: &Respond) -> Answered {
    let headers = vec![("content-type", respond.content_type.clone())];
    write(io, request, rule, Fixed { status: respond.status, headers, body: respond.body.clone() }).await
}

async fn write(mut io: Socket, request: &Request, rule: &Rule, fixed: Fixed) -> Answered {
    let head = &request.head.request;
    let has_body = !BodyEnd::of(&head.headers).is_reached();
    let old = head.version == http::Version::HTTP_10;
    // A body that nobody reads ends the connection with the answer.
    let keep = !has_body && !old && !list_has(&head.headers, &header::CONNECTION, "close");
    let bytes = to_bytes(rule, &fixed, keep, head.method == http::Method::HEAD);
    let written = timeout(rule.http.idle_timeout, io.send_all(&bytes)).await;
    let body_bytes = fixed.body.len();
    if keep && matches!(written, Ok(Ok(()))) {
        let rest = request.head.bytes.slice(request.head.len..);
        return Answered { status: fixed.status, body_bytes, io: Some((io, rest)) };
    }
    answer::end(io).await;
    Answered { status: fixed.status, body_bytes, io: None }
}

fn to_bytes(rule: &Rule, fixed: &Fixed, keep: bool, head_only: bool) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(fixed.status).ok().and_then(|status| status.canonical_reason());
    let mut bytes = format!("HTTP/1.1 {} {}\r\n", fixed.status, reason.unwrap_or("")).into_bytes();
    let edits = &rule.response_headers;
    for (name, value) in &fixed.headers {
        let edited = edits.remove.iter().chain(edits.set.iter().map(|(name, _)| name)).any(|edit| edit == name);
        if !edited {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    for (name, value) in &edits.set {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let connection = if keep { "" } else { "connection: close\r\n" };
    let has_no_body = matches!(fixed.status, 204 | 304);
    let length = if has_no_body { String::new() } else { format!("content-length: {}\r\n", fixed.body.len()) };
    bytes.extend_from_slice(format!("{length}{connection}\r\n").as_bytes());
    if !head_only && !has_no_body {
        bytes.extend_from_slice(&fixed.body);
    }
    bytes
}
