//! Ends of sessions: Close frames that are wrong, that nobody answers, and connections that are closed by half.

use super::frames::{opcode, session};
use super::{behind, listens, mark_reached, millis, sends};
use crate::bytes::Side::{self, Backend, Client};
use crate::bytes::{
    BINARY, CLOSE, Frame, LAST, MARK, PING, TEXT, close_payload, find, from_backend, from_client, switching, upgrade,
};
use crate::case::Outcome::{Close, Cut};
use crate::case::{Case, Course, Measure, Seen, Settings, Try, frames_behind_head};
use crate::wire::Step::{Finish, Head, Hold, Send, Until};

/// Close frames that must not be on the wire. RFC 6455 §5.5.1, §7.4.
fn wrong_closes(side: Side) -> Vec<Try> {
    let close = |code: u16, reason: &[u8]| side.frame(CLOSE, &close_payload(code, reason));
    let mut tries = vec![
        session(side, "one byte", side.frame(CLOSE, &[3])),
        session(side, "a reason that is not UTF-8", close(1000, b"\xff")),
        session(side, "a reason that is cut off", close(1000, b"\xe2\x82")),
        session(side, "a reason that is a surrogate", close(1000, b"\xed\xa0\x80")),
    ];
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535] {
        tries.push(session(side, code.to_string(), close(code, b"")));
    }
    tries
}

/// Whether a Close frame is one of [`wrong_closes`].
fn is_wrong(frame: &Frame) -> bool {
    let code_allowed = frame.close_code().is_some_and(|code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999));
    let reason = frame.payload.get(2..).unwrap_or_default();
    frame.first == CLOSE && (frame.payload.len() == 1 || !code_allowed || std::str::from_utf8(reason).is_err())
}

pub fn bad_close_frames() -> Case {
    Case {
        name: "Bad Close frames",
        attack: "closes with codes that must not be on the wire, with half a code, or with a reason that is no text",
        harm: "the Close frame reaches the backend",
        tries: wrong_closes(Client),
        shows: |seen| seen.frames().any(|frame| is_wrong(&frame)),
        stopped_by: &[Close(1002)],
        ..Case::BASE
    }
}

pub fn bad_close_frames_of_the_backend() -> Case {
    Case {
        name: "Bad Close frames of the backend",
        attack: "closes so from the backend's side",
        harm: "the Close frame reaches the client",
        tries: wrong_closes(Backend),
        shows: |seen| seen.clients.iter().flat_map(frames_behind_head).any(|frame| is_wrong(&frame)),
        stopped_by: &[Close(1011)],
        ..Case::BASE
    }
}

/// A Close frame of a side with the code 1000.
fn close(side: Side) -> Vec<u8> {
    side.frame(CLOSE, &close_payload(1000, b""))
}

/// What a side sends behind its own Close frame, and what it is.
fn behind_a_close(side: Side) -> [(String, Vec<u8>); 5] {
    [TEXT, BINARY, PING, CLOSE, LAST].map(|first| {
        let payload = if first == CLOSE { close_payload(1000, MARK) } else { MARK.to_vec() };
        (opcode(first), [close(side), side.frame(first, &payload)].concat())
    })
}

pub fn data_behind_a_close_frame() -> Case {
    let backend = vec![Head, Send(switching("")), Until(close(Client)), Hold(millis(100)), Send(close(Backend))];
    let tries = behind_a_close(Client).map(|(what, bytes)| Try::new(what, backend.clone(), sends(bytes)));
    Case {
        name: "Data behind a Close frame",
        attack: "goes on sending behind its own Close frame",
        harm: "it reaches the backend",
        tries: tries.into(),
        shows: mark_reached,
        stopped_by: &[Close(1000)],
        ..Case::BASE
    }
}

pub fn data_of_the_backend_behind_a_close_frame() -> Case {
    let tries = behind_a_close(Backend).map(|(what, bytes)| session(Backend, what, bytes));
    Case {
        name: "Data of the backend behind a Close frame",
        attack: "goes on sending behind its own Close frame, from the backend's side",
        harm: "it reaches the client",
        tries: tries.into(),
        shows: |seen| seen.clients.iter().any(|heard| find(&heard.bytes, MARK).is_some()),
        stopped_by: &[Close(1000)],
        ..Case::BASE
    }
}

/// Whether a connection, or in the gateway a descriptor, is still held.
fn something_is_held(seen: &Seen) -> bool {
    seen.measured > 0
}

/// A short time for closing handshakes; nginx has none.
const SHORT_CLOSE: Settings = Settings {
    rule: &["close_timeout: 300ms"],
    note: "time limit shortened; nginx has one for all silence, of 1 h",
    ..Settings::NONE
};

pub fn close_frames_that_nobody_answers() -> Case {
    let closes = vec![Head, Send(switching("")), Send(close(Backend))];
    let stays = vec![Send(upgrade("/", "")), Head, Hold(behind(millis(300)))];
    let tries = vec![
        Try::new("of the client", listens(), [sends(close(Client)), vec![Hold(behind(millis(300)))]].concat()),
        Try::new("of the backend", closes, stays),
        Try::new(
            "of who stands between",
            listens(),
            [sends(from_backend(TEXT, b"a")), vec![Hold(behind(millis(300)))]].concat(),
        ),
        Try::new("half a Close frame", listens(), [sends(close(Client)[..5].to_vec()), vec![Finish]].concat()),
    ];
    Case {
        name: "Close frames that nobody answers",
        attack: "closes, or is closed, and keeps its connection, as the other side does",
        harm: "both connections are held for ever",
        tries,
        shows: something_is_held,
        measure: Measure::Descriptors,
        course: Course::Stubborn,
        stopped_by: &[Close(1000), Close(1002), Cut],
        settings: SHORT_CLOSE,
        ..Case::BASE
    }
}

pub fn connections_closed_by_half() -> Case {
    let opens = || vec![Send(upgrade("/", "")), Head];
    let tries = vec![
        Try::new("by the client", listens(), [opens(), vec![Finish]].concat()),
        Try::new(
            "by the client, in a frame",
            listens(),
            [sends(from_client(TEXT, b"abc")[..8].to_vec()), vec![Finish]].concat(),
        ),
        Try::new("by the client, before the 101", vec![Head], vec![Send(upgrade("/", "")), Finish]),
        Try::new("by the client, in its head", listens(), vec![Send(upgrade("/", "")[..50].to_vec()), Finish]),
        Try::new("by the backend", vec![Head, Send(switching("")), Finish], opens()),
        Try::new(
            "by the backend, in a frame",
            vec![Head, Send(switching("")), Send(from_backend(TEXT, b"abc")[..3].to_vec()), Finish],
            opens(),
        ),
    ];
    Case {
        name: "Connections closed by half",
        attack: "sends the end of its stream and keeps its connection, as the other side does",
        harm: "the other half is held for ever",
        tries,
        shows: something_is_held,
        measure: Measure::Descriptors,
        course: Course::Stubborn,
        stopped_by: &[Close(1012), Cut],
        settings: SHORT_CLOSE,
        ..Case::BASE
    }
}
