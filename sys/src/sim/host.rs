//! A runtime in a modelled world: it never sleeps, its owner gives it one turn at a time.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::{SimDriver, World, entered};
use crate::doorbell::Doorbell;
use crate::runtime::{Reactor, hosted};

/// One runtime with its main future. Several of them, on one thread, are the threads of a process
/// whose turns the owner orders.
///
/// Dropping it is the death of the process: its tasks are gone, what it had asked of the disk may
/// still happen.
pub struct Host<T> {
    world: World,
    reactor: Rc<Reactor>,
    main: Option<Pin<Box<dyn Future<Output = T>>>>,
}

impl<T> Host<T> {
    /// A runtime in the world that this thread has entered.
    ///
    /// # Panics
    /// If there is no such world.
    pub fn new(doorbell: Doorbell, main: impl Future<Output = T> + 'static) -> Self {
        let world = entered().expect("a host begins in a world");
        let for_driver = world.clone();
        let reactor = hosted::reactor(doorbell, |id| Box::new(SimDriver::new(for_driver, id)));
        Self { world, reactor, main: Some(Box::pin(main)) }
    }

    /// Would a turn do anything now?
    pub fn wants_turn(&self) -> bool {
        self.main.is_some() && (self.reactor.has_news() || self.world.has_news(self.reactor.id()))
    }

    /// When it wants to be woken at the latest, in nanoseconds of its world.
    pub fn next_timer_ns(&self) -> Option<u64> {
        self.main.as_ref()?;
        self.reactor.next_timer().map(|at| self.world.ns_of(at))
    }

    /// Gives it a turn. `Some` when its main future is finished; after that it does nothing more.
    pub fn turn(&mut self) -> Option<T> {
        let main = self.main.as_mut()?.as_mut();
        let output = hosted::within(&self.reactor, || self.reactor.turn(main, false));
        let output = output.expect("a modelled driver does not fail")?;
        self.main = None;
        Some(output)
    }
}

impl<T> Drop for Host<T> {
    fn drop(&mut self) {
        hosted::within(&self.reactor, || {
            self.main = None;
            self.reactor.end();
        });
    }
}
