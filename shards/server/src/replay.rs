//! What the entries of a WAL add up to: the state of its partitions at a start.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use rustmq_engine::Partition;
use rustmq_engine::partition::{BatchMark, Epochs, PartitionState, ProducerState};
use rustmq_planted::{Bug, planted};
use rustmq_protocol::{BatchError, BatchHeader, LeaderEpoch, Offset, ProducerId, TopicPartition};
use rustmq_wal::checkpoint::PRODUCERS_PER_PARTITION_MAX;
use rustmq_wal::recovery::missing_records;
use rustmq_wal::{
    CheckpointError, Corruption, DirectoryLine, EntryHeader, EntryKind, PartitionCheckpoint,
    SegmentSequence, Segments, WAL_ITSELF,
};

/// The partitions of one WAL, as its entries say they are.
#[derive(Default)]
pub(crate) struct Replayed {
    partitions: BTreeMap<TopicPartition, ReplayedPartition>,
    /// Bytes that may have held records of anybody: as many records at most, since each takes one.
    doubt: u64,
    /// Files that are damaged, as they are named to people.
    damaged_files: Vec<Rc<str>>,
}

/// Offsets whose records are damaged, and the file they were in.
pub(crate) type Damage = (Range<Offset>, Rc<str>);

/// One partition, on its way to become an engine's.
#[derive(Default)]
pub(crate) struct ReplayedPartition {
    state: PartitionState,
    producers: Vec<(ProducerId, ProducerState)>,
    /// Batches after the checkpoint: epoch, header, offset, append time.
    batches: Vec<(LeaderEpoch, BatchHeader, Offset, rustmq_protocol::TimestampMs)>,
    damaged: Vec<Damage>,
    /// A checkpoint was seen: those of later segments only repeat what is known.
    begun: bool,
    /// Records that may have followed the log end and are lost, at most.
    doubt: u64,
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
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<(), ReplayError> {
        let id = header.partition;
        if id == WAL_ITSELF {
            return Ok(());
        }
        let partition = self.partition(id);
        match header.kind {
            EntryKind::Checkpoint => {
                let checkpoint = PartitionCheckpoint::decode(payload)
                    .map_err(|error| ReplayError::Checkpoint(id, error))?;
                partition.take_checkpoint(&checkpoint);
            }
            EntryKind::LogStart => partition.take_log_start(header.base_offset),
            EntryKind::EpochStart => partition.take_epoch_start(header.base_offset),
            EntryKind::Data => {
                let batch =
                    BatchHeader::decode(payload).map_err(|error| ReplayError::Batch(id, error))?;
                let end = partition.state.log_end_offset;
                if header.base_offset < end {
                    let found = header.base_offset;
                    return Err(ReplayError::OffsetsFall { partition: id, end, found });
                }
                partition.state.log_end_offset = header.end_offset();
                partition.doubt = 0;
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

    /// Leaves out what is damaged of a block. What is lost is known from its directory, else from
    /// the offsets that come after it; where none come, as many records as it had bytes may be.
    pub(crate) fn leave_out(&mut self, corruption: &Corruption, path: &Path) {
        let file: Rc<str> = Rc::from(path.display().to_string());
        if !self.damaged_files.contains(&file) {
            self.damaged_files.push(Rc::clone(&file));
        }
        let (position, why) = (corruption.position, &corruption.why);
        match &corruption.named {
            Some(lines) if lines.is_empty() => tracing::warn!(
                %file, position, %why,
                "a block is damaged, and everything in it is made up from what is left: nothing is \
                 lost"
            ),
            Some(lines) => {
                for line in lines {
                    self.leave_out_entry(line, position, why, &file);
                }
            }
            None => {
                let bytes = corruption.end - position;
                tracing::error!(
                    %file, position, bytes, %why,
                    "part of a segment is damaged, and what it held is told only by the offsets \
                     around it; restore the file from a copy"
                );
                self.doubt += bytes;
                for partition in self.partitions.values_mut() {
                    partition.doubt += bytes;
                }
            }
        }
    }

    fn leave_out_entry(
        &mut self,
        line: &DirectoryLine,
        position: u64,
        why: &rustmq_wal::BlockError,
        file: &Rc<str>,
    ) {
        if line.partition == WAL_ITSELF {
            return;
        }
        let partition = self.partition(line.partition);
        match EntryKind::from_u8(line.kind) {
            Some(EntryKind::Data) => {
                let end = Offset(line.base_offset.0.saturating_add(u64::from(line.record_count)));
                tracing::error!(
                    partition = %line.partition, first = %line.base_offset, %end,
                    %file, position, %why,
                    "records are damaged on disk and will not be served; restore the file from a \
                     copy"
                );
                partition.damaged.push((line.base_offset..end, Rc::clone(file)));
                partition.state.log_end_offset = partition.state.log_end_offset.max(end);
                partition.doubt = 0;
            }
            Some(EntryKind::LogStart) => partition.take_log_start(line.base_offset),
            Some(EntryKind::EpochStart) => partition.take_epoch_start(line.base_offset),
            // The scan says that the checkpoint is not whole.
            Some(EntryKind::Checkpoint) | None => {}
        }
    }

    /// Everything was replayed: who may have lost records at the end of its log never gives their
    /// offsets to others.
    pub(crate) fn end(&mut self) {
        let file = self.damaged_file();
        for (id, partition) in &mut self.partitions {
            partition.settle_doubt(*id, &file);
        }
    }

    /// Are records missing that should be there? They are marked, and named with whatever is known
    /// of where they were.
    pub(crate) fn check_holes(&mut self, segments: &Segments, dir: &Path) -> bool {
        let mut found = false;
        let damaged_files = self.damaged_file();
        for (id, partition) in &mut self.partitions {
            let PartitionState { log_start_offset, log_end_offset, .. } = partition.state;
            let held = segments.ranges(*id).map(|(_, range)| range.first..range.end);
            for missing in missing_records(log_start_offset, log_end_offset, held) {
                let known =
                    |(range, _): &&Damage| range.start <= missing.start && missing.end <= range.end;
                if partition.damaged.iter().find(known).is_some() {
                    continue;
                }
                let file = around(segments, *id, &missing, dir);
                let file = match damaged_files.is_empty() {
                    true => file,
                    false => format!("{file}, {damaged_files}"),
                };
                tracing::error!(
                    partition = %id, first = %missing.start, end = %missing.end, %file,
                    "records are missing: the segment that held them is gone or damaged"
                );
                partition.damaged.push((missing, Rc::from(file)));
                found = true;
            }
        }
        found
    }

    fn partition(&mut self, id: TopicPartition) -> &mut ReplayedPartition {
        let doubt = self.doubt;
        let new = || ReplayedPartition { doubt, ..ReplayedPartition::default() };
        self.partitions.entry(id).or_insert_with(new)
    }

    fn damaged_file(&self) -> Rc<str> {
        Rc::from(self.damaged_files.join(", "))
    }

    /// Every partition that an entry names.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (TopicPartition, &ReplayedPartition)> {
        self.partitions.iter().map(|(id, partition)| (*id, partition))
    }

    /// Takes one partition out.
    ///
    /// One that nothing names may still have had records, if something is damaged that names nobody.
    pub(crate) fn take(&mut self, id: TopicPartition) -> Option<ReplayedPartition> {
        let file = self.damaged_file();
        let doubt = self.doubt;
        self.partitions.remove(&id).or_else(|| {
            let mut unnamed = ReplayedPartition { doubt, ..ReplayedPartition::default() };
            unnamed.settle_doubt(id, &file);
            (0 < doubt).then_some(unnamed)
        })
    }
}

impl ReplayedPartition {
    fn take_checkpoint(&mut self, checkpoint: &PartitionCheckpoint) {
        self.doubt = 0;
        if self.begun || !self.batches.is_empty() {
            self.take_log_start(checkpoint.log_start);
            self.take_epoch_start(checkpoint.log_end);
            return;
        }
        self.begun = true;
        let is_reset = planted(Bug::LogEndReset);
        self.state = PartitionState {
            log_start_offset: if is_reset { Offset(0) } else { checkpoint.log_start },
            log_end_offset: if is_reset { Offset(0) } else { checkpoint.log_end },
            append_time_max: checkpoint.append_time_max,
            epochs: Epochs::from_pairs(checkpoint.epochs.iter().copied()),
        };
        self.producers = checkpoint
            .producers
            .iter()
            .filter(|_| !planted(Bug::ProducersForgotten))
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

    fn take_log_start(&mut self, offset: Offset) {
        self.state.log_start_offset = self.state.log_start_offset.max(offset);
        self.state.log_end_offset = self.state.log_end_offset.max(offset);
    }

    /// An epoch begins where the log ended.
    fn take_epoch_start(&mut self, offset: Offset) {
        self.state.log_end_offset = self.state.log_end_offset.max(offset);
        self.doubt = 0;
    }

    fn settle_doubt(&mut self, id: TopicPartition, file: &Rc<str>) {
        if self.doubt == 0 {
            return;
        }
        let first = self.state.log_end_offset;
        let end = Offset(first.0.saturating_add(self.doubt));
        tracing::error!(
            partition = %id, %first, %end, %file,
            "records may have been here and are lost: these offsets are not given to others"
        );
        self.damaged.push((first..end, Rc::clone(file)));
        self.state.log_end_offset = end;
        self.doubt = 0;
    }

    /// The engine's partition, led in `leader_epoch`, and where its damaged records were.
    pub(crate) fn into_engine(
        self,
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
        producers_max: usize,
    ) -> (Partition, Vec<Damage>) {
        // The log end of the checkpoint; the batches behind it are replayed one by one.
        let log_end = self.batches.first().map_or(self.state.log_end_offset, |first| first.2);
        let log_start = self.state.log_start_offset;
        let end = self.state.log_end_offset.max(self.damaged_end());
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
        // Whoever is forgotten here was forgotten before the start: no more were remembered at a time.
        engine.bound_producers(PRODUCERS_PER_PARTITION_MAX);
        engine.skip_to(end);
        engine.advance_log_start(log_start);
        for (range, _) in &self.damaged {
            engine.mark_damaged(range.clone());
        }
        (engine, self.damaged)
    }

    fn damaged_end(&self) -> Offset {
        self.damaged.iter().map(|(range, _)| range.end).max().unwrap_or_default()
    }
}

/// Where in a WAL's files missing records must have been.
fn around(segments: &Segments, id: TopicPartition, missing: &Range<Offset>, dir: &Path) -> String {
    let name = |sequence: SegmentSequence| {
        segments.segment(sequence).map(|segment| segment.header.slot.file_name())
    };
    let before = segments.ranges(id).filter(|(_, range)| range.end <= missing.start).last();
    let after = segments.ranges(id).find(|(_, range)| missing.end <= range.first);
    let before = before.and_then(|(sequence, _)| name(sequence));
    let after = after.and_then(|(sequence, _)| name(sequence));
    let dir = dir.display();
    match (before, after) {
        (Some(before), Some(after)) => format!("{dir} from {before} to {after}"),
        (Some(before), None) => format!("{dir} from {before} on"),
        (None, Some(after)) => format!("{dir} before {after}"),
        (None, None) => dir.to_string(),
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
