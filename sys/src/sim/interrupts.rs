//! The signals that ask a simulation to end before it is done. They come from the real host.

use std::mem::MaybeUninit;
use std::{io, ptr};

/// SIGINT and SIGTERM, which wait to be asked for instead of ending the process.
pub struct Interrupts {
    signals: libc::sigset_t,
}

impl Interrupts {
    /// Holds both back from the calling thread and from those that it starts from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn hold() -> io::Result<Self> {
        let mut signals = MaybeUninit::uninit();
        // SAFETY: the call writes the set and nothing else.
        unsafe { libc::sigemptyset(signals.as_mut_ptr()) };
        // SAFETY: written just now.
        let mut signals = unsafe { signals.assume_init() };
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: the set is ours and initialised.
            unsafe { libc::sigaddset(&raw mut signals, signal) };
        }
        // SAFETY: the set is initialised, and what was held back before is not asked for.
        let refused =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()) };
        match refused {
            0 => Ok(Self { signals }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Has one of them come since it was last asked?
    pub fn came(&self) -> bool {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set is initialised, and who sent the signal is not asked for.
        let signal = unsafe {
            libc::sigtimedwait(&raw const self.signals, ptr::null_mut(), &raw const at_once)
        };
        0 < signal
    }
}
