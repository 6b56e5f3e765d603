//! Anomalies put into clean histories.

use rustmq_checker::generate::{Event, Random, Size, clean};
use rustmq_checker::{Anomaly, Partition, Process, Value};

/// A clean history to spoil. It ends with one reading of each partition.
pub(crate) struct Script {
    pub(crate) events: Vec<Event>,
    size: Size,
    random: Random,
    next_send: u32,
    next_reader: u32,
    next_value: u64,
}

/// What else the plants below show as, by their nature.
pub(crate) fn also_shows_as(anomaly: Anomaly) -> &'static [Anomaly] {
    match anomaly {
        // Two records exchanged are also each at two offsets, and at one of them no longer.
        Anomaly::InconsistentOffsets => {
            &[Anomaly::Duplicate, Anomaly::LostWrite, Anomaly::ReadThenLost]
        }
        // A reader that leaves a record out left it out.
        Anomaly::LostWrite => &[Anomaly::PollSkip],
        // At the end there are also records that were read and never acknowledged.
        Anomaly::Unseen => &[Anomaly::ReadThenLost],
        _ => &[],
    }
}

impl Script {
    pub(crate) fn of_seed(seed: u64, operations: usize) -> Script {
        let size = Size::small(operations);
        Script {
            events: clean(seed, size),
            size,
            random: Random::new(seed ^ 0x5eed),
            // Above all that a history of this size has.
            next_send: 1_000_000,
            next_reader: 1_000_000,
            next_value: 1,
        }
    }

    /// Puts one anomaly in; which variant, and where, is the seed's to say.
    pub(crate) fn plant(&mut self, anomaly: Anomaly, seed: u64) {
        let variant = seed.is_multiple_of(2);
        match anomaly {
            Anomaly::InconsistentOffsets => self.exchange_two_records_of_one_poll(),
            Anomaly::Duplicate => self.repeat_a_record_at_the_end(),
            Anomaly::ConflictingAcknowledgements if variant => self.acknowledge_elsewhere(),
            Anomaly::ConflictingAcknowledgements => self.acknowledge_another_value(),
            Anomaly::LostWrite => self.leave_out_of_the_last_reading(),
            Anomaly::Unseen => drop(self.lose_the_end()),
            Anomaly::ReadThenLost if variant => self.read_what_is_gone_later(),
            Anomaly::ReadThenLost => self.read_above_the_high_watermark(),
            Anomaly::NonmonotonicSend if variant => self.overtake_in_one_process(),
            Anomaly::NonmonotonicSend => self.overtake_an_acknowledged_send(),
            Anomaly::NonmonotonicPoll => self.go_back_in_one_assignment(),
            Anomaly::PollSkip => self.leave_out_of_a_poll(),
            Anomaly::Phantom => self.read_what_nobody_sent(),
            Anomaly::ReadBeforeSend => self.read_before_the_send(),
            Anomaly::FailedWrite => self.keep_what_failed(),
        }
    }

    /// Takes the last third from a partition's last reading; how many records.
    pub(crate) fn lose_the_end(&mut self) -> usize {
        let partition = self.any_partition();
        let (reader, end) = self.last_reader(partition);
        let read: Vec<u64> = self.reads(|of| of == reader).iter().map(|read| read.1).collect();
        let new_end = read[read.len() * 2 / 3];
        // Others read them before: without that they are lost all the same.
        self.events.retain(|event| match *event {
            Event::Read { reader: of, offset, .. } => of != reader || offset < new_end,
            _ => true,
        });
        self.set_end(reader, new_end);
        (end - new_end) as usize
    }

    fn exchange_two_records_of_one_poll(&mut self) {
        let last = self.last_readers();
        let kept: Vec<Value> =
            self.reads(|reader| last.contains(&reader)).iter().map(|read| read.2).collect();
        // The last readings stay as they are, so somebody disagrees.
        let reads = self.reads(|reader| !last.contains(&reader));
        let pairs: Vec<(usize, usize)> = reads
            .windows(2)
            .filter(|pair| pair.iter().all(|read| kept.contains(&read.2)))
            .map(|pair| (pair[0].0, pair[1].0))
            .filter(|(one, other)| self.reader_of(*one) == self.reader_of(*other))
            .collect();
        let (one, other) = pairs[self.random.below(pairs.len() as u64) as usize];
        let (Event::Read { value: first, .. }, Event::Read { value: second, .. }) =
            (self.events[one], self.events[other])
        else {
            unreachable!("they are reads")
        };
        self.set_value(one, second);
        self.set_value(other, first);
    }

    fn repeat_a_record_at_the_end(&mut self) {
        let partition = self.any_partition();
        let (reader, _) = self.last_reader(partition);
        let reads = self.reads(|of| of == reader);
        let (_, _, value) = reads[self.random.below(reads.len() as u64) as usize];
        self.append(partition, &[value]);
    }

    /// The same value is sent again, and answered with another offset.
    fn acknowledge_elsewhere(&mut self) {
        let (send, offset) = self.any_acknowledged();
        let (process, partition, value) = self.begun(send);
        let again = self.send();
        let at = self.events.len() - 1;
        self.events.insert(at, Event::BeginSend { send: again, process, partition, value });
        let offset = Some(offset + 1_000_000);
        self.events.insert(at + 1, Event::Acknowledge { send: again, offset });
    }

    fn acknowledge_another_value(&mut self) {
        let (send, offset) = self.any_acknowledged();
        let (_, partition, _) = self.begun(send);
        let (process, value) = (Process(99), self.value());
        let send = self.send();
        // Begun first of all, so that its place is no surprise.
        self.events.insert(0, Event::BeginSend { send, process, partition, value });
        self.events.push(Event::Acknowledge { send, offset: Some(offset) });
    }

    fn leave_out_of_the_last_reading(&mut self) {
        let acknowledged = self.all_acknowledged();
        let last = self.last_readers();
        let reads = self.reads(|reader| last.contains(&reader));
        // One with others after it, which somebody was told of.
        let choices: Vec<usize> = reads
            .windows(2)
            .filter(|pair| pair[1].1 == pair[0].1 + 1 && acknowledged.contains(&pair[0].2))
            .map(|pair| pair[0].0)
            .collect();
        let at = choices[self.random.below(choices.len() as u64) as usize];
        self.events.remove(at);
    }

    fn read_what_is_gone_later(&mut self) {
        let partition = self.any_partition();
        let (_, end) = self.last_reader(partition);
        let (send, reader, value) = (self.send(), self.reader(), self.value());
        self.before_the_last_readings(&[
            Event::BeginSend { send, process: Process(99), partition, value },
            Event::Assign { reader, process: Process(98), partition, from: end },
            Event::Read { reader, offset: end, value },
        ]);
    }

    fn read_above_the_high_watermark(&mut self) {
        let reads = self.reads(|_| true);
        let (at, offset, value) = reads[self.random.below(reads.len() as u64) as usize];
        let reader = self.reader_of(at);
        let high_watermark = self.random.below(offset + 1);
        self.events[at] = Event::ReadBelow { reader, offset, value, high_watermark };
    }

    fn overtake_in_one_process(&mut self) {
        let partition = self.any_partition();
        let process = Process(99);
        let [(first, one), (second, two)] = [0; 2].map(|_| (self.send(), self.value()));
        let end = self.append(partition, &[two, one]);
        self.before_the_last_readings(&[
            Event::BeginSend { send: first, process, partition, value: one },
            Event::BeginSend { send: second, process, partition, value: two },
            Event::Acknowledge { send: second, offset: Some(end) },
            Event::Acknowledge { send: first, offset: Some(end + 1) },
        ]);
    }

    fn overtake_an_acknowledged_send(&mut self) {
        let partition = self.any_partition();
        let [(first, one), (second, two)] = [0; 2].map(|_| (self.send(), self.value()));
        let end = self.append(partition, &[two, one]);
        self.before_the_last_readings(&[
            Event::BeginSend { send: first, process: Process(98), partition, value: one },
            Event::Acknowledge { send: first, offset: Some(end + 1) },
            Event::BeginSend { send: second, process: Process(99), partition, value: two },
            Event::GiveUp { send: second },
        ]);
    }

    fn go_back_in_one_assignment(&mut self) {
        let reads = self.reads(|_| true);
        let (at, ..) = reads[self.random.below(reads.len() as u64) as usize];
        let again = self.events[at];
        self.events.insert(at + 1, again);
    }

    fn leave_out_of_a_poll(&mut self) {
        // Those that never came to an end promised nothing but to leave nothing out.
        let finished = self.finished_readers();
        let reads = self.reads(|reader| !finished.contains(&reader));
        // Of three in a row the one in the middle.
        let middles: Vec<usize> = reads
            .windows(3)
            .filter(|three| three[2].0 == three[0].0 + 2 && three[2].1 == three[0].1 + 2)
            .map(|three| three[1].0)
            .collect();
        let at = middles[self.random.below(middles.len() as u64) as usize];
        self.events.remove(at);
    }

    fn read_what_nobody_sent(&mut self) {
        let (partition, value) = (self.any_partition(), self.value());
        self.append(partition, &[value]);
    }

    fn read_before_the_send(&mut self) {
        let partition = self.any_partition();
        let (send, reader, value) = (self.send(), self.reader(), self.value());
        let end = self.append(partition, &[value]);
        self.before_the_last_readings(&[
            Event::Assign { reader, process: Process(98), partition, from: end },
            Event::Read { reader, offset: end, value },
            Event::BeginSend { send, process: Process(99), partition, value },
            Event::Acknowledge { send, offset: Some(end) },
        ]);
    }

    fn keep_what_failed(&mut self) {
        let partition = self.any_partition();
        let (send, value) = (self.send(), self.value());
        self.append(partition, &[value]);
        self.before_the_last_readings(&[
            Event::BeginSend { send, process: Process(99), partition, value },
            Event::Fail { send },
        ]);
    }

    /// Lets the last reading of a partition find more; the offset of the first.
    fn append(&mut self, partition: Partition, values: &[Value]) -> u64 {
        let (reader, end) = self.last_reader(partition);
        let at = self.events.iter().position(
            |event| matches!(event, Event::ReadToEnd { reader: of, .. } if *of == reader),
        );
        let at = at.expect("it comes to the end");
        let reads = (end..).zip(values).map(|(offset, value)| {
            let value = *value;
            Event::Read { reader, offset, value }
        });
        self.events.splice(at..at, reads);
        self.set_end(reader, end + values.len() as u64);
        end
    }

    fn before_the_last_readings(&mut self, events: &[Event]) {
        let first = self.last_readers()[0];
        let at = self
            .events
            .iter()
            .position(|event| matches!(event, Event::Assign { reader, .. } if *reader == first));
        let at = at.expect("it is assigned");
        self.events.splice(at..at, events.iter().copied());
    }

    /// The readers of the last readings, one of each partition, in order.
    fn last_readers(&self) -> Vec<u32> {
        let finished = self.finished_readers();
        finished[finished.len() - self.size.partitions as usize..].to_vec()
    }

    fn finished_readers(&self) -> Vec<u32> {
        let finished = self.events.iter().filter_map(|event| match event {
            Event::ReadToEnd { reader, .. } => Some(*reader),
            _ => None,
        });
        finished.collect()
    }

    /// The last reader of a partition, and where it ended.
    fn last_reader(&self, partition: Partition) -> (u32, u64) {
        let last = self.last_readers()[partition.0 as usize];
        let end = self.events.iter().find_map(|event| match event {
            Event::ReadToEnd { reader, end } if *reader == last => Some(*end),
            _ => None,
        });
        (last, end.expect("it comes to the end"))
    }

    /// Index, offset and value of the reads of some readers.
    fn reads(&self, of: impl Fn(u32) -> bool) -> Vec<(usize, u64, Value)> {
        let reads = self.events.iter().enumerate().filter_map(|(at, event)| match event {
            Event::Read { reader, offset, value } if of(*reader) => Some((at, *offset, *value)),
            _ => None,
        });
        reads.collect()
    }

    fn reader_of(&self, at: usize) -> u32 {
        match self.events[at] {
            Event::Read { reader, .. } => reader,
            other => unreachable!("{other:?} is no read"),
        }
    }

    fn set_value(&mut self, at: usize, new: Value) {
        if let Event::Read { value, .. } = &mut self.events[at] {
            *value = new;
        }
    }

    fn set_end(&mut self, of: u32, new: u64) {
        for event in &mut self.events {
            match event {
                Event::ReadToEnd { reader, end } if *reader == of => *end = new,
                _ => {}
            }
        }
    }

    /// Send and offset of any acknowledged one.
    fn any_acknowledged(&mut self) -> (u32, u64) {
        let all = self.events.iter().filter_map(|event| match event {
            Event::Acknowledge { send, offset: Some(offset) } => Some((*send, *offset)),
            _ => None,
        });
        let all: Vec<(u32, u64)> = all.collect();
        all[self.random.below(all.len() as u64) as usize]
    }

    fn all_acknowledged(&self) -> Vec<Value> {
        let all = self.events.iter().filter_map(|event| match event {
            Event::Acknowledge { send, .. } => Some(self.begun(*send).2),
            _ => None,
        });
        all.collect()
    }

    fn begun(&self, of: u32) -> (Process, Partition, Value) {
        let begun = self.events.iter().find_map(|event| match event {
            Event::BeginSend { send, process, partition, value } if *send == of => {
                Some((*process, *partition, *value))
            }
            _ => None,
        });
        begun.expect("what ends was begun")
    }

    fn any_partition(&mut self) -> Partition {
        Partition(self.random.below(self.size.partitions.into()) as u32)
    }

    fn send(&mut self) -> u32 {
        self.next_send += 1;
        self.next_send
    }

    fn reader(&mut self) -> u32 {
        self.next_reader += 1;
        self.next_reader
    }

    fn value(&mut self) -> Value {
        self.next_value += 1;
        Value(self.next_value)
    }
}
