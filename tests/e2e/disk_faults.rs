//! Disks that fail, hang or are slow, file systems that go read-only, and files that are deleted
//! beneath a broker: what is acknowledged stays true, and what is wrong is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustmq_protocol::{ErrorCode, ProduceResponse, ProducerStamp};

use crate::support::broker::{Backend, Broker, Node, on_each_backend, wal_dirs};
use crate::support::cli::Cli;
use crate::support::device::LoopFileSystem;
use crate::support::history::Recorder;
use crate::support::process::wait_until;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine, reading};

/// Batches sent until a fault has to have come.
const BATCHES_MAX: usize = 5_000;

/// The flush that fails or hangs: behind those of a start and of a topic.
const FAULTY_FLUSH: u32 = 60;

/// How long a flush hangs: longer than a broker takes for a hang, 10 s, and longer than a request's
/// patience, which is 10 s as well.
const HANG_MS: u64 = 16_000;

/// Sends one record at a time until one is not acknowledged. Gives the acknowledged ones, and why
/// it ended.
async fn produce_until_refused(
    data_dir: &Path,
    topic: &str,
    bytes: usize,
) -> Result<(Vec<String>, String)> {
    let info = raw::topic(data_dir, topic).await?;
    let mut raw = Raw::greeted(data_dir).await?;
    let mut acknowledged = Vec::new();
    for number in 0..BATCHES_MAX {
        let value = format!("{number}:{}", "x".repeat(bytes));
        let batch = raw::batch(&[&value], ProducerStamp::NONE);
        let (header, body) = match raw.ask_bytes(&raw::produce_frame(&info, 0, &batch)?).await {
            Ok(answer) => answer,
            Err(error) => return Ok((acknowledged, format!("{error:#}"))),
        };
        if header.error_code() != ErrorCode::Ok {
            let said = raw::message(header.error_code(), &header, &body)?;
            return Ok((acknowledged, format!("{}: {said}", header.error_code())));
        }
        let answer = ProduceResponse::decode(&body)?;
        ensure!(
            answer.base_offset.0 as usize == acknowledged.len(),
            "offset {}",
            answer.base_offset
        );
        acknowledged.push(value);
    }
    bail!("all of {BATCHES_MAX} batches were acknowledged")
}

/// Everything acknowledged is there, in its order; what was not may follow.
fn has_all(data_dir: &Path, topic: &str, acknowledged: &[String]) -> Result<()> {
    client::runtime()?.block_on(async {
        let client = client::connect(data_dir).await?;
        let read = reading::read(&client, topic, 0, &Recorder::default()).await?;
        client.close().await;
        ensure!(acknowledged.len() <= read.records.len(), "{} records", read.records.len());
        for (record, value) in read.records.iter().zip(acknowledged) {
            ensure!(record.value == value.as_bytes(), "another record is at {}", record.offset);
        }
        Ok(())
    })
}

/// Waits until the log says it: it is written by a thread of its own.
fn until_logged(broker: &Broker, text: &str) -> Result<()> {
    wait_until(|| Ok(broker.output().contains(text).then_some(())))?
        .with_context(|| format!("the log does not say {text:?}"))
}

/// Waits for the end of a broker whose disk failed: not clean, and it says where and what.
fn ended_by_its_disk(broker: Broker, dir: &Path) -> Result<String> {
    let said = broker.failure()?;
    ensure!(said.contains("wal-"), "the directory of the log is not named: {said}");
    ensure!(said.contains(&dir.display().to_string()), "the data directory is not named: {said}");
    ensure!(said.contains("os error"), "the system's error is not given: {said}");
    ensure!(said.contains("device"), "the device is not named: {said}");
    Ok(said)
}

on_each_backend! {
    /// Nothing is acknowledged after a flush that failed, and the process ends; what was is kept.
    fn a_failed_flush_ends_the_broker_and_acknowledges_nothing(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("flush", 1)?;
        broker.kill_running()?;
        let node = node.set("test.flush_fail_at", FAULTY_FLUSH);
        let broker = node.start()?;
        let (acknowledged, _) = client::runtime()?
            .block_on(produce_until_refused(node.data_dir(), "flush", 100))?;
        ensure!(!acknowledged.is_empty(), "the fault came too early");
        ensure!(acknowledged.len() < FAULTY_FLUSH as usize, "{} flushes", acknowledged.len());
        ended_by_its_disk(broker, node.data_dir())?;
        let node = node.set("test.flush_fail_at", 0);
        let broker = node.start()?;
        has_all(node.data_dir(), "flush", &acknowledged)?;
        broker.stop()
    }
}

on_each_backend! {
    /// A flush that hangs is seen, said, and outlived.
    fn a_hanging_flush_is_said_and_outlived(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("hang", 1)?;
        broker.kill_running()?;
        let node = node
            .set("test.flush_hang_at", FAULTY_FLUSH)
            .set("test.flush_hang_ms", HANG_MS);
        let broker = node.start()?;
        let dir = node.data_dir().to_owned();
        let producing = std::thread::spawn(move || -> Result<_> {
            client::runtime()?.block_on(produce_until_refused(&dir, "hang", 100))
        });
        let state = wait_until(|| {
            let (code, text) = broker.status("/readyz")?;
            Ok((code == 503).then_some(text))
        })?;
        let state = state.context("readyz never said that the disk hangs")?;
        ensure!(state.contains("has not answered"), "{state}");
        ensure!(10 <= broker.metric("rustmq_wal_stalled_seconds")?, "the metric does not say it");
        let (acknowledged, refused) =
            producing.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
        ensure!(refused.contains("TIMEOUT"), "the producer was told {refused}");
        // The flush returns, and everything goes on.
        let well = wait_until(|| Ok((broker.status("/readyz")?.0 == 200).then_some(())))?;
        well.context("readyz never said that the disk answers again")?;
        ensure!(broker.metric("rustmq_wal_stalled_seconds")? == 0, "the metric does not say it");
        Cli::new(node.data_dir()).check_health("after")?;
        has_all(node.data_dir(), "hang", &acknowledged)?;
        until_logged(&broker, "has not answered")?;
        broker.stop()
    }
}

on_each_backend! {
    /// Producers wait for a slow disk; memory does not grow with what they would send.
    fn a_slow_disk_holds_producers_back_and_not_their_records(backend: Backend) -> Result<()> {
        const PRODUCERS: usize = 8;
        const BATCHES: usize = 60;
        const BATCH_BYTES: usize = 100_000;
        let _machine = machine::shared();
        let node = Node::new(backend)?
            .set("wal.capacity_bytes", "128MiB")
            .set("wal.segment_bytes", "8MiB")
            .set("wal.buffer_bytes", "8MiB")
            .set("cache.hot_bytes", "4MiB")
            .set("test.flush_delay_us", 50_000);
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("slow", 1)?;
        let before = broker.memory_peak()?;
        let dir = node.data_dir().to_owned();
        let acknowledged: usize = client::runtime()?.block_on(async {
            let mut producers = Vec::new();
            for _ in 0..PRODUCERS {
                producers.push(send_all(&dir, BATCHES, BATCH_BYTES));
            }
            let mut sum = 0;
            for done in futures(producers).await {
                sum += done?;
            }
            anyhow::Ok(sum)
        })?;
        ensure!(acknowledged == PRODUCERS * BATCHES, "{acknowledged} were acknowledged");
        let grown = broker.memory_peak()?.saturating_sub(before);
        let sent = PRODUCERS * BATCHES * BATCH_BYTES;
        // Block memory and hot cache, what each connection may hold of frames, and as much again.
        let bound = 2 * ((8 + 4) * (1 << 20) + PRODUCERS * (4 << 20)) as u64;
        machine::note(&format!(
            "slow disk, {}: {sent} bytes were sent, memory grew by {grown}", backend.name()
        ));
        ensure!(grown < bound, "memory grew by {grown} of {sent} bytes sent, bound {bound}");
        broker.stop()
    }
}

/// Sends batches without waiting for answers in between; gives how many were acknowledged. Those
/// that are refused for now are sent again.
async fn send_all(data_dir: &Path, batches: usize, bytes: usize) -> Result<usize> {
    let info = raw::topic(data_dir, "slow").await?;
    let mut raw = Raw::greeted(data_dir).await?;
    let value = "x".repeat(bytes);
    let batch = raw::batch(&[&value], ProducerStamp::NONE);
    let frame = raw::produce_frame(&info, 0, &batch)?;
    let mut acknowledged = 0;
    while acknowledged < batches {
        let window = (batches - acknowledged).min(8);
        for _ in 0..window {
            raw.send(&frame).await?;
        }
        for _ in 0..window {
            let (header, _) = raw.answer().await?;
            match header.error_code() {
                ErrorCode::Ok => acknowledged += 1,
                ErrorCode::Throttled | ErrorCode::Timeout => {}
                other => bail!("refused with {other}"),
            }
        }
    }
    Ok(acknowledged)
}

async fn futures<F: Future<Output = Result<usize>>>(all: Vec<F>) -> Vec<Result<usize>> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).map(Some).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        for slot in &mut all {
            if let Some(future) = slot
                && let std::task::Poll::Ready(result) = future.as_mut().poll(cx)
            {
                done.push(result);
                *slot = None;
            }
        }
        match all.iter().all(Option::is_none) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done
}

/// A broker on a file system of its own, with a topic.
fn on_a_loop_device(backend: Backend, test: &str) -> Result<Option<(LoopFileSystem, Node)>> {
    let file_system = match LoopFileSystem::mount(96 << 20) {
        Ok(file_system) => file_system,
        Err(error) => {
            machine::skip(&format!("{test}, {}", backend.name()), &format!("{error:#}"));
            return Ok(None);
        }
    };
    let node = Node::new(backend)?.in_dir(&file_system.path().join("data"));
    Ok(Some((file_system, node)))
}

on_each_backend! {
    /// A file system that the kernel turns read-only is a disk that fails.
    fn a_file_system_gone_read_only_ends_the_broker(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let test = "file system gone read-only";
        let Some((file_system, node)) = on_a_loop_device(backend, test)? else { return Ok(()) };
        let trigger = match error_trigger(&file_system.path()) {
            Ok(trigger) => trigger,
            Err(error) => {
                machine::skip(test, &format!("{error:#}"));
                return Ok(());
            }
        };
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("read-only", 1)?;
        Cli::new(node.data_dir()).produce("read-only", "before\n")?;
        let acknowledged = client::runtime()?.block_on(async {
            let info = raw::topic(node.data_dir(), "read-only").await?;
            let mut raw = Raw::greeted(node.data_dir()).await?;
            let batch = raw::batch(&["after"], ProducerStamp::NONE);
            let frame = raw::produce_frame(&info, 0, &batch)?;
            // From here on a mark of the log may be the first to fail, and end the broker.
            fs::write(trigger, "1").context("making the file system fail")?;
            let outcome = raw.ask_bytes(&frame).await;
            anyhow::Ok(outcome.is_ok_and(|(header, _)| header.error_code() == ErrorCode::Ok))
        })?;
        ensure!(!acknowledged, "a read-only file system took a record");
        ended_by_its_disk(broker, node.data_dir())?;
        Ok(())
    }
}

/// The file that makes an ext4 fail, which it does by going read-only.
fn error_trigger(mounted: &Path) -> Result<PathBuf> {
    let mounted = mounted.display().to_string();
    let source = machine::run("findmnt", &["-n", "-o", "SOURCE", &mounted]);
    let source = source.context("findmnt says no device")?;
    let device = Path::new(source.trim()).file_name().context("a device")?.to_owned();
    let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
    ensure!(trigger.exists(), "{} is not there", trigger.display());
    let status =
        Command::new("mount").args(["-o", "remount,errors=remount-ro", &mounted]).status()?;
    ensure!(status.success(), "remounting ended with {status}");
    Ok(trigger)
}

on_each_backend! {
    /// A write that fails, of a broker that flushes at intervals: as with a flush.
    fn a_failed_write_ends_the_broker_and_acknowledges_nothing(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("wal.flush", "interval");
        let broker = node.start()?;
        Cli::new(node.data_dir()).create_topic("write", 1)?;
        broker.kill_running()?;
        let node = node.set("test.write_fail_at", FAULTY_FLUSH);
        let broker = node.start()?;
        let (acknowledged, _) = client::runtime()?
            .block_on(produce_until_refused(node.data_dir(), "write", 100))?;
        ensure!(!acknowledged.is_empty(), "the fault came too early");
        ensure!(acknowledged.len() < FAULTY_FLUSH as usize, "{} writes", acknowledged.len());
        ended_by_its_disk(broker, node.data_dir())?;
        let node = node.set("test.write_fail_at", 0);
        let broker = node.start()?;
        has_all(node.data_dir(), "write", &acknowledged)?;
        broker.stop()
    }
}

on_each_backend! {
    /// A segment file that is deleted beneath the broker: reading goes on, writing does not, and
    /// it is said.
    fn a_segment_deleted_beneath_is_said_and_refuses_writes(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let cli = Cli::new(node.data_dir());
        cli.create_topic("kept", 1)?;
        cli.produce("kept", "a\nb\nc\n")?;
        let wal = wal_dirs(node.data_dir())?.pop().context("a WAL")?;
        fs::remove_file(wal.join("segment-00000.wal"))?;
        let said = wait_until(|| {
            let (code, text) = broker.status("/readyz")?;
            Ok((code == 503).then_some(text))
        })?;
        let said = said.context("readyz does not say it")?;
        ensure!(said.contains("segment-00000.wal") && said.contains("deleted"), "{said}");
        ensure!(broker.metric("rustmq_wal_lost_files")? == 1, "the metric does not say it");
        until_logged(&broker, "deleted beneath")?;
        let (acknowledged, refused) = client::runtime()?
            .block_on(produce_until_refused(node.data_dir(), "kept", 100))?;
        ensure!(acknowledged.is_empty(), "{} were acknowledged", acknowledged.len());
        ensure!(refused.contains("STORAGE_CORRUPT"), "{refused}");
        ensure!(refused.contains("segment-00000.wal"), "{refused}");
        ensure!(cli.consume("kept")? == "a\nb\nc\n", "what is open is read");
        // The only segment is gone with the process, and the next start says so.
        broker.kill_running()?;
        let said = node.refusal()?;
        ensure!(said.contains("segments are gone") || said.contains("segment"), "{said}");
        Ok(())
    }
}

on_each_backend! {
    /// So with the catalogue: records are taken, topics are not changed any more.
    fn a_catalogue_deleted_beneath_is_said(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?;
        let broker = node.start()?;
        let cli = Cli::new(node.data_dir());
        cli.create_topic("kept", 1)?;
        for name in ["catalogue-a.log", "catalogue-b.log"] {
            fs::remove_file(node.data_dir().join(name))?;
        }
        let said = wait_until(|| {
            let (code, text) = broker.status("/readyz")?;
            Ok((code == 503).then_some(text))
        })?;
        let said = said.context("readyz does not say it")?;
        ensure!(said.contains("catalogue"), "{said}");
        let outcome = cli.run(&["topic", "create", "another"])?;
        ensure!(outcome.code == 4, "{outcome:?}");
        ensure!(outcome.stderr.contains("catalogue"), "{outcome:?}");
        // A producer id comes from the catalogue; who needs none goes on.
        let asking = ["produce", "kept"];
        let outcome = cli.run_on(&asking, Path::new("/etc/hostname"))?;
        ensure!(outcome.code == 4 && outcome.stderr.contains("catalogue"), "{outcome:?}");
        let taken = client::runtime()?.block_on(async {
            let info = raw::topic(node.data_dir(), "kept").await?;
            let mut raw = Raw::greeted(node.data_dir()).await?;
            let batch = raw::batch(&["a"], ProducerStamp::NONE);
            let (header, _) = raw.ask_bytes(&raw::produce_frame(&info, 0, &batch)?).await?;
            anyhow::Ok(header.error_code())
        })?;
        ensure!(taken == ErrorCode::Ok, "{taken}");
        ensure!(cli.consume("kept")? == "a\n", "other records came");
        broker.kill_running()?;
        let said = node.refusal()?;
        ensure!(said.contains("catalogue"), "{said}");
        Ok(())
    }
}

on_each_backend! {
    /// A directory that cannot be listed for a while says nothing of the files in it.
    fn a_directory_that_cannot_be_listed_is_not_an_empty_one(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let node = Node::new(backend)?.set("test.files_check_ms", 50);
        let broker = node.start()?;
        let cli = Cli::new(node.data_dir());
        cli.create_topic("kept", 1)?;
        let process = broker.process_id().to_string();
        let limit = |files: &str| {
            machine::run("prlimit", &["--pid", &process, &format!("--nofile={files}:")])
        };
        let before = fs::read_to_string(format!("/proc/{process}/limits"))?;
        let before = before.lines().find_map(|line| line.strip_prefix("Max open files"));
        let before = before.and_then(|line| line.split_whitespace().next()).context("a limit")?;
        limit("3").context("prlimit failed")?;
        let said = wait_until(|| {
            Ok(broker.output().contains("a directory cannot be listed").then_some(()))
        })?;
        limit(before).context("prlimit failed")?;
        said.context("nothing was said of it")?;
        // Twice the time between two looks; whatever is found out is kept for good.
        sleep(Duration::from_millis(100));
        let (code, text) = broker.status("/readyz")?;
        ensure!(code == 200, "{text}");
        cli.produce("kept", "a\n")?;
        cli.create_topic("another", 1)?;
        ensure!(cli.consume("kept")? == "a\n", "other records came");
        broker.stop()
    }
}
