//! The bodies of requests and responses, one file per group.
//!
//! Each type appends its body with `encode` and reads it with `decode`; the frame around it is
//! [`FrameHeader::encode_frame`](crate::FrameHeader::encode_frame). A body has no bytes behind its
//! last field. What is sent per batch (`Produce`, `Fetch`, the answers to `Subscribe`) has a fixed
//! layout, borrows and allocates nothing.
//!
//! - [`hello`]: opens a connection.
//! - [`metadata`]: where everything is.
//! - [`topics`]: create, delete, list.
//! - [`produce`]: producer ids and batches towards the log.
//! - [`fetch`]: batches from the log, and offsets looked up.
//! - [`subscribe`]: batches from the log as they come.

pub mod hello;

pub mod metadata;

pub mod topics;

pub mod produce;

pub mod fetch;

pub mod subscribe;

pub use fetch::{
    Fetch, FetchResponse, FetchResponseHead, ListOffsets, ListOffsetsResponse, OffsetAt,
};
pub use hello::{FlushMode, Hello, HelloResponse};
pub use metadata::{
    BrokerInfo, Metadata, MetadataResponse, PartitionInfo, ShardEndpoint, TopicInfo, TopicSelection,
};
pub use produce::{
    Acks, InitProducer, InitProducerResponse, Produce, ProduceHead, ProduceResponse,
};
pub use subscribe::{Credit, Subscribe, SubscriptionEnd};
pub use topics::{
    CreateTopic, CreateTopicResponse, DeleteTopic, DeleteTopicResponse, ListTopics,
    ListTopicsResponse, ListedTopic,
};
