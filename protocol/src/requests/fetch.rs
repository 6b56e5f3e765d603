//! Batches from the log, and offsets looked up in it.

use crate::codec::{DecodeError, Reader};
use crate::ids::{LeaderEpoch, Offset, PartitionId, TimestampMs, TopicId, TopicPartition};

/// Bytes of the body of a fetch request.
pub const FETCH_BYTES: usize = 48;

/// Bytes before the batches in the response to a fetch.
pub const FETCH_RESPONSE_HEAD_BYTES: usize = 24;

/// Asks for the batches of one partition from an offset on.
///
/// Answered at once if `bytes_min` are there or the answer ends before the high watermark does, else
/// when they are or when the wait is over, then with what there is, which may be nothing.
///
/// ```text
/// 0 topic id | 16 u32 partition | 20 u32 leader epoch | 24 u64 offset
/// 32 u32 wait, ms | 36 u32 bytes at least | 40 u32 bytes at most | 44 zero, four bytes
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The leader epoch that the client got from the metadata.
    pub leader_epoch: LeaderEpoch,
    /// The first offset wanted. The first batch may begin before it; the client skips those
    /// records.
    pub offset: Offset,
    /// Milliseconds to wait for records, cut to [`FETCH_WAIT_MS_MAX`](crate::FETCH_WAIT_MS_MAX).
    pub wait_ms_max: u32,
    /// Bytes of batches that end the wait.
    pub bytes_min: u32,
    /// Bytes of batches to return, cut to [`FETCH_BYTES_MAX`](crate::FETCH_BYTES_MAX). The first
    /// batch is returned whole even if it is larger.
    pub bytes_max: u32,
}

impl Fetch {
    /// The partition with its topic.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: self.topic, partition: self.partition }
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(&self.partition.0.to_le_bytes());
        out.extend_from_slice(&self.leader_epoch.0.to_le_bytes());
        out.extend_from_slice(&self.offset.0.to_le_bytes());
        out.extend_from_slice(&self.wait_ms_max.to_le_bytes());
        out.extend_from_slice(&self.bytes_min.to_le_bytes());
        out.extend_from_slice(&self.bytes_max.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<Fetch, DecodeError> {
        let mut reader = Reader::new(bytes);
        let request = Fetch {
            topic: TopicId::from_bytes(*reader.array()?),
            partition: PartitionId(reader.u32()?),
            leader_epoch: LeaderEpoch(reader.u32()?),
            offset: Offset(reader.u64()?),
            wait_ms_max: reader.u32()?,
            bytes_min: reader.u32()?,
            bytes_max: reader.u32()?,
        };
        reader.padding::<4>()?;
        reader.finish()?;
        Ok(request)
    }
}

/// What precedes the batches in the response to a fetch: `u64` each, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchResponseHead {
    /// Records below it are on every replica in sync and may be read.
    pub high_watermark: Offset,
    /// The oldest offset that the partition still has.
    pub log_start_offset: Offset,
    /// The next offset that the leader will assign.
    pub log_end_offset: Offset,
}

impl FetchResponseHead {
    /// The head as it is on the wire.
    pub fn encode(&self) -> [u8; FETCH_RESPONSE_HEAD_BYTES] {
        let mut out = [0; FETCH_RESPONSE_HEAD_BYTES];
        let (high_watermark, rest) = out.split_at_mut(8);
        high_watermark.copy_from_slice(&self.high_watermark.0.to_le_bytes());
        let (log_start_offset, log_end_offset) = rest.split_at_mut(8);
        log_start_offset.copy_from_slice(&self.log_start_offset.0.to_le_bytes());
        log_end_offset.copy_from_slice(&self.log_end_offset.0.to_le_bytes());
        out
    }

    /// Reads a head.
    pub fn decode(
        bytes: &[u8; FETCH_RESPONSE_HEAD_BYTES],
    ) -> Result<FetchResponseHead, DecodeError> {
        let mut reader = Reader::new(bytes);
        Ok(FetchResponseHead {
            high_watermark: Offset(reader.u64()?),
            log_start_offset: Offset(reader.u64()?),
            log_end_offset: Offset(reader.u64()?),
        })
    }
}

/// The body of the response to a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchResponse<'a> {
    /// Where the log begins and ends.
    pub head: FetchResponseHead,
    /// Batches back to back; [`batches`](crate::batches) takes them apart.
    pub batches: &'a [u8],
}

impl<'a> FetchResponse<'a> {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head.encode());
        out.extend_from_slice(self.batches);
    }

    /// Reads the head; the batches are everything behind it.
    pub fn decode(bytes: &'a [u8]) -> Result<FetchResponse<'a>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let head = FetchResponseHead::decode(reader.array()?)?;
        Ok(FetchResponse { head, batches: reader.rest() })
    }
}

/// Looks up an offset of one partition.
///
/// ```text
/// 0 topic id | 16 u32 partition | 20 u32 leader epoch
/// 24 u8 at | 25 zero, seven bytes | 32 i64 timestamp
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListOffsets {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The leader epoch that the client got from the metadata.
    pub leader_epoch: LeaderEpoch,
    /// Which offset.
    pub at: OffsetAt,
}

/// Which offset is looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffsetAt {
    /// The log start offset. On the wire 0.
    Earliest,
    /// The high watermark. On the wire 1.
    Latest,
    /// The first record whose timestamp is this or later. On the wire 2.
    Timestamp(TimestampMs),
}

impl ListOffsets {
    /// The partition with its topic.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: self.topic, partition: self.partition }
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (at, timestamp) = match self.at {
            OffsetAt::Earliest => (0, TimestampMs(0)),
            OffsetAt::Latest => (1, TimestampMs(0)),
            OffsetAt::Timestamp(timestamp) => (2, timestamp),
        };
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(&self.partition.0.to_le_bytes());
        out.extend_from_slice(&self.leader_epoch.0.to_le_bytes());
        out.extend_from_slice(&[at, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&timestamp.0.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<ListOffsets, DecodeError> {
        let mut reader = Reader::new(bytes);
        let topic = TopicId::from_bytes(*reader.array()?);
        let partition = PartitionId(reader.u32()?);
        let leader_epoch = LeaderEpoch(reader.u32()?);
        let at = reader.u8()?;
        reader.padding::<7>()?;
        let timestamp = reader.i64()?;
        reader.finish()?;
        let at = match (at, timestamp) {
            (0, 0) => OffsetAt::Earliest,
            (1, 0) => OffsetAt::Latest,
            (0 | 1, _) => return Err(DecodeError::PaddingNotZero),
            (2, timestamp) => OffsetAt::Timestamp(TimestampMs(timestamp)),
            _ => {
                return Err(DecodeError::UnknownValue { field: "at", value: u64::from(at) });
            }
        };
        Ok(ListOffsets { topic, partition, leader_epoch, at })
    }
}

/// The offset that was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListOffsetsResponse {
    /// The offset; with a timestamp beyond the last record, the high watermark.
    pub offset: Offset,
    /// The timestamp of the record there; -1 if there is none or it was not asked for.
    pub timestamp: TimestampMs,
    /// The leader epoch of the partition.
    pub leader_epoch: LeaderEpoch,
}

impl ListOffsetsResponse {
    /// Appends the body: `u64` offset, `i64` timestamp, `u32` leader epoch.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.0.to_le_bytes());
        out.extend_from_slice(&self.timestamp.0.to_le_bytes());
        out.extend_from_slice(&self.leader_epoch.0.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<ListOffsetsResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = ListOffsetsResponse {
            offset: Offset(reader.u64()?),
            timestamp: TimestampMs(reader.i64()?),
            leader_epoch: LeaderEpoch(reader.u32()?),
        };
        reader.finish()?;
        Ok(response)
    }
}
