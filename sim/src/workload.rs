//! Clients: idempotent producers that repeat what they are not sure of, and topics that come and go.
//!
//! The state is what clients know. It outlives a crash of the broker: cloned at the moment of the
//! cut, it goes on with the broker that recovers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustmq_checker::{History, Partition, Process, SendId, Value};
use rustmq_protocol::frame::RequestKind;
use rustmq_protocol::{
    Acks, CreateTopic, CreateTopicResponse, DeleteTopic, ErrorCode, InitProducer,
    InitProducerResponse, Metadata, MetadataResponse, Offset, PartitionInfo, Produce, ProduceHead,
    ProduceResponse, ProducerId, ProducerStamp, Sequence, ShardId, TimestampMs, TopicId,
    TopicPartition, TopicSelection,
};
use rustmq_sys::sim::choice::Choice;

use crate::failure::Failure;
use crate::node::{Answer, Node};
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

    /// Creates a topic and waits for it.
    pub(crate) fn create_topic(
        &mut self,
        node: &mut Node,
        partitions: u32,
    ) -> Result<usize, Failure> {
        let name = format!("topic-{}", self.next_topic);
        self.next_topic += 1;
        let index = self.topics.len();
        let topic = Topic { name: name.clone(), id: None, fate: Fate::Unknown, logs: Vec::new() };
        self.topics.push(topic);
        let ask = CreateTopic {
            name,
            partitions,
            replication_factor: 1,
            config: self.topic_config.clone(),
        };
        let mut body = Vec::new();
        ask.encode(&mut body);
        let answer = node.ask(ShardId(0), RequestKind::CreateTopic, body)?;
        if answer.code != ErrorCode::Ok {
            return Err(unexpected("creating a topic", &answer));
        }
        let created = CreateTopicResponse::decode(&answer.body).map_err(undecodable)?;
        self.topics[index].id = Some(created.id);
        self.topics[index].fate = Fate::Lives;
        for _ in 0..partitions {
            let number = Partition(self.next_log);
            self.next_log += 1;
            let info = PartitionInfo {
                partition: rustmq_protocol::PartitionId(0),
                leader: rustmq_protocol::BrokerId(1),
                shard: ShardId(0),
                leader_epoch: rustmq_protocol::LeaderEpoch(0),
            };
            self.topics[index].logs.push(Log { number, info, times: BTreeMap::new() });
        }
        self.refresh(node)?;
        Ok(index)
    }

    /// Deletes a topic and waits until that is answered.
    pub(crate) fn delete_topic(&mut self, node: &mut Node, index: usize) -> Result<(), Failure> {
        self.topics[index].fate = Fate::Unknown;
        for producer in self.producers.iter_mut().filter(|producer| producer.topic == index) {
            producer.ended = true;
        }
        let mut body = Vec::new();
        DeleteTopic { name: self.topics[index].name.clone() }.encode(&mut body);
        let answer = node.ask(ShardId(0), RequestKind::DeleteTopic, body)?;
        match answer.code {
            ErrorCode::Ok | ErrorCode::UnknownTopic => {
                self.topics[index].fate = Fate::Gone;
                Ok(())
            }
            _ => Err(unexpected("deleting a topic", &answer)),
        }
    }

    /// Starts a producer on one partition of a topic.
    pub(crate) fn start_producer(
        &mut self,
        node: &mut Node,
        topic: usize,
        partition: usize,
        batches_max: Option<u32>,
    ) -> Result<(), Failure> {
        let stamp = self.init_producer(node)?;
        self.producers.push(Producer {
            process: Process(self.producers.len() as u32),
            topic,
            partition,
            stamp,
            next_sequence: 0,
            batches: 0,
            in_flight: VecDeque::new(),
            settled: VecDeque::new(),
            blocked: false,
            ended: false,
            batches_left: batches_max,
        });
        Ok(())
    }

    /// Asks for a producer id, which nobody may have had before.
    pub(crate) fn init_producer(&mut self, node: &mut Node) -> Result<ProducerStamp, Failure> {
        let mut body = Vec::new();
        InitProducer {}.encode(&mut body);
        let answer = node.ask(ShardId(0), RequestKind::InitProducer, body)?;
        if answer.code != ErrorCode::Ok {
            return Err(unexpected("asking for a producer id", &answer));
        }
        let given = InitProducerResponse::decode(&answer.body).map_err(undecodable)?;
        let InitProducerResponse { producer_id: ProducerId(id), producer_epoch } = given;
        if !self.producer_ids.insert(id) {
            return Err(Failure::broken(format!("producer id {id} was given out twice")));
        }
        Ok(ProducerStamp { id: ProducerId(id), epoch: producer_epoch, base_sequence: Sequence(0) })
    }

    /// Learns anew which topics there are and where. Fails when one that lives is missing, or one
    /// that was deleted is back.
    pub(crate) fn refresh(&mut self, node: &mut Node) -> Result<(), Failure> {
        let mut body = Vec::new();
        Metadata { topics: TopicSelection::All }.encode(&mut body);
        let answer = node.ask(ShardId(0), RequestKind::Metadata, body)?;
        if answer.code != ErrorCode::Ok {
            return Err(unexpected("asking for metadata", &answer));
        }
        let known = MetadataResponse::decode(&answer.body).map_err(undecodable)?;
        for topic in &mut self.topics {
            let found = known.topics.iter().find(|found| match topic.id {
                Some(id) => found.id == id,
                None => found.name == topic.name,
            });
            match (found, topic.fate) {
                (None, Fate::Lives) => {
                    return Err(Failure::broken(format!("{} is missing", topic.name)));
                }
                (Some(_), Fate::Gone) => {
                    return Err(Failure::broken(format!("{} was deleted and is back", topic.name)));
                }
                (None, _) => topic.fate = Fate::Gone,
                (Some(found), _) => {
                    for (log, info) in topic.logs.iter_mut().zip(&found.partitions) {
                        log.info = *info;
                    }
                }
            }
        }
        Ok(())
    }

    /// Logs of topics that are there: topic, index of the log.
    pub(crate) fn logs(&self) -> Vec<(usize, usize)> {
        let lives = |topic: &&Topic| topic.fate == Fate::Lives;
        let topics = self.topics.iter().enumerate().filter(|(_, topic)| lives(topic));
        topics
            .flat_map(|(index, topic)| (0..topic.logs.len()).map(move |log| (index, log)))
            .collect()
    }

    /// A log that is there, and an offset that it has not reached: where a forger would put a record.
    pub(crate) fn beyond_an_end(&self, choice: &mut Choice) -> Option<(TopicPartition, Offset)> {
        let logs = self.logs();
        let (topic, log) = *logs.get(choice.below(logs.len().max(1) as u64) as usize)?;
        let topic = &self.topics[topic];
        let log = &topic.logs[log];
        let end = self.history.acknowledged_end(log.number);
        let partition = TopicPartition { topic: topic.id?, partition: log.info.partition };
        Some((partition, Offset(end + FORGED_BEYOND)))
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

    /// Takes the answers that have come.
    pub(crate) fn receive(&mut self, node: &mut Node) -> Result<(), Failure> {
        for index in 0..self.producers.len() {
            let mut at = 0;
            while let Some(sent) = self.producers[index].in_flight.get(at) {
                match sent.ticket.and_then(|ticket| node.take_answer(ticket)) {
                    None => at += 1,
                    Some(answer) => {
                        self.answered(index, at, &answer)?;
                        at = 0;
                    }
                }
            }
        }
        let tickets: Vec<u64> = self.copies.keys().copied().collect();
        for ticket in tickets {
            if let Some(answer) = node.take_answer(ticket) {
                let copy = self.copies[&ticket];
                self.copies.remove(&ticket);
                self.copy_answered(copy, &answer)?;
            }
        }
        Ok(())
    }

    fn answered(&mut self, index: usize, at: usize, answer: &Answer) -> Result<(), Failure> {
        match answer.code {
            ErrorCode::Ok => {
                let response = ProduceResponse::decode(&answer.body).map_err(undecodable)?;
                self.acknowledge(index, at, &response)
            }
            _ if !self.is_live(index) => {
                // The topic goes: what becomes of its records is nobody's business.
                self.producers[index].in_flight.clear();
                Ok(())
            }
            ErrorCode::StorageFull
            | ErrorCode::Throttled
            | ErrorCode::Timeout
            | ErrorCode::Interrupted
            | ErrorCode::ShuttingDown
            | ErrorCode::OutOfOrderSequence => {
                self.refused_full += u64::from(answer.code == ErrorCode::StorageFull);
                self.unanswered += u64::from(answer.code == ErrorCode::Interrupted);
                let producer = &mut self.producers[index];
                producer.in_flight[at].ticket = None;
                producer.blocked = true;
                Ok(())
            }
            ErrorCode::UnknownProducerId if self.producers[index].in_flight[at].may_be_first => {
                // It overtook the first.
                let producer = &mut self.producers[index];
                producer.in_flight[at].ticket = None;
                producer.blocked = true;
                Ok(())
            }
            _ => Err(unexpected("producing", answer)),
        }
    }

    fn acknowledge(
        &mut self,
        index: usize,
        at: usize,
        response: &ProduceResponse,
    ) -> Result<(), Failure> {
        let producer = &mut self.producers[index];
        let sent = producer.in_flight.remove(at).expect("the caller saw it");
        let base = response.base_offset.0;
        for (offset, send) in (base..).zip(&sent.sends) {
            self.history.acknowledge(*send, Some(offset));
        }
        producer.settled.push_back((sent.sequence, base, sent.batch));
        if REPEATABLE < producer.settled.len() {
            producer.settled.pop_front();
        }
        self.acknowledged += 1;
        let (topic, partition) = (producer.topic, producer.partition);
        let log = &mut self.topics[topic].logs[partition];
        self.history.log_start(log.number, response.log_start_offset.0);
        if sent.repeated {
            return Ok(());
        }
        let time = response.append_time.0;
        let before = log.times.range(..base).next_back();
        let after = log.times.range(base..).next();
        if before.is_some_and(|(_, before)| time < *before)
            || after.is_some_and(|(_, after)| *after < time)
        {
            let number = log.number.0;
            return Err(Failure::broken(format!(
                "the append time of log {number} goes back at offset {base}"
            )));
        }
        log.times.insert(base, time);
        Ok(())
    }

    /// A repeated batch has to be where the first one is.
    fn copy_answered(&mut self, copy: Repeated, answer: &Answer) -> Result<(), Failure> {
        let Repeated { index, sequence, was_acknowledged } = copy;
        if !self.is_live(index) {
            return Ok(());
        }
        match answer.code {
            ErrorCode::Ok => {}
            // The first one was not taken either.
            ErrorCode::StorageFull
            | ErrorCode::Throttled
            | ErrorCode::Timeout
            | ErrorCode::Interrupted
            | ErrorCode::ShuttingDown => return Ok(()),
            // It overtook what was sent before it.
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId if !was_acknowledged => {
                return Ok(());
            }
            _ => return Err(unexpected("repeating a batch", answer)),
        }
        let response = ProduceResponse::decode(&answer.body).map_err(undecodable)?;
        if let Some(at) =
            self.producers[index].in_flight.iter().position(|sent| sent.sequence == sequence)
        {
            // The copy's answer is as good as the first one's, which will come and say the same.
            let ticket = self.producers[index].in_flight[at].ticket;
            self.acknowledge(index, at, &response)?;
            if let Some(ticket) = ticket {
                self.copies.insert(ticket, copy);
            }
            return Ok(());
        }
        match self.offset_of(index, sequence) {
            Some(offset) if offset != response.base_offset.0 => Err(Failure::broken(format!(
                "a batch was acknowledged at offset {offset} and, repeated, at {}",
                response.base_offset.0
            ))),
            _ => Ok(()),
        }
    }

    fn offset_of(&self, index: usize, sequence: u32) -> Option<u64> {
        let settled = self.producers[index].settled.iter();
        settled.rev().find(|settled| settled.0 == sequence).map(|settled| settled.1)
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
