//! The Rust client of RustMQ.
//!
//! It *does* what a program needs to talk to a cluster: it dials the shard that leads a partition,
//! keeps one QUIC connection per shard, gathers records into batches, sends them again in order
//! with the same sequences after any failure that may pass, reads partitions ahead of the consumer,
//! and follows the metadata. It *never* skips the verification of certificates, never acknowledges
//! a record that the broker has not, and never grows without a bound: a producer whose buffer is
//! full waits.
//!
//! It runs on the caller's tokio runtime, single- or multi-threaded. Everything that decides is in
//! pure files without clock or I/O; the rest carries bytes.
//!
//! ```no_run
//! # async fn example() -> Result<(), rustmq_client::ClientError> {
//! use rustmq_client::{Client, ClientConfig, NewTopic, ProducerRecord, Start};
//!
//! let client = Client::connect(ClientConfig::from_dev_dir("rustmq-data")?).await?;
//! client.create_topic(NewTopic::new("orders", 4)).await?;
//!
//! let producer = client.producer("orders").build().await?;
//! let metadata = producer.send(ProducerRecord::value("hello").with_key("customer-7")).await?;
//! println!("partition {} offset {}", metadata.partition, metadata.offset);
//!
//! let mut consumer = client.consumer("orders").start(Start::Earliest).build().await?;
//! while let Some(record) = consumer.receive().await {
//!     println!("{:?}", record?.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! In reading order:
//!
//! - [`config`]: addresses, certificates, times.
//! - [`error`]: the one error type; whether a retry can help and whether nothing has happened for
//!   certain.
//! - [`client`]: the handle from which producers and consumers are made; topics are managed here.
//! - [`producer`]: records towards a topic.
//! - [`consumer`]: records from a topic.
//! - `cluster`, `connection`, `stream`, `tls`, `mtu`, `socket`, `train`, `looking`: the shell below, from metadata down to bytes.
//! - `backoff`: how long to wait before trying again.

pub mod config;

pub mod error;

pub mod client;

pub mod producer;

pub mod consumer;

mod cluster;

mod offsets;

mod connection;

mod stream;

mod tls;

mod mtu;

mod socket;

mod looking;

mod train;

mod backoff;

pub use client::{Client, NewTopic, OffsetAndTimestamp};
pub use config::{ClientConfig, MtuProfile, Pem, PollMode, RouteMode, TlsConfig};
pub use consumer::{Consumer, ConsumerBuilder, ConsumerRecord, OutOfRange, Partitions, Start};
pub use error::ClientError;
pub use producer::{Producer, ProducerBuilder, ProducerRecord, RecordMetadata, Ticket};
pub use rustmq_protocol::{
    Acks, ErrorCode, FlushMode, LeaderEpoch, ListedTopic, Offset, OffsetAt, PartitionId,
    PartitionInfo, ShardId, TimestampMs, TopicId, TopicInfo,
};
