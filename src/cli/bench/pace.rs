//! When batches are due in an open loop.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

/// Due times evenly spread from a start on. Pure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: Instant,
    batches_per_second: f64,
}

impl Schedule {
    /// So many records a second, in batches.
    pub(super) fn new(start: Instant, records_per_second: u64, batch_records: u32) -> Schedule {
        let batches_per_second = records_per_second as f64 / f64::from(batch_records);
        Schedule { start, batches_per_second }
    }

    /// When the batch of this index, from 0, is due.
    pub(super) fn due_at(&self, index: u64) -> Instant {
        // From the index, not by adding up: rounding does not drift.
        self.start + Duration::from_secs_f64(index as f64 / self.batches_per_second)
    }
}

/// Tells each producer in turn when a batch is due, until the end. For a thread of its own: the
/// timers of the runtime are too coarse.
pub(super) fn run(schedule: Schedule, end: Instant, producers: &[Sender<Instant>]) {
    for index in 0.. {
        let due_at = schedule.due_at(index);
        if end <= due_at {
            return;
        }
        std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
        let turn = usize::try_from(index % producers.len().max(1) as u64).unwrap_or_default();
        let Some(producer) = producers.get(turn) else { return };
        if producer.blocking_send(due_at).is_err() {
            return;
        }
    }
}

/// Asks the kernel to wake this thread, and those that it starts, when they asked for it, not up to
/// 50 microseconds later. Where it refuses, latencies of an open loop are that much longer.
pub(super) fn sleep_exactly() {
    drop(std::fs::write("/proc/self/timerslack_ns", "1"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_are_even_and_do_not_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3000, 10);
        assert_eq!(schedule.due_at(0), start);
        let after = |index| schedule.due_at(index).duration_since(start);
        assert_eq!(after(300), Duration::from_secs(1));
        assert_eq!(after(300 * 3600), Duration::from_secs(3600));
        assert_eq!(after(1).as_micros(), 3333);
    }

    #[tokio::test]
    async fn producers_take_turns_until_the_end() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 1000, 1);
        let (senders, mut receivers): (Vec<_>, Vec<_>) =
            (0..2).map(|_| tokio::sync::mpsc::channel(16)).unzip();
        let end = start + Duration::from_millis(5);
        std::thread::spawn(move || run(schedule, end, &senders));
        for index in 0..5 {
            let due_at = receivers[index % 2].recv().await;
            assert_eq!(due_at, Some(schedule.due_at(index as u64)));
        }
        assert_eq!(receivers[0].recv().await, None);
    }
}
