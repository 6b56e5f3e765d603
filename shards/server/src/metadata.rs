//! What there is and where: brokers, topics and partitions.

use std::collections::BTreeSet;
use std::rc::Rc;

use rustmq_metadata::{Image, Operation, Resource, Topic};
use rustmq_protocol::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use rustmq_protocol::{
    BrokerInfo, ErrorCode, ListTopicsResponse, ListedTopic, Metadata, MetadataResponse,
    PartitionInfo, TopicId, TopicInfo, TopicSelection,
};

use crate::reply::{RequestError, Response};
use crate::session::Request;
use crate::shard::Shard;

/// Answers `Metadata`: the brokers, and the topics that were asked for.
pub(crate) fn metadata(shard: &Rc<Shard>, request: Request) {
    let answer = describe(shard, &request);
    shard.finish(request, answer);
}

/// Answers `ListTopics`.
pub(crate) fn list_topics(shard: &Rc<Shard>, request: Request) {
    let answer =
        shard.authorize(request.principal, Operation::Describe, Resource::Cluster).and_then(|()| {
            let image = shard.image.borrow();
            let listed = |topic: &Topic| ListedTopic {
                name: topic.name.clone(),
                id: topic.id,
                partitions: topic.partitions.len() as u32,
            };
            let response =
                ListTopicsResponse { topics: image.topics_by_name().map(listed).collect() };
            bounded(Response::encoded(|out| response.encode(out)))
        });
    shard.finish(request, answer);
}

fn describe(shard: &Rc<Shard>, request: &Request) -> Result<Response, RequestError> {
    shard.authorize(request.principal, Operation::Describe, Resource::Cluster)?;
    let ask = Metadata::decode(&request.body.to_vec())?;
    let image = shard.image.borrow();
    let topics = match &ask.topics {
        TopicSelection::All => {
            image.topics_by_name().map(|topic| describe_topic(shard, topic)).collect()
        }
        // Each name once, so that a small request cannot ask for an answer without end.
        TopicSelection::ByName(names) => {
            let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            names.into_iter().map(|name| describe_name(shard, &image, name)).collect()
        }
    };
    let response = MetadataResponse {
        cluster_id: image.cluster_id().unwrap_or_default(),
        brokers: vec![BrokerInfo {
            id: shard.node.broker,
            host: shard.node.advertised_host.clone(),
            port: shard.node.bootstrap_port,
            shards: shard.node.shards.clone(),
        }],
        topics,
    };
    bounded(Response::encoded(|out| response.encode(out)))
}

/// An answer that outgrows a frame is refused: there are more topics than one answer can hold.
fn bounded(response: Response) -> Result<Response, RequestError> {
    const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_HEADER_BYTES;
    match response.body_bytes() <= BODY_BYTES_MAX {
        true => Ok(response),
        false => {
            Err(RequestError::LimitExceeded { what: "bytes of one answer", max: BODY_BYTES_MAX })
        }
    }
}

fn describe_name(shard: &Shard, image: &Image, name: &str) -> TopicInfo {
    match image.topic_by_name(name) {
        Some(topic) => describe_topic(shard, topic),
        None => TopicInfo {
            name: name.to_owned(),
            id: TopicId::ZERO,
            error: ErrorCode::UnknownTopic,
            config: Vec::new(),
            partitions: Vec::new(),
        },
    }
}

fn describe_topic(shard: &Shard, topic: &Topic) -> TopicInfo {
    let partitions = topic.partitions().map(|(id, partition)| PartitionInfo {
        partition: id,
        leader: partition.leader,
        shard: shard.shard_of(partition),
        leader_epoch: partition.leader_epoch,
    });
    TopicInfo {
        name: topic.name.clone(),
        id: topic.id,
        error: ErrorCode::Ok,
        config: topic.config.to_pairs(),
        partitions: partitions.collect(),
    }
}
