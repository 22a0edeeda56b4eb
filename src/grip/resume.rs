//! Messages that a client can resume behind: the subprotocol `sluicegate.v1`, alone or around one of the application.
//!
//! Each message is a header line, which is a JSON object or empty, a line end, and the payload:
//!
//! ```text
//! {"c":"room:42","p":"eu.3f9aK2.1042.1795489098605-0","i":"m-17","ts":1795489098605} LF payload    of a channel
//! {"t":"gap","c":"room:42","r":"us","why":"trimmed"} LF                                            a notice
//! LF payload                                                                                       of the backend
//! ```
//!
//! A client keeps the last position of each channel and region, and says them in its first message when it comes back.
//! A position grants nothing: only channels that the backend subscribes the new connection to are looked at.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::Object;
use super::position::Position;
use super::{FormatError, Limits};

/// The subprotocol without one of the application.
pub const SUBPROTOCOL: &str = "sluicegate.v1";

/// What stands in front of the application's subprotocol.
const PREFIX: &str = "sluicegate.v1.";

/// The most subprotocols of a handshake that asks for ours; of one with more ours are left out.
pub const MAX_SUBPROTOCOLS: usize = 32;

/// Whether a subprotocol is of ours, and so never for a backend.
pub fn is_ours(subprotocol: &str) -> bool {
    subprotocol == SUBPROTOCOL || subprotocol.starts_with(PREFIX)
}

/// The subprotocols of a handshake, of ours and of the application.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer<'a> {
    /// What the backend is offered: the plain ones and those within ours, in the client's order, each once.
    pub upstream: Vec<&'a str>,
    /// Those that the client offered within ours.
    inner: Vec<&'a str>,
    /// Those that the client offered by themselves.
    plain: Vec<&'a str>,
    /// Whether the client offered ours alone.
    alone: bool,
}

impl<'a> Offer<'a> {
    /// Reads what a client offers. Where resuming is not `allowed` ours are left out, and the plain ones stay, so that the
    /// client falls back.
    pub fn new(subprotocols: impl IntoIterator<Item = &'a str>, allowed: bool) -> Self {
        let subprotocols: Vec<&str> = subprotocols.into_iter().collect();
        let allowed = allowed && subprotocols.len() <= MAX_SUBPROTOCOLS;
        let mut offer = Self::default();
        for subprotocol in subprotocols {
            let for_backend = match subprotocol.strip_prefix(PREFIX) {
                Some("") => continue,
                Some(_) if !allowed => continue,
                Some(inner) => {
                    offer.inner.push(inner);
                    inner
                }
                None if subprotocol == SUBPROTOCOL => {
                    offer.alone = allowed;
                    continue;
                }
                None => {
                    offer.plain.push(subprotocol);
                    subprotocol
                }
            };
            // The list is as long as a head lets it be where nothing is resumable, and has no repetitions to look for then.
            if !allowed || !offer.upstream.contains(&for_backend) {
                offer.upstream.push(for_backend);
            }
        }
        offer
    }

    /// What the client is answered once the backend has answered `accepted`, and whether its messages are resumable.
    /// `opted_in` says whether the backend speaks GRIP: without that there is nothing to resume.
    ///
    /// A client that offered a subprotocol within ours alone is answered none then, although the backend has accepted it:
    /// it must not believe in ours, and what it did not offer it has to refuse (RFC 6455 §4.1).
    ///
    /// `accepted` has to be one of `upstream`, which the check of the backend's answer sees to.
    pub fn answer(&self, accepted: Option<&'a str>, opted_in: bool) -> (Option<Cow<'a, str>>, bool) {
        match accepted {
            Some(inner) if opted_in && self.inner.contains(&inner) => (Some(format!("{PREFIX}{inner}").into()), true),
            Some(plain) => (self.plain.contains(&plain).then_some(plain.into()), false),
            None if opted_in && self.alone => (Some(SUBPROTOCOL.into()), true),
            None => (None, false),
        }
    }
}

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient<'a> {
    /// For the backend.
    Payload(&'a [u8]),
    /// It has nothing of any channel. Allowed as the first message only.
    New,
    /// It has each channel up to these positions, at most one of each region. Allowed as the first message only.
    Resume(Vec<(String, Vec<Position>)>),
    /// It has a channel up to a position.
    Ack {
        /// The channel.
        channel: String,
        /// The position.
        position: Position,
    },
}

/// Why a message has no place in the subprotocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It has no line end, or none within [`Limits::line_bytes`].
    #[error("message has no header line")]
    Line,
    /// The header line is no JSON.
    #[error("header line is not JSON")]
    NotJson,
    /// The header line has a field that is missing, wrong or out of bounds.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// `t` is none that is known here.
    #[error("header line has an unknown type")]
    UnknownType,
    /// A payload stands behind a header line that has none.
    #[error("payload behind a header line without one")]
    Payload,
}

/// Splits a message into its header line and its payload.
fn split<'a>(message: &'a [u8], limits: &Limits) -> Result<(&'a [u8], &'a [u8]), FrameError> {
    let within = message.get(..limits.line_bytes.saturating_add(1)).unwrap_or(message);
    let end = within.iter().position(|byte| *byte == b'\n').ok_or(FrameError::Line)?;
    let (line, rest) = message.split_at_checked(end).ok_or(FrameError::Line)?;
    Ok((line, rest.get(1..).unwrap_or_default()))
}

/// Reads a client's message. Unknown fields are passed over.
///
/// # Errors
/// [`FrameError`]. Of a channel that stands twice the last entry counts; two positions of one region are an error.
pub fn from_client<'a>(message: &'a [u8], limits: &Limits) -> Result<FromClient<'a>, FrameError> {
    let (line, payload) = split(message, limits)?;
    if line.is_empty() {
        return Ok(FromClient::Payload(payload));
    }
    let value: Value = serde_json::from_slice(line).map_err(|_| FrameError::NotJson)?;
    let mut object = Object::new("header line", value)?;
    let kind = object.string("t")?.ok_or_else(|| object.missing("t"))?;
    let read = match kind.as_str() {
        "new" => FromClient::New,
        "resume" => FromClient::Resume(cursors(&mut object, limits)?),
        "ack" => FromClient::Ack {
            channel: object.required("c", limits.channel_bytes)?,
            position: position(&object.required("p", limits.id_bytes)?)?,
        },
        _ => return Err(FrameError::UnknownType),
    };
    if payload.is_empty() { Ok(read) } else { Err(FrameError::Payload) }
}

fn cursors(object: &mut Object, limits: &Limits) -> Result<Vec<(String, Vec<Position>)>, FormatError> {
    let channels = object.object("ch", "'ch'")?.ok_or_else(|| object.missing("ch"))?.into_fields();
    if channels.len() > limits.channels {
        return Err(FormatError::new("'ch' contains too many channels"));
    }
    let mut cursors = Vec::with_capacity(channels.len());
    for (channel, positions) in channels {
        if channel.is_empty() || channel.len() > limits.channel_bytes {
            return Err(FormatError::new("'ch' contains a channel with invalid name"));
        }
        let Value::Array(list) = positions else {
            return Err(FormatError::new("'ch' contains positions with wrong type"));
        };
        if list.len() > limits.positions {
            return Err(FormatError::new("'ch' contains too many positions"));
        }
        let mut positions: Vec<Position> = Vec::with_capacity(list.len());
        for value in list {
            let position =
                position(value.as_str().ok_or_else(|| FormatError::new("'ch' contains positions with wrong type"))?)?;
            if positions.iter().any(|other| other.region() == position.region()) {
                return Err(FormatError::new("'ch' contains two positions of one region"));
            }
            positions.push(position);
        }
        cursors.push((channel, positions));
    }
    Ok(cursors)
}

fn position(text: &str) -> Result<Position, FormatError> {
    Position::parse(text).map_err(|_| FormatError::new("position is malformed"))
}

/// The header of a message of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery<'a> {
    /// The channel, or what stands for it.
    #[serde(rename = "c", borrow)]
    pub channel: Cow<'a, str>,
    /// Its position.
    #[serde(rename = "p", borrow)]
    pub position: Cow<'a, str>,
    /// The id that its publisher gave it.
    #[serde(rename = "i", borrow, default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    /// When it was stored, in milliseconds since 1970.
    #[serde(rename = "ts", default, skip_serializing_if = "Option::is_none")]
    pub stored_ms: Option<u64>,
}

/// A header line without a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum Notice<'a> {
    /// The first message.
    Hello {
        /// The version of the subprotocol: 1.
        v: u32,
        /// The id of the connection.
        #[serde(borrow)]
        cid: Cow<'a, str>,
        /// The region of the gateway.
        #[serde(borrow)]
        region: Cow<'a, str>,
        /// How long `resume` or `new` is waited for, in milliseconds.
        resume_wait: u64,
        /// How often the client is pinged when it is quiet, in milliseconds.
        ping: u64,
        /// The largest message that it may send, in bytes.
        max_frame: u64,
    },
    /// A subscription and what became of its resuming.
    Sub {
        /// The channel.
        #[serde(rename = "c", borrow)]
        channel: Cow<'a, str>,
        /// The newest position of each region.
        #[serde(rename = "h", borrow)]
        heads: Vec<Cow<'a, str>>,
        /// How it stands.
        #[serde(rename = "s")]
        state: SubState,
        /// How many messages were sent again.
        #[serde(rename = "n", default)]
        replayed: u64,
    },
    /// Messages may be missing.
    Gap {
        /// The channel.
        #[serde(rename = "c", borrow)]
        channel: Cow<'a, str>,
        /// The region in whose log.
        #[serde(rename = "r", borrow)]
        region: Cow<'a, str>,
        /// Why.
        why: GapReason,
        /// The last position in front of it, where it is known.
        #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
        from: Option<Cow<'a, str>>,
        /// The first position behind it, where it is known.
        #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
        to: Option<Cow<'a, str>>,
    },
    /// The client has a channel up to here, though no message says so: what was published there is not for it.
    Pos {
        /// The channel.
        #[serde(rename = "c", borrow)]
        channel: Cow<'a, str>,
        /// The position.
        #[serde(rename = "p", borrow)]
        position: Cow<'a, str>,
    },
    /// Messages of a region are late, or are not any more.
    Region {
        /// The region.
        #[serde(rename = "r", borrow)]
        region: Cow<'a, str>,
        /// How it stands.
        #[serde(rename = "s")]
        state: RegionState,
        /// How late they are, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lag_ms: Option<u64>,
    },
    /// The gateway goes: the client is to come back.
    Moved {
        /// Where, when it is another place than before.
        #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
        url: Option<Cow<'a, str>>,
        /// After how long, in milliseconds.
        after_ms: u64,
    },
}

/// How a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubState {
    /// From now on, without anything from before.
    Live,
    /// Nothing is missing behind the client's positions.
    Recovered,
    /// Something may be missing.
    Gap,
    /// It is not known yet.
    Pending,
}

/// Why messages may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The log does not reach back so far.
    Trimmed,
    /// The log is another one than the position's.
    Lineage,
    /// There are more than may be sent again.
    Limit,
    /// The log is gone with its age.
    Expired,
    /// The region is not reached.
    RegionDown,
}

/// How a region stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionState {
    /// Its messages are late.
    Stale,
    /// They are in time.
    Ok,
}

/// A message to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient<'a> {
    /// Of the backend.
    Payload(&'a [u8]),
    /// Of a channel.
    Delivery(Delivery<'a>, &'a [u8]),
    /// A notice.
    Notice(Notice<'a>),
}

/// Writes the header line in front of a message of a channel. It is the same for every subscriber.
pub fn write_delivery(delivery: &Delivery<'_>, out: &mut Vec<u8>) {
    write_line(delivery, out);
}

/// Writes a notice, which is a message by itself.
pub fn write_notice(notice: &Notice<'_>, out: &mut Vec<u8>) {
    write_line(notice, out);
}

/// The header line in front of what the backend says: an empty one.
pub const PAYLOAD_LINE: &[u8] = b"\n";

fn write_line(header: &impl Serialize, out: &mut Vec<u8>) {
    let start = out.len();
    // Strings and numbers can always be written, and a `Vec` always takes them.
    if serde_json::to_writer(&mut *out, header).is_err() {
        out.truncate(start);
    }
    out.push(b'\n');
}

/// Reads a message to a client, as a client does. Unknown fields are passed over.
///
/// # Errors
/// [`FrameError`]. An unknown `t` is one, which a client passes over.
pub fn to_client<'a>(message: &'a [u8], limits: &Limits) -> Result<ToClient<'a>, FrameError> {
    #[derive(Deserialize)]
    struct Type<'a> {
        #[serde(borrow)]
        t: Option<Cow<'a, str>>,
    }
    let (line, payload) = split(message, limits)?;
    if line.is_empty() {
        return Ok(ToClient::Payload(payload));
    }
    let malformed = |_| FrameError::Format(FormatError::new("header line is malformed"));
    let kind: Type<'_> = serde_json::from_slice(line).map_err(|_| FrameError::NotJson)?;
    match kind.t.as_deref() {
        None => Ok(ToClient::Delivery(serde_json::from_slice(line).map_err(malformed)?, payload)),
        Some("hello" | "sub" | "gap" | "pos" | "region" | "moved") if !payload.is_empty() => Err(FrameError::Payload),
        Some("hello" | "sub" | "gap" | "pos" | "region" | "moved") => {
            Ok(ToClient::Notice(serde_json::from_slice(line).map_err(malformed)?))
        }
        Some(_) => Err(FrameError::UnknownType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(message: &str) -> Result<FromClient<'_>, FrameError> {
        from_client(message.as_bytes(), &Limits::default())
    }

    fn written(notice: &Notice<'_>) -> String {
        let mut out = Vec::new();
        write_notice(notice, &mut out);
        assert_eq!(to_client(&out, &Limits::default()), Ok(ToClient::Notice(notice.clone())));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_inner_subprotocol_is_the_backends_to_accept() {
        let offer = Offer::new(["sluicegate.v1.graphql-ws", "sluicegate.v1", "graphql-ws", "chat"], true);
        assert_eq!(offer.upstream, ["graphql-ws", "chat"]);
        for (accepted, answer, resumable) in [
            (Some("graphql-ws"), Some("sluicegate.v1.graphql-ws"), true),
            (Some("chat"), Some("chat"), false),
            (None, Some("sluicegate.v1"), true),
        ] {
            assert_eq!(offer.answer(accepted, true), (answer.map(Cow::from), resumable));
            assert_eq!(offer.answer(accepted, false), (accepted.map(Cow::from), false), "no GRIP");
        }
        let inner_only = Offer::new(["sluicegate.v1.chat"], true);
        assert_eq!(inner_only.answer(None, true), (None, false));
        assert_eq!(inner_only.answer(Some("chat"), false), (None, false), "what it did not offer");
        let refused = Offer::new(["sluicegate.v1.graphql-ws", "sluicegate.v1", "chat"], false);
        assert_eq!(refused.upstream, ["chat"]);
        assert_eq!(refused.answer(None, true), (None, false));
        assert_eq!(Offer::new(["sluicegate.v1.", "sluicegate.v2"], true).upstream, ["sluicegate.v2"]);
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let many = Offer::new(many.iter().map(String::as_str).chain(["sluicegate.v1", "sluicegate.v1.0"]), true);
        assert_eq!((many.upstream.len(), many.answer(Some("0"), true)), (100, (Some("0".into()), false)));
    }

    #[test]
    fn a_client_begins_or_resumes_and_speaks() {
        assert_eq!(client("{\"t\":\"new\",\"x\":1}\n"), Ok(FromClient::New));
        assert_eq!(client("\nhello\n"), Ok(FromClient::Payload(b"hello\n")));
        assert_eq!(client("\n"), Ok(FromClient::Payload(b"")));
        let position = |text: &str| Position::parse(text).unwrap();
        assert_eq!(
            client("{\"t\":\"resume\",\"ch\":{\"room:42\":[\"eu.a.1.b\",\"us.a.77.c\"],\"b\":[]}}\n"),
            Ok(FromClient::Resume(vec![
                ("room:42".to_owned(), vec![position("eu.a.1.b"), position("us.a.77.c")]),
                ("b".to_owned(), vec![]),
            ]))
        );
        assert_eq!(
            client("{\"t\":\"ack\",\"c\":\"a\",\"p\":\"eu.a.1.b\"}\n"),
            Ok(FromClient::Ack { channel: "a".to_owned(), position: position("eu.a.1.b") })
        );
    }

    #[test]
    fn what_has_no_place_is_refused() {
        for (message, error) in [
            ("", "message has no header line"),
            ("{\"t\":\"new\"}", "message has no header line"),
            ("hello\n", "header line is not JSON"),
            ("[]\n", "header line is not an object"),
            ("{}\n", "header line does not contain 't'"),
            ("{\"t\":\"other\"}\n", "header line has an unknown type"),
            ("{\"t\":\"new\"}\nx", "payload behind a header line without one"),
            ("{\"t\":\"resume\"}\n", "header line does not contain 'ch'"),
            ("{\"t\":\"resume\",\"ch\":[]}\n", "header line contains 'ch' with wrong type"),
            ("{\"t\":\"resume\",\"ch\":{\"\":[]}}\n", "'ch' contains a channel with invalid name"),
            ("{\"t\":\"resume\",\"ch\":{\"a\":\"b\"}}\n", "'ch' contains positions with wrong type"),
            ("{\"t\":\"resume\",\"ch\":{\"a\":[1]}}\n", "'ch' contains positions with wrong type"),
            ("{\"t\":\"resume\",\"ch\":{\"a\":[\"x\"]}}\n", "position is malformed"),
            (
                "{\"t\":\"resume\",\"ch\":{\"a\":[\"eu.a.1.b\",\"eu.c.2.d\"]}}\n",
                "'ch' contains two positions of one region",
            ),
            ("{\"t\":\"ack\",\"c\":\"a\"}\n", "header line does not contain 'p'"),
        ] {
            assert_eq!(client(message).unwrap_err().to_string(), error, "{message}");
        }
        let limits = Limits { channels: 1, positions: 1, line_bytes: 60, ..Limits::default() };
        let read = |message: &str| from_client(message.as_bytes(), &limits).unwrap_err().to_string();
        assert_eq!(read("{\"t\":\"resume\",\"ch\":{\"a\":[],\"b\":[]}}\n"), "'ch' contains too many channels");
        assert_eq!(
            read("{\"t\":\"resume\",\"ch\":{\"a\":[\"eu.a.1.b\",\"us.a.1.b\"]}}\n"),
            "'ch' contains too many positions"
        );
        assert_eq!(read(&format!("{{\"t\":\"{}\"}}\n", "x".repeat(60))), "message has no header line");
    }

    #[test]
    fn lines_to_clients_are_these() {
        let mut out = Vec::new();
        let delivery = Delivery {
            channel: "room:42".into(),
            position: "eu.3f9aK2.1042.1795489098605-0".into(),
            id: Some("m-17".into()),
            stored_ms: Some(1_795_489_098_605),
        };
        write_delivery(&delivery, &mut out);
        out.extend(b"a\nb");
        assert_eq!(
            out,
            b"{\"c\":\"room:42\",\"p\":\"eu.3f9aK2.1042.1795489098605-0\",\"i\":\"m-17\",\"ts\":1795489098605}\na\nb"
        );
        assert_eq!(to_client(&out, &Limits::default()), Ok(ToClient::Delivery(delivery, b"a\nb")));
        assert_eq!(
            written(&Notice::Hello {
                v: 1,
                cid: "c1".into(),
                region: "eu".into(),
                resume_wait: 2000,
                ping: 25_000,
                max_frame: 1_048_576,
            }),
            "{\"t\":\"hello\",\"v\":1,\"cid\":\"c1\",\"region\":\"eu\",\"resume_wait\":2000,\"ping\":25000,\"max_frame\":1048576}\n"
        );
        let sub = Notice::Sub {
            channel: "a".into(),
            heads: vec!["eu.a.1.b".into()],
            state: SubState::Recovered,
            replayed: 37,
        };
        assert_eq!(written(&sub), "{\"t\":\"sub\",\"c\":\"a\",\"h\":[\"eu.a.1.b\"],\"s\":\"recovered\",\"n\":37}\n");
        let gap = Notice::Gap {
            channel: "a\nb".into(),
            region: "us".into(),
            why: GapReason::RegionDown,
            from: Some("us.a.1.b".into()),
            to: None,
        };
        let line = "{\"t\":\"gap\",\"c\":\"a\\nb\",\"r\":\"us\",\"why\":\"region_down\",\"from\":\"us.a.1.b\"}\n";
        assert_eq!(written(&gap), line);
        let region = Notice::Region { region: "us".into(), state: RegionState::Stale, lag_ms: Some(5400) };
        assert_eq!(written(&region), "{\"t\":\"region\",\"r\":\"us\",\"s\":\"stale\",\"lag_ms\":5400}\n");
        let moved = Notice::Moved { url: Some("wss://b.example/".into()), after_ms: 1234 };
        assert_eq!(written(&moved), "{\"t\":\"moved\",\"url\":\"wss://b.example/\",\"after_ms\":1234}\n");
        assert_eq!(to_client(b"\nx", &Limits::default()), Ok(ToClient::Payload(b"x")));
        assert_eq!(to_client(b"{\"t\":\"later\"}\n", &Limits::default()), Err(FrameError::UnknownType));
        assert_eq!(to_client(b"{\"t\":\"moved\",\"after_ms\":1}\nx", &Limits::default()), Err(FrameError::Payload));
    }

    proptest! {
        #[test]
        fn a_delivery_comes_back_whatever_is_in_it(
            channel in "\\PC{0,20}|[\n\r\"\\\\]{0,4}", id in proptest::option::of("\\PC{0,20}"),
            stored_ms: Option<u64>, payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let delivery =
                Delivery { channel: channel.into(), position: "eu.a.1.b".into(), id: id.map(Cow::from), stored_ms };
            let mut out = Vec::new();
            write_delivery(&delivery, &mut out);
            prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
            out.extend(&payload);
            let read = to_client(&out, &Limits::default());
            prop_assert_eq!(read, Ok(ToClient::Delivery(delivery, &payload)));
        }
    }
}
