//! Facts about the host, for `rustmq doctor` and the message at start. Nothing here is on a hot path,
//! and nothing fails because the system does not tell: what is not known is `None`.
//!
//! | module | holds |
//! |---|---|
//! | here | kernel, io_uring, limits, UDP offloads |
//! | `storage` | the file system and the device below a folder, flush counts |
//! | `measure` | how long a durable write and a wake-up take here |

mod measure;
mod storage;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::{fs, mem};

use quinn_udp::{UdpSockRef, UdpSocketState};

pub use measure::{DURABLE_WRITES_MAX, Percentiles, durable_write, wake_up};
pub use storage::{BlockDevice, Storage, storage};

use crate::runtime;

/// What is true of this host for every directory and socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The kernel's release, as `uname -r` shows it.
    pub kernel: Option<String>,
    /// Whether io_uring can be used, or why not.
    pub uring: Result<(), String>,
    /// Whether glommio can be used, or why not.
    pub glommio: Result<(), String>,
    /// Bytes that may be locked in memory; `u64::MAX` for no limit.
    pub memlock_bytes: Option<u64>,
    /// Whether the process may lock memory past that limit (`CAP_IPC_LOCK`).
    pub may_lock_memory: Option<bool>,
    /// The largest receive buffer a socket gets, `net.core.rmem_max`.
    pub receive_buffer_bytes_max: Option<u64>,
    /// The largest send buffer a socket gets, `net.core.wmem_max`.
    pub send_buffer_bytes_max: Option<u64>,
    /// Datagrams the kernel cuts from one send; 1: it cannot.
    pub gso_segments: Option<usize>,
    /// Whether the kernel joins received datagrams to trains.
    pub gro: Option<bool>,
}

/// Asks the host.
pub fn host() -> Host {
    let (gso_segments, gro) = udp_offload().unzip();
    Host {
        kernel: read("/proc/sys/kernel/osrelease"),
        uring: runtime::probe_uring(),
        glommio: runtime::probe(runtime::Backend::Glommio),
        memlock_bytes: memlock_bytes(),
        may_lock_memory: may_lock_memory(),
        receive_buffer_bytes_max: number("/proc/sys/net/core/rmem_max"),
        send_buffer_bytes_max: number("/proc/sys/net/core/wmem_max"),
        gso_segments,
        gro,
    }
}

/// The text of a small file of the kernel, trimmed.
fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

pub(crate) fn memlock_bytes() -> Option<u64> {
    // SAFETY: two integers; all zeroes is a value.
    let mut limit: libc::rlimit = unsafe { mem::zeroed() };
    // SAFETY: writes one rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (result == 0).then_some(limit.rlim_cur)
}

fn may_lock_memory() -> Option<bool> {
    /// The bit of `CAP_IPC_LOCK` in a capability set.
    const IPC_LOCK: u64 = 1 << 14;
    let status = read("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(set & IPC_LOCK != 0)
}

fn udp_offload() -> Option<(usize, bool)> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).ok()?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).ok()?;
    Some((state.max_gso_segments(), state.gro_segments() > 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_tells_about_itself() {
        let host = host();
        assert!(host.kernel.is_some_and(|kernel| kernel.contains('.')));
        assert!(host.memlock_bytes.is_some());
        assert!(host.may_lock_memory.is_some());
        assert!(host.receive_buffer_bytes_max.is_some_and(|bytes| bytes > 0));
        assert!(host.send_buffer_bytes_max.is_some_and(|bytes| bytes > 0));
        assert!(host.gso_segments.is_some_and(|segments| segments >= 1));
    }
}
