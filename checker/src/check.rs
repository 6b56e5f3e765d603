//! From a history to a report: everything sorted by offset, by value and by process.
//!
//! ```text
//! acknowledgements ┐                        ┌ by offset  → do all agree?
//!                  ├─ known: (offset, value)┤ by value   → once, sent, not too early, not failed?
//! records read ────┘                        ├ by process → in the order of the sends?
//!                                           └ by reading → still there at the end?
//! readers ─────────── jumps                              → forward, without a hole?
//! ```

use std::cmp::Reverse;

use crate::history::{History, Moment, NEVER, Outcome, Refused, SendRecord};
use crate::{Anomaly, Finding, Partition, Process, Report, Value};

/// Judges histories, one after another, and keeps its memory from one to the next.
///
/// It costs `n log n` in the sends and records read, whatever is wrong with them.
#[derive(Default)]
pub struct Checker {
    gaps_where_nothing_is_known: bool,
    report: Report,
    /// What was told, by partition and offset.
    told: Vec<Key>,
    /// The same once each, by partition, offset and value.
    known: Vec<Known>,
    /// The known, by partition, value and offset.
    known_by_value: Vec<Key>,
    /// The sends, by partition, value and begin.
    sends_by_value: Vec<Key>,
    /// Sends that are known to be in the log, by process, partition and offset.
    placed: Vec<Key>,
    /// By partition and where they began, the last one first.
    readings: Vec<Reading>,
    /// By partition and start, without overlap.
    refused: Vec<Refused>,
}

/// What a list is sorted by, from the most significant part on, and last an index: in one number,
/// as sorting is nearly all that a check costs. What is gathered is in order piece by piece, and the
/// sort that keeps equals in place makes use of that.
type Key = u128;

/// A 32-bit part, a 64-bit part and an index.
fn key(major: u32, middle: u64, index: u32) -> Key {
    u128::from(major) << 96 | u128::from(middle) << 32 | u128::from(index)
}

/// All but the index.
fn without_index(key: Key) -> Key {
    key >> 32
}

fn index_of(key: Key) -> usize {
    key as u32 as usize
}

/// A value that somebody was told to be at an offset.
#[derive(Clone, Copy)]
struct Known {
    partition: Partition,
    offset: u64,
    value: Value,
    /// The first acknowledgement, or [`NEVER`].
    acknowledged: Moment,
    /// The first time that it was read, or [`NEVER`].
    read_first: Moment,
    /// The last time, or 0.
    read_last: Moment,
    /// Who was told first; later the sender, if there is one.
    process: Process,
}

/// A reader that came to the end of the log.
#[derive(Clone, Copy)]
struct Reading {
    partition: Partition,
    from: u64,
    end: u64,
    assigned: Moment,
    process: Process,
    acknowledged_end: u64,
}

impl Checker {
    /// A checker for logs in which some offsets have no record, such as markers of transactions: a
    /// reader may pass over an offset at which nobody ever saw a record. Otherwise that is a
    /// [`Anomaly::PollSkip`].
    pub fn with_gaps_where_nothing_is_known() -> Checker {
        Checker { gaps_where_nothing_is_known: true, ..Checker::default() }
    }

    /// Names everything that is wrong with a history. The history may go on after it.
    pub fn check(&mut self, history: &History) -> Report {
        self.gather_known(history);
        self.gather_readings(history);
        self.gather_refused(history);
        self.compare_values_at_offsets();
        self.compare_with_sends(history);
        self.compare_order_of_processes();
        self.follow_readers(history);
        self.compare_readings_with_what_was_acknowledged();
        self.compare_readings_with_what_is_known();
        std::mem::take(&mut self.report)
    }

    fn gather_known(&mut self, history: &History) {
        self.told.clear();
        for (index, send) in (0..).zip(&history.sends) {
            if let Outcome::Acknowledged { offset: Some(offset), .. } = send.outcome {
                self.told.push(key(send.partition.0, offset, index));
            }
        }
        for (index, read) in (history.sends.len() as u32..).zip(&history.reads) {
            let partition = history.reader(read.reader).partition;
            self.told.push(key(partition.0, read.offset, index));
        }
        self.told.sort();
        self.known.clear();
        for at in self.told.chunk_by(|a, b| without_index(*a) == without_index(*b)) {
            let begin = self.known.len();
            for told in at {
                let told = Known::of(history, index_of(*told));
                match self.known[begin..].last_mut() {
                    Some(last) if last.value == told.value => last.join(&told),
                    _ => self.known.push(told),
                }
            }
            // Nearly always there is but one value.
            if begin + 1 < self.known.len() {
                let mut values = self.known.split_off(begin);
                values.sort_unstable_by_key(|known| known.value);
                values.dedup_by(|next, first| {
                    let same = next.value == first.value;
                    if same {
                        first.join(next);
                    }
                    same
                });
                self.known.append(&mut values);
            }
        }
        let known = (0..).zip(&self.known);
        self.known_by_value.clear();
        self.known_by_value
            .extend(known.map(|(index, known)| key(known.partition.0, known.value.0, index)));
        self.known_by_value.sort();
    }

    fn gather_readings(&mut self, history: &History) {
        self.readings.clear();
        for reader in &history.readers {
            let Some(end) = reader.end else { continue };
            self.readings.push(Reading {
                partition: reader.partition,
                from: reader.from,
                end,
                assigned: reader.assigned,
                process: reader.process,
                acknowledged_end: reader.acknowledged_end,
            });
        }
        self.readings.sort_unstable_by_key(|reading| {
            (reading.partition, reading.from, Reverse(reading.assigned))
        });
    }

    fn gather_refused(&mut self, history: &History) {
        self.refused.clear();
        self.refused.extend(history.refused.iter().cloned());
        self.refused.sort_unstable();
        self.refused.dedup_by(|next, before| {
            let joined = next.partition == before.partition && next.start <= before.end;
            if joined {
                before.end = before.end.max(next.end);
            }
            joined
        });
    }

    /// Is one value at each offset?
    fn compare_values_at_offsets(&mut self) {
        for at in self.known.chunk_by(|a, b| (a.partition, a.offset) == (b.partition, b.offset)) {
            if 1 < at.len() {
                let (conflicting, inconsistent) =
                    (Anomaly::ConflictingAcknowledgements, Anomaly::InconsistentOffsets);
                contradict(&mut self.report, at, conflicting, inconsistent);
            }
        }
    }

    /// Is each value at one offset, was it sent, and was it not read before?
    fn compare_with_sends(&mut self, history: &History) {
        let sends = (0..).zip(&history.sends);
        self.sends_by_value.clear();
        self.sends_by_value
            .extend(sends.map(|(index, send)| key(send.partition.0, send.value.0, index)));
        self.sends_by_value.sort();
        self.placed.clear();

        let mut known = Groups::new(std::mem::take(&mut self.known_by_value));
        let mut sends = Groups::new(std::mem::take(&mut self.sends_by_value));
        while let Some(next) = smaller(known.peek(), sends.peek()) {
            let places = known.take_if(next);
            let sent = sends.take_if(next);
            self.compare_value(history, places, sent);
        }
        self.known_by_value = known.list;
        self.sends_by_value = sends.list;
    }

    /// The same for one value, with its places in the order of offsets and its sends in that of
    /// their begins.
    fn compare_value(&mut self, history: &History, places: &[Key], sends: &[Key]) {
        if 1 < places.len() {
            let places: Vec<Known> =
                places.iter().map(|place| self.known[index_of(*place)]).collect();
            let (conflicting, duplicate) =
                (Anomaly::ConflictingAcknowledgements, Anomaly::Duplicate);
            contradict(&mut self.report, &places, conflicting, duplicate);
        }
        let Some(first) = sends.first() else {
            for place in places {
                self.add_known(Anomaly::Phantom, *place);
            }
            return;
        };
        let first = &history.sends[index_of(*first)];
        let sends = sends.iter().map(|send| &history.sends[index_of(*send)]);
        if sends.clone().all(|send| send.outcome == Outcome::Failed) {
            for place in places {
                self.add_known(Anomaly::FailedWrite, *place);
            }
            return;
        }
        for place in places {
            self.known[index_of(*place)].process = first.process;
            if self.known[index_of(*place)].read_first < first.begun {
                self.add_known(Anomaly::ReadBeforeSend, *place);
            }
        }
        let acknowledged = sends.clone().filter_map(SendRecord::acknowledged).min();
        match places {
            [] => self.find_unplaced(first, acknowledged),
            [place] => {
                let known = &mut self.known[index_of(*place)];
                known.acknowledged = known.acknowledged.min(acknowledged.unwrap_or(NEVER));
                let given_up = sends.clone().any(|send| send.outcome == Outcome::Unknown);
                self.place(first, index_of(*place), given_up);
            }
            // Its place is in dispute, so it cannot be out of order.
            _ => {}
        }
    }

    /// A send is in the log, at the offset of one of the known.
    fn place(&mut self, send: &SendRecord, known: usize, given_up: bool) {
        let SendRecord { process, partition, floor, begun, .. } = *send;
        let offset = self.known[known].offset;
        if offset < floor {
            let anomaly = Anomaly::NonmonotonicSend;
            self.report.add(Finding { anomaly, partition, offset, process, against: floor - 1 });
        } else if !given_up {
            // The known of a partition are in the order of offsets.
            let middle = u64::from(partition.0) << 32 | known as u64;
            self.placed.push(key(process.0, middle, begun));
        }
    }

    /// Nobody knows where this send is. If it was acknowledged a reading of the whole log should.
    fn find_unplaced(&mut self, send: &SendRecord, acknowledged: Option<Moment>) {
        let Some(acknowledged) = acknowledged else { return };
        // It may be among what the broker refuses to serve.
        let refused = self.refused.partition_point(|range| range.partition < send.partition);
        if self.refused.get(refused).is_some_and(|range| range.partition == send.partition) {
            return;
        }
        let begin = self.readings.partition_point(|reading| reading.partition < send.partition);
        let last = self.readings.get(begin).filter(|reading| {
            reading.partition == send.partition
                && reading.from == 0
                && acknowledged < reading.assigned
        });
        if let Some(Reading { end, .. }) = last {
            self.report.add(Finding {
                anomaly: Anomaly::Unseen,
                partition: send.partition,
                offset: *end,
                process: send.process,
                against: *end,
            });
        }
    }

    /// Are the sends of each process in the log in the order in which they began?
    fn compare_order_of_processes(&mut self) {
        self.placed.sort();
        let process_and_partition = |placed: Key| placed >> 64;
        let begun = |placed: Key| placed as Moment;
        let known = |placed: Key| &self.known[without_index(placed) as u32 as usize];
        let same = |a: &Key, b: &Key| process_and_partition(*a) == process_and_partition(*b);
        for sends in self.placed.chunk_by(same) {
            let mut latest = sends[0];
            for send in sends.iter().copied() {
                if begun(send) < begun(latest) {
                    let (early, late) = (known(latest), known(send));
                    let anomaly = Anomaly::NonmonotonicSend;
                    self.report.add(early.finding(anomaly, late.offset));
                } else {
                    latest = send;
                }
            }
        }
    }

    /// Did each reader go forward, and leave nothing out?
    fn follow_readers(&mut self, history: &History) {
        for jump in &history.jumps {
            let reader = history.reader(jump.reader);
            let partition = reader.partition;
            if jump.offset < jump.expected {
                self.report.add(Finding {
                    anomaly: Anomaly::NonmonotonicPoll,
                    partition,
                    offset: jump.offset,
                    process: reader.process,
                    against: jump.expected,
                });
                continue;
            }
            let begin = jump.expected.max(jump.log_start);
            if let Some(offset) = self.first_left_out(partition, begin, jump.offset) {
                self.report.add(Finding {
                    anomaly: Anomaly::PollSkip,
                    partition,
                    offset,
                    process: reader.process,
                    against: jump.offset,
                });
            }
        }
        for read in &history.above_watermark {
            let reader = history.reader(read.reader);
            self.report.add(Finding {
                anomaly: Anomaly::ReadThenLost,
                partition: reader.partition,
                offset: read.offset,
                process: reader.process,
                against: read.high_watermark,
            });
        }
    }

    /// The first offset in `begin..end` that a reader should have been given.
    fn first_left_out(&self, partition: Partition, begin: u64, end: u64) -> Option<u64> {
        let mut offset = begin;
        while offset < end {
            if let Some(refused) = refused_at(&self.refused, partition, offset) {
                offset = refused.end;
                continue;
            }
            if !self.gaps_where_nothing_is_known {
                return Some(offset);
            }
            let next = self
                .known
                .partition_point(|known| (known.partition, known.offset) < (partition, offset));
            let next = self.known.get(next).filter(|known| known.partition == partition)?;
            if next.offset == offset {
                return Some(offset);
            }
            offset = next.offset;
        }
        None
    }

    /// Did each reading come as far as what was acknowledged before it? The last one of a
    /// partition is compared with every record by itself.
    fn compare_readings_with_what_was_acknowledged(&mut self) {
        for readings in self.readings.chunk_by(|a, b| a.partition == b.partition) {
            let last = readings.iter().map(|reading| reading.assigned).max();
            for reading in readings.iter().filter(|reading| Some(reading.assigned) != last) {
                let Reading { partition, end, acknowledged_end, process, .. } = *reading;
                let refused = refused_at(&self.refused, partition, end);
                if end < acknowledged_end && refused.is_none() {
                    let anomaly = Anomaly::Unseen;
                    self.report.add(Finding {
                        anomaly,
                        partition,
                        offset: end,
                        process,
                        against: end,
                    });
                }
            }
        }
    }

    /// Was each record that somebody knew read again by the last reading that covers its offset?
    fn compare_readings_with_what_is_known(&mut self) {
        let mut readings = self.readings.iter().peekable();
        let mut last: Option<&Reading> = None;
        for known in &self.known {
            // Those that began at or below this offset; of them the last.
            while let Some(reading) = readings
                .next_if(|next| (next.partition, next.from) <= (known.partition, known.offset))
            {
                let other = last.is_none_or(|last| last.partition != reading.partition);
                if other || last.is_some_and(|last| last.assigned < reading.assigned) {
                    last = Some(reading);
                }
            }
            let Some(reading) = last.filter(|last| last.partition == known.partition) else {
                continue;
            };
            let was_known = known.told() < reading.assigned;
            if !was_known || reading.assigned < known.read_last {
                continue;
            }
            if refused_at(&self.refused, known.partition, known.offset).is_some() {
                continue;
            }
            let anomaly = match known.acknowledged < reading.assigned {
                true if known.offset < reading.end => Anomaly::LostWrite,
                true => Anomaly::Unseen,
                false => Anomaly::ReadThenLost,
            };
            self.report.add(known.finding(anomaly, reading.end));
        }
    }

    fn add_known(&mut self, anomaly: Anomaly, place: Key) {
        let known = self.known[index_of(place)];
        self.report.add(known.finding(anomaly, known.offset));
    }
}

impl Known {
    /// What an acknowledgement or a read told: the sends come first, then the reads.
    fn of(history: &History, index: usize) -> Known {
        if let Some(send) = history.sends.get(index) {
            let Outcome::Acknowledged { at: acknowledged, offset: Some(offset) } = send.outcome
            else {
                unreachable!("only what was acknowledged at an offset was told")
            };
            return Known {
                partition: send.partition,
                offset,
                value: send.value,
                acknowledged,
                read_first: NEVER,
                read_last: 0,
                process: send.process,
            };
        }
        let read = &history.reads[index - history.sends.len()];
        let reader = history.reader(read.reader);
        Known {
            partition: reader.partition,
            offset: read.offset,
            value: read.value,
            acknowledged: NEVER,
            read_first: read.at,
            read_last: read.at,
            process: reader.process,
        }
    }

    /// The same value at the same offset, told once more.
    fn join(&mut self, other: &Known) {
        if other.told() < self.told() {
            self.process = other.process;
        }
        self.acknowledged = self.acknowledged.min(other.acknowledged);
        self.read_first = self.read_first.min(other.read_first);
        self.read_last = self.read_last.max(other.read_last);
    }

    /// When somebody first knew of it.
    fn told(&self) -> Moment {
        self.acknowledged.min(self.read_first)
    }

    fn finding(&self, anomaly: Anomaly, against: u64) -> Finding {
        let Known { partition, offset, process, .. } = *self;
        Finding { anomaly, partition, offset, process, against }
    }
}

impl SendRecord {
    fn acknowledged(&self) -> Option<Moment> {
        match self.outcome {
            Outcome::Acknowledged { at, .. } => Some(at),
            Outcome::Pending | Outcome::Failed | Outcome::Unknown => None,
        }
    }
}

/// Reports what cannot all be true: of two acknowledgements one thing, of a read another.
fn contradict(report: &mut Report, all: &[Known], of_acknowledgements: Anomaly, of_reads: Anomaly) {
    let is_acknowledged = |known: &&Known| known.acknowledged != NEVER;
    let mut acknowledged = all.iter().filter(is_acknowledged);
    let first_acknowledged = acknowledged.next();
    for known in acknowledged {
        let against = first_acknowledged.map_or(0, |first| first.offset);
        report.add(known.finding(of_acknowledgements, against));
    }
    let Some(first) = first_acknowledged.or_else(|| all.first()) else { return };
    let rest = all.iter().filter(|known| !is_acknowledged(known));
    for known in rest.filter(|known| (known.offset, known.value) != (first.offset, first.value)) {
        report.add(known.finding(of_reads, first.offset));
    }
}

fn refused_at(refused: &[Refused], partition: Partition, offset: u64) -> Option<&Refused> {
    let after =
        refused.partition_point(|range| (range.partition, range.start) <= (partition, offset));
    let range = refused[..after].last()?;
    (range.partition == partition && offset < range.end).then_some(range)
}

/// A sorted list, taken one value after another.
struct Groups {
    list: Vec<Key>,
    at: usize,
}

impl Groups {
    fn new(list: Vec<Key>) -> Groups {
        Groups { list, at: 0 }
    }

    /// Partition and value of the next entries.
    fn peek(&self) -> Option<Key> {
        self.list.get(self.at).map(|next| without_index(*next))
    }

    /// The entries of this partition and value, if they are next.
    fn take_if(&mut self, value: Key) -> &[Key] {
        let begin = self.at;
        while self.peek() == Some(value) {
            self.at += 1;
        }
        &self.list[begin..self.at]
    }
}

fn smaller(a: Option<Key>, b: Option<Key>) -> Option<Key> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
