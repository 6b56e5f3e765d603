//! A consumer far behind: it reads a partition by subscription as fast as it is sent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustmq_protocol::{
    Credit, ErrorCode, FetchResponse, Offset, PartitionId, RequestKind, Subscribe, batches,
};

use super::wire::{Link, Target};

/// Bytes that the subscription may be sent before it is given more, half of it at a time.
const CREDIT_BYTES: u32 = 4 << 20;

/// Bytes of an answer.
const ANSWER_BYTES: u32 = 1 << 20;

/// What a consumer got.
#[derive(Debug, Clone, Copy)]
pub struct Delivered {
    /// Batches, of one record each.
    pub batches: u64,
    /// From the request until the last of them.
    pub elapsed: Duration,
}

/// Reads a partition from its first record, for a time or until its end.
pub async fn run(
    mut link: Link,
    target: &Target,
    partition: u32,
    time: Duration,
) -> Result<Delivered> {
    let begun = Instant::now();
    let head = &target.head;
    let ask = Subscribe {
        topic: head.topic,
        partition: PartitionId(partition),
        leader_epoch: head.leader_epoch,
        offset: Offset(0),
        credit: CREDIT_BYTES,
        bytes_max: ANSWER_BYTES,
    };
    link.send(RequestKind::Subscribe, |out| ask.encode(out)).await?;
    let (mut next, mut used, mut elapsed) = (Offset(0), 0, Duration::ZERO);
    loop {
        let header = link.receiver.receive().await?.context("the stream ended")?;
        ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
        let body = link.receiver.body();
        used += body.len();
        let response = FetchResponse::decode(body)?;
        for batch in batches(response.batches) {
            let (header, _) = batch?;
            ensure!(header.base_offset == next, "{} came, {next} is next", header.base_offset);
            next = Offset(header.last_offset().0 + 1);
        }
        let end = response.head.high_watermark;
        if 0 < next.0 {
            elapsed = begun.elapsed();
        }
        if end <= next || time <= elapsed {
            return Ok(Delivered { batches: next.0, elapsed });
        }
        if CREDIT_BYTES as usize / 2 <= used {
            let more = Credit::More { bytes: used as u32 };
            link.send(RequestKind::Credit, |out| more.encode(out)).await?;
            used = 0;
        }
    }
}
