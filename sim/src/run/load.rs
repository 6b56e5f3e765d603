//! The broker under load: what happens to it until its images are taken.

use std::path::PathBuf;

use rustmq_server::ShardError;
use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;

use super::{Found, ROW_MAX, SETTLE_STEPS_MAX, Simulator};
use crate::failure::Failure;
use crate::forgery;
use crate::node::Node;
use crate::scenario::{SEGMENT_BYTES, Scenario};
use crate::tally::Tally;
use crate::workload::{Fate, Workload};

/// Appends before a cut counts.
const APPENDS_MIN: u64 = 50;

/// Recycled rotations before a cut counts.
const RECYCLED_MIN: u64 = 2;

/// Steps of the broker under load at most: it gives up and its images count as they are.
pub(super) const STEPS_MAX: u64 = 400_000;

/// Steps from one look at whether images may be taken to the next.
const LOOK_EVERY: u64 = 512;

/// On a disk with too little space, space comes or goes once in so many steps.
const SPACE_CHANGES: u64 = 6_000;

/// A seed with a network has so many times fewer images: each costs as many times more.
const NETWORK_PART: u64 = 4;

/// Batches of a producer that soon falls silent.
const BRIEF_BATCHES: u32 = 3;

impl Simulator {
    /// The broker under load, and the cuts.
    pub(super) fn load(
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
            if went.is_ok() && !warm && step % LOOK_EVERY == LOOK_EVERY - 1 {
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
}

/// The topics and producers that a run begins with.
pub(super) fn begin(
    workload: &mut Workload,
    node: &mut Node,
    scenario: &Scenario,
) -> Result<(), Failure> {
    let topic = workload.create_topic(node, scenario.partitions + 1)?;
    // The last partition gets a few records at the beginning and then nothing more: what is known of
    // it has to outlive the segments that held them.
    workload.start_producer(node, topic, scenario.partitions as usize, Some(BRIEF_BATCHES))?;
    for number in 0..scenario.producers {
        workload.start_producer(node, topic, (number % scenario.partitions) as usize, None)?;
    }
    Ok(())
}

/// Load without a cut, until images may be taken.
pub(super) fn warm_up(
    workload: &mut Workload,
    node: &mut Node,
    scenario: &Scenario,
    choice: &mut Choice,
) -> Result<(), Failure> {
    let world = node.world().clone();
    let mut brief = None;
    for step in 0..STEPS_MAX {
        act(workload, node, scenario, &world, choice, &mut brief)?;
        if step % LOOK_EVERY == LOOK_EVERY - 1 && is_warm(node, workload, scenario, &world)? {
            return Ok(());
        }
    }
    Err(Failure::Stuck { doing: "using its files again" })
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

/// Leaves space for so many segments and no more.
fn fill(world: &World, segments: u64) {
    let mut disk = world.disk();
    let bytes = disk.used_bytes() + segments * SEGMENT_BYTES;
    disk.set_capacity(Some(bytes));
}
