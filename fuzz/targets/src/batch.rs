//! The record batch: refused or read, never both, and built again from its records.
//!
//! Input: one byte that chooses, then a batch as it is; or one whose header is made to fit, so
//! that its records are met; or what records are made from.

use rustmq_protocol::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BatchBuilder, BatchHeader, LeaderEpoch, Offset,
    ProducerEpoch, ProducerId, ProducerStamp, RECORD_BYTES_MAX, Record, RecordHeader, Sequence,
    TimestampMs, batches, records, stamp, stamp_producer, verify, verify_crc,
};

use crate::memory::without_memory;
use crate::source::Source;

/// The batch holds together in each of the ways in which the input is read.
pub fn target(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 4 {
        0 => holds(rest),
        1 | 2 => holds(&repaired(*choice, rest)),
        _ => made(rest),
    }
}

/// Checks and reads `batch` in every way, which agree with one another.
pub(crate) fn holds(batch: &[u8]) {
    let (verified, whole, read) = without_memory(|| {
        let read = records(batch).map(|records| records.clone().filter(Result::is_ok).count());
        (verify(batch, RECORD_BYTES_MAX), verify_crc(batch), read)
    });
    let lying: usize = without_memory(|| batches(batch).map(|one| usize::from(one.is_ok())).sum());
    if BatchHeader::decode(batch).is_err() {
        assert!(verified.is_err() && whole.is_err() && read.is_err());
        assert_eq!(lying, 0);
    }
    let small = without_memory(|| verify(batch, 16));
    assert!(small.is_err() || verified.is_ok(), "what a small topic takes any topic takes");
    let header = match verified {
        Ok(header) => header,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(whole, Ok(header));
    assert_eq!(read, Ok(header.record_count as usize), "every record of a good batch is read");
    assert_eq!(lying, 1);
    let mut bytes = [0; BATCH_HEADER_BYTES];
    header.encode(&mut bytes);
    assert_eq!(bytes, batch[..BATCH_HEADER_BYTES], "a header is encoded as it was");
    assert!(are_all(&batch[BATCH_HEADER_BYTES..], header.record_count), "no byte is left over");
    is_built_again(&header, batch);
    is_stamped(&header, batch);
}

/// Whether so many records, by their lengths alone, are all of the bytes.
fn are_all(mut bytes: &[u8], count: u32) -> bool {
    for _ in 0..count {
        let (mut raw, mut shift) = (0_usize, 0);
        while let Some((byte, rest)) = bytes.split_first() {
            bytes = rest;
            raw |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if *byte < 0x80 {
                break;
            }
        }
        let Some(rest) = bytes.get(raw / 2..) else { return false };
        bytes = rest;
    }
    bytes.is_empty()
}

/// The records, given to a builder, make a batch of the same records: the same bytes, if no number
/// in them was written longer than it has to be.
fn is_built_again(header: &BatchHeader, batch: &[u8]) {
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX.min(2 * batch.len()));
    let mut expected = header.base_offset;
    let mut headers = Vec::new();
    for record in records(batch).expect("a good batch").flatten() {
        assert_eq!(record.offset, expected, "offsets go up by one");
        expected = Offset(expected.0.wrapping_add(1));
        headers.clear();
        headers.extend(record.headers());
        assert_eq!(headers.len(), record.headers().len(), "every header is read");
        let (timestamp, key, value) = (record.timestamp, record.key, record.value);
        let pushed = builder.try_push(&Record { timestamp, key, value, headers: &headers });
        assert_eq!(pushed, Ok(()), "what was taken is taken again");
    }
    let mut again = builder.finish(header.producer()).to_vec();
    stamp(&mut again, header.base_offset, header.leader_epoch);
    let built = verify(&again, RECORD_BYTES_MAX).expect("a builder makes good batches");
    assert_eq!(built.max_timestamp, header.max_timestamp);
    if built.base_timestamp == header.base_timestamp {
        assert!(again.len() <= batch.len(), "a builder writes the shortest form");
        assert!(again.len() < batch.len() || again == batch, "{again:x?} was {batch:x?}");
    }
    let left = records(&again).expect("a good batch").flatten();
    let right = records(batch).expect("a good batch").flatten();
    for (built, read) in left.zip(right) {
        let same = (built.offset, built.timestamp, built.key, built.value)
            == (read.offset, read.timestamp, read.key, read.value);
        assert!(same && built.headers().eq(read.headers()));
    }
}

/// What the leader fills in leaves the rest good.
fn is_stamped(header: &BatchHeader, batch: &[u8]) {
    let mut stamped = batch.to_vec();
    let leader = (Offset(header.base_offset.0 / 2), LeaderEpoch(!header.leader_epoch.0));
    stamp(&mut stamped, leader.0, leader.1);
    let expected = BatchHeader { base_offset: leader.0, leader_epoch: leader.1, ..*header };
    assert_eq!(verify_crc(&stamped), Ok(expected));
}

/// The bytes with a header that fits them. The choice leaves some fields as they are.
fn repaired(choice: u8, bytes: &[u8]) -> Vec<u8> {
    let keeps = |bit: u8| choice & (4 << bit) != 0;
    let mut batch = bytes.to_vec();
    if batch.len() < BATCH_HEADER_BYTES {
        batch.resize(BATCH_HEADER_BYTES, 0);
    }
    let length = batch.len() as u32;
    let mut put = |at: usize, field: &[u8]| batch[at..at + field.len()].copy_from_slice(field);
    put(8, &length.to_le_bytes());
    put(20, &[1, 0]);
    if !keeps(0) {
        put(22, &[0, 0]);
    }
    put(50, &[0, 0]);
    if !keeps(1) {
        put(60, &(length - BATCH_HEADER_BYTES as u32).to_le_bytes());
    }
    if !keeps(2) {
        // As many records as there are, if their lengths say so.
        let count = count_records(&batch[BATCH_HEADER_BYTES..]);
        batch[56..60].copy_from_slice(&count.to_le_bytes());
    }
    if !keeps(3) {
        let base = i64::from_le_bytes(*batch[24..].first_chunk().expect("a whole header"));
        let max = records(&batch).ok().and_then(|records| {
            records.map_while(Result::ok).map(|record| record.timestamp.0).max()
        });
        batch[32..40].copy_from_slice(&max.unwrap_or(base).to_le_bytes());
    }
    if !keeps(4) {
        stamp_crc(&mut batch);
    }
    batch
}

fn stamp_crc(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[20..]);
    batch[16..20].copy_from_slice(&crc.to_le_bytes());
}

/// Counts what could be records by their lengths: one byte or two.
fn count_records(mut bytes: &[u8]) -> u32 {
    let mut count = 0;
    while let Some((first, rest)) = bytes.split_first() {
        let (raw, rest) = match (*first < 0x80, rest.split_first()) {
            (true, _) => (usize::from(*first), rest),
            (false, Some((second, rest))) => {
                (usize::from(first & 0x7f) | usize::from(*second) << 7, rest)
            }
            (false, None) => break,
        };
        count += 1;
        bytes = rest.get(raw / 2..).unwrap_or_default();
    }
    count.max(1)
}

/// Records of any fields are read as they were made.
fn made(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let producer = ProducerStamp {
        id: ProducerId(source.u64()),
        epoch: ProducerEpoch(source.u16()),
        base_sequence: Sequence(source.u32()),
    };
    let mut builder = BatchBuilder::new(usize::from(source.u16()));
    let mut count = 0;
    while count == 0 || !source.is_empty() {
        let shape = source.u8();
        let timestamp = match shape & 3 {
            0 => TimestampMs(source.i64()),
            _ => TimestampMs(i64::from(source.u16())),
        };
        let key = (shape & 4 != 0).then(|| source.bytes());
        let value = (shape & 8 != 0).then(|| source.bytes());
        let texts = if shape & 16 == 0 { Vec::new() } else { source.list(Source::text) };
        let headers: Vec<RecordHeader<'_>> =
            texts.iter().map(|key| RecordHeader { key, value }).collect();
        if builder.try_push(&Record { timestamp, key, value, headers: &headers }).is_err() {
            break;
        }
        count += 1;
        assert_eq!(builder.record_count(), count);
    }
    let bytes = builder.len();
    let mut batch = builder.finish(producer).to_vec();
    assert_eq!(batch.len(), bytes);
    let header = verify(&batch, RECORD_BYTES_MAX).expect("a builder makes good batches");
    assert_eq!((header.record_count, header.producer()), (count, producer));
    holds(&batch);
    let mut pair = batch.clone();
    pair.extend_from_slice(&batch);
    assert_eq!(batches(&pair).filter(Result::is_ok).count(), 2);
    stamp_producer(&mut batch, ProducerStamp::NONE);
    let header = verify_crc(&batch).expect("stamped with its checksum");
    assert_eq!(header.producer(), ProducerStamp::NONE);
}
