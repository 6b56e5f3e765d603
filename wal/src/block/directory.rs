//! A block's directory: one line for each entry.

use crate::bytes::{partition_at, put, put_partition, u32_at, u64_at};
use crate::entry::{EntryHeader, EntryMeta};
use rustmq_protocol::{Offset, TopicPartition};

/// Bytes of one line of a block's directory.
pub const DIRECTORY_LINE_BYTES: usize = 48;

/// One entry as the block's directory names it: enough to say what was lost if the rest is damaged.
///
/// ```text
///  0 topic | 16 partition u32 | 20 kind u8 | 21 zero ×3 | 24 base_offset u64 | 32 record_count u32
/// 36 position in the block u32 | 40 payload length u32 | 44 zero ×4
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryLine {
    /// Whose entry it is.
    pub partition: TopicPartition,
    /// Its kind, as on disk.
    pub kind: u8,
    /// Where it begins.
    pub base_offset: Offset,
    /// Records in it.
    pub record_count: u32,
    /// Where in the block its header begins.
    pub position: u32,
    /// Bytes of payload.
    pub payload_length: u32,
}

impl DirectoryLine {
    pub(crate) fn of(meta: &EntryMeta, position: u32) -> Self {
        Self {
            partition: meta.partition,
            kind: meta.kind as u8,
            base_offset: meta.base_offset,
            record_count: meta.record_count,
            position,
            payload_length: meta.payload.end - meta.payload.start,
        }
    }

    pub(crate) fn encode(&self) -> [u8; DIRECTORY_LINE_BYTES] {
        let mut bytes = [0; DIRECTORY_LINE_BYTES];
        put_partition(&mut bytes, 0, self.partition);
        bytes[20] = self.kind;
        put(&mut bytes, 24, &self.base_offset.0.to_le_bytes());
        put(&mut bytes, 32, &self.record_count.to_le_bytes());
        put(&mut bytes, 36, &self.position.to_le_bytes());
        put(&mut bytes, 40, &self.payload_length.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self {
            partition: partition_at(bytes, 0),
            kind: bytes[20],
            base_offset: Offset(u64_at(bytes, 24)),
            record_count: u32_at(bytes, 32),
            position: u32_at(bytes, 36),
            payload_length: u32_at(bytes, 40),
        }
    }

    pub(super) fn names(&self, header: &EntryHeader) -> bool {
        self.partition == header.partition
            && self.kind == header.kind as u8
            && self.base_offset == header.base_offset
            && self.record_count == header.record_count
            && self.payload_length == header.payload_length
    }
}
