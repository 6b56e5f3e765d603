//! The write-ahead log: a block, the scan of a segment, headers and checkpoints.
//!
//! Input: one byte that chooses, then pages (see `pages`) with what is repaired in them, or what
//! entries are made from.

use rustmq_protocol::{
    BatchBuilder, LeaderEpoch, Offset, PartitionId, ProducerStamp, Record, TimestampMs, TopicId,
    TopicPartition, stamp,
};
use rustmq_wal::recovery::{judge_newest, missing_records, plan};
use rustmq_wal::{
    BLOCK_ALIGN, BlockBuilder, BlockContext, BlockFlags, BlockHeader, BlockSequence, ChainPoint,
    DIRECTORY_CAPACITY_MIN, ENTRY_HEADER_BYTES, Entry, EntryExpect, EntryKind, EntryMeta,
    Generation, Incarnation, PartitionCheckpoint, SEGMENT_HEADER_BYTES, Scan, ScanEnd, ScanError,
    SegmentHeader, SegmentHeaderError, SegmentSequence, SegmentState, Slot, WAL_ITSELF,
    WalCheckpoint, WalId, decode_block, decode_entry,
};

use crate::layout::{add, array_at, seeded, seeded_for_block, u32_at, u64_at};
use crate::memory::{Bound, bounded};
use crate::pages::{PAGE_BYTES, PAGES_MAX, image};
use crate::source::Source;

mod repair;
mod tools;

/// A line of a directory takes 48 bytes on disk and 56 in memory, in a list of as many; an entry of
/// at least 128 bytes has a point of the index in a list that doubles, and may be the first of its
/// partition, whose place in the index is a node of a tree of about 1.3 KiB.
const ASKED_MAX: Bound = Bound { base: 4096, per_byte: 16 };

/// An epoch takes 16 bytes on disk and in memory, a producer 24 and 48.
const CHECKPOINT_ASKED_MAX: Bound = Bound::per_byte(4);

/// The chosen part is refused or read, and nothing is handed out whose checksum does not hold.
pub fn target(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let mut source = Source::new(rest);
    match choice % 8 {
        0..=2 => segment(&mut source),
        3 => block(&mut source),
        4 => made_block(&mut source),
        5 => headers(&mut source),
        6 => checkpoints(rest),
        _ => made_checkpoint(&mut source),
    }
}

/// Recovery follows the chain of an arbitrary segment to its end.
fn segment(source: &mut Source<'_>) {
    let (choices, durable_end, skips) = (source.u64(), source.u8(), source.u8());
    let mut image = image(source, PAGES_MAX);
    if image.len() < 2 * PAGE_BYTES {
        return;
    }
    repair::segment_header(&mut image[..PAGE_BYTES]);
    repair::chain(&mut image, choices);
    let header = SegmentHeader::decode(&image[..SEGMENT_HEADER_BYTES]);
    let mut header = header.unwrap_or_else(|error| match error {
        SegmentHeaderError::Size { .. } => header_of(&image),
        error => panic!("a header that was repaired: {error}"),
    });
    header.segment_bytes = image.len() as u64;
    let durable_end =
        BlockSequence(header.first_block.0.wrapping_add(u64::from(durable_end) % 8).max(1));
    let (end, handed_out) =
        bounded(image.len(), &ASKED_MAX, || scanned(&image, &header, durable_end, skips));
    if let Some(end) = end {
        assert_eq!(end.index.point_count(), handed_out);
        ends_well(&image, &header, &end);
    }
    tools::run(&image, &header, durable_end);
}

/// The fields of a header whose size is not one that segments have.
fn header_of(page: &[u8]) -> SegmentHeader {
    SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(u32_at(page, 12)),
        wal: WalId(array_at(page, 16)),
        sequence: SegmentSequence(u64_at(page, 32)),
        generation: Generation(u64_at(page, 40)),
        segment_bytes: 0,
        first_block: BlockSequence(u64_at(page, 56)),
        prev_crc: u32_at(page, 64),
    }
}

/// Feeds the image as the shell does. `skips` has a bit for each corruption: whether to go on
/// behind it. Returns how it ended and how many batches were handed out.
fn scanned(
    image: &[u8],
    header: &SegmentHeader,
    durable_end: BlockSequence,
    skips: u8,
) -> (Option<ScanEnd>, usize) {
    let mut scan = Scan::new(header, durable_end);
    let (mut batches, mut last, mut corruptions) = (0, 0, 0);
    // Each read begins behind the one before, or is a longer one from the same place.
    let mut reads_left = 2 * image.len() / PAGE_BYTES;
    while let Some(read) = scan.next_read() {
        reads_left = reads_left.checked_sub(1).expect("a scan comes to its end");
        let bytes = &image[read.start as usize..read.end as usize];
        let fed = scan.feed(read.start, bytes, |block, entry| {
            assert!(last < entry.position, "entries are handed out in order");
            last = entry.position;
            is_whole(image, header.generation.0, block, entry);
            batches += usize::from(entry.header.kind == EntryKind::Data);
        });
        match fed {
            Ok(()) => {}
            Err(ScanError::Corruption(bad)) => {
                let error = ScanError::Corruption(bad.clone());
                assert!(!error.to_string().is_empty());
                assert!(bad.position <= bad.end && bad.end <= image.len() as u64);
                let goes_on = skips >> (corruptions % 8) & 1 != 0;
                corruptions += 1;
                if !goes_on || !scan.skip_corruption() {
                    break;
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return (None, batches);
            }
        }
    }
    (Some(scan.finish()), batches)
}

/// The checksums of an entry that was handed out hold, by other code than the product's. Those of
/// its block need not: what is whole in a damaged block is handed out too.
fn is_whole(image: &[u8], generation: u64, block: &BlockHeader, entry: &Entry<'_>) {
    let at = entry.position as usize;
    assert!(block.position as usize <= at);
    let bytes = &image[at..];
    let (head, rest) = bytes.split_at(ENTRY_HEADER_BYTES);
    assert_eq!(u32_at(head, 0), add(seeded(generation), &head[4..]), "the entry's header");
    assert_eq!(u64_at(head, 8), block.sequence.0, "the entry was made for its block");
    let payload = &rest[..u32_at(head, 52) as usize];
    assert!(
        at + ENTRY_HEADER_BYTES + payload.len() <= block.position as usize + block.length as usize
    );
    assert!(entry.payload == payload, "the payload is the one behind the header");
    let hashed = if head[4] == 1 {
        assert_eq!(payload[16..20], head[64..68], "the batch has the checksum of its entry");
        assert_eq!(payload[..8], head[40..48], "the batch has the offset of its entry");
        &payload[20..]
    } else {
        payload
    };
    assert_eq!(u32_at(head, 64), crc32c::crc32c(hashed), "the entry's payload");
    let expect = EntryExpect {
        generation: Generation(generation),
        partition: entry.header.partition,
        base_offset: entry.header.base_offset,
    };
    assert_eq!(decode_entry(bytes, &expect), Ok((entry.header, entry.payload)));
}

/// The checksums over the directory of a block and over the headers that it names hold.
fn directory_is_whole(block: &[u8], generation: u64, sequence: u64) {
    let seed = seeded_for_block(generation, sequence);
    let (mut directory_crc, mut entries_crc) = (seed, seed);
    for line in block[repair::BLOCK_HEADER_BYTES..].chunks(48).take(u32_at(block, 72) as usize) {
        directory_crc = add(directory_crc, line);
        let at = u32_at(line, 36) as usize;
        entries_crc = add(entries_crc, &block[at..at + ENTRY_HEADER_BYTES]);
    }
    assert_eq!(u32_at(block, 80), directory_crc, "the block's directory");
    assert_eq!(u32_at(block, 84), entries_crc, "the headers of the block's entries");
}

/// The end lies in the segment, and what the index names is there.
fn ends_well(image: &[u8], header: &SegmentHeader, end: &ScanEnd) {
    assert!(end.next.position <= image.len() as u64);
    assert!(end.undurable.start <= end.undurable.end);
    assert_eq!(end.undurable.end, end.next.position);
    for summary in end.index.partitions() {
        for point in end.index.points(summary.partition) {
            let entry = &image[point.position as usize..][..point.length as usize];
            let expect = EntryExpect {
                generation: header.generation,
                partition: summary.partition,
                base_offset: point.base_offset,
            };
            assert!(decode_entry(entry, &expect).is_ok(), "what the index names is there");
        }
    }
    for before in [None, Some(None), Some(end.segment_end())] {
        let judged = judge_newest(before, header, end);
        assert!(judged.is_ok() || judged.is_err_and(|error| !error.to_string().is_empty()));
    }
}

/// One block, at a place in a chain that the input decides.
fn block(source: &mut Source<'_>) {
    let choices = source.u64();
    let place = repair::Place {
        wal: [0xaa; 16],
        generation: source.u64(),
        position: PAGE_BYTES as u64 * u64::from(source.u16()),
        sequence: source.u64(),
        prev_crc: source.u32(),
        incarnation: u64::from(source.u8()),
    };
    let mut bytes = image(source, PAGES_MAX / 2);
    if bytes.is_empty() {
        return;
    }
    repair::alone(&mut bytes, &place, choices);
    let expect = ChainPoint {
        wal: WalId(place.wal),
        generation: Generation(place.generation),
        incarnation: Incarnation(place.incarnation),
        position: place.position,
        sequence: BlockSequence(place.sequence),
        prev_crc: place.prev_crc,
    };
    match bounded(bytes.len(), &ASKED_MAX, || decode_block(&bytes, &expect)) {
        Ok(block) => {
            if 0 < block.header.entry_count {
                let whole = &bytes[..block.header.length as usize];
                directory_is_whole(whole, place.generation, place.sequence);
            }
            for entry in block.entries() {
                let head = &bytes[(entry.position - place.position) as usize..];
                assert_eq!(u32_at(head, 0), add(seeded(place.generation), &head[4..80]));
                assert!(head[80..].starts_with(entry.payload));
            }
            let after = block.header.chain_after();
            assert_eq!(after.position, place.position + u64::from(block.header.length));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A block of any entries reads back; whatever the memory held before, the same bytes go to disk.
fn made_block(source: &mut Source<'_>) {
    let context = context(source);
    let mut entries = Vec::new();
    while !source.is_empty() && entries.len() < 64 {
        entries.push(made_entry(source));
    }
    let (first, mut builder) = sealed(&entries, &context, 0);
    let (second, _) = sealed(&entries, &context, 0xd5);
    assert!(first == second, "nothing of the memory's past is in a block");
    let block = decode_block(&first, &context.at).expect("a block that was just sealed");
    assert_eq!((block.header.flags, block.header.next), (context.flags, context.next));
    assert_eq!(block.header.durable_end, context.durable_end);
    let mut read = block.entries();
    for (meta, payload) in entries.iter().take(builder.entries().len()) {
        let entry = read.next().expect("as many as were pushed");
        assert_eq!((entry.header.kind, entry.header.partition), (meta.kind, meta.partition));
        assert_eq!(entry.header.base_offset, meta.base_offset);
        assert_eq!(entry.header.leader_epoch, meta.leader_epoch);
        assert_eq!(entry.header.record_count, meta.record_count);
        assert_eq!(entry.header.append_time, meta.append_time);
        assert_eq!(entry.header.max_timestamp, meta.max_timestamp);
        assert!(entry.payload == payload);
    }
    assert!(read.next().is_none());
    builder.reset(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
    assert!(builder.is_empty());
}

/// Room for a few batches.
const REGION_BYTES: usize = 8 * BLOCK_ALIGN;

fn context(source: &mut Source<'_>) -> BlockContext {
    let flags = [
        BlockFlags::NONE,
        BlockFlags::START,
        BlockFlags::CLEAN,
        BlockFlags::SEAL,
        BlockFlags::CHECKPOINT.with(BlockFlags::CHECKPOINT_END),
    ][usize::from(source.u8()) % 5];
    let sequence = BlockSequence(source.u64().max(1));
    let ends = flags == BlockFlags::CLEAN || flags == BlockFlags::SEAL;
    BlockContext {
        at: ChainPoint {
            wal: WalId(source.array()),
            generation: Generation(source.u64()),
            incarnation: Incarnation(source.u64() % Incarnation::NEVER.0),
            position: PAGE_BYTES as u64 * u64::from(source.u16()),
            sequence,
            prev_crc: source.u32(),
        },
        durable_end: if ends { sequence } else { BlockSequence(source.u64() % sequence.0) },
        flags,
        next: (flags == BlockFlags::SEAL).then(|| rustmq_wal::NextSegment {
            sequence: SegmentSequence(source.u64()),
            slot: Slot(source.u32()),
            generation: Generation(source.u64()),
        }),
    }
}

fn made_entry(source: &mut Source<'_>) -> (EntryMeta, Vec<u8>) {
    let kinds =
        [EntryKind::Data, EntryKind::Checkpoint, EntryKind::LogStart, EntryKind::EpochStart];
    let kind = kinds[usize::from(source.u8()) % 4];
    let partition = match source.u8() % 4 {
        0 => WAL_ITSELF,
        number => TopicPartition {
            topic: TopicId::from_bytes([number; 16]),
            partition: PartitionId(u32::from(source.u8())),
        },
    };
    let (base_offset, leader_epoch) = (Offset(source.u64() >> 1), LeaderEpoch(source.u32()));
    let mut payload = source.bytes().to_vec();
    let mut meta = EntryMeta {
        kind,
        partition,
        leader_epoch,
        base_offset,
        record_count: 0,
        append_time: TimestampMs(source.i64()),
        max_timestamp: TimestampMs(0),
        payload: 0..0,
        payload_crc: 0,
        tag: 0,
    };
    if kind == EntryKind::Data {
        let mut builder = BatchBuilder::new(0);
        let record = Record {
            timestamp: TimestampMs(source.i64()),
            key: None,
            value: Some(&payload),
            headers: &[],
        };
        builder.try_push(&record).expect("a first record fits");
        payload = builder.finish(ProducerStamp::NONE).to_vec();
        stamp(&mut payload, base_offset, leader_epoch);
        meta.record_count = 1;
        meta.max_timestamp = record_time(&payload);
        meta.payload_crc = u32_at(&payload, 16);
    }
    (meta, payload)
}

fn record_time(batch: &[u8]) -> TimestampMs {
    TimestampMs(i64::from_le_bytes(array_at(batch, 32)))
}

/// The bytes of a block of as many of the entries as fit, in memory that held `before`.
fn sealed(
    entries: &[(EntryMeta, Vec<u8>)],
    context: &BlockContext,
    before: u8,
) -> (Vec<u8>, BlockBuilder) {
    let mut region = vec![before; REGION_BYTES];
    let mut builder = BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
    for (meta, payload) in entries {
        let Some(range) = builder.reserve(payload.len()) else { break };
        region[range.clone()].copy_from_slice(payload);
        builder.push(EntryMeta { payload: range.start as u32..range.end as u32, ..meta.clone() });
    }
    let sealed = builder.seal(&mut region, context);
    assert_eq!(sealed.bytes(), sealed.range.len());
    (region[sealed.range].to_vec(), builder)
}

/// Header pages of several files, and the order that recovery puts them in.
fn headers(source: &mut Source<'_>) {
    let segment_bytes = 1 << 20;
    let mut headers = Vec::new();
    let mut slot = 0;
    while !source.is_empty() && slot < 8 {
        let choice = source.u8();
        let mut page = vec![0; PAGE_BYTES];
        let fields = source.slice(72);
        page[..fields.len()].copy_from_slice(fields);
        if choice & 1 == 0 {
            crate::layout::put(&mut page, 48, &u64::to_le_bytes(segment_bytes));
        }
        if choice & 2 == 0 {
            crate::layout::put(&mut page, 12, &u32::to_le_bytes(slot));
            crate::layout::put(&mut page, 16, &[0xaa; 16]);
        }
        if choice & 4 == 0 {
            repair::segment_header(&mut page);
        }
        let header = SegmentHeader::decode(&page);
        if let Ok(header) = header {
            let mut again = [0; SEGMENT_HEADER_BYTES];
            header.encode(&mut again);
            assert_eq!(SegmentHeader::decode(&again), Ok(header));
            // What a header has beside its fields is zero in all that was ever written.
            if page[11] == 0 && page[68..72] == [0; 4] {
                assert!(again[..] == page[..], "a header is encoded as it was");
            }
            assert_eq!(header.freed().state, SegmentState::Spare);
        }
        headers.push((Slot(slot), header));
        slot += 1;
    }
    match plan(WalId([0xaa; 16]), segment_bytes, headers) {
        Ok(plan) => {
            for pair in plan.segments.windows(2) {
                let [older, newer] = pair else { continue };
                assert!(older.sequence < newer.sequence, "in order, each once");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The payload of a checkpoint, in both kinds.
fn checkpoints(payload: &[u8]) {
    match bounded(payload.len(), &CHECKPOINT_ASKED_MAX, || PartitionCheckpoint::decode(payload)) {
        Ok(checkpoint) => {
            let again = checkpoint.encode();
            assert_eq!(again.len(), payload.len());
            assert_eq!(PartitionCheckpoint::decode(&again), Ok(checkpoint));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match bounded(payload.len(), &CHECKPOINT_ASKED_MAX, || WalCheckpoint::decode(payload)) {
        Ok(checkpoint) => {
            assert_eq!(WalCheckpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A checkpoint of any state reads back.
fn made_checkpoint(source: &mut Source<'_>) {
    let start = source.u64();
    let checkpoint = PartitionCheckpoint {
        partition: TopicPartition {
            topic: TopicId::from_bytes(source.array()),
            partition: PartitionId(source.u32()),
        },
        log_start: Offset(start),
        log_end: Offset(start.saturating_add(source.u64())),
        leader_epoch: LeaderEpoch(source.u32()),
        append_time_max: TimestampMs(source.i64()),
        epochs: source.list(|source| (LeaderEpoch(source.u32()), Offset(source.u64()))),
        producers: source.list(|source| rustmq_wal::ProducerCheckpoint {
            id: rustmq_protocol::ProducerId(source.u64()),
            epoch: rustmq_protocol::ProducerEpoch(source.u16()),
            last_append_time: TimestampMs(source.i64()),
            batches: {
                let mut batches = source.list(|source| rustmq_wal::BatchCheckpoint {
                    base_sequence: rustmq_protocol::Sequence(source.u32()),
                    record_count: source.u32(),
                    base_offset: Offset(source.u64()),
                });
                batches.truncate(8);
                batches
            },
        }),
    };
    let bytes = checkpoint.encode();
    assert_eq!(bytes.len(), checkpoint.encoded_bytes());
    let (start, end) = (checkpoint.log_start, checkpoint.log_end);
    let held = Offset(source.u64())..Offset(source.u64());
    for range in missing_records(start, end, [held.clone()]) {
        assert!(start <= range.start && range.start < range.end && range.end <= end);
        assert!(range.end <= held.start || held.end <= range.start || held.is_empty());
    }
    assert_eq!(PartitionCheckpoint::decode(&bytes), Ok(checkpoint));
    let wal = WalCheckpoint {
        first_segment: SegmentSequence(source.u64()),
        partition_count: source.u32(),
    };
    assert_eq!(WalCheckpoint::decode(&wal.encode()), Ok(wal));
}
