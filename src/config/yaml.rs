//! YAML text to a tree of values and the line of each: the only file that knows a YAML library.
//!
//! Two parsers read the text: one with marks finds lines and what we refuse (aliases and anchors, which can grow a file
//! without bound, tags, merge keys, duplicate keys, depth), and `serde_yaml` then makes the values.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, Span};
use serde_json::Value;

use super::fault::ConfigFault;
use super::key_path::KeyPath;

/// The largest file, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// The most values and keys of a file. Each costs memory for its path; 1,000 rules have about 20,000.
const MAX_VALUES: usize = 50_000;

/// The deepest nesting; a file without faults needs 6.
const MAX_DEPTH: usize = 32;

/// A file that was read.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file, as it was named.
    pub name: String,
    /// Its values. What has a fault is pruned from it, so that the rest can be checked too.
    pub tree: Value,
    lines: HashMap<KeyPath, usize>,
}

impl Source {
    /// The line of a key; of the nearest one around it when it is not written.
    pub fn line(&self, path: &KeyPath) -> usize {
        let mut place = Some(path.clone());
        while let Some(at) = place {
            if let Some(line) = self.lines.get(&at) {
                return *line;
            }
            place = at.parent();
        }
        0
    }

    /// Whether the file has this key, pruned or not.
    pub fn has(&self, path: &KeyPath) -> bool {
        self.lines.contains_key(path)
    }

    /// A fault of this file.
    pub fn fault(&self, path: &KeyPath, found: impl Into<String>, allowed: impl Into<String>) -> ConfigFault {
        ConfigFault {
            file: self.name.clone(),
            line: self.line(path),
            path: path.to_string(),
            found: found.into(),
            allowed: allowed.into(),
            hint: None,
        }
    }
}

/// Reads a file's text. The second value are faults beside which the tree can still be used: duplicate keys.
///
/// # Errors
/// Faults after which there is no tree: the syntax, the size, the depth, aliases, tags.
pub fn read(name: &str, text: &str) -> Result<(Source, Vec<ConfigFault>), Vec<ConfigFault>> {
    let at = |line, found: String, allowed: &str| ConfigFault {
        file: name.to_owned(),
        line,
        path: String::new(),
        found,
        allowed: allowed.to_owned(),
        hint: None,
    };
    if text.len() > MAX_FILE_BYTES {
        return Err(vec![at(0, format!("{} bytes", text.len()), "at most 1 MiB")]);
    }
    let mut scan = Scan::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        match next {
            Ok((event, span)) => scan.on_event(&event, span),
            Err(error) => {
                let found = format!("YAML syntax error: {}", error.info());
                return Err(vec![at(error.marker().line(), found, "")]);
            }
        }
        if !scan.refused.is_empty() {
            break;
        }
    }
    if !scan.refused.is_empty() {
        return Err(scan.refused.into_iter().map(|(line, found, allowed)| at(line, found, allowed)).collect());
    }
    let tree = serde_yaml::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        vec![at(line, format!("YAML syntax error: {error}"), "")]
    })?;
    let source = Source { name: name.to_owned(), tree, lines: scan.lines };
    let duplicates = scan.duplicates.iter().map(|(path, line)| {
        let found = format!("the key is written twice, first in line {}", source.line(path));
        ConfigFault { line: *line, ..source.fault(path, found, "each key once") }
    });
    let duplicates = duplicates.collect();
    Ok((source, duplicates))
}

#[derive(Default)]
struct Scan {
    lines: HashMap<KeyPath, usize>,
    open: Vec<Open>,
    documents: usize,
    values: usize,
    duplicates: Vec<(KeyPath, usize)>,
    refused: Vec<(usize, String, &'static str)>,
}

/// A mapping or list that has begun and not ended.
enum Open {
    Mapping {
        path: KeyPath,
        keys: HashSet<String>,
        /// The path of the key whose value comes next.
        value_of: Option<KeyPath>,
    },
    List {
        path: KeyPath,
        length: usize,
    },
}

impl Scan {
    fn on_event(&mut self, event: &Event<'_>, span: Span) {
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.refuse(line, "a second document", "one document in a file");
                }
            }
            Event::Alias(_) => self.refuse(line, "an alias", "values written out: files have no anchors and aliases"),
            Event::Scalar(text, _, anchor, tag) => {
                self.on_node(*anchor, tag.is_some(), line);
                self.on_scalar(text, line);
            }
            Event::SequenceStart(anchor, tag) => {
                self.on_node(*anchor, tag.is_some(), line);
                let path = self.on_container(line);
                self.open.push(Open::List { path, length: 0 });
            }
            Event::MappingStart(anchor, tag) => {
                self.on_node(*anchor, tag.is_some(), line);
                let path = self.on_container(line);
                self.open.push(Open::Mapping { path, keys: HashSet::new(), value_of: None });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.open.pop();
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }

    fn refuse(&mut self, line: usize, found: &str, allowed: &'static str) {
        self.refused.push((line, found.to_owned(), allowed));
    }

    fn on_node(&mut self, anchor: usize, tagged: bool, line: usize) {
        self.values += 1;
        if self.values > MAX_VALUES {
            self.refuse(line, "too many values", "at most 50000 values and keys in a file");
        }
        if anchor != 0 {
            self.refuse(line, "an anchor", "values written out: files have no anchors and aliases");
        }
        if tagged {
            self.refuse(line, "a tag", "plain values: files have no tags");
        }
    }

    fn on_scalar(&mut self, text: &str, line: usize) {
        let Some(Open::Mapping { path, keys, value_of: value_of @ None }) = self.open.last_mut() else {
            self.value_path(line);
            return;
        };
        let path = path.key(text);
        *value_of = Some(path.clone());
        if text == "<<" {
            self.refuse(line, "a merge key", "values written out, or `defaults` for what rules share");
        } else if keys.insert(text.to_owned()) {
            self.lines.insert(path, line);
        } else {
            self.duplicates.push((path, line));
        }
    }

    fn on_container(&mut self, line: usize) -> KeyPath {
        if matches!(self.open.last(), Some(Open::Mapping { value_of: None, .. })) {
            self.refuse(line, "a mapping or list as a key", "text as a key");
        }
        if self.open.len() >= MAX_DEPTH {
            self.refuse(line, "values nested too deep", "at most 32 levels");
        }
        self.value_path(line)
    }

    /// The path of the value that begins here. A list's members have a line of their own, a mapping's that of the key.
    fn value_path(&mut self, line: usize) -> KeyPath {
        let path = match self.open.last_mut() {
            None => KeyPath::default(),
            Some(Open::Mapping { path, value_of, .. }) => return value_of.take().unwrap_or_else(|| path.clone()),
            Some(Open::List { path, length }) => {
                *length += 1;
                path.index(*length - 1)
            }
        };
        self.lines.insert(path.clone(), line);
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(text: &str) -> ConfigFault {
        read("a.yaml", text).map(|_| ()).expect_err("a fault").remove(0)
    }

    #[test]
    fn every_key_and_member_has_its_line() {
        let text = "# top\nlisteners:\n  - name: a\n    head: { timeout: 1s,\n      max_bytes: 2KiB }\n  - name: b\n";
        let (source, faults) = read("a.yaml", text).expect("sound");
        assert!(faults.is_empty());
        for (path, line) in [
            ("listeners", 2),
            ("listeners[0]", 3),
            ("listeners[0].head.timeout", 4),
            ("listeners[0].head.max_bytes", 5),
            ("listeners[0].head.max_headers", 4),
            ("listeners[1].name", 6),
            ("listeners[9]", 2),
        ] {
            assert_eq!(source.line(&KeyPath::default().join(path)), line, "{path}");
        }
        assert_eq!(source.tree["listeners"][1], json!({"name": "b"}));
    }

    #[test]
    fn off_and_on_are_words() {
        let (source, _) = read("a.yaml", "a: off\nb: on\nc: no\nd: 010\ne: 1\n").expect("sound");
        assert_eq!(source.tree["a"], json!("off"));
        assert_eq!(source.tree["b"], json!("on"));
        assert_eq!(source.tree["c"], json!("no"));
        assert_eq!(source.tree["e"], json!(1));
    }

    #[test]
    fn duplicate_keys_are_found_with_both_lines() {
        let (_, faults) = read("a.yaml", "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n").expect("a tree");
        let found: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "a.yaml:4: b.c: the key is written twice, first in line 3; allowed: each key once",
                "a.yaml:5: a: the key is written twice, first in line 1; allowed: each key once",
            ]
        );
    }

    #[test]
    fn what_can_grow_or_hide_is_refused_with_its_line() {
        for (text, line, found) in [
            ("a: &x [1]\nb: *x\n", 1, "an anchor"),
            ("a: 1\nb: *x\n", 2, "YAML syntax error"),
            ("a: !!str 1\n", 1, "a tag"),
            ("a: 1\n<<: {b: 1}\n", 2, "a merge key"),
            ("a: 1\n---\nb: 1\n", 2, "a second document"),
            ("? [a]\n: 1\n", 1, "a mapping or list as a key"),
            ("a: 1\nb: [\n", 3, "YAML syntax error"),
            ("a: 1\nb:\n\t- 1\n", 3, "YAML syntax error"),
        ] {
            let fault = refused(text);
            assert!(fault.found.starts_with(found), "{text:?}: {fault}");
            assert_eq!(fault.line, line, "{text:?}: {fault}");
        }
        assert_eq!(refused(&format!("a: {}", "[".repeat(40))).found, "values nested too deep");
        assert_eq!(refused(&format!("a: [{}]", "1,".repeat(60_000))).found, "too many values");
        assert_eq!(refused(&" ".repeat(MAX_FILE_BYTES + 1)).allowed, "at most 1 MiB");
    }
}
