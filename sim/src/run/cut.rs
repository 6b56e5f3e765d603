//! The moment of a cut, and what it leaves.

use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Disk, Survival};

use super::Simulator;
use crate::workload::Workload;

/// A disk after the power went, and what clients knew then.
pub(crate) struct Image {
    pub(crate) disk: Disk,
    /// The disk as it was, for lies about what had been durable.
    pub(crate) before: Option<Disk>,
    pub(crate) workload: Workload,
}

impl Simulator {
    pub(super) fn cut(&self, world: &World, workload: &Workload, choice: &mut Choice) -> Image {
        if self.options.dishonest {
            let before = Some(world.disk().clone());
            return Image { before, ..power_cut(world, workload, choice) };
        }
        match choice.chance(1, 6) {
            true => kill(world, workload, choice),
            false => power_cut(world, workload, choice),
        }
    }
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
pub(super) fn power_cut_of(world: &World, workload: Workload, choice: &mut Choice) -> Image {
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
