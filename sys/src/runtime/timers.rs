//! The deadlines of one runtime: an indexed binary heap, so that a cancelled timer leaves at once
//! (a timeout per request must not pile up until it would have fired) and so that a steady state
//! allocates nothing.

use std::task::Waker;
use std::time::Instant;

/// Names a timer until it has fired or was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimerId {
    index: usize,
    sequence: u64,
}

struct Timer {
    at: Instant,
    /// Unique: orders timers of the same moment, and tells a reused entry from the one before.
    sequence: u64,
    position: usize,
    waker: Option<Waker>,
}

/// Invariants: `heap` orders the timers in use by moment, then sequence, and each one's `position` is
/// its place in it; every other entry is in `free`. Grows with the number of sleeping tasks.
#[derive(Default)]
pub(super) struct Timers {
    timers: Vec<Timer>,
    heap: Vec<usize>,
    free: Vec<usize>,
    sequence: u64,
}

impl Timers {
    pub(super) fn insert(&mut self, at: Instant, waker: Waker) -> TimerId {
        let sequence = self.sequence;
        self.sequence += 1;
        let timer = Timer { at, sequence, position: self.heap.len(), waker: Some(waker) };
        let index = match self.free.pop() {
            Some(index) => {
                self.timers[index] = timer;
                index
            }
            None => {
                self.timers.push(timer);
                self.timers.len() - 1
            }
        };
        self.heap.push(index);
        self.rise(self.heap.len() - 1);
        TimerId { index, sequence }
    }

    /// Replaces the waker; false if the timer has fired.
    pub(super) fn update(&mut self, id: TimerId, waker: &Waker) -> bool {
        let Some(current) = self.get(id).and_then(|timer| timer.waker.as_mut()) else {
            return false;
        };
        current.clone_from(waker);
        true
    }

    /// Takes a timer out; nothing happens if it has fired.
    pub(super) fn remove(&mut self, id: TimerId) {
        if let Some(timer) = self.get(id) {
            let position = timer.position;
            self.take(position);
        }
    }

    /// The waker of the next timer due at `now`, in order of time and then of insertion.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        if self.next()? > now {
            return None;
        }
        self.take(0)
    }

    /// The earliest moment anyone sleeps until.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|index| self.timers[*index].at)
    }

    /// The timer if it is still in the heap: one that was taken out has no waker.
    fn get(&mut self, id: TimerId) -> Option<&mut Timer> {
        let timer = self.timers.get_mut(id.index)?;
        (timer.sequence == id.sequence && timer.waker.is_some()).then_some(timer)
    }

    fn take(&mut self, position: usize) -> Option<Waker> {
        let index = self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.timers[self.heap[position]].position = position;
            let position = self.sink(position);
            self.rise(position);
        }
        self.free.push(index);
        self.timers[index].waker.take()
    }

    fn key(&self, position: usize) -> (Instant, u64) {
        let timer = &self.timers[self.heap[position]];
        (timer.at, timer.sequence)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.timers[self.heap[a]].position = a;
        self.timers[self.heap[b]].position = b;
    }

    fn rise(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.key(parent) <= self.key(position) {
                return;
            }
            self.swap(parent, position);
            position = parent;
        }
    }

    fn sink(&mut self, mut position: usize) -> usize {
        loop {
            let children = [2 * position + 1, 2 * position + 2];
            let below = children.into_iter().filter(|child| *child < self.heap.len());
            let Some(child) = below.min_by_key(|child| self.key(*child)) else { return position };
            if self.key(position) <= self.key(child) {
                return position;
            }
            self.swap(position, child);
            position = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    struct Fired(u64, Arc<AtomicU64>);

    impl Wake for Fired {
        fn wake(self: Arc<Self>) {
            self.1.store(self.0, Ordering::Relaxed);
        }
    }

    #[test]
    fn timers_fire_in_order_whatever_is_inserted_and_removed() {
        let start = Instant::now();
        let last = Arc::new(AtomicU64::new(0));
        let mut timers = Timers::default();
        let mut model = BTreeMap::new();
        let mut random = 1u64;
        for number in 0..20_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let roll = random >> 33;
            if roll % 3 < 2 {
                let at = start + Duration::from_millis(roll % 97);
                let id = timers.insert(at, Arc::new(Fired(number, last.clone())).into());
                model.insert((at, number), id);
            } else if let Some(key) = model.keys().nth(roll as usize % model.len().max(1)).copied()
            {
                let id = model.remove(&key).expect("just seen");
                timers.remove(id);
                timers.remove(id);
                assert!(!timers.update(id, Waker::noop()));
            }
            if roll.is_multiple_of(11) {
                let now = start + Duration::from_millis(roll % 53);
                while let Some(waker) = timers.pop_due(now) {
                    waker.wake();
                    let ((at, number), _) = model.pop_first().expect("the model has one due too");
                    assert!(at <= now);
                    assert_eq!(last.load(Ordering::Relaxed), number);
                }
                assert!(model.keys().next().is_none_or(|(at, _)| *at > now));
            }
            assert_eq!(timers.next(), model.keys().next().map(|(at, _)| *at));
        }
        assert!(timers.timers.len() < 15_000, "entries are used again");
    }
}
