//! What a backend says in whole messages, and in control messages: what of it is for the client, and what for the gateway.

use std::time::Instant;

use super::subscriber::{Effect, Subscriber};
use crate::events::Event;
use crate::grip::filter::{Dropped, Filter, Verdict};
use crate::grip::{Kind, Limits, control};

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing more is to be done.
    Done,
    /// The client was sent it.
    Relayed,
    /// The backend detaches.
    Detaches,
    /// The client was sent a Close frame.
    Closes,
    /// It cannot be a message: text has to be UTF-8, and a ping or pong at most 125 bytes.
    NoMessage,
}

/// Who hears it.
pub(super) struct Hearer<'a> {
    /// `None` where the backend has not opted in: then every message is for the client.
    pub(super) filter: Option<&'a Filter>,
    pub(super) limits: &'a Limits,
    pub(super) subscriber: &'a mut Subscriber,
    /// What the client is sent is appended here.
    pub(super) out: &'a mut Vec<u8>,
    /// For the log.
    pub(super) rule: &'a str,
}

impl Hearer<'_> {
    /// Takes a message.
    pub(super) fn message(&mut self, kind: Kind, content: &[u8], now: Instant) -> Heard {
        match self.filter.map_or(Verdict::Relay(content), |filter| filter.message(kind, content)) {
            Verdict::Relay(content) if !kind.allows(content) => Heard::NoMessage,
            Verdict::Relay(content) => {
                self.out.extend(self.subscriber.plain(kind, content));
                self.subscriber.sent(now);
                Heard::Relayed
            }
            Verdict::Control(json) => self.control(json, now),
            Verdict::Drop(why) => {
                ignored(self.rule, dropped(why));
                Heard::Done
            }
        }
    }

    /// Does what a control message says.
    pub(super) fn control(&mut self, json: &[u8], now: Instant) -> Heard {
        match control::parse(json, self.limits) {
            Ok(message) => match self.subscriber.control(message, now, self.out) {
                Effect::None => Heard::Done,
                Effect::Ignored(why) => {
                    ignored(self.rule, why);
                    Heard::Done
                }
                Effect::Detach => Heard::Detaches,
            },
            Err(error) => {
                ignored(self.rule, &error.to_string());
                let Some(code) = error.close() else { return Heard::Done };
                self.out.extend(super::rendered::close_frame(Some(code), "too many filters"));
                Heard::Closes
            }
        }
    }
}

/// Logs what is passed over.
pub(super) fn ignored(rule: &str, why: &str) {
    if crate::events::debug_enabled() {
        Event::debug("grip_ignored").field("rule", rule).field("detail", why).emit();
    }
}

/// Why a message is for nobody.
pub(super) fn dropped(why: Dropped) -> &'static str {
    match why {
        Dropped::NoPrefix => "a message without the prefix",
        Dropped::FragmentedControl => "a control message in fragments",
        Dropped::ControlTooLong => "a control message that is too long",
    }
}
