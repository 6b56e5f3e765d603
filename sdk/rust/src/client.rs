//! The handle of a cluster: makes producers and consumers, manages topics.

use std::sync::Arc;

use rustmq_protocol::{
    CONFIG_ENTRIES_MAX, CreateTopic, CreateTopicResponse, DeleteTopic, DeleteTopicResponse,
    ErrorCode, HelloResponse, ListOffsetsResponse, ListTopics, ListTopicsResponse, ListedTopic,
    OffsetAt, PartitionId, RequestKind, STRING_BYTES_MAX, TopicId, TopicInfo, TopicSelection,
    validate_topic_name,
};

use crate::cluster::{Cluster, check_topic_name_length};
use crate::config::ClientConfig;
use crate::consumer::ConsumerBuilder;
use crate::error::{ClientError, ConfigError};
use crate::offsets::look_up_offset;
use crate::producer::ProducerBuilder;

/// A client of one cluster. Clones share its connections, which are closed with the last of clones,
/// producers and consumers.
#[derive(Clone, Debug)]
pub struct Client {
    cluster: Arc<Cluster>,
}

/// A topic to be created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: u32,
    /// Brokers that keep each partition.
    pub replication_factor: u16,
    /// Entries in which it differs from the defaults.
    pub config: Vec<(String, String)>,
}

impl NewTopic {
    /// A topic with the default configuration, kept by one broker.
    pub fn new(name: impl Into<String>, partitions: u32) -> NewTopic {
        NewTopic { name: name.into(), partitions, replication_factor: 1, config: Vec::new() }
    }

    /// The same with one more configuration entry.
    #[must_use]
    pub fn with_config(mut self, key: impl Into<String>, value: impl Into<String>) -> NewTopic {
        self.config.push((key.into(), value.into()));
        self
    }

    fn check(&self) -> Result<(), ClientError> {
        validate_topic_name(&self.name).map_err(ClientError::TopicName)?;
        let max = CONFIG_ENTRIES_MAX as usize;
        if self.config.len() > max {
            let value = self.config.len();
            return Err(
                ConfigError::NumberOutOfBounds { field: "config", value, min: 0, max }.into()
            );
        }
        let texts = self.config.iter().flat_map(|(key, value)| [key.len(), value.len()]);
        match texts.max() {
            Some(bytes) if bytes > STRING_BYTES_MAX => Err(ClientError::TextTooLong { bytes }),
            _ => Ok(()),
        }
    }
}

/// The answer to a look-up of an offset.
pub type OffsetAndTimestamp = ListOffsetsResponse;

impl Client {
    /// Connects to the first bootstrap address that answers. Other brokers and shards are dialled
    /// when they are needed.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        Ok(Client { cluster: Arc::new(Cluster::connect(config).await?) })
    }

    /// What the broker at the bootstrap address says about itself.
    pub async fn hello(&self) -> Result<HelloResponse, ClientError> {
        Ok(*self.cluster.bootstrap().await?.hello())
    }

    /// Creates a topic. It can be used once this returns.
    ///
    /// It is not repeated after a lost connection: it may have been created, and
    /// [`ClientError::is_definite`] says so.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicId, ClientError> {
        topic.check()?;
        let NewTopic { name, partitions, replication_factor, config } = topic;
        let request = CreateTopic { name, partitions, replication_factor, config };
        let mut body = Vec::new();
        request.encode(&mut body);
        let answer = self.cluster.control(RequestKind::CreateTopic, body).await;
        self.cluster.forget_topic(&request.name);
        Ok(CreateTopicResponse::decode(&answer?)?.id)
    }

    /// Deletes a topic and its records.
    pub async fn delete_topic(&self, name: &str) -> Result<TopicId, ClientError> {
        check_topic_name_length(name)?;
        let mut body = Vec::new();
        DeleteTopic { name: name.to_owned() }.encode(&mut body);
        let answer = self.cluster.control(RequestKind::DeleteTopic, body).await;
        self.cluster.forget_topic(name);
        Ok(DeleteTopicResponse::decode(&answer?)?.id)
    }

    /// All topics that this client may see, ordered by name.
    pub async fn list_topics(&self) -> Result<Vec<ListedTopic>, ClientError> {
        let mut body = Vec::new();
        ListTopics {}.encode(&mut body);
        let answer = self.cluster.read(RequestKind::ListTopics, body).await?;
        Ok(ListTopicsResponse::decode(&answer)?.topics)
    }

    /// The configuration of a topic and where its partitions are led.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicInfo, ClientError> {
        check_topic_name_length(name)?;
        let selection = TopicSelection::ByName(vec![name.to_owned()]);
        let response = self.cluster.metadata(selection).await?;
        match response.topics.into_iter().find(|topic| topic.name == name) {
            Some(topic) if topic.error == ErrorCode::Ok => Ok(topic),
            Some(topic) => Err(ClientError::broker(topic.error, format!("topic {name}"))),
            None => Err(ClientError::broker(ErrorCode::UnknownTopic, format!("topic {name}"))),
        }
    }

    /// Looks up one offset in some partitions of a topic, one after the other.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: &[PartitionId],
        at: OffsetAt,
    ) -> Result<Vec<OffsetAndTimestamp>, ClientError> {
        let mut offsets = Vec::with_capacity(partitions.len());
        for partition in partitions {
            offsets.push(look_up_offset(&self.cluster, topic, *partition, at).await?);
        }
        Ok(offsets)
    }

    /// A producer of records for a topic, to be configured and built.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.cluster), topic.into())
    }

    /// A consumer of the records of a topic, to be configured and built.
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.cluster), topic.into())
    }

    /// Closes every connection, also those of producers and consumers of this client. Close
    /// producers first.
    pub async fn close(&self) {
        self.cluster.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_the_wire_cannot_carry_are_refused_before_it() {
        assert!(NewTopic::new("orders", 1).with_config("retention_ms", "1").check().is_ok());
        assert!(NewTopic::new("a b", 1).check().is_err());
        let long = "x".repeat(STRING_BYTES_MAX + 1);
        assert!(NewTopic::new("orders", 1).with_config("k", long).check().is_err());
        let many = (0..=CONFIG_ENTRIES_MAX)
            .fold(NewTopic::new("orders", 1), |topic, _| topic.with_config("k", "v"));
        assert!(many.check().is_err());
    }
}
