//! One record inside a batch.
//!
//! The bytes are those of a record in Kafka's batch format 2, so that a gateway copies them. Every
//! varint is zigzag.
//!
//! ```text
//! varint length of what follows | u8 attributes = 0 | varint timestamp delta | varint offset delta
//! varint key length, -1 = none | key | varint value length, -1 = none | value
//! varint header count | per header: varint key length | key, UTF-8
//!                                   varint value length, -1 = none | value
//! ```

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::codec::{DecodeError, Reader, varint, varint_bytes};
use crate::ids::{Offset, TimestampMs};
use crate::limits::HEADERS_PER_RECORD_MAX;

/// A record to be written: what a producer hands to a batch builder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// When it happened, by the producer's clock.
    pub timestamp: TimestampMs,
    /// What decides the partition and what compaction goes by.
    pub key: Option<&'a [u8]>,
    /// The payload; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values beside the payload, in order; a name may occur more than once.
    pub headers: &'a [RecordHeader<'a>],
}

/// A name and a value beside the payload of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader<'a> {
    /// The name.
    pub key: &'a str,
    /// The value.
    pub value: Option<&'a [u8]>,
}

impl Record<'_> {
    /// Bytes of key, value and headers: what the limits on the size of a record count.
    pub fn payload_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|header| header.key.len() + bytes_of(header.value));
        bytes_of(self.key) + bytes_of(self.value) + headers.sum::<usize>()
    }

    /// Bytes that [`Record::encode`] will append.
    pub(crate) fn encoded_bytes(&self, timestamp_delta: i64, offset_delta: u32) -> usize {
        let body = self.body_bytes(timestamp_delta, offset_delta);
        varint_bytes(body as i64) + body
    }

    fn body_bytes(&self, timestamp_delta: i64, offset_delta: u32) -> usize {
        let headers = self
            .headers
            .iter()
            .map(|header| field_bytes(Some(header.key.as_bytes())) + field_bytes(header.value));
        1 + varint_bytes(timestamp_delta)
            + varint_bytes(i64::from(offset_delta))
            + field_bytes(self.key)
            + field_bytes(self.value)
            + varint_bytes(self.headers.len() as i64)
            + headers.sum::<usize>()
    }

    /// Appends the record. The builder has checked it against the limits.
    pub(crate) fn encode(&self, timestamp_delta: i64, offset_delta: u32, out: &mut BytesMut) {
        put_varint(out, self.body_bytes(timestamp_delta, offset_delta) as i64);
        out.put_u8(0);
        put_varint(out, timestamp_delta);
        put_varint(out, i64::from(offset_delta));
        put_field(out, self.key);
        put_field(out, self.value);
        put_varint(out, self.headers.len() as i64);
        for header in self.headers {
            put_field(out, Some(header.key.as_bytes()));
            put_field(out, header.value);
        }
    }
}

fn bytes_of(field: Option<&[u8]>) -> usize {
    field.map_or(0, <[u8]>::len)
}

/// Bytes of the length -1.
const NONE_BYTES: usize = 1;

fn field_bytes(field: Option<&[u8]>) -> usize {
    field.map_or(NONE_BYTES, |bytes| varint_bytes(bytes.len() as i64) + bytes.len())
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let (bytes, used) = varint(value);
    out.extend_from_slice(bytes.get(..used).unwrap_or(&bytes));
}

fn put_field(out: &mut BytesMut, field: Option<&[u8]>) {
    match field {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

/// A record as it lies in a batch: nothing is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// Its place in the log of the partition.
    pub offset: Offset,
    /// When it happened, by the producer's clock.
    pub timestamp: TimestampMs,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The payload; none is a tombstone.
    pub value: Option<&'a [u8]>,
    pub(crate) header_count: u32,
    pub(crate) header_bytes: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The headers in the order in which they were written.
    pub fn headers(&self) -> RecordHeaders<'a> {
        RecordHeaders { left: self.header_count, reader: Reader::new(self.header_bytes) }
    }
}

/// The headers of one record. They were checked when the record was read.
#[derive(Clone, Copy, Debug)]
pub struct RecordHeaders<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Iterator for RecordHeaders<'a> {
    type Item = RecordHeader<'a>;

    fn next(&mut self) -> Option<RecordHeader<'a>> {
        self.left = self.left.checked_sub(1)?;
        read_header(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for RecordHeaders<'_> {}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// A field does not have its layout.
    Field(DecodeError),
    /// The attributes of a record are 0 in this format version.
    UnknownAttributes {
        /// What they are.
        attributes: u8,
    },
    /// A length is negative where -1 is not allowed, or below -1.
    NegativeLength {
        /// The length.
        length: i32,
    },
    /// The number of headers is negative or above the limit.
    HeaderCount {
        /// The number.
        count: i32,
    },
    /// The key of a header is not UTF-8.
    HeaderKeyNotUtf8,
    /// The records of a batch are numbered 0, 1, 2 and so on.
    OffsetDelta {
        /// What the record says.
        delta: i32,
        /// What it must say.
        expected: u32,
    },
    /// The record is larger than allowed.
    TooLarge {
        /// Bytes of key, value and headers.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
}

impl From<DecodeError> for RecordError {
    fn from(error: DecodeError) -> RecordError {
        RecordError::Field(error)
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Field(error) => error.fmt(f),
            RecordError::UnknownAttributes { attributes } => {
                write!(f, "attributes are {attributes:#04x}, only 0 is allowed")
            }
            RecordError::NegativeLength { length } => {
                write!(
                    f,
                    "a length is {length}, at least -1 for none is allowed, 0 for a header key"
                )
            }
            RecordError::HeaderCount { count } => {
                write!(f, "{count} headers, from 0 to {HEADERS_PER_RECORD_MAX} are allowed")
            }
            RecordError::HeaderKeyNotUtf8 => f.write_str("the key of a header is not UTF-8"),
            RecordError::OffsetDelta { delta, expected } => {
                write!(f, "the offset delta is {delta}, it must be {expected}")
            }
            RecordError::TooLarge { bytes, max } => {
                write!(f, "key, value and headers have {bytes} bytes, at most {max} are allowed")
            }
        }
    }
}

impl std::error::Error for RecordError {}

/// A record before its deltas are added to what the batch header says.
pub(crate) struct RawRecord<'a> {
    pub(crate) timestamp_delta: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) header_count: u32,
    pub(crate) header_bytes: &'a [u8],
    pub(crate) payload_bytes: usize,
}

/// Reads the record that must be the `index`-th of its batch.
#[inline]
pub(crate) fn read_record<'a>(
    records: &mut Reader<'a>,
    index: u32,
) -> Result<RawRecord<'a>, RecordError> {
    let length = records.varint_i32()?;
    let Ok(length) = usize::try_from(length) else {
        return Err(RecordError::NegativeLength { length });
    };
    let mut body = Reader::new(records.bytes(length)?);
    let attributes = body.u8()?;
    if attributes != 0 {
        return Err(RecordError::UnknownAttributes { attributes });
    }
    let timestamp_delta = body.varint_i64()?;
    let delta = body.varint_i32()?;
    if u32::try_from(delta) != Ok(index) {
        return Err(RecordError::OffsetDelta { delta, expected: index });
    }
    let key = read_field(&mut body)?;
    let value = read_field(&mut body)?;
    let count = body.varint_i32()?;
    let header_count = u32::try_from(count)
        .ok()
        .filter(|count| *count <= HEADERS_PER_RECORD_MAX)
        .ok_or(RecordError::HeaderCount { count })?;
    let header_bytes = body.rest();
    let mut payload_bytes = bytes_of(key) + bytes_of(value);
    for _ in 0..header_count {
        let header = read_header(&mut body)?;
        payload_bytes += header.key.len() + bytes_of(header.value);
    }
    body.finish()?;
    Ok(RawRecord { timestamp_delta, key, value, header_count, header_bytes, payload_bytes })
}

#[inline]
fn read_field<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, RecordError> {
    let length = reader.varint_i32()?;
    match usize::try_from(length) {
        Ok(length) => Ok(Some(reader.bytes(length)?)),
        Err(_) if length == -1 => Ok(None),
        Err(_) => Err(RecordError::NegativeLength { length }),
    }
}

fn read_header<'a>(reader: &mut Reader<'a>) -> Result<RecordHeader<'a>, RecordError> {
    let key = read_field(reader)?.ok_or(RecordError::NegativeLength { length: -1 })?;
    let key = std::str::from_utf8(key).map_err(|_| RecordError::HeaderKeyNotUtf8)?;
    Ok(RecordHeader { key, value: read_field(reader)? })
}
