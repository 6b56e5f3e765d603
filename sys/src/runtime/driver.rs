//! What the executor asks of a driver, and what comes back.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

/// Names an operation in flight, or a watched descriptor. The generation tells a late answer for an
/// entry that has been reused from one for the entry as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) index: u32,
    /// 24 bits: it takes 16 million reuses of one entry within one late answer to mistake it.
    pub(crate) generation: u32,
}

pub(crate) const GENERATION_MASK: u32 = (1 << 24) - 1;

/// What to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    /// Write, and flush before saying so.
    WriteDurable,
    Flush,
    Read,
}

/// One transfer, as the kernel is asked for it. The memory and the descriptor belong to the table of
/// operations until the driver has answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) descriptor: RawFd,
    pub(crate) memory: *mut u8,
    pub(crate) bytes: u32,
    pub(crate) position: u64,
}

// SAFETY: a request is a set of numbers; whoever acts on one has the promise of `Driver::submit`
// that the memory and the descriptor stay, on whichever thread.
unsafe impl Send for Request {}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All bytes asked for, or a flush or call that is done.
    Done,
    /// So many bytes, perhaps fewer than asked for.
    Bytes(u32),
    /// The error number.
    Failed(i32),
}

/// News from a driver.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// An operation has ended; the kernel is done with its memory.
    Completed { token: Token, outcome: Outcome },
    /// A watched descriptor may be readable, or writable, since it was last found not to be.
    Ready { token: Token, readable: bool, writable: bool },
}

/// How long a driver may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: there is work.
    No,
    /// Until there is news or the doorbell rings.
    News,
    /// The same, but no longer than this.
    AtMost(Duration),
}

/// A call that blocks, done on a file thread.
pub(crate) type Call = Box<dyn FnOnce() + Send>;

/// One way to get I/O done on one thread.
pub(crate) trait Driver {
    /// Starts a transfer; one `Completed` event with its token follows, however it ends.
    ///
    /// # Safety
    /// The request's memory stays valid, and unused by others (unread, too, for a read), and its
    /// descriptor stays open until that event was returned by `poll`.
    unsafe fn submit(&mut self, token: Token, request: Request);

    /// Asks for an early end of a transfer. It still ends with its event.
    fn cancel(&mut self, token: Token);

    /// Runs a call on the file thread; a `Completed` event follows if a token was given.
    fn call(&mut self, token: Option<Token>, call: Call) -> io::Result<()>;

    /// Closes a file that no transfer uses any more, on the file thread: the last close of a deleted
    /// file frees its blocks, which takes long.
    fn close(&mut self, descriptor: OwnedFd) {
        // A thread that cannot be started drops the call, and with it what it holds.
        let _ = self.call(None, Box::new(move || drop(descriptor)));
    }

    /// Reports when the descriptor becomes readable, each time, until unwatched.
    fn watch(&mut self, token: Token, descriptor: RawFd) -> io::Result<()>;

    /// Reports once when the watched descriptor is writable.
    fn watch_writable(&mut self, token: Token, descriptor: RawFd) -> io::Result<()>;

    /// Stops reporting. Late events with this token may still come.
    fn unwatch(&mut self, token: Token, descriptor: RawFd);

    /// Hands everything submitted to the kernel, sleeps if allowed, and appends the news.
    fn poll(&mut self, wait: Wait, news: &mut Vec<Event>) -> io::Result<()>;

    /// How many system calls `poll` has made.
    fn enters(&self) -> u64;
}
