//! A subscriber that speaks the wire: what it opens, and what it is told.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustmq_client::{ErrorCode, TopicInfo};
use rustmq_protocol::{
    FetchResponse, FetchResponseHead, FrameFlags, FrameHeader, ProducerStamp, RequestKind,
    SubscriptionEnd, batches, verify_crc,
};

use super::broker::Broker;
use super::process::PATIENCE;
use super::raw::{self, Raw, ReceiveHalf};

/// One answer of a subscription.
#[derive(Debug)]
pub(crate) enum Told {
    Batches { correlation: u32, head: FetchResponseHead, offsets: Vec<(u64, u64)>, bytes: usize },
    End { code: ErrorCode, offset: u64, message: String },
}

impl Told {
    fn read(header: &FrameHeader, body: &[u8]) -> Result<Told> {
        ensure!(header.kind == RequestKind::Subscribe as u16, "an answer of kind {}", header.kind);
        let correlation = header.correlation.0;
        if !header.flags.contains(FrameFlags::MORE) {
            let SubscriptionEnd { message, offset } = SubscriptionEnd::decode(body)?;
            let code = header.error_code();
            return Ok(Told::End { code, offset: offset.0, message });
        }
        ensure!(header.error_code() == ErrorCode::Ok, "more after {}", header.error_code());
        let response = FetchResponse::decode(body)?;
        let mut offsets = Vec::new();
        for batch in batches(response.batches) {
            let (_, batch) = batch?;
            let header = verify_crc(batch)?;
            offsets.push((header.base_offset.0, header.last_offset().0 + 1));
        }
        let bytes = response.batches.len();
        Ok(Told::Batches { correlation, head: response.head, offsets, bytes })
    }

    /// Of which subscription; an end is an error.
    pub(crate) fn correlation(&self) -> Result<u32> {
        match self {
            Told::Batches { correlation, .. } => Ok(*correlation),
            end => bail!("it ended: {end:?}"),
        }
    }

    /// The batches; an end is an error.
    pub(crate) fn batches(self) -> Result<(Vec<(u64, u64)>, usize)> {
        match self {
            Told::Batches { offsets, bytes, .. } => Ok((offsets, bytes)),
            end => bail!("it ended: {end:?}"),
        }
    }

    /// Code, offset and message of an end.
    pub(crate) fn end(self) -> Result<(ErrorCode, u64, String)> {
        match self {
            Told::End { code, offset, message, .. } => Ok((code, offset, message)),
            other => bail!("it goes on: {other:?}"),
        }
    }
}

/// The next answer of any subscription on the stream.
pub(crate) async fn told(raw: &mut Raw) -> Result<Told> {
    let (header, body) = raw.answer().await?;
    Told::read(&header, &body)
}

pub(crate) async fn told_half(receive: &mut ReceiveHalf) -> Result<Told> {
    let (header, body) = receive.answer().await?;
    Told::read(&header, &body)
}

/// Opens a subscription to partition 0 and takes the first answer.
pub(crate) async fn open(
    raw: &mut Raw,
    topic: &TopicInfo,
    number: u32,
    from: u64,
    credit: u32,
) -> Result<FetchResponseHead> {
    let ask = raw::subscribe(topic, 0, from, credit, 64 << 10)?;
    raw.send(&raw::subscribe_frame(number, &ask)).await?;
    match told(raw).await? {
        Told::Batches { correlation, head, offsets, .. } => {
            ensure!(correlation == number && offsets.is_empty(), "not the first answer");
            Ok(head)
        }
        end => bail!("it was not opened: {end:?}"),
    }
}

/// Appends batches of one record of so many bytes, one after the other.
pub(crate) async fn produce(
    dir: &Path,
    topic: &TopicInfo,
    partition: u32,
    count: usize,
    bytes: usize,
) -> Result<()> {
    let mut raw = Raw::greeted(dir).await?;
    let value = "x".repeat(bytes);
    let frame = raw::produce_frame(topic, partition, &raw::batch(&[&value], ProducerStamp::NONE))?;
    for _ in 0..count {
        let (header, body) = raw.ask_bytes(&frame).await?;
        if header.status != 0 {
            bail!(raw::message(ErrorCode::Ok, &header, &body)?);
        }
    }
    Ok(())
}

/// Waits until a metric has this value; the connections of the test go on meanwhile.
pub(crate) async fn until_metric(broker: &Broker, name: &str, value: u64) -> Result<()> {
    let begun = Instant::now();
    while broker.metric(name)? != value {
        ensure!(begun.elapsed() < PATIENCE, "{name} is not {value}\n{}", broker.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
