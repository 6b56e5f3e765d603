//! A consumer that follows a topic while its broker is killed and comes back.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustmq_checker::{Partition, Reader, Value};
use rustmq_client::Start;
use tokio::time::timeout;

use super::client;
use super::history::{CONSUMER, Recorder};
use super::process::wait_until;

/// A consumer in a thread of its own, which writes down what it gets.
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
    next: Arc<Mutex<Vec<u64>>>,
}

impl Follower {
    /// Begins at the start of the log.
    pub(crate) fn start(
        dir: &Path,
        topic: &str,
        partitions: u32,
        recorder: Recorder,
    ) -> Result<Follower> {
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(Mutex::new(vec![0; partitions as usize]));
        let (dir, topic) = (dir.to_owned(), topic.to_owned());
        let (stopping, places) = (Arc::clone(&stop), Arc::clone(&next));
        let thread = std::thread::Builder::new().name("follower".to_owned()).spawn(move || {
            client::runtime()?.block_on(async {
                let client = client::connect(&dir).await?;
                let consumer = client.consumer(&topic).start(Start::Earliest).build();
                let mut consumer = client::bounded("a consumer", consumer).await??;
                let readers: Vec<Reader> = (0..partitions)
                    .map(|partition| recorder.lock().assign(CONSUMER, Partition(partition), 0))
                    .collect();
                let mut received = 0;
                while !stopping.load(Ordering::Relaxed) {
                    // Whether it is over is looked at now and then.
                    let wait = Duration::from_millis(20);
                    let Ok(record) = timeout(wait, consumer.receive()).await else { continue };
                    let record = record.context("partitions")??;
                    let partition = record.partition.0 as usize;
                    let reader = *readers.get(partition).context("a partition of the topic")?;
                    let value = record.value.unwrap_or_default();
                    recorder.lock().read(reader, record.offset.0, Value::of(&value));
                    let mut next = places.lock().unwrap_or_else(PoisonError::into_inner);
                    let next = next.get_mut(partition).context("a partition of the topic")?;
                    ensure!(*next == record.offset.0, "{} came, {next} is next", record.offset);
                    *next += 1;
                    received += 1;
                }
                client.close().await;
                Ok(received)
            })
        })?;
        Ok(Follower { stop, thread, next })
    }

    /// Waits until it has all that was acknowledged; how many records it got.
    pub(crate) fn until_end(self, recorder: &Recorder) -> Result<u64> {
        let waited = wait_until(|| {
            let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let history = recorder.lock();
            let ends = (0..).map(|partition| history.acknowledged_end(Partition(partition)));
            let all = next.iter().zip(ends).all(|(next, end)| end <= *next);
            Ok((all || self.thread.is_finished()).then_some(()))
        })?;
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().unwrap_or_else(|_| bail!("the consumer panicked"));
        waited.context("the consumer did not get all there is")?;
        ended
    }
}
