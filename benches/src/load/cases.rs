//! The questions of a run, one case each.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::Endpoint;
use tokio::runtime;

use super::broker::Broker;
use super::drive::{self, Period, Producer, Tally};
use super::machine::Cores;
use super::meter;
use super::rounds::{Figure, Sample};
use super::wire::{self, Link, NO_BROKER, ProduceFrame, Target};
use super::{device, echo, tls};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// Device: a durable write of 4 KiB through the shards' runtime.
    DeviceRing,
    /// Device: the same by a blocking system call.
    DeviceBlocking,
    /// QUIC alone: a request of 1 KiB and its answer.
    Echo,
    /// One producer, 1 KiB, one request in flight.
    ProduceAlone,
    /// Eight producers, a record of 1 KiB each, one request in flight each.
    ProduceEight,
    /// Eight producers, batches of ten records of 1 KiB, one request in flight each.
    ProduceEightBatches,
    /// One producer, batches of 64 KiB, eight requests in flight.
    ProduceLarge,
    /// Eight producers as above, on a disk whose flush takes a millisecond longer.
    SlowFlush,
    /// Eight producers in open loop, at half the rate that they reached in closed loop.
    OpenLoop,
}

impl Case {
    /// All, in the order of a round. The closed loop comes before the open one, which needs its rate.
    pub const ALL: [Case; 9] = [
        Case::DeviceRing,
        Case::DeviceBlocking,
        Case::Echo,
        Case::ProduceAlone,
        Case::ProduceEight,
        Case::ProduceEightBatches,
        Case::ProduceLarge,
        Case::SlowFlush,
        Case::OpenLoop,
    ];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Case::DeviceRing => "device/ring_4KiB",
            Case::DeviceBlocking => "device/blocking_4KiB",
            Case::Echo => "echo/1KiB",
            Case::ProduceAlone => "produce/1x1KiB",
            Case::ProduceEight => "produce/8x1KiB",
            Case::ProduceEightBatches => "produce/8x10x1KiB",
            Case::ProduceLarge => "produce/1x64KiB_window_8",
            Case::SlowFlush => "slow_flush/8x1KiB",
            Case::OpenLoop => "open_loop/8x1KiB",
        }
    }

    /// Who sends what.
    fn shape(self) -> Shape {
        let shape = |producers, records, value_bytes, window| Shape {
            producers,
            records,
            value_bytes,
            window,
        };
        match self {
            Case::DeviceRing | Case::DeviceBlocking => shape(1, 1, device::WRITE_BYTES, 1),
            Case::Echo | Case::ProduceAlone => shape(1, 1, 1 << 10, 1),
            Case::ProduceEight | Case::SlowFlush | Case::OpenLoop => shape(8, 1, 1 << 10, 1),
            Case::ProduceEightBatches => shape(8, 10, 1 << 10, 1),
            Case::ProduceLarge => shape(1, 1, 64 << 10, 8),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Producers, and what each of them sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) producers: usize,
    pub(super) records: usize,
    pub(super) value_bytes: usize,
    pub(super) window: usize,
}

/// Everything that the cases need, running.
#[derive(Debug)]
pub struct Bench {
    cores: Cores,
    device: PathBuf,
    echo: SocketAddr,
    broker: Broker,
    slow_broker: Broker,
    targets: Vec<Target>,
    slow_targets: Vec<Target>,
    /// Requests per second of the open loop, if it was given.
    rate: Option<f64>,
    /// Requests per second that the last closed loop of eight producers reached.
    closed_loop_rate: Option<f64>,
}

/// Partitions of the topic: one for each producer.
const PARTITIONS: u32 = 8;

/// A WAL this small has recycled all its segments soon, as one that has run for days.
pub(super) const WAL_SETS: [&str; 2] = ["wal.capacity_bytes=1GiB", "wal.when_full=delete_oldest"];

/// What makes the flush of the second broker slower.
const SLOW_SETS: [&str; 2] = ["test.enabled=true", "test.flush_delay_us=1000"];

/// Bytes written before the first round: a little more than the WAL holds.
const FILL_BYTES: u64 = 1280 << 20;

impl Bench {
    /// Starts the brokers and the echo server and brings the WAL to where it recycles.
    /// `rate` is that of the open loop; without it the open loop takes half of the closed loop's.
    pub fn start(
        binary: &Path,
        dir: &Path,
        cores: Cores,
        sets: &[String],
        rate: Option<f64>,
    ) -> Result<Bench> {
        let device = dir.join("device");
        device::prepare(&device)?;
        let mut all: Vec<&str> = WAL_SETS.to_vec();
        all.extend(sets.iter().map(String::as_str));
        let broker = Broker::start(binary, &dir.join("broker"), &all)?;
        all.extend(SLOW_SETS);
        let slow_broker = Broker::start(binary, &dir.join("slow_broker"), &all)?;
        let echo = echo::start(&broker.certs(), cores.server)?;
        let targets = create_topic(&broker, cores)?;
        let slow_targets = create_topic(&slow_broker, cores)?;
        let closed_loop_rate = None;
        let bench = Bench {
            cores,
            device,
            echo,
            broker,
            slow_broker,
            targets,
            slow_targets,
            rate,
            closed_loop_rate,
        };
        fill(&bench.broker, &bench.targets, cores)?;
        Ok(bench)
    }

    /// The processes whose work is not foreign.
    pub fn processes(&self) -> [u32; 2] {
        [self.broker.process(), self.slow_broker.process()]
    }

    /// Runs one case once.
    pub fn run(&mut self, case: Case, period: Period) -> Result<Sample> {
        let shape = case.shape();
        match case {
            Case::DeviceRing => {
                let tally = device::ring(&self.device, self.cores.server, period.measured)?;
                Ok(sample(&tally, shape))
            }
            Case::DeviceBlocking => {
                let tally = device::blocking(&self.device, self.cores.server, period.measured)?;
                Ok(sample(&tally, shape))
            }
            Case::Echo => {
                let targets = [Target::echo(self.echo)];
                let tally = on_client(self.cores, || {
                    let certs = self.broker.certs();
                    let (targets, window) = (&targets, shape.window);
                    async move {
                        let producers = producers(&certs, targets, shape, false).await?;
                        drive::closed_loop(producers, window, period).await
                    }
                })?;
                Ok(sample(&tally, shape))
            }
            Case::SlowFlush => self.produce(&self.slow_broker, &self.slow_targets, case, period),
            Case::OpenLoop => self.produce(&self.broker, &self.targets, case, period),
            _ => {
                let sample = self.produce(&self.broker, &self.targets, case, period)?;
                if case == Case::ProduceEight {
                    self.closed_loop_rate = sample.get(Figure::RequestsPerS);
                }
                Ok(sample)
            }
        }
    }

    fn produce(
        &self,
        broker: &Broker,
        targets: &[Target],
        case: Case,
        period: Period,
    ) -> Result<Sample> {
        let shape = case.shape();
        let rate = match case {
            Case::OpenLoop => Some(self.open_loop_rate()?),
            _ => None,
        };
        let flushed = "rustmq_wal_flushed_blocks_total";
        let before = (broker.metric(flushed)?, meter::processes_s(&[broker.process()])?);
        let core = self.cores.client;
        let tally = on_client(self.cores, || {
            let certs = broker.certs();
            async move {
                let producers = producers(&certs, targets, shape, true).await?;
                match rate {
                    Some(rate) => drive::open_loop(producers, rate, period, core).await,
                    None => drive::closed_loop(producers, shape.window, period).await,
                }
            }
        })?;
        let after = (broker.metric(flushed)?, meter::processes_s(&[broker.process()])?);
        let mut sample = sample(&tally, shape);
        let answers = tally.answers as f64;
        sample.set(Figure::BatchesPerFlush, answers / (after.0 - before.0).max(1.0));
        sample.set(Figure::BrokerCpuUs, (after.1 - before.1) * 1e6 / answers);
        if rate.is_some() {
            sample.set(Figure::LateP99Us, tally.late.value_at_quantile(0.99) as f64 / 1e3);
        }
        Ok(sample)
    }

    fn open_loop_rate(&self) -> Result<f64> {
        let half = self.closed_loop_rate.map(|rate| rate / 2.0);
        self.rate.or(half).with_context(|| {
            format!("{} needs --rate, or {} before it", Case::OpenLoop, Case::ProduceEight)
        })
    }
}

/// Writes until every segment of the broker's WAL was used once.
pub(super) fn fill(broker: &Broker, targets: &[Target], cores: Cores) -> Result<()> {
    let shape = Shape { producers: 1, records: 16, value_bytes: 64 << 10, window: 8 };
    let slice = Period { warm_up: Duration::ZERO, measured: Duration::from_millis(500) };
    let batch_bytes = (shape.records * shape.value_bytes) as u64;
    let mut written = 0;
    while written < FILL_BYTES {
        let tally = produce(broker, targets, shape, slice, cores)?;
        written += tally.answers * batch_bytes;
    }
    Ok(())
}

/// Producers in closed loop, each with a connection of its own.
pub(super) fn produce(
    broker: &Broker,
    targets: &[Target],
    shape: Shape,
    period: Period,
    cores: Cores,
) -> Result<Tally> {
    on_client(cores, || async {
        let producers = producers(&broker.certs(), targets, shape, true).await?;
        drive::closed_loop(producers, shape.window, period).await
    })
}

/// Runs a client on its own thread and core.
fn on_client<F: Future<Output = Result<T>>, T: Send>(
    cores: Cores,
    client: impl FnOnce() -> F + Send,
) -> Result<T> {
    device::on_core(cores.client, || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(client())
    })
}

pub(super) fn create_topic(broker: &Broker, cores: Cores) -> Result<Vec<Target>> {
    on_client(cores, || async {
        let endpoint = client_endpoint(&broker.certs())?;
        let connection = wire::connect(&endpoint, broker.address()).await?;
        let mut link = Link::to_broker(&connection).await?;
        link.create_topic("load", PARTITIONS).await?;
        let metadata = link.metadata("load").await?;
        Target::of_topic(&metadata, broker.address())
    })
}

/// Producers with a connection, a stream and a partition each.
async fn producers(
    certs: &Path,
    targets: &[Target],
    shape: Shape,
    broker: bool,
) -> Result<Vec<Producer>> {
    let endpoint = client_endpoint(certs)?;
    let mut producers = Vec::with_capacity(shape.producers);
    for target in targets.iter().take(shape.producers) {
        let connection = wire::connect(&endpoint, target.address).await?;
        let (link, stamp) = match broker {
            true => {
                let mut link = Link::to_broker(&connection).await?;
                let stamp = link.init_producer().await?;
                (link, stamp)
            }
            false => (Link::open(&connection).await?, NO_BROKER),
        };
        let frame = ProduceFrame::new(target, stamp, shape.records, shape.value_bytes);
        producers.push(Producer { link, frame });
    }
    Ok(producers)
}

/// A socket from which connections are opened.
pub fn client_endpoint(certs: &Path) -> Result<Endpoint> {
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    endpoint.set_default_client_config(tls::client(certs)?);
    Ok(endpoint)
}

pub(super) fn sample(tally: &Tally, shape: Shape) -> Sample {
    let mut sample = Sample::default();
    let seconds = tally.elapsed.as_secs_f64();
    let rate = tally.latency.len() as f64 / seconds;
    let payload_bytes = shape.records * shape.value_bytes;
    sample.set(Figure::RequestsPerS, rate);
    sample.set(Figure::RecordsPerS, rate * shape.records as f64);
    sample.set(Figure::MbPerS, rate * payload_bytes as f64 / 1e6);
    let quantile = |quantile: f64| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
    sample.set(Figure::P50Us, quantile(0.5));
    sample.set(Figure::P99Us, quantile(0.99));
    sample.set(Figure::P999Us, quantile(0.999));
    sample.set(Figure::MaxUs, tally.latency.max() as f64 / 1e3);
    sample
}
