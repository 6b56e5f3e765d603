//! `runtimes`: the same produce on each runtime that the executable has, in one run, as ratios. See
//! `benches/README.md`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustmq_benches::load::broker;
use rustmq_benches::load::drive::Period;
use rustmq_benches::load::machine::Cores;
use rustmq_benches::load::polls::Polls;
use rustmq_benches::load::runtimes::Runtimes;

/// One producer of records of 1 KiB, with 1 and with 16 requests in flight, on each runtime; or more
/// loads on each runtime with each `runtime.poll`
#[derive(Parser, Debug)]
struct Args {
    /// Rounds; every runtime has its turn in each
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each turn
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// A runtime; may be repeated, ratios are to the first one [default: uring, epoll and glommio]
    #[arg(long = "runtime", value_name = "NAME")]
    runtimes: Vec<String>,
    /// Loads #1, #2, #4 and #5 of docs/performance.md and a shard at rest, each runtime with each
    /// `runtime.poll`, instead
    #[arg(long)]
    table: bool,
    /// The broker's executable, built with `--features glommio` for that runtime [default: rustmq
    /// beside this program]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Directory on the disk to be measured; what is stored there is removed at the end
    /// [default: that of this program]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Time before each measurement, for connections to find their pace.
const WARM_UP: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(0.0 < args.seconds, "--seconds {}: it must be above 0", args.seconds);
    ensure!(0 < args.rounds, "--rounds 0: at least 1");
    let binary = match args.binary {
        Some(binary) => binary,
        None => broker::beside_this_program()?,
    };
    let parent = match args.dir {
        Some(dir) => dir,
        None => std::env::current_exe()?.parent().context("this program has no folder")?.to_owned(),
    };
    let runtimes = match args.runtimes.is_empty() {
        true => ["uring", "epoll", "glommio"].map(str::to_owned).into(),
        false => args.runtimes,
    };
    let dir = tempfile::Builder::new().prefix("runtimes-").tempdir_in(&parent)?;
    let cores = Cores::choose();
    let measured = Duration::from_secs_f64(args.seconds);
    if args.table {
        let mut polls = Polls::new(&runtimes);
        for round in 1..=args.rounds {
            eprintln!("round {round} of {}", args.rounds);
            polls.round(&binary, dir.path(), cores, Period { warm_up: WARM_UP, measured })?;
        }
        print!("{}", polls.report());
        return Ok(());
    }
    eprintln!("starting the brokers and filling their WALs");
    let mut bench = Runtimes::start(&binary, dir.path(), cores, &runtimes)?;
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        bench.round(measured, WARM_UP)?;
    }
    print!("{}", bench.report());
    Ok(())
}
