//! Idempotence: which batches of which producer were appended before.

use std::collections::{BTreeMap, VecDeque};

use rustmq_protocol::{BatchHeader, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};
use rustmq_wal::checkpoint::forgotten_beyond;

use crate::limits::PRODUCER_BATCHES_REMEMBERED;

/// One remembered batch of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchMark {
    /// Sequence of the batch's first record.
    pub base_sequence: Sequence,
    /// Records in the batch.
    pub record_count: u32,
    /// Offset of the batch's first record.
    pub base_offset: Offset,
}

/// What a partition knows of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// The producer's newest epoch; older ones are fenced.
    pub epoch: ProducerEpoch,
    /// When it last appended; state older than the expiry is dropped.
    pub last_append: TimestampMs,
    /// Its last batches, oldest first, at most [`PRODUCER_BATCHES_REMEMBERED`].
    pub batches: VecDeque<BatchMark>,
}

/// The verdict on a batch's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The next batch of its producer, or a batch without a producer.
    Accept,
    /// This very batch was appended before.
    Duplicate(BatchMark),
}

/// Why a batch's sequence is refused. All are definite: nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceError {
    /// Nothing is known of the producer and the batch is not its first.
    UnknownProducer,
    /// A newer epoch of this producer id has appended.
    FencedEpoch {
        /// The newest epoch seen.
        current: ProducerEpoch,
    },
    /// Not the sequence that comes next.
    OutOfOrder {
        /// The sequence that would be accepted.
        expected: Sequence,
    },
    /// Appended before, but too long ago to say at which offset.
    DuplicateForgotten,
    /// The partition already remembers as many producers as it may.
    TooMany {
        /// The bound.
        max: usize,
    },
}

/// The producers of one partition.
///
/// Invariants: a producer has at least one remembered batch and at most
/// [`PRODUCER_BATCHES_REMEMBERED`]; beside what was replayed, at most `producers_max` producers are
/// remembered.
#[derive(Clone, Debug)]
pub struct Producers {
    states: BTreeMap<ProducerId, ProducerState>,
    producers_max: usize,
}

impl Producers {
    /// No producers yet, and at most `producers_max` ever.
    pub fn new(producers_max: usize) -> Self {
        Self { states: BTreeMap::new(), producers_max }
    }

    /// May a batch with this header be appended?
    pub fn check(&self, batch: &BatchHeader) -> Result<Check, SequenceError> {
        if batch.producer_id == ProducerId::NONE {
            return Ok(Check::Accept);
        }
        let first = batch.base_sequence == Sequence(0);
        let Some(state) = self.states.get(&batch.producer_id) else {
            return match first {
                false => Err(SequenceError::UnknownProducer),
                true if self.producers_max <= self.states.len() => {
                    Err(SequenceError::TooMany { max: self.producers_max })
                }
                true => Ok(Check::Accept),
            };
        };
        if batch.producer_epoch < state.epoch {
            return Err(SequenceError::FencedEpoch { current: state.epoch });
        }
        if state.epoch < batch.producer_epoch {
            return match first {
                true => Ok(Check::Accept),
                false => Err(SequenceError::OutOfOrder { expected: Sequence(0) }),
            };
        }
        check_sequence(state, batch)
    }

    /// The batch was appended at `base_offset`. It must have been accepted by [`Self::check`], or
    /// come from the log itself.
    pub fn record(&mut self, batch: &BatchHeader, base_offset: Offset, append_time: TimestampMs) {
        if batch.producer_id == ProducerId::NONE {
            return;
        }
        let state = self.states.entry(batch.producer_id).or_insert_with(|| ProducerState {
            epoch: batch.producer_epoch,
            last_append: append_time,
            batches: VecDeque::with_capacity(PRODUCER_BATCHES_REMEMBERED),
        });
        if state.epoch < batch.producer_epoch {
            state.epoch = batch.producer_epoch;
            state.batches.clear();
        }
        if state.batches.len() == PRODUCER_BATCHES_REMEMBERED {
            state.batches.pop_front();
        }
        state.batches.push_back(BatchMark {
            base_sequence: batch.base_sequence,
            record_count: batch.record_count,
            base_offset,
        });
        state.last_append = append_time;
    }

    /// Puts back one producer of a checkpoint. A state without batches is dropped: it says nothing.
    pub fn restore(&mut self, id: ProducerId, state: ProducerState) {
        if !state.batches.is_empty() {
            self.states.insert(id, state);
        }
    }

    /// Forgets producers that appended nothing since `before`; returns how many.
    pub fn expire(&mut self, before: TimestampMs) -> usize {
        let held = self.states.len();
        self.states.retain(|_, state| before <= state.last_append);
        held - self.states.len()
    }

    /// Forgets those who appended the longest ago until at most `max` are left; returns how many. It is
    /// whom [`Self::expire`] forgets first.
    pub fn bound(&mut self, max: usize) -> usize {
        let producers = self.states.iter().map(|(id, state)| {
            let last = state.batches.back().map_or(Offset::ZERO, |mark| mark.base_offset);
            (state.last_append, last, *id)
        });
        let forgotten = forgotten_beyond(max, producers);
        for id in &forgotten {
            self.states.remove(id);
        }
        forgotten.len()
    }

    /// Would a batch of this producer make it one more to remember?
    pub fn is_new(&self, id: ProducerId) -> bool {
        id != ProducerId::NONE && !self.states.contains_key(&id)
    }

    /// Each producer with its state, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &ProducerState)> {
        self.states.iter().map(|(id, state)| (*id, state))
    }

    /// Producers remembered.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Is no producer remembered?
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }
}

fn check_sequence(state: &ProducerState, batch: &BatchHeader) -> Result<Check, SequenceError> {
    let last = state.batches.back().expect("a remembered producer has a batch");
    let expected = last.base_sequence.advance(last.record_count);
    if batch.base_sequence == expected {
        return Ok(Check::Accept);
    }
    let same = |mark: &&BatchMark| {
        mark.base_sequence == batch.base_sequence && mark.record_count == batch.record_count
    };
    if let Some(mark) = state.batches.iter().find(same) {
        return Ok(Check::Duplicate(*mark));
    }
    // Sequences wrap, so "before" is the half of the circle behind the expected one.
    let behind = expected.0.wrapping_sub(batch.base_sequence.0);
    if behind < u32::MAX / 2 {
        return Err(SequenceError::DuplicateForgotten);
    }
    Err(SequenceError::OutOfOrder { expected })
}
