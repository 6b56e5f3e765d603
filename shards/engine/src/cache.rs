//! The hot cache: the tail of every partition, kept in memory.

use std::collections::VecDeque;

use rustmq_protocol::Offset;

/// One cached batch: its offsets and its bytes.
#[derive(Clone, Debug)]
pub struct CachedBatch<B> {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// One past the last record.
    pub end_offset: Offset,
    /// The batch as it went to disk.
    pub bytes: B,
}

/// The newest batches of every partition of a shard, within a budget of bytes.
///
/// Batches come in blocks, as they were flushed, and leave in the same order: the cache is a
/// window over the write-ahead log, so the oldest block goes first whoever owns it. A reader far
/// behind never comes here, hence it cannot evict the tail. `B` is a handle to shared memory; the
/// cache never copies what it stands for.
///
/// Partitions are named by the shell's own small numbers (`tag`), which index a table.
/// Invariants: per partition the batches are contiguous and rise; `bytes_used ≤ bytes_max`, but
/// for one block that is larger than the whole budget.
#[derive(Debug)]
pub struct HotCache<B> {
    partitions: Vec<VecDeque<CachedBatch<B>>>,
    /// The tag of each cached batch, in the order in which they came.
    order: VecDeque<u32>,
    /// For each block the batches that it holds and the bytes it is charged.
    blocks: VecDeque<(usize, usize)>,
    bytes_used: usize,
    bytes_max: usize,
}

impl<B> HotCache<B> {
    /// An empty cache that holds at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            partitions: Vec::new(),
            order: VecDeque::new(),
            blocks: VecDeque::new(),
            bytes_used: 0,
            bytes_max,
        }
    }

    /// Adds a flushed block: `bytes` is the memory that it pins, `batches` what it holds.
    pub fn push_block(
        &mut self,
        bytes: usize,
        batches: impl Iterator<Item = (u32, CachedBatch<B>)>,
    ) {
        while !self.blocks.is_empty() && self.bytes_max < self.bytes_used + bytes {
            self.evict_block();
        }
        let mut count = 0;
        for (tag, batch) in batches {
            let slot = tag as usize;
            if self.partitions.len() <= slot {
                self.partitions.resize_with(slot + 1, VecDeque::new);
            }
            let tail = &mut self.partitions[slot];
            if let Some(last) = tail.back() {
                assert!(last.end_offset <= batch.base_offset, "batches are flushed in order");
            }
            tail.push_back(batch);
            self.order.push_back(tag);
            count += 1;
        }
        self.blocks.push_back((count, bytes));
        self.bytes_used += bytes;
    }

    /// Drops the oldest block. Returns false when there is none.
    pub fn evict_block(&mut self) -> bool {
        let Some((count, bytes)) = self.blocks.pop_front() else {
            return false;
        };
        for _ in 0..count {
            let tag = self.order.pop_front().expect("one tag for each batch of a block");
            self.partitions[tag as usize].pop_front();
        }
        self.bytes_used -= bytes;
        true
    }

    /// The cached batches of `tag` from the one that holds `offset` on; `None` when that one is not
    /// cached, which says nothing about the later ones.
    pub fn from(&self, tag: u32, offset: Offset) -> Option<impl Iterator<Item = &CachedBatch<B>>> {
        let tail = self.partitions.get(tag as usize)?;
        let first = tail.partition_point(|batch| batch.end_offset <= offset);
        match tail.get(first) {
            Some(batch) if batch.base_offset <= offset => Some(tail.range(first..)),
            _ => None,
        }
    }

    /// Bytes that the cache pins.
    pub fn bytes_used(&self) -> usize {
        self.bytes_used
    }

    /// The budget.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base: u64, end: u64) -> CachedBatch<&'static str> {
        CachedBatch { base_offset: Offset(base), end_offset: Offset(end), bytes: "" }
    }

    fn bases(cache: &HotCache<&'static str>, tag: u32, offset: u64) -> Option<Vec<u64>> {
        let found = cache.from(tag, Offset(offset))?;
        Some(found.map(|batch| batch.base_offset.0).collect())
    }

    #[test]
    fn a_batch_is_found_by_any_offset_inside_it() {
        let mut cache = HotCache::new(100);
        cache.push_block(10, [(0, batch(0, 5)), (0, batch(5, 9))].into_iter());
        assert_eq!(bases(&cache, 0, 4), Some(vec![0, 5]));
        assert_eq!(bases(&cache, 0, 5), Some(vec![5]));
        assert_eq!(bases(&cache, 0, 9), None);
        assert_eq!(bases(&cache, 7, 0), None);
    }

    #[test]
    fn the_oldest_block_leaves_first_whoever_owns_it() {
        let mut cache = HotCache::new(30);
        cache.push_block(10, [(0, batch(0, 1)), (1, batch(0, 1))].into_iter());
        cache.push_block(10, [(1, batch(1, 2))].into_iter());
        cache.push_block(20, [(0, batch(1, 2))].into_iter());
        assert_eq!(bases(&cache, 0, 0), None);
        assert_eq!(bases(&cache, 0, 1), Some(vec![1]));
        assert_eq!(bases(&cache, 1, 1), Some(vec![1]));
        assert_eq!(cache.bytes_used(), 30);
    }

    #[test]
    fn a_block_larger_than_the_budget_is_held_alone() {
        let mut cache = HotCache::new(10);
        cache.push_block(5, [(0, batch(0, 1))].into_iter());
        cache.push_block(50, [(0, batch(1, 2))].into_iter());
        assert_eq!(cache.bytes_used(), 50);
        assert!(cache.evict_block());
        assert!(!cache.evict_block());
    }
}
