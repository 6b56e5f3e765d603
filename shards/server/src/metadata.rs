//! What there is and where: brokers, topics and partitions.

use std::collections::BTreeSet;
use std::rc::Rc;

use rustmq_metadata::{Image, Operation, Resource, Topic};
use rustmq_protocol::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use rustmq_protocol::{
    BrokerInfo, ErrorCode, ListTopicsResponse, ListedTopic, Metadata, MetadataResponse,
    PartitionInfo, TopicId, TopicInfo, TopicSelection,
};
use rustmq_sys::runtime::{self, Class};

use crate::reply::{RequestError, Response};
use crate::session::{self, Request};
use crate::shard::Shard;

/// Bytes of an answer beside its topics, and of a topic beside its name and its partitions: ids,
/// counts and settings, whose keys and values are bounded. More than any has.
const FIXED_BYTES: usize = 512;

/// Bytes of a partition in an answer.
const PARTITION_BYTES: usize = 14;

/// Answers `Metadata`: the brokers, and the topics that were asked for. In a task of its own: a small
/// request may ask for a large answer, for which there has to be room.
pub(crate) fn spawn_metadata(shard: &Rc<Shard>, request: Request) {
    runtime::spawn(Class::Fetch, session::task(metadata(Rc::clone(shard), request)));
}

/// Answers `ListTopics`, also in a task of its own.
pub(crate) fn spawn_list_topics(shard: &Rc<Shard>, request: Request) {
    runtime::spawn(Class::Fetch, session::task(list_topics(Rc::clone(shard), request)));
}

async fn metadata(shard: Rc<Shard>, request: Request) {
    let answer = match check(&shard, &request) {
        Ok(ask) => {
            let bytes = metadata_bytes(&shard.image.borrow(), &ask);
            request.reply_to.reserve(bytes).await;
            describe(&shard, &ask)
        }
        Err(error) => Err(error),
    };
    request.reply_to.give_back();
    shard.finish(request, answer);
}

async fn list_topics(shard: Rc<Shard>, request: Request) {
    let answer = match shard.authorize(request.principal, Operation::Describe, Resource::Cluster) {
        Ok(()) => {
            let bytes = list_bytes(&shard.image.borrow());
            request.reply_to.reserve(bytes).await;
            list(&shard)
        }
        Err(error) => Err(error),
    };
    request.reply_to.give_back();
    shard.finish(request, answer);
}

fn check(shard: &Shard, request: &Request) -> Result<Metadata, RequestError> {
    shard.authorize(request.principal, Operation::Describe, Resource::Cluster)?;
    Ok(Metadata::decode(&request.body.to_vec())?)
}

/// At least what the answer takes.
fn metadata_bytes(image: &Image, ask: &Metadata) -> usize {
    let bytes =
        |topic: &Topic| FIXED_BYTES + topic.name.len() + PARTITION_BYTES * topic.partitions.len();
    let topics: usize = match &ask.topics {
        TopicSelection::All => image.topics_by_name().map(bytes).sum(),
        TopicSelection::ByName(names) => {
            let known = |name: &String| image.topic_by_name(name).map(bytes);
            names.iter().map(|name| known(name).unwrap_or(FIXED_BYTES + name.len())).sum()
        }
    };
    FIXED_BYTES + topics
}

/// At least what the answer takes.
fn list_bytes(image: &Image) -> usize {
    let topics = image.topics_by_name();
    FIXED_BYTES + topics.map(|topic| FIXED_BYTES + topic.name.len()).sum::<usize>()
}

fn list(shard: &Shard) -> Result<Response, RequestError> {
    let image = shard.image.borrow();
    let listed = |topic: &Topic| ListedTopic {
        name: topic.name.clone(),
        id: topic.id,
        partitions: topic.partitions.len() as u32,
    };
    let response = ListTopicsResponse { topics: image.topics_by_name().map(listed).collect() };
    bounded(Response::encoded(|out| response.encode(out)))
}

fn describe(shard: &Shard, ask: &Metadata) -> Result<Response, RequestError> {
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
