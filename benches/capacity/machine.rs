//! What the kernel says of this process.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Result;

/// CPU time of this thread so far.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// CPU time of a part of a run, in microseconds.
pub fn micros_since(start: Duration) -> f64 {
    thread_cpu().saturating_sub(start).as_secs_f64() * 1e6
}

/// Resident memory of this process. proc_pid_status(5).
pub fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("a process has resident memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// How many processes have been waiting for a core, over the last minute. proc_loadavg(5).
pub fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
