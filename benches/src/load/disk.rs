//! What goes to the disk and comes from it.

use std::fs;

use anyhow::{Context, Result};
use rustmq_sys::probe::BlockDevice;

/// What was written up to a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    /// Bytes of a process, on their way to disks.
    pub bytes: u64,
    /// Requests that wrote, of everybody to the disk. None: nobody counts them.
    pub writes: Option<u64>,
    /// Flushes, the same.
    pub flushes: Option<u64>,
}

/// What a process, and everybody to a disk, have written.
pub fn written(process: u32, disk: Option<&BlockDevice>) -> Result<Written> {
    let flushes = disk.and_then(BlockDevice::flushes);
    let requests = disk.and_then(BlockDevice::writes);
    // The kernel counts a flush as a write without data too, where it is not part of a write.
    let writes = requests.zip(flushes).map(|(requests, flushes)| requests.saturating_sub(flushes));
    Ok(Written { bytes: io_of(process, "write_bytes")?, writes, flushes })
}

/// Bytes that a process has had read from disks.
pub fn read_bytes(process: u32) -> Result<u64> {
    io_of(process, "read_bytes")
}

fn io_of(process: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{process}/io");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    field(&text, name).with_context(|| format!("{path} has no {name}"))
}

fn field(io: &str, name: &str) -> Option<u64> {
    let (_, bytes) =
        io.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name)?;
    bytes.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart_by_their_whole_name() {
        let io = "rchar: 7\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";
        assert_eq!(field(io, "write_bytes"), Some(8192));
        assert_eq!(field(io, "read_bytes"), Some(4096));
        assert_eq!(field(io, "bytes"), None);
    }
}
