//! permessage-deflate in its three modes: what is negotiated with whom, and what is made of compressed messages.

use sluicegate::cause::Refusal;
use sluicegate::ws::deflate::{Deflater, Inflater};

use crate::support::frames::{self, BINARY, CLOSE, Frame, TEXT};
use crate::support::{Backend, Client, Config, Gateway, switching, upgrade};

const DEFLATE: &str = "permessage-deflate";
const RSV1: u8 = 0x40;

fn extensions(value: &str) -> String {
    format!("Sec-WebSocket-Extensions: {value}\r\n")
}

/// A backend that answers with these extensions and echoes frames as they come, RSV1 and all.
fn answering(value: &'static str) -> Backend {
    Backend::start(move |connection| {
        if connection.request().is_some() {
            let lines = if value.is_empty() { String::new() } else { extensions(value) };
            connection.io.send(switching(&lines));
            while let Some(frame) = connection.io.try_frame() {
                let mut echo = frames::plain(frame.opcode | if frame.rsv1 { RSV1 } else { 0 }, &frame.payload);
                if !frame.fin {
                    echo[0] &= 0x7f;
                }
                connection.io.send(echo);
                if frame.opcode == CLOSE {
                    return;
                }
            }
        }
    })
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Deflater::new().feed(plain, true, &mut bytes);
    bytes
}

fn inflate(payload: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut sink = |bytes: &[u8]| {
        plain.extend_from_slice(bytes);
        Ok(())
    };
    let mut inflater = Inflater::new();
    inflater.feed(payload, &mut sink).and_then(|_| inflater.finish(&mut sink)).expect("it is compressed");
    plain
}

/// A session whose client offers `offer`, and what it was answered.
fn session(gateway: &Gateway, offer: &str) -> (Client, Option<String>) {
    let mut client = gateway.connect();
    client.send(upgrade("/", &extensions(offer)));
    let answer = client.answer_head();
    assert_eq!(answer.status(), 101);
    (client, answer.one("sec-websocket-extensions").map(str::to_owned))
}

/// The next message, of any number of frames.
fn message(client: &mut Client) -> Frame {
    let mut message = client.frame();
    while !message.fin {
        let next = client.frame();
        assert!(next.opcode == 0 && !next.rsv1, "{next:?}");
        message.payload.extend(next.payload);
        message.fin = next.fin;
    }
    message
}

#[test]
fn passes_offers_and_the_answer_and_asks_the_client_for_no_context() {
    for (offer, offered, answered, told) in [
        (DEFLATE, DEFLATE, DEFLATE, "permessage-deflate; client_no_context_takeover"),
        (
            "x-other; a=1, permessage-deflate; client_max_window_bits; server_max_window_bits=\"12\"",
            "permessage-deflate; server_max_window_bits=12; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=10; client_max_window_bits=9",
            "permessage-deflate; client_no_context_takeover; server_max_window_bits=10; client_max_window_bits=9",
        ),
        (
            DEFLATE,
            DEFLATE,
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover",
        ),
    ] {
        let backend = answering(answered);
        let gateway = Gateway::start(&Config::to(backend.address));
        let (mut client, answer) = session(&gateway, offer);
        assert_eq!(answer.as_deref(), Some(told));
        assert_eq!(backend.wait_for_request(1).head.one("sec-websocket-extensions"), Some(offered));
        let payload = deflate("grün ".repeat(1000).as_bytes());
        client.send_frame(TEXT | RSV1, &payload);
        let echo = client.frame();
        assert!(echo.rsv1 && echo.fin && echo.opcode == TEXT && echo.payload == payload, "it passes as it came");
        client.expect_echo("and plain");
        client.close();
        let line = gateway.wait_for_log(|line| line["event"] == "session");
        assert_eq!((&line["compression"], &line["messages_in"]), (&"passthrough".into(), &2.into()));
    }
}

#[test]
fn offers_nothing_where_it_is_refused_or_unknown_or_declined() {
    for (mode, offer, answered) in
        [("refuse", DEFLATE, ""), ("passthrough", "x-webkit-deflate-frame", ""), ("passthrough", DEFLATE, "")]
    {
        let backend = answering(answered);
        let gateway = Gateway::start(&Config::to(backend.address).rule(&format!("compression: {mode}")));
        let (mut client, answer) = session(&gateway, offer);
        assert_eq!(answer, None);
        let seen = backend.wait_for_request(1).head.has("sec-websocket-extensions");
        assert_eq!(seen, mode == "passthrough" && offer == DEFLATE);
        client.send_frame(TEXT | RSV1, deflate(b"not agreed on"));
        assert_eq!(client.frame().close_code(), Some(1002));
        drop(client);
        let line = gateway.wait_for_log(|line| line["event"] == "session");
        assert_eq!((&line["compression"], &line["cause"]), (&"off".into(), &"client_protocol".into()));
    }
}

#[test]
fn refuses_malformed_offers_and_answers_that_were_not_asked_for() {
    let backend = answering("");
    let gateway = Gateway::start(&Config::to(backend.address));
    for offer in [
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; server_no_context_takeover=1",
    ] {
        gateway.expect_refused(upgrade("/", &extensions(offer)), Refusal::BadOffer);
    }
    assert_eq!(backend.connections(), 0);
    for (offer, answered) in [
        ("", DEFLATE),
        (DEFLATE, "x-other"),
        (DEFLATE, "permessage-deflate; client_max_window_bits=9"),
        (DEFLATE, "permessage-deflate; server_max_window_bits=7"),
        (DEFLATE, "permessage-deflate, permessage-deflate"),
        ("permessage-deflate; server_max_window_bits=9", "permessage-deflate; server_max_window_bits=10"),
    ] {
        let backend = answering(answered);
        let gateway = Gateway::start(&Config::to(backend.address));
        let lines = if offer.is_empty() { String::new() } else { extensions(offer) };
        gateway.expect_refused(upgrade("/", &lines), Refusal::UpstreamInvalidUpgrade);
    }
}

/// What a client sends of which the backend may see no whole message, and the code that it gets.
fn refused(rule: &str, sent: &[u8], code: u16, cause: &str) {
    for mode in ["passthrough", "terminate"] {
        let backend = answering(if mode == "passthrough" { DEFLATE } else { "" });
        let gateway = Gateway::start(&Config::to(backend.address).rule(&format!("compression: {mode}{rule}")));
        let (mut client, _) = session(&gateway, DEFLATE);
        client.expect_echo("before");
        client.try_send(sent);
        let frame = client.frame();
        assert_eq!(frame.close_code(), Some(code), "{mode}: {cause}");
        drop(client);
        let line = gateway.wait_for_log(|line| line["event"] == "session");
        assert_eq!(line["cause"], cause, "{mode}: {line}");
        assert_eq!(line["messages_in"], 1, "{mode}: {line}");
    }
}

#[test]
fn inflated_bytes_are_counted_while_they_are_inflated() {
    let rule = ", message: { max_size: 64KiB }";
    let frame = |payload: &[u8]| frames::masked(BINARY | RSV1, payload);
    refused(rule, &frame(&deflate(&vec![0; (64 << 10) + 1])), 1009, "message_too_big");
    // A last block, and the bomb behind it. RFC 7692 §7.2.3.4.
    let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    refused(rule, &frame(&[&last[..], &deflate(&vec![0; 64 << 10])].concat()), 1009, "message_too_big");
    // A bomb of 64 MiB in fragments of 100 bytes.
    let bomb = deflate(&vec![0; 64 << 20]);
    let mut fragments = Vec::new();
    for (number, piece) in bomb.chunks(100).enumerate() {
        let mut fragment = frames::masked(if number == 0 { BINARY | RSV1 } else { 0 }, piece);
        fragment[0] &= 0x7f;
        fragments.extend(fragment);
    }
    refused(rule, &fragments, 1009, "message_too_big");
}

#[test]
fn many_small_messages_that_inflate_to_much_are_refused_in_the_end() {
    let bomb = frames::masked(BINARY | RSV1, &deflate(&vec![0; 1 << 20]));
    let backend = answering(DEFLATE);
    let gateway = Gateway::start(&Config::to(backend.address).rule("slow_client: off"));
    let (mut client, _) = session(&gateway, DEFLATE);
    // Sixteen are free, and those of the time that it takes.
    let mut answers = (0..2000).map(|_| {
        client.try_send(&bomb);
        client.frame()
    });
    let close = answers.find(|frame| frame.opcode == CLOSE).expect("an end");
    assert_eq!(close.close_code(), Some(1009));
    drop(client);
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!(line["cause"], "inflation_ratio");
    assert!(line["messages_in"].as_u64().is_some_and(|messages| messages >= 16), "{line}");
}

#[test]
fn compressed_text_is_checked_and_back_references_before_a_message_are_refused() {
    refused("", &frames::masked(TEXT | RSV1, &deflate(b"\xc3\x28")), 1007, "client_invalid_utf8");
    refused("", &frames::masked(TEXT | RSV1, &deflate(b"\xc3")), 1007, "client_invalid_utf8");
    refused("", &frames::masked(TEXT | RSV1, b"\xff\xff"), 1002, "client_protocol");
    // "Hello" as a reference to the message before it. RFC 7692 §7.2.3.2.
    refused("", &frames::masked(TEXT | RSV1, &[0xf2, 0x00, 0x11, 0x00, 0x00]), 1002, "client_protocol");
    refused("", &frames::masked(0x09 | RSV1, b""), 1002, "client_protocol");
}

#[test]
fn terminates_compression_for_a_backend_that_has_none() {
    let backend = answering("");
    let gateway = Gateway::start(&Config::to(backend.address).rule("compression: terminate"));
    let (mut client, answer) = session(&gateway, "permessage-deflate; client_max_window_bits");
    assert_eq!(answer.as_deref(), Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover"));
    assert!(!backend.wait_for_request(1).head.has("sec-websocket-extensions"));
    let text = "Größe ".repeat(20_000);
    client.send_frame(TEXT | RSV1, deflate(text.as_bytes()));
    // The backend echoes plain fragments, and they come back compressed.
    let echo = message(&mut client);
    assert!(echo.rsv1 && echo.opcode == TEXT && echo.payload.len() < text.len() / 10);
    assert!(inflate(&echo.payload) == text.as_bytes());
    client.expect_echo("small and plain");
    // What comes in one piece goes on in one frame, each way.
    client.send_frame(TEXT | RSV1, deflate(&[b'x'; 5000]));
    let echo = client.frame();
    assert!(echo.fin && echo.rsv1 && inflate(&echo.payload) == [b'x'; 5000], "{echo:?}");
    client.send_frame(BINARY | RSV1, deflate(b""));
    assert_eq!(message(&mut client).payload, b"");
    client.close();
    let line = gateway.wait_for_log(|line| line["event"] == "session");
    assert_eq!((&line["compression"], &line["messages_in"]), (&"terminate".into(), &4.into()));
    // Bytes are those of the client's side.
    for direction in ["bytes_in", "bytes_out"] {
        assert!(line[direction].as_u64().is_some_and(|bytes| bytes < text.len() as u64 / 10), "{line}");
    }
}

#[test]
fn a_client_that_keeps_a_small_window_is_sent_what_fits_into_it() {
    for (offered, answered) in [(9, Some(9)), (10, Some(10)), (15, Some(15)), (8, None)] {
        let backend = answering("");
        let gateway = Gateway::start(&Config::to(backend.address).rule("compression: terminate"));
        let offer = format!("permessage-deflate; server_max_window_bits={offered}");
        let (mut client, answer) = session(&gateway, &offer);
        let told = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(answer, answered.map(|bits| format!("{told}; server_max_window_bits={bits}")));
        let text = "0123456789".repeat(500);
        client.send_frame(TEXT, &text);
        let echo = message(&mut client);
        assert_eq!(echo.rsv1, answered.is_some());
        assert!(if echo.rsv1 { inflate(&echo.payload) } else { echo.payload } == text.as_bytes());
        client.close();
    }
}
