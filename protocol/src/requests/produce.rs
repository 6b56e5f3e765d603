//! Producer ids, and batches on their way into the log.

use crate::codec::{DecodeError, Reader};
use crate::ids::{
    LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, TimestampMs, TopicId,
    TopicPartition,
};
use crate::requests::hello::FlushMode;

/// Asks for a producer id: once in the life of an idempotent producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitProducer {}

impl InitProducer {
    /// Appends the body: nothing.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<InitProducer, DecodeError> {
        Reader::new(bytes).finish()?;
        Ok(InitProducer {})
    }
}

/// A producer id that nobody else has or will have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitProducerResponse {
    /// The id.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
}

impl InitProducerResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.producer_id.0.to_le_bytes());
        out.extend_from_slice(&self.producer_epoch.0.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<InitProducerResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = InitProducerResponse {
            producer_id: ProducerId(reader.u64()?),
            producer_epoch: ProducerEpoch(reader.u16()?),
        };
        reader.finish()?;
        Ok(response)
    }
}

/// Bytes before the batch in the body of a produce request.
pub const PRODUCE_HEAD_BYTES: usize = 32;

/// Bytes of the body of the response to a produce request.
pub const PRODUCE_RESPONSE_BYTES: usize = 32;

/// What must be true of a batch before it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Acks {
    /// Nothing; no response is sent, not even about an error.
    None = 0,
    /// It is flushed on the leader.
    Leader = 1,
    /// It is flushed on every replica in sync.
    All = 2,
}

/// What precedes the batch in the body of a produce request.
///
/// ```text
/// 0 topic id | 16 u32 partition | 20 u32 leader epoch
/// 24 u8 acks | 25 zero, three bytes | 28 u32 timeout, ms
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProduceHead {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The leader epoch that the client got from the metadata.
    pub leader_epoch: LeaderEpoch,
    /// What must be true before the response.
    pub acks: Acks,
    /// Milliseconds after which the broker answers `TIMEOUT`.
    pub timeout_ms: u32,
}

impl ProduceHead {
    /// The partition with its topic.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: self.topic, partition: self.partition }
    }

    /// The head as it is on the wire.
    pub fn encode(&self) -> [u8; PRODUCE_HEAD_BYTES] {
        let mut out = [0; PRODUCE_HEAD_BYTES];
        let (topic, rest) = out.split_at_mut(16);
        topic.copy_from_slice(self.topic.as_bytes());
        let (partition, rest) = rest.split_at_mut(4);
        partition.copy_from_slice(&self.partition.0.to_le_bytes());
        let (leader_epoch, rest) = rest.split_at_mut(4);
        leader_epoch.copy_from_slice(&self.leader_epoch.0.to_le_bytes());
        let (acks, timeout_ms) = rest.split_at_mut(4);
        acks.copy_from_slice(&[self.acks as u8, 0, 0, 0]);
        timeout_ms.copy_from_slice(&self.timeout_ms.to_le_bytes());
        out
    }

    /// Reads a head.
    pub fn decode(bytes: &[u8; PRODUCE_HEAD_BYTES]) -> Result<ProduceHead, DecodeError> {
        let mut reader = Reader::new(bytes);
        let topic = TopicId::from_bytes(*reader.array()?);
        let partition = PartitionId(reader.u32()?);
        let leader_epoch = LeaderEpoch(reader.u32()?);
        let acks = match reader.u8()? {
            0 => Acks::None,
            1 => Acks::Leader,
            2 => Acks::All,
            value => {
                return Err(DecodeError::UnknownValue { field: "acks", value: u64::from(value) });
            }
        };
        reader.padding::<3>()?;
        let timeout_ms = reader.u32()?;
        reader.finish()?;
        Ok(ProduceHead { topic, partition, leader_epoch, acks, timeout_ms })
    }
}

/// The body of a produce request: one batch for one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Produce<'a> {
    /// Where the batch goes and when it is acknowledged.
    pub head: ProduceHead,
    /// The batch; [`verify`](crate::verify) says whether it is one.
    pub batch: &'a [u8],
}

impl<'a> Produce<'a> {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head.encode());
        out.extend_from_slice(self.batch);
    }

    /// Reads the head; the batch is everything behind it.
    pub fn decode(bytes: &'a [u8]) -> Result<Produce<'a>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let head = ProduceHead::decode(reader.array()?)?;
        Ok(Produce { head, batch: reader.rest() })
    }
}

/// Where the batch is in the log.
///
/// ```text
/// 0 u64 base offset | 8 u64 log start offset | 16 i64 append time | 24 flush mode, eight bytes
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProduceResponse {
    /// Offset of the first record; the others follow without gaps.
    pub base_offset: Offset,
    /// The oldest offset that the partition still has.
    pub log_start_offset: Offset,
    /// When the leader appended it, by the leader's clock. Of a batch that was sent again: when the
    /// leader last appended anything to the partition.
    pub append_time: TimestampMs,
    /// When acknowledged records are on disk.
    pub flush: FlushMode,
}

impl ProduceResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.base_offset.0.to_le_bytes());
        out.extend_from_slice(&self.log_start_offset.0.to_le_bytes());
        out.extend_from_slice(&self.append_time.0.to_le_bytes());
        out.extend_from_slice(&self.flush.to_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<ProduceResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = ProduceResponse {
            base_offset: Offset(reader.u64()?),
            log_start_offset: Offset(reader.u64()?),
            append_time: TimestampMs(reader.i64()?),
            flush: FlushMode::read(&mut reader)?,
        };
        reader.finish()?;
        Ok(response)
    }
}
