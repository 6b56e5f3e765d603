//! Child processes: what they write is kept in files, what they do is waited for with a bound.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Between two looks at a process or a file. 5 ms: short beside any start.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The longest that anything is waited for unless a test says otherwise. A minute: hundreds of
/// times what is usual, since a machine of two cores may be building something else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A child process and the files that take its output. Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a command; its output goes to `<name>.stdout` and `<name>.stderr` in `dir`.
    pub(crate) fn start(mut command: Command, dir: &Path, name: &str) -> Result<Process> {
        let stdout = dir.join(format!("{name}.stdout"));
        let stderr = dir.join(format!("{name}.stderr"));
        command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Process { child, stdout, stderr })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.id().to_string()])
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "kill -{name} {} failed", self.id());
        Ok(())
    }

    /// SIGKILL, and the end of it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        self.wait_within(PATIENCE)
    }

    /// The same with another bound.
    pub(crate) fn wait_within(&mut self, patience: Duration) -> Result<ExitStatus> {
        match until(patience, || self.ended())? {
            Some(status) => Ok(status),
            None => bail!("it still runs after {patience:?}\n{}", self.output()),
        }
    }

    /// What it wrote to its standard output so far.
    pub(crate) fn stdout(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.stdout)?)
    }

    /// What it wrote to its standard error so far.
    pub(crate) fn stderr(&self) -> String {
        let bytes = std::fs::read(&self.stderr).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All that it wrote, for people.
    pub(crate) fn output(&self) -> String {
        let stdout = self.stdout().unwrap_or_default();
        let stdout = String::from_utf8_lossy(&stdout[..stdout.len().min(16 << 10)]).into_owned();
        format!("--- stdout\n{stdout}\n--- stderr\n{}\n---", last_lines(&self.stderr(), 60))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.kill();
    }
}

/// Asks again and again until there is an answer, or [`PATIENCE`] is at its end.
pub(crate) fn wait_until<T>(ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    until(PATIENCE, ask)
}

fn until<T>(patience: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        if deadline < Instant::now() {
            return Ok(None);
        }
        sleep(LOOK_INTERVAL);
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
