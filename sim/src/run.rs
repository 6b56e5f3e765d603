//! One seed: a broker under load, its power cut again and again, and what each cut leaves.
//!
//! ```text
//!   load ──── cut ──── cut ──── cut ────▶
//!              │        │        └─▶ image → start → read → repeat → load ── cut ─▶ image → …
//!              │        └─▶ image → …
//!              └─▶ image → …                          … ── cut → start → read → repeat
//! ```
//!
//! The broker under load does not notice a cut: the disk is copied, page by reference, and the copy
//! goes through the crash. What a cut leaves is an image. The broker that starts on it is cut too, and
//! that is the next image of the row; the last cut of a row is started and read, but is none.

mod at_rest;
mod cut;
mod lied_to;
mod load;
mod row;
mod told;

use rustmq_checker::Checker;
use rustmq_planted::Bug;
use rustmq_server::ShardError;
use rustmq_sys::sim::World;
use rustmq_sys::sim::disk::Disk;

pub use self::at_rest::Damages;
pub(crate) use self::cut::Image;
use crate::failure::Failure;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::tls::Tls;

/// Steps in which a recovered broker has to acknowledge what producers repeat.
const SETTLE_STEPS_MAX: u64 = 200_000;

/// Images in a row at most: each but the first is of a broker that began on the one before.
const ROW_MAX: u64 = 6;

/// How a simulation is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// A bug that is planted in every broker; see `rustmq-planted`.
    pub planted: Option<Bug>,
    /// Images of each seed; a quarter of them where clients speak QUIC.
    pub images_per_seed: u64,
    /// The disk lies once in each image.
    pub dishonest: bool,
    /// Clients of some seeds speak QUIC over a modelled network, which costs ten times as much.
    pub network: bool,
    /// Lines of the trace to keep, for whoever reads about a failure.
    pub trace_lines: usize,
}

/// A seed that failed.
#[derive(Debug)]
pub struct Finding {
    /// The seed.
    pub seed: u64,
    /// Which image of it, from 0; none: the broker under load.
    pub image: Option<u64>,
    /// What was found.
    pub failure: Failure,
    /// The last things that happened.
    pub trace: Vec<String>,
}

/// A failure, the image it is of, and the trace of that image's world.
type Found = (Option<u64>, Failure, Option<Vec<String>>);

/// Runs seeds; keeps what all of them need.
pub struct Simulator {
    tls: Tls,
    checker: Checker,
    options: Options,
    /// Lines of the trace kept now.
    trace_lines: usize,
}

impl Simulator {
    /// A simulator with these options.
    pub fn new(options: Options) -> Self {
        Self { tls: Tls::new(), checker: Checker::default(), options, trace_lines: 0 }
    }

    /// Runs one seed. One that fails is run once more, with its trace.
    pub fn run(&mut self, seed: u64) -> Result<Tally, Box<Finding>> {
        let found = match self.run_once(seed) {
            Ok(tally) => return Ok(tally),
            Err(found) if self.options.trace_lines == 0 => return Err(found),
            Err(found) => found,
        };
        self.trace_lines = self.options.trace_lines;
        let again = self.run_once(seed);
        self.trace_lines = 0;
        // The same seed does the same; if it does not, that is the worse finding.
        Err(again.err().unwrap_or_else(|| {
            let what = format!("the same seed did not do the same again. First: {}", found.failure);
            Box::new(Finding { failure: Failure::broken(what), ..*found })
        }))
    }

    fn run_once(&mut self, seed: u64) -> Result<Tally, Box<Finding>> {
        // What a disk lies about is the same whoever asks.
        let has_network = self.options.network && !self.options.dishonest;
        let scenario = Scenario::of(seed, &self.tls, has_network);
        let world = World::new(seed, Disk::new(None, &["/", "/data"]));
        world.keep_trace(self.trace_lines);
        world.set_latency(scenario.latency);
        let mut tally = Tally { seeds: 1, ..Tally::default() };
        plant(self.options.planted);
        let outcome = {
            let _entered = world.enter();
            self.load(seed, &world, &scenario, &mut tally)
        };
        tally.simulated_ns += world.now_ns();
        tally.count(&world);
        tally.hash ^= world.trace_hash().0;
        match outcome {
            Ok(()) => Ok(tally),
            Err((image, failure, trace)) => {
                let trace = trace.unwrap_or_else(|| world.trace_lines());
                Err(Box::new(Finding { seed, image, failure, trace }))
            }
        }
    }

    /// Does something in a new world with this disk, and adds to the tally what happened there.
    fn within<T>(
        &mut self,
        disk: Disk,
        seed: u64,
        tally: &mut Tally,
        act: impl FnOnce(&mut Self, &World, &mut Tally) -> Result<T, Failure>,
    ) -> Result<T, (Failure, Vec<String>)> {
        let world = World::new(seed, disk);
        world.keep_trace(self.trace_lines);
        let outcome = {
            let _entered = world.enter();
            act(self, &world, tally)
        };
        tally.simulated_ns += world.now_ns();
        tally.count(&world);
        tally.hash = tally.hash.rotate_left(3) ^ world.trace_hash().0;
        outcome.map_err(|failure| (failure, world.trace_lines()))
    }
}

/// Plants a bug on this thread; a build without them has none to plant.
fn plant(bug: Option<Bug>) {
    #[cfg(feature = "planted")]
    rustmq_planted::plant(bug);
    #[cfg(not(feature = "planted"))]
    assert!(bug.is_none(), "bugs are planted in a build with the feature `planted`");
}

/// Does an error name a file or folder?
fn names_a_place(error: &ShardError) -> bool {
    match error {
        ShardError::Refused { dir, why } => dir.starts_with("/data") && !why.is_empty(),
        ShardError::Corrupt { file, .. } => file.starts_with("/data"),
        ShardError::Device { dir, .. } => dir.starts_with("/data"),
        ShardError::Memory { .. } | ShardError::Runtime { .. } => false,
    }
}
