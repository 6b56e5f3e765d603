//! Every decision about records, and none of the doing.
//!
//! A [`Partition`] decides which batch is accepted, at which offset, and which one was seen before;
//! [`HotCache`] decides which batches stay in memory; [`Subscription`] decides what a consumer is sent
//! next; [`retention`] decides what may be forgotten.
//! Nothing here reads a clock, a disk or a socket: time comes in as an argument, effects go out as
//! return values. Each value lives on one core and is owned by that core's shell
//! (`shards/server`).
//!
//! Reading order: [`limits`], [`partition`], [`cache`], [`subscription`], [`retention`].

pub mod limits;
pub mod partition;
// One module per thing that is decided.
pub mod cache;
pub mod retention;
pub mod subscription;

pub use cache::HotCache;
pub use partition::{Append, AppendError, FetchError, Partition};
pub use subscription::Subscription;
