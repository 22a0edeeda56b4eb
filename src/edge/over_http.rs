//! A client's handshake with a backend that speaks WebSocket-over-HTTP: the event OPEN, and what it is answered.

use std::borrow::Cow;
use std::sync::Arc;

use http::{StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};

use super::backplane::RuleBackplane;
use super::gateway::Rule;
use super::sticky::Choice;
use super::upgrade::{Asked, Source, Unasked};
use super::upstreams::Upstream;
use crate::backplane::backend::{AskError, Reply};
use crate::backplane::over_http::{OpenError, Opening, open};
use crate::cause::Refusal;
use crate::ws::handshake;

/// Asks the backend whether it accepts a client with the handshake `sent`. What it accepts becomes the 101 that a backend
/// with a WebSocket would have answered.
pub(super) async fn ask(
    backplane: &RuleBackplane,
    rule: &Rule,
    to: &Arc<Upstream>,
    choice: &Choice,
    sent: Box<RequestHeader>,
) -> Result<Asked, Unasked> {
    let backend = backplane.backend(to, &choice.preference, &sent, rule.upstream_timeout);
    let opening = open(Arc::new(backend.clone()), &backplane.shared.limits).await.map_err(refused)?;
    // An answer comes from somewhere.
    let endpoint = backend.asked.lock().clone().ok_or(Refusal::UpstreamUnreachable)?;
    let malformed = |_| Refusal::UpstreamMalformed;
    let (answer, source) = match opening {
        Opening::Refused(Reply { status, headers, body }) => {
            let mut answer = ResponseHeader::build(status, Some(headers.len())).map_err(malformed)?;
            for (name, value) in &headers {
                answer.append_header(name.clone(), value.clone()).map_err(malformed)?;
            }
            (answer, Source::Body(Some(body).filter(|body| !body.is_empty())))
        }
        Opening::Accepted(opened) => {
            let mut answer = ResponseHeader::build(StatusCode::SWITCHING_PROTOCOLS, None).map_err(malformed)?;
            for (name, value) in &opened.headers {
                answer.append_header(name.clone(), value.clone()).map_err(malformed)?;
            }
            let key = sent.headers.get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes()).unwrap_or_default();
            let accept = handshake::accept_for(key);
            answer.insert_header(header::UPGRADE, "websocket").map_err(malformed)?;
            answer.insert_header(header::CONNECTION, "Upgrade").map_err(malformed)?;
            answer.insert_header(header::SEC_WEBSOCKET_ACCEPT, &accept[..]).map_err(malformed)?;
            (answer, Source::OverHttp(opened))
        }
    };
    Ok(Asked { source, answer: Box::new(answer), endpoint, sent, offers: Vec::new() })
}

fn refused(error: OpenError) -> Unasked {
    let (refusal, detail) = match error {
        OpenError::Ask(AskError::Unreachable(detail)) => (Refusal::UpstreamUnreachable, detail.map(Cow::Borrowed)),
        OpenError::Ask(AskError::Broken { .. }) => (Refusal::UpstreamUnreachable, None),
        OpenError::Ask(AskError::ConnectTimeout | AskError::Timeout { .. }) => (Refusal::UpstreamTimeout, None),
        OpenError::Ask(AskError::Malformed) => (Refusal::UpstreamMalformed, None),
        OpenError::Malformed(detail) => (Refusal::UpstreamInvalidUpgrade, Some(detail.into())),
    };
    Unasked { refusal, detail }
}
