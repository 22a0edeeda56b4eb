//! A published item, and the bytes as which an engine stores it.
//!
//! ```text
//! item    = version(1) flags channel [id] [prev-id] [size] meta formats
//! meta    = count (name value)*
//! formats = tag(1) ws-message | tag(2) http-stream | tag(3) http-response, each at most once, in this order, tag(0)
//! ```
//!
//! Numbers are LEB128, strings and bytes have their length in front. The first byte changes with the form, and what a
//! reader does not know it refuses: an item is never half read.

use bytes::{Buf as _, BufMut as _, Bytes};

use super::Kind;
use super::Limits;
use super::meta::Meta;

/// The first byte of what is written.
pub const VERSION: u8 = 1;

/// An item for a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The channel.
    pub channel: String,
    /// The id: of two items of a channel with the same id the second is dropped.
    pub id: Option<String>,
    /// The id of the item in front of it, by which a missing one is seen.
    pub prev_id: Option<String>,
    /// Whether it is delivered without waiting for the item in front of it.
    pub no_seq: bool,
    /// What it counts as, in the sender's unit; for accounting only.
    pub size: Option<u64>,
    /// What filters read.
    pub meta: Meta,
    /// What is sent to whom.
    pub formats: Formats,
}

/// What of an item is sent, by how a subscriber is connected. At least one is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    /// To WebSocket clients.
    pub ws_message: Option<WsMessage>,
    /// To HTTP clients whose response is a stream.
    pub http_stream: Option<HttpStream>,
    /// To HTTP clients that wait for a response.
    pub http_response: Option<HttpResponse>,
}

/// What WebSocket clients get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WsMessage {
    /// A message.
    Send {
        /// Its type.
        kind: Kind,
        /// Its content: UTF-8 for text, at most 125 bytes for a Ping or Pong.
        content: Bytes,
        /// The filters that change content which a subscriber needs to have; `None` for any.
        content_filters: Option<Vec<String>>,
    },
    /// A Close frame.
    Close {
        /// Its code, as published: it may be one that must not be on the wire, which is no code then.
        code: Option<u16>,
        /// Its reason, as published: what is over 123 bytes is cut.
        reason: String,
    },
    /// Backends over HTTP are asked for each of the channel's clients.
    Refresh,
    /// There is something new, which subscribers do not get.
    Hint,
}

/// What HTTP clients with a stream get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpStream {
    /// More of the body.
    Send {
        /// The bytes.
        content: Bytes,
        /// As of [`WsMessage::Send`].
        content_filters: Option<Vec<String>>,
    },
    /// The end of the body.
    Close,
    /// Nothing.
    Refresh,
    /// There is something new: the next link is asked.
    Hint,
}

/// What HTTP clients that wait for a response get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpResponse {
    /// The response.
    Send(Box<Response>),
    /// The connection is closed.
    Close,
    /// Nothing.
    Refresh,
    /// There is something new: the request is made again.
    Hint,
}

/// A published response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code, 100 to 999.
    pub code: u16,
    /// The reason; empty for the one that belongs to the code.
    pub reason: String,
    /// Names and values of headers, which are valid as such.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
    /// As of [`WsMessage::Send`].
    pub content_filters: Option<Vec<String>>,
}

/// The body of a published response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// These bytes.
    Whole(Bytes),
    /// The held response's body, a JSON text, changed by this JSON Patch (RFC 6902), which is a JSON text too.
    Patch(Bytes),
}

/// Why bytes are no item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first byte is another than [`VERSION`].
    #[error("stored item has an unknown version")]
    Version,
    /// They end within a field, or go on behind the last.
    #[error("stored item has a wrong length")]
    Length,
    /// A field has a value that is never written.
    #[error("stored item is malformed")]
    Malformed,
}

const HAS_ID: u8 = 1;
const HAS_PREV_ID: u8 = 2;
const NO_SEQ: u8 = 4;
const HAS_SIZE: u8 = 8;

const SEND: u8 = 0;
const CLOSE: u8 = 1;
const REFRESH: u8 = 2;
const HINT: u8 = 3;

const KINDS: [Kind; 4] = [Kind::Text, Kind::Binary, Kind::Ping, Kind::Pong];

impl Item {
    /// Writes the item behind `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(VERSION);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.put_u8(
            flag(self.id.is_some(), HAS_ID)
                | flag(self.prev_id.is_some(), HAS_PREV_ID)
                | flag(self.no_seq, NO_SEQ)
                | flag(self.size.is_some(), HAS_SIZE),
        );
        put_bytes(out, self.channel.as_bytes());
        for text in [&self.id, &self.prev_id].into_iter().flatten() {
            put_bytes(out, text.as_bytes());
        }
        if let Some(size) = self.size {
            put_number(out, size);
        }
        put_pairs(out, self.meta.iter());
        if let Some(message) = &self.formats.ws_message {
            out.put_u8(1);
            encode_ws(message, out);
        }
        if let Some(stream) = &self.formats.http_stream {
            out.put_u8(2);
            match stream {
                HttpStream::Send { content, content_filters } => {
                    out.put_u8(SEND);
                    put_bytes(out, content);
                    put_filters(out, content_filters.as_deref());
                }
                HttpStream::Close => out.put_u8(CLOSE),
                HttpStream::Refresh => out.put_u8(REFRESH),
                HttpStream::Hint => out.put_u8(HINT),
            }
        }
        if let Some(response) = &self.formats.http_response {
            out.put_u8(3);
            match response {
                HttpResponse::Send(response) => {
                    out.put_u8(SEND);
                    encode_response(response, out);
                }
                HttpResponse::Close => out.put_u8(CLOSE),
                HttpResponse::Refresh => out.put_u8(REFRESH),
                HttpResponse::Hint => out.put_u8(HINT),
            }
        }
        out.put_u8(0);
    }

    /// Reads what [`Item::encode`] has written. Contents are not copied: they share the memory of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`]. Nothing of it is trusted: it may come from another process.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut input = Input(bytes.clone());
        if input.byte()? != VERSION {
            return Err(DecodeError::Version);
        }
        let flags = input.byte()?;
        if flags & !(HAS_ID | HAS_PREV_ID | NO_SEQ | HAS_SIZE) != 0 {
            return Err(DecodeError::Malformed);
        }
        let channel = input.text()?;
        let id = if flags & HAS_ID != 0 { Some(input.text()?) } else { None };
        let prev_id = if flags & HAS_PREV_ID != 0 { Some(input.text()?) } else { None };
        let size = if flags & HAS_SIZE != 0 { Some(input.number()?) } else { None };
        let mut meta = Meta::default();
        // What was stored was bounded where it was published, maybe by other bounds.
        let any = Limits {
            meta_entries: usize::MAX,
            meta_name_bytes: usize::MAX,
            meta_value_bytes: usize::MAX,
            ..Limits::default()
        };
        for _ in 0..input.count()? {
            let (name, value) = (input.text()?, input.text()?);
            if meta.get(&name).is_some() {
                return Err(DecodeError::Malformed);
            }
            meta.set(&name, &value, &any).map_err(|_| DecodeError::Malformed)?;
        }
        let mut formats = Formats::default();
        let mut tag = input.byte()?;
        if tag == 1 {
            formats.ws_message = Some(input.ws_message()?);
            tag = input.byte()?;
        }
        if tag == 2 {
            formats.http_stream = Some(match input.byte()? {
                SEND => HttpStream::Send { content: input.bytes()?, content_filters: input.filters()? },
                CLOSE => HttpStream::Close,
                REFRESH => HttpStream::Refresh,
                HINT => HttpStream::Hint,
                _ => return Err(DecodeError::Malformed),
            });
            tag = input.byte()?;
        }
        if tag == 3 {
            formats.http_response = Some(match input.byte()? {
                SEND => HttpResponse::Send(Box::new(input.response()?)),
                CLOSE => HttpResponse::Close,
                REFRESH => HttpResponse::Refresh,
                HINT => HttpResponse::Hint,
                _ => return Err(DecodeError::Malformed),
            });
            tag = input.byte()?;
        }
        if tag != 0 || formats == Formats::default() {
            return Err(DecodeError::Malformed);
        }
        if !input.0.is_empty() {
            return Err(DecodeError::Length);
        }
        Ok(Self { channel, id, prev_id, no_seq: flags & NO_SEQ != 0, size, meta, formats })
    }
}

fn encode_ws(message: &WsMessage, out: &mut Vec<u8>) {
    match message {
        WsMessage::Send { kind, content, content_filters } => {
            out.put_u8(SEND);
            out.put_u8(KINDS.iter().position(|known| known == kind).unwrap_or_default() as u8);
            put_bytes(out, content);
            put_filters(out, content_filters.as_deref());
        }
        WsMessage::Close { code, reason } => {
            out.put_u8(CLOSE);
            put_number(out, code.map_or(0, |code| u64::from(code) + 1));
            put_bytes(out, reason.as_bytes());
        }
        WsMessage::Refresh => out.put_u8(REFRESH),
        WsMessage::Hint => out.put_u8(HINT),
    }
}

fn encode_response(response: &Response, out: &mut Vec<u8>) {
    put_number(out, u64::from(response.code));
    put_bytes(out, response.reason.as_bytes());
    put_pairs(out, response.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let (patch, body) = match &response.body {
        Body::Whole(body) => (0, body),
        Body::Patch(patch) => (1, patch),
    };
    out.put_u8(patch);
    put_bytes(out, body);
    put_filters(out, response.content_filters.as_deref());
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_pairs<'a>(out: &mut Vec<u8>, pairs: impl ExactSizeIterator<Item = (&'a str, &'a str)>) {
    put_number(out, pairs.len() as u64);
    for (name, value) in pairs {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

/// None is 0, so a list has its length and one more.
fn put_filters(out: &mut Vec<u8>, filters: Option<&[String]>) {
    let Some(filters) = filters else { return out.put_u8(0) };
    put_number(out, filters.len() as u64 + 1);
    for filter in filters {
        put_bytes(out, filter.as_bytes());
    }
}

/// What is still to be read.
struct Input(Bytes);

impl Input {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(|_| DecodeError::Length)
    }

    /// A number in its shortest form.
    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Malformed);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return if byte == 0 && shift > 0 { Err(DecodeError::Malformed) } else { Ok(number) };
            }
        }
        Err(DecodeError::Malformed)
    }

    /// How many elements follow, each of at least one byte.
    fn count(&mut self) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.number()?).map_err(|_| DecodeError::Length)?;
        if count > self.0.len() { Err(DecodeError::Length) } else { Ok(count) }
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.count()?;
        Ok(self.0.split_to(len))
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| DecodeError::Malformed)
    }

    fn filters(&mut self) -> Result<Option<Vec<String>>, DecodeError> {
        let count = self.number()?;
        let Some(count) = count.checked_sub(1) else { return Ok(None) };
        if count > self.0.len() as u64 {
            return Err(DecodeError::Length);
        }
        (0..count).map(|_| self.text()).collect::<Result<_, _>>().map(Some)
    }

    fn ws_message(&mut self) -> Result<WsMessage, DecodeError> {
        Ok(match self.byte()? {
            SEND => {
                let kind = *KINDS.get(usize::from(self.byte()?)).ok_or(DecodeError::Malformed)?;
                let content = self.bytes()?;
                if !kind.allows(&content) {
                    return Err(DecodeError::Malformed);
                }
                WsMessage::Send { kind, content, content_filters: self.filters()? }
            }
            CLOSE => {
                let code = self.number()?.checked_sub(1).map(u16::try_from).transpose();
                WsMessage::Close { code: code.map_err(|_| DecodeError::Malformed)?, reason: self.text()? }
            }
            REFRESH => WsMessage::Refresh,
            HINT => WsMessage::Hint,
            _ => return Err(DecodeError::Malformed),
        })
    }

    fn response(&mut self) -> Result<Response, DecodeError> {
        let code = u16::try_from(self.number()?).map_err(|_| DecodeError::Malformed)?;
        let reason = self.text()?;
        let count = self.count()?;
        let headers = (0..count).map(|_| Ok((self.text()?, self.text()?))).collect::<Result<_, _>>()?;
        let body = match self.byte()? {
            0 => Body::Whole(self.bytes()?),
            1 => Body::Patch(self.bytes()?),
            _ => return Err(DecodeError::Malformed),
        };
        Ok(Response { code, reason, headers, body, content_filters: self.filters()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = String> {
        "\\PC{0,12}"
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..200).prop_map(Bytes::from)
    }

    fn filters() -> impl Strategy<Value = Option<Vec<String>>> {
        option::of(vec(text(), 0..3))
    }

    fn ws_message() -> impl Strategy<Value = WsMessage> {
        prop_oneof![
            (text(), filters()).prop_map(|(text, content_filters)| WsMessage::Send {
                kind: Kind::Text,
                content: text.into(),
                content_filters
            }),
            (bytes(), filters()).prop_map(|(content, content_filters)| WsMessage::Send {
                kind: Kind::Binary,
                content,
                content_filters
            }),
            (any::<Option<u16>>(), text()).prop_map(|(code, reason)| WsMessage::Close { code, reason }),
            Just(WsMessage::Refresh),
            Just(WsMessage::Hint),
        ]
    }

    fn http_stream() -> impl Strategy<Value = HttpStream> {
        prop_oneof![
            (bytes(), filters()).prop_map(|(content, content_filters)| HttpStream::Send { content, content_filters }),
            Just(HttpStream::Close),
            Just(HttpStream::Refresh),
            Just(HttpStream::Hint),
        ]
    }

    fn http_response() -> impl Strategy<Value = HttpResponse> {
        let body = prop_oneof![bytes().prop_map(Body::Whole), bytes().prop_map(Body::Patch)];
        let response = (any::<u16>(), text(), vec((text(), text()), 0..3), body, filters());
        prop_oneof![
            response.prop_map(|(code, reason, headers, body, content_filters)| {
                HttpResponse::Send(Box::new(Response { code, reason, headers, body, content_filters }))
            }),
            Just(HttpResponse::Close),
            Just(HttpResponse::Refresh),
            Just(HttpResponse::Hint),
        ]
    }

    fn formats() -> impl Strategy<Value = Formats> {
        (option::of(ws_message()), option::of(http_stream()), option::of(http_response()))
            .prop_filter("an item has a format", |(ws, stream, response)| {
                ws.is_some() || stream.is_some() || response.is_some()
            })
            .prop_map(|(ws_message, http_stream, http_response)| Formats { ws_message, http_stream, http_response })
    }

    fn meta() -> impl Strategy<Value = Meta> {
        vec(("\\PC{1,8}", text()), 0..4).prop_map(|entries| {
            let mut meta = Meta::default();
            for (name, value) in entries {
                meta.set(&name, &value, &Limits::default()).unwrap();
            }
            meta
        })
    }

    fn item() -> impl Strategy<Value = Item> {
        let head = (text(), option::of(text()), option::of(text()), any::<bool>(), any::<Option<u64>>());
        (head, meta(), formats()).prop_map(|((channel, id, prev_id, no_seq, size), meta, formats)| Item {
            channel,
            id,
            prev_id,
            no_seq,
            size,
            meta,
            formats,
        })
    }

    #[test]
    fn an_item_is_these_bytes() {
        // Stored items outlive a process, so the form must not change under the same version.
        let mut meta = Meta::default();
        meta.set("k", "v", &Limits::default()).unwrap();
        let send = WsMessage::Send { kind: Kind::Text, content: "hi".into(), content_filters: None };
        let item = Item {
            channel: "a".to_owned(),
            id: Some("m".to_owned()),
            prev_id: None,
            no_seq: true,
            size: Some(300),
            meta,
            formats: Formats { ws_message: Some(send), ..Formats::default() },
        };
        let mut out = Vec::new();
        item.encode(&mut out);
        assert_eq!(out, b"\x01\x0d\x01a\x01m\xac\x02\x01\x01k\x01v\x01\0\0\x02hi\0\0");
        assert_eq!(Item::decode(&out.into()), Ok(item));
    }

    #[test]
    fn what_was_never_written_is_refused() {
        for (bytes, error) in [
            (&b""[..], DecodeError::Length),
            (b"\x02", DecodeError::Version),
            (b"\x01\x10\x01a\0\x01\x02\0", DecodeError::Malformed),
            (b"\x01\0\x01a\0\0", DecodeError::Malformed), // no format
            (b"\x01\0\x01a\0\x02\x01\x01\x02\0", DecodeError::Malformed), // formats out of order
            (b"\x01\0\x01a\0\x01\x02\0x", DecodeError::Length), // bytes behind it
            (b"\x01\0\x81\0a\0\x01\x02\0", DecodeError::Malformed), // a length that is too long
            (b"\x01\0\x01\xff\0\x01\x02\0", DecodeError::Malformed), // a channel that is no UTF-8
            (b"\x01\0\x01a\0\x01\0\0\x01\xff\0\0", DecodeError::Malformed), // a text that is no UTF-8
            (b"\x01\0\x01a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", DecodeError::Length), // so many entries
            (b"\x01\0\x01a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", DecodeError::Malformed),
        ] {
            assert_eq!(Item::decode(&Bytes::from_static(bytes)), Err(error), "{bytes:?}");
        }
        assert!(Item::decode(&Bytes::from_static(b"\x01\0\x01a\0\x01\x02\0")).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_nothing_less(item in item()) {
            let mut out = Vec::new();
            item.encode(&mut out);
            let bytes = Bytes::from(out);
            prop_assert_eq!(Item::decode(&bytes), Ok(item));
            for len in 0..bytes.len() {
                prop_assert!(Item::decode(&bytes.slice(..len)).is_err());
            }
        }

        #[test]
        fn what_is_read_is_written_as_the_same_bytes(item in item(), at: prop::sample::Index, byte: u8) {
            let mut out = Vec::new();
            item.encode(&mut out);
            let at = at.index(out.len());
            out[at] = byte;
            let bytes = Bytes::from(out);
            if let Ok(read) = Item::decode(&bytes) {
                let mut again = Vec::new();
                read.encode(&mut again);
                prop_assert_eq!(&again[..], &bytes[..]);
            }
        }
    }
}
