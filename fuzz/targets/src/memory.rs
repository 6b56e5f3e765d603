//! What a decoder asks of the allocator is held against the length of what it was given.

use rustmq_sys::alloc::{self, CountingAllocator};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Bytes that any decoder may ask for whatever its input: an error with its text, a first small
/// list, a list of chunks.
const ASKED_BYTES_MIN: u64 = 1024;

/// What something may ask of the allocator. Every request counts, so a list that doubles costs
/// twice its length.
pub(crate) struct Bound {
    /// Bytes, whatever the input.
    pub(crate) base: u64,
    /// Bytes for each byte of the input.
    pub(crate) per_byte: u64,
}

impl Bound {
    /// So many bytes for each byte of the input, beside what an error takes.
    pub(crate) const fn per_byte(per_byte: u64) -> Self {
        Self { base: ASKED_BYTES_MIN, per_byte }
    }
}

/// Runs `work` and holds all that it asked of the allocator against `bound`.
///
/// # Panics
/// If it asked for more: a length was believed before it was held against the bytes.
pub(crate) fn bounded<T>(input_bytes: usize, bound: &Bound, work: impl FnOnce() -> T) -> T {
    let (result, asked) = asked_bytes(work);
    let allowed = bound.base + bound.per_byte * input_bytes as u64;
    assert!(asked <= allowed, "{asked} bytes asked for {input_bytes}, {allowed} are allowed");
    result
}

/// Runs `work`, which may not ask for memory at all.
///
/// # Panics
/// If it did.
pub(crate) fn without_memory<T>(work: impl FnOnce() -> T) -> T {
    let (result, asked) = asked_bytes(work);
    assert!(asked == 0, "{asked} bytes asked for by what allocates nothing");
    result
}

fn asked_bytes<T>(work: impl FnOnce() -> T) -> (T, u64) {
    alloc::count_this_thread();
    let before = alloc::counts();
    let result = work();
    (result, alloc::counts().since(before).ours_bytes)
}
