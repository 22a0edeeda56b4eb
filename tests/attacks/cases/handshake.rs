//! The opening handshake: tunnels that must not open, and requests that hide behind it.

use std::time::Duration;

use super::{internal_reached, mark_reached, millis, scaled};
use crate::bytes::{self, INTERNAL, MARK, TEXT, answer, from_client, switching, upgrade, upgrade_but};
use crate::case::Outcome::{Answer, Close, Served};
use crate::case::{Case, Try};
use crate::wire::Step::{Drip, Flood, Head, Hold, Send, Until};

/// A sound handshake.
fn handshake() -> Vec<u8> {
    upgrade("/", "")
}

/// The answer of a backend to a request that it should never have had.
pub(super) fn secret() -> Vec<u8> {
    answer(200, "", "SECRET")
}

pub fn a_bad_version_that_opens_a_tunnel() -> Case {
    let mut tries = Vec::new();
    for (status, lines) in [(426, "Sec-WebSocket-Version: 13\r\n"), (200, ""), (403, ""), (301, "Location: /x\r\n")] {
        let backend = vec![Head, Send(answer(status, lines, "")), Head, Send(secret())];
        let bad = upgrade_but("Version: 13", "Version: 777");
        let waits = vec![Send(bad.clone()), Head, Send(INTERNAL.to_vec())];
        tries.push(Try::new(format!("{status}, behind the answer"), backend.clone(), waits));
        let at_once = vec![Send([&bad, INTERNAL].concat())];
        tries.push(Try::new(format!("{status}, at once"), backend, at_once));
    }
    Case {
        name: "Smuggling by a bad version",
        attack: "asks for a version that the backend refuses, and sends a second request as if a tunnel were open",
        harm: "the backend gets a request that the proxy was told to deny",
        seen_in: "like CVE-2024-23326 in Envoy",
        tries,
        shows: internal_reached,
        stopped_by: &[Answer(426)],
        ..Case::BASE
    }
}

pub fn a_switch_that_the_backend_chose() -> Case {
    let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let sound = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    let tries = [
        ("no accept", sound.to_owned()),
        ("a wrong accept", format!("{sound}Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n")),
        ("two accepts", format!("{sound}{accept}{accept}")),
        ("Upgrade: h2c", format!("Upgrade: h2c\r\nConnection: Upgrade\r\n{accept}")),
        ("Upgrade: websocket, h2c", format!("Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n{accept}")),
        ("no Upgrade", format!("Connection: Upgrade\r\n{accept}")),
        ("no Connection", format!("Upgrade: websocket\r\n{accept}")),
        ("a subprotocol that was not offered", format!("{sound}{accept}Sec-WebSocket-Protocol: x\r\n")),
        ("an extension that was not offered", format!("{sound}{accept}Sec-WebSocket-Extensions: x\r\n")),
    ];
    let tries = tries.map(|(what, lines)| {
        let switch = format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n");
        let backend = vec![Head, Send(switch.into()), Head, Send(secret())];
        Try::new(what, backend, vec![Send(handshake()), Head, Send(INTERNAL.to_vec())])
    });
    Case {
        name: "A 101 that is none",
        attack: "lets an endpoint of the backend answer with a 101 of the attacker's choice, and sends a request",
        harm: "the backend gets a request that the proxy was told to deny",
        tries: tries.into(),
        shows: internal_reached,
        stopped_by: &[Answer(502)],
        ..Case::BASE
    }
}

pub fn a_tunnel_for_what_is_no_websocket() -> Case {
    let backend = vec![Head, Send(switching("")), Head, Send(secret())];
    let smuggled = Try::new("", backend, vec![Send(handshake()), Head, Send(INTERNAL.to_vec())]);
    Case {
        name: "A request in a tunnel",
        attack: "opens a WebSocket at a backend that does not know what it agreed to, and sends a request through it",
        harm: "the backend gets a request that the proxy was told to deny",
        tries: vec![smuggled],
        shows: internal_reached,
        stopped_by: &[Close(1002)],
        ..Case::BASE
    }
}

pub fn a_switch_that_nobody_asked_for() -> Case {
    let asks = |lines: &str| format!("GET / HTTP/1.1\r\nHost: app.example\r\n{lines}\r\n").into_bytes();
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let tries = [
        ("no Upgrade", asks("")),
        ("Upgrade without its Connection", asks(&format!("Upgrade: websocket\r\n{key}"))),
        ("Upgrade: x", asks(&format!("Upgrade: x\r\nConnection: Upgrade\r\n{key}"))),
        ("Upgrade: h2c", asks(&format!("Upgrade: h2c\r\nConnection: Upgrade\r\n{key}"))),
    ];
    let tries = tries.map(|(what, request)| {
        let backend = vec![Head, Send(switching("")), Head, Send(secret())];
        // nginx may not pass the 101 on, so nothing is awaited.
        let client = vec![Send(request), Hold(millis(300)), Send(INTERNAL.to_vec())];
        Try::new(what, backend, client)
    });
    Case {
        name: "A 101 that nobody asked for",
        attack: "asks for no WebSocket at an endpoint that answers with a 101, and sends a request",
        harm: "the backend gets a request that the proxy was told to deny",
        tries: tries.into(),
        shows: internal_reached,
        stopped_by: &[Answer(502)],
        ..Case::BASE
    }
}

pub fn a_request_behind_the_handshake() -> Case {
    let both = [&handshake()[..], INTERNAL].concat();
    let backend = || vec![Head, Send(answer(200, "", "first")), Head, Send(secret())];
    let open = || vec![Head, Send(switching("")), Head, Send(secret())];
    let own = || vec![Head, Send(answer(200, "Connection: close\r\n", "still here"))];
    let own_request = b"GET /own HTTP/1.1\r\nHost: app.example\r\n\r\n".to_vec();
    let bystander = vec![Send(own_request), Head, Until(bytes::HONEST.to_vec())];
    let tries = [
        ("in one segment", backend(), vec![Send(both.clone()), Head]),
        ("in segments of one byte", backend(), vec![Drip(both.clone(), Duration::ZERO), Head]),
        ("in one segment, with a 101", open(), vec![Send(both.clone()), Head]),
        ("in segments of one byte, with a 101", open(), vec![Drip(both, Duration::ZERO), Head]),
    ];
    let tries = tries.map(|(what, backend, client)| Try {
        backend: vec![("/own", own()), ("", backend)],
        bystander: bystander.clone(),
        ..Try::new(what, Vec::new(), client)
    });
    Case {
        name: "A request behind the handshake",
        attack: "sends a request behind the handshake, before it was answered",
        harm: "the backend gets a request that the proxy was told to deny, or somebody else gets its answer",
        seen_in: "like CVE-2026-2833 in Pingora",
        tries: tries.into(),
        shows: |seen| internal_reached(seen) || bytes::find(&seen.bystander.bytes, b"SECRET").is_some(),
        stopped_by: &[Answer(400), Served, Close(1002)],
        ..Case::BASE
    }
}

pub fn a_refused_upgrade_that_goes_on() -> Case {
    let mut tries = Vec::new();
    for status in [200, 301, 401, 403, 404, 426, 500] {
        let backend = vec![Head, Send(answer(status, "", "")), Head, Send(secret())];
        let goes_on = |bytes: Vec<u8>| vec![Send(handshake()), Head, Send(bytes)];
        tries.push(Try::new(format!("{status}, a frame"), backend.clone(), goes_on(from_client(TEXT, MARK))));
        tries.push(Try::new(format!("{status}, a request"), backend, goes_on(INTERNAL.to_vec())));
    }
    Case {
        name: "Going on behind a refusal",
        attack: "sends frames or a request though the backend has refused the upgrade",
        harm: "they reach the backend",
        tries,
        shows: |seen| mark_reached(seen) || internal_reached(seen),
        stopped_by: &[Answer(301), Answer(401), Answer(403), Answer(404), Answer(426), Answer(500), Served],
        ..Case::BASE
    }
}

pub fn an_upgrade_to_something_else() -> Case {
    let request = |method: &str, lines: &str| {
        format!("{method} / HTTP/1.1\r\nHost: app.example\r\nConnection: Upgrade, HTTP2-Settings\r\n{lines}\r\n")
            .into_bytes()
    };
    let settings = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    let websocket = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let post = request("POST", &format!("Upgrade: h2c\r\n{settings}Content-Length: 4\r\n"));
    let tries = [
        ("h2c", request("GET", &format!("Upgrade: h2c\r\n{settings}"))),
        ("H2C", request("GET", &format!("Upgrade: H2C\r\n{settings}"))),
        ("h2c with a body", [post, b"body".to_vec()].concat()),
        ("websocket, h2c", request("GET", &format!("Upgrade: websocket, h2c\r\n{settings}{websocket}"))),
        ("h2c, websocket", request("GET", &format!("Upgrade: h2c, websocket\r\n{settings}{websocket}"))),
        ("two lines", request("GET", &format!("Upgrade: websocket\r\nUpgrade: h2c\r\n{settings}{websocket}"))),
        ("settings alone", request("GET", &format!("Upgrade: websocket\r\n{settings}{websocket}"))),
        ("TLS/1.0", request("GET", "Upgrade: TLS/1.0\r\n")),
    ];
    let tries = tries.map(|(what, request)| {
        Try::new(what, vec![Head, Send(answer(200, "Connection: close\r\n", ""))], vec![Send(request)])
    });
    Case {
        name: "h2c through Upgrade",
        attack: "asks for another protocol than WebSocket, alone or beside it",
        harm: "the backend is asked for it, and speaks what the proxy cannot read",
        tries: tries.into(),
        shows: |seen| {
            seen.requests().any(|head| {
                ["h2c", "TLS/1.0"].iter().any(|token| head.has_token("upgrade", token))
                    || head.all("http2-settings").next().is_some()
            })
        },
        stopped_by: &[Served, Answer(400)],
        ..Case::BASE
    }
}

pub fn an_answer_whose_head_never_ends() -> Case {
    let begun = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".to_vec();
    let tries = [
        ("many headers", b"X-Padding: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".to_vec()),
        ("one header", b"yyyyyyyyyyyyyyyy".repeat(64)),
        ("many interim answers", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec()),
    ];
    let megabytes = scaled(2, 100);
    let tries = tries.map(|(what, piece)| {
        let begun = if what.ends_with("answers") { Vec::new() } else { begun.clone() };
        let times = (megabytes << 20) / piece.len();
        let backend = vec![Head, Send(begun), Flood(piece, times)];
        Try::new(what, backend, vec![Send(handshake())])
    });
    Case {
        name: "An answer that never ends",
        attack: "lets the backend answer a handshake with a head that never ends",
        harm: "more than 1 MiB of it comes to the client, or waits in the proxy",
        tries: tries.into(),
        shows: |seen| seen.clients.iter().any(|heard| heard.total > 1 << 20),
        stopped_by: &[Answer(502), Answer(504)],
        ..Case::BASE
    }
}
