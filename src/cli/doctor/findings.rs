//! What the facts mean for a broker. Pure.

use std::time::Duration;

use rustmq_config::BrokerConfig;
use rustmq_sys::probe::Percentiles;

use super::facts::{DURABLE_WRITES, Facts};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Locked memory below which kernels before 5.12 refuse rings. 8 MiB: the usual limit, with which
/// the rings of any number of shards were measured to fit.
const MEMLOCK_BYTES_MIN: u64 = 8 * MIB;

/// A durable write that is quicker has not been to any disk.
const DURABLE_WRITE_MIN: Duration = Duration::from_micros(5);

/// A durable write that is slower is what producers feel first.
const DURABLE_WRITE_SLOW: Duration = Duration::from_millis(1);

/// A wake-up that is slower costs about as much as a durable write to a fast disk.
const WAKE_UP_SLOW: Duration = Duration::from_micros(15);

/// How something is for a broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// It works; it could be better, or it is good to know.
    Note,
    /// A broker would not start, or not keep its promises.
    Bad,
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Bad => "bad",
        }
    }
}

/// One thing about the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    pub(super) subject: &'static str,
    pub(super) status: Status,
    pub(super) fact: String,
    /// What to change.
    pub(super) advice: Option<String>,
}

fn ok(subject: &'static str, fact: String) -> Finding {
    Finding { subject, status: Status::Ok, fact, advice: None }
}

fn note(subject: &'static str, fact: String, advice: &str) -> Finding {
    Finding { subject, status: Status::Note, fact, advice: Some(advice.to_owned()) }
}

fn bad(subject: &'static str, fact: String, advice: &str) -> Finding {
    Finding { subject, status: Status::Bad, fact, advice: Some(advice.to_owned()) }
}

/// Everything there is to say, in the order of a record's way through the host.
pub(super) fn of(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts), cores(facts), uring(facts)];
    findings.extend([glommio(facts), memlock(facts)]);
    findings.extend(udp_buffers(facts));
    findings.extend([gso(facts), gro(facts), file_system(facts), direct(facts), space(facts)]);
    findings.extend([device(facts), durable_write(facts), wake_up(facts), time_slices(facts)]);
    findings
}

/// What a broker with the defaults would run, and why.
pub(super) fn plan(facts: &Facts) -> String {
    let shards = defaults().shard_count(facts.cores);
    let backend = match &facts.host.uring {
        Ok(()) => "io_uring, because the kernel allows it".to_owned(),
        Err(why) => format!("epoll, because io_uring cannot be used: {why}"),
    };
    let flush = match (&facts.host.uring, &facts.gives_way) {
        (Ok(()), Ok(())) if usize::from(shards) < facts.cores => "one write through its cache",
        (Ok(()), _) => "a write and a linked flush",
        (Err(_), _) => "one write through its cache, on a thread beside the shard,",
    };
    let cores = facts.cores;
    format!(
        "`rustmq dev` runs {shards} shard(s) on {cores} core(s) with {backend}.\n\
             Each block of records reaches the disk by {flush} before it is acknowledged."
    )
}

fn defaults() -> BrokerConfig {
    BrokerConfig::load(None, std::iter::empty(), &[]).expect("the defaults are allowed")
}

fn kernel(facts: &Facts) -> Finding {
    ok("kernel", facts.host.kernel.clone().unwrap_or_else(|| "unknown release".to_owned()))
}

fn cores(facts: &Facts) -> Finding {
    let fact = format!("{} available to this process", facts.cores);
    match facts.cores {
        0 | 1 => note("cores", fact, "give it two: a shard and the control plane share one core"),
        _ => ok("cores", fact),
    }
}

fn uring(facts: &Facts) -> Finding {
    match &facts.host.uring {
        Ok(()) => ok("io_uring", "usable".to_owned()),
        Err(why) => note(
            "io_uring",
            format!("not usable: {why}"),
            "allow it in the container's seccomp profile and with `sysctl -w \
             kernel.io_uring_disabled=0`; epoll runs instead",
        ),
    }
}

/// A choice of whoever builds and configures, so never a fault of the host.
fn glommio(facts: &Facts) -> Finding {
    match &facts.host.glommio {
        Ok(()) => ok("glommio", "usable, with --runtime glommio".to_owned()),
        Err(why) => ok("glommio", format!("not usable: {why}")),
    }
}

fn memlock(facts: &Facts) -> Finding {
    let Some(bytes) = facts.host.memlock_bytes else {
        return ok("locked memory", "limit unknown".to_owned());
    };
    let fact = match bytes {
        u64::MAX => "no limit".to_owned(),
        bytes => format!("at most {}", size(bytes)),
    };
    if bytes < MEMLOCK_BYTES_MIN && facts.host.may_lock_memory != Some(true) {
        return note("locked memory", fact, "raise it to 8 MiB (LimitMEMLOCK=8M, ulimit -l 8192)");
    }
    ok("locked memory", fact)
}

fn udp_buffers(facts: &Facts) -> [Finding; 2] {
    let wanted = defaults().network.socket_buffer_bytes;
    let finding = |subject, bytes: Option<u64>, setting| match bytes {
        None => ok(subject, "limit unknown".to_owned()),
        Some(bytes) if wanted <= bytes => ok(subject, format!("up to {}", size(bytes))),
        Some(bytes) => note(
            subject,
            format!("up to {}, a broker asks for {}", size(bytes), size(wanted)),
            &format!("sysctl -w {setting}={wanted}"),
        ),
    };
    [
        finding("UDP receive", facts.host.receive_buffer_bytes_max, "net.core.rmem_max"),
        finding("UDP send", facts.host.send_buffer_bytes_max, "net.core.wmem_max"),
    ]
}

fn gso(facts: &Facts) -> Finding {
    match facts.host.gso_segments {
        Some(segments) if 1 < segments => {
            ok("UDP send GSO", format!("{segments} datagrams with one call"))
        }
        _ => note(
            "UDP send GSO",
            "one datagram with one call".to_owned(),
            "a kernel from 4.18 on, and a network device that does not switch it off, send trains",
        ),
    }
}

fn gro(facts: &Facts) -> Finding {
    match facts.host.gro {
        Some(true) => ok("UDP recv GRO", "trains of datagrams with one call".to_owned()),
        _ => note(
            "UDP recv GRO",
            "one datagram at a time".to_owned(),
            "a kernel from 5.0 on joins received datagrams to trains",
        ),
    }
}

fn file_system(facts: &Facts) -> Finding {
    let name = facts.storage.file_system.as_str();
    let fact = format!("{name} at {}", facts.folder.display());
    match name {
        "ext4" | "xfs" => ok("file system", fact),
        "tmpfs" => bad("file system", fact, "choose a --data-dir on a disk: this is memory"),
        "nfs" | "smb" | "9p" | "fuse" => {
            note("file system", fact, "choose a local disk: here a flush crosses a network")
        }
        "btrfs" | "zfs" | "bcachefs" => note(
            "file system",
            fact,
            "choose ext4 or xfs: copy on write makes every flush write metadata too",
        ),
        _ => note("file system", fact, "ext4 and xfs are what a broker is measured on"),
    }
}

fn direct(facts: &Facts) -> Finding {
    match &facts.storage.direct {
        Ok(()) => ok("O_DIRECT", "files can bypass the page cache".to_owned()),
        Err(why) => bad("O_DIRECT", why.clone(), "choose a --data-dir on ext4 or xfs"),
    }
}

fn space(facts: &Facts) -> Finding {
    let wanted = defaults().wal.capacity_bytes;
    let fact = format!("{} free", size(facts.storage.free_bytes));
    if facts.storage.free_bytes < wanted {
        let advice =
            format!("the WAL may grow to {}: make room or lower wal.capacity_bytes", size(wanted));
        return note("disk space", fact, &advice);
    }
    ok("disk space", fact)
}

fn device(facts: &Facts) -> Finding {
    let Some(device) = &facts.storage.device else {
        return ok("disk", "not on one disk that the kernel names".to_owned());
    };
    let cache = match device.volatile_cache {
        Some(true) => "its write cache loses data without power, so every flush reaches it",
        Some(false) => "its write cache is safe or absent",
        None => "nothing known of its write cache",
    };
    let fua = match device.force_unit_access {
        Some(true) => "; FUA",
        _ => "; no FUA",
    };
    let fact = format!("{}: {cache}{fua}", device.name);
    let needs_flushes =
        device.volatile_cache == Some(true) && device.force_unit_access == Some(false);
    match facts.flushes {
        Some(flushes) if needs_flushes && flushes < DURABLE_WRITES as u64 / 2 => bad(
            "disk",
            format!("{fact}; {DURABLE_WRITES} durable writes caused {flushes} flushes"),
            "find out which layer drops flushes: acknowledged records may be lost without power",
        ),
        _ => ok("disk", fact),
    }
}

fn durable_write(facts: &Facts) -> Finding {
    let Some(times) = facts.durable_write else {
        return note(
            "durable write",
            "could not be measured".to_owned(),
            "see that the data directory can be written to",
        );
    };
    let fact = format!("4 KiB in {}", percentiles(times));
    if times.p50 < DURABLE_WRITE_MIN {
        return note("durable write", fact, "no disk is that quick: see that flushes reach one");
    }
    if DURABLE_WRITE_SLOW < times.p50 {
        return note(
            "durable write",
            fact,
            "producers wait that long for each acknowledgement: local NVMe takes 20 to 100 us",
        );
    }
    ok("durable write", fact)
}

fn time_slices(facts: &Facts) -> Finding {
    match &facts.gives_way {
        Ok(()) => ok("time slices", "what wakes up runs before a shard that is busy".to_owned()),
        Err(why) => note(
            "time slices",
            why.clone(),
            "a flush is linked to each write instead, which takes more wake-ups",
        ),
    }
}

fn wake_up(facts: &Facts) -> Finding {
    let Some(times) = facts.wake_up else {
        return ok("wake-up", "could not be measured".to_owned());
    };
    let fact = format!("a sleeping thread runs after {}", percentiles(times));
    if WAKE_UP_SLOW < times.p50 {
        return note(
            "wake-up",
            fact,
            "deep idle states or virtualisation: idle=poll or a host with its own cores helps",
        );
    }
    ok("wake-up", fact)
}

fn percentiles(times: Percentiles) -> String {
    let us = |time: Duration| time.as_nanos() as f64 / 1e3;
    format!("{:.1} us (p50), {:.1} us (p99)", us(times.p50), us(times.p99))
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    match bytes {
        GIB.. => format!("{:.1} GiB", bytes as f64 / GIB as f64),
        MIB.. => format!("{:.1} MiB", bytes as f64 / MIB as f64),
        _ => format!("{} KiB", bytes / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts;
    use super::*;

    fn finding(facts: &Facts, subject: &str) -> Finding {
        of(facts).into_iter().find(|finding| finding.subject == subject).unwrap()
    }

    #[test]
    fn a_good_host_needs_no_advice() {
        for finding in of(&facts::good()) {
            assert_eq!((finding.status, &finding.advice), (Status::Ok, &None), "{finding:?}");
        }
    }

    #[test]
    fn without_io_uring_epoll_runs_and_the_reason_is_shown() {
        let mut facts = facts::good();
        facts.host.uring = Err("EPERM".to_owned());
        assert_eq!(finding(&facts, "io_uring").status, Status::Note);
        assert!(plan(&facts).contains("epoll, because io_uring cannot be used: EPERM"));
    }

    #[test]
    fn small_socket_buffers_come_with_the_command_that_enlarges_them() {
        let mut facts = facts::good();
        facts.host.receive_buffer_bytes_max = Some(212_992);
        let finding = finding(&facts, "UDP receive");
        assert_eq!(finding.fact, "up to 208 KiB, a broker asks for 4.0 MiB");
        assert_eq!(finding.advice.as_deref(), Some("sysctl -w net.core.rmem_max=4194304"));
    }

    #[test]
    fn memory_as_a_disk_and_refused_direct_writes_are_bad() {
        let mut facts = facts::good();
        facts.storage.file_system = "tmpfs".to_owned();
        facts.storage.direct = Err("refused".to_owned());
        assert_eq!(finding(&facts, "file system").status, Status::Bad);
        assert_eq!(finding(&facts, "O_DIRECT").status, Status::Bad);
    }

    #[test]
    fn a_write_that_is_too_quick_or_too_slow_is_pointed_out() {
        let mut facts = facts::good();
        for us in [2, 5_000] {
            let time = Duration::from_micros(us);
            facts.durable_write = Some(Percentiles { p50: time, p99: time });
            assert_eq!(finding(&facts, "durable write").status, Status::Note, "{us}");
        }
    }
}
