//! `soketto` in the server's role.
//!
//! It answers Pings and Close frames by itself and tells nobody of a Ping or of a Close frame without a code, so both
//! are read from its answers. It leaves it to its user whether text is UTF-8, as its own example does it.

use std::cell::RefCell;
use std::io::{self, Cursor, Read as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::io::{AsyncRead, AsyncWrite};
use sluicegate::ws::close::CloseCode;
use sluicegate::ws::error::ProtocolError;
use soketto::connection::{Builder, Error, Mode};
use soketto::{Data, Incoming};

use crate::frames::frames;
use crate::reading::{Breach, Case, End, Item, Known, ORACLE_MAX_BYTES, Reading};
use crate::{known, scanner};

pub const KNOWN: &[Known] = &[
    Known { name: "takes a length that is not in its shortest form", is_this: known::takes_a_longer_length },
    Known {
        name: "takes a control frame's length that is not in its shortest form",
        is_this: known::takes_a_longer_length_in_control,
    },
    Known {
        name: "waits for the rest of a frame that is already wrong",
        is_this: known::waits_for_the_rest_of_a_frame,
    },
    Known {
        // RFC 6455 §5.1: a server closes the connection upon such a frame. It reads on, so nothing behind it can be
        // compared.
        name: "takes a frame that is not masked",
        is_this: |case| {
            case.breaks(ProtocolError::Unmasked)
                && case.theirs.items.starts_with(&case.ours.items)
                && case.last_frame().get(1).is_some_and(|second| second & 0x80 == 0)
        },
    },
    Known { name: "forgets the open message at a Pong", is_this: forgets_the_message_at_a_pong },
    Known {
        name: "leaves text to its user, who has the whole message",
        is_this: |case| known::checks_text_at_its_end(case, |item| matches!(item, Item::Pong(_))),
    },
    Known {
        name: "turns a close code that must not be on the wire into 1002",
        is_this: known::turns_the_code_into_1002,
    },
    Known {
        // RFC 6455 §7.4.1: 1015 is for local use, and must not be on the wire.
        name: "takes close code 1015",
        is_this: |case| {
            case.breaks(ProtocolError::InvalidCloseCode(CloseCode(1015)))
                && case.theirs.end == End::Closed(Some(CloseCode(1015)))
                && case.theirs.items == case.ours.items
        },
    },
    Known { name: "does not know close code 1014", is_this: known::does_not_know_1014 },
    Known {
        // RFC 6455 §5.5.1: if there is a body, its first two bytes are a code.
        name: "takes a Close frame with one byte for one without a code",
        is_this: |case| {
            case.breaks(ProtocolError::CloseTooShort)
                && case.theirs.end == End::Closed(None)
                && case.theirs.items == case.ours.items
        },
    },
    Known { name: "is given a limit of a frame's size", is_this: known::has_a_limit_of_a_frame },
];

/// RFC 6455 §5.4 allows control frames inside a fragmented message. soketto hands a Pong to its caller and keeps what it
/// knows of an open message in the call that returned, so it refuses the next continuation and takes a new message.
fn forgets_the_message_at_a_pong(case: &Case) -> bool {
    let frames = frames(case.stream);
    let mut data = frames.iter().filter(|frame| !frame.is_control()).peekable();
    let mut is_open = false;
    while let Some(frame) = data.next() {
        is_open = !frame.fin && (is_open || frame.opcode != 0);
        let Some(next) = data.peek() else { break };
        let has_pong = frames.iter().any(|pong| pong.opcode == 10 && frame.at < pong.at && pong.at < next.at);
        if !is_open || !has_pong {
            continue;
        }
        // Up to that data frame both must agree, and it must be valid but for what soketto forgot.
        let (before, _) = scanner::read(&case.stream[..next.at]);
        return before.end == End::Open
            && if next.opcode == 0 {
                case.theirs.items == before.items
                    && case.theirs.end == End::Refused(Breach::Theirs("unexpected opcode: Continue".to_owned()))
            } else {
                case.breaks(ProtocolError::InterleavedMessage) && case.theirs.items.starts_with(&case.ours.items)
            };
    }
    false
}

/// A connection whose peer sent `sent` and went away.
struct Socket<'a> {
    sent: Cursor<&'a [u8]>,
    answers: Rc<RefCell<Vec<u8>>>,
}

impl AsyncRead for Socket<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.sent.read(buffer))
    }
}

impl AsyncWrite for Socket<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answers.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub fn read(stream: &[u8]) -> Reading {
    let answers = Rc::default();
    let mut builder = Builder::new(Socket { sent: Cursor::new(stream), answers: Rc::clone(&answers) }, Mode::Server);
    builder.set_max_frame_size(ORACLE_MAX_BYTES);
    let (_sender, mut receiver) = builder.finish();
    let mut items = Vec::new();
    let end = loop {
        let mut message = Vec::new();
        let received = receiver.receive(&mut message).now_or_never().expect("a socket that never waits");
        let has_closed = answered(&answers, &mut items);
        match received {
            Ok(Incoming::Data(Data::Binary(_))) => items.push(Item::Binary(message)),
            Ok(Incoming::Data(Data::Text(_))) if std::str::from_utf8(&message).is_ok() => {
                items.push(Item::Text(message));
            }
            Ok(Incoming::Data(Data::Text(_))) => break End::Refused(Breach::Theirs("text is not UTF-8".to_owned())),
            Ok(Incoming::Pong(payload)) => items.push(Item::Pong(payload.to_vec())),
            Ok(Incoming::Closed(reason)) => break End::Closed(Some(CloseCode(reason.code))),
            Err(Error::Closed) if has_closed => break End::Closed(None),
            Err(Error::Closed) => break End::Open,
            Err(Error::Codec(soketto::base::Error::PayloadTooLarge { .. })) => break End::Refused(Breach::Capacity),
            Err(error @ (Error::Codec(_) | Error::UnexpectedOpCode(_) | Error::Utf8(_))) => {
                break End::Refused(Breach::Theirs(error.to_string()));
            }
            Err(error) => panic!("soketto fails otherwise than by a rule: {error}"),
        }
    };
    Reading { items, end }
}

/// Takes the Pings from what was answered, and says whether a Close frame was.
fn answered(answers: &RefCell<Vec<u8>>, items: &mut Vec<Item>) -> bool {
    let mut has_closed = false;
    for answer in frames(&answers.take()) {
        match answer.opcode {
            10 => items.push(Item::Ping(answer.payload)),
            8 => has_closed = true,
            opcode => panic!("soketto answers with opcode {opcode}"),
        }
    }
    has_closed
}
