//! The checker finds every anomaly that is planted, under its name, and nothing where nothing is.

mod plant;

use std::collections::BTreeSet;

use plant::Script;
use rustmq_checker::generate::{Size, clean, replay};
use rustmq_checker::{Anomaly, Checker, History, Report};

/// Clean histories that must not raise an alarm.
const CLEAN_HISTORIES: u64 = 200;

/// Plants of each anomaly.
const PLANTS: u64 = 20;

/// Operations of most histories here.
const OPERATIONS: usize = 2_000;

fn check(script: &Script) -> Report {
    let mut history = History::default();
    replay(&script.events, &mut history);
    Checker::default().check(&history)
}

#[test]
fn clean_histories_raise_no_alarm() {
    // One history and one checker for all, as a simulator has them.
    let (mut history, mut checker) = (History::default(), Checker::default());
    let mut tolerant = Checker::with_gaps_where_nothing_is_known();
    for seed in 0..CLEAN_HISTORIES {
        let operations = [300, OPERATIONS][seed as usize % 2];
        history.clear();
        replay(&clean(seed, Size::small(operations)), &mut history);
        assert!(0 < history.acknowledged());
        for checker in [&mut checker, &mut tolerant] {
            let report = checker.check(&history);
            assert!(report.is_clean(), "seed {seed}: {report}");
        }
    }
}

#[test]
fn every_planted_anomaly_is_found_under_its_name() {
    for seed in 0..PLANTS {
        for anomaly in Anomaly::ALL {
            let mut script = Script::of_seed(seed, OPERATIONS);
            script.plant(anomaly, seed);
            let report = check(&script);
            let found: BTreeSet<Anomaly> = report.anomalies().collect();
            assert!(found.contains(&anomaly), "{anomaly}, seed {seed}: {report}");
            // What is planted may show in other ways too; nothing else may.
            let explained: BTreeSet<Anomaly> =
                plant::also_shows_as(anomaly).iter().copied().chain([anomaly]).collect();
            assert!(found.is_subset(&explained), "{anomaly}, seed {seed}: {report}");
        }
    }
}

#[test]
fn a_report_names_partition_offset_and_process_and_stays_short() {
    let mut script = Script::of_seed(1, OPERATIONS);
    let lost = script.lose_the_end();
    let report = check(&script);
    assert!(lost > 20, "{lost} records are a long report");
    assert!(report.count(Anomaly::Unseen) > 20, "{report}");
    let text = report.to_string();
    assert!(text.lines().count() <= 12, "{text}");
    for word in ["unseen: partition ", ", offset ", ", process "] {
        assert!(text.contains(word), "{text}");
    }
}

/// What it takes is measured by `benches/checker_history.rs`.
#[test]
fn a_million_operations_are_checked() {
    let mut history = History::default();
    replay(&clean(7, Size::large(1_000_000)), &mut history);
    let report = Checker::default().check(&history);
    assert!(report.is_clean(), "{report}");
}
