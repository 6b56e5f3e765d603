//! A header page that the device put elsewhere: the segment in its file is found by its first block,
//! and only if it was in use.

mod support;

use rustmq_wal::recovery::{FileClues, headless, was_in_use};
use rustmq_wal::{
    BLOCK_ALIGN, BlockFlags, BlockSequence, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, Scan, ScanEnd,
    SegmentHeader, Slot,
};
use support::{Files, WAL, Writer, partition};

const SEED: u64 = 0xfeed_0000_0000_0113;

/// A writer that used every file once and has gone round: what is behind a new header is old.
fn writer() -> Writer {
    let mut writer = Writer::create(SEGMENT_BYTES_MIN, 3, SEED);
    for round in 0..4_u8 {
        writer.append(partition(0), &[&[round; 6000]]);
        writer.commit(BlockFlags::NONE, true);
        if round < 3 {
            writer.rotate();
        }
    }
    writer.free();
    writer
}

fn page(files: &Files, slot: Slot, at: u64) -> Vec<u8> {
    files[&slot][at as usize..at as usize + BLOCK_ALIGN].to_vec()
}

/// Puts the header page of `segment` at a place in another file; its own has what it had before.
fn misdirect(files: &mut Files, before: &Files, segment: &SegmentHeader, to: Slot, at: u64) {
    let header = page(files, segment.slot, 0);
    let old = page(before, segment.slot, 0);
    files.get_mut(&segment.slot).expect("a file")[..BLOCK_ALIGN].copy_from_slice(&old);
    let at = at as usize;
    files.get_mut(&to).expect("a file")[at..at + BLOCK_ALIGN].copy_from_slice(&header);
}

fn clues(files: &Files) -> Vec<FileClues> {
    let of_file = |(slot, file): (&Slot, &Vec<u8>)| {
        let first = page(files, *slot, SEGMENT_HEADER_BYTES as u64);
        let last = page(files, *slot, (file.len() - BLOCK_ALIGN) as u64);
        FileClues::new(*slot, &page(files, *slot, 0), &first, &last)
    };
    files.iter().map(of_file).collect()
}

fn scan(files: &Files, header: &SegmentHeader, durable_end: BlockSequence) -> (ScanEnd, u32) {
    let (mut scan, mut damaged) = (Scan::new(header, durable_end), 0);
    while let Some(range) = scan.next_read() {
        let bytes = &files[&header.slot][range.start as usize..range.end as usize];
        if scan.feed(range.start, bytes, |_, _| {}).is_err() {
            damaged += 1;
            if !scan.skip_corruption() {
                break;
            }
        }
    }
    (scan.finish(), damaged)
}

#[test]
fn a_segment_whose_header_page_lies_over_the_seal_that_names_it_is_found() {
    let mut writer = writer();
    let (old, before) = (writer.active(), writer.disk.files());
    let seal = writer.chain.point().position;
    writer.rotate();
    writer.append(partition(0), &[b"acknowledged"]);
    writer.commit(BlockFlags::NONE, true);
    let new = writer.active();
    let mut files = writer.disk.files();
    misdirect(&mut files, &before, &new, old.slot, seal);

    let (end, _) = scan(&files, &old, BlockSequence::FIRST);
    assert!(end.sealed.is_none() && !end.corrupt, "it looks like a torn tail");
    let found = headless(&old, &end.next, &clues(&files));
    assert_eq!(found, [new], "every field of the header is known");
    let (behind, _) = scan(&files, &new, BlockSequence::FIRST);
    assert!(was_in_use(&new, &behind));
}

#[test]
fn a_segment_that_was_only_prepared_tells_what_was_flushed_before() {
    let mut writer = writer();
    let (old, before) = (writer.active(), writer.disk.files());
    let last_page = writer.chain.point().position - BLOCK_ALIGN as u64;
    let begun = writer.disk.op_count();
    writer.rotate();
    // The flush of all blocks, header, checkpoint, their flush: and then the power goes.
    let mut files = writer.disk.crash_at(begun + 4, |_| true);
    misdirect(&mut files, &before, &writer.active(), old.slot, last_page);

    let (end, damaged) = scan(&files, &old, BlockSequence::FIRST);
    assert_eq!((end.corrupt, damaged), (false, 0), "it looks like a torn tail");
    let found = headless(&old, &end.next, &clues(&files));
    assert_eq!(found, [writer.active()]);
    let (behind, _) = scan(&files, &found[0], BlockSequence::FIRST);
    assert!(!was_in_use(&found[0], &behind), "its seal was never written");
    assert!(end.next.sequence < behind.durable_end, "the block was flushed");
    let (end, damaged) = scan(&files, &old, behind.durable_end);
    assert_eq!((end.corrupt, damaged), (true, 1), "and is named");
}

#[test]
fn files_that_are_in_no_use_stay_so() {
    let mut writer = writer();
    let old = writer.active();
    let none: [SegmentHeader; 0] = [];
    let end = scan(&writer.disk.files(), &old, BlockSequence::FIRST).0;
    assert_eq!(headless(&old, &end.next, &clues(&writer.disk.files())), none, "spares");

    // A preparation of which the power left the checkpoint and not the header, and a start after it.
    let begun = writer.disk.op_count();
    let sectors = SEGMENT_HEADER_BYTES / support::SECTOR_BYTES;
    writer.rotate();
    let files = writer.disk.crash_at(begun + 3, |sector| sectors <= sector);
    let prepared = headless(&old, &end.next, &clues(&files));
    assert_eq!(prepared, [writer.active()]);
    let (behind, _) = scan(&files, &prepared[0], BlockSequence::FIRST);
    assert!(!was_in_use(&prepared[0], &behind) && behind.durable_end <= end.next.sequence);
    let found = support::recover(&files, SEGMENT_BYTES_MIN).expect("it opens");
    let writer = Writer::resume(files, found, SEED + 1);
    let files = writer.disk.files();
    let end = scan(&files, &old, BlockSequence::FIRST).0;
    assert_eq!(headless(&old, &end.next, &clues(&files)), none, "of an incarnation that is over");
    assert_eq!(old.wal, WAL);
}
