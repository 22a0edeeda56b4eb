//! Files that a configuration names: secrets and bodies, read when the configuration is.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::yaml::Source;

/// What an address begins with that is the path of a Unix socket.
pub const UNIX: &str = "unix:";

/// The most bytes of a secret.
const MAX_SECRET_BYTES: usize = 4096;

/// Where a path of a file leads: relative to that file.
pub fn resolve(source: &Source, path: &str) -> PathBuf {
    Path::new(&source.name).parent().unwrap_or(Path::new("")).join(path)
}

/// The longest path of a Unix socket, in bytes: `sun_path` of unix(7), without its NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The path of a Unix socket in `unix:PATH`, absolute; `None` for text of another kind.
///
/// # Errors
/// What is allowed, where the path cannot be one.
pub fn unix_path(source: &Source, text: &str) -> Option<Result<PathBuf, &'static str>> {
    let path = text.strip_prefix(UNIX)?;
    if path.is_empty() || path.contains('\0') {
        return Some(Err("`unix:` and a path, such as \"unix:/run/sluicegate.sock\""));
    }
    let resolved = resolve(source, path);
    let resolved = std::path::absolute(&resolved).unwrap_or(resolved);
    let fits = resolved.as_os_str().len() <= MAX_SOCKET_PATH_BYTES;
    Some(if fits { Ok(resolved) } else { Err("a path of at most 107 bytes, which is what a Unix socket can have") })
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
