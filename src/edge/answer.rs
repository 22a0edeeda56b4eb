//! Answers of our own: a refusal as an HTTP response. RFC 9457.
//!
//! Over HTTP/1.1 they are written straight to the connection, which then ends; streams of HTTP/2, and plain requests that
//! Pingora has already read, are answered through [`document`] by the caller.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use http::header;
use pingora::http::ResponseHeader;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;

use super::head::Protocol;
use super::socket::Socket;
use crate::cause::Refusal;

/// How long a client that got its last answer may be silent before its connection is closed.
pub const LINGER: Duration = Duration::from_secs(1);

/// How long its request is read and dropped, at most.
pub const LINGER_WHOLE: Duration = Duration::from_secs(10);

/// How much of it is read and dropped, in bytes. A client that sends more without a look at its answer loses it.
const LINGER_BYTES: usize = 64 << 20;

/// What the body of a refusal is. RFC 9457 §3.
const PROBLEM: &str = "application/problem+json";

/// A refusal as an HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The problem document.
    pub body: String,
    /// What goes with it besides `content-type` and `content-length`.
    pub headers: Vec<(&'static str, String)>,
}

/// The answer to a refusal of a request that came so; `None` where there is none of ours to give.
pub fn document(refusal: &Refusal, protocol: Protocol) -> Option<Answer> {
    let row = refusal.row();
    let status = protocol.status(row.status?);
    let body = format!(r#"{{"type":"urn:sluicegate:{}","title":"{}","status":{status}}}"#, row.name, row.title) + "\n";
    let mut headers = Vec::new();
    match (refusal, status) {
        (Refusal::HandshakeRate(after), _) => headers.push(("retry-after", whole_seconds(*after).to_string())),
        (_, 429 | 503) => headers.push(("retry-after", jittered_seconds().to_string())),
        (Refusal::UnsupportedVersion, _) => headers.push(("sec-websocket-version", "13".to_owned())),
        (Refusal::ConnectMethod, _) => headers.push(("allow", "GET, HEAD, POST, PUT, PATCH, DELETE".to_owned())),
        _ => {}
    }
    if status == 426 {
        headers.push(("upgrade", "websocket".to_owned()));
    }
    Some(Answer { status, body, headers })
}

impl Answer {
    /// Its head, for who writes it in a form of its own.
    ///
    /// # Errors
    /// None: what is in it is ours.
    pub fn to_header(&self) -> pingora::Result<ResponseHeader> {
        let mut head = ResponseHeader::build_no_case(self.status, Some(self.headers.len() + 2))?;
        for (name, value) in &self.headers {
            head.insert_header(*name, value)?;
        }
        head.insert_header(header::CONTENT_TYPE, PROBLEM)?;
        head.insert_header(header::CONTENT_LENGTH, self.body.len())?;
        Ok(head)
    }

    /// The answer on the wire of HTTP/1.1, before the connection is closed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason.unwrap_or("Refused"));
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        // RFC 9110 §15.5.22 asks for Upgrade in a 426, and §7.8 for its name in Connection.
        let connection = if self.status == 426 { "Upgrade, close" } else { "close" };
        head += &format!(
            "content-type: {PROBLEM}\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n",
            self.body.len()
        );
        (head + &self.body).into_bytes()
    }
}

/// Answers a refusal, and ends the connection so that the client can read the answer.
pub async fn refuse(mut io: Socket, refusal: &Refusal) {
    if let Some(answer) = document(refusal, Protocol::Http1) {
        // A client that is gone, or takes no answer in time, gets none.
        let _ = timeout(LINGER, io.send_all(&answer.to_bytes())).await;
    }
    end(io).await;
}

/// Ends a connection after its last answer: what still arrives is read and dropped for a moment, since the kernel
/// would answer it with a reset that destroys the answer on its way. RFC 9112 §9.6.
pub async fn end(mut io: Socket) {
    let _ = timeout(LINGER_WHOLE, async {
        if io.shutdown().await.is_ok() {
            let mut dropped = 0;
            while let Ok(Ok(len @ 1..)) = timeout(LINGER, drop_some(&mut io)).await {
                dropped += len;
                if dropped > LINGER_BYTES {
                    break;
                }
            }
        }
    })
    .await;
}

/// Reads and drops what comes next. No buffer outlives a poll: thousands may be refused at once for want of memory.
async fn drop_some(io: &mut Socket) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        let mut scratch = [MaybeUninit::uninit(); 8 << 10];
        let mut buffer = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).max(1) as u64
}

/// Between 1 and 5: clients that are sent away together should not come back together.
fn jittered_seconds() -> u64 {
    1 + rand::random::<u64>() % 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_with_a_status_has_a_whole_answer() {
        for refusal in Refusal::ALL {
            let row = refusal.row();
            let Some(answer) = document(&refusal, Protocol::Http1) else {
                assert_eq!(row.status, None);
                continue;
            };
            let bytes = String::from_utf8(answer.to_bytes()).unwrap();
            let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())));
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["type"], format!("urn:sluicegate:{}", row.name));
            assert_eq!(head.contains("retry-after: "), matches!(answer.status, 429 | 503), "{head}");
            assert_eq!(head.contains("upgrade: websocket"), answer.status == 426);
        }
    }

    #[test]
    fn over_http2_nothing_asks_for_an_upgrade() {
        for refusal in [Refusal::UnsupportedVersion, Refusal::UpgradeRequired] {
            let answer = document(&refusal, Protocol::Http2).unwrap();
            assert_eq!(answer.status, 400);
            assert!(answer.body.contains("\"status\":400"), "{}", answer.body);
            let head = answer.to_header().unwrap();
            assert!(!head.headers.contains_key("upgrade"), "{head:?}");
        }
    }

    #[test]
    fn retry_after_is_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1001)), 2);
    }
}
