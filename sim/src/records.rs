//! Records whose bytes follow from their number, so that a wrong byte is seen without keeping any.

use rustmq_protocol::{BatchBuilder, BatchHeader, ProducerStamp, Record, TimestampMs, records};
use rustmq_sys::sim::choice::Choice;

/// Fewest bytes of a value: its number and its length.
pub(crate) const VALUE_BYTES_MIN: usize = 16;

/// A batch on its way: the numbers of its records and its bytes.
#[derive(Clone)]
pub(crate) struct NewBatch {
    pub(crate) values: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// The bytes of a value: number, length, and what follows from both; or, for a forger, bytes of a
/// block of the log, which follow from nothing.
fn value(number: u64, bytes: usize, forged: Option<&[u8]>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(bytes as u32).to_le_bytes());
    out.extend_from_slice(&u32::from(forged.is_some()).to_le_bytes());
    match forged {
        Some(forged) => out.extend_from_slice(forged),
        None => {
            out.resize(bytes, 0);
            let (whole, rest) = out[VALUE_BYTES_MIN..].as_chunks_mut::<8>();
            let mut words = words(number);
            for (place, word) in whole.iter_mut().zip(&mut words) {
                *place = word;
            }
            let last = words.next().unwrap_or_default();
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

/// Are these the bytes of the value with this number and length?
fn is_value(number: u64, bytes: usize, served: &[u8]) -> bool {
    let Some(served) = served.get(VALUE_BYTES_MIN..).filter(|_| served.len() == bytes) else {
        return false;
    };
    let (whole, rest) = served.as_chunks::<8>();
    let mut words = words(number);
    let is_whole = whole.iter().zip(&mut words).all(|(found, word)| *found == word);
    is_whole && words.next().is_some_and(|last| last[..rest.len()] == *rest)
}

/// One word again and again, with its place in it: cheap to make, and never another's.
fn words(number: u64) -> impl Iterator<Item = [u8; 8]> {
    let word = Choice::new(number).number();
    (0u64..).map(move |place| (word ^ place).to_le_bytes())
}

/// A batch of records with these numbers and lengths.
pub(crate) fn batch(
    values: &[(u64, usize)],
    forged: Option<&[u8]>,
    timestamp: TimestampMs,
    producer: ProducerStamp,
) -> NewBatch {
    let mut builder = BatchBuilder::new(1 << 20);
    let mut bytes = Vec::new();
    for (number, length) in values {
        value(*number, *length, forged, &mut bytes);
        let record = Record { timestamp, key: None, value: Some(&bytes), headers: &[] };
        builder.try_push(&record).expect("a batch holds a few small records");
    }
    let numbers = values.iter().map(|(number, _)| *number).collect();
    NewBatch { values: numbers, bytes: builder.finish(producer).to_vec() }
}

/// Reads the records of a batch: (offset, number) each. `Err` says what is wrong with the bytes.
pub(crate) fn read(batch: &[u8], mut found: impl FnMut(u64, u64)) -> Result<BatchHeader, String> {
    let header = rustmq_protocol::batch::verify_crc(batch).map_err(|error| error.to_string())?;
    for record in records(batch).map_err(|error| error.to_string())? {
        let record = record.map_err(|error| error.to_string())?;
        let served = record.value.unwrap_or_default();
        let (Some(number), Some(bytes), Some(forged)) =
            (number(served, 0..8), number(served, 8..12), number(served, 12..16))
        else {
            return Err(format!("the record at offset {} was never sent", record.offset));
        };
        if forged == 0 && !is_value(number, bytes as usize, served) {
            return Err(format!("the record at offset {} has other bytes", record.offset));
        }
        found(record.offset.0, number);
    }
    Ok(header)
}

fn number(bytes: &[u8], range: std::ops::Range<usize>) -> Option<u64> {
    let part = bytes.get(range)?;
    let mut number = [0; 8];
    number[..part.len()].copy_from_slice(part);
    Some(u64::from_le_bytes(number))
}
