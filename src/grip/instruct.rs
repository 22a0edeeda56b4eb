//! What a backend says about a plain request that it wants held: `Grip-*` headers, or a body of its own type.
//!
//! Both become one [`Instruction`]. What is refused is refused in the words of Pushpin, as far as it has some; they are
//! for a log, since the client gets a 502.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use serde_json::Value;

use super::control::KeepAliveMode;
use super::filters::{Filters, FiltersError};
use super::json::{Object, shown};
use super::meta::Meta;
use super::parameters::{Element, pair, split};
use super::{FormatError, Limits, publish};

/// The content type of a body that is an instruction.
pub const CONTENT_TYPE: &str = "application/grip-instruct";

/// How long a response is held, and how long a stream is quiet before its keep-alive, in seconds.
const DEFAULT_TIMEOUT_SECS: u32 = 55;

/// The shortest time that a response is held, in seconds; shorter ones are made this long.
const MIN_TIMEOUT_SECS: u32 = 5;

/// How long nothing is heard of a channel before the next link is asked, in seconds.
const DEFAULT_LINK_TIMEOUT_SECS: u32 = 120;

/// The longest of these times: a day, in seconds.
const MAX_SECS: u64 = 86_400;

/// What is done with a backend's response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// How the request is held; `None` when it is answered at once.
    pub hold: Option<Hold>,
    /// The status that the client gets instead of the response's, with its reason, which may be empty.
    pub status: Option<(u16, String)>,
    /// The headers that the client gets of the response; `None` for all but GRIP's.
    pub expose: Option<Vec<HeaderName>>,
    /// Where what follows a stream is asked for.
    pub next: Option<Next>,
    /// Where it is told that the client has gone.
    pub gone: Option<String>,
    /// The response of an instruction in the body, which takes the place of the backend's own headers and body.
    pub response: Option<Answer>,
}

/// A response that an instruction brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status code, 100 to 999; `None` for that of the backend's response.
    pub code: Option<u16>,
    /// The reason, which may be empty.
    pub reason: String,
    /// Names and values of headers, which are valid as such.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// How a request is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Until what.
    pub mode: HoldMode,
    /// The channels that it waits for, at least one.
    pub channels: Vec<Channel>,
    /// How long a response is held, in seconds, 5 to 86,400. Then the client gets the response as it is.
    pub timeout_secs: u32,
    /// What a quiet stream is sent.
    pub keep_alive: Option<KeepAlive>,
    /// Metadata for filters.
    pub meta: Meta,
}

/// Until what a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldMode {
    /// Until one response is published.
    Response,
    /// Until the client goes: what is published goes behind the body.
    Stream,
}

/// A channel of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// The id of the last item that the response has in it.
    pub prev_id: Option<String>,
    /// What each item goes through.
    pub filters: Filters,
}

/// What a quiet stream is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// The bytes, at least one.
    pub content: Bytes,
    /// After how long, in seconds, 1 to 86,400.
    pub timeout_secs: u32,
    /// What the time is counted from.
    pub mode: KeepAliveMode,
}

/// Where what follows is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// A URI reference of visible ASCII, against the request's own URI. It may name another origin, which a caller may
    /// well refuse.
    pub link: String,
    /// After how long without an item it is asked, in seconds, 1 to 86,400.
    pub timeout_secs: u32,
}

/// Whether a name is one of GRIP's, which no client sees.
pub fn is_grip(name: &HeaderName) -> bool {
    name.as_str().starts_with("grip-")
}

/// Whether a response has a body that is an instruction, which has to be read whole before [`from_response`].
pub fn has_body(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii() == CONTENT_TYPE.as_bytes()
    })
}

/// Reads the instruction of a response; `body` is looked at where [`has_body`] says so. One without any is the default.
///
/// # Errors
/// What is malformed or out of bounds. An unknown filter is refused too, since it would deliver what it should hold back,
/// and a hold without a channel, since nothing would ever end it but its time.
pub fn from_response(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    limits: &Limits,
) -> Result<Instruction, FormatError> {
    let mut instruction = from_headers(headers, limits)?;
    if has_body(headers) {
        if status != 200 {
            return Err(FormatError::new("response code for application/grip-instruct content must be 200"));
        }
        from_body(&mut instruction, body, limits)?;
    }
    if let Some(hold) = &instruction.hold {
        if hold.channels.is_empty() {
            return Err(FormatError::new("hold has no channel"));
        }
        // Nothing tells how the stream goes on where an item is missing.
        if hold.mode == HoldMode::Stream
            && instruction.next.is_none()
            && hold.channels.iter().any(|c| c.prev_id.is_some())
        {
            return Err(FormatError::new("stream hold with 'prev-id' has no next link"));
        }
    }
    Ok(instruction)
}

fn from_headers(headers: &HeaderMap, limits: &Limits) -> Result<Instruction, FormatError> {
    let mut instruction = Instruction::default();
    let channels = channels(headers, limits)?;
    let timeout = headers.get("grip-timeout").map(|value| seconds(value.as_bytes(), "Grip-Timeout")).transpose()?;
    let keep_alive = headers.get("grip-keep-alive").map(|value| keep_alive(value.as_bytes(), limits)).transpose()?;
    let mut meta = Meta::default();
    for element in elements(headers, "grip-set-meta") {
        for part in split(element, b';') {
            let malformed = || FormatError::new("failed to parse Grip-Set-Meta");
            let (name, value) = part.and_then(pair).ok_or_else(malformed)?;
            let value = value.unwrap_or_default();
            let (name, value) = (utf8(name, "Grip-Set-Meta")?, utf8(&value, "Grip-Set-Meta")?);
            meta.set(name, value, limits).map_err(|error| FormatError::new(format!("Grip-Set-Meta: {error}")))?;
        }
    }
    let mode = match headers.get("grip-hold").map(|value| value.as_bytes()) {
        None => None,
        Some(b"response") => Some(HoldMode::Response),
        Some(b"stream") => Some(HoldMode::Stream),
        Some(_) => return Err(FormatError::new("Grip-Hold must be set to either 'response' or 'stream'")),
    };
    instruction.hold = mode.map(|mode| Hold { mode, channels, timeout_secs: hold_secs(timeout), keep_alive, meta });
    instruction.status = headers.get("grip-status").map(|value| status(value.as_bytes())).transpose()?;
    for element in elements(headers, "grip-expose-headers") {
        let name = HeaderName::from_bytes(element);
        let name = name.map_err(|_| FormatError::new("Grip-Expose-Headers has what is no header"))?;
        let expose = instruction.expose.get_or_insert_default();
        if expose.len() >= limits.headers {
            return Err(FormatError::new("Grip-Expose-Headers has too many headers"));
        }
        expose.push(name);
    }
    for element in elements(headers, "grip-link") {
        link(&mut instruction, element, limits)?;
    }
    Ok(instruction)
}

/// The elements of a list header over all its lines, without the empty ones. A quote that does not end is the last of its
/// line, and is given on, so that the element is refused.
fn elements<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| split(line.as_bytes(), b',').map(|element| element.unwrap_or(b"\"")))
        .filter(|element| !element.is_empty())
}

fn channels(headers: &HeaderMap, limits: &Limits) -> Result<Vec<Channel>, FormatError> {
    let mut channels = Vec::new();
    for element in elements(headers, "grip-channel") {
        let malformed = || FormatError::new("failed to parse Grip-Channel");
        let element = Element::parse(element).ok_or_else(malformed)?;
        let name = utf8(&element.first, "Grip-Channel")?.to_owned();
        let prev_id = element.value(b"prev-id").map(|id| utf8(id, "Grip-Channel").map(str::to_owned)).transpose()?;
        let mut filters = Vec::new();
        for (_, value) in element.parameters().filter(|(name, _)| *name == b"filter") {
            filters.push(utf8(value.ok_or_else(malformed)?, "Grip-Channel")?);
        }
        channels.push(channel(name, prev_id, &filters, limits)?);
        if channels.len() > limits.channels {
            return Err(FormatError::new("too many channels"));
        }
    }
    Ok(channels)
}

fn channel(name: String, prev_id: Option<String>, filters: &[&str], limits: &Limits) -> Result<Channel, FormatError> {
    let bad_id = prev_id.as_ref().is_some_and(|id| id.len() > limits.id_bytes);
    if name.is_empty() || name.len() > limits.channel_bytes || bad_id {
        return Err(FormatError::new("channel contains 'name' or 'prev-id' with invalid value"));
    }
    let filters = Filters::from_names(filters.iter().copied(), limits).map_err(|error| {
        FormatError::new(match error {
            FiltersError::TooMany => format!("too many filters for channel '{}'", shown(&name)),
            FiltersError::Unknown => format!("unknown filter for channel '{}'", shown(&name)),
        })
    })?;
    Ok(Channel { name, prev_id, filters })
}

fn utf8<'a>(text: &'a [u8], header: &str) -> Result<&'a str, FormatError> {
    std::str::from_utf8(text).map_err(|_| FormatError::new(format!("{header} is not UTF-8")))
}

/// A number of seconds from 0 to a day.
fn seconds(text: &[u8], what: &str) -> Result<u32, FormatError> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let secs: u64 = match digits.map(str::parse) {
        Some(Ok(secs)) => secs,
        _ => return Err(FormatError::new(format!("failed to parse {what}"))),
    };
    if secs > MAX_SECS { Err(FormatError::new(format!("{what} has invalid value"))) } else { Ok(secs as u32) }
}

fn hold_secs(timeout: Option<u32>) -> u32 {
    timeout.unwrap_or(DEFAULT_TIMEOUT_SECS).max(MIN_TIMEOUT_SECS)
}

/// `data; format=raw|cstring|base64; timeout=55; mode=idle|interval`. Commas are data.
fn keep_alive(value: &[u8], limits: &Limits) -> Result<KeepAlive, FormatError> {
    let error = |text: &'static str| FormatError::new(text);
    let element = Element::parse(value).ok_or_else(|| error("failed to parse Grip-Keep-Alive"))?;
    let content = match element.value(b"format") {
        None | Some(b"raw" | b"") => element.first.to_vec(),
        Some(b"cstring") => {
            unescape(&element.first).ok_or_else(|| error("failed to parse Grip-Keep-Alive cstring format"))?
        }
        Some(b"base64") => {
            STANDARD.decode(&element.first).map_err(|_| error("failed to parse Grip-Keep-Alive base64 format"))?
        }
        Some(_) => return Err(error("no such Grip-Keep-Alive format")),
    };
    let mode = match element.value(b"mode").map(std::str::from_utf8) {
        None | Some(Ok("")) => KeepAliveMode::Idle,
        Some(Ok(name)) => KeepAliveMode::from_name(name).ok_or_else(|| error("no such Grip-Keep-Alive mode"))?,
        Some(Err(_)) => return Err(error("no such Grip-Keep-Alive mode")),
    };
    let timeout_secs = match element.value(b"timeout") {
        Some(text) => seconds(text, "Grip-Keep-Alive timeout")?,
        None => DEFAULT_TIMEOUT_SECS,
    };
    kept(content.into(), timeout_secs, mode, limits)
}

fn kept(content: Bytes, timeout_secs: u32, mode: KeepAliveMode, limits: &Limits) -> Result<KeepAlive, FormatError> {
    if content.is_empty() {
        return Err(FormatError::new("Grip-Keep-Alive cannot be empty"));
    }
    if timeout_secs == 0 || content.len() > limits.kept_bytes {
        return Err(FormatError::new("Grip-Keep-Alive has invalid value"));
    }
    Ok(KeepAlive { content, timeout_secs, mode })
}

/// `\\`, `\r`, `\n` and `\xHH`.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next()? {
            b'\\' => b'\\',
            b'r' => b'\r',
            b'n' => b'\n',
            b'x' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            _ => return None,
        });
    }
    Some(out)
}

/// `304 Not Modified`, or the code alone.
fn status(value: &[u8]) -> Result<(u16, String), FormatError> {
    let invalid = || FormatError::new("Grip-Status contains invalid status code");
    let text = std::str::from_utf8(value).map_err(|_| invalid())?;
    let (code, reason) = text.split_once(' ').unwrap_or((text, ""));
    let is_code = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
    match code.parse::<u16>() {
        Ok(parsed) if is_code && parsed >= 100 => Ok((parsed, reason.trim().to_owned())),
        _ => Err(invalid()),
    }
}

/// `</uri>; rel=next; timeout=120`. A relation that is not known is passed over.
fn link(instruction: &mut Instruction, element: &[u8], limits: &Limits) -> Result<(), FormatError> {
    let element = Element::parse(element).ok_or_else(|| FormatError::new("failed to parse Grip-Link value"))?;
    let uri = element.first.strip_prefix(b"<").and_then(|uri| uri.strip_suffix(b">"));
    let uri = uri.filter(|uri| !uri.is_empty()).ok_or_else(|| FormatError::new("failed to parse Grip-Link value"))?;
    let visible = uri.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'\\'));
    let uri = match std::str::from_utf8(uri) {
        Ok(uri) if visible && uri.len() <= limits.link_bytes => uri.to_owned(),
        _ => return Err(FormatError::new("Grip-Link contains invalid link")),
    };
    match element.value(b"rel") {
        Some(b"next") => {
            let timeout_secs = match element.value(b"timeout") {
                Some(text) => seconds(text, "Grip-Link timeout")?,
                None => DEFAULT_LINK_TIMEOUT_SECS,
            };
            if timeout_secs == 0 {
                // The backend would be asked without a pause.
                return Err(FormatError::new("Grip-Link timeout has invalid value"));
            }
            instruction.next = Some(Next { link: uri, timeout_secs });
        }
        Some(b"gone") => instruction.gone = Some(uri),
        _ => {}
    }
    Ok(())
}

fn from_body(instruction: &mut Instruction, body: &[u8], limits: &Limits) -> Result<(), FormatError> {
    if body.len() > limits.response_bytes {
        return Err(FormatError::new("application/grip-instruct content is too long"));
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|_| FormatError::new("failed to parse application/grip-instruct content as JSON"))?;
    if !value.is_object() {
        return Err(FormatError::new("instruct must be an object"));
    }
    let mut object = Object::new("instruct", value)?;
    if let Some(mut hold) = object.object("hold", "hold")? {
        instruction.hold = Some(self::hold(&mut hold, limits)?);
    }
    let mut answer = Answer::default();
    if let Some(mut response) = object.object("response", "response")? {
        answer.code = publish::status_code(&mut response)?;
        answer.reason = publish::reason(&mut response, limits)?;
        answer.headers = response.headers(limits)?;
        answer.body = response.content("body", "body-bin")?.map(|(body, _)| body).unwrap_or_default();
    }
    instruction.response = Some(answer);
    Ok(())
}

fn hold(object: &mut Object, limits: &Limits) -> Result<Hold, FormatError> {
    let mode = match object.string("mode")?.as_deref() {
        None | Some("response") => HoldMode::Response,
        Some("stream") => HoldMode::Stream,
        Some(_) => return Err(FormatError::new("hold 'mode' must be set to either 'response' or 'stream'")),
    };
    let list = object.list("channels")?.ok_or_else(|| object.missing("channels"))?;
    if list.len() > limits.channels {
        return Err(FormatError::new("too many channels"));
    }
    let mut channels = Vec::with_capacity(list.len());
    for value in list {
        let mut object = Object::new("channel", value)?;
        let name = object.required("name", limits.channel_bytes)?;
        let prev_id = object.bounded("prev-id", limits.id_bytes)?;
        let filters = object.strings("filters", usize::MAX, limits.response_bytes)?.unwrap_or_default();
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        channels.push(channel(name, prev_id, &filters, limits)?);
    }
    let timeout = object.integer("timeout", MAX_SECS)?.map(|secs| secs as u32);
    let keep_alive = match object.object("keep-alive", "keep-alive")? {
        None => None,
        Some(mut object) => {
            let content = object.content("content", "content-bin")?.map(|(content, _)| content).unwrap_or_default();
            let timeout_secs = object.integer("timeout", MAX_SECS)?.map_or(DEFAULT_TIMEOUT_SECS, |secs| secs as u32);
            Some(kept(content, timeout_secs, KeepAliveMode::Idle, limits)?)
        }
    };
    Ok(Hold { mode, channels, timeout_secs: hold_secs(timeout), keep_alive, meta: object.meta(limits)? })
}

#[cfg(test)]
mod tests {
    use super::super::filters::Filter;
    use super::*;
    use http::HeaderValue;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect()
    }

    fn read(lines: &[(&'static str, &str)]) -> Result<Instruction, String> {
        from_response(200, &map(lines), b"", &Limits::default()).map_err(|error| error.to_string())
    }

    fn read_body(json: &str) -> Result<Instruction, String> {
        let headers = map(&[("content-type", "application/grip-instruct; charset=utf-8")]);
        from_response(200, &headers, json.as_bytes(), &Limits::default()).map_err(|error| error.to_string())
    }

    fn channel(name: &str, prev_id: Option<&str>, filters: &[Filter]) -> Channel {
        let filters = filters.iter().copied().collect();
        Channel { name: name.to_owned(), prev_id: prev_id.map(str::to_owned), filters }
    }

    #[test]
    fn a_hold_is_read_from_all_its_headers() {
        let read = read(&[
            ("grip-hold", "stream"),
            ("grip-channel", "a; prev-id=1; filter=skip-self; filter=var-subst, \"b;c\""),
            ("grip-channel", "ü"),
            ("grip-timeout", "2"),
            ("grip-keep-alive", r"a,\n\x41\\; format=cstring; timeout=20; mode=interval"),
            ("grip-set-meta", r#"user=u1, k="v,\"""#),
            ("grip-status", "304 Not Modified"),
            ("grip-expose-headers", "X-A, x-b"),
            ("grip-link", "</next?a=b>; rel=next; timeout=30, <https://b.example/gone>; rel=gone"),
            ("grip-link", "</x>; rel=other"),
        ])
        .unwrap();
        let hold = read.hold.unwrap();
        assert_eq!(hold.mode, HoldMode::Stream);
        assert_eq!(
            hold.channels,
            [
                channel("a", Some("1"), &[Filter::SkipSelf, Filter::VarSubst]),
                channel("b;c", None, &[]),
                channel("ü", None, &[]),
            ]
        );
        assert_eq!(hold.timeout_secs, 5);
        let content = Bytes::from_static(b"a,\nA\\");
        assert_eq!(hold.keep_alive, Some(KeepAlive { content, timeout_secs: 20, mode: KeepAliveMode::Interval }));
        assert_eq!(hold.meta.iter().collect::<Vec<_>>(), [("user", "u1"), ("k", "v,\"")]);
        assert_eq!(read.status, Some((304, "Not Modified".to_owned())));
        assert_eq!(read.expose.unwrap(), ["x-a", "x-b"]);
        assert_eq!(read.next, Some(Next { link: "/next?a=b".to_owned(), timeout_secs: 30 }));
        assert_eq!(read.gone.as_deref(), Some("https://b.example/gone"));
        assert_eq!(read.response, None);
    }

    #[test]
    fn defaults_are_those_of_grip() {
        assert_eq!(read(&[("content-type", "text/plain")]), Ok(Instruction::default()));
        let held = read(&[
            ("grip-hold", "response"),
            ("grip-channel", "a"),
            ("grip-keep-alive", "k"),
            ("grip-link", "</n>; rel=next"),
        ])
        .unwrap();
        let hold = held.hold.unwrap();
        assert_eq!((hold.mode, hold.timeout_secs), (HoldMode::Response, 55));
        assert_eq!(hold.keep_alive.unwrap().timeout_secs, 55);
        assert_eq!(held.next.unwrap().timeout_secs, 120);
        let encoded =
            read(&[("grip-hold", "response"), ("grip-channel", "a"), ("grip-keep-alive", "aGk=; format=base64")]);
        assert_eq!(encoded.unwrap().hold.unwrap().keep_alive.unwrap().content, "hi");
    }

    #[test]
    fn malformed_headers_are_said() {
        let held = [("grip-hold", "response"), ("grip-channel", "a")];
        for (name, value, error) in [
            ("grip-hold", "both", "Grip-Hold must be set to either 'response' or 'stream'"),
            ("grip-channel", "a; filter=\"x", "failed to parse Grip-Channel"),
            ("grip-channel", "a; filter", "failed to parse Grip-Channel"),
            ("grip-channel", "a; filter=other", "unknown filter for channel 'a'"),
            ("grip-channel", "; prev-id=a", "channel contains 'name' or 'prev-id' with invalid value"),
            ("grip-timeout", "x", "failed to parse Grip-Timeout"),
            ("grip-timeout", "", "failed to parse Grip-Timeout"),
            ("grip-timeout", "86401", "Grip-Timeout has invalid value"),
            ("grip-keep-alive", "", "Grip-Keep-Alive cannot be empty"),
            ("grip-keep-alive", "a; format=x", "no such Grip-Keep-Alive format"),
            ("grip-keep-alive", "a; mode=x", "no such Grip-Keep-Alive mode"),
            ("grip-keep-alive", "a; timeout=x", "failed to parse Grip-Keep-Alive timeout"),
            ("grip-keep-alive", "a; timeout=0", "Grip-Keep-Alive has invalid value"),
            ("grip-keep-alive", r"\x4; format=cstring", "failed to parse Grip-Keep-Alive cstring format"),
            ("grip-keep-alive", r"\q; format=cstring", "failed to parse Grip-Keep-Alive cstring format"),
            ("grip-keep-alive", "%; format=base64", "failed to parse Grip-Keep-Alive base64 format"),
            ("grip-set-meta", "=a", "failed to parse Grip-Set-Meta"),
            ("grip-set-meta", "a=\"b", "failed to parse Grip-Set-Meta"),
            ("grip-status", "99", "Grip-Status contains invalid status code"),
            ("grip-status", "2000", "Grip-Status contains invalid status code"),
            ("grip-status", "OK", "Grip-Status contains invalid status code"),
            ("grip-expose-headers", "a b", "Grip-Expose-Headers has what is no header"),
            ("grip-link", "/a; rel=next", "failed to parse Grip-Link value"),
            ("grip-link", "<>; rel=next", "failed to parse Grip-Link value"),
            ("grip-link", "</a b>; rel=next", "Grip-Link contains invalid link"),
            ("grip-link", "</a>; rel=next; timeout=0", "Grip-Link timeout has invalid value"),
        ] {
            let mut lines = held.to_vec();
            lines.retain(|(kept, _)| *kept != name);
            lines.push((name, value));
            assert_eq!(read(&lines).unwrap_err(), error, "{name}: {value}");
        }
        assert_eq!(read(&[("grip-hold", "response")]).unwrap_err(), "hold has no channel");
        let stream = [("grip-hold", "stream"), ("grip-channel", "a; prev-id=1")];
        assert_eq!(read(&stream).unwrap_err(), "stream hold with 'prev-id' has no next link");
        let filters = format!("a{}", "; filter=skip-self".repeat(6));
        assert_eq!(read(&[held[0], ("grip-channel", &filters)]).unwrap_err(), "too many filters for channel 'a'");
        let many = vec!["a"; 257].join(",");
        assert_eq!(read(&[held[0], ("grip-channel", &many)]).unwrap_err(), "too many channels");
    }

    #[test]
    fn a_body_is_the_same_instruction() {
        let read = read_body(
            r#"{"hold":{"mode":"response","channels":[{"name":"a","prev-id":"1","filters":["skip-self"]}],"timeout":20,
            "keep-alive":{"content-bin":"aGk=","timeout":30},"meta":{"user":"u"}},
            "response":{"code":304,"reason":"R","headers":{"A":"b"},"body":"x"}}"#,
        )
        .unwrap();
        let hold = read.hold.unwrap();
        assert_eq!((hold.mode, hold.timeout_secs), (HoldMode::Response, 20));
        assert_eq!(hold.channels, [channel("a", Some("1"), &[Filter::SkipSelf])]);
        assert_eq!(hold.keep_alive.unwrap().content, "hi");
        assert_eq!(hold.meta.get("user"), Some("u"));
        let answer = read.response.unwrap();
        assert_eq!((answer.code, answer.reason.as_str(), &answer.body[..]), (Some(304), "R", &b"x"[..]));
        assert_eq!(answer.headers, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(read_body("{}"), Ok(Instruction { response: Some(Answer::default()), ..Instruction::default() }));
    }

    #[test]
    fn malformed_bodies_are_said() {
        for (json, error) in [
            ("", "failed to parse application/grip-instruct content as JSON"),
            ("[]", "instruct must be an object"),
            (r#"{"hold":1}"#, "instruct contains 'hold' with wrong type"),
            (r#"{"hold":{}}"#, "hold does not contain 'channels'"),
            (r#"{"hold":{"channels":[]}}"#, "hold has no channel"),
            (r#"{"hold":{"channels":[1]}}"#, "channel is not an object"),
            (r#"{"hold":{"channels":[{}]}}"#, "channel does not contain 'name'"),
            (r#"{"hold":{"channels":[{"name":"a","filters":[1]}]}}"#, "filters contains value with wrong type"),
            (r#"{"hold":{"mode":"x","channels":[]}}"#, "hold 'mode' must be set to either 'response' or 'stream'"),
            (r#"{"hold":{"channels":[],"timeout":-1}}"#, "hold contains 'timeout' with invalid value"),
            (r#"{"hold":{"channels":[],"keep-alive":{}}}"#, "Grip-Keep-Alive cannot be empty"),
            (r#"{"response":{"code":1000}}"#, "response contains 'code' with invalid value"),
            (r#"{"response":{"headers":{"a b":"c"}}}"#, "headers contains what is no header"),
        ] {
            assert_eq!(read_body(json).unwrap_err(), error, "{json}");
        }
        let headers = map(&[("content-type", CONTENT_TYPE)]);
        assert!(from_response(201, &headers, b"{}", &Limits::default()).is_err());
    }
}
