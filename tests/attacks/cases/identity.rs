//! Who asks, and from where: origins, addresses, and cookies that bring clients back.

use std::sync::Arc;

use super::{any_request, beside_somebody, honest_with, listens, scaled};
use crate::bytes::{Head as Parsed, answer, switching, upgrade, upgrade_but};
use crate::case::Outcome::{Answer, Served};
use crate::case::{Case, Nginx, Seen, Settings, Try};
use crate::wire::Script;
use crate::wire::Step::{Head, Reply, Send};

/// An address that is nobody's. RFC 5737.
const FORGED: &str = "203.0.113.7";

/// How many handshakes, or sessions, the limits of the cases about them let through at once.
const BURST: usize = 5;

/// Handshakes with these lines.
fn handshakes(lines: &[&str]) -> Vec<Try> {
    let handshake = |lines: &&str| {
        let client = vec![Send(upgrade("/", &format!("{lines}\r\n"))), Head];
        Try::new(lines.replace("\r\n", ", ").escape_debug().to_string(), listens(), client)
    };
    lines.iter().map(handshake).collect()
}

/// Whether more of the attackers' handshakes reach the backend than the limit lets through.
fn more_than_the_burst(seen: &Seen) -> bool {
    seen.requests().filter(|head| head.second_word() == "/").count() > BURST
}

pub fn foreign_origins() -> Case {
    Case {
        name: "Cross-site hijacking",
        attack: "opens a WebSocket from a page of another site, with the visitor's cookies",
        harm: "the backend gets the handshake",
        tries: handshakes(&[
            "Origin: https://evil.example",
            "Origin: https://app.example.evil.example",
            "Origin: https://evil-app.example",
            "Origin: https://app.example@evil.example",
            "Origin: https://evil.example/app.example",
            "Origin: https://evil.example?app.example",
            "Origin: https://evil.example#app.example",
            "Origin: https://appXexample",
            "Origin: https://sub.app.example",
            "Origin: https://example",
            "Origin: https://app.example.",
            "Origin: https://app.example:8443",
            "Origin: http://app.example:8080",
            "Origin: https://app.example:",
            "Origin: https://app.example/",
            "Origin: https://app.example/x",
            "Origin: https://app.example https://evil.example",
            "Origin: https://app.example, https://evil.example",
            "Origin: https://app.example\r\nOrigin: https://evil.example",
            "Origin: https://app.example\r\nOrigin: https://app.example",
            "Origin: null",
            "Origin: NULL",
            "Origin:",
            "Origin: app.example",
            "Origin: //app.example",
            "Origin: https:app.example",
            "Origin: https:///app.example",
            "Origin: file://",
            "Origin: file://app.example",
            "Origin: chrome-extension://app.example",
            "Origin: ws://app.example",
            "Origin: ftp://app.example",
            "Origin: javascript:alert(1)",
            "Origin: https://\u{430}pp.example",
            "Origin: https://xn--pp-6kc.example",
            "Origin: https://app.example%00.evil.example",
            "Origin: https://*",
            "Origin: *",
        ]),
        shows: any_request,
        stopped_by: &[Answer(403)],
        ..Case::BASE
    }
}

pub fn origins_beside_a_wildcard() -> Case {
    Case {
        name: "Origins beside a wildcard",
        attack: "opens a WebSocket from hosts that look as if `https://*.example.com` allowed them",
        harm: "the backend gets the handshake",
        tries: handshakes(&[
            "Origin: https://example.com",
            "Origin: https://xexample.com",
            "Origin: https://a.b.example.com",
            "Origin: https://.example.com",
            "Origin: https://*.example.com",
            "Origin: https://a.example.com.evil.example",
            "Origin: https://a.example.com.",
            "Origin: https://a.example.com:8443",
            "Origin: http://a.example.com",
            "Origin: https://evil.example/a.example.com",
            "Origin: https://evil.example#.example.com",
            "Origin: https://a.exampleXcom",
        ]),
        shows: any_request,
        stopped_by: &[Answer(403)],
        settings: Settings {
            rule: &["origin: { allow: [\"https://*.example.com\"] }"],
            note: "with `origin.allow`",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn a_host_that_was_rebound() -> Case {
    let handshake = |host: &str, origin: &str| {
        let request = upgrade_but("Host: app.example\r\n", &format!("Host: {host}\r\nOrigin: {origin}\r\n"));
        Try::new(host, listens(), vec![Send(request), Head])
    };
    Case {
        name: "DNS rebinding",
        attack: "lets a name of the attacker's own lead to the server, so that Host and Origin are equal",
        harm: "the backend gets the handshake",
        tries: vec![
            handshake("evil.example", "http://evil.example"),
            handshake("evil.example:8080", "http://evil.example:8080"),
            handshake("app.example.evil.example", "https://app.example.evil.example"),
            handshake("127.0.0.1", "http://127.0.0.1"),
        ],
        shows: any_request,
        stopped_by: &[Answer(421)],
        settings: Settings {
            listener: "hosts: [app.example]",
            nginx: Nginx::Hosts("server_name app.example;"),
            note: "with `listeners[].hosts`, and nginx with `server_name`",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn a_forged_address_for_the_backend() -> Case {
    let lines = [
        format!("X-Forwarded-For: {FORGED}"),
        format!("X-Forwarded-For: {FORGED}\r\nX-Forwarded-For: {FORGED}"),
        format!("X-Forwarded-For: ::ffff:{FORGED}"),
        format!("X-Forwarded-For: \"[::ffff:{FORGED}]:80\""),
        format!("x-forwarded-for: {FORGED}, 127.0.0.1"),
        format!("X-Real-IP: {FORGED}"),
        format!("X-Real-IP: 127.0.0.1\r\nX-Real-IP: {FORGED}"),
        format!("Forwarded: for={FORGED}"),
        format!("Forwarded: for=\"{FORGED}:80\";proto=https"),
        format!("X-Forwarded-Host: {FORGED}"),
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    Case {
        name: "Forged client addresses",
        attack: "names an address of its choice in the headers that proxies write",
        harm: "the backend gets it",
        tries: handshakes(&lines),
        shows: |seen| seen.requests().any(|head| head.headers.iter().any(|(_, value)| value.contains(FORGED))),
        stopped_by: &[Served],
        ..Case::BASE
    }
}

pub fn forged_addresses_past_a_limit() -> Case {
    let forged = |n: usize| {
        [
            format!("X-Forwarded-For: 203.0.113.{n}\r\n"),
            format!("X-Real-IP: 203.0.113.{n}\r\n"),
            format!("Forwarded: for=203.0.113.{n}\r\n"),
            format!("X-Forwarded-For: 2001:db8::{n}, ::1\r\nForwarded: for=\"[2001:db8::{n}]\"\r\n"),
        ]
    };
    // One way only: the limit remembers its clients from one to the next.
    let clients = (0..10).flat_map(forged).map(|lines| vec![Send(upgrade("/", &lines)), Head]);
    let one = Try { clients: clients.collect(), ..Try::new("in three headers", listens(), Vec::new()) };
    Case {
        name: "Forged addresses past a limit",
        attack: "opens forty sessions from one address, each under another name in the headers that proxies write",
        harm: "more of them reach the backend than one address may open",
        tries: vec![one],
        shows: more_than_the_burst,
        stopped_by: &[Served, Answer(429)],
        settings: Settings {
            rule: &["handshake: { per_ip: { rate: 1/h, burst: 5 } }"],
            nginx: Nginx::Server("limit_req zone=handshakes burst=4 nodelay;"),
            note: "both proxies with a limit of five",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

/// A limit of five handshakes, behind a proxy that both believe.
const BEHIND_A_PROXY: Settings = Settings {
    main: &["trusted_proxies: [127.0.0.0/8]"],
    rule: &["handshake: { per_ip: { rate: 1/h, burst: 5 } }"],
    nginx: Nginx::Server(
        "set_real_ip_from 127.0.0.0/8; real_ip_header X-Forwarded-For; real_ip_recursive on;
         limit_req zone=handshakes burst=4 nodelay;",
    ),
    note: "both with a limit of five, behind a proxy that they believe",
    ..Settings::NONE
};

pub fn forged_addresses_through_a_proxy() -> Case {
    // The proxy in front wrote what is right-most; all else is the client's own.
    let lines = |n: usize, own: &str| {
        [
            format!("X-Forwarded-For: 198.51.100.{n}, {own}\r\n"),
            format!("X-Forwarded-For: 198.51.100.{n}\r\nX-Forwarded-For: {own}\r\n"),
            format!("X-Forwarded-For: 198.51.100.{n}, {own}:{}\r\n", 1000 + n),
            format!("X-Forwarded-For: 198.51.100.{n}, ::ffff:{own}\r\n"),
            format!("X-Forwarded-For: 198.51.100.{n}, [::ffff:{own}]:{}\r\n", 1000 + n),
            format!("X-Forwarded-For: unknown, \"198.51.100.{n}\", {own}, 127.0.0.{n}\r\n"),
            format!("X-Forwarded-For: {own}\r\nX-Real-IP: 198.51.100.{n}\r\n"),
            format!("X-Forwarded-For: {own}\r\nForwarded: for=198.51.100.{n}\r\n"),
        ]
    };
    // The limit remembers its clients from one try to the next, so each has addresses of its own.
    let tries = lines(1, "A").into_iter().enumerate().map(|(way, what)| {
        let own = format!("203.0.113.{}", way + 1);
        let client = |n| vec![Send(upgrade("/", &lines(n, &own)[way])), Head];
        let bystander = honest_with(&format!("X-Forwarded-For: 198.51.100.1, 192.0.2.{}\r\n", way + 1));
        let what = what.trim_end().replace("\r\n", ", ");
        Try { bystander, ..beside_somebody(&what, listens(), (1..=2 * BURST).map(client).collect()) }
    });
    Case {
        name: "Forged addresses through a proxy",
        attack: "writes addresses of its choice into the header to which a proxy that is believed appends the real one",
        harm: "more handshakes reach the backend than one address may send",
        tries: tries.collect(),
        shows: more_than_the_burst,
        stopped_by: &[Served, Answer(429)],
        settings: BEHIND_A_PROXY,
        ..Case::BASE
    }
}

pub fn addresses_of_one_network() -> Case {
    let client = |n: usize| {
        let address = format!("2001:db8:0:1:{:x}:{:x}:{n:x}:1", n * 7 % 0xffff, n * 31 % 0xffff);
        vec![Send(upgrade("/", &format!("X-Forwarded-For: {address}\r\n"))), Head]
    };
    let clients = (1..=scaled(60, 1000)).map(client).collect();
    let bystander = honest_with("X-Forwarded-For: 2001:db8:0:2::1\r\n");
    Case {
        name: "Addresses of one network",
        attack: "sends a thousand handshakes from as many addresses of one IPv6 /64, which any client has",
        harm: "more of them reach the backend than one client may send",
        tries: vec![Try { bystander, ..beside_somebody("", listens(), clients) }],
        shows: more_than_the_burst,
        stopped_by: &[Served, Answer(429)],
        settings: BEHIND_A_PROXY,
        ..Case::BASE
    }
}

pub fn too_many_sessions_of_an_address() -> Case {
    let client = vec![Send(upgrade("/", "")), Head];
    Case {
        name: "Too many sessions of an address",
        attack: "opens session after session from one address, and says nothing, so that nobody can know who it is",
        harm: "more of them reach the backend than one address may have",
        tries: vec![Try::new("", Vec::new(), Vec::new())]
            .into_iter()
            .map(|one| Try { backend: vec![("", listens())], clients: vec![client.clone(); scaled(30, 300)], ..one })
            .collect(),
        shows: more_than_the_burst,
        stopped_by: &[Served, Answer(429)],
        settings: Settings {
            rule: &["connections: { per_ip: 5 }"],
            nginx: Nginx::Server("limit_conn sessions 5;"),
            note: "both proxies with a limit of five",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

/// A cookie that another gateway made, with another secret.
const OF_ANOTHER_SECRET: &str = "AAAAAGklZ2T0pFpxoNmzcS4bT4oPjeY0K5OZcVn6ZqA";

/// Sticky cookies in the rule and in another one.
pub const STICKY: Settings = Settings {
    rules: &["{ name: other, match: { path_prefix: /other }, upstream: app, sticky: { cookie: {} } }"],
    rule: &["sticky: { cookie: {} }"],
    nginx: Nginx::Absent,
    note: "with `sticky.cookie`",
    ..Settings::NONE
};

/// A backend that gives no cookies. A plain request and the handshake behind it are on one connection when nobody is
/// between.
pub fn gives_no_cookie() -> Vec<(&'static str, Script)> {
    let plain = vec![Head, Send(answer(200, "Connection: close\r\n", "")), Head, Send(switching(""))];
    vec![("/ticket", plain.clone()), ("/other", plain), ("", listens())]
}

/// A client that asks for `path` first, and opens a session with what `forge` makes of the cookie that it was given.
pub fn comes_back(path: &str, forge: impl Fn(&str) -> String + std::marker::Send + Sync + 'static) -> Script {
    let with_cookie = move |came: &[u8]| {
        let given = Parsed::parse(came).and_then(|head| head.all("set-cookie").next().map(str::to_owned));
        let value = given.as_deref().and_then(|cookie| cookie.split([';', '=']).nth(1));
        upgrade("/", &format!("Cookie: sluicegate={}\r\n", forge(value.unwrap_or(OF_ANOTHER_SECRET))))
    };
    let first = format!("GET {path} HTTP/1.1\r\nHost: app.example\r\n\r\n");
    vec![Send(first.into_bytes()), Head, Reply(Arc::new(with_cookie)), Head]
}

/// Whether a client's second request was a session that got no new cookie: the one that it sent was taken.
pub fn cookie_was_taken(came: &[u8]) -> bool {
    let second = Parsed::parse(came).and_then(|head| Parsed::parse(&came[head.len..]));
    second.is_some_and(|head| head.second_word() == "101" && head.all("set-cookie").next().is_none())
}

/// The cookie with one character replaced.
fn flipped(cookie: &str, at: usize) -> String {
    let replace = |(nth, c): (usize, char)| {
        if nth != at {
            c
        } else if c == 'A' {
            'B'
        } else {
            'A'
        }
    };
    cookie.chars().enumerate().map(replace).collect()
}

pub fn forged_sticky_cookies() -> Case {
    let bytes = OF_ANOTHER_SECRET.len();
    let tried = |what: &str, clients: Vec<Script>| Try {
        backend: gives_no_cookie(),
        clients,
        ..Try::new(what, Vec::new(), Vec::new())
    };
    let flips = (0..bytes).map(|at| comes_back("/ticket", move |cookie| flipped(cookie, at))).collect();
    let cuts = (0..bytes).map(|len| comes_back("/ticket", move |cookie| cookie[..len].to_owned())).collect();
    let mut tries = vec![
        tried("each byte replaced", flips),
        tried("cut off at each byte", cuts),
        tried("of another rule", vec![comes_back("/other", str::to_owned)]),
        tried("of another secret", vec![comes_back("/ticket", |_| OF_ANOTHER_SECRET.to_owned())]),
        tried("longer", vec![comes_back("/ticket", |cookie| format!("{cookie}A"))]),
    ];
    for name in ["app", "0", "1", "127.0.0.1:3000", "MTI3LjAuMC4xOjMwMDA", "../app", "*"] {
        tries.push(tried(name, vec![comes_back("/ticket", move |_| name.to_owned())]));
    }
    Case {
        name: "Forged sticky cookies",
        attack: "changes the cookie that brings it back, or makes one, to choose its endpoint",
        harm: "the cookie is taken: no new one comes",
        tries,
        shows: |seen| seen.clients.iter().any(|heard| cookie_was_taken(&heard.bytes)),
        stopped_by: &[Served],
        settings: STICKY,
        ..Case::BASE
    }
}
