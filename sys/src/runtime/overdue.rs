//! When a thread that does not sleep should let the kernel's own threads have the core for once.
//!
//! A write that is one operation (`RWF_DSYNC`) ends on a kernel thread of the core that was told of its
//! end. [`give_way_to_wakeups`](crate::cpu::give_way_to_wakeups) lets that run at once, but for now and
//! then: woken soon after it has run, it may be passed over until the next tick, up to 4 ms later (seen
//! on Linux 6.18; `docs/adr/0007-writing-through.md`). The running thread cannot tell that from a slow
//! device, so it pauses whenever a write takes long.

use std::time::{Duration, Instant};

/// 150 µs: a durable write that has taken so long, twice what an NVMe device needs, may be waiting for
/// the core. Of a slower device each write costs a pause in so much time.
const OVERDUE_AFTER: Duration = Duration::from_micros(150);

/// 10 µs: enough for a thread that has to note the end of a write, and the end of the write ends it.
pub(super) const PAUSE: Duration = Duration::from_micros(10);

/// Follows the durable writes of one ring.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    in_flight: u32,
    /// When to pause next. `None`: nothing is in flight.
    pause_at: Option<Instant>,
}

impl Overdue {
    /// A durable write was handed over.
    pub(super) fn handle_started(&mut self, now: Instant) {
        self.in_flight += 1;
        self.pause_at.get_or_insert(now + OVERDUE_AFTER);
    }

    /// One has ended.
    pub(super) fn handle_ended(&mut self, now: Instant) {
        self.in_flight -= 1;
        self.pause_at = (self.in_flight != 0).then(|| now + OVERDUE_AFTER);
    }

    /// Whether a pause is due at `now`. The next one is as much later.
    pub(super) fn take_pause(&mut self, now: Instant) -> bool {
        let is_due = self.pause_at.is_some_and(|at| at <= now);
        if is_due {
            self.pause_at = Some(now + OVERDUE_AFTER);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_due_once_in_a_while_of_a_write_that_does_not_end() {
        let start = Instant::now();
        let mut overdue = Overdue::default();
        assert!(!overdue.take_pause(start + OVERDUE_AFTER), "nothing is in flight");
        overdue.handle_started(start);
        let pauses = (0..1_000).filter(|us| overdue.take_pause(start + Duration::from_micros(*us)));
        assert_eq!(pauses.count(), 6);
        overdue.handle_ended(start + 7 * OVERDUE_AFTER);
        assert!(!overdue.take_pause(start + 100 * OVERDUE_AFTER));
    }

    #[test]
    fn the_end_of_one_of_two_writes_starts_the_time_anew() {
        let start = Instant::now();
        let mut overdue = Overdue::default();
        overdue.handle_started(start);
        overdue.handle_started(start + OVERDUE_AFTER / 2);
        overdue.handle_ended(start + OVERDUE_AFTER / 2);
        assert!(!overdue.take_pause(start + OVERDUE_AFTER));
        assert!(overdue.take_pause(start + OVERDUE_AFTER / 2 + OVERDUE_AFTER));
    }
}
