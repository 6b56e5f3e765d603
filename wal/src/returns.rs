//! How soon producers that were answered append again: what tells those who wait for each answer
//! from those who send at a pace of their own.

use std::collections::VecDeque;

use crate::mean::RunningMean;

/// Producers of one block that are followed, and those that are away: 32. More of them fill blocks
/// without anybody's waiting.
const PRODUCERS_MAX: usize = 32;

/// The longest time that counts: 10 ms. Whoever stays away longer is not soon remembered for it.
const RETURN_NS_MAX: u64 = 10_000_000;

/// The mean time from a block's end to the next append of a producer that had a part in it. One per
/// WAL. Times are nanoseconds of one monotonic clock.
///
/// Who is still away when others take its place counts with the time until then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Returns {
    /// Who has a part in the block that is open.
    open: Vec<u64>,
    /// In the one that is being written.
    in_flight: Vec<u64>,
    /// Who was answered, when, and has not come back. Oldest first.
    away: VecDeque<(u64, u64)>,
    mean: RunningMean,
}

impl Returns {
    /// This producer appended.
    pub(crate) fn handle_append(&mut self, now_ns: u64, producer: u64) {
        if self.open.last() == Some(&producer) {
            return;
        }
        let place = self.away.iter().position(|(who, _)| *who == producer);
        if let Some((_, answered_at)) = place.and_then(|place| self.away.remove(place)) {
            self.count(answered_at, now_ns);
        }
        if self.open.len() < PRODUCERS_MAX && !self.open.contains(&producer) {
            self.open.push(producer);
        }
    }

    /// The open block was closed: the next one is open.
    pub(crate) fn handle_closed(&mut self) {
        std::mem::swap(&mut self.open, &mut self.in_flight);
        self.open.clear();
    }

    /// The block that was closed has ended: its producers are answered.
    pub(crate) fn handle_ended(&mut self, now_ns: u64) {
        while let Some(producer) = self.in_flight.pop() {
            // Whoever appended meanwhile did not wait for this answer.
            if self.open.contains(&producer) {
                continue;
            }
            if self.away.len() == PRODUCERS_MAX
                && let Some((_, answered_at)) = self.away.pop_front()
            {
                self.count(answered_at, now_ns);
            }
            self.away.push_back((producer, now_ns));
        }
    }

    /// The mean, once anybody was answered.
    pub(crate) fn mean_ns(&self) -> Option<u64> {
        self.mean.ns()
    }

    fn count(&mut self, answered_at: u64, now_ns: u64) {
        self.mean.add(now_ns.saturating_sub(answered_at).min(RETURN_NS_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of these producers, each written in 100 ns; they append so long after the answer.
    fn mean_after_blocks(producers: u64, pause_ns: u64) -> Option<u64> {
        let mut returns = Returns::default();
        let mut now = 0;
        for _ in 0..50 {
            for producer in 0..producers {
                returns.handle_append(now, producer);
                returns.handle_append(now, producer);
            }
            returns.handle_closed();
            now += 100;
            returns.handle_ended(now);
            now += pause_ns;
        }
        returns.mean_ns()
    }

    #[test]
    fn those_who_wait_for_their_answers_come_back_after_it() {
        assert_eq!(mean_after_blocks(1, 40), Some(40));
        assert_eq!(mean_after_blocks(8, 40), Some(40));
        assert_eq!(mean_after_blocks(1_000, 40), Some(40));
    }

    #[test]
    fn nobody_is_known_before_the_first_answer() {
        let mut returns = Returns::default();
        returns.handle_append(5, 1);
        returns.handle_closed();
        returns.handle_append(6, 2);
        assert_eq!(returns.mean_ns(), None);
    }

    #[test]
    fn those_who_stay_away_count_when_others_take_their_place() {
        let mut returns = Returns::default();
        for block in 0..2 * PRODUCERS_MAX as u64 {
            returns.handle_append(block * 300, block);
            returns.handle_closed();
            returns.handle_ended(block * 300 + 100);
        }
        assert_eq!(returns.mean_ns(), Some(PRODUCERS_MAX as u64 * 300));
    }

    #[test]
    fn a_long_pause_is_soon_made_up_for() {
        let mut returns = Returns::default();
        let mut now = 0;
        for pause_ns in std::iter::once(u64::from(u32::MAX)).chain([40_000; 64]) {
            returns.handle_append(now, 1);
            returns.handle_closed();
            returns.handle_ended(now);
            now += pause_ns;
        }
        assert!(returns.mean_ns().unwrap() < 50_000);
    }

    #[test]
    fn who_appends_while_a_block_is_written_does_not_wait_for_it() {
        let mut returns = Returns::default();
        for block in 0..50 {
            returns.handle_append(block * 100, 7);
            returns.handle_closed();
            returns.handle_append(block * 100 + 50, 7);
            returns.handle_ended(block * 100 + 100);
        }
        assert_eq!(returns.mean_ns(), None);
    }
}
