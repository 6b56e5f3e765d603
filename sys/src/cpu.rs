//! Which cores this process may use, and pinning threads to them.

use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, io, mem};

use core_affinity::CoreId;

/// The cores this process may use, in ascending order: its affinity mask as it was when this was
/// first asked. Ask once at start, before any thread is pinned: threads inherit the mask.
/// Empty if the system does not tell.
pub fn available_cores() -> Vec<usize> {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES
        .get_or_init(|| {
            let cores = core_affinity::get_core_ids().unwrap_or_default();
            let mut cores: Vec<_> = cores.into_iter().map(|core| core.id).collect();
            cores.sort_unstable();
            cores
        })
        .clone()
}

/// Pins the calling thread to `core`. Fails if the core is not one the process may use.
pub fn pin_current(core: usize) -> io::Result<()> {
    // The mask as it was before the first pinning, for the threads that must stay off this core.
    available_cores();
    if core_affinity::set_for_current(CoreId { id: core }) {
        Ok(())
    } else {
        let message = format!("core {core} is not among those this process may use");
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }
}

/// Lets the calling thread run on every available core but `core`; on all of them if there is no
/// other. A kernel that refuses leaves the thread where it was: slower, and nothing else.
pub(crate) fn keep_current_off(core: usize) {
    let Some(set) = cores_without(core) else { return };
    // SAFETY: reads one cpu set.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}

/// The set of available cores without `core`, or with it if there is no other. None: not known.
pub(crate) fn cores_without(core: usize) -> Option<libc::cpu_set_t> {
    let all = available_cores();
    let others: Vec<_> = all.iter().copied().filter(|other| *other != core).collect();
    let cores = if others.is_empty() { all } else { others };
    if cores.is_empty() {
        return None;
    }
    // SAFETY: a cpu set is an array of integers; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for core in cores.into_iter().filter(|core| *core < 8 * size_of::<libc::cpu_set_t>()) {
        // SAFETY: the bit lies within the set, as just filtered.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    Some(set)
}

/// 100 ms: the longest time slice that the scheduler grants a thread that asks for one (Linux 6.12,
/// `kernel/sched/syscalls.c`).
const SLICE_LONG: Duration = Duration::from_millis(100);

/// Lets every thread that wakes up on this core run at once, before the calling one goes on.
///
/// Linux lets a running thread finish its time slice before one that has woken up gets its turn, unless
/// that one's slice is the shorter (`PREEMPT_SHORT` of `kernel/sched/features.h`). A thread that hardly
/// sleeps keeps the kernel's own threads waiting up to a tick, 4 ms: with them the completion of its own
/// writes. So it asks for the longest slice there is. Fails if the kernel has no such slices, before
/// Linux 6.12.
pub fn give_way_to_wakeups() -> io::Result<()> {
    set_slice(SLICE_LONG)?;
    if slice()? == SLICE_LONG {
        return Ok(());
    }
    let message = "the scheduler takes no time slices from threads; Linux 6.12 or later does";
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// Whether [`give_way_to_wakeups`] works here; if not, why not.
pub fn probe_give_way() -> io::Result<()> {
    let probe = std::thread::Builder::new().spawn(give_way_to_wakeups)?;
    probe.join().unwrap_or_else(|_| Err(io::Error::other("the probing thread panicked")))
}

/// Gives the calling thread the time slice of others again: threads inherit it.
pub(crate) fn take_turns() {
    // A kernel without such slices has not given it one.
    let _ = set_slice(Duration::ZERO);
}

/// Asks for a time slice; zero: the one that all have.
fn set_slice(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    attributes.sched_runtime = slice.as_nanos() as u64;
    // SAFETY: reads one struct of the size that it says.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0_u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn slice() -> io::Result<Duration> {
    attributes().map(|attributes| Duration::from_nanos(attributes.sched_runtime))
}

fn attributes() -> io::Result<libc::sched_attr> {
    const BYTES: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: integers alone, for which all zeroes is a value.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    // SAFETY: writes at most the bytes that it is told.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, BYTES, 0_u32) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Where a core sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CorePlace {
    /// The number the system schedules by.
    pub core: usize,
    /// The physical core: two with the same package and physical core are hyper-threads of one.
    pub physical: usize,
    /// The socket.
    pub package: usize,
    /// The memory node, zero if there is only one.
    pub node: usize,
}

/// Where the available cores sit, as far as the system tells; what it does not tell reads as zero,
/// and the physical core as the core itself.
pub fn topology() -> Vec<CorePlace> {
    let place = |core: usize| {
        let folder = format!("/sys/devices/system/cpu/cpu{core}");
        let number = |name: &str| {
            fs::read_to_string(format!("{folder}/topology/{name}")).ok()?.trim().parse().ok()
        };
        let node = fs::read_dir(&folder).ok().and_then(|entries| {
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            names.filter_map(|name| name.strip_prefix("node")?.parse().ok()).next()
        });
        CorePlace {
            core,
            physical: number("core_id").unwrap_or(core),
            package: number("physical_package_id").unwrap_or(0),
            node: node.unwrap_or(0),
        }
    };
    available_cores().into_iter().map(place).collect()
}

/// Processor time that a process has used so far: all its threads, those that have ended and those of
/// the kernel for its rings included. To the nanosecond where the kernel keeps it so. Fails for a
/// process that is gone.
pub fn process_time(process: u32) -> io::Result<Duration> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, format!("no process {process}"));
    let process = libc::pid_t::try_from(process).map_err(|_| gone())?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: writes one clock id.
    if unsafe { libc::clock_getcpuclockid(process, &raw mut clock) } != 0 {
        return Err(gone());
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one time.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(|_| gone())?;
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_grows_with_its_work_and_none_is_told_of_one_that_is_gone() {
        let before = process_time(std::process::id()).expect("this process is here");
        let work = (0..1_000_000u64).fold(0, |sum, next| std::hint::black_box(sum ^ next));
        std::hint::black_box(work);
        let after = process_time(std::process::id()).expect("this process is here");
        assert!(before < after, "{before:?} {after:?}");
        assert!(process_time(u32::MAX).is_err());
        let mut child = std::process::Command::new("true").spawn().expect("there is `true`");
        child.wait().expect("it ends");
        assert!(process_time(child.id()).is_err());
    }

    fn current_mask() -> Vec<usize> {
        let cores = core_affinity::get_core_ids().expect("the mask can be read");
        cores.into_iter().map(|core| core.id).collect()
    }

    #[test]
    fn a_pinned_thread_stays_on_its_core_and_one_kept_off_stays_off() {
        let cores = available_cores();
        let core = *cores.last().expect("there is a core");
        std::thread::spawn(move || {
            pin_current(core).expect("the core is available");
            assert_eq!(current_mask(), [core]);
            assert_eq!(available_cores(), cores, "pinning does not change what is available");
            keep_current_off(core);
            if cores.len() > 1 {
                assert!(!current_mask().contains(&core));
            }
        })
        .join()
        .expect("the thread ends");
    }

    #[test]
    fn who_gives_way_keeps_the_longest_slice_to_itself() {
        std::thread::spawn(|| {
            let before = slice().expect("the slice can be read");
            match give_way_to_wakeups() {
                Ok(()) => assert_eq!(slice().expect("read"), SLICE_LONG),
                Err(error) => assert!(error.to_string().contains("6.12"), "{error}"),
            }
            take_turns();
            assert_eq!(slice().expect("read"), before);
        })
        .join()
        .expect("the thread ends");
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused() {
        assert!(pin_current(900).is_err());
    }

    #[test]
    fn every_available_core_has_a_place() {
        let cores: Vec<_> = topology().into_iter().map(|place| place.core).collect();
        assert_eq!(cores, available_cores());
    }
}
