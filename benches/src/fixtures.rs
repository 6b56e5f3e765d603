//! Batches, blocks and a segment, all in memory and the same in every run.

use bytes::Bytes;
use rustmq_protocol::limits::BATCH_BYTES_MAX;
use rustmq_protocol::{
    BatchBuilder, BatchHeader, LeaderEpoch, Offset, PartitionId, ProducerStamp, Record,
    TimestampMs, TopicId, TopicPartition, stamp,
};
use rustmq_wal::{
    BlockBuilder, BlockFlags, BlockSequence, Chain, DIRECTORY_CAPACITY_MIN, EntryKind, EntryMeta,
    Generation, Incarnation, SEGMENT_HEADER_BYTES, SealedBlock, SegmentHeader, SegmentSequence,
    SegmentState, Slot, WalId,
};

/// Bytes of the value of a usual record.
pub const VALUE_BYTES: usize = 1024;

/// Memory in which a block is built: room for 64 batches of one record of 1 KiB and the directory.
pub const REGION_BYTES: usize = 256 << 10;

/// The partition that everything is appended to.
pub const PARTITION: TopicPartition =
    TopicPartition { topic: TopicId::from_bytes([7; 16]), partition: PartitionId(0) };

/// A sealed batch of `record_count` records without keys, with values of `value_bytes`.
pub fn batch(record_count: usize, value_bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX);
    push_records(&mut builder, record_count, &value(value_bytes));
    builder.finish(ProducerStamp::NONE)
}

/// Pushes the same record several times.
pub fn push_records(builder: &mut BatchBuilder, record_count: usize, value: &[u8]) {
    for index in 0..record_count {
        let timestamp = TimestampMs(1_700_000_000_000 + index as i64);
        let record = Record { timestamp, key: None, value: Some(value), headers: &[] };
        builder.try_push(&record).expect("the batches of a bench are far below the limit");
    }
}

/// Bytes that are not all the same.
pub fn value(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * 31 % 251) as u8).collect()
}

/// The header of the one segment, of this size.
pub fn segment_header(segment_bytes: u64) -> SegmentHeader {
    SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(0),
        wal: WalId([9; 16]),
        sequence: SegmentSequence::FIRST,
        generation: Generation(0x5eed),
        segment_bytes,
        first_block: BlockSequence::FIRST,
        prev_crc: 0,
    }
}

/// Builds one block after another in the same memory.
#[derive(Debug)]
pub struct Blocks {
    region: Vec<u8>,
    builder: BlockBuilder,
    chain: Chain,
    next_offset: Offset,
}

impl Blocks {
    /// Begins at the front of the segment.
    pub fn new(segment: &SegmentHeader) -> Blocks {
        Blocks {
            region: vec![0; REGION_BYTES],
            builder: BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN),
            chain: Chain::new(&segment.chain_start(), Incarnation(1), BlockSequence::FIRST),
            next_offset: Offset::ZERO,
        }
    }

    /// Puts `entries` batches of 1 record into the block as a shard does, and seals it.
    pub fn build(&mut self, batch: &[u8], entries: usize) -> SealedBlock {
        let capacity = self.builder.next_directory_capacity();
        self.builder.reset(REGION_BYTES, capacity);
        let header = BatchHeader::decode(batch).expect("made by the batch builder");
        for _ in 0..entries {
            let range = self.builder.reserve(batch.len()).expect("the region has room for it");
            let slot = &mut self.region[range.clone()];
            slot.copy_from_slice(batch);
            stamp(slot, self.next_offset, LeaderEpoch(1));
            self.builder.push(EntryMeta {
                kind: EntryKind::Data,
                partition: PARTITION,
                leader_epoch: LeaderEpoch(1),
                base_offset: self.next_offset,
                record_count: header.record_count,
                append_time: header.max_timestamp,
                max_timestamp: header.max_timestamp,
                payload: range.start as u32..range.end as u32,
                payload_crc: header.crc,
                tag: 0,
            });
            self.next_offset = Offset(self.next_offset.0 + u64::from(header.record_count));
        }
        self.builder.seal(&mut self.region, &self.chain.context(BlockFlags::NONE, None))
    }

    /// The bytes of the block that was just built.
    pub fn bytes(&self, block: &SealedBlock) -> &[u8] {
        &self.region[block.range.clone()]
    }

    /// The block was written and flushed: the next one follows it.
    pub fn advance(&mut self, block: &SealedBlock) {
        self.chain.advance(block);
        self.chain.handle_flushed(block.sequence);
    }
}

/// A segment as it lies on disk after a crash: full of blocks of `entries` batches of 1 KiB, then
/// zeroes. With it, how many blocks there are.
pub fn segment_image(segment: &SegmentHeader, entries: usize) -> (Vec<u8>, usize) {
    let mut image = vec![0; segment.segment_bytes as usize];
    let page = image.first_chunk_mut::<SEGMENT_HEADER_BYTES>().expect("a segment has a header");
    segment.encode(page);
    let batch = batch(1, VALUE_BYTES);
    let mut blocks = Blocks::new(segment);
    let mut count = 0;
    loop {
        let block = blocks.build(&batch, entries);
        let start = block.position as usize;
        let Some(place) = image.get_mut(start..start + block.bytes()) else {
            return (image, count);
        };
        place.copy_from_slice(blocks.bytes(&block));
        blocks.advance(&block);
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustmq_wal::{Scan, decode_block};

    #[test]
    fn what_is_built_is_what_a_start_finds() {
        let segment = segment_header(1 << 20);
        let (image, blocks) = segment_image(&segment, 8);
        let mut scan = Scan::new(&segment, BlockSequence::FIRST);
        let mut entries = 0;
        while let Some(read) = scan.next_read() {
            let bytes = &image[read.start as usize..read.end as usize];
            scan.feed(read.start, bytes, |_, _| entries += 1).expect("nothing is damaged");
        }
        assert_eq!(entries, 8 * blocks);
        assert!(scan.finish().torn.is_none());
    }

    #[test]
    fn a_block_of_the_greatest_bench_fits_and_decodes() {
        let segment = segment_header(1 << 20);
        let mut blocks = Blocks::new(&segment);
        let batch = batch(1, VALUE_BYTES);
        for _ in 0..2 {
            let block = blocks.build(&batch, 64);
            let expect = if block.position == SEGMENT_HEADER_BYTES as u64 {
                segment.chain_start()
            } else {
                continue;
            };
            let view = decode_block(blocks.bytes(&block), &expect).expect("a good block");
            assert_eq!(view.entries().count(), 64);
            blocks.advance(&block);
        }
    }
}
