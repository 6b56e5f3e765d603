//! Topics and producers that come and go, and what clients know of them.

use std::collections::{BTreeMap, VecDeque};

use rustmq_checker::{Partition, Process};
use rustmq_protocol::frame::RequestKind;
use rustmq_protocol::{
    CreateTopic, CreateTopicResponse, DeleteTopic, ErrorCode, InitProducer, InitProducerResponse,
    Metadata, MetadataResponse, Offset, PartitionInfo, ProducerId, ProducerStamp, Sequence,
    ShardId, TopicPartition, TopicSelection,
};
use rustmq_sys::sim::choice::Choice;

use super::{FORGED_BEYOND, Fate, Log, Producer, Topic, Workload, undecodable, unexpected};
use crate::failure::Failure;
use crate::node::Node;

impl Workload {
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

    /// None of the producers sends any more.
    pub(crate) fn end_producers(&mut self) {
        self.producers.iter_mut().for_each(|producer| producer.ended = true);
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
}
