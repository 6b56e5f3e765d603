use super::*;
use crate::ids::{BlockSequence, Generation};
use crate::segment::SEGMENT_BYTES_MIN;

const WAL: WalId = WalId([1; 16]);

type Read = (Slot, Result<SegmentHeader, SegmentHeaderError>);

fn header(sequence: u64, slot: u32) -> SegmentHeader {
    SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(slot),
        wal: WAL,
        sequence: SegmentSequence(sequence),
        generation: Generation(sequence),
        segment_bytes: SEGMENT_BYTES_MIN,
        first_block: BlockSequence(sequence),
        prev_crc: 0,
    }
}

fn active(sequence: u64, slot: u32) -> Read {
    (Slot(slot), Ok(header(sequence, slot)))
}

fn spare(sequence: u64, slot: u32) -> Read {
    (Slot(slot), Ok(header(sequence, slot).freed()))
}

fn plan_of(read: &[Read]) -> Result<RecoveryPlan, OpenError> {
    plan(WAL, SEGMENT_BYTES_MIN, read.iter().copied())
}

#[test]
fn segments_are_put_in_order_whatever_slots_they_are_in() {
    let read = [
        active(7, 0),
        spare(3, 1),
        active(5, 2),
        (Slot(3), Err(SegmentHeaderError::Blank)),
        active(6, 4),
        (Slot(5), Err(SegmentHeaderError::NotASegment)),
    ];
    let plan = plan_of(&read).unwrap();
    let sequences: Vec<_> = plan.segments.iter().map(|header| header.sequence.0).collect();
    assert_eq!(sequences, [5, 6, 7]);
    assert_eq!(plan.spares, [header(3, 1).freed()]);
    assert_eq!(plan.blank, [Slot(3)]);
    assert_eq!(plan.unreadable, [(Slot(5), SegmentHeaderError::NotASegment)]);
}

#[test]
fn files_that_are_not_one_whole_wal_are_refused() {
    assert_eq!(
        plan_of(&[active(5, 0), active(5, 1)]),
        Err(OpenError::TwoSegments { sequence: SegmentSequence(5), slots: [Slot(0), Slot(1)] })
    );
    let other = WalId([2; 16]);
    let foreign = SegmentHeader { wal: other, ..header(1, 0) };
    assert_eq!(
        plan_of(&[(Slot(0), Ok(foreign))]),
        Err(OpenError::ForeignSegment { slot: Slot(0), wal: other })
    );
    assert_eq!(
        plan_of(&[(Slot(3), Ok(header(1, 0)))]),
        Err(OpenError::MisplacedSegment { slot: Slot(3), found: Slot(0) })
    );
    let larger = SegmentHeader { segment_bytes: 2 * SEGMENT_BYTES_MIN, ..header(1, 0) };
    assert_eq!(
        plan_of(&[(Slot(0), Ok(larger))]),
        Err(OpenError::SegmentBytes {
            slot: Slot(0),
            found: 2 * SEGMENT_BYTES_MIN,
            expected: SEGMENT_BYTES_MIN
        })
    );
    let newer = SegmentHeaderError::NewerVersion { found: 2, supported: 1 };
    assert_eq!(
        plan_of(&[active(1, 0), (Slot(1), Err(newer))]),
        Err(OpenError::NewerVersion { slot: Slot(1), found: 2, supported: 1 })
    );
}

#[test]
fn no_segment_in_use_is_a_new_wal_only_if_none_was_used_before() {
    let blank = (Slot(0), Err(SegmentHeaderError::Blank));
    let unused = (Slot(1), Ok(SegmentHeader::spare(WAL, Slot(1), SEGMENT_BYTES_MIN)));
    assert_eq!(plan_of(&[]).unwrap().segments, []);
    assert_eq!(plan_of(&[blank, unused]).unwrap().segments, []);
    // A start that cut its making short gave the first segment back.
    assert_eq!(plan_of(&[spare(1, 0)]).unwrap().segments, []);
    assert_eq!(plan_of(&[spare(2, 0)]), Err(OpenError::NoSegment));
    let crc = SegmentHeaderError::Crc { found: 1, computed: 2 };
    assert_eq!(plan_of(&[unused, (Slot(0), Err(crc))]), Err(OpenError::NoSegment));
}

#[test]
fn a_segment_that_is_lost_between_others_is_named() {
    let plan = plan_of(&[active(5, 0), active(8, 1)]).unwrap();
    assert_eq!(plan.segments.len(), 2);
    assert_eq!(plan.lost, [SegmentSequence(6), SegmentSequence(7)]);
}

#[test]
fn records_that_no_segment_holds_are_missing() {
    let missing = |log_start: u64, log_end: u64, held: &[(u64, u64)]| {
        let held = held.iter().map(|(start, end)| Offset(*start)..Offset(*end));
        let missing = missing_records(Offset(log_start), Offset(log_end), held);
        missing.iter().map(|range| (range.start.0, range.end.0)).collect::<Vec<_>>()
    };
    assert_eq!(missing(5, 5, &[]), [], "empty");
    assert_eq!(missing(5, 9, &[(5, 9)]), []);
    assert_eq!(missing(5, 9, &[(0, 6), (6, 9)]), [], "more than needed");
    assert_eq!(missing(5, 9, &[(7, 9)]), [(5, 7)]);
    assert_eq!(missing(5, 9, &[]), [(5, 9)]);
    assert_eq!(missing(5, 9, &[(0, 3)]), [(5, 9)]);
    assert_eq!(missing(0, 20, &[(0, 4), (6, 10), (15, 18)]), [(4, 6), (10, 15), (18, 20)]);
}
