//! Parts of sealed segments' footers, kept in memory under a budget of bytes.

use std::collections::BTreeMap;
use std::rc::Rc;

use rustmq_protocol::TopicPartition;
use rustmq_wal::{FooterLine, FooterTrailer, IndexPoint, SegmentSequence};

/// The table of a footer: which partitions the segment holds, and where their points lie.
pub(crate) struct Table {
    pub(crate) trailer: FooterTrailer,
    pub(crate) lines: Vec<FooterLine>,
}

/// What is cached: the table of a segment, or the points of one partition in it.
#[derive(Clone)]
enum Part {
    Table(Rc<Table>),
    Points(Rc<[IndexPoint]>),
}

type Key = (SegmentSequence, Option<TopicPartition>);

/// The parts that were used last.
///
/// Invariants: `bytes_used` is the sum of the parts' sizes; `by_use` holds each key once, under the
/// number of its last use. A part larger than the whole budget is not kept.
pub(crate) struct IndexCache {
    parts: BTreeMap<Key, (Part, u64)>,
    by_use: BTreeMap<u64, Key>,
    next_use: u64,
    bytes_used: usize,
    bytes_max: usize,
}

impl IndexCache {
    /// An empty cache that holds at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            parts: BTreeMap::new(),
            by_use: BTreeMap::new(),
            next_use: 0,
            bytes_used: 0,
            bytes_max,
        }
    }

    /// The table of a segment, if it is here.
    pub(crate) fn table(&mut self, segment: SegmentSequence) -> Option<Rc<Table>> {
        match self.get((segment, None))? {
            Part::Table(table) => Some(table),
            Part::Points(_) => None,
        }
    }

    /// The points of a partition in a segment, if they are here.
    pub(crate) fn points(
        &mut self,
        segment: SegmentSequence,
        partition: TopicPartition,
    ) -> Option<Rc<[IndexPoint]>> {
        match self.get((segment, Some(partition)))? {
            Part::Points(points) => Some(points),
            Part::Table(_) => None,
        }
    }

    /// Keeps the table of a segment.
    pub(crate) fn put_table(&mut self, segment: SegmentSequence, table: &Rc<Table>) {
        self.put((segment, None), Part::Table(Rc::clone(table)));
    }

    /// Keeps the points of a partition in a segment.
    pub(crate) fn put_points(
        &mut self,
        segment: SegmentSequence,
        partition: TopicPartition,
        points: &Rc<[IndexPoint]>,
    ) {
        self.put((segment, Some(partition)), Part::Points(Rc::clone(points)));
    }

    /// The segment is gone: forgets what was known of it.
    pub(crate) fn forget(&mut self, segment: SegmentSequence) {
        let next = SegmentSequence(segment.0 + 1);
        let keys: Vec<Key> =
            self.parts.range((segment, None)..(next, None)).map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn get(&mut self, key: Key) -> Option<Part> {
        let used = self.stamp();
        let (part, last_use) = self.parts.get_mut(&key)?;
        self.by_use.remove(last_use);
        *last_use = used;
        self.by_use.insert(used, key);
        Some(part.clone())
    }

    fn put(&mut self, key: Key, part: Part) {
        let bytes = part.bytes();
        if self.bytes_max < bytes {
            return;
        }
        self.remove(key);
        while self.bytes_max < self.bytes_used + bytes {
            let oldest = self.by_use.first_key_value().map(|(_, key)| *key);
            self.remove(oldest.expect("bytes are used, so something is kept"));
        }
        let used = self.stamp();
        self.by_use.insert(used, key);
        self.parts.insert(key, (part, used));
        self.bytes_used += bytes;
    }

    fn remove(&mut self, key: Key) {
        if let Some((part, last_use)) = self.parts.remove(&key) {
            self.by_use.remove(&last_use);
            self.bytes_used -= part.bytes();
        }
    }

    fn stamp(&mut self) -> u64 {
        self.next_use += 1;
        self.next_use
    }
}

impl Part {
    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        const OVERHEAD: usize = 128;
        OVERHEAD
            + match self {
                Self::Table(table) => size_of_val(table.lines.as_slice()),
                Self::Points(points) => size_of_val(&**points),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustmq_protocol::{Offset, PartitionId, TimestampMs, TopicId};

    fn points(count: usize) -> Rc<[IndexPoint]> {
        let point = IndexPoint {
            base_offset: Offset(0),
            record_count: 1,
            position: 0,
            length: 1,
            max_timestamp: TimestampMs(0),
        };
        vec![point; count].into()
    }

    fn partition(number: u32) -> TopicPartition {
        TopicPartition { topic: TopicId::from_bytes([1; 16]), partition: PartitionId(number) }
    }

    #[test]
    fn what_was_used_last_stays() {
        let one = Part::Points(points(10)).bytes();
        let mut cache = IndexCache::new(2 * one);
        cache.put_points(SegmentSequence(1), partition(0), &points(10));
        cache.put_points(SegmentSequence(1), partition(1), &points(10));
        assert!(cache.points(SegmentSequence(1), partition(0)).is_some());
        cache.put_points(SegmentSequence(2), partition(0), &points(10));
        assert!(cache.points(SegmentSequence(1), partition(1)).is_none());
        assert!(cache.points(SegmentSequence(1), partition(0)).is_some());
        assert_eq!(cache.bytes_used, 2 * one);
    }

    #[test]
    fn a_part_larger_than_the_budget_is_not_kept() {
        let mut cache = IndexCache::new(64);
        cache.put_points(SegmentSequence(1), partition(0), &points(10));
        assert_eq!(cache.bytes_used, 0);
    }

    #[test]
    fn a_freed_segment_is_forgotten() {
        let mut cache = IndexCache::new(1 << 20);
        for segment in 1..4 {
            cache.put_points(SegmentSequence(segment), partition(0), &points(3));
        }
        cache.forget(SegmentSequence(2));
        assert!(cache.points(SegmentSequence(1), partition(0)).is_some());
        assert!(cache.points(SegmentSequence(2), partition(0)).is_none());
        assert!(cache.points(SegmentSequence(3), partition(0)).is_some());
    }
}
