//! The device was told to flush for every block that was acknowledged.
//!
//! A killed process loses nothing that it handed to the kernel, so no kill shows whether anything
//! was flushed. The device does: it counts the flushes it was asked for. The records are sent one
//! after another to one shard, so each is a block of its own and no two share a flush. A build that
//! leaves the flushes out has to be found out by the very same measurement.

use std::path::Path;

use anyhow::{Result, ensure};
use rustmq_client::{FlushMode, NewTopic, ProducerRecord};

use crate::support::broker::{Backend, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::client;
use crate::support::device::{Device, LoopFileSystem};
use crate::support::{machine, without_flushes};

/// Records sent, each acknowledged before the next.
const RECORDS: u64 = 300;

/// The ways in which io_uring makes a block durable; the other runtimes have one.
const PLANS: [&str; 2] = ["write_flush", "write_through"];

/// Room for a data directory of each plan: the catalogue and a log of 16 MiB.
const FILE_SYSTEM_BYTES: u64 = 128 << 20;

on_each_backend! {
    /// On the disk where a data directory usually is. Others may flush it meanwhile, so the other
    /// tests wait.
    fn the_disk_was_flushed_for_every_acknowledged_block(backend: Backend) -> Result<()> {
        let _machine = machine::alone();
        let dir = machine::scratch_dir("flush-")?;
        let device = Device::below(dir.path())?;
        if !device.has_volatile_cache() {
            let why = format!("{} has no volatile cache, it is sent no flushes", device.name());
            machine::skip(&format!("flush on the disk, {}", backend.name()), &why);
            return Ok(());
        }
        for plan in PLANS {
            measure(&machine::executable(), backend, plan, dir.path(), &device)?.check()?;
        }
        Ok(())
    }
}

on_each_backend! {
    /// On a device that nobody else uses: what it counts is the broker's alone.
    fn a_device_of_its_own_was_flushed_for_every_acknowledged_block(
        backend: Backend
    ) -> Result<()> {
        let _machine = machine::shared();
        let Some(file_system) = file_system(&format!("flush on a device, {}", backend.name()))
        else {
            return Ok(());
        };
        let device = Device::below(&file_system.path())?;
        for plan in PLANS {
            let dir = file_system.path();
            measure(&machine::executable(), backend, plan, &dir, &device)?.check()?;
        }
        Ok(())
    }
}

on_each_backend! {
    /// The control: without flushes the measurement must fail, else it shows nothing.
    fn a_build_without_flushes_is_found_out(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let name = format!("flush, a build without flushes, {}", backend.name());
        let Some(executable) = without_flushes::executable(&name)? else { return Ok(()) };
        let Some(file_system) = file_system(&name) else { return Ok(()) };
        let device = Device::below(&file_system.path())?;
        for plan in PLANS {
            let measured = measure(&executable, backend, plan, &file_system.path(), &device)?;
            // Everything else is as it should be: it is the flushes that are missed.
            ensure!(RECORDS <= measured.blocks, "{measured:?}: the load itself failed");
            ensure!(measured.check().is_err(), "{measured:?} passes without a single flush");
        }
        Ok(())
    }
}

#[test]
fn every_acknowledgement_says_whether_the_record_was_flushed() -> Result<()> {
    let _machine = machine::shared();
    for (flush, wanted) in
        [("always", FlushMode::Always), ("interval", FlushMode::Interval { ms: 70 })]
    {
        let node =
            Node::new(Backend::Epoll)?.set("wal.flush", flush).set("wal.flush_interval_ms", 70);
        let broker = node.start()?;
        let cli = Cli::new(node.data_dir());
        cli.create_topic("told", 1)?;
        client::runtime()?.block_on(async {
            let client = client::connect(node.data_dir()).await?;
            let producer = client.producer("told").build().await?;
            let told = producer.send(ProducerRecord::value("a")).await?.flush;
            ensure!(told == Some(wanted), "{flush}: {told:?}");
            client.close().await;
            anyhow::Ok(())
        })?;
        let warned = cli.produce("told", "b\n")?.contains("the broker flushes every 70 ms");
        ensure!(warned == (flush == "interval"), "{flush}: the command warned: {warned}");
        broker.stop()?;
    }
    Ok(())
}

#[test]
fn a_shard_with_a_core_of_its_own_writes_through() -> Result<()> {
    let _machine = machine::shared();
    let cores = u16::try_from(std::thread::available_parallelism()?.get())?;
    if cores < 2 || !Backend::Uring.runs("flush, a core of its own") {
        machine::skip("flush, a core of its own", "it takes io_uring and two cores");
        return Ok(());
    }
    let said = |shards, wanted: &str| -> Result<()> {
        let node = Node::new(Backend::Uring)?.shards(shards).set("wal.capacity_bytes", "64MiB");
        let broker = node.start()?;
        ensure!(broker.output().contains(wanted), "{}", broker.output());
        broker.stop()
    };
    match rustmq_sys::cpu::probe_give_way() {
        Ok(()) => said(1, "write_through: each shard has a core of its own")?,
        Err(error) => said(1, &format!("write_flush: {error}"))?,
    }
    said(cores, "write_flush: shards share their cores")
}

/// What a load of acknowledged records did.
#[derive(Debug)]
struct Measured {
    /// Blocks that the broker says it made durable.
    blocks: u64,
    /// Flushes that the device completed.
    flushes: u64,
}

impl Measured {
    fn check(&self) -> Result<()> {
        let Measured { blocks, flushes } = self;
        ensure!(
            RECORDS <= *blocks,
            "{RECORDS} records were acknowledged one by one, and {blocks} blocks are said to be \
             flushed"
        );
        ensure!(blocks <= flushes, "{blocks} blocks and {flushes} flushes");
        Ok(())
    }
}

fn measure(
    executable: &Path,
    backend: Backend,
    plan: &str,
    dir: &Path,
    device: &Device,
) -> Result<Measured> {
    let node = Node::new(backend)?
        .of_build(executable)
        .in_dir(&dir.join(plan))
        .set("wal.flush_plan", plan);
    let broker = node.start()?;
    let (blocks, flushes) = client::runtime()?.block_on(async {
        let client = client::connect(node.data_dir()).await?;
        client::bounded("a topic", client.create_topic(NewTopic::new("flushed", 1))).await??;
        let producer = client.producer("flushed").build().await?;
        let send = async |value: String| {
            let sent = producer.send(ProducerRecord::value(value));
            anyhow::Ok(client::bounded("an acknowledgement", sent).await??)
        };
        let blocks = || broker.metric("rustmq_wal_flushed_blocks_total");
        // What comes with a first record is over.
        send("first".to_owned()).await?;
        // A mark of the log may come at any moment, so the flushes are counted from before a record
        // whose block is the first one counted: blocks are written one after another, and counted
        // before they are acknowledged.
        let flushes_before = device.flushes()?;
        send("record 0".to_owned()).await?;
        let blocks_before = blocks()? - 1;
        for number in 1..RECORDS {
            send(format!("record {number}")).await?;
        }
        // In this order, so that a block counted has its flush counted.
        let blocks_after = blocks()?;
        let flushes_after = device.flushes()?;
        client.close().await;
        anyhow::Ok((blocks_after - blocks_before, flushes_after - flushes_before))
    })?;
    broker.kill_running()?;
    Ok(Measured { blocks, flushes })
}

fn file_system(name: &str) -> Option<LoopFileSystem> {
    match LoopFileSystem::mount(FILE_SYSTEM_BYTES) {
        Ok(file_system) => Some(file_system),
        Err(error) => {
            machine::skip(name, &format!("{error:#}"));
            None
        }
    }
}
