//! The record batch: what a producer sends, the WAL stores and a consumer gets, byte for byte.
//!
//! ```text
//!  0 u64 base offset       ┐ filled in by the leader,
//!  8 u32 length, all bytes │ outside the checksum
//! 12 u32 leader epoch      ┘
//! 16 u32 CRC32C of bytes 20..length
//! 20 u8  format version = 1      21 u8 zero      22 u16 attributes
//! 24 i64 base timestamp          32 i64 max timestamp
//! 40 u64 producer id             48 u16 producer epoch      50 u16 zero
//! 52 u32 base sequence           56 u32 record count        60 u32 bytes of records, uncompressed
//! 64 records
//! ```
//!
//! Only the base offset and the leader epoch ever change after the producer has sealed a batch.
//! They lie before the checksummed part, so [`stamp`] needs no new checksum.

use crate::codec::Reader;
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};
use crate::limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, RECORDS_PER_BATCH_MAX};
use crate::record::{RecordError, RecordView, read_record};

mod error;

pub use error::BatchError;

/// The layout that this code reads and writes.
pub const BATCH_FORMAT_VERSION: u8 = 1;

/// Where the checksummed part begins.
const CHECKED_FROM: usize = 20;

/// The header of a batch, with every field within its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Offset of the first record. What a producer writes here is overwritten.
    pub base_offset: Offset,
    /// Bytes of the whole batch, header included.
    pub length: u32,
    /// Leader epoch under which the batch was appended. What a producer writes here is overwritten.
    pub leader_epoch: LeaderEpoch,
    /// CRC32C of everything behind this field.
    pub crc: u32,
    /// How the records are compressed.
    pub attributes: Attributes,
    /// What the timestamp deltas of the records count from.
    pub base_timestamp: TimestampMs,
    /// The greatest timestamp of the records.
    pub max_timestamp: TimestampMs,
    /// Who sent the batch, or [`ProducerId::NONE`].
    pub producer_id: ProducerId,
    /// The epoch of the producer id; 0 without one.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of the first record; 0 without a producer id.
    pub base_sequence: Sequence,
    /// Records in the batch, at least one.
    pub record_count: u32,
    /// Bytes of the records when not compressed.
    pub records_bytes: u32,
}

/// The attributes of a batch: in this version only its compression.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// How the records are compressed.
    pub compression: Compression,
}

impl Attributes {
    /// The attributes with these bits, or `None` if a bit is set that has no meaning.
    pub fn from_bits(bits: u16) -> Option<Attributes> {
        let compression = match bits {
            0 => Compression::None,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            _ => return None,
        };
        Some(Attributes { compression })
    }

    /// The bits of the attributes.
    pub fn bits(self) -> u16 {
        self.compression as u16
    }
}

/// How the records of a batch are compressed: all together, behind the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u16)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// An LZ4 frame. The code is reserved; this version refuses it.
    Lz4 = 1,
    /// A Zstandard frame. The code is reserved; this version refuses it.
    Zstd = 2,
}

/// The idempotence fields of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerStamp {
    /// Who sends the batch, or [`ProducerId::NONE`].
    pub id: ProducerId,
    /// The epoch of the producer id.
    pub epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
}

impl ProducerStamp {
    /// The stamp of a producer that asks for no duplicate check.
    pub const NONE: ProducerStamp =
        ProducerStamp { id: ProducerId::NONE, epoch: ProducerEpoch(0), base_sequence: Sequence(0) };
}

impl BatchHeader {
    /// Reads and checks the header at the front of `bytes`; what follows it is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(header) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
            return Err(BatchError::HeaderTruncated { bytes: bytes.len() });
        };
        // The array is as long as the fields below, so this never happens; it keeps `?` possible.
        let raw = RawHeader::read(header)
            .map_err(|_| BatchError::HeaderTruncated { bytes: bytes.len() })?;
        raw.check()
    }

    /// Writes the header, checksum and all, as it is.
    pub fn encode(&self, out: &mut [u8; BATCH_HEADER_BYTES]) {
        let mut rest = out.as_mut_slice();
        put(&mut rest, self.base_offset.0.to_le_bytes());
        put(&mut rest, self.length.to_le_bytes());
        put(&mut rest, self.leader_epoch.0.to_le_bytes());
        put(&mut rest, self.crc.to_le_bytes());
        put(&mut rest, [BATCH_FORMAT_VERSION, 0]);
        put(&mut rest, self.attributes.bits().to_le_bytes());
        put(&mut rest, self.base_timestamp.0.to_le_bytes());
        put(&mut rest, self.max_timestamp.0.to_le_bytes());
        put(&mut rest, self.producer_id.0.to_le_bytes());
        put(&mut rest, self.producer_epoch.0.to_le_bytes());
        put(&mut rest, [0, 0]);
        put(&mut rest, self.base_sequence.0.to_le_bytes());
        put(&mut rest, self.record_count.to_le_bytes());
        put(&mut rest, self.records_bytes.to_le_bytes());
    }

    /// Offset of the last record. [`BatchHeader::decode`] has checked that there is one.
    pub fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.record_count) - 1)
    }

    /// The idempotence fields together.
    pub fn producer(&self) -> ProducerStamp {
        ProducerStamp {
            id: self.producer_id,
            epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
        }
    }
}

fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    let (field, after) = std::mem::take(rest)
        .split_first_chunk_mut::<N>()
        .expect("the fields of the header are as long as the header");
    *field = bytes;
    *rest = after;
}

/// The fields as they lie there.
struct RawHeader {
    header: BatchHeader,
    version: u8,
    attributes: u16,
    padding: (u8, u16),
}

impl RawHeader {
    fn read(bytes: &[u8; BATCH_HEADER_BYTES]) -> Result<RawHeader, crate::codec::DecodeError> {
        let mut reader = Reader::new(bytes);
        let base_offset = Offset(reader.u64()?);
        let length = reader.u32()?;
        let leader_epoch = LeaderEpoch(reader.u32()?);
        let crc = reader.u32()?;
        let version = reader.u8()?;
        let padding_21 = reader.u8()?;
        let attributes = reader.u16()?;
        let base_timestamp = TimestampMs(reader.i64()?);
        let max_timestamp = TimestampMs(reader.i64()?);
        let producer_id = ProducerId(reader.u64()?);
        let producer_epoch = ProducerEpoch(reader.u16()?);
        let padding_50 = reader.u16()?;
        let base_sequence = Sequence(reader.u32()?);
        let record_count = reader.u32()?;
        let records_bytes = reader.u32()?;
        reader.finish()?;
        Ok(RawHeader {
            header: BatchHeader {
                base_offset,
                length,
                leader_epoch,
                crc,
                attributes: Attributes::default(),
                base_timestamp,
                max_timestamp,
                producer_id,
                producer_epoch,
                base_sequence,
                record_count,
                records_bytes,
            },
            version,
            attributes,
            padding: (padding_21, padding_50),
        })
    }

    fn check(self) -> Result<BatchHeader, BatchError> {
        let RawHeader { mut header, version, attributes, padding } = self;
        if version != BATCH_FORMAT_VERSION {
            return Err(BatchError::UnknownFormatVersion { version });
        }
        let length = header.length;
        if (length as usize) < BATCH_HEADER_BYTES || BATCH_BYTES_MAX < length as usize {
            return Err(BatchError::LengthOutOfBounds { length });
        }
        if padding != (0, 0) {
            return Err(BatchError::PaddingNotZero);
        }
        header.attributes = Attributes::from_bits(attributes)
            .ok_or(BatchError::UnknownAttributes { attributes })?;
        let count = header.record_count;
        if count == 0 || RECORDS_PER_BATCH_MAX < count {
            return Err(BatchError::RecordCountOutOfBounds { count });
        }
        if header.base_offset.checked_add(u64::from(count)).is_none() {
            return Err(BatchError::OffsetOverflow { base_offset: header.base_offset });
        }
        let actual = length - BATCH_HEADER_BYTES as u32;
        if header.attributes.compression == Compression::None && header.records_bytes != actual {
            return Err(BatchError::RecordsBytesMismatch {
                declared: header.records_bytes,
                actual,
            });
        }
        Ok(header)
    }
}

/// Checks a batch from the network completely: header, length, checksum and every record.
///
/// Each record may have `record_bytes_max` bytes of key, value and headers. Nothing is allocated.
pub fn verify(bytes: &[u8], record_bytes_max: usize) -> Result<BatchHeader, BatchError> {
    let header = verify_crc(bytes)?;
    refuse_compressed(&header)?;
    let mut max_timestamp = i64::MIN;
    let mut reader = Reader::new(bytes.get(BATCH_HEADER_BYTES..).unwrap_or_default());
    for index in 0..header.record_count {
        let record =
            read_record(&mut reader, index).map_err(|error| BatchError::Record { index, error })?;
        let payload_bytes = record.payload_bytes;
        if payload_bytes > record_bytes_max {
            let error = RecordError::TooLarge { bytes: payload_bytes, max: record_bytes_max };
            return Err(BatchError::Record { index, error });
        }
        max_timestamp =
            max_timestamp.max(header.base_timestamp.0.wrapping_add(record.timestamp_delta));
    }
    if reader.left() != 0 {
        return Err(BatchError::TrailingBytes { left: reader.left() });
    }
    if header.max_timestamp.0 != max_timestamp {
        return Err(BatchError::MaxTimestampMismatch {
            declared: header.max_timestamp,
            actual: TimestampMs(max_timestamp),
        });
    }
    Ok(header)
}

/// Checks header, length and checksum: enough for a batch from disk, whose records were checked
/// when it came in.
pub fn verify_crc(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(bytes)?;
    if header.length as usize != bytes.len() {
        return Err(BatchError::LengthMismatch { declared: header.length, actual: bytes.len() });
    }
    let computed = checksum(bytes);
    if header.crc != computed {
        return Err(BatchError::CrcMismatch { declared: header.crc, computed });
    }
    Ok(header)
}

/// CRC32C of the checksummed part of a batch.
pub(crate) fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c(batch.get(CHECKED_FROM..).unwrap_or_default())
}

fn refuse_compressed(header: &BatchHeader) -> Result<(), BatchError> {
    match header.attributes.compression {
        Compression::None => Ok(()),
        compression => Err(BatchError::UnsupportedCompression { compression }),
    }
}

/// Fills in what the leader decides. The checksum stays right.
///
/// # Panics
/// If there are fewer bytes than a header; the batch has been verified before.
pub fn stamp(bytes: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    let mut front = bytes;
    put(&mut front, base_offset.0.to_le_bytes());
    let (_length, mut front) = front.split_at_mut(4);
    put(&mut front, leader_epoch.0.to_le_bytes());
}

/// Fills in other idempotence fields and the checksum that goes with them: a producer that got a
/// new id sends the batches that were never appended again under it.
///
/// # Panics
/// If there are fewer bytes than a header; the producer has built the batch itself.
pub fn stamp_producer(bytes: &mut [u8], producer: ProducerStamp) {
    let (_before, mut fields) = bytes.split_at_mut(40);
    put(&mut fields, producer.id.0.to_le_bytes());
    put(&mut fields, producer.epoch.0.to_le_bytes());
    put(&mut fields, [0, 0]);
    put(&mut fields, producer.base_sequence.0.to_le_bytes());
    let crc = checksum(bytes);
    let (_before, mut field) = bytes.split_at_mut(16);
    put(&mut field, crc.to_le_bytes());
}

/// The records of a batch, in order.
///
/// The header is checked here; the checksum is not, see [`verify_crc`].
pub fn records(batch: &[u8]) -> Result<Records<'_>, BatchError> {
    let header = BatchHeader::decode(batch)?;
    refuse_compressed(&header)?;
    let Some(records) = batch.get(BATCH_HEADER_BYTES..header.length as usize) else {
        return Err(BatchError::LengthMismatch { declared: header.length, actual: batch.len() });
    };
    Ok(Records { header, index: 0, reader: Reader::new(records) })
}

/// Iterator over the records of one batch. It ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    index: u32,
    reader: Reader<'a>,
}

impl<'a> Records<'a> {
    /// The header of the batch.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordView<'a>, BatchError>;

    fn next(&mut self) -> Option<Result<RecordView<'a>, BatchError>> {
        if self.index == self.header.record_count {
            return None;
        }
        let index = self.index;
        match read_record(&mut self.reader, index) {
            Ok(raw) => {
                self.index += 1;
                Some(Ok(RecordView {
                    offset: Offset(self.header.base_offset.0 + u64::from(index)),
                    timestamp: TimestampMs(
                        self.header.base_timestamp.0.wrapping_add(raw.timestamp_delta),
                    ),
                    key: raw.key,
                    value: raw.value,
                    header_count: raw.header_count,
                    header_bytes: raw.header_bytes,
                }))
            }
            Err(error) => {
                self.index = self.header.record_count;
                Some(Err(BatchError::Record { index, error }))
            }
        }
    }
}

/// The batches that lie back to back in `bytes`, as in the response to a fetch.
///
/// Each is checked by its header only; see [`verify_crc`].
pub fn batches(bytes: &[u8]) -> Batches<'_> {
    Batches { rest: bytes }
}

/// Iterator over batches back to back. It ends after the first error.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(BatchHeader, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Result<(BatchHeader, &'a [u8]), BatchError>> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let header = match BatchHeader::decode(rest) {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let Some((batch, after)) = rest.split_at_checked(header.length as usize) else {
            let error = BatchError::LengthMismatch { declared: header.length, actual: rest.len() };
            return Some(Err(error));
        };
        self.rest = after;
        Some(Ok((header, batch)))
    }
}

#[cfg(test)]
mod tests;
