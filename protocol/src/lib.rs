//! The wire of RustMQ: ids, limits, error codes, the record batch, frames, requests and responses.
//!
//! This crate *decides* how bytes are laid out and which bytes are acceptable. It checks every
//! length, count and checksum before anything is believed, and it never allocates for a number that
//! it has not held against a limit.
//!
//! It *never* performs I/O, reads a clock, draws random numbers, starts threads or awaits. It holds
//! no state between calls, so it runs on whichever core calls it: on a shard for produce and fetch,
//! on the control core for the catalogue, and inside every client.
//!
//! In reading order, along the path of a record:
//!
//! - [`ids`]: newtypes for whatever could be swapped.
//! - [`limits`]: every bound of the protocol, with its reason.
//! - [`error_code`]: the stable codes, whether a retry can help and whether nothing has happened
//!   for certain.
//! - [`codec`]: the checked reader and the writing helpers below all bodies.
//! - [`record`]: one record inside a batch, written and read.
//! - [`batch`]: the record batch, verified, stamped and read.
//! - [`batch_builder`]: the batch, built by a producer.
//! - [`frame`]: the sixteen bytes before every request and response.
//! - [`topic_name`]: which names a topic may have.
//! - [`requests`]: one file per group of bodies.
//!
//! The layouts are drawn in `docs/formats/wire.md` and `docs/formats/batch.md`, and proved by
//! `protocol/vectors/`.

#![deny(clippy::indexing_slicing)]

pub mod ids;

pub mod limits;

pub mod error_code;

pub mod codec;

pub mod record;

pub mod batch;

pub mod batch_builder;

pub mod frame;

pub mod topic_name;

pub mod requests;

pub use batch::{
    Attributes, BatchError, BatchHeader, Batches, Compression, ProducerStamp, Records, batches,
    records, stamp, stamp_producer, verify, verify_crc,
};
pub use batch_builder::{BatchBuilder, PushError};
pub use codec::{DecodeError, Reader};
pub use error_code::ErrorCode;
pub use frame::{
    ErrorBody, FrameError, FrameFlags, FrameHeader, RequestKind, ThrottledBody,
    UnsupportedVersionBody, VersionRange,
};
pub use ids::{
    BrokerId, CorrelationId, LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence,
    ShardId, TimestampMs, TopicId, TopicIdError, TopicPartition,
};
pub use limits::*;
pub use record::{Record, RecordError, RecordHeader, RecordHeaders, RecordView};
pub use requests::{
    Acks, BrokerInfo, CreateTopic, CreateTopicResponse, Credit, DeleteTopic, DeleteTopicResponse,
    Fetch, FetchResponse, FetchResponseHead, FlushMode, Hello, HelloResponse, InitProducer,
    InitProducerResponse, ListOffsets, ListOffsetsResponse, ListTopics, ListTopicsResponse,
    ListedTopic, Metadata, MetadataResponse, OffsetAt, PartitionInfo, Produce, ProduceHead,
    ProduceResponse, ShardEndpoint, Subscribe, SubscriptionEnd, TopicInfo, TopicSelection,
};
pub use topic_name::{TopicNameError, is_reserved_topic_name, validate_topic_name};

// Sizes on the wire are `u32` and `u64`; with 64-bit `usize` every one of them converts without
// loss.
const _: () = assert!(usize::BITS == 64);
