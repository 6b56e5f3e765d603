//! What producers were told against what a consumer reads.
//!
//! Pure: it is told what happened and says what is wrong. Values are unique within a partition, so
//! a value found twice is a duplicate and a value never submitted is a phantom.

use std::collections::BTreeMap;
use std::fmt;

/// A record that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReadRecord {
    /// Its partition.
    pub(crate) partition: u32,
    /// Its offset.
    pub(crate) offset: u64,
    /// Its value.
    pub(crate) value: Vec<u8>,
}

/// What must never be found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Anomaly {
    /// Acknowledged at this offset, at or above where the reading began, and not read.
    Lost { partition: u32, offset: u64 },
    /// Acknowledged at this offset, where another value was read.
    Mismatch { partition: u32, offset: u64 },
    /// The value is in the log twice.
    Duplicate { partition: u32, first: u64, second: u64 },
    /// The record before it was submitted after it.
    Reordered { partition: u32, offset: u64 },
    /// Nobody submitted what was read.
    Phantom { partition: u32, offset: u64 },
    /// The offset read is not one more than that before it.
    Gap { partition: u32, after: u64, offset: u64 },
    /// Two submitted values were acknowledged at the same offset.
    AcknowledgedTwice { partition: u32, offset: u64 },
}

/// Everything that was submitted to one topic, in order, and what was acknowledged.
#[derive(Default)]
pub(crate) struct History {
    partitions: BTreeMap<u32, PartitionHistory>,
    anomalies: Vec<Anomaly>,
}

#[derive(Default)]
struct PartitionHistory {
    /// Each value, and how many were submitted before it.
    submitted: BTreeMap<Vec<u8>, u64>,
    /// The value acknowledged at each offset.
    acknowledged: BTreeMap<u64, Vec<u8>>,
}

impl History {
    /// A value is about to be sent. It must not have been before.
    pub(crate) fn submit(&mut self, partition: u32, value: &[u8]) {
        let history = self.partitions.entry(partition).or_default();
        let order = history.submitted.len() as u64;
        let before = history.submitted.insert(value.to_vec(), order);
        assert!(before.is_none(), "a test submits each value once");
    }

    /// The broker said that this value is at this offset.
    pub(crate) fn acknowledge(&mut self, partition: u32, offset: u64, value: &[u8]) {
        let history = self.partitions.entry(partition).or_default();
        let before = history.acknowledged.insert(offset, value.to_vec());
        if before.is_some_and(|before| before != value) {
            self.anomalies.push(Anomaly::AcknowledgedTwice { partition, offset });
        }
    }

    /// How many were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        let partitions = self.partitions.values();
        partitions.map(|history| history.acknowledged.len()).sum()
    }

    /// Offset after the last that was acknowledged in a partition.
    pub(crate) fn acknowledged_end(&self, partition: u32) -> u64 {
        let history = self.partitions.get(&partition);
        let last = history.and_then(|history| history.acknowledged.last_key_value());
        last.map_or(0, |(offset, _)| offset + 1)
    }

    /// Compares with what was read of a partition: everything from `from` on to its end.
    pub(crate) fn check(&self, partition: u32, from: u64, read: &[ReadRecord]) -> Vec<Anomaly> {
        let mut anomalies = self.anomalies.clone();
        let empty = PartitionHistory::default();
        let history = self.partitions.get(&partition).unwrap_or(&empty);
        let mut offsets = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let mut order_before = None;
        let mut expected = from;
        for record in read.iter().filter(|record| record.partition == partition) {
            let offset = record.offset;
            if offset != expected {
                anomalies.push(Anomaly::Gap { partition, after: expected, offset });
            }
            expected = offset + 1;
            if let Some(first) = seen.insert(&record.value, offset) {
                anomalies.push(Anomaly::Duplicate { partition, first, second: offset });
            }
            match history.submitted.get(&record.value) {
                None => anomalies.push(Anomaly::Phantom { partition, offset }),
                Some(order) => {
                    if order_before.is_some_and(|before| *order < before) {
                        anomalies.push(Anomaly::Reordered { partition, offset });
                    }
                    order_before = Some(*order);
                }
            }
            offsets.insert(offset, &record.value);
        }
        for (offset, value) in history.acknowledged.range(from..) {
            let offset = *offset;
            match offsets.get(&offset) {
                None => anomalies.push(Anomaly::Lost { partition, offset }),
                Some(read) if *read != value => {
                    anomalies.push(Anomaly::Mismatch { partition, offset });
                }
                Some(_) => {}
            }
        }
        anomalies
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anomaly::Lost { partition, offset } => write!(f, "lost: {partition}/{offset}"),
            Anomaly::Mismatch { partition, offset } => {
                write!(f, "another value than acknowledged: {partition}/{offset}")
            }
            Anomaly::Duplicate { partition, first, second } => {
                write!(f, "duplicate: {partition}/{first} and {second}")
            }
            Anomaly::Reordered { partition, offset } => {
                write!(f, "out of order: {partition}/{offset}")
            }
            Anomaly::Phantom { partition, offset } => {
                write!(f, "never submitted: {partition}/{offset}")
            }
            Anomaly::Gap { partition, after, offset } => {
                write!(f, "gap: {partition}/{after}, read {offset}")
            }
            Anomaly::AcknowledgedTwice { partition, offset } => {
                write!(f, "two values acknowledged: {partition}/{offset}")
            }
        }
    }
}

mod tests {
    use super::*;

    fn value(number: u64) -> Vec<u8> {
        format!("value {number}").into_bytes()
    }

    /// Ten values submitted to partition 3; the first nine acknowledged, from offset 100 on.
    fn history() -> History {
        let mut history = History::default();
        for number in 0..10 {
            history.submit(3, &value(number));
        }
        for number in 0..9 {
            history.acknowledge(3, 100 + number, &value(number));
        }
        history
    }

    fn log(numbers: impl IntoIterator<Item = u64>) -> Vec<ReadRecord> {
        let records = (100..).zip(numbers).map(|(offset, number)| ReadRecord {
            partition: 3,
            offset,
            value: value(number),
        });
        records.collect()
    }

    #[test]
    fn a_log_with_everything_once_in_order_is_clean() {
        assert_eq!(history().check(3, 100, &log(0..9)), []);
        // What was not acknowledged may be there or not.
        assert_eq!(history().check(3, 100, &log(0..10)), []);
        assert_eq!(history().acknowledged(), 9);
        assert_eq!(history().acknowledged_end(3), 109);
    }

    #[test]
    fn what_lies_below_the_log_start_is_not_missed() {
        assert_eq!(history().check(3, 104, &log(0..9)[4..]), []);
    }

    #[test]
    fn a_lost_record_at_the_end_is_found() {
        let lost = Anomaly::Lost { partition: 3, offset: 108 };
        assert_eq!(history().check(3, 100, &log(0..8)), [lost]);
    }

    #[test]
    fn a_lost_record_in_the_middle_is_found_even_if_offsets_close_up() {
        let found = history().check(3, 100, &log([0, 1, 2, 4, 5, 6, 7, 8, 9]));
        let mismatch = Anomaly::Mismatch { partition: 3, offset: 103 };
        assert!(found.contains(&mismatch), "{found:?}");
        let mut read = log(0..9);
        read.remove(3);
        let found = history().check(3, 100, &read);
        let gap = Anomaly::Gap { partition: 3, after: 103, offset: 104 };
        let lost = Anomaly::Lost { partition: 3, offset: 103 };
        assert_eq!(found, [gap, lost]);
    }

    #[test]
    fn a_duplicate_is_found() {
        let found = history().check(3, 100, &log([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]));
        let duplicate = Anomaly::Duplicate { partition: 3, first: 108, second: 109 };
        assert_eq!(found, [duplicate]);
    }

    #[test]
    fn an_exchange_of_two_records_is_found() {
        let found = history().check(3, 100, &log([0, 1, 2, 4, 3, 5, 6, 7, 8]));
        let reordered = Anomaly::Reordered { partition: 3, offset: 104 };
        assert!(found.contains(&reordered), "{found:?}");
    }

    #[test]
    fn a_phantom_is_found() {
        let found = history().check(3, 100, &log([0, 1, 2, 3, 4, 5, 6, 7, 8, 77]));
        let phantom = Anomaly::Phantom { partition: 3, offset: 109 };
        assert_eq!(found, [phantom]);
    }

    #[test]
    fn an_offset_given_to_two_values_is_found() {
        let mut history = history();
        history.acknowledge(3, 100, &value(9));
        let twice = Anomaly::AcknowledgedTwice { partition: 3, offset: 100 };
        assert!(history.check(3, 100, &log(0..9)).contains(&twice));
    }

    #[test]
    fn the_same_record_in_another_partition_does_not_count() {
        let mut read = log(0..9);
        read[0].partition = 4;
        let found = history().check(3, 100, &read);
        let lost = Anomaly::Lost { partition: 3, offset: 100 };
        assert!(found.contains(&lost), "{found:?}");
    }
}
