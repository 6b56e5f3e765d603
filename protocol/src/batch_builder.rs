//! A batch while it grows in a producer.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::batch::{Attributes, BatchHeader, ProducerStamp, checksum};
use crate::ids::{LeaderEpoch, Offset, TimestampMs};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, HEADERS_PER_RECORD_MAX, RECORD_BYTES_MAX,
    RECORDS_PER_BATCH_MAX,
};
use crate::record::Record;

/// Collects records into one batch after another.
///
/// Begins empty; [`BatchBuilder::try_push`] until it is full or the caller will not wait longer,
/// then [`BatchBuilder::finish`] seals the batch and the builder is empty again. Its memory is
/// reused once the sealed batch is dropped. Owned by the task of one producer.
///
/// Invariant: `bytes` is empty, or begins with room for a header and holds `record_count` records
/// behind it.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: BytesMut,
    bytes_target: usize,
    record_count: u32,
    base_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
}

/// Why a record was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushError {
    /// The batch has no room for it; the next one has.
    Full,
    /// No batch has room for it.
    TooLarge {
        /// Bytes of key, value and headers.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The record has too many headers for any batch.
    TooManyHeaders {
        /// How many.
        count: usize,
    },
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PushError::Full => f.write_str("the batch is full, the next one has room"),
            PushError::TooLarge { bytes, max } => {
                write!(f, "key, value and headers have {bytes} bytes, at most {max} are allowed")
            }
            PushError::TooManyHeaders { count } => {
                write!(f, "{count} headers, at most {HEADERS_PER_RECORD_MAX} are allowed")
            }
        }
    }
}

impl std::error::Error for PushError {}

impl BatchBuilder {
    /// A builder of batches of at most `bytes_target` bytes, header included.
    ///
    /// A record is never split: the first record of a batch is taken whatever its size, up to
    /// [`RECORD_BYTES_MAX`].
    pub fn new(bytes_target: usize) -> BatchBuilder {
        BatchBuilder {
            bytes: BytesMut::new(),
            bytes_target: bytes_target.min(BATCH_BYTES_MAX),
            record_count: 0,
            base_timestamp: TimestampMs(0),
            max_timestamp: TimestampMs(0),
        }
    }

    /// Adds the record behind the others.
    pub fn try_push(&mut self, record: &Record<'_>) -> Result<(), PushError> {
        let payload_bytes = record.payload_bytes();
        if payload_bytes > RECORD_BYTES_MAX {
            return Err(PushError::TooLarge { bytes: payload_bytes, max: RECORD_BYTES_MAX });
        }
        if record.headers.len() > HEADERS_PER_RECORD_MAX as usize {
            return Err(PushError::TooManyHeaders { count: record.headers.len() });
        }
        if self.is_empty() {
            self.bytes.reserve(self.bytes_target.max(BATCH_HEADER_BYTES));
            self.bytes.resize(BATCH_HEADER_BYTES, 0);
            self.base_timestamp = record.timestamp;
            self.max_timestamp = record.timestamp;
        }
        // Modulo 2^64, as it is added again by readers: any two timestamps may share a batch.
        let timestamp_delta = record.timestamp.0.wrapping_sub(self.base_timestamp.0);
        let encoded_bytes = record.encoded_bytes(timestamp_delta, self.record_count);
        let fits = self.bytes.len() + encoded_bytes <= self.bytes_target
            && self.record_count < RECORDS_PER_BATCH_MAX;
        if !fits && !self.is_empty() {
            return Err(PushError::Full);
        }
        record.encode(timestamp_delta, self.record_count, &mut self.bytes);
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        self.record_count += 1;
        Ok(())
    }

    /// Bytes that the batch would have if it were finished now; 0 when empty.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing was pushed since the last batch was finished.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Records pushed since the last batch was finished.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Seals the batch: header and checksum are right, offset and leader epoch are 0 for the leader
    /// to fill in.
    ///
    /// # Panics
    /// If the builder is empty: there is no batch without records.
    pub fn finish(&mut self, producer: ProducerStamp) -> Bytes {
        assert!(!self.is_empty(), "a batch has at least one record");
        let mut batch = self.bytes.split();
        let mut header = BatchHeader {
            base_offset: Offset::ZERO,
            length: batch.len() as u32,
            leader_epoch: LeaderEpoch(0),
            crc: 0,
            attributes: Attributes::default(),
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            record_count: self.record_count,
            records_bytes: (batch.len() - BATCH_HEADER_BYTES) as u32,
        };
        self.record_count = 0;
        header.encode(front(&mut batch));
        header.crc = checksum(&batch);
        header.encode(front(&mut batch));
        batch.freeze()
    }
}

fn front(batch: &mut BytesMut) -> &mut [u8; BATCH_HEADER_BYTES] {
    batch.first_chunk_mut().expect("room for the header was made with the first record")
}
