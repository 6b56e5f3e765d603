//! The power goes at random moments under load: nothing acknowledged is lost, twice, or out of
//! order.
//!
//! The broker runs on a real file system on a disk of our own (`rig`), which forgets what was not
//! flushed when its power is cut: everything, nothing, or sectors here and there. The log is so
//! small that it rotates, drops its oldest segments and uses their files again all the time, and
//! topics come and go meanwhile, so that segments, checkpoints and catalogue are cut too. After
//! each cut the file system is mounted again, the broker started, everything read and held against
//! what its clients were told; then the load goes on, on the same disk, and so do the cuts.
//!
//! Two controls say what that is worth. Tiny writers: one that flushes before it tells, which no
//! cut may find fault with, and others that do not. And the broker itself, built without flushes:
//! at least half of its cuts must be found out.

mod rig;

#[path = "e2e/support/mod.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest of it")]
mod support;

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use rig::topics::{Churn, Topics};
use rig::{Rig, device};
use support::broker::{Backend, Broker, Node, on_each_backend};
use support::load::{Load, Round};
use support::random::Random;
use support::{client, machine, reading, without_flushes};

/// Cuts of both backends together, unless `RUSTMQ_CUTS` says otherwise.
const CUTS: u32 = 30;

/// The same for the broker without flushes; `RUSTMQ_CONTROL_CUTS`.
const CONTROL_CUTS: u32 = 30;

/// Room for the catalogue, and for two logs, of 16 MiB together and in the control of 32.
const DISK_BYTES: u64 = 128 << 20;

/// Partitions of the topic, on two shards.
const PARTITIONS: u32 = 3;

/// Bytes that a round appends at most: a quarter of what each log holds, even if all went to one.
const ROUND_BYTES: u64 = 2 << 20;

/// Bytes that a control has acknowledged before its disk is flushed once, for a fair start, and at
/// least after it.
const CONTROL_START_BYTES: u64 = 32 << 10;

/// Cuts that one topic lives through; then it is deleted and another one made.
const CUTS_PER_TOPIC: u32 = 10;

/// From SIGKILL to the answers that the killed waited for. Nobody returns from the kernel after it;
/// who is not in the kernel is at the next tick, of which there are at least 100 in a second.
const DEATH: Duration = Duration::from_millis(20);

on_each_backend! {
    fn nothing_acknowledged_is_lost_or_twice_or_out_of_order(backend: Backend) -> Result<()> {
        let Some(rig) = rig(&format!("power cut, {}", backend.name())) else { return Ok(()) };
        let cuts = count_of("RUSTMQ_CUTS", CUTS)?.div_ceil(2);
        let node = node(backend, &rig)?
            .on_a_fixed_port()?
            .set("wal.when_full", "delete_oldest")
            .set("test.retention_check_ms", 50)
            .set("network.idle_timeout_ms", 5_000);
        let mut run = Run {
            broker: Some(node.start()?),
            node,
            rig,
            topics: Topics::default(),
            random: Random::for_test(backend as u64),
            tally: Tally::default(),
        };
        while run.tally.cuts < cuts {
            let topic = format!("cuts-{}", run.tally.cuts);
            run.topic(&topic, (run.tally.cuts + CUTS_PER_TOPIC).min(cuts))?;
        }
        let Run { tally, topics, .. } = &run;
        machine::note(&format!("power_cut::{}: {tally:?}, {topics}; 0 lost", backend.name()));
        if CUTS / 2 <= cuts {
            ensure!(0 < tally.sectors_lost, "no cut lost a sector: the test is too small");
        }
        Ok(())
    }
}

on_each_backend! {
    /// The control: what the cuts of the real one do not find has to be found here, and the same
    /// procedure finds nothing in the real one.
    fn a_build_without_flushes_is_found_out(backend: Backend) -> Result<()> {
        let name = format!("power cut, a build without flushes, {}", backend.name());
        let Some(executable) = without_flushes::executable(&name)? else { return Ok(()) };
        let cuts = count_of("RUSTMQ_CONTROL_CUTS", CONTROL_CUTS)?.div_ceil(2);
        let mut random = Random::for_test(backend as u64);
        let mut count = |executable: &Path, cuts| -> Result<Option<FoundOut>> {
            let mut found = FoundOut::default();
            for cut in 0..cuts {
                let Some(rig) = rig(&name) else { return Ok(None) };
                // So large that no new segment, whose directory is flushed, comes under way.
                let node = node(backend, &rig)?
                    .of_build(executable)
                    .set("wal.segment_bytes", "4MiB")
                    .set("wal.capacity_bytes", "32MiB");
                match control(rig, &node, &mut random, cut)? {
                    Found::Nothing => {}
                    Found::Anomalies => found.with_anomalies += 1,
                    Found::Refusal => found.with_refusals += 1,
                }
            }
            Ok(Some(found))
        };
        let Some(found) = count(&executable, cuts)? else { return Ok(()) };
        let real_cuts = cuts.div_ceil(5);
        let Some(found_in_real) = count(&machine::executable(), real_cuts)? else { return Ok(()) };
        machine::note(&format!(
            "power_cut::{}: without flushes {cuts} cuts, {found:?}; with them {real_cuts} cuts, \
             {found_in_real:?}",
            backend.name()
        ));
        ensure!(cuts <= 2 * (found.with_anomalies + found.with_refusals), "{found:?}");
        let false_alarms = found_in_real.with_anomalies + found_in_real.with_refusals;
        ensure!(false_alarms == 0, "of the real broker: {found_in_real:?}");
        Ok(())
    }
}

/// What the cuts of a build came to.
#[derive(Default, Debug)]
struct FoundOut {
    /// It served, and not what it had acknowledged.
    with_anomalies: u32,
    /// It did not start, or refused to serve what is damaged.
    with_refusals: u32,
}

/// What was done, for whoever reads the log.
#[derive(Default, Debug)]
struct Tally {
    cuts: u32,
    /// Cuts of a broker that was not ready yet.
    during_start: u32,
    /// Cuts of a broker that had nothing more to do.
    idle: u32,
    records_acknowledged: u64,
    sectors_cached: u64,
    sectors_lost: u64,
}

/// One broker through all its lives.
struct Run {
    /// Before the node, whose files hold what it said, and before the disk that it uses.
    broker: Option<Broker>,
    node: Node,
    rig: Rig,
    topics: Topics,
    random: Random,
    tally: Tally,
}

impl Run {
    /// One topic, until there were that many cuts.
    fn topic(&mut self, topic: &str, cuts: u32) -> Result<()> {
        let runtime = client::runtime()?;
        let dir = self.node.data_dir().to_owned();
        runtime.block_on(client::create_topic(&dir, topic, PARTITIONS))?;
        let mut load = Load::start(&dir, topic, PARTITIONS, self.random.next())?;
        load.fill_a_wal()?;
        while self.tally.cuts < cuts {
            let round = load.begin(ROUND_BYTES);
            let churn = Churn::start(&dir, &self.topics, self.random.next())?;
            // Between the first record and the last: the load goes on while the power goes.
            let target = 1 + self.random.below(ROUND_BYTES / 2);
            load.until_acknowledged(&round, target).with_context(|| self.state())?;
            if self.random.below(5) == 0 {
                load.until_idle()?;
                sleep(Duration::from_millis(self.random.below(300)));
                self.tally.idle += 1;
            }
            sleep(Duration::from_micros(self.random.below(3_000)));
            self.cut_and_start(churn).with_context(|| format!("cut {}", self.tally.cuts))?;
            load.until_idle().with_context(|| self.state())?;
            runtime.block_on(self.check(topic, &load, &round))?;
        }
        self.tally.records_acknowledged += load.stop()?;
        runtime.block_on(client::delete_topic(&dir, topic))
    }

    /// For a failure.
    fn state(&self) -> String {
        let counters = self.broker.as_ref().map(Broker::counters).unwrap_or_default();
        format!("after cut {}\n{counters}", self.tally.cuts)
    }

    fn cut_and_start(&mut self, churn: Churn) -> Result<()> {
        let broker = self.broker.take().context("a broker runs")?;
        self.cut(broker)?;
        churn.stop()?;
        // Some starts do not come to an end either.
        while self.random.below(4) == 0 {
            let broker = self.node.launch()?;
            sleep(Duration::from_millis(self.random.below(250)));
            self.cut(broker)?;
            self.tally.during_start += 1;
        }
        self.node.change_flush_plan(&mut self.random);
        self.broker = Some(self.node.start()?);
        Ok(())
    }

    fn cut(&mut self, broker: Broker) -> Result<()> {
        // Each chance of survival in turn.
        let seed = (self.random.next() >> 8) * 12 + u64::from(self.tally.cuts % 12);
        let cut = cut(&mut self.rig, broker, seed)?;
        self.tally.cuts += 1;
        self.tally.sectors_cached += cut.cached;
        self.tally.sectors_lost += cut.cached - cut.kept;
        self.rig.power_on()
    }

    /// Reads everything and compares.
    async fn check(&mut self, topic: &str, load: &Load, round: &Round) -> Result<()> {
        let client = client::connect(self.node.data_dir()).await?;
        let cuts = self.tally.cuts;
        let read = reading::read_after_crash(&client, topic, PARTITIONS, load, round).await;
        read.with_context(|| format!("cut {cuts}"))?;
        let listed = client::bounded("the topics", client.list_topics()).await??;
        client.close().await;
        load.recorder().check().with_context(|| format!("cut {cuts}: {topic}"))?;
        self.topics.compare(&listed).with_context(|| format!("cut {cuts}"))
    }
}

/// What one cut came to.
enum Found {
    Nothing,
    Anomalies,
    Refusal,
}

/// One life and a half of a broker, and what is found out about it.
fn control(mut rig: Rig, node: &Node, random: &mut Random, cut_index: u32) -> Result<Found> {
    let runtime = client::runtime()?;
    let broker = node.start()?;
    runtime.block_on(client::create_topic(node.data_dir(), "control", PARTITIONS))?;
    let mut load = Load::start(node.data_dir(), "control", PARTITIONS, random.next())?;
    load.begin(CONTROL_START_BYTES);
    load.until_idle()?;
    // Certificates, catalogue, segments and a few records are there: only later ones can be lost.
    rig.flush()?;
    let round = load.begin(ROUND_BYTES);
    let target = CONTROL_START_BYTES + random.below(ROUND_BYTES / 2);
    load.until_acknowledged(&round, target)?;
    let recorder = load.recorder().clone();
    let seed = (random.next() >> 8) * 12 + u64::from(cut_index % 12);
    cut(&mut rig, broker, seed)?;
    drop(load);
    rig.power_on()?;
    let served = node.start().and_then(|broker| {
        runtime.block_on(async {
            let client = client::connect(node.data_dir()).await?;
            for partition in 0..PARTITIONS {
                reading::read(&client, "control", partition, &recorder).await?;
            }
            client.close().await;
            anyhow::Ok(())
        })?;
        broker.kill_running()
    });
    Ok(match (served, recorder.check()) {
        (Ok(()), Ok(())) => Found::Nothing,
        // Shown by the harness when the test fails.
        (Ok(()), Err(anomalies)) => {
            println!("cut {cut_index}: {anomalies:#}");
            Found::Anomalies
        }
        (Err(refusal), _) => {
            println!("cut {cut_index}: {refusal:#}");
            Found::Refusal
        }
    })
}

/// The power goes, and nobody at the broker learns anything after that.
fn cut(rig: &mut Rig, mut broker: Broker, seed: u64) -> Result<rig::Cut> {
    ensure!(broker.is_running()?, "it ended by itself\n{}", broker.output());
    let cut = rig.cut(seed)?;
    // It may wait for the disk, and ends when that answers.
    let killed = machine::run("kill", &["-KILL", &broker.process_id().to_string()]);
    sleep(DEATH);
    rig.let_go()?;
    killed.context("kill failed")?;
    broker.end_by("KILL")?;
    Ok(cut)
}

/// Two shards with a small log on the rig's disk.
fn node(backend: Backend, rig: &Rig) -> Result<Node> {
    Ok(Node::new(backend)?.in_dir(&rig.path().join("data")).shards(2))
}

/// Not a test: the process of a rig's disk, which is this program.
#[test]
#[ignore = "it is started by the others"]
fn the_disk_of_a_rig_is_served() -> Result<()> {
    match std::env::var_os(device::RIG_DIR) {
        Some(dir) => device::serve(Path::new(&dir)),
        None => Ok(()),
    }
}

/// A rig, or else the test is named.
fn rig(test: &str) -> Option<Rig> {
    match Rig::new(DISK_BYTES) {
        Ok(rig) => Some(rig),
        Err(error) => {
            machine::skip(test, &format!("{error:#}"));
            None
        }
    }
}

fn count_of(variable: &str, otherwise: u32) -> Result<u32> {
    match std::env::var(variable) {
        Ok(count) => count.parse().with_context(|| format!("{variable} is no number")),
        Err(_) => Ok(otherwise),
    }
}
