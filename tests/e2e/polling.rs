//! What shards do when they have nothing to do: sleep, look for news, or never sleep.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::broker::{Backend, Node, on_each_backend};
use crate::support::cli::Cli;
use crate::support::machine;

/// How long an idle broker is watched.
const WATCH: Duration = Duration::from_secs(1);

on_each_backend! {
    /// Each policy serves, is killed and serves again; and idle, each does what it says. Alone: a shard
    /// that never sleeps takes a core from the others.
    fn every_policy_serves_and_idles_as_it_says(backend: Backend) -> Result<()> {
        let _machine = machine::alone();
        for (poll, idle) in [("sleep", 0.0..=0.0), ("adaptive", 0.0..=0.1), ("busy", 0.8..=1.0)] {
            let node = Node::new(backend)?.set("runtime.poll", poll);
            let broker = node.start()?;
            let cli = Cli::new(node.data_dir());
            cli.create_topic("polled", 2)?;
            let lines: String = (0..2_000).map(|line| format!("line {line}\n")).collect();
            cli.produce("polled", &lines)?;
            broker.kill_running()?;

            let broker = node.start()?;
            let mut read: Vec<String> = cli.consume("polled")?.lines().map(str::to_owned).collect();
            let mut sent: Vec<String> = lines.lines().map(str::to_owned).collect();
            read.sort();
            sent.sort();
            ensure!(read == sent, "{poll}: {} of {} lines", read.len(), sent.len());

            let names =
                ["rustmq_runtime_polled_seconds_total", "rustmq_runtime_seconds_total"];
            let measure = || broker.metrics_seconds(names);
            let [polled, running] = measure()?;
            thread::sleep(WATCH);
            let [polled_after, running_after] = measure()?;
            let part = (polled_after - polled) / (running_after - running);
            machine::note(&format!("idle, {poll}, {}: {part:.4} polled", backend.name()));
            ensure!(idle.contains(&part), "{poll}: {part} of the idle time was polled");
            broker.stop()?;
        }
        Ok(())
    }
}

#[test]
fn shards_that_share_cores_do_not_look_for_news() -> Result<()> {
    let _machine = machine::shared();
    let cores = thread::available_parallelism()?.get();
    let shards = u16::try_from(cores)?;
    let node = || {
        Node::new(Backend::Epoll).map(|node| node.shards(shards).set("wal.capacity_bytes", "64MiB"))
    };
    let said = node()?.set("runtime.poll", "busy").refusal()?;
    ensure!(said.contains("broker.shards") && said.contains("adaptive"), "{said}");
    let node = node()?.set("runtime.poll", "adaptive");
    let broker = node.start()?;
    ensure!(broker.output().contains("sleep: shards share their cores"), "{}", broker.output());
    broker.stop()
}
