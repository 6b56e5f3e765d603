//! `rustmq produce`: lines to records.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use rustmq_client::{
    Acks, ClientError, FlushMode, PartitionId, Producer, ProducerRecord, RecordMetadata, RouteMode,
    Ticket,
};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::cli::connect::ConnectArgs;
use crate::cli::deliveries::Deliveries;
use crate::cli::exit::{self, Unacknowledged, UsageError};
use crate::cli::input::Input;
use crate::cli::latency::Latencies;
use crate::cli::lines::split_key;
use crate::cli::output::Output;
use crate::cli::progress;

/// Records on their way and not acknowledged. 65,536: more than eight batches of eight partitions
/// hold of small records; at the limit reading waits. Their bytes are bounded by the producer's
/// buffer.
const RECORDS_IN_FLIGHT_MAX: usize = 1 << 16;

/// Records handed from the task that submits to the one that collects. At the limit submitting
/// waits.
const RECORDS_HANDED_OVER_MAX: usize = 1024;

#[derive(Args, Debug)]
pub(crate) struct ProduceArgs {
    /// Topic
    topic: String,
    /// Takes the records from a file instead of stdin; each line is one
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Cuts each line at the first separator into key and value
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// What must be true of a record before it is acknowledged
    #[arg(long, value_enum, default_value_t = AcksArg::All)]
    acks: AcksArg,
    /// Writes PARTITION, OFFSET and VALUE of each record to stdout once it is acknowledged
    #[arg(long)]
    print_acked: bool,
    /// Sends every record to this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Seconds to go on trying to deliver a record
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
    /// Where requests are sent: to the owner of a partition, or all to the first contact
    #[arg(long, value_enum, default_value_t = RouteArg::Owner, hide = true)]
    route: RouteArg,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What must be true of a record before it is acknowledged.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AcksArg {
    /// Nothing: it was sent
    None,
    /// It is on the leader's disk
    Leader,
    /// It is on the disks of all in-sync replicas
    All,
}

impl From<AcksArg> for Acks {
    fn from(acks: AcksArg) -> Acks {
        match acks {
            AcksArg::None => Acks::None,
            AcksArg::Leader => Acks::Leader,
            AcksArg::All => Acks::All,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum RouteArg {
    Owner,
    Bootstrap,
}

impl From<RouteArg> for RouteMode {
    fn from(route: RouteArg) -> RouteMode {
        match route {
            RouteArg::Owner => RouteMode::Owner,
            RouteArg::Bootstrap => RouteMode::Bootstrap,
        }
    }
}

/// A record that was submitted, on its way to the task that collects.
struct Submitted {
    ticket: Result<Ticket, ClientError>,
    sent: Sent,
}

struct Sent {
    value: Bytes,
    bytes: u64,
    at: Instant,
}

pub(crate) async fn run(args: &ProduceArgs) -> anyhow::Result<()> {
    if args.print_acked && args.acks == AcksArg::None {
        let error = "--print-acked needs an offset; allowed are --acks leader and --acks all";
        return Err(UsageError(error.to_owned()).into());
    }
    if args.key_separator.as_deref() == Some("") {
        return Err(UsageError("--key-separator is empty, it needs a character".to_owned()).into());
    }
    let input = Input::open(args.file.as_deref())?;
    let client = args.connect.client_by(args.route.into()).await?;
    let producer = client
        .producer(&args.topic)
        .acks(args.acks.into())
        .delivery_timeout(Duration::from_secs(args.timeout.into()))
        .build()
        .await
        .map_err(|error| anyhow::Error::from(error).context(format!("topic {}", args.topic)))?;
    let output = args.print_acked.then(Output::stdout);

    let begun_at = Instant::now();
    let (submitted, collected) = mpsc::channel(RECORDS_HANDED_OVER_MAX);
    let (read, tally) = tokio::join!(
        submit(args, input, &producer, submitted),
        collect(collected, output.as_ref()),
    );
    // What is without an acknowledgement still has to leave.
    let flushed = producer.close().await;
    client.close().await;

    tally.report(begun_at.elapsed());
    output.map_or(Ok(()), Output::finish)?;
    tally.outcome()?;
    read?;
    Ok(flushed?)
}

/// Submits every line, until the input ends or the collecting task wants no more.
async fn submit(
    args: &ProduceArgs,
    mut input: Input,
    producer: &Producer,
    submitted: Sender<Submitted>,
) -> anyhow::Result<()> {
    let bar = input.bytes.map(progress::of_bytes);
    loop {
        let lines = tokio::select! {
            lines = input.next() => lines?,
            () = submitted.closed() => None,
        };
        let Some(lines) = lines else { break };
        for line in lines.lines {
            let Ok(place) = submitted.reserve().await else { break };
            let (record, sent) = record_of(args, line);
            let ticket = producer.submit(record).await;
            place.send(Submitted { ticket, sent });
        }
        if let Some(bar) = &bar {
            bar.inc(lines.bytes_read as u64);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}

fn record_of(args: &ProduceArgs, line: Bytes) -> (ProducerRecord, Sent) {
    let (key, value) = match &args.key_separator {
        Some(separator) => split_key(line, separator.as_bytes()),
        None => (None, line),
    };
    let bytes = (key.as_ref().map_or(0, Bytes::len) + value.len()) as u64;
    let sent = Sent { value: value.clone(), bytes, at: Instant::now() };
    let partition = args.partition.map(PartitionId);
    (ProducerRecord { key, partition, ..ProducerRecord::value(value) }, sent)
}

/// Waits for every record that is handed over. After the first failure it takes no new ones.
async fn collect(mut submitted: Receiver<Submitted>, output: Option<&Output>) -> Tally {
    let mut tally = Tally::new();
    let mut deliveries = Deliveries::new();
    let mut acked_lines = Vec::new();
    loop {
        let is_full = RECORDS_IN_FLIGHT_MAX <= deliveries.count();
        tokio::select! {
            Some(Submitted { ticket, sent }) = submitted.recv(), if !is_full => match ticket {
                Ok(ticket) => deliveries.push(ticket.partition().0, ticket, sent),
                Err(error) => tally.failed(error),
            },
            Some((outcome, sent)) = deliveries.next() => {
                let mut next = Some((outcome, sent));
                while let Some((outcome, sent)) = next {
                    tally.count(&outcome, &sent);
                    if let (Ok(metadata), Some(_)) = (&outcome, output) {
                        push_acked(&mut acked_lines, metadata, &sent.value);
                    }
                    next = deliveries.next_ready().await;
                }
                if let (Some(output), false) = (output, acked_lines.is_empty())
                    && output.write(std::mem::take(&mut acked_lines)).await.is_err()
                {
                    submitted.close();
                }
            }
            else => return tally,
        }
        if tally.failure.is_some() {
            submitted.close();
        }
    }
}

fn push_acked(out: &mut Vec<u8>, metadata: &RecordMetadata, value: &[u8]) {
    out.extend_from_slice(format!("{}\t{}\t", metadata.partition, metadata.offset).as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// What became of the records.
struct Tally {
    acknowledged: u64,
    bytes: u64,
    unacknowledged: u64,
    /// Nothing that failed can be in the log.
    all_definite: bool,
    failure: Option<ClientError>,
    /// The broker acknowledges before it flushes, and flushes this often.
    flush_interval_ms: Option<u32>,
    latencies: Latencies,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            acknowledged: 0,
            bytes: 0,
            unacknowledged: 0,
            all_definite: true,
            failure: None,
            flush_interval_ms: None,
            latencies: Latencies::new(),
        }
    }

    fn count(&mut self, outcome: &Result<RecordMetadata, ClientError>, sent: &Sent) {
        match outcome {
            Ok(metadata) => {
                if let Some(FlushMode::Interval { ms }) = metadata.flush {
                    self.flush_interval_ms = Some(ms);
                }
                self.acknowledged += 1;
                self.bytes += sent.bytes;
                self.latencies.record(sent.at.elapsed(), 1);
            }
            Err(error) => self.failed(error.clone()),
        }
    }

    fn failed(&mut self, error: ClientError) {
        self.unacknowledged += 1;
        self.all_definite &= error.is_definite();
        self.failure.get_or_insert(error);
    }

    fn report(&self, elapsed: Duration) {
        let per_second = self.acknowledged as f64 / elapsed.as_secs_f64().max(1e-9);
        eprintln!(
            "{} records, {} bytes in {:.3} s ({per_second:.0} records/s), p50 {} us, p99 {} us",
            self.acknowledged,
            self.bytes,
            elapsed.as_secs_f64(),
            self.latencies.quantile_us(0.5),
            self.latencies.quantile_us(0.99),
        );
        if let Some(ms) = self.flush_interval_ms {
            eprintln!(
                "acknowledged before they were on the device: the broker flushes every {ms} ms \
                 (wal.flush = \"interval\"), and what it has not flushed is lost if its host fails"
            );
        }
    }

    /// A refusal of everything is the broker's; anything else leaves some records behind.
    fn outcome(&self) -> anyhow::Result<()> {
        let Some(first) = self.failure.clone() else { return Ok(()) };
        let is_refused = self.acknowledged == 0 && self.all_definite;
        let is_timeout = matches!(first, ClientError::DeliveryTimeout { .. });
        if is_refused && !is_timeout && exit::code(&first).is_some() {
            return Err(first.into());
        }
        let Tally { acknowledged, unacknowledged, .. } = *self;
        Err(Unacknowledged { acknowledged, unacknowledged, first }.into())
    }
}

#[cfg(test)]
mod tests {
    use rustmq_client::{ErrorCode, Offset, TimestampMs};

    use super::*;
    use crate::cli::exit::Exit;

    fn sent() -> Sent {
        Sent { value: Bytes::from_static(b"v\xff"), bytes: 2, at: Instant::now() }
    }

    fn acked() -> RecordMetadata {
        let (partition, offset) = (PartitionId(1), Offset(7));
        RecordMetadata { partition, offset, timestamp: TimestampMs(0), flush: None }
    }

    fn refused() -> ClientError {
        let code = ErrorCode::StorageFull;
        let (message, retry_after) = (String::new(), Duration::ZERO);
        ClientError::Broker { code, message, definite: true, retry_after }
    }

    #[test]
    fn an_acknowledged_record_is_one_line_with_its_bytes() {
        let mut out = Vec::new();
        push_acked(&mut out, &acked(), &sent().value);
        assert_eq!(out, b"1\t7\tv\xff\n");
    }

    #[test]
    fn all_refused_is_a_refusal_and_some_refused_is_not_all_acknowledged() {
        let mut tally = Tally::new();
        assert!(tally.outcome().is_ok());
        tally.count(&Err(refused()), &sent());
        assert_eq!(Exit::of(&tally.outcome().unwrap_err()), Exit::Refused);
        tally.count(&Ok(acked()), &sent());
        let error = tally.outcome().unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Unacknowledged);
        assert!(error.to_string().starts_with("1 of 2 records not acknowledged: STORAGE_FULL"));
    }

    #[test]
    fn records_whose_fate_is_unknown_are_not_refused() {
        let mut tally = Tally::new();
        tally.count(&Err(ClientError::ConnectionLost), &sent());
        assert_eq!(Exit::of(&tally.outcome().unwrap_err()), Exit::Unacknowledged);
    }
}
