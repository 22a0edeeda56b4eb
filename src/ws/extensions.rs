//! The negotiation of permessage-deflate, the one extension that the gateway knows. RFC 7692 §5 and §7.1.
//!
//! Every other extension is left out of what goes upstream, since it would give the reserved bits and the payload a
//! meaning that nothing here can check. What is offered and answered is parsed whole and written anew, so that both
//! sides read the same thing.

use std::fmt;

use http::header::{HeaderMap, SEC_WEBSOCKET_EXTENSIONS};

use super::deflate::MIN_WINDOW_BITS;
use super::handshake::{is_token, list};

/// The name of the extension. RFC 7692 §7.
const NAME: &[u8] = b"permessage-deflate";

/// The most offers of permessage-deflate in one handshake; clients make one or two.
pub const MAX_OFFERS: usize = 8;

/// What is wrong with a `Sec-WebSocket-Extensions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtensionError {
    /// RFC 6455 §9.1: it does not keep its grammar.
    #[error("extension list is malformed")]
    Grammar,
    /// RFC 7692 §7.1: a parameter stands twice.
    #[error("parameter of permessage-deflate stands twice")]
    DuplicateParameter,
    /// RFC 7692 §7.1: a parameter has a value that it must not have, or none where it needs one.
    #[error("parameter of permessage-deflate has a bad value")]
    BadValue,
    /// More than [`MAX_OFFERS`] offers.
    #[error("more than 8 offers of permessage-deflate")]
    TooManyOffers,
    /// RFC 6455 §9.1: an answer names an extension or a parameter that was not offered, or one extension twice.
    #[error("extension was not offered")]
    NotOffered,
}

/// The parameters of permessage-deflate, as offered or as answered. RFC 7692 §7.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The server compresses each message by itself. RFC 7692 §7.1.1.1.
    pub server_no_context_takeover: bool,
    /// The client compresses each message by itself. RFC 7692 §7.1.1.2.
    pub client_no_context_takeover: bool,
    /// The server's LZ77 window is at most two to the power of this many bytes, 8 to 15. RFC 7692 §7.1.2.1.
    pub server_max_window_bits: Option<u8>,
    /// The same of the client's window. `Some(None)` stands only in offers: the client can be told. RFC 7692 §7.1.2.2.
    pub client_max_window_bits: Option<Option<u8>>,
}

/// Writes what a `Sec-WebSocket-Extensions` says.
impl fmt::Display for Parameters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("permessage-deflate")?;
        if self.server_no_context_takeover {
            formatter.write_str("; server_no_context_takeover")?;
        }
        if self.client_no_context_takeover {
            formatter.write_str("; client_no_context_takeover")?;
        }
        if let Some(bits) = self.server_max_window_bits {
            write!(formatter, "; server_max_window_bits={bits}")?;
        }
        match self.client_max_window_bits {
            Some(Some(bits)) => write!(formatter, "; client_max_window_bits={bits}"),
            Some(None) => formatter.write_str("; client_max_window_bits"),
            None => Ok(()),
        }
    }
}

impl Parameters {
    /// Whether `self`, an answer, accepts `offer`. RFC 7692 §7.1.
    fn accepts(&self, offer: &Self) -> bool {
        let takeover = self.server_no_context_takeover || !offer.server_no_context_takeover;
        let server_bits = match (offer.server_max_window_bits, self.server_max_window_bits) {
            (Some(offered), Some(answered)) => answered <= offered,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let client_bits = match (offer.client_max_window_bits, self.client_max_window_bits) {
            (Some(Some(offered)), Some(Some(answered))) => answered <= offered,
            (Some(None), Some(Some(_))) | (_, None) => true,
            _ => false,
        };
        takeover && server_bits && client_bits
    }
}

/// What one element of the list is.
enum Element {
    Deflate(Parameters),
    /// permessage-deflate with a parameter that RFC 7692 does not define, or another extension.
    Unknown,
}

/// Reads a client's offers of permessage-deflate, in its order, and leaves out what is unknown.
///
/// An offer with an unknown parameter is left out too: a server has to decline it. RFC 7692 §7.1.
///
/// One pass over the bytes, so its cost is linear.
///
/// # Errors
/// `Grammar`, `DuplicateParameter` and `BadValue` in any offer, `TooManyOffers`.
///
/// # RFC
/// RFC 6455 §9.1, RFC 7692 §5.1 and §7.1.
pub fn offers(headers: &HeaderMap) -> Result<Vec<Parameters>, ExtensionError> {
    let mut offers = Vec::new();
    for line in headers.get_all(SEC_WEBSOCKET_EXTENSIONS) {
        if !is_valid_list(line.as_bytes()) {
            return Err(ExtensionError::Grammar);
        }
    }
    for element in list(headers, &SEC_WEBSOCKET_EXTENSIONS) {
        if let Element::Deflate(offer) = parse_element(element)? {
            // A value is optional for this one in an offer only; the server's needs one always.
            offers.push(offer);
        }
        if offers.len() > MAX_OFFERS {
            return Err(ExtensionError::TooManyOffers);
        }
    }
    Ok(offers)
}

/// Checks a server's answer against what it was offered. `None`: it has declined.
///
/// # Errors
/// `NotOffered` when it names another extension, permessage-deflate twice, a parameter that is unknown, or parameters
/// that accept none of the offers; `Grammar`, `DuplicateParameter`, `BadValue`.
///
/// # RFC
/// RFC 6455 §9.1, RFC 7692 §5.1, §7.1.1 and §7.1.2.
pub fn answer(offers: &[Parameters], headers: &HeaderMap) -> Result<Option<Parameters>, ExtensionError> {
    let mut answered = None;
    for line in headers.get_all(SEC_WEBSOCKET_EXTENSIONS) {
        if !is_valid_list(line.as_bytes()) {
            return Err(ExtensionError::Grammar);
        }
    }
    for element in list(headers, &SEC_WEBSOCKET_EXTENSIONS) {
        let Element::Deflate(parameters) = parse_element(element)? else { return Err(ExtensionError::NotOffered) };
        if parameters.client_max_window_bits == Some(None) {
            return Err(ExtensionError::BadValue);
        }
        let offered = offers.iter().any(|offer| parameters.accepts(offer));
        if answered.replace(parameters).is_some() || !offered {
            return Err(ExtensionError::NotOffered);
        }
    }
    Ok(answered)
}

/// Chooses an offer for the gateway to accept in the server's role: it compresses each message by itself, with a window
/// of at most `window_bits`, and asks the client to compress each message by itself. `None` when no offer allows it.
///
/// # RFC
/// RFC 7692 §5.1 and §7.1.
pub fn accept(offers: &[Parameters], window_bits: u8) -> Option<Parameters> {
    let possible = |bits: u8| bits >= MIN_WINDOW_BITS;
    let offer = offers.iter().find(|offer| offer.server_max_window_bits.is_none_or(possible))?;
    Some(Parameters {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        server_max_window_bits: offer.server_max_window_bits.map(|bits| bits.min(window_bits)),
        client_max_window_bits: None,
    })
}

/// Writes offers as one `Sec-WebSocket-Extensions`.
pub fn write_offers(offers: &[Parameters]) -> String {
    offers.iter().map(Parameters::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether `Sec-WebSocket-Extensions` keeps its grammar.
///
/// One pass over the bytes, so its cost is linear.
///
/// # RFC
/// RFC 6455 §9.1: `1#( token *( ";" token [ "=" ( token | quoted-string that is a token ) ] ) )`.
pub fn is_valid_list(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').all(|element| {
        let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        // RFC 9110 §5.6.1.2: a recipient ignores empty elements, but they carry no parameters.
        if name.is_empty() {
            return parts.next().is_none();
        }
        is_token(name) && parts.all(|parameter| split_parameter(parameter).is_some())
    })
}

/// The name and the value of a parameter; `None` when it breaks the grammar.
fn split_parameter(parameter: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let mut halves = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let name = halves.next().unwrap_or_default();
    let value = halves.next().map(|value| match value {
        [b'"', inner @ .., b'"'] => inner,
        bare => bare,
    });
    (is_token(name) && value.is_none_or(is_token)).then_some((name, value))
}

fn parse_element(element: &[u8]) -> Result<Element, ExtensionError> {
    let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    if parts.next() != Some(NAME) {
        return Ok(Element::Unknown);
    }
    let mut parameters = Parameters::default();
    let mut unknown = false;
    for part in parts {
        let (name, value) = split_parameter(part).ok_or(ExtensionError::Grammar)?;
        let twice = match (name, value) {
            (b"server_no_context_takeover", None) => {
                std::mem::replace(&mut parameters.server_no_context_takeover, true)
            }
            (b"client_no_context_takeover", None) => {
                std::mem::replace(&mut parameters.client_no_context_takeover, true)
            }
            (b"server_max_window_bits", Some(value)) => {
                parameters.server_max_window_bits.replace(window_bits(value)?).is_some()
            }
            (b"client_max_window_bits", value) => {
                let bits = value.map(window_bits).transpose()?;
                parameters.client_max_window_bits.replace(bits).is_some()
            }
            (b"server_no_context_takeover" | b"client_no_context_takeover" | b"server_max_window_bits", _) => {
                return Err(ExtensionError::BadValue);
            }
            _ => {
                unknown = true;
                false
            }
        };
        if twice {
            return Err(ExtensionError::DuplicateParameter);
        }
    }
    Ok(if unknown { Element::Unknown } else { Element::Deflate(parameters) })
}

/// 8 to 15, decimal, without leading zeros. RFC 7692 §7.1.2.1.
fn window_bits(value: &[u8]) -> Result<u8, ExtensionError> {
    match value {
        [digit @ (b'8' | b'9')] => Ok(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Ok(10 + (digit - b'0')),
        _ => Err(ExtensionError::BadValue),
    }
}

#[cfg(test)]
mod tests {
    use super::ExtensionError::{BadValue, DuplicateParameter, Grammar, NotOffered, TooManyOffers};
    use super::*;
    use http::HeaderValue;

    fn headers(lines: &[&str]) -> HeaderMap {
        let name = SEC_WEBSOCKET_EXTENSIONS;
        lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect()
    }

    fn offered(line: &str) -> Result<String, ExtensionError> {
        offers(&headers(&[line])).map(|offers| write_offers(&offers))
    }

    fn answered(offer: &str, line: &str) -> Result<Option<String>, ExtensionError> {
        let offers = offers(&headers(&[offer])).unwrap();
        answer(&offers, &headers(&[line])).map(|answer| answer.map(|answer| answer.to_string()))
    }

    #[test]
    fn offers_come_out_as_they_went_in_and_others_are_left_out() {
        for line in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=8; client_max_window_bits=15",
            "permessage-deflate; client_max_window_bits, permessage-deflate",
            "",
        ] {
            assert_eq!(offered(line).as_deref(), Ok(line));
        }
        let mixed = "x-webkit-deflate-frame, permessage-deflate ;client_max_window_bits=\"10\" , , bbf; a=1";
        assert_eq!(offered(mixed).as_deref(), Ok("permessage-deflate; client_max_window_bits=10"));
        assert_eq!(offered("permessage-deflate; new=1, permessage-deflate").as_deref(), Ok("permessage-deflate"));
        assert_eq!(offered("Permessage-Deflate").as_deref(), Ok(""));
        let two = headers(&["permessage-deflate; client_max_window_bits", "permessage-deflate"]);
        assert_eq!(offers(&two).unwrap().len(), 2);
    }

    #[test]
    fn a_malformed_offer_is_refused() {
        for bits in ["7", "16", "08", "015", "-8", "8x", "x", "1", "10.0", "100"] {
            assert_eq!(offered(&format!("permessage-deflate; server_max_window_bits={bits}")), Err(BadValue), "{bits}");
            assert_eq!(offered(&format!("permessage-deflate; client_max_window_bits={bits}")), Err(BadValue), "{bits}");
        }
        assert_eq!(offered("permessage-deflate; server_max_window_bits"), Err(BadValue));
        assert_eq!(offered("permessage-deflate; server_no_context_takeover=1"), Err(BadValue));
        assert_eq!(offered("permessage-deflate; client_no_context_takeover=true"), Err(BadValue));
        for twice in [
            "server_no_context_takeover",
            "client_no_context_takeover",
            "server_max_window_bits=9",
            "client_max_window_bits",
        ] {
            assert_eq!(offered(&format!("permessage-deflate; {twice}; {twice}")), Err(DuplicateParameter));
        }
        assert_eq!(offered("permessage-deflate; client_max_window_bits=\"\""), Err(Grammar));
        assert_eq!(offered(&["permessage-deflate"; MAX_OFFERS + 1].join(",")), Err(TooManyOffers));
        assert!(offered(&["permessage-deflate"; MAX_OFFERS].join(",")).is_ok());
    }

    #[test]
    fn an_answer_keeps_to_an_offer() {
        let plain = "permessage-deflate";
        let cases = [
            (plain, "", Ok(None)),
            (plain, plain, Ok(Some(plain))),
            (
                plain,
                "permessage-deflate; server_no_context_takeover",
                Ok(Some("permessage-deflate; server_no_context_takeover")),
            ),
            (
                plain,
                "permessage-deflate; server_max_window_bits=9",
                Ok(Some("permessage-deflate; server_max_window_bits=9")),
            ),
            (plain, "permessage-deflate; client_max_window_bits=9", Err(NotOffered)),
            (plain, "permessage-deflate; client_max_window_bits", Err(BadValue)),
            (plain, "permessage-deflate; other", Err(NotOffered)),
            (plain, "permessage-deflate, permessage-deflate", Err(NotOffered)),
            (plain, "x-webkit-deflate-frame", Err(NotOffered)),
            (plain, "permessage-deflate; server_max_window_bits=7", Err(BadValue)),
            (plain, "permessage-deflate; =", Err(Grammar)),
            ("", plain, Err(NotOffered)),
            ("foo", "foo", Err(NotOffered)),
            (
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; client_max_window_bits=9",
                Ok(Some("permessage-deflate; client_max_window_bits=9")),
            ),
            (
                "permessage-deflate; client_max_window_bits=9",
                "permessage-deflate; client_max_window_bits=10",
                Err(NotOffered),
            ),
            ("permessage-deflate; server_max_window_bits=10", plain, Err(NotOffered)),
            (
                "permessage-deflate; server_max_window_bits=10",
                "permessage-deflate; server_max_window_bits=11",
                Err(NotOffered),
            ),
            ("permessage-deflate; server_no_context_takeover", plain, Err(NotOffered)),
            ("permessage-deflate; server_no_context_takeover, permessage-deflate", plain, Ok(Some(plain))),
        ];
        for (offer, line, expected) in cases {
            assert_eq!(answered(offer, line), expected.map(|line| line.map(str::to_owned)), "{offer} / {line}");
        }
    }

    #[test]
    fn accepts_the_first_offer_whose_window_is_possible() {
        let chosen = |line: &str| accept(&offers(&headers(&[line])).unwrap(), 12).map(|answer| answer.to_string());
        let both = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(chosen("permessage-deflate; client_max_window_bits").as_deref(), Some(both));
        for (offered, bits) in [(9, 9), (11, 11), (12, 12), (15, 12)] {
            let offer = format!("permessage-deflate; server_max_window_bits={offered}");
            assert_eq!(chosen(&offer), Some(format!("{both}; server_max_window_bits={bits}")));
        }
        assert_eq!(chosen("permessage-deflate; server_max_window_bits=8"), None);
        let fallback = "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=15";
        assert_eq!(chosen(fallback), Some(format!("{both}; server_max_window_bits=12")));
        assert_eq!(chosen("foo"), None);
    }

    #[test]
    fn checks_the_grammar() {
        for good in ["permessage-deflate", "a; b=1; c=\"x\", d", "permessage-deflate; client_max_window_bits", ""] {
            assert!(is_valid_list(good.as_bytes()), "{good}");
        }
        for bad in ["a; =1", "a b", "a; b=\"", "a; b=\"x y\"", ";x", "a;", "a; b=", "\u{7f}"] {
            assert!(!is_valid_list(bad.as_bytes()), "{bad}");
        }
        assert!(!is_valid_list(&[b' ', b'"'].repeat(32 << 10)));
    }
}
