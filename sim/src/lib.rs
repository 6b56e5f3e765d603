//! Deterministic simulation: the real shards over a modelled disk, clock and network.
//!
//! A seed decides everything: how large segments and records are, how slow the disk is, what fails,
//! who sends what and when the power goes. The same seed gives the same trace, byte for byte. What
//! is simulated is the product: `wal`, the engine and the whole shell of a shard run as they are;
//! only what `sys` would ask of a kernel is asked of a model.
//!
//! In reading order:
//!
//! | module | holds |
//! |---|---|
//! | `scenario` | what a seed decides |
//! | `run`, `tally` | load, cuts, images, and what came of them |
//! | `node` | a broker in a world, and a client beside it |
//! | `quic`, `tls` | that client on a network which loses datagrams |
//! | `workload`, `records` | what clients do and know |
//! | `verify` | everything read back and judged |
//! | `lies` | what a dishonest disk does |
//! | `harm` | every damage to a disk at rest |
//! | `forgery` | records that look like blocks |
//! | `answer`, `failure` | what a request was told; why a seed fails |

mod scenario;

mod run;

mod tally;

mod node;

mod quic;

mod tls;

mod workload;

mod records;

mod verify;

mod lies;

mod harm;

mod forgery;

mod answer;

mod failure;

pub use failure::Failure;
pub use run::{Damages, Finding, Options, Simulator};
pub use tally::Tally;

#[cfg(test)]
mod tests;
