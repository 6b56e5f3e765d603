//! The footer of a sealed segment: trailer, table of partitions, points; and the mark in its place
//! before that.
//!
//! Input: one byte that chooses, then pages (see `pages`): the header page of the segment and its
//! last pages, with what is repaired in them; or what an index is made from.

use rustmq_protocol::{LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId, TopicPartition};
use rustmq_wal::index::{find, find_timestamp, points_from};
use rustmq_wal::reach::{REACH_BYTES, decode_reach, encode_reach, reach_position};
use rustmq_wal::{
    BlockSequence, ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FOOTER_TRAILER_BYTES, FooterLine,
    FooterTrailer, Generation, Incarnation, IndexPoint, NextSegment, SegmentEnd, SegmentHeader,
    SegmentIndex, SegmentSequence, SegmentState, Slot, WalId, encode_footer, find_line,
    footer_bytes,
};

use crate::layout::{add, array_at, put, seeded, u32_at, u64_at};
use crate::memory::{Bound, bounded};
use crate::pages::{PAGE_BYTES, PAGES_MAX, image};
use crate::source::Source;

/// A line takes 80 bytes on disk and 88 in memory, a point 32 in both, in a list that doubles.
const ASKED_MAX: Bound = Bound::per_byte(4);

/// Bytes of a segment that is made here: more than any footer of an input takes.
const SEGMENT_BYTES: u64 = 1 << 20;

const LINE_BYTES: usize = 80;
const POINT_BYTES: usize = 32;

/// The footer is refused or read, and a footer that is made reads back and is made again.
pub fn target(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 4 {
        0..=2 => any(&mut Source::new(rest)),
        _ => made(&mut Source::new(rest)),
    }
}

/// Arbitrary last pages of a segment, read in the order of the shell.
fn any(source: &mut Source<'_>) {
    let choices = source.u8();
    let mut image = image(source, PAGES_MAX);
    if image.len() < 2 * PAGE_BYTES {
        return;
    }
    let (page, footer) = image.split_at_mut(PAGE_BYTES);
    let segment = segment_of(page);
    mark(&footer[footer.len() - REACH_BYTES..], &segment, choices);
    repair(footer, &segment, choices);
    let body_start = segment.segment_bytes - footer.len() as u64;
    let (body, page) = footer.split_at(footer.len() - FOOTER_TRAILER_BYTES);
    let trailer = match FooterTrailer::decode(page, &segment) {
        Ok(trailer) => trailer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let body_end = segment.segment_bytes - FOOTER_TRAILER_BYTES as u64;
    let read = |range: core::ops::Range<u64>| {
        assert!(
            range.start <= range.end && range.end <= body_end,
            "a part lies before the trailer"
        );
        let start = range.start.checked_sub(body_start)? as usize;
        body.get(start..start + (range.end - range.start) as usize)
    };
    let (wal, slot, bytes) = (segment.wal, segment.slot, segment.segment_bytes);
    let alone = FooterTrailer::decode_alone(page, wal, slot, bytes);
    let alone = alone.expect("what is read by its header is read without it");
    assert_eq!((alone.0.sequence, alone.0.generation), (segment.sequence, segment.generation));
    assert_eq!(alone.1, trailer);
    let generation = segment.generation.0;
    assert_eq!(u32_at(page, 508), add(seeded(generation), &page[..508]), "the trailer is whole");
    assert!(trailer.end.blocks_end <= trailer.footer_start);
    let Some(bytes) = read(trailer.table_range()) else { return };
    let table =
        bounded(bytes.len(), &ASKED_MAX, || trailer.decode_table(bytes, segment.generation));
    let table = match table {
        Ok(table) => table,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(table.len(), trailer.partition_count as usize);
    assert_eq!(trailer.table_crc, add(seeded(generation), bytes), "the table is whole");
    for line in &table {
        let found = find_line(&table, line.summary.partition);
        assert!(found.is_none_or(|found| found.summary.partition == line.summary.partition));
        let Some(bytes) = read(trailer.points_range(line)) else { continue };
        match bounded(bytes.len(), &ASKED_MAX, || line.decode_points(bytes, segment.generation)) {
            Ok(points) => {
                assert_eq!(line.points_crc, add(seeded(generation), bytes), "points are whole");
                look_up(line, &points);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// The last page as the mark of an active segment.
fn mark(page: &[u8], segment: &SegmentHeader, choices: u8) {
    let mut page = page.to_vec();
    if choices & 0x80 == 0 {
        put(&mut page, 0, b"RQWALRCH");
        put(&mut page, 8, &1_u16.to_le_bytes());
        put(&mut page, 12, &segment.slot.0.to_le_bytes());
        put(&mut page, 16, &segment.wal.0);
        put(&mut page, 32, &segment.sequence.0.to_le_bytes());
        put(&mut page, 40, &segment.generation.0.to_le_bytes());
    }
    let crc = add(seeded(segment.generation.0), &page[..508]);
    if choices & 0x40 == 0 {
        put(&mut page, 508, &crc.to_le_bytes());
    }
    let Some(reach) = bounded(page.len(), &ASKED_MAX, || decode_reach(&page, segment)) else {
        return;
    };
    assert_eq!(u32_at(&page, 508), crc, "the mark is whole");
    assert!(reach <= reach_position(segment.segment_bytes) && reach % PAGE_BYTES as u64 == 0);
    let mut made = [0xff; REACH_BYTES];
    encode_reach(segment, reach, &mut made);
    assert_eq!(decode_reach(&made, segment), Some(reach));
}

/// Points that a footer holds may be in any order; looking them up only finds what is there.
fn look_up(line: &FooterLine, points: &[IndexPoint]) {
    assert_eq!(points.len(), line.point_count as usize);
    assert_eq!(line.summary.range.is_some(), !points.is_empty());
    let Some(point) = points.last() else { return };
    for offset in [Offset(0), point.base_offset, point.end_offset(), Offset(u64::MAX)] {
        assert!(points_from(points, offset).len() <= points.len());
        assert!(find(points, offset).is_none_or(|found| found.base_offset <= offset));
    }
    let found = find_timestamp(points, point.max_timestamp);
    assert!(found.is_some_and(|found| point.max_timestamp <= found.max_timestamp));
}

/// The segment that the first page describes, whole or not.
fn segment_of(page: &[u8]) -> SegmentHeader {
    let read = SegmentHeader::decode(page).ok();
    let read = read.filter(|segment| SEGMENT_BYTES <= segment.segment_bytes);
    read.unwrap_or_else(|| SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(u32_at(page, 12)),
        wal: WalId(array_at(page, 16)),
        sequence: SegmentSequence(u64_at(page, 32)),
        generation: Generation(u64_at(page, 40)),
        segment_bytes: SEGMENT_BYTES,
        first_block: BlockSequence(u64_at(page, 56)),
        prev_crc: u32_at(page, 64),
    })
}

/// Makes the footer one of this segment; each bit of `choices` leaves a part as it is.
fn repair(footer: &mut [u8], segment: &SegmentHeader, choices: u8) {
    let leaves = |bit: u8| choices >> bit & 1 != 0;
    let generation = segment.generation.0;
    let (body, trailer) = footer.split_at_mut(footer.len() - FOOTER_TRAILER_BYTES);
    put(trailer, 0, b"RQWALFTR");
    put(trailer, 8, &1_u16.to_le_bytes());
    if !leaves(0) {
        put(trailer, 12, &segment.slot.0.to_le_bytes());
        put(trailer, 16, &segment.wal.0);
        put(trailer, 32, &segment.sequence.0.to_le_bytes());
        put(trailer, 40, &generation.to_le_bytes());
    }
    let start = segment.segment_bytes - (body.len() + FOOTER_TRAILER_BYTES) as u64;
    if !leaves(1) {
        put(trailer, 48, &start.to_le_bytes());
        put(trailer, 72, &(u64_at(trailer, 72) % (start + 1)).to_le_bytes());
    }
    if !leaves(2) {
        let lines = u32_at(trailer, 56) as usize % (body.len() / LINE_BYTES + 1);
        let points = (body.len() - lines * LINE_BYTES) / POINT_BYTES;
        put(trailer, 56, &(lines as u32).to_le_bytes());
        let points = u32_at(trailer, 60) as usize % (points + 1);
        put(trailer, 60, &(points as u32).to_le_bytes());
    }
    let lines = u32_at(trailer, 56) as usize;
    if let Some(points_start) = lines.checked_mul(LINE_BYTES).filter(|end| *end <= body.len()) {
        let (table, points) = body.split_at_mut(points_start);
        if !leaves(3) {
            for line in table.chunks_exact_mut(LINE_BYTES) {
                let from = u32_at(line, 64) as usize * POINT_BYTES;
                let bytes = u32_at(line, 20) as usize * POINT_BYTES;
                if let Some(points) = points.get(from..from + bytes) {
                    put(line, 68, &add(seeded(generation), points).to_le_bytes());
                }
            }
        }
        if !leaves(4) {
            put(trailer, 64, &add(seeded(generation), table).to_le_bytes());
        }
    }
    if !leaves(5) {
        let crc = add(seeded(generation), &trailer[..508]);
        put(trailer, 508, &crc.to_le_bytes());
    }
}

/// The footer of any index says what the index says, and an index that is made from what was read
/// has the same footer.
fn made(source: &mut Source<'_>) {
    let segment = SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(source.u32()),
        wal: WalId(source.array()),
        sequence: SegmentSequence(source.u64()),
        generation: Generation(source.u64()),
        segment_bytes: SEGMENT_BYTES,
        first_block: BlockSequence(1),
        prev_crc: 0,
    };
    let end = SegmentEnd {
        blocks_end: u64::from(source.u8()) * PAGE_BYTES as u64 / 2,
        next_block: BlockSequence(source.u64()),
        prev_crc: source.u32(),
        incarnation: Incarnation(source.u64()),
        next: NextSegment {
            sequence: SegmentSequence(source.u64()),
            slot: Slot(source.u32()),
            generation: Generation(source.u64()),
        },
    };
    let mut index = SegmentIndex::new();
    while !source.is_empty() && index.point_count() < 256 {
        let entry = made_entry(source);
        if index.continues(&entry) {
            index.add(&entry, u64::from(source.u32() >> 1));
        }
    }
    let bytes = footer_bytes(index.partition_count(), index.point_count());
    let mut out = vec![0xd5; bytes];
    encode_footer(&index, &segment, &end, &mut out);

    let (body, page) = out.split_at(bytes - FOOTER_TRAILER_BYTES);
    let trailer = FooterTrailer::decode(page, &segment).expect("a footer that was just made");
    assert_eq!(trailer.end, end);
    let start = segment.segment_bytes - bytes as u64;
    let part = |range: core::ops::Range<u64>| {
        &body[(range.start - start) as usize..(range.end - start) as usize]
    };
    let table = trailer.decode_table(part(trailer.table_range()), segment.generation);
    let table = table.expect("a footer that was just made");
    assert!(table.iter().map(|line| line.summary).eq(index.partitions()));
    let mut again = SegmentIndex::new();
    for line in &table {
        let partition = line.summary.partition;
        assert_eq!(find_line(&table, partition), Some(line));
        let points = line.decode_points(part(trailer.points_range(line)), segment.generation);
        let points = points.expect("a footer that was just made");
        assert_eq!(points, index.points(partition));
        if points.is_empty() {
            again.add(&mention(partition), 0);
        }
        for point in &points {
            again.add(&entry_of(line, point), u64::from(point.position));
        }
    }
    let mut second = vec![0; bytes];
    encode_footer(&again, &segment, &end, &mut second);
    assert!(second == out, "what was read is encoded as it was");
}

fn made_entry(source: &mut Source<'_>) -> EntryHeader {
    let number = source.u8();
    let kind = if number & 0x80 == 0 { EntryKind::Data } else { EntryKind::LogStart };
    EntryHeader {
        kind,
        sequence: BlockSequence(1),
        partition: TopicPartition {
            topic: TopicId::from_bytes([number % 16; 16]),
            partition: PartitionId(u32::from(number >> 4 & 7)),
        },
        leader_epoch: LeaderEpoch(0),
        base_offset: Offset(source.u64()),
        record_count: source.u32(),
        payload_length: source.u32() % (16 << 20),
        append_time: TimestampMs(source.i64()),
        payload_crc: 0,
        max_timestamp: TimestampMs(source.i64()),
    }
}

fn mention(partition: TopicPartition) -> EntryHeader {
    EntryHeader { kind: EntryKind::LogStart, partition, ..made_entry(&mut Source::new(&[])) }
}

/// An entry with this point. When each batch was appended is not in a footer, only the latest.
fn entry_of(line: &FooterLine, point: &IndexPoint) -> EntryHeader {
    let range = line.summary.range.expect("a line with points has a range");
    EntryHeader {
        kind: EntryKind::Data,
        partition: line.summary.partition,
        base_offset: point.base_offset,
        record_count: point.record_count,
        payload_length: point.length - ENTRY_HEADER_BYTES as u32,
        append_time: range.append_time_max,
        max_timestamp: point.max_timestamp,
        ..mention(line.summary.partition)
    }
}
