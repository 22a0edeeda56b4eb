//! Plain requests of a rule with a backplane, whose backend may have them held: as a stream, or until one response is
//! published.
//!
//! These requests are made here and not by Pingora's proxy, which cannot wait between the backend's response and the
//! client's. What comes back without an instruction is relayed as it comes. A request whose body is longer than
//! [`MAX_BODY_BYTES`], or of unknown length, goes through the proxy, and cannot be held.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Plain;
use crate::backplane::backend::AskError;
use crate::backplane::engine::Channel;
use crate::backplane::hold::{Held, Next};
use crate::edge::asking::{Begun, ClientBackend};
use crate::edge::backplane::{self, RuleBackplane};
use crate::edge::{forwarding, sticky};
use crate::grip::control::KeepAliveMode;
use crate::grip::instruct::{self, HoldMode, Instruction, KeepAlive};
use crate::grip::item::{Body, Response};
use crate::grip::meta::Meta;

/// The longest body of a request that can be held, in bytes: it is kept, to be sent again.
const MAX_BODY_BYTES: usize = 100_000;

/// How often a link is asked before the stream ends.
const LINK_TRIES: u32 = 3;

/// How many links in a row may bring nothing and lead to another, and how often in a row a request is made again because
/// its response was old: a backend that says the same again and again would be asked for ever.
const LINKS: u32 = 10;

/// Serves a request, unless it is not one for here: then nothing of it was read, and `false` is returned.
pub(super) async fn serve(
    session: &mut Session,
    plain: &mut Plain,
    stopped: &watch::Receiver<bool>,
) -> pingora::Result<bool> {
    let Some(backplane) = &plain.routed.rule.backplane else { return Ok(false) };
    let Some(length) = body_bytes(session) else { return Ok(false) };
    let limits = backplane.shared.limits.clone();
    let head = upstream_request(session, plain)?;
    let routed = &plain.routed;
    let backend =
        backplane.backend(&routed.upstream, &routed.choice.preference, &head, routed.rule.http.response_timeout);
    let body = if length == 0 { Bytes::new() } else { read_body(session, length).await? };
    let mut request = Request { session, plain, backend, stopped: stopped.clone() };
    let mut last = Vec::new();
    for again in 0.. {
        let mut begun = request.ask(&head, body.clone(), &last).await?;
        let answer = &begun.answer.headers;
        if !answer.keys().any(instruct::is_grip) && !instruct::has_body(answer) {
            request.relay(begun).await?;
            return Ok(true);
        }
        let idle = request.idle();
        let content = begun.read_whole(limits.response_bytes, idle).await.map_err(error_of)?;
        let asker = request.backplane()?.asker.clone();
        let answer = *begun.end(&asker).await;
        let mut instruction = instruct::from_response(answer.status.as_u16(), &answer.headers, &content, &limits)
            .map_err(|error| request.malformed(error.to_string()))?;
        if instruction.hold.is_some() && answer.headers.contains_key(header::CONTENT_ENCODING) {
            return Err(request.malformed("a response that is to be held is compressed".to_owned()));
        }
        if let Some(hold) = &instruction.hold {
            request.check(hold)?;
        }
        let (answer, content) = response(&mut instruction, answer, content)?;
        let is_head = head.method == Method::HEAD;
        match instruction.hold.as_ref().map(|hold| hold.mode) {
            Some(HoldMode::Stream) if !is_head => request.stream(answer, content, instruction).await?,
            None if instruction.next.is_some() && !is_head => request.stream(answer, content, instruction).await?,
            Some(HoldMode::Response) if !is_head => match request.wait(instruction, &content).await? {
                Waited::Old(behind) if again < LINKS => {
                    last = behind;
                    continue;
                }
                Waited::Original | Waited::Old(_) => request.answer(answer, content).await?,
                Waited::Published(answer, content) => request.answer(*answer, content).await?,
            },
            _ => request.answer(answer, content).await?,
        }
        return Ok(true);
    }
    Ok(true)
}

/// The length of a request's body, where it is known and short enough to be kept.
fn body_bytes(session: &mut Session) -> Option<usize> {
    let headers = &session.req_header().headers;
    if headers.contains_key(header::TRANSFER_ENCODING) || headers.contains_key(header::EXPECT) {
        return None;
    }
    match headers.get(header::CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok().filter(|length| *length <= MAX_BODY_BYTES),
        None => session.as_downstream_mut().is_body_empty().then_some(0),
    }
}

async fn read_body(session: &mut Session, length: usize) -> pingora::Result<Bytes> {
    let mut body = BytesMut::with_capacity(length);
    while let Some(piece) = session.as_downstream_mut().read_request_body().await.map_err(|error| error.into_down())? {
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// The request as the backend sees it, without what is new in each that is made of it.
fn upstream_request(session: &Session, plain: &Plain) -> pingora::Result<RequestHeader> {
    let mut head = session.req_header().clone();
    let rule = &plain.routed.rule;
    forwarding::strip_hop_by_hop(&mut head).map_err(|_| Error::new_down(ErrorType::InvalidHTTPHeader))?;
    head.remove_header(&header::CONTENT_LENGTH);
    head.set_version(Version::HTTP_11);
    forwarding::tell_client(&mut head, &plain.routed.request, &plain.source);
    backplane::strip(&mut head);
    forwarding::apply(&rule.request_headers, &mut head);
    forwarding::rewrite(rule.rewrite.as_ref(), &mut head)?;
    Ok(head)
}

/// What the client gets, of an instruction or of the backend's own response.
fn response(
    instruction: &mut Instruction,
    answer: ResponseHeader,
    content: Bytes,
) -> pingora::Result<(ResponseHeader, Bytes)> {
    if let Some(given) = instruction.response.take() {
        let code = given.code.unwrap_or(answer.status.as_u16());
        let mut head = ResponseHeader::build(code, Some(given.headers.len()))?;
        if !given.reason.is_empty() {
            head.set_reason_phrase(Some(&given.reason))?;
        }
        for (name, value) in given.headers {
            head.append_header(name, value)?;
        }
        return Ok((head, given.body));
    }
    let mut head = answer;
    let hidden = |name: &HeaderName| {
        instruct::is_grip(name) || instruction.expose.as_ref().is_some_and(|exposed| !exposed.contains(name))
    };
    let hidden: Vec<_> = head.headers.keys().filter(|name| hidden(name)).cloned().collect();
    for name in hidden {
        head.remove_header(&name);
    }
    if let Some((code, reason)) = &instruction.status {
        head.set_status(*code)?;
        head.set_reason_phrase(Some(reason.as_str()).filter(|reason| !reason.is_empty()))?;
    }
    Ok((head, content))
}

/// What waiting for a response came to.
enum Waited {
    /// A response was published.
    Published(Box<ResponseHeader>, Bytes),
    /// None was in time: the client gets the backend's own.
    Original,
    /// There is something newer than the backend's own response: the request is to be made again, with the last id of
    /// each channel.
    Old(Vec<(String, String)>),
}

/// What reading a stream came to.
enum Read {
    /// A publisher has ended it, the client is too slow, or the process ends.
    Over,
    /// The next link is to be asked.
    Link,
}

/// A client's request under way.
struct Request<'a> {
    session: &'a mut Session,
    plain: &'a mut Plain,
    backend: Arc<ClientBackend>,
    stopped: watch::Receiver<bool>,
}

impl Request<'_> {
    fn backplane(&self) -> pingora::Result<&RuleBackplane> {
        // It was there when the request came here.
        self.plain.routed.rule.backplane.as_ref().ok_or_else(|| Error::new(ErrorType::InternalError))
    }

    /// How long a body may pause.
    fn idle(&self) -> Duration {
        self.plain.routed.rule.http.idle_timeout
    }

    fn malformed(&mut self, detail: String) -> Box<Error> {
        self.plain.detail = Some(detail);
        Error::new_up(ErrorType::InvalidHTTPHeader)
    }

    /// Makes the request. One that a kept connection has lost may be made again over another: RFC 9112 §9.3.1.
    async fn ask(&mut self, head: &RequestHeader, body: Bytes, last: &[(String, String)]) -> pingora::Result<Begun> {
        let request = request(&self.backend, head, &body, last)?;
        let answer = match self.backend.begin(request.clone(), body.clone()).await {
            Err(AskError::Broken { .. }) if head.method.is_idempotent() => self.backend.begin(request, body).await,
            answer => answer,
        };
        self.plain.tried.extend(self.backend.asked.lock().take());
        answer.map_err(error_of)
    }

    /// The head of a response as the client gets it.
    fn head(&self, mut head: ResponseHeader) -> pingora::Result<ResponseHeader> {
        forwarding::strip_answer(&mut head);
        let routed = &self.plain.routed;
        if let Some(endpoint) = self.plain.tried.last()
            && let Some(cookie) =
                sticky::set_cookie(&routed.rule, &routed.upstream, &routed.request, &routed.choice, endpoint)
        {
            head.append_header(header::SET_COOKIE, cookie)?;
        }
        forwarding::apply(&routed.rule.response_headers, &mut head);
        Ok(head)
    }

    /// Passes a response on as it comes.
    async fn relay(&mut self, mut begun: Begun) -> pingora::Result<()> {
        let head = self.head(*begun.answer.clone())?;
        let length = head.headers.get(header::CONTENT_LENGTH).cloned();
        self.begin(head, length).await?;
        let idle = self.idle();
        while let Some(piece) = begun.read(idle).await.map_err(error_of)? {
            self.write(piece).await?;
        }
        let asker = self.backplane()?.asker.clone();
        begun.end(&asker).await;
        self.finish().await
    }

    /// Answers with a whole response.
    async fn answer(&mut self, head: ResponseHeader, body: Bytes) -> pingora::Result<()> {
        let head = self.head(head)?;
        self.begin(head, Some(HeaderValue::from(body.len()))).await?;
        self.write(body).await?;
        self.finish().await
    }

    /// Writes a head. Without a length the body ends as the client's version of HTTP lets it. RFC 9112 §6.3.
    async fn begin(&mut self, mut head: ResponseHeader, length: Option<HeaderValue>) -> pingora::Result<()> {
        head.remove_header(&header::TRANSFER_ENCODING);
        head.remove_header(&header::CONTENT_LENGTH);
        let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match length {
            Some(length) if !bodiless => head.insert_header(header::CONTENT_LENGTH, length)?,
            None if !bodiless && self.session.req_header().version == Version::HTTP_11 => {
                head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
            None if self.session.req_header().version < Version::HTTP_11 => {
                self.session.as_downstream_mut().set_keepalive(None);
            }
            _ => {}
        }
        self.session.as_downstream_mut().write_response_header(Box::new(head)).await.map_err(|error| error.into_down())
    }

    async fn write(&mut self, piece: Bytes) -> pingora::Result<()> {
        let written = self.session.as_downstream_mut().write_response_body(piece, false).await;
        written.map_err(|error| error.into_down())
    }

    async fn finish(&mut self) -> pingora::Result<()> {
        self.session.as_downstream_mut().finish_body().await.map_err(|error| error.into_down())
    }

    /// Refuses a hold on a channel of newest values: a response waits for one item, and a stream has all of them.
    fn check(&mut self, hold: &instruct::Hold) -> pingora::Result<()> {
        let hub = self.backplane()?.shared.hub.clone();
        let conflates = |of: &instruct::Channel| Channel::new(&of.name).is_ok_and(|channel| hub.conflates(&channel));
        match hold.channels.iter().find(|of| conflates(of)) {
            Some(of) => Err(self.malformed(format!("a hold on {:?}, a channel of newest values", of.name))),
            None => Ok(()),
        }
    }

    fn held(&mut self, hold: instruct::Hold, meta: Meta) -> pingora::Result<Held> {
        self.check(&hold)?;
        let backplane = self.backplane()?;
        let member = backplane.member(&self.plain.routed.rule.metrics);
        Ok(Held::new(member, hold, meta, &backplane.shared.limits))
    }

    /// Sends a response, and behind its body what is published, until it ends.
    async fn stream(&mut self, head: ResponseHeader, body: Bytes, first: Instruction) -> pingora::Result<()> {
        let head = self.head(head)?;
        self.begin(head, None).await?;
        self.write(body).await?;
        let (mut instruction, mut meta, mut last, mut empty) = (first, Meta::default(), Vec::new(), 0);
        loop {
            if let Some(hold) = instruction.hold.take() {
                let keep_alive = hold.keep_alive.clone();
                let mut held = self.held(hold, std::mem::take(&mut meta))?;
                let link_after = instruction.next.as_ref().map(|next| Duration::from_secs(next.timeout_secs.into()));
                if matches!(self.read(&mut held, keep_alive, link_after).await?, Read::Over) {
                    break;
                }
                (last, meta) = (held.last(), held.into_meta());
            }
            let Some(next) = instruction.next.take() else { break };
            let link = self.follow(next.link, std::mem::take(&mut last));
            let Some((body, following)) = link.await? else { break };
            empty = if body.is_empty() { empty + 1 } else { 0 };
            if empty > LINKS {
                break;
            }
            self.write(body).await?;
            instruction = following;
        }
        self.finish().await
    }

    /// Writes what is published.
    async fn read(
        &mut self,
        held: &mut Held,
        keep_alive: Option<KeepAlive>,
        link_after: Option<Duration>,
    ) -> pingora::Result<Read> {
        let (mut heard, mut written) = (Instant::now(), Instant::now());
        loop {
            let quiet =
                keep_alive.as_ref().map(|keep_alive| written + Duration::from_secs(keep_alive.timeout_secs.into()));
            let silent = link_after.map(|after| heard + after);
            tokio::select! {
                biased;
                () = ends(&mut self.stopped) => return Ok(Read::Over),
                gone = gone(self.session) => return Err(gone),
                next = held.next() => match next {
                    Next::Body(piece) => {
                        self.write(piece).await?;
                        heard = Instant::now();
                        if keep_alive.as_ref().is_some_and(|keep_alive| keep_alive.mode == KeepAliveMode::Idle) {
                            written = heard;
                        }
                    }
                    Next::Ask => return Ok(Read::Link),
                    Next::Close | Next::Overrun | Next::Response(_) => return Ok(Read::Over),
                },
                () = until(quiet) => {
                    if let Some(keep_alive) = &keep_alive {
                        self.write(keep_alive.content.clone()).await?;
                    }
                    written = Instant::now();
                }
                () = until(silent) => return Ok(Read::Link),
            }
        }
    }

    /// Asks a link for what goes on behind the body. `None`: nothing does.
    async fn follow(
        &mut self,
        link: String,
        last: Vec<(String, String)>,
    ) -> pingora::Result<Option<(Bytes, Instruction)>> {
        let Some(target) = self.own_path(&link) else {
            log::warn!("rule {}: a Grip-Link to another origin is not followed", self.plain.routed.rule.name);
            return Ok(None);
        };
        let backend = self.backend.clone();
        let (limits, idle) = (self.backplane()?.shared.limits.clone(), self.idle());
        let asked = async move {
            for again in 0..LINK_TRIES {
                let mut head = RequestHeader::build(Method::GET, target.as_bytes(), None)?;
                for (name, value) in &backend.headers.headers() {
                    head.append_header(name.clone(), value.clone())?;
                }
                let request = request(&backend, &head, &Bytes::new(), &last)?;
                if let Ok(mut begun) = backend.begin(request, Bytes::new()).await
                    && begun.answer.status.as_u16() < 500
                    && let Ok(body) = begun.read_whole(limits.response_bytes, idle).await
                {
                    let head = begun.end(&backend.asker).await;
                    let instruction = instruct::from_response(head.status.as_u16(), &head.headers, &body, &limits);
                    return Ok(instruction.ok().filter(|_| head.status == StatusCode::OK).map(|mut instruction| {
                        let body = instruction.response.take().map_or(body, |response| response.body);
                        (body, instruction)
                    }));
                }
                tokio::time::sleep(Duration::from_secs(1 << again)).await;
            }
            Ok(None)
        };
        tokio::select! {
            biased;
            () = ends(&mut self.stopped) => Ok(None),
            gone = gone(self.session) => Err(gone),
            asked = asked => asked,
        }
    }

    /// The path and query of a link, where it is below the backend's own origin.
    fn own_path(&self, link: &str) -> Option<String> {
        let uri: http::Uri = link.parse().ok()?;
        let host = self.session.req_header().headers.get(header::HOST).map(|host| host.as_bytes());
        let own = uri.authority().is_none_or(|authority| Some(authority.as_str().as_bytes()) == host);
        let target = uri.path_and_query()?.as_str();
        (own && target.starts_with('/')).then(|| target.to_owned())
    }

    /// Waits until a response is published, or its time is over.
    async fn wait(&mut self, mut instruction: Instruction, original: &Bytes) -> pingora::Result<Waited> {
        let Some(hold) = instruction.hold.take() else { return Ok(Waited::Original) };
        let end = Instant::now() + Duration::from_secs(hold.timeout_secs.into());
        let mut held = self.held(hold, Meta::default())?;
        loop {
            tokio::select! {
                biased;
                () = ends(&mut self.stopped) => return Ok(Waited::Original),
                gone = gone(self.session) => return Err(gone),
                next = held.next() => match next {
                    Next::Response(response) => match published(*response, original) {
                        Some((head, body)) => return Ok(Waited::Published(Box::new(head), body)),
                        // What cannot be made of the backend's own response is for nobody.
                        None => continue,
                    },
                    Next::Ask => return Ok(Waited::Old(held.last())),
                    Next::Close => return Err(Error::new_down(ErrorType::ConnectionClosed)),
                    Next::Overrun | Next::Body(_) => return Ok(Waited::Original),
                },
                () = sleep_until(end) => return Ok(Waited::Original),
            }
        }
    }
}

/// A request to the backend, with what is new in each.
fn request(
    backend: &ClientBackend,
    head: &RequestHeader,
    body: &Bytes,
    last: &[(String, String)],
) -> pingora::Result<RequestHeader> {
    let mut request = head.clone();
    let last: Vec<_> = last.iter().map(|(channel, id)| (channel.as_str(), id.as_str())).collect();
    backend.backplane.introduce(&mut request, &last)?;
    if !body.is_empty() {
        request.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    }
    Ok(request)
}

/// A published response. `None`: it changes the backend's own, and cannot.
fn published(response: Response, original: &[u8]) -> Option<(ResponseHeader, Bytes)> {
    let body = match response.body {
        Body::Whole(body) => body,
        Body::Patch(patch) => {
            let mut document: serde_json::Value = serde_json::from_slice(original).ok()?;
            let patch: json_patch::Patch = serde_json::from_slice(&patch).ok()?;
            json_patch::patch(&mut document, &patch).ok()?;
            serde_json::to_vec(&document).ok()?.into()
        }
    };
    let mut head = ResponseHeader::build(response.code, Some(response.headers.len())).ok()?;
    if !response.reason.is_empty() {
        head.set_reason_phrase(Some(&response.reason)).ok()?;
    }
    for (name, value) in response.headers {
        head.append_header(name, value).ok()?;
    }
    Some((head, body))
}

/// Ends when the process does.
async fn ends(stopped: &mut watch::Receiver<bool>) {
    // Who would say so is gone only with the process.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Ends when the client goes away.
async fn gone(session: &mut Session) -> Box<Error> {
    let ended = session.as_downstream_mut().read_body_or_idle(true).await;
    ended.err().unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed)).into_down()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// An error of a request of ours, as one of Pingora's proxy would have it.
fn error_of(error: AskError) -> Box<Error> {
    Error::new_up(match error {
        AskError::Unreachable(_) => ErrorType::ConnectError,
        AskError::ConnectTimeout => ErrorType::ConnectTimedout,
        AskError::Broken { .. } => ErrorType::ConnectionClosed,
        AskError::Timeout { .. } => ErrorType::ReadTimedout,
        AskError::Malformed => ErrorType::InvalidHTTPHeader,
    })
}
