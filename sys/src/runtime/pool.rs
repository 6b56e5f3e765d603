//! Tasks of one kind, spawned over and over: their memory is used again.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use super::tasks::{Class, Pooled, Task};

/// Finished tasks whose memory a pool keeps; that of more is freed. 4,096: a crowd that comes and goes
/// with each flush finds its memory again, and of one that came once a few megabytes stay.
const IDLE_MAX: usize = 4096;

/// Spawns futures of one type without allocating, once as many were alive at a time as usually are.
///
/// The memory of finished tasks waits here for the next, up to 4,096 of them; it is freed with
/// the pool. Clones share it.
pub struct TaskPool<F> {
    class: Class,
    home: Rc<Home<F>>,
}

struct Home<F> {
    /// At most [`IDLE_MAX`].
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
            let mut idle = home.idle.borrow_mut();
            if idle.len() < IDLE_MAX {
                idle.push(self);
            }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::doorbell::Doorbell;
    use crate::runtime::{Backend, RuntimeConfig, run, yield_now};

    #[test]
    fn a_crowd_of_tasks_leaves_memory_for_some() {
        let crowd = async {
            let (pool, left) = (TaskPool::new(Class::Foreground), Rc::new(Cell::new(3 * IDLE_MAX)));
            for _ in 0..left.get() {
                let left = Rc::clone(&left);
                pool.spawn(async move {
                    yield_now().await;
                    left.set(left.get() - 1);
                });
            }
            assert_eq!(Rc::weak_count(&pool.home), left.get(), "all are alive");
            while 0 < left.get() {
                yield_now().await;
            }
            assert_eq!(Rc::weak_count(&pool.home), IDLE_MAX, "some are kept");
        };
        let doorbell = Doorbell::new().expect("an eventfd");
        run(RuntimeConfig::new(Backend::Epoll), doorbell, crowd).expect("the runtime starts");
    }
}
