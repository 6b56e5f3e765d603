//! What a seed decides before anything happens: how large everything is and what goes wrong.

use std::rc::Rc;
use std::sync::Arc;

use rustmq_config::BrokerConfig;
use rustmq_sys::sim::choice::Choice;
use rustmq_sys::sim::network::Conditions;
use rustmq_sys::sim::{Faults, Latency};

use crate::node::Setup;
use crate::tls::Tls;

/// Bytes of a segment: so few that a run rotates and recycles within milliseconds.
pub(crate) const SEGMENT_BYTES: u64 = 128 << 10;

/// A disk on which the log cannot grow to what it may have.
pub(crate) struct Space {
    /// Segments for which there is room, besides what a new broker has made.
    pub(crate) segments: u64,
    /// A full log refuses, and its topics keep little; otherwise it drops its oldest records.
    pub(crate) refuses: bool,
}

/// What a topic keeps when a full log refuses: little enough that segments become free.
const RETENTION: [(&str, &str); 2] = [("retention_bytes", "16384"), ("retention_ms", "20")];

/// Everything that a seed decides at once.
pub(crate) struct Scenario {
    pub(crate) setup: Rc<Setup>,
    pub(crate) shards: u16,
    /// Partitions of the topic that stays.
    pub(crate) partitions: u32,
    pub(crate) producers: u32,
    pub(crate) record_bytes_max: usize,
    pub(crate) latency: Latency,
    /// What fails under load.
    pub(crate) faults: Faults,
    /// What fails while an image is started, read and written to.
    pub(crate) image_faults: Faults,
    /// The disk has too little space.
    pub(crate) space: Option<Space>,
    /// A step sends a batch so often out of 100: how busy the producers are.
    pub(crate) send_chance: u64,
    /// Records out of 100 that are made to look like blocks.
    pub(crate) forged: u64,
    /// Those are made for the places where they will lie, instead of copied from the log.
    pub(crate) forges_places: bool,
}

impl Scenario {
    /// The scenario of a seed; `has_network`: clients may speak QUIC.
    pub(crate) fn of(seed: u64, tls: &Tls, has_network: bool) -> Self {
        let mut choice = Choice::new(seed ^ 0x5ce0_a210);
        let shards = *choice.pick(&[1, 1, 1, 1, 1, 2, 2, 3]);
        let segments = *choice.pick(&[4, 4, 4, 5, 6]);
        let slow = choice.chance(1, 3);
        let latency = match slow {
            true => Latency { transfer_ns: (20_000, 400_000), flush_ns: (100_000, 3_000_000) },
            false => Latency { transfer_ns: (5_000, 60_000), flush_ns: (20_000, 300_000) },
        };
        let faults = match choice.below(4) {
            0 => Faults { short: 40, ..Faults::default() },
            1 => Faults { short: 40, write_error: 3_000, flush_error: 3_000, read_error: 0 },
            _ => Faults::default(),
        };
        let forges_places = seed % 6 == 1;
        let space = seed
            .is_multiple_of(5)
            .then(|| Space { segments: choice.below(3), refuses: choice.chance(1, 2) });
        let image_faults = match seed % 7 {
            0 => Faults { write_error: 150, flush_error: 150, read_error: 150, short: 10 },
            _ => Faults::default(),
        };
        let refuses = space.as_ref().is_some_and(|space| space.refuses);
        Self {
            setup: Rc::new(Setup {
                config: Arc::new(config(u64::from(shards) * segments * SEGMENT_BYTES, refuses)),
                tls: tls.clone(),
                network: (has_network && seed.is_multiple_of(4)).then(|| conditions(seed)),
            }),
            shards,
            partitions: choice.between(3, 6) as u32,
            producers: choice.between(3, 8) as u32,
            record_bytes_max: choice.between(64, 6_000) as usize,
            latency,
            faults,
            image_faults,
            space,
            send_chance: match forges_places {
                // So few that a record is often alone in its block.
                true => choice.between(1, 4),
                false => choice.between(2, 40),
            },
            forged: match forges_places {
                true => 80,
                false => *choice.pick(&[0, 2, 40, 40]),
            },
            forges_places,
        }
    }
}

impl Scenario {
    /// The same on a disk that has space and does not fail, without a network.
    pub(crate) fn at_rest(seed: u64, tls: &Tls) -> Self {
        let scenario = Self::of(seed, tls, false);
        let capacity_bytes = scenario.setup.config.wal.capacity_bytes;
        Self {
            setup: Rc::new(Setup {
                config: Arc::new(config(capacity_bytes, false)),
                tls: tls.clone(),
                network: None,
            }),
            faults: Faults::default(),
            image_faults: Faults::default(),
            space: None,
            ..scenario
        }
    }

    /// The configuration of every topic.
    pub(crate) fn topic_config(&self) -> Vec<(String, String)> {
        let refuses = self.space.as_ref().is_some_and(|space| space.refuses);
        let pairs = RETENTION.iter().filter(|_| refuses);
        pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }
}

/// How the network treats datagrams: mostly it loses some.
fn conditions(seed: u64) -> Conditions {
    let mut choice = Choice::new(seed ^ 0x0da7_a6a3);
    Conditions {
        delay_ns: *choice.pick(&[(20_000, 80_000), (20_000, 800_000)]),
        lost: *choice.pick(&[0, 5, 20]),
        twice: *choice.pick(&[0, 20]),
    }
}

fn config(capacity_bytes: u64, refuses: bool) -> BrokerConfig {
    let sets = [
        "test.enabled=true",
        "test.retention_check_ms=5",
        "test.catalogue_bytes=64KiB",
        if refuses { "wal.when_full=refuse" } else { "wal.when_full=delete_oldest" },
        "wal.block_bytes_max=64KiB",
        "topics.record_bytes_max=16KiB",
        "wal.segment_bytes=1MiB",
        "wal.buffer_bytes=4MiB",
        "broker.data_dir=/data",
    ];
    let sets: Vec<String> = sets.map(str::to_owned).into();
    let mut config =
        BrokerConfig::load(None, std::iter::empty(), &sets).expect("options that are known");
    // Smaller than any broker may be told to be: it is the same code, and a run is as much shorter.
    config.wal.segment_bytes = SEGMENT_BYTES;
    config.wal.capacity_bytes = capacity_bytes;
    config.cache.hot_bytes = 64 << 10;
    config
}
