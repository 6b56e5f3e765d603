//! What clients did and were told, in the order in which a test saw it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{Partition, Process, Value};

/// Events that a history holds at most; it panics at the limit. A test that records four thousand
/// million of them has other troubles, and 32 bits keep a record small.
pub const EVENTS_MAX: u32 = u32::MAX - 1;

/// The number of an event: the only clock.
pub(crate) type Moment = u32;

/// After every event.
pub(crate) const NEVER: Moment = Moment::MAX;

/// A send that was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendId(u32);

/// A process that reads one partition forward from one offset. A new assignment, be it after a
/// rebalance or because a client seeks, is a new reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reader(u32);

/// The record of everything, kept by one thread or under one lock.
///
/// What is recorded later must not have happened earlier: see the crate's page. It takes 56 bytes
/// for a send and 24 for a record read, keeps them until it is cleared, and keeps its memory then.
#[derive(Clone, Default)]
pub struct History {
    now: Moment,
    pub(crate) sends: Vec<SendRecord>,
    pub(crate) reads: Vec<ReadRecord>,
    pub(crate) readers: Vec<ReaderRecord>,
    pub(crate) jumps: Vec<Jump>,
    pub(crate) above_watermark: Vec<AboveWatermark>,
    pub(crate) refused: Vec<Refused>,
    partitions: BTreeMap<Partition, PartitionRecord>,
}

#[derive(Clone)]
pub(crate) struct SendRecord {
    pub(crate) process: Process,
    pub(crate) partition: Partition,
    pub(crate) value: Value,
    pub(crate) begun: Moment,
    /// The partition's acknowledged end when this began.
    pub(crate) floor: u64,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pending,
    Acknowledged { at: Moment, offset: Option<u64> },
    Failed,
    Unknown,
}

#[derive(Clone)]
pub(crate) struct ReadRecord {
    pub(crate) reader: Reader,
    pub(crate) at: Moment,
    pub(crate) offset: u64,
    pub(crate) value: Value,
}

#[derive(Clone)]
pub(crate) struct ReaderRecord {
    pub(crate) process: Process,
    pub(crate) partition: Partition,
    pub(crate) assigned: Moment,
    /// The partition's acknowledged end when it was assigned.
    pub(crate) acknowledged_end: u64,
    /// Where it began, or the log start if that rose above it meanwhile.
    pub(crate) from: u64,
    /// The offset that it has to read next.
    pub(crate) position: u64,
    /// The end of the log that it was told, when it has read up to there.
    pub(crate) end: Option<u64>,
}

/// Histories of millions are kept in memory: what they cost is said above.
const _: () = assert!(size_of::<SendRecord>() == 56);
const _: () = assert!(size_of::<ReadRecord>() == 24);

/// A reader read another offset than the next one.
#[derive(Clone)]
pub(crate) struct Jump {
    pub(crate) reader: Reader,
    /// The next one.
    pub(crate) expected: u64,
    /// The one that was read; or the end of the log.
    pub(crate) offset: u64,
    /// Where the log was known to start then.
    pub(crate) log_start: u64,
}

/// A reader was given what was not there to stay.
#[derive(Clone)]
pub(crate) struct AboveWatermark {
    pub(crate) reader: Reader,
    pub(crate) offset: u64,
    pub(crate) high_watermark: u64,
}

/// Offsets of which the broker says itself that it cannot serve them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refused {
    pub(crate) partition: Partition,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

#[derive(Clone, Default)]
struct PartitionRecord {
    acknowledged: u64,
    acknowledged_end: u64,
    log_start: u64,
}

impl History {
    /// A process is about to send a value. The same value may be sent again, as an idempotent
    /// producer repeats a batch: it is expected in the log once.
    pub fn begin_send(&mut self, process: Process, partition: Partition, value: Value) -> SendId {
        let begun = self.tick();
        let floor = self.acknowledged_end(partition);
        let outcome = Outcome::Pending;
        self.sends.push(SendRecord { process, partition, value, begun, floor, outcome });
        SendId((self.sends.len() - 1) as u32)
    }

    /// The broker said that it has the record for good, and where, unless the client does not say.
    pub fn acknowledge(&mut self, send: SendId, offset: Option<u64>) {
        let at = self.tick();
        let partition = self.end_send(send, Outcome::Acknowledged { at, offset });
        let partition = self.partitions.entry(partition).or_default();
        partition.acknowledged += 1;
        let end = offset.map_or(0, |offset| offset.saturating_add(1));
        partition.acknowledged_end = partition.acknowledged_end.max(end);
    }

    /// The broker said that the record is not in the log and never will be.
    pub fn fail(&mut self, send: SendId) {
        self.end_send(send, Outcome::Failed);
    }

    /// The client gave up: the record may be in the log or not, and may come into it later. A send
    /// that never ends is held to come in its turn or not at all.
    pub fn give_up(&mut self, send: SendId) {
        self.end_send(send, Outcome::Unknown);
    }

    /// A process begins to read a partition forward from an offset.
    pub fn assign(&mut self, process: Process, partition: Partition, from: u64) -> Reader {
        let assigned = self.tick();
        let acknowledged_end = self.acknowledged_end(partition);
        self.readers.push(ReaderRecord {
            process,
            partition,
            assigned,
            acknowledged_end,
            from,
            position: from,
            end: None,
        });
        Reader((self.readers.len() - 1) as u32)
    }

    /// A reader was given a record.
    pub fn read(&mut self, reader: Reader, offset: u64, value: Value) {
        let at = self.tick();
        self.reads.push(ReadRecord { reader, at, offset, value });
        self.step(reader, offset);
        self.readers[reader.0 as usize].position = offset.saturating_add(1);
    }

    /// The same, and the answer that held the record named this high watermark.
    pub fn read_below(&mut self, reader: Reader, offset: u64, value: Value, high_watermark: u64) {
        self.read(reader, offset, value);
        if high_watermark <= offset {
            self.above_watermark.push(AboveWatermark { reader, offset, high_watermark });
        }
    }

    /// A reader has read everything up to the end of the log: an offset that it asked the broker
    /// for *after* it was assigned. Whatever was acknowledged or read before it was assigned, and
    /// is not below where it began, it must have read.
    pub fn read_to_end(&mut self, reader: Reader, end: u64) {
        let position = self.readers[reader.0 as usize].position;
        self.step(reader, end.max(position));
        let log_start = self.log_start_of(reader);
        let record = &mut self.readers[reader.0 as usize];
        record.from = record.from.max(log_start);
        record.end = Some(end.max(position));
    }

    /// The log of a partition now starts here: retention may have dropped what is below. To be
    /// recorded before the reads that are further on because of it.
    pub fn log_start(&mut self, partition: Partition, offset: u64) {
        let partition = self.partitions.entry(partition).or_default();
        partition.log_start = partition.log_start.max(offset);
    }

    /// The broker says of these offsets that it cannot serve them, so that nobody has to find them
    /// again: a loss, but not a silent one.
    pub fn refuse(&mut self, partition: Partition, offsets: Range<u64>) {
        self.refused.push(Refused { partition, start: offsets.start, end: offsets.end });
    }

    /// Is it neither below the log start nor an offset that the broker says it cannot serve?
    pub fn is_served(&self, partition: Partition, offset: u64) -> bool {
        let holds = |range: &Refused| (range.start..range.end).contains(&offset);
        let log_start = self.partitions.get(&partition).map_or(0, |partition| partition.log_start);
        log_start <= offset
            && !self.refused.iter().any(|range| range.partition == partition && holds(range))
    }

    /// One past the highest acknowledged offset of a partition; 0 if there is none.
    pub fn acknowledged_end(&self, partition: Partition) -> u64 {
        self.partitions.get(&partition).map_or(0, |partition| partition.acknowledged_end)
    }

    /// Sends that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.partitions.values().map(|partition| partition.acknowledged).sum()
    }

    /// Forgets everything but the memory that it took.
    pub fn clear(&mut self) {
        self.now = 0;
        self.sends.clear();
        self.reads.clear();
        self.readers.clear();
        self.jumps.clear();
        self.above_watermark.clear();
        self.refused.clear();
        self.partitions.clear();
    }

    pub(crate) fn reader(&self, reader: Reader) -> &ReaderRecord {
        &self.readers[reader.0 as usize]
    }

    fn tick(&mut self) -> Moment {
        assert!(self.now < EVENTS_MAX, "a history holds {EVENTS_MAX} events");
        self.now += 1;
        self.now
    }

    fn end_send(&mut self, send: SendId, outcome: Outcome) -> Partition {
        let send = &mut self.sends[send.0 as usize];
        assert!(send.outcome == Outcome::Pending, "a send ends once");
        send.outcome = outcome;
        send.partition
    }

    fn step(&mut self, reader: Reader, offset: u64) {
        let expected = self.reader(reader).position;
        if offset != expected {
            let log_start = self.log_start_of(reader);
            self.jumps.push(Jump { reader, expected, offset, log_start });
        }
    }

    fn log_start_of(&self, reader: Reader) -> u64 {
        let partition = self.partitions.get(&self.reader(reader).partition);
        partition.map_or(0, |partition| partition.log_start)
    }
}
