//! The headers between a gateway and a backend: what is taken from a client's request, what is added, and what a
//! backend over HTTP says in those of its answers.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Limits;
use super::events::{CONTENT_TYPE, EventKind};
use super::extension::{self, ExtensionError, OFFER, OptIn};
use super::meta::{Meta, MetaError};

/// Names of GRIP, which no client may send to a backend.
const GRIP: &str = "grip-";

/// Headers of one hop or of one body. What a gateway adds is added behind.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::ACCEPT_ENCODING,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// Headers of a handshake that a request over HTTP has in another sense.
const OVER_HTTP: [HeaderName; 8] = [
    header::UPGRADE,
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    CONNECTION_ID,
    BYTES_REPLAYED,
    BYTES_ACCEPTED,
    KEEP_ALIVE_INTERVAL,
];

const CONNECTION_ID: HeaderName = HeaderName::from_static("connection-id");
const BYTES_REPLAYED: HeaderName = HeaderName::from_static("content-bytes-replayed");
const BYTES_ACCEPTED: HeaderName = HeaderName::from_static("content-bytes-accepted");
const KEEP_ALIVE_INTERVAL: HeaderName = HeaderName::from_static("keep-alive-interval");
const GRIP_SIG: HeaderName = HeaderName::from_static("grip-sig");
const GRIP_FEATURE: HeaderName = HeaderName::from_static("grip-feature");
const GRIP_LAST: HeaderName = HeaderName::from_static("grip-last");

/// What a `Set-Meta-Name` and a `Meta-Name` begin with.
const SET_META: &str = "set-meta-";
const META: &str = "meta-";

/// The shortest poll of a backend over HTTP, in seconds; shorter ones are made this long.
const MIN_POLL_SECS: u32 = 20;

/// The longest poll, in seconds: a day. Longer ones are made this long.
const MAX_POLL_SECS: u32 = 86_400;

/// What a gateway can do, as it tells backends in `Grip-Feature`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `Grip-Status` of held responses.
    Status,
    /// `session` control messages.
    Session,
    /// `Grip-Link` with `rel=next`.
    LinkNext,
    /// `Grip-Link` with `rel=gone`.
    LinkGone,
    /// A filter of subscriptions.
    Filter(super::filters::Filter),
    /// `prev-id` and `recover` of `subscribe`.
    Recover,
    /// `mode` of `subscribe`.
    Conflate,
    /// A publication is answered when it is stored.
    Ack,
}

impl Feature {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Status => "status".to_owned(),
            Self::Session => "session".to_owned(),
            Self::LinkNext => "link:next".to_owned(),
            Self::LinkGone => "link:gone".to_owned(),
            Self::Filter(filter) => format!("filter:{}", filter.name()),
            Self::Recover => "sluicegate:recover".to_owned(),
            Self::Conflate => "sluicegate:conflate".to_owned(),
            Self::Ack => "sluicegate:ack".to_owned(),
        }
    }
}

/// A value that cannot stand in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value cannot stand in a header")]
pub struct ValueError;

impl From<header::InvalidHeaderValue> for ValueError {
    fn from(_: header::InvalidHeaderValue) -> Self {
        Self
    }
}

/// What every request to a backend is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    /// The `Grip-Sig`, made anew for each request; `None` where there is no key.
    pub signature: Option<&'a str>,
    /// What the gateway can do.
    pub features: &'a [Feature],
    /// Channels with the last id that was delivered, in requests that resume something.
    pub last: &'a [(&'a str, &'a str)],
    /// Whether GRIP is offered by `Sec-WebSocket-Extensions`: in handshakes, and in events over HTTP.
    pub offer: bool,
}

/// Takes from a client's request what belongs to its hop, its extensions, and all that begins with `Grip-`.
///
/// A gateway of ours in front of this one is the exception, which a caller knows by a `Grip-Sig` that verifies: its
/// request goes on as it is, and GRIP is left to it.
pub fn strip_request(headers: &mut HeaderMap) {
    for name in &HOP {
        headers.remove(name);
    }
    remove_prefixed(headers, &[GRIP]);
}

/// Adds GRIP's headers to a request that was stripped.
///
/// # Errors
/// A value that cannot stand in a header, such as a channel with a line end.
pub fn add_request(headers: &mut HeaderMap, added: &Added<'_>) -> Result<(), ValueError> {
    if let Some(signature) = added.signature {
        let mut signature = HeaderValue::from_str(signature)?;
        signature.set_sensitive(true);
        headers.insert(GRIP_SIG, signature);
    }
    if !added.features.is_empty() {
        let names: Vec<String> = added.features.iter().map(|feature| feature.name()).collect();
        headers.insert(GRIP_FEATURE, HeaderValue::from_str(&names.join(", "))?);
    }
    for (channel, id) in added.last {
        headers.append(GRIP_LAST, last(channel, id)?);
    }
    if added.offer {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(OFFER));
    }
    Ok(())
}

/// A `Grip-Last`: `<channel>; last-id=<id>`. What would end either is quoted.
fn last(channel: &str, id: &str) -> Result<HeaderValue, ValueError> {
    let text = format!("{}; last-id={}", quoted(channel), quoted(id));
    Ok(HeaderValue::from_bytes(text.as_bytes())?)
}

fn quoted(text: &str) -> std::borrow::Cow<'_, str> {
    let plain = text.trim() == text && !text.contains([';', ',', '"', '\\']);
    if plain { text.into() } else { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")).into() }
}

/// Makes a client's handshake, stripped by [`strip_request`], into the head of a request with events.
///
/// `Sec-WebSocket-Protocol`, `Cookie` and the like stay. Each entry of `meta` becomes a `Meta-Name`.
///
/// # Errors
/// A value or a name that cannot stand in a header. What [`answer`] has taken can.
pub fn over_http(
    headers: &mut HeaderMap,
    connection_id: &str,
    body_bytes: usize,
    replayed_bytes: usize,
    meta: &Meta,
) -> Result<(), ValueError> {
    for name in &OVER_HTTP {
        headers.remove(name);
    }
    remove_prefixed(headers, &[META, SET_META]);
    headers.insert(header::ACCEPT, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body_bytes));
    headers.insert(CONNECTION_ID, HeaderValue::from_str(connection_id)?);
    if replayed_bytes > 0 {
        headers.insert(BYTES_REPLAYED, HeaderValue::from(replayed_bytes));
    }
    for (name, value) in meta.iter() {
        let name = HeaderName::from_bytes(format!("{META}{name}").as_bytes()).map_err(|_| ValueError)?;
        headers.insert(name, HeaderValue::from_bytes(value.as_bytes())?);
    }
    Ok(())
}

/// How often a backend over HTTP is asked when a client is quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Never.
    Off,
    /// After so many seconds without a request, 20 to 86,400.
    Every(u32),
}

/// What the head of a backend's answer with events says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How the backend opts in: of the answer to OPEN only.
    pub opt_in: Option<OptIn>,
    /// What the poll is from now on; `None` for what it was.
    pub poll: Option<Poll>,
    /// How many bytes of content are accepted; `None` for all.
    pub accepted: Option<u64>,
}

/// Why an answer is none with events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The status is another than 200. To an OPEN this is a refusal, which goes to the client as it is.
    #[error("status is not 200")]
    Status,
    /// The content type is another than `application/websocket-events`. To an OPEN as `Status`.
    #[error("content type is not application/websocket-events")]
    ContentType,
    /// The opt-in is malformed.
    #[error("{0}")]
    Extension(#[from] ExtensionError),
    /// `Content-Bytes-Accepted` is no number, or stands twice.
    #[error("Content-Bytes-Accepted is malformed")]
    Accepted,
    /// A `Set-Meta-Name` is out of bounds.
    #[error("Set-Meta: {0}")]
    Meta(#[from] MetaError),
}

/// Reads the head of an answer, and puts what its `Set-Meta-Name` say into `meta`: an empty value removes the entry.
/// Names of entries are in lower case.
///
/// # Errors
/// [`AnswerError`]; `meta` may have changed then, and the connection ends.
pub fn answer(
    status: u16,
    headers: &HeaderMap,
    opening: bool,
    meta: &mut Meta,
    limits: &Limits,
) -> Result<Answer, AnswerError> {
    if status != 200 {
        return Err(AnswerError::Status);
    }
    if headers.get(header::CONTENT_TYPE).is_none_or(|value| value != CONTENT_TYPE) {
        return Err(AnswerError::ContentType);
    }
    let opt_in = if opening { extension::answer(headers)? } else { None };
    let poll = headers.get(KEEP_ALIVE_INTERVAL).map(|value| poll(value.as_bytes()));
    let mut accepted = headers.get_all(BYTES_ACCEPTED).iter();
    let accepted = match (accepted.next(), accepted.next()) {
        (None, _) => None,
        (Some(value), None) => Some(number(value.as_bytes()).ok_or(AnswerError::Accepted)?),
        (Some(_), Some(_)) => return Err(AnswerError::Accepted),
    };
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(SET_META) else { continue };
        // As a header it came, and as a header it goes back.
        match std::str::from_utf8(value.as_bytes()).map_err(|_| MetaError::Value)? {
            "" => meta.remove(name),
            value => meta.set(name, value, limits)?,
        }
    }
    Ok(Answer { opt_in, poll, accepted })
}

fn poll(value: &[u8]) -> Poll {
    match number(value) {
        None | Some(0) => Poll::Off,
        Some(secs) => Poll::Every(u32::try_from(secs).unwrap_or(MAX_POLL_SECS).clamp(MIN_POLL_SECS, MAX_POLL_SECS)),
    }
}

/// A decimal number. RFC 9110 §8.6 has its form for lengths.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Whether an answer to OPEN accepts the connection: its first event is OPEN too, or it has none and sets a poll.
pub fn opens(answer: &Answer, first: Option<EventKind>) -> bool {
    match first {
        Some(first) => first == EventKind::Open,
        None => answer.poll.is_some_and(|poll| poll != Poll::Off),
    }
}

/// Takes from the headers of an answer to OPEN what is for the gateway: what is left goes into the client's 101.
pub fn strip_opening(headers: &mut HeaderMap) {
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, KEEP_ALIVE_INTERVAL, BYTES_ACCEPTED]
        .iter()
        .chain([&header::SEC_WEBSOCKET_EXTENSIONS])
    {
        headers.remove(name);
    }
    remove_prefixed(headers, &[GRIP, SET_META]);
}

/// Removes all whose names, which `http` has in lower case, begin with one of these.
fn remove_prefixed(headers: &mut HeaderMap, prefixes: &[&str]) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| prefixes.iter().any(|prefix| name.as_str().starts_with(prefix)))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::super::filters::Filter;
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect()
    }

    fn read(lines: &[(&str, &str)]) -> Result<Answer, AnswerError> {
        let mut headers = map(lines);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        answer(200, &headers, true, &mut Meta::default(), &Limits::default())
    }

    #[test]
    fn nothing_of_grip_comes_from_a_client() {
        let mut headers = map(&[
            ("Host", "a.example"),
            ("Grip-Sig", "forged"),
            ("GRIP-LAST", "a; last-id=b"),
            ("Connection", "upgrade"),
            ("Accept-Encoding", "gzip"),
            ("Sec-WebSocket-Extensions", "permessage-deflate"),
            ("Sec-WebSocket-Protocol", "chat"),
        ]);
        strip_request(&mut headers);
        assert_eq!(lines(&headers), ["host: a.example", "sec-websocket-protocol: chat"]);
        let features = [Feature::Session, Feature::LinkGone, Feature::Filter(Filter::SkipSelf), Feature::Recover];
        let last = [("room:42", "m-16"), ("a;b", "c\"d")];
        let added = Added { signature: Some("x.y.z"), features: &features, last: &last, offer: true };
        add_request(&mut headers, &added).unwrap();
        assert_eq!(
            lines(&headers)[2..],
            [
                "grip-sig: x.y.z",
                "grip-feature: session, link:gone, filter:skip-self, sluicegate:recover",
                "grip-last: room:42; last-id=m-16",
                "grip-last: \"a;b\"; last-id=\"c\\\"d\"",
                "sec-websocket-extensions: grip",
            ]
        );
        let bad = Added { last: &[("a\r\nb", "")], ..Added::default() };
        assert_eq!(add_request(&mut headers, &bad), Err(ValueError));
    }

    #[test]
    fn a_handshake_becomes_a_request_with_events() {
        let mut headers = map(&[
            ("Upgrade", "websocket"),
            ("Accept", "a"),
            ("Connection-Id", "forged"),
            ("Content-Length", "7"),
            ("Content-Bytes-Replayed", "7"),
            ("Meta-User", "forged"),
            ("Cookie", "a=b"),
        ]);
        let mut meta = Meta::default();
        meta.set("user", "ü", &Limits::default()).unwrap();
        over_http(&mut headers, "id-1", 6, 0, &meta).unwrap();
        let expected = [
            "cookie: a=b",
            "accept: application/websocket-events",
            "content-type: application/websocket-events",
            "content-length: 6",
            "connection-id: id-1",
            "meta-user: ü",
        ];
        let mut found = lines(&headers);
        found.sort();
        let mut sorted = expected.map(str::to_owned);
        sorted.sort();
        assert_eq!(found, sorted);
        over_http(&mut headers, "id-1", 6, 3, &Meta::default()).unwrap();
        assert_eq!(headers.get("content-bytes-replayed").unwrap(), "3");
        assert!(!headers.contains_key("meta-user"));
    }

    #[test]
    fn an_answer_opts_in_polls_accepts_and_sets() {
        let nothing = Answer { opt_in: None, poll: None, accepted: None };
        assert_eq!(read(&[]), Ok(nothing.clone()));
        for (value, expected) in [
            ("0", Poll::Off),
            ("-1", Poll::Off),
            ("x", Poll::Off),
            ("", Poll::Off),
            ("1", Poll::Every(20)),
            ("120", Poll::Every(120)),
            ("99999999999", Poll::Every(86_400)),
        ] {
            let answer = read(&[("Keep-Alive-Interval", value)]).unwrap();
            assert_eq!(answer, Answer { poll: Some(expected), ..nothing.clone() }, "{value}");
        }
        assert_eq!(read(&[("Content-Bytes-Accepted", "12")]).unwrap().accepted, Some(12));
        for value in ["", "-1", "+1", "1.0", "99999999999999999999"] {
            assert_eq!(read(&[("Content-Bytes-Accepted", value)]), Err(AnswerError::Accepted), "{value}");
        }
        let twice = [("Content-Bytes-Accepted", "1"), ("Content-Bytes-Accepted", "1")];
        assert_eq!(read(&twice), Err(AnswerError::Accepted));
        let opt_in = read(&[("Sec-WebSocket-Extensions", "grip")]).unwrap().opt_in.unwrap();
        assert_eq!(opt_in.prefix(), b"m:");
        assert!(matches!(read(&[("Sec-WebSocket-Extensions", "other")]), Err(AnswerError::Extension(_))));

        let (mut meta, limits) = (Meta::default(), Limits { meta_entries: 2, ..Limits::default() });
        let mut set = |lines: &[(&str, &str)]| {
            let mut headers = map(lines);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
            answer(200, &headers, false, &mut meta, &limits).map(|_| format!("{meta:?}"))
        };
        assert_eq!(
            set(&[("Set-Meta-User", "u1"), ("SET-META-B", "c")]).unwrap(),
            r#"Meta([("user", "u1"), ("b", "c")])"#
        );
        assert_eq!(set(&[("Set-Meta-user", "")]).unwrap(), r#"Meta([("b", "c")])"#);
        assert_eq!(set(&[("Set-Meta-", "x")]), Err(AnswerError::Meta(MetaError::Name)));
        assert_eq!(set(&[("Set-Meta-c", "x"), ("Set-Meta-d", "x")]), Err(AnswerError::Meta(MetaError::Full)));
    }

    #[test]
    fn what_is_no_answer_with_events_is_refused() {
        let limits = Limits::default();
        let mut meta = Meta::default();
        let events = map(&[("Content-Type", CONTENT_TYPE)]);
        assert_eq!(answer(204, &events, true, &mut meta, &limits), Err(AnswerError::Status));
        for other in ["text/html", "application/websocket-events; charset=utf-8", ""] {
            let headers = map(&[("Content-Type", other)]);
            assert_eq!(answer(200, &headers, true, &mut meta, &limits), Err(AnswerError::ContentType));
        }
        assert_eq!(answer(200, &HeaderMap::new(), true, &mut meta, &limits), Err(AnswerError::ContentType));
    }

    #[test]
    fn an_opening_needs_open_or_a_poll() {
        let silent = read(&[]).unwrap();
        let polled = read(&[("Keep-Alive-Interval", "30")]).unwrap();
        let off = read(&[("Keep-Alive-Interval", "0")]).unwrap();
        assert!(opens(&silent, Some(EventKind::Open)) && opens(&polled, None));
        assert!(!opens(&silent, None) && !opens(&off, None));
        assert!(!opens(&polled, Some(EventKind::Message(Kind::Text))));
        let mut headers = map(&[
            ("Content-Type", CONTENT_TYPE),
            ("Content-Length", "6"),
            ("Set-Meta-User", "u"),
            ("Sec-WebSocket-Extensions", "grip"),
            ("Keep-Alive-Interval", "30"),
            ("Set-Cookie", "a=b"),
            ("Sec-WebSocket-Protocol", "chat"),
        ]);
        strip_opening(&mut headers);
        let mut left = lines(&headers);
        left.sort();
        assert_eq!(left, ["sec-websocket-protocol: chat", "set-cookie: a=b"]);
    }
}
