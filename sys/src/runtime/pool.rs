//! Tasks of one kind, spawned over and over: their memory is used again.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use super::tasks::{Class, Pooled, Task};

/// Spawns futures of one type without allocating, once as many were alive at a time as ever will be.
///
/// The memory of finished tasks waits here for the next; it is freed with the pool. Clones share it.
pub struct TaskPool<F> {
    class: Class,
    home: Rc<Home<F>>,
}

struct Home<F> {
    /// Grows to the most tasks that were alive at once.
    #[expect(clippy::vec_box, reason = "a task goes to its slot and comes home as this box")]
    idle: RefCell<Vec<Box<Member<F>>>>,
}

/// The box around the future stays where it is; the future in it comes and goes.
struct Member<F> {
    future: Pin<Box<Option<F>>>,
    home: Weak<Home<F>>,
}

impl<F: Future<Output = ()> + 'static> TaskPool<F> {
    /// A pool whose tasks are of `class`.
    pub fn new(class: Class) -> Self {
        Self { class, home: Rc::new(Home { idle: RefCell::default() }) }
    }

    /// Polls `future` once, here and now: things happen in the order they arrive. If that does not
    /// finish it, it goes on as a task. While the runtime ends, the future is dropped.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn spawn(&self, future: F) {
        let reactor = super::current();
        if reactor.is_ending() {
            return;
        }
        let idle = self.home.idle.borrow_mut().pop();
        let mut member = idle.unwrap_or_else(|| {
            let home = Rc::downgrade(&self.home);
            Box::new(Member { future: Box::pin(None), home })
        });
        member.future.set(Some(future));
        let slot = reactor.scheduler().claim(self.class);
        reactor.scheduler().poll(&slot, Task::Pooled(member));
    }
}

impl<F: Future<Output = ()> + 'static> Pooled for Member<F> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.future.as_mut().as_pin_mut() {
            Some(future) => future.poll(context),
            None => Poll::Ready(()),
        }
    }

    fn go_home(mut self: Box<Self>) {
        // Dropped before the member is idle: its drop may spawn on the same pool.
        self.future.set(None);
        if let Some(home) = self.home.upgrade() {
            home.idle.borrow_mut().push(self);
        }
    }
}

impl<F> Clone for TaskPool<F> {
    fn clone(&self) -> Self {
        Self { class: self.class, home: self.home.clone() }
    }
}

impl<F> fmt::Debug for TaskPool<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPool").field("class", &self.class).finish_non_exhaustive()
    }
}
