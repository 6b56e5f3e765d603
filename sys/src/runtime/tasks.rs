//! Tasks and their turns.
//!
//! A task lives in a slot. A slot has one waker for ever, whichever task is in it, so that spawning
//! and waking allocate nothing; a late wake-up for the task before is a spurious one for the task
//! now. Wakers may be cloned, used and dropped on any thread: a wake-up from another thread goes
//! through a queue and the doorbell.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_queue::SegQueue;

use crate::doorbell::Bell;

/// How soon a task gets its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Network, produce, flushes: until none is ready or the slice of the turn is used up.
    Foreground,
    /// Fetches and replication: the same, in what is left of the slice, but at least one a turn.
    Fetch,
    /// What nobody waits for: one task a turn.
    Background,
}

const CLASSES: usize = 3;

/// The slot of the main future.
pub(super) const MAIN: u32 = 0;

/// A task as it lies in its slot.
pub(super) enum Task {
    Boxed(Pin<Box<dyn Future<Output = ()>>>),
    Pooled(Box<dyn Pooled>),
}

/// A task whose memory goes home when it is finished.
pub(super) trait Pooled {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()>;
    fn go_home(self: Box<Self>);
}

struct SlotWaker {
    runtime: u64,
    index: u32,
    /// In a ready queue, or in the queue of remote wake-ups: a slot is in one at most once.
    queued: AtomicBool,
    remote: Arc<Remote>,
}

/// What other threads see of a runtime.
struct Remote {
    /// Slots woken by other threads; each at most once, so bounded by the slots.
    woken: SegQueue<u32>,
    bell: Bell,
}

pub(super) struct Slot {
    handle: Arc<SlotWaker>,
    waker: Waker,
    class: Cell<Class>,
    task: RefCell<Option<Task>>,
}

/// Invariants: a free slot has no task; a slot in a ready queue has `queued` set.
pub(super) struct Scheduler {
    runtime: u64,
    slots: RefCell<Vec<Rc<Slot>>>,
    free: RefCell<Vec<u32>>,
    ready: [RefCell<VecDeque<u32>>; CLASSES],
    remote: Arc<Remote>,
}

impl Scheduler {
    /// With one slot in use: the main future's.
    pub(super) fn new(runtime: u64, bell: Bell) -> Self {
        let remote = Arc::new(Remote { woken: SegQueue::new(), bell });
        let scheduler = Self {
            runtime,
            slots: RefCell::default(),
            free: RefCell::default(),
            ready: Default::default(),
            remote,
        };
        let main = scheduler.claim(Class::Foreground);
        assert!(main.handle.index == MAIN, "the main future has the first slot");
        main.waker.wake_by_ref();
        scheduler
    }

    pub(super) fn main_waker(&self) -> Waker {
        self.slots.borrow()[MAIN as usize].waker.clone()
    }

    pub(super) fn claim(&self, class: Class) -> Rc<Slot> {
        if let Some(index) = self.free.borrow_mut().pop() {
            let slot = self.slots.borrow()[index as usize].clone();
            slot.class.set(class);
            return slot;
        }
        let mut slots = self.slots.borrow_mut();
        let index = u32::try_from(slots.len()).expect("fewer tasks than 2^32");
        let handle = Arc::new(SlotWaker {
            runtime: self.runtime,
            index,
            queued: AtomicBool::new(false),
            remote: self.remote.clone(),
        });
        let waker = Waker::from(handle.clone());
        let class = Cell::new(class);
        let slot = Rc::new(Slot { handle, waker, class, task: RefCell::new(None) });
        slots.push(slot.clone());
        slot
    }

    /// Puts a task into a claimed slot and into line.
    pub(super) fn enlist(&self, slot: &Slot, task: Task) {
        *slot.task.borrow_mut() = Some(task);
        if !slot.handle.queued.swap(true, Ordering::AcqRel) {
            self.enqueue(slot.handle.index);
        }
    }

    /// Polls a task once and, if it is not finished, leaves it in its slot.
    pub(super) fn poll(&self, slot: &Slot, mut task: Task) {
        let mut context = Context::from_waker(&slot.waker);
        let poll = match &mut task {
            Task::Boxed(future) => future.as_mut().poll(&mut context),
            Task::Pooled(pooled) => pooled.poll(&mut context),
        };
        if poll.is_pending() {
            *slot.task.borrow_mut() = Some(task);
            return;
        }
        match task {
            Task::Boxed(future) => drop(future),
            Task::Pooled(pooled) => pooled.go_home(),
        }
        self.free.borrow_mut().push(slot.handle.index);
    }

    /// The next ready slot of a class, out of its queue.
    pub(super) fn next(&self, class: Class) -> Option<u32> {
        let index = self.ready[class as usize].borrow_mut().pop_front()?;
        let slots = self.slots.borrow();
        // Acquire: pairs with the release of the waker that found it queued already and relies on
        // this poll to see its change.
        slots[index as usize].handle.queued.swap(false, Ordering::AcqRel);
        Some(index)
    }

    /// Gives a slot's task its turn; a slot that has none was woken late.
    pub(super) fn run(&self, index: u32) {
        let slot = self.slots.borrow()[index as usize].clone();
        let task = slot.task.borrow_mut().take();
        if let Some(task) = task {
            self.poll(&slot, task);
        }
    }

    pub(super) fn is_ready(&self, class: Class) -> bool {
        !self.ready[class as usize].borrow().is_empty()
    }

    pub(super) fn is_any_ready(&self) -> bool {
        self.ready.iter().any(|queue| !queue.borrow().is_empty())
    }

    /// Queues what other threads have woken. Call after the doorbell was found rung.
    pub(super) fn take_remote(&self) {
        while let Some(index) = self.remote.woken.pop() {
            self.enqueue(index);
        }
    }

    /// Drops every task. Dropping one may finish or drop others, or try to spawn.
    pub(super) fn drop_tasks(&self) {
        let mut index = 0;
        loop {
            let Some(slot) = self.slots.borrow().get(index).cloned() else { return };
            let task = slot.task.borrow_mut().take();
            drop(task);
            index += 1;
        }
    }

    fn enqueue(&self, index: u32) {
        let class = self.slots.borrow()[index as usize].class.get();
        self.ready[class as usize].borrow_mut().push_back(index);
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release: what the waker changed is visible to the poll that takes `queued`.
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let here = super::try_with_reactor(|reactor| {
            let here = reactor.id() == self.runtime;
            if here {
                reactor.scheduler().enqueue(self.index);
            }
            here
        });
        if here != Some(true) {
            self.remote.woken.push(self.index);
            self.remote.bell.ring();
        }
    }
}
