//! The one clock. Code that runs on a runtime asks here and nowhere else.
//!
//! Inside a runtime the monotonic time is read between two tasks: everything that a task does until it
//! waits happens at one moment, and asking costs nothing. A task that runs for long calls [`refresh`].

use std::cell::Cell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

thread_local! {
    /// The moment of the task at work while this thread runs a runtime.
    static TURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The moment of the task at work inside a runtime; the present moment outside.
pub fn now() -> Instant {
    TURN.get().unwrap_or_else(read)
}

/// The present moment, within a turn of a task too: what time it has taken so far.
pub(crate) fn read() -> Instant {
    #[cfg(feature = "sim")]
    if let Some(now) = crate::sim::now() {
        return now;
    }
    Instant::now()
}

/// Reads the clock again, for the rest of what the task at work does.
pub fn refresh() -> Instant {
    let now = read();
    if TURN.get().is_some() {
        TURN.set(Some(now));
    }
    now
}

/// Milliseconds since 1970, by the wall clock, which may jump: for time stamps, never for waiting.
/// A clock set before 1970 reads as negative.
pub fn wall_ms() -> i64 {
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::entered() {
        return world.wall_ms();
    }
    let milliseconds =
        |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => milliseconds(since),
        Err(before) => -milliseconds(before.duration()),
    }
}

/// Starts to answer with turns on this thread.
pub(crate) fn begin() -> Instant {
    let now = read();
    TURN.set(Some(now));
    now
}

/// Answers with the present moment again.
pub(crate) fn end() {
    TURN.set(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_within_a_turn() {
        let before = now();
        assert!(now() >= before);
        let turn = begin();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(now(), turn);
        assert!(refresh() > turn);
        assert!(now() > turn);
        end();
    }

    #[test]
    fn the_wall_clock_is_past_2020() {
        assert!(wall_ms() > 1_577_836_800_000);
    }
}
