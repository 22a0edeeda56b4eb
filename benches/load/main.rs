//! What the gateway costs, beside nginx and beside no proxy at all, in one run on one machine.
//!
//! `cargo bench --bench load` prints Markdown tables: memory of sessions, and CPU time of the proxy, with and without
//! compression. Client and backend are in this process; each proxy is a process of its own, whose CPU time and memory the
//! kernel tells. Absolute figures of a shared machine mean little: compare the rows. A word behind `--` measures the tables
//! whose title has it, and no others.

mod compression;
mod fair;
mod front;
mod http2;
mod plain;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod proxy;
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod wire;
mod worst;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let backend = wire::start_backend().await?;
    let wanted = std::env::args().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    if "plain".contains(&wanted) {
        plain::measure(backend).await?;
    }
    if "compression".contains(&wanted) {
        compression::measure(backend).await?;
    }
    if "fair".contains(&wanted) {
        fair::measure(backend).await?;
    }
    if "front".contains(&wanted) {
        front::measure(backend).await?;
    }
    if "worst".contains(&wanted) {
        worst::measure(backend).await?;
    }
    Ok(())
}
