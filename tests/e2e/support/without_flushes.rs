//! The executable without flushes: what a test that looks for them has to find out.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::machine;

/// The one that `RUSTMQ_WITHOUT_FLUSHES` names, or, where the run counts, one that is built now, in
/// a directory of its own.
pub(crate) fn executable(test: &str) -> Result<Option<PathBuf>> {
    if let Some(path) = std::env::var_os("RUSTMQ_WITHOUT_FLUSHES") {
        return Ok(Some(path.into()));
    }
    if !machine::is_ci() {
        let why = "it takes a build of its own; name one in RUSTMQ_WITHOUT_FLUSHES, or set CI=true";
        machine::skip(test, why);
        return Ok(None);
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("without-flushes");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--package", "rustmq"])
        .args(["--features", "rustmq-sys/fault-no-flush"])
        .args(if cfg!(feature = "glommio") { &["--features", "glommio"][..] } else { &[] })
        .arg("--target-dir")
        .arg(&target);
    let output = cargo.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "building without flushes: {said}");
    Ok(Some(target.join("debug/rustmq")))
}
