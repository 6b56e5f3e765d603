//! What a segment repeats at its beginning of all segments before it, so that freeing those forgets
//! no offset, no epoch and no producer.
//!
//! One entry per partition, and one under [`WAL_ITSELF`](crate::WAL_ITSELF), spread over as many
//! blocks as it takes; the last of them carries [`CHECKPOINT_END`](crate::BlockFlags::CHECKPOINT_END).

use core::fmt;

use crate::bytes::Reader;
use crate::ids::SegmentSequence;
use rustmq_protocol::{
    LeaderEpoch, Offset, PRODUCER_BATCHES_IN_FLIGHT_MAX, ProducerEpoch, ProducerId, Sequence,
    TimestampMs, TopicPartition,
};

/// Version of the checkpoint layout this crate writes, and the newest it reads.
pub const CHECKPOINT_VERSION: u16 = 1;

/// Leader epochs kept for one partition: 64 KiB. An owner with more merges the oldest before it
/// makes a checkpoint; they only serve replicas that were away for as many elections.
pub const EPOCHS_PER_PARTITION_MAX: usize = 4096;

/// Producers remembered for one partition: at most 608 KiB of checkpoint. An owner refuses further
/// producers, or expires idle ones, before it has more; a log may name any number, one after another, and
/// whoever replays it keeps the newest.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 4096;

/// Batches remembered of one producer: as many as it may have in flight.
pub const BATCHES_PER_PRODUCER_MAX: usize = PRODUCER_BATCHES_IN_FLIGHT_MAX as usize;

const HEAD_BYTES: usize = 64;
const EPOCH_BYTES: usize = 16;
const PRODUCER_BYTES: usize = 24;
const BATCH_BYTES: usize = 16;

/// State of a partition at the beginning of a segment.
///
/// ```text
///  0 version u16 | 2 zero ×2 | 4 topic | 20 partition u32 | 24 log_start u64 | 32 log_end u64
/// 40 append_time_max i64 | 48 leader_epoch u32 | 52 epoch count u32 | 56 producer count u32 | 60 zero ×4
/// 64 epochs: epoch u32, zero ×4, start offset u64
///    producers: id u64, last append time i64, epoch u16, batch count u16, zero ×4, then its
///               batches: base offset u64, base sequence u32, record count u32
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionCheckpoint {
    /// The partition.
    pub partition: TopicPartition,
    /// First offset that may be read.
    pub log_start: Offset,
    /// Next offset to be assigned.
    pub log_end: Offset,
    /// Current leader epoch.
    pub leader_epoch: LeaderEpoch,
    /// Latest append time, below which the next may not fall.
    pub append_time_max: TimestampMs,
    /// Where each leader epoch begins, in order.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
    /// Producers that are remembered.
    pub producers: Vec<ProducerCheckpoint>,
}

/// What is remembered of a producer of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerCheckpoint {
    /// The producer.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// When it appended last: it is forgotten some time after.
    pub last_append_time: TimestampMs,
    /// Its last batches, oldest first.
    pub batches: Vec<BatchCheckpoint>,
}

/// A batch by which a duplicate is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchCheckpoint {
    /// Sequence of its first record.
    pub base_sequence: Sequence,
    /// Records in it.
    pub record_count: u32,
    /// Where it was appended.
    pub base_offset: Offset,
}

/// Whom of these producers, each after when and where it appended last, is forgotten so that at most
/// `max` are left: those who appended the longest ago.
pub fn forgotten_beyond(
    max: usize,
    producers: impl ExactSizeIterator<Item = (TimestampMs, Offset, ProducerId)>,
) -> Vec<ProducerId> {
    let extra = producers.len().saturating_sub(max);
    if extra == 0 {
        return Vec::new();
    }
    let mut oldest: Vec<_> = producers.collect();
    oldest.sort_unstable();
    oldest.into_iter().take(extra).map(|(_, _, id)| id).collect()
}

/// Bytes of a partition's checkpoint with so many leader epochs and no producers.
#[must_use]
pub const fn partition_checkpoint_bytes(epochs: usize) -> usize {
    HEAD_BYTES + epochs * EPOCH_BYTES
}

impl PartitionCheckpoint {
    /// The payload of this partition's checkpoint entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.epochs.len() <= EPOCHS_PER_PARTITION_MAX, "the owner merges old epochs");
        assert!(self.producers.len() <= PRODUCERS_PER_PARTITION_MAX, "the owner bounds producers");
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.extend(CHECKPOINT_VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.partition.topic.as_bytes());
        out.extend(self.partition.partition.0.to_le_bytes());
        out.extend(self.log_start.0.to_le_bytes());
        out.extend(self.log_end.0.to_le_bytes());
        out.extend(self.append_time_max.0.to_le_bytes());
        out.extend(self.leader_epoch.0.to_le_bytes());
        out.extend((self.epochs.len() as u32).to_le_bytes());
        out.extend((self.producers.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        for (epoch, start) in &self.epochs {
            out.extend(epoch.0.to_le_bytes());
            out.extend([0; 4]);
            out.extend(start.0.to_le_bytes());
        }
        for producer in &self.producers {
            let batches = producer.batches.len();
            assert!(batches <= BATCHES_PER_PRODUCER_MAX, "the owner keeps the window");
            out.extend(producer.id.0.to_le_bytes());
            out.extend(producer.last_append_time.0.to_le_bytes());
            out.extend(producer.epoch.0.to_le_bytes());
            out.extend((batches as u16).to_le_bytes());
            out.extend([0; 4]);
            for batch in &producer.batches {
                out.extend(batch.base_offset.0.to_le_bytes());
                out.extend(batch.base_sequence.0.to_le_bytes());
                out.extend(batch.record_count.to_le_bytes());
            }
        }
        out
    }

    /// Length of the payload.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let batches: usize = self.producers.iter().map(|producer| producer.batches.len()).sum();
        partition_checkpoint_bytes(self.epochs.len())
            + self.producers.len() * PRODUCER_BYTES
            + batches * BATCH_BYTES
    }

    /// Reads the payload of a checkpoint entry of a partition.
    ///
    /// # Errors
    /// The payload was made by a newer version or is not one.
    pub fn decode(payload: &[u8]) -> Result<Self, CheckpointError> {
        let mut reader = Reader(payload);
        check_version(&mut reader)?;
        let checkpoint = Self::decode_fields(&mut reader).ok_or(CheckpointError::Truncated)??;
        if !reader.0.is_empty() {
            return Err(CheckpointError::TrailingBytes { left: reader.0.len() });
        }
        Ok(checkpoint)
    }

    /// `None`: the bytes ran out.
    fn decode_fields(reader: &mut Reader<'_>) -> Option<Result<Self, CheckpointError>> {
        let partition = reader.partition()?;
        let log_start = Offset(reader.u64()?);
        let log_end = Offset(reader.u64()?);
        let append_time_max = TimestampMs(reader.i64()?);
        let leader_epoch = LeaderEpoch(reader.u32()?);
        let epoch_count = reader.u32()? as usize;
        let producer_count = reader.u32()? as usize;
        reader.take(4)?;
        if EPOCHS_PER_PARTITION_MAX < epoch_count {
            return Some(Err(CheckpointError::TooManyEpochs { found: epoch_count }));
        }
        if PRODUCERS_PER_PARTITION_MAX < producer_count {
            return Some(Err(CheckpointError::TooManyProducers { found: producer_count }));
        }
        if log_end < log_start {
            return Some(Err(CheckpointError::LogEndsBeforeStart { log_start, log_end }));
        }
        // Nothing is reserved for what the bytes left cannot hold.
        if reader.0.len() < epoch_count * EPOCH_BYTES + producer_count * PRODUCER_BYTES {
            return None;
        }
        let mut epochs = Vec::with_capacity(epoch_count);
        for _ in 0..epoch_count {
            let epoch = LeaderEpoch(reader.u32()?);
            reader.take(4)?;
            epochs.push((epoch, Offset(reader.u64()?)));
        }
        let mut producers = Vec::with_capacity(producer_count);
        for _ in 0..producer_count {
            match ProducerCheckpoint::decode_fields(reader)? {
                Ok(producer) => producers.push(producer),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(Self {
            partition,
            log_start,
            log_end,
            leader_epoch,
            append_time_max,
            epochs,
            producers,
        }))
    }
}

impl ProducerCheckpoint {
    fn decode_fields(reader: &mut Reader<'_>) -> Option<Result<Self, CheckpointError>> {
        let id = ProducerId(reader.u64()?);
        let last_append_time = TimestampMs(reader.i64()?);
        let epoch = ProducerEpoch(reader.u16()?);
        let batch_count = usize::from(reader.u16()?);
        reader.take(4)?;
        if BATCHES_PER_PRODUCER_MAX < batch_count {
            return Some(Err(CheckpointError::TooManyBatches { found: batch_count }));
        }
        if reader.0.len() < batch_count * BATCH_BYTES {
            return None;
        }
        let mut batches = Vec::with_capacity(batch_count);
        for _ in 0..batch_count {
            batches.push(BatchCheckpoint {
                base_offset: Offset(reader.u64()?),
                base_sequence: Sequence(reader.u32()?),
                record_count: reader.u32()?,
            });
        }
        Some(Ok(Self { id, epoch, last_append_time, batches }))
    }
}

/// State of the WAL itself at the beginning of a segment.
///
/// ```text
///  0 version u16 | 2 zero ×2 | 4 partition count u32 | 8 first live segment u64
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalCheckpoint {
    /// Oldest segment not freed when the checkpoint was made.
    pub first_segment: SegmentSequence,
    /// Partition checkpoints in the segment.
    pub partition_count: u32,
}

impl WalCheckpoint {
    /// Length of the payload.
    pub const ENCODED_BYTES: usize = 16;

    /// The payload of the WAL's own checkpoint entry.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut out = [0; Self::ENCODED_BYTES];
        out[..2].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        out[4..8].copy_from_slice(&self.partition_count.to_le_bytes());
        out[8..].copy_from_slice(&self.first_segment.0.to_le_bytes());
        out
    }

    /// Reads the payload of the WAL's own checkpoint entry.
    ///
    /// # Errors
    /// The payload was made by a newer version or is not one.
    pub fn decode(payload: &[u8]) -> Result<Self, CheckpointError> {
        let mut reader = Reader(payload);
        check_version(&mut reader)?;
        let partition_count = reader.u32().ok_or(CheckpointError::Truncated)?;
        let first_segment = SegmentSequence(reader.u64().ok_or(CheckpointError::Truncated)?);
        if !reader.0.is_empty() {
            return Err(CheckpointError::TrailingBytes { left: reader.0.len() });
        }
        Ok(Self { first_segment, partition_count })
    }
}

fn check_version(reader: &mut Reader<'_>) -> Result<(), CheckpointError> {
    let found = reader.u16().ok_or(CheckpointError::Truncated)?;
    if found != CHECKPOINT_VERSION {
        return Err(CheckpointError::NewerVersion { found, supported: CHECKPOINT_VERSION });
    }
    reader.take(2).ok_or(CheckpointError::Truncated)?;
    Ok(())
}

/// Why a payload is not a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckpointError {
    /// A version this program does not read.
    NewerVersion {
        /// The version.
        found: u16,
        /// The newest this program reads.
        supported: u16,
    },
    /// The bytes end before the checkpoint does.
    Truncated,
    /// Bytes follow the checkpoint.
    TrailingBytes {
        /// How many.
        left: usize,
    },
    /// More leader epochs than [`EPOCHS_PER_PARTITION_MAX`].
    TooManyEpochs {
        /// How many.
        found: usize,
    },
    /// More producers than [`PRODUCERS_PER_PARTITION_MAX`].
    TooManyProducers {
        /// How many.
        found: usize,
    },
    /// More batches of one producer than [`BATCHES_PER_PRODUCER_MAX`].
    TooManyBatches {
        /// How many.
        found: usize,
    },
    /// The log start lies behind the log end.
    LogEndsBeforeStart {
        /// The log start.
        log_start: Offset,
        /// The log end.
        log_end: Offset,
    },
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewerVersion { found, supported } => {
                write!(f, "checkpoint has version {found}, this program reads {supported}")
            }
            Self::Truncated => f.write_str("checkpoint ends too early"),
            Self::TrailingBytes { left } => write!(f, "{left} bytes follow the checkpoint"),
            Self::TooManyEpochs { found } => {
                write!(
                    f,
                    "checkpoint has {found} epochs, at most {EPOCHS_PER_PARTITION_MAX} are kept"
                )
            }
            Self::TooManyProducers { found } => write!(
                f,
                "checkpoint has {found} producers, at most {PRODUCERS_PER_PARTITION_MAX} are kept"
            ),
            Self::TooManyBatches { found } => write!(
                f,
                "checkpoint has {found} batches of a producer, at most {BATCHES_PER_PRODUCER_MAX} \
                 are kept"
            ),
            Self::LogEndsBeforeStart { log_start, log_end } => {
                write!(f, "checkpoint has log start {log_start} behind log end {log_end}")
            }
        }
    }
}

impl std::error::Error for CheckpointError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustmq_protocol::{PartitionId, TopicId};

    fn checkpoint(epochs: usize, producers: usize, batches: usize) -> PartitionCheckpoint {
        PartitionCheckpoint {
            partition: TopicPartition {
                topic: TopicId::from_bytes([9; 16]),
                partition: PartitionId(4),
            },
            log_start: Offset(10),
            log_end: Offset(1 << 40),
            leader_epoch: LeaderEpoch(12),
            append_time_max: TimestampMs(-7),
            epochs: (0..epochs)
                .map(|epoch| (LeaderEpoch(epoch as u32), Offset(epoch as u64 * 3)))
                .collect(),
            producers: (0..producers)
                .map(|id| ProducerCheckpoint {
                    id: ProducerId(id as u64),
                    epoch: ProducerEpoch(3),
                    last_append_time: TimestampMs(99),
                    batches: (0..batches)
                        .map(|batch| BatchCheckpoint {
                            base_sequence: Sequence(u32::MAX - batch as u32),
                            record_count: 5,
                            base_offset: Offset(batch as u64),
                        })
                        .collect(),
                })
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn a_checkpoint_is_read_as_it_was_written(
            epochs in 0_usize..40,
            producers in 0_usize..40,
            batches in 0..=BATCHES_PER_PRODUCER_MAX,
        ) {
            let checkpoint = checkpoint(epochs, producers, batches);
            let bytes = checkpoint.encode();
            prop_assert_eq!(bytes.len(), checkpoint.encoded_bytes());
            prop_assert_eq!(PartitionCheckpoint::decode(&bytes), Ok(checkpoint));
            for cut in [0, 1, HEAD_BYTES - 1, bytes.len() - 1] {
                prop_assert_eq!(
                    PartitionCheckpoint::decode(&bytes[..cut]),
                    Err(CheckpointError::Truncated)
                );
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = PartitionCheckpoint::decode(&bytes);
            let _ = WalCheckpoint::decode(&bytes);
        }
    }

    fn decode_with(at: usize, field: u32) -> Result<PartitionCheckpoint, CheckpointError> {
        let mut bytes = checkpoint(0, 0, 0).encode();
        bytes[at..at + 4].copy_from_slice(&field.to_le_bytes());
        PartitionCheckpoint::decode(&bytes)
    }

    #[test]
    fn counts_beyond_their_limits_allocate_nothing() {
        let most = u32::MAX as usize;
        assert_eq!(decode_with(52, u32::MAX), Err(CheckpointError::TooManyEpochs { found: most }));
        assert_eq!(
            decode_with(56, u32::MAX),
            Err(CheckpointError::TooManyProducers { found: most })
        );
        assert_eq!(
            decode_with(56, 4096),
            Err(CheckpointError::Truncated),
            "the limit itself is read"
        );
        let mut bytes = checkpoint(0, 1, 0).encode();
        bytes[HEAD_BYTES + 18] = 9;
        assert_eq!(
            PartitionCheckpoint::decode(&bytes),
            Err(CheckpointError::TooManyBatches { found: 9 })
        );
    }

    #[test]
    fn checkpoints_at_their_limits_are_read() {
        let checkpoint = checkpoint(
            EPOCHS_PER_PARTITION_MAX,
            PRODUCERS_PER_PARTITION_MAX,
            BATCHES_PER_PRODUCER_MAX,
        );
        assert_eq!(PartitionCheckpoint::decode(&checkpoint.encode()), Ok(checkpoint));
    }

    #[test]
    fn a_log_that_ends_before_it_starts_is_refused() {
        assert_eq!(
            decode_with(36, 0),
            Err(CheckpointError::LogEndsBeforeStart { log_start: Offset(10), log_end: Offset(0) })
        );
    }

    #[test]
    fn a_newer_version_and_trailing_bytes_are_refused() {
        let mut bytes = checkpoint(1, 1, 1).encode();
        bytes.push(0);
        assert_eq!(
            PartitionCheckpoint::decode(&bytes),
            Err(CheckpointError::TrailingBytes { left: 1 })
        );
        bytes[0] = 2;
        let newer = CheckpointError::NewerVersion { found: 2, supported: 1 };
        assert_eq!(PartitionCheckpoint::decode(&bytes), Err(newer));
        assert_eq!(WalCheckpoint::decode(&bytes), Err(newer));
    }

    #[test]
    fn the_wals_own_checkpoint_is_read_as_it_was_written() {
        let checkpoint =
            WalCheckpoint { first_segment: SegmentSequence(1 << 33), partition_count: 3 };
        assert_eq!(WalCheckpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        assert_eq!(
            WalCheckpoint::decode(&checkpoint.encode()[..15]),
            Err(CheckpointError::Truncated)
        );
    }
}
