//! What a subscription has read from the disk and not sent yet.
//!
//! ```text
//!   disk ── one read ──▶ part, part ── take ──▶ answers of any size
//!            begins when less than half a read is left, while what was taken is sent
//! ```
//!
//! What is here was right when it was read. Whether it may still be sent is asked anew before each
//! answer, as of everything: where the log begins now, whether the topic is there, what is damaged.

use std::collections::VecDeque;

use rustmq_protocol::Offset;

use crate::budget::Charge;
use crate::limits::READ_AHEAD_BYTES;
use crate::read::{Batch, Found};

/// The batches that come next, of at most two reads.
///
/// Belongs to one subscription and is emptied when that ends. Invariant: the batches follow one
/// another without a hole.
#[derive(Default)]
pub(crate) struct ReadAhead {
    parts: VecDeque<Part>,
    bytes: usize,
    reading: bool,
    stuck: bool,
}

/// What one read brought. Its memory is given back when all of it was taken.
struct Part {
    batches: VecDeque<Batch>,
    _charge: Charge,
}

impl ReadAhead {
    /// Takes batches from the one that holds `offset` on: so many bytes of them, or one. None if they
    /// are not here; then nothing is.
    pub(crate) fn take(&mut self, offset: Offset, bytes_max: usize) -> Option<Found> {
        let mut found = Found::new();
        let mut next = offset;
        while let Some(part) = self.parts.front_mut() {
            let Some(batch) = part.batches.front() else {
                self.parts.pop_front();
                continue;
            };
            if next < batch.offsets.start {
                // The consumer is elsewhere: all of this is of no use to it.
                self.parts.clear();
                self.bytes = 0;
                break;
            }
            let passed = batch.offsets.end <= next;
            if !passed && !found.takes(batch.bytes.len(), bytes_max) {
                break;
            }
            next = next.max(batch.offsets.end);
            let batch = part.batches.pop_front().expect("just seen");
            self.bytes -= batch.bytes.len();
            if !passed {
                found.push(batch);
            }
            if part.batches.is_empty() {
                self.parts.pop_front();
            }
        }
        (!found.is_empty()).then_some(found)
    }

    /// Should more be read now?
    pub(crate) fn wants_more(&self) -> bool {
        !self.reading && !self.stuck && self.bytes < READ_AHEAD_BYTES / 2
    }

    /// One past what is here; `None` if nothing is.
    pub(crate) fn end_offset(&self) -> Option<Offset> {
        Some(self.parts.back()?.batches.back()?.offsets.end)
    }

    /// A read has begun, behind all that is here.
    pub(crate) fn begin(&mut self) {
        assert!(!self.reading, "one read at a time");
        self.reading = true;
    }

    /// A read has ended. Without batches nothing more is read ahead until the consumer has come to
    /// where it failed, and is told why.
    pub(crate) fn handle_read(&mut self, batches: Vec<Batch>, charge: Charge) {
        self.reading = false;
        self.stuck = batches.is_empty();
        if self.stuck {
            return;
        }
        self.bytes += batches.iter().map(|batch| batch.bytes.len()).sum::<usize>();
        self.parts.push_back(Part { batches: batches.into(), _charge: charge });
    }

    /// The consumer has all that is here. True: a read is on its way; else it reads by itself from
    /// where it stands, and what held up reading ahead is over.
    pub(crate) fn restart(&mut self) -> bool {
        self.stuck = false;
        self.reading
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::budget::Budget;

    /// Batches of ten records and a hundred bytes each.
    fn batches(bases: impl IntoIterator<Item = u64>) -> Vec<Batch> {
        let batch = |base| Batch {
            bytes: Bytes::from_static(&[7; 100]),
            offsets: Offset(base)..Offset(base + 10),
        };
        bases.into_iter().map(batch).collect()
    }

    fn read(budget: &Budget, ahead: &mut ReadAhead, bases: impl IntoIterator<Item = u64>) {
        ahead.begin();
        ahead.handle_read(batches(bases), budget.charge(1000));
    }

    #[test]
    fn answers_are_cut_from_what_was_read_and_the_memory_is_given_back() {
        let (budget, mut ahead) = (Budget::new(1 << 20), ReadAhead::default());
        read(&budget, &mut ahead, [0, 10, 20]);
        read(&budget, &mut ahead, [30]);
        assert_eq!((budget.used(), ahead.end_offset()), (2000, Some(Offset(40))));
        let found = ahead.take(Offset(5), 250).unwrap();
        assert_eq!((found.bytes(), found.end_offset), (200, Offset(20)));
        let found = ahead.take(Offset(20), 200).unwrap();
        assert_eq!((found.bytes(), found.end_offset), (200, Offset(40)), "of both reads");
        assert_eq!(budget.used(), 0);
        assert!(ahead.take(Offset(40), 100).is_none());
        assert!(ahead.wants_more() && ahead.end_offset().is_none());
    }

    #[test]
    fn what_was_sent_from_elsewhere_is_passed_over_and_what_does_not_join_is_dropped() {
        let (budget, mut ahead) = (Budget::new(1 << 20), ReadAhead::default());
        read(&budget, &mut ahead, [0, 10, 20]);
        let found = ahead.take(Offset(20), 1).unwrap();
        assert_eq!((found.bytes(), found.end_offset), (100, Offset(30)));
        read(&budget, &mut ahead, [30, 40]);
        assert!(ahead.take(Offset(29), 100).is_none());
        assert_eq!((ahead.bytes, budget.used()), (0, 0));
    }

    #[test]
    fn one_read_at_a_time_and_none_behind_a_failed_one_until_the_consumer_is_there() {
        let (budget, mut ahead) = (Budget::new(1 << 20), ReadAhead::default());
        read(&budget, &mut ahead, [0]);
        ahead.begin();
        assert!(!ahead.wants_more() && ahead.restart());
        ahead.handle_read(Vec::new(), budget.charge(1000));
        assert_eq!(budget.used(), 1000, "of the first");
        assert!(!ahead.wants_more());
        assert!(ahead.take(Offset(0), 100).is_some());
        assert!(!ahead.restart());
        assert!(ahead.wants_more());
    }

    #[test]
    fn enough_is_enough() {
        let (budget, mut ahead) = (Budget::new(1 << 20), ReadAhead::default());
        let count = READ_AHEAD_BYTES as u64 / 2 / 100;
        read(&budget, &mut ahead, (0..count).map(|index| index * 10));
        assert!(ahead.wants_more());
        read(&budget, &mut ahead, [count * 10]);
        assert!(!ahead.wants_more());
        drop(ahead);
        assert_eq!(budget.used(), 0);
    }
}
