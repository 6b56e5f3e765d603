//! The stable error codes of the wire.
//!
//! A code answers two questions for the caller. *Retriable*: can the same request succeed later,
//! after a pause or a fresh look at the metadata? *Definite*: is it certain that the request had no
//! effect? A caller that gives up after an indeterminate error does not know whether its records
//! are in the log.

use std::fmt;

macro_rules! error_codes {
    ($(
        $number:literal $variant:ident $name:literal $retriable:ident $definite:ident
        $meaning:literal;
    )*) => {
        /// What a response header carries in its status field.
        ///
        /// Numbers are never reused and never change their meaning. A client that meets a number it
        /// does not know treats it as [`ErrorCode::Internal`].
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant = $number,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The code with this number.
            pub const fn from_u16(number: u16) -> Option<ErrorCode> {
                match number {
                    $($number => Some(ErrorCode::$variant),)*
                    _ => None,
                }
            }

            /// The name in documents, logs and metrics: `NOT_LEADER`.
            pub const fn name(self) -> &'static str {
                match self { $(ErrorCode::$variant => $name,)* }
            }

            /// One sentence saying what is wrong and, where the caller can act, what to do.
            pub const fn meaning(self) -> &'static str {
                match self { $(ErrorCode::$variant => $meaning,)* }
            }

            /// True if the same request can succeed later.
            pub const fn is_retriable(self) -> bool {
                match self { $(ErrorCode::$variant => error_codes!(@$retriable),)* }
            }

            /// True if the request certainly had no effect.
            pub const fn is_definite(self) -> bool {
                match self { $(ErrorCode::$variant => error_codes!(@$definite),)* }
            }
        }
    };
    (@retry) => { true };
    (@final) => { false };
    (@definite) => { true };
    (@indeterminate) => { false };
}

error_codes! {
    0 Ok "OK" final definite
        "The request succeeded.";

    1 UnsupportedVersion "UNSUPPORTED_VERSION" final definite
        "The protocol version is not one that this broker speaks; the body names the range.";
    2 MalformedFrame "MALFORMED_FRAME" final definite
        "The frame or its body does not have the layout of its kind.";
    3 FrameTooLarge "FRAME_TOO_LARGE" final definite
        "The frame is longer than the broker takes.";
    4 HelloRequired "HELLO_REQUIRED" final definite
        "A connection begins with Hello on its first stream.";
    5 UnknownRequest "UNKNOWN_REQUEST" final definite
        "The kind of the request is not known in this protocol version.";
    6 InvalidRequest "INVALID_REQUEST" final definite
        "A field of the request has a value that is not allowed.";
    7 NotAuthorized "NOT_AUTHORIZED" final definite
        "The principal may not do this.";
    8 LimitExceeded "LIMIT_EXCEEDED" final definite
        "The request would exceed a limit of the broker.";
    9 Throttled "THROTTLED" retry definite
        "The broker pushes back; the body says after which pause to send again.";
    10 Timeout "TIMEOUT" retry indeterminate
        "The time of the request ended before its outcome was known.";
    11 ShuttingDown "SHUTTING_DOWN" retry definite
        "The broker is stopping and has not begun the request.";
    12 Interrupted "INTERRUPTED" retry indeterminate
        "The shard that worked on the request went away midway.";
    13 Internal "INTERNAL" final indeterminate
        "The broker failed in a way that is its own fault; its log says more.";

    32 UnknownTopic "UNKNOWN_TOPIC" final definite
        "There is no topic of this name.";
    33 UnknownTopicId "UNKNOWN_TOPIC_ID" final definite
        "The topic of this id does not exist, or no longer.";
    34 UnknownPartition "UNKNOWN_PARTITION" final definite
        "The topic has no such partition.";
    35 TopicExists "TOPIC_EXISTS" final definite
        "A topic of this name exists already.";
    36 InvalidTopicName "INVALID_TOPIC_NAME" final definite
        "A topic name is 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-', \
         and not '.' or '..'; names that begin with '__' are reserved.";
    37 InvalidConfig "INVALID_CONFIG" final definite
        "A configuration entry is unknown or its value is not allowed.";
    38 InvalidPartitionCount "INVALID_PARTITION_COUNT" final definite
        "A topic has from 1 to 10000 partitions.";
    39 InvalidReplicationFactor "INVALID_REPLICATION_FACTOR" final definite
        "The replication factor is zero or exceeds the number of brokers.";

    64 NotLeader "NOT_LEADER" retry definite
        "The broker does not lead the partition; refresh the metadata.";
    65 FencedLeaderEpoch "FENCED_LEADER_EPOCH" retry definite
        "The leader epoch of the request is older than the partition's; refresh the metadata.";
    66 UnknownLeaderEpoch "UNKNOWN_LEADER_EPOCH" retry definite
        "The leader epoch of the request is newer than the broker knows; send again after a pause.";
    67 OffsetOutOfRange "OFFSET_OUT_OF_RANGE" final definite
        "The offset lies outside the log of the partition.";
    68 StorageFull "STORAGE_FULL" retry definite
        "There is no room for new records; reading goes on.";
    69 StorageCorrupt "STORAGE_CORRUPT" final definite
        "The stored records asked for are damaged and are not served.";

    80 CorruptBatch "CORRUPT_BATCH" final definite
        "The record batch does not have its layout or its checksum is wrong.";
    81 RecordTooLarge "RECORD_TOO_LARGE" final definite
        "A record is larger than the topic takes.";
    82 BatchTooLarge "BATCH_TOO_LARGE" final definite
        "The record batch is larger than the broker takes.";
    83 UnsupportedCompression "UNSUPPORTED_COMPRESSION" final definite
        "The compression of the record batch is not supported.";
    84 UnsupportedAcks "UNSUPPORTED_ACKS" final definite
        "The partition cannot give the acknowledgement asked for.";
    85 UnknownProducerId "UNKNOWN_PRODUCER_ID" final definite
        "The broker knows nothing of the producer and its sequence does not begin at 0.";
    86 OutOfOrderSequence "OUT_OF_ORDER_SEQUENCE" retry definite
        "A batch of the producer before this one is missing; send the batches again in order.";
    87 DuplicateSequence "DUPLICATE_SEQUENCE" final indeterminate
        "The sequence is older than the batches remembered for the producer; \
         if it was appended, its offset is no longer known.";
    88 FencedProducerEpoch "FENCED_PRODUCER_EPOCH" final definite
        "The producer id has been taken over by a newer producer epoch.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_number_and_no_other_number_is_known() {
        let known: Vec<ErrorCode> = (0..=u16::MAX).filter_map(ErrorCode::from_u16).collect();
        assert_eq!(known, ErrorCode::ALL);
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_u16(*code as u16), Some(*code));
        }
    }

    #[test]
    fn names_are_distinct_and_meanings_are_sentences() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert!(code.name().bytes().all(|c| c.is_ascii_uppercase() || c == b'_'), "{code}");
            assert!(code.meaning().ends_with('.'), "{code}");
            assert!(ErrorCode::ALL[index + 1..].iter().all(|other| other.name() != code.name()));
        }
    }

    #[test]
    fn a_limit_quoted_in_a_meaning_is_the_limit() {
        use crate::limits::{PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX};
        let partitions = PARTITIONS_PER_TOPIC_MAX.to_string();
        assert!(ErrorCode::InvalidPartitionCount.meaning().contains(&partitions));
        assert!(ErrorCode::InvalidTopicName.meaning().contains(&TOPIC_NAME_BYTES_MAX.to_string()));
    }
}
