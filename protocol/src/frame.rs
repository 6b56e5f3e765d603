//! The sixteen bytes before every request and response, the kinds of requests, and the body of an
//! error.
//!
//! ```text
//!  0 u32 length of the frame, header included
//!  4 u16 kind           6 u8 version      7 u8 flags: bit 0 RESPONSE, bit 1 MOVED, bit 2 MORE
//!  8 u32 correlation id
//! 12 u16 status: error code, 0 in requests
//! 14 u16 shard: with MOVED the shard that owns the partition, else 0
//! 16 body
//! ```

use std::fmt;

use crate::codec::{DecodeError, Reader, put_text_cut};
use crate::error_code::ErrorCode;
use crate::ids::{CorrelationId, ShardId};
use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, RETRY_AFTER_MS_MAX, STRING_BYTES_MAX};

/// The oldest protocol version that this code speaks.
pub const PROTOCOL_VERSION_MIN: u8 = 1;

/// The newest protocol version that this code speaks.
pub const PROTOCOL_VERSION_MAX: u8 = 2;

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Bytes of the frame, header included.
    pub length: u32,
    /// What is asked or answered, see [`RequestKind`]; the same in request and response.
    pub kind: u16,
    /// The protocol version of the body.
    pub version: u8,
    /// Whether this is a response, and whether the partition lives elsewhere.
    pub flags: FrameFlags,
    /// Chosen by the client, repeated in the response.
    pub correlation: CorrelationId,
    /// The number of an [`ErrorCode`]; 0 in requests.
    pub status: u16,
    /// With [`FrameFlags::MOVED`] the shard that owns the partition.
    pub shard: ShardId,
}

/// The flags of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameFlags(u8);

impl FrameFlags {
    /// A request.
    pub const NONE: FrameFlags = FrameFlags(0);
    /// The frame answers a request.
    pub const RESPONSE: FrameFlags = FrameFlags(1);
    /// The partition is owned by the shard that the header names. The response counts: the request
    /// was forwarded there, or the status says that it has to be sent there.
    pub const MOVED: FrameFlags = FrameFlags(2);
    /// More answers to the same request follow. Since version 2.
    pub const MORE: FrameFlags = FrameFlags(4);

    const KNOWN: u8 = 0b111;

    /// True if all of `flags` are set.
    pub fn contains(self, flags: FrameFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and `flags`.
    #[must_use]
    pub fn with(self, flags: FrameFlags) -> FrameFlags {
        FrameFlags(self.0 | flags.0)
    }

    /// The bits as they are on the wire.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The flags with these bits, or `None` if a bit is set that has no meaning.
    pub fn from_bits(bits: u8) -> Option<FrameFlags> {
        (bits & !FrameFlags::KNOWN == 0).then_some(FrameFlags(bits))
    }
}

/// Why bytes are not the header of a frame. The stream cannot be read any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The length is below the header's.
    TooShort {
        /// What it says.
        length: u32,
    },
    /// The length is above the limit.
    TooLarge {
        /// What it says.
        length: u32,
    },
    /// A flag is set that has no meaning.
    UnknownFlags {
        /// All flags.
        flags: u8,
    },
}

impl FrameError {
    /// The code that the peer gets.
    pub fn code(self) -> ErrorCode {
        match self {
            FrameError::TooShort { .. } | FrameError::UnknownFlags { .. } => {
                ErrorCode::MalformedFrame
            }
            FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooShort { length } => {
                write!(f, "a frame of {length} bytes, at least {FRAME_HEADER_BYTES} are allowed")
            }
            FrameError::TooLarge { length } => {
                write!(f, "a frame of {length} bytes, at most {FRAME_BYTES_MAX} are allowed")
            }
            FrameError::UnknownFlags { flags } => {
                write!(f, "flags {flags:#04x}, only bits 0 to 2 are allowed")
            }
        }
    }
}

impl std::error::Error for FrameError {}

impl FrameHeader {
    /// The header of a request without a body, in the oldest version that knows its kind.
    pub fn request(kind: RequestKind, correlation: CorrelationId) -> FrameHeader {
        FrameHeader {
            length: FRAME_HEADER_BYTES as u32,
            kind: kind as u16,
            version: kind.version_min(),
            flags: FrameFlags::NONE,
            correlation,
            status: 0,
            shard: ShardId(0),
        }
    }

    /// The header of the response to `self` without a body.
    #[must_use]
    pub fn response(&self, status: ErrorCode) -> FrameHeader {
        FrameHeader {
            length: FRAME_HEADER_BYTES as u32,
            flags: FrameFlags::RESPONSE,
            status: status as u16,
            shard: ShardId(0),
            ..*self
        }
    }

    /// The same, telling that the partition is owned by `shard`.
    #[must_use]
    pub fn moved_to(self, shard: ShardId) -> FrameHeader {
        FrameHeader { flags: self.flags.with(FrameFlags::MOVED), shard, ..self }
    }

    /// The same in the version that Hello agreed on.
    #[must_use]
    pub fn in_version(self, version: u8) -> FrameHeader {
        FrameHeader { version, ..self }
    }

    /// The same, telling that more answers follow.
    #[must_use]
    pub fn with_more(self) -> FrameHeader {
        FrameHeader { flags: self.flags.with(FrameFlags::MORE), ..self }
    }

    /// The same with the length of a frame whose body has `bytes`.
    ///
    /// # Panics
    /// If the frame would exceed [`FRAME_BYTES_MAX`]: who builds a body keeps it below.
    #[must_use]
    pub fn with_body_bytes(self, bytes: usize) -> FrameHeader {
        assert!(bytes <= FRAME_BYTES_MAX - FRAME_HEADER_BYTES, "a body fits into a frame");
        FrameHeader { length: (FRAME_HEADER_BYTES + bytes) as u32, ..self }
    }

    /// Reads a header. The length is held against the limits of the protocol, the version is not
    /// looked at.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let &[l0, l1, l2, l3, k0, k1, version, flags, c0, c1, c2, c3, e0, e1, s0, s1] = bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if (length as usize) < FRAME_HEADER_BYTES {
            return Err(FrameError::TooShort { length });
        }
        if FRAME_BYTES_MAX < length as usize {
            return Err(FrameError::TooLarge { length });
        }
        Ok(FrameHeader {
            length,
            kind: u16::from_le_bytes([k0, k1]),
            version,
            flags: FrameFlags::from_bits(flags).ok_or(FrameError::UnknownFlags { flags })?,
            correlation: CorrelationId(u32::from_le_bytes([c0, c1, c2, c3])),
            status: u16::from_le_bytes([e0, e1]),
            shard: ShardId(u16::from_le_bytes([s0, s1])),
        })
    }

    /// The header as it is on the wire.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let [l0, l1, l2, l3] = self.length.to_le_bytes();
        let [k0, k1] = self.kind.to_le_bytes();
        let [c0, c1, c2, c3] = self.correlation.0.to_le_bytes();
        let [e0, e1] = self.status.to_le_bytes();
        let [s0, s1] = self.shard.0.to_le_bytes();
        let (version, flags) = (self.version, self.flags.bits());
        [l0, l1, l2, l3, k0, k1, version, flags, c0, c1, c2, c3, e0, e1, s0, s1]
    }

    /// Appends a whole frame: this header with the right length, and the body that `body` appends.
    ///
    /// # Panics
    /// If the frame would exceed [`FRAME_BYTES_MAX`]: who builds a body keeps it below.
    pub fn encode_frame(&self, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        body(out);
        let header = self.with_body_bytes(out.len() - start - FRAME_HEADER_BYTES);
        let place = out.get_mut(start..).and_then(|frame| frame.first_chunk_mut());
        *place.expect("room for the header was made above") = header.encode();
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        (self.length as usize).saturating_sub(FRAME_HEADER_BYTES)
    }

    /// The error code in the status; a number that is not known counts as [`ErrorCode::Internal`].
    pub fn error_code(&self) -> ErrorCode {
        ErrorCode::from_u16(self.status).unwrap_or(ErrorCode::Internal)
    }
}

/// What can be asked. Numbers never change their meaning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u16)]
pub enum RequestKind {
    /// Opens a connection: versions, limits, who answers.
    Hello = 1,
    /// Brokers, topics, partitions and where they are.
    Metadata = 2,
    /// Creates a topic.
    CreateTopic = 3,
    /// Deletes a topic and its records.
    DeleteTopic = 4,
    /// All topics by name.
    ListTopics = 5,
    /// Hands out a producer id.
    InitProducer = 6,
    /// Appends one batch to one partition.
    Produce = 16,
    /// Reads batches of one partition.
    Fetch = 17,
    /// Looks up an offset of one partition.
    ListOffsets = 18,
    /// Sends batches of one partition as they come, for as long as there is credit.
    Subscribe = 19,
    /// Gives a subscription more credit, or ends it.
    Credit = 20,
}

impl RequestKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: &[RequestKind] = &[
        RequestKind::Hello,
        RequestKind::Metadata,
        RequestKind::CreateTopic,
        RequestKind::DeleteTopic,
        RequestKind::ListTopics,
        RequestKind::InitProducer,
        RequestKind::Produce,
        RequestKind::Fetch,
        RequestKind::ListOffsets,
        RequestKind::Subscribe,
        RequestKind::Credit,
    ];

    /// The kind with this number.
    pub fn from_u16(number: u16) -> Option<RequestKind> {
        RequestKind::ALL.iter().copied().find(|kind| *kind as u16 == number)
    }

    /// The oldest protocol version that knows this kind.
    pub fn version_min(self) -> u8 {
        match self {
            RequestKind::Subscribe | RequestKind::Credit => 2,
            _ => PROTOCOL_VERSION_MIN,
        }
    }
}

/// The body of every response whose status is not OK: a message for a human.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErrorBody {
    /// What was wrong with this request; may be empty.
    pub message: String,
}

impl ErrorBody {
    /// Appends the body. A message beyond [`STRING_BYTES_MAX`] is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text_cut(out, &self.message);
    }

    /// Reads the body. What follows the message belongs to the code and is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<ErrorBody, DecodeError> {
        let message = Reader::new(bytes).text(STRING_BYTES_MAX)?.to_owned();
        Ok(ErrorBody { message })
    }
}

/// Protocol versions, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl VersionRange {
    /// What this code speaks.
    pub const SUPPORTED: VersionRange =
        VersionRange { min: PROTOCOL_VERSION_MIN, max: PROTOCOL_VERSION_MAX };

    /// True if `version` is one of them.
    pub fn contains(self, version: u8) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The newest version in both ranges.
    pub fn newest_common(self, other: VersionRange) -> Option<u8> {
        let newest = self.max.min(other.max);
        (self.min.max(other.min) <= newest).then_some(newest)
    }
}

/// The body of a response with [`ErrorCode::UnsupportedVersion`]: an [`ErrorBody`] followed by what
/// is supported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnsupportedVersionBody {
    /// What was wrong.
    pub message: String,
    /// What would be right.
    pub supported: VersionRange,
}

impl UnsupportedVersionBody {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text_cut(out, &self.message);
        out.extend_from_slice(&[self.supported.min, self.supported.max]);
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<UnsupportedVersionBody, DecodeError> {
        let mut reader = Reader::new(bytes);
        let message = reader.text(STRING_BYTES_MAX)?.to_owned();
        let supported = VersionRange { min: reader.u8()?, max: reader.u8()? };
        reader.finish()?;
        Ok(UnsupportedVersionBody { message, supported })
    }
}

/// The body of a response with [`ErrorCode::Throttled`]: an [`ErrorBody`] followed by a pause.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ThrottledBody {
    /// What there is too much of.
    pub message: String,
    /// The shortest pause, in milliseconds, before the request is sent again: at most
    /// [`RETRY_AFTER_MS_MAX`].
    pub retry_after_ms: u32,
}

impl ThrottledBody {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text_cut(out, &self.message);
        out.extend_from_slice(&self.retry_after_ms.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<ThrottledBody, DecodeError> {
        let mut reader = Reader::new(bytes);
        let message = reader.text(STRING_BYTES_MAX)?.to_owned();
        let retry_after_ms = reader.u32()?;
        if RETRY_AFTER_MS_MAX < retry_after_ms {
            let value = u64::from(retry_after_ms);
            return Err(DecodeError::UnknownValue { field: "retry_after_ms", value });
        }
        reader.finish()?;
        Ok(ThrottledBody { message, retry_after_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_outside_the_limits_and_unknown_flags_are_refused() {
        let header = FrameHeader::request(RequestKind::Produce, CorrelationId(1));
        let mut bytes = header.encode();
        bytes[..4].copy_from_slice(&15u32.to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes), Err(FrameError::TooShort { length: 15 }));
        let length = FRAME_BYTES_MAX as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes).map(|header| header.length), Ok(length));
        bytes[..4].copy_from_slice(&(length + 1).to_le_bytes());
        let error = FrameError::TooLarge { length: length + 1 };
        assert_eq!(FrameHeader::decode(&bytes), Err(error));
        assert_eq!(error.code(), ErrorCode::FrameTooLarge);
        bytes = header.encode();
        bytes[7] = 8;
        assert_eq!(FrameHeader::decode(&bytes), Err(FrameError::UnknownFlags { flags: 8 }));
    }

    #[test]
    fn a_frame_has_the_length_of_its_header_and_body() {
        let mut out = vec![9];
        let header = FrameHeader::request(RequestKind::Hello, CorrelationId(5));
        header.encode_frame(&mut out, |out| out.extend_from_slice(b"body"));
        assert_eq!(out.len(), 1 + 16 + 4);
        assert_eq!(
            FrameHeader::decode(out[1..].first_chunk().unwrap()),
            Ok(header.with_body_bytes(4))
        );
        assert_eq!(header.with_body_bytes(4).body_bytes(), 4);
    }

    #[test]
    fn a_response_repeats_kind_version_and_correlation() {
        let request =
            FrameHeader::request(RequestKind::Fetch, CorrelationId(5)).with_body_bytes(48);
        let response = request.response(ErrorCode::NotLeader).moved_to(ShardId(3));
        assert_eq!(response.kind, request.kind);
        assert_eq!(response.correlation, request.correlation);
        assert_eq!(response.error_code(), ErrorCode::NotLeader);
        assert!(response.flags.contains(FrameFlags::RESPONSE.with(FrameFlags::MOVED)));
        assert_eq!(response.shard, ShardId(3));
        assert_eq!(response.body_bytes(), 0);
    }

    #[test]
    fn every_kind_reads_back_from_its_number_and_no_other_number_is_known() {
        let known: Vec<_> = (0..=u16::MAX).filter_map(RequestKind::from_u16).collect();
        assert_eq!(known, RequestKind::ALL);
    }

    #[test]
    fn a_request_is_made_in_a_version_that_knows_it_and_answered_in_its_own() {
        for kind in RequestKind::ALL {
            assert!(VersionRange::SUPPORTED.contains(kind.version_min()), "{kind:?}");
        }
        let fetch = FrameHeader::request(RequestKind::Fetch, CorrelationId(1));
        let subscribe = FrameHeader::request(RequestKind::Subscribe, CorrelationId(1));
        assert_eq!((fetch.version, subscribe.version), (1, 2));
        let answer = fetch.in_version(2).response(ErrorCode::Ok).with_more();
        assert_eq!(answer.version, 2);
        assert!(answer.flags.contains(FrameFlags::RESPONSE.with(FrameFlags::MORE)));
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).newest_common(range(2, 9)), Some(3));
        assert_eq!(range(4, 9).newest_common(range(1, 4)), Some(4));
        assert_eq!(range(1, 1).newest_common(range(2, 3)), None);
        assert!(VersionRange::SUPPORTED.contains(PROTOCOL_VERSION_MAX));
        assert!(!VersionRange::SUPPORTED.contains(PROTOCOL_VERSION_MAX + 1));
    }

    #[test]
    fn a_long_message_is_cut_and_what_follows_a_message_is_not_looked_at() {
        let mut out = Vec::new();
        ErrorBody { message: "x".repeat(STRING_BYTES_MAX + 1) }.encode(&mut out);
        out.extend_from_slice(b"more");
        let read = ErrorBody::decode(&out).unwrap();
        assert_eq!(read.message.len(), STRING_BYTES_MAX);
    }
}
