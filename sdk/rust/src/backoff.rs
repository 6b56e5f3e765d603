//! How long to wait before trying again: twice as long each time, with jitter, up to a maximum.
//! Pure.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::error::ClientError;

/// A sequence of pauses. [`Backoff::reset`] after a success.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

/// A seed that differs between clients, so that they do not all come back at the same moment.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff { min, max, next: min, random: seed | 1 }
    }

    /// The next pause: from half to the whole of what has been doubled so far.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.max);
        // xorshift64: jitter needs no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let fraction = (self.random >> 40) as f64 / (1u64 << 24) as f64;
        whole.mul_f64(0.5 + fraction / 2.0)
    }

    /// The next pause after this error: longer than the broker asked for, by what tells its clients
    /// apart.
    pub(crate) fn pause_after(&mut self, error: &ClientError) -> Duration {
        error.retry_after() + self.pause()
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(10);
    const MAX: Duration = Duration::from_millis(100);

    #[test]
    fn pauses_double_up_to_the_maximum_with_jitter_below() {
        let mut backoff = Backoff::new(MIN, MAX, 7);
        for whole in [10, 20, 40, 80, 100, 100].map(Duration::from_millis) {
            let pause = backoff.pause();
            assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= MIN);
    }

    #[test]
    fn seeds_part_clients() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(MIN, MAX, seed);
            [backoff.pause(), backoff.pause(), backoff.pause()]
        };
        assert_eq!(pauses(2), pauses(2));
        assert_ne!(pauses(2), pauses(4));
        assert_ne!(random_seed(), random_seed());
    }
}
