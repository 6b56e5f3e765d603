//! Wakes a thread that may be asleep after something was pushed to one of its rings.
//!
//! ```text
//!   ringing thread                              owner of the doorbell
//!   push to the ring                            sleeping = true
//!   pending: false -> true                      fence
//!   fence                                       pending?  yes: do not sleep
//!   sleeping: true -> false?  write eventfd               no: wait on the eventfd
//! ```
//!
//! Each side writes its own flag, then reads the other's, with a fence between: one of the two sees
//! the other, so a wake-up is never lost, and an awake owner costs the ringing thread no system call.
//! Whoever finds `pending` already set leaves: the one who set it looks after the wake-up, and the
//! owner, who clears `pending` before it looks into its rings, will see both pushes.

#[cfg(not(loom))]
use std::os::fd::{AsRawFd, RawFd};
use std::{fmt, io, time::Duration};

use crossbeam_utils::CachePadded;

use crate::sync::{Arc, AtomicBool, Ordering, fence};
use signal::Signal;

struct Shared {
    /// Rung since the owner looked last.
    pending: CachePadded<AtomicBool>,
    /// The owner is about to wait, or waits, on the signal.
    sleeping: CachePadded<AtomicBool>,
    signal: Signal,
}

/// The owner's side; one per thread that sleeps. Ends with its owner; bells left over ring unheard.
pub struct Doorbell {
    shared: Arc<Shared>,
}

/// The ringing side: any number, on any thread.
#[derive(Clone)]
pub struct Bell {
    shared: Arc<Shared>,
}

impl Doorbell {
    /// A doorbell with its eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                pending: CachePadded::new(AtomicBool::new(false)),
                sleeping: CachePadded::new(AtomicBool::new(false)),
                signal: Signal::new()?,
            }),
        })
    }

    /// A bell that rings here.
    pub fn bell(&self) -> Bell {
        Bell { shared: self.shared.clone() }
    }

    /// Whether it was rung since the last call. Everything pushed before such a ring is visible
    /// after this, so the owner looks into its rings after asking, never before.
    pub fn take_pending(&self) -> bool {
        // Acquire: pairs with the ringing threads' release; their chain of swaps keeps every one
        // of them in it. The owner has nothing to release to them.
        self.shared.pending.load(Ordering::Relaxed)
            && self.shared.pending.swap(false, Ordering::Acquire)
    }

    /// Whether it was rung since the last [`take_pending`](Self::take_pending), and stays so.
    pub(crate) fn is_pending(&self) -> bool {
        self.shared.pending.load(Ordering::Relaxed)
    }

    /// Announces that the owner is going to sleep. True: it may wait for the descriptor, and calls
    /// [`awake`](Self::awake) afterwards. False: it was rung meanwhile and must look first.
    pub fn prepare_sleep(&self) -> bool {
        // All changes of a flag are swaps: one order of them that every side agrees on. Relaxed: the
        // flag guards no memory, and the fences order it against `pending`.
        self.shared.sleeping.swap(true, Ordering::Relaxed);
        // Pairs with the fence in `ring`: either this sees `pending`, or that sees `sleeping`.
        fence(Ordering::SeqCst);
        if self.shared.pending.load(Ordering::Relaxed) {
            self.awake();
            return false;
        }
        true
    }

    /// Takes the announcement back, so that bells save themselves the system call.
    pub fn awake(&self) {
        self.shared.sleeping.swap(false, Ordering::Relaxed);
    }

    /// Makes the descriptor unreadable again. Only owners that wait for a level need it: an
    /// edge-triggered wait sees each ring anyway.
    pub fn drain(&self) {
        self.shared.signal.drain();
    }

    /// Sleeps until rung or until `timeout` is over, for owners that have nothing else to wait for.
    /// Returns at once if it was rung since the last [`take_pending`](Self::take_pending).
    pub fn park(&self, timeout: Option<Duration>) {
        if self.prepare_sleep() {
            self.shared.signal.wait(timeout);
            self.drain();
            self.awake();
        }
    }
}

#[cfg(not(loom))]
impl AsRawFd for Doorbell {
    /// The eventfd: readable after a ring that found the owner asleep. Never blocks.
    fn as_raw_fd(&self) -> RawFd {
        self.shared.signal.as_raw_fd()
    }
}

impl Bell {
    /// Tells the owner to look into its rings. Call it after the push, once per batch.
    pub fn ring(&self) {
        // Release: what was pushed before is visible to the owner that takes `pending`.
        // A swap and not a store: the owner acquires from the last of a chain of swaps.
        if self.shared.pending.swap(true, Ordering::Release) {
            return;
        }
        // Pairs with the fence in `prepare_sleep`.
        fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::Relaxed)
            && self.shared.sleeping.swap(false, Ordering::Relaxed)
        {
            self.shared.signal.notify();
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

/// What a sleeper sleeps on: an eventfd.
#[cfg(not(loom))]
mod signal {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
    use std::{io, ptr, time::Duration};

    pub(super) struct Signal(OwnedFd);

    impl Signal {
        pub(super) fn new() -> io::Result<Self> {
            // SAFETY: takes no pointers.
            let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new and nobody else's.
            Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
        }

        pub(super) fn notify(&self) {
            let one = 1u64;
            // The one way to fail is a counter at its maximum, and then it is readable already.
            // SAFETY: reads the eight bytes of `one`.
            unsafe { libc::write(self.as_raw_fd(), ptr::from_ref(&one).cast(), size_of::<u64>()) };
        }

        pub(super) fn drain(&self) {
            let mut count = 0u64;
            // Fails with EAGAIN if there is nothing to drain.
            // SAFETY: writes at most the eight bytes of `count`.
            unsafe {
                libc::read(self.as_raw_fd(), ptr::from_mut(&mut count).cast(), size_of::<u64>())
            };
        }

        pub(super) fn wait(&self, timeout: Option<Duration>) {
            let mut poll = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = timeout.map(|timeout| libc::timespec {
                tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            });
            let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
            // An early return, also by a signal, is a spurious wake-up and the owner looks again.
            // SAFETY: one pollfd, and a timeout that is null or lives until the call returns.
            unsafe { libc::ppoll(&raw mut poll, 1, timeout, ptr::null()) };
        }
    }

    impl AsRawFd for Signal {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }
}

/// What a sleeper sleeps on under loom, which knows no eventfd: a counter and a condition.
#[cfg(loom)]
mod signal {
    use loom::sync::{Condvar, Mutex};
    use std::{io, time::Duration};

    pub(super) struct Signal {
        count: Mutex<u64>,
        changed: Condvar,
    }

    impl Signal {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self { count: Mutex::new(0), changed: Condvar::new() })
        }

        pub(super) fn notify(&self) {
            *self.count.lock().expect("no holder panics") += 1;
            self.changed.notify_one();
        }

        pub(super) fn drain(&self) {
            *self.count.lock().expect("no holder panics") = 0;
        }

        /// Loom has no time: waits without end, and a lost wake-up is found as a deadlock.
        pub(super) fn wait(&self, _timeout: Option<Duration>) {
            let mut count = self.count.lock().expect("no holder panics");
            while *count == 0 {
                count = self.changed.wait(count).expect("no holder panics");
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_ring_before_the_sleep_forbids_it() {
        let doorbell = Doorbell::new().expect("an eventfd");
        assert!(!doorbell.take_pending());
        doorbell.bell().ring();
        assert!(!doorbell.prepare_sleep());
        assert!(doorbell.take_pending());
        assert!(!doorbell.take_pending());
        assert!(doorbell.prepare_sleep());
    }

    #[test]
    fn a_sleeper_is_woken_from_another_thread() {
        let doorbell = Doorbell::new().expect("an eventfd");
        let bell = doorbell.bell();
        let start = Instant::now();
        let ringing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            bell.ring();
        });
        while !doorbell.take_pending() {
            doorbell.park(Some(Duration::from_secs(20)));
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        ringing.join().expect("the ringing thread ends");
    }

    #[test]
    fn an_awake_owner_gets_no_signal() {
        let doorbell = Doorbell::new().expect("an eventfd");
        doorbell.bell().ring();
        assert!(doorbell.take_pending());
        let start = Instant::now();
        doorbell.park(Some(Duration::from_millis(10)));
        assert!(start.elapsed() >= Duration::from_millis(9), "nothing was left to wake for");
    }
}
