//! Aligned memory of a fixed budget, shared by reference once it is written.
//!
//! ```text
//!   BufferPool --try_get--> Buffer (exclusive) --split_to / freeze--> Slice, Slice, ... (shared)
//!       ^                                                                    |
//!       +------------------- last one dropped, on any thread ----------------+
//! ```
//!
//! A [`Buffer`] is written by one owner; [`Buffer::split_to`] turns its front into a [`Slice`], which
//! nobody can change any more: it goes to the disk and to consumers at the same time without a copy.
//! [`Buffer::cut`] makes two exclusive ones of one, for reads side by side.
//! Memory is allocated when first needed, never above the budget, zeroed once, and then reused as it
//! is: a reused buffer holds old bytes, and whoever writes less than a block pads it.
//! At the limit [`BufferPool::try_get`] says no, and the caller pushes back on its clients.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::{fmt, slice};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;

use crate::sync::{Arc, AtomicUsize, Ordering, fence};

/// 4 KiB: what `O_DIRECT` asks of addresses, positions and lengths on every disk we know of, and a
/// page of memory.
pub const ALIGN: usize = 4096;

/// 2 MiB: a huge page of x86-64, and of arm64 with pages of 4 KiB. Buffers of so much or more ask for
/// them: one translation of an address instead of 512, which a virtual machine does in two dimensions.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The buffers of one shard. A handle: clones share the budget.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

/// Invariants: `used <= allocated <= budget`; a block is in `idle` or has references, never both;
/// only blocks of `buffer_bytes` become idle.
struct Shared {
    budget_bytes: usize,
    buffer_bytes: usize,
    /// Memory held from the allocator: in hands and idle.
    allocated: AtomicUsize,
    /// Memory in hands.
    used: AtomicUsize,
    idle: ArrayQueue<Box<Block>>,
}

/// One piece of memory with a count of the buffers and slices that look into it.
struct Block {
    references: AtomicUsize,
    memory: Memory,
    /// Set while the block is in hands; empty while idle, or pool and block would keep each other.
    pool: Option<Arc<Shared>>,
}

/// Memory from the allocator, freed on drop.
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

/// A counted reference to a block.
struct BlockRef(NonNull<Block>);

/// Exclusive aligned memory, readable and writable; what is left after the splits.
pub struct Buffer {
    block: BlockRef,
    start: NonNull<u8>,
    bytes: usize,
}

/// Shared immutable memory. Cloning counts a reference; the last one dropped returns the memory.
#[derive(Clone)]
pub struct Slice {
    block: BlockRef,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory is plain bytes with one owner; freeing works from any thread.
unsafe impl Send for Memory {}
// SAFETY: `&Memory` gives no access to the bytes; who may touch them is counted by `BlockRef`.
unsafe impl Sync for Memory {}
// SAFETY: the count is atomic, and the block is used by one thread alone only when the count says
// that no other reference is left.
unsafe impl Send for BlockRef {}
// SAFETY: as above; `&BlockRef` can only count up.
unsafe impl Sync for BlockRef {}
// SAFETY: a buffer's range is nobody else's, also when several are cut from one block.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` only reads, and writing needs `&mut Buffer`.
unsafe impl Sync for Buffer {}
// SAFETY: a slice's range is never written while a slice looks into it.
unsafe impl Send for Slice {}
// SAFETY: as above.
unsafe impl Sync for Slice {}

impl BufferPool {
    /// A pool that hands out buffers of `buffer_bytes`, never more than `budget_bytes` together.
    ///
    /// # Panics
    /// If `buffer_bytes` is zero or not a multiple of [`ALIGN`].
    pub fn new(budget_bytes: usize, buffer_bytes: usize) -> Self {
        assert!(
            buffer_bytes > 0 && buffer_bytes.is_multiple_of(ALIGN),
            "buffers are whole blocks of {ALIGN} bytes, not {buffer_bytes}"
        );
        Self {
            shared: Arc::new(Shared {
                budget_bytes,
                buffer_bytes,
                allocated: AtomicUsize::new(0),
                used: AtomicUsize::new(0),
                // Room for every buffer the budget allows: giving back never finds it full.
                idle: ArrayQueue::new((budget_bytes / buffer_bytes).max(1)),
            }),
        }
    }

    /// A buffer of [`buffer_bytes`](Self::buffer_bytes) if `bytes` fit into that; a dedicated one of
    /// `bytes` rounded up to [`ALIGN`], freed after use, if not. None: the budget is used up.
    pub fn try_get(&self, bytes: usize) -> Option<Buffer> {
        let mut block = if bytes <= self.shared.buffer_bytes {
            self.shared.pooled()?
        } else {
            self.shared.dedicated(bytes.checked_next_multiple_of(ALIGN)?)?
        };
        block.pool = Some(self.shared.clone());
        *block.references.get_mut() = 1;
        let bytes = block.memory.layout.size();
        self.shared.used.fetch_add(bytes, Ordering::Relaxed);
        let start = block.memory.start;
        Some(Buffer { block: BlockRef(NonNull::from(Box::leak(block))), start, bytes })
    }

    /// The size of the pooled buffers.
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// The most memory this pool ever holds.
    pub fn budget_bytes(&self) -> usize {
        self.shared.budget_bytes
    }

    /// Memory in hands now: buffers and slices not yet dropped.
    pub fn used_bytes(&self) -> usize {
        self.shared.used.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn pooled(&self) -> Option<Box<Block>> {
        if let Some(block) = self.idle.pop() {
            return Some(block);
        }
        if self.reserve(self.buffer_bytes) {
            return self.allocate(self.buffer_bytes);
        }
        // Another thread may have given one back meanwhile.
        self.idle.pop()
    }

    fn dedicated(&self, bytes: usize) -> Option<Box<Block>> {
        // Do not free idle buffers for a request that cannot be met anyway.
        if bytes > self.budget_bytes.saturating_sub(self.used.load(Ordering::Relaxed)) {
            return None;
        }
        while !self.reserve(bytes) {
            self.free(self.idle.pop()?);
        }
        self.allocate(bytes)
    }

    fn reserve(&self, bytes: usize) -> bool {
        self.allocated
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |allocated| {
                allocated.checked_add(bytes).filter(|sum| *sum <= self.budget_bytes)
            })
            .is_ok()
    }

    /// Memory already reserved. None if the system has none: to the caller that is the same as a
    /// budget used up.
    fn allocate(&self, bytes: usize) -> Option<Box<Block>> {
        let Some(memory) = Memory::zeroed(bytes) else {
            self.allocated.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        };
        Some(Box::new(Block { references: AtomicUsize::new(0), memory, pool: None }))
    }

    fn give_back(&self, block: Box<Block>) {
        let bytes = block.memory.layout.size();
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if bytes == self.buffer_bytes {
            if let Err(block) = self.idle.push(block) {
                self.free(block);
            }
        } else {
            self.free(block);
        }
    }

    fn free(&self, block: Box<Block>) {
        let bytes = block.memory.layout.size();
        // Freed before it is taken off the account: the sum is never above the budget.
        drop(block);
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Memory {
    fn zeroed(bytes: usize) -> Option<Self> {
        let align = if HUGE_PAGE_BYTES <= bytes { HUGE_PAGE_BYTES } else { ALIGN };
        let layout = Layout::from_size_align(bytes, align).ok().filter(|it| it.size() > 0)?;
        #[cfg(feature = "sim")]
        if let Some(memory) = kept::take(layout) {
            return Some(memory);
        }
        if align == ALIGN {
            // SAFETY: the layout's size is not zero.
            let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
            return Some(Self { start, layout });
        }
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // Before anything is touched. Where there are no huge pages, it is as it was.
        // SAFETY: whole huge pages of our own, of which nothing but how they are backed is changed.
        unsafe {
            libc::madvise(
                start.as_ptr().cast(),
                bytes - bytes % HUGE_PAGE_BYTES,
                libc::MADV_HUGEPAGE,
            )
        };
        // SAFETY: `bytes` of memory that is ours and may be written.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Some(Self { start, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        #[cfg(feature = "sim")]
        if kept::keep(self) {
            return;
        }
        // SAFETY: allocated with this layout, and the last reference is gone.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Memory that goes from one modelled host to the next on a thread: a simulation starts thousands of
/// them in a second, and each would zero more than it ever uses. What is in it is old, as in any buffer
/// that is used again; in a build with debug assertions it is junk, so that a test shows who reads what
/// nobody wrote.
#[cfg(feature = "sim")]
mod kept {
    use std::alloc::Layout;
    use std::cell::RefCell;

    use super::Memory;
    use crate::sim;

    /// 64: what three shards have at once. More is freed.
    const KEPT_MAX: usize = 64;

    thread_local! {
        static KEPT: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take(layout: Layout) -> Option<Memory> {
        if !sim::is_entered() {
            return None;
        }
        let memory = KEPT.with_borrow_mut(|kept| {
            let index = kept.iter().position(|memory| memory.layout == layout)?;
            Some(kept.swap_remove(index))
        })?;
        #[cfg(debug_assertions)]
        // SAFETY: nobody else knows of this memory.
        unsafe {
            memory.start.write_bytes(0xa5, layout.size())
        };
        Some(memory)
    }

    /// Keeps the memory instead of freeing it, if there is room. It is not the caller's any more then.
    pub(super) fn keep(memory: &Memory) -> bool {
        // At the end of a thread there is nothing to keep it in.
        let keep = |kept: &RefCell<Vec<Memory>>| {
            let mut kept = kept.try_borrow_mut().ok().filter(|kept| kept.len() < KEPT_MAX)?;
            kept.push(Memory { start: memory.start, layout: memory.layout });
            Some(())
        };
        sim::is_entered() && KEPT.try_with(keep).ok().flatten().is_some()
    }
}

impl BlockRef {
    fn block(&self) -> &Block {
        // SAFETY: the block lives while a reference is counted, and nobody holds it exclusively.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for BlockRef {
    fn clone(&self) -> Self {
        // Relaxed: there is a reference already, so the block cannot go away meanwhile.
        let before = self.block().references.fetch_add(1, Ordering::Relaxed);
        assert!(before < isize::MAX.unsigned_abs(), "references are leaked without end");
        Self(self.0)
    }
}

impl Drop for BlockRef {
    fn drop(&mut self) {
        // Release: what this reference read or wrote comes before the reuse of the memory.
        if self.block().references.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Acquire: pairs with the releases of all other references.
        fence(Ordering::Acquire);
        // SAFETY: made by `Box::leak` in `try_get`, and this was the last reference.
        let mut block = unsafe { Box::from_raw(self.0.as_ptr()) };
        if let Some(pool) = block.pool.take() {
            pool.give_back(block);
        }
    }
}

impl Buffer {
    /// Turns the first `bytes` into a shared, immutable slice; the buffer keeps the rest.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of [`ALIGN`] (the rest stays aligned) or more than is left.
    pub fn split_to(&mut self, bytes: usize) -> Slice {
        assert!(bytes.is_multiple_of(ALIGN), "splits at whole blocks of {ALIGN}, not at {bytes}");
        assert!(bytes <= self.bytes, "splits {bytes} bytes off {}", self.bytes);
        let slice = Slice { block: self.block.clone(), start: self.start, bytes };
        // SAFETY: within the block, or one past its end.
        self.start = unsafe { self.start.add(bytes) };
        self.bytes -= bytes;
        slice
    }

    /// Cuts the first `bytes` off as a buffer of their own, so that both may be written at once; this
    /// one keeps the rest. The memory comes back when neither is left.
    ///
    /// # Panics
    /// As [`split_to`](Self::split_to).
    #[must_use]
    pub fn cut(&mut self, bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(ALIGN), "cuts at whole blocks of {ALIGN}, not at {bytes}");
        assert!(bytes <= self.bytes, "cuts {bytes} bytes off {}", self.bytes);
        let front = Self { block: self.block.clone(), start: self.start, bytes };
        // SAFETY: within the block, or one past its end.
        self.start = unsafe { self.start.add(bytes) };
        self.bytes -= bytes;
        front
    }

    /// Where the memory begins, for the kernel to write to.
    pub(crate) fn memory(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Turns all that is left into a shared, immutable slice.
    pub fn freeze(self) -> Slice {
        Slice { block: self.block, start: self.start, bytes: self.bytes }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is initialised, in the block, and only this buffer may write it.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the ranges of slices split off lie before this one.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Slice {
    /// The same memory, narrowed to `range`.
    ///
    /// # Panics
    /// If the range is not within the slice.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end, "a range from {} to {}", range.start, range.end);
        assert!(range.end <= self.bytes, "up to {} of {} bytes", range.end, self.bytes);
        // SAFETY: within the block, or one past its end, as just checked.
        let start = unsafe { self.start.add(range.start) };
        Self { block: self.block.clone(), start, bytes: range.end - range.start }
    }

    /// The same memory as [`Bytes`], without a copy. Allocates a few words for the counting.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is initialised, in the block, and nobody writes it any more.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("budget_bytes", &self.budget_bytes())
            .field("buffer_bytes", &self.buffer_bytes())
            .field("used_bytes", &self.used_bytes())
            .finish()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_counted() {
        let pool = BufferPool::new(3 * 2 * ALIGN, 2 * ALIGN);
        let buffer = pool.try_get(1).expect("within the budget");
        assert_eq!(buffer.len(), 2 * ALIGN);
        assert!(buffer.as_ptr().addr().is_multiple_of(ALIGN));
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert_eq!(pool.used_bytes(), 2 * ALIGN);
        drop(buffer);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn the_budget_is_never_passed_and_what_comes_back_is_used_again() {
        let pool = BufferPool::new(2 * ALIGN, ALIGN);
        let (mut first, second) = (pool.try_get(1).expect("one"), pool.try_get(1).expect("two"));
        assert!(pool.try_get(1).is_none());
        first[0] = 7;
        let address = first.as_ptr();
        drop(first);
        let again = pool.try_get(ALIGN).expect("one came back");
        assert_eq!((again.as_ptr(), again[0]), (address, 7));
        drop((second, again));
    }

    #[test]
    fn a_large_request_is_met_by_freeing_idle_buffers_or_not_at_all() {
        let pool = BufferPool::new(4 * ALIGN, ALIGN);
        let buffers: Vec<_> = (0..4).map(|_| pool.try_get(1).expect("within")).collect();
        assert!(pool.try_get(2 * ALIGN).is_none());
        drop(buffers);
        let large = pool.try_get(3 * ALIGN - 5).expect("idle buffers make room");
        assert_eq!((large.len(), pool.used_bytes()), (3 * ALIGN, 3 * ALIGN));
        let small = pool.try_get(1).expect("one is left");
        assert!(pool.try_get(1).is_none());
        drop(large);
        assert_eq!(pool.used_bytes(), ALIGN);
        assert!(pool.try_get(4 * ALIGN).is_none());
        assert!(pool.try_get(usize::MAX).is_none());
        drop(small);
    }

    #[test]
    fn a_slice_keeps_its_bytes_while_the_rest_is_written() {
        let pool = BufferPool::new(4 * ALIGN, 4 * ALIGN);
        let mut buffer = pool.try_get(1).expect("within the budget");
        buffer[..ALIGN].fill(1);
        let first = buffer.split_to(ALIGN);
        buffer.fill(2);
        let rest = buffer.freeze();
        assert!(first.iter().all(|byte| *byte == 1));
        assert_eq!(rest.len(), 3 * ALIGN);
        let middle = first.slice(10..20);
        drop((first, rest));
        assert_eq!(pool.used_bytes(), 4 * ALIGN, "a slice of ten bytes pins the block");
        assert_eq!(&*middle, [1; 10]);
        let bytes = middle.into_bytes();
        assert_eq!(bytes.slice(5..).len(), 5);
        drop(bytes);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn the_last_slice_may_be_dropped_on_another_thread() {
        let pool = BufferPool::new(8 * ALIGN, ALIGN);
        for round in 0..500usize {
            let mut buffer = pool.try_get(1).expect("all others came back");
            buffer.fill((round % 251) as u8);
            let slice = buffer.freeze();
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let slice = slice.clone();
                    std::thread::spawn(move || assert_eq!(slice[9], (round % 251) as u8))
                })
                .collect();
            drop(slice);
            threads.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
            assert_eq!(pool.used_bytes(), 0);
        }
    }

    #[test]
    fn memory_outlives_the_handle_of_its_pool() {
        let pool = BufferPool::new(ALIGN, ALIGN);
        let mut buffer = pool.try_get(1).expect("within the budget");
        drop(pool);
        buffer.fill(3);
        assert_eq!(buffer.freeze()[ALIGN - 1], 3);
    }

    #[test]
    fn buffers_cut_from_one_are_written_apart_and_give_it_back_together() {
        let pool = BufferPool::new(4 * ALIGN, 4 * ALIGN);
        let mut rest = pool.try_get(1).expect("within the budget");
        let mut front = rest.cut(ALIGN);
        let mut middle = rest.cut(2 * ALIGN);
        front.fill(1);
        middle.fill(2);
        rest.fill(3);
        assert_eq!((front.len(), middle.len(), rest.len()), (ALIGN, 2 * ALIGN, ALIGN));
        let front = front.freeze();
        drop((rest, middle));
        assert!(front.iter().all(|byte| *byte == 1));
        assert_eq!(pool.used_bytes(), 4 * ALIGN, "the first is still in hands");
        drop(front);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    #[should_panic(expected = "splits at whole blocks")]
    fn a_split_within_a_block_is_refused() {
        let pool = BufferPool::new(ALIGN, ALIGN);
        pool.try_get(1).expect("within the budget").split_to(100);
    }
}
