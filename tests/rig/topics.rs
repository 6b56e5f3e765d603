//! Topics that come and go while the power goes, and what has to be left of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustmq_client::{Client, ClientError, ListedTopic, NewTopic};

use crate::support::client;
use crate::support::random::Random;

/// How their names begin.
const PREFIX: &str = "comes-and-goes-";

/// Topics that there are at a time; past it one goes before another comes.
const TOPICS_MAX: usize = 6;

/// Between two looks at whether it is time to stop. Requests are at most ten of these apart.
const PAUSE: Duration = Duration::from_millis(2);

/// What is known of each topic, by everybody who makes and deletes them.
#[derive(Clone, Default)]
pub(crate) struct Topics {
    topics: Arc<Mutex<BTreeMap<String, Fate>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// The broker said that it is there.
    Made,
    /// The broker said that it is gone.
    Deleted,
    /// The broker was asked for one or the other and never answered.
    Unknown,
}

impl Topics {
    /// What was answered must be so; what was not is known from now on.
    pub(crate) fn compare(&self, listed: &[ListedTopic]) -> Result<()> {
        let mut topics = self.lock();
        for topic in listed.iter().filter(|topic| topic.name.starts_with(PREFIX)) {
            ensure!(topics.contains_key(&topic.name), "nobody made the topic {}", topic.name);
        }
        for (name, fate) in topics.iter_mut() {
            let is_there = listed.iter().any(|topic| topic.name == *name);
            match (*fate, is_there) {
                (Fate::Made, false) => bail!("the topic {name} was made and is gone"),
                (Fate::Deleted, true) => bail!("the topic {name} was deleted and is there"),
                (_, true) => *fate = Fate::Made,
                (_, false) => *fate = Fate::Deleted,
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Fate>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topics = self.lock();
        let deleted = topics.values().filter(|fate| **fate == Fate::Deleted).count();
        write!(f, "{} other topics made, {deleted} of them deleted", topics.len())
    }
}

/// A thread that makes and deletes topics.
pub(crate) struct Churn {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Churn {
    /// Goes on until the broker is gone, or until it is stopped.
    pub(crate) fn start(data_dir: &Path, topics: &Topics, seed: u64) -> Result<Churn> {
        let stopped = Arc::new(AtomicBool::new(false));
        let churning = Churning {
            data_dir: data_dir.to_owned(),
            topics: topics.clone(),
            random: Random::new(seed),
            stopped: Arc::clone(&stopped),
        };
        let thread = std::thread::Builder::new().name("churn".to_owned());
        let thread = thread.spawn(move || client::runtime()?.block_on(churning.run()))?;
        Ok(Churn { stopped, thread })
    }

    /// Ends it. What was under way has an unknown fate.
    pub(crate) fn stop(self) -> Result<()> {
        self.stopped.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|_| bail!("the churn panicked"))
    }
}

struct Churning {
    data_dir: PathBuf,
    topics: Topics,
    random: Random,
    stopped: Arc<AtomicBool>,
}

impl Churning {
    async fn run(mut self) -> Result<()> {
        // The power may go before the first connection.
        let client = tokio::select! {
            connected = client::connect(&self.data_dir) => connected.ok(),
            () = self.until_stopped() => None,
        };
        let Some(client) = client else { return Ok(()) };
        while self.step(&client).await? {
            tokio::time::sleep(PAUSE * self.random.below(10) as u32).await;
        }
        client.close().await;
        Ok(())
    }

    /// Makes or deletes one; whether there was an answer.
    async fn step(&mut self, client: &Client) -> Result<bool> {
        let made: Vec<String> = self.of_fate(Fate::Made);
        let (name, fate) =
            if made.len() == TOPICS_MAX || self.random.below(3) == 0 && !made.is_empty() {
                (made[self.random.below(made.len() as u64) as usize].clone(), Fate::Deleted)
            } else {
                (format!("{PREFIX}{}", self.topics.lock().len()), Fate::Made)
            };
        self.topics.lock().insert(name.clone(), Fate::Unknown);
        let asked = async {
            match fate {
                Fate::Deleted => client.delete_topic(&name).await,
                Fate::Made | Fate::Unknown => client.create_topic(NewTopic::new(&name, 2)).await,
            }
        };
        let answer: Option<Result<_, ClientError>> = tokio::select! {
            answer = asked => Some(answer),
            () = self.until_stopped() => None,
        };
        let answered = matches!(answer, Some(Ok(_)));
        if answered {
            self.topics.lock().insert(name, fate);
        }
        Ok(answered)
    }

    async fn until_stopped(&self) {
        while !self.stopped.load(Ordering::SeqCst) {
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn of_fate(&self, wanted: Fate) -> Vec<String> {
        let topics = self.topics.lock();
        let wanted = topics.iter().filter(|(_, fate)| **fate == wanted);
        wanted.map(|(name, _)| name.clone()).collect()
    }
}
