//! Little-endian fields at fixed places, and a reader that checks before it takes.

use crate::ids::WalId;
use rustmq_protocol::{PartitionId, TopicId, TopicPartition};

/// Bytes at a fixed place of a layout whose length was checked (or is in its type).
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range is N bytes long")
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn wal_at(bytes: &[u8], at: usize) -> WalId {
    WalId(array_at(bytes, at))
}

/// Topic (16 bytes) and partition (4 bytes), side by side in every layout that names them.
pub(crate) fn partition_at(bytes: &[u8], at: usize) -> TopicPartition {
    TopicPartition {
        topic: TopicId::from_bytes(array_at(bytes, at)),
        partition: PartitionId(u32_at(bytes, at + 16)),
    }
}

/// Puts `field` at a fixed place of a layout.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

pub(crate) fn put_partition(bytes: &mut [u8], at: usize, partition: TopicPartition) {
    put(bytes, at, partition.topic.as_bytes());
    put(bytes, at + 16, &partition.partition.0.to_le_bytes());
}

/// `value` rounded up to a multiple of `unit` (a power of two).
pub(crate) const fn round_up(value: usize, unit: usize) -> usize {
    (value + unit - 1) & !(unit - 1)
}

/// `value` rounded down to a multiple of `unit` (a power of two).
pub(crate) const fn round_down(value: usize, unit: usize) -> usize {
    value & !(unit - 1)
}

/// Takes fields off the front of bytes of unknown length; `None` means they ran out.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(crate) fn partition(&mut self) -> Option<TopicPartition> {
        let topic = TopicId::from_bytes(self.array()?);
        Some(TopicPartition { topic, partition: PartitionId(self.u32()?) })
    }
}
