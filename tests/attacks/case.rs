//! What a case is: an attack as a value.

use crate::bytes::{Frame, Head, find};
use crate::wire::{Heard, Script};

/// An attack.
pub struct Case {
    /// Its name: the row of the table.
    pub name: &'static str,
    /// What the attacker does.
    pub attack: &'static str,
    /// What is harmed when it works.
    pub harm: &'static str,
    /// Advisories of products that had the like.
    pub seen_in: &'static str,
    /// The ways in which it is tried.
    pub tries: Vec<Try>,
    /// Whether what was seen is the harm.
    pub shows: fn(&Seen) -> bool,
    /// What is counted besides, for `shows` to judge.
    pub measure: Measure,
    /// When the harm counts, and how the peers behave.
    pub course: Course,
    /// Everything that the gateway may do about it.
    pub stopped_by: &'static [Outcome],
    /// What an operator has set, besides what every case has.
    pub settings: Settings,
    /// Tries that do harm through the gateway too, and why that is so for now. One that does none any more fails.
    pub open: &'static [(&'static str, &'static str)],
}

impl Case {
    /// A case without anything.
    pub const BASE: Self = Self {
        name: "",
        attack: "",
        harm: "",
        seen_in: "",
        tries: Vec::new(),
        shows: |_| false,
        measure: Measure::Nothing,
        course: Course::Sudden,
        stopped_by: &[],
        settings: Settings::NONE,
        open: &[],
    };
}

/// One way to try an attack.
pub struct Try {
    /// What is special about it.
    pub what: String,
    /// What the backend does with a connection, by the beginning of the target of its first request. The first fits.
    pub backend: Vec<(&'static str, Script)>,
    /// What each of the attackers does.
    pub clients: Vec<Script>,
    /// What somebody else does when the attackers have done what they do, while their connections are still there.
    pub bystander: Script,
}

impl Try {
    /// One attacker, and nobody else.
    pub fn new(what: impl Into<String>, backend: Script, client: Script) -> Self {
        Self { what: what.into(), backend: vec![("", backend)], clients: vec![client], bystander: Vec::new() }
    }
}

/// What is counted while a case is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Nothing.
    Nothing,
    /// How many descriptors the gateway has open more than at its start; on the other ways how many ends of the case's
    /// connections were not told that they are over.
    Descriptors,
    /// How many series the gateway's metrics have more than at its start; on the other ways how many there would be if
    /// the backend counted by what it is asked.
    Series,
}

/// When a harm counts, and how the peers behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// As soon as it is seen.
    Sudden,
    /// When it is still there at the end.
    Lasting,
    /// When it is still there at the end, while no peer closes what it is told is over.
    Stubborn,
}

/// What an operator has set for a case, in both proxies.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Keys of the gateway's main file.
    pub main: &'static [&'static str],
    /// Keys of its listener.
    pub listener: &'static str,
    /// Rules in front of its last one, which takes everything to the backend.
    pub rules: &'static [&'static str],
    /// Keys of its last rule.
    pub rule: &'static [&'static str],
    /// What nginx has for it.
    pub nginx: Nginx,
    /// What the table says about them.
    pub note: &'static str,
}

/// What nginx has for a case.
#[derive(Clone, Copy)]
pub enum Nginx {
    /// Nothing that is not in every case.
    Usual,
    /// Directives of its server.
    Server(&'static str),
    /// Directives of its server, and a server for all other hosts, which refuses.
    Hosts(&'static str),
    /// Nothing that would be attacked: it is played, and not counted.
    Absent,
}

impl Settings {
    /// The defaults.
    pub const NONE: Self = Self { main: &[], listener: "", rules: &[], rule: &[], nginx: Nginx::Usual, note: "" };
}

/// How a client's connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It was answered with this status, which is no success.
    Answer(u16),
    /// Its session was closed with this code.
    Close(u16),
    /// It was ended without an answer, or its session without a Close frame.
    Cut,
    /// It was served.
    Served,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answer(code) | Self::Close(code) => write!(formatter, "{code}"),
            Self::Cut => formatter.write_str("cut"),
            Self::Served => formatter.write_str("served without it"),
        }
    }
}

/// What everybody saw of a try.
pub struct Seen {
    /// The try's own words.
    pub what: String,
    /// What came on each of the backend's connections.
    pub backend: Vec<Heard>,
    /// What came to each attacker.
    pub clients: Vec<Heard>,
    /// What came to somebody else.
    pub bystander: Heard,
    /// What [`Measure`] says.
    pub measured: usize,
}

impl Seen {
    /// Whether the backend was sent these bytes.
    pub fn backend_got(&self, what: &[u8]) -> bool {
        self.backend.iter().any(|heard| find(&heard.bytes, what).is_some())
    }

    /// The first request on each of the backend's connections.
    pub fn requests(&self) -> impl Iterator<Item = Head> {
        self.backend.iter().filter_map(|heard| Head::parse(&heard.bytes))
    }

    /// The most bytes that the backend was sent behind a request.
    pub fn most_behind_a_request(&self) -> u64 {
        let behind = self.backend.iter().filter_map(|heard| Some(heard.total - Head::parse(&heard.bytes)?.len as u64));
        behind.max().unwrap_or(0)
    }

    /// The frames behind the backend's requests.
    pub fn frames(&self) -> impl Iterator<Item = Frame> {
        self.backend.iter().flat_map(frames_behind_head)
    }

    /// Whether an attacker's connection was still there, and was not told to end.
    pub fn someone_is_still_there(&self) -> bool {
        self.clients.iter().any(|heard| !heard.ended && matches!(outcome(heard), None | Some(Outcome::Served)))
    }
}

/// The frames behind a head.
pub fn frames_behind_head(heard: &Heard) -> Vec<Frame> {
    Head::parse(&heard.bytes).map_or(Vec::new(), |head| Frame::all(&heard.bytes[head.len..]))
}

/// How a client's connection went so far; `None` while it is not known.
pub fn outcome(heard: &Heard) -> Option<Outcome> {
    let Some(head) = Head::parse(&heard.bytes) else { return heard.ended.then_some(Outcome::Cut) };
    match head.second_word().parse().unwrap_or(0) {
        101 => {}
        200..300 => return Some(Outcome::Served),
        status => return Some(Outcome::Answer(status)),
    }
    let closed = frames_behind_head(heard).iter().find_map(Frame::close_code);
    Some(closed.map_or(if heard.ended { Outcome::Cut } else { Outcome::Served }, Outcome::Close))
}
