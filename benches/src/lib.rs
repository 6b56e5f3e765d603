//! What the micro benches and the load generator share. Nothing here is part of the broker.
//!
//! The micro benches in `benches/` ask what one step costs, on one core, without I/O. The load
//! generator, `src/bin/load.rs`, asks what a client of the shipped executable sees, beside what the
//! disk and QUIC by themselves take in the same minutes. It is built on quinn and the protocol
//! crate alone, so that no part of the SDK is measured with it.
//!
//! In reading order:
//!
//! - [`fixtures`]: batches, blocks and segments for the micro benches.
//! - [`load`]: the cases, the rounds and the table.

pub mod fixtures;

pub mod load;
