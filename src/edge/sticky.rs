//! Bringing clients back: which endpoint a request should get, and the cookie that says so the next time.

use std::sync::Arc;
use std::time::SystemTime;

use super::gateway::Rule;
use super::request::Request;
use super::upstreams::{Balance, Endpoint, Preference, Upstream};
use crate::config::Sticky;
use crate::policy::stickiness::{Found, HashKey};

/// What a request says of the endpoint that it should get.
#[derive(Debug)]
pub struct Choice {
    /// Which endpoint it should get.
    pub preference: Preference,
    found: Found,
}

/// Reads a request's sticky cookie, or takes its hash.
pub fn choose(rule: &Rule, upstream: &Upstream, request: &Request) -> Choice {
    let headers = &request.head.request.headers;
    let found = match &rule.sticky {
        Some(Sticky::Cookie(cookie)) => {
            let lines = headers.get_all(http::header::COOKIE).into_iter().map(|line| line.as_bytes());
            let names = upstream.endpoints().iter().map(|endpoint| endpoint.address());
            cookie.find(&rule.name, lines, names, now())
        }
        Some(Sticky::Hash(_)) | None => Found::Nothing,
    };
    let key = match (&rule.sticky, upstream.balance()) {
        (Some(Sticky::Hash(key)), _) => key.of(request.client, headers, request.query()),
        (_, Balance::Hash) => HashKey::ClientIp.of(request.client, headers, ""),
        (_, Balance::LeastConnections | Balance::RoundRobin) => None,
    };
    let preference = match (found, key) {
        (Found::Endpoint { index, .. }, _) => Preference::Endpoint(index),
        (Found::Nothing, Some(key)) => Preference::Hash(key),
        (Found::Nothing, None) => Preference::None,
    };
    Choice { preference, found }
}

/// The sticky cookie that a client has from now on: the one that it is `set`, or the one that it brought.
pub fn client_cookie<'a>(rule: &Rule, request: &'a Request, choice: &Choice, set: Option<&'a str>) -> Option<&'a [u8]> {
    let Some(Sticky::Cookie(cookie)) = &rule.sticky else { return None };
    if let Some(set) = set {
        return set.split([';', '=']).nth(1).map(str::as_bytes);
    }
    if choice.found == Found::Nothing {
        return None;
    }
    let lines = request.head.request.headers.get_all(http::header::COOKIE).into_iter().map(|line| line.as_bytes());
    cookie.values(lines).next()
}

/// The Set-Cookie value for a client that was given `endpoint`: when it had no cookie, one that is past half its time,
/// or one for another endpoint.
pub fn set_cookie(
    rule: &Rule,
    upstream: &Upstream,
    request: &Request,
    choice: &Choice,
    endpoint: &Arc<Endpoint>,
) -> Option<String> {
    let Some(Sticky::Cookie(cookie)) = &rule.sticky else { return None };
    if let Found::Endpoint { index, renew: false } = choice.found
        && upstream.endpoints().get(index).is_some_and(|had| Arc::ptr_eq(had, endpoint))
    {
        return None;
    }
    Some(cookie.issue(&rule.name, endpoint.address(), now(), rand::random(), request.secure() == Some(true)))
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs())
}
