//! Header values of the form `first; name=value; name="value"`, as GRIP's headers have them.
//!
//! A value is bare, up to the next separator, or a quoted-string with `\` in front of any byte (RFC 9110 §5.6.4). The
//! first part may hold any byte but the separators: names of channels are no tokens.

use std::borrow::Cow;

/// The most parameters of one value; what has more is malformed.
const MAX_PARAMETERS: usize = 32;

/// One element of a header: what stands first, and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element<'a> {
    /// The first part, with quotes and escapes taken off where it is quoted.
    pub(super) first: Cow<'a, [u8]>,
    parameters: Vec<Parameter<'a>>,
}

/// A name, and a value where there is one.
pub(super) type Parameter<'a> = (&'a [u8], Option<Cow<'a, [u8]>>);

impl<'a> Element<'a> {
    /// Reads one element; `None` when it is malformed.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        let mut parts = split(text, b';');
        let first = unquote(parts.next()??)?;
        let mut parameters = Vec::new();
        for part in parts {
            let part = part?;
            let (name, value) = pair(part)?;
            if parameters.len() == MAX_PARAMETERS {
                return None;
            }
            parameters.push((name, value));
        }
        Some(Self { first, parameters })
    }

    /// The parameters, in their order.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&'a [u8], Option<&[u8]>)> {
        self.parameters.iter().map(|(name, value)| (*name, value.as_deref()))
    }

    /// The value of the first parameter of this name; `Some(None)` when it has none.
    pub(super) fn get(&self, name: &[u8]) -> Option<Option<&[u8]>> {
        self.parameters().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// The value of the first parameter of this name.
    pub(super) fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.get(name).flatten()
    }
}

/// Splits `name=value` or `name`; `None` when the name is empty or the value malformed.
pub(super) fn pair(part: &[u8]) -> Option<Parameter<'_>> {
    let (name, value) = match part.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, value) = part.split_at_checked(at)?;
            (name, Some(unquote(value.get(1..)?.trim_ascii())?))
        }
        None => (part, None),
    };
    let name = name.trim_ascii();
    (!name.is_empty() && !name.contains(&b'"')).then_some((name, value))
}

/// The parts of `text` between separators that stand outside of quotes, without the blanks around them. `None` for a
/// part with a quote that does not end, which is the last.
pub(super) fn split(text: &[u8], separator: u8) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut quoted = false;
        let mut escaped = false;
        for (at, &byte) in text.iter().enumerate() {
            if escaped {
                escaped = false;
            } else if quoted && byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                quoted = !quoted;
            } else if byte == separator && !quoted {
                let (part, behind) = text.split_at_checked(at)?;
                rest = behind.get(1..);
                return Some(Some(part.trim_ascii()));
            }
        }
        Some((!quoted).then(|| text.trim_ascii()))
    })
}

/// Takes quotes and escapes off; a bare value stays as it is. `None` when quotes stand within a value.
fn unquote(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let [b'"', rest @ ..] = value else {
        return (!value.contains(&b'"')).then_some(Cow::Borrowed(value));
    };
    let mut out = Vec::with_capacity(rest.len());
    let mut bytes = rest.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => out.push(*bytes.next()?),
            b'"' => return bytes.as_slice().is_empty().then_some(Cow::Owned(out)),
            byte => out.push(byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bare_and_quoted_values_are_read() {
        let element = Element::parse(br#"room:42 ; prev-id=a;filter="skip;self"; flag;x="a\"b\\c" "#).unwrap();
        assert_eq!(&*element.first, b"room:42");
        let parameters: Vec<_> = element.parameters().collect();
        assert_eq!(
            parameters,
            [
                (&b"prev-id"[..], Some(&b"a"[..])),
                (b"filter", Some(b"skip;self")),
                (b"flag", None),
                (b"x", Some(br#"a"b\c"#)),
            ]
        );
        assert_eq!(element.value(b"prev-id"), Some(&b"a"[..]));
        assert_eq!(element.get(b"flag"), Some(None));
        assert_eq!(element.get(b"none"), None);
        assert_eq!(Element::parse(br#""a;b"; c=d"#).unwrap().first.as_ref(), b"a;b");
    }

    #[test]
    fn malformed_elements_are_refused() {
        for text in ["a; ", "a; =b", "a; b=\"c", "a; b=\"c\"d", "a; b=c\"d", "a; \"b\"=c", "\"a", "a\"b", "a; b=\"\\"] {
            assert_eq!(Element::parse(text.as_bytes()), None, "{text}");
        }
        let many = format!("a{}", "; b=c".repeat(MAX_PARAMETERS + 1));
        assert_eq!(Element::parse(many.as_bytes()), None);
    }

    #[test]
    fn separators_within_quotes_do_not_separate() {
        let parts: Vec<_> = split(br#"a, "b,\"c", d"#, b',').collect();
        assert_eq!(parts, [Some(&b"a"[..]), Some(br#""b,\"c""#), Some(b"d")]);
        assert_eq!(split(b"a,\"b", b',').last(), Some(None));
    }

    proptest! {
        #[test]
        fn what_is_quoted_comes_back(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut text = b"first; value=\"".to_vec();
            for byte in &value {
                if matches!(byte, b'"' | b'\\') {
                    text.push(b'\\');
                }
                text.push(*byte);
            }
            text.push(b'"');
            let element = Element::parse(&text).unwrap();
            prop_assert_eq!(element.value(b"value"), Some(&value[..]));
        }
    }
}
