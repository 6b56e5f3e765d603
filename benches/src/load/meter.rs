//! Who used the processors while something was measured.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustmq_sys::cpu;

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
    /// Begins. `children` count as ours, beside this process and children that end before it is read;
    /// they must not be among those.
    pub fn start(children: &[u32]) -> Result<Meter> {
        let mut processes = vec![std::process::id()];
        processes.extend(children);
        let (all, cores) = all_busy_s()?;
        let ours = processes_s(&processes)? + ended_children_s()?;
        Ok(Meter { started: Instant::now(), processes, all, ours, cores })
    }

    /// Reads the meter.
    pub fn read(&self) -> Result<Reading> {
        let elapsed = self.started.elapsed().as_secs_f64();
        let ours_s = processes_s(&self.processes)? + ended_children_s()? - self.ours;
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

/// Seconds of processor time of our children that have ended.
fn ended_children_s() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    let ticks = ticks_from(&text, 13).context("understanding /proc/self/stat")?;
    Ok(ticks as f64 / TICKS_PER_S)
}

/// User and system time of `/proc/PID/stat`.
fn process_ticks(stat: &str) -> Option<u64> {
    ticks_from(stat, 11)
}

/// Two times that follow one another in `/proc/PID/stat`, the first so far behind the name. That may
/// hold blanks and brackets.
fn ticks_from(stat: &str, field: usize) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(field);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Processor time of one process so far, to the nanosecond: the same threads as above.
pub fn process_time(process: u32) -> Result<Duration> {
    cpu::process_time(process).with_context(|| format!("the processor time of {process}"))
}

/// Processor time so far of the threads of a process whose name begins so, to the nanosecond.
pub fn threads_time(process: u32, name: &str) -> Result<Duration> {
    let path = format!("/proc/{process}/task");
    let mut sum = None;
    for thread in fs::read_dir(&path).with_context(|| format!("reading {path}"))? {
        let thread = thread?.path();
        // A thread may end between the listing and here.
        let Ok(comm) = fs::read_to_string(thread.join("comm")) else { continue };
        if comm.starts_with(name) {
            let path = thread.join("schedstat");
            let text = fs::read_to_string(&path);
            let text = text.with_context(|| format!("reading {}", path.display()))?;
            let ran = ran_ns(&text).with_context(|| format!("understanding {text:?}"))?;
            sum = Some(sum.unwrap_or(Duration::ZERO) + Duration::from_nanos(ran));
        }
    }
    sum.with_context(|| format!("process {process} has no thread {name}"))
}

/// Time on a processor, of a thread's `schedstat`.
fn ran_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// Bytes of a process in memory, the pages of its executable included.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    resident(&text).with_context(|| format!("{path} has no VmRSS"))
}

/// `VmRSS` of `/proc/PID/status`, in bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_are_read_from_what_the_kernel_writes() {
        assert_eq!(
            resident("VmPeak:\t 9 kB\nVmRSS:\t   56672 kB\nRssAnon: 1 kB\n"),
            Some(56672 << 10)
        );
        assert_eq!(resident("VmPeak: 9 kB\n"), None);
        assert_eq!(ran_ns("47323308 60212138 338\n"), Some(47_323_308));
        assert_eq!(ran_ns(""), None);
        let me = std::process::id();
        assert!(0 < resident_bytes(me).unwrap());
        assert!(threads_time(me, "").unwrap() <= process_time(me).unwrap() * 2);
        assert!(threads_time(me, "nobody's").is_err());
    }

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
        assert_eq!(ticks_from(stat, 13), Some(0));
        assert_eq!(ticks_from("42 (a) S 1 2", 13), None);
    }

    #[test]
    fn our_own_work_is_not_foreign() {
        let meter = Meter::start(&[]).unwrap();
        let reading = meter.read().unwrap();
        assert!(0.0 <= reading.foreign && 0.0 <= reading.ours_s);
    }
}
