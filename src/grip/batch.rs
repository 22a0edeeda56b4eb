//! What a client sent and waits for a backend over HTTP, and what becomes of it with each answer.
//!
//! A request carries all whole messages in order. Its answer may take only the first so many bytes of their content
//! (`Content-Bytes-Accepted`); the rest is kept, stands first in the next request, and is named there as a replay
//! (`Content-Bytes-Replayed`).
//!
//! ```text
//!            begin: all events, or one            answered: the accepted ones are forgotten, one is cut
//!   waiting ----------------------------> sent  -----------------------------------------------> waiting
//!                                          |      failed: nothing was taken, all are sent again
//!                                          +---------------------------------------------------> waiting
//! ```

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut, Bytes};

use super::Limits;
use super::events::{EventKind, encode, encoded_bytes};

/// The events that wait for a backend, and those that were sent and not accepted yet.
#[derive(Debug)]
pub struct Pending {
    events: VecDeque<(EventKind, Bytes)>,
    /// What the contents of all events add up to.
    content_bytes: usize,
    /// How many events from the front were sent in an earlier request whose answer did not take them.
    replayed: usize,
    /// How many events from the front are in the request in flight.
    sent: Option<usize>,
    /// Whether a message waits outside because it had no room.
    blocked: bool,
    max_bytes: usize,
    max_events: usize,
}

/// A request that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many events it has.
    pub events: usize,
    /// What their contents add up to, in bytes.
    pub content_bytes: usize,
    /// How many of these, from the front, were sent before: `Content-Bytes-Replayed`, which is left out when it is 0.
    pub replayed_bytes: usize,
    /// The length of the body, in bytes.
    pub body_bytes: usize,
}

/// Why an event is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Its content alone is longer than [`Limits::buffered_bytes`]: it can never be sent.
    #[error("message is too long for a request")]
    TooLong,
    /// There is no room for it now: the client is not to be read, and it is to be pushed again after the next answer.
    #[error("too many messages wait")]
    Full,
}

/// Why an answer cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It accepts more bytes than were sent.
    #[error("Content-Bytes-Accepted is more than was sent")]
    TooMany,
    /// It accepts nothing, and no further message can be added: the next request would be the same.
    #[error("backend accepts nothing of a full batch")]
    NoProgress,
    /// No request is in flight.
    #[error("answer without a request")]
    Unexpected,
}

impl Pending {
    /// Nothing waits. Takes [`Limits::buffered_bytes`] and [`Limits::buffered_events`].
    pub fn new(limits: &Limits) -> Self {
        Self {
            events: VecDeque::new(),
            content_bytes: 0,
            replayed: 0,
            sent: None,
            blocked: false,
            max_bytes: limits.buffered_bytes,
            max_events: limits.buffered_events,
        }
    }

    /// Adds an event behind the others.
    ///
    /// OPEN, CLOSE and DISCONNECT are taken even when it is full: each comes once in a connection.
    ///
    /// # Errors
    /// [`PushError`]; nothing has changed then.
    pub fn push(&mut self, kind: EventKind, content: Bytes) -> Result<(), PushError> {
        if content.len() > self.max_bytes {
            return Err(PushError::TooLong);
        }
        let full = self.events.len() >= self.max_events
            || content.len() > self.max_bytes - self.content_bytes.min(self.max_bytes);
        if full && matches!(kind, EventKind::Message(_)) {
            self.blocked = true;
            return Err(PushError::Full);
        }
        self.blocked = false;
        self.content_bytes += content.len();
        self.events.push_back((kind, content));
        Ok(())
    }

    /// How many bytes of content still have room; 0 when no event has, and then the client is not read.
    pub fn room_bytes(&self) -> usize {
        if self.events.len() >= self.max_events { 0 } else { self.max_bytes.saturating_sub(self.content_bytes) }
    }

    /// Whether a request is in flight.
    pub fn in_flight(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether there is a reason for a request now: no request in flight, and an event that was not sent yet. What an
    /// answer did not take is none by itself: it waits for a new event or for the poll, unless there is no room for a new
    /// event.
    pub fn wants_request(&self) -> bool {
        let new = self.events.len() > self.replayed;
        self.sent.is_none() && (new || (!self.events.is_empty() && self.is_full()))
    }

    /// Whether nothing can be added before an answer takes something.
    fn is_full(&self) -> bool {
        self.blocked || self.room_bytes() == 0
    }

    /// Begins a request with all events, or with the first one only, and writes its body. With none it is a poll.
    ///
    /// After [`Pending::failed`] it can be begun again. `None` while one is in flight.
    pub fn begin(&mut self, one_event: bool, out: &mut impl BufMut) -> Option<Batch> {
        if self.in_flight() {
            return None;
        }
        let events = if one_event { self.events.len().min(1) } else { self.events.len() };
        let mut batch = Batch { events, content_bytes: 0, replayed_bytes: 0, body_bytes: 0 };
        for (at, (kind, content)) in self.events.iter().take(events).enumerate() {
            encode(*kind, content, out);
            batch.body_bytes += encoded_bytes(*kind, content.len());
            if kind.is_counted() {
                batch.content_bytes += content.len();
                batch.replayed_bytes += if at < self.replayed { content.len() } else { 0 };
            }
        }
        self.sent = Some(events);
        Some(batch)
    }

    /// The request has failed in a way that lets it be made again: nothing was taken.
    pub fn failed(&mut self) {
        self.sent = None;
    }

    /// Takes the answer's `Content-Bytes-Accepted`; without one everything is accepted.
    ///
    /// Events are accepted in order as long as their content is; one of which a part is accepted loses that part, and is
    /// sent again as the same type. A Close keeps its content until all of it is accepted. An event without content
    /// goes with what stands in front of it, unless everything in front ends exactly where the accepted bytes do and
    /// more was sent: then it is sent again, since one message twice is better than none.
    ///
    /// # Errors
    /// [`AnswerError`]: the connection ends.
    pub fn answered(&mut self, accepted: Option<u64>) -> Result<(), AnswerError> {
        let sent = self.sent.take().ok_or(AnswerError::Unexpected)?;
        let counted = |(kind, content): &(EventKind, Bytes)| if kind.is_counted() { content.len() } else { 0 };
        let offered: usize = self.events.iter().take(sent).map(counted).sum();
        let mut left = match accepted {
            None => offered,
            Some(accepted) => usize::try_from(accepted).map_err(|_| AnswerError::TooMany)?,
        };
        if left > offered {
            return Err(AnswerError::TooMany);
        }
        let everything = left == offered;
        // One event only was sent, or as many bytes or events wait as may: nothing can come to it.
        let full = self.is_full() || self.events.len() > sent;
        let mut gone = 0;
        let mut cut = false;
        while gone < sent {
            let Some((kind, content)) = self.events.front_mut() else { break };
            let len = if kind.is_counted() { content.len() } else { 0 };
            if len <= left && (everything || left > 0 || !kind.is_counted()) {
                left -= len;
                self.content_bytes -= content.len();
                self.events.pop_front();
                gone += 1;
                continue;
            }
            if left > 0 && *kind != EventKind::Close {
                content.advance(left);
                self.content_bytes -= left;
                cut = true;
            }
            break;
        }
        self.replayed = self.replayed.max(sent) - gone;
        if gone < sent && gone == 0 && !cut && full { Err(AnswerError::NoProgress) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::events::Events;
    use super::*;
    use proptest::prelude::*;

    const TEXT: EventKind = EventKind::Message(Kind::Text);

    fn pending(texts: &[&str]) -> Pending {
        let limits = Limits { buffered_bytes: 20, buffered_events: 4, ..Limits::default() };
        let mut pending = Pending::new(&limits);
        for text in texts {
            pending.push(TEXT, Bytes::copy_from_slice(text.as_bytes())).unwrap();
        }
        pending
    }

    fn begin(pending: &mut Pending, one_event: bool) -> (String, usize) {
        let mut out = Vec::new();
        let batch = pending.begin(one_event, &mut out).unwrap();
        assert_eq!(batch.body_bytes, out.len());
        (String::from_utf8_lossy(&out).replace("\r\n", "|"), batch.replayed_bytes)
    }

    #[test]
    fn everything_is_accepted_where_the_answer_does_not_say() {
        let mut pending = pending(&["ab", "", "cde"]);
        assert!(pending.wants_request());
        assert_eq!(begin(&mut pending, false), ("TEXT 2|ab|TEXT 0||TEXT 3|cde|".to_owned(), 0));
        assert!(pending.in_flight() && !pending.wants_request());
        pending.push(TEXT, Bytes::from_static(b"f")).unwrap();
        assert_eq!(pending.answered(None), Ok(()));
        assert!(pending.wants_request());
        assert_eq!(begin(&mut pending, false), ("TEXT 1|f|".to_owned(), 0));
        assert_eq!(pending.answered(Some(1)), Ok(()));
        assert_eq!(begin(&mut pending, false), (String::new(), 0));
        assert_eq!(pending.answered(None), Ok(()));
        assert_eq!(pending.answered(None), Err(AnswerError::Unexpected));
    }

    #[test]
    fn what_was_not_accepted_stands_first_in_the_next_request() {
        let mut pending = pending(&["ab", "cdef"]);
        begin(&mut pending, false);
        assert_eq!(pending.answered(Some(3)), Ok(()));
        // By itself it is no reason for a request.
        assert!(!pending.wants_request());
        pending.push(TEXT, Bytes::from_static(b"g")).unwrap();
        assert!(pending.wants_request());
        assert_eq!(begin(&mut pending, false), ("TEXT 3|def|TEXT 1|g|".to_owned(), 3));
        pending.failed();
        assert_eq!(begin(&mut pending, false), ("TEXT 3|def|TEXT 1|g|".to_owned(), 3));
        assert_eq!(pending.answered(Some(4)), Ok(()));
        assert_eq!(pending.room_bytes(), 20);
    }

    #[test]
    fn a_close_is_cut_nowhere_and_empty_events_go_with_what_is_in_front() {
        let mut pending = pending(&["", "ab", ""]);
        pending.push(EventKind::Close, Bytes::from_static(b"\x03\xe8")).unwrap();
        begin(&mut pending, false);
        assert_eq!(pending.answered(Some(2)), Ok(()));
        assert_eq!(begin(&mut pending, false), ("TEXT 0||CLOSE 2|\u{3}\u{fffd}|".to_owned(), 2));
        assert_eq!(pending.answered(Some(1)), Ok(()));
        let mut out = Vec::new();
        assert_eq!(pending.begin(false, &mut out).unwrap().replayed_bytes, 2);
        assert_eq!(pending.answered(Some(2)), Ok(()));
        assert!(!pending.wants_request());
    }

    #[test]
    fn open_has_no_content_to_accept() {
        let mut pending = pending(&[]);
        pending.push(EventKind::Open, Bytes::new()).unwrap();
        pending.push(TEXT, Bytes::from_static(b"ab")).unwrap();
        begin(&mut pending, false);
        assert_eq!(pending.answered(Some(0)), Ok(()));
        assert_eq!(begin(&mut pending, false), ("TEXT 2|ab|".to_owned(), 2));
    }

    #[test]
    fn impossible_answers_and_standing_still_are_errors() {
        let mut all = pending(&["ab"]);
        begin(&mut all, false);
        assert_eq!(all.answered(Some(3)), Err(AnswerError::TooMany));
        // More may come, so the next request is another one.
        let mut some = pending(&["ab"]);
        begin(&mut some, false);
        assert_eq!(some.answered(Some(0)), Ok(()));
        let mut full = pending(&["0123456789", "0123456789"]);
        begin(&mut full, false);
        assert_eq!(full.answered(Some(0)), Err(AnswerError::NoProgress));
        let mut one = pending(&["ab", "c"]);
        assert_eq!(begin(&mut one, true), ("TEXT 2|ab|".to_owned(), 0));
        assert_eq!(one.answered(Some(0)), Err(AnswerError::NoProgress));
    }

    #[test]
    fn a_message_without_room_is_a_reason_to_ask_again() {
        let mut pending = pending(&["0123456789", "012345678"]);
        begin(&mut pending, false);
        assert_eq!(pending.answered(Some(1)), Ok(()));
        assert!(!pending.wants_request());
        assert_eq!(pending.push(TEXT, Bytes::from_static(&[b'x'; 12])), Err(PushError::Full));
        assert!(pending.wants_request());
        assert_eq!(begin(&mut pending, false).1, 18);
        assert_eq!(pending.answered(Some(1)), Ok(()));
        assert!(pending.wants_request());
        begin(&mut pending, false);
        assert_eq!(pending.answered(Some(0)), Err(AnswerError::NoProgress));
    }

    #[test]
    fn it_is_bounded_in_bytes_and_events() {
        let mut bytes = pending(&["0123456789"]);
        assert_eq!(bytes.push(TEXT, Bytes::from_static(&[0; 21])), Err(PushError::TooLong));
        assert_eq!(bytes.push(TEXT, Bytes::from_static(&[0; 11])), Err(PushError::Full));
        assert_eq!(bytes.push(TEXT, Bytes::from_static(&[0; 10])), Ok(()));
        assert_eq!(bytes.room_bytes(), 0);
        let mut events = pending(&["", "", "", ""]);
        assert_eq!(events.room_bytes(), 0);
        assert_eq!(events.push(TEXT, Bytes::new()), Err(PushError::Full));
        assert_eq!(events.push(EventKind::Disconnect, Bytes::new()), Ok(()));
    }

    proptest! {
        #[test]
        fn each_byte_is_accepted_once_and_in_order(
            texts in prop::collection::vec("[a-z]{0,6}", 1..8),
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..40),
        ) {
            let mut pending = Pending::new(&Limits::default());
            let mut waiting = texts.iter();
            let mut taken = String::new();
            // How far into all content anything was sent.
            let mut sent = 0;
            for (one_event, accept) in steps {
                if let Some(text) = waiting.next() {
                    pending.push(TEXT, Bytes::copy_from_slice(text.as_bytes())).unwrap();
                }
                let mut body = Vec::new();
                let batch = pending.begin(one_event, &mut body).unwrap();
                let content: Vec<u8> =
                    Events::new(&body, 10).flat_map(|event| event.unwrap().content.to_vec()).collect();
                prop_assert_eq!(content.len(), batch.content_bytes);
                prop_assert_eq!(batch.replayed_bytes, content.len().min(sent - taken.len()));
                sent = sent.max(taken.len() + content.len());
                let accepted = accept.index(content.len() + 1);
                taken.push_str(std::str::from_utf8(&content[..accepted]).unwrap());
                if pending.answered(Some(accepted as u64)).is_err() {
                    prop_assert_eq!(accepted, 0);
                    return Ok(());
                }
            }
            prop_assert!(texts.concat().starts_with(&taken));
        }
    }
}
