//! Produce: from a whole request to its acknowledgement, top to bottom.

use std::rc::Rc;
use std::time::Duration;

use rustmq_engine::Append;
use rustmq_metadata::Operation;
use rustmq_planted::{Bug, planted};
use rustmq_protocol::batch;
use rustmq_protocol::limits::BATCH_BYTES_MAX;
use rustmq_protocol::requests::produce::PRODUCE_HEAD_BYTES;
use rustmq_protocol::{Acks, BatchHeader, Offset, ProduceHead, ProduceResponse, TimestampMs};
use rustmq_sys::clock;
use rustmq_wal::{EntryKind, EntryMeta};

use crate::metrics::Stage;
use crate::partitions::LocalPartition;
use crate::reply::RequestError;
use crate::route::Route;
use crate::session::Request;
use crate::shard::Shard;
use crate::wal_writer::{Ticket, WalWriter};

/// What may surround the largest record in its batch, or be smaller records beside it: as much as the
/// configuration is checked for.
const BATCH_OVERHEAD_BYTES: usize = 64 << 10;

/// Serves one produce request. With `acks = none` nothing is answered, whatever happens. A block instead
/// of an `async fn`: that would keep room for its arguments twice.
#[expect(clippy::manual_async_fn, reason = "its memory is moved for each request: see above")]
pub(crate) fn produce(shard: Rc<Shard>, request: Request) -> impl Future<Output = ()> {
    async move {
        let head = match check_head(&shard, &request) {
            Ok(head) => head,
            Err(error) => return request.refuse(&shard, &error),
        };
        let tag = match shard.route(head.topic_partition()) {
            Ok(Route::Here(tag)) => tag,
            Ok(Route::Shard(owner)) => return shard.mesh.forward(&shard, owner, request, true),
            Err(error) => return request.refuse(&shard, &error),
        };
        let arrived = request.arrived;
        shard.metrics.borrow_mut().record(Stage::ProduceReceive, clock::now() - arrived);
        let outcome = accept(&shard, &request, &head, tag).await;
        let accepted = clock::now();
        match outcome {
            _ if head.acks == Acks::None => request.end(&shard),
            Ok(response) => {
                let response = shard.small_response(|out| response.encode(out));
                request.answer(&shard, response);
            }
            Err(error) => return request.refuse(&shard, &error),
        }
        let answered = clock::refresh();
        let mut metrics = shard.metrics.borrow_mut();
        metrics.record(Stage::ProduceReply, answered - accepted);
        metrics.record(Stage::Produce, answered - arrived);
    }
}

/// Authorise → room → append → durable: returns once the records are as safe as was asked for.
async fn accept(
    shard: &Rc<Shard>,
    request: &Request,
    head: &ProduceHead,
    tag: u32,
) -> Result<ProduceResponse, RequestError> {
    shard.authorize_partition(request.principal, Operation::Write, tag)?;
    if shard.draining() {
        return Err(RequestError::ShuttingDown);
    }
    let wal = shard.wal_of(tag)?;
    let batch_bytes = request.body.len() - PRODUCE_HEAD_BYTES;
    let deadline = clock::now() + Duration::from_millis(u64::from(head.timeout_ms));

    let appended = loop {
        wal.room(shard, batch_bytes, deadline).await?;
        // The wait for room may have been long: everything is asked anew.
        if let Some(appended) = append(shard, request, head, tag, &wal)? {
            break appended;
        }
    };
    if head.acks != Acks::None {
        wal.durable(appended.ticket, deadline).await?;
    }
    shard.metrics.borrow_mut().count_produced(appended.record_count, batch_bytes);
    Ok(ProduceResponse {
        base_offset: appended.base_offset,
        log_start_offset: appended.log_start_offset,
        append_time: appended.append_time,
        flush: shard.flush_mode(),
    })
}

struct Appended {
    base_offset: Offset,
    log_start_offset: Offset,
    append_time: TimestampMs,
    record_count: u32,
    ticket: Ticket,
}

/// Copies the batch into the open block, checks it there, and lets the partition decide. `None`
/// means that the room was taken meanwhile. A refused batch leaves the epoch's note behind at most.
fn append(
    shard: &Shard,
    request: &Request,
    head: &ProduceHead,
    tag: u32,
    wal: &WalWriter,
) -> Result<Option<Appended>, RequestError> {
    let mut partitions = shard.partitions.borrow_mut();
    let partition = partitions.get_mut(tag).ok_or(RequestError::UnknownTopicId)?;
    if !partition.epoch_noted && !log_epoch_start(partition, wal, tag) {
        return Ok(None);
    }
    let batch_bytes = request.body.len() - PRODUCE_HEAD_BYTES;
    let mut duplicate = None;
    let put = wal.put(batch_bytes, shard.producer_key(request), |slot| {
        request.body.copy_to(PRODUCE_HEAD_BYTES, slot);
        let header = batch::verify(slot, partition.record_bytes_max)?;
        if partition.engine.producers().is_new(header.producer_id) {
            wal.admits_producer()?;
        }
        let now = TimestampMs(clock::wall_ms());
        let producers = partition.engine.producers().len();
        let decided = partition.engine.append(now, head.leader_epoch, &header)?;
        wal.count_producers(producers, partition.engine.producers().len());
        match decided {
            Append::New { base_offset, append_time } => {
                batch::stamp(slot, base_offset, head.leader_epoch);
                Ok(Some(data_entry(partition, &header, base_offset, append_time, tag)))
            }
            Append::Duplicate { base_offset, end_offset } => {
                duplicate = Some((header.record_count, base_offset, end_offset));
                Ok::<_, RequestError>(None)
            }
        }
    })?;
    let log_start_offset = partition.engine.log_start_offset();
    if let Some((record_count, base_offset, end_offset)) = duplicate {
        // Answered once the original is durable: it is in a block that was filled before now.
        let durable =
            end_offset <= partition.engine.flushed_offset() || planted(Bug::DuplicateAnsweredEarly);
        let ticket = if durable { Ticket::DURABLE } else { wal.last_ticket() };
        let append_time = partition.engine.append_time_max();
        let appended =
            Appended { base_offset, log_start_offset, append_time, record_count, ticket };
        return Ok(Some(appended));
    }
    Ok(put.map(|(ticket, entry)| Appended {
        base_offset: entry.base_offset,
        log_start_offset,
        append_time: entry.append_time,
        record_count: entry.record_count,
        ticket,
    }))
}

fn data_entry(
    partition: &LocalPartition,
    header: &BatchHeader,
    base_offset: Offset,
    append_time: TimestampMs,
    tag: u32,
) -> EntryMeta {
    EntryMeta {
        kind: EntryKind::Data,
        partition: partition.engine.id(),
        leader_epoch: partition.engine.leader_epoch(),
        base_offset,
        record_count: header.record_count,
        append_time,
        max_timestamp: header.max_timestamp,
        payload: 0..0,
        payload_crc: header.crc,
        tag,
    }
}

/// The first batch of a leader epoch is preceded by an entry that says where the epoch begins.
fn log_epoch_start(partition: &mut LocalPartition, wal: &WalWriter, tag: u32) -> bool {
    let start = partition.engine.log_end_offset();
    let note = partition.note(EntryKind::EpochStart, start, tag);
    partition.epoch_noted = wal.put_note(note).is_some();
    partition.epoch_noted
}

fn check_head(shard: &Shard, request: &Request) -> Result<ProduceHead, RequestError> {
    let head = request.body.head::<PRODUCE_HEAD_BYTES>().ok_or(RequestError::TooShort)?;
    let bytes = request.body.len() - PRODUCE_HEAD_BYTES;
    // Segments and buffers are sized for batches up to this.
    let record_bytes_max = shard.config.topics.record_bytes_max as usize;
    let bytes_max = BATCH_BYTES_MAX.min(record_bytes_max + BATCH_OVERHEAD_BYTES);
    if bytes_max < bytes {
        return Err(RequestError::BatchTooLarge { bytes, bytes_max });
    }
    Ok(ProduceHead::decode(&head)?)
}
