//! One stream of an HTTP/2 connection: its request as the rules read it, how it is answered, and a tunnel over it.
//!
//! A stream that is not read holds back what its own window allows, and no other stream: its capacity is given back frame
//! by frame, as the session takes them. It never holds more than a frame besides. RFC 9113, RFC 8441.

use std::future::Future as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use h2::ext::Protocol as NamedProtocol;
use http::header;
use http::{HeaderValue, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v2::server::HttpSession;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::answer;
use super::client::{Client, end_to_end};
use super::head::{Head, Protocol, check_framing};
use super::http2::StreamMark;
use crate::cause::Refusal;
use crate::config::HeadLimits;
use crate::tunnel::Wire;

/// The head of a stream's request, in the form that it has over HTTP/1.1: Host from `:authority`, one line of cookies.
///
/// # RFC
/// RFC 9113 §8.2.3, §8.3.1
pub fn head_of(request: &RequestHeader) -> Head {
    let protocol = match request.extensions.get::<NamedProtocol>() {
        None => Protocol::Http2,
        Some(named) if named.as_str().eq_ignore_ascii_case("websocket") => Protocol::Http2WebSocket,
        Some(_) => Protocol::Http2Extended,
    };
    let mut request = request.clone();
    request.set_version(Version::HTTP_11);
    // Both are values already, and Pingora has refused a request in which they differ.
    if !request.headers.contains_key(header::HOST)
        && let Some(host) = request.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    {
        let _ = request.insert_header(header::HOST, host);
    }
    if request.method != Method::CONNECT || protocol != Protocol::Http2 {
        let path = request.uri.path_and_query().cloned().map(http::Uri::from).unwrap_or_default();
        request.set_uri(path);
    }
    join_cookies(&mut request);
    Head { protocol, request, bytes: Bytes::new(), len: 0, rewritten: true }
}

/// What the head guard asks of a head over HTTP/1.1 besides its grammar, which HTTP/2 has another for. Its size in bytes
/// was limited when it was read.
///
/// # Errors
/// `HeadTooLarge` and `MalformedRequest`.
pub fn check(request: &RequestHeader, limits: &HeadLimits) -> Result<(), Refusal> {
    if request.headers.len() > limits.max_headers {
        return Err(Refusal::HeadTooLarge);
    }
    if !request.raw_path().iter().all(u8::is_ascii_graphic) {
        return Err(Refusal::MalformedRequest);
    }
    check_framing(request)
}

/// A client may send each of its cookies by itself; over HTTP/1.1 they are one line. RFC 9113 §8.2.3.
fn join_cookies(request: &mut RequestHeader) {
    let lines = request.headers.get_all(header::COOKIE);
    if lines.iter().nth(1).is_none() {
        return;
    }
    let joined = lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        // A valid name and a valid value are always taken.
        let _ = request.insert_header(header::COOKIE, joined);
    }
}

/// A client that waits for the answer to the request of a stream.
pub struct Http2Client {
    session: HttpSession,
    mark: StreamMark,
    out: Option<SendStream<Bytes>>,
}

impl Http2Client {
    /// The client at the other end of a stream.
    pub fn new(session: HttpSession, mark: StreamMark) -> Self {
        Self { session, mark, out: None }
    }

    /// What it is made of.
    pub fn into_parts(self) -> (HttpSession, StreamMark) {
        (self.session, self.mark)
    }

    /// Gives it a whole answer.
    ///
    /// # Errors
    /// It is gone.
    pub async fn answer(&mut self, head: ResponseHeader, body: Bytes) -> io::Result<()> {
        let has_body = !body.is_empty();
        self.session.write_response_header(Box::new(head), !has_body).map_err(io::Error::other)?;
        if has_body { self.session.write_body(body, true).await.map_err(io::Error::other) } else { Ok(()) }
    }
}

impl Client for Http2Client {
    type Wire = Http2Wire;

    const RELAYS_SUCCESS: bool = false;

    async fn watch(&mut self) -> Refusal {
        loop {
            match self.session.read_body_bytes().await {
                Ok(Some(data)) if data.is_empty() => {}
                Ok(Some(_)) => return Refusal::EarlyData,
                Ok(None) | Err(_) => return Refusal::ClientGone,
            }
        }
    }

    /// The 200 that stands for the upstream's 101. RFC 8441 §5.
    async fn accept(&mut self, answer: &ResponseHeader) -> io::Result<()> {
        let without = [header::CONTENT_LENGTH, header::SEC_WEBSOCKET_ACCEPT];
        let head = head_for_stream(http::StatusCode::OK, answer, &without)?;
        self.session.write_response_header(Box::new(head), false).map_err(io::Error::other)?;
        self.out = self.session.take_response_body_writer();
        Ok(())
    }

    fn into_wire(self) -> Option<Http2Wire> {
        let Self { mut session, mark, out } = self;
        // The request was read, and a session should not own it until its end.
        *session.req_header_mut() = RequestHeader::build_no_case(Method::CONNECT, b"/", Some(0)).ok()?;
        let open = Box::new(Open { session, out: out?, _mark: mark });
        Some(Http2Wire { open: Some(open), frame: Bytes::new(), broken: false })
    }

    async fn begin(&mut self, answer: &ResponseHeader, has_body: bool) -> io::Result<()> {
        let head = head_for_stream(answer.status, answer, &[])?;
        self.session.write_response_header(Box::new(head), !has_body).map_err(io::Error::other)
    }

    async fn send(&mut self, piece: Bytes) -> io::Result<()> {
        self.session.write_body(piece, false).await.map_err(io::Error::other)
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.session.finish().map_err(io::Error::other)
    }

    /// A stream that is dropped without its end is reset (CANCEL), behind what was written to it.
    async fn end(self) {}

    async fn refuse(mut self, refusal: &Refusal) {
        let Some(answer) = answer::document(refusal, Protocol::Http2) else { return };
        let Ok(head) = answer.to_header() else { return };
        // A client that is gone, or takes no answer in time, gets none.
        let _ = timeout(answer::LINGER, self.answer(head, answer.body.into())).await;
    }
}

/// An answer's head without what is for a connection of HTTP/1.1 only. RFC 9113 §8.2.2.
fn head_for_stream(
    status: http::StatusCode,
    answer: &ResponseHeader,
    without: &[http::HeaderName],
) -> io::Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(status, Some(answer.headers.len())).map_err(io::Error::other)?;
    for (name, _, value) in end_to_end(answer).filter(|(name, ..)| !without.contains(name)) {
        head.append_header(name, value.clone()).map_err(io::Error::other)?;
    }
    Ok(head)
}

/// A stream that carries a session. RFC 8441 §5.
pub struct Http2Wire {
    /// Boxed: a session that is over should not keep it. `None` when it was given up.
    open: Option<Box<Open>>,
    /// What is left of the frame that was read last; empty nearly always.
    frame: Bytes,
    broken: bool,
}

struct Open {
    session: HttpSession,
    out: SendStream<Bytes>,
    _mark: StreamMark,
}

impl AsyncRead for Http2Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.frame.is_empty() {
            let Some(open) = &mut this.open else { return Poll::Ready(Ok(())) };
            // Nothing is lost with the future: what it waits for is in the stream.
            match ready!(pin!(open.session.read_body_bytes()).poll(cx)) {
                Ok(Some(frame)) => this.frame = frame,
                Ok(None) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let len = this.frame.len().min(buf.remaining());
        buf.put_slice(&this.frame.split_to(len));
        if this.frame.is_empty() {
            // An empty rest would still own the frame.
            this.frame = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Wire {
    /// Takes what the windows of the stream and of the connection allow, and what [`super::http2`] lets wait for them.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(open) = &mut self.get_mut().open else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        open.out.reserve_capacity(bytes.len());
        let len = match ready!(open.out.poll_capacity(cx)) {
            Some(Ok(len)) => len.min(bytes.len()),
            Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        open.out.send_data(Bytes::copy_from_slice(&bytes[..len]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(len))
    }

    /// The connection's task writes what the stream was given.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the stream: with END_STREAM, as TCP with its FIN, or with a reset as TCP with an error. RFC 8441 §5.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.open {
            // Its drop resets the stream (CANCEL), behind what was written.
            Some(_) if this.broken => this.open = None,
            Some(open) => open.out.send_data(Bytes::new(), true).map_err(io::Error::other)?,
            None => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl Wire for Http2Wire {
    fn break_off(&mut self) {
        self.broken = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(request: http::request::Builder) -> Head {
        head_of(&request.body(()).unwrap().into_parts().0.into())
    }

    fn line(head: &Head, name: &str) -> Vec<String> {
        let lines = head.request.headers.get_all(name).iter();
        lines.map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_request_reads_as_over_http1() {
        let got = head(
            Request::builder()
                .version(Version::HTTP_2)
                .uri("https://app.example:8443/a?b=c")
                .header("cookie", "a=1")
                .header("cookie", "b=2; c=3")
                .header("x", "1")
                .header("x", "2"),
        );
        assert_eq!((got.protocol, got.request.version), (Protocol::Http2, Version::HTTP_11));
        assert_eq!(got.request.raw_path(), b"/a?b=c");
        assert_eq!(line(&got, "host"), ["app.example:8443"]);
        assert_eq!(line(&got, "cookie"), ["a=1; b=2; c=3"]);
        assert_eq!(line(&got, "x"), ["1", "2"]);
        let with_host = head(Request::builder().uri("/").header("host", "app.example"));
        assert_eq!(line(&with_host, "host"), ["app.example"]);
    }

    #[test]
    fn a_protocol_is_known_in_every_case() {
        let with = |protocol: &'static str| {
            let request = Request::builder().method("CONNECT").uri("https://app.example/chat");
            head(request.extension(NamedProtocol::from_static(protocol)))
        };
        for name in ["websocket", "WebSocket", "WEBSOCKET"] {
            let got = with(name);
            assert_eq!((got.protocol, got.request.raw_path()), (Protocol::Http2WebSocket, &b"/chat"[..]));
        }
        for name in ["websocket2", "connect-udp", ""] {
            assert_eq!(with(name).protocol, Protocol::Http2Extended, "{name}");
        }
        assert_eq!(head(Request::builder().method("CONNECT").uri("app.example:443")).protocol, Protocol::Http2);
    }
}
