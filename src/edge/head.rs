//! The head guard: reads a request's head within one deadline and its limits, before anything else looks at it.
//!
//! Pingora limits each read but not the head, and answers a malformed one before any hook of ours runs. Here a silent
//! socket, a dripped head, an oversized one and one that is no HTTP each end in a [`Refusal`]. A connection that waits
//! for a head owns no buffer. RFC 9112 §2 to §5.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::http::RequestHeader;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::socket::Socket;
use crate::cause::Refusal;
use crate::config::HeadLimits;
use crate::tunnel::pressure;
use crate::ws::handshake::is_token;

/// How much one read takes while a head is incomplete, in bytes.
const READ_BYTES: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<[u8; READ_BYTES]> = const { RefCell::new([0; READ_BYTES]) };
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Over HTTP/1.x.
    Http1,
    /// Over HTTP/2.
    Http2,
    /// Over HTTP/2, as an extended CONNECT for a WebSocket. RFC 8441 §4.
    Http2WebSocket,
    /// Over HTTP/2, as an extended CONNECT for anything else.
    Http2Extended,
}

impl Protocol {
    /// Its name in the log.
    pub const fn name(self) -> &'static str {
        if self.is_http2() { "h2" } else { "h1" }
    }

    /// Whether it is a stream of HTTP/2.
    pub const fn is_http2(self) -> bool {
        !matches!(self, Self::Http1)
    }

    /// The status by which an answer of ours goes out. A 426 names what to upgrade to (RFC 9110 §15.5.22), and over
    /// HTTP/2 nothing can be upgraded (RFC 9113 §8.6).
    pub const fn status(self, status: u16) -> u16 {
        if self.is_http2() && status == 426 { 400 } else { status }
    }
}

/// A request's head, parsed, and the bytes that it came in.
#[derive(Debug)]
pub struct Head {
    /// How it came.
    pub protocol: Protocol,
    /// Method, target, version and headers, in the case in which they came.
    pub request: RequestHeader,
    /// The head as it came, and what was read behind it; nothing over HTTP/2.
    pub bytes: Bytes,
    /// The length of the head in `bytes`.
    pub len: usize,
    /// Whether `request` no longer says what `bytes` says.
    pub rewritten: bool,
}

/// Why there is no head.
#[derive(Debug)]
pub enum NoHead {
    /// The connection ended, or waited in vain, between two requests: nobody is told.
    Quiet,
    /// The client is told why.
    Refused(Refusal),
}

/// What a client begins.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the larger one is what there nearly always is, and is moved out at once"
)]
pub enum Beginning {
    /// A request.
    Request(Head),
    /// A connection of HTTP/2: what was read of it. RFC 9113 §3.3.
    Http2(Bytes),
}

/// What a client sends first over HTTP/2. RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads the next head by `deadline`. `read` is what was read of it already; `first` says whether a silent client is told
/// so, and `http2` whether it may be the preface of HTTP/2.
///
/// # Errors
/// `HeadTimeout`, `HeadTooLarge`, `MalformedRequest`, `ProcessMemory`; or quiet when the connection ended between two requests.
pub async fn read(
    io: &mut Socket,
    read: Bytes,
    limits: &HeadLimits,
    deadline: Instant,
    first: bool,
    http2: bool,
) -> Result<Beginning, NoHead> {
    let mut bytes = BytesMut::from(read);
    let mut progress = Progress::default();
    loop {
        if http2 && bytes.starts_with(PREFACE) {
            return Ok(Beginning::Http2(bytes.freeze()));
        }
        // The first byte that is not of the preface decides.
        let may_be_http2 = http2 && PREFACE.starts_with(&bytes);
        if !may_be_http2 && let Some(head) = parse(&bytes, &mut progress, limits).map_err(NoHead::Refused)? {
            let bytes = bytes.freeze();
            let (request, len) = head;
            return Ok(Beginning::Request(Head { protocol: Protocol::Http1, request, len, bytes, rewritten: false }));
        }
        // A head that is not whole would grow.
        if !bytes.is_empty() && pressure::is_over() {
            return Err(NoHead::Refused(Refusal::ProcessMemory));
        }
        match timeout_at(deadline, read_some(io, &mut bytes)).await {
            Ok(Ok(0) | Err(_)) if bytes.is_empty() => return Err(NoHead::Quiet),
            Ok(Ok(0) | Err(_)) => return Err(NoHead::Refused(Refusal::ClientGone)),
            Ok(Ok(_)) => {}
            Err(_) if bytes.is_empty() && !first => return Err(NoHead::Quiet),
            Err(_) => return Err(NoHead::Refused(Refusal::HeadTimeout)),
        }
    }
}

pub(super) async fn read_some(io: &mut Socket, into: &mut BytesMut) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {
                    into.extend_from_slice(buffer.filled());
                    Poll::Ready(Ok(buffer.filled().len()))
                }
            }
        })
    })
    .await
}

/// How far the reading of a head has come, so that a dripped head costs no more than one that comes at once.
#[derive(Debug, Default)]
pub struct Progress {
    /// No empty line begins before this.
    searched: usize,
    /// The first line was looked at, when it was whole.
    first_line_judged: bool,
}

/// The most bytes of empty lines before a request. RFC 9112 §2.2 allows for one such line.
const MAX_LEADING_BYTES: usize = 4;

/// Parses the head at the front of `bytes`, or says what is wrong as soon as its first byte or line shows it.
///
/// Returns the head and its length in bytes, or `None` if `bytes` does not hold a whole head yet: then it is called again
/// with more behind them, and the same `progress`.
///
/// # Errors
/// `HeadTooLarge` and `MalformedRequest`.
///
/// # RFC
/// RFC 9112 §2 to §6.
pub fn parse(
    bytes: &[u8],
    progress: &mut Progress,
    limits: &HeadLimits,
) -> Result<Option<(RequestHeader, usize)>, Refusal> {
    let leading = bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
    match bytes.get(leading) {
        // A TLS hello, or any other protocol, shows in its first byte.
        Some(first) if !is_token(&[*first]) => return Err(Refusal::MalformedRequest),
        _ if leading > MAX_LEADING_BYTES => return Err(Refusal::MalformedRequest),
        None => return Ok(None),
        Some(_) => {}
    }
    let end = find_end(bytes, leading, progress);
    if end.unwrap_or(bytes.len()) > limits.max_bytes {
        return Err(Refusal::HeadTooLarge);
    }
    let first_line = !progress.first_line_judged && bytes[leading..].contains(&b'\n');
    progress.first_line_judged |= first_line;
    if end.is_none() && !first_line {
        return Ok(None);
    }
    let mut headers = vec![httparse::EMPTY_HEADER; limits.max_headers];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => Ok(None),
        Ok(httparse::Status::Complete(len)) => to_header(&request).map(|header| Some((header, len))),
        Err(httparse::Error::TooManyHeaders) => Err(Refusal::HeadTooLarge),
        Err(_) => Err(Refusal::MalformedRequest),
    }
}

/// Finds the end of the empty line that ends a head.
fn find_end(bytes: &[u8], leading: usize, progress: &mut Progress) -> Option<usize> {
    let mut at = progress.searched.max(leading);
    while let Some(newline) = bytes[at..].iter().position(|byte| *byte == b'\n').map(|found| at + found) {
        match &bytes[newline + 1..] {
            [b'\n', ..] => return Some(newline + 2),
            [b'\r', b'\n', ..] => return Some(newline + 3),
            // The next bytes may still make it an empty line.
            [] | [b'\r'] => {
                progress.searched = newline;
                return None;
            }
            _ => at = newline + 1,
        }
    }
    progress.searched = bytes.len();
    None
}

fn to_header(parsed: &httparse::Request<'_, '_>) -> Result<RequestHeader, Refusal> {
    let malformed = |_| Refusal::MalformedRequest;
    let method = http::Method::from_bytes(parsed.method.unwrap_or_default().as_bytes())
        .map_err(|_| Refusal::MalformedRequest)?;
    let target = parsed.path.unwrap_or_default();
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::MalformedRequest);
    }
    let mut request = RequestHeader::build(method, target.as_bytes(), Some(parsed.headers.len())).map_err(malformed)?;
    request.set_version(if parsed.version == Some(0) { http::Version::HTTP_10 } else { http::Version::HTTP_11 });
    for header in parsed.headers.iter() {
        let value = http::HeaderValue::from_bytes(header.value).map_err(|_| Refusal::MalformedRequest)?;
        request.append_header(header.name.to_owned(), value).map_err(malformed)?;
    }
    check_framing(&request)?;
    Ok(request)
}

/// A body whose end two readers could see at different places is refused. RFC 9112 §6.
pub(super) fn check_framing(request: &RequestHeader) -> Result<(), Refusal> {
    let mut lengths = request.headers.get_all(header::CONTENT_LENGTH).into_iter();
    let length = lengths.next();
    let encodings = request.headers.get_all(header::TRANSFER_ENCODING).into_iter().count();
    let digits = length
        .is_none_or(|value| !value.is_empty() && value.len() <= 18 && value.as_bytes().iter().all(u8::is_ascii_digit));
    let chunked_only = request
        .headers
        .get(header::TRANSFER_ENCODING)
        .is_none_or(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    let sound = digits
        && lengths.next().is_none()
        && encodings <= 1
        && chunked_only
        && !(length.is_some() && encodings > 0)
        && !(encodings > 0 && request.version == http::Version::HTTP_10);
    if sound { Ok(()) } else { Err(Refusal::MalformedRequest) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIMITS: HeadLimits = HeadLimits { timeout: Duration::from_secs(10), max_bytes: 1024, max_headers: 10 };

    fn whole(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        parse(bytes, &mut Progress::default(), &LIMITS).map(|head| head.map(|(_, len)| len))
    }

    /// The verdict when the bytes come one at a time.
    fn dripped(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        let mut progress = Progress::default();
        for end in 1..=bytes.len() {
            match parse(&bytes[..end], &mut progress, &LIMITS) {
                Ok(None) => {}
                verdict => return verdict.map(|head| head.map(|(_, len)| len)),
            }
        }
        Ok(None)
    }

    #[test]
    fn finds_the_end_whole_and_dripped() {
        for head in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"GET / HTTP/1.0\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\nHost: a\n\n",
        ] {
            assert_eq!(whole(head), Ok(Some(head.len())), "{}", head.escape_ascii());
            assert_eq!(dripped(head), Ok(Some(head.len())), "{}", head.escape_ascii());
            assert_eq!(whole(&[head, b"more"].concat()), Ok(Some(head.len())));
            assert_eq!(whole(&head[..head.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn refuses_what_is_no_http_at_once() {
        for bad in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/9.9\r\n",
            b"hello\r\n",
            b"GET /a b HTTP/1.1\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
            b"\r\n\r\n\r\n",
        ] {
            assert_eq!(whole(bad), Err(Refusal::MalformedRequest), "{}", bad.escape_ascii());
            assert_eq!(dripped(bad), Err(Refusal::MalformedRequest), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn refuses_bodies_with_two_ends() {
        for bad in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: +1",
            "Content-Length: 1, 1",
            "Content-Length: 9999999999999999999",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{bad}\r\n\r\n");
            assert_eq!(whole(head.as_bytes()), Err(Refusal::MalformedRequest), "{bad}");
        }
        let head = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(whole(head), Err(Refusal::MalformedRequest));
    }

    #[test]
    fn refuses_heads_over_their_limits() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(11));
        assert_eq!(whole(many.as_bytes()), Err(Refusal::HeadTooLarge));
        let long = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(1024));
        assert_eq!(whole(long.as_bytes()), Err(Refusal::HeadTooLarge));
        assert_eq!(dripped(long.as_bytes()), Err(Refusal::HeadTooLarge));
        let endless = "G".repeat(1025);
        assert_eq!(whole(endless.as_bytes()), Err(Refusal::HeadTooLarge));
        // A body behind a head within its limits is not the head's.
        let body = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n{}", "x".repeat(2000));
        assert!(whole(body.as_bytes()).unwrap().is_some());
    }
}
