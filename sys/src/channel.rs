//! A bounded ring between exactly two threads: one pushes, one pops, neither ever waits.
//!
//! ```text
//!        head (the receiver's)         tail (the sender's)
//!          v                             v
//!   | .. | 4 | 5 | 6 | 7 | 8 | 9 | 10 | .. | .. |      index = count modulo capacity
//! ```
//!
//! Head and tail only grow. A slot belongs to the receiver from the release of the tail that covers
//! it until the release of the head that passes it. Each side keeps the other's last seen count, so
//! that a busy ring touches the other core's cache line once per lap and not once per value.
//!
//! A full ring refuses and gives the value back: the sender pushes back on whoever asked. Waking the
//! receiver is a [`Bell`](crate::doorbell::Bell)'s work, once per batch and not once per value.

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell};

struct Ring<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    head: CachePadded<AtomicUsize>,
    tail: CachePadded<AtomicUsize>,
    sender_gone: AtomicBool,
    receiver_gone: AtomicBool,
}

// SAFETY: a slot is touched by one side at a time, as head and tail hand it over; values move
// between the two threads, which `T: Send` allows.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above; `&Ring` gives access to slots only through the one sender and the one receiver.
unsafe impl<T: Send> Sync for Ring<T> {}

/// The pushing end. Lives on one thread at a time; dropping it closes the ring for the receiver.
pub struct Sender<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    head_seen: usize,
}

/// The popping end. Lives on one thread at a time; dropping it closes the ring for the sender, and
/// what is still in it is dropped with the last end.
pub struct Receiver<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    tail_seen: usize,
}

/// A ring of `capacity` values.
///
/// # Panics
/// If `capacity` is not a power of two.
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity.is_power_of_two(), "a ring's capacity is a power of two, not {capacity}");
    let ring = Arc::new(Ring {
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        sender_gone: AtomicBool::new(false),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender { ring: ring.clone(), tail: 0, head_seen: 0 }, Receiver { ring, head: 0, tail_seen: 0 })
}

impl<T: Send> Sender<T> {
    /// Appends `value`, or gives it back when the ring is full.
    pub fn try_push(&mut self, value: T) -> Result<(), T> {
        if self.free_at_least(1) == 0 {
            return Err(value);
        }
        // SAFETY: the slot at the tail is free, as just counted, and only this sender fills slots.
        unsafe { self.ring.fill(self.tail, value) };
        self.publish(self.tail.wrapping_add(1));
        Ok(())
    }

    /// Moves values from the front of `values` until it is empty or the ring is full, makes them
    /// visible together, and returns how many it moved.
    pub fn push_batch(&mut self, values: &mut VecDeque<T>) -> usize {
        let count = self.free_at_least(values.len()).min(values.len());
        for (index, value) in values.drain(..count).enumerate() {
            // SAFETY: `count` slots from the tail on are free, and only this sender fills slots.
            unsafe { self.ring.fill(self.tail.wrapping_add(index), value) };
        }
        if count > 0 {
            self.publish(self.tail.wrapping_add(count));
        }
        count
    }

    /// How many values are certain to fit now. Only grows until this end pushes.
    pub fn free(&self) -> usize {
        // Relaxed: only counts. The push that follows sees this head or a later one, and acquires.
        self.ring.capacity() - self.tail.wrapping_sub(self.ring.head.load(Ordering::Relaxed))
    }

    /// Whether the receiver is gone: nobody will ever pop what is pushed, and [`free`](Self::free)
    /// says what was popped before.
    pub fn is_closed(&self) -> bool {
        // Acquire: pairs with the receiver's drop, so that its last pop is counted after this.
        self.ring.receiver_gone.load(Ordering::Acquire)
    }

    /// Free slots, looking at the receiver's line only if fewer than `wanted` are known to be free.
    fn free_at_least(&mut self, wanted: usize) -> usize {
        let known = self.ring.capacity() - self.tail.wrapping_sub(self.head_seen);
        if known >= wanted {
            return known;
        }
        // Acquire: pairs with the receiver's release of the head, after it has read the slots.
        self.head_seen = self.ring.head.load(Ordering::Acquire);
        self.ring.capacity() - self.tail.wrapping_sub(self.head_seen)
    }

    fn publish(&mut self, tail: usize) {
        self.tail = tail;
        // Release: pairs with the receiver's acquire of the tail, before it reads the slots.
        self.ring.tail.store(tail, Ordering::Release);
    }
}

impl<T: Send> Receiver<T> {
    /// The oldest value, or nothing when the ring is empty.
    pub fn try_pop(&mut self) -> Option<T> {
        if self.filled_at_least(1) == 0 {
            return None;
        }
        // SAFETY: the slot at the head is filled, as just counted, and only this receiver empties.
        let value = unsafe { self.ring.empty(self.head) };
        self.publish(self.head.wrapping_add(1));
        Some(value)
    }

    /// Moves at most `max` values to the end of `out`, oldest first, and returns how many.
    pub fn pop_batch(&mut self, out: &mut Vec<T>, max: usize) -> usize {
        let count = self.filled_at_least(max).min(max);
        // Before any value leaves its slot: growing may panic, and a value must have one owner.
        out.reserve(count);
        for index in 0..count {
            // SAFETY: `count` slots from the head on are filled, and only this receiver empties.
            out.push(unsafe { self.ring.empty(self.head.wrapping_add(index)) });
        }
        if count > 0 {
            self.publish(self.head.wrapping_add(count));
        }
        count
    }

    /// Whether nothing can be popped now.
    pub fn is_empty(&self) -> bool {
        // Relaxed: only compares. The pop that follows sees this tail or a later one, and acquires.
        self.ring.tail.load(Ordering::Relaxed) == self.head
    }

    /// Whether the sender is gone. Values pushed before may still be there: once this is true, pop
    /// until the ring is empty and nothing more will come.
    pub fn is_closed(&self) -> bool {
        // Acquire: pairs with the sender's drop, so that its last push is visible after this.
        self.ring.sender_gone.load(Ordering::Acquire)
    }

    /// Filled slots, looking at the sender's line only if fewer than `wanted` are known.
    fn filled_at_least(&mut self, wanted: usize) -> usize {
        let known = self.tail_seen.wrapping_sub(self.head);
        if known >= wanted {
            return known;
        }
        // Acquire: pairs with the sender's release of the tail, after it has filled the slots.
        self.tail_seen = self.ring.tail.load(Ordering::Acquire);
        self.tail_seen.wrapping_sub(self.head)
    }

    fn publish(&mut self, head: usize) {
        self.head = head;
        // Release: pairs with the sender's acquire of the head, before it fills the slots again.
        self.ring.head.store(head, Ordering::Release);
    }
}

impl<T> Ring<T> {
    fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn slot(&self, count: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // The capacity is a power of two, so that the index stays right when counts wrap around.
        &self.slots[count & (self.slots.len() - 1)]
    }

    /// # Safety
    /// The slot is free and this is the sending side.
    unsafe fn fill(&self, count: usize, value: T) {
        self.slot(count).with_mut(|slot| {
            // SAFETY: the pointer is to a slot that is nobody else's, by this function's contract.
            let slot = unsafe { &mut *slot };
            slot.write(value);
        });
    }

    /// # Safety
    /// The slot is filled and this is the receiving side, which will not read it again.
    unsafe fn empty(&self, count: usize) -> T {
        self.slot(count).with(|slot| {
            // SAFETY: the pointer is to a slot that is nobody else's, by this function's contract.
            let slot = unsafe { &*slot };
            // SAFETY: the slot was filled, and the caller takes the value out once.
            unsafe { slot.assume_init_read() }
        })
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // Release: pairs with `Receiver::is_closed`.
        self.ring.sender_gone.store(true, Ordering::Release);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // Release: pairs with `Sender::is_closed`.
        self.ring.receiver_gone.store(true, Ordering::Release);
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // Both ends are gone and their last writes are visible through the reference count.
        let tail = self.tail.load(Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: slots from head to tail are filled, and this is the only owner left.
            drop(unsafe { self.empty(head) });
            head = head.wrapping_add(1);
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("head", &self.head).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_gives_the_value_back() {
        let (mut sender, mut receiver) = channel(2);
        assert_eq!(sender.try_push(1), Ok(()));
        assert_eq!(sender.try_push(2), Ok(()));
        assert_eq!(sender.try_push(3), Err(3));
        assert_eq!(sender.free(), 0);
        assert_eq!(receiver.try_pop(), Some(1));
        assert_eq!(sender.free(), 1);
        assert_eq!(sender.try_push(3), Ok(()));
        assert_eq!((receiver.try_pop(), receiver.try_pop()), (Some(2), Some(3)));
        assert_eq!(receiver.try_pop(), None);
    }

    #[test]
    fn a_batch_moves_what_fits_and_keeps_the_order() {
        let (mut sender, mut receiver) = channel(4);
        let mut values: VecDeque<_> = (0..6).collect();
        assert_eq!(sender.push_batch(&mut values), 4);
        assert_eq!(values, [4, 5]);
        let mut out = Vec::new();
        assert_eq!(receiver.pop_batch(&mut out, 3), 3);
        assert_eq!(sender.push_batch(&mut values), 2);
        assert_eq!(receiver.pop_batch(&mut out, 8), 3);
        assert_eq!(out, [0, 1, 2, 3, 4, 5]);
        assert!(receiver.is_empty());
    }

    #[test]
    fn what_was_pushed_before_the_close_can_still_be_popped() {
        let (mut sender, mut receiver) = channel(2);
        sender.try_push("last").expect("room for one");
        drop(sender);
        assert!(receiver.is_closed());
        assert_eq!(receiver.try_pop(), Some("last"));
        assert_eq!(receiver.try_pop(), None);
    }

    #[test]
    fn values_left_in_the_ring_are_dropped_once() {
        let value = Arc::new(());
        let (mut sender, receiver) = channel(4);
        for _ in 0..3 {
            sender.try_push(value.clone()).expect("room for three");
        }
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(Arc::strong_count(&value), 4);
        drop(sender);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn two_threads_see_every_value_in_order() {
        const COUNT: u64 = 200_000;
        let (mut sender, mut receiver) = channel(64);
        let pushing = std::thread::spawn(move || {
            let mut waiting = VecDeque::new();
            let mut next = 0;
            while next < COUNT || !waiting.is_empty() {
                while waiting.len() < 100 && next < COUNT {
                    waiting.push_back(next);
                    next += 1;
                }
                if sender.push_batch(&mut waiting) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        let mut out = Vec::new();
        while expected < COUNT {
            if receiver.pop_batch(&mut out, 32) == 0 {
                std::thread::yield_now();
            }
            for value in out.drain(..) {
                assert_eq!(value, expected);
                expected += 1;
            }
        }
        pushing.join().expect("the pushing thread ends");
    }

    #[test]
    fn a_ring_of_one_works_across_the_wrap_of_its_counts() {
        let (mut sender, mut receiver) = channel(1);
        let wrap = usize::MAX - 1;
        (sender.tail, sender.head_seen) = (wrap, wrap);
        (receiver.head, receiver.tail_seen) = (wrap, wrap);
        sender.ring.head.store(wrap, Ordering::Relaxed);
        sender.ring.tail.store(wrap, Ordering::Relaxed);
        for value in 0..4 {
            assert_eq!(sender.try_push(value), Ok(()));
            assert_eq!(sender.try_push(9), Err(9));
            assert_eq!(receiver.try_pop(), Some(value));
        }
    }
}
