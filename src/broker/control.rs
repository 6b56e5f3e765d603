//! The control thread: it watches the shards, asks them for their metrics, and ends the process.
//!
//! It runs on the main thread under tokio and owns the last port of the mesh. It never waits for
//! one shard alone: a shard that is silent costs a scrape its share, and a drain its deadline.
//!
//! ```text
//!   starting ── every shard serves ──▶ serving ── signal ──▶ draining ── all ended ──▶ end
//!       └──────────── a shard fails, or panics: the process ends with an error ────────┘
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use rustmq_protocol::ShardId;
use rustmq_server::mesh::{MeshPort, Message};
use rustmq_server::metrics::{self, ShardSnapshot};
use rustmq_sys::channel::{Receiver, Sender};
use rustmq_sys::doorbell::{Bell, Doorbell};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::shards::{Ended, Failure};

/// How long shards may take to answer what is in flight. Past it the process ends with an error;
/// nothing acknowledged is lost.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked for the answers to a scrape. Shards ring no bell for them: a wake-up would
/// take a shard four times as long as the answer.
const SCRAPE_LOOK: Duration = Duration::from_millis(1);

/// How long a scrape waits for a shard. Past it the shard is reported as silent.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);

/// Scrapes that wait for the shards at once. Past it one is refused; all that wait share an answer.
const SCRAPES_MAX: usize = 64;

/// The exit code when a second signal cuts the drain short: as if SIGINT had killed the process.
const EXIT_INTERRUPTED: i32 = 130;

/// Where the broker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Some shards still recover.
    Starting { serving: usize, shards: usize },
    /// Every shard serves.
    Serving,
    /// The shards answer what is in flight, and then end.
    Draining,
}

/// What the shards measured.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    /// One for each shard that answered, by number.
    pub(super) snapshots: Vec<ShardSnapshot>,
    /// Those that did not.
    pub(super) silent: Vec<ShardId>,
}

/// How other tasks of this thread ask the control thread.
#[derive(Clone)]
pub(super) struct ControlHandle {
    scrapes: mpsc::Sender<oneshot::Sender<Arc<Scrape>>>,
    status: watch::Receiver<Status>,
    trouble: watch::Receiver<Vec<String>>,
}

/// The control thread's state. Invariant: a shard has at most one scrape and one drain of ours in
/// its ring, so a ring is never full.
pub(super) struct Control {
    doorbell: AsyncFd<Doorbell>,
    shards: Vec<Shard>,
    ended: mpsc::Receiver<Ended>,
    scrapes: mpsc::Receiver<oneshot::Sender<Arc<Scrape>>>,
    round: Option<Round>,
    status: watch::Sender<Status>,
    trouble: watch::Sender<Vec<String>>,
    handle: ControlHandle,
    interrupt: Signal,
    terminate: Signal,
}

struct Shard {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    bell: Bell,
    serving: bool,
    ended: bool,
    /// A scrape that it has not answered.
    asked: bool,
    /// What it measured from its start to its last answer, by stage; none before the first.
    measured: Vec<Histogram<u64>>,
    /// Histograms of an earlier answer, empty again, if there are any.
    empty: Vec<Histogram<u64>>,
    /// What is wrong with its disk.
    trouble: Vec<String>,
}

/// A scrape under way.
struct Round {
    deadline: Instant,
    waiting: Vec<oneshot::Sender<Arc<Scrape>>>,
    scrape: Scrape,
}

/// What a turn of the control thread came to.
#[derive(PartialEq, Eq)]
enum Turn {
    Done,
    /// SIGINT or SIGTERM.
    Signalled,
}

impl Control {
    /// Takes the last port of the mesh. Called in the tokio runtime, before the shards start.
    pub(super) fn new(port: MeshPort, ended: mpsc::Receiver<Ended>) -> Result<Self> {
        let MeshPort { doorbell, senders, receivers, bells } = port;
        let rings = senders.into_iter().flatten().zip(receivers.into_iter().flatten());
        let shards: Vec<Shard> = rings
            .zip(bells)
            .map(|((sender, receiver), bell)| Shard {
                sender,
                receiver,
                bell,
                serving: false,
                ended: false,
                asked: false,
                measured: Vec::new(),
                empty: Vec::new(),
                trouble: Vec::new(),
            })
            .collect();
        let starting = Status::Starting { serving: 0, shards: shards.len() };
        let (status, status_receiver) = watch::channel(starting);
        let (trouble, trouble_receiver) = watch::channel(Vec::new());
        let (scrape_sender, scrapes) = mpsc::channel(SCRAPES_MAX);
        let signals = "listening for signals";
        Ok(Self {
            doorbell: watched(doorbell).context("watching the control thread's doorbell")?,
            shards,
            ended,
            scrapes,
            round: None,
            status,
            trouble,
            handle: ControlHandle {
                scrapes: scrape_sender,
                status: status_receiver,
                trouble: trouble_receiver,
            },
            interrupt: signal(SignalKind::interrupt()).context(signals)?,
            terminate: signal(SignalKind::terminate()).context(signals)?,
        })
    }

    /// For tasks that ask.
    pub(super) fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }

    /// Waits until every shard serves. False: a signal came first, and there is nothing to drain.
    pub(super) async fn until_serving(&mut self) -> Result<bool> {
        while self.shards.iter().any(|shard| !shard.serving) {
            if self.turn().await? == Turn::Signalled {
                return Ok(false);
            }
        }
        self.status.send_replace(Status::Serving);
        Ok(true)
    }

    /// Waits for the signal to end.
    pub(super) async fn until_signalled(&mut self) -> Result<()> {
        while self.turn().await? != Turn::Signalled {}
        Ok(())
    }

    /// Lets the shards answer what is in flight and end.
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.status.send_replace(Status::Draining);
        for shard in &mut self.shards {
            shard.send(Message::Drain);
        }
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.shards.iter().any(|shard| !shard.ended) {
            match timeout_at(deadline, self.turn()).await {
                Ok(turn) => match turn? {
                    Turn::Done => {}
                    Turn::Signalled => std::process::exit(EXIT_INTERRUPTED),
                },
                Err(_) => {
                    let left: Vec<String> = (0..)
                        .zip(&self.shards)
                        .filter(|(_, shard)| !shard.ended)
                        .map(|(number, _)| ShardId(number).to_string())
                        .collect();
                    bail!(
                        "after {} s these shards had not ended: {}; what was acknowledged is safe, \
                         and the next start recovers",
                        DRAIN_TIMEOUT.as_secs(),
                        left.join(", ")
                    );
                }
            }
        }
        Ok(())
    }

    /// Handles one thing that happened. Fails when a shard ended that should not have.
    async fn turn(&mut self) -> Result<Turn> {
        let deadline = self.round.as_ref().map(|round| round.deadline);
        tokio::select! {
            biased;
            Some(ended) = self.ended.recv() => self.handle_ended(ended)?,
            _ = self.interrupt.recv() => return Ok(Turn::Signalled),
            _ = self.terminate.recv() => return Ok(Turn::Signalled),
            rung = rung(&self.doorbell) => {
                rung.context("waiting for the shards")?;
                self.receive();
            }
            Some(waiting) = self.scrapes.recv() => self.begin_scrape(waiting),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                self.end_scrape();
            }
            () = sleep(SCRAPE_LOOK), if deadline.is_some() => self.receive(),
        }
        Ok(Turn::Done)
    }

    fn handle_ended(&mut self, ended: Ended) -> Result<()> {
        let Ended { shard: id, result } = ended;
        match result {
            Ok(()) => {}
            Err(Failure::Error(error)) => return Err(anyhow!(error).context(format!("shard {id}"))),
            Err(Failure::Panic(message)) => bail!("shard {id} panicked, which is a bug: {message}"),
        }
        if *self.status.borrow() != Status::Draining {
            bail!("shard {id} ended without being asked to, which is a bug");
        }
        self.shard(id).ended = true;
        self.end_scrape_if_answered();
        Ok(())
    }

    fn receive(&mut self) {
        for index in 0..self.shards.len() {
            while let Some(message) = self.shards[index].receiver.try_pop() {
                self.handle_message(message);
            }
        }
    }

    fn handle_message(&mut self, message: Message) {
        match message {
            Message::Serving { shard } => {
                self.shard(shard).serving = true;
                let serving = self.shards.iter().filter(|shard| shard.serving).count();
                let shards = self.shards.len();
                self.status.send_replace(Status::Starting { serving, shards });
            }
            Message::Trouble { shard, trouble } => {
                self.shard(shard).trouble = trouble;
                let all = self.shards.iter().zip(0..).flat_map(|(shard, number)| {
                    let id = ShardId(number);
                    shard.trouble.iter().map(move |trouble| format!("shard {id}: {trouble}"))
                });
                let all = all.collect();
                self.trouble.send_replace(all);
            }
            Message::Scraped(mut snapshot) => {
                let shard = self.shard(snapshot.shard);
                shard.asked = false;
                // Also when nobody waits any more: the shard has no other copy.
                shard.add_measured(&mut snapshot);
                if let Some(round) = &mut self.round {
                    round.scrape.snapshots.push(*snapshot);
                }
                self.end_scrape_if_answered();
            }
            _ => unreachable!("shards tell the control thread nothing else"),
        }
    }

    fn begin_scrape(&mut self, waiting: oneshot::Sender<Arc<Scrape>>) {
        let round = self.round.get_or_insert_with(|| {
            for shard in &mut self.shards {
                // One that has not answered the last scrape will answer this one with it.
                if !shard.asked && !shard.ended {
                    shard.asked = true;
                    let empty = shard.take_empty();
                    shard.send(Message::Scrape(empty));
                }
            }
            let deadline = Instant::now() + SCRAPE_TIMEOUT;
            Round { deadline, waiting: Vec::new(), scrape: Scrape::default() }
        });
        // Past the bound the asking side sees its channel closed.
        if round.waiting.len() < SCRAPES_MAX {
            round.waiting.push(waiting);
        }
        self.end_scrape_if_answered();
    }

    fn end_scrape_if_answered(&mut self) {
        if self.shards.iter().all(|shard| shard.ended || !shard.asked) {
            self.end_scrape();
        }
    }

    fn end_scrape(&mut self) {
        let Some(Round { waiting, mut scrape, .. }) = self.round.take() else { return };
        scrape.snapshots.sort_by_key(|snapshot| snapshot.shard);
        let answered = |id: ShardId| scrape.snapshots.iter().any(|answer| answer.shard == id);
        scrape.silent =
            (0..).map(ShardId).take(self.shards.len()).filter(|id| !answered(*id)).collect();
        let scrape = Arc::new(scrape);
        for waiting in waiting {
            // Whoever asked may have left.
            let _ = waiting.send(Arc::clone(&scrape));
        }
    }

    fn shard(&mut self, id: ShardId) -> &mut Shard {
        self.shards.get_mut(usize::from(id.0)).expect("only our shards speak in our mesh")
    }
}

impl Shard {
    fn send(&mut self, message: Message) {
        let sent = self.sender.try_push(message);
        assert!(sent.is_ok(), "a ring has room for one scrape and one drain");
        self.bell.ring();
    }

    /// What the shard goes on in when it is asked.
    fn take_empty(&mut self) -> Vec<Histogram<u64>> {
        match self.empty.is_empty() {
            true => metrics::empty_stages(),
            false => std::mem::take(&mut self.empty),
        }
    }

    /// Makes an answer one of all the time since the start.
    fn add_measured(&mut self, snapshot: &mut ShardSnapshot) {
        let mut since = std::mem::take(&mut snapshot.stages);
        if self.measured.is_empty() {
            self.measured = since;
        } else {
            for (all, since) in self.measured.iter_mut().zip(&mut since) {
                all.add(&*since).expect("both are as `empty_stages` makes them");
                since.reset();
            }
            self.empty = since;
        }
        snapshot.stages.clone_from(&self.measured);
    }
}

impl ControlHandle {
    /// Where the broker is in its life.
    pub(super) fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// What is wrong with the disks, for people; empty: nothing that is known.
    pub(super) fn trouble(&self) -> Vec<String> {
        self.trouble.borrow().clone()
    }

    /// Asks all shards what they measured. `None`: too many ask, or the process ends.
    pub(super) async fn scrape(&self) -> Option<Arc<Scrape>> {
        let (sender, receiver) = oneshot::channel();
        self.scrapes.try_send(sender).ok()?;
        receiver.await.ok()
    }
}

#[expect(
    deprecated,
    reason = "sound here: a doorbell owns its descriptor until it is dropped; the function that \
              replaces this one is unsafe, and unsafe code is kept to sys"
)]
fn watched(doorbell: Doorbell) -> std::io::Result<AsyncFd<Doorbell>> {
    AsyncFd::with_interest(doorbell, Interest::READABLE)
}

/// Waits until the doorbell was rung since this was last completed. Dropping it loses no ring.
async fn rung(doorbell: &AsyncFd<Doorbell>) -> std::io::Result<()> {
    while !doorbell.get_ref().take_pending() {
        if doorbell.get_ref().prepare_sleep() {
            let mut ready = doorbell.readable().await?;
            doorbell.get_ref().drain();
            ready.clear_ready();
            doorbell.get_ref().awake();
        }
    }
    Ok(())
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting { serving, shards } => {
                write!(f, "starting: {serving} of {shards} shards serve")
            }
            Self::Serving => f.write_str("ready"),
            Self::Draining => f.write_str("draining: the broker ends"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
