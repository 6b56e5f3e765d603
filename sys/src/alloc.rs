//! Counts what marked threads ask of the allocator, and on whose behalf: the proof that the path of
//! a record allocates nothing of ours.
//!
//! And how many bytes they copy: `count_copies`.
//!
//! Code that calls into somebody else's state machine says so with a [`scope`]. Without the feature
//! `count-allocations` a scope is nothing and is compiled to nothing. With it, a test binary makes
//! `CountingAllocator` its global allocator, calls `count_this_thread` on the thread that it is
//! about, and compares `counts` before and after. Other threads are not counted and not slowed.

#[cfg(feature = "count-allocations")]
pub use counting::{
    COPY_BYTES_MIN, Copied, CountingAllocator, Counts, TRACES_MAX, copied, copy, count_this_thread,
    counts, take_traces, trace_ours,
};

/// On whose behalf memory is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Our own; this is what holds outside of any scope.
    Ours,
    /// The QUIC state machine's, TLS included.
    Quic,
}

/// Until this is dropped, what the thread asks for counts for another one.
#[derive(Debug)]
#[must_use = "a scope ends when it is dropped"]
pub struct Scope {
    #[cfg(feature = "count-allocations")]
    outer: Tag,
}

/// Begins a scope; scopes nest.
#[inline]
pub fn scope(tag: Tag) -> Scope {
    #[cfg(feature = "count-allocations")]
    return Scope { outer: counting::enter(tag) };
    #[cfg(not(feature = "count-allocations"))]
    {
        let _ = tag;
        Scope {}
    }
}

/// Runs `work` in a scope.
#[inline]
pub fn within<T>(tag: Tag, work: impl FnOnce() -> T) -> T {
    let _scope = scope(tag);
    work()
}

#[cfg(feature = "count-allocations")]
impl Drop for Scope {
    fn drop(&mut self) {
        counting::enter(self.outer);
    }
}

#[cfg(feature = "count-allocations")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::backtrace::Backtrace;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError};

    use super::Tag;

    /// 64: backtraces kept for a test to show; there are rarely more places than that.
    pub const TRACES_MAX: usize = 64;

    /// The system's allocator, which counts for the threads that asked for it.
    #[derive(Debug)]
    pub struct CountingAllocator;

    /// What the counted threads have asked for since the start. Growing in place counts too; giving
    /// back does not.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Counts {
        /// Requests on our own behalf.
        pub ours: u64,
        /// Bytes of those.
        pub ours_bytes: u64,
        /// Requests of the QUIC state machine.
        pub quic: u64,
        /// Bytes of those.
        pub quic_bytes: u64,
    }

    impl Counts {
        /// What was asked for since `earlier`.
        #[must_use]
        pub fn since(self, earlier: Self) -> Self {
            Self {
                ours: self.ours - earlier.ours,
                ours_bytes: self.ours_bytes - earlier.ours_bytes,
                quic: self.quic - earlier.quic,
                quic_bytes: self.quic_bytes - earlier.quic_bytes,
            }
        }
    }

    static OURS: AtomicU64 = AtomicU64::new(0);
    static OURS_BYTES: AtomicU64 = AtomicU64::new(0);
    static QUIC: AtomicU64 = AtomicU64::new(0);
    static QUIC_BYTES: AtomicU64 = AtomicU64::new(0);

    /// Backtraces still wanted of requests on our own behalf.
    static TRACES_WANTED: AtomicUsize = AtomicUsize::new(0);
    static TRACES: Mutex<Vec<String>> = Mutex::new(Vec::new());

    thread_local! {
        // Constant and without a destructor: asking for them never allocates.
        static COUNTED: Cell<bool> = const { Cell::new(false) };
        static TAG: Cell<Tag> = const { Cell::new(Tag::Ours) };
    }

    /// Counts what the calling thread asks for from now on.
    pub fn count_this_thread() {
        COUNTED.set(true);
    }

    /// 1024: copies that are shorter are not counted. They are headers, and values on their way from one
    /// function to another, of which a build without optimisation copies many. A payload comes in
    /// pieces as long as a datagram, and leaves in such.
    pub const COPY_BYTES_MIN: usize = 1024;

    /// Bytes that the counted threads have copied since the start, in the binary that says
    /// [`count_copies`](crate::count_copies).
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Copied {
        /// On our own behalf.
        pub ours: u64,
        /// By the QUIC state machine.
        pub quic: u64,
    }

    static OURS_COPIED: AtomicU64 = AtomicU64::new(0);
    static QUIC_COPIED: AtomicU64 = AtomicU64::new(0);

    /// What has been copied.
    pub fn copied() -> Copied {
        // Relaxed: as in `counts`.
        Copied {
            ours: OURS_COPIED.load(Ordering::Relaxed),
            quic: QUIC_COPIED.load(Ordering::Relaxed),
        }
    }

    /// `memmove`, which counts for the threads that asked for it.
    ///
    /// # Safety
    /// Both ranges are the caller's, to read and to write.
    pub unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
        // A thread at its very end has no marks any more, and is not counted.
        if COPY_BYTES_MIN <= bytes && COUNTED.try_with(Cell::get).unwrap_or(false) {
            let sum = match TAG.with(Cell::get) {
                Tag::Ours => &OURS_COPIED,
                Tag::Quic => &QUIC_COPIED,
            };
            sum.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let forwards = to.cast_const() <= from;
        for step in 0..bytes {
            // From the end on, where the ranges overlap so that the front would be lost.
            let index = if forwards { step } else { bytes - 1 - step };
            // Volatile, or the compiler makes a call of `memcpy` of this loop.
            // SAFETY: within what the caller may read.
            let byte = unsafe { from.wrapping_add(index).read_volatile() };
            // SAFETY: within what the caller may write.
            unsafe { to.wrapping_add(index).write_volatile(byte) };
        }
    }

    /// Makes every copy of the binary that says this go through [`copy`], whoever makes it: it defines
    /// `memcpy` and `memmove`, which come before those of the C library. Copies take many times as long.
    #[macro_export]
    macro_rules! count_copies {
        () => {
            #[unsafe(no_mangle)]
            unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
                // SAFETY: the caller promises more than that.
                unsafe { $crate::alloc::copy(to, from, bytes) };
                to
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
                // SAFETY: the caller promises that.
                unsafe { $crate::alloc::copy(to, from, bytes) };
                to
            }
        };
    }

    /// The sums over all counted threads.
    pub fn counts() -> Counts {
        // Relaxed: sums for a test that waits for answers of the counted thread by other means.
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Counts {
            ours: read(&OURS),
            ours_bytes: read(&OURS_BYTES),
            quic: read(&QUIC),
            quic_bytes: read(&QUIC_BYTES),
        }
    }

    /// Keeps backtraces of the next `count` requests on our own behalf, at most [`TRACES_MAX`].
    pub fn trace_ours(count: usize) {
        TRACES_WANTED.store(count.min(TRACES_MAX), Ordering::Relaxed);
    }

    /// The backtraces kept so far.
    pub fn take_traces() -> Vec<String> {
        std::mem::take(&mut *TRACES.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the tag of the thread and gives the one before.
    pub(super) fn enter(tag: Tag) -> Tag {
        TAG.replace(tag)
    }

    fn count(bytes: usize) {
        // A thread at its very end has no marks any more, and is not counted.
        if !COUNTED.try_with(Cell::get).unwrap_or(false) {
            return;
        }
        let (requests, sum) = match TAG.get() {
            Tag::Ours => (&OURS, &OURS_BYTES),
            Tag::Quic => (&QUIC, &QUIC_BYTES),
        };
        requests.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes as u64, Ordering::Relaxed);
        if TAG.get() == Tag::Ours {
            trace();
        }
    }

    fn trace() {
        let wanted = TRACES_WANTED
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |wanted| wanted.checked_sub(1));
        if wanted.is_err() {
            return;
        }
        // What the backtrace itself asks for is nobody's.
        COUNTED.set(false);
        let trace = Backtrace::force_capture().to_string();
        TRACES.lock().unwrap_or_else(PoisonError::into_inner).push(trace);
        COUNTED.set(true);
    }

    // SAFETY: every call is passed on to the system's allocator unchanged; counting touches no
    // memory that it hands out.
    unsafe impl GlobalAlloc for CountingAllocator {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count(layout.size());
            // SAFETY: the caller's promises are the system allocator's.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            count(layout.size());
            // SAFETY: as above.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, start: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
            count(bytes);
            // SAFETY: as above.
            unsafe { System.realloc(start, layout, bytes) }
        }

        unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
            // SAFETY: as above.
            unsafe { System.dealloc(start, layout) }
        }
    }
}
