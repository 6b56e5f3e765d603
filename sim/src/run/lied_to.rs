//! An image of a disk that lied once: nothing wrong may be served, and what is lost must be named.

use rustmq_checker::{Anomaly, Report};
use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;

use super::cut::Image;
use super::{Simulator, names_a_place};
use crate::failure::Failure;
use crate::lies::{self, Lie};
use crate::node::Node;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::verify;
use crate::workload::Workload;

impl Simulator {
    /// The disk lied once: nothing wrong may be served, and what is lost must be named.
    pub(super) fn lied_to(
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

/// Is nothing worse than that records are gone?
fn only_lost(report: &Report) -> bool {
    report.anomalies().all(|anomaly| {
        matches!(
            anomaly,
            Anomaly::Unseen | Anomaly::LostWrite | Anomaly::ReadThenLost | Anomaly::PollSkip
        )
    })
}
