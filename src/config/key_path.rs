//! Where in a file: `rules[2].keepalive.timeout`.

use std::fmt;

use serde_json::Value;

/// One step into a mapping or a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A key of a mapping.
    Key(String),
    /// A place in a list, from 0.
    Index(usize),
}

/// The steps from the root of a file to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyPath(pub Vec<Step>);

impl KeyPath {
    /// The value below this one under `key`.
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    /// The value below this one at `index`.
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The value below this one that a policy's fault names: `allow[2]`, `headers.x-app`, or nothing for itself.
    pub fn join(&self, relative: &str) -> Self {
        let mut path = self.clone();
        for part in relative.split('.') {
            let (key, indexes) = part.split_once('[').map_or((part, ""), |(key, rest)| (key, rest));
            if !key.is_empty() {
                path = path.key(key);
            }
            for index in indexes.split('[').filter_map(|text| text.strip_suffix(']')?.parse().ok()) {
                path = path.index(index);
            }
        }
        path
    }

    /// The path without its last step; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.0.split_last().map(|(_, steps)| Self(steps.to_vec()))
    }

    /// The value at this path.
    pub fn value<'a>(&self, tree: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(tree, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        })
    }

    /// Takes the value at this path out of the tree, so that what is left can be read. A member of a list of mappings
    /// becomes an empty mapping, and any other list goes as a whole, so that no index changes.
    pub fn prune(&self, tree: &mut Value) {
        let Some((last, parents)) = self.0.split_last() else {
            *tree = Value::Object(serde_json::Map::new());
            return;
        };
        let parent = Self(parents.to_vec());
        let Some(container) = parent.value_mut(tree) else { return };
        match (last, container) {
            (Step::Key(key), Value::Object(map)) => {
                map.shift_remove(key);
            }
            (Step::Index(index), Value::Array(list)) if list.iter().any(Value::is_object) => {
                if let Some(item) = list.get_mut(*index) {
                    *item = Value::Object(serde_json::Map::new());
                }
            }
            (Step::Index(_), Value::Array(_)) => parent.prune(tree),
            _ => {}
        }
    }

    fn value_mut<'a>(&self, tree: &'a mut Value) -> Option<&'a mut Value> {
        self.0.iter().try_fold(tree, |value, step| match step {
            Step::Key(key) => value.get_mut(key),
            Step::Index(index) => value.get_mut(index),
        })
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) => {
                    write!(f, "{}{key}", if at == 0 { "" } else { "." })?;
                }
                Step::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

/// A value as a message shows it: short, on one line.
pub fn shown(value: &Value) -> String {
    const MAX_CHARS: usize = 80;
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) if text.chars().count() > MAX_CHARS => {
            format!("{:?} and more", text.chars().take(MAX_CHARS).collect::<String>())
        }
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_as_users_write_it() {
        let path = KeyPath::default().key("rules").index(2).join("origin.allow[1]");
        assert_eq!(path.to_string(), "rules[2].origin.allow[1]");
        assert_eq!(KeyPath::default().join("[3]").to_string(), "[3]");
        assert_eq!(path.join(""), path);
        assert_eq!(KeyPath::default().key("a").key("b.c d").to_string(), "a[\"b.c d\"]");
    }

    #[test]
    fn pruning_moves_no_index() {
        let mut tree = json!({"rules": [{"name": 1}, 5], "hosts": ["a", 2]});
        KeyPath::default().join("rules[1]").prune(&mut tree);
        KeyPath::default().join("rules[0].name").prune(&mut tree);
        KeyPath::default().join("hosts[1]").prune(&mut tree);
        KeyPath::default().join("none.such").prune(&mut tree);
        assert_eq!(tree, json!({"rules": [{}, {}]}));
    }
}
