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

use crate::body::Body;
use crate::budget::Charge;

/// Bodies up to this size travel without an allocation: a produce response is 32 bytes.
pub const SMALL_BODY_BYTES: usize = 48;

/// An answer, before it is framed: it may still have to cross to another shard.
#[derive(Debug)]
pub struct Response {
    /// OK, or why not.
    pub status: ErrorCode,
    /// The front of the body, held in place; bytes from `small_len` on mean nothing.
    small: [u8; SMALL_BODY_BYTES],
    small_len: u8,
    /// What follows it: slices of the hot cache and of read buffers.
    rest: Body,
}

impl Response {
    /// Success, with a body of at most [`SMALL_BODY_BYTES`].
    pub(crate) fn small(body: &[u8]) -> Self {
        Self::with_front(body, Body::default())
    }

    /// Success, with a body that begins with at most [`SMALL_BODY_BYTES`] of its own.
    pub(crate) fn with_front(front: &[u8], rest: Body) -> Self {
        let mut small = [0; SMALL_BODY_BYTES];
        small[..front.len()].copy_from_slice(front);
        Self { status: ErrorCode::Ok, small, small_len: front.len() as u8, rest }
    }

    /// Success, with a body that `encode` appends.
    pub(crate) fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut body = Vec::new();
        encode(&mut body);
        Self::with_front(&[], Body::from(Bytes::from(body)))
    }

    /// Bytes of the body.
    pub(crate) fn body_bytes(&self) -> usize {
        usize::from(self.small_len) + self.rest.len()
    }

    /// The body in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.body_bytes());
        body.extend_from_slice(&self.small[..usize::from(self.small_len)]);
        self.rest.chunks().for_each(|chunk| body.extend_from_slice(chunk));
        body
    }
}

/// A framed answer on its way into a stream.
pub(crate) struct Reply {
    /// The frame's header and the front of its body, and how much of both the transport has.
    front: [u8; FRAME_HEADER_BYTES + SMALL_BODY_BYTES],
    front_len: u8,
    sent: u8,
    /// What the transport does not have yet.
    rest: Body,
    /// Of the whole frame.
    bytes: usize,
}

impl Reply {
    /// Frames an answer.
    pub(crate) fn frame(header: FrameHeader, response: Response) -> Self {
        let body_bytes = response.body_bytes();
        let header = header.with_body_bytes(body_bytes);
        let mut front = [0; FRAME_HEADER_BYTES + SMALL_BODY_BYTES];
        front[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        front[FRAME_HEADER_BYTES..].copy_from_slice(&response.small);
        Self {
            front,
            front_len: FRAME_HEADER_BYTES as u8 + response.small_len,
            sent: 0,
            rest: response.rest,
            bytes: FRAME_HEADER_BYTES + body_bytes,
        }
    }

    /// Charges a reply in pieces with what `charge` takes for its bytes, until the peer has
    /// acknowledged the last of them. The others are small and bounded by the requests in flight.
    pub(crate) fn charge(&mut self, charge: impl FnOnce(usize) -> Charge) {
        // Acknowledged data is let go from the front, so the last piece goes last.
        if let Some(last) = self.rest.last_mut() {
            let charged = Charged { bytes: std::mem::take(last), _charge: charge(self.bytes) };
            *last = Bytes::from_owner(charged);
        }
    }

    /// Bytes of the whole frame.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Writes what is left; `Blocked` means that the rest has to wait.
    pub(crate) fn write(&mut self, stream: &mut SendStream<'_>) -> Result<(), WriteError> {
        while self.sent < self.front_len {
            let rest = &self.front[usize::from(self.sent)..usize::from(self.front_len)];
            let written = within(Tag::Quic, || stream.write(rest))?;
            self.sent += written as u8;
        }
        while !self.rest.is_empty() {
            let written = within(Tag::Quic, || stream.write_chunks(self.rest.chunks_mut()))?;
            self.rest.handle_taken(written.chunks, written.bytes);
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
    Reply::frame(header.response(response.status), response)
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
