//! Salvage: the state of partitions that it gives is one that a broker could have had.

mod support;

use rustmq_protocol::{
    BatchBuilder, BatchHeader, LeaderEpoch, Offset, ProducerEpoch, ProducerId, ProducerStamp,
    Record, Sequence, TimestampMs, stamp,
};
use rustmq_wal::checkpoint::PRODUCERS_PER_PARTITION_MAX;
use rustmq_wal::salvage::Salvage;
use rustmq_wal::verify::{Finding, Lost, Verified, Verify, What};
use rustmq_wal::{
    BatchCheckpoint, BlockError, BlockSequence, EntryHeader, EntryKind, Incarnation,
    PartitionCheckpoint, ProducerCheckpoint, SegmentHeader,
};
use support::{Files, WAL, partition};

/// Room for the records of all producers that a checkpoint may have.
const SEGMENT_BYTES: u64 = 2 << 20;

fn salvage() -> Salvage<impl FnMut() -> u64> {
    let mut generation = 0xfeed_0000_0000_0137_u64;
    Salvage::new(WAL, SEGMENT_BYTES, Incarnation(1), move || {
        generation += 1;
        generation
    })
}

fn header(kind: EntryKind, base_offset: u64, payload: &[u8]) -> EntryHeader {
    EntryHeader {
        kind,
        sequence: BlockSequence(1),
        partition: partition(0),
        leader_epoch: LeaderEpoch(1),
        base_offset: Offset(base_offset),
        record_count: 0,
        payload_length: payload.len() as u32,
        append_time: TimestampMs(0),
        payload_crc: 0,
        max_timestamp: TimestampMs(0),
    }
}

/// A record of a producer that appends nothing else.
fn append<G: FnMut() -> u64>(salvage: &mut Salvage<G>, producer: u64, offset: u64) {
    let mut builder = BatchBuilder::new(1 << 10);
    let record = Record { timestamp: TimestampMs(0), key: None, value: Some(b"v"), headers: &[] };
    builder.try_push(&record).expect("a record fits");
    let (epoch, base_sequence) = (ProducerEpoch(0), Sequence(0));
    let by = ProducerStamp { id: ProducerId(producer), epoch, base_sequence };
    let mut bytes = builder.finish(by).to_vec();
    stamp(&mut bytes, Offset(offset), LeaderEpoch(1));
    let payload_crc = BatchHeader::decode(&bytes).expect("a good batch").crc;
    let header = header(EntryKind::Data, offset, &bytes);
    assert!(salvage.take(&EntryHeader { record_count: 1, payload_crc, ..header }, &bytes));
}

/// The files that it wrote.
fn files<G: FnMut() -> u64>(salvage: &mut Salvage<G>) -> Files {
    let mut files = Files::new();
    for write in salvage.take_writes() {
        let file = files.entry(write.slot).or_insert_with(|| vec![0; SEGMENT_BYTES as usize]);
        let at = write.position as usize;
        file[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    files
}

fn verify(file: &[u8]) -> Verified {
    let header = SegmentHeader::decode(file).expect("a header");
    let mut verify = Verify::new(&header, BlockSequence::FIRST, file.len() as u64);
    while let Some(range) = verify.next_read() {
        verify.feed(range.start, &file[range.start as usize..range.end as usize], |_, _| {});
    }
    verify.finish(None, false)
}

/// The checkpoint of the last segment, which has nothing wrong.
fn last_checkpoint(files: &Files) -> PartitionCheckpoint {
    let (_, file) = files.last_key_value().expect("a file");
    let mut verified = verify(file);
    assert_eq!(verified.findings, []);
    verified.checkpoints.pop().expect("a partition")
}

#[test]
fn of_too_many_producers_the_newest_are_remembered() {
    let mut salvage = salvage();
    let count = PRODUCERS_PER_PARTITION_MAX as u64 + 1;
    // Later ids are not larger ones.
    for offset in 0..count {
        append(&mut salvage, count - offset, offset);
    }
    assert_eq!(salvage.finish(), []);
    let checkpoint = last_checkpoint(&files(&mut salvage));
    let ids: Vec<u64> = checkpoint.producers.iter().map(|producer| producer.id.0).collect();
    assert_eq!(ids, (1..count).collect::<Vec<_>>(), "the first to append is forgotten");
    assert_eq!(checkpoint.log_end, Offset(count));
}

#[test]
fn who_was_forgotten_at_a_checkpoint_stays_so() {
    let mut salvage = salvage();
    for offset in 0..3 {
        append(&mut salvage, offset + 1, offset);
    }
    // What the broker remembered when it went on in the next segment.
    let batch =
        BatchCheckpoint { base_sequence: Sequence(0), record_count: 1, base_offset: Offset(2) };
    let third = ProducerCheckpoint {
        id: ProducerId(3),
        epoch: ProducerEpoch(0),
        last_append_time: TimestampMs(0),
        batches: vec![batch],
    };
    let remembered = PartitionCheckpoint {
        partition: partition(0),
        log_start: Offset(0),
        log_end: Offset(3),
        leader_epoch: LeaderEpoch(1),
        append_time_max: TimestampMs(0),
        epochs: vec![(LeaderEpoch(1), Offset(0))],
        producers: vec![third],
    };
    let payload = remembered.encode();
    assert!(salvage.take(&header(EntryKind::Checkpoint, 0, &payload), &payload));
    append(&mut salvage, 4, 3);
    salvage.finish();
    let checkpoint = last_checkpoint(&files(&mut salvage));
    let ids: Vec<u64> = checkpoint.producers.iter().map(|producer| producer.id.0).collect();
    assert_eq!(ids, [3, 4]);
}

#[test]
fn offsets_are_given_up_behind_those_of_whom_nothing_follows_the_loss() {
    let mut salvage = salvage();
    append(&mut salvage, 1, 0);
    let lost = |position, lost| Finding { position, end: position + 100, what: WHAT, lost };
    salvage.leave_out(&lost(4096, Lost::Unknown));
    append(&mut salvage, 1, 7);
    // Of another partition the loss may have taken what came before the log start, and behind it.
    let log_start = header(EntryKind::LogStart, 3, &[]);
    assert!(salvage.take(&EntryHeader { partition: partition(1), ..log_start }, &[]));
    salvage.leave_out(&lost(8192, Lost::Records(vec![(partition(0), Offset(8)..Offset(9))])));
    assert_eq!(salvage.finish(), [(partition(1), Offset(3)..Offset(103))]);
    let (_, file) = files(&mut salvage).pop_last().expect("a file");
    let ends = verify(&file).checkpoints.into_iter().map(|partition| partition.log_end);
    assert_eq!(ends.collect::<Vec<_>>(), [Offset(9), Offset(103)]);
}

const WHAT: What = What::Block(BlockError::NotABlock);
