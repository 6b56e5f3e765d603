//! What clients saw of a broker, held against what no broker may let them see.
//!
//! A test records in a [`History`] what its clients did and were told: sends that begin and end,
//! assignments, records read. A [`Checker`] then names every contradiction as one of the twelve
//! [`Anomaly`]s, in a short [`Report`] with partition, offset and process. It needs no search: an
//! offset is the place of a record in its partition's order, so everything is sorting and
//! comparing, `n log n` in what was recorded.
//!
//! Nothing here reads a clock or talks to a broker. Time is the order of the calls: a test records
//! the begin of a send *before* it hands the record over, and everything it learns *after* it
//! learnt it. Then whatever the history orders was so ordered in the world.
//!
//! ```
//! use rustmq_checker::{Anomaly, Checker, History, Partition, Process, Value};
//!
//! let (producer, consumer, partition) = (Process(0), Process(1), Partition(7));
//! let mut history = History::default();
//! for (offset, value) in [b"first", b"after"].into_iter().enumerate() {
//!     let send = history.begin_send(producer, partition, Value::of(value));
//!     history.acknowledge(send, Some(offset as u64));
//! }
//! let reader = history.assign(consumer, partition, 0);
//! history.read(reader, 0, Value::of(b"first"));
//! history.read_to_end(reader, 1);
//!
//! let report = Checker::default().check(&history);
//! assert_eq!(report.count(Anomaly::Unseen), 1);
//! assert!(report.to_string().contains("unseen: partition 7, offset 1"));
//! ```
//!
//! # What comes later
//!
//! - *Consumer groups.* A reader is one assignment, so a member of a new generation is a new
//!   reader; commits will be events that say from where the next generation may begin.
//! - *Transactions.* A send ends once, by itself; the sends of a transaction will end together with
//!   it, and offsets without a record (its markers) are what
//!   [`Checker::with_gaps_where_nothing_is_known`] is for.
//!
//! Reading order: [`History`], [`Anomaly`], [`Checker`], [`Report`], [`generate`].

mod history;

mod anomaly;

mod check;

mod report;

pub mod generate;

pub use anomaly::Anomaly;
pub use check::Checker;
pub use history::{EVENTS_MAX, History, Reader, SendId};
pub use report::{EXAMPLES_MAX, Finding, Report};

use std::hash::{DefaultHasher, Hasher};

/// A log that assigns offsets: one partition of one topic. The number is the caller's; a topic made
/// again under the same name is another log and takes another number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Partition(pub u32);

/// A client that does one thing after another. Sends of one process to one partition are promised
/// to be in the log in the order of their begins: a producer without that promise takes a process
/// for each send. The number is the caller's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Process(pub u32);

/// The identity of a record's value: equal if and only if the values are. Different records of a
/// partition must differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Value(pub u64);

impl Value {
    /// The identity of these bytes: a hash of 64 bits, by which two of a million different values
    /// are alike with a probability of less than 1 : 10⁷. Not to be stored, as it may differ
    /// between builds.
    pub fn of(bytes: &[u8]) -> Value {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        Value(hasher.finish())
    }
}
