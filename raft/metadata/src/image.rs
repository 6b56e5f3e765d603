//! The image: all that the cluster agrees on, as plain ordered maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use rustmq_protocol::ids::{
    BrokerId, LeaderEpoch, Offset, PartitionId, ProducerId, TopicId, TopicPartition,
};

use crate::limits;
use crate::topic_config::TopicConfig;

/// The id of one WAL: 16 random bytes, drawn when the WAL is created and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalUuid(pub [u8; 16]);

/// All that the cluster agrees on.
///
/// It begins empty ([`Image::new`]), is driven by [`apply`](crate::apply()) on the control core, and
/// ends with the process: what lasts is the log of commands and its snapshots. Invariants, checked
/// by [`Image::check`]: names and topics match one to one; a WAL has one owner; a partition's
/// broker and its newest WAL exist and belong together; a tombstone's id is no live topic's; every
/// list is within its limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub(crate) cluster_id: Option<[u8; 16]>,
    pub(crate) brokers: BTreeMap<BrokerId, Broker>,
    pub(crate) topics: BTreeMap<TopicId, Topic>,
    pub(crate) names: BTreeMap<String, TopicId>,
    pub(crate) tombstones: BTreeMap<TopicId, Tombstone>,
    pub(crate) next_producer_id: u64,
    /// The sum over all topics, kept so that the limit costs nothing to check.
    pub(crate) partition_count: usize,
}

/// A broker that was started at least once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// One more with each start: tells a restarted broker from the one before.
    pub epoch: u64,
    /// The WALs it owns, in the order in which it named them.
    pub wals: Vec<WalUuid>,
    /// Shards that it runs since its last start.
    pub shard_count: u16,
}

/// A live topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Never used again, not even for a topic of the same name.
    pub id: TopicId,
    /// Unique among the live topics.
    pub name: String,
    /// Copies of each partition.
    pub replication_factor: u16,
    /// How long and how large.
    pub config: TopicConfig,
    /// At its index, each [`PartitionId`]; never empty.
    pub partitions: Vec<Partition>,
}

/// A partition of a live topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The broker that appends.
    pub leader: BrokerId,
    /// One more with each change of leader and each start of the leader.
    pub leader_epoch: LeaderEpoch,
    /// Where its records are, oldest first, first offsets rising: one entry until the partition
    /// moves between cores. The last one is where the leader appends; never empty.
    pub placements: Vec<Placement>,
}

/// The WAL that holds a partition's records from an offset on, up to the next placement's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The first offset in this WAL.
    pub first_offset: Offset,
    /// The WAL.
    pub wal: WalUuid,
}

/// What is left of a deleted topic until no segment names it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The name it had; a live topic may bear it again.
    pub name: String,
}

/// An invariant that an image breaks. From a snapshot it is refused input; after a command it
/// would be our own mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFault {
    /// Something exists before the cluster was formatted.
    NotFormatted,
    /// More entries than the limit of that name allows.
    TooMany {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// The topic and its name do not point at each other.
    Name {
        /// The topic.
        topic: TopicId,
    },
    /// The topic has no partition, a replication factor that is not kept, or a configuration out
    /// of bounds.
    Topic {
        /// The topic.
        topic: TopicId,
    },
    /// The partition has no placement, placements out of order, or a leader that does not own the
    /// WAL to which it appends.
    Placement {
        /// The partition.
        partition: TopicPartition,
    },
    /// A live topic has a tombstone.
    Tombstone {
        /// The topic.
        topic: TopicId,
    },
    /// Two brokers, or one twice, own a WAL.
    SharedWal {
        /// The WAL.
        wal: WalUuid,
    },
    /// A kept sum does not match.
    PartitionCount {
        /// What is kept.
        kept: usize,
        /// What is there.
        found: usize,
    },
}

impl Image {
    /// The image before the first command, which must be
    /// [`FormatCluster`](crate::Command::FormatCluster).
    pub fn new() -> Self {
        Self::default()
    }

    /// The cluster's id, once it is formatted.
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        self.cluster_id
    }

    /// A broker.
    pub fn broker(&self, broker: BrokerId) -> Option<&Broker> {
        self.brokers.get(&broker)
    }

    /// All brokers by id.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = (BrokerId, &Broker)> {
        self.brokers.iter().map(|(id, broker)| (*id, broker))
    }

    /// The broker that owns a WAL.
    pub fn wal_owner(&self, wal: WalUuid) -> Option<BrokerId> {
        self.brokers().find(|(_, broker)| broker.wals.contains(&wal)).map(|(id, _)| id)
    }

    /// A live topic by id.
    pub fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// A live topic by name.
    pub fn topic_by_name(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.names.get(name)?)
    }

    /// All live topics by id.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.topics.values()
    }

    /// All live topics by name.
    pub fn topics_by_name(&self) -> impl Iterator<Item = &Topic> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// A partition of a live topic.
    pub fn partition(&self, partition: TopicPartition) -> Option<&Partition> {
        self.topic(partition.topic)?.partition(partition.partition)
    }

    /// Partitions of all live topics.
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// What is left of a deleted topic.
    pub fn tombstone(&self, id: TopicId) -> Option<&Tombstone> {
        self.tombstones.get(&id)
    }

    /// All tombstones by topic id.
    pub fn tombstones(&self) -> impl ExactSizeIterator<Item = (TopicId, &Tombstone)> {
        self.tombstones.iter().map(|(id, tombstone)| (*id, tombstone))
    }

    /// The first producer id that has not been handed out to a broker.
    pub fn next_producer_id(&self) -> ProducerId {
        ProducerId(self.next_producer_id)
    }

    /// Checks every invariant; O(everything).
    pub fn check(&self) -> Result<(), ImageFault> {
        self.check_limits()?;
        if self.cluster_id.is_none() && *self != Self::default() {
            return Err(ImageFault::NotFormatted);
        }
        let mut wals = BTreeSet::new();
        for wal in self.brokers.values().flat_map(|broker| &broker.wals) {
            if !wals.insert(wal) {
                return Err(ImageFault::SharedWal { wal: *wal });
            }
        }
        for (id, topic) in &self.topics {
            self.check_topic(*id, topic)?;
        }
        if self.names.len() != self.topics.len() {
            // Every topic has its name, so one name is left over.
            let stray = self.names.values().find(|id| !self.topics.contains_key(id));
            return Err(ImageFault::Name { topic: stray.copied().unwrap_or(TopicId::ZERO) });
        }
        let found = self.topics.values().map(|topic| topic.partitions.len()).sum();
        if found != self.partition_count {
            return Err(ImageFault::PartitionCount { kept: self.partition_count, found });
        }
        Ok(())
    }

    /// Panics if an invariant is broken; for tests and the simulator.
    pub fn invariants(&self) {
        if let Err(fault) = self.check() {
            panic!("the metadata image broke an invariant: {fault}");
        }
    }

    fn check_limits(&self) -> Result<(), ImageFault> {
        let placements = |topic: &Topic| {
            topic.partitions.iter().map(|partition| partition.placements.len()).max()
        };
        let wals_max = self.brokers.values().map(|broker| broker.wals.len()).max();
        let partitions_max = self.topics.values().map(|topic| topic.partitions.len()).max();
        let placements_max = self.topics.values().filter_map(placements).max();
        let dead_or_alive = self.topics.len() + self.tombstones.len();
        for (limit, found, max) in [
            ("TOPICS_MAX", Some(self.topics.len()), limits::TOPICS_MAX),
            ("TOMBSTONES_MAX", Some(dead_or_alive), limits::TOMBSTONES_MAX),
            ("PARTITIONS_MAX", Some(self.partition_count), limits::PARTITIONS_MAX),
            ("PARTITIONS_PER_TOPIC_MAX", partitions_max, limits::PARTITIONS_PER_TOPIC_MAX as usize),
            ("BROKERS_MAX", Some(self.brokers.len()), limits::BROKERS_MAX),
            ("WALS_PER_BROKER_MAX", wals_max, limits::WALS_PER_BROKER_MAX),
            ("PLACEMENTS_PER_PARTITION_MAX", placements_max, limits::PLACEMENTS_PER_PARTITION_MAX),
        ] {
            if found.is_some_and(|found| max < found) {
                return Err(ImageFault::TooMany { limit, max: max as u64 });
            }
        }
        Ok(())
    }

    fn check_topic(&self, id: TopicId, topic: &Topic) -> Result<(), ImageFault> {
        if topic.id != id || self.names.get(&topic.name) != Some(&id) {
            return Err(ImageFault::Name { topic: id });
        }
        let replicas = 1..=limits::REPLICATION_FACTOR_MAX;
        if id == TopicId::ZERO
            || topic.partitions.is_empty()
            || !replicas.contains(&topic.replication_factor)
            || !topic.config.is_valid()
        {
            return Err(ImageFault::Topic { topic: id });
        }
        if self.tombstones.contains_key(&id) {
            return Err(ImageFault::Tombstone { topic: id });
        }
        for (partition, state) in topic.partitions() {
            let ordered = state
                .placements
                .windows(2)
                .all(|pair| matches!(pair, [a, b] if a.first_offset < b.first_offset));
            let owned = state.append_wal().is_some_and(|wal| {
                self.broker(state.leader).is_some_and(|broker| broker.wals.contains(&wal))
            });
            if !ordered || !owned {
                return Err(ImageFault::Placement {
                    partition: TopicPartition { topic: id, partition },
                });
            }
        }
        Ok(())
    }
}

impl Topic {
    /// A partition by its number.
    pub fn partition(&self, partition: PartitionId) -> Option<&Partition> {
        self.partitions.get(partition.0 as usize)
    }

    /// All partitions in the order of their numbers.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        (0..).map(PartitionId).zip(&self.partitions)
    }
}

impl Partition {
    /// The WAL to which the leader appends.
    pub fn append_wal(&self) -> Option<WalUuid> {
        self.placements.last().map(|placement| placement.wal)
    }

    /// The placement that holds an offset, and the offsets it covers: the last one has no end.
    pub fn placement_of(&self, offset: Offset) -> Option<(Placement, Range<Offset>)> {
        let after = self.placements.partition_point(|placement| placement.first_offset <= offset);
        let placement = *self.placements.get(after.checked_sub(1)?)?;
        let end = self.placements.get(after).map_or(Offset(u64::MAX), |next| next.first_offset);
        Some((placement, placement.first_offset..end))
    }
}

impl fmt::Display for WalUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ImageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFormatted => write!(f, "entries before the cluster was formatted"),
            Self::TooMany { limit, max } => write!(f, "more than {limit} ({max}) allows"),
            Self::Name { topic } => write!(f, "topic {topic} and its name do not match"),
            Self::Topic { topic } => {
                write!(f, "topic {topic} has no partitions or values out of bounds")
            }
            Self::Placement { partition } => write!(
                f,
                "partition {} of topic {} has placements out of order or in a WAL that its \
                 leader does not own",
                partition.partition.0, partition.topic
            ),
            Self::Tombstone { topic } => write!(f, "live topic {topic} has a tombstone"),
            Self::SharedWal { wal } => write!(f, "WAL {wal} is owned twice"),
            Self::PartitionCount { kept, found } => {
                write!(f, "{found} partitions where {kept} were counted")
            }
        }
    }
}

impl std::error::Error for ImageFault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wal_uuid_is_written_as_a_uuid() {
        let wal = WalUuid(*b"0123456789abcdef");
        assert_eq!(wal.to_string(), "30313233-3435-3637-3839-616263646566");
    }

    #[test]
    fn an_offset_is_found_in_the_placement_that_covers_it() {
        let (old, new) = (WalUuid([1; 16]), WalUuid([2; 16]));
        let partition = Partition {
            leader: BrokerId(1),
            leader_epoch: LeaderEpoch(0),
            placements: vec![
                Placement { first_offset: Offset(10), wal: old },
                Placement { first_offset: Offset(20), wal: new },
            ],
        };
        let wal_of =
            |offset| partition.placement_of(Offset(offset)).map(|(p, range)| (p.wal, range));
        assert_eq!(wal_of(9), None);
        assert_eq!(wal_of(10), Some((old, Offset(10)..Offset(20))));
        assert_eq!(wal_of(19), Some((old, Offset(10)..Offset(20))));
        assert_eq!(wal_of(20), Some((new, Offset(20)..Offset(u64::MAX))));
    }
}
