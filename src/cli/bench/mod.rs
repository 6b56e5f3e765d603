//! `rustmq bench`: load on a running broker, and how long it takes.
//!
//! **Closed loop**, without `--rate`: each producer keeps `--in-flight` batches on their way; a
//! latency is that from sending a batch to its acknowledgement. **Open loop**, with `--rate`:
//! batches are due at even times whatever the broker does, and a latency counts from the time at
//! which the batch was due, so that a stall shows in every batch that it delayed.
//!
//! - `load`: producers. - `pace`: when batches are due. - `read`: consumers.
//! - `report`: the numbers.

mod load;

mod pace;

mod read;

mod report;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use rustmq_client::{Client, NewTopic, PollMode};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::connect::ConnectArgs;
use crate::cli::exit::UsageError;
use crate::cli::output::{TextOrJson, print};
use crate::cli::produce::AcksArg;
use crate::cli::progress;
use report::Report;

/// Between two looks of the progress bar at the clock.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// What is measured
    #[arg(value_enum)]
    mode: Mode,
    /// Producers, or consumers with `consume`; these have connections of their own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    producers: u32,
    /// Clients that the producers share; each has connections of its own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Records that are handed over together, as a batch
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    size: u32,
    /// Partitions of the topic
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// Seconds to measure
    #[arg(long, value_name = "S", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Records a second of all producers together; without it, as many as get acknowledged
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Batches that a producer has not got acknowledged at once; those that wait are sent together
    /// [default: 1, with --rate 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: Option<u32>,
    /// What must be true of a batch before it is acknowledged
    #[arg(long, value_enum, default_value_t = AcksArg::All)]
    acks: AcksArg,
    /// What clients do while they wait for the broker
    #[arg(long, value_enum, default_value_t = PollArg::Adaptive)]
    poll: PollArg,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = TextOrJson::Text)]
    format: TextOrJson,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// From sending a batch to its acknowledgement
    Produce,
    /// How fast stored records are read
    Consume,
    /// From producing a record to receiving it in a consumer
    E2e,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum PollArg {
    /// Look for news for up to 500 µs as long as that pays off, as brokers do
    Adaptive,
    /// Sleep at once, as other programs do unless told otherwise
    Sleep,
}

impl From<PollArg> for PollMode {
    fn from(poll: PollArg) -> PollMode {
        match poll {
            PollArg::Adaptive => PollMode::Adaptive,
            PollArg::Sleep => PollMode::Sleep,
        }
    }
}

impl BenchArgs {
    /// A connected client that waits as asked for.
    async fn client(&self) -> anyhow::Result<Client> {
        self.connect.client_that_waits(self.poll.into()).await
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

pub(crate) async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.mode == Mode::E2e && (args.size as usize) < load::STAMP_BYTES {
        let text = format!("--size {}: e2e needs at least {}", args.size, load::STAMP_BYTES);
        return Err(UsageError(text).into());
    }
    if args.mode == Mode::E2e && args.acks == AcksArg::None {
        let text = "--acks none: e2e waits for what was acknowledged; allowed are leader and all";
        return Err(UsageError(text.to_owned()).into());
    }
    let client = args.connect.client().await?;
    let topic = topic_name();
    let new_topic = NewTopic::new(&topic, args.partitions);
    client.create_topic(new_topic).await.with_context(|| format!("creating topic {topic}"))?;

    let measured = tokio::select! {
        report = measure(args, &topic) => report,
        signal = interrupted() => signal.and_then(|()| bail!("interrupted")),
    };
    remove(&client, &topic).await?;
    let report = measured?;
    print(match args.format {
        TextOrJson::Text => report.text(),
        TextOrJson::Json => report.json(),
    })
    .await
}

async fn measure(args: &BenchArgs, topic: &str) -> anyhow::Result<Report> {
    match args.mode {
        Mode::Produce => load::produce(args, topic).await,
        Mode::Consume => read::consume(args, topic).await,
        Mode::E2e => read::end_to_end(args, topic).await,
    }
}

/// A name that no other run has: by the clock and the process.
fn topic_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("bench-{}-{}", since.as_millis(), std::process::id())
}

/// Removes the topic; a second signal ends that too.
async fn remove(client: &Client, topic: &str) -> anyhow::Result<()> {
    tokio::select! {
        deleted = client.delete_topic(topic) => {
            deleted.with_context(|| format!("deleting topic {topic}"))?;
            Ok(())
        }
        signal = interrupted() => {
            signal?;
            bail!("interrupted; topic {topic} may be left behind")
        }
    }
}

/// Waits for Ctrl-C or a request to terminate.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for signals")?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.context("waiting for signals"),
        _ = terminate.recv() => Ok(()),
    }
}

/// Draws how far a run is, as long as it is awaited beside it.
async fn show_progress(time: Duration, label: &'static str) {
    let bar: ProgressBar = progress::of_time(time).with_message(label);
    loop {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        bar.set_position(u64::try_from(bar.elapsed().as_millis()).unwrap_or(u64::MAX));
    }
}
