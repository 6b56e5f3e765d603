//! Images in a row: each is started, read, written to, and cut again.

use std::rc::Rc;
use std::sync::Arc;

use rustmq_server::ShardError;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{FileId, PAGE_BYTES};
use rustmq_sys::sim::{Faults, World};
use rustmq_wal::reach::{decode_reach, reach_position};
use rustmq_wal::{SegmentHeader, SegmentState};

use super::cut::{Image, power_cut_of};
use super::{SETTLE_STEPS_MAX, Simulator, names_a_place};
use crate::failure::Failure;
use crate::node::{Node, Setup};
use crate::scenario::{SEGMENT_BYTES, Scenario};
use crate::tally::Tally;
use crate::verify;
use crate::workload::Workload;

/// Steps at most in which a recovered broker is written to on a disk that still is full.
const FULL_STEPS: u64 = 400;

/// How a broker begins on an image.
struct Life {
    setup: Rc<Setup>,
    shards: u16,
}

impl Simulator {
    /// What one cut leaves, and on an honest disk the cuts of what comes of it.
    pub(super) fn row(
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
                // On a full disk nobody has to take what is repeated.
                world.disk().set_capacity(None);
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
}

/// Starts a broker. One that is refused because the disk fails or is full says where, and starts
/// once the disk is well.
fn start(world: &World, life: &Life, tally: &mut Tally) -> Result<Node, Failure> {
    let boot = || Node::boot(world, &life.setup, life.shards);
    let mut node = boot();
    match node.until_serving() {
        Ok(()) => {}
        Err(Failure::Ended { error }) if has_trouble(world) && names_a_place(&error) => {
            tally.starts_refused += 1;
            drop(node);
            world.set_faults(Faults::default());
            world.disk().set_capacity(None);
            node = boot();
            node.until_serving()?;
        }
        Err(failure) => return Err(failure),
    }
    believes_what_lasts(world)?;
    Ok(node)
}

/// A broker that serves relies on the headers of segments and on the marks of those that have one. They
/// must not be there only until the power goes.
fn believes_what_lasts(world: &World) -> Result<(), Failure> {
    let disk = world.disk();
    let forgotten: Vec<(FileId, u64)> = disk.forgotten_pages().collect();
    let is_segment = |(_, _, bytes): &(_, _, u64)| *bytes == SEGMENT_BYTES;
    for (name, file, bytes) in disk.files().into_iter().filter(is_segment) {
        let page = |position| disk.bytes_at(file, position, PAGE_BYTES);
        let mark_at = reach_position(bytes);
        let mut believed = vec![("header", 0)];
        if let Ok(header) = SegmentHeader::decode(&page(0))
            && header.state == SegmentState::Active
            && decode_reach(&page(mark_at), &header).is_some()
        {
            believed.push(("mark", mark_at));
        }
        for (what, position) in believed {
            if forgotten.contains(&(file, position)) {
                let name = name.display();
                return Err(Failure::broken(format!("the {what} of {name} was never flushed")));
            }
        }
    }
    Ok(())
}

fn may_fail(world: &World) -> bool {
    let faults = world.faults();
    faults.write_error != 0 || faults.flush_error != 0 || faults.read_error != 0
}

fn has_trouble(world: &World) -> bool {
    may_fail(world) || world.disk().capacity().is_some()
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
