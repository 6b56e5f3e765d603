//! Requests that change the catalogue.

use std::rc::Rc;

use rustmq_metadata::limits::{PARTITIONS_PER_TOPIC_MAX, PRODUCER_ID_BLOCK};
use rustmq_metadata::topic_config::TopicConfig;
use rustmq_metadata::{Command, Operation, Resource, WalLoad, WalUuid, place};
use rustmq_protocol::frame::RequestKind;
use rustmq_protocol::{
    CreateTopic, CreateTopicResponse, DeleteTopic, DeleteTopicResponse, InitProducer,
    InitProducerResponse, ProducerEpoch, ProducerId, ShardId, TopicId, validate_topic_name,
};

use rustmq_sys::runtime::{self, Class};

use super::{Catalogue, CommandError};
use crate::random;
use crate::reply::{RequestError, Response};
use crate::segments::{CHECKPOINT_PART, PARTITION_CHECKPOINT_BYTES};
use crate::session::{self, Request};
use crate::shard::Shard;

/// Serves a request that changes the catalogue: here on shard 0, elsewhere by forwarding it there.
pub(crate) fn spawn(shard: &Rc<Shard>, request: Request) {
    if shard.catalogue.is_none() {
        return shard.mesh.forward(shard, ShardId(0), request, false);
    }
    let shard = Rc::clone(shard);
    let task = session::task(async move {
        let catalogue = shard.catalogue.as_ref().expect("checked above, and it stays");
        let outcome = serve(catalogue, &shard, &request).await;
        shard.finish(request, outcome);
    });
    runtime::spawn(Class::Foreground, task);
}

async fn serve(
    catalogue: &Catalogue,
    shard: &Rc<Shard>,
    request: &Request,
) -> Result<Response, RequestError> {
    if shard.draining() {
        return Err(RequestError::ShuttingDown);
    }
    let body = request.body.to_vec();
    match RequestKind::from_u16(request.header.kind) {
        Some(RequestKind::CreateTopic) => {
            let ask = CreateTopic::decode(&body)?;
            shard.authorize(request.principal, Operation::Create, Resource::Topic(&ask.name))?;
            create_topic(catalogue, shard, ask).await
        }
        Some(RequestKind::DeleteTopic) => {
            let ask = DeleteTopic::decode(&body)?;
            shard.authorize(request.principal, Operation::Delete, Resource::Topic(&ask.name))?;
            delete_topic(catalogue, shard, ask).await
        }
        Some(RequestKind::InitProducer) => {
            InitProducer::decode(&body)?;
            init_producer(catalogue, shard).await
        }
        _ => Err(RequestError::UnknownRequest { kind: request.header.kind }),
    }
}

async fn create_topic(
    catalogue: &Catalogue,
    shard: &Rc<Shard>,
    ask: CreateTopic,
) -> Result<Response, RequestError> {
    validate_topic_name(&ask.name).map_err(RequestError::InvalidName)?;
    let config = topic_config(shard, &ask.config)?;
    catalogue.take_turn().await;
    let id = TopicId::from_bytes(random::uuid());
    let partitions = ask.partitions;
    let command = {
        let load = wal_load(shard);
        Command::CreateTopic {
            id,
            name: ask.name,
            replication_factor: ask.replication_factor,
            config,
            // One more than allowed is enough for the rules to refuse it.
            partitions: place(
                &shard.image.borrow(),
                shard.node.broker,
                partitions.min(PARTITIONS_PER_TOPIC_MAX + 1),
                &load,
            ),
        }
    };
    let done = match check_checkpoints(shard, &command) {
        Ok(()) => Box::pin(catalogue.carry_out(shard, command)).await.map_err(RequestError::from),
        Err(error) => Err(error),
    };
    catalogue.give_turn();
    done?;
    let response = CreateTopicResponse { id, partitions };
    Ok(Response::encoded(|out| response.encode(out)))
}

async fn delete_topic(
    catalogue: &Catalogue,
    shard: &Rc<Shard>,
    ask: DeleteTopic,
) -> Result<Response, RequestError> {
    catalogue.take_turn().await;
    // Looked up within the turn: another request may just have deleted it.
    let found = shard.image.borrow().topic_by_name(&ask.name).map(|topic| topic.id);
    let done = match found {
        None => Err(RequestError::UnknownTopic { name: ask.name }),
        Some(id) => {
            let done = Box::pin(catalogue.carry_out(shard, Command::DeleteTopic { id })).await;
            done.map(|()| id).map_err(RequestError::from)
        }
    };
    catalogue.give_turn();
    let response = DeleteTopicResponse { id: done? };
    Ok(Response::encoded(|out| response.encode(out)))
}

async fn init_producer(catalogue: &Catalogue, shard: &Rc<Shard>) -> Result<Response, RequestError> {
    catalogue.take_turn().await;
    let mut done = Ok(());
    if catalogue.producer_ids.borrow().is_empty() {
        let first = shard.image.borrow().next_producer_id();
        let (broker, count) = (shard.node.broker, PRODUCER_ID_BLOCK);
        done = Box::pin(catalogue.carry_out(shard, Command::AllocateProducerIds { broker, count }))
            .await;
        if done.is_ok() {
            *catalogue.producer_ids.borrow_mut() = first.0..first.0 + u64::from(count);
        }
    }
    let id = catalogue.producer_ids.borrow_mut().next();
    catalogue.give_turn();
    done?;
    let response = InitProducerResponse {
        producer_id: ProducerId(id.expect("a block of ids was just made durable")),
        producer_epoch: ProducerEpoch(0),
    };
    Ok(Response::encoded(|out| response.encode(out)))
}

/// Every segment repeats each partition of its WAL: that part of it is bounded.
fn check_checkpoints(shard: &Shard, command: &Command) -> Result<(), RequestError> {
    let Command::CreateTopic { partitions, .. } = command else { return Ok(()) };
    let segment_bytes = shard.config.wal.segment_bytes as usize;
    let max = segment_bytes / CHECKPOINT_PART / PARTITION_CHECKPOINT_BYTES;
    let fits = wal_load(shard).iter().all(|load| {
        let more = partitions.iter().filter(|placed| placed.wal == load.wal).count();
        load.partitions as usize + more <= max
    });
    match fits {
        true => Ok(()),
        false => Err(RequestError::LimitExceeded { what: "partitions of one WAL", max }),
    }
}

fn topic_config(shard: &Shard, pairs: &[(String, String)]) -> Result<TopicConfig, RequestError> {
    let topics = &shard.config.topics;
    let record_bytes_max = topics.record_bytes_max as u32;
    let defaults = TopicConfig {
        retention_ms: topics.retention_ms,
        retention_bytes: topics.retention_bytes,
        max_message_bytes: record_bytes_max,
        ..TopicConfig::default()
    };
    TopicConfig::parse_over(defaults, record_bytes_max, pairs).map_err(RequestError::InvalidConfig)
}

/// How many partitions each WAL of this broker holds, and who owns it.
fn wal_load(shard: &Shard) -> Vec<WalLoad> {
    let image = shard.image.borrow();
    let owners = shard.owners.borrow();
    let held = |wal: WalUuid| {
        let partitions = image.topics().flat_map(|topic| &topic.partitions);
        partitions.filter(|partition| partition.append_wal() == Some(wal)).count() as u32
    };
    owners
        .iter()
        .map(|(wal, owner)| WalLoad {
            wal: *wal,
            shard: *owner,
            partitions: held(*wal),
            bytes_per_s: 0,
        })
        .collect()
}

impl From<CommandError> for RequestError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(error) => Self::Refused(error),
            CommandError::Full => Self::StorageFull,
            CommandError::Failed => Self::Interrupted,
            CommandError::Lost => Self::StorageCorrupt {
                why: "the catalogue was deleted beneath the broker; see \
                      docs/operations/recovery.md"
                    .to_owned(),
            },
        }
    }
}
