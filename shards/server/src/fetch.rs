//! Fetch: reads batches, and waits for them when there are none yet.

use std::rc::Rc;
use std::time::{Duration, Instant};

use rustmq_metadata::Operation;
use rustmq_protocol::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX};
use rustmq_protocol::requests::fetch::FETCH_BYTES;
use rustmq_protocol::{Fetch, Offset};
use rustmq_sys::clock;

use crate::body::Body;
use crate::limits::FORWARDED_WAIT_MS_MAX;
use crate::metrics::Stage;
use crate::notify::before;
use crate::read::{self, Found};
use crate::reply::{RequestError, Response};
use crate::route::Route;
use crate::session::{ReplyTo, Request};
use crate::shard::Shard;

/// Serves one fetch request.
pub(crate) async fn fetch(shard: Rc<Shard>, mut request: Request) {
    let ask = match check(&request) {
        Ok(ask) => ask,
        Err(error) => return request.refuse(&shard, &error),
    };
    let tag = match shard.route(ask.topic_partition()) {
        Ok(Route::Here(tag)) => tag,
        Ok(Route::Shard(owner)) => {
            request.reply_to.reserve(bytes_max(&ask)).await;
            return shard.mesh.forward(&shard, owner, request, true);
        }
        Err(error) => return request.refuse(&shard, &error),
    };
    // It has been read: the datagrams that it came in are not kept while it waits.
    request.body = Body::default();
    let arrived = request.arrived;
    shard.metrics.borrow_mut().record(Stage::FetchReceive, clock::now() - arrived);
    match serve(&shard, &request, &ask, tag).await {
        Ok(response) => request.answer(&shard, response),
        Err(error) => return request.refuse(&shard, &error),
    }
    shard.metrics.borrow_mut().record(Stage::Fetch, clock::now() - arrived);
}

async fn serve(
    shard: &Rc<Shard>,
    request: &Request,
    ask: &Fetch,
    tag: u32,
) -> Result<Response, RequestError> {
    shard.authorize_partition(request.principal, Operation::Read, tag)?;
    if shard.draining() {
        return Err(RequestError::ShuttingDown);
    }
    let wait_ms_max = match request.reply_to {
        ReplyTo::Client(_) => FETCH_WAIT_MS_MAX,
        ReplyTo::Shard { .. } => FORWARDED_WAIT_MS_MAX,
    };
    let wait = Duration::from_millis(u64::from(ask.wait_ms_max.min(wait_ms_max)));
    let deadline = request.arrived + wait;
    let bytes_max = bytes_max(ask);
    let bytes_min = bytes_max.min(ask.bytes_min as usize);
    loop {
        let begun = clock::now();
        let high_watermark = check_offset(shard, ask, tag)?;
        let found = match ask.offset < high_watermark {
            true => read_for(shard, request, tag, ask.offset, bytes_max).await?,
            false => Found::default(),
        };
        // An answer is due when it is large enough, when it cannot grow, or when time is up. What ends
        // below the high watermark cannot: more is there, for the next fetch.
        let full = bytes_min <= found.bytes() || found.end_offset < high_watermark;
        let over = deadline <= clock::now() || shard.draining() || request.reply_to.is_gone();
        if full && !found.is_empty() || over {
            shard.metrics.borrow_mut().record(Stage::FetchRead, clock::now() - begun);
            return respond(shard, tag, found);
        }
        let end = if found.is_empty() { ask.offset } else { found.end_offset };
        let waiting = Waiting { end, bytes: found.bytes(), bytes_min };
        // It pins buffers, and is there later.
        drop(found);
        wait_for_records(shard, request, ask, tag, waiting, deadline).await?;
        shard.metrics.borrow_mut().record(Stage::FetchWait, clock::now() - begun);
    }
}

/// Reads for a client, once it has taken what it was sent before.
async fn read_for(
    shard: &Rc<Shard>,
    request: &Request,
    tag: u32,
    offset: Offset,
    bytes_max: usize,
) -> Result<Found, RequestError> {
    let bytes_max = request.reply_to.reserve(bytes_max).await;
    let found = read::batches(shard, tag, offset, bytes_max).await;
    request.reply_to.give_back();
    found
}

fn bytes_max(ask: &Fetch) -> usize {
    (ask.bytes_max as usize).min(FETCH_BYTES_MAX)
}

/// May this fetch be served, and up to where?
fn check_offset(shard: &Shard, ask: &Fetch, tag: u32) -> Result<Offset, RequestError> {
    let partitions = shard.partitions.borrow();
    let partition = partitions.get(tag).ok_or(RequestError::UnknownTopicId)?;
    partition.check_fetch(ask.leader_epoch, ask.offset)?;
    Ok(partition.engine.high_watermark())
}

/// What a fetch knows of the records that it waits for: each flush adds to it, and they are looked up
/// once there is enough.
struct Waiting {
    /// Where what has been counted ends.
    end: Offset,
    bytes: usize,
    bytes_min: usize,
}

impl Waiting {
    /// Counts what has come. True if there is enough of it, or if memory does not tell.
    fn is_over(&mut self, shard: &Shard, tag: u32, high_watermark: Offset) -> bool {
        if high_watermark <= self.end {
            return false;
        }
        if let Some(batches) = shard.cache.borrow().from(tag, self.end) {
            for batch in batches {
                self.end = batch.end_offset;
                self.bytes += batch.bytes.slice().len();
            }
        }
        self.bytes_min <= self.bytes || self.end < high_watermark
    }
}

/// Waits until there are enough records, until `deadline`, or until the fetch has to be refused or
/// nobody waits for it any more.
async fn wait_for_records(
    shard: &Rc<Shard>,
    request: &Request,
    ask: &Fetch,
    tag: u32,
    mut waiting: Waiting,
    deadline: Instant,
) -> Result<(), RequestError> {
    let arrivals = {
        let partitions = shard.partitions.borrow();
        Rc::clone(&partitions.get(tag).ok_or(RequestError::UnknownTopicId)?.arrivals)
    };
    let over = arrivals.until(|| {
        let partitions = shard.partitions.borrow();
        let is_over = shard.draining()
            || request.reply_to.is_gone()
            || partitions.get(tag).is_none_or(|partition| {
                partition.check_fetch(ask.leader_epoch, ask.offset).is_err()
                    || waiting.is_over(shard, tag, partition.engine.high_watermark())
            });
        is_over.then_some(())
    });
    before(deadline, over).await;
    Ok(())
}

/// What was found, with where the log begins and ends.
pub(crate) fn respond(shard: &Shard, tag: u32, found: Found) -> Result<Response, RequestError> {
    let partitions = shard.partitions.borrow();
    let partition = partitions.get(tag).ok_or(RequestError::UnknownTopicId)?;
    let head = partition.head();
    shard.metrics.borrow_mut().count_fetched(found.records, found.bytes());
    Ok(Response::with_front(&head.encode(), found.body))
}

fn check(request: &Request) -> Result<Fetch, RequestError> {
    let body = request.body.head::<FETCH_BYTES>().ok_or(RequestError::TooShort)?;
    if request.body.len() != FETCH_BYTES {
        return Err(RequestError::TooLong { bytes_max: FETCH_BYTES });
    }
    Ok(Fetch::decode(&body)?)
}
