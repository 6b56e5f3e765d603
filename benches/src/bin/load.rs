//! `load`: what a client of the shipped executable sees, beside what the disk and QUIC take by
//! themselves, in one run and one table. See `benches/README.md`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use rustmq_benches::load::bench::Bench;
use rustmq_benches::load::broker;
use rustmq_benches::load::cases::{CASES, Case};
use rustmq_benches::load::drive::Period;
use rustmq_benches::load::machine::{Cores, Machine};
use rustmq_benches::load::report::{self, Run};
use rustmq_benches::load::rounds::{self, Tolerance};
use rustmq_benches::load::standing::Sizes;
use rustmq_config::Poll;

/// Latency and throughput of a broker, beside its references
#[derive(Parser, Debug)]
struct Args {
    /// Rounds; every case runs once in each
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each case in each round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Shape of the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Directory on the disk to be measured; what is stored there is removed at the end
    /// [default: that of this program]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The broker's executable [default: rustmq beside this program]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Per cent of the processors that others may use; a case with more is thrown away and run again
    #[arg(long, default_value_t = 12.0)]
    foreign_max: f64,
    /// Seconds to wait for others to be done, before an attempt that was thrown away is repeated
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Only cases whose names contain this; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Requests per second of the open loop [default: half of those of the closed loop before it]
    #[arg(long)]
    rate: Option<f64>,
    /// What broker and bare server do when idle: adaptive, sleep or busy
    #[arg(long, value_enum, default_value_t = PollArg::Adaptive)]
    poll: PollArg,
    /// Silent connections of `connections/silent` and `memory/connection`; the goals are for up to 50000
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    silent: usize,
    /// GiB of the log behind the start with 1,000 topics; the goal is for 10
    #[arg(long, value_name = "GIB", default_value_t = 1)]
    start_gib: u64,
    /// Sets an option of the broker; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table
    Text,
    /// One JSON object
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PollArg {
    /// Look for news while that pays off
    Adaptive,
    /// Sleep at once
    Sleep,
    /// Never sleep
    Busy,
}

impl From<PollArg> for Poll {
    fn from(poll: PollArg) -> Self {
        match poll {
            PollArg::Adaptive => Poll::Adaptive,
            PollArg::Sleep => Poll::Sleep,
            PollArg::Busy => Poll::Busy,
        }
    }
}

/// Time before each measurement, for connections to find their pace.
const WARM_UP: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(0.0 < args.seconds, "--seconds {}: it must be above 0", args.seconds);
    ensure!(0 < args.rounds, "--rounds 0: at least 1");
    ensure!(args.rate.is_none_or(|rate| 0.0 < rate), "--rate: it must be above 0");
    ensure!(100 <= args.silent, "--silent {}: at least 100", args.silent);
    let binary = match args.binary {
        Some(binary) => binary,
        None => broker::beside_this_program()?,
    };
    let parent = match args.dir {
        Some(dir) => dir,
        None => std::env::current_exe()?.parent().context("this program has no folder")?.to_owned(),
    };
    let wanted =
        |case: &Case| args.only.is_empty() || args.only.iter().any(|part| case.name.contains(part));
    let cases: Vec<Case> = CASES.into_iter().filter(wanted).collect();
    let dir = tempfile::Builder::new().prefix("load-").tempdir_in(&parent)?;

    eprintln!("examining the machine");
    let machine = Machine::examine(dir.path())?;
    let cores = Cores::choose();
    eprintln!("starting the brokers and filling the WAL");
    let poll = args.poll.into();
    let sizes = Sizes { connections: args.silent, start_bytes: args.start_gib << 30 };
    let mut bench = Bench::start(&binary, dir.path(), cores, poll, &args.sets, args.rate, sizes)?;
    let period = Period { warm_up: WARM_UP, measured: Duration::from_secs_f64(args.seconds) };
    let foreign_max = args.foreign_max / 100.0;
    let tolerance = Tolerance { foreign_max, patience: Duration::from_secs(args.patience) };
    let results = rounds::run(&mut bench, &cases, args.rounds, period, tolerance, |line| {
        eprintln!("{line}");
    })?;
    drop(bench);

    let run = Run { machine, cores, rounds: args.rounds, seconds: args.seconds, foreign_max };
    match args.format {
        Format::Text => print!("{}", report::text(&run, &results)),
        Format::Json => println!("{:#}", report::json(&run, &results)),
    }
    Ok(())
}
