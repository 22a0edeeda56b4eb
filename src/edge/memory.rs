//! Looks at the memory of the process, where `limits.memory` is set, and says when it is over the limit.
//!
//! What is looked at is the resident set (`/proc/self/statm`): what a kernel out of memory counts of this process. It
//! has no kernel memory, such as the buffers of sockets, which a container's limit counts too.
//!
//! A thread of its own looks, so that busy workers cannot delay it, and often enough that what comes between two looks
//! is small. New sessions are bounded by the CPU time of their handshakes, some 100 in 20 ms a core: less than 10 MB
//! with all their queues full. A live session can add its queue, once: 64 KiB, and from the look that finds the limit
//! reached on 4 KiB.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use tokio::sync::watch;

use crate::events::Event;
use crate::policy::memory_limit::{Change, MemoryLimit};
use crate::tunnel::{pressure, sys};

/// How often. A look takes a few microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The resident set of this process.
#[derive(Debug)]
struct ResidentSet {
    statm: File,
    page_bytes: u64,
}

impl ResidentSet {
    fn open() -> io::Result<Self> {
        let this = Self { statm: File::open("/proc/self/statm")?, page_bytes: sys::page_bytes() };
        this.bytes().map(|_| this)
    }

    /// What it is now. proc_pid_statm(5): the second number, in pages.
    fn bytes(&self) -> io::Result<u64> {
        let mut text = [0; 128];
        let len = self.statm.read_at(&mut text, 0)?;
        let pages = text[..len].split(|byte| *byte == b' ').nth(1);
        let pages = pages.and_then(|pages| std::str::from_utf8(pages).ok()).and_then(|pages| pages.parse::<u64>().ok());
        pages.map(|pages| pages * self.page_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Looks at the memory from now on, until `stop` turns true or is gone.
///
/// # Errors
/// The resident set cannot be read: a limit would have no effect.
pub fn watch(limit_bytes: u64, stop: watch::Receiver<bool>) -> io::Result<()> {
    let resident = ResidentSet::open()?;
    let mut limit = MemoryLimit::new(limit_bytes);
    let look = move || {
        while !*stop.borrow() && stop.has_changed().is_ok() {
            // A look that fails changes nothing: the next one may not.
            if let Ok(bytes) = resident.bytes()
                && let Some(change) = limit.observe(bytes)
            {
                pressure::set_over(limit.is_over());
                tell(change, bytes, limit_bytes);
            }
            #[allow(clippy::disallowed_methods, reason = "a thread of its own: no worker stops")]
            std::thread::sleep(LOOK_EVERY);
        }
        pressure::set_over(false);
    };
    std::thread::Builder::new().name("memory".to_owned()).spawn(look).map(drop)
}

fn tell(change: Change, resident_bytes: u64, limit_bytes: u64) {
    let event = match change {
        Change::Reached => Event::warn("memory_reached"),
        Change::Left => Event::new("memory_left"),
    };
    event.field("resident_bytes", resident_bytes).field("limit_bytes", limit_bytes).emit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_grows_with_what_is_touched() {
        const BYTES: usize = 64 << 20;
        let resident = ResidentSet::open().unwrap();
        let before = resident.bytes().unwrap();
        assert!(before > 0 && before.is_multiple_of(4096), "{before}");
        let touched = vec![1u8; BYTES];
        let after = resident.bytes().unwrap();
        assert_eq!(touched.iter().map(|byte| u64::from(*byte)).sum::<u64>(), BYTES as u64);
        // Other tests of this process come and go meanwhile.
        assert!(after > before + BYTES as u64 / 2, "{before} {after}");
    }
}
