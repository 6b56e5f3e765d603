//! One entry: an 80-byte header and a payload. A data entry's payload is the client's batch as it
//! came; its checksum is the batch's own, so a payload is hashed once in its life.

use core::fmt;
use core::ops::Range;

use crate::bytes::{array_at, i64_at, partition_at, put, put_partition, u32_at, u64_at};
use crate::checksum::Checksum;
use crate::ids::{BlockSequence, Generation};
use rustmq_protocol::{
    BATCH_HEADER_BYTES, LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId, TopicPartition,
};

/// Bytes of an entry's header, before its payload.
pub const ENTRY_HEADER_BYTES: usize = 80;

/// Entries begin at multiples of this, so that the fields in them are aligned in memory.
pub const ENTRY_ALIGN: usize = 8;

/// The partition in entries that are about the WAL itself (no topic has the zero uuid).
pub const WAL_ITSELF: TopicPartition =
    TopicPartition { topic: TopicId::ZERO, partition: PartitionId(0) };

/// What an entry is. A kind this version does not know refuses to open: skipping it could lose
/// what it says. Number 4 is kept for truncation, which no version writes yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A record batch.
    Data = 1,
    /// State of a partition (or of the WAL, under [`WAL_ITSELF`]) when its segment was opened.
    Checkpoint = 2,
    /// The partition's log now starts at the entry's base offset. No payload.
    LogStart = 3,
    /// The entry's leader epoch begins at its base offset. No payload.
    EpochStart = 5,
}

impl EntryKind {
    /// The kind with this number, if this version knows it.
    #[must_use]
    pub fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Data),
            2 => Some(Self::Checkpoint),
            3 => Some(Self::LogStart),
            5 => Some(Self::EpochStart),
            _ => None,
        }
    }
}

/// An entry while its block is in memory: what will be in its header, and where its payload lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryMeta {
    /// What the entry is.
    pub kind: EntryKind,
    /// Whose it is.
    pub partition: TopicPartition,
    /// Epoch of the leader that wrote it.
    pub leader_epoch: LeaderEpoch,
    /// Offset of its first record; for [`EntryKind::LogStart`] and [`EntryKind::EpochStart`] the
    /// offset that begins there.
    pub base_offset: Offset,
    /// Records in it: 0 unless it is data.
    pub record_count: u32,
    /// When it was appended, as retention counts.
    pub append_time: TimestampMs,
    /// Largest timestamp among its records, for look-ups by time.
    pub max_timestamp: TimestampMs,
    /// Where its payload lies in the block's memory region.
    pub payload: Range<u32>,
    /// Checksum of the payload. Data: the batch's own. Other kinds: filled in when the block is
    /// sealed.
    pub payload_crc: u32,
    /// The shell's own handle; not on disk.
    pub tag: u32,
}

impl EntryMeta {
    /// A checkpoint of `partition`, whose payload lies there in the block's memory region. It counts
    /// no records and has no time of its own.
    #[must_use]
    pub fn checkpoint(partition: TopicPartition, payload: Range<usize>) -> Self {
        Self {
            kind: EntryKind::Checkpoint,
            partition,
            leader_epoch: LeaderEpoch(0),
            base_offset: Offset::ZERO,
            record_count: 0,
            append_time: TimestampMs(0),
            max_timestamp: TimestampMs(0),
            payload: payload.start as u32..payload.end as u32,
            payload_crc: 0,
            tag: 0,
        }
    }

    /// Length of the payload.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        (self.payload.end - self.payload.start) as usize
    }

    /// One past the offset of the last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.record_count))
    }
}

/// An entry's header as it is on disk.
///
/// ```text
///  0 header_crc u32 | 4 kind u8 | 5 zero ×3 | 8 block sequence u64 | 16 topic | 32 partition u32
/// 36 leader_epoch u32 | 40 base_offset u64 | 48 record_count u32 | 52 payload_length u32
/// 56 append_time i64 | 64 payload_crc u32 | 68 zero ×4 | 72 max_timestamp i64
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// What the entry is.
    pub kind: EntryKind,
    /// The block it is in.
    pub sequence: BlockSequence,
    /// Whose it is.
    pub partition: TopicPartition,
    /// Epoch of the leader that wrote it.
    pub leader_epoch: LeaderEpoch,
    /// Offset of its first record, or the offset it is about.
    pub base_offset: Offset,
    /// Records in it.
    pub record_count: u32,
    /// Bytes of payload after the header, before padding.
    pub payload_length: u32,
    /// When it was appended, as retention counts.
    pub append_time: TimestampMs,
    /// Checksum of the payload.
    pub payload_crc: u32,
    /// Largest timestamp among its records.
    pub max_timestamp: TimestampMs,
}

impl EntryHeader {
    pub(crate) fn new(meta: &EntryMeta, sequence: BlockSequence) -> Self {
        Self {
            kind: meta.kind,
            sequence,
            partition: meta.partition,
            leader_epoch: meta.leader_epoch,
            base_offset: meta.base_offset,
            record_count: meta.record_count,
            payload_length: meta.payload.end - meta.payload.start,
            append_time: meta.append_time,
            payload_crc: meta.payload_crc,
            max_timestamp: meta.max_timestamp,
        }
    }

    /// Header and payload on disk, without the padding after it: what a read of the entry needs.
    #[must_use]
    pub fn entry_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.payload_length as usize
    }

    /// One past the offset of the last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0.saturating_add(u64::from(self.record_count)))
    }

    pub(crate) fn encode(&self, generation: Generation) -> [u8; ENTRY_HEADER_BYTES] {
        let mut bytes = [0; ENTRY_HEADER_BYTES];
        bytes[4] = self.kind as u8;
        put(&mut bytes, 8, &self.sequence.0.to_le_bytes());
        put_partition(&mut bytes, 16, self.partition);
        put(&mut bytes, 36, &self.leader_epoch.0.to_le_bytes());
        put(&mut bytes, 40, &self.base_offset.0.to_le_bytes());
        put(&mut bytes, 48, &self.record_count.to_le_bytes());
        put(&mut bytes, 52, &self.payload_length.to_le_bytes());
        put(&mut bytes, 56, &self.append_time.0.to_le_bytes());
        put(&mut bytes, 64, &self.payload_crc.to_le_bytes());
        put(&mut bytes, 72, &self.max_timestamp.0.to_le_bytes());
        let crc = Checksum::new(generation).add(&bytes[4..]).value();
        put(&mut bytes, 0, &crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], generation: Generation) -> Result<Self, EntryError> {
        let Some(bytes) = bytes.first_chunk::<ENTRY_HEADER_BYTES>() else {
            return Err(EntryError::Short { needed: ENTRY_HEADER_BYTES, available: bytes.len() });
        };
        let found = u32_at(bytes, 0);
        let computed = Checksum::new(generation).add(&bytes[4..]).value();
        if found != computed {
            return Err(EntryError::HeaderCrc { found, computed });
        }
        let kind =
            EntryKind::from_u8(bytes[4]).ok_or(EntryError::UnknownKind { kind: bytes[4] })?;
        Ok(Self {
            kind,
            sequence: BlockSequence(u64_at(bytes, 8)),
            partition: partition_at(bytes, 16),
            leader_epoch: LeaderEpoch(u32_at(bytes, 36)),
            base_offset: Offset(u64_at(bytes, 40)),
            record_count: u32_at(bytes, 48),
            payload_length: u32_at(bytes, 52),
            append_time: TimestampMs(i64_at(bytes, 56)),
            payload_crc: u32_at(bytes, 64),
            max_timestamp: TimestampMs(i64_at(bytes, 72)),
        })
    }

    /// Checks the payload against this header: its checksum, and for data that the part of the
    /// batch header which the batch's checksum leaves out says what this header says.
    pub(crate) fn check_payload(&self, payload: &[u8]) -> Result<(), EntryError> {
        let hashed = match self.kind {
            EntryKind::Data => {
                if !batch_agrees(self, payload) {
                    return Err(EntryError::BatchHeader { base_offset: self.base_offset });
                }
                &payload[BATCH_CRC_FROM..]
            }
            EntryKind::Checkpoint | EntryKind::LogStart | EntryKind::EpochStart => payload,
        };
        let computed = crc32c::crc32c(hashed);
        if computed == self.payload_crc {
            Ok(())
        } else {
            Err(EntryError::PayloadCrc { found: self.payload_crc, computed })
        }
    }
}

/// First byte of a batch that the batch's own checksum covers.
const BATCH_CRC_FROM: usize = 20;

/// Whether the first 20 bytes of a batch (base offset, length, leader epoch, checksum) say what the
/// entry's header says. They are outside the batch's checksum; the header's covers them this way.
pub(crate) fn batch_agrees(header: &EntryHeader, batch: &[u8]) -> bool {
    BATCH_HEADER_BYTES <= batch.len()
        && array_at(batch, 0) == header.base_offset.0.to_le_bytes()
        && array_at(batch, 8) == header.payload_length.to_le_bytes()
        && array_at(batch, 12) == header.leader_epoch.0.to_le_bytes()
        && array_at(batch, 16) == header.payload_crc.to_le_bytes()
        && header.payload_length as usize == batch.len()
}

/// What the reader of one entry knows about it from the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryExpect {
    /// Generation of the segment the index was made for.
    pub generation: Generation,
    /// Whose entry it must be.
    pub partition: TopicPartition,
    /// Where it must begin.
    pub base_offset: Offset,
}

/// Checks one entry read from disk by itself, header and payload, and hands both out.
///
/// `bytes` begin with the entry's header and may go on past its payload.
///
/// # Errors
/// Anything but the expected entry, whole. After a segment was recycled this is the normal answer:
/// look the position up again, never serve the bytes.
pub fn decode_entry<'a>(
    bytes: &'a [u8],
    expect: &EntryExpect,
) -> Result<(EntryHeader, &'a [u8]), EntryError> {
    let header = EntryHeader::decode(bytes, expect.generation)?;
    if header.partition != expect.partition || header.base_offset != expect.base_offset {
        return Err(EntryError::Another {
            partition: header.partition,
            base_offset: header.base_offset,
        });
    }
    let needed = header.entry_bytes();
    let Some(payload) = bytes.get(ENTRY_HEADER_BYTES..needed) else {
        return Err(EntryError::Short { needed, available: bytes.len() });
    };
    header.check_payload(payload)?;
    Ok((header, payload))
}

/// Why bytes are not the entry that was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryError {
    /// The bytes end before the entry does.
    Short {
        /// Bytes of the whole entry, as far as known.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// The header's checksum is wrong: damaged, or of another use of the file.
    HeaderCrc {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the header's bytes.
        computed: u32,
    },
    /// The header is good and its kind is of a later version.
    UnknownKind {
        /// Number of the kind.
        kind: u8,
    },
    /// A good header of another entry.
    Another {
        /// Whose entry it is.
        partition: TopicPartition,
        /// Where it begins.
        base_offset: Offset,
    },
    /// The batch's unchecked first bytes do not say what the entry's header says.
    BatchHeader {
        /// Where the entry begins.
        base_offset: Offset,
    },
    /// The payload's checksum is wrong.
    PayloadCrc {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the payload's bytes.
        computed: u32,
    },
}

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, available } => {
                write!(f, "entry needs {needed} bytes, {available} are there")
            }
            Self::HeaderCrc { found, computed } => {
                write!(
                    f,
                    "entry header says checksum {found:#010x}, its bytes have {computed:#010x}"
                )
            }
            Self::UnknownKind { kind } => {
                write!(f, "entry kind {kind} is unknown; this version knows 1, 2, 3 and 5")
            }
            Self::Another { partition, base_offset } => {
                write!(f, "another entry is here: {partition:?} at offset {}", base_offset.0)
            }
            Self::BatchHeader { base_offset } => write!(
                f,
                "batch header differs from the header of its entry at offset {}",
                base_offset.0
            ),
            Self::PayloadCrc { found, computed } => {
                write!(
                    f,
                    "entry payload has checksum {computed:#010x}, its header says {found:#010x}"
                )
            }
        }
    }
}

impl std::error::Error for EntryError {}
