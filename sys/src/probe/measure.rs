//! How long a durable write and a wake-up take on this host.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::buffer::{ALIGN, BufferPool};
use crate::doorbell::Doorbell;

/// 10,000: the most writes one measurement makes; a second on a fast disk, a minute on a slow one.
pub const DURABLE_WRITES_MAX: usize = 10_000;

/// The blocks written over and over: 1 MiB.
const BLOCKS: usize = 256;

/// A distribution in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percentiles {
    /// Half of the samples are below.
    pub p50: Duration,
    /// All but one in a hundred are below.
    pub p99: Duration,
}

impl Percentiles {
    /// None without samples.
    fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let at =
            |percent: usize| samples.get(samples.len().saturating_sub(1) * percent / 100).copied();
        Some(Self { p50: at(50)?, p99: at(99)? })
    }
}

/// Writes 4 KiB durably, `count` times (at most [`DURABLE_WRITES_MAX`], at least once), each by a
/// blocking system call to a file in `folder` that was written before and is removed afterwards.
/// Blocks the thread; a runtime does about as well. Fails where the file cannot be made.
pub fn durable_write(folder: impl AsRef<Path>, count: usize) -> io::Result<Percentiles> {
    let path = folder.as_ref().join(format!(".measure-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = options.open(&path)?;
    // It is gone with the process, whatever happens.
    std::fs::remove_file(&path)?;
    let pool = BufferPool::new(ALIGN, ALIGN);
    let block = pool.try_get(ALIGN).ok_or(io::ErrorKind::OutOfMemory)?;
    let write = |index: usize, flags: i32| -> io::Result<()> {
        let vector = libc::iovec { iov_base: block.memory().cast(), iov_len: ALIGN };
        let offset = (index % BLOCKS * ALIGN) as libc::off_t;
        // SAFETY: reads the block, which lives as long as this closure.
        match unsafe { libc::pwritev2(file.as_raw_fd(), &raw const vector, 1, offset, flags) } {
            written if written == ALIGN as isize => Ok(()),
            written if written < 0 => Err(io::Error::last_os_error()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    };
    (0..BLOCKS).try_for_each(|index| write(index, 0))?;
    file.sync_all()?;
    let sample = |index| {
        let start = Instant::now();
        write(index, libc::RWF_DSYNC)?;
        Ok(start.elapsed())
    };
    let samples =
        (0..count.clamp(1, DURABLE_WRITES_MAX)).map(sample).collect::<io::Result<Vec<_>>>()?;
    Percentiles::of(samples).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// How long it takes from ringing a doorbell until its sleeping owner runs, on another thread:
/// half of a round trip of two threads that wake each other, `count` times (1 to 10,000).
pub fn wake_up(count: usize) -> io::Result<Percentiles> {
    let count = count.clamp(1, 10_000);
    let (here, there) = (Doorbell::new()?, Doorbell::new()?);
    let (to_here, to_there) = (here.bell(), there.bell());
    let wait = |doorbell: &Doorbell| {
        while !doorbell.take_pending() {
            doorbell.park(None);
        }
    };
    let answering =
        std::thread::Builder::new().name("rustmq-measure".to_owned()).spawn(move || {
            for _ in 0..count {
                wait(&there);
                to_here.ring();
            }
        })?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        to_there.ring();
        wait(&here);
        samples.push(start.elapsed() / 2);
    }
    // It has rung for the last time; a panic there would have left us waiting above.
    let _ = answering.join();
    Percentiles::of(samples).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_samples() {
        let samples = (1..=101).rev().map(Duration::from_micros).collect();
        let percentiles = Percentiles::of(samples).expect("there are samples");
        assert_eq!(percentiles.p50, Duration::from_micros(51));
        assert_eq!(percentiles.p99, Duration::from_micros(100));
        assert_eq!(Percentiles::of(Vec::new()), None);
    }

    #[test]
    fn a_durable_write_and_a_wake_up_take_some_time() {
        let written = durable_write(env!("CARGO_MANIFEST_DIR"), 20).expect("measured");
        assert!(Duration::ZERO < written.p50 && written.p50 <= written.p99);
        let woken = wake_up(100).expect("measured");
        assert!(Duration::ZERO < woken.p50 && woken.p50 <= woken.p99);
        assert!(durable_write("/nonexistent", 1).is_err());
    }
}
