//! Batches of one partition as they come, for as long as the client gives credit. Since version 2.
//!
//! ```text
//! client   Subscribe, credit ─▶          Credit: more ─▶            Credit: end ─▶
//! broker             ◀─ opened   ◀─ batches   ◀─ batches   ◀─ batches          ◀─ the end
//!                       MORE        MORE         MORE         MORE
//! ```
//!
//! All answers have the correlation id of the Subscribe, and so have its Credits. An answer with
//! [`FrameFlags::MORE`](crate::FrameFlags::MORE) has the body of a
//! [`FetchResponse`](crate::FetchResponse): the first none of the batches, every other at least one.
//! The one answer without the flag is the last: a [`SubscriptionEnd`], or, if there is no answer
//! before it, the error of a request that was refused.

use crate::codec::{DecodeError, Reader, put_text_cut};
use crate::ids::{LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};
use crate::limits::STRING_BYTES_MAX;

/// Bytes of the body of a subscribe request.
pub const SUBSCRIBE_BYTES: usize = 40;

/// Bytes of the body of a credit request.
pub const CREDIT_BYTES: usize = 8;

/// Opens a subscription: the batches of one partition from an offset on.
///
/// ```text
/// 0 topic id | 16 u32 partition | 20 u32 leader epoch | 24 u64 offset
/// 32 u32 credit, bytes | 36 u32 bytes at most
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subscribe {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The leader epoch that the client got from the metadata.
    pub leader_epoch: LeaderEpoch,
    /// The first offset wanted. The first batch may begin before it; the client skips those
    /// records.
    pub offset: Offset,
    /// Bytes of batches that may be sent for now, at most
    /// [`CREDIT_BYTES_MAX`](crate::CREDIT_BYTES_MAX). Answers come as long as there is any credit,
    /// so what is sent passes it by less than one batch; that is made up for by the next grant.
    pub credit: u32,
    /// Bytes of batches in one answer, cut to [`FETCH_BYTES_MAX`](crate::FETCH_BYTES_MAX). The first
    /// batch of an answer is sent whole even if it is larger.
    pub bytes_max: u32,
}

impl Subscribe {
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
        out.extend_from_slice(&self.credit.to_le_bytes());
        out.extend_from_slice(&self.bytes_max.to_le_bytes());
    }

    /// Reads the body. Whether the credit is allowed is for the broker to say.
    pub fn decode(bytes: &[u8]) -> Result<Subscribe, DecodeError> {
        let mut reader = Reader::new(bytes);
        let request = Subscribe {
            topic: TopicId::from_bytes(*reader.array()?),
            partition: PartitionId(reader.u32()?),
            leader_epoch: LeaderEpoch(reader.u32()?),
            offset: Offset(reader.u64()?),
            credit: reader.u32()?,
            bytes_max: reader.u32()?,
        };
        reader.finish()?;
        Ok(request)
    }
}

/// Says how the subscription with the same correlation id, on the same stream, goes on. It is
/// answered only when it is refused: what it does shows in the subscription.
///
/// ```text
/// 0 u8 what | 1 zero, three bytes | 4 u32 bytes
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Credit {
    /// So many bytes more may be sent. On the wire 0.
    More {
        /// Added to what is left, which stays at most
        /// [`CREDIT_BYTES_MAX`](crate::CREDIT_BYTES_MAX).
        bytes: u32,
    },
    /// Nothing more is wanted. On the wire 1, with 0 bytes.
    End,
}

impl Credit {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (what, bytes) = match *self {
            Credit::More { bytes } => (0, bytes),
            Credit::End => (1, 0),
        };
        out.extend_from_slice(&[what, 0, 0, 0]);
        out.extend_from_slice(&bytes.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<Credit, DecodeError> {
        let mut reader = Reader::new(bytes);
        let what = reader.u8()?;
        reader.padding::<3>()?;
        let bytes = reader.u32()?;
        reader.finish()?;
        match (what, bytes) {
            (0, bytes) => Ok(Credit::More { bytes }),
            (1, 0) => Ok(Credit::End),
            (1, _) => Err(DecodeError::PaddingNotZero),
            _ => Err(DecodeError::UnknownValue { field: "what", value: u64::from(what) }),
        }
    }
}

/// The last answer of a subscription. The status of its frame says why it ended: OK because the
/// client wanted it, else with an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscriptionEnd {
    /// What happened, for a human; may be empty.
    pub message: String,
    /// The first offset that was not sent: where another subscription would go on.
    pub offset: Offset,
}

impl SubscriptionEnd {
    /// Appends the body: an [`ErrorBody`](crate::ErrorBody), and `u64` offset. A message beyond
    /// [`STRING_BYTES_MAX`] is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text_cut(out, &self.message);
        out.extend_from_slice(&self.offset.0.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<SubscriptionEnd, DecodeError> {
        let mut reader = Reader::new(bytes);
        let message = reader.text(STRING_BYTES_MAX)?.to_owned();
        let offset = Offset(reader.u64()?);
        reader.finish()?;
        Ok(SubscriptionEnd { message, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credit_that_ends_brings_none_and_no_other_is_known() {
        assert_eq!(Credit::decode(&[1, 0, 0, 0, 0, 0, 0, 0]), Ok(Credit::End));
        let both = [1, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(Credit::decode(&both), Err(DecodeError::PaddingNotZero));
        let unknown = [2, 0, 0, 0, 0, 0, 0, 0];
        let error = DecodeError::UnknownValue { field: "what", value: 2 };
        assert_eq!(Credit::decode(&unknown), Err(error));
        let padded = [0, 0, 9, 0, 1, 0, 0, 0];
        assert_eq!(Credit::decode(&padded), Err(DecodeError::PaddingNotZero));
    }

    #[test]
    fn a_subscription_has_the_bytes_that_are_written_down() {
        let mut out = Vec::new();
        let topic = TopicId::from_bytes([7; 16]);
        let partition = PartitionId(1);
        let leader_epoch = LeaderEpoch(2);
        let offset = Offset(3);
        let ask = Subscribe { topic, partition, leader_epoch, offset, credit: 4, bytes_max: 5 };
        ask.encode(&mut out);
        assert_eq!(out.len(), SUBSCRIBE_BYTES);
        assert_eq!(Subscribe::decode(&out), Ok(ask));
        out.push(0);
        assert_eq!(Subscribe::decode(&out), Err(DecodeError::TrailingBytes { left: 1 }));
        out.clear();
        Credit::More { bytes: 9 }.encode(&mut out);
        assert_eq!(out.len(), CREDIT_BYTES);
    }
}
