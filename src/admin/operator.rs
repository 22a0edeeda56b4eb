//! What operators see and do: the live sessions, the end of one, the drain, the configuration.
//!
//! All of it wants the token once there is one. Without one the admin listener is on a loopback address, and what keeps
//! pages of a browser on this machine away is `origin.rs`.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::Method;
use http::header::AUTHORIZATION;
use pingora::http::RequestHeader;
use tokio::sync::watch;

use super::Answer;
use crate::edge::record::SessionRecord;
use crate::events::Event;
use crate::policy::token::Token;
use crate::tunnel::registry::{Order, Registry};
use crate::ws::close::CloseCode;

/// The sessions of one answer, when the request does not say how many.
const DEFAULT_LIMIT: usize = 100;

/// The most sessions of one answer.
const MAX_LIMIT: usize = 1000;

/// What only operators may see and do.
#[derive(Debug)]
pub struct Operator {
    /// What they must present; `None`: nothing.
    pub token: Option<Token>,
    /// The live sessions.
    pub sessions: Arc<Registry<SessionRecord>>,
    /// The effective configuration, as YAML without secrets.
    pub config: String,
    /// Becomes true when the process is to drain.
    pub drain: watch::Sender<bool>,
}

impl Operator {
    /// The whole table of operators' endpoints.
    pub(super) fn answer(&self, request: &RequestHeader, peer: Option<IpAddr>) -> Answer {
        let path = request.uri.path();
        let session = path.strip_prefix("/sessions/");
        let (allow, method) = match path {
            "/sessions" | "/config" => ("GET", Method::GET),
            "/drain" => ("POST", Method::POST),
            _ if session.is_some() => ("DELETE", Method::DELETE),
            _ => return Answer::not_found(),
        };
        if request.method != method {
            return Answer::method_not_allowed(allow);
        }
        if !self.admits(request) {
            let answer = Answer::problem(401, "unauthorized", "the token of admin.token_file is needed");
            return Answer { header: Some(("www-authenticate", "Bearer")), ..answer };
        }
        let query = request.uri.query().unwrap_or_default();
        let answer = match (path, session) {
            ("/config", _) => Ok(Answer::new(200, "application/yaml", self.config.clone())),
            ("/drain", _) => Ok(start_drain(peer)),
            (_, Some(id)) => self.close(id, query, peer),
            (_, None) => self.list(query),
        };
        answer.unwrap_or_else(|fault| Answer::problem(400, "bad_query", &fault))
    }

    /// Whether the request has the token. RFC 6750 §2.1.
    fn admits(&self, request: &RequestHeader) -> bool {
        let Some(token) = &self.token else { return true };
        let mut lines = request.headers.get_all(AUTHORIZATION).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return false };
        let Some((scheme, presented)) = line.as_bytes().split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && token.matches(presented.trim_ascii_start())
    }

    fn list(&self, query: &str) -> Result<Answer, String> {
        let [rule, limit] = parameters(query, ["rule", "limit"])?;
        let limit = match limit {
            None => DEFAULT_LIMIT,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                limit.ok_or_else(|| format!("limit is a number from 1 to {MAX_LIMIT}"))?
            }
        };
        let mut sessions = self.sessions.sessions();
        sessions.retain(|live| rule.is_none_or(|rule| live.tag.rule() == rule));
        let now = SystemTime::now();
        let mut body = String::from("{\"sessions\":[");
        for (nth, live) in sessions.iter().take(limit).enumerate() {
            if nth > 0 {
                body.push(',');
            }
            body.push_str(&live.tag.live(&live.control, now));
        }
        let _ = write!(body, "],\"total\":{}}}", sessions.len());
        Ok(Answer::new(200, "application/json", body))
    }

    fn close(&self, id: &str, query: &str, peer: Option<IpAddr>) -> Result<Answer, String> {
        let [code] = parameters(query, ["code"])?;
        let code = match code {
            None => CloseCode::SERVICE_RESTART,
            // Several client libraries take 1014 for invalid, and end in an error.
            Some(text) => {
                let code = text.parse().ok().map(CloseCode).filter(|code| code.is_valid_on_wire() && code.0 != 1014);
                code.ok_or_else(|| "code is one of 1000-1003, 1007-1013 and 3000-4999".to_owned())?
            }
        };
        let live = SessionRecord::parse_id(id).and_then(|id| self.sessions.find(|session| session.id() == id));
        let Some(live) = live else { return Ok(Answer::problem(404, "no_session", "no such session")) };
        Event::new("operator")
            .field("action", "close")
            .field("session_id", id)
            .field("close_code", code.0)
            .field("peer_ip", peer)
            .emit();
        live.control.give(Order::Close(code));
        let body = serde_json::json!({ "session_id": id, "code": code.0 });
        Ok(Answer::new(202, "application/json", body.to_string()))
    }
}

fn start_drain(peer: Option<IpAddr>) -> Answer {
    Event::new("operator").field("action", "drain").field("peer_ip", peer).emit();
    Answer { drains: true, ..Answer::new(202, "application/json", r#"{"status":"draining"}"#.to_owned()) }
}

/// The values of these parameters; an empty one is none.
fn parameters<'a, const N: usize>(query: &'a str, names: [&str; N]) -> Result<[Option<&'a str>; N], String> {
    let mut values = [None; N];
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let at = names.iter().position(|known| *known == name);
        let at = at.ok_or_else(|| format!("the parameters of this endpoint are: {}", names.join(", ")))?;
        if values[at].is_some() {
            return Err(format!("{} stands twice", names[at]));
        }
        values[at] = Some(value).filter(|value| !value.is_empty());
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_parameters_that_there_are() {
        assert_eq!(parameters("", ["rule", "limit"]), Ok([None, None]));
        assert_eq!(parameters("limit=5&rule=chat", ["rule", "limit"]), Ok([Some("chat"), Some("5")]));
        assert_eq!(parameters("rule=&limit=", ["rule", "limit"]), Ok([None, None]));
        assert!(parameters("rules=chat", ["rule", "limit"]).is_err());
        assert!(parameters("rule=a&rule=b", ["rule", "limit"]).is_err());
    }
}
