//! Recovery: what was flushed is there, what was not is a prefix or nothing, damage is never cut.

mod support;

use proptest::prelude::*;
use rustmq_protocol::{LeaderEpoch, Offset};
use rustmq_wal::scan::Torn;
use rustmq_wal::verify::{Verify, What};
use rustmq_wal::{
    BLOCK_ALIGN, BlockBuilder, BlockContext, BlockError, BlockFlags, BlockSequence, ChainPoint,
    Corruption, DIRECTORY_CAPACITY_MIN, EntryKind, Generation, Incarnation, OpenError, Scan,
    ScanError, SealedBlock, SegmentSequence, Slot,
};
use support::{
    Files, RecoverError, Recovered, SECTOR_BYTES, WAL, Writer, Written, batch, partition,
    push_batch, push_note, recover, scan,
};

/// As large as a broker's smallest.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

const SEED: u64 = 0xfeed_0000_0000_0001;

fn writer() -> Writer {
    Writer::create(SEGMENT_BYTES_MIN, 3, SEED)
}

/// What is recovered must be a prefix of what was written to the segments that are still there, with
/// all that was durable.
fn assert_prefix(found: &Recovered, written: &[Written], op: usize) {
    let first = found.plan.segments[0].sequence;
    let written: Vec<_> = written.iter().filter(|entry| first <= entry.segment).collect();
    let durable = written
        .iter()
        .take_while(|entry| entry.durable_at.is_some_and(|durable_at| durable_at <= op))
        .count();
    assert!(durable <= found.entries.len(), "every durable entry is there");
    assert!(found.entries.len() <= written.len(), "nothing else is");
    for (found, written) in found.entries.iter().zip(written) {
        assert_eq!(found.partition, written.partition);
        assert_eq!(found.base_offset, written.base_offset);
        assert!(found.payload == written.payload, "bytes are the producer's");
        assert_eq!(found.segment, written.segment);
    }
}

fn must_recover(files: &Files) -> Recovered {
    recover(files, SEGMENT_BYTES_MIN).expect("a crash is recovered from")
}

fn corruption(files: &Files) -> Corruption {
    match recover(files, SEGMENT_BYTES_MIN) {
        Err(RecoverError::Scan(ScanError::Corruption(corruption))) => *corruption,
        other => panic!("damage is told, not {other:?}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append { partition: u8, sizes: Vec<usize> },
    Commit { flush: bool },
    Mark,
    Rotate,
    Free,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u8..4, prop::collection::vec(0_usize..3000, 1..4))
            .prop_map(|(partition, sizes)| Step::Append { partition, sizes }),
        2 => Just(Step::Append { partition: 1, sizes: vec![200_000] }),
        6 => any::<bool>().prop_map(|flush| Step::Commit { flush }),
        1 => Just(Step::Mark),
        1 => Just(Step::Rotate),
        1 => Just(Step::Free),
    ]
}

fn run(writer: &mut Writer, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Append { partition: number, sizes } => {
                let values: Vec<_> = sizes.iter().map(|size| vec![*number; *size]).collect();
                let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
                writer.append(partition(*number), &values);
            }
            Step::Commit { flush } => {
                writer.commit(BlockFlags::NONE, *flush);
            }
            Step::Mark => {
                writer.commit(BlockFlags::IDLE, true);
            }
            Step::Rotate => writer.rotate(),
            Step::Free => {
                writer.free();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn after_crashes_a_prefix_with_all_that_was_durable_is_recovered(
        lives in prop::collection::vec(
            (
                prop::collection::vec(step(), 1..40),
                any::<prop::sample::Index>(),
                prop::collection::vec(any::<bool>(), 64),
            ),
            1..5,
        ),
    ) {
        let mut writer = writer();
        let made = writer.disk.op_count();
        for (life, (steps, crash, survives)) in lives.iter().enumerate() {
            run(&mut writer, steps);
            let first = if life == 0 { made } else { 0 };
            let op = first + crash.index(writer.disk.op_count() + 1 - first);
            let files = writer.disk.crash_at(op, |sector| survives[sector % survives.len()]);
            let found = must_recover(&files);
            assert_prefix(&found, &writer.written, op);
            writer = Writer::resume(files, found, SEED + 1 + life as u64 * 1000);
        }
        writer.commit(BlockFlags::CLEAN, true);
        let found = must_recover(&writer.disk.files());
        prop_assert!(found.tail_end.clean);
        assert_prefix(&found, &writer.written, usize::MAX);
    }
}

/// Three flushed blocks and a fourth that is not.
fn with_unflushed_block() -> Writer {
    let mut writer = writer();
    for number in 0..3 {
        writer.append(partition(number), &[b"durable"]);
        writer.commit(BlockFlags::NONE, true);
    }
    for number in 0..12 {
        writer.append(partition(number % 4), &[&[number; 700], &[number; 30]]);
    }
    writer.commit(BlockFlags::NONE, false);
    writer
}

#[test]
fn a_tail_torn_at_any_sector_is_cut_to_whole_blocks() {
    let writer = with_unflushed_block();
    let sectors = writer.disk.unflushed_sectors();
    assert!(16 < sectors, "the last block is long");
    let whole = must_recover(&writer.disk.files()).entries.len();
    assert_eq!(whole, 15);
    let check = |survives: &dyn Fn(usize) -> bool| {
        let files = writer.disk.crash(survives);
        let found = must_recover(&files);
        assert_prefix(&found, &writer.written, writer.disk.op_count());
        assert!(found.entries.len() == 3 || found.entries.len() == whole, "all of it or none");
        found
    };
    for cut in 0..sectors {
        // The first sectors came through, the last did, one did not, or only one did.
        check(&|sector| sector < cut);
        check(&|sector| cut <= sector);
        check(&|sector| sector != cut);
        check(&|sector| sector == cut);
    }
    let found = check(&|sector| sector == 0);
    assert!(matches!(found.tail_end.torn, Some(Torn { why: BlockError::DirectoryCrc, .. })));
    let found = check(&|sector| sector != 0);
    assert_eq!(found.tail_end.torn, None, "without its header nothing shows that it began");
}

#[test]
fn of_several_unflushed_blocks_those_before_the_first_bad_one_are_kept() {
    let mut writer = writer();
    let mut sectors = Vec::new();
    for number in 0..4 {
        writer.append(partition(number), &[&[number; 100]]);
        sectors.push(writer.commit(BlockFlags::NONE, false).bytes() / SECTOR_BYTES);
    }
    for lost in 0..4 {
        let start: usize = sectors[..lost].iter().sum();
        let files = writer.disk.crash(|sector| sector != start);
        let found = must_recover(&files);
        assert_eq!(found.entries.len(), lost);
        assert_eq!(found.tail_end.undurable.end, found.tail_end.next.position);
        // And the blocks behind the cut stay dead when others are written over them.
        let mut again = Writer::resume(files, found, SEED + 1);
        again.append(partition(9), &[b"after"]);
        again.commit(BlockFlags::NONE, true);
        let found = must_recover(&again.disk.files());
        assert_eq!(found.entries.len(), lost + 1);
        assert_eq!(found.entries[lost].partition, partition(9));
    }
}

#[test]
fn what_may_not_be_durable_is_named_for_rewriting() {
    let mut writer = writer();
    writer.append(partition(0), &[b"a"]);
    let first = writer.commit(BlockFlags::NONE, true);
    writer.append(partition(0), &[b"b"]);
    let second = writer.commit(BlockFlags::NONE, true);
    let found = must_recover(&writer.disk.files());
    assert_eq!(
        found.tail_end.durable_end, second.sequence,
        "the last block says of itself nothing"
    );
    assert_eq!(found.tail_end.undurable, second.position..second.position + second.bytes() as u64);
    writer.commit(BlockFlags::IDLE, true);
    let found = must_recover(&writer.disk.files());
    assert_eq!(found.tail_end.durable_end, second.sequence.next(), "a mark does");
    assert!(first.position < found.tail_end.undurable.start);
}

/// The file of the active segment with one byte of a block changed.
fn damage(writer: &Writer, block: &SealedBlock, at: usize) -> Files {
    let mut files = writer.disk.files();
    let file = files.get_mut(&writer.active().slot).expect("the active segment has a file");
    file[block.position as usize + at] ^= 0x10;
    files
}

#[test]
fn a_damaged_block_that_was_flushed_is_corruption_and_named_by_its_directory() {
    let mut writer = writer();
    writer.append(partition(0), &[b"zero"]);
    writer.append(partition(1), &[b"one", b"two"]);
    let bad = writer.commit(BlockFlags::NONE, true);
    writer.append(partition(2), &[b"later"]);
    writer.commit(BlockFlags::NONE, true);
    let payload = 512 + 80 + 64 + 4;
    let entry_header = 512 + 40;
    for at in [payload, entry_header] {
        let found = corruption(&damage(&writer, &bad, at));
        assert_eq!(found.position, bad.position);
        assert_eq!(found.sequence, bad.sequence);
        let named: Vec<_> = found.named.as_ref().expect("the directory survived").iter().collect();
        assert_eq!(named.len(), 1, "the other entry of the block is whole");
        assert_eq!((named[0].partition, named[0].record_count), (partition(0), 1));
        assert_eq!(found.resume.map(|next| next.sequence), Some(bad.sequence.next()));
    }
    // Directory or header: the entries prove themselves, and one wrong bit is found.
    for at in [128 + 4, 40] {
        let found = corruption(&damage(&writer, &bad, at));
        assert_eq!(found.named, Some(Vec::new()), "nothing is lost");
        assert_eq!(found.resume.map(|next| next.sequence), Some(bad.sequence.next()));
    }
    let mut files = writer.disk.files();
    let file = files.get_mut(&writer.active().slot).expect("the active segment has a file");
    file[bad.position as usize..][..512].fill(0);
    let found = corruption(&files);
    assert_eq!(found.named, None, "header and directory are gone");
    assert_eq!(found.end, bad.position + bad.bytes() as u64, "it ends where the next one begins");
    assert_eq!(found.resume.map(|next| next.sequence), Some(bad.sequence.next()));
}

#[test]
fn a_scan_goes_on_behind_corruption_of_known_extent() {
    let mut writer = writer();
    writer.append(partition(0), &[b"lost"]);
    let bad = writer.commit(BlockFlags::NONE, true);
    writer.append(partition(0), &[b"found"]);
    writer.commit(BlockFlags::NONE, true);
    writer.commit(BlockFlags::IDLE, true);
    let files = damage(&writer, &bad, 512 + 100);
    let header = writer.active();
    let mut scan = Scan::new(&header, BlockSequence::FIRST);
    let (mut offsets, mut corruptions) = (Vec::new(), 0);
    while let Some(range) = scan.next_read() {
        let bytes = &files[&header.slot][range.start as usize..range.end as usize];
        let fed = scan.feed(range.start, bytes, |_, entry| offsets.push(entry.header.base_offset));
        if let Err(error) = fed {
            assert!(matches!(error, ScanError::Corruption(_)), "{error}");
            corruptions += 1;
            assert!(scan.skip_corruption());
        }
    }
    let end = scan.finish();
    assert_eq!(corruptions, 1);
    // The checkpoint's entry is at offset 0 too.
    assert_eq!(offsets, [Offset(0), Offset(1)]);
    assert_eq!(end.next, writer.chain.point());
    assert_eq!(end.index.points(partition(0)).len(), 1);
}

#[test]
fn every_damaged_sector_of_flushed_blocks_is_told() {
    let mut writer = writer();
    writer.append(partition(0), &[&[1; 3000]]);
    let first = writer.commit(BlockFlags::NONE, true);
    writer.append(partition(1), &[&[2; 9000]]);
    let second = writer.commit(BlockFlags::NONE, true);
    writer.commit(BlockFlags::IDLE, true);
    let whole = writer.disk.files();
    for block in [&first, &second] {
        for sector in 0..block.bytes() / SECTOR_BYTES {
            let start = block.position as usize + sector * SECTOR_BYTES;
            let mut files = whole.clone();
            let file = files.get_mut(&Slot(0)).expect("the first segment");
            if file[start..start + SECTOR_BYTES].iter().all(|byte| *byte == 0) {
                continue;
            }
            file[start..start + SECTOR_BYTES].fill(0);
            assert_eq!(corruption(&files).position, block.position, "sector {sector}");
        }
    }
}

#[test]
fn without_a_later_block_the_last_one_is_taken_for_torn() {
    // The documented exception: a clean or idle mark ends it.
    let mut writer = writer();
    writer.append(partition(0), &[b"last"]);
    let last = writer.commit(BlockFlags::NONE, true);
    assert_eq!(must_recover(&damage(&writer, &last, 512 + 100)).entries.len(), 0);
    writer.commit(BlockFlags::CLEAN, true);
    assert_eq!(corruption(&damage(&writer, &last, 512 + 100)).sequence, last.sequence);
}

#[test]
fn a_recycled_segment_shows_nothing_of_its_older_use() {
    let mut writer = writer();
    for round in 0..8_u8 {
        writer.append(partition(round), &[&[round; 2000]]);
        writer.commit(BlockFlags::NONE, true);
        writer.append(partition(round), &[&[round; 50]]);
        writer.commit(BlockFlags::IDLE, true);
        writer.rotate();
        writer.free();
        let found = must_recover(&writer.disk.files());
        assert_eq!(found.plan.segments.len(), 1, "one live segment in files full of older ones");
        assert!(found.entries.is_empty());
        assert_eq!(found.tail_end.torn, None);
        assert_eq!(found.tail_end.next, writer.chain.point());
    }
}

#[test]
fn block_bytes_inside_a_batch_never_validate() {
    let mut writer = writer();
    // What a client can make: a whole block for exactly the place where it will lie, with a durable
    // end far ahead. It knows everything but the generation.
    let forged = |position: u64, generation: Generation, sequence: BlockSequence| {
        let mut region = vec![0; 64 << 10];
        let mut builder = BlockBuilder::open(region.len(), DIRECTORY_CAPACITY_MIN);
        let bytes = batch(&[b"forged"], Offset(77), LeaderEpoch(1));
        push_batch(&mut builder, &mut region, partition(3), &bytes);
        let context = BlockContext {
            at: ChainPoint {
                wal: WAL,
                generation,
                incarnation: Incarnation(1),
                position,
                sequence,
                prev_crc: 0,
            },
            durable_end: sequence,
            flags: BlockFlags::NONE,
            next: None,
        };
        let sealed = builder.seal(&mut region, &context);
        region[sealed.range].to_vec()
    };
    let point = writer.chain.point();
    // Where values end up: pages of one long record, each a forged block of its place.
    let pages = 12;
    let mut value = vec![0; pages * BLOCK_ALIGN];
    // Behind the value comes one byte, the count of headers.
    let before_value = batch(&[&value], Offset(0), LeaderEpoch(1)).len() - value.len() - 1;
    let value_start = 512 + 80 + before_value;
    for page in 1..pages - 1 {
        let position = point.position + (page * BLOCK_ALIGN) as u64;
        let block = forged(position, Generation(SEED ^ 1), BlockSequence(1 << 40));
        let at = page * BLOCK_ALIGN - value_start;
        value[at..at + BLOCK_ALIGN].copy_from_slice(&block);
    }
    writer.append(partition(0), &[&value]);
    let carrier = writer.commit(BlockFlags::NONE, false);
    // Torn in its first sector, so that a scan looks at every page behind it.
    let files = writer.disk.crash(|sector| sector != 0);
    let second_page = carrier.position as usize + BLOCK_ALIGN;
    assert_eq!(&files[&Slot(0)][second_page..second_page + 4], b"RQBK", "they lie on pages");
    let found = must_recover(&files);
    assert!(found.entries.is_empty());
    assert_eq!(found.tail_end.next.position, carrier.position);
    // The test is sharp: with the right generation the same bytes would count.
    let real = forged(point.position + 4096, Generation(SEED), BlockSequence(1 << 40));
    let mut files = files;
    let start = point.position as usize + 4096;
    files.get_mut(&Slot(0)).expect("the first")[start..start + 4096].copy_from_slice(&real);
    corruption(&files);
}

#[test]
fn a_crash_between_preparing_a_segment_and_sealing_the_old_one_leaves_the_old_one_the_tail() {
    let mut writer = writer();
    writer.append(partition(0), &[b"before"]);
    writer.commit(BlockFlags::NONE, true);
    let before = writer.disk.op_count();
    writer.rotate();
    let after = writer.disk.op_count();
    for op in before..=after {
        let found = must_recover(&writer.disk.crash_at(op, |_| false));
        assert_prefix(&found, &writer.written, op);
        let mut again = Writer::resume(writer.disk.crash_at(op, |_| false), found, SEED + 9);
        again.append(partition(0), &[b"after"]);
        again.commit(BlockFlags::NONE, true);
        again.rotate();
        assert_eq!(must_recover(&again.disk.files()).entries.len(), 2, "operation {op}");
    }
}

/// A WAL with a sealed segment, its footer, and records in the next one.
fn sealed_writer() -> Writer {
    let mut writer = writer();
    writer.append(partition(0), &[b"sealed"]);
    writer.commit(BlockFlags::NONE, true);
    writer.rotate();
    writer.append(partition(0), &[b"active"]);
    writer.commit(BlockFlags::NONE, true);
    writer
}

#[test]
fn a_lost_seal_block_is_corruption_once_the_next_segment_went_on() {
    let mut writer = sealed_writer();
    writer.commit(BlockFlags::IDLE, true);
    let mut files = writer.disk.files();
    let first = files.get_mut(&Slot(0)).expect("the first segment");
    // Header, checkpoint and one block of records come before the seal.
    let seal = 3 * BLOCK_ALIGN;
    first[seal..seal + SECTOR_BYTES].fill(0);
    assert_eq!(corruption(&files).position, seal as u64, "its footer says it was sealed");
    let end = files[&Slot(0)].len();
    files.get_mut(&Slot(0)).expect("the first")[end - BLOCK_ALIGN..].fill(0);
    assert_eq!(corruption(&files).position, seal as u64, "the next segment's durable end does");
}

#[test]
fn a_lost_header_of_an_activated_segment_is_told() {
    let writer = sealed_writer();
    let mut files = writer.disk.files();
    files.get_mut(&Slot(1)).expect("the second")[..SECTOR_BYTES].fill(0x5a);
    let found = recover(&files, SEGMENT_BYTES_MIN);
    assert!(
        matches!(found, Err(RecoverError::Open(OpenError::LostSegment { next }))
            if next.sequence == SegmentSequence(2)),
        "{found:?}"
    );
}

#[test]
fn a_lost_segment_between_others_is_told() {
    let mut writer = sealed_writer();
    writer.rotate();
    let mut files = writer.disk.files();
    files.get_mut(&Slot(1)).expect("the second").fill(0);
    let found = recover(&files, SEGMENT_BYTES_MIN);
    assert!(
        matches!(found, Err(RecoverError::Open(OpenError::LostSegment { next }))
            if next.sequence == SegmentSequence(2)),
        "{found:?}"
    );
}

#[test]
fn a_file_cut_before_its_first_block_is_corrupt_if_one_was_flushed() {
    let writer = sealed_writer();
    let first = writer.segments.live().next().expect("the first").header;
    let next = writer.active().first_block;
    for bytes in [100, BLOCK_ALIGN as u64, 2 * BLOCK_ALIGN as u64 - 1] {
        let corrupt = |durable_end| {
            let scan = Scan::new(&first, durable_end).of_file(bytes);
            assert_eq!(scan.next_read(), None);
            scan.finish().corrupt
        };
        assert!(corrupt(next), "{bytes} bytes");
        assert!(!corrupt(first.first_block), "nothing says that there was a block");
    }
}

#[test]
fn a_lost_checkpoint_of_an_activated_segment_is_told() {
    let mut writer = sealed_writer();
    writer.commit(BlockFlags::IDLE, true);
    let mut files = writer.disk.files();
    let second = files.get_mut(&Slot(1)).expect("the second segment");
    second[BLOCK_ALIGN..2 * BLOCK_ALIGN].fill(0);
    assert_eq!(corruption(&files).position, BLOCK_ALIGN as u64, "later blocks prove it was there");
    files.get_mut(&Slot(1)).expect("the second")[BLOCK_ALIGN..].fill(0);
    let found = recover(&files, SEGMENT_BYTES_MIN).expect("nothing is left to prove it");
    assert!(!found.tail_end.checkpoint_complete);
}

/// A segment whose last block holds an entry with this kind of header byte.
fn with_raw_entry_kind(kind: u8) -> (Files, Writer) {
    // Make a log-start entry, then renumber its kind and mend every checksum that covers it.
    let mut writer = writer();
    let mut region = vec![0; 64 << 10];
    let mut builder = BlockBuilder::open(region.len(), DIRECTORY_CAPACITY_MIN);
    push_note(&mut builder, &mut region, EntryKind::LogStart, partition(0), Offset(1), &[]);
    let context = writer.chain.context(BlockFlags::NONE, None);
    let sealed = builder.seal(&mut region, &context);
    let block = &mut region[sealed.range.clone()];
    let seeded = |parts: &[&[u8]]| {
        let mut crc = crc32c::crc32c(&context.at.generation.0.to_le_bytes());
        for part in parts {
            crc = crc32c::crc32c_append(crc, part);
        }
        crc.to_le_bytes()
    };
    let sequence = context.at.sequence.0.to_le_bytes();
    block[512 + 4] = kind;
    let crc = seeded(&[&block[512 + 4..512 + 80]]);
    block[512..516].copy_from_slice(&crc);
    block[128 + 20] = kind;
    let crc = seeded(&[&sequence, &block[128..176]]);
    block[80..84].copy_from_slice(&crc);
    let crc = seeded(&[&sequence, &block[512..592]]);
    block[84..88].copy_from_slice(&crc);
    let crc = seeded(&[&block[..124]]);
    block[124..128].copy_from_slice(&crc);
    writer.disk.write(Slot(0), sealed.position, block);
    (writer.disk.files(), writer)
}

#[test]
fn an_unknown_entry_kind_refuses_to_open() {
    let (files, writer) = with_raw_entry_kind(3);
    let end = scan(&files, &writer.active(), BlockSequence::FIRST).expect("kind 3 is known").0;
    assert!(end.next.position > writer.chain.point().position);
    for kind in [0, 4, 6, 255] {
        let (files, writer) = with_raw_entry_kind(kind);
        let position = writer.chain.point().position;
        assert_eq!(
            scan(&files, &writer.active(), BlockSequence::FIRST).unwrap_err(),
            RecoverError::Scan(ScanError::UnknownEntryKind { position, kind })
        );
    }
}

#[test]
fn verify_ends_at_an_unknown_entry_kind_and_names_it() {
    let (files, writer) = with_raw_entry_kind(4);
    let file = &files[&Slot(0)];
    let mut verify = Verify::new(&writer.active(), BlockSequence::FIRST, file.len() as u64);
    while let Some(range) = verify.next_read() {
        verify.feed(range.start, &file[range.start as usize..range.end as usize], |_, _| {});
    }
    let found = verify.finish(None, false).findings;
    let position = writer.chain.point().position;
    let what = What::Contents(ScanError::UnknownEntryKind { position, kind: 4 });
    assert_eq!(found.into_iter().map(|finding| finding.what).collect::<Vec<_>>(), [what]);
}

#[test]
fn a_block_longer_than_one_read_is_followed() {
    let mut writer = Writer::create(16 << 20, 2, SEED);
    let mut region = vec![0; 8 << 20];
    let mut builder = BlockBuilder::open(region.len(), DIRECTORY_CAPACITY_MIN);
    let value = vec![9; 5 << 20];
    let bytes = batch(&[&value], Offset(0), LeaderEpoch(1));
    assert!(push_batch(&mut builder, &mut region, partition(0), &bytes));
    let sealed = builder.seal(&mut region, &writer.chain.context(BlockFlags::NONE, None));
    writer.chain.advance(&sealed);
    writer.disk.write(Slot(0), sealed.position, &region[sealed.range.clone()]);
    let files = writer.disk.files();
    let (end, entries) =
        scan(&files, &writer.active(), BlockSequence::FIRST).expect("nothing is wrong");
    assert_eq!(entries.len(), 1);
    assert_eq!(end.next, writer.chain.point());
}

#[test]
fn a_segment_full_to_its_last_page_ends_there() {
    let mut writer = writer();
    while writer.segments.fits(200 << 10, 1) {
        writer.append(partition(0), &[&[1; 150_000]]);
        writer.commit(BlockFlags::NONE, true);
    }
    let first = writer.active();
    writer.append(partition(0), &[&[1; 150_000]]);
    while writer.active() == first {
        writer.append(partition(0), &[b"more"]);
        writer.commit(BlockFlags::NONE, true);
    }
    let found = must_recover(&writer.disk.files());
    assert_eq!(found.entries.len(), writer.written.len());
    assert_eq!(found.older.len(), 1);
}
