//! How long a thread that has nothing to do looks for news before it sleeps.
//!
//! Waking a sleeping thread costs 4 µs on one host and 25 µs on another, twice in each round trip;
//! looking costs the core. The adaptive policy looks only as long as that has paid off lately, by the
//! rule of guest halt polling (Linux, Documentation/virt/guest-halt-polling.rst):
//!
//! ```text
//!   slept, and news came within WINDOW_MAX:  the window doubles, from WINDOW_START to WINDOW_MAX
//!   slept longer:                            the window halves, and is 0 below WINDOW_START
//!   news came while it looked:               the window stays
//! ```
//!
//! So a thread looks while flushes or clients answer within a fraction of a millisecond, and a thread
//! with nothing to do sleeps.

use std::time::Duration;

/// 200 µs: the longest that is looked for at once. It covers a flush of most NVMe devices and the
/// round trip of a client on the same network; beyond it the sleep is short beside the wait.
const WINDOW_MAX: Duration = Duration::from_micros(200);

/// 25 µs: what a wake-up costs on the slower hosts.
const WINDOW_START: Duration = Duration::from_micros(25);

/// What a thread does when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Polling {
    /// It sleeps: least processor time, and right wherever the core is shared.
    #[default]
    Sleep,
    /// It looks for news as long as that has paid off lately, then sleeps. For a core of its own.
    Adaptive,
    /// It never sleeps: a core at full load for the shortest delays.
    Busy,
}

/// The window of one thread.
#[derive(Debug)]
pub(super) struct Parking {
    polling: Polling,
    window: Duration,
}

impl Parking {
    pub(super) fn new(polling: Polling) -> Self {
        let window = if polling == Polling::Busy { Duration::MAX } else { Duration::ZERO };
        Self { polling, window }
    }

    /// How long to look before sleeping.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// It slept this long until there was news.
    pub(super) fn woken_after(&mut self, slept: Duration) {
        if self.polling != Polling::Adaptive {
            return;
        }
        self.window = match slept <= WINDOW_MAX {
            true => (self.window * 2).clamp(WINDOW_START, WINDOW_MAX),
            false if WINDOW_START < self.window => self.window / 2,
            false => Duration::ZERO,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(100);
    const LATE: Duration = Duration::from_millis(5);

    #[test]
    fn it_looks_longer_while_news_come_soon_and_not_at_all_when_they_do_not() {
        let mut parking = Parking::new(Polling::Adaptive);
        assert_eq!(parking.window(), Duration::ZERO);
        parking.woken_after(SOON);
        assert_eq!(parking.window(), WINDOW_START);
        for _ in 0..10 {
            parking.woken_after(SOON);
        }
        assert_eq!(parking.window(), WINDOW_MAX);
        parking.woken_after(LATE);
        assert_eq!(parking.window(), WINDOW_MAX / 2);
        for _ in 0..10 {
            parking.woken_after(LATE);
        }
        assert_eq!(parking.window(), Duration::ZERO);
    }

    #[test]
    fn who_sleeps_or_never_does_learns_nothing() {
        for (polling, window) in [(Polling::Sleep, Duration::ZERO), (Polling::Busy, Duration::MAX)]
        {
            let mut parking = Parking::new(polling);
            parking.woken_after(SOON);
            parking.woken_after(LATE);
            assert_eq!(parking.window(), window);
        }
    }
}
