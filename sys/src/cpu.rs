//! Which cores this process may use, and pinning threads to them.

use std::sync::OnceLock;
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_core_that_does_not_exist_is_refused() {
        assert!(pin_current(900).is_err());
    }

    #[test]
    fn every_available_core_has_a_place() {
        let cores: Vec<_> = topology().into_iter().map(|place| place.core).collect();
        assert_eq!(cores, available_cores());
    }
}
