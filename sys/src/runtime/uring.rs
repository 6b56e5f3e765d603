//! The driver over io_uring: one plain ring per thread.
//!
//! `SINGLE_ISSUER`, and no kernel polling thread, which costs a core. One `io_uring_enter` a turn submits
//! everything and waits, with the next timer as its timeout. Where a write and its flush are linked,
//! nothing more: the kernel interrupts us to start the flush, which else would wait for our next turn.
//! Where a write is one operation it does not (`COOP_TASKRUN`): what it has for us it says in the ring,
//! and we come for it. On a virtual machine an interrupt costs both sides more than a turn's delay.
//!
//! A durable write is one write with `RWF_DSYNC`, or a write linked to an `fdatasync`; see [`FlushPlan`].
//! Of the linked ones the kernel starts the flush when the write has succeeded in full, and only the
//! flush reports. If the write fails or is short, it reports itself, and the kernel drops the flush
//! without a word: one report for the pair in every case.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::{fs, io};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use super::driver::{Call, Driver, Event, Kind, Outcome, Request, Token, Wait};
use super::file_thread::FileThread;
use super::overdue::{Overdue, PAUSE};
use super::{FlushPlan, RuntimeConfig};
use crate::doorbell::{Bell, Doorbell};
use crate::{clock, cpu};

/// Completions the kernel may post before we look, in multiples of submissions; past that it keeps
/// them aside, which costs memory in the kernel and a system call here.
const COMPLETIONS_PER_SUBMISSION: u32 = 4;

/// What a completion belongs to, in the top byte of its user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// A transfer of one submission.
    Transfer = 0,
    /// The write of a durable write: reports, for both, only if it fails or is short.
    LinkedWrite = 1,
    /// The flush of a durable write: reports, for both, if the write has succeeded.
    LinkedFlush = 2,
    Readable = 3,
    Writable = 4,
    Doorbell = 5,
    /// A cancellation: whether it found something does not matter.
    Cancel = 6,
    /// A durable write of one submission.
    WriteThrough = 7,
}

const TAGS: [Tag; 8] = [
    Tag::Transfer,
    Tag::LinkedWrite,
    Tag::LinkedFlush,
    Tag::Readable,
    Tag::Writable,
    Tag::Doorbell,
    Tag::Cancel,
    Tag::WriteThrough,
];

pub(super) struct Uring {
    ring: IoUring,
    /// What found no room in the ring, in order; the second of a pair is linked to the first.
    line: VecDeque<(Entry, Option<Entry>)>,
    /// Linked pairs are submitted whole or not at all: the positions, counted in submissions since
    /// the start, of the first of each pair not yet taken by the kernel.
    pairs: VecDeque<u64>,
    pushed: u64,
    doorbell: RawFd,
    /// To watch again when the kernel ends a watch by itself.
    watched: Vec<(Token, RawFd)>,
    file_thread: Option<FileThread>,
    bell: Bell,
    core: Option<usize>,
    flush_plan: FlushPlan,
    overdue: Overdue,
    enters: u64,
}

/// Whether io_uring can be used as this crate uses it; if not, why not.
pub fn probe_uring() -> Result<(), String> {
    build(8, FlushPlan::WriteThrough).map(drop).map_err(|error| error.to_string())
}

impl Uring {
    pub(super) fn new(config: &RuntimeConfig, doorbell: &Doorbell) -> io::Result<Self> {
        let ring = build(config.ring_entries, config.flush_plan)?;
        if let Some(set) = config.core.and_then(cpu::cores_without) {
            // Flushes run on kernel threads that inherit the pinning and would wait for this core
            // to be idle. Where the kernel refuses, they do just that.
            let _ = ring.submitter().register_iowq_aff(&set);
        }
        let mut driver = Self {
            ring,
            line: VecDeque::new(),
            pairs: VecDeque::new(),
            pushed: 0,
            doorbell: doorbell.as_raw_fd(),
            watched: Vec::new(),
            file_thread: None,
            bell: doorbell.bell(),
            core: config.core,
            flush_plan: config.flush_plan,
            overdue: Overdue::default(),
            enters: 0,
        };
        driver.watch_doorbell();
        Ok(driver)
    }

    fn watch_doorbell(&mut self) {
        let token = Token { index: 0, generation: 0 };
        self.push(watch_entry(self.doorbell, Tag::Doorbell, token), None);
    }

    /// Puts one or two linked submissions into the ring, or into line.
    fn push(&mut self, entry: Entry, linked: Option<Entry>) {
        if !self.line.is_empty() || !self.try_push(&entry, linked.as_ref()) {
            self.line.push_back((entry, linked));
        }
    }

    fn try_push(&mut self, entry: &Entry, linked: Option<&Entry>) -> bool {
        let mut queue = self.ring.submission();
        let count = 1 + usize::from(linked.is_some());
        if queue.capacity() - queue.len() < count {
            return false;
        }
        // SAFETY: what the entry points to stays until its completion: `Driver::submit`'s promise.
        let pushed = unsafe { queue.push(entry) };
        assert!(pushed.is_ok(), "the ring has room, as just counted");
        if let Some(linked) = linked {
            // SAFETY: as above.
            let pushed = unsafe { queue.push(linked) };
            assert!(pushed.is_ok(), "the ring has room, as just counted");
            self.pairs.push_back(self.pushed);
        }
        self.pushed += count as u64;
        true
    }

    /// Moves the line into the ring; true if something is left.
    fn advance_line(&mut self) -> bool {
        while let Some((entry, linked)) = self.line.pop_front() {
            if !self.try_push(&entry, linked.as_ref()) {
                self.line.push_front((entry, linked));
                return true;
            }
        }
        false
    }

    fn cancel_tags(&mut self, token: Token, tags: &[Tag]) {
        for tag in tags {
            let cancel = opcode::AsyncCancel::new(encode(*tag, token)).build();
            self.push(cancel.user_data(encode(Tag::Cancel, token)), None);
        }
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.enters += 1;
        let submitter = self.ring.submitter();
        let result = match wait {
            Wait::No => submitter.submit(),
            Wait::News => submitter.submit_and_wait(1),
            Wait::AtMost(timeout) => {
                let timeout = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
        };
        self.check_pairs();
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The timeout; a signal; completions to look at first; no memory at this moment.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The kernel may take fewer submissions than it was offered when it has no memory. A chain ends
    /// with what it takes: a pair cut in two would flush without waiting for its write, and say that
    /// a record is durable that is not. It has not been seen; should it happen, the process stops.
    fn check_pairs(&mut self) {
        let left = self.ring.submission().len() as u64;
        let taken = self.pushed - left;
        while let Some(first) = self.pairs.front().copied().filter(|first| *first < taken) {
            assert!(first + 1 < taken, "the kernel cut a write from its flush: out of memory");
            self.pairs.pop_front();
        }
    }

    /// Takes what the kernel has posted; true if the doorbell is among it.
    fn reap(&mut self, news: &mut Vec<Event>) -> bool {
        let (mut doorbell_rung, mut doorbell_ended) = (false, false);
        let mut ended = Vec::new();
        for completion in self.ring.completion() {
            let (tag, token) = decode(completion.user_data());
            let result = completion.result();
            let more = cqueue::more(completion.flags());
            if tag == Some(Tag::WriteThrough) {
                self.overdue.handle_ended(clock::now());
            }
            match tag {
                Some(Tag::Transfer | Tag::LinkedWrite | Tag::WriteThrough) => {
                    news.push(Event::Completed { token, outcome: outcome(result) });
                }
                Some(Tag::LinkedFlush) => {
                    let outcome = if result == 0 { Outcome::Done } else { outcome(result) };
                    news.push(Event::Completed { token, outcome });
                }
                Some(Tag::Readable) => {
                    news.push(Event::Ready { token, readable: true, writable: false });
                    if !more && result >= 0 {
                        ended.push(token);
                    }
                }
                Some(Tag::Writable) => {
                    news.push(Event::Ready { token, readable: false, writable: true });
                }
                Some(Tag::Doorbell) => {
                    doorbell_rung = true;
                    doorbell_ended |= !more;
                }
                Some(Tag::Cancel) | None => {}
            }
        }
        if doorbell_ended {
            self.watch_doorbell();
        }
        for token in ended {
            let watched = self.watched.iter().find(|(of, _)| *of == token).copied();
            if let Some((token, descriptor)) = watched {
                self.push(watch_entry(descriptor, Tag::Readable, token), None);
            }
        }
        doorbell_rung
    }
}

impl Driver for Uring {
    unsafe fn submit(&mut self, token: Token, request: Request) {
        let Request { kind, descriptor, memory, bytes, position } = request;
        let file = Fd(descriptor);
        let flush = || opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build();
        let write = || opcode::Write::new(file, memory, bytes).offset(position).build();
        let data = encode(Tag::Transfer, token);
        match kind {
            Kind::Write => self.push(write().user_data(data), None),
            Kind::Flush => self.push(flush().user_data(data), None),
            Kind::WriteDurable if self.flush_plan == FlushPlan::WriteThrough => {
                let write = opcode::Write::new(file, memory, bytes)
                    .offset(position)
                    .rw_flags(libc::RWF_DSYNC);
                self.overdue.handle_started(clock::now());
                self.push(write.build().user_data(encode(Tag::WriteThrough, token)), None);
            }
            Kind::WriteDurable => {
                let write = write()
                    .flags(Flags::IO_LINK | Flags::SKIP_SUCCESS)
                    .user_data(encode(Tag::LinkedWrite, token));
                let flush = flush().user_data(encode(Tag::LinkedFlush, token));
                self.push(write, Some(flush));
            }
            Kind::Read => {
                let read = opcode::Read::new(file, memory, bytes).offset(position).build();
                self.push(read.user_data(data), None);
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        let tags = [Tag::Transfer, Tag::WriteThrough, Tag::LinkedWrite, Tag::LinkedFlush];
        self.cancel_tags(token, &tags);
    }

    fn call(&mut self, token: Option<Token>, call: Call) -> io::Result<()> {
        if self.file_thread.is_none() {
            let thread = FileThread::start("rustmq-file", self.bell.clone(), self.core)?;
            self.file_thread = Some(thread);
        }
        if let Some(thread) = &mut self.file_thread {
            thread.call(token, call);
        }
        Ok(())
    }

    fn watch(&mut self, token: Token, descriptor: RawFd) -> io::Result<()> {
        self.watched.push((token, descriptor));
        self.push(watch_entry(descriptor, Tag::Readable, token), None);
        Ok(())
    }

    fn watch_writable(&mut self, token: Token, descriptor: RawFd) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(descriptor), POLL_WRITABLE).build();
        self.push(poll.user_data(encode(Tag::Writable, token)), None);
        Ok(())
    }

    fn unwatch(&mut self, token: Token, _descriptor: RawFd) {
        self.watched.retain(|(watched, _)| *watched != token);
        self.cancel_tags(token, &[Tag::Readable, Tag::Writable]);
    }

    fn poll(&mut self, wait: Wait, news: &mut Vec<Event>) -> io::Result<()> {
        // A ring of the doorbell since the owner announced its sleep is posted once. Taken here, it
        // is what the wait below would have waited for.
        let mut rung = false;
        // Each round hands a ring full to the kernel; what is in line gets shorter by as much.
        while self.advance_line() {
            let before = self.ring.submission().len();
            self.enter(Wait::No)?;
            rung |= self.reap(news);
            if self.ring.submission().len() == before {
                break;
            }
        }
        rung |= self.reap(news);
        if let Some(thread) = &mut self.file_thread {
            thread.reap(news);
        }
        let has_news = rung || !news.is_empty() || !self.line.is_empty();
        let wait = match wait {
            Wait::No if self.overdue.take_pause(clock::now()) => Wait::AtMost(PAUSE),
            _ if has_news => Wait::No,
            _ => wait,
        };
        let queue = self.ring.submission();
        if wait != Wait::No || !queue.is_empty() || queue.cq_overflow() || queue.taskrun() {
            drop(queue);
            self.enter(wait)?;
            self.reap(news);
        }
        Ok(())
    }

    fn enters(&self) -> u64 {
        self.enters
    }
}

const POLL_READABLE: u32 = libc::POLLIN as u32;
const POLL_WRITABLE: u32 = libc::POLLOUT as u32;

fn build(entries: u32, flush_plan: FlushPlan) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if flush_plan == FlushPlan::WriteThrough {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }
    let ring = builder
        .setup_single_issuer()
        .setup_submit_all()
        .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_SUBMISSION))
        .build(entries)
        .map_err(explain)?;
    let parameters = ring.params();
    let wanted = [
        ("timeouts of io_uring_enter", parameters.is_feature_ext_arg()),
        ("completions skipped on success", parameters.is_feature_skip_cqe_on_success()),
        ("no dropped completions", parameters.is_feature_nodrop()),
    ];
    match wanted.into_iter().find(|(_, there)| !there) {
        None => Ok(ring),
        Some((name, _)) => {
            let message =
                format!("io_uring of this kernel lacks {name}; Linux 6.0 or later has it");
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        }
    }
}

/// Why a ring could not be made, for whoever has to change it.
fn explain(error: io::Error) -> io::Error {
    let reason = match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel, or the container's seccomp filter, has no io_uring".into()
        }
        Some(libc::EPERM | libc::EACCES) => {
            let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match setting.as_deref().map(str::trim) {
                Ok(value @ ("1" | "2")) => {
                    format!("io_uring is denied: kernel.io_uring_disabled = {value}")
                }
                _ => "io_uring is denied, by a seccomp filter or a security module".into(),
            }
        }
        Some(libc::ENOMEM) => {
            "no memory may be locked for an io_uring: raise RLIMIT_MEMLOCK (ulimit -l)".into()
        }
        Some(libc::EINVAL) => {
            "io_uring refuses the settings: it needs Linux 6.0, and ring entries from 1 to 32768"
                .into()
        }
        _ => format!("io_uring cannot be set up: {error}"),
    };
    io::Error::new(error.kind(), reason)
}

fn watch_entry(descriptor: RawFd, tag: Tag, token: Token) -> Entry {
    let poll = opcode::PollAdd::new(Fd(descriptor), POLL_READABLE).multi(true).build();
    poll.user_data(encode(tag, token))
}

/// Tag, generation, index: 8, 24 and 32 bits.
fn encode(tag: Tag, token: Token) -> u64 {
    u64::from(tag as u8) << 56 | u64::from(token.generation) << 32 | u64::from(token.index)
}

fn decode(data: u64) -> (Option<Tag>, Token) {
    let tag = TAGS.into_iter().find(|tag| *tag as u64 == data >> 56);
    let generation = (data >> 32) as u32 & super::driver::GENERATION_MASK;
    (tag, Token { index: data as u32, generation })
}

fn outcome(result: i32) -> Outcome {
    match u32::try_from(result) {
        Ok(count) => Outcome::Bytes(count),
        Err(_) => Outcome::Failed(result.saturating_neg()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::{Backend, Polling};

    #[test]
    fn a_ring_before_the_wait_that_is_posted_already_ends_it() {
        if let Err(why) = probe_uring() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "io_uring cannot be used: {why}");
            println!("SKIPPED a_ring_before_the_wait_that_is_posted_already_ends_it: {why}");
            return;
        }
        let doorbell = Doorbell::new().expect("an eventfd");
        let (backend, core) = (Backend::Uring, None);
        let config = RuntimeConfig {
            backend,
            core,
            polling: Polling::Sleep,
            flush_plan: FlushPlan::WriteFlush,
            flush_delay: None,
            ring_entries: 8,
        };
        let mut driver = Uring::new(&config, &doorbell).expect("a ring");
        let mut news = Vec::new();
        driver.poll(Wait::No, &mut news).expect("the doorbell is watched");
        assert!(doorbell.prepare_sleep());
        // On this thread: the kernel posts it before the call that rings returns.
        doorbell.bell().ring();
        let enters = driver.enters();
        driver.poll(Wait::AtMost(Duration::from_millis(50)), &mut news).expect("no error");
        assert_eq!(driver.enters(), enters, "nothing is waited for");
    }
}
