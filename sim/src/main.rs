//! `cargo run -p sim -- --seeds N [--seed S]`: simulates seeds and says what came of it.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustmq_planted::Bug;
use rustmq_sys::sim::interrupts::Interrupts;
use sim::{Damages, Finding, Options, Simulator, Tally};

const HELP: &str = "\
usage: sim [--seeds N] [--minutes N] [--seed S] [--images N] [--dishonest]
           [--no-network] [--recall] [--jobs N] [--trace N]
       sim --damage [--every N] [--at-once N] [--seed S] [--jobs N]

  --seeds N      simulate seeds S, S+1, ..., N of them (default 20)
  --minutes N    begin no seed after so long; without --seeds there is no other end
  --seed S       the first seed (default 1)
  --images N     images of each seed (default 100)
  --dishonest    the disk lies once in each image
  --no-network   no client speaks QUIC: many more images in the same time
  --damage       every damage to the disk of one broker at rest, one at a time: a bit
                 of each byte turned, each sector and page wiped, pages swapped, each
                 write lost, and each put anywhere else, files gone
  --every N      of those bits one in so many (default 1), of the pairs of pages and
                 the places for a write to go to 16 times as many
  --at-once N    so many of those at once at most, the others chosen at random (default 1)
  --recall       plant one bug after the other, and find each
  --jobs N       threads (default: one for each core)
  --trace N      lines of the trace to show of a failure (default 60)

A run that is interrupted (SIGINT, SIGTERM) finishes the seeds that it has begun,
says what came of all of them, and with which seed to go on.";

/// So many seeds show everything that may go wrong.
const MANY_SEEDS: u64 = 100;

/// How often a long run says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How often it looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is asked for on the command line.
struct Ask {
    seeds: u64,
    first: u64,
    /// No seed is begun after so long.
    minutes: Option<u64>,
    options: Options,
    /// Threads.
    jobs: u64,
    /// Look for every planted bug, instead of for none.
    recall: bool,
    /// Every damage to one disk, instead of many cuts.
    damage: bool,
    /// As for [`Damages::step`].
    step: u64,
    /// As for [`Damages::at_once`].
    at_once: u64,
}

fn main() -> ExitCode {
    let ask = match parse(std::env::args().skip(1)) {
        Ok(ask) => ask,
        Err(why) => {
            eprintln!("sim: {why}\n{HELP}");
            return ExitCode::from(2);
        }
    };
    if ask.recall {
        return recall(&ask);
    }
    if ask.damage {
        return damage(&ask);
    }
    let begun = Instant::now();
    let (total, next) = match simulate(&ask, begun) {
        Ok(done) => done,
        Err(finding) => {
            report(&finding);
            return ExitCode::FAILURE;
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} seeds, {} images, {} acknowledged records looked for, {:.0} simulated seconds in {:.1} s, \
         trace {:016x}",
        total.seeds,
        total.images,
        total.acknowledged,
        total.simulated_ns as f64 / 1e9,
        seconds,
        total.hash
    );
    let mut troubles = total.disk_troubles().to_vec();
    if ask.options.network {
        troubles.extend(total.network_troubles());
    }
    let said: Vec<_> = troubles.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("{}", said.join(", "));
    // What never happens proves nothing. A lying disk does nothing else wrong while it is read.
    let never = troubles.iter().find(|(_, count)| *count == 0);
    if let Some((what, _)) = never
        && MANY_SEEDS <= total.seeds
        && !ask.options.dishonest
    {
        eprintln!("sim: {what}: not once in {} seeds", total.seeds);
        return ExitCode::FAILURE;
    }
    if ask.options.dishonest {
        say_what_was_told(&total);
    }
    if next < ask.end() {
        println!("ended early; to go on: --seed {next}");
    }
    ExitCode::SUCCESS
}

impl Ask {
    /// The first seed that is not asked for.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.seeds)
    }
}

/// A seed under way: its number is said if it panics.
struct Running {
    seed: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("sim: that was seed {}", self.seed);
        }
    }
}

/// What came of a seed.
type Done = (u64, Result<Tally, Box<Finding>>);

/// Runs all seeds, on as many threads as asked for, or those that are begun before the end of the time
/// or a signal. What comes of them does not depend on how many threads there are. The second value is
/// the first seed that was not run.
fn simulate(ask: &Ask, begun: Instant) -> Result<(Tally, u64), Box<Finding>> {
    let next = AtomicU64::new(ask.first);
    let stop = AtomicBool::new(false);
    let done: Mutex<Vec<Done>> = Mutex::default();
    let lock = || done.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        let mut simulator = Simulator::new(ask.options.clone());
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if ask.end() <= seed {
                break;
            }
            let running = Running { seed };
            let outcome = simulator.run(seed);
            drop(running);
            if outcome.is_err() {
                // Nobody begins another one.
                stop.store(true, Ordering::Relaxed);
            }
            lock().push((seed, outcome));
        }
    };
    // Without them a signal ends the run at once.
    let interrupts = Interrupts::hold().ok();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..ask.jobs).map(|_| scope.spawn(work)).collect();
        let mut told = begun;
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(LOOK_EVERY);
            let minutes = begun.elapsed().as_secs() / 60;
            // A thread that has ended had no seed left, or has panicked.
            if ask.minutes.is_some_and(|most| most <= minutes)
                || interrupts.as_ref().is_some_and(Interrupts::came)
                || threads.iter().any(thread::ScopedJoinHandle::is_finished)
            {
                stop.store(true, Ordering::Relaxed);
            }
            if TELL_EVERY <= told.elapsed() {
                told = Instant::now();
                let (seeds, images) = so_far(&lock());
                eprintln!("sim: {seeds} seeds, {images} images and no failure so far");
            }
        }
    });
    let mut outcomes = std::mem::take(&mut *lock());
    outcomes.sort_by_key(|(seed, _)| *seed);
    let mut total = Tally::default();
    for (_, outcome) in outcomes {
        total.add(&outcome?);
    }
    Ok((total, next.into_inner().min(ask.end())))
}

fn so_far(done: &[Done]) -> (usize, u64) {
    let tallies = done.iter().filter_map(|(_, outcome)| outcome.as_ref().ok());
    (done.len(), tallies.map(|tally| tally.images).sum())
}

/// Plants one bug after the other: each must be found within so many seeds.
fn recall(ask: &Ask) -> ExitCode {
    let mut missed = 0;
    for bug in Bug::ALL {
        // No honest disk shows a damaged block in the middle of a log.
        let dishonest = bug == Bug::TailCutBelowDurableEnd;
        let options =
            Options { planted: Some(bug), dishonest, trace_lines: 0, ..ask.options.clone() };
        let mut simulator = Simulator::new(options);
        let mut images = 0;
        let found = (ask.first..ask.first + ask.seeds).find_map(|seed| match simulator.run(seed) {
            Ok(tally) => {
                images += tally.images;
                None
            }
            Err(finding) => Some(finding),
        });
        match found {
            Some(finding) => {
                let seeds = finding.seed - ask.first + 1;
                let images = images + finding.image.map_or(0, |image| image + 1);
                let said = finding.failure.to_string();
                let said = said.lines().next().unwrap_or_default();
                println!("{bug:?}: found after {images} images of {seeds} seeds: {said}");
            }
            None => {
                missed += 1;
                println!("{bug:?}: NOT FOUND in {images} images of {} seeds", ask.seeds);
            }
        }
    }
    println!("{} of {} planted bugs found", Bug::ALL.len() - missed, Bug::ALL.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every damage to one disk, shared among threads.
fn damage(ask: &Ask) -> ExitCode {
    let part_of = |part| {
        let mut simulator = Simulator::new(ask.options.clone());
        let Ask { first, step, at_once, jobs: parts, .. } = *ask;
        simulator.damage(first, Damages { step, at_once, parts, part })
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let part_of = &part_of;
        let threads: Vec<_> =
            (0..ask.jobs).map(|part| scope.spawn(move || part_of(part))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it says what it found")).collect()
    });
    let mut total = Tally::default();
    for outcome in outcomes {
        match outcome {
            Ok(tally) => total.add(&tally),
            Err(finding) => {
                report(&finding);
                return ExitCode::FAILURE;
            }
        }
    }
    println!("seed {}, {} damages", ask.first, total.images);
    say_what_was_told(&total);
    ExitCode::SUCCESS
}

fn say_what_was_told(total: &Tally) {
    println!(
        "refused with the file named {}, ranges named {}, no difference {}, last block gone {}",
        total.refused, total.named, total.harmless, total.last_block
    );
}

fn report(finding: &Finding) {
    for line in &finding.trace {
        eprintln!("{line}");
    }
    let image = match finding.image {
        Some(image) => format!("image {image}"),
        None => "the broker under load".to_owned(),
    };
    eprintln!("seed {}, {image}: {}", finding.seed, finding.failure);
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Ask, String> {
    let options = Options {
        planted: None,
        images_per_seed: 100,
        dishonest: false,
        network: true,
        trace_lines: 60,
    };
    let jobs = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let mut ask = Ask {
        seeds: 20,
        first: 1,
        minutes: None,
        options,
        jobs,
        recall: false,
        damage: false,
        step: 1,
        at_once: 1,
    };
    let mut seeds = None;
    while let Some(name) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a number"))?;
            value.parse::<u64>().map_err(|_| format!("{name} {value}: a number is allowed"))
        };
        match name.as_str() {
            "--seeds" => seeds = Some(number()?),
            "--minutes" => ask.minutes = Some(number()?),
            "--seed" => ask.first = number()?,
            "--images" => ask.options.images_per_seed = number()?,
            "--jobs" => ask.jobs = number()?.max(1),
            "--trace" => ask.options.trace_lines = number()? as usize,
            "--recall" if cfg!(feature = "planted") => ask.recall = true,
            "--recall" => return Err("--recall needs a build with --features planted".to_owned()),
            "--damage" => ask.damage = true,
            "--every" => ask.step = number()?.max(1),
            "--at-once" => ask.at_once = number()?.max(1),
            "--dishonest" => ask.options.dishonest = true,
            "--no-network" => ask.options.network = false,
            _ => return Err(format!("{name} is not known")),
        }
    }
    ask.seeds = match (seeds, ask.minutes) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => u64::MAX,
        (None, None) => ask.seeds,
    };
    Ok(ask)
}
