//! The state of one runtime and its loop.
//!
//! ```text
//!   turn:  run ready tasks, by class, at most a slice
//!          fire timers -> look at the doorbell -> hand I/O to the kernel; if nothing is ready, look
//!                                                 for news for a while, then sleep
//!          deliver the news: it makes tasks ready
//! ```

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::driver::{Call, Driver, Event, Token, Wait};
use super::operations::{Finished, Next, Operation, Operations};
use super::parking::Parking;
use super::sources::Sources;
use super::tasks::{Class, MAIN, Scheduler};
use super::timers::{TimerId, Timers};
use super::{RuntimeConfig, Stats};
use crate::clock;
use crate::doorbell::Doorbell;

/// 50 µs: what a turn gives to tasks before it looks at the network and the disk again. Four of them
/// are the latency a request may see when the shard is full of background work.
const SLICE: Duration = Duration::from_micros(50);

/// Owned by the thread that runs it; futures of its operations keep it too, and none of them outlives
/// the thread. Begins in `run`, ends with [`end`](Self::end).
pub(crate) struct Reactor {
    id: u64,
    scheduler: Scheduler,
    driver: RefCell<Box<dyn Driver>>,
    operations: RefCell<Operations>,
    sources: RefCell<Sources>,
    timers: RefCell<Timers>,
    doorbell: Doorbell,
    /// Rung since the task that waits for it looked.
    rung: Cell<bool>,
    rung_waiter: RefCell<Option<Waker>>,
    slice_end: Cell<Instant>,
    flush_delay: Option<Duration>,
    parking: RefCell<Parking>,
    ending: Cell<bool>,
    news: RefCell<Vec<Event>>,
    started: Instant,
    stats: Cell<Stats>,
}

impl Reactor {
    pub(super) fn new(
        id: u64,
        driver: Box<dyn Driver>,
        doorbell: Doorbell,
        config: &RuntimeConfig,
    ) -> Self {
        let started = clock::now();
        Self {
            id,
            scheduler: Scheduler::new(id, doorbell.bell()),
            driver: RefCell::new(driver),
            operations: RefCell::default(),
            sources: RefCell::default(),
            timers: RefCell::default(),
            doorbell,
            rung: Cell::new(false),
            rung_waiter: RefCell::default(),
            slice_end: Cell::new(started),
            flush_delay: config.flush_delay,
            parking: RefCell::new(Parking::new(config.polling)),
            ending: Cell::new(false),
            news: RefCell::default(),
            started,
            stats: Cell::default(),
        }
    }

    /// Turns until the main future is finished.
    pub(super) fn run<T>(&self, mut main: Pin<&mut impl Future<Output = T>>) -> io::Result<T> {
        loop {
            if let Some(output) = self.turn(main.as_mut(), true)? {
                return Ok(output);
            }
        }
    }

    /// One turn; the main future's output when it is finished.
    pub(crate) fn turn<T>(
        &self,
        mut main: Pin<&mut (impl Future<Output = T> + ?Sized)>,
        may_sleep: bool,
    ) -> io::Result<Option<T>> {
        let waker = self.scheduler.main_waker();
        let mut context = Context::from_waker(&waker);
        let mut output = None;
        let start = clock::refresh();
        self.slice_end.set(start + SLICE);
        self.run_tasks(&mut || {
            if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
                output = Some(value);
            }
            output.is_some()
        });
        if output.is_some() {
            return Ok(output);
        }
        self.fire_timers(clock::refresh());
        self.answer_doorbell();
        let worked_until = self.take_news(may_sleep)?;
        let now = clock::refresh();
        self.count_turn(worked_until.unwrap_or(now).saturating_duration_since(start));
        Ok(None)
    }

    /// Hands I/O to the kernel and takes the news; if there are none and nothing else is to do, looks
    /// for some or sleeps. Gives the moment from which on there was nothing to do.
    fn take_news(&self, may_sleep: bool) -> io::Result<Option<Instant>> {
        if !may_sleep || self.has_news() {
            self.poll_driver(Wait::No)?;
            return Ok(None);
        }
        let worked_until = clock::refresh();
        let window = self.parking.borrow().window();
        if !window.is_zero() && self.look_for_news(worked_until, window)? {
            return Ok(Some(worked_until));
        }
        let wait = self.wait();
        let asleep_since = clock::read();
        self.poll_driver(wait)?;
        if wait == Wait::No {
            return Ok(None);
        }
        let slept = clock::refresh().saturating_duration_since(asleep_since);
        if self.scheduler.is_any_ready() || self.doorbell.is_pending() {
            self.parking.borrow_mut().woken_after(slept);
        }
        Ok(Some(worked_until))
    }

    /// Looks until there is something to do; false when the window is over.
    fn look_for_news(&self, begun: Instant, window: Duration) -> io::Result<bool> {
        let end = begun.checked_add(window);
        let (found, now) = loop {
            self.poll_driver(Wait::No)?;
            let now = clock::refresh();
            if self.has_news() {
                break (true, now);
            }
            if end.is_some_and(|end| end <= now) {
                break (false, now);
            }
            std::hint::spin_loop();
        };
        let mut stats = self.stats.get();
        stats.polled += now.saturating_duration_since(begun);
        self.stats.set(stats);
        Ok(found)
    }

    /// Is there a task to run, a timer due, or a ring not answered?
    pub(crate) fn has_news(&self) -> bool {
        self.scheduler.is_any_ready()
            || self.doorbell.is_pending()
            || self.timers.borrow().next().is_some_and(|at| at <= clock::read())
    }

    /// Drops all tasks and waits for the kernel to be done with every buffer.
    pub(crate) fn end(&self) {
        self.ending.set(true);
        self.scheduler.drop_tasks();
        while self.operations.borrow().in_flight() > 0 {
            self.doorbell.take_pending();
            let wait = if self.doorbell.prepare_sleep() { Wait::News } else { Wait::No };
            if let Err(error) = self.poll_driver(wait) {
                // The kernel may still use the buffers: better lost than reused.
                tracing::error!(%error, "the ring failed with operations in flight; leaking their buffers");
                std::mem::forget(self.operations.take());
            }
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The earliest moment anyone sleeps until.
    #[cfg(feature = "sim")]
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().next()
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Reads the clock: what comes next happens now.
    pub(super) fn slice_is_over(&self) -> bool {
        clock::refresh() >= self.slice_end.get()
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.stats.get();
        stats.enters = self.driver.borrow().enters();
        stats.running = clock::read().saturating_duration_since(self.started);
        stats
    }

    pub(crate) fn flush_delay(&self) -> Option<Duration> {
        self.flush_delay
    }

    pub(crate) fn count_flush(&self) {
        let mut stats = self.stats.get();
        stats.flushes += 1;
        self.stats.set(stats);
    }

    /// Starts a transfer.
    pub(crate) fn start(self: &Rc<Self>, operation: Operation) -> Transfer {
        self.count_operation();
        let (token, request) = self.operations.borrow_mut().start(operation);
        if let Some(request) = request {
            // SAFETY: the table owns the memory and the descriptor until `complete` was told.
            unsafe { self.driver.borrow_mut().submit(token, request) };
        }
        Transfer { reactor: self.clone(), token: Some(token) }
    }

    /// Starts a call on the file thread.
    pub(crate) fn start_call(self: &Rc<Self>, call: Call) -> io::Result<Transfer> {
        self.count_operation();
        let (token, _) = self.operations.borrow_mut().start(Operation::Call);
        let called = self.driver.borrow_mut().call(Some(token), call);
        if let Err(error) = called {
            let outcome = super::driver::Outcome::Failed(libc::EAGAIN);
            let transfer = Transfer { reactor: self.clone(), token: Some(token) };
            drop(transfer);
            self.deliver(Event::Completed { token, outcome });
            return Err(error);
        }
        Ok(Transfer { reactor: self.clone(), token: Some(token) })
    }

    /// Closes a file that no transfer uses any more.
    pub(crate) fn close(&self, descriptor: OwnedFd) {
        // Borrowed only while a driver is being asked something, which never ends here.
        if let Ok(mut driver) = self.driver.try_borrow_mut() {
            driver.close(descriptor);
        }
    }

    pub(super) fn register(&self, descriptor: RawFd) -> io::Result<Token> {
        let token = self.sources.borrow_mut().insert(descriptor);
        let watched = self.driver.borrow_mut().watch(token, descriptor);
        if watched.is_err() {
            self.sources.borrow_mut().remove(token);
        }
        watched.map(|()| token)
    }

    pub(super) fn unregister(&self, token: Token, descriptor: RawFd) {
        self.sources.borrow_mut().remove(token);
        self.driver.borrow_mut().unwatch(token, descriptor);
    }

    pub(super) fn sources(&self) -> &RefCell<Sources> {
        &self.sources
    }

    pub(super) fn poll_writable(&self, token: Token, waker: &Waker) -> Poll<()> {
        let descriptor = self.sources.borrow_mut().poll_writable(token, waker);
        match descriptor.map(|it| self.driver.borrow_mut().watch_writable(token, it)) {
            // A descriptor that cannot be watched is tried: the attempt tells what is wrong.
            None | Some(Err(_)) => Poll::Ready(()),
            Some(Ok(())) => Poll::Pending,
        }
    }

    pub(super) fn poll_rung(&self, waker: &Waker) -> Poll<()> {
        if self.rung.replace(false) {
            return Poll::Ready(());
        }
        *self.rung_waiter.borrow_mut() = Some(waker.clone());
        Poll::Pending
    }

    pub(super) fn timers(&self) -> &RefCell<Timers> {
        &self.timers
    }

    fn run_tasks(&self, poll_main: &mut dyn FnMut() -> bool) {
        while let Some(index) = self.scheduler.next(Class::Foreground) {
            if index != MAIN {
                self.scheduler.run(index);
            } else if poll_main() {
                return;
            }
            if self.slice_is_over() {
                break;
            }
        }
        while let Some(index) = self.scheduler.next(Class::Fetch) {
            self.scheduler.run(index);
            if self.slice_is_over() {
                break;
            }
        }
        if self.scheduler.is_ready(Class::Background) {
            self.slice_end.set(clock::refresh() + SLICE);
            if let Some(index) = self.scheduler.next(Class::Background) {
                self.scheduler.run(index);
            }
        }
    }

    fn fire_timers(&self, now: Instant) {
        loop {
            // The borrow ends before the wake-up.
            let waker = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = waker else { return };
            waker.wake();
        }
    }

    fn answer_doorbell(&self) {
        if !self.doorbell.take_pending() {
            return;
        }
        self.scheduler.take_remote();
        self.rung.set(true);
        let waiter = self.rung_waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    fn wait(&self) -> Wait {
        if self.scheduler.is_any_ready() {
            return Wait::No;
        }
        let until = self.timers.borrow().next();
        let wait = match until.map(|until| until.saturating_duration_since(clock::read())) {
            None => Wait::News,
            Some(Duration::ZERO) => return Wait::No,
            Some(timeout) => Wait::AtMost(timeout),
        };
        // Last, after everything else was found empty: from here on bells ring the eventfd.
        if self.doorbell.prepare_sleep() { wait } else { Wait::No }
    }

    fn poll_driver(&self, wait: Wait) -> io::Result<()> {
        let mut news = self.news.take();
        let polled = self.driver.borrow_mut().poll(wait, &mut news);
        if wait != Wait::No {
            self.doorbell.awake();
        }
        for event in news.drain(..) {
            self.deliver(event);
        }
        self.news.replace(news);
        polled
    }

    fn deliver(&self, event: Event) {
        match event {
            Event::Completed { token, outcome } => {
                let next = self.operations.borrow_mut().complete(token, outcome);
                match next {
                    Next::Nothing(_) => {}
                    Next::Wake(waker) => waker.wake(),
                    Next::Resubmit(request) => {
                        // SAFETY: as in `start`.
                        unsafe { self.driver.borrow_mut().submit(token, request) };
                    }
                }
            }
            Event::Ready { token, readable, writable } => {
                let waiting = self.sources.borrow_mut().ready(token, readable, writable);
                waiting.into_iter().flatten().for_each(Waker::wake);
            }
        }
    }

    fn count_turn(&self, busy: Duration) {
        let mut stats = self.stats.get();
        stats.turns += 1;
        stats.busy += busy;
        self.stats.set(stats);
    }

    fn count_operation(&self) {
        let mut stats = self.stats.get();
        stats.operations += 1;
        self.stats.set(stats);
    }
}

/// Waits for an operation. Dropped early, it asks the kernel to stop; the memory is kept until the
/// kernel is done with it.
pub(crate) struct Transfer {
    reactor: Rc<Reactor>,
    token: Option<Token>,
}

impl Future for Transfer {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Finished> {
        let token = self.token.expect("a finished transfer is not polled again");
        let finished = self.reactor.operations.borrow_mut().poll(token, context.waker());
        match finished {
            Some(finished) => {
                self.token = None;
                Poll::Ready(finished)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Some(token) = self.token else { return };
        // What was not taken is dropped after the borrow: it may hold the last handle of a file.
        let (in_flight, _untaken) = self.reactor.operations.borrow_mut().abandon(token);
        if in_flight {
            self.reactor.driver.borrow_mut().cancel(token);
        }
    }
}

/// Sleeps until a moment of this runtime's clock.
pub(super) struct Sleep {
    reactor: Rc<Reactor>,
    at: Instant,
    timer: Option<TimerId>,
}

impl Sleep {
    pub(super) fn new(reactor: Rc<Reactor>, at: Instant) -> Self {
        Self { reactor, at, timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if clock::now() >= self.at {
            return Poll::Ready(());
        }
        let reactor = self.reactor.clone();
        let mut timers = reactor.timers().borrow_mut();
        let still_set = self.timer.is_some_and(|timer| timers.update(timer, context.waker()));
        if !still_set {
            self.timer = Some(timers.insert(self.at, context.waker().clone()));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.reactor.timers().borrow_mut().remove(timer);
        }
    }
}
