//! Who may use the machine, and what it cannot do.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// Tests run side by side, except the one that counts what the disk does.
static MACHINE: RwLock<()> = RwLock::new(());

/// Held by a test that minds no others. One per test: a second one may wait for ever.
pub(crate) fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that no other may disturb.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Is this a run whose result counts?
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// Says by name that a test cannot run here. Under `CI=true` that is a failure: what counts is
/// shown, not left out.
pub(crate) fn skip(name: &str, why: &str) {
    assert!(!is_ci(), "{name} has to run under CI=true: {why}");
    note(&format!("SKIPPED {name}: {why}"));
}

/// A line that is seen even when the test passes: the harness holds back `println!` alone.
pub(crate) fn note(line: &str) {
    // Who closed the output does not want to know.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A directory on a real file system, under the build's: a broker writes past the page cache, which
/// not every file system takes.
pub(crate) fn scratch_dir(name: &str) -> Result<TempDir> {
    let under = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Ok(tempfile::Builder::new().prefix(name).tempdir_in(under)?)
}

/// The executable under test.
pub(crate) fn executable() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_rustmq"))
}

/// May this process do what only the administrator may?
pub(crate) fn is_root() -> bool {
    run("id", &["-u"]).is_some_and(|output| output.trim() == "0")
}

/// How a command is started that goes before all that are not.
const AHEAD: [&str; 3] = ["chrt", "--rr", "1"];

/// The same command, ahead of all other programs, so that the pace that a test measures is not
/// theirs to decide. Where that is not allowed it runs like any other.
pub(crate) fn ahead(command: &Command) -> Command {
    by(if may_go_ahead() { &AHEAD } else { &[] }, command)
}

/// While it lives its thread, and what that starts, go ahead of all other programs.
pub(crate) struct Ahead;

impl Ahead {
    /// From now on, where that is allowed.
    pub(crate) fn go() -> Result<Ahead> {
        if may_go_ahead() {
            schedule_this_thread(["--rr", "--pid", "1"])?;
        }
        Ok(Ahead)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // The harness may use the thread for another test.
        let _ = schedule_this_thread(["--other", "--pid", "0"]);
    }
}

fn schedule_this_thread(how: [&str; 3]) -> Result<()> {
    let thread = std::fs::read_link("/proc/thread-self")?;
    let thread = thread.file_name().context("a thread has a number")?;
    let status = Command::new(AHEAD[0]).args(how).arg(thread).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "chrt ended with {status}");
    Ok(())
}

fn may_go_ahead() -> bool {
    static MAY: LazyLock<bool> = LazyLock::new(|| {
        let may = run(AHEAD[0], &["--rr", "1", "true"]).is_some();
        if !may {
            note("this process may not go ahead of others: paces are measured beside them");
        }
        may
    });
    *MAY
}

/// The same command, started by way of another one.
pub(crate) fn by(way: &[&str], command: &Command) -> Command {
    let mut words = way.iter().map(OsStr::new).chain([command.get_program()]);
    let mut other = Command::new(words.next().expect("the command itself, if nothing else"));
    other.args(words).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

/// The output of a command that succeeds, or nothing.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}
