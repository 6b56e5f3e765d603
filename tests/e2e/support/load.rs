//! A producer that goes on while the broker dies and comes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustmq_checker::{Partition, SendId, Value};
use rustmq_client::{PartitionId, Producer, ProducerRecord, Ticket};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::broker::WAL_CAPACITY_BYTES;
use super::client;
use super::history::{PRODUCER, Recorder};
use super::process::wait_until;
use super::random::Random;

/// Records of one partition that wait for their acknowledgement; at the limit the load waits.
const IN_FLIGHT_MAX: usize = 64;

/// Between two looks at what the load may send.
const PAUSE: Duration = Duration::from_millis(1);

/// A producer in a thread of its own, and what it was told.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    partitions: u32,
}

/// A stretch of load between two checks.
pub(crate) struct Round {
    acknowledged_before: u64,
    begun_at: BTreeMap<u32, u64>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    recorder: Recorder,
}

#[derive(Default)]
struct State {
    /// Bytes that may be submitted since the start.
    allowance: u64,
    submitted: u64,
    acknowledged: u64,
    in_flight: usize,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    /// The first offset of a partition that was written in this round.
    pub(crate) fn begun_at(&self, partition: u32) -> u64 {
        self.begun_at.get(&partition).copied().unwrap_or_default()
    }
}

impl Load {
    /// Connects; nothing is sent before the first round begins.
    pub(crate) fn start(data_dir: &Path, topic: &str, partitions: u32, seed: u64) -> Result<Load> {
        let shared = Arc::new(Shared::default());
        let sending = Sending {
            data_dir: data_dir.to_owned(),
            topic: topic.to_owned(),
            partitions,
            random: Random::new(seed),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new().name("load".to_owned());
        let thread = thread.spawn(move || client::runtime()?.block_on(sending.run()))?;
        Ok(Load { shared, thread: Some(thread), partitions })
    }

    /// Lets this many more bytes be sent.
    pub(crate) fn begin(&self, bytes: u64) -> Round {
        let mut state = self.shared.lock();
        state.allowance = state.submitted + bytes;
        let history = self.shared.recorder.lock();
        let end_of = |id| history.acknowledged_end(Partition(id));
        let ends = (0..self.partitions).map(|id| (id, end_of(id)));
        Round { acknowledged_before: state.acknowledged, begun_at: ends.collect() }
    }

    /// Produces what the WALs of a small broker hold together, without what blocks take around it:
    /// however the partitions are spread, one of them has dropped segments and uses their files again.
    pub(crate) fn fill_a_wal(&mut self) -> Result<()> {
        self.begin(WAL_CAPACITY_BYTES);
        self.until_idle()
    }

    /// Waits until this many bytes were acknowledged in a round.
    pub(crate) fn until_acknowledged(&mut self, round: &Round, bytes: u64) -> Result<()> {
        let target = round.acknowledged_before + bytes;
        self.until("acknowledgements", |state| target <= state.acknowledged)
    }

    /// Waits until everything that may be sent was sent and acknowledged.
    pub(crate) fn until_idle(&mut self) -> Result<()> {
        self.until("the rest of the acknowledgements", |state| {
            state.allowance <= state.submitted && state.in_flight == 0
        })
    }

    /// What its client did and was told so far.
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.shared.recorder
    }

    /// Ends the load; how many records were acknowledged.
    pub(crate) fn stop(mut self) -> Result<u64> {
        self.until_idle()?;
        self.shared.lock().stopped = true;
        self.join()?;
        Ok(self.shared.recorder.lock().acknowledged())
    }

    fn until(&mut self, what: &str, reached: impl Fn(&State) -> bool) -> Result<()> {
        let waited = wait_until(|| {
            if reached(&self.shared.lock()) {
                return Ok(Some(()));
            }
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                self.join()?;
                bail!("the load ended before its time");
            }
            Ok(None)
        })?;
        let state = self.shared.lock();
        waited.with_context(|| {
            format!(
                "waiting for {what}: {} of {} bytes are acknowledged",
                state.acknowledged, state.submitted
            )
        })
    }

    fn join(&mut self) -> Result<()> {
        let thread = self.thread.take().context("the load runs")?;
        let ended = thread.join();
        ended.unwrap_or_else(|_| bail!("the load panicked"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The thread sees it at its next look, and the test does not wait for it.
        self.shared.lock().stopped = true;
    }
}

/// What the thread owns.
struct Sending {
    data_dir: PathBuf,
    topic: String,
    partitions: u32,
    random: Random,
    shared: Arc<Shared>,
}

/// A record on its way.
struct InFlight {
    send: SendId,
    bytes: usize,
    ticket: Ticket,
}

impl Sending {
    async fn run(mut self) -> Result<()> {
        let client = client::connect(&self.data_dir).await?;
        let producer = client.producer(&self.topic).build().await?;
        let mut collectors = Vec::new();
        let mut senders = Vec::new();
        for partition in 0..self.partitions {
            let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
            senders.push(sender);
            let shared = Arc::clone(&self.shared);
            collectors.push(tokio::spawn(collect(partition, receiver, shared)));
        }
        let mut number = 0;
        while !self.shared.lock().stopped {
            let may_send = {
                let state = self.shared.lock();
                state.submitted < state.allowance
            };
            if may_send {
                number += 1;
                self.send(&producer, &senders, number).await?;
            } else {
                tokio::time::sleep(PAUSE).await;
            }
            // A record that was given up ends the load at once.
            let ended = collectors.iter().position(tokio::task::JoinHandle::is_finished);
            if let Some(ended) = ended {
                collectors.swap_remove(ended).await??;
                bail!("records are no longer collected");
            }
        }
        drop(senders);
        client.close().await;
        Ok(())
    }

    async fn send(
        &mut self,
        producer: &Producer,
        senders: &[Sender<InFlight>],
        number: u64,
    ) -> Result<()> {
        let partition = self.random.below(u64::from(self.partitions)) as u32;
        let value = self.value(number);
        let bytes = value.len();
        {
            let mut state = self.shared.lock();
            state.submitted += bytes as u64;
            state.in_flight += 1;
        }
        let recorder = &self.shared.recorder;
        let send = recorder.lock().begin_send(PRODUCER, Partition(partition), Value::of(&value));
        let record = ProducerRecord::value(value).with_partition(PartitionId(partition));
        let ticket = producer.submit(record).await?;
        let sender = senders.get(partition as usize).context("a collector for each")?;
        let sent = sender.send(InFlight { send, bytes, ticket }).await;
        sent.ok().context("a record was given up")
    }

    /// Mostly small, sometimes of a size that fills a good part of a block.
    fn value(&mut self, number: u64) -> Vec<u8> {
        let bytes = match self.random.below(20) {
            0 => 20_000 + self.random.below(130_000),
            1..=4 => 4_000 + self.random.below(12_000),
            _ => 20 + self.random.below(2_000),
        };
        let mut value = format!("{number:012} ").into_bytes();
        let filler = b'a' + self.random.below(26) as u8;
        value.resize(bytes.max(20) as usize, filler);
        value
    }
}

/// Takes the fates of one partition's records, in the order in which they were submitted.
async fn collect(
    partition: u32,
    mut in_flight: Receiver<InFlight>,
    shared: Arc<Shared>,
) -> Result<()> {
    while let Some(InFlight { send, bytes, ticket }) = in_flight.recv().await {
        let metadata = ticket.await.context("a record was given up")?;
        ensure!(metadata.partition.0 == partition, "a record went elsewhere");
        shared.recorder.lock().acknowledge(send, Some(metadata.offset.0));
        let mut state = shared.lock();
        state.acknowledged += bytes as u64;
        state.in_flight -= 1;
    }
    Ok(())
}
