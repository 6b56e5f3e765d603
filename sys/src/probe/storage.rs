//! The file system and the device below a folder.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What lies below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The name of the file system's type, or its number in hexadecimal if we have no name for it.
    pub file_system: String,
    /// Whether files there can bypass the page cache, or why not.
    pub direct: Result<(), String>,
    /// Bytes free for this process.
    pub free_bytes: u64,
    /// The disk. None: the folder is not on one disk (memory, network, some volumes).
    pub device: Option<BlockDevice>,
}

/// A disk as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The disk's name, the partition's parent: `nvme0n1`.
    pub name: String,
    /// Whether the disk keeps writes in a cache that loses them without power, so that every flush
    /// must reach it (`write back`), or not (`write through`).
    pub volatile_cache: Option<bool>,
    /// Whether one write can be forced to the medium by itself.
    pub force_unit_access: Option<bool>,
    /// The folder of the disk in `/sys`.
    folder: PathBuf,
}

impl BlockDevice {
    /// Flushes the disk has completed since it was there. None: the kernel does not count them
    /// (before Linux 5.5), or the disk needs none.
    pub fn flushes(&self) -> Option<u64> {
        self.count(FLUSHES_FIELD)
    }

    /// Writes the disk has completed since it was there, whoever asked for them; those that the kernel
    /// merged are one. None: the kernel does not say.
    pub fn writes(&self) -> Option<u64> {
        self.count(WRITES_FIELD)
    }

    fn count(&self, field: usize) -> Option<u64> {
        let stat = fs::read_to_string(self.folder.join("stat")).ok()?;
        stat.split_whitespace().nth(field - 1)?.parse().ok()
    }
}

/// The places of the counts of writes and flushes among the fields of a disk's `stat`, counted from
/// one.
const WRITES_FIELD: usize = 5;
const FLUSHES_FIELD: usize = 16;

/// Asks about the folder; creates and removes a file in it to see whether it can bypass the cache.
pub fn storage(folder: impl AsRef<Path>) -> io::Result<Storage> {
    let folder = folder.as_ref();
    let metadata = fs::metadata(folder)?;
    let statistics = statistics(folder)?;
    Ok(Storage {
        file_system: file_system_name(statistics.f_type.cast_unsigned()),
        direct: probe_direct(folder),
        free_bytes: statistics.f_bavail.saturating_mul(statistics.f_bsize.cast_unsigned()),
        device: block_device(metadata.dev()),
    })
}

fn statistics(folder: &Path) -> io::Result<libc::statfs> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: integers; all zeroes is a value.
    let mut statistics: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: reads a terminated string, writes one statfs.
    match unsafe { libc::statfs(path.as_ptr(), &raw mut statistics) } {
        0 => Ok(statistics),
        _ => Err(io::Error::last_os_error()),
    }
}

fn file_system_name(magic: u64) -> String {
    let name = match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x2FC1_2FC1 => "zfs",
        0xF2F5_2010 => "f2fs",
        0xCA45_1A4E => "bcachefs",
        0x794C_7630 => "overlay",
        0x0102_1994 => "tmpfs",
        0x6969 => "nfs",
        0xFF53_4D42 | 0xFE53_4D42 => "smb",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        _ => return format!("{magic:#x}"),
    };
    name.to_owned()
}

fn probe_direct(folder: &Path) -> Result<(), String> {
    let path = folder.join(format!(".probe-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(libc::O_DIRECT);
    let opened = options.open(&path);
    // The name may have been made even where the flag was refused.
    let _ = fs::remove_file(&path);
    match opened {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err("the file system refuses O_DIRECT".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn block_device(number: u64) -> Option<BlockDevice> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    let mut folder = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // A partition lies in the folder of its disk.
    if folder.join("partition").exists() {
        folder.pop();
    }
    let read = |name: &str| {
        let text = fs::read_to_string(folder.join("queue").join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    Some(BlockDevice {
        name: folder.file_name()?.to_string_lossy().into_owned(),
        volatile_cache: read("write_cache").map(|cache| cache != "write through"),
        force_unit_access: read("fua").map(|fua| fua == "1"),
        folder,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_what_lies_below_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let storage = storage(folder).expect("the folder is there");
        assert!(!storage.file_system.is_empty());
        assert!(storage.free_bytes > 0);
        if let Some(device) = storage.device {
            assert!(!device.name.is_empty());
            assert!(device.flushes().is_none_or(|flushes| flushes < u64::MAX));
        }
        assert!(super::storage(folder.join("nothing")).is_err());
    }

    #[test]
    fn memory_is_not_on_a_disk() {
        let Ok(storage) = storage("/dev/shm") else { return };
        assert_eq!((storage.file_system.as_str(), storage.device), ("tmpfs", None));
    }
}
