//! The cases, by what they attack. Each is a function that makes one; `main.rs` has the list of them.

pub mod compression;
pub mod ends;
pub mod exhaustion;
pub mod frames;
pub mod handshake;
pub mod heads;
pub mod identity;
pub mod rules;

use std::time::Duration;

use crate::bytes::{HONEST, LAST, MARK, PING, TEXT, TEXT_BEGIN, answer, from_client, switching, upgrade};
use crate::case::{Seen, Try};
use crate::wire::{Script, Step};

/// When it is set, floods are played at full length and the page is written.
const FULL_LENGTH: &str = "SLUICEGATE_ATTACKS";

/// Whether floods are played at full length and the page is written.
pub fn at_full_length() -> bool {
    std::env::var_os(FULL_LENGTH).is_some()
}

/// How much of a flood: the first in a test, the second for the page.
fn scaled(short: usize, long: usize) -> usize {
    if at_full_length() { long } else { short }
}

/// A backend that takes every handshake and then only listens.
fn listens() -> Script {
    vec![Step::Head, Step::Send(switching(""))]
}

/// A backend that echoes.
pub fn echoes() -> Script {
    vec![Step::Head, Step::Send(switching("")), Step::Echo]
}

/// A backend that answers one plain request.
fn answers() -> Script {
    vec![Step::Head, Step::Send(answer(200, "Connection: close\r\n", ""))]
}

/// A client that opens a session and sends these bytes.
fn sends(bytes: Vec<u8>) -> Script {
    vec![Step::Send(upgrade("/", "")), Step::Head, Step::Send(bytes)]
}

/// Somebody who wants nothing but an echo.
pub fn honest() -> Script {
    honest_with("")
}

/// The same, with these lines in the handshake.
fn honest_with(lines: &str) -> Script {
    let greeting = from_client(TEXT, HONEST);
    vec![Step::Send(upgrade("/echo", lines)), Step::Head, Step::Send(greeting), Step::Until(HONEST.to_vec())]
}

/// Honest clients that look a little like attackers, and must be served.
pub fn honest_ones() -> Vec<Script> {
    let origins = [
        "",
        "Origin: http://app.example\r\n",
        "Origin: https://app.example\r\n",
        "Origin: https://app.example:443\r\n",
        "Origin: HTTPS://APP.EXAMPLE\r\n",
        "Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Extensions: x; y=\"z\"\r\n",
        "User-Agent: a\r\nCookie: a=b; c=d\r\nCookie: e=f\r\n",
    ];
    let mut scripts: Vec<_> = origins.map(honest_with).into();
    // A control frame may stand between fragments. RFC 6455 §5.4.
    let fragments = [(TEXT_BEGIN, &b"a"[..]), (PING, b"b"), (LAST, HONEST)];
    let fragments = fragments.map(|(first, payload)| from_client(first, payload)).concat();
    let opens = [Step::Send(upgrade("/echo", "")), Step::Head];
    scripts.push([&opens[..], &[Step::Send(fragments), Step::Until(HONEST.to_vec())]].concat());
    scripts
}

/// A try of several attackers at once, with somebody else beside them.
fn beside_somebody(what: &str, backend: Script, clients: Vec<Script>) -> Try {
    Try {
        backend: vec![("/echo", echoes()), ("", backend)],
        clients,
        bystander: honest(),
        ..Try::new(what, Vec::new(), Vec::new())
    }
}

/// A time behind a limit of the gateway's; for the page, behind nginx' too, which are of two at most.
fn behind(limit: Duration) -> Duration {
    limit + Duration::from_millis(scaled(200, 2000) as u64)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Whether the backend was asked for anything.
fn any_request(seen: &Seen) -> bool {
    seen.requests().next().is_some()
}

/// Whether the backend was asked for what both proxies deny.
fn internal_reached(seen: &Seen) -> bool {
    seen.backend_got(b"GET /internal")
}

/// Whether the backend was sent the payload that must not get through.
fn mark_reached(seen: &Seen) -> bool {
    seen.backend_got(MARK)
}
