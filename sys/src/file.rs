//! Files that bypass the page cache: what is written goes to the device, what is read comes from it.
//!
//! Buffers are moved in and come back with the result, so that nobody can touch what the kernel
//! reads or writes. A future dropped early leaves its buffer with the runtime until the kernel is
//! done with it. Positions, lengths and addresses are whole blocks of [`ALIGN`] bytes.
//!
//! All of it needs the thread of a running [`runtime`].

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::{ALIGN, Buffer, Slice};
use crate::runtime::{self, Operation};

/// 1 GiB: the most one call writes or reads; the kernel's own limit is just below 2 GiB.
pub const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// An open file. A handle: clones share it, and the last one dropped closes it, off the shard's core.
#[derive(Clone)]
pub struct File {
    descriptor: Arc<Descriptor>,
    bytes: u64,
}

/// The descriptor, which operations in flight share.
pub(crate) struct Descriptor {
    /// Empty while being closed, and where the file is only modelled.
    descriptor: Option<OwnedFd>,
    number: RawFd,
}

impl File {
    pub(crate) fn new(descriptor: OwnedFd, bytes: u64) -> Self {
        let number = descriptor.as_raw_fd();
        Self { descriptor: Arc::new(Descriptor { descriptor: Some(descriptor), number }), bytes }
    }

    /// A file of a modelled disk.
    #[cfg(feature = "sim")]
    pub(crate) fn modelled(file: crate::sim::disk::FileId, bytes: u64) -> Self {
        let number = file.0.cast_signed();
        Self { descriptor: Arc::new(Descriptor { descriptor: None, number }), bytes }
    }

    /// Writes `data` and flushes it: when this succeeds, the bytes survive a loss of power. All of
    /// them or an error, and after an error nothing is known of any.
    ///
    /// # Panics
    /// If position or length are not whole blocks, or the length is above [`TRANSFER_BYTES_MAX`].
    pub async fn write_durable(&self, data: Slice, position: u64) -> io::Result<()> {
        if cfg!(feature = "fault-no-flush") {
            return self.write(data, position).await;
        }
        self.put(data, position, true).await?;
        after_flush().await
    }

    /// Writes `data` without flushing: all of it or an error.
    ///
    /// # Panics
    /// As [`write_durable`](Self::write_durable).
    pub async fn write(&self, data: Slice, position: u64) -> io::Result<()> {
        self.put(data, position, false).await
    }

    /// Flushes what was written before, and as much of the file's description as reading it back
    /// needs (`fdatasync`). A failed flush is never tried again: the kernel has forgotten the data.
    pub async fn flush(&self) -> io::Result<()> {
        if cfg!(feature = "fault-no-flush") {
            return Ok(());
        }
        let operation = Operation::Flush { file: self.descriptor.clone() };
        let reactor = runtime::current();
        reactor.count_flush();
        let (result, _) = reactor.start(operation).await;
        result?;
        after_flush().await
    }

    /// Reads `bytes` from `position` on to the front of `buffer`, which comes back with how many
    /// there were: fewer only where the file ends.
    ///
    /// # Panics
    /// If position or `bytes` are not whole blocks, or the buffer is shorter than `bytes`.
    pub async fn read(
        &self,
        buffer: Buffer,
        position: u64,
        bytes: usize,
    ) -> (io::Result<usize>, Buffer) {
        check_blocks(position, bytes);
        assert!(bytes <= buffer.len(), "reads {bytes} bytes to {}", buffer.len());
        let file = self.descriptor.clone();
        let operation = Operation::Read { file, buffer, position, bytes };
        match runtime::current().start(operation).await {
            (result, Operation::Read { buffer, .. }) => (result, buffer),
            _ => unreachable!("an operation comes back as what it was"),
        }
    }

    /// The length when it was opened or created.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    async fn put(&self, data: Slice, position: u64, durable: bool) -> io::Result<()> {
        check_blocks(position, data.len());
        let file = self.descriptor.clone();
        let reactor = runtime::current();
        if durable {
            reactor.count_flush();
        }
        let (result, _) = reactor.start(Operation::Write { file, data, position, durable }).await;
        result?;
        after_write()
    }
}

/// For tests: what becomes of the writes and flushes of one thread, counted from its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// This write and all after it fail with an I/O error; 0: none does.
    pub write_fail_at: u32,
    /// So with flushes.
    pub flush_fail_at: u32,
    /// This flush takes `flush_hang` longer; 0: none does.
    pub flush_hang_at: u32,
    /// How much longer.
    pub flush_hang: Duration,
}

/// What a thread has done, for its faults.
#[derive(Clone, Copy, Default)]
struct Counts {
    writes: u32,
    flushes: u32,
}

thread_local! {
    static FAULTS: Cell<(DiskFaults, Counts)> = Cell::default();
}

/// For tests: from now on the writes and flushes of this thread fail or hang as they are told.
pub fn set_disk_faults(faults: DiskFaults) {
    FAULTS.set((faults, Counts::default()));
}

/// Whether the next one, and all after it, fail.
fn fails(at: u32, count: u32) -> io::Result<()> {
    match at != 0 && at <= count {
        true => Err(io::Error::from_raw_os_error(libc::EIO)),
        false => Ok(()),
    }
}

fn after_write() -> io::Result<()> {
    let (faults, mut counts) = FAULTS.get();
    counts.writes = counts.writes.saturating_add(1);
    FAULTS.set((faults, counts));
    fails(faults.write_fail_at, counts.writes)
}

/// The slower or broken disk of some tests.
async fn after_flush() -> io::Result<()> {
    let delay = runtime::current().flush_delay();
    if let Some(delay) = delay {
        runtime::sleep(delay).await;
    }
    let (faults, mut counts) = FAULTS.get();
    counts.flushes = counts.flushes.saturating_add(1);
    FAULTS.set((faults, counts));
    if counts.flushes == faults.flush_hang_at {
        runtime::sleep(faults.flush_hang).await;
    }
    fails(faults.flush_fail_at, counts.flushes)
}

fn check_blocks(position: u64, bytes: usize) {
    assert!(position.is_multiple_of(ALIGN as u64), "position {position} is within a block");
    assert!(bytes.is_multiple_of(ALIGN), "{bytes} bytes are not whole blocks");
    assert!(bytes <= TRANSFER_BYTES_MAX, "{bytes} bytes at once, of at most {TRANSFER_BYTES_MAX}");
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // The last close of a deleted file frees its blocks, which takes long: not on this core.
        if let Some(descriptor) = self.descriptor.take() {
            runtime::try_with_reactor(|reactor| reactor.close(descriptor));
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("descriptor", &self.descriptor.as_raw_fd())
            .field("bytes", &self.bytes)
            .finish()
    }
}
