//! The times of a run: when it begins, when each request is due, when it is over.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustmq_sys::clock;

use super::drive::Period;

/// What all connections of a run share.
pub(super) struct Race {
    period: Period,
    /// Requests that all producers together are due to send; in closed loop as many as get through.
    rate_per_s: Option<f64>,
    /// Producers.
    count: usize,
    /// Connections that may not be sent requests yet: a broker under load takes its time to let one in.
    connecting: Cell<usize>,
    /// From when on requests are measured: all are connected, and warm.
    begin: Cell<Option<Instant>>,
    /// One connection has failed, and with it the run.
    failed: Cell<bool>,
}

impl Race {
    /// Begins once so many connections are open.
    pub(super) fn new(
        period: Period,
        rate_per_s: Option<f64>,
        count: usize,
        connections: usize,
    ) -> Self {
        let (begin, failed) = (Cell::default(), Cell::default());
        Self { period, rate_per_s, count, connecting: Cell::new(connections), begin, failed }
    }

    /// Is a request sent when there is room for it, not when it is due?
    pub(super) fn is_closed_loop(&self) -> bool {
        self.rate_per_s.is_none()
    }

    /// When a producer's request is due, the first being number 0; `None` before all are connected.
    pub(super) fn due(&self, producer: usize, request: u64) -> Option<Instant> {
        let rate = self.rate_per_s?;
        let turn = request as f64 * self.count as f64 + producer as f64;
        let start = self.begin.get()? - self.period.warm_up;
        Some(start + Duration::from_secs_f64(turn / rate))
    }

    pub(super) fn fail(&self) {
        self.failed.set(true);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.get()
    }

    pub(super) fn handle_open(&self) {
        self.connecting.set(self.connecting.get() - 1);
        if self.connecting.get() == 0 {
            self.begin.set(Some(clock::now() + self.period.warm_up));
        }
    }

    /// Was a request that was sent then sent in the time that is measured?
    pub(super) fn is_measured(&self, sent: Instant) -> bool {
        self.begin.get().is_some_and(|begin| begin <= sent)
    }

    /// Is it too late for another request?
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.begin.get().is_some_and(|begin| begin + self.period.measured <= now)
    }
}
