//! Interleavings of the ring, the doorbell and the hand-over at shutdown.
//!
//! Decides nothing and ships nothing: the tests in `tests/` describe scenarios of two or three
//! threads, and this crate runs them. Under `--cfg loom` every interleaving and every outcome the
//! memory model allows is tried, and a lost wake-up shows as a deadlock:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p rustmq-loom-tests --release
//! ```
//!
//! Without it the same scenarios run many times on real threads.

/// Threads: loom's, or the standard ones.
#[cfg(loom)]
pub use loom::thread;
#[cfg(not(loom))]
pub use std::thread;

/// 4: how often a scenario takes the processor from a thread that could go on. All known lost wake-ups
/// of such protocols need two or three; each one more takes five times as long.
/// `LOOM_MAX_PREEMPTIONS` sets another bound.
#[cfg(loom)]
pub const PREEMPTIONS_MAX: usize = 4;

/// Runs a scenario in every interleaving.
#[cfg(loom)]
pub fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(PREEMPTIONS_MAX));
    model.check(scenario);
}

/// Runs a scenario [`ROUNDS`] times.
#[cfg(not(loom))]
pub fn explore(scenario: impl Fn() + Sync + Send + 'static) {
    for _ in 0..ROUNDS {
        scenario();
    }
}

/// 300: a quick look on real threads; loom is the proof.
#[cfg(not(loom))]
pub const ROUNDS: usize = 300;
