//! The rules of a partition, driven by inputs and read by state.

use rustmq_protocol::{
    BatchBuilder, BatchHeader, LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Record,
    Sequence, TimestampMs, TopicId, TopicPartition,
};

use super::*;
use crate::limits::PRODUCER_BATCHES_REMEMBERED;

const EPOCH: LeaderEpoch = LeaderEpoch(3);

const RECORD: Record<'static> =
    Record { timestamp: TimestampMs(0), key: None, value: Some(b"v"), headers: &[] };

fn partition() -> Partition {
    let id = TopicPartition { topic: TopicId::from_bytes([7; 16]), partition: PartitionId(0) };
    Partition::new(id, EPOCH, PartitionState::default(), 2)
}

fn batch(producer: u64, epoch: u16, sequence: u32, count: u32) -> BatchHeader {
    let mut builder = BatchBuilder::new(1 << 20);
    for _ in 0..count {
        builder.try_push(&RECORD).unwrap();
    }
    let stamp = rustmq_protocol::ProducerStamp {
        id: ProducerId(producer),
        epoch: ProducerEpoch(epoch),
        base_sequence: Sequence(sequence),
    };
    BatchHeader::decode(&builder.finish(stamp)).unwrap()
}

fn append(p: &mut Partition, batch: &BatchHeader) -> Result<Append, AppendError> {
    p.append(TimestampMs(1000), EPOCH, batch)
}

fn base(append: Result<Append, AppendError>) -> u64 {
    match append.unwrap() {
        Append::New { base_offset, .. } => base_offset.0,
        Append::Duplicate { .. } => panic!("a duplicate"),
    }
}

#[test]
fn offsets_follow_each_other_without_a_gap() {
    let mut p = partition();
    let none = ProducerId::NONE.0;
    assert_eq!(base(append(&mut p, &batch(none, 0, 0, 3))), 0);
    assert_eq!(base(append(&mut p, &batch(none, 0, 0, 2))), 3);
    assert_eq!(p.log_end_offset(), Offset(5));
}

#[test]
fn records_are_readable_only_once_they_are_flushed() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 3)).unwrap();
    assert_eq!(p.high_watermark(), Offset(0));
    assert!(p.check_fetch(EPOCH, Offset(1)).is_err());
    p.handle_flushed(Offset(3));
    assert_eq!(p.high_watermark(), Offset(3));
    assert!(p.check_fetch(EPOCH, Offset(3)).is_ok());
    assert!(p.check_fetch(EPOCH, Offset(4)).is_err());
}

#[test]
fn a_stale_or_unknown_leader_epoch_is_refused() {
    let mut p = partition();
    let b = batch(1, 0, 0, 1);
    let now = TimestampMs(0);
    let current = EPOCH;
    assert_eq!(p.append(now, LeaderEpoch(2), &b), Err(AppendError::FencedLeaderEpoch { current }));
    assert_eq!(p.append(now, LeaderEpoch(4), &b), Err(AppendError::UnknownLeaderEpoch { current }));
    assert_eq!(
        p.check_fetch(LeaderEpoch(2), Offset(0)),
        Err(FetchError::FencedLeaderEpoch { current })
    );
}

#[test]
fn a_batch_sent_again_is_answered_with_its_first_offsets() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 3)).unwrap();
    append(&mut p, &batch(1, 0, 3, 2)).unwrap();
    let again = append(&mut p, &batch(1, 0, 0, 3)).unwrap();
    assert_eq!(again, Append::Duplicate { base_offset: Offset(0), end_offset: Offset(3) });
    assert_eq!(p.log_end_offset(), Offset(5));
}

#[test]
fn a_duplicate_that_is_no_longer_remembered_is_refused() {
    let mut p = partition();
    for n in 0..=PRODUCER_BATCHES_REMEMBERED as u32 {
        append(&mut p, &batch(1, 0, n, 1)).unwrap();
    }
    let refused = append(&mut p, &batch(1, 0, 0, 1));
    assert_eq!(refused, Err(AppendError::Sequence(SequenceError::DuplicateForgotten)));
}

#[test]
fn a_gap_in_the_sequence_is_refused_until_it_is_filled() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 2)).unwrap();
    let gap = append(&mut p, &batch(1, 0, 5, 1));
    let expected = Sequence(2);
    assert_eq!(gap, Err(AppendError::Sequence(SequenceError::OutOfOrder { expected })));
    assert_eq!(base(append(&mut p, &batch(1, 0, 2, 3))), 2);
    assert_eq!(base(append(&mut p, &batch(1, 0, 5, 1))), 5);
}

#[test]
fn an_unknown_producer_must_begin_at_zero() {
    let mut p = partition();
    let refused = append(&mut p, &batch(1, 0, 4, 1));
    assert_eq!(refused, Err(AppendError::Sequence(SequenceError::UnknownProducer)));
}

#[test]
fn a_newer_producer_epoch_fences_the_older_one() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 1)).unwrap();
    assert_eq!(base(append(&mut p, &batch(1, 1, 0, 1))), 1);
    let current = ProducerEpoch(1);
    let fenced = append(&mut p, &batch(1, 0, 1, 1));
    assert_eq!(fenced, Err(AppendError::Sequence(SequenceError::FencedEpoch { current })));
}

#[test]
fn sequences_wrap_around() {
    let mut p = partition();
    let last = u32::MAX - 1;
    p.replay(EPOCH, &batch(1, 0, last, 2), Offset(0), TimestampMs(0));
    assert_eq!(base(append(&mut p, &batch(1, 0, 0, 1))), 2);
}

#[test]
fn more_producers_than_the_bound_are_refused_and_expiry_makes_room() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 1)).unwrap();
    append(&mut p, &batch(2, 0, 0, 1)).unwrap();
    let refused = append(&mut p, &batch(3, 0, 0, 1));
    assert_eq!(refused, Err(AppendError::Sequence(SequenceError::TooMany { max: 2 })));
    assert_eq!(p.expire_producers(TimestampMs(1001)), 2);
    append(&mut p, &batch(3, 0, 0, 1)).unwrap();
}

#[test]
fn a_log_of_too_many_producers_leaves_the_newest() {
    let mut p = partition();
    // Later ids are not larger ones, and the first appends once more.
    for (offset, producer) in [9, 8, 7, 6].into_iter().enumerate() {
        p.replay(EPOCH, &batch(producer, 0, 0, 1), Offset(offset as u64), TimestampMs(5));
    }
    p.replay(EPOCH, &batch(9, 0, 1, 1), Offset(4), TimestampMs(6));
    assert_eq!(p.bound_producers(5), 0);
    assert_eq!(p.bound_producers(3), 1);
    assert_eq!(p.bound_producers(2), 1);
    let left: Vec<u64> = p.producers().iter().map(|(id, _)| id.0).collect();
    assert_eq!(left, [6, 9]);
}

#[test]
fn append_time_never_goes_back() {
    let mut p = partition();
    let none = ProducerId::NONE.0;
    p.append(TimestampMs(500), EPOCH, &batch(none, 0, 0, 1)).unwrap();
    let later = p.append(TimestampMs(300), EPOCH, &batch(none, 0, 0, 1)).unwrap();
    assert_eq!(later, Append::New { base_offset: Offset(1), append_time: TimestampMs(500) });
}

#[test]
fn the_log_start_moves_forward_only_and_not_past_what_is_flushed() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 10)).unwrap();
    p.handle_flushed(Offset(6));
    assert_eq!(p.advance_log_start(Offset(9)), Some(Offset(6)));
    assert_eq!(p.advance_log_start(Offset(4)), None);
    let readable = Offset(6)..Offset(6);
    assert_eq!(p.check_fetch(EPOCH, Offset(5)), Err(FetchError::OffsetOutOfRange { readable }));
}

#[test]
fn a_damaged_range_is_refused_and_the_rest_is_served() {
    let mut p = partition();
    append(&mut p, &batch(1, 0, 0, 10)).unwrap();
    p.handle_flushed(Offset(10));
    p.mark_damaged(Offset(3)..Offset(5));
    assert!(p.check_fetch(EPOCH, Offset(2)).is_ok());
    let range = Offset(3)..Offset(5);
    assert_eq!(p.check_fetch(EPOCH, Offset(4)), Err(FetchError::Damaged { range }));
    assert!(p.check_fetch(EPOCH, Offset(5)).is_ok());
    p.advance_log_start(Offset(5));
    assert!(p.damaged().is_empty());
}

#[test]
fn damaged_ranges_that_touch_become_one() {
    let mut p = partition();
    p.mark_damaged(Offset(3)..Offset(5));
    p.mark_damaged(Offset(9)..Offset(12));
    p.mark_damaged(Offset(3)..Offset(5));
    p.mark_damaged(Offset(5)..Offset(9));
    assert_eq!(p.damaged(), &[Offset(3)..Offset(12)]);
}

#[test]
fn the_first_batch_of_a_leader_begins_its_epoch() {
    let mut p = partition();
    assert!(p.begins_epoch());
    append(&mut p, &batch(1, 0, 0, 1)).unwrap();
    assert!(!p.begins_epoch());
    assert_eq!(p.epochs().pairs(), &[(EPOCH, Offset(0))]);
}
