use super::*;
use crate::batch_builder::{BatchBuilder, PushError};
use crate::codec::DecodeError;
use crate::limits::{HEADERS_PER_RECORD_MAX, RECORD_BYTES_MAX};
use crate::record::{Record, RecordHeader};

fn record<'a>(timestamp: i64, value: &'a [u8]) -> Record<'a> {
    Record { timestamp: TimestampMs(timestamp), key: None, value: Some(value), headers: &[] }
}

fn batch(records: &[Record<'_>]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX);
    for record in records {
        builder.try_push(record).unwrap();
    }
    builder.finish(ProducerStamp::NONE).to_vec()
}

#[test]
fn what_is_built_verifies_and_reads_back() {
    let headers =
        [RecordHeader { key: "a", value: Some(b"1") }, RecordHeader { key: "", value: None }];
    let written = [
        Record {
            timestamp: TimestampMs(50),
            key: Some(b"k"),
            value: Some(b"v"),
            headers: &headers,
        },
        Record { timestamp: TimestampMs(40), key: Some(b""), value: None, headers: &[] },
        Record { timestamp: TimestampMs(60), key: None, value: Some(b""), headers: &[] },
    ];
    let mut bytes = batch(&written);
    stamp(&mut bytes, Offset(100), LeaderEpoch(3));
    let header = verify(&bytes, 10).unwrap();
    assert_eq!(header.base_offset, Offset(100));
    assert_eq!(header.last_offset(), Offset(102));
    assert_eq!(header.leader_epoch, LeaderEpoch(3));
    assert_eq!(header.max_timestamp, TimestampMs(60));
    assert_eq!(header.producer(), ProducerStamp::NONE);

    let read: Vec<RecordView<'_>> = records(&bytes).unwrap().map(Result::unwrap).collect();
    assert_eq!(read.len(), written.len());
    for (index, (read, written)) in read.iter().zip(&written).enumerate() {
        assert_eq!(read.offset, Offset(100 + index as u64));
        assert_eq!(read.timestamp, written.timestamp);
        assert_eq!((read.key, read.value), (written.key, written.value));
        assert_eq!(read.headers().len(), written.headers.len());
        assert_eq!(read.headers().collect::<Vec<_>>(), written.headers);
    }
}

#[test]
fn timestamps_at_both_ends_of_time_share_a_batch() {
    let bytes = batch(&[record(i64::MIN, b"a"), record(i64::MAX, b"b"), record(-1, b"c")]);
    assert_eq!(verify(&bytes, 1).map(|header| header.max_timestamp), Ok(TimestampMs(i64::MAX)));
    let read: Vec<i64> =
        records(&bytes).unwrap().map(|record| record.unwrap().timestamp.0).collect();
    assert_eq!(read, [i64::MIN, i64::MAX, -1]);
}

#[test]
fn stamping_leaves_the_checksum_right() {
    let mut bytes = batch(&[record(1, b"a")]);
    let before = verify_crc(&bytes).unwrap();
    stamp(&mut bytes, Offset(9), LeaderEpoch(7));
    let after = verify_crc(&bytes).unwrap();
    assert_eq!(
        after,
        BatchHeader { base_offset: Offset(9), leader_epoch: LeaderEpoch(7), ..before }
    );
}

#[test]
fn a_new_producer_stamp_changes_nothing_else() {
    let mut bytes = batch(&[record(1, b"a")]);
    let producer =
        ProducerStamp { id: ProducerId(5), epoch: ProducerEpoch(6), base_sequence: Sequence(7) };
    stamp_producer(&mut bytes, producer);
    assert_eq!(verify(&bytes, 1).map(|header| header.producer()), Ok(producer));
    stamp_producer(&mut bytes, ProducerStamp::NONE);
    assert_eq!(bytes, batch(&[record(1, b"a")]));
}

#[test]
fn a_flipped_bit_anywhere_behind_the_stamp_is_noticed() {
    let bytes = batch(&[record(1, b"abc"), record(2, b"def")]);
    for position in 8..bytes.len() {
        if (12..16).contains(&position) {
            continue;
        }
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << bit;
            assert!(verify_crc(&damaged).is_err(), "byte {position} bit {bit}");
        }
    }
}

#[test]
fn a_record_at_the_limit_is_accepted_and_one_byte_more_is_refused() {
    let headers = [RecordHeader { key: "h", value: Some(b"12") }];
    let at_limit =
        Record { timestamp: TimestampMs(0), key: Some(b"k"), value: Some(b"v"), headers: &headers };
    assert_eq!(at_limit.payload_bytes(), 5);
    let bytes = batch(&[at_limit]);
    assert!(verify(&bytes, 5).is_ok());
    let error = RecordError::TooLarge { bytes: 5, max: 4 };
    assert_eq!(verify(&bytes, 4), Err(BatchError::Record { index: 0, error }));
}

#[test]
fn the_largest_record_with_the_most_headers_fits_into_a_batch() {
    let headers = vec![RecordHeader { key: "", value: None }; HEADERS_PER_RECORD_MAX as usize];
    let value = vec![7; RECORD_BYTES_MAX];
    let largest =
        Record { timestamp: TimestampMs(0), key: None, value: Some(&value), headers: &headers };
    let bytes = batch(&[largest]);
    assert!(verify(&bytes, RECORD_BYTES_MAX).is_ok());

    let mut builder = BatchBuilder::new(1000);
    let value = vec![7; RECORD_BYTES_MAX + 1];
    let error = PushError::TooLarge { bytes: RECORD_BYTES_MAX + 1, max: RECORD_BYTES_MAX };
    assert_eq!(builder.try_push(&record(0, &value)), Err(error));
    let headers = vec![RecordHeader { key: "", value: None }; HEADERS_PER_RECORD_MAX as usize + 1];
    let many = Record { headers: &headers, ..record(0, b"") };
    assert_eq!(builder.try_push(&many), Err(PushError::TooManyHeaders { count: 1025 }));
    assert!(builder.is_empty());
}

#[test]
fn more_headers_than_allowed_are_refused() {
    // varint length, attributes, deltas, no key, no value, 1025 headers; their bytes are not even
    // there.
    let body = [0, 0, 0, 1, 1, 0x82, 0x10];
    let bytes = [&[14][..], &body].concat();
    let error = read_record(&mut Reader::new(&bytes), 0).err();
    assert_eq!(error, Some(RecordError::HeaderCount { count: 1025 }));
}

#[test]
fn the_builder_is_full_at_its_target_but_takes_any_first_record() {
    let mut builder = BatchBuilder::new(100);
    builder.try_push(&record(0, &[1; 500])).unwrap();
    assert_eq!(builder.try_push(&record(0, b"")), Err(PushError::Full));
    let first = builder.finish(ProducerStamp::NONE);
    assert!(verify(&first, 500).is_ok());

    assert_eq!(builder.len(), 0);
    builder.try_push(&record(0, &[1; 20])).unwrap();
    assert_eq!(builder.try_push(&record(0, &[1; 20])), Err(PushError::Full));
    assert_eq!(builder.record_count(), 1);
    builder.try_push(&record(0, b"")).unwrap();
    assert_eq!(builder.len(), 64 + 27 + 7);
    assert_eq!(builder.len(), builder.finish(ProducerStamp::NONE).len());
}

#[test]
fn the_builder_is_full_at_the_greatest_number_of_records() {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX);
    let empty = Record { timestamp: TimestampMs(0), key: None, value: None, headers: &[] };
    for _ in 0..RECORDS_PER_BATCH_MAX {
        builder.try_push(&empty).unwrap();
    }
    assert_eq!(builder.try_push(&empty), Err(PushError::Full));
    assert!(verify(&builder.finish(ProducerStamp::NONE), 0).is_ok());
}

#[test]
fn a_length_that_runs_past_the_record_is_refused() {
    for (bytes, expected) in [
        (&[2, 0][..], DecodeError::Truncated { needed: 1, left: 0 }),
        (&[20, 0, 0], DecodeError::Truncated { needed: 10, left: 2 }),
        (&[12, 0, 0, 0, 1, 20, 0], DecodeError::Truncated { needed: 10, left: 1 }),
        (&[14, 0, 0, 0, 1, 0, 0, 9], DecodeError::TrailingBytes { left: 1 }),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 1], DecodeError::VarintTooLong),
    ] {
        let error = read_record(&mut Reader::new(bytes), 0).err();
        assert_eq!(error, Some(RecordError::Field(expected)), "{bytes:?}");
    }
}

#[test]
fn records_end_after_the_first_error() {
    let mut bytes = batch(&[record(0, b"a"), record(0, b"b"), record(0, b"c")]);
    let second = BATCH_HEADER_BYTES + 8;
    bytes[second + 1] = 1;
    let read: Vec<_> = records(&bytes).unwrap().collect();
    assert_eq!(read.len(), 2);
    let error = RecordError::UnknownAttributes { attributes: 1 };
    assert_eq!(read[1], Err(BatchError::Record { index: 1, error }));
}

#[test]
fn batches_back_to_back_are_taken_apart_until_one_is_cut() {
    let first = batch(&[record(0, b"a")]);
    let second = batch(&[record(0, b"bb"), record(0, b"c")]);
    let both = [&first[..], &second].concat();
    let parts: Vec<_> = batches(&both).map(|part| part.unwrap().1).collect();
    assert_eq!(parts, [&first[..], &second]);

    let cut = &both[..both.len() - 1];
    let error =
        BatchError::LengthMismatch { declared: second.len() as u32, actual: second.len() - 1 };
    assert_eq!(batches(cut).nth(1), Some(Err(error)));
    assert_eq!(batches(cut).count(), 2);
    assert_eq!(batches(&[]).count(), 0);
    assert_eq!(batches(&[0; 3]).next(), Some(Err(BatchError::HeaderTruncated { bytes: 3 })));
}

#[test]
#[should_panic(expected = "at least one record")]
fn an_empty_batch_cannot_be_finished() {
    BatchBuilder::new(100).finish(ProducerStamp::NONE);
}
