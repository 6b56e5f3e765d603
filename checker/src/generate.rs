//! Histories of a broker that does nothing wrong, from a seed: to test the checker, and to measure
//! it.
//!
//! The model has everything that a real history has and that must not raise an alarm: pipelined
//! sends, failures, unknown outcomes that come into the log or not or late, sends without an end,
//! readers that are assigned again further back, retention.

use std::collections::VecDeque;

use crate::{History, Partition, Process, Reader, SendId, Value};

/// A call on a [`History`], with numbers of the script's own for sends and readers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are the arguments of the call")]
pub enum Event {
    /// [`History::begin_send`].
    BeginSend { send: u32, process: Process, partition: Partition, value: Value },
    /// [`History::acknowledge`].
    Acknowledge { send: u32, offset: Option<u64> },
    /// [`History::fail`].
    Fail { send: u32 },
    /// [`History::give_up`].
    GiveUp { send: u32 },
    /// [`History::assign`].
    Assign { reader: u32, process: Process, partition: Partition, from: u64 },
    /// [`History::read`].
    Read { reader: u32, offset: u64, value: Value },
    /// [`History::read_below`].
    ReadBelow { reader: u32, offset: u64, value: Value, high_watermark: u64 },
    /// [`History::read_to_end`].
    ReadToEnd { reader: u32, end: u64 },
    /// [`History::log_start`].
    LogStart { partition: Partition, offset: u64 },
}

/// How much happens.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Sends and polls together. A poll reads up to [`POLL_RECORDS_MAX`] records.
    pub operations: usize,
    /// Partitions; at least one.
    pub partitions: u32,
    /// Processes that send; at least one.
    pub producers: u32,
    /// Processes that read; at least one.
    pub consumers: u32,
}

/// Records of one poll. 16: about what a batch of a busy producer holds.
pub const POLL_RECORDS_MAX: u64 = 16;

/// Sends of one process that wait for their end.
const IN_FLIGHT_MAX: usize = 8;

impl Size {
    /// A small history, of a few partitions and clients.
    pub fn small(operations: usize) -> Size {
        Size { operations, partitions: 3, producers: 4, consumers: 3 }
    }

    /// A history of many partitions and clients.
    pub fn large(operations: usize) -> Size {
        Size { operations, partitions: 32, producers: 16, consumers: 16 }
    }
}

/// A history in which nothing is wrong; the same for the same seed and size. It ends with a reading
/// of every partition, after which nothing is sent.
pub fn clean(seed: u64, size: Size) -> Vec<Event> {
    let mut model = Model::new(seed, size);
    let mut half = false;
    while model.operations < size.operations {
        model.step();
        if !half && size.operations / 2 < model.operations {
            half = true;
            model.read_everything();
        }
    }
    model.read_everything();
    model.events
}

/// Makes the calls.
pub fn replay(events: &[Event], history: &mut History) {
    let mut sends: Vec<Option<SendId>> = Vec::new();
    let mut readers: Vec<Option<Reader>> = Vec::new();
    for event in events {
        match *event {
            Event::BeginSend { send, process, partition, value } => {
                put(&mut sends, send, history.begin_send(process, partition, value));
            }
            Event::Acknowledge { send, offset } => history.acknowledge(get(&sends, send), offset),
            Event::Fail { send } => history.fail(get(&sends, send)),
            Event::GiveUp { send } => history.give_up(get(&sends, send)),
            Event::Assign { reader, process, partition, from } => {
                put(&mut readers, reader, history.assign(process, partition, from));
            }
            Event::Read { reader, offset, value } => {
                history.read(get(&readers, reader), offset, value);
            }
            Event::ReadBelow { reader, offset, value, high_watermark } => {
                history.read_below(get(&readers, reader), offset, value, high_watermark);
            }
            Event::ReadToEnd { reader, end } => history.read_to_end(get(&readers, reader), end),
            Event::LogStart { partition, offset } => history.log_start(partition, offset),
        }
    }
}

fn put<T: Copy>(list: &mut Vec<Option<T>>, at: u32, item: T) {
    let at = at as usize;
    if list.len() <= at {
        list.resize(at + 1, None);
    }
    list[at] = Some(item);
}

fn get<T: Copy>(list: &[Option<T>], at: u32) -> T {
    list[at as usize].expect("begun before")
}

/// Numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with this seed.
    pub fn new(seed: u64) -> Random {
        // Seeds that are close to each other must not begin alike.
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 if `end` is.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A broker in which nothing goes wrong, and its clients.
struct Model {
    random: Random,
    size: Size,
    operations: usize,
    logs: Vec<Log>,
    producers: Vec<Producer>,
    /// By consumer, then partition.
    positions: Vec<Option<Position>>,
    /// Given up, and still on their way to the broker.
    late: Vec<InFlight>,
    sends: u32,
    readers: u32,
    events: Vec<Event>,
}

#[derive(Default)]
struct Log {
    start: u64,
    values: Vec<Value>,
}

#[derive(Default)]
struct Producer {
    /// Begun, in order.
    begun: VecDeque<InFlight>,
    /// Those the broker has seen, with the offset if they are in the log.
    handled: VecDeque<(InFlight, Option<u64>)>,
}

#[derive(Clone, Copy)]
struct InFlight {
    send: u32,
    partition: u32,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    AcknowledgedSomewhere,
    Failed,
    AnswerLost,
    RequestLost,
    RequestLate,
}

#[derive(Clone, Copy)]
struct Position {
    reader: u32,
    next: u64,
}

impl Model {
    fn new(seed: u64, size: Size) -> Model {
        let positions = (size.consumers * size.partitions) as usize;
        Model {
            random: Random::new(seed),
            size,
            operations: 0,
            logs: (0..size.partitions).map(|_| Log::default()).collect(),
            producers: (0..size.producers).map(|_| Producer::default()).collect(),
            positions: vec![None; positions],
            late: Vec::new(),
            sends: 0,
            readers: 0,
            events: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=26 => self.begin(),
            27..=53 => self.handle(),
            54..=80 => self.end(),
            81..=98 => self.poll(),
            _ if self.random.one_in(10) => self.drop_oldest(),
            _ => self.arrive_late(),
        }
    }

    fn begin(&mut self) {
        let process = self.random.below(self.size.producers.into()) as u32;
        let partition = self.random.below(self.size.partitions.into()) as u32;
        let fate = match self.random.below(100) {
            0 => Fate::Failed,
            1 => Fate::AnswerLost,
            2 => Fate::RequestLost,
            3 => Fate::RequestLate,
            4 => Fate::AcknowledgedSomewhere,
            _ => Fate::Acknowledged,
        };
        let producer = &mut self.producers[process as usize];
        if producer.begun.len() + producer.handled.len() == IN_FLIGHT_MAX {
            return;
        }
        let send = self.sends;
        self.sends += 1;
        self.operations += 1;
        producer.begun.push_back(InFlight { send, partition, fate });
        let (process, partition) = (Process(process), Partition(partition));
        self.events.push(Event::BeginSend { send, process, partition, value: value(send) });
    }

    fn handle(&mut self) {
        let process = self.random.below(self.size.producers.into()) as usize;
        let Some(sent) = self.producers[process].begun.pop_front() else { return };
        let offset = match sent.fate {
            Fate::Acknowledged | Fate::AcknowledgedSomewhere | Fate::AnswerLost => {
                Some(self.logs[sent.partition as usize].append(sent.send))
            }
            Fate::Failed | Fate::RequestLost | Fate::RequestLate => None,
        };
        self.producers[process].handled.push_back((sent, offset));
    }

    fn end(&mut self) {
        let process = self.random.below(self.size.producers.into()) as usize;
        let Some((sent, offset)) = self.producers[process].handled.pop_front() else { return };
        let send = sent.send;
        self.events.push(match sent.fate {
            Fate::Acknowledged => Event::Acknowledge { send, offset },
            Fate::AcknowledgedSomewhere => Event::Acknowledge { send, offset: None },
            Fate::Failed => Event::Fail { send },
            Fate::AnswerLost | Fate::RequestLost => Event::GiveUp { send },
            Fate::RequestLate => {
                self.late.push(sent);
                Event::GiveUp { send }
            }
        });
    }

    fn arrive_late(&mut self) {
        if let Some(late) = self.late.pop() {
            self.logs[late.partition as usize].append(late.send);
        }
    }

    fn poll(&mut self) {
        let consumer = self.random.below(self.size.consumers.into()) as u32;
        let partition = self.random.below(self.size.partitions.into()) as u32;
        let start = self.logs[partition as usize].start;
        let slot = (consumer * self.size.partitions + partition) as usize;
        let position = match self.positions[slot] {
            Some(position) if !self.random.one_in(50) => position,
            // A new assignment goes back a little, as after a rebalance without a commit.
            position => {
                let next = position.map_or(start, |position| position.next);
                let next = next.saturating_sub(self.random.below(20)).max(start);
                self.assign(self.size.producers + consumer, partition, next)
            }
        };
        let next = self.read(partition, position, POLL_RECORDS_MAX);
        self.positions[slot] = Some(Position { next, ..position });
        self.operations += 1;
    }

    fn drop_oldest(&mut self) {
        let partition = self.random.below(self.size.partitions.into()) as u32;
        let log = &mut self.logs[partition as usize];
        log.start += self.random.below(log.end() - log.start) / 4;
        let offset = log.start;
        self.events.push(Event::LogStart { partition: Partition(partition), offset });
    }

    fn read_everything(&mut self) {
        for partition in 0..self.size.partitions {
            let process = self.size.producers + self.size.consumers;
            let Log { start, .. } = self.logs[partition as usize];
            let position = self.assign(process, partition, start);
            let end = self.read(partition, position, u64::MAX);
            self.events.push(Event::ReadToEnd { reader: position.reader, end });
        }
    }

    fn assign(&mut self, process: u32, partition: u32, from: u64) -> Position {
        let reader = self.readers;
        self.readers += 1;
        let (process, partition) = (Process(process), Partition(partition));
        self.events.push(Event::Assign { reader, process, partition, from });
        Position { reader, next: from }
    }

    /// Reads on; the offset after what was read.
    fn read(&mut self, partition: u32, position: Position, records_max: u64) -> u64 {
        let log = &self.logs[partition as usize];
        let begin = position.next.max(log.start);
        let end = begin.saturating_add(records_max).min(log.end());
        for offset in begin..end {
            let (reader, value) = (position.reader, log.values[offset as usize]);
            self.events.push(Event::Read { reader, offset, value });
        }
        end
    }
}

impl Log {
    fn append(&mut self, send: u32) -> u64 {
        self.values.push(value(send));
        self.end() - 1
    }

    fn end(&self) -> u64 {
        self.values.len() as u64
    }
}

/// The value of a send: none is like another, and they are in no order.
fn value(send: u32) -> Value {
    Value(u64::from(send).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
