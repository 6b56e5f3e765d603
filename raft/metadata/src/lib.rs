//! What the cluster agrees on: `Image` + `Command` → `Image` + `Delta`.
//!
//! This crate decides which topics, partitions, brokers and WALs exist, who leads a partition and
//! in which epoch, where a partition's records lie, which producer ids have been handed out, and
//! what a principal may do. The rules are one total function, [`apply()`]: the same image and the
//! same command give the same result on every node, and a refused command changes nothing. The log
//! that carries the commands (a file on a single node, the metadata group in a cluster) is none of
//! its business.
//!
//! It never does I/O, reads no clock, draws no randomness, starts no thread, and never iterates in
//! hash order. Topic ids, WAL ids and the cluster id are drawn by the caller and arrive in commands.
//!
//! It runs on the control core, which owns the image. Shards get deltas, and call [`authorize()`]
//! with a set of principals of their own.
//!
//! ```text
//!  bytes ─ decode_command ─▶ Command ─┐
//!                                     ├─ check ─▶ refused: ApplyError, image unchanged
//!                            &Image ──┘
//!                            apply(&mut Image, &Command) ─▶ Delta ─▶ shards
//!  Image ─ encode_image ─▶ snapshot, then the commands after it ─ replay ─▶ the same image again
//! ```
//!
//! Modules in reading order: [`limits`], [`topic_config`], [`image`], [`command`], [`mod@apply`],
//! [`placement`], [`mod@authorize`], [`codec`] (with the stored forms in `body`).

pub mod limits;
pub mod topic_config;

pub mod image;

pub mod command;

pub mod apply;

pub mod placement;

pub mod authorize;

pub mod codec;

mod body;

mod decode_error;

pub use apply::{ApplyError, Delta, apply, check};
pub use authorize::{
    Decision, Operation, PrincipalError, PrincipalId, Principals, Resource, authorize,
};
pub use codec::{
    DecodeError, ReplayError, decode_command, decode_image, encode_command, encode_image, replay,
};
pub use command::{Command, PartitionAssignment};
pub use image::{Broker, Image, ImageFault, Partition, Placement, Tombstone, Topic, WalUuid};
pub use placement::{WalLoad, place};
pub use topic_config::{CleanupPolicy, CompressionType, ConfigError, TopicConfig};
