//! The mark that says how far blocks may lie: what it saves, and that a false one costs nothing.

mod support;

use rustmq_wal::reach::{REACH_BYTES, decode_reach, encode_reach};
use rustmq_wal::{BLOCK_ALIGN, BlockFlags, BlockSequence, Scan, ScanEnd, SegmentHeader};
use support::{Writer, partition};

const SEED: u64 = 0xfeed_0000_0000_0119;
const SEGMENT_BYTES: u64 = 8 << 20;

/// Pages of the largest piece.
const WHOLE: usize = 1 << 20;

/// A segment of some blocks that were flushed one by one, its header, and where its blocks begin and
/// the last one ends.
fn segment() -> (Vec<u8>, SegmentHeader, Vec<u64>) {
    let mut writer = Writer::create(SEGMENT_BYTES, 3, SEED);
    let mut positions = vec![writer.chain.point().position];
    for round in 0..20_u8 {
        writer.append(partition(0), &[&[round; 6000]]);
        writer.commit(BlockFlags::NONE, true);
        positions.push(writer.chain.point().position);
    }
    let header = writer.active();
    (writer.disk.files()[&header.slot].clone(), header, positions)
}

/// What the scan comes to, how many blocks were damaged, and how far it read.
fn scan(file: &[u8], header: &SegmentHeader, reach: Option<u64>, pages: usize) -> Outcome {
    let mut scan = Scan::new(header, BlockSequence::FIRST).within(reach);
    let (mut damaged, mut entries, mut read_end, mut before) = (0, 0, 0, None);
    while let Some(range) = scan.next_read() {
        let whole = before.replace(range.start) == Some(range.start);
        let short = range.end.min(range.start + (pages * BLOCK_ALIGN) as u64);
        let end = if whole { range.end } else { short };
        read_end = read_end.max(end);
        let bytes = &file[range.start as usize..end as usize];
        if scan.feed(range.start, bytes, |_, _| entries += 1).is_err() {
            damaged += 1;
            if !scan.skip_corruption() {
                break;
            }
        }
    }
    Outcome { end: scan.finish(), damaged, entries, read_end }
}

struct Outcome {
    end: ScanEnd,
    damaged: u32,
    entries: u32,
    read_end: u64,
}

#[test]
fn behind_the_mark_nothing_is_read() {
    let (file, header, positions) = segment();
    let end = *positions.last().expect("blocks");
    let all = scan(&file, &header, None, WHOLE);
    assert_eq!(all.read_end, SEGMENT_BYTES);
    let reach = 2 << 20;
    let marked = scan(&file, &header, Some(reach), WHOLE);
    assert_eq!((marked.end.next, marked.end.reach), (all.end.next, Some(reach)));
    assert_eq!(marked.entries, all.entries);
    assert!(end < reach && marked.read_end <= reach + BLOCK_ALIGN as u64);
}

#[test]
fn a_flushed_block_that_is_damaged_is_found_below_a_true_mark_and_behind_a_false_one() {
    let (mut file, header, positions) = segment();
    for bad in [3, 10, 18] {
        let (begin, end) = (positions[bad], positions[bad + 1]);
        let kept = file.clone();
        file[begin as usize..end as usize].fill(0);
        let all = scan(&file, &header, None, WHOLE);
        assert_eq!((all.damaged, all.end.corrupt), (1, true));
        // A later one that was lost, perhaps over the bad block, came when blocks ended at this one.
        for reach in [end, end + BLOCK_ALIGN as u64, positions[20], 2 << 20] {
            let marked = scan(&file, &header, Some(reach), WHOLE);
            assert_eq!((marked.damaged, marked.end.corrupt), (1, true), "{bad} {reach}");
            assert_eq!(marked.end.next, all.end.next);
            assert_eq!(marked.entries, all.entries);
            assert_eq!(marked.end.reach, (positions[20] < reach).then_some(reach));
        }
        file = kept;
    }
}

#[test]
fn a_mark_that_the_blocks_have_passed_is_not_believed() {
    let (file, header, positions) = segment();
    let passed = scan(&file, &header, Some(positions[5]), WHOLE);
    assert_eq!((passed.end.reach, passed.read_end), (None, SEGMENT_BYTES));
    assert_eq!(passed.end.next.position, positions[20]);
}

#[test]
fn what_comes_in_small_pieces_says_the_same() {
    let (mut file, header, positions) = segment();
    for bad in [None, Some(4), Some(19)] {
        if let Some(bad) = bad {
            // Of the first the header is gone, of the second the last page.
            let at = positions[bad + usize::from(bad == 19)] as usize;
            let at = if bad == 19 { at - BLOCK_ALIGN } else { at };
            file[at..at + 64].fill(0xaa);
        }
        let whole = scan(&file, &header, None, WHOLE);
        for pages in [1, 2, 3, 100] {
            let pieces = scan(&file, &header, None, pages);
            assert_eq!(pieces.end.next, whole.end.next, "{pages} pages");
            assert_eq!((pieces.damaged, pieces.entries), (whole.damaged, whole.entries));
        }
    }
}

#[test]
fn no_block_looks_like_a_mark() {
    let (file, header, _) = segment();
    let mut mark = [0; REACH_BYTES];
    encode_reach(&header, 1 << 20, &mut mark);
    assert_eq!(decode_reach(&mark, &header), Some(1 << 20));
    for page in file.chunks(BLOCK_ALIGN) {
        assert_eq!(decode_reach(page, &header), None);
    }
}
