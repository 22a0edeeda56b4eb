//! The subprotocol `sluicegate.v1` in a handshake: what of it the backend is offered, and what the client is answered.
//!
//! A handshake that does not offer it is left as it is, header by header.

use http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::cause::Refusal;
use crate::grip::resume::{Offer, is_ours};
use crate::ws::handshake;

/// As it is written by those who know only this spelling.
const PROTOCOL: &str = "Sec-WebSocket-Protocol";

/// What a client offers, if ours is among it. The handshake was checked: each is a token.
fn offered(client: &HeaderMap, allowed: bool) -> Option<Offer<'_>> {
    let subprotocols: Vec<&str> = handshake::list(client, &SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|subprotocol| std::str::from_utf8(subprotocol).ok())
        .collect();
    subprotocols.iter().any(|subprotocol| is_ours(subprotocol)).then(|| Offer::new(subprotocols, allowed))
}

/// Makes of what the client offers what the backend is offered. `allowed` says whether the rule has a backplane.
///
/// # Errors
/// `MalformedRequest`: what is offered cannot stand in a header, which tokens can.
pub fn offer(client: &HeaderMap, allowed: bool, upstream: &mut RequestHeader) -> Result<(), Refusal> {
    let Some(offer) = offered(client, allowed) else { return Ok(()) };
    upstream.remove_header(&SEC_WEBSOCKET_PROTOCOL);
    if offer.upstream.is_empty() {
        return Ok(());
    }
    upstream.insert_header(PROTOCOL, offer.upstream.join(", ")).map_err(|_| Refusal::MalformedRequest)
}

/// Makes of what the backend has accepted what the client is answered, and says whether the client's messages are framed.
/// The backend's answer was checked: it accepts what it was offered. `allowed` is as it was for [`offer`].
///
/// # Errors
/// `UpstreamInvalidUpgrade`: what is answered cannot stand in a header, which tokens can.
pub fn answer(client: &HeaderMap, allowed: bool, opted_in: bool, answer: &mut ResponseHeader) -> Result<bool, Refusal> {
    let Some(offer) = offered(client, allowed) else { return Ok(false) };
    let accepted = answer.headers.get(SEC_WEBSOCKET_PROTOCOL).cloned();
    let accepted = accepted.as_ref().and_then(|value| value.to_str().ok()).map(str::trim);
    let (told, resumable) = offer.answer(accepted, opted_in);
    answer.remove_header(&SEC_WEBSOCKET_PROTOCOL);
    if let Some(told) = told {
        answer.insert_header(PROTOCOL, &*told).map_err(|_| Refusal::UpstreamInvalidUpgrade)?;
    }
    Ok(resumable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (SEC_WEBSOCKET_PROTOCOL, line.parse().unwrap())).collect()
    }

    /// What the backend is offered, line by line.
    fn offers(lines: &[&str], allowed: bool) -> Vec<String> {
        let headers = client(lines);
        let mut upstream = RequestHeader::build("GET", b"/", None).unwrap();
        for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            upstream.append_header(PROTOCOL, value).unwrap();
        }
        offer(&headers, allowed, &mut upstream).unwrap();
        upstream
            .headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    }

    fn answers(lines: &[&str], allowed: bool, opted_in: bool, accepted: Option<&str>) -> (Option<String>, bool) {
        let mut response = ResponseHeader::build(101, None).unwrap();
        if let Some(accepted) = accepted {
            response.insert_header(PROTOCOL, accepted).unwrap();
        }
        let resumable = answer(&client(lines), allowed, opted_in, &mut response).unwrap();
        let told = response.headers.get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap().to_owned());
        (told, resumable)
    }

    #[test]
    fn the_backend_is_offered_what_stands_within_ours_where_the_rule_allows_it() {
        let lines = ["sluicegate.v1.chat, sluicegate.v1", "chat, json"];
        assert_eq!(offers(&lines, true), ["chat, json"]);
        assert_eq!(offers(&lines, false), ["chat, json"]);
        assert_eq!(offers(&["sluicegate.v1.chat"], true), ["chat"]);
        assert_eq!(offers(&["sluicegate.v1.chat"], false), [""; 0]);
        assert_eq!(offers(&["sluicegate.v1"], true), [""; 0]);
        // Without ours the lines are as they came.
        assert_eq!(offers(&["chat,json", "x"], true), ["chat,json", "x"]);
    }

    #[test]
    fn the_client_is_answered_ours_only_where_both_have_agreed() {
        let both = ["sluicegate.v1.chat, chat"];
        let told = |text: &str| Some(text.to_owned());
        assert_eq!(answers(&both, true, true, Some("chat")), (told("sluicegate.v1.chat"), true));
        assert_eq!(answers(&both, true, false, Some("chat")), (told("chat"), false));
        assert_eq!(answers(&both, false, false, Some("chat")), (told("chat"), false));
        assert_eq!(answers(&["sluicegate.v1.chat"], true, false, Some("chat")), (None, false));
        assert_eq!(answers(&["sluicegate.v1"], true, true, None), (told("sluicegate.v1"), true));
        assert_eq!(answers(&["sluicegate.v1"], true, false, None), (None, false));
        assert_eq!(answers(&["chat"], true, true, Some("chat")), (told("chat"), false));
    }
}
