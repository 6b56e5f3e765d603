//! Killed at random moments under load: nothing acknowledged is lost, twice, or out of order.
//!
//! The log is so small that it rotates, drops its oldest segments and uses their files again all
//! the time. A producer with everything that an SDK does by itself (retries, sequences) lives
//! through each kill. After each the broker is started, sometimes killed again while it recovers,
//! and every record acknowledged since the check before has to be read: the log has room for
//! several rounds, so that its start must not have passed them. Everything older that is still
//! there is checked too.
//!
//! SIGKILL loses nothing that the kernel has; that the device has it, too, is for `flush` and
//! `tests/power_cut.rs` to show.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::support::broker::{Backend, Broker, Node, on_each_backend};
use crate::support::load::{Load, Round};
use crate::support::random::Random;
use crate::support::{client, machine, reading};

/// Kills of each backend, unless `RUSTMQ_KILLS` says otherwise.
const KILLS: u32 = 60;

/// Kills that one topic lives through; then it is deleted and another one made.
const KILLS_PER_TOPIC: u32 = 20;

/// Partitions of the topic, on two shards.
const PARTITIONS: u32 = 3;

/// Bytes that a round appends at most: a quarter of what each WAL holds, even if all went to one.
const ROUND_BYTES: u64 = 2 << 20;

on_each_backend! {
    fn nothing_acknowledged_is_lost_or_twice_or_out_of_order(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let kills = match std::env::var("RUSTMQ_KILLS") {
            Ok(kills) => kills.parse().context("RUSTMQ_KILLS is no number")?,
            Err(_) => KILLS,
        };
        let node = Node::new(backend)?
            .shards(2)
            .on_a_fixed_port()?
            .set("wal.when_full", "delete_oldest")
            .set("test.retention_check_ms", 50)
            .set("network.idle_timeout_ms", 5_000);
        let mut run = Run {
            broker: Some(node.start()?),
            node,
            random: Random::for_test(backend as u64),
            kills: 0,
            acknowledged: 0,
        };
        while run.kills < kills {
            let topic = format!("kills-{}", run.kills);
            run.topic(&topic, (run.kills + KILLS_PER_TOPIC).min(kills))?;
        }
        machine::note(&format!(
            "kill::{}: {} kills, {} records acknowledged, 0 lost, 0 twice, 0 out of order",
            backend.name(),
            run.kills,
            run.acknowledged
        ));
        Ok(())
    }
}

/// One broker through all its lives.
struct Run {
    /// Before the node, whose files hold what it said.
    broker: Option<Broker>,
    node: Node,
    random: Random,
    kills: u32,
    acknowledged: u64,
}

impl Run {
    /// One topic, until there were that many kills.
    fn topic(&mut self, topic: &str, kills: u32) -> Result<()> {
        let runtime = client::runtime()?;
        runtime.block_on(client::create_topic(self.node.data_dir(), topic, PARTITIONS))?;
        let mut load = Load::start(self.node.data_dir(), topic, PARTITIONS, self.random.next())?;
        load.fill_a_wal()?;
        while self.kills < kills {
            let round = load.begin(ROUND_BYTES);
            // Between the first record and the last: the load goes on while the broker dies.
            let target = 1 + self.random.below(ROUND_BYTES / 2);
            load.until_acknowledged(&round, target)?;
            sleep(Duration::from_micros(self.random.below(3_000)));
            self.kill_and_start()?;
            load.until_idle().with_context(|| self.state())?;
            runtime.block_on(self.check(topic, &load, &round))?;
        }
        self.acknowledged += load.stop()?;
        runtime.block_on(client::delete_topic(self.node.data_dir(), topic))
    }

    /// For a failure.
    fn state(&self) -> String {
        let counters = self.broker.as_ref().map(Broker::counters).unwrap_or_default();
        format!("after kill {}\n{counters}", self.kills)
    }

    fn kill_and_start(&mut self) -> Result<()> {
        self.broker.take().context("a broker runs")?.kill_running()?;
        self.kills += 1;
        // Some starts do not come to an end either.
        while self.random.below(4) == 0 {
            let broker = self.node.launch()?;
            sleep(Duration::from_millis(self.random.below(150)));
            broker.kill_running()?;
            self.kills += 1;
        }
        self.node.change_flush_plan(&mut self.random);
        self.broker = Some(self.node.start()?);
        Ok(())
    }

    /// Reads everything and compares.
    async fn check(&mut self, topic: &str, load: &Load, round: &Round) -> Result<()> {
        let client = client::connect(self.node.data_dir()).await?;
        let kills = self.kills;
        let read = reading::read_after_crash(&client, topic, PARTITIONS, load, round).await;
        read.with_context(|| format!("kill {kills}"))?;
        client.close().await;
        load.recorder().check().with_context(|| format!("kill {kills}: {topic}"))
    }
}
