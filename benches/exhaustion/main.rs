//! What exhaustion costs others: attacks on memory and CPU time against the gateway as it is released, with its default
//! policies, and against nginx, while legal clients do round trips at a fixed rate beside them.
//!
//! `make exhaustion` leaves its tables in docs/exhaustion.md. Attackers, legal clients and a backend for each are in this
//! process, on threads of their own; each proxy is a process of its own, anew for each attack. The threads of the
//! attackers and of their backend run at a lower priority, as if they were on other machines: what keeps legal clients
//! waiting is the proxy. Absolute figures of a shared machine mean little: compare the columns. A word behind `--` plays
//! the attacks whose name has it, and no others.

mod addresses;
mod attacks;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
#[path = "../load/compression.rs"]
mod compression;
mod legal;
#[allow(dead_code, reason = "the other benchmarks use the rest")]
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
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    sluicegate::tunnel::sys::raise_descriptor_limit()?;
    let mut attackers = tokio::runtime::Builder::new_multi_thread();
    attackers.enable_all().on_thread_start(lower_priority).build()?.block_on(work())
}

/// Lowers the priority of this thread.
fn lower_priority() {
    let lowered = std::fs::read_link("/proc/thread-self").and_then(|thread| {
        let thread = thread.file_name().unwrap_or_default().to_owned();
        Command::new("renice").args(["-n", "10", "-p"]).arg(thread).stdout(Stdio::null()).status()
    });
    if !lowered.is_ok_and(|status| status.success()) {
        eprintln!("renice does not work: the attackers keep legal clients waiting by themselves");
    }
}

async fn work() -> Result<()> {
    let wanted = std::env::args().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    report::print(&wanted).await?;
    if "addresses".contains(&wanted) {
        addresses::measure().await?;
    }
    Ok(())
}

/// A backend on a thread of its own. It ends with all its sessions when it
/// is dropped, so that nothing of one attack is left for the next.
struct Backend {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Backend {
    fn of_attackers() -> Result<Self> {
        Self::start(lower_priority)
    }

    fn of_legal_clients() -> Result<Self> {
        Self::start(|| {})
    }

    fn start(before: fn()) -> Result<Self> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            before();
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
