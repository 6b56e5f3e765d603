//! The disk by itself: durable writes, one after another, to a file written before.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustmq_sys::buffer::{BufferPool, Slice};
use rustmq_sys::doorbell::Doorbell;
use rustmq_sys::runtime::{self, Backend, Class, FlushPlan, Polling, RuntimeConfig};
use rustmq_sys::sequential::{CHUNK_BYTES, CHUNKS, Sequential};
use rustmq_sys::{cpu, fs};

use super::drive::Tally;

/// Size of the file that is written over and over: one segment of a WAL.
pub(super) const FILE_BYTES: u64 = 64 << 20;

/// Bytes of each write that fills the file.
const FILL_BYTES: usize = 1 << 20;

/// 30 µs: what a turn of a busy shard takes.
const TURN: Duration = Duration::from_micros(30);

/// The runtime of a shard on this core.
pub fn runtime_config(
    core: Option<usize>,
    polling: Polling,
    flush_plan: FlushPlan,
) -> RuntimeConfig {
    let backend = Backend::Uring;
    RuntimeConfig { core, polling, flush_plan, ring_entries: 256, ..RuntimeConfig::new(backend) }
}

/// Makes the file and writes all of it, so that no write of the measurement allocates.
pub fn prepare(path: &Path) -> Result<()> {
    let pool = BufferPool::new(FILL_BYTES, FILL_BYTES);
    let mut buffer = pool.try_get(FILL_BYTES).context("no memory for a buffer")?;
    buffer.fill(0xa5);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = options.open(path).with_context(|| format!("making {}", path.display()))?;
    for position in (0..FILE_BYTES).step_by(FILL_BYTES) {
        file.write_all_at(&buffer, position)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Blocking system calls that return when the bytes are durable (`O_DSYNC`, the same to the kernel
/// as `pwritev2` with `RWF_DSYNC`).
pub fn blocking(path: &Path, core: Option<usize>, bytes: usize, time: Duration) -> Result<Tally> {
    on_core(core, || {
        let block = block(bytes)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)?;
        let mut tally = Tally::new();
        let (start, mut position) = (Instant::now(), 0);
        while start.elapsed() < time {
            let sent = Instant::now();
            file.write_all_at(&block, position)?;
            tally.record(sent.elapsed());
            position = following(position, bytes);
        }
        tally.elapsed = start.elapsed();
        Ok(tally)
    })
}

/// The same through io_uring, as the shards do it: on a thread that waits for it, or on one that always
/// has something else to do.
pub fn ring(
    path: &Path,
    runtime: RuntimeConfig,
    is_busy: bool,
    bytes: usize,
    time: Duration,
) -> Result<Tally> {
    on_core(runtime.core, || {
        let path = path.to_owned();
        runtime::run(runtime, Doorbell::new()?, async move {
            if is_busy {
                runtime::spawn(Class::Fetch, work());
            }
            let block = block(bytes)?;
            let file = fs::open(path).await?;
            let mut tally = Tally::new();
            let (start, mut position) = (Instant::now(), 0);
            while start.elapsed() < time {
                let sent = Instant::now();
                file.write_durable(block.clone(), position).await?;
                tally.record(sent.elapsed());
                position = following(position, bytes);
            }
            tally.elapsed = start.elapsed();
            Ok(tally)
        })
        .context("io_uring")?
    })
}

/// Other work of a shard, without an end: a turn of it after the other.
async fn work() {
    loop {
        let begun = Instant::now();
        while begun.elapsed() < TURN {
            std::hint::spin_loop();
        }
        runtime::yield_now().await;
    }
}

/// Where the next write goes, so that it ends before the file does.
fn following(position: u64, bytes: usize) -> u64 {
    match position + 2 * bytes as u64 <= FILE_BYTES {
        true => position + bytes as u64,
        false => 0,
    }
}

fn block(bytes: usize) -> Result<Slice> {
    let pool = BufferPool::new(bytes, bytes);
    let mut buffer = pool.try_get(bytes).context("no memory for a block")?;
    buffer.fill(0x5a);
    Ok(buffer.freeze())
}

/// Reads files one after another, past the page cache, for a time or to their end. The thread that
/// reads ahead is on the same core. Bytes, and how long it took.
pub fn sequential(
    paths: &[PathBuf],
    core: Option<usize>,
    time: Duration,
) -> Result<(u64, Duration)> {
    on_core(core, || {
        let pool = BufferPool::new((CHUNKS + 1) * CHUNK_BYTES, CHUNK_BYTES);
        let (begun, mut bytes) = (Instant::now(), 0);
        for path in paths {
            let file = Sequential::open(path, &pool)?;
            while let Some(chunk) = file.next_chunk() {
                bytes += chunk.bytes?.1 as u64;
                if time <= begun.elapsed() {
                    return Ok((bytes, begun.elapsed()));
                }
            }
        }
        Ok((bytes, begun.elapsed()))
    })
}

/// Runs on a thread of its own, on this core.
pub(super) fn on_core<T: Send>(
    core: Option<usize>,
    run: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(core) = core {
                cpu::pin_current(core).with_context(|| format!("pinning to core {core}"))?;
            }
            run()
        });
        thread.join().map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}
