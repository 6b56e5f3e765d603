//! The state of a WAL's partitions, as a new segment repeats it.

use std::collections::VecDeque;

use rustmq_engine::Partition;
use rustmq_engine::limits::PRODUCER_BATCHES_IN_FLIGHT_MAX;
use rustmq_engine::partition::ProducerState;
use rustmq_protocol::{Offset, TopicPartition};
use rustmq_sys::buffer::{Buffer, BufferPool};
use rustmq_wal::{
    BatchCheckpoint, BlockBuilder, BlockFlags, DIRECTORY_CAPACITY_MIN, EntryMeta,
    PartitionCheckpoint, ProducerCheckpoint, SegmentSequence, WAL_ITSELF, WalCheckpoint,
};

use crate::error::ShardError;
use crate::segment_io::take_buffer;
use crate::segments::SegmentFiles;
use crate::shard::Shard;

/// The entries of a checkpoint, cut into blocks as they are asked for.
pub(crate) struct CheckpointBlocks {
    entries: VecDeque<(TopicPartition, Vec<u8>)>,
}

impl CheckpointBlocks {
    /// The checkpoint of a WAL as of the last block that was written.
    pub(crate) fn of(shard: &Shard, files: &SegmentFiles, first_segment: SegmentSequence) -> Self {
        let index = shard.wal_index(files.id());
        let partitions = shard.partitions.borrow();
        let mut entries: VecDeque<_> = partitions
            .iter()
            .filter(|(_, partition)| partition.wal == index)
            .map(|(_, partition)| {
                (partition.engine.id(), partition_checkpoint(&partition.engine).encode())
            })
            .collect();
        let wal = WalCheckpoint { first_segment, partition_count: entries.len() as u32 };
        entries.push_front((WAL_ITSELF, wal.encode().to_vec()));
        Self { entries }
    }

    /// The checkpoint of a WAL that has no partition yet.
    pub(crate) fn empty(first_segment: SegmentSequence) -> Self {
        let wal = WalCheckpoint { first_segment, partition_count: 0 };
        Self { entries: VecDeque::from([(WAL_ITSELF, wal.encode().to_vec())]) }
    }

    /// The next block, not sealed yet, and its flags; `None` after the last.
    pub(crate) fn next(
        &mut self,
        pool: &BufferPool,
    ) -> Result<Option<(BlockBuilder, Buffer, BlockFlags)>, ShardError> {
        let Some((_, first)) = self.entries.front() else {
            return Ok(None);
        };
        let wanted = BlockBuilder::region_bytes_for(first.len(), DIRECTORY_CAPACITY_MIN);
        let mut buffer = take_buffer(pool, wanted.max(pool.buffer_bytes()))
            .map_err(|error| ShardError::Memory { error: error.to_string() })?;
        let mut builder = BlockBuilder::open(buffer.len(), DIRECTORY_CAPACITY_MIN);
        while let Some((partition, payload)) = self.entries.front() {
            let Some(range) = builder.reserve(payload.len()) else {
                break;
            };
            buffer[range.clone()].copy_from_slice(payload);
            builder.push(EntryMeta::checkpoint(*partition, range));
            self.entries.pop_front();
        }
        let flags = match self.entries.is_empty() {
            true => BlockFlags::CHECKPOINT.with(BlockFlags::CHECKPOINT_END),
            false => BlockFlags::CHECKPOINT,
        };
        Ok(Some((builder, buffer, flags)))
    }
}

/// A partition as its flushed log shows it: what only waits in the open block is left out, or a
/// crash would leave a producer remembered for records that never reached the disk.
fn partition_checkpoint(engine: &Partition) -> PartitionCheckpoint {
    let flushed = engine.flushed_offset();
    let epochs = engine.epochs().pairs().iter().filter(|(_, start)| *start < flushed);
    let producers = engine.producers().iter();
    PartitionCheckpoint {
        partition: engine.id(),
        log_start: engine.log_start_offset(),
        log_end: flushed,
        leader_epoch: engine.leader_epoch(),
        append_time_max: engine.append_time_max(),
        epochs: epochs.copied().collect(),
        producers: producers
            .filter_map(|(id, state)| producer_checkpoint(id, state, flushed))
            .collect(),
    }
}

fn producer_checkpoint(
    id: rustmq_protocol::ProducerId,
    state: &ProducerState,
    flushed: Offset,
) -> Option<ProducerCheckpoint> {
    let durable = state.batches.iter().filter(|mark| mark.base_offset < flushed);
    let mut batches: Vec<BatchCheckpoint> = durable
        .map(|mark| BatchCheckpoint {
            base_sequence: mark.base_sequence,
            record_count: mark.record_count,
            base_offset: mark.base_offset,
        })
        .collect();
    let extra = batches.len().saturating_sub(PRODUCER_BATCHES_IN_FLIGHT_MAX);
    batches.drain(..extra);
    (!batches.is_empty()).then_some(ProducerCheckpoint {
        id,
        epoch: state.epoch,
        last_append_time: state.last_append,
        batches,
    })
}
