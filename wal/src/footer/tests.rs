use super::*;
use crate::entry::{EntryHeader, EntryKind};
use crate::ids::WalId;
use crate::segment::SegmentState;
use proptest::prelude::*;
use rustmq_protocol::{LeaderEpoch, PartitionId, TopicId};

/// Room for the largest footer here.
const SEGMENT_BYTES: u64 = 1 << 20;

fn segment() -> SegmentHeader {
    SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(2),
        wal: WalId([3; 16]),
        sequence: SegmentSequence(8),
        generation: Generation(0x9999_8888_7777_6666),
        segment_bytes: SEGMENT_BYTES,
        first_block: BlockSequence(100),
        prev_crc: 1,
    }
}

fn end() -> SegmentEnd {
    SegmentEnd {
        blocks_end: 8192,
        next_block: BlockSequence(130),
        prev_crc: 77,
        incarnation: Incarnation(2),
        next: NextSegment {
            sequence: SegmentSequence(9),
            slot: Slot(0),
            generation: Generation(55),
        },
    }
}

/// An index with so many entries for each partition; 0 names it only.
fn index(entries: &[u8]) -> SegmentIndex {
    let mut index = SegmentIndex::new();
    for (number, count) in entries.iter().enumerate() {
        for entry in 0..(*count).max(1) {
            let header = EntryHeader {
                kind: if *count == 0 { EntryKind::Checkpoint } else { EntryKind::Data },
                sequence: BlockSequence(101),
                partition: TopicPartition {
                    topic: TopicId::from_bytes([7; 16]),
                    partition: PartitionId(number as u32),
                },
                leader_epoch: LeaderEpoch(0),
                base_offset: Offset(u64::from(entry) * 10),
                record_count: 10,
                payload_length: 64 + u32::from(entry),
                append_time: TimestampMs(i64::from(entry)),
                payload_crc: 0,
                max_timestamp: TimestampMs(-5),
            };
            index.add(&header, 4096 + u64::from(entry) * 200);
        }
    }
    index
}

/// The segment's file with its footer.
fn file(index: &SegmentIndex) -> Vec<u8> {
    let mut file = vec![0xdd; segment().segment_bytes as usize];
    let bytes = footer_bytes(index.partition_count(), index.point_count());
    let start = file.len() - bytes;
    encode_footer(index, &segment(), &end(), &mut file[start..]);
    file
}

fn trailer(file: &[u8]) -> Result<FooterTrailer, FooterError> {
    FooterTrailer::decode(&file[file.len() - FOOTER_TRAILER_BYTES..], &segment())
}

fn part(file: &[u8], range: core::ops::Range<u64>) -> &[u8] {
    &file[range.start as usize..range.end as usize]
}

proptest! {
    #[test]
    fn a_footer_is_read_as_it_was_written(entries in prop::collection::vec(0_u8..60, 0..120)) {
        let index = index(&entries);
        let file = file(&index);
        let trailer = trailer(&file).unwrap();
        prop_assert_eq!(trailer.end, end());
        let generation = segment().generation;
        let table = trailer.decode_table(part(&file, trailer.table_range()), generation).unwrap();
        let held: Vec<_> = table.iter().map(|line| line.summary).collect();
        prop_assert_eq!(held, index.partitions().collect::<Vec<_>>());
        for summary in index.partitions() {
            let line = find_line(&table, summary.partition).unwrap();
            let bytes = part(&file, trailer.points_range(line));
            let points = line.decode_points(bytes, generation).unwrap();
            prop_assert_eq!(&points, index.points(summary.partition));
        }
    }

    #[test]
    fn a_damaged_footer_is_never_believed(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let index = index(&[3, 0, 5]);
        let mut file = file(&index);
        let body_start = file.len() - footer_bytes(3, 8);
        let body = 3 * FOOTER_LINE_BYTES + 8 * FOOTER_POINT_BYTES;
        // A bit of the body, or of the trailer's first sector.
        let at = at.index(body + 512);
        let at = if at < body { body_start + at } else { file.len() - 4096 + at - body };
        file[at] ^= 1 << bit;
        let generation = segment().generation;
        let believed = (|| {
            let trailer = trailer(&file).ok()?;
            let table = part(&file, trailer.table_range());
            let table = trailer.decode_table(table, generation).ok()?;
            for line in &table {
                line.decode_points(part(&file, trailer.points_range(line)), generation).ok()?;
            }
            Some(())
        })();
        prop_assert!(believed.is_none());
    }
}

#[test]
fn a_footer_of_another_use_of_the_file_is_not_this_segments() {
    let file = file(&index(&[4]));
    let page = &file[file.len() - FOOTER_TRAILER_BYTES..];
    let other = SegmentHeader { generation: Generation(1), ..segment() };
    assert!(matches!(FooterTrailer::decode(page, &other), Err(FooterError::Crc { .. })));
    let other = SegmentHeader { sequence: SegmentSequence(9), ..segment() };
    assert_eq!(FooterTrailer::decode(page, &other), Err(FooterError::Absent));
    assert_eq!(FooterTrailer::decode(&[0; 4096], &segment()), Err(FooterError::Absent));
}

#[test]
fn a_segment_end_joins_exactly_the_segment_it_names() {
    let next = SegmentHeader {
        slot: Slot(0),
        sequence: SegmentSequence(9),
        generation: Generation(55),
        first_block: BlockSequence(130),
        prev_crc: 77,
        ..segment()
    };
    assert!(end().joins(&next));
    assert!(!end().joins(&SegmentHeader { generation: Generation(56), ..next }));
    assert!(!end().joins(&SegmentHeader { prev_crc: 78, ..next }));
    assert!(!end().joins(&SegmentHeader { first_block: BlockSequence(131), ..next }));
}

#[test]
#[should_panic(expected = "room for the footer")]
fn a_footer_never_overwrites_blocks() {
    let index = index(&[4]);
    let mut out = vec![0; footer_bytes(1, 4)];
    let end = SegmentEnd { blocks_end: SEGMENT_BYTES - 4096, ..end() };
    encode_footer(&index, &segment(), &end, &mut out);
}
