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

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use rustmq_checker::{Anomaly, Checker, Report};
use rustmq_planted::Bug;
use rustmq_server::ShardError;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Disk, Survival};
use rustmq_sys::sim::{Faults, World};

use crate::failure::Failure;
use crate::forgery;
use crate::lies::{self, Lie};
use crate::node::{Node, Setup};
use crate::scenario::{SEGMENT_BYTES, Scenario};
use crate::tally::Tally;
use crate::tls::Tls;
use crate::verify;
use crate::workload::{Fate, Workload};

/// Appends before a cut counts.
const APPENDS_MIN: u64 = 50;

/// Recycled rotations before a cut counts.
const RECYCLED_MIN: u64 = 2;

/// Steps of the broker under load at most: it gives up and its images count as they are.
const STEPS_MAX: u64 = 400_000;

/// Steps in which a recovered broker has to acknowledge what producers repeat.
const SETTLE_STEPS_MAX: u64 = 200_000;

/// Images in a row at most: each but the first is of a broker that began on the one before.
const ROW_MAX: u64 = 6;

/// On a disk with too little space, space comes or goes once in so many steps.
const SPACE_CHANGES: u64 = 6_000;

/// Steps at most in which a recovered broker is written to on a disk that still is full.
const FULL_STEPS: u64 = 400;

/// A seed with a network has so many times fewer images: each costs as many times more.
const NETWORK_PART: u64 = 4;

/// Batches of a producer that soon falls silent.
const BRIEF_BATCHES: u32 = 3;

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

    /// The broker under load, and the cuts.
    fn load(
        &mut self,
        seed: u64,
        world: &World,
        scenario: &Scenario,
        tally: &mut Tally,
    ) -> Result<(), Found> {
        let here = |failure: Failure| (None, failure, None);
        let mut choice = Choice::new(seed ^ 0xc0de);
        let mut node = Node::boot(world, &scenario.setup, scenario.shards);
        let mut workload = Workload::new(choice.split(), scenario.record_bytes_max);
        workload.topic_config = scenario.topic_config();
        node.until_serving().map_err(here)?;
        begin(&mut workload, &mut node, scenario).map_err(here)?;
        if !self.options.dishonest && choice.chance(1, 4) {
            // A broker that has only just begun is cut too, once; that is not an image that counts.
            let mut choice = choice.split();
            let image = self.cut(world, &workload, &mut choice);
            self.row(image, scenario, choice, ROW_MAX, &mut Tally::default())
                .map_err(|(failure, trace)| (None, failure, Some(trace)))?;
        }
        world.set_faults(scenario.faults);
        if let Some(space) = &scenario.space {
            fill(world, space.segments);
        }

        let images_max = match scenario.setup.network {
            Some(_) => self.options.images_per_seed.div_ceil(NETWORK_PART),
            None => self.options.images_per_seed,
        };
        let mut warm = false;
        let mut brief = None;
        let mut cut_at = 0;
        for step in 0..STEPS_MAX {
            if tally.images == images_max {
                break;
            }
            if scenario.space.is_some() && choice.chance(1, SPACE_CHANGES) {
                match choice.chance(1, 2) {
                    true => world.disk().set_capacity(None),
                    false => fill(world, choice.below(2)),
                }
            }
            let mut went = act(&mut workload, &mut node, scenario, world, &mut choice, &mut brief);
            if went.is_ok() && !warm && step % 512 == 511 {
                went = is_warm(&mut node, &workload, scenario, world).map(|yes| warm = yes);
            }
            (tally.refused_full, tally.unanswered) = (workload.refused_full, workload.unanswered);
            let ended = match went {
                Ok(()) => false,
                // A disk that fails ends the broker, as it should: one more image, the last.
                Err(Failure::Ended { error: ShardError::Device { .. } }) if fails(scenario) => true,
                Err(failure) => return Err(here(failure)),
            };
            if ended && !warm {
                return Ok(());
            }
            let busy = 0 < world.disk().pending_writes();
            let now = world.trace_hash().1;
            let cut = warm && now != cut_at && choice.chance(if busy { 8 } else { 1 }, 32);
            if cut || ended {
                cut_at = now;
                let mut choice = choice.split();
                let image = self.cut(world, &workload, &mut choice);
                let row_max = ROW_MAX.min(images_max - tally.images);
                self.row(image, scenario, choice, row_max, tally)
                    .map_err(|(failure, trace)| (Some(tally.images - 1), failure, Some(trace)))?;
            }
            if ended {
                return Ok(());
            }
        }
        if scenario.space.is_some() {
            // With space again it goes on by itself.
            world.disk().set_capacity(None);
            match workload.settle(&mut node, SETTLE_STEPS_MAX) {
                // A disk that fails ends the broker here too.
                Err(Failure::Ended { error: ShardError::Device { .. } }) if fails(scenario) => {}
                settled => settled.map_err(here)?,
            }
        }
        Ok(())
    }

    fn cut(&self, world: &World, workload: &Workload, choice: &mut Choice) -> Image {
        if self.options.dishonest {
            let before = Some(world.disk().clone());
            return Image { before, ..power_cut(world, workload, choice) };
        }
        match choice.chance(1, 6) {
            true => kill(world, workload, choice),
            false => power_cut(world, workload, choice),
        }
    }

    /// What one cut leaves, and on an honest disk the cuts of what comes of it.
    fn row(
        &mut self,
        image: Image,
        scenario: &Scenario,
        mut choice: Choice,
        row_max: u64,
        tally: &mut Tally,
    ) -> Result<(), (Failure, Vec<String>)> {
        if self.options.dishonest {
            return self.lied_to(image, scenario, &mut choice, tally);
        }
        let mut image = image;
        let mut life = Life { shards: scenario.shards, setup: Rc::clone(&scenario.setup) };
        // WALs stay when there are fewer shards again.
        let mut wals = scenario.shards;
        for _ in 0..choice.between(1, row_max) {
            // Now and then with another number of shards than before.
            life.shards = match choice.chance(1, 8) {
                true => choice.between(1, 3) as u16,
                false => scenario.shards,
            };
            wals = wals.max(life.shards);
            life.setup = with_room(&scenario.setup, scenario.shards, wals);
            image = self.image(image, scenario, &life, &mut choice, tally)?;
        }
        self.last(image, &life, &mut choice, tally)
    }

    /// What a cut leaves: started, read, written to, and in the middle of it cut again.
    fn image(
        &mut self,
        image: Image,
        scenario: &Scenario,
        life: &Life,
        choice: &mut Choice,
        tally: &mut Tally,
    ) -> Result<Image, (Failure, Vec<String>)> {
        let Image { disk, mut workload, .. } = image;
        workload.handle_crash();
        tally.images += 1;
        tally.acknowledged += workload.history.acknowledged();
        self.within(disk, choice.number(), tally, |simulator, world, tally| {
            world.set_faults(scenario.image_faults);
            if scenario.space.is_some() && choice.chance(1, 2) {
                world.disk().set_capacity(None);
            }
            let mut node = start(world, life, tally)?;
            match simulator.live(&mut workload, &mut node, scenario, choice) {
                // A disk that fails ends the broker, as it should: and it is cut like that.
                Err(Failure::Ended { error: ShardError::Device { .. } }) if may_fail(world) => {}
                lived => lived?,
            }
            Ok(power_cut_of(world, workload, choice))
        })
    }

    /// The last cut of a row: what it leaves is started, read, and sent what is not acknowledged.
    fn last(
        &mut self,
        image: Image,
        life: &Life,
        choice: &mut Choice,
        tally: &mut Tally,
    ) -> Result<(), (Failure, Vec<String>)> {
        let Image { disk, mut workload, .. } = image;
        workload.handle_crash();
        self.within(disk, choice.number(), tally, |simulator, world, _| {
            let mut node = Node::boot(world, &life.setup, life.shards);
            let outcome = node.until_serving().and_then(|()| {
                simulator.read(&mut workload, &mut node)?;
                workload.settle(&mut node, SETTLE_STEPS_MAX)
            });
            outcome.map_err(|failure| match failure {
                Failure::Broken { what } => {
                    Failure::broken(format!("after the last cut of a row: {what}"))
                }
                other => other,
            })
        })
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

    /// What a recovered broker is asked before it is cut once more.
    fn live(
        &mut self,
        workload: &mut Workload,
        node: &mut Node,
        scenario: &Scenario,
        choice: &mut Choice,
    ) -> Result<(), Failure> {
        self.read(workload, node)?;
        // Now and then it goes down again before it has done anything but serve what it found.
        let is_brief = choice.chance(1, 4);
        if !is_brief {
            // On a full disk some of them are refused. With space again it goes on by itself.
            if node.world().disk().capacity().is_some() {
                for _ in 0..choice.below(FULL_STEPS) {
                    workload.produce(node, None);
                    node.step()?;
                    workload.receive(node)?;
                }
                node.world().disk().set_capacity(None);
            }
            workload.settle(node, SETTLE_STEPS_MAX)?;
            workload.init_producer(node)?;
        }
        let steps = if is_brief { 0 } else { choice.below(600) };
        for _ in 0..steps {
            if choice.chance(scenario.send_chance, 100) {
                workload.produce(node, None);
            }
            node.step()?;
            workload.receive(node)?;
        }
        Ok(())
    }

    fn read(&mut self, workload: &mut Workload, node: &mut Node) -> Result<(), Failure> {
        workload.refresh(node)?;
        let reading = verify::read_all(workload, node, true)?;
        if 0 < reading.damaged {
            return Err(Failure::broken("an honest disk is said to have damaged records"));
        }
        let report = verify::judge(workload, &mut self.checker);
        match report.is_clean() {
            true => Ok(()),
            false => Err(Failure::broken(report.to_string())),
        }
    }

    /// The disk lied once: nothing wrong may be served, and what is lost must be named.
    fn lied_to(
        &mut self,
        mut image: Image,
        scenario: &Scenario,
        choice: &mut Choice,
        tally: &mut Tally,
    ) -> Result<(), (Failure, Vec<String>)> {
        let lie = lies::tell(&mut image, choice);
        let Image { disk, mut workload, .. } = image;
        workload.handle_crash();
        tally.images += 1;
        tally.acknowledged += workload.history.acknowledged();
        self.within(disk, choice.number(), tally, |simulator, world, tally| {
            simulator.after_a_lie(world, &mut workload, scenario, lie.as_ref(), tally)
        })
    }

    fn after_a_lie(
        &mut self,
        world: &World,
        workload: &mut Workload,
        scenario: &Scenario,
        lie: Option<&Lie>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let mut node = Node::boot(world, &scenario.setup, scenario.shards);
        match node.until_serving() {
            Ok(()) => {}
            Err(Failure::Ended { error }) if names_a_place(&error) => {
                tally.refused += 1;
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
        let may_be_last = lie.is_none_or(|lie| lie.takes_an_end);
        match workload.refresh(&mut node) {
            Ok(()) => {}
            Err(_) if may_be_last => {
                tally.last_block += 1;
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
        let reading = verify::read_all(workload, &mut node, false)?;
        let report = verify::judge(workload, &mut self.checker);
        let silent = only_lost(&report);
        match (report.is_clean(), silent && may_be_last) {
            (true, _) if 0 < reading.damaged => tally.named += 1,
            (true, _) => tally.harmless += 1,
            (false, true) => tally.last_block += 1,
            (false, false) => {
                return Err(Failure::broken(format!("{lie:?}: {report}")));
            }
        }
        Ok(())
    }
}

/// A disk after the power went, and what clients knew then.
pub(crate) struct Image {
    pub(crate) disk: Disk,
    /// The disk as it was, for lies about what had been durable.
    pub(crate) before: Option<Disk>,
    pub(crate) workload: Workload,
}

/// How a broker begins on an image.
struct Life {
    setup: Rc<Setup>,
    shards: u16,
}

/// A broker that was killed: its disk still has everything, durable or not.
fn kill(world: &World, workload: &Workload, choice: &mut Choice) -> Image {
    let before = world.disk();
    world.note("kill", before.pending_writes() as u64, 0, 0);
    Image { disk: before.killed(choice), before: None, workload: workload.clone() }
}

fn power_cut(world: &World, workload: &Workload, choice: &mut Choice) -> Image {
    power_cut_of(world, workload.clone(), choice)
}

/// The same when nobody needs the clients any more.
fn power_cut_of(world: &World, workload: Workload, choice: &mut Choice) -> Image {
    let survivals = [
        Survival::Nothing,
        Survival::Nothing,
        Survival::Everything,
        Survival::Some,
        Survival::Pages,
        Survival::Torn,
        Survival::Torn,
    ];
    let survival = *choice.pick(&survivals);
    let before = world.disk();
    world.note("cut", survival as u64, before.pending_writes() as u64, 0);
    Image { disk: before.crash(choice, survival), before: None, workload }
}

/// Starts a broker. One that is refused because the disk fails or is full says where, and starts
/// once the disk is well.
fn start(world: &World, life: &Life, tally: &mut Tally) -> Result<Node, Failure> {
    let boot = || Node::boot(world, &life.setup, life.shards);
    let mut node = boot();
    match node.until_serving() {
        Ok(()) => return Ok(node),
        Err(Failure::Ended { error }) if has_trouble(world) && names_a_place(&error) => {}
        Err(failure) => return Err(failure),
    }
    tally.starts_refused += 1;
    drop(node);
    world.set_faults(Faults::default());
    world.disk().set_capacity(None);
    let mut node = boot();
    node.until_serving()?;
    Ok(node)
}

/// Leaves space for so many segments and no more.
fn fill(world: &World, segments: u64) {
    let mut disk = world.disk();
    let bytes = disk.used_bytes() + segments * SEGMENT_BYTES;
    disk.set_capacity(Some(bytes));
}

fn may_fail(world: &World) -> bool {
    let faults = world.faults();
    faults.write_error != 0 || faults.flush_error != 0 || faults.read_error != 0
}

fn has_trouble(world: &World) -> bool {
    may_fail(world) || world.disk().capacity().is_some()
}

/// Plants a bug on this thread; a build without them has none to plant.
fn plant(bug: Option<Bug>) {
    #[cfg(feature = "planted")]
    rustmq_planted::plant(bug);
    #[cfg(not(feature = "planted"))]
    assert!(bug.is_none(), "bugs are planted in a build with the feature `planted`");
}

/// The topics and producers that a run begins with.
fn begin(workload: &mut Workload, node: &mut Node, scenario: &Scenario) -> Result<(), Failure> {
    let topic = workload.create_topic(node, scenario.partitions + 1)?;
    // The last partition gets a few records at the beginning and then nothing more: what is known of
    // it has to outlive the segments that held them.
    workload.start_producer(node, topic, scenario.partitions as usize, Some(BRIEF_BATCHES))?;
    for number in 0..scenario.producers {
        workload.start_producer(node, topic, (number % scenario.partitions) as usize, None)?;
    }
    Ok(())
}

/// One step under load: perhaps somebody sends, perhaps a topic comes or goes, one turn passes.
fn act(
    workload: &mut Workload,
    node: &mut Node,
    scenario: &Scenario,
    world: &World,
    choice: &mut Choice,
    brief: &mut Option<usize>,
) -> Result<(), Failure> {
    if choice.chance(scenario.send_chance, 100) {
        let forged = choice.chance(scenario.forged, 100).then(|| match scenario.forges_places {
            true => {
                let (partition, offset) = workload.beyond_an_end(choice)?;
                forgery::blocks_for_their_places(world, choice, partition, offset)
            }
            false => forgery::block_in_a_record(world, choice),
        });
        workload.produce(node, forged.flatten().as_deref());
    }
    if choice.chance(1, 3_000) {
        match brief.take() {
            Some(topic) if workload.topics[topic].fate == Fate::Lives => {
                workload.delete_topic(node, topic)?;
            }
            _ => {
                let topic = workload.create_topic(node, 2)?;
                workload.start_producer(node, topic, 0, None)?;
                *brief = Some(topic);
            }
        }
    }
    node.step()?;
    workload.receive(node)
}

/// Is the broker in the state that images are to be taken from?
fn is_warm(
    node: &mut Node,
    workload: &Workload,
    scenario: &Scenario,
    world: &World,
) -> Result<bool, Failure> {
    if workload.acknowledged < APPENDS_MIN {
        return Ok(false);
    }
    let sealed = node.segments_sealed()?;
    let is_segment = |name: &PathBuf| name.extension().is_some_and(|extension| extension == "seg");
    let files = world.disk().files();
    let segments =
        files.iter().filter(|(name, _, bytes)| is_segment(name) || *bytes == SEGMENT_BYTES);
    // Each file is used a first time; every use beyond that is a recycled one.
    let uses = sealed + u64::from(scenario.shards);
    Ok(segments.count() as u64 + RECYCLED_MIN <= uses)
}

fn fails(scenario: &Scenario) -> bool {
    scenario.faults.write_error != 0 || scenario.faults.flush_error != 0
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

/// Is nothing worse than that records are gone?
fn only_lost(report: &Report) -> bool {
    report.anomalies().all(|anomaly| {
        matches!(
            anomaly,
            Anomaly::Unseen | Anomaly::LostWrite | Anomaly::ReadThenLost | Anomaly::PollSkip
        )
    })
}

/// The same broker with room for the WALs that another number of shards brings.
fn with_room(setup: &Rc<Setup>, before: u16, now: u16) -> Rc<Setup> {
    if now <= before {
        return Rc::clone(setup);
    }
    let mut config = (*setup.config).clone();
    let per_wal = config.wal.capacity_bytes / u64::from(before);
    config.wal.capacity_bytes = per_wal * u64::from(now);
    let (tls, network) = (setup.tls.clone(), setup.network);
    Rc::new(Setup { config: Arc::new(config), tls, network })
}
