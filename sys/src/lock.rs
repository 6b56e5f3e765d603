//! One process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The name of the file in the directory that is locked.
pub const LOCK_FILE: &str = "lock";

/// Holds a directory for this process until it is dropped, or the process ends in any way: the
/// kernel's lock on the file counts, not that the file is there. It carries the owner's number.
#[derive(Debug)]
pub struct DirLock {
    path: PathBuf,
    #[expect(dead_code, reason = "the lock is held as long as the file is open")]
    file: File,
}

/// Bytes of the owner's number as it is written, with line ends behind it: always as many, so that it
/// is written over the one before it and asks a full disk for nothing.
const OWNER_BYTES: usize = 11;

impl DirLock {
    /// Locks the directory. None: another process holds it, see [`owner`](Self::owner).
    pub fn acquire(directory: impl AsRef<Path>) -> io::Result<Option<Self>> {
        let path = directory.as_ref().join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let owner = format!("{:\n<width$}", std::process::id(), width = OWNER_BYTES);
        match file.write_all_at(owner.as_bytes(), 0) {
            // The number is for people; the lock is what counts.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            written => written?,
        }
        file.set_len(OWNER_BYTES as u64)?;
        Ok(Some(Self { path, file }))
    }

    /// The number of the process that holds the directory, as it wrote it down, for a message.
    pub fn owner(directory: impl AsRef<Path>) -> Option<u32> {
        let mut text = String::new();
        let file = File::open(directory.as_ref().join(LOCK_FILE)).ok()?;
        file.take(32).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = DirLock::acquire(&directory).expect("can be locked").expect("is free");
        assert!(DirLock::acquire(&directory).expect("can be asked").is_none());
        assert_eq!(DirLock::owner(&directory), Some(std::process::id()));
        assert!(lock.path().ends_with(LOCK_FILE));
        drop(lock);
        assert!(DirLock::acquire(&directory).expect("can be locked").is_some());
    }

    #[test]
    fn a_directory_that_is_not_there_cannot_be_locked() {
        assert!(DirLock::acquire("/nonexistent/of/course").is_err());
        assert_eq!(DirLock::owner("/nonexistent/of/course"), None);
    }
}
