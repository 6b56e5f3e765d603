//! The pool of segment files of a WAL: which are live, which comes next, which may be freed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::block::BLOCK_ALIGN;
use crate::entry::{EntryKind, EntryMeta};
use crate::footer::footer_bytes;
use crate::ids::{SegmentSequence, Slot};
use crate::index::{PartitionRange, PartitionSummary};
use crate::recovery::OpenError;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use rustmq_protocol::{Offset, PartitionId, TimestampMs, TopicId, TopicPartition};

/// Fewest segments a WAL is opened with outside test settings: with fewer, one full segment is a
/// large part of the pool and retention cannot keep ahead of writing.
pub const SEGMENTS_MIN: usize = 8;

/// Most segments of a WAL: 64 TiB of default segments, and slot numbers of five digits.
pub const SEGMENTS_MAX: usize = 65_536;

/// Spares kept ready while the pool may still grow: zeroing one takes less time than filling one.
const SPARES_WANTED: usize = 1;

/// Where the next segment comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextSlot {
    /// This spare is ready.
    Spare(Slot),
    /// No spare is ready and the pool may grow: make (or finish making) this slot's file, then it
    /// is a spare.
    Create(Slot),
    /// Every slot is live: nothing can be written until a segment is freed.
    Full,
}

/// A live segment, in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveSegment {
    /// Its header.
    pub header: SegmentHeader,
    /// Latest append time of the data in it; `None` without data.
    pub append_time_max: Option<TimestampMs>,
    /// Where its blocks end.
    pub blocks_end: u64,
}

#[derive(Clone, Debug)]
struct PartitionSegments {
    /// Last segment that names the partition in any entry.
    last_named: SegmentSequence,
    /// Its data by segment, oldest first.
    ranges: VecDeque<(SegmentSequence, PartitionRange)>,
}

/// The segments of one WAL and what each holds of which partition.
///
/// Owned by the WAL's writer on its shard. Invariants: live sequences follow one another, but for
/// segments whose file is lost; the last
/// live one is active and takes blocks; a slot is live, spare or being made, never two of these; all
/// of them together are at most the capacity. Begins empty (a new WAL) or by
/// [`restore`](Self::restore) of each segment that recovery found, oldest first.
#[derive(Clone, Debug)]
pub struct Segments {
    segment_bytes: u64,
    capacity: usize,
    live: VecDeque<LiveSegment>,
    spares: BTreeSet<Slot>,
    creating: Option<Slot>,
    partitions: BTreeMap<TopicPartition, PartitionSegments>,
    /// Partitions that the active segment names, and its data entries: the size of its footer.
    active_partition_count: usize,
    active_point_count: usize,
}

impl Segments {
    /// A pool without files yet, for at most `capacity` segments of `segment_bytes`.
    #[must_use]
    pub fn new(segment_bytes: u64, capacity: usize) -> Self {
        assert!((1..=SEGMENTS_MAX).contains(&capacity), "a WAL has 1..=SEGMENTS_MAX segments");
        Self {
            segment_bytes,
            capacity,
            live: VecDeque::new(),
            spares: BTreeSet::new(),
            creating: None,
            partitions: BTreeMap::new(),
            active_partition_count: 0,
            active_point_count: 0,
        }
    }

    /// Takes a segment that recovery found, oldest first: what it holds, and where its blocks end.
    ///
    /// # Errors
    /// The offsets of a partition overlap those of an older segment. Opening ends there.
    pub fn restore(
        &mut self,
        header: &SegmentHeader,
        held: impl IntoIterator<Item = PartitionSummary>,
        point_count: usize,
        blocks_end: u64,
    ) -> Result<(), OpenError> {
        assert!(
            self.live.back().is_none_or(|last| last.header.sequence < header.sequence),
            "segments are restored in order"
        );
        self.activate(header);
        for summary in held {
            let before = self.partitions.get(&summary.partition);
            let end = before.and_then(|held| held.ranges.back()).map(|(_, range)| range.end);
            if let (Some(end), Some(range)) = (end, &summary.range)
                && range.first < end
            {
                return Err(OpenError::OffsetsFall {
                    sequence: header.sequence,
                    partition: summary.partition,
                    end,
                    first: range.first,
                });
            }
            self.note(summary.partition, summary.range);
        }
        self.active_point_count = point_count;
        self.active_mut().blocks_end = blocks_end;
        self.invariants();
        Ok(())
    }

    /// Whether a block of so many bytes and entries may go to the active segment: after it there is
    /// still room for a seal block and the footer.
    #[must_use]
    pub fn fits(&self, block_bytes: usize, entry_count: usize) -> bool {
        let Some(active) = self.live.back() else { return false };
        let footer = footer_bytes(
            self.active_partition_count + entry_count,
            self.active_point_count + entry_count,
        );
        active.blocks_end + (block_bytes + BLOCK_ALIGN + footer) as u64
            <= active.header.segment_bytes
    }

    /// Largest block of so many entries that fits a segment whose checkpoint takes
    /// `checkpoint_bytes` of blocks and names `partition_count` partitions. 0: none does.
    #[must_use]
    pub fn block_bytes_max(
        &self,
        checkpoint_bytes: usize,
        partition_count: usize,
        entry_count: usize,
    ) -> usize {
        let taken = SEGMENT_HEADER_BYTES
            + checkpoint_bytes
            + BLOCK_ALIGN
            + footer_bytes(partition_count + entry_count, entry_count);
        (self.segment_bytes as usize).saturating_sub(taken)
    }

    /// Entries of a block of so many bytes went to the active segment.
    pub fn handle_block(&mut self, entries: &[EntryMeta], block_bytes: usize) {
        for meta in entries {
            let range = (meta.kind == EntryKind::Data).then(|| PartitionRange::of(meta));
            self.active_point_count += usize::from(range.is_some());
            self.note(meta.partition, range);
        }
        self.active_mut().blocks_end += block_bytes as u64;
        self.invariants();
    }

    /// Where the next segment comes from.
    #[must_use]
    pub fn next_slot(&self) -> NextSlot {
        if let Some(slot) = self.spares.first() {
            return NextSlot::Spare(*slot);
        }
        if let Some(slot) = self.creating {
            return NextSlot::Create(slot);
        }
        self.unused_slot().map_or(NextSlot::Full, NextSlot::Create)
    }

    /// A slot whose file should be made now, in the background, so that the next segment finds a
    /// spare; `None` while there is one, one is being made, or the pool may not grow.
    #[must_use]
    pub fn want_spare(&self) -> Option<Slot> {
        if SPARES_WANTED <= self.spares.len() || self.creating.is_some() {
            return None;
        }
        self.unused_slot()
    }

    /// The file of `slot` is being made.
    pub fn handle_create_begun(&mut self, slot: Slot) {
        assert!(self.creating.is_none(), "one file is made at a time");
        assert!(!self.uses(slot), "only an unused slot is made");
        self.creating = Some(slot);
        self.invariants();
    }

    /// The file of `slot` could not be made (the disk is full): the slot is unused again.
    pub fn handle_create_failed(&mut self, slot: Slot) {
        assert!(self.creating == Some(slot), "only what was begun can fail");
        self.creating = None;
    }

    /// The file of `slot` is zeroed or freed, flushed, and its directory too: it may be used.
    pub fn handle_spare(&mut self, slot: Slot) {
        if self.creating == Some(slot) {
            self.creating = None;
        }
        assert!(!self.uses(slot), "a spare is not live");
        self.spares.insert(slot);
        self.invariants();
    }

    /// The spare of this header became the active segment; the one before it takes no more blocks.
    pub fn handle_activated(&mut self, header: &SegmentHeader) {
        if let Some(last) = self.live.back() {
            assert!(header.sequence == last.header.sequence.next(), "segments follow one another");
        }
        self.activate(header);
        self.invariants();
    }

    fn activate(&mut self, header: &SegmentHeader) {
        assert!(header.segment_bytes == self.segment_bytes, "all segments have one size");
        self.spares.remove(&header.slot);
        assert!(!self.uses(header.slot), "a segment begins in a spare");
        self.live.push_back(LiveSegment {
            header: *header,
            append_time_max: None,
            blocks_end: SEGMENT_HEADER_BYTES as u64,
        });
        self.active_partition_count = 0;
        self.active_point_count = 0;
    }

    /// The oldest segment, if nothing in it is needed: every record in it lies below the flushed
    /// log start of its partition, or the partition is deleted (`log_start_of` says `None`).
    /// The active one is never freed. The owner writes its header as spare, flushes, and says
    /// [`handle_freed`](Self::handle_freed).
    #[must_use]
    pub fn freeable(
        &self,
        log_start_of: impl Fn(TopicPartition) -> Option<Offset>,
    ) -> Option<SegmentSequence> {
        let oldest = self.oldest_sealed()?.header.sequence;
        let needed = self.ends_in(oldest).any(|(partition, end)| {
            log_start_of(partition).is_some_and(|log_start| log_start < end)
        });
        (!needed).then_some(oldest)
    }

    /// The oldest segment's header says spare and is flushed.
    pub fn handle_freed(&mut self, sequence: SegmentSequence) {
        let oldest = self.oldest_sealed().expect("the active segment is never freed").header;
        assert!(oldest.sequence == sequence, "segments are freed in order");
        self.live.pop_front();
        self.spares.insert(oldest.slot);
        self.partitions.retain(|_, held| {
            if held.ranges.front().is_some_and(|(first, _)| *first == sequence) {
                held.ranges.pop_front();
            }
            sequence < held.last_named
        });
        self.invariants();
    }

    /// The oldest segment, unless it is the active one: whose records go first when the pool is
    /// full, and whose age and size retention looks at.
    #[must_use]
    pub fn oldest_sealed(&self) -> Option<&LiveSegment> {
        if self.live.len() < 2 { None } else { self.live.front() }
    }

    /// The segment that takes blocks; `None` before the first.
    #[must_use]
    pub fn active(&self) -> Option<&LiveSegment> {
        self.live.back()
    }

    /// All live segments, oldest first.
    pub fn live(&self) -> impl ExactSizeIterator<Item = &LiveSegment> {
        self.live.iter()
    }

    /// A live segment by its sequence.
    #[must_use]
    pub fn segment(&self, sequence: SegmentSequence) -> Option<&LiveSegment> {
        let index = self.live.binary_search_by_key(&sequence, |live| live.header.sequence).ok()?;
        self.live.get(index)
    }

    /// The segment that holds `offset` of `partition`.
    #[must_use]
    pub fn locate(&self, partition: TopicPartition, offset: Offset) -> Option<SegmentSequence> {
        let ranges = &self.partitions.get(&partition)?.ranges;
        let index = ranges.partition_point(|(_, range)| range.end <= offset);
        let (sequence, range) = ranges.get(index)?;
        (range.first <= offset).then_some(*sequence)
    }

    /// First offset of `partition` in any live segment; `None` without data.
    #[must_use]
    pub fn first_offset(&self, partition: TopicPartition) -> Option<Offset> {
        self.ranges(partition).next().map(|(_, range)| range.first)
    }

    /// The data of `partition` by segment, oldest first.
    pub fn ranges(
        &self,
        partition: TopicPartition,
    ) -> impl Iterator<Item = (SegmentSequence, PartitionRange)> {
        self.partitions.get(&partition).into_iter().flat_map(|held| held.ranges.iter().copied())
    }

    /// The partitions with data in the *oldest* segment and where it ends: what their log starts
    /// must reach before the segment is freed.
    pub fn ends_in(
        &self,
        oldest: SegmentSequence,
    ) -> impl Iterator<Item = (TopicPartition, Offset)> {
        self.partitions.iter().filter_map(move |(partition, held)| {
            let (sequence, range) = held.ranges.front()?;
            (*sequence == oldest).then_some((*partition, range.end))
        })
    }

    /// Whether any live segment has an entry of this topic: a deleted topic's tombstone stays until
    /// none has.
    #[must_use]
    pub fn names(&self, topic: TopicId) -> bool {
        let first = TopicPartition { topic, partition: PartitionId(0) };
        let last = TopicPartition { topic, partition: PartitionId(u32::MAX) };
        self.partitions.range(first..=last).next().is_some()
    }

    /// Slots that are live, spare or being made.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.live.len() + self.spares.len() + usize::from(self.creating.is_some())
    }

    /// Size of each segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Most slots the pool may have.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that can still be written before the pool is full, not counting what is lost to
    /// checkpoints and footers.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let in_active = self.live.back().map_or(0, |active| self.segment_bytes - active.blocks_end);
        in_active + (self.capacity.saturating_sub(self.live.len())) as u64 * self.segment_bytes
    }

    fn note(&mut self, partition: TopicPartition, range: Option<PartitionRange>) {
        let active = self.active_mut();
        let sequence = active.header.sequence;
        if let Some(range) = &range {
            let append_time_max = active.append_time_max.get_or_insert(range.append_time_max);
            *append_time_max = (*append_time_max).max(range.append_time_max);
        }
        let mut named_here = true;
        let held = self.partitions.entry(partition).or_insert_with(|| {
            named_here = false;
            PartitionSegments { last_named: sequence, ranges: VecDeque::new() }
        });
        named_here &= held.last_named == sequence;
        self.active_partition_count += usize::from(!named_here);
        held.last_named = sequence;
        let Some(range) = range else { return };
        match held.ranges.back_mut() {
            Some((last, all)) if *last == sequence => all.extend(&range),
            last => {
                assert!(
                    last.is_none_or(|(_, last)| last.end <= range.first),
                    "offsets of a partition only grow"
                );
                held.ranges.push_back((sequence, range));
            }
        }
    }

    fn active_mut(&mut self) -> &mut LiveSegment {
        self.live.back_mut().expect("blocks are written after the first segment was activated")
    }

    fn uses(&self, slot: Slot) -> bool {
        self.spares.contains(&slot)
            || self.creating == Some(slot)
            || self.live.iter().any(|segment| segment.header.slot == slot)
    }

    fn unused_slot(&self) -> Option<Slot> {
        if self.capacity <= self.slot_count() {
            return None;
        }
        // One of the first slot_count + 1 numbers is unused.
        let mut used = vec![false; self.slot_count() + 1];
        let live = self.live.iter().map(|segment| segment.header.slot);
        for slot in live.chain(self.spares.iter().copied()).chain(self.creating) {
            if let Some(used) = used.get_mut(slot.0 as usize) {
                *used = true;
            }
        }
        used.iter().position(|used| !used).map(|slot| Slot(slot as u32))
    }

    fn invariants(&self) {
        if let Some(active) = self.live.back() {
            assert!(
                active.blocks_end <= active.header.segment_bytes,
                "blocks lie in their segment"
            );
        }
        assert!(
            self.active_partition_count <= self.partitions.len(),
            "the active segment's partitions are among all"
        );
    }
}

#[cfg(test)]
mod tests;
