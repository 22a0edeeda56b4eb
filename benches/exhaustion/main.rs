//! What exhaustion costs others: attacks on memory and CPU time against the gateway as it is released, with its default
//! policies, and against nginx, while legal clients do round trips at a fixed rate beside them.
//!
//! `make exhaustion` leaves its tables in docs/exhaustion.md. Attackers, legal clients and the backend are in this process,
//! the legal clients and the backend each on a thread of their own; each proxy is a process of its own, anew for each
//! attack. Absolute figures of a shared machine mean little: compare the columns. A word behind `--` plays the attacks
//! whose name has it, and no others.

mod addresses;
mod attacks;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../load/compression.rs"]
mod compression;
mod legal;
mod metrics;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../load/proxy.rs"]
mod proxy;
mod report;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../load/wire.rs"]
mod wire;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../load/worst.rs"]
mod worst;

use std::net::SocketAddr;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    sluicegate::tunnel::sys::raise_descriptor_limit()?;
    let wanted = std::env::args().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    report::print(&wanted).await?;
    if "addresses".contains(&wanted) {
        addresses::measure().await?;
    }
    Ok(())
}

/// A backend on a thread of its own, so that attackers do not keep it from answering. It ends with all its sessions when it
/// is dropped, so that nothing of one attack is left for the next.
struct Backend {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Backend {
    fn start() -> Result<Self> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                send.send(wire::start_backend().await?)?;
                // An error is the other half being gone.
                let _ = stopped.await;
                Ok(())
            })
        });
        Ok(Self { address: receive.recv()?, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it has to say was said to its clients.
            let _ = thread.join();
        }
    }
}
