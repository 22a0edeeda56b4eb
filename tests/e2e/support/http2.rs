//! A client over HTTP/2: the `h2` crate for what it lets a client do, and frames by hand for what it does not.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::LazyLock;

use bytes::{Buf as _, Bytes};
use h2::client::{Builder, SendRequest};
use h2::ext::Protocol;
use h2::{Ping, Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::frames::{self, Frame, TEXT};
use super::{Client, DEADLINE};

/// Where the tests' clients of HTTP/2 run.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

/// Runs a test's future, within three times the deadline of what it waits for.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    RUNTIME.block_on(async { timeout(3 * DEADLINE, test).await.expect("it comes to its end in time") })
}

/// Waits for what must come.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("it comes in time")
}

/// A connection.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    driven: JoinHandle<Result<(), h2::Error>>,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

/// A stream that is open in both directions.
pub struct Tunnel {
    pub headers: HeaderMap,
    pub out: SendStream<Bytes>,
    body: RecvStream,
    read: Vec<u8>,
}

/// How a stream ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Stream,
    Reset(Option<Reason>),
}

/// The GET of a target at `app.example`.
pub fn get(target: &str) -> request::Builder {
    Request::get(format!("http://app.example{target}"))
}

/// A sound extended CONNECT for a WebSocket.
pub fn connect(target: &str) -> request::Builder {
    let request = Request::connect(format!("http://app.example{target}"));
    request.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13")
}

impl Http2 {
    /// Connects in the clear.
    pub async fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).await.expect("it takes connections")).await
    }

    /// Begins on a connection. What it is sent on streams may wait unread: no stream holds another back.
    pub async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let mut builder = Builder::new();
        builder.initial_connection_window_size(64 << 20);
        let (requests, mut connection) = soon(builder.handshake(io)).await.expect("HTTP/2");
        let mut ping = connection.ping_pong().expect("asked for once");
        let driven = tokio::spawn(connection);
        // Behind it the gateway's SETTINGS are known.
        soon(ping.ping(Ping::opaque())).await.expect("a pong");
        Self { requests, driven }
    }

    /// Sends a request, with or without more behind it.
    pub async fn send(
        &mut self,
        request: request::Builder,
        end: bool,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let request = request.body(()).expect("a request");
        std::future::poll_fn(|cx| self.requests.poll_ready(cx)).await.expect("an open connection");
        self.requests.send_request(request, end).expect("a request that may be sent")
    }

    /// Asks without a body.
    pub async fn ask(&mut self, request: request::Builder) -> Answer {
        let (answer, _out) = self.send(request, true).await;
        whole(answer).await.expect("an answer")
    }

    /// Asks with a body.
    pub async fn ask_with(&mut self, request: request::Builder, body: &[u8]) -> Answer {
        let (answer, mut out) = self.send(request, false).await;
        send_all(&mut out, body).await.expect("it is taken");
        out.send_data(Bytes::new(), true).expect("an open stream");
        whole(answer).await.expect("an answer")
    }

    /// Asks for a WebSocket that it does not get.
    pub async fn ask_in_vain(&mut self, request: request::Builder) -> Answer {
        let (answer, _out) = self.send(request, false).await;
        whole(answer).await.expect("an answer")
    }

    /// Opens a WebSocket.
    pub async fn open(&mut self, request: request::Builder) -> Tunnel {
        let (answer, out) = self.send(request, false).await;
        let answer = soon(answer).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let (head, body) = answer.into_parts();
        Tunnel { headers: head.headers, out, body, read: Vec::new() }
    }

    /// Waits for the end of the connection; the reason of a GOAWAY that is an error.
    pub async fn ended(self) -> Option<Reason> {
        drop(self.requests);
        match soon(self.driven).await.expect("it is not cancelled") {
            Ok(()) => None,
            Err(error) => error.reason(),
        }
    }

    /// Waits until the gateway has said that it takes no more streams.
    pub async fn told_to_go(&mut self) {
        let told = async {
            while std::future::poll_fn(|cx| self.requests.poll_ready(cx)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        soon(told).await;
    }
}

/// Reads an answer to its end.
pub async fn whole(answer: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut stream) = soon(answer).await?.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = soon(stream.data()).await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    let trailers = soon(stream.trailers()).await?;
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, trailers })
}

/// Sends all of it, as fast as it is taken.
pub async fn send_all(out: &mut SendStream<Bytes>, mut bytes: &[u8]) -> Result<(), h2::Error> {
    while bytes.has_remaining() {
        out.reserve_capacity(bytes.len());
        let Some(len) = std::future::poll_fn(|cx| out.poll_capacity(cx)).await else {
            return Err(Reason::STREAM_CLOSED.into());
        };
        let len = len?.min(bytes.len());
        out.send_data(Bytes::copy_from_slice(&bytes[..len]), false)?;
        bytes = &bytes[len..];
    }
    Ok(())
}

impl Answer {
    /// Its only header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Tunnel {
    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(send_all(&mut self.out, bytes.as_ref())).await.expect("it is taken");
    }

    /// Sends a frame of a client.
    pub async fn send_frame(&mut self, opcode: u8, payload: impl AsRef<[u8]>) {
        self.send(frames::masked(opcode, payload.as_ref())).await;
    }

    /// The next frame, or how the stream ends before it.
    pub async fn try_frame(&mut self) -> Result<Frame, End> {
        loop {
            if let Some((frame, len)) = Frame::parse(&self.read) {
                self.read.drain(..len);
                return Ok(frame);
            }
            let piece = match soon(self.body.data()).await {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Err(End::Reset(error.reason())),
                None => {
                    assert!(self.read.is_empty(), "the stream ended within a frame");
                    return Err(End::Stream);
                }
            };
            self.body.flow_control().release_capacity(piece.len()).expect("it was held");
            self.read.extend_from_slice(&piece);
        }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Frame {
        self.try_frame().await.expect("a frame")
    }

    /// How the stream ends; no frame comes before that.
    pub async fn end(&mut self) -> End {
        match self.try_frame().await {
            Ok(frame) => panic!("a frame comes before the end: {frame:?}"),
            Err(end) => end,
        }
    }

    /// Sends text and reads its echo.
    pub async fn expect_echo(&mut self, text: &str) {
        self.send_frame(TEXT, text).await;
        let echo = self.frame().await;
        assert_eq!((echo.opcode, echo.payload.len()), (TEXT, text.len()));
        assert!(echo.payload == text.as_bytes());
    }

    /// Ends our direction.
    pub fn finish(&mut self) {
        self.out.send_data(Bytes::new(), true).expect("an open stream");
    }

    /// Closes a session from this side, to the end of the stream in both directions.
    pub async fn close(mut self) {
        self.send_frame(frames::CLOSE, 1000u16.to_be_bytes()).await;
        assert_eq!(self.frame().await.close_code(), Some(1000));
        assert_eq!(self.end().await, End::Stream);
        self.finish();
    }
}

/// The preface of a client, and empty SETTINGS.
pub const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame. RFC 9113 §4.1.
pub fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS that end the stream's request, each field a literal. RFC 7541 §6.2.2.
pub fn raw_headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    const END_STREAM_AND_HEADERS: u8 = 5;
    raw(1, END_STREAM_AND_HEADERS, stream, &literals(fields))
}

/// A header block of literals.
pub fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let len = text.len();
        // RFC 7541 §5.1: 127 and more go on in the next bytes.
        let mut bytes = if len < 127 { vec![len as u8] } else { vec![127] };
        if let Some(mut rest) = len.checked_sub(127) {
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
        [bytes, text.as_bytes().to_vec()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A frame that was read.
#[derive(Debug)]
pub struct RawFrame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Client {
    /// The next frame of HTTP/2.
    pub fn raw_frame(&mut self) -> RawFrame {
        let head = self.exactly(9);
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        RawFrame { kind: head[3], stream, payload: self.exactly(len) }
    }

    /// The code of the RST_STREAM of a stream, or `None` when its HEADERS come first.
    pub fn raw_reset(&mut self, stream: u32) -> Option<u32> {
        loop {
            let frame = self.raw_frame();
            match (frame.kind, frame.stream == stream) {
                (1, true) => return None,
                (3, true) => return frame.payload.first_chunk().map(|code| u32::from_be_bytes(*code)),
                _ => {}
            }
        }
    }

    /// The code of the next GOAWAY.
    pub fn raw_goaway(&mut self) -> u32 {
        loop {
            let frame = self.raw_frame();
            if let (7, [_, _, _, _, code @ ..]) = (frame.kind, &frame.payload[..]) {
                return code.first_chunk().map(|code| u32::from_be_bytes(*code)).expect("a code");
            }
        }
    }
}
