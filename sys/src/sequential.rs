//! A file read from one end to the other past the page cache, outside of any runtime: for programs
//! that check what a broker left behind. A thread reads ahead, so that the device never waits for
//! whoever looks at the bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use crate::buffer::{ALIGN, Buffer, BufferPool};

/// Bytes of one read. 4 MiB: a device is at its full rate with far less, and a turn of the thread
/// costs nothing beside it.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Chunks of one file in memory at once that nobody has taken yet, and one more for a look out of turn.
pub const CHUNKS: usize = 4;

/// One part of a file, in order.
pub struct Chunk {
    /// Where in the file it begins.
    pub position: u64,
    /// Its bytes, or why they cannot be read.
    pub bytes: io::Result<(Buffer, usize)>,
}

/// A file that is read to its end by a thread of its own, which ends with it.
pub struct Sequential {
    file: File,
    bytes: u64,
    pool: BufferPool,
    chunks: Receiver<Chunk>,
}

impl Sequential {
    /// Opens the file, and begins to read it into buffers of `pool`. That must have [`CHUNKS`] of them
    /// for each file that is open, each of [`CHUNK_BYTES`], besides those that the caller keeps.
    ///
    /// # Errors
    /// It cannot be opened. A file system without `O_DIRECT` refuses.
    pub fn open(path: &Path, pool: &BufferPool) -> io::Result<Self> {
        let file = open_direct(path)?;
        let bytes = file.metadata()?.len();
        let (sender, chunks) = sync_channel(CHUNKS - 2);
        let (from, buffers) = (file.try_clone()?, pool.clone());
        let reader = move || {
            let mut position = 0;
            while position < bytes {
                let read = read_at(&from, &buffers, position, CHUNK_BYTES);
                if sender.send(Chunk { position, bytes: read }).is_err() {
                    return;
                }
                position += CHUNK_BYTES as u64;
            }
        };
        std::thread::Builder::new().name("read-ahead".to_owned()).spawn(reader)?;
        Ok(Self { file, bytes, pool: pool.clone(), chunks })
    }

    /// The next part; `None` at the end of the file.
    pub fn next_chunk(&self) -> Option<Chunk> {
        self.chunks.recv().ok()
    }

    /// Reads a part out of turn. Position and length are whole blocks of [`ALIGN`].
    ///
    /// # Errors
    /// The device's.
    pub fn read_at(&self, position: u64, bytes: usize) -> io::Result<(Buffer, usize)> {
        let pool = match bytes <= CHUNK_BYTES {
            true => self.pool.clone(),
            false => BufferPool::new(bytes.next_multiple_of(ALIGN), bytes.next_multiple_of(ALIGN)),
        };
        read_at(&self.file, &pool, position, bytes)
    }

    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Reads parts of a file, without reading ahead.
///
/// # Errors
/// The file cannot be opened or read.
pub fn read_parts(path: &Path, parts: &[(u64, usize)]) -> io::Result<(u64, Vec<Vec<u8>>)> {
    let file = open_direct(path)?;
    let bytes = file.metadata()?.len();
    let mut read = Vec::new();
    for (position, length) in parts {
        let pool = BufferPool::new(length.next_multiple_of(ALIGN), length.next_multiple_of(ALIGN));
        let (buffer, count) = read_at(&file, &pool, *position, *length)?;
        read.push(buffer[..count].to_vec());
    }
    Ok((bytes, read))
}

fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EINVAL) => {
                let path: PathBuf = path.into();
                let message = format!("the file system of {} refuses O_DIRECT", path.display());
                io::Error::new(io::ErrorKind::Unsupported, message)
            }
            _ => error,
        }
    })
}

fn read_at(
    file: &File,
    pool: &BufferPool,
    position: u64,
    bytes: usize,
) -> io::Result<(Buffer, usize)> {
    let mut buffer = pool.try_get(bytes).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut count = 0;
    while count < bytes {
        match file.read_at(&mut buffer[count..bytes], position + count as u64) {
            Ok(0) => break,
            Ok(read) => count += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        // The end of a file need not be the end of a block.
        if !count.is_multiple_of(ALIGN) {
            break;
        }
    }
    Ok((buffer, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_in_order_and_whole() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..CHUNK_BYTES + 8192).map(|at| (at / 4096) as u8).collect();
        std::fs::write(&path, &bytes).expect("written");
        let pool = BufferPool::new(2 * CHUNKS * CHUNK_BYTES, CHUNK_BYTES);
        let file = match Sequential::open(&path, &pool) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            Err(error) => panic!("{error}"),
        };
        let mut read = Vec::new();
        while let Some(chunk) = file.next_chunk() {
            assert_eq!(chunk.position as usize, read.len());
            let (buffer, count) = chunk.bytes.expect("read");
            read.extend_from_slice(&buffer[..count]);
        }
        assert!(read == bytes);
        let (buffer, count) = file.read_at(4096, 8192).expect("read");
        assert!(buffer[..count] == bytes[4096..4096 + 8192]);
    }
}
