//! The bounds of what a partition remembers.

use rustmq_protocol::limits;

/// Batches that a producer may have in flight to one partition, as Hello announces it.
pub const PRODUCER_BATCHES_IN_FLIGHT_MAX: usize = limits::PRODUCER_BATCHES_IN_FLIGHT_MAX as usize;

/// Batches remembered of one producer: all that may be in flight, none of them flushed, and as many
/// before them, so that what is flushed always includes the newest acknowledged one.
pub const PRODUCER_BATCHES_REMEMBERED: usize = 2 * PRODUCER_BATCHES_IN_FLIGHT_MAX;

/// Leader epochs remembered for one partition. The epochs of records that still exist are needed
/// to find where a follower's log leaves ours; past this many the oldest two are merged, which can
/// only make such a follower fetch more than it had to. 12: every segment repeats them for each of its
/// partitions.
pub const EPOCHS_MAX: usize = 12;

/// Ranges of one partition that recovery may mark as damaged before the whole partition is
/// refused: a log with more holes than this has lost its meaning.
pub const DAMAGED_RANGES_MAX: usize = 64;

/// Clock steps above this suspend retention by time: a wrong clock must not delete records.
pub const CLOCK_STEP_MS_MAX: i64 = 10 * 60 * 1000;

const _: () = assert!(1 <= PRODUCER_BATCHES_IN_FLIGHT_MAX);
