//! The leader of a partition: accepts batches, assigns offsets, moves the high watermark.

use std::ops::Range;

use rustmq_planted::{Bug, planted};
use rustmq_protocol::{BatchHeader, LeaderEpoch, Offset, ProducerId, TimestampMs, TopicPartition};

use super::{Check, Epochs, ProducerState, Producers, SequenceError};
use crate::limits::DAMAGED_RANGES_MAX;

/// One partition on its leader.
///
/// Lives on one core and is driven by that core's shell: [`Self::append`] decides, the shell
/// writes, [`Self::handle_flushed`] tells that the write is on the device. With one replica the
/// high watermark is the flushed offset: what is durable may be read.
///
/// Invariants: `log_start ≤ flushed ≤ log_end`, and `log_start ≤ high_watermark ≤ flushed`.
#[derive(Debug)]
pub struct Partition {
    id: TopicPartition,
    leader_epoch: LeaderEpoch,
    log_start_offset: Offset,
    flushed_offset: Offset,
    log_end_offset: Offset,
    append_time_max: TimestampMs,
    epochs: Epochs,
    producers: Producers,
    damaged: Vec<Range<Offset>>,
}

/// What a checkpoint and the log behind it say of a partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionState {
    /// First offset that may be read.
    pub log_start_offset: Offset,
    /// Next offset to assign.
    pub log_end_offset: Offset,
    /// The append time of the newest record.
    pub append_time_max: TimestampMs,
    /// Leader epochs and where they began.
    pub epochs: Epochs,
}

/// An accepted batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// New records: write them.
    New {
        /// Offset of the first record.
        base_offset: Offset,
        /// `max(previous, wall clock)`: the time that retention goes by.
        append_time: TimestampMs,
    },
    /// These records were appended before: answer once they are flushed up to `end_offset`.
    Duplicate {
        /// Offset of the first record of the original.
        base_offset: Offset,
        /// One past its last record.
        end_offset: Offset,
    },
}

/// Why a batch is not appended. All are definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The request names an older epoch: its metadata is stale.
    FencedLeaderEpoch {
        /// The leader's epoch.
        current: LeaderEpoch,
    },
    /// The request names an epoch that this leader has not heard of.
    UnknownLeaderEpoch {
        /// The leader's epoch.
        current: LeaderEpoch,
    },
    /// The producer's sequence is refused.
    Sequence(SequenceError),
    /// The partition has reached the last offset there is.
    OffsetsExhausted,
    /// Recovery found more damage than can be worked around: the partition takes no records.
    Damaged,
}

/// Why an offset cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The request names an older epoch.
    FencedLeaderEpoch {
        /// The leader's epoch.
        current: LeaderEpoch,
    },
    /// The request names an epoch that this leader has not heard of.
    UnknownLeaderEpoch {
        /// The leader's epoch.
        current: LeaderEpoch,
    },
    /// Nothing is, or is yet, at this offset.
    OffsetOutOfRange {
        /// What may be read: the log start up to and including the high watermark.
        readable: Range<Offset>,
    },
    /// The records are damaged on disk.
    Damaged {
        /// The offsets that cannot be served.
        range: Range<Offset>,
    },
}

impl Partition {
    /// The partition `id` as its log left it, led in `leader_epoch`. All that was recovered is
    /// flushed: recovery rewrites and flushes before it hands a partition over.
    pub fn new(
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
        state: PartitionState,
        producers_max: usize,
    ) -> Self {
        let partition = Self {
            id,
            leader_epoch,
            log_start_offset: state.log_start_offset,
            flushed_offset: state.log_end_offset,
            log_end_offset: state.log_end_offset,
            append_time_max: state.append_time_max,
            epochs: state.epochs,
            producers: Producers::new(producers_max),
            damaged: Vec::new(),
        };
        partition.invariants();
        partition
    }

    /// Accepts or refuses a checked batch. `now` is the wall clock.
    pub fn append(
        &mut self,
        now: TimestampMs,
        leader_epoch: LeaderEpoch,
        batch: &BatchHeader,
    ) -> Result<Append, AppendError> {
        if leader_epoch < self.leader_epoch {
            return Err(AppendError::FencedLeaderEpoch { current: self.leader_epoch });
        }
        if self.leader_epoch < leader_epoch {
            return Err(AppendError::UnknownLeaderEpoch { current: self.leader_epoch });
        }
        if DAMAGED_RANGES_MAX <= self.damaged.len() {
            return Err(AppendError::Damaged);
        }
        if let Check::Duplicate(mark) =
            self.producers.check(batch).map_err(AppendError::Sequence)?
        {
            return Ok(Append::Duplicate {
                base_offset: mark.base_offset,
                end_offset: Offset(mark.base_offset.0 + u64::from(mark.record_count)),
            });
        }
        let base_offset = self.log_end_offset;
        let end_offset = base_offset
            .checked_add(u64::from(batch.record_count))
            .ok_or(AppendError::OffsetsExhausted)?;
        let append_time = match planted(Bug::AppendTimeBack) {
            true => now,
            false => self.append_time_max.max(now),
        };
        self.log_end_offset = end_offset;
        self.append_time_max = append_time;
        self.epochs.begin(self.leader_epoch, base_offset);
        self.producers.record(batch, base_offset, append_time);
        self.invariants();
        Ok(Append::New { base_offset, append_time })
    }

    /// Replays one batch from the log, during recovery and before anything else.
    pub fn replay(
        &mut self,
        epoch: LeaderEpoch,
        batch: &BatchHeader,
        base_offset: Offset,
        append_time: TimestampMs,
    ) {
        assert!(self.log_end_offset <= base_offset, "a log is replayed in order");
        self.log_end_offset = Offset(base_offset.0 + u64::from(batch.record_count));
        self.flushed_offset = self.log_end_offset;
        self.append_time_max = self.append_time_max.max(append_time);
        self.epochs.begin(epoch, base_offset);
        self.producers.record(batch, base_offset, append_time);
        self.invariants();
    }

    /// Offsets before `end` were assigned once and their records are lost: they are never assigned
    /// again. During recovery, after the last batch was replayed.
    pub fn skip_to(&mut self, end: Offset) {
        self.log_end_offset = self.log_end_offset.max(end);
        self.flushed_offset = self.log_end_offset;
        self.invariants();
    }

    /// Puts back one producer of the checkpoint.
    pub fn restore_producer(&mut self, id: ProducerId, state: ProducerState) {
        self.producers.restore(id, state);
    }

    /// Forgets producers until at most `max` are remembered; returns how many. After the last batch was
    /// replayed: a log names more than were ever remembered at a time.
    pub fn bound_producers(&mut self, max: usize) -> usize {
        self.producers.bound(max)
    }

    /// Everything before `flushed` is on the device.
    pub fn handle_flushed(&mut self, flushed: Offset) {
        assert!(self.flushed_offset <= flushed, "flushes complete in order");
        self.flushed_offset = flushed;
        self.invariants();
    }

    /// Moves the log start, never back and never past the high watermark. Returns the new start
    /// when it moved; the shell logs it before anything is reused.
    pub fn advance_log_start(&mut self, to: Offset) -> Option<Offset> {
        let to = to.min(self.high_watermark());
        if to <= self.log_start_offset {
            return None;
        }
        self.log_start_offset = to;
        self.epochs.advance_start(to);
        self.damaged.retain(|range| to < range.end);
        self.invariants();
        Some(to)
    }

    /// `range` was found damaged on disk: it is refused from now on, the rest is served. Ranges that
    /// touch become one.
    pub fn mark_damaged(&mut self, mut range: Range<Offset>) {
        self.damaged.retain(|other| {
            let apart = other.end < range.start || range.end < other.start;
            if !apart {
                range = range.start.min(other.start)..range.end.max(other.end);
            }
            apart
        });
        if self.damaged.len() < DAMAGED_RANGES_MAX {
            self.damaged.push(range);
        }
    }

    /// May a fetch begin at `offset`?
    pub fn check_fetch(&self, epoch: LeaderEpoch, offset: Offset) -> Result<(), FetchError> {
        if epoch < self.leader_epoch {
            return Err(FetchError::FencedLeaderEpoch { current: self.leader_epoch });
        }
        if self.leader_epoch < epoch {
            return Err(FetchError::UnknownLeaderEpoch { current: self.leader_epoch });
        }
        if offset < self.log_start_offset || self.high_watermark() < offset {
            let readable = self.log_start_offset..self.high_watermark();
            return Err(FetchError::OffsetOutOfRange { readable });
        }
        match self.damaged.iter().find(|range| range.contains(&offset)) {
            Some(range) => Err(FetchError::Damaged { range: range.clone() }),
            None => Ok(()),
        }
    }

    /// Forgets producers idle since `before`; returns how many.
    pub fn expire_producers(&mut self, before: TimestampMs) -> usize {
        self.producers.expire(before)
    }

    /// The topic and partition that this is.
    pub fn id(&self) -> TopicPartition {
        self.id
    }

    /// The epoch in which this broker leads.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// First offset that may be read.
    pub fn log_start_offset(&self) -> Offset {
        self.log_start_offset
    }

    /// Next offset to assign.
    pub fn log_end_offset(&self) -> Offset {
        self.log_end_offset
    }

    /// Everything before it is on the device.
    pub fn flushed_offset(&self) -> Offset {
        self.flushed_offset
    }

    /// Everything before it may be read.
    pub fn high_watermark(&self) -> Offset {
        self.flushed_offset
    }

    /// The append time of the newest record.
    pub fn append_time_max(&self) -> TimestampMs {
        self.append_time_max
    }

    /// Has this leader epoch appended nothing so far? Its first batch then begins the epoch.
    pub fn begins_epoch(&self) -> bool {
        self.epochs.latest() != Some(self.leader_epoch)
    }

    /// Leader epochs and their first offsets.
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// The producers that are remembered.
    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    /// The damaged ranges, as recovery named them.
    pub fn damaged(&self) -> &[Range<Offset>] {
        &self.damaged
    }

    fn invariants(&self) {
        assert!(self.log_start_offset <= self.flushed_offset);
        assert!(self.flushed_offset <= self.log_end_offset);
    }
}
