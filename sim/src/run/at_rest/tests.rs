//! Every kind of damage, with few of each; and what salvage makes of them.

mod salvaged;

use rustmq_checker::{Process, Value};

use super::*;
use crate::Options;
use crate::harm::Place;

/// A broker of one shard, whose disk is quickly gone through.
const SEED: u64 = 1;

fn simulator() -> Simulator {
    Simulator::new(Options {
        planted: None,
        images_per_seed: 0,
        dishonest: true,
        network: false,
        trace_lines: 0,
    })
}

/// Of the bits and the pairs of pages few, the others by turns.
#[test]
fn damage_of_every_kind_is_made_good_named_or_refused() {
    let tally = simulator().damage(SEED, Damages { step: 499, at_once: 1, parts: 3, part: 0 });
    let tally = tally.unwrap_or_else(|finding| panic!("{}", finding.failure));
    assert!(0 < tally.refused && 0 < tally.named && 0 < tally.harmless, "{tally:?}");
    let Tally { images, refused, named, harmless, last_block, .. } = tally;
    assert_eq!(images, refused + named + harmless + last_block);
}

/// Harm that takes nothing.
fn none(disk: &Disk) -> Harm {
    let (_, file, _) = disk.files()[0];
    Harm::Bit { place: Place { file, position: 0 }, mask: 0 }
}

#[test]
fn a_record_that_the_disk_does_not_have_is_missed() {
    let mut simulator = simulator();
    let mut at_rest = simulator.rest(SEED).expect("it comes to rest");
    let harm = none(&at_rest.disk);
    let told = simulator.harmed(&at_rest, &[&harm], 0, &mut Tally::default());
    assert!(matches!(told, Ok(Told::Served(reading)) if reading.damaged == 0));
    let log = at_rest.workload.topics[0].logs[0].number;
    let end = at_rest.workload.history.acknowledged_end(log);
    let send = at_rest.workload.history.begin_send(Process(77), log, Value(u64::MAX));
    at_rest.workload.history.acknowledge(send, Some(end));
    let told = simulator.harmed(&at_rest, &[&harm], 0, &mut Tally::default());
    let (failure, _) = told.err().expect("nobody has that record");
    assert!(failure.to_string().contains("unseen"), "{failure}");
}
