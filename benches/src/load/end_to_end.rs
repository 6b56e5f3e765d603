//! From producers to a consumer: how long after a record was due does the consumer have it?
//!
//! Producers in open loop, each with a partition of its own, and one consumer that has subscribed to all
//! of them on one connection. Records are due in turn, so partition and offset say when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustmq_protocol::frame::PROTOCOL_VERSION_MAX;
use rustmq_protocol::{
    CorrelationId, Credit, ErrorCode, FetchResponse, FrameHeader, Offset, RequestKind, Subscribe,
    batches,
};

use super::drive::{self, Period, Producer, Tally};
use super::tail;
use super::wire::{Link, Target};

/// Bytes that each subscription may be sent before it is given more, half of it at a time.
const CREDIT_BYTES: u32 = 4 << 20;

/// Bytes of an answer.
const ANSWER_BYTES: u32 = 1 << 20;

/// One partition as its consumer sees it.
struct Place {
    base: Offset,
    next: Offset,
    used: usize,
}

/// Produces at this rate for a time, with a consumer beside. Latencies are from when a record was due
/// until the consumer has it; `late` is that of the producers.
pub async fn run(
    mut producers: Vec<Producer>,
    consumer: Link,
    targets: &[Target],
    rate_per_s: f64,
    period: Period,
    core: Option<usize>,
) -> Result<Tally> {
    let mut places = Vec::with_capacity(producers.len());
    for (producer, target) in producers.iter_mut().zip(targets) {
        let base = tail::end_of(&mut producer.link, target).await?;
        places.push(Place { base, next: base, used: 0 });
    }
    let mut consumer = consumer;
    for (number, (target, place)) in targets.iter().zip(&places).enumerate() {
        let head = &target.head;
        let ask = Subscribe {
            topic: head.topic,
            partition: head.partition,
            leader_epoch: head.leader_epoch,
            offset: place.base,
            credit: CREDIT_BYTES,
            bytes_max: ANSWER_BYTES,
        };
        send(&mut consumer, RequestKind::Subscribe, number, |out| ask.encode(out)).await?;
        let opened = consumer.receiver.receive().await?;
        opened.context("the stream ended")?;
    }
    let start = Instant::now();
    let count = drive::open_loop_count(rate_per_s, period);
    let producing = drive::open_loop(producers, rate_per_s, period, start, core);
    let consuming = consume(consumer, places, start, period, rate_per_s, count);
    let (produced, consumed) = tokio::try_join!(producing, consuming)?;
    Ok(Tally { late: produced.late, ..consumed })
}

async fn consume(
    mut link: Link,
    mut places: Vec<Place>,
    start: Instant,
    period: Period,
    rate_per_s: f64,
    count: usize,
) -> Result<Tally> {
    let begin = start + period.warm_up;
    let in_turn = places.len() as u64;
    let mut tally = Tally { elapsed: period.measured, ..Tally::new() };
    while (tally.answers as usize) < count {
        let header = link.receiver.receive().await?.context("the stream ended")?;
        let now = Instant::now();
        ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
        let number = header.correlation.0 as usize;
        let place = places.get_mut(number).context("an answer that was not asked for")?;
        let body = link.receiver.body();
        place.used += body.len();
        for batch in batches(FetchResponse::decode(body)?.batches) {
            let (batch, _) = batch?;
            ensure!(batch.base_offset == place.next, "{} came", batch.base_offset);
            let turn = (place.next.0 - place.base.0) * in_turn + number as u64;
            let due = start + Duration::from_secs_f64(turn as f64 / rate_per_s);
            place.next = Offset(batch.last_offset().0 + 1);
            match begin <= due {
                true => tally.record(now.saturating_duration_since(due)),
                false => tally.answers += 1,
            }
        }
        if CREDIT_BYTES as usize / 2 <= place.used {
            let more = Credit::More { bytes: place.used as u32 };
            place.used = 0;
            send(&mut link, RequestKind::Credit, number, |out| more.encode(out)).await?;
        }
    }
    Ok(tally)
}

async fn send(
    link: &mut Link,
    kind: RequestKind,
    number: usize,
    encode: impl FnOnce(&mut Vec<u8>),
) -> Result<()> {
    let mut frame = Vec::new();
    FrameHeader::request(kind, CorrelationId(number as u32))
        .in_version(PROTOCOL_VERSION_MAX)
        .encode_frame(&mut frame, encode);
    link.sender.send(&frame).await
}
