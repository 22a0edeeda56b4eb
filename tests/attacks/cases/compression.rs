//! permessage-deflate as a weapon: bombs, negotiations that break parsers, and what hides in compressed payload.

use sluicegate::ws::deflate::{Deflater, Inflater};

use super::{any_request, scaled};
use crate::bytes::{BINARY, BINARY_BEGIN, Frame, LAST, MORE, TEXT, from_client, switching, upgrade};
use crate::case::Outcome::{Answer, Close, Cut};
use crate::case::{Case, Outcome, Seen, Try, outcome};
use crate::wire::Script;
use crate::wire::Step::{Flood, Head, Hold, Send};

/// RSV1: a compressed message begins. RFC 7692 §6.
const COMPRESSED: u8 = 0x40;

/// What the bombs become, in bytes: far over the message limit of 1 MiB.
const BOMB_BYTES: usize = 32 << 20;

fn extensions(value: &str) -> String {
    format!("Sec-WebSocket-Extensions: {value}\r\n")
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Deflater::new().feed(plain, true, &mut bytes);
    bytes
}

/// A backend that agrees on compression and then only listens; it keeps a window between messages, as it may.
fn agrees() -> Script {
    vec![Head, Send(switching(&extensions("permessage-deflate")))]
}

fn opens() -> Script {
    vec![Send(upgrade("/", &extensions("permessage-deflate"))), Head]
}

fn sends(what: &str, bytes: Vec<u8>) -> Try {
    Try::new(what, agrees(), [opens(), vec![Send(bytes)]].concat())
}

/// What the backend has to inflate, in bytes: whole messages only, a stream behind a last block included.
fn inflated_by_the_backend(seen: &Seen) -> u64 {
    let mut total = 0;
    let mut message: Option<Vec<u8>> = None;
    for Frame { first, payload } in seen.frames() {
        if first & COMPRESSED != 0 {
            message = Some(Vec::new());
        }
        let Some(whole) = &mut message else { continue };
        whole.extend(payload);
        if first & 0x80 != 0 {
            let mut inflater = Inflater::new();
            let _ = inflater.feed(whole, &mut |plain| {
                total += plain.len() as u64;
                Ok(())
            });
            message = None;
        }
    }
    total
}

pub fn compression_bombs() -> Case {
    let zeros = vec![0; BOMB_BYTES];
    let bomb = deflate(&zeros);
    let last_block = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let pieces: Vec<_> = bomb.chunks(bomb.len().div_ceil(500)).collect();
    let fragments = pieces.iter().enumerate().map(|(number, piece)| {
        let first = match number {
            0 => BINARY_BEGIN | COMPRESSED,
            number if number + 1 == pieces.len() => LAST,
            _ => MORE,
        };
        from_client(first, piece)
    });
    let fragments: Vec<u8> = fragments.collect::<Vec<_>>().concat();
    let tries = vec![
        sends("one message", from_client(BINARY | COMPRESSED, &bomb)),
        sends("text", from_client(TEXT | COMPRESSED, &bomb)),
        sends("in 500 fragments", fragments),
        sends("behind a last block", from_client(BINARY | COMPRESSED, &[&last_block[..], &bomb].concat())),
    ];
    Case {
        name: "Compression bombs",
        attack: "sends a few KiB that inflate to 32 MiB, in one message",
        harm: "the backend inflates more than 2 MiB of it",
        seen_in: "like CVE-2026-1526 in undici",
        tries,
        shows: |seen| inflated_by_the_backend(seen) > 2 << 20,
        stopped_by: &[Close(1009), Cut],
        ..Case::BASE
    }
}

pub fn small_bombs_one_after_another() -> Case {
    let bomb = from_client(BINARY | COMPRESSED, &deflate(&vec![0; 1 << 20]));
    let client = [opens(), vec![Flood(bomb, scaled(300, 1000)), Hold(super::millis(200))]].concat();
    Case {
        name: "Small bombs one after another",
        attack: "sends messages of 1 KiB, each of which inflates to no more than the limit of 1 MiB",
        harm: "the backend inflates more than 200 MiB of them",
        tries: vec![Try::new("", agrees(), client)],
        shows: |seen| inflated_by_the_backend(seen) > 200 << 20,
        stopped_by: &[Close(1009), Cut],
        ..Case::BASE
    }
}

pub fn compressed_nothing() -> Case {
    // Blocks that hold nothing: the shortest there is, and the one that a flush is made of. RFC 1951 §3.2.
    let fixed = [0x03, 0x00].repeat(16 << 10);
    let stored = [[0x00, 0x00, 0x00, 0xff, 0xff].repeat(6 << 10), vec![0x00]].concat();
    let flood = |payload: &[u8]| vec![Flood(from_client(BINARY | COMPRESSED, payload), scaled(100, 1000))];
    let tries = [("last blocks", fixed), ("stored blocks", stored)]
        .map(|(what, payload)| Try::new(what, agrees(), [opens(), flood(&payload)].concat()));
    Case {
        name: "Compressed nothing",
        attack: "sends compressed messages of a hundred thousand blocks that hold nothing",
        harm: "the backend gets more than 2 MiB of them, and each block is work",
        tries: tries.into(),
        shows: |seen| seen.most_behind_a_request() > 2 << 20,
        stopped_by: &[Close(1008), Cut],
        ..Case::BASE
    }
}

pub fn references_to_an_earlier_message() -> Case {
    let hello = from_client(TEXT | COMPRESSED, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    // RFC 7692 §7.2.3.2: the same, as a reference to the message before.
    let reference = from_client(TEXT | COMPRESSED, &[0xf2, 0x00, 0x11, 0x00, 0x00]);
    Case {
        name: "References to an earlier message",
        attack: "refers to a message before, so that who inflates one by itself does not see what it says",
        harm: "the backend, which keeps a window, reads what nobody on the way could check",
        tries: vec![sends("", [hello, reference].concat())],
        shows: |seen| seen.frames().filter(|frame| frame.first == TEXT | COMPRESSED).count() == 2,
        stopped_by: &[Close(1002)],
        ..Case::BASE
    }
}

pub fn what_hides_in_compressed_payload() -> Case {
    let stored = |len: u8| vec![0, len, 0, !len, 0xff];
    let hidden = [
        ("text that is not UTF-8", deflate(b"\xc3\x28")),
        ("a surrogate", deflate(b"\xed\xa0\x80")),
        ("text cut within a character", deflate(b"\xe2\x82")),
        ("no deflate stream", b"\xff\xff\xff\xff".to_vec()),
        ("a block that breaks off", stored(200)),
        ("a reference before the start", vec![0xf2, 0x00, 0x11, 0x00, 0x00]),
    ];
    Case {
        name: "What hides in compressed payload",
        attack: "sends as compressed text what is no text, or no deflate stream",
        harm: "it reaches the backend",
        tries: hidden.map(|(what, payload)| sends(what, from_client(TEXT | COMPRESSED, &payload))).into(),
        shows: |seen| seen.frames().any(|frame| frame.first & COMPRESSED != 0),
        stopped_by: &[Close(1007), Close(1002)],
        ..Case::BASE
    }
}

pub fn malformed_offers_of_compression() -> Case {
    let parameters = [
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=0",
        "server_max_window_bits=99999999999999999999",
        "server_max_window_bits=-8",
        "server_max_window_bits=08",
        "server_max_window_bits=1e1",
        "server_max_window_bits",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=abc",
        "server_no_context_takeover=1",
        "client_no_context_takeover=yes",
        "client_no_context_takeover; client_no_context_takeover",
        "server_max_window_bits=9; server_max_window_bits=10",
        "client_max_window_bits; client_max_window_bits=8",
    ];
    let tries = parameters.map(|parameter| {
        let client = vec![Send(upgrade("/", &extensions(&format!("permessage-deflate; {parameter}")))), Head];
        Try::new(format!("`{parameter}`"), agrees(), client)
    });
    Case {
        name: "Malformed offers of compression",
        attack: "offers permessage-deflate with parameters that are out of range, doubled or no numbers",
        harm: "the backend has to parse them",
        tries: tries.into(),
        shows: any_request,
        stopped_by: &[Answer(400)],
        ..Case::BASE
    }
}

pub fn answers_that_nobody_offered() -> Case {
    let answers = [
        ("", "permessage-deflate"),
        ("", "x-other"),
        ("permessage-deflate", "permessage-deflate, x-other"),
        ("permessage-deflate", "permessage-deflate, permessage-deflate"),
        ("permessage-deflate", "permessage-deflate; client_max_window_bits=9"),
        ("permessage-deflate", "permessage-deflate; server_max_window_bits=7"),
        ("permessage-deflate", "permessage-deflate; server_max_window_bits=1000000"),
        ("permessage-deflate", "permessage-deflate; unknown=1"),
        ("permessage-deflate; server_max_window_bits=9", "permessage-deflate; server_max_window_bits=15"),
        ("permessage-deflate; server_no_context_takeover", "permessage-deflate"),
    ];
    let tries = answers.map(|(offer, answer)| {
        let lines = if offer.is_empty() { String::new() } else { extensions(offer) };
        let backend = vec![Head, Send(switching(&extensions(answer)))];
        let what = format!("`{answer}` to `{offer}`");
        Try::new(what, backend, vec![Send(upgrade("/", &lines)), Head])
    });
    Case {
        name: "Answers that nobody offered",
        attack: "accepts extensions and parameters that the client has not offered, from the backend's side",
        harm: "the client is told so, and may crash on it",
        seen_in: "like CVE-2026-2229 in undici",
        tries: tries.into(),
        shows: |seen| seen.clients.iter().any(|heard| outcome(heard) == Some(Outcome::Served)),
        stopped_by: &[Answer(502)],
        ..Case::BASE
    }
}
