//! An image of a disk that lied once.

use rustmq_sys::sim::choice::Choice;

use super::Simulator;
use super::cut::Image;
use super::told::Damaged;
use crate::failure::Failure;
use crate::lies;
use crate::scenario::Scenario;
use crate::tally::Tally;

impl Simulator {
    /// The disk lied once.
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
        let may_be_last = lie.as_ref().is_none_or(|lie| lie.takes_an_end);
        let told = self.told(Damaged { disk, workload, scenario, may_be_last }, choice, tally);
        let told = told
            .map_err(|(failure, trace)| (Failure::broken(format!("{lie:?}: {failure}")), trace))?;
        told.count(tally);
        Ok(())
    }
}
