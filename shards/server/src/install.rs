//! What the metadata says becomes what lives here: partitions come and go.

use std::rc::Rc;

use rustmq_engine::Partition;
use rustmq_engine::partition::PartitionState;
use rustmq_metadata::{Command, Topic, WalUuid, apply};
use rustmq_protocol::{LeaderEpoch, TopicId, TopicPartition};
use rustmq_wal::WalId;

use crate::partitions::{LocalPartition, retention_of};
use crate::replay::{Replayed, ReplayedPartition};
use crate::reply::RequestError;
use crate::shard::Shard;

impl Shard {
    /// Installs every partition that lives in a WAL, with what its entries say of it.
    pub(crate) fn adopt(
        &self,
        wal: WalUuid,
        index: usize,
        mut replayed: Replayed,
    ) -> Result<(), String> {
        let image = self.image.borrow();
        for (id, _) in replayed.partitions() {
            if image.topic(id.topic).is_none() && image.tombstone(id.topic).is_none() {
                return Err(format!(
                    "there are records of topic {}, which the catalogue has never known",
                    id.topic
                ));
            }
        }
        for topic in image.topics() {
            for (partition_id, partition) in topic.partitions() {
                if partition.append_wal() != Some(wal) {
                    continue;
                }
                let id = TopicPartition { topic: topic.id, partition: partition_id };
                let replayed = replayed.take(id);
                self.insert_partition(topic, id, partition.leader_epoch, index, replayed);
            }
        }
        Ok(())
    }

    fn insert_partition(
        &self,
        topic: &Topic,
        id: TopicPartition,
        leader_epoch: LeaderEpoch,
        wal: usize,
        replayed: Option<ReplayedPartition>,
    ) {
        let producers_max = self.config.producers.per_partition_max as usize;
        let (engine, damage) = match replayed {
            Some(replayed) => replayed.into_engine(id, leader_epoch, producers_max),
            None => {
                let state = PartitionState::default();
                (Partition::new(id, leader_epoch, state, producers_max), Vec::new())
            }
        };
        self.wal(wal).count_producers(0, engine.producers().len());
        self.partitions.borrow_mut().insert(LocalPartition {
            epoch_noted: !engine.begins_epoch(),
            engine,
            topic_name: Rc::from(topic.name.as_str()),
            wal,
            record_bytes_max: topic.config.max_message_bytes as usize,
            retention: retention_of(&topic.config),
            damage,
            arrivals: Rc::default(),
            subscribers: Rc::default(),
        });
    }

    /// Applies a durable command: the picture changes, and with it what lives here.
    pub(crate) fn install(&self, command: &Command) {
        let deleted = match command {
            Command::DeleteTopic { id } => self.image.borrow().topic(*id).cloned(),
            _ => None,
        };
        let applied = apply(&mut self.image.borrow_mut(), command);
        applied.expect("a command was checked before it was made durable");
        if let Command::CreateTopic { id, .. } = command {
            self.create_partitions(*id);
        }
        if let Command::ForgetTopic { id } = command {
            self.deleted.borrow_mut().remove(id);
        }
        if let Some(topic) = deleted {
            let tickets = self.wals().iter().map(|wal| wal.last_ticket()).collect();
            self.deleted.borrow_mut().insert(topic.id, tickets);
            for (partition, _) in topic.partitions() {
                let id = TopicPartition { topic: topic.id, partition };
                let removed = self.partitions.borrow_mut().remove(id);
                if let Some(partition) = removed {
                    self.wal(partition.wal).count_producers(partition.engine.producers().len(), 0);
                    partition.arrivals.wake_all();
                    partition.subscribers.end_all(&RequestError::UnknownTopicId);
                }
            }
        }
    }

    fn create_partitions(&self, topic: TopicId) {
        let image = self.image.borrow();
        let topic = image.topic(topic).expect("the topic was just created");
        for (partition_id, partition) in topic.partitions() {
            let Some(wal) = partition.append_wal() else {
                continue;
            };
            if self.owners.borrow().get(&wal) != Some(&self.id) {
                continue;
            }
            let index = self.wal_index(WalId(wal.0));
            let id = TopicPartition { topic: topic.id, partition: partition_id };
            self.insert_partition(topic, id, partition.leader_epoch, index, None);
        }
    }
}
