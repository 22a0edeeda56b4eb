//! JSON objects, taken apart field by field with the messages that GRIP's publishers know.
//!
//! A field that is `null` counts as absent. Of a key that stands twice the last value counts. Numbers are integers, or
//! written as such with a fraction of zero; a string is no number.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::Limits;
use super::meta::Meta;

/// Standard base64, with its padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is wrong with a JSON object, as half a sentence: `'ws-message' contains 'code' with wrong type`.
///
/// It may hold names of fields that the sender chose, so it is for the sender and not for a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub(super) Cow<'static, str>);

impl FormatError {
    pub(super) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }
}

/// A name that the sender chose, as a message shows it: its first 64 characters, none of them a control character.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(64).map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

/// An object that is taken apart: each field is taken out once.
#[derive(Debug)]
pub(super) struct Object {
    /// What the messages call it.
    name: &'static str,
    fields: Map<String, Value>,
}

impl Object {
    /// Takes a value that has to be an object.
    pub(super) fn new(name: &'static str, value: Value) -> Result<Self, FormatError> {
        match value {
            Value::Object(fields) => Ok(Self { name, fields }),
            _ => Err(FormatError::new(format!("{name} is not an object"))),
        }
    }

    /// The same object under another name.
    pub(super) fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    pub(super) fn wrong_type(&self, key: &str) -> FormatError {
        FormatError::new(format!("{} contains '{key}' with wrong type", self.name))
    }

    pub(super) fn invalid(&self, key: &str) -> FormatError {
        FormatError::new(format!("{} contains '{key}' with invalid value", self.name))
    }

    pub(super) fn unknown(&self, key: &str) -> FormatError {
        FormatError::new(format!("{} contains '{key}' with unknown value", self.name))
    }

    pub(super) fn missing(&self, key: &str) -> FormatError {
        FormatError::new(format!("{} does not contain '{key}'", self.name))
    }

    /// A message of its own about this object.
    pub(super) fn error(&self, rest: &str) -> FormatError {
        FormatError::new(format!("{} {rest}", self.name))
    }

    pub(super) fn value(&mut self, key: &str) -> Option<Value> {
        self.fields.swap_remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn string(&mut self, key: &str) -> Result<Option<String>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong_type(key)),
        }
    }

    /// A string of at most `max_bytes`.
    pub(super) fn bounded(&mut self, key: &str, max_bytes: usize) -> Result<Option<String>, FormatError> {
        let text = self.string(key)?;
        if text.as_ref().is_some_and(|text| text.len() > max_bytes) { Err(self.invalid(key)) } else { Ok(text) }
    }

    /// A string that has to be there, of 1 to `max_bytes`.
    pub(super) fn required(&mut self, key: &str, max_bytes: usize) -> Result<String, FormatError> {
        match self.bounded(key, max_bytes)? {
            Some(text) if text.is_empty() => Err(self.invalid(key)),
            Some(text) => Ok(text),
            None => Err(self.missing(key)),
        }
    }

    /// An integer from 0 to `max`.
    pub(super) fn integer(&mut self, key: &str, max: u64) -> Result<Option<u64>, FormatError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::Number(number) = value else { return Err(self.wrong_type(key)) };
        let whole = number.as_u64().or_else(|| {
            // `1e3` and `2.0` are integers of JSON too; up to 2^53 each is exact.
            let float = number.as_f64()?;
            (float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&float)).then_some(float as u64)
        });
        match whole {
            Some(whole) if whole <= max => Ok(Some(whole)),
            Some(_) => Err(self.invalid(key)),
            None if number.as_f64().is_some_and(|float| float.fract() != 0.0) => Err(self.wrong_type(key)),
            None => Err(self.invalid(key)),
        }
    }

    pub(super) fn boolean(&mut self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong_type(key)),
        }
    }

    pub(super) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.wrong_type(key)),
        }
    }

    /// An object within this one, that its own messages call `name`.
    pub(super) fn object(&mut self, key: &str, name: &'static str) -> Result<Option<Object>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Object { name, fields })),
            Some(_) => Err(self.wrong_type(key)),
        }
    }

    /// Bytes: of `binary` as base64 where that is there, of `text` as UTF-8 otherwise. The flag says that they are of
    /// `binary`.
    pub(super) fn content(&mut self, text: &str, binary: &str) -> Result<Option<(Bytes, bool)>, FormatError> {
        if let Some(encoded) = self.string(binary)? {
            let decoded = BASE64.decode(encoded).map_err(|_| self.invalid(binary))?;
            return Ok(Some((decoded.into(), true)));
        }
        Ok(self.string(text)?.map(|text| (text.into_bytes().into(), false)))
    }

    /// The `meta` of an item or a hold.
    pub(super) fn meta(&mut self, limits: &Limits) -> Result<Meta, FormatError> {
        let mut meta = Meta::default();
        let Some(object) = self.object("meta", "'meta'")? else { return Ok(meta) };
        for (name, value) in object.fields {
            let Value::String(value) = value else {
                return Err(FormatError::new(format!("'meta' contains '{}' with wrong type", shown(&name))));
            };
            meta.set(&name, &value, limits).map_err(|error| FormatError::new(format!("'meta': {error}")))?;
        }
        Ok(meta)
    }

    /// The `headers` of a response: an object, or a list of pairs.
    pub(super) fn headers(&mut self, limits: &Limits) -> Result<Vec<(String, String)>, FormatError> {
        let mut headers = Vec::new();
        match self.value("headers") {
            None => return Ok(headers),
            Some(Value::Object(fields)) => {
                for (name, value) in fields {
                    let Value::String(value) = value else {
                        return Err(FormatError::new(format!("headers contains '{}' with wrong type", shown(&name))));
                    };
                    headers.push((name, value));
                }
            }
            Some(Value::Array(list)) => {
                for element in list {
                    let Value::Array(pair) = element else {
                        return Err(FormatError::new("headers contains element with wrong type"));
                    };
                    let Ok([name, value]) = <[Value; 2]>::try_from(pair) else {
                        return Err(FormatError::new("headers contains list with wrong number of elements"));
                    };
                    let Value::String(name) = name else {
                        return Err(FormatError::new("header contains name element with wrong type"));
                    };
                    let Value::String(value) = value else {
                        return Err(FormatError::new("header contains value element with wrong type"));
                    };
                    headers.push((name, value));
                }
            }
            Some(_) => return Err(self.wrong_type("headers")),
        }
        if headers.len() > limits.headers {
            return Err(self.invalid("headers"));
        }
        let bad = headers.iter().find(|(name, value)| {
            http::HeaderName::from_bytes(name.as_bytes()).is_err() || http::HeaderValue::from_str(value).is_err()
        });
        match bad {
            // Its name may be anything, so it is not repeated.
            Some(_) => Err(FormatError::new("headers contains what is no header")),
            None => Ok(headers),
        }
    }

    /// A list of strings, of at most `most`, each of at most `max_bytes`.
    pub(super) fn strings(
        &mut self,
        key: &'static str,
        most: usize,
        max_bytes: usize,
    ) -> Result<Option<Vec<String>>, FormatError> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        if list.len() > most {
            return Err(self.invalid(key));
        }
        let mut strings = Vec::with_capacity(list.len());
        for value in list {
            match value {
                Value::String(text) if text.len() <= max_bytes => strings.push(text),
                Value::String(_) => return Err(self.invalid(key)),
                _ => {
                    let what = if key == "content-filters" { "element" } else { "value" };
                    return Err(FormatError::new(format!("{key} contains {what} with wrong type")));
                }
            }
        }
        Ok(Some(strings))
    }

    /// Every field that is left.
    pub(super) fn into_fields(self) -> Map<String, Value> {
        self.fields
    }
}
