//! A broker that has come to rest, and every damage to its disk, one at a time.

use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Applied, Disk};

use super::load::{self, STEPS_MAX};
use super::told::{Damaged, Told};
use super::{Finding, SETTLE_STEPS_MAX, Simulator, plant};
use crate::failure::Failure;
use crate::harm::{self, Harm};
use crate::lies::last_of_each_folder;
use crate::node::Node;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::workload::Workload;

/// How long a broker is left alone: several times the pause after which a mark says that the last block
/// was flushed.
const REST_NS: u64 = 400_000_000;

/// Which of the damages to a disk are done.
#[derive(Clone, Copy, Debug)]
pub struct Damages {
    /// Of turned bits one in so many; of pairs of pages, and of places for a write to go to, 16 times as
    /// many.
    pub step: u64,
    /// So many at once at most: each with others that are chosen at random.
    pub at_once: u64,
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
    /// The last write of each folder, which tells of those before it.
    last: Vec<Applied>,
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
            let mut choice = Choice::new(index ^ seed);
            let others = (1..choice.between(1, damages.at_once)).map(|_| choice.pick(&harms));
            let together: Vec<&Harm> = std::iter::once(harm).chain(others).collect();
            match self.harmed(&at_rest, &together, index, &mut tally) {
                Ok(told) => told.count(&mut tally),
                Err(found) => {
                    self.trace_lines = self.options.trace_lines;
                    let again = self.harmed(&at_rest, &together, index, &mut Tally::default());
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
                let disk = world.disk().clone();
                let last = last_of_each_folder(&disk, &disk);
                return Ok(AtRest { scenario, workload, disk, last });
            }
            node.step()?;
        }
        Err(Failure::Stuck { doing: "coming to rest" })
    }

    /// What comes of some damages at once, or of one.
    fn harmed(
        &mut self,
        at_rest: &AtRest,
        harms: &[&Harm],
        index: u64,
        tally: &mut Tally,
    ) -> Result<Told, (Failure, Vec<String>)> {
        let mut disk = at_rest.disk.clone();
        let done: Vec<&Harm> = harms.iter().filter(|harm| harm.apply(&mut disk)).copied().collect();
        // One of them may be to the last block, another to what tells of it; some are two already.
        let is_one = match &done[..] {
            [harm] => !matches!(harm, Harm::Swapped { .. } | Harm::Misdirected { .. }),
            _ => false,
        };
        let may_be_last = !is_one && at_rest.last.iter().any(|write| !disk.has(write));
        let (workload, scenario) = (at_rest.workload.clone(), &at_rest.scenario);
        let damaged = Damaged { disk, workload, scenario, may_be_last };
        let told = match self.told(damaged, &mut Choice::new(index), tally) {
            Ok(Told::Refused) if matches!(&done[..], [one] if !one.may_refuse(&at_rest.disk)) => {
                let why = Failure::broken("one bit of the log, and it does not start");
                Err((why, Vec::new()))
            }
            told => told,
        };
        told.map_err(|(failure, trace)| {
            let what: Vec<_> = done.iter().map(|harm| harm.describe(&at_rest.disk)).collect();
            (Failure::broken(format!("{}: {failure}", what.join("; "))), trace)
        })
    }
}

#[cfg(test)]
mod tests;
