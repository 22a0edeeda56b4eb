//! Frames that RFC 6455 forbids, of the client and of the backend.

use std::time::Duration;

use super::{listens, mark_reached};
use crate::bytes::Side::{self, Backend, Client};
use crate::bytes::{
    BINARY, BINARY_BEGIN, CLOSE, LAST, MARK, MORE, PING, PONG, TEXT, TEXT_BEGIN, close_payload, find, switching,
    upgrade,
};
use crate::case::Outcome::{Close, Cut};
use crate::case::{Case, Seen, Try};
use crate::wire::Step::{Drip, Head, Send};

/// The reserved bits of a first byte.
const RESERVED: [(u8, &str); 3] = [(0x40, "RSV1"), (0x20, "RSV2"), (0x10, "RSV3")];

/// What is wrong, and the bytes that have it. They hold the mark where a receiver that checks nothing reads a payload.
type Wrong = Vec<(String, Vec<u8>)>;

/// A session in which one side sends these bytes.
pub(super) fn session(side: Side, what: impl Into<String>, bytes: Vec<u8>) -> Try {
    match side {
        Client => Try::new(what, listens(), super::sends(bytes)),
        Backend => {
            let backend = vec![Head, Send(switching("")), Send(bytes)];
            Try::new(what, backend, vec![Send(upgrade("/", "")), Head])
        }
    }
}

fn mark_came_back(seen: &Seen) -> bool {
    seen.clients.iter().any(|heard| find(&heard.bytes, MARK).is_some())
}

/// A case of the client's: what is wrong must not reach the backend.
fn of_the_client(wrong: fn(Side) -> Wrong) -> Case {
    Case {
        harm: "they reach the backend",
        tries: wrong(Client).into_iter().map(|(what, bytes)| session(Client, what, bytes)).collect(),
        shows: mark_reached,
        stopped_by: &[Close(1002)],
        ..Case::BASE
    }
}

/// A case of the backend's: what is wrong must not reach the client. One that is within a message is cut off.
fn of_the_backend(wrong: fn(Side) -> Wrong) -> Case {
    Case {
        harm: "they reach the client",
        tries: wrong(Backend).into_iter().map(|(what, bytes)| session(Backend, what, bytes)).collect(),
        shows: mark_came_back,
        stopped_by: &[Close(1011), Cut],
        ..Case::BASE
    }
}

/// A name that tells opcodes apart.
pub(super) fn opcode(first: u8) -> String {
    format!("opcode {:X}", first & 0x0f)
}

fn wrong_masks(side: Side) -> Wrong {
    let mut wrong: Wrong =
        [TEXT, BINARY, PING, PONG].map(|first| (opcode(first), side.frame_of_the_other(first, MARK))).into();
    wrong.push((opcode(CLOSE), side.frame_of_the_other(CLOSE, &close_payload(1000, MARK))));
    let fragments = [side.frame(TEXT_BEGIN, b"a"), side.frame_of_the_other(LAST, MARK)].concat();
    wrong.push((opcode(LAST), fragments));
    wrong
}

pub fn unmasked_frames() -> Case {
    Case { name: "Unmasked frames", attack: "sends frames without masking them", ..of_the_client(wrong_masks) }
}

pub fn masked_frames_of_the_backend() -> Case {
    Case {
        name: "Masked frames of the backend",
        attack: "sends frames masked, from the backend's side",
        ..of_the_backend(wrong_masks)
    }
}

fn bits(side: Side) -> Wrong {
    let mut wrong = Vec::new();
    for (bit, name) in RESERVED {
        for first in [TEXT, BINARY, TEXT_BEGIN, PING, PONG] {
            let fin = if first == TEXT_BEGIN { ", without FIN" } else { "" };
            wrong.push((format!("{name}, {}{fin}", opcode(first)), side.frame(first | bit, MARK)));
        }
        let close = close_payload(1000, MARK);
        wrong.push((format!("{name}, opcode 8"), side.frame(CLOSE | bit, &close)));
        let fragments = [side.frame(TEXT_BEGIN, b"a"), side.frame(LAST | bit, MARK)].concat();
        wrong.push((format!("{name}, opcode 0"), fragments));
        let within = [side.frame(TEXT_BEGIN, b"a"), side.frame(PING | bit, MARK)].concat();
        wrong.push((format!("{name}, opcode 9 in a message"), within));
    }
    wrong.push(("all three".to_owned(), side.frame(TEXT | 0x70, MARK)));
    wrong
}

pub fn reserved_bits() -> Case {
    Case { name: "Reserved bits", attack: "sets bits that no extension was agreed on for", ..of_the_client(bits) }
}

pub fn reserved_bits_of_the_backend() -> Case {
    Case {
        name: "Reserved bits of the backend",
        attack: "sets bits that no extension was agreed on for, from the backend's side",
        ..of_the_backend(bits)
    }
}

fn opcodes(side: Side) -> Wrong {
    let mut wrong = Vec::new();
    for number in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        wrong.push((opcode(number), side.frame(0x80 | number, MARK)));
        wrong.push((format!("{}, without FIN", opcode(number)), side.frame(number, MARK)));
    }
    wrong
}

pub fn reserved_opcodes() -> Case {
    Case { name: "Reserved opcodes", attack: "sends frames of opcodes that mean nothing", ..of_the_client(opcodes) }
}

pub fn reserved_opcodes_of_the_backend() -> Case {
    Case {
        name: "Reserved opcodes of the backend",
        attack: "sends frames of opcodes that mean nothing, from the backend's side",
        ..of_the_backend(opcodes)
    }
}

fn control_frames(side: Side) -> Wrong {
    let long = MARK.repeat(12);
    let begun = side.frame(TEXT_BEGIN, b"a");
    let wrong = [
        ("a ping of 132 bytes", side.frame(PING, &long)),
        ("a pong of 132 bytes", side.frame(PONG, &long)),
        ("a Close frame of 134 bytes", side.frame(CLOSE, &close_payload(1000, &long))),
        ("a ping of 70 KB", side.frame(PING, &MARK.repeat(6400))),
        ("a ping without FIN", side.frame(PING & 0x7f, MARK)),
        ("a pong without FIN", side.frame(PONG & 0x7f, MARK)),
        ("a Close frame without FIN", side.frame(CLOSE & 0x7f, &close_payload(1000, MARK))),
        ("a ping in fragments", [side.frame(PING & 0x7f, b"a"), side.frame(LAST, MARK)].concat()),
        ("a ping of 132 bytes in a message", [begun.clone(), side.frame(PING, &long)].concat()),
        ("a ping without FIN in a message", [begun, side.frame(PING & 0x7f, MARK)].concat()),
    ];
    wrong.map(|(what, bytes)| (what.to_owned(), bytes)).into()
}

pub fn bad_control_frames() -> Case {
    Case {
        name: "Bad control frames",
        attack: "sends control frames that are too long or fragmented",
        ..of_the_client(control_frames)
    }
}

pub fn bad_control_frames_of_the_backend() -> Case {
    Case {
        name: "Bad control frames of the backend",
        attack: "sends control frames that are too long or fragmented, from the backend's side",
        ..of_the_backend(control_frames)
    }
}

fn fragments(side: Side) -> Wrong {
    let begun = side.frame(TEXT_BEGIN, b"a");
    let whole = [begun.clone(), side.frame(LAST, b"b")].concat();
    let wrong = [
        ("a last fragment of nothing", side.frame(LAST, MARK)),
        ("a fragment of nothing", side.frame(MORE, MARK)),
        ("text in a message", [begun.clone(), side.frame(TEXT, MARK)].concat()),
        ("binary in a message", [begun.clone(), side.frame(BINARY, MARK)].concat()),
        ("another message in a message", [begun.clone(), side.frame(TEXT_BEGIN, MARK)].concat()),
        ("the same behind a ping", [begun, side.frame(PING, b""), side.frame(TEXT, MARK)].concat()),
        ("a last fragment behind the last", [whole.clone(), side.frame(LAST, MARK)].concat()),
        ("a fragment behind the last", [whole, side.frame(MORE, MARK)].concat()),
    ];
    wrong.map(|(what, bytes)| (what.to_owned(), bytes)).into()
}

pub fn bad_fragments() -> Case {
    Case {
        name: "Bad fragments",
        attack: "sends fragments out of order, and messages in messages",
        ..of_the_client(fragments)
    }
}

pub fn bad_fragments_of_the_backend() -> Case {
    Case {
        name: "Bad fragments of the backend",
        attack: "sends fragments out of order, and messages in messages, from the backend's side",
        ..of_the_backend(fragments)
    }
}

fn lengths(side: Side) -> Wrong {
    let long = |len: u64| [&[127], &len.to_be_bytes()[..]].concat();
    let wrong = [
        ("11 in 16 bits", vec![126, 0, 11]),
        ("125 in 16 bits", vec![126, 0, 125]),
        ("11 in 64 bits", long(11)),
        ("65,535 in 64 bits", long(65_535)),
        ("2^63", long(1 << 63)),
        ("2^63 + 11", long((1 << 63) + 11)),
        ("2^64 - 1", long(u64::MAX)),
        ("2^63 - 1", long(i64::MAX as u64)),
        ("2^40", long(1 << 40)),
        ("2^32 + 11", long((1 << 32) + 11)),
        ("2^30", long(1 << 30)),
    ];
    wrong.map(|(what, length)| (what.to_owned(), side.declaring(BINARY, &length, MARK))).into()
}

pub fn lengths_that_lie() -> Case {
    let mut tries = Vec::new();
    for (what, bytes) in lengths(Client) {
        let drips = vec![Send(upgrade("/", "")), Head, Drip(bytes.clone(), Duration::ZERO)];
        tries.push(Try::new(format!("{what}, a byte at a time"), listens(), drips));
        tries.push(session(Client, what, bytes));
    }
    let frame = |first, payload: &[u8]| Client.frame(first, payload);
    let sum = [frame(BINARY_BEGIN, &[b'a'; 1 << 20]), frame(LAST, MARK)].concat();
    tries.push(session(Client, "a last fragment past 1 MiB", sum));
    let long = [&[127], &(i64::MAX as u64).to_be_bytes()[..]].concat();
    let overflow = [frame(BINARY_BEGIN, b"aaaa"), Client.declaring(LAST, &long, MARK)].concat();
    tries.push(session(Client, "2^63 - 1 behind four", overflow));
    Case {
        name: "Lengths that lie",
        attack: "writes lengths in a longer form than needed, with bit 63, or far beyond any limit",
        harm: "the backend gets such a header, and may reserve memory or overflow by it",
        tries,
        shows: mark_reached,
        stopped_by: &[Close(1002), Close(1009)],
        ..Case::BASE
    }
}

pub fn lengths_of_the_backend_that_lie() -> Case {
    Case {
        name: "Lengths of the backend that lie",
        attack: "writes such lengths from the backend's side",
        ..of_the_backend(lengths)
    }
}

fn not_utf8(side: Side) -> Wrong {
    let text = |bytes: &[u8]| side.frame(TEXT, &[MARK, bytes].concat());
    let split = |first: &[u8], second: &[u8]| {
        [side.frame(TEXT_BEGIN, first), side.frame(LAST, &[second, MARK].concat())].concat()
    };
    let wrong = [
        ("a byte that is none", text(b"\xff")),
        ("a continuation of nothing", text(b"\x80")),
        ("overlong", text(b"\xc0\xaf")),
        ("overlong in three bytes", text(b"\xe0\x80\xaf")),
        ("a surrogate", text(b"\xed\xa0\x80")),
        ("over U+10FFFF", text(b"\xf4\x90\x80\x80")),
        ("cut off at the end", text(b"\xe2\x82")),
        ("split, and wrong in the second fragment", split(b"\xe2", b"\x28\xa1")),
        ("split, overlong", split(b"\xe0", b"\x80\xaf")),
        ("split, a surrogate", split(b"\xed", b"\xa0\x80")),
        // It says 100 bytes, sends 12, and never the rest.
        ("in a frame that is not finished", side.declaring(TEXT, &[100], &[b"\xff", MARK].concat())),
    ];
    wrong.map(|(what, bytes)| (what.to_owned(), bytes)).into()
}

pub fn text_that_is_not_utf8() -> Case {
    Case {
        name: "Text that is not UTF-8",
        attack: "sends text that is not UTF-8, whole or over fragments",
        harm: "it reaches the backend",
        stopped_by: &[Close(1007)],
        ..of_the_client(not_utf8)
    }
}

pub fn text_of_the_backend_that_is_not_utf8() -> Case {
    Case {
        name: "Text of the backend that is not UTF-8",
        attack: "sends text that is not UTF-8, from the backend's side",
        harm: "it reaches the client",
        ..of_the_backend(not_utf8)
    }
}
