//! A thread for calls that block: names, `fallocate`, and, for the epoll driver, all transfers.
//!
//! Jobs go there over a ring and come back over a ring; at most [`JOBS_MAX`] are on their way, the
//! rest waits in line on the runtime's side. The thread runs on any core but its shard's, and ends
//! when its runtime does, after the jobs already given to it.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::thread::JoinHandle;
use std::{io, ptr};

use super::driver::{Call, Event, Kind, Outcome, Request, Token};
use crate::channel::{Receiver, Sender, channel};
use crate::cpu;
use crate::doorbell::{Bell, Doorbell};

/// Jobs given to the thread and not yet taken back. More wait in line: each is an operation that
/// somebody awaits, so their number is bounded by the tasks that exist.
const JOBS_MAX: usize = 256;

enum Job {
    Transfer { token: Token, request: Request },
    Call { token: Option<Token>, call: Call },
}

struct Finished {
    token: Option<Token>,
    outcome: Outcome,
}

/// The runtime's side of the thread.
pub(super) struct FileThread {
    /// Empty only while ending.
    jobs: Option<Sender<Job>>,
    bell: Bell,
    finished: Receiver<Finished>,
    line: VecDeque<Job>,
    /// Jobs in the rings or being done; at most `JOBS_MAX`, so `finished` always has room.
    under_way: usize,
    thread: Option<JoinHandle<()>>,
}

impl FileThread {
    /// Starts the thread; it rings `news` when a job is finished and stays off `core`.
    pub(super) fn start(name: &str, news: Bell, core: Option<usize>) -> io::Result<Self> {
        let (jobs, incoming) = channel(JOBS_MAX);
        let (outgoing, finished) = channel(JOBS_MAX);
        let doorbell = Doorbell::new()?;
        let bell = doorbell.bell();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            cpu::take_turns();
            if let Some(core) = core {
                cpu::keep_current_off(core);
            }
            work(incoming, outgoing, &doorbell, &news);
        })?;
        let (line, thread) = (VecDeque::new(), Some(thread));
        Ok(Self { jobs: Some(jobs), bell, finished, line, under_way: 0, thread })
    }

    /// # Safety
    /// As [`Driver::submit`](super::driver::Driver::submit).
    pub(super) unsafe fn transfer(&mut self, token: Token, request: Request) {
        self.give(Job::Transfer { token, request });
    }

    pub(super) fn call(&mut self, token: Option<Token>, call: Call) {
        self.give(Job::Call { token, call });
    }

    /// Appends what is finished to `news` and moves the line up.
    pub(super) fn reap(&mut self, news: &mut Vec<Event>) {
        let mut reaped = false;
        while let Some(Finished { token, outcome }) = self.finished.try_pop() {
            self.under_way -= 1;
            reaped = true;
            news.extend(token.map(|token| Event::Completed { token, outcome }));
        }
        if reaped && !self.line.is_empty() {
            self.advance();
        }
    }

    fn give(&mut self, job: Job) {
        self.line.push_back(job);
        self.advance();
    }

    fn advance(&mut self) {
        let Some(jobs) = &mut self.jobs else { return };
        let room = JOBS_MAX - self.under_way;
        for job in self.line.drain(..room.min(self.line.len())) {
            self.under_way += 1;
            assert!(jobs.try_push(job).is_ok(), "the ring has room for all jobs under way");
        }
        self.bell.ring();
    }
}

impl Drop for FileThread {
    fn drop(&mut self) {
        self.jobs = None;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has told so itself.
            let _ = thread.join();
        }
    }
}

/// The thread: until its runtime is gone and the ring is empty.
fn work(mut jobs: Receiver<Job>, mut finished: Sender<Finished>, doorbell: &Doorbell, news: &Bell) {
    loop {
        doorbell.take_pending();
        // Asked before the ring is emptied: what was pushed before the close is done.
        let closed = jobs.is_closed();
        while let Some(job) = jobs.try_pop() {
            let done = match job {
                Job::Transfer { token, request } => {
                    // SAFETY: the promise of `FileThread::transfer`, until `finished` says so.
                    let outcome = unsafe { transfer(request) };
                    Finished { token: Some(token), outcome }
                }
                Job::Call { token, call } => {
                    call();
                    Finished { token, outcome: Outcome::Done }
                }
            };
            let pushed = finished.try_push(done);
            assert!(pushed.is_ok(), "the ring has room for all jobs under way");
            news.ring();
        }
        if closed {
            return;
        }
        doorbell.park(None);
    }
}

/// One transfer by a blocking system call.
///
/// # Safety
/// The request's memory and descriptor are valid until this returns.
unsafe fn transfer(request: Request) -> Outcome {
    let Request { kind, descriptor, memory, bytes, position } = request;
    let vector = libc::iovec { iov_base: memory.cast(), iov_len: bytes as usize };
    let Ok(offset) = libc::off_t::try_from(position) else { return Outcome::Failed(libc::EFBIG) };
    let result = match kind {
        Kind::Flush => return flush(descriptor),
        // SAFETY: reads memory that is valid by this function's contract.
        Kind::Write => unsafe { libc::pwritev(descriptor, ptr::from_ref(&vector), 1, offset) },
        Kind::WriteDurable => {
            // SAFETY: as above.
            unsafe {
                libc::pwritev2(descriptor, ptr::from_ref(&vector), 1, offset, libc::RWF_DSYNC)
            }
        }
        // SAFETY: writes memory that is valid, and nobody else's, by this function's contract.
        Kind::Read => unsafe { libc::preadv(descriptor, ptr::from_ref(&vector), 1, offset) },
    };
    match u32::try_from(result) {
        Ok(count) => Outcome::Bytes(count),
        Err(_) => Outcome::Failed(last_error()),
    }
}

fn flush(descriptor: RawFd) -> Outcome {
    // SAFETY: takes no pointers.
    match unsafe { libc::fdatasync(descriptor) } {
        0 => Outcome::Done,
        _ => Outcome::Failed(last_error()),
    }
}

fn last_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
