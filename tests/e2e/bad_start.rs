//! Surroundings in which a broker refuses to start, or makes do, and says which and why.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tempfile::TempDir;

use crate::support::broker::{Backend, Broker, Node, clear_environment, on_each_backend};
use crate::support::cli::Cli;
use crate::support::machine;

/// The user without any rights, by number: its name differs between distributions.
const NOBODY: &str = "65534";

/// What io_uring is refused with: "operation not permitted".
const EPERM: u32 = 1;

/// Numbers of `io_uring_setup`, `io_uring_enter` and `io_uring_register`, the same on every
/// architecture.
const IO_URING_CALLS: [i64; 3] = [425, 426, 427];

on_each_backend! {
    fn a_port_in_use_is_named(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let first = Node::new(backend)?.on_a_fixed_port()?;
        let mut broker = first.start()?;
        let (_, port) = broker.address()?.rsplit_once(':').map(split).context("host:port")?;
        let second = Node::new(backend)?.on_port(port);
        let said = second.refusal()?;
        ensure!(said.contains(&port.to_string()) && said.contains("in use"), "{said}");
        ensure!(broker.is_running()?, "the first broker ended");
        Cli::new(first.data_dir()).check_health("after")?;
        broker.stop()
    }
}

on_each_backend! {
    fn a_data_directory_in_use_names_the_process(backend: Backend) -> Result<()> {
        let _machine = machine::shared();
        let first = Node::new(backend)?;
        let mut broker = first.start()?;
        let second = Node::new(backend)?.in_dir(first.data_dir());
        let said = second.refusal()?;
        let id = broker.process_id().to_string();
        ensure!(said.contains("in use") && said.contains(&id), "process {id}: {said}");
        ensure!(broker.is_running()?, "the first broker ended");
        Cli::new(first.data_dir()).check_health("after")?;
        broker.stop()
    }
}

#[test]
fn options_that_nobody_knows_or_that_are_out_of_bounds_are_named() -> Result<()> {
    let _machine = machine::shared();
    let wrong = [
        ("wal.colour", "red", "wal.colour"),
        ("wal.segment_bytes", "3", "wal.segment_bytes"),
        ("broker.port", "99999", "broker.port"),
        ("wal.flush", "never", "always"),
        ("network.streams_max", "65", "64"),
        ("wal.capacity_bytes", "2MiB", "wal.capacity_bytes"),
    ];
    for (name, value, told) in wrong {
        let said = Node::new(Backend::Epoll)?.set(name, value).refusal()?;
        ensure!(said.contains(told), "{name}={value}: {said}");
    }
    Ok(())
}

#[test]
fn a_log_that_is_too_small_for_its_shards_says_how_much_is_needed() -> Result<()> {
    let _machine = machine::shared();
    // Three logs of fewer than four segments each.
    let node = Node::new(Backend::Epoll)?.shards(3).set("wal.capacity_bytes", "8MiB");
    let said = node.refusal()?;
    ensure!(said.contains("wal.capacity_bytes") && said.contains('4'), "{said}");
    Ok(())
}

#[test]
fn a_data_directory_without_permission_is_named() -> Result<()> {
    let _machine = machine::shared();
    let Some(elsewhere) = Elsewhere::new("bad_start::no permission")? else { return Ok(()) };
    let closed = elsewhere.dir.path().join("closed");
    std::fs::create_dir(&closed)?;
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700))?;
    let node = elsewhere.node(Backend::Epoll)?.in_dir(&closed.join("data"));
    let said = node.launch_by(elsewhere.as_nobody(&node, &[]))?.refusal()?;
    ensure!(said.contains("closed/data"), "{said}");
    ensure!(said.to_lowercase().contains("permission denied"), "{said}");
    Ok(())
}

#[test]
fn without_rights_and_without_memory_to_lock_it_serves_or_says_why() -> Result<()> {
    let _machine = machine::shared();
    let Some(elsewhere) = Elsewhere::new("bad_start::memlock")? else { return Ok(()) };
    let limit = ["prlimit", "--memlock=0:0"];
    // Left to choose, it always serves, and says on what.
    let node = elsewhere.node(Backend::Epoll)?.on_runtime("auto");
    let mut broker = node.launch_by(elsewhere.as_nobody(&node, &limit))?;
    broker.until_ready()?;
    ensure!(broker.output().contains("runtime "), "it does not say what runs");
    Cli::new(node.data_dir()).check_health("served")?;
    broker.stop()?;
    // Told to use io_uring, it does, or says what is missing.
    if Backend::Uring.runs("bad_start::memlock, uring") {
        let node = elsewhere.node(Backend::Uring)?;
        let mut broker = node.launch_by(elsewhere.as_nobody(&node, &limit))?;
        if broker.until_ready().is_ok() {
            Cli::new(node.data_dir()).check_health("served")?;
            broker.stop()?;
        } else {
            let said = broker.refusal()?;
            ensure!(said.contains("MEMLOCK"), "{said}");
        }
    }
    Ok(())
}

#[test]
#[cfg(not(feature = "glommio"))]
fn glommio_that_is_not_built_in_is_refused_and_auto_does_without() -> Result<()> {
    let _machine = machine::shared();
    let said = Node::new(Backend::Epoll)?.on_runtime("glommio").refusal()?;
    ensure!(said.contains("--features glommio") && said.contains("auto"), "{said}");
    Ok(())
}

/// glommio registers memory with its rings, which counts as locked.
#[test]
#[cfg(feature = "glommio")]
fn glommio_keeps_to_the_usual_limit_of_locked_memory_and_says_if_it_is_too_low() -> Result<()> {
    const SHARDS: u16 = 3;
    let _machine = machine::shared();
    let test = "bad_start::memlock, glommio";
    if !Backend::Glommio.runs(test) {
        return Ok(());
    }
    let Some(elsewhere) = Elsewhere::new(test)? else { return Ok(()) };
    let node = elsewhere.node(Backend::Glommio)?.shards(SHARDS).set("wal.capacity_bytes", "32MiB");
    let limited = |bytes: u32| format!("--memlock={bytes}:{bytes}");
    let limit = limited(64 << 10);
    let said = node.launch_by(elsewhere.as_nobody(&node, &["prlimit", &limit]))?.refusal()?;
    ensure!(said.contains("MEMLOCK") && said.contains("512 KiB"), "{said}");

    let limit = limited(8 << 20);
    let mut broker = node.launch_by(elsewhere.as_nobody(&node, &["prlimit", &limit]))?;
    broker.until_ready()?;
    Cli::new(node.data_dir()).check_health("served")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.process_id()))?;
    let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let pinned = pinned.and_then(|line| line.split_whitespace().next()).context("no VmPin")?;
    // 64 KiB for each of three rings.
    let each = u64::from(SHARDS) * 3 * 64;
    ensure!(pinned.parse::<u64>()? == each, "{pinned} KiB are locked, not {each}");
    broker.stop()
}

#[test]
#[cfg(feature = "glommio")]
fn where_io_uring_is_denied_glommio_is_refused_and_not_begun() -> Result<()> {
    let _machine = machine::shared();
    let said = launch_without_io_uring(&Node::new(Backend::Glommio)?)?.refusal()?;
    ensure!(said.contains("io_uring is denied") && said.contains("auto"), "{said}");
    Ok(())
}

#[test]
fn where_io_uring_is_denied_epoll_runs_and_says_so() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?.on_runtime("auto");
    let mut broker = launch_without_io_uring(&node)?;
    broker.until_ready()?;
    let said = broker.output();
    ensure!(said.contains("epoll") && said.contains("io_uring"), "{said}");
    Cli::new(node.data_dir()).check_health("served")?;
    broker.stop()
}

#[test]
fn where_io_uring_is_denied_and_demanded_the_start_fails_and_says_what_to_do() -> Result<()> {
    let _machine = machine::shared();
    let said = launch_without_io_uring(&Node::new(Backend::Uring)?)?.refusal()?;
    ensure!(said.contains("io_uring") && said.contains("auto"), "{said}");
    ensure!(said.contains("denied"), "{said}");
    Ok(())
}

#[test]
fn a_file_system_that_takes_no_direct_writes_is_named_or_works() -> Result<()> {
    let _machine = machine::shared();
    // In memory; older kernels refuse to write past the page cache there.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        machine::skip("bad_start::no direct writes", "there is no /dev/shm");
        return Ok(());
    };
    let node = Node::new(Backend::Epoll)?.in_dir(&dir.path().join("data"));
    let mut broker = node.launch()?;
    if broker.until_ready().is_ok() {
        Cli::new(node.data_dir()).check_health("served")?;
        return broker.stop();
    }
    let said = broker.refusal()?;
    ensure!(said.contains("O_DIRECT"), "{said}");
    Ok(())
}

/// Starts a broker on a thread to which the kernel denies io_uring; a child inherits that.
fn launch_without_io_uring(node: &Node) -> Result<Broker> {
    let rules = IO_URING_CALLS.map(|call| (call, Vec::new())).into();
    let allow = SeccompAction::Allow;
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram =
        SeccompFilter::new(rules, allow, SeccompAction::Errno(EPERM), arch)?.try_into()?;
    std::thread::scope(|scope| {
        let launched = scope.spawn(|| {
            seccompiler::apply_filter(&filter)?;
            node.launch()
        });
        launched.join().unwrap_or_else(|_| anyhow::bail!("the thread panicked"))
    })
}

/// A directory that a user without rights can reach, with a copy of the executable.
struct Elsewhere {
    dir: TempDir,
}

impl Elsewhere {
    /// `None` where this process may not become another user; then the test is named.
    fn new(test: &str) -> Result<Option<Elsewhere>> {
        if !machine::is_root() {
            machine::skip(test, "only the administrator can become another user");
            return Ok(None);
        }
        if machine::run("setpriv", &["--version"]).is_none() {
            machine::skip(test, "there is no setpriv (util-linux)");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777))?;
        let copy = dir.path().join("rustmq");
        // Not by this process: what it has open to write, a child that another test starts at that
        // moment has too, and what somebody may write the kernel does not execute.
        let status = Command::new("cp").arg(machine::executable()).arg(&copy).status()?;
        ensure!(status.success(), "cp ended with {status}");
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
        Ok(Some(Elsewhere { dir }))
    }

    fn executable(&self) -> PathBuf {
        self.dir.path().join("rustmq")
    }

    fn node(&self, backend: Backend) -> Result<Node> {
        let data_dir = self.dir.path().join(format!("data-{}", backend.name()));
        Ok(Node::new(backend)?.in_dir(&data_dir))
    }

    /// The command of a node, run as nobody by way of another command.
    fn as_nobody(&self, node: &Node, by: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
            .args(by)
            .arg(self.executable())
            .args(node.arguments())
            .current_dir(Path::new("/"));
        clear_environment(&mut command);
        command
    }
}

fn split((host, port): (&str, &str)) -> (String, u16) {
    (host.to_owned(), port.parse().unwrap_or_default())
}
