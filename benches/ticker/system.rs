//! What is measured: the example's own configuration and feed, on addresses of this run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Result;
use super::proxy::{Proxy, free_address, own_program};

pub struct System {
    pub gateway: Proxy,
    pub feed: Proxy,
    pub admin: SocketAddr,
    /// Where the feed leaves its last prices when it ends.
    pub last: PathBuf,
    /// Outlives the feed.
    pub files: tempfile::TempDir,
}

impl System {
    pub fn start() -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ticker");
        let [public, admin, backend, publish] = addresses()?;
        let mut configuration = std::fs::read_to_string(folder.join("ticker.yaml"))?;
        let places = [
            ("127.0.0.1:8080", public),
            ("127.0.0.1:9901", admin),
            ("127.0.0.1:3000", backend),
            ("127.0.0.1:5561", publish),
        ];
        for (place, address) in places {
            if !configuration.contains(place) {
                return Err(format!("ticker.yaml has no {place}").into());
            }
            configuration = configuration.replace(place, &address.to_string());
        }
        configuration += "shutdown: { drain: 1s, spread: 0s }\n";
        let files = tempfile::tempdir()?;
        let file = files.path().join("ticker.yaml");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(own_program());
        command.args(["run", "-c"]).arg(&file);
        let gateway = Proxy::other("sluicegate", &mut command, 0, public, files)?;

        let files = tempfile::tempdir()?;
        let last = files.path().join("last.json");
        let mut command = Command::new("node");
        command
            .arg(folder.join("feed.mjs"))
            .env("PORT", backend.port().to_string())
            .env("PUBLISH", format!("http://{publish}/publish"))
            .env("LAST", &last);
        let feed = Proxy::other("feed", &mut command, 0, backend, tempfile::tempdir()?)?;
        Ok(Self { gateway, feed, admin, last, files })
    }
}

fn addresses() -> Result<[SocketAddr; 4]> {
    Ok([free_address()?, free_address()?, free_address()?, free_address()?])
}
