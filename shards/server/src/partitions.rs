//! The partitions that live on this shard.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use rustmq_engine::limits::DAMAGED_RANGES_MAX;
use rustmq_engine::retention::Policy;
use rustmq_engine::{FetchError, Partition};
use rustmq_metadata::TopicConfig;
use rustmq_protocol::{FetchResponseHead, LeaderEpoch, Offset, TopicPartition};
use rustmq_wal::{EntryKind, EntryMeta};

use crate::notify::WaitList;
use crate::replay::Damage;
use crate::reply::RequestError;
use crate::subscribe::Subscribers;

/// One partition of this shard: its decisions, and what the shell needs to carry them out.
pub(crate) struct LocalPartition {
    pub(crate) engine: Partition,
    pub(crate) topic_name: Rc<str>,
    /// Index of its WAL among the shard's.
    pub(crate) wal: usize,
    /// Largest record that the topic takes.
    pub(crate) record_bytes_max: usize,
    pub(crate) retention: Policy,
    /// The WAL says that the leader epoch has begun, though perhaps no batch of it was taken yet.
    pub(crate) epoch_noted: bool,
    /// Damaged offsets, and the files they were in.
    pub(crate) damage: Vec<Damage>,
    /// Fetches that wait for new records.
    pub(crate) arrivals: Rc<WaitList>,
    /// Subscriptions.
    pub(crate) subscribers: Rc<Subscribers>,
}

impl LocalPartition {
    /// Takes note of damage: these records are refused from now on.
    pub(crate) fn mark_damaged(&mut self, range: Range<Offset>, file: Rc<str>) {
        self.engine.mark_damaged(range.clone());
        if self.damage.len() < DAMAGED_RANGES_MAX {
            self.damage.push((range, file));
        }
    }

    /// What a client is told that asked for damaged records.
    pub(crate) fn damaged(&self, range: Range<Offset>) -> RequestError {
        let touches = |(other, _): &&Damage| other.start < range.end && range.start < other.end;
        let file = self.damage.iter().find(touches).map(|(_, file)| Rc::clone(file));
        RequestError::Damaged {
            partition: format!("{}/{}", self.topic_name, self.engine.id().partition),
            range,
            file: file.unwrap_or_else(|| Rc::from("the WAL")),
        }
    }

    /// Where the log begins and ends, as those who read it are told.
    pub(crate) fn head(&self) -> FetchResponseHead {
        FetchResponseHead {
            high_watermark: self.engine.high_watermark(),
            log_start_offset: self.engine.log_start_offset(),
            log_end_offset: self.engine.log_end_offset(),
        }
    }

    /// May a fetch begin at this offset? Damage is named with its file.
    pub(crate) fn check_fetch(
        &self,
        epoch: LeaderEpoch,
        offset: Offset,
    ) -> Result<(), RequestError> {
        match self.engine.check_fetch(epoch, offset) {
            Err(FetchError::Damaged { range }) => Err(self.damaged(range)),
            checked => Ok(checked?),
        }
    }

    /// An entry without records: it says something about the partition's log at `offset`.
    pub(crate) fn note(&self, kind: EntryKind, offset: Offset, tag: u32) -> EntryMeta {
        let engine = &self.engine;
        EntryMeta {
            kind,
            partition: engine.id(),
            leader_epoch: engine.leader_epoch(),
            base_offset: offset,
            record_count: 0,
            append_time: engine.append_time_max(),
            max_timestamp: engine.append_time_max(),
            payload: 0..0,
            payload_crc: 0,
            tag,
        }
    }
}

/// All partitions of the shard, by small numbers.
///
/// A number (`tag`) is never given to another partition while the process runs, so that what the
/// cache and blocks in flight remember of a deleted partition cannot be taken for a new one's. What
/// a deleted partition leaves behind is eight bytes here and an empty queue in the cache.
#[derive(Default)]
pub(crate) struct Partitions {
    slots: Vec<Option<Box<LocalPartition>>>,
    tags: BTreeMap<TopicPartition, u32>,
}

impl Partitions {
    /// Adds a partition and numbers it.
    pub(crate) fn insert(&mut self, partition: LocalPartition) -> u32 {
        let tag = self.slots.len() as u32;
        let replaced = self.tags.insert(partition.engine.id(), tag);
        assert!(replaced.is_none(), "a partition is installed once");
        self.slots.push(Some(Box::new(partition)));
        tag
    }

    /// Removes a partition: its number leads nowhere from now on.
    pub(crate) fn remove(&mut self, id: TopicPartition) -> Option<Box<LocalPartition>> {
        let tag = self.tags.remove(&id)?;
        self.slots[tag as usize].take()
    }

    /// The number of a partition that lives here.
    pub(crate) fn tag(&self, id: TopicPartition) -> Option<u32> {
        self.tags.get(&id).copied()
    }

    /// The partition with this number, unless it was removed.
    pub(crate) fn get(&self, tag: u32) -> Option<&LocalPartition> {
        self.slots.get(tag as usize)?.as_deref()
    }

    /// The partition with this number, unless it was removed.
    pub(crate) fn get_mut(&mut self, tag: u32) -> Option<&mut LocalPartition> {
        self.slots.get_mut(tag as usize)?.as_deref_mut()
    }

    /// Every partition with its number, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &LocalPartition)> {
        self.tags.values().filter_map(|tag| Some((*tag, self.get(*tag)?)))
    }

    /// Lets every fetch that waits look again. Wake-ups only queue tasks, so none runs meanwhile.
    pub(crate) fn wake_all(&self) {
        for (_, partition) in self.iter() {
            partition.arrivals.wake_all();
        }
    }

    /// Ends every subscription, and says why.
    pub(crate) fn end_subscriptions(&self, why: &RequestError) {
        for (_, partition) in self.iter() {
            partition.subscribers.end_all(why);
        }
    }

    /// The numbers of all partitions, by id.
    pub(crate) fn tags(&self) -> Vec<u32> {
        self.tags.values().copied().collect()
    }

    /// How many partitions live here.
    pub(crate) fn len(&self) -> usize {
        self.tags.len()
    }
}

/// The retention that a topic's settings ask for.
pub(crate) fn retention_of(config: &TopicConfig) -> Policy {
    Policy {
        retention_ms: config.retention_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
        retention_bytes: config.retention_bytes,
    }
}
