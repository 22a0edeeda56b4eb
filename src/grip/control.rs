//! Control messages: what a backend says about a client, as JSON behind `c:`.
//!
//! An unknown type, malformed JSON or a wrong field is an error that a caller logs and passes over, as GRIP has it; the
//! connection stays. One error ends it: [`ControlError::close`].

use bytes::Bytes;
use serde_json::Value;

use super::filters::{Filters, FiltersError};
use super::json::Object;
use super::{FormatError, Kind, Limits};
use crate::ws::close::CloseCode;

/// How long a connection is quiet before its keep-alive is sent, where the backend does not say, in seconds.
const DEFAULT_KEEP_ALIVE_SECS: u32 = 55;

/// When a delayed message is sent, where the backend does not say, in seconds.
const DEFAULT_DELAY_SECS: u32 = 1;

/// The longest time of a control message: a day, in seconds.
const MAX_SECS: u64 = 86_400;

/// The close code of a gap, where the backend gives none.
pub const DEFAULT_GAP_CODE: CloseCode = CloseCode(4410);

/// What the messages about a control message call it.
const NAME: &str = "grip control object";

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Subscribes the client to a channel.
    Subscribe(Subscribe),
    /// Takes a subscription back.
    Unsubscribe {
        /// The name of the channel.
        channel: String,
    },
    /// The client stays with its subscriptions, and the backend's leg ends.
    Detach,
    /// Gives the client's session an id, or takes it.
    Session {
        /// The id; `None` takes it.
        id: Option<String>,
    },
    /// Sets an entry of the connection's metadata, or removes it.
    SetMeta {
        /// The name of the entry.
        name: String,
        /// The value; `None` removes the entry.
        value: Option<String>,
    },
    /// Sends a message to a quiet client from now on; `None` does not any more.
    KeepAlive(Option<KeepAlive>),
    /// Sends a message later. One that waits already is sent first.
    SendDelayed {
        /// What is sent.
        message: Outgoing,
        /// When, in seconds from now, 0 to 86,400.
        timeout_secs: u32,
    },
    /// Sends the delayed message now.
    FlushDelayed,
}

/// A message for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its type.
    pub kind: Kind,
    /// Its content: UTF-8 for text, at most 125 bytes for a Ping or Pong.
    pub content: Bytes,
}

/// A message that is sent again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// What is sent.
    pub message: Outgoing,
    /// After how long, in seconds, 1 to 86,400.
    pub timeout_secs: u32,
    /// What the time is counted from.
    pub mode: KeepAliveMode,
}

/// When a keep-alive is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepAliveMode {
    /// When nothing was sent to the client for the time.
    #[default]
    Idle,
    /// Each time it has passed.
    Interval,
}

impl KeepAliveMode {
    /// Reads `idle` or `interval`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "idle" => Some(Self::Idle),
            "interval" => Some(Self::Interval),
            _ => None,
        }
    }
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// The name of the channel.
    pub channel: String,
    /// What each message of the channel goes through.
    pub filters: Filters,
    /// The id, or the position, of the last message that the client has. Messages behind it are sent first.
    pub prev_id: Option<String>,
    /// What happens with the messages behind `prev_id`.
    pub recover: Recover,
    /// Which messages the client gets.
    pub mode: Mode,
}

/// Which messages of a channel a subscriber gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Each.
    #[default]
    Log,
    /// The current values, and then the last one of each key.
    Latest,
}

/// What happens with the messages behind a `prev-id`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recover {
    /// The most messages that are sent again; `None` for as many as there are.
    pub max: Option<u64>,
    /// The most bytes that are sent again; `None` for as many as there are.
    pub max_bytes: Option<u64>,
    /// What happens when it cannot be shown that no message is missing.
    pub on_gap: OnGap,
}

/// What happens at a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    /// Live messages follow as if there was none.
    #[default]
    Ignore,
    /// The backend is asked: a path and a query, below its own origin.
    Link(String),
    /// This is sent to the client as text.
    Send(Bytes),
    /// The client is closed.
    Close(CloseCode),
}

/// Why a control message has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It is longer than [`Limits::control_bytes`].
    #[error("control message is too long")]
    TooLong,
    /// It is no JSON.
    #[error("control message is not JSON")]
    NotJson,
    /// A field is missing, has a wrong type or a value out of bounds.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// `type` is none that is known here.
    #[error("'type' contains unknown value")]
    UnknownType,
    /// A filter is none that is known here: its subscription would deliver what it should hold back.
    #[error("'filters' contains unknown value")]
    UnknownFilter,
    /// More filters than [`Limits::filters`].
    #[error("too many filters")]
    TooManyFilters,
}

impl ControlError {
    /// The close code with which the connection ends; `None`: the message is passed over.
    pub fn close(&self) -> Option<CloseCode> {
        matches!(self, Self::TooManyFilters).then_some(CloseCode::INTERNAL_ERROR)
    }
}

impl From<FiltersError> for ControlError {
    fn from(error: FiltersError) -> Self {
        match error {
            FiltersError::Unknown => Self::UnknownFilter,
            FiltersError::TooMany => Self::TooManyFilters,
        }
    }
}

/// Parses the JSON of a control message, what stands behind its `c:`. Fields that a type does not have are passed over.
///
/// # Errors
/// [`ControlError`]. Base64 has to be valid, text has to be UTF-8, and a filter has to be known, which is stricter than
/// other gateways are.
pub fn parse(json: &[u8], limits: &Limits) -> Result<Control, ControlError> {
    if json.len() > limits.control_bytes {
        return Err(ControlError::TooLong);
    }
    let value: Value = serde_json::from_slice(json).map_err(|_| ControlError::NotJson)?;
    let mut object = Object::new("grip control packet", value)?.named(NAME);
    let kind = object.string("type")?.ok_or_else(|| object.missing("type"))?;
    Ok(match kind.as_str() {
        "subscribe" => Control::Subscribe(subscribe(&mut object, limits)?),
        "unsubscribe" => Control::Unsubscribe { channel: object.required("channel", limits.channel_bytes)? },
        "detach" => Control::Detach,
        "session" => Control::Session { id: object.bounded("id", limits.id_bytes)?.filter(|id| !id.is_empty()) },
        "set-meta" => Control::SetMeta {
            name: object.required("name", limits.meta_name_bytes)?,
            value: object.bounded("value", limits.meta_value_bytes)?,
        },
        "keep-alive" => Control::KeepAlive(keep_alive(&mut object, limits)?),
        "send-delayed" => {
            let message = outgoing(&mut object, limits)?
                .ok_or_else(|| object.error("does not contain 'content' or 'content-bin'"))?;
            Control::SendDelayed { message, timeout_secs: seconds(&mut object)?.unwrap_or(DEFAULT_DELAY_SECS) }
        }
        "flush-delayed" => Control::FlushDelayed,
        _ => return Err(ControlError::UnknownType),
    })
}

fn subscribe(object: &mut Object, limits: &Limits) -> Result<Subscribe, ControlError> {
    let channel = object.required("channel", limits.channel_bytes)?;
    // One more than are allowed is told from a list that is no list of filters at all.
    let names = object.strings("filters", usize::MAX, limits.control_bytes)?.unwrap_or_default();
    let filters = Filters::from_names(names.iter().map(String::as_str), limits)?;
    let prev_id = object.bounded("prev-id", limits.id_bytes)?.filter(|id| !id.is_empty());
    let recover = match object.object("recover", "'recover'")? {
        Some(mut recover) => self::recover(&mut recover, limits)?,
        None => Recover::default(),
    };
    let mode = match object.string("mode")?.as_deref() {
        None | Some("log") => Mode::Log,
        Some("latest") => Mode::Latest,
        Some(_) => return Err(object.unknown("mode").into()),
    };
    Ok(Subscribe { channel, filters, prev_id, recover, mode })
}

fn recover(object: &mut Object, limits: &Limits) -> Result<Recover, FormatError> {
    let max = object.integer("max", u64::from(u32::MAX))?;
    let max_bytes = object.integer("max-bytes", u64::from(u32::MAX))?;
    let link = object.bounded("link", limits.link_bytes)?;
    if link.as_deref().is_some_and(|link| !is_path(link)) {
        return Err(object.invalid("link"));
    }
    let content = object.bounded("content", limits.kept_bytes)?.map(|text| Bytes::from(text.into_bytes()));
    let code = match object.integer("code", u64::from(u16::MAX))? {
        None => None,
        Some(code) => {
            let code = u16::try_from(code).ok().map(CloseCode).filter(|code| code.is_valid_on_wire());
            Some(code.ok_or_else(|| object.invalid("code"))?)
        }
    };
    let on_gap = match (object.string("on-gap")?.as_deref(), link, content, code) {
        (None | Some("link"), Some(link), ..) => OnGap::Link(link),
        (None | Some("send"), None, Some(content), _) | (Some("send"), _, Some(content), _) => OnGap::Send(content),
        (None, None, None, Some(code)) => OnGap::Close(code),
        (Some("close"), _, _, code) => OnGap::Close(code.unwrap_or(DEFAULT_GAP_CODE)),
        (None | Some("ignore"), ..) => OnGap::Ignore,
        (Some("link"), ..) => return Err(object.missing("link")),
        (Some("send"), ..) => return Err(object.missing("content")),
        (Some(_), ..) => return Err(object.unknown("on-gap")),
    };
    Ok(Recover { max, max_bytes, on_gap })
}

/// Whether `link` is a path below the backend's own origin, with a query or without: RFC 3986 §4.2, `path-absolute`.
pub(super) fn is_path(link: &str) -> bool {
    link.starts_with('/')
        && !link.starts_with("//")
        && link.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#'))
}

fn keep_alive(object: &mut Object, limits: &Limits) -> Result<Option<KeepAlive>, FormatError> {
    let Some(message) = outgoing(object, limits)? else { return Ok(None) };
    let timeout_secs = seconds(object)?.unwrap_or(DEFAULT_KEEP_ALIVE_SECS);
    if timeout_secs == 0 {
        // Nothing but keep-alives would be sent.
        return Err(object.invalid("timeout"));
    }
    let mode = match object.string("mode")? {
        Some(name) => KeepAliveMode::from_name(&name).ok_or_else(|| object.unknown("mode"))?,
        None => KeepAliveMode::Idle,
    };
    Ok(Some(KeepAlive { message, timeout_secs, mode }))
}

fn seconds(object: &mut Object) -> Result<Option<u32>, FormatError> {
    Ok(object.integer("timeout", MAX_SECS)?.map(|secs| secs as u32))
}

/// The content of a message that is kept. It is text unless `message-type` says otherwise, `content-bin` too.
fn outgoing(object: &mut Object, limits: &Limits) -> Result<Option<Outgoing>, FormatError> {
    let kind = match object.string("message-type")? {
        Some(name) => Kind::from_name(&name).ok_or_else(|| object.unknown("message-type"))?,
        None => Kind::Text,
    };
    let Some((content, binary)) = object.content("content", "content-bin")? else { return Ok(None) };
    if content.len() > limits.kept_bytes || !kind.allows(&content) {
        return Err(object.invalid(if binary { "content-bin" } else { "content" }));
    }
    Ok(Some(Outgoing { kind, content }))
}

#[cfg(test)]
mod tests {
    use super::super::filters::Filter;
    use super::*;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Control, ControlError> {
        parse(json.as_bytes(), &Limits::default())
    }

    fn message(json: &str) -> String {
        read(json).unwrap_err().to_string()
    }

    fn gap(recover: &str) -> Result<OnGap, ControlError> {
        match read(&format!(r#"{{"type":"subscribe","channel":"a","recover":{recover}}}"#))? {
            Control::Subscribe(subscribe) => Ok(subscribe.recover.on_gap),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_subscription_has_all_its_fields() {
        let json = r#"{"type":"subscribe","channel":"room:42","filters":["skip-self","var-subst"],"prev-id":"m-16",
            "recover":{"max":500,"max-bytes":1048576,"on-gap":"link","link":"/rooms/42/since?a=b","code":4410,
            "content":"{}"},"mode":"latest","unknown":1}"#;
        let filters = [Filter::SkipSelf, Filter::VarSubst];
        assert_eq!(
            read(json),
            Ok(Control::Subscribe(Subscribe {
                channel: "room:42".to_owned(),
                filters: filters.into_iter().collect(),
                prev_id: Some("m-16".to_owned()),
                recover: Recover {
                    max: Some(500),
                    max_bytes: Some(1_048_576),
                    on_gap: OnGap::Link("/rooms/42/since?a=b".to_owned()),
                },
                mode: Mode::Latest,
            }))
        );
        let Ok(Control::Subscribe(plain)) = read(r#"{"type":"subscribe","channel":"a","prev-id":"","filters":null}"#)
        else {
            panic!("a subscription")
        };
        assert_eq!((plain.prev_id, plain.recover, plain.mode), (None, Recover::default(), Mode::Log));
    }

    #[test]
    fn a_gap_ends_in_what_was_asked_or_given() {
        let send = |text: &'static str| OnGap::Send(Bytes::from_static(text.as_bytes()));
        for (recover, expected) in [
            (r#"{}"#, OnGap::Ignore),
            (r#"{"link":"/a","content":"b","code":4001}"#, OnGap::Link("/a".to_owned())),
            (r#"{"content":"b","code":4001}"#, send("b")),
            (r#"{"code":4001}"#, OnGap::Close(CloseCode(4001))),
            (r#"{"on-gap":"close","link":"/a"}"#, OnGap::Close(DEFAULT_GAP_CODE)),
            (r#"{"on-gap":"send","link":"/a","content":"b"}"#, send("b")),
            (r#"{"on-gap":"ignore","link":"/a"}"#, OnGap::Ignore),
        ] {
            assert_eq!(gap(recover), Ok(expected), "{recover}");
        }
        for (recover, error) in [
            (r#"{"on-gap":"link"}"#, "'recover' does not contain 'link'"),
            (r#"{"on-gap":"send"}"#, "'recover' does not contain 'content'"),
            (r#"{"on-gap":"later"}"#, "'recover' contains 'on-gap' with unknown value"),
            (r#"{"code":1005}"#, "'recover' contains 'code' with invalid value"),
            (r#"{"code":70000}"#, "'recover' contains 'code' with invalid value"),
            (r#"{"max":-1}"#, "'recover' contains 'max' with invalid value"),
            (r#"{"max":1.5}"#, "'recover' contains 'max' with wrong type"),
            (r#"{"link":"//evil.example/"}"#, "'recover' contains 'link' with invalid value"),
            (r#"{"link":"http://evil.example/"}"#, "'recover' contains 'link' with invalid value"),
            (r#"{"link":"/a b"}"#, "'recover' contains 'link' with invalid value"),
            (r#"[]"#, "grip control object contains 'recover' with wrong type"),
        ] {
            assert_eq!(gap(recover).unwrap_err().to_string(), error, "{recover}");
        }
    }

    #[test]
    fn the_other_types_are_read() {
        let text =
            |content: &'static str| Outgoing { kind: Kind::Text, content: Bytes::from_static(content.as_bytes()) };
        let owned = |text: &str| text.to_owned();
        for (json, expected) in [
            (r#"{"type":"unsubscribe","channel":"a"}"#, Control::Unsubscribe { channel: owned("a") }),
            (r#"{"type":"detach"}"#, Control::Detach),
            (r#"{"type":"session","id":"s"}"#, Control::Session { id: Some(owned("s")) }),
            (r#"{"type":"session"}"#, Control::Session { id: None }),
            (
                r#"{"type":"set-meta","name":"user","value":"u"}"#,
                Control::SetMeta { name: owned("user"), value: Some(owned("u")) },
            ),
            (r#"{"type":"set-meta","name":"user"}"#, Control::SetMeta { name: owned("user"), value: None }),
            (r#"{"type":"keep-alive"}"#, Control::KeepAlive(None)),
            (
                r#"{"type":"keep-alive","content":"k"}"#,
                Control::KeepAlive(Some(KeepAlive { message: text("k"), timeout_secs: 55, mode: KeepAliveMode::Idle })),
            ),
            (
                r#"{"type":"keep-alive","content-bin":"aw==","message-type":"ping","timeout":20.0,"mode":"interval"}"#,
                Control::KeepAlive(Some(KeepAlive {
                    message: Outgoing { kind: Kind::Ping, content: Bytes::from_static(b"k") },
                    timeout_secs: 20,
                    mode: KeepAliveMode::Interval,
                })),
            ),
            (
                r#"{"type":"send-delayed","content-bin":"bA","timeout":0}"#,
                Control::SendDelayed { message: text("l"), timeout_secs: 0 },
            ),
            (r#"{"type":"send-delayed","content":""}"#, Control::SendDelayed { message: text(""), timeout_secs: 1 }),
            (r#"{"type":"flush-delayed"}"#, Control::FlushDelayed),
        ] {
            assert_eq!(read(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_passed_over() {
        let long = "x".repeat(1025);
        for (json, error) in [
            ("", "control message is not JSON"),
            ("{", "control message is not JSON"),
            ("[]", "grip control packet is not an object"),
            ("{}", "grip control object does not contain 'type'"),
            (r#"{"type":1}"#, "grip control object contains 'type' with wrong type"),
            (r#"{"type":"publish"}"#, "'type' contains unknown value"),
            (r#"{"type":"subscribe"}"#, "grip control object does not contain 'channel'"),
            (r#"{"type":"subscribe","channel":""}"#, "grip control object contains 'channel' with invalid value"),
            (r#"{"type":"subscribe","channel":["a"]}"#, "grip control object contains 'channel' with wrong type"),
            (
                r#"{"type":"subscribe","channel":"a","filters":"b"}"#,
                "grip control object contains 'filters' with wrong type",
            ),
            (r#"{"type":"subscribe","channel":"a","filters":[1]}"#, "filters contains value with wrong type"),
            (r#"{"type":"subscribe","channel":"a","filters":["http-check"]}"#, "'filters' contains unknown value"),
            (
                r#"{"type":"subscribe","channel":"a","mode":"all"}"#,
                "grip control object contains 'mode' with unknown value",
            ),
            (r#"{"type":"set-meta","value":"a"}"#, "grip control object does not contain 'name'"),
            (r#"{"type":"set-meta","name":"a","value":1}"#, "grip control object contains 'value' with wrong type"),
            (
                r#"{"type":"keep-alive","content":"a","timeout":0}"#,
                "grip control object contains 'timeout' with invalid value",
            ),
            (
                r#"{"type":"keep-alive","content":"a","timeout":86401}"#,
                "grip control object contains 'timeout' with invalid value",
            ),
            (
                r#"{"type":"keep-alive","content":"a","timeout":"1"}"#,
                "grip control object contains 'timeout' with wrong type",
            ),
            (
                r#"{"type":"keep-alive","content":"a","mode":"x"}"#,
                "grip control object contains 'mode' with unknown value",
            ),
            (
                r#"{"type":"keep-alive","content":"a","message-type":"x"}"#,
                "grip control object contains 'message-type' with unknown value",
            ),
            (
                r#"{"type":"keep-alive","content-bin":"_"}"#,
                "grip control object contains 'content-bin' with invalid value",
            ),
            (
                r#"{"type":"keep-alive","content-bin":"/w=="}"#,
                "grip control object contains 'content-bin' with invalid value",
            ),
            (r#"{"type":"send-delayed"}"#, "grip control object does not contain 'content' or 'content-bin'"),
        ] {
            assert_eq!(message(json), error, "{json}");
            assert_eq!(read(json).unwrap_err().close(), None);
        }
        for json in [
            format!(r#"{{"type":"subscribe","channel":"{long}"}}"#),
            format!(r#"{{"type":"session","id":"{long}"}}"#),
            format!(r#"{{"type":"keep-alive","content":"{}","message-type":"ping"}}"#, &long[..126]),
            format!(r#"{{"type":"keep-alive","content":"{}"}}"#, "x".repeat(16_385)),
        ] {
            assert!(message(&json).ends_with("with invalid value"), "{json}");
        }
        let huge = format!(r#"{{"type":"detach","x":"{}"}}"#, "x".repeat(65_536));
        assert_eq!(read(&huge), Err(ControlError::TooLong));
    }

    #[test]
    fn a_filter_too_many_ends_the_connection() {
        let with = |count: usize| {
            let filters = vec!["\"skip-self\""; count].join(",");
            read(&format!(r#"{{"type":"subscribe","channel":"a","filters":[{filters}]}}"#))
        };
        assert!(with(5).is_ok());
        assert_eq!(with(6), Err(ControlError::TooManyFilters));
        assert_eq!(ControlError::TooManyFilters.close(), Some(CloseCode::INTERNAL_ERROR));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_field_is_out_of_bounds(
            kind in "subscribe|unsubscribe|set-meta|session",
            key in "channel|name|id|prev-id",
            value in "\\PC{0,40}",
        ) {
            let limits = Limits { channel_bytes: 8, id_bytes: 8, meta_name_bytes: 8, ..Limits::default() };
            let json = serde_json::json!({"type": kind, "channel": "c", key: value}).to_string();
            let fits = |text: &str| text.len() <= 8;
            match parse(json.as_bytes(), &limits) {
                Ok(Control::Subscribe(subscribe)) => {
                    prop_assert!(fits(&subscribe.channel) && subscribe.prev_id.is_none_or(|id| fits(&id)));
                }
                Ok(Control::Unsubscribe { channel: text } | Control::SetMeta { name: text, .. }) => {
                    prop_assert!(fits(&text) && !text.is_empty());
                }
                Ok(Control::Session { id }) => prop_assert!(id.is_none_or(|id| fits(&id))),
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(error) => prop_assert_eq!(error.close(), None),
            }
        }
    }
}
