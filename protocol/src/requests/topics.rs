//! Create, delete and list topics.

use crate::codec::{DecodeError, Reader, put_count, put_text};
use crate::ids::TopicId;
use crate::limits::{STRING_BYTES_MAX, TOPICS_PER_RESPONSE_MAX};
use crate::requests::metadata::{put_config, read_config, read_list};

/// Creates a topic. Answered once it is durable and every shard that owns a partition serves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateTopic {
    /// Its name, see [`validate_topic_name`](crate::validate_topic_name).
    pub name: String,
    /// Its partitions, from 1 to [`PARTITIONS_PER_TOPIC_MAX`](crate::PARTITIONS_PER_TOPIC_MAX).
    pub partitions: u32,
    /// Brokers that keep each partition.
    pub replication_factor: u16,
    /// Entries in which it differs from the defaults.
    pub config: Vec<(String, String)>,
}

impl CreateTopic {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        out.extend_from_slice(&self.partitions.to_le_bytes());
        out.extend_from_slice(&self.replication_factor.to_le_bytes());
        put_config(out, &self.config);
    }

    /// Reads the body. Whether name, partitions and configuration are allowed is the catalogue's
    /// decision.
    pub fn decode(bytes: &[u8]) -> Result<CreateTopic, DecodeError> {
        let mut reader = Reader::new(bytes);
        let request = CreateTopic {
            name: reader.text(STRING_BYTES_MAX)?.to_owned(),
            partitions: reader.u32()?,
            replication_factor: reader.u16()?,
            config: read_config(&mut reader)?,
        };
        reader.finish()?;
        Ok(request)
    }
}

/// The topic that was created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateTopicResponse {
    /// Its id.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: u32,
}

impl CreateTopicResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&self.partitions.to_le_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<CreateTopicResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = CreateTopicResponse {
            id: TopicId::from_bytes(*reader.array()?),
            partitions: reader.u32()?,
        };
        reader.finish()?;
        Ok(response)
    }
}

/// Deletes a topic and its records. Answered once that is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeleteTopic {
    /// Its name.
    pub name: String,
}

impl DeleteTopic {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<DeleteTopic, DecodeError> {
        let mut reader = Reader::new(bytes);
        let request = DeleteTopic { name: reader.text(STRING_BYTES_MAX)?.to_owned() };
        reader.finish()?;
        Ok(request)
    }
}

/// The topic that was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeleteTopicResponse {
    /// The id that it had.
    pub id: TopicId,
}

impl DeleteTopicResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<DeleteTopicResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let response = DeleteTopicResponse { id: TopicId::from_bytes(*reader.array()?) };
        reader.finish()?;
        Ok(response)
    }
}

/// Asks for all topics that the principal may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListTopics {}

impl ListTopics {
    /// Appends the body: nothing.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<ListTopics, DecodeError> {
        Reader::new(bytes).finish()?;
        Ok(ListTopics {})
    }
}

/// The topics, ordered by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListTopicsResponse {
    /// One entry each.
    pub topics: Vec<ListedTopic>,
}

/// One topic in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedTopic {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: TopicId,
    /// Its partitions.
    pub partitions: u32,
}

impl ListTopicsResponse {
    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.topics.len());
        for topic in &self.topics {
            put_text(out, &topic.name);
            out.extend_from_slice(topic.id.as_bytes());
            out.extend_from_slice(&topic.partitions.to_le_bytes());
        }
    }

    /// Reads the body.
    pub fn decode(bytes: &[u8]) -> Result<ListTopicsResponse, DecodeError> {
        let mut reader = Reader::new(bytes);
        let topics = read_list(&mut reader, TOPICS_PER_RESPONSE_MAX, 22, |reader| {
            Ok(ListedTopic {
                name: reader.text(STRING_BYTES_MAX)?.to_owned(),
                id: TopicId::from_bytes(*reader.array()?),
                partitions: reader.u32()?,
            })
        })?;
        reader.finish()?;
        Ok(ListTopicsResponse { topics })
    }
}
