//! What is an anomaly and what is not, one fact at a time.

use rustmq_checker::{Anomaly, Checker, History, Partition, Process, Reader, SendId, Value};

const PRODUCER: Process = Process(0);
const CONSUMER: Process = Process(1);
const PARTITION: Partition = Partition(3);

/// Ten values sent to one partition; the first nine acknowledged, from offset 100 on.
fn history() -> (History, Vec<SendId>) {
    let mut history = History::default();
    let sends: Vec<SendId> =
        (0..10).map(|value| history.begin_send(PRODUCER, PARTITION, Value(value))).collect();
    for (offset, send) in (100..109).zip(&sends) {
        history.acknowledge(*send, Some(offset));
    }
    (history, sends)
}

/// Reads these values, the first one at `from`, as a reading to the end.
fn read(history: &mut History, from: u64, values: impl IntoIterator<Item = u64>) -> Reader {
    let reader = history.assign(CONSUMER, PARTITION, from);
    let mut end = from;
    for value in values {
        history.read(reader, end, Value(value));
        end += 1;
    }
    history.read_to_end(reader, end);
    reader
}

/// Kinds and counts.
fn found(history: &History) -> Vec<(Anomaly, u64)> {
    let report = Checker::default().check(history);
    report.anomalies().map(|anomaly| (anomaly, report.count(anomaly))).collect()
}

#[test]
fn a_log_with_everything_once_in_order_is_clean() {
    let (mut history, _) = history();
    assert_eq!((history.acknowledged(), history.acknowledged_end(PARTITION)), (9, 109));
    // What was not acknowledged may be there or not, until somebody has read it.
    read(&mut history, 100, 0..9);
    read(&mut history, 100, 0..10);
    assert_eq!(found(&history), []);
    read(&mut history, 100, 0..9);
    assert_eq!(found(&history), [(Anomaly::ReadThenLost, 1)]);
}

#[test]
fn what_lies_below_the_beginning_of_a_reading_is_not_missed() {
    let (mut history, _) = history();
    read(&mut history, 104, 4..9);
    assert_eq!(found(&history), []);
}

#[test]
fn what_was_acknowledged_after_a_reading_began_is_not_missed() {
    let (mut history, sends) = history();
    let reader = history.assign(CONSUMER, PARTITION, 100);
    history.acknowledge(sends[9], Some(109));
    for offset in 100..109 {
        history.read(reader, offset, Value(offset - 100));
    }
    history.read_to_end(reader, 109);
    assert_eq!(found(&history), []);
}

#[test]
fn an_end_that_comes_back_was_missing_meanwhile() {
    let (mut history, _) = history();
    read(&mut history, 100, 0..7);
    read(&mut history, 100, 0..9);
    assert_eq!(found(&history), [(Anomaly::Unseen, 1)]);
}

#[test]
fn an_offset_given_to_another_record_loses_the_first() {
    let (mut history, _) = history();
    read(&mut history, 100, [0, 1, 2, 9, 4, 5, 6, 7, 8]);
    let found = found(&history);
    assert!(found.contains(&(Anomaly::InconsistentOffsets, 1)), "{found:?}");
    assert!(found.contains(&(Anomaly::LostWrite, 1)), "{found:?}");
}

#[test]
fn a_log_that_closed_up_over_a_loss_is_found() {
    let (mut history, _) = history();
    read(&mut history, 100, [0, 1, 2, 4, 5, 6, 7, 8]);
    let found = found(&history);
    for anomaly in [Anomaly::LostWrite, Anomaly::InconsistentOffsets, Anomaly::Duplicate] {
        assert!(found.iter().any(|found| found.0 == anomaly), "{anomaly}: {found:?}");
    }
}

#[test]
fn a_reader_that_ends_before_the_end_that_it_was_told_left_something_out() {
    let (mut history, _) = history();
    let reader = history.assign(CONSUMER, PARTITION, 109);
    history.read_to_end(reader, 110);
    assert_eq!(found(&history), [(Anomaly::PollSkip, 1)]);
}

#[test]
fn retention_excuses_a_jump_to_where_the_log_now_starts() {
    for log_start in [104, 105] {
        let (mut history, _) = history();
        let reader = history.assign(CONSUMER, PARTITION, 100);
        history.read(reader, 100, Value(0));
        history.log_start(PARTITION, log_start);
        for offset in 105..109 {
            history.read(reader, offset, Value(offset - 100));
        }
        history.read_to_end(reader, 109);
        // 104 was to be read unless it had gone, too.
        let expected = match log_start {
            104 => vec![(Anomaly::LostWrite, 1), (Anomaly::PollSkip, 1)],
            _ => vec![],
        };
        assert_eq!(found(&history), expected);
    }
}

#[test]
fn what_the_broker_refuses_by_name_is_no_silent_loss() {
    let (mut history, _) = history();
    let reader = history.assign(CONSUMER, PARTITION, 100);
    for offset in [100, 101, 105, 107, 108] {
        history.read(reader, offset, Value(offset - 100));
    }
    history.read_to_end(reader, 109);
    history.refuse(PARTITION, 103..105);
    history.refuse(PARTITION, 102..104);
    // 106 it did not name.
    assert_eq!(found(&history), [(Anomaly::LostWrite, 1), (Anomaly::PollSkip, 1)]);
    history.refuse(PARTITION, 106..107);
    assert_eq!(found(&history), []);
}

#[test]
fn a_value_sent_again_is_expected_once() {
    let (mut history, _) = history();
    let again = history.begin_send(PRODUCER, PARTITION, Value(4));
    history.acknowledge(again, Some(104));
    read(&mut history, 100, 0..9);
    assert_eq!(found(&history), []);
    let again = history.begin_send(PRODUCER, PARTITION, Value(4));
    history.acknowledge(again, Some(109));
    assert_eq!(found(&history), [(Anomaly::ConflictingAcknowledgements, 1)]);
}

#[test]
fn what_was_acknowledged_without_an_offset_must_be_somewhere() {
    let mut history = History::default();
    let sends = [0, 1].map(|value| history.begin_send(PRODUCER, PARTITION, Value(value)));
    for send in sends {
        history.acknowledge(send, None);
    }
    read(&mut history, 0, 0..1);
    assert_eq!(found(&history), [(Anomaly::Unseen, 1)]);
    read(&mut history, 0, 0..2);
    assert_eq!(found(&history), [(Anomaly::Unseen, 0)][..0]);
}

#[test]
fn an_offset_without_a_record_may_be_passed_over_where_logs_have_such() {
    let (mut history, _) = history();
    let reader = history.assign(CONSUMER, PARTITION, 98);
    for offset in 100..109 {
        history.read(reader, offset, Value(offset - 100));
    }
    history.read_to_end(reader, 112);
    assert_eq!(found(&history), [(Anomaly::PollSkip, 2)]);
    let report = Checker::with_gaps_where_nothing_is_known().check(&history);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn the_same_record_in_another_partition_does_not_count() {
    let (mut history, _) = history();
    let reader = history.assign(CONSUMER, Partition(4), 0);
    history.read(reader, 0, Value(0));
    history.read_to_end(reader, 1);
    read(&mut history, 100, 0..9);
    assert_eq!(found(&history), [(Anomaly::Phantom, 1)]);
}

#[test]
fn what_was_given_up_may_come_late_but_not_early() {
    let mut history = History::default();
    let given_up = history.begin_send(PRODUCER, PARTITION, Value(0));
    history.give_up(given_up);
    let next = history.begin_send(PRODUCER, PARTITION, Value(1));
    history.acknowledge(next, Some(0));
    read(&mut history, 0, [1, 0]);
    assert_eq!(found(&history), []);
    let early = history.begin_send(PRODUCER, PARTITION, Value(2));
    history.give_up(early);
    // Begun when offset 0 was taken, and found there.
    let reader = history.assign(CONSUMER, PARTITION, 0);
    history.read(reader, 0, Value(2));
    let found = found(&history);
    assert!(found.contains(&(Anomaly::NonmonotonicSend, 1)), "{found:?}");
}
