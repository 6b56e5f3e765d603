//! Two questions about a log at rest. How much longer does a full check take than reading the same
//! bytes? What does a start read and compute, with few partitions and with many?
//!
//! `cargo run --release -p rustmq-benches --bin wal -- verify`, and `-- start`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use rustmq_benches::load::broker::beside_this_program;
use rustmq_benches::load::{disk, meter};
use rustmq_protocol::{
    BatchBuilder, BatchHeader, LeaderEpoch, Offset, PartitionId, ProducerStamp, Record,
    TimestampMs, TopicId, TopicPartition, stamp,
};
use rustmq_sys::buffer::BufferPool;
use rustmq_wal::salvage::{Salvage, SalvageWrite};
use rustmq_wal::{
    BlockSequence, EntryHeader, EntryKind, Incarnation, SEGMENT_BYTES_DEFAULT, WalId,
};

/// Bytes of one read of the bare reference.
const READ_BYTES: usize = 4 << 20;

/// The longest that a start may take.
const START_MAX: Duration = Duration::from_secs(120);

#[derive(Parser)]
struct Args {
    /// Directory for the logs: which disk [default: that of this program]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Rounds of each measurement, interleaved
    #[arg(long, default_value_t = 5, global = true)]
    rounds: usize,
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// `rustmq wal verify` beside a bare sequential O_DIRECT read of the same files
    Verify {
        /// Bytes of the log
        #[arg(long, default_value_t = 1 << 30)]
        bytes: u64,
        /// Bytes of each record; a batch has 16
        #[arg(long, default_value_t = 1024)]
        record_bytes: usize,
    },
    /// Bytes read and processor time of a start
    Start {
        /// Partitions of one topic, in two brokers with the same records
        #[arg(long, default_values_t = [100, 10_000])]
        partitions: Vec<u32>,
        /// Records of 1 KiB in each broker
        #[arg(long, default_value_t = 200_000)]
        records: usize,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let binary = beside_this_program()?;
    let here = std::env::current_exe()?;
    let parent = args.dir.unwrap_or_else(|| here.parent().expect("a folder").to_owned());
    let dir = tempfile::Builder::new().prefix("wal-bench-").tempdir_in(&parent)?;
    match args.question {
        Question::Verify { bytes, record_bytes } => {
            verify(&binary, dir.path(), bytes, record_bytes, args.rounds)
        }
        Question::Start { partitions, records } => {
            starts(&binary, dir.path(), &partitions, records, args.rounds)
        }
    }
}

fn verify(binary: &Path, dir: &Path, bytes: u64, record: usize, rounds: usize) -> Result<()> {
    let wal = WalId([7; 16]);
    let dir = dir.join(format!("wal-{wal}"));
    fs::create_dir(&dir)?;
    let files = write_log(&dir, wal, bytes, record)?;
    let mut ratios = Vec::new();
    for round in 0..=rounds {
        let (bare, read) = timed(|| files.iter().map(|file| read_bare(file)).sum::<Result<u64>>());
        let read = read?;
        let (checked, outcome) = timed(|| {
            Command::new(binary).args(["wal", "verify"]).arg(&dir).stdout(Stdio::null()).status()
        });
        ensure!(outcome?.success(), "verify found damage");
        let ratio = checked.as_secs_f64() / bare.as_secs_f64();
        println!(
            "round {round}: {read} bytes, bare read {bare:.3?} ({:.0} MB/s), verify {checked:.3?}, ratio \
             {ratio:.3}",
            read as f64 / 1e6 / bare.as_secs_f64()
        );
        // The first round only warms the device up.
        if 0 < round {
            ratios.push(ratio);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!("ratio: median {median:.3} [{:.3}-{:.3}]", ratios[0], ratios[ratios.len() - 1]);
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let outcome = work();
    (begun.elapsed(), outcome)
}

fn read_bare(path: &Path) -> Result<u64> {
    let pool = BufferPool::new(READ_BYTES, READ_BYTES);
    let mut buffer = pool.try_get(READ_BYTES).context("memory")?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut position = 0;
    loop {
        match file.read_at(&mut buffer, position)? {
            0 => return Ok(position),
            count => position += count as u64,
        }
    }
}

/// A log of full segments, as a broker leaves it.
fn write_log(dir: &Path, wal: WalId, bytes: u64, record_bytes: usize) -> Result<Vec<PathBuf>> {
    let mut number = 0_u64;
    let draw = || {
        number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        number
    };
    let mut log = Salvage::new(wal, SEGMENT_BYTES_DEFAULT, Incarnation(1), draw);
    let mut files: Vec<(PathBuf, File)> = Vec::new();
    let mut store = |writes: Vec<SalvageWrite>| -> Result<u32> {
        for SalvageWrite { slot, position, bytes } in writes {
            while files.len() <= slot.0 as usize {
                let path = dir.join(rustmq_wal::Slot(files.len() as u32).file_name());
                let file = File::create(&path)?;
                // Written whole, as a broker does: no read may find a hole.
                let zeroes = vec![0; READ_BYTES];
                for at in (0..SEGMENT_BYTES_DEFAULT).step_by(READ_BYTES) {
                    file.write_all_at(&zeroes, at)?;
                }
                files.push((path, file));
            }
            files[slot.0 as usize].1.write_all_at(&bytes, position)?;
        }
        Ok(files.len() as u32)
    };
    let value = vec![b'v'; record_bytes];
    let mut ends = [0_u64; 8];
    for round in 0.. {
        let partition = round % ends.len();
        let mut builder = BatchBuilder::new(1 << 20);
        for _ in 0..16 {
            let timestamp = TimestampMs(1_700_000_000_000);
            let record = Record { timestamp, key: None, value: Some(&value), headers: &[] };
            builder.try_push(&record).expect("a batch takes sixteen records");
        }
        let mut batch = builder.finish(ProducerStamp::NONE).to_vec();
        let base_offset = Offset(ends[partition]);
        stamp(&mut batch, base_offset, LeaderEpoch(1));
        let header = BatchHeader::decode(&batch)?;
        let entry = EntryHeader {
            kind: EntryKind::Data,
            sequence: BlockSequence(0),
            partition: TopicPartition {
                topic: TopicId::from_bytes([1; 16]),
                partition: PartitionId(partition as u32),
            },
            leader_epoch: LeaderEpoch(1),
            base_offset,
            record_count: header.record_count,
            payload_length: batch.len() as u32,
            append_time: TimestampMs(1_700_000_000_000),
            payload_crc: header.crc,
            max_timestamp: header.max_timestamp,
        };
        ensure!(log.take(&entry, &batch), "the entry is refused");
        ends[partition] += u64::from(header.record_count);
        let count = store(log.take_writes())?;
        if bytes / SEGMENT_BYTES_DEFAULT < u64::from(count) {
            break;
        }
    }
    log.finish();
    store(log.take_writes())?;
    for (_, file) in &files {
        file.sync_all()?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// What a start cost.
struct Cost {
    read_bytes: u64,
    cpu: Duration,
    wall: Duration,
}

fn starts(
    binary: &Path,
    dir: &Path,
    partitions: &[u32],
    records: usize,
    rounds: usize,
) -> Result<()> {
    let dirs: Vec<PathBuf> = partitions.iter().map(|count| dir.join(count.to_string())).collect();
    for (data, count) in dirs.iter().zip(partitions) {
        fill(binary, data, *count, records)?;
    }
    let mut costs: Vec<Vec<Cost>> = dirs.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (data, costs) in dirs.iter().zip(&mut costs) {
            costs.push(start(binary, data)?);
        }
    }
    for (count, costs) in partitions.iter().zip(&mut costs) {
        let median = |of: fn(&Cost) -> f64, costs: &[Cost]| {
            let mut all: Vec<f64> = costs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            (all[all.len() / 2], all[0], all[all.len() - 1])
        };
        let (read, ..) = median(|cost| cost.read_bytes as f64, costs);
        let (cpu, cpu_least, cpu_most) = median(|cost| cost.cpu.as_secs_f64() * 1e3, costs);
        let (wall, least, most) = median(|cost| cost.wall.as_secs_f64() * 1e3, costs);
        println!(
            "{count} partitions: {read:.0} bytes read, {cpu:.0} ms of processor \
             [{cpu_least:.0}-{cpu_most:.0}], ready after {wall:.0} ms [{least:.0}-{most:.0}]"
        );
    }
    Ok(())
}

fn fill(binary: &Path, data: &Path, partitions: u32, records: usize) -> Result<()> {
    let (mut broker, _) = launch(binary, data)?;
    let run = |arguments: &[&str], stdin: Stdio| -> Result<()> {
        let mut command = Command::new(binary);
        command.env("RUSTMQ_DATA_DIR", data).args(arguments).stdin(stdin).stdout(Stdio::null());
        let output = command.stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(())
    };
    let count = partitions.to_string();
    run(&["topic", "create", "filled", "--partitions", &count], Stdio::null())?;
    let lines = data.with_extension("lines");
    let mut file = File::create(&lines)?;
    let line = format!("{}\n", "r".repeat(1023));
    for _ in 0..records {
        file.write_all(line.as_bytes())?;
    }
    run(&["produce", "filled"], File::open(&lines)?.into())?;
    fs::remove_file(&lines)?;
    // The newest segment is sealed by none of this: it is what a start reads whole.
    std::thread::sleep(Duration::from_millis(500));
    broker.kill()?;
    broker.wait()?;
    Ok(())
}

fn start(binary: &Path, data: &Path) -> Result<Cost> {
    let (mut broker, wall) = launch(binary, data)?;
    let process = broker.id();
    let cpu = Duration::from_secs_f64(meter::processes_s(&[process])?);
    let cost = Cost { read_bytes: disk::read_bytes(process)?, cpu, wall };
    broker.kill()?;
    broker.wait()?;
    Ok(cost)
}

/// Starts a broker of one shard and waits until it serves.
fn launch(binary: &Path, data: &Path) -> Result<(Child, Duration)> {
    let _ = fs::remove_file(data.join("admin-address"));
    let mut command = Command::new(binary);
    command.args(["dev", "--port", "0", "--admin-port", "0", "--shards", "1", "--data-dir"]);
    command.arg(data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn()?;
    loop {
        if let Ok(address) = fs::read_to_string(data.join("admin-address"))
            && TcpStream::connect(address.trim()).is_ok()
        {
            return Ok((child, begun.elapsed()));
        }
        if let Some(status) = child.try_wait()? {
            bail!("the broker ended: {status}");
        }
        ensure!(begun.elapsed() < START_MAX, "the broker does not serve");
        std::thread::sleep(Duration::from_millis(2));
    }
}
