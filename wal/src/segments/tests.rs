use super::*;
use crate::ids::{BlockSequence, Generation, WalId};
use crate::segment::{SEGMENT_BYTES_MIN, SegmentState};
use rustmq_protocol::LeaderEpoch;

const NAMED: u8 = 9;

fn header(sequence: u64, slot: u32) -> SegmentHeader {
    SegmentHeader {
        state: SegmentState::Active,
        slot: Slot(slot),
        wal: WalId([1; 16]),
        sequence: SegmentSequence(sequence),
        generation: Generation(sequence),
        segment_bytes: SEGMENT_BYTES_MIN,
        first_block: BlockSequence(sequence * 100),
        prev_crc: 0,
    }
}

fn partition(number: u8) -> TopicPartition {
    TopicPartition { topic: TopicId::from_bytes([number; 16]), partition: PartitionId(2) }
}

fn meta(number: u8, base_offset: u64, record_count: u32) -> EntryMeta {
    EntryMeta {
        kind: if number == NAMED { EntryKind::Checkpoint } else { EntryKind::Data },
        partition: partition(number),
        leader_epoch: LeaderEpoch(0),
        base_offset: Offset(base_offset),
        record_count,
        append_time: TimestampMs(base_offset as i64),
        max_timestamp: TimestampMs(0),
        payload: 1000..1100,
        payload_crc: 0,
        tag: 0,
    }
}

/// Segments 1, 2 and 3 (active) in slots 0, 1 and 2 of 5:
/// partition 1 has 0..10 | 10..30 | 30..40, partition 2 has 0..5 in the first only, partition 3
/// has 0..5 in the second only, and topic NAMED is named in the second.
fn three() -> Segments {
    let mut segments = Segments::new(SEGMENT_BYTES_MIN, 5);
    segments.handle_activated(&header(1, 0));
    segments.handle_block(&[meta(1, 0, 10), meta(2, 0, 5)], 4096);
    segments.handle_activated(&header(2, 1));
    segments.handle_block(&[meta(NAMED, 0, 0)], 4096);
    segments.handle_block(&[meta(1, 10, 10), meta(3, 0, 5), meta(1, 20, 10)], 8192);
    segments.handle_activated(&header(3, 2));
    segments.handle_block(&[meta(1, 30, 10)], 4096);
    segments
}

#[test]
fn the_pool_grows_lazily_to_its_capacity() {
    let mut segments = Segments::new(SEGMENT_BYTES_MIN, 2);
    assert_eq!(segments.next_slot(), NextSlot::Create(Slot(0)));
    assert_eq!(segments.want_spare(), Some(Slot(0)));
    segments.handle_create_begun(Slot(0));
    assert_eq!(segments.want_spare(), None, "one is being made");
    assert_eq!(segments.next_slot(), NextSlot::Create(Slot(0)), "wait for that one");
    segments.handle_spare(Slot(0));
    assert_eq!(segments.want_spare(), None, "one is ready");
    assert_eq!(segments.next_slot(), NextSlot::Spare(Slot(0)));
    segments.handle_activated(&header(1, 0));
    assert_eq!(segments.want_spare(), Some(Slot(1)));
    segments.handle_create_begun(Slot(1));
    segments.handle_create_failed(Slot(1));
    assert_eq!(segments.want_spare(), Some(Slot(1)), "tried again");
    segments.handle_spare(Slot(1));
    segments.handle_activated(&header(2, 1));
    assert_eq!(segments.want_spare(), None);
    assert_eq!(segments.next_slot(), NextSlot::Full);
    assert_eq!(segments.free_bytes(), SEGMENT_BYTES_MIN - 4096);
    segments.handle_freed(SegmentSequence(1));
    assert_eq!(segments.next_slot(), NextSlot::Spare(Slot(0)), "used again");
}

#[test]
fn a_slot_whose_file_is_gone_is_made_before_a_further_one() {
    let mut segments = Segments::new(SEGMENT_BYTES_MIN, 9);
    segments.handle_activated(&header(1, 0));
    segments.handle_activated(&header(2, 7));
    assert_eq!(segments.want_spare(), Some(Slot(1)));
}

#[test]
fn a_block_fits_only_if_seal_and_footer_still_do() {
    let mut segments = Segments::new(SEGMENT_BYTES_MIN, 5);
    assert!(!segments.fits(4096, 1), "there is no segment yet");
    segments.handle_activated(&header(1, 0));
    let most = segments.block_bytes_max(0, 0, 3);
    assert_eq!(most, SEGMENT_BYTES_MIN as usize - 4096 - 4096 - 8192);
    assert!(segments.fits(most, 3));
    assert!(!segments.fits(most + 4096, 3));
    segments.handle_block(&[meta(1, 0, 10), meta(1, 10, 1), meta(2, 0, 1)], most);
    assert!(!segments.fits(4096, 0));
    let active = segments.active().unwrap();
    // What is left is exactly the seal block and the footer of 2 partitions and 3 points.
    assert_eq!(active.blocks_end + 4096 + footer_bytes(2, 3) as u64, SEGMENT_BYTES_MIN);
}

#[test]
fn the_oldest_segment_is_freeable_when_every_log_start_has_passed_it() {
    let segments = three();
    let freeable = |one: u64, two: Option<u64>| {
        segments.freeable(|of| if of == partition(1) { Some(Offset(one)) } else { two.map(Offset) })
    };
    assert_eq!(freeable(9, Some(5)), None);
    assert_eq!(freeable(10, Some(4)), None);
    assert_eq!(freeable(10, Some(5)), Some(SegmentSequence(1)));
    assert_eq!(freeable(10, None), Some(SegmentSequence(1)), "partition 2 is deleted");
    let ends: Vec<_> = segments.ends_in(SegmentSequence(1)).collect();
    assert_eq!(ends, [(partition(1), Offset(10)), (partition(2), Offset(5))]);
}

#[test]
fn segments_are_freed_in_order_and_the_active_one_never() {
    let mut segments = three();
    for sequence in 1..3 {
        assert_eq!(segments.freeable(|_| None), Some(SegmentSequence(sequence)));
        segments.handle_freed(SegmentSequence(sequence));
    }
    assert_eq!(segments.freeable(|_| None), None);
    assert_eq!(segments.oldest_sealed(), None);
    assert_eq!(segments.live().len(), 1);
    assert_eq!(segments.slot_count(), 3);
}

#[test]
fn an_offset_is_located_in_the_segment_that_holds_it() {
    let mut segments = three();
    let locate = |segments: &Segments, number, offset| {
        segments.locate(partition(number), Offset(offset)).map(|sequence| sequence.0)
    };
    assert_eq!(locate(&segments, 1, 0), Some(1));
    assert_eq!(locate(&segments, 1, 10), Some(2));
    assert_eq!(locate(&segments, 1, 39), Some(3));
    assert_eq!(locate(&segments, 1, 40), None);
    assert_eq!(locate(&segments, 3, 4), Some(2));
    assert_eq!(locate(&segments, NAMED, 0), None);
    assert_eq!(segments.first_offset(partition(1)), Some(Offset(0)));
    segments.handle_freed(SegmentSequence(1));
    assert_eq!(locate(&segments, 1, 0), None);
    assert_eq!(segments.first_offset(partition(1)), Some(Offset(10)));
    assert_eq!(segments.first_offset(partition(2)), None);
    assert_eq!(segments.segment(SegmentSequence(1)), None);
    assert_eq!(segments.segment(SegmentSequence(3)).map(|live| live.header.slot), Some(Slot(2)));
}

#[test]
fn a_topic_is_named_until_the_last_segment_with_any_entry_of_it_is_freed() {
    let mut segments = three();
    let topic = |number| partition(number).topic;
    assert!(segments.names(topic(2)) && segments.names(topic(3)) && segments.names(topic(NAMED)));
    assert!(!segments.names(topic(4)));
    segments.handle_freed(SegmentSequence(1));
    assert!(!segments.names(topic(2)));
    assert!(segments.names(topic(NAMED)), "an entry that is no data names it too");
    segments.handle_freed(SegmentSequence(2));
    assert!(!segments.names(topic(3)) && !segments.names(topic(NAMED)));
    assert!(segments.names(topic(1)));
}

#[test]
fn a_segment_remembers_its_latest_append_time() {
    let segments = three();
    let times: Vec<_> = segments.live().map(|live| live.append_time_max).collect();
    assert_eq!(times, [0, 20, 30].map(|time| Some(TimestampMs(time))));
}

#[test]
fn restored_segments_are_as_they_were_written() {
    let written = three();
    let mut restored = Segments::new(SEGMENT_BYTES_MIN, 5);
    for live in written.live() {
        let sequence = live.header.sequence;
        let held = written.partitions.keys().filter_map(|partition| {
            let range = written
                .ranges(*partition)
                .find_map(|(of, range)| (of == sequence).then_some(range));
            Some(PartitionSummary { partition: *partition, range: Some(range?) })
        });
        restored.restore(&live.header, held, 1, live.blocks_end).unwrap();
    }
    assert!(restored.live().eq(written.live()));
    assert!(restored.ranges(partition(1)).eq(written.ranges(partition(1))));
    assert_eq!(restored.active_point_count, written.active_point_count);
}

#[test]
fn restoring_offsets_twice_is_refused() {
    let mut segments = three();
    let range = segments.ranges(partition(1)).last().unwrap().1;
    let held = [PartitionSummary { partition: partition(1), range: Some(range) }];
    assert_eq!(
        segments.restore(&header(4, 4), held, 1, 8192),
        Err(OpenError::OffsetsFall {
            sequence: SegmentSequence(4),
            partition: partition(1),
            end: Offset(40),
            first: Offset(30),
        })
    );
}
