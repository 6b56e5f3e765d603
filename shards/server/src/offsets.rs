//! ListOffsets: the first offset, the last one, or the one at a time.

use std::rc::Rc;

use rustmq_metadata::Operation;
use rustmq_protocol::{ListOffsets, ListOffsetsResponse, OffsetAt, TimestampMs};
use rustmq_sys::runtime::{self, Class};

use crate::read;
use crate::reply::{RequestError, Response};
use crate::route::Route;
use crate::session::{self, Request};
use crate::shard::Shard;

/// Timestamp of an answer that names no record.
const NO_TIMESTAMP: TimestampMs = TimestampMs(-1);

/// Serves one request in a task of its own: a look-up by time may have to read the disk.
pub(crate) fn spawn(shard: &Rc<Shard>, request: Request) {
    runtime::spawn(Class::Fetch, session::task(list_offsets(Rc::clone(shard), request)));
}

async fn list_offsets(shard: Rc<Shard>, request: Request) {
    let ask = match ListOffsets::decode(&request.body.to_vec()) {
        Ok(ask) => ask,
        Err(error) => return request.refuse(&shard, &RequestError::from(error)),
    };
    let tag = match shard.route(ask.topic_partition()) {
        Ok(Route::Here(tag)) => tag,
        Ok(Route::Shard(owner)) => return shard.mesh.forward(&shard, owner, request, true),
        Err(error) => return request.refuse(&shard, &error),
    };
    let answer = find(&shard, &request, &ask, tag).await;
    let answer = answer.map(|found| Response::encoded(|out| found.encode(out)));
    shard.finish(request, answer);
}

async fn find(
    shard: &Rc<Shard>,
    request: &Request,
    ask: &ListOffsets,
    tag: u32,
) -> Result<ListOffsetsResponse, RequestError> {
    shard.authorize_partition(request.principal, Operation::Describe, tag)?;
    let (log_start, high_watermark, leader_epoch) = {
        let partitions = shard.partitions.borrow();
        let engine = &partitions.get(tag).ok_or(RequestError::UnknownTopicId)?.engine;
        // Any offset that can be asked for will do: only the epoch is checked here.
        engine.check_fetch(ask.leader_epoch, engine.high_watermark())?;
        (engine.log_start_offset(), engine.high_watermark(), engine.leader_epoch())
    };
    let (offset, timestamp) = match ask.at {
        OffsetAt::Earliest => (log_start, NO_TIMESTAMP),
        OffsetAt::Latest => (high_watermark, NO_TIMESTAMP),
        OffsetAt::Timestamp(at) => {
            let found = Box::pin(read::first_at_or_after(shard, tag, at)).await?;
            found.unwrap_or((high_watermark, NO_TIMESTAMP))
        }
    };
    Ok(ListOffsetsResponse { offset, timestamp, leader_epoch })
}
