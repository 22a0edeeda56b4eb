//! Metadata: names and values, of a connection or of an item, that filters read.

use super::Limits;

/// Names and values, few and in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta(Vec<(String, String)>);

/// Why an entry was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The name is empty or longer than [`Limits::meta_name_bytes`].
    #[error("name is empty or too long")]
    Name,
    /// The value is longer than [`Limits::meta_value_bytes`].
    #[error("value is too long")]
    Value,
    /// There are [`Limits::meta_entries`] already.
    #[error("too many entries")]
    Full,
}

impl Meta {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Sets a name to a value, in the place of what it had.
    ///
    /// # Errors
    /// [`MetaError`]; nothing has changed then.
    pub fn set(&mut self, name: &str, value: &str, limits: &Limits) -> Result<(), MetaError> {
        if name.is_empty() || name.len() > limits.meta_name_bytes {
            return Err(MetaError::Name);
        }
        if value.len() > limits.meta_value_bytes {
            return Err(MetaError::Value);
        }
        if let Some((_, found)) = self.0.iter_mut().find(|(found, _)| found == name) {
            value.clone_into(found);
        } else if self.0.len() >= limits.meta_entries {
            return Err(MetaError::Full);
        } else {
            self.0.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// Removes a name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(found, _)| found != name);
    }

    /// Its entries.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_set_replaced_removed_and_bounded() {
        let limits = Limits { meta_entries: 2, meta_name_bytes: 4, meta_value_bytes: 2, ..Limits::default() };
        let mut meta = Meta::default();
        assert_eq!(meta.set("user", "u1", &limits), Ok(()));
        assert_eq!(meta.set("user", "u2", &limits), Ok(()));
        assert_eq!(meta.set("a", "", &limits), Ok(()));
        assert_eq!(meta.set("b", "", &limits), Err(MetaError::Full));
        assert_eq!(meta.set("", "", &limits), Err(MetaError::Name));
        assert_eq!(meta.set("users", "", &limits), Err(MetaError::Name));
        assert_eq!(meta.set("a", "abc", &limits), Err(MetaError::Value));
        assert_eq!(meta.iter().collect::<Vec<_>>(), [("user", "u2"), ("a", "")]);
        meta.remove("user");
        assert_eq!((meta.get("user"), meta.get("a"), meta.is_empty()), (None, Some(""), false));
    }
}
