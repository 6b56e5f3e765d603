//! Records that look like blocks of the log they are in: what a client who has seen the format may
//! send. It may even know everything about the log, as the simulator does; what it cannot know is the
//! generation of the segment that its records will lie in.

use rustmq_protocol::{LeaderEpoch, Offset, ProducerStamp, TimestampMs, TopicPartition, stamp};
use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Applied, PAGE_BYTES};
use rustmq_wal::{
    BlockBuilder, BlockContext, BlockFlags, BlockSequence, ChainPoint, DIRECTORY_CAPACITY_MIN,
    EntryKind, EntryMeta, Generation, Incarnation, WalId,
};

use crate::records::{self, VALUE_BYTES_MIN};

/// How a block of the log begins.
const BLOCK_MAGIC: &[u8] = b"RQBK";

/// Where in its block the batch lies that is alone in it, in bytes: header, directory, entry header.
const BATCH_AT: usize = 512 + rustmq_wal::ENTRY_HEADER_BYTES;

/// Bytes before the first forged page of a record, unless the lengths before it take more bytes than
/// those of a short one.
const PADDING_BYTES: usize = PAGE_BYTES - 760;

/// Blocks to copy from: the latest ones, which are of the segment that is written now.
const CHOICES: u64 = 16;

/// Forged pages in one record at most: what a record may hold in the brokers that are simulated.
const PAGES_MAX: u64 = 3;

/// Blocks by which a forged one is ahead of the last real one: it says that all between are flushed.
const AHEAD: u64 = 8;

/// The generation that a forger makes up.
pub(crate) const GENERATION: Generation = Generation(0x0f0e_0f0e_0f0e_0f0e);

/// The number of the records in forged blocks: no client sends it.
const NEVER_SENT: u64 = u64::MAX;

/// A real block of the log of one page, behind so many bytes that it lies on a page's beginning if
/// the record is alone in its block. `None`: there is no such block yet.
pub(crate) fn block_in_a_record(world: &World, choice: &mut Choice) -> Option<Vec<u8>> {
    let disk = world.disk();
    let is_block = |write: &&Applied| {
        write.first_bytes().starts_with(BLOCK_MAGIC) && write.place().2 == PAGE_BYTES as u64
    };
    let back = choice.below(CHOICES) as usize;
    let write = disk.applied().rev().filter(is_block).nth(back)?;
    let (file, position, _) = write.place();
    Some(behind_padding(&disk.bytes_at(file, position, PAGE_BYTES)))
}

/// Blocks made for the places where they will lie, if the record is alone in the block that comes
/// next: each with the log's name, its own position, and a sequence, an incarnation and a durable end
/// that a scan behind a torn block looks for. Each holds a record of `partition` that nobody sent, at
/// `offset`. `None`: there is no block yet that tells where the next one goes.
pub(crate) fn blocks_for_their_places(
    world: &World,
    choice: &mut Choice,
    partition: TopicPartition,
    offset: Offset,
) -> Option<Vec<u8>> {
    let disk = world.disk();
    let is_block = |write: &&Applied| write.first_bytes().starts_with(BLOCK_MAGIC);
    let last = disk.applied().rev().find(is_block)?;
    let (file, position, bytes) = last.place();
    let header = disk.bytes_at(file, position, PAGE_BYTES);
    let number = |at: usize| Some(u64::from_le_bytes(*header.get(at..)?.first_chunk()?));
    let sequence = number(48)?;
    // Behind what is on its way to the device already.
    let begins = disk.pending_places().fold(position + bytes, |end, (of, position, bytes)| {
        if of == file && position == end { end + bytes } else { end }
    });
    let mut context = BlockContext {
        at: ChainPoint {
            wal: WalId(*header.get(8..)?.first_chunk()?),
            generation: GENERATION,
            incarnation: Incarnation(number(32)?),
            position: begins,
            sequence: BlockSequence(sequence + AHEAD + choice.below(4)),
            prev_crc: u32::from_le_bytes(*header.get(124..)?.first_chunk()?),
        },
        durable_end: BlockSequence(sequence + AHEAD),
        flags: BlockFlags::NONE,
        next: None,
    };
    let mut forged = Vec::new();
    for _ in 0..choice.between(1, PAGES_MAX) {
        context.at.position += PAGE_BYTES as u64;
        forged.extend(block(&context, partition, offset));
    }
    Some(behind_padding(&forged))
}

/// Pages behind so many bytes that they lie on the beginnings of pages if the record is alone in its
/// block. How many is found by looking where the first one comes to lie.
fn behind_padding(pages: &[u8]) -> Vec<u8> {
    let padded = |padding: usize| [&vec![0; padding], pages].concat();
    let batch = |forged: &[u8]| {
        let values = [(0, VALUE_BYTES_MIN)];
        records::batch(&values, Some(forged), TimestampMs(1), ProducerStamp::NONE).bytes
    };
    let bytes = batch(&padded(PADDING_BYTES));
    let first = bytes.windows(BLOCK_MAGIC.len()).position(|bytes| bytes == BLOCK_MAGIC);
    let too_far = first.map_or(0, |first| (BATCH_AT + first) % PAGE_BYTES);
    padded((PADDING_BYTES + PAGE_BYTES - too_far) % PAGE_BYTES)
}

/// A whole block of one page with one record.
fn block(context: &BlockContext, partition: TopicPartition, offset: Offset) -> Vec<u8> {
    let values = [(NEVER_SENT, VALUE_BYTES_MIN)];
    let mut batch = records::batch(&values, None, TimestampMs(1), ProducerStamp::NONE).bytes;
    stamp(&mut batch, offset, LeaderEpoch(1));
    let bytes = BlockBuilder::region_bytes_for(batch.len(), DIRECTORY_CAPACITY_MIN);
    let mut region = vec![0; bytes];
    let mut builder = BlockBuilder::open(bytes, DIRECTORY_CAPACITY_MIN);
    let place = builder.reserve(batch.len()).expect("a small batch fits");
    region[place.clone()].copy_from_slice(&batch);
    let header = rustmq_protocol::BatchHeader::decode(&batch).expect("made just now");
    builder.push(EntryMeta {
        kind: EntryKind::Data,
        partition,
        leader_epoch: header.leader_epoch,
        base_offset: header.base_offset,
        record_count: header.record_count,
        append_time: TimestampMs(1),
        max_timestamp: header.max_timestamp,
        payload: place.start as u32..place.end as u32,
        payload_crc: header.crc,
        tag: 0,
    });
    let sealed = builder.seal(&mut region, context);
    let block = region[sealed.range].to_vec();
    assert!(block.len() == PAGE_BYTES, "a forged block is a page");
    block
}
