//! Where publishers publish: `POST /publish`, in the shape of GRIP, on a listener of its own.
//!
//! A publication is answered with 200 when the engine has stored it, and never before: what cannot be stored is a 503,
//! and may be published again, since an item with an id is stored once. Pingora parses and writes the HTTP, as it does for
//! the admin endpoint.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::backplane::Backplane;
use crate::backplane::engine::{Channel, EngineError, Item as Stored, MessageId};
use crate::config::Publish;
use crate::events::Event;
use crate::grip::item::Item;
use crate::grip::publish::{self, AnswerType, NOT_ACCEPTABLE, PublishError};

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;

/// From accept, or from the end of an answer, to the end of a head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// For the body, and for the answer, each.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a failed accept, which is for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// When a publisher is to try again, in seconds: an engine is mostly back, or another in its place, by then.
const RETRY_AFTER: &str = "1";

/// Serves until `stopped` is true.
pub async fn serve(
    listener: TcpListener,
    backplane: Arc<Backplane>,
    config: Publish,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let publisher = Arc::new(Publisher { backplane, config });
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((place, accept(&listener).await?))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = stopped.wait_for(|down| *down) => return,
        };
        match accepted {
            Ok((place, stream)) => {
                let publisher = Arc::clone(&publisher);
                tokio::spawn(async move {
                    let mut stream: Option<Stream> = Some(Box::new(L4Stream::from(stream)));
                    while let Some(next) = stream {
                        stream = publisher.serve(next).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("publish listener cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection. Head and body of an answer are two writes, and without this the second one waits until the
/// publisher has acknowledged the first, which it delays: 40 ms for each publication on a connection that is kept.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // One that has gone already is found out when it is read.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// What publishers reach.
struct Publisher {
    backplane: Arc<Backplane>,
    config: Publish,
}

/// An answer; those of `publish` are text, as GRIP has them.
struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
    header: Option<(&'static str, &'static str)>,
}

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain", body: body.into(), header: None }
    }

    fn with(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl Publisher {
    /// Answers one request; the connection, if another may follow.
    async fn serve(&self, stream: Stream) -> Option<Stream> {
        let mut session = ServerSession::new_http1(stream);
        match timeout(HEAD_TIMEOUT, session.read_request()).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return None,
            Ok(Err(_)) => {
                session.set_keepalive(None);
                let answer = Answer::text(400, "Request is malformed.\n");
                let _ = timeout(BODY_TIMEOUT, write(&mut session, answer)).await;
                return None;
            }
        }
        session.set_keepalive(Some(HEAD_TIMEOUT.as_secs()));
        let answer = match self.refuse(session.req_header()) {
            Some(refused) => {
                // Its body is not read, and is not taken for a request either.
                session.set_keepalive(None);
                refused
            }
            None => match timeout(BODY_TIMEOUT, self.read_body(&mut session)).await {
                Ok(Ok(body)) => self.publish(session.req_header(), &body).await,
                Ok(Err(answer)) => {
                    session.set_keepalive(None);
                    answer
                }
                Err(_) => {
                    session.set_keepalive(None);
                    Answer::text(408, "Body did not come in time.\n")
                }
            },
        };
        if answer.status >= 500 {
            self.backplane.metrics.unavailable.inc();
        } else if answer.status >= 400 {
            self.backplane.metrics.refused.inc();
        }
        timeout(BODY_TIMEOUT, write(&mut session, answer)).await.ok()?.ok()?;
        let (stream, ahead) = timeout(BODY_TIMEOUT, session.finish()).await.ok()?.ok()??.into_parts();
        // Publishers wait for their answers: what came before it is not for us.
        ahead.is_none_or(|ahead| ahead.is_empty()).then_some(stream)
    }

    /// What needs no body to be answered.
    fn refuse(&self, request: &RequestHeader) -> Option<Answer> {
        let path = request.uri.path();
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() && request.method == http::Method::GET {
            return Some(Answer::text(200, "Hello\n"));
        }
        if path != "/publish" {
            return Some(Answer::text(404, "Not Found\n"));
        }
        if let Some(answer) = self.authorize(request) {
            return Some(answer);
        }
        if request.method != http::Method::POST {
            return Some(Answer::text(405, "Method Not Allowed\n").with("allow", "POST"));
        }
        let head_bytes: usize = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if head_bytes > self.backplane.limits.publish_head_bytes {
            return Some(Answer::text(431, "Head is too long.\n"));
        }
        answer_type(request).is_none().then(|| Answer::text(406, NOT_ACCEPTABLE))
    }

    /// Whether a request may publish. Without a token a page of a browser on this machine could: those name an Origin.
    fn authorize(&self, request: &RequestHeader) -> Option<Answer> {
        let Publish { token, jwt, .. } = &self.config;
        if token.is_none() && jwt.is_none() {
            let foreign = request.headers.contains_key(header::ORIGIN);
            return foreign.then(|| Answer::text(403, "A page must not publish.\n"));
        }
        let mut lines = request.headers.get_all(header::AUTHORIZATION).into_iter();
        let bearer = match (lines.next(), lines.next()) {
            (Some(line), None) => bearer(line.as_bytes()),
            _ => None,
        };
        let now_secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let allowed = bearer.is_some_and(|presented| {
            token.as_ref().is_some_and(|token| token.matches(presented))
                || jwt.as_ref().is_some_and(|key| key.verify(presented, None, now_secs).is_ok())
        });
        (!allowed).then(|| Answer::text(401, "Unauthorized\n").with("www-authenticate", "Bearer"))
    }

    async fn read_body(&self, session: &mut ServerSession) -> Result<Vec<u8>, Answer> {
        let mut body = Vec::new();
        loop {
            match session.read_request_body().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => return Ok(body),
                Err(_) => return Err(Answer::text(400, "Body is malformed.\n")),
            }
            if body.len() > self.backplane.limits.publish_bytes {
                return Err(Answer::text(413, format!("{}\n", PublishError::TooLong)));
            }
        }
    }

    async fn publish(&self, request: &RequestHeader, body: &[u8]) -> Answer {
        let items = match publish::parse(body, &self.backplane.limits) {
            Ok(items) => items,
            Err(error) => return Answer::text(400, format!("{error}\n")),
        };
        let key = request.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        // All are made before the first is stored: a request is taken whole or not at all.
        let made: Result<Vec<_>, Answer> =
            items.iter().enumerate().map(|(at, item)| self.stored(item, key, at)).collect();
        let made = match made {
            Ok(made) => made,
            Err(answer) => return answer,
        };
        for (channel, item) in made {
            match self.backplane.regions.publish(&channel, &item).await {
                Ok(placed) => self.backplane.metrics.placed(placed.failed_over, placed.published.repeated),
                Err(error) => {
                    if let EngineError::TooLarge { .. } = error.reason {
                        return Answer::text(413, format!("Item is too large: {error}\n"));
                    }
                    Event::new("publish_failed").field("detail", error.to_string()).emit();
                    let text = "Item could not be stored. Publish it again: with an id it is stored once.\n";
                    return Answer::text(503, text).with("retry-after", RETRY_AFTER);
                }
            }
        }
        let answer = answer_type(request).unwrap_or(AnswerType::Text);
        let content_type = match answer {
            AnswerType::Text => "text/plain",
            AnswerType::Json => "application/json",
        };
        Answer { status: 200, content_type, body: answer.published().to_owned(), header: None }
    }

    /// What the engine is given of an item. One without an id gets one of ours, unless the request has a key.
    fn stored(&self, item: &Item, key: Option<&str>, at: usize) -> Result<(Channel, Stored), Answer> {
        let id = match (&item.id, key) {
            (Some(id), _) => MessageId::new(id),
            (None, Some(key)) => MessageId::new(&format!("{key}:{at}")),
            (None, None) => MessageId::new(&format!("{:032x}", rand::random::<u128>())),
        };
        let too_long = |what: &str| Answer::text(400, format!("Invalid format: {what} is too long\n"));
        let id = id.map_err(|_| too_long("'id'"))?;
        let channel = Channel::new(&item.channel).map_err(|_| too_long("'channel'"))?;
        if self.backplane.regions.is_foreign(&channel) {
            return Err(Answer::text(400, "Channel is filled by its own producer: add to its stream in Redis.\n"));
        }
        let mut payload = Vec::new();
        item.encode(&mut payload);
        Ok((channel, Stored { id, key: None, payload: Bytes::from(payload) }))
    }
}

fn answer_type(request: &RequestHeader) -> Option<AnswerType> {
    AnswerType::negotiate(request.headers.get(header::ACCEPT).map(|value| value.as_bytes()))
}

/// The token of `Bearer TOKEN`. RFC 6750 §2.1.
fn bearer(line: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = line.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

async fn write(session: &mut ServerSession, answer: Answer) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(4))?;
    head.insert_header("content-type", answer.content_type)?;
    head.insert_header("content-length", answer.body.len())?;
    if let Some((name, value)) = answer.header {
        head.insert_header(name, value)?;
    }
    session.write_response_header(Box::new(head)).await?;
    session.write_response_body(Bytes::from(answer.body), true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_does_not_wait_for_the_publishers_acknowledgement() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _publisher = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(accept(&listener).await.unwrap().nodelay().unwrap());
    }
}
