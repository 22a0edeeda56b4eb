//! What an operator has denied: paths, hosts, upgrades and figures, and the ways around.

use super::{answers, any_request, beside_somebody, listens, scaled};
use crate::bytes::{CLOSE, answer, close_payload, from_backend, from_client, switching, upgrade_but};
use crate::case::Outcome::{Answer, Close, Served};
use crate::case::{Case, Measure, Nginx, Settings, Try, outcome};
use crate::wire::Step::{Head, Send, Until};

/// The path that the most lenient of backends takes a target for: parameters and fragments cut off, escapes decoded
/// once, backslashes as slashes, dot segments resolved, slashes merged.
fn lenient_path(target: &str) -> String {
    let target = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://")).map_or(target, |_| {
        let rest = &target[7..];
        &rest[rest.find('/').unwrap_or(rest.len())..]
    });
    let target = target.split(['?', '#']).next().unwrap_or_default();
    let without_parameters = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    let segments: Vec<_> = target.split(['/', '\\']).map(without_parameters).collect();
    let decoded = percent_encoding::percent_decode_str(&segments.join("/")).decode_utf8_lossy().replace('\\', "/");
    let decoded = decoded.split('\0').next().unwrap_or_default();
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

pub fn spellings_of_a_denied_path() -> Case {
    let spellings = [
        "/internal",
        "/internal/",
        "/internal/x",
        "/internal?x",
        "/%69nternal",
        "/intern%61l",
        "/%69%6E%74%65%72%6E%61%6C",
        "//internal",
        "///internal",
        "/./internal",
        "/.//internal",
        "/%2e/internal",
        "/x/../internal",
        "/x/%2e%2e/internal",
        "/x/.%2e/internal",
        "/x/%2E./internal",
        "/x/%2e%2e%2finternal",
        "/x/..%2Finternal",
        "/x/..;/internal",
        "/x/..;a=b/internal",
        "/x/%2e%2e;/internal",
        "/x//../internal",
        "//x/../internal",
        "/x/y/../../internal",
        "/../internal",
        "/\\internal",
        "\\internal",
        "/x\\..\\internal",
        "/x/..\\internal",
        "/%5cinternal",
        "/x%5c..%5cinternal",
        "/%2finternal",
        "/%2Finternal",
        "/internal;x",
        "/internal;x=y/z",
        "/;x/internal",
        "/internal%00",
        "/internal%00.html",
        "/internal#x",
        "/internal/../internal",
        "/internal/.",
        "/internal//",
        "/internal%2fx",
        "/internal%5cx",
        "http://app.example/internal",
        "HTTP://APP.EXAMPLE/internal",
        "http://app.example//internal",
        "/internal//x",
        "/x//%2e%2e//internal",
        "//;x/internal;y",
        "http://app.example/x/../internal",
    ];
    let tries = spellings.map(|spelling| {
        let request = format!("GET {spelling} HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n");
        Try::new(spelling, answers(), vec![Send(request.into()), Head])
    });
    Case {
        name: "Spellings of a denied path",
        attack: "writes a denied path in ways that some backend or other takes for the same",
        harm: "the backend gets a request for it",
        tries: tries.into(),
        shows: |seen| {
            seen.requests().any(|head| {
                let path = lenient_path(head.second_word());
                path == "/internal" || path.starts_with("/internal/")
            })
        },
        stopped_by: &[Answer(400), Answer(403)],
        ..Case::BASE
    }
}

pub fn malformed_hosts() -> Case {
    let hosts = [
        "",
        "Host:\r\n",
        "Host: \r\n",
        "Host: app.example\r\nHost: app.example\r\n",
        "Host: app.example\r\nHost: evil.example\r\n",
        "Host: app.example, evil.example\r\n",
        "Host: user@app.example\r\n",
        "Host: app.example@evil.example\r\n",
        "Host: app.example evil.example\r\n",
        "Host: app.example/x\r\n",
        "Host: app.example?x\r\n",
        "Host: app.example#x\r\n",
        "Host: app.example:\r\n",
        "Host: app.example:0\r\n",
        "Host: app.example:99999\r\n",
        "Host: app.example:80:80\r\n",
        "Host: app.example:x\r\n",
        "Host: :80\r\n",
        "Host: http://app.example\r\n",
        "Host: app..example\r\n",
        "Host: .app.example\r\n",
        "Host: *\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: app.example\0\r\n",
        "Host: app.example%00\r\n",
        "Host: app.ex\u{e4}mple\r\n",
        "Host: app\texample\r\n",
        "Host: app.example\\x\r\n",
        "Host : app.example\r\n",
        " Host: app.example\r\n",
    ];
    let tries = hosts.map(|lines| {
        let what = if lines.is_empty() { "none".to_owned() } else { lines.trim_end().replace("\r\n", ", ") };
        let client = vec![Send(upgrade_but("Host: app.example\r\n", lines)), Head];
        Try::new(what.escape_debug().to_string(), listens(), client)
    });
    Case {
        name: "Malformed Host",
        attack: "sends no Host, several, or one that two programs read in two ways",
        harm: "the backend gets the request",
        tries: tries.into(),
        shows: any_request,
        stopped_by: &[Answer(400)],
        ..Case::BASE
    }
}

/// Ways to ask for a WebSocket, or nearly.
fn upgrades() -> [(&'static str, &'static str); 10] {
    [
        ("no Upgrade", ""),
        ("Upgrade: x", "Upgrade: x\r\nConnection: Upgrade\r\n"),
        ("Upgrade: h2c", "Upgrade: h2c\r\nConnection: Upgrade\r\n"),
        ("Upgrade without its Connection", "Upgrade: websocket\r\n"),
        ("Upgrade beside Connection: keep-alive", "Upgrade: websocket\r\nConnection: keep-alive\r\n"),
        ("Upgrade: websocket", "Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        ("Upgrade: WebSocket", "Upgrade: WebSocket\r\nConnection: upgrade\r\n"),
        ("UPGRADE: WEBSOCKET", "UPGRADE: WEBSOCKET\r\nCONNECTION: UPGRADE\r\n"),
        ("Connection: keep-alive, Upgrade", "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"),
        ("Connection on two lines", "Connection: keep-alive\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"),
    ]
}

/// Everything that a handshake has besides its Upgrade and Connection.
fn asks(path: &str, host: &str, lines: &str) -> Vec<u8> {
    let lines = format!("Host: {host}\r\n{lines}");
    String::from_utf8_lossy(&upgrade_but("Host: app.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n", &lines))
        .replace("GET / ", &format!("GET {path} "))
        .into_bytes()
}

pub fn spellings_of_an_upgrade() -> Case {
    let denied = [
        ("a path", "/internal", "app.example"),
        ("a client", "/denied", "app.example"),
        ("a host", "/", "evil.example"),
    ];
    let tries = denied.into_iter().flat_map(|(what, path, host)| {
        upgrades().map(|(spelling, lines)| {
            let client = vec![Send(asks(path, host, lines)), Head];
            Try::new(format!("{what} that is denied, {spelling}"), answers(), client)
        })
    });
    Case {
        name: "Spellings of an upgrade",
        attack: "writes Upgrade and Connection in ways by which what is denied may be no plain request and no WebSocket",
        harm: "the backend gets the request",
        tries: tries.collect(),
        shows: any_request,
        stopped_by: &[Answer(403), Answer(421)],
        settings: Settings {
            listener: "hosts: [app.example]",
            rules: &[
                "{ name: denied, match: { path_prefix: /denied }, upstream: app, clients: { deny: [127.0.0.0/8] } }",
            ],
            nginx: Nginx::Hosts("server_name app.example; location /denied { deny 127.0.0.0/8; }"),
            note: "both with the host, the path and the client denied",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn an_upgrade_where_none_is_allowed() -> Case {
    let websockets =
        upgrades().into_iter().filter(|(_, lines)| lines.contains("pgrade: ") || lines.contains("GRADE: "));
    let tries =
        websockets.map(|(what, lines)| Try::new(what, answers(), vec![Send(asks("/", "app.example", lines)), Head]));
    Case {
        name: "Upgrades where none is allowed",
        attack: "asks for an upgrade where the operator allows plain HTTP only",
        harm: "the backend is asked for an upgrade",
        tries: tries.collect(),
        shows: |seen| seen.requests().any(|head| head.all("upgrade").next().is_some()),
        stopped_by: &[Answer(403), Served],
        settings: Settings {
            rule: &["websocket: deny"],
            nginx: Nginx::Server("if ($http_upgrade = websocket) { return 403; }"),
            note: "with `websocket: deny`, and nginx with an `if` on `websocket`",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn patterns_that_backtrack() -> Case {
    let long = "a".repeat(8_000);
    let path = asks(&format!("/{long}x"), "app.example", "");
    let header = asks("/", "app.example", &format!("X-App: {long}x\r\n"));
    let tries = [("a path", path), ("a header", header)];
    Case {
        name: "Patterns that backtrack",
        attack: "sends what a pattern of the operator's, such as `(a+)+b`, can be tried against in endless ways",
        harm: "the backend gets what the pattern keeps from it, and has to match it itself",
        tries: tries.map(|(what, request)| beside_somebody(what, answers(), vec![vec![Send(request), Head]])).into(),
        shows: |seen| seen.requests().any(|head| head.second_word() != "/echo"),
        stopped_by: &[Answer(404)],
        settings: Settings {
            rules: &["{ name: pattern, match: { headers: { x-app: \"^(a+)+$\" } }, upstream: app }"],
            rule: &["match: { path_regex: \"/echo|/(a+)+b\" }"],
            nginx: Nginx::Server("location ~ ^/(?!echo|(a+)+b$) { return 404; }"),
            note: "patterns for what is served",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn the_admin_endpoint_on_the_data_port() -> Case {
    let request = |line: &str, host: &str| format!("{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
    let lines = [
        "GET /metrics",
        "GET /sessions",
        "GET /config",
        "GET /healthz",
        "GET /readyz",
        "POST /drain",
        "DELETE /sessions/0",
        "GET //metrics",
        "GET /metrics/",
        "GET /x?/metrics",
    ];
    let mut requests: Vec<_> = lines.iter().map(|line| (line.to_string(), request(line, "app.example"))).collect();
    for host in ["localhost", "127.0.0.1:9901"] {
        requests.push((format!("GET /metrics, Host: {host}"), request("GET /metrics", host)));
        requests.push((format!("GET http://{host}/metrics"), request(&format!("GET http://{host}/metrics"), host)));
    }
    // A program that has its figures and its switches beside what it serves.
    let backend = vec![Head, Send(answer(200, "", "# TYPE open_files gauge\n"))];
    let tries = requests
        .into_iter()
        .map(|(what, request)| beside_somebody(&what, backend.clone(), vec![vec![Send(request.into_bytes()), Head]]));
    Case {
        name: "Operators' paths on the clients' port",
        attack: "asks for metrics, sessions and configuration, or orders a drain, where clients come in",
        harm: "it is answered, or obeyed",
        tries: tries.collect(),
        shows: |seen| seen.clients.iter().any(|heard| outcome(heard) == Some(Served)),
        stopped_by: &[Answer(404)],
        settings: Settings {
            rule: &["match: { path_prefix: /echo }"],
            nginx: Nginx::Server("location ~ ^/(?!echo) { return 404; }"),
            note: "a rule for what is served, and nothing else",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

/// How many clients try to make series.
fn series_makers() -> usize {
    scaled(150, 500)
}

pub fn labels_of_the_clients_choice() -> Case {
    let session = |n: usize| {
        let lines = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://h{n}.example\r\nUser-Agent: u{n}\r\n\
             Sec-WebSocket-Protocol: p{n}\r\n"
        );
        let close = from_client(CLOSE, &close_payload(3000 + n as u16, b""));
        vec![Send(asks(&format!("/x{n}?y{n}"), &format!("h{n}.example"), &lines)), Head, Send(close)]
    };
    let plain = |n: usize| {
        let request = format!("M{n} /p{n} HTTP/1.1\r\nHost: h{n}.example\r\nX-Forwarded-For: 10.0.0.{n}\r\n\r\n");
        vec![Send(request.into_bytes()), Head]
    };
    let clients = (0..series_makers()).map(|n| if n % 2 == 0 { session(n) } else { plain(n) }).collect();
    let session =
        vec![Head, Send(switching("")), Until(vec![CLOSE, 0x82]), Send(from_backend(CLOSE, &close_payload(1000, b"")))];
    let backend = vec![("/x", session), ("", answers())];
    let tried = Try { backend, clients, ..Try::new("", Vec::new(), Vec::new()) };
    Case {
        name: "Labels of the client's choice",
        attack: "asks with many methods, paths, hosts, origins and close codes, to fill the metrics with series",
        harm: "whoever counts by what clients send has a series for each",
        tries: vec![tried],
        shows: |seen| seen.measured >= series_makers(),
        measure: Measure::Series,
        stopped_by: &[Served, Close(1000)],
        settings: Settings { nginx: Nginx::Absent, ..Settings::NONE },
        ..Case::BASE
    }
}
