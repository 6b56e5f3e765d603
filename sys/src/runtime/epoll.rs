//! The driver over epoll, for hosts that deny io_uring.
//!
//! Sockets and the doorbell are watched by their edges. Files know no readiness: their transfers go
//! to two threads, one for what must be durable and one for everything else, so that a read from the
//! past or a call that takes milliseconds does not stand in the way of an acknowledgement.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use std::{io, ptr};

use super::RuntimeConfig;
use super::driver::{Call, Driver, Event, Kind, Request, Token, Wait};
use super::file_thread::FileThread;
use crate::doorbell::{Bell, Doorbell};

/// Events taken per call; more wait for the next turn.
const EVENTS_MAX: usize = 64;
/// What the doorbell's events are marked with: no token has all bits set.
const DOORBELL: u64 = u64::MAX;

pub(super) struct Epoll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
    flush_thread: Option<FileThread>,
    file_thread: Option<FileThread>,
    bell: Bell,
    core: Option<usize>,
    /// The kernel has `epoll_pwait2` (5.11); else timeouts are rounded up to milliseconds.
    exact_timeouts: bool,
    enters: u64,
}

impl Epoll {
    pub(super) fn new(config: &RuntimeConfig, doorbell: &Doorbell) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        let driver = Self {
            // SAFETY: the descriptor is new and nobody else's.
            epoll: unsafe { OwnedFd::from_raw_fd(epoll) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
            flush_thread: None,
            file_thread: None,
            bell: doorbell.bell(),
            core: config.core,
            exact_timeouts: true,
            enters: 0,
        };
        driver.control(libc::EPOLL_CTL_ADD, doorbell.as_raw_fd(), libc::EPOLLIN, DOORBELL)?;
        Ok(driver)
    }

    /// The epoll by another descriptor, for who waits on it from outside.
    #[cfg(feature = "glommio")]
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    fn control(&self, what: i32, descriptor: RawFd, events: i32, data: u64) -> io::Result<()> {
        let events = events.cast_unsigned() | libc::EPOLLET.cast_unsigned();
        let mut event = libc::epoll_event { events, u64: data };
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: reads one event.
        match unsafe { libc::epoll_ctl(epoll, what, descriptor, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits and returns how many events came.
    fn wait(&mut self, wait: Wait) -> io::Result<usize> {
        self.enters += 1;
        let mut count = -1;
        if self.exact_timeouts {
            count = self.wait_exactly(wait);
            if count < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
                self.exact_timeouts = false;
            }
        }
        if !self.exact_timeouts {
            let milliseconds = match wait {
                Wait::No => 0,
                Wait::News => -1,
                Wait::AtMost(timeout) => {
                    let up = timeout + Duration::from_nanos(999_999);
                    up.as_millis().try_into().unwrap_or(i32::MAX)
                }
            };
            let epoll = self.epoll.as_raw_fd();
            let room = EVENTS_MAX as i32;
            // SAFETY: writes at most as many events as there is room for.
            let result =
                unsafe { libc::epoll_wait(epoll, self.events.as_mut_ptr(), room, milliseconds) };
            count = result.into();
        }
        match usize::try_from(count) {
            Ok(count) => Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    fn wait_exactly(&mut self, wait: Wait) -> libc::c_long {
        let timeout = match wait {
            Wait::No => Some(Duration::ZERO),
            Wait::News => None,
            Wait::AtMost(timeout) => Some(timeout),
        };
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        // SAFETY: writes at most as many events as there is room for; the timeout is null or lives
        // until the call returns; no signal mask.
        unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX,
                timeout.as_ref().map_or(ptr::null(), ptr::from_ref),
                ptr::null::<libc::sigset_t>(),
                0usize,
            )
        }
    }

    pub(super) fn reap_threads(&mut self, news: &mut Vec<Event>) {
        for thread in [&mut self.flush_thread, &mut self.file_thread].into_iter().flatten() {
            thread.reap(news);
        }
    }
}

impl Driver for Epoll {
    unsafe fn submit(&mut self, token: Token, request: Request) {
        let (thread, name) = match request.kind {
            Kind::WriteDurable | Kind::Flush => (&mut self.flush_thread, "rustmq-flush"),
            Kind::Write | Kind::Read => (&mut self.file_thread, "rustmq-file"),
        };
        let thread = thread.get_or_insert_with(|| {
            FileThread::start(name, self.bell.clone(), self.core)
                .expect("a thread for file transfers can be started")
        });
        // SAFETY: the promise of this function's caller.
        unsafe { thread.transfer(token, request) };
    }

    fn cancel(&mut self, _token: Token) {
        // A blocking call cannot be called off; it ends by itself.
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
        self.control(libc::EPOLL_CTL_ADD, descriptor, libc::EPOLLIN, encode(token))
    }

    fn watch_writable(&mut self, token: Token, descriptor: RawFd) -> io::Result<()> {
        // Stays watched for both: told again of an edge it did not wait for, the source shrugs.
        let events = libc::EPOLLIN | libc::EPOLLOUT;
        self.control(libc::EPOLL_CTL_MOD, descriptor, events, encode(token))
    }

    fn unwatch(&mut self, _token: Token, descriptor: RawFd) {
        // Fails only if it is not watched.
        let _ = self.control(libc::EPOLL_CTL_DEL, descriptor, 0, 0);
    }

    fn poll(&mut self, wait: Wait, news: &mut Vec<Event>) -> io::Result<()> {
        self.reap_threads(news);
        let wait = if news.is_empty() { wait } else { Wait::No };
        let count = self.wait(wait)?;
        for event in &self.events[..count] {
            let (data, events) = (event.u64, event.events);
            if data == DOORBELL {
                continue;
            }
            let broken = (libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();
            let readable = events & (libc::EPOLLIN.cast_unsigned() | broken) != 0;
            let writable = events & (libc::EPOLLOUT.cast_unsigned() | broken) != 0;
            news.push(Event::Ready { token: decode(data), readable, writable });
        }
        self.reap_threads(news);
        Ok(())
    }

    fn enters(&self) -> u64 {
        self.enters
    }
}

fn encode(token: Token) -> u64 {
    u64::from(token.generation) << 32 | u64::from(token.index)
}

fn decode(data: u64) -> Token {
    Token { index: data as u32, generation: (data >> 32) as u32 }
}
