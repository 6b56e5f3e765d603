//! What the entries of a WAL add up to: the state of its partitions at a start.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use rustmq_engine::Partition;
use rustmq_engine::partition::{BatchMark, Epochs, PartitionState, ProducerState};
use rustmq_protocol::{BatchError, BatchHeader, LeaderEpoch, Offset, ProducerId, TopicPartition};
use rustmq_wal::recovery::missing_records;
use rustmq_wal::{
    BlockHeader, CheckpointError, Corruption, Entry, EntryKind, PartitionCheckpoint, WAL_ITSELF,
};

/// The partitions of one WAL, as its entries say they are.
#[derive(Default)]
pub(crate) struct Replayed {
    partitions: BTreeMap<TopicPartition, ReplayedPartition>,
}

/// One partition, on its way to become an engine's.
#[derive(Default)]
pub(crate) struct ReplayedPartition {
    state: PartitionState,
    producers: Vec<(ProducerId, ProducerState)>,
    /// Batches after the checkpoint: epoch, header, offset, append time.
    batches: Vec<(LeaderEpoch, BatchHeader, Offset, rustmq_protocol::TimestampMs)>,
    damaged: Vec<Range<Offset>>,
}

/// Entries that are whole and still make no sense.
#[derive(Debug)]
pub(crate) enum ReplayError {
    Checkpoint(TopicPartition, CheckpointError),
    Batch(TopicPartition, BatchError),
    OffsetsFall { partition: TopicPartition, end: Offset, found: Offset },
}

impl Replayed {
    /// Takes the next entry of the log.
    pub(crate) fn replay(
        &mut self,
        _block: &BlockHeader,
        entry: &Entry<'_>,
    ) -> Result<(), ReplayError> {
        let header = &entry.header;
        let id = header.partition;
        if id == WAL_ITSELF {
            return Ok(());
        }
        let partition = self.partitions.entry(id).or_default();
        match header.kind {
            EntryKind::Checkpoint => {
                let checkpoint = PartitionCheckpoint::decode(entry.payload)
                    .map_err(|error| ReplayError::Checkpoint(id, error))?;
                partition.begin(&checkpoint);
            }
            EntryKind::LogStart => {
                let start = &mut partition.state.log_start_offset;
                *start = header.base_offset.max(*start);
            }
            EntryKind::EpochStart => {}
            EntryKind::Data => {
                let batch = BatchHeader::decode(entry.payload)
                    .map_err(|error| ReplayError::Batch(id, error))?;
                let end = partition.state.log_end_offset;
                if header.base_offset < end {
                    let found = header.base_offset;
                    return Err(ReplayError::OffsetsFall { partition: id, end, found });
                }
                partition.state.log_end_offset = header.end_offset();
                partition.batches.push((
                    header.leader_epoch,
                    batch,
                    header.base_offset,
                    header.append_time,
                ));
            }
        }
        Ok(())
    }

    /// Leaves out a damaged block of known extent: its records are refused from now on. False when
    /// more than records is in doubt.
    pub(crate) fn leave_out(&mut self, corruption: &Corruption, file: &Path) -> bool {
        let Some(lines) = &corruption.named else {
            return false;
        };
        if lines.iter().any(|line| line.kind != EntryKind::Data as u8) {
            return false;
        }
        for line in lines {
            let end = Offset(line.base_offset.0 + u64::from(line.record_count));
            tracing::error!(
                partition = %line.partition, first = %line.base_offset, %end,
                file = %file.display(), position = corruption.position, why = %corruption.why,
                "records are damaged on disk and will not be served; restore the file from a copy"
            );
            let partition = self.partitions.entry(line.partition).or_default();
            partition.damaged.push(line.base_offset..end);
            partition.state.log_end_offset = partition.state.log_end_offset.max(end);
        }
        true
    }

    /// Are records missing behind the log start? If a file was lost the missing ones are marked.
    pub(crate) fn check_start(
        &mut self,
        id: TopicPartition,
        first: Option<Offset>,
        dir: &Path,
    ) -> bool {
        let Some(partition) = self.partitions.get_mut(&id) else {
            return false;
        };
        let PartitionState { log_start_offset, log_end_offset, .. } = partition.state;
        if let Some(missing) = missing_records(log_start_offset, log_end_offset, first) {
            tracing::error!(
                partition = %id, first = %missing.start, end = %missing.end, dir = %dir.display(),
                "records are missing: the segment file that held them is gone or unreadable"
            );
            partition.damaged.push(missing);
            return true;
        }
        false
    }

    /// Every partition that an entry names.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (TopicPartition, &ReplayedPartition)> {
        self.partitions.iter().map(|(id, partition)| (*id, partition))
    }

    /// Takes one partition out.
    pub(crate) fn take(&mut self, id: TopicPartition) -> Option<ReplayedPartition> {
        self.partitions.remove(&id)
    }
}

impl ReplayedPartition {
    fn begin(&mut self, checkpoint: &PartitionCheckpoint) {
        self.state = PartitionState {
            log_start_offset: checkpoint.log_start,
            log_end_offset: checkpoint.log_end,
            append_time_max: checkpoint.append_time_max,
            epochs: Epochs::from_pairs(checkpoint.epochs.iter().copied()),
        };
        self.producers = checkpoint
            .producers
            .iter()
            .map(|producer| {
                let batches = producer.batches.iter().map(|batch| BatchMark {
                    base_sequence: batch.base_sequence,
                    record_count: batch.record_count,
                    base_offset: batch.base_offset,
                });
                let state = ProducerState {
                    epoch: producer.epoch,
                    last_append: producer.last_append_time,
                    batches: batches.collect(),
                };
                (producer.id, state)
            })
            .collect();
    }

    /// The engine's partition, led in `leader_epoch`.
    pub(crate) fn into_engine(
        self,
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
        producers_max: usize,
    ) -> Partition {
        // The log end of the checkpoint; the batches behind it are replayed one by one.
        let log_end = self.batches.first().map_or(self.state.log_end_offset, |first| first.2);
        let log_start = self.state.log_start_offset;
        let damaged_end = self.damaged_end();
        let state = PartitionState {
            log_start_offset: log_start.min(log_end),
            log_end_offset: log_end,
            ..self.state
        };
        let mut engine = Partition::new(id, leader_epoch, state, producers_max);
        for (id, state) in self.producers {
            engine.restore_producer(id, state);
        }
        for (epoch, batch, base_offset, append_time) in self.batches {
            engine.replay(epoch, &batch, base_offset, append_time);
        }
        engine.skip_to(damaged_end);
        engine.advance_log_start(log_start);
        for range in self.damaged {
            engine.mark_damaged(range);
        }
        engine
    }

    fn damaged_end(&self) -> Offset {
        self.damaged.iter().map(|range| range.end).max().unwrap_or_default()
    }
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint(id, error) => write!(f, "checkpoint of partition {id}: {error}"),
            Self::Batch(id, error) => write!(f, "a batch of partition {id}: {error}"),
            Self::OffsetsFall { partition, end, found } => write!(
                f,
                "partition {partition} has records up to {end} and then again from {found}"
            ),
        }
    }
}
