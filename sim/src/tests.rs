//! The simulation of the simulation: does it do the same twice, and what it says it does?

use rustmq_checker::Checker;
use rustmq_sys::sim::World;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::disk::{Disk, PAGE_BYTES};

use crate::node::Node;
use crate::scenario::Scenario;
use crate::tls::Tls;
use crate::verify;
use crate::workload::Workload;
use crate::{Options, Simulator, Tally, forgery};

fn options(dishonest: bool) -> Options {
    Options { planted: None, images_per_seed: 6, dishonest, network: true, trace_lines: 0 }
}

#[test]
fn the_same_seed_gives_the_same_trace_in_another_process_of_events() {
    for dishonest in [false, true] {
        // What came before must not matter.
        let mut used = Simulator::new(options(dishonest));
        // The third one has everything that a disk may do at once, the others but one a network.
        for seed in [3, 11, 35, 16, 12] {
            let first = Simulator::new(options(dishonest)).run(seed).expect("nothing is found");
            let second = used.run(seed).expect("nothing is found");
            assert_eq!(first, second, "seed {seed}");
            assert!(0 < first.images && first.hash != 0);
        }
    }
}

#[test]
fn everything_that_may_go_wrong_on_an_honest_disk_does() {
    let mut simulator = Simulator::new(options(false));
    let mut total = Tally::default();
    // All that a seed may have, alone and together, is within 35 of them.
    for seed in 1..=35 {
        let tally = simulator.run(seed).map_err(|finding| finding.failure.to_string());
        total.add(&tally.unwrap_or_else(|why| panic!("seed {seed}: {why}")));
    }
    for (what, count) in total.disk_troubles().into_iter().chain(total.network_troubles()) {
        assert!(0 < count, "{what}: never");
    }
}

#[test]
fn other_seeds_give_other_traces() {
    let mut simulator = Simulator::new(options(false));
    let hashes = [1, 2, 3].map(|seed| simulator.run(seed).expect("nothing is found").hash);
    assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "{hashes:x?}");
}

/// Seeds in which a lying disk took something away without a word, and how: each is a page that the
/// device put over what would have told of it.
const PAGES_ELSEWHERE: [(u64, &str); 7] = [
    (113, "a segment's header over the seal that names the segment"),
    (206, "the seal over the header of the segment that it names"),
    (219, "a segment's header over the last block before a seal that was not written yet"),
    (363, "a segment's header over the last block before a seal that was not written yet"),
    (10_795, "a switch of the catalogue over the retirement of the file before"),
    (11_611, "that retirement over the header of the file that goes on"),
    (11_368, "a checkpoint over a block of the segment before: a batch in that was taken again"),
];

#[test]
fn a_page_that_went_elsewhere_takes_nothing_away_in_silence() {
    let options = Options { images_per_seed: 100, ..options(true) };
    let mut simulator = Simulator::new(options);
    for (seed, what) in PAGES_ELSEWHERE {
        let found = simulator.run(seed).map_err(|finding| finding.failure.to_string());
        assert!(found.is_ok(), "seed {seed}, {what}: {found:?}");
    }
}

/// Bytes of every page in the log that begins like a block: where it lies, and the page.
fn pages_like_blocks(world: &World) -> Vec<(u64, Vec<u8>)> {
    let disk = world.disk();
    let mut found = Vec::new();
    for (_, file, bytes) in disk.files() {
        let content = disk.bytes_at(file, 0, bytes as usize);
        let pages = content.chunks(PAGE_BYTES).enumerate();
        let blocks = pages.filter(|(_, page)| page.starts_with(b"RQBK"));
        found.extend(blocks.map(|(index, page)| ((index * PAGE_BYTES) as u64, page.to_vec())));
    }
    found
}

/// Lets one producer send a few forged records, one after another.
fn forge(mut made: impl FnMut(&World, &mut Choice, &Workload) -> Option<Vec<u8>>) -> World {
    let scenario = Scenario::of(1, &Tls::new(), false);
    let world = World::new(1, Disk::new(None, &["/", "/data"]));
    let _entered = world.enter();
    let mut node = Node::boot(&world, &scenario.setup, 1);
    let mut workload = Workload::new(Choice::new(1), 100);
    node.until_serving().expect("a new broker serves");
    let topic = workload.create_topic(&mut node, 1).expect("a topic");
    workload.start_producer(&mut node, topic, 0, None).expect("a producer");
    // More than once: what was put into the log before is forged from then on.
    let mut choice = Choice::new(7);
    for _ in 0..6 {
        let forged = (0..100).find_map(|_| made(&world, &mut choice, &workload));
        workload.produce(&mut node, Some(&forged.expect("a block")));
        workload.settle(&mut node, 100_000).expect("acknowledged");
    }
    drop(node);
    world
}

fn number(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

/// Runs a seed that once found something, as a long run does.
fn run_again(seed: u64) -> Result<(), String> {
    let options = Options { images_per_seed: 100, network: false, ..options(false) };
    let found = Simulator::new(options).run(seed);
    found.map(|_| ()).map_err(|finding| finding.failure.to_string())
}

/// The pages that a full log keeps for log starts went for such as freed nothing, and then it was full for
/// good: of its own size in the first of these, because the disk had no space in the second.
#[test]
fn a_full_log_does_not_use_up_what_it_keeps_for_log_starts() {
    assert_eq!(run_again(1_000_135), Ok(()));
    assert_eq!(run_again(2_014_705), Ok(()));
}

/// Starts that were cut short took a page each of what a full log needs to delete its oldest records.
#[test]
fn a_full_log_is_not_used_up_by_starts() {
    assert_eq!(run_again(2_033_561), Ok(()));
}

/// A start saw a spare whose freeing no flush had made durable; the next segment went to another file, and
/// after a power cut both said that they were it.
#[test]
fn a_spare_is_one_after_a_power_cut_too() {
    assert_eq!(run_again(3_084_480), Ok(()));
}

/// While a shard ended whose catalogue could not be written, who had the next turn wrote again.
#[test]
fn nothing_is_written_to_a_catalogue_whose_write_has_failed() {
    assert_eq!(run_again(2_031_057), Ok(()));
}

#[test]
fn a_forger_hits_the_beginning_of_a_page() {
    let world = forge(|world, choice, _| forgery::block_in_a_record(world, choice));
    // A copied block says that it lies where it was copied from.
    let found = pages_like_blocks(&world);
    let misplaced = found.iter().filter(|(at, page)| number(page, 40) != *at);
    assert!(0 < misplaced.count());
}

#[test]
fn a_forger_hits_the_places_that_its_blocks_name_and_only_the_generation_is_wrong() {
    let world = forge(|world, choice, workload| {
        let (partition, offset) = workload.beyond_an_end(choice)?;
        forgery::blocks_for_their_places(world, choice, partition, offset)
    });
    let found = pages_like_blocks(&world);
    let forged = found.iter().filter(|(_, page)| number(page, 24) == forgery::GENERATION.0);
    let in_place = forged.filter(|(at, page)| number(page, 40) == *at);
    assert!(3 < in_place.count());
}

#[test]
fn a_broker_that_is_not_cut_serves_everything() {
    let scenario = Scenario::of(2, &Tls::new(), false);
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
