//! The body of `POST /publish`: items for channels, as JSON, and the texts that answer it.
//!
//! What is refused is refused in the words of Pushpin, as far as it has some, since publishers' libraries show them. A
//! request is taken whole or not at all.

use bytes::Bytes;
use serde_json::Value;

use super::item::{Body, Formats, HttpResponse, HttpStream, Item, Response, WsMessage};
use super::json::Object;
use super::{FormatError, Kind, Limits};

/// The answer to a request that was taken, as `text/plain`.
pub const PUBLISHED_TEXT: &str = "Published\n";

/// The answer to a request that was taken, as `application/json`.
pub const PUBLISHED_JSON: &str = "{\"message\":\"Published\"}\n";

/// The answer, with 406, to a request that accepts neither.
pub const NOT_ACCEPTABLE: &str = "Not Acceptable. Supported formats are text/plain and application/json.\n";

/// The two forms of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerType {
    /// `text/plain`.
    Text,
    /// `application/json`.
    Json,
}

impl AnswerType {
    /// The type that an `Accept` takes, text if it takes both; without `Accept` it is text. `None` is a 406.
    ///
    /// Neither weights nor the order are looked at, as Pushpin does not.
    pub fn negotiate(accept: Option<&[u8]>) -> Option<Self> {
        let Some(accept) = accept else { return Some(Self::Text) };
        let mut json = None;
        for range in accept.split(|byte| *byte == b',') {
            let media = range.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            match media.to_ascii_lowercase().as_slice() {
                b"text/plain" | b"text/*" | b"*/*" | b"*" => return Some(Self::Text),
                b"application/json" | b"application/*" => json = Some(Self::Json),
                _ => {}
            }
        }
        json
    }

    /// The answer to a request that was taken.
    pub const fn published(self) -> &'static str {
        match self {
            Self::Text => PUBLISHED_TEXT,
            Self::Json => PUBLISHED_JSON,
        }
    }
}

/// Why a request to publish is refused. Its text, with a line end behind it, is the body of the 400, or of the 413 for
/// what is too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The body is longer than [`Limits::publish_bytes`].
    #[error("Body is too long.")]
    TooLong,
    /// The body is no JSON.
    #[error("Body is not valid JSON.")]
    NotJson,
    /// The body is no object.
    #[error("Invalid format.")]
    NotObject,
    /// `items` is missing or no list, or an item is wrong.
    #[error("Invalid format: {0}")]
    Format(#[from] FormatError),
}

/// Reads the items of a request. Fields that GRIP does not know are passed over.
///
/// # Errors
/// The first thing that is wrong. Base64 has to be valid, text has to be UTF-8, a Ping and a Pong have at most 125
/// bytes, and headers have to be such, which is stricter than Pushpin is.
pub fn parse(body: &[u8], limits: &Limits) -> Result<Vec<Item>, PublishError> {
    if body.len() > limits.publish_bytes {
        return Err(PublishError::TooLong);
    }
    let value: Value = serde_json::from_slice(body).map_err(|_| PublishError::NotJson)?;
    let mut object = Object::new("object", value).map_err(|_| PublishError::NotObject)?;
    let items = object.list("items")?.ok_or_else(|| object.missing("items"))?;
    if items.len() > limits.publish_items {
        return Err(object.invalid("items").into());
    }
    Ok(items.into_iter().map(|item| self::item(item, limits)).collect::<Result<_, _>>()?)
}

fn item(value: Value, limits: &Limits) -> Result<Item, FormatError> {
    let mut object = Object::new("publish item object", value)?;
    let channel = object.required("channel", limits.channel_bytes)?;
    let id = object.bounded("id", limits.id_bytes)?.filter(|id| !id.is_empty());
    let prev_id = object.bounded("prev-id", limits.id_bytes)?.filter(|id| !id.is_empty());
    let formats = match object.object("formats", "'formats'")? {
        Some(mut formats) => self::formats(&mut formats, limits)?,
        // The older form: the formats stand in the item itself.
        None => self::formats(&mut object, limits)?,
    };
    let meta = object.meta(limits)?;
    let size = object.integer("size", u64::MAX)?;
    let no_seq = object.boolean("no-seq")?.unwrap_or(false);
    Ok(Item { channel, id, prev_id, no_seq, size, meta, formats })
}

fn formats(object: &mut Object, limits: &Limits) -> Result<Formats, FormatError> {
    let mut formats = Formats::default();
    if let Some(value) = object.value("http-response") {
        formats.http_response = Some(http_response(Object::new("'http-response'", value)?, limits)?);
    }
    if let Some(value) = object.value("http-stream") {
        formats.http_stream = Some(http_stream(Object::new("'http-stream'", value)?, limits)?);
    }
    if let Some(value) = object.value("ws-message") {
        formats.ws_message = Some(ws_message(Object::new("'ws-message'", value)?, limits)?);
    }
    // An item with unknown formats alone would reach nobody, and nobody would hear of it.
    if formats == Formats::default() { Err(FormatError::new("no formats specified")) } else { Ok(formats) }
}

/// What is done, without what it is done with.
enum Action {
    Send,
    Close,
    Refresh,
    Hint,
}

fn action(object: &mut Object) -> Result<Action, FormatError> {
    Ok(match object.string("action")?.as_deref() {
        None | Some("send") => Action::Send,
        Some("close") => Action::Close,
        Some("refresh") => Action::Refresh,
        Some("hint") => Action::Hint,
        Some(_) => return Err(object.unknown("action")),
    })
}

fn content_filters(object: &mut Object, limits: &Limits) -> Result<Option<Vec<String>>, FormatError> {
    object.strings("content-filters", limits.filters, limits.meta_name_bytes)
}

fn ws_message(mut object: Object, limits: &Limits) -> Result<WsMessage, FormatError> {
    Ok(match action(&mut object)? {
        Action::Refresh => WsMessage::Refresh,
        Action::Hint => WsMessage::Hint,
        Action::Close => {
            let code = object.integer("code", u64::from(u16::MAX))?.map(|code| code as u16);
            WsMessage::Close { code, reason: object.bounded("reason", limits.meta_value_bytes)?.unwrap_or_default() }
        }
        Action::Send => {
            let kind = match object.string("type")? {
                Some(name) => Some(Kind::from_name(&name).ok_or_else(|| object.unknown("type"))?),
                None => None,
            };
            let content_filters = content_filters(&mut object, limits)?;
            let content = object.content("content", "content-bin")?;
            let (content, binary) = match (content, kind) {
                (Some(content), _) => content,
                (None, Some(Kind::Ping | Kind::Pong)) => (Bytes::new(), false),
                (None, _) => return Err(object.error("does not contain 'content' or 'content-bin'")),
            };
            let kind = kind.unwrap_or(if binary { Kind::Binary } else { Kind::Text });
            if !kind.allows(&content) {
                return Err(object.invalid(if binary { "content-bin" } else { "content" }));
            }
            WsMessage::Send { kind, content, content_filters }
        }
    })
}

fn http_stream(mut object: Object, limits: &Limits) -> Result<HttpStream, FormatError> {
    Ok(match action(&mut object)? {
        Action::Close => HttpStream::Close,
        Action::Refresh => HttpStream::Refresh,
        Action::Hint => HttpStream::Hint,
        Action::Send => {
            let content_filters = content_filters(&mut object, limits)?;
            let (content, _) = object
                .content("content", "content-bin")?
                .ok_or_else(|| object.error("does not contain 'content' or 'content-bin'"))?;
            HttpStream::Send { content, content_filters }
        }
    })
}

fn http_response(mut object: Object, limits: &Limits) -> Result<HttpResponse, FormatError> {
    Ok(match action(&mut object)? {
        Action::Close => HttpResponse::Close,
        Action::Refresh => HttpResponse::Refresh,
        Action::Hint => HttpResponse::Hint,
        Action::Send => {
            let code = status_code(&mut object)?.unwrap_or(200);
            let reason = reason(&mut object, limits)?;
            let headers = object.headers(limits)?;
            let content_filters = content_filters(&mut object, limits)?;
            let body = match object.content("body", "body-bin")? {
                Some((body, _)) => Body::Whole(body),
                None => match object.list("body-patch")? {
                    Some(patch) => Body::Patch(Value::Array(patch).to_string().into_bytes().into()),
                    None => return Err(object.error("does not contain 'body', 'body-bin', or 'body-patch'")),
                },
            };
            HttpResponse::Send(Box::new(Response { code, reason, headers, body, content_filters }))
        }
    })
}

/// A final status code or not: 100 to 999, as RFC 9110 §15 has three digits.
pub(super) fn status_code(object: &mut Object) -> Result<Option<u16>, FormatError> {
    match object.integer("code", 999)? {
        Some(code) if code < 100 => Err(object.invalid("code")),
        code => Ok(code.map(|code| code as u16)),
    }
}

/// A reason phrase, which stands in one line. RFC 9112 §4.
pub(super) fn reason(object: &mut Object, limits: &Limits) -> Result<String, FormatError> {
    let reason = object.bounded("reason", limits.meta_value_bytes)?.unwrap_or_default();
    if reason.chars().any(|char| char.is_control() && char != '\t') {
        Err(object.invalid("reason"))
    } else {
        Ok(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(json: &str) -> Result<Vec<Item>, PublishError> {
        parse(json.as_bytes(), &Limits::default())
    }

    fn refused(json: &str) -> String {
        items(json).unwrap_err().to_string()
    }

    /// The one item of this channel with these fields.
    fn one(fields: &str) -> Result<Item, String> {
        let items = items(&format!(r#"{{"items":[{{"channel":"a",{fields}}}]}}"#));
        items.map(|mut items| items.remove(0)).map_err(|error| error.to_string())
    }

    fn ws(fields: &str) -> Result<WsMessage, String> {
        one(&format!(r#""formats":{{"ws-message":{{{fields}}}}}"#)).map(|item| item.formats.ws_message.unwrap())
    }

    fn response(fields: &str) -> Result<HttpResponse, String> {
        one(&format!(r#""formats":{{"http-response":{{{fields}}}}}"#)).map(|item| item.formats.http_response.unwrap())
    }

    #[test]
    fn an_item_has_all_its_fields() {
        let item = one(r#""id":"m-17","prev-id":"m-16","no-seq":true,"size":123,"meta":{"sender":"u1"},"formats":{
            "ws-message":{"content":"hi","content-filters":["var-subst"]},
            "http-stream":{"content-bin":"aGkK"},
            "http-response":{"headers":[["A","b"],["A","c"]],"body":"hi\n","reason":"Fine"},
            "unknown":{}},"unknown":1"#)
        .unwrap();
        assert_eq!(
            (item.channel.as_str(), item.id.as_deref(), item.prev_id.as_deref()),
            ("a", Some("m-17"), Some("m-16"))
        );
        assert_eq!((item.no_seq, item.size, item.meta.get("sender")), (true, Some(123), Some("u1")));
        let owned = |text: &str| text.to_owned();
        let header = |value: &str| (owned("A"), owned(value));
        let response = Response {
            code: 200,
            reason: owned("Fine"),
            headers: vec![header("b"), header("c")],
            body: Body::Whole(Bytes::from_static(b"hi\n")),
            content_filters: None,
        };
        assert_eq!(
            item.formats,
            Formats {
                ws_message: Some(WsMessage::Send {
                    kind: Kind::Text,
                    content: Bytes::from_static(b"hi"),
                    content_filters: Some(vec![owned("var-subst")]),
                }),
                http_stream: Some(HttpStream::Send { content: Bytes::from_static(b"hi\n"), content_filters: None }),
                http_response: Some(HttpResponse::Send(Box::new(response))),
            }
        );
    }

    #[test]
    fn the_older_form_and_each_action_are_read() {
        let older = one(r#""ws-message":{"content-bin":"AAE="},"http-stream":{"action":"close"}"#).unwrap();
        let binary =
            WsMessage::Send { kind: Kind::Binary, content: Bytes::from_static(b"\0\x01"), content_filters: None };
        assert_eq!(older.formats.ws_message, Some(binary));
        assert_eq!(older.formats.http_stream, Some(HttpStream::Close));
        let send = |kind, content: &'static [u8]| {
            Ok(WsMessage::Send { kind, content: Bytes::from_static(content), content_filters: None })
        };
        for (fields, expected) in [
            (r#""type":"binary","content":"a""#, send(Kind::Binary, b"a")),
            (r#""type":"text","content-bin":"YQ""#, send(Kind::Text, b"a")),
            (r#""type":"ping""#, send(Kind::Ping, b"")),
            (r#""type":"pong","content":"a""#, send(Kind::Pong, b"a")),
            (r#""content":"""#, send(Kind::Text, b"")),
            (r#""action":"hint""#, Ok(WsMessage::Hint)),
            (r#""action":"refresh","content":1"#, Ok(WsMessage::Refresh)),
            (r#""action":"close""#, Ok(WsMessage::Close { code: None, reason: String::new() })),
            (
                r#""action":"close","code":4001,"reason":"r""#,
                Ok(WsMessage::Close { code: Some(4001), reason: "r".to_owned() }),
            ),
        ] {
            assert_eq!(ws(fields), expected, "{fields}");
        }
        assert_eq!(response(r#""action":"hint""#), Ok(HttpResponse::Hint));
        let Ok(HttpResponse::Send(patched)) = response(r#""body-patch":[{"op":"remove","path":"/a"}],"code":201"#)
        else {
            panic!("a response")
        };
        assert_eq!(patched.code, 201);
        assert_eq!(patched.body, Body::Patch(Bytes::from_static(br#"[{"op":"remove","path":"/a"}]"#)));
        assert_eq!(items(r#"{"items":[]}"#), Ok(Vec::new()));
    }

    #[test]
    fn refusals_have_their_known_texts() {
        for (json, expected) in [
            ("{", "Body is not valid JSON."),
            ("", "Body is not valid JSON."),
            ("[]", "Invalid format."),
            ("{}", "Invalid format: object does not contain 'items'"),
            (r#"{"items":{}}"#, "Invalid format: object contains 'items' with wrong type"),
            (r#"{"items":[1]}"#, "Invalid format: publish item object is not an object"),
            (r#"{"items":[{}]}"#, "Invalid format: publish item object does not contain 'channel'"),
            (r#"{"items":[{"channel":1}]}"#, "Invalid format: publish item object contains 'channel' with wrong type"),
            (r#"{"items":[{"channel":"a"}]}"#, "Invalid format: no formats specified"),
            (r#"{"items":[{"channel":"a","formats":{}}]}"#, "Invalid format: no formats specified"),
            (
                r#"{"items":[{"channel":"a","formats":1}]}"#,
                "Invalid format: publish item object contains 'formats' with wrong type",
            ),
        ] {
            assert_eq!(refused(json), expected, "{json}");
        }
        let hint = r#""ws-message":{"action":"hint"}"#;
        for (fields, expected) in [
            (r#""id":1"#, "publish item object contains 'id' with wrong type"),
            (r#""size":-1"#, "publish item object contains 'size' with invalid value"),
            (r#""size":"a""#, "publish item object contains 'size' with wrong type"),
            (r#""no-seq":1"#, "publish item object contains 'no-seq' with wrong type"),
            (r#""meta":[]"#, "publish item object contains 'meta' with wrong type"),
            (r#""meta":{"a":1}"#, "'meta' contains 'a' with wrong type"),
            (r#""meta":{"a\r\n":1}"#, "'meta' contains 'a\u{fffd}\u{fffd}' with wrong type"),
        ] {
            assert_eq!(one(&format!("{hint},{fields}")), Err(format!("Invalid format: {expected}")), "{fields}");
        }
        for (fields, expected) in [
            (r#""x":1"#, "does not contain 'content' or 'content-bin'"),
            (r#""content":1"#, "contains 'content' with wrong type"),
            (r#""content-bin":"%""#, "contains 'content-bin' with invalid value"),
            (r#""type":"text","content-bin":"/w==""#, "contains 'content-bin' with invalid value"),
            (r#""type":"other","content":"""#, "contains 'type' with unknown value"),
            (r#""action":"other""#, "contains 'action' with unknown value"),
            (r#""content":"","content-filters":1"#, "contains 'content-filters' with wrong type"),
            (r#""action":"close","code":-1"#, "contains 'code' with invalid value"),
            (r#""action":"close","code":"a""#, "contains 'code' with wrong type"),
        ] {
            assert_eq!(ws(fields), Err(format!("Invalid format: 'ws-message' {expected}")), "{fields}");
        }
        assert_eq!(
            ws(r#""content":"","content-filters":[1]"#),
            Err("Invalid format: content-filters contains element with wrong type".to_owned())
        );
        for (fields, expected) in [
            (r#""x":1"#, "'http-response' does not contain 'body', 'body-bin', or 'body-patch'"),
            (r#""body":"","code":1000"#, "'http-response' contains 'code' with invalid value"),
            (r#""body":"","headers":1"#, "'http-response' contains 'headers' with wrong type"),
            (r#""body":"","headers":[1]"#, "headers contains element with wrong type"),
            (r#""body":"","headers":[["a"]]"#, "headers contains list with wrong number of elements"),
            (r#""body":"","headers":[[1,"a"]]"#, "header contains name element with wrong type"),
            (r#""body":"","headers":[["a",1]]"#, "header contains value element with wrong type"),
            (r#""body":"","headers":{"a":1}"#, "headers contains 'a' with wrong type"),
            (r#""body":"","headers":{"a":"b\r\nc: d"}"#, "headers contains what is no header"),
            (r#""body":"","reason":"a\r\nb: c""#, "'http-response' contains 'reason' with invalid value"),
            (r#""body-patch":{}"#, "'http-response' contains 'body-patch' with wrong type"),
        ] {
            assert_eq!(response(fields), Err(format!("Invalid format: {expected}")), "{fields}");
        }
    }

    #[test]
    fn one_bad_item_refuses_all_and_sizes_are_bounded() {
        let good = r#"{"channel":"a","ws-message":{"content":"b"}}"#;
        assert_eq!(items(&format!(r#"{{"items":[{good},{good}]}}"#)).unwrap().len(), 2);
        assert!(items(&format!(r#"{{"items":[{good},{{}}]}}"#)).is_err());
        let limits = Limits { publish_items: 1, ..Limits::default() };
        let two = format!(r#"{{"items":[{good},{good}]}}"#);
        assert!(parse(two.as_bytes(), &limits).is_err());
        let limits = Limits { publish_bytes: two.len() - 1, ..Limits::default() };
        assert_eq!(parse(two.as_bytes(), &limits), Err(PublishError::TooLong));
    }

    #[test]
    fn the_answer_is_what_is_accepted_first() {
        for (accept, expected) in [
            (None, Some(AnswerType::Text)),
            (Some("application/json"), Some(AnswerType::Json)),
            (Some("image/png, Application/JSON;q=0.1"), Some(AnswerType::Json)),
            (Some("application/json, text/plain;q=0.1"), Some(AnswerType::Text)),
            (Some("*/*"), Some(AnswerType::Text)),
            (Some("image/png"), None),
            (Some(""), None),
        ] {
            assert_eq!(AnswerType::negotiate(accept.map(str::as_bytes)), expected, "{accept:?}");
        }
        let json: Value = serde_json::from_str(AnswerType::Json.published()).unwrap();
        assert_eq!(json, serde_json::json!({"message": "Published"}));
        assert_eq!(AnswerType::Text.published(), "Published\n");
    }

    proptest! {
        #[test]
        fn what_is_published_is_what_is_stored(channel in "\\PC{1,20}", id in "\\PC{0,20}", text in "\\PC{0,200}") {
            let json = serde_json::json!({"items": [{"channel": channel, "id": id, "ws-message": {"content": text}}]});
            let items = items(&json.to_string()).unwrap();
            let mut stored = Vec::new();
            items[0].encode(&mut stored);
            let read = Item::decode(&stored.into()).unwrap();
            prop_assert_eq!(&read, &items[0]);
            prop_assert_eq!(read.channel, channel);
            prop_assert_eq!(read.id.unwrap_or_default(), id);
            let sent = WsMessage::Send { kind: Kind::Text, content: text.into(), content_filters: None };
            prop_assert_eq!(read.formats.ws_message, Some(sent));
        }
    }
}
