//! `instructions`: how many instructions each step of the hot path takes, by callgrind, held against
//! the baseline in `benches/instructions.txt`. Times differ from host to host and hour to hour;
//! instructions do not. See `benches/README.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rustmq_benches::fixtures::{
    Blocks, PARTITION, VALUE_BYTES, batch, push_records, segment_header, segment_image, value,
};
use rustmq_engine::partition::PartitionState;
use rustmq_engine::{Append, Partition};
use rustmq_protocol::limits::{BATCH_BYTES_MAX, RECORD_BYTES_MAX};
use rustmq_protocol::{
    BatchBuilder, BatchHeader, CorrelationId, FrameHeader, LeaderEpoch, ProducerEpoch, ProducerId,
    ProducerStamp, RequestKind, Sequence, TimestampMs, records, verify,
};
use rustmq_sys::channel::channel;
use rustmq_wal::{BlockSequence, Scan, decode_block};

/// A count may differ by this much, in parts of the baseline, before somebody has to look.
const TOLERANCE: f64 = 0.05;

/// Times that a step is repeated in a run, so that what happens once does not count.
const REPEATS: usize = 100;

/// Instructions of the steps of the hot path, held against a baseline
#[derive(Parser, Debug)]
struct Args {
    /// Write the counts into the baseline, instead of holding them against it
    #[arg(long)]
    bless: bool,
    /// The file with the baseline
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt"))]
    baseline: PathBuf,
    /// Run one step; this is how callgrind is given it
    #[arg(long, hide = true)]
    step: Option<String>,
}

/// A step: its name, and what prepares and runs it.
type Step = (&'static str, fn());

const STEPS: [Step; 11] = [
    ("frame: decode a header", frame_decode),
    ("batch: build 10 x 1 KiB", batch_build),
    ("batch: verify 1 KiB", || batch_verify(1)),
    ("batch: verify 10 x 1 KiB", || batch_verify(10)),
    ("batch: read 10 records", batch_read),
    ("engine: append a batch", engine_append),
    ("wal: build a block of 1", || block_build(1)),
    ("wal: build a block of 64", || block_build(64)),
    ("wal: decode a block of 64", block_decode),
    ("wal: scan a segment of 1 MiB", segment_scan),
    ("channel: push and pop", channel_pass),
];

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(name) = args.step {
        let (_, step) = STEPS.iter().find(|step| step.0 == name).context("no such step")?;
        step();
        return Ok(ExitCode::SUCCESS);
    }
    let counts: BTreeMap<&str, u64> =
        STEPS.iter().map(|(name, _)| Ok((*name, count(name)?))).collect::<Result<_>>()?;
    if args.bless {
        fs::write(&args.baseline, page(&counts))?;
        return Ok(ExitCode::SUCCESS);
    }
    let baseline = read(&args.baseline)?;
    let mut differ = 0;
    for (name, _) in STEPS {
        let (now, before) = (counts[name], baseline.get(name).copied());
        let ratio = before.map(|before| now as f64 / before as f64);
        let holds = ratio.is_some_and(|ratio| (ratio - 1.0).abs() <= TOLERANCE);
        differ += u32::from(!holds);
        let before = before.map_or_else(|| "none".to_owned(), |before| before.to_string());
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let verdict = if holds { "" } else { "DIFFERS" };
        println!("{name:<30} {now:>9} baseline {before:>9} {ratio:>6} {verdict}");
    }
    if 0 < differ {
        let path = args.baseline.display();
        println!(
            "{differ} differ by more than {TOLERANCE}: if that is as it should be, edit {path}"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Instructions of one repeat of a step.
fn count(name: &str) -> Result<u64> {
    let here = env::current_exe()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*instructions*measured*"])
        .arg(here)
        .args(["--step", name])
        .output()
        .context("running valgrind: it has to be installed")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {said}");
    let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    let total: u64 = collected.context("callgrind says nothing")?.trim().parse()?;
    if total == 0 {
        bail!("{name}: callgrind has seen none of it; said:\n{said}");
    }
    Ok(total / REPEATS as u64)
}

fn page(counts: &BTreeMap<&str, u64>) -> String {
    let mut text = String::from(
        "# Instructions of one step each, by callgrind: `cargo run --release -p rustmq-benches --bin \
         instructions`.\n# Whoever changes one by more than 5 % edits it here and says why.\n",
    );
    for (name, _) in STEPS {
        let _ = writeln!(text, "{:>9} {name}", counts[name]);
    }
    text
}

fn read(path: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parse = |line: &str| {
        let (count, name) = line.trim().split_once(' ').context("a count and a name")?;
        Ok((name.to_owned(), count.parse()?))
    };
    lines.map(parse).collect()
}

/// What callgrind counts: everything below here.
#[inline(never)]
fn measured(mut step: impl FnMut()) {
    for _ in 0..REPEATS {
        step();
    }
}

fn frame_decode() {
    let header = FrameHeader::request(RequestKind::Produce, CorrelationId(7)).with_body_bytes(1100);
    let bytes = header.encode();
    measured(|| {
        black_box(FrameHeader::decode(black_box(&bytes)).expect("a good header"));
    });
}

fn batch_build() {
    let value = value(VALUE_BYTES);
    let mut builder = BatchBuilder::new(BATCH_BYTES_MAX.min(64 << 10));
    measured(|| {
        push_records(&mut builder, 10, black_box(&value));
        black_box(builder.finish(ProducerStamp::NONE));
    });
}

fn batch_verify(record_count: usize) {
    let sealed = batch(record_count, VALUE_BYTES);
    measured(|| {
        black_box(verify(black_box(&sealed), RECORD_BYTES_MAX).expect("a good batch"));
    });
}

fn batch_read() {
    let sealed = batch(10, VALUE_BYTES);
    measured(|| {
        let walk = records(black_box(&sealed)).expect("a good batch");
        let bytes = walk.map(|record| record.expect("a good record").value.map_or(0, <[u8]>::len));
        black_box(bytes.sum::<usize>());
    });
}

fn engine_append() {
    const EPOCH: LeaderEpoch = LeaderEpoch(1);
    const PRODUCERS: u64 = 100;
    let sealed = batch(1, VALUE_BYTES);
    let header = BatchHeader::decode(&sealed).expect("made by the batch builder");
    let mut partition = Partition::new(PARTITION, EPOCH, PartitionState::default(), 1000);
    let mut number = 0;
    measured(|| {
        let header = BatchHeader {
            producer_id: ProducerId(1 + number % PRODUCERS),
            producer_epoch: ProducerEpoch(0),
            base_sequence: Sequence((number / PRODUCERS) as u32),
            ..header
        };
        number += 1;
        let now = TimestampMs(1_700_000_000_000);
        let appended = partition.append(now, EPOCH, black_box(&header)).expect("it comes next");
        assert!(matches!(appended, Append::New { .. }), "each batch is new");
        partition.handle_flushed(partition.log_end_offset());
    });
}

fn block_build(entries: usize) {
    let segment = segment_header(64 << 20);
    let batch = batch(1, VALUE_BYTES);
    let mut blocks = Blocks::new(&segment);
    measured(|| {
        black_box(blocks.build(black_box(&batch), entries));
    });
}

fn block_decode() {
    let segment = segment_header(64 << 20);
    let mut blocks = Blocks::new(&segment);
    let block = blocks.build(&batch(1, VALUE_BYTES), 64);
    let (bytes, expect) = (blocks.bytes(&block), segment.chain_start());
    measured(|| {
        let view = decode_block(black_box(bytes), &expect).expect("a good block");
        black_box(view.entries().map(|entry| entry.payload.len()).sum::<usize>());
    });
}

fn segment_scan() {
    let segment = segment_header(1 << 20);
    let (image, _) = segment_image(&segment, 8);
    measured(|| {
        let mut scan = Scan::new(&segment, BlockSequence::FIRST);
        while let Some(read) = scan.next_read() {
            let bytes = &image[read.start as usize..read.end as usize];
            scan.feed(read.start, black_box(bytes), |_, _| {}).expect("nothing is damaged");
        }
        black_box(scan.finish());
    });
}

fn channel_pass() {
    let (mut sender, mut receiver) = channel::<[u64; 3]>(1024);
    measured(|| {
        sender.try_push(black_box([1, 2, 3])).expect("the ring is empty");
        black_box(receiver.try_pop());
    });
}
