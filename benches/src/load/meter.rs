//! Who used the processors while something was measured.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

/// Ticks of the kernel's processor accounts in a second; fixed for programs on Linux.
const TICKS_PER_S: f64 = 100.0;

/// Processor time since a moment: of everybody, and of the processes that are ours.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    processes: Vec<u32>,
    all: f64,
    ours: f64,
    cores: f64,
}

/// What a meter read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Processor time of others, as a part of all that the host has; what the host's own host took
    /// away is in it, interrupts are not.
    pub foreign: f64,
    /// Seconds of processor time that our processes used.
    pub ours_s: f64,
}

impl Meter {
    /// Begins. `children` count as ours, beside this process.
    pub fn start(children: &[u32]) -> Result<Meter> {
        let mut processes = vec![std::process::id()];
        processes.extend(children);
        let (all, cores) = all_busy_s()?;
        let ours = processes_s(&processes)?;
        Ok(Meter { started: Instant::now(), processes, all, ours, cores })
    }

    /// Reads the meter.
    pub fn read(&self) -> Result<Reading> {
        let elapsed = self.started.elapsed().as_secs_f64();
        let ours_s = processes_s(&self.processes)? - self.ours;
        let (all, _) = all_busy_s()?;
        // Both accounts are kept in ticks, so the difference may come out just below zero.
        let foreign = ((all - self.all - ours_s) / (elapsed * self.cores)).max(0.0);
        Ok(Reading { foreign, ours_s })
    }
}

/// Seconds for which all cores together were busy, and how many cores there are.
fn all_busy_s() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let busy = busy_ticks(&text).context("reading the line of all processors in /proc/stat")?;
    let is_core = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    let cores = text.lines().filter(is_core).count();
    Ok((busy as f64 / TICKS_PER_S, cores as f64))
}

/// User, nice, system and stolen time of `/proc/stat`'s first line.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let field = |index: usize| fields.get(index).copied();
    Some(field(0)? + field(1)? + field(2)? + field(7).unwrap_or(0))
}

/// Seconds of processor time of these processes, with all their threads, the kernel's for their
/// rings included.
pub fn processes_s(processes: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for process in processes {
        let path = format!("/proc/{process}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        ticks += process_ticks(&text).with_context(|| format!("understanding {path}"))?;
    }
    Ok(ticks as f64 / TICKS_PER_S)
}

/// User and system time of `/proc/PID/stat`. The name before them may hold blanks and brackets.
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_an_interrupt() {
        let stat = "cpu  100 20 30 4000 5 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(158));
        assert_eq!(busy_ticks("intr 1"), None);
    }

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 123 45 0 0 20 0";
        assert_eq!(process_ticks(stat), Some(168));
    }

    #[test]
    fn our_own_work_is_not_foreign() {
        let meter = Meter::start(&[]).unwrap();
        let reading = meter.read().unwrap();
        assert!(0.0 <= reading.foreign && 0.0 <= reading.ours_s);
    }
}
