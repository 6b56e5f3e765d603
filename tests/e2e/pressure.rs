//! More work than the broker can do: it says so in time, in bounded memory, goes on at its own pace,
//! and answers what it has taken even while it stops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quinn::Endpoint;
use rustmq_client::{PartitionId, Partitions, Start};
use rustmq_protocol::{ErrorCode, ProduceResponse, ProducerStamp, ThrottledBody, TopicInfo};

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::process::PATIENCE;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine};

const MIB: u64 = 1 << 20;

/// How long the overload lasts; `RUSTMQ_OVERLOAD_SECONDS` for longer runs by hand.
fn overload_time() -> Duration {
    let seconds = std::env::var("RUSTMQ_OVERLOAD_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(2))
}

on_each_backend! {
    /// Many large requests at once on a slow disk: some are told to come again, and after what pause.
    fn requests_beyond_the_memory_are_throttled_with_a_pause(backend: Backend) -> Result<()> {
        const CLIENTS: usize = 40;
        const BATCHES: usize = 2;
        const BATCH_BYTES: usize = 1_900_000;
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "512MiB")
            .set("wal.segment_bytes", "16MiB")
            .set("wal.block_bytes_max", "2MiB")
            .set("topics.record_bytes_max", "2MiB")
            .set("network.request_bytes_max", 32 * MIB)
            .set("network.window_bytes_max", 32 * MIB)
            .set("test.flush_delay_us", 100_000);
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("big", 1)?;
        let before = broker.memory()?;
        let dir = node.data_dir().to_owned();
        let (offsets, throttled) = client::runtime()?.block_on(async {
            let info = raw::topic(&dir, "big").await?;
            let mut connected = Vec::new();
            for _ in 0..CLIENTS {
                connected.push(Raw::greeted(&dir).await?);
            }
            let mut clients = tokio::task::JoinSet::new();
            for raw in connected {
                let info = info.clone();
                clients.spawn(async move { insist(raw, &info, BATCHES, BATCH_BYTES).await });
            }
            let (mut offsets, mut throttled) = (BTreeSet::new(), 0);
            while let Some(done) = clients.join_next().await {
                let (own, pauses) = done??;
                offsets.extend(own);
                throttled += pauses;
            }
            anyhow::Ok((offsets, throttled))
        })?;
        let grown = broker.memory_peak()?.saturating_sub(before);
        // Blocks and cache, the two budgets and what passes them by one request, connections.
        let bound = (16 + 16 + 32 + 32 + 4 + 32) * MIB + CLIENTS as u64 * 256 * 1024;
        machine::note(&format!(
            "large requests, {}: {throttled} of {} were throttled, memory grew by {grown}, bound {bound}",
            backend.name(), throttled + CLIENTS * BATCHES
        ));
        ensure!(0 < throttled, "nothing was throttled");
        ensure!(offsets.len() == CLIENTS * BATCHES, "{} acknowledged", offsets.len());
        ensure!(grown < bound, "memory grew by {grown}, bound {bound}");
        let counted = broker.metric_with("rustmq_requests_refused_total", "THROTTLED")?;
        ensure!(counted as usize == throttled, "{counted} are counted, {throttled} were seen");
        broker.stop()
    }
}

/// Sends a batch until it is acknowledged, as often as told; gives the offsets and how often it was
/// told to come again.
async fn insist(
    mut raw: Raw,
    info: &TopicInfo,
    batches: usize,
    bytes: usize,
) -> Result<(Vec<u64>, usize)> {
    let value = "x".repeat(bytes);
    let frame = raw::produce_frame(info, 0, &raw::batch_of(&value))?;
    let (mut offsets, mut throttled) = (Vec::new(), 0);
    while offsets.len() < batches {
        let (header, body) = raw.ask_bytes(&frame).await?;
        match header.error_code() {
            ErrorCode::Ok => offsets.push(ProduceResponse::decode(&body)?.base_offset.0),
            ErrorCode::Throttled => {
                let said = ThrottledBody::decode(&body)?;
                ensure!(0 < said.retry_after_ms, "no pause: {said:?}");
                throttled += 1;
                let pause = Duration::from_millis(u64::from(said.retry_after_ms));
                tokio::time::sleep(pause).await;
            }
            other => bail!("refused with {other}"),
        }
    }
    Ok((offsets, throttled))
}

on_each_backend! {
    /// Some of several consumers, of fetches and of subscriptions, read nothing. The others get all
    /// there is, no slower.
    fn a_consumer_that_stalls_slows_no_other(backend: Backend) -> Result<()> {
        const RECORDS: usize = 6_000;
        let _machine = machine::alone();
        let _ahead = machine::Ahead::go()?;
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "64MiB")
            // Most of the time is the disk's, and the same with and without the one that stalls.
            .set("test.flush_delay_us", 5_000);
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("tail", 1)?;
        let mut best: f64 = 0.0;
        client::runtime()?.block_on(async {
            let mut end = 0;
            for _ in 0..3 {
                let alone = deliver(&dir, end, RECORDS, false).await?;
                let beside = deliver(&dir, end + RECORDS, RECORDS, true).await?;
                end += 2 * RECORDS;
                best = best.max(alone.as_secs_f64() / beside.as_secs_f64());
                if 0.9 < best {
                    break;
                }
            }
            anyhow::Ok(())
        })?;
        machine::note(&format!(
            "a stalled consumer of ten, {}: the others run at {best:.2} of their pace", backend.name()
        ));
        ensure!(0.8 < best, "the others run at {best:.2} of their pace");
        broker.stop()
    }
}

/// Produces records from offset `from` on while nine consumers read them, and one more that reads
/// nothing if asked. Gives how long it takes until the nine have all.
async fn deliver(dir: &Path, from: usize, records: usize, stalled: bool) -> Result<Duration> {
    let client = client::connect(dir).await?;
    let mut consumers = Vec::new();
    for _ in 0..9 {
        let consumer = client
            .consumer("tail")
            .partitions(Partitions::Some(vec![PartitionId(0)]))
            .start(Start::Offset(rustmq_client::Offset(from as u64)));
        consumers.push(client::bounded("a consumer", consumer.build()).await??);
    }
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let info = raw::topic(dir, "tail").await?;
    let mut held = Vec::new();
    if stalled {
        let config = raw::tenacious_client(dir)?;
        let mut raw = Raw::greeted_from(&endpoint, dir, config).await?;
        for _ in 0..64 {
            raw.send(&raw::fetch_frame(&info, 0, 0, 4 << 20)?).await?;
        }
        held.push(raw);
        // And one that has subscribed, with credit for all there will be.
        let mut raw = Raw::subscriber_with(dir, raw::tenacious_client(dir)?).await?;
        for number in 0..8 {
            let ask = raw::subscribe(&info, 0, from as u64, 1 << 30, 4 << 20)?;
            raw.send(&raw::subscribe_frame(number, &ask)).await?;
        }
        held.push(raw);
    }
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut consumer in consumers {
        tasks.spawn(async move {
            for _ in 0..records {
                let record = client::bounded("a record", consumer.receive()).await?;
                record.context("it ended")??;
            }
            anyhow::Ok(())
        });
    }
    let mut raw = Raw::greeted(dir).await?;
    let value = "x".repeat(1000);
    let values = vec![value.as_str(); 10];
    let frame = raw::produce_frame(&info, 0, &raw::batch(&values, ProducerStamp::NONE))?;
    for _ in 0..records / 10 {
        let (header, _) = raw.ask_bytes(&frame).await?;
        ensure!(header.status == 0, "refused with {}", header.error_code());
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let took = begun.elapsed();
    client.close().await;
    drop(held);
    Ok(took)
}

on_each_backend! {
    /// Twice what the broker can do, for seconds: it does as much as ever, in bounded memory.
    fn twice_the_capacity_does_not_lower_what_is_done(backend: Backend) -> Result<()> {
        const CLIENTS: usize = 8;
        const BATCH_BYTES: usize = 20_000;
        let _machine = machine::alone();
        let _ahead = machine::Ahead::go()?;
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "128MiB")
            .set("wal.when_full", "delete_oldest")
            .set("wal.segment_bytes", "8MiB")
            .set("network.request_bytes_max", 32 * MIB)
            .set("network.window_bytes_max", 32 * MIB)
            // The disk is what is short, not the clients' share of the cores.
            .set("test.flush_delay_us", 5_000);
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("load", 1)?;
        let before = broker.memory()?;
        let time = overload_time();
        let (mut best, mut told) = (0.0, String::new());
        client::runtime()?.block_on(async {
            for _ in 0..5 {
                // A full block for each flush is all that there can be.
                let peak = offer(&dir, CLIENTS, BATCH_BYTES, None, time).await?;
                ensure!(0.0 < peak.done_per_s, "nothing is done:\n{}", broker.state());
                let rate = 2.0 * peak.done_per_s;
                until_idle(&broker).await?;
                let over = offer(&dir, CLIENTS, BATCH_BYTES, Some(rate), time).await?;
                until_idle(&broker).await?;
                let ratio = over.done_per_s / peak.done_per_s;
                if best < ratio {
                    best = ratio;
                    told = format!(
                        "{:.0} batches/s at most; offered {:.0}/s: {:.0}/s done, {:.0}/s throttled, \
                         the rest held back",
                        peak.done_per_s, rate, over.done_per_s, over.throttled_per_s
                    );
                }
                if 0.9 <= best {
                    break;
                }
            }
            anyhow::Ok(())
        })?;
        let grown = broker.memory_peak()?.saturating_sub(before);
        // Blocks, cache and the two budgets; checkpoints and footers; connections.
        let bound = (16 + 16 + 32 + 32 + 32) * MIB + CLIENTS as u64 * 256 * 1024;
        machine::note(&format!(
            "overload, {}: {told}; memory grew by {grown}, bound {bound}", backend.name()
        ));
        ensure!(0.9 <= best, "{best:.2} of the peak is done: {told}");
        ensure!(grown < bound, "memory grew by {grown}, bound {bound}");
        broker.stop()
    }
}

/// What was sent and not waited for is worked off, so that the next load finds nothing before it.
async fn until_idle(broker: &Broker) -> Result<()> {
    let begun = Instant::now();
    while 0 < broker.metric("rustmq_request_memory_bytes")? {
        ensure!(begun.elapsed() < PATIENCE, "the work is not done\n{}", broker.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// What came of a load.
struct Offered {
    done_per_s: f64,
    throttled_per_s: f64,
}

/// Offers batches from several clients for a time: at a rate, or as many as 32 in flight each.
async fn offer(
    dir: &Path,
    clients: usize,
    bytes: usize,
    rate: Option<f64>,
    time: Duration,
) -> Result<Offered> {
    let (done, throttled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let info = raw::topic(dir, "load").await?;
    let frame = raw::produce_frame(&info, 0, &raw::batch_of(&"x".repeat(bytes)))?;
    let mut tasks = tokio::task::JoinSet::new();
    let begun = Instant::now();
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Raw::greeted(dir).await?);
    }
    for raw in connected {
        let (mut send, mut receive) = raw.split();
        let credit = Arc::new(tokio::sync::Semaphore::new(if rate.is_some() { 0 } else { 32 }));
        let (frame, stopping) = (frame.clone(), Arc::clone(&stop));
        let pace = rate.map(|rate| Duration::from_secs_f64(clients as f64 / rate));
        let allowance = Arc::clone(&credit);
        tasks.spawn(async move {
            let mut next = Instant::now();
            while !stopping.load(Ordering::Relaxed) {
                match pace {
                    Some(pace) => {
                        tokio::time::sleep_until(next.into()).await;
                        next += pace;
                    }
                    None => allowance.acquire().await?.forget(),
                }
                // A broker that does not read holds the sender back.
                if send.send(&frame).await.is_err() {
                    break;
                }
            }
            anyhow::Ok(())
        });
        let (done, throttled) = (Arc::clone(&done), Arc::clone(&throttled));
        tasks.spawn(async move {
            while let Ok((header, _)) = receive.answer().await {
                credit.add_permits(1);
                match header.error_code() {
                    ErrorCode::Ok => done.fetch_add(1, Ordering::Relaxed),
                    ErrorCode::Throttled => throttled.fetch_add(1, Ordering::Relaxed),
                    other => bail!("refused with {other}"),
                };
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let counts = || (done.load(Ordering::Relaxed), throttled.load(Ordering::Relaxed));
    let (at, (done_before, throttled_before)) = (Instant::now(), counts());
    tokio::time::sleep(time).await;
    let (seconds, (done_after, throttled_after)) = (at.elapsed().as_secs_f64(), counts());
    stop.store(true, Ordering::Relaxed);
    // What is still in flight is of no interest; an error before now is.
    while let Some(ended) = tasks.try_join_next() {
        ended?.with_context(|| format!("after {:?}", begun.elapsed()))?;
    }
    // The connections end with the tasks.
    tasks.shutdown().await;
    Ok(Offered {
        done_per_s: (done_after - done_before) as f64 / seconds,
        throttled_per_s: (throttled_after - throttled_before) as f64 / seconds,
    })
}

on_each_backend! {
    /// More requests in one stream than may be in flight, and then the stream's end: all are answered.
    fn requests_behind_the_end_of_their_stream_are_answered(backend: Backend) -> Result<()> {
        const REQUESTS: usize = 3000;
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("test.flush_delay_us", 20_000);
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("ended", 1)?;
        client::runtime()?.block_on(async {
            let info = raw::topic(&dir, "ended").await?;
            let (mut send, mut receive) = Raw::greeted(&dir).await?.split();
            let frame = raw::produce_frame(&info, 0, &raw::batch(&["x"], ProducerStamp::NONE))?;
            send.send(&frame.repeat(REQUESTS)).await?;
            send.finish()?;
            for number in 0..REQUESTS {
                let (header, _) = receive.answer().await.with_context(|| format!("{number}"))?;
                ensure!(header.status == 0, "refused with {}", header.error_code());
            }
            anyhow::Ok(())
        })?;
        broker.stop()
    }
}

on_each_backend! {
    /// Stopped in the middle of many requests: each is acknowledged, and then it is there, or refused,
    /// or its connection ends; nothing stays open.
    fn a_stop_under_load_leaves_nothing_open(backend: Backend) -> Result<()> {
        const CLIENTS: usize = 8;
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("test.flush_delay_us", 2_000);
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        Cli::new(&dir).create_topic("stop", 1)?;
        let acknowledged = client::runtime()?.block_on(stop_under_load(&dir, CLIENTS, broker))?;
        let broker = node.start()?;
        let there: BTreeSet<String> = Cli::new(&dir).consume("stop")?.lines().map(str::to_owned).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|value| !there.contains(*value)).collect();
        ensure!(lost.is_empty(), "{} acknowledged and not there: {:?}", lost.len(), lost.first());
        broker.stop()
    }
}

/// Sends without end from several clients, stops the broker, and waits until every connection has
/// ended. Gives what was acknowledged.
async fn stop_under_load(dir: &Path, clients: usize, broker: Broker) -> Result<Vec<String>> {
    let info = Arc::new(raw::topic(dir, "stop").await?);
    let mut tasks = tokio::task::JoinSet::new();
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Raw::greeted(dir).await?);
    }
    for (number, raw) in connected.into_iter().enumerate() {
        let (mut send, mut receive) = raw.split();
        let info = Arc::clone(&info);
        let sender = tokio::spawn(async move {
            let mut sent = Vec::new();
            loop {
                let value = format!("{number}:{}", sent.len());
                let batch = raw::batch(&[&value], ProducerStamp::NONE);
                let mut frame = raw::produce_frame(&info, 0, &batch)?;
                // Answers come as they are ready: the correlation id tells which is which.
                frame[8..12].copy_from_slice(&(sent.len() as u32).to_le_bytes());
                sent.push(value);
                if send.send(&frame).await.is_err() {
                    return anyhow::Ok(sent);
                }
                if sent.len().is_multiple_of(16) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        tasks.spawn(async move {
            let mut answers = BTreeMap::new();
            while let Ok((header, _)) = receive.answer().await {
                let again = answers.insert(header.correlation.0 as usize, header.error_code());
                ensure!(again.is_none(), "request {} is answered twice", header.correlation.0);
            }
            let sent = client::bounded("the sender's end", sender).await???;
            anyhow::Ok((sent, answers))
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stopping = tokio::task::spawn_blocking(move || broker.stop());
    let (mut acknowledged, mut refused, mut unanswered) = (Vec::new(), 0, 0);
    while let Some(done) = client::bounded("an end", tasks.join_next()).await? {
        let (sent, answers) = done??;
        unanswered += sent.len() - answers.len();
        for (request, code) in answers {
            let value = sent.get(request).context("an answer to no request")?;
            match code {
                ErrorCode::Ok => acknowledged.push(value.clone()),
                ErrorCode::ShuttingDown | ErrorCode::Interrupted | ErrorCode::Timeout => {
                    refused += 1
                }
                other => bail!("answered with {other}"),
            }
        }
    }
    stopping.await??;
    machine::note(&format!(
        "a stop under load: {} acknowledged, {refused} refused, {unanswered} ended with their \
         connection",
        acknowledged.len()
    ));
    ensure!(!acknowledged.is_empty(), "nothing was acknowledged");
    Ok(acknowledged)
}
