//! Coverage: what should be there and is not is named, and nothing else.

mod support;

use core::ops::Range;

use rustmq_protocol::{Offset, TopicPartition};
use rustmq_wal::verify::{Coverage, Verified, Verify};
use rustmq_wal::{
    BLOCK_ALIGN, BlockFlags, BlockSequence, EntryKind, SEGMENT_BYTES_MIN, SegmentHeader,
};
use support::{Files, Writer, partition};

const SEED: u64 = 0xfeed_0000_0000_0131;

fn writer() -> Writer {
    Writer::create(SEGMENT_BYTES_MIN, 4, SEED)
}

fn verify(files: &Files, header: &SegmentHeader, durable_end: BlockSequence) -> Verified {
    let file = &files[&header.slot];
    let mut verify = Verify::new(header, durable_end, file.len() as u64);
    while let Some(range) = verify.next_read() {
        let bytes = &file[range.start as usize..range.end as usize];
        verify.feed(range.start, bytes, |_, _| {});
    }
    verify.finish(None, false)
}

/// What is missing of these segments.
fn missing_of(files: &Files, live: &[SegmentHeader]) -> Vec<(TopicPartition, Range<Offset>)> {
    let mut coverage = Coverage::default();
    for (index, header) in live.iter().enumerate() {
        let next = live.get(index + 1);
        let durable_end = next.map_or(BlockSequence::FIRST, |next| next.first_block);
        coverage.add(&verify(files, header, durable_end));
    }
    coverage.missing()
}

fn live(writer: &Writer) -> Vec<SegmentHeader> {
    writer.segments.live().map(|segment| segment.header).collect()
}

fn missing(writer: &Writer) -> Vec<(TopicPartition, Range<Offset>)> {
    missing_of(&writer.disk.files(), &live(writer))
}

/// Appends a record to each of these partitions, and goes on in the next segment.
fn fill(writer: &mut Writer, partitions: &[u8]) {
    for number in partitions {
        writer.append(partition(*number), &[b"a record"]);
    }
    writer.commit(BlockFlags::NONE, true);
    writer.rotate();
}

#[test]
fn what_lies_before_the_newest_log_start_is_not_missing() {
    let mut writer = writer();
    fill(&mut writer, &[0]);
    fill(&mut writer, &[0, 1]);
    // Behind a checkpoint that says the log begins at 0.
    writer.note(EntryKind::LogStart, partition(0), Offset(1));
    let noted = writer.commit(BlockFlags::NONE, true);
    writer.commit(BlockFlags::IDLE, true);
    assert!(writer.free());
    assert_eq!(missing(&writer), []);
    // The directory names it, also when the entry is damaged.
    let mut files = writer.disk.files();
    let tail = writer.active();
    let entry = noted.position as usize + 512;
    files.get_mut(&tail.slot).expect("the tail has a file")[entry + 1] ^= 1;
    assert_eq!(verify(&files, &tail, BlockSequence::FIRST).findings.len(), 1, "the test is sharp");
    assert_eq!(missing_of(&files, &live(&writer)), []);
}

#[test]
fn a_partition_that_the_newest_checkpoint_leaves_out_misses_nothing() {
    let mut writer = writer();
    fill(&mut writer, &[0, 1]);
    writer.forget(partition(0));
    fill(&mut writer, &[1]);
    assert!(writer.free());
    assert_eq!(
        missing(&writer),
        [(partition(1), Offset(0)..Offset(1))],
        "this one has no log start"
    );
    writer.note(EntryKind::LogStart, partition(1), Offset(1));
    writer.commit(BlockFlags::NONE, true);
    assert_eq!(missing(&writer), []);
}

#[test]
fn records_of_a_lost_segment_are_missing() {
    let mut writer = writer();
    for _ in 0..3 {
        fill(&mut writer, &[0, 1]);
    }
    let mut live = live(&writer);
    live.remove(1);
    let lost = |number| (partition(number), Offset(1)..Offset(2));
    assert_eq!(missing_of(&writer.disk.files(), &live), [lost(0), lost(1)]);
}

#[test]
fn a_damaged_checkpoint_leaves_what_an_older_one_says() {
    let mut writer = writer();
    fill(&mut writer, &[0]);
    fill(&mut writer, &[0]);
    writer.append(partition(0), &[b"a record"]);
    writer.commit(BlockFlags::NONE, true);
    writer.commit(BlockFlags::IDLE, true);
    let mut files = writer.disk.files();
    let tail = writer.active();
    files.get_mut(&tail.slot).expect("the tail has a file")[BLOCK_ALIGN..2 * BLOCK_ALIGN].fill(0);
    let found = verify(&files, &tail, BlockSequence::FIRST);
    assert!(!found.end.checkpoint_complete);
    let behind_first = &live(&writer)[1..];
    assert_eq!(missing_of(&files, behind_first), [(partition(0), Offset(0)..Offset(1))]);
}
