//! How long a client looks for datagrams before its thread may sleep. Pure: no clock, no I/O.
//!
//! ```text
//!   slept, and datagrams came within WINDOW_MAX:  the window doubles, from WINDOW_START to WINDOW_MAX
//!   slept longer:                                 the window halves, and is 0 below WINDOW_START
//!   datagrams came while it looked:               the window stays
//! ```
//!
//! So a client looks while answers come within a fraction of a millisecond, and one that waits for
//! longer, or for nothing, sleeps.

use std::time::{Duration, Instant};

/// 500 µs: the longest that is looked for at once. It covers the flush of most NVMe devices and the
/// way to a broker on the same network; beyond it a wake-up is short beside the wait.
const WINDOW_MAX: Duration = Duration::from_micros(500);

/// 25 µs: what a wake-up costs on the slower hosts.
const WINDOW_START: Duration = Duration::from_micros(25);

/// What a socket without datagrams does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Look again, after what else there is to do.
    Look,
    /// Wait until the kernel says that there are some.
    Sleep,
}

/// The window of one socket.
#[derive(Debug, Default)]
pub(crate) struct Looking {
    window: Duration,
    /// Since when there were no datagrams; `None` if there were some the last time.
    empty_since: Option<Instant>,
    /// It has stopped looking since.
    is_asleep: bool,
}

impl Looking {
    /// There were datagrams.
    pub(crate) fn handle_datagrams(&mut self, now: Instant) {
        let Some(since) = self.empty_since.take() else { return };
        if !std::mem::take(&mut self.is_asleep) {
            return;
        }
        self.window = match now.saturating_duration_since(since) <= WINDOW_MAX {
            true => (self.window * 2).clamp(WINDOW_START, WINDOW_MAX),
            false if WINDOW_START < self.window => self.window / 2,
            false => Duration::ZERO,
        };
    }

    /// There were none.
    pub(crate) fn handle_empty(&mut self, now: Instant) -> Next {
        let since = *self.empty_since.get_or_insert(now);
        self.is_asleep |= self.window <= now.saturating_duration_since(since);
        if self.is_asleep { Next::Sleep } else { Next::Look }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets so much time pass without datagrams, looking each 10 µs; true if it slept.
    fn pass(looking: &mut Looking, now: &mut Instant, time: Duration) -> bool {
        let end = *now + time;
        let mut slept = false;
        while *now < end {
            slept |= looking.handle_empty(*now) == Next::Sleep;
            *now += Duration::from_micros(10);
        }
        looking.handle_datagrams(*now);
        slept
    }

    #[test]
    fn it_looks_once_answers_come_soon_and_sleeps_once_they_do_not() {
        let (mut looking, mut now) = (Looking::default(), Instant::now());
        let (soon, late) = (Duration::from_micros(150), Duration::from_millis(5));
        let slept: Vec<bool> = (0..6).map(|_| pass(&mut looking, &mut now, soon)).collect();
        assert_eq!(slept, [true, true, true, true, false, false]);
        assert!(pass(&mut looking, &mut now, late), "it never looks for longer than the window");
        for _ in 0..4 {
            pass(&mut looking, &mut now, late);
        }
        assert_eq!(looking.window, Duration::ZERO);
    }

    #[test]
    fn a_client_that_is_told_something_now_and_then_never_looks() {
        let (mut looking, mut now) = (Looking::default(), Instant::now());
        for _ in 0..3 {
            assert!(pass(&mut looking, &mut now, Duration::from_millis(1)));
            assert_eq!(looking.window, Duration::ZERO);
        }
    }
}
