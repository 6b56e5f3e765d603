//! Newtypes for the numbers that could be swapped for one another.
//!
//! All are plain values without invariants of their own: zero is a number like any other, except
//! where a constant below says otherwise.

use std::fmt;
use std::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The place of a record in the log of its partition; the first is 0.
    Offset(u64)
}

impl Offset {
    /// The offset of the first record a partition ever had.
    pub const ZERO: Offset = Offset(0);

    /// The offset `count` records further, or `None` past the end of the number space.
    pub fn checked_add(self, count: u64) -> Option<Offset> {
        self.0.checked_add(count).map(Offset)
    }
}

number! {
    /// How often the leadership of a partition has changed; a request with an older one is fenced.
    LeaderEpoch(u32)
}

number! {
    /// A broker in its cluster.
    BrokerId(u32)
}

impl BrokerId {
    /// Stands where a partition has no leader at present.
    pub const NONE: BrokerId = BrokerId(u32::MAX);
}

number! {
    /// A shard on its broker: what runs on one core.
    ShardId(u16)
}

number! {
    /// A partition of its topic, counted from 0.
    PartitionId(u32)
}

number! {
    /// An idempotent producer, as handed out by `InitProducer`.
    ProducerId(u64)
}

impl ProducerId {
    /// Stands in a batch whose producer asked for no duplicate check.
    pub const NONE: ProducerId = ProducerId(u64::MAX);
}

number! {
    /// How often a producer id has been taken over; a batch with an older one is fenced.
    ProducerEpoch(u16)
}

number! {
    /// The number of a record among those that one producer sent to one partition. It wraps around.
    Sequence(u32)
}

impl Sequence {
    /// The sequence `count` records further; after `u32::MAX` comes 0.
    #[must_use]
    pub fn advance(self, count: u32) -> Sequence {
        Sequence(self.0.wrapping_add(count))
    }
}

number! {
    /// Chosen by the client for a request and repeated in its response.
    CorrelationId(u32)
}

number! {
    /// Milliseconds since 1970-01-01 00:00 UTC, without leap seconds; negative before.
    TimestampMs(i64)
}

/// A topic, for ever: a topic created again under the same name is another one.
///
/// Sixteen bytes of a UUID in the order in which they are printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// No topic has this id; on the wire it stands where the topic is not known.
    pub const ZERO: TopicId = TopicId([0; 16]);

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> TopicId {
        TopicId(bytes)
    }

    /// The bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// The text is not 32 hex digits grouped 8-4-4-4-12 by hyphens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicIdError;

impl fmt::Display for TopicIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a topic id is 32 hex digits grouped 8-4-4-4-12 by hyphens")
    }
}

impl std::error::Error for TopicIdError {}

impl FromStr for TopicId {
    type Err = TopicIdError;

    fn from_str(text: &str) -> Result<TopicId, TopicIdError> {
        if text.len() != 36 {
            return Err(TopicIdError);
        }
        let mut digits = 0u128;
        for (index, character) in text.bytes().enumerate() {
            if matches!(index, 8 | 13 | 18 | 23) {
                if character != b'-' {
                    return Err(TopicIdError);
                }
                continue;
            }
            let digit = char::from(character).to_digit(16).ok_or(TopicIdError)?;
            digits = digits << 4 | u128::from(digit);
        }
        Ok(TopicId(digits.to_be_bytes()))
    }
}

/// One partition of one topic, anywhere in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition of that topic.
    pub partition: PartitionId,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_ids_print_as_hyphenated_hex_and_read_back() {
        let id = TopicId::from_bytes(
            *b"\x01\x23\x45\x67\x89\xab\xcd\xef\x00\x11\x22\x33\x44\x55\x66\x77",
        );
        assert_eq!(id.to_string(), "01234567-89ab-cdef-0011-223344556677");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn text_that_is_no_uuid_is_refused() {
        for text in [
            "",
            "01234567-89ab-cdef-0011-22334455667",
            "01234567-89ab-cdef-0011-2233445566777",
            "01234567089ab-cdef-0011-223344556677",
            "0123456789ab-cdef-0011-223344556677-",
            "g1234567-89ab-cdef-0011-223344556677",
            "+1234567-89ab-cdef-0011-223344556677",
            "é1234567-89ab-cdef-0011-22334455667",
        ] {
            assert_eq!(text.parse::<TopicId>(), Err(TopicIdError), "{text}");
        }
    }

    #[test]
    fn offsets_end_and_sequences_wrap() {
        assert_eq!(Offset(7).checked_add(3), Some(Offset(10)));
        assert_eq!(Offset(u64::MAX).checked_add(1), None);
        assert_eq!(Sequence(u32::MAX).advance(2), Sequence(1));
    }
}
