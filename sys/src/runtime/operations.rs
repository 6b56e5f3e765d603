//! The transfers in flight on one runtime. The table owns their buffers and files until the kernel
//! has answered, whatever became of the future that waits.
//!
//! ```text
//!   start --> in flight --> done --> taken by its future
//!                 |
//!                 +--(future dropped)--> orphan --(answer)--> freed
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::Waker;

use super::driver::{GENERATION_MASK, Kind, Outcome, Request, Token};
use crate::buffer::{ALIGN, Buffer, Slice};
use crate::file::Descriptor;

/// How often a transfer is asked for again when the kernel says it was interrupted or busy, before
/// that is reported. More than any sane signal handler causes.
const RETRIES_MAX: u32 = 1000;

/// What is asked of a file, with the memory it needs.
pub(crate) enum Operation {
    Write {
        file: Arc<Descriptor>,
        data: Slice,
        position: u64,
        durable: bool,
    },
    Flush {
        file: Arc<Descriptor>,
    },
    Read {
        file: Arc<Descriptor>,
        buffer: Buffer,
        position: u64,
        bytes: usize,
    },
    /// A call on the file thread, which keeps its own data.
    Call,
}

/// A finished operation: its result and, with its buffer, itself.
pub(crate) type Finished = (io::Result<usize>, Operation);

enum State {
    Free,
    InFlight { operation: Operation, waker: Option<Waker>, orphan: bool },
    Done(Finished),
}

struct Entry {
    generation: u32,
    state: State,
    /// Bytes transferred by earlier requests of this operation, and how often it was asked again.
    progress: usize,
    retries: u32,
}

/// Grows with the operations that are awaited at once, and so with the tasks.
#[derive(Default)]
pub(super) struct Operations {
    entries: Vec<Entry>,
    free: Vec<u32>,
    in_flight: usize,
}

/// What an answer leads to.
pub(super) enum Next {
    /// Nobody waits for it; what is left is dropped by the caller, outside of any borrow.
    Nothing(#[expect(dead_code, reason = "held for its drop")] Option<Finished>),
    /// Somebody waits for it.
    Wake(Waker),
    /// Part of it is left to do.
    Resubmit(Request),
}

impl Operations {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn start(&mut self, operation: Operation) -> (Token, Option<Request>) {
        let index = self.free.pop().unwrap_or_else(|| {
            let entry = Entry { generation: 0, state: State::Free, progress: 0, retries: 0 };
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("fewer operations than 2^32")
        });
        let entry = &mut self.entries[index as usize];
        let request = request(&operation, 0);
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        entry.state = State::InFlight { operation, waker: None, orphan: false };
        (entry.progress, entry.retries) = (0, 0);
        self.in_flight += 1;
        (Token { index, generation: entry.generation }, request)
    }

    /// The result, if it is there; else `waker` is told when it is.
    pub(super) fn poll(&mut self, token: Token, waker: &Waker) -> Option<Finished> {
        let entry = self.get(token)?;
        if let State::InFlight { waker: current, .. } = &mut entry.state {
            match current {
                Some(current) => current.clone_from(waker),
                None => *current = Some(waker.clone()),
            }
            return None;
        }
        let state = std::mem::replace(&mut entry.state, State::Free);
        self.free.push(token.index);
        match state {
            State::Done(finished) => Some(finished),
            State::Free | State::InFlight { .. } => None,
        }
    }

    /// The future is gone. True: the operation is in flight and may be cancelled. A result that
    /// nobody took is given back to be dropped outside of any borrow.
    pub(super) fn abandon(&mut self, token: Token) -> (bool, Option<Finished>) {
        let Some(entry) = self.get(token) else { return (false, None) };
        match std::mem::replace(&mut entry.state, State::Free) {
            State::InFlight { operation, .. } => {
                entry.state = State::InFlight { operation, waker: None, orphan: true };
                (true, None)
            }
            State::Done(finished) => {
                self.free.push(token.index);
                (false, Some(finished))
            }
            State::Free => (false, None),
        }
    }

    /// An answer of the driver.
    pub(super) fn complete(&mut self, token: Token, outcome: Outcome) -> Next {
        let Some(entry) = self.get(token) else { return Next::Nothing(None) };
        let (operation, waker, orphan) = match std::mem::replace(&mut entry.state, State::Free) {
            State::InFlight { operation, waker, orphan } => (operation, waker, orphan),
            other => {
                entry.state = other;
                return Next::Nothing(None);
            }
        };
        let step = step(&operation, entry.progress, outcome);
        let may_retry = !orphan && entry.retries < RETRIES_MAX;
        let result = match step {
            Step::Finished(result) => result,
            Step::Again { .. } if !may_retry => Err(io::Error::from_raw_os_error(match outcome {
                Outcome::Failed(error) => error,
                Outcome::Done | Outcome::Bytes(_) => libc::EIO,
            })),
            Step::Again { progress } => {
                if progress == entry.progress {
                    entry.retries += 1;
                }
                entry.progress = progress;
                if let Some(request) = request(&operation, progress) {
                    entry.state = State::InFlight { operation, waker, orphan };
                    return Next::Resubmit(request);
                }
                Ok(progress)
            }
        };
        if orphan {
            self.free.push(token.index);
            self.in_flight -= 1;
            return Next::Nothing(Some((result, operation)));
        }
        entry.state = State::Done((result, operation));
        self.in_flight -= 1;
        waker.map_or(Next::Nothing(None), Next::Wake)
    }

    fn get(&mut self, token: Token) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(token.index as usize)?;
        (entry.generation == token.generation).then_some(entry)
    }
}

/// What is left of an operation after `progress` bytes, as a request.
fn request(operation: &Operation, progress: usize) -> Option<Request> {
    let (kind, file, memory, bytes, position) = match operation {
        Operation::Write { file, data, position, durable } => {
            let kind = if *durable { Kind::WriteDurable } else { Kind::Write };
            let rest = data.get(progress..)?;
            (kind, file, rest.as_ptr().cast_mut(), rest.len(), *position)
        }
        Operation::Flush { file } => (Kind::Flush, file, std::ptr::null_mut(), 0, 0),
        Operation::Read { file, buffer, position, bytes } => {
            let rest = bytes.checked_sub(progress)?;
            (Kind::Read, file, buffer.memory().wrapping_add(progress), rest, *position)
        }
        Operation::Call => return None,
    };
    let bytes = u32::try_from(bytes).expect("a transfer is checked against TRANSFER_BYTES_MAX");
    let position = position + progress as u64;
    Some(Request { kind, descriptor: file.as_raw_fd(), memory, bytes, position })
}

enum Step {
    Finished(io::Result<usize>),
    Again { progress: usize },
}

/// Whether an answer ends the operation. A short transfer is completed: a write by writing the rest,
/// a read by reading on, until the end of the file shows as nothing more or as a part of a block.
fn step(operation: &Operation, progress: usize, outcome: Outcome) -> Step {
    let (wanted, write) = match operation {
        Operation::Write { data, .. } => (data.len(), true),
        Operation::Read { bytes, .. } => (*bytes, false),
        Operation::Flush { .. } | Operation::Call => (0, false),
    };
    match outcome {
        Outcome::Done => Step::Finished(Ok(wanted)),
        Outcome::Failed(libc::EINTR | libc::EAGAIN) => Step::Again { progress },
        Outcome::Failed(error) => Step::Finished(Err(io::Error::from_raw_os_error(error))),
        Outcome::Bytes(count) => {
            let progress = progress + count as usize;
            if progress >= wanted {
                Step::Finished(Ok(wanted))
            } else if write && count == 0 {
                Step::Finished(Err(io::ErrorKind::WriteZero.into()))
            } else if !write && (count == 0 || !progress.is_multiple_of(ALIGN)) {
                Step::Finished(Ok(progress))
            } else {
                Step::Again { progress }
            }
        }
    }
}
