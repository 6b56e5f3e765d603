//! Why bytes are not an acceptable batch.

use std::fmt;

use super::{BATCH_FORMAT_VERSION, Compression};
use crate::ids::{Offset, TimestampMs};
use crate::limits::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, RECORDS_PER_BATCH_MAX};
use crate::record::RecordError;

/// Why bytes are not an acceptable batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// Fewer bytes than a header.
    HeaderTruncated {
        /// How many there are.
        bytes: usize,
    },
    /// The length field is below the header's or above the limit.
    LengthOutOfBounds {
        /// What it says.
        length: u32,
    },
    /// The length field is not the number of bytes there are.
    LengthMismatch {
        /// What it says.
        declared: u32,
        /// How many there are.
        actual: usize,
    },
    /// The layout is of another version.
    UnknownFormatVersion {
        /// Which.
        version: u8,
    },
    /// An attribute bit is set that has no meaning.
    UnknownAttributes {
        /// All bits.
        attributes: u16,
    },
    /// A reserved field is not zero.
    PaddingNotZero,
    /// The number of records is zero or above the limit.
    RecordCountOutOfBounds {
        /// What the header says.
        count: u32,
    },
    /// The offsets of the records pass the end of the number space.
    OffsetOverflow {
        /// Offset of the first.
        base_offset: Offset,
    },
    /// The size of the records is not what is behind the header.
    RecordsBytesMismatch {
        /// What the header says.
        declared: u32,
        /// How many there are.
        actual: u32,
    },
    /// The checksum is wrong.
    CrcMismatch {
        /// What the header says.
        declared: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// The records are compressed, which this version does not read.
    UnsupportedCompression {
        /// How.
        compression: Compression,
    },
    /// A record does not have its layout or size.
    Record {
        /// Which, counted from 0.
        index: u32,
        /// What is wrong with it.
        error: RecordError,
    },
    /// Bytes follow the last record.
    TrailingBytes {
        /// How many.
        left: usize,
    },
    /// The greatest timestamp of the records is not what the header says.
    MaxTimestampMismatch {
        /// What the header says.
        declared: TimestampMs,
        /// What the records say.
        actual: TimestampMs,
    },
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchError::HeaderTruncated { bytes } => {
                write!(f, "{bytes} bytes, a batch has at least {BATCH_HEADER_BYTES}")
            }
            BatchError::LengthOutOfBounds { length } => write!(
                f,
                "a length of {length} bytes, \
                 from {BATCH_HEADER_BYTES} to {BATCH_BYTES_MAX} are allowed"
            ),
            BatchError::LengthMismatch { declared, actual } => {
                write!(f, "the length says {declared} bytes, there are {actual}")
            }
            BatchError::UnknownFormatVersion { version } => {
                write!(f, "format version {version}, only {BATCH_FORMAT_VERSION} is allowed")
            }
            BatchError::UnknownAttributes { attributes } => {
                write!(f, "attributes {attributes:#06x}, only 0, 1 and 2 are allowed")
            }
            BatchError::PaddingNotZero => f.write_str("a reserved field of the header is not zero"),
            BatchError::RecordCountOutOfBounds { count } => {
                write!(f, "{count} records, from 1 to {RECORDS_PER_BATCH_MAX} are allowed")
            }
            BatchError::OffsetOverflow { base_offset } => {
                write!(f, "the offsets from {base_offset} on pass the greatest one")
            }
            BatchError::RecordsBytesMismatch { declared, actual } => {
                write!(f, "the header says {declared} bytes of records, there are {actual}")
            }
            BatchError::CrcMismatch { declared, computed } => {
                write!(
                    f,
                    "the header says checksum {declared:#010x}, the bytes give {computed:#010x}"
                )
            }
            BatchError::UnsupportedCompression { compression } => {
                write!(
                    f,
                    "records compressed by {compression:?}, only uncompressed ones are allowed"
                )
            }
            BatchError::Record { index, error } => write!(f, "record {index}: {error}"),
            BatchError::TrailingBytes { left } => {
                write!(f, "{left} bytes follow the last record, none are allowed")
            }
            BatchError::MaxTimestampMismatch { declared, actual } => {
                write!(
                    f,
                    "the header says {declared} is the greatest timestamp, the records say {actual}"
                )
            }
        }
    }
}

impl std::error::Error for BatchError {}
