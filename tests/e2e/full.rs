//! No room in the log, none on the disk: new records are refused for now, reading goes on, and so
//! does writing once there is room.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustmq_checker::{Partition, Value};
use rustmq_client::{ErrorCode, NewTopic, OffsetAt, PartitionId, TopicInfo};
use rustmq_protocol::{ProduceResponse, ProducerStamp};

use crate::support::broker::{Backend, Broker, Node, on_each_backend, wal_dirs};
use crate::support::cli::Cli;
use crate::support::device::LoopFileSystem;
use crate::support::history::{PRODUCER, Recorder};
use crate::support::raw::{self, Raw};
use crate::support::{client, machine, reading};

/// Bytes of each value: a hundred of them are more than any log here holds.
const VALUE_BYTES: usize = 128 << 10;

/// Starts after which a full log should have no page left: many times what one of 1 MiB keeps back.
const STARTS_MAX: usize = 200;

/// Starts that leave a log of segments of 1 MiB no page, if each takes one: it keeps 32 back, and has
/// fewer than a record's more.
const STARTS: usize = 48;

/// Bytes of each value of a log that drops its oldest.
const SMALL_VALUE_BYTES: usize = 32 << 10;

/// What is left of a full disk: less than a segment.
const LEFT_BYTES: u64 = 1 << 20;

/// Records after which a log that still takes more is not full but endless.
const RECORDS_MAX: u64 = 2_000;

/// The only one of each topic.
const PARTITION: Partition = Partition(0);

on_each_backend! {
    fn a_full_log_refuses_and_takes_records_again_after_a_deletion(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "8MiB")
            .set("test.retention_check_ms", 50);
        let mut broker = node.start()?;
        let cli = Cli::new(node.data_dir());
        for topic in ["big", "small"] {
            cli.create_topic(topic, 1)?;
        }
        let told = Recorder::default();
        fill(node.data_dir(), "big", &told)?;
        still_readable(node.data_dir(), "big", &told)?;
        // A start finds the log as full as it was.
        broker.kill_running()?;
        broker = node.start()?;
        still_readable(node.data_dir(), "big", &told)?;
        fill(node.data_dir(), "big", &told)?;
        cli.ok(&["topic", "delete", "big"])?;
        // Too large for what a full log keeps back.
        let after = value("after");
        cli.produce("small", &after)?;
        ensure!(cli.consume("small")? == format!("{after}\n"), "other records came");
        ensure!(0 < broker.metric("rustmq_wal_freed_segments_total")?, "nothing was freed");
        broker.stop()?;
        cli.verify_log()
    }
}

on_each_backend! {
    fn a_full_log_takes_records_again_after_retention(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "8MiB")
            .set("test.retention_check_ms", 50);
        let broker = node.start()?;
        let dir = node.data_dir();
        client::runtime()?.block_on(async {
            let client = client::connect(dir).await?;
            let topic = NewTopic::new("short", 1).with_config("retention_ms", "5000");
            client::bounded("a topic", client.create_topic(topic)).await??;
            client.close().await;
            anyhow::Ok(())
        })?;
        let told = Recorder::default();
        fill(dir, "short", &told)?;
        let end = told.lock().acknowledged_end(PARTITION);
        // A client with retries on does not even notice.
        let later = value("later");
        let send = told.lock().begin_send(PRODUCER, PARTITION, Value::of(later.as_bytes()));
        Cli::new(dir).produce("short", &later)?;
        told.lock().acknowledge(send, None);
        let read = client::runtime()?.block_on(async {
            let client = client::connect(dir).await?;
            reading::read(&client, "short", 0, &told).await
        })?;
        ensure!(0 < read.from, "the oldest records are still there");
        let last = read.records.last().context("the record that came later")?;
        ensure!(last.value == later.as_bytes(), "another record is at {}", last.offset);
        ensure!(end <= last.offset, "offset {} after an end of {end}", last.offset);
        told.check()?;
        ensure!(0 < broker.metric("rustmq_wal_freed_segments_total")?, "nothing was freed");
        broker.stop()?;
        Cli::new(dir).verify_log()
    }
}

on_each_backend! {
    fn a_full_disk_refuses_and_takes_records_again_when_there_is_space(
        backend: Backend
    ) -> Result<()> {
        let _machine = machine::shared();
        let Some(file_system) = small_disk("full disk", backend) else { return Ok(()) };
        let node = Node::new(backend)?
            .in_dir(&file_system.path().join("data"))
            .set("wal.segment_bytes", "4MiB")
            // Far more than the disk has.
            .set("wal.capacity_bytes", "1GiB")
            .set("test.retention_check_ms", 50);
        let dir = node.data_dir().to_owned();
        let mut broker = node.start()?;
        let cli = Cli::new(&dir);
        for topic in ["big", "small"] {
            cli.create_topic(topic, 1)?;
        }
        // Something else takes a part of the disk.
        let filler = file_system.path().join("filler");
        fs::write(&filler, vec![1; 10 << 20])?;
        let told = Recorder::default();
        fill(&dir, "big", &told)?;
        still_readable(&dir, "big", &told)?;
        ensure!(broker.is_running()?, "the broker ended\n{}", broker.output());
        // The catalogue has its space: topics are made and deleted on a full disk.
        cli.create_topic("another", 1)?;
        cli.ok(&["topic", "delete", "another"])?;
        broker.kill_running()?;
        broker = node.start()?;
        still_readable(&dir, "big", &told)?;
        fs::remove_file(filler)?;
        let after = value("after");
        cli.produce("small", &after)?;
        ensure!(cli.consume("small")? == format!("{after}\n"), "other records came");
        broker.stop()
    }
}

on_each_backend! {
    /// A log that drops its oldest has nothing to drop while its only segment is the one in use.
    fn a_full_disk_with_one_segment_refuses_also_who_may_drop(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let Some(file_system) = small_disk("one segment on a full disk", backend) else { return Ok(()) };
        let node = Node::new(backend)?
            .in_dir(&file_system.path().join("data"))
            .set("wal.segment_bytes", "4MiB")
            .set("wal.capacity_bytes", "1GiB")
            .set("wal.when_full", "delete_oldest")
            .set("test.retention_check_ms", 50);
        let dir = node.data_dir().to_owned();
        let broker = node.start()?;
        Cli::new(&dir).create_topic("big", 1)?;
        broker.stop()?;
        // The spare's space goes to somebody else.
        let wal = wal_dirs(&dir)?.pop().context("a WAL")?;
        fs::remove_file(wal.join("segment-00001.wal"))?;
        let filler = file_system.path().join("filler");
        fill_disk(&filler)?;
        let broker = node.start()?;
        let told = Recorder::default();
        fill(&dir, "big", &told)?;
        still_readable(&dir, "big", &told)?;
        fs::remove_file(filler)?;
        Cli::new(&dir).produce("big", &value("after"))?;
        broker.stop()
    }
}

on_each_backend! {
    /// Each start takes a page of what a full log keeps back. The one that finds none is refused,
    /// and nothing is lost.
    fn a_full_log_refuses_the_start_that_finds_no_page_left(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("wal.capacity_bytes", "4MiB");
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("big", 1)?;
        let told = Recorder::default();
        fill(node.data_dir(), "big", &told)?;
        let said = starts_until_refused(&node, broker)?;
        ensure!(said.contains("raise wal.capacity_bytes by at least one segment"), "it said {said}");
        let node = node.set("wal.capacity_bytes", "5MiB");
        let broker = node.start()?;
        still_readable(node.data_dir(), "big", &told)?;
        Cli::new(node.data_dir()).produce("big", "after\n")?;
        broker.stop()
    }
}

on_each_backend! {
    /// So with a disk that has no space for another segment.
    fn a_full_disk_refuses_the_start_that_finds_no_page_left(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let Some(file_system) = small_disk("start on a full disk", backend) else { return Ok(()) };
        let node = Node::new(backend)?
            .in_dir(&file_system.path().join("data"))
            .set("wal.capacity_bytes", "1GiB");
        let dir = node.data_dir().to_owned();
        let broker = node.start()?;
        Cli::new(&dir).create_topic("big", 1)?;
        let filler = file_system.path().join("filler");
        fs::write(&filler, vec![1; 10 << 20])?;
        let told = Recorder::default();
        fill(&dir, "big", &told)?;
        let said = starts_until_refused(&node, broker)?;
        ensure!(said.contains("the disk has no space for another segment"), "it said {said}");
        fs::remove_file(filler)?;
        let broker = node.start()?;
        still_readable(&dir, "big", &told)?;
        Cli::new(&dir).produce("big", "after\n")?;
        broker.stop()
    }
}

on_each_backend! {
    /// Each start takes a page of what a full log keeps back. One that drops its oldest records does so
    /// before starts alone have used up all of it.
    fn a_full_log_that_drops_its_oldest_outlasts_any_number_of_starts(
        backend: Backend
    ) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "4MiB")
            .set("wal.when_full", "delete_oldest")
            .set("test.retention_check_ms", 50);
        let dir = node.data_dir().to_owned();
        let mut broker = node.start()?;
        Cli::new(&dir).create_topic("ring", 1)?;
        let told = Recorder::default();
        let filled_to = client::runtime()?.block_on(until_nearly_dropped(&dir, "ring", &told))?;
        for _ in 0..STARTS {
            broker.kill_running()?;
            broker = node.start()?;
        }
        let after = client::runtime()?.block_on(async {
            let client = client::connect(&dir).await?;
            let before = reading::read(&client, "ring", 0, &told).await?;
            ensure!(filled_to < before.from, "no start dropped anything");
            append(&dir, "ring", &told, 300).await?;
            let after = reading::read(&client, "ring", 0, &told).await?;
            client.close().await;
            anyhow::Ok(after)
        })?;
        let end = after.from + after.records.len() as u64;
        ensure!(end == told.lock().acknowledged(), "the log ends at {end}");
        told.check()?;
        broker.stop()
    }
}

/// Kills the broker and starts it again until a start is refused, and gives what that said.
fn starts_until_refused(node: &Node, mut broker: Broker) -> Result<String> {
    for _ in 0..STARTS_MAX {
        broker.kill_running()?;
        broker = node.launch()?;
        if broker.until_ready().is_err() {
            return broker.refusal();
        }
    }
    bail!("{STARTS_MAX} starts found a page")
}

/// Appends to a log that drops its oldest until one record more would make it do so; gives where it
/// begins.
async fn until_nearly_dropped(dir: &Path, topic: &str, told: &Recorder) -> Result<u64> {
    let client = client::connect(dir).await?;
    let mut begins = 0;
    // How many records lie between two segments that are dropped; the first is not counted whole.
    let (mut between, mut since) = (None, 0);
    for _ in 0..RECORDS_MAX {
        append(dir, topic, told, 1).await?;
        since += 1;
        let now = reading::offset_at(&client, topic, PartitionId(0), OffsetAt::Earliest).await?;
        if begins < now {
            between = (0 < begins).then_some(since);
            (begins, since) = (now, 0);
        }
        if between.is_some_and(|between| between <= since + 1) {
            client.close().await;
            return Ok(begins);
        }
    }
    bail!("{RECORDS_MAX} records fit")
}

/// Appends so many records, which the log has to take.
async fn append(dir: &Path, topic: &str, told: &Recorder, count: u64) -> Result<()> {
    let info = raw::topic(dir, topic).await?;
    let mut raw = Raw::greeted(dir).await?;
    let first = told.lock().acknowledged();
    for number in first..first + count {
        let value = padded(SMALL_VALUE_BYTES, &number.to_string());
        let (code, said) = send(&mut raw, &info, told, &value).await?;
        ensure!(code == ErrorCode::Ok, "record {number} is answered {code}: {said}");
    }
    Ok(())
}

/// A file system of 72 MiB; or says that this test is left out.
fn small_disk(test: &str, backend: Backend) -> Option<LoopFileSystem> {
    match LoopFileSystem::mount(72 << 20) {
        Ok(file_system) => Some(file_system),
        Err(error) => {
            machine::skip(&format!("{test}, {}", backend.name()), &format!("{error:#}"));
            None
        }
    }
}

/// Takes all space of a disk but what a start needs beside its log.
fn fill_disk(filler: &Path) -> Result<()> {
    let mut file = File::create(filler)?;
    let bytes = loop {
        match file.write_all(&[1; 64 << 10]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => break file.metadata()?.len(),
            Err(error) => return Err(error.into()),
        }
    };
    file.set_len(bytes - LEFT_BYTES)?;
    Ok(file.sync_all()?)
}

/// Appends until there is no room.
fn fill(dir: &Path, topic: &str, told: &Recorder) -> Result<()> {
    client::runtime()?.block_on(async {
        let info = raw::topic(dir, topic).await?;
        let mut raw = Raw::greeted(dir).await?;
        // Later ones than those of a fill before.
        let first = told.lock().acknowledged();
        for number in first..first + RECORDS_MAX {
            let value = value(&number.to_string());
            match send(&mut raw, &info, told, &value).await? {
                (ErrorCode::Ok, _) => {}
                (ErrorCode::StorageFull, said) => {
                    ensure!(ErrorCode::StorageFull.is_retriable(), "clients give up");
                    ensure!(said.contains("full"), "{said:?}");
                    return Ok(());
                }
                (code, said) => bail!("record {number} is answered {code}: {said}"),
            }
        }
        bail!("{RECORDS_MAX} records fit")
    })
}

/// Sends a record and writes down what came of it; gives the answer's code and what it says.
async fn send(
    raw: &mut Raw,
    info: &TopicInfo,
    told: &Recorder,
    value: &str,
) -> Result<(ErrorCode, String)> {
    let send = told.lock().begin_send(PRODUCER, PARTITION, Value::of(value.as_bytes()));
    let batch = raw::batch(&[value], ProducerStamp::NONE);
    let (header, body) = raw.ask_bytes(&raw::produce_frame(info, 0, &batch)?).await?;
    let code = header.error_code();
    if code == ErrorCode::Ok {
        let offset = ProduceResponse::decode(&body)?.base_offset.0;
        told.lock().acknowledge(send, Some(offset));
        return Ok((code, String::new()));
    }
    told.lock().fail(send);
    Ok((code, raw::message(code, &header, &body)?))
}

/// A value of [`VALUE_BYTES`] that ends like this.
fn value(end: &str) -> String {
    padded(VALUE_BYTES, end)
}

/// A value of so many bytes that ends like this.
fn padded(bytes: usize, end: &str) -> String {
    "x".repeat(bytes - end.len()) + end
}

/// Every record that was acknowledged is served, from the first one on, and none that was refused.
fn still_readable(dir: &Path, topic: &str, told: &Recorder) -> Result<()> {
    let read = client::runtime()?.block_on(async {
        let client = client::connect(dir).await?;
        let read = reading::read(&client, topic, 0, told).await?;
        client.close().await;
        anyhow::Ok(read)
    })?;
    ensure!(read.from == 0, "the log begins at {}", read.from);
    told.check()
}
