//! Configuration files: read, checked as a whole, and made into a [`Config`] that cannot hold an invalid value.

pub mod fault;
mod key_path;
pub mod model;
mod ranges;
mod raw;
mod raw_rule;
mod shape;
mod units;
mod unsupported;
mod variables;
mod yaml;

use std::net::SocketAddr;
use std::path::Path;

pub use fault::{ConfigFault, Warning};
pub use model::{Balance, Config, HeadLimits, Limits, Listener, PerIp, Rule, Shutdown, Upstream, WebSocketMode};

/// A sound configuration, and what is dangerous about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is legal and dangerous.
    pub warnings: Vec<Warning>,
}

/// Where [`simple`] puts the admin endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminBind {
    /// Nowhere.
    Off,
    /// At this address.
    Address(SocketAddr),
}

/// Reads a main file and the rule files that it names.
///
/// # Errors
/// Every fault of every file at once.
pub fn load(path: &Path) -> Result<Loaded, Vec<ConfigFault>> {
    Err(vec![ConfigFault {
        file: path.display().to_string(),
        line: 0,
        path: String::new(),
        found: "files are not read yet".to_owned(),
        allowed: String::new(),
        hint: None,
    }])
}

/// The configuration of `run --listen ADDR --to http://HOST:PORT`.
pub fn simple(listen: SocketAddr, to_host_port: &str, admin: AdminBind) -> Config {
    unimplemented!("{listen} {to_host_port} {admin:?}: in the next commits")
}

/// The JSON Schema of both kinds of file.
pub fn schema() -> serde_json::Value {
    unimplemented!("in the next commits")
}
