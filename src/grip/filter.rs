//! What of a backend's messages reaches the client, once it has opted in.
//!
//! The first frame of a message decides: `c:` makes it a control message, which never reaches the client, the prefix
//! makes it one for the client, and all else is dropped. The decision is asked frame by frame over bytes that stay where
//! they are, allocates nothing, and needs at most [`MAX_LOOK_BYTES`] of a payload.
//!
//! ```text
//!              first frame, prefix        last frame
//!   Between -------------------> Relayed ----------> Between
//!      |       first frame, else            last frame
//!      +-----------------------> Dropped ----------> Between
//!      +-- control message, a single frame --------> Between
//! ```
//!
//! Frames of the other direction are relayed as they are: GRIP has no prefix there.

use super::extension::{CONTROL_PREFIX, MAX_PREFIX_BYTES, OptIn};
use super::{Kind, Limits};
use crate::ws::header::{FrameHeader, Opcode};

/// The most bytes of a payload that a decision needs.
pub const MAX_LOOK_BYTES: usize = MAX_PREFIX_BYTES;

/// What is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// More of the payload is needed: ask again with the same frame and more of its bytes.
    NeedMore,
    /// The frame goes to the client, without the first `skip` bytes of its payload ([`without`]).
    Relay {
        /// 0, or the length of the prefix, in bytes.
        skip: usize,
    },
    /// The frame is a control message: its payload behind the first `skip` bytes is what [`super::control::parse`] takes.
    Control {
        /// The length of `c:`, in bytes.
        skip: usize,
    },
    /// The frame goes nowhere.
    Drop(Dropped),
}

/// Why a frame goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its message begins with neither `c:` nor the prefix.
    NoPrefix,
    /// A control message in more than one frame.
    FragmentedControl,
    /// A control message of more than [`Limits::control_bytes`].
    ControlTooLong,
}

/// Decides over the frames of one backend, which come with their messages inflated: the prefix is in the plain payload.
#[derive(Debug)]
pub struct Filter {
    opt_in: OptIn,
    max_control_bytes: u64,
    /// What becomes of the fragmented message in progress: its first frame's decision, for the frames behind it.
    message: Option<Decision>,
}

/// What is done with a whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// This content goes to the client.
    Relay(&'a [u8]),
    /// A control message: the JSON behind its `c:`.
    Control(&'a [u8]),
    /// It goes nowhere.
    Drop(Dropped),
}

impl Filter {
    /// A filter at the start of the first message.
    pub fn new(opt_in: OptIn, limits: &Limits) -> Self {
        Self { opt_in, max_control_bytes: limits.control_bytes as u64, message: None }
    }

    /// Whether the frames so far end between two messages: the only place for a message of ours. RFC 6455 §5.4.
    pub fn between_messages(&self) -> bool {
        self.message.is_none()
    }

    /// Decides over the frame that begins with `header`. `payload` is what there is of its payload, unmasked; the whole of
    /// it need not be there.
    ///
    /// Each frame is decided once: after another answer than `NeedMore` the next question is about the next frame. Frames
    /// have to come as RFC 6455 §5.4 allows, which the scanner sees to.
    pub fn decide(&mut self, header: &FrameHeader, payload: &[u8]) -> Decision {
        if header.opcode.is_control() {
            return Decision::Relay { skip: 0 };
        }
        if header.opcode == Opcode::Continuation {
            let decision = match self.message {
                Some(Decision::Drop(why)) => Decision::Drop(why),
                _ => Decision::Relay { skip: 0 },
            };
            if header.fin {
                self.message = None;
            }
            return decision;
        }
        let decision = self.first_frame(header, payload);
        if decision != Decision::NeedMore {
            self.message = (!header.fin).then_some(decision);
        }
        decision
    }

    fn first_frame(&self, header: &FrameHeader, payload: &[u8]) -> Decision {
        // A frame of more than a `usize` is longer than any prefix.
        let whole = usize::try_from(header.payload_bytes).unwrap_or(usize::MAX);
        let payload = payload.get(..whole).unwrap_or(payload);
        let control = match header.opcode {
            Opcode::Text => begins(payload, whole, CONTROL_PREFIX),
            _ => Some(false),
        };
        match (control, begins(payload, whole, self.opt_in.prefix())) {
            (Some(true), _) if !header.fin => Decision::Drop(Dropped::FragmentedControl),
            (Some(true), _) if header.payload_bytes - CONTROL_PREFIX.len() as u64 > self.max_control_bytes => {
                Decision::Drop(Dropped::ControlTooLong)
            }
            (Some(true), _) => Decision::Control { skip: CONTROL_PREFIX.len() },
            (Some(false), Some(true)) => Decision::Relay { skip: self.opt_in.prefix().len() },
            (Some(false), Some(false)) => Decision::Drop(Dropped::NoPrefix),
            (None, _) | (_, None) => Decision::NeedMore,
        }
    }

    /// Decides over a whole message, such as a backend over HTTP answers as an event.
    pub fn message<'a>(&self, kind: Kind, content: &'a [u8]) -> Verdict<'a> {
        if matches!(kind, Kind::Ping | Kind::Pong) {
            return Verdict::Relay(content);
        }
        match content.strip_prefix(CONTROL_PREFIX) {
            Some(json) if kind == Kind::Text && json.len() as u64 > self.max_control_bytes => {
                Verdict::Drop(Dropped::ControlTooLong)
            }
            Some(json) if kind == Kind::Text => Verdict::Control(json),
            _ => match content.strip_prefix(self.opt_in.prefix()) {
                Some(content) => Verdict::Relay(content),
                None => Verdict::Drop(Dropped::NoPrefix),
            },
        }
    }
}

/// Whether a payload of `whole` bytes, of which `payload` is there, begins with `prefix`; `None` until it shows.
fn begins(payload: &[u8], whole: usize, prefix: &[u8]) -> Option<bool> {
    match payload.get(..prefix.len()) {
        Some(start) => Some(start == prefix),
        None if whole < prefix.len() || !prefix.starts_with(payload) => Some(false),
        None => None,
    }
}

/// The header of the same frame without the first `skip` bytes of its payload.
pub fn without(header: &FrameHeader, skip: usize) -> FrameHeader {
    FrameHeader { payload_bytes: header.payload_bytes.saturating_sub(skip as u64), ..*header }
}

#[cfg(test)]
mod tests {
    use super::super::extension::Prefix;
    use super::*;
    use proptest::prelude::*;

    fn filter(prefix: &str) -> Filter {
        let opt_in = match prefix {
            "" => OptIn::NoPrefix,
            prefix => OptIn::Prefix(Prefix::new(prefix.as_bytes()).unwrap()),
        };
        Filter::new(opt_in, &Limits { control_bytes: 8, ..Limits::default() })
    }

    fn frame(opcode: Opcode, fin: bool, payload: &str) -> (FrameHeader, &[u8]) {
        let header = FrameHeader { fin, rsv1: false, opcode, mask: None, payload_bytes: payload.len() as u64 };
        (header, payload.as_bytes())
    }

    fn decide(filter: &mut Filter, opcode: Opcode, fin: bool, payload: &str) -> Decision {
        let (header, bytes) = frame(opcode, fin, payload);
        filter.decide(&header, bytes)
    }

    const NO_PREFIX: Decision = Decision::Drop(Dropped::NoPrefix);

    #[test]
    fn single_frames_are_told_apart() {
        use Opcode::{Binary, Close, Ping, Pong, Text};
        for (prefix, opcode, payload, expected) in [
            ("m:", Text, "m:hello", Decision::Relay { skip: 2 }),
            ("m:", Binary, "m:", Decision::Relay { skip: 2 }),
            ("m:", Text, "hello", NO_PREFIX),
            ("m:", Text, "m", NO_PREFIX),
            ("m:", Text, "", NO_PREFIX),
            ("m:", Text, "c:{}", Decision::Control { skip: 2 }),
            ("m:", Text, "c:", Decision::Control { skip: 2 }),
            ("m:", Text, "c:012345678", Decision::Drop(Dropped::ControlTooLong)),
            ("m:", Binary, "c:{}", NO_PREFIX),
            ("", Text, "hello", Decision::Relay { skip: 0 }),
            ("", Text, "", Decision::Relay { skip: 0 }),
            ("", Text, "c", Decision::Relay { skip: 0 }),
            ("", Text, "c:{}", Decision::Control { skip: 2 }),
            ("", Binary, "c:{}", Decision::Relay { skip: 0 }),
            ("m:", Ping, "c:", Decision::Relay { skip: 0 }),
            ("m:", Pong, "", Decision::Relay { skip: 0 }),
            ("m:", Close, "", Decision::Relay { skip: 0 }),
        ] {
            let mut filter = filter(prefix);
            assert_eq!(decide(&mut filter, opcode, true, payload), expected, "{prefix:?} {payload:?}");
            assert!(filter.between_messages());
        }
    }

    #[test]
    fn frames_behind_the_first_follow_it() {
        let mut filter = filter("m:");
        assert_eq!(decide(&mut filter, Opcode::Text, false, "m:a"), Decision::Relay { skip: 2 });
        assert!(!filter.between_messages());
        assert_eq!(decide(&mut filter, Opcode::Ping, true, ""), Decision::Relay { skip: 0 });
        assert_eq!(decide(&mut filter, Opcode::Continuation, false, "c:{}"), Decision::Relay { skip: 0 });
        assert_eq!(decide(&mut filter, Opcode::Continuation, true, "m:b"), Decision::Relay { skip: 0 });
        assert!(filter.between_messages());

        assert_eq!(decide(&mut filter, Opcode::Binary, false, "x"), NO_PREFIX);
        assert_eq!(decide(&mut filter, Opcode::Close, true, ""), Decision::Relay { skip: 0 });
        assert_eq!(decide(&mut filter, Opcode::Continuation, true, "m:b"), NO_PREFIX);

        // A control message in two frames has no effect, and its second frame reaches nobody.
        let fragmented = Decision::Drop(Dropped::FragmentedControl);
        assert_eq!(decide(&mut filter, Opcode::Text, false, "c:{"), fragmented);
        assert_eq!(decide(&mut filter, Opcode::Continuation, false, "m:"), fragmented);
        assert_eq!(decide(&mut filter, Opcode::Continuation, true, "}"), fragmented);
        assert_eq!(decide(&mut filter, Opcode::Text, true, "m:a"), Decision::Relay { skip: 2 });
        // The prefix has to stand in the first frame.
        assert_eq!(decide(&mut filter, Opcode::Text, false, "m"), NO_PREFIX);
        assert_eq!(decide(&mut filter, Opcode::Continuation, true, ":a"), NO_PREFIX);
    }

    #[test]
    fn a_relayed_frame_is_as_much_shorter() {
        let (header, _) = frame(Opcode::Text, false, "m:hello");
        assert_eq!(without(&header, 2), FrameHeader { payload_bytes: 5, ..header });
    }

    proptest! {
        #[test]
        fn the_decision_is_the_same_however_the_payload_arrives(
            prefix in "(m:|cm|c;|)", payload in "(c|m|:|;|x){0,6}", text: bool, fin: bool,
        ) {
            let opcode = if text { Opcode::Text } else { Opcode::Binary };
            let (header, bytes) = frame(opcode, fin, &payload);
            let whole = filter(&prefix).decide(&header, bytes);
            prop_assert_ne!(whole, Decision::NeedMore);
            let mut piecemeal = filter(&prefix);
            let first = (0..=bytes.len())
                .map(|len| piecemeal.decide(&header, &bytes[..len]))
                .find(|decision| *decision != Decision::NeedMore);
            prop_assert_eq!(first, Some(whole));
            prop_assert_eq!(piecemeal.between_messages(), fin);
            if fin {
                let kind = if text { Kind::Text } else { Kind::Binary };
                let expected = match whole {
                    Decision::Relay { skip } => Verdict::Relay(&bytes[skip..]),
                    Decision::Control { skip } => Verdict::Control(&bytes[skip..]),
                    Decision::Drop(why) => Verdict::Drop(why),
                    Decision::NeedMore => unreachable!("a whole frame is decided"),
                };
                prop_assert_eq!(filter(&prefix).message(kind, bytes), expected);
            }
        }
    }
}
