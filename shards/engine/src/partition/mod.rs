//! One partition: the order of its records and who wrote them.
//!
//! `leader` accepts batches and moves the high watermark, `producers` spots duplicates,
//! `epochs` remembers which leader epoch began at which offset.

mod epochs;
mod leader;
mod producers;
#[cfg(test)]
mod tests;

pub use epochs::Epochs;
pub use leader::{Append, AppendError, FetchError, Partition, PartitionState};
pub use producers::{BatchMark, Check, ProducerState, Producers, SequenceError};
