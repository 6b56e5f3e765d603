//! The command line: what can be typed, and what each command does with a broker.
//!
//! Everything here runs on one thread with a tokio runtime of its own, apart from blocking reads of
//! the input and writes to stdout, which have a thread each. Nothing here decides about records:
//! the broker and the client library do.
//!
//! In reading order:
//!
//! - `exit`: exit codes. - `connect`: finding a broker. - `dev`: what starts one.
//! - `topic`: topics. - `produce`: lines to records, with `input`, `lines` and `deliveries`.
//! - `consume`: records to text, with `start`, `format` and `output`.
//! - `bench`: load and its latencies, with `latency`. - `doctor`: this host. - `wal`: the log of a
//!   broker that is stopped. - `progress`: bars.

mod exit;

mod connect;

pub(crate) mod dev;

mod topic;

mod produce;

mod input;

mod lines;

mod deliveries;

mod consume;

mod start;

mod format;

mod output;

mod bench;

mod latency;

mod doctor;

mod wal;

mod progress;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use exit::Exit;

/// RustMQ: a distributed message broker.
#[derive(Parser, Debug)]
#[command(name = "rustmq", version, after_help = exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs a broker for development: everything in one process, no configuration
    #[command(after_help = exit::HELP)]
    Dev(dev::DevArgs),
    /// Creates, lists, describes and deletes topics
    #[command(after_help = exit::HELP)]
    Topic(topic::TopicArgs),
    /// Sends the lines of a file or of stdin as records
    #[command(after_help = exit::HELP)]
    Produce(produce::ProduceArgs),
    /// Writes the records of a topic to stdout
    #[command(after_help = exit::HELP)]
    Consume(consume::ConsumeArgs),
    /// Measures throughput and latency of a running broker
    #[command(after_help = exit::HELP)]
    Bench(bench::BenchArgs),
    /// Says what this host offers a broker, and what to change
    #[command(after_help = exit::HELP)]
    Doctor(doctor::DoctorArgs),
    /// Prints, checks and saves the log of a broker that is stopped
    #[command(after_help = exit::HELP)]
    Wal(wal::WalArgs),
}

/// Does what was typed, and says on stderr why not.
pub(crate) fn run() -> ExitCode {
    // Wrong arguments end here, with code 2.
    let cli = Cli::parse();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rustmq: {}", exit::line(&error));
            Exit::of(&error).into()
        }
    }
}

impl Command {
    fn run(&self) -> anyhow::Result<()> {
        match self {
            Command::Dev(args) => crate::broker::run(args),
            Command::Topic(args) => block_on(topic::run(args)),
            Command::Produce(args) => block_on(produce::run(args)),
            Command::Consume(args) => block_on(consume::run(args)),
            Command::Bench(args) => block_on(bench::run(args)),
            Command::Doctor(args) => block_on(doctor::run(args)),
            Command::Wal(args) => wal::run(args),
        }
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declaration_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn negative_starts_and_repeated_settings_are_understood() {
        for line in [
            "rustmq consume orders --from -10 -n 5",
            "rustmq consume orders --from @2026-01-31T12:00:00Z -f %k:%v\\n --until-end",
            "rustmq topic create orders --partitions 4 --config a=b --config c=d",
            "rustmq dev --set wal.flush=always --set broker.port=0 --shards 2",
            "rustmq produce orders --key-separator : --acks leader --route bootstrap",
            "rustmq bench e2e --producers 2 --rate 1000 --format json",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
