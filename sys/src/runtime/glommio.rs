//! The driver over glommio, for those who want that executor below their shards (feature `glommio`).
//!
//! glommio owns the rings, the transfers and the sleep of the thread; what runs when stays with the
//! reactor, so that all drivers schedule alike. Its executor runs inside of [`Driver::poll`] alone,
//! each time until there is news:
//!
//! ```text
//!   reactor:  tasks -> poll(wait) -------------------------------------> news -> tasks
//!                        |                                            ^
//!   glommio:             +-> begin transfers -> ring -> sleep -> finish them
//! ```
//!
//! Readiness comes from an epoll of our own that holds the sockets and the doorbell, the same as in
//! the driver over epoll; glommio sleeps on that one descriptor. Transfers are glommio's [`DmaFile`],
//! which takes and gives buffers of its own: one copy each way.
//!
//! What of glommio 0.9 is stepped around here, each with its test below or in `sys/tests/glommio.rs`:
//! `docs/adr/0006-glommio-as-a-third-runtime.md`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::glommio::io::{DmaFile, OpenOptions, OwnedDmaFile};
use ::glommio::net::TcpStream;
use ::glommio::timer::Timer;
use ::glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, Task, spawn_local};
use futures_io::AsyncRead;

use super::RuntimeConfig;
use super::driver::{Call, Driver, Event, Kind, Outcome, Request, Token, Wait};
use super::epoll::Epoll;
use crate::doorbell::Doorbell;
use crate::probe;

/// 64 KiB, the least that glommio takes: memory for small buffers that it registers with each of its
/// three rings, and so locks three times. With it 40 shards lock less than the usual 8 MiB together;
/// with glommio's default of 10 MiB not even one fits. Larger buffers come from the heap.
const IO_BYTES: usize = 64 << 10;

/// 512 KiB: a limit on locked memory below which glommio refuses to start.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// 50 ms: how long glommio may sleep beside a task of its own that is ready. It does so, and for
/// good, if its preempt timer runs out between being set and the first task. A timer that always
/// runs ends such a sleep; on an idle shard it costs 20 wake-ups in a second.
const BEAT: Duration = Duration::from_millis(50);

pub(super) struct Glommio {
    executor: LocalExecutor,
    shared: Rc<Shared>,
    /// Sockets, the doorbell, and the thread for calls that block.
    epoll: Epoll,
    /// Waits for the epoll, or did; a pending task that nobody cancels is never freed.
    watch: Option<Task<()>>,
    /// Empty only while ending.
    beat: Option<Task<()>>,
    /// It panicked, as it does where it does not understand the host: what it had does not end.
    broken: bool,
    runs: u64,
}

/// What the driver and its tasks on the executor share.
#[derive(Default)]
struct Shared {
    /// Transfers that no task has yet.
    asked: RefCell<Vec<(Token, Request)>>,
    /// Transfers whose end was not told yet.
    in_flight: Cell<usize>,
    news: RefCell<Vec<Event>>,
    /// Something was asked of glommio in this run, perhaps after it last looked at its queues.
    unsubmitted: Cell<bool>,
    /// A task waits for the epoll; it found something ready.
    watched: Cell<bool>,
    ready: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
    files: RefCell<BTreeMap<FileId, Rc<DmaFile>>>,
    /// Devices that glommio will not poll.
    unpolled: RefCell<BTreeSet<u64>>,
}

/// Device and inode. As long as a file is open nothing else has its number, so what is found under it
/// is never another file, whatever became of descriptors and names.
type FileId = (u64, u64);

/// Whether the runtime over glommio can be used here; if not, why not.
pub(super) fn probe_glommio() -> Result<(), String> {
    // glommio ends the process where it finds too old a kernel, and panics where rings are denied.
    super::probe_uring()?;
    if let Some(bytes) = probe::memlock_bytes().filter(|bytes| *bytes < MEMLOCK_BYTES_MIN) {
        return Err(format!(
            "glommio needs {} KiB of memory that may be locked, and {} KiB are allowed: raise \
             RLIMIT_MEMLOCK (LimitMEMLOCK=8M, ulimit -l 8192)",
            MEMLOCK_BYTES_MIN >> 10,
            bytes >> 10
        ));
    }
    fs::metadata("/proc/self/fd")
        .map_err(|error| format!("glommio opens files through /proc/self/fd: {error}"))?;
    Ok(())
}

impl Glommio {
    pub(super) fn new(config: &RuntimeConfig, doorbell: &Doorbell) -> io::Result<Self> {
        Self::with(config, doorbell, |builder| builder)
    }

    fn with(
        config: &RuntimeConfig,
        doorbell: &Doorbell,
        set: impl FnOnce(LocalExecutorBuilder) -> LocalExecutorBuilder,
    ) -> io::Result<Self> {
        probe_glommio().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why))?;
        // Unbound: the thread is pinned already, if it is to be.
        let builder = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(IO_BYTES)
            .ring_depth(config.ring_entries as usize);
        let executor = set(builder).make().map_err(io::Error::from)?;
        let beat = executor.run(async { Some(spawn_local(beat())) });
        Ok(Self {
            executor,
            shared: Rc::default(),
            epoll: Epoll::new(config, doorbell)?,
            watch: None,
            beat,
            broken: false,
            runs: 0,
        })
    }

    /// Lets glommio work until this is finished.
    fn work<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.broken = true;
        let output = self.executor.run(future);
        self.broken = false;
        output
    }

    /// Lets glommio work until there is news, or for one round if nothing is waited for.
    fn run(&mut self, wait: Wait) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("glommio has panicked, and does nothing more"));
        }
        self.runs += 1;
        let shared = self.shared.clone();
        let mut watch = None;
        if wait != Wait::No && !shared.watched.get() {
            watch = Some(self.epoll.try_clone()?);
            shared.watched.set(true);
        }
        let watch = self.work(async move {
            for (token, request) in shared.asked.take() {
                spawn_local(carry_out(shared.clone(), token, request)).detach();
            }
            let watch = watch.map(|epoll| spawn_local(watch_epoll(shared.clone(), epoll)));
            match wait {
                Wait::No => {}
                Wait::News => shared.news(None).await,
                Wait::AtMost(timeout) => shared.news(Some(timeout)).await,
            }
            watch
        });
        if watch.is_some() {
            self.watch = watch;
        }
        // What a transfer asks for goes to the kernel at the beginning of a round alone.
        let unfinished = self.shared.news.borrow().len() < self.shared.in_flight.get();
        if self.shared.unsubmitted.take() && unfinished {
            self.work(async {});
        }
        Ok(())
    }
}

impl Driver for Glommio {
    unsafe fn submit(&mut self, token: Token, request: Request) {
        self.shared.in_flight.set(self.shared.in_flight.get() + 1);
        self.shared.asked.borrow_mut().push((token, request));
    }

    fn cancel(&mut self, _token: Token) {
        // A transfer ends by itself.
    }

    fn call(&mut self, token: Option<Token>, call: Call) -> io::Result<()> {
        self.epoll.call(token, call)
    }

    fn close(&mut self, descriptor: OwnedFd) {
        let known =
            identify(&descriptor).ok().and_then(|id| self.shared.files.borrow_mut().remove(&id));
        // Used by a transfer of another descriptor of the file, it closes with the last of them.
        let file = known.and_then(|file| Rc::try_unwrap(file).ok()).map(OwnedDmaFile::from);
        // A thread that cannot be started drops the call, and with it what it holds.
        let _ = self.epoll.call(None, Box::new(move || drop((file, descriptor))));
    }

    fn watch(&mut self, token: Token, descriptor: RawFd) -> io::Result<()> {
        self.epoll.watch(token, descriptor)
    }

    fn watch_writable(&mut self, token: Token, descriptor: RawFd) -> io::Result<()> {
        self.epoll.watch_writable(token, descriptor)
    }

    fn unwatch(&mut self, token: Token, descriptor: RawFd) {
        self.epoll.unwatch(token, descriptor);
    }

    fn poll(&mut self, wait: Wait, news: &mut Vec<Event>) -> io::Result<()> {
        // What the file thread has finished was rung for before the owner announced its sleep.
        self.epoll.reap_threads(news);
        let wait = if news.is_empty() { wait } else { Wait::No };
        if wait != Wait::No || self.shared.in_flight.get() > 0 {
            self.run(wait)?;
            let mut told = self.shared.news.borrow_mut();
            self.shared.in_flight.set(self.shared.in_flight.get() - told.len());
            news.append(&mut told);
        }
        // After the sleep and never before: the doorbell tells of a ring once.
        self.shared.ready.set(false);
        self.epoll.poll(Wait::No, news)
    }

    fn enters(&self) -> u64 {
        self.runs + self.epoll.enters()
    }
}

impl Drop for Glommio {
    fn drop(&mut self) {
        if self.broken {
            return;
        }
        let tasks = [self.watch.take(), self.beat.take()];
        let files = self.shared.files.take();
        self.executor.run(async {
            for task in tasks.into_iter().flatten() {
                task.cancel().await;
            }
            for file in files.into_values().filter_map(|file| Rc::try_unwrap(file).ok()) {
                // Nothing was promised of it that its last flush has not kept.
                let _ = file.close().await;
            }
        });
    }
}

impl Shared {
    /// Until there is news, or the epoll has something, or `timeout` is over.
    async fn news(&self, timeout: Option<Duration>) {
        let mut timer = timeout.map(Timer::new);
        poll_fn(|context| {
            if self.ready.get() || !self.news.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(context.waker().clone());
            match &mut timer {
                Some(timer) => Pin::new(timer).poll(context).map(drop),
                None => Poll::Pending,
            }
        })
        .await;
        self.waiter.take();
    }

    fn wake(&self) {
        let waiter = self.waiter.take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// glommio's handle of the file behind a descriptor.
    async fn file(&self, descriptor: RawFd) -> io::Result<Rc<DmaFile>> {
        let path = format!("/proc/self/fd/{descriptor}");
        let id = identify_number(descriptor)?;
        if let Some(file) = self.files.borrow().get(&id) {
            return Ok(file.clone());
        }
        if !self.unpolled.borrow().contains(&id.0) {
            // To find out if a device can be polled glommio reads the beginning of the first file
            // that it opens there. If that was never written the device is not asked, and glommio
            // polls it for good. A file that cannot be read makes it leave that.
            let unreadable = OpenOptions::new().write(true).dma_open(&path).await;
            unreadable.map_err(error_of)?.close().await.map_err(error_of)?;
            self.unpolled.borrow_mut().insert(id.0);
        }
        let opened = OpenOptions::new().read(true).write(true).dma_open(&path).await;
        let opened = Rc::new(opened.map_err(error_of)?);
        // Of two that open the same file at once the later one stays; the other lives on in the
        // transfer that opened it.
        self.files.borrow_mut().insert(id, opened.clone());
        Ok(opened)
    }
}

/// A task: one transfer.
async fn carry_out(shared: Rc<Shared>, token: Token, request: Request) {
    let transfer = pin!(transfer(&shared, request));
    let outcome = MarkUnsubmitted { shared: &shared, future: transfer }.await;
    let outcome =
        outcome.unwrap_or_else(|error| Outcome::Failed(error.raw_os_error().unwrap_or(libc::EIO)));
    shared.news.borrow_mut().push(Event::Completed { token, outcome });
    shared.wake();
}

async fn transfer(shared: &Shared, request: Request) -> io::Result<Outcome> {
    let Request { kind, descriptor, memory, bytes, position } = request;
    let file = shared.file(descriptor).await?;
    match kind {
        Kind::Flush => file.fdatasync().await.map_err(error_of)?,
        Kind::Write | Kind::WriteDurable => {
            let mut buffer = file.alloc_dma_buffer(bytes as usize);
            // SAFETY: readable, and nobody's to change, until this transfer's end is told: the
            // promise of `Driver::submit`.
            let data = unsafe { std::slice::from_raw_parts(memory, bytes as usize) };
            buffer.as_bytes_mut().copy_from_slice(data);
            let written = file.write_at(buffer, position).await.map_err(error_of)?;
            if kind == Kind::Write || written < bytes as usize {
                // What a durable write left out is asked for again, durable as well.
                return Ok(Outcome::Bytes(count(written)));
            }
            file.fdatasync().await.map_err(error_of)?;
        }
        Kind::Read => {
            let read = file.read_at_aligned(position, bytes as usize).await.map_err(error_of)?;
            let length = read.len().min(bytes as usize);
            // SAFETY: writable and nobody else's until this transfer's end is told, as above.
            unsafe { std::ptr::copy_nonoverlapping(read.as_ptr(), memory, length) };
            return Ok(Outcome::Bytes(count(length)));
        }
    }
    Ok(Outcome::Done)
}

fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no more than was asked for")
}

/// Whatever a transfer asks of glommio it asks while it is polled, and then it is not finished.
struct MarkUnsubmitted<'a, F> {
    shared: &'a Shared,
    future: Pin<&'a mut F>,
}

impl<F: Future> Future for MarkUnsubmitted<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.future.as_mut().poll(context);
        if polled.is_pending() {
            self.shared.unsubmitted.set(true);
        }
        polled
    }
}

/// A task: waits once until the epoll has something.
async fn watch_epoll(shared: Rc<Shared>, epoll: OwnedFd) {
    // glommio has no wait for descriptors of others. Its stream asks the ring to watch whatever
    // descriptor it was made of, and tells by a wake-up; it is never read from.
    // SAFETY: the descriptor is owned, and given away.
    let mut stream = unsafe { TcpStream::from_raw_fd(epoll.into_raw_fd()) };
    let mut asked = false;
    poll_fn(|context| {
        if std::mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        Pin::new(&mut stream).poll_read(context, &mut []).map(drop)
    })
    .await;
    shared.watched.set(false);
    shared.ready.set(true);
    shared.wake();
}

/// A task: see [`BEAT`].
async fn beat() {
    loop {
        Timer::new(BEAT).await;
    }
}

fn identify(descriptor: &OwnedFd) -> io::Result<FileId> {
    use std::os::fd::AsRawFd;
    identify_number(descriptor.as_raw_fd())
}

fn identify_number(descriptor: RawFd) -> io::Result<FileId> {
    // SAFETY: integers; all zeroes is a value.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: writes one stat.
    match unsafe { libc::fstat(descriptor, &raw mut status) } {
        0 => Ok((status.st_dev, status.st_ino)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The error of the system call, with its number.
fn error_of(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

#[cfg(test)]
mod tests;
