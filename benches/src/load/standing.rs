//! What it costs that something is there: partitions, connections, a scrape, a shard at rest; and a
//! start. Each question has brokers of its own, started when it is first asked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustmq_config::Poll;
use rustmq_protocol::{ListOffsets, OffsetAt, RequestKind};
use rustmq_sys::cpu;

use super::broker::Broker;
use super::crowd::Crowd;
use super::drive::{Period, Tally};
use super::hop;
use super::machine::Cores;
use super::meter;
use super::partitions::rotate;
use super::producers::{WAL_SETS, client_endpoint, fill, on_client, produce, topic_of};
use super::sample::{Figure, Sample};
use super::shape::{Shape, shape};
use super::starts::{self, Stopped};
use super::wire::{self, Link, ProduceFrame, Target};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Records to so many partitions in turn, of a topic that has so many.
    Partitions { used: u32, there: u32 },
    /// Records by eight clients, while so many others are connected and silent.
    Connections(usize),
    /// The same with as many as the command line says.
    Silent,
    /// Memory of a broker with two shards on which nothing has happened.
    Memory,
    /// Memory of each of 10,000 partitions without records.
    PartitionMemory,
    /// Memory of each of as many silent connections as the command line says.
    ConnectionMemory,
    /// Processor time of a shard without requests, with so many silent connections.
    Idle { poll: Poll, connections: usize },
    /// `rustmq --version`: the least that a start takes.
    Version,
    /// From the start to the first acknowledgement; with many topics and bytes, or with few.
    Start { is_large: bool },
    /// There and back between two cores, without a broker.
    Hop,
    /// Requests that reach the wrong one of two shards and need no disk.
    Forward,
    /// Scrapes one after another.
    Scrape,
}

/// The flags of a run that matter here.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Silent connections whose memory is measured.
    pub connections: usize,
    /// Bytes in the log of the large start.
    pub start_bytes: u64,
}

/// Partitions of a topic whose memory is measured, and connections that a crowd has at most.
const MANY: usize = 10_000;

/// Topics of the large start.
const START_TOPICS: usize = 1_000;

/// The shortest look at a shard at rest.
const IDLE_MIN: Duration = Duration::from_secs(10);

/// What a broker does after its start is over by then.
const SETTLED: Duration = Duration::from_secs(2);

/// Between two scrapes: what one costs is told from what the shard does anyway.
const SCRAPE_PAUSE: Duration = Duration::from_millis(20);

/// Requests in flight of the producer to many partitions.
const WINDOW: usize = 8;

/// A broker with a topic.
#[derive(Debug)]
struct Host {
    broker: Broker,
    targets: Vec<Target>,
    /// What a producer to each partition sends next.
    frames: Vec<ProduceFrame>,
}

/// Everything that was started so far.
#[derive(Debug)]
pub(super) struct Standing {
    binary: PathBuf,
    dir: PathBuf,
    cores: Cores,
    poll: Poll,
    sets: Vec<String>,
    sizes: Sizes,
    /// By partitions of the topic.
    hosts: BTreeMap<u32, Host>,
    gathering: Option<(Crowd, Host)>,
    stopped: BTreeMap<bool, Stopped>,
    started: usize,
}

impl Standing {
    pub(super) fn new(
        binary: &Path,
        dir: &Path,
        cores: Cores,
        poll: Poll,
        sets: &[String],
        sizes: Sizes,
    ) -> Standing {
        Standing {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            cores,
            poll,
            sets: sets.to_vec(),
            sizes,
            hosts: BTreeMap::new(),
            gathering: None,
            stopped: BTreeMap::new(),
            started: 0,
        }
    }

    /// The brokers that go on between two questions.
    pub(super) fn processes(&self) -> Vec<u32> {
        let gathering = self.gathering.iter().map(|(_, host)| host);
        self.hosts.values().chain(gathering).map(|host| host.broker.process()).collect()
    }

    /// Lets those go who would take time from another question.
    pub(super) fn disperse(&mut self) {
        self.gathering = None;
    }

    /// Starts what goes on between two questions, and lets those go who would disturb this one.
    pub(super) fn prepare(&mut self, question: Question) -> Result<()> {
        match question {
            Question::Partitions { there, .. } if !self.hosts.contains_key(&there) => {
                self.disperse();
                let host = self.host(there, &[])?;
                self.hosts.insert(there, host);
            }
            Question::Start { is_large } if !self.stopped.contains_key(&is_large) => {
                self.disperse();
                let stopped = self.stopped(is_large)?;
                self.stopped.insert(is_large, stopped);
            }
            Question::Silent => self.prepare(Question::Connections(self.sizes.connections))?,
            Question::Connections(count) => {
                if self.gathering.is_none() {
                    let host = self.host(8, &[&self.connections_max()])?;
                    let certs = host.broker.certs();
                    let crowd = Crowd::new(host.broker.address(), &certs, self.cores.client)?;
                    self.gathering = Some((crowd, host));
                }
                let mut gathering = self.gathering.iter();
                gathering.try_for_each(|(crowd, _)| crowd.hold(count))?;
            }
            _ => self.disperse(),
        }
        Ok(())
    }

    /// Asks once. [`Self::prepare`] comes before.
    pub(super) fn ask(&mut self, question: Question, period: Period) -> Result<Sample> {
        match question {
            Question::Partitions { used, there } => self.partitions(used, there, period),
            Question::Connections(count) => self.connections(count, period),
            Question::Silent => self.connections(self.sizes.connections, period),
            Question::Memory => self.memory(),
            Question::PartitionMemory => self.partition_memory(),
            Question::ConnectionMemory => self.connection_memory(),
            Question::Idle { poll, connections } => self.idle(poll, connections, period),
            Question::Version => {
                Ok(latencies(&starts::versions(&self.binary, period.measured / 4)?))
            }
            Question::Start { is_large } => self.start(is_large, period),
            Question::Hop => {
                let ends = self.two_cores()?;
                Ok(latencies(&hop::ping_pong(ends, self.two_shards_sleep(), period)?))
            }
            Question::Forward => self.forward(period),
            Question::Scrape => self.scrape(),
        }
    }

    /// Room for every crowd that there may be, and for those who work.
    fn connections_max(&self) -> String {
        format!("network.connections_max={}", self.sizes.connections.max(MANY) + 100)
    }

    /// A broker for one question, or for the rest of the run.
    fn start_broker(&mut self, poll: Poll, more: &[&str]) -> Result<Broker> {
        self.started += 1;
        let dir = self.dir.join(format!("standing-{}", self.started));
        let poll = format!("runtime.poll={}", poll.word());
        let mut all: Vec<&str> = WAL_SETS.to_vec();
        all.extend([poll.as_str()]);
        all.extend(self.sets.iter().map(String::as_str));
        all.extend(more);
        Broker::start(&self.binary, &dir, &all)
    }

    /// A broker whose WAL recycles, with a topic. It sleeps when it has nothing to do, whatever others
    /// do: time spent looking for news would hide what a record takes.
    fn host(&mut self, partitions: u32, more: &[&str]) -> Result<Host> {
        let broker = self.start_broker(Poll::Sleep, more)?;
        let targets = topic_of(&broker, partitions, self.cores)?;
        fill(&broker, &targets, self.cores)?;
        let stamp = on_client(self.cores, || async {
            let connection =
                wire::connect(&client_endpoint(&broker.certs())?, broker.address()).await?;
            Link::to_broker(&connection).await?.init_producer().await
        })?;
        let frame = |target| ProduceFrame::new(target, stamp, 1, 1 << 10);
        let frames = targets.iter().map(frame).collect();
        Ok(Host { broker, targets, frames })
    }

    fn partitions(&mut self, used: u32, there: u32, period: Period) -> Result<Sample> {
        let host = self.hosts.get_mut(&there).context("not prepared")?;
        let frames = host.frames.get_mut(..used as usize).context("so many partitions")?;
        let (broker, address) = (&host.broker, host.targets[0].address);
        let before = meter::process_time(broker.process())?;
        let tally = on_client(self.cores, || async {
            let connection = wire::connect(&client_endpoint(&broker.certs())?, address).await?;
            rotate(Link::to_broker(&connection).await?, frames, WINDOW, period).await
        })?;
        let took = meter::process_time(broker.process())? - before;
        Ok(worked(&tally, Shape { producers: 1, window: WINDOW, ..ONE_KIB }, took))
    }

    fn connections(&mut self, count: usize, period: Period) -> Result<Sample> {
        let (crowd, host) = self.gathering.as_ref().context("not prepared")?;
        let before = meter::process_time(host.broker.process())?;
        let tally = produce(&host.broker, &host.targets, ONE_KIB, period, self.cores)?;
        let took = meter::process_time(host.broker.process())? - before;
        crowd.hold(count).context("the crowd did not last")?;
        Ok(worked(&tally, ONE_KIB, took))
    }

    fn memory(&mut self) -> Result<Sample> {
        let broker = self.start_broker(self.poll, &["broker.shards=2"])?;
        std::thread::sleep(SETTLED);
        let mut sample = Sample::default();
        sample.set(Figure::MemoryKib, meter::resident_bytes(broker.process())? as f64 / 1024.0);
        Ok(sample)
    }

    fn partition_memory(&mut self) -> Result<Sample> {
        let broker = self.start_broker(self.poll, &[])?;
        topic_of(&broker, 1, self.cores)?;
        let before = meter::resident_bytes(broker.process())?;
        on_client(self.cores, || async {
            let connection =
                wire::connect(&client_endpoint(&broker.certs())?, broker.address()).await?;
            let mut link = Link::to_broker(&connection).await?;
            link.create_topic("many", MANY as u32).await
        })?;
        each(&broker, before, MANY)
    }

    fn connection_memory(&mut self) -> Result<Sample> {
        let count = self.sizes.connections;
        let broker = self.start_broker(self.poll, &[&self.connections_max()])?;
        let crowd = Crowd::new(broker.address(), &broker.certs(), self.cores.client)?;
        // What the first of them brings about is not theirs.
        crowd.hold(10)?;
        let before = meter::resident_bytes(broker.process())?;
        crowd.hold(count)?;
        std::thread::sleep(SETTLED);
        let open = broker.metric("rustmq_connections")?;
        ensure!(open == count as f64, "{open} of {count} connections are open");
        each(&broker, before, count - 10)
    }

    fn idle(&mut self, poll: Poll, connections: usize, period: Period) -> Result<Sample> {
        let broker = self.start_broker(poll, &[&self.connections_max()])?;
        let crowd = Crowd::new(broker.address(), &broker.certs(), self.cores.client)?;
        crowd.hold(connections)?;
        std::thread::sleep(SETTLED);
        let time = period.measured.max(IDLE_MIN);
        let before = meter::threads_time(broker.process(), SHARD_THREADS)?;
        std::thread::sleep(time);
        let took = meter::threads_time(broker.process(), SHARD_THREADS)? - before;
        crowd.hold(connections).context("the crowd did not last")?;
        let mut sample = Sample::default();
        sample.set(Figure::ShardCpuPercent, took.as_secs_f64() / time.as_secs_f64() * 100.0);
        Ok(sample)
    }

    fn stopped(&self, is_large: bool) -> Result<Stopped> {
        let (topics, bytes) = match is_large {
            true => (START_TOPICS, self.sizes.start_bytes),
            false => (1, 0),
        };
        let dir = self.dir.join(if is_large { "start-large" } else { "start" });
        // What was written has to be there at the start: nothing is recycled before twice as much.
        let capacity = format!("wal.capacity_bytes={}", (2 * bytes).max(1 << 30));
        let poll = format!("runtime.poll={}", self.poll.word());
        let mut all = vec![capacity.as_str(), poll.as_str()];
        all.extend(self.sets.iter().map(String::as_str));
        Stopped::prepare(&self.binary, &dir, &all, topics, bytes, self.cores)
    }

    fn start(&self, is_large: bool, period: Period) -> Result<Sample> {
        let stopped = self.stopped.get(&is_large).context("not prepared")?;
        Ok(latencies(&stopped.starts(self.cores, period.measured)?))
    }

    fn two_cores(&self) -> Result<[usize; 2]> {
        match (self.cores.client, self.cores.server) {
            (Some(one), Some(two)) => Ok([one, two]),
            _ => Err(anyhow::anyhow!("a hop needs two cores")),
        }
    }

    /// Two shards leave no core to the control thread of a host with two.
    fn two_shards_sleep(&self) -> bool {
        self.poll == Poll::Sleep || cpu::available_cores().len() <= 2
    }

    /// Asks the shard of one partition for the end of another's, one request at a time. The answer needs
    /// no disk: what the broker's histogram has is the way there and back.
    fn forward(&mut self, period: Period) -> Result<Sample> {
        let poll = if self.two_shards_sleep() { Poll::Sleep } else { self.poll };
        let broker = self.start_broker(poll, &["broker.shards=2"])?;
        let targets = topic_of(&broker, 8, self.cores)?;
        let there = *targets.first().context("the topic has partitions")?;
        let elsewhere = targets.iter().find(|target| target.address != there.address);
        let elsewhere = *elsewhere.context("both shards have partitions")?;
        let tally = on_client(self.cores, || async {
            let connection =
                wire::connect(&client_endpoint(&broker.certs())?, elsewhere.address).await?;
            let mut link = Link::to_broker(&connection).await?;
            let head = &there.head;
            let ask = ListOffsets {
                topic: head.topic,
                partition: head.partition,
                leader_epoch: head.leader_epoch,
                at: OffsetAt::Latest,
            };
            let mut tally = Tally::new();
            let begun = std::time::Instant::now();
            while begun.elapsed() < period.measured {
                let sent = std::time::Instant::now();
                link.call(RequestKind::ListOffsets, |out| ask.encode(out)).await?;
                tally.record(sent.elapsed());
            }
            Ok(tally)
        })?;
        let stage = broker.stage("forward")?;
        // The topic's creation goes over, too, where it reached the shard without the catalogue.
        let expected = tally.answers..=tally.answers + 1;
        ensure!(expected.contains(&stage.len()), "{} of {} went over", stage.len(), tally.answers);
        let mut sample = Sample::default();
        sample.set(Figure::P50Us, stage.value_at_quantile(0.5) as f64 / 1e3);
        sample.set(Figure::P99Us, stage.value_at_quantile(0.99) as f64 / 1e3);
        Ok(sample)
    }

    /// What a scrape costs the shard, and how long it keeps it at a time.
    fn scrape(&mut self) -> Result<Sample> {
        let broker = self.start_broker(self.poll, &[])?;
        let targets = topic_of(&broker, 8, self.cores)?;
        let period = Period { warm_up: Duration::ZERO, measured: Duration::from_secs(1) };
        produce(&broker, &targets, ONE_KIB, period, self.cores)?;
        std::thread::sleep(SETTLED);
        let took = |scrapes: u32| {
            let before = meter::threads_time(broker.process(), SHARD_THREADS)?;
            for _ in 0..SCRAPES {
                if 0 < scrapes {
                    broker.scrape()?;
                }
                std::thread::sleep(SCRAPE_PAUSE);
            }
            anyhow::Ok(meter::threads_time(broker.process(), SHARD_THREADS)? - before)
        };
        let (rest, scraped) = (took(0)?, took(SCRAPES)?);
        let mut sample = Sample::default();
        let each = scraped.saturating_sub(rest) / SCRAPES;
        sample.set(Figure::ShardCpuUs, each.as_secs_f64() * 1e6);
        let slices = broker.stage("scrape")?;
        sample.set(Figure::P50Us, slices.value_at_quantile(0.5) as f64 / 1e3);
        sample.set(Figure::P99Us, slices.value_at_quantile(0.99) as f64 / 1e3);
        sample.set(Figure::MaxUs, slices.max() as f64 / 1e3);
        Ok(sample)
    }
}

/// The threads of shards, by the beginning of their names.
const SHARD_THREADS: &str = "shard-";

/// Scrapes of one question.
const SCRAPES: u32 = 200;

/// The load beside which something is there: eight producers of records of 1 KiB.
const ONE_KIB: Shape = shape(8, 1, 1 << 10, 1);

/// What the load came to, and the broker's time for each record.
fn worked(tally: &Tally, shape: Shape, took: Duration) -> Sample {
    let mut sample = Sample::of(tally, shape);
    sample.set(Figure::BrokerCpuUs, took.as_secs_f64() * 1e6 / tally.answers.max(1) as f64);
    sample
}

/// What each of `count` takes that have come since the broker had `before` bytes.
fn each(broker: &Broker, before: u64, count: usize) -> Result<Sample> {
    let after = meter::resident_bytes(broker.process())?;
    let mut sample = Sample::default();
    let kib = after.saturating_sub(before) as f64 / 1024.0;
    sample.set(Figure::MemoryKib, kib / count as f64);
    Ok(sample)
}

/// Only how long: rates would mean nothing.
fn latencies(tally: &Tally) -> Sample {
    let all = Sample::of(tally, ONE_KIB);
    let mut sample = Sample::default();
    for figure in [Figure::P50Us, Figure::P99Us, Figure::MaxUs] {
        if let Some(value) = all.get(figure) {
            sample.set(figure, value);
        }
    }
    sample
}
