//! What it takes to open sessions on a real gateway, by the parts of `make fanout`.

use std::time::Duration;

use super::Result;
use super::crowd::Crowd;
use super::system::{Kind, Mode, System};

/// How many are opened.
const SESSIONS: usize = 5000;

/// After so long each backend has subscribed its client.
const QUIET: Duration = Duration::from_millis(500);

/// CPU µs of the gateway for each.
pub fn open() -> Result<f64> {
    let backend = super::backend::start()?;
    // Ends behind the gateway, which would tell the backend of each that goes.
    let crowd;
    let system = System::start(Kind::Memory, Mode::WebSocket, backend)?;
    // One first, so that what a process does once is not counted.
    drop(Crowd::open(system.proxy.address, 1)?);
    let before = system.proxy.cpu()?;
    crowd = Crowd::open(system.proxy.address, SESSIONS)?;
    rest();
    let micros = (system.proxy.cpu()? - before) * 1e6 / crowd.count as f64;
    Ok(micros)
}

#[allow(clippy::disallowed_methods, reason = "no runtime, and nothing to wait for but time")]
fn rest() {
    std::thread::sleep(QUIET);
}
