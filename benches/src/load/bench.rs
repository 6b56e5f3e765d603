//! Asks the cases: holds the brokers and the servers beside them, and runs one case at a time.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rustmq_client::PollMode;
use rustmq_config::Poll;
use rustmq_protocol::ProducerStamp;
use rustmq_sys::runtime::{FlushPlan, Polling, RuntimeConfig};

use super::broker::Broker;
use super::cases::{
    CLOSED, Case, HUNDRED_COLD, HUNDRED_COLD_BYTES, Kind, ONE_COLD, ONE_COLD_BYTES, THROUGH,
};
use super::catch_up::{self, Delivered};
use super::cold::Cold;
use super::drive::{Period, Producer, Tally};
use super::machine::Cores;
use super::meter;
use super::mtu::{Mtu, Sender};
use super::producers::{
    IDEMPOTENT_WINDOW, TOPIC, WAL_SETS, bare_producer, client_endpoint, client_runtime,
    closed_loop, create_topic, endpoint_for, ends_of, fill, init_producers, on_client, producers,
    senders,
};
use super::sample::{Figure, Sample};
use super::sdk::Clients;
use super::shape::Shape;
use super::standing::{Sizes, Standing};
use super::tail::{self, By};
use super::wire::{self, Link, NO_BROKER, ProduceFrame, Target};
use super::{bare, client, device, disk, drive, echo, floor, sdk, transfer};

/// Everything that the cases need, running.
#[derive(Debug)]
pub struct Bench {
    cores: Cores,
    device: PathBuf,
    quinn: SocketAddr,
    floor: SocketAddr,
    polling: Polling,
    ends: Ends,
    /// Started for the first case that needs them.
    large_ends: Option<Ends>,
    slow_broker: Broker,
    slow_targets: Vec<Target>,
    /// Requests per second of the open loop, if it was given.
    rate: Option<f64>,
    standing: Standing,
    /// Requests per second that the last closed loop of eight producers reached.
    closed_loop_rate: Option<f64>,
    binary: PathBuf,
    dir: PathBuf,
    sets: Vec<String>,
    /// Started for the first case that needs them.
    one_cold: Option<Cold>,
    hundred_cold: Option<Cold>,
    /// The next partition of a hundred that is read.
    next_partition: usize,
}

/// A broker, and the servers beside it that are nothing but QUIC, with datagrams of one profile.
#[derive(Debug)]
struct Ends {
    broker: Broker,
    targets: Vec<Target>,
    bare: SocketAddr,
    transfer: SocketAddr,
}

impl Ends {
    fn start(broker: Broker, cores: Cores, runtime: RuntimeConfig, mtu: Mtu) -> Result<Ends> {
        let bare = bare::start(&broker.certs(), runtime.clone(), mtu)?;
        let transfer = transfer::start(&broker.certs(), runtime, ONE_COLD.value_bytes, mtu)?;
        let targets = create_topic(&broker, cores)?;
        fill(&broker, &targets, cores)?;
        Ok(Ends { broker, targets, bare, transfer })
    }
}

/// What makes the flush of the second broker slower.
const SLOW_SETS: [&str; 2] = ["test.enabled=true", "test.flush_delay_us=1000"];

impl Bench {
    /// Starts the brokers and the echo servers and brings the WAL to where it recycles. `rate` is that
    /// of the open loop; without it the open loop takes half of the closed loop's.
    pub fn start(
        binary: &Path,
        dir: &Path,
        cores: Cores,
        poll: Poll,
        sets: &[String],
        rate: Option<f64>,
        sizes: Sizes,
    ) -> Result<Bench> {
        let device = dir.join("device");
        device::prepare(&device)?;
        let poll_set = format!("runtime.poll={}", poll.word());
        let mut all: Vec<&str> = WAL_SETS.to_vec();
        all.push(&poll_set);
        all.extend(sets.iter().map(String::as_str));
        let broker = Broker::start(binary, &dir.join("broker"), &all)?;
        all.extend(SLOW_SETS);
        let slow_broker = Broker::start(binary, &dir.join("slow_broker"), &all)?;
        let polling = match poll {
            Poll::Adaptive => Polling::Adaptive,
            Poll::Sleep => Polling::Sleep,
            Poll::Busy => Polling::Busy,
        };
        let runtime = device::runtime_config(cores.server, polling, THROUGH);
        let quinn = echo::start(&broker.certs(), cores.server)?;
        let floor_file = dir.join("floor");
        device::prepare(&floor_file)?;
        let floor = floor::start(&floor_file, runtime.clone())?;
        let ends = Ends::start(broker, cores, runtime, Mtu::Internet)?;
        let slow_targets = create_topic(&slow_broker, cores)?;
        let closed_loop_rate = None;
        Ok(Bench {
            cores,
            device,
            quinn,
            floor,
            polling,
            ends,
            large_ends: None,
            slow_broker,
            slow_targets,
            rate,
            standing: Standing::new(binary, dir, cores, poll, sets, sizes),
            closed_loop_rate,
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            sets: [std::slice::from_ref(&poll_set), sets].concat(),
            one_cold: None,
            hundred_cold: None,
            next_partition: 0,
        })
    }

    /// Whom a case with such datagrams asks.
    fn ends(&self, mtu: Mtu) -> Result<&Ends> {
        match mtu {
            Mtu::Internet => Ok(&self.ends),
            Mtu::Loopback => self.large_ends.as_ref().context("it was prepared"),
        }
    }

    /// The processes whose work is not foreign.
    pub fn processes(&self) -> Vec<u32> {
        let cold = self.one_cold.iter().chain(&self.hundred_cold).map(Cold::broker);
        let ends = std::iter::once(&self.ends).chain(&self.large_ends).map(|ends| &ends.broker);
        let brokers = ends.chain([&self.slow_broker]).chain(cold);
        brokers.map(Broker::process).chain(self.standing.processes()).collect()
    }

    /// Starts what the case needs and lets go of what would disturb it, before others are watched.
    pub fn prepare(&mut self, case: Case) -> Result<()> {
        match case.kind {
            Kind::Standing(question) => return self.standing.prepare(question),
            _ => self.standing.disperse(),
        }
        if case.shape.mtu == Mtu::Loopback && self.large_ends.is_none() {
            self.large_ends = Some(self.start_large()?);
        }
        match case.kind {
            Kind::Sequential | Kind::CatchUp => self.prepare_cold(case),
            _ => Ok(()),
        }
    }

    fn start_large(&self) -> Result<Ends> {
        let mut all: Vec<&str> = WAL_SETS.to_vec();
        all.extend(self.sets.iter().map(String::as_str));
        all.push("network.mtu_profile=loopback");
        let broker = Broker::start(&self.binary, &self.dir.join("large_broker"), &all)?;
        let runtime = device::runtime_config(self.cores.server, self.polling, THROUGH);
        Ends::start(broker, self.cores, runtime, Mtu::Loopback)
    }

    fn prepare_cold(&mut self, case: Case) -> Result<()> {
        let Case { kind, shape, .. } = case;
        let (cold, name, bytes) = match shape == HUNDRED_COLD {
            true => (&mut self.hundred_cold, "hundred_cold", HUNDRED_COLD_BYTES),
            false => (&mut self.one_cold, "one_cold", ONE_COLD_BYTES),
        };
        let cold = match cold {
            Some(cold) => cold,
            None => {
                let dir = self.dir.join(name);
                let started =
                    Cold::start(&self.binary, &dir, &self.sets, self.cores, shape, bytes)?;
                cold.insert(started)
            }
        };
        if kind == Kind::CatchUp {
            cold.restart()?;
            self.next_partition = (self.next_partition + 1) % shape.producers;
        }
        Ok(())
    }

    /// Runs one case once, which [`Self::prepare`] came before.
    pub fn run(&mut self, case: Case, period: Period) -> Result<Sample> {
        let Case { kind, shape, .. } = case;
        match kind {
            Kind::Standing(question) => self.standing.ask(question, period),
            Kind::Beside => self.beside(shape, period),
            Kind::BareBeside => self.bare_beside(shape, period),
            Kind::Ring(plan) => self.ring(plan, false, shape, period),
            Kind::BusyRing(plan) => self.ring(plan, true, shape, period),
            Kind::Blocking => {
                let (core, bytes) = (self.cores.server, shape.value_bytes);
                let tally = device::blocking(&self.device, core, bytes, period.measured)?;
                Ok(Sample::of(&tally, shape))
            }
            Kind::Tail(by) => {
                let ends = self.ends(shape.mtu)?;
                let target = *ends.targets.first().context("the topic has a partition")?;
                let sample = self.consume(Some(&ends.broker), target, shape, by, period)?;
                check_mtu(&ends.broker, shape)?;
                Ok(sample)
            }
            Kind::BareTail => {
                let target = Target::echo(self.ends(shape.mtu)?.transfer);
                self.consume(None, target, shape, By::Subscription, period)
            }
            Kind::Transfer => {
                let target = Target::echo(self.ends.transfer);
                let delivered = self.catch_up(None, target, transfer::ENDLESS, period)?;
                Ok(Sample::of_delivered(&delivered, shape))
            }
            Kind::Sequential => {
                let cold = self.one_cold.as_ref().context("it was prepared")?;
                let (bytes, elapsed) =
                    device::sequential(&cold.segments()?, self.cores.server, period.measured)?;
                let mut sample = Sample::default();
                sample.set(Figure::MbPerS, bytes as f64 / 1e6 / elapsed.as_secs_f64());
                Ok(sample)
            }
            Kind::CatchUp => self.catch_up_cold(shape, period),
            Kind::EndToEnd => self.end_to_end(shape, period),
            Kind::Bare => self.echo(self.ends(shape.mtu)?.bare, shape, period),
            Kind::Quinn => self.echo(self.quinn, shape, period),
            Kind::Sdk(clients) => self.sdk(clients, shape, period),
            Kind::SdkMany(batching) => {
                let (sample, _) = watched(&self.ends.broker, shape, || {
                    let config = sdk::config(&self.ends.broker, PollMode::Sleep);
                    on_client(self.cores, || sdk::many(config, TOPIC, batching, shape, period))
                })?;
                Ok(sample)
            }
            Kind::SdkTail => self.sdk_tail(shape, period),
            Kind::QuinnClient => self.quinn_client(&self.ends.targets, true, shape, period),
            Kind::BareQuinnClient => {
                let targets = vec![Target::echo(self.ends.bare); shape.producers];
                self.quinn_client(&targets, false, shape, period)
            }
            Kind::Floor => {
                let tally = floor::drive(self.floor, self.cores.client, shape.window, period)?;
                Ok(Sample::of(&tally, shape))
            }
            Kind::Slow => self.produce(&self.slow_broker, &self.slow_targets, shape, None, period),
            Kind::Open => {
                let rate = Some(self.open_loop_rate()?);
                self.produce(&self.ends.broker, &self.ends.targets, shape, rate, period)
            }
            Kind::Produce => {
                let ends = self.ends(shape.mtu)?;
                let sample = self.produce(&ends.broker, &ends.targets, shape, None, period)?;
                check_mtu(&ends.broker, shape)?;
                if case.name == CLOSED {
                    self.closed_loop_rate = sample.get(Figure::RequestsPerS);
                }
                Ok(sample)
            }
        }
    }

    fn ring(&self, plan: FlushPlan, busy: bool, shape: Shape, period: Period) -> Result<Sample> {
        let runtime = device::runtime_config(self.cores.server, self.polling, plan);
        let bytes = shape.value_bytes;
        let tally = device::ring(&self.device, runtime, busy, bytes, period.measured)?;
        Ok(Sample::of(&tally, shape))
    }

    fn echo(&self, address: SocketAddr, shape: Shape, period: Period) -> Result<Sample> {
        self.closed_loop(vec![echo_producer(address, shape); shape.producers], shape, period)
    }

    /// A producer of the server that is nothing but QUIC beside one of batches of 1 MiB, whose answers
    /// do not count.
    fn bare_beside(&self, shape: Shape, period: Period) -> Result<Sample> {
        let address = self.ends.bare;
        let large = client::Producer { counts: false, ..echo_producer(address, of_1mib(shape)) };
        self.closed_loop(vec![echo_producer(address, shape), large], shape, period)
    }

    /// The same of the broker.
    fn beside(&self, shape: Shape, period: Period) -> Result<Sample> {
        let Ends { broker, targets, .. } = &self.ends;
        let (last, others) = targets.split_last().context("the topic has partitions")?;
        let mut producers = senders(broker, others, shape, self.cores)?;
        let large = senders(broker, std::slice::from_ref(last), of_1mib(shape), self.cores)?;
        producers.extend(large.into_iter().map(|it| client::Producer { counts: false, ..it }));
        self.closed_loop(producers, shape, period)
    }

    fn closed_loop(
        &self,
        producers: Vec<client::Producer>,
        shape: Shape,
        period: Period,
    ) -> Result<Sample> {
        let certs = self.ends(shape.mtu)?.broker.certs();
        let runtime = client_runtime(self.cores, self.polling);
        let Shape { window, mtu, .. } = shape;
        let tally = client::closed_loop(&certs, runtime, producers, window, mtu, period)?;
        Ok(Sample::of(&tally, shape))
    }

    fn produce(
        &self,
        broker: &Broker,
        targets: &[Target],
        shape: Shape,
        rate: Option<f64>,
        period: Period,
    ) -> Result<Sample> {
        let runtime = client_runtime(self.cores, self.polling);
        let (mut sample, late) = watched(broker, shape, || match rate {
            None => closed_loop(broker, targets, shape, period, self.cores, runtime),
            Some(rate) => {
                let producers = senders(broker, targets, shape, self.cores)?;
                client::open_loop(&broker.certs(), runtime, producers, Vec::new(), rate, period)
            }
        })?;
        if rate.is_some() {
            sample.set(Figure::LateP99Us, late.value_at_quantile(0.99) as f64 / 1e3);
        }
        Ok(sample)
    }

    /// Producers of the SDK, in closed loop.
    fn sdk(&self, clients: Clients, shape: Shape, period: Period) -> Result<Sample> {
        let (sample, _) = watched(&self.ends.broker, shape, || {
            let config = sdk::config(&self.ends.broker, clients.poll);
            on_client(self.cores, || {
                sdk::closed_loop(config, clients.is_shared, TOPIC, shape, period)
            })
        })?;
        Ok(sample)
    }

    /// Producers that are nothing but quinn on tokio, in closed loop, of a broker or of the server that
    /// is nothing but QUIC.
    fn quinn_client(
        &self,
        targets: &[Target],
        says_hello: bool,
        shape: Shape,
        period: Period,
    ) -> Result<Sample> {
        let stamps = match says_hello && shape.window <= IDEMPOTENT_WINDOW {
            true => init_producers(&self.ends.broker, shape.producers, self.cores)?,
            false => vec![ProducerStamp::NONE; shape.producers],
        };
        let run = || {
            on_client(self.cores, || {
                let certs = self.ends.broker.certs();
                async move {
                    let endpoint = client_endpoint(&certs)?;
                    let mut producers = Vec::with_capacity(shape.producers);
                    for (stamp, target) in stamps.into_iter().zip(targets) {
                        let connection = wire::connect(&endpoint, target.address).await?;
                        let link = match says_hello {
                            true => Link::to_broker(&connection).await?,
                            false => Link::open(&connection).await?,
                        };
                        let frame =
                            ProduceFrame::new(target, stamp, shape.records, shape.value_bytes);
                        producers.push(Producer { link, frame });
                    }
                    drive::closed_loop(producers, shape.window, period).await
                }
            })
        };
        match says_hello {
            true => Ok(watched(&self.ends.broker, shape, run)?.0),
            false => Ok(Sample::of(&run()?, shape)),
        }
    }

    /// One producer as for [`Self::consume`], and consumers of the SDK.
    fn sdk_tail(&self, shape: Shape, period: Period) -> Result<Sample> {
        let target = *self.ends.targets.first().context("the topic has a partition")?;
        let tally = on_client(self.cores, || {
            let certs = self.ends.broker.certs();
            let config = sdk::config(&self.ends.broker, PollMode::Sleep);
            async move {
                let mut producers = producers(&certs, &[target], shape).await?;
                let producer = producers.pop().context("one producer")?;
                let consumers = sdk::consumers(config, TOPIC, shape.producers, &target).await?;
                tail::run_sdk(producer, consumers, target, period).await
            }
        })?;
        Ok(Sample::of(&tally, shape))
    }

    /// One producer, and consumers with a connection each, of a broker or of the server that is
    /// nothing but QUIC.
    fn consume(
        &self,
        broker: Option<&Broker>,
        target: Target,
        shape: Shape,
        by: By,
        period: Period,
    ) -> Result<Sample> {
        let processes: Vec<u32> = broker.iter().map(|broker| broker.process()).collect();
        let certs = self.ends(shape.mtu)?.broker.certs();
        let before = meter::processes_s(&processes)?;
        let tally = on_client(self.cores, || {
            let certs = certs.clone();
            async move {
                let mut producers = match broker {
                    Some(_) => producers(&certs, &[target], shape).await?,
                    None => vec![bare_producer(&certs, &target, shape).await?],
                };
                let producer = producers.pop().context("one producer")?;
                let endpoint = endpoint_for(&certs, shape.mtu)?;
                let mut links = Vec::with_capacity(shape.producers);
                for _ in 0..shape.producers {
                    let connection = wire::connect(&endpoint, target.address).await?;
                    links.push(match broker {
                        Some(_) => Link::to_broker(&connection).await?,
                        None => Link::open(&connection).await?,
                    });
                }
                tail::run(producer, links, target, by, period).await
            }
        })?;
        let cpu_s = meter::processes_s(&processes)? - before;
        let mut sample = Sample::of(&tally, shape);
        if broker.is_some() {
            let delivered = tally.answers as f64 * shape.value_bytes as f64;
            sample.set(Figure::BrokerNsPerByte, cpu_s * 1e9 / delivered);
        }
        Ok(sample)
    }

    /// A consumer of one partition, of a broker or of the server that is nothing but QUIC.
    fn catch_up(
        &self,
        broker: Option<&Broker>,
        target: Target,
        partition: u32,
        period: Period,
    ) -> Result<Delivered> {
        on_client(self.cores, || {
            let certs = broker.unwrap_or(&self.ends.broker).certs();
            async move {
                let endpoint = client_endpoint(&certs)?;
                let connection = wire::connect(&endpoint, target.address).await?;
                let link = match broker {
                    Some(_) => Link::to_broker(&connection).await?,
                    None => Link::open(&connection).await?,
                };
                catch_up::run(link, &target, partition, period.measured).await
            }
        })
    }

    fn catch_up_cold(&self, shape: Shape, period: Period) -> Result<Sample> {
        let (cold, partition) = match shape == HUNDRED_COLD {
            true => (&self.hundred_cold, self.next_partition),
            false => (&self.one_cold, 0),
        };
        let cold = cold.as_ref().context("it was prepared")?;
        let target = *cold.targets().get(partition).context("a partition of the topic")?;
        let process = cold.broker().process();
        let before = (meter::processes_s(&[process])?, disk::read_bytes(process)?);
        let number = target.head.partition.0;
        let delivered = self.catch_up(Some(cold.broker()), target, number, period)?;
        let after = (meter::processes_s(&[process])?, disk::read_bytes(process)?);
        ensure!(0 < delivered.batches, "the partition is empty");
        let mut sample = Sample::of_delivered(&delivered, shape);
        let bytes = delivered.batches as f64 * shape.value_bytes as f64;
        sample.set(Figure::BrokerNsPerByte, (after.0 - before.0) * 1e9 / bytes);
        sample.set(Figure::DiskBytesPerByte, (after.1 - before.1) as f64 / bytes);
        Ok(sample)
    }

    /// Producers in open loop, and one consumer of all their partitions.
    fn end_to_end(&self, shape: Shape, period: Period) -> Result<Sample> {
        let rate = self.open_loop_rate()?;
        let targets = &self.ends.targets[..shape.producers];
        let producers = senders(&self.ends.broker, targets, shape, self.cores)?;
        let consumed = on_client(self.cores, || {
            let certs = self.ends.broker.certs();
            async move { ends_of(&certs, targets).await }
        })?;
        let (certs, runtime) = (self.ends.broker.certs(), client_runtime(self.cores, self.polling));
        let tally = client::open_loop(&certs, runtime, producers, consumed, rate, period)?;
        let mut sample = Sample::of(&tally, shape);
        sample.set(Figure::LateP99Us, tally.late.value_at_quantile(0.99) as f64 / 1e3);
        Ok(sample)
    }

    fn open_loop_rate(&self) -> Result<f64> {
        let half = self.closed_loop_rate.map(|rate| rate / 2.0);
        self.rate
            .or(half)
            .with_context(|| format!("the open loop needs --rate, or {CLOSED} before it"))
    }
}

/// One producer of batches of 1 MiB, otherwise of this shape.
fn of_1mib(shape: Shape) -> Shape {
    Shape { producers: 1, value_bytes: 1 << 20, ..shape }
}

/// A producer of requests for the server that is nothing but QUIC.
fn echo_producer(address: SocketAddr, shape: Shape) -> client::Producer {
    let target = Target::echo(address);
    let frame = ProduceFrame::new(&target, NO_BROKER, shape.records, shape.value_bytes);
    client::Producer { target, frame, says_hello: false, counts: true }
}

/// What producers of a broker came to, with what the broker did for it, and how late they were.
fn watched(
    broker: &Broker,
    shape: Shape,
    run: impl FnOnce() -> Result<Tally>,
) -> Result<(Sample, Histogram<u64>)> {
    let (flushed, written) = ("rustmq_wal_flushed_blocks_total", "rustmq_wal_written_blocks_total");
    let before = (broker.metric(flushed)?, meter::processes_s(&[broker.process()])?);
    let (blocks_before, disk_before) = (broker.metric(written)?, broker.disk_written()?);
    // The other servers of this process are at rest.
    let client_before = meter::process_time(std::process::id())?;
    let tally = run()?;
    let client_took = meter::process_time(std::process::id())? - client_before;
    let after = (broker.metric(flushed)?, meter::processes_s(&[broker.process()])?);
    let (blocks, disk) = (broker.metric(written)? - blocks_before, broker.disk_written()?);
    let mut sample = Sample::of(&tally, shape);
    let answers = tally.answers as f64;
    sample.set(Figure::ClientCpuUs, client_took.as_secs_f64() * 1e6 / answers);
    sample.set(Figure::BatchesPerFlush, answers / (after.0 - before.0).max(1.0));
    sample.set(Figure::BrokerCpuUs, (after.1 - before.1) * 1e6 / answers);
    let produced = answers * (shape.records * shape.value_bytes) as f64;
    sample.set(Figure::WrittenBytesPerByte, (disk.bytes - disk_before.bytes) as f64 / produced);
    for (figure, before, after) in [
        (Figure::WritesPerBlock, disk_before.writes, disk.writes),
        (Figure::FlushesPerBlock, disk_before.flushes, disk.flushes),
    ] {
        if let (Some(before), Some(after)) = (before, after) {
            sample.set(figure, (after - before) as f64 / blocks.max(1.0));
        }
    }
    Ok((sample, tally.late))
}

/// Did the datagrams get as large as the case says?
fn check_mtu(broker: &Broker, shape: Shape) -> Result<()> {
    let largest = f64::from(shape.mtu.largest(Sender::ByHand));
    let found = broker.metric("rustmq_path_mtu_bytes")?;
    ensure!(
        shape.mtu == Mtu::Internet || found == largest,
        "datagrams of {found} bytes, not {largest}"
    );
    Ok(())
}
