//! Too much, too slow, or never: what takes memory and connections.

use super::{behind, beside_somebody, echoes, listens, millis, scaled};
use crate::bytes::{
    BINARY, BINARY_BEGIN, LAST, MORE, PING, TEXT, TEXT_BEGIN, from_backend, from_client, switching, upgrade,
};
use crate::case::Outcome::{Close, Cut};
use crate::case::{Case, Course, Measure, Nginx, Seen, Settings};
use crate::wire::Step::{Drip, Flood, Head, Hold, Send, StopReading};

pub fn a_flood_of_empty_fragments() -> Case {
    let begin = [(TEXT_BEGIN, "text"), (BINARY_BEGIN, "binary")];
    let tries = begin.map(|(first, what)| {
        let empty = from_client(MORE, b"");
        let client =
            vec![Send(upgrade("/", "")), Head, Send(from_client(first, b"")), Flood(empty, scaled(20_000, 1_000_000))];
        beside_somebody(what, listens(), vec![client])
    });
    Case {
        name: "A flood of empty fragments",
        attack: "sends a million fragments without a byte in them",
        harm: "the backend gets more than 5,000 of them",
        tries: tries.into(),
        shows: |seen| seen.most_behind_a_request() > 5000 * 6,
        stopped_by: &[Close(1008)],
        ..Case::BASE
    }
}

pub fn a_message_in_tiny_fragments() -> Case {
    let client = vec![
        Send(upgrade("/", "")),
        Head,
        Send(from_client(TEXT_BEGIN, b"a")),
        Flood(from_client(MORE, b"a"), scaled(20_000, 500_000)),
        Send(from_client(LAST, b"a")),
    ];
    Case {
        name: "Fragments of one byte",
        attack: "sends a message in half a million fragments of one byte",
        harm: "the backend gets more than 5,000 of them",
        tries: vec![beside_somebody("", listens(), vec![client])],
        shows: |seen| seen.most_behind_a_request() > 5000 * 7,
        stopped_by: &[Close(1008)],
        ..Case::BASE
    }
}

pub fn a_message_that_never_ends() -> Case {
    let pieces = scaled(400, 6400);
    let in_fragments = vec![
        Send(upgrade("/", "")),
        Head,
        Send(from_client(BINARY_BEGIN, b"a")),
        Flood(from_client(MORE, &[b'a'; 16 << 10]), pieces),
    ];
    let in_a_frame = vec![
        Send(upgrade("/", "")),
        Head,
        Send([&[BINARY, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0][..], &[0; 4]].concat()),
        Flood(vec![b'a'; 16 << 10], pieces),
    ];
    Case {
        name: "A message that never ends",
        attack: "sends 100 MiB of one message, in fragments or in one frame",
        harm: "the backend gets more than 2 MiB of it",
        tries: vec![
            beside_somebody("in fragments", listens(), vec![in_fragments]),
            beside_somebody("in one frame", listens(), vec![in_a_frame]),
        ],
        shows: |seen| seen.most_behind_a_request() > 2 << 20,
        stopped_by: &[Close(1009), Cut],
        ..Case::BASE
    }
}

pub fn a_flood_of_pings_without_reading() -> Case {
    let client =
        vec![Send(upgrade("/", "")), Head, StopReading, Flood(from_client(PING, b"x"), scaled(20_000, 1_000_000))];
    Case {
        name: "A flood of pings",
        attack: "sends a million pings and reads no pong",
        harm: "the backend has to answer more than 2,000 of them",
        tries: vec![beside_somebody("", echoes(), vec![client])],
        shows: |seen| seen.most_behind_a_request() > 2000 * 7,
        stopped_by: &[Close(1008), Cut],
        ..Case::BASE
    }
}

/// Shortened limits for clients that do not read.
const SLOW: Settings = Settings {
    rule: &["slow_client: { timeout: 1s }", "close_timeout: 300ms"],
    nginx: Nginx::Server("send_timeout 1s;"),
    note: "both proxies' time limits shortened",
    ..Settings::NONE
};

pub fn a_flood_of_messages_without_reading() -> Case {
    let client = vec![
        Send(upgrade("/", "")),
        Head,
        StopReading,
        Flood(from_client(TEXT, &[b'a'; 100]), scaled(100_000, 1_000_000)),
        Hold(behind(millis(1000))),
    ];
    Case {
        name: "A flood of messages without reading",
        attack: "sends a million small messages and reads no answer",
        harm: "the session is still there long behind every limit, with all the answers that wait for it",
        tries: vec![beside_somebody("", echoes(), vec![client])],
        shows: |seen| seen.measured > 0,
        measure: Measure::Descriptors,
        course: Course::Lasting,
        stopped_by: &[Close(1013), Cut],
        settings: SLOW,
        ..Case::BASE
    }
}

pub fn clients_that_do_not_read() -> Case {
    let backend = vec![Head, Send(switching("")), Flood(from_backend(BINARY, &[b'a'; 16 << 10]), scaled(512, 4096))];
    let client = vec![Send(upgrade("/", "")), Head, StopReading, Hold(behind(millis(1000)))];
    Case {
        name: "Clients that do not read",
        attack: "opens many sessions that are sent to at full speed, and reads nothing",
        harm: "their sessions are still there long behind every limit",
        tries: vec![beside_somebody("", backend, vec![client; scaled(20, 100)])],
        shows: |seen| seen.measured > 0,
        measure: Measure::Descriptors,
        course: Course::Lasting,
        stopped_by: &[Close(1013), Cut],
        settings: SLOW,
        ..Case::BASE
    }
}

pub fn a_client_that_is_dead() -> Case {
    let client = vec![Send(upgrade("/", "")), Head, Hold(behind(millis(2000)))];
    Case {
        name: "Clients that are dead",
        attack: "stops its program, whose kernel goes on acknowledging",
        harm: "the session is still there long behind every limit",
        tries: vec![beside_somebody("", listens(), vec![client; scaled(5, 50)])],
        shows: Seen::someone_is_still_there,
        course: Course::Lasting,
        stopped_by: &[Cut],
        settings: Settings {
            rule: &["keepalive: { interval: 1s, timeout: 1s }", "close_timeout: 100ms"],
            note: "time limits shortened; nginx has one for all silence, of 1 h",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn a_message_that_is_not_finished() -> Case {
    let frame = from_client(TEXT, b"the beginning of something");
    let begun = [
        ("half a frame", frame[..20].to_vec()),
        ("half a header", frame[..3].to_vec()),
        ("a message without its last fragment", from_client(TEXT_BEGIN, b"a")),
        ("half a ping", from_client(PING, b"abcdef")[..8].to_vec()),
    ];
    let tries = begun.map(|(what, bytes)| {
        let client = vec![Send(upgrade("/", "")), Head, Send(bytes), Hold(behind(millis(400)))];
        beside_somebody(what, listens(), vec![client; scaled(3, 30)])
    });
    Case {
        name: "Messages that are not finished",
        attack: "begins a frame, a header, a message or a ping, and never goes on",
        harm: "the session is still there long behind every limit, with what the backend keeps of it",
        tries: tries.into(),
        shows: Seen::someone_is_still_there,
        course: Course::Lasting,
        stopped_by: &[Close(1008), Cut],
        settings: Settings {
            rule: &["message: { stall_timeout: 400ms }"],
            note: "time limits shortened; nginx has one for all silence, of 1 h",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}

pub fn a_message_that_is_dripped() -> Case {
    let fragments = [from_client(TEXT_BEGIN, b"a"), from_client(MORE, b"a").repeat(100)].concat();
    let with_pings = [from_client(TEXT_BEGIN, b"a"), from_client(PING, b"alive").repeat(100)].concat();
    let dripped = [
        ("a frame", from_client(TEXT, &[b'a'; 1000])),
        ("fragments", fragments),
        ("pings inside a message", with_pings),
        ("a ping", from_client(PING, &[b'a'; 125])),
    ];
    let tries = dripped.map(|(what, bytes)| {
        // Longer than the limit, and shorter than all of it.
        let bytes = bytes[..scaled(32, 120)].to_vec();
        let client = vec![Send(upgrade("/", "")), Head, Drip(bytes, millis(25))];
        beside_somebody(what, listens(), vec![client; scaled(3, 30)])
    });
    Case {
        name: "Messages that are dripped",
        attack: "sends a byte of a message or a ping whenever a limit for silence has nearly passed",
        harm: "the session is still there long behind every limit, with what the backend keeps of it",
        tries: tries.into(),
        shows: Seen::someone_is_still_there,
        course: Course::Lasting,
        stopped_by: &[Close(1008), Cut],
        settings: Settings {
            rule: &["message: { timeout: 400ms }"],
            note: "time limit shortened; nginx has none for a message",
            ..Settings::NONE
        },
        ..Case::BASE
    }
}
