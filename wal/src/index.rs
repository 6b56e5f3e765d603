//! Which entries a segment holds and where: gathered while it is written, kept in its footer after.

use std::collections::BTreeMap;

use crate::builder::SealedBlock;
use crate::entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind, EntryMeta};
use rustmq_planted::{Bug, planted};
use rustmq_protocol::{Offset, TimestampMs, TopicPartition};

/// One data entry of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexPoint {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Records in it.
    pub record_count: u32,
    /// Where in the segment its header begins.
    pub position: u32,
    /// Bytes of header and payload.
    pub length: u32,
    /// Largest timestamp among its records.
    pub max_timestamp: TimestampMs,
}

impl IndexPoint {
    /// One past the offset of its last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0.saturating_add(u64::from(self.record_count)))
    }
}

/// What a segment holds of one partition, in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionSummary {
    /// The partition.
    pub partition: TopicPartition,
    /// Its data in the segment; `None` if the segment only names it (checkpoint, log start).
    pub range: Option<PartitionRange>,
}

/// The data of one partition in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionRange {
    /// First offset.
    pub first: Offset,
    /// One past the last offset.
    pub end: Offset,
    /// Latest append time: retention by time counts from it.
    pub append_time_max: TimestampMs,
    /// Largest record timestamp.
    pub timestamp_max: TimestampMs,
    /// Bytes of its entries, headers included.
    pub bytes: u64,
}

impl PartitionRange {
    /// The range of one data entry.
    #[must_use]
    pub fn of(meta: &EntryMeta) -> Self {
        Self {
            first: meta.base_offset,
            end: meta.end_offset(),
            append_time_max: meta.append_time,
            timestamp_max: meta.max_timestamp,
            bytes: (ENTRY_HEADER_BYTES + meta.payload_bytes()) as u64,
        }
    }

    /// Grows by a later range of the same partition.
    pub fn extend(&mut self, later: &Self) {
        assert!(self.end <= later.first, "offsets of a partition only grow");
        self.end = later.end;
        self.append_time_max = self.append_time_max.max(later.append_time_max);
        self.timestamp_max = self.timestamp_max.max(later.timestamp_max);
        self.bytes += later.bytes;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PartitionPoints {
    range: Option<PartitionRange>,
    points: Vec<IndexPoint>,
}

/// The index of one segment while it is active (or until its footer is written).
///
/// Grows by flushed blocks only. Its size is bounded by the segment: a point for at least 144 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    partitions: BTreeMap<TopicPartition, PartitionPoints>,
    point_count: usize,
}

impl SegmentIndex {
    /// An empty index.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the entries of a block that was written.
    pub fn add_block(&mut self, entries: &[EntryMeta], sealed: &SealedBlock) {
        for meta in entries {
            self.add(&EntryHeader::new(meta, sealed.sequence), sealed.entry_position(meta));
        }
    }

    /// Adds one entry, in the order of the segment; recovery does so.
    pub fn add(&mut self, entry: &EntryHeader, position: u64) {
        let partition = self.partitions.entry(entry.partition).or_default();
        if entry.kind != EntryKind::Data {
            return;
        }
        let range = PartitionRange {
            first: entry.base_offset,
            end: entry.end_offset(),
            append_time_max: entry.append_time,
            timestamp_max: entry.max_timestamp,
            bytes: entry.entry_bytes() as u64,
        };
        match &mut partition.range {
            Some(all) => all.extend(&range),
            empty => *empty = Some(range),
        }
        partition.points.push(IndexPoint {
            base_offset: entry.base_offset,
            record_count: entry.record_count,
            position: u32::try_from(position).expect("segments are at most 2 GiB"),
            length: u32::try_from(entry.entry_bytes()).expect("an entry fits in its block"),
            max_timestamp: entry.max_timestamp,
        });
        self.point_count += 1;
    }

    /// Whether `entry` may be added: its partition's offsets only grow. Recovery asks for entries
    /// read from disk.
    #[must_use]
    pub fn continues(&self, entry: &EntryHeader) -> bool {
        let range = self.partitions.get(&entry.partition).and_then(|partition| partition.range);
        entry.kind != EntryKind::Data || range.is_none_or(|range| range.end <= entry.base_offset)
    }

    /// Partitions the segment names.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// Data entries in the segment.
    #[must_use]
    pub fn point_count(&self) -> usize {
        self.point_count
    }

    /// Every partition the segment names, in order.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionSummary> {
        self.partitions
            .iter()
            .map(|(partition, held)| PartitionSummary { partition: *partition, range: held.range })
    }

    /// All data entries of one partition, by offset.
    #[must_use]
    pub fn points(&self, partition: TopicPartition) -> &[IndexPoint] {
        self.partitions.get(&partition).map_or(&[], |held| &held.points)
    }

    /// The entry that holds `offset`.
    #[must_use]
    pub fn find(&self, partition: TopicPartition, offset: Offset) -> Option<&IndexPoint> {
        find(self.points(partition), offset)
    }

    /// The entries that hold `offset` and what comes after it.
    #[must_use]
    pub fn points_from(&self, partition: TopicPartition, offset: Offset) -> &[IndexPoint] {
        points_from(self.points(partition), offset)
    }

    /// The first entry with a record at or after `timestamp`.
    #[must_use]
    pub fn find_timestamp(
        &self,
        partition: TopicPartition,
        timestamp: TimestampMs,
    ) -> Option<&IndexPoint> {
        find_timestamp(self.points(partition), timestamp)
    }
}

/// Among one partition's points, the one that holds `offset`.
#[must_use]
pub fn find(points: &[IndexPoint], offset: Offset) -> Option<&IndexPoint> {
    points_from(points, offset).first().filter(|point| point.base_offset <= offset)
}

/// Among one partition's points, those that end after `offset`.
#[must_use]
pub fn points_from(points: &[IndexPoint], offset: Offset) -> &[IndexPoint] {
    let first = points.partition_point(|point| point.end_offset() <= offset);
    match planted(Bug::IndexOffByOne) {
        true => &points[(first + 1).min(points.len())..],
        false => &points[first..],
    }
}

/// Among one partition's points, the first that has a record at or after `timestamp`. Timestamps
/// are the producers' and need not grow, so every point is looked at in turn.
#[must_use]
pub fn find_timestamp(points: &[IndexPoint], timestamp: TimestampMs) -> Option<&IndexPoint> {
    points.iter().find(|point| timestamp <= point.max_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlockSequence;
    use rustmq_protocol::{LeaderEpoch, PartitionId, TopicId};

    fn partition(number: u8) -> TopicPartition {
        TopicPartition { topic: TopicId::from_bytes([number; 16]), partition: PartitionId(0) }
    }

    fn entry(number: u8, base_offset: u64, record_count: u32, max_timestamp: i64) -> EntryHeader {
        EntryHeader {
            kind: EntryKind::Data,
            sequence: BlockSequence(1),
            partition: partition(number),
            leader_epoch: LeaderEpoch(0),
            base_offset: Offset(base_offset),
            record_count,
            payload_length: 100,
            append_time: TimestampMs(-(base_offset as i64)),
            payload_crc: 0,
            max_timestamp: TimestampMs(max_timestamp),
        }
    }

    fn index() -> SegmentIndex {
        let mut index = SegmentIndex::new();
        index.add(&entry(1, 10, 5, 100), 4096);
        index.add(&entry(2, 0, 1, 50), 4280);
        index.add(&entry(1, 15, 1, 90), 8192);
        // Another WAL took the partition for a while: a gap.
        index.add(&entry(1, 30, 10, 200), 12_288);
        let mention = EntryHeader { kind: EntryKind::LogStart, ..entry(3, 7, 0, 0) };
        index.add(&mention, 16_384);
        index
    }

    #[test]
    fn an_offset_is_found_in_the_entry_that_holds_it() {
        let index = index();
        let position =
            |offset| index.find(partition(1), Offset(offset)).map(|point| point.position);
        assert_eq!(position(9), None);
        assert_eq!(position(10), Some(4096));
        assert_eq!(position(14), Some(4096));
        assert_eq!(position(15), Some(8192));
        assert_eq!(position(16), None, "in the gap");
        assert_eq!(position(39), Some(12_288));
        assert_eq!(position(40), None);
        assert_eq!(index.find(partition(9), Offset(0)), None);
    }

    #[test]
    fn reading_on_begins_with_the_entry_that_holds_the_offset_or_the_next() {
        let index = index();
        let from = |offset| index.points_from(partition(1), Offset(offset)).len();
        assert_eq!([from(0), from(12), from(15), from(16), from(39), from(40)], [3, 3, 2, 1, 1, 0]);
    }

    #[test]
    fn a_timestamp_is_found_in_the_first_entry_that_reaches_it() {
        let index = index();
        let first = |timestamp| {
            index
                .find_timestamp(partition(1), TimestampMs(timestamp))
                .map(|point| point.base_offset)
        };
        assert_eq!(first(0), Some(Offset(10)));
        assert_eq!(first(95), Some(Offset(10)), "timestamps need not grow");
        assert_eq!(first(101), Some(Offset(30)));
        assert_eq!(first(201), None);
    }

    #[test]
    fn a_partition_that_is_only_named_has_no_range() {
        let index = index();
        let held: Vec<_> = index.partitions().collect();
        assert_eq!(held.len(), 3);
        let range = held[0].range.unwrap();
        assert_eq!((range.first, range.end), (Offset(10), Offset(40)));
        assert_eq!(
            (range.append_time_max, range.timestamp_max),
            (TimestampMs(-10), TimestampMs(200))
        );
        assert_eq!(range.bytes, 3 * 180);
        assert_eq!(held[2], PartitionSummary { partition: partition(3), range: None });
        assert_eq!((index.partition_count(), index.point_count()), (3, 4));
    }

    #[test]
    fn offsets_that_fall_are_seen_before_they_are_added() {
        let index = index();
        assert!(!index.continues(&entry(1, 39, 1, 0)));
        assert!(index.continues(&entry(1, 40, 1, 0)));
        assert!(index.continues(&entry(9, 0, 1, 0)));
        assert!(index.continues(&EntryHeader { kind: EntryKind::LogStart, ..entry(1, 0, 0, 0) }));
    }
}
