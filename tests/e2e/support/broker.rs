//! The executable as a running broker: started small, found by its files, killed at will.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::process::{Process, wait_until};
use super::random::Random;
use super::{machine, ports};

/// What the WALs of a small broker hold together.
pub(crate) const WAL_CAPACITY_BYTES: u64 = 16 << 20;

/// The interface to the kernel that a broker runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    Uring,
    Epoll,
    #[cfg(feature = "glommio")]
    Glommio,
}

impl Backend {
    /// As it is configured.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Uring => "uring",
            Backend::Epoll => "epoll",
            #[cfg(feature = "glommio")]
            Backend::Glommio => "glommio",
        }
    }

    /// Whether it runs here; if not, the test is named.
    pub(crate) fn runs(self, test: &str) -> bool {
        let backend = self.name().parse().expect("the names are the same");
        match rustmq_sys::runtime::probe(backend) {
            Ok(()) => true,
            Err(why) => {
                machine::skip(test, &why);
                false
            }
        }
    }
}

/// One test under each backend: a module with the name of the fact, in it `uring`, `epoll` and, if
/// the executable is built with it, `glommio`.
macro_rules! on_each_backend {
    (
        $(#[doc = $doc:literal])*
        fn $name:ident($backend:ident: Backend) -> Result<()> $body:block
    ) => {
        mod $name {
            use super::*;

            $(#[doc = $doc])*
            fn run($backend: Backend) -> Result<()> $body

            #[test]
            fn uring() -> Result<()> {
                let runs = Backend::Uring.runs(concat!(module_path!(), "::uring"));
                if runs { run(Backend::Uring) } else { Ok(()) }
            }

            #[test]
            fn epoll() -> Result<()> {
                run(Backend::Epoll)
            }

            #[test]
            #[cfg(feature = "glommio")]
            fn glommio() -> Result<()> {
                let runs = Backend::Glommio.runs(concat!(module_path!(), "::glommio"));
                if runs { run(Backend::Glommio) } else { Ok(()) }
            }
        }
    };
}

pub(crate) use on_each_backend;

/// How a broker is started, and the directory it lives in: the same over all its starts.
pub(crate) struct Node {
    data_dir: PathBuf,
    /// Where its output goes; removed with this.
    scratch: TempDir,
    executable: PathBuf,
    backend: &'static str,
    shards: u16,
    port: u16,
    sets: Vec<(String, String)>,
    starts: AtomicU32,
}

/// A broker that runs.
pub(crate) struct Broker {
    process: Process,
    data_dir: PathBuf,
    shards: u16,
}

impl Node {
    /// A small broker of one shard in a directory of its own: 16 MiB of log in segments of 1 MiB.
    pub(crate) fn new(backend: Backend) -> Result<Node> {
        let scratch = machine::scratch_dir("broker-")?;
        let node = Node {
            data_dir: scratch.path().join("data"),
            scratch,
            executable: machine::executable(),
            backend: backend.name(),
            shards: 1,
            port: 0,
            sets: Vec::new(),
            starts: AtomicU32::new(0),
        };
        Ok(node
            .set("test.enabled", "true")
            // Brokers of several tests share the cores: none owns one.
            .set("runtime.poll", "sleep")
            .set("wal.segment_bytes", "1MiB")
            .set("wal.capacity_bytes", WAL_CAPACITY_BYTES)
            .set("wal.block_bytes_max", "256KiB")
            .set("wal.buffer_bytes", "16MiB")
            .set("cache.hot_bytes", "16MiB")
            .set("topics.record_bytes_max", "192KiB"))
    }

    /// The same with one more option; the last value of an option counts.
    pub(crate) fn set(mut self, name: &str, value: impl ToString) -> Node {
        self.sets.push((name.to_owned(), value.to_string()));
        self
    }

    /// Its next lives have one more option.
    pub(crate) fn change(&mut self, name: &str, value: impl ToString) {
        self.sets.push((name.to_owned(), value.to_string()));
    }

    /// Its next lives make blocks durable by the one plan or the other, whichever comes up.
    pub(crate) fn change_flush_plan(&mut self, random: &mut Random) {
        let plans = ["write_flush", "write_through"];
        self.change("wal.flush_plan", plans[random.below(plans.len() as u64) as usize]);
    }

    /// The same with this many shards.
    pub(crate) fn shards(mut self, shards: u16) -> Node {
        self.shards = shards;
        self
    }

    /// The same on a port that stays over restarts, for clients that live through them.
    pub(crate) fn on_a_fixed_port(mut self) -> Result<Node> {
        self.port = ports::reserve()?;
        Ok(self)
    }

    /// The same on this port.
    pub(crate) fn on_port(mut self, port: u16) -> Node {
        self.port = port;
        self
    }

    /// The same in another directory, which is not removed.
    pub(crate) fn in_dir(mut self, data_dir: &Path) -> Node {
        self.data_dir = data_dir.to_owned();
        self
    }

    /// The same with another build of the executable.
    pub(crate) fn of_build(mut self, executable: &Path) -> Node {
        self.executable = executable.to_owned();
        self
    }

    /// The same with this value of `runtime.backend`.
    pub(crate) fn on_runtime(mut self, backend: &'static str) -> Node {
        self.backend = backend;
        self
    }

    /// Where it stores everything.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(self.arguments());
        clear_environment(&mut command);
        command
    }

    /// The arguments that start it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let data_dir = self.data_dir.display().to_string();
        let mut arguments: Vec<String> = ["dev", "--data-dir", &data_dir].map(str::to_owned).into();
        let (shards, port) = (self.shards.to_string(), self.port.to_string());
        let pairs = [
            ("--runtime", self.backend),
            ("--shards", &shards),
            ("--port", &port),
            ("--admin-port", "0"),
        ];
        for (name, value) in pairs {
            arguments.extend([name.to_owned(), value.to_owned()]);
        }
        for (name, value) in &self.sets {
            arguments.extend(["--set".to_owned(), format!("{name}={value}")]);
        }
        arguments
    }

    /// Starts the process and does not wait for it.
    pub(crate) fn launch(&self) -> Result<Broker> {
        self.launch_by(self.command())
    }

    /// Starts it by a command that ends in [`Node::command`].
    pub(crate) fn launch_by(&self, command: Command) -> Result<Broker> {
        let start = self.starts.fetch_add(1, Ordering::Relaxed) + 1;
        let process = Process::start(command, self.scratch.path(), &format!("start-{start}"))?;
        Ok(Broker { process, data_dir: self.data_dir.clone(), shards: self.shards })
    }

    /// Starts it and waits until it serves.
    pub(crate) fn start(&self) -> Result<Broker> {
        let mut broker = self.launch()?;
        broker.until_ready()?;
        Ok(broker)
    }

    /// Starts it with another number of shards, for this once.
    pub(crate) fn start_with_shards(&self, shards: u16) -> Result<Broker> {
        let mut command = self.command();
        // The last one counts.
        command.args(["--set", &format!("broker.shards={shards}")]);
        let mut broker = self.launch_by(command)?;
        broker.shards = shards;
        broker.until_ready()?;
        Ok(broker)
    }

    /// Starts it where it must not start; what it said, after it has ended with code 1 or 2.
    pub(crate) fn refusal(&self) -> Result<String> {
        self.launch()?.refusal()
    }
}

impl Broker {
    /// Waits until it serves.
    pub(crate) fn until_ready(&mut self) -> Result<()> {
        let ready = wait_until(|| {
            // `address` may be left over from a start that was killed; what this one printed is
            // not.
            if self.process.stdout()?.split(|byte| *byte == b'\n').any(|line| line == b"ready") {
                return Ok(Some(()));
            }
            match self.process.ended()? {
                None => Ok(None),
                Some(status) => bail!("the broker ended ({status})\n{}", self.process.output()),
            }
        })?;
        ready.with_context(|| format!("the broker is not ready\n{}", self.process.output()))
    }

    /// What is said of it now, for people.
    pub(crate) fn state(&self) -> String {
        let pages = ["/readyz", "/metrics"].map(|page| match self.get(page) {
            Ok(text) => text,
            Err(error) => format!("{page}: {error:#}"),
        });
        pages.join("\n")
    }

    /// The same without buckets and explanations.
    pub(crate) fn counters(&self) -> String {
        let state = self.state();
        let lines = state.lines();
        let counters: Vec<&str> =
            lines.filter(|line| !line.starts_with('#') && !line.contains("bucket")).collect();
        counters.join("\n")
    }

    /// Waits until it has refused to start, and says so on standard error without a panic.
    pub(crate) fn refusal(self) -> Result<String> {
        self.ended_with(&[1, 2])
    }

    /// Waits until it has ended because of what it ran into, and says so on standard error.
    pub(crate) fn failure(self) -> Result<String> {
        self.ended_with(&[1])
    }

    fn ended_with(mut self, codes: &[i32]) -> Result<String> {
        let status = self.process.wait()?;
        let said = self.process.stderr();
        ensure!(
            status.code().is_some_and(|code| codes.contains(&code)),
            "it ended with {status}, of {codes:?}\n{}",
            self.process.output()
        );
        ensure!(!said.contains("panicked"), "it panicked\n{said}");
        ensure!(!said.trim().is_empty(), "it said nothing");
        Ok(said)
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> Result<String> {
        self.file("address")
    }

    /// SIGKILL; it must have run until then, and is gone when this returns.
    pub(crate) fn kill_running(mut self) -> Result<()> {
        if let Some(status) = self.process.ended()? {
            bail!("the broker ended by itself ({status})\n{}", self.process.output());
        }
        self.process.kill()
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end_by(mut self, signal: &str) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait()
    }

    /// Ends it cleanly.
    pub(crate) fn stop(self) -> Result<()> {
        let output = self.process.output();
        let status = self.end_by("TERM")?;
        ensure!(status.code() == Some(0), "a clean stop ended with {status}\n{output}");
        Ok(())
    }

    /// The number of its process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn memory_peak(&self) -> Result<u64> {
        self.memory_field("VmHWM:")
    }

    /// The memory that it has now, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.memory_field("VmRSS:")
    }

    fn memory_field(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("the field")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// What it wrote, for people.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// The sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> Result<u64> {
        self.metric_with(name, "")
    }

    /// The sum of a metric over those labels that contain this text.
    pub(crate) fn metric_with(&self, name: &str, label: &str) -> Result<u64> {
        Ok(self.metric_sum(name, label)? as u64)
    }

    /// The sums over their labels of metrics that count seconds, of one moment.
    pub(crate) fn metrics_seconds<const N: usize>(&self, names: [&str; N]) -> Result<[f64; N]> {
        let text = self.metrics()?;
        let mut sums = [0.0; N];
        for (sum, name) in sums.iter_mut().zip(names) {
            *sum = sum_of(&text, name, "")?;
        }
        Ok(sums)
    }

    fn metric_sum(&self, name: &str, label: &str) -> Result<f64> {
        sum_of(&self.metrics()?, name, label)
    }

    /// What every shard measured. A scrape leaves out one that does not answer in time; then it is
    /// asked again.
    fn metrics(&self) -> Result<String> {
        let complete = wait_until(|| {
            let text = self.get("/metrics")?;
            let up = sum_of(&text, "rustmq_shard_up", "").unwrap_or_default();
            Ok((up == f64::from(self.shards)).then_some(text))
        })?;
        complete.context("not every shard answers a scrape")
    }

    /// The body of a page for operators.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let (code, body) = self.status(path)?;
        ensure!(code == 200, "{path}: {code}");
        Ok(body)
    }

    /// The code and body of a page for operators.
    pub(crate) fn status(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.file("admin-address")?)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let code = head.split(' ').nth(1).context("a status code")?.parse()?;
        Ok((code, body.to_owned()))
    }

    /// A file in its data directory that has one line.
    pub(crate) fn file(&self, name: &str) -> Result<String> {
        let path = self.data_dir.join(name);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Shown by the harness when the test fails.
        println!("{}", self.process.output());
    }
}

/// The surroundings of the tests are not those of the broker.
pub(crate) fn clear_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RUSTMQ_") {
            command.env_remove(name);
        }
    }
}

fn sum_of(text: &str, name: &str, label: &str) -> Result<f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let values: Vec<f64> = samples
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    ensure!(!values.is_empty(), "no metric {name} in\n{text}");
    Ok(values.iter().sum())
}

/// The directories of the WALs below a data directory.
pub(crate) fn wal_dirs(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(data_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("wal-") && entry.path().is_dir() {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}
