//! Waking tasks of the same shard.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Instant;

use rustmq_sys::runtime;

/// Wakes the one task that waits. A call while nobody waits is kept for the next wait.
#[derive(Default)]
pub(crate) struct Notify {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Notify {
    /// Lets the waiting task go on.
    pub(crate) fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for a call since the last wait ended.
    pub(crate) async fn notified(&self) {
        poll_fn(|cx| {
            if self.set.take() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Wakes every task that waits, or the first.
///
/// Thousands may wait: to begin and to end a wait takes the logarithm of their number, and no
/// allocation once as many have waited.
#[derive(Default)]
pub(crate) struct WaitList {
    queue: RefCell<Queue>,
    next_place: Cell<u64>,
}

/// Who waits and has not been woken since it looked.
///
/// Invariants: places rise; entries of tasks that have left, which are `left`, go when they are half.
#[derive(Default)]
struct Queue {
    wakers: VecDeque<(u64, Option<Waker>)>,
    left: usize,
}

/// A task's place in a list, which it keeps until its wait ends.
struct Place<'a> {
    list: &'a WaitList,
    place: u64,
}

impl WaitList {
    /// Lets all waiting tasks look again.
    pub(crate) fn wake_all(&self) {
        // One at a time, so that the list keeps its memory and who is woken may wait anew.
        let waiting = self.queue.borrow().wakers.len();
        for _ in 0..waiting {
            self.wake_first();
        }
    }

    /// Lets the task look again that waits for longest. For lists of tasks that wait until they are
    /// woken: one that gave up in that moment would keep the word from the next.
    pub(crate) fn wake_first(&self) {
        let first = self.queue.borrow_mut().pop();
        if let Some(first) = first {
            first.wake();
        }
    }

    /// Waits until `ready` gives a value; it is asked again after each wake-up.
    pub(crate) async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        let mut place = None;
        poll_fn(|cx| match ready() {
            Some(value) => Poll::Ready(value),
            None => {
                let place = place.get_or_insert_with(|| self.place());
                self.queue.borrow_mut().enter(place.place, cx.waker());
                Poll::Pending
            }
        })
        .await
    }

    fn place(&self) -> Place<'_> {
        let place = self.next_place.get();
        self.next_place.set(place + 1);
        Place { list: self, place }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.list.queue.borrow_mut().leave(self.place);
    }
}

impl Queue {
    fn find(&self, place: u64) -> Result<usize, usize> {
        self.wakers.binary_search_by_key(&place, |(place, _)| *place)
    }

    /// At the end, but for a task that was woken for nothing.
    fn enter(&mut self, place: u64, waker: &Waker) {
        match self.find(place) {
            Ok(index) => self.wakers[index].1 = Some(waker.clone()),
            Err(index) => self.wakers.insert(index, (place, Some(waker.clone()))),
        }
    }

    fn leave(&mut self, place: u64) {
        let Ok(index) = self.find(place) else { return };
        self.wakers[index].1 = None;
        self.left += 1;
        if self.wakers.len() <= 2 * self.left {
            self.wakers.retain(|(_, waker)| waker.is_some());
            self.left = 0;
        }
    }

    /// The first that has not left.
    fn pop(&mut self) -> Option<Waker> {
        while let Some((_, waker)) = self.wakers.pop_front() {
            match waker {
                Some(waker) => return Some(waker),
                None => self.left -= 1,
            }
        }
        None
    }
}

/// The values of all these futures, which go on side by side, in their order.
pub(crate) async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut done = true;
        for (future, value) in running.iter_mut().filter(|(_, value)| value.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(ready) => *value = Some(ready),
                Poll::Pending => done = false,
            }
        }
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, value)| value).collect()
}

/// `Some` of the future's value, or `None` when `deadline` comes first.
pub(crate) async fn before<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(runtime::sleep_until(deadline));
    poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        sleep.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// A place for one value that a task waits for.
pub(crate) struct Slot<T> {
    value: RefCell<Option<T>>,
    filled: Notify,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Self {
        Self { value: RefCell::new(None), filled: Notify::default() }
    }

    /// Fills the place; the first value stays.
    pub(crate) fn put(&self, value: T) {
        self.value.borrow_mut().get_or_insert(value);
        self.filled.notify();
    }

    /// Waits for the value.
    pub(crate) async fn take(&self) -> T {
        loop {
            if let Some(value) = self.value.borrow_mut().take() {
                return value;
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    /// A task that counts how often it is woken.
    #[derive(Default)]
    struct Task {
        woken: AtomicUsize,
    }

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Task {
        fn woken(&self) -> usize {
            self.woken.load(Ordering::Relaxed)
        }

        /// Polls a future of this task.
        fn poll<T>(
            self: &Arc<Self>,
            future: &mut Pin<Box<dyn Future<Output = T> + '_>>,
        ) -> Poll<T> {
            let waker = Waker::from(Arc::clone(self));
            future.as_mut().poll(&mut Context::from_waker(&waker))
        }
    }

    fn tasks() -> [Arc<Task>; 3] {
        std::array::from_fn(|_| Arc::default())
    }

    #[test]
    fn whoever_stops_waiting_leaves_nothing_in_the_list() {
        let (list, [gone, stays, _]) = (WaitList::default(), tasks());
        let never = || -> Pin<Box<dyn Future<Output = ()>>> { Box::pin(list.until(|| None::<()>)) };
        let mut waits = never();
        assert!(stays.poll(&mut waits).is_pending());
        for round in 0..3 {
            let mut future = never();
            assert!(gone.poll(&mut future).is_pending() && gone.poll(&mut future).is_pending());
            drop(future);
            assert_eq!(Arc::strong_count(&gone), 1, "round {round}");
            assert!(list.queue.borrow().wakers.len() == 1, "round {round}");
        }
        list.wake_all();
        assert_eq!((gone.woken(), stays.woken()), (0, 1));
        assert_eq!(Arc::strong_count(&stays), 1, "it was woken and has not looked yet");
        assert!(stays.poll(&mut waits).is_pending());
        list.wake_all();
        assert_eq!(stays.woken(), 2, "it waited on");
    }

    #[test]
    fn who_waits_for_longest_is_woken_first_and_keeps_its_place() {
        let (list, tasks, free) = (WaitList::default(), tasks(), Cell::new(false));
        let turn = || -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(list.until(|| free.take().then_some(())))
        };
        let mut waits: Vec<_> = tasks.iter().map(|_| turn()).collect();
        for (task, future) in tasks.iter().zip(&mut waits) {
            assert!(task.poll(future).is_pending());
        }
        let woken = || tasks.each_ref().map(|task| task.woken());
        list.wake_first();
        assert_eq!(woken(), [1, 0, 0]);
        // Somebody else was faster.
        assert!(tasks[0].poll(&mut waits[0]).is_pending());
        free.set(true);
        list.wake_first();
        assert_eq!(woken(), [2, 0, 0]);
        assert!(tasks[0].poll(&mut waits[0]).is_ready());
        list.wake_first();
        assert_eq!(woken(), [2, 1, 0]);
        drop(waits);
        list.wake_first();
        assert_eq!(woken(), [2, 1, 0], "nobody waits");
    }
}
