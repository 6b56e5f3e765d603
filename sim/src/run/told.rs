//! A broker on a disk that lied or was damaged, asked for everything: nothing wrong may be served, and
//! what is lost must be named.

use rustmq_checker::{Anomaly, Report};
use rustmq_sys::sim::World;

use super::{Simulator, names_a_place};
use crate::failure::Failure;
use crate::node::Node;
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::verify::{self, Reading};
use crate::workload::Workload;

/// What a broker on such a disk told its clients.
pub(super) enum Told {
    /// It did not start, and named a file.
    Refused,
    /// The last block of a log is gone without a word.
    LastBlockGone,
    /// Everything is served, or refused by name.
    Served(Reading),
}

impl Simulator {
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

/// Is nothing worse than that records are gone?
fn only_lost(report: &Report) -> bool {
    report.anomalies().all(|anomaly| {
        matches!(
            anomaly,
            Anomaly::Unseen | Anomaly::LostWrite | Anomaly::ReadThenLost | Anomaly::PollSkip
        )
    })
}
