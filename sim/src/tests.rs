//! The simulation of the simulation: does it do the same twice, and what it says it does?

use rustmq_checker::Checker;
use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Disk, PAGE_BYTES};

use crate::node::Node;
use crate::scenario::{Scenario, tls};
use crate::verify;
use crate::workload::Workload;
use crate::{Options, Simulator, forgery};

fn options(dishonest: bool) -> Options {
    Options { planted: None, images_per_seed: 12, dishonest, trace_lines: 0 }
}

#[test]
fn the_same_seed_gives_the_same_trace_in_another_process_of_events() {
    for dishonest in [false, true] {
        for seed in [3, 11] {
            let run = || Simulator::new(options(dishonest)).run(seed).expect("nothing is found");
            let (first, second) = (run(), run());
            assert_eq!(first, second, "seed {seed}");
            assert!(0 < first.images && first.hash != 0);
        }
    }
}

#[test]
fn other_seeds_give_other_traces() {
    let mut simulator = Simulator::new(options(false));
    let hashes = [1, 2, 3].map(|seed| simulator.run(seed).expect("nothing is found").hash);
    assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "{hashes:x?}");
}

/// Seeds in which a lying disk took records away without a word, and how: each is a header page that
/// the device put over a block which would have told of the segment.
const HEADERS_ELSEWHERE: [(u64, &str); 4] = [
    (113, "over the seal that names the segment"),
    (206, "the seal over the header of the segment that it names"),
    (219, "over the last block before a seal that was not written yet"),
    (363, "over the last block before a seal that was not written yet"),
];

#[test]
fn a_header_page_that_went_elsewhere_takes_no_record_away_in_silence() {
    let options = Options { images_per_seed: 100, ..options(true) };
    let mut simulator = Simulator::new(options);
    for (seed, what) in HEADERS_ELSEWHERE {
        let found = simulator.run(seed).map_err(|finding| finding.failure.to_string());
        assert!(found.is_ok(), "seed {seed}, {what}: {found:?}");
    }
}

#[test]
fn a_forger_hits_the_beginning_of_a_page() {
    let scenario = Scenario::of(1, &tls());
    let world = World::new(1, Disk::new(None, &["/", "/data"]));
    let _entered = world.enter();
    let mut node = Node::boot(&world, &scenario.setup, 1);
    let mut workload = Workload::new(Choice::new(1), 100);
    node.until_serving().expect("a new broker serves");
    let topic = workload.create_topic(&mut node, 1).expect("a topic");
    workload.start_producer(&mut node, topic, 0, None).expect("a producer");
    // Twice: what was put into the log before is forged from then on.
    let mut choice = Choice::new(7);
    for _ in 0..2 {
        let forged = (0..100).find_map(|_| forgery::block_in_a_record(&world, &mut choice));
        let forged = forged.expect("a block");
        workload.produce(&mut node, Some(&forged));
        workload.settle(&mut node, 100_000).expect("acknowledged");
    }
    let disk = world.disk();
    let mut found = Vec::new();
    for (_, file, bytes) in disk.files() {
        let content = disk.bytes_at(file, 0, bytes as usize);
        let pages = content.chunks(PAGE_BYTES).enumerate();
        let starts = pages.filter(|(_, page)| page.starts_with(b"RQBK"));
        found.extend(starts.map(|(index, page)| {
            (index, u64::from_le_bytes(page[40..48].try_into().expect("eight bytes")))
        }));
    }
    // A forged block says that it lies where it was copied from.
    let misplaced = found.iter().filter(|(index, at)| *at != (index * PAGE_BYTES) as u64);
    assert!(0 < misplaced.count(), "blocks at {found:?}");
}

#[test]
fn a_broker_that_is_not_cut_serves_everything() {
    let scenario = Scenario::of(2, &tls());
    let world = World::new(2, Disk::new(None, &["/", "/data"]));
    let _entered = world.enter();
    let mut node = Node::boot(&world, &scenario.setup, 1);
    let mut workload = Workload::new(Choice::new(1), 100);
    node.until_serving().expect("a new broker serves");
    let topic = workload.create_topic(&mut node, 2).expect("a topic");
    for partition in 0..2 {
        workload.start_producer(&mut node, topic, partition, None).expect("a producer");
    }
    for _ in 0..4_000 {
        workload.produce(&mut node, None);
        node.step().expect("the broker goes on");
        workload.receive(&mut node).expect("answers that make sense");
    }
    workload.settle(&mut node, 100_000).expect("everything is acknowledged");
    verify::read_all(&mut workload, &mut node, true).expect("everything is served");
    let report = verify::judge(&workload, &mut Checker::default());
    assert!(report.is_clean(), "{report}");
    assert!(10 < workload.acknowledged);
}
