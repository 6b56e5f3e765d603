//! A broker that has come to rest, and every damage to its disk, one at a time.

use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Disk, Survival};

use super::cut::{Image, power_cut_of};
use super::load::{self, STEPS_MAX};
use super::told::Told;
use super::{Finding, SETTLE_STEPS_MAX, Simulator, plant};
use crate::failure::Failure;
use crate::harm::{self, Harm};
use crate::node::Node;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::workload::Workload;

/// How long a broker is left alone: several times the pause after which a mark says that the last block
/// was flushed.
const REST_NS: u64 = 400_000_000;

/// One broker in so many goes on with a damaged disk.
const GO_ON: u64 = 4;

/// Steps at most that it goes on for: until about the last of its files is used again.
const GO_ON_STEPS: u64 = 600;

/// Which of the damages to a disk are done.
#[derive(Clone, Copy, Debug)]
pub struct Damages {
    /// Of turned bits and swapped pages one in so many.
    pub step: u64,
    /// Every so many-th of them all is done here, ...
    pub parts: u64,
    /// ... from this one on.
    pub part: u64,
}

/// A disk at rest, and what clients were told.
struct AtRest {
    scenario: Scenario,
    workload: Workload,
    disk: Disk,
}

impl Simulator {
    /// Runs a broker until its files were used again, lets it rest, and starts brokers on what it leaves,
    /// each with another damage.
    pub fn damage(&mut self, seed: u64, damages: Damages) -> Result<Tally, Box<Finding>> {
        plant(self.options.planted);
        let mut tally = Tally { seeds: 1, ..Tally::default() };
        let at_rest = self.rest(seed).map_err(|failure| {
            Box::new(Finding { seed, image: None, failure, trace: Vec::new() })
        })?;
        let harms = harm::all(&at_rest.disk, damages.step, seed);
        let of_ours = (0u64..).zip(&harms).skip(damages.part as usize);
        for (index, harm) in of_ours.step_by(damages.parts as usize) {
            tally.images += 1;
            tally.acknowledged += at_rest.workload.history.acknowledged();
            match self.harmed(&at_rest, harm, index, &mut tally) {
                Ok(told) => told.count(&mut tally),
                Err(found) => {
                    self.trace_lines = self.options.trace_lines;
                    let again = self.harmed(&at_rest, harm, index, &mut Tally::default());
                    self.trace_lines = 0;
                    let (failure, trace) = again.err().unwrap_or(found);
                    return Err(Box::new(Finding { seed, image: Some(index), failure, trace }));
                }
            }
        }
        Ok(tally)
    }

    /// A broker on an honest disk, under load until images may be taken of it, and then at rest.
    fn rest(&mut self, seed: u64) -> Result<AtRest, Failure> {
        let scenario = Scenario::at_rest(seed, &self.tls);
        let world = World::new(seed, Disk::new(None, &["/", "/data"]));
        world.set_latency(scenario.latency);
        let _entered = world.enter();
        let mut choice = Choice::new(seed ^ 0xc0de);
        let mut node = Node::boot(&world, &scenario.setup, scenario.shards);
        let mut workload = Workload::new(choice.split(), scenario.record_bytes_max);
        node.until_serving()?;
        load::begin(&mut workload, &mut node, &scenario)?;
        load::warm_up(&mut workload, &mut node, &scenario, &mut choice)?;
        workload.settle(&mut node, SETTLE_STEPS_MAX)?;
        let rested = world.now_ns() + REST_NS;
        for _ in 0..STEPS_MAX {
            if rested <= world.now_ns() && world.disk().pending_writes() == 0 {
                drop(node);
                workload.handle_crash();
                let disk = world.disk().crash(&mut choice, Survival::Nothing);
                return Ok(AtRest { scenario, workload, disk });
            }
            node.step()?;
        }
        Err(Failure::Stuck { doing: "coming to rest" })
    }

    /// A broker starts on what the damage leaves; some go on from there.
    fn harmed(
        &mut self,
        at_rest: &AtRest,
        harm: &Harm,
        index: u64,
        tally: &mut Tally,
    ) -> Result<Told, (Failure, Vec<String>)> {
        let AtRest { scenario, workload, disk } = at_rest;
        let named = |failure| Failure::broken(format!("{}: {failure}", harm.describe(disk)));
        let mut choice = Choice::new(index);
        let mut workload = workload.clone();
        let mut harmed = disk.clone();
        harm.apply(&mut harmed);
        let (told, image) = self.within(harmed, index, tally, |simulator, world, _| {
            let told = simulator.ask_all(world, &mut workload, scenario, false).map_err(named)?;
            let image = match told {
                Told::Refused if !harm.may_refuse(disk) => {
                    return Err(named(Failure::broken(
                        "one bit of the log, and it does not start",
                    )));
                }
                Told::Served(_) if choice.chance(1, GO_ON) => {
                    Some(go_on(world, workload, scenario, &mut choice).map_err(named)?)
                }
                _ => None,
            };
            Ok((told, image))
        })?;
        let Some(Image { disk: after, mut workload, .. }) = image else { return Ok(told) };
        workload.handle_crash();
        self.within(after, index, tally, |simulator, world, _| {
            match simulator.ask_all(world, &mut workload, scenario, false).map_err(named)? {
                Told::Served(_) => Ok(told),
                _ => Err(named(Failure::broken("it started once, and not again"))),
            }
        })
    }
}

/// A broker starts once more on a damaged disk, takes records and loses its power.
fn go_on(
    world: &World,
    mut workload: Workload,
    scenario: &Scenario,
    choice: &mut Choice,
) -> Result<Image, Failure> {
    let mut node = Node::boot(world, &scenario.setup, scenario.shards);
    node.until_serving()?;
    workload.refresh(&mut node)?;
    // What is known of the producers of before may be damaged.
    workload.end_producers();
    for (topic, log) in workload.logs() {
        workload.start_producer(&mut node, topic, log, None)?;
    }
    for _ in 0..choice.below(GO_ON_STEPS) {
        workload.produce(&mut node, None);
        node.step()?;
        workload.receive(&mut node)?;
    }
    if choice.chance(1, 2) {
        workload.settle(&mut node, SETTLE_STEPS_MAX)?;
    }
    Ok(power_cut_of(world, workload, choice))
}

#[cfg(test)]
mod tests;
