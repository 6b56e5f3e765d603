//! Who may use the machine, and what it cannot do.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::Result;
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

/// The output of a command that succeeds, or nothing.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}
