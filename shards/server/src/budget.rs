//! Memory that a shard spends on its clients: one budget for each purpose, shared out by need.
//!
//! Nobody has a part of a budget for himself, and nobody can use up all of it: a client may hold as
//! much as half of what is free at the moment. Few clients may hold a lot each, many little each, and
//! something is always free. (Dynamic thresholds: A. K. Choudhury and E. L. Hahne, IEEE/ACM
//! Transactions on Networking 6(2), 1998.)

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use quinn_proto::ConnectionHandle;
use rustmq_config::Network;

use crate::limits::{FINISH_PATIENCE, FINISH_TIMEOUT, READ_AHEAD_BYTES_MAX, SUBSCRIPTIONS_PART};

/// Bytes in use of a budget. A handle: clones share it.
///
/// What is charged may be freed by another thread (answers cross shards), hence the atomic; it orders
/// nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// Bytes taken from a budget, perhaps counted for one client; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    client: Option<Arc<AtomicUsize>>,
    bytes: usize,
}

impl Budget {
    /// A budget of which nothing is used.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { used: Arc::default(), bytes_max }
    }

    /// Bytes in use. May pass the budget by what one client was allowed at last.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes of the whole budget.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The most that one client may hold now.
    pub(crate) fn share(&self) -> usize {
        self.bytes_max.saturating_sub(self.used()) / 2
    }

    /// Is so little left that clients that do not get on have to go?
    pub(crate) fn is_pressed(&self) -> bool {
        self.bytes_max - self.bytes_max / 4 < self.used()
    }

    /// Is more in use than the budget has?
    pub(crate) fn is_exceeded(&self) -> bool {
        self.bytes_max < self.used()
    }

    /// Takes bytes, whether or not they are left: the caller has asked.
    pub(crate) fn charge(&self, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Charge { budget: self.clone(), client: None, bytes }
    }

    /// Takes bytes and counts them for a client.
    pub(crate) fn charge_to(&self, client: &Arc<AtomicUsize>, bytes: usize) -> Charge {
        client.fetch_add(bytes, Ordering::Relaxed);
        let mut charge = self.charge(bytes);
        charge.client = Some(Arc::clone(client));
        charge
    }
}

impl Charge {
    /// How many bytes were taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the charge to this many bytes.
    pub(crate) fn set(&mut self, bytes: usize) {
        for counter in [Some(&self.budget.used), self.client.as_ref()].into_iter().flatten() {
            match bytes < self.bytes {
                true => counter.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
                false => counter.fetch_add(bytes - self.bytes, Ordering::Relaxed),
            };
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What a shard holds for its clients.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    /// Requests that are not answered, and unfinished ones.
    pub(crate) requests: Budget,
    /// Answers, until their clients have acknowledged them.
    pub(crate) answers: Budget,
    /// Credit of connections beyond the least: what they may send before it is read.
    pub(crate) windows: Budget,
    /// Read from the disk for subscriptions, and not sent yet.
    pub(crate) read_ahead: Budget,
    /// Open subscriptions: those that wait hold nothing else.
    pub(crate) subscriptions: Budget,
    /// The connection that may finish its frame although it holds its share of `requests`.
    finishing: Cell<Option<Finishing>>,
    /// Connections that wait for their share of `requests` to grow.
    starved: RefCell<Starved>,
}

/// Connections that wait, in the order in which they began to. Each is there once, however many of its
/// streams wait and however often it asks: those who are woken are served one by one.
#[derive(Debug, Default)]
struct Starved {
    order: VecDeque<ConnectionHandle>,
    waiting: BTreeSet<ConnectionHandle>,
}

/// The right to finish a frame.
#[derive(Clone, Copy, Debug)]
struct Finishing {
    holder: ConnectionHandle,
    /// When it last read on.
    read_at: Instant,
    /// Since when others wait for the right and cannot have it, because the budget is used up.
    holds_up_since: Option<Instant>,
}

impl ClientMemory {
    /// Nothing is held.
    pub(crate) fn new(config: &Network) -> Self {
        let budget = |bytes| Budget::new(usize::try_from(bytes).unwrap_or(usize::MAX));
        Self {
            requests: budget(config.request_bytes_max),
            answers: budget(config.answer_bytes_max),
            windows: budget(config.window_bytes_max),
            read_ahead: Budget::new(READ_AHEAD_BYTES_MAX),
            subscriptions: budget(config.request_bytes_max / SUBSCRIPTIONS_PART),
            finishing: Cell::new(None),
            starved: RefCell::default(),
        }
    }

    /// May this connection go on with its frame, although it holds its share? One may at a time, so
    /// there is always a frame that gets whole; if it does not read on for a while, another may, as
    /// long as the budget is not used up: the frames of those that had the right add up. Who may not
    /// is remembered.
    pub(crate) fn may_finish(&self, connection: ConnectionHandle, now: Instant) -> bool {
        let finishing = match self.finishing.get() {
            Some(other) if other.holder != connection => other,
            own => {
                let holds_up_since = own.and_then(|own| own.holds_up_since);
                let own = Finishing { holder: connection, read_at: now, holds_up_since };
                self.finishing.set(Some(own));
                return true;
            }
        };
        let exceeded = self.requests.is_exceeded();
        if !exceeded && finishing.read_at + FINISH_PATIENCE <= now {
            let next = Finishing { holder: connection, read_at: now, holds_up_since: None };
            self.finishing.set(Some(next));
            return true;
        }
        let holds_up_since = exceeded.then_some(finishing.holds_up_since.unwrap_or(now));
        self.finishing.set(Some(Finishing { holds_up_since, ..finishing }));
        self.starved.borrow_mut().add(connection);
        false
    }

    /// Has this connection had the right to finish its frame for too long, while the budget is used
    /// up and others wait for the right?
    pub(crate) fn is_overdue(&self, connection: ConnectionHandle, now: Instant) -> bool {
        let own = self.finishing.get().filter(|finishing| finishing.holder == connection);
        let since = own.and_then(|own| own.holds_up_since);
        self.requests.is_exceeded() && since.is_some_and(|since| since + FINISH_TIMEOUT < now)
    }

    /// The connection's frame is whole, or will never be.
    pub(crate) fn finished(&self, connection: ConnectionHandle) {
        if self.finishing.get().is_some_and(|finishing| finishing.holder == connection) {
            self.finishing.set(None);
        }
    }

    /// A connection that waited: it may look again. The caller repeats this until there is none.
    pub(crate) fn take_starved(&self) -> Option<ConnectionHandle> {
        self.starved.borrow_mut().take()
    }
}

impl Starved {
    fn add(&mut self, connection: ConnectionHandle) {
        if self.waiting.insert(connection) {
            self.order.push_back(connection);
        }
    }

    fn take(&mut self) -> Option<ConnectionHandle> {
        let first = self.order.pop_front()?;
        self.waiting.remove(&first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustmq_config::BrokerConfig;
    use rustmq_sys::clock;

    use super::*;

    #[test]
    fn many_greedy_clients_never_use_up_a_budget() {
        let budget = Budget::new(1 << 20);
        let clients: Vec<_> = (0..1000).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let mut charges = Vec::new();
        for _ in 0..200 {
            for client in &clients {
                if client.load(Ordering::Relaxed) + 100 <= budget.share() {
                    charges.push(budget.charge_to(client, 100));
                }
            }
        }
        assert!(budget.used() < 1 << 20, "{}", budget.used());
        let first = clients[0].load(Ordering::Relaxed);
        assert!(clients.iter().all(|client| 0 < client.load(Ordering::Relaxed)), "{first}");
        drop(charges);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn one_connection_at_a_time_finishes_and_the_others_are_remembered() {
        let config = BrokerConfig::load(None, std::iter::empty(), &[]).unwrap();
        let memory = ClientMemory::new(&config.network);
        let [one, two] = [1, 2].map(ConnectionHandle);
        let now = clock::now();
        assert!(memory.may_finish(one, now) && memory.may_finish(one, now));
        assert!(!memory.may_finish(two, now));
        memory.finished(two);
        assert!(!memory.may_finish(two, now), "only its own end counts");
        memory.finished(one);
        assert_eq!(memory.take_starved(), Some(two));
        assert_eq!(memory.take_starved(), None, "two asked twice and waits once");
        assert!(memory.may_finish(two, now) && !memory.may_finish(one, now));
        assert!(memory.may_finish(one, now + FINISH_PATIENCE), "the other does not go on");
    }

    #[test]
    fn beyond_the_budget_the_right_to_finish_is_not_passed_on_and_ends() {
        let config = BrokerConfig::load(None, std::iter::empty(), &[]).unwrap();
        let memory = ClientMemory::new(&config.network);
        let [one, two] = [1, 2].map(ConnectionHandle);
        let now = clock::now();
        assert!(memory.may_finish(one, now));
        let beyond = memory.requests.charge(memory.requests.bytes_max() + 1);
        let later = now + 10 * FINISH_TIMEOUT;
        assert!(!memory.is_overdue(one, later), "nobody waits for it");
        assert!(!memory.may_finish(two, later), "what both hold would add up");
        assert!(!memory.is_overdue(one, later + FINISH_TIMEOUT));
        assert!(memory.may_finish(one, later + FINISH_TIMEOUT), "it still gets on");
        let end = later + FINISH_TIMEOUT + Duration::from_nanos(1);
        assert!(memory.is_overdue(one, end) && !memory.is_overdue(two, end));
        memory.finished(one);
        assert!(memory.may_finish(two, end) && !memory.may_finish(one, end));
        drop(beyond);
        assert!(!memory.is_overdue(two, end + 2 * FINISH_TIMEOUT), "there is memory again");
        assert!(memory.may_finish(one, end + FINISH_PATIENCE));
    }

    #[test]
    fn a_charge_is_given_back_as_it_shrinks_and_ends() {
        let (budget, client) = (Budget::new(100), Arc::new(AtomicUsize::new(0)));
        let mut charge = budget.charge_to(&client, 10);
        charge.set(90);
        assert_eq!((budget.used(), budget.share()), (90, 5));
        assert!(budget.is_pressed() && !budget.is_exceeded());
        let others = budget.charge(11);
        assert!(budget.is_exceeded());
        drop(others);
        charge.set(20);
        drop(charge);
        assert_eq!((budget.used(), client.load(Ordering::Relaxed)), (0, 0));
    }
}
