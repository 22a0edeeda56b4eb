//! Request heads: what must not be in one, and heads that are too much or too slow.

use std::time::Duration;

use super::handshake::secret;
use super::{any_request, behind, beside_somebody, internal_reached, listens, millis, scaled};
use crate::bytes::{self, INTERNAL, answer, switching, upgrade, upgrade_but};
use crate::case::Outcome::{Answer, Served};
use crate::case::{Case, Course, Nginx, Seen, Settings, Try};
use crate::wire::Step::{Drip, Head, Hold, Send};

pub fn a_body_in_the_handshake() -> Case {
    let len = INTERNAL.len();
    let chunk = [format!("{len:x}\r\n").as_bytes(), INTERNAL, b"\r\n0\r\n\r\n"].concat();
    let plain = INTERNAL.to_vec();
    let tries = [
        (format!("Content-Length: {len}"), &plain),
        (format!("Content-Length: {len}\r\nContent-Length: {len}"), &plain),
        (format!("Content-Length: 0\r\nContent-Length: {len}"), &plain),
        (format!("Content-Length: +{len}"), &plain),
        (format!("Content-Length: {len}, {len}"), &plain),
        (format!("Content-Length : {len}"), &plain),
        ("Transfer-Encoding: chunked".to_owned(), &chunk),
        ("Transfer-Encoding: xchunked".to_owned(), &chunk),
        ("Transfer-Encoding: identity".to_owned(), &plain),
        ("Transfer-Encoding: chunked, identity".to_owned(), &chunk),
        ("Transfer-Encoding : chunked".to_owned(), &chunk),
        ("Transfer-Encoding:\x0bchunked".to_owned(), &chunk),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x".to_owned(), &chunk),
        (format!("Content-Length: {}\r\nTransfer-Encoding: chunked", chunk.len()), &chunk),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned(), &chunk),
    ];
    let tries = tries.map(|(lines, body)| {
        let backend = vec![Head, Send(answer(200, "", "first")), Head, Send(secret())];
        let request = [upgrade("/", &format!("{lines}\r\n")), body.clone()].concat();
        Try::new(lines, backend, vec![Send(request)])
    });
    Case {
        name: "A body in the handshake",
        attack: "hides a request in the body of the handshake",
        harm: "a backend that reads no body with an upgrade takes it for a request",
        tries: tries.into(),
        shows: internal_reached,
        stopped_by: &[Answer(400)],
        ..Case::BASE
    }
}

pub fn headers_that_connection_names() -> Case {
    let names = [
        ("Host", ""),
        ("Origin", "Origin: http://app.example\r\n"),
        ("Cookie", "Cookie: a=b\r\n"),
        ("Authorization", "Authorization: Basic YTpi\r\n"),
        ("X-Real-IP", "X-Real-IP: 127.0.0.1\r\n"),
        ("X-Forwarded-For", "X-Forwarded-For: 127.0.0.1\r\n"),
        ("X-Forwarded-Proto", "X-Forwarded-Proto: http\r\n"),
        ("Sec-WebSocket-Key", ""),
        ("Sec-WebSocket-Version", ""),
        ("Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: chat\r\n"),
        ("cOOkie", "Cookie: a=b\r\n"),
    ];
    let tries = names.map(|(name, lines)| {
        let request = upgrade("/", lines);
        let names = format!("Connection: {name}, Upgrade");
        let request = String::from_utf8_lossy(&request).replace("Connection: Upgrade", &names);
        let chosen = if name == "Sec-WebSocket-Protocol" { "Sec-WebSocket-Protocol: chat\r\n" } else { "" };
        Try::new(name, vec![Head, Send(switching(chosen))], vec![Send(request.into()), Head])
    });
    Case {
        name: "Headers that Connection names",
        attack: "names a header of security in Connection, so that it is dropped on the way",
        harm: "the backend misses it, or drops it itself",
        tries: tries.into(),
        shows: |seen| {
            let name = seen.what.to_ascii_lowercase();
            seen.requests().any(|head| head.all(&name).next().is_none() || head.has_token("connection", &name))
        },
        stopped_by: &[Answer(400), Served],
        ..Case::BASE
    }
}

pub fn old_drafts() -> Case {
    let version = "Sec-WebSocket-Version: 13\r\n";
    let tries = [
        "Sec-WebSocket-Version: 0\r\n",
        "Sec-WebSocket-Version: 4\r\n",
        "Sec-WebSocket-Version: 7\r\n",
        "Sec-WebSocket-Version: 8\r\n",
        "Sec-WebSocket-Version: 12\r\n",
        "Sec-WebSocket-Version: 14\r\n",
        "Sec-WebSocket-Version: 013\r\n",
        "Sec-WebSocket-Version: 13, 8\r\n",
        "Sec-WebSocket-Version: 13;\r\n",
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n",
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n",
        "Sec-WebSocket-Draft: 7\r\n",
        "",
    ];
    let tries = tries.into_iter().map(|lines| {
        let what = lines.trim().replace("\r\n", ", ");
        Try::new(what, listens(), vec![Send(upgrade_but(version, lines)), Head])
    });
    let mut tries: Vec<_> = tries.collect();
    let hixie = "GET / HTTP/1.1\r\nHost: app.example\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5\r\nSec-WebSocket-Key2: 12998 5 Y3 1  .P00\r\n\r\n^n:ds[4U";
    tries.push(Try::new("hixie-76", listens(), vec![Send(hixie.into())]));
    Case {
        name: "Old drafts",
        attack: "asks for a version before RFC 6455, for several, or for none",
        harm: "the backend is asked for it",
        tries,
        shows: any_request,
        stopped_by: &[Answer(426)],
        ..Case::BASE
    }
}

pub fn malformed_upgrades() -> Case {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    // The first four are Http11Probe's UPGRADE-POST, UPGRADE-MISSING-CONN, UPGRADE-UNKNOWN and UPGRADE-INVALID-VER.
    let tries = [
        ("POST", upgrade_but("GET /", "POST /")),
        ("no Connection", upgrade_but("Connection: Upgrade\r\n", "")),
        ("Upgrade: totally-made-up/1.0", upgrade_but("Upgrade: websocket", "Upgrade: totally-made-up/1.0")),
        ("version 99", upgrade_but("Version: 13", "Version: 99")),
        ("HTTP/1.0", upgrade_but("HTTP/1.1", "HTTP/1.0")),
        ("Connection: keep-alive", upgrade_but("Connection: Upgrade", "Connection: keep-alive")),
        ("Upgrade: websockets", upgrade_but("Upgrade: websocket", "Upgrade: websockets")),
        ("no key", upgrade_but(key, "")),
        ("two keys", upgrade_but(key, &key.repeat(2))),
        ("a short key", upgrade_but("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j")),
        ("a long key", upgrade_but("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZSBsb25n")),
        ("a key that is no base64", upgrade_but("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j*Q==")),
        ("a folded line", upgrade_but("Upgrade: websocket", "Upgrade:\r\n websocket")),
        ("a bare CR", upgrade_but("Upgrade: websocket", "Upgrade: websocket\rX: y")),
        ("NUL in a value", upgrade_but("Upgrade: websocket", "X: \0\r\nUpgrade: websocket")),
    ];
    let tries = tries.map(|(what, request)| {
        Try::new(what, vec![Head, Send(answer(200, "Connection: close\r\n", ""))], vec![Send(request)])
    });
    Case {
        name: "Malformed upgrades",
        attack: "asks for a WebSocket in ways that RFC 6455 forbids",
        harm: "the backend is asked for an upgrade by what is none",
        tries: tries.into(),
        shows: |seen| {
            let asks = |head: &bytes::Head| {
                head.all("upgrade").next().is_some() || head.all("sec-websocket-key").next().is_none()
            };
            seen.requests().any(|head| asks(&head))
        },
        stopped_by: &[Answer(400), Answer(426), Served],
        ..Case::BASE
    }
}

pub fn a_head_that_is_too_large() -> Case {
    let with = |lines: String| upgrade("/", &lines);
    let cookies: String = (0..8000).map(|n| format!("Cookie: c{n}=x\r\n")).collect();
    let tries = [
        ("10,000 headers", with((0..10_000).map(|n| format!("x{n}: y\r\n")).collect())),
        ("2,000 short headers", with("a: b\r\n".repeat(2000))),
        ("8,000 cookies", with(cookies)),
        ("a header of 1 MB", with(format!("X: {}\r\n", "y".repeat(1 << 20)))),
        ("a target of 1 MB", upgrade(&format!("/{}", "y".repeat(1 << 20)), "")),
        ("a name of 1 MB", with(format!("{}: y\r\n", "x".repeat(1 << 20)))),
    ];
    let tries =
        tries.map(|(what, request)| beside_somebody(what, listens(), vec![vec![Send(request), Head]; scaled(4, 100)]));
    Case {
        name: "Header bombs",
        attack: "sends heads that are too much, many at a time",
        harm: "the backend has to read and keep them",
        seen_in: "like CVE-2024-37890 in ws",
        tries: tries.into(),
        shows: |seen| seen.requests().any(|head| head.headers.len() >= 2000 || head.len >= 1 << 20),
        stopped_by: &[Answer(431)],
        ..Case::BASE
    }
}

pub fn garbage_in_the_offers() -> Case {
    let mut tries = Vec::new();
    for name in ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"] {
        for (what, value) in [
            ("30 KB of spaces and quotes", " \"".repeat(15_000)),
            ("30 KB of spaces", format!("b{}x", " ".repeat(30_000))),
            ("30 KB of semicolons", format!("a{}", ";".repeat(30_000))),
            ("30 KB of commas and quotes", ",\"".repeat(15_000)),
            ("a string without end", format!("a; b=\"{}", "x".repeat(30_000))),
            ("escapes without end", format!("a; b=\"{}", "\\".repeat(30_000))),
            ("64 KB of spaces and quotes", " \"".repeat(32_000)),
            ("64 KB of spaces", format!("b{}x", " ".repeat(64_000))),
        ] {
            let client = vec![Send(upgrade("/", &format!("{name}: {value}\r\n"))), Head];
            tries.push(Try::new(format!("{name}: {what}"), listens(), client));
        }
    }
    Case {
        name: "Garbage in the offers",
        attack: "sends long garbage in Sec-WebSocket-Protocol and Sec-WebSocket-Extensions",
        harm: "the backend has to parse it",
        seen_in: "like CVE-2021-32640 in ws",
        tries,
        shows: any_request,
        stopped_by: &[Answer(400), Answer(431)],
        ..Case::BASE
    }
}

pub fn slow_heads() -> Case {
    let head = upgrade("/", &"X: y\r\n".repeat(90));
    let clients = [
        vec![Drip(head[..20].to_vec(), Duration::from_millis(100))],
        vec![Send(head[..60].to_vec()), Hold(behind(millis(1000)))],
        vec![Hold(behind(millis(1000)))],
    ];
    let all = clients.into_iter().cycle().take(scaled(30, 300)).collect();
    Case {
        name: "Slow heads",
        attack: "opens many connections and sends their heads byte by byte, half, or never",
        harm: "they are still held long behind every limit",
        tries: vec![beside_somebody("", listens(), all)],
        shows: Seen::someone_is_still_there,
        course: Course::Lasting,
        stopped_by: &[Answer(408)],
        settings: Settings {
            listener: "head: { timeout: 1s }",
            nginx: Nginx::Server("client_header_timeout 2s;"),
            note: "both proxies' time limits shortened",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}
