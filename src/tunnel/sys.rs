//! What only the kernel knows: the state of a TCP connection, and how many descriptors the process may open; and what the
//! allocator knows.
//!
//! The one file that may be unsafe: each call hands over a buffer or value of this function's own and its true size.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::policy::keepalive::TcpSnapshot;

/// Where the kernel writes its fields in `struct tcp_info`, in bytes: linux/tcp.h.
///
/// The structure only ever grows at its end, so the places are the same on every kernel that has the fields.
const TOTAL_RETRANS_AT: usize = 100;
const BYTES_ACKED_AT: usize = 120;
const NOTSENT_BYTES_AT: usize = 144;
const SND_WND_AT: usize = 228;
const TCP_INFO_BYTES: usize = 232;

/// The acknowledged and queued bytes and the peer's window of a TCP connection; `None` for any other descriptor.
///
/// On a kernel before 5.4, which does not tell the window, the window is 0.
pub fn tcp_snapshot(socket: &impl AsRawFd) -> Option<TcpSnapshot> {
    let fd = socket.as_raw_fd();
    let info = tcp_info(fd).ok()?;
    let (acked, window) = (info[BYTES_ACKED_AT..].first_chunk()?, info[SND_WND_AT..].first_chunk()?);
    Some(TcpSnapshot {
        acked_bytes: u64::from_ne_bytes(*acked),
        queued_bytes: queued_bytes(fd).ok()?,
        window_bytes: u32::from_ne_bytes(*window),
    })
}

/// How sending goes on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendState {
    /// Bytes that the kernel has taken and not sent yet.
    pub unsent_bytes: u64,
    /// Segments that were sent again since the connection began.
    pub retransmits: u32,
}

/// How sending goes on a TCP connection; `None` for any other descriptor.
pub fn send_state(fd: RawFd) -> Option<SendState> {
    let info = tcp_info(fd).ok()?;
    let (unsent, retransmits) = (info[NOTSENT_BYTES_AT..].first_chunk()?, info[TOTAL_RETRANS_AT..].first_chunk()?);
    Some(SendState {
        unsent_bytes: u64::from(u32::from_ne_bytes(*unsent)),
        retransmits: u32::from_ne_bytes(*retransmits),
    })
}

/// The size of a page of memory, in bytes.
pub fn page_bytes() -> u64 {
    // SAFETY: the call takes a number and reads a constant of the kernel's.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

/// After how many milliseconds jemalloc gives the kernel back what nobody uses; its default is 10,000. What a burst took
/// must not stand against `limits.memory` for long.
const DECAY_MS: isize = 1000;

/// The index that stands for all arenas of jemalloc: `MALLCTL_ARENAS_ALL`.
const DECAY_OF_ALL_ARENAS: &[u8] = b"arena.4096.dirty_decay_ms\0";
const DECAY_OF_NEW_ARENAS: &[u8] = b"arenas.dirty_decay_ms\0";

/// Has the allocator of the binary give memory back soon.
///
/// # Errors
/// What jemalloc says; then it does so after its own time.
pub fn give_memory_back_soon() -> io::Result<()> {
    for key in [DECAY_OF_ALL_ARENAS, DECAY_OF_NEW_ARENAS] {
        // SAFETY: the key ends with a NUL, and its value is an `ssize_t`.
        unsafe { tikv_jemalloc_ctl::raw::write(key, DECAY_MS) }.map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(())
}

/// What the allocator of the binary has handed out and not got back, in bytes; 0 in a program with another one.
pub fn heap_bytes() -> u64 {
    // The counts are of the last epoch.
    let allocated = tikv_jemalloc_ctl::epoch::advance().and_then(|_| tikv_jemalloc_ctl::stats::allocated::read());
    allocated.map_or(0, |bytes| bytes as u64)
}

fn tcp_info(fd: RawFd) -> io::Result<[u8; TCP_INFO_BYTES]> {
    let mut info = [0u8; TCP_INFO_BYTES];
    let mut len = TCP_INFO_BYTES as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `len` bytes, and the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// What the peer has not acknowledged, in bytes: SIOCOUTQ of tcp(7).
fn queued_bytes(fd: RawFd) -> io::Result<u64> {
    let mut queued: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ's number, writes one int.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut queued) };
    if result == 0 { Ok(u64::try_from(queued).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor of our own for a socket that somebody else holds open.
///
/// # Errors
/// No descriptor is left, or `fd` is not open.
pub fn duplicate_socket(fd: RawFd) -> io::Result<socket2::Socket> {
    // SAFETY: the caller holds `fd` open for this call, which only copies it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().map(socket2::Socket::from)
}

/// Raises the soft limit of open descriptors to the hard one, and returns what it is then.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one `rlimit`.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        if limit.rlim_cur < limit.rlim_max {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
                limit.rlim_cur = limit.rlim_max;
            }
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn tells_acknowledged_and_queued_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let before = tcp_snapshot(&near).unwrap();
        near.write_all(&[7; 1000]).unwrap();
        far.read_exact(&mut [0; 1000]).unwrap();
        let after = loop {
            // Loopback acknowledges at once, but not in the same instant.
            let after = tcp_snapshot(&near).unwrap();
            if after.queued_bytes == 0 {
                break after;
            }
            std::thread::yield_now();
        };
        assert_eq!(after.acked_bytes - before.acked_bytes, 1000);
        assert!(after.window_bytes > 0);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(tcp_snapshot(&file), None);
    }

    #[test]
    fn raises_the_descriptor_limit() {
        let limit = raise_descriptor_limit().unwrap();
        assert!(limit >= 256, "{limit}");
        assert_eq!(raise_descriptor_limit().unwrap(), limit);
    }
}
