//! A broker on a disk that lied or was damaged, asked for everything: nothing wrong may be served, and
//! what is lost must be named.

use rustmq_checker::{Anomaly, Report};
use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::Disk;

use super::cut::{Image, power_cut_of};
use super::{SETTLE_STEPS_MAX, Simulator, names_a_place};
use crate::failure::Failure;
use crate::node::Node;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::verify::{self, Reading};
use crate::workload::Workload;

/// One broker in so many goes on with a damaged disk.
const GO_ON: u64 = 4;

/// Steps at most that it goes on for: until about the last of its files is used again.
const GO_ON_STEPS: u64 = 600;

/// What a broker on such a disk told its clients.
pub(super) enum Told {
    /// It did not start, and named a file.
    Refused,
    /// The last block of a log is gone without a word.
    LastBlockGone,
    /// Everything is served, or refused by name.
    Served(Reading),
}

/// A disk that lied or was damaged, and what its clients know.
pub(super) struct Damaged<'a> {
    pub(super) disk: Disk,
    pub(super) workload: Workload,
    pub(super) scenario: &'a Scenario,
    /// The last block of a log may be gone without a word.
    pub(super) may_be_last: bool,
}

impl Simulator {
    /// Starts a broker on such a disk and asks it for everything. One in [`GO_ON`] starts again, takes
    /// records, is cut and asked once more.
    pub(super) fn told(
        &mut self,
        damaged: Damaged<'_>,
        choice: &mut Choice,
        tally: &mut Tally,
    ) -> Result<Told, (Failure, Vec<String>)> {
        let Damaged { disk, mut workload, scenario, may_be_last } = damaged;
        let mut after = None;
        let told = self.within(disk, choice.number(), tally, |simulator, world, _| {
            let told = simulator.ask_all(world, &mut workload, scenario, may_be_last)?;
            // Who has lost the end of a log goes on as if it had never been.
            if matches!(told, Told::Served(_)) && !may_be_last && choice.chance(1, GO_ON) {
                after = Some(go_on(world, workload, scenario, choice)?);
            }
            Ok(told)
        })?;
        let Some(Image { disk, mut workload, .. }) = after else { return Ok(told) };
        workload.handle_crash();
        self.within(disk, choice.number(), tally, |simulator, world, _| {
            match simulator.ask_all(world, &mut workload, scenario, false)? {
                Told::Served(_) => Ok(told),
                _ => Err(Failure::broken("it started once, and not again")),
            }
        })
    }

    /// Starts a broker on a disk that lied or was damaged, and asks it for everything. `may_be_last`: the
    /// last block of a log may be gone without a word.
    pub(super) fn ask_all(
        &mut self,
        world: &World,
        workload: &mut Workload,
        scenario: &Scenario,
        may_be_last: bool,
    ) -> Result<Told, Failure> {
        let mut node = Node::boot(world, &scenario.setup, scenario.shards);
        match node.until_serving() {
            Ok(()) => {}
            Err(Failure::Ended { error }) if names_a_place(&error) => return Ok(Told::Refused),
            Err(failure) => return Err(failure),
        }
        match workload.refresh(&mut node) {
            Ok(()) => {}
            Err(_) if may_be_last => return Ok(Told::LastBlockGone),
            Err(failure) => return Err(failure),
        }
        let reading = verify::read_all(workload, &mut node, false)?;
        let report = verify::judge(workload, &mut self.checker);
        match (report.is_clean(), may_be_last && only_lost(&report)) {
            (true, _) => Ok(Told::Served(reading)),
            (false, true) => Ok(Told::LastBlockGone),
            (false, false) => Err(Failure::broken(report.to_string())),
        }
    }
}

impl Told {
    pub(super) fn count(&self, tally: &mut Tally) {
        let counter = match self {
            Self::Refused => &mut tally.refused,
            Self::LastBlockGone => &mut tally.last_block,
            Self::Served(Reading { damaged: 0, .. }) => &mut tally.harmless,
            Self::Served(_) => &mut tally.named,
        };
        *counter += 1;
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
    workload.repeat_last(&mut node, SETTLE_STEPS_MAX)?;
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
        // On a full disk nobody has to take what is repeated.
        world.disk().set_capacity(None);
        workload.settle(&mut node, SETTLE_STEPS_MAX)?;
    }
    Ok(power_cut_of(world, workload, choice))
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
