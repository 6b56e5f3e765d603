//! Answers: what a request is told, and the one place where errors become wire codes.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use quinn_proto::{SendStream, WriteError};
use rustmq_engine::partition::SequenceError;
use rustmq_engine::{AppendError, FetchError};
use rustmq_metadata::ApplyError;
use rustmq_metadata::topic_config::ConfigError;
use rustmq_protocol::frame::{
    ErrorBody, FrameError, FrameFlags, FrameHeader, PROTOCOL_VERSION_MIN, ThrottledBody,
    UnsupportedVersionBody, VersionRange,
};
use rustmq_protocol::limits::FRAME_HEADER_BYTES;
use rustmq_protocol::topic_name::TopicNameError;
use rustmq_protocol::{
    BatchError, CorrelationId, DecodeError, ErrorCode, Offset, RecordError, ShardId,
};
use rustmq_sys::alloc::{Tag, within};

use crate::budget::Charge;

/// Bodies up to this size travel without an allocation: a produce response is 32 bytes.
pub const SMALL_BODY_BYTES: usize = 48;

/// An answer, before it is framed: it may still have to cross to another shard.
#[derive(Debug)]
pub struct Response {
    /// OK, or why not.
    pub status: ErrorCode,
    /// What follows the frame's header.
    pub body: ResponseBody,
}

/// The body of an answer.
#[derive(Debug)]
pub enum ResponseBody {
    /// A few bytes, held in place.
    Small {
        /// The bytes; those from `len` on mean nothing.
        bytes: [u8; SMALL_BODY_BYTES],
        /// How many count.
        len: u8,
    },
    /// Slices of the hot cache and of read buffers.
    Chunks(Vec<Bytes>),
}

impl Response {
    /// Success, with a body of at most [`SMALL_BODY_BYTES`].
    pub(crate) fn small(body: &[u8]) -> Self {
        let mut bytes = [0; SMALL_BODY_BYTES];
        bytes[..body.len()].copy_from_slice(body);
        Self { status: ErrorCode::Ok, body: ResponseBody::Small { bytes, len: body.len() as u8 } }
    }

    /// Bytes of the body.
    pub(crate) fn body_bytes(&self) -> usize {
        match &self.body {
            ResponseBody::Small { len, .. } => usize::from(*len),
            ResponseBody::Chunks(chunks) => chunks.iter().map(Bytes::len).sum(),
        }
    }

    /// Success, with a body in pieces.
    pub(crate) fn chunks(chunks: Vec<Bytes>) -> Self {
        Self { status: ErrorCode::Ok, body: ResponseBody::Chunks(chunks) }
    }

    /// Success, with a body that `encode` appends.
    pub(crate) fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut body = Vec::new();
        encode(&mut body);
        Self::chunks(vec![Bytes::from(body)])
    }
}

/// A framed answer on its way into a stream.
pub(crate) enum Reply {
    Small { bytes: [u8; FRAME_HEADER_BYTES + SMALL_BODY_BYTES], len: u8, sent: u8 },
    Chunks { chunks: Vec<Bytes>, sent: usize, bytes: usize },
}

impl Reply {
    /// Frames the body of an answer.
    pub(crate) fn frame(header: FrameHeader, body: ResponseBody) -> Self {
        match body {
            ResponseBody::Small { bytes: body, len } => {
                let mut bytes = [0; FRAME_HEADER_BYTES + SMALL_BODY_BYTES];
                let header = header.with_body_bytes(usize::from(len));
                bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
                bytes[FRAME_HEADER_BYTES..].copy_from_slice(&body);
                Self::Small { bytes, len: FRAME_HEADER_BYTES as u8 + len, sent: 0 }
            }
            ResponseBody::Chunks(mut chunks) => {
                let body_bytes = chunks.iter().map(Bytes::len).sum();
                let header = header.with_body_bytes(body_bytes);
                chunks.insert(0, Bytes::copy_from_slice(&header.encode()));
                Self::Chunks { chunks, sent: 0, bytes: FRAME_HEADER_BYTES + body_bytes }
            }
        }
    }

    /// Charges a reply in pieces with what `charge` takes for its bytes, until the peer has
    /// acknowledged the last of them. The others are small and bounded by the requests in flight.
    pub(crate) fn charge(&mut self, charge: impl FnOnce(usize) -> Charge) {
        let Self::Chunks { chunks, bytes, .. } = self else { return };
        // Acknowledged data is let go from the front, so the last piece goes last.
        if let Some(last) = chunks.iter_mut().rfind(|chunk| !chunk.is_empty()) {
            let charged = Charged { bytes: std::mem::take(last), _charge: charge(*bytes) };
            *last = Bytes::from_owner(charged);
        }
    }

    /// Bytes of the whole frame.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Small { len, .. } => usize::from(*len),
            Self::Chunks { bytes, .. } => *bytes,
        }
    }

    /// Writes what is left; `Blocked` means that the rest has to wait.
    pub(crate) fn write(&mut self, stream: &mut SendStream<'_>) -> Result<(), WriteError> {
        match self {
            Self::Small { bytes, len, sent } => {
                while sent < len {
                    let rest = &bytes[usize::from(*sent)..usize::from(*len)];
                    let written = within(Tag::Quic, || stream.write(rest))?;
                    *sent += written as u8;
                }
            }
            Self::Chunks { chunks, sent, .. } => {
                while *sent < chunks.len() {
                    let rest = &mut chunks[*sent..];
                    *sent += within(Tag::Quic, || stream.write_chunks(rest))?.chunks;
                }
            }
        }
        Ok(())
    }
}

/// Bytes that give back what they were charged with when they are let go.
struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The last answer on a stream whose framing is lost: it belongs to no request.
pub(crate) fn framing_error(error: &FrameError) -> Reply {
    let header = FrameHeader {
        length: 0,
        kind: 0,
        version: PROTOCOL_VERSION_MIN,
        flags: FrameFlags::NONE,
        correlation: CorrelationId(0),
        status: 0,
        shard: ShardId(0),
    };
    let response = message(error.code(), error.to_string());
    Reply::frame(header.response(response.status), response.body)
}

/// Everything that a request can be told other than success.
#[derive(Debug)]
pub(crate) enum RequestError {
    Malformed(DecodeError),
    TooShort,
    TooLong { bytes_max: usize },
    UnknownRequest { kind: u16 },
    UnexpectedFlags { flags: u8 },
    HelloRequired,
    UnsupportedVersion { supported: VersionRange },
    NotAuthorized { why: String },
    UnknownTopic { name: String },
    UnknownTopicId,
    UnknownPartition { partitions: u32 },
    Elsewhere { owner: ShardId },
    SubscriptionExists,
    InvalidName(TopicNameError),
    InvalidConfig(ConfigError),
    Refused(ApplyError),
    Batch(BatchError),
    BatchTooLarge { bytes: usize, bytes_max: usize },
    Append(AppendError),
    Fetch(FetchError),
    LimitExceeded { what: &'static str, max: usize },
    StorageFull,
    StorageCorrupt { why: String },
    Damaged { partition: String, range: Range<Offset>, file: Rc<str> },
    Throttled { what: &'static str, retry_after_ms: u32 },
    Timeout,
    Interrupted,
    ShuttingDown,
}

impl RequestError {
    /// The stable wire code of each error: the only such table.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed(_) | Self::TooShort | Self::TooLong { .. } => ErrorCode::MalformedFrame,
            Self::UnknownRequest { .. } => ErrorCode::UnknownRequest,
            Self::UnexpectedFlags { .. } => ErrorCode::MalformedFrame,
            Self::HelloRequired => ErrorCode::HelloRequired,
            Self::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            Self::NotAuthorized { .. } => ErrorCode::NotAuthorized,
            Self::UnknownTopic { .. } => ErrorCode::UnknownTopic,
            Self::UnknownTopicId => ErrorCode::UnknownTopicId,
            Self::UnknownPartition { .. } => ErrorCode::UnknownPartition,
            Self::Elsewhere { .. } => ErrorCode::NotLeader,
            Self::SubscriptionExists => ErrorCode::InvalidRequest,
            Self::InvalidName(_) => ErrorCode::InvalidTopicName,
            Self::InvalidConfig(_) => ErrorCode::InvalidConfig,
            Self::Refused(error) => apply_code(error),
            Self::Batch(error) => batch_code(error),
            Self::BatchTooLarge { .. } => ErrorCode::BatchTooLarge,
            Self::Append(error) => append_code(error),
            Self::Fetch(error) => fetch_code(error),
            Self::LimitExceeded { .. } => ErrorCode::LimitExceeded,
            Self::StorageFull => ErrorCode::StorageFull,
            Self::StorageCorrupt { .. } | Self::Damaged { .. } => ErrorCode::StorageCorrupt,
            Self::Throttled { .. } => ErrorCode::Throttled,
            Self::Timeout => ErrorCode::Timeout,
            Self::Interrupted => ErrorCode::Interrupted,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }

    /// The answer: the code, and a sentence for a human.
    pub(crate) fn response(&self) -> Response {
        if let Self::UnsupportedVersion { supported } = self {
            let body = UnsupportedVersionBody { message: self.to_string(), supported: *supported };
            let mut response = Response::encoded(|out| body.encode(out));
            response.status = self.code();
            return response;
        }
        if let Self::Throttled { retry_after_ms, .. } = *self {
            let body = ThrottledBody { message: self.to_string(), retry_after_ms };
            let mut response = Response::encoded(|out| body.encode(out));
            response.status = self.code();
            return response;
        }
        message(self.code(), self.to_string())
    }
}

fn message(code: ErrorCode, message: String) -> Response {
    let mut response = Response::encoded(|out| ErrorBody { message }.encode(out));
    response.status = code;
    response
}

fn append_code(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::FencedLeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
        AppendError::UnknownLeaderEpoch { .. } => ErrorCode::UnknownLeaderEpoch,
        AppendError::OffsetsExhausted => ErrorCode::LimitExceeded,
        AppendError::Damaged => ErrorCode::StorageCorrupt,
        AppendError::Sequence(error) => match error {
            SequenceError::UnknownProducer => ErrorCode::UnknownProducerId,
            SequenceError::FencedEpoch { .. } => ErrorCode::FencedProducerEpoch,
            SequenceError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
            SequenceError::DuplicateForgotten => ErrorCode::DuplicateSequence,
            SequenceError::TooMany { .. } => ErrorCode::LimitExceeded,
        },
    }
}

fn fetch_code(error: &FetchError) -> ErrorCode {
    match error {
        FetchError::FencedLeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
        FetchError::UnknownLeaderEpoch { .. } => ErrorCode::UnknownLeaderEpoch,
        FetchError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        FetchError::Damaged { .. } => ErrorCode::StorageCorrupt,
    }
}

fn batch_code(error: &BatchError) -> ErrorCode {
    match error {
        BatchError::Record { error: RecordError::TooLarge { .. }, .. } => ErrorCode::RecordTooLarge,
        BatchError::UnsupportedCompression { .. } => ErrorCode::UnsupportedCompression,
        _ => ErrorCode::CorruptBatch,
    }
}

fn apply_code(error: &ApplyError) -> ErrorCode {
    match error {
        ApplyError::TopicExists { .. } => ErrorCode::TopicExists,
        ApplyError::UnknownTopic { .. } => ErrorCode::UnknownTopicId,
        ApplyError::PartitionCount { .. } => ErrorCode::InvalidPartitionCount,
        ApplyError::ReplicationFactor { .. } => ErrorCode::InvalidReplicationFactor,
        ApplyError::LimitExceeded { .. } => ErrorCode::LimitExceeded,
        _ => ErrorCode::InvalidRequest,
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "{error}"),
            Self::TooShort => f.write_str("the body is shorter than its kind requires"),
            Self::TooLong { bytes_max } => write!(f, "the body may have {bytes_max} bytes"),
            Self::UnknownRequest { kind } => {
                write!(f, "request kind {kind} is not known in the version agreed by Hello")
            }
            Self::UnexpectedFlags { flags } => {
                write!(f, "flags {flags:#04x}, a request has none")
            }
            Self::HelloRequired => f.write_str("the first request of a connection must be Hello"),
            Self::UnsupportedVersion { supported } => {
                write!(
                    f,
                    "protocol versions {} to {} are spoken here",
                    supported.min, supported.max
                )
            }
            Self::NotAuthorized { why } => f.write_str(why),
            Self::UnknownTopic { name } => write!(f, "there is no topic {name:?}"),
            Self::UnknownTopicId => f.write_str("no topic has this id; it may have been deleted"),
            Self::UnknownPartition { partitions } => {
                write!(f, "the topic has {partitions} partitions, counted from 0")
            }
            Self::Elsewhere { owner } => {
                write!(f, "shard {owner} of this broker has the partition: subscribe there")
            }
            Self::SubscriptionExists => f.write_str(
                "a subscription on this stream has this correlation id: use another one",
            ),
            Self::InvalidName(error) => write!(f, "{error}"),
            Self::InvalidConfig(error) => write!(f, "{error}"),
            Self::Refused(error) => write!(f, "{error}"),
            Self::Batch(error) => write!(f, "{error}"),
            Self::BatchTooLarge { bytes, bytes_max } => {
                write!(f, "the batch has {bytes} bytes, at most {bytes_max} are allowed")
            }
            Self::Append(error) => append_message(error, f),
            Self::Fetch(error) => fetch_message(error, f),
            Self::LimitExceeded { what, max } => write!(f, "{what}: at most {max} are allowed"),
            Self::StorageFull => {
                f.write_str("the write-ahead log is full and nothing in it may be dropped yet")
            }
            Self::StorageCorrupt { why } => f.write_str(why),
            Self::Damaged { partition, range, file } => write!(
                f,
                "records {} to before {} of {partition} are damaged on disk ({file}) and are not \
                 served: restore the file from a copy, or read on from offset {}",
                range.start, range.end, range.end
            ),
            Self::Throttled { what, retry_after_ms } => {
                write!(f, "{what}; send again after {retry_after_ms} ms")
            }
            Self::Timeout => f.write_str("the time allowed ended before the records were durable"),
            Self::Interrupted => f.write_str("the broker stops before the outcome is known"),
            Self::ShuttingDown => f.write_str("the broker is shutting down"),
        }
    }
}

fn append_message(error: &AppendError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        AppendError::FencedLeaderEpoch { current }
        | AppendError::UnknownLeaderEpoch { current } => {
            write!(f, "the partition is led in epoch {current}")
        }
        AppendError::OffsetsExhausted => f.write_str("the partition has no offset left"),
        AppendError::Damaged => f.write_str("too much of the partition is damaged on disk"),
        AppendError::Sequence(error) => match error {
            SequenceError::UnknownProducer => {
                f.write_str("nothing is known of this producer; it must begin at sequence 0")
            }
            SequenceError::FencedEpoch { current } => {
                write!(f, "the producer has moved on to epoch {current}")
            }
            SequenceError::OutOfOrder { expected } => {
                write!(f, "the next sequence of this producer is {expected}")
            }
            SequenceError::DuplicateForgotten => {
                f.write_str("a batch sent again so late that its offset is forgotten")
            }
            SequenceError::TooMany { max } => {
                write!(f, "the partition remembers {max} producers and can take no more")
            }
        },
    }
}

fn fetch_message(error: &FetchError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        FetchError::FencedLeaderEpoch { current } | FetchError::UnknownLeaderEpoch { current } => {
            write!(f, "the partition is led in epoch {current}")
        }
        FetchError::OffsetOutOfRange { readable } => {
            write!(f, "offsets {} to {} can be asked for", readable.start, readable.end)
        }
        FetchError::Damaged { range } => {
            write!(f, "records {} to before {} are damaged on disk", range.start, range.end)
        }
    }
}

impl From<DecodeError> for RequestError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl From<AppendError> for RequestError {
    fn from(error: AppendError) -> Self {
        Self::Append(error)
    }
}

impl From<FetchError> for RequestError {
    fn from(error: FetchError) -> Self {
        Self::Fetch(error)
    }
}

impl From<BatchError> for RequestError {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}
