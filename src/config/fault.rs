//! What is wrong with a file, and what is legal in it and dangerous: one readable line each.

use std::fmt;

/// A fault of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// The key path, such as `rules[2].keepalive.timeout`; empty for the file as a whole.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is allowed; empty when `found` says it all.
    pub allowed: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigFault {
    /// `FILE:LINE: PATH: found FOUND; allowed: ALLOWED; hint: HINT`, without the parts that are empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line, &self.path)?;
        f.write_str(&self.found)?;
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigFault {}

/// Something that is legal and dangerous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// The key path.
    pub path: String,
    /// What can go wrong, and what to do about it.
    pub message: String,
}

impl fmt::Display for Warning {
    /// `FILE:LINE: PATH: MESSAGE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.line, &self.path)?;
        f.write_str(&self.message)
    }
}

fn write_place(f: &mut fmt::Formatter<'_>, file: &str, line: usize, path: &str) -> fmt::Result {
    f.write_str(file)?;
    if line > 0 {
        write!(f, ":{line}")?;
    }
    f.write_str(": ")?;
    if path.is_empty() { Ok(()) } else { write!(f, "{path}: ") }
}
