//! Waking tasks of the same shard.

use std::cell::{Cell, RefCell};
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

/// Wakes every task that waits.
#[derive(Default)]
pub(crate) struct WaitList {
    wakers: RefCell<Vec<Waker>>,
}

impl WaitList {
    /// Lets all waiting tasks look again.
    pub(crate) fn wake_all(&self) {
        // One at a time, so that the list keeps its memory and a waker may wait anew.
        let mut waiting = self.wakers.borrow().len();
        while 0 < waiting {
            let waker = self.wakers.borrow_mut().swap_remove(0);
            waker.wake();
            waiting -= 1;
        }
    }

    /// Waits until `ready` gives a value; it is asked again after each wake-up.
    pub(crate) async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match ready() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut wakers = self.wakers.borrow_mut();
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
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
