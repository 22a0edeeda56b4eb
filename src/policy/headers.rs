//! Headers that a rule sets and removes, in requests and in responses.
//!
//! What frames a message or belongs to one hop is ours alone: a rule that could change it could make two programs read
//! one message in two ways. RFC 9110 §7.6.1, RFC 9112 §6.

use http::{HeaderName, HeaderValue};

use super::Fault;
use super::route::parse_authority;

/// Headers of one hop, and what says where a message ends.
const OURS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Which messages the headers are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// What goes to the backend.
    Requests,
    /// What goes to the client.
    Responses,
}

/// Headers to remove, and then to set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Each takes the place of all headers of its name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Each goes, however often it is there.
    pub remove: Vec<HeaderName>,
}

impl HeaderEdits {
    /// Reads names and values. A name that comes twice in other letters counts as the last says.
    ///
    /// # Errors
    /// What is no header, and what a rule must not touch: `set.upgrade`, `remove[0]`. Host can be set, not removed.
    pub fn new<'a>(
        of: Of,
        set: impl IntoIterator<Item = (&'a str, &'a str)>,
        remove: &[String],
    ) -> Result<Self, Vec<Fault>> {
        let mut edits = Self::default();
        let mut faults = Vec::new();
        for (name, value) in set {
            let key = format!("set.{name}");
            let header = header_name(&key, name, of).map_err(|fault| faults.push(fault)).ok();
            match header_value(value) {
                Some(_) if header.as_ref().is_some_and(|name| name == "host") && parse_authority(value).is_err() => {
                    faults.push(Fault::new(key, format!("{value:?}"), "a host, and a port where it needs one"));
                }
                Some(value) => edits.push(header, value),
                None => faults.push(Fault::new(key, format!("{value:?}"), "visible ASCII, spaces and tabs within")),
            }
        }
        for (index, name) in remove.iter().enumerate() {
            let key = format!("remove[{index}]");
            match header_name(&key, name, of) {
                Ok(name) if name == "host" => {
                    faults.push(Fault::new(key, "\"host\"", "a header that a request can be without; set it instead"));
                }
                Ok(name) => edits.remove.push(name),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() { Ok(edits) } else { Err(faults) }
    }

    /// Whether nothing is set and nothing removed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    fn push(&mut self, name: Option<HeaderName>, value: HeaderValue) {
        let Some(name) = name else { return };
        self.set.retain(|(seen, _)| *seen != name);
        self.set.push((name, value));
    }
}

fn header_name(key: &str, text: &str, of: Of) -> Result<HeaderName, Fault> {
    let fault = |allowed: &str| Fault::new(key, format!("{text:?}"), allowed);
    let name = HeaderName::try_from(text).map_err(|_| fault("the name of a header, such as \"x-tenant\""))?;
    let is_ours = OURS.contains(&name.as_str());
    if is_ours || name.as_str().starts_with("sec-websocket-") || (name == "host" && of == Of::Responses) {
        return Err(fault("any header but those of one hop, of the framing and of the WebSocket handshake"));
    }
    Ok(name)
}

fn header_value(text: &str) -> Option<HeaderValue> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t');
    let is_trimmed = text.trim_matches([' ', '\t']).len() == text.len();
    (is_plain && is_trimmed).then(|| HeaderValue::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(of: Of, set: &[(&str, &str)], remove: &[&str]) -> Vec<String> {
        let remove: Vec<String> = remove.iter().map(|name| (*name).to_owned()).collect();
        let edits = HeaderEdits::new(of, set.iter().copied(), &remove);
        edits.err().unwrap_or_default().into_iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn names_and_values_are_read_once_each() {
        let set = [("X-Tenant", "acme"), ("x-tenant", "other"), ("x-empty", "")];
        let edits = HeaderEdits::new(Of::Requests, set, &["X-Debug".to_owned()]).unwrap();
        let set: Vec<_> = edits.set.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(set, [("x-tenant", "other"), ("x-empty", "")]);
        assert_eq!(edits.remove, ["x-debug"]);
        assert!(!edits.is_empty() && HeaderEdits::default().is_empty());
    }

    #[test]
    fn framing_hops_and_handshakes_are_out_of_reach() {
        for name in ["connection", "Upgrade", "TRANSFER-ENCODING", "content-length", "te", "sec-websocket-key"] {
            for of in [Of::Requests, Of::Responses] {
                assert_eq!(keys(of, &[(name, "a")], &[name]), [format!("set.{name}"), "remove[0]".to_owned()]);
            }
        }
        assert!(
            keys(Of::Requests, &[("host", "a.example:80"), ("origin", "https://a.example")], &["cookie"]).is_empty()
        );
        assert_eq!(keys(Of::Requests, &[("host", "a b")], &["host"]), ["set.host", "remove[0]"]);
        assert_eq!(keys(Of::Responses, &[("host", "a")], &[]), ["set.host"]);
    }

    #[test]
    fn what_is_no_header_is_named() {
        assert_eq!(keys(Of::Requests, &[("a b", "x")], &["a:b"]), ["set.a b", "remove[0]"]);
        for value in ["a\r\nb", "a\0", "é", " a", "a\t"] {
            assert_eq!(keys(Of::Responses, &[("x-a", value)], &[]), ["set.x-a"], "{value:?}");
        }
    }
}
