//! The executor of one thread, over one of three drivers.
//!
//! Futures run on the thread that called [`run`] and never leave it. Tasks come in three classes and
//! share the thread by yielding: whatever runs for long asks [`need_preempt`] and then
//! [`yield_now`]s. The drivers behave the same; one test suite runs over both.
//!
//! | module | holds |
//! |---|---|
//! | `reactor` | the loop |
//! | `tasks`, `pool` | slots, wakers, classes; tasks whose memory is used again |
//! | `timers` | deadlines |
//! | `parking` | how long to look for news before sleeping |
//! | `operations` | transfers in flight and the buffers they own |
//! | `sources` | readiness of sockets |
//! | `driver` | what a driver is; `uring`, `epoll`, `glommio` are the three |
//! | `file_thread` | does what blocks |

mod driver;
mod epoll;
mod file_thread;
#[cfg(feature = "glommio")]
mod glommio;
mod operations;
mod overdue;
mod parking;
mod pool;
mod reactor;
mod sources;
mod tasks;
mod timers;
mod uring;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{fmt, io};

pub use parking::Polling;
pub use pool::TaskPool;
pub use tasks::Class;
pub use uring::probe_uring;

pub(crate) use operations::Operation;
pub(crate) use reactor::Reactor;

use crate::doorbell::Doorbell;
use crate::{clock, cpu};
use driver::Token;
#[cfg(feature = "glommio")]
use glommio::probe_glommio;
use tasks::Task;

pub(crate) use driver::Driver;
#[cfg(feature = "sim")]
pub(crate) use driver::{
    Call as DriverCall, Event as DriverEvent, Kind as DriverKind, Outcome as DriverOutcome,
    Request as DriverRequest, Token as DriverToken, Wait as DriverWait,
};

/// Which kernel interface carries the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring: one ring per thread.
    Uring,
    /// epoll, and two threads for file transfers: where io_uring is denied.
    Epoll,
    /// glommio's executor, with its files and its rings. Only with the feature `glommio`.
    Glommio,
}

/// Whether a backend can be used here; if not, why not.
pub fn probe(backend: Backend) -> Result<(), String> {
    match backend {
        Backend::Uring => probe_uring(),
        Backend::Epoll => Ok(()),
        Backend::Glommio => probe_glommio(),
    }
}

#[cfg(not(feature = "glommio"))]
fn probe_glommio() -> Result<(), String> {
    let why = "this executable is built without it: build one with `cargo build --release --features glommio`";
    Err(why.to_owned())
}

/// How the io_uring driver makes a write durable. The others have one way: epoll writes through on a
/// thread, glommio writes and then flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushPlan {
    /// A write, and a flush linked to it, which a thread of the ring's does on another core.
    #[default]
    WriteFlush,
    /// One write that goes through the device's cache (`RWF_DSYNC`): where the cache is volatile and
    /// the device has no forced unit access, the kernel flushes when the write is done, on the core that
    /// is told so. A thread that is pinned lets it; see [`cpu::give_way_to_wakeups`].
    WriteThrough,
}

/// How to run.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Which driver.
    pub backend: Backend,
    /// The core to pin the calling thread to. None: it stays where it is.
    pub core: Option<usize>,
    /// What the thread does when it has nothing to do.
    pub polling: Polling,
    /// How writes become durable.
    pub flush_plan: FlushPlan,
    /// For tests: every flush takes at least this much longer.
    pub flush_delay: Option<Duration>,
    /// Submissions that fit into the ring between two turns; more cost a system call each. A power
    /// of two; the kernel allows 32768. 256 is plenty: operations are few and large.
    pub ring_entries: u32,
}

impl RuntimeConfig {
    /// Where no core is the thread's own: it is not pinned and sleeps. Room for 64 submissions.
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            core: None,
            polling: Polling::Sleep,
            flush_plan: FlushPlan::WriteFlush,
            flush_delay: None,
            ring_entries: 64,
        }
    }
}

/// What a runtime has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// System calls that handed work to the kernel or waited for it; of glommio, rounds of its
    /// executor, each of which makes several.
    pub enters: u64,
    /// Operations on files.
    pub operations: u64,
    /// Flushes asked for: durable writes, and flushes by themselves.
    pub flushes: u64,
    /// Time spent at work: neither asleep nor looking for news.
    pub busy: Duration,
    /// Time spent looking for news before sleeping, or instead of it.
    pub polled: Duration,
    /// Time since the start.
    pub running: Duration,
}

impl Stats {
    /// The part of the time spent at work, from 0 to 1.
    pub fn busy_fraction(&self) -> f64 {
        if self.running.is_zero() {
            return 0.0;
        }
        (self.busy.as_secs_f64() / self.running.as_secs_f64()).min(1.0)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Reactor>>> = const { RefCell::new(None) };
}

/// Runs `main`, and all that it spawns, on the calling thread until `main` is finished.
///
/// Other threads wake this one through bells of `doorbell`. Tasks left over are dropped at the end;
/// when this returns, no operation is in flight and no buffer is in the kernel's hands. The thread
/// stays pinned. Fails if the core cannot be pinned to or the driver cannot start, and says why.
///
/// # Panics
/// Inside of another runtime.
pub fn run<T>(
    config: RuntimeConfig,
    doorbell: Doorbell,
    main: impl Future<Output = T>,
) -> io::Result<T> {
    assert!(try_with_reactor(|_| ()).is_none(), "a runtime runs inside of a runtime");
    if let Some(core) = config.core {
        cpu::pin_current(core)?;
        if config.flush_plan == FlushPlan::WriteThrough {
            // A kernel that cannot is slower while the shard is busy, and nothing else.
            let _ = cpu::give_way_to_wakeups();
        }
    }
    let driver: Box<dyn Driver> = match config.backend {
        Backend::Uring => Box::new(uring::Uring::new(&config, &doorbell)?),
        Backend::Epoll => Box::new(epoll::Epoll::new(&config, &doorbell)?),
        #[cfg(feature = "glommio")]
        Backend::Glommio => Box::new(glommio::Glommio::new(&config, &doorbell)?),
        #[cfg(not(feature = "glommio"))]
        Backend::Glommio => {
            let why = probe_glommio().err().unwrap_or_default();
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    };
    clock::begin();
    let reactor = Rc::new(Reactor::new(next_id(), driver, doorbell, &config));
    let entered = Entered::new(reactor);
    // Declared after the guard: dropped before it, while its operations can still be cancelled.
    let main = pin!(main);
    entered.reactor.run(main)
}

fn next_id() -> u64 {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Runtimes whose turns somebody else orders, several on one thread.
#[cfg(feature = "sim")]
pub(crate) mod hosted {
    use super::{
        Backend, CURRENT, Doorbell, Driver, Rc, Reactor, RuntimeConfig, clock, next_id,
        try_with_reactor,
    };

    /// A runtime that runs while [`within`] it.
    pub(crate) fn reactor(
        doorbell: Doorbell,
        driver: impl FnOnce(u64) -> Box<dyn Driver>,
    ) -> Rc<Reactor> {
        let id = next_id();
        let driver = driver(id);
        let config = RuntimeConfig::new(Backend::Epoll);
        Rc::new(Reactor::new(id, driver, doorbell, &config))
    }

    /// Makes a runtime the one of this thread for the length of a call.
    pub(crate) fn within<R>(reactor: &Rc<Reactor>, act: impl FnOnce() -> R) -> R {
        struct Left;
        impl Drop for Left {
            fn drop(&mut self) {
                CURRENT.set(None);
                clock::end();
            }
        }
        assert!(try_with_reactor(|_| ()).is_none(), "a runtime runs inside of a runtime");
        CURRENT.set(Some(Rc::clone(reactor)));
        clock::begin();
        let _left = Left;
        act()
    }
}

/// The thread is inside of a runtime; ends it however `run` ends, by a panic too.
struct Entered {
    reactor: Rc<Reactor>,
}

impl Entered {
    fn new(reactor: Rc<Reactor>) -> Self {
        CURRENT.set(Some(reactor.clone()));
        Self { reactor }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.reactor.end();
        CURRENT.set(None);
        clock::end();
    }
}

/// Starts a task. It gets its first turn after those already in line. Allocates once; a
/// [`TaskPool`] does not. While the runtime ends, the future is dropped.
///
/// # Panics
/// Outside of a runtime.
pub fn spawn(class: Class, future: impl Future<Output = ()> + 'static) {
    with_reactor(|reactor| {
        if reactor.is_ending() {
            return;
        }
        let slot = reactor.scheduler().claim(class);
        reactor.scheduler().enlist(&slot, Task::Boxed(Box::pin(future)));
    });
}

/// Lets the others of this class have their turn.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Whether the slice of this turn is used up: the running task should yield soon.
pub fn need_preempt() -> bool {
    with_reactor(|reactor| reactor.slice_is_over())
}

/// Sleeps until `at`, as [`clock::now`] counts. A moment that is past does not wait at all.
pub async fn sleep_until(at: Instant) {
    reactor::Sleep::new(current(), at).await;
}

/// Sleeps for `duration`.
pub async fn sleep(duration: Duration) {
    sleep_until(clock::now() + duration).await;
}

/// Waits until the doorbell was rung since this was last completed. May also complete without a
/// ring. One task of a runtime waits for it and looks into all rings; of two, one would miss it.
pub async fn doorbell_rung() {
    let reactor = current();
    poll_fn(|context| reactor.poll_rung(context.waker())).await;
}

/// What the runtime of this thread has done so far.
///
/// # Panics
/// Outside of a runtime.
pub fn stats() -> Stats {
    with_reactor(|reactor| reactor.stats())
}

/// A descriptor watched by the runtime with this number. Plain values, so that the owner of the
/// descriptor can be made on one thread and used on another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registration {
    runtime: u64,
    token: Token,
    descriptor: RawFd,
}

/// Readiness of one descriptor, watched by whichever runtime it was last used on.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    registration: Cell<Option<Registration>>,
}

impl Readiness {
    /// Ready if a read may find something.
    pub(crate) fn poll_readable(&self, descriptor: RawFd, context: &mut Context<'_>) -> Poll<()> {
        with_reactor(|reactor| match self.token(reactor, descriptor) {
            // What cannot be watched is tried: the attempt tells what is wrong.
            Err(_) => Poll::Ready(()),
            Ok(token) => {
                if reactor.sources().borrow_mut().poll_readable(token, context.waker()) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }
        })
    }

    /// Ready if a write may succeed.
    pub(crate) fn poll_writable(&self, descriptor: RawFd, context: &mut Context<'_>) -> Poll<()> {
        with_reactor(|reactor| match self.token(reactor, descriptor) {
            Err(_) => Poll::Ready(()),
            Ok(token) => reactor.poll_writable(token, context.waker()),
        })
    }

    /// Whether a read may find something; true, too, if nobody watches.
    pub(crate) fn may_read(&self) -> bool {
        self.on_runtime(|reactor, token| reactor.sources().borrow_mut().is_readable(token))
            .unwrap_or(true)
    }

    /// A read has found nothing.
    pub(crate) fn clear_readable(&self) {
        self.on_runtime(|reactor, token| reactor.sources().borrow_mut().clear_readable(token));
    }

    /// A write was refused.
    pub(crate) fn clear_writable(&self) {
        self.on_runtime(|reactor, token| reactor.sources().borrow_mut().clear_writable(token));
    }

    /// Stops watching; the owner calls this before it closes the descriptor.
    pub(crate) fn forget(&self) {
        if let Some(registration) = self.registration.take() {
            let Registration { runtime, token, descriptor } = registration;
            try_with_reactor(|reactor| {
                if reactor.id() == runtime {
                    reactor.unregister(token, descriptor);
                }
            });
        }
    }

    fn token(&self, reactor: &Reactor, descriptor: RawFd) -> io::Result<Token> {
        if let Some(registration) = self.registration.get()
            && registration.runtime == reactor.id()
        {
            return Ok(registration.token);
        }
        let token = reactor.register(descriptor)?;
        self.registration.set(Some(Registration { runtime: reactor.id(), token, descriptor }));
        Ok(token)
    }

    fn on_runtime<R>(&self, act: impl FnOnce(&Reactor, Token) -> R) -> Option<R> {
        let registration = self.registration.get()?;
        try_with_reactor(|reactor| {
            (reactor.id() == registration.runtime).then(|| act(reactor, registration.token))
        })?
    }
}

/// The runtime of this thread.
pub(crate) fn current() -> Rc<Reactor> {
    with_reactor(Rc::clone)
}

fn with_reactor<R>(act: impl FnOnce(&Rc<Reactor>) -> R) -> R {
    try_with_reactor(act).expect("this needs the thread of a running runtime")
}

/// None outside of a runtime.
pub(crate) fn try_with_reactor<R>(act: impl FnOnce(&Rc<Reactor>) -> R) -> Option<R> {
    // The thread may be past its thread-locals when a waker or a file is dropped.
    CURRENT.try_with(|current| current.borrow().as_ref().map(act)).ok().flatten()
}

/// A name that is not a backend's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownBackend {
    /// What was given.
    pub name: String,
}

impl fmt::Display for UnknownBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown runtime {:?}: uring, epoll and glommio are known", self.name)
    }
}

impl std::error::Error for UnknownBackend {}

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        match name {
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            "glommio" => Ok(Self::Glommio),
            _ => Err(UnknownBackend { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
            Self::Glommio => "glommio",
        })
    }
}
