//! Clients: idempotent producers that repeat what they are not sure of, and topics that come and go.
//!
//! The state is what clients know. It outlives a crash of the broker: cloned at the moment of the
//! cut, it goes on with the broker that recovers.

mod answers;
mod topics;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use rustmq_checker::{History, Partition, Process, SendId, Value};
use rustmq_protocol::frame::RequestKind;
use rustmq_protocol::{
    Acks, PartitionInfo, Produce, ProduceHead, ProducerStamp, Sequence, TimestampMs, TopicId,
};
use rustmq_sys::sim::choice::Choice;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::node::Node;
use crate::records::{self, NewBatch};

/// Batches of one producer from the first that is not acknowledged on: what the broker remembers of
/// each, so it knows the first one should it come once more.
const IN_FLIGHT_MAX: u64 = 5;

/// Acknowledged batches of a producer that it may send once more: still within what is remembered.
const REPEATABLE: usize = 3;

/// Once space was short, a producer that was refused tries again once in so many looks.
const PATIENCE: u64 = 32;

/// How far beyond the end of a log a forged record claims to be: what is on its way ends before.
const FORGED_BEYOND: u64 = 64;

/// What clients did and were told so far.
#[derive(Clone)]
pub(crate) struct Workload {
    pub(crate) choice: Choice,
    pub(crate) history: History,
    pub(crate) topics: Vec<Topic>,
    producers: Vec<Producer>,
    /// Second copies of batches on their way, by ticket.
    copies: BTreeMap<u64, Repeated>,
    next_value: u64,
    next_log: u32,
    next_topic: u32,
    producer_ids: BTreeSet<u64>,
    /// Batches that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Batches that were refused because the log or the disk is full.
    pub(crate) refused_full: u64,
    /// Batches of which nobody heard whether they were taken, because the connection was gone.
    pub(crate) unanswered: u64,
    /// The configuration of every topic.
    pub(crate) topic_config: Vec<(String, String)>,
    record_bytes_max: usize,
}

/// A topic, as clients know it.
#[derive(Clone)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: Option<TopicId>,
    pub(crate) fate: Fate,
    pub(crate) logs: Vec<Log>,
}

/// Is a topic there?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// Its creation was answered.
    Lives,
    /// It is being created, or deleted.
    Unknown,
    /// Its deletion was answered.
    Gone,
}

/// One partition of a topic.
#[derive(Clone)]
pub(crate) struct Log {
    /// Its number in the history.
    pub(crate) number: Partition,
    pub(crate) info: PartitionInfo,
    /// Append times that were acknowledged, by offset.
    times: BTreeMap<u64, i64>,
}

impl Log {
    /// The records of these offsets are refused as damaged, or were deleted and what told of them is
    /// damaged: nobody sees their times any more.
    pub(crate) fn forget_times(&mut self, offsets: Range<u64>) {
        self.times.retain(|offset, _| !offsets.contains(offset));
    }
}

#[derive(Clone)]
struct Producer {
    process: Process,
    topic: usize,
    partition: usize,
    stamp: ProducerStamp,
    next_sequence: u32,
    /// Batches that it has made.
    batches: u64,
    in_flight: VecDeque<Sent>,
    /// Batches that were acknowledged lately: sequence, offset, and the batch.
    settled: VecDeque<(u32, u64, NewBatch)>,
    /// A batch was refused for now: those after it wait until all are answered.
    blocked: bool,
    ended: bool,
    /// Batches that it still sends; none: without end.
    batches_left: Option<u32>,
}

/// A batch that was sent once more.
#[derive(Clone, Copy)]
struct Repeated {
    /// The producer.
    index: usize,
    sequence: u32,
    /// The first one had been acknowledged by then.
    was_acknowledged: bool,
}

#[derive(Clone)]
struct Sent {
    /// Counts the batches of the producer.
    number: u64,
    sequence: u32,
    batch: NewBatch,
    sends: Vec<SendId>,
    ticket: Option<u64>,
    /// It was sent more than once: the answer may be to a repetition, and that one tells the latest
    /// append time of the log instead of the batch's.
    repeated: bool,
    /// Nothing of its producer was acknowledged when it was sent: it may arrive before the first.
    may_be_first: bool,
}

impl Workload {
    /// Clients that have done nothing yet.
    pub(crate) fn new(choice: Choice, record_bytes_max: usize) -> Self {
        Self {
            choice,
            history: History::default(),
            topics: Vec::new(),
            producers: Vec::new(),
            copies: BTreeMap::new(),
            next_value: 1,
            next_log: 0,
            next_topic: 0,
            producer_ids: BTreeSet::new(),
            acknowledged: 0,
            refused_full: 0,
            unanswered: 0,
            topic_config: Vec::new(),
            record_bytes_max,
        }
    }

    /// After a crash nothing is on its way any more, and nobody knows what became of it.
    pub(crate) fn handle_crash(&mut self) {
        self.copies.clear();
        for producer in &mut self.producers {
            producer.blocked = false;
            for sent in &mut producer.in_flight {
                sent.ticket = None;
            }
        }
    }

    /// Sends once more what was acknowledged last, and everything that is not answered, and waits
    /// until all of it is.
    pub(crate) fn settle(&mut self, node: &mut Node, steps_max: u64) -> Result<(), Failure> {
        for index in 0..self.producers.len() {
            if self.is_live(index)
                && let Some((sequence, _, batch)) = self.producers[index].settled.back().cloned()
            {
                let ticket = self.transmit(node, index, &batch);
                self.copies.insert(ticket, Repeated { index, sequence, was_acknowledged: true });
            }
        }
        for _ in 0..steps_max {
            let unsettled = self
                .producers
                .iter()
                .enumerate()
                .any(|(index, producer)| self.is_live(index) && !producer.in_flight.is_empty());
            if !unsettled && self.copies.is_empty() {
                return Ok(());
            }
            self.resend(node);
            node.step()?;
            self.receive(node)?;
        }
        Err(Failure::Stuck { doing: "acknowledging what producers repeat" })
    }

    /// Lets each producer send once more what it was acknowledged last, if that is still served.
    /// A broker that no longer knows the producer may say so, but must not take it a second time.
    pub(crate) fn repeat_last(&mut self, node: &mut Node, steps_max: u64) -> Result<(), Failure> {
        for index in 0..self.producers.len() {
            let Some((_, offset, batch)) = self.producers[index].settled.back().cloned() else {
                continue;
            };
            let log = self.log_of(index).number;
            if !self.is_live(index) || !self.history.is_served(log, offset) {
                continue;
            }
            let ticket = self.transmit(node, index, &batch);
            let mut steps = steps_max;
            let answer = node.await_answer(ticket, &mut steps)?;
            self.check_repetition(offset, &answer)?;
        }
        Ok(())
    }

    /// Lets one of the producers send, if it may; it takes `forged` bytes along if there are any.
    pub(crate) fn produce(&mut self, node: &mut Node, forged: Option<&[u8]>) {
        let index = self.choice.below(self.producers.len() as u64) as usize;
        if !self.is_live(index) {
            return;
        }
        self.resend(node);
        let producer = &self.producers[index];
        let oldest = producer.in_flight.front();
        if producer.blocked
            || oldest.is_some_and(|oldest| oldest.number + IN_FLIGHT_MAX <= producer.batches)
            || producer.batches_left == Some(0)
        {
            return;
        }
        let count = match forged {
            Some(_) => 1,
            None => self.choice.between(1, 4),
        };
        let values: Vec<(u64, usize)> = (0..count)
            .map(|_| {
                let number = self.next_value;
                self.next_value += 1;
                let most = self.record_bytes_max as u64;
                let bytes = self.choice.between(records::VALUE_BYTES_MIN as u64, most);
                (number, bytes as usize)
            })
            .collect();
        let sequence = self.producers[index].next_sequence;
        let stamp =
            ProducerStamp { base_sequence: Sequence(sequence), ..self.producers[index].stamp };
        let batch = records::batch(&values, forged, TimestampMs(1), stamp);
        let log = self.log_of(index).number;
        let process = self.producers[index].process;
        let sends = batch.values.iter();
        let sends: Vec<SendId> =
            sends.map(|value| self.history.begin_send(process, log, Value(*value))).collect();
        let ticket = Some(self.transmit(node, index, &batch));
        let repeated = self.choice.chance(1, 16);
        if repeated {
            // A client that lost patience: the same batch twice at once.
            let copy = self.transmit(node, index, &batch);
            self.copies.insert(copy, Repeated { index, sequence, was_acknowledged: false });
        }
        let producer = &mut self.producers[index];
        let may_be_first = producer.settled.is_empty();
        producer.next_sequence += count as u32;
        producer.batches_left = producer.batches_left.map(|left| left - 1);
        producer.batches += 1;
        producer.in_flight.push_back(Sent {
            number: producer.batches - 1,
            sequence,
            batch,
            sends,
            ticket,
            repeated,
            may_be_first,
        });
    }

    /// Sends again, in order, what has to be.
    fn resend(&mut self, node: &mut Node) {
        for index in 0..self.producers.len() {
            let producer = &self.producers[index];
            if !self.is_live(index) || producer.in_flight.iter().all(|sent| sent.ticket.is_some()) {
                continue;
            }
            if producer.blocked && producer.in_flight.iter().any(|sent| sent.ticket.is_some()) {
                // What is still out comes first, or the order is lost.
                continue;
            }
            if producer.blocked && self.refused_full != 0 && !self.choice.chance(1, PATIENCE) {
                // It was told to come back later.
                continue;
            }
            self.producers[index].blocked = false;
            for at in 0..self.producers[index].in_flight.len() {
                if self.producers[index].in_flight[at].ticket.is_none() {
                    let batch = self.producers[index].in_flight[at].batch.clone();
                    let ticket = self.transmit(node, index, &batch);
                    self.producers[index].in_flight[at].ticket = Some(ticket);
                    let may_be_first = self.producers[index].settled.is_empty();
                    let sent = &mut self.producers[index].in_flight[at];
                    (sent.repeated, sent.may_be_first) = (true, may_be_first);
                }
            }
        }
    }

    fn transmit(&mut self, node: &mut Node, index: usize, batch: &NewBatch) -> u64 {
        let producer = &self.producers[index];
        let topic = &self.topics[producer.topic];
        let info = topic.logs[producer.partition].info;
        let head = ProduceHead {
            topic: topic.id.expect("producers start on topics that are there"),
            partition: info.partition,
            leader_epoch: info.leader_epoch,
            acks: Acks::All,
            timeout_ms: 30_000,
        };
        let mut body = Vec::with_capacity(64 + batch.bytes.len());
        Produce { head, batch: &batch.bytes }.encode(&mut body);
        node.send(info.shard, RequestKind::Produce, body)
    }

    fn is_live(&self, index: usize) -> bool {
        let producer = &self.producers[index];
        !producer.ended && self.topics[producer.topic].fate == Fate::Lives
    }

    fn log_of(&self, index: usize) -> &Log {
        let producer = &self.producers[index];
        &self.topics[producer.topic].logs[producer.partition]
    }
}

pub(crate) fn unexpected(doing: &str, answer: &Answer) -> Failure {
    let said = String::from_utf8_lossy(&answer.body);
    Failure::broken(format!("{doing} was answered {}: {said}", answer.code))
}

pub(crate) fn undecodable(error: rustmq_protocol::DecodeError) -> Failure {
    Failure::broken(format!("an answer cannot be decoded: {error}"))
}
