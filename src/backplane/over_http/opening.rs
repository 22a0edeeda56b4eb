//! The first question: whether the backend accepts a client, and what it says to it.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::gather::Gather;
use super::{OverHttp, State, now};
use crate::backplane::backend::{AskError, Backend, Question, Reply};
use crate::backplane::resume;
use crate::backplane::subscriber::Subscriber;
use crate::grip::Limits;
use crate::grip::batch::Pending;
use crate::grip::events::{EventKind, Events};
use crate::grip::extension::OptIn;
use crate::grip::filter::Filter;
use crate::grip::headers::{self, AnswerError};
use crate::grip::meta::Meta;

/// What an opening came to.
#[derive(Debug)]
pub enum Opening {
    /// The backend has accepted the client.
    Accepted(Box<Opened>),
    /// The backend has answered something else, which is for the client.
    Refused(Reply),
}

/// Why an opening came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The backend was not reached.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It has answered with events, and not as the protocol has it.
    #[error("{0}")]
    Malformed(String),
}

/// A backend that has accepted a client.
#[derive(Debug)]
pub struct Opened {
    /// The headers of its answer that are for the client.
    pub headers: HeaderMap,
    backend: Arc<dyn Backend>,
    limits: Limits,
    opt_in: Option<OptIn>,
    meta: Meta,
    poll: headers::Poll,
    /// The answer, whose first event is the OPEN.
    body: Bytes,
}

/// Asks a backend whether it accepts a client: a request with the event OPEN, which is not made again.
///
/// # Errors
/// [`OpenError`].
pub async fn open(backend: Arc<dyn Backend>, limits: &Limits) -> Result<Opening, OpenError> {
    let mut body = Vec::new();
    crate::grip::events::encode(EventKind::Open, &[], &mut body);
    let mut meta = Meta::default();
    let question = Question::Events { body: body.into(), replayed_bytes: 0, meta: meta.clone() };
    let mut reply = backend.ask(question).await?;
    let answer = match headers::answer(reply.status, &reply.headers, true, &mut meta, limits) {
        Ok(answer) => answer,
        Err(AnswerError::Status | AnswerError::ContentType) => return Ok(Opening::Refused(reply)),
        Err(error) => return Err(OpenError::Malformed(error.to_string())),
    };
    // As a whole, since what is malformed behind the OPEN would end a session that has just been accepted.
    let events: Result<Vec<_>, _> = Events::new(&reply.body, limits.response_bytes).collect();
    let events = events.map_err(|error| OpenError::Malformed(error.to_string()))?;
    if !headers::opens(&answer, events.first().map(|event| event.kind)) {
        return Err(OpenError::Malformed("the answer to OPEN begins with another event".to_owned()));
    }
    if matches!(answer.opt_in, Some(OptIn::NoPrefix)) {
        return Err(OpenError::Malformed("grip with an empty message-prefix: users could subscribe".to_owned()));
    }
    headers::strip_opening(&mut reply.headers);
    let (poll, opt_in) = (answer.poll.unwrap_or(headers::Poll::Off), answer.opt_in);
    let (headers, body, limits) = (reply.headers, reply.body, limits.clone());
    Ok(Opening::Accepted(Box::new(Opened { headers, backend, limits, opt_in, meta, poll, body })))
}

impl Opened {
    /// How the backend has opted in.
    pub fn opt_in(&self) -> Option<&OptIn> {
        self.opt_in.as_ref()
    }

    /// The stream of the backend, with what its first answer has behind the OPEN. `resume` is for a client that was
    /// answered the subprotocol `sluicegate.v1`, and `rule` for the log.
    pub fn into_upstream(self, subscriber: Subscriber, resume: Option<resume::Settings>, rule: String) -> OverHttp {
        let mut out = Vec::new();
        let subscriber = match resume {
            Some(settings) => subscriber.resumable(settings, now(), &mut out),
            None => subscriber,
        };
        let mut upstream = OverHttp {
            pending: Pending::new(&self.limits),
            gather: Gather::new(self.limits.buffered_bytes),
            filter: self.opt_in.map(|opt_in| Filter::new(opt_in, &self.limits)),
            backend: self.backend,
            limits: self.limits,
            subscriber,
            meta: self.meta,
            no_room: None,
            asking: None,
            poll: self.poll,
            heard: now(),
            timer: None,
            out,
            pong: None,
            expected_pongs: 0,
            state: State::Open,
            end: None,
            verdict: None,
            reader: None,
            writer: None,
            rule,
        };
        upstream.events(&self.body, true, now());
        upstream
    }
}
