//! A modelled host: its clock, random numbers, disk and network, for deterministic simulation.
//!
//! While a [`World`] is entered on a thread, everything this crate asks of the operating system is
//! asked of the world instead, and nothing else of the code above changes. Time stands still until
//! the owner of the world moves it; every choice is drawn from one seed. The same seed and the same
//! calls give the same bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`disk`] | files of pages, what of them is durable, and what a crash leaves |
//! | [`network`] | datagrams between addresses: late, lost, twice, out of order |
//! | `driver` | the runtime's driver over the two |
//! | [`host`] | a runtime that is given one turn at a time |
//! | [`choice`] | numbers from a seed |
//! | [`interrupts`] | signals to whoever runs many worlds |

pub mod choice;
pub mod disk;
mod driver;
pub mod host;
pub mod interrupts;
pub mod network;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use choice::Choice;
use disk::{Disk, FlushId, WriteId};
use network::Network;

use crate::runtime::{DriverEvent, DriverOutcome, DriverToken};

pub(crate) use driver::SimDriver;

/// The modelled host of one thread.
///
/// Cloning shares it. It begins with a disk and a seed, and ends when nothing refers to it.
#[derive(Clone)]
pub struct World {
    inner: Rc<Inner>,
}

struct Inner {
    base: Instant,
    now_ns: Cell<u64>,
    /// Milliseconds since 1970 at the beginning.
    wall_ms: i64,
    choice: RefCell<Choice>,
    disk: RefCell<Disk>,
    network: RefCell<Network>,
    events: RefCell<BTreeMap<(u64, u64), Due>>,
    next_event: Cell<u64>,
    /// What the drivers of this world's runtimes have not fetched yet, by runtime.
    news: RefCell<Vec<(u64, Vec<DriverEvent>)>>,
    latency: Cell<Latency>,
    faults: Cell<Faults>,
    happened: Cell<Happened>,
    trace: RefCell<Trace>,
}

/// How long the disk takes, in nanoseconds: from, to.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// A read, a write or a call on a name.
    pub transfer_ns: (u64, u64),
    /// A flush.
    pub flush_ns: (u64, u64),
}

/// How often an honest disk fails, each once in so many operations; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A write fails and a part of it may be on the disk.
    pub write_error: u64,
    /// A flush fails: what it covered is forgotten or kept, nobody knows.
    pub flush_error: u64,
    /// A read fails.
    pub read_error: u64,
    /// A transfer ends early, as it may.
    pub short: u64,
}

/// How often a disk that is honest has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Writes that failed.
    pub write_errors: u64,
    /// Flushes that failed.
    pub flush_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Transfers that ended early.
    pub short: u64,
    /// Files for which there was no space.
    pub full: u64,
}

/// What comes next in a world, at its time.
enum Due {
    WriteEnds { owner: Owner, write: WriteId, bytes: u32, durable: bool, failed: bool },
    FlushEnds { owner: Owner, flush: FlushId, failed: bool },
    ReadEnds { owner: Owner, read: driver::Read, failed: bool },
    Arrives { packet: network::Packet },
}

#[derive(Clone, Copy)]
struct Owner {
    runtime: u64,
    token: DriverToken,
}

/// What happened, as a hash and, when asked for, as the last lines.
#[derive(Default)]
struct Trace {
    hash: u64,
    count: u64,
    lines_max: usize,
    lines: std::collections::VecDeque<String>,
}

thread_local! {
    static ENTERED: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// The thread asks this world until this is dropped.
pub struct Entered {
    before: Option<World>,
}

impl World {
    /// A world with this disk, at time 0, whose every choice comes from `seed`.
    pub fn new(seed: u64, disk: Disk) -> Self {
        let latency = Latency { transfer_ns: (5_000, 60_000), flush_ns: (20_000, 400_000) };
        Self {
            inner: Rc::new(Inner {
                base: Instant::now(),
                now_ns: Cell::new(0),
                // 2026-01-01, so that times look like times.
                wall_ms: 1_767_225_600_000,
                choice: RefCell::new(Choice::new(seed)),
                disk: RefCell::new(disk),
                network: RefCell::default(),
                events: RefCell::default(),
                next_event: Cell::new(0),
                news: RefCell::default(),
                latency: Cell::new(latency),
                faults: Cell::default(),
                happened: Cell::default(),
                trace: RefCell::default(),
            }),
        }
    }

    /// Makes this world the one that the thread asks.
    #[must_use]
    pub fn enter(&self) -> Entered {
        Entered { before: ENTERED.replace(Some(self.clone())) }
    }

    /// Nanoseconds since the world began.
    pub fn now_ns(&self) -> u64 {
        self.inner.now_ns.get()
    }

    /// The moment it is, as code on a runtime sees it.
    pub fn now(&self) -> Instant {
        self.inner.base + Duration::from_nanos(self.now_ns())
    }

    /// Milliseconds since 1970, as the wall clock of this world shows them.
    pub fn wall_ms(&self) -> i64 {
        self.inner.wall_ms + (self.now_ns() / 1_000_000) as i64
    }

    /// The source of every choice.
    pub fn choice(&self) -> RefMut<'_, Choice> {
        self.inner.choice.borrow_mut()
    }

    /// The disk.
    pub fn disk(&self) -> RefMut<'_, Disk> {
        self.inner.disk.borrow_mut()
    }

    /// The network.
    pub fn network(&self) -> RefMut<'_, Network> {
        self.inner.network.borrow_mut()
    }

    /// Sets how slow the disk is.
    pub fn set_latency(&self, latency: Latency) {
        self.inner.latency.set(latency);
    }

    /// Sets how often the disk fails.
    pub fn set_faults(&self, faults: Faults) {
        self.inner.faults.set(faults);
    }

    /// How often the disk fails.
    pub fn faults(&self) -> Faults {
        self.inner.faults.get()
    }

    /// How often it has failed.
    pub fn happened(&self) -> Happened {
        self.inner.happened.get()
    }

    fn count(&self, count: impl FnOnce(&mut Happened) -> &mut u64) {
        let mut happened = self.happened();
        *count(&mut happened) += 1;
        self.inner.happened.set(happened);
    }

    /// When the next thing happens by itself, in nanoseconds since the beginning.
    pub fn next_event_ns(&self) -> Option<u64> {
        self.inner.events.borrow().first_key_value().map(|((at, _), _)| *at)
    }

    /// Nanoseconds from the beginning to a moment of this world.
    pub fn ns_of(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.inner.base).as_nanos() as u64
    }

    /// Moves the clock to `ns`, never back, and lets everything happen that is due by then.
    pub fn advance_to(&self, ns: u64) {
        loop {
            let due = {
                let mut events = self.inner.events.borrow_mut();
                match events.first_entry() {
                    Some(first) if first.key().0 <= ns => Some(first.remove_entry()),
                    _ => None,
                }
            };
            let Some(((at, _), due)) = due else { break };
            self.inner.now_ns.set(self.now_ns().max(at));
            self.happen(due);
        }
        self.inner.now_ns.set(self.now_ns().max(ns));
    }

    /// Adds to the trace: three numbers and what they are of.
    pub fn note(&self, what: &'static str, a: u64, b: u64, c: u64) {
        let mut trace = self.inner.trace.borrow_mut();
        trace.count += 1;
        let name = what.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(257) + u64::from(byte));
        for number in [self.now_ns(), name, a, b, c] {
            trace.hash = (trace.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        if 0 < trace.lines_max {
            if trace.lines.len() == trace.lines_max {
                trace.lines.pop_front();
            }
            let ms = self.now_ns() / 1_000;
            trace.lines.push_back(format!("{ms:>9} us  {what} {a:#x} {b:#x} {c:#x}"));
        }
    }

    /// Keeps the last lines of the trace from now on.
    pub fn keep_trace(&self, lines_max: usize) {
        self.inner.trace.borrow_mut().lines_max = lines_max;
    }

    /// The hash of everything noted, and how much that was.
    pub fn trace_hash(&self) -> (u64, u64) {
        let trace = self.inner.trace.borrow();
        (trace.hash, trace.count)
    }

    /// The last lines of the trace, oldest first.
    pub fn trace_lines(&self) -> Vec<String> {
        self.inner.trace.borrow().lines.iter().cloned().collect()
    }

    fn schedule(&self, in_ns: u64, due: Due) {
        let number = self.inner.next_event.get();
        self.inner.next_event.set(number + 1);
        let at = self.now_ns() + in_ns;
        self.inner.events.borrow_mut().insert((at, number), due);
    }

    fn transfer_ns(&self) -> u64 {
        let (from, to) = self.inner.latency.get().transfer_ns;
        self.choice().between(from, to)
    }

    fn flush_ns(&self) -> u64 {
        let (from, to) = self.inner.latency.get().flush_ns;
        self.choice().between(from, to)
    }

    fn fails(&self, once_in: u64) -> bool {
        once_in != 0 && self.choice().below(once_in) == 0
    }

    fn happen(&self, due: Due) {
        match due {
            Due::WriteEnds { owner, write, bytes, durable, failed } => {
                self.note("write ends", write.0, u64::from(bytes), u64::from(failed));
                if failed {
                    self.count(|happened| &mut happened.write_errors);
                    self.disk().fail_write(write);
                    return self.tell(owner, DriverOutcome::Failed(libc::EIO));
                }
                let short = self.disk().end_write(write, bytes);
                if short || !durable {
                    return self.tell(owner, DriverOutcome::Bytes(bytes));
                }
                let flush = self.disk().begin_flush_of(write);
                self.schedule_flush(owner, flush);
            }
            Due::FlushEnds { owner, flush, failed } => {
                self.note("flush ends", flush.0, u64::from(failed), 0);
                self.disk().end_flush(flush, !failed);
                let outcome = match failed {
                    true => {
                        self.count(|happened| &mut happened.flush_errors);
                        DriverOutcome::Failed(libc::EIO)
                    }
                    false => DriverOutcome::Done,
                };
                self.tell(owner, outcome);
            }
            Due::ReadEnds { owner, read, failed } => {
                let outcome = match failed {
                    true => {
                        self.count(|happened| &mut happened.read_errors);
                        DriverOutcome::Failed(libc::EIO)
                    }
                    false => read.finish(&self.disk()),
                };
                self.tell(owner, outcome);
            }
            Due::Arrives { packet } => {
                self.note("arrives", u64::from(packet.to.port()), packet.bytes.len() as u64, 0);
                let reader = self.network().arrive(packet);
                if let Some((runtime, token)) = reader {
                    let event = DriverEvent::Ready { token, readable: true, writable: false };
                    self.news(runtime, event);
                }
            }
        }
    }

    fn schedule_flush(&self, owner: Owner, flush: FlushId) {
        let failed = self.fails(self.inner.faults.get().flush_error);
        let in_ns = self.flush_ns();
        self.schedule(in_ns, Due::FlushEnds { owner, flush, failed });
    }

    fn tell(&self, owner: Owner, outcome: DriverOutcome) {
        let Owner { runtime, token } = owner;
        self.news(runtime, DriverEvent::Completed { token, outcome });
    }

    fn news(&self, runtime: u64, event: DriverEvent) {
        // A runtime that has ended hears nothing more.
        let mut all = self.inner.news.borrow_mut();
        if let Some((_, news)) = all.iter_mut().find(|(of, _)| *of == runtime) {
            news.push(event);
        }
    }

    fn has_news(&self, runtime: u64) -> bool {
        let all = self.inner.news.borrow();
        all.iter().any(|(of, news)| *of == runtime && !news.is_empty())
    }

    /// A call on names: it takes its time and then happens all at once.
    pub(crate) async fn call<T>(
        &self,
        what: &'static str,
        act: impl FnOnce(&mut Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        let takes = Duration::from_nanos(self.transfer_ns());
        crate::runtime::sleep(takes).await;
        let result = act(&mut self.disk());
        if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC)) {
            self.count(|happened| &mut happened.full);
        }
        self.note(what, u64::from(result.is_ok()), 0, 0);
        result
    }

    /// Makes the names in a folder durable.
    pub(crate) async fn sync_dir(&self, folder: &Path) {
        let begun = self.disk().begin_sync_dir();
        let takes = Duration::from_nanos(self.flush_ns());
        crate::runtime::sleep(takes).await;
        self.disk().end_sync_dir(folder, begun);
        self.note("sync dir", begun, 0, 0);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        ENTERED.set(self.before.take());
    }
}

/// The world of this thread, if one was entered.
pub(crate) fn entered() -> Option<World> {
    ENTERED.try_with(|world| world.borrow().clone()).ok().flatten()
}

/// Has this thread entered a world?
pub(crate) fn is_entered() -> bool {
    ENTERED.try_with(|world| world.borrow().is_some()).unwrap_or(false)
}

/// The moment it is in this thread's world, if one was entered.
pub(crate) fn now() -> Option<Instant> {
    ENTERED.try_with(|world| world.borrow().as_ref().map(World::now)).ok().flatten()
}
