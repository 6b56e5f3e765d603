//! Where everything is: brokers with the ports of their shards, topics with the leaders of their
//! partitions.

use crate::codec::{DecodeError, Reader, put_count, put_text};
use crate::error_code::ErrorCode;
use crate::ids::{BrokerId, LeaderEpoch, PartitionId, ShardId, TopicId};
use crate::limits::{
    BROKERS_MAX, CONFIG_ENTRIES_MAX, PARTITIONS_PER_TOPIC_MAX, SHARDS_PER_BROKER_MAX,
    STRING_BYTES_MAX, TOPIC_NAME_BYTES_MAX, TOPICS_PER_REQUEST_MAX, TOPICS_PER_RESPONSE_MAX,
};

/// Asks for the brokers and for some topics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// Which topics.
    pub topics: TopicSelection,
}

/// Which topics a metadata request is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TopicSelection {
    /// All that the principal may see.
    All,
    /// Those of these names; an empty list asks for brokers only.
    ByName(Vec<String>),
}

impl Metadata {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.topics {
            TopicSelection::All => out.push(0),
            TopicSelection::ByName(names) => {
                out.push(1);
                put_count(out, names.len());
                for name in names {
                    put_text(out, name);
                }
            }
        }
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<Metadata, DecodeError> {
        let mut reader = Reader::new(bytes);
        let topics = match reader.u8()? {
            0 => TopicSelection::All,
            1 => TopicSelection::ByName(read_list(&mut reader, TOPICS_PER_REQUEST_MAX, 2, |r| {
                r.text(STRING_BYTES_MAX).map(str::to_owned)
            })?),
            value => {
                return Err(DecodeError::UnknownValue {
                    field: "topic selection",
                    value: u64::from(value),
                });
            }
        };
        reader.finish()?;
        Ok(Metadata { topics })
    }
}

/// The cluster as the answering broker sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetadataResponse {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// Every broker.
    pub brokers: Vec<BrokerInfo>,
    /// The topics asked for, in the order of the request; all are ordered by name.
    pub topics: Vec<TopicInfo>,
}

/// One broker and how to reach its shards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerInfo {
    /// Which broker.
    pub id: BrokerId,
    /// Host name or address that clients dial.
    pub host: String,
    /// The port that any shard answers on.
    pub port: u16,
    /// The port of each shard.
    pub shards: Vec<ShardEndpoint>,
}

/// The port on which one shard answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardEndpoint {
    /// Which shard.
    pub shard: ShardId,
    /// Its port.
    pub port: u16,
}

/// One topic, or why it is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicInfo {
    /// The name asked for.
    pub name: String,
    /// The topic, [`TopicId::ZERO`] with an error.
    pub id: TopicId,
    /// [`ErrorCode::Ok`], or why the rest is empty.
    pub error: ErrorCode,
    /// The entries in which the topic differs from the defaults.
    pub config: Vec<(String, String)>,
    /// Every partition, in order.
    pub partitions: Vec<PartitionInfo>,
}

/// Where one partition is led.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionInfo {
    /// Which partition.
    pub partition: PartitionId,
    /// The broker that leads it, or [`BrokerId::NONE`].
    pub leader: BrokerId,
    /// The shard of that broker.
    pub shard: ShardId,
    /// The epoch of that leadership: goes into every request about the partition.
    pub leader_epoch: LeaderEpoch,
}

impl MetadataResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster_id);
        put_count(out, self.brokers.len());
        for broker in &self.brokers {
            broker.encode(out);
        }
        put_count(out, self.topics.len());
        for topic in &self.topics {
            topic.encode(out);
        }
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<MetadataResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = MetadataResponse {
            cluster_id: *reader.array()?,
            brokers: read_list(&mut reader, BROKERS_MAX, 12, BrokerInfo::read)?,
            topics: read_list(&mut reader, TOPICS_PER_RESPONSE_MAX, 28, TopicInfo::read)?,
        };
        reader.finish()?;
        Ok(response)
    }
}

impl BrokerInfo {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        put_text(out, &self.host);
        out.extend_from_slice(&self.port.to_le_bytes());
        put_count(out, self.shards.len());
        for endpoint in &self.shards {
            out.extend_from_slice(&endpoint.shard.0.to_le_bytes());
            out.extend_from_slice(&endpoint.port.to_le_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<BrokerInfo, DecodeError> {
        Ok(BrokerInfo {
            id: BrokerId(reader.u32()?),
            host: reader.text(STRING_BYTES_MAX)?.to_owned(),
            port: reader.u16()?,
            shards: read_list(reader, u32::from(SHARDS_PER_BROKER_MAX), 4, |reader| {
                Ok(ShardEndpoint { shard: ShardId(reader.u16()?), port: reader.u16()? })
            })?,
        })
    }
}

impl TopicInfo {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&(self.error as u16).to_le_bytes());
        put_config(out, &self.config);
        put_count(out, self.partitions.len());
        for partition in &self.partitions {
            out.extend_from_slice(&partition.partition.0.to_le_bytes());
            out.extend_from_slice(&partition.leader.0.to_le_bytes());
            out.extend_from_slice(&partition.shard.0.to_le_bytes());
            out.extend_from_slice(&partition.leader_epoch.0.to_le_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<TopicInfo, DecodeError> {
        Ok(TopicInfo {
            name: reader.text(STRING_BYTES_MAX)?.to_owned(),
            id: TopicId::from_bytes(*reader.array()?),
            error: ErrorCode::from_u16(reader.u16()?).unwrap_or(ErrorCode::Internal),
            config: read_config(reader)?,
            partitions: read_list(reader, PARTITIONS_PER_TOPIC_MAX, 14, |reader| {
                Ok(PartitionInfo {
                    partition: PartitionId(reader.u32()?),
                    leader: BrokerId(reader.u32()?),
                    shard: ShardId(reader.u16()?),
                    leader_epoch: LeaderEpoch(reader.u32()?),
                })
            })?,
        })
    }
}

// A name that was asked for comes back even if no topic could have it.
const _: () = assert!(TOPIC_NAME_BYTES_MAX <= STRING_BYTES_MAX);

/// Appends configuration entries: a list of key and value.
pub(super) fn put_config(out: &mut Vec<u8>, config: &[(String, String)]) {
    put_count(out, config.len());
    for (key, value) in config {
        put_text(out, key);
        put_text(out, value);
    }
}

/// Reads configuration entries.
pub(super) fn read_config(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, DecodeError> {
    read_list(reader, CONFIG_ENTRIES_MAX, 4, |reader| {
        let key = reader.text(STRING_BYTES_MAX)?.to_owned();
        Ok((key, reader.text(STRING_BYTES_MAX)?.to_owned()))
    })
}

/// Reads a list of at most `max` elements of at least `element_bytes_min` bytes each.
pub(super) fn read_list<'a, T>(
    reader: &mut Reader<'a>,
    max: u32,
    element_bytes_min: usize,
    mut element: impl FnMut(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.count(max, element_bytes_min)?;
    let mut list = Vec::with_capacity(count);
    for _ in 0..count {
        list.push(element(reader)?);
    }
    Ok(list)
}
