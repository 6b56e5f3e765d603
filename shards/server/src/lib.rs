//! The shell of one core: it carries bytes and completions between clients, disk and engine.
//!
//! A [`shard`] owns a QUIC endpoint, its partitions, their write-ahead logs and a hot cache, and
//! runs on one pinned thread; shards talk over the [`mesh`] and share nothing. Decisions about
//! records are the engine's, about metadata the `metadata` crate's, about bytes on disk the `wal`
//! crate's; what the operating system is asked goes through `sys`. This crate never imports Raft,
//! never blocks, and never holds a borrow of its state across an await.
//!
//! Modules in the order in which a record meets them.

pub mod endpoint;

mod connection;
mod connection_id;

mod admission;
mod body;
mod budget;
mod frames;

pub mod session;

mod hello;
mod metadata;

mod route;

mod produce;

mod partitions;

mod wal_writer;

mod index_cache;
mod read_through;
mod segment_io;
mod segments;

mod checkpoint;

mod flushed;

pub mod reply;

mod fetch;
mod read_ahead;
mod subscribe;

mod read;

mod offsets;

pub mod mesh;

mod catalogue;

pub mod shard;

pub mod error;

mod install;

mod recover;
mod replay;

mod housekeeping;

pub mod metrics;

pub mod limits;

mod notify;
mod random;

mod mtu;

pub mod tls;

pub use body::Body;
pub use connection_id::CONNECTION_ID_BYTES;
pub use error::ShardError;
pub use shard::{Node, NodeKeys, ShardSetup, life, run};
