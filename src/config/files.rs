//! Files that a configuration names: secrets and bodies, read when the configuration is.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::yaml::Source;

/// The most bytes of a secret.
const MAX_SECRET_BYTES: usize = 4096;

/// Where a path of a file leads: relative to that file.
pub fn resolve(source: &Source, path: &str) -> PathBuf {
    Path::new(&source.name).parent().unwrap_or(Path::new("")).join(path)
}

/// Reads a file that `source` names.
///
/// # Errors
/// Why not, for the parenthesis of a message.
pub fn read(source: &Source, path: &str, max_bytes: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let file = File::open(resolve(source, path));
    let read = file.and_then(|file| file.take(limit).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() <= max_bytes => Ok(bytes),
        Ok(_) => Err("it is larger".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a secret, without the newline that editors put at its end.
///
/// # Errors
/// Why not, for the parenthesis of a message; never what is in the file.
pub fn read_secret(source: &Source, path: &str) -> Result<Vec<u8>, String> {
    let mut secret = read(source, path, MAX_SECRET_BYTES)?;
    if secret.last() == Some(&b'\n') {
        secret.pop();
        secret.pop_if(|byte| *byte == b'\r');
    }
    Ok(secret)
}
