//! Node's `ws` in the server's role, in a process of its own: `ws.mjs`.

use std::io::{BufReader, BufWriter, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sluicegate::ws::close::CloseCode;
use sluicegate::ws::error::ProtocolError;
use sluicegate::ws::header::MAX_HEADER_BYTES;

use crate::frames::Declared;
use crate::reading::{Breach, Case, End, Item, Known, ORACLE_MAX_BYTES, Reading};
use crate::{known, scanner};

pub const KNOWN: &[Known] = &[
    Known { name: "takes a length that is not in its shortest form", is_this: known::takes_a_longer_length },
    Known {
        name: "waits for the rest of a frame that is already wrong",
        is_this: known::waits_for_the_rest_of_a_frame,
    },
    Known {
        name: "looks at text when the message is whole",
        is_this: |case| known::checks_text_at_its_end(case, |_| false),
    },
    Known { name: "refuses a frame in a wrong place by its first two bytes", is_this: refuses_a_place_by_two_bytes },
    Known {
        name: "refuses a Close frame of one byte by its header",
        is_this: refuses_a_close_of_one_byte_by_its_header,
    },
    Known { name: "is given a limit of a message's size", is_this: known::has_a_limit_of_a_message },
];

/// Whether a frame is where it may be, such as a continuation inside of a message, is known from its first two bytes. The
/// scanner asks when the header is whole.
fn refuses_a_place_by_two_bytes(case: &Case) -> bool {
    let header_is_whole =
        Declared::read(case.last_frame()).is_some_and(|frame| case.last_frame().len() >= frame.header_bytes);
    !header_is_whole
        && (refuses_first(case, "WS_ERR_INVALID_OPCODE", ProtocolError::UnexpectedContinuation)
            || refuses_first(case, "WS_ERR_INVALID_OPCODE", ProtocolError::InterleavedMessage))
}

/// That a Close frame has one byte is known from its header. The scanner hands it on when it is whole, and whoever takes
/// it parses the payload.
fn refuses_a_close_of_one_byte_by_its_header(case: &Case) -> bool {
    let is_whole = Declared::read(case.last_frame()).is_some_and(|frame| frame.is_whole(case.last_frame()));
    case.last_frame().starts_with(&[0x88, 0x81])
        && !is_whole
        && refuses_first(case, "WS_ERR_INVALID_CONTROL_PAYLOAD_LENGTH", ProtocolError::CloseTooShort)
}

/// Whether ws refuses, with this code, a frame that is not whole and that the scanner refuses for this rule with any
/// rest. The scanner gives nothing of it away before.
fn refuses_first(case: &Case, code: &str, rule: ProtocolError) -> bool {
    // Each length that these bytes complete is in its shortest form.
    let (completed, frame_at) = scanner::read(&[case.stream, &[0x7f; MAX_HEADER_BYTES]].concat());
    case.ours.end == End::Open
        && case.theirs.end == End::Refused(Breach::Theirs(code.to_owned()))
        && case.theirs.items == case.ours.items
        && frame_at == case.last_frame_at
        && completed == Reading { items: case.ours.items.clone(), end: End::Refused(Breach::Ours(rule)) }
}

/// A running `ws.mjs`.
pub struct Ws {
    process: Child,
    streams: BufWriter<ChildStdin>,
    readings: BufReader<ChildStdout>,
}

impl Ws {
    pub fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/oracles/ws.mjs");
        let mut process = Command::new("node")
            .arg(script)
            .arg(ORACLE_MAX_BYTES.to_string())
            // It ends with this pipe, even when the test is killed.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is installed");
        let streams = BufWriter::new(process.stdin.take().expect("it is piped"));
        let readings = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, streams, readings }
    }

    /// Writes and reads at the same time, as neither pipe holds all of it.
    pub fn read_all(&mut self, streams: &[Vec<u8>]) -> Vec<Reading> {
        let Self { streams: input, readings, .. } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for stream in streams {
                    input.write_all(&(stream.len() as u32).to_be_bytes()).expect("node reads");
                    input.write_all(stream).expect("node reads");
                }
                input.flush().expect("node reads");
            });
            streams.iter().map(|_| read(readings)).collect()
        })
    }
}

impl Drop for Ws {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Records of one type letter each, up to one that says how the stream ended.
fn read(readings: &mut impl Read) -> Reading {
    let mut items = Vec::new();
    loop {
        let [record] = array(readings);
        let end = match record {
            b'o' => End::Open,
            b'c' => match u16::from_be_bytes(array(readings)) {
                1005 => End::Closed(None),
                code => End::Closed(Some(CloseCode(code))),
            },
            b'l' => End::Refused(Breach::Capacity),
            b'r' => End::Refused(Breach::Theirs(String::from_utf8(bytes(readings)).expect("a code of ws"))),
            item => {
                let payload = bytes(readings);
                items.push(match item {
                    b't' => Item::Text(payload),
                    b'b' => Item::Binary(payload),
                    b'p' => Item::Ping(payload),
                    b'q' => Item::Pong(payload),
                    other => panic!("ws.mjs writes a record of an unknown type: {other}"),
                });
                continue;
            }
        };
        return Reading { items, end };
    }
}

fn array<const BYTES: usize>(readings: &mut impl Read) -> [u8; BYTES] {
    let mut array = [0; BYTES];
    readings.read_exact(&mut array).expect("ws.mjs answers; are the packages installed? scripts/setup test");
    array
}

fn bytes(readings: &mut impl Read) -> Vec<u8> {
    let mut bytes = vec![0; u32::from_be_bytes(array(readings)) as usize];
    readings.read_exact(&mut bytes).expect("ws.mjs ends a record");
    bytes
}
